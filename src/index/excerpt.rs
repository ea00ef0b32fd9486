//! The graph of an index over some of its slots, numbered anew: what is stored of an index that has changed. Its links are read row
//! by row where they lie, and copied nowhere.

use std::collections::HashMap;

use super::upper::UpperLevel;
use super::view::Index;
use crate::types::Slot;

const NONE: u32 = u32::MAX;
/// Rows of links that are handed over together.
const TOGETHER: u32 = 256;

/// A graph over nodes `0..n`, as long as nobody changes the index's links.
pub(super) struct Excerpt<'a> {
    index: &'a Index,
    /// Slots by node, and nodes by slot.
    order: &'a [Slot],
    nodes: Vec<u32>,
    pub(super) entry: u32,
    /// Levels 1, 2, …
    pub(super) upper: Vec<UpperLevel>,
    /// Links of level 0 that the index does not have: without them, some nodes could not be reached.
    added: HashMap<u32, Vec<u32>>,
}

impl<'a> Excerpt<'a> {
    /// * `order`: the slots, in the order of their new numbers.
    pub(super) fn of(index: &'a Index, order: &'a [Slot]) -> Self {
        let mut nodes = vec![NONE; index.len()];
        order.iter().zip(0..).for_each(|(slot, node)| nodes[slot.index()] = node);
        let node = |slot: &u32| nodes.get(*slot as usize).copied().filter(|&node| node != NONE);
        let level = |level: &UpperLevel| {
            let mut lists: Vec<(u32, Vec<u32>)> = (level.slots.iter().enumerate())
                .filter_map(|(i, slot)| Some((node(slot)?, level.list(i).iter().filter_map(node).collect())))
                .collect();
            lists.sort_unstable();
            let slots = lists.iter().map(|(slot, _)| *slot).collect();
            UpperLevel::from_lists(slots, lists.iter().map(|(_, links)| links.as_slice()))
        };
        let upper: Vec<UpperLevel> = index.upper.levels().iter().map(level).collect();
        let upper: Vec<UpperLevel> = upper.into_iter().take_while(|level| !level.slots.is_empty()).collect();
        let first = || upper.last().map_or(0, |top| top.slots[0]);
        let on_top = |entry: &u32| upper.last().is_none_or(|top| top.slots.binary_search(entry).is_ok());
        let entry = node(&index.upper.entry).filter(on_top).unwrap_or_else(first);
        let mut excerpt = Excerpt { index, order, nodes, entry, upper, added: HashMap::new() };
        excerpt.reconnect();
        excerpt
    }

    /// Number of nodes.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Words of a row of links.
    pub(super) fn row_len(&self) -> usize {
        self.index.row_len()
    }

    /// Adds the links of a node on level 0 to `links`.
    fn links(&self, node: u32, links: &mut Vec<u32>) {
        let start = links.len();
        self.index.links.each(self.order[node as usize].0, |to| {
            if let Some(&to) = self.nodes.get(to as usize)
                && to != NONE
                && !links[start..].contains(&to)
            {
                links.push(to);
            }
        });
        links.extend(self.added.get(&node).into_iter().flatten());
    }

    /// Hands over the rows of level 0 as they are stored, some at a time.
    pub(super) fn each_row<E>(&self, mut visit: impl FnMut(&[u32]) -> Result<(), E>) -> Result<(), E> {
        let mut rows = Vec::with_capacity(TOGETHER as usize * self.row_len());
        for first in (0..self.len() as u32).step_by(TOGETHER as usize) {
            rows.clear();
            for node in first..(first + TOGETHER).min(self.len() as u32) {
                let start = rows.len();
                rows.push(0);
                self.links(node, &mut rows);
                rows[start] = (rows.len() - start - 1) as u32;
                rows.resize(start + self.row_len(), 0);
            }
            visit(&rows)?;
        }
        Ok(())
    }

    /// Links what the entry does not reach, from what it is linked to, as far as that can be reached.
    fn reconnect(&mut self) {
        let n = self.len() as u32;
        let mut reached = vec![false; self.len()];
        if n > 0 {
            self.flood(self.entry, &mut reached);
        }
        let mut near = Vec::new();
        for node in 0..n {
            if reached[node as usize] {
                continue;
            }
            near.clear();
            self.links(node, &mut near);
            // Every node that is reached brings places of its own.
            let mut from = near.iter().copied().chain(0..n).filter(|&from| reached[from as usize]);
            if let Some(from) = from.find(|&from| self.has_place(from)) {
                self.added.entry(from).or_default().push(node);
            }
            self.flood(node, &mut reached);
        }
    }

    fn has_place(&self, node: u32) -> bool {
        let mut links = Vec::new();
        self.links(node, &mut links);
        links.len() + 1 < self.row_len()
    }

    /// Marks everything that can be reached from a node.
    fn flood(&self, start: u32, reached: &mut [bool]) {
        let (mut open, mut links) = (vec![start], Vec::new());
        while let Some(node) = open.pop() {
            if !std::mem::replace(&mut reached[node as usize], true) {
                links.clear();
                self.links(node, &mut links);
                open.extend(links.iter().filter(|&&to| !reached[to as usize]));
            }
        }
    }
}
