//! A linear probe: the head alone learns, and all else of an iLLaMA stays as it is.
//!
//! ```text
//! when it is opened   pictures, prepared as for a test ─► class tokens behind the last norm, `[n, E]`, kept in memory
//! each step           rows of them ─► gradients of the head
//! ```
//! The network looks at each picture once in the whole run, so that a hundred epochs cost as much as one. For that nothing is done to
//! pictures that hangs on chance, no two are mixed, and the mask is causal throughout. The head always begins anew: what another run
//! has taught it is not measured.
//!
//! Rows take `4·E` bytes a picture: 150 MB for CIFAR-10 and iLLaMA-base.

use std::path::Path;

use rayon::prelude::*;

use super::pictures::{Score, decoded, describe};
use super::{Augment, IllamaRecipe};
use crate::media::Limits;
use crate::media::augment::Evaluation;
use crate::models::Placement;
use crate::models::illama::{Config, Illama, Probe, initial, is_head};
use crate::models::learning::{Gradients, Values, Variables, adamw, state, write};
use crate::models::weights::Weights;
use crate::train::data::{Order, Reason, Sample, Samples, Split, Wanted};
use crate::train::loading::{Machine, loaders};
use crate::train::mixup::{self, Choice};
use crate::train::schedule::Span;
use crate::train::staged::Staged;
use crate::train::task::{Measure, Moment, Task};
use crate::train::{Error, Stop};
use crate::types::WeightDtype;

/// Pictures that go through the network together. A part of what features hang on, so it does not change with threads.
const PART: usize = 8;
/// Of the soft mask.
const MASK_RATE: f32 = 0.0;

/// Features of pictures that are ready, with what they are called.
pub struct Rows {
    features: Vec<f32>,
    targets: Vec<f32>,
    places: Vec<String>,
}

/// Pictures with their features.
struct Known {
    samples: Samples,
    /// `[n, E]`
    features: Vec<f32>,
}

/// The task.
pub struct ProbeTask {
    recipe: IllamaRecipe,
    config: Config,
    probe: Probe,
    /// What does not learn.
    others: Values,
    train: Known,
    test: Known,
}

impl ProbeTask {
    /// Lists the data, makes the network and looks at every picture.
    ///
    /// * `base`: the recipe's folder. `span`: of so many samples. `machine`: what there is to work with. `watch`: hears how many pictures were looked at,
    ///   of how many.
    ///
    /// # Errors
    /// [`Stop::Recipe`] for a recipe with chance in its pictures, or without a test; [`Stop::Data`], [`Stop::Model`], [`Stop::Spoiled`].
    pub fn open(
        recipe: &IllamaRecipe,
        base: &Path,
        seed: u64,
        span: impl FnOnce(u32) -> Result<Span, Error>,
        machine: Machine,
        watch: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, Stop> {
        let wrong = |why| Err(Stop::from(Error::Contradiction(why)));
        let still = Staged::constant(0.0);
        if recipe.mask != still || recipe.drop_path != still {
            return wrong(
                "a head that learns alone takes features as they are: leave out `mask` and `drop_path`",
            );
        }
        if recipe.mixup.is_some() || recipe.augment != Augment::default() {
            return wrong(
                "a head that learns alone sees pictures as a test does: leave out `mixup` and `augment`",
            );
        }
        let Some(test) = &recipe.test else {
            return wrong(
                "a head that learns alone needs a `test`: the whole model is kept with the best head",
            );
        };
        let train = recipe.train.list(base, Wanted::Classes, Split::Train, None)?;
        let test = test.list(base, Wanted::Classes, Split::Test, Some(&train.classes))?;
        let config = recipe.model.config(train.classes.len())?;
        mixup::targets(&Choice::Plain, &[0], config.classes, recipe.smoothing)?;
        let start = recipe.start.clone().unwrap_or_default();
        let mut others = start.variables(&config, base, seed)?;
        others.retain(|name, _| !is_head(name));
        let others = state(&others)?;
        let mut head = initial(&config, seed, Default::default())?;
        let first = state(&head)?.into_iter().filter(|(name, _)| is_head(name));
        let whole: Values = others.clone().into_iter().chain(first).collect();
        head.retain(|name, _| is_head(name));
        let whole = Weights::from_memory("the model as it begins", write(&whole, Default::default())?)?;
        let model = Illama::load(&whole, &config, &Placement::open(machine.device, Some(WeightDtype::F32))?)?;
        let probe = Probe::new(&config, head)?;
        let loaders = loaders(machine.threads)?;
        let all = train.samples.len() + test.samples.len();
        let mut done = 0;
        let mut known = |samples: Samples| {
            Known::of(samples, &model, &loaders, &mut |more| {
                done += more;
                watch(done, all);
            })
        };
        let (train, test) = (known(train)?, known(test)?);
        span(train.samples.samples.len() as u32)?;
        Ok(ProbeTask { recipe: recipe.clone(), config, probe, others, train, test })
    }

    /// What it learns from.
    pub fn train(&self) -> &Samples {
        &self.train.samples
    }

    /// What it is tested by.
    pub fn test(&self) -> &Samples {
        &self.test.samples
    }
}

impl Known {
    /// Looks at pictures; those that cannot be decoded are left out.
    fn of(
        mut samples: Samples,
        model: &Illama,
        loaders: &rayon::ThreadPool,
        watch: &mut dyn FnMut(usize),
    ) -> Result<Self, Stop> {
        let (limits, evaluation) = (Limits::default(), Evaluation::new(model.config().side));
        let read = |sample: &Sample| decoded(sample, &limits).map(|picture| evaluation.prepare(&picture));
        let mut whole = Vec::new();
        let mut features = Vec::new();
        // As many as there are threads, so that few pictures are held and it can be told how far it is.
        let mut begun = Vec::new();
        let width = loaders.current_num_threads().max(1);
        let mut rest = std::mem::take(&mut samples.samples).into_iter().peekable();
        while rest.peek().is_some() {
            begun.clear();
            begun.extend(rest.by_ref().take(PART * width));
            let parts: Vec<Result<_, Stop>> = loaders.install(|| {
                let of_part = |part: &[Sample]| {
                    let read: Vec<Result<Vec<f32>, String>> = part.iter().map(read).collect();
                    let pictures: Vec<f32> = read.iter().flatten().flatten().copied().collect();
                    let features = match pictures.is_empty() {
                        true => Vec::new(),
                        false => model.features(pictures, MASK_RATE)?,
                    };
                    Ok((read.into_iter().map(|one| one.err()).collect::<Vec<_>>(), features))
                };
                begun.par_chunks(PART).map(of_part).collect()
            });
            let mut why = Vec::new();
            for part in parts {
                let (of_part, rows) = part?;
                why.extend(of_part);
                features.extend(rows);
            }
            watch(begun.len());
            for (sample, why) in begun.drain(..).zip(why) {
                match why {
                    None => whole.push(sample),
                    Some(why) => samples.skipped.add(Reason::Damaged, why),
                }
            }
        }
        if whole.is_empty() {
            return Err(Stop::Spoiled { why: samples.skipped.to_string() });
        }
        samples.samples = whole;
        Ok(Known { samples, features })
    }

    fn row(&self, sample: usize) -> &[f32] {
        let width = self.features.len() / self.samples.samples.len().max(1);
        &self.features[sample * width..(sample + 1) * width]
    }

    fn label(&self, sample: usize) -> u32 {
        self.samples.samples[sample].target.class().unwrap_or_default()
    }
}

impl Task for ProbeTask {
    type Batch = Rows;

    fn variables(&self) -> &Variables {
        self.probe.variables()
    }

    fn optimiser(&self) -> adamw::Settings {
        self.recipe.optimiser.clone()
    }

    fn samples(&self) -> u32 {
        self.train.samples.samples.len() as u32
    }

    fn prepare(&self, _: Order, samples: &[u32]) -> Result<Rows, Stop> {
        let at = || samples.iter().map(|&sample| sample as usize);
        let features = at().flat_map(|sample| self.train.row(sample)).copied().collect();
        let labels: Vec<u32> = at().map(|sample| self.train.label(sample)).collect();
        let targets = mixup::targets(&Choice::Plain, &labels, self.config.classes, self.recipe.smoothing)?;
        let places = at().map(|sample| self.train.samples.samples[sample].place.to_string()).collect();
        Ok(Rows { features, targets, places })
    }

    fn spoiled<'a>(&self, _: &'a Rows) -> &'a [String] {
        // All were looked at before the first step.
        &[]
    }

    fn places(&self, batch: &Rows) -> Vec<String> {
        batch.places.clone()
    }

    fn gradients(&self, batch: &Rows, _: Moment) -> Result<(f32, Gradients), Stop> {
        Ok(self.probe.gradients(&batch.features, &batch.targets)?)
    }

    fn evaluate(&self, values: &Values, _: usize, _: bool) -> Result<Vec<Measure>, Stop> {
        let head = Weights::from_memory("the head of this step", write(values, Default::default())?)?;
        let logits = self.probe.logits(&head, &self.test.features)?;
        let labels: Vec<usize> =
            (0..self.test.samples.samples.len()).map(|sample| self.test.label(sample) as usize).collect();
        Score::of(&logits, &labels).measures()
    }

    fn others(&self) -> Option<&Values> {
        Some(&self.others)
    }

    fn describe(&self, folder: &Path, _: &Values) -> Result<(), Stop> {
        describe(folder, &self.config, &self.train.samples.classes)
    }
}
