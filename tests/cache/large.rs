//! Where the machinery is: a cache that is large enough to be walked and not scanned, rows long enough for signs, changes beside the
//! generation, filters, margins, batches, queries of every length. What `properties.rs` says of small caches holds here too, and
//! that nearly all of the true neighbours are found.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use tempfile::TempDir;
use viscache::cache::{
    Cache, Found, LoadOptions, NewCache, NewItem, QuerySample, RECALL_SAMPLE, RowsMode, Snapshot, Writer,
    calibrate,
};
use viscache::index::{BuildParams, CodeKind, Plan, SearchParams, Searcher, TargetRecall};
use viscache::kernels::Kernels;
use viscache::store::{Access, ItemRecord, RowType, Store};
use viscache::types::{CacheName, Embedding, Filter, Fingerprint, ItemId, Origin, QueryKind};

use crate::common;

const ROWS: usize = 6000;
const DIM: usize = 256;
/// Every item has one of so many values of the tag `group`.
const GROUPS: u64 = 5;
const CENTRES: usize = 60;

/// Unit rows around some centres.
fn rows(seed: u64, count: usize, spread: f32) -> Vec<Vec<f32>> {
    let mut random = Pcg64::seed_from_u64(3);
    let centres: Vec<Vec<f32>> =
        (0..CENTRES).map(|_| (0..DIM).map(|_| random.random_range(-1.0f32..1.0)).collect()).collect();
    let mut random = Pcg64::seed_from_u64(seed);
    let row = |_| {
        let centre = &centres[random.random_range(0..CENTRES)];
        let row: Vec<f32> = centre.iter().map(|c| c + spread * random.random_range(-1.0f32..1.0)).collect();
        Embedding::new(row).unwrap().unit().unwrap().into_vec()
    };
    (0..count).map(row).collect()
}

/// Queries that lie off the rows.
fn queries(seed: u64, count: usize) -> Vec<Vec<f32>> {
    rows(seed, count, 2.0)
}

fn item(id: u64, row: Vec<f32>) -> NewItem {
    let digest = Fingerprint::of(&id.to_le_bytes());
    let tags = BTreeMap::from([("group".to_owned(), (id % GROUPS).to_string())]);
    let record = ItemRecord { uri: id.to_string(), modality: None, digest, tags };
    NewItem { id: Some(ItemId(id)), embedding: Embedding::new(row).unwrap(), record }
}

struct World {
    _folder: TempDir,
    cache: Arc<Cache>,
    /// What lives in it.
    live: BTreeMap<u64, Vec<f32>>,
}

fn name() -> CacheName {
    CacheName::new("large").unwrap()
}

/// * `changed`: items that are replaced, deleted or new beside the generation, a third each.
fn world(codes: CodeKind, changed: usize) -> World {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(folder.path(), Access::Write).unwrap());
    let new = NewCache { dim: DIM, rows: RowType::F32, origin: Origin::of("test"), model: None };
    let mut writer = Writer::open(&store, &name(), &new).unwrap();
    let mut live: BTreeMap<u64, Vec<f32>> = (0..).zip(rows(1, ROWS, 1.0)).collect();
    for chunk in live.iter().collect::<Vec<_>>().chunks(1000) {
        writer.put(chunk.iter().map(|(id, row)| item(**id, row.to_vec())).collect(), |_, _, _| ()).unwrap();
    }
    let params = BuildParams { codes, ..BuildParams::default() };
    let held_out =
        BTreeMap::from([("text".to_owned(), queries(5, 300)), ("audio".to_owned(), queries(6, 30))]);
    let sample = QuerySample { repair: Vec::new(), held_out };
    writer
        .index(&params, &sample, |_| (), |index, rows, asked| calibrate(index, rows, RECALL_SAMPLE, asked))
        .unwrap();
    drop(writer);
    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: 1 << 30 };
    let cache = Arc::new(Cache::open(&store, &name(), None, options).unwrap());
    let third = changed / 3;
    let fresh = rows(2, 2 * third, 1.0);
    // Every third item is replaced, then every fifth of the later ones deleted, and some are new.
    let ids = (0..third).map(|i| 3 * i as u64).chain((0..third).map(|i| (ROWS + i) as u64));
    for chunk in ids.zip(fresh).collect::<Vec<_>>().chunks(200) {
        let items = chunk.iter().map(|(id, row)| item(*id, row.clone())).collect();
        assert!(cache.upsert(items).unwrap().iter().all(Result::is_ok));
        live.extend(chunk.iter().cloned());
    }
    for id in (0..third as u64).map(|i| ROWS as u64 - 1 - 5 * i) {
        assert_eq!(cache.delete(&[ItemId(id)]).unwrap(), [live.remove(&id).is_some()]);
    }
    World { _folder: folder, cache, live }
}

fn embedding(query: &[f32]) -> Embedding {
    Embedding::new(query.to_vec()).unwrap()
}

impl World {
    fn truth(&self, query: &[f32], top_k: usize, kept: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut all: Vec<(f32, u64)> = self
            .live
            .iter()
            .filter(|(id, _)| kept(**id))
            .map(|(&id, row)| (Kernels::get().dot(query, row), id))
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        all.into_iter().take(top_k).map(|(_, id)| id).collect()
    }
}

fn ids(found: &Found) -> Vec<u64> {
    found.hits.iter().map(|hit| hit.id.0).collect()
}

fn share(truth: &[u64], found: &[u64]) -> f64 {
    truth.iter().filter(|id| found.contains(id)).count() as f64 / truth.len().max(1) as f64
}

fn times(query: &[f32], factor: f32) -> Vec<f32> {
    query.iter().map(|v| v * factor).collect()
}

fn target(snapshot: &Snapshot, wished: f64, kind: &str) -> SearchParams {
    let kind = QueryKind::new(kind).unwrap();
    snapshot.params_for(TargetRecall::new(wished).unwrap(), Some(&kind), 10).unwrap()
}

/// Without changes, and with some, in 4 and in 8 bits.
static WORLDS: LazyLock<[World; 3]> =
    LazyLock::new(|| [world(CodeKind::U4, 0), world(CodeKind::U4, 900), world(CodeKind::U8, 900)]);

#[test]
fn a_query_finds_the_same_however_long_it_is() {
    let asked = queries(8, 200);
    for world in WORLDS.iter() {
        let (snapshot, mut searcher) = (world.cache.snapshot(), Searcher::default());
        for wished in [0.9, 0.95, 0.99] {
            for kind in ["text", "image"] {
                let params = target(&snapshot, wished, kind);
                let found = |searcher: &mut Searcher, factor: f32| {
                    let scaled: Vec<Embedding> = asked.iter().map(|q| embedding(&times(q, factor))).collect();
                    let all: Vec<&Embedding> = scaled.iter().collect();
                    let together = snapshot.search_all(searcher, &all, 10, &params);
                    let together: Vec<Vec<u64>> =
                        together.into_iter().map(|found| ids(&found.unwrap())).collect();
                    for (query, found) in scaled.iter().zip(&together).take(20) {
                        assert_eq!(ids(&snapshot.search(searcher, query, 10, &params).unwrap()), *found);
                    }
                    together
                };
                let unit = found(&mut searcher, 1.0);
                // Powers of two round nothing.
                for factor in [16.0, 0.0625, 1024.0] {
                    assert_eq!(found(&mut searcher, factor), unit, "× {factor} at {wished} for {kind}");
                }
                for factor in [20.0, 0.05] {
                    let same =
                        found(&mut searcher, factor).iter().zip(&unit).map(|(a, b)| share(b, a)).sum::<f64>();
                    assert!(same / asked.len() as f64 > 0.995, "× {factor} at {wished} for {kind}");
                }
            }
        }
    }
}

#[test]
fn a_calibration_by_long_queries_is_that_by_unit_ones() {
    let world = &WORLDS[0];
    let snapshot = world.cache.snapshot();
    let at = |factor: f32| {
        let long = queries(5, 100).iter().map(|query| times(query, factor)).collect();
        calibrate(snapshot.index(), &*snapshot, 20, &BTreeMap::from([("text".to_owned(), long)]))
            .unwrap()
            .measured
    };
    let unit = at(1.0);
    assert!(unit["text"].ways.iter().flatten().any(|point| point.margin.is_some()), "{unit:?}");
    assert_eq!(at(16.0), unit);
}

#[test]
fn a_batch_gets_as_many_hits_as_one_query() {
    for world in WORLDS.iter() {
        let (snapshot, mut searcher) = (world.cache.snapshot(), Searcher::default());
        let asked: Vec<Embedding> = queries(9, 64).iter().map(|query| embedding(query)).collect();
        let all: Vec<&Embedding> = asked.iter().collect();
        let mut margins = 0;
        for top_k in [1, 10, 11, 100, 300] {
            let by_target = [0.9, 0.99].map(|wished| target(&snapshot, wished, "text"));
            let given = SearchParams { ef_search: 24, margin: Some(0.02), ..SearchParams::default() };
            for params in by_target.into_iter().chain([given]) {
                margins += usize::from(params.margin.is_some());
                let together = snapshot.search_all(&mut searcher, &all, top_k, &params);
                for (query, found) in all.iter().zip(together) {
                    let found = found.unwrap();
                    assert_eq!(found.hits.len(), top_k, "{params:?}");
                    assert_eq!(
                        ids(&snapshot.search(&mut searcher, query, top_k, &params).unwrap()),
                        ids(&found)
                    );
                }
            }
        }
        assert!(margins > 0);
    }
}

#[test]
fn a_target_is_reached_by_kinds_that_were_measured_with_many_and_with_few() {
    let world = &WORLDS[0];
    let (snapshot, mut searcher) = (world.cache.snapshot(), Searcher::default());
    let asked = queries(10, 1000);
    for (kind, wished) in
        [("text", 0.9), ("text", 0.95), ("text", 0.99), ("audio", 0.9), ("audio", 0.97), ("other", 0.95)]
    {
        let params = target(&snapshot, wished, kind);
        let mut found = 0.0;
        for query in &asked {
            let hits = snapshot.search(&mut searcher, &embedding(query), 10, &params).unwrap();
            found += share(&world.truth(query, 10, |_| true), &ids(&hits)) / asked.len() as f64;
        }
        assert!(found >= wished - 0.01, "{kind}: {found} for {wished} with {params:?}");
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(common::seed()), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn searches_keep_to_what_is_promised(
        which in 0usize..3,
        seed in 0u64..1000,
        factor in prop_oneof![Just(1.0f32), 1e-3f32..1e3],
        top_k in prop_oneof![Just(10usize), 1usize..200],
        ef_search in 8usize..120,
        margin in prop::option::of(1e-3f32..0.3),
        groups in prop::collection::btree_set(0..GROUPS, 0..GROUPS as usize),
        batch in 1usize..9,
    ) {
        let world = &WORLDS[which];
        let (snapshot, mut searcher) = (world.cache.snapshot(), Searcher::default());
        let params = SearchParams { ef_search, margin, ..SearchParams::default() };
        let asked: Vec<Vec<f32>> = queries(seed, batch).iter().map(|query| times(query, factor)).collect();
        let embeddings: Vec<Embedding> = asked.iter().map(|query| embedding(query)).collect();
        let filter = (!groups.is_empty()).then(|| Filter::Tag {
            key: "group".into(),
            values: groups.iter().map(u64::to_string).collect(),
        });
        let kept = |id: u64| groups.is_empty() || groups.contains(&(id % GROUPS));
        let found: Vec<Found> = match &filter {
            None => {
                let all: Vec<&Embedding> = embeddings.iter().collect();
                snapshot.search_all(&mut searcher, &all, top_k, &params).into_iter().map(Result::unwrap).collect()
            }
            Some(filter) => {
                let filtered = snapshot.filtered(filter).unwrap();
                embeddings.iter().map(|query| filtered.search(&mut searcher, query, top_k, &params).unwrap()).collect()
            }
        };
        let matching = world.live.keys().filter(|id| kept(**id)).count();
        for (query, found) in asked.iter().zip(&found) {
            prop_assert_eq!(found.matching, matching);
            prop_assert_eq!(found.hits.len(), top_k.min(matching), "as many as there are");
            let unique: BTreeSet<u64> = ids(found).into_iter().collect();
            prop_assert_eq!(unique.len(), found.hits.len(), "none twice");
            for hit in &found.hits {
                prop_assert!(kept(hit.id.0), "{} is filtered out", hit.id);
                let row = world.live.get(&hit.id.0);
                prop_assert_eq!(row.map(Vec::as_slice), Some(hit.embedding.as_slice()), "item {}", hit.id);
                prop_assert_eq!(hit.score, Kernels::get().dot(query, hit.embedding.as_slice()));
            }
            let ordered = found.hits.windows(2).all(|pair| {
                let order = pair[0].score.total_cmp(&pair[1].score);
                order.is_gt() || (order.is_eq() && pair[0].id < pair[1].id)
            });
            prop_assert!(ordered, "best first, equal ones by id");
            // What was put since the generation is searched exactly: whatever the walk misses, its best are not lost.
            let truth = world.truth(query, top_k, kept);
            let worst = found.hits.last().map_or(f32::INFINITY, |hit| hit.score);
            let (changed, hits) = (snapshot.delta().items, ids(found));
            let missed = truth.iter().filter(|id| {
                let new = **id >= ROWS as u64;
                new && changed > 0 && !hits.contains(id) && Kernels::get().dot(query, &world.live[*id]) > worst
            });
            prop_assert_eq!(missed.count(), 0, "an upserted item is missed");
            if ef_search >= 96 && margin.is_none() && top_k <= 10 {
                prop_assert!(share(&truth, &hits) >= 0.5, "{:?} of {truth:?}", hits);
            }
        }
        if filter.is_none() && ef_search <= 16 && top_k <= 10 {
            prop_assert!(found.iter().all(|found| found.plan != Plan::Exact && found.plan != Plan::Scan));
        }
    }
}
