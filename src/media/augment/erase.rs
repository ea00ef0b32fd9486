//! The box of noise: what is learned must not hang on one part of a picture.
//!
//! ```text
//! [3, S, S], normalised ─► with a probability: a box, by area and shape as a crop's ─► standard normal noise, each value its own
//! ```
//!
//! Source: Zhong et al., *Random Erasing Data Augmentation* (2017); timm 0.5.4, `random_erasing.py`, mode `pixel`.

use std::f64::consts::TAU;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::crop::draw;
use crate::media::Window;

/// How many times a box is drawn before there is none.
const ATTEMPTS: usize = 10;

/// How the box is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Erase {
    /// How often there is one, 0 to 1.
    pub probability: f64,
    /// Least and most of its area, as shares of the picture's; above 0.
    pub area: [f64; 2],
    /// Least and most of its height/width; above 0.
    pub aspect: [f64; 2],
}

impl Default for Erase {
    fn default() -> Self {
        Erase { probability: 0.25, area: [0.02, 1.0 / 3.0], aspect: [0.3, 1.0 / 0.3] }
    }
}

/// A box, and the noise in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Erased {
    /// Where it is.
    pub window: Window,
    /// What the noise is made from.
    pub seed: u64,
}

impl Erase {
    /// Draws a box in a square of this side, smaller than it both ways; none most often.
    pub fn choose(&self, side: usize, random: &mut Pcg64) -> Option<Erased> {
        if random.random::<f64>() >= self.probability {
            return None;
        }
        for _ in 0..ATTEMPTS {
            let (height, width) = draw(self.area, self.aspect, (side * side) as f64, random);
            if width < side && height < side {
                let top = random.random_range(0..=side - height);
                let left = random.random_range(0..=side - width);
                let window = Window { left, top, width, height };
                return Some(Erased { window, seed: random.random() });
            }
        }
        None
    }
}

impl Erased {
    /// Fills the box with noise, channel by channel. Of a box that reaches beyond the square, what lies within.
    ///
    /// * `values`: `[3, S, S]`, normalised. `side`: S, at least 1.
    pub fn apply(&self, values: &mut [f32], side: usize) {
        let mut random = Pcg64::seed_from_u64(self.seed);
        let Window { left, top, width, height } = self.window;
        let columns = left.min(side)..(left + width).min(side);
        for plane in values.chunks_exact_mut(side * side) {
            for row in plane.chunks_exact_mut(side).skip(top).take(height) {
                for pair in row[columns.clone()].chunks_mut(2) {
                    pair.iter_mut()
                        .zip(normals(&mut random))
                        .for_each(|(value, noise)| *value = noise as f32);
                }
            }
        }
    }
}

/// Two independent standard normal numbers (Box and Muller, 1958).
pub(super) fn normals(random: &mut Pcg64) -> [f64; 2] {
    // In (0, 1], so that its logarithm is finite.
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    let angle = TAU * random.random::<f64>();
    [radius * angle.cos(), radius * angle.sin()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_come_as_often_as_they_should_and_lie_within() {
        let (mut random, erase) = (Pcg64::seed_from_u64(3), Erase::default());
        let mut count = 0;
        for _ in 0..4000 {
            let Some(Erased { window, .. }) = erase.choose(64, &mut random) else { continue };
            count += 1;
            assert!(window.left + window.width <= 64 && window.top + window.height <= 64, "{window:?}");
            let share = (window.width * window.height) as f64 / 4096.0;
            assert!((0.015..0.36).contains(&share), "{window:?}");
        }
        assert!((880..1120).contains(&count), "{count}");
        assert_eq!(erase.choose(1, &mut random), None);
    }

    #[test]
    fn the_box_is_filled_and_nothing_else() {
        let window = Window { left: 5, top: 2, width: 41, height: 33 };
        let erased = Erased { window, seed: 11 };
        let mut values = vec![100.0; 3 * 64 * 64];
        erased.apply(&mut values, 64);
        let within = |i: &usize| (5..46).contains(&(i % 64)) && (2..35).contains(&(i / 64 % 64));
        assert!((0..values.len()).all(|i| (values[i] == 100.0) != within(&i)));
        let noise: Vec<f64> = (0..values.len()).filter(within).map(|i| f64::from(values[i])).collect();
        let mean = noise.iter().sum::<f64>() / noise.len() as f64;
        let variance = noise.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / noise.len() as f64;
        assert!(mean.abs() < 0.06 && (variance - 1.0).abs() < 0.08, "{mean} {variance}");
        let beyond = noise.iter().filter(|v| v.abs() > 2.0).count() as f64 / noise.len() as f64;
        assert!((0.03..0.06).contains(&beyond), "a normal one has 0.0455 beyond two deviations: {beyond}");
        let again = values.clone();
        erased.apply(&mut values, 64);
        assert_eq!(values, again);
        // Beyond the square: what there is.
        Erased { window: Window { left: 60, top: 70, ..window }, seed: 1 }.apply(&mut values, 64);
        assert_eq!(values, again);
    }
}
