//! Scoring every code: the truth of a small index, and quicker than a wide beam over it.
//!
//! A beam of `ef` scores some ten rows for each of its places, here and there; a scan scores all of them in order. So
//! where a beam is wide for the index, a scan costs less and misses nothing: of 2000 rows, from a beam of 43 on (M 16).
//! Which of both it is follows from counts, not times: the same query takes the same way on every machine.

use super::exact::{self, Scored};
use super::found::{Candidates, check_deadline};
use super::pool::{Pool, key, score_of, slot_of};
use super::price::walk_price;
use super::quant::{self, CodedQuery};
use super::view::Index;
use super::{Candidate, Cost, Error, SearchParams};
use crate::kernels::Kernels;
use crate::types::Slot;

/// Rows scored between two looks at the clock; their scores stay in the first cache.
const BLOCK: usize = 1024;

/// One thread's scratch for a scan.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    pool: Pool,
    slots: Vec<u32>,
    scores: Vec<f32>,
    integers: Vec<i32>,
}

impl Index {
    /// Whether scoring every code costs less than a beam of `ef`.
    pub fn scan_pays(&self, ef: usize) -> bool {
        self.len() as f64 <= walk_price(self.row_len(), ef as f64)
    }

    /// The `wanted` best of some slots by their score on codes, best first: every one is scored.
    ///
    /// * `query`: length D.
    pub fn scan(&self, query: &[f32], slots: &[u32], wanted: usize) -> Vec<Candidate> {
        let coded = self.codec().code_query(query);
        let score = |slots: &[u32], scores: &mut Vec<f32>| {
            let (kernels, kind) = (Kernels::get(), self.codec().kind());
            quant::score(kernels, self.coded().codes, slots, &coded, kind, &mut Vec::new(), scores);
        };
        let best = exact::scan_slots(slots, wanted, None, score).into_iter();
        best.map(|Scored { slot, score }| Candidate { slot, score }).collect()
    }
}

impl Scanner {
    /// The `wanted` best of all rows by their score on codes, best first.
    pub(super) fn scan(
        &mut self,
        index: &Index,
        query: &CodedQuery,
        wanted: usize,
        params: &SearchParams,
    ) -> Result<Candidates, Error> {
        let Scanner { pool, slots, scores, integers } = self;
        let (kernels, kind, codes) = (Kernels::get(), index.codec().kind(), index.coded().codes);
        pool.begin();
        pool.reopen(wanted.min(index.len()));
        for start in (0..index.len()).step_by(BLOCK) {
            check_deadline(params, Cost::default())?;
            slots.clear();
            slots.extend(start as u32..index.len().min(start + BLOCK) as u32);
            quant::score(kernels, codes, slots, query, kind, integers, scores);
            let mut floor = pool.floor();
            for (&slot, &score) in slots.iter().zip(&*scores) {
                // Of equal ones the first stays, as in an exact search.
                if floor.is_none_or(|floor| score > floor) {
                    pool.insert(key(score, slot));
                    floor = pool.floor();
                }
            }
        }
        let found =
            pool.keys().iter().map(|&key| Candidate { slot: Slot(slot_of(key)), score: score_of(key) });
        Ok((found.collect(), Cost { scored_vectors: index.len() as u64, ..Cost::default() }))
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    use super::*;
    use crate::index::{BuildParams, CodeKind, Codec, Parts, Plan, Searcher, build};
    use crate::types::ItemId;

    const DIM: usize = 24;
    const ROWS: usize = 2500;

    /// Rows with their index; the last rows are queries.
    fn indexed(kind: CodeKind) -> (Vec<f32>, Index) {
        let mut random = Pcg64::seed_from_u64(1);
        let all: Vec<f32> = (0..(ROWS + 20) * DIM).map(|_| random.random_range(-0.5f32..0.5)).collect();
        let rows = &all[..ROWS * DIM];
        let codec = Codec::train(kind, rows, DIM);
        let params = BuildParams { m: 8, ef_construction: 40, threads: 1, ..Default::default() };
        let graph = build(&params, &codec, rows, &[], |_, _| ()).unwrap();
        let ids: Vec<ItemId> = (0..ROWS as u64).map(ItemId).collect();
        let mut bytes = Vec::new();
        Parts { graph: &graph, codec: &codec, ids: &ids, codes: &codec.encode(rows) }
            .write(&mut bytes)
            .unwrap();
        (all, Index::open(&bytes).unwrap())
    }

    #[test]
    fn a_scan_finds_what_sorting_finds() {
        let (all, index) = indexed(CodeKind::F32);
        let (rows, query) = (&all[..ROWS * DIM], &all[ROWS * DIM..][..DIM]);
        let slots: Vec<u32> = (0..ROWS as u32).filter(|slot| slot % 7 == 3).collect();
        let score = |&slot: &u32| Kernels::get().dot(query, &rows[slot as usize * DIM..][..DIM]);
        let mut truth: Vec<(f32, u32)> = slots.iter().map(|slot| (score(slot), *slot)).collect();
        truth.sort_by(|a, b| b.0.total_cmp(&a.0));
        let found: Vec<u32> = index.scan(query, &slots, 20).iter().map(|c| c.slot.0).collect();
        assert_eq!(found, truth[..20].iter().map(|&(_, slot)| slot).collect::<Vec<_>>());
        assert_eq!(index.scan(query, &[], 5), []);
    }

    #[test]
    fn a_beam_too_wide_for_the_index_is_a_scan_that_misses_nothing() {
        for kind in CodeKind::ALL {
            let (all, index) = indexed(kind);
            let queries: Vec<&[f32]> = all[ROWS * DIM..].chunks_exact(DIM).collect();
            let (every, mut searcher) = ((0..ROWS as u32).collect::<Vec<_>>(), Searcher::default());
            for (ef_search, plan) in [(32, Plan::Graph), (400, Plan::Scan)] {
                let params = SearchParams { ef_search, ..Default::default() };
                let (together, all) = searcher.find_all(&index, &queries, 15, &params).unwrap();
                assert_eq!(together, plan, "{kind:?}");
                for (query, found) in queries.iter().zip(all) {
                    assert_eq!(searcher.find(&index, query, 15, &params).unwrap(), (plan, found.clone()));
                    let (candidates, cost) = found;
                    if plan == Plan::Graph {
                        assert_eq!((candidates, cost), searcher.search(&index, query, 15, &params).unwrap());
                        continue;
                    }
                    assert_eq!(candidates, index.scan(query, &every, 15), "{kind:?}");
                    assert_eq!((cost.visited_nodes, cost.scored_vectors), (0, ROWS as u64));
                }
            }
            // As many as there are, and more.
            let all = searcher.find(&index, queries[0], 2 * ROWS, &SearchParams::default()).unwrap().1.0;
            assert_eq!(all.len(), ROWS, "{kind:?}");
        }
    }

    #[test]
    fn of_equal_rows_the_first_are_found_and_what_is_wrong_is_said() {
        let (all, index) = indexed(CodeKind::U4);
        let (query, mut searcher) = (&all[ROWS * DIM..][..DIM], Searcher::default());
        let nothing = vec![0.0; DIM];
        let wide = SearchParams { ef_search: 400, ..Default::default() };
        let found = searcher.find(&index, &nothing, 5, &wide).unwrap().1.0;
        assert_eq!(found.iter().map(|c| c.slot.0).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);

        let error = searcher.find(&index, &query[1..], 5, &wide).unwrap_err();
        assert!(matches!(error, Error::Dimension { expected: DIM, received: 23 }), "{error}");
        let past = std::time::Instant::now() - std::time::Duration::from_millis(1);
        let late = SearchParams { deadline: Some(past), ..wide };
        assert!(matches!(searcher.find(&index, query, 5, &late), Err(Error::Deadline)));
    }
}
