//! What every search of a cache keeps to, whatever is stored and however it is asked:
//!
//! * it finds live items only, none twice, as many as there are up to `top_k`, best first, equal scores by id;
//! * a hit is the row as it is stored, and its score the kernel's product with the query, to the bit;
//! * what was deleted last is not found, what was upserted last is found as it was upserted last;
//! * with a beam and a rescoring as wide as the cache it finds what the exact search finds, and that is what sorting finds.
//!
//! On a real store. The seed is printed and taken back from `VISCACHE_SEED`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use viscache::cache::{
    Cache, LoadOptions, NewCache, NewItem, RowsMode, Snapshot, Writer, decode_row, encode_row,
};
use viscache::index::{BuildParams, CodeKind, Plan, SearchParams, Searcher};
use viscache::kernels::Kernels;
use viscache::store::{Access, ItemRecord, RowType, Store};
use viscache::types::{CacheName, Embedding, Filter, Fingerprint, Hit, ItemId, Origin};

use crate::common;

const CODES: [CodeKind; 4] = [CodeKind::F32, CodeKind::F16, CodeKind::U8, CodeKind::U4];

/// A cache to ask: what is indexed, and what is changed afterwards.
#[derive(Debug, Clone)]
struct World {
    rows: RowType,
    mode: RowsMode,
    codes: CodeKind,
    /// By id.
    indexed: BTreeMap<u64, Vec<f32>>,
    /// Batches of upserts (a row) and deletions (none).
    changes: Vec<Vec<(u64, Option<Vec<f32>>)>>,
    queries: Vec<Vec<f32>>,
}

/// Vectors with a direction: of any numbers, or of few, so that rows and scores are often equal.
fn vector(dim: usize) -> impl Strategy<Value = Vec<f32>> {
    let few = prop::collection::vec((-2i8..3).prop_map(f32::from), dim);
    let any = prop::collection::vec(-1.0f32..1.0, dim);
    prop_oneof![few, any].prop_filter("it has a direction", |v| v.iter().any(|v| v.abs() > 1e-3))
}

fn world() -> impl Strategy<Value = World> {
    (1usize..10).prop_flat_map(|dim| {
        let change = (0u64..50, prop::option::weighted(0.6, vector(dim)));
        let parts = (
            prop_oneof![Just(RowType::F32), Just(RowType::F16)],
            prop_oneof![Just(RowsMode::Ram), Just(RowsMode::Disk)],
            prop::sample::select(&CODES[..]),
            prop::collection::btree_map(0u64..45, vector(dim), 1..40),
            prop::collection::vec(prop::collection::vec(change, 1..20), 0..4),
            prop::collection::vec(vector(dim), 1..4),
        );
        parts.prop_map(|(rows, mode, codes, indexed, changes, queries)| World {
            rows,
            mode,
            codes,
            indexed,
            changes,
            queries,
        })
    })
}

fn item(id: u64, row: &[f32]) -> NewItem {
    let digest = Fingerprint::of(bytes_of(row).as_slice());
    let record = ItemRecord { uri: id.to_string(), modality: None, digest, tags: BTreeMap::new() };
    NewItem { id: Some(ItemId(id)), embedding: Embedding::new(row.to_vec()).unwrap(), record }
}

fn bytes_of(row: &[f32]) -> Vec<u8> {
    encode_row(row, RowType::F32)
}

impl World {
    /// Makes the cache and gives what lives in it, as it is stored.
    fn make(&self, store: &Arc<Store>) -> (Cache, BTreeMap<u64, Vec<f32>>) {
        let name = CacheName::new("world").unwrap();
        let origin = Origin::of("test");
        let new = NewCache { dim: self.queries[0].len(), rows: self.rows, origin, model: None };
        let mut writer = Writer::open(store, &name, &new).unwrap();
        writer.put(self.indexed.iter().map(|(&id, row)| item(id, row)).collect(), |_, _, _| {}).unwrap();
        let params = BuildParams {
            m: 4,
            ef_construction: 16,
            codes: self.codes,
            threads: 1,
            ..BuildParams::default()
        };
        writer.index(&params, &Default::default(), |_| {}, |_, _, _| Ok(Default::default())).unwrap();
        let options = LoadOptions { rows: self.mode, memory_budget: 1 << 26 };
        let cache = Cache::open(store, &name, None, options).unwrap();
        let mut live = BTreeMap::new();
        for (&id, row) in &self.indexed {
            live.insert(id, self.stored(row));
        }
        for batch in &self.changes {
            let upserts: Vec<_> = batch.iter().filter_map(|(id, row)| Some((*id, row.as_ref()?))).collect();
            let deleted: Vec<ItemId> =
                batch.iter().filter(|(_, row)| row.is_none()).map(|(id, _)| ItemId(*id)).collect();
            let ids = cache.upsert(upserts.iter().map(|(id, row)| item(*id, row)).collect()).unwrap();
            assert!(ids.iter().all(Result::is_ok));
            for (id, row) in upserts {
                live.insert(id, self.stored(row));
            }
            let found = cache.delete(&deleted).unwrap();
            for (id, found) in deleted.iter().zip(found) {
                assert_eq!(live.remove(&id.0).is_some(), found);
            }
        }
        (cache, live)
    }

    /// A row as it is read back.
    fn stored(&self, row: &[f32]) -> Vec<f32> {
        let norm = Embedding::new(row.to_vec()).unwrap();
        let unit = if (norm.norm() - 1.0).abs() < 1e-6 { norm } else { norm.unit().unwrap() };
        decode_row(&encode_row(unit.as_slice(), self.rows), self.rows)
    }
}

/// What sorting all live rows gives.
fn truth(live: &BTreeMap<u64, Vec<f32>>, query: &[f32], top_k: usize) -> Vec<(u64, f32)> {
    let mut all: Vec<(u64, f32)> =
        live.iter().map(|(&id, row)| (id, Kernels::get().dot(query, row))).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(top_k);
    all
}

fn search(snapshot: &Snapshot, query: &[f32], top_k: usize, params: SearchParams) -> Vec<Hit> {
    let query = Embedding::new(query.to_vec()).unwrap();
    snapshot.search(&mut Searcher::default(), &query, top_k, &params).unwrap().hits
}

fn asked(ef_search: usize, rescore: usize, exact: bool) -> SearchParams {
    SearchParams { ef_search, rescore: Some(rescore), exact, ..SearchParams::default() }
}

fn pairs(hits: &[Hit]) -> Vec<(u64, f32)> {
    hits.iter().map(|hit| (hit.id.0, hit.score)).collect()
}

/// Of any search, however narrow.
fn holds(
    live: &BTreeMap<u64, Vec<f32>>,
    query: &[f32],
    top_k: usize,
    hits: &[Hit],
) -> Result<(), TestCaseError> {
    prop_assert_eq!(hits.len(), live.len().min(top_k), "as many as there are");
    let ids: BTreeSet<u64> = hits.iter().map(|hit| hit.id.0).collect();
    prop_assert_eq!(ids.len(), hits.len(), "none twice");
    for hit in hits {
        let row = live.get(&hit.id.0);
        prop_assert!(row.is_some(), "item {} does not live", hit.id);
        prop_assert_eq!(row.map(Vec::as_slice), Some(hit.embedding.as_slice()), "item {}", hit.id);
        prop_assert_eq!(hit.score, Kernels::get().dot(query, hit.embedding.as_slice()));
    }
    let ordered = hits.windows(2).all(|pair| {
        let order = pair[0].score.total_cmp(&pair[1].score);
        order.is_gt() || (order.is_eq() && pair[0].id < pair[1].id)
    });
    prop_assert!(ordered, "best first, equal ones by id: {:?}", pairs(hits));
    Ok(())
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(common::seed()), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn searches_keep_to_what_is_promised(world in world(), top_k in 1usize..60, ef_search in 1usize..20, rescore in 1usize..20) {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path(), Access::Write).unwrap());
        let (cache, live) = world.make(&store);
        let snapshot = cache.snapshot();
        prop_assert_eq!(snapshot.live(), live.len());
        for query in &world.queries {
            let truth = truth(&live, query, top_k);
            let exact = search(&snapshot, query, top_k, asked(ef_search, rescore, true));
            holds(&live, query, top_k, &exact)?;
            prop_assert_eq!(&pairs(&exact), &truth, "exact");
            let whole = search(&snapshot, query, top_k, asked(64, 64, false));
            holds(&live, query, top_k, &whole)?;
            prop_assert_eq!(&pairs(&whole), &truth, "a beam over everything");
            let narrow = search(&snapshot, query, top_k, asked(ef_search, rescore, false));
            holds(&live, query, top_k, &narrow)?;
        }
        // Caches this small are scanned. Their graph reaches every row all the same.
        let (index, mut searcher) = (snapshot.index(), Searcher::default());
        let (walked, cost) = searcher.search(index, &world.queries[0], index.len(), &asked(64, 64, false)).unwrap();
        let reached: BTreeSet<u32> = walked.iter().map(|candidate| candidate.slot.0).collect();
        prop_assert_eq!((walked.len(), reached.len()), (index.len(), index.len()));
        prop_assert!(cost.visited_nodes > 0);

        let queries: Vec<Embedding> = world.queries.iter().map(|q| Embedding::new(q.clone()).unwrap()).collect();
        let params = asked(ef_search, rescore, false);
        let all: Vec<&Embedding> = queries.iter().collect();
        let together = snapshot.search_all(&mut searcher, &all, top_k, &params);
        for (found, query) in together.into_iter().zip(&queries) {
            let alone = snapshot.search(&mut searcher, query, top_k, &params).unwrap();
            prop_assert_eq!(found.unwrap(), alone, "in turn with others");
        }
        let late = SearchParams { deadline: Some(std::time::Instant::now()), ..asked(ef_search, rescore, true) };
        // A generation of which nothing may be found is not scanned.
        if snapshot.delta().masked == 0 {
            let ended = snapshot.search(&mut searcher, &queries[0], top_k, &late);
            prop_assert!(ended.is_err_and(|e| e.to_string().contains("deadline")), "an exact search is not ended");
            let one = Filter::Ids([ItemId(snapshot.index().ids()[0])].into());
            let ended = snapshot.filtered(&one).unwrap().search(&mut searcher, &queries[0], top_k, &late);
            prop_assert!(ended.is_err_and(|e| e.to_string().contains("deadline")), "a filtered one is not ended");
        }
        for &id in live.keys() {
            prop_assert!(store.item(snapshot.record().id, ItemId(id)).unwrap().is_some());
        }
    }
}

/// Which items stay, and how a narrow search among them goes.
type Kept = (fn(u64) -> bool, Plan);

#[test]
fn what_was_deleted_is_gone_around_on_every_way() {
    const ROWS: u64 = 3000;
    let row = |id: u64| -> Vec<f32> {
        let mut state = id;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..64).map(|_| next()).collect()
    };
    let mut world = World {
        rows: RowType::F32,
        mode: RowsMode::Ram,
        codes: CodeKind::U4,
        indexed: (0..ROWS).map(|id| (id, row(id))).collect(),
        changes: Vec::new(),
        queries: vec![row(ROWS), row(ROWS + 1)],
    };
    let deleted =
        |keep: fn(u64) -> bool| vec![(0..ROWS).filter(|&id| !keep(id)).map(|id| (id, None)).collect()];
    let kept: [Kept; 3] =
        [(|_| true, Plan::Graph), (|id| id % 10 != 0, Plan::Graph), (|id| id % 5 < 2, Plan::GraphWithSkip)];
    for (keep, plan) in kept {
        world.changes = deleted(keep);
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path(), Access::Write).unwrap());
        let (cache, live) = world.make(&store);
        let snapshot = cache.snapshot();
        for query in &world.queries {
            let embedding = Embedding::new(query.clone()).unwrap();
            let ask = |params| snapshot.search(&mut Searcher::default(), &embedding, 10, &params).unwrap();
            let narrow = ask(asked(24, 24, false));
            assert_eq!(narrow.plan, plan);
            holds(&live, query, 10, &narrow.hits).unwrap();
            // As wide as this, it is a scan of what is left, and misses nothing.
            let wide = ask(asked(600, 600, false));
            assert_eq!((wide.plan, wide.cost.visited_nodes), (Plan::Scan, 0));
            assert_eq!(wide.cost.scored_vectors, live.len() as u64);
            assert_eq!(pairs(&wide.hits), truth(&live, query, 10));
        }
    }
}
