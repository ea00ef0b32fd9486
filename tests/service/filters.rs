//! Filters: what they find is what brute force among the matching items finds, for no more work; and as a client meets them,
//! over real gRPC, while the cache changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tonic::Code;
use viscache::cache::{
    Cache, CompactOptions, Error, LoadOptions, NewCache, NewItem, RowsMode, Snapshot, Writer,
};
use viscache::flow::{App, Limits};
use viscache::index::{BuildParams, CodeKind, Plan, SearchParams, Searcher, exact};
use viscache::kernels::Kernels;
use viscache::serve::proto::{
    self, BlendParams, CompactRequest, DeleteRequest, DescribeRequest, EnhanceRequest, Filters, ItemIds,
    PublishRequest, ReloadRequest, SearchRequest, TagCondition, UpsertItem, UpsertRequest, filter::Condition,
};
use viscache::store::{Access, ItemRecord, RowType, Store};
use viscache::types::{CacheName, Embedding, Filter, Fingerprint, ItemId, Origin};

use crate::server::{Server, bad_argument, item, ok, refusal, rows, tensor, whole};
use crate::store::{self, ROWS, ROWS_DIM};

/// Components of the large cache's rows.
const DIM: usize = 128;
const ITEMS: usize = 20_000;
const CENTRES: usize = 256;
const TOP_K: usize = 10;
/// One in so many.
const RARITIES: [usize; 6] = [2, 3, 10, 100, 1000, 10_000];
const LEAST_RECALL: f64 = 0.95;

/// Rows around centres, and queries: some like the rows, some moved away from all of them as those of another modality are.
struct Clusters {
    centres: Vec<Vec<f32>>,
    random: rand_pcg::Pcg64Mcg,
}

impl Clusters {
    fn new() -> Self {
        let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(11);
        let mut centre = || (0..DIM).map(|_| random.random_range(-1.0f32..1.0)).collect();
        let centres = (0..CENTRES).map(|_| centre()).collect();
        Clusters { centres, random }
    }

    fn near(&mut self, centre: usize, shift: f32) -> Embedding {
        let random = &mut self.random;
        let row = self.centres[centre].iter().enumerate().map(|(i, c)| {
            let away = if i % 2 == 0 { shift } else { -shift };
            c + away + 0.8 * random.random_range(-1.0f32..1.0)
        });
        Embedding::new(row.collect()).unwrap().unit().unwrap()
    }
}

fn name() -> CacheName {
    CacheName::new("large").unwrap()
}

/// A cache of many rows whose tags match one in [`RARITIES`]: `even`, anywhere; `near`, those of few centres.
fn large(codes: CodeKind) -> (TempDir, Clusters) {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path(), Access::Write).unwrap();
    let origin = Origin::of("test");
    let new = NewCache { dim: DIM, rows: RowType::F32, origin, model: None };
    let mut writer = Writer::open(&store, &name(), &new).unwrap();
    let mut clusters = Clusters::new();
    let mut items = Vec::with_capacity(ITEMS);
    for i in 0..ITEMS {
        let mut tags = BTreeMap::new();
        // Neighbouring numbers are of one centre.
        for rarity in RARITIES {
            if i % rarity == rarity - 1 {
                tags.insert(format!("even {rarity}"), "yes".to_owned());
            }
            if i < ITEMS / rarity {
                tags.insert(format!("near {rarity}"), "yes".to_owned());
            }
        }
        let embedding = clusters.near(i * CENTRES / ITEMS, 0.0);
        let digest = Fingerprint::of(&i.to_le_bytes());
        let record = ItemRecord { uri: format!("large/{i}"), modality: None, digest, tags };
        items.push(NewItem { id: None, embedding, record });
    }
    writer.put(items, |_, _, _| {}).unwrap();
    // In one order, so that recall is the same in every run.
    let params =
        BuildParams { m: 16, ef_construction: 100, codes, deterministic: true, ..BuildParams::default() };
    writer.index(&params, &Default::default(), |_| {}, |_, _, _| Ok(Default::default())).unwrap();
    drop(store);
    (folder, clusters)
}

fn load(path: &Path, rows: RowsMode) -> Snapshot {
    let store = Arc::new(Store::open(path, Access::Read).unwrap());
    Snapshot::load(&store, &name(), LoadOptions { rows, memory_budget: 1 << 30 }).unwrap()
}

fn tag(key: &str, values: &[&str]) -> Filter {
    Filter::Tag { key: key.into(), values: values.iter().map(|&value| value.to_owned()).collect() }
}

#[test]
fn what_a_filter_leaves_is_found_at_every_rarity_for_no_more_work_than_scoring_it() {
    let (folder, mut clusters) = large(CodeKind::U4);
    let snapshot = load(folder.path(), RowsMode::Ram);
    let (mut searcher, mut seen) = (Searcher::default(), [0; 4]);
    // What a row costs in full and on its code.
    let (row, code) = (4 * DIM, DIM / 2);
    let queries: Vec<(&str, Vec<Embedding>)> = [("like the rows", 0.0), ("shifted", 0.7)]
        .map(|(kind, shift)| (kind, (0..60).map(|i| clusters.near(i * 37 % CENTRES, shift)).collect()))
        .into();
    for which in ["even", "near", "not even", "not near"] {
        for rarity in RARITIES {
            let (key, not) = (which.trim_start_matches("not "), which.starts_with("not "));
            let filter = tag(&format!("{key} {rarity}"), &["yes"]);
            let filter = if not { Filter::Not(Box::new(filter)) } else { filter };
            let filtered = snapshot.filtered(&filter).unwrap();
            assert_eq!(filtered.len(), if not { ITEMS - ITEMS / rarity } else { ITEMS / rarity });
            for (kind, queries) in &queries {
                let (mut recall, mut plans) = (0.0, [0; 4]);
                // A narrower beam makes the graph worth its price for one in three, too.
                let ef_search = if rarity == 3 && !not { 48 } else { SearchParams::DEFAULT_EF_SEARCH };
                let params = SearchParams { ef_search, ..SearchParams::default() };
                for query in queries {
                    let truth = SearchParams { exact: true, ..SearchParams::default() };
                    let truth = filtered.search(&mut searcher, query, TOP_K, &truth).unwrap();
                    assert_eq!(truth.cost.scored_vectors as usize, filtered.len());
                    let found = filtered.search(&mut searcher, query, TOP_K, &params).unwrap();
                    assert_eq!(found.hits.len(), TOP_K.min(filtered.len()));
                    assert_eq!(found.matching, filtered.len());
                    let ids = |hits: &[viscache::types::Hit]| hits.iter().map(|h| h.id).collect::<Vec<_>>();
                    recall += exact::recall(&ids(&truth.hits), &ids(&found.hits)) / queries.len() as f64;
                    plans[found.plan as usize] += 1;

                    let scored = found.cost.scored_vectors as usize;
                    assert!(scored * code <= filtered.len() * row, "{which} {rarity}: {scored} rows scored");
                    if matches!(found.plan, Plan::Exact | Plan::Scan) && found.cost.visited_nodes == 0 {
                        let again = SearchParams::DEFAULT_RESCORE;
                        let most =
                            if filtered.len() > 4 * again { filtered.len() + again } else { filtered.len() };
                        assert!(scored <= most, "{which} {rarity}: {scored} of {} rows", filtered.len());
                    }
                }
                println!("{which:>8} {rarity:>6}, {kind:<13}: recall {recall:.4}, plans {plans:?}");
                assert!(recall >= LEAST_RECALL, "{which} {rarity}, {kind}: recall {recall}");
                seen.iter_mut().zip(plans).for_each(|(seen, plan)| *seen += plan);
            }
        }
    }
    // Every way was taken.
    assert!(seen.iter().all(|&plan| plan > 0), "{seen:?}");
}

#[test]
fn every_kind_of_code_and_rows_on_the_disk_find_it_too() {
    for codes in [CodeKind::F32, CodeKind::U8] {
        let (folder, mut clusters) = large(codes);
        for mode in [RowsMode::Ram, RowsMode::Disk] {
            let (snapshot, mut searcher) = (load(folder.path(), mode), Searcher::default());
            for key in ["even 2", "near 2", "even 100", "near 10000"] {
                let filtered = snapshot.filtered(&tag(key, &["yes"])).unwrap();
                let mut recall = 0.0;
                for i in 0..20 {
                    let query = clusters.near(i * 11 % CENTRES, 0.0);
                    let truth = brute(&snapshot, &filtered_ids(key), &query);
                    let params = SearchParams::default();
                    let found = filtered.search(&mut searcher, &query, TOP_K, &params).unwrap();
                    let ids: Vec<u64> = found.hits.iter().map(|hit| hit.id.0).collect();
                    recall += exact::recall(&truth, &ids) / 20.0;
                }
                assert!(recall >= LEAST_RECALL, "{codes:?} {mode:?} {key}: recall {recall}");
            }
        }
    }
}

/// Ids that a key of [`large`] matches.
fn filtered_ids(key: &str) -> Vec<u64> {
    let (which, rarity) = key.split_once(' ').unwrap();
    let rarity: u64 = rarity.parse().unwrap();
    let matches = |i: &u64| match which {
        "even" => i % rarity == rarity - 1,
        _ => *i < ITEMS as u64 / rarity,
    };
    (0..ITEMS as u64).filter(matches).collect()
}

fn brute(snapshot: &Snapshot, ids: &[u64], query: &Embedding) -> Vec<u64> {
    let id: Vec<ItemId> = ids.iter().map(|&id| ItemId(id)).collect();
    let rows = snapshot.store().rows(snapshot.record().id, &id).unwrap();
    let score = |(id, row): (&u64, Option<Vec<u8>>)| {
        let row = viscache::cache::decode_row(&row.unwrap(), RowType::F32);
        (Kernels::get().dot(query.as_slice(), &row), *id)
    };
    let mut scored: Vec<(f32, u64)> = ids.iter().zip(rows).map(score).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.iter().take(TOP_K).map(|&(_, id)| id).collect()
}

#[test]
fn a_generation_of_before_gets_its_table_at_the_first_filter_if_that_fits() {
    let folder = TempDir::new().unwrap();
    store::make_rows(folder.path(), 300);
    let name = CacheName::new(ROWS).unwrap();
    let writer = Store::open(folder.path(), Access::Write).unwrap();
    let cache = writer.cache(&name).unwrap();
    let mut record = writer.generations(cache.id).unwrap().remove(0);
    let stored = record.tags_bytes.take().unwrap();
    let mut batch = writer.batch();
    batch.put_generation(cache.id, &record);
    writer.commit(batch).unwrap();
    drop(writer);

    let store = Arc::new(Store::open(folder.path(), Access::Read).unwrap());
    let open = |memory_budget| {
        Snapshot::load(&store, &name, LoadOptions { rows: RowsMode::Ram, memory_budget }).unwrap()
    };
    let snapshot = open(1 << 30);
    let plan = snapshot.loaded().plan;
    assert_eq!(plan.tags, 0);
    let filtered = snapshot.filtered(&tag("number", &["7", "250", "x"])).unwrap();
    let query = Embedding::new(vec![1.0; ROWS_DIM]).unwrap();
    let found = filtered.search(&mut Searcher::default(), &query, 5, &SearchParams::default()).unwrap();
    let mut ids: Vec<u64> = found.hits.iter().map(|hit| hit.id.0).collect();
    ids.sort_unstable();
    assert_eq!(ids, [7, 250]);

    let tight = open(plan.total() + stored - 1);
    assert!(matches!(tight.filtered(&tag("number", &["7"])), Err(Error::Memory { .. })));
    assert_eq!(open(plan.total() + stored).filtered(&tag("number", &["7"])).unwrap().len(), 1);
}

#[test]
fn a_damaged_table_of_tags_is_named() {
    let folder = TempDir::new().unwrap();
    store::make_rows(folder.path(), 30);
    let name = CacheName::new(ROWS).unwrap();
    let writer = Store::open(folder.path(), Access::Write).unwrap();
    let cache = writer.cache(&name).unwrap();
    let mut record = writer.generations(cache.id).unwrap().remove(0);
    record.tags_bytes = record.tags_bytes.map(|len| len + 1);
    let mut batch = writer.batch();
    batch.put_generation(cache.id, &record);
    writer.commit(batch).unwrap();
    let store = Arc::new(writer);
    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: 1 << 30 };
    let error = Snapshot::load(&store, &name, options).map(drop).unwrap_err().to_string();
    assert!(error.contains("Tags blob") && error.contains("length"), "{error}");
}

// Over gRPC.

fn app(path: &Path, rows: RowsMode) -> App {
    let store = Arc::new(Store::open(path, Access::Write).unwrap());
    let options = LoadOptions { rows, memory_budget: 1 << 30 };
    let name = CacheName::new(ROWS).unwrap();
    let cache = Cache::open(&store, &name, None, options).map(Arc::new).map_err(|e| e.to_string());
    let mut app = App::new(store, [(name, cache)].into(), None, None, Limits::default());
    app.compact = CompactOptions { automatic: false, threads: 1, ..CompactOptions::default() };
    app
}

fn of(condition: Condition) -> proto::Filter {
    proto::Filter { condition: Some(condition) }
}

fn has_value(key: &str, values: &[&str]) -> proto::Filter {
    let values = values.iter().map(|&value| value.to_owned()).collect();
    of(Condition::Tag(TagCondition { key: key.into(), values }))
}

fn ids(ids: &[u64]) -> proto::Filter {
    of(Condition::Ids(ItemIds { ids: ids.to_vec() }))
}

fn all(filters: &[proto::Filter]) -> proto::Filter {
    of(Condition::AllOf(Filters { filters: filters.to_vec() }))
}

fn any(filters: &[proto::Filter]) -> proto::Filter {
    of(Condition::AnyOf(Filters { filters: filters.to_vec() }))
}

fn none(filters: &[proto::Filter]) -> proto::Filter {
    of(Condition::NoneOf(Filters { filters: filters.to_vec() }))
}

fn search(row: &[f32], filter: proto::Filter) -> SearchRequest {
    SearchRequest {
        cache: ROWS.into(),
        vectors: Some(tensor(&[row.to_vec()])),
        top_k: Some(1000),
        filter: Some(filter),
        ..SearchRequest::default()
    }
}

/// The ids that a filter leaves, ascending: by the default way, which is checked against the scan.
async fn left(server: &Server, filter: proto::Filter) -> Vec<u64> {
    let request = search(&[0.3; ROWS_DIM], filter);
    let scan = proto::SearchParams { exact: true, ..Default::default() };
    let scan = SearchRequest { search: Some(scan), ..request.clone() };
    let mut found = Vec::new();
    for request in [request, scan] {
        let reply = server.cache().search(request).await.unwrap().into_inner();
        let result = &reply.results[0];
        assert_eq!(item(&result.status), ok());
        assert_eq!(result.cost.as_ref().unwrap().matching_items as usize, result.neighbors.len());
        let mut ids: Vec<u64> = result.neighbors.iter().map(|n| n.id).collect();
        ids.sort_unstable();
        found.push(ids);
    }
    assert_eq!(found[0], found[1]);
    found.remove(0)
}

fn tagged(id: Option<u64>, kind: &str) -> UpsertItem {
    let tags =
        if kind.is_empty() { Default::default() } else { [("kind".to_owned(), kind.to_owned())].into() };
    UpsertItem { id, uri: format!("{kind}.png"), tags, ..UpsertItem::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_follow_every_change_and_outlive_the_server() {
    for mode in [RowsMode::Ram, RowsMode::Disk] {
        let folder = TempDir::new().unwrap();
        store::make_rows(folder.path(), 100);
        let mut server = Server::start(app(folder.path(), mode)).await;
        let follower = Server::start(store::app(folder.path(), None, mode, Limits::default())).await;
        let mut admin = server.admin();

        let numbers = || has_value("number", &["3", "5", "7", "nothing"]);
        assert_eq!(left(&server, numbers()).await, [3, 5, 7]);
        assert!(left(&server, has_value("colour", &["red"])).await.is_empty());
        assert_eq!(left(&server, of(Condition::HasTag("number".into()))).await.len(), 100);
        assert!(left(&server, of(Condition::HasTag("kind".into()))).await.is_empty());
        assert!(left(&server, none(&[of(Condition::HasTag("number".into()))])).await.is_empty());
        assert_eq!(left(&server, all(&[ids(&[2, 3, 4, 999]), none(&[numbers(), ids(&[2])])])).await, [4]);
        assert_eq!(left(&server, any(&[numbers(), ids(&[9])])).await, [3, 5, 7, 9]);

        // Three new, one in the place of item 5, and one that had a tag for a while.
        let new = UpsertRequest {
            cache: ROWS.into(),
            vectors: Some(tensor(&store::random_rows(5, ROWS_DIM, 3))),
            items: vec![
                tagged(None, "cat"),
                tagged(Some(5), "cat"),
                tagged(None, "dog"),
                tagged(None, ""),
                tagged(Some(6), "cat"),
            ],
            ..Default::default()
        };
        admin.upsert(new).await.unwrap();
        let again = UpsertRequest {
            cache: ROWS.into(),
            vectors: Some(tensor(&store::random_rows(1, ROWS_DIM, 4))),
            items: vec![tagged(Some(6), "dog")],
            ..Default::default()
        };
        admin.upsert(again).await.unwrap();
        admin
            .delete(DeleteRequest { cache: ROWS.into(), ids: vec![7, 8], ..Default::default() })
            .await
            .unwrap();
        let cats = || has_value("kind", &["cat"]);
        let check = |follows: bool| {
            let server = if follows { &follower } else { &server };
            async move {
                assert_eq!(left(server, cats()).await, [5, 100]);
                assert_eq!(left(server, has_value("kind", &["cat", "dog"])).await, [5, 6, 100, 101]);
                assert_eq!(left(server, numbers()).await, [3]);
                assert_eq!(left(server, of(Condition::HasTag("number".into()))).await.len(), 96);
                assert_eq!(
                    left(server, none(&[of(Condition::HasTag("number".into()))])).await,
                    [5, 6, 100, 101, 102]
                );
                assert_eq!(left(server, any(&[cats(), ids(&[7, 9])])).await, [5, 9, 100]);
                assert_eq!(left(server, all(&[cats(), ids(&[100, 101])])).await, [100]);
            }
        };
        check(false).await;
        assert_eq!(left(&follower, numbers()).await, [3, 5, 7]);
        let reload = ReloadRequest { cache: ROWS.into(), ..Default::default() };
        follower.admin().reload(reload.clone()).await.unwrap();
        check(true).await;

        // Reopened: tags come back with the log.
        server.stop().await;
        server = Server::start(app(folder.path(), mode)).await;
        let mut admin = server.admin();
        let check = |server| async move {
            assert_eq!(left(server, cats()).await, [5, 100]);
            assert_eq!(left(server, any(&[cats(), ids(&[7, 9])])).await, [5, 9, 100]);
            assert_eq!(left(server, numbers()).await, [3]);
        };
        check(&server).await;
        admin.compact(CompactRequest { cache: ROWS.into() }).await.unwrap();
        check(&server).await;
        follower.admin().reload(reload.clone()).await.unwrap();
        check(&follower).await;
        admin
            .delete(DeleteRequest { cache: ROWS.into(), ids: vec![100], ..Default::default() })
            .await
            .unwrap();
        assert_eq!(left(&server, cats()).await, [5]);
        // Back to the graph before: its table, and the log since.
        admin.publish(PublishRequest { cache: ROWS.into(), generation: 1 }).await.unwrap();
        assert_eq!(left(&server, cats()).await, [5]);
        assert_eq!(left(&server, numbers()).await, [3]);
        follower.stop().await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn enhance_blends_what_matches_and_says_so_when_nothing_does() {
    let folder = TempDir::new().unwrap();
    let items = store::make_rows(folder.path(), 400);
    let server = Server::start(app(folder.path(), RowsMode::Ram)).await;
    let queries = store::random_rows(6, ROWS_DIM, 21);
    let numbers: Vec<String> = (0..400).filter(|i| i % 3 == 0).map(|i: u32| i.to_string()).collect();
    let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
    let request = EnhanceRequest {
        cache: ROWS.into(),
        vectors: Some(tensor(&queries)),
        vectors_are_mixed: true,
        blend: Some(BlendParams { top_k: Some(8), temperature: Some(20.0), weight: Some(0.4) }),
        return_neighbors: true,
        filter: Some(has_value("number", &numbers)),
        ..EnhanceRequest::default()
    };
    let reply = server.cache().enhance(request.clone()).await.unwrap().into_inner();
    let matching: Vec<_> = items.into_iter().filter(|item| item.id % 3 == 0).collect();
    for ((query, result), row) in queries.iter().zip(&reply.results).zip(rows(&reply.vectors)) {
        assert_eq!(item(&result.status), ok());
        let query: Vec<f64> = query.iter().map(|&v| f64::from(v)).collect();
        let expected = store::enhanced(&query, &matching, 8, 20.0, 0.4);
        let found: Vec<u64> = result.neighbors.iter().map(|n| n.id).collect();
        assert_eq!(found, expected.neighbors.iter().map(|n| n.0).collect::<Vec<_>>());
        assert!(row.iter().zip(&expected.vector).all(|(r, e)| (f64::from(*r) - e).abs() < 1e-5));
        let cost = result.cost.as_ref().unwrap();
        assert_eq!(cost.matching_items, 134);
        assert_eq!(cost.plan(), proto::Plan::Exact);
    }
    // Without a filter, everything is said to match.
    let all_of_it = EnhanceRequest { filter: None, ..request.clone() };
    let reply = server.cache().enhance(all_of_it).await.unwrap().into_inner();
    let cost = reply.results[0].cost.as_ref().unwrap();
    assert_eq!((cost.matching_items, cost.plan()), (400, proto::Plan::Scan), "a small one is scanned");

    let nothing = Some(has_value("number", &["x"]));
    let reply = server.cache().enhance(EnhanceRequest { filter: nothing.clone(), ..request.clone() }).await;
    let reply = reply.unwrap().into_inner();
    assert_eq!(reply.results.len(), 6);
    for result in &reply.results {
        assert_eq!(item(&result.status), refusal(Code::NotFound, "NO_MATCH", ""));
        let status = result.status.as_ref().unwrap();
        assert!(status.message.contains("no item matches the filter"), "{}", status.message);
    }
    let light = EnhanceRequest { filter: nothing, return_neighbors: false, ..request };
    let reply = server.cache().enhance(light).await.unwrap().into_inner();
    assert_eq!(item(&reply.results[0].status).reason, "NO_MATCH");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_is_wrong_is_refused_at_its_field() {
    let folder = TempDir::new().unwrap();
    store::make_rows(folder.path(), 20);
    let server = Server::start(app(folder.path(), RowsMode::Ram)).await;
    let good = || has_value("number", &["1"]);
    let empty = || proto::Filter { condition: None };
    let nested = |depth: usize| (1..depth).fold(good(), |filter, _| none(&[filter]));
    let many = |count: usize| any(&vec![good(); count]);
    let wide = |count: u64| ids(&(0..count).collect::<Vec<_>>());
    let deepest = format!("filter{}", ".none_of.filters[0]".repeat(Filter::MAX_DEPTH));
    let cases = [
        (empty(), "filter"),
        (has_value("", &["x"]), "filter.tag.key"),
        (has_value("number", &[]), "filter.tag.values"),
        (of(Condition::HasTag(String::new())), "filter.has_tag"),
        (ids(&[]), "filter.ids.ids"),
        (all(&[]), "filter.all_of.filters"),
        (any(&[]), "filter.any_of.filters"),
        (none(&[]), "filter.none_of.filters"),
        (
            all(&[good(), any(&[good(), none(&[empty()])])]),
            "filter.all_of.filters[1].any_of.filters[1].none_of.filters[0]",
        ),
        (all(&[good(), has_value("a", &[])]), "filter.all_of.filters[1].tag.values"),
        (nested(Filter::MAX_DEPTH + 1), deepest.as_str()),
        (many(Filter::MAX_CONDITIONS), "filter.any_of.filters[255]"),
        (wide(Filter::MAX_VALUES as u64 + 1), "filter.ids.ids"),
        (any(&[wide(Filter::MAX_VALUES as u64), good()]), "filter.any_of.filters[1].tag.values"),
    ];
    let row = vec![0.5; ROWS_DIM];
    for (filter, field) in cases {
        let refused = server.cache().search(search(&row, filter.clone())).await.unwrap_err();
        assert_eq!(whole(&refused), bad_argument(field), "{}", refused.message());
        let vectors = Some(tensor(std::slice::from_ref(&row)));
        let enhance =
            EnhanceRequest { cache: ROWS.into(), vectors, filter: Some(filter), ..EnhanceRequest::default() };
        let refused = server.cache().enhance(enhance).await.unwrap_err();
        assert_eq!(whole(&refused), bad_argument(field), "{}", refused.message());
    }
    for filter in
        [nested(Filter::MAX_DEPTH), many(Filter::MAX_CONDITIONS - 1), wide(Filter::MAX_VALUES as u64)]
    {
        let reply = server.cache().search(search(&row, filter)).await.unwrap().into_inner();
        assert_eq!(item(&reply.results[0].status), ok());
    }
    let limits = server.cache().describe(DescribeRequest { cache: ROWS.into() }).await.unwrap().into_inner();
    let limits = limits.limits.unwrap();
    assert_eq!(
        (limits.max_filter_depth, limits.max_filter_conditions, limits.max_filter_values),
        (16, 256, 65_536)
    );
    server.stop().await;
}
