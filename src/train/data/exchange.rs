//! What a decoder learns from: something it is told, what it should say to that, and maybe a picture.
//!
//! A captioned picture becomes one as the published programs make it: [`CAPTION_INSTRUCTION`], no input, the caption as the answer.
//!
//! Source: `data/dataset.py` of ImageBind-LLM.

use std::path::PathBuf;

use super::skipped::Skipped;
use super::{Error, Place, Samples, Target};

/// What is asked about a picture that has a caption.
pub const CAPTION_INSTRUCTION: &str = "Generate caption of this image";

/// One thing to learn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The picture it is about; none where it is about nothing.
    pub picture: Option<Place>,
    /// What is asked; not empty.
    pub instruction: String,
    /// A text it is asked about; often there, and empty.
    pub input: Option<String>,
    /// What is to be said; not empty.
    pub answer: String,
    /// How a conversation goes on: what else is said and answered, neither empty.
    pub later: Vec<[String; 2]>,
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
                input: None,
                answer: caption.into(),
                later: Vec::new(),
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
