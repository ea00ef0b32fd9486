//! What becomes of a server when four times as many callers come as it needs to be busy?
//!
//! A server in a process of its own, over rows of 128 components, and callers in this one, all on the same processors; every caller asks for
//! one Enhance of a vector after another, and who is refused comes back when the server says. Told are answers a second and their
//! 99th percentile, with 32 callers and with four and 32 times as many, in turn; and how long a refusal takes.
//!
//! ```text
//! cargo bench --profile dev --bench overload      VISCACHE_BENCH_SECONDS (10) for each, VISCACHE_BENCH_ROUNDS (3),
//!     VISCACHE_BENCH_EXACT (1: every row is scanned, so that the server's work is far more than the callers')
//! ```

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{clustered, machine, median, setting};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;
use viscache::serve::encode_tensor;
use viscache::serve::proto::cache_service_client::CacheServiceClient;
use viscache::serve::proto::{Dtype, EnhanceRequest, SearchParams};
use viscache::types::CacheName;

const DIM: usize = 128;
/// Callers that keep the server busy, and those of the crowds.
const CALLERS: [usize; 3] = [32, 128, 1024];
/// Callers that share a connection.
const TOGETHER: usize = 32;

/// What came of so many callers.
#[derive(Default)]
struct Told {
    answered: Vec<f64>,
    refused: Vec<f64>,
    failed: usize,
}

fn main() {
    machine();
    let kept = tempfile::tempdir().unwrap();
    let name: CacheName = "bench".parse().unwrap();
    common::make_cache(kept.path(), &name, 20_000, DIM, &Default::default());
    let mut server = Command::new(env!("CARGO_BIN_EXE_viscache"))
        .args(["--model", "none", "--store"])
        .arg(kept.path())
        .args(["serve", "--listen", "127.0.0.1:0"])
        .env("VISCACHE_RECALL_SAMPLING__RATE", "0")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").unwrap().to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let seconds = setting("VISCACHE_BENCH_SECONDS", 10) as f64;
    runtime.block_on(ask(&address, CALLERS[0], 2.0));
    let mut all: Vec<Vec<Told>> = CALLERS.iter().map(|_| Vec::new()).collect();
    for _ in 0..setting("VISCACHE_BENCH_ROUNDS", 3) {
        for (at, callers) in CALLERS.into_iter().enumerate() {
            all[at].push(runtime.block_on(ask(&address, callers, seconds)));
        }
    }
    let figures = |told: &[Told]| {
        let rate = median(told.iter().map(|one| one.answered.len() as f64 / seconds).collect());
        let slow = median(told.iter().map(|one| high(&one.answered)).collect());
        (rate, slow)
    };
    let (usual_rate, usual_slow) = figures(&all[0]);
    for (told, callers) in all.iter().zip(CALLERS) {
        let (rate, slow) = figures(told);
        let refused: usize = told.iter().map(|one| one.refused.len()).sum();
        let failed: usize = told.iter().map(|one| one.failed).sum();
        let refusal = median(told.iter().map(|one| high(&one.refused)).collect());
        println!(
            "{callers:>5} callers: {rate:>6.0} answers a second ({:.2} of usual), p99 {:>6.2} ms ({:.2} x); {refused} refused, \
             p99 {:.2} ms; {failed} failed",
            rate / usual_rate,
            slow * 1e3,
            slow / usual_slow,
            refusal * 1e3,
        );
    }
    server.kill().unwrap();
    server.wait().unwrap();
}

/// The 99th percentile.
fn high(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(0.0)
}

async fn ask(address: &str, callers: usize, seconds: f64) -> Told {
    let rows = clustered(3, 256, DIM);
    let search = SearchParams { exact: setting("VISCACHE_BENCH_EXACT", 0) > 0, ..Default::default() };
    let requests: Vec<EnhanceRequest> = rows
        .chunks_exact(DIM)
        .map(|row| EnhanceRequest {
            vectors: Some(encode_tensor(row, DIM, Dtype::F32)),
            search: Some(search.clone()),
            ..Default::default()
        })
        .collect();
    let (requests, stop) = (Arc::new(requests), Arc::new(AtomicBool::new(false)));
    let mut channels: Vec<Channel> = Vec::new();
    for _ in 0..callers.div_ceil(TOGETHER) {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        channels.push(endpoint.connect().await.unwrap());
    }
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (requests, stop) = (requests.clone(), stop.clone());
            let mut client = CacheServiceClient::new(channels[caller / TOGETHER].clone());
            tokio::spawn(async move {
                let (mut told, mut at) = (Told::default(), caller * 7);
                while !stop.load(Ordering::Relaxed) {
                    at += 1;
                    let begun = Instant::now();
                    match client.enhance(requests[at % requests.len()].clone()).await {
                        Ok(_) => told.answered.push(begun.elapsed().as_secs_f64()),
                        Err(status) if status.code() == Code::ResourceExhausted => {
                            told.refused.push(begun.elapsed().as_secs_f64());
                            let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
                            tokio::time::sleep(delay.unwrap_or_default()).await;
                        }
                        Err(_) => told.failed += 1,
                    }
                }
                told
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Told::default();
    for task in tasks {
        let told = task.await.unwrap();
        all.answered.extend(told.answered);
        all.refused.extend(told.refused);
        all.failed += told.failed;
    }
    all
}
