//! A fixed random rotation, so that no component of a row is special.
//!
//! 4-bit codes have one step for all components. Real features do not: a few components vary much, most hardly. A
//! rotation leaves every inner product as it is and spreads each component over all others, after which they are alike
//! and near Gaussian, as the step assumes. Random signs and Walsh–Hadamard transforms do it in O(D·log D):
//!
//! ```text
//! D a power of two    signs, transform; twice
//! any other D         signs, transform of the first 2ᵏ, signs, transform of the last 2ᵏ; twice      2ᵏ < D < 2ᵏ⁺¹
//! ```
//!
//! The signs are part of the index format: they must never change.
//!
//! Source: Ailon and Chazelle, *The fast Johnson–Lindenstrauss transform* (SIAM J. Comput. 2009).

use crate::kernels::Kernels;

const SEED: u64 = 0x7669_7363_6163_6865;
const ROUNDS: u64 = 2;

/// Rotates one vector in place.
pub(super) fn rotate(values: &mut [f32]) {
    let Some(k) = values.len().checked_ilog2() else { return };
    let block = 1 << k;
    let (kernels, rest) = (Kernels::get(), values.len() - block);
    for round in 0..ROUNDS {
        flip(values, 2 * round);
        kernels.hadamard(&mut values[..block]);
        if rest > 0 {
            flip(values, 2 * round + 1);
            kernels.hadamard(&mut values[rest..]);
        }
    }
}

/// Turns the sign of half the components.
fn flip(values: &mut [f32], round: u64) {
    for (i, chunk) in values.chunks_mut(64).enumerate() {
        let signs = mixed(SEED ^ (round << 32) ^ i as u64);
        for (bit, v) in chunk.iter_mut().enumerate() {
            let sign = ((signs >> bit) as u32 & 1) << 31;
            *v = f32::from_bits(v.to_bits() ^ sign);
        }
    }
}

/// One step of SplitMix64 (Steele, Lea and Flood, 2014).
fn mixed(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn inner_products_stay(pairs in prop::collection::vec((-1f32..1.0, -1f32..1.0), 0..300)) {
            let (mut a, mut b): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
            let before = dot(&a, &b);
            rotate(&mut a);
            rotate(&mut b);
            prop_assert!((dot(&a, &b) - before).abs() < 1e-4);
        }
    }

    #[test]
    fn one_component_is_spread_over_all() {
        for dim in [64, 100, 768, 1000, 1024] {
            let mut values = vec![0.0; dim];
            values[dim / 3] = 1.0;
            rotate(&mut values);
            let largest = values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
            assert!(largest < 6.0 / (dim as f32).sqrt(), "{dim}: {largest}");
        }
    }

    #[test]
    fn the_signs_are_those_of_the_format() {
        let mut values: Vec<f32> = (0..6).map(|i| i as f32).collect();
        rotate(&mut values);
        let rounded: Vec<i32> = values.iter().map(|v| (v * 1000.0).round() as i32).collect();
        assert_eq!(rounded, [500, 2000, -750, 4750, 5250, -250]);
    }
}
