//! What a decoder learns from: something it is told, what it should say to that, and maybe a picture.
//!
//! A captioned picture becomes one as the published programs make it: [`CAPTION_INSTRUCTION`], no input, the caption as the answer.
//!
//! Source: `data/dataset.py` of ImageBind-LLM.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::skipped::Skipped;
use super::{Error, Place, Samples, Sayings, Split, Target};

/// What is asked about a picture that has a caption.
pub const CAPTION_INSTRUCTION: &str = "Generate caption of this image";

/// One thing to learn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The picture it is about; none where it is about nothing.
    pub picture: Option<Place>,
    /// What is asked; not empty.
    pub instruction: String,
    /// A text it is asked about; often empty.
    pub input: String,
    /// What is to be said; not empty.
    pub answer: String,
    /// Where it comes from, for messages.
    pub told: String,
}

/// What a source has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exchanges {
    /// In the order of the source.
    pub exchanges: Vec<Exchange>,
    /// What gave none.
    pub skipped: Skipped,
}

/// Where instructions come from, as a recipe says it: JSON files, or scenes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Named")]
pub struct Instructions {
    /// JSON files, one behind the other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathBuf>,
    /// The folder that pictures are relative to; that of each file where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// What is said about scenes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scenes: Option<Sayings>,
}

/// What was named: one of two would be chosen in silence.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    #[serde(default)]
    paths: Vec<PathBuf>,
    folder: Option<PathBuf>,
    scenes: Option<Sayings>,
}

impl TryFrom<Named> for Instructions {
    type Error = &'static str;

    fn try_from(Named { paths, folder, scenes }: Named) -> Result<Self, &'static str> {
        match paths.is_empty() == scenes.is_some() {
            true => Ok(Instructions { paths, folder, scenes }),
            false => Err("instructions have one source: name `paths` or `scenes`"),
        }
    }
}

impl Instructions {
    /// Reads them.
    ///
    /// * `base`: the folder that paths are relative to. `split`: what they are for.
    ///
    /// # Errors
    /// As [`Exchanges::of_json`]; [`Error::Nothing`] where nothing is left.
    pub fn list(&self, base: &Path, split: Split) -> Result<Exchanges, Error> {
        let folder = self.folder.as_ref().map(|folder| base.join(folder));
        let mut all =
            self.scenes.as_ref().map(|scenes| Exchanges::of_scenes(scenes, split)).unwrap_or_default();
        for path in &self.paths {
            all.of_json(&base.join(path), folder.as_deref())?;
        }
        match all.exchanges.is_empty() {
            true => {
                let path = self.paths.first().map_or("scenes".into(), |path| base.join(path));
                Err(Error::Nothing { path, skipped: all.skipped })
            }
            false => Ok(all),
        }
    }
}

impl Exchanges {
    /// Of pictures with captions.
    ///
    /// # Errors
    /// [`Error::Unusable`] for pictures with classes.
    pub fn of_captions(samples: Samples) -> Result<Exchanges, Error> {
        let exchange = |sample: super::Sample| match sample.target {
            Target::Caption(caption) => Ok(Exchange {
                told: sample.place.to_string(),
                picture: Some(sample.place),
                instruction: CAPTION_INSTRUCTION.to_owned(),
                input: String::new(),
                answer: caption.into(),
            }),
            Target::Class(_) => Err(Error::Unusable {
                path: PathBuf::from(sample.place.to_string()),
                why: "it has a class and no caption: captions come from a table or from tars".into(),
            }),
        };
        let exchanges = samples.samples.into_iter().map(exchange).collect::<Result<_, _>>()?;
        Ok(Exchanges { exchanges, skipped: samples.skipped })
    }
}
