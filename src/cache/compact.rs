//! The delta becomes a generation, and generations are switched, while the cache goes on being read and changed.
//!
//! ```text
//! watermark ─► read rows ─► build ─► blob of g+1 ─► load it ─► measure recall ─► replay the log          no lock
//! lock ─► replay the rest ─► flip ─► show ─► unlock                                                     writers wait, ms
//! ```
//!
//! The rows are read at one moment *after* the watermark was taken. What was changed between the two is in the generation
//! and in the log as well: replaying it masks the slot and puts the row in the delta, so nothing is found twice.
//!
//! **Memory and threads are bounded.** A compaction runs on a thread pool of its own. It takes up to as much memory as the
//! cache may ([`LoadOptions::memory_budget`]) for building, is refused beyond that, and the new generation is loaded beside
//! the old one until the last reader leaves that.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tracing::{error, info};

use super::calibrate::{RECALL_SAMPLE, calibrate};
use super::generation::{Frozen, find_generation};
use super::overlay::Overlay;
use super::writer::{self, Measure, flip, write_generation};
use super::{Cache, Error, Snapshot, publish_existing};
use crate::index::{self, BuildParams};
use crate::store::{CacheRecord, GenerationRecord, Recalls};
use crate::types::Generation;

#[cfg(doc)]
use super::LoadOptions;

/// What gathering tags takes, in lengths of the table that it makes: a map's nodes and small bitmaps are more than their
/// bytes.
const TAG_COPIES: u64 = 4;
/// What the sample of queries takes, in lengths of its blob: floats are twice as long as halves, and both are there at a time.
const QUERY_COPIES: u64 = 3;

/// When and how the delta is compacted.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompactOptions {
    /// Compact in the background when there are enough changes; otherwise only when asked.
    pub automatic: bool,
    /// Changes that are enough, if they are enough of the cache as well.
    pub after_changes: usize,
    /// Share of the cache that has to have changed, 0 to 1.
    pub after_share: f64,
    /// Threads that build; 0 means half of the cores.
    pub threads: usize,
}

impl CompactOptions {
    /// Default of [`CompactOptions::after_changes`].
    pub const DEFAULT_AFTER_CHANGES: usize = 4096;
    /// Default of [`CompactOptions::after_share`].
    pub const DEFAULT_AFTER_SHARE: f64 = 0.05;

    fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, |cores| usize::from(cores).div_ceil(2)),
            threads => threads,
        }
    }

    /// Changes after which a generation of so many items is compacted.
    fn due(&self, items: usize) -> usize {
        self.after_changes.max((self.after_share * items as f64) as usize)
    }
}

impl Default for CompactOptions {
    fn default() -> Self {
        CompactOptions {
            automatic: true,
            after_changes: Self::DEFAULT_AFTER_CHANGES,
            after_share: Self::DEFAULT_AFTER_SHARE,
            threads: 0,
        }
    }
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Compacted {
    /// The new generation.
    pub generation: Generation,
    /// Items in it.
    pub items: u64,
    /// Time it took.
    pub took: Duration,
}

/// Says that a compaction is under way, until it is dropped.
struct Underway(Arc<Cache>);

impl Drop for Underway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed("it crashed".into());
        }
        self.0.compacting.store(false, Ordering::Release);
    }
}

impl Cache {
    /// Builds a generation over everything stored, on bounded threads, and serves it. Searches and changes go on meanwhile.
    /// The graph is repaired for the sample of queries that the generation before was given, and recall measured as then.
    ///
    /// # Errors
    /// [`Error::NotWritable`], [`Error::Compacting`], [`Error::CompactMemory`], [`Error::Overtaken`],
    /// [`index::Error::Empty`] for a cache without items; otherwise as the parts fail. The old generation then stays, and
    /// no change is lost.
    pub fn compact(self: &Arc<Self>, options: &CompactOptions) -> Result<Compacted, Error> {
        let underway = self.begin()?;
        self.compact_now(&underway, options)
    }

    /// Begins a compaction in the background when enough has changed and none is under way.
    pub fn compact_if_due(self: &Arc<Self>, options: &CompactOptions) {
        let now = self.snapshot();
        let changes = now.delta.rows() as u64 + now.delta.masked().len() as u64;
        let due = options.due(now.index().len()) as u64;
        // After a failure it waits for as much again, rather than failing after every change.
        let failed_at = self.failed_at.load(Ordering::Relaxed);
        let again = if failed_at > changes { 0 } else { failed_at };
        if !options.automatic || changes < again + due || now.live() == 0 {
            return;
        }
        let Ok(underway) = self.begin() else { return };
        let options = options.clone();
        let thread = std::thread::Builder::new().name("compact".into());
        let spawned = thread.spawn(move || {
            let cache = underway.0.clone();
            match cache.compact_now(&underway, &options) {
                Ok(Compacted { generation, items, took }) => {
                    let seconds = took.as_secs_f64();
                    info!(cache = %cache.name, generation = generation.0, items, seconds, "compacted");
                }
                Err(problem) => {
                    error!(cache = %cache.name, %problem, "compaction failed");
                    cache.failed_at.store(changes, Ordering::Relaxed);
                    cache.failed(problem.to_string());
                }
            }
        });
        if let Err(problem) = spawned {
            self.failed(format!("no thread could be started: {problem}"));
        }
    }

    /// Whether a compaction is under way.
    pub fn compacting(&self) -> bool {
        self.compacting.load(Ordering::Acquire)
    }

    /// Why the last compaction in the background failed, if it did.
    pub fn compaction_problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a stored generation the current one and serves it with all changes since: a roll-back, or its opposite.
    ///
    /// # Errors
    /// [`Error::NoGeneration`] naming those there are; [`crate::store::Error::Locked`] where this process is not the
    /// writer and another is.
    pub fn publish(&self, generation: Generation) -> Result<(), Error> {
        if !self.writable() {
            publish_existing(self.store.path(), &self.name, generation)?;
            return self.reload().map(|_| ());
        }
        let record = self.state()?.record.clone();
        let found = find_generation(&self.store, &record, generation)?;
        let (snapshot, overlay) = Snapshot::open(&self.store, record, found, self.options)?;
        self.switch(&snapshot.frozen, overlay, |record| {
            // A compaction may have dropped it meanwhile.
            find_generation(&self.store, record, generation)?;
            let record = CacheRecord { current: Some(generation), ..record.clone() };
            let mut batch = self.store.batch();
            batch.put_cache(&record);
            self.store.commit(batch)?;
            Ok(record)
        })
    }

    fn begin(self: &Arc<Self>) -> Result<Underway, Error> {
        if !self.writable() {
            return Err(Error::NotWritable(self.name.clone()));
        }
        match self.compacting.swap(true, Ordering::Acquire) {
            true => Err(Error::Compacting(self.name.clone())),
            false => Ok(Underway(self.clone())),
        }
    }

    fn compact_now(&self, _: &Underway, options: &CompactOptions) -> Result<Compacted, Error> {
        let start = Instant::now();
        let record = self.state()?.record.clone();
        let threads = options.threads();
        // As the generation before was built.
        let before = self.snapshot();
        let build = before.generation_record().build.clone();
        let params = serde_json::from_value::<BuildParams>(build).unwrap_or_default();
        let params = BuildParams { threads, ..params };
        let [tags, queries] = {
            let generation = before.generation_record();
            [generation.tags_bytes, generation.queries_bytes].map(Option::unwrap_or_default)
        };
        let needed = build_bytes(&record, &params) + TAG_COPIES * tags + QUERY_COPIES * queries;
        let budget = self.options.memory_budget;
        if needed > budget {
            let (cache, needed, budget) = (self.name.clone(), needed >> 20, budget >> 20);
            return Err(Error::CompactMemory { cache, needed, budget });
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("compact-{i}"))
            .build()
            .map_err(|source| index::Error::Threads { threads, source })?;
        let (frozen, overlay, generation) = pool.install(|| {
            fail::fail_point!("compact::before_blob", |_| std::process::abort());
            let queries = before.queries()?;
            let built = writer::build(&self.store, &record, &params, &queries, |_| {}, None::<Measure>)?;
            let generation = write_generation(&self.store, record.id, &built)?;
            fail::fail_point!("compact::after_blob", |_| std::process::abort());
            drop(built);
            let (mut loaded, overlay) =
                Snapshot::open(&self.store, record.clone(), generation.clone(), self.options)?;
            // On the generation as it will be served, and before anybody reads it: its record is still ours alone.
            let recalls = calibrate(loaded.index(), &loaded, RECALL_SAMPLE, &queries.held_out)?;
            let Recalls { rows: recall, by_kind: recall_by, margins, nearest } = recalls;
            let generation = GenerationRecord { recall, recall_by, margins, nearest, ..generation };
            if let Some(frozen) = Arc::get_mut(&mut loaded.frozen) {
                frozen.generation.clone_from(&generation);
            }
            Ok::<_, Error>((loaded.frozen, overlay, generation))
        })?;
        let (number, items) = (generation.generation, generation.items);
        self.switch(&frozen, overlay, |now| match now.current {
            current if current == record.current => flip(&self.store, now, generation),
            current => {
                let published = current.unwrap_or(Generation(0));
                Err(Error::Overtaken { cache: self.name.clone(), published })
            }
        })?;
        self.failed_at.store(0, Ordering::Relaxed);
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(Compacted { generation: number, items, took: start.elapsed() })
    }

    /// Shows another generation to readers, with every change since.
    ///
    /// * `overlay`: the changes since it as of some moment. `commit`: makes it the current one in the store.
    fn switch(
        &self,
        frozen: &Arc<Frozen>,
        mut overlay: Overlay,
        commit: impl FnOnce(&CacheRecord) -> Result<CacheRecord, Error>,
    ) -> Result<(), Error> {
        let mut state = self.state()?;
        overlay.replay(&self.store, &state.record, &frozen.index)?;
        state.record = commit(&state.record)?;
        state.overlay = overlay;
        self.show(frozen, &state.overlay);
        fail::fail_point!("compact::after_flip", |_| std::process::abort());
        Ok(())
    }

    fn failed(&self, problem: String) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
    }
}

/// Bytes that building takes at its peak: codes of 8 and of 4 bits, the graph under construction (a million points took 2600
/// bytes each at M 16), codes and links as they will be stored, twice. Rows are read in passes.
fn build_bytes(record: &CacheRecord, params: &BuildParams) -> u64 {
    let (dim, m) = (record.dim as u64, params.m as u64);
    let graph = 1600 + 80 * m;
    record.items * (dim * 3 / 2 + graph + 2 * (params.code_bytes(record.dim) + 12 * m))
}
