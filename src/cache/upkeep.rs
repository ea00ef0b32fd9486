//! What has changed is built into the index that is being searched: a little at a time, for as long as the cache lives.
//!
//! ```text
//! delta ─► a batch of its rows ─► places, codes, links ([`Editor`]) ─► lock ─► show, with the rows' slots ─► unlock
//! dead slots ─► from one in twenty on: a pass over the links, some after every batch ─► free places
//! a tenth has changed ─► levels above 0 built anew, links for the sample of queries
//! log too long ─► what is shown is measured, while batches go on ─► a generation of it is written ─► lock ─► flip ─► unlock
//! ```
//!
//! **The price of a change** is its row's walk and links, its share of a pass over the links, and its share of a generation's
//! blob: none of them grows with the cache, since a generation is due when a share of the cache has changed. Memory holds the index
//! once: versions share all chunks but those that a batch writes into, and free places are used before new ones are made.
//!
//! **What is stored** is what it always was: the log has every change since the generation, and opening a cache replays it.
//! Nothing here is written but whole generations, so a crash costs at most work.
//!
//! **A row may change while it is being built in.** Then its slot is dead from the beginning, and the newer row waits in the delta.

use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use roaring::RoaringBitmap;
use tracing::warn;

use super::apart::{APART, apart, of_other_modalities};
use super::calibrate::{RECALL_SAMPLE, calibrate};
use super::generation::{Frozen, build_params};
use super::mask::Mask;
use super::overlay::Waiting;
use super::priority::step_back;
use super::publish::{flip, write_blobs};
use super::queries::{KeptQueries, Queries, ReadBlob, kept_queries};
use super::tags::{self, TAG_COPIES, TagTable};
use super::{Cache, Error, RowAccess as _, Snapshot};
use crate::index::{CHUNK, Consolidation, Editor, Error as IndexError, Places, upper_graph, upper_needs};
use crate::store::{BlobWriter, CacheRecord, GenerationRecord, ItemRecord, Recalls};
use crate::types::{Generation, ItemId, Slot};

/// Rows that are built in together: fewer copies of chunks with more of them, and a longer wait until they are seen.
pub(super) const BATCH: usize = 1024;
/// Share of the slots, one in so many, that are dead before their places are made free: a pass costs the same for many as for few.
const DEAD_SHARE: usize = 20;
/// Dead slots for which no pass is made.
const DEAD_BORNE: usize = 1024;
/// Slots of a pass that are looked at after a batch: so many, or one in so many of all, that a pass ends in time for its places.
const PASS_SLOTS: usize = 16_384;
const PASS_SHARE: usize = 16;
/// Share of the items, one in so many, after whose change the levels above 0 are built anew and queries add links.
const RENEW_SHARE: u64 = 10;
/// Queries that links are added for between two looks at what waits, and batches that are built in before it goes on.
const FIX_QUERIES: usize = 256;
const FIX_BATCHES: usize = 4;
/// Queries that the levels above 0 are repaired by: so many, or one for so many of their rows where that is more.
const UPPER_QUERIES: usize = 1024;
const UPPER_SHARE: usize = 16;
/// Rows that queries are made of, where there are none of other kinds.
const APART_ROWS: usize = 2048;
/// Chunks of which a batch uses free places, at most.
const COPIES: u64 = 16;
/// Share of the budget, one in so many, that rows wait in while free places are left alone.
const WAITING_SHARE: u64 = 32;
/// Share of the items, one in so many, for which there is to be room while something long is done that holds a version. Where there is
/// less, it does not stand back.
const ROOM_SHARE: usize = 16;
/// Queries of a kind that a generation is measured by: without a miss they tell of the highest target that a beam is taken for.
const MEASURED_BY: usize = 300;
/// How long places that a pass made free are left alone while somebody holds a version from before: a search takes less.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes that an item takes beside its slot until a generation is written: where it lies, and room for a few tags.
const BESIDE: u64 = 160;
/// How long nothing is done while a generation is written and nothing waits.
const PAUSE: Duration = Duration::from_millis(10);

/// What works on the index of a cache between one batch and the next.
pub(super) struct Upkeep {
    editor: Editor,
    /// The version that has all that the editor did.
    shown: Weak<Frozen>,
    pass: Option<Consolidation>,
    /// Versions before the one that is shown, as long as somebody holds them.
    before: Vec<Weak<Frozen>>,
    /// When the last pass ended whose places are not used yet, and the versions of then.
    passed: Option<(Instant, Vec<Weak<Frozen>>)>,
    round: u64,
    /// The change up to which it was renewed.
    renewed: u64,
}

/// Memory that is reserved until it is taken, or not needed after all.
struct Reserved<'a>(&'a AtomicU64);

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Threads for what nothing is built in during, and for what changes are built in beside.
struct Pools {
    now: rayon::ThreadPool,
    behind: rayon::ThreadPool,
}

fn pool(threads: usize, priority: i32) -> Result<rayon::ThreadPool, Error> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("upkeep-{i}"))
        .start_handler(move |_| step_back(priority));
    Ok(pool.build().map_err(|source| IndexError::Threads { threads, source })?)
}

/// What a generation says beside its index.
struct Measured {
    recalls: Recalls,
    /// Its blob of tags.
    tags: Vec<u8>,
    /// Which slots of what is shown have which tag.
    table: TagTable,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// Rows that were built in.
    pub(super) moved: usize,
    /// Rows of the delta for which there was no place.
    pub(super) left: usize,
    /// Whether a pass over the links is under way, or will give them places.
    pub(super) passing: bool,
}

impl Upkeep {
    /// * `frozen`: what is shown now.
    ///
    /// # Errors
    /// As [`build_params`] and [`Frozen::tags`].
    fn of(frozen: &Arc<Frozen>) -> Result<Self, Error> {
        let params = build_params(&frozen.record, &frozen.generation)?;
        // It is made of the items' records, by the slots that they have now.
        frozen.tags()?;
        let editor = Editor::new(&frozen.index, &params);
        let renewed = frozen.generation.sequence;
        Ok(Upkeep {
            editor,
            shown: Arc::downgrade(frozen),
            pass: None,
            before: Vec::new(),
            passed: None,
            round: 0,
            renewed,
        })
    }

    fn belongs_to(&self, frozen: &Arc<Frozen>) -> bool {
        std::ptr::eq(self.shown.as_ptr(), Arc::as_ptr(frozen))
    }

    /// Builds a batch in, and goes on with a pass over the links if one is due.
    ///
    /// * `least`: rows below which none is built in. `reuse`: whether free places are used: each of their chunks is copied, and one
    ///   that a reader holds for long stays beside its copy. Where there is no memory for new ones, rows wait instead; those of a single
    ///   chunk are used in any case where there is none to wait in either.
    ///
    /// # Errors
    /// [`Error::Overtaken`] when something else is shown by now; then this is of no more use. Otherwise as the parts fail.
    fn step(&mut self, cache: &Cache, least: usize, reuse: bool) -> Result<Step, Error> {
        let (frozen, waiting, masked, places) = {
            let state = cache.state()?;
            let (frozen, masked) = (cache.snapshot().frozen.clone(), state.overlay.delta().masked().clone());
            if !self.belongs_to(&frozen) {
                return Err(cache.overtaken());
            }
            let waiting = state.overlay.waiting(BATCH);
            let places = cache.reserve_places(&frozen, waiting.len(), reuse);
            (frozen, waiting, masked, places)
        };
        let _reserved = Reserved(&cache.reserved);
        let dead = masked.bitmap();
        let count = waiting.len();
        let enough = count >= least.max(1);
        let moved = if enough { self.build_in(cache, &frozen, waiting, &dead, places)? } else { 0 };
        let left = if enough { count - moved } else { 0 };
        // As of now: places that were dead before the batch have items.
        let masked = cache.state()?.overlay.delta().masked().clone();
        self.pass(&frozen, &masked, left > 0 && self.editor.free() == 0);
        let coming = left > 0 && self.passed.is_some();
        if coming && moved == 0 {
            std::thread::sleep(PAUSE);
        }
        // Places that were released just now are for the next step.
        let released = left > 0 && self.editor.free() > 0;
        Ok(Step { moved, left, passing: self.pass.is_some() || coming || released })
    }

    fn build_in(
        &mut self,
        cache: &Cache,
        frozen: &Arc<Frozen>,
        waiting: Vec<Waiting>,
        dead: &RoaringBitmap,
        places: Places,
    ) -> Result<usize, Error> {
        let items: Vec<(ItemId, &[f32])> =
            waiting.iter().map(|item| (item.id, item.row.as_slice())).collect();
        let slots = self.editor.insert(&items, dead, places)?;
        if slots.is_empty() {
            return Ok(0);
        }
        self.round += 1;
        let moved: Vec<(Waiting, Slot)> = waiting.into_iter().zip(slots).collect();
        let next = Arc::new(frozen.with(self.editor.index(), &moved, self.round)?);
        let mut state = cache.state()?;
        if !Arc::ptr_eq(&cache.snapshot().frozen, frozen) {
            return Err(cache.overtaken());
        }
        state.overlay.moved(&moved);
        cache.reserved.store(0, Ordering::Relaxed);
        cache.show(&next, &state.overlay, &state.record);
        self.shows(&next);
        Ok(moved.len())
    }

    fn shows(&mut self, next: &Arc<Frozen>) {
        self.before.retain(|version| version.strong_count() > 0);
        self.before.push(std::mem::replace(&mut self.shown, Arc::downgrade(next)));
    }

    /// Goes on with the pass that makes places free, or begins one if enough slots are dead.
    ///
    /// * `short`: whether there are no places left.
    fn pass(&mut self, frozen: &Frozen, masked: &Mask, short: bool) {
        let dead = masked.len().saturating_sub(self.editor.free() as usize);
        let borne = if short { 0 } else { DEAD_BORNE.max(frozen.index.len() / DEAD_SHARE) };
        if self.pass.is_none() && dead > borne {
            self.pass = Some(self.editor.begin(&masked.bitmap()));
        }
        let some = PASS_SLOTS.max(frozen.index.len() / PASS_SHARE);
        if let Some(pass) = &mut self.pass
            && self.editor.consolidate(pass, some as u32, &masked.bitmap())
        {
            let versions = self.before.iter().chain([&self.shown]).cloned().collect();
            (self.pass, self.passed) = (None, Some((Instant::now(), versions)));
        }
        let gone = |versions: &[Weak<Frozen>]| versions.iter().all(|version| version.strong_count() == 0);
        if self.passed.as_ref().is_some_and(|(then, versions)| then.elapsed() >= GRACE || gone(versions)) {
            self.editor.release();
            self.passed = None;
        }
    }
}

impl Cache {
    /// Does some of the work, with what is left of the last time if that is still of use.
    fn with_upkeep<T>(&self, work: impl FnOnce(&mut Upkeep) -> Result<T, Error>) -> Result<T, Error> {
        let mut upkeep = {
            // Held no longer than this: every chunk that the work replaces would stay as long.
            let frozen = self.snapshot().frozen.clone();
            let kept = self.kept_upkeep().take().filter(|upkeep| upkeep.belongs_to(&frozen));
            match kept {
                Some(upkeep) => upkeep,
                None => Upkeep::of(&frozen)?,
            }
        };
        let done = work(&mut upkeep);
        // What failed half-way is not gone on with; want of room shows before anything is done.
        let whole = matches!(done, Ok(_) | Err(Error::CompactMemory { .. }));
        if whole
            && let Ok(_state) = self.state()
            && upkeep.belongs_to(&self.snapshot().frozen)
        {
            *self.kept_upkeep() = Some(upkeep);
        }
        done
    }

    /// Builds some of the changes into the index that is shown.
    ///
    /// * `least`: as [`Upkeep::step`] has it.
    ///
    /// # Errors
    /// As [`Upkeep::step`].
    pub(super) fn build_some_in(&self, least: usize) -> Result<Step, Error> {
        self.with_upkeep(|upkeep| upkeep.step(self, least, true))
    }

    /// Builds all changes of now in, writes a generation of what is shown then, and makes it the current one. Changes and searches
    /// go on meanwhile; changes are built in but for the seconds that it is written.
    ///
    /// * `behind`: steps that what takes long, measuring above all, stands back for searches and the building in.
    ///
    /// # Errors
    /// [`Error::CompactMemory`] when there are no places; otherwise as the parts fail.
    pub(super) fn write_shown(&self, threads: usize, behind: i32) -> Result<GenerationRecord, Error> {
        let pools = Pools { now: pool(threads, 0)?, behind: pool(threads, behind)? };
        self.with_upkeep(|upkeep| {
            let watermark = self.state()?.record.sequence;
            let changed = watermark.saturating_sub(upkeep.renewed);
            let live = self.snapshot().live() as u64;
            if changed > live / RENEW_SHARE && self.renew(upkeep, &pools)? {
                upkeep.renewed = watermark;
            }
            while self.state()?.overlay.oldest().is_some_and(|since| since <= watermark)
                || upkeep.pass.is_some()
            {
                let step = upkeep.step(self, 1, true)?;
                if step.left > 0 && !step.passing {
                    let (cache, needed) = (self.name(), self.build_needs(&self.snapshot())? >> 20);
                    let budget = self.budget() >> 20;
                    return Err(Error::CompactMemory { cache, needed, budget });
                }
            }
            let (record, shown, _writing) = {
                let state = self.state()?;
                let shown = self.snapshot();
                let writing = self.reserve_writing(writing_needs(&shown))?;
                let record = state.record.clone();
                (record, shown.clone(), writing)
            };
            if !upkeep.belongs_to(&shown.frozen) {
                return Err(self.overtaken());
            }
            let round = upkeep.round;
            let pool = self.long_work(&pools, &shown);
            let measured =
                self.meanwhile(upkeep, false, || pool.install(|| self.measure_shown(&shown, &record)))?;
            // Links have to stay as they are while they are written, so nothing is built in.
            let generation = self.write_generation_of(&shown, &record, watermark, &measured)?;
            let mut state = self.state()?;
            let frozen = self.snapshot().frozen.clone();
            if !upkeep.belongs_to(&frozen) || state.record.current != record.current {
                return Err(self.overtaken());
            }
            let next = Arc::new(frozen.written(generation.clone(), measured.table, round));
            state.record = flip(&self.store, &state.record, generation.clone())?;
            self.show(&next, &state.overlay, &state.record);
            upkeep.shows(&next);
            fail::fail_point!("compact::after_flip", |_| std::process::abort());
            Ok(generation)
        })
    }

    /// Threads for what holds the version that is shown, so that no place in it becomes free meanwhile: they stand back where there are
    /// new places for what may come until they are done.
    fn long_work<'a>(&self, pools: &'a Pools, shown: &Snapshot) -> &'a rayon::ThreadPool {
        let room = self.budget().saturating_sub(self.held() + self.unreserved_writing(shown));
        let places = room / chunk_bytes(&shown.frozen) * CHUNK as u64;
        if places >= (shown.live() / ROOM_SHARE) as u64 { &pools.behind } else { &pools.now }
    }

    /// Builds changes in while something else is done.
    ///
    /// * `reuse`: as [`Upkeep::step`] has it.
    fn meanwhile<T: Send>(
        &self,
        upkeep: &mut Upkeep,
        reuse: bool,
        work: impl FnOnce() -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("generation".into());
            let thread = thread.spawn_scoped(scope, work).map_err(Error::Thread)?;
            let mut going = Ok(());
            while !thread.is_finished() {
                let mut moved = 0;
                if going.is_ok() && self.snapshot().delta.live() >= BATCH {
                    going = upkeep.step(self, BATCH / 2, reuse).map(|step| moved = step.moved);
                }
                if moved == 0 {
                    std::thread::sleep(PAUSE);
                }
            }
            let done = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            going.map(|()| done)
        })
    }

    /// Mends what building in leaves worse than a build would: the levels above 0, and the links for queries of other kinds. The levels
    /// stay as they are where there is no memory to build others; that is told, and the next generation tries again.
    ///
    /// * Returns whether all was mended.
    fn renew(&self, upkeep: &mut Upkeep, pools: &Pools) -> Result<bool, Error> {
        let dead = || Ok::<_, Error>(self.state()?.overlay.delta().masked().clone().bitmap());
        let climbers = upkeep.editor.climbers(&dead()?);
        let levels = climbers.len() < 2 || self.renew_levels(upkeep, pools, &climbers)?;
        let Some(mut queries) = self.kept_queries()? else { return Ok(levels) };
        let count = queries.repair_count();
        for first in (0..count).step_by(FIX_QUERIES) {
            let (some, dead) = (queries.repair(first..count.min(first + FIX_QUERIES))?, dead()?);
            pools.now.install(|| upkeep.editor.fix(&some, &dead))?;
            for _ in 0..FIX_BATCHES {
                if upkeep.step(self, BATCH / 2, true)?.moved == 0 {
                    break;
                }
            }
        }
        Ok(levels)
    }

    /// Builds the levels above 0 anew, if there is memory for it. Changes are built in meanwhile.
    fn renew_levels(
        &self,
        upkeep: &mut Upkeep,
        pools: &Pools,
        climbers: &[(ItemId, Slot)],
    ) -> Result<bool, Error> {
        let (params, dim) = {
            let shown = self.snapshot();
            (build_params(shown.record(), shown.generation_record())?, shown.record().dim)
        };
        let most = UPPER_QUERIES.max(climbers.len() / UPPER_SHARE);
        let needed = upper_needs(&params, dim, climbers.len(), most);
        let reserved = {
            let _state = self.state()?;
            self.reserve_writing(needed)
        };
        let _writing = match reserved {
            Ok(reserved) => reserved,
            Err(Error::CompactMemory { cache, needed, budget }) => {
                warn!(%cache, needed, budget, "no memory to build the upper levels anew: MiB needed, and MiB there may be");
                return Ok(false);
            }
            Err(problem) => return Err(problem),
        };
        let queries = match self.kept_queries()? {
            Some(mut kept) => kept.some_to_repair_by(most)?,
            None => Vec::new(),
        };
        let rows = |some: std::ops::Range<usize>| {
            let (mut rows, shown) = (Vec::with_capacity(some.len() * dim), self.snapshot());
            for &(_, slot) in &climbers[some] {
                // One that went meanwhile, whose place perhaps another has, is left out in the end.
                rows.extend(shown.row(slot)?.unwrap_or_else(|| vec![0.0; dim]));
            }
            Ok::<_, Error>(rows)
        };
        let graph = self.meanwhile(upkeep, true, || {
            pools.behind.install(|| upper_graph(&params, dim, climbers.len(), &queries, rows))
        })?;
        let dead = self.state()?.overlay.delta().masked().clone().bitmap();
        upkeep.editor.set_upper(&graph, climbers, &dead);
        Ok(true)
    }

    /// The sample of queries of the generation that is shown.
    fn kept_queries(&self) -> Result<Option<KeptQueries<ReadBlob<'_>>>, Error> {
        let shown = self.snapshot();
        Ok(kept_queries(&self.store, shown.record(), shown.generation_record())?)
    }

    /// Measures what a snapshot shows, and gathers what a generation of it says beside its index.
    fn measure_shown(&self, shown: &Snapshot, record: &CacheRecord) -> Result<Measured, Error> {
        let live = live(shown);
        if live.is_empty() {
            return Err(IndexError::Empty.into());
        }
        let asked = self.asked(shown, record)?;
        let recalls = calibrate(shown.index(), shown, RECALL_SAMPLE, &asked)?;
        let places = live.iter().map(|(id, _)| *id).zip(0..);
        Ok(Measured {
            recalls,
            tags: tags::of_items(&self.store, record, places, live.len())?,
            table: TagTable::of_items(&self.store, record, shown.index())?,
        })
    }

    /// Writes the blobs of a generation of what a snapshot shows, while nobody changes its links.
    fn write_generation_of(
        &self,
        shown: &Snapshot,
        record: &CacheRecord,
        watermark: u64,
        measured: &Measured,
    ) -> Result<GenerationRecord, Error> {
        fail::fail_point!("compact::before_blob", |_| std::process::abort());
        let (live, index, before) = (live(shown), shown.index(), shown.generation_record());
        let items = live.len() as u64;
        let queries = kept_queries(&self.store, record, before)?;
        // Of a cache that was deleted meanwhile nothing more is written.
        drop(self.state()?);
        let all = |sink: &mut BlobWriter<'_>| {
            index.write_some(live, sink)?;
            Ok(())
        };
        let written = write_blobs(&self.store, record.id, &measured.tags, all, |sink| match queries {
            Some(mut queries) => queries.copy(|some| Ok(sink.write_all(some).map_err(IndexError::Write)?)),
            None => Ok(()),
        })?;
        fail::fail_point!("compact::after_blob", |_| std::process::abort());
        let Recalls { rows: recall, by_kind: recall_by, measured, nearest } = measured.recalls.clone();
        Ok(GenerationRecord {
            generation: written.generation,
            items,
            index_bytes: written.index_bytes,
            tags_bytes: written.tags_bytes,
            queries_bytes: written.queries_bytes,
            built: Some(before.built.unwrap_or(before.items)),
            recall,
            recall_by,
            measured,
            nearest,
            sequence: watermark,
            created_ms: written.created_ms,
            ..before.clone()
        })
    }

    /// What recall is measured by, beside queries like the rows: as when everything was built.
    fn asked(&self, shown: &Snapshot, record: &CacheRecord) -> Result<Queries, Error> {
        let kept = kept_queries(&self.store, shown.record(), shown.generation_record())?;
        let kept = kept.filter(|kept| !kept.is_empty());
        match kept {
            // An even choice of them: every one is held against all rows, while others wait.
            Some(mut kept) => return Ok(kept.held_out(MEASURED_BY)?),
            None if shown.generation_record().recall_by.is_empty() => return Ok(Queries::new()),
            None => {}
        }
        let items = |visit: &mut dyn FnMut(ItemId, &ItemRecord)| {
            self.store.scan_items(record.id, ItemId(0), |id, item| {
                visit(id, &item);
                Ok::<bool, Error>(true)
            })
        };
        let masked = shown.delta.masked();
        let slot = |id: ItemId| shown.index().slot(id).filter(|slot| !masked.contains(slot.0));
        let asked = of_other_modalities(record.dim, items, slot, shown)?;
        if !asked.is_empty() {
            return Ok(asked);
        }
        let every = (shown.index().len() / APART_ROWS).max(1);
        let mut rows = Vec::new();
        for slot in (0..shown.index().len()).step_by(every) {
            rows.extend(shown.row(Slot(slot as u32))?.into_iter().flatten());
        }
        Ok(Queries::from([(APART.to_owned(), apart(&rows, shown.index().mean(), RECALL_SAMPLE))]))
    }

    /// Reserves the memory that so many rows need beside what is held, as far as there is any beside what a generation takes; it is
    /// taken a chunk at a time. Says which places that is for.
    ///
    /// * `reuse`: as [`Upkeep::step`] has it.
    fn reserve_places(&self, frozen: &Frozen, count: usize, reuse: bool) -> Places {
        let index = &frozen.index;
        // What places take they keep: were it all, no generation could be written any more.
        let now = self.snapshot();
        let room = self.budget().saturating_sub(self.held() + self.unreserved_writing(&now));
        // While free places are left alone, rows that find no new ones wait, and are to have where.
        let waiting = (self.budget() / WAITING_SHARE).saturating_sub(now.delta().bytes);
        let room = if reuse { room } else { room.saturating_sub(waiting) };
        let chunk = chunk_bytes(frozen);
        let there = index.capacity() - index.len();
        let missing = (index.len() + count).next_multiple_of(CHUNK).saturating_sub(index.capacity());
        let chunks = if count > there { missing as u64 * chunk / CHUNK as u64 } else { 0 };
        let wanted = chunks + count as u64 * BESIDE;
        let (new, taken) = if wanted <= room { (count, wanted) } else { (there, 0) };
        // A chunk that gets rows is copied, and stays until nobody reads it: at most half of the room, for the moment of a batch, and not
        // kept from changes meanwhile.
        let copies = match reuse {
            true => ((room - taken) / (2 * chunk)).clamp(1, COPIES),
            false => u64::from(new < count && waiting == 0),
        };
        self.reserved.store(taken, Ordering::Relaxed);
        Places { chunks: copies as usize, new }
    }

    /// Reserves memory for a part of what a generation takes, until what comes back is dropped. Under the lock.
    ///
    /// # Errors
    /// [`Error::CompactMemory`].
    fn reserve_writing(&self, needed: u64) -> Result<Reserved<'_>, Error> {
        let (held, budget) = (self.held() + self.reserved.load(Ordering::Relaxed), self.budget());
        if held + needed > budget {
            let cache = self.name();
            return Err(Error::CompactMemory { cache, needed: (held + needed) >> 20, budget: budget >> 20 });
        }
        self.writing.store(needed, Ordering::Relaxed);
        Ok(Reserved(&self.writing))
    }

    /// Bytes that writing a generation of what is shown takes, and that are not reserved for it yet.
    pub(super) fn unreserved_writing(&self, now: &Snapshot) -> u64 {
        writing_needs(now).saturating_sub(self.writing.load(Ordering::Relaxed))
    }

    fn overtaken(&self) -> Error {
        let published = self.snapshot().record().current.unwrap_or(Generation(0));
        Error::Overtaken { cache: self.name(), published }
    }
}

/// Bytes that writing a generation of a snapshot takes.
fn writing_needs(shown: &Snapshot) -> u64 {
    shown.index().write_needs() + TAG_COPIES * shown.generation_record().tags_bytes.unwrap_or(0)
}

/// Bytes that a chunk of slots takes.
pub(super) fn chunk_bytes(frozen: &Frozen) -> u64 {
    let (index, plan) = (&frozen.index, frozen.loaded.plan.total());
    (plan / index.capacity().max(1) as u64).max(1) * CHUNK as u64
}

/// The items that the index of a snapshot has, by their ids, and their slots.
fn live(shown: &Snapshot) -> Vec<(ItemId, Slot)> {
    let masked = shown.delta.masked();
    shown.index().items_from(ItemId(0)).filter(|(_, slot)| !masked.contains(slot.0)).collect()
}
