//! Which part of a picture is shown.
//!
//! ```text
//! area: even in [0.08, 1] of the picture's ─┐
//! width/height: its log even, ¾ to 4⁄3 ─────┴─► fits? ─► anywhere in the picture
//!                                               no, ten times ─► the largest centred part within those shapes
//! ```
//!
//! Source: timm 0.5.4, `transforms.py`, `RandomResizedCropAndInterpolation`.

use rand::RngExt;
use rand_pcg::Pcg64;

use crate::media::Window;

/// How many times a part is drawn before the centre is taken.
const ATTEMPTS: usize = 10;

/// How the part of a picture that is shown is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crop {
    /// Least and most of its area, as shares of the picture's; above 0.
    pub area: [f64; 2],
    /// Least and most of its width/height; above 0.
    pub aspect: [f64; 2],
}

impl Default for Crop {
    fn default() -> Self {
        Crop { area: [0.08, 1.0], aspect: [3.0 / 4.0, 4.0 / 3.0] }
    }
}

impl Crop {
    /// Draws a part of a picture of this size: at least one pixel, and all within it.
    pub fn choose(&self, width: usize, height: usize, random: &mut Pcg64) -> Window {
        let area = (width * height) as f64;
        for _ in 0..ATTEMPTS {
            let (wide, high) = draw(self.area, self.aspect, area, random);
            if wide <= width && high <= height {
                let top = random.random_range(0..=height - high);
                let left = random.random_range(0..=width - wide);
                return Window { left, top, width: wide, height: high };
            }
        }
        self.centre(width, height)
    }

    /// The largest part of an allowed shape, in the middle.
    fn centre(&self, width: usize, height: usize) -> Window {
        let [narrowest, widest] = self.aspect;
        let shape = width as f64 / height as f64;
        let (wide, high) = if shape < narrowest {
            (width, side(width as f64 / narrowest).min(height))
        } else if shape > widest {
            (side(height as f64 * widest).min(width), height)
        } else {
            (width, height)
        };
        Window { left: (width - wide) / 2, top: (height - high) / 2, width: wide, height: high }
    }
}

/// Width and height of a box: its area even within shares of a whole, the log of its width/height even within limits.
pub(super) fn draw(share: [f64; 2], aspect: [f64; 2], whole: f64, random: &mut Pcg64) -> (usize, usize) {
    let area = between(share, random) * whole;
    let aspect = between(aspect.map(f64::ln), random).exp();
    (side((area * aspect).sqrt()), side((area / aspect).sqrt()))
}

/// Even between two numbers.
fn between([low, high]: [f64; 2], random: &mut Pcg64) -> f64 {
    low + (high - low) * random.random::<f64>()
}

/// To whole pixels, ties to even, as Python's `round`; at least one.
fn side(length: f64) -> usize {
    (length.round_ties_even() as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn parts_lie_within_the_picture_and_their_shapes_within_limits() {
        let (mut random, crop) = (Pcg64::seed_from_u64(7), Crop::default());
        let (mut sum, mut lefts) = (0.0, [0; 2]);
        for _ in 0..2000 {
            let part = crop.choose(400, 300, &mut random);
            assert!(part.left + part.width <= 400 && part.top + part.height <= 300, "{part:?}");
            let (share, shape) =
                ((part.width * part.height) as f64 / 120_000.0, part.width as f64 / part.height as f64);
            assert!((0.075..=1.0).contains(&share) && (0.73..1.37).contains(&shape), "{part:?}");
            sum += share;
            lefts[usize::from(part.left * 2 > 400 - part.width)] += 1;
        }
        // Large areas often have a shape that does not fit, so the mean is below (0.08 + 1)/2.
        assert!((0.40..0.50).contains(&(sum / 2000.0)), "{}", sum / 2000.0);
        assert!(lefts.iter().all(|&side| side > 850), "{lefts:?}");
    }

    #[test]
    fn where_nothing_fits_the_centre_is_taken() {
        let (mut random, crop) = (Pcg64::seed_from_u64(7), Crop { area: [0.9, 1.0], ..Crop::default() });
        let of = |left, top, width, height| Window { left, top, width, height };
        assert_eq!(crop.choose(10, 100, &mut random), of(0, 43, 10, 13));
        assert_eq!(crop.choose(100, 10, &mut random), of(43, 0, 13, 10));
        assert_eq!(crop.choose(1, 1, &mut random), of(0, 0, 1, 1));
        assert_eq!(crop.centre(1, 2), of(0, 0, 1, 1));
        assert_eq!(crop.centre(110, 100), of(0, 0, 110, 100));
    }
}
