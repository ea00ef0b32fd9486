//! What an adapter is shown beside a text.
//!
//! ```text
//! ImageBind-LLM     embeddings, each computed once and kept (`seen.rs`)
//! LLaMA-Adapter V2  pictures, read anew for every batch: a large part of each, cut out at random; in a test all of its middle
//! chat              nothing
//! ```
//! A text without a picture is shown zeros where pictures are seen: a picture of zeros, or its embedding, as published.

use rand_pcg::Pcg64;

use super::seen::Seen;
use crate::media::augment::{Crop, Erase, Operations, Training};
use crate::media::image::{decode_within, normalised, resize_and_crop};
use crate::media::{Limits, Orientation};
use crate::models;
use crate::models::llama::{self, ChannelOrder, Picture, Shown};
use crate::train::Stop;
use crate::train::data::Place;
use crate::train::stop::told;

/// What an adapter is shown.
pub enum Sight {
    /// Embeddings that are kept.
    Embeddings(Seen),
    /// Pictures.
    Pictures(Gallery),
    /// Nothing.
    Nothing,
}

/// How pictures are made ready.
pub struct Gallery {
    training: Training,
    order: ChannelOrder,
    limits: Limits,
}

impl Gallery {
    /// * `crop`: least and most that is shown in training, as shares of the area.
    ///
    /// # Errors
    /// [`Stop::Media`] for shares out of range.
    pub(super) fn new(picture: &Picture, crop: [f64; 2]) -> Result<Self, Stop> {
        let training = Training {
            crop: Crop { area: crop, ..Crop::default() },
            flip: 0.0,
            operations: Operations { count: 0, ..Operations::default() },
            erase: Erase { probability: 0.0, ..Erase::default() },
            ..Training::new(picture.side())
        };
        training.validate().map_err(|e| Stop::Media(e.to_string()))?;
        Ok(Gallery { training, order: picture.channel_order(), limits: Limits::default() })
    }

    /// `[3, S, S]`.
    fn prepare(&self, place: Option<&Place>, chance: Option<&mut Pcg64>) -> Result<Vec<f32>, String> {
        let side = self.training.side;
        let Some(place) = place else { return Ok(vec![0.0; 3 * side * side]) };
        let bytes = place.read(self.limits.max_bytes as u64).map_err(|e| told(&e))?;
        // The published programs read with OpenCV, which turns a picture as its EXIF mark says.
        let picture = decode_within(&bytes, Orientation::Apply, &self.limits)
            .map_err(|e| format!("{place}: {}", told(&e)))?;
        let pixels = match chance {
            None => resize_and_crop(&picture, side),
            Some(random) => {
                let choice = self.training.choose(picture.width, picture.height, random);
                self.training.pixels(&picture, &choice)
            }
        };
        Ok(normalised(pixels, self.order == ChannelOrder::Bgr))
    }
}

impl Sight {
    /// Whether this can be shown, as far as is known before it is.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self, picture: Option<&Place>) -> Result<(), String> {
        match self {
            Sight::Embeddings(seen) => seen.of(picture).map(drop),
            Sight::Pictures(_) | Sight::Nothing => Ok(()),
        }
    }

    /// What is shown, as numbers.
    ///
    /// * `chance`: decides what of a picture is shown in training; in a test there is none.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) fn values(
        &self,
        picture: Option<&Place>,
        chance: Option<&mut Pcg64>,
    ) -> Result<Vec<f32>, String> {
        match self {
            Sight::Embeddings(seen) => Ok(seen.row(seen.of(picture)?).to_vec()),
            Sight::Pictures(gallery) => gallery.prepare(picture, chance),
            Sight::Nothing => Ok(Vec::new()),
        }
    }

    /// Shows the numbers of a batch to whoever looks at them.
    ///
    /// # Errors
    /// Those of `look`; [`models::Error::Input`] for numbers of another shape.
    pub(super) fn show<T>(
        &self,
        values: &[f32],
        look: impl FnOnce(Shown<'_>) -> Result<T, models::Error>,
    ) -> Result<T, models::Error> {
        match self {
            Sight::Embeddings(seen) => look(Shown::Embeddings(&llama::embeddings(values, seen.width())?)),
            Sight::Pictures(gallery) => {
                look(Shown::Pictures(&llama::pictures(values, gallery.training.side)?))
            }
            Sight::Nothing => look(Shown::Nothing),
        }
    }
}

impl std::fmt::Display for Sight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Sight::Embeddings(seen) => {
                write!(f, "{} embeddings of {} components are kept", seen.len(), seen.width())
            }
            Sight::Pictures(gallery) => {
                let side = gallery.training.side;
                write!(f, "pictures are looked at in {side}×{side} pixels, anew for every batch")
            }
            Sight::Nothing => f.write_str("nothing is shown"),
        }
    }
}
