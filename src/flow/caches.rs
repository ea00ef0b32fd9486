//! The caches that are served, by name, while they are made, renamed, deleted and called by other names.
//!
//! ```text
//! request ─► the map as of now ─► a cache, or why there is none        never waits
//! change  ─► one at a time: the store first, then the next map         whoever holds a cache keeps it
//! ```
//!
//! **The default**, for requests that name none: the name that the server was started with, whatever that stands for. Without
//! one, a cache that is alone when it starts or is the first to be made; it stays the default when others are made, until it is
//! deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tracing::error;

use super::Error;
use crate::cache::Cache;
use crate::store::{CacheRecord, Store};
use crate::types::CacheName;

/// A cache that should be served: open, or the reason why not.
pub type ServedCache = Result<Arc<Cache>, String>;

/// The caches that are served.
pub struct Caches {
    now: ArcSwap<Served>,
    changing: Mutex<()>,
    /// The default that the server was started with.
    named: Option<CacheName>,
}

/// The caches as of one moment.
#[derive(Clone, Default)]
pub(super) struct Served {
    pub(super) caches: BTreeMap<CacheName, ServedCache>,
    pub(super) aliases: BTreeMap<CacheName, CacheName>,
    /// Names to be served; all that there are without it.
    pub(super) only: Option<BTreeSet<CacheName>>,
    /// The default of a server that was started without one.
    alone: Option<CacheName>,
}

impl Served {
    fn find(&self, name: &str) -> Option<(&CacheName, &ServedCache)> {
        let known = |name: &str| self.caches.get_key_value(name);
        known(name).or_else(|| known(self.aliases.get(name)?.as_str()))
    }

    /// Puts a cache under a name.
    pub(super) fn put(&mut self, name: CacheName, cache: ServedCache) {
        if let Some(only) = &mut self.only {
            only.insert(name.clone());
        }
        self.caches.insert(name, cache);
    }

    /// Takes a name out.
    pub(super) fn take(&mut self, name: &CacheName) -> Option<ServedCache> {
        if let Some(only) = &mut self.only {
            only.remove(name);
        }
        self.caches.remove(name)
    }

    /// Gives a cache another name.
    pub(super) fn rename(&mut self, from: &CacheName, to: &CacheName) {
        let alone = self.alone.as_ref() == Some(from);
        if let Some(cache) = self.take(from) {
            self.put(to.clone(), cache);
        }
        if alone {
            self.alone = Some(to.clone());
        }
    }

    /// Serves these in place of all that there were. The default is the same cache, whatever it is called now.
    pub(super) fn replace(&mut self, caches: BTreeMap<CacheName, ServedCache>) {
        let id = |name: &CacheName| self.caches.get(name)?.as_ref().ok().map(|cache| cache.id());
        if let Some(alone) = self.alone.as_ref().and_then(id) {
            let same = |(name, cache): (&CacheName, &ServedCache)| {
                cache.as_ref().is_ok_and(|cache| cache.id() == alone).then(|| name.clone())
            };
            self.alone = caches.iter().find_map(same);
        }
        self.caches = caches;
    }

    /// Whether a stored cache is to be served.
    pub(super) fn wants(&self, record: &CacheRecord) -> bool {
        let Some(only) = &self.only else { return true };
        let stands_for = |name: &CacheName| self.aliases.get(name) == Some(&record.name);
        only.contains(&record.name) || only.iter().any(stands_for)
    }

    fn known(&self) -> String {
        let names = || self.caches.keys().chain(self.aliases.keys()).map(CacheName::as_str);
        let shown = names().take(CacheName::SHOWN).collect::<Vec<_>>().join(", ");
        match names().count().saturating_sub(CacheName::SHOWN) {
            _ if shown.is_empty() => "(it serves none)".to_owned(),
            0 => shown,
            more => format!("{shown} and {more} more"),
        }
    }
}

impl Caches {
    /// These, with the aliases of the store. Without a default, a single cache is it.
    pub(super) fn new(
        store: Option<&Store>,
        caches: BTreeMap<CacheName, ServedCache>,
        named: Option<CacheName>,
    ) -> Self {
        let aliases = store.map_or(Ok(Vec::new()), Store::aliases).unwrap_or_else(|problem| {
            error!(%problem, "aliases cannot be read, so none is known");
            Vec::new()
        });
        let served = Served { caches, aliases: aliases.into_iter().collect(), ..Served::default() };
        let all = Caches { now: ArcSwap::default(), changing: Mutex::new(()), named };
        all.set(served);
        all
    }

    /// Serves these names alone, and what is made from now on.
    pub fn serve_only(&self, names: impl IntoIterator<Item = CacheName>) {
        let mut next = Served::clone(&self.now.load());
        next.only = Some(names.into_iter().collect());
        self.set(next);
    }

    /// The cache of this name or alias, or the default for an empty one.
    ///
    /// # Errors
    /// [`Error::NoDefaultCache`], [`Error::NoCache`], [`Error::CacheUnavailable`].
    pub fn get(&self, name: &str) -> Result<Arc<Cache>, Error> {
        let now = self.now.load();
        let name = match (name, self.named.as_ref().or(now.alone.as_ref())) {
            ("", Some(default)) => default.as_str(),
            ("", None) => return Err(Error::NoDefaultCache(now.known())),
            (name, _) => name,
        };
        let (name, served) =
            now.find(name).ok_or_else(|| Error::NoCache { name: name.into(), known: now.known() })?;
        let unavailable =
            |problem: &String| Error::CacheUnavailable { name: name.clone(), problem: problem.clone() };
        served.as_ref().map(Arc::clone).map_err(unavailable)
    }

    /// Every cache by its name.
    pub fn all(&self) -> BTreeMap<CacheName, ServedCache> {
        self.now.load().caches.clone()
    }

    /// One of them, by its own name.
    pub fn served(&self, name: &CacheName) -> Option<ServedCache> {
        self.now.load().caches.get(name).cloned()
    }

    /// The name that requests without one mean, if there is one.
    pub fn default_name(&self) -> Option<CacheName> {
        self.named.clone().or_else(|| self.now.load().alone.clone())
    }

    /// The right to change them, for as long as what comes back lives.
    pub(super) fn change(&self) -> Change<'_> {
        let one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        Change { caches: self, next: Served::clone(&self.now.load()), _one: one }
    }

    fn set(&self, mut served: Served) {
        served.alone = served.alone.filter(|alone| served.caches.contains_key(alone));
        // What is left when the default goes was not chosen by anybody.
        if served.alone.is_none() && served.caches.len() == 1 && self.now.load().caches.is_empty() {
            served.alone = served.caches.keys().next().cloned();
        }
        self.now.store(Arc::new(served));
    }
}

/// The next state of the caches, in the making.
pub(super) struct Change<'a> {
    caches: &'a Caches,
    pub(super) next: Served,
    _one: MutexGuard<'a, ()>,
}

impl Change<'_> {
    /// Lets requests see what has been done so far.
    pub(super) fn show(&self) {
        self.caches.set(self.next.clone());
    }
}
