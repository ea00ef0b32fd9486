//! The levels above level 0: few nodes, one compressed table each.

use super::ranks::Ranks;

/// The levels above 0 of an index, and where every search begins.
pub(super) struct Upper {
    pub(super) entry: u32,
    levels: Vec<UpperLevel>,
    /// Of the slots of each level.
    ranks: Vec<Ranks>,
}

/// One level above 0: `links[offsets[i]..offsets[i+1]]` are the links of `slots[i]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct UpperLevel {
    pub(super) slots: Vec<u32>,
    pub(super) offsets: Vec<u32>,
    pub(super) links: Vec<u32>,
}

impl Upper {
    /// * `levels`: 1, 2, … `n`: above all slots.
    pub(super) fn new(entry: u32, levels: Vec<UpperLevel>, n: usize) -> Self {
        let ranks = levels.iter().map(|level| Ranks::of(n, &level.slots)).collect();
        Upper { entry, levels, ranks }
    }

    /// Levels 1, 2, …
    pub(super) fn levels(&self) -> &[UpperLevel] {
        &self.levels
    }

    /// The links of a slot on level `level + 1`; none when it does not reach it.
    pub(super) fn links(&self, level: usize, slot: u32) -> &[u32] {
        let UpperLevel { offsets, links, .. } = &self.levels[level];
        match self.ranks[level].place(slot) {
            Some(at) => &links[offsets[at] as usize..offsets[at + 1] as usize],
            None => &[],
        }
    }

    /// Bytes of memory that they take.
    pub(super) fn bytes(&self) -> u64 {
        let words = |level: &UpperLevel| level.slots.len() + level.offsets.len() + level.links.len();
        self.levels.iter().map(|level| 4 * words(level) as u64).sum()
    }
}

impl UpperLevel {
    /// * `slots`: ascending, with the links of each.
    pub(super) fn from_lists<'a>(slots: Vec<u32>, lists: impl Iterator<Item = &'a [u32]>) -> Self {
        let (mut offsets, mut links) = (vec![0u32], Vec::new());
        for list in lists {
            links.extend_from_slice(list);
            offsets.push(links.len() as u32);
        }
        UpperLevel { slots, offsets, links }
    }

    /// The links of its i-th slot.
    pub(super) fn list(&self, i: usize) -> &[u32] {
        &self.links[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }
}
