//! The single writer: put items, index them, publish.
//!
//! ```text
//! put(items + ledger) ─── one synced batch each ───► items, vectors, ledger, cache record
//! index():
//!   build (`build.rs`), publish (`publish.rs`)
//! ```
//!
//! [`Writer::put`] is for bulk: it writes no log, so what it puts is found from the next generation on, and what it replaces is
//! found as it was until then, where rows are in memory. A server that is open for writing changes items through
//! [`super::Cache::upsert`] instead, and builds generations with the same functions.

use std::collections::BTreeMap;
use std::time::Instant;

use super::Error;
use super::build::{Built, IndexStep, StoredRows, build, write_generation};
use super::calibrate;
use super::publish::{flip, now_ms};
use super::queries::{Queries, QuerySample};
use super::rows::encode_row;
use crate::index::{self, BuildParams, Reach};
use crate::store::{
    Batch, CacheId, CacheRecord, Choice, ItemRecord, ModelSource, RecallCurve, Recalls, RowType, Store,
};
use crate::types::{CacheName, Embedding, Generation, ItemId, Origin};

/// Farthest from 1 that a norm may be to count as 1: what f32 leaves of a unit vector of a thousand components.
const UNIT_TOLERANCE: f64 = 1e-6;

/// Writes one cache of a store that was opened for writing.
pub struct Writer<'a> {
    store: &'a Store,
    record: CacheRecord,
}

/// What a new cache is made with.
#[derive(Debug, Clone)]
pub struct NewCache {
    /// Components of every embedding.
    pub dim: usize,
    /// How rows are stored.
    pub rows: RowType,
    /// What makes the embeddings.
    pub origin: Origin,
    /// How to load it again, when it is known.
    pub model: Option<ModelSource>,
}

impl NewCache {
    /// The record of a cache that is made so, and not by itself.
    fn record(&self, name: &CacheName) -> CacheRecord {
        CacheRecord {
            id: CacheId(0),
            name: name.clone(),
            dim: self.dim,
            rows: self.rows,
            origin: self.origin.clone(),
            model: self.model.clone(),
            current: None,
            items: 0,
            next_item: ItemId(0),
            sequence: 0,
            replaced: 0,
            put: 0,
            made: false,
            uris: true,
            requests: 0,
            created_ms: now_ms(),
        }
    }

    /// Makes an empty cache, which is what it is from now on: a build of other embeddings into it is refused.
    ///
    /// # Errors
    /// As [`Store::create_cache`].
    pub fn make(&self, store: &Store, name: &CacheName) -> Result<CacheRecord, Error> {
        Ok(store.create_cache(CacheRecord { made: true, ..self.record(name) })?)
    }
}

/// One item to put.
#[derive(Debug, Clone)]
pub struct NewItem {
    /// A stable id, or `None` for the next free one. An id that exists is replaced.
    pub id: Option<ItemId>,
    /// The embedding; stored with unit norm.
    pub embedding: Embedding,
    /// What is known of it.
    pub record: ItemRecord,
}

/// What indexing did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct IndexReport {
    /// The new generation.
    pub generation: Generation,
    /// Items in it.
    pub items: u64,
    /// Length of the index.
    pub index_bytes: u64,
    /// Which codes were chosen, if it was to choose.
    pub choice: Option<Choice>,
    /// What freezing mended.
    pub reach: Reach,
    /// Recall@10 against exact, by `ef_search`, for queries like the stored rows.
    pub recall: RecallCurve,
    /// The same for the given queries of other kinds, those held out from the repair, by the kind's name.
    pub recall_by: BTreeMap<String, RecallCurve>,
    /// Kinds of queries of which a wider beam finds no more, with the recall that they end at.
    pub flat: Vec<(String, f64)>,
    /// Seconds of reading rows, building, measuring recall, and writing.
    pub seconds: [f64; 4],
}

impl<'a> Writer<'a> {
    /// Opens a cache for writing, or makes it.
    ///
    /// # Errors
    /// [`Error::Dimension`] and [`Error::Origin`] when the cache exists and was made otherwise. Here, unlike for queries,
    /// the numbers of the encoder count: what a cache says of itself is to hold for all of its rows.
    pub fn open(store: &'a Store, name: &CacheName, new: &NewCache) -> Result<Self, Error> {
        let existing = match store.cache(name) {
            Ok(record) => Some(record),
            Err(crate::store::Error::NoCache { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let record = match existing {
            // A run that stored nothing has decided nothing: what it took for the dimension or the model may have been wrong.
            Some(record)
                if !record.made && record.items == 0 && record.current.is_none() && record.sequence == 0 =>
            {
                let (origin, model) = (new.origin.clone(), new.model.clone());
                CacheRecord { dim: new.dim, rows: new.rows, origin, model, ..record }
            }
            Some(record) => {
                if record.dim != new.dim {
                    let (expected, received) = (record.dim, new.dim);
                    return Err(Error::Dimension { cache: name.clone(), expected, received });
                }
                let (ours, theirs) = (record.origin.encoder_dtype, new.origin.encoder_dtype);
                let numbers =
                    ours.zip(theirs).filter(|(ours, theirs)| ours != theirs).map(|(ours, theirs)| {
                        format!(
                            "its rows were embedded with {ours} weights, and these would be with {theirs}"
                        )
                    });
                if let Some(difference) = record.origin.difference(&new.origin).or(numbers) {
                    return Err(Error::Origin { cache: name.clone(), difference });
                }
                record
            }
            None => store.create_cache(new.record(name))?,
        };
        Ok(Writer { store, record })
    }

    /// Opens a cache that exists.
    ///
    /// # Errors
    /// [`crate::store::Error::NoCache`].
    pub fn existing(store: &'a Store, name: &CacheName) -> Result<Self, Error> {
        Ok(Writer { store, record: store.cache(name)? })
    }

    /// The cache's record as of the last commit.
    pub fn record(&self) -> &CacheRecord {
        &self.record
    }

    /// Keeps ids below this one for items that name theirs: others are given later ones from now on.
    pub fn reserve_ids(&mut self, below: ItemId) {
        self.record.next_item = self.record.next_item.max(below);
    }

    /// Puts items and ledger entries in one synced batch: all of it is there afterwards, or nothing.
    ///
    /// `ledger` is called with each item's final id, so that an entry can name it.
    ///
    /// # Errors
    /// [`Error::Dimension`], [`crate::types::Error::ZeroVector`] as [`Error::Row`], [`Error::NoFreeId`],
    /// [`Error::NotAnId`].
    pub fn put(
        &mut self,
        items: Vec<NewItem>,
        ledger: impl FnOnce(&[ItemId], &mut Batch<'_>, &CacheRecord),
    ) -> Result<Vec<ItemId>, Error> {
        let mut record = self.record.clone();
        let mut batch = self.store.batch();
        let mut ids = Vec::with_capacity(items.len());
        let mut fresh = std::collections::HashSet::new();
        // Ids that are named in the batch are not given away in it.
        let after = |id: ItemId| ItemId(id.0.saturating_add(1));
        let named = items.iter().filter_map(|item| item.id).map(after).max();
        let mut next = named.map_or(record.next_item, |named| named.max(record.next_item));
        for item in items {
            if item.embedding.dim() != record.dim {
                let (expected, received) = (record.dim, item.embedding.dim());
                return Err(Error::Dimension { cache: record.name.clone(), expected, received });
            }
            let id = match item.id {
                // After it there would be none for an item that names none.
                Some(id) if id.0 == u64::MAX => return Err(Error::NotAnId(record.name.clone(), id)),
                Some(id) => id,
                None if next.0 == u64::MAX => return Err(Error::NoFreeId(record.name.clone())),
                None => {
                    let id = next;
                    next = after(id);
                    id
                }
            };
            let row = unit_row(item.embedding, &record, id)?;
            let stored = if id < record.next_item { self.store.item(record.id, id)? } else { None };
            if fresh.insert(id) && stored.is_none() {
                record.items += 1;
            } else {
                record.replaced += 1;
            }
            if let Some(old) = stored.filter(|old| old.uri != item.record.uri) {
                batch.delete_uri(record.id, &old.uri, id);
            }
            batch.put_item(record.id, id, &item.record, &row, record.sequence);
            ids.push(id);
        }
        record.next_item = next;
        record.put += ids.len() as u64;
        ledger(&ids, &mut batch, &record);
        batch.put_cache(&record);
        fail::fail_point!("put::before_commit", |_| std::process::abort());
        self.store.commit(batch)?;
        fail::fail_point!("put::after_commit", |_| std::process::abort());
        self.record = record;
        Ok(ids)
    }

    /// Builds a graph over everything stored and publishes it as the next generation.
    ///
    /// * `queries`: of other kinds than the rows, that the graph is repaired by; kept with the generation. May be empty.
    /// * `measure`: recall@10 of the finished index against exact, by `ef_search`: for queries like the rows, and for those of
    ///   other kinds that it is handed: the held-out ones, or what stands in for them. Called before publishing, and a failure
    ///   there leaves the current generation in place.
    ///
    /// # Errors
    /// [`index::Error::Empty`] for a cache without items; otherwise as the parts fail.
    pub fn index(
        &mut self,
        params: &BuildParams,
        queries: &QuerySample,
        progress: impl Fn(IndexStep) + Sync,
        measure: impl FnOnce(&index::Index, &StoredRows<'_>, &Queries) -> Result<Recalls, Error>,
    ) -> Result<IndexReport, Error> {
        let built = build(self.store, &self.record, params, queries, progress, Some(measure))?;
        let clock = Instant::now();
        let generation = write_generation(self.store, self.record.id, &built)?;
        let (number, index_bytes) = (generation.generation, generation.index_bytes);
        self.record = flip(self.store, &self.record, generation)?;
        let Built { items, choice, reach, recall: recalls, seconds: [read, build, measured], .. } = built;
        let seconds = [read, build, measured, clock.elapsed().as_secs_f64()];
        let flat = calibrate::flat(&recalls.measured);
        let Recalls { rows: recall, by_kind: recall_by, .. } = recalls;
        Ok(IndexReport {
            generation: number,
            items,
            index_bytes,
            choice,
            reach,
            recall,
            recall_by,
            flat,
            seconds,
        })
    }
}

/// The stored form of an embedding, made unit.
///
/// # Errors
/// [`Error::Row`] for one without direction.
pub(super) fn unit_row(embedding: Embedding, record: &CacheRecord, id: ItemId) -> Result<Vec<u8>, Error> {
    // What is unit already stays bit for bit: dividing once more would only move the last digit.
    let unit = match (embedding.norm() - 1.0).abs() < UNIT_TOLERANCE {
        true => Ok(embedding),
        false => embedding.unit(),
    };
    let unit = unit.map_err(|e| Error::Row { cache: record.name.clone(), id, why: e.to_string() })?;
    Ok(encode_row(unit.as_slice(), record.rows))
}
