//! Items into a cache, and out of it.

use std::sync::Arc;
use std::time::Duration;

use super::embed::embed;
use super::input::MediaInput;
use super::{App, Call, Content, Error};
use crate::cache::{self, Cache, Compacted, NewItem, Repeatable, Snapshot, Upserts};
use crate::store::{ItemRecord, RequestResult};
use crate::types::{Embedding, Fingerprint, ItemId, Modality};

/// An item to put, as the edge hands it down.
#[derive(Debug, Clone)]
pub struct Upsert {
    /// Its id, or `None` for the next one after the largest ever.
    pub id: Option<ItemId>,
    /// What it is.
    pub content: Content,
    /// What kind of input a ready embedding was made from, if that is known.
    pub modality: Option<Modality>,
    /// Where it comes from.
    pub uri: String,
    /// Whatever else is said of it.
    pub tags: std::collections::BTreeMap<String, String>,
}

/// What came of changes.
pub struct Changed<T> {
    /// One for each item or id, in order.
    pub results: Vec<T>,
    /// A state that contains them.
    pub snapshot: Arc<Snapshot>,
    /// Time of embedding, for the whole batch.
    pub embed: Duration,
}

/// Items to put, and how.
pub struct UpsertRequest<'a> {
    /// Name of the cache; empty means the default.
    pub cache: &'a str,
    /// The items, each possibly already refused.
    pub items: Vec<Result<Upsert, Error>>,
    /// Every id that the request names, also for items that were refused: they are given to none that names no id.
    pub named: &'a [ItemId],
    /// Whether an item takes the place of the one that has its uri.
    pub by_uri: bool,
    /// What makes it one that may come again.
    pub again: Option<Again<'a>>,
}

/// A request that is answered as before when it comes again.
pub struct Again<'a> {
    /// Its id.
    pub id: &'a str,
    /// Digest of what it asks for.
    pub content: Fingerprint,
    /// How an item that is refused is answered for, given its position.
    pub refused: &'a dyn Fn(usize, Refusal<'_>) -> RequestResult,
}

/// Why an item is not stored.
pub enum Refusal<'a> {
    /// It did not come to the cache.
    Before(&'a Error),
    /// The cache did not take it.
    ByCache(&'a cache::Error),
}

/// What came of a request to put items.
pub enum Upserted {
    /// One result for each item.
    Now(Changed<Result<ItemId, Error>>),
    /// The request has come before, and was answered so.
    Before(Changed<RequestResult>),
}

/// Puts items, each with a result of its own. What is acknowledged is on disk and is found by the next search.
///
/// # Errors
/// For the request as a whole: an unknown cache, one that is not writable or full, a missing model, deadline and
/// cancellation (until the items are written), the id of another request, a store that fails.
pub fn upsert(app: &App, request: UpsertRequest<'_>, call: &Call) -> Result<Upserted, Error> {
    let UpsertRequest { cache, items, named, by_uri, again } = request;
    let cache = writable(app, cache)?;
    let repeated = |results: Vec<RequestResult>| {
        Upserted::Before(Changed { results, snapshot: cache.snapshot(), embed: Duration::ZERO })
    };
    // Before anything is embedded once more. Asked again where it is written.
    if let Some(again) = &again
        && let Some(before) = cache.answered(again.id, &again.content)?
    {
        return Ok(repeated(before));
    }
    let start = std::time::Instant::now();
    let media: Vec<&MediaInput> = items
        .iter()
        .flatten()
        .filter_map(|item| match &item.content {
            Content::Media(media) => Some(media),
            Content::Embedding(_) => None,
        })
        .collect();
    let (any, mut encoded) = (!media.is_empty(), embed(app, &media, call)?.into_iter());
    let embed = if any { start.elapsed() } else { Duration::ZERO };
    let mut refused: Vec<Option<Error>> = Vec::with_capacity(items.len());
    let mut new = Vec::with_capacity(items.len());
    for item in items {
        let item = item.and_then(|item| {
            let Upsert { id, content, modality, uri, tags } = item;
            let (embedding, modality, digest) = match content {
                Content::Embedding(embedding) => {
                    let digest = Fingerprint::of(bytemuck::cast_slice(embedding.as_slice()));
                    (embedding, modality, digest)
                }
                Content::Media(media) => {
                    let encoded = encoded.next().unwrap_or(Err(Error::Cancelled))?;
                    (encoded.embedding, Some(media.modality()), media.digest())
                }
            };
            has_direction(&embedding)?;
            Ok(NewItem { id, embedding, record: ItemRecord { uri, modality, digest, tags } })
        });
        refused.push(item.map(|item| new.push(item)).err());
    }
    call.check()?;
    let stored = {
        let answer = |stored: &[Result<ItemId, cache::Error>]| {
            let mut stored = stored.iter();
            let mut of_item = |(i, before): (usize, &Option<Error>)| {
                let refusal = match (before, before.is_none().then(|| stored.next()).flatten()) {
                    (Some(error), _) => Refusal::Before(error),
                    (None, Some(Ok(id))) => return Some(RequestResult::Stored(*id)),
                    (None, Some(Err(error))) => Refusal::ByCache(error),
                    (None, None) => return None,
                };
                again.as_ref().map(|again| (again.refused)(i, refusal))
            };
            refused.iter().enumerate().filter_map(&mut of_item).collect()
        };
        let repeatable = |&Again { id, content, .. }: &_| Repeatable { id, content, answer: &answer };
        let request = again.as_ref().map(repeatable);
        cache.put(Upserts { items: new, named, by_uri, request })
    };
    compact_behind(app, &cache, &stored);
    let mut stored = match stored? {
        cache::Upserted::Before(before) => return Ok(repeated(before)),
        cache::Upserted::Now(stored) => stored.into_iter(),
    };
    let results = refused.into_iter().map(|refused| match refused {
        Some(error) => Err(error),
        None => {
            stored.next().unwrap_or_else(|| Err(cache::Error::NoFreeId(cache.name()))).map_err(Error::from)
        }
    });
    Ok(Upserted::Now(Changed { results: results.collect(), snapshot: cache.snapshot(), embed }))
}

/// Deletes items; says for each whether it was there.
///
/// # Errors
/// As [`upsert`].
pub fn delete(app: &App, cache: &str, ids: &[ItemId], call: &Call) -> Result<Changed<bool>, Error> {
    let cache = writable(app, cache)?;
    call.check()?;
    let results = cache.delete(ids)?;
    cache.compact_if_due(&app.compact, &app.background);
    Ok(Changed { results, snapshot: cache.snapshot(), embed: Duration::ZERO })
}

/// Builds a generation over everything stored and serves it.
///
/// # Errors
/// As [`Cache::compact`].
pub fn compact(app: &App, cache: &str) -> Result<Compacted, Error> {
    Ok(writable(app, cache)?.compact(&app.compact)?)
}

/// Has a cache compacted behind the request, if what came of its change makes that due.
pub(super) fn compact_behind<T>(app: &App, cache: &Arc<Cache>, changed: &Result<T, cache::Error>) {
    match changed {
        Err(cache::Error::Full { .. }) => cache.compact_for_room(&app.compact, &app.background),
        _ => cache.compact_if_due(&app.compact, &app.background),
    }
}

/// A cache that may be changed. Asked before any work is done for the change.
pub(super) fn writable(app: &App, name: &str) -> Result<Arc<Cache>, Error> {
    let cache = app.cache(name)?;
    match cache.writable() {
        true => Ok(cache),
        false => Err(cache::Error::NotWritable(cache.name()).into()),
    }
}

fn has_direction(embedding: &Embedding) -> Result<(), Error> {
    embedding.unit().map(drop).map_err(|e| Error::Model(e.into()))
}
