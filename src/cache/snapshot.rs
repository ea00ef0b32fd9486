//! What a reader holds: a generation and the changes since, as of one moment.
//!
//! ```text
//! graph of the generation ─► candidates ─► without masked slots ─► scored on the rows ─┐
//! delta ─► exact scan ─────────────────────────────────────────────────────────────────┴► best first
//! ```
//!
//! The graph knows nothing of deletions and filters: both leave some slots that may be found, and the index searches among
//! those (`index/filter.rs`), or says that a scan of them is cheaper.
//!
//! With rows on disk, a reader sees rows as they are *now*: an item that was replaced after the reader took its snapshot
//! is scored on its new row, one that was deleted is left out.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::Error;
use super::clock::Clock;
use super::contents::Contents;
use super::delta::Delta;
use super::generation::{Frozen, LoadOptions, Loaded, current_generation};
use super::matching::Matching;
use super::overlay::Overlay;
use super::queries::{QuerySample, kept_queries};
use super::rows::check_row;
use crate::index::exact::{self, Scored, Ties, TopK};
use crate::index::{Among, Candidate, Cost, Index, Live, Plan, ScanPrice, SearchParams, Searcher};
use crate::kernels::Kernels;
use crate::store::{CacheRecord, GenerationRecord, Store};
use crate::types::{CacheName, Embedding, Generation, Hit, ItemId, Slot};

/// What a row read from the disk costs, in rows scored on codes: roughly, and less than on a disk that is slow.
const DISK_ROW: f64 = 64.0;
/// Rows read from the disk at a time.
const DISK_ROWS: usize = 1024;
/// Rows between two looks at the clock in a scan of all.
const CLOCK_ROWS: u32 = 1024;

/// A generation and the changes since, as of one moment. Copies are cheap and share both.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) frozen: Arc<Frozen>,
    pub(super) delta: Delta,
    /// As of the last change in it.
    pub(super) record: Arc<CacheRecord>,
    /// What keeps a deleted cache's contents until nobody reads them.
    pub(super) contents: Option<Arc<Contents>>,
}

/// The answer to one search.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// At most `top_k` hits, best first.
    pub hits: Vec<Hit>,
    /// The work it took.
    pub cost: Cost,
    /// How the generation was searched; the delta is always scanned.
    pub plan: Plan,
    /// Items that it was searched for among: all live ones, or those that the filter lets through.
    pub matching: usize,
}

/// The changes that a snapshot holds beside its generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct DeltaSummary {
    /// Items that are searched exactly, because they were upserted since the generation.
    pub items: u64,
    /// Items of the generation that were replaced or deleted since.
    pub masked: u64,
    /// Rows held, those that were replaced or deleted again included.
    pub rows: u64,
    /// Bytes they take.
    pub bytes: u64,
    /// Number of the last change in it.
    pub sequence: u64,
}

impl Snapshot {
    /// Loads the current generation of a cache, and what has changed since.
    ///
    /// # Errors
    /// As [`super::Cache::open`].
    pub fn load(store: &Arc<Store>, name: &CacheName, options: LoadOptions) -> Result<Self, Error> {
        let record = store.cache(name)?;
        let generation = current_generation(store, &record)?;
        Ok(Snapshot::open(store, record, generation, options)?.0)
    }

    /// As [`Snapshot::load`], of any stored generation, and with the writer's side of its delta.
    pub(super) fn open(
        store: &Arc<Store>,
        record: CacheRecord,
        generation: GenerationRecord,
        options: LoadOptions,
    ) -> Result<(Self, Overlay), Error> {
        let opened = Snapshot::open_early(store, record, generation, options)?;
        opened.0.wait_for_rows()?;
        Ok(opened)
    }

    /// As [`Snapshot::open`], with rows that belong in memory on their way there.
    pub(super) fn open_early(
        store: &Arc<Store>,
        record: CacheRecord,
        generation: GenerationRecord,
        options: LoadOptions,
    ) -> Result<(Self, Overlay), Error> {
        let frozen = Frozen::load(store, record, generation, options)?;
        let mut overlay = Overlay::new(frozen.record.dim, frozen.generation.sequence);
        overlay.replay(store, &frozen.record, &frozen.index)?;
        let delta = overlay.delta().clone();
        // What a build has put is in no log: without a generation nobody would find it.
        let all = delta.sequence() == frozen.record.sequence;
        let unfound = all && (delta.live() as u64) < frozen.record.items;
        if unfound && frozen.generation.generation == GenerationRecord::none().generation {
            return Err(Error::NotIndexed(frozen.record.name.clone()));
        }
        frozen.rows.settle(&frozen.record, &frozen.index, delta.masked());
        let record = Arc::new(frozen.record.clone());
        Ok((Snapshot { frozen: Arc::new(frozen), delta, record, contents: None }, overlay))
    }

    /// The cache's record as of the last change in it.
    pub fn record(&self) -> &CacheRecord {
        &self.record
    }

    /// The generation's record.
    pub fn generation_record(&self) -> &GenerationRecord {
        &self.frozen.generation
    }

    /// The generation's number.
    pub fn generation(&self) -> Generation {
        self.frozen.generation.generation
    }

    /// The opened index.
    pub fn index(&self) -> &Index {
        &self.frozen.index
    }

    /// What loading the generation did.
    pub fn loaded(&self) -> Loaded {
        self.frozen.loaded
    }

    /// Waits until the rows that belong in memory are there. What they fail with is told once, to the first who waits.
    ///
    /// # Errors
    /// [`Error::Row`] naming one that is missing or misshapen, [`Error::Store`].
    pub fn wait_for_rows(&self) -> Result<(), Error> {
        self.frozen.rows.join()
    }

    /// Whether its rows are in memory (yet); those of an empty generation always are.
    pub fn rows_in_memory(&self) -> bool {
        self.frozen.index.is_empty() || self.frozen.rows.block().is_some()
    }

    /// The sample of queries that came with the generation; an empty one when it came without.
    ///
    /// # Errors
    /// [`crate::store::Error::Damaged`].
    pub(super) fn queries(&self) -> Result<QuerySample, Error> {
        let kept = kept_queries(self.store(), self.record(), self.generation_record())?;
        Ok(kept.map(|mut kept| kept.sample()).transpose()?.unwrap_or_default())
    }

    /// The store it came from.
    pub fn store(&self) -> &Arc<Store> {
        &self.frozen.store
    }

    /// Items that a search can find.
    pub fn live(&self) -> usize {
        self.live_slots() + self.delta.live()
    }

    /// Whether an item of the generation was replaced or deleted since.
    pub fn replaced(&self, id: ItemId) -> bool {
        self.index().slot(id).is_some_and(|slot| self.delta.masked().contains(slot.0))
    }

    /// The changes it holds beside its generation.
    pub fn delta(&self) -> DeltaSummary {
        DeltaSummary {
            items: self.delta.live() as u64,
            masked: self.delta.masked().len() as u64,
            rows: self.delta.rows() as u64,
            bytes: self.delta.bytes(),
            sequence: self.delta.sequence(),
        }
    }

    /// Changes that the log has beyond the generation: what opening the cache replays.
    pub(super) fn logged(&self) -> u64 {
        self.delta.sequence().saturating_sub(self.generation_record().sequence)
    }

    /// Changes that a compaction would take in.
    pub(super) fn changes(&self) -> u64 {
        self.delta.rows() as u64 + self.delta.masked().len() as u64
    }

    /// The rows of the generation that may be found.
    fn live_rows<F: Fn(Slot) -> bool>(&self, wanted: usize, is: F) -> Live<F> {
        let count = self.live_slots();
        Live { is, count, price: ScanPrice::of(count, wanted, self.row_price()) }
    }

    fn live_slots(&self) -> usize {
        self.frozen.index.len() - self.delta.masked().len()
    }

    /// The `top_k` nearest items of a query, best first, scored in f32 on the stored rows.
    ///
    /// * `query`: length D, not necessarily unit. `top_k`: min(top_k, live items) hits come back.
    ///
    /// # Errors
    /// [`Error::Dimension`], [`crate::index::Error::Parameter`], [`Error::Row`].
    pub fn search(
        &self,
        searcher: &mut Searcher,
        query: &Embedding,
        top_k: usize,
        params: &SearchParams,
    ) -> Result<Found, Error> {
        self.search_among(searcher, query, top_k, params, None)
    }

    /// As [`Snapshot::search`], for many queries: a thread works on several in turn, so that each hides what the others wait
    /// for. The answers are the same.
    ///
    /// * Returns one result for each query, in order.
    pub fn search_all(
        &self,
        searcher: &mut Searcher,
        queries: &[&Embedding],
        top_k: usize,
        params: &SearchParams,
    ) -> Vec<Result<Found, Error>> {
        let (index, _first, params) =
            (&self.frozen.index, self.frozen.rows.search(), &params.for_hits(top_k));
        let sound = queries.iter().all(|query| query.dim() == index.dim());
        if !sound || params.exact || index.is_empty() {
            return queries.iter().map(|query| self.search(searcher, query, top_k, params)).collect();
        }
        let slices: Vec<&[f32]> = queries.iter().map(|query| query.as_slice()).collect();
        let wanted = top_k.max(self.rescore(params));
        let masked = self.delta.masked();
        let (live, all_live) = (self.live_rows(wanted, |slot| !masked.contains(slot.0)), masked.is_empty());
        match searcher.find_all_live(index, &slices, wanted, params, &live) {
            Ok(all) => {
                let one = |(query, (plan, (candidates, cost))): (&&Embedding, _)| match plan {
                    Plan::Scan if !all_live => self.search(searcher, query, top_k, params),
                    plan => self.completed(query, top_k, params, plan, Some(candidates), None, cost),
                };
                queries.iter().zip(all).map(one).collect()
            }
            // What is wrong with all of them is wrong with each.
            Err(_) => queries.iter().map(|query| self.search(searcher, query, top_k, params)).collect(),
        }
    }

    /// As [`Snapshot::search`], among the items that match, if not all do.
    pub(super) fn search_among(
        &self,
        searcher: &mut Searcher,
        query: &Embedding,
        top_k: usize,
        params: &SearchParams,
        matching: Option<&Matching>,
    ) -> Result<Found, Error> {
        let record = self.record();
        if query.dim() != record.dim {
            let (expected, received) = (record.dim, query.dim());
            return Err(Error::Dimension { cache: record.name.clone(), expected, received });
        }
        params.validate()?;
        let _first = self.frozen.rows.search();
        let mut cost = Cost::default();
        let (plan, candidates) = match params.exact {
            true => (Plan::Exact, None),
            false => {
                let wanted = top_k.max(self.rescore(params));
                self.candidates(searcher, query, wanted, &params.for_hits(top_k), matching, &mut cost)?
            }
        };
        self.completed(query, top_k, params, plan, candidates, matching, cost)
    }

    /// The hits among some candidates, or among all that match where there are none, and those of the delta.
    fn completed(
        &self,
        query: &Embedding,
        top_k: usize,
        params: &SearchParams,
        plan: Plan,
        candidates: Option<Vec<Candidate>>,
        matching: Option<&Matching>,
        mut cost: Cost,
    ) -> Result<Found, Error> {
        let mut best = match candidates {
            Some(candidates) => self.rescored(&candidates, query, top_k, &mut cost)?,
            None => self.scanned(query, top_k, params, matching, &mut cost)?,
        };
        let items = matching.map_or(self.delta.live(), |matching| matching.delta.len());
        if items > 0 {
            // What does not come among the hits of the generation need not be looked at.
            let floor = best.get(top_k.saturating_sub(1)).map_or(f32::NEG_INFINITY, |worst| worst.score);
            let (query, signs) = (query.as_slice(), self.frozen.index.signs());
            let clock = Clock::of(params);
            let (found, scored) = match matching {
                None => (self.delta.search(query, top_k, floor, &signs, &clock), self.delta.rows()),
                Some(matching) => {
                    self.delta.search_kept(query, top_k, floor, &signs, &matching.delta, &clock)
                }
            };
            clock.in_time()?;
            cost.scored_vectors += scored as u64;
            best.extend(found.into_iter().map(|Scored { slot, score }| {
                let (id, row) = self.delta.row(slot);
                Ranked { id, score, row: row.into() }
            }));
            best.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
            best.truncate(top_k);
        }
        let hits = best.into_iter().map(|ranked| self.hit(ranked)).collect::<Result<_, _>>()?;
        let slots = matching.map_or(self.live_slots(), |matching| matching.slots.len());
        Ok(Found { hits, cost, plan, matching: slots + items })
    }

    /// The best by their codes of the slots that may be found, or nothing when scoring all of those on their rows is the
    /// cheaper way.
    fn candidates(
        &self,
        searcher: &mut Searcher,
        query: &Embedding,
        wanted: usize,
        params: &SearchParams,
        matching: Option<&Matching>,
        cost: &mut Cost,
    ) -> Result<(Plan, Option<Vec<Candidate>>), Error> {
        let (index, masked, query) = (&self.frozen.index, self.delta.masked(), query.as_slice());
        if index.is_empty() {
            return Ok((Plan::Exact, Some(Vec::new())));
        }
        let count = matching.map_or(self.live_slots(), |matching| matching.slots.len());
        if count == index.len() {
            let (plan, (candidates, work)) = searcher.find(index, query, wanted, params)?;
            *cost += work;
            return Ok((plan, Some(candidates)));
        }
        let price = ScanPrice::of(count, wanted, self.row_price());
        let (mut plan, candidates) = match matching {
            Some(Matching { slots, .. }) => {
                let allowed = |slot: Slot| slots.contains(slot);
                let among = Among { allowed, count, purse: price.purse(), graph_first: false };
                // Among what a filter keeps, the tenth best may be any: no margin is known for it.
                searcher.search_among(index, query, wanted, &params.without_margin(), &among, cost)?
            }
            None => {
                let live = self.live_rows(wanted, |slot| !masked.contains(slot.0));
                let (plan, (candidates, work)) = searcher.find_live(index, query, wanted, params, &live)?;
                *cost += work;
                (plan, candidates)
            }
        };
        let candidates = match plan {
            Plan::Graph | Plan::GraphWithSkip => Some(candidates),
            Plan::Exact | Plan::Scan if price.codes_pay() => {
                plan = Plan::Scan;
                cost.scored_vectors += count as u64;
                let live = || (0..index.len() as u32).filter(|&slot| !masked.contains(slot)).collect();
                let slots: Cow<[u32]> = matching.map_or_else(live, |matching| matching.slots.list().into());
                let found = index.scan(query, &slots, wanted);
                let clock = Clock::of(params);
                clock.look();
                clock.in_time()?;
                Some(found)
            }
            Plan::Exact | Plan::Scan => {
                plan = Plan::Exact;
                None
            }
        };
        Ok((plan, candidates))
    }

    /// Candidates that a search scores again on their rows, unless more hits are wanted.
    pub fn rescore(&self, params: &SearchParams) -> usize {
        params.rescore.or(self.frozen.generation.rescore).unwrap_or(SearchParams::DEFAULT_RESCORE)
    }

    /// What scoring a row in full costs, in rows scored on codes.
    pub(super) fn row_price(&self) -> f64 {
        let record = self.record();
        match self.rows_in_memory() {
            true => (record.dim * record.rows.bytes()) as f64 / self.frozen.index.code_bytes() as f64,
            false => DISK_ROW,
        }
    }

    /// The best of some candidates, scored on their rows.
    fn rescored(
        &self,
        candidates: &[Candidate],
        query: &Embedding,
        top_k: usize,
        cost: &mut Cost,
    ) -> Result<Vec<Ranked<'_>>, Error> {
        let query = query.as_slice();
        let slack = self.frozen.index.score_error(query);
        let by_id = |slot: Slot| self.frozen.index.id(slot).0;
        if let Some(rows) = self.frozen.rows.block() {
            let score = |slots: &[u32], out: &mut Vec<f32>| rows.score(slots, query, out);
            let (best, read) = exact::rescore(candidates, top_k, self.ties(&by_id), slack, score);
            cost.rescored_vectors += read as u64;
            return self.ranked(best);
        }
        let (mut by_slot, mut failed) = (HashMap::new(), None);
        let score = |slots: &[u32], out: &mut Vec<f32>| {
            let slots: Vec<Slot> = slots.iter().map(|&slot| Slot(slot)).collect();
            let rows = self.read(&slots).unwrap_or_else(|error| {
                failed = Some(error);
                vec![None; slots.len()]
            });
            out.clear();
            // One that is gone comes after all others, and is left out below.
            let score = |row: &Option<Cow<'_, [f32]>>| {
                row.as_ref().map_or(f32::NEG_INFINITY, |row| Kernels::get().dot(query, row))
            };
            out.extend(rows.iter().map(score));
            by_slot.extend(slots.into_iter().zip(rows).filter_map(|(slot, row)| Some((slot, row?))));
        };
        let (best, read) = exact::rescore(candidates, top_k, self.ties(&by_id), slack, score);
        cost.rescored_vectors += read as u64;
        if let Some(error) = failed {
            return Err(error);
        }
        let ranked = best.into_iter().filter_map(|Scored { slot, score }| {
            let row = by_slot.remove(&slot)?;
            Some(Ranked { id: self.frozen.index.id(slot), score, row })
        });
        Ok(ranked.collect())
    }

    /// The best of all slots that may be found.
    fn scanned(
        &self,
        query: &Embedding,
        top_k: usize,
        params: &SearchParams,
        matching: Option<&Matching>,
        cost: &mut Cost,
    ) -> Result<Vec<Ranked<'_>>, Error> {
        let (frozen, masked, clock) = (&self.frozen, self.delta.masked(), Clock::of(params));
        if frozen.index.is_empty() {
            return Ok(Vec::new());
        }
        let (record, index) = (&frozen.record, &frozen.index);
        let by_id = |slot: Slot| index.id(slot).0;
        if let Some(matching) = matching {
            return self.scanned_list(query, top_k, matching.slots.list(), &clock, cost);
        }
        // Once it is late no row is kept, so that the scan ends.
        let keep = |slot: Slot| {
            let late = if slot.0.is_multiple_of(CLOCK_ROWS) { clock.look() } else { clock.late() };
            !late && (masked.is_empty() || !masked.contains(slot.0))
        };
        cost.scored_vectors += self.live_slots() as u64;
        if let Some(rows) = frozen.rows.block() {
            let score = |slots: &[u32], out: &mut Vec<f32>| rows.score(slots, query.as_slice(), out);
            let best = exact::scan(index.len(), top_k, self.ties(&by_id), keep, score);
            clock.in_time()?;
            return self.ranked(best);
        }
        let mut best = TopK::by(top_k, self.ties(&by_id));
        let mut items = index.items_from(ItemId(0)).peekable();
        let from = items.peek().map_or(ItemId(0), |(id, _)| *id);
        frozen.store.scan_rows(record.id, from, |id, bytes| {
            // Items that were deleted are missing from the scan, others are not in the generation.
            while items.next_if(|(item, _)| *item < id).is_some() {}
            let slot = items.next_if(|(item, _)| *item == id).map(|(_, slot)| slot);
            if let Some(slot) = slot.filter(|&slot| keep(slot)) {
                let row = check_row(&record.name, id, Some(bytes), record.rows, record.dim)?;
                best.push(Scored { slot, score: Kernels::get().dot(query.as_slice(), &row) });
            }
            clock.in_time()?;
            Ok::<bool, Error>(items.peek().is_some())
        })?;
        self.ranked(best.into_sorted())
    }

    /// The best of some slots, ascending.
    fn scanned_list(
        &self,
        query: &Embedding,
        top_k: usize,
        slots: &[u32],
        clock: &Clock,
        cost: &mut Cost,
    ) -> Result<Vec<Ranked<'_>>, Error> {
        cost.scored_vectors += slots.len() as u64;
        let by_id = |slot: Slot| self.frozen.index.id(slot).0;
        if let Some(rows) = self.frozen.rows.block() {
            let best = exact::scan_slots(slots, top_k, self.ties(&by_id), |slots, out| match clock.look() {
                true => out.clear(),
                false => rows.score(slots, query.as_slice(), out),
            });
            clock.in_time()?;
            return self.ranked(best);
        }
        let mut best = TopK::by(top_k, self.ties(&by_id));
        for part in slots.chunks(DISK_ROWS) {
            clock.look();
            clock.in_time()?;
            let part: Vec<Slot> = part.iter().map(|&slot| Slot(slot)).collect();
            for (slot, row) in part.iter().zip(self.read(&part)?) {
                if let Some(row) = row {
                    best.push(Scored { slot: *slot, score: Kernels::get().dot(query.as_slice(), &row) });
                }
            }
        }
        self.ranked(best.into_sorted())
    }

    /// Of equal scores the lesser id comes first: of an index as it was stored that is the lesser slot.
    fn ties<'a>(&self, by_id: &'a (dyn Fn(Slot) -> u64 + Sync)) -> Ties<'a> {
        (!self.frozen.index.in_order()).then_some(by_id)
    }

    fn read(&self, slots: &[Slot]) -> Result<Vec<Option<Cow<'_, [f32]>>>, Error> {
        let Frozen { store, record, index, rows, .. } = &*self.frozen;
        let ids: Vec<ItemId> = slots.iter().map(|&slot| index.id(slot)).collect();
        rows.read(store, record, slots, &ids)
    }

    fn ranked(&self, scored: Vec<Scored>) -> Result<Vec<Ranked<'_>>, Error> {
        let slots: Vec<Slot> = scored.iter().map(|s| s.slot).collect();
        let pairs = scored.into_iter().zip(self.read(&slots)?);
        let one = |(Scored { slot, score }, row): (Scored, Option<_>)| {
            Some(Ranked { id: self.frozen.index.id(slot), score, row: row? })
        };
        Ok(pairs.filter_map(one).collect())
    }

    fn hit(&self, Ranked { id, score, row }: Ranked<'_>) -> Result<Hit, Error> {
        let wrong =
            |e: crate::types::Error| Error::Row { cache: self.record().name.clone(), id, why: e.to_string() };
        Ok(Hit { id, score, embedding: Embedding::new(row.into_owned()).map_err(wrong)? })
    }
}

/// A hit whose row is not copied yet.
struct Ranked<'a> {
    id: ItemId,
    score: f32,
    row: Cow<'a, [f32]>,
}
