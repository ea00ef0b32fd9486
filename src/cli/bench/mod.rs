//! `bench`: how good and how fast a cache answers here, on the user's own queries.
//!
//! | file | its one idea |
//! |---|---|
//! | `search.rs` | recall and speed of the search in this process, at several beam widths |
//! | `enhance.rs` | a server under load: as many callers as asked for, each asking again when it is answered |
//!
//! Left out: an open loop, which sends at a fixed rate however slow the answers are. A closed loop's percentiles flatter a
//! server that stalls, because its callers stall with it; what it says truly is the throughput at a given concurrency.

mod enhance;
mod search;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use viscache::index::{SearchParams, TargetRecall};
use viscache::media::npy;
use viscache::types::{Embedding, QueryKind};

use super::flags::{Given, StoreFlags};
use super::media::read;
use super::{SearchOptions, Target};
use crate::config::Config;

/// Longest measurement: every duration is kept until the percentiles are taken.
const MAX_SECONDS: f64 = 3600.0;

#[derive(Subcommand)]
pub enum Bench {
    /// Recall and speed of the search in this process: a line for every width of the beam.
    Search(SearchBench),
    /// Load on a server (or on the service in this process): throughput, percentiles, errors.
    Enhance(EnhanceBench),
}

#[derive(Args)]
pub struct SearchBench {
    /// Name of the cache; without it, the store's only one.
    #[arg(long, value_name = "NAME", help_heading = "Store")]
    cache: Option<String>,
    #[command(flatten)]
    store: StoreFlags,
    /// Queries, a row each.
    #[arg(long, value_name = "FILE.npy")]
    vectors: PathBuf,
    /// Ids of the nearest items of every query, best first, at least `--top-k` a row; without it, an exact search says.
    #[arg(long, value_name = "FILE.npy")]
    truth: Option<PathBuf>,
    /// Hits per query.
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = positive)]
    top_k: usize,
    /// Widths of the beam; each is raised to `--top-k` and to `--rescore`. Without these and without `--target-recall`, 16, 32,
    /// 64, 128, 256.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = ef_search)]
    ef_search: Vec<usize>,
    /// Recalls to reach with the widths that were calibrated when the generation was built: what a request with `target_recall`
    /// gets.
    #[arg(long, value_name = "R,R,…", value_delimiter = ',', value_parser = target_recall)]
    target_recall: Vec<TargetRecall>,
    /// Kind of the queries, for `--target-recall`: `text`, `audio`, or as `--queries` called them when the index was built; without
    /// it, what suffices for every kind.
    #[arg(long, value_name = "KIND", value_parser = query_kind, requires = "target_recall")]
    query_kind: Option<QueryKind>,
    /// Candidates scored again on the stored rows; without it, the configured number, but not more than the beam is wide.
    #[arg(long, value_name = "N", value_parser = rescore)]
    rescore: Option<usize>,
    /// Threads that search, each for its share of the queries; without it, one.
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// Time measured for every width; at least, every query is asked once.
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Print one JSON object for every width.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct EnhanceBench {
    #[command(flatten)]
    target: Target,
    /// Queries, a row each; without it, random ones.
    #[arg(long, value_name = "FILE.npy")]
    vectors: Option<PathBuf>,
    /// Seed of the random queries.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Requests under way at any time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    concurrency: usize,
    /// Queries in a request.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    batch: usize,
    /// Seconds in which requests are begun.
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = seconds)]
    duration: f64,
    /// Neighbours to blend.
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Multiplies the scores before the softmax.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Share of the prototype, 0 to 1.
    #[arg(long, value_name = "W")]
    weight: Option<f32>,
    #[command(flatten)]
    search: SearchOptions,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl Bench {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        match self {
            Bench::Search(SearchBench { cache, store, .. }) => {
                Given { store: Some(store), caches: cache.as_slice(), ..Given::default() }
            }
            Bench::Enhance(args) => args.target.given(),
        }
    }

    /// Takes what stood before the command, where a flag of this name makes a setting.
    pub(super) fn take_threads(&mut self, threads: Option<usize>) {
        if let Bench::Search(args) = self {
            args.threads = args.threads.or(threads);
        }
    }
}

pub async fn run(config: &Config, bench: Bench) -> anyhow::Result<ExitCode> {
    match bench {
        Bench::Search(args) => search::run(config, args),
        Bench::Enhance(args) => enhance::run(config, args).await,
    }
}

/// The rows of `--vectors`, as unit queries for the cache that has `dim` components.
fn queries(path: &Path, cache: &str, dim: usize) -> anyhow::Result<Vec<Embedding>> {
    let (name, bytes) = (format!("--vectors {}", path.display()), read(path)?);
    let matrix = npy::read(&bytes).map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
    if matrix.dim != dim {
        bail!("{name} has rows of {} components, cache `{cache}` has {dim}", matrix.dim);
    }
    let row = |(i, row): (usize, &[f32])| {
        let unit = Embedding::new(row.to_vec()).and_then(|query| query.unit());
        unit.with_context(|| format!("{name}, row {i}"))
    };
    matrix.values.chunks_exact(dim).enumerate().map(row).collect()
}

/// The value that `share` of the values do not exceed (nearest rank); none when there are none.
///
/// * `sorted`: ascending. `share`: above 0, at most 1.
fn percentile(sorted: &[f32], share: f64) -> Option<f32> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

fn positive(word: &str) -> Result<usize, String> {
    match word.parse() {
        Ok(0) => Err("it must be at least 1".into()),
        Ok(number) => Ok(number),
        Err(_) => Err("it is not a whole number".into()),
    }
}

fn ef_search(word: &str) -> Result<usize, String> {
    let ef_search = positive(word)?;
    SearchParams { ef_search, ..Default::default() }.validate().map_err(|e| e.to_string())?;
    Ok(ef_search)
}

fn target_recall(word: &str) -> Result<TargetRecall, String> {
    let recall: f64 = word.parse().map_err(|_| "it is not a number".to_owned())?;
    TargetRecall::new(recall).map_err(|e| e.to_string())
}

fn query_kind(word: &str) -> Result<QueryKind, String> {
    QueryKind::new(word).map_err(|e| e.to_string())
}

fn rescore(word: &str) -> Result<usize, String> {
    let rescore = positive(word)?;
    SearchParams { rescore: Some(rescore), ..Default::default() }.validate().map_err(|e| e.to_string())?;
    Ok(rescore)
}

fn seconds(word: &str) -> Result<f64, String> {
    let seconds = word.parse().ok().filter(|s| *s > 0.0 && *s <= MAX_SECONDS);
    seconds.ok_or_else(|| format!("it is not a number above 0 and at most {MAX_SECONDS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred: Vec<f32> = (1..=100u8).map(f32::from).collect();
        for (share, expected) in [(0.001, 1.0), (0.5, 50.0), (0.99, 99.0), (0.991, 100.0), (1.0, 100.0)] {
            assert_eq!(percentile(&hundred, share), Some(expected), "{share}");
        }
        assert_eq!(percentile(&[7.0], 0.5), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
