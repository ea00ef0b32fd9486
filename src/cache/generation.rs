//! One generation in memory: loaded and verified. It never changes; what has changed since is the delta's.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::Error;
use super::rows::{Rows, RowsMode};
use super::tags::{self, TagTable};
use crate::index::{self, AlignedBytes, BuildParams, Index};
use crate::store::{BlobKind, CacheRecord, GenerationRecord, RowType, Store};
use crate::types::{Generation, ItemId, Slot};

/// How a generation is brought into memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadOptions {
    /// Where rows are kept.
    pub rows: RowsMode,
    /// Most bytes this cache may take.
    pub memory_budget: u64,
}

/// What a generation takes in memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct MemoryPlan {
    /// Graph, codes, their signs, and ids.
    pub index: u64,
    /// The table of tags.
    pub tags: u64,
    /// Stored rows, if they are kept in memory.
    pub rows: u64,
}

impl MemoryPlan {
    /// All together.
    pub fn total(&self) -> u64 {
        self.index + self.tags + self.rows
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [index, tags, rows] = [self.index, self.tags, self.rows].map(|bytes| bytes >> 20);
        write!(f, "graph and codes {index} MiB, tags {tags} MiB, rows {rows} MiB")
    }
}

/// What loading did.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Loaded {
    /// Memory taken.
    pub plan: MemoryPlan,
    /// Whether rows are in memory.
    pub rows_in_memory: bool,
    /// Time it took.
    pub took: Duration,
}

/// A generation as it was made.
pub(super) struct Frozen {
    pub(super) store: Arc<Store>,
    /// The cache's record as of loading.
    pub(super) record: CacheRecord,
    pub(super) generation: GenerationRecord,
    pub(super) index: Index,
    pub(super) rows: Rows,
    pub(super) loaded: Loaded,
    memory_budget: u64,
    tags: OnceLock<TagTable>,
    /// Held while the table of a generation that was stored without one is made.
    making: Mutex<()>,
}

impl Frozen {
    /// Loads a generation. With it come the slots whose rows are gone from the store: the log must know why.
    ///
    /// # Errors
    /// As [`super::Cache::open`].
    pub(super) fn load(
        store: &Arc<Store>,
        record: CacheRecord,
        generation: GenerationRecord,
        options: LoadOptions,
    ) -> Result<(Self, Vec<Slot>), Error> {
        let start = Instant::now();
        let rows_bytes = generation.items * (record.dim * record.rows.bytes()) as u64;
        let build = serde_json::from_value::<BuildParams>(generation.build.clone()).unwrap_or_default();
        let index_bytes = generation.index_bytes + generation.items * build.beside_bytes(record.dim);
        let keep_rows = match options.rows {
            RowsMode::Ram => true,
            RowsMode::Disk => false,
            RowsMode::Auto => {
                let beside = index_bytes + generation.tags_bytes.unwrap_or(0);
                beside + rows_bytes <= options.memory_budget
            }
        };
        let plan = MemoryPlan {
            index: index_bytes,
            tags: generation.tags_bytes.unwrap_or(0),
            rows: if keep_rows { rows_bytes } else { 0 },
        };
        check_plan(&record, plan, options.memory_budget)?;

        let index = load_index(store, &record, &generation)?;
        let tags = OnceLock::new();
        if let Some(table) = load_tags(store, &record, &generation, index.len())? {
            tags.get_or_init(|| table);
        }
        let (rows, gone) = match keep_rows {
            true => {
                let (bytes, gone) = load_rows(store, &record, index.ids())?;
                (Rows::Ram { kind: record.rows, bytes }, gone)
            }
            false => (Rows::Disk { kind: record.rows }, Vec::new()),
        };
        let loaded = Loaded { plan, rows_in_memory: keep_rows, took: start.elapsed() };
        let (store, memory_budget, making) = (store.clone(), options.memory_budget, Mutex::new(()));
        Ok((Frozen { store, record, generation, index, rows, loaded, memory_budget, tags, making }, gone))
    }

    /// Which slots have which tag. A generation that was stored without the table gets it from the items' records, once.
    ///
    /// # Errors
    /// [`Error::Memory`] for a table that was not planned for and does not fit, [`Error::Store`].
    pub(super) fn tags(&self) -> Result<&TagTable, Error> {
        if let Some(table) = self.tags.get() {
            return Ok(table);
        }
        let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = self.tags.get() {
            return Ok(table);
        }
        let ids = self.index.ids().iter().map(|&id| ItemId(id));
        let bytes = AlignedBytes::copy_of(&tags::of_items(&self.store, &self.record, ids)?)?;
        let table = TagTable::open(bytes, self.index.len())?;
        check_plan(&self.record, MemoryPlan { tags: table.bytes(), ..self.loaded.plan }, self.memory_budget)?;
        Ok(self.tags.get_or_init(|| table))
    }
}

fn check_plan(record: &CacheRecord, plan: MemoryPlan, budget: u64) -> Result<(), Error> {
    if plan.total() <= budget {
        return Ok(());
    }
    let (needed, budget) = (plan.total().div_ceil(1 << 20), budget >> 20);
    Err(Error::Memory { cache: record.name.clone(), needed, budget, plan })
}

/// The record of a generation that should be stored.
///
/// # Errors
/// [`Error::NoGeneration`] naming those there are.
pub(super) fn find_generation(
    store: &Store,
    record: &CacheRecord,
    generation: Generation,
) -> Result<GenerationRecord, Error> {
    let stored = store.generations(record.id)?;
    stored.iter().find(|g| g.generation == generation).cloned().ok_or_else(|| {
        let known = known_generations(&stored);
        Error::NoGeneration { cache: record.name.clone(), generation, known }
    })
}

fn known_generations(generations: &[GenerationRecord]) -> String {
    let numbers: Vec<String> = generations.iter().map(|g| g.generation.to_string()).collect();
    if numbers.is_empty() { "none".into() } else { numbers.join(", ") }
}

fn load_index(store: &Store, record: &CacheRecord, generation: &GenerationRecord) -> Result<Index, Error> {
    let len = usize::try_from(generation.index_bytes).unwrap_or(usize::MAX);
    let mut bytes = AlignedBytes::zeroed(len)?;
    store.read_blob(record.id, generation.generation, BlobKind::Index, bytes.as_mut_slice())?;
    let index = Index::open(bytes)?;
    if index.dim() != record.dim || index.len() as u64 != generation.items {
        let what = format!("it holds {} rows of {} components", index.len(), index.dim());
        return Err(index::Error::Format(format!(
            "{what}, its record says {} of {}",
            generation.items, record.dim
        ))
        .into());
    }
    Ok(index)
}

/// The table of tags, if the generation was stored with one.
fn load_tags(
    store: &Store,
    record: &CacheRecord,
    generation: &GenerationRecord,
    slots: usize,
) -> Result<Option<TagTable>, Error> {
    let Some(len) = generation.tags_bytes else { return Ok(None) };
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let mut bytes = AlignedBytes::zeroed(len)?;
    store.read_blob(record.id, generation.generation, BlobKind::Tags, bytes.as_mut_slice())?;
    TagTable::open(bytes, slots).map(Some)
}

/// The rows of exactly these items, in their order, read by several threads, and the slots whose row is not stored (any
/// more): zeros stand for it.
///
/// * `ids`: ascending. The cache may hold other items between them, put since the generation was made.
fn load_rows(store: &Store, record: &CacheRecord, ids: &[u64]) -> Result<(AlignedBytes, Vec<Slot>), Error> {
    let len = record.dim * record.rows.bytes();
    let share = ids.len().div_ceil(rayon::current_num_threads()).max(1);
    let mut bytes = AlignedBytes::zeroed(ids.len() * len)?;
    let gone = bytes
        .as_mut_slice()
        .par_chunks_mut(share * len)
        .zip(ids.par_chunks(share))
        .enumerate()
        .map(|(i, (into, ids))| load_share(store, record, ids, into, i * share))
        .collect::<Result<Vec<_>, Error>>()?;
    Ok((bytes, gone.concat()))
}

/// One thread's share of [`load_rows`]: a scan from its first id, in step with the ids it wants.
///
/// * `first`: slot of the first of them.
fn load_share(
    store: &Store,
    record: &CacheRecord,
    ids: &[u64],
    into: &mut [u8],
    first: usize,
) -> Result<Vec<Slot>, Error> {
    let len = record.dim * record.rows.bytes();
    let wrong = |id: ItemId, why: String| Error::Row { cache: record.name.clone(), id, why };
    let Some(&start) = ids.first() else { return Ok(Vec::new()) };
    let (mut gone, mut next) = (Vec::new(), 0);
    store.scan_rows(record.id, ItemId(start), |id, row| {
        while next < ids.len() && ids[next] < id.0 {
            gone.push(Slot((first + next) as u32));
            next += 1;
        }
        if ids.get(next) == Some(&id.0) {
            if row.len() != len {
                return Err(wrong(id, format!("{} bytes long instead of {len}", row.len())));
            }
            let place = &mut into[next * len..][..len];
            place.copy_from_slice(row);
            // A row that is not finite would poison every score; rows are finite by type when they are put.
            if !finite(place, record.rows) {
                return Err(wrong(id, "not finite".into()));
            }
            next += 1;
        }
        Ok(next < ids.len())
    })?;
    gone.extend((next..ids.len()).map(|at| Slot((first + at) as u32)));
    Ok(gone)
}

fn finite(row: &[u8], kind: RowType) -> bool {
    match kind {
        RowType::F32 => row.chunks_exact(4).all(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()),
        RowType::F16 => row.chunks_exact(2).all(|b| half::f16::from_le_bytes([b[0], b[1]]).is_finite()),
    }
}
