//! The state that versions of an index are made from.

use std::collections::HashMap;

use rand::SeedableRng;
use rand_pcg::Pcg64;
use roaring::RoaringBitmap;

use super::super::BuildParams;
use super::super::near::CodeView;
use super::super::upper::{Upper, UpperLevel};
use super::super::view::Index;
use super::super::walk::Walks;

const SEED: u64 = 0x6c69_7665;

/// Makes the next versions of an index.
pub struct Editor {
    pub(super) index: Index,
    /// Candidates that a row's links are chosen from.
    pub(super) ef: usize,
    /// Links by slot, of levels 1, 2, …
    pub(super) upper: Vec<HashMap<u32, Vec<u32>>>,
    pub(super) entry: u32,
    /// Whether the levels above 0 are others than the index has.
    pub(super) climbed: bool,
    /// Places that no link leads to; and those of them that are not to be used yet.
    pub(super) free: RoaringBitmap,
    pub(super) emptied: RoaringBitmap,
    /// Squared lengths of the codes ([`CodeView`]).
    pub(super) squares: Vec<u32>,
    pub(super) random: Pcg64,
    pub(super) walks: Walks,
}

impl Editor {
    /// Begins with an index.
    ///
    /// * `params`: how it was built.
    pub fn new(index: &Index, params: &BuildParams) -> Self {
        let index = index.clone();
        let lists = |level: &UpperLevel| {
            level.slots.iter().enumerate().map(|(i, &slot)| (slot, level.list(i).to_vec())).collect()
        };
        let upper = index.upper.levels().iter().map(lists).collect();
        let entry = index.upper.entry;
        let squares = CodeView::squares(&index.codes, index.codec.kind());
        let (free, emptied) = Default::default();
        let (random, walks) = (Pcg64::seed_from_u64(SEED), Walks::default());
        let ef = params.ef_construction;
        Editor { index, ef, upper, entry, climbed: false, free, emptied, squares, random, walks }
    }

    /// The version that has all that was done so far.
    pub fn index(&mut self) -> Index {
        if std::mem::take(&mut self.climbed) {
            let levels = self.upper.iter().map(|level| {
                let mut slots: Vec<u32> = level.keys().copied().collect();
                slots.sort_unstable();
                let lists = slots.iter().map(|slot| level[slot].as_slice());
                UpperLevel::from_lists(slots.clone(), lists)
            });
            self.index.upper = Upper::new(self.entry, levels.collect(), self.index.len()).into();
        }
        self.index.clone()
    }

    /// Places that no link leads to.
    pub fn free(&self) -> u64 {
        self.free.len() + self.emptied.len()
    }

    /// Has the places used again that passes have made free. Whoever searches a version from before then comes by their rows'
    /// old place to where the new ones are: it is better to wait until those have ended.
    pub fn release(&mut self) {
        self.free |= std::mem::take(&mut self.emptied);
    }

    pub(super) fn view(&self) -> CodeView<'_> {
        CodeView::new(&self.index.codes, self.index.codec.kind(), &self.squares)
    }

    pub(super) fn links(&self, level: usize, slot: u32) -> Vec<u32> {
        let mut links = Vec::with_capacity(self.index.row_len());
        match level.checked_sub(1) {
            // Links of an editor that gave up lead to slots that this one does not have.
            None => {
                let end = self.index.len();
                self.index.links.each(slot, |to| links.extend(Some(to).filter(|&to| (to as usize) < end)));
            }
            Some(upper) => links.extend(self.upper[upper].get(&slot).into_iter().flatten()),
        }
        links
    }

    pub(super) fn set_links(&mut self, level: usize, slot: u32, links: Vec<u32>) {
        match level.checked_sub(1) {
            None => self.index.links.set(slot, &links),
            Some(upper) => _ = self.upper[upper].insert(slot, links),
        }
    }
}
