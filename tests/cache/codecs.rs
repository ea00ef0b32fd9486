//! What codes cost: the error of a score, and what becomes of the ten nearest, before rescoring and after.
//!
//! Measured over the whole ranking, not a beam, so that what is lost here is lost by the codes. On made rows always; on
//! real features (squeezenet on cifar10 pictures) when `VISCACHE_DATA` has them. Prints a table:
//! `cargo test --test cache codecs -- --nocapture`. Its numbers stand in `benches/README.md`.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use viscache::index::{
    BuildParams, Candidate, CodeKind, Codec, Index, Parts, SearchParams, Searcher, build, exact,
};
use viscache::kernels::Kernels;
use viscache::media::npy;
use viscache::store;
use viscache::types::{ItemId, norm};

use crate::common;

/// Of how many nearest the recall is.
const K: usize = 10;

/// Rows and queries, both unit.
struct Sample {
    name: &'static str,
    dim: usize,
    rows: Vec<f32>,
    queries: Vec<f32>,
}

/// What one kind of code does to a sample.
#[derive(Debug)]
struct Measured {
    /// Root mean square of (score on codes − true score).
    error: f64,
    /// What [`Index::score_error`] expects of it: a quarter of its slack.
    expected: f64,
    /// Recall@10 of the ranking by codes.
    codes: f64,
    /// Recall@10 when so many are rescored.
    rescored: [f64; 2],
}

const RESCORED: [usize; 2] = [20, 40];

/// Per kind: most that the error may be of what is expected, and least recall by codes, then after rescoring 20 and 40.
/// What is clipped is not expected: 8-bit codes of heavy-tailed features err twice as much.
const FLOORS: [(CodeKind, f64, [f64; 3]); 4] = [
    (CodeKind::F32, 1.0, [0.999, 1.0, 1.0]),
    (CodeKind::F16, 1.0, [0.995, 1.0, 1.0]),
    (CodeKind::U8, 2.5, [0.90, 0.99, 0.99]),
    (CodeKind::U4, 1.5, [0.65, 0.92, 0.98]),
];

fn unit(rows: &mut [f32], dim: usize) {
    for row in rows.chunks_exact_mut(dim) {
        let norm = norm(row) as f32;
        row.iter_mut().for_each(|v| *v /= norm);
    }
}

/// Clusters whose components vary by very different amounts, as those of real features do.
fn made() -> Sample {
    const DIM: usize = 96;
    let mut random = Pcg64::seed_from_u64(11);
    let spread: Vec<f32> = (0..DIM).map(|i| 1.0 / (1.0 + i as f32).sqrt()).collect();
    let mut point = |centre: Option<&[f32]>, width: f32| -> Vec<f32> {
        let one = |i: usize| {
            // A sum of four is near Gaussian.
            let noise: f32 = (0..4).map(|_| random.random_range(-0.5f32..0.5)).sum();
            centre.map_or(0.3, |centre| centre[i]) + width * spread[i] * noise
        };
        (0..DIM).map(one).collect()
    };
    let centres: Vec<Vec<f32>> = (0..40).map(|_| point(None, 1.0)).collect();
    let mut rows: Vec<f32> = (0..2000).flat_map(|i| point(Some(&centres[i % 40]), 0.5)).collect();
    let mut queries: Vec<f32> = (0..100).flat_map(|i| point(Some(&centres[i % 40]), 0.6)).collect();
    unit(&mut rows, DIM);
    unit(&mut queries, DIM);
    Sample { name: "made", dim: DIM, rows, queries }
}

/// Every fifteenth picture asks for its like among the others.
fn real() -> Option<Sample> {
    let path = common::data("squeezenet-cifar10-3000.npy")?;
    let npy::Matrix { dim, mut values } = npy::read(&std::fs::read(path).unwrap()).unwrap();
    unit(&mut values, dim);
    let (mut rows, mut queries) = (Vec::new(), Vec::new());
    for (i, row) in values.chunks_exact(dim).enumerate() {
        if i % 15 == 0 { queries.extend(row) } else { rows.extend(row) }
    }
    Some(Sample { name: "squeezenet", dim, rows, queries })
}

/// The indexes of a sample, one for each kind of code that takes rows so long, on one graph.
fn indexes(rows: &[f32], dim: usize) -> Vec<Index> {
    let params = BuildParams { m: 8, ef_construction: 32, threads: 1, ..BuildParams::default() };
    let kind = if dim <= CodeKind::U8.longest() { CodeKind::U8 } else { CodeKind::F16 };
    let graph = build(&params, &Codec::train(kind, rows, dim), rows, &[], |_, _| {}).unwrap();
    let ids: Vec<ItemId> = (0..(rows.len() / dim) as u64).map(ItemId).collect();
    let index = |(kind, _, _)| {
        let codec = Codec::train(kind, rows, dim);
        let (codes, mut bytes) = (codec.encode(rows), Vec::new());
        Parts { graph: &graph, codec: &codec, ids: &ids, codes: &codes }.write(&mut bytes).unwrap();
        Index::open(&bytes).unwrap()
    };
    FLOORS.into_iter().filter(|(kind, _, _)| dim <= kind.longest()).map(index).collect()
}

/// Every row by its score on codes, best first.
fn ranking(index: &Index, query: &[f32]) -> Vec<Candidate> {
    let params = SearchParams { ef_search: index.len(), ..SearchParams::default() };
    Searcher::default().search(index, query, index.len(), &params).unwrap().0
}

fn rescored(index: &Index, rows: &[f32], query: &[f32], candidates: &[Candidate]) -> Vec<u32> {
    let score = |slots: &[u32], out: &mut Vec<f32>| Kernels::get().score_f32(rows, slots, query, out);
    let (best, _) = exact::rescore(candidates, K, None, index.score_error(query), score);
    best.iter().map(|scored| scored.slot.0).collect()
}

fn measure(index: &Index, Sample { dim, rows, queries, .. }: &Sample) -> Measured {
    let (mut squares, mut variance, mut count) = (0.0, 0.0, 0);
    let (mut codes, mut after) = (0.0, [0.0; RESCORED.len()]);
    for query in queries.chunks_exact(*dim) {
        let truth: Vec<u32> = exact::search(rows, query, K).iter().map(|scored| scored.slot.0).collect();
        let candidates = ranking(index, query);
        for candidate in &candidates {
            let row = &rows[candidate.slot.index() * dim..][..*dim];
            let score: f64 = row.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            squares += (f64::from(candidate.score) - score).powi(2);
        }
        variance += f64::from(index.score_error(query) / 4.0).powi(2) * candidates.len() as f64;
        count += candidates.len();
        let first: Vec<u32> = candidates.iter().take(K).map(|candidate| candidate.slot.0).collect();
        codes += exact::recall(&truth, &first);
        for (after, n) in after.iter_mut().zip(RESCORED) {
            *after += exact::recall(&truth, &rescored(index, rows, query, &candidates[..n]));
        }
    }
    let (n, asked) = (count as f64, (queries.len() / dim) as f64);
    let [error, expected] = [squares, variance].map(|sum| (sum / n).sqrt());
    Measured { error, expected, codes: codes / asked, rescored: after.map(|sum| sum / asked) }
}

#[test]
fn errors_are_as_documented_and_rescoring_recovers_the_ranking() {
    println!(
        "| rows | codes | bytes a row | RMS error | expected | recall@10 by codes | 20 rescored | 40 rescored |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for sample in [Some(made()), real()].into_iter().flatten() {
        for (index, (kind, most, floors)) in indexes(&sample.rows, sample.dim).iter().zip(FLOORS) {
            let found = measure(index, &sample);
            let Measured { error, expected, codes, rescored: [twenty, forty] } = found;
            let bytes = Codec::train(kind, &sample.rows, sample.dim).stride();
            println!(
                "| {} {} × {} | {kind:?} | {bytes} | {error:.1e} | {expected:.1e} | {codes:.4} | {twenty:.4} | {forty:.4} |",
                sample.name,
                sample.rows.len() / sample.dim,
                sample.dim
            );
            assert!(error <= most * expected, "{} {kind:?}: {found:?}", sample.name);
            let least = codes >= floors[0] && twenty >= floors[1] && forty >= floors[2];
            assert!(least, "{} {kind:?}: {found:?} is below {floors:?}", sample.name);
        }
    }
}

/// Rescoring trusted scores on halves as if they were exact, and ended before the best row.
#[test]
fn near_twins_are_told_apart_whatever_the_codes() {
    const DIM: usize = 24;
    let mut random = Pcg64::seed_from_u64(5);
    let centre: Vec<f32> = (0..DIM).map(|_| random.random_range(-1.0f32..1.0)).collect();
    let mut rows: Vec<f32> =
        (0..300).flat_map(|_| centre.clone()).map(|v| v + random.random_range(-1e-4f32..1e-4)).collect();
    unit(&mut rows, DIM);
    for index in indexes(&rows, DIM) {
        for query in rows.chunks_exact(DIM).step_by(7) {
            let truth: Vec<u32> = exact::search(&rows, query, K).iter().map(|scored| scored.slot.0).collect();
            let found = rescored(&index, &rows, query, &ranking(&index, query));
            assert_eq!(found, truth, "{:?}", index.codes());
        }
    }
}

/// Sums over the longest rows that a cache may have stay exact. Those of rows with one sign but for a few components are the largest.
#[test]
fn the_longest_rows_are_ranked_as_well() {
    const DIM: usize = store::CacheRecord::MAX_DIM;
    let mut random = Pcg64::seed_from_u64(6);
    let mut row = |flipped: usize| -> Vec<f32> {
        let mut row: Vec<f32> = (0..DIM).map(|_| random.random_range(0.9f32..1.0)).collect();
        row[..flipped].iter_mut().for_each(|v| *v = -*v);
        row
    };
    let mut rows: Vec<f32> = (0..60).flat_map(|i| row(i * 1000)).collect();
    unit(&mut rows, DIM);
    let indexes = indexes(&rows, DIM);
    assert_eq!(indexes.len(), 3, "all but 8 bits");
    for index in indexes {
        for (at, query) in rows.chunks_exact(DIM).enumerate().step_by(9) {
            let truth: Vec<u32> = exact::search(&rows, query, K).iter().map(|scored| scored.slot.0).collect();
            assert_eq!(truth[0], at as u32);
            let candidates = ranking(&index, query);
            for candidate in &candidates {
                let row = &rows[candidate.slot.index() * DIM..][..DIM];
                let score: f64 = row.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let error = (f64::from(candidate.score) - score).abs();
                assert!(error < 0.1, "{:?}: {error} of {score}", index.codes());
            }
            // Its two neighbours on one side are as far as those on the other, but for noise.
            assert_eq!(rescored(&index, &rows, query, &candidates)[..7], truth[..7], "{:?}", index.codes());
        }
    }
}
