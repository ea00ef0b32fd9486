//! Crashes on purpose at every step of a change and of a compaction: what was acknowledged is there afterwards, and what
//! was not is there as a whole or not at all. Likewise of caches made, named and deleted; and whoever does again what was not
//! acknowledged, under the same names, uris and request ids, ends where it would have ended without the crash.
//!
//! `cargo test -p viscache --features failpoints --test crash_living`. This program starts itself as a child, which does
//! what the script says, prints a line for whatever is acknowledged, and aborts where `FAILPOINTS` says.

#![cfg(feature = "failpoints")]
#![expect(clippy::unwrap_used, reason = "a test that cannot ask has failed")]

#[path = "common/versions.rs"]
mod versions;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;
use viscache::cache::{
    Cache, CompactOptions, Edit, Error, LoadOptions, NewCache, NewItem, Repeatable, RowsMode, TagEdit,
    Upserts,
};
use viscache::index::{BuildParams, SearchParams, Searcher};
use viscache::store::{self, Access, CacheId, RequestResult, RowType, Store};
use viscache::types::{CacheName, Embedding, Fingerprint, Generation, ItemId, Origin};

use versions::open;

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
    versions::item(id, version, row(id, version))
}

fn make(path: &Path) {
    let params = BuildParams { m: 6, ef_construction: 24, threads: 1, ..BuildParams::default() };
    versions::make(path, (0..20).map(|id| item(id, 0)).collect(), &params);
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

/// Runs a child and says how much it acknowledged and whether it came to the end.
fn run(child_name: &str, path: &Path, failpoints: &str) -> (usize, bool) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", child_name, "--ignored", "--nocapture", "--test-threads=1"]);
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
            let (acknowledged, ended) = run("child", folder.path(), &format!("{point}={passes}*off->return"));
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

/// Every point that the script of names comes by.
const NAME_POINTS: [&str; 6] = [
    "names::before_commit",
    "names::after_commit",
    "names::before_reclaim",
    "change::before_commit",
    "change::after_commit",
    "change::after_sync",
];

/// What is done with caches and their items, each so that it can be done again.
#[derive(Clone, Copy)]
enum Act {
    Create(&'static str),
    Alias(&'static str, &'static str),
    Unalias(&'static str),
    Rename(&'static str, &'static str),
    Delete(&'static str),
    /// A request with an id, of so many items without ids.
    Request(&'static str, &'static str, u64),
    /// Items told by their uris.
    Keyed(&'static str, u64),
    Tag(&'static str, u64),
    Compact(&'static str),
}

fn acts() -> Vec<Act> {
    use Act::{Alias, Compact, Create, Delete, Keyed, Rename, Request, Tag, Unalias};
    vec![
        Create("a"),
        Request("a", "one", 5),
        Alias("live", "a"),
        Create("b"),
        Keyed("b", 4),
        Request("live", "two", 3),
        Tag("a", 2),
        Compact("a"),
        Alias("live", "b"),
        Keyed("live", 6),
        Rename("a", "z"),
        Request("z", "three", 2),
        Delete("b"),
        Create("b"),
        Request("b", "one", 4),
        Alias("too", "z"),
        Unalias("too"),
        Tag("z", 6),
        Delete("z"),
    ]
}

fn named(name: &str) -> CacheName {
    CacheName::new(name).unwrap()
}

/// A cache by its name or alias, without generations too.
fn open_named(store: &Arc<Store>, name: &str) -> Arc<Cache> {
    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: 1 << 26 };
    Arc::new(Cache::open(store, &store.cache(&named(name)).unwrap().name, None, options).unwrap())
}

/// Does one thing, or finds it done.
fn act(store: &Arc<Store>, act: Act) {
    let done = |result: Result<(), store::Error>| match result {
        Ok(())
        | Err(store::Error::CacheExists(_) | store::Error::NoCache { .. } | store::Error::NoAlias { .. }) => {
        }
        Err(error) => panic!("{error}"),
    };
    match act {
        Act::Create(name) => {
            let new = NewCache { dim: DIM, rows: RowType::F32, origin: Origin::of("test"), model: None };
            match new.make(store, &named(name)) {
                Ok(_) | Err(Error::Store(store::Error::CacheExists(_))) => {}
                Err(error) => panic!("{error}"),
            }
        }
        Act::Alias(alias, name) => drop(store.set_alias(&named(alias), &named(name)).unwrap()),
        Act::Unalias(alias) => done(store.delete_alias(&named(alias)).map(drop)),
        Act::Rename(from, to) => done(store.rename_cache(&named(from), &named(to)).map(drop)),
        Act::Delete(name) if store.cache(&named(name)).is_ok() => {
            drop(open_named(store, name).delete_cache(true).unwrap());
        }
        Act::Delete(_) => {}
        Act::Request(name, id, count) => {
            let items = (0..count).map(|i| NewItem { id: None, ..item(i, 7) }).collect();
            let answer = |results: &[Result<ItemId, Error>]| {
                results.iter().map(|result| RequestResult::Stored(*result.as_ref().unwrap())).collect()
            };
            let request = Some(Repeatable { id, content: Fingerprint::of(id.as_bytes()), answer: &answer });
            open_named(store, name).put(Upserts { items, named: &[], by_uri: false, request }).unwrap();
        }
        Act::Keyed(name, count) => {
            let items = (0..count).map(|i| NewItem { id: None, ..item(i, count) });
            let items = items.zip(0..).map(|(mut item, i)| {
                item.record.uri = format!("uri-{i}");
                item
            });
            let upserts = Upserts { items: items.collect(), named: &[], by_uri: true, request: None };
            open_named(store, name).put(upserts).unwrap();
        }
        Act::Tag(name, id) => {
            let tags = TagEdit::Some([("seen".to_owned(), Some("yes".to_owned()))].into());
            let edit = Edit { id: ItemId(id), uri: Some(format!("moved-{id}")), tags };
            open_named(store, name).update(vec![edit]).unwrap().remove(0).unwrap();
        }
        Act::Compact(name) => {
            let options = CompactOptions { automatic: false, threads: 1, ..CompactOptions::default() };
            open_named(store, name).compact(&options).unwrap();
        }
    }
}

/// Everything there is, in words.
fn told(store: &Arc<Store>) -> String {
    let mut told = String::new();
    for record in store.caches().unwrap() {
        told += &format!("{}\n", record.name);
        let cache = open_named(store, record.name.as_str());
        let snapshot = cache.snapshot();
        let ids = snapshot.ids_after(None, usize::MAX);
        assert_eq!(ids.len() as u64, record.items);
        for (id, row) in found(&cache) {
            let item = store.item(record.id, ItemId(id)).unwrap().unwrap();
            assert_eq!(
                store.items_of_uri(record.id, &item.uri).unwrap().iter().filter(|i| i.0 == id).count(),
                1
            );
            told += &format!("  {id} {} {:?} {:.3}\n", item.uri, item.tags, row[0]);
        }
    }
    told + &format!("{:?}", store.aliases().unwrap())
}

/// The other child: not a test of its own.
#[test]
#[ignore = "started by the other test, with a store and a point"]
fn child_of_names() {
    let _scenario = fail::FailScenario::setup();
    let store = Arc::new(Store::open(Path::new(&std::env::var(STORE).unwrap()), Access::Write).unwrap());
    for one in acts() {
        act(&store, one);
        println!("{ACKNOWLEDGED}");
    }
}

#[test]
fn caches_and_their_names_are_as_before_or_as_after_and_doing_it_again_ends_alike() {
    // What is there before the script and after each of its steps.
    let twin = TempDir::new().unwrap();
    let store = Arc::new(Store::open(twin.path(), Access::Write).unwrap());
    let mut states = vec![told(&store)];
    for one in acts() {
        act(&store, one);
        states.push(told(&store));
    }
    for point in NAME_POINTS {
        let mut crashes = 0;
        for passes in 0.. {
            let folder = TempDir::new().unwrap();
            let points = format!("{point}={passes}*off->return");
            let (acknowledged, ended) = run("child_of_names", folder.path(), &points);
            if ended {
                assert_eq!(acknowledged, states.len() - 1, "{point}");
                break;
            }
            crashes += 1;
            let what = format!("{point}, passed {passes} times, {acknowledged} acknowledged");
            let store = Arc::new(Store::open(folder.path(), Access::Write).unwrap());
            let now = told(&store);
            let next = states.get(acknowledged + 1);
            assert!(now == states[acknowledged] || Some(&now) == next, "{what}: {now}");
            // Of a deleted cache nothing is left once the store is open.
            let known: Vec<CacheId> = store.caches().unwrap().iter().map(|record| record.id).collect();
            for id in (1..10).map(CacheId).filter(|id| !known.contains(id)) {
                assert_eq!(store.count_items(id).unwrap(), (0, 0), "{what}: cache {id:?}");
                assert!(store.generations(id).unwrap().is_empty(), "{what}: cache {id:?}");
            }
            for &one in &acts()[acknowledged..] {
                act(&store, one);
            }
            assert_eq!(told(&store), states[states.len() - 1], "{what}");
        }
        assert!(crashes > 0, "the script does not come by {point}");
    }
}
