//! All rows of an index in order, wherever they lie, and the truth that is taken from them.
//!
//! ```text
//! rows in memory, f32     slices of them                      ┐
//! rows in memory, f16     a block at a time, widened          ├─► visit(first slot, rows of consecutive slots)
//! rows on disk            a block at a time, read and checked ┘
//! ```
//!
//! Blocks are small enough to stay in a core's cache while many queries are scored on each. A visitor may end the scan.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::clock::Clock;
use super::mask::Mask;
use super::rows::check_row;
use super::{Error, Snapshot};
use crate::index::exact::{Scored, TopK};
use crate::index::{CHUNK, InMemory};
use crate::kernels::Kernels;
use crate::types::{Embedding, ItemId, Slot};

/// Rows of a block: two MiB of ImageBind's.
const BLOCK: usize = 512;

/// The rows of an index by slot, wherever they are.
pub trait RowAccess {
    /// The row of a slot; nothing for one that was replaced or deleted since.
    ///
    /// # Errors
    /// When it cannot be read.
    fn row(&self, slot: Slot) -> Result<Option<Vec<f32>>, Error>;

    /// Hands over all rows in blocks, row-major, each beginning at a slot, until `visit` answers false.
    ///
    /// # Errors
    /// When they cannot be read.
    fn scan(&self, visit: &mut dyn FnMut(Slot, &[f32]) -> bool) -> Result<(), Error>;

    /// How many slots have no row.
    fn gone(&self) -> usize {
        0
    }

    /// Whether a slot has a row.
    fn has(&self, _slot: Slot) -> bool {
        true
    }
}

impl RowAccess for InMemory<'_> {
    fn row(&self, slot: Slot) -> Result<Option<Vec<f32>>, Error> {
        Ok(Some(self.rows[slot.index() * self.dim..][..self.dim].to_vec()))
    }

    fn scan(&self, visit: &mut dyn FnMut(Slot, &[f32]) -> bool) -> Result<(), Error> {
        let mut blocks = self.rows.chunks(BLOCK * self.dim).enumerate();
        blocks.all(|(i, block)| visit(Slot((i * BLOCK) as u32), block));
        Ok(())
    }
}

impl RowAccess for Snapshot {
    fn row(&self, slot: Slot) -> Result<Option<Vec<f32>>, Error> {
        if self.delta.masked().contains(slot.0) {
            return Ok(None);
        }
        let frozen = &self.frozen;
        let id = frozen.index.id(slot);
        Ok(frozen
            .rows
            .read(&frozen.store, &frozen.record, &[slot], &[id])?
            .pop()
            .flatten()
            .map(Cow::into_owned))
    }

    fn scan(&self, visit: &mut dyn FnMut(Slot, &[f32]) -> bool) -> Result<(), Error> {
        let (frozen, masked) = (&self.frozen, self.delta.masked());
        let (record, index) = (&frozen.record, &frozen.index);
        let dim = record.dim;
        if let Some(all) = frozen.rows.block() {
            runs(index.len(), masked).all(|run| visit(Slot(run.start as u32), &all.run(run)));
            return Ok(());
        }
        // `rows` holds those of consecutive slots from `first` on, when there are any.
        let mut rows: Vec<f32> = Vec::with_capacity(BLOCK * dim);
        let (mut first, mut wanted) = (0, true);
        let mut items = index.items_from(ItemId(0)).peekable();
        let from = items.peek().map_or(ItemId(0), |(id, _)| *id);
        frozen.store.scan_rows(record.id, from, |id, bytes| {
            // Items that were deleted are missing from the scan, others are not in the generation.
            while items.next_if(|(item, _)| *item < id).is_some() {}
            let slot = items.next_if(|(item, _)| *item == id).map(|(_, slot)| slot.0);
            if let Some(slot) = slot.filter(|&slot| !masked.contains(slot)) {
                let next = first + (rows.len() / dim) as u32;
                if !rows.is_empty() && (slot != next || rows.len() == BLOCK * dim) {
                    wanted = visit(Slot(first), &rows);
                    rows.clear();
                }
                if rows.is_empty() {
                    first = slot;
                }
                rows.extend(check_row(&record.name, id, Some(bytes), record.rows, dim)?);
            }
            Ok::<bool, Error>(wanted && items.peek().is_some())
        })?;
        if wanted && !rows.is_empty() {
            visit(Slot(first), &rows);
        }
        Ok(())
    }

    fn gone(&self) -> usize {
        self.delta.masked().len()
    }

    fn has(&self, slot: Slot) -> bool {
        !self.delta.masked().contains(slot.0)
    }
}

/// The slots `0..n` that are not masked, in runs of at most [`BLOCK`], none of which leaves a chunk.
fn runs(n: usize, masked: &Mask) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < n && masked.contains(at as u32) {
            at += 1;
        }
        let start = at;
        let end = n.min(start + BLOCK).min((start / CHUNK + 1) * CHUNK);
        while at < end && !masked.contains(at as u32) {
            at += 1;
        }
        (start < at).then_some(start..at)
    })
}

impl Snapshot {
    /// The ids of the `k` nearest items by a scan of every row, on the calling thread alone; nothing when `stop` was raised
    /// before its end.
    ///
    /// * `query`: length D.
    ///
    /// # Errors
    /// [`Error::Row`], and a store that cannot be read.
    pub fn truth(
        &self,
        query: &Embedding,
        k: usize,
        stop: &AtomicBool,
    ) -> Result<Option<Vec<ItemId>>, Error> {
        let by_id = |slot: Slot| self.frozen.index.id(slot).0;
        let (mut best, mut scores) = (TopK::by(k, Some(&by_id)), Vec::new());
        let mut go_on = true;
        self.scan(&mut |first, block| {
            offer(&mut best, &mut scores, query.as_slice(), first, block);
            go_on = !stop.load(Ordering::Relaxed);
            go_on
        })?;
        if !go_on {
            return Ok(None);
        }
        let index = &self.frozen.index;
        let mut all: Vec<(f32, ItemId)> =
            best.into_sorted().into_iter().map(|s| (s.score, index.id(s.slot))).collect();
        let (signs, clock) = (index.signs(), Clock::never());
        let changed = self.delta.search(query.as_slice(), k, f32::NEG_INFINITY, &signs, &clock).into_iter();
        all.extend(changed.map(|s| (s.score, self.delta.row(s.slot).0)));
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        Ok(Some(all.into_iter().take(k).map(|(_, id)| id).collect()))
    }
}

/// Offers the rows of a block, which begins at slot `first`.
pub(super) fn offer(best: &mut TopK<'_>, scores: &mut Vec<f32>, query: &[f32], first: Slot, block: &[f32]) {
    let slots: Vec<u32> = (0..(block.len() / query.len()) as u32).collect();
    Kernels::get().score_f32(block, &slots, query, scores);
    for (slot, &score) in slots.into_iter().zip(scores.iter()) {
        best.push(Scored { slot: Slot(first.0 + slot), score });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_leave_out_what_is_masked() {
        let mut masked = Mask::default();
        [0, 1, 600, 1299].into_iter().for_each(|slot| masked.insert(slot));
        let found: Vec<_> = runs(1300, &masked).collect();
        assert_eq!(found, [2..514, 514..600, 601..1113, 1113..1299]);
        assert_eq!(runs(3, &masked).next(), Some(2..3));
        let across: Vec<_> = runs(CHUNK + 100, &masked).skip_while(|run| run.end < CHUNK).collect();
        assert_eq!(across.first().map(|run| run.end), Some(CHUNK));
        assert_eq!(across[1], CHUNK..CHUNK + 100);
        assert_eq!(runs(2, &masked).count(), 0);
    }
}
