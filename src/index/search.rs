//! Greedy descent through the upper levels, then a beam over level 0.
//!
//! ```text
//! level 3   ○───►○          one best node, to convergence
//! level 2        ○──►○
//! level 1            ○─►○
//! level 0   pool [best … worst], at most ef: expand the best unexpanded, score its unseen links, insert
//! ```
//!
//! The pool is one sorted array of 64-bit keys, score above, slot below, so that a comparison is one instruction and
//! an insertion one binary search and one move. It ends when every pool entry is expanded. Scores are those of the
//! codes; the caller rescores the candidates on the stored rows.

use super::filter::Stepper;
use super::quant;
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
    /// Rows scored, on codes or (exact search) in full.
    pub scored_vectors: u64,
}

/// A layered graph to walk: an [`Index`], or one that is being built.
pub(super) trait Links {
    /// Number of nodes.
    fn len(&self) -> usize;
    /// The slot every search begins at, on the top level.
    fn entry(&self) -> u32;
    /// Levels above 0.
    fn upper_levels(&self) -> usize;
    /// The links of a slot on level `level + 1`; none when it does not reach it.
    fn upper_links(&self, level: usize, slot: u32) -> &[u32];
    /// The level-0 row of a slot, degree first.
    fn row(&self, slot: u32) -> &[u32];
    /// The level-0 links of a slot.
    fn links(&self, slot: u32) -> &[u32] {
        let row = self.row(slot);
        &row[1..][..row[0] as usize]
    }
}

/// One thread's scratch for searching any index; reuse it.
#[derive(Debug, Default)]
pub struct Searcher {
    walker: Walker,
    integers: Vec<i32>,
    stepper: Stepper,
}

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
    ) -> Result<(Vec<Candidate>, Cost), Error> {
        params.validate()?;
        if query.len() != index.dim() {
            return Err(Error::Dimension { expected: index.dim(), received: query.len() });
        }
        let coded = index.codec().code_query(query);
        let (kernels, codes, kind) = (Kernels::get(), index.codes(), index.codec().kind());
        let integers = &mut self.integers;
        let cost = self.walker.walk(index, params.ef_search.max(wanted), |slots, scores| {
            quant::score(kernels, codes, slots, &coded, kind, integers, scores);
        });
        Ok((self.walker.found().take(wanted).collect(), cost))
    }

    /// The scratch of [`Searcher::search_among`], and the one for scores.
    pub(super) fn stepper(&mut self) -> (&mut Stepper, &mut Vec<i32>) {
        (&mut self.stepper, &mut self.integers)
    }
}

/// The walk itself, for any graph and any score.
#[derive(Debug, Default)]
pub(super) struct Walker {
    visited: Visited,
    pool: Pool,
    fresh: Vec<u32>,
    scores: Vec<f32>,
}

impl Walker {
    /// Descends to level 0 and collects the best `ef` nodes it meets there, for [`Walker::found`].
    ///
    /// * `score`: appends nothing and keeps nothing: it fills its second argument with one score a slot.
    pub(super) fn walk(
        &mut self,
        graph: &impl Links,
        ef: usize,
        mut score: impl FnMut(&[u32], &mut Vec<f32>),
    ) -> Cost {
        let mut cost = Cost::default();
        let start = self.descend(graph, &mut score, &mut cost);
        self.beam(graph, start, ef, &mut score, &mut cost);
        cost
    }

    /// What the last walk collected, best first.
    pub(super) fn found(&self) -> impl Iterator<Item = Candidate> {
        self.pool.keys.iter().map(|&key| Candidate { slot: Slot(slot_of(key)), score: score_of(key) })
    }

    /// Walks down to level 1, on each level to the node none of whose links is better.
    fn descend(
        &mut self,
        graph: &impl Links,
        score: &mut impl FnMut(&[u32], &mut Vec<f32>),
        cost: &mut Cost,
    ) -> Candidate {
        score(&[graph.entry()], &mut self.scores);
        cost.scored_vectors += 1;
        let mut best = Candidate { slot: Slot(graph.entry()), score: self.scores[0] };
        for level in (0..graph.upper_levels()).rev() {
            loop {
                let links = graph.upper_links(level, best.slot.0);
                cost.visited_nodes += 1;
                cost.scored_vectors += links.len() as u64;
                score(links, &mut self.scores);
                let better = links.iter().zip(&self.scores).max_by(|a, b| a.1.total_cmp(b.1));
                match better {
                    Some((&slot, &score)) if score > best.score => {
                        best = Candidate { slot: Slot(slot), score }
                    }
                    _ => break,
                }
            }
        }
        best
    }

    fn beam(
        &mut self,
        graph: &impl Links,
        start: Candidate,
        ef: usize,
        score: &mut impl FnMut(&[u32], &mut Vec<f32>),
        cost: &mut Cost,
    ) {
        self.visited.begin(graph.len());
        self.visited.insert(start.slot.0);
        self.pool.begin(ef);
        self.pool.insert(key(start.score, start.slot.0));
        while let Some(slot) = self.pool.expand_next() {
            cost.visited_nodes += 1;
            self.fresh.clear();
            let visited = &mut self.visited;
            self.fresh.extend(graph.links(slot).iter().copied().filter(|&to| visited.insert(to)));
            // Unless one of the fresh nodes is better, the next to expand is known: fetch its links meanwhile.
            if let Some(next) = self.pool.peek_next() {
                kernels::prefetch(graph.row(next));
            }
            cost.scored_vectors += self.fresh.len() as u64;
            score(&self.fresh, &mut self.scores);
            for (&slot, &score) in self.fresh.iter().zip(&self.scores) {
                self.pool.insert(key(score, slot));
            }
        }
    }
}

/// Set in a key's slot half once the node has been expanded.
const EXPANDED: u64 = 1 << 31;

/// Score in the upper half, in an order-preserving form; slot in the lower.
pub(super) fn key(score: f32, slot: u32) -> u64 {
    let bits = score.to_bits();
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(slot)
}

pub(super) fn slot_of(key: u64) -> u32 {
    (key & (EXPANDED - 1)) as u32
}

pub(super) fn score_of(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

/// The best `ef` keys seen so far, descending.
#[derive(Debug, Default)]
struct Pool {
    keys: Vec<u64>,
    ef: usize,
    /// Everything before it is expanded.
    next: usize,
}

impl Pool {
    fn begin(&mut self, ef: usize) {
        self.keys.clear();
        self.keys.reserve(ef + 1);
        self.ef = ef;
        self.next = 0;
    }

    fn insert(&mut self, key: u64) {
        if self.keys.len() == self.ef {
            if self.keys.last().is_some_and(|&worst| key <= worst) {
                return;
            }
            self.keys.pop();
        }
        // The mark of expanded nodes lies in the low half: compare scores only.
        let at = self.keys.partition_point(|&other| other >> 32 >= key >> 32);
        self.keys.insert(at, key);
        self.next = self.next.min(at);
    }

    /// The best key not yet expanded.
    fn peek_next(&mut self) -> Option<u32> {
        while self.keys.get(self.next)? & EXPANDED != 0 {
            self.next += 1;
        }
        self.keys.get(self.next).map(|&key| slot_of(key))
    }

    /// As [`Pool::peek_next`], and marks it expanded.
    fn expand_next(&mut self) -> Option<u32> {
        let slot = self.peek_next()?;
        self.keys[self.next] |= EXPANDED;
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_order_like_scores_and_give_them_back(a in -1e6f32..1e6, b in -1e6f32..1e6, slot in 0u32..1 << 31) {
            prop_assert_eq!(score_of(key(a, slot)), a);
            prop_assert_eq!(slot_of(key(a, slot) | EXPANDED), slot);
            prop_assert_eq!(key(a, 5) >> 32 > key(b, 5) >> 32, a > b);
        }

        #[test]
        fn a_pool_keeps_the_best_in_order(scores in prop::collection::vec(-1.0f32..1.0, 1..200), ef in 1usize..50) {
            let mut pool = Pool::default();
            pool.begin(ef);
            for (i, &score) in scores.iter().enumerate() {
                pool.insert(key(score, i as u32));
                if i % 3 == 0 {
                    pool.expand_next();
                }
            }
            let kept: Vec<f32> = pool.keys.iter().map(|&k| score_of(k)).collect();
            let mut best = scores.clone();
            best.sort_by(|a, b| b.total_cmp(a));
            best.truncate(ef);
            prop_assert_eq!(kept, best);
        }
    }
}
