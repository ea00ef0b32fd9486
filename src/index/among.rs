//! Searching among some of the slots: which way, and the walk that steps over the others.
//!
//! ```text
//! allowed slots ─► their number, and what scanning them costs
//!    │  nearly all   graph            the beam, wider; what is not allowed is dropped from its end
//!    │  fewer        graph with skip  every node is walked through, only allowed ones take a place among the best
//!    │                                └─ until its purse is empty: then exact
//!    └─ few          exact            scanned on codes, and the best of that rescored on the rows
//! ```
//!
//! **The plan is a price.** A scan costs its rows. A walk has to fill its beam with allowed nodes, and a beam of `ef` among a
//! share `s` of the nodes sees what one of `ef/s` sees, if the allowed ones lie evenly. They need not: where all of them
//! lie far from the query, the walk finds fewer than it should and would go on to the end of the graph. So it has a purse
//! ([`super::ScanPrice::purse`]): walk and scan together cost less than scoring the allowed rows in full, and no answer is a poor
//! one for want of work. Prices are counts, not times: the same query takes the same way on every machine.
//!
//! Source of the walk: hnswlib's `searchBaseLayerST` with a filter. Left out: links of links (ACORN, SIGMOD 2024), which
//! would walk among rarer nodes; there the scan of codes is cheap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::found::{Candidates, check_deadline};
use super::links::Links;
use super::pool::{key, score_of, slot_of};
use super::price::{STEP, walk_price};
use super::quant;
use super::view::Index;
use super::visited::Visited;
use super::walk::{Beam, Walks};
use super::{Candidate, Cost, Error, Plan, SearchParams};
use crate::kernels::Kernels;
use crate::types::Slot;

/// Share of allowed slots from which on the others are dropped from the end of a common beam.
const NEARLY_ALL: f64 = 0.8;
/// Share of the expected matches that such a beam must hold. With fewer, they lie behind what was dropped, at the beam's
/// ragged end: at half of all, in one corner, 0.96 of the ten best were found there, and 0.99 by stepping over.
const EXPECTED: f64 = 0.75;
/// Beam that looks for the query's whereabouts before the walk.
const START_EF: usize = 8;

/// The slots that a search may find.
pub struct Among<F> {
    /// Whether a slot is one of them.
    pub allowed: F,
    /// How many they are.
    pub count: usize,
    /// What a walk may cost, in rows scored by a scan of codes.
    pub purse: f64,
    /// Whether to begin on the graph even where a scan costs less: a search without a filter has its beam from the caller.
    pub graph_first: bool,
}

impl<F: Fn(Slot) -> bool> Among<F> {
    /// Which way to begin, for a beam of `ef`.
    fn plan(&self, index: &Index, ef: usize) -> Plan {
        let share = self.count as f64 / index.len() as f64;
        let walk = walk_price(index.row_len(), ef as f64 / share).min(STEP * index.len() as f64);
        match share {
            _ if self.count == 0 || (self.purse <= walk && !self.graph_first) => Plan::Exact,
            share if share >= NEARLY_ALL => Plan::Graph,
            _ => Plan::GraphWithSkip,
        }
    }
}

impl<F: Fn(Slot) -> bool> Among<F> {
    /// The beam of a common walk from whose end the others are dropped, and how many must be left.
    fn widened(&self, index: &Index, wanted: usize, params: &SearchParams) -> (SearchParams, usize) {
        let wider = |ef: usize| {
            let wider = (ef as f64 * index.len() as f64 / self.count as f64).ceil() as usize;
            wider.min(SearchParams::MAX_EF_SEARCH)
        };
        // Where all of a beam is wanted back, chance must not leave too few.
        let places = params.without_margin().ef_search.max(wanted + wanted / 4);
        let (ef_search, needed) = match params.margin {
            None => (wider(places), wanted.max((EXPECTED * places as f64) as usize)),
            // It ends below the tenth that counts, however many others there were.
            Some(_) => (wider(params.ef_search), wanted.min(SearchParams::MARGIN_RANK)),
        };
        (SearchParams { ef_search, ..*params }, needed.min(self.count))
    }
}

/// One of many queries that are walked for together: what it found, if that is enough, and the work.
pub(super) type Walked = (Option<Vec<Candidate>>, Cost);

/// As [`Stepper::search`], for many queries by one common walk each, some at a time; nothing where that is not the way.
pub(super) fn walked_all(
    walks: &mut Walks,
    index: &Index,
    queries: &[&[f32]],
    wanted: usize,
    params: &SearchParams,
    among: &Among<impl Fn(Slot) -> bool>,
) -> Result<Option<Vec<Walked>>, Error> {
    if params.scan || among.plan(index, params.without_margin().ef_search.max(wanted)) != Plan::Graph {
        return Ok(None);
    }
    let (wide, needed) = among.widened(index, wanted, params);
    let all = wide.without_margin().ef_search;
    let mut answers: Vec<Walked> = vec![Default::default(); queries.len()];
    walks.all(
        index,
        (index.coded(), index.sketch()),
        queries.iter().map(|query| (index.codec().code_query(query), Beam::of(&wide, all, query))),
        Some(&among.allowed),
        |cost| check_deadline(params, cost),
        |at, walker| {
            let allowed = walker.found().take(all).filter(|candidate| (among.allowed)(candidate.slot));
            let mut kept: Vec<Candidate> = allowed.collect();
            let enough = kept.len() >= needed;
            kept.truncate(wanted);
            answers[at] = (enough.then_some(kept), walker.cost());
        },
    )?;
    Ok(Some(answers))
}

/// One thread's scratch for the walk that steps over nodes.
#[derive(Debug, Default)]
pub(super) struct Stepper {
    visited: Visited,
    /// Nodes whose links are not yet read, best first.
    open: BinaryHeap<u64>,
    /// The best allowed nodes, worst first.
    kept: BinaryHeap<Reverse<u64>>,
    fresh: Vec<u32>,
    scores: Vec<f32>,
    integers: Vec<i32>,
}

/// The best candidates of a query, best first, with the margin below the tenth best of the slots that count, if not all do. The
/// others are among the candidates all the same.
pub(super) fn walked(
    walks: &mut Walks,
    index: &Index,
    query: &[f32],
    wanted: usize,
    params: &SearchParams,
    counts: Option<&dyn Fn(Slot) -> bool>,
) -> Result<Candidates, Error> {
    let query = (index.codec().code_query(query), Beam::of(params, wanted, query));
    let on = (index.coded(), index.sketch());
    let walker = walks.one(index, on, query, counts, |cost| check_deadline(params, cost))?;
    Ok((walker.found().take(wanted).collect(), walker.cost()))
}

impl Stepper {
    /// As [`super::Searcher::search_among`], of a query that was checked.
    pub(super) fn search(
        &mut self,
        walks: &mut Walks,
        index: &Index,
        query: &[f32],
        wanted: usize,
        params: &SearchParams,
        among: &Among<impl Fn(Slot) -> bool>,
        cost: &mut Cost,
    ) -> Result<(Plan, Vec<Candidate>), Error> {
        let plain = params.without_margin();
        let ef = plain.ef_search.max(wanted);
        let mut spent = Cost::default();
        let plan = if params.scan { Plan::Exact } else { among.plan(index, ef) };
        let mut found = match plan {
            Plan::Exact | Plan::Scan => return Ok((Plan::Exact, Vec::new())),
            Plan::GraphWithSkip => None,
            Plan::Graph => {
                let (wide, needed) = among.widened(index, wanted, params);
                let all = wide.without_margin().ef_search;
                let (mut kept, work) = walked(walks, index, query, all, &wide, Some(&among.allowed))?;
                spent = work;
                kept.retain(|candidate| (among.allowed)(candidate.slot));
                let enough = kept.len() >= needed;
                kept.truncate(wanted);
                enough.then_some((Plan::Graph, kept))
            }
        };
        if found.is_none() {
            let purse = ((among.purse / STEP) as u64).saturating_sub(spent.scored_vectors);
            let (candidates, work) =
                self.step_over(walks, index, query, ef, &plain, &among.allowed, purse)?;
            spent += work;
            found = candidates.map(|mut best| {
                best.truncate(wanted);
                (Plan::GraphWithSkip, best)
            });
        }
        *cost += spent;
        Ok(found.unwrap_or((Plan::Exact, Vec::new())))
    }

    /// The best `ef` allowed nodes, best first; nothing when more than `purse` rows would have to be scored for them.
    fn step_over(
        &mut self,
        walks: &mut Walks,
        index: &Index,
        query: &[f32],
        ef: usize,
        params: &SearchParams,
        allowed: &impl Fn(Slot) -> bool,
        purse: u64,
    ) -> Result<(Option<Vec<Candidate>>, Cost), Error> {
        // A narrow beam leads from the entry to the query's whereabouts.
        let narrow = SearchParams { ef_search: START_EF, ..*params };
        let (start, mut cost) = walked(walks, index, query, START_EF, &narrow, None)?;
        let coded = index.codec().code_query(query);
        let (kernels, codes, kind) = (Kernels::get(), index.coded().codes, index.codec().kind());
        let Stepper { visited, open, kept, fresh, scores, integers } = self;
        visited.begin(index.len());
        open.clear();
        kept.clear();
        fresh.clear();
        fresh.extend(start.iter().map(|start| start.slot.0).filter(|&slot| visited.insert(slot)));
        loop {
            cost.scored_vectors += fresh.len() as u64;
            quant::score(kernels, codes, fresh, &coded, kind, integers, scores);
            for (&slot, &score) in fresh.iter().zip(&*scores) {
                let key = key(score, slot);
                let worst = kept.peek().filter(|_| kept.len() == ef);
                if worst.is_some_and(|&Reverse(worst)| key < worst) {
                    continue;
                }
                open.push(key);
                if allowed(Slot(slot)) {
                    if worst.is_some() {
                        kept.pop();
                    }
                    kept.push(Reverse(key));
                }
            }
            let worst = kept.peek().filter(|_| kept.len() == ef);
            let next = open.pop().filter(|next| worst.is_none_or(|&Reverse(worst)| *next >= worst));
            let Some(next) = next else { break };
            if cost.scored_vectors > purse {
                return Ok((None, cost));
            }
            check_deadline(params, cost)?;
            cost.visited_nodes += 1;
            fresh.clear();
            index.each_link(0, slot_of(next), |to| fresh.extend(Some(to).filter(|&to| visited.insert(to))));
            if let Some(&after) = open.peek() {
                index.fetch_links(0, slot_of(after));
            }
        }
        let best = kept.drain().map(|Reverse(key)| key);
        let mut best: Vec<u64> = best.collect();
        best.sort_unstable_by_key(|&key| Reverse(key));
        let candidate = |key| Candidate { slot: Slot(slot_of(key)), score: score_of(key) };
        Ok((Some(best.into_iter().map(candidate).collect()), cost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::exact::recall;
    use crate::index::{BuildParams, CodeKind, Codec, Parts, Searcher, build};
    use crate::types::ItemId;

    const DIM: usize = 24;
    const NODES: usize = 3000;

    /// A name, the allowed slots, and how they should be searched.
    type Way = (&'static str, fn(u32) -> bool, Plan);

    /// Rows around thirty centres, in the order of the centres; the last ones are queries.
    fn rows() -> Vec<f32> {
        let mut state = 0x9E37_79B9u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 - 0.5
        };
        let centres: Vec<f32> = (0..30 * DIM).map(|_| next()).collect();
        let mut rows: Vec<f32> = Vec::new();
        for i in 0..NODES + 30 {
            let centre = if i < NODES { i / 100 } else { i - NODES };
            rows.extend(centres[centre * DIM..][..DIM].iter().map(|c| c + 0.5 * next()));
        }
        for row in rows.chunks_exact_mut(DIM) {
            let norm = crate::types::norm(row) as f32;
            row.iter_mut().for_each(|v| *v /= norm);
        }
        rows
    }

    fn index(rows: &[f32]) -> Index {
        // f32 codes: scores are the rows' own, so that only the walk is on trial.
        let codec = Codec::train(CodeKind::F32, rows, DIM);
        let params = BuildParams {
            m: 8,
            ef_construction: 48,
            threads: 1,
            deterministic: true,
            ..BuildParams::default()
        };
        let params = BuildParams { codes: CodeKind::F32, ..params };
        let graph = build(&params, &codec, rows, &[], |_, _| ()).unwrap();
        let ids: Vec<ItemId> = (0..NODES as u64).map(ItemId).collect();
        let codes = codec.encode(rows);
        let mut bytes = Vec::new();
        Parts { graph: &graph, codec: &codec, ids: &ids, codes: &codes }.write(&mut bytes).unwrap();
        Index::open(&bytes).unwrap()
    }

    #[test]
    fn a_margin_lies_below_the_tenth_that_counts() {
        let all = rows();
        let (rows, queries) = all.split_at(NODES * DIM);
        let (index, mut searcher) = (index(rows), Searcher::default());
        let params = SearchParams { ef_search: 32, margin: Some(0.1), ..Default::default() };
        let slots: Vec<u32> = (0..NODES as u32).collect();
        let (mut found, mut works) = (0.0, [0, 0]);
        for query in queries.chunks_exact(DIM) {
            // The best of the query are gone: below the tenth of them all, a margin would end the walk among those.
            let gone: Vec<u32> = index.scan(query, &slots, 40).iter().map(|best| best.slot.0).collect();
            let left: Vec<u32> = slots.iter().copied().filter(|slot| !gone.contains(slot)).collect();
            let truth = index.scan(query, &left, 10);
            let allowed = |slot: Slot| !gone.contains(&slot.0);
            let among = Among { allowed, count: left.len(), purse: 1e9, graph_first: true };
            for (params, work) in [params, params.without_margin()].iter().zip(&mut works) {
                let mut cost = Cost::default();
                let (plan, best) =
                    searcher.search_among(&index, query, 10, params, &among, &mut cost).unwrap();
                assert_eq!(best.len(), 10);
                assert!(best.iter().all(|one| !gone.contains(&one.slot.0)));
                *work += cost.visited_nodes;
                if params.margin.is_some() {
                    assert_eq!(plan, Plan::Graph);
                    let ids = |best: &[Candidate]| best.iter().map(|one| one.slot).collect::<Vec<_>>();
                    found += recall(&ids(&truth), &ids(&best)) / 30.0;
                }
            }
        }
        assert!(found >= 0.95 && 10 * works[0] < 9 * works[1], "{found} for {works:?}");
    }

    #[test]
    fn every_way_finds_the_best_of_the_allowed_and_a_poor_purse_gives_up() {
        let all = rows();
        let (rows, queries) = all.split_at(NODES * DIM);
        let (index, mut searcher) = (index(rows), Searcher::default());
        let params = SearchParams { ef_search: 48, ..Default::default() };
        // Anywhere; and all that lie in the last centres: far from most queries.
        let ways: [Way; 4] = [
            ("most", |slot| slot % 10 != 0, Plan::Graph),
            ("a fourth", |slot| slot % 4 == 0, Plan::GraphWithSkip),
            ("the last tenth", |slot| slot >= NODES as u32 / 10 * 9, Plan::GraphWithSkip),
            ("few", |slot| slot % 100 == 0, Plan::Exact),
        ];
        for (what, allowed, plan) in &ways {
            let slots: Vec<u32> = (0..NODES as u32).filter(|&slot| allowed(slot)).collect();
            let (may, count) = (|slot: Slot| allowed(slot.0), slots.len());
            let purse = if *plan == Plan::Exact { count as f64 } else { 1e9 };
            let rich = Among { allowed: may, count, purse, graph_first: false };
            let mut found_share = 0.0;
            for query in queries.chunks_exact(DIM) {
                let (mut cost, truth) = (Cost::default(), index.scan(query, &slots, 10));
                let found = searcher.search_among(&index, query, 10, &params, &rich, &mut cost).unwrap();
                assert!(
                    found.0 == *plan || (*plan == Plan::Graph && found.0 == Plan::GraphWithSkip),
                    "{what}"
                );
                if *plan == Plan::Exact {
                    assert_eq!((found.1.len(), cost), (0, Cost::default()), "{what}");
                    continue;
                }
                assert!(found.1.iter().all(|c| allowed(c.slot.0)), "{what}");
                assert!(found.1.windows(2).all(|pair| pair[0].score >= pair[1].score), "{what}");
                let slots = |found: &[Candidate]| found.iter().map(|c| c.slot).collect::<Vec<_>>();
                found_share += recall(&slots(&truth), &slots(&found.1)) / 30.0;

                if *plan == Plan::Graph {
                    continue;
                }
                // With little in the purse it is given up in time; without the wish to begin on the graph, at once.
                let (purse, most_links) = (1500.0, index.row_len() as u64);
                for (graph_first, most) in [(true, (purse / STEP) as u64 + 2 * most_links), (false, 0)] {
                    let (poor, mut cost) =
                        (Among { allowed: may, count, purse, graph_first }, Cost::default());
                    let found = searcher.search_among(&index, query, 10, &params, &poor, &mut cost).unwrap();
                    assert!(cost.scored_vectors <= most, "{what}: {cost:?}");
                    assert!(graph_first || found.0 == Plan::Exact, "{what}");
                }
            }
            assert!(*plan == Plan::Exact || found_share >= 0.97, "{what}: {found_share}");
        }
    }
}
