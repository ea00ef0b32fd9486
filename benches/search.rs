//! How many times faster is our search than `hnsw_rs`'s own, at equal recall?
//!
//! Ours has the default parameters; theirs a wider graph (M 24, efConstruction 160: it gets no repair), holds f32 rows
//! and uses our widest f32 kernel as its distance. One thread; recall@10 against an exact scan; ef is swept and queries/s
//! are interpolated at equal recall. Ours includes coding the query and rescoring on f32 rows.
//!
//! ```text
//! python synthbind.py --out DIR -n 100000 --nq 2000 --ntrain 50000 --no-gt
//! VISCACHE_BENCH_DATA=DIR cargo bench --profile dev --bench search
//! ```
//! `VISCACHE_BENCH_REPAIR=50000` repairs our graph with so many training queries (`xtrain.fbin`). Where there are more of them,
//! some of the others calibrate margins, and ours is swept with those as well, as a request with `target_recall` is searched.
//! `VISCACHE_BENCH_OWN=1` leaves `hnsw_rs` out, `_REUSE=1` takes our index from an earlier run; `VISCACHE_BENCH_M`, `_EFC`,
//! `_REFINE`, `_CODES`, `_RESCORE`, `_THREADS` (of the build) change our side, `VISCACHE_BENCH_PEER_M` and `_PEER_EFC` theirs.

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;

use common::{Noise, fbin, machine, median, setting, timed, verdict};
use hnsw_rs::prelude::{Distance, Hnsw};
use rayon::prelude::*;
use viscache::cache::{RECALL_SAMPLE, calibrate};
use viscache::index::exact;
use viscache::index::{
    AlignedBytes, BuildParams, Codec, Cost, InMemory, Index, Parts, SearchParams, Searcher, build,
};
use viscache::kernels::Kernels;
use viscache::types::ItemId;

const TOP_K: usize = 10;
/// Queries that ours is given at a time; it works on several of them in turn.
const BATCH: usize = 256;
const ROUNDS: usize = 5;
/// Least length of a round.
const ROUND_SECONDS: f64 = 0.2;
const EFS: [usize; 17] = [10, 12, 14, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512];
/// Recall and the ratio we want there, by kind of query.
const GOALS: [(&str, f64, Option<f64>); 5] = [
    ("inq", 0.95, None),
    ("inq", 0.99, Some(6.0)),
    ("xq", 0.90, None),
    ("xq", 0.95, Some(6.0)),
    ("xq", 0.99, None),
];

/// 1 − q·x with the widest f32 kernel; `hnsw_rs` asserts that it is not negative.
struct InnerProduct(Kernels);

impl Distance<f32> for InnerProduct {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        (1.0 - self.0.dot(a, b)).max(0.0)
    }
}

struct Queries {
    name: &'static str,
    rows: Vec<Vec<f32>>,
    truth: Vec<Vec<u32>>,
}

struct Point {
    ef: usize,
    recall: f64,
    per_second: f64,
    cost: Cost,
}

fn main() {
    machine();
    kernels();
    let Some(folder) = common::data() else {
        println!("skipped: the searches (set VISCACHE_BENCH_DATA, see benches/README.md)");
        return;
    };
    let (rows, dim) = fbin(&folder.join("base.fbin"));
    let sets = ["inq", "xq"].map(|name| queries(name, &folder, &rows, dim));
    let own_only = setting("VISCACHE_BENCH_OWN", 0) == 1;

    let params = BuildParams {
        m: setting("VISCACHE_BENCH_M", BuildParams::DEFAULT_M),
        ef_construction: setting("VISCACHE_BENCH_EFC", BuildParams::DEFAULT_EF_CONSTRUCTION),
        refine: setting("VISCACHE_BENCH_REFINE", BuildParams::DEFAULT_REFINE),
        threads: setting("VISCACHE_BENCH_THREADS", common::cores()),
        codes: std::env::var("VISCACHE_BENCH_CODES")
            .map_or(BuildParams::DEFAULT_CODES, |word| word.parse().unwrap()),
        ..Default::default()
    };
    let train = match setting("VISCACHE_BENCH_REPAIR", 0) {
        0 => Vec::new(),
        _ => fbin(&folder.join("xtrain.fbin")).0,
    };
    let (train, held_out) = train.split_at(setting("VISCACHE_BENCH_REPAIR", 0) * dim);
    let (index, took) = timed(|| ours(&params, &rows, dim, train, &folder));
    let summary = index.summary();
    println!(
        "ours: M {} efConstruction {} codes {}; built in {:.1} s on {} threads, {:.1} links a node, {} MiB",
        params.m,
        params.ef_construction,
        params.codes.word(),
        took.wall,
        params.threads,
        summary.mean_degree,
        summary.bytes >> 20
    );
    let peer = (!own_only).then(|| {
        let (m, ef) = (setting("VISCACHE_BENCH_PEER_M", 24), setting("VISCACHE_BENCH_PEER_EFC", 160));
        let (peer, took) = timed(|| theirs(m, ef, &rows, dim));
        println!("hnsw_rs: M {m} efConstruction {ef} on f32; built in {:.1} s on all threads", took.wall);
        peer
    });

    // As a cache holds rows in memory: in large pages.
    let resident = AlignedBytes::copy_of(bytemuck::cast_slice(&rows)).unwrap();
    let resident: &[f32] = bytemuck::cast_slice(resident.as_slice());
    let rescore = setting("VISCACHE_BENCH_RESCORE", SearchParams::DEFAULT_RESCORE);
    let held_out = held_out.chunks_exact(dim).take(RECALL_SAMPLE).map(<[f32]>::to_vec).collect::<Vec<_>>();
    let margins = (!held_out.is_empty()).then(|| {
        let matrix = InMemory { rows: &rows, dim };
        let kinds = BTreeMap::from([("xq".to_owned(), held_out)]);
        calibrate(&index, &matrix, RECALL_SAMPLE, &kinds).unwrap().measured
    });
    let (mut our_curves, mut margin_curves, mut peer_curves) = (Vec::new(), Vec::new(), Vec::new());
    for set in &sets {
        println!("\n{}: {} queries, one thread, median of {ROUNDS} rounds", set.name, set.rows.len());
        println!("        ef   recall@10   queries/s   visited   scored");
        let mut searcher = Searcher::default();
        let mut search = |queries: &[&[f32]], (ef, margin): Beam| {
            // Rescoring more than ef would widen the beam beyond it.
            let rescore = rescore.min(ef);
            let search = SearchParams { ef_search: ef, margin, ..Default::default() };
            let mut found = Vec::with_capacity(queries.len());
            for batch in queries.chunks(BATCH) {
                let (_, all) = searcher.find_all(&index, batch, rescore, &search).unwrap();
                let one = |(query, (candidates, cost)): (&&[f32], (Vec<_>, _))| {
                    (rescored(&index, resident, query, &candidates), cost)
                };
                found.extend(batch.iter().zip(all).map(one));
            }
            found
        };
        let plain = EFS.map(|ef| (ef, None));
        let curve = sweep(set, &plain, &mut search);
        print_curve("ours", &curve);
        our_curves.push(curve);
        if let Some(margins) = &margins {
            let kind = if set.name == "inq" { "image" } else { set.name };
            // None where a scan is always cheaper.
            let points = margins.get(kind).and_then(|measured| measured.ways.get(1)).into_iter().flatten();
            let beams: Vec<Beam> = points.map(|point| (point.ef_search, point.margin)).collect();
            let curve = sweep(set, &beams, &mut search);
            print_curve("margin", &curve);
            margin_curves.push(curve);
        }
        if let Some(peer) = &peer {
            let curve = sweep(set, &plain, |queries, (ef, _)| {
                let one = |query: &&[f32]| {
                    let found = peer.search(query, TOP_K, ef);
                    (found.iter().map(|n| n.d_id as u32).collect(), Cost::default())
                };
                queries.iter().map(one).collect()
            });
            print_curve("theirs", &curve);
            peer_curves.push(curve);
        }
    }
    println!();
    for (name, recall, goal) in GOALS {
        let at = usize::from(name == "xq");
        let Some((ours, scored)) = speed_at(&our_curves[at], recall) else {
            println!("{name} at recall {recall}: not reached by ours");
            continue;
        };
        if let Some((ours, scored)) = margin_curves.get(at).and_then(|curve| speed_at(curve, recall)) {
            println!(
                "{name} at recall {recall}: ours by margins {ours:.0} queries/s, {scored:.0} rows scored"
            );
        }
        let Some(peer) = peer_curves.get(at) else {
            println!("{name} at recall {recall}: ours {ours:.0} queries/s, {scored:.0} rows scored");
            continue;
        };
        let Some((theirs, _)) = speed_at(peer, recall) else {
            println!("{name} at recall {recall}: ours {ours:.0} queries/s, not reached by hnsw_rs");
            continue;
        };
        let ratio = ours / theirs;
        let goal = goal.map_or(String::new(), |g| format!("  (goal ≥ {g} ×: {})", verdict(ratio >= g)));
        println!(
            "RATIO {name} at recall {recall}: ours {ours:.0} / hnsw_rs {theirs:.0} queries/s = {ratio:.2} ×{goal}"
        );
    }
}

/// Builds our index, or takes the one that an earlier run left when `VISCACHE_BENCH_REUSE=1`.
fn ours(params: &BuildParams, rows: &[f32], dim: usize, train: &[f32], folder: &Path) -> Index {
    let BuildParams { m, ef_construction, refine, codes, .. } = params;
    let repair = train.len() / dim;
    let kept = folder.join(format!("search-{m}-{ef_construction}-{refine}-{repair}-{}.idx", codes.word()));
    if setting("VISCACHE_BENCH_REUSE", 0) == 1 && kept.exists() {
        return Index::open(&std::fs::read(kept).unwrap()).unwrap();
    }
    let codec = Codec::train(params.codes, rows, dim);
    let graph = build(params, &codec, rows, train, |_, _| ()).unwrap();
    let ids: Vec<ItemId> = (0..(rows.len() / dim) as u64).map(ItemId).collect();
    let codes = codec.encode(rows);
    let mut bytes = Vec::new();
    Parts { graph: &graph, codec: &codec, ids: &ids, codes: &codes }.write(&mut bytes).unwrap();
    std::fs::write(kept, &bytes).unwrap();
    Index::open(&bytes).unwrap()
}

fn theirs(m: usize, ef: usize, rows: &[f32], dim: usize) -> Hnsw<'static, f32, InnerProduct> {
    let n = rows.len() / dim;
    let peer = Hnsw::new(m, n, 16, ef, InnerProduct(Kernels::get()));
    peer.insert_slice((&rows[..dim], 0));
    (1..n).into_par_iter().for_each(|i| peer.insert_slice((&rows[i * dim..][..dim], i)));
    peer
}

/// The ten best of the candidates by their rows, as the cache rescores them.
fn rescored(
    index: &Index,
    rows: &[f32],
    query: &[f32],
    candidates: &[viscache::index::Candidate],
) -> Vec<u32> {
    let score = |slots: &[u32], out: &mut Vec<f32>| Kernels::get().score_f32(rows, slots, query, out);
    let (best, _) = exact::rescore(candidates, TOP_K, None, index.score_error(query), score);
    best.iter().map(|scored| scored.slot.0).collect()
}

fn queries(name: &'static str, folder: &Path, rows: &[f32], dim: usize) -> Queries {
    let (values, query_dim) = fbin(&folder.join(format!("{name}.fbin")));
    assert_eq!(dim, query_dim);
    let queries: Vec<Vec<f32>> = values.chunks_exact(dim).map(<[f32]>::to_vec).collect();
    let truth = queries
        .par_iter()
        .map(|query| exact::search(rows, query, TOP_K).iter().map(|s| s.slot.0).collect())
        .collect();
    Queries { name, rows: queries, truth }
}

/// Width and margin.
type Beam = (usize, Option<f32>);

fn sweep(
    set: &Queries,
    beams: &[Beam],
    mut search: impl FnMut(&[&[f32]], Beam) -> Vec<(Vec<u32>, Cost)>,
) -> Vec<Point> {
    let mut curve = Vec::new();
    let queries: Vec<&[f32]> = set.rows.iter().map(Vec::as_slice).collect();
    for &beam in beams {
        let (mut recall, mut cost) = (0.0, Cost::default());
        for ((found, work), truth) in search(&queries, beam).into_iter().zip(&set.truth) {
            recall += exact::recall(truth, &found) / set.rows.len() as f64;
            cost += work;
        }
        let mut round = |repeats: usize| {
            let (_, time) = timed(|| (0..repeats).for_each(|_| drop(black_box(search(&queries, beam)))));
            ((repeats * set.rows.len()) as f64, time)
        };
        // Long enough for the processor clock, whose ticks are a few milliseconds.
        let once = round(1).1.wall;
        let repeats = (ROUND_SECONDS / once).ceil() as usize;
        let mut round = || {
            let (searches, time) = round(repeats);
            searches / time.cpu
        };
        let per_second = median((0..ROUNDS).map(|_| round()).collect());
        curve.push(Point { ef: beam.0, recall, per_second, cost });
        if recall > 0.995 {
            break;
        }
    }
    let n = set.rows.len() as u64;
    for point in &mut curve {
        point.cost.visited_nodes /= n;
        point.cost.scored_vectors /= n;
    }
    curve
}

fn print_curve(name: &str, curve: &[Point]) {
    for Point { ef, recall, per_second, cost } in curve {
        let (visited, scored) = (cost.visited_nodes, cost.scored_vectors);
        println!("{name:>6} {ef:>3} {recall:>11.4} {per_second:>11.0} {visited:>9} {scored:>8}");
    }
}

/// Queries/s and rows scored at a recall, on a straight line between the two nearest points. A curve that begins
/// above the recall is taken at its first point: it does no better there.
fn speed_at(curve: &[Point], recall: f64) -> Option<(f64, f64)> {
    let scored = |p: &Point| p.cost.scored_vectors as f64;
    let first = curve.first()?;
    if first.recall >= recall {
        return Some((first.per_second, scored(first)));
    }
    curve.windows(2).find(|pair| pair[0].recall < recall && pair[1].recall >= recall).map(|pair| {
        let share = (recall - pair[0].recall) / (pair[1].recall - pair[0].recall);
        // Time a query, not queries a second, grows evenly with the work.
        let time = (1.0 - share) / pair[0].per_second + share / pair[1].per_second;
        (1.0 / time, (1.0 - share) * scored(&pair[0]) + share * scored(&pair[1]))
    })
}

/// Scalar against AVX2 against AVX-512, on rows that stay in the first-level cache.
fn kernels() {
    const DIM: usize = 1024;
    const CALLS: usize = 2_000;
    let mut noise = Noise(3);
    let rows: Vec<f32> = (0..2 * DIM).map(|_| noise.next()).collect();
    let (a, b) = rows.split_at(DIM);
    let codes: Vec<u8> = a.iter().map(|v| (v * 127.0 + 128.0) as u8).collect();
    let others: Vec<u8> = b.iter().map(|v| (v * 127.0 + 128.0) as u8).collect();
    let query: Vec<i8> = b.iter().map(|v| (v * 127.0) as i8).collect();
    let halves: Vec<half::f16> = b.iter().map(|&v| half::f16::from_f32(v)).collect();
    println!("kernels, ns a call of {DIM} components (and times faster than scalar):");
    let (slots, out) = ([0u32; 100], std::cell::RefCell::new(Vec::new()));
    let planes: Vec<u64> = codes[..DIM / 2].chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
    let mut base = [0.0; 7];
    for kernels in Kernels::available() {
        let time = |work: &dyn Fn()| {
            let round = |_| {
                let (_, time) = timed(|| (0..CALLS).for_each(|_| work()));
                time.wall / CALLS as f64 * 1e9
            };
            // Too short for the processor clock, whose ticks are milliseconds: the quietest round by the other one.
            (0..7).map(round).fold(f64::INFINITY, f64::min)
        };
        let times = [
            time(&|| _ = black_box(kernels.dot(black_box(a), b))),
            time(&|| _ = black_box(kernels.dot_f16(black_box(a), &halves))),
            time(&|| _ = black_box(kernels.dot_codes(black_box(&codes), &query))),
            time(&|| _ = black_box(kernels.distance_codes(black_box(&codes), &others))),
            time(&|| kernels.score_codes(black_box(&codes[..]), &slots, &query, &mut out.borrow_mut()))
                / 100.0,
            time(&|| kernels.score_nibbles(black_box(&codes[..]), &slots, &query, &mut out.borrow_mut()))
                / 100.0,
            time(&|| kernels.score_signs(black_box(&codes[..]), &slots, &planes, &mut out.borrow_mut()))
                / 100.0,
        ];
        if kernels.name() == "scalar" {
            base = times;
        }
        let names =
            ["dot", "dot_f16", "dot_codes", "distance_codes", "score_codes", "score_nibbles", "score_signs"];
        let shown = names.into_iter().zip(times).zip(base);
        let shown = shown.map(|((name, t), b)| format!("{name} {t:.1} ({:.1} ×)", b / t));
        println!("  {:<11} {}", kernels.name(), shown.collect::<Vec<_>>().join("   "));
    }
}
