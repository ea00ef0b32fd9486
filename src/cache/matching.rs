//! What a filter lets through, in the generation and in the delta.

use std::sync::OnceLock;

use roaring::RoaringBitmap;

use super::delta::Kept;
use crate::types::Slot;

/// What matches, in the generation and in the delta.
pub(super) struct Matching {
    pub(super) slots: Slots,
    pub(super) delta: Kept,
}

/// Some slots of a generation.
pub(super) struct Slots {
    bitmap: RoaringBitmap,
    count: usize,
    /// The same, ascending, for scans.
    list: OnceLock<Vec<u32>>,
}

impl Slots {
    pub(super) fn new(bitmap: RoaringBitmap) -> Self {
        Slots { count: bitmap.len() as usize, bitmap, list: OnceLock::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.bitmap.contains(slot.0)
    }

    pub(super) fn list(&self) -> &[u32] {
        self.list.get_or_init(|| self.bitmap.iter().collect())
    }
}
