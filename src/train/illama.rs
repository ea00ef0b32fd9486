//! An iLLaMA that learns to name pictures.
//!
//! ```text
//! pictures ─► decode, part of it, mirrored, operations ─► batch ─► mixed in pairs ─► gradients, with the step's mask and drop path
//! ```
//! A picture that cannot be decoded is named and left out: another of its batch takes its place. Recipes mix pairs of a batch, so a batch
//! keeps its size.
//!
//! Tests are made with the mask that the last step left behind, as the published program does; a moving average is tested causal.
//!
//! Source: the training program of iLLaMA.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::RngExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::checkpoint::put;
use super::data::{Order, Sample, Samples, Source, Split, Wanted};
use super::measure::{place, softmax};
use super::mixup::{self, Choice};
use super::schedule::Span;
use super::staged::{Staged, StagedValues, drop_path_rates};
use super::stop::told;
use super::task::{Measure, Moment, Task};
use super::{Error, Stop};
use crate::media::augment::{Crop, Erase, Evaluation, Operations, Training};
use crate::media::image::decode_within;
use crate::media::{Limits, Orientation, Rgb};
use crate::models::Placement;
use crate::models::illama::{Config, Illama, Learner, Lesson, Size, continued, initial, select};
use crate::models::learning::{Gradients, Values, Variables, adamw, write};
use crate::models::weights::Weights;

/// Pictures that are tested together, by one thread.
const TESTED: usize = 32;

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

    fn config(&self, classes: usize) -> Result<Config, crate::models::Error> {
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
    fn training(&self, side: usize) -> Training {
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

/// Pictures that are ready, with what they are called.
pub struct Batch {
    pictures: Vec<f32>,
    targets: Vec<f32>,
    kept: Vec<u64>,
    places: Vec<String>,
    spoiled: Vec<String>,
}

/// The task.
pub struct IllamaTask {
    recipe: IllamaRecipe,
    learner: Learner,
    train: Samples,
    test: Option<Samples>,
    training: Training,
    evaluation: Evaluation,
    masks: StagedValues,
    drops: StagedValues,
    limits: Limits,
    loaders: rayon::ThreadPool,
}

impl IllamaTask {
    /// Lists the data and makes the network.
    ///
    /// * `base`: the recipe's folder. `span`: of so many samples. `threads`: that learn, and that prepare.
    ///
    /// # Errors
    /// [`Stop::Recipe`], [`Stop::Data`], [`Stop::Model`], [`Stop::Media`].
    pub fn open(
        recipe: &IllamaRecipe,
        base: &Path,
        seed: u64,
        span: impl FnOnce(u32) -> Result<Span, Error>,
        threads: usize,
    ) -> Result<Self, Stop> {
        let train = recipe.train.list(base, Wanted::Classes, Split::Train, None)?;
        let test = recipe.test.as_ref();
        let test = test
            .map(|test| test.list(base, Wanted::Classes, Split::Test, Some(&train.classes)))
            .transpose()?;
        let config = recipe.model.config(train.classes.len())?;
        let start = recipe.start.clone().unwrap_or_default();
        let open = |path: &PathBuf| Weights::open(&base.join(path));
        let variables = match (&start.weights, &start.llama[..]) {
            (None, []) => initial(&config, seed, BTreeMap::new())?,
            (Some(path), []) => continued(&config, seed, &open(path)?)?,
            (None, paths) => {
                let files: Vec<Weights> = paths.iter().map(open).collect::<Result<_, _>>()?;
                initial(&config, seed, select(&files, &config)?)?
            }
            (Some(_), _) => {
                return Err(Error::Contradiction("a start is either `weights` or `llama`, not both").into());
            }
        };
        let training = recipe.augment.training(config.side);
        training.validate().map_err(|e| Stop::Media(e.to_string()))?;
        if let Some(mixup) = &recipe.mixup {
            mixup.check()?;
        }
        // A smoothing out of range is told before the first step.
        mixup::targets(&Choice::Plain, &[0], config.classes, recipe.smoothing)?;
        let span = span(train.samples.len() as u32)?;
        let (masks, drops) = (recipe.mask.mask_rates(span)?, recipe.drop_path.drop_rates(span)?);
        let loaders =
            rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("load-{i}"));
        let loaders = loaders.build().map_err(|e| Stop::Threads(e.to_string()))?;
        let evaluation = Evaluation::new(config.side);
        let learner = Learner::new(&config, variables, threads, recipe.blockwise)?;
        let (recipe, limits) = (recipe.clone(), Limits::default());
        Ok(IllamaTask { recipe, learner, train, test, training, evaluation, masks, drops, limits, loaders })
    }

    /// What it learns from.
    pub fn train(&self) -> &Samples {
        &self.train
    }

    /// What it is tested by.
    pub fn test(&self) -> Option<&Samples> {
        self.test.as_ref()
    }

    /// The sizes of the network.
    pub fn config(&self) -> &Config {
        self.learner.config()
    }

    fn decoded(&self, sample: &Sample) -> Result<Rgb, String> {
        let bytes = sample.place.read(self.limits.max_bytes as u64).map_err(|e| told(&e))?;
        decode_within(&bytes, Orientation::Reference, &self.limits)
            .map_err(|e| format!("{}: {}", sample.place, told(&e)))
    }

    /// What of each branch is added: its share of survivors, and 0 for those that do not: `[2·depth, B]`.
    fn kept(&self, seeds: &[u64], step: usize) -> Result<Vec<f32>, Error> {
        let rate = self.drops.at(step);
        if rate == 0.0 {
            return Ok(Vec::new());
        }
        let rates = drop_path_rates(rate, self.config().depth)?;
        let mut random: Vec<_> = seeds.iter().map(|&seed| Order::new(seed).random(0)).collect();
        let branches = rates.iter().flat_map(|&rate| [rate; 2]);
        let of_branch = |rate: f32| {
            let keep = 1.0 - rate;
            let survives = |random: &mut rand_pcg::Pcg64| random.random::<f32>() < keep;
            random
                .iter_mut()
                .map(|random| if survives(random) { 1.0 / keep } else { 0.0 })
                .collect::<Vec<_>>()
        };
        Ok(branches.map(of_branch).collect::<Vec<_>>().concat())
    }
}

impl Task for IllamaTask {
    type Batch = Batch;

    fn variables(&self) -> &Variables {
        self.learner.variables()
    }

    fn optimiser(&self) -> adamw::Settings {
        self.recipe.optimiser.clone()
    }

    fn samples(&self) -> u32 {
        self.train.samples.len() as u32
    }

    fn prepare(&self, order: Order, samples: &[u32]) -> Result<Batch, Stop> {
        let ready = self.loaders.install(|| {
            let one = |&sample: &u32| {
                let (mut random, sample) = (order.random(sample), &self.train.samples[sample as usize]);
                let picture = self.decoded(sample)?;
                Ok((self.training.prepare(&picture, &mut random), random.random::<u64>()))
            };
            samples.par_iter().map(one).collect::<Vec<Result<_, String>>>()
        });
        let whole: Vec<usize> = (0..ready.len()).filter(|&i| ready[i].is_ok()).collect();
        let spoiled: Vec<String> = ready.iter().filter_map(|one| one.clone().err()).collect();
        if whole.is_empty() {
            return Err(Stop::Spoiled { why: spoiled.into_iter().next().unwrap_or_default() });
        }
        let (mut pictures, mut labels, mut kept, mut places) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for i in 0..ready.len() {
            // The next whole one of the batch takes the place of one that is not.
            let from = whole[whole.partition_point(|&w| w < i) % whole.len()];
            if let Ok((picture, seed)) = &ready[from] {
                let sample = &self.train.samples[samples[from] as usize];
                pictures.extend_from_slice(picture);
                labels.push(sample.target.class().unwrap_or_default());
                kept.push(seed ^ i as u64);
                places.push(sample.place.to_string());
            }
        }
        let Config { side, classes, .. } = *self.config();
        // Its chance is the epoch's and the place's, of which no sample has the number.
        let mut random = Order { seed: order.seed ^ order.position, ..order }.random(u32::MAX);
        let choice = match &self.recipe.mixup {
            Some(options) => mixup::choose(&mut random, side, options)?,
            None => Choice::Plain,
        };
        let shape = [labels.len(), 3, side, side];
        let targets = mixup::apply(&choice, &mut pictures, shape, &labels, classes, self.recipe.smoothing)?;
        Ok(Batch { pictures, targets, kept, places, spoiled })
    }

    fn spoiled<'a>(&self, batch: &'a Batch) -> &'a [String] {
        &batch.spoiled
    }

    fn places(&self, batch: &Batch) -> Vec<String> {
        batch.places.clone()
    }

    fn gradients(&self, batch: &Batch, at: Moment) -> Result<(f32, Gradients), Stop> {
        let kept = self.kept(&batch.kept, at.step)?;
        let rate = self.masks.at(at.step) as f32;
        let lesson = Lesson { pictures: &batch.pictures, targets: &batch.targets, rate, kept: &kept };
        Ok(self.learner.gradients(&lesson)?)
    }

    fn evaluate(&self, values: &Values, at: usize, average: bool) -> Result<Vec<Measure>, Stop> {
        let Some(test) = &self.test else { return Ok(Vec::new()) };
        let weights = Weights::from_memory("the weights of this step", write(values, Default::default())?)?;
        let model = Illama::load(&weights, self.config(), &Placement::cpu())?;
        let rate = if average { 0.0 } else { self.masks.at(at.saturating_sub(1)) as f32 };
        let of_some = |some: &[Sample]| -> Result<(usize, usize, f64, usize), Stop> {
            let (mut pictures, mut labels) = (Vec::new(), Vec::new());
            for sample in some {
                if let (Ok(picture), Some(label)) = (self.decoded(sample), sample.target.class()) {
                    pictures.extend(self.evaluation.prepare(&picture));
                    labels.push(label as usize);
                }
            }
            if labels.is_empty() {
                return Ok((0, 0, 0.0, 0));
            }
            let logits = model.logits(pictures, rate)?;
            let (mut first, mut five, mut loss) = (0, 0, 0.0);
            for (logits, &label) in logits.iter().zip(&labels) {
                let probabilities = softmax(logits);
                let place = place(&probabilities, label);
                first += usize::from(place == 0);
                five += usize::from(place < 5);
                loss -= probabilities[label].max(f64::MIN_POSITIVE).ln();
            }
            Ok((first, five, loss, labels.len()))
        };
        let parts: Vec<Result<_, Stop>> =
            self.loaders.install(|| test.samples.par_chunks(TESTED).map(of_some).collect());
        let mut sums = (0, 0, 0.0, 0);
        for part in parts {
            let (first, five, loss, count) = part?;
            sums = (sums.0 + first, sums.1 + five, sums.2 + loss, sums.3 + count);
        }
        let (first, five, loss, count) = sums;
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

    fn describe(&self, folder: &Path, _: &Values) -> Result<(), Stop> {
        let json = serde_json::to_vec_pretty(self.config()).unwrap_or_default();
        put(&folder.join("config.json"), &json)?;
        put(&folder.join("classes.txt"), (self.train.classes.join("\n") + "\n").as_bytes())
    }
}
