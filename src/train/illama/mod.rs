//! An iLLaMA that learns to name pictures.
//!
//! ```text
//! all     pictures ─► decode, part of it, mirrored, operations ─► batch ─► mixed in pairs ─► gradients, with the step's mask and drop path
//! head    pictures ─► decode, as for a test ─► features, once ─► batch ─► gradients of the head
//! ```
//! A picture that cannot be decoded is named and left out: another of its batch takes its place. Recipes mix pairs of a batch, so a batch
//! keeps its size.
//!
//! Tests are made with the mask that the last step left behind, as the published program does; a moving average is tested causal.
//!
//! | file | its one idea |
//! |---|---|
//! | `recipe.rs` | what a recipe says |
//! | `pictures.rs` | what both kinds of learning share: pictures are read, and a test is scored |
//! | `task.rs` | all of it learns |
//! | `probe.rs` | the head alone learns |
//!
//! Source: the training program of iLLaMA.

mod pictures;
mod probe;
mod recipe;
mod task;
#[cfg(test)]
mod tests;

pub use probe::ProbeTask;
pub use recipe::{Augment, IllamaRecipe, Learn, ModelOptions, Start};
pub use task::{Batch, IllamaTask};
