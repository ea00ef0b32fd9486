//! Gradients by name, and their sum.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use super::Variables;
use crate::models::Error;

/// A gradient for each tensor that had a part in a loss, by the tensor's name.
pub type Gradients = BTreeMap<String, Tensor>;

/// Gradients of several parts of a batch, added in the order in which they come: the same parts give the same bits.
#[derive(Default)]
pub struct Sum(Gradients);

impl Sum {
    /// Adds those of one part.
    ///
    /// # Errors
    /// [`Error::Tensor`] for shapes that differ.
    pub fn add(&mut self, part: Gradients) -> Result<(), Error> {
        for (name, gradient) in part {
            let sum = match self.0.remove(&name) {
                Some(sum) => (sum + gradient)?,
                None => gradient,
            };
            self.0.insert(name, sum);
        }
        Ok(())
    }

    /// Adds what a backward pass found for some variables.
    pub(in crate::models) fn add_found(
        &mut self,
        variables: &Variables,
        found: &GradStore,
    ) -> Result<(), Error> {
        let of = |(name, var): (&String, &candle_core::Var)| {
            Some((name.clone(), found.get(var.as_tensor())?.clone()))
        };
        self.add(variables.iter().filter_map(of).collect())
    }

    /// The sum, each times a factor.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn times(self, factor: f64) -> Result<Gradients, Error> {
        if factor == 1.0 {
            return Ok(self.0);
        }
        let scaled = self.0.into_iter().map(|(name, gradient)| Ok((name, (gradient * factor)?)));
        scaled.collect()
    }
}
