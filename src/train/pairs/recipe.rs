//! What a recipe says of encoders that learn to agree.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::models::learning::adamw;
use crate::scenes::{DEFAULT_SEED, Wording};
use crate::types::Modality;

/// What is taught, by which data, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairsRecipe {
    /// Sizes: `nano`, or ImageBind's as JSON.
    pub model: String,
    /// Encoders that are there already: `nano`, a file, or the folder of a run. Those that learn begin anew all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<PathBuf>,
    /// Whose encoders learn: `image`, `text`, `audio`.
    pub learns: Vec<Modality>,
    /// The factor of scores in the loss, always the same; learned from 1/0.07 on where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// The pictures.
    pub pictures: PictureOptions,
    /// Texts that belong to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<TextOptions>,
    /// Words that are spoken, of things that they show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speech: Option<SpeechOptions>,
    /// Pictures that it is tested by.
    #[serde(default)]
    pub test: u32,
    /// How the optimiser moves weights.
    #[serde(default = "PairsRecipe::optimiser")]
    pub optimiser: adamw::Settings,
}

impl PairsRecipe {
    fn optimiser() -> adamw::Settings {
        adamw::Settings { betas: [0.9, 0.98], max_norm: Some(1.0), ..adamw::Settings::default() }
    }
}

/// Pictures of scenes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PictureOptions {
    /// Pictures of an epoch. Where their encoder learns, each is drawn anew; else they are drawn and embedded once.
    pub count: u32,
    /// Of the pictures.
    #[serde(default = "PictureOptions::seed")]
    pub seed: u64,
    /// Standard deviation of noise on what is prepared, where their encoder learns.
    #[serde(default)]
    pub noise: f32,
    /// What a batch is drawn from, one behind the other; all scenes where nothing is said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub worlds: Vec<World>,
}

impl PictureOptions {
    fn seed() -> u64 {
        DEFAULT_SEED
    }
}

/// Scenes of a few colours and shapes, other ones for each batch: what they have in common does not tell them apart, so that the rest
/// has to be learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct World {
    /// Up to which epoch, excluded; to the end where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// Colours, 1 to 8.
    pub colours: usize,
    /// Shapes, 1 to 8.
    pub shapes: usize,
}

/// Texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextOptions {
    /// How a scene is put into words.
    pub wording: Wording,
}

/// Speech, by the program espeak-ng. A batch has each phrase at most once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeechOptions {
    /// Times that each phrase is spoken.
    pub utterances: u32,
    /// Seconds of silence before it, at most.
    #[serde(default)]
    pub silence: f64,
    /// Powers of ten that it is louder, from and to.
    #[serde(default)]
    pub gain: [f64; 2],
    /// The standard deviation of noise as a power of ten, from and to; none where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<[f64; 2]>,
    /// Frames of a spectrogram that it is moved by, at most.
    #[serde(default)]
    pub roll: usize,
    /// Bands of a spectrogram that are left out, at most.
    #[serde(default)]
    pub bands: usize,
}
