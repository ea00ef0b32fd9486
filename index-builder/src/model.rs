//! Which model embeds, and what coarser numbers than f32 cost it.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use viscache::media::{Limits, MediaLimits, Orientation};
use viscache::models::DeviceKind;
use viscache::models::encoder::{self, Encoder, EncoderOptions, Network, Prepared};
use viscache::store::ModelSource;
use viscache::types::{Agreement, Modality, Origin, WeightDtype};

use crate::decode::decode;
use crate::discover::Unit;

/// Pictures that are embedded in f32 too when a build uses coarser numbers.
const COMPARED: usize = 16;

/// Which model.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Network of the checkpoint: `imagebind`, `illama-tiny`, `illama-small`, `illama-base`, `illama-large`, or `illama` for any
    /// size. Without it, ImageBind.
    #[arg(long, value_name = "MODEL", requires = "weights")]
    model: Option<Network>,
    /// Checkpoint (safetensors or .pth); without it, the built-in nano model.
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Sizes of the checkpoint as JSON, when it is not `imagebind_huge` or an iLLaMA with heads of 64.
    #[arg(long, value_name = "FILE", requires = "weights")]
    sizes: Option<PathBuf>,
    /// EXIF orientation: `apply`, or `reference` to ignore it as the published loader does.
    #[arg(long, value_name = "RULE", default_value = "apply")]
    orientation: Orientation,
}

impl ModelArgs {
    /// Where the model is, with absolute paths: a server will look for it from another folder.
    pub fn source(&self) -> anyhow::Result<ModelSource> {
        let absolute =
            |path: &PathBuf| std::path::absolute(path).with_context(|| format!("{}", path.display()));
        Ok(ModelSource {
            network: self.model.map(|network| network.word().to_owned()),
            weights: self.weights.as_ref().map(absolute).transpose()?,
            sizes: self.sizes.as_ref().map(absolute).transpose()?,
            orientation: self.orientation,
        })
    }
}

/// Loads the encoder of pictures.
pub fn open(
    source: &ModelSource,
    (device, dtype): (DeviceKind, Option<WeightDtype>),
    threads: usize,
    limits: Limits,
) -> anyhow::Result<Encoder> {
    let network =
        source.network.as_deref().map(str::parse).transpose().map_err(anyhow::Error::msg::<String>)?;
    let options = EncoderOptions {
        network: network.unwrap_or_default(),
        weights: source.weights.clone(),
        sizes: source.sizes.clone(),
        modalities: Some(vec![Modality::Image]),
        device,
        dtype,
        threads,
        orientation: source.orientation,
        limits: MediaLimits { image: limits, ..MediaLimits::default() },
    };
    Encoder::open(&options).context("the model cannot be loaded")
}

/// Bytes of memory that a model takes: as many as its file. Coarser numbers take less, but are compared with f32 once.
pub fn bytes(source: &ModelSource, dtype: Option<WeightDtype>) -> u64 {
    let file = source.weights.as_ref().and_then(|path| std::fs::metadata(path).ok());
    let full = file.map_or(16 << 20, |about| about.len());
    match dtype {
        // Encoders are not held in the last three; opening one says so.
        None | Some(WeightDtype::F32 | WeightDtype::F16 | WeightDtype::Q4K | WeightDtype::Q6K) => full,
        Some(WeightDtype::Bf16) => full + full / 2,
        Some(WeightDtype::Q8_0) => full + full / 3,
    }
}

/// What coarser numbers than f32 do to the embeddings of some of the very pictures; nothing where they are f32, or no
/// picture can be read.
pub fn compare_with_f32(
    encoder: &Encoder,
    source: &ModelSource,
    threads: usize,
    sample: &[Unit],
) -> anyhow::Result<Option<Agreement>> {
    if encoder.origin().encoder_dtype == Some(WeightDtype::F32) {
        return Ok(None);
    }
    let step = (sample.len() / COMPARED).max(1);
    let read =
        |unit: &Unit| decode(encoder, &unit.place, |_| false).ok().and_then(|picture| picture.prepared);
    let inputs: Vec<Prepared> = sample.iter().step_by(step).filter_map(read).take(COMPARED).collect();
    let exact = open(source, (DeviceKind::Cpu, Some(WeightDtype::F32)), threads, Limits::default())?;
    Ok(encoder::agreement(encoder, &exact, &inputs))
}

/// What an import's user says made the embeddings.
pub fn stated(
    nano: bool,
    args: &ModelArgs,
    threads: usize,
    dim: usize,
) -> anyhow::Result<(Origin, Option<ModelSource>)> {
    if !nano && args.weights.is_none() {
        return Ok((Origin::of("unknown (imported)"), None));
    }
    let source = args.source()?;
    let encoder = open(&source, (DeviceKind::Cpu, None), threads, Limits::default())?;
    if encoder.dim() != dim {
        bail!("the stated model makes embeddings of {} components, these have {dim}", encoder.dim());
    }
    // In which numbers somebody else's program computed is not known.
    let origin = Origin { encoder_dtype: None, ..encoder.origin().clone() };
    Ok((origin, Some(source)))
}
