//! A living cache as a client meets it: real gRPC on a loopback port, a real store, changes while others search.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::Code;
use viscache::cache::{Cache, CompactOptions, LoadOptions, RowsMode};
use viscache::flow::{App, Limits};
use viscache::models::encoder::Encoder;
use viscache::serve::proto::{
    self, CompactRequest, DeleteRequest, DescribeRequest, GetItemsRequest, PublishRequest, ReloadRequest,
    SearchParams, SearchRequest, Tensor, UpsertItem, UpsertRequest, UpsertStreamRequest, upsert_item,
};
use viscache::store::{Access, Store};
use viscache::types::Modality;

use crate::server::{self, Server, bad_argument, image, item, ok, refusal, tensor, text, whole};
use crate::store::{self, ROWS, ROWS_DIM, SCENES, encode, scene};

/// Opens everything in a store as `serve --writable` would.
fn app(path: &Path, encoder: Option<Encoder>, rows: RowsMode, limits: Limits) -> App {
    let store = Arc::new(Store::open(path, Access::Write).unwrap());
    let options = LoadOptions { rows, memory_budget: 1 << 30 };
    let records = store.caches().unwrap();
    let open = |name| Cache::open(&store, name, None, options).map(Arc::new).map_err(|e| e.to_string());
    let caches = records.iter().map(|record| (record.name.clone(), open(&record.name))).collect();
    let mut app = App::new(store.clone(), caches, None, encoder.map(store::embedder), limits);
    app.compact = CompactOptions { automatic: false, threads: 1, ..CompactOptions::default() };
    app
}

fn vectors(rows: &[Vec<f32>]) -> UpsertRequest {
    UpsertRequest { cache: ROWS.into(), vectors: Some(tensor(rows)), items: Vec::new(), ..Default::default() }
}

fn named(id: Option<u64>, uri: &str) -> UpsertItem {
    let tags = [("kind".to_owned(), "test".to_owned())].into();
    UpsertItem { id, uri: uri.into(), tags, ..UpsertItem::default() }
}

fn row_item(id: Option<u64>, row: &[f32]) -> UpsertItem {
    let tensor = Tensor { values: row.to_vec(), ..Tensor::default() };
    UpsertItem { content: Some(upsert_item::Content::Embedding(tensor)), ..named(id, "row") }
}

/// The ids of the nearest items.
async fn nearest(server: &Server, row: &[f32], top_k: u32, exact: bool) -> Vec<u64> {
    let request = SearchRequest {
        cache: ROWS.into(),
        vectors: Some(tensor(&[row.to_vec()])),
        top_k: Some(top_k),
        search: Some(SearchParams { exact, ..SearchParams::default() }),
        ..SearchRequest::default()
    };
    let reply = server.cache().search(request).await.unwrap().into_inner();
    assert_eq!(item(&reply.results[0].status), ok());
    reply.results[0].neighbors.iter().map(|n| n.id).collect()
}

async fn describe(server: &Server) -> proto::DescribeResponse {
    server.cache().describe(DescribeRequest { cache: ROWS.into() }).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_is_found_and_outlives_the_server() {
    for mode in [RowsMode::Ram, RowsMode::Disk] {
        let folder = TempDir::new().unwrap();
        store::make_rows(folder.path(), 100);
        let server = Server::start(app(folder.path(), None, mode, Limits::default())).await;
        let follower = Server::start(store::app(folder.path(), None, mode, Limits::default())).await;
        let mut admin = server.admin();
        let rows = store::random_rows(6, ROWS_DIM, 91);

        // Three new ones and one in the place of item 7; lengths do not matter.
        let mut request = vectors(&rows[..4]);
        if let Some(tensor) = &mut request.vectors {
            *tensor = server::tensor(&[
                rows[0].clone(),
                rows[1].iter().map(|v| v * 3.0).collect(),
                rows[2].clone(),
                rows[3].clone(),
            ]);
        }
        request.items = vec![named(None, "a"), named(Some(7), "b"), named(None, "c"), named(Some(500), "d")];
        let reply = admin.upsert(request).await.unwrap().into_inner();
        assert!(reply.results.iter().all(|r| item(&r.status) == ok()));
        assert_eq!(reply.results.iter().map(|r| r.id).collect::<Vec<_>>(), [100, 7, 101, 500]);
        assert_eq!(reply.sequence, 4);
        for (row, id) in rows.iter().zip([100, 7, 101, 500]) {
            for exact in [false, true] {
                assert_eq!(nearest(&server, row, 1, exact).await, [id]);
                assert_ne!(nearest(&follower, row, 1, exact).await, [id], "before it was told to reload");
            }
        }
        let ids = GetItemsRequest { cache: ROWS.into(), ids: vec![7, 500, 501], return_vectors: true };
        let got = server.cache().get_items(ids).await.unwrap().into_inner().items;
        assert_eq!((got[0].uri.as_str(), got[1].uri.as_str()), ("b", "d"));
        assert_eq!(got[1].tags["kind"], "test");
        assert_eq!(item(&got[2].status).code, Code::NotFound);

        let delete = DeleteRequest { cache: ROWS.into(), ids: vec![101, 3, 999, 3], ..Default::default() };
        let reply = admin.delete(delete).await.unwrap().into_inner();
        let found: Vec<(u64, bool)> = reply.results.iter().map(|r| (r.id, r.found)).collect();
        assert_eq!(found, [(101, true), (3, true), (999, false), (3, false)]);
        assert_eq!((reply.deleted, reply.sequence), (2, 6));
        assert!(!nearest(&server, &rows[2], 200, false).await.contains(&101));

        let now = describe(&server).await;
        let delta = now.delta.unwrap();
        assert_eq!((now.items, now.live_items, now.writable), (100, 101, true));
        assert_eq!((delta.items, delta.tombstones, delta.sequence, delta.watermark), (3, 2, 6, 0));
        assert!(delta.memory_bytes > 0 && !delta.compacting && delta.compaction_problem.is_empty());

        let reload = ReloadRequest { cache: ROWS.into(), ..Default::default() };
        let seen = follower.admin().reload(reload.clone()).await.unwrap().into_inner();
        assert_eq!((seen.generation, seen.changed, seen.sequence), (1, false, 6));
        let all = nearest(&server, &rows[5], 200, true).await;
        assert_eq!(all.len(), 101);
        assert_eq!(nearest(&follower, &rows[5], 200, true).await, all);

        let compacted = admin.compact(CompactRequest { cache: ROWS.into() }).await.unwrap().into_inner();
        assert_eq!((compacted.generation, compacted.items), (2, 101));
        assert_eq!(nearest(&server, &rows[5], 200, true).await, all);
        let delta = describe(&server).await.delta.unwrap();
        assert_eq!((delta.items, delta.tombstones, delta.sequence, delta.watermark), (0, 0, 6, 6));
        assert_eq!(nearest(&follower, &rows[5], 200, true).await, all, "an old generation, still whole");
        let seen = follower.admin().reload(reload).await.unwrap().into_inner();
        assert_eq!((seen.generation, seen.changed), (2, true));

        // Back to the graph before: the items stay.
        let back = PublishRequest { cache: ROWS.into(), generation: 1 };
        assert_eq!(admin.publish(back).await.unwrap().into_inner().generation, 1);
        assert_eq!(nearest(&server, &rows[5], 200, true).await, all);
        server.stop().await;
        let server = Server::start(app(folder.path(), None, mode, Limits::default())).await;
        assert_eq!(nearest(&server, &rows[5], 200, true).await, all);
        assert_eq!(describe(&server).await.source.unwrap().generation, 1);
        follower.stop().await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_a_request_names_is_not_given_to_another_item() {
    let folder = TempDir::new().unwrap();
    store::make_rows(folder.path(), 100);
    let server = Server::start(app(folder.path(), None, RowsMode::Ram, Limits::default())).await;
    let mut admin = server.admin();
    let rows = store::random_rows(3, ROWS_DIM, 92);
    let request = |items| UpsertRequest { cache: ROWS.into(), vectors: None, items, ..Default::default() };
    let acknowledged = |reply: proto::UpsertResponse| reply.results.iter().map(|r| r.id).collect::<Vec<_>>();

    let two = request(vec![row_item(None, &rows[0]), row_item(Some(100), &rows[1])]);
    assert_eq!(acknowledged(admin.upsert(two).await.unwrap().into_inner()), [101, 100]);
    assert_eq!(nearest(&server, &rows[0], 1, true).await, [101]);
    assert_eq!(nearest(&server, &rows[1], 1, true).await, [100]);

    // Nor when the item that names it is refused: it may come again.
    let refused = UpsertItem { id: Some(102), ..UpsertItem::default() };
    let message =
        UpsertStreamRequest { tag: 1, request: Some(request(vec![row_item(None, &rows[2]), refused])) };
    let mut replies = admin.upsert_stream(tokio_stream::iter([message])).await.unwrap().into_inner();
    let reply = replies.next().await.unwrap().unwrap().response.unwrap();
    assert_eq!(item(&reply.results[1].status).code, Code::InvalidArgument);
    assert_eq!(acknowledged(reply), [103, 0]);

    // The later of two that name one id stays.
    let two = request(vec![row_item(Some(7), &rows[0]), row_item(Some(7), &rows[2])]);
    assert_eq!(acknowledged(admin.upsert(two).await.unwrap().into_inner()), [7, 7]);
    assert_eq!(nearest(&server, &rows[2], 2, true).await, [7, 103]);

    // Requests at the same time get different ids, and what each was told is so.
    let calls = (0..8).map(|i| {
        let (mut admin, rows) = (server.admin(), store::random_rows(2, ROWS_DIM, 200 + i));
        let request = request(vec![row_item(None, &rows[0]), row_item(None, &rows[1])]);
        tokio::spawn(async move { (rows, admin.upsert(request).await.unwrap().into_inner()) })
    });
    for call in calls.collect::<Vec<_>>() {
        let (rows, reply) = call.await.unwrap();
        for (row, id) in rows.iter().zip(acknowledged(reply)) {
            assert_eq!(nearest(&server, row, 1, true).await, [id]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_and_texts_are_embedded_by_the_model() {
    let folder = TempDir::new().unwrap();
    store::make_scenes(folder.path());
    let encoder = store::encoder();
    let (picture, words) = (scene(40), "a small red disc");
    let expected = encode(&encoder, Modality::Image, &picture).embedding;
    let server = Server::start(app(folder.path(), Some(encoder), RowsMode::Ram, Limits::default())).await;
    let media = |media, uri: &str| UpsertItem {
        content: Some(upsert_item::Content::Media(media)),
        ..named(None, uri)
    };
    let items =
        vec![media(image(&picture), "p.png"), media(image(b"no picture"), "bad"), media(text(words), "t")];
    let request = UpsertRequest { cache: SCENES.into(), vectors: None, items, ..Default::default() };
    let reply = server.admin().upsert(request).await.unwrap().into_inner();
    let outcomes: Vec<_> = reply.results.iter().map(|r| item(&r.status).code).collect();
    assert_eq!(outcomes, [Code::Ok, Code::InvalidArgument, Code::Ok]);
    assert_eq!(item(&reply.results[1].status).reason, "BAD_MEDIA");
    let ids = vec![reply.results[0].id, reply.results[2].id];
    let request = GetItemsRequest { cache: SCENES.into(), ids, return_vectors: true };
    let got = server.cache().get_items(request).await.unwrap().into_inner().items;
    assert_eq!(got[0].modality, i32::from(proto::Modality::Image));
    assert_eq!(got[1].modality, i32::from(proto::Modality::Text));
    let stored = server::rows(&got[0].embedding).remove(0);
    let expected = expected.unit().unwrap().into_vec();
    assert!(stored.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_is_refused_by_name() {
    let folder = TempDir::new().unwrap();
    store::make_rows(folder.path(), 50);
    let limits = Limits { max_batch: 6, ..Limits::default() };
    let server = Server::start(app(folder.path(), None, RowsMode::Ram, limits)).await;
    let mut admin = server.admin();
    let row = store::random_rows(1, ROWS_DIM, 5).remove(0);
    let with = |change: &dyn Fn(&mut UpsertItem)| {
        let mut item = row_item(None, &row);
        change(&mut item);
        item
    };
    let items = vec![
        with(&|item| item.content = None),
        with(&|item| item.id = Some(u64::MAX)),
        row_item(None, &[0.0; ROWS_DIM]),
        row_item(None, &[1.0; 3]),
        with(&|item| item.uri = "x".repeat(5000)),
        row_item(Some(9), &row),
    ];
    let request = UpsertRequest { cache: ROWS.into(), vectors: None, items, ..Default::default() };
    let reply = admin.upsert(request).await.unwrap().into_inner();
    let told: Vec<_> = reply.results.iter().map(|r| item(&r.status)).collect();
    let expected = [
        bad_argument("items[0]"),
        bad_argument("items[1].id"),
        bad_argument("items[2].embedding"),
        bad_argument("items[3]"),
        bad_argument("items[4].uri"),
        ok(),
    ];
    assert_eq!(told, expected);
    assert_eq!(reply.results[5].id, 9);
    assert_eq!(reply.sequence, 1);

    // A picture without a model fails the request, as it does elsewhere.
    let media = UpsertItem { content: Some(upsert_item::Content::Media(text("a"))), ..named(None, "t") };
    let whole_request = |vectors: Option<Tensor>, items: Vec<UpsertItem>| UpsertRequest {
        cache: ROWS.into(),
        vectors,
        items,
        ..Default::default()
    };
    let rows = |n: usize| Some(tensor(&vec![row.clone(); n]));
    for (request, expected) in [
        (whole_request(None, vec![]), bad_argument("items")),
        (whole_request(rows(7), vec![]), bad_argument("vectors")),
        (whole_request(rows(2), vec![named(None, "a")]), bad_argument("items")),
        (whole_request(None, vec![media]), refusal(Code::FailedPrecondition, "MODEL_NOT_LOADED", "")),
        (
            UpsertRequest { cache: "nowhere".into(), ..vectors(std::slice::from_ref(&row)) },
            refusal(Code::NotFound, "CACHE_NOT_FOUND", ""),
        ),
    ] {
        assert_eq!(whole(&admin.upsert(request).await.unwrap_err()), expected);
    }
    for ids in [vec![], vec![1; 7]] {
        let refused =
            admin.delete(DeleteRequest { cache: ROWS.into(), ids, ..Default::default() }).await.unwrap_err();
        assert_eq!(whole(&refused), bad_argument("ids"));
    }

    // A stream goes on behind a request that was refused.
    let requests = vec![
        UpsertStreamRequest { tag: 1, request: Some(vectors(std::slice::from_ref(&row))) },
        UpsertStreamRequest { tag: 2, request: None },
        UpsertStreamRequest { tag: 3, request: Some(vectors(std::slice::from_ref(&row))) },
    ];
    let stream = admin.upsert_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let answers: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert_eq!(answers.iter().map(|a| a.tag).collect::<Vec<_>>(), [1, 2, 3]);
    let codes: Vec<_> = answers.iter().map(|a| item(&a.status).code).collect();
    assert_eq!(codes, [Code::Ok, Code::InvalidArgument, Code::Ok]);
    assert_eq!(answers[2].response.as_ref().unwrap().results[0].id, 51);

    // A builder has to wait, in words.
    let locked = Store::open(folder.path(), Access::Write).err().unwrap();
    assert!(locked.to_string().contains("being written by another process"), "{locked}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_server_says_how_to_make_it_writable() {
    let folder = TempDir::new().unwrap();
    store::make_rows(folder.path(), 50);
    let server = Server::start(store::app(folder.path(), None, RowsMode::Ram, Limits::default())).await;
    let mut admin = server.admin();
    let cache = ROWS.to_owned();
    let refused = [
        admin.upsert(vectors(&store::random_rows(1, ROWS_DIM, 5))).await.unwrap_err(),
        admin
            .delete(DeleteRequest { cache: cache.clone(), ids: vec![1], ..Default::default() })
            .await
            .unwrap_err(),
        admin.compact(CompactRequest { cache }).await.unwrap_err(),
    ];
    for refused in refused {
        assert_eq!(whole(&refused), refusal(Code::FailedPrecondition, "READ_ONLY", ""));
        assert!(refused.message().contains("--writable"), "{}", refused.message());
    }
    assert!(!describe(&server).await.writable);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_search_fails_or_waits_for_long_while_everything_changes() {
    for mode in [RowsMode::Ram, RowsMode::Disk] {
        let folder = TempDir::new().unwrap();
        store::make_rows(folder.path(), 300);
        let server = Server::start(app(folder.path(), None, mode, Limits::default())).await;
        let stop = Arc::new(AtomicBool::new(false));
        let load: Vec<_> = (0..3u64)
            .map(|i| {
                let (mut client, stop) = (server.cache(), stop.clone());
                let search = SearchParams { exact: i == 0, ..SearchParams::default() };
                let request = SearchRequest {
                    cache: ROWS.into(),
                    vectors: Some(tensor(&store::random_rows(3, ROWS_DIM, 21 + i))),
                    queries: Vec::new(),
                    top_k: Some(10),
                    search: Some(search),
                    return_vectors: true,
                    filter: None,
                };
                tokio::spawn(async move {
                    let (mut asked, mut generations) = (0, std::collections::BTreeSet::new());
                    while !stop.load(Ordering::Relaxed) {
                        let reply = client.search(request.clone()).await.unwrap().into_inner();
                        for result in &reply.results {
                            assert_eq!(item(&result.status), ok());
                            // Items 0 to 99 are never touched, so there are always enough.
                            assert_eq!(result.neighbors.len(), 10);
                            assert!(result.neighbors.windows(2).all(|pair| pair[0].score >= pair[1].score));
                            let mut ids: Vec<u64> = result.neighbors.iter().map(|n| n.id).collect();
                            ids.sort_unstable();
                            ids.dedup();
                            assert_eq!(ids.len(), 10, "an item was found twice");
                        }
                        asked += 1;
                        generations.insert(reply.source.unwrap().generation);
                    }
                    (asked, generations)
                })
            })
            .collect();
        let mut admin = server.admin();
        for round in 0..12u64 {
            let rows = store::random_rows(20, ROWS_DIM, 1000 + round);
            let items = rows.iter().enumerate().map(|(i, row)| {
                row_item((i % 2 == 0).then_some(100 + (round * 37 + i as u64 * 11) % 250), row)
            });
            let request = UpsertRequest {
                cache: ROWS.into(),
                vectors: None,
                items: items.collect(),
                ..Default::default()
            };
            let reply = admin.upsert(request).await.unwrap().into_inner();
            // The next query finds each, whatever else goes on.
            for (row, result) in rows.iter().zip(&reply.results) {
                assert_eq!(item(&result.status), ok());
                let found = nearest(&server, row, 1, false).await[0];
                let replaced = reply.results.iter().filter(|r| r.id == result.id).count() > 1;
                assert!(found == result.id || replaced, "{found} instead of {}", result.id);
            }
            let ids: Vec<u64> = (0..10).map(|i| 100 + (round * 53 + i * 7) % 250).collect();
            admin
                .delete(DeleteRequest { cache: ROWS.into(), ids: ids.clone(), ..Default::default() })
                .await
                .unwrap();
            let all = nearest(&server, &rows[0], 1000, round % 2 == 0).await;
            assert!(all.iter().all(|id| !ids.contains(id)), "a deleted item was found");
            match round % 4 {
                1 => drop(admin.compact(CompactRequest { cache: ROWS.into() }).await.unwrap()),
                3 => {
                    let listed = admin.list_caches(proto::ListCachesRequest {}).await.unwrap().into_inner();
                    let rows = &listed.caches[0];
                    assert_eq!(rows.generations.len(), 2, "the one before is kept");
                    let generation = rows.generations[0];
                    assert_ne!(generation, rows.served_generation);
                    let back = PublishRequest { cache: ROWS.into(), generation };
                    assert_eq!(admin.publish(back).await.unwrap().into_inner().generation, generation);
                }
                _ => {}
            }
        }
        stop.store(true, Ordering::Relaxed);
        for task in load {
            let (asked, generations) = task.await.unwrap();
            assert!(asked > 5 && generations.len() > 1, "{asked} requests, generations {generations:?}");
        }
        server.stop().await;
    }
}
