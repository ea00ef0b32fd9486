//! Which operations are drawn, and how strong: `rand-m9-mstd0.5-inc1`.
//!
//! ```text
//! count times: one of fifteen, each as likely ─► with a probability ─► level from N(magnitude, deviation), held to 0 … 10 ─► its strength
//! ```
//!
//! Strengths grow with the level for every operation, which is what `inc1` says. Level 10:
//!
//! | operation | strength |
//! |---|---|
//! | `Rotate` | 30°, to either side |
//! | `Posterize` | 0 bits left (4 at level 0) |
//! | `Solarize` | from 0 on (256 at level 0: nothing) |
//! | `SolarizeAdd` | 110 |
//! | `Color`, `Contrast`, `Brightness`, `Sharpness` | factor 0.1 or 1.9 |
//! | `ShearX`, `ShearY` | 0.3, to either side |
//! | `TranslateX`, `TranslateY` | 0.45 of the side, either way |
//!
//! A picture that is left with no bits is black; versions of Pillow after 9 refuse to make one. It comes about every 650th picture.
//!
//! Source: Cubuk et al., *RandAugment* (2019); timm 0.5.4, `auto_augment.py`, `rand_augment_transform`.

use rand::RngExt;
use rand_pcg::Pcg64;

use super::affine::Interpolation;
use super::erase::normals;
use super::operation::Operation;

/// The highest level.
const HIGHEST: f64 = 10.0;

/// How operations are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Operations {
    /// How many are drawn for a picture; the same may come again.
    pub count: usize,
    /// How often one that was drawn is done, 0 to 1.
    pub probability: f64,
    /// Mean level, 0 to 10.
    pub magnitude: f64,
    /// Standard deviation of levels.
    pub deviation: f64,
    /// How pixels are mixed; drawn for each operation, if nothing is said.
    pub interpolation: Option<Interpolation>,
}

impl Default for Operations {
    /// As the recipes have it. They say bicubic for crops, and timm takes that here as well.
    fn default() -> Self {
        Operations {
            count: 2,
            probability: 0.5,
            magnitude: 9.0,
            deviation: 0.5,
            interpolation: Some(Interpolation::Bicubic),
        }
    }
}

impl Operations {
    /// No operations.
    pub fn none() -> Self {
        Operations { count: 0, ..Operations::default() }
    }

    /// Draws the operations of one picture.
    pub fn choose(&self, random: &mut Pcg64) -> Vec<Operation> {
        (0..self.count).filter_map(|_| self.one(random)).collect()
    }

    fn one(&self, random: &mut Pcg64) -> Option<Operation> {
        let which = random.random_range(0..15);
        if random.random::<f64>() >= self.probability {
            return None;
        }
        let level = (self.magnitude + self.deviation * normals(random)[0]).clamp(0.0, HIGHEST);
        let negative = random.random::<bool>();
        let by = self.interpolation.unwrap_or_else(|| match random.random() {
            true => Interpolation::Bilinear,
            false => Interpolation::Bicubic,
        });
        Some(strength(which, level / HIGHEST, negative, by))
    }
}

/// An operation by its number in the published list.
///
/// * `share`: of the highest level, 0 to 1. `negative`: to the other side, where it has two.
fn strength(which: usize, share: f64, negative: bool, by: Interpolation) -> Operation {
    let signed = |value: f64| if negative { -value } else { value };
    let factor = (1.0 + signed(share * 0.9)).max(0.1);
    match which {
        0 => Operation::AutoContrast,
        1 => Operation::Equalize,
        2 => Operation::Invert,
        3 => Operation::Rotate { degrees: signed(share * 30.0), by },
        4 => Operation::Posterize { bits: 4 - (share * 4.0) as u32 },
        5 => Operation::Solarize { threshold: 256 - (share * 256.0) as u32 },
        6 => Operation::SolarizeAdd { add: (share * 110.0) as u32 },
        7 => Operation::Color { factor },
        8 => Operation::Contrast { factor },
        9 => Operation::Brightness { factor },
        10 => Operation::Sharpness { factor },
        11 => Operation::ShearX { factor: signed(share * 0.3), by },
        12 => Operation::ShearY { factor: signed(share * 0.3), by },
        13 => Operation::TranslateX { share: signed(share * 0.45), by },
        _ => Operation::TranslateY { share: signed(share * 0.45), by },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use rand::SeedableRng;

    #[test]
    fn strengths_grow_from_nothing_to_the_most() {
        let by = Interpolation::Bicubic;
        let of =
            |share, negative| (3..15).map(|which| strength(which, share, negative, by)).collect::<Vec<_>>();
        let factor = 1.0;
        let none = [
            Operation::Rotate { degrees: 0.0, by },
            Operation::Posterize { bits: 4 },
            Operation::Solarize { threshold: 256 },
            Operation::SolarizeAdd { add: 0 },
            Operation::Color { factor },
            Operation::Contrast { factor },
            Operation::Brightness { factor },
            Operation::Sharpness { factor },
            Operation::ShearX { factor: 0.0, by },
            Operation::ShearY { factor: 0.0, by },
            Operation::TranslateX { share: 0.0, by },
            Operation::TranslateY { share: 0.0, by },
        ];
        assert_eq!(of(0.0, false), none);
        let factor = 0.1;
        let most = [
            Operation::Rotate { degrees: -30.0, by },
            Operation::Posterize { bits: 0 },
            Operation::Solarize { threshold: 0 },
            Operation::SolarizeAdd { add: 110 },
            Operation::Color { factor },
            Operation::Contrast { factor },
            Operation::Brightness { factor },
            Operation::Sharpness { factor },
            Operation::ShearX { factor: -0.3, by },
            Operation::ShearY { factor: -0.3, by },
            Operation::TranslateX { share: -0.45, by },
            Operation::TranslateY { share: -0.45, by },
        ];
        assert_eq!(of(1.0, true), most);
        assert_eq!(strength(8, 1.0, false, by), Operation::Contrast { factor: 1.9 });
        assert_eq!(strength(4, 0.9, false, by), Operation::Posterize { bits: 1 });
        assert_eq!(strength(5, 0.9, false, by), Operation::Solarize { threshold: 26 });
    }

    #[test]
    fn all_are_drawn_about_as_often_and_half_of_them_done() {
        let (mut random, operations) = (Pcg64::seed_from_u64(5), Operations::default());
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..7500 {
            for operation in operations.choose(&mut random) {
                let name = format!("{operation:?}");
                let name = name.split(' ').next().unwrap_or_default().to_owned();
                *counts.entry(name).or_default() += 1;
                if let Operation::Rotate { degrees, by } = operation {
                    assert!(
                        (20.0..=30.0).contains(&degrees.abs()) && by == Interpolation::Bicubic,
                        "{degrees}"
                    );
                }
            }
        }
        assert_eq!(counts.len(), 15, "{counts:?}");
        assert!(counts.values().all(|count| (410..590).contains(count)), "{counts:?}");
        assert_eq!(Operations::none().choose(&mut random), []);
    }
}
