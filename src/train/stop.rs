//! Why a run ends before its time.

use std::path::{Path, PathBuf};

use super::data;
use crate::models;
use crate::models::learning::adamw;

/// Why a run ends before its time. Its checkpoints stay, and it can be gone on with once the cause is mended.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The recipe cannot be followed.
    #[error("the recipe cannot be followed")]
    Recipe(#[from] super::Error),
    /// What is done to pictures is out of range.
    #[error("the recipe's augment cannot be followed: {0}")]
    Media(String),
    /// Samples cannot be drawn, written or spoken.
    #[error("the samples cannot be made: {0}")]
    Made(String),
    /// The data cannot be read.
    #[error("the data cannot be used")]
    Data(#[from] data::Error),
    /// The network cannot be made or run.
    #[error("the network cannot be made or run")]
    Model(#[from] models::Error),
    /// A step cannot be made.
    #[error("a step cannot be made")]
    Optimiser(#[from] adamw::Error),
    /// A file of the run cannot be read or written.
    #[error("{} cannot be read or written", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A checkpoint is damaged.
    #[error("the checkpoint {} cannot be gone on from: {why}", path.display())]
    Checkpoint {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The folder has a run of another recipe, or on another machine.
    #[error(
        "{} holds another run: {differs}. Its weights would not be those of an undisturbed run; take another folder",
        path.display()
    )]
    OtherRun {
        /// The folder.
        path: PathBuf,
        /// The first thing that differs.
        differs: String,
    },
    /// The run has diverged, or its data are damaged.
    #[error(
        "the loss of step {step} is {loss}; lower the learning rate or look at its samples: {}",
        places.join(", ")
    )]
    NotFinite {
        /// Which step.
        step: usize,
        /// The loss.
        loss: f32,
        /// Where its samples lie.
        places: Vec<String>,
    },
    /// None of some samples can be used.
    #[error("no sample of a batch can be used, such as {why}")]
    Spoiled {
        /// One of them.
        why: String,
    },
    /// Samples are no longer made ready, because that crashed.
    #[error("reading the samples crashed")]
    Loading,
    /// Threads cannot be started.
    #[error("threads cannot be started: {0}")]
    Threads(String),
}

impl Stop {
    /// For `map_err` where a file or folder is read or written.
    pub(super) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Stop {
        |source| Stop::File { path: path.to_owned(), source }
    }
}

/// An error with what it comes from, for a list of what was left out.
pub(super) fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
