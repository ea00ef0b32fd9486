//! What requests may take of a server's memory, measured from outside: a process of its own, and its peak as the system tells it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;
use viscache::cache::NewCache;
use viscache::serve::proto::{EmbedRequest, EnhanceRequest, Query, SearchRequest, Tensor};

use viscache::store::RowType;
use viscache::types::Origin;

use crate::raw;
use crate::store::{self, ROWS, ROWS_DIM};
use crate::world::{Served, World};

/// Memory of all requests together, and what else a server may take.
const BUDGET_MIB: u64 = 256;
const BESIDE_MIB: u64 = 256;

/// A server with so much memory for requests.
fn serve(world: &World, more: &[&str]) -> Served {
    let budget = BUDGET_MIB.to_string();
    Served::with(
        world,
        more,
        &[("VISCACHE_RECALL_SAMPLING__RATE", "0"), ("VISCACHE_LIMITS__MAX_REQUEST_MEMORY_MIB", &budget)],
    )
}

async fn connect(server: &Served) -> Channel {
    Endpoint::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap()
}

/// The most that a server has held, MiB.
fn peak(server: &Served) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

fn reason(status: &tonic::Status) -> (Code, String) {
    (status.code(), status.get_details_error_info().map(|info| info.reason).unwrap_or_default())
}

/// Rows as they are sent.
fn rows(count: usize) -> Option<Tensor> {
    Some(Tensor {
        dtype: 1,
        shape: vec![count as i64, ROWS_DIM as i64],
        data: vec![0x3e; count * ROWS_DIM * 4].into(),
        values: Vec::new(),
    })
}

/// Asks the same many times at once, and says what became of each; somebody else is answered meanwhile.
async fn crowd(
    server: &Served,
    path: &'static str,
    message: &Bytes,
    count: usize,
) -> Vec<Result<Bytes, tonic::Status>> {
    let mut asked = Vec::new();
    for _ in 0..count {
        let (channel, message) = (connect(server).await, message.clone());
        asked.push(tokio::spawn(async move { raw::call(&channel, path, message).await }));
    }
    let other = connect(server).await;
    let small = EnhanceRequest { cache: ROWS.into(), vectors: rows(1), ..Default::default() };
    let small = Bytes::from(small.encode_to_vec());
    let mut results = Vec::new();
    while !asked.iter().all(|task| task.is_finished()) {
        let begun = Instant::now();
        match raw::call(&other, "/viscache.v1.CacheService/Enhance", small.clone()).await {
            Ok(_) => {}
            Err(status) => assert_eq!(reason(&status), (Code::ResourceExhausted, "REQUEST_MEMORY".into())),
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for task in asked {
        results.push(task.await.unwrap());
    }
    assert!(raw::call(&other, "/viscache.v1.CacheService/Enhance", small).await.is_ok(), "all is given back");
    results
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_becomes_gigabytes_is_refused_by_its_bytes() {
    let world = World::new();
    let server = serve(&world, &["--model", "none"]);
    // 33 million empty items: two bytes each on the way, a few hundred when they are decoded.
    let items = Bytes::from([0x1a, 0x00].repeat(16 << 20));
    for path in [
        "/viscache.v1.AdminService/Upsert",
        "/viscache.v1.CacheService/Search",
        "/viscache.v1.CacheService/Enhance",
    ] {
        let begun = Instant::now();
        let refused = raw::call(&connect(&server).await, path, items.clone()).await.unwrap_err();
        assert_eq!(
            reason(&refused),
            (Code::InvalidArgument, "REQUEST_TOO_LARGE".into()),
            "{path}: {refused}"
        );
        assert!(begun.elapsed() < Duration::from_secs(10), "{path}: {:?}", begun.elapsed());
    }
    for result in crowd(&server, "/viscache.v1.AdminService/Upsert", &items, 24).await {
        let (code, reason) = reason(&result.unwrap_err());
        assert!(
            matches!(
                (code, &reason[..]),
                (Code::InvalidArgument, "REQUEST_TOO_LARGE") | (Code::ResourceExhausted, "REQUEST_MEMORY")
            ),
            "{code:?} {reason}"
        );
    }
    let peak = peak(&server);
    assert!(peak <= BUDGET_MIB + BESIDE_MIB, "{peak} MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_are_counted_before_they_are_found() {
    let world = World::new();
    let new = NewCache { dim: ROWS_DIM, rows: RowType::F16, origin: Origin::of("import"), model: None };
    store::add(&world.store, "many", &new, store::random_rows(3000, ROWS_DIM, 3), None);
    let server = serve(&world, &["--model", "none"]);
    let search = |top_k: u32, return_vectors: bool, count: usize| {
        let search = SearchRequest {
            cache: "many".into(),
            vectors: rows(count),
            top_k: Some(top_k),
            return_vectors,
            ..Default::default()
        };
        Bytes::from(search.encode_to_vec())
    };
    const SEARCH: &str = "/viscache.v1.CacheService/Search";
    let channel = connect(&server).await;
    let begun = Instant::now();
    for vectors in [false, true] {
        let refused = raw::call(&channel, SEARCH, search(1000, vectors, 4096)).await.unwrap_err();
        assert_eq!(reason(&refused), (Code::InvalidArgument, "REQUEST_TOO_LARGE".into()), "{refused}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // What does fit is answered, one after another if not at once.
    let mut answered = 0;
    for result in crowd(&server, SEARCH, &search(100, false, 1500), 16).await {
        match result {
            Ok(_) => answered += 1,
            Err(status) => {
                assert_eq!(reason(&status), (Code::ResourceExhausted, "REQUEST_MEMORY".into()), "{status:?}");
            }
        }
    }
    assert!(answered > 0);
    let peak = peak(&server);
    assert!(peak <= BUDGET_MIB + BESIDE_MIB, "{peak} MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_compressed_message_may_become_is_counted() {
    let world = World::new();
    let server = serve(&world, &["--model", "none"]);
    use tonic::codec::CompressionEncoding::Gzip;
    use viscache::serve::proto::cache_service_client::CacheServiceClient;
    let queries = vec![Query::default(); 4 << 20];
    let request = EnhanceRequest { cache: ROWS.into(), queries, ..Default::default() };
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let mut client = CacheServiceClient::new(connect(&server).await).send_compressed(Gzip);
        let request = request.clone();
        tasks.push(tokio::spawn(async move { client.enhance(request).await }));
    }
    for task in tasks {
        let (code, reason) = reason(&task.await.unwrap().unwrap_err());
        assert!(matches!(code, Code::InvalidArgument | Code::ResourceExhausted), "{code:?} {reason}");
    }
    let peak = peak(&server);
    assert!(peak <= BUDGET_MIB + BESIDE_MIB, "{peak} MiB");
}

/// A reader that takes nothing more gives its place and its reply back after a while.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_holds_nothing() {
    let world = World::new();
    let settings = [
        ("VISCACHE_RECALL_SAMPLING__RATE", "0"),
        ("VISCACHE_LIMITS__STALL_SECONDS", "1"),
        ("VISCACHE_LIMITS__MAX_CONCURRENT", "4"),
    ];
    let server = Served::with(&world, &["--model", "none"], &settings);
    // A reply of some megabytes, of which the window of a connection lets a part through.
    let request = EnhanceRequest {
        cache: ROWS.into(),
        vectors: rows(4000),
        return_neighbors: true,
        return_vectors: true,
        ..Default::default()
    };
    let request = Bytes::from(request.encode_to_vec());
    let mut held = Vec::new();
    for _ in 0..4 {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
        let channel = endpoint.initial_stream_window_size(1 << 10).connect().await.unwrap();
        let replies = raw::ask(&channel, "/viscache.v1.CacheService/Enhance", request.clone()).await.unwrap();
        held.push((channel, replies));
    }
    let small = EmbedRequest::default();
    let other = connect(&server).await;
    let full = raw::call(&other, "/viscache.v1.EmbedService/Embed", small.encode_to_vec().into()).await;
    assert_eq!(reason(&full.unwrap_err()), (Code::ResourceExhausted, "TOO_MANY_REQUESTS".into()));
    tokio::time::sleep(Duration::from_secs(4)).await;
    let let_in = raw::call(&other, "/viscache.v1.EmbedService/Embed", small.encode_to_vec().into()).await;
    assert_eq!(reason(&let_in.unwrap_err()).1, "INVALID_ARGUMENT", "it is looked at");
    drop(held);
}
