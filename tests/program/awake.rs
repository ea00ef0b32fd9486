//! A server among bad neighbours: connections that say nothing, headers that are odd, signals, and what its log says of it all.

use std::fs;
use std::net::TcpStream as Blocking;
use std::process::Command;
use std::time::{Duration, Instant};

use prost::Message;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;
use viscache::serve::proto::admin_service_client::AdminServiceClient;
use viscache::serve::proto::cache_service_client::CacheServiceClient;
use viscache::serve::proto::{
    CompactRequest, DescribeRequest, EnhanceRequest, EnhanceStreamRequest, PublishRequest, StatsRequest,
};
use viscache::store::{Access, Store};

use crate::raw;
use crate::store::{self, ROWS, ROWS_DIM};
use crate::world::{Served, World, endpoint};

async fn connect(server: &Served) -> Channel {
    endpoint(&server.address).connect().await.unwrap()
}

/// A server without a model, started by a shell that has run `before`.
fn start(
    world: &World,
    before: &str,
    arguments: &[&str],
    settings: &[(&str, &str)],
) -> (Served, std::path::PathBuf) {
    let settings = [settings, &[("VISCACHE_RECALL_SAMPLING__RATE", "0")]].concat();
    Served::logged(world, before, &[&["--model", "none"], arguments].concat(), &settings)
}

fn rows() -> EnhanceRequest {
    let row = store::random_rows(1, ROWS_DIM, 9);
    let vectors = viscache::serve::encode_tensor(&row[0], ROWS_DIM, viscache::serve::proto::Dtype::F32);
    EnhanceRequest { cache: ROWS.into(), vectors: Some(vectors), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_nobody_out() {
    let world = World::new();
    let (server, _log) = start(&world, "ulimit -n 300", &[], &[]);
    let mut silent: Vec<Blocking> = Vec::new();
    for _ in 0..500 {
        silent.push(Blocking::connect(&server.address).unwrap());
    }
    let begun = Instant::now();
    let mut client = CacheServiceClient::new(connect(&server).await);
    client.enhance(rows()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    // Those that there was no room for are let go, and nothing spins.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = server.taken();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let busy = server.taken() - before;
    assert!(busy < Duration::from_millis(500), "{busy:?} in two seconds of rest");
    client.enhance(rows()).await.unwrap();
    drop(silent);
    assert_eq!(server.end("TERM"), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_headers_are_read_or_left_alone() {
    let world = World::new();
    let (server, _log) = start(&world, "", &[], &[]);
    let mut client = CacheServiceClient::new(connect(&server).await);
    for timeout in ["9999999999999999999S", "18446744073709551615S", "99999999999999H", "x", "0"] {
        let mut request = Request::new(rows());
        request.metadata_mut().insert("grpc-timeout", MetadataValue::try_from(timeout).unwrap());
        let reply = client.enhance(request).await;
        assert!(reply.is_ok(), "{timeout}: {reply:?}");
    }
    let mut named = Request::new(rows());
    named.metadata_mut().insert("x-request-id", "mine-1".parse().unwrap());
    assert_eq!(client.enhance(named).await.unwrap().metadata().get("x-request-id").unwrap(), "mine-1");
    let own = client.enhance(rows()).await.unwrap();
    assert_eq!(own.metadata().get("x-request-id").unwrap().len(), 16);
    let refused = client.enhance(EnhanceRequest::default()).await.unwrap_err();
    assert_eq!(refused.metadata().get("x-request-id").unwrap().len(), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn causes_are_in_the_log_and_not_in_the_reply() {
    let world = World::new();
    let (server, log) = start(&world, "", &[], &[]);
    let builder = Store::open(&world.store, Access::Write).unwrap();
    let mut admin = AdminServiceClient::new(connect(&server).await);
    let mut request = Request::new(PublishRequest { cache: ROWS.into(), generation: 1 });
    request.metadata_mut().insert("x-request-id", "who-asks".parse().unwrap());
    let refused = admin.publish(request).await.unwrap_err();
    let info = refused.get_details_error_info().unwrap();
    assert_eq!((refused.code(), &info.reason[..]), (Code::Unavailable, "STORE_LOCKED"));
    let folder = world.store.to_str().unwrap();
    assert!(!refused.message().contains(folder), "{}", refused.message());
    drop(builder);
    let told = fs::read_to_string(&log).unwrap();
    let line = told.lines().find(|line| line.contains("who-asks")).unwrap_or_else(|| panic!("{told}"));
    for part in ["viscache.v1.AdminService/Publish", "127.0.0.1:", folder, "UNAVAILABLE"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_ends_in_order() {
    let world = World::new();
    let settings = [("VISCACHE_STOP__DELAY_SECONDS", "2")];
    let (server, log) = start(&world, "", &[], &settings);
    let channel = connect(&server).await;
    let mut health = HealthClient::new(channel.clone());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let (requests, received) = tokio::sync::mpsc::channel(4);
    requests.send(EnhanceStreamRequest { tag: 1, request: Some(rows()) }).await.unwrap();
    let mut client = CacheServiceClient::new(channel.clone());
    let stream = tokio_stream::wrappers::ReceiverStream::new(received);
    let mut replies = client.enhance_stream(stream).await.unwrap().into_inner();
    assert_eq!(replies.next().await.unwrap().unwrap().tag, 1);

    let begun = Instant::now();
    signal(&server, "TERM");
    assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // Health says so first, and until the delay is over everything is answered.
    client.enhance(rows()).await.unwrap();
    requests.send(EnhanceStreamRequest { tag: 2, request: Some(rows()) }).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap().tag, 2);
    let ended = replies.next().await.unwrap().unwrap_err();
    let reason = ended.get_details_error_info().map(|info| info.reason);
    assert_eq!((ended.code(), reason.as_deref()), (Code::Unavailable, Some("STOPPING")), "{ended:?}");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(wait(server), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}: a watch keeps nobody", begun.elapsed());
    assert!(fs::read_to_string(&log).unwrap().contains("every request is answered"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once_and_what_is_cut_is_told() {
    let world = World::new();
    let settings = [("VISCACHE_STOP__DELAY_SECONDS", "600")];
    let (server, _log) = start(&world, "", &[], &settings);
    AdminServiceClient::new(connect(&server).await).stats(StatsRequest {}).await.unwrap();
    signal(&server, "INT");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    signal(&server, "INT");
    assert_eq!(wait(server), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(5));

    // A request that nobody reads the reply of is under way when the time is over.
    let settings = [("VISCACHE_STOP__DRAIN_SECONDS", "1"), ("VISCACHE_LIMITS__STALL_SECONDS", "600")];
    let (server, log) = start(&world, "", &[], &settings);
    let mut large = rows();
    (large.return_neighbors, large.return_vectors) = (true, true);
    let many = store::random_rows(3000, ROWS_DIM, 5).concat();
    large.vectors = Some(viscache::serve::encode_tensor(&many, ROWS_DIM, viscache::serve::proto::Dtype::F32));
    let channel = endpoint(&server.address).initial_stream_window_size(1 << 10).connect().await.unwrap();
    let large = large.encode_to_vec().into();
    let replies = raw::ask(&channel, "/viscache.v1.CacheService/Enhance", large).await.unwrap();
    let begun = Instant::now();
    signal(&server, "TERM");
    assert_eq!(wait(server), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let told = fs::read_to_string(&log).unwrap();
    assert!(told.contains("cut off") && !told.contains("every request is answered"), "{told}");
    drop((replies, channel));
}

/// A server that builds everything anew ends all the same, and what it had is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_keeps_no_server() {
    let world = World::new();
    let rows = store::random_rows(40_000, ROWS_DIM, 11);
    let new = viscache::cache::NewCache {
        dim: ROWS_DIM,
        rows: viscache::store::RowType::F16,
        origin: viscache::types::Origin::of("import"),
        model: None,
    };
    store::add(&world.store, "large", &new, rows, None);
    let settings = [("VISCACHE_STOP__DRAIN_SECONDS", "1"), ("VISCACHE_COMPACT__REBUILD_BELOW", "1000000")];
    let (server, log) = start(&world, "", &["--writable"], &settings);
    let mut admin = AdminServiceClient::new(connect(&server).await);
    let compacting =
        tokio::spawn(async move { admin.compact(CompactRequest { cache: "large".into() }).await });
    let mut client = CacheServiceClient::new(connect(&server).await);
    loop {
        let described =
            client.describe(DescribeRequest { cache: "large".into() }).await.unwrap().into_inner();
        if described.delta.unwrap().compacting {
            break;
        }
        assert!(!compacting.is_finished(), "it was too quick to be seen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let begun = Instant::now();
    signal(&server, "TERM");
    let code = wait(server);
    let told = fs::read_to_string(&log).unwrap();
    assert_eq!(code, Some(0), "{told}");
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    _ = compacting.await;
    let store = Store::open(&world.store, Access::Read).unwrap();
    let large = store.cache(&"large".parse().unwrap()).unwrap();
    assert_eq!(store.count_items(large.id).unwrap().0, 40_000);
}

fn signal(server: &Served, name: &str) {
    let kill = format!("kill -s {name} {}", server.child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// Waits for its end, for a minute at most.
fn wait(mut server: Served) -> Option<i32> {
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        if let Some(status) = server.child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("it does not end");
}
