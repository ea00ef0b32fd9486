//! A program that changes a cache, and builds the changes in, is killed at any moment, again and again: what it acknowledged is
//! there, and what it did not is there as a whole or not at all.
//!
//! `cargo test -p viscache --test killed`; VISCACHE_KILLS (12) says how often, VISCACHE_SEED when. This program starts itself as a
//! child, which prints the number of every change that was acknowledged, and the generation it came upon.

#![expect(clippy::unwrap_used, reason = "a test that cannot ask has failed")]

#[path = "common/versions.rs"]
mod versions;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use tempfile::TempDir;
use viscache::cache::{Background, CompactOptions, NewItem, Snapshot};
use viscache::index::{BuildParams, SearchParams, Searcher};
use viscache::store::Access;
use viscache::types::{Embedding, ItemId};

use versions::open;

const DIM: usize = 16;
const ITEMS: u64 = 5000;
const STORE: &str = "KILLED_STORE";
const NEXT: &str = "KILLED_NEXT";
const ACKNOWLEDGED: &str = "acknowledged ";

/// The version of every item that there is, by id.
type Items = BTreeMap<u64, u64>;

/// A change: some items replaced or added, or some deleted. Those of one number are always the same.
enum Change {
    Upsert(Vec<u64>),
    Delete(Vec<u64>),
}

fn change(number: u64) -> Change {
    let mut random = Pcg64::seed_from_u64(number);
    let mut ids = |count| (0..count).map(|_| random.random_range(0..ITEMS * 5 / 4)).collect::<Vec<_>>();
    if number.is_multiple_of(5) {
        return Change::Delete(ids(40));
    }
    let mut ids = ids(64);
    ids.sort_unstable();
    ids.dedup();
    Change::Upsert(ids)
}

fn apply(items: &mut Items, number: u64) {
    match change(number) {
        Change::Upsert(ids) => items.extend(ids.into_iter().map(|id| (id, number))),
        Change::Delete(ids) => ids.iter().for_each(|id| _ = items.remove(id)),
    }
}

fn row(id: u64, version: u64) -> Vec<f32> {
    let mut random = Pcg64::seed_from_u64(id << 32 | version);
    let centre = f64::from(random.random_range(0..9u8));
    let row =
        (0..DIM).map(|i| (centre * 5.0 + i as f64).sin() as f32 * 2.0 + random.random_range(-0.9f32..0.9));
    Embedding::new(row.collect()).unwrap().unit().unwrap().into_vec()
}

fn item(id: u64, version: u64) -> NewItem {
    versions::item(id, version, row(id, version))
}

/// The child, which ends only when it is killed: not a test of its own.
#[test]
#[ignore = "started by the other test, with a store"]
fn child() {
    let var = |name: &str| std::env::var(name).unwrap();
    let cache = open(Path::new(&var(STORE)), Access::Write);
    let options = CompactOptions {
        threads: 1,
        rebuild_below: 1000,
        after_changes: 2000,
        after_share: 0.0,
        ..CompactOptions::default()
    };
    let background = Background::default();
    for number in var(NEXT).parse().unwrap().. {
        match change(number) {
            Change::Upsert(ids) => {
                let items = ids.into_iter().map(|id| item(id, number)).collect();
                assert!(cache.upsert(items).unwrap().iter().all(Result::is_ok));
            }
            Change::Delete(ids) => {
                drop(cache.delete(&ids.into_iter().map(ItemId).collect::<Vec<_>>()).unwrap());
            }
        }
        println!("{ACKNOWLEDGED}{number} {}", cache.snapshot().generation());
        cache.compact_if_due(&options, &background);
    }
}

/// Starts a child that goes on with a change, kills it a while after it has come to a generation, and says what it acknowledged
/// last.
fn run(path: &Path, next: u64, generation: u64, while_it: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
    child.env(STORE, path).env(NEXT, next.to_string()).stdout(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let numbers = |line: String| {
        let (number, generation) = line.split_once(ACKNOWLEDGED)?.1.split_once(' ')?;
        Some((number.parse::<u64>().ok()?, generation.parse::<u64>().ok()?))
    };
    let come = |line| numbers(line).filter(|(_, shown)| *shown >= generation);
    let first = lines.find_map(come).expect("it begins");
    let killer = std::thread::spawn(move || {
        std::thread::sleep(while_it);
        child.kill().unwrap();
        child.wait().unwrap()
    });
    let last = lines.filter_map(numbers).last().unwrap_or(first);
    // By a signal, and not of itself.
    assert_eq!(killer.join().unwrap().code(), None);
    last.0
}

/// Whether a cache has these items and nothing else.
fn holds(snapshot: &Snapshot, items: &Items) -> Result<(), String> {
    let ids: Vec<u64> = snapshot.ids_after(None, usize::MAX >> 1).iter().map(|id| id.0).collect();
    if !ids.iter().eq(items.keys()) {
        return Err(format!("{} are listed of {}", ids.len(), items.len()));
    }
    let query = Embedding::new(row(7, 7)).unwrap();
    let exact = SearchParams { exact: true, ..SearchParams::default() };
    let hits = snapshot.search(&mut Searcher::default(), &query, items.len(), &exact).unwrap().hits;
    if hits.len() != items.len() {
        return Err(format!("{} are found of {}", hits.len(), items.len()));
    }
    match hits.iter().find(|hit| hit.embedding.as_slice() != row(hit.id.0, items[&hit.id.0])) {
        Some(hit) => Err(format!("item {} is another", hit.id)),
        None => Ok(()),
    }
}

#[test]
fn whoever_is_killed_while_changes_are_built_in_loses_nothing_acknowledged() {
    let setting = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = setting("VISCACHE_SEED").unwrap_or_else(clock);
    println!("VISCACHE_SEED={seed}");
    let mut random = Pcg64::seed_from_u64(seed);
    let folder = TempDir::new().unwrap();
    let params = BuildParams { m: 8, ef_construction: 40, threads: 2, ..BuildParams::default() };
    versions::make(folder.path(), (0..ITEMS).map(|id| item(id, 0)).collect(), &params);
    let (mut items, mut done): (Items, u64) = ((0..ITEMS).map(|id| (id, 0)).collect(), 0);
    let mut generation = 1;
    for kill in 0..setting("VISCACHE_KILLS").unwrap_or(12) {
        let while_it = Duration::from_millis(random.random_range(0..700));
        // Most do not live to write one; now and then it is waited for.
        let wanted = if kill % 4 == 3 { generation + 1 } else { generation };
        let acknowledged = run(folder.path(), done + 1, wanted, while_it);
        (done + 1..=acknowledged).for_each(|number| apply(&mut items, number));
        done = acknowledged;
        let follower = open(folder.path(), Access::Read);
        let cache = open(folder.path(), Access::Write);
        let shown = cache.snapshot();
        let mut next = items.clone();
        apply(&mut next, done + 1);
        let what = format!("kill {kill}, change {done}, generation {}", shown.generation());
        if let Err(problem) = holds(&shown, &items) {
            holds(&shown, &next).unwrap_or_else(|after| panic!("{what}: {problem}, or else {after}"));
            (items, done) = (next, done + 1);
        }
        assert_eq!(holds(&follower.snapshot(), &items), Ok(()), "{what}: a reader");
        generation = shown.generation().0;
        assert!(generation >= wanted, "{what}");
        println!("{what}: {} items", items.len());
    }
    let shown = open(folder.path(), Access::Write).snapshot();
    let (mut searcher, mut sum) = (Searcher::default(), 0);
    for id in 0..100 {
        let query = Embedding::new(row(id, u64::from(u32::MAX))).unwrap();
        let found = |searcher: &mut Searcher, exact| {
            let params = SearchParams { exact, ..SearchParams::default() };
            let hits = shown.search(searcher, &query, 10, &params).unwrap().hits;
            hits.into_iter().map(|hit| hit.id).collect::<Vec<_>>()
        };
        let truth = found(&mut searcher, true);
        sum += found(&mut searcher, false).iter().filter(|id| truth.contains(id)).count();
    }
    assert!(sum > 950, "recall {sum} of 1000");
}
