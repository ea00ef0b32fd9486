//! Items into a cache, and out of it.

use std::sync::Arc;
use std::time::Duration;

use super::embed::{MediaInput, embed};
use super::{App, Call, Content, Error};
use crate::cache::{Cache, Compacted, NewItem, Snapshot};
use crate::store::ItemRecord;
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

/// Puts items, each with a result of its own. What is acknowledged is on disk and is found by the next search.
///
/// * `named`: every id that the request names, also for items that were refused: they are given to none that names no id.
///
/// # Errors
/// For the request as a whole: an unknown cache, one that is not writable or full, a missing model, deadline and
/// cancellation (until the items are written), a store that fails.
pub fn upsert(
    app: &App,
    cache: &str,
    items: Vec<Result<Upsert, Error>>,
    named: &[ItemId],
    call: &Call,
) -> Result<Changed<Result<ItemId, Error>>, Error> {
    let cache = writable(app, cache)?;
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
    let mut results: Vec<Option<Error>> = Vec::with_capacity(items.len());
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
        results.push(item.map(|item| new.push(item)).err());
    }
    call.check()?;
    let mut stored = cache.upsert_beside(new, named)?.into_iter();
    cache.compact_if_due(&app.compact);
    let results = results.into_iter().map(|refused| match refused {
        Some(error) => Err(error),
        None => stored
            .next()
            .unwrap_or_else(|| Err(crate::cache::Error::NoFreeId(cache.name().clone())))
            .map_err(Error::from),
    });
    Ok(Changed { results: results.collect(), snapshot: cache.snapshot(), embed })
}

/// Deletes items; says for each whether it was there.
///
/// # Errors
/// As [`upsert`].
pub fn delete(app: &App, cache: &str, ids: &[ItemId], call: &Call) -> Result<Changed<bool>, Error> {
    let cache = writable(app, cache)?;
    call.check()?;
    let results = cache.delete(ids)?;
    cache.compact_if_due(&app.compact);
    Ok(Changed { results, snapshot: cache.snapshot(), embed: Duration::ZERO })
}

/// Builds a generation over everything stored and serves it.
///
/// # Errors
/// As [`Cache::compact`].
pub fn compact(app: &App, cache: &str) -> Result<Compacted, Error> {
    Ok(writable(app, cache)?.compact(&app.compact)?)
}

/// A cache that may be changed. Asked before any work is done for the change.
fn writable<'a>(app: &'a App, name: &str) -> Result<&'a Arc<Cache>, Error> {
    let cache = app.cache(name)?;
    match cache.writable() {
        true => Ok(cache),
        false => Err(crate::cache::Error::NotWritable(cache.name().clone()).into()),
    }
}

fn has_direction(embedding: &Embedding) -> Result<(), Error> {
    embedding.unit().map(drop).map_err(|e| Error::Model(e.into()))
}
