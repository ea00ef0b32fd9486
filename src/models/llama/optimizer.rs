//! Steps of training as the published programs take them.
//!
//! AdamW (arXiv 1711.05101) with β = (0.9, 0.95), ε = 1e-8, without clipping. What has one axis is not decayed, nor is what is
//! called a bias; gates have four axes and prompts two, and are. A tensor without a gradient is left alone, decay included.
//!
//! The rate rises in a straight line and falls along half a cosine ([`Schedule`]).
//!
//! Source: the training programs of ImageBind-LLM and LLaMA-Adapter V2.

use candle_core::Var;
use candle_core::backprop::GradStore;
use candle_nn::{AdamW, Optimizer as _, ParamsAdamW};

use super::learn::{Batch, Learner};
use crate::models::Error;

/// AdamW over the variables of one [`Learner`]. Joint training has one for each of its groups.
pub struct Optimizer {
    decayed: AdamW,
    plain: AdamW,
}

impl Optimizer {
    /// At its first step.
    ///
    /// # Errors
    /// [`Error::Config`] for a decay that is negative or no number.
    pub fn new(learner: &Learner, weight_decay: f64) -> Result<Self, Error> {
        if !(weight_decay.is_finite() && weight_decay >= 0.0) {
            return Err(Error::Config(format!("weight_decay is {weight_decay}; it is a number from 0 on")));
        }
        let params = ParamsAdamW { lr: 0.0, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay };
        let (mut decayed, mut plain) = (Vec::new(), Vec::new());
        for (name, var) in learner.variables() {
            let exempt = var.rank() == 1 || name.ends_with(".bias");
            if exempt { &mut plain } else { &mut decayed }.push(Var::clone(var));
        }
        Ok(Optimizer {
            decayed: AdamW::new(decayed, params.clone())?,
            plain: AdamW::new(plain, ParamsAdamW { weight_decay: 0.0, ..params })?,
        })
    }

    /// Moves the learner's variables against the gradient of a batch, and tells the loss before that.
    ///
    /// # Errors
    /// As [`Learner::gradients`]; [`Error::Config`] for a rate or a loss that is not finite, which nothing may be moved by.
    pub fn step(&mut self, learner: &Learner, batch: &Batch<'_>, rate: f64) -> Result<f32, Error> {
        if !(rate.is_finite() && rate >= 0.0) {
            return Err(Error::Config(format!("the learning rate is {rate}; it is a number from 0 on")));
        }
        let (loss, gradients): (f32, GradStore) = learner.backward(batch)?;
        if !loss.is_finite() {
            return Err(Error::Config(format!("the loss of a batch is {loss}; nothing was moved by it")));
        }
        for part in [&mut self.decayed, &mut self.plain] {
            part.set_learning_rate(rate);
            part.step(&gradients)?;
        }
        Ok(loss)
    }
}

/// Learning rates over the epochs of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest, where the warm-up ends.
    pub peak: f64,
    /// The lowest, where the run ends.
    pub floor: f64,
    /// Epochs of warm-up.
    pub warmup: f64,
    /// Epochs of the run, with those.
    pub epochs: f64,
}

impl Schedule {
    /// The rate after so many epochs, fractions counted.
    pub fn rate(&self, epoch: f64) -> f64 {
        if epoch < self.warmup {
            return self.peak * epoch / self.warmup;
        }
        let part = (epoch - self.warmup) / (self.epochs - self.warmup);
        self.floor + (self.peak - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * part).cos())
    }
}
