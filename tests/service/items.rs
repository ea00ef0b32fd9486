//! Items listed, counted, changed, deleted by what they are, and stored once however often they are sent: real gRPC, a real store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;
use tonic::Code;
use viscache::cache::RowsMode;
use viscache::flow::Limits;
use viscache::serve::proto::{
    self, CompactRequest, CountItemsRequest, DeleteRequest, Filter, Filters, GetItemsRequest, ItemIds,
    ItemUpdate, ListItemsRequest, SearchRequest, TagCondition, UpdateItemsRequest, UpsertItem, UpsertKey,
    UpsertRequest, filter::Condition, upsert_item,
};

use crate::caches::{nearest, new, of_rows, writable};
use crate::server::{self, Server, bad_argument, image, item, ok, refusal, tensor, whole};
use crate::store::{self, ROWS, ROWS_DIM};

fn filter(condition: Condition) -> Option<Filter> {
    Some(Filter { condition: Some(condition) })
}

fn tag(key: &str, value: &str) -> Option<Filter> {
    filter(Condition::Tag(TagCondition { key: key.into(), values: vec![value.into()] }))
}

fn not(filter: Option<Filter>) -> Option<Filter> {
    self::filter(Condition::NoneOf(Filters { filters: filter.into_iter().collect() }))
}

/// A row of a request with a uri and one tag.
fn said(id: Option<u64>, uri: &str, kind: &str) -> UpsertItem {
    UpsertItem { id, uri: uri.into(), tags: [("kind".into(), kind.into())].into(), ..Default::default() }
}

async fn serve(folder: &TempDir, limits: Limits) -> Server {
    Server::start(writable(folder.path(), None, RowsMode::Ram, limits)).await
}

/// A cache `a` of so many items, every third of the kind `cat`; half of them in a generation, half beside it.
async fn filled(server: &Server, count: usize) -> Vec<Vec<f32>> {
    let (mut admin, rows) = (server.admin(), store::random_rows(count, ROWS_DIM, 5));
    admin.create_cache(new("a", ROWS_DIM as u32)).await.unwrap();
    let kind = |i: usize| if i.is_multiple_of(3) { "cat" } else { "dog" };
    for (half, rows) in rows.chunks(count.div_ceil(2)).enumerate() {
        let first = half * count.div_ceil(2);
        let items = (0..rows.len()).map(|i| said(None, &format!("{}.jpg", first + i), kind(first + i)));
        let request = UpsertRequest { items: items.collect(), ..of_rows("a", rows) };
        let reply = admin.upsert(request).await.unwrap().into_inner();
        assert!(reply.results.iter().all(|r| item(&r.status) == ok()));
        if half == 0 {
            admin.compact(CompactRequest { cache: "a".into() }).await.unwrap();
        }
    }
    rows
}

fn page(filter: Option<Filter>, page_size: u32, page_token: &str) -> ListItemsRequest {
    ListItemsRequest {
        cache: "a".into(),
        filter,
        page_size,
        page_token: page_token.into(),
        return_vectors: false,
    }
}

/// The ids of all pages.
async fn listed(server: &Server, filter: Option<Filter>, page_size: u32) -> Vec<u64> {
    let (mut ids, mut token) = (Vec::new(), String::new());
    loop {
        let reply = server.admin().list_items(page(filter.clone(), page_size, &token)).await.unwrap();
        let reply = reply.into_inner();
        assert!(reply.items.len() <= page_size.max(100) as usize);
        ids.extend(reply.items.iter().map(|item| item.id));
        token = reply.next_page_token;
        if token.is_empty() {
            return ids;
        }
    }
}

async fn count(server: &Server, filter: Option<Filter>) -> u64 {
    let request = CountItemsRequest { cache: "a".into(), filter };
    server.admin().count_items(request).await.unwrap().into_inner().count
}

async fn found(server: &Server, filter: Option<Filter>) -> BTreeSet<u64> {
    let query = store::random_rows(1, ROWS_DIM, 77);
    let request = SearchRequest {
        cache: "a".into(),
        vectors: Some(tensor(&query)),
        top_k: Some(1000),
        filter,
        ..Default::default()
    };
    let reply = server.cache().search(request).await.unwrap().into_inner();
    assert_eq!(item(&reply.results[0].status), ok());
    reply.results[0].neighbors.iter().map(|n| n.id).collect()
}

fn update(id: u64, tags: &[(&str, &str)], mask: &[&str]) -> ItemUpdate {
    let tags = tags.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    ItemUpdate { id, uri: String::new(), tags, mask: mask.iter().map(|&path| path.into()).collect() }
}

fn updates(updates: Vec<ItemUpdate>) -> UpdateItemsRequest {
    UpdateItemsRequest { cache: "a".into(), updates }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_every_item_once_and_what_a_search_finds() {
    let folder = TempDir::new().unwrap();
    let server = serve(&folder, Limits::default()).await;
    let rows = filled(&server, 250).await;
    let delete = DeleteRequest { cache: "a".into(), ids: vec![0, 17, 200], filter: None };
    server.admin().delete(delete).await.unwrap();
    let all: Vec<u64> = (0..250).filter(|id| ![0, 17, 200].contains(id)).collect();
    let cats: Vec<u64> = all.iter().copied().filter(|id| id.is_multiple_of(3)).collect();
    for size in [1, 7, 100, 1000, 0] {
        assert_eq!(listed(&server, None, size).await, all);
        assert_eq!(listed(&server, tag("kind", "cat"), size).await, cats);
    }
    assert_eq!(listed(&server, not(tag("kind", "dog")), 9).await, cats);
    assert!(listed(&server, tag("kind", "cow"), 9).await.is_empty());
    for filter in [None, tag("kind", "cat"), filter(Condition::Ids(ItemIds { ids: vec![0, 3, 249, 999] }))] {
        let (listed, found) =
            (listed(&server, filter.clone(), 50).await, found(&server, filter.clone()).await);
        assert!(found.iter().copied().eq(listed.iter().copied()));
        assert_eq!(count(&server, filter).await, listed.len() as u64);
    }

    // What an item is told to be, as GetItems tells it.
    let request = ListItemsRequest { return_vectors: true, ..page(None, 2, "") };
    let reply = server.admin().list_items(request).await.unwrap().into_inner();
    let ids = GetItemsRequest { cache: "a".into(), ids: vec![1, 2], return_vectors: true };
    assert_eq!(reply.items, server.cache().get_items(ids).await.unwrap().into_inner().items);
    assert!(
        server::rows(&reply.items[0].embedding)[0].iter().zip(&rows[1]).all(|(a, b)| (a - b).abs() < 1e-5)
    );
    assert_eq!(reply.source.unwrap().generation, 1);

    // An item that is stored and deleted between pages is not told; what was there all along is.
    let first = server.admin().list_items(page(None, 5, "")).await.unwrap().into_inner();
    let delete = DeleteRequest { cache: "a".into(), ids: vec![first.items[4].id, 6], filter: None };
    server.admin().delete(delete).await.unwrap();
    server.admin().compact(CompactRequest { cache: "a".into() }).await.unwrap();
    let second = server.admin().list_items(page(None, 3, &first.next_page_token)).await.unwrap().into_inner();
    assert_eq!(second.items.iter().map(|item| item.id).collect::<Vec<_>>(), [7, 8, 9]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_by_its_bytes_too() {
    let folder = TempDir::new().unwrap();
    let server = serve(&folder, Limits::default()).await;
    let (mut admin, rows) = (server.admin(), store::random_rows(600, ROWS_DIM, 5));
    admin.create_cache(new("a", ROWS_DIM as u32)).await.unwrap();
    let long = "x".repeat(15 << 10);
    let items = (0..600).map(|_| said(None, "u", &long)).collect();
    admin.upsert(UpsertRequest { items, ..of_rows("a", &rows) }).await.unwrap();
    // A client takes 4 MiB by default.
    let reply = admin.list_items(page(None, 600, "")).await.unwrap().into_inner();
    assert!((150..300).contains(&reply.items.len()), "{} items", reply.items.len());
    assert_eq!(listed(&server, None, 600).await, (0..600).collect::<Vec<u64>>());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_listed_changed_or_deleted_is_refused_by_field() {
    let folder = TempDir::new().unwrap();
    let server = serve(&folder, Limits { max_batch: 60, ..Limits::default() }).await;
    filled(&server, 60).await;
    let mut admin = server.admin();
    admin.create_cache(new("b", 4)).await.unwrap();
    let token = admin.list_items(page(None, 5, "")).await.unwrap().into_inner().next_page_token;
    assert_eq!(token.len(), 32);
    let empty = || Some(Filter { condition: None });
    let elsewhere = ListItemsRequest { cache: "b".into(), ..page(None, 5, &token) };
    for (request, expected) in [
        (page(None, 61, ""), bad_argument("page_size")),
        (page(None, 5, "x"), bad_argument("page_token")),
        (page(None, 5, &"ü".repeat(16)), bad_argument("page_token")),
        (page(None, 5, &"f".repeat(32)), bad_argument("page_token")),
        (page(None, 5, &token.replace(|c: char| c.is_ascii_digit(), "g")), bad_argument("page_token")),
        (page(tag("kind", "cat"), 5, &token), bad_argument("page_token")),
        (elsewhere, bad_argument("page_token")),
        (page(empty(), 5, ""), bad_argument("filter")),
        (
            ListItemsRequest { cache: "nowhere".into(), ..page(None, 5, "") },
            refusal(Code::NotFound, "CACHE_NOT_FOUND", ""),
        ),
    ] {
        let said = format!("{request:?}");
        assert_eq!(whole(&admin.list_items(request).await.unwrap_err()), expected, "{said}");
    }
    let counted = CountItemsRequest { cache: "a".into(), filter: empty() };
    assert_eq!(whole(&admin.count_items(counted).await.unwrap_err()), bad_argument("filter"));
    for (ids, filter, expected) in [
        (vec![], None, "ids"),
        (vec![1], tag("kind", "cat"), "filter"),
        (vec![], empty(), "filter"),
        (vec![1; 61], None, "ids"),
    ] {
        let request = DeleteRequest { cache: "a".into(), ids, filter };
        assert_eq!(whole(&admin.delete(request).await.unwrap_err()), bad_argument(expected));
    }
    for wrong in [vec![], vec![update(1, &[], &["uri"]); 61]] {
        assert_eq!(whole(&admin.update_items(updates(wrong)).await.unwrap_err()), bad_argument("updates"));
    }
    let moved = ItemUpdate { uri: "elsewhere".into(), ..update(1, &[], &["tags.kind"]) };
    let long = ItemUpdate { uri: "x".repeat(4097), ..update(1, &[], &["uri"]) };
    let wrong = vec![
        update(1, &[], &[]),
        update(1, &[], &["tag"]),
        update(1, &[], &["tags."]),
        update(1, &[("a", "b")], &["tags.a", "tags.a"]),
        update(1, &[("a", "b")], &["tags", "tags.a"]),
        update(1, &[("a", "b")], &["uri"]),
        moved,
        long,
        update(1, &[("a", &"x".repeat(16 << 10))], &["tags"]),
        update(9999, &[], &["tags.a"]),
        // A tag whose name has points, one that goes, and the others stay.
        update(2, &[("a.b", "c")], &["tags.a.b", "tags.kind"]),
    ];
    let reply = admin.update_items(updates(wrong)).await.unwrap().into_inner();
    let told: Vec<_> = reply.results.iter().map(|r| item(&r.status)).collect();
    let expected = [
        bad_argument("updates[0].mask"),
        bad_argument("updates[1].mask[0]"),
        bad_argument("updates[2].mask[0]"),
        bad_argument("updates[3].mask[1]"),
        bad_argument("updates[4].mask[1]"),
        bad_argument("updates[5].tags"),
        bad_argument("updates[6].uri"),
        bad_argument("updates[7].uri"),
        bad_argument("updates[8].tags"),
        refusal(Code::NotFound, "ITEM_NOT_FOUND", ""),
        ok(),
    ];
    assert_eq!(told, expected);
    assert_eq!(reply.results.iter().map(|r| r.id).collect::<Vec<_>>(), [1, 1, 1, 1, 1, 1, 1, 1, 1, 9999, 2]);
    let ids = GetItemsRequest { cache: "a".into(), ids: vec![1, 2], return_vectors: false };
    let got = server.cache().get_items(ids).await.unwrap().into_inner().items;
    assert_eq!(
        (got[0].tags["kind"].as_str(), got[0].uri.as_str()),
        ("dog", "1.jpg"),
        "nothing of what was refused"
    );
    assert_eq!(got[1].tags, [("a.b".to_owned(), "c".to_owned())].into());
    server.stop().await;

    // A server that only reads refuses all of it by the same reason.
    let reader = Server::start(store::app(folder.path(), None, RowsMode::Ram, Limits::default())).await;
    let mut admin = reader.admin();
    let delete = DeleteRequest { cache: "a".into(), ids: vec![], filter: tag("kind", "cat") };
    let refused = [
        admin.update_items(updates(vec![update(1, &[], &["tags.kind"])])).await.unwrap_err(),
        admin.delete(delete).await.unwrap_err(),
    ];
    for refused in refused {
        assert_eq!(whole(&refused), refusal(Code::FailedPrecondition, "READ_ONLY", ""));
    }
    reader.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_seen_by_the_next_filter_and_by_whoever_follows() {
    let folder = TempDir::new().unwrap();
    let server = serve(&folder, Limits::default()).await;
    let rows = filled(&server, 60).await;
    let reader = Server::start(store::app(folder.path(), None, RowsMode::Ram, Limits::default())).await;
    let mut admin = server.admin();
    let cats: BTreeSet<u64> = (0..60).step_by(3).collect();
    assert_eq!(found(&server, tag("kind", "cat")).await, cats);
    // One of the generation, one beside it; one becomes a cat, one is none any more.
    let moved = ItemUpdate {
        uri: "moved.jpg".into(),
        ..update(55, &[("kind", "cat"), ("seen", "today")], &["tags", "uri"])
    };
    let reply = admin
        .update_items(updates(vec![
            update(1, &[("kind", "cat")], &["tags.kind"]),
            update(3, &[], &["tags"]),
            moved,
        ]))
        .await
        .unwrap()
        .into_inner();
    assert!(reply.results.iter().all(|r| item(&r.status) == ok()));
    let expected: BTreeSet<u64> = cats.iter().copied().filter(|&id| id != 3).chain([1, 55]).collect();
    for _ in 0..2 {
        assert_eq!(found(&server, tag("kind", "cat")).await, expected);
        assert!(listed(&server, tag("kind", "cat"), 7).await.into_iter().eq(expected.iter().copied()));
        assert_eq!(found(&server, tag("seen", "today")).await, [55].into());
        assert_eq!(nearest(&server, "a", &rows[1], 1).await.unwrap(), [1], "its embedding is as it was");
        // And so it stays in the next generation.
        admin.compact(CompactRequest { cache: "a".into() }).await.unwrap();
    }
    assert_eq!(found(&reader, tag("kind", "cat")).await, cats, "before it was told to look");
    reader.admin().reload(proto::ReloadRequest { cache: "a".into(), all: false }).await.unwrap();
    assert_eq!(found(&reader, tag("kind", "cat")).await, expected);
    server.stop().await;
    let server = serve(&folder, Limits::default()).await;
    assert_eq!(found(&server, tag("kind", "cat")).await, expected);
    let ids = GetItemsRequest { cache: "a".into(), ids: vec![55], return_vectors: false };
    assert_eq!(server.cache().get_items(ids).await.unwrap().into_inner().items[0].uri, "moved.jpg");
    reader.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_deletes_what_it_finds_while_others_search_and_store() {
    let folder = TempDir::new().unwrap();
    let server = serve(&folder, Limits::default()).await;
    filled(&server, 3000).await;
    let stop = Arc::new(AtomicBool::new(false));
    let searching = {
        let (mut client, stop) = (server.cache(), stop.clone());
        let query = store::random_rows(2, ROWS_DIM, 8);
        tokio::spawn(async move {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                for filter in [None, tag("kind", "dog"), tag("kind", "cat")] {
                    // Dogs are never touched, so there are always enough of them.
                    let enough = filter != tag("kind", "cat");
                    let request = SearchRequest {
                        cache: "a".into(),
                        vectors: Some(tensor(&query)),
                        top_k: Some(10),
                        filter,
                        ..Default::default()
                    };
                    let reply = client.search(request).await.unwrap().into_inner();
                    for result in &reply.results {
                        assert_eq!(item(&result.status), ok());
                        assert!(!enough || result.neighbors.len() == 10);
                        let mut ids: Vec<u64> = result.neighbors.iter().map(|n| n.id).collect();
                        ids.sort_unstable();
                        ids.dedup();
                        assert_eq!(ids.len(), result.neighbors.len(), "an item was found twice");
                    }
                    asked += 1;
                }
            }
            asked
        })
    };
    let compacting = {
        let (mut admin, stop) = (server.admin(), stop.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                admin.compact(CompactRequest { cache: "a".into() }).await.unwrap();
            }
        })
    };
    for round in 0..4u64 {
        let cats = count(&server, tag("kind", "cat")).await;
        let request = DeleteRequest { cache: "a".into(), ids: vec![], filter: tag("kind", "cat") };
        let reply = server.admin().delete(request.clone()).await.unwrap().into_inner();
        assert_eq!(reply.deleted, cats, "round {round}");
        assert!(reply.results.is_empty());
        assert_eq!(count(&server, tag("kind", "cat")).await, 0);
        assert!(found(&server, tag("kind", "cat")).await.is_empty());
        assert_eq!(server.admin().delete(request).await.unwrap().into_inner().deleted, 0);
        let rows = store::random_rows(1500, ROWS_DIM, 100 + round);
        let items = (0..1500).map(|_| said(None, "", "cat")).collect();
        server.admin().upsert(UpsertRequest { items, ..of_rows("a", &rows) }).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    compacting.await.unwrap();
    assert!(searching.await.unwrap() > 5);
    assert_eq!((count(&server, None).await, count(&server, tag("kind", "dog")).await), (3500, 2000));
    server.stop().await;
    let server = serve(&folder, Limits::default()).await;
    assert_eq!((count(&server, None).await, count(&server, tag("kind", "dog")).await), (3500, 2000));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_again_is_answered_as_before_and_stores_nothing() {
    let folder = TempDir::new().unwrap();
    store::make_scenes(folder.path());
    let app = || writable(folder.path(), Some(store::encoder()), RowsMode::Ram, Limits::default());
    let server = Server::start(app()).await;
    let mut admin = server.admin();
    let media = |media, uri: &str| UpsertItem {
        content: Some(upsert_item::Content::Media(media)),
        tags: (0..20).map(|i| (format!("tag-{i}"), i.to_string())).collect(),
        ..said(None, uri, "picture")
    };
    // Tags come in another order each time.
    let request = |id: &str| UpsertRequest {
        cache: store::SCENES.into(),
        items: vec![
            media(image(&store::scene(40)), "good.png"),
            media(image(b"no picture"), "bad.png"),
            UpsertItem { id: Some(u64::MAX), ..media(image(&store::scene(41)), "no id") },
            media(image(&store::scene(41)), "too.png"),
        ],
        request_id: id.into(),
        ..Default::default()
    };
    let first = admin.upsert(request("r-1")).await.unwrap().into_inner();
    assert!(!first.repeated);
    let told = |reply: &proto::UpsertResponse| {
        reply.results.iter().map(|r| (r.id, item(&r.status))).collect::<Vec<_>>()
    };
    assert_eq!(told(&first)[1].1.reason, "BAD_MEDIA");
    assert_eq!(told(&first)[2].1.fields, ["items[2].id"]);
    let items = |reply: proto::CountItemsResponse| reply.count;
    let all = CountItemsRequest { cache: store::SCENES.into(), filter: None };
    let count = items(admin.count_items(all.clone()).await.unwrap().into_inner());
    assert_eq!(count, store::SCENE_COUNT as u64 + 2);
    for _ in 0..3 {
        let again = admin.upsert(request("r-1")).await.unwrap().into_inner();
        assert!(again.repeated);
        let codes = |reply| {
            told(reply).into_iter().map(|(id, told)| (id, told.code, told.reason)).collect::<Vec<_>>()
        };
        assert_eq!(codes(&again), codes(&first));
        assert_eq!(
            again.results[1].status.as_ref().unwrap().message,
            first.results[1].status.as_ref().unwrap().message
        );
    }
    // The same id for something else, and ids that are none.
    let mut other = request("r-1");
    other.items[0].uri = "other.png".into();
    let refused = admin.upsert(other).await.unwrap_err();
    assert_eq!(whole(&refused), refusal(Code::AlreadyExists, "REQUEST_ID_REUSED", ""));
    let refused = admin.upsert(request(&"x".repeat(129))).await.unwrap_err();
    assert_eq!(whole(&refused), bad_argument("request_id"));
    assert_eq!(items(admin.count_items(all.clone()).await.unwrap().into_inner()), count);

    // After a restart, and from several at a time.
    server.stop().await;
    let server = Server::start(app()).await;
    assert!(server.admin().upsert(request("r-1")).await.unwrap().into_inner().repeated);
    let calls: Vec<_> = (0..6)
        .map(|_| {
            let (mut admin, request) = (server.admin(), request("r-2"));
            tokio::spawn(async move { admin.upsert(request).await.unwrap().into_inner() })
        })
        .collect();
    let mut first = 0;
    let mut ids = BTreeSet::new();
    for call in calls {
        let reply = call.await.unwrap();
        first += usize::from(!reply.repeated);
        ids.insert(reply.results.iter().map(|r| r.id).collect::<Vec<_>>());
    }
    assert_eq!((first, ids.len()), (1, 1));
    assert_eq!(items(server.admin().count_items(all).await.unwrap().into_inner()), count + 2);

    // One of which nothing was stored may be mended.
    let bad = |item| UpsertRequest { items: vec![item], ..request("r-3") };
    let none = server.admin().upsert(bad(media(image(b"no picture"), "x"))).await.unwrap().into_inner();
    assert_eq!(item(&none.results[0].status).code, Code::InvalidArgument);
    let mended = server.admin().upsert(bad(media(image(&store::scene(42)), "x"))).await.unwrap().into_inner();
    assert_eq!((item(&mended.results[0].status), mended.repeated), (ok(), false));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_is_told_by_its_uri_is_stored_once() {
    let folder = TempDir::new().unwrap();
    store::make_rows(folder.path(), 50);
    let server = serve(&folder, Limits::default()).await;
    let mut admin = server.admin();
    let rows = store::random_rows(5, ROWS_DIM, 31);
    let keyed = |items: Vec<UpsertItem>, rows: &[Vec<f32>]| UpsertRequest {
        items,
        key: UpsertKey::Uri.into(),
        ..of_rows(ROWS, rows)
    };
    let ids = |reply: &proto::UpsertResponse| reply.results.iter().map(|r| r.id).collect::<Vec<_>>();
    // One that a build stored, a new one, and the new one again.
    let items = vec![said(None, "rows/0007.png", "a"), said(None, "new", "b"), said(None, "new", "c")];
    let reply = admin.upsert(keyed(items, &rows[..3])).await.unwrap().into_inner();
    assert_eq!(ids(&reply), [7, 50, 50]);
    assert_eq!(nearest(&server, ROWS, &rows[0], 1).await.unwrap(), [7]);
    assert_eq!(nearest(&server, ROWS, &rows[2], 1).await.unwrap(), [50]);
    assert_ne!(nearest(&server, ROWS, &rows[1], 1).await.unwrap(), [50], "the last stays");
    let count = CountItemsRequest { cache: ROWS.into(), filter: None };
    assert_eq!(admin.count_items(count.clone()).await.unwrap().into_inner().count, 51);

    // It follows what becomes of the item.
    let moved = ItemUpdate { id: 7, uri: "moved".into(), mask: vec!["uri".into()], ..Default::default() };
    admin.update_items(UpdateItemsRequest { cache: ROWS.into(), updates: vec![moved] }).await.unwrap();
    admin.delete(DeleteRequest { cache: ROWS.into(), ids: vec![50], filter: None }).await.unwrap();
    let items = vec![said(None, "moved", "a"), said(None, "rows/0007.png", "a"), said(None, "new", "a")];
    let reply = admin.upsert(keyed(items.clone(), &rows[..3])).await.unwrap().into_inner();
    assert_eq!(ids(&reply), [7, 51, 52]);
    assert_eq!(ids(&admin.upsert(keyed(items, &rows[..3])).await.unwrap().into_inner()), [7, 51, 52]);

    // Several have it, none has one, and an id beside it.
    let twice = vec![said(Some(100), "twice", "a"), said(Some(101), "twice", "a")];
    admin.upsert(UpsertRequest { items: twice, ..of_rows(ROWS, &rows[..2]) }).await.unwrap();
    let items = vec![said(None, "twice", "a"), said(None, "", "a"), said(None, "fine", "a")];
    let reply = admin.upsert(keyed(items, &rows[..3])).await.unwrap().into_inner();
    let told: Vec<_> = reply.results.iter().map(|r| item(&r.status)).collect();
    let expected = [refusal(Code::FailedPrecondition, "AMBIGUOUS_URI", ""), bad_argument("vectors[1]"), ok()];
    assert_eq!(told, expected);
    let refused = admin.upsert(keyed(vec![said(Some(1), "x", "a")], &rows[..1])).await.unwrap_err();
    assert_eq!(whole(&refused), bad_argument("items[0].id"));
    let unknown = UpsertRequest { key: 9, ..of_rows(ROWS, &rows[..1]) };
    assert_eq!(whole(&admin.upsert(unknown).await.unwrap_err()), bad_argument("key"));

    // Many at once, of few uris: one item a uri.
    let calls: Vec<_> = (0..8u64)
        .map(|call| {
            let items = (0..20).map(|i| said(None, &format!("many-{}", (i + call) % 10), "m")).collect();
            let (mut admin, request) =
                (server.admin(), keyed(items, &store::random_rows(20, ROWS_DIM, call)));
            tokio::spawn(async move { admin.upsert(request).await.unwrap().into_inner() })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap().results.iter().all(|r| item(&r.status) == ok()));
    }
    let request = ListItemsRequest { cache: ROWS.into(), filter: tag("kind", "m"), ..Default::default() };
    let listed = admin.list_items(request).await.unwrap().into_inner().items;
    let mut uris: BTreeMap<&str, usize> = BTreeMap::new();
    listed.iter().for_each(|item| *uris.entry(&item.uri).or_default() += 1);
    assert_eq!((uris.len(), uris.values().max()), (10, Some(&1)));
    server.stop().await;
}
