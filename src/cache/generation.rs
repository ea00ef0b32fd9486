//! One generation in memory: loaded and verified. It never changes; what has changed since is the delta's.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::Error;
use super::rows::{Rows, RowsMode};
use super::tags::{self, TagTable};
use super::warming::Warming;
use crate::index::{self, AlignedBytes, BuildParams, Index};
use crate::store::{BlobKind, CacheRecord, GenerationRecord, Store};
use crate::types::{Generation, ItemId};

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
    /// Memory taken, once the rows are there.
    pub plan: MemoryPlan,
    /// Time it took, without the rows.
    pub took: Duration,
}

/// A generation as it was made.
pub(super) struct Frozen {
    pub(super) store: Arc<Store>,
    /// The cache's record as of loading.
    pub(super) record: CacheRecord,
    pub(super) generation: GenerationRecord,
    pub(super) index: Arc<Index>,
    pub(super) rows: Rows,
    pub(super) loaded: Loaded,
    memory_budget: u64,
    tags: OnceLock<TagTable>,
    /// Held while the table of a generation that was stored without one is made.
    making: Mutex<()>,
}

impl Frozen {
    /// Loads a generation; rows that belong in memory are on their way there, and wait to hear what the log says.
    ///
    /// # Errors
    /// As [`super::Cache::open`].
    pub(super) fn load(
        store: &Arc<Store>,
        record: CacheRecord,
        generation: GenerationRecord,
        options: LoadOptions,
    ) -> Result<Self, Error> {
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

        let index = Arc::new(load_index(store, &record, &generation)?);
        let tags = OnceLock::new();
        if let Some(table) = load_tags(store, &record, &generation, index.len())? {
            tags.get_or_init(|| table);
        }
        let warming = keep_rows.then(|| Warming::begin(store, &record, &index)).transpose()?;
        let rows = Rows::new(record.rows, warming);
        let loaded = Loaded { plan, took: start.elapsed() };
        let (store, memory_budget, making) = (store.clone(), options.memory_budget, Mutex::new(()));
        Ok(Frozen { store, record, generation, index, rows, loaded, memory_budget, tags, making })
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
    // Every part of the blob has been held against its checksum.
    let index = Index::open_unchanged(bytes)?;
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
