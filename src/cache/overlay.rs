//! The writer's side of a delta: takes in changes, from callers and from the store's log.

use std::collections::{HashMap, HashSet};

use super::Error;
use super::delta::{BLOCK_ROWS, Block, Delta, Tags};
use super::rows::check_row;
use crate::index::Index;
use crate::store::{self, CacheRecord, ChangeKind, ItemRecord, ItemStamp, Store};
use crate::types::{ItemId, Slot};

/// Dead rows that are borne before the live ones are moved together.
const DEAD_BORNE: usize = 1024;
/// Dead rows for each live one, from which on these are moved however few all are.
const FEW: usize = 8;
/// Looks at an item whose row and record are of different changes, before that counts as damage.
const LOOKS: usize = 10;
/// Changes replayed at a time.
const REPLAY_CHUNK: usize = 1024;

/// The change of one item: its new row and tags, or nothing for a deletion.
pub(super) type Change = (ItemId, Option<(Vec<f32>, Tags)>);

/// The newest delta, and where each item lies in it.
#[derive(Clone)]
pub(super) struct Overlay {
    delta: Delta,
    at: HashMap<ItemId, Place>,
}

/// Where the live row of an item is.
#[derive(Debug, Clone, Copy)]
struct Place {
    position: u32,
    /// The change that it came with, or the last of those that it came together with.
    since: u64,
}

/// A row of the delta that is to become one of the index.
pub(super) struct Waiting {
    pub(super) id: ItemId,
    pub(super) row: Vec<f32>,
    pub(super) tags: Tags,
    since: u64,
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
            if let Some(place) = self.at.remove(&id) {
                self.delta.dead.insert(place.position);
            }
            if let Some(slot) = index.slot(id) {
                self.delta.masked.insert(slot.0);
            }
            if let Some((row, said)) = put {
                self.at.insert(id, Place { position: start + ids.len() as u32, since: sequence });
                ids.push(id);
                tags.push(said);
                rows.extend_from_slice(&row);
            }
        }
        if !ids.is_empty() {
            self.delta.push(Block::new(start, ids, tags, rows, self.delta.dim, &index.signs()));
        }
        self.delta.sequence = sequence;
        self.squeeze();
    }

    /// Moves the live rows together, where many are dead.
    fn squeeze(&mut self) {
        let (dead, rows) = (self.delta.dead.len(), self.delta.rows());
        // Few are not worth a copy of the others, unless these are far fewer.
        if 2 * dead <= rows || (dead <= DEAD_BORNE && dead < FEW * (rows - dead)) {
            return;
        }
        let (old, dim) = (self.delta.clone(), self.delta.dim);
        self.delta = Delta::new(dim, old.sequence);
        self.delta.masked = old.masked.clone();
        let mut live = Vec::with_capacity(old.live());
        old.each_live(|block, at, _| live.push((block, at)));
        for rows in live.chunks(BLOCK_ROWS) {
            let start = self.delta.rows;
            for ((block, at), position) in rows.iter().zip(start..) {
                self.at.entry(block.ids[*at]).and_modify(|place| place.position = position);
            }
            self.delta.push(Block::gathered(start, rows, dim));
        }
    }

    /// The first live rows, at most so many.
    pub(super) fn waiting(&self, limit: usize) -> Vec<Waiting> {
        let (mut waiting, dim) = (Vec::with_capacity(limit), self.delta.dim);
        self.delta.some_live(|block, at, _| {
            let (id, row) = (block.ids[at], block.rows[at * dim..][..dim].to_vec());
            if let Some(place) = self.at.get(&id) {
                waiting.push(Waiting { id, row, tags: block.tags[at].clone(), since: place.since });
            }
            waiting.len() < limit
        });
        waiting
    }

    /// The change that the oldest live row came with.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.at.values().map(|place| place.since).min()
    }

    /// Rows have got slots of the index, from where they are found from now on; unless they were replaced or deleted meanwhile.
    pub(super) fn moved(&mut self, rows: &[(Waiting, Slot)]) {
        for (waiting, slot) in rows {
            match self.at.get(&waiting.id) {
                Some(place) if place.since == waiting.since => {
                    self.delta.dead.insert(place.position);
                    self.delta.masked.remove(slot.0);
                    self.at.remove(&waiting.id);
                }
                _ => self.delta.masked.insert(slot.0),
            }
        }
        self.squeeze();
    }

    /// Takes in what the store's log has beyond this delta, with the rows and tags as they are stored now: all of it, or nothing.
    ///
    /// * `record`: the cache's, read before the call: every change that it knows of must be found.
    ///
    /// # Errors
    /// [`Error::Store`] when the log is damaged or ends too soon, [`Error::Row`] for a row that should be there, or that is older
    /// than its change. A follower may meet either while the store is written, and finds it in order when it looks again.
    pub(super) fn replay(&mut self, store: &Store, record: &CacheRecord, index: &Index) -> Result<(), Error> {
        let mut next = self.clone();
        next.take_in(store, record, index)?;
        let (found, expected) = (next.delta.sequence, record.sequence);
        if found < expected {
            let what = format!("change log of cache `{}`", record.name);
            let why = format!("it ends at change {found}, the cache's record knows of {expected}");
            return Err(store::Error::Damaged { what, why }.into());
        }
        *self = next;
        Ok(())
    }

    fn take_in(&mut self, store: &Store, record: &CacheRecord, index: &Index) -> Result<(), Error> {
        // An upsert whose row is gone was followed by a deletion, which the log then has, perhaps in the next look at it.
        let mut absent = HashSet::new();
        loop {
            let changes = store.changes(record.id, self.delta.sequence)?;
            if changes.is_empty() {
                break;
            }
            for chunk in changes.chunks(REPLAY_CHUNK) {
                let mut last: HashMap<ItemId, (u64, ChangeKind)> = HashMap::new();
                for &(sequence, change) in chunk {
                    last.insert(change.item, (sequence, change.kind));
                    absent.remove(&change.item);
                }
                let mut put: Vec<(ItemId, u64)> = Vec::new();
                let mut changes: Vec<Change> = Vec::new();
                for (id, (sequence, kind)) in last {
                    match kind {
                        ChangeKind::Upsert => put.push((id, sequence)),
                        ChangeKind::Delete => changes.push((id, None)),
                    }
                }
                put.sort_unstable();
                let ids: Vec<ItemId> = put.iter().map(|&(id, _)| id).collect();
                let rows = store.rows(record.id, &ids)?;
                let items = store.stamped_items(record.id, &ids)?;
                for (((id, sequence), bytes), item) in put.into_iter().zip(rows).zip(items) {
                    let fits = |(bytes, (_, stamp)): &(Vec<u8>, (ItemRecord, ItemStamp))| {
                        stamp.fits(sequence, bytes)
                    };
                    let mut found = bytes.zip(item);
                    // Rows and records are not read at one moment, and the item may be changed between the two.
                    for _ in 0..LOOKS {
                        if found.as_ref().is_none_or(fits) {
                            break;
                        }
                        let row = store.row(record.id, id)?;
                        found = row.zip(store.stamped_items(record.id, &[id])?.pop().flatten());
                    }
                    if found.as_ref().is_some_and(|found| !fits(found)) {
                        let why = format!("older than change {sequence}, which put it");
                        return Err(Error::Row { cache: record.name.clone(), id, why });
                    }
                    let Some((bytes, (item, _))) = found else {
                        absent.insert(id);
                        changes.push((id, None));
                        continue;
                    };
                    let row = check_row(&record.name, id, Some(&bytes), record.rows, record.dim)?;
                    changes.push((id, Some((row, Tags::new(item.tags)))));
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
