//! Embedded units reach the store: items, rows, ledger and digests of a batch in one synced write.
//!
//! Order of decisions for a unit: bad → ledger only. Content already stored as another item → ledger says duplicate.
//! Name already stored (its file has changed) → the item is replaced under its id. Otherwise a new item.
//! Content of an item that this batch replaces is about to go: a unit that has it is not its duplicate.

use std::collections::{HashMap, HashSet};

use viscache::cache::{NewItem, Writer};
use viscache::store::{CacheId, ItemRecord, LedgerRecord, Outcome, Stamp, Store};
use viscache::types::{Embedding, Fingerprint, ItemId};

/// One unit's outcome on its way to the store.
pub struct Finished {
    /// The unit's name.
    pub uri: String,
    /// Its stamp.
    pub stamp: Stamp,
    /// What to store, or why nothing.
    pub outcome: Result<Good, String>,
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

/// What became of a batch.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Written {
    /// New items.
    pub stored: u64,
    /// Items replaced, because their file has changed.
    pub replaced: u64,
    /// Units whose content was already stored.
    pub duplicates: u64,
    /// Units refused.
    pub bad: u64,
}

impl std::ops::AddAssign for Written {
    fn add_assign(&mut self, other: Written) {
        self.stored += other.stored;
        self.replaced += other.replaced;
        self.duplicates += other.duplicates;
        self.bad += other.bad;
    }
}

/// Writes a batch of finished units.
///
/// * `dedup`: whether content that is already stored is not stored again.
///
/// # Errors
/// When the store cannot be read or written; then nothing of the batch is in it.
pub fn write(
    store: &Store,
    writer: &mut Writer<'_>,
    batch: Vec<Finished>,
    dedup: bool,
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
        let earlier = store.ledger_unit(cache, &unit.uri)?.and_then(|record| record.item);
        let (uri, stamp) = (unit.uri, unit.stamp);
        let entry = |outcome, digest| LedgerRecord { uri, stamp, outcome, item: earlier, digest };
        let good = match unit.outcome {
            Ok(good) => good,
            Err(reason) => {
                written.bad += 1;
                entries.push((entry(Outcome::Bad(reason), None), Slot::Settled));
                continue;
            }
        };
        let digest = good.record.digest;
        if let Some(owner) = good.id.map(|id| owner_of(store, cache, &items, id)).transpose()?.flatten()
            && owner != good.record.uri
        {
            written.bad += 1;
            let id = good.id.map_or(0, |id| id.0);
            let reason = format!("its id {id} is already that of `{owner}`");
            entries.push((entry(Outcome::Bad(reason), None), Slot::Settled));
            continue;
        }
        if dedup {
            let same = store
                .item_of_digest(cache, &digest)?
                .filter(|&id| Some(id) != earlier && !leaving.contains(&id));
            if let Some(id) = same {
                written.duplicates += 1;
                entries.push((entry(Outcome::Duplicate(id), Some(digest)), Slot::Settled));
                continue;
            }
            if let Some(&at) = in_batch.get(&digest) {
                written.duplicates += 1;
                entries.push((entry(Outcome::Duplicate(ItemId(0)), Some(digest)), Slot::DuplicateOf(at)));
                continue;
            }
        }
        match earlier {
            Some(id) => {
                written.replaced += 1;
                if let Some(old) = store.item(cache, id)?.filter(|old| old.digest != digest) {
                    forget.push(old.digest);
                }
            }
            None => written.stored += 1,
        }
        in_batch.insert(digest, items.len());
        entries.push((entry(Outcome::Stored(ItemId(0)), None), Slot::StoredAs(items.len(), digest)));
        items.push(NewItem { id: good.id.or(earlier), embedding: good.embedding, record: good.record });
    }
    writer.put(items, |ids, batch, record| {
        for digest in &forget {
            batch.delete_digest(record.id, digest);
        }
        for (mut entry, slot) in entries {
            match slot {
                Slot::Settled => {}
                Slot::DuplicateOf(at) => entry.outcome = Outcome::Duplicate(ids[at]),
                Slot::StoredAs(at, digest) => {
                    entry.outcome = Outcome::Stored(ids[at]);
                    entry.item = Some(ids[at]);
                    batch.put_digest(record.id, &digest, ids[at]);
                }
            }
            batch.put_ledger(record.id, &entry);
        }
    })?;
    Ok(written)
}

/// Items whose content this batch replaces.
fn leaving(store: &Store, cache: CacheId, batch: &[Finished]) -> anyhow::Result<HashSet<ItemId>> {
    let mut leaving = HashSet::new();
    for unit in batch {
        if let Ok(good) = &unit.outcome
            && let Some(LedgerRecord { outcome: Outcome::Stored(id), .. }) =
                store.ledger_unit(cache, &unit.uri)?
            && store.item(cache, id)?.is_some_and(|old| old.digest != good.record.digest)
        {
            leaving.insert(id);
        }
    }
    Ok(leaving)
}

/// Name of the item that has an id, in the store or in this batch.
fn owner_of(store: &Store, cache: CacheId, items: &[NewItem], id: ItemId) -> anyhow::Result<Option<String>> {
    match items.iter().find(|item| item.id == Some(id)) {
        Some(item) => Ok(Some(item.record.uri.clone())),
        None => Ok(store.item(cache, id)?.map(|record| record.uri)),
    }
}

/// Where a ledger entry gets its item id from.
enum Slot {
    /// It has it, or needs none.
    Settled,
    /// The item at this place of the batch, stored under this digest.
    StoredAs(usize, Fingerprint),
    /// The item at this place of the batch.
    DuplicateOf(usize),
}
