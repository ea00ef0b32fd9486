//! `verify`: whether what is stored is whole, agrees with itself, and is found.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Serialize;
use viscache::cache::{LoadOptions, RowsMode, Snapshot, calibrate, decode_row};
use viscache::index::{AlignedBytes, Index};
use viscache::store::{BlobKind, CacheRecord, GenerationRecord, LedgerRecord, Outcome, RecallCurve, Store};
use viscache::types::{ItemId, norm};

use crate::index::{self, Sample};

/// Farthest that a stored row's norm may be from 1 (f16 rows keep three digits).
const UNIT_TOLERANCE: f64 = 2e-3;
/// Problems listed of one kind before the rest are only counted.
const LISTED: usize = 20;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// Name of the cache.
    pub cache: String,
    /// Items whose record and row were read.
    pub items: u64,
    /// Generations whose bytes were checked.
    pub generations: Vec<u64>,
    /// Rows that the current index cannot reach.
    pub unreachable: usize,
    /// Recall@10 of the current generation against exact, by `ef_search`, for queries like the stored rows.
    pub recall: RecallCurve,
    /// The same for the given queries of other kinds, by the kind's word.
    pub recall_by: BTreeMap<String, RecallCurve>,
    /// Everything that is wrong.
    pub problems: Vec<String>,
}

/// Checks one cache from end to end.
///
/// * `sample`: stored rows that recall is measured by. `given`: queries of other kinds to measure it by.
///
/// # Errors
/// When the store cannot be read at all, or given queries cannot; damage is a problem in the verdict.
pub fn verify(
    store: &Arc<Store>,
    record: &CacheRecord,
    sample: usize,
    given: &[Sample],
) -> anyhow::Result<Verdict> {
    let queries = index::measured(given, record.dim)?;
    let mut problems = Problems::default();
    if let Err(e) = store.verify_files() {
        problems.add("file", format!("{:#}", anyhow::Error::from(e)));
    }
    let rows = rows(store, record, &mut problems)?;
    let items = items(store, record, &rows, &mut problems)?;
    ledger(store, record, &items, &mut problems)?;

    let mut verdict = Verdict {
        cache: record.name.to_string(),
        items: items.len() as u64,
        generations: Vec::new(),
        unreachable: 0,
        recall: RecallCurve::new(),
        recall_by: BTreeMap::new(),
        problems: Vec::new(),
    };
    if items.len() as u64 != record.items {
        problems.add(
            "count",
            format!("the cache's record counts {} items, {} are stored", record.items, items.len()),
        );
    }
    for generation in store.generations(record.id)? {
        verdict.generations.push(generation.generation.0);
        // The current one is loaded below as well, as a server loads it.
        if let Err(e) = kept(store, record, &generation) {
            problems.add("generation", format!("generation {}: {e:#}", generation.generation));
        }
    }
    match record.current {
        None => problems.add("index", "the cache has not been indexed; run `index-builder index`".into()),
        Some(_) => {
            if let Some(snapshot) = current(store, record, &items, &mut verdict, &mut problems)
                && problems.none()
            {
                match calibrate(snapshot.index(), &snapshot, sample, &queries) {
                    Ok(recalls) => (verdict.recall, verdict.recall_by) = (recalls.rows, recalls.by_kind),
                    Err(e) => problems.add("row", format!("{:#}", anyhow::Error::from(e))),
                }
            }
        }
    }
    verdict.problems = problems.finish();
    Ok(verdict)
}

/// Whether a generation that is kept for a roll-back could be loaded.
fn kept(store: &Store, record: &CacheRecord, generation: &GenerationRecord) -> anyhow::Result<()> {
    let read = |kind: BlobKind, len: u64| -> anyhow::Result<AlignedBytes> {
        let mut bytes = AlignedBytes::zeroed(usize::try_from(len)?)?;
        store.read_blob(record.id, generation.generation, kind, bytes.as_mut_slice())?;
        Ok(bytes)
    };
    let index = Index::open(read(BlobKind::Index, generation.index_bytes)?)?;
    for (kind, len) in
        [(BlobKind::Tags, generation.tags_bytes), (BlobKind::Queries, generation.queries_bytes)]
    {
        len.map_or(Ok(()), |len| read(kind, len).map(drop))?;
    }
    let (rows, dim) = (index.len() as u64, index.dim());
    anyhow::ensure!(
        (rows, dim) == (generation.items, record.dim),
        "its index holds {rows} rows of {dim} components, its record says {} of {}",
        generation.items,
        record.dim
    );
    Ok(())
}

/// The generation that is served, with its rows left on disk.
fn current(
    store: &Arc<Store>,
    record: &CacheRecord,
    items: &HashSet<u64>,
    verdict: &mut Verdict,
    problems: &mut Problems,
) -> Option<Snapshot> {
    let options = LoadOptions { rows: RowsMode::Disk, memory_budget: u64::MAX };
    let snapshot = match Snapshot::load(store, &record.name, options) {
        Ok(snapshot) => snapshot,
        Err(e) => {
            problems.add("index", format!("{:#}", anyhow::Error::from(e)));
            return None;
        }
    };
    let index = snapshot.index();
    verdict.unreachable = index.unreachable().len();
    if verdict.unreachable > 0 {
        problems.add("index", format!("{} rows cannot be reached from the entry", verdict.unreachable));
    }
    // Loading has held the index against the change log: what is not stored and not masked is an error there, for rows
    // in memory. Here rows are on disk.
    for &id in index.ids().iter().filter(|id| !items.contains(id)) {
        if !snapshot.replaced(ItemId(id)) {
            problems.add("slot", format!("the index names item {id}, which is not stored"));
        }
    }
    let missing = items.len() as i64 - snapshot.live() as i64;
    if missing > 0 {
        problems
            .add("index", format!("{missing} stored items are not in the index; run `index-builder index`"));
    }
    Some(snapshot)
}

fn rows(store: &Store, record: &CacheRecord, problems: &mut Problems) -> anyhow::Result<HashSet<u64>> {
    let mut ids = HashSet::new();
    let expected = record.dim * record.rows.bytes();
    store.scan_rows(record.id, ItemId(0), |id, bytes| {
        ids.insert(id.0);
        if bytes.len() != expected {
            problems
                .add("row", format!("the row of item {id} has {} bytes instead of {expected}", bytes.len()));
            return Ok::<bool, viscache::store::Error>(true);
        }
        let length = norm(&decode_row(bytes, record.rows));
        if !length.is_finite() || (length - 1.0).abs() > UNIT_TOLERANCE {
            problems.add("row", format!("the row of item {id} has norm {length} instead of 1"));
        }
        Ok(true)
    })?;
    Ok(ids)
}

fn items(
    store: &Store,
    record: &CacheRecord,
    rows: &HashSet<u64>,
    problems: &mut Problems,
) -> anyhow::Result<HashSet<u64>> {
    let mut ids = HashSet::new();
    store.scan_items(record.id, ItemId(0), |id, _| {
        ids.insert(id.0);
        if !rows.contains(&id.0) {
            problems.add("item", format!("item {id} has a record and no row"));
        }
        Ok::<bool, viscache::store::Error>(true)
    })?;
    for id in rows.iter().filter(|id| !ids.contains(id)) {
        problems.add("item", format!("item {id} has a row and no record"));
    }
    Ok(ids)
}

fn ledger(
    store: &Store,
    record: &CacheRecord,
    items: &HashSet<u64>,
    problems: &mut Problems,
) -> anyhow::Result<()> {
    let (mut stored, mut entries) = (HashSet::new(), 0_u64);
    store.scan_ledger(record.id, |entry| {
        entries += 1;
        if let Outcome::Stored(id) | Outcome::Duplicate(id) = entry.outcome
            && !items.contains(&id.0)
            && !pending(store, record, &entry)?
        {
            problems.add("ledger", format!("`{}` is said to be item {id}, which is not stored", entry.uri));
        }
        if let Outcome::Stored(id) = entry.outcome
            && !stored.insert(id.0)
        {
            problems.add(
                "ledger",
                format!("item {id} is said to be stored from two inputs, one is `{}`", entry.uri),
            );
        }
        Ok::<bool, anyhow::Error>(true)
    })?;
    // A follower opens a store whose ledger file is gone as if nothing had ever been done.
    if entries == 0 && !items.is_empty() {
        problems
            .add("ledger", "it is empty although items are stored; their inputs would be read again".into());
    }
    Ok(())
}

/// Whether a unit is a duplicate of content that is no longer stored: the next run reads it again.
fn pending(store: &Store, record: &CacheRecord, entry: &LedgerRecord) -> anyhow::Result<bool> {
    match (&entry.outcome, &entry.digest) {
        (Outcome::Duplicate(_), Some(digest)) => Ok(store.item_of_digest(record.id, digest)?.is_none()),
        _ => Ok(false),
    }
}

/// Problems, the first few of each kind in words.
#[derive(Default)]
struct Problems {
    listed: Vec<String>,
    counts: std::collections::BTreeMap<&'static str, usize>,
}

impl Problems {
    fn add(&mut self, kind: &'static str, problem: String) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= LISTED {
            self.listed.push(problem);
        }
    }

    fn none(&self) -> bool {
        self.listed.is_empty()
    }

    fn finish(mut self) -> Vec<String> {
        for (kind, count) in self.counts.iter().filter(|(_, count)| **count > LISTED) {
            self.listed.push(format!("… and {} more problems of the kind `{kind}`", count - LISTED));
        }
        self.listed
    }
}
