//! `viscache evaluate`: models measured.

mod accuracy;
mod nano;
mod reliability;
mod shape_texture;

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
}

impl EvaluateArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        match &self.what {
            What::Nano(args) => args.given(),
            What::Accuracy(args) => args.given(),
            What::ShapeTexture(args) => args.given(),
        }
    }
}

/// Measures, and prints what was measured.
pub(super) fn run(config: &Config, args: &EvaluateArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Nano(args) => nano::run(config, args),
        What::Accuracy(args) => accuracy::run(config, args),
        What::ShapeTexture(args) => shape_texture::run(config, args),
    }
}
