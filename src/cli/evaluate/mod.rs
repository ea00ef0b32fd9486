//! `evaluate`: what the cache does for answers.
//!
//! | file | its one idea |
//! |---|---|
//! | `nano.rs` | drawn queries, the built-in model, the table by attribute |
//! | `resample.rs` | means, and intervals by resampling |
//! | `said.rs` | a whole answer out of its events |

mod nano;
mod resample;
mod said;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::flags::Given;
use crate::config::Config;

/// Measure what the cache does for answers.
#[derive(Args)]
pub(super) struct EvaluateArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The built-in model, cache off and on, by kind of query.
    Nano(nano::NanoArgs),
}

impl EvaluateArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        match &self.what {
            What::Nano(args) => args.given(),
        }
    }
}

pub(super) fn run(config: &Config, args: &EvaluateArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Nano(args) => nano::run(config, args),
    }
}
