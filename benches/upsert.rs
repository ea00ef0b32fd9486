//! How many items a second does a served cache take, durably, and what does that cost its searches?
//!
//! Over gRPC, against a server in this process: searches alone, upserts in batches of 256 alone (as fast as they go), then
//! both: upserts at the goal's pace while clients search. The ratio is of the searches' throughput with and without upserts.
//! The server compacts on its own if the settings say so; here it does not, so that the delta only grows.
//!
//! ```text
//! cargo bench --profile dev --bench upsert      VISCACHE_BENCH_ITEMS (20000), VISCACHE_BENCH_SECONDS (4)
//! ```

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{clustered, machine, setting, verdict};
use tonic::transport::{Channel, Endpoint};
use viscache::cache::{Cache, CompactOptions, LoadOptions, RowsMode};
use viscache::flow::{App, Limits};
use viscache::serve::proto::admin_service_client::AdminServiceClient;
use viscache::serve::proto::cache_service_client::CacheServiceClient;
use viscache::serve::proto::{self, Dtype};
use viscache::serve::{self, encode_tensor};
use viscache::store::{Access, Store};
use viscache::types::CacheName;

const DIM: usize = 1024;
const BATCH: usize = 256;
const CLIENTS: usize = 2;
/// Items a second that the goal asks for.
const GOAL: f64 = 5000.0;

fn main() {
    machine();
    let items = setting("VISCACHE_BENCH_ITEMS", 20_000);
    let seconds = Duration::from_secs(setting("VISCACHE_BENCH_SECONDS", 4) as u64);
    let queries_per_call = setting("VISCACHE_BENCH_QUERIES", 1);
    let folder = tempfile::tempdir().unwrap();
    let name: CacheName = "bench".parse().unwrap();
    common::make_cache(folder.path(), &name, items, DIM, &Default::default());
    let store = Arc::new(Store::open(folder.path(), Access::Write).unwrap());
    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: 16 << 30 };
    let cache = Arc::new(Cache::open(&store, &name, None, options).unwrap());
    let mut app = App::new(store, [(name, Ok(cache.clone()))].into(), None, None, Limits::default());
    app.compact = CompactOptions { automatic: false, ..CompactOptions::default() };
    let app = Arc::new(app);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (address, server) = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (address, tokio::spawn(serve::run(listener, app, async move { drop(stopped.await) })))
    });
    let endpoint = Endpoint::new(format!("http://{address}")).unwrap();
    let rows = Arc::new(clustered(5, 64 * BATCH, DIM));
    let queries = Arc::new(clustered(99, 1024, DIM));
    println!("{items} × {DIM} rows in memory; {CLIENTS} clients search, {queries_per_call} queries a call");

    let search = |endpoint: &Endpoint, writer: Option<f64>| {
        let done = Arc::new(AtomicBool::new(false));
        let found = Arc::new(AtomicU64::new(0));
        let mut clients = Vec::new();
        for client in 0..CLIENTS {
            let (endpoint, done, found) = (endpoint.clone(), done.clone(), found.clone());
            let queries = queries.clone();
            clients.push(runtime.spawn(async move {
                let mut service = CacheServiceClient::new(endpoint.connect().await.unwrap());
                let mut at = client * 131;
                while !done.load(Ordering::Relaxed) {
                    let start = at % (1024 - queries_per_call);
                    let values = &queries[start * DIM..][..queries_per_call * DIM];
                    at += queries_per_call;
                    let request = proto::EnhanceRequest {
                        vectors: Some(encode_tensor(values, DIM, Dtype::F32)),
                        ..Default::default()
                    };
                    let reply = service.enhance(request).await.unwrap().into_inner();
                    assert!(reply.results.iter().all(|r| r.status.as_ref().is_some_and(|s| s.code == 0)));
                    found.fetch_add(queries_per_call as u64, Ordering::Relaxed);
                }
            }));
        }
        let start = Instant::now();
        let upserted = match writer {
            Some(rate) => runtime.block_on(upserts(endpoint.clone(), rows.clone(), seconds, rate)),
            None => {
                std::thread::sleep(seconds);
                0.0
            }
        };
        let took = start.elapsed().as_secs_f64();
        let rate = found.load(Ordering::Relaxed) as f64 / took;
        done.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| runtime.block_on(client).unwrap());
        (rate, upserted)
    };

    search(&endpoint, None);
    let (alone, _) = search(&endpoint, None);
    println!("searches alone: {alone:.0}/s");
    let (beside, upserted) = search(&endpoint, Some(GOAL * 1.04));
    let delta = cache.snapshot().delta();
    println!(
        "searches beside upserts: {beside:.0}/s, {upserted:.0} items/s; {} in the delta at the end",
        delta.items
    );
    let share = beside / alone;
    println!(
        "RATIO of searches: {:.0} % at {upserted:.0} items/s  (goal ≥ 70 % at {GOAL:.0}: {})",
        share * 100.0,
        verdict(share >= 0.7 && upserted >= GOAL)
    );
    let (after, _) = search(&endpoint, None);
    println!("searches with that delta, no upserts: {after:.0}/s ({:.0} %)", 100.0 * after / alone);
    let full = runtime.block_on(upserts(endpoint.clone(), rows.clone(), seconds / 4, f64::INFINITY));
    println!(
        "upserts alone, one client, batches of {BATCH}: {full:.0} items/s (goal ≥ {GOAL:.0}: {})",
        verdict(full >= GOAL)
    );
    let before = cache.snapshot().delta().items;
    let done = cache.compact(&CompactOptions::default()).unwrap();
    let seconds = done.took.as_secs_f64();
    println!("compaction of {} items, {before} of them from the delta: {seconds:.1} s", done.items);
    let (compacted, _) = search(&endpoint, None);
    println!("searches after it: {compacted:.0}/s ({:.0} %)", 100.0 * compacted / alone);
    drop(stop);
    runtime.block_on(server).unwrap().unwrap();
}

/// Upserts batches for a while, at a pace; items acknowledged a second.
async fn upserts(endpoint: Endpoint, rows: Arc<Vec<f32>>, time: Duration, rate: f64) -> f64 {
    let mut admin: AdminServiceClient<Channel> = AdminServiceClient::new(endpoint.connect().await.unwrap());
    let (start, mut sent) = (Instant::now(), 0usize);
    while start.elapsed() < time {
        let at = sent % (rows.len() / DIM);
        let request = proto::UpsertRequest {
            vectors: Some(encode_tensor(&rows[at * DIM..][..BATCH * DIM], DIM, Dtype::F32)),
            ..Default::default()
        };
        let reply = admin.upsert(request).await.unwrap().into_inner();
        assert!(reply.results.iter().all(|r| r.status.as_ref().is_some_and(|s| s.code == 0)));
        sent += BATCH;
        let due = start + Duration::from_secs_f64(if rate.is_finite() { sent as f64 / rate } else { 0.0 });
        tokio::time::sleep_until(due.into()).await;
    }
    sent as f64 / start.elapsed().as_secs_f64()
}
