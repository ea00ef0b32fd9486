//! What a recipe says of an iLLaMA.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::media::augment::{Crop, Erase, Operations, Training};
use crate::models::illama::{Config, Size, continued, initial, select};
use crate::models::learning::{Variables, adamw};
use crate::models::weights::Weights;
use crate::train::data::Source;
use crate::train::staged::Staged;
use crate::train::{Error, Stop, mixup};

/// What is taught, by which data, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IllamaRecipe {
    /// The network.
    pub model: ModelOptions,
    /// What it learns from.
    pub train: Source,
    /// What it is tested by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Source>,
    /// What of it learns; all where nothing is said.
    #[serde(default, skip_serializing_if = "Learn::is_all")]
    pub learn: Learn,
    /// Where its first values come from; drawn where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// Rate of the soft mask; causal from the start where nothing is said.
    #[serde(default = "causal")]
    pub mask: Staged,
    /// Rate of drop path in the last block.
    #[serde(default = "causal")]
    pub drop_path: Staged,
    /// How pictures are mixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup: Option<mixup::Options>,
    /// Share of a target that all classes have alike.
    #[serde(default = "IllamaRecipe::smoothing")]
    pub smoothing: f64,
    /// What is done to pictures.
    #[serde(default)]
    pub augment: Augment,
    /// How the optimiser moves weights.
    #[serde(default = "adamw::Settings::illama")]
    pub optimiser: adamw::Settings,
    /// Hold the activations of one block at a time; each is computed twice for that.
    #[serde(default)]
    pub blockwise: bool,
}

impl IllamaRecipe {
    /// Default of [`smoothing`](field@IllamaRecipe::smoothing).
    pub const DEFAULT_SMOOTHING: f64 = 0.1;

    fn smoothing() -> f64 {
        Self::DEFAULT_SMOOTHING
    }
}

/// What of a network learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Learn {
    /// All of it.
    #[default]
    All,
    /// What is behind the blocks: of an iLLaMA that names pictures the head alone, a linear probe. All else stays, bit for bit.
    Head,
}

impl Learn {
    /// Whether it is all.
    pub fn is_all(&self) -> bool {
        *self == Learn::All
    }
}

fn causal() -> Staged {
    Staged::constant(0.0)
}

/// A published size, or one's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelOptions {
    /// Width, depth and heads of a published size.
    pub size: Size,
    /// Pixels of a picture's side.
    pub side: usize,
    /// Pixels of a patch's side.
    #[serde(default = "ModelOptions::patch")]
    pub patch: usize,
    /// Another width, with heads of 64 components each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Another number of blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
}

impl ModelOptions {
    /// Default of [`patch`](field@ModelOptions::patch).
    pub const DEFAULT_PATCH: usize = 16;

    fn patch() -> usize {
        Self::DEFAULT_PATCH
    }

    /// The sizes, for so many classes.
    ///
    /// # Errors
    /// [`crate::models::Error::Config`].
    pub fn config(&self, classes: usize) -> Result<Config, crate::models::Error> {
        let published = self.size.config(self.side, classes);
        let width = self.width.unwrap_or(published.width);
        let depth = self.depth.unwrap_or(published.depth);
        let heads = (width / (published.width / published.heads)).max(1);
        Config { patch: self.patch, width, depth, heads, ..published }.with_side(self.side)
    }
}

/// Where first values come from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// An iLLaMA's file; a head for other classes begins anew, positions are resized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// The safetensors files of a LLaMA in Hugging Face's names, thinned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub llama: Vec<PathBuf>,
}

impl Start {
    /// The first values of all tensors.
    ///
    /// * `base`: the folder that paths are relative to.
    ///
    /// # Errors
    /// [`Stop::Model`]; [`Stop::Recipe`] for a start from both.
    pub fn variables(&self, config: &Config, base: &Path, seed: u64) -> Result<Variables, Stop> {
        let open = |path: &PathBuf| Weights::open(&base.join(path));
        Ok(match (&self.weights, &self.llama[..]) {
            (None, []) => initial(config, seed, BTreeMap::new())?,
            (Some(path), []) => continued(config, seed, &open(path)?)?,
            (None, paths) => {
                let files: Vec<Weights> = paths.iter().map(open).collect::<Result<_, _>>()?;
                initial(config, seed, select(&files, config)?)?
            }
            (Some(_), _) => {
                return Err(Error::Contradiction("a start is either `weights` or `llama`, not both").into());
            }
        })
    }
}

/// What is done to pictures; defaults are the published recipes'.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Least and most of the area that is shown, as shares of the picture's.
    pub area: [f64; 2],
    /// How often a picture is mirrored.
    pub flip: f64,
    /// Operations of RandAugment; 0 for none.
    pub operations: usize,
    /// How often one of them is done.
    pub probability: f64,
    /// Their mean level, 0 to 10.
    pub magnitude: f64,
    /// Standard deviation of levels.
    pub deviation: f64,
    /// How often a box of noise is laid over.
    pub erase: f64,
}

impl Default for Augment {
    fn default() -> Self {
        let Operations { count, probability, magnitude, deviation, .. } = Operations::default();
        let (Crop { area, .. }, Erase { probability: erase, .. }) = (Crop::default(), Erase::default());
        Augment {
            area,
            flip: Training::new(1).flip,
            operations: count,
            probability,
            magnitude,
            deviation,
            erase,
        }
    }
}

impl Augment {
    /// As it is done to pictures of a side.
    pub(super) fn training(&self, side: usize) -> Training {
        let Augment { area, flip, operations, probability, magnitude, deviation, erase } = *self;
        Training {
            crop: Crop { area, ..Crop::default() },
            flip,
            operations: Operations {
                count: operations,
                probability,
                magnitude,
                deviation,
                ..Operations::default()
            },
            erase: Erase { probability: erase, ..Erase::default() },
            ..Training::new(side)
        }
    }
}
