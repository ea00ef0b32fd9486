//! Training: networks learn from data by a recipe, and a run that was stopped goes on as if nothing had happened.
//!
//! ```text
//! files     ─► data ─► samples in the order of an epoch ─► media::augment ─► a batch
//! iteration ─► schedule, staged ─► the learning rate, the decay, the mask's rate, the rate of drop path
//! a batch   ─► mixup ─► mixed pictures, soft targets ─► network (models) ─► gradients ─► models::learning::adamw
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `run.rs` | the loop: read it first |
//! | `task.rs` | what the loop asks of whatever it teaches |
//! | `illama/` | an iLLaMA, or its head alone, that learns to name pictures |
//! | `segmentation/` | an iLLaMA that learns to name pixels |
//! | `adapter/` | an adapter that learns to answer, about pictures or from texts alone |
//! | `language.rs` | a decoder that learns to read |
//! | `pairs/` | encoders that learn to agree |
//! | `texts.rs` | what a decoder learns from: token ids with labels |
//! | `loading.rs` | samples that are read by threads, and those that cannot be |
//! | `recipe.rs` | what a TOML file says of a run |
//! | `checkpoint.rs` | a run on disk |
//! | `journal.rs`, `events.rs` | what it writes down of itself, as JSON and for TensorBoard |
//! | `stop.rs` | why it ends before its time |
//! | `data/` | what is learned from |
//! | `measure/` | what a classifier is worth: accuracy, calibration, shape or texture; how well pixels are named |
//! | `schedule.rs` | values over a run: a straight rise, then half a cosine |
//! | `staged.rs` | rates that end, or begin, at an epoch; how the blocks of a network share one |
//! | `mixup.rs` | two pictures become one, and so do their labels |
//!
//! Iterations are those of the optimiser: with gradients summed over several small batches, one iteration is all of them.

pub mod adapter;
mod checkpoint;
pub mod data;
mod events;
pub mod illama;
mod journal;
pub mod language;
mod loading;
pub mod measure;
pub mod mixup;
pub mod pairs;
mod recipe;
mod run;
pub mod schedule;
pub mod segmentation;
pub mod staged;
mod stop;
pub mod task;
pub mod texts;

pub use loading::Machine;
pub use recipe::{Lesson, Recipe, RunOptions};
pub use run::{News, Outcome, Plan, run};
pub use stop::Stop;

/// Why a recipe or a batch cannot be used. Every variant is the caller's input; trying again does not help.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A number outside its range.
    #[error("{name} is {value}; it must be {allowed}")]
    Parameter {
        /// What the recipe calls it.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would be accepted.
        allowed: &'static str,
    },
    /// A part of the run that is longer than the run.
    #[error(
        "{name} is {received}, but the run has only {epochs} epochs; shorten the one or lengthen the other"
    )]
    TooLong {
        /// What the recipe calls it.
        name: &'static str,
        /// Its length, epochs.
        received: f64,
        /// Epochs of the run.
        epochs: f64,
    },
    /// Settings that contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// Pictures that are not of the shape they are said to have.
    #[error("pictures of shape {shape:?} are {expected} numbers, received {received}")]
    Pictures {
        /// `[B, C, H, W]`.
        shape: [usize; 4],
        /// Numbers of such a batch.
        expected: usize,
        /// Numbers that came.
        received: usize,
    },
    /// A box that reaches over the border of the pictures.
    #[error(
        "the box of rows {rows:?} and columns {columns:?} does not lie in pictures of {height} rows and {width} columns"
    )]
    Outside {
        /// Rows of the box.
        rows: std::ops::Range<usize>,
        /// Its columns.
        columns: std::ops::Range<usize>,
        /// Rows of a picture.
        height: usize,
        /// Its columns.
        width: usize,
    },
    /// Another number of labels than pictures.
    #[error("{expected} pictures came with {received} labels")]
    Labels {
        /// Pictures.
        expected: usize,
        /// Labels.
        received: usize,
    },
    /// A label that is no class.
    #[error(
        "picture {position} has the label {label}, but the classes are 0 to {classes}, the last excluded"
    )]
    Label {
        /// Which picture of the batch.
        position: usize,
        /// Its label.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// A batch in which one picture would have no partner but itself.
    #[error("a batch of {received} pictures cannot be mixed in pairs; make the batch even, or mix nothing")]
    Odd {
        /// Pictures.
        received: usize,
    },
}

/// Refuses a number that is not from 0 on.
fn from_zero(name: &'static str, value: f64) -> Result<f64, Error> {
    within(name, value, value.is_finite() && value >= 0.0, "a finite number, 0 or above")
}

/// Refuses a number for which something does not hold.
fn within(name: &'static str, value: f64, holds: bool, allowed: &'static str) -> Result<f64, Error> {
    if holds { Ok(value) } else { Err(Error::Parameter { name, value: value.to_string(), allowed }) }
}
