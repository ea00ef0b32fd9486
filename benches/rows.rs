//! What rows of 4 KiB cost in RocksDB's tables, and in its blob files: bytes written for a byte stored, time, space.
//!
//! `VISCACHE_BENCH_DATA=DIR cargo bench --profile dev --bench rows`; `VISCACHE_BENCH_ITEMS` rows (200 000). It takes five times their
//! bytes of disk. The store's own settings of the family `vectors` are the one side; the other has `enable_blob_files` on top, with
//! blob files of 256 MiB that are rewritten when a quarter of them is old. Same keys, same bytes, one after the other.
//!
//! ```text
//! import      ascending ids, batches of 1024, each synced; then all is merged that RocksDB wants merged
//! replace     three in ten, by chance, batches of 256, each synced; then the same
//! scan, gets  cold (files dropped from the system's cache) and again
//! compact     everything merged by hand
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use rocksdb::{
    BoundColumnFamily, ColumnFamilyDescriptor, DB, IteratorMode, Options, ReadOptions, WaitForCompactOptions,
    WriteBatch, WriteOptions,
};

#[path = "../src/store/options.rs"]
mod options;

/// As in `store/mod.rs`; the settings are for these names.
const VECTORS: &str = "vectors";
const BLOBS: &str = "blobs";

const ROW: usize = 4096;
const GETS: usize = 20_000;

fn main() {
    let folder = std::env::var_os("VISCACHE_BENCH_DATA").map_or_else(std::env::temp_dir, PathBuf::from);
    let items = std::env::var("VISCACHE_BENCH_ITEMS").ok().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    println!("{items} rows of {ROW} bytes, {:.0} MB", items as f64 * ROW as f64 / 1e6);
    for blob_files in [false, true] {
        let path = folder.join("rows-bench");
        let _ = std::fs::remove_dir_all(&path);
        println!("{}", if blob_files { "blob files" } else { "tables" });
        measure(&path, items, blob_files);
        std::fs::remove_dir_all(&path).expect("the bench's own folder can be removed");
    }
}

fn open(path: &Path, blob_files: bool) -> DB {
    let memory = options::Memory::new();
    let mut family: Options = options::family_options(VECTORS, &memory);
    if blob_files {
        family.set_enable_blob_files(true);
        family.set_min_blob_size(1024);
        family.set_blob_file_size(256 << 20);
        family.set_enable_blob_gc(true);
        family.set_blob_gc_age_cutoff(0.25);
        family.set_blob_gc_force_threshold(0.5);
    }
    let families = [ColumnFamilyDescriptor::new(VECTORS, family)];
    DB::open_cf_descriptors(&options::db_options(&memory), path, families).expect("a store can be opened")
}

fn measure(path: &Path, items: u64, blob_files: bool) {
    let mut random = Pcg64Mcg::seed_from_u64(7);
    let db = open(path, blob_files);
    let mut step = Step::begin();
    let ids: Vec<u64> = (0..items).collect();
    put(&db, &ids, 1024, &mut random);
    settle(&db);
    step.end("import", items, path);
    let replaced: Vec<u64> = (0..items * 3 / 10).map(|_| random.random_range(0..items)).collect();
    put(&db, &replaced, 256, &mut random);
    settle(&db);
    step.end("replace 3 in 10", replaced.len() as u64, path);
    for state in ["cold", "warm"] {
        if state == "cold" {
            forget(path);
        }
        let clock = Instant::now();
        let mut options = ReadOptions::default();
        options.set_readahead_size(1 << 20);
        options.fill_cache(false);
        let rows = db.iterator_cf_opt(&family(&db), options, IteratorMode::Start);
        let bytes: usize = rows.map(|row| row.expect("a row can be read").1.len()).sum();
        assert_eq!(bytes as u64, items * ROW as u64);
        println!("  scan, {state}: {:.2} s", clock.elapsed().as_secs_f64());
    }
    for state in ["cold", "warm"] {
        if state == "cold" {
            forget(path);
        }
        let mut random = Pcg64Mcg::seed_from_u64(9);
        let clock = Instant::now();
        for _ in 0..GETS {
            let key = random.random_range(0..items).to_be_bytes();
            let row = db.get_pinned_cf(&family(&db), key).expect("a row can be read");
            assert_eq!(row.map(|row| row.len()), Some(ROW));
        }
        println!("  get, {state}: {:.1} us", clock.elapsed().as_secs_f64() / GETS as f64 * 1e6);
    }
    let mut step = Step::begin();
    db.compact_range_cf(&family(&db), None::<&[u8]>, None::<&[u8]>);
    settle(&db);
    step.end("compact by hand", items, path);
}

fn family(db: &DB) -> Arc<BoundColumnFamily<'_>> {
    db.cf_handle(VECTORS).expect("it was opened with it")
}

fn put(db: &DB, ids: &[u64], batch: usize, random: &mut Pcg64Mcg) {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    let mut row = [0u8; ROW];
    for ids in ids.chunks(batch) {
        let mut writes = WriteBatch::default();
        for id in ids {
            row.as_chunks_mut::<8>()
                .0
                .iter_mut()
                .for_each(|word| *word = random.random::<u64>().to_le_bytes());
            writes.put_cf(&family(db), id.to_be_bytes(), row);
        }
        db.write_opt(writes, &options).expect("rows can be written");
    }
}

/// Flushes and waits until RocksDB has merged what it wants to.
fn settle(db: &DB) {
    db.flush_cf(&family(db)).expect("rows can be flushed");
    db.wait_for_compact(&WaitForCompactOptions::default()).expect("files can be merged");
}

/// Takes files out of the system's cache.
fn forget(path: &Path) {
    for file in files(path) {
        let input = format!("if={}", file.display());
        let status = Command::new("dd").args([&input, "iflag=nocache", "count=0", "status=none"]).status();
        assert!(status.is_ok_and(|status| status.success()), "dd can advise the system");
    }
}

fn files(path: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(path).expect("the store is a folder");
    files.map(|file| file.expect("a folder can be read").path()).collect()
}

/// Bytes that this process has handed to the system to write.
fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.and_then(|n| n.parse().ok()).unwrap_or_default()
}

struct Step {
    clock: Instant,
    written: u64,
}

impl Step {
    fn begin() -> Self {
        Step { clock: Instant::now(), written: written() }
    }

    fn end(&mut self, what: &str, rows: u64, path: &Path) {
        let seconds = self.clock.elapsed().as_secs_f64();
        let amplification = (written() - self.written) as f64 / (rows * ROW as u64) as f64;
        let size: u64 =
            files(path).iter().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
        println!(
            "  {what}: {seconds:.1} s, {amplification:.2} bytes written for each of the rows', {:.0} MB on disk",
            size as f64 / 1e6
        );
        *self = Step::begin();
    }
}
