//! A moving average of the weights, which is tested beside them.

use super::{Values, Variables, state};
use crate::models::Error;

/// The average of every variable over the steps of a run: `a ← d·a + (1−d)·w`.
///
/// Source: timm 0.5.4, `ModelEmaV2`.
pub struct Average {
    decay: f32,
    values: Values,
}

impl Average {
    /// Begins with the variables as they are.
    ///
    /// * `decay`: d, what of the average is kept at a step.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn new(decay: f64, variables: &Variables) -> Result<Self, Error> {
        Ok(Average { decay: decay as f32, values: state(variables)? })
    }

    /// Goes on from an average that was kept.
    ///
    /// # Errors
    /// [`Error::Config`] for one of other tensors.
    pub fn restore(&mut self, values: Values) -> Result<(), Error> {
        let same = values.len() == self.values.len()
            && values.iter().zip(&self.values).all(|(a, b)| (a.0, &a.1.0) == (b.0, &b.1.0));
        if !same {
            return Err(Error::Config("the average that was kept is of other tensors".into()));
        }
        self.values = values;
        Ok(())
    }

    /// Follows the variables after a step.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn follow(&mut self, variables: &Variables) -> Result<(), Error> {
        let (kept, new) = (self.decay, 1.0 - self.decay);
        for (name, variable) in variables {
            let Some((_, average)) = self.values.get_mut(name) else { continue };
            let now: Vec<f32> = variable.flatten_all()?.to_vec1()?;
            average.iter_mut().zip(now).for_each(|(a, w)| *a = kept * *a + new * w);
        }
        Ok(())
    }

    /// It, by the names of the variables.
    pub fn values(&self) -> &Values {
        &self.values
    }
}
