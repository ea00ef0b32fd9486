//! What a recipe says of a segmenter.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::media::augment::Labelled;
use crate::models::learning::adamw;
use crate::train::illama::{Learn, ModelOptions, Start};
use crate::train::staged::Staged;
use crate::train::{Error, Stop};

/// What is taught, by which data, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentationRecipe {
    /// The network that looks.
    pub model: ModelOptions,
    /// A folder in ADE20K's layout: `images` and `annotations`, each with `training` and, to test by, `validation`.
    pub data: PathBuf,
    /// How many classes there are: labels are 1 to this.
    pub classes: usize,
    /// Their names, a line each; numbers where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<PathBuf>,
    /// What of it learns; of a head alone, the decoder.
    #[serde(default, skip_serializing_if = "Learn::is_all")]
    pub learn: Learn,
    /// Where first values of the network come from; drawn where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// Blocks that the decoder looks at; four of them, spread evenly, where nothing is said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<usize>,
    /// Rate of the soft mask, throughout and afterwards: 0, as the published models learned at last, lets a patch see those before it.
    #[serde(default)]
    pub mask_rate: f32,
    /// Rate of drop path in the last block.
    #[serde(default = "none")]
    pub drop_path: Staged,
    /// What is done to pictures.
    #[serde(default)]
    pub augment: Scales,
    /// How the optimiser moves weights.
    #[serde(default = "adamw::Settings::illama")]
    pub optimiser: adamw::Settings,
    /// Hold the activations of one block at a time; each is computed twice for that.
    #[serde(default)]
    pub blockwise: bool,
}

fn none() -> Staged {
    Staged::constant(0.0)
}

/// What is done to pictures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scales {
    /// Least and most of what a picture's shorter side becomes, in sides of the network's square.
    pub scale: [f64; 2],
    /// How often it is mirrored.
    pub flip: f64,
}

impl Default for Scales {
    fn default() -> Self {
        let Labelled { scale, flip, .. } = Labelled::new(1);
        Scales { scale, flip }
    }
}

impl Scales {
    /// As it is done to pictures of a side.
    pub(super) fn labelled(self, side: usize) -> Labelled {
        let Scales { scale, flip } = self;
        Labelled { side, scale, flip }
    }
}

impl SegmentationRecipe {
    /// The names of the classes.
    ///
    /// * `base`: the folder that paths are relative to.
    ///
    /// # Errors
    /// [`Stop::File`]; [`Stop::Recipe`] for another number of names than classes.
    pub(super) fn names(&self, base: &Path) -> Result<Vec<String>, Stop> {
        let Some(path) = self.names.as_ref().map(|names| base.join(names)) else {
            return Ok((1..=self.classes).map(|label| label.to_string()).collect());
        };
        let text = std::fs::read_to_string(&path).map_err(Stop::file(&path))?;
        let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        match names.len() == self.classes {
            true => Ok(names),
            false => {
                let allowed = "as many as the lines of `segmentation.names`";
                let value = format!("{}, and there are {} names", self.classes, names.len());
                Err(Error::Parameter { name: "segmentation.classes", value, allowed }.into())
            }
        }
    }
}
