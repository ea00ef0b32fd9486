//! ImageBind: one space for all senses. Here its vision and text encoders.
//!
//! ```text
//! picture [B,3,H,W] ─► stem: patches + cls + positions ─► norm ─► trunk ─► head: cls token ─► unit            z
//! ids     [B,77]    ─► stem: tokens + positions        ─────────► trunk (causal) ─► head: end token ─► unit × scale
//! ```
//!
//! Text is scaled by its learned temperature, so its z is *not* a unit vector; who compares directions normalises.
//! Clips of one input are averaged after the postprocessor and not normalised again.
//!
//! Left out: the other trunks. Tensors of theirs in a checkpoint are recognised and not read.
//!
//! Source: Girdhar et al., *ImageBind: One Embedding Space To Bind Them All* (arXiv 2305.05665);
//! facebookresearch/ImageBind, `imagebind/models/imagebind_model.py`.

mod config;
mod head;
mod stem;
mod trunk;

use candle_core::{DType, Device, Tensor};

use super::Error;
use super::layers::Scope;
use super::weights::Weights;
use crate::types::Modality;

pub use config::{Config, TextConfig, VisionConfig};
use head::{Head, Scale};
use stem::{TextStem, VisionStem};
use trunk::Trunk;

/// Everywhere but in the stems of the modalities that are not here.
const LAYER_NORM_EPS: f32 = 1e-6;

/// Receives named intermediate tensors; parity tests listen, everyone else passes [`ignore`].
pub type Observe<'a> = &'a mut dyn FnMut(&str, &Tensor);

/// An [`Observe`] that does nothing.
pub fn ignore(_: &str, _: &Tensor) {}

/// What an encoder returns for a batch.
pub struct Encoded {
    /// `[B, D]` after the postprocessor, averaged over clips: what the reference returns.
    pub output: Tensor,
    /// `[B, D]` before the postprocessor, averaged over clips: for the image-generation path.
    pub prenorm: Tensor,
}

/// The loaded encoders.
pub struct ImageBind {
    config: Config,
    vision: Option<Vision>,
    text: Option<Text>,
    device: Device,
    dtype: DType,
}

struct Vision {
    stem: VisionStem,
    trunk: Trunk,
    head: Head,
}

struct Text {
    stem: TextStem,
    trunk: Trunk,
    head: Head,
}

impl ImageBind {
    /// Loads the encoders of `modalities`; of the others no byte is read.
    ///
    /// # Errors
    /// [`Error::Config`]; a missing, surplus or misshapen tensor by name.
    pub fn load(
        weights: &Weights,
        config: &Config,
        modalities: &[Modality],
        device: &Device,
        dtype: DType,
    ) -> Result<Self, Error> {
        config.validate(modalities)?;
        let expected = config.tensors(modalities);
        weights
            .refuse_surplus(|name| expected.contains(name) || config::belongs_to_another(name, modalities))?;
        let scope = Scope::new(weights, device, dtype);
        let dim = config.out_embed_dim;
        let wanted = |modality: Modality| modalities.contains(&modality);
        let vision = config.vision.as_ref().filter(|_| wanted(Modality::Image)).map(|sizes| {
            Ok::<_, Error>(Vision {
                stem: VisionStem::load(&scope.at("modality_preprocessors.vision"), sizes)?,
                trunk: Trunk::load(&scope.at("modality_trunks.vision"), sizes.trunk(), true, false)?,
                head: Head::load_vision(&scope.at("modality_heads.vision"), sizes.embed_dim, dim)?,
            })
        });
        let text = config.text.as_ref().filter(|_| wanted(Modality::Text)).map(|sizes| {
            let log_scale = scope.at("modality_postprocessors.text.1").values("log_logit_scale", &[])?;
            Ok::<_, Error>(Text {
                stem: TextStem::load(&scope.at("modality_preprocessors.text"), sizes)?,
                trunk: Trunk::load(&scope.at("modality_trunks.text"), sizes.trunk(), false, true)?,
                head: Head::load_text(
                    &scope.at("modality_heads.text.proj"),
                    sizes.embed_dim,
                    dim,
                    Scale::from_log(log_scale[0]),
                )?,
            })
        });
        let (vision, text) = (vision.transpose()?, text.transpose()?);
        Ok(ImageBind { config: config.clone(), vision, text, device: device.clone(), dtype })
    }

    /// The sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether the encoder of a modality was loaded.
    pub fn has(&self, modality: Modality) -> bool {
        match modality {
            Modality::Image => self.vision.is_some(),
            Modality::Text => self.text.is_some(),
        }
    }

    /// Encodes pictures `[B, 3, H, W]` or clips `[B, S, 3, T, H, W]` with T of 1 to 3 frames (the third is dropped).
    ///
    /// # Errors
    /// [`Error::NotLoaded`], [`Error::Input`].
    pub fn encode_vision(&self, input: &Tensor, observe: Observe<'_>) -> Result<Encoded, Error> {
        let vision = self.vision.as_ref().ok_or(Error::NotLoaded(Modality::Image))?;
        let (batch, clips, frames) = match *input.dims() {
            [b, 3, h, w] => (b, 1, input.reshape((b, 3, 1, h, w))?),
            [b, s, 3, t, h, w] => (b, s, input.reshape((b * s, 3, t, h, w))?),
            _ => {
                let why = "vision takes [B, 3, H, W] or, for clips, [B, S, 3, T, H, W]".into();
                return Err(Error::Input { received: input.dims().to_vec(), why });
            }
        };
        let frames = frames.to_dtype(self.dtype)?.to_device(&self.device)?;
        let tokens = vision.stem.forward(&frames)?; // [B·S, 1+L, width]
        observe("tokens", &tokens);
        let x = vision.trunk.forward(&tokens, observe)?;
        average_clips(vision.head.forward(&x, None)?, batch, clips, observe)
    }

    /// Encodes token ids `[B, context]`, u32 or i64.
    ///
    /// # Errors
    /// [`Error::NotLoaded`], [`Error::Input`].
    pub fn encode_text(&self, ids: &Tensor, observe: Observe<'_>) -> Result<Encoded, Error> {
        let text = self.text.as_ref().ok_or(Error::NotLoaded(Modality::Text))?;
        let (batch, tokens, ends) = text.stem.forward(ids)?; // [B, context, width], [B]
        observe("tokens", &tokens);
        let x = text.trunk.forward(&tokens, observe)?;
        average_clips(text.head.forward(&x, Some(&ends))?, batch, 1, observe)
    }
}

fn average_clips(
    heads: head::Heads,
    batch: usize,
    clips: usize,
    observe: Observe<'_>,
) -> Result<Encoded, Error> {
    observe("head", &heads.head);
    observe("post", &heads.post);
    let mean = |x: Tensor| {
        let dim = x.dim(1)?;
        x.reshape((batch, clips, dim))?.mean(1) // [B, D]
    };
    let (output, prenorm) = (mean(heads.post)?, mean(heads.head)?);
    observe("prenorm", &prenorm);
    observe("output", &output);
    Ok(Encoded { output, prenorm })
}
