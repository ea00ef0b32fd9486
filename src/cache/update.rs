//! Uri and tags of an item, changed without its embedding.
//!
//! ```text
//! lock ─► records as they are ─► one batch: records as they will be, log entries, cache record ─► as every change
//! ```
//!
//! To the log an update is an upsert, so whoever replays it (a follower, a generation that takes another's place) sees it. The
//! row stays where it is in the store; in memory it is copied into the delta, whose tags filters ask.

use std::collections::{BTreeMap, HashMap};

use super::change::{Old, forget};
use super::delta::{Tags, bytes_of_tags};
use super::overlay::Change;
use super::rows::check_row;
use super::{Cache, Error};
use crate::store::{ChangeKind, ChangeRecord, ItemRecord};
use crate::types::ItemId;

/// A change of what is said of an item.
#[derive(Debug, Clone)]
pub struct Edit {
    /// Which item.
    pub id: ItemId,
    /// Its new uri, if it gets one.
    pub uri: Option<String>,
    /// What becomes of its tags.
    pub tags: TagEdit,
}

/// A change of an item's tags.
#[derive(Debug, Clone, PartialEq)]
pub enum TagEdit {
    /// These in place of all that it has.
    All(BTreeMap<String, String>),
    /// Some of them: a value to have, or nothing to have no such tag. The others stay.
    Some(BTreeMap<String, Option<String>>),
}

impl Edit {
    /// The record as it will be.
    fn apply(self, old: &ItemRecord) -> ItemRecord {
        let mut new = old.clone();
        new.uri = self.uri.unwrap_or(new.uri);
        match self.tags {
            TagEdit::All(tags) => new.tags = tags,
            TagEdit::Some(tags) => {
                for (name, value) in tags {
                    match value {
                        Some(value) => drop(new.tags.insert(name, value)),
                        None => drop(new.tags.remove(&name)),
                    }
                }
            }
        }
        new
    }
}

impl Cache {
    /// Changes what is said of items, in order.
    ///
    /// * Returns one result for each, in order; the others are not affected by one that fails.
    ///
    /// # Errors
    /// For the call as a whole, of which then nothing is changed: [`Error::NotWritable`], [`Error::Deleted`], [`Error::Full`], a
    /// store that fails. For an item: [`Error::NoItem`], [`Error::TagBytes`], [`Error::Row`] for one whose row is damaged.
    pub fn update(&self, edits: Vec<Edit>) -> Result<Vec<Result<(), Error>>, Error> {
        self.check_writable()?;
        let mut ids: Vec<ItemId> = edits.iter().map(|edit| edit.id).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut state = self.state()?;
        let (store, mut record) = (&*self.store, state.record.clone());
        let rows = store.rows(record.id, &ids)?;
        let mut items: HashMap<ItemId, (ItemRecord, Option<Vec<u8>>)> = HashMap::with_capacity(ids.len());
        for ((id, item), row) in ids.iter().zip(store.items(record.id, &ids)?).zip(rows) {
            items.extend(item.map(|item| (*id, (item, row))));
        }
        let (mut batch, mut changes) = (store.batch(), Vec::<Change>::with_capacity(ids.len()));
        let (mut results, mut bytes) = (Vec::with_capacity(edits.len()), 0);
        for edit in edits {
            let id = edit.id;
            let Some((old, row)) = items.get_mut(&id) else {
                results.push(Err(Error::NoItem(id)));
                continue;
            };
            let new = edit.apply(old);
            let (said, limit) = (ItemRecord::tag_bytes(&new.tags), ItemRecord::MAX_TAG_BYTES);
            // What it had before may be more: an import has no such limit.
            if said > limit && said > ItemRecord::tag_bytes(&old.tags) {
                results.push(Err(Error::TagBytes { id, bytes: said, limit }));
                continue;
            }
            if new == *old {
                results.push(Ok(()));
                continue;
            }
            let values = match check_row(&record.name, id, row.as_deref(), record.rows, record.dim) {
                Ok(values) => values,
                Err(damaged) => {
                    results.push(Err(damaged));
                    continue;
                }
            };
            bytes += 5 * record.dim as u64 + bytes_of_tags(&new.tags);
            let before = Old { uri: std::mem::take(&mut old.uri), digest: old.digest };
            forget(store, &mut batch, &record, id, &before, Some(&new))?;
            record.sequence += 1;
            let row = row.as_deref().unwrap_or_default();
            batch.put_item_record(record.id, id, &new, row, record.sequence);
            batch.put_change(
                record.id,
                record.sequence,
                &ChangeRecord { kind: ChangeKind::Upsert, item: id },
            );
            changes.push((id, Some((values, Tags::new(new.tags.clone())))));
            *old = new;
            results.push(Ok(()));
        }
        if !changes.is_empty() {
            self.check_room(bytes)?;
            self.commit_changes(&mut state, batch, record, changes)?;
        }
        drop(state);
        // Also where nothing is changed: another call may have just done it, and wait for the disk.
        self.synced()?;
        Ok(results)
    }
}
