//! What does a cache go through while a share of its items is replaced?
//!
//! A store is opened for writing with a budget of a quarter more than its cache takes. Clients search it, alone and then while
//! items are replaced at a steady pace, each once; what is due is done behind them. Told are searches a second under load against
//! alone, taken in turns of a second; recall@10 against an exact scan of the same moment, before, meanwhile and after;
//! refusals; the most that the cache says it holds and that the process held; and what was written to disk for every byte of a row.
//!
//! ```text
//! cargo bench --profile dev --bench living      VISCACHE_BENCH_ITEMS (60000), VISCACHE_BENCH_DIM (256), VISCACHE_BENCH_PACE (1000)
//!     VISCACHE_BENCH_SHARE (30), VISCACHE_BENCH_CLIENTS (1)
//! VISCACHE_BENCH_STORE=DIR VISCACHE_BENCH_CACHE=NAME VISCACHE_BENCH_ROWS=FILE.npy VISCACHE_BENCH_QUERIES=FILE.npy …
//!     of a cache that there is; it is changed. New items are rows of the file, and so are the queries
//! ```

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{clustered, machine, median, setting};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;
use viscache::cache::{Background, Cache, CompactOptions, Error, LoadOptions, NewItem, RowsMode};
use viscache::index::{SearchParams, Searcher};
use viscache::media::npy;
use viscache::store::{Access, ItemRecord, Store};
use viscache::types::{CacheName, Embedding, Fingerprint, ItemId};

/// Items of one call.
const BATCH: usize = 64;
/// Queries that recall is measured by.
const MEASURED: usize = 200;

fn main() {
    // SAFETY: the process has one thread yet.
    unsafe { viscache::models::device::settle_process() };
    machine();
    let kept = tempfile::tempdir().unwrap();
    let var = |name: &str| std::env::var(name).ok();
    let dim = setting("VISCACHE_BENCH_DIM", 256);
    let (folder, name): (PathBuf, CacheName) =
        match (var("VISCACHE_BENCH_STORE"), var("VISCACHE_BENCH_CACHE")) {
            (Some(store), Some(cache)) => (store.into(), cache.parse().unwrap()),
            _ => {
                let name: CacheName = "bench".parse().unwrap();
                let items = setting("VISCACHE_BENCH_ITEMS", 60_000);
                common::make_cache(kept.path(), &name, items, dim, &Default::default());
                (kept.path().to_owned(), name)
            }
        };
    let open = |budget: u64| {
        let store = Arc::new(Store::open(&folder, Access::Write).unwrap());
        let options = LoadOptions { rows: RowsMode::Ram, memory_budget: budget };
        Arc::new(Cache::open(&store, &name, None, options).unwrap())
    };
    let plan = open(u64::MAX >> 1).snapshot().loaded().plan;
    let budget = plan.total() * 5 / 4;
    let cache = open(budget);
    let (items, dim) = (cache.snapshot().live(), cache.snapshot().record().dim);
    let share = setting("VISCACHE_BENCH_SHARE", 30);
    let replaced = items * share / 100;
    let read = |name: &str, n: usize, seed: u64| match var(name) {
        Some(file) => rows(&file, dim, n),
        None => clustered(seed, n, dim),
    };
    let new = read("VISCACHE_BENCH_ROWS", replaced, 5);
    let queries = read("VISCACHE_BENCH_QUERIES", 2000, 99);
    let queries: Vec<Embedding> =
        queries.chunks_exact(dim).map(|query| Embedding::new(query.to_vec()).unwrap()).collect();
    println!(
        "{items} × {dim}, {plan}; budget {} MiB, held {} MiB by the system",
        budget >> 20,
        status("VmRSS") >> 10
    );

    let (stop, found, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let params = SearchParams::default();
    let clients = setting("VISCACHE_BENCH_CLIENTS", 1);
    let options = CompactOptions { threads: 1, ..CompactOptions::default() };
    let background = Background::default();
    let (mut full, mut held) = (0u64, 0u64);
    let mut recalls = vec![("before", recall(&cache, &queries))];
    std::fs::write("/proc/self/clear_refs", "5").ok();
    let written = io("write_bytes");
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (cache, queries, stop, found, failed) = (&cache, &queries, &stop, &found, &failed);
            scope.spawn(move || {
                let (mut searcher, mut at) = (Searcher::default(), client * 131);
                while !stop.load(Ordering::Relaxed) {
                    at += 1;
                    match cache.snapshot().search(&mut searcher, &queries[at % queries.len()], 10, &params) {
                        Ok(answer) if answer.hits.len() == 10 => found.fetch_add(1, Ordering::Relaxed),
                        _ => failed.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
        }
        let rate = |seconds: f64| {
            let (start, before) = (Instant::now(), found.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_secs_f64(seconds));
            (found.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64()
        };
        rate(2.0);
        let idle = median((0..7).map(|_| rate(1.0)).collect());
        println!("alone: {idle:.0} searches a second by {clients}, recall@10 {:.4}", recalls[0].1);

        let pace = setting("VISCACHE_BENCH_PACE", 1000) as f64;
        let mut ids: Vec<u64> = (0..items as u64).collect();
        ids.shuffle(&mut Pcg64::seed_from_u64(7));
        let (start, mut rates, mut told) = (Instant::now(), Vec::new(), Instant::now());
        let mut before = found.load(Ordering::Relaxed);
        for (at, (ids, rows)) in ids[..replaced].chunks(BATCH).zip(new.chunks(BATCH * dim)).enumerate() {
            let items = || ids.iter().zip(rows.chunks_exact(dim)).map(|(&id, row)| item(id, row)).collect();
            loop {
                match cache.upsert(items()) {
                    Ok(results) => break assert!(results.iter().all(Result::is_ok)),
                    Err(Error::Full { .. }) => {
                        full += 1;
                        cache.compact_for_room(&options, &background);
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            cache.compact_if_due(&options, &background);
            let now = cache.snapshot();
            held = held.max(now.loaded().plan.total() + now.delta().bytes);
            if told.elapsed() >= Duration::from_secs(1) {
                let after = found.load(Ordering::Relaxed);
                rates.push((after - before) as f64 / told.elapsed().as_secs_f64());
                (before, told) = (after, Instant::now());
                if rates.len() % 20 == 0 {
                    let delta = now.delta();
                    println!(
                        "  {} replaced in {:.0} s: {:.0} searches a second, {} wait, {} slots, generation {}",
                        at * BATCH,
                        start.elapsed().as_secs_f64(),
                        rates[rates.len() - 1],
                        delta.items,
                        now.index().len(),
                        now.generation()
                    );
                }
            }
            let due = (at + 1) as f64 * BATCH as f64 / pace;
            std::thread::sleep(Duration::from_secs_f64((due - start.elapsed().as_secs_f64()).max(0.0)));
        }
        let took = start.elapsed().as_secs_f64();
        recalls.push(("at the end of the load", recall(&cache, &queries)));
        while cache.compacting() {
            std::thread::sleep(Duration::from_millis(100));
        }
        rate(1.0);
        let after = median((0..7).map(|_| rate(1.0)).collect());
        stop.store(true, Ordering::Relaxed);
        let low = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let load = median(rates);
        println!("{replaced} replaced in {took:.0} s, {:.0} a second", replaced as f64 / took);
        println!(
            "under load: {load:.0} searches a second, {:.2} of alone; the worst second {:.2}",
            load / idle,
            low / idle
        );
        println!("afterwards: {after:.0}, {:.2} of alone", after / idle);
    });
    recalls.push(("afterwards", recall(&cache, &queries)));
    recalls.iter().for_each(|(when, recall)| println!("recall@10 {when}: {recall:.4}"));
    let rows = (replaced * dim * cache.snapshot().record().rows.bytes()) as f64;
    println!("refused for want of room: {full}; searches that failed: {}", failed.load(Ordering::Relaxed));
    println!("held at most {} MiB by its own count, budget {} MiB", held >> 20, budget >> 20);
    println!("the process at most {} MiB, now {} MiB", status("VmHWM") >> 10, status("VmRSS") >> 10);
    println!("written for every byte of a row: {:.1}", (io("write_bytes") - written) as f64 / rows);
    println!("last problem: {:?}; generation {}", cache.compaction_problem(), cache.snapshot().generation());
}

fn item(id: u64, row: &[f32]) -> NewItem {
    let digest = Fingerprint::of(bytemuck::cast_slice(row));
    let record = ItemRecord { uri: format!("new/{id}"), modality: None, digest, tags: BTreeMap::new() };
    NewItem { id: Some(ItemId(id)), embedding: Embedding::new(row.to_vec()).unwrap(), record }
}

/// Recall@10 of some queries against an exact search of the same moment.
fn recall(cache: &Cache, queries: &[Embedding]) -> f64 {
    let (now, mut searcher, mut sum) = (cache.snapshot(), Searcher::default(), 0.0);
    for query in &queries[..MEASURED.min(queries.len())] {
        let ids = |searcher: &mut Searcher, exact: bool| -> Vec<ItemId> {
            let params = SearchParams { exact, ..SearchParams::default() };
            now.search(searcher, query, 10, &params).unwrap().hits.iter().map(|hit| hit.id).collect()
        };
        let (truth, found) = (ids(&mut searcher, true), ids(&mut searcher, false));
        sum += truth.iter().filter(|id| found.contains(id)).count() as f64 / truth.len() as f64;
    }
    sum / MEASURED.min(queries.len()) as f64
}

fn rows(file: &str, dim: usize, n: usize) -> Vec<f32> {
    let matrix = npy::read(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(matrix.dim, dim, "{file}");
    let mut values = matrix.values;
    values.truncate(n * dim);
    values
}

/// A line of the process's status, in KiB.
fn status(line: &str) -> u64 {
    number(&std::fs::read_to_string("/proc/self/status").unwrap(), line)
}

fn io(line: &str) -> u64 {
    number(&std::fs::read_to_string("/proc/self/io").unwrap_or_default(), line)
}

fn number(text: &str, line: &str) -> u64 {
    let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
    found.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
