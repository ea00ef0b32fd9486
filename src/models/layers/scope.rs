//! Where tensors come from, and under which names.

use candle_core::Tensor;

use crate::models::weights::Weights;
use crate::models::{Error, Placement};

/// Where a model's tensors come from and go to, with a name prefix.
#[derive(Clone)]
pub(in crate::models) struct Scope<'a> {
    pub(in crate::models) weights: &'a Weights,
    pub(in crate::models) placement: &'a Placement,
    prefix: String,
}

impl<'a> Scope<'a> {
    pub(in crate::models) fn new(weights: &'a Weights, placement: &'a Placement) -> Self {
        Scope { weights, placement, prefix: String::new() }
    }

    pub(in crate::models) fn at(&self, part: impl std::fmt::Display) -> Self {
        let prefix =
            if self.prefix.is_empty() { part.to_string() } else { format!("{}.{part}", self.prefix) };
        Scope { prefix, ..self.clone() }
    }

    pub(in crate::models) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        if let Some(variable) = self.placement.variable(&self.at(name).prefix) {
            return Ok(variable);
        }
        self.weights.take(&self.at(name).prefix, shape, self.placement.dtype(), &self.placement.device)
    }

    pub(in crate::models) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        self.weights.values(&self.at(name).prefix, shape)
    }
}
