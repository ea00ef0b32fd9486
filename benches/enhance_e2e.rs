//! What does gRPC add to an Enhance of ready embeddings?
//!
//! The same queries go through `flow::enhance` in this process and through a server on a loopback port, in turn: one
//! query at a time (difference of the medians), then batches of 64 from two clients (ratio of the throughputs).
//!
//! ```text
//! cargo bench --profile dev --bench enhance_e2e
//! ```

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::sync::Arc;
use std::time::Instant;

use common::{clustered, cores, machine, median, quantile, setting, verdict};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use viscache::blend::BlendParams;
use viscache::cache::{Cache, LoadOptions, RowsMode};
use viscache::flow::{self, App, Call, Content, EnhanceRequest, Limits, Part, Query, Variant};
use viscache::index::SearchParams;
use viscache::serve::proto::cache_service_client::CacheServiceClient;
use viscache::serve::{self, decode_tensor, encode_tensor, proto};
use viscache::store::{Access, Store};
use viscache::types::{CacheName, Embedding};

const DIM: usize = 1024;
const ROUNDS: usize = 7;
const UNARY_CALLS: usize = 600;
const BATCH: usize = 64;
const BATCHES: usize = 60;

fn main() {
    // SAFETY: this is the first statement of the process.
    unsafe { viscache::models::device::settle_process() };
    machine();
    let items = setting("VISCACHE_BENCH_ITEMS", 20_000);
    let folder = tempfile::tempdir().unwrap();
    let name: CacheName = "bench".parse().unwrap();
    common::make_cache(folder.path(), &name, items, DIM, &Default::default());
    let store = Arc::new(Store::open(folder.path(), Access::Read).unwrap());
    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: 8 << 30 };
    let cache = Arc::new(Cache::open(&store, &name, None, options).unwrap());
    let app = App::new(store, [(name, Ok(cache))].into(), None, None, Limits::default());
    let app = Arc::new(app);
    let queries: Vec<Vec<f32>> = clustered(99, 1024, DIM).chunks_exact(DIM).map(<[f32]>::to_vec).collect();
    println!("{items} × {DIM} rows in memory, top {}; no neighbours in the reply", app.default_blend.top_k);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (address, server) = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = async move { drop(stopped.await) };
        (address, tokio::spawn(serve::run(listener, app.clone(), shutdown)))
    });
    let endpoint = format!("http://{address}");
    // The client is another program in life: it has a runtime of its own, on this thread.
    let alone = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut client = alone.block_on(CacheServiceClient::connect(endpoint.clone())).unwrap();
    let channel = tonic::transport::Endpoint::new(endpoint.clone()).unwrap();
    let mut health = HealthClient::new(alone.block_on(channel.connect()).unwrap());
    agree(&app, &alone, &mut client, &queries[0]);

    let (mut direct, mut remote) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
    let (mut batch_direct, mut batch_remote, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    let mut busy = (0.0, 0.0);
    for _ in 0..ROUNDS {
        for (quantiles, mut times) in [
            (&mut direct, unary_direct(&app, &queries)),
            (&mut remote, unary_remote(&alone, &mut client, &queries)),
        ] {
            quantiles[0].push(quantile(&mut times, 0.5));
            quantiles[1].push(quantile(&mut times, 0.99));
        }
        empty.push(quantile(&mut empty_calls(&alone, &mut health), 0.5));
        let cpu = common::process_cpu(false).unwrap_or(0.0);
        batch_direct.push(batches_direct(&app, &queries));
        let between = common::process_cpu(false).unwrap_or(0.0);
        batch_remote.push(batches_remote(&runtime, &endpoint, &queries));
        busy.0 += between - cpu;
        busy.1 += common::process_cpu(false).unwrap_or(0.0) - between;
    }
    let ([d50, d99], [r50, r99]) = (direct.map(median), remote.map(median));
    println!("one query, ms: in process p50 {d50:.3} p99 {d99:.3}; over gRPC p50 {r50:.3} p99 {r99:.3}");
    println!("  a health check, which does nothing, ms: p50 {:.3}", median(empty));
    let added = r50 - d50;
    println!("DIFFERENCE of p50: {added:.3} ms  (goal ≤ 0.25 ms: {})", verdict(added <= 0.25));
    let share: Vec<f64> = batch_direct.iter().zip(&batch_remote).map(|(d, r)| r / d).collect();
    let (direct, remote, share) = (median(batch_direct), median(batch_remote), median(share));
    println!("batches of {BATCH}, queries/s: in process {direct:.0}, over gRPC {remote:.0}");
    let per_query = 1e6 / (ROUNDS * BATCHES * BATCH) as f64;
    println!(
        "  processor time a query, µs: in process {:.0}, server and clients {:.0}",
        busy.0 * per_query,
        busy.1 * per_query
    );
    println!("RATIO of throughput: {:.0} %  (goal ≥ 70 %: {})", share * 100.0, verdict(share >= 0.7));
    drop(stop);
    runtime.block_on(server).unwrap().unwrap();
}

fn flow_request(queries: &[Vec<f32>]) -> EnhanceRequest {
    let query = |row: &Vec<f32>| {
        let embedding = Embedding::new(row.clone()).unwrap();
        Ok(Query::Parts(vec![Part { content: Content::Embedding(embedding), weight: 1.0 }]))
    };
    EnhanceRequest {
        cache: String::new(),
        queries: queries.iter().map(query).collect(),
        blend: BlendParams::default(),
        search: SearchParams::default(),
        filter: None,
        aim: Default::default(),
        variant: Variant::Condition,
        expected_weights: String::new(),
    }
}

fn message(queries: &[Vec<f32>]) -> proto::EnhanceRequest {
    let vectors = Some(encode_tensor(&queries.concat(), DIM, proto::Dtype::F32));
    proto::EnhanceRequest { vectors, ..Default::default() }
}

/// Both ways give the same numbers, or the comparison means nothing.
fn agree(
    app: &App,
    runtime: &tokio::runtime::Runtime,
    client: &mut CacheServiceClient<tonic::transport::Channel>,
    query: &[f32],
) {
    let query = [query.to_vec()];
    let direct =
        flow::enhance(app, flow_request(&query), &Call::default(), |_, enhanced| Ok(enhanced)).unwrap();
    let reply = runtime.block_on(client.enhance(message(&query))).unwrap().into_inner();
    let remote = decode_tensor(&reply.vectors.unwrap()).unwrap();
    assert_eq!(direct.results[0].as_ref().unwrap().embedding.as_slice(), remote.values);
}

fn unary_direct(app: &App, queries: &[Vec<f32>]) -> Vec<f64> {
    let calls = queries.iter().cycle().take(UNARY_CALLS);
    calls
        .map(|query| {
            let request = flow_request(std::slice::from_ref(query));
            let start = Instant::now();
            std::hint::black_box(
                flow::enhance(app, request, &Call::default(), |_, enhanced| Ok(enhanced)).unwrap(),
            );
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect()
}

fn unary_remote(
    runtime: &tokio::runtime::Runtime,
    client: &mut CacheServiceClient<tonic::transport::Channel>,
    queries: &[Vec<f32>],
) -> Vec<f64> {
    let mut client = client.clone();
    let messages: Vec<_> =
        queries.iter().cycle().take(UNARY_CALLS).map(|query| message(std::slice::from_ref(query))).collect();
    runtime.block_on(async move {
        let mut times = Vec::with_capacity(messages.len());
        for message in messages {
            let start = Instant::now();
            std::hint::black_box(client.enhance(message).await.unwrap());
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times
    })
}

/// What gRPC itself costs.
fn empty_calls(
    runtime: &tokio::runtime::Runtime,
    client: &mut HealthClient<tonic::transport::Channel>,
) -> Vec<f64> {
    runtime.block_on(async {
        let mut times = Vec::with_capacity(UNARY_CALLS);
        for _ in 0..UNARY_CALLS {
            let start = Instant::now();
            std::hint::black_box(client.check(HealthCheckRequest::default()).await.unwrap());
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times
    })
}

/// Queries a second, from as many callers as there are clients below.
fn batches_direct(app: &App, queries: &[Vec<f32>]) -> f64 {
    let callers = cores();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for caller in 0..callers {
            scope.spawn(move || {
                for batch in mine(queries, caller, callers) {
                    let done =
                        flow::enhance(app, flow_request(batch), &Call::default(), |_, enhanced| Ok(enhanced))
                            .unwrap();
                    std::hint::black_box(done);
                }
            });
        }
    });
    (BATCHES * BATCH) as f64 / start.elapsed().as_secs_f64()
}

/// The same over connections of their own.
fn batches_remote(runtime: &tokio::runtime::Runtime, endpoint: &str, queries: &[Vec<f32>]) -> f64 {
    let clients = cores();
    let messages: Vec<Vec<_>> =
        (0..clients).map(|client| mine(queries, client, clients).map(message).collect()).collect();
    runtime.block_on(async {
        let mut connected = Vec::new();
        for messages in messages {
            connected.push((CacheServiceClient::connect(endpoint.to_owned()).await.unwrap(), messages));
        }
        let start = Instant::now();
        let mut running = tokio::task::JoinSet::new();
        for (mut client, messages) in connected {
            running.spawn(async move {
                for message in messages {
                    std::hint::black_box(client.enhance(message).await.unwrap());
                }
            });
        }
        running.join_all().await;
        (BATCHES * BATCH) as f64 / start.elapsed().as_secs_f64()
    })
}

/// Every caller's share of the batches.
fn mine(queries: &[Vec<f32>], caller: usize, callers: usize) -> impl Iterator<Item = &[Vec<f32>]> {
    queries.chunks_exact(BATCH).cycle().take(BATCHES).skip(caller).step_by(callers)
}
