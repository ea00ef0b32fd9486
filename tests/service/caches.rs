//! Caches as a client makes, names and deletes them: real gRPC, a real store, other requests meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tonic::Code;
use viscache::cache::{Cache, CompactOptions, LoadOptions, RowsMode};
use viscache::flow::{App, Limits};
use viscache::models::encoder::Encoder;
use viscache::serve::proto::{
    self, CompactRequest, CountItemsRequest, CreateCacheRequest, DeleteAliasRequest, DeleteCacheRequest,
    DeleteRequest, DescribeRequest, Dtype, EnhanceRequest, ListCachesRequest, ListItemsRequest,
    PublishRequest, ReloadRequest, RenameCacheRequest, SearchParams, SearchRequest, SetAliasRequest,
    UpsertItem, UpsertRequest, create_cache_request::MadeBy, upsert_item,
};
use viscache::store::{Access, Store};
use viscache::types::CacheName;

use crate::server::{Server, bad_argument, item, ok, refusal, tensor, text, whole};
use crate::store::{self, ROWS, ROWS_DIM, SCENES};

/// A server that may change its store, and makes the store if it is not there.
pub(crate) fn writable(path: &Path, encoder: Option<Encoder>, rows: RowsMode, limits: Limits) -> App {
    let store = Arc::new(Store::open(path, Access::Write).unwrap());
    let load = LoadOptions { rows, memory_budget: 1 << 30 };
    let expected = encoder.as_ref().map(|encoder| encoder.origin().clone());
    let records = store.caches().unwrap();
    let open =
        |name| Cache::open(&store, name, expected.as_ref(), load).map(Arc::new).map_err(|e| e.to_string());
    let caches = records.iter().map(|record| (record.name.clone(), open(&record.name))).collect();
    let mut app = App::new(store.clone(), caches, None, encoder.map(store::embedder), limits);
    app.compact = CompactOptions { automatic: false, threads: 1, ..CompactOptions::default() };
    app.load = load;
    app
}

async fn serve(path: &Path) -> Server {
    Server::start(writable(path, None, RowsMode::Ram, Limits::default())).await
}

pub(crate) fn new(name: &str, dim: u32) -> CreateCacheRequest {
    CreateCacheRequest { name: name.into(), dim: Some(dim), ..Default::default() }
}

pub(crate) fn of_rows(cache: &str, rows: &[Vec<f32>]) -> UpsertRequest {
    UpsertRequest { cache: cache.into(), vectors: Some(tensor(rows)), ..Default::default() }
}

/// The ids of the nearest items, or what refuses the question.
pub(crate) async fn nearest(
    server: &Server,
    cache: &str,
    row: &[f32],
    top_k: u32,
) -> Result<Vec<u64>, tonic::Status> {
    let request = SearchRequest {
        cache: cache.into(),
        vectors: Some(tensor(&[row.to_vec()])),
        top_k: Some(top_k),
        ..Default::default()
    };
    let reply = server.cache().search(request).await?.into_inner();
    assert_eq!(item(&reply.results[0].status), ok());
    Ok(reply.results[0].neighbors.iter().map(|n| n.id).collect())
}

async fn listed(server: &Server) -> Vec<proto::CacheSummary> {
    server.admin().list_caches(ListCachesRequest {}).await.unwrap().into_inner().caches
}

fn alias(alias: &str, cache: &str) -> SetAliasRequest {
    SetAliasRequest { alias: alias.into(), cache: cache.into() }
}

fn rename(name: &str, new_name: &str) -> RenameCacheRequest {
    RenameCacheRequest { name: name.into(), new_name: new_name.into() }
}

fn delete(name: &str, force: bool) -> DeleteCacheRequest {
    DeleteCacheRequest { name: name.into(), force }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_was_made_can_do_everything_at_once_and_outlives_the_server() {
    for mode in [RowsMode::Ram, RowsMode::Disk] {
        let folder = TempDir::new().unwrap();
        // Not even a store is there.
        let server = Server::start(writable(folder.path(), None, mode, Limits::default())).await;
        let mut admin = server.admin();
        let made = admin.create_cache(new("a", ROWS_DIM as u32)).await.unwrap().into_inner().cache.unwrap();
        assert_eq!((made.name.as_str(), made.dim, made.items, made.served), ("a", ROWS_DIM as u32, 0, true));
        let rows = store::random_rows(40, ROWS_DIM, 3);

        // Empty.
        assert_eq!(nearest(&server, "a", &rows[0], 5).await.unwrap(), [0u64; 0]);
        // It is the only one, and so the default.
        let told = server.cache().describe(DescribeRequest::default()).await.unwrap().into_inner();
        assert_eq!((told.items, told.live_items, told.source.unwrap().generation), (0, 0, 0));
        let page = admin.list_items(ListItemsRequest::default()).await.unwrap().into_inner();
        assert!(page.items.is_empty() && page.next_page_token.is_empty());

        let stored = admin.upsert(of_rows("a", &rows)).await.unwrap().into_inner();
        assert_eq!(stored.results.iter().map(|r| r.id).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
        for (id, row) in rows.iter().enumerate() {
            assert_eq!(nearest(&server, "a", row, 1).await.unwrap(), [id as u64]);
        }
        let enhance = EnhanceRequest {
            cache: "a".into(),
            vectors: Some(tensor(&rows[..2])),
            return_neighbors: true,
            ..Default::default()
        };
        let enhanced = server.cache().enhance(enhance).await.unwrap().into_inner();
        assert!(enhanced.results.iter().all(|r| item(&r.status) == ok() && r.neighbors.len() == 10));
        // Nothing was measured, and nothing need be: all is scanned.
        let aimed = SearchRequest {
            cache: "a".into(),
            vectors: Some(tensor(&rows[..1])),
            top_k: Some(3),
            search: Some(SearchParams { target_recall: Some(0.99), ..Default::default() }),
            ..Default::default()
        };
        let aimed = server.cache().search(aimed).await.unwrap().into_inner();
        assert_eq!(aimed.results[0].neighbors[0].id, 0);
        assert_eq!(aimed.results[0].cost.unwrap().plan(), proto::Plan::Exact);
        let told = server.cache().describe(DescribeRequest { cache: "a".into() }).await.unwrap().into_inner();
        assert_eq!((told.items, told.live_items, told.delta.unwrap().items), (0, 40, 40));
        let count = CountItemsRequest { cache: "a".into(), filter: None };
        assert_eq!(admin.count_items(count).await.unwrap().into_inner().count, 40);

        // It is found again without a generation, by a writer and by a reader.
        server.stop().await;
        let follower = Server::start(store::app(folder.path(), None, mode, Limits::default())).await;
        assert_eq!(nearest(&follower, "a", &rows[7], 1).await.unwrap(), [7]);
        let server = Server::start(writable(folder.path(), None, mode, Limits::default())).await;
        let mut admin = server.admin();
        let all = nearest(&server, "a", &rows[1], 100).await.unwrap();
        assert_eq!(all.len(), 40);

        // The first compaction makes generation 1.
        let compacted = admin.compact(CompactRequest { cache: "a".into() }).await.unwrap().into_inner();
        assert_eq!((compacted.generation, compacted.items), (1, 40));
        assert_eq!(nearest(&server, "a", &rows[1], 100).await.unwrap(), all);
        follower.admin().reload(ReloadRequest { cache: "a".into(), all: false }).await.unwrap();
        assert_eq!(nearest(&follower, "a", &rows[1], 100).await.unwrap(), all);

        // The last item may go, and what is left is compacted.
        let ids: Vec<u64> = (0..40).collect();
        admin.delete(DeleteRequest { cache: "a".into(), ids, filter: None }).await.unwrap();
        assert_eq!(nearest(&server, "a", &rows[1], 100).await.unwrap(), [0u64; 0]);
        let compacted = admin.compact(CompactRequest { cache: "a".into() }).await.unwrap().into_inner();
        assert_eq!((compacted.generation, compacted.items), (2, 0));
        assert_eq!(nearest(&server, "a", &rows[1], 100).await.unwrap(), [0u64; 0]);
        // Back to the graph of before: the items stay gone.
        admin.publish(PublishRequest { cache: "a".into(), generation: 1 }).await.unwrap();
        assert_eq!(nearest(&server, "a", &rows[1], 100).await.unwrap(), [0u64; 0]);
        admin.publish(PublishRequest { cache: "a".into(), generation: 2 }).await.unwrap();
        let again = admin.upsert(of_rows("a", &rows[..2])).await.unwrap().into_inner();
        assert_eq!(again.results[0].id, 40, "ids are not given twice");
        server.stop().await;
        let server = Server::start(writable(folder.path(), None, mode, Limits::default())).await;
        assert_eq!(nearest(&server, "a", &rows[1], 100).await.unwrap(), [41, 40]);
        let compacted = server.admin().compact(CompactRequest { cache: "a".into() }).await.unwrap();
        assert_eq!((compacted.get_ref().generation, compacted.get_ref().items), (3, 2));
        assert_eq!(nearest(&server, "a", &rows[1], 100).await.unwrap(), [41, 40]);
        follower.stop().await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_is_made_like_another_or_for_the_model() {
    let folder = TempDir::new().unwrap();
    store::make_scenes(folder.path());
    store::make_rows(folder.path(), 20);
    let app = writable(folder.path(), Some(store::encoder()), RowsMode::Ram, Limits::default());
    let server = Server::start(app).await;
    let mut admin = server.admin();
    let made_by = |name: &str, made_by| CreateCacheRequest {
        name: name.into(),
        made_by: Some(made_by),
        ..Default::default()
    };

    let made = made_by("more", MadeBy::ServedModel(true));
    let made = admin.create_cache(made).await.unwrap().into_inner().cache.unwrap();
    assert_eq!((made.dim, made.model.as_str(), made.row_dtype()), (128, "nano", Dtype::F32));
    let words = UpsertItem {
        content: Some(upsert_item::Content::Media(text("a small red disc"))),
        uri: "words".into(),
        ..Default::default()
    };
    let request = UpsertRequest { cache: "more".into(), items: vec![words], ..Default::default() };
    let stored = admin.upsert(request).await.unwrap().into_inner();
    assert_eq!(item(&stored.results[0].status), ok());
    let mut sources = Vec::new();
    for name in [SCENES, "more"] {
        let told = server.cache().describe(DescribeRequest { cache: name.into() }).await.unwrap();
        sources.push(told.into_inner().source.unwrap());
    }
    let [scenes, more] = &sources[..] else { panic!() };
    assert_eq!(scenes.weights_fingerprint, more.weights_fingerprint);
    assert_eq!(scenes.preprocessing_fingerprint, more.preprocessing_fingerprint);

    let made = admin.create_cache(made_by("rows-2", MadeBy::Like(ROWS.into()))).await.unwrap().into_inner();
    let made = made.cache.unwrap();
    assert_eq!((made.dim, made.model.as_str(), made.row_dtype()), (ROWS_DIM as u32, "import", Dtype::F16));
    let named = CreateCacheRequest {
        row_dtype: Dtype::F16.into(),
        made_by: Some(MadeBy::ModelName("our model".into())),
        ..new("named", 7)
    };
    let made = admin.create_cache(named).await.unwrap().into_inner().cache.unwrap();
    assert_eq!((made.dim, made.model.as_str(), made.row_dtype()), (7, "our model", Dtype::F16));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_or_named_is_refused_by_field_and_reason() {
    let folder = TempDir::new().unwrap();
    store::make_rows(folder.path(), 20);
    let limits = Limits { max_caches: 3, ..Limits::default() };
    let server = Server::start(writable(folder.path(), None, RowsMode::Ram, limits)).await;
    let mut admin = server.admin();
    admin.create_cache(new("a", 4)).await.unwrap();
    admin.set_alias(alias("live", "a")).await.unwrap();

    let taken = || refusal(Code::AlreadyExists, "NAME_TAKEN", "");
    let no_cache = || refusal(Code::NotFound, "CACHE_NOT_FOUND", "");
    let is_alias = || refusal(Code::FailedPrecondition, "IS_ALIAS", "");
    let unnamed = CreateCacheRequest { name: "x".into(), ..Default::default() };
    let by = |made_by| CreateCacheRequest { made_by: Some(made_by), ..unnamed.clone() };
    for (request, expected) in [
        (new("", 4), bad_argument("name")),
        (new("a/b", 4), bad_argument("name")),
        (new(&"x".repeat(65), 4), bad_argument("name")),
        (new("x", 0), bad_argument("dim")),
        (new("x", 65_537), bad_argument("dim")),
        (unnamed.clone(), bad_argument("dim")),
        (CreateCacheRequest { row_dtype: Dtype::Bf16.into(), ..new("x", 4) }, bad_argument("row_dtype")),
        (CreateCacheRequest { row_dtype: 99, ..new("x", 4) }, bad_argument("row_dtype")),
        (by(MadeBy::Like("-".into())), bad_argument("like")),
        (by(MadeBy::Like("nowhere".into())), no_cache()),
        (by(MadeBy::ServedModel(false)), bad_argument("served_model")),
        (by(MadeBy::ServedModel(true)), refusal(Code::FailedPrecondition, "MODEL_NOT_LOADED", "")),
        (by(MadeBy::ModelName(" ".into())), bad_argument("model_name")),
        (by(MadeBy::ModelName("x".repeat(257))), bad_argument("model_name")),
        (CreateCacheRequest { dim: Some(5), ..by(MadeBy::Like("a".into())) }, bad_argument("dim")),
        (new("a", 4), taken()),
        (new("live", 4), taken()),
    ] {
        let said = format!("{request:?}");
        assert_eq!(whole(&admin.create_cache(request).await.unwrap_err()), expected, "{said}");
    }
    for (request, expected) in [
        (rename("a", "b b"), bad_argument("new_name")),
        (rename("", "b"), bad_argument("name")),
        (rename("a", ROWS), taken()),
        (rename("a", "a"), taken()),
        (rename("a", "live"), taken()),
        (rename("live", "b"), is_alias()),
        (rename("nowhere", "b"), no_cache()),
    ] {
        let said = format!("{request:?}");
        assert_eq!(whole(&admin.rename_cache(request).await.unwrap_err()), expected, "{said}");
    }
    for (request, expected) in [
        (alias("", "a"), bad_argument("alias")),
        (alias("x", "?"), bad_argument("cache")),
        (alias("x", "nowhere"), no_cache()),
        (alias(ROWS, "a"), taken()),
    ] {
        let said = format!("{request:?}");
        assert_eq!(whole(&admin.set_alias(request).await.unwrap_err()), expected, "{said}");
    }
    for (request, expected) in [
        (delete("", false), bad_argument("name")),
        (delete("nowhere", true), no_cache()),
        (delete("live", true), is_alias()),
        (delete("a", false), refusal(Code::FailedPrecondition, "HAS_ALIASES", "")),
    ] {
        let said = format!("{request:?}");
        assert_eq!(whole(&admin.delete_cache(request).await.unwrap_err()), expected, "{said}");
    }
    let unknown = DeleteAliasRequest { alias: "a".into() };
    let refused = admin.delete_alias(unknown).await.unwrap_err();
    assert_eq!(whole(&refused), refusal(Code::NotFound, "ALIAS_NOT_FOUND", ""));
    let both = ReloadRequest { cache: "a".into(), all: true };
    assert_eq!(whole(&admin.reload(both).await.unwrap_err()), bad_argument("cache"));

    admin.create_cache(new("b", 4)).await.unwrap();
    let refused = admin.create_cache(new("c", 4)).await.unwrap_err();
    assert_eq!(whole(&refused), refusal(Code::FailedPrecondition, "TOO_MANY_CACHES", ""));
    // Nothing of what was refused is there.
    let names: Vec<String> = listed(&server).await.into_iter().map(|cache| cache.name).collect();
    assert_eq!(names, ["a", "b", ROWS]);
    server.stop().await;

    // Who only reads changes nothing, and says what would.
    let reader = Server::start(store::app(folder.path(), None, RowsMode::Ram, Limits::default())).await;
    let mut admin = reader.admin();
    let refused = [
        admin.create_cache(new("x", 4)).await.unwrap_err(),
        admin.delete_cache(delete("a", true)).await.unwrap_err(),
        admin.rename_cache(rename("a", "x")).await.unwrap_err(),
        admin.set_alias(alias("x", "a")).await.unwrap_err(),
        admin.delete_alias(DeleteAliasRequest { alias: "live".into() }).await.unwrap_err(),
    ];
    for refused in refused {
        assert_eq!(whole(&refused), refusal(Code::FailedPrecondition, "READ_ONLY", ""));
        assert!(refused.message().contains("--writable"), "{}", refused.message());
    }
    reader.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_store_has_nowhere_to_make_a_cache() {
    let server = Server::start(App::new(None, Default::default(), None, None, Limits::default())).await;
    let refused = server.admin().create_cache(new("a", 4)).await.unwrap_err();
    assert_eq!(whole(&refused), refusal(Code::FailedPrecondition, "NO_STORE", ""));
    let listed = server.admin().list_items(ListItemsRequest::default()).await.unwrap_err();
    assert_eq!(whole(&listed), refusal(Code::NotFound, "CACHE_NOT_FOUND", ""));
    let all = ReloadRequest { cache: String::new(), all: true };
    assert!(!server.admin().reload(all).await.unwrap().into_inner().changed);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_is_moved_in_one_step_while_others_ask() {
    let folder = TempDir::new().unwrap();
    let server = serve(folder.path()).await;
    let mut admin = server.admin();
    let rows = store::random_rows(20, ROWS_DIM, 3);
    for (name, rows) in [("old", &rows[..10]), ("new", &rows[10..])] {
        admin.create_cache(new(name, ROWS_DIM as u32)).await.unwrap();
        admin.upsert(of_rows(name, rows)).await.unwrap();
    }
    assert_eq!(admin.set_alias(alias("live", "old")).await.unwrap().into_inner().previous, "");
    let (stop, query) = (Arc::new(AtomicBool::new(false)), rows[0].clone());
    let asked = {
        let (mut client, stop, query) = (server.cache(), stop.clone(), query.clone());
        tokio::spawn(async move {
            let mut seen = std::collections::BTreeSet::new();
            while !stop.load(Ordering::Relaxed) {
                let request = SearchRequest {
                    cache: "live".into(),
                    vectors: Some(tensor(std::slice::from_ref(&query))),
                    top_k: Some(20),
                    ..Default::default()
                };
                let reply = client.search(request).await.unwrap().into_inner();
                assert_eq!(reply.results[0].neighbors.len(), 10);
                seen.insert(reply.source.unwrap().cache);
            }
            seen
        })
    };
    for round in 0..40 {
        let (to, from) = if round % 2 == 0 { ("new", "old") } else { ("old", "new") };
        let moved = admin.set_alias(alias("live", to)).await.unwrap().into_inner();
        assert_eq!((moved.cache.as_str(), moved.previous.as_str()), (to, from));
        // Whoever asks after the answer finds the new one.
        let told = server.cache().describe(DescribeRequest { cache: "live".into() }).await.unwrap();
        assert_eq!(told.into_inner().source.unwrap().cache, to);
    }
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<String> = asked.await.unwrap().into_iter().collect();
    assert_eq!(seen, ["new", "old"]);

    // It stands for its cache wherever items are changed, too, and follows it to another name.
    let stored =
        admin.upsert(of_rows("live", &store::random_rows(1, ROWS_DIM, 9))).await.unwrap().into_inner();
    assert_eq!(stored.results[0].id, 10);
    admin.rename_cache(rename("old", "older")).await.unwrap();
    let told = server.cache().describe(DescribeRequest { cache: "live".into() }).await.unwrap().into_inner();
    assert_eq!((told.source.unwrap().cache.as_str(), told.live_items), ("older", 11));
    assert_eq!(listed(&server).await[1].aliases, ["live"]);
    admin.delete_alias(DeleteAliasRequest { alias: "live".into() }).await.unwrap();
    assert_eq!(whole(&nearest(&server, "live", &query, 1).await.unwrap_err()).reason, "CACHE_NOT_FOUND");
    assert_eq!(nearest(&server, "older", &query, 1).await.unwrap(), [0]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_cache_goes_on_under_its_new_name_alone() {
    let folder = TempDir::new().unwrap();
    let server = serve(folder.path()).await;
    let mut admin = server.admin();
    let rows = store::random_rows(12, ROWS_DIM, 3);
    admin.create_cache(new("a", ROWS_DIM as u32)).await.unwrap();
    admin.upsert(of_rows("a", &rows[..10])).await.unwrap();
    admin.compact(CompactRequest { cache: "a".into() }).await.unwrap();
    admin.rename_cache(rename("a", "b")).await.unwrap();
    assert_eq!(whole(&nearest(&server, "a", &rows[0], 1).await.unwrap_err()).reason, "CACHE_NOT_FOUND");
    // Still the default: it is the only one.
    assert_eq!(nearest(&server, "", &rows[3], 1).await.unwrap(), [3]);
    // A change writes its record under the new name, and not the old one again.
    admin.upsert(of_rows("b", &rows[10..])).await.unwrap();
    admin.compact(CompactRequest { cache: "b".into() }).await.unwrap();
    let caches = listed(&server).await;
    assert_eq!(caches.iter().map(|c| (c.name.as_str(), c.items)).collect::<Vec<_>>(), [("b", 12)]);
    // The old name is free.
    admin.create_cache(new("a", 4)).await.unwrap();
    assert_eq!(nearest(&server, "", &rows[3], 1).await.unwrap(), [3], "the default stays");
    server.stop().await;
    let server = serve(folder.path()).await;
    assert_eq!(nearest(&server, "b", &rows[11], 1).await.unwrap(), [11]);
    let refused = nearest(&server, "", &rows[3], 1).await.unwrap_err();
    assert_eq!(
        whole(&refused).reason,
        "CACHE_NOT_FOUND",
        "of two none is the default: {}",
        refused.message()
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_cache_is_gone_for_new_requests_and_whole_for_those_under_way() {
    for mode in [RowsMode::Ram, RowsMode::Disk] {
        let folder = TempDir::new().unwrap();
        store::make_rows(folder.path(), 200);
        let app = writable(folder.path(), None, mode, Limits::default());
        let store = app.store.clone().unwrap();
        // As a request holds it.
        let held = app.cache(ROWS).unwrap().snapshot();
        let id = held.record().id;
        let server = Server::start(app).await;
        let mut admin = server.admin();
        admin.set_alias(alias("live", ROWS)).await.unwrap();
        let gone = admin.delete_cache(delete(ROWS, true)).await.unwrap().into_inner();
        assert_eq!((gone.items, gone.aliases), (200, vec!["live".to_owned()]));
        for name in [ROWS, "live", ""] {
            let refused = nearest(&server, name, &[1.0; ROWS_DIM], 1).await.unwrap_err();
            assert_eq!(whole(&refused).reason, "CACHE_NOT_FOUND");
        }
        assert!(listed(&server).await.is_empty());

        let query = viscache::types::Embedding::new(store::random_rows(1, ROWS_DIM, 8).remove(0)).unwrap();
        let exact = viscache::index::SearchParams { exact: true, ..Default::default() };
        let found = held.search(&mut Default::default(), &query, 200, &exact).unwrap();
        assert_eq!(found.hits.len(), 200, "the reader has it all");
        assert_eq!(store.count_items(id).unwrap(), (200, 200));
        drop(held);
        assert_eq!(store.count_items(id).unwrap(), (0, 0), "the last reader has left");
        assert!(store.generations(id).unwrap().is_empty());

        // One of the same name is another cache.
        admin.create_cache(new(ROWS, 4)).await.unwrap();
        assert!(nearest(&server, ROWS, &[1.0; 4], 9).await.unwrap().is_empty());
        assert_ne!(store.cache(&CacheName::new(ROWS).unwrap()).unwrap().id, id);
        drop(store);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_deleted_while_it_is_compacted_stays_gone() {
    let folder = TempDir::new().unwrap();
    let server = serve(folder.path()).await;
    let store = Store::open(folder.path(), Access::Read).unwrap();
    for round in 0..6u64 {
        let mut admin = server.admin();
        admin.create_cache(new("a", 64)).await.unwrap();
        let rows = store::random_rows(3000, 64, round);
        for rows in rows.chunks(1000) {
            admin.upsert(of_rows("a", rows)).await.unwrap();
        }
        let mut other = server.admin();
        let compacting =
            tokio::spawn(async move { other.compact(CompactRequest { cache: "a".into() }).await });
        tokio::time::sleep(Duration::from_millis(round * 60)).await;
        let upserting = {
            let (mut admin, rows) = (server.admin(), rows.clone());
            tokio::spawn(async move { admin.upsert(of_rows("a", &rows[..100])).await })
        };
        admin.delete_cache(delete("a", false)).await.unwrap();
        match compacting.await.unwrap() {
            Ok(done) => assert_eq!(done.get_ref().generation, 1),
            Err(refused) => assert_eq!(whole(&refused).reason, "CACHE_NOT_FOUND", "{}", refused.message()),
        }
        if let Err(refused) = upserting.await.unwrap() {
            assert_eq!(whole(&refused).reason, "CACHE_NOT_FOUND", "{}", refused.message());
        }
        assert!(listed(&server).await.is_empty(), "round {round}: it came back");
    }
    server.stop().await;
    // Nothing is left of any of them.
    store.refresh().unwrap();
    assert!(store.caches().unwrap().is_empty());
    for id in 1..=6 {
        let id = viscache::store::CacheId(id);
        assert_eq!(store.count_items(id).unwrap(), (0, 0));
        assert!(store.generations(id).unwrap().is_empty() && store.changes(id, 0).unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_sees_caches_made_renamed_and_deleted_when_it_is_told_to_look() {
    let folder = TempDir::new().unwrap();
    let writer = serve(folder.path()).await;
    let mut admin = writer.admin();
    let rows = store::random_rows(10, ROWS_DIM, 3);
    for name in ["a", "b"] {
        admin.create_cache(new(name, ROWS_DIM as u32)).await.unwrap();
        admin.upsert(of_rows(name, &rows[..5])).await.unwrap();
    }
    let reader = Server::start(store::app(folder.path(), None, RowsMode::Ram, Limits::default())).await;
    let mut look = reader.admin();
    let all = || ReloadRequest { cache: String::new(), all: true };
    let one = |cache: &str| ReloadRequest { cache: cache.into(), all: false };

    admin.create_cache(new("c", ROWS_DIM as u32)).await.unwrap();
    admin.upsert(of_rows("c", &rows[..1])).await.unwrap();
    admin.rename_cache(rename("a", "z")).await.unwrap();
    admin.upsert(of_rows("z", &rows[5..])).await.unwrap();
    admin.delete_cache(delete("b", false)).await.unwrap();
    admin.set_alias(alias("live", "z")).await.unwrap();
    // It answers as before until then.
    assert_eq!(nearest(&reader, "a", &rows[0], 9).await.unwrap().len(), 5);
    assert_eq!(nearest(&reader, "b", &rows[0], 1).await.unwrap(), [0]);
    assert_eq!(whole(&nearest(&reader, "live", &rows[0], 1).await.unwrap_err()).reason, "CACHE_NOT_FOUND");

    // Several caches and no default: a cache has to be named, as ever.
    assert_eq!(whole(&look.reload(one("")).await.unwrap_err()).reason, "CACHE_NOT_FOUND");
    let seen = look.reload(all()).await.unwrap().into_inner();
    // The request before has looked at which caches there are.
    assert!(seen.opened.is_empty() && seen.closed.is_empty());
    assert_eq!((seen.generation, seen.sequence), (0, 0));
    assert_eq!(nearest(&reader, "z", &rows[0], 20).await.unwrap().len(), 10);
    assert_eq!(nearest(&reader, "live", &rows[7], 1).await.unwrap(), [7]);
    assert_eq!(nearest(&reader, "c", &rows[0], 20).await.unwrap(), [0]);
    for name in ["a", "b"] {
        assert_eq!(whole(&nearest(&reader, name, &rows[0], 1).await.unwrap_err()).reason, "CACHE_NOT_FOUND");
    }

    // One is asked for, and named while it is new.
    admin.create_cache(new("d", 4)).await.unwrap();
    admin.delete_cache(delete("c", false)).await.unwrap();
    let seen = look.reload(one("d")).await.unwrap().into_inner();
    assert_eq!((seen.opened, seen.closed), (vec!["d".to_owned()], vec!["c".to_owned()]));
    admin.set_alias(alias("live", "d")).await.unwrap();
    look.reload(one("live")).await.unwrap();
    let told = reader.cache().describe(DescribeRequest { cache: "live".into() }).await.unwrap().into_inner();
    assert_eq!((told.dim, told.source.unwrap().cache.as_str()), (4, "d"));

    // A new cache under a name that another had.
    admin.delete_cache(delete("z", false)).await.unwrap();
    admin.create_cache(new("z", 4)).await.unwrap();
    look.reload(all()).await.unwrap();
    assert!(nearest(&reader, "z", &[1.0; 4], 1).await.unwrap().is_empty());
    reader.stop().await;
    writer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_is_the_same_cache_for_readers_too_whatever_it_is_called() {
    let folder = TempDir::new().unwrap();
    let writer = serve(folder.path()).await;
    let mut admin = writer.admin();
    let rows = store::random_rows(2, ROWS_DIM, 3);
    admin.create_cache(new("a", ROWS_DIM as u32)).await.unwrap();
    admin.upsert(of_rows("a", &rows[..1])).await.unwrap();
    let reader = Server::start(store::app(folder.path(), None, RowsMode::Ram, Limits::default())).await;
    admin.create_cache(new("b", ROWS_DIM as u32)).await.unwrap();
    admin.rename_cache(rename("a", "z")).await.unwrap();
    admin.create_cache(new("a", ROWS_DIM as u32)).await.unwrap();
    reader.admin().reload(ReloadRequest { cache: String::new(), all: true }).await.unwrap();
    for server in [&writer, &reader] {
        assert_eq!(nearest(server, "", &rows[0], 1).await.unwrap(), [0]);
    }
    // What is left when it goes was chosen by nobody.
    admin.delete_cache(delete("z", false)).await.unwrap();
    admin.delete_cache(delete("a", false)).await.unwrap();
    reader.admin().reload(ReloadRequest { cache: String::new(), all: true }).await.unwrap();
    for server in [&writer, &reader] {
        assert_eq!(whole(&nearest(server, "", &rows[0], 1).await.unwrap_err()).reason, "CACHE_NOT_FOUND");
    }
    reader.stop().await;
    writer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_for_an_alias_alone_serves_what_it_stands_for_and_no_more() {
    let folder = TempDir::new().unwrap();
    let rows = store::random_rows(2, ROWS_DIM, 3);
    let maker = serve(folder.path()).await;
    for (name, row) in ["old", "new"].into_iter().zip(&rows) {
        maker.admin().create_cache(new(name, ROWS_DIM as u32)).await.unwrap();
        maker.admin().upsert(of_rows(name, std::slice::from_ref(row))).await.unwrap();
    }
    maker.admin().set_alias(alias("live", "old")).await.unwrap();
    maker.stop().await;
    let all = writable(folder.path(), None, RowsMode::Ram, Limits::default());
    let old = all.caches.all().into_iter().filter(|(name, _)| name.as_str() == "old").collect();
    let mut app = App::new(all.store.clone().unwrap(), old, None, None, Limits::default());
    app.load = all.load;
    app.caches.serve_only(["live".parse().unwrap()]);
    let server = Server::start(app).await;
    assert_eq!(nearest(&server, "live", &rows[0], 1).await.unwrap(), [0]);
    for (to, other) in [("new", "old"), ("old", "new")] {
        server.admin().set_alias(alias("live", to)).await.unwrap();
        assert_eq!(nearest(&server, "live", &rows[0], 1).await.unwrap(), [0]);
        let told =
            server.cache().describe(DescribeRequest { cache: "live".into() }).await.unwrap().into_inner();
        assert_eq!(told.source.unwrap().cache, to);
        assert_eq!(whole(&nearest(&server, other, &rows[0], 1).await.unwrap_err()).reason, "CACHE_NOT_FOUND");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_damaged_record_hides_no_other_cache() {
    let folder = TempDir::new().unwrap();
    let names = ["damaged", "empty of scores", "whole"].map(|name| name.replace(' ', "-"));
    let maker = serve(folder.path()).await;
    for name in &names {
        maker.admin().create_cache(new(name, ROWS_DIM as u32)).await.unwrap();
        maker.admin().upsert(of_rows(name, &store::random_rows(30, ROWS_DIM, 3))).await.unwrap();
        maker.admin().compact(CompactRequest { cache: name.clone() }).await.unwrap();
    }
    maker.stop().await;
    {
        let store = Store::open(folder.path(), Access::Write).unwrap();
        for name in &names[..2] {
            let cache = store.cache(&name.parse().unwrap()).unwrap();
            let mut generation = store.generations(cache.id).unwrap().remove(0);
            // What is no number cannot be told in JSON.
            match name == "damaged" {
                true => generation.recall = vec![(64, f64::NAN)],
                false => generation.nearest = [("text".to_owned(), f32::NAN)].into(),
            }
            let mut batch = store.batch();
            batch.put_generation(cache.id, &generation);
            store.commit(batch).unwrap();
        }
    }
    let server = serve(folder.path()).await;
    let told = listed(&server).await;
    assert_eq!(told.iter().map(|cache| cache.name.clone()).collect::<Vec<_>>(), names);
    assert!(told[0].problem.contains("damaged"), "{}", told[0].problem);
    assert!(told[1..].iter().all(|cache| cache.problem.is_empty() && cache.served_generation == 1));
    server.stop().await;
}
