//! `convert`: a decoder in 8 bits as one file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use viscache::models::llm::Llm;
use viscache::types::EncoderDtype;

use crate::app;
use crate::config::Config;

/// Round a decoder and its adapter to 8 bits, once: one file that a server opens by mapping it.
#[derive(Args)]
pub(super) struct ConvertArgs {
    /// The file to write, such as `7B.q8.safetensors`; --decoder and --adapter name what is read.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn run(config: &Config, args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let backbone = match config.decoder.as_str() {
        "auto" | "none" => bail!("name the decoder to convert by --decoder (`nano` for the built-in one)"),
        "nano" => None,
        path => Some(PathBuf::from(path)),
    };
    let options =
        app::llm_options(&Config { decoder_dtype: Some(EncoderDtype::Q8_0), ..config.clone() }, backbone);
    let llm = Llm::open(&options).context("the decoder cannot be loaded")?;
    llm.save(&args.out)?;
    let bytes = std::fs::metadata(&args.out).map_or(0, |about| about.len());
    eprintln!("{} written, {} MiB", args.out.display(), bytes >> 20);
    Ok(ExitCode::SUCCESS)
}
