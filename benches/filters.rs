//! Is a filtered search ever slower than scoring the matching rows, and does it find what that finds?
//!
//! Filters let through from nine in ten (`not`) down to one in ten thousand: any rows (`even`), or those that lie together and
//! mostly far from the query (`near`). Both ways begin with the filter; the peer then scores the rows of all matching items
//! in f32. Medians of single queries, the two ways in turn; recall@10 against the peer's hits. Plans are graph, graph with
//! skip, exact.
//!
//! ```text
//! cargo bench --profile dev --bench filters      VISCACHE_BENCH_ITEMS (20000), VISCACHE_BENCH_QUERIES (200)
//! ```

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use common::{chunks, clustered, machine, median, setting, verdict};
use viscache::cache::{Found, LoadOptions, RowsMode, Snapshot};
use viscache::index::{SearchParams, Searcher, exact};
use viscache::kernels::Kernels;
use viscache::store::{Access, Store};
use viscache::types::{CacheName, Embedding, Filter};

const DIM: usize = 1024;
const TOP_K: usize = 10;
/// One in so many items matches.
const RARITIES: [usize; 6] = [2, 3, 10, 100, 1000, 10_000];
/// What the clock may be off where both ways do the same.
const NOISE: f64 = 0.05;

fn main() {
    machine();
    let items = setting("VISCACHE_BENCH_ITEMS", 20_000);
    let queries = setting("VISCACHE_BENCH_QUERIES", 200);
    let folder = tempfile::tempdir().unwrap();
    let name: CacheName = "bench".parse().unwrap();

    // `near`: the rows closest to one of them.
    let pole = chunks(1, DIM).next().unwrap().1;
    let closeness = |row: &[f32]| Kernels::get().dot(&pole, row);
    let mut sorted: Vec<f32> = Vec::with_capacity(items);
    chunks(items, DIM).for_each(|(_, rows)| sorted.extend(rows.chunks_exact(DIM).map(closeness)));
    sorted.sort_by(|a, b| b.total_cmp(a));
    let tags = |i: usize, row: &[f32]| {
        let mut tags = BTreeMap::new();
        for rarity in RARITIES {
            if i.is_multiple_of(rarity) {
                tags.insert(format!("even {rarity}"), "yes".to_owned());
            }
            if closeness(row) >= sorted[(items / rarity).max(1) - 1] {
                tags.insert(format!("near {rarity}"), "yes".to_owned());
            }
        }
        tags
    };
    common::make_tagged_cache(folder.path(), &name, items, DIM, &Default::default(), tags);

    let store = Arc::new(Store::open(folder.path(), Access::Read).unwrap());
    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: 64 << 30 };
    let snapshot = Snapshot::load(&store, &name, options).unwrap();
    let rows = clustered(77, queries, DIM);
    let queries: Vec<Embedding> =
        rows.chunks_exact(DIM).map(|row| Embedding::new(row.to_vec()).unwrap()).collect();
    let tags_kib = snapshot.loaded().plan.tags >> 10;
    println!("{items} × {DIM} rows in memory, tags {tags_kib} KiB, {} queries, top {TOP_K}", queries.len());
    println!(
        "{:<11} {:>8} {:>7} {:>8} {:>9} {:>9} {:>9} {:>9} {:>6}",
        "filter", "matching", "recall", "scored", "filter µs", "p50 µs", "exact µs", "plans", "ratio"
    );
    let mut all = true;
    for kind in ["even", "near"] {
        let tag = |rarity| Filter::Tag { key: format!("{kind} {rarity}"), values: ["yes".to_owned()].into() };
        all &= one(&snapshot, &queries, &format!("not {kind} 10"), &Filter::Not(Box::new(tag(10))));
        for rarity in RARITIES {
            all &= one(&snapshot, &queries, &format!("{kind} {rarity}"), &tag(rarity));
        }
    }
    println!("every ratio ≤ 1 (and {NOISE} for the clock), every recall ≥ 0.95: {}", verdict(all));
}

/// What a piece of work took, in microseconds: too little for a clock that is a file.
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed().as_secs_f64() * 1e6)
}

/// Prints one filter's line; says whether it met the goals.
fn one(snapshot: &Snapshot, queries: &[Embedding], name: &str, filter: &Filter) -> bool {
    let mut searcher = Searcher::default();
    let mut search = |query: &Embedding, exact: bool| -> Found {
        let params = SearchParams { exact, ..SearchParams::default() };
        snapshot.filtered(filter).unwrap().search(&mut searcher, query, TOP_K, &params).unwrap()
    };
    let (mut ours, mut peers, mut filters) = (Vec::new(), Vec::new(), Vec::new());
    let (mut recall, mut scored, mut plans) = (0.0, 0, [0; 3]);
    search(&queries[0], false);
    for (i, query) in queries.iter().enumerate() {
        // Whoever comes first would fetch the rows for the other: one search before both, which then take turns.
        search(query, true);
        let first = timed(|| search(query, i % 2 == 1));
        let second = timed(|| search(query, i % 2 == 0));
        let ((found, time), (truth, peer)) = if i % 2 == 0 { (first, second) } else { (second, first) };
        ours.push(time);
        peers.push(peer);
        filters.push(timed(|| snapshot.filtered(filter).unwrap().len()).1);
        let ids = |found: &Found| found.hits.iter().map(|hit| hit.id).collect::<Vec<_>>();
        recall += exact::recall(&ids(&truth), &ids(&found)) / queries.len() as f64;
        scored += found.cost.scored_vectors;
        plans[found.plan as usize] += 1;
    }
    let matching = snapshot.filtered(filter).unwrap().len();
    let (ours, peers) = (median(ours), median(peers));
    let ratio = ours / peers;
    println!(
        "{name:<11} {matching:>8} {recall:>7.4} {:>8} {:>9.1} {ours:>9.1} {peers:>9.1} {:>9} {ratio:>6.2}",
        scored / queries.len() as u64,
        median(filters),
        plans.map(|plan| plan.to_string()).join("/"),
    );
    ratio <= 1.0 + NOISE && recall >= 0.95
}
