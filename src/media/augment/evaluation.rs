//! How pictures are prepared for a test.
//!
//! ```text
//! side < 384    shorter side to ⌊side/0.875⌋, bicubic ─► centre square ─┐
//! side ≥ 384    to side × side, bicubic, whatever its shape was ────────┴─► [0, 1] ─► (v − mean)/std ─► [3, S, S]
//! ```
//!
//! Source: iLLaMA, `datasets.py`, `build_transform`.

use super::{MEAN, STD};
use crate::media::image::{decode_within, normalise, resize_shorter};
use crate::media::resample::resample;
use crate::media::{Error, Limits, Orientation, Rgb, Window};
use crate::types::Fingerprint;

/// Side from which on pictures are warped.
const WARPED_FROM: usize = 384;
/// Changes whenever a rule in this file changes a number.
const RULES_VERSION: u32 = 1;

/// How a picture becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Its shorter side is resized, and the centre square is cut out.
    Crop {
        /// What the shorter side becomes; the square's side, if that is more.
        shorter: usize,
    },
    /// It is resized to the square, and keeps no shape.
    Warp,
}

/// How pictures are prepared for a test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Side of the square, S; at least 1.
    pub side: usize,
    /// How a picture becomes the square.
    pub fit: Fit,
    /// Mean of each channel, of values in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of each channel, above 0.
    pub std: [f32; 3],
    /// What is done with EXIF orientation.
    pub orientation: Orientation,
}

impl Evaluation {
    /// As the published programs test a model of this side. They ignore EXIF orientation.
    pub fn new(side: usize) -> Self {
        let fit = match side < WARPED_FROM {
            true => Fit::Crop { shorter: side * 8 / 7 },
            false => Fit::Warp,
        };
        Evaluation { side, fit, mean: MEAN, std: STD, orientation: Orientation::Reference }
    }

    /// Identifies everything here that changes a number.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(format!("evaluation rules {RULES_VERSION}; {self:?}").as_bytes())
    }

    /// The bytes of the square, row by row: `S · S · 3`.
    pub fn pixels(&self, picture: &Rgb) -> Vec<u8> {
        match self.fit {
            Fit::Crop { shorter } => resize_shorter(picture, shorter, self.side),
            Fit::Warp => resample(picture, [self.side; 2], Window::whole(self.side, self.side)),
        }
    }

    /// Prepares a decoded picture: `[3, S, S]`, channel by channel, row by row.
    pub fn prepare(&self, picture: &Rgb) -> Vec<f32> {
        normalise(&self.pixels(picture), self.mean, self.std)
    }

    /// Prepares a picture file: `[3, S, S]`.
    ///
    /// # Errors
    /// As [`crate::media::image::decode`].
    pub fn prepare_bytes(&self, bytes: &[u8], limits: &Limits) -> Result<Vec<f32>, Error> {
        Ok(self.prepare(&decode_within(bytes, self.orientation, limits)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_sides_crop_and_large_ones_warp() {
        assert_eq!(Evaluation::new(224).fit, Fit::Crop { shorter: 256 });
        assert_eq!(Evaluation::new(32).fit, Fit::Crop { shorter: 36 });
        assert_eq!(Evaluation::new(383).fit, Fit::Crop { shorter: 437 });
        assert_eq!(Evaluation::new(384).fit, Fit::Warp);
        assert_ne!(Evaluation::new(224).fingerprint(), Evaluation::new(256).fingerprint());
    }

    #[test]
    fn every_shape_gives_a_full_square() {
        for (width, height) in [(1, 1), (5, 90), (90, 5), (32, 32), (36, 36), (37, 36)] {
            let picture = Rgb { width, height, data: [10, 128, 250].repeat(width * height) };
            for evaluation in [
                Evaluation::new(32),
                Evaluation { fit: Fit::Warp, ..Evaluation::new(32) },
                Evaluation { fit: Fit::Crop { shorter: 3 }, ..Evaluation::new(32) },
            ] {
                assert_eq!(evaluation.pixels(&picture), [10, 128, 250].repeat(32 * 32), "{width}×{height}");
                let values = evaluation.prepare(&picture);
                assert_eq!((values.len(), values[1024]), (3 * 1024, (128.0 / 255.0 - 0.456) / 0.224));
            }
        }
    }

    #[test]
    fn files_are_decoded_within_their_limits() {
        let mut bytes = Vec::new();
        let picture = image::RgbImage::from_pixel(40, 30, image::Rgb([1, 2, 3]));
        picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
        let evaluation = Evaluation::new(8);
        assert_eq!(evaluation.prepare_bytes(&bytes, &Limits::default()).unwrap().len(), 3 * 64);
        let small = Limits { max_side: 39, ..Limits::default() };
        let refused = evaluation.prepare_bytes(&bytes, &small);
        assert!(matches!(refused, Err(Error::TooManyPixels { .. })), "{refused:?}");
    }
}
