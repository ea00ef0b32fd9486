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
//! | `matching.rs` | what a filter lets through |
//! | `filtered.rs` | a snapshot as a filter leaves it |
//! | `scan.rs` | all rows in order, wherever they lie; the truth of one query |
//! | `calibrate.rs` | recall measured, by width of the beam and kind of query |
//! | `apart.rs` | queries for a cache that was given none |
//! | `choose.rs` | which codes, and how deep to rescore: by what codes do to the ranking |
//! | `beam.rs` | a wished recall becomes a beam and a depth of rescoring |
//! | `clock.rs` | when a scan is no longer wanted |
//! | `priority.rs` | work that nobody waits for |
//! | `change.rs` | upsert and delete, visible at once |
//! | `update.rs` | uri and tags of an item changed, without its embedding |
//! | `list.rs` | items one after another, as a search would find them |
//! | `contents.rs` | a deleted cache's contents, kept until nobody reads them |
//! | `build.rs` | an index over everything stored, from nothing |
//! | `publish.rs` | generations written, and made the current one |
//! | `upkeep.rs` | changes are built into the index that is being searched, a little at a time |
//! | `compact.rs` | which of both is due, in the background; generations are switched |
//! | `writer.rs` | the single writer: put items in bulk, index them |
//!
//! A [`Cache`] is what a server holds: a snapshot behind an atomically swapped pointer. A search takes the pointer once and
//! keeps that state to its end: no write and no switch makes a reader wait, or fails a request.
//!
//! A cache that has no generation yet is served over an empty one: all its items are changes, and scanned. Its first compaction
//! makes generation 1. Left out: such a cache with items that a build has put, which no log knows of (index it first).

mod apart;
mod beam;
mod build;
mod calibrate;
mod change;
mod choose;
mod clock;
mod compact;
mod contents;
mod delta;
mod filtered;
mod generation;
mod list;
mod mask;
mod matching;
mod overlay;
mod priority;
mod publish;
mod queries;
mod rows;
mod scan;
mod snapshot;
mod tags;
mod update;
mod upkeep;
mod warming;
mod writer;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use crate::budget::{Budget, Lease};
use crate::store::{self, Access, CacheId, CacheRecord, GenerationRecord, Store};
use crate::types::{CacheName, Generation, Origin};
use crate::{blend, index, metrics};

use contents::Contents;
use generation::{Frozen, current_generation};
use overlay::Overlay;
use upkeep::Upkeep;

pub use apart::APART;
pub use build::{IndexStep, StoredRows};
pub use calibrate::{RECALL_K, RECALL_SAMPLE, calibrate, flat};
pub use change::{Answering, Repeatable, Upserted, Upserts};
pub use compact::{Background, CompactOptions, Compacted};
pub use filtered::Filtered;
pub use generation::{LoadOptions, Loaded, MemoryPlan};
pub use priority::step_back;
pub use publish::publish_existing;
pub use queries::{Queries, QuerySample};
pub use rows::{RowsMode, decode_row, encode_row};
pub use scan::RowAccess;
pub use snapshot::{DeltaSummary, Found, Snapshot};
pub use update::{Edit, TagEdit};
pub use writer::{IndexReport, NewCache, NewItem, Writer};

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
    #[error("cache `{0}` has items that no generation holds; run `index-builder index --cache {0}`")]
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
        "cache `{cache}` needs {needed} MiB ({plan}) and the budget leaves {budget} MiB; raise `memory_budget_mib`, or read rows from disk with `rows = \"disk\"`"
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
    /// A cache that was deleted meanwhile.
    #[error("cache `{0}` was deleted")]
    Deleted(CacheName),
    /// An item that is not there.
    #[error("there is no item {0}")]
    NoItem(crate::types::ItemId),
    /// An item whose tags would be too many.
    #[error("the tags of item {id} would take {bytes} bytes, and the limit is {limit}")]
    TagBytes {
        /// Which item.
        id: crate::types::ItemId,
        /// Names and values together.
        bytes: usize,
        /// What an item may have.
        limit: usize,
    },
    /// A uri that is to tell one item from the others, and several have it.
    #[error(
        "items {first} and {second} both have the uri `{uri}`; name the id of the one to replace, or delete one"
    )]
    AmbiguousUri {
        /// The uri.
        uri: String,
        /// Two of the items.
        first: crate::types::ItemId,
        /// The other.
        second: crate::types::ItemId,
    },
    /// An item without the uri that is to tell it from others.
    #[error("its uri is empty, and items are told apart by their uris here")]
    NoUri,
    /// The id of a request that asked for something else.
    #[error("a request with the id `{0}` asked for something else; give every request an id of its own")]
    RequestReused(String),
    /// No id is left for an item that names none.
    #[error("cache `{0}` has no free id after its largest; name the item's id")]
    NoFreeId(CacheName),
    /// The largest number, which no item has: so there is always one after the largest.
    #[error("{1} is no id of an item in cache `{0}`: they end below; name a smaller one, or none")]
    NotAnId(CacheName, crate::types::ItemId),
    /// A write crashed half-way, so what is in memory may not be what is stored.
    #[error(
        "a write to cache `{0}` crashed and it takes no more; start the server again, nothing acknowledged is lost"
    )]
    Poisoned(CacheName),
}

/// A named cache, open for searching and, when its store is open for writing, for changes.
pub struct Cache {
    options: LoadOptions,
    /// What it holds of the memory that it shares with others.
    shared: Mutex<Lease>,
    store: Arc<Store>,
    current: ArcSwap<Snapshot>,
    /// What changes it next. Readers never take it.
    state: Mutex<State>,
    /// Held while the items of a cache of before layout 4 are entered by their uris.
    entering: Mutex<()>,
    contents: Arc<Contents>,
    compacting: AtomicBool,
    /// Bytes that rows which are being built in will take. Changed under the lock of `state`.
    reserved: AtomicU64,
    /// Bytes that writing a generation of what is shown takes, while it is written. Changed likewise.
    writing: AtomicU64,
    /// What is left of the last upkeep, for the next.
    upkeep: Mutex<Option<Upkeep>>,
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
    /// Nothing is written to it any more.
    deleted: bool,
}

impl Cache {
    /// Opens the current generation of a cache and verifies it.
    ///
    /// * `expected`: what queries will be made by; `None` when only ready embeddings will come.
    ///
    /// # Errors
    /// [`store::Error::NoCache`], [`Error::NotIndexed`] for items that a build has put and nobody indexed, [`Error::Origin`] naming
    /// what differs, [`Error::Memory`] with the plan, and damage by name.
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
        Cache::open_among(store, name, expected, options, &Budget::unlimited())
    }

    /// As [`Cache::open_early`], beside other caches.
    ///
    /// * `shared`: the memory of all of them.
    ///
    /// # Errors
    /// As [`Cache::open_early`].
    pub fn open_among(
        store: &Arc<Store>,
        name: &CacheName,
        expected: Option<&Origin>,
        options: LoadOptions,
        shared: &Budget,
    ) -> Result<Self, Error> {
        let record = store.cache(name)?;
        if let Some(difference) = expected.and_then(|origin| record.origin.difference(origin)) {
            return Err(Error::Origin { cache: name.clone(), difference });
        }
        let generation = current_generation(store, &record)?;
        let left = LoadOptions { memory_budget: options.memory_budget.min(shared.left()), ..options };
        let (mut snapshot, overlay) = Snapshot::open_early(store, record.clone(), generation, left)?;
        let mut shared = shared.lease();
        shared.note(snapshot.loaded().plan.total() + snapshot.delta().bytes);
        snapshot.observe();
        let contents = Contents::new(store, record.id);
        snapshot.contents = Some(contents.clone());
        Ok(Cache {
            options,
            shared: Mutex::new(shared),
            store: store.clone(),
            current: ArcSwap::from_pointee(snapshot),
            state: Mutex::new(State { record, overlay, deleted: false }),
            entering: Mutex::new(()),
            contents,
            compacting: AtomicBool::new(false),
            reserved: AtomicU64::new(0),
            writing: AtomicU64::new(0),
            upkeep: Mutex::new(None),
            failed_at: AtomicU64::new(0),
            problem: Mutex::new(None),
        })
    }

    /// The cache's name, which may change.
    pub fn name(&self) -> CacheName {
        self.current.load().record().name.clone()
    }

    /// Its number in the store, which stays.
    pub fn id(&self) -> CacheId {
        self.current.load().record().id
    }

    /// Gives it another name, at once and in the store.
    ///
    /// # Errors
    /// [`Error::NotWritable`], [`Error::Deleted`]; as [`Store::rename_cache`].
    pub fn rename(&self, to: &CacheName) -> Result<(), Error> {
        self.check_writable()?;
        let mut state = self.state()?;
        let record = self.store.rename_cache(&state.record.name, to)?;
        metrics::observe_cache(state.record.name.as_str(), 0, 0, 0, 0);
        state.record = record;
        self.show(&self.snapshot().frozen, &state.overlay, &state.record);
        Ok(())
    }

    /// Deletes it with everything in it. Whoever holds a snapshot reads on; writes and a compaction under way fail with
    /// [`Error::Deleted`]. What it had in the store goes when the last reader does.
    ///
    /// # Errors
    /// [`Error::NotWritable`], [`Error::Deleted`]; as [`Store::leave_cache`].
    pub fn delete_cache(&self, force: bool) -> Result<CacheRecord, Error> {
        self.check_writable()?;
        let mut state = self.state()?;
        let record = self.store.leave_cache(&state.record.name, force)?;
        state.deleted = true;
        self.contents.delete();
        metrics::observe_cache(record.name.as_str(), 0, 0, 0, 0);
        Ok(record)
    }

    fn check_writable(&self) -> Result<(), Error> {
        match self.writable() {
            true => Ok(()),
            false => Err(Error::NotWritable(self.name())),
        }
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
        let (record, now) = (self.record_now(&state.record)?, self.snapshot());
        let current = record.current.unwrap_or(GenerationRecord::none().generation);
        if current == now.generation() && record.id == now.record().id {
            state.overlay.replay(&self.store, &record, now.index())?;
            self.show(&now.frozen, &state.overlay, &record);
            state.record = record;
            return Ok(false);
        }
        if let Some(difference) = record.origin.difference(&now.record().origin) {
            return Err(Error::Origin { cache: self.name(), difference });
        }
        let generation = current_generation(&self.store, &record)?;
        let (mut snapshot, overlay) = Snapshot::open(&self.store, record.clone(), generation, self.options)?;
        snapshot.observe();
        snapshot.contents = Some(self.contents.clone());
        self.current.store(Arc::new(snapshot));
        *state = State { record, overlay, deleted: false };
        Ok(true)
    }

    /// The record that the store has of it, under whatever name; without one, that of a cache which has its name now.
    fn record_now(&self, known: &CacheRecord) -> Result<CacheRecord, Error> {
        let named = self.store.cache(&known.name);
        if named.as_ref().is_ok_and(|record| record.id == known.id) {
            return Ok(named?);
        }
        let renamed = self.store.caches()?.into_iter().find(|record| record.id == known.id);
        Ok(renamed.map_or(named, Ok)?)
    }

    /// Lets readers see a generation with the changes of an overlay.
    fn show(&self, frozen: &Arc<Frozen>, overlay: &Overlay, record: &CacheRecord) {
        let (record, contents) = (Arc::new(record.clone()), Some(self.contents.clone()));
        let snapshot = Snapshot { frozen: frozen.clone(), delta: overlay.delta().clone(), record, contents };
        snapshot.observe();
        self.shared().note(snapshot.loaded().plan.total() + snapshot.delta().bytes);
        self.current.store(Arc::new(snapshot));
    }

    /// Bytes that it may take: its own limit, or what others leave of the memory that all share.
    fn budget(&self) -> u64 {
        self.options.memory_budget.min(self.shared().reach())
    }

    fn shared(&self) -> MutexGuard<'_, Lease> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept_upkeep(&self) -> MutexGuard<'_, Option<Upkeep>> {
        self.upkeep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.state.lock().map_err(|_| Error::Poisoned(self.name()))?;
        match state.deleted {
            true => Err(Error::Deleted(self.name())),
            false => Ok(state),
        }
    }
}
