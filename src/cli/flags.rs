//! Settings that flags override. Those not given come from environment, file or defaults.
//!
//! They come in groups, and a command has those that mean something to it. Before the command, all of them may stand.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::memory::MemoryBudget;

/// Which store, and what of it is kept in memory.
#[derive(Args, Serialize)]
#[command(next_help_heading = "Store")]
pub(super) struct StoreFlags {
    /// Folder of the store; `none` for models alone.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<PathBuf>,
    /// Where stored rows are kept: `auto`, `ram` or `disk`.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<String>,
    /// Memory of all caches and requests, MiB, or `auto`.
    #[arg(long, value_name = "MIB")]
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_budget_mib: Option<MemoryBudget>,
}

/// Which model makes embeddings of files and texts.
#[derive(Args, Serialize)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelFlags {
    /// Model for files and texts: `auto` (the one that made the cache), `nano`, `none`, `illama-tiny`, `illama-small`,
    /// `illama-base`, `illama-large` or `illama` (any size) with --weights, or a checkpoint of ImageBind's.
    #[arg(long, value_name = "MODEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// Checkpoint of that model (safetensors or .pth); without --model, of ImageBind's.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<PathBuf>,
    /// Sizes of the checkpoint as JSON, when it is not `imagebind_huge` or an iLLaMA with heads of 64.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sizes: Option<PathBuf>,
    /// EXIF orientation of pictures: `apply` or `reference`.
    #[arg(long, value_name = "RULE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    orientation: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) device: DeviceFlags,
}

/// Where models run, and on which numbers.
#[derive(Args, Serialize)]
#[command(next_help_heading = "Model")]
pub(super) struct DeviceFlags {
    /// Where the model runs: `cpu` or `cuda`.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// Numbers of the encoders: `f32`, `bf16` (on a card) or `q8_0` (8 bits, on the CPU).
    #[arg(long, value_name = "TYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    encoder_dtype: Option<String>,
    /// Inputs embedded at the same time on the CPU; 0 means one per core.
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) threads: Option<usize>,
}

/// Which decoder answers.
#[derive(Args, Serialize)]
#[command(next_help_heading = "Decoder")]
pub(super) struct DecoderFlags {
    /// Decoder for answers: `auto` (the built-in one, with the built-in model), `nano`, `none`, or where LLaMA's weights are.
    #[arg(long, value_name = "DECODER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    decoder: Option<String>,
    /// Adapter made for that decoder, as ImageBind-LLM's `7B.pth`, or a folder that training wrote.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<PathBuf>,
    /// CLIP ViT-L/14, for an adapter that looks at pictures through it: OpenAI's `ViT-L-14.pt` or safetensors.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    clip: Option<PathBuf>,
    /// The decoder's `tokenizer.model`, when it is not beside it.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    numbers: DecoderNumbers,
}

/// On which numbers the decoder runs.
#[derive(Args, Serialize)]
#[command(next_help_heading = "Decoder")]
pub(super) struct DecoderNumbers {
    /// Numbers of the decoder: `f32`, `f16`, `q8_0`, `q6_k` or `q4_k` on the CPU, `bf16` or `f32` on a card.
    #[arg(long, value_name = "TYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    decoder_dtype: Option<String>,
}

/// All of them, as they may stand before the command.
#[derive(Args, Serialize)]
pub(super) struct AllFlags {
    #[command(flatten)]
    #[serde(flatten)]
    store: StoreFlags,
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) model: ModelFlags,
    #[command(flatten)]
    #[serde(flatten)]
    decoder: DecoderFlags,
}

/// What a command was given, as settings.
#[derive(Serialize, Default)]
pub(super) struct Given<'a> {
    #[serde(flatten)]
    pub(super) store: Option<&'a StoreFlags>,
    #[serde(flatten)]
    pub(super) model: Option<&'a ModelFlags>,
    #[serde(flatten)]
    pub(super) device: Option<&'a DeviceFlags>,
    #[serde(flatten)]
    pub(super) decoder: Option<&'a DecoderFlags>,
    #[serde(flatten)]
    pub(super) numbers: Option<&'a DecoderNumbers>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) log: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) writable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) listen: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub(super) caches: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) default_cache: Option<&'a str>,
}

/// The settings that were given, where what stands behind the command wins.
///
/// # Errors
/// A path that is not UTF-8.
pub(super) fn together(before: &AllFlags, behind: &Given<'_>) -> anyhow::Result<serde_json::Value> {
    let (mut all, behind) = (serde_json::to_value(before)?, serde_json::to_value(behind)?);
    if let (Some(all), serde_json::Value::Object(behind)) = (all.as_object_mut(), behind) {
        all.extend(behind);
    }
    Ok(all)
}
