//! Pictures that are read, and what a test of them says.

use std::path::Path;

use crate::media::image::decode_within;
use crate::media::{Limits, Orientation, Rgb};
use crate::models::illama::Config;
use crate::train::Stop;
use crate::train::checkpoint::put;
use crate::train::data::Sample;
use crate::train::measure::{place, softmax};
use crate::train::stop::told;
use crate::train::task::Measure;

/// Pictures that are tested together, by one thread.
pub(super) const TESTED: usize = 32;

/// Reads a picture, as it lies in its file.
pub(super) fn decoded(sample: &Sample, limits: &Limits) -> Result<Rgb, String> {
    let bytes = sample.place.read(limits.max_bytes as u64).map_err(|e| told(&e))?;
    decode_within(&bytes, Orientation::Reference, limits)
        .map_err(|e| format!("{}: {}", sample.place, told(&e)))
}

/// What makes weights a model, beside them.
pub(super) fn describe(folder: &Path, config: &Config, classes: &[String]) -> Result<(), Stop> {
    put(&folder.join("config.json"), &serde_json::to_vec_pretty(config).unwrap_or_default())?;
    put(&folder.join("classes.txt"), (classes.join("\n") + "\n").as_bytes())
}

/// How pictures of a test were named.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Score {
    first: usize,
    five: usize,
    loss: f64,
    count: usize,
}

impl Score {
    /// * `logits`: `[B, C]`. `labels`: below C each.
    pub(super) fn of(logits: &[Vec<f32>], labels: &[usize]) -> Self {
        let mut score = Score::default();
        for (logits, &label) in logits.iter().zip(labels) {
            let probabilities = softmax(logits);
            let place = place(&probabilities, label);
            score.first += usize::from(place == 0);
            score.five += usize::from(place < 5);
            score.loss -= probabilities[label].max(f64::MIN_POSITIVE).ln();
            score.count += 1;
        }
        score
    }

    /// Both together.
    pub(super) fn with(self, other: Score) -> Score {
        Score {
            first: self.first + other.first,
            five: self.five + other.five,
            loss: self.loss + other.loss,
            count: self.count + other.count,
        }
    }

    /// The measures of a test.
    ///
    /// # Errors
    /// [`Stop::Spoiled`] without pictures.
    pub(super) fn measures(self) -> Result<Vec<Measure>, Stop> {
        let Score { first, five, loss, count } = self;
        if count == 0 {
            return Err(Stop::Spoiled { why: "no picture of the test can be decoded".into() });
        }
        let share = |n: usize| n as f64 / count as f64;
        let measure = |name: &str, value| Measure { name: name.to_owned(), value };
        Ok(vec![
            measure("top1", share(first)),
            measure("top5", share(five)),
            measure("loss", loss / count as f64),
            measure("tested", count as f64),
        ])
    }
}
