//! A server under load.
//!
//! ```text
//! caller 0 ─┐                          each caller: ask ─► answer ─► ask …   until the time is over,
//! caller 1 ─┼─ connection 0 ─► server                                        then what has begun is answered
//! …         ┘
//! ```
//!
//! Callers share connections as those of one client program do: gRPC runs many requests on one, and a connection for each
//! would measure something that no client does.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tonic::Code;
use tonic::transport::Channel;
use viscache::serve::proto::{self, Dtype};
use viscache::serve::{code_name, encode_tensor};
use viscache::types::Embedding;

use super::{EnhanceBench, percentile, queries};
use crate::cli::{FAILED, SOME_BAD, ask, show, target};
use crate::config::Config;

/// Callers that share a connection. The service in this process has only one.
const CALLERS_PER_CONNECTION: usize = 16;
/// Random queries, unless a batch is larger.
const RANDOM_QUERIES: usize = 1024;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a caller waits after an error: a server that is gone is not asked a million times.
const PAUSE: Duration = Duration::from_millis(20);

/// What one caller, or all of them, met with.
#[derive(Default)]
struct Tally {
    /// Milliseconds of every request that was answered.
    durations: Vec<f32>,
    /// Queries that were answered.
    queries: u64,
    /// Requests that failed, by code.
    failed: BTreeMap<&'static str, u64>,
    /// Queries that failed in a request that did not, by code.
    bad: BTreeMap<&'static str, u64>,
}

pub async fn run(config: &Config, args: EnhanceBench) -> anyhow::Result<ExitCode> {
    let cache = args.target.cache.clone().unwrap_or_default();
    let first = target::open(config, &args.target, target::STORED).await?;
    let request = proto::DescribeRequest { cache: cache.clone() };
    let described = target::cache(first.clone()).describe(request).await.map_err(show::refused)?.into_inner();
    let limits = described.limits.context("the server does not say its limits")?;
    if args.batch > limits.max_batch as usize {
        bail!("--batch is {}, the server takes at most {} queries a request", args.batch, limits.max_batch);
    }
    if args.concurrency > limits.max_concurrent_requests as usize {
        let most = limits.max_concurrent_requests;
        eprintln!(
            "--concurrency is {}, the server takes {most} at a time and refuses more",
            args.concurrency
        );
    }
    let source = described.source.unwrap_or_default();
    let requests = Arc::new(requests(&args, &source.cache, described.dim as usize)?);

    let mut channels = vec![first];
    if args.target.connect.is_some() {
        while channels.len() < args.concurrency.div_ceil(CALLERS_PER_CONNECTION) {
            channels.push(target::open(config, &args.target, target::STORED).await?);
        }
    }
    let start = Instant::now();
    let until = start + Duration::from_secs_f64(args.duration);
    let caller = |caller: usize| {
        let channel = channels[caller % channels.len()].clone();
        tokio::spawn(call(channel, requests.clone(), caller, args.concurrency, until))
    };
    let callers: Vec<_> = (0..args.concurrency).map(caller).collect();
    let mut tally = Tally::default();
    for caller in callers {
        tally.take(caller.await.context("a caller crashed")?);
    }
    let wall = start.elapsed().as_secs_f64();
    tally.durations.sort_unstable_by(f32::total_cmp);
    print(&args, &source, channels.len(), &tally, wall)?;
    Ok(match (tally.queries, tally.failed.is_empty() && tally.bad.is_empty()) {
        (0, _) => ExitCode::from(FAILED),
        (_, true) => ExitCode::SUCCESS,
        (_, false) => ExitCode::from(SOME_BAD),
    })
}

/// Asks again and again; of the requests, takes every `step`th from `first` on, round and round.
async fn call(
    channel: Channel,
    requests: Arc<Vec<proto::EnhanceRequest>>,
    first: usize,
    step: usize,
    until: Instant,
) -> Tally {
    let (mut client, mut tally) = (target::cache(channel), Tally::default());
    let mut at = first;
    loop {
        let mut request = tonic::Request::new(requests[at % requests.len()].clone());
        request.set_timeout(PATIENCE);
        let before = Instant::now();
        match client.enhance(request).await {
            Ok(reply) => {
                tally.durations.push(before.elapsed().as_secs_f32() * 1e3);
                for result in &reply.get_ref().results {
                    match result.status.as_ref().map_or(0, |status| status.code) {
                        0 => tally.queries += 1,
                        code => *tally.bad.entry(code_name(Code::from_i32(code))).or_default() += 1,
                    }
                }
            }
            Err(status) => {
                *tally.failed.entry(code_name(status.code())).or_default() += 1;
                tokio::time::sleep(PAUSE).await;
            }
        }
        if Instant::now() >= until {
            return tally;
        }
        at += step;
    }
}

impl Tally {
    fn take(&mut self, other: Tally) {
        self.durations.extend(other.durations);
        self.queries += other.queries;
        for (mine, theirs) in [(&mut self.failed, other.failed), (&mut self.bad, other.bad)] {
            theirs.into_iter().for_each(|(code, count)| *mine.entry(code).or_default() += count);
        }
    }
}

/// Requests of `--batch` queries each that together ask every query, some twice where the last batch is not full.
fn requests(args: &EnhanceBench, cache: &str, dim: usize) -> anyhow::Result<Vec<proto::EnhanceRequest>> {
    let rows = match &args.vectors {
        Some(path) => queries(path, cache, dim)?,
        None => random(RANDOM_QUERIES.max(args.batch), dim, args.seed)?,
    };
    let request = |batch: usize| {
        let rows = rows.iter().cycle().skip(batch * args.batch % rows.len()).take(args.batch);
        let values: Vec<f32> = rows.flat_map(|row| row.as_slice()).copied().collect();
        proto::EnhanceRequest {
            cache: cache.to_owned(),
            vectors: Some(encode_tensor(&values, dim, Dtype::F32)),
            blend: Some(proto::BlendParams {
                top_k: args.top_k,
                temperature: args.temperature,
                weight: args.weight,
            }),
            search: Some(ask::search_params(&args.search)),
            ..Default::default()
        }
    };
    Ok((0..rows.len().div_ceil(args.batch)).map(request).collect())
}

/// Unit vectors.
fn random(count: usize, dim: usize, seed: u64) -> anyhow::Result<Vec<Embedding>> {
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(seed);
    let mut row = || {
        let row = (0..dim).map(|_| random.random_range(-1.0f32..1.0)).collect();
        Ok(Embedding::new(row)?.unit()?)
    };
    (0..count).map(|_| row()).collect()
}

fn print(
    args: &EnhanceBench,
    source: &proto::Source,
    connections: usize,
    tally: &Tally,
    wall: f64,
) -> anyhow::Result<()> {
    let answered = tally.durations.len();
    let failed: u64 = tally.failed.values().sum();
    let rates = [answered as f64 / wall, tally.queries as f64 / wall];
    let times = [0.5, 0.9, 0.99, 1.0].map(|share| percentile(&tally.durations, share));
    if args.json {
        return show::print_line(&json!({
            "cache": source.cache,
            "generation": source.generation,
            "concurrency": args.concurrency,
            "connections": connections,
            "batch": args.batch,
            "seconds": wall,
            "requests": answered as u64 + failed,
            "failed_requests": failed,
            "requests_per_second": rates[0],
            "queries_per_second": rates[1],
            "p50_ms": times[0],
            "p90_ms": times[1],
            "p99_ms": times[2],
            "max_ms": times[3],
            "errors": tally.failed,
            "query_errors": tally.bad,
        }));
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "cache {} generation {}", source.cache, source.generation)?;
    writeln!(
        out,
        "callers {}, connections {connections}, queries a request {}, seconds {wall:.1}",
        args.concurrency, args.batch
    )?;
    let heads = ["requests/s", "queries/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "failed"];
    writeln!(out, "{}", heads.map(|head| format!("{head:>10}")).join(" "))?;
    let rates = rates.map(|rate| format!("{rate:>10.0}"));
    let times = times.map(|time| time.map_or(format!("{:>10}", "-"), |ms| format!("{ms:>10.2}")));
    writeln!(out, "{} {} {failed:>10}", rates.join(" "), times.join(" "))?;
    for (what, counts) in [("requests", &tally.failed), ("queries", &tally.bad)] {
        for (code, count) in counts {
            writeln!(out, "{count} {what} failed: {code}")?;
        }
    }
    Ok(())
}
