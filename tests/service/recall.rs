//! Recall as a client meets it: asked for, reported, and measured beside live searches.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tonic::Code;
use viscache::cache::{Cache, CompactOptions, LoadOptions, RowsMode};
use viscache::flow::{App, Limits, Sampler, SamplingOptions, Width};
use viscache::index::TargetRecall;
use viscache::serve::proto::{
    self, CompactRequest, Cost, DeleteRequest, DescribeRequest, EnhanceRequest, Query, SearchParams,
    SearchRequest, UpsertRequest,
};
use viscache::store::{Access, Measured, RecallPoint, Recalls, Store};
use viscache::types::Embedding;

use crate::server::{
    Server, bad_argument, image, item, media_part, ok, query, refusal, row_part, tensor, text, whole,
};
use crate::store::{self, ROWS, ROWS_DIM, SCENES, scene};

/// What the caches are said to find: images easily, texts less.
fn said() -> Recalls {
    let text = vec![(16, 0.8), (64, 0.95), (256, 0.9875)];
    let by_kind = BTreeMap::from([("text".to_owned(), text)]);
    Recalls { rows: vec![(16, 0.9), (64, 0.99)], by_kind, ..Recalls::default() }
}

/// Every search is sampled, as far as there is room.
const ALL: SamplingOptions = SamplingOptions { rate: 1.0, max_per_second: 1_000_000 };

fn make(recalls: Recalls) -> TempDir {
    let folder = TempDir::new().unwrap();
    store::make_rows(folder.path(), 300);
    store::publish(folder.path(), ROWS, recalls);
    folder
}

fn app(path: &Path, mode: RowsMode) -> App {
    store::app(path, None, mode, Limits::default())
}

/// As `serve --writable` opens it.
fn writable(path: &Path, mode: RowsMode) -> App {
    let store = Arc::new(Store::open(path, Access::Write).unwrap());
    let options = LoadOptions { rows: mode, memory_budget: 1 << 30 };
    let record = store.caches().unwrap().remove(0);
    let cache = Arc::new(Cache::open(&store, &record.name, None, options).unwrap());
    let caches = [(record.name, Ok(cache))].into();
    let mut app = App::new(store.clone(), caches, None, None, Limits::default());
    app.compact = CompactOptions { automatic: false, threads: 1, ..CompactOptions::default() };
    app
}

fn ask(params: SearchParams) -> SearchRequest {
    SearchRequest {
        cache: ROWS.into(),
        vectors: Some(tensor(&store::random_rows(3, ROWS_DIM, 41))),
        search: Some(params),
        ..SearchRequest::default()
    }
}

fn wish(target: f64, kind: &str) -> SearchParams {
    SearchParams { target_recall: Some(target), query_kind: kind.into(), ..SearchParams::default() }
}

fn of_kind(kind: &str) -> SearchParams {
    SearchParams { query_kind: kind.into(), ..SearchParams::default() }
}

fn used(cost: &Option<Cost>) -> (u32, bool) {
    let cost = cost.as_ref().unwrap();
    (cost.ef_search, cost.plan() == proto::Plan::Exact)
}

async fn describe(server: &Server, cache: &str) -> proto::DescribeResponse {
    server.cache().describe(DescribeRequest { cache: cache.into() }).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_becomes_the_beam_that_was_measured_to_reach_it() {
    let folder = make(said());
    let server = Server::start(app(folder.path(), RowsMode::Ram)).await;
    for (params, expected) in [
        (wish(0.99, "image"), (64, false)),
        (wish(0.95, "text"), (64, false)),
        (wish(0.975, "text"), (128, false)),
        // Without a kind what suffices for all, and for one that nobody measured no less than is usual for it.
        (wish(0.95, ""), (96, false)),
        (wish(0.975, "audio"), (160, false)),
        // Not reached by any beam that was measured.
        (wish(0.99, "text"), (0, true)),
        (wish(0.99, ""), (0, true)),
        (SearchParams { exact: true, ..wish(0.6, "image") }, (0, true)),
        (SearchParams { ef_search: Some(33), ..SearchParams::default() }, (33, false)),
        (SearchParams::default(), (96, false)),
        // Wider for a kind that nobody measured.
        (of_kind("text"), (96, false)),
        (of_kind("image"), (96, false)),
        (of_kind("audio"), (160, false)),
        (SearchParams { rescore: Some(50), ..of_kind("audio") }, (160, false)),
        (SearchParams { exact: true, ..of_kind("audio") }, (0, true)),
    ] {
        let found = server.cache().search(ask(params.clone())).await.unwrap().into_inner();
        for result in &found.results {
            assert_eq!(item(&result.status), ok());
            assert_eq!(used(&result.cost), expected, "{params:?}");
        }
        let SearchRequest { cache, vectors, search, .. } = ask(params.clone());
        let enhance = EnhanceRequest { cache, vectors, search, ..EnhanceRequest::default() };
        let enhanced = server.cache().enhance(enhance).await.unwrap().into_inner();
        assert!(enhanced.results.iter().all(|result| used(&result.cost) == expected), "{params:?}");
        if expected.1 {
            let exact = ask(SearchParams { exact: true, ..SearchParams::default() });
            let truth = server.cache().search(exact).await.unwrap().into_inner();
            let ids = |r: &proto::SearchResult| r.neighbors.iter().map(|n| n.id).collect::<Vec<_>>();
            let ids = |reply: &proto::SearchResponse| reply.results.iter().map(ids).collect::<Vec<_>>();
            assert_eq!(ids(&found), ids(&truth));
        }
    }
    server.stop().await;

    // The server's own target, and a request's beam over it.
    let mut app = app(folder.path(), RowsMode::Ram);
    app.default_width = Width::Recall(TargetRecall::new(0.975).unwrap());
    let server = Server::start(app).await;
    for (params, expected) in [
        (SearchParams::default(), 128),
        (of_kind("text"), 128),
        (SearchParams { rescore: Some(50), ..of_kind("audio") }, 160),
        (SearchParams { ef_search: Some(33), ..SearchParams::default() }, 33),
        (wish(0.9, "image"), 16),
    ] {
        let found = server.cache().search(ask(params)).await.unwrap().into_inner();
        assert_eq!(used(&found.results[0].cost), (expected, false));
    }
    assert_eq!(describe(&server, ROWS).await.default_search.unwrap().target_recall, Some(0.975));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn media_speak_for_themselves() {
    let folder = TempDir::new().unwrap();
    store::make_scenes(folder.path());
    store::publish(folder.path(), SCENES, said());
    let app = store::app(folder.path(), Some(store::encoder()), RowsMode::Ram, Limits::default());
    let server = Server::start(app).await;
    let (word, picture) = (|| media_part(text("a red circle"), None), || media_part(image(&scene(3)), None));
    let dim = store::encoder().dim();
    let row = || row_part(&store::random_rows(1, dim, 5)[0], None);
    let queries: Vec<Query> = vec![
        query(vec![picture()]),
        query(vec![word(), word()]),
        query(vec![word(), picture()]),
        query(vec![picture(), row()]),
        query(vec![row()]),
    ];
    let request = |kind: &str| SearchRequest {
        cache: SCENES.into(),
        queries: queries.clone(),
        search: Some(wish(0.95, kind)),
        ..SearchRequest::default()
    };
    let search = async |kind: &str| {
        let found = server.cache().search(request(kind)).await.unwrap().into_inner();
        found.results.iter().map(|result| used(&result.cost).0).collect::<Vec<_>>()
    };
    let image = search("image").await[0];
    assert!((17..64).contains(&image), "{image}");
    // Mixtures and rows of which it is not known what they are get no less than the default beam.
    assert_eq!(search("").await, [image, 64, 96, 96, 96]);
    assert_eq!(search("image").await, [image; 5]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_aimed_at_is_refused_by_name() {
    let folder = make(said());
    let server = Server::start(app(folder.path(), RowsMode::Ram)).await;
    let both = |ef_search, rescore| SearchParams { ef_search, rescore, ..wish(0.9, "") };
    for (params, field) in [
        (wish(1.0, ""), "search.target_recall"),
        (wish(0.49, ""), "search.target_recall"),
        (wish(f64::NAN, ""), "search.target_recall"),
        (both(Some(10), None), "search.target_recall"),
        (both(None, Some(10)), "search.target_recall"),
        (wish(0.9, "Text"), "search.query_kind"),
        (wish(0.9, &"x".repeat(33)), "search.query_kind"),
    ] {
        let refused = server.cache().search(ask(params.clone())).await.unwrap_err();
        assert_eq!(whole(&refused), bad_argument(field), "{params:?}");
        let SearchRequest { cache, vectors, search, .. } = ask(params);
        let enhance = EnhanceRequest { cache, vectors, search, ..EnhanceRequest::default() };
        assert_eq!(whole(&server.cache().enhance(enhance).await.unwrap_err()), bad_argument(field));
    }
    server.stop().await;

    let unmeasured = make(Recalls::default());
    let server = Server::start(app(unmeasured.path(), RowsMode::Ram)).await;
    let refused = server.cache().search(ask(wish(0.9, "text"))).await.unwrap_err();
    assert_eq!(whole(&refused), refusal(Code::FailedPrecondition, "NOT_CALIBRATED", ""));
    assert!(refused.message().contains("index-builder index --cache rows"), "{}", refused.message());
    let width = async |server: &Server| {
        let found = server.cache().search(ask(SearchParams::default())).await.unwrap().into_inner();
        let described = describe(server, ROWS).await;
        assert_eq!(described.recall_curves, []);
        let used = used(&found.results[0].cost).0;
        assert_eq!(described.default_search.unwrap().ef_search, Some(used));
        used
    };
    assert_eq!(width(&server).await, 160);
    server.stop().await;

    // What the server's settings say holds for all.
    let mut app = app(unmeasured.path(), RowsMode::Ram);
    app.default_width = Width::Given;
    let server = Server::start(app).await;
    assert_eq!(width(&server).await, 96);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_margin_that_reaches_a_target_with_less_is_taken_and_described() {
    let plain = |(ef_search, recall): (usize, f64)| RecallPoint {
        ef_search,
        rescore: ef_search.min(40),
        margin: None,
        scan: false,
        recall,
        recall_100: None,
        scored: 8.0 * ef_search as f64,
    };
    let ended = RecallPoint { margin: Some(0.03), scored: 400.0, ..plain((64, 0.9875)) };
    let Recalls { rows, by_kind, .. } = said();
    let ways = |curve: &[(usize, f64)]| curve.iter().copied().map(plain).collect::<Vec<_>>();
    let texts = Measured { queries: 3000, ways: vec![ways(&by_kind["text"]), vec![ended]] };
    let images = Measured { queries: 3000, ways: vec![ways(&rows)] };
    let measured = BTreeMap::from([("image".to_owned(), images), ("text".to_owned(), texts)]);
    let folder = make(Recalls { measured, ..said() });
    let server = Server::start(app(folder.path(), RowsMode::Ram)).await;
    // Of a kind that was not measured no margin is known.
    for (target, kind, expected) in
        [(0.975, "text", 64), (0.8, "text", 16), (0.9, "image", 16), (0.975, "audio", 160)]
    {
        let found = server.cache().search(ask(wish(target, kind))).await.unwrap().into_inner();
        assert_eq!(used(&found.results[0].cost), (expected, false), "{target} {kind}");
    }
    let curves = describe(&server, ROWS).await.recall_curves;
    let [images, texts] = &curves[..] else { panic!("{curves:?}") };
    assert_eq!((images.kind.as_str(), images.queries, images.ways.len()), ("image", 3000, 2));
    let expected = proto::RecallWay {
        ef_search: 64,
        rescore: 40,
        margin: Some(0.03),
        recall_at_10: 0.9875,
        scored_vectors: 400.0,
        scan: false,
        recall_at_100: None,
    };
    assert_eq!((texts.kind.as_str(), texts.ways.last()), ("text", Some(&expected)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_recall_is_measured_and_described() {
    for mode in [RowsMode::Ram, RowsMode::Disk] {
        let folder = make(said());
        let mut app = app(folder.path(), mode);
        app.sampler = Sampler::start(ALL).unwrap();
        let server = Server::start(app).await;
        let narrow = |kind: &str| SearchParams {
            ef_search: Some(96),
            query_kind: kind.into(),
            ..SearchParams::default()
        };
        let exact = SearchParams { exact: true, query_kind: "exact".into(), ..SearchParams::default() };
        let until = Instant::now() + Duration::from_secs(60);
        let live = loop {
            for params in [narrow("text"), narrow(""), exact.clone(), wish(0.99, "text")] {
                server.cache().search(ask(params)).await.unwrap();
            }
            let told = describe(&server, ROWS).await;
            let kinds: Vec<&str> = told.live_recall.iter().map(|l| l.kind.as_str()).collect();
            if kinds == ["other", "text"] {
                assert_eq!(told.recall_sampling_rate, 1.0);
                break told.live_recall;
            }
            assert!(Instant::now() < until, "{kinds:?}");
        };
        for one in live {
            assert!(one.samples > 0 && (0.9..=1.0).contains(&one.recall_at_10), "{one:?}");
            assert!(one.oldest_ms > 1_600_000_000_000 && one.oldest_ms <= one.newest_ms, "{one:?}");
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truth_that_is_behind_makes_nobody_wait() {
    let folder = make(said());
    let mut app = app(folder.path(), RowsMode::Disk);
    app.sampler = Sampler::start(ALL).unwrap();
    let server = Server::start(app).await;
    let callers = (0..4).map(|_| {
        let mut client = server.cache();
        tokio::spawn(async move {
            for _ in 0..200 {
                let reply = client.search(ask(SearchParams::default())).await.unwrap().into_inner();
                assert!(reply.results.iter().all(|r| item(&r.status) == ok() && r.neighbors.len() == 10));
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    for caller in callers {
        tokio::time::timeout(Duration::from_secs(60), caller).await.unwrap().unwrap();
    }
    // What had no place is known at once; what had one is measured when the thread gets its turn, and nobody said when.
    assert!(describe(&server, ROWS).await.recall_samples_dropped > 0);
    let until = Instant::now() + Duration::from_secs(60);
    while describe(&server, ROWS).await.live_recall.is_empty() {
        assert!(Instant::now() < until, "what was taken in is measured");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.stop().await;

    // So many a second and no more, whatever is asked.
    let mut app = self::app(folder.path(), RowsMode::Ram);
    app.sampler = Sampler::start(SamplingOptions { max_per_second: 0, ..ALL }).unwrap();
    let server = Server::start(app).await;
    server.cache().search(ask(SearchParams::default())).await.unwrap();
    let told = describe(&server, ROWS).await;
    assert_eq!((told.recall_samples_dropped, told.live_recall), (3, vec![]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_measures_what_it_built() {
    for mode in [RowsMode::Ram, RowsMode::Disk] {
        let folder = make(said());
        let server = Server::start(writable(folder.path(), mode)).await;
        let vectors = Some(tensor(&store::random_rows(50, ROWS_DIM, 77)));
        server
            .admin()
            .upsert(UpsertRequest { cache: ROWS.into(), vectors, items: vec![], ..Default::default() })
            .await
            .unwrap();
        server.admin().compact(CompactRequest { cache: ROWS.into() }).await.unwrap();
        let told = describe(&server, ROWS).await;
        assert_eq!((told.source.unwrap().generation, told.items), (3, 350));
        assert_eq!(told.recall_curves.len(), 1, "{:?}", told.recall_curves);
        let last = told.recall.last().unwrap();
        assert!(last.recall_at_10 > 0.9, "{:?}", told.recall);
        let target = last.recall_at_10.min(0.99);
        let found = server.cache().search(ask(wish(target, "image"))).await.unwrap().into_inner();
        let (ef, exact) = used(&found.results[0].cost);
        assert!(!exact && ef <= last.ef_search, "{ef}");
        server.stop().await;
        // And it is kept.
        let store = Store::open(folder.path(), Access::Read).unwrap();
        let record = store.caches().unwrap().remove(0);
        let kept = store.generations(record.id).unwrap();
        let kept = kept.iter().find(|g| Some(g.generation) == record.current).unwrap();
        assert_eq!(kept.recall.len(), told.recall.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_truth_of_a_sample_is_that_of_an_exact_search() {
    for mode in [RowsMode::Ram, RowsMode::Disk] {
        let folder = make(said());
        let app = writable(folder.path(), mode);
        let cache = app.cache(ROWS).unwrap().clone();
        let server = Server::start(app).await;
        let vectors = Some(tensor(&store::random_rows(40, ROWS_DIM, 78)));
        server
            .admin()
            .upsert(UpsertRequest { cache: ROWS.into(), vectors, items: vec![], ..Default::default() })
            .await
            .unwrap();
        // Holes at both ends and inside, one of them longer than a row.
        let ids = [0, 1, 2, 50, 299, 310].into_iter().chain(100..130).collect();
        server.admin().delete(DeleteRequest { cache: ROWS.into(), ids, ..Default::default() }).await.unwrap();
        let (snapshot, mut searcher) = (cache.snapshot(), Default::default());
        let exact = viscache::index::SearchParams { exact: true, ..Default::default() };
        for row in store::random_rows(20, ROWS_DIM, 79) {
            let query = Embedding::new(row).unwrap();
            for k in [1, 10, 400] {
                let found = snapshot.search(&mut searcher, &query, k, &exact).unwrap();
                let ids: Vec<_> = found.hits.iter().map(|hit| hit.id).collect();
                let stop = AtomicBool::new(false);
                assert_eq!(snapshot.truth(&query, k, &stop).unwrap(), Some(ids));
                stop.store(true, Ordering::Relaxed);
                assert_eq!(snapshot.truth(&query, k, &stop).unwrap(), None);
            }
        }
        drop(snapshot);
        server.stop().await;
    }
}
