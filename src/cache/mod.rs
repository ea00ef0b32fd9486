//! The visual cache as a stored thing: index and store joined.
//!
//! ```text
//! life of a change         one batch: item, row, log entry, cache record ─► next snapshot ─► wait for the disk ─► answer
//! life of a generation     write blob g+1 ─► [ flip current, drop g−1 and what it alone needed of the log ] ─► swap Arc
//! a crash there leaves     orphan blob g+1    old or new, never between                                      the same
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `generation.rs` | one generation in memory: loaded, verified |
//! | `warming.rs` | rows that come into memory while they are already searched |
//! | `rows.rs` | where the stored rows are read from: memory or RocksDB |
//! | `delta.rs` | what has changed since the generation, scanned exactly |
//! | `overlay.rs` | the writer's side of a delta: changes taken in, from callers and from the log |
//! | `mask.rs` | a set of positions that is cheap to copy |
//! | `snapshot.rs` | generation and delta as of one moment, searched |
//! | `queries.rs` | the sample of queries that a graph is repaired for and measured by |
//! | `tags.rs` | which slots have which tag |
//! | `filtered.rs` | a snapshot as a filter leaves it |
//! | `scan.rs` | all rows in order, wherever they lie; the truth of one query |
//! | `calibrate.rs` | recall measured, by width of the beam and kind of query |
//! | `beam.rs` | a wished recall becomes the width of a beam |
//! | `clock.rs` | when a scan is no longer wanted |
//! | `change.rs` | upsert and delete, visible at once |
//! | `compact.rs` | the delta becomes a generation, in the background; generations are switched |
//! | `writer.rs` | the single writer: put items in bulk, index them, publish |
//!
//! A [`Cache`] is what a server holds: a snapshot behind an atomically swapped pointer. A search takes the pointer once and
//! keeps that state to its end: no write and no switch makes a reader wait, or fails a request.
//!
//! Left out: changes to a cache that has no generation yet (index it first), and a cache whose last item was deleted is
//! not compacted.

mod beam;
mod calibrate;
mod change;
mod clock;
mod compact;
mod delta;
mod filtered;
mod generation;
mod mask;
mod overlay;
mod queries;
mod rows;
mod scan;
mod snapshot;
mod tags;
mod warming;
mod writer;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;

use crate::store::{self, Access, CacheRecord, Store};
use crate::types::{CacheName, Generation, Origin};
use crate::{blend, index, metrics};

use generation::{Frozen, find_generation};
use overlay::Overlay;

pub use calibrate::{RECALL_K, RECALL_SAMPLE, calibrate};
pub use compact::{CompactOptions, Compacted};
pub use filtered::Filtered;
pub use generation::{LoadOptions, Loaded, MemoryPlan};
pub use queries::QuerySample;
pub use rows::{RowsMode, decode_row, encode_row};
pub use scan::{RowAccess, RowMatrix};
pub use snapshot::{DeltaSummary, Found, Snapshot};
pub use writer::{IndexReport, IndexStep, NewCache, NewItem, StoredRows, Writer, publish_existing};

/// Why a cache cannot be opened, searched or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] index::Error),
    /// The maths has no answer.
    #[error(transparent)]
    Blend(#[from] blend::Error),
    /// A query or item of the wrong length.
    #[error("the embedding has {received} components, cache `{cache}` has {expected}")]
    Dimension {
        /// Which cache.
        cache: CacheName,
        /// Components of the cache.
        expected: usize,
        /// Components given.
        received: usize,
    },
    /// Items that were made otherwise than the cache's.
    #[error("cache `{cache}` does not fit: {difference}")]
    Origin {
        /// Which cache.
        cache: CacheName,
        /// In words.
        difference: String,
    },
    /// Nothing has been indexed yet.
    #[error("cache `{0}` has no generation yet; run `index-builder index --cache {0}`")]
    NotIndexed(CacheName),
    /// A target recall, and nothing to tell by which beam reaches it.
    #[error(
        "the recall of cache `{0}` was not measured, so no beam is known to reach a target; run `index-builder index --cache {0}`, or give `ef_search`"
    )]
    NotCalibrated(CacheName),
    /// A generation that is not stored.
    #[error("cache `{cache}` has no generation {generation}; it has: {known}")]
    NoGeneration {
        /// Which cache.
        cache: CacheName,
        /// The one asked for.
        generation: Generation,
        /// Those there are.
        known: String,
    },
    /// More memory than allowed.
    #[error(
        "cache `{cache}` needs {needed} MiB ({plan}) and the budget is {budget} MiB; raise `memory_budget_mib`, or read rows from disk with `rows = \"disk\"`"
    )]
    Memory {
        /// Which cache.
        cache: CacheName,
        /// What it needs.
        needed: u64,
        /// What it may have.
        budget: u64,
        /// Of what that consists.
        plan: MemoryPlan,
    },
    /// An item of the index whose row is gone or misshapen.
    #[error("the row of item {id} in cache `{cache}` is {why}; run `index-builder verify`")]
    Row {
        /// Which cache.
        cache: CacheName,
        /// Which item.
        id: crate::types::ItemId,
        /// What is wrong.
        why: String,
    },
    /// A change to a cache of a store that is open for reading only.
    #[error(
        "cache `{0}` is served read-only; start the server with `viscache serve --writable` to change it"
    )]
    NotWritable(CacheName),
    /// No room for more changes before the next compaction.
    #[error(
        "cache `{cache}` holds {held} MiB and its changes would take it past the budget of {budget} MiB; compact it, or raise `memory_budget_mib`"
    )]
    Full {
        /// Which cache.
        cache: CacheName,
        /// What it holds.
        held: u64,
        /// What it may hold.
        budget: u64,
    },
    /// A compaction that would take too much memory.
    #[error(
        "compacting cache `{cache}` needs about {needed} MiB and the budget is {budget} MiB; raise `memory_budget_mib`, or run `index-builder index` elsewhere"
    )]
    CompactMemory {
        /// Which cache.
        cache: CacheName,
        /// What it needs.
        needed: u64,
        /// What it may have.
        budget: u64,
    },
    /// A compaction while another is under way.
    #[error("cache `{0}` is being compacted already; ask again when that has ended")]
    Compacting(CacheName),
    /// A generation was published while another was being built.
    #[error(
        "generation {published} of cache `{cache}` was published during the compaction, whose result is dropped"
    )]
    Overtaken {
        /// Which cache.
        cache: CacheName,
        /// What was published.
        published: Generation,
    },
    /// The system has no thread to give.
    #[error("no thread can be started")]
    Thread(#[source] std::io::Error),
    /// No id is left for an item that names none.
    #[error("cache `{0}` has no free id after its largest; name the item's id")]
    NoFreeId(CacheName),
    /// A write crashed half-way, so what is in memory may not be what is stored.
    #[error(
        "a write to cache `{0}` crashed and it takes no more; start the server again, nothing acknowledged is lost"
    )]
    Poisoned(CacheName),
}

/// A named cache, open for searching and, when its store is open for writing, for changes.
pub struct Cache {
    name: CacheName,
    options: LoadOptions,
    store: Arc<Store>,
    current: ArcSwap<Snapshot>,
    /// What changes it next. Readers never take it.
    state: Mutex<State>,
    compacting: AtomicBool,
    /// Changes held when a compaction last failed on its own, and what it said.
    failed_at: AtomicU64,
    problem: Mutex<Option<String>>,
}

impl Snapshot {
    /// Tells the metrics what readers are about to see.
    fn observe(&self) {
        let DeltaSummary { items, masked, .. } = self.delta();
        metrics::observe_cache(
            self.record().name.as_str(),
            self.generation().0,
            self.live() as u64,
            items,
            masked,
        );
    }
}

/// The newest state, as the writer knows it.
struct State {
    /// As of the last commit.
    record: CacheRecord,
    overlay: Overlay,
}

impl Cache {
    /// Opens the current generation of a cache and verifies it.
    ///
    /// * `expected`: what queries will be made by; `None` when only ready embeddings will come.
    ///
    /// # Errors
    /// [`store::Error::NoCache`], [`Error::NotIndexed`], [`Error::Origin`] naming what differs, [`Error::Memory`] with
    /// the plan, and damage by name.
    pub fn open(
        store: &Arc<Store>,
        name: &CacheName,
        expected: Option<&Origin>,
        options: LoadOptions,
    ) -> Result<Self, Error> {
        let cache = Cache::open_early(store, name, expected, options)?;
        cache.snapshot().wait_for_rows()?;
        Ok(cache)
    }

    /// As [`Cache::open`], for serving at once: rows that belong in memory are read from the store until they are there
    /// ([`Snapshot::rows_in_memory`], [`Snapshot::wait_for_rows`]). Where that fails, for a damaged row, they stay in the store
    /// and the log says so.
    ///
    /// # Errors
    /// As [`Cache::open`], except for rows.
    pub fn open_early(
        store: &Arc<Store>,
        name: &CacheName,
        expected: Option<&Origin>,
        options: LoadOptions,
    ) -> Result<Self, Error> {
        let record = store.cache(name)?;
        if let Some(difference) = expected.and_then(|origin| record.origin.difference(origin)) {
            return Err(Error::Origin { cache: name.clone(), difference });
        }
        let current = record.current.ok_or_else(|| Error::NotIndexed(name.clone()))?;
        let generation = find_generation(store, &record, current)?;
        let (snapshot, overlay) = Snapshot::open_early(store, record.clone(), generation, options)?;
        snapshot.observe();
        Ok(Cache {
            name: name.clone(),
            options,
            store: store.clone(),
            current: ArcSwap::from_pointee(snapshot),
            state: Mutex::new(State { record, overlay }),
            compacting: AtomicBool::new(false),
            failed_at: AtomicU64::new(0),
            problem: Mutex::new(None),
        })
    }

    /// The cache's name.
    pub fn name(&self) -> &CacheName {
        &self.name
    }

    /// The state being served; hold it for as long as an answer takes.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Whether its store is open for writing.
    pub fn writable(&self) -> bool {
        self.store.access() == Access::Write
    }

    /// Takes in what another process has written: its changes, and its current generation if that is another one.
    /// Requests under way keep what they have. Does nothing where this process is the writer.
    ///
    /// * Returns whether the generation is another one.
    ///
    /// # Errors
    /// As [`Cache::open`]; the old state then stays.
    pub fn reload(&self) -> Result<bool, Error> {
        if self.writable() {
            return Ok(false);
        }
        self.store.refresh()?;
        let mut state = self.state()?;
        let (record, now) = (self.store.cache(&self.name)?, self.snapshot());
        if record.current == Some(now.generation()) && record.id == now.record().id {
            state.overlay.replay(&self.store, &record, now.index())?;
            self.show(&now.frozen, &state.overlay);
            state.record = record;
            return Ok(false);
        }
        let current = record.current.ok_or_else(|| Error::NotIndexed(self.name.clone()))?;
        if let Some(difference) = record.origin.difference(&now.record().origin) {
            return Err(Error::Origin { cache: self.name.clone(), difference });
        }
        let generation = find_generation(&self.store, &record, current)?;
        let (snapshot, overlay) = Snapshot::open(&self.store, record.clone(), generation, self.options)?;
        snapshot.observe();
        self.current.store(Arc::new(snapshot));
        *state = State { record, overlay };
        Ok(true)
    }

    /// Lets readers see a generation with the changes of an overlay.
    fn show(&self, frozen: &Arc<Frozen>, overlay: &Overlay) {
        let snapshot = Snapshot { frozen: frozen.clone(), delta: overlay.delta().clone() };
        snapshot.observe();
        self.current.store(Arc::new(snapshot));
    }

    fn state(&self) -> Result<MutexGuard<'_, State>, Error> {
        self.state.lock().map_err(|_| Error::Poisoned(self.name.clone()))
    }
}
