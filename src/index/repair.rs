//! A frozen graph gets better links: by looking again, for what nobody finds, and from where queries come from.
//!
//! ```text
//! refine     every node searches the whole graph for itself; what it finds and its old links are pruned together,
//!            reverse links added, pruned again. Insertion only ever saw the points that came before.
//! rescue     every node searches for itself; one that is not found gets links from the nearest that are. Where rows
//!            are crowded all neighbours of a node can be full and none leads to it, though there is a way from the
//!            entry, and insertion itself sometimes ends in the wrong region.
//! fix        for each query of a sample from another modality: of its nearest 10, 30 and 100 rows, those that cannot be
//!            reached from the nearest one inside that set get a link from the nearest reached one. Such links lie in
//!            the spare places of a row and are never pruned.
//! ```
//!
//! A query from another modality lies off the rows, and its neighbours are scattered: from its nearest row the
//! others are often not reachable by steps that stay near the query. That is where a search stalls, and what `fix`
//! mends. No step depends on the number of threads or their timing.
//!
//! Sources: refine is Vamana's second pass (Jayaram Subramanya et al., *DiskANN*, NeurIPS 2019), with the rows' own graph
//! as its start. fix follows Hua et al., *NGFix* (SIGMOD 2025) and Chen et al., *RoarGraph* (VLDB 2024).

use rayon::prelude::*;

use super::freeze::{Graph, mirror_and_prune};
use super::links::Links;
use super::prune::{Pruning, diverse};
use super::quant::{Coded, CodedQuery, RowQueries};
use super::sketch::Sketch;
use super::space::{Look, Space};
use super::walk::{Beam, Walks};
use super::{Codec, Error};

/// Beam of a node's search for itself.
const REFINE_EF: usize = 150;
/// Refined links may be a little redundant: that keeps long ones.
const REFINE: Pruning = Pruning { alpha: 1.15, fill: false };
/// Beam of a node's search for itself that has to find it. Of a synthetic million rows it misses 23 000, without which recall of
/// queries like the rows ends at 0.982, whatever the beam.
const RESCUE_EF: usize = 32;
/// Links that a node which is not found gets.
const RESCUE_LINKS: usize = 3;
/// Nearest rows of a sampled query that must reach each other: so many, then so many. Synthetic 100k, cross-modal recall at a
/// beam of 64: with 30 alone 0.916, with 100 alone 0.941, with all three 0.956, in the same time.
pub(super) const FIX_NEAREST: [usize; 3] = [10, 30, 100];
/// Beam that finds them.
pub(super) const FIX_EF: usize = 200;
/// Of what the beam finds, so many are scored on wider codes to choose the nearest.
const FIX_RESCORE: usize = 150;
/// Queries searched for at once; links are added between such batches, so that later queries profit.
const FIX_BATCH: usize = 2048;
/// Searches that a thread does in one go.
const SHARE: usize = 64;

/// What better links are found with: the rows in two widths. Walks run on the narrow codes, and what they find is judged by
/// the wide ones.
pub(super) struct Repair<'a> {
    space: &'a Space<'a>,
    wide: &'a Codec,
    narrow: Coded<'a>,
    sketch: Option<Sketch>,
}

impl<'a> Repair<'a> {
    /// * `space`: of the rows' 8-bit codes, made by `wide`. `narrow`: the same rows in 4 bits.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub(super) fn new(space: &'a Space<'a>, wide: &'a Codec, narrow: Coded<'a>) -> Result<Self, Error> {
        Ok(Repair { space, wide, narrow, sketch: Sketch::of(narrow, space.len())? })
    }

    /// Rebuilds every node's level-0 links.
    ///
    /// # Errors
    /// None that a build meets; those of a walk.
    pub(super) fn refine(
        &self,
        graph: &mut Graph,
        limit: usize,
        progress: &(impl Fn(usize) + Sync),
    ) -> Result<(), Error> {
        let old = &*graph;
        let mut lists: Vec<Vec<u32>> = self.search_for_all(old, REFINE_EF, progress, |slot, mut found| {
            found.extend(old.links(slot));
            found.sort_unstable();
            found.dedup();
            Some(diverse(&mut self.space.from(slot), slot, &found, limit, REFINE))
        })?;
        mirror_and_prune(self.space, &mut lists, limit, REFINE);
        graph.set_level0(&lists, self.space);
        Ok(())
    }

    /// Links every node that a search for itself does not find; their number.
    ///
    /// # Errors
    /// As [`Repair::refine`].
    pub(super) fn rescue(
        &self,
        graph: &mut Graph,
        progress: &(impl Fn(usize) + Sync),
    ) -> Result<usize, Error> {
        let old = &*graph;
        let lost: Vec<(u32, Vec<u32>)> =
            self.search_for_all(old, RESCUE_EF, progress, |slot, mut found| {
                if found.contains(&slot) {
                    return None;
                }
                found.extend(old.links(slot));
                let view = self.space.from(slot);
                let mut near: Vec<(u32, u32)> =
                    found.iter().map(|&from| (view.distance(from), from)).collect();
                near.sort_unstable();
                near.dedup();
                Some((slot, near.into_iter().map(|(_, from)| from).collect()))
            })?;
        for (slot, near) in &lost {
            let linked = |from: &&u32| graph.links(**from).contains(slot) || graph.try_link(**from, *slot);
            near.iter().filter(linked).take(RESCUE_LINKS).for_each(drop);
        }
        Ok(lost.len())
    }

    /// What `each` makes of every node and the nodes that a search for it finds, in the order of the slots.
    fn search_for_all<T: Send + Clone>(
        &self,
        graph: &Graph,
        ef: usize,
        progress: &(impl Fn(usize) + Sync),
        each: impl Fn(u32, Vec<u32>) -> Option<T> + Sync,
    ) -> Result<Vec<T>, Error> {
        let slots: Vec<u32> = (0..self.space.len() as u32).collect();
        let (codec, codes) = (self.narrow.codec, self.narrow.codes);
        let (rows, stride) = (RowQueries::new(codec), codec.stride());
        let shares = slots
            .par_chunks(SHARE)
            .map_init(Walks::default, |walks, slots| {
                let queries =
                    slots.iter().map(|&slot| rows.query(&codes[slot as usize * stride..][..stride]));
                let found = self.found(walks, graph, queries, ef, ef)?;
                let made = slots.iter().zip(found).filter_map(|(&slot, found)| each(slot, found)).collect();
                progress(slots.len());
                Ok(made)
            })
            .collect::<Result<Vec<Vec<T>>, Error>>()?;
        Ok(shares.concat())
    }

    /// Links the neighbourhoods of sampled queries; the number of links added.
    ///
    /// * `queries`: row-major `[q, dim]`.
    ///
    /// # Errors
    /// As [`Repair::refine`].
    pub(super) fn fix(
        &self,
        graph: &mut Graph,
        queries: &[f32],
        progress: &(impl Fn(usize) + Sync),
    ) -> Result<usize, Error> {
        let (dim, mut added) = (self.wide.dim(), 0);
        for batch in queries.chunks(FIX_BATCH * dim) {
            let now = &*graph;
            let missing: Vec<Vec<(u32, u32)>> = batch
                .par_chunks(SHARE * dim)
                .map_init(
                    || (Walks::default(), vec![0; now.len()]),
                    |(walks, places), queries| {
                        let narrow =
                            queries.chunks_exact(dim).map(|query| self.narrow.codec.code_query(query));
                        let found = self.found(walks, now, narrow, FIX_EF, FIX_RESCORE)?;
                        let mut missing = Vec::new();
                        for (query, found) in queries.chunks_exact(dim).zip(found) {
                            let nearest = self.nearest(query, &found);
                            let (free, mut view) = (|from| now.free_places(from), self.space.from(0));
                            missing.extend(missing_links(now, free, &mut view, &nearest, places));
                        }
                        Ok(missing)
                    },
                )
                .collect::<Result<_, Error>>()?;
            let mut missing = missing.concat();
            missing.retain(|&(from, to)| !graph.links(from).contains(&to) && graph.try_link(from, to));
            added += missing.len();
            progress(batch.len() / dim);
        }
        Ok(added)
    }

    /// The best `wanted` of what a beam finds, for each query.
    fn found(
        &self,
        walks: &mut Walks,
        graph: &Graph,
        queries: impl ExactSizeIterator<Item = CodedQuery>,
        ef: usize,
        wanted: usize,
    ) -> Result<Vec<Vec<u32>>, Error> {
        let mut found = vec![Vec::new(); queries.len()];
        walks.all(
            graph,
            (self.narrow, self.sketch.as_ref()),
            queries.map(|query| (query, Beam::wide(ef))),
            None,
            |_| Ok(()),
            |at, walker| {
                found[at] = walker.found().take(wanted).map(|c| c.slot.0).collect();
            },
        )?;
        Ok(found)
    }

    /// The best of some rows by their wide codes, best first: as many as are linked.
    fn nearest(&self, query: &[f32], found: &[u32]) -> Vec<u32> {
        let (mut integers, mut scores) = (Vec::new(), Vec::new());
        self.space.score(found, &self.wide.code_query(query), &mut integers, &mut scores);
        let mut order: Vec<usize> = (0..found.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(found[a].cmp(&found[b])));
        order.into_iter().take(FIX_NEAREST[2]).map(|at| found[at]).collect()
    }
}

/// The links that make every one of `nearest` (best first) reachable from the first along links inside the set, and so its
/// beginnings of [`FIX_NEAREST`], as far as rows have places left.
///
/// * `free`: places that a row has left. `view`: any; it is turned. `places`: a zero for every node, and so again afterwards: where
///   in `nearest` a node stands is looked up for every link.
pub(super) fn missing_links(
    graph: &impl Links,
    free: impl Fn(u32) -> usize,
    view: &mut impl Look,
    nearest: &[u32],
    places: &mut [u16],
) -> Vec<(u32, u32)> {
    let mut missing: Vec<(u32, u32)> = Vec::new();
    for count in FIX_NEAREST {
        let nearest = &nearest[..count.min(nearest.len())];
        for (slot, place) in nearest.iter().zip(1..) {
            places[*slot as usize] = place;
        }
        let mut reached = vec![false; nearest.len()];
        if let Some(first) = reached.first_mut() {
            *first = true;
        }
        let mut open = vec![0];
        loop {
            while let Some(at) = open.pop() {
                let from = nearest[at];
                let mut reach = |to: u32| {
                    let place = places.get(to as usize).and_then(|place| place.checked_sub(1));
                    if let Some(to) = place.map(usize::from)
                        && !std::mem::replace(&mut reached[to], true)
                    {
                        open.push(to);
                    }
                };
                graph.each_link(0, from, &mut reach);
                missing.iter().filter(|link| link.0 == from).for_each(|link| reach(link.1));
            }
            let Some(lost) = reached.iter().position(|&r| !r) else { break };
            view.turn(nearest[lost]);
            let free = |from: &u32| free(*from) > missing.iter().filter(|link| link.0 == *from).count();
            let ways = nearest.iter().zip(&reached).filter(|&(from, &reached)| reached && free(from));
            let way = ways.map(|(&from, _)| (view.distance(from), from)).min();
            missing.extend(way.map(|(_, from)| (from, nearest[lost])));
            // Without a place anywhere it stays lost to this query; what lies behind it is still looked at.
            reached[lost] = true;
            open.push(lost);
        }
    }
    nearest.iter().for_each(|&slot| places[slot as usize] = 0);
    missing
}

#[cfg(test)]
mod tests {
    use super::super::{BuildParams, CodeKind, Codec, Index, Parts, SearchParams, Searcher, build, exact};
    use super::*;
    use crate::types::ItemId;

    const DIM: usize = 32;
    const ROWS: usize = 4000;

    /// Unit vectors around a few centres, shifted by `gap` along one axis as another modality is.
    fn cloud(seed: u64, n: usize, gap: f32, noise: f32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let mut rows = Vec::with_capacity(n * DIM);
        for _ in 0..n {
            let centre = ((next() + 0.5) * 40.0) as usize;
            let mut row: Vec<f32> =
                (0..DIM).map(|i| ((centre * 31 + i * 17) as f32).sin() * 0.6 + next() * noise).collect();
            row[0] += gap;
            let norm = crate::types::norm(&row) as f32;
            rows.extend(row.iter().map(|v| v / norm));
        }
        rows
    }

    fn params() -> BuildParams {
        BuildParams { m: 6, ef_construction: 16, threads: 2, deterministic: true, ..Default::default() }
    }

    fn open(graph: &Graph, codec: &Codec, rows: &[f32]) -> Index {
        let ids: Vec<ItemId> = (0..(rows.len() / DIM) as u64).map(ItemId).collect();
        let mut bytes = Vec::new();
        Parts { graph, codec, ids: &ids, codes: &codec.encode(rows) }.write(&mut bytes).unwrap();
        Index::open(&bytes).unwrap()
    }

    fn recall(index: &Index, rows: &[f32], queries: &[f32], ef_search: usize) -> f64 {
        let mut searcher = Searcher::default();
        let search = SearchParams { ef_search, ..Default::default() };
        let one = |query: &[f32]| {
            let truth: Vec<u32> = exact::search(rows, query, 10).iter().map(|s| s.slot.0).collect();
            let (found, _) = searcher.search(index, query, 10, &search).unwrap();
            exact::recall(&truth, &found.iter().map(|c| c.slot.0).collect::<Vec<_>>())
        };
        queries.chunks_exact(DIM).map(one).sum::<f64>() / (queries.len() / DIM) as f64
    }

    #[test]
    fn refined_and_repaired_graphs_find_more() {
        let rows = cloud(1, ROWS, 0.0, 0.8);
        let (train, test) = (cloud(2, 4000, 2.0, 1.2), cloud(3, 200, 2.0, 1.2));
        let codec = Codec::train(CodeKind::F32, &rows, DIM);
        let graph = |refine, queries: &[f32]| {
            build(&BuildParams { refine, ..params() }, &codec, &rows, queries, |_, _| ()).unwrap()
        };
        let (plain, refined, repaired) = (graph(0, &[]), graph(2, &[]), graph(2, &train));
        assert_eq!(refined.reach().repaired, 0);
        assert!(repaired.reach().repaired > 0);
        let [plain, refined, repaired] = [plain, refined, repaired].map(|g| open(&g, &codec, &rows));
        for index in [&refined, &repaired] {
            assert!(index.unreachable().is_empty());
        }
        let near = cloud(4, 200, 0.0, 0.8);
        let (before, after) = (recall(&plain, &rows, &near, 10), recall(&refined, &rows, &near, 10));
        assert!(after > before, "refined: {before} → {after}");
        let (before, after) = (recall(&refined, &rows, &test, 16), recall(&repaired, &rows, &test, 16));
        assert!(after > before, "repaired: {before} → {after}");
    }

    #[test]
    fn rows_that_only_a_far_one_leads_to_are_linked_from_near() {
        let rows = cloud(1, 1000, 0.0, 0.8);
        let codec = Codec::train(CodeKind::F32, &rows, DIM);
        let mut graph = build(&params(), &codec, &rows, &[], |_, _| ()).unwrap();
        let (wide, narrow) = (codec.as_u8(&rows), codec.as_u4(&rows));
        let (codes, narrow_codes) = (wide.encode(&rows), narrow.encode(&rows));
        let space = Space::new(&codes, wide.stride());
        let lost: Vec<u32> = (1..1000).filter(|slot| slot % 97 == 3).collect();
        let far = |slot: u32| (0..1000).max_by_key(|&from| space.distance(slot, from)).unwrap();
        let lists: Vec<Vec<u32>> = (0..1000u32)
            .map(|from| {
                let links = graph.links(from).iter().copied();
                links.filter(|to| !lost.contains(to) || far(*to) == from).collect()
            })
            .collect();
        for (row, list) in graph.level0.chunks_exact_mut(graph.row_len).zip(&lists) {
            row[0] = list.len() as u32;
            row[1..][..list.len()].copy_from_slice(list);
        }
        lost.iter().for_each(|&slot| assert!(graph.try_link(far(slot), slot)));

        let repair = Repair::new(&space, &wide, Coded { codec: &narrow, codes: &narrow_codes }).unwrap();
        let rescued = repair.rescue(&mut graph, &|_| ()).unwrap();
        assert!((lost.len() * 9 / 10..=lost.len() + 20).contains(&rescued), "{rescued} of {}", lost.len());
        let leading = |slot: u32| (0..1000).filter(|&from| graph.links(from).contains(&slot)).count();
        let found = lost.iter().filter(|&&slot| leading(slot) > RESCUE_LINKS).count();
        assert!(found * 10 >= lost.len() * 9, "{found} of {}", lost.len());
        assert!(repair.rescue(&mut graph, &|_| ()).unwrap() * 10 <= rescued);
    }

    #[test]
    fn a_deterministic_build_gives_one_graph() {
        let (rows, queries) = (cloud(1, 1000, 0.0, 0.8), cloud(2, 300, 2.0, 1.2));
        let codec = Codec::train(CodeKind::U4, &rows, DIM);
        let graph = |threads| {
            build(&BuildParams { threads, ..params() }, &codec, &rows, &queries, |_, _| ()).unwrap()
        };
        assert_eq!(graph(1), graph(2));
    }

    #[test]
    fn full_rows_are_left_alone() {
        let rows = cloud(1, 300, 0.0, 0.8);
        let codec = Codec::train(CodeKind::F32, &rows, DIM);
        let mut graph = build(&params(), &codec, &rows, &[], |_, _| ()).unwrap();
        for slot in 0..300 {
            while graph.try_link(slot, (slot + 1) % 300) {}
        }
        let full = graph.clone();
        let (wide, narrow) = (codec.as_u8(&rows), codec.as_u4(&rows));
        let (codes, narrow_codes) = (wide.encode(&rows), narrow.encode(&rows));
        let space = Space::new(&codes, wide.stride());
        let repair = Repair::new(&space, &wide, Coded { codec: &narrow, codes: &narrow_codes }).unwrap();
        assert_eq!(repair.fix(&mut graph, &cloud(2, 100, 2.0, 1.2), &|_| ()).unwrap(), 0);
        assert_eq!(graph, full);
    }
}
