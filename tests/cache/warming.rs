//! A cache that is opened early answers at once, and the same while its rows come into memory as afterwards.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use viscache::cache::{Cache, Error, LoadOptions, NewCache, NewItem, RowsMode, Writer};
use viscache::index::{BuildParams, SearchParams, Searcher};
use viscache::store::{Access, ItemRecord, RowType, Store};
use viscache::types::{CacheName, Embedding, Fingerprint, ItemId, Origin};

const DIM: usize = 64;
const ROWS: u64 = 3000;
const OPTIONS: LoadOptions = LoadOptions { rows: RowsMode::Ram, memory_budget: 1 << 30 };

fn name() -> CacheName {
    "a".parse().unwrap()
}

/// A unit row that depends on nothing but its number.
fn row(number: u64) -> Vec<f32> {
    let row = (0..DIM as u64).map(|i| ((number * 131 + i * 37) as f32 * 0.7).sin() + 0.1).collect();
    Embedding::new(row).unwrap().unit().unwrap().into_vec()
}

fn make(path: &Path, rows: RowType) -> Arc<Store> {
    make_of(path, rows, ROWS)
}

fn make_of(path: &Path, rows: RowType, count: u64) -> Arc<Store> {
    let store = Store::open(path, Access::Write).unwrap();
    let origin = Origin::of("test");
    let mut writer =
        Writer::open(&store, &name(), &NewCache { dim: DIM, rows, origin, model: None }).unwrap();
    let item = |i: u64| {
        let digest = Fingerprint::of(&i.to_le_bytes());
        let record = ItemRecord { uri: i.to_string(), modality: None, digest, tags: Default::default() };
        NewItem { id: None, embedding: Embedding::new(row(i)).unwrap(), record }
    };
    writer.put((0..count).map(item).collect(), |_, _, _| ()).unwrap();
    let params = BuildParams { m: 6, ef_construction: 16, threads: 1, ..Default::default() };
    writer.index(&params, &Default::default(), |_| (), |_, _, _| Ok(Default::default())).unwrap();
    drop(writer);
    Arc::new(store)
}

fn search(cache: &Cache, number: u64) -> Result<Vec<(ItemId, u32)>, Error> {
    let query = Embedding::new(row(number)).unwrap();
    let found = cache.snapshot().search(&mut Searcher::default(), &query, 10, &SearchParams::default())?;
    Ok(found.hits.iter().map(|hit| (hit.id, hit.score.to_bits())).collect())
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn answers_are_the_same_before_and_after() {
    for rows in [RowType::F32, RowType::F16] {
        let folder = tempfile::tempdir().unwrap();
        let store = make(folder.path(), rows);
        let whole = Cache::open(&store, &name(), None, OPTIONS).unwrap();
        assert!(whole.snapshot().rows_in_memory());
        let expected: Vec<_> = (0..50).map(|number| search(&whole, number).unwrap()).collect();
        let early = Cache::open_early(&store, &name(), None, OPTIONS).unwrap();
        assert_eq!(early.snapshot().loaded().plan, whole.snapshot().loaded().plan);
        for (number, expected) in (0..).zip(&expected) {
            assert_eq!(&search(&early, number).unwrap(), expected);
        }
        wait("the rows come into memory", || early.snapshot().rows_in_memory());
        for (number, expected) in (0..).zip(&expected) {
            assert_eq!(&search(&early, number).unwrap(), expected);
        }
    }
}

/// What changes while rows are on their way is not what they are of.
#[test]
fn changes_meanwhile_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let store = make(folder.path(), RowType::F32);
    for round in 0..10u64 {
        let cache = Cache::open_early(&store, &name(), None, OPTIONS).unwrap();
        let gone: Vec<ItemId> = (0..20).map(|i| ItemId(round * 50 + i)).collect();
        cache.delete(&gone).unwrap();
        let found = |gone: &[ItemId]| {
            for id in gone {
                let hits = search(&cache, id.0).unwrap();
                assert!(hits.len() == 10 && hits.iter().all(|hit| !gone.contains(&hit.0)), "{id:?}");
            }
        };
        found(&gone);
        wait("the rows come into memory", || cache.snapshot().rows_in_memory());
        found(&gone);
    }
}

/// Few rows are read where the cache is opened, many behind it.
#[test]
fn a_damaged_row_keeps_the_others_on_disk() {
    for count in [20, ROWS] {
        damaged_row(count);
    }
}

fn damaged_row(count: u64) {
    let folder = tempfile::tempdir().unwrap();
    let store = make_of(folder.path(), RowType::F32, count);
    let (cache, lost) = (store.cache(&name()).unwrap(), ItemId(count / 2));
    let (record, mut batch) = (store.item(cache.id, lost).unwrap().unwrap(), store.batch());
    // Two components short.
    batch.put_item(cache.id, lost, &record, &[0; 4 * (DIM - 2)], 0);
    store.commit(batch).unwrap();
    let is_it = |error: Error| matches!(error, Error::Row { id, .. } if id == lost);
    assert!(Cache::open(&store, &name(), None, OPTIONS).is_err_and(is_it));
    let early = Cache::open_early(&store, &name(), None, OPTIONS).unwrap();
    assert!(search(&early, lost.0).is_err_and(is_it));
    // The other rows answer, and stay where they are; of few, every search reads all.
    let mut heard = 0;
    for number in (0..ROWS).step_by(97) {
        heard += usize::from(search(&early, number).is_ok());
    }
    assert!(heard > 20 || count < ROWS, "{heard}");
    assert!(early.snapshot().wait_for_rows().is_err_and(is_it));
    assert!(!early.snapshot().rows_in_memory());
}

#[test]
fn a_cache_that_is_dropped_stops_reading_and_lets_go_of_the_store() {
    let folder = tempfile::tempdir().unwrap();
    drop(make(folder.path(), RowType::F32));
    for _ in 0..20 {
        // The lock is free again each time.
        let store = Arc::new(Store::open(folder.path(), Access::Write).unwrap());
        drop(Cache::open_early(&store, &name(), None, OPTIONS).unwrap());
        assert_eq!(Arc::strong_count(&store), 1);
    }
}
