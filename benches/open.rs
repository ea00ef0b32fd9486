//! How much longer than reading its bytes does opening a cache take, and how long is the first search afterwards?
//!
//! Opening reads and checks the index; rows that belong in memory come behind, while searches read those they need from the
//! store. Both are compared with reading as many bytes of the store's files on one thread, cold (every file dropped from the
//! page cache by `dd oflag=nocache`, where `dd` can) and warm.
//!
//! ```text
//! VISCACHE_BENCH_DATA=DIR cargo bench --profile dev --bench open
//! ```
//! The store is made once (`DIR/open-store-N-CODES`, N = `VISCACHE_BENCH_ITEMS`, `VISCACHE_BENCH_CODES` = `u4` or another),
//! with a small graph: its links are a tenth of the bytes either way.

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{machine, median, setting, timed, verdict};
use viscache::cache::{Cache, LoadOptions, RowsMode};
use viscache::index::{BuildParams, SearchParams, Searcher};
use viscache::store::{Access, Store};
use viscache::types::{CacheName, Embedding};

const DIM: usize = 1024;
const ROUNDS: usize = 5;
/// Most that opening may take, in times of reading; most milliseconds of the first search.
const GOAL: f64 = 1.3;
const FIRST_GOAL: f64 = 5.0;

fn main() {
    machine();
    let Some(folder) = common::data() else {
        println!("skipped (set VISCACHE_BENCH_DATA to a folder on the disk to be measured)");
        return;
    };
    let items = setting("VISCACHE_BENCH_ITEMS", 200_000);
    let name: CacheName = "bench".parse().unwrap();
    let codes = std::env::var("VISCACHE_BENCH_CODES").unwrap_or("u4".into());
    let path = folder.join(format!("open-store-{items}-{codes}"));
    let done = path.join("COMPLETE");
    if !done.exists() {
        drop(std::fs::remove_dir_all(&path));
        let params =
            BuildParams { m: 8, ef_construction: 24, codes: codes.parse().unwrap(), ..Default::default() };
        let (_, took) = timed(|| common::make_cache(&path, &name, items, DIM, &params));
        std::fs::write(done, "").unwrap();
        println!("made the store in {:.0} s", took.wall);
    }
    let query = Embedding::new(common::clustered(99, 1, DIM)).unwrap();
    let clustered = common::clustered(100, 1024, DIM);
    let files = files(&path);
    let bytes: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
    println!("{items} × {DIM}, {codes} codes: {} files, {} MiB", files.len(), bytes >> 20);
    for cold in [true, false] {
        if cold && !files.iter().all(|file| evict(file)) {
            println!("cold: `dd oflag=nocache` does not work here; measured warm only");
            continue;
        }
        let prepare = || match cold {
            true => drop(files.iter().map(|file| evict(file)).collect::<Vec<_>>()),
            false => _ = read_all(&files),
        };
        for (rows, word) in [(RowsMode::Ram, "rows in memory"), (RowsMode::Disk, "rows on disk")] {
            let (mut opens, mut reads, mut firsts, mut cpu, mut whole, mut plan) =
                (vec![], vec![], vec![], vec![], vec![], None);
            let (mut meanwhile, mut searcher) = (vec![], Searcher::default());
            for _ in 0..ROUNDS {
                prepare();
                let (start, before) = (Instant::now(), common::process_cpu(false).unwrap_or(0.0));
                let (cache, time) = timed(|| open(&path, &name, rows));
                opens.push(time.wall);
                cpu.push(common::process_cpu(false).unwrap_or(0.0) - before);
                let snapshot = cache.snapshot();
                plan = Some(snapshot.loaded().plan);
                let search =
                    || snapshot.search(&mut Searcher::default(), &query, 10, &SearchParams::default());
                let (found, time) = timed(search);
                assert_eq!(found.unwrap().hits.len(), 10);
                firsts.push(1e3 * time.wall);
                // As one client would ask, one query every other millisecond.
                for row in clustered.chunks_exact(DIM).cycle() {
                    if rows == RowsMode::Disk || snapshot.rows_in_memory() {
                        break;
                    }
                    let query = Embedding::new(row.to_vec()).unwrap();
                    let search = || snapshot.search(&mut searcher, &query, 10, &SearchParams::default());
                    meanwhile.push(1e3 * timed(search).1.wall);
                    std::thread::sleep(Duration::from_millis(2));
                }
                whole.push(start.elapsed().as_secs_f64());
                drop((snapshot, cache));
                prepare();
                reads.push(timed(|| read_all(&files)).1.wall);
            }
            let (plan, read) = (plan.unwrap(), median(reads) / bytes as f64);
            // The index alone, and the rows as well.
            let (index, all) = (plan.index as f64 * read, plan.total() as f64 * read);
            let (open, first, whole) = (median(opens), median(firsts), median(whole));
            let goal = |met: bool, what: String| match cold {
                true => format!("  (goal ≤ {what}: {})", verdict(met)),
                false => String::new(),
            };
            println!(
                "RATIO {}, {word}: searchable in {open:.3} s ({:.2} s of processor) / read {index:.3} s = {:.2} ×{}",
                if cold { "cold" } else { "warm" },
                median(cpu),
                open / index,
                goal(open / index <= GOAL, format!("{GOAL} ×")),
            );
            println!("  first search {first:.2} ms{}", goal(first <= FIRST_GOAL, format!("{FIRST_GOAL} ms")));
            if rows == RowsMode::Ram {
                println!("  rows there after {whole:.3} s / read {all:.3} s = {:.2} ×", whole / all);
                meanwhile.sort_by(f64::total_cmp);
                let at = |share: f64| meanwhile[((meanwhile.len() - 1) as f64 * share) as usize];
                let (p50, p99) = (at(0.5), at(0.99));
                println!(
                    "  {} searches meanwhile, every 2 ms: p50 {p50:.2} ms, p99 {p99:.2} ms",
                    meanwhile.len()
                );
            }
        }
    }
}

/// Opens as a server does.
fn open(path: &Path, name: &CacheName, rows: RowsMode) -> Cache {
    let store = Arc::new(Store::open(path, Access::Read).unwrap());
    Cache::open_early(&store, name, None, LoadOptions { rows, memory_budget: 64 << 30 }).unwrap()
}

fn files(path: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|e| e == "sst" || e == "log")).collect();
    files.sort();
    files
}

/// Reads every file from end to end into one buffer; bytes read.
fn read_all(files: &[PathBuf]) -> u64 {
    let mut buffer = vec![0u8; 4 << 20];
    let mut total = 0;
    for file in files {
        let mut file = std::fs::File::open(file).unwrap();
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => break,
                n => total += n as u64,
            }
        }
    }
    total
}

/// Drops a file from the page cache.
fn evict(file: &Path) -> bool {
    let mut dd = Command::new("dd");
    dd.arg(format!("of={}", file.display())).args(["oflag=nocache", "conv=notrunc,fdatasync", "count=0"]);
    dd.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
