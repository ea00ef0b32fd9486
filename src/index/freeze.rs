//! Raw link lists become a proper graph, every node of which can be reached.
//!
//! What `hnsw_rs` leaves is made for its own search: back-links filed under the new point's top layer, full lists that
//! dropped their farthest entry without asking whether it was the only way to someone. In order:
//!
//! ```text
//! legal      no self-links, none twice
//! mirror     every link gets its reverse
//! prune      over the limit M₀ the diverse ones stay: c goes if some kept k is nearer to c than the node itself
//! reconnect  what the entry cannot reach is linked from its nearest reachable node, in spare places that
//!            pruning never touches
//! ```
//!
//! Level 0 is one array of fixed rows `[degree, link, link, …]`, [`row_len`] words each, a whole number of
//! cache lines. The levels above were level 0 of smaller graphs, and lie in one compressed table each.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};

use rayon::prelude::*;

use super::BuildParams;
use super::layout::{MAX_UPPER, row_len};
use super::links::Links;
use super::prune::{Pruning, diverse};
use super::space::Space;
use super::upper::UpperLevel;
use crate::kernels;

/// Beam of the search for a node's nearest reachable neighbours.
const RECONNECT_EF: usize = 64;

/// A frozen layered graph over slots `0..n`.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    pub(super) entry: u32,
    pub(super) m: usize,
    pub(super) row_len: usize,
    /// `[n, row_len]` words: degree, then links.
    pub(super) level0: Vec<u32>,
    /// Levels 1, 2, …
    pub(super) upper: Vec<UpperLevel>,
    pub(super) reach: Reach,
}

/// What freezing had to mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Reach {
    /// Links that pointed at their own node, or twice at the same.
    pub illegal_links: usize,
    /// Nodes that nothing led to.
    pub reconnected: usize,
    /// Nodes that a search for themselves did not find.
    #[serde(default)]
    pub rescued: usize,
    /// Links added for a sample of queries.
    #[serde(default)]
    pub repaired: usize,
}

impl Reach {
    /// What was mended on the levels above as well; links for queries are counted on level 0.
    fn add(&mut self, upper: Reach) {
        self.illegal_links += upper.illegal_links;
        self.reconnected += upper.reconnected;
        self.rescued += upper.rescued;
    }
}

impl Graph {
    /// What freezing had to mend.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Freezes raw lists, one a slot; the graph has no levels above 0 yet, and its entry is the first slot.
    ///
    /// * `space`: 8-bit codes of all rows; distances for pruning come from them.
    pub(super) fn freeze(mut lists: Vec<Vec<u32>>, params: &BuildParams, space: &Space<'_>) -> Graph {
        let mut reach = Reach::default();
        let illegal = lists.par_iter_mut().enumerate().map(|(slot, list)| {
            let raw = list.len();
            list.retain(|&to| to != slot as u32);
            list.sort_unstable();
            list.dedup();
            raw - list.len()
        });
        reach.illegal_links = illegal.sum();
        mirror_and_prune(space, &mut lists, params.m0(), Pruning::PAPER);
        let row_len = row_len(params.m);
        let level0 = vec![0u32; lists.len() * row_len];
        let mut graph = Graph { entry: 0, m: params.m, row_len, level0, upper: Vec::new(), reach };
        graph.set_level0(&lists, space);
        graph
    }

    /// Takes a graph over some of the nodes as the levels above level 0.
    ///
    /// * `upper`: its level 0 becomes level 1. `members`: the slots of its nodes, ascending.
    pub(super) fn set_upper(&mut self, upper: Graph, members: &[u32], space: &Space<'_>) {
        let slot_of = |node: &u32| members[*node as usize];
        let rows: Vec<Vec<u32>> =
            (0..members.len() as u32).map(|node| upper.links(node).iter().map(slot_of).collect()).collect();
        self.entry = slot_of(&upper.entry);
        self.upper = vec![UpperLevel::from_lists(members.to_vec(), rows.iter().map(Vec::as_slice))];
        self.upper.extend(upper.upper.into_iter().map(|level| UpperLevel {
            slots: level.slots.iter().map(slot_of).collect(),
            links: level.links.iter().map(slot_of).collect(),
            offsets: level.offsets,
        }));
        // The entry is on every level, and so on the one that is now the top.
        self.upper.truncate(MAX_UPPER);
        self.reach.add(upper.reach);
        // What the former entry reached, this one need not.
        self.reconnect_level0(space);
    }

    /// Takes these links on level 0, and links what they leave out of reach.
    pub(super) fn set_level0(&mut self, lists: &[Vec<u32>], space: &Space<'_>) {
        for (row, list) in self.level0.chunks_exact_mut(self.row_len).zip(lists) {
            row[0] = list.len() as u32;
            row[1..][..list.len()].copy_from_slice(list);
        }
        self.reconnect_level0(space);
    }

    /// Links that a row has places left for.
    pub(super) fn free_places(&self, slot: u32) -> usize {
        self.row_len - 1 - self.links(slot).len()
    }

    /// Adds a link if the row has a place left.
    pub(super) fn try_link(&mut self, from: u32, to: u32) -> bool {
        if self.free_places(from) == 0 {
            return false;
        }
        let row = &mut self.level0[from as usize * self.row_len..][..self.row_len];
        row[0] += 1;
        row[row[0] as usize] = to;
        true
    }

    fn reconnect_level0(&mut self, space: &Space<'_>) {
        let n = self.len();
        let mut reached = vec![false; n];
        self.flood(self.entry, &mut reached);
        for slot in 0..n as u32 {
            if reached[slot as usize] {
                continue;
            }
            let near = self.nearest_reachable(space, slot);
            // Every reached node brings spare places of its own, so a place is left somewhere.
            let linked = near.into_iter().any(|from| self.try_link(from, slot))
                || (0..n as u32).any(|from| reached[from as usize] && self.try_link(from, slot));
            debug_assert!(linked);
            self.reach.reconnected += 1;
            self.flood(slot, &mut reached);
        }
    }

    /// Marks everything that can be reached from `start`.
    fn flood(&self, start: u32, reached: &mut [bool]) {
        let mut queue = VecDeque::from([start]);
        reached[start as usize] = true;
        while let Some(slot) = queue.pop_front() {
            for &next in self.links(slot) {
                if !std::mem::replace(&mut reached[next as usize], true) {
                    queue.push_back(next);
                }
            }
        }
    }

    /// Best-first search over level 0 from the entry: nodes near `slot`, nearest first, all of them reachable.
    fn nearest_reachable(&self, space: &Space<'_>, slot: u32) -> Vec<u32> {
        let mut seen = std::collections::HashSet::from([self.entry]);
        let start = (space.distance(self.entry, slot), self.entry);
        let mut open = BinaryHeap::from([Reverse(start)]);
        let mut best = BinaryHeap::from([start]);
        while let Some(Reverse((distance, node))) = open.pop() {
            if best.len() >= RECONNECT_EF && best.peek().is_some_and(|worst| distance > worst.0) {
                break;
            }
            for &next in self.links(node) {
                if seen.insert(next) {
                    let found = (space.distance(next, slot), next);
                    open.push(Reverse(found));
                    best.push(found);
                    if best.len() > RECONNECT_EF {
                        best.pop();
                    }
                }
            }
        }
        best.into_sorted_vec().into_iter().map(|(_, node)| node).collect()
    }
}

impl Graph {
    /// The level-0 links of a slot.
    pub(super) fn links(&self, slot: u32) -> &[u32] {
        let row = &self.level0[slot as usize * self.row_len..][..self.row_len];
        &row[1..][..row[0] as usize]
    }

    fn on(&self, level: usize, slot: u32) -> &[u32] {
        let Some(upper) = level.checked_sub(1) else { return self.links(slot) };
        let level = &self.upper[upper];
        level.slots.binary_search(&slot).map_or(&[], |at| level.list(at))
    }
}

impl Links for Graph {
    fn len(&self) -> usize {
        self.level0.len() / self.row_len
    }

    fn entry(&self) -> u32 {
        self.entry
    }

    fn upper_levels(&self) -> usize {
        self.upper.len()
    }

    fn upper_len(&self, level: usize) -> usize {
        self.upper[level].slots.len()
    }

    fn each_link(&self, level: usize, slot: u32, visit: impl FnMut(u32)) {
        self.on(level, slot).iter().copied().for_each(visit);
    }

    fn most_links(&self, level: usize, slot: u32) -> usize {
        self.on(level, slot).len()
    }

    fn fetch_links(&self, level: usize, slot: u32) {
        match level {
            0 => kernels::prefetch(&self.level0[slot as usize * self.row_len..][..self.row_len]),
            _ => kernels::prefetch(self.on(level, slot)),
        }
    }
}

/// Adds the reverse of every link, then leaves at most `limit` a node.
pub(super) fn mirror_and_prune(space: &Space<'_>, lists: &mut [Vec<u32>], limit: usize, pruning: Pruning) {
    let (incoming, offsets) = reversed(lists);
    lists.par_iter_mut().enumerate().for_each(|(slot, list)| {
        list.extend(&incoming[offsets[slot]..offsets[slot + 1]]);
        list.sort_unstable();
        list.dedup();
        if list.len() > limit {
            *list = diverse(&mut space.from(slot as u32), slot as u32, list, limit, pruning);
        }
    });
}

/// The reverse of every link, by target: those to slot i are `links[offsets[i]..offsets[i + 1]]`, in no order.
fn reversed(lists: &[Vec<u32>]) -> (Vec<u32>, Vec<usize>) {
    let degrees: Vec<AtomicU32> = lists.par_iter().map(|_| AtomicU32::new(0)).collect();
    lists.par_iter().flatten().for_each(|&to| _ = degrees[to as usize].fetch_add(1, Ordering::Relaxed));
    let mut offsets = vec![0];
    offsets.extend(degrees.iter().scan(0, |end, degree| {
        *end += degree.load(Ordering::Relaxed) as usize;
        Some(*end)
    }));
    let links: Vec<AtomicU32> =
        (0..offsets[lists.len()]).into_par_iter().map(|_| AtomicU32::new(0)).collect();
    lists.par_iter().enumerate().for_each(|(slot, list)| {
        for &to in list {
            // The degrees are counted down again, so that every link has a place of its own.
            let place = degrees[to as usize].fetch_sub(1, Ordering::Relaxed) as usize - 1;
            links[offsets[to as usize] + place].store(slot as u32, Ordering::Relaxed);
        }
    });
    (links.into_iter().map(AtomicU32::into_inner).collect(), offsets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whether the entry reaches everything, links are legal and rows within bounds.
    fn assert_proper(graph: &Graph) {
        let mut reached = vec![false; graph.len()];
        graph.flood(graph.entry, &mut reached);
        assert!(reached.iter().all(|&r| r), "unreached: {reached:?}");
        for slot in 0..graph.len() as u32 {
            let links = graph.links(slot);
            assert!(links.len() < graph.row_len);
            assert!(links.iter().all(|&to| to != slot && (to as usize) < graph.len()));
        }
        for level in &graph.upper {
            assert!(level.links.iter().all(|to| level.slots.contains(to)), "a link leads off its level");
            assert_eq!(level.offsets.len(), level.slots.len() + 1);
        }
    }

    /// The graph of some lists, whose targets are taken modulo their number, over codes that are somewhere.
    fn frozen(lists: &[Vec<u32>]) -> (Graph, Vec<u8>) {
        let n = lists.len() as u32;
        let lists = lists.iter().map(|list| list.iter().map(|to| to % n).collect()).collect();
        let codes: Vec<u8> = (0..n * 64).map(|i| (i * 31 % 256) as u8).collect();
        let params = BuildParams { m: 2, ..Default::default() };
        (Graph::freeze(lists, &params, &Space::new(&codes, 64)), codes)
    }

    proptest! {
        /// Whatever the lists say (self-links, repeats, islands), the frozen graph is proper, and so is it on every level.
        #[test]
        fn any_raw_lists_freeze_into_a_proper_graph(
            lists in prop::collection::vec(prop::collection::vec(0u32..60, 0..12), 1..60),
            above in prop::collection::vec(prop::collection::vec(0u32..60, 0..12), 1..20),
            every in 1usize..3,
        ) {
            let (mut graph, codes) = frozen(&lists);
            assert_proper(&graph);
            let (space, members) = (Space::new(&codes, 64), (0..lists.len() as u32).step_by(every));
            let members: Vec<u32> = members.take(above.len()).collect();
            graph.set_upper(frozen(&above[..members.len()]).0, &members, &space);
            assert_proper(&graph);
            prop_assert_eq!(&graph.upper[0].slots, &members);
        }
    }

    #[test]
    fn levels_have_a_limit() {
        use super::super::{CodeKind, Codec, Index, Parts};
        use crate::types::ItemId;
        let lists = [vec![1], vec![0]];
        let (mut graph, codes) = frozen(&lists);
        for _ in 0..2 * MAX_UPPER {
            let upper = std::mem::replace(&mut graph, frozen(&lists).0);
            graph.set_upper(upper, &[0, 1], &Space::new(&codes, 64));
        }
        let rows = [1.0, 0.0, 0.0, 1.0];
        let codec = Codec::train(CodeKind::F32, &rows, 2);
        let opens = |graph: &Graph| {
            let (ids, codes, mut bytes) = ([0, 1].map(ItemId), codec.encode(&rows), Vec::new());
            Parts { graph, codec: &codec, ids: &ids, codes: &codes }.write(&mut bytes).unwrap();
            Index::open(&bytes).is_ok()
        };
        assert!(graph.upper.len() == MAX_UPPER && opens(&graph));
        graph.upper.push(UpperLevel::default());
        assert!(!opens(&graph));
    }
}
