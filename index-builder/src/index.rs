//! The last stage: a graph over everything stored, measured, then published.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, anyhow, bail};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use rayon::prelude::*;
use viscache::cache::{IndexReport, IndexStep, Writer};
use viscache::index::exact;
use viscache::index::{BuildParams, Index, SearchParams, Searcher};
use viscache::kernels::Kernels;
use viscache::media::npy;

use crate::progress::Progress;

/// Queries of a recall measurement.
pub const SAMPLE: usize = 200;
/// Neighbours of each.
const K: usize = 10;
/// Beam widths that are measured.
pub const EF_SEARCH: [usize; 6] = [16, 32, 64, 96, 128, 256];
/// Length of the noise added to a stored unit row to make a query that is not stored.
const NOISE: f32 = 0.35;
const SEED: u64 = 0x7669_7363;

/// One query in so many of a given sample is held out from the repair, to measure by.
const HELD_OUT: usize = 10;
/// Most of them.
const MAX_HELD_OUT: usize = 1000;

/// The kind of a sample that was given without a name.
const UNNAMED: &str = "queries";

/// A file of queries and the name of their kind.
#[derive(Debug, Clone)]
pub struct Sample {
    kind: String,
    path: PathBuf,
}

impl FromStr for Sample {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        match text.split_once('=') {
            Some((kind, path)) if !kind.is_empty() && kind.chars().all(named) => {
                Ok(Sample { kind: kind.into(), path: path.into() })
            }
            // An equals sign behind anything else is part of a path.
            _ => Ok(Sample { kind: UNNAMED.into(), path: text.into() }),
        }
    }
}

/// Samples of queries of other kinds than the stored rows.
pub struct Queries {
    /// `[q, dim]`.
    repair: Vec<f32>,
    /// By kind.
    held_out: BTreeMap<String, Vec<Vec<f32>>>,
}

impl Queries {
    /// Reads numpy files. Without any, the graph is not repaired.
    ///
    /// # Errors
    /// A file that cannot be read, rows of another length than `dim`, fewer rows than [`HELD_OUT`].
    pub fn read(samples: &[Sample], dim: usize) -> anyhow::Result<Self> {
        let mut queries = Queries { repair: Vec::new(), held_out: BTreeMap::new() };
        for Sample { kind, path } in samples {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let matrix = npy::read(&bytes).map_err(|e| anyhow!("{}: {e}", path.display()))?;
            let rows = matrix.values.len() / matrix.dim.max(1);
            if matrix.dim != dim {
                bail!("{} has rows of {} components, the cache {dim}", path.display(), matrix.dim);
            }
            if rows < HELD_OUT {
                bail!("{} has {rows} rows; a sample of queries needs at least {HELD_OUT}", path.display());
            }
            let not_finite = |row: &[f32]| row.iter().any(|v| !v.is_finite());
            if let Some(bad) = matrix.values.chunks_exact(dim).position(not_finite) {
                bail!("row {bad} of {} is not finite", path.display());
            }
            // Evenly spread, so that a file sorted by some property is held out in all of it.
            let every = HELD_OUT.max(rows.div_ceil(MAX_HELD_OUT));
            let held_out = queries.held_out.entry(kind.clone()).or_default();
            for (i, row) in matrix.values.chunks_exact(dim).enumerate() {
                if i % every == 0 {
                    held_out.push(row.to_vec());
                } else {
                    queries.repair.extend_from_slice(row);
                }
            }
        }
        Ok(queries)
    }
}

/// Indexes a cache and publishes the new generation, unless its recall is too low.
///
/// * `queries`: what the graph is repaired for and measured by, beside the stored rows.
/// * `floor`: recall@10 that the widest beam must reach.
///
/// # Errors
/// An empty cache, too low a recall (the current generation then stays), a store that fails.
pub fn run(
    writer: &mut Writer<'_>,
    params: &BuildParams,
    queries: &Queries,
    floor: f64,
    json: bool,
) -> anyhow::Result<IndexReport> {
    let progress = Progress::new("index", writer.record().items, json);
    let inserted = AtomicU64::new(0);
    let step = |step: IndexStep| {
        if let IndexStep::Inserted(n) = step {
            // The bar is told in strides: it takes a lock.
            let before = inserted.fetch_add(n as u64, Ordering::Relaxed);
            if before / 256 != (before + n as u64) / 256 {
                progress.advance(256, 0);
            }
        }
    };
    let mut lowest = None;
    let report = writer.index(params, &queries.repair, step, |index, rows| {
        let recall = measure(index, rows, SAMPLE);
        let widest = recall.last().map_or(0.0, |&(_, recall)| recall);
        if widest < floor {
            lowest = Some(widest);
            let what =
                format!("recall@10 {widest:.4} is below the floor of {floor}; raise m or ef_construction");
            return Err(viscache::index::Error::Format(what).into());
        }
        let by_kind = queries.held_out.iter();
        Ok((recall, by_kind.map(|(kind, held_out)| (kind.clone(), curve(index, rows, held_out))).collect()))
    });
    progress.finish();
    if let Some(widest) = lowest {
        bail!(
            "recall@10 {widest:.4} is below the floor of {floor}, so the current generation stays; raise --m or \
             --ef-construction, or lower --min-recall"
        );
    }
    Ok(report?)
}

/// Recall@10 of an index against exact search, by beam width.
///
/// Queries are `sample` stored rows, each moved by noise of a third of its length, so that none is itself stored.
///
/// * `rows`: row-major `[n, dim]`, by slot.
pub fn measure(index: &Index, rows: &[f32], sample: usize) -> Vec<(usize, f64)> {
    curve(index, rows, &near_rows(rows, index.dim(), sample))
}

/// Recall@10 of some queries by beam width; nothing without queries.
fn curve(index: &Index, rows: &[f32], queries: &[Vec<f32>]) -> Vec<(usize, f64)> {
    if queries.is_empty() {
        return Vec::new();
    }
    let truths: Vec<Vec<u32>> =
        queries.iter().map(|q| exact::search(rows, q, K).into_iter().map(|s| s.slot.0).collect()).collect();
    let at = |ef: usize| -> f64 {
        let params = SearchParams { ef_search: ef, ..SearchParams::default() };
        let found =
            queries.par_iter().zip(&truths).map_init(Searcher::default, |searcher, (query, truth)| {
                exact::recall(truth, &search(searcher, index, rows, query, &params))
            });
        found.sum::<f64>() / queries.len().max(1) as f64
    };
    EF_SEARCH.into_iter().map(|ef| (ef, at(ef))).collect()
}

fn search(
    searcher: &mut Searcher,
    index: &Index,
    rows: &[f32],
    query: &[f32],
    params: &SearchParams,
) -> Vec<u32> {
    let Ok((candidates, _)) = searcher.search(index, query, params.rescore.max(K), params) else {
        return Vec::new();
    };
    let score = |slots: &[u32], out: &mut Vec<f32>| Kernels::get().score_f32(rows, slots, query, out);
    let (best, _) = exact::rescore(&candidates, K, index.score_error(query), score);
    best.into_iter().map(|scored| scored.slot.0).collect()
}

fn near_rows(rows: &[f32], dim: usize, sample: usize) -> Vec<Vec<f32>> {
    let n = rows.len() / dim;
    let mut random = Pcg64::seed_from_u64(SEED);
    let mut query = || {
        let row = &rows[random.random_range(0..n) * dim..][..dim];
        let noise: Vec<f32> = (0..dim).map(|_| random.random_range(-1.0f32..1.0)).collect();
        let scale = NOISE / viscache::types::norm(&noise).max(1e-12) as f32;
        row.iter().zip(noise).map(|(v, n)| v + n * scale).collect()
    };
    (0..sample.min(n)).map(|_| query()).collect()
}
