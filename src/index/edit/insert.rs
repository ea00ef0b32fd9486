//! Rows come: each gets a place, links, and links back.

use std::collections::HashMap;

use rand::RngExt as _;
use roaring::RoaringBitmap;

use super::super::Error;
use super::super::chunks::CHUNK;
use super::super::layout::{MAX_NODES, MAX_UPPER};
use super::super::near::CodeView;
use super::super::prune::{Pruning, diverse};
use super::super::space::Look as _;
use super::super::view::Index;
use super::super::walk::Beam;
use super::editor::Editor;
use super::levels::Levels;
use crate::types::{ItemId, Slot};

/// What a row's own links may have too much of: fewer and longer ones than the paper's rule leaves.
const OWN: Pruning = Pruning { alpha: 1.0, fill: false };
/// Of a chunk's places, those that must be free for it to be worth a copy.
const WORTH: u64 = CHUNK as u64 / 64;

/// What may be used for new rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// Chunks of which places of rows that have gone are used, at most: each is copied.
    pub chunks: usize,
    /// Most that are added.
    pub new: usize,
}

impl Editor {
    /// Puts rows in and links them; fewer than were given where there are no more places.
    ///
    /// * `items`: rows of length D, unit, each item once. `dead`: slots that have no item, free ones included.
    /// * Returns the slots, in the order of the items.
    ///
    /// # Errors
    /// [`Error::Memory`]; then nobody knows of any of them.
    pub fn insert(
        &mut self,
        items: &[(ItemId, &[f32])],
        dead: &RoaringBitmap,
        places: Places,
    ) -> Result<Vec<Slot>, Error> {
        let (before, slots) = (self.index.len(), self.places(items.len(), places));
        let len = slots.iter().map(|&slot| slot as usize + 1).fold(before, usize::max);
        let Index { codec, links, lookup, ids, codes, sketch, .. } = &mut self.index;
        let found = items.iter().zip(&slots);
        let old = &*ids;
        lookup.put(found.clone().map(|((id, _), &slot)| (id.0, slot)), before, |slot| {
            bytemuck::pod_read_unaligned(old.row(slot))
        });
        links.grow(len)?;
        ids.grow(len)?;
        codes.grow(len)?;
        if let Some(sketch) = sketch {
            sketch.grow(len)?;
        }
        let mut code = vec![0u8; codec.stride()];
        for ((id, row), &slot) in found.clone() {
            code.fill(0);
            codec.encode_row(row, &mut code);
            ids.set(slot, &id.0.to_ne_bytes())?;
            // Links of whoever had the place lead to rows that are gone.
            links.set(slot, &[]);
            codes.set(slot, &code)?;
            if let Some(sketch) = sketch {
                sketch.set(slot, &code)?;
            }
        }
        if !self.squares.is_empty() {
            self.squares.resize(len, 0);
            for &slot in &slots {
                self.squares[slot as usize] = CodeView::square(codes.row(slot));
            }
        }
        let new: RoaringBitmap = slots.iter().copied().collect();
        self.free -= &new;
        let dead = dead - new;
        for ((_, row), &slot) in found {
            self.link(slot, row, &dead)?;
        }
        Ok(slots.into_iter().map(Slot).collect())
    }

    /// Places for so many rows: free ones first, of as few chunks as will do, since each is copied.
    fn places(&self, count: usize, Places { chunks: most, new }: Places) -> Vec<u32> {
        let mut slots = Vec::with_capacity(count);
        let all = if most > 0 { self.index.len() } else { 0 };
        let mut chunks: Vec<(u64, u32)> = (0..all)
            .step_by(CHUNK)
            .map(|first| first as u32)
            .map(|first| (self.free.range_cardinality(first..first + CHUNK as u32), first))
            .filter(|&(count, _)| count > 0)
            .collect();
        chunks.sort_unstable_by(|a, b| b.cmp(a));
        chunks.truncate(most);
        let worth = chunks.partition_point(|&(count, _)| count >= WORTH);
        let take = |chunks: &[(u64, u32)], slots: &mut Vec<u32>| {
            let free = chunks.iter().flat_map(|&(_, first)| self.free.range(first..first + CHUNK as u32));
            slots.extend(free.take(count - slots.len()));
        };
        take(&chunks[..worth], &mut slots);
        let len = self.index.len();
        let new = new.min(count - slots.len()).min(MAX_NODES - len);
        slots.extend(len as u32..(len + new) as u32);
        take(&chunks[worth..], &mut slots);
        slots
    }

    /// Links a new row on all levels that it reaches.
    fn link(&mut self, slot: u32, row: &[f32], dead: &RoaringBitmap) -> Result<(), Error> {
        if self.upper.is_empty() && dead.contains(self.entry) {
            // Nobody is alive: it begins anew with this one.
            (self.entry, self.climbed) = (slot, true);
            return Ok(());
        }
        let reached = self.climb();
        // All walks come before any link: one that came upon the row itself would go no further.
        let levels = 0..=reached.min(self.upper.len());
        let near = levels.map(|level| self.near(slot, row, level, dead)).collect::<Result<Vec<_>, _>>()?;
        for (level, near) in near.into_iter().enumerate() {
            let links = diverse(&mut self.view(), slot, &near, 2 * self.index.m, OWN);
            self.set_links(level, slot, links.clone());
            for from in links {
                self.link_back(level, from, slot);
            }
        }
        if reached > self.upper.len() && self.upper.len() < MAX_UPPER {
            self.upper.push(HashMap::from([(slot, Vec::new())]));
            self.entry = slot;
        }
        self.climbed |= reached > 0;
        Ok(())
    }

    /// The highest level of a new row: one in M reaches the next.
    fn climb(&mut self) -> usize {
        let mut level = 0;
        while level <= self.upper.len() && self.random.random_range(0..self.index.m) == 0 {
            level += 1;
        }
        level
    }

    /// What a walk finds near a row, on a level, of the living.
    fn near(
        &mut self,
        slot: u32,
        row: &[f32],
        level: usize,
        dead: &RoaringBitmap,
    ) -> Result<Vec<u32>, Error> {
        let Editor { index, upper, entry, walks, ef, .. } = self;
        let graph = Levels { index, upper, entry: *entry, level };
        let on = (index.coded(), index.sketch());
        let query = (index.codec.code_query(row), Beam::wide(*ef));
        let walker = walks.one(&graph, on, query, None, |_| Ok(()))?;
        let found = walker.found().map(|candidate| candidate.slot.0);
        Ok(found.filter(|&found| found != slot && !dead.contains(found)).collect())
    }

    /// Links `from` to `to`, if there is a place or one can be made.
    ///
    /// A link makes room when another link of the same row leads where it led in two steps: so whatever could be reached still
    /// can. Of such links the farthest goes.
    pub(super) fn link_back(&mut self, level: usize, from: u32, to: u32) -> bool {
        let mut links = self.links(level, from);
        if links.contains(&to) {
            return true;
        }
        if links.len() + 1 < self.index.row_len() {
            match level.checked_sub(1) {
                None if self.index.links.push(from, to) => {}
                // Its row is full of links beyond the index, from an insertion that failed.
                None => {
                    links.push(to);
                    self.set_links(0, from, links);
                }
                Some(upper) => self.upper[upper].entry(from).or_default().push(to),
            }
            return true;
        }
        let mut round: Vec<u32> = links.iter().flat_map(|&by| self.links(level, by)).collect();
        round.sort_unstable();
        let spare = |link: &u32| round.binary_search(link).is_ok();
        let (mut distances, spares): (_, Vec<u32>) =
            (Vec::new(), links.iter().copied().filter(spare).collect());
        let mut view = self.view();
        view.turn(from);
        view.distances(&spares, &mut distances);
        let farthest = distances.iter().zip(&spares).max().map(|(_, &link)| link);
        let Some(place) = links.iter_mut().find(|link| Some(**link) == farthest) else { return false };
        *place = to;
        self.set_links(level, from, links);
        true
    }
}
