//! A cache against its model: a map from ids to rows, searched by sorting. Whatever is done to both, in whatever order,
//! every search of the cache gives what the model gives, item by item and bit by bit.
//!
//! ```text
//! operation ─┬─► cache: graph and codes, delta, log, generations, follower        ┐ after each one, every search is equal
//!            └─► model: BTreeMap                                                  ┘
//! hold ────────► a snapshot and a copy of the map: equal for as long as they are held (rows in memory)
//! ```
//!
//! The seed is printed and taken back from `VISCACHE_SEED`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tempfile::TempDir;
use viscache::cache::{
    Cache, CompactOptions, Error, LoadOptions, NewCache, NewItem, RowsMode, Snapshot, Writer, decode_row,
    encode_row,
};
use viscache::index::{BuildParams, CodeKind, SearchParams, Searcher};
use viscache::kernels::Kernels;
use viscache::store::{Access, ItemRecord, RowType, Store};
use viscache::types::{CacheName, Embedding, Fingerprint, ItemId, Origin};

use crate::common;

const CODES: [CodeKind; 4] = [CodeKind::F32, CodeKind::F16, CodeKind::U8, CodeKind::U4];
const DIM: usize = 6;
/// Ids that operations name.
const IDS: u64 = 40;
/// Items that a build has put.
const FIRST: u64 = 25;

/// What is done to the cache and to its model.
#[derive(Debug, Clone)]
enum Operation {
    /// Under an id or the next free one; rows are made from numbers, few of them, so that twins are common.
    Upsert(Vec<(Option<u64>, u8)>),
    Delete(Vec<u64>),
    Compact,
    /// Changes become rows of the index that is searched.
    BuildIn,
    /// The other stored generation is served: a roll-back, or its opposite. Items stay.
    Publish,
    /// The process ends, another opens the store.
    Reopen,
    /// A reader begins an answer and takes its time.
    Hold,
    /// The readers that hold something are done.
    Release,
    Search {
        query: u8,
        top_k: usize,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    let upsert = prop::collection::vec((prop::option::weighted(0.7, 0..IDS), any::<u8>()), 1..25);
    prop_oneof![
        6 => upsert.prop_map(Operation::Upsert),
        5 => prop::collection::vec(0..IDS, 1..15).prop_map(Operation::Delete),
        3 => Just(Operation::Compact),
        4 => Just(Operation::BuildIn),
        2 => Just(Operation::Publish),
        2 => Just(Operation::Reopen),
        2 => Just(Operation::Hold),
        1 => Just(Operation::Release),
        4 => (any::<u8>(), 1usize..60).prop_map(|(query, top_k)| Operation::Search { query, top_k }),
    ]
}

/// Rows by id, as they are read back.
#[derive(Debug, Clone, Default)]
struct Model(BTreeMap<u64, Vec<f32>>);

impl Model {
    fn search(&self, query: &[f32], top_k: usize) -> Vec<(u64, f32)> {
        let score = |(&id, row): (&u64, &Vec<f32>)| (id, Kernels::get().dot(query, row));
        let mut all: Vec<(u64, f32)> = self.0.iter().map(score).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(top_k);
        all
    }
}

/// How the cache is made and served.
#[derive(Debug, Clone, Copy)]
struct Setting {
    mode: RowsMode,
    rows: RowType,
    codes: CodeKind,
    /// Whether compactions build everything anew.
    anew: bool,
}

struct World {
    folder: TempDir,
    setting: Setting,
    /// The writer's, and a follower's. Neither while the process is down.
    caches: Option<[Arc<Cache>; 2]>,
    model: Model,
    next: u64,
    held: Vec<(Arc<Snapshot>, Model)>,
}

/// A unit row made from a number.
fn row(number: u8) -> Vec<f32> {
    let mut state = u32::from(number % 100).wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 - 0.5
    };
    let row = (0..DIM).map(|_| next()).collect();
    Embedding::new(row).unwrap().unit().unwrap().into_vec()
}

fn item(id: Option<u64>, number: u8) -> NewItem {
    let digest = Fingerprint::of(&[number]);
    let record = ItemRecord { uri: number.to_string(), modality: None, digest, tags: BTreeMap::new() };
    NewItem { id: id.map(ItemId), embedding: Embedding::new(row(number)).unwrap(), record }
}

fn name() -> CacheName {
    CacheName::new("model").unwrap()
}

impl World {
    fn new(setting: Setting) -> Self {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path(), Access::Write).unwrap();
        let origin = Origin::of("test");
        let new = NewCache { dim: DIM, rows: setting.rows, origin, model: None };
        let mut writer = Writer::open(&store, &name(), &new).unwrap();
        writer.put((0..FIRST as u8).map(|i| item(None, i)).collect(), |_, _, _| {}).unwrap();
        let params = BuildParams {
            m: 4,
            ef_construction: 16,
            codes: setting.codes,
            threads: 1,
            ..BuildParams::default()
        };
        writer.index(&params, &Default::default(), |_| {}, |_, _, _| Ok(Default::default())).unwrap();
        drop(store);
        let (caches, held) = (None, Vec::new());
        let mut world = World { folder, setting, caches, model: Model::default(), next: FIRST, held };
        world.model.0 = (0..FIRST).map(|i| (i, world.stored(i as u8))).collect();
        world.open();
        world
    }

    fn open(&mut self) {
        let options = LoadOptions { rows: self.setting.mode, memory_budget: 1 << 26 };
        self.caches = Some([Access::Write, Access::Read].map(|access| {
            let store = Arc::new(Store::open(self.folder.path(), access).unwrap());
            Arc::new(Cache::open(&store, &name(), None, options).unwrap())
        }));
    }

    fn cache(&self) -> &Arc<Cache> {
        &self.caches.as_ref().unwrap()[0]
    }

    fn options(&self) -> CompactOptions {
        let rebuild_below = if self.setting.anew { usize::MAX } else { 0 };
        CompactOptions { automatic: false, threads: 1, rebuild_below, ..CompactOptions::default() }
    }

    fn stored(&self, number: u8) -> Vec<f32> {
        decode_row(&encode_row(&row(number), self.setting.rows), self.setting.rows)
    }

    fn run(&mut self, operation: &Operation) {
        match operation {
            Operation::Upsert(items) => {
                let new = items.iter().map(|&(id, number)| item(id, number)).collect();
                let named: BTreeSet<u64> = items.iter().filter_map(|&(id, _)| id).collect();
                let given = self.cache().upsert(new).unwrap();
                for (&(id, number), given) in items.iter().zip(given) {
                    let next = || (self.next..).find(|id| !named.contains(id)).unwrap();
                    let id = id.unwrap_or_else(next);
                    assert_eq!(given.unwrap(), ItemId(id));
                    self.next = self.next.max(id + 1);
                    let row = self.stored(number);
                    self.model.0.insert(id, row);
                }
            }
            Operation::Delete(ids) => {
                let wanted: Vec<ItemId> = ids.iter().map(|&id| ItemId(id)).collect();
                let found = self.cache().delete(&wanted).unwrap();
                let expected: Vec<bool> = ids.iter().map(|id| self.model.0.remove(id).is_some()).collect();
                assert_eq!(found, expected);
            }
            Operation::Compact => match self.cache().compact(&self.options()) {
                Ok(done) => assert_eq!(done.items, self.model.0.len() as u64),
                Err(Error::Index(_)) => assert!(self.model.0.is_empty()),
                Err(error) => panic!("{error}"),
            },
            Operation::BuildIn => {
                let before = self.cache().snapshot();
                let moved = self.cache().build_in(&self.options()).unwrap();
                let after = self.cache().snapshot();
                assert_eq!(after.generation(), before.generation());
                let built = before.generation_record().built.unwrap_or(0);
                let small = before.live() as u64 <= 2 * built;
                if !self.setting.anew && before.live() > 0 && !before.index().is_empty() && small {
                    assert_eq!(moved as u64, before.delta().items);
                    assert_eq!(after.delta().items, 0);
                }
            }
            Operation::Publish => {
                let (now, store) = (self.cache().snapshot(), self.cache().snapshot().store().clone());
                let stored = store.generations(now.record().id).unwrap();
                if let Some(other) = stored.iter().find(|g| g.generation != now.generation()) {
                    self.cache().publish(other.generation).unwrap();
                    assert_eq!(self.cache().snapshot().generation(), other.generation);
                }
            }
            Operation::Reopen => {
                // A held snapshot keeps the store, and its lock, open.
                (self.caches, self.held) = (None, Vec::new());
                self.open();
            }
            Operation::Hold => {
                let held = (self.cache().snapshot(), self.model.clone());
                self.held.push(held);
            }
            Operation::Release => self.held.clear(),
            Operation::Search { query, top_k } => {
                for (snapshot, model) in self.readers() {
                    same(&snapshot, model, &row(*query), *top_k);
                }
            }
        }
    }

    /// Everybody who reads: the writer's process, a follower that looks again, and those who hold an older state.
    fn readers(&self) -> Vec<(Arc<Snapshot>, &Model)> {
        let [writer, follower] = self.caches.as_ref().unwrap();
        follower.reload().unwrap();
        let mut readers = vec![(writer.snapshot(), &self.model), (follower.snapshot(), &self.model)];
        // With rows on disk, a reader sees rows as they are now.
        if self.setting.mode == RowsMode::Ram {
            readers.extend(self.held.iter().map(|(snapshot, model)| (snapshot.clone(), model)));
        }
        readers
    }

    fn check(&self) {
        for (snapshot, model) in self.readers() {
            assert_eq!(snapshot.live(), model.0.len());
            for (query, top_k) in [(3, 1), (70, 5), (200, 1000)] {
                same(&snapshot, model, &row(query), top_k);
            }
        }
    }
}

/// The exact search and a beam over everything give what the model gives.
fn same(snapshot: &Snapshot, model: &Model, query: &[f32], top_k: usize) {
    let truth = model.search(query, top_k);
    let query = Embedding::new(query.to_vec()).unwrap();
    for exact in [true, false] {
        let params = SearchParams { ef_search: 512, rescore: Some(512), exact, ..SearchParams::default() };
        let hits = snapshot.search(&mut Searcher::default(), &query, top_k, &params).unwrap().hits;
        let found: Vec<(u64, f32)> = hits.iter().map(|hit| (hit.id.0, hit.score)).collect();
        assert_eq!(found, truth, "top {top_k}, exact: {exact}");
        assert!(hits.iter().all(|hit| model.0[&hit.id.0] == hit.embedding.as_slice()));
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(common::seed()), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(32))]

    #[test]
    fn a_cache_is_a_map_that_can_be_searched(
        operations in prop::collection::vec(operation(), 1..20),
        disk in any::<bool>(), half in any::<bool>(), codes in prop::sample::select(&CODES[..]), anew in any::<bool>(),
    ) {
        let mode = if disk { RowsMode::Disk } else { RowsMode::Ram };
        let rows = if half { RowType::F16 } else { RowType::F32 };
        let mut world = World::new(Setting { mode, rows, codes, anew });
        for operation in &operations {
            world.run(operation);
            world.check();
        }
    }
}
