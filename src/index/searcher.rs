//! One thread's searches of any index: chooses between a walk, the walk that steps over, and a scan, and owns their scratch.

use super::among::{self, Among, Stepper};
use super::found::{Candidates, check_deadline};
use super::scan::Scanner;
use super::view::Index;
use super::walk::{Beam, Walks};
use super::{Candidate, Cost, Error, Plan, ScanPrice, SearchParams};

/// One thread's scratch for searching any index; reuse it.
#[derive(Debug, Default)]
pub struct Searcher {
    walks: Walks,
    stepper: Stepper,
    scanner: Scanner,
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
    ) -> Result<Candidates, Error> {
        params.validate()?;
        check(index, query)?;
        among::walked(&mut self.walks, index, query, wanted, params, None)
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
        self.walks.all(
            index,
            (index.coded(), index.sketch()),
            queries.iter().map(|query| (index.codec().code_query(query), Beam::of(params, wanted, query))),
            None,
            |cost| check_deadline(params, cost),
            |at, walker| answers[at] = (walker.found().take(wanted).collect(), walker.cost()),
        )?;
        Ok(answers)
    }

    /// The best candidates of a query, best first, by their score on codes: by the graph, or by a scan where that costs less
    /// than a beam of `ef_search`. A scan finds whatever any beam finds.
    ///
    /// * `query`: length D. `wanted`: how many, at least 1; fewer come back only from a smaller index.
    ///
    /// # Errors
    /// [`Error::Dimension`], [`Error::Parameter`], [`Error::Deadline`].
    pub fn find(
        &mut self,
        index: &Index,
        query: &[f32],
        wanted: usize,
        params: &SearchParams,
    ) -> Result<(Plan, Candidates), Error> {
        if !scans(index, wanted, params) {
            return Ok((Plan::Graph, self.search(index, query, wanted, params)?));
        }
        params.validate()?;
        check(index, query)?;
        Ok((Plan::Scan, self.scanner.scan(index, &index.codec().code_query(query), wanted, params)?))
    }

    /// As [`Searcher::find`], for many queries; they are all searched in the same way.
    ///
    /// # Errors
    /// As [`Searcher::find`], for the first query that is wrong.
    pub fn find_all(
        &mut self,
        index: &Index,
        queries: &[&[f32]],
        wanted: usize,
        params: &SearchParams,
    ) -> Result<(Plan, Vec<Candidates>), Error> {
        if !scans(index, wanted, params) {
            return Ok((Plan::Graph, self.search_all(index, queries, wanted, params)?));
        }
        let each = queries.iter().map(|query| Ok(self.find(index, query, wanted, params)?.1));
        Ok((Plan::Scan, each.collect::<Result<_, Error>>()?))
    }

    /// The best candidates of a query among some slots, best first, by their score on codes; the plan says how they were
    /// found. [`Plan::Exact`] comes without candidates: then a scan of the slots is cheaper, or was found to be.
    ///
    /// * `wanted`: as [`Searcher::search`] has it. `cost`: what is done is added to it.
    ///
    /// # Errors
    /// [`Error::Dimension`], [`Error::Parameter`].
    pub fn search_among(
        &mut self,
        index: &Index,
        query: &[f32],
        wanted: usize,
        params: &SearchParams,
        among: &Among<impl Fn(crate::types::Slot) -> bool>,
        cost: &mut Cost,
    ) -> Result<(Plan, Vec<Candidate>), Error> {
        params.validate()?;
        check(index, query)?;
        self.stepper.search(&mut self.walks, index, query, wanted, params, among, cost)
    }
}

/// The rows of an index that have an item, where some have none.
pub struct Live<F> {
    /// Whether a slot has one.
    pub is: F,
    /// How many have.
    pub count: usize,
    /// What scanning them all would cost.
    pub price: ScanPrice,
}

impl<F: Fn(crate::types::Slot) -> bool> Live<F> {
    fn among(&self) -> Among<&F> {
        Among { allowed: &self.is, count: self.count, purse: self.price.in_full, graph_first: true }
    }
}

impl Searcher {
    /// As [`Searcher::find`], among the rows that have an item. [`Plan::Scan`] comes without candidates: then a scan of those rows
    /// is to be made.
    ///
    /// # Errors
    /// As [`Searcher::find`].
    pub fn find_live(
        &mut self,
        index: &Index,
        query: &[f32],
        wanted: usize,
        params: &SearchParams,
        live: &Live<impl Fn(crate::types::Slot) -> bool>,
    ) -> Result<(Plan, Candidates), Error> {
        if live.count == index.len() {
            return self.find(index, query, wanted, params);
        }
        let mut cost = Cost::default();
        let (mut plan, mut found) = match scans(index, wanted, params) {
            true => (Plan::Scan, Vec::new()),
            false => self.search_among(index, query, wanted, params, &live.among(), &mut cost)?,
        };
        if matches!(plan, Plan::Exact | Plan::Scan) {
            (plan, found) = (Plan::Scan, Vec::new());
        }
        Ok((plan, (found, cost)))
    }

    /// As [`Searcher::find_live`], for many queries.
    ///
    /// # Errors
    /// As [`Searcher::find_live`], for the first query that is wrong.
    pub fn find_all_live(
        &mut self,
        index: &Index,
        queries: &[&[f32]],
        wanted: usize,
        params: &SearchParams,
        live: &Live<impl Fn(crate::types::Slot) -> bool>,
    ) -> Result<Vec<(Plan, Candidates)>, Error> {
        params.validate()?;
        queries.iter().try_for_each(|query| check(index, query))?;
        if live.count == index.len() {
            let (plan, all) = self.find_all(index, queries, wanted, params)?;
            return Ok(all.into_iter().map(|found| (plan, found)).collect());
        }
        let together = match scans(index, wanted, params) {
            true => None,
            false => among::walked_all(&mut self.walks, index, queries, wanted, params, &live.among())?,
        };
        let walked = together.unwrap_or_else(|| vec![Default::default(); queries.len()]);
        let one = |(query, (found, spent)): (&&[f32], among::Walked)| match found {
            Some(found) => Ok((Plan::Graph, (found, spent))),
            None => {
                let (plan, (found, cost)) = self.find_live(index, query, wanted, params, live)?;
                Ok((plan, (found, cost + spent)))
            }
        };
        queries.iter().zip(walked).map(one).collect()
    }
}

/// Whether all codes are scored: that is asked for, or costs less than the beam.
fn scans(index: &Index, wanted: usize, params: &SearchParams) -> bool {
    params.scan || index.scan_pays(params.ef_search.max(wanted))
}

fn check(index: &Index, query: &[f32]) -> Result<(), Error> {
    match query.len() == index.dim() {
        true => Ok(()),
        false => Err(Error::Dimension { expected: index.dim(), received: query.len() }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BuildParams, CodeKind, Codec, Parts, build, exact};
    use super::*;
    use crate::types::{ItemId, norm};

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
            let length = norm(&row) as f32;
            row.iter_mut().for_each(|v| *v /= length);
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
        (rows, queries, Index::open(&bytes).unwrap())
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
