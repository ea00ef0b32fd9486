//! What the loop asks of whatever it teaches.

use std::path::Path;

use super::Stop;
use super::data::Order;
use crate::models::learning::{Gradients, Values, Variables, adamw, restore, state};

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Iterations of the optimiser that are done.
    pub step: usize,
    /// Which of the small batches of this one, counted from 0.
    pub part: usize,
}

/// Something that was measured.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Measure {
    /// Such as `top1`.
    pub name: String,
    /// Its value.
    pub value: f64,
}

/// A network, its data, and how its gradients are found.
pub trait Task: Sync {
    /// Samples that are ready for the network.
    type Batch: Send;

    /// What learns.
    fn variables(&self) -> &Variables;

    /// How the optimiser moves it.
    fn optimiser(&self) -> adamw::Settings;

    /// Samples of an epoch.
    fn samples(&self) -> u32;

    /// Reads samples and makes them ready. What hangs on chance hangs on the order's seed, epoch and position alone.
    ///
    /// * `order`: before these samples.
    ///
    /// # Errors
    /// [`Stop::Data`] where nothing of them can be used.
    fn prepare(&self, order: Order, samples: &[u32]) -> Result<Self::Batch, Stop>;

    /// What cannot be used of a batch and was left out of it: where it lies, and why.
    fn spoiled<'a>(&self, batch: &'a Self::Batch) -> &'a [String];

    /// Where the samples of a batch lie, for messages.
    fn places(&self, batch: &Self::Batch) -> Vec<String>;

    /// The loss of a batch and the gradients of what learns.
    ///
    /// # Errors
    /// [`Stop::Model`].
    fn gradients(&self, batch: &Self::Batch, at: Moment) -> Result<(f32, Gradients), Stop>;

    /// What the network can do; the first measure tells which weights are best, the highest first. None without data to test by.
    ///
    /// * `values`: of its tensors. `at`: the last step that was made. `average`: whether they are a moving average.
    ///
    /// # Errors
    /// [`Stop::Model`], [`Stop::Data`].
    fn evaluate(&self, values: &Values, at: usize, average: bool) -> Result<Vec<Measure>, Stop>;

    /// Tensors that do not learn and without which those that do are no model: `best/` has both in one file. A checkpoint has those alone
    /// that learn.
    fn others(&self) -> Option<&Values> {
        None
    }

    /// Writes what makes weights a model that the other programs open, beside `weights.safetensors`.
    ///
    /// * `values`: these weights.
    ///
    /// # Errors
    /// [`Stop::File`].
    fn describe(&self, folder: &Path, values: &Values) -> Result<(), Stop>;
}

/// Measures what variables are now or, for a while, a moving average in their place: a network may be too large to be there twice.
///
/// * `values`: of the average, where that is what is measured.
///
/// # Errors
/// Those of `measure`, and [`Stop::Model`] for values of other variables. What was learned is back in either case.
pub(super) fn measured_as(
    variables: &Variables,
    values: Option<&Values>,
    measure: impl FnOnce() -> Result<Vec<Measure>, Stop>,
) -> Result<Vec<Measure>, Stop> {
    let Some(values) = values else { return measure() };
    let now = state(variables)?;
    restore(variables, values, "the moving average")?;
    let measures = measure();
    restore(variables, &now, "what was learned")?;
    measures
}
