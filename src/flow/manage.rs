//! Caches made, renamed, deleted and called by other names, while others are asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tracing::{error, info};

use super::caches::{Change, ServedCache};
use super::{App, Error};
use crate::cache::{self, Cache, NewCache};
use crate::store::{self, Access, CacheId, CacheRecord, RowType, Store};
use crate::types::{CacheName, Origin};

/// The model of a cache of which nobody says what makes its embeddings.
const UNKNOWN: &str = "unknown";

/// A cache to be made.
#[derive(Debug, Clone)]
pub struct Create {
    /// Its name.
    pub name: CacheName,
    /// Components of every embedding, where that is not known otherwise.
    pub dim: Option<usize>,
    /// How rows are stored; without it, f32, or as those of the cache that it is made like.
    pub rows: Option<RowType>,
    /// What makes its embeddings.
    pub made_by: MadeBy,
}

/// What makes the embeddings of a cache.
#[derive(Debug, Clone)]
pub enum MadeBy {
    /// What makes those of another cache.
    Like(CacheName),
    /// The model that is loaded.
    Served,
    /// Something of this name, or nobody says what.
    Named(Option<String>),
}

/// What a look at the store came to.
#[derive(Default)]
pub struct Reloaded {
    /// Caches that are served from now on.
    pub opened: Vec<CacheName>,
    /// Names that are served no more.
    pub closed: Vec<CacheName>,
    /// The cache that was asked for; none where all were.
    pub cache: Option<Arc<Cache>>,
    /// Whether its generation is another one, or any cache's where all were asked for.
    pub changed: bool,
}

/// Makes an empty cache and serves it.
///
/// # Errors
/// [`Error::ReadOnly`], [`Error::TooManyCaches`], a name that is taken, a cache or model that is not there, a dimension that is
/// not said, or is another than theirs.
pub fn create(app: &App, new: &Create) -> Result<CacheRecord, Error> {
    let store = writable(app)?;
    let mut change = app.caches.change();
    let (count, limit) = (store.caches()?.len(), app.limits.max_caches);
    if count >= limit {
        return Err(Error::TooManyCaches { limit });
    }
    let (known, rows, origin, model) = match &new.made_by {
        MadeBy::Like(like) => {
            let record = store.cache(like)?;
            (
                Some((format!("cache `{like}` has"), record.dim)),
                Some(record.rows),
                record.origin,
                record.model,
            )
        }
        MadeBy::Served => {
            let encoder = app
                .encoder()
                .ok_or_else(|| Error::NoModel { what: "a cache for the served model".into() })?;
            let known = ("the served model makes".to_owned(), encoder.dim());
            (Some(known), None, encoder.origin().clone(), app.source.clone())
        }
        MadeBy::Named(name) => (None, None, Origin::of(name.as_deref().unwrap_or(UNKNOWN)), None),
    };
    let dim = match (new.dim, known) {
        (Some(dim), Some((whose, known))) if dim != known => {
            let description = format!("{dim} components, {whose} {known}; leave it out");
            return Err(Error::Argument { field: "dim".into(), description });
        }
        (_, Some((_, known))) => known,
        (Some(dim), None) => dim,
        (None, None) => {
            let description = "is missing: nothing says how many components the embeddings have".into();
            return Err(Error::Argument { field: "dim".into(), description });
        }
    };
    let ours = app.encoder().map(|encoder| encoder.origin());
    if let Some(difference) = ours.and_then(|ours| origin.difference(ours)) {
        return Err(cache::Error::Origin { cache: new.name.clone(), difference }.into());
    }
    let rows = new.rows.or(rows).unwrap_or(RowType::F32);
    let record = NewCache { dim, rows, origin, model }.make(store, &new.name)?;
    let opened = open(app, store, &new.name);
    change.next.put(new.name.clone(), opened.clone());
    change.show();
    match opened {
        Ok(_) => Ok(record),
        Err(problem) => Err(Error::CacheUnavailable { name: new.name.clone(), problem }),
    }
}

/// Deletes a cache with everything in it. Returns its record, and the aliases that went with it.
///
/// * `force`: also one that has aliases.
///
/// # Errors
/// [`Error::ReadOnly`], a cache that is not there, an alias in place of its name, one that has aliases.
pub fn delete_cache(
    app: &App,
    name: &CacheName,
    force: bool,
) -> Result<(CacheRecord, Vec<CacheName>), Error> {
    let store = writable(app)?;
    let mut change = app.caches.change();
    let stood_for = |(alias, cache): (&CacheName, &CacheName)| (cache == name).then(|| alias.clone());
    let aliases = change.next.aliases.iter().filter_map(stood_for).collect();
    let record = match change.next.caches.get(name) {
        Some(Ok(cache)) => cache.delete_cache(force)?,
        // Nobody reads it.
        Some(Err(_)) | None => store.delete_cache(name, force)?,
    };
    change.next.take(name);
    app.sampler.keep(|id| id != record.id);
    renew_aliases(&mut change, store)?;
    change.show();
    info!(cache = %name, items = record.items, "cache deleted");
    Ok((record, aliases))
}

/// Gives a cache another name.
///
/// # Errors
/// [`Error::ReadOnly`], a cache that is not there, an alias in place of its name, a new name that is taken.
pub fn rename(app: &App, from: &CacheName, to: &CacheName) -> Result<(), Error> {
    let store = writable(app)?;
    let mut change = app.caches.change();
    match change.next.caches.get(from) {
        Some(Ok(cache)) => cache.rename(to)?,
        Some(Err(_)) | None => drop(store.rename_cache(from, to)?),
    }
    change.next.rename(from, to);
    renew_aliases(&mut change, store)?;
    change.show();
    Ok(())
}

/// Lets an alias stand for a cache. Returns the cache's own name, and what the alias stood for.
///
/// # Errors
/// [`Error::ReadOnly`], a cache that is not there, an alias that is a cache's name.
pub fn set_alias(
    app: &App,
    alias: &CacheName,
    cache: &CacheName,
) -> Result<(CacheName, Option<CacheName>), Error> {
    let store = writable(app)?;
    let mut change = app.caches.change();
    let done = store.set_alias(alias, cache)?;
    renew_aliases(&mut change, store)?;
    // A server that was started for the alias alone serves whatever that stands for, and nothing else.
    let mut caches = change.next.caches.clone();
    let records = store.caches()?;
    let wanted = |name: &CacheName| {
        records.iter().find(|record| record.name == *name).is_some_and(|record| change.next.wants(record))
    };
    caches.retain(|name, _| wanted(name));
    if wanted(&done.0) && !caches.contains_key(&done.0) {
        caches.insert(done.0.clone(), open(app, store, &done.0));
    }
    change.next.replace(caches);
    change.show();
    Ok(done)
}

/// Takes an alias away. Returns what it stood for.
///
/// # Errors
/// [`Error::ReadOnly`], an alias that is not there.
pub fn delete_alias(app: &App, alias: &CacheName) -> Result<CacheName, Error> {
    let store = writable(app)?;
    let mut change = app.caches.change();
    let done = store.delete_alias(alias)?;
    renew_aliases(&mut change, store)?;
    change.show();
    Ok(done)
}

/// Takes in what another process has made of the store: caches, names and aliases, and the changes of one cache or of all.
///
/// * `name`: of the one; empty means the default. `all`: of all.
///
/// # Errors
/// A cache that is not there, or cannot be read; its old state then stays. Of several the first is told.
pub fn reload(app: &App, name: &str, all: bool) -> Result<Reloaded, Error> {
    let mut done = match &app.store {
        Some(store) if store.access() == Access::Read => look(app, store)?,
        _ => Reloaded::default(),
    };
    if !all {
        let cache = app.cache(name)?;
        done.changed = cache.reload()?;
        done.cache = Some(cache);
        return Ok(done);
    }
    // One that cannot be read is no reason to leave the others as they were.
    let mut failed = None;
    for cache in app.caches.all().into_values().flatten() {
        match cache.reload() {
            Ok(changed) => done.changed |= changed,
            Err(problem) => failed = failed.or(Some(problem)),
        }
    }
    failed.map_or(Ok(done), |problem| Err(problem.into()))
}

/// Serves the caches and aliases that there are now.
fn look(app: &App, store: &Arc<Store>) -> Result<Reloaded, Error> {
    let mut change = app.caches.change();
    store.refresh()?;
    renew_aliases(&mut change, store)?;
    let records = store.caches()?;
    app.sampler.keep(|id| records.iter().any(|record| record.id == id));
    let open_now = change.next.caches.values().flatten();
    let by_id: HashMap<CacheId, Arc<Cache>> = open_now.map(|cache| (cache.id(), cache.clone())).collect();
    let mut caches: BTreeMap<CacheName, ServedCache> = BTreeMap::new();
    for record in records.into_iter().filter(|record| change.next.wants(record)) {
        let served = match by_id.get(&record.id) {
            Some(cache) => {
                // It learns its new name with its changes.
                if cache.name() != record.name
                    && let Err(problem) = cache.reload()
                {
                    error!(cache = %record.name, %problem, "its changes cannot be read");
                }
                Ok(cache.clone())
            }
            None => open(app, store, &record.name),
        };
        caches.insert(record.name, served);
    }
    let names = |of: &BTreeMap<CacheName, ServedCache>| of.keys().cloned().collect::<BTreeSet<_>>();
    let (before, after) = (names(&change.next.caches), names(&caches));
    let [opened, closed] =
        [after.difference(&before), before.difference(&after)].map(|names| names.cloned().collect());
    change.next.replace(caches);
    change.show();
    Ok(Reloaded { opened, closed, ..Reloaded::default() })
}

/// Opens a cache for serving, or says why that fails.
fn open(app: &App, store: &Arc<Store>, name: &CacheName) -> ServedCache {
    let expected = app.encoder().map(|encoder| encoder.origin());
    Cache::open_among(store, name, expected, app.load, &app.memory).map(Arc::new).map_err(|problem| {
        let told = super::with_causes(&problem);
        error!(cache = %name, problem = told, "cache not served");
        told
    })
}

fn renew_aliases(change: &mut Change<'_>, store: &Store) -> Result<(), Error> {
    change.next.aliases = store.aliases()?.into_iter().collect();
    Ok(())
}

/// The store, if it may be changed.
fn writable(app: &App) -> Result<&Arc<Store>, Error> {
    let store = app.store.as_ref().ok_or(Error::NoStore)?;
    match store.access() {
        Access::Write => Ok(store),
        Access::Read => Err(Error::ReadOnly),
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Error::Cache(error.into())
    }
}
