//! How much longer than reading its bytes does opening a cache take, and how long is the first search afterwards?
//!
//! Opening reads and checks index and rows. It is compared with reading the store's files from end to end on one
//! thread, both cold (every file dropped from the page cache by `dd oflag=nocache`, where `dd` can) and warm.
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
            let (mut opens, mut reads, mut firsts, mut cpu, mut taken) = (vec![], vec![], vec![], vec![], 0);
            for _ in 0..ROUNDS {
                prepare();
                let before = common::process_cpu(false).unwrap_or(0.0);
                let (cache, time) = timed(|| open(&path, &name, rows));
                opens.push(time.wall);
                cpu.push(common::process_cpu(false).unwrap_or(0.0) - before);
                let snapshot = cache.snapshot();
                taken = snapshot.loaded().plan.total();
                let search =
                    || snapshot.search(&mut Searcher::default(), &query, 10, &SearchParams::default());
                let (found, time) = timed(search);
                assert_eq!(found.unwrap().hits.len(), 10);
                firsts.push(1e3 * time.wall);
                drop((snapshot, cache));
                prepare();
                reads.push(timed(|| read_all(&files)).1.wall);
            }
            // With rows on disk only the index is read: the sequential read is scaled to as many bytes.
            let share = taken as f64 / bytes as f64;
            let share = if rows == RowsMode::Ram { 1.0 } else { share };
            let (open, read) = (median(opens), median(reads) * share);
            let ratio = open / read;
            let goal = match rows {
                RowsMode::Ram if cold => format!("  (goal ≤ {GOAL} ×: {})", verdict(ratio <= GOAL)),
                _ => String::new(),
            };
            let first = median(firsts);
            let first_goal = match rows {
                RowsMode::Ram => format!("  (goal ≤ {FIRST_GOAL} ms: {})", verdict(first <= FIRST_GOAL)),
                _ => String::new(),
            };
            println!(
                "RATIO {}, {word}: open {open:.3} s ({:.2} s of processor) / read {read:.3} s = {ratio:.2} ×{goal}",
                if cold { "cold" } else { "warm" },
                median(cpu),
            );
            println!("  first search {first:.2} ms{first_goal}");
        }
    }
}

/// Opens as a server does.
fn open(path: &Path, name: &CacheName, rows: RowsMode) -> Cache {
    let store = Arc::new(Store::open(path, Access::Read).unwrap());
    Cache::open(&store, name, None, LoadOptions { rows, memory_budget: 64 << 30 }).unwrap()
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
