//! What insertion leaves worse than a build would: the levels above 0, and the links for queries of other kinds.

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;
use roaring::RoaringBitmap;

use super::super::build::above;
use super::super::freeze::Graph;
use super::super::layout::MAX_UPPER;
use super::super::near::CodeView;
use super::super::quant::{Codec, Coded};
use super::super::repair::{FIX_EF, FIX_NEAREST, missing_links};
use super::super::walk::{Beam, Walks};
use super::super::{BuildParams, CodeKind, Error};
use super::editor::Editor;
use super::levels::Levels;
use crate::types::{ItemId, Slot};

/// Queries that are fixed for at once, later ones with the links of those, and by one thread in one go.
const FIX_BATCH: usize = 2048;
const FIX_SHARE: usize = 64;
/// Rows that the codes of the levels above 0 are fitted to, and rows that are coded at a time.
const UPPER_SAMPLE: usize = 2048;
const UPPER_ROWS: usize = 1024;
/// Bytes of a node of a graph under construction, beside its codes: so many, and so many for each of M (a million took 2600 each at
/// M 16, with what is made of it).
const NODE_BYTES: usize = 1600;
const LINK_BYTES: usize = 80;

/// Bytes that [`upper_graph`] takes at its peak.
///
/// * `count`: of rows. `queries`: that it is repaired by.
pub fn upper_needs(params: &BuildParams, dim: usize, count: usize, queries: usize) -> u64 {
    let node = dim + dim / 2 + NODE_BYTES + LINK_BYTES * params.m;
    // The sample is there as it is and as it is fitted to; the queries as they came and those that are taken.
    let row = dim * size_of::<f32>();
    (count * node + (2 * UPPER_SAMPLE.min(count) + UPPER_ROWS + 2 * queries) * row) as u64
}

/// A graph of some rows, for the levels above 0: what insertion leaves there leads searches astray, more and more often. Runs on
/// the current rayon pool.
///
/// * `params`: how the index was built. `queries`: row-major `[q, dim]`, those that it is repaired by. `rows`: hands over the rows
///   from one to before another, row-major; there are `count`.
///
/// # Errors
/// As [`build()`](fn@super::super::build); what `rows` fails with.
pub fn upper_graph<E: From<Error>>(
    params: &BuildParams,
    dim: usize,
    count: usize,
    queries: &[f32],
    mut rows: impl FnMut(Range<usize>) -> Result<Vec<f32>, E>,
) -> Result<Graph, E> {
    let mut sample = Vec::with_capacity(UPPER_SAMPLE.min(count) * dim);
    for first in (0..count).step_by(count.div_ceil(UPPER_SAMPLE).max(1)) {
        sample.extend(rows(first..first + 1)?);
    }
    let codecs = [CodeKind::U8, CodeKind::U4].map(|kind| Codec::train(kind, &sample, dim));
    drop(sample);
    let mut codes = codecs.each_ref().map(|codec| Vec::with_capacity(count * codec.stride()));
    for first in (0..count).step_by(UPPER_ROWS) {
        let rows = rows(first..count.min(first + UPPER_ROWS))?;
        codecs.iter().zip(&mut codes).for_each(|(codec, codes)| codes.extend(codec.encode(&rows)));
    }
    let [wide, narrow] = [0, 1].map(|i| Coded { codec: &codecs[i], codes: &codes[i][..] });
    Ok(above(params, wide, narrow, queries)?)
}

impl Editor {
    /// The rows that reach above level 0 and live.
    ///
    /// * `dead`: slots that have no item.
    pub fn climbers(&self, dead: &RoaringBitmap) -> Vec<(ItemId, Slot)> {
        let slots = self.upper.iter().take(1).flat_map(HashMap::keys).copied();
        let mut slots: Vec<u32> = slots.filter(|&slot| !dead.contains(slot)).collect();
        slots.sort_unstable();
        slots.into_iter().map(|slot| (self.index.id(Slot(slot)), Slot(slot))).collect()
    }

    /// Takes others for the levels above 0. Those of their rows that went meanwhile are left out.
    ///
    /// * `climbers`: that the graph was built over. `dead`: slots that have no item.
    pub fn set_upper(&mut self, graph: &Graph, climbers: &[(ItemId, Slot)], dead: &RoaringBitmap) {
        let lives = |(id, slot): &(ItemId, Slot)| self.index.id(*slot) == *id && !dead.contains(slot.0);
        let slots: Vec<Option<u32>> =
            climbers.iter().map(|climber| Some(climber.1.0).filter(|_| lives(climber))).collect();
        let slot_of = |node: u32| slots[node as usize];
        let of = |links: &[u32]| links.iter().filter_map(|&node| slot_of(node)).collect::<Vec<_>>();
        let first = (0..slots.len() as u32).filter_map(|node| Some((slot_of(node)?, of(graph.links(node)))));
        let others = graph.upper.iter().map(|level| {
            let nodes = level.slots.iter().enumerate();
            nodes.filter_map(|(i, &node)| Some((slot_of(node)?, of(level.list(i))))).collect()
        });
        let levels = std::iter::once(first.collect()).chain(others).take(MAX_UPPER);
        let levels: Vec<HashMap<u32, Vec<u32>>> =
            levels.take_while(|level: &HashMap<_, _>| !level.is_empty()).collect();
        let Some(top) = levels.last() else { return };
        let entry = slot_of(graph.entry).filter(|entry| top.contains_key(entry));
        let Some(entry) = entry.or_else(|| top.keys().min().copied()) else { return };
        (self.upper, self.entry, self.climbed) = (levels, entry, true);
    }

    /// Links the neighbourhoods of queries, as a build does that is given them (`repair.rs`), in places that rows have left. Runs on
    /// the current rayon pool.
    ///
    /// * `queries`: row-major `[q, dim]`. `dead`: slots that have no item.
    /// * Returns the links added.
    ///
    /// # Errors
    /// None but those of a walk.
    pub fn fix(&mut self, queries: &[f32], dead: &RoaringBitmap) -> Result<usize, Error> {
        let (dim, mut added) = (self.index.dim(), 0);
        for batch in queries.chunks(FIX_BATCH * dim) {
            let Editor { index, upper, entry, squares, .. } = &*self;
            let graph = Levels { index, upper, entry: *entry, level: 0 };
            let free = |from: u32| index.row_len() - 1 - index.links.degree(from);
            let missing = batch.par_chunks(FIX_SHARE * dim).map_init(
                || (Walks::default(), vec![0; index.len()]),
                |(walks, places), queries| {
                    let mut view = CodeView::new(&index.codes, index.codec.kind(), squares);
                    let mut missing = Vec::new();
                    for query in queries.chunks_exact(dim) {
                        let (on, query) = ((index.coded(), index.sketch()), index.codec.code_query(query));
                        let walker = walks.one(&graph, on, (query, Beam::wide(FIX_EF)), None, |_| Ok(()))?;
                        let found = walker.found().map(|candidate| candidate.slot.0);
                        let live = found.filter(|&slot| !dead.contains(slot));
                        let nearest: Vec<u32> = live.take(FIX_NEAREST[2]).collect();
                        missing.extend(missing_links(&graph, free, &mut view, &nearest, places));
                    }
                    Ok(missing)
                },
            );
            let missing: Vec<Vec<(u32, u32)>> = missing.collect::<Result<_, Error>>()?;
            for (from, to) in missing.into_iter().flatten() {
                if !self.links(0, from).contains(&to) {
                    added += usize::from(self.index.links.push(from, to));
                }
            }
        }
        Ok(added)
    }
}
