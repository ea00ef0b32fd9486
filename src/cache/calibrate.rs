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
//! (100k, cross-modal: 0.99 with a seventh fewer nodes and a quarter fewer rows). Scores grow with the query's length, so
//! margins are kept for a query of length 1.
//!
//! And of every walk it is looked how deep in its candidates the true ten lie: what codes confuse, rescoring more of them
//! sets right, and no width does. A depth is kept where it finds what the one before does not ([`DEPTHS`]).
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
use crate::index::{self, Index, Live, Plan, ScanPrice, SearchParams, Searcher};
use crate::store::{Measured, RecallCurve, RecallPoint, Recalls};
use crate::types::{self, Modality, Slot};

/// Neighbours that recall is counted over.
pub const RECALL_K: usize = 10;
/// Neighbours that it is counted over as well, for searches of more hits than [`RECALL_K`].
pub(super) const MANY: usize = 100;
/// Queries like the stored rows that a measurement takes: a recall of 0.99 is known to two thousandths by them.
pub const RECALL_SAMPLE: usize = 200;

/// Widths of the beam that are measured, until one is enough.
const WIDTHS: [usize; 13] = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024];
/// Candidates rescored that are measured; the first is the default. More than the last cost more than wider codes would.
pub(super) const DEPTHS: [usize; 4] = [SearchParams::DEFAULT_RESCORE, 100, 200, 400];
/// Recall that a greater depth must add somewhere to be kept.
const GAIN: f64 = 0.001;
/// Recall above which nothing is said of a curve that goes flat, and the width from which on it can.
const MUCH: f64 = 0.99;
const FLAT_FROM: usize = 256;
/// Recall after which no wider beam is tried: samples of this size cannot tell more.
pub(super) const ENOUGH: f64 = 0.999;
/// Length of the noise added to a stored unit row to make a query that is not stored.
const NOISE: f32 = 0.35;
/// What a row costs in full, in rows scored on codes: that of f16 rows beside 4-bit codes.
const ROW_PRICE: f64 = 4.0;
const SEED: u64 = 0x7669_7363;
const NOISE_SEED: u64 = 0x6e6f_6973;

/// Measures recall@10 of an index against exact search, by width of the beam. Runs on the current rayon pool.
///
/// * `rows`: the index's. `sample`: how many of them to make queries of, each moved by noise of a third of its length, so that
///   none is itself stored. `queries`: of other kinds, by the kind's word; each of length D.
///
/// # Errors
/// [`index::Error::Dimension`]; rows that cannot be read.
pub fn calibrate(
    index: &Index,
    rows: &(impl RowAccess + Sync),
    sample: usize,
    queries: &BTreeMap<String, Vec<Vec<f32>>>,
) -> Result<Recalls, Error> {
    let dim = index.dim();
    if let Some(query) = queries.values().flatten().find(|query| query.len() != dim) {
        return Err(index::Error::Dimension { expected: dim, received: query.len() }.into());
    }
    let near = near_rows(index.len(), dim, rows, sample)?;
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
        // A query without a direction is near nothing.
        let scores = scores.filter(|score| score.is_finite());
        nearest.extend(low(scores.collect()).map(|score| (kind.to_owned(), score)));
        rest = others;
    }
    let slots = |best: &Vec<Scored>| best.iter().map(|scored| scored.slot).collect();
    let truths: Vec<Vec<Slot>> = best.iter().map(slots).collect();
    let mut from = 0;
    let mut next = |count: usize| {
        let group = from..from + count;
        from = group.end;
        measured(index, rows, &all[group.clone()], &truths[group])
    };
    let of_rows = next(near.len())?;
    let plain = plain_curve(&of_rows);
    let mut measured = BTreeMap::from([(Modality::Image.word().to_owned(), of_rows)]);
    let mut by_kind = BTreeMap::new();
    for (kind, queries) in queries {
        let of_kind = next(queries.len())?;
        by_kind.insert(kind.clone(), plain_curve(&of_kind));
        if of_kind.queries > 0 {
            measured.insert(kind.clone(), of_kind);
        }
    }
    measured.retain(|_, measured| measured.queries > 0);
    Ok(Recalls { rows: plain, by_kind, measured, nearest })
}

/// Recall by width alone, rescoring as searches do that ask for nothing else.
fn plain_curve(measured: &Measured) -> RecallCurve {
    let plain = measured.ways.first().map(Vec::as_slice).unwrap_or_default();
    // Wider beams are measured for more than ten hits.
    let enough = plain.iter().position(|point| point.recall >= ENOUGH).map_or(plain.len(), |last| last + 1);
    plain[..enough].iter().map(|point| (point.ef_search, point.recall)).collect()
}

/// Kinds of queries of which a wider beam finds no more although much is missed, each with the recall that it ends at: what is
/// missed there, the codes confuse or no link leads to.
pub fn flat(measured: &BTreeMap<String, Measured>) -> Vec<(String, f64)> {
    let ends = |(kind, measured): (&String, &Measured)| {
        let points = || measured.ways.iter().flatten();
        let widest = points().map(|point| point.ef_search).max()?;
        let best = |most: usize| {
            points().filter(|point| point.ef_search <= most).map(|point| point.recall).fold(0.0, f64::max)
        };
        let (all, half) = (best(widest), best(widest / 2));
        (all < MUCH && all - half < GAIN && widest >= FLAT_FROM).then(|| (kind.clone(), all))
    };
    measured.iter().filter_map(ends).collect()
}

/// The true hundred of every query: one pass over the rows, all queries on each block.
fn best(rows: &impl RowAccess, queries: &[&[f32]]) -> Result<Vec<Vec<Scored>>, Error> {
    let mut best = vec![(TopK::new(MANY), Vec::new()); queries.len()];
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

/// Recall of some queries by depth, margin and width; nothing without queries.
fn measured(
    index: &Index,
    rows: &(impl RowAccess + Sync),
    queries: &[&[f32]],
    truths: &[Vec<Slot>],
) -> Result<Measured, Error> {
    // By depth, each with and without margins.
    let mut ways: [[Vec<RecallPoint>; 2]; DEPTHS.len()] = Default::default();
    if queries.is_empty() {
        return Ok(Measured::default());
    }
    let mut enough = false;
    for ef_search in WIDTHS {
        let plain = SearchParams { ef_search, ..SearchParams::default() };
        let walked = walked(index, rows, queries, truths, &plain)?;
        let best = |recalls: &[f64]| recalls.iter().copied().fold(0.0, f64::max);
        let (ten, hundred) = (best(&walked.recalls), best(&walked.hundreds));
        let margin = Some(walked.depth);
        note(&mut ways, 0, &plain, &walked);
        // A scan has no beam to end, and what is wider than the ten best need is for plain beams alone.
        let ended = SearchParams { margin, ..plain };
        if !walked.scan && !enough && ended.validate().is_ok() {
            let walked = self::walked(index, rows, queries, truths, &ended)?;
            note(&mut ways, 1, &ended, &walked);
        }
        enough |= ten >= ENOUGH;
        if enough && hundred >= ENOUGH {
            break;
        }
    }
    let (mut kept, mut best) = (Vec::new(), [0.0f64; 2]);
    for way in ways {
        let most = |recall: fn(&RecallPoint) -> f64| way.iter().flatten().map(recall).fold(0.0, f64::max);
        let reached = [most(|point| point.recall), most(|point| point.recall_100.unwrap_or(0.0))];
        if kept.is_empty() || reached.iter().zip(best).any(|(reached, best)| *reached >= best + GAIN) {
            kept.extend(way.into_iter().filter(|points| !points.is_empty()));
            best = [best[0].max(reached[0]), best[1].max(reached[1])];
        }
    }
    Ok(Measured { queries: queries.len(), ways: kept })
}

/// Adds what walks of one beam found, at each depth that is not more than was searched for.
fn note(
    ways: &mut [[Vec<RecallPoint>; 2]; DEPTHS.len()],
    with: usize,
    params: &SearchParams,
    walked: &Walked,
) {
    let SearchParams { ef_search, margin, .. } = *params;
    for (i, (&depth, &recall)) in DEPTHS.iter().zip(&walked.recalls).enumerate() {
        let rescore = depth.min(ef_search);
        let recall_100 = (margin.is_none() && ef_search >= MANY).then_some(walked.hundreds[i]);
        // A depth that the beam does not have is the one before once more.
        if i == 0 || ef_search > DEPTHS[i - 1] {
            let Walked { scored, scan, .. } = *walked;
            ways[i][with].push(RecallPoint { ef_search, rescore, margin, scan, recall, recall_100, scored });
        }
    }
}

/// What walks of one beam found.
struct Walked {
    /// Recall by [`DEPTHS`].
    recalls: [f64; DEPTHS.len()],
    /// Recall@100 by the same, where there are as many candidates.
    hundreds: [f64; DEPTHS.len()],
    /// How far the candidates reach below the tenth of them, for queries of length 1, in the mean.
    depth: f32,
    /// Rows scored on codes, in the mean.
    scored: f64,
    /// Whether they were no walks, but scans of all codes.
    scan: bool,
}

/// What is added up of each query: both recalls by [`DEPTHS`], and the last two of [`Walked`].
const SUMS: usize = 2 * DEPTHS.len() + 2;

/// Searches for some queries by one beam.
fn walked(
    index: &Index,
    rows: &(impl RowAccess + Sync),
    queries: &[&[f32]],
    truths: &[Vec<Slot>],
    params: &SearchParams,
) -> Result<Walked, Error> {
    let (wanted, count) = (params.ef_search, index.len() - rows.gone());
    let price = ScanPrice::of(count, wanted, ROW_PRICE);
    let every: Vec<u32> = match rows.gone() {
        0 => Vec::new(),
        _ => (0..index.len() as u32).filter(|&slot| rows.has(Slot(slot))).collect(),
    };
    let one = |searcher: &mut Searcher, (query, truth): (&&[f32], &Vec<Slot>)| {
        let live = Live { is: |slot| rows.has(slot), count, price };
        let (plan, (mut candidates, mut cost)) = searcher.find_live(index, query, wanted, params, &live)?;
        if plan == Plan::Scan && rows.gone() > 0 {
            candidates = index.scan(query, &every, wanted);
            cost.scored_vectors += count as u64;
        }
        let depth = match (candidates.get(SearchParams::MARGIN_RANK - 1), candidates.last()) {
            (Some(tenth), Some(last)) => f64::from(tenth.score - last.score),
            _ => 0.0,
        };
        let length = types::norm(query);
        let depth = if length > 0.0 { depth / length } else { 0.0 };
        let found: Vec<Slot> = candidates.iter().map(|candidate| candidate.slot).collect();
        let among = |hits: usize, depth: usize| {
            let places = depth.min(params.ef_search).max(hits).min(found.len());
            exact::recall(&truth[..truth.len().min(hits)], &found[..places])
        };
        let mut sums = [0.0; SUMS];
        for (i, depth) in DEPTHS.into_iter().enumerate() {
            (sums[i], sums[DEPTHS.len() + i]) = (among(RECALL_K, depth), among(MANY, depth));
        }
        sums[SUMS - 2] = depth;
        sums[SUMS - 1] = cost.scored_vectors as f64;
        Ok(sums)
    };
    let each = queries.par_iter().zip(truths).map_init(Searcher::default, one);
    // Added up in their order, so that the same queries give the same figure to the last digit.
    let each = each.collect::<Result<Vec<_>, index::Error>>()?;
    let add = |a: [f64; _], b: [f64; _]| std::array::from_fn(|i| a[i] + b[i]);
    let sums = each.into_iter().fold([0.0; SUMS], add);
    let means = sums.map(|sum| sum / queries.len() as f64);
    let (mut recalls, mut hundreds) = ([0.0; DEPTHS.len()], [0.0; DEPTHS.len()]);
    recalls.copy_from_slice(&means[..DEPTHS.len()]);
    hundreds.copy_from_slice(&means[DEPTHS.len()..][..DEPTHS.len()]);
    let scan = index.scan_pays(wanted);
    Ok(Walked { recalls, hundreds, depth: means[SUMS - 2] as f32, scored: means[SUMS - 1], scan })
}

/// Queries like the rows: some of them, moved.
pub(super) fn near_rows(
    n: usize,
    dim: usize,
    rows: &impl RowAccess,
    sample: usize,
) -> Result<Vec<Vec<f32>>, Error> {
    let mut random = Pcg64::seed_from_u64(SEED);
    let slots: Vec<Slot> = (0..sample.min(n)).map(|_| Slot(random.random_range(0..n) as u32)).collect();
    moved(&slots, dim, rows)
}

/// The rows of some slots, each moved by noise of a third of its length.
pub(super) fn moved(slots: &[Slot], dim: usize, rows: &impl RowAccess) -> Result<Vec<Vec<f32>>, Error> {
    let mut random = Pcg64::seed_from_u64(NOISE_SEED);
    let mut queries = Vec::with_capacity(slots.len());
    for &slot in slots {
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
    use crate::index::exact::Scored;
    use crate::index::{BuildParams, Codec, InMemory, Parts};
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
        Index::open(&bytes).unwrap()
    }

    #[test]
    fn a_query_without_a_direction_leaves_nothing_that_is_no_number() {
        let rows = random_rows(600, 1);
        let queries = BTreeMap::from([("text".to_owned(), vec![vec![0.0; DIM]; 30])]);
        let index = index(&rows);
        let recalls = calibrate(&index, &InMemory { rows: &rows, dim: DIM }, 50, &queries).unwrap();
        assert!(!recalls.nearest.contains_key("text"), "{:?}", recalls.nearest);
        let points = recalls.measured.values().flat_map(|measured| measured.ways.iter().flatten());
        assert!(points.into_iter().all(|point| point.recall.is_finite() && point.scored.is_finite()));
    }

    #[test]
    fn the_curve_is_what_searching_and_rescoring_gives() {
        let rows = random_rows(3000, 1);
        let (index, matrix) = (index(&rows), InMemory { rows: &rows, dim: DIM });
        let strangers: Vec<Vec<f32>> = random_rows(40, 2).chunks_exact(DIM).map(<[f32]>::to_vec).collect();
        let kinds = BTreeMap::from([("none".to_owned(), vec![]), ("text".to_owned(), strangers.clone())]);
        let Recalls { rows: recall, by_kind, measured, nearest } =
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
        let Measured { queries: 40, ways } = &measured["text"] else { panic!("{measured:?}") };
        assert!(!measured.contains_key("none") && measured["image"].queries == 50, "{measured:?}");
        let plain: Vec<(usize, f64)> = ways[0].iter().map(|point| (point.ef_search, point.recall)).collect();
        // What is wider than ten hits need is measured for a hundred.
        let (told, wider) = plain.split_at(by_kind["text"].len());
        assert_eq!(told, by_kind["text"]);
        let hundreds = ways.iter().flatten().filter_map(|point| point.recall_100);
        assert!(!wider.is_empty() && hundreds.fold(0.0, f64::max) >= ENOUGH - GAIN, "{ways:?}");
        assert!(ways[1].iter().all(|point| point.margin.is_some()), "{ways:?}");
        for point in ways.iter().flatten() {
            let &RecallPoint { ef_search, rescore, margin, scan, recall, recall_100, scored } = point;
            assert_eq!(scan, index.scan_pays(ef_search));
            assert_eq!(recall_100.is_some(), margin.is_none() && ef_search >= MANY);
            let params = SearchParams { ef_search, margin, ..SearchParams::default() };
            for (hits, measured) in [(RECALL_K, Some(recall)), (MANY, recall_100)] {
                let Some(measured) = measured else { continue };
                let (mut work, mut sum) = (0, 0.0);
                for query in &strangers {
                    let (_, (candidates, cost)) =
                        searcher.find(&index, query, rescore.max(hits), &params).unwrap();
                    work += cost.scored_vectors;
                    let score = |slots: &[u32], out: &mut Vec<f32>| {
                        Kernels::get().score_f32(&rows[..], slots, query, out);
                    };
                    let (best, _) = exact::rescore(&candidates, hits, None, f32::INFINITY, score);
                    let slots = |scored: Vec<Scored>| scored.into_iter().map(|s| s.slot).collect::<Vec<_>>();
                    sum += exact::recall(&slots(exact::search(&rows, query, hits)), &slots(best));
                }
                assert!((measured - sum / 40.0).abs() < 1e-12, "{params:?}: {measured} and {}", sum / 40.0);
                assert!((scored - work as f64 / 40.0).abs() < 1e-9, "{params:?}");
            }
        }
    }

    #[test]
    fn measuring_ends_where_a_beam_is_enough() {
        let rows = random_rows(12, 3);
        let matrix = InMemory { rows: &rows, dim: DIM };
        let recalls = calibrate(&index(&rows), &matrix, 5, &BTreeMap::new()).unwrap();
        let [way] = &recalls.measured["image"].ways[..] else { panic!("{recalls:?}") };
        assert_eq!((recalls.rows, way.len(), way[0].margin), (vec![(16, 1.0)], 1, None));
        let wrong = BTreeMap::from([("text".to_owned(), vec![vec![1.0; 3]])]);
        let refused = calibrate(&index(&rows), &InMemory { rows: &rows, dim: DIM }, 5, &wrong);
        assert!(matches!(refused, Err(Error::Index(index::Error::Dimension { expected: DIM, received: 3 }))));
    }
}
