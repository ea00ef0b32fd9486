//! A beam down the levels, narrow at the top: the walk, of one query or of several in turn.
//!
//! ```text
//! level 3   ○─►○ ○─►○           a few nodes, whatever the level holds ([`width`])
//! level 2   ○─►○ ○─►○ ○
//! level 1   ○─►○ ○─►○ ○─►○ ○    a share of ef, for many nodes a large one
//! level 0   pool [best … worst], at most ef: expand the best unexpanded, score its unseen links, insert
//! ```
//!
//! The paper descends with one node a level. Of a million rows one query in thirty then comes down in a region that a beam on
//! level 0 does not leave again, and of queries from another modality one in six; so every level hands down all that its
//! pool has found.
//!
//! Scores are those of the codes; the caller rescores the candidates on the stored rows.

use super::found::Cost;
use super::links::Links;
use super::pool::{Pool, key, score_of, slot_of};
use super::quant::{self, Coded, CodedQuery};
use super::sketch::{Sketch, SketchQuery};
use super::visited::Visited;
use super::{Candidate, Error, SearchParams};
use crate::kernels::{self, Kernels, Table};
use crate::types::{Slot, norm};

/// Walks that a thread works on in turn: while one waits for memory, the others do not.
const INTERLEAVED: usize = 4;

/// How wide a walk is on level 0.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Beam {
    ef: usize,
    /// [`SearchParams::margin`], in scores of this query.
    margin: Option<f32>,
}

impl Beam {
    /// As wide as `ef`, whatever is found.
    pub(super) fn wide(ef: usize) -> Self {
        Beam { ef, margin: None }
    }

    /// * `query`: the one that is searched for: its scores grow with its length, and so does what lies between them.
    pub(super) fn of(params: &SearchParams, wanted: usize, query: &[f32]) -> Self {
        let wider = if params.margin.is_some() { SearchParams::WIDER } else { 1 };
        let margin = params.margin.map(|margin| margin * norm(query) as f32);
        Beam { ef: (params.ef_search * wider).max(wanted), margin }
    }
}

/// One thread's scratch for walks; reuse it.
#[derive(Debug, Default)]
pub(super) struct Walks {
    walks: Vec<(Walker, Scratch)>,
}

/// The rows that are walked over: their codes, and their sketch if there is one.
pub(super) type OnWhat<'a, R> = (Coded<'a, R>, Option<&'a Sketch>);

impl Walks {
    /// Walks a graph for one query.
    ///
    /// * `counts`: the slots that count among the best that a margin lies below, if not all do. `check`: ends the work when it
    ///   fails; called now and then.
    pub(super) fn one(
        &mut self,
        graph: &impl Links,
        (coded, sketch): OnWhat<'_, impl Table<u8>>,
        (query, beam): (CodedQuery, Beam),
        counts: Option<&dyn Fn(Slot) -> bool>,
        check: impl Fn(Cost) -> Result<(), Error>,
    ) -> Result<&Walker, Error> {
        self.walks.resize_with(self.walks.len().max(1), Default::default);
        let (walker, scratch) = &mut self.walks[0];
        let mut judge = OnCodes { counts, ..OnCodes::new(coded, sketch, query, scratch) };
        walker.begin(graph, beam, &mut judge);
        while !walker.step(graph, &mut judge) {
            check(walker.cost)?;
        }
        Ok(walker)
    }

    /// Walks a graph for many queries, some at a time.
    ///
    /// * `counts`: as [`Walks::one`] has it. `check`: ends the work when it fails; called now and then. `finish`: takes what was found for the query of a number.
    pub(super) fn all(
        &mut self,
        graph: &impl Links,
        (coded, sketch): OnWhat<'_, impl Table<u8>>,
        queries: impl ExactSizeIterator<Item = (CodedQuery, Beam)>,
        counts: Option<&dyn Fn(Slot) -> bool>,
        check: impl Fn(Cost) -> Result<(), Error>,
        mut finish: impl FnMut(usize, &Walker),
    ) -> Result<(), Error> {
        let width = INTERLEAVED.min(queries.len());
        self.walks.resize_with(self.walks.len().max(width), Default::default);
        let mut waiting = queries.enumerate();
        let mut flights: Vec<_> = Vec::with_capacity(width);
        for (walker, scratch) in &mut self.walks[..width] {
            if let Some((at, (query, beam))) = waiting.next() {
                let mut judge = OnCodes { counts, ..OnCodes::new(coded, sketch, query, scratch) };
                walker.begin(graph, beam, &mut judge);
                flights.push((at, walker, judge));
            }
        }
        while let Some((_, walker, _)) = flights.first() {
            check(walker.cost)?;
            flights.retain_mut(|(at, walker, judge)| {
                if !walker.advance(graph, judge) {
                    return true;
                }
                finish(*at, walker);
                let Some((next, (query, beam))) = waiting.next() else { return false };
                *at = next;
                judge.turn(query);
                walker.begin(graph, beam, judge);
                true
            });
        }
        Ok(())
    }
}

/// What a walk judges nodes by.
pub(super) trait Judge {
    /// One score a slot, into `scores`, which is cleared first.
    fn score(&mut self, slots: &[u32], scores: &mut Vec<f32>);

    /// Whether a slot counts among the best that a margin lies below.
    fn counts(&self, _slot: u32) -> bool {
        true
    }

    /// Fetches what [`Judge::sift`] will read of these slots.
    fn fetch(&self, _slots: &[u32]) {}

    /// The slots whose score may reach `floor`, if there is one, into `kept`, which is cleared first.
    fn sift(&mut self, slots: &[u32], _floor: Option<f32>, kept: &mut Vec<u32>) {
        kept.clear();
        kept.extend_from_slice(slots);
    }
}

/// Scores on codes, behind their sketch if there is one.
struct OnCodes<'a, R> {
    coded: Coded<'a, R>,
    sketch: Option<&'a Sketch>,
    query: CodedQuery,
    scratch: &'a mut Scratch,
    /// The slots that count, if not all do.
    counts: Option<&'a dyn Fn(Slot) -> bool>,
}

/// Buffers of [`OnCodes`].
#[derive(Debug, Default)]
struct Scratch {
    integers: Vec<i32>,
    aim: SketchQuery,
}

impl<'a, R: Table<u8>> OnCodes<'a, R> {
    fn new(
        coded: Coded<'a, R>,
        sketch: Option<&'a Sketch>,
        query: CodedQuery,
        scratch: &'a mut Scratch,
    ) -> Self {
        let mut judge =
            OnCodes { coded, sketch, query: CodedQuery::Float(Vec::new()), scratch, counts: None };
        judge.turn(query);
        judge
    }

    /// Turns to another query.
    fn turn(&mut self, query: CodedQuery) {
        if let (CodedQuery::Integer { values, mean, unit, .. }, Some(sketch)) = (&query, self.sketch) {
            sketch.aim(values, *unit, *mean, &mut self.scratch.aim);
        }
        self.query = query;
    }

    /// Fetches the codes of the first rows; the kernel that scores them fetches the others.
    fn fetch_codes(&self, slots: &[u32]) {
        let stride = self.coded.codec.stride();
        for &slot in slots.iter().take(FETCHED) {
            kernels::prefetch(self.coded.codes.row(slot, stride));
        }
    }
}

/// Rows whose codes are fetched before the first is scored.
const FETCHED: usize = 8;

impl<R: Table<u8>> Judge for OnCodes<'_, R> {
    fn score(&mut self, slots: &[u32], scores: &mut Vec<f32>) {
        let Coded { codec, codes } = self.coded;
        let integers = &mut self.scratch.integers;
        quant::score(Kernels::get(), codes, slots, &self.query, codec.kind(), integers, scores);
    }

    fn counts(&self, slot: u32) -> bool {
        self.counts.is_none_or(|counts| counts(Slot(slot)))
    }

    fn fetch(&self, slots: &[u32]) {
        match self.sketch {
            Some(sketch) => sketch.fetch(slots),
            None => self.fetch_codes(slots),
        }
    }

    fn sift(&mut self, slots: &[u32], floor: Option<f32>, kept: &mut Vec<u32>) {
        kept.clear();
        match (self.sketch, floor) {
            (Some(sketch), Some(floor)) => sketch.sift(&mut self.scratch.aim, slots, floor, kept),
            _ => kept.extend_from_slice(slots),
        }
        if self.sketch.is_some() {
            self.fetch_codes(kept);
        }
    }
}

/// The walk itself, for any graph and any judge.
///
/// ```text
/// look      read the links of the node to expand, fetch what sifting reads   ┐
/// sift      pass over what cannot matter, fetch the codes of the rest        ├ once a node, each after the last one's
/// score     insert into the pool, choose the next node, fetch its links      ┘ memory has had time to come
/// ```
#[derive(Debug, Default)]
pub(super) struct Walker {
    visited: Visited,
    pool: Pool,
    phase: Phase,
    level: usize,
    beam: Beam,
    /// On level 0 of a beam with a margin, the score of the tenth best that counts.
    tenth: Option<f32>,
    /// What is expanded, and what probably comes next.
    now: Step,
    next: Step,
    scores: Vec<f32>,
    cost: Cost,
}

/// What is done next.
#[derive(Debug, Default, Clone, Copy)]
enum Phase {
    Look(u32),
    Sift,
    Score,
    #[default]
    Done,
}

/// Rows from which on every level hands down two nodes at least: with one, two or three in a thousand narrow beams still come
/// down in the wrong region of a million rows, of 100k none.
const TWO_FROM: usize = 250_000;
/// A level of so many nodes hands down as many nodes as the beam on level 0 is wide. Synthetic 1M (62 000 nodes on level 1)
/// wants an eighth of it and gains little by a quarter; at 100k (6000) more than one cost more than they find.
const FULL_WIDTH: usize = 500_000;

/// Beam of a level of `nodes` nodes above a beam of `ef` over all `rows`.
fn width(nodes: usize, rows: usize, ef: usize) -> usize {
    let share = ef as f64 * nodes as f64 / FULL_WIDTH as f64;
    let least = if rows < TWO_FROM { 1 } else { 2 };
    (share as usize).max(least).min(ef)
}

/// The expansion of one node.
#[derive(Debug, Default)]
struct Step {
    slot: Option<u32>,
    /// Its links that have not been seen.
    unseen: Vec<u32>,
    /// Those of them that are worth a score.
    kept: Vec<u32>,
}

impl Step {
    fn look(
        &mut self,
        graph: &impl Links,
        (level, slot): (usize, u32),
        visited: &Visited,
        judge: &impl Judge,
    ) {
        self.slot = Some(slot);
        let most = graph.most_links(level, slot);
        self.unseen.resize(most, 0);
        let mut count = 0;
        // Whether a node has been seen is anyone's guess, the processor's as well: no branch.
        graph.each_link(level, slot, |to| {
            self.unseen[count] = to;
            count += usize::from(!visited.contains(to));
        });
        self.unseen.truncate(count);
        judge.fetch(&self.unseen);
    }
}

impl Walker {
    /// As [`Walker::advance`], for a walk that has its thread to itself.
    fn step(&mut self, graph: &impl Links, judge: &mut impl Judge) -> bool {
        // Unless something better is found, the next node is known: look at its links while the codes come.
        if matches!(self.phase, Phase::Score) {
            self.next.slot = None;
            if let Some(guess) = self.pool.peek_next() {
                self.next.look(graph, (self.level, guess), &self.visited, judge);
            }
        }
        self.advance(graph, judge)
    }

    /// The work that the walk took.
    pub(super) fn cost(&self) -> Cost {
        self.cost
    }

    /// What the last walk collected, best first.
    pub(super) fn found(&self) -> impl Iterator<Item = Candidate> {
        self.pool.keys().iter().map(|&key| Candidate { slot: Slot(slot_of(key)), score: score_of(key) })
    }

    /// Begins a walk, which comes down to level 0 and collects the best `ef` nodes it meets there; [`Walker::advance`] goes on
    /// with it.
    fn begin(&mut self, graph: &impl Links, beam: Beam, judge: &mut impl Judge) {
        self.beam = beam;
        judge.score(&[graph.entry()], &mut self.scores);
        self.cost = Cost { scored_vectors: 1, ..Cost::default() };
        self.pool.begin();
        self.pool.insert(key(self.scores[0], graph.entry()));
        self.land(graph, graph.upper_levels(), judge);
        self.choose(graph, judge);
    }

    /// Begins a level with what the pool holds.
    fn land(&mut self, graph: &impl Links, level: usize, judge: &impl Judge) {
        self.level = level;
        self.pool.reopen(match level.checked_sub(1) {
            None => self.beam.ef,
            Some(upper) => width(graph.upper_len(upper), graph.len(), self.beam.ef),
        });
        self.visited.begin(graph.len());
        for &key in self.pool.keys() {
            self.visited.insert(slot_of(key));
        }
        self.next.slot = None;
        self.rank(judge);
    }

    /// Looks for the tenth best again, after something better has come.
    fn rank(&mut self, judge: &impl Judge) {
        self.tenth = None;
        if self.level == 0 && self.beam.margin.is_some() {
            let mut counting = self.pool.keys().iter().filter(|&&key| judge.counts(slot_of(key)));
            self.tenth = counting.nth(SearchParams::MARGIN_RANK - 1).map(|&tenth| score_of(tenth));
        }
    }

    /// The least score that the walk goes on from on level 0, by the margin.
    fn least(&self) -> Option<f32> {
        Some(self.tenth? - self.beam.margin?)
    }

    /// The score that a row must beat to be of use.
    fn floor(&self) -> Option<f32> {
        match (self.pool.floor(), self.least()) {
            (Some(full), Some(least)) => Some(full.max(least)),
            (full, least) => full.or(least),
        }
    }

    /// Does what can be done without waiting for memory. True when the walk has ended.
    fn advance(&mut self, graph: &impl Links, judge: &mut impl Judge) -> bool {
        match self.phase {
            Phase::Look(slot) => {
                self.cost.visited_nodes += 1;
                if self.next.slot == Some(slot) {
                    std::mem::swap(&mut self.now, &mut self.next);
                } else {
                    self.now.look(graph, (self.level, slot), &self.visited, judge);
                }
                self.next.slot = None;
                // A row that was being written may have named a node twice.
                self.visited.admit(&mut self.now.unseen);
                self.phase = Phase::Sift;
            }
            Phase::Sift => {
                judge.sift(&self.now.unseen, self.floor(), &mut self.now.kept);
                self.phase = Phase::Score;
            }
            Phase::Score => {
                let kept = &self.now.kept;
                self.cost.scored_vectors += kept.len() as u64;
                judge.score(kept, &mut self.scores);
                let mut better = false;
                for (&slot, &score) in kept.iter().zip(&self.scores) {
                    better |= self.tenth.is_none_or(|tenth| score > tenth);
                    if self.pool.insert(key(score, slot)) {
                        graph.fetch_links(self.level, slot);
                    }
                }
                if better {
                    self.rank(judge);
                }
                self.choose(graph, judge);
            }
            Phase::Done => return true,
        }
        false
    }

    /// Takes the best node that is not expanded, on the next level where this one has none, and fetches its links and those
    /// of the one after it.
    fn choose(&mut self, graph: &impl Links, judge: &impl Judge) {
        let mut next = self.pool.expand_next(self.least().unwrap_or(f32::NEG_INFINITY));
        while next.is_none() && self.level > 0 {
            self.land(graph, self.level - 1, judge);
            next = self.pool.expand_next(f32::NEG_INFINITY);
        }
        self.phase = match next {
            Some(slot) => {
                graph.fetch_links(self.level, slot);
                Phase::Look(slot)
            }
            None => Phase::Done,
        };
        if let Some(after) = self.pool.peek_next() {
            graph.fetch_links(self.level, after);
        }
    }
}
