//! A snapshot as a filter leaves it: made once for a request, searched by each of its queries.
//!
//! ```text
//! table of tags ─► slots that match ─► without masked ones ─┐
//! delta ─► its items that match, one by one ────────────────┴► searched as everything else is
//! ```
//!
//! Left out: keeping what was found for the next request with the same filter. Finding it costs less than a search.

use std::sync::OnceLock;

use roaring::RoaringBitmap;

use super::delta::Kept;
use super::{Error, Found, Snapshot};
use crate::index::{SearchParams, Searcher};
use crate::types::{Embedding, Filter, Slot};

/// A snapshot of which a filter lets only some items be found.
pub struct Filtered<'a> {
    snapshot: &'a Snapshot,
    matching: Matching,
}

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
    fn new(bitmap: RoaringBitmap) -> Self {
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

impl Snapshot {
    /// What a filter leaves of it.
    ///
    /// # Errors
    /// [`crate::store::Error::Damaged`] for a table of tags that cannot be read. For a generation that was stored without one
    /// it is made now: [`Error::Memory`] if it does not fit.
    pub fn filtered(&self, filter: &Filter) -> Result<Filtered<'_>, Error> {
        let mut slots = self.frozen.tags()?.matching(filter, &self.frozen.index)?;
        let masked = self.delta.masked();
        if !masked.is_empty() && !slots.is_empty() {
            slots -= masked.bitmap();
        }
        let matching = Matching { slots: Slots::new(slots), delta: self.delta.kept_by(filter) };
        Ok(Filtered { snapshot: self, matching })
    }
}

impl Filtered<'_> {
    /// Items that can be found.
    pub fn len(&self) -> usize {
        self.matching.slots.len() + self.matching.delta.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `top_k` nearest matching items of a query, best first; otherwise as [`Snapshot::search`].
    ///
    /// # Errors
    /// As [`Snapshot::search`].
    pub fn search(
        &self,
        searcher: &mut Searcher,
        query: &Embedding,
        top_k: usize,
        params: &SearchParams,
    ) -> Result<Found, Error> {
        self.snapshot.search_among(searcher, query, top_k, params, Some(&self.matching))
    }
}
