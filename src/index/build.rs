//! The only user of `hnsw_rs`: codes in, raw link lists out.
//!
//! The graph is built on 4-bit codes whatever the search will run on: a distance then reads an eighth of the bytes, and what
//! they blur is below the differences that decide a link (against 8 bits: the same recall, a fifth less time). Pruning and
//! repair, which compare distances that are nearly equal, look at 8 bits. `hnsw_rs` copies every point, so its points are the
//! slots, one number each, and its distance looks the codes up.
//!
//! **Every level is a graph of its own.** A descent that ends in the wrong region spoils a narrow beam, and the upper levels
//! that insertion leaves lead there often. So of each graph only level 0 stays, and the nodes that reached above it are built
//! again, over these alone, with at least [`UPPER_EF`] candidates and repaired by as many queries as they can use. They are
//! one in M, so it costs little (synthetic 100k: 4 s of 46, recall at a beam of 16 from 0.967 to 0.985; 1M: a tenth,
//! cross-modal recall at a beam of 256 from 0.919 to 0.940).
//!
//! Its habits that shape this file (0.3.5): it ends the process on bad parameters, so they are validated first; the
//! first point must be inserted alone, because a thread that finds no entry point yet leaves its point without links
//! for ever; distances must not be negative; iterating while inserting deadlocks; its parallel insertion runs on the
//! current rayon pool, so a pool of our own bounds the threads.

use std::sync::Arc;

use hnsw_rs::prelude::{Distance, Hnsw, Point};
use rayon::prelude::*;

use super::freeze::Graph;
use super::layout::MAX_NODES;
use super::quant::{Codec, Coded};
use super::repair::Repair;
use super::space::Space;
use super::{BuildParams, Error};
use crate::kernels::Kernels;

/// Candidates kept, at the least, while the upper levels are built.
const UPPER_EF: usize = 200;
/// Sampled queries for a node of the upper levels, at the most.
const UPPER_QUERIES: usize = 2;
/// Layers `hnsw_rs` allows. A node reaches layer l with probability M⁻ˡ, so the top ones stay empty.
const MAX_LAYERS: usize = 16;

/// Distance of the rows behind two slots: squared Euclidean, on 4-bit codes. On unit vectors it orders like the inner product.
struct SlotDistance<'a> {
    codes: &'a [u8],
    stride: usize,
    kernels: Kernels,
    /// Squared length of every row.
    squares: Vec<u32>,
}

impl<'a> SlotDistance<'a> {
    fn new(narrow: Coded<'a>) -> Self {
        let (kernels, stride) = (Kernels::get(), narrow.codec.stride());
        let squares =
            narrow.codes.par_chunks_exact(stride).map(|row| kernels.product_nibbles(row, row)).collect();
        SlotDistance { codes: narrow.codes, stride, kernels, squares }
    }

    fn row(&self, slot: u32) -> &'a [u8] {
        &self.codes[slot as usize * self.stride..][..self.stride]
    }
}

impl Distance<u32> for &SlotDistance<'_> {
    fn eval(&self, a: &[u32], b: &[u32]) -> f32 {
        let (a, b) = (a[0], b[0]);
        let squares = self.squares[a as usize] + self.squares[b as usize];
        (squares - 2 * self.kernels.product_nibbles(self.row(a), self.row(b))) as f32
    }
}

/// What a build is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Rows are inserted into the graph.
    Insert,
    /// Rows look for better links; the round.
    Refine(usize),
    /// Rows are searched for, and linked where they are not found.
    Rescue,
    /// Sampled queries add links.
    Repair,
}

/// Builds the graph of some rows in memory and freezes it; see [`build_coded`].
///
/// * `codec`: trained on the rows. `rows`: row-major `[n, dim]`, unit rows; slot i is row i.
///
/// # Errors
/// As [`build_coded`].
pub fn build(
    params: &BuildParams,
    codec: &Codec,
    rows: &[f32],
    queries: &[f32],
    progress: impl Fn(Stage, usize) + Sync,
) -> Result<Graph, Error> {
    let (wide, narrow) = (codec.as_u8(rows), codec.as_u4(rows));
    let codes = [wide.encode(rows), narrow.encode(rows)];
    let [wide, narrow] =
        [(&wide, &codes[0][..]), (&narrow, &codes[1][..])].map(|(codec, codes)| Coded { codec, codes });
    build_coded(params, wide, narrow, queries, progress)
}

/// Builds the graph of some rows and freezes it.
///
/// * `wide`, `narrow`: the rows in 8 and in 4 bits; slot i is row i. The narrow ones are for walking, the wide ones decide.
/// * `queries`: row-major `[q, dim]`, a sample of what will be asked, if its kind differs from the rows' (`repair.rs`);
///   may be empty.
/// * `progress`: told of so many more rows or queries that a stage is done with, from any thread.
/// * Returns the graph and, for reports, what freezing had to mend.
///
/// # Errors
/// [`Error::Parameter`], [`Error::Empty`], [`Error::TooMany`], [`Error::Threads`].
pub fn build_coded(
    params: &BuildParams,
    wide: Coded<'_>,
    narrow: Coded<'_>,
    queries: &[f32],
    progress: impl Fn(Stage, usize) + Sync,
) -> Result<Graph, Error> {
    params.validate()?;
    let n = wide.codes.len() / wide.codec.stride();
    if n == 0 {
        return Err(Error::Empty);
    }
    if n > MAX_NODES {
        return Err(Error::TooMany { received: n, limit: MAX_NODES });
    }
    let threads = params.threads;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("index-build-{i}"))
        .build()
        .map_err(|source| Error::Threads { threads, source })?;
    pool.install(|| level(params, wide, narrow, queries, &progress))
}

/// The graph of some rows, the levels above them included.
fn level(
    params: &BuildParams,
    wide: Coded<'_>,
    narrow: Coded<'_>,
    queries: &[f32],
    progress: &(impl Fn(Stage, usize) + Sync),
) -> Result<Graph, Error> {
    let space = Space::new(wide.codes, wide.codec.stride());
    let (links, climbers) = insert(params, &SlotDistance::new(narrow), &|n| progress(Stage::Insert, n));
    let mut graph = Graph::freeze(links, params, &space);
    // Of very few rows all may climb, over and over.
    if (1..space.len()).contains(&climbers.len()) {
        graph.set_upper(upper(params, &climbers, wide, narrow, queries)?, &climbers, &space);
    }
    let repair = Repair::new(&space, wide.codec, narrow)?;
    for round in 0..params.refine {
        repair.refine(&mut graph, params.m0(), &|n| progress(Stage::Refine(round), n))?;
    }
    graph.reach.rescued += repair.rescue(&mut graph, &|n| progress(Stage::Rescue, n))?;
    graph.reach.repaired = repair.fix(&mut graph, queries, &|n| progress(Stage::Repair, n))?;
    Ok(graph)
}

/// The graph of the rows at some slots, for the levels above; its nodes are numbered by their places in `slots`.
fn upper(
    params: &BuildParams,
    slots: &[u32],
    wide: Coded<'_>,
    narrow: Coded<'_>,
    queries: &[f32],
) -> Result<Graph, Error> {
    let some = |Coded { codec, codes }: Coded<'_>| {
        let row = |&slot: &u32| &codes[slot as usize * codec.stride()..][..codec.stride()];
        slots.iter().map(row).collect::<Vec<_>>().concat()
    };
    let (wide_codes, narrow_codes) = (some(wide), some(narrow));
    let (wide, narrow) =
        (Coded { codes: &wide_codes[..], ..wide }, Coded { codes: &narrow_codes[..], ..narrow });
    above(params, wide, narrow, queries)
}

/// The graph of rows that reach above level 0. Runs on the current rayon pool.
///
/// # Errors
/// As [`build_coded`].
pub(super) fn above(
    params: &BuildParams,
    wide: Coded<'_>,
    narrow: Coded<'_>,
    queries: &[f32],
) -> Result<Graph, Error> {
    let count = wide.codes.len() / wide.codec.stride();
    let params = BuildParams { ef_construction: params.ef_construction.max(UPPER_EF), ..params.clone() };
    let dim = wide.codec.dim();
    let every = (queries.len() / dim).div_ceil(UPPER_QUERIES * count).max(1);
    let queries = queries.chunks_exact(dim).step_by(every).collect::<Vec<_>>().concat();
    // They are too few to be told of. A pointer, because a type of its own for every level would have no end.
    let silent: fn(Stage, usize) = |_, _| ();
    level(&params, wide, narrow, &queries, &silent)
}

/// The links of all rows on level 0 of an `hnsw_rs` graph, and the slots that reach above it, ascending.
fn insert(
    params: &BuildParams,
    distance: &SlotDistance<'_>,
    progress: &(impl Fn(usize) + Sync),
) -> (Vec<Vec<u32>>, Vec<u32>) {
    let slots: Vec<u32> = (0..distance.squares.len() as u32).collect();
    let n = slots.len();
    let hnsw = Hnsw::new(params.m, n, MAX_LAYERS, params.ef_construction, distance);
    let insert = |node: usize| {
        hnsw.insert_slice((&slots[node..=node], node));
        progress(1);
    };
    insert(0);
    if params.threads == 1 || params.deterministic {
        (1..n).for_each(insert);
    } else {
        (1..n).into_par_iter().for_each(insert);
    }

    // Copying the links out touches every one of them: worth all threads.
    let points: Vec<_> = hnsw.get_point_indexation().into_iter().collect();
    let read = |point: &Arc<Point<'_, u32>>| {
        let links = point.get_neighborhood_id().into_iter().next().unwrap_or_default();
        let links: Vec<u32> = links.into_iter().map(|link| link.d_id as u32).collect();
        (point.get_origin_id() as u32, point.get_point_id().0 > 0, links)
    };
    let (mut links, mut climbers) = (vec![Vec::new(); n], Vec::new());
    for (slot, climbs, list) in points.par_iter().map(read).collect::<Vec<_>>() {
        links[slot as usize] = list;
        climbers.extend(climbs.then_some(slot));
    }
    climbers.sort_unstable();
    (links, climbers)
}

#[cfg(test)]
mod tests {
    use super::super::{CodeKind, Index, Parts};
    use super::*;
    use crate::types::ItemId;

    /// The upper levels that are built again have an entry of their own, and what the first one reached was not reachable from
    /// there.
    #[test]
    fn the_second_entry_reaches_everything() {
        let dim = 2;
        for n in 20..90 {
            let row = |i: usize| if i.is_multiple_of(3) { [1.0, 0.0] } else { [-1.0, (i % 5) as f32 * 1e-3] };
            let rows: Vec<f32> = (0..n).flat_map(row).collect();
            let codec = Codec::train(CodeKind::U8, &rows, dim);
            let params = BuildParams { m: 2, ef_construction: 8, threads: 1, ..BuildParams::default() };
            let graph = build(&params, &codec, &rows, &[], |_, _| ()).unwrap();
            let ids: Vec<ItemId> = (0..n as u64).map(ItemId).collect();
            let mut bytes = Vec::new();
            let codes = codec.encode(&rows);
            Parts { graph: &graph, codec: &codec, ids: &ids, codes: &codes }.write(&mut bytes).unwrap();
            let index = Index::open(&bytes).unwrap();
            assert_eq!(index.unreachable(), [], "{n} rows");
        }
    }
}
