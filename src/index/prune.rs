//! Which of many candidates a node is linked to.

use super::space::Look;

/// At most `limit` of `candidates`, nearest first, none much nearer to one already kept than to `slot` itself
/// (`alpha` times its distance to the kept one, on squared distances, is less than that to `slot`).
///
/// * `view`: any; it is turned. `fill`: whether places left free are filled with the nearest of the rest.
pub(super) fn diverse(
    view: &mut impl Look,
    slot: u32,
    candidates: &[u32],
    limit: usize,
    Pruning { alpha, fill }: Pruning,
) -> Vec<u32> {
    let mut kept: Vec<u32> = Vec::with_capacity(limit);
    let mut rest = Vec::new();
    for (distance, candidate) in by_distance(view, slot, candidates) {
        if kept.len() == limit {
            break;
        }
        view.turn(candidate);
        if kept.iter().all(|&k| alpha * f64::from(view.distance(k)) >= f64::from(distance)) {
            kept.push(candidate);
        } else if fill {
            rest.push(candidate);
        }
    }
    let free = limit - kept.len();
    kept.extend(rest.into_iter().take(free));
    kept
}

/// Adds to what is kept, up to a limit, further candidates: first those that are nearer to the slot than to any that is kept, then
/// the nearest.
///
/// * `view`: any; it is turned.
pub(super) fn add_diverse(
    view: &mut impl Look,
    slot: u32,
    kept: &mut Vec<u32>,
    candidates: &[u32],
    limit: usize,
) {
    let mut rest = Vec::new();
    for (distance, candidate) in by_distance(view, slot, candidates) {
        if kept.len() >= limit {
            return;
        }
        view.turn(candidate);
        match kept.iter().all(|&k| view.distance(k) >= distance) {
            true => kept.push(candidate),
            false => rest.push(candidate),
        }
    }
    let free = limit.saturating_sub(kept.len());
    kept.extend(rest.into_iter().take(free));
}

/// Candidates with their distances from a slot, nearest first, without the slot itself.
fn by_distance(view: &mut impl Look, slot: u32, candidates: &[u32]) -> Vec<(u32, u32)> {
    let mut distances = Vec::new();
    view.turn(slot);
    view.distances(candidates, &mut distances);
    let candidates = distances.into_iter().zip(candidates.iter().copied());
    let mut by_distance: Vec<(u32, u32)> = candidates.filter(|&(_, candidate)| candidate != slot).collect();
    by_distance.sort_unstable();
    by_distance
}

/// What makes a link superfluous.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pruning {
    /// How much nearer to a kept neighbour: 1 is the paper's rule, more keeps more and longer links (Vamana's α, on
    /// squared distances).
    pub(super) alpha: f64,
    /// Whether free places are filled with links that the rule would drop.
    pub(super) fill: bool,
}

impl Pruning {
    /// The rule of the HNSW paper (its algorithm 4, with `keepPrunedConnections`).
    pub(super) const PAPER: Pruning = Pruning { alpha: 1.0, fill: true };
}

#[cfg(test)]
mod tests {
    use super::super::space::Space;
    use super::*;

    #[test]
    fn pruning_keeps_the_way_round_the_corner() {
        // On a line 0 — 1 — 2, and 3 on the other side: seen from 0, node 2 hides behind 1, node 3 does not.
        let at = |x: u8| [vec![x], vec![0; 63]].concat();
        let codes: Vec<u8> = [at(100), at(110), at(120), at(80)].concat();
        let space = Space::new(&codes, 64);
        assert_eq!(diverse(&mut space.from(0), 0, &[1, 2, 3], 2, Pruning::PAPER), [1, 3]);
        assert_eq!(diverse(&mut space.from(0), 0, &[1, 2, 3], 3, Pruning::PAPER), [1, 3, 2]);
        assert_eq!(
            diverse(&mut space.from(0), 0, &[1, 2, 3], 3, Pruning { fill: false, ..Pruning::PAPER }),
            [1, 3]
        );
        assert_eq!(
            diverse(&mut space.from(0), 0, &[1, 2, 3], 3, Pruning { alpha: 5.0, fill: false }),
            [1, 2, 3]
        );
    }
}
