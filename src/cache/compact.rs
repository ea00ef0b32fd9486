//! What is due of a cache that changes: to build changes into what is shown, or everything anew; generations are switched.
//!
//! ```text
//! few items, or many more than at the last build
//!     watermark ─► read rows ─► build ─► blob of g+1 ─► load it ─► measure recall ─► replay the log      no lock
//!     lock ─► replay the rest ─► flip ─► show ─► unlock                                                 writers wait, ms
//! all others
//!     a batch of changes at a time, and a generation now and then: `upkeep.rs`
//! ```
//!
//! A build reads the rows at one moment *after* the watermark was taken. What was changed between the two is in the generation
//! and in the log as well: replaying it masks the slot and puts the row in the delta, so nothing is found twice.
//!
//! **Memory and threads are bounded.** A build runs on a thread pool of its own. It takes up to as much memory as the cache may
//! ([`LoadOptions::memory_budget`]), is refused beyond that, and the new generation is loaded beside the old one until the last
//! reader leaves that. What is built in a batch at a time takes little more than the rows themselves.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{error, info};

use super::build::{self, Measure, write_generation};
use super::calibrate::{RECALL_SAMPLE, calibrate};
use super::generation::{Frozen, build_params, find_generation};
use super::overlay::Overlay;
use super::publish::{empty_generation, flip, publish_existing};
use super::queries::QUERY_COPIES;
use super::tags::TAG_COPIES;
use super::upkeep::BATCH;
use super::{Cache, Error, Snapshot};
use crate::index::{self, BuildParams};
use crate::store::{CacheRecord, GenerationRecord, Recalls};
use crate::types::Generation;

#[cfg(doc)]
use super::LoadOptions;

/// Steps that a generation stands back which is in time ([`behind`]).
const BEHIND: u64 = 15;
/// Batches after which another cache has its turn.
const TURN: usize = 64;

/// When and how the delta is compacted.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompactOptions {
    /// Work in the background when there are enough changes; otherwise only when asked.
    pub automatic: bool,
    /// Changes that are enough for a generation, if they are enough of the cache as well.
    pub after_changes: usize,
    /// Share of the cache that has to have changed for one, 0 to 1.
    pub after_share: f64,
    /// Threads that build; 0 means half of the cores.
    pub threads: usize,
    /// Items below which everything is built anew. From there on changes are built in a batch at a time, and anew only where
    /// there are twice as many items as at the last time and memory for it.
    pub rebuild_below: usize,
}

impl CompactOptions {
    /// Default of [`CompactOptions::after_changes`].
    pub const DEFAULT_AFTER_CHANGES: usize = 4096;
    /// Default of [`CompactOptions::after_share`].
    pub const DEFAULT_AFTER_SHARE: f64 = 0.05;
    /// Default of [`CompactOptions::rebuild_below`]: so many are built in seconds.
    pub const DEFAULT_REBUILD_BELOW: usize = 20_000;

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
            rebuild_below: Self::DEFAULT_REBUILD_BELOW,
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

/// The one cache that a server works on behind its requests at a time, and those that wait for their turn: a build takes half of the
/// cores and a cache's memory once more.
#[derive(Clone, Default)]
pub struct Background(Arc<Mutex<Turns>>);

#[derive(Default)]
struct Turns {
    busy: bool,
    waiting: VecDeque<Turn>,
}

struct Turn {
    cache: Arc<Cache>,
    options: CompactOptions,
    /// Whether there was no room for a change.
    for_room: bool,
}

impl Background {
    fn work_on(&self, cache: &Arc<Cache>, options: &CompactOptions, for_room: bool) {
        let mut turns = self.turns();
        if turns.waiting.iter().any(|turn| Arc::ptr_eq(&turn.cache, cache)) || cache.compacting() {
            return;
        }
        turns.waiting.push_back(Turn { cache: cache.clone(), options: options.clone(), for_room });
        if std::mem::replace(&mut turns.busy, true) {
            return;
        }
        drop(turns);
        let all = self.clone();
        let spawned = std::thread::Builder::new().name("compact".into()).spawn(move || all.work());
        if let Err(problem) = spawned {
            *self.turns() = Turns::default();
            cache.failed(cache.held_changes(options), format!("no thread could be started: {problem}"));
        }
    }

    fn work(&self) {
        while let Some(Turn { cache, options, for_room }) = self.next() {
            // What breaks in one cache's work is noted with it, and is no reason to leave the others waiting.
            let worked = catch_unwind(AssertUnwindSafe(|| cache.compact_behind(&options, for_room)));
            // One that never rests is not to keep the others waiting.
            if worked.unwrap_or(true) && cache.is_due(&options) {
                self.turns().waiting.push_back(Turn { cache, options, for_room: false });
            }
        }
    }

    /// Whose turn it is; with nobody waiting, the next to come begins anew.
    fn next(&self) -> Option<Turn> {
        let mut turns = self.turns();
        let next = turns.waiting.pop_front();
        turns.busy = next.is_some();
        next
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that a compaction is under way, until it is dropped.
struct Underway {
    cache: Arc<Cache>,
    /// Changes held when it began.
    changes: u64,
}

impl Drop for Underway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.cache.failed(self.changes, "it crashed".into());
        }
        self.cache.compacting.store(false, Ordering::Release);
    }
}

impl Cache {
    /// Makes a generation of everything stored, on bounded threads, and serves it. Searches and changes go on meanwhile. Where
    /// everything is built anew, the graph is repaired for the sample of queries that the generation before was given; recall is
    /// measured as then.
    ///
    /// # Errors
    /// [`Error::NotWritable`], [`Error::Compacting`], [`Error::CompactMemory`], [`Error::Overtaken`], [`Error::Deleted`];
    /// otherwise as the parts fail. The old generation then stays, and no change is lost.
    pub fn compact(self: &Arc<Self>, options: &CompactOptions) -> Result<Compacted, Error> {
        let underway = self.begin(options)?;
        self.snapshot().wait_for_rows()?;
        // Everything stored is asked for, and what is shown is not all of it.
        if self.unread(&self.snapshot()) {
            return self.compacted(|| self.build_anew(options));
        }
        self.compact_now(&underway, options)
    }

    /// Builds all changes into the index that is shown, without making a generation of it; nothing where everything is to be built
    /// anew.
    ///
    /// * Returns how many rows were built in.
    ///
    /// # Errors
    /// As [`Cache::compact`]; [`Error::Full`] for rows that there is no place for.
    pub fn build_in(self: &Arc<Self>, options: &CompactOptions) -> Result<usize, Error> {
        let _underway = self.begin(options)?;
        let mut moved = 0;
        while self.builds_in(options) {
            let step = self.build_some_in(1)?;
            moved += step.moved;
            match (step.moved, step.left, step.passing) {
                (_, _, true) | (1.., _, _) => {}
                (0, 0, false) => break,
                (0, _, false) => return Err(self.full()),
            }
        }
        Ok(moved)
    }

    /// Begins to work in the background when enough has changed, or little room is left, and nothing is under way. While another
    /// cache is worked on, this one waits for its turn.
    pub fn compact_if_due(self: &Arc<Self>, options: &CompactOptions, background: &Background) {
        if options.automatic && self.is_due(options) {
            background.work_on(self, options, false);
        }
    }

    /// As [`Cache::compact_if_due`], of a cache that had no room for a change: whatever it holds, building it in is what makes room.
    pub fn compact_for_room(self: &Arc<Self>, options: &CompactOptions, background: &Background) {
        let (changes, failed_at) = (self.held_changes(options), self.failed_at.load(Ordering::Relaxed));
        // What failed with as many would fail again.
        if options.automatic && changes > 0 && changes != failed_at {
            background.work_on(self, options, true);
        }
    }

    /// Whether changes are built into what is shown; otherwise everything is built anew: where that costs little, where it pays, and
    /// where builds have stored what is in no log.
    fn builds_in(&self, options: &CompactOptions) -> bool {
        let now = self.snapshot();
        let (items, generation) = (now.live(), now.generation_record());
        let unread = self.unread(&now);
        let grown = items as u64 > 2 * generation.built.unwrap_or(generation.items);
        let room = || self.build_needs(&now).is_ok_and(|needed| needed <= self.budget());
        let few = items < options.rebuild_below;
        let anew = (few || grown || unread) && room();
        !now.index().is_empty() && now.frozen.rows.settled() && items > 0 && !anew
    }

    /// Whether builds have stored items since everything was last read for a generation.
    fn unread(&self, now: &Snapshot) -> bool {
        now.record().put > now.generation_record().put
    }

    /// Changes that wait for what is done next.
    fn held_changes(&self, options: &CompactOptions) -> u64 {
        let now = self.snapshot();
        match self.builds_in(options) {
            true => now.logged(),
            false => now.changes(),
        }
    }

    fn is_due(&self, options: &CompactOptions) -> bool {
        let now = self.snapshot();
        // What is deleted never will be; and before its rows are in memory nobody can say what building in would cost.
        if self.contents.is_deleted() || !now.frozen.rows.settled() {
            return false;
        }
        let builds_in = self.builds_in(options);
        let changes = if builds_in { now.logged() } else { now.changes() };
        // What the generation leaves of the budget is the delta's. One that fills half of it is a reason of its own; a generation that
        // leaves little is none, or every change would build everything once more.
        let room = self.budget().saturating_sub(now.loaded().plan.total());
        // After a failure it waits for as much again, rather than failing after every change.
        let failed_at = self.failed_at.load(Ordering::Relaxed);
        let again = if failed_at > changes { 0 } else { failed_at };
        if builds_in {
            let waiting = now.delta().items >= BATCH as u64 || crowded(&now, room);
            let due = options.due(now.live()) as u64;
            return (waiting || changes >= due) && changes >= again + u64::from(again > 0) * BATCH as u64;
        }
        let due = match crowded(&now, room) {
            true => 1,
            false => options.due(now.index().len()) as u64,
        };
        changes >= again + due && now.live() > 0
    }

    /// Work that nobody waits for. Returns whether it was this call's to do.
    fn compact_behind(self: &Arc<Self>, options: &CompactOptions, for_room: bool) -> bool {
        if !for_room && !self.is_due(options) {
            return false;
        }
        // Somebody asked for it meanwhile, and waits for the end of it.
        let Ok(underway) = self.begin(options) else { return false };
        let done = match self.builds_in(options) {
            true => self.keep_up(&underway, options, for_room),
            false => self.compact_now(&underway, options).map(Some),
        };
        match done {
            Ok(compacted) => {
                self.mended();
                if let Some(Compacted { generation, items, took }) = compacted {
                    let seconds = took.as_secs_f64();
                    info!(cache = %self.name(), generation = generation.0, items, seconds, "compacted");
                }
            }
            Err(Error::Deleted(name)) => info!(cache = %name, "deleted while it was being compacted"),
            Err(problem) => {
                error!(cache = %self.name(), %problem, "compaction failed");
                self.failed(underway.changes, problem.to_string());
            }
        }
        true
    }

    /// Builds changes in until few wait, and writes a generation when that is due.
    fn keep_up(
        self: &Arc<Self>,
        underway: &Underway,
        options: &CompactOptions,
        for_room: bool,
    ) -> Result<Option<Compacted>, Error> {
        let (mut written, mut no_room) = (None, None);
        for _ in 0..TURN {
            // No version is held while one after the other is made: what they replace is to go.
            let least = {
                let now = self.snapshot();
                let room = self.budget().saturating_sub(now.loaded().plan.total());
                if for_room || crowded(&now, room) { 1 } else { BATCH / 2 }
            };
            let step = self.build_some_in(least)?;
            let due = {
                let now = self.snapshot();
                now.logged() >= options.due(now.live()) as u64
            };
            if no_room.is_none() && due {
                match self.compact_now(underway, options) {
                    Ok(compacted) => written = Some(compacted),
                    // What waits is built in all the same: that is what makes room.
                    Err(problem @ Error::CompactMemory { .. }) => no_room = Some(problem),
                    Err(problem) => return Err(problem),
                }
            } else if step.moved == 0 && !step.passing {
                // Only what is deleted, or a larger budget, makes a place: until then there is nothing to be done.
                if step.left > 0 {
                    no_room = no_room.or(Some(self.full()));
                }
                break;
            }
        }
        no_room.map_or(Ok(written), Err)
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
            publish_existing(self.store.path(), &self.name(), generation)?;
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

    fn begin(self: &Arc<Self>, options: &CompactOptions) -> Result<Underway, Error> {
        if !self.writable() {
            return Err(Error::NotWritable(self.name()));
        }
        match self.compacting.swap(true, Ordering::Acquire) {
            true => Err(Error::Compacting(self.name())),
            false => Ok(Underway { cache: self.clone(), changes: self.held_changes(options) }),
        }
    }

    fn compact_now(&self, _: &Underway, options: &CompactOptions) -> Result<Compacted, Error> {
        self.compacted(|| {
            if self.builds_in(options) {
                let behind = {
                    let now = self.snapshot();
                    behind(now.logged(), options.due(now.live()) as u64)
                };
                match self.write_shown(options.threads(), behind) {
                    // Everything was deleted meanwhile: the empty generation is built.
                    Err(Error::Index(index::Error::Empty)) => {}
                    written => return written,
                }
            }
            self.build_anew(options)
        })
    }

    fn compacted(&self, make: impl FnOnce() -> Result<GenerationRecord, Error>) -> Result<Compacted, Error> {
        let start = Instant::now();
        let GenerationRecord { generation, items, .. } = make()?;
        self.mended();
        Ok(Compacted { generation, items, took: start.elapsed() })
    }

    /// Bytes that building everything anew takes at its peak.
    pub(super) fn build_needs(&self, now: &Snapshot) -> Result<u64, Error> {
        let generation = now.generation_record();
        let params = build_params(now.record(), generation)?;
        let [tags, queries] =
            [generation.tags_bytes, generation.queries_bytes].map(Option::unwrap_or_default);
        Ok(build_bytes(now.record(), &params) + TAG_COPIES * tags + QUERY_COPIES * queries)
    }

    fn build_anew(&self, options: &CompactOptions) -> Result<GenerationRecord, Error> {
        let record = self.state()?.record.clone();
        let threads = options.threads();
        // As the generation before was built.
        let before = self.snapshot();
        let params = build_params(&record, before.generation_record())?;
        let params = BuildParams { threads, ..params };
        let (needed, budget) = (self.build_needs(&before)?, self.budget());
        if needed > budget {
            let (cache, needed, budget) = (self.name(), needed >> 20, budget >> 20);
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
            let built = build::build(&self.store, &record, &params, &queries, |_| {}, None::<Measure>);
            let (generation, asked) = match built {
                Ok(built) => {
                    // Of a cache that was deleted meanwhile nothing more is written.
                    drop(self.state()?);
                    (write_generation(&self.store, record.id, &built)?, built.asked)
                }
                Err(Error::Index(index::Error::Empty)) => {
                    let build = before.generation_record().build.clone();
                    let empty = GenerationRecord { build, ..empty_generation(&self.store, &record)? };
                    (empty, Default::default())
                }
                Err(error) => return Err(error),
            };
            fail::fail_point!("compact::after_blob", |_| std::process::abort());
            let (mut loaded, overlay) =
                Snapshot::open(&self.store, record.clone(), generation.clone(), self.options)?;
            // On the generation as it will be served, and before anybody reads it: its record is still ours alone.
            let recalls = match loaded.index().is_empty() {
                true => Recalls::default(),
                false => calibrate(loaded.index(), &loaded, RECALL_SAMPLE, &asked)?,
            };
            let Recalls { rows: recall, by_kind: recall_by, measured, nearest } = recalls;
            let generation = GenerationRecord { recall, recall_by, measured, nearest, ..generation };
            if let Some(frozen) = Arc::get_mut(&mut loaded.frozen) {
                frozen.generation = Arc::new(generation.clone());
            }
            Ok::<_, Error>((loaded.frozen, overlay, generation))
        })?;
        self.switch(&frozen, overlay, |now| match now.current {
            current if current == record.current => flip(&self.store, now, generation.clone()),
            current => {
                let published = current.unwrap_or(Generation(0));
                Err(Error::Overtaken { cache: self.name(), published })
            }
        })?;
        Ok(generation)
    }

    /// Notes that what failed before did not fail this time.
    fn mended(&self) {
        self.failed_at.store(0, Ordering::Relaxed);
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
        self.show(frozen, &state.overlay, &state.record);
        // It worked on what is not shown any more.
        drop(self.kept_upkeep().take());
        fail::fail_point!("compact::after_flip", |_| std::process::abort());
        Ok(())
    }

    /// Notes why a compaction failed, and with how many changes: it is begun again when there are as many more.
    fn failed(&self, changes: u64, problem: String) {
        self.failed_at.store(changes, Ordering::Relaxed);
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
    }
}

/// Steps that a generation stands back. While others use all cores it gets a thirtieth of one, and the log grows meanwhile: the
/// longer it has become, the less the next one stands back.
///
/// * `logged`: changes since the last generation. `due`: those from which on there is to be one.
fn behind(logged: u64, due: u64) -> i32 {
    (BEHIND / (logged / due.max(1)).max(1)) as i32
}

/// Whether what waits to be built in takes half of the memory that the index leaves.
fn crowded(now: &Snapshot, room: u64) -> bool {
    let delta = now.delta();
    delta.items > 0 && 2 * delta.bytes > room
}

/// Bytes that building takes at its peak: codes of 8 and of 4 bits, the graph under construction (a million points took 2600
/// bytes each at M 16), codes and links as they will be stored, three times. Rows are read in passes.
fn build_bytes(record: &CacheRecord, params: &BuildParams) -> u64 {
    let (dim, m) = (record.dim as u64, params.m as u64);
    let graph = 1600 + 80 * m;
    record.items * (dim * 3 / 2 + graph + 3 * (params.code_bytes(record.dim) + 12 * m))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_that_is_late_stands_back_less() {
        let steps =
            [(0, 100), (100, 100), (199, 100), (200, 100), (500, 100), (1500, 100), (1600, 100), (7, 0)];
        assert_eq!(steps.map(|(logged, due)| behind(logged, due)), [15, 15, 15, 7, 3, 1, 0, 2]);
    }
}
