//! The task: batches of pictures with labels, gradients, and what a test says.

use std::path::Path;

use rand::RngExt;
use rayon::prelude::*;

use super::SegmentationRecipe;
use crate::media::Limits;
use crate::media::augment::Labelled;
use crate::models::learning::{Gradients, Values, Variables, adamw, placed, state, write_all};
use crate::models::segmenter::{Config, Learner, Lesson, Segmenter, initial, is_decoder};
use crate::models::weights::Weights;
use crate::models::{DeviceKind, Placement};
use crate::train::checkpoint::put;
use crate::train::data::{Annotated, Order, Pair, Split};
use crate::train::illama::Learn;
use crate::train::loading::{Filled, Machine, filled, loaders};
use crate::train::measure::Confusion;
use crate::train::schedule::Span;
use crate::train::staged::{StagedValues, survivors};
use crate::train::task::{Measure, Moment, Task};
use crate::train::{Error, Stop};
use crate::types::WeightDtype;

/// Pictures with labels that are ready, with what they are called.
pub struct Batch {
    pictures: Vec<f32>,
    labels: Vec<u8>,
    kept: Vec<u64>,
    places: Vec<String>,
    spoiled: Vec<String>,
}

/// The task.
pub struct SegmentationTask {
    recipe: SegmentationRecipe,
    learner: Learner,
    /// What does not learn; nothing where all does.
    others: Values,
    names: Vec<String>,
    train: Annotated,
    test: Option<Annotated>,
    labelled: Labelled,
    drops: StagedValues,
    limits: Limits,
    loaders: rayon::ThreadPool,
    device: DeviceKind,
}

impl SegmentationTask {
    /// Lists the data, reading every annotation, and makes the network.
    ///
    /// * `base`: the recipe's folder. `span`: of so many samples. `machine`: what there is to work with.
    ///
    /// # Errors
    /// [`Stop::Recipe`], [`Stop::Data`], [`Stop::Model`], [`Stop::Media`], [`Stop::File`].
    pub fn open(
        recipe: &SegmentationRecipe,
        base: &Path,
        seed: u64,
        span: impl FnOnce(u32) -> Result<Span, Error>,
        machine: Machine,
    ) -> Result<Self, Stop> {
        let names = recipe.names(base)?;
        let backbone = recipe.model.config(recipe.classes)?;
        let config = Config::new(backbone, &recipe.blocks, recipe.mask_rate)?;
        let labelled = recipe.augment.labelled(config.backbone.side);
        labelled.validate().map_err(|e| Stop::Media(e.to_string()))?;
        let (limits, loaders) = (Limits::default(), loaders(machine.threads)?);
        let root = base.join(&recipe.data);
        let list = |split| loaders.install(|| Annotated::of_folder(&root, split, recipe.classes, &limits));
        let train = list(Split::Train)?;
        let test = Annotated::has(&root, Split::Test).then(|| list(Split::Test)).transpose()?;
        let span = span(train.pairs.len() as u32)?;
        let drops = recipe.drop_path.drop_rates(span)?;
        let start = recipe.start.clone().unwrap_or_default();
        let first = initial(&config, start.variables(&config.backbone, base, seed)?, seed)?;
        let (variables, others) = match recipe.learn {
            Learn::All => (first, Variables::new()),
            Learn::Head if test.is_none() => {
                let why = "a decoder that learns alone needs a `validation`: the whole model is kept with the best one";
                return Err(Error::Contradiction(why).into());
            }
            Learn::Head => first.into_iter().partition(|(name, _)| is_decoder(name)),
        };
        let (variables, device) = (placed(variables, machine.device)?, machine.device);
        let others = state(&others)?;
        let learner = Learner::new(&config, variables, &others, machine.threads, recipe.blockwise)?;
        let recipe = recipe.clone();
        Ok(SegmentationTask {
            recipe,
            learner,
            others,
            names,
            train,
            test,
            labelled,
            drops,
            limits,
            loaders,
            device,
        })
    }

    /// What it learns from.
    pub fn train(&self) -> &Annotated {
        &self.train
    }

    /// What it is tested by.
    pub fn test(&self) -> Option<&Annotated> {
        self.test.as_ref()
    }

    /// The names of the classes.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

impl Task for SegmentationTask {
    type Batch = Batch;

    fn variables(&self) -> &Variables {
        self.learner.variables()
    }

    fn optimiser(&self) -> adamw::Settings {
        self.recipe.optimiser.clone()
    }

    fn samples(&self) -> u32 {
        self.train.pairs.len() as u32
    }

    fn prepare(&self, order: Order, samples: &[u32]) -> Result<Batch, Stop> {
        let ready = self.loaders.install(|| {
            let one = |&sample: &u32| {
                let mut random = order.random(sample);
                let (picture, labels) = self.train.pairs[sample as usize].read(&self.limits)?;
                let (values, known) = self.labelled.prepare(&picture, &labels, &mut random);
                Ok((values, known, random.random::<u64>()))
            };
            samples.par_iter().map(one).collect::<Vec<Result<_, String>>>()
        });
        let Filled { samples: ready, spoiled } = filled(ready)?;
        let mut batch = Batch { pictures: vec![], labels: vec![], kept: vec![], places: vec![], spoiled };
        for (i, (from, (values, known, seed))) in ready.iter().enumerate() {
            batch.pictures.extend_from_slice(values);
            batch.labels.extend_from_slice(known);
            batch.kept.push(seed ^ i as u64);
            batch.places.push(self.train.pairs[samples[*from] as usize].picture.to_string());
        }
        Ok(batch)
    }

    fn spoiled<'a>(&self, batch: &'a Batch) -> &'a [String] {
        &batch.spoiled
    }

    fn places(&self, batch: &Batch) -> Vec<String> {
        batch.places.clone()
    }

    fn gradients(&self, batch: &Batch, at: Moment) -> Result<(f32, Gradients), Stop> {
        let depth = self.learner.config().backbone.depth;
        let kept = survivors(self.drops.at(at.step), depth, &batch.kept)?;
        let lesson = Lesson { pictures: &batch.pictures, labels: &batch.labels, kept: &kept };
        Ok(self.learner.gradients(&lesson)?)
    }

    fn evaluate(&self, values: &Values, _: usize, _: bool) -> Result<Vec<Measure>, Stop> {
        let Some(test) = &self.test else { return Ok(Vec::new()) };
        let bytes = write_all(&[&self.others, values], Default::default())?;
        let weights = Weights::from_memory("the weights of this step", bytes)?;
        let config = self.learner.config();
        let model =
            Segmenter::load(&weights, config, &Placement::open(self.device, Some(WeightDtype::F32))?)?;
        let nothing = || (Confusion::new(config.classes()), 0);
        let of_pair = |pair: &Pair| -> Result<(Confusion, u32), Stop> {
            let mut sum = nothing();
            if let Ok((picture, truth)) = pair.read(&self.limits) {
                let named = model.label(&picture, [truth.width, truth.height])?;
                sum.0.add(&truth.labels, &named.labels);
                sum.1 = 1;
            }
            Ok(sum)
        };
        let both = |mut sum: (Confusion, u32), other: (Confusion, u32)| {
            sum.0.join(&other.0);
            Ok((sum.0, sum.1 + other.1))
        };
        let sum = self.loaders.install(|| test.pairs.par_iter().map(of_pair).try_reduce(nothing, both));
        let (confusion, tested) = sum?;
        let means = [confusion.mean_iou(), confusion.mean_accuracy(), confusion.pixel_accuracy()];
        let [Some(iou), Some(accuracy), Some(pixels)] = means else {
            return Err(Stop::Spoiled { why: "no picture of the test can be read".into() });
        };
        let measure = |name: &str, value| Measure { name: name.to_owned(), value };
        Ok(vec![
            measure("miou", iou),
            measure("mean_accuracy", accuracy),
            measure("pixel_accuracy", pixels),
            measure("tested", f64::from(tested)),
        ])
    }

    fn others(&self) -> Option<&Values> {
        Some(&self.others).filter(|others| !others.is_empty())
    }

    fn describe(&self, folder: &Path, _: &Values) -> Result<(), Stop> {
        let json = serde_json::to_vec_pretty(self.learner.config()).unwrap_or_default();
        put(&folder.join("config.json"), &json)?;
        put(&folder.join("classes.txt"), (self.names.join("\n") + "\n").as_bytes())
    }
}
