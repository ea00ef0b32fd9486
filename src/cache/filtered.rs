//! A snapshot as a filter leaves it: made once for a request, searched by each of its queries.
//!
//! ```text
//! table of tags ─► slots that match ─► without masked ones ─┐
//! delta ─► its items that match, one by one ────────────────┴► searched as everything else is
//! ```
//!
//! Left out: keeping what was found for the next request with the same filter. Finding it costs less than a search.

use super::matching::{Matching, Slots};
use super::{Error, Found, Snapshot};
use crate::index::{SearchParams, Searcher};
use crate::types::{Embedding, Filter};

/// A snapshot of which a filter lets only some items be found.
pub struct Filtered<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) matching: Matching,
}

impl Snapshot {
    /// What a filter leaves of it.
    ///
    /// # Errors
    /// [`crate::store::Error::Damaged`] for a table of tags that cannot be read. For a generation that was stored without one
    /// it is made now: [`Error::Memory`] if it does not fit.
    pub fn filtered(&self, filter: &Filter) -> Result<Filtered<'_>, Error> {
        let mut slots = self.frozen.matching(filter)?;
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
