//! The nano model: a whole small ImageBind, and a LLaMA that was taught to answer about its images, compiled in.
//!
//! It was trained by us on drawn scenes (one object on a background, with captions), by `make nano` (docs/training-nano.md), so demo
//! and tests need no download and no licence but this project's. Pictures of 64×64, texts of up to 48 tokens, embeddings of 128 components. Its
//! text encoder has, by construction, the gap to images that CLIP's has; outside drawn scenes it knows nothing.

use std::path::Path;

use super::Error;
use super::imagebind::Config;
use super::llama::{self, Checkpoint};
use super::weights::Weights;

/// Weights under the checkpoint's names.
const WEIGHTS: &[u8] = include_bytes!("../../assets/nano/imagebind.safetensors");
/// Sizes.
pub const CONFIG: &str = include_str!("../../assets/nano/imagebind.json");
/// A header line and the first 1000 of CLIP's merges.
pub(super) const MERGES: &str = include_str!("../../assets/nano/bpe_merges.txt");

/// The decoder's backbone and its adapter.
const BACKBONE: &[u8] = include_bytes!("../../assets/nano/llama.safetensors");
const ADAPTER: &[u8] = include_bytes!("../../assets/nano/adapter.safetensors");
/// The decoder's sizes, a `params.json`.
pub const PARAMS: &str = include_str!("../../assets/nano/params.json");
/// The decoder's tokenizer, a `tokenizer.model`.
pub const TOKENIZER: &[u8] = include_bytes!("../../assets/nano/tokenizer.model");

/// The name that stands in a cache's origin.
pub const NAME: &str = "nano";

/// The weights.
///
/// # Errors
/// [`Error::Weights`] if the program file is damaged.
pub fn weights() -> Result<Weights, Error> {
    Weights::from_static("the built-in nano model", WEIGHTS)
}

/// The sizes.
///
/// # Errors
/// [`Error::Config`] if the program file is damaged.
pub fn config() -> Result<Config, Error> {
    Config::from_json(CONFIG)
}

/// The decoder's files and sizes.
///
/// # Errors
/// [`Error::Weights`] and [`Error::Config`] if the program file is damaged.
pub fn decoder() -> Result<(Checkpoint, llama::Config), Error> {
    backbone(Some(adapter()?), None)
}

/// The decoder's adapter.
///
/// # Errors
/// [`Error::Weights`] if the program file is damaged.
pub fn adapter() -> Result<Weights, Error> {
    Weights::from_static("the built-in nano adapter", ADAPTER)
}

/// The decoder's backbone, a LLaMA that has read texts and seen nothing, with another adapter or none.
///
/// * `clip`: CLIP's file, for an adapter that looks through it.
///
/// # Errors
/// [`Error::Weights`] and [`Error::Config`] if the program file is damaged, or CLIP's.
pub fn backbone(adapter: Option<Weights>, clip: Option<&Path>) -> Result<(Checkpoint, llama::Config), Error> {
    let config = llama::Config::from_params(PARAMS, llama::Family::ImageBindLlm)?;
    let backbone = Weights::from_static("the built-in nano decoder", BACKBONE)?;
    let checkpoint = Checkpoint::new(vec![backbone], adapter, config.n_heads);
    match clip {
        Some(clip) => Ok((checkpoint.looking_through(Weights::open(clip)?), config)),
        None => Ok((checkpoint, config)),
    }
}
