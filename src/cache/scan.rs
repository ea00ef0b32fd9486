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

use half::slice::HalfFloatSliceExt;

use super::mask::Mask;
use super::rows::{Block, check_row};
use super::{Error, Snapshot};
use crate::index::exact::{Scored, TopK};
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
}

/// Rows in memory as f32, `[n, dim]`.
#[derive(Debug, Clone, Copy)]
pub struct RowMatrix<'a> {
    /// Row-major.
    pub rows: &'a [f32],
    /// Components of a row.
    pub dim: usize,
}

impl RowAccess for RowMatrix<'_> {
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
        let (record, ids) = (&frozen.record, frozen.index.ids());
        let dim = record.dim;
        let mut rows: Vec<f32> = Vec::with_capacity(BLOCK * dim);
        match frozen.rows.block() {
            Some(Block::F32(all)) => {
                runs(ids.len(), masked)
                    .all(|run| visit(Slot(run.start as u32), &all[run.start * dim..run.end * dim]));
            }
            Some(Block::F16(all)) => {
                runs(ids.len(), masked).all(|run| {
                    rows.resize(run.len() * dim, 0.0);
                    all[run.start * dim..run.end * dim].convert_to_f32_slice(&mut rows);
                    visit(Slot(run.start as u32), &rows)
                });
            }
            None => {
                // `rows` holds those of the slots from `first` to before `at`, when there are any.
                let (mut first, mut at, mut wanted) = (0, 0, true);
                let from = ItemId(ids.first().copied().unwrap_or(0));
                frozen.store.scan_rows(record.id, from, |id, bytes| {
                    let before = at;
                    // Items that were deleted are missing from the scan, others are not in the generation.
                    while at < ids.len() && ids[at] < id.0 {
                        at += 1;
                    }
                    let take = ids.get(at) == Some(&id.0) && !masked.contains(at as u32);
                    if !rows.is_empty() && (at > before || rows.len() == BLOCK * dim) {
                        wanted = visit(Slot(first as u32), &rows);
                        rows.clear();
                    }
                    if take {
                        if rows.is_empty() {
                            first = at;
                        }
                        rows.extend(check_row(&record.name, id, Some(bytes), record.rows, dim)?);
                        at += 1;
                    }
                    Ok::<bool, Error>(wanted && at < ids.len())
                })?;
                if wanted && !rows.is_empty() {
                    visit(Slot(first as u32), &rows);
                }
            }
        }
        Ok(())
    }
}

/// The slots `0..n` that are not masked, in runs of at most [`BLOCK`].
fn runs(n: usize, masked: &Mask) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < n && masked.contains(at as u32) {
            at += 1;
        }
        let start = at;
        while at < n && at - start < BLOCK && !masked.contains(at as u32) {
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
        let (mut best, mut scores) = (TopK::new(k), Vec::new());
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
        let changed = self.delta.search(query.as_slice(), k, f32::NEG_INFINITY, &index.signs()).into_iter();
        all.extend(changed.map(|s| (s.score, self.delta.row(s.slot).0)));
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        Ok(Some(all.into_iter().take(k).map(|(_, id)| id).collect()))
    }
}

/// Offers the rows of a block, which begins at slot `first`.
pub(super) fn offer(best: &mut TopK, scores: &mut Vec<f32>, query: &[f32], first: Slot, block: &[f32]) {
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
        assert_eq!(runs(2, &masked).count(), 0);
    }
}
