//! Embedded units reach the store: items, rows, ledger and digests of a batch in one synced write.
//!
//! Order of decisions for a unit: refused → ledger only. Its id is another's → refused. Content already stored as another item →
//! ledger says duplicate. Name already stored (its file has changed) → the item is replaced under its id. Otherwise a new
//! item. Content of an item that this batch replaces is about to go: a unit that has it is not its duplicate.
//!
//! Every unit comes to exactly one end, and [`Written`] counts it there.

use std::collections::{HashMap, HashSet};

use roaring::RoaringTreemap;
use viscache::cache::{NewItem, Writer};
use viscache::store::{ArchiveRecord, CacheId, ItemRecord, LedgerRecord, Outcome, Stamp, Store};
use viscache::types::{Embedding, Fingerprint, ItemId};

use crate::discover::Refusal;
use crate::ledger::outcome_of;

/// One unit's outcome on its way to the store.
pub struct Finished {
    /// The unit's name.
    pub uri: String,
    /// Its stamp.
    pub stamp: Stamp,
    /// What to store, or why nothing.
    pub outcome: Finish,
}

/// How a unit ended.
pub enum Finish {
    /// It is to be stored.
    Good(Good),
    /// Its content was found in the store before it was embedded.
    Known(Fingerprint),
    /// It was refused.
    Refused(Refusal),
    /// It was refused when the inputs were looked at, and is counted there: for the ledger only.
    Noted(Refusal),
    /// An archive begins.
    Begin,
    /// The end of an archive, with what its members came to before this run.
    Archive(ArchiveRecord),
}

/// A unit that will be stored.
pub struct Good {
    /// The id to store it under; `None` for the next free one.
    pub id: Option<ItemId>,
    /// Its embedding.
    pub embedding: Embedding,
    /// What is known of it.
    pub record: ItemRecord,
}

/// What became of units.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    /// New items.
    pub stored: u64,
    /// Items replaced, because their file has changed.
    pub replaced: u64,
    /// Units whose file has another time and the same content.
    pub touched: u64,
    /// Units whose content was already stored.
    pub duplicates: u64,
    /// Units refused.
    pub bad: u64,
    /// Units that could not be read or embedded now.
    pub failed: u64,
}

impl Written {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.stored + self.replaced + self.touched + self.duplicates + self.bad + self.failed
    }
}

impl std::ops::AddAssign for Written {
    fn add_assign(&mut self, other: Written) {
        self.stored += other.stored;
        self.replaced += other.replaced;
        self.touched += other.touched;
        self.duplicates += other.duplicates;
        self.bad += other.bad;
        self.failed += other.failed;
    }
}

/// What a run remembers from batch to batch.
#[derive(Default)]
pub struct Memory {
    /// Whether content that is already stored is not stored again.
    pub dedup: bool,
    /// Ids that units of this run named for themselves.
    pub named: RoaringTreemap,
    /// Units that were taken for duplicates of what went away before they were written. Counted as duplicates, and pending.
    pub again: u64,
    /// What the archive under way has come to in this run, and whether it has to be looked into again.
    archive: (ArchiveRecord, bool),
    /// Archives that were read to their end.
    pub archives: HashSet<String>,
}

/// Writes a batch of finished units.
///
/// # Errors
/// When the store cannot be read or written; then nothing of the batch is in it.
pub fn write(
    store: &Store,
    writer: &mut Writer<'_>,
    batch: Vec<Finished>,
    memory: &mut Memory,
) -> anyhow::Result<Written> {
    let cache = writer.record().id;
    let mut written = Written::default();
    let mut items = Vec::new();
    // Per unit: its ledger entry, still lacking the id of an item stored in this very batch.
    let mut entries: Vec<(LedgerRecord, Slot)> = Vec::new();
    let mut in_batch: HashMap<Fingerprint, usize> = HashMap::new();
    let mut forget = Vec::new();
    let leaving = leaving(store, cache, &batch)?;
    for unit in batch {
        let (earlier, content) = own_item(store, cache, &unit.uri)?.unzip();
        let (uri, stamp) = (unit.uri, unit.stamp);
        let entry = |outcome, digest| LedgerRecord { uri, stamp, outcome, item: earlier, content, digest };
        let (good, digest) = match unit.outcome {
            Finish::Good(good) => {
                let digest = good.record.digest;
                (Some(good), digest)
            }
            Finish::Known(digest) => (None, digest),
            Finish::Refused(refusal) => {
                memory.count_refused(&refusal, &mut written);
                entries.push((entry(outcome_of(&refusal), None), Slot::Settled));
                continue;
            }
            Finish::Noted(refusal) => {
                entries.push((entry(outcome_of(&refusal), None), Slot::Settled));
                continue;
            }
            Finish::Begin => {
                memory.archive = Default::default();
                continue;
            }
            Finish::Archive(before) => {
                if let Some(outcome) = memory.end_of_archive(entry, before) {
                    entries.push((outcome, Slot::Archive));
                }
                continue;
            }
        };
        if let Some(Good { id: Some(id), record, .. }) = &good
            && let Some(reason) = taken(store, cache, memory, &items, earlier, *id, &record.uri)?
        {
            let refusal = Refusal::Bad(reason);
            memory.count_refused(&refusal, &mut written);
            entries.push((entry(outcome_of(&refusal), None), Slot::Settled));
            continue;
        }
        // Whoever names an id for a row wants it under that id, whatever else has its content.
        let named = good.as_ref().is_some_and(|good| good.id.is_some());
        if memory.dedup && !named || good.is_none() {
            let same = store.item_of_digest(cache, &digest)?.filter(|id| !leaving.contains(id));
            let own = same.is_some() && same == earlier;
            match same {
                // What an import says of a row may have changed although its content has not.
                Some(id) if own && unchanged(store, cache, id, good.as_ref())? => {
                    written.touched += 1;
                    memory.archive.0.stored += 1;
                    entries.push((entry(Outcome::Stored(id), None), Slot::Settled));
                    continue;
                }
                _ if own => {}
                Some(id) => {
                    written.duplicates += 1;
                    memory.archive.0.duplicates += 1;
                    entries.push((entry(Outcome::Duplicate(id), Some(digest)), Slot::Settled));
                    continue;
                }
                None => {}
            }
            if let Some(&at) = in_batch.get(&digest) {
                written.duplicates += 1;
                memory.archive.0.duplicates += 1;
                entries.push((entry(Outcome::Duplicate(ItemId(0)), Some(digest)), Slot::DuplicateOf(at)));
                continue;
            }
        }
        let Some(good) = good else {
            // What it was found to be a duplicate of is gone, and it was not embedded: the next pass does that.
            written.duplicates += 1;
            memory.again += 1;
            memory.archive.1 = true;
            continue;
        };
        let replaced = good.id.or(earlier);
        match replaced.map(|id| store.item(cache, id)).transpose()?.flatten() {
            Some(old) => {
                written.replaced += 1;
                if old.digest != digest {
                    forget.push((replaced, old.digest));
                }
            }
            None => written.stored += 1,
        }
        memory.archive.0.stored += 1;
        if let Some(id) = good.id {
            memory.named.insert(id.0);
        }
        in_batch.insert(digest, items.len());
        entries.push((entry(Outcome::Stored(ItemId(0)), None), Slot::StoredAs(items.len(), digest)));
        items.push(NewItem { id: replaced, embedding: good.embedding, record: good.record });
    }
    // Another item may be the one that is known for the content of one that goes.
    let mut forgotten = Vec::new();
    for (id, digest) in forget {
        if store.item_of_digest(cache, &digest)? == id {
            forgotten.push(digest);
        }
    }
    writer.put(items, |ids, batch, record| {
        for digest in &forgotten {
            batch.delete_digest(record.id, digest);
        }
        for (mut entry, slot) in entries {
            match slot {
                Slot::Settled => {}
                Slot::Archive => {
                    if let Outcome::Archive(archive) = &mut entry.outcome {
                        archive.as_of = (record.replaced, record.sequence);
                    }
                }
                Slot::DuplicateOf(at) => entry.outcome = Outcome::Duplicate(ids[at]),
                Slot::StoredAs(at, digest) => {
                    entry.outcome = Outcome::Stored(ids[at]);
                    (entry.item, entry.content) = (Some(ids[at]), Some(digest));
                    batch.put_digest(record.id, &digest, ids[at]);
                }
            }
            batch.put_ledger(record.id, &entry);
        }
    })?;
    Ok(written)
}

impl Memory {
    /// * `dedup`: whether content that is already stored is not stored again.
    pub fn new(dedup: bool) -> Self {
        Memory { dedup, ..Memory::default() }
    }

    fn count_refused(&mut self, refusal: &Refusal, written: &mut Written) {
        match refusal {
            Refusal::Failed(_) => {
                written.failed += 1;
                self.archive.1 = true;
            }
            Refusal::Bad(_) | Refusal::Passed(_) => {
                written.bad += 1;
                self.archive.0.bad += 1;
            }
        }
    }

    /// The ledger's entry for an archive of which everything is done now; nothing where something is not.
    fn end_of_archive(
        &mut self,
        entry: impl FnOnce(Outcome, Option<Fingerprint>) -> LedgerRecord,
        mut record: ArchiveRecord,
    ) -> Option<LedgerRecord> {
        let (now, reopen) = std::mem::take(&mut self.archive);
        record.stored += now.stored;
        record.duplicates += now.duplicates;
        record.bad += now.bad;
        let entry = entry(Outcome::Archive(record), None);
        self.archives.insert(entry.uri.clone());
        (!reopen).then_some(entry)
    }
}

/// Whether an item is as its unit would have it. A unit that was not embedded says nothing but its content.
fn unchanged(store: &Store, cache: CacheId, id: ItemId, good: Option<&Good>) -> anyhow::Result<bool> {
    match good {
        Some(good) => Ok(store.item(cache, id)?.as_ref() == Some(&good.record)),
        None => Ok(true),
    }
}

/// Why an id cannot be that of a unit: another has it.
///
/// * `items`: of this batch, so far.
fn taken(
    store: &Store,
    cache: CacheId,
    memory: &Memory,
    items: &[NewItem],
    earlier: Option<ItemId>,
    id: ItemId,
    uri: &str,
) -> anyhow::Result<Option<String>> {
    if id.0 == u64::MAX {
        return Ok(Some(format!("its id {id} is the one that is kept free")));
    }
    let owner = match items.iter().find(|item| item.id == Some(id)) {
        Some(item) => Some(item.record.uri.clone()),
        None if earlier == Some(id) && !memory.named.contains(id.0) => None,
        None => store.item(cache, id)?.map(|record| record.uri),
    };
    Ok(match owner {
        Some(owner) if memory.named.contains(id.0) => {
            Some(format!("its id {id} is already that of `{owner}`, of another row of this import"))
        }
        // Of another run: the same thing under the same id is a newer version of it.
        Some(owner) if owner != uri => Some(format!("its id {id} is already that of `{owner}`")),
        _ => None,
    })
}

/// The item that a unit was stored as, and its content, while it still is the unit's: others may have changed it or taken it out.
fn own_item(store: &Store, cache: CacheId, uri: &str) -> anyhow::Result<Option<(ItemId, Fingerprint)>> {
    let Some(unit) = store.ledger_unit(cache, uri)? else { return Ok(None) };
    let Some(id) = unit.item else { return Ok(None) };
    let Some(item) = store.item(cache, id)? else { return Ok(None) };
    let own = match unit.content {
        Some(content) => item.digest == content,
        // A ledger of before contents were kept in it.
        None => item.uri == uri || matches!(unit.outcome, Outcome::Stored(_)),
    };
    Ok(own.then_some((id, item.digest)))
}

/// Items whose content this batch replaces.
fn leaving(store: &Store, cache: CacheId, batch: &[Finished]) -> anyhow::Result<HashSet<ItemId>> {
    let mut leaving = HashSet::new();
    for unit in batch {
        let digest = match &unit.outcome {
            Finish::Good(good) => good.record.digest,
            Finish::Known(digest) => *digest,
            Finish::Refused(_) | Finish::Noted(_) | Finish::Begin | Finish::Archive(_) => continue,
        };
        if let Some(LedgerRecord { outcome: Outcome::Stored(id), .. }) =
            store.ledger_unit(cache, &unit.uri)?
            && store.item(cache, id)?.is_some_and(|old| old.digest != digest)
        {
            leaving.insert(id);
        }
    }
    Ok(leaving)
}

/// Where a ledger entry gets its item id from.
enum Slot {
    /// It has it, or needs none.
    Settled,
    /// It is an archive's.
    Archive,
    /// The item at this place of the batch, stored under this digest.
    StoredAs(usize, Fingerprint),
    /// The item at this place of the batch.
    DuplicateOf(usize),
}
