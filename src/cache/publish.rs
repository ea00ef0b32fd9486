//! Generations written, and made the current one.
//!
//! ```text
//! drop orphan blobs of generations after the newest       ①
//! write the blobs of g+1: index, tags, queries            ②   a crash up to here: g is current, orphans stay
//! one batch: record of g+1, current = g+1, drop g−1,      ③   the flip
//!            drop the changes that g and g+1 contain
//! ```
//!
//! The generation before the current one is kept, so that a publish can be taken back ([`publish_existing`]), and with it the
//! changes made since. Fail points stand at every arrow; `index-builder/tests/crash.rs` aborts at each and reopens.

use super::Error;
use super::generation::find_generation;
use crate::index::Error as IndexError;
use crate::store::{Access, BlobKind, BlobWriter, CacheId, CacheRecord, GenerationRecord, Store};
use crate::types::{CacheName, Generation};

/// A generation that is written and does not count yet.
pub(super) struct Written {
    pub(super) generation: Generation,
    pub(super) index_bytes: u64,
    pub(super) tags_bytes: Option<u64>,
    pub(super) queries_bytes: Option<u64>,
    pub(super) created_ms: u64,
}

/// Writes the blobs of the next generation. They count once [`flip`] says so.
///
/// * `tags`: the table of tags. `index`, `queries`: write the index, and the sample of queries or nothing where there is none.
///
/// # Errors
/// [`Error::Store`], and what `index` and `queries` fail with.
pub(super) fn write_blobs(
    store: &Store,
    cache: CacheId,
    tags: &[u8],
    index: impl FnOnce(&mut BlobWriter<'_>) -> Result<(), Error>,
    queries: impl FnOnce(&mut BlobWriter<'_>) -> Result<(), Error>,
) -> Result<Written, Error> {
    let newest = store.generations(cache)?.iter().map(|g| g.generation.0).max().unwrap_or(0);
    let generation = Generation(newest + 1);

    let mut orphans = store.batch();
    orphans.delete_blobs_from(cache, generation);
    store.commit(orphans)?;
    fail::fail_point!("publish::before_blob", |_| std::process::abort());

    let mut blob = store.write_blob(cache, generation, BlobKind::Index);
    index(&mut blob)?;
    let index_bytes = blob.finish()?;
    let mut blob = store.write_blob(cache, generation, BlobKind::Tags);
    std::io::Write::write_all(&mut blob, tags).map_err(IndexError::Write)?;
    let tags_bytes = Some(blob.finish()?);
    let mut blob = store.write_blob(cache, generation, BlobKind::Queries);
    queries(&mut blob)?;
    let queries_bytes = Some(blob.finish()?).filter(|&len| len > 0);
    store.flush_blobs()?;
    Ok(Written { generation, index_bytes, tags_bytes, queries_bytes, created_ms: now_ms() })
}

/// The next generation, for a cache without items. It has no blobs.
///
/// # Errors
/// [`Error::Store`].
pub(super) fn empty_generation(store: &Store, record: &CacheRecord) -> Result<GenerationRecord, Error> {
    let newest = store.generations(record.id)?.iter().map(|g| g.generation.0).max().unwrap_or(0);
    let empty = GenerationRecord::empty(Generation(newest + 1), record.sequence, now_ms());
    Ok(GenerationRecord { put: record.put, ..empty })
}

/// Makes a written generation the current one, keeps the one before, and drops what neither needs.
///
/// * `record`: the cache's as it is now. Returns it as it is then.
///
/// # Errors
/// [`Error::Store`]; then nothing has changed.
pub(super) fn flip(
    store: &Store,
    record: &CacheRecord,
    generation: GenerationRecord,
) -> Result<CacheRecord, Error> {
    fail::fail_point!("publish::before_flip", |_| std::process::abort());
    let cache = record.id;
    let flipped = CacheRecord { current: Some(generation.generation), ..record.clone() };
    let mut flip = store.batch();
    flip.put_generation(cache, &generation);
    flip.put_cache(&flipped);
    let mut needed = generation.sequence;
    for old in store.generations(cache)? {
        if Some(old.generation) == record.current {
            needed = needed.min(old.sequence);
        } else {
            flip.delete_generation(cache, old.generation);
        }
    }
    if needed > 0 {
        flip.delete_changes_to(cache, needed);
    }
    store.commit(flip)?;
    fail::fail_point!("publish::after_flip", |_| std::process::abort());
    Ok(flipped)
}

/// Makes a stored generation the current one: a roll-back, or its opposite. Takes the store's lock for a moment.
///
/// # Errors
/// [`Error::NoGeneration`] naming those there are; [`crate::store::Error::Locked`].
pub fn publish_existing(
    path: &std::path::Path,
    name: &CacheName,
    generation: Generation,
) -> Result<(), Error> {
    let store = Store::open(path, Access::Write)?;
    let record = store.cache(name)?;
    find_generation(&store, &record, generation)?;
    let mut batch = store.batch();
    batch.put_cache(&CacheRecord { current: Some(generation), ..record });
    Ok(store.commit(batch)?)
}

pub(super) fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}
