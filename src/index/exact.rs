//! Brute force: the truth that searches are measured by, the search of small caches, and the rescoring of candidates.
//!
//! Scores are f32 inner products of the stored rows, by the same kernel everywhere, so an exact search and a rescored
//! candidate agree to the bit.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use rayon::prelude::*;

use super::Candidate;
use crate::kernels::Kernels;
use crate::types::Slot;

/// Rows scored between two looks at the heap when a scan is split over threads.
const BLOCK: usize = 4096;
/// Rows rescored between two looks at whether more can matter: enough to fetch ahead.
const RESCORE_BLOCK: usize = 8;

/// A slot with its true score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Where.
    pub slot: Slot,
    /// Inner product with the query.
    pub score: f32,
}

/// What says which of two rows with equal scores comes first, the one with less; none where that are the slots themselves.
pub type Ties<'a> = Option<&'a (dyn Fn(Slot) -> u64 + Sync)>;

/// Greater is closer; of equal scores the lesser tie.
#[derive(Debug, Clone, Copy)]
struct Entry {
    score: f32,
    tie: u64,
    slot: Slot,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.tie.cmp(&self.tie))
    }
}

/// The best `k` of everything pushed.
#[derive(Clone)]
pub struct TopK<'a> {
    k: usize,
    heap: BinaryHeap<Reverse<Entry>>,
    ties: Ties<'a>,
}

impl<'a> TopK<'a> {
    /// An empty collection of at most `k`.
    pub fn new(k: usize) -> Self {
        TopK::by(k, None)
    }

    /// As [`TopK::new`], with ties.
    pub fn by(k: usize, ties: Ties<'a>) -> Self {
        TopK { k, heap: BinaryHeap::with_capacity(k + 1), ties }
    }

    /// Offers one.
    pub fn push(&mut self, Scored { slot, score }: Scored) {
        if self.worst().is_some_and(|worst| score.total_cmp(&worst).is_lt()) {
            return;
        }
        let entry = Entry { score, tie: self.ties.map_or(u64::from(slot.0), |ties| ties(slot)), slot };
        self.take(entry);
    }

    fn take(&mut self, entry: Entry) {
        if self.heap.len() < self.k {
            self.heap.push(Reverse(entry));
        } else if self.heap.peek().is_some_and(|worst| entry > worst.0) {
            self.heap.pop();
            self.heap.push(Reverse(entry));
        }
    }

    /// The worst score, once there are `k`.
    pub fn worst(&self) -> Option<f32> {
        self.heap.peek().filter(|_| self.heap.len() == self.k).map(|worst| worst.0.score)
    }

    /// Takes in another collection.
    pub fn merge(mut self, other: TopK<'a>) -> Self {
        other.heap.into_iter().for_each(|Reverse(entry)| self.take(entry));
        self
    }

    /// Best first.
    pub fn into_sorted(self) -> Vec<Scored> {
        let sorted = self.heap.into_sorted_vec().into_iter();
        sorted.map(|Reverse(Entry { slot, score, .. })| Scored { slot, score }).collect()
    }
}

/// The `k` rows with the largest inner product, best first; min(k, n) of them. Runs on the current rayon pool.
///
/// * `rows`: row-major `[n, query.len()]`.
pub fn search(rows: &[f32], query: &[f32], k: usize) -> Vec<Scored> {
    let score = |slots: &[u32], out: &mut Vec<f32>| Kernels::get().score_f32(rows, slots, query, out);
    scan(rows.len() / query.len().max(1), k, None, |_| true, score)
}

/// As [`search`], over those of the slots `0..n` that `keep` keeps.
///
/// * `score`: true scores of some slots, into its second argument.
pub fn scan(
    n: usize,
    k: usize,
    ties: Ties<'_>,
    keep: impl Fn(Slot) -> bool + Sync,
    score: impl Fn(&[u32], &mut Vec<f32>) + Sync,
) -> Vec<Scored> {
    (0..n.div_ceil(BLOCK))
        .into_par_iter()
        .map(|block| {
            let all = (block * BLOCK) as u32..((block + 1) * BLOCK).min(n) as u32;
            let slots: Vec<u32> = all.filter(|&slot| keep(Slot(slot))).collect();
            let (mut scores, mut best) = (Vec::new(), TopK::by(k, ties));
            score(&slots, &mut scores);
            slots.iter().zip(scores).for_each(|(&slot, score)| best.push(Scored { slot: Slot(slot), score }));
            best
        })
        .reduce(|| TopK::by(k, ties), TopK::merge)
        .into_sorted()
}

/// The `k` best of some slots, best first. Few of them are scored on the caller's thread.
///
/// * `score`: as [`scan`] has it.
pub fn scan_slots(
    slots: &[u32],
    k: usize,
    ties: Ties<'_>,
    score: impl Fn(&[u32], &mut Vec<f32>) + Sync,
) -> Vec<Scored> {
    let block = |slots: &[u32]| {
        let (mut scores, mut best) = (Vec::new(), TopK::by(k, ties));
        score(slots, &mut scores);
        slots.iter().zip(scores).for_each(|(&slot, score)| best.push(Scored { slot: Slot(slot), score }));
        best
    };
    let best = match slots.len() <= BLOCK {
        true => block(slots),
        false => slots.par_chunks(BLOCK).map(block).reduce(|| TopK::by(k, ties), TopK::merge),
    };
    best.into_sorted()
}

/// The `k` best of some candidates by their rows in memory.
///
/// * `candidates`: best first by their score on codes. `slack`: what such a score may lack of the true one
///   ([`super::Index::score_error`]): once `k` rows are known, a candidate further behind the worst of them ends the work.
/// * `score`: true scores of some slots, into its second argument.
/// * Returns the best, best first, and how many rows were read.
pub fn rescore(
    candidates: &[Candidate],
    k: usize,
    ties: Ties<'_>,
    slack: f32,
    mut score: impl FnMut(&[u32], &mut Vec<f32>),
) -> (Vec<Scored>, usize) {
    let (mut best, mut scores, mut read) = (TopK::by(k, ties), Vec::new(), 0);
    let mut slots = Vec::with_capacity(RESCORE_BLOCK.max(k));
    while read < candidates.len() {
        let block = if read == 0 { k.max(1) } else { RESCORE_BLOCK };
        let next = &candidates[read..candidates.len().min(read + block)];
        let useful = match best.worst() {
            Some(worst) => next.iter().take_while(|c| c.score + slack >= worst).count(),
            None => next.len(),
        };
        slots.clear();
        slots.extend(next[..useful].iter().map(|c| c.slot.0));
        score(&slots, &mut scores);
        slots.iter().zip(&scores).for_each(|(&slot, &score)| best.push(Scored { slot: Slot(slot), score }));
        read += useful;
        if useful < next.len() {
            break;
        }
    }
    (best.into_sorted(), read)
}

/// Share of `truth` that `found` contains: recall@k with k the length of `truth`.
pub fn recall<T: PartialEq>(truth: &[T], found: &[T]) -> f64 {
    if truth.is_empty() {
        return 1.0;
    }
    truth.iter().filter(|id| found.contains(id)).count() as f64 / truth.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_scan_finds_what_sorting_finds(
            rows in prop::collection::vec(-4i8..4, 3..600), query in prop::collection::vec(-4i8..4, 3), k in 1usize..20
        ) {
            // Small whole numbers: sums are exact and ties are common.
            let rows: Vec<f32> = rows[..rows.len() / 3 * 3].iter().map(|&v| f32::from(v)).collect();
            let query: Vec<f32> = query.iter().map(|&v| f32::from(v)).collect();
            let mut truth: Vec<(u32, f32)> = rows
                .chunks_exact(3)
                .enumerate()
                .map(|(i, row)| (i as u32, Kernels::get().dot(&query, row)))
                .collect();
            truth.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            truth.truncate(k);
            let found: Vec<(u32, f32)> = search(&rows, &query, k).iter().map(|s| (s.slot.0, s.score)).collect();
            prop_assert_eq!(found, truth);
        }
    }

    #[test]
    fn rescoring_ends_where_nothing_can_matter_and_takes_any_k() {
        let candidates: Vec<Candidate> =
            (0..40).map(|i| Candidate { slot: Slot(i), score: 1.0 - i as f32 * 0.1 }).collect();
        let score = |slots: &[u32], out: &mut Vec<f32>| {
            out.clear();
            out.extend(slots.iter().map(|&slot| 1.0 - slot as f32 * 0.1));
        };
        let (best, read) = rescore(&candidates, 3, None, 0.25, score);
        assert_eq!(best.iter().map(|s| s.slot.0).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(read, 5);
        assert_eq!(rescore(&candidates, 0, None, 0.25, score).0, []);
        assert_eq!(rescore(&[], 3, None, 0.25, score), (vec![], 0));
    }
}
