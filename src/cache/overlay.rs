//! The writer's side of a delta: takes in changes, from callers and from the store's log.

use std::collections::{HashMap, HashSet};

use super::Error;
use super::delta::{BLOCK_ROWS, Block, Delta, Tags};
use super::rows::check_row;
use crate::index::{Index, Signs};
use crate::store::{CacheRecord, ChangeKind, Store};
use crate::types::ItemId;

/// Dead rows that are borne before the live ones are moved together.
const DEAD_BORNE: usize = 1024;
/// Changes replayed at a time.
const REPLAY_CHUNK: usize = 1024;

/// The change of one item: its new row and tags, or nothing for a deletion.
pub(super) type Change = (ItemId, Option<(Vec<f32>, Tags)>);

/// The newest delta, and where each item lies in it.
pub(super) struct Overlay {
    delta: Delta,
    /// Where the live rows are.
    at: HashMap<ItemId, u32>,
}

impl Overlay {
    /// No changes since a watermark.
    pub(super) fn new(dim: usize, sequence: u64) -> Self {
        Overlay { delta: Delta::new(dim, sequence), at: HashMap::new() }
    }

    /// The newest delta.
    pub(super) fn delta(&self) -> &Delta {
        &self.delta
    }

    /// Takes in changes, in order; `sequence` is the number of the last.
    pub(super) fn apply(&mut self, index: &Index, changes: Vec<Change>, sequence: u64) {
        let (mut ids, mut tags, mut rows, start) = (Vec::new(), Vec::new(), Vec::new(), self.delta.rows);
        for (id, put) in changes {
            if let Some(position) = self.at.remove(&id) {
                self.delta.dead.insert(position);
            }
            if let Some(slot) = index.slot(id) {
                self.delta.masked.insert(slot.0);
            }
            if let Some((row, said)) = put {
                self.at.insert(id, start + ids.len() as u32);
                ids.push(id);
                tags.push(said);
                rows.extend_from_slice(&row);
            }
        }
        if !ids.is_empty() {
            self.delta.push(Block::new(start, ids, tags, rows, self.delta.dim, &index.signs()));
        }
        self.delta.sequence = sequence;
        let dead = self.delta.dead.len();
        if dead > DEAD_BORNE && 2 * dead > self.delta.rows() {
            self.squeeze(&index.signs());
        }
    }

    /// Moves the live rows together.
    fn squeeze(&mut self, signs: &Signs<'_>) {
        let (old, dim) = (self.delta.clone(), self.delta.dim);
        self.delta = Delta::new(dim, old.sequence);
        self.delta.masked = old.masked.clone();
        self.at.clear();
        let (mut ids, mut tags, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let mut full = |ids: &mut Vec<ItemId>, tags: &mut Vec<Tags>, rows: &mut Vec<f32>| {
            let (start, taken) = (self.delta.rows, std::mem::take(ids));
            self.at.extend(taken.iter().enumerate().map(|(i, &id)| (id, start + i as u32)));
            self.delta.push(Block::new(start, taken, std::mem::take(tags), std::mem::take(rows), dim, signs));
        };
        old.each_live(|block, at, _| {
            ids.push(block.ids[at]);
            tags.push(block.tags[at].clone());
            rows.extend_from_slice(&block.rows[at * dim..][..dim]);
            if ids.len() == BLOCK_ROWS {
                full(&mut ids, &mut tags, &mut rows);
            }
        });
        if !ids.is_empty() {
            full(&mut ids, &mut tags, &mut rows);
        }
    }

    /// Takes in what the store's log has beyond this delta, with the rows and tags as they are stored now.
    ///
    /// # Errors
    /// [`Error::Store`] when the log is damaged, [`Error::Row`] for a row that should be there.
    pub(super) fn replay(&mut self, store: &Store, record: &CacheRecord, index: &Index) -> Result<(), Error> {
        // An upsert whose row is gone was followed by a deletion, which the log then has, perhaps in the next look at it.
        let mut absent = HashSet::new();
        loop {
            let changes = store.changes(record.id, self.delta.sequence)?;
            if changes.is_empty() {
                break;
            }
            for chunk in changes.chunks(REPLAY_CHUNK) {
                let mut last: HashMap<ItemId, ChangeKind> = HashMap::new();
                for (_, change) in chunk {
                    last.insert(change.item, change.kind);
                    absent.remove(&change.item);
                }
                let put = |kind: &ChangeKind| *kind == ChangeKind::Upsert;
                let mut ids: Vec<ItemId> =
                    last.iter().filter(|(_, kind)| put(kind)).map(|(&id, _)| id).collect();
                ids.sort_unstable();
                let rows = store.rows(record.id, &ids)?;
                let items = store.items(record.id, &ids)?;
                let mut changes: Vec<Change> =
                    last.iter().filter(|(_, kind)| !put(kind)).map(|(&id, _)| (id, None)).collect();
                for ((id, bytes), item) in ids.into_iter().zip(rows).zip(items) {
                    let row = match bytes {
                        Some(bytes) => {
                            let row = check_row(&record.name, id, Some(&bytes), record.rows, record.dim)?;
                            Some((row, Tags::new(item.map(|item| item.tags).unwrap_or_default())))
                        }
                        None => {
                            absent.insert(id);
                            None
                        }
                    };
                    changes.push((id, row));
                }
                let sequence = chunk.last().map_or(self.delta.sequence, |(sequence, _)| *sequence);
                self.apply(index, changes, sequence);
            }
        }
        match absent.into_iter().next() {
            Some(id) => Err(Error::Row { cache: record.name.clone(), id, why: "missing".into() }),
            None => Ok(()),
        }
    }
}
