//! A graph that is being changed, to be walked from one of its levels on.

use std::collections::HashMap;

use super::super::links::Links;
use super::super::view::Index;

/// The levels of a graph from one on upwards, that one as its level 0.
pub(super) struct Levels<'a> {
    pub(super) index: &'a Index,
    pub(super) upper: &'a [HashMap<u32, Vec<u32>>],
    pub(super) entry: u32,
    pub(super) level: usize,
}

impl Levels<'_> {
    fn on(&self, level: usize, slot: u32) -> Option<&[u32]> {
        let above = (self.level + level).checked_sub(1)?;
        Some(self.upper[above].get(&slot).map_or(&[], Vec::as_slice))
    }
}

impl Links for Levels<'_> {
    fn len(&self) -> usize {
        self.index.len()
    }

    fn entry(&self) -> u32 {
        self.entry
    }

    fn upper_levels(&self) -> usize {
        self.upper.len() - self.level
    }

    fn upper_len(&self, level: usize) -> usize {
        self.upper[self.level + level].len()
    }

    fn each_link(&self, level: usize, slot: u32, visit: impl FnMut(u32)) {
        match self.on(level, slot) {
            None => self.index.links.each(slot, visit),
            Some(links) => links.iter().copied().for_each(visit),
        }
    }

    fn most_links(&self, level: usize, slot: u32) -> usize {
        self.on(level, slot).map_or(self.index.row_len(), <[u32]>::len)
    }

    fn fetch_links(&self, level: usize, slot: u32) {
        match self.on(level, slot) {
            None => self.index.links.fetch(slot),
            Some(links) => crate::kernels::prefetch(links),
        }
    }
}
