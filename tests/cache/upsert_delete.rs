//! A living cache: what is upserted is found, what is deleted is not, whatever happens in between. Against a model, on a
//! real store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;
use viscache::cache::{
    Background, Cache, CompactOptions, Error, LoadOptions, NewCache, NewItem, RowsMode, Snapshot, Writer,
    decode_row, encode_row,
};
use viscache::index::{BuildParams, SearchParams, Searcher};
use viscache::kernels::Kernels;
use viscache::store::{Access, ItemRecord, RowType, Store};
use viscache::types::{CacheName, Embedding, Filter, Fingerprint, Generation, Hit, ItemId, Origin};

const DIM: usize = 8;
/// Items at the beginning.
const FIRST: u64 = 20;

/// What is done to a cache.
#[derive(Debug, Clone)]
enum Operation {
    /// Under an id, or the next free one; the row is made from a number.
    Upsert(Vec<(Option<u64>, u64)>),
    Delete(Vec<u64>),
    Compact,
    /// To the other stored generation, if there is one.
    Publish,
    /// The process ends and another opens the store.
    Reopen,
    /// A bulk build over everything, by another process while the server is down.
    Index,
}

fn operation() -> impl Strategy<Value = Operation> {
    let id = 0u64..50;
    let upsert = prop::collection::vec((prop::option::of(id.clone()), any::<u64>()), 1..40);
    prop_oneof![
        6 => upsert.prop_map(Operation::Upsert),
        5 => prop::collection::vec(id, 1..25).prop_map(Operation::Delete),
        2 => Just(Operation::Compact),
        1 => Just(Operation::Publish),
        1 => Just(Operation::Reopen),
        1 => Just(Operation::Index),
    ]
}

fn name() -> CacheName {
    CacheName::new("living").unwrap()
}

/// A unit row made from a number.
fn row(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let row: Vec<f32> = (0..DIM).map(|_| next()).collect();
    Embedding::new(row).unwrap().unit().unwrap().into_vec()
}

/// Tags that say what the row is: its sign, and for some whether it is steep.
fn tags(row: &[f32]) -> BTreeMap<String, String> {
    // The same for a row that was stored in halves.
    let row = decode_row(&encode_row(row, RowType::F16), RowType::F16);
    let mut tags =
        BTreeMap::from([("sign".to_owned(), if row[0] < 0.0 { "minus" } else { "plus" }.to_owned())]);
    if row[1].abs() > row[2].abs() {
        tags.insert("steep".to_owned(), String::new());
    }
    tags
}

fn item(id: Option<u64>, seed: u64) -> NewItem {
    let record = ItemRecord {
        uri: format!("seed/{seed}"),
        modality: None,
        digest: Fingerprint::of(&seed.to_le_bytes()),
        tags: tags(&row(seed)),
    };
    NewItem { id: id.map(ItemId), embedding: Embedding::new(row(seed)).unwrap(), record }
}

fn params() -> BuildParams {
    BuildParams { m: 6, ef_construction: 24, threads: 1, ..BuildParams::default() }
}

fn compaction() -> CompactOptions {
    CompactOptions { automatic: false, threads: 1, ..CompactOptions::default() }
}

/// A store, its server if it runs, and what should be in it.
struct World {
    folder: TempDir,
    mode: RowsMode,
    kind: RowType,
    cache: Option<Arc<Cache>>,
    follower: Option<Arc<Cache>>,
    model: BTreeMap<u64, Vec<f32>>,
    next: u64,
}

impl World {
    fn new(mode: RowsMode, kind: RowType) -> Self {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path(), Access::Write).unwrap();
        let origin = Origin::of("test");
        let new = NewCache { dim: DIM, rows: kind, origin, model: None };
        let mut writer = Writer::open(&store, &name(), &new).unwrap();
        writer.put((0..FIRST).map(|i| item(None, 1000 + i)).collect(), |_, _, _| {}).unwrap();
        writer.index(&params(), &Default::default(), |_| {}, |_, _, _| Ok(Default::default())).unwrap();
        drop(store);
        let mut world =
            World { folder, mode, kind, cache: None, follower: None, model: BTreeMap::new(), next: FIRST };
        world.model = (0..FIRST).map(|i| (i, world.stored(1000 + i))).collect();
        world.open();
        world
    }

    /// A row as it is read back.
    fn stored(&self, seed: u64) -> Vec<f32> {
        decode_row(&encode_row(&row(seed), self.kind), self.kind)
    }

    fn open(&mut self) {
        self.cache = Some(open(self.folder.path(), Access::Write, self.mode));
        self.follower = Some(open(self.folder.path(), Access::Read, self.mode));
    }

    fn close(&mut self) {
        (self.cache, self.follower) = (None, None);
    }

    fn cache(&self) -> &Arc<Cache> {
        self.cache.as_ref().unwrap()
    }

    fn run(&mut self, operation: &Operation) {
        match operation {
            Operation::Upsert(items) => {
                let new = items.iter().map(|&(id, seed)| item(id, seed)).collect();
                let named: BTreeSet<u64> = items.iter().filter_map(|&(id, _)| id).collect();
                let ids = self.cache().upsert(new).unwrap();
                for (&(id, seed), given) in items.iter().zip(ids) {
                    let next = || (self.next..).find(|id| !named.contains(id)).unwrap();
                    let expected = id.unwrap_or_else(next);
                    assert_eq!(given.unwrap(), ItemId(expected));
                    self.next = self.next.max(expected + 1);
                    let row = self.stored(seed);
                    self.model.insert(expected, row);
                }
            }
            Operation::Delete(ids) => {
                let wanted: Vec<ItemId> = ids.iter().map(|&id| ItemId(id)).collect();
                let found = self.cache().delete(&wanted).unwrap();
                let expected: Vec<bool> = ids.iter().map(|id| self.model.remove(id).is_some()).collect();
                assert_eq!(found, expected);
            }
            Operation::Compact if self.model.is_empty() => {
                assert!(matches!(self.cache().compact(&compaction()), Err(Error::Index(_))));
            }
            Operation::Compact => {
                let done = self.cache().compact(&compaction()).unwrap();
                assert_eq!(done.items, self.model.len() as u64);
                let snapshot = self.cache().snapshot();
                assert_eq!(snapshot.generation(), done.generation);
                let delta = snapshot.delta();
                assert_eq!((delta.items, delta.masked, delta.rows), (0, 0, 0));
            }
            Operation::Publish => {
                let snapshot = self.cache().snapshot();
                let (now, id) = (snapshot.generation(), snapshot.record().id);
                let stored = snapshot.store().generations(id).unwrap();
                let other: Vec<Generation> =
                    stored.iter().map(|g| g.generation).filter(|g| *g != now).collect();
                if let Some(&other) = other.first() {
                    self.cache().publish(other).unwrap();
                    assert_eq!(self.cache().snapshot().generation(), other);
                }
            }
            Operation::Reopen => {
                self.close();
                self.open();
            }
            Operation::Index if self.model.is_empty() => {}
            Operation::Index => {
                self.close();
                let store = Store::open(self.folder.path(), Access::Write).unwrap();
                let mut writer = Writer::existing(&store, &name()).unwrap();
                writer
                    .index(&params(), &Default::default(), |_| {}, |_, _, _| Ok(Default::default()))
                    .unwrap();
                drop(store);
                self.open();
                assert_eq!(self.cache().snapshot().delta().rows, 0);
            }
        }
    }

    /// Every search finds the live items and nothing else.
    fn check(&self, seed: u64) {
        let store = self.cache().snapshot().store().clone();
        assert_eq!(store.cache(&name()).unwrap().items, self.model.len() as u64);
        self.check_snapshot(&self.cache().snapshot(), seed);
        let follower = self.follower.as_ref().unwrap();
        follower.reload().unwrap();
        self.check_snapshot(&follower.snapshot(), seed);
    }

    fn check_snapshot(&self, snapshot: &Snapshot, seed: u64) {
        assert_eq!(snapshot.live(), self.model.len());
        let query = Embedding::new(row(seed)).unwrap();
        let search = |top_k: usize, params: &SearchParams| {
            snapshot.search(&mut Searcher::default(), &query, top_k, params).unwrap().hits
        };
        let exact = SearchParams { exact: true, ..SearchParams::default() };
        let all = search(self.model.len() + 5, &exact);
        let found: BTreeMap<u64, &[f32]> =
            all.iter().map(|hit| (hit.id.0, hit.embedding.as_slice())).collect();
        assert_eq!(found.len(), all.len(), "an item was found twice");
        let live: BTreeMap<u64, &[f32]> = self.model.iter().map(|(&id, row)| (id, &row[..])).collect();
        assert_eq!(found, live);
        for hit in &all {
            assert_eq!(hit.score, Kernels::get().dot(query.as_slice(), hit.embedding.as_slice()));
        }
        for top_k in [1, 5, self.model.len() + 5] {
            // A beam over everything is exact.
            let whole = SearchParams { ef_search: 512, rescore: Some(512), ..SearchParams::default() };
            assert_eq!(search(top_k, &whole), all[..top_k.min(all.len())], "top {top_k}");
            assert_eq!(search(top_k, &exact), all[..top_k.min(all.len())], "top {top_k}, exact");
        }
        // A filter leaves those that it matches one by one.
        let sign = Filter::Tag { key: "sign".into(), values: ["plus".to_owned()].into() };
        let some = Filter::Ids((0..15).map(ItemId).collect());
        let steep = || Filter::HasTag("steep".into());
        for filter in [
            sign.clone(),
            Filter::Not(Box::new(steep())),
            Filter::Any(vec![Filter::All(vec![sign, steep()]), some]),
        ] {
            let matches = |hit: &&Hit| filter.matches(hit.id, &tags(hit.embedding.as_slice()));
            let expected: Vec<Hit> = all.iter().filter(matches).cloned().collect();
            let filtered = snapshot.filtered(&filter).unwrap();
            assert_eq!(filtered.len(), expected.len());
            for params in [exact, SearchParams::default()] {
                let found =
                    filtered.search(&mut Searcher::default(), &query, all.len() + 5, &params).unwrap();
                assert_eq!(found.hits, expected, "{filter}");
                assert_eq!(found.matching, expected.len());
            }
        }
        // A narrow one finds enough, all alive, in order.
        let narrow = search(5, &SearchParams { ef_search: 1, rescore: Some(1), ..SearchParams::default() });
        assert_eq!(narrow.len(), self.model.len().min(5));
        assert!(narrow.iter().all(|hit| self.model.contains_key(&hit.id.0)));
        assert!(narrow.windows(2).all(|pair| pair[0].score >= pair[1].score));
        assert_eq!(narrow.iter().map(|hit| hit.id).collect::<BTreeSet<_>>().len(), narrow.len());
    }
}

fn open(path: &Path, access: Access, rows: RowsMode) -> Arc<Cache> {
    let store = Arc::new(Store::open(path, access).unwrap());
    let options = LoadOptions { rows, memory_budget: 1 << 26 };
    Arc::new(Cache::open(&store, &name(), None, options).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_searches_find_the_live_items(
        operations in prop::collection::vec(operation(), 1..16),
        disk in any::<bool>(), half in any::<bool>(), seed in any::<u64>()
    ) {
        let mode = if disk { RowsMode::Disk } else { RowsMode::Ram };
        let mut world = World::new(mode, if half { RowType::F16 } else { RowType::F32 });
        world.check(seed);
        for operation in &operations {
            world.run(operation);
            world.check(seed);
        }
    }
}

#[test]
fn the_last_of_one_batch_wins_and_a_deletion_of_nothing_is_none() {
    let mut world = World::new(RowsMode::Ram, RowType::F32);
    world.run(&Operation::Upsert(vec![(Some(3), 1), (Some(3), 2), (None, 3), (Some(30), 4), (None, 5)]));
    world.run(&Operation::Delete(vec![3, 3, 999, u64::MAX, 21]));
    world.check(9);
    assert_eq!(world.model.keys().next_back(), Some(&31));
    // Half of one batch is good.
    let wrong = NewItem { embedding: Embedding::new(vec![1.0; DIM + 1]).unwrap(), ..item(None, 6) };
    let zero = NewItem { embedding: Embedding::new(vec![0.0; DIM]).unwrap(), ..item(None, 6) };
    let last = item(Some(u64::MAX), 6);
    let results = world.cache().upsert(vec![wrong, item(None, 7), zero, last]).unwrap();
    assert!(matches!(results[0], Err(Error::Dimension { expected: DIM, .. })));
    assert_eq!(*results[1].as_ref().unwrap(), ItemId(32));
    assert!(matches!(results[2], Err(Error::Row { .. })));
    assert!(matches!(results[3], Err(Error::NoFreeId(_))));
}

#[test]
fn many_deletions_in_one_place_do_not_hide_what_lies_behind() {
    let mut world = World::new(RowsMode::Ram, RowType::F32);
    let many = (0..400).map(|i| (None, 50_000 + i)).collect();
    world.run(&Operation::Upsert(many));
    world.run(&Operation::Compact);
    let query = row(77);
    let mut by_score: Vec<(f32, u64)> =
        world.model.iter().map(|(&id, row)| (Kernels::get().dot(&query, row), id)).collect();
    by_score.sort_by(|a, b| b.0.total_cmp(&a.0));
    // The nearest 300 of 420: all that a beam of this width would see.
    world.run(&Operation::Delete(by_score.iter().take(300).map(|&(_, id)| id).collect()));
    world.check(77);
}

#[test]
fn a_read_only_store_takes_no_change_and_a_full_cache_says_so() {
    let world = World::new(RowsMode::Ram, RowType::F32);
    let follower = world.follower.as_ref().unwrap();
    assert!(matches!(follower.upsert(vec![item(None, 1)]), Err(Error::NotWritable(_))));
    assert!(matches!(follower.delete(&[ItemId(1)]), Err(Error::NotWritable(_))));
    assert!(matches!(follower.compact(&compaction()), Err(Error::NotWritable(_))));
    let path = world.folder.path().to_owned();
    let plan = follower.snapshot().loaded().plan.total();
    let World { folder: _kept, cache, .. } = world;
    drop(cache);
    let store = Arc::new(Store::open(&path, Access::Write).unwrap());
    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: plan + 200 };
    let cache = Arc::new(Cache::open(&store, &name(), None, options).unwrap());
    cache.upsert(vec![item(None, 1)]).unwrap();
    assert!(matches!(cache.upsert((0..9).map(|i| item(None, i)).collect()), Err(Error::Full { .. })));
    assert!(matches!(cache.compact(&compaction()), Err(Error::CompactMemory { .. })));
    assert_eq!(cache.delete(&[ItemId(1)]).unwrap(), [true]);
}

#[test]
fn compaction_in_the_background_loses_nothing_of_what_comes_meanwhile() {
    let mut world = World::new(RowsMode::Ram, RowType::F32);
    let options = CompactOptions {
        automatic: true,
        after_changes: 30,
        after_share: 0.0,
        threads: 1,
        rebuild_below: usize::MAX,
    };
    let (first, background) = (world.cache().snapshot().generation(), Background::default());
    for round in 0..150 {
        let items = (0..5).map(|i| ((i < 2).then_some(round % 40), round * 10 + i)).collect();
        world.run(&Operation::Upsert(items));
        world.cache().compact_if_due(&options, &background);
        world.run(&Operation::Delete(vec![round % 25, round * 3]));
        // A reader at any moment sees one state, whole.
        world.check_snapshot(&world.cache().snapshot(), round);
    }
    // The thread lets go of the cache a moment after it has done its work.
    while world.cache().compacting() || Arc::strong_count(world.cache()) > 1 {
        std::thread::yield_now();
    }
    world.check(3);
    assert!(world.cache().snapshot().generation() > first);
    assert_eq!(world.cache().compaction_problem(), None);
    world.run(&Operation::Reopen);
    world.check(4);
}

/// A generation that leaves little of the budget is not built anew after every change; one without room for a change is.
#[test]
fn little_room_makes_no_storm_and_no_room_makes_room() {
    let world = World::new(RowsMode::Ram, RowType::F32);
    let path = world.folder.path().to_owned();
    let plan = world.cache().snapshot().loaded().plan.total();
    let World { folder: _kept, cache, follower, .. } = world;
    drop((cache, follower));
    let store = Arc::new(Store::open(&path, Access::Write).unwrap());
    // Room for some changes, and next to nothing beside the generation; a build of so few items fits in it.
    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: plan + 100_000 };
    let cache = Arc::new(Cache::open(&store, &name(), None, options).unwrap());
    let (often, background) = (CompactOptions { automatic: true, ..compaction() }, Background::default());
    for round in 0..20 {
        cache.upsert(vec![item(Some(3), round)]).unwrap();
        cache.compact_if_due(&often, &background);
    }
    assert!(!cache.compacting() && cache.snapshot().generation().0 == 1, "every change is built in");
    cache.compact_for_room(&often, &background);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while cache.snapshot().generation().0 == 1 {
        assert!(std::time::Instant::now() < until, "{:?}", cache.compaction_problem());
        std::thread::yield_now();
    }
    assert_eq!(cache.snapshot().delta().items, 0);
}

/// However many caches are due at once, one is compacted at a time, and all are in the end.
#[test]
fn caches_are_compacted_one_after_another() {
    let options = CompactOptions {
        automatic: true,
        after_changes: 10,
        after_share: 0.0,
        threads: 1,
        rebuild_below: usize::MAX,
    };
    let mut worlds: Vec<World> = (0..4).map(|_| World::new(RowsMode::Ram, RowType::F32)).collect();
    let background = Background::default();
    for world in &mut worlds {
        world.run(&Operation::Upsert((0..30).map(|i| (None, i)).collect()));
        for _ in 0..3 {
            world.cache().compact_if_due(&options, &background);
        }
    }
    let done = |world: &World| world.cache().snapshot().delta().items == 0;
    while !worlds.iter().all(done) {
        let at_once = worlds.iter().filter(|world| world.cache().compacting()).count();
        assert!(at_once <= 1, "{at_once} at a time");
        std::thread::yield_now();
    }
    for world in &worlds {
        assert_eq!(world.cache().snapshot().generation().0, 2, "and each once");
        world.check(5);
    }
    // A later one finds the way free.
    worlds[0].run(&Operation::Upsert((0..30).map(|i| (None, 100 + i)).collect()));
    worlds[0].cache().compact_if_due(&options, &background);
    while !done(&worlds[0]) {
        std::thread::yield_now();
    }
}

/// A follower that meets a store in an odd state keeps what it shows, and finds everything once the store is in order.
#[test]
fn a_reload_that_fails_changes_nothing() {
    let mut world = World::new(RowsMode::Ram, RowType::F32);
    world.run(&Operation::Upsert(vec![(Some(3), 50)]));
    let follower = world.follower.clone().unwrap();
    follower.reload().unwrap();
    let seen = |id: u64, seed: u64| {
        let query = Embedding::new(row(seed)).unwrap();
        let params = SearchParams { exact: true, ..SearchParams::default() };
        let found = follower.snapshot().search(&mut Searcher::default(), &query, 1, &params).unwrap();
        found.hits[0].id == ItemId(id) && found.hits[0].embedding.as_slice() == row(seed)
    };
    assert!(seen(3, 50));
    // The log says more than the families of items and rows, as after a log file that went away while it was read.
    let writer = world.cache().clone();
    let ids = writer.upsert(vec![item(Some(3), 60), item(Some(5), 61)]).unwrap();
    assert!(ids.iter().all(Result::is_ok));
    let (store, cache) = (writer.snapshot().store().clone(), writer.snapshot().record().id);
    let (record, stored) =
        (store.item(cache, ItemId(3)).unwrap().unwrap(), store.row(cache, ItemId(3)).unwrap().unwrap());
    let put = |row: Option<&[u8]>, sequence: u64| {
        let mut batch = store.batch();
        match row {
            Some(row) => batch.put_item(cache, ItemId(3), &record, row, sequence),
            None => batch.delete_item(cache, ItemId(3)),
        }
        store.commit(batch).unwrap();
    };
    let old = encode_row(&row(50), RowType::F32);
    let odd: [(Option<&[u8]>, u64, &str); 2] = [(None, 0, "missing"), (Some(&old), 1, "older than change")];
    for (bytes, sequence, why) in odd {
        put(bytes, sequence);
        // However often it looks.
        for _ in 0..2 {
            let refused = follower.reload().unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
            assert!(seen(3, 50), "what was shown before");
        }
    }
    put(Some(&stored), writer.snapshot().delta().sequence);
    follower.reload().unwrap();
    assert!(seen(3, 60) && seen(5, 61));
}
