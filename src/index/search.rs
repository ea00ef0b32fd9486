//! A beam down the levels, narrow at the top.
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

use std::time::Instant;

use super::filter::Stepper;
use super::pool::{Pool, key, score_of, slot_of};
use super::quant::{self, Coded, CodedQuery};
use super::scan::Scanner;
use super::sketch::{Aim, Sketch};
use super::view::Index;
use super::visited::Visited;
use super::{Error, SearchParams};
use crate::kernels::{self, Kernels};
use crate::types::Slot;

/// A slot and its score on codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Where.
    pub slot: Slot,
    /// Approximate inner product with the query.
    pub score: f32,
}

/// The work a search did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Nodes whose links were read.
    pub visited_nodes: u64,
    /// Rows scored to find candidates: on codes, or in full where they are scanned.
    pub scored_vectors: u64,
    /// Candidates scored again in full.
    pub rescored_vectors: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.visited_nodes += other.visited_nodes;
        self.scored_vectors += other.scored_vectors;
        self.rescored_vectors += other.rescored_vectors;
    }
}

/// A layered graph to walk: an [`Index`], or one that is being built.
pub(super) trait Links {
    /// Number of nodes.
    fn len(&self) -> usize;
    /// The slot every search begins at, on the top level.
    fn entry(&self) -> u32;
    /// Levels above 0.
    fn upper_levels(&self) -> usize;
    /// Nodes that reach level `level + 1`.
    fn upper_len(&self, level: usize) -> usize;
    /// The links of a slot on level `level + 1`; none when it does not reach it.
    fn upper_links(&self, level: usize, slot: u32) -> &[u32];
    /// The level-0 row of a slot, degree first.
    fn row(&self, slot: u32) -> &[u32];
    /// The level-0 links of a slot.
    fn links(&self, slot: u32) -> &[u32] {
        let row = self.row(slot);
        &row[1..][..row[0] as usize]
    }
    /// The links of a slot on a level, 0 or above.
    fn links_on(&self, level: usize, slot: u32) -> &[u32] {
        match level.checked_sub(1) {
            None => self.links(slot),
            Some(upper) => self.upper_links(upper, slot),
        }
    }
    /// Fetches what [`Links::links_on`] will read.
    fn fetch_links(&self, level: usize, slot: u32) {
        match level.checked_sub(1) {
            None => kernels::prefetch(self.row(slot)),
            Some(upper) => kernels::prefetch(self.upper_links(upper, slot)),
        }
    }
}

/// How wide a walk is on level 0.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Beam {
    ef: usize,
    /// [`SearchParams::margin`].
    margin: Option<f32>,
}

impl Beam {
    /// As wide as `ef`, whatever is found.
    pub(super) fn wide(ef: usize) -> Self {
        Beam { ef, margin: None }
    }

    fn of(params: &SearchParams, wanted: usize) -> Self {
        let wider = if params.margin.is_some() { SearchParams::WIDER } else { 1 };
        Beam { ef: (params.ef_search * wider).max(wanted), margin: params.margin }
    }
}

/// One thread's scratch for searching any index; reuse it.
#[derive(Debug, Default)]
pub struct Searcher {
    walks: Vec<(Walker, Scratch)>,
    stepper: Stepper,
    scanner: Scanner,
    integers: Vec<i32>,
}

/// Queries that a thread of [`Searcher::search_all`] works on in turn: while one waits for memory, the others do not.
const INTERLEAVED: usize = 4;

/// Candidates, best first by their score on codes, and the work it took.
pub type Candidates = (Vec<Candidate>, Cost);

impl Searcher {
    /// The best candidates of a query, best first, by their score on codes.
    ///
    /// * `query`: length D. `wanted`: how many, at least 1; fewer come back only from a smaller index.
    ///
    /// # Errors
    /// [`Error::Dimension`], [`Error::Parameter`].
    pub fn search(
        &mut self,
        index: &Index,
        query: &[f32],
        wanted: usize,
        params: &SearchParams,
    ) -> Result<Candidates, Error> {
        self.search_counting(index, query, wanted, params, None)
    }

    /// As [`Searcher::search`], with the margin below the tenth best of the slots that count, if not all do. The others are
    /// among the candidates all the same.
    pub(super) fn search_counting(
        &mut self,
        index: &Index,
        query: &[f32],
        wanted: usize,
        params: &SearchParams,
        counts: Option<&dyn Fn(Slot) -> bool>,
    ) -> Result<Candidates, Error> {
        params.validate()?;
        check(index, query)?;
        self.walks.resize_with(self.walks.len().max(1), Default::default);
        let (walker, scratch) = &mut self.walks[0];
        let query = index.codec().code_query(query);
        let mut judge = OnCodes { counts, ..OnCodes::new(index.coded(), index.sketch(), query, scratch) };
        walker.begin(index, Beam::of(params, wanted), &mut judge);
        while !walker.step(index, &mut judge) {
            check_deadline(params, walker.cost)?;
        }
        Ok((walker.found().take(wanted).collect(), walker.cost))
    }

    /// As [`Searcher::search`], for many queries, some at a time: what one waits for, the others hide. The answers are the
    /// same.
    ///
    /// # Errors
    /// As [`Searcher::search`], for the first query that is wrong.
    pub fn search_all(
        &mut self,
        index: &Index,
        queries: &[&[f32]],
        wanted: usize,
        params: &SearchParams,
    ) -> Result<Vec<Candidates>, Error> {
        params.validate()?;
        queries.iter().try_for_each(|query| check(index, query))?;
        let mut answers: Vec<Candidates> = vec![Default::default(); queries.len()];
        self.walk_all(
            index,
            (index.coded(), index.sketch()),
            queries.iter().map(|query| index.codec().code_query(query)),
            Beam::of(params, wanted),
            |cost| check_deadline(params, cost),
            |at, walker| answers[at] = (walker.found().take(wanted).collect(), walker.cost),
        )?;
        Ok(answers)
    }

    /// Walks a graph for many queries, some at a time.
    ///
    /// * `check`: ends the work when it fails; called now and then. `finish`: takes what was found for the query of a number.
    pub(super) fn walk_all(
        &mut self,
        graph: &impl Links,
        (coded, sketch): (Coded<'_>, Option<&Sketch>),
        queries: impl ExactSizeIterator<Item = CodedQuery>,
        beam: Beam,
        check: impl Fn(Cost) -> Result<(), Error>,
        mut finish: impl FnMut(usize, &Walker),
    ) -> Result<(), Error> {
        let width = INTERLEAVED.min(queries.len());
        self.walks.resize_with(self.walks.len().max(width), Default::default);
        let mut waiting = queries.enumerate();
        let mut flights: Vec<_> = Vec::with_capacity(width);
        for (walker, scratch) in &mut self.walks[..width] {
            if let Some((at, query)) = waiting.next() {
                let mut judge = OnCodes::new(coded, sketch, query, scratch);
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
                let Some((next, query)) = waiting.next() else { return false };
                *at = next;
                judge.turn(query);
                walker.begin(graph, beam, judge);
                true
            });
        }
        Ok(())
    }

    /// The scratch of [`Searcher::search_among`], and the one for scores.
    pub(super) fn stepper(&mut self) -> (&mut Stepper, &mut Vec<i32>) {
        (&mut self.stepper, &mut self.integers)
    }

    /// The scratch of [`Searcher::find`].
    pub(super) fn scanner(&mut self) -> &mut Scanner {
        &mut self.scanner
    }
}

/// Looks at the clock once in some nodes: a look costs as much as scoring a row.
pub(super) fn check_deadline(params: &SearchParams, cost: Cost) -> Result<(), Error> {
    match params.deadline {
        Some(deadline) if cost.visited_nodes.is_multiple_of(32) && Instant::now() >= deadline => {
            Err(Error::Deadline)
        }
        _ => Ok(()),
    }
}

pub(super) fn check(index: &Index, query: &[f32]) -> Result<(), Error> {
    match query.len() == index.dim() {
        true => Ok(()),
        false => Err(Error::Dimension { expected: index.dim(), received: query.len() }),
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
struct OnCodes<'a> {
    coded: Coded<'a>,
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
    aim: Aim,
}

impl<'a> OnCodes<'a> {
    fn new(
        coded: Coded<'a>,
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
            kernels::prefetch(&self.coded.codes[slot as usize * stride..][..stride]);
        }
    }
}

/// Rows whose codes are fetched before the first is scored.
const FETCHED: usize = 8;

impl Judge for OnCodes<'_> {
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
        let links = graph.links_on(level, slot);
        self.unseen.resize(links.len(), 0);
        let mut count = 0;
        // Whether a node has been seen is anyone's guess, the processor's as well: no branch.
        for &to in links {
            self.unseen[count] = to;
            count += usize::from(!visited.contains(to));
        }
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
                self.visited.extend(&self.now.unseen);
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

#[cfg(test)]
mod tests {
    use super::super::{AlignedBytes, BuildParams, CodeKind, Codec, Parts, build, exact};
    use super::*;
    use crate::types::ItemId;

    /// Rows around a few centres and queries near them, with the index of their 4-bit or wider codes.
    fn clustered(kind: CodeKind) -> (Vec<f32>, Vec<Vec<f32>>, Index) {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let centres: Vec<f32> = (0..20 * DIM).map(|_| next()).collect();
        let mut row = |noise: f32| {
            let centre = ((next() + 0.5) * 19.9) as usize * DIM;
            let mut row: Vec<f32> = centres[centre..][..DIM].iter().map(|c| c + noise * next()).collect();
            let norm = crate::types::norm(&row) as f32;
            row.iter_mut().for_each(|v| *v /= norm);
            row
        };
        let rows: Vec<f32> = (0..3000).flat_map(|_| row(1.0)).collect();
        let queries = (0..100).map(|_| row(1.5)).collect();
        let codec = Codec::train(kind, &rows, DIM);
        let params = BuildParams { m: 8, ef_construction: 40, threads: 1, ..Default::default() };
        let graph = build(&params, &codec, &rows, &[], |_, _| ()).unwrap();
        let ids: Vec<ItemId> = (0..3000).map(ItemId).collect();
        let mut bytes = Vec::new();
        Parts { graph: &graph, codec: &codec, ids: &ids, codes: &codec.encode(&rows) }
            .write(&mut bytes)
            .unwrap();
        (rows, queries, Index::open(AlignedBytes::copy_of(&bytes).unwrap()).unwrap())
    }

    const DIM: usize = 128;

    #[test]
    fn queries_in_turn_get_the_answers_they_get_alone() {
        for kind in [CodeKind::U4, CodeKind::U8, CodeKind::F32] {
            let (_, queries, index) = clustered(kind);
            let all: Vec<&[f32]> = queries.iter().map(Vec::as_slice).collect();
            let params = SearchParams { ef_search: 24, ..Default::default() };
            let mut searcher = Searcher::default();
            for some in [&all[..0], &all[..1], &all[..3], &all[..]] {
                let together = searcher.search_all(&index, some, 15, &params).unwrap();
                let alone = some.iter().map(|q| searcher.search(&index, q, 15, &params).unwrap());
                assert_eq!(together, alone.collect::<Vec<_>>(), "{kind:?}");
            }
        }
    }

    #[test]
    fn passing_over_rows_by_their_signs_costs_little_recall_and_saves_much() {
        let (rows, queries, index) = clustered(CodeKind::U4);
        let (_, _, wide) = clustered(CodeKind::F32);
        let params = SearchParams { ef_search: 64, ..Default::default() };
        let mut searcher = Searcher::default();
        let (mut recall, mut scored) = ([0.0; 2], [0; 2]);
        for query in &queries {
            let truth: Vec<u32> = exact::search(&rows, query, 10).iter().map(|s| s.slot.0).collect();
            for (i, index) in [&index, &wide].into_iter().enumerate() {
                let (found, cost) = searcher.search(index, query, 40, &params).unwrap();
                let found: Vec<u32> = found.iter().map(|c| c.slot.0).collect();
                recall[i] += exact::recall(&truth, &found) / queries.len() as f64;
                scored[i] += cost.scored_vectors;
            }
        }
        assert!(recall[0] > recall[1] - 0.02, "{recall:?}");
        assert!(10 * scored[0] < 9 * scored[1], "{scored:?}");
    }

    #[test]
    fn a_margin_ends_a_beam_and_a_wide_one_only_widens_it() {
        for kind in [CodeKind::U4, CodeKind::U8] {
            let (_, queries, index) = clustered(kind);
            let all: Vec<&[f32]> = queries.iter().map(Vec::as_slice).collect();
            let mut searcher = Searcher::default();
            let mut search = |ef_search, margin| {
                let params = SearchParams { ef_search, margin, ..Default::default() };
                let together = searcher.search_all(&index, &all, 15, &params).unwrap();
                for (query, found) in all.iter().zip(&together) {
                    assert_eq!(searcher.search(&index, query, 15, &params).unwrap(), *found, "{kind:?}");
                }
                together
            };
            assert_eq!(search(24, Some(10.0)), search(48, None));
            let work = |found: &[Candidates]| found.iter().map(|(_, cost)| cost.visited_nodes).sum::<u64>();
            let (wide, near) = (search(48, None), search(24, Some(0.01)));
            assert!(work(&near) < work(&wide), "{kind:?}: {} of {}", work(&near), work(&wide));
            // Without signs, whose errors may lead elsewhere, it is the beginning of the wide walk.
            for ((near, cost), (wide, all)) in near.iter().zip(&wide).filter(|_| kind == CodeKind::U8) {
                assert!(cost.visited_nodes <= all.visited_nodes && cost.scored_vectors <= all.scored_vectors);
                assert!(near.iter().zip(wide).all(|(near, wide)| near.score <= wide.score));
            }
            let params = SearchParams { ef_search: 24, margin: Some(0.01), ..Default::default() };
            let for_hits = [10, 11].map(|top_k| params.for_hits(top_k));
            assert_eq!(
                for_hits.map(|params| (params.ef_search, params.margin)),
                [(24, Some(0.01)), (48, None)]
            );
            assert_eq!(for_hits[1].without_margin(), for_hits[1]);
            let params = SearchParams { margin: Some(0.0), ..params };
            assert!(matches!(
                searcher.search(&index, all[0], 10, &params),
                Err(Error::Parameter { name: "margin", .. })
            ));
        }
    }

    #[test]
    fn a_deadline_ends_a_search() {
        let (_, queries, index) = clustered(CodeKind::U4);
        let past = std::time::Instant::now() - std::time::Duration::from_millis(1);
        let params = SearchParams { deadline: Some(past), ..Default::default() };
        let mut searcher = Searcher::default();
        let all: Vec<&[f32]> = queries.iter().map(Vec::as_slice).collect();
        assert!(matches!(searcher.search(&index, all[0], 10, &params), Err(Error::Deadline)));
        assert!(matches!(searcher.search_all(&index, &all, 10, &params), Err(Error::Deadline)));
        let params = SearchParams { deadline: None, ..params };
        assert_eq!(searcher.search(&index, all[0], 10, &params).unwrap().0.len(), 10);
    }
}
