//! `evaluate`: what the cache does for answers, and how good a classifier is.
//!
//! ```text
//! nano   scenes drawn for the purpose, the built-in model                  ─► which attributes are right, off and on
//! data   a list of the user's inputs, questions and answers, any model     ─► what is right, off and on over a grid of settings
//! segmentation   pictures and annotations in ADE20K's layout, a segmenter  ─► how well pixels are named
//! accuracy, shape-texture   a folder of pictures, a classifier             ─► how often it is right, how sure, what it goes by
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `nano.rs` | drawn queries, the table by attribute |
//! | `data.rs` | the command over a list: flags in, exit code out |
//! | `list.rs` | the list: a row for each question, and why others are none |
//! | `kind.rs` | what a file is, where the list does not say |
//! | `grid.rs` | the settings to be compared |
//! | `measure.rs` | each input embedded and searched once, each question answered under every setting |
//! | `judge.rs` | whether an answer is right |
//! | `resample.rs` | means, and intervals by resampling |
//! | `choose.rs` | the best setting, chosen on one half and told on the other |
//! | `summary.rs` | all figures |
//! | `table.rs`, `chart.rs`, `results.rs` | the figures for people, as a picture, row by row |
//! | `accuracy.rs`, `reliability.rs` | a classifier on pictures of known classes, and its plot |
//! | `shape_texture.rs` | a classifier on pictures whose shape and texture are of different things |
//! | `segmentation.rs`, `iou.rs` | a segmenter on annotated pictures, and its plot |
//! | `said.rs` | a whole answer out of its events |

mod accuracy;
mod chart;
mod choose;
mod data;
mod grid;
mod iou;
mod judge;
mod kind;
mod list;
mod measure;
mod nano;
mod reliability;
mod resample;
mod results;
mod said;
mod segmentation;
mod shape_texture;
mod summary;
mod table;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::flags::Given;
use crate::config::Config;

/// Measure what the cache does for answers, or how good a classifier is.
#[derive(Args)]
pub(super) struct EvaluateArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The built-in model, cache off and on, by kind of query.
    Nano(nano::NanoArgs),
    /// A classifier on pictures of known classes: how often it is right, whether it is as sure as it may be, what 8 bits change.
    Accuracy(accuracy::AccuracyArgs),
    /// A classifier on pictures whose shape and texture are of different things: which of the two it goes by.
    ShapeTexture(shape_texture::ShapeTextureArgs),
    /// A segmenter on annotated pictures: how well it names their pixels.
    Segmentation(segmentation::SegmentationArgs),
    /// Your own inputs, questions and answers: cache off and on over a grid of settings.
    Data(Box<data::DataArgs>),
}

impl EvaluateArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        match &self.what {
            What::Nano(args) => args.given(),
            What::Accuracy(args) => args.given(),
            What::ShapeTexture(args) => args.given(),
            What::Segmentation(args) => args.given(),
            What::Data(args) => args.given(),
        }
    }
}

/// Measures, and prints what was measured.
pub(super) fn run(config: &Config, args: &EvaluateArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Nano(args) => nano::run(config, args),
        What::Accuracy(args) => accuracy::run(config, args),
        What::ShapeTexture(args) => shape_texture::run(config, args),
        What::Segmentation(args) => segmentation::run(config, args),
        What::Data(args) => data::run(config, args),
    }
}
