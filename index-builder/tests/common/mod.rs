//! What the tests of the command line share: running it, and looking into the store it leaves.

#![allow(dead_code, reason = "every test crate uses a part of this")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;
use viscache::cache::{Cache, LoadOptions, RowsMode, decode_row};
use viscache::store::{Access, CacheRecord, ItemRecord, Store};
use viscache::types::{CacheName, ItemId};

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Fails with everything it said unless it ended so.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self
    }
}

/// A command: its words, then paths (which may hold spaces).
pub fn command(words: &str, paths: &[&Path]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_index-builder"));
    command.args(words.split_whitespace()).args(paths).stdin(Stdio::null()).env_remove("FAILPOINTS");
    command
}

/// Runs a command to its end.
pub fn finish(mut command: Command) -> Ran {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(!err.contains("panicked"), "{err}");
    Ran { code: output.status.code().unwrap_or(-1), out, err }
}

/// A folder with a store in it.
pub struct Bench {
    pub folder: TempDir,
    pub store: PathBuf,
}

impl Bench {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let store = folder.path().join("store");
        Bench { folder, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// As [`command`], on this store.
    pub fn command(&self, words: &str, paths: &[&Path]) -> Command {
        let mut command = command(words, paths);
        command.arg("--store").arg(&self.store);
        command
    }

    pub fn run(&self, words: &str, paths: &[&Path]) -> Ran {
        finish(self.command(words, paths))
    }

    /// Opens the store beside whoever writes it.
    pub fn open(&self) -> Arc<Store> {
        Arc::new(Store::open(&self.store, Access::Read).unwrap())
    }

    pub fn record(&self, cache: &str) -> CacheRecord {
        self.open().cache(&name(cache)).unwrap()
    }

    /// Every item of a cache.
    pub fn items(&self, cache: &str) -> BTreeMap<u64, ItemRecord> {
        items(&self.open(), cache)
    }

    /// Every row of a cache, as f32.
    pub fn rows(&self, cache: &str) -> BTreeMap<u64, Vec<f32>> {
        let (store, mut rows) = (self.open(), BTreeMap::new());
        let record = store.cache(&name(cache)).unwrap();
        let visit = |id: ItemId, bytes: &[u8]| {
            rows.insert(id.0, decode_row(bytes, record.rows));
            Ok::<bool, viscache::store::Error>(true)
        };
        store.scan_rows(record.id, ItemId(0), visit).unwrap();
        rows
    }

    /// The cache as a server opens it.
    pub fn cache(&self, cache: &str) -> Result<Cache, viscache::cache::Error> {
        let options = LoadOptions { rows: RowsMode::Ram, memory_budget: u64::MAX };
        Cache::open(&self.open(), &name(cache), None, options)
    }

    /// `verify` must find nothing wrong.
    #[track_caller]
    pub fn assert_sound(&self) {
        let ran = self.run("verify", &[]).expect(0);
        assert!(ran.out.contains(": sound; "), "{}", ran.out);
    }

    /// The ledger's bad inputs with their reasons, as `ledger --json` lists them.
    pub fn bad(&self, cache: &str) -> BTreeMap<String, String> {
        let lines = self.run(&format!("ledger --json --cache {cache}"), &[]).expect(0).out;
        let word = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap().to_owned();
        json_lines(&lines).iter().map(|line| (word(line, "uri"), word(line, "reason"))).collect()
    }

    pub fn report(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.store.join("report.json")).unwrap()).unwrap()
    }
}

pub fn items(store: &Store, cache: &str) -> BTreeMap<u64, ItemRecord> {
    let (record, mut items) = (store.cache(&name(cache)).unwrap(), BTreeMap::new());
    let visit = |id: ItemId, item: ItemRecord| {
        items.insert(id.0, item);
        Ok::<bool, viscache::store::Error>(true)
    };
    store.scan_items(record.id, ItemId(0), visit).unwrap();
    items
}

/// No name and no content may be stored twice.
#[track_caller]
pub fn assert_unique(items: &BTreeMap<u64, ItemRecord>) {
    let uris: std::collections::HashSet<_> = items.values().map(|item| &item.uri).collect();
    let digests: std::collections::HashSet<_> = items.values().map(|item| item.digest).collect();
    assert_eq!((uris.len(), digests.len()), (items.len(), items.len()), "something is stored twice");
}

pub fn name(cache: &str) -> CacheName {
    CacheName::new(cache).unwrap()
}

pub fn json_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Test data outside this repository; `None`, said aloud, when it is not there.
pub fn data(part: &str) -> Option<PathBuf> {
    outside("VISCACHE_DATA", "data", part)
}

/// Golden values outside this repository; `None`, said aloud, when they are not there.
pub fn golden(part: &str) -> Option<PathBuf> {
    outside("VISCACHE_GOLDEN", "golden", part)
}

fn outside(variable: &str, folder: &str, part: &str) -> Option<PathBuf> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let root = std::env::var_os(variable).map_or_else(|| shared.join(folder), PathBuf::from);
    let path = root.join(part);
    if path.exists() {
        return Some(path);
    }
    say(&format!("skipped: {folder}/{part} (not there; set {variable})"));
    None
}

/// Prints past the test harness, which would keep the words of a passing test to itself.
pub fn say(line: &str) {
    std::io::stderr().write_all(format!("    {line}\n").as_bytes()).unwrap();
}

/// The seed of a random test: from the environment, else from the clock. Printed either way.
pub fn seed() -> u64 {
    let given = std::env::var("VISCACHE_SEED").ok().map(|seed| seed.parse().unwrap());
    let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 % 1_000_000_007;
    let seed = given.unwrap_or_else(clock);
    say(&format!("VISCACHE_SEED={seed}"));
    seed
}

/// Draws pictures of the nano world into a new folder.
pub fn draw(folder: &Path, start: usize, count: usize) {
    let words = format!("scenes --start {start} --count {count} --out");
    finish(command(&words, &[folder])).expect(0);
}
