//! Recall and speed of the search, without gRPC.
//!
//! ```text
//! for every ef     pass 1: every query once ─► recall, nodes, rows        (not timed; warms what is cold)
//!                  then each thread, round its share of the queries ─► durations, until the time is over
//! ```
//!
//! A recall that is asked for is searched as a request with `target_recall` is: with the width that was calibrated for it.
//!
//! A search gives the same hits and does the same work every time, so one pass says both.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;
use viscache::cache::Snapshot;
use viscache::index::{Cost, SearchParams, Searcher, TargetRecall, exact};
use viscache::media::npy;
use viscache::types::{Embedding, QueryKind};

use super::{SearchBench, percentile, queries};
use crate::app;
use crate::cli::{media::read, show};
use crate::config::Config;

/// Largest `--top-k`, so that a mistyped one does not take all memory.
const MAX_TOP_K: usize = SearchParams::MAX_EF_SEARCH;

/// Widths that nobody asked for.
const WIDTHS: &[usize] = &[16, 32, 64, 128, 256];

/// What one width of the beam gives.
struct Point {
    recall: f64,
    /// Sums over all queries of one pass.
    cost: Cost,
    /// µs of every search, ascending.
    durations: Vec<f32>,
    /// From the first search to the end of the last.
    wall: Duration,
}

pub fn run(config: &Config, args: SearchBench) -> anyhow::Result<ExitCode> {
    // The setting of the same name may be 0, and is taken where it stands before the command.
    let threads = args.threads.unwrap_or(1);
    if threads == 0 {
        bail!("--threads is 0, and somebody has to search");
    }
    if args.top_k > MAX_TOP_K {
        bail!("--top-k is {}, the most is {MAX_TOP_K}", args.top_k);
    }
    let app = app::open(config, crate::cli::target::STORED)?;
    let snapshot = app.cache(args.cache.as_deref().unwrap_or_default())?.snapshot();
    snapshot.wait_for_rows()?;
    let (record, generation) = (snapshot.record(), snapshot.generation());
    let queries = queries(&args.vectors, record.name.as_str(), record.dim)?;
    if threads > queries.len() {
        bail!("--threads is {threads}, but --vectors has only {} queries to share", queries.len());
    }
    let truth = match &args.truth {
        Some(path) => told(path, queries.len(), args.top_k)?,
        None => computed(&snapshot, &queries, args.top_k)?,
    };
    let mut out = std::io::stdout().lock();
    if !args.json {
        let (items, codes) = (snapshot.live(), snapshot.index().codes().word());
        writeln!(
            out,
            "cache {} generation {generation}: {items} items of {} components on {codes} codes",
            record.name, record.dim
        )?;
        writeln!(out, "queries {}, top {}, threads {threads}", queries.len(), args.top_k)?;
        let [ef, rescore] = ["ef_search", "rescore"];
        let [recall, rate, p50, p99] = ["recall", "queries/s", "p50 µs", "p99 µs"];
        writeln!(
            out,
            "{ef:>9} {rescore:>8} {recall:>8} {rate:>10} {p50:>9} {p99:>9} {:>8} {:>8} {:>8}",
            "visited", "scored", "rescored"
        )?;
    }
    for (target, params) in settings(config, &snapshot, &args)? {
        let time = Duration::from_secs_f64(args.seconds);
        let point = measure(&snapshot, &queries, &truth, args.top_k, &params, threads, time)?;
        let rate = point.durations.len() as f64 / point.wall.as_secs_f64();
        let [p50, p99] = [0.5, 0.99].map(|share| percentile(&point.durations, share).unwrap_or_default());
        let Cost { visited_nodes, scored_vectors, rescored_vectors } = point.cost;
        let [visited, scored, rescored] = [visited_nodes, scored_vectors, rescored_vectors]
            .map(|count| count as f64 / queries.len() as f64);
        if args.json {
            show::print_line(&json!({
                "cache": record.name.as_str(),
                "generation": generation.0,
                "queries": queries.len(),
                "threads": threads,
                "top_k": args.top_k,
                "target_recall": target.map(TargetRecall::get),
                "query_kind": target.and(args.query_kind.as_ref()).map(QueryKind::as_str),
                "exact": params.exact,
                "ef_search": params.ef_search,
                "margin": params.margin,
                "rescore": snapshot.rescore(&params),
                "truth": if args.truth.is_some() { "file" } else { "exact" },
                "recall": point.recall,
                "queries_per_second": rate,
                "p50_us": p50,
                "p99_us": p99,
                "visited_nodes": visited,
                "scored_vectors": scored,
                "rescored_vectors": rescored,
                "searches": point.durations.len(),
                "seconds": point.wall.as_secs_f64(),
            }))?;
        } else {
            let target = target.map_or(String::new(), |target| format!("  calibrated for {}", target.get()));
            let (ef_search, rescore) = match params.exact {
                true => ("exact".to_owned(), "–".to_owned()),
                false => (params.ef_search.to_string(), snapshot.rescore(&params).to_string()),
            };
            writeln!(
                out,
                "{ef_search:>9} {rescore:>8} {:>8.4} {rate:>10.0} {p50:>9.1} {p99:>9.1} {visited:>8.0} {scored:>8.0} {rescored:>8.0}{target}",
                point.recall
            )?;
        }
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is searched with: widths as they are, then those that are calibrated for a recall.
fn settings(
    config: &Config,
    snapshot: &Snapshot,
    args: &SearchBench,
) -> anyhow::Result<Vec<(Option<TargetRecall>, SearchParams)>> {
    let widths = match args.ef_search.is_empty() && args.target_recall.is_empty() {
        true => WIDTHS,
        false => &args.ef_search[..],
    };
    let of_width = |&ef_search: &usize| {
        let default = snapshot.rescore(&config.search_params()).min(ef_search);
        let rescore = Some(args.rescore.unwrap_or(default).max(args.top_k));
        (None, SearchParams { ef_search, rescore, ..Default::default() })
    };
    let mut settings: Vec<_> = widths.iter().map(of_width).collect();
    for &target in &args.target_recall {
        settings.push((Some(target), snapshot.params_for(target, args.query_kind.as_ref(), args.top_k)?));
    }
    Ok(settings)
}

fn measure(
    snapshot: &Snapshot,
    queries: &[Embedding],
    truth: &[Vec<u64>],
    top_k: usize,
    params: &SearchParams,
    threads: usize,
    time: Duration,
) -> anyhow::Result<Point> {
    let (mut searcher, mut recall, mut cost) = (Searcher::default(), 0.0, Cost::default());
    for (query, truth) in queries.iter().zip(truth) {
        let found = snapshot.search(&mut searcher, query, top_k, params)?;
        let ids: Vec<u64> = found.hits.iter().map(|hit| hit.id.0).collect();
        recall += exact::recall(truth, &ids);
        cost += found.cost;
    }
    let (together, share) = (Barrier::new(threads), queries.len() / threads);
    let begin = |thread: usize| thread * share + thread.min(queries.len() % threads);
    let work = |thread: usize| {
        let (own, mut searcher) = (&queries[begin(thread)..begin(thread + 1)], Searcher::default());
        // What a searcher takes on its first use is not a search's price.
        let warm = snapshot.search(&mut searcher, &own[0], top_k, params);
        together.wait();
        warm?;
        let (mut durations, start) = (Vec::new(), Instant::now());
        for (asked, query) in own.iter().cycle().enumerate() {
            let before = Instant::now();
            if asked >= own.len() && before - start >= time {
                break;
            }
            std::hint::black_box(snapshot.search(&mut searcher, query, top_k, params)?);
            durations.push(before.elapsed().as_secs_f32() * 1e6);
        }
        Ok::<_, anyhow::Error>((start, Instant::now(), durations))
    };
    let parts: Vec<(Instant, Instant, Vec<f32>)> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        let ended = running.into_iter().map(|t| t.join().map_err(|_| anyhow::anyhow!("a thread crashed"))?);
        ended.collect::<anyhow::Result<_>>()
    })?;
    let first = parts.iter().map(|part| part.0).min().context("there is at least one thread")?;
    let last = parts.iter().map(|part| part.1).max().context("there is at least one thread")?;
    let mut durations: Vec<f32> = parts.into_iter().flat_map(|part| part.2).collect();
    durations.sort_unstable_by(f32::total_cmp);
    Ok(Point { recall: recall / queries.len() as f64, cost, durations, wall: last - first })
}

/// The truth from a file: as many rows as there are queries, cut to `top_k`.
fn told(path: &Path, queries: usize, top_k: usize) -> anyhow::Result<Vec<Vec<u64>>> {
    let (name, bytes) = (format!("--truth {}", path.display()), read(path)?);
    let truth = npy::read_id_rows(&bytes).map_err(|e| anyhow::anyhow!("{name}: {e}"))?;
    let rows = truth.ids.len() / truth.width;
    if rows != queries {
        bail!("{name} has {rows} rows for the {queries} queries of --vectors");
    }
    if truth.width < top_k {
        bail!("{name} has {} ids a row, fewer than --top-k {top_k}", truth.width);
    }
    Ok(truth.ids.chunks_exact(truth.width).map(|row| row[..top_k].to_vec()).collect())
}

/// The truth by scanning every row.
fn computed(snapshot: &Snapshot, queries: &[Embedding], top_k: usize) -> anyhow::Result<Vec<Vec<u64>>> {
    eprintln!("no --truth: searching {} items exactly for {} queries", snapshot.live(), queries.len());
    let (start, mut searcher) = (Instant::now(), Searcher::default());
    let params = SearchParams { exact: true, ..Default::default() };
    let one = |query| {
        let found = snapshot.search(&mut searcher, query, top_k, &params)?;
        Ok(found.hits.iter().map(|hit| hit.id.0).collect())
    };
    let truth = queries.iter().map(one).collect::<anyhow::Result<_>>()?;
    eprintln!("that took {:.2} s", start.elapsed().as_secs_f64());
    Ok(truth)
}
