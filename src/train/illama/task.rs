//! All of an iLLaMA learns to name pictures.

use std::path::Path;

use rand::RngExt;
use rayon::prelude::*;

use super::IllamaRecipe;
use super::pictures::{Score, TESTED, decoded, describe};
use crate::media::Limits;
use crate::media::augment::{Evaluation, Training};
use crate::models::illama::{Config, Illama, Learner, Lesson};
use crate::models::learning::{Gradients, Values, Variables, adamw, placed, write};
use crate::models::weights::Weights;
use crate::models::{DeviceKind, Placement};
use crate::train::data::{Order, Sample, Samples, Split, Wanted};
use crate::train::loading::{Filled, Machine, filled, loaders};
use crate::train::mixup::{self, Choice};
use crate::train::schedule::Span;
use crate::train::staged::{StagedValues, survivors};
use crate::train::task::{Measure, Moment, Task};
use crate::train::{Error, Stop};
use crate::types::WeightDtype;

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
    device: DeviceKind,
}

impl IllamaTask {
    /// Lists the data and makes the network.
    ///
    /// * `base`: the recipe's folder. `span`: of so many samples. `machine`: what there is to work with.
    ///
    /// # Errors
    /// [`Stop::Recipe`], [`Stop::Data`], [`Stop::Model`], [`Stop::Media`].
    pub fn open(
        recipe: &IllamaRecipe,
        base: &Path,
        seed: u64,
        span: impl FnOnce(u32) -> Result<Span, Error>,
        machine: Machine,
    ) -> Result<Self, Stop> {
        let train = recipe.train.list(base, Wanted::Classes, Split::Train, None)?;
        let test = recipe.test.as_ref();
        let test = test
            .map(|test| test.list(base, Wanted::Classes, Split::Test, Some(&train.classes)))
            .transpose()?;
        let config = recipe.model.config(train.classes.len())?;
        let variables = recipe.start.clone().unwrap_or_default().variables(&config, base, seed)?;
        let training = recipe.augment.training(config.side);
        training.validate().map_err(|e| Stop::Media(e.to_string()))?;
        if let Some(mixup) = &recipe.mixup {
            mixup.check()?;
        }
        // A smoothing out of range is told before the first step.
        mixup::targets(&Choice::Plain, &[0], config.classes, recipe.smoothing)?;
        let span = span(train.samples.len() as u32)?;
        let (masks, drops) = (recipe.mask.mask_rates(span)?, recipe.drop_path.drop_rates(span)?);
        let loaders = loaders(machine.threads)?;
        let evaluation = Evaluation::new(config.side);
        let learner =
            Learner::new(&config, placed(variables, machine.device)?, machine.threads, recipe.blockwise)?;
        let (recipe, limits, device) = (recipe.clone(), Limits::default(), machine.device);
        Ok(IllamaTask {
            recipe,
            learner,
            train,
            test,
            training,
            evaluation,
            masks,
            drops,
            limits,
            loaders,
            device,
        })
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
                let picture = decoded(sample, &self.limits)?;
                Ok((self.training.prepare(&picture, &mut random), random.random::<u64>()))
            };
            samples.par_iter().map(one).collect::<Vec<Result<_, String>>>()
        });
        let Filled { samples: ready, spoiled } = filled(ready)?;
        let (mut pictures, mut labels, mut kept, mut places) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (i, (from, (picture, seed))) in ready.iter().enumerate() {
            let sample = &self.train.samples[samples[*from] as usize];
            pictures.extend_from_slice(picture);
            labels.push(sample.target.class().unwrap_or_default());
            kept.push(seed ^ i as u64);
            places.push(sample.place.to_string());
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
        let kept = survivors(self.drops.at(at.step), self.config().depth, &batch.kept)?;
        let rate = self.masks.at(at.step) as f32;
        let lesson = Lesson { pictures: &batch.pictures, targets: &batch.targets, rate, kept: &kept };
        Ok(self.learner.gradients(&lesson)?)
    }

    fn evaluate(&self, values: &Values, at: usize, average: bool) -> Result<Vec<Measure>, Stop> {
        let Some(test) = &self.test else { return Ok(Vec::new()) };
        let weights = Weights::from_memory("the weights of this step", write(values, Default::default())?)?;
        let model =
            Illama::load(&weights, self.config(), &Placement::open(self.device, Some(WeightDtype::F32))?)?;
        let rate = if average { 0.0 } else { self.masks.at(at.saturating_sub(1)) as f32 };
        let of_some = |some: &[Sample]| -> Result<Score, Stop> {
            let (mut pictures, mut labels) = (Vec::new(), Vec::new());
            for sample in some {
                if let (Ok(picture), Some(label)) = (decoded(sample, &self.limits), sample.target.class()) {
                    pictures.extend(self.evaluation.prepare(&picture));
                    labels.push(label as usize);
                }
            }
            match labels.is_empty() {
                true => Ok(Score::default()),
                false => Ok(Score::of(&model.logits(pictures, rate)?, &labels)),
            }
        };
        let parts: Vec<Result<Score, Stop>> =
            self.loaders.install(|| test.samples.par_chunks(TESTED).map(of_some).collect());
        parts.into_iter().try_fold(Score::default(), |sum, part| Ok::<_, Stop>(sum.with(part?)))?.measures()
    }

    fn describe(&self, folder: &Path, _: &Values) -> Result<(), Stop> {
        describe(folder, self.config(), &self.train.classes)
    }
}
