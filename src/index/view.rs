//! An index in memory, as one version of it: what a search reads, and nothing that changes under it but links.
//!
//! ```text
//! version   ids, codes, signs in chunks ([`super::chunks`]) · upper levels · where ids lie      never changes
//! shared    links of level 0 ([`super::shared`])                                                hints, may change
//! ```

use std::sync::Arc;

use super::chunks::Chunks;
use super::layout::row_len;
use super::links::Links;
use super::lookup::Lookup;
use super::quant::{Codec, Coded};
use super::shared::LinkRows;
use super::sketch::{Signs, Sketch};
use super::upper::Upper;
use super::{BuildParams, CodeKind, Error};
use crate::kernels::{self, Kernels};
use crate::types::{ItemId, Slot};

/// An index that can be searched. Copies are cheap, and share everything.
#[derive(Clone)]
pub struct Index {
    pub(super) codec: Arc<Codec>,
    pub(super) m: usize,
    /// Bytes that it was read from; 0 of one that was not.
    pub(super) stored: u64,
    pub(super) links: LinkRows,
    pub(super) upper: Arc<Upper>,
    pub(super) lookup: Lookup,
    pub(super) ids: Chunks,
    pub(super) codes: Chunks,
    pub(super) sketch: Option<Sketch>,
}

/// What an index says of itself.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Rows.
    pub nodes: usize,
    /// Components of a row.
    pub dim: usize,
    /// What the search runs on.
    pub codes: CodeKind,
    /// Links per node and upper level, M.
    pub m: usize,
    /// Levels above level 0.
    pub upper_levels: usize,
    /// Mean number of links on level 0.
    pub mean_degree: f64,
    /// Size of the index.
    pub bytes: u64,
}

impl Index {
    /// One without rows: what a cache is searched by that has no generation yet. It is never stored, and has no graph to walk;
    /// what is asked of it is asked of the changes beside it.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn empty(dim: usize) -> Result<Self, Error> {
        let (kind, m) = (BuildParams::DEFAULT_CODES, BuildParams::DEFAULT_M);
        Ok(Index {
            codec: Codec { kind, step: 1.0, mean: vec![0.0; dim] }.into(),
            m,
            stored: 0,
            links: LinkRows::new(0, row_len(m))?,
            upper: Upper::new(0, Vec::new(), 0).into(),
            lookup: Lookup::InOrder,
            ids: Chunks::zeroed(0, 8)?,
            codes: Chunks::zeroed(0, kind.stride(dim))?,
            sketch: None,
        })
    }

    /// Number of slots: rows, and places of rows that have gone.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Slots that there can be without more memory.
    pub fn capacity(&self) -> usize {
        self.codes.capacity()
    }

    /// Whether it is [`Index::empty`]: an opened one has at least one row.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Components of a row.
    pub fn dim(&self) -> usize {
        self.codec.dim()
    }

    /// Bytes of a coded row.
    pub fn code_bytes(&self) -> usize {
        self.codec.stride()
    }

    /// The item at a slot; where that has gone, the last that was there.
    pub fn id(&self, slot: Slot) -> ItemId {
        ItemId(self.id_at(slot.0))
    }

    pub(super) fn id_at(&self, slot: u32) -> u64 {
        bytemuck::pod_read_unaligned(self.ids.row(slot))
    }

    /// The slot that an item has, or had when it went.
    pub fn slot(&self, id: ItemId) -> Option<Slot> {
        self.lookup.slot(id.0, self.len(), |slot| self.id_at(slot)).map(Slot)
    }

    /// Whether slots are in the order of their ids, as in every index that was just opened.
    pub fn in_order(&self) -> bool {
        matches!(self.lookup, Lookup::InOrder)
    }

    /// Item ids by slot.
    pub fn ids(&self) -> Vec<u64> {
        (0..self.len() as u32).map(|slot| self.id_at(slot)).collect()
    }

    /// Items from one on, in the order of their ids, each with the slot that it has or had.
    pub fn items_from(&self, id: ItemId) -> impl Iterator<Item = (ItemId, Slot)> {
        let items = self.lookup.from(id.0, self.len(), |slot| self.id_at(slot));
        items.map(|(id, slot)| (ItemId(id), Slot(slot)))
    }

    /// What a score on codes may lack of the true one, for [`super::exact::rescore`]: four standard deviations of its error.
    /// Eight find no more (synthetic 100k, both kinds of queries), three lose one neighbour in a thousand. In 8 bits it is
    /// eight: what is clipped of features with heavy tails doubles the error that is expected (`tests/cache/codecs.rs`).
    ///
    /// * `query`: length D.
    pub fn score_error(&self, query: &[f32]) -> f32 {
        let largest = query.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let norm = Kernels::get().dot(query, query).sqrt();
        let deviations = if self.codec.kind() == CodeKind::U8 { 8.0 } else { 4.0 };
        deviations * self.codec.score_error(norm, largest)
    }

    /// What the search runs on.
    pub fn codes(&self) -> CodeKind {
        self.codec.kind()
    }

    /// What the index says of itself: every node is looked at.
    pub fn summary(&self) -> Summary {
        let degrees: u64 = (0..self.len() as u32).map(|slot| self.links.degree(slot) as u64).sum();
        Summary {
            nodes: self.len(),
            dim: self.dim(),
            codes: self.codec.kind(),
            m: self.m,
            upper_levels: self.upper.levels().len(),
            mean_degree: degrees as f64 / self.len().max(1) as f64,
            bytes: self.stored,
        }
    }

    /// Bytes of memory that it takes, those that it shares with other versions included.
    pub fn bytes(&self) -> u64 {
        let signs = self.sketch.as_ref().map_or(0, Sketch::bytes);
        let parts = [&self.ids, &self.codes].map(Chunks::bytes).into_iter().sum::<u64>();
        parts + signs + self.links.bytes() + self.upper.bytes() + self.lookup.bytes()
    }

    /// Slots that the entry cannot reach on level 0: none of an index that was just opened, unless the bytes were made by someone
    /// else.
    pub fn unreachable(&self) -> Vec<Slot> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut reached = vec![false; self.len()];
        let mut open = vec![self.upper.entry];
        reached[self.upper.entry as usize] = true;
        while let Some(slot) = open.pop() {
            self.links.each(slot, |next| {
                if reached.get(next as usize) == Some(&false) {
                    reached[next as usize] = true;
                    open.push(next);
                }
            });
        }
        (0..self.len() as u32).filter(|&slot| !reached[slot as usize]).map(Slot).collect()
    }

    pub(super) fn codec(&self) -> &Codec {
        &self.codec
    }

    /// The mean that is taken off the rows before they are coded.
    pub fn mean(&self) -> &[f32] {
        self.codec.mean()
    }

    /// Signs of rows that are not in it, by its mean.
    pub fn signs(&self) -> Signs<'_> {
        Signs::new(&self.codec)
    }

    pub(super) fn sketch(&self) -> Option<&Sketch> {
        self.sketch.as_ref()
    }

    pub(super) fn coded(&self) -> Coded<'_, &Chunks> {
        Coded { codec: &self.codec, codes: &self.codes }
    }

    /// Words of a level-0 row of links.
    pub(super) fn row_len(&self) -> usize {
        self.links.row_len()
    }
}

impl Links for Index {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn entry(&self) -> u32 {
        self.upper.entry
    }

    fn upper_levels(&self) -> usize {
        self.upper.levels().len()
    }

    fn upper_len(&self, level: usize) -> usize {
        self.upper.levels()[level].slots.len()
    }

    #[inline]
    fn each_link(&self, level: usize, slot: u32, visit: impl FnMut(u32)) {
        match level.checked_sub(1) {
            None => self.links.each(slot, visit),
            Some(upper) => self.upper.links(upper, slot).iter().copied().for_each(visit),
        }
    }

    fn most_links(&self, level: usize, slot: u32) -> usize {
        match level.checked_sub(1) {
            None => self.links.row_len(),
            Some(upper) => self.upper.links(upper, slot).len(),
        }
    }

    fn fetch_links(&self, level: usize, slot: u32) {
        match level.checked_sub(1) {
            None => self.links.fetch(slot),
            Some(upper) => kernels::prefetch(self.upper.links(upper, slot)),
        }
    }
}
