//! The only user of `hnsw_rs`: codes in, raw link lists out.
//!
//! The graph is built on 8-bit codes whatever the search will run on: a distance then reads a quarter of the bytes,
//! and `hnsw_rs`, which copies every point, holds a quarter of the memory. What 8 bits blur is far below the
//! distances that decide a link.
//!
//! Its habits that shape this file (0.3.5): it ends the process on bad parameters, so they are validated first; the
//! first point must be inserted alone, because a thread that finds no entry point yet leaves its point without links
//! for ever; distances must not be negative; iterating while inserting deadlocks; its parallel insertion runs on the
//! current rayon pool, so a pool of our own bounds the threads.

use hnsw_rs::prelude::{Distance, Hnsw};
use rayon::prelude::*;

use super::freeze::{Graph, RawLinks};
use super::quant::Codec;
use super::repair;
use super::space::Space;
use super::{BuildParams, Error};
use crate::kernels::Kernels;

/// Layers `hnsw_rs` allows. A node reaches layer l with probability M⁻ˡ, so the top ones stay empty.
const MAX_LAYERS: usize = 16;

/// Squared Euclidean distance of code rows. On unit vectors it orders like the inner product.
struct CodeDistance(Kernels);

impl Distance<u8> for CodeDistance {
    fn eval(&self, a: &[u8], b: &[u8]) -> f32 {
        self.0.distance_codes(a, b) as f32
    }
}

/// Builds the graph of some rows and freezes it.
///
/// * `codec`: trained on the rows. `rows`: row-major `[n, dim]`, unit rows; slot i is row i.
/// * `queries`: row-major `[q, dim]`, a sample of what will be asked, if its kind differs from the rows' (`repair.rs`);
///   may be empty.
/// * `progress`: told how many rows have been inserted, from any thread.
/// * Returns the graph and, for reports, what freezing had to mend.
///
/// # Errors
/// [`Error::Parameter`], [`Error::Empty`], [`Error::TooMany`], [`Error::Threads`].
pub fn build(
    params: &BuildParams,
    codec: &Codec,
    rows: &[f32],
    queries: &[f32],
    progress: impl Fn(usize) + Sync,
) -> Result<Graph, Error> {
    params.validate()?;
    let n = rows.len() / codec.dim();
    if n == 0 {
        return Err(Error::Empty);
    }
    if n > Graph::MAX_NODES {
        return Err(Error::TooMany { received: n, limit: Graph::MAX_NODES });
    }
    let threads = params.threads;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("index-build-{i}"))
        .build()
        .map_err(|source| Error::Threads { threads, source })?;
    pool.install(|| {
        let codec = codec.as_u8(rows);
        let codes = codec.encode(rows);
        let links = insert_all(params, &codes, codec.stride(), n, &progress);
        let space = Space::new(&codes, codec.stride());
        let mut graph = Graph::freeze(links, params, &space);
        for _ in 0..params.refine {
            repair::refine(&mut graph, &space, params.m0());
        }
        let queries: Vec<_> = queries.par_chunks_exact(codec.dim()).map(|q| codec.code_query(q)).collect();
        graph.reach.repaired = repair::fix(&mut graph, &space, &queries);
        Ok(graph)
    })
}

fn insert_all(
    params: &BuildParams,
    codes: &[u8],
    stride: usize,
    n: usize,
    progress: &(impl Fn(usize) + Sync),
) -> RawLinks {
    let hnsw = Hnsw::new(params.m, n, MAX_LAYERS, params.ef_construction, CodeDistance(Kernels::get()));
    let insert = |slot: usize| {
        hnsw.insert_slice((&codes[slot * stride..][..stride], slot));
        progress(1);
    };
    insert(0);
    if params.threads == 1 || params.deterministic {
        (1..n).for_each(insert);
    } else {
        (1..n).into_par_iter().for_each(insert);
    }

    let mut links = RawLinks::new(n);
    for point in hnsw.get_point_indexation() {
        let level = point.get_point_id().0 as usize;
        let lists = point.get_neighborhood_id();
        let lists =
            lists.into_iter().take(level + 1).map(|list| list.iter().map(|link| link.d_id as u32).collect());
        links.set(point.get_origin_id(), lists.collect());
    }
    links
}
