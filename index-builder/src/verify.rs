//! `verify`: whether what is stored is whole, agrees with itself, and is found.
//!
//! ```text
//! items ─┐ side by side, in the order of ids ─► ids ─┬─ ledger, entry by entry
//! rows  ─┘                                           └─ the current index, whose ids are in order too
//! ```
//! Records and rows go by one at a time. Of all of them only the ids are kept, nine bytes each; the index that is checked
//! takes a hundred times that.

use std::collections::BTreeMap;
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
    let items = items(store, record, &mut problems)?;
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
    // One that was never indexed is whole when all its items are changes; loading it says so.
    if let Some(snapshot) = current(store, record, &items, &mut verdict, &mut problems)
        && problems.none()
        && !snapshot.index().is_empty()
    {
        match calibrate(snapshot.index(), &snapshot, sample, &queries) {
            Ok(recalls) => (verdict.recall, verdict.recall_by) = (recalls.rows, recalls.by_kind),
            Err(e) => problems.add("row", format!("{:#}", anyhow::Error::from(e))),
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
    // One without items has no blobs.
    if generation.is_empty() {
        return Ok(());
    }
    let index = Index::open(read(BlobKind::Index, generation.index_bytes)?.as_slice())?;
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
    items: &Ids,
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
    for &id in index.ids().iter().filter(|id| items.place(**id).is_none()) {
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

/// The ids of everything that has a record, ascending.
struct Ids(Vec<u64>);

impl Ids {
    fn len(&self) -> usize {
        self.0.len()
    }

    /// Where an id stands among them.
    fn place(&self, id: u64) -> Option<usize> {
        self.0.binary_search(&id).ok()
    }
}

/// Reads every item and every row, side by side.
fn items(store: &Store, record: &CacheRecord, problems: &mut Problems) -> anyhow::Result<Ids> {
    let mut ids = Vec::new();
    let mut rows = store.row_scan(record.id, ItemId(0));
    store.scan_items(record.id, ItemId(0), |id, _| {
        ids.push(id.0);
        let mut has_row = false;
        rows.each(|row_id, bytes| {
            // One that belongs to a later item is looked at then.
            if row_id <= id {
                check_row(record, row_id, bytes, problems);
                has_row |= row_id == id;
                if row_id < id {
                    problems.add("item", format!("item {row_id} has a row and no record"));
                }
            }
            Ok::<bool, viscache::store::Error>(row_id <= id)
        })?;
        if !has_row {
            problems.add("item", format!("item {id} has a record and no row"));
        }
        Ok::<bool, viscache::store::Error>(true)
    })?;
    rows.each(|row_id, bytes| {
        check_row(record, row_id, bytes, problems);
        problems.add("item", format!("item {row_id} has a row and no record"));
        Ok::<bool, viscache::store::Error>(true)
    })?;
    Ok(Ids(ids))
}

fn check_row(record: &CacheRecord, id: ItemId, bytes: &[u8], problems: &mut Problems) {
    let expected = record.dim * record.rows.bytes();
    if bytes.len() != expected {
        problems.add("row", format!("the row of item {id} has {} bytes instead of {expected}", bytes.len()));
        return;
    }
    let length = norm(&decode_row(bytes, record.rows));
    if !length.is_finite() || (length - 1.0).abs() > UNIT_TOLERANCE {
        problems.add("row", format!("the row of item {id} has norm {length} instead of 1"));
    }
}

fn ledger(store: &Store, record: &CacheRecord, items: &Ids, problems: &mut Problems) -> anyhow::Result<()> {
    // For each item, whether an entry has said that it is stored from it.
    let mut stored = vec![false; items.len()];
    let mut entries = 0_u64;
    store.scan_ledger(record.id, |entry| {
        entries += 1;
        let (Outcome::Stored(id) | Outcome::Duplicate(id)) = entry.outcome else { return Ok(true) };
        match items.place(id.0) {
            None if !pending(store, record, &entry)? => {
                let uri = &entry.uri;
                problems.add("ledger", format!("`{uri}` is said to be item {id}, which is not stored"));
            }
            Some(place)
                if matches!(entry.outcome, Outcome::Stored(_))
                    && std::mem::replace(&mut stored[place], true) =>
            {
                problems.add(
                    "ledger",
                    format!("item {id} is said to be stored from two inputs, one is `{}`", entry.uri),
                );
            }
            _ => {}
        }
        Ok::<bool, anyhow::Error>(true)
    })?;
    // A follower opens a store whose ledger file is gone as if nothing had ever been done.
    if entries == 0 && items.len() > 0 {
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
