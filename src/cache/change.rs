//! Upsert and delete: visible to the next search, on disk when they return.
//!
//! ```text
//! lock ─► one batch: items, rows, log entries, cache record ─► next snapshot ─► unlock ─► wait for the disk
//! ```
//!
//! Waiting comes after unlocking: calls that wait at the same time share one wait. A search may therefore find an item a
//! moment before its upsert is acknowledged.

use std::collections::{HashMap, HashSet};

use super::delta::{Tags, bytes_of_tags};
use super::rows::decode_row;
use super::writer::unit_row;
use super::{Cache, Error, NewItem, State};
use crate::store::{Batch, ChangeKind, ChangeRecord, ItemRecord, LedgerRecord, Outcome, Store};
use crate::types::{Fingerprint, ItemId};

/// What is to be stored of one item.
struct Put {
    record: ItemRecord,
    /// In its stored form.
    row: Vec<u8>,
}

/// What is known of an item that is to be replaced or deleted.
struct Old {
    uri: String,
    digest: Fingerprint,
}

/// The ids that the items of a call get.
struct Ids {
    /// The one after the largest ever.
    next: ItemId,
    /// Those that the call names.
    named: HashSet<ItemId>,
}

impl Ids {
    /// The id of the next item: its own, or one that is new and that the call does not name. None when there is none left.
    fn give(&mut self, own: Option<ItemId>) -> Option<ItemId> {
        while own.is_none() && self.next.0 < u64::MAX && self.named.contains(&self.next) {
            self.next.0 += 1;
        }
        // The largest number is kept, so that there is always one that is next.
        let id = own.unwrap_or(self.next);
        let after = ItemId(id.0.checked_add(1)?);
        self.next = self.next.max(after);
        Some(id)
    }
}

impl Cache {
    /// Puts items, each under its id or the next one after the largest ever. An id that exists is replaced, also one that an
    /// earlier of these items has.
    ///
    /// * Returns one result for each item, in order: its id, or why it was not stored; the others are.
    ///
    /// # Errors
    /// For the call as a whole, of which then nothing is stored: [`Error::NotWritable`], [`Error::Full`], a store that
    /// fails. For an item: [`Error::Dimension`], [`Error::Row`] without direction, [`Error::NoFreeId`].
    pub fn upsert(&self, items: Vec<NewItem>) -> Result<Vec<Result<ItemId, Error>>, Error> {
        self.upsert_beside(items, &[])
    }

    /// As [`Cache::upsert`].
    ///
    /// * `named`: further ids that the caller named, for items that did not come so far. Like those of `items` they are given to
    ///   none that names no id: the caller may come back with what is meant to be there.
    ///
    /// # Errors
    /// As [`Cache::upsert`].
    pub fn upsert_beside(
        &self,
        items: Vec<NewItem>,
        named: &[ItemId],
    ) -> Result<Vec<Result<ItemId, Error>>, Error> {
        if !self.writable() {
            return Err(Error::NotWritable(self.name.clone()));
        }
        let record = self.snapshot().record().clone();
        let prepare = |item: NewItem| {
            if item.embedding.dim() != record.dim {
                let (expected, received) = (record.dim, item.embedding.dim());
                return Err(Error::Dimension { cache: record.name.clone(), expected, received });
            }
            let row = unit_row(item.embedding, &record, item.id.unwrap_or(ItemId(0)))?;
            Ok((item.id, Put { record: item.record, row }))
        };
        let named = items.iter().filter_map(|item| item.id).chain(named.iter().copied()).collect();
        // The work that needs no lock is done before it is taken.
        let prepared: Vec<Result<(Option<ItemId>, Put), Error>> = items.into_iter().map(prepare).collect();
        let tags = prepared.iter().flatten().map(|(_, put)| bytes_of_tags(&put.record.tags)).sum::<u64>();
        let mut state = self.state()?;
        self.check_room(5 * (prepared.len() * record.dim) as u64 + tags)?;
        let mut ids = Ids { next: state.record.next_item, named };
        let mut changes = Vec::with_capacity(prepared.len());
        let mut results = Vec::with_capacity(prepared.len());
        for prepared in prepared {
            results.push(prepared.and_then(|(id, put)| {
                let id = ids.give(id).ok_or_else(|| Error::NoFreeId(self.name.clone()))?;
                changes.push((id, Some(put)));
                Ok(id)
            }));
        }
        self.write(&mut state, changes)?;
        drop(state);
        self.synced()?;
        Ok(results)
    }

    /// Deletes items. One that is not there is not an error.
    ///
    /// * Returns for each id, in order, whether it was there.
    ///
    /// # Errors
    /// Of which nothing is deleted: [`Error::NotWritable`], a store that fails.
    pub fn delete(&self, ids: &[ItemId]) -> Result<Vec<bool>, Error> {
        if !self.writable() {
            return Err(Error::NotWritable(self.name.clone()));
        }
        let mut state = self.state()?;
        let found = self.write(&mut state, ids.iter().map(|&id| (id, None)).collect())?;
        drop(state);
        self.synced()?;
        Ok(found)
    }

    /// Waits for the disk.
    fn synced(&self) -> Result<(), Error> {
        self.store.sync()?;
        fail::fail_point!("change::after_sync", |_| std::process::abort());
        Ok(())
    }

    /// Whether so many more bytes may be held.
    fn check_room(&self, bytes: u64) -> Result<(), Error> {
        let now = self.snapshot();
        let held = now.loaded().plan.total() + now.delta().bytes;
        let budget = self.options.memory_budget;
        if held + bytes > budget {
            return Err(Error::Full { cache: self.name.clone(), held: held >> 20, budget: budget >> 20 });
        }
        Ok(())
    }

    /// Writes changes in one batch and shows them to readers. Returns for each whether the item was there.
    fn write(&self, state: &mut State, changes: Vec<(ItemId, Option<Put>)>) -> Result<Vec<bool>, Error> {
        let store = &*self.store;
        let mut record = state.record.clone();
        let (mut batch, mut applied) = (store.batch(), Vec::with_capacity(changes.len()));
        // What this very batch has put or deleted before.
        let mut here: HashMap<ItemId, Option<Old>> = HashMap::new();
        let mut found = Vec::with_capacity(changes.len());
        for (id, put) in changes {
            let old = match here.remove(&id) {
                Some(old) => old,
                None if id >= record.next_item => None,
                None => store.item(record.id, id)?.map(|item| Old { uri: item.uri, digest: item.digest }),
            };
            found.push(old.is_some());
            if old.is_none() && put.is_none() {
                here.insert(id, None);
                continue;
            }
            if let Some(old) = &old {
                forget(store, &mut batch, &record, id, old, put.as_ref().map(|put| &put.record))?;
            }
            record.sequence += 1;
            let kind = if put.is_some() { ChangeKind::Upsert } else { ChangeKind::Delete };
            batch.put_change(record.id, record.sequence, &ChangeRecord { kind, item: id });
            record.items = record.items + u64::from(put.is_some()) - u64::from(old.is_some());
            record.next_item = record.next_item.max(ItemId(id.0.saturating_add(1)));
            match put {
                Some(put) => {
                    batch.put_item(record.id, id, &put.record, &put.row);
                    let Put { record: ItemRecord { uri, digest, tags, .. }, row } = put;
                    // So that a build that meets this content does not store it once more. The first item that has it stays known.
                    if store.item_of_digest(record.id, &digest)?.is_none_or(|known| known == id) {
                        batch.put_digest(record.id, &digest, id);
                    }
                    here.insert(id, Some(Old { uri, digest }));
                    // The row as it will be read back, f16 included.
                    applied.push((id, Some((decode_row(&row, record.rows), Tags::new(tags)))));
                }
                None => {
                    batch.delete_item(record.id, id);
                    here.insert(id, None);
                    applied.push((id, None));
                }
            }
        }
        if applied.is_empty() {
            return Ok(found);
        }
        batch.put_cache(&record);
        fail::fail_point!("change::before_commit", |_| std::process::abort());
        store.commit_unsynced(batch)?;
        fail::fail_point!("change::after_commit", |_| std::process::abort());
        let frozen = self.snapshot().frozen.clone();
        state.overlay.apply(&frozen.index, applied, record.sequence);
        state.record = record;
        self.show(&frozen, &state.overlay);
        Ok(found)
    }
}

/// Takes what a build remembers of an item's content and file out of the ledger, so that a later run neither takes a file
/// for a duplicate of what is gone, nor says that the file is stored.
///
/// * `new`: what takes its place, if anything does.
fn forget(
    store: &Store,
    batch: &mut Batch<'_>,
    cache: &crate::store::CacheRecord,
    id: ItemId,
    old: &Old,
    new: Option<&ItemRecord>,
) -> Result<(), Error> {
    if new.is_none_or(|new| new.digest != old.digest)
        && store.item_of_digest(cache.id, &old.digest)? == Some(id)
    {
        batch.delete_digest(cache.id, &old.digest);
    }
    if new.is_none_or(|new| new.uri != old.uri)
        && let Some(unit) = store.ledger_unit(cache.id, &old.uri)?
        && unit.outcome == Outcome::Stored(id)
    {
        let item = None;
        batch.put_ledger(cache.id, &LedgerRecord { outcome: Outcome::Deleted, item, ..unit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn given(next: u64, wished: &[Option<u64>]) -> Vec<Option<u64>> {
        let named = wished.iter().flatten().map(|&id| ItemId(id)).collect();
        let mut ids = Ids { next: ItemId(next), named };
        wished.iter().map(|id| ids.give(id.map(ItemId)).map(|id| id.0)).collect()
    }

    #[test]
    fn an_id_that_is_named_is_not_given_to_an_item_without_one() {
        assert_eq!(given(5, &[None, Some(5)]), [Some(6), Some(5)]);
        assert_eq!(given(5, &[None, None, Some(6), Some(5)]), [Some(7), Some(8), Some(6), Some(5)]);
        assert_eq!(given(5, &[None, Some(7), None, Some(500)]), [Some(5), Some(7), Some(8), Some(500)]);
        let last = u64::MAX - 1;
        assert_eq!(given(last, &[None, Some(last)]), [None, Some(last)], "the largest number is no id");
        assert_eq!(given(last, &[None, None, Some(u64::MAX)]), [Some(last), None, None]);
        assert_eq!(given(0, &[Some(last), None]), [Some(last), None]);
    }

    proptest! {
        #[test]
        fn given_ids_are_new_and_nobody_elses(
            next in prop_oneof![0u64..20, u64::MAX - 20..=u64::MAX],
            wished in prop::collection::vec(
                prop::option::of(prop_oneof![0u64..20, u64::MAX - 20..=u64::MAX]), 0..30),
        ) {
            let given = given(next, &wished);
            let mut free = HashSet::new();
            for (wished, given) in wished.iter().zip(&given) {
                match (wished, given) {
                    (Some(id), given) => prop_assert_eq!(*given, (*id < u64::MAX).then_some(*id)),
                    (None, Some(id)) => {
                        prop_assert!(*id >= next && *id < u64::MAX);
                        prop_assert!(free.insert(*id), "{} was given twice", id);
                    }
                    (None, None) => {}
                }
            }
            prop_assert!(wished.iter().flatten().all(|id| !free.contains(id)));
        }
    }
}
