//! Recall, measured: how many of the true ten nearest a beam finds, for queries of every kind.
//!
//! ```text
//! some rows, moved by noise ──┐      one pass over all rows ─► the true ten of every query ─┐
//! held-out queries, by kind ──┴─► beams, narrow to wide ─► candidates ─► share of the ten among them ─► curves
//! ```
//!
//! A search scores its candidates again on the stored rows. A measurement need not: a true neighbour that is among the
//! candidates is among the ten best of them, whatever the others are. So rows are read once, in order, and may lie anywhere.
//!
//! Left out: what has changed since the generation. The curves are the graph's; slots that were masked since are in
//! nobody's ten, but still take places in a beam.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use rayon::prelude::*;

use super::Error;
use super::scan::{RowAccess, offer};
use crate::index::exact::{self, TopK};
use crate::index::{self, Index, SearchParams, Searcher};
use crate::store::{RecallCurve, Recalls};
use crate::types::Slot;

/// Neighbours that recall is counted over.
pub const RECALL_K: usize = 10;
/// Queries like the stored rows that a measurement takes: a recall of 0.99 is known to two thousandths by them.
pub const RECALL_SAMPLE: usize = 200;

/// Widths of the beam that are measured, until one is enough.
const WIDTHS: [usize; 13] = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024];
/// Recall after which no wider beam is tried: samples of this size cannot tell more.
pub(super) const ENOUGH: f64 = 0.999;
/// Length of the noise added to a stored unit row to make a query that is not stored.
const NOISE: f32 = 0.35;
const SEED: u64 = 0x7669_7363;

/// Measures recall@10 of an index against exact search, by width of the beam. Runs on the current rayon pool.
///
/// * `rows`: the index's. `sample`: how many of them to make queries of, each moved by noise of a third of its length, so that
///   none is itself stored. `queries`: of other kinds, by the kind's word; each of length D.
///
/// # Errors
/// [`index::Error::Dimension`]; rows that cannot be read.
pub fn calibrate(
    index: &Index,
    rows: &impl RowAccess,
    sample: usize,
    queries: &BTreeMap<String, Vec<Vec<f32>>>,
) -> Result<Recalls, Error> {
    let dim = index.dim();
    if let Some(query) = queries.values().flatten().find(|query| query.len() != dim) {
        return Err(index::Error::Dimension { expected: dim, received: query.len() }.into());
    }
    let near = near_rows(index, rows, sample)?;
    let all: Vec<&[f32]> = near.iter().chain(queries.values().flatten()).map(Vec::as_slice).collect();
    let truths = truths(rows, &all)?;
    let mut from = 0;
    let mut next = |count: usize| {
        let group = from..from + count;
        from = group.end;
        curve(index, &all[group.clone()], &truths[group])
    };
    let recall = next(near.len())?;
    let by_kind = queries.iter().map(|(kind, queries)| Ok((kind.clone(), next(queries.len())?)));
    Ok((recall, by_kind.collect::<Result<_, Error>>()?))
}

/// The true ten of every query: one pass over the rows, all queries on each block.
fn truths(rows: &impl RowAccess, queries: &[&[f32]]) -> Result<Vec<Vec<Slot>>, Error> {
    let mut best = vec![(TopK::new(RECALL_K), Vec::new()); queries.len()];
    rows.scan(&mut |first, block| {
        let each = best.par_iter_mut().zip(queries);
        each.for_each(|((best, scores), query)| offer(best, scores, query, first, block));
        true
    })?;
    let slots = |(best, _): (TopK, Vec<f32>)| best.into_sorted().into_iter().map(|s| s.slot).collect();
    Ok(best.into_iter().map(slots).collect())
}

/// Recall of some queries by width of the beam; nothing without queries.
fn curve(index: &Index, queries: &[&[f32]], truths: &[Vec<Slot>]) -> Result<RecallCurve, Error> {
    let mut curve = RecallCurve::new();
    if queries.is_empty() {
        return Ok(curve);
    }
    for ef_search in WIDTHS {
        let params = SearchParams::of_beam(ef_search);
        let one = |searcher: &mut Searcher, (query, truth): (&&[f32], &Vec<Slot>)| {
            let (_, (candidates, _)) = searcher.find(index, query, params.rescore.max(RECALL_K), &params)?;
            let found: Vec<Slot> = candidates.into_iter().map(|candidate| candidate.slot).collect();
            Ok(exact::recall(truth, &found))
        };
        let sum: Result<f64, index::Error> =
            queries.par_iter().zip(truths).map_init(Searcher::default, one).sum();
        let recall = sum? / queries.len() as f64;
        curve.push((ef_search, recall));
        if recall >= ENOUGH {
            break;
        }
    }
    Ok(curve)
}

/// Queries like the rows: some of them, moved.
fn near_rows(index: &Index, rows: &impl RowAccess, sample: usize) -> Result<Vec<Vec<f32>>, Error> {
    let (n, dim) = (index.len(), index.dim());
    let mut random = Pcg64::seed_from_u64(SEED);
    let mut queries = Vec::with_capacity(sample.min(n));
    for _ in 0..sample.min(n) {
        let slot = Slot(random.random_range(0..n) as u32);
        let noise: Vec<f32> = (0..dim).map(|_| random.random_range(-1.0f32..1.0)).collect();
        let scale = NOISE / crate::types::norm(&noise).max(1e-12) as f32;
        if let Some(row) = rows.row(slot)? {
            queries.push(row.iter().zip(noise).map(|(v, n)| v + n * scale).collect());
        }
    }
    Ok(queries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::RowMatrix;
    use crate::index::exact::Scored;
    use crate::index::{AlignedBytes, BuildParams, Codec, Parts};
    use crate::kernels::Kernels;
    use crate::types::{Embedding, ItemId};

    const DIM: usize = 16;

    fn random_rows(count: usize, seed: u64) -> Vec<f32> {
        let mut random = Pcg64::seed_from_u64(seed);
        let row = |_| {
            let row: Vec<f32> = (0..DIM).map(|_| random.random_range(-1.0f32..1.0)).collect();
            Embedding::new(row).unwrap().unit().unwrap().into_vec()
        };
        (0..count).flat_map(row).collect()
    }

    fn index(rows: &[f32]) -> Index {
        let params =
            BuildParams { m: 6, ef_construction: 24, threads: 1, deterministic: true, ..Default::default() };
        let codec = Codec::train(params.codes, rows, DIM);
        let graph = index::build(&params, &codec, rows, &[], |_, _| ()).unwrap();
        let (ids, codes) =
            ((0..rows.len() / DIM).map(|i| ItemId(i as u64)).collect::<Vec<_>>(), codec.encode(rows));
        let mut bytes = Vec::new();
        Parts { graph: &graph, codec: &codec, ids: &ids, codes: &codes }.write(&mut bytes).unwrap();
        Index::open(AlignedBytes::copy_of(&bytes).unwrap()).unwrap()
    }

    #[test]
    fn the_curve_is_what_searching_and_rescoring_gives() {
        let rows = random_rows(3000, 1);
        let (index, matrix) = (index(&rows), RowMatrix { rows: &rows, dim: DIM });
        let strangers: Vec<Vec<f32>> = random_rows(40, 2).chunks_exact(DIM).map(<[f32]>::to_vec).collect();
        let kinds = BTreeMap::from([("none".to_owned(), vec![]), ("text".to_owned(), strangers.clone())]);
        let (recall, by_kind) = calibrate(&index, &matrix, 50, &kinds).unwrap();
        assert!(recall.len() > 1 && recall[0].0 == 16, "{recall:?}");
        assert_eq!(by_kind["none"], []);

        // The slow way: every query searched, its candidates rescored, and held against a scan of its own.
        let mut searcher = Searcher::default();
        for &(ef, measured) in &by_kind["text"] {
            let params = SearchParams::of_beam(ef);
            let mut sum = 0.0;
            for query in &strangers {
                let (_, (candidates, _)) = searcher.find(&index, query, params.rescore, &params).unwrap();
                let score = |slots: &[u32], out: &mut Vec<f32>| {
                    Kernels::get().score_f32(&rows, slots, query, out);
                };
                let (best, _) = exact::rescore(&candidates, RECALL_K, f32::INFINITY, score);
                let slots = |scored: Vec<Scored>| scored.into_iter().map(|s| s.slot).collect::<Vec<_>>();
                sum += exact::recall(&slots(exact::search(&rows, query, RECALL_K)), &slots(best));
            }
            assert!((measured - sum / 40.0).abs() < 1e-12, "{ef}: {measured} and {}", sum / 40.0);
        }
    }

    #[test]
    fn measuring_ends_where_a_beam_is_enough() {
        let rows = random_rows(12, 3);
        let (recall, _) =
            calibrate(&index(&rows), &RowMatrix { rows: &rows, dim: DIM }, 5, &BTreeMap::new()).unwrap();
        assert_eq!(recall, [(16, 1.0)]);
        let wrong = BTreeMap::from([("text".to_owned(), vec![vec![1.0; 3]])]);
        let refused = calibrate(&index(&rows), &RowMatrix { rows: &rows, dim: DIM }, 5, &wrong);
        assert!(matches!(refused, Err(Error::Index(index::Error::Dimension { expected: DIM, received: 3 }))));
    }
}
