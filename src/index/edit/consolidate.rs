//! Rows that went are forgotten, and what they linked stays linked.

use std::collections::HashMap;
use std::ops::Range;

use roaring::RoaringBitmap;

use super::super::prune::add_diverse;
use super::editor::Editor;

/// Rows that are enough to choose the links from that take the place of links to dead ones.
const ENOUGH: usize = 48;

/// A pass over the links, to be done in parts.
pub struct Consolidation {
    dead: RoaringBitmap,
    slots: Range<u32>,
}

impl Editor {
    /// Begins to make places free.
    ///
    /// * `dead`: slots that have no item. Those that are free already do not count.
    pub fn begin(&mut self, dead: &RoaringBitmap) -> Consolidation {
        let dead = dead - &self.free - &self.emptied;
        self.consolidate_upper(&dead);
        Consolidation { dead, slots: 0..self.index.len() as u32 }
    }

    /// Goes on with it for some slots. True when it is done: then the places of the dead are free, once they are released
    /// ([`Editor::release`]).
    ///
    /// * `dead`: slots that have no item now: more of them, perhaps, than when it began.
    pub fn consolidate(&mut self, pass: &mut Consolidation, some: u32, dead: &RoaringBitmap) -> bool {
        let end = pass.slots.end.min(pass.slots.start + some);
        for slot in pass.slots.start..end {
            if !dead.contains(slot) {
                self.mend(0, slot, &pass.dead, dead);
            }
        }
        pass.slots.start = end;
        if !pass.slots.is_empty() {
            return false;
        }
        self.emptied |= &pass.dead;
        self.reconnect(dead);
        true
    }

    /// Replaces the links of a slot to the dead by links to what those are linked to.
    ///
    /// * `gone`: those that are to be forgotten. `dead`: all that get no new link.
    fn mend(&mut self, level: usize, slot: u32, gone: &RoaringBitmap, dead: &RoaringBitmap) {
        let links = self.links(level, slot);
        if !links.iter().any(|&to| gone.contains(to)) {
            return;
        }
        let (dying, mut kept): (Vec<u32>, Vec<u32>) = links.into_iter().partition(|&to| gone.contains(to));
        let places = dying.len();
        let near: Vec<u32> = dying.into_iter().flat_map(|to| self.links(level, to)).collect();
        // Where many go at once, what is linked to one of them is often another.
        let (beyond, mut alive): (Vec<u32>, Vec<u32>) = near.into_iter().partition(|&to| gone.contains(to));
        if alive.len() < ENOUGH {
            alive.extend(beyond.into_iter().take(ENOUGH).flat_map(|to| self.links(level, to)));
        }
        let mut near = alive;
        near.sort_unstable();
        near.dedup();
        near.retain(|&to| to != slot && !kept.contains(&to) && !dead.contains(to) && !gone.contains(to));
        let limit = kept.len() + places;
        add_diverse(&mut self.view(), slot, &mut kept, &near, limit);
        self.set_links(level, slot, kept);
    }

    /// Takes the dead out of the levels above 0.
    fn consolidate_upper(&mut self, dead: &RoaringBitmap) {
        for level in 1..=self.upper.len() {
            let slots: Vec<u32> = self.upper[level - 1].keys().copied().collect();
            for &slot in slots.iter().filter(|&&slot| !dead.contains(slot)) {
                self.mend(level, slot, dead, dead);
            }
            self.upper[level - 1].retain(|&slot, _| !dead.contains(slot));
        }
        while self.upper.last().is_some_and(HashMap::is_empty) {
            self.upper.pop();
        }
        self.climbed = true;
        if dead.contains(self.entry) || self.upper.last().is_some_and(|top| !top.contains_key(&self.entry)) {
            let top = self.upper.last().and_then(|top| top.keys().min().copied());
            let any = || {
                (0..self.index.len() as u32).find(|&slot| {
                    !dead.contains(slot) && !self.free.contains(slot) && !self.emptied.contains(slot)
                })
            };
            // With nobody alive there is nothing to be found from wherever it begins.
            self.entry = top.or_else(any).unwrap_or(0);
        }
    }

    /// Links what the entry does not reach any more.
    fn reconnect(&mut self, dead: &RoaringBitmap) {
        let n = self.index.len() as u32;
        let mut reached = vec![false; n as usize];
        self.flood(self.entry, &mut reached);
        for slot in 0..n {
            if reached[slot as usize] || dead.contains(slot) {
                continue;
            }
            let near: Vec<u32> =
                self.links(0, slot).into_iter().filter(|&from| reached[from as usize]).collect();
            let any = || (0..n).filter(|&from| reached[from as usize] && !dead.contains(from));
            let linked = near.iter().any(|&from| self.link_back(0, from, slot));
            // Every row that is reached brings places of its own.
            if linked || any().collect::<Vec<_>>().into_iter().any(|from| self.link_back(0, from, slot)) {
                self.flood(slot, &mut reached);
            }
        }
    }

    /// Marks everything that can be reached from a slot.
    fn flood(&self, start: u32, reached: &mut [bool]) {
        let mut open = vec![start];
        while let Some(slot) = open.pop() {
            if !std::mem::replace(&mut reached[slot as usize], true) {
                open.extend(self.links(0, slot).into_iter().filter(|&to| !reached[to as usize]));
            }
        }
    }
}
