//! `convert`: a decoder in 8 bits as one file.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use viscache::models::llama::check_backbone;
use viscache::models::llm::{Llm, LlmOptions};
use viscache::types::WeightDtype;

use super::flags::DecoderFlags;
use crate::app;
use crate::config::Config;

/// Round a decoder and its adapter, once, to 8 bits or what --decoder-dtype says: one file that a server opens by mapping it.
#[derive(Args)]
pub(super) struct ConvertArgs {
    /// The file to write, such as `7B.q8.safetensors`; --decoder, --adapter and --clip name what is read.
    #[arg(long, value_name = "FILE", required_unless_present = "dry_run", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Only tell whether the files fit together, by the names and shapes of their tensors.
    #[arg(long, conflicts_with = "out", help_heading = "Output")]
    dry_run: bool,
    /// What is published to be added to the backbone, as Open-Chinese-LLaMA's: a folder or a file like a backbone's.
    #[arg(long, value_name = "PATH", help_heading = "Decoder")]
    delta: Option<PathBuf>,
    #[command(flatten)]
    decoder: DecoderFlags,
}

impl ConvertArgs {
    /// What to convert.
    pub(super) fn decoder(&self) -> &DecoderFlags {
        &self.decoder
    }
}

pub(super) fn run(config: &Config, args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let backbone = match config.decoder.as_str() {
        "auto" | "none" => bail!("name the decoder to convert by --decoder (`nano` for the built-in one)"),
        "nano" => None,
        path => Some(PathBuf::from(path)),
    };
    let numbers = config.decoder_dtype.unwrap_or(WeightDtype::Q8_0);
    if args.delta.is_some() && backbone.is_none() {
        bail!("--delta is added to a backbone; name that by --decoder");
    }
    let options = app::llm_options(&Config { decoder_dtype: Some(numbers), ..config.clone() }, backbone);
    let options = LlmOptions { delta: args.delta.clone(), ..options };
    let Some(out) = args.out.as_ref().filter(|_| !args.dry_run) else {
        let sizes = Llm::check(&options).context("the files do not make a decoder")?;
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&sizes)?)?;
        return Ok(ExitCode::SUCCESS);
    };
    if let Some(folder) = options.backbone.as_ref().filter(|path| path.is_dir()) {
        check_backbone(folder).context("the decoder is not the one that was published")?;
    }
    let llm = Llm::open(&options).context("the decoder cannot be loaded")?;
    llm.save(out)?;
    let bytes = std::fs::metadata(out).map_or(0, |about| about.len());
    eprintln!("{} written, {} MiB", out.display(), bytes >> 20);
    Ok(ExitCode::SUCCESS)
}
