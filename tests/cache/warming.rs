//! A cache that is opened early answers at once, and the same while its rows come into memory as afterwards.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use viscache::cache::{Cache, CompactOptions, Error, LoadOptions, NewCache, NewItem, RowsMode, Writer};
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
    let mut random = Pcg64::seed_from_u64(number);
    let row = (0..DIM).map(|_| random.random_range(-1.0f32..1.2)).collect();
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

/// Whoever asks for a compaction need not wait for rows: what is built has all items, and so has what was changed meanwhile.
#[test]
fn a_compaction_meanwhile_loses_nothing() {
    const COUNT: u64 = 20_000;
    let mut early = 0;
    for rebuild_below in [0, usize::MAX] {
        let folder = tempfile::tempdir().unwrap();
        let store = make_of(folder.path(), RowType::F32, COUNT);
        let options = CompactOptions { threads: 2, rebuild_below, ..Default::default() };
        for round in 0..3u64 {
            let cache = Arc::new(Cache::open_early(&store, &name(), None, OPTIONS).unwrap());
            let (gone, new) = (ItemId(round), ItemId(30_000 + round));
            cache.delete(&[gone]).unwrap();
            early += u32::from(!cache.snapshot().rows_in_memory());
            std::thread::scope(|scope| {
                let compacted = scope.spawn(|| cache.compact(&options).unwrap());
                let record = ItemRecord {
                    uri: new.to_string(),
                    modality: None,
                    digest: Fingerprint::of(&new.0.to_le_bytes()),
                    tags: Default::default(),
                };
                let embedding = Embedding::new(row(new.0)).unwrap();
                cache.upsert(vec![NewItem { id: Some(new), embedding, record }]).unwrap();
                let compacted = compacted.join().unwrap();
                assert!(compacted.items.abs_diff(COUNT) <= 1, "{compacted:?}");
            });
            let expected: Vec<u64> = (round + 1..COUNT).chain(30_000..=30_000 + round).collect();
            let holds = |cache: &Cache, when: &str| {
                let snapshot = cache.snapshot();
                assert_eq!(snapshot.live(), expected.len(), "{when}, round {round} of {rebuild_below}");
                let some = || expected.iter().step_by(37).chain([&new.0]);
                let found = some().filter(|&&id| {
                    let hits = search(cache, id).unwrap();
                    assert!(hits.iter().all(|hit| expected.contains(&hit.0.0)), "{hits:?} {when}");
                    hits.iter().any(|hit| hit.0.0 == id)
                });
                // The graph is a poor one.
                let (found, asked) = (found.count(), some().count());
                assert!(found * 100 >= asked * 95, "{found} of {asked} {when}, round {round}");
            };
            holds(&cache, "afterwards");
            wait("the rows come into memory", || cache.snapshot().rows_in_memory());
            holds(&cache, "with its rows");
            drop(cache);
            holds(&Cache::open(&store, &name(), None, OPTIONS).unwrap(), "opened again");
        }
    }
    println!("rows were still on their way in {early} of 6 rounds");
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
