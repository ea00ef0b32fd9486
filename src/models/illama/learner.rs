//! iLLaMA as something that learns: the loss of a batch, and a gradient for every tensor.
//!
//! ```text
//! a batch ─► a share for each lane ─► [`PART`] pictures at a time ─► loss and gradients, summed in their order
//! ```
//! Parts, because what a few pictures leave on the way for the derivatives stays in memory that is used again: of fifty it is two gigabytes
//! that the system clears anew for every step.
//!
//! Loss: `−1/B · Σ targets · log softmax(logits)`. With targets `1 − s + s/C` and `s/C` that is label smoothing.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, Device, Tensor};

use super::network::Keep;
use super::{Config, Illama};
use crate::models::learning::{Gradients, Lanes, Sum, Variables, through_blocks};
use crate::models::weights::Weights;
use crate::models::{Error, Placement};

/// Pictures that go through the network together, on the CPU.
const PART: usize = 8;

/// What one step looks at.
#[derive(Debug, Clone, Copy)]
pub struct Lesson<'a> {
    /// `[B, 3, S, S]`, prepared.
    pub pictures: &'a [f32],
    /// `[B, C]`; each row sums to 1.
    pub targets: &'a [f32],
    /// Of the soft mask, r.
    pub rate: f32,
    /// What of each branch is added, by branch (two in each block) and picture: `[2·depth, B]`. Empty: all as it is.
    pub kept: &'a [f32],
}

/// An iLLaMA whose tensors are variables.
pub struct Learner {
    model: Illama,
    variables: Arc<Variables>,
    device: Device,
    lanes: Lanes,
    /// Whether blocks are computed twice, for the activations of one of them at a time.
    blockwise: bool,
}

impl Learner {
    /// * `variables`: of [`super::initial`] or [`super::continued`], where they are to learn. `threads`: parts of a batch that are worked
    ///   on at a time, on the CPU. `blockwise`: hold the activations of one block at a time; each is computed twice for that.
    ///
    /// # Errors
    /// As [`Illama::load`]; [`Error::Device`] where no thread can be started.
    pub fn new(
        config: &Config,
        variables: Variables,
        threads: usize,
        blockwise: bool,
    ) -> Result<Self, Error> {
        let placement = Placement::learning(variables);
        let model = Illama::load(&Weights::none(), config, &placement)?;
        let lanes = Lanes::start(threads, &placement.device)?;
        let (device, variables) = (placement.device, placement.variables.unwrap_or_default());
        Ok(Learner { model, variables, device, lanes, blockwise })
    }

    /// What learns, by name.
    pub fn variables(&self) -> &Variables {
        &self.variables
    }

    /// The sizes.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// The loss of a batch, and the gradient of every variable.
    ///
    /// # Errors
    /// [`Error::Input`] for a batch whose parts do not fit each other or the model.
    pub fn gradients(&self, lesson: &Lesson<'_>) -> Result<(f32, Gradients), Error> {
        let Config { side, classes, depth, .. } = *self.model.config();
        let (picture, count) = (3 * side * side, lesson.targets.len() / classes);
        let branches = if lesson.kept.is_empty() { 0 } else { 2 * depth };
        let fits = count > 0
            && lesson.targets.len() == count * classes
            && lesson.pictures.len() == count * picture
            && lesson.kept.len() == count * branches;
        if !fits {
            let received = vec![lesson.pictures.len(), lesson.targets.len(), lesson.kept.len()];
            let why =
                format!("pictures [B, 3, {side}, {side}], targets [B, {classes}], kept [{branches}, B]");
            return Err(Error::Input { received, why });
        }
        let of_part = |part: Range<usize>| {
            let pictures = &lesson.pictures[part.start * picture..part.end * picture];
            let targets = &lesson.targets[part.start * classes..part.end * classes];
            let kept: Vec<f32> =
                (0..branches).flat_map(|b| &lesson.kept[b * count..][part.clone()]).copied().collect();
            self.part(pictures, targets, &kept, lesson.rate, 1.0 / count as f64)
        };
        self.lanes.sum(count, &|share| {
            let (mut loss, mut sum) = (0.0, Sum::default());
            let size = if self.device.is_cpu() { PART } else { count };
            for first in share.clone().step_by(size) {
                let (part, gradients) = of_part(first..share.end.min(first + size))?;
                loss += part;
                sum.add(gradients)?;
            }
            Ok((loss, sum.times(1.0)?))
        })
    }

    /// One part of a batch; `share`: what a picture counts.
    fn part(
        &self,
        pictures: &[f32],
        targets: &[f32],
        kept: &[f32],
        rate: f32,
        share: f64,
    ) -> Result<(f32, Gradients), Error> {
        let Config { side, classes, depth, .. } = *self.model.config();
        let count = targets.len() / classes;
        let pictures = Tensor::from_slice(pictures, (count, 3, side, side), &self.device)?;
        let targets = Tensor::from_slice(targets, (count, classes), &self.device)?;
        let mask = self.model.mask(rate)?;
        let keep = |branch: usize, added: Tensor| -> Result<Tensor, Error> {
            if kept.is_empty() {
                return Ok(added);
            }
            let factors = &kept[branch * count..(branch + 1) * count];
            Ok(added.broadcast_mul(&Tensor::from_slice(factors, (count, 1, 1), &self.device)?)?)
        };
        let keep: &Keep<'_> = &keep;
        let block = |i: usize, x: &Tensor, _: Option<&Tensor>| self.model.block(i, x, mask.as_ref(), keep);
        let end = |x: &Tensor| {
            let logs = candle_nn::ops::log_softmax(&self.model.spoken(x)?.logits, D::Minus1)?;
            Ok(((logs * &targets)?.sum_all()? * -share)?)
        };
        let mut sum = Sum::default();
        let x = self.model.embedded(&pictures)?;
        if self.blockwise {
            let mut collect = |found: &_| sum.add_found(&self.variables, found);
            let loss = through_blocks(&x, None, depth, &block, &end, &mut collect)?;
            return Ok((loss, sum.times(1.0)?));
        }
        let x = (0..depth).try_fold(x, |x, i| block(i, &x, None))?;
        let loss = end(&x)?;
        sum.add_found(&self.variables, &loss.backward()?)?;
        Ok((loss.to_scalar()?, sum.times(1.0)?))
    }
}
