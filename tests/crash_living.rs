//! Crashes on purpose at every step of a change and of a compaction: what was acknowledged is there afterwards, and what
//! was not is there as a whole or not at all.
//!
//! `cargo test -p viscache --features failpoints --test crash_living`. This program starts itself as a child, which does
//! what the script says, prints a line for whatever is acknowledged, and aborts where `FAILPOINTS` says.

#![cfg(feature = "failpoints")]
#![expect(clippy::unwrap_used, reason = "a test that cannot ask has failed")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;
use viscache::cache::{Cache, CompactOptions, LoadOptions, NewCache, NewItem, RowsMode, Writer};
use viscache::index::{BuildParams, SearchParams, Searcher};
use viscache::store::{Access, ItemRecord, RowType, Store};
use viscache::types::{CacheName, Embedding, Fingerprint, Generation, ItemId, Origin};

const DIM: usize = 8;
const STORE: &str = "CRASH_STORE";
const ACKNOWLEDGED: &str = "acknowledged";

/// Every point that the script comes by.
const POINTS: [&str; 10] = [
    "change::before_commit",
    "change::after_commit",
    "change::after_sync",
    "compact::before_blob",
    "publish::before_blob",
    "blob::part",
    "compact::after_blob",
    "publish::before_flip",
    "publish::after_flip",
    "compact::after_flip",
];

enum Step {
    Upsert(std::ops::Range<u64>, u64),
    Delete(std::ops::Range<u64>),
    Compact,
    Publish(u64),
}

/// What the child does, in order.
fn script() -> Vec<Step> {
    use Step::{Compact, Delete, Publish, Upsert};
    vec![
        Upsert(25..40, 1),
        Delete(0..5),
        Upsert(3..8, 2),
        Compact,
        Delete(30..35),
        Upsert(100..110, 3),
        Publish(1),
        Upsert(6..9, 4),
        Compact,
        Delete(100..104),
        Upsert(1..2, 5),
        Compact,
        Upsert(200..203, 6),
    ]
}

type Items = BTreeMap<u64, Vec<f32>>;

/// The items before the script and after each of its steps.
fn states() -> Vec<Items> {
    let mut items: Items = (0..20).map(|id| (id, row(id, 0))).collect();
    let mut states = vec![items.clone()];
    for step in script() {
        match step {
            Step::Upsert(ids, version) => items.extend(ids.map(|id| (id, row(id, version)))),
            Step::Delete(ids) => items.retain(|id, _| !ids.contains(id)),
            Step::Compact | Step::Publish(_) => {}
        }
        states.push(items.clone());
    }
    states
}

fn row(id: u64, version: u64) -> Vec<f32> {
    let row = (0..DIM as u64).map(|i| ((id * 31 + version * 17 + i * i * 7) % 23) as f32 - 11.0).collect();
    Embedding::new(row).unwrap().unit().unwrap().into_vec()
}

fn item(id: u64, version: u64) -> NewItem {
    let record = ItemRecord {
        uri: format!("{id}/{version}"),
        modality: None,
        digest: Fingerprint::of(format!("{id}/{version}").as_bytes()),
        tags: BTreeMap::new(),
    };
    NewItem { id: Some(ItemId(id)), embedding: Embedding::new(row(id, version)).unwrap(), record }
}

fn name() -> CacheName {
    CacheName::new("a").unwrap()
}

fn make(path: &Path) {
    let store = Store::open(path, Access::Write).unwrap();
    let origin = Origin::of("test");
    let new = NewCache { dim: DIM, rows: RowType::F32, origin, model: None };
    let mut writer = Writer::open(&store, &name(), &new).unwrap();
    writer.put((0..20).map(|id| item(id, 0)).collect(), |_, _, _| {}).unwrap();
    let params = BuildParams { m: 6, ef_construction: 24, threads: 1, ..BuildParams::default() };
    writer.index(&params, &Default::default(), |_| {}, |_, _| Ok(Default::default())).unwrap();
}

fn open(path: &Path, access: Access) -> Arc<Cache> {
    let store = Arc::new(Store::open(path, access).unwrap());
    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: 1 << 26 };
    Arc::new(Cache::open(&store, &name(), None, options).unwrap())
}

/// What a search over everything finds.
fn found(cache: &Cache) -> Items {
    let query = Embedding::new(row(7, 7)).unwrap();
    let exact = SearchParams { exact: true, ..SearchParams::default() };
    let hits = cache.snapshot().search(&mut Searcher::default(), &query, 1000, &exact).unwrap().hits;
    hits.into_iter().map(|hit| (hit.id.0, hit.embedding.into_vec())).collect()
}

/// The child: not a test of its own.
#[test]
#[ignore = "started by the other test, with a store and a point"]
fn child() {
    let _scenario = fail::FailScenario::setup();
    let cache = open(Path::new(&std::env::var(STORE).unwrap()), Access::Write);
    let options = CompactOptions { automatic: false, threads: 1, ..CompactOptions::default() };
    for step in script() {
        match step {
            Step::Upsert(ids, version) => {
                let ids: Vec<_> = cache.upsert(ids.map(|id| item(id, version)).collect()).unwrap();
                assert!(ids.iter().all(Result::is_ok));
            }
            Step::Delete(ids) => drop(cache.delete(&ids.map(ItemId).collect::<Vec<_>>()).unwrap()),
            Step::Compact => drop(cache.compact(&options).unwrap()),
            Step::Publish(generation) => cache.publish(Generation(generation)).unwrap(),
        }
        println!("{ACKNOWLEDGED}");
    }
}

/// Runs the child and says how much it acknowledged and whether it came to the end.
fn run(path: &Path, failpoints: &str) -> (usize, bool) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
    let output = child.env(STORE, path).env("FAILPOINTS", failpoints).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // An abort has no exit code; anything else that fails is a fault of the test.
    assert!(output.status.success() || output.status.code().is_none(), "{text}");
    (text.matches(ACKNOWLEDGED).count(), output.status.success())
}

#[test]
fn a_crash_anywhere_loses_nothing_that_was_acknowledged() {
    let states = states();
    for point in POINTS {
        let mut crashes = 0;
        for passes in 0.. {
            let folder = TempDir::new().unwrap();
            make(folder.path());
            let (acknowledged, ended) = run(folder.path(), &format!("{point}={passes}*off->return"));
            if ended {
                assert_eq!(acknowledged, states.len() - 1, "{point}");
                break;
            }
            crashes += 1;
            let what = format!("{point}, passed {passes} times, {acknowledged} acknowledged");
            let follower = found(&open(folder.path(), Access::Read));
            let cache = open(folder.path(), Access::Write);
            let now = found(&cache);
            assert_eq!(follower, now, "{what}");
            let next = states.get(acknowledged + 1);
            assert!(now == states[acknowledged] || Some(&now) == next, "{what}: {:?}", now.keys());
            // It goes on: numbers of changes and generations are not given twice.
            cache.upsert(vec![item(500, 9)]).unwrap();
            let options = CompactOptions { automatic: false, threads: 1, ..CompactOptions::default() };
            cache.compact(&options).unwrap();
            cache.delete(&[ItemId(500)]).unwrap();
            assert_eq!(found(&cache), now, "{what}");
            drop(cache);
            assert_eq!(found(&open(folder.path(), Access::Write)), now, "{what}");
        }
        assert!(crashes > 0, "the script does not come by {point}");
    }
}
