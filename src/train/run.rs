//! The loop.
//!
//! ```text
//! recipe ─► task, plan ─► begin, or go on from the last checkpoint
//! each step    batches ─► gradients ─► sum ─► AdamW ─► average        rate, decay: of the step
//! each epoch   what can it do? ─► best                                 each `checkpoint_every`: checkpoint
//! ```
//!
//! **A run that was stopped gives the same weights, bit for bit**, on the same machine with the same number of threads: all chance
//! hangs on the seed and the place in the samples, sums are made in one order, and a checkpoint holds everything that goes on.

use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use super::Stop;
use super::checkpoint::{About, Folder, Saved};
use super::data::Order;
use super::journal::Journal;
use super::schedule::{Cosine, Span};
use super::task::{Measure, Moment, Task};
use crate::models::learning::adamw::AdamW;
use crate::models::learning::{Average, Sum, Values, restore, state, write};

/// Batches that are made ready before they are asked for.
const AHEAD: usize = 2;

/// How a run goes, whatever it teaches.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Of all chance.
    pub seed: u64,
    /// Times that every sample is seen.
    pub epochs: usize,
    /// Samples of a small batch.
    pub batch: usize,
    /// Small batches of a step.
    pub accumulate: usize,
    /// The learning rate.
    pub rate: Cosine,
    /// The weight decay.
    pub decay: Cosine,
    /// What of the moving average is kept at a step; none without.
    pub average: Option<f64>,
    /// Epochs from one test to the next.
    pub evaluate_every: usize,
    /// Steps from one checkpoint to the next; an epoch's where nothing is said.
    pub checkpoint_every: Option<usize>,
    /// Checkpoints that stay.
    pub keep: usize,
    /// The recipe as it was read: a run goes on with the same alone.
    pub recipe: serde_json::Value,
    /// What else its numbers hang on.
    pub machine: serde_json::Value,
}

impl Plan {
    /// How long the run is.
    ///
    /// # Errors
    /// [`super::Error::Parameter`] where an epoch has no full step.
    pub fn span(&self, samples: u32) -> Result<Span, super::Error> {
        Span::new(self.epochs, samples as usize / (self.batch * self.accumulate).max(1))
    }
}

/// What a run tells while it goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum News<'a> {
    /// It begins, or goes on from a step other than 0.
    Begins {
        /// Steps that are done.
        step: usize,
        /// Steps of the run.
        steps: usize,
        /// Steps of an epoch.
        epoch: usize,
    },
    /// A step is done.
    Step {
        /// Steps that are done.
        step: usize,
        /// Mean loss of its batches.
        loss: f32,
        /// Its learning rate.
        rate: f64,
        /// Samples a second.
        pace: f64,
    },
    /// The network was tested.
    Tested {
        /// Steps that are done.
        step: usize,
        /// What it can do.
        measures: &'a [Measure],
        /// Whether it is the moving average.
        average: bool,
    },
    /// Samples were left out.
    LeftOut(&'a [String]),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Outcome {
    /// Steps that are done.
    pub step: usize,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// The best measure and its step.
    pub best: Option<(f64, usize)>,
    /// Samples that were left out since this start.
    pub left_out: usize,
}

/// Teaches.
///
/// * `watch`: hears of everything; false ends the run after a checkpoint.
///
/// # Errors
/// [`Stop`]; what checkpoints there are stay.
pub fn run<T: Task>(
    task: &T,
    plan: &Plan,
    out: &Path,
    watch: &mut dyn FnMut(News<'_>) -> bool,
) -> Result<Outcome, Stop> {
    let mut plan = plan.clone();
    if let Some(others) = task.others() {
        // In no checkpoint, and yet the numbers hang on them.
        let digest = blake3::hash(&write(others, Default::default())?);
        plan.machine["others"] = digest.to_hex().to_string().into();
    }
    let plan = &plan;
    let span = plan.span(task.samples())?;
    let (rates, decays) = (plan.rate.over(span)?, plan.decay.over(span)?);
    let folder = Folder::open(out)?;
    let mut optimiser = AdamW::new(task.variables(), task.optimiser())?;
    let mut average = plan.average.map(|decay| Average::new(decay, task.variables())).transpose()?;
    let mut about = About::new(plan.recipe.clone(), plan.machine.clone(), plan.seed);
    if let Some(saved) = folder.last()? {
        same(&saved.about, plan, out)?;
        restore(task.variables(), &saved.weights, &out.display().to_string())?;
        optimiser.restore(saved.moments)?;
        if let (Some(average), Some(values)) = (&mut average, saved.average) {
            average.restore(values)?;
        }
        about = saved.about;
    }
    let mut journal = Journal::open(out, about.step)?;
    let mut going = watch(News::Begins { step: about.step, steps: span.total(), epoch: span.iterations() });
    let mut left_out = 0;

    std::thread::scope(|scope| {
        // A thread reads ahead; it ends when nobody asks any more.
        let (sender, batches) = sync_channel(AHEAD);
        let begin = about.order;
        let reader = scope.spawn(move || {
            for (order, samples, after) in walk(begin, task.samples(), plan, span) {
                if sender.send((task.prepare(order, &samples), after)).is_err() {
                    return;
                }
            }
        });

        let mut teach = || {
            while about.step < span.total() && going {
                let begun = Instant::now();
                let (rate, decay) = (rates.at(about.step), decays.at(about.step));
                let (mut sum, mut loss) = (Sum::default(), 0.0);
                for part in 0..plan.accumulate {
                    let (batch, after) = batches.recv().map_err(|_| Stop::Loading)?;
                    let batch = batch?;
                    let spoiled = task.spoiled(&batch);
                    if !spoiled.is_empty() {
                        left_out += spoiled.len();
                        journal.spoiled(about.step + 1, spoiled)?;
                        watch(News::LeftOut(spoiled));
                    }
                    let (share, gradients) = task.gradients(&batch, Moment { step: about.step, part })?;
                    if !share.is_finite() {
                        let places = task.places(&batch);
                        return Err(Stop::NotFinite { step: about.step + 1, loss: share, places });
                    }
                    loss += share / plan.accumulate as f32;
                    sum.add(gradients)?;
                    about.order = after;
                }
                let norm = optimiser.apply(&sum.times(1.0 / plan.accumulate as f64)?, rate, decay)?;
                if let Some(average) = &mut average {
                    average.follow(task.variables())?;
                }
                about.step += 1;
                let pace = (plan.batch * plan.accumulate) as f64 / begun.elapsed().as_secs_f64();
                let numbers = [("loss", f64::from(loss)), ("rate", rate), ("norm", norm), ("pace", pace)];
                journal.step(about.step, &numbers)?;
                going = watch(News::Step { step: about.step, loss, rate, pace });

                let (done, epoch) = (about.step == span.total(), span.iterations());
                if done || about.step.is_multiple_of(epoch * plan.evaluate_every.max(1)) {
                    let now = state(task.variables())?;
                    let mut tested = vec![(false, &now)];
                    tested.extend(average.as_ref().map(|average| (true, average.values())));
                    for (average, values) in tested {
                        let measures = task.evaluate(values, about.step, average)?;
                        let Some(main) = measures.first().map(|measure| measure.value) else { continue };
                        journal.measures(about.step, &measures, average)?;
                        watch(News::Tested { step: about.step, measures: &measures, average });
                        if about.best.is_none_or(|(best, _)| main > best) {
                            about.best = Some((main, about.step));
                            let told = serde_json::json!({"step": about.step, "average": average, "measures": measures});
                            let whole: Vec<&Values> = task.others().into_iter().chain([values]).collect();
                            folder.save_best(&whole, &told, |folder| task.describe(folder, values))?;
                        }
                    }
                }
                if done || !going || about.step.is_multiple_of(plan.checkpoint_every.unwrap_or(epoch).max(1))
                {
                    let (weights, moments) = (state(task.variables())?, optimiser.state().clone());
                    let average = average.as_ref().map(|average| average.values().clone());
                    let saved = Saved { weights, moments, average, about: about.clone() };
                    folder.save(&saved, plan.keep, |folder| task.describe(folder, &saved.weights))?;
                }
            }
            Ok(Outcome {
                step: about.step,
                interrupted: about.step < span.total(),
                best: about.best,
                left_out,
            })
        };
        let outcome = teach();
        drop(batches);
        // What it crashed by was printed where it happened.
        reader.join().map_err(|_| Stop::Loading)?;
        outcome
    })
}

/// The batches of a run from a place on: where each begins, its samples, and where the next one does.
fn walk(
    begin: Order,
    samples: u32,
    plan: &Plan,
    span: Span,
) -> impl Iterator<Item = (Order, Vec<u32>, Order)> {
    let (batch, batches) = (plan.batch, (span.iterations() * plan.accumulate) as u64);
    let mut walk = begin.walk(samples);
    std::iter::from_fn(move || {
        // What is left over at the end of an epoch makes no full step.
        if walk.order().position / batch as u64 >= batches {
            walk.next_epoch();
        }
        let order = walk.order();
        let samples = walk.batch(batch)?.to_vec();
        Some((order, samples, walk.order()))
    })
}

/// Refuses to go on with a run of another recipe, or on other numbers.
fn same(saved: &About, plan: &Plan, out: &Path) -> Result<(), Stop> {
    for (name, was, is) in
        [("recipe", &saved.recipe, &plan.recipe), ("machine", &saved.machine, &plan.machine)]
    {
        if let Some(differs) = difference(name, was, is) {
            return Err(Stop::OtherRun { path: out.to_owned(), differs });
        }
    }
    Ok(())
}

/// The first place where two values differ, and what they say there.
fn difference(name: &str, was: &serde_json::Value, is: &serde_json::Value) -> Option<String> {
    use serde_json::Value::{Null, Object};
    match (was, is) {
        _ if was == is => None,
        (Object(was), Object(is)) => {
            let keys = was.keys().chain(is.keys());
            let of = |key: &String| {
                difference(
                    &format!("{name}.{key}"),
                    was.get(key).unwrap_or(&Null),
                    is.get(key).unwrap_or(&Null),
                )
            };
            keys.into_iter().find_map(of)
        }
        _ => Some(format!("`{name}` was {was} and is {is}")),
    }
}
