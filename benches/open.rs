//! How much longer than reading its bytes does opening a cache take?
//!
//! Opening reads and checks index and rows. It is compared with reading the store's files from end to end on one
//! thread, both cold (every file dropped from the page cache by `dd oflag=nocache`, where `dd` can) and warm.
//!
//! ```text
//! VISCACHE_BENCH_DATA=DIR cargo bench --profile dev --bench open
//! ```
//! The store is made once (`DIR/open-store-N`, N = `VISCACHE_BENCH_ITEMS`), with a small graph: its links are a tenth of
//! the bytes either way.

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::{machine, median, setting, timed, verdict};
use viscache::cache::{Cache, LoadOptions, RowsMode};
use viscache::index::BuildParams;
use viscache::store::{Access, Store};
use viscache::types::CacheName;

const DIM: usize = 1024;
const ROUNDS: usize = 5;
const GOAL: f64 = 1.5;

fn main() {
    machine();
    let Some(folder) = common::data() else {
        println!("skipped (set VISCACHE_BENCH_DATA to a folder on the disk to be measured)");
        return;
    };
    let items = setting("VISCACHE_BENCH_ITEMS", 200_000);
    let name: CacheName = "bench".parse().unwrap();
    let path = folder.join(format!("open-store-{items}"));
    let done = path.join("COMPLETE");
    if !done.exists() {
        drop(std::fs::remove_dir_all(&path));
        let params = BuildParams { m: 8, ef_construction: 24, ..Default::default() };
        let (_, took) = timed(|| common::make_cache(&path, &name, items, DIM, &params));
        std::fs::write(done, "").unwrap();
        println!("made the store in {:.0} s", took.wall);
    }
    let files = files(&path);
    let bytes: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
    println!("{items} × {DIM}: {} files, {} MiB", files.len(), bytes >> 20);
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
            let (mut opens, mut reads, mut cpu, mut taken) = (vec![], vec![], vec![], 0);
            for _ in 0..ROUNDS {
                prepare();
                let before = common::process_cpu(false).unwrap_or(0.0);
                let (total, time) = timed(|| open(&path, &name, rows));
                opens.push(time.wall);
                cpu.push(common::process_cpu(false).unwrap_or(0.0) - before);
                taken = total;
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
            println!(
                "RATIO {}, {word}: open {open:.3} s ({:.2} s of processor) / read {read:.3} s = {ratio:.2} ×{goal}",
                if cold { "cold" } else { "warm" },
                median(cpu),
            );
        }
    }
}

/// Opens as a server does; bytes taken in memory.
fn open(path: &Path, name: &CacheName, rows: RowsMode) -> u64 {
    let store = Arc::new(Store::open(path, Access::Read).unwrap());
    let cache = Cache::open(&store, name, None, LoadOptions { rows, memory_budget: 64 << 30 }).unwrap();
    cache.snapshot().loaded().plan.total()
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
