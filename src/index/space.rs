//! Distances between coded rows, exact in integers.
//!
//! A pair costs one pass over both rows ([`Space::distance`]). Many distances from one row cost an inner product each
//! ([`Viewpoint`]): with both rows unsigned bytes, `|a−b|² = |a|² + |b|² − 2·a·b`, and since the kernel multiplies
//! unsigned by signed bytes, `a·b = b·(a−128) + 128·Σb`. Norms and sums are kept for every row.

use rayon::prelude::*;

use crate::kernels::Kernels;

/// The 8-bit codes of all rows, with what distances need of each.
pub(super) struct Space<'a> {
    codes: &'a [u8],
    stride: usize,
    kernels: Kernels,
    /// Squared length and sum of every row.
    terms: Vec<(u32, u32)>,
}

/// Distances from one row.
pub(super) struct Viewpoint<'a> {
    space: &'a Space<'a>,
    values: Vec<i8>,
    norm: u32,
}

impl<'a> Space<'a> {
    /// * `codes`: `stride` bytes a slot, padding included. Exact for up to 2¹⁵ components.
    pub(super) fn new(codes: &'a [u8], stride: usize) -> Self {
        let terms = codes.par_chunks_exact(stride).map(|row| {
            row.iter()
                .fold((0, 0), |(norm, sum), &c| (norm + u32::from(c) * u32::from(c), sum + u32::from(c)))
        });
        let terms = terms.collect();
        Space { codes, stride, kernels: Kernels::get(), terms }
    }

    pub(super) fn len(&self) -> usize {
        self.terms.len()
    }

    fn row(&self, slot: u32) -> &'a [u8] {
        &self.codes[slot as usize * self.stride..][..self.stride]
    }

    pub(super) fn distance(&self, a: u32, b: u32) -> u32 {
        self.kernels.distance_codes(self.row(a), self.row(b))
    }

    pub(super) fn from(&'a self, slot: u32) -> Viewpoint<'a> {
        let mut view = Viewpoint { space: self, values: Vec::new(), norm: 0 };
        view.turn(slot);
        view
    }

    /// Scores rows against a query in the codes' form; see [`super::quant`].
    pub(super) fn score(
        &self,
        slots: &[u32],
        query: &super::quant::CodedQuery,
        integers: &mut Vec<i32>,
        scores: &mut Vec<f32>,
    ) {
        let kind = super::CodeKind::U8;
        super::quant::score(self.kernels, self.codes, slots, query, kind, integers, scores);
    }
}

/// A row that distances are taken from.
pub(super) trait Look {
    /// Looks from another row.
    fn turn(&mut self, slot: u32);
    /// The squared distance of a row.
    fn distance(&self, to: u32) -> u32;
    /// As [`Look::distance`], of many rows that may lie anywhere in memory; `out` is cleared first.
    fn distances(&self, to: &[u32], out: &mut Vec<u32>);
}

impl Look for Viewpoint<'_> {
    fn turn(&mut self, slot: u32) {
        self.values.clear();
        self.values.extend(self.space.row(slot).iter().map(|&c| (c ^ 0x80) as i8));
        self.norm = self.space.terms[slot as usize].0;
    }

    fn distance(&self, to: u32) -> u32 {
        self.of_dot(to, self.space.kernels.dot_codes(self.space.row(to), &self.values))
    }

    fn distances(&self, to: &[u32], out: &mut Vec<u32>) {
        let (space, mut dots) = (self.space, Vec::new());
        space.kernels.score_codes(space.codes, to, &self.values, &mut dots);
        out.clear();
        out.extend(to.iter().zip(dots).map(|(&slot, dot)| self.of_dot(slot, dot)));
    }
}

impl Viewpoint<'_> {
    fn of_dot(&self, to: u32, dot: i32) -> u32 {
        let (norm, sum) = self.space.terms[to as usize];
        let product = i64::from(dot) + 128 * i64::from(sum);
        (i64::from(self.norm) + i64::from(norm) - 2 * product) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_ways_give_the_exact_distance(rows in prop::collection::vec(any::<[u8; 32]>(), 1..12)) {
            let codes = rows.concat();
            let space = Space::new(&codes, 32);
            let all: Vec<u32> = (0..rows.len() as u32).collect();
            let mut distances = Vec::new();
            for &a in &all {
                let view = space.from(a);
                view.distances(&all, &mut distances);
                for &b in &all {
                    let pairs = rows[a as usize].iter().zip(&rows[b as usize]);
                    let truth: u32 = pairs.map(|(x, y)| u32::from(x.abs_diff(*y)).pow(2)).sum();
                    prop_assert_eq!(space.distance(a, b), truth);
                    prop_assert_eq!(view.distance(b), truth);
                    prop_assert_eq!(distances[b as usize], truth);
                }
            }
        }
    }
}
