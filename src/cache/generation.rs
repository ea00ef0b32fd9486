//! One version of a generation in memory: loaded and verified, or made of the one before by what has come since. It never changes;
//! what is newer still is the delta's.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use roaring::RoaringBitmap;

use super::Error;
use super::delta::Tags;
use super::overlay::Waiting;
use super::rows::{Rows, RowsMode};
use super::tags::TagTable;
use super::warming::Warming;
use crate::index::{self, AlignedBytes, BuildParams, Index, Loading};
use crate::store::{BlobKind, CacheRecord, GenerationRecord, Store};
use crate::types::{Filter, Generation, Slot};

/// How a generation is brought into memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadOptions {
    /// Where rows are kept.
    pub rows: RowsMode,
    /// Most bytes this cache may take.
    pub memory_budget: u64,
}

/// Of what a generation takes, the share that is left free for changes where it is to be decided whether rows are kept in memory.
const DELTA_ROOM: u64 = 8;
/// Bytes that the tags of an item which came into a slot take beside their texts.
const CAME_BYTES: u64 = 48;

impl LoadOptions {
    /// Default of [`LoadOptions::memory_budget`]: 8 GiB.
    pub const DEFAULT_MEMORY_BUDGET: u64 = 8 << 30;
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { rows: RowsMode::Auto, memory_budget: Self::DEFAULT_MEMORY_BUDGET }
    }
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

/// A generation as it was made, or as it has become since ([`super::upkeep`]).
pub(super) struct Frozen {
    pub(super) store: Arc<Store>,
    /// The cache's record as of loading.
    pub(super) record: CacheRecord,
    pub(super) generation: Arc<GenerationRecord>,
    pub(super) index: Arc<Index>,
    pub(super) rows: Rows,
    pub(super) loaded: Loaded,
    memory_budget: u64,
    tags: Arc<Table>,
    /// Tags of the slots whose items came after the table was made.
    came: Arc<HashMap<u32, Came>>,
}

/// Which slots have which tag, as of some moment.
#[derive(Default)]
struct Table {
    table: OnceLock<TagTable>,
    /// Held while that of a generation that was stored without one is made.
    making: Mutex<()>,
}

/// The tags of an item that came into a slot.
#[derive(Clone)]
struct Came {
    tags: Tags,
    /// The round that it came in.
    round: u64,
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
        // Whatever cannot be read of how it was built counts as what takes most.
        let beside = build_params(&record, &generation).map_or_else(
            |_| BuildParams::default().beside_bytes(record.dim),
            |build| build.beside_bytes(record.dim),
        );
        let index_bytes = generation.index_bytes + generation.items * beside;
        let keep_rows = match options.rows {
            RowsMode::Ram => true,
            RowsMode::Disk => false,
            RowsMode::Auto => {
                let beside = index_bytes + generation.tags_bytes.unwrap_or(0);
                let all = beside + rows_bytes;
                all + all / DELTA_ROOM <= options.memory_budget
            }
        };
        let plan = MemoryPlan {
            index: index_bytes,
            tags: generation.tags_bytes.unwrap_or(0),
            rows: if keep_rows { rows_bytes } else { 0 },
        };
        check_plan(&record, plan, options.memory_budget)?;

        let index = Arc::new(load_index(store, &record, &generation)?);
        let tags = Table::default();
        if let Some(table) = load_tags(store, &record, &generation, index.len())? {
            tags.table.get_or_init(|| table);
        }
        let warming =
            (keep_rows && !index.is_empty()).then(|| Warming::begin(store, &record, &index)).transpose()?;
        let rows = Rows::new(record.rows, warming);
        let loaded = Loaded { plan, took: start.elapsed() };
        let (store, memory_budget, generation) = (store.clone(), options.memory_budget, Arc::new(generation));
        let (tags, came) = (tags.into(), Arc::default());
        Ok(Frozen { store, record, generation, index, rows, loaded, memory_budget, tags, came })
    }

    /// The next version: items have come into some slots.
    ///
    /// * `index`: with them. `round`: a number that never becomes less.
    ///
    /// # Errors
    /// [`Error::Index`] when there is no memory.
    pub(super) fn with(&self, index: Index, came: &[(Waiting, Slot)], round: u64) -> Result<Self, Error> {
        let rows =
            self.rows.with(came.iter().map(|(item, slot)| (*slot, item.row.as_slice())), index.len())?;
        let mut tags = self.came.clone();
        let into = Arc::make_mut(&mut tags);
        for (Waiting { tags, .. }, slot) in came {
            into.insert(slot.0, Came { tags: tags.clone(), round });
        }
        let next = Frozen { index: Arc::new(index), rows, came: tags, ..self.shared() };
        Ok(next.weighed())
    }

    /// This very version as that of another generation, which was made of it.
    ///
    /// * `tags`: the table of its slots, as of the end of `round`.
    pub(super) fn written(&self, generation: GenerationRecord, tags: TagTable, round: u64) -> Self {
        let table = Table::default();
        table.table.get_or_init(|| tags);
        let later = self.came.iter().filter(|(_, came)| came.round > round);
        let came = later.map(|(&slot, came)| (slot, came.clone())).collect::<HashMap<_, _>>();
        let (generation, tags, came) = (generation.into(), table.into(), came.into());
        Frozen { generation, tags, came, ..self.shared() }.weighed()
    }

    fn shared(&self) -> Self {
        Frozen {
            store: self.store.clone(),
            record: self.record.clone(),
            generation: self.generation.clone(),
            index: self.index.clone(),
            rows: self.rows.clone(),
            loaded: self.loaded,
            memory_budget: self.memory_budget,
            tags: self.tags.clone(),
            came: self.came.clone(),
        }
    }

    /// With what it takes in memory now.
    fn weighed(mut self) -> Self {
        let beside = self.came.values().map(|came| came.tags.bytes() + CAME_BYTES).sum::<u64>();
        let table = self.tags.table.get().map_or(0, TagTable::bytes);
        self.loaded.plan = MemoryPlan {
            index: self.index.bytes(),
            tags: table + beside,
            rows: self.rows.bytes(self.loaded.plan.rows),
        };
        self
    }

    /// The slots whose items match a filter, those of items that have gone perhaps among them.
    ///
    /// # Errors
    /// As [`Frozen::tags`]; [`crate::store::Error::Damaged`] for a table that cannot be read.
    pub(super) fn matching(&self, filter: &Filter) -> Result<RoaringBitmap, Error> {
        let mut slots = self.tags()?.matching(filter, &self.index)?;
        for (&slot, came) in self.came.iter() {
            match filter.matches(self.index.id(Slot(slot)), came.tags.get()) {
                true => slots.insert(slot),
                false => slots.remove(slot),
            };
        }
        Ok(slots)
    }

    /// Which slots have which tag. A generation that was stored without the table gets it from the items' records, once.
    ///
    /// # Errors
    /// [`Error::Memory`] for a table that was not planned for and does not fit, [`Error::Store`].
    pub(super) fn tags(&self) -> Result<&TagTable, Error> {
        let Table { table, making } = &*self.tags;
        if let Some(table) = table.get() {
            return Ok(table);
        }
        let _one = making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = table.get() {
            return Ok(table);
        }
        let made = TagTable::of_items(&self.store, &self.record, &self.index)?;
        check_plan(&self.record, MemoryPlan { tags: made.bytes(), ..self.loaded.plan }, self.memory_budget)?;
        Ok(table.get_or_init(|| made))
    }
}

/// How a generation was built.
///
/// # Errors
/// [`crate::store::Error::Damaged`] where its record does not say so: it is not to be guessed.
pub(super) fn build_params(
    record: &CacheRecord,
    generation: &GenerationRecord,
) -> Result<BuildParams, Error> {
    // The first of a cache that was made empty: nobody has said anything yet.
    if generation.is_empty() && generation.build.is_null() {
        return Ok(BuildParams::choosing());
    }
    serde_json::from_value(generation.build.clone()).map_err(|e| {
        let what = format!("record of generation {} of cache `{}`", generation.generation, record.name);
        let why = format!("how it was built cannot be read ({e}); build it anew by `index-builder index`");
        crate::store::Error::Damaged { what, why }.into()
    })
}

fn check_plan(record: &CacheRecord, plan: MemoryPlan, budget: u64) -> Result<(), Error> {
    if plan.total() <= budget {
        return Ok(());
    }
    let (needed, budget) = (plan.total().div_ceil(1 << 20), budget >> 20);
    Err(Error::Memory { cache: record.name.clone(), needed, budget, plan })
}

/// The record of a cache's current generation; of a cache that has none yet, one without items.
///
/// # Errors
/// As [`find_generation`].
pub(super) fn current_generation(store: &Store, record: &CacheRecord) -> Result<GenerationRecord, Error> {
    match record.current {
        Some(current) => find_generation(store, record, current),
        None => Ok(GenerationRecord::none()),
    }
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
    if generation.is_empty() {
        return Ok(Index::empty(record.dim)?);
    }
    let len = usize::try_from(generation.index_bytes).unwrap_or(usize::MAX);
    let loading = Mutex::new(None);
    // Every part of the blob is held against its checksum before it is taken.
    store.read_blob_by_parts(record.id, generation.generation, BlobKind::Index, len, |at, part| {
        let mut loading = loading.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *loading, at) {
            (Some(Ok(index)), _) => {
                if let Err(problem) = Loading::put(index, at, part) {
                    *loading = Some(Err(problem));
                }
            }
            (Some(Err(_)), _) => {}
            // The first part comes before all others.
            (None, _) => {
                let begun = Loading::begin(part, len);
                *loading = Some(begun.and_then(|mut index| index.put(at, part).map(|()| index)));
            }
        }
    })?;
    let loading = loading.into_inner().unwrap_or_else(PoisonError::into_inner);
    let cut = || index::Error::Format("it is empty".into());
    let index = loading.ok_or_else(cut)??.finish()?;
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
