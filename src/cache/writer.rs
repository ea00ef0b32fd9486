//! The single writer: put items, index them, publish.
//!
//! ```text
//! put(items + ledger) ─── one synced batch each ───► items, vectors, ledger, cache record
//! index():
//!   read rows ─► train ─► encode ─► build ─► freeze        memory only, rows in passes
//!   drop orphan blobs of generations after the newest       ①
//!   write the blobs of g+1: index, tags, queries            ②   a crash up to here: g is current, orphans stay
//!   one batch: record of g+1, current = g+1, drop g−1,      ③   the flip
//!              drop the changes that g and g+1 contain
//! ```
//!
//! The generation before the current one is kept, so that a publish can be taken back ([`publish_existing`]), and with it
//! the changes made since. [`Writer::put`] is for bulk: it writes no log, so what it puts is found from the next
//! generation on, and what it replaces is found as it was until then, where rows are in memory. A server that is open
//! for writing changes items through [`super::Cache::upsert`] instead, and builds generations with the same functions.
//! Fail points stand at every arrow; `index-builder/tests/crash.rs` aborts at each and reopens.

use std::collections::BTreeMap;
use std::time::Instant;

use super::Error;
use super::generation::find_generation;
use super::queries::QuerySample;
use super::rows::{check_row, encode_row};
use super::scan::RowAccess;
use super::tags;
use crate::index::{self, AlignedBytes, BuildParams, CodeKind, Codec, Coded, Parts, Reach, Rows as _};
use crate::store::{
    Access, Batch, BlobKind, CacheId, CacheRecord, GenerationRecord, ItemRecord, ModelSource, Moment,
    RecallCurve, Recalls, RowType, Store,
};
use crate::types::{CacheName, Embedding, Generation, ItemId, Origin, Slot};

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

/// A moment of [`Writer::index`], for progress display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexStep {
    /// Ids and a sample of rows are being read.
    Read,
    /// So many more rows have been coded.
    Coded(usize),
    /// A stage of the graph is done with so many more rows or queries.
    Built(index::Stage, usize),
    /// The index is being written down, measured and published.
    Publish,
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
    /// What freezing mended.
    pub reach: Reach,
    /// Recall@10 against exact, by `ef_search`, for queries like the stored rows.
    pub recall: RecallCurve,
    /// The same for the given queries of other kinds, those held out from the repair, by the kind's name.
    pub recall_by: BTreeMap<String, RecallCurve>,
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
        let existing = store.caches()?.into_iter().find(|record| &record.name == name);
        let record = match existing {
            // A run that stored nothing has decided nothing: what it took for the dimension or the model may have been wrong.
            Some(record) if record.items == 0 && record.current.is_none() && record.sequence == 0 => {
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
            None => store.create_cache(CacheRecord {
                id: CacheId(0),
                name: name.clone(),
                dim: new.dim,
                rows: new.rows,
                origin: new.origin.clone(),
                model: new.model.clone(),
                current: None,
                items: 0,
                next_item: ItemId(0),
                sequence: 0,
                replaced: 0,
                created_ms: now_ms(),
            })?,
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
    /// [`Error::Dimension`], [`crate::types::Error::ZeroVector`] as [`Error::Row`], [`Error::NoFreeId`].
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
                Some(id) => id,
                None if next.0 == u64::MAX => return Err(Error::NoFreeId(record.name.clone())),
                None => {
                    let id = next;
                    next = after(id);
                    id
                }
            };
            let row = unit_row(item.embedding, &record, id)?;
            if fresh.insert(id) && (id >= record.next_item || self.store.row(record.id, id)?.is_none()) {
                record.items += 1;
            } else {
                record.replaced += 1;
            }
            batch.put_item(record.id, id, &item.record, &row);
            ids.push(id);
        }
        record.next_item = next;
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
    /// * `measure`: recall@10 of the finished index against exact, by `ef_search`: for queries like the rows, and for
    ///   queries of another modality, if there are any. Called before publishing, and a failure there leaves the current
    ///   generation in place.
    ///
    /// # Errors
    /// [`index::Error::Empty`] for a cache without items; otherwise as the parts fail.
    pub fn index(
        &mut self,
        params: &BuildParams,
        queries: &QuerySample,
        progress: impl Fn(IndexStep) + Sync,
        measure: impl FnOnce(&index::Index, &StoredRows<'_>) -> Result<Recalls, Error>,
    ) -> Result<IndexReport, Error> {
        let built = build(self.store, &self.record, params, queries, progress, Some(measure))?;
        let clock = Instant::now();
        let generation = write_generation(self.store, self.record.id, &built)?;
        let (number, index_bytes) = (generation.generation, generation.index_bytes);
        self.record = flip(self.store, &self.record, generation)?;
        let Built { items, reach, recall: recalls, seconds: [read, build, measured], .. } = built;
        let seconds = [read, build, measured, clock.elapsed().as_secs_f64()];
        let Recalls { rows: recall, by_kind: recall_by, .. } = recalls;
        Ok(IndexReport { generation: number, items, index_bytes, reach, recall, recall_by, seconds })
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

/// An index that is not stored yet.
pub(super) struct Built {
    index: index::Index,
    tags: Vec<u8>,
    queries: Vec<u8>,
    items: u64,
    /// Every change up to this one is in it.
    sequence: u64,
    build: serde_json::Value,
    reach: Reach,
    recall: Recalls,
    /// Of reading rows, building, and measuring recall.
    seconds: [f64; 3],
}

/// What recall is measured with: the index and its rows.
pub(super) type Measure = fn(&index::Index, &StoredRows<'_>) -> Result<Recalls, Error>;

/// Builds an index over everything stored.
///
/// Rows are read three times and never all in memory: ids and a sample to train codecs, codes to build on, codes to search.
///
/// * `record`: the cache's, committed before the call: what was changed since may be in the index or not.
/// * `queries`, `measure`: as [`Writer::index`] has them.
///
/// # Errors
/// As [`Writer::index`].
pub(super) fn build<M>(
    store: &Store,
    record: &CacheRecord,
    params: &BuildParams,
    queries: &QuerySample,
    progress: impl Fn(IndexStep) + Sync,
    measure: Option<M>,
) -> Result<Built, Error>
where
    M: FnOnce(&index::Index, &StoredRows<'_>) -> Result<Recalls, Error>,
{
    let mut clock = Instant::now();
    let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed().as_secs_f64();
    progress(IndexStep::Read);
    let rows = StoredRows::now(store, record)?;
    if rows.is_empty() {
        return Err(index::Error::Empty.into());
    }
    let tags = tags::of_items(store, record, rows.ids.iter().copied())?;
    let sample = index::rows::sample(&rows)?;
    let codec = Codec::train(params.codes, &sample, record.dim);
    let (wide, narrow) = (codec.as_u8(&sample), codec.as_u4(&sample));
    drop(sample);
    let [wide_codes, narrow_codes] =
        index::rows::encode(&rows, [&wide, &narrow], &|n| progress(IndexStep::Coded(n)))?;
    let read = lap();
    let graph = index::build_coded(
        params,
        Coded { codec: &wide, codes: &wide_codes },
        Coded { codec: &narrow, codes: &narrow_codes },
        &queries.repair,
        |stage, n| progress(IndexStep::Built(stage, n)),
    )?;
    progress(IndexStep::Publish);
    let codes = match params.codes {
        CodeKind::U8 => wide_codes,
        CodeKind::U4 => narrow_codes,
        CodeKind::F16 | CodeKind::F32 => {
            drop((wide_codes, narrow_codes));
            let [codes] = index::rows::encode(&rows, [&codec], &|_| ())?;
            codes
        }
    };
    let reach = graph.reach();
    let parts = Parts { graph: &graph, codec: &codec, ids: &rows.ids, codes: &codes };
    let mut bytes = AlignedBytes::zeroed(parts.len() as usize)?;
    parts.write(&mut bytes.as_mut_slice())?;
    drop((graph, codes));
    // Checked and measured on the very bytes that will be published, as a server reads them.
    let index = index::Index::open(bytes)?;
    let built = lap();

    let recall = match measure {
        Some(measure) => measure(&index, &rows)?,
        None => Default::default(),
    };
    let seconds = [read, built, lap()];
    let (items, sequence) = (rows.ids.len() as u64, record.sequence);
    let build = serde_json::to_value(params).unwrap_or_default();
    let queries = if queries.is_empty() { Vec::new() } else { queries.encode(record.dim, rows.ids.len()) };
    Ok(Built { index, tags, queries, items, sequence, build, reach, recall, seconds })
}

/// The rows of a cache in the order of their ids, as of one moment, read as often as a build needs.
pub struct StoredRows<'a> {
    moment: Moment<'a>,
    record: &'a CacheRecord,
    ids: Vec<ItemId>,
}

impl<'a> StoredRows<'a> {
    /// As they are now.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn now(store: &'a Store, record: &'a CacheRecord) -> Result<Self, Error> {
        let moment = store.moment();
        let mut ids = Vec::with_capacity(record.items as usize);
        moment.scan_rows(record.id, |id, _| {
            ids.push(id);
            Ok::<bool, Error>(true)
        })?;
        Ok(StoredRows { moment, record, ids })
    }
}

impl RowAccess for StoredRows<'_> {
    fn row(&self, slot: Slot) -> Result<Option<Vec<f32>>, Error> {
        let (record, id) = (self.record, self.ids[slot.index()]);
        let found = self.moment.rows(record.id, &[id])?.pop().flatten();
        check_row(&record.name, id, found.as_deref(), record.rows, record.dim).map(Some)
    }

    fn scan(&self, visit: &mut dyn FnMut(Slot, &[f32]) -> bool) -> Result<(), Error> {
        let mut go_on = true;
        index::Rows::each(self, &mut |first, rows| {
            go_on = go_on && visit(Slot(first as u32), rows);
        })
    }
}

impl index::Rows for StoredRows<'_> {
    type Error = Error;

    fn dim(&self) -> usize {
        self.record.dim
    }

    fn len(&self) -> usize {
        self.ids.len()
    }

    fn each(&self, visit: &mut dyn FnMut(usize, &[f32])) -> Result<(), Error> {
        let CacheRecord { name, rows, dim, .. } = self.record;
        let mut chunks = index::rows::Chunks::new(*dim, visit);
        self.moment.scan_rows(self.record.id, |id, bytes| {
            chunks.push(check_row(name, id, Some(bytes), *rows, *dim)?);
            Ok::<bool, Error>(true)
        })?;
        chunks.finish();
        Ok(())
    }
}

/// Writes an index and its tags as the blobs of the next generation. They count once [`flip`] says so.
///
/// # Errors
/// [`Error::Store`].
pub(super) fn write_generation(
    store: &Store,
    cache: CacheId,
    built: &Built,
) -> Result<GenerationRecord, Error> {
    let newest = store.generations(cache)?.iter().map(|g| g.generation.0).max().unwrap_or(0);
    let generation = Generation(newest + 1);

    let mut orphans = store.batch();
    orphans.delete_blobs_from(cache, generation);
    store.commit(orphans)?;
    fail::fail_point!("publish::before_blob", |_| std::process::abort());

    let mut blob = store.write_blob(cache, generation, BlobKind::Index);
    std::io::Write::write_all(&mut blob, built.index.bytes()).map_err(index::Error::Write)?;
    let index_bytes = blob.finish()?;
    let mut blob = store.write_blob(cache, generation, BlobKind::Tags);
    std::io::Write::write_all(&mut blob, &built.tags).map_err(index::Error::Write)?;
    let tags_bytes = Some(blob.finish()?);
    let mut blob = store.write_blob(cache, generation, BlobKind::Queries);
    std::io::Write::write_all(&mut blob, &built.queries).map_err(index::Error::Write)?;
    let queries_bytes = Some(blob.finish()?).filter(|&len| len > 0);
    store.flush_blobs()?;
    let Recalls { rows: recall, by_kind: recall_by, margins, nearest } = built.recall.clone();
    Ok(GenerationRecord {
        generation,
        items: built.items,
        index_bytes,
        tags_bytes,
        queries_bytes,
        build: built.build.clone(),
        recall,
        recall_by,
        margins,
        nearest,
        sequence: built.sequence,
        created_ms: now_ms(),
    })
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

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}
