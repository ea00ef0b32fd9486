//! Recall, measured: how many of the true ten nearest a beam finds, for queries of every kind.
//!
//! ```text
//! some rows, moved by noise ──┐      one pass over all rows ─► the true ten of every query ─┐
//! held-out queries, by kind ──┴─► beams, narrow to wide ─► candidates ─► share of the ten among them ─► curves
//! ```
//!
//! Every width is measured twice: as it is, and ended by a margin. Fixed widths spend alike on every query; a margin spends more
//! where rows lie dense below the tenth best and less where they do not. The one that belongs to a width is how far a beam of it
//! reaches below the tenth best, in the mean of the queries, so that both cost about the same; recall is then higher with it
//! (100k, cross-modal: 0.99 with a seventh fewer nodes and a quarter fewer rows).
//!
//! Source: Al-Jazzazi et al., *Distance Adaptive Beam Search for Provably Accurate Graph-Based Nearest Neighbor Search* (2025),
//! with a difference of scores, which queries far from all rows need, in place of a ratio of distances.
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
use crate::index::exact::{self, Scored, TopK};
use crate::index::{self, Index, SearchParams, Searcher};
use crate::store::{MarginCurve, MarginPoint, RecallCurve, Recalls};
use crate::types::{self, Modality, Slot};

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
    let best = best(rows, &all)?;
    let mut nearest = BTreeMap::new();
    let mut rest = best.as_slice();
    // Of a row that was moved, the best is most often the row itself.
    for (kind, rank, count) in std::iter::once((Modality::Image.word(), 1, near.len()))
        .chain(queries.iter().map(|(kind, queries)| (kind.as_str(), 0, queries.len())))
    {
        let (of_kind, others) = rest.split_at(count);
        let lengths = all[all.len() - rest.len()..].iter().map(|query| types::norm(query) as f32);
        let scores =
            of_kind.iter().zip(lengths).filter_map(|(best, norm)| Some(best.get(rank)?.score / norm));
        nearest.extend(low(scores.collect()).map(|score| (kind.to_owned(), score)));
        rest = others;
    }
    let slots = |best: &Vec<Scored>| best.iter().map(|scored| scored.slot).collect();
    let truths: Vec<Vec<Slot>> = best.iter().map(slots).collect();
    let mut from = 0;
    let mut next = |count: usize| {
        let group = from..from + count;
        from = group.end;
        curves(index, &all[group.clone()], &truths[group])
    };
    let (rows, of_rows) = next(near.len())?;
    let mut margins = BTreeMap::from([(Modality::Image.word().to_owned(), of_rows)]);
    let mut by_kind = BTreeMap::new();
    for (kind, queries) in queries {
        let (curve, of_kind) = next(queries.len())?;
        if !curve.is_empty() {
            margins.insert(kind.clone(), of_kind);
        }
        by_kind.insert(kind.clone(), curve);
    }
    margins.retain(|_, points| !points.is_empty());
    Ok(Recalls { rows, by_kind, margins, nearest })
}

/// The true ten of every query: one pass over the rows, all queries on each block.
fn best(rows: &impl RowAccess, queries: &[&[f32]]) -> Result<Vec<Vec<Scored>>, Error> {
    let mut best = vec![(TopK::new(RECALL_K), Vec::new()); queries.len()];
    rows.scan(&mut |first, block| {
        let each = best.par_iter_mut().zip(queries);
        each.for_each(|((best, scores), query)| offer(best, scores, query, first, block));
        true
    })?;
    Ok(best.into_iter().map(|(best, _)| best.into_sorted()).collect())
}

/// What all but one of a hundred reach; nothing of fewer than ten.
fn low(mut scores: Vec<f32>) -> Option<f32> {
    scores.sort_by(f32::total_cmp);
    scores.get(scores.len() / 100).copied().filter(|_| scores.len() >= 10)
}

/// Recall of some queries by width of the beam, and the same with margins; nothing without queries.
fn curves(
    index: &Index,
    queries: &[&[f32]],
    truths: &[Vec<Slot>],
) -> Result<(RecallCurve, MarginCurve), Error> {
    let (mut curve, mut margins) = (RecallCurve::new(), MarginCurve::new());
    if queries.is_empty() {
        return Ok((curve, margins));
    }
    for ef_search in WIDTHS {
        let params = SearchParams::of_beam(ef_search);
        let (recall, depth) = measured(index, queries, truths, &params)?;
        curve.push((ef_search, recall));
        // A scan has no beam to end.
        let params = SearchParams { margin: Some(depth), ..params };
        if !index.scan_pays(ef_search) && params.validate().is_ok() {
            let (recall, _) = measured(index, queries, truths, &params)?;
            margins.push(MarginPoint { ef_search, margin: depth, recall });
        }
        if recall >= ENOUGH {
            break;
        }
    }
    Ok((curve, margins))
}

/// Recall of some queries, and how far their candidates reach below the tenth of them, in the mean.
fn measured(
    index: &Index,
    queries: &[&[f32]],
    truths: &[Vec<Slot>],
    params: &SearchParams,
) -> Result<(f64, f32), Error> {
    let one = |searcher: &mut Searcher, (query, truth): (&&[f32], &Vec<Slot>)| {
        let (_, (candidates, _)) = searcher.find(index, query, params.ef_search, params)?;
        let depth = match (candidates.get(SearchParams::MARGIN_RANK - 1), candidates.last()) {
            (Some(tenth), Some(last)) => tenth.score - last.score,
            _ => 0.0,
        };
        let rescored = params.rescore.max(RECALL_K);
        let found: Vec<Slot> = candidates.iter().take(rescored).map(|candidate| candidate.slot).collect();
        Ok((exact::recall(truth, &found), f64::from(depth)))
    };
    let both = queries.par_iter().zip(truths).map_init(Searcher::default, one);
    let none = || (0.0, 0.0);
    let sum = both.try_reduce(none, |a, b| Ok::<_, index::Error>((a.0 + b.0, a.1 + b.1)))?;
    let count = queries.len() as f64;
    Ok((sum.0 / count, (sum.1 / count) as f32))
}

/// Queries like the rows: some of them, moved.
fn near_rows(index: &Index, rows: &impl RowAccess, sample: usize) -> Result<Vec<Vec<f32>>, Error> {
    let (n, dim) = (index.len(), index.dim());
    let mut random = Pcg64::seed_from_u64(SEED);
    let mut queries = Vec::with_capacity(sample.min(n));
    for _ in 0..sample.min(n) {
        let slot = Slot(random.random_range(0..n) as u32);
        let noise: Vec<f32> = (0..dim).map(|_| random.random_range(-1.0f32..1.0)).collect();
        let scale = NOISE / types::norm(&noise).max(1e-12) as f32;
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
        let Recalls { rows: recall, by_kind, margins, nearest } =
            calibrate(&index, &matrix, 50, &kinds).unwrap();
        assert!(recall.len() > 1 && recall[0].0 == 16, "{recall:?}");
        assert_eq!(by_kind["none"], []);
        // Forty strangers: the lowest of their best scores, by a scan of their own.
        let best = |query: &Vec<f32>| exact::search(&rows, query, 1)[0].score / types::norm(query) as f32;
        let lowest = strangers.iter().map(best).fold(f32::INFINITY, f32::min);
        assert!((nearest["text"] - lowest).abs() < 1e-5 && !nearest.contains_key("none"), "{nearest:?}");
        assert!(nearest["image"] < 0.95, "of a row itself, the nearest other one");

        // The slow way: every query searched, its candidates rescored, and held against a scan of its own.
        let mut searcher = Searcher::default();
        let plain = by_kind["text"].iter().map(|&(ef, recall)| (SearchParams::of_beam(ef), recall));
        assert!(!margins["text"].is_empty() && !margins.contains_key("none"), "{margins:?}");
        let ended = margins["text"].iter().map(|point| {
            let params = SearchParams::of_beam(point.ef_search);
            (SearchParams { margin: Some(point.margin), ..params }, point.recall)
        });
        for (params, measured) in plain.chain(ended) {
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
            assert!((measured - sum / 40.0).abs() < 1e-12, "{params:?}: {measured} and {}", sum / 40.0);
        }
    }

    #[test]
    fn measuring_ends_where_a_beam_is_enough() {
        let rows = random_rows(12, 3);
        let matrix = RowMatrix { rows: &rows, dim: DIM };
        let recalls = calibrate(&index(&rows), &matrix, 5, &BTreeMap::new()).unwrap();
        assert_eq!((recalls.rows, recalls.margins), (vec![(16, 1.0)], BTreeMap::new()));
        let wrong = BTreeMap::from([("text".to_owned(), vec![vec![1.0; 3]])]);
        let refused = calibrate(&index(&rows), &RowMatrix { rows: &rows, dim: DIM }, 5, &wrong);
        assert!(matches!(refused, Err(Error::Index(index::Error::Dimension { expected: DIM, received: 3 }))));
    }
}
