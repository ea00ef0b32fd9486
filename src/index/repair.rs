//! A frozen graph gets better links: by looking again, and by looking from where queries come from.
//!
//! ```text
//! refine     every node searches the whole graph for itself; what it finds and its old links are pruned together,
//!            reverse links added, pruned again. Insertion only ever saw the points that came before.
//! fix        for each query of a sample from another modality: of its nearest rows, those that cannot be reached from
//!            the nearest one inside that set get a link from the nearest reached one. Such links lie in the spare
//!            places of a row and are never pruned.
//! ```
//!
//! A query from another modality lies off the rows, and its neighbours are scattered: from its nearest row the
//! others are often not reachable by steps that stay near the query. That is where a search stalls, and what `fix`
//! mends. Neither step depends on the number of threads or their timing.
//!
//! Sources: refine is Vamana's second pass (Jayaram Subramanya et al., *DiskANN*, NeurIPS 2019), with the rows' own graph
//! as its start. fix follows Hua et al., *NGFix* (SIGMOD 2025) and Chen et al., *RoarGraph* (VLDB 2024).

use rayon::prelude::*;

use super::freeze::{Graph, Pruning, diverse, mirror_and_prune};
use super::quant::CodedQuery;
use super::search::{Links, Walker};
use super::space::{Scores, Space};

/// Beam of a node's search for itself.
const REFINE_EF: usize = 150;
/// Refined links may be a little redundant: that keeps long ones.
const REFINE: Pruning = Pruning { alpha: 1.15, fill: false };
/// Nearest rows of a sampled query that must reach each other.
const FIX_NEAREST: usize = 30;
/// Beam that finds them.
const FIX_EF: usize = 150;
/// Queries searched for at once; links are added between such batches, so that later queries profit.
const FIX_BATCH: usize = 4096;

/// Rebuilds every node's level-0 links.
pub(super) fn refine(graph: &mut Graph, space: &Space<'_>, limit: usize) {
    let slots: Vec<u32> = (0..space.len() as u32).collect();
    let old = &*graph;
    let mut lists: Vec<Vec<u32>> = slots
        .par_iter()
        .map_init(
            || (Walker::default(), Vec::new(), Vec::new()),
            |(walker, scratch, distances), &slot| {
                let view = space.from(slot);
                walker.walk(old, REFINE_EF, |slots, scores| {
                    view.distances(slots, scratch, distances);
                    scores.clear();
                    scores.extend(distances.iter().map(|&d| -(d as f32)));
                });
                let mut candidates: Vec<u32> = walker.found().map(|c| c.slot.0).collect();
                candidates.extend(old.links(slot));
                candidates.sort_unstable();
                candidates.dedup();
                diverse(space, slot, &candidates, limit, REFINE)
            },
        )
        .collect();
    mirror_and_prune(space, &slots, &mut lists, limit, REFINE);
    graph.set_level0(&lists, space);
}

/// Links the neighbourhoods of sampled queries; the number of links added.
pub(super) fn fix(graph: &mut Graph, space: &Space<'_>, queries: &[CodedQuery]) -> usize {
    let mut added = 0;
    for batch in queries.chunks(FIX_BATCH) {
        let now = &*graph;
        let nearest: Vec<Vec<u32>> = batch
            .par_iter()
            .map_init(
                || (Walker::default(), Scores::default()),
                |(walker, scratch), query| {
                    walker.walk(now, FIX_EF, |slots, scores| {
                        space.score(slots, query, scratch);
                        std::mem::swap(scores, &mut scratch.floats);
                    });
                    walker.found().take(FIX_NEAREST).map(|c| c.slot.0).collect()
                },
            )
            .collect();
        added += nearest.iter().map(|nearest| connect(graph, space, nearest)).sum::<usize>();
    }
    added
}

/// Makes every one of `nearest` (best first) reachable from the first along links inside the set, as far as rows have
/// places left; the number of links added.
fn connect(graph: &mut Graph, space: &Space<'_>, nearest: &[u32]) -> usize {
    let mut reached = vec![false; nearest.len()];
    if let Some(first) = reached.first_mut() {
        *first = true;
    }
    let mut open = vec![0];
    let mut added = 0;
    loop {
        while let Some(at) = open.pop() {
            for &to in graph.links(nearest[at]) {
                if let Some(to) = nearest.iter().position(|&slot| slot == to)
                    && !std::mem::replace(&mut reached[to], true)
                {
                    open.push(to);
                }
            }
        }
        let Some(lost) = reached.iter().position(|&r| !r) else { return added };
        let view = space.from(nearest[lost]);
        let mut ways: Vec<(u32, u32)> = nearest
            .iter()
            .zip(&reached)
            .filter(|&(_, &reached)| reached)
            .map(|(&from, _)| (view.distance(from), from))
            .collect();
        ways.sort_unstable();
        added += usize::from(ways.into_iter().any(|(_, from)| graph.try_link(from, nearest[lost])));
        // Without a place anywhere it stays lost to this query; what lies behind it is still looked at.
        reached[lost] = true;
        open.push(lost);
    }
}
