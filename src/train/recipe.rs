//! A recipe: everything that a run's numbers hang on, as a TOML file says it.
//!
//! ```toml
//! [run]
//! seed = 0
//! epochs = 60
//! batch = 128
//!
//! [rate]
//! from = 1e-3
//! to = 1e-6
//! warmup_epochs = 5
//!
//! [illama]                      # what is taught: one table of its kind
//! …
//! ```
//! Paths are relative to the recipe. Unknown keys are refused, so that a misspelt one is not a default in silence.

use serde::{Deserialize, Serialize};

use super::adapter::AdapterRecipe;
use super::illama::IllamaRecipe;
use super::language::LanguageRecipe;
use super::pairs::PairsRecipe;
use super::run::Plan;
use super::schedule::Cosine;
use super::segmentation::SegmentationRecipe;
use super::{Error, within};

/// A recipe. Its parts check themselves where they are used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// How long, and in which pieces.
    pub run: RunOptions,
    /// The learning rate.
    pub rate: Cosine,
    /// The weight decay; none where nothing is said.
    #[serde(default = "no_decay")]
    pub decay: Cosine,
    /// An iLLaMA that names pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub illama: Option<IllamaRecipe>,
    /// An adapter that answers about pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterRecipe>,
    /// An iLLaMA that names pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<SegmentationRecipe>,
    /// Encoders that agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<PairsRecipe>,
    /// A decoder that reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<LanguageRecipe>,
}

/// What a recipe teaches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lesson<'a> {
    /// An iLLaMA that names pictures.
    Illama(&'a IllamaRecipe),
    /// An adapter that answers about pictures.
    Adapter(&'a AdapterRecipe),
    /// An iLLaMA that names pixels.
    Segmentation(&'a SegmentationRecipe),
    /// Encoders that agree.
    Pairs(&'a PairsRecipe),
    /// A decoder that reads.
    Language(&'a LanguageRecipe),
}

fn no_decay() -> Cosine {
    Cosine::constant(0.0)
}

/// How long a run is, and in which pieces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunOptions {
    /// Of all chance.
    #[serde(default)]
    pub seed: u64,
    /// Times that every sample is seen.
    pub epochs: usize,
    /// Samples of a small batch.
    pub batch: usize,
    /// Small batches of a step of the optimiser.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// What of a moving average of the weights is kept at a step; none without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average: Option<f64>,
    /// Epochs from one test to the next.
    #[serde(default = "one")]
    pub evaluate_every: usize,
    /// Steps from one checkpoint to the next; without it, one an epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<usize>,
    /// Checkpoints that stay, beside the best weights.
    #[serde(default = "RunOptions::keep")]
    pub keep: usize,
}

impl RunOptions {
    /// Default of [`keep`](field@RunOptions::keep).
    pub const DEFAULT_KEEP: usize = 3;

    fn keep() -> usize {
        Self::DEFAULT_KEEP
    }
}

fn one() -> usize {
    1
}

impl Recipe {
    /// The plan of a run.
    ///
    /// * `machine`: what its numbers hang on beside the recipe.
    ///
    /// # Errors
    /// [`Error::Parameter`] naming what is out of range.
    pub fn plan(&self, machine: serde_json::Value) -> Result<Plan, Error> {
        let RunOptions { seed, epochs, batch, accumulate, average, evaluate_every, checkpoint_every, keep } =
            self.run.clone();
        for (name, value) in [
            ("run.epochs", epochs),
            ("run.batch", batch),
            ("run.accumulate", accumulate),
            ("run.evaluate_every", evaluate_every),
            ("run.checkpoint_every", checkpoint_every.unwrap_or(1)),
            ("run.keep", keep),
        ] {
            within(name, value as f64, value > 0, "1 or more")?;
        }
        if let Some(average) = average {
            within(
                "run.average",
                average,
                (0.0..1.0).contains(&average),
                "a number from 0 to 1, 1 excluded",
            )?;
        }
        let recipe = serde_json::to_value(self).unwrap_or_default();
        let (rate, decay) = (self.rate, self.decay);
        Ok(Plan {
            seed,
            epochs,
            batch,
            accumulate,
            rate,
            decay,
            average,
            evaluate_every,
            checkpoint_every,
            keep,
            recipe,
            machine,
        })
    }

    /// What it teaches.
    ///
    /// # Errors
    /// [`Error::Contradiction`] for a recipe that teaches nothing, or two things.
    pub fn lesson(&self) -> Result<Lesson<'_>, Error> {
        let lessons = [
            self.illama.as_ref().map(Lesson::Illama),
            self.adapter.as_ref().map(Lesson::Adapter),
            self.segmentation.as_ref().map(Lesson::Segmentation),
            self.pairs.as_ref().map(Lesson::Pairs),
            self.language.as_ref().map(Lesson::Language),
        ];
        let mut lessons = lessons.into_iter().flatten();
        match (lessons.next(), lessons.next()) {
            (Some(lesson), None) => Ok(lesson),
            _ => Err(Error::Contradiction(
                "a recipe teaches one thing: it needs one of the tables [illama], [adapter], [segmentation], [pairs] and [language]",
            )),
        }
    }
}
