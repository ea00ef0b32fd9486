//! A linear probe: the head alone learns, from features that were computed once.
//!
//! ```text
//! features [B, E] ─ head ─► logits [B, C] ─► −1/B · Σ targets · log softmax(logits)
//! ```
//! Nothing else is computed in a step, so that it takes no time worth speaking of.

use std::sync::Arc;

use candle_core::{D, Device, Tensor};

use super::Config;
use crate::models::layers::{Linear, Scope};
use crate::models::learning::{Gradients, Sum, Variables};
use crate::models::weights::Weights;
use crate::models::{Error, Placement};

const HEAD: &str = "head";

/// Whether a tensor is of the head.
pub fn is_head(name: &str) -> bool {
    name.strip_prefix(HEAD).is_some_and(|rest| rest.starts_with('.'))
}

/// A head that learns.
pub struct Probe {
    head: Linear,
    variables: Arc<Variables>,
    device: Device,
    width: usize,
    classes: usize,
}

impl Probe {
    /// * `variables`: of the head, by their names.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] for a head without one of them.
    pub fn new(config: &Config, variables: Variables) -> Result<Self, Error> {
        let Config { width, classes, .. } = *config;
        let placement = Placement::learning(variables);
        let head = Linear::load(&Scope::new(&Weights::none(), &placement).at(HEAD), classes, width, true)?;
        let (device, variables) = (placement.device, placement.variables.unwrap_or_default());
        Ok(Probe { head, variables, device, width, classes })
    }

    /// What learns, by name.
    pub fn variables(&self) -> &Variables {
        &self.variables
    }

    /// The loss of a batch and the gradients of the head.
    ///
    /// * `features`: `[B, E]`. `targets`: `[B, C]`; each row sums to 1.
    ///
    /// # Errors
    /// [`Error::Input`] for features or targets that do not fit each other or the head.
    pub fn gradients(&self, features: &[f32], targets: &[f32]) -> Result<(f32, Gradients), Error> {
        let (width, classes) = (self.width, self.classes);
        let count = targets.len() / classes;
        if count == 0 || targets.len() != count * classes || features.len() != count * width {
            let why = format!("features [B, {width}], targets [B, {classes}]");
            return Err(Error::Input { received: vec![features.len(), targets.len()], why });
        }
        let features = Tensor::from_slice(features, (count, width), &self.device)?;
        let targets = Tensor::from_slice(targets, (count, classes), &self.device)?;
        let logs = candle_nn::ops::log_softmax(&self.head.forward(&features)?, D::Minus1)?;
        let loss = ((logs * targets)?.sum_all()? * (-1.0 / count as f64))?;
        let mut sum = Sum::default();
        sum.add_found(&self.variables, &loss.backward()?)?;
        Ok((loss.to_scalar()?, sum.times(1.0)?))
    }

    /// The logits that values of the head give features, row by row: `[B, E]` → `[B, C]`.
    ///
    /// # Errors
    /// As [`Weights::values`]; [`Error::Input`] for features of another width.
    pub fn logits(&self, head: &Weights, features: &[f32]) -> Result<Vec<Vec<f32>>, Error> {
        let (width, classes) = (self.width, self.classes);
        if !features.len().is_multiple_of(width) {
            let why = format!("features [B, {width}]");
            return Err(Error::Input { received: vec![features.len()], why });
        }
        let placement = Placement::cpu();
        let head = Linear::load(&Scope::new(head, &placement).at(HEAD), classes, width, true)?;
        let features = Tensor::from_slice(features, (features.len() / width, width), &Device::Cpu)?;
        Ok(head.forward(&features)?.to_vec2()?)
    }
}
