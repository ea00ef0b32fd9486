//! The last stage: a graph over everything stored, measured, then published.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, anyhow, bail};
use viscache::cache::{IndexReport, IndexStep, QuerySample, RECALL_SAMPLE, Writer, calibrate};
use viscache::index::{BuildParams, Stage};
use viscache::media::npy;
use viscache::types::QueryKind;

use crate::progress::Progress;

/// One query in so many of a given sample is held out from the repair, to measure by.
const HELD_OUT: usize = 10;
/// Most queries of a sample that are measured.
const MAX_MEASURED: usize = 1000;

/// The kind of a sample that was given without a name.
const UNNAMED: &str = "queries";

/// A file of queries and the name of their kind.
#[derive(Debug, Clone)]
pub struct Sample {
    kind: QueryKind,
    path: PathBuf,
}

impl FromStr for Sample {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = text.split_once('=').and_then(|(kind, path)| Some((QueryKind::new(kind).ok()?, path)));
        // An equals sign behind anything that is no kind is part of a path.
        let (kind, path) = match named {
            Some(named) => named,
            None => (QueryKind::new(UNNAMED).map_err(|e| e.to_string())?, text),
        };
        Ok(Sample { kind, path: path.into() })
    }
}

impl Sample {
    /// All rows, `[q, dim]`.
    fn read(&self, dim: usize) -> anyhow::Result<Vec<f32>> {
        let path = self.path.display();
        let bytes = std::fs::read(&self.path).with_context(|| format!("cannot read {path}"))?;
        let matrix = npy::read(&bytes).map_err(|e| anyhow!("{path}: {e}"))?;
        let rows = matrix.values.len() / matrix.dim.max(1);
        if matrix.dim != dim {
            bail!("{path} has rows of {} components, the cache {dim}", matrix.dim);
        }
        if rows < HELD_OUT {
            bail!("{path} has {rows} rows; a sample of queries needs at least {HELD_OUT}");
        }
        // Neither has a nearest row: recall would be measured by chance.
        let bad = |row: &[f32]| {
            let finite = row.iter().all(|v| v.is_finite());
            (!finite).then_some("not finite").or_else(|| row.iter().all(|&v| v == 0.0).then_some("all zeros"))
        };
        let found = matrix.values.chunks_exact(dim).enumerate().find_map(|(i, row)| Some((i, bad(row)?)));
        if let Some((row, what)) = found {
            bail!("row {row} of {path} is {what}, so it is no query; leave it out of the sample");
        }
        Ok(matrix.values)
    }
}

/// Queries of every kind to measure by, evenly spread over each file.
///
/// # Errors
/// As [`sampled`].
pub fn measured(samples: &[Sample], dim: usize) -> anyhow::Result<BTreeMap<String, Vec<Vec<f32>>>> {
    let mut queries: BTreeMap<String, Vec<Vec<f32>>> = BTreeMap::new();
    for sample in samples {
        let values = sample.read(dim)?;
        let every = (values.len() / dim).div_ceil(MAX_MEASURED);
        let rows = values.chunks_exact(dim).step_by(every).map(<[f32]>::to_vec);
        queries.entry(sample.kind.to_string()).or_default().extend(rows);
    }
    Ok(queries)
}

/// Reads samples of queries of other kinds than the stored rows. Without any, the graph is not repaired.
///
/// # Errors
/// A file that cannot be read, rows of another length than `dim`, fewer rows than [`HELD_OUT`].
pub fn sampled(samples: &[Sample], dim: usize) -> anyhow::Result<QuerySample> {
    let mut queries = QuerySample::default();
    for sample in samples {
        let values = sample.read(dim)?;
        // Evenly spread, so that a file sorted by some property is held out in all of it.
        let every = HELD_OUT.max((values.len() / dim).div_ceil(MAX_MEASURED));
        let held_out = queries.held_out.entry(sample.kind.to_string()).or_default();
        for (i, row) in values.chunks_exact(dim).enumerate() {
            if i % every == 0 {
                held_out.push(row.to_vec());
            } else {
                queries.repair.extend_from_slice(row);
            }
        }
    }
    Ok(queries)
}

/// Shows how far the stages of a build are, each with the time that it will still take.
struct Stages {
    rows: u64,
    refined: u64,
    queries: u64,
    json: bool,
    /// Of the stage that is under way: its name, and its progress.
    current: Mutex<(&'static str, Option<Progress>)>,
    /// Steps of it that have not been shown.
    unshown: AtomicU64,
}

impl Stages {
    /// Steps that are shown together: showing takes a lock.
    const STRIDE: u64 = 256;

    fn step(&self, step: IndexStep) {
        let (name, total, steps) = match step {
            IndexStep::Read | IndexStep::Choose | IndexStep::Publish => ("", 0, 0),
            IndexStep::Coded(n) => ("code", self.rows, n),
            IndexStep::Built(Stage::Insert, n) => ("insert", self.rows, n),
            IndexStep::Built(Stage::Refine(_), n) => ("refine", self.refined, n),
            IndexStep::Built(Stage::Rescue, n) => ("rescue", self.rows, n),
            IndexStep::Built(Stage::Repair, n) => ("repair", self.queries, n),
        };
        let before = self.unshown.fetch_add(steps as u64, Ordering::Relaxed);
        if steps > 0 && before + (steps as u64) < Self::STRIDE {
            return;
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let unshown = self.unshown.swap(0, Ordering::Relaxed);
        if current.0 != name {
            if let (_, Some(ended)) = std::mem::take(&mut *current) {
                ended.finish();
            }
            *current = (name, (!name.is_empty()).then(|| Progress::new(name, total, self.json)));
        }
        if let (_, Some(progress)) = &*current {
            progress.advance(unshown, 0);
        }
    }
}

/// Indexes a cache and publishes the new generation, unless its recall is too low.
///
/// * `queries`: what the graph is repaired for and measured by, beside the stored rows.
/// * `floor`: recall@10 that the widest measured beam must reach, for queries like the stored rows.
///
/// # Errors
/// An empty cache, too low a recall (the current generation then stays), a store that fails.
pub fn run(
    writer: &mut Writer<'_>,
    params: &BuildParams,
    queries: &QuerySample,
    floor: f64,
    json: bool,
) -> anyhow::Result<IndexReport> {
    let rows = writer.record().items;
    let stages = Stages {
        rows,
        refined: rows * params.refine as u64,
        queries: (queries.repair.len() / writer.record().dim) as u64,
        json,
        current: Mutex::new(("", None)),
        unshown: AtomicU64::new(0),
    };
    let mut lowest = None;
    let report = writer.index(
        params,
        queries,
        |step| stages.step(step),
        |index, rows, asked| {
            let recalls = calibrate(index, rows, RECALL_SAMPLE, asked)?;
            let widest = recalls.rows.last().map_or(0.0, |&(_, recall)| recall);
            if widest < floor {
                lowest = Some(widest);
                let what = format!(
                    "recall@10 {widest:.4} is below the floor of {floor}; raise m or ef_construction"
                );
                return Err(viscache::index::Error::Format(what).into());
            }
            Ok(recalls)
        },
    );
    if let Some(widest) = lowest {
        bail!(
            "recall@10 {widest:.4} is below the floor of {floor}, so the current generation stays; raise --m or \
             --ef-construction, or lower --min-recall"
        );
    }
    Ok(report?)
}
