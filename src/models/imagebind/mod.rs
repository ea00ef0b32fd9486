//! ImageBind: one space for all senses.
//!
//! ```text
//! picture, clips   [B,(S,)3,(T,)H,W] ─► patches + cls + positions ─► norm ─► trunk ────────► head: cls token ─► unit
//! text             [B,77]            ─► tokens + positions ────────────────► trunk, causal ─► head: end token ┐
//! sound, depth,    [B,(S,)1,H,W]     ─► patches, normed, + cls + positions ─► trunk with  ─► head: cls token  ├► unit × scale
//!   thermal, IMU   [B,6,T]           ─► windows, normed, + cls + positions ─► one key more                    │
//! point cloud      [B,N,3]           ─► a network of its own ([`point`](point/index.html)) ─► head ───────────┘
//! ```
//!
//! All but pictures and videos are scaled by a temperature that is in the checkpoint, so their z is *not* a unit vector; who
//! compares directions normalises. Clips of one input are averaged after the postprocessor and not normalised again.
//!
//! Tensors of encoders that are not asked for are recognised and not read.
//!
//! Source: Girdhar et al., *ImageBind: One Embedding Space To Bind Them All* (arXiv 2305.05665);
//! facebookresearch/ImageBind, `imagebind/models/imagebind_model.py`.

mod config;
mod head;
mod initial;
mod learner;
mod point;
mod stem;
mod trunk;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::layers::Scope;
use super::weights::Weights;
use super::{Error, Placement};
use crate::types::Modality;

use config::Tower;
pub use config::{AudioConfig, Config, ImuConfig, PlaneConfig, PointConfig, TextConfig, VisionConfig};
use head::{Head, Scale};
pub use initial::initial;
pub use learner::{Learner, LogitScale, SCALE, Side};
use point::PointTrunk;
use stem::{ImuStem, PlaneStem, TextStem, VisionStem};
use trunk::{Form, Trunk};

/// Of weight and bias, where they have no names of their own.
const NAMES: [&str; 2] = ["weight", "bias"];

/// Everywhere but in the stems of one channel and in the point clouds' network.
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
    towers: BTreeMap<Tower, Encoder>,
    placement: Placement,
}

/// One tower, loaded.
struct Encoder {
    body: Body,
    head: Head,
}

enum Body {
    Vision(VisionStem, Trunk),
    Text(TextStem, Trunk),
    Plane(PlaneStem, Trunk),
    Imu(ImuStem, Trunk),
    Point(PointTrunk),
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
        placement: &Placement,
    ) -> Result<Self, Error> {
        config.validate(modalities)?;
        let expected = config.tensors(modalities);
        weights
            .refuse_surplus(|name| expected.contains(name) || config::belongs_to_another(name, modalities))?;
        let scope = Scope::new(weights, placement);
        let loaded = config::towers(modalities)
            .map(|tower| Ok((tower, Encoder::load(&scope, config, tower)?)))
            .collect::<Result<_, Error>>()?;
        Ok(ImageBind { config: config.clone(), towers: loaded, placement: placement.clone() })
    }

    /// The sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.placement.device
    }

    /// Whether the encoder of a modality was loaded.
    pub fn has(&self, modality: Modality) -> bool {
        self.towers.contains_key(&Tower::of(modality))
    }

    /// Millions of multiplications in the trunk for one input, or one clip of it.
    pub fn cost(&self, modality: Modality) -> u64 {
        let (tokens, width, blocks) = self.config.size(Tower::of(modality)).unwrap_or((1, 1, 1));
        // Projections and feed-forward take 12·width² a token, scores and mixing 2·tokens·width.
        let token = 12 * width * width + 2 * tokens * width;
        (tokens * token * blocks / 1_000_000).max(1) as u64
    }

    /// Encodes a batch.
    ///
    /// | modality | input |
    /// |---|---|
    /// | image, video | `[B, 3, H, W]`, or clips `[B, S, 3, T, H, W]` with T of 1 to 3 frames (the third is dropped) |
    /// | text | ids `[B, context]`, u32 or i64 |
    /// | audio, depth, thermal | `[B, 1, H, W]`, or clips `[B, S, 1, H, W]` |
    /// | IMU | `[B, channels, T]` |
    /// | point cloud | `[B, N, 3]`; sampling begins at point 0 |
    ///
    /// # Errors
    /// [`Error::NotLoaded`], [`Error::Input`].
    pub fn encode(&self, modality: Modality, input: &Tensor, observe: Observe<'_>) -> Result<Encoded, Error> {
        let starts = vec![0; input.dims().first().copied().unwrap_or(0)];
        self.encode_from(modality, input, &starts, observe)
    }

    /// As [`ImageBind::encode`], for point clouds with the index of the point that each one's sampling begins at.
    ///
    /// # Errors
    /// As [`ImageBind::encode`].
    pub fn encode_from(
        &self,
        modality: Modality,
        input: &Tensor,
        starts: &[usize],
        observe: Observe<'_>,
    ) -> Result<Encoded, Error> {
        let tower = self.towers.get(&Tower::of(modality)).ok_or(Error::NotLoaded(modality))?;
        let refuse = |why: &str| Err(Error::Input { received: input.dims().to_vec(), why: why.into() });
        let placed = |x: &Tensor| self.placement.place(x);
        let (heads, batch, clips) = match &tower.body {
            Body::Vision(stem, trunk) => {
                let (batch, clips, frames) = match *input.dims() {
                    [b, 3, h, w] => (b, 1, input.reshape((b, 3, 1, h, w))?),
                    [b, s, 3, t, h, w] => (b, s, input.reshape((b * s, 3, t, h, w))?),
                    _ => return refuse("vision takes [B, 3, H, W] or, for clips, [B, S, 3, T, H, W]"),
                };
                let tokens = stem.forward(&placed(&frames)?)?; // [B·S, 1+L, width]
                (tower.finish(trunk, &tokens, None, observe)?, batch, clips)
            }
            Body::Text(stem, trunk) => {
                let (batch, tokens, ends) = stem.forward(input)?; // [B, context, width], [B]
                (tower.finish(trunk, &tokens, Some(&ends), observe)?, batch, 1)
            }
            Body::Plane(stem, trunk) => {
                let (batch, clips, planes) = match *input.dims() {
                    [b, 1, _, _] => (b, 1, input.clone()),
                    [b, s, 1, h, w] => (b, s, input.reshape((b * s, 1, h, w))?),
                    _ => return refuse("it takes [B, 1, H, W] or, for clips, [B, S, 1, H, W]"),
                };
                let tokens = stem.forward(&placed(&planes)?)?; // [B·S, 1+L, width]
                (tower.finish(trunk, &tokens, None, observe)?, batch, clips)
            }
            Body::Imu(stem, trunk) => {
                let tokens = stem.forward(&placed(input)?)?; // [B, 1+L, width]
                (tower.finish(trunk, &tokens, None, observe)?, input.dim(0)?, 1)
            }
            Body::Point(trunk) => {
                let feature = trunk.forward(input, starts, &self.placement, observe)?; // [B, P]
                (tower.head.project(&feature)?, input.dim(0)?, 1)
            }
        };
        average_clips(heads, batch, clips, observe)
    }
}

impl Encoder {
    fn load(scope: &Scope<'_>, config: &Config, tower: Tower) -> Result<Self, Error> {
        let word = tower.word();
        let stem = scope.at("modality_preprocessors").at(word);
        let trunk = |form: Form| match config.trunk(tower) {
            Some(sizes) => Trunk::load(&scope.at("modality_trunks").at(word), sizes, form),
            None => Err(missing(word)),
        };
        let extra_key = Form { extra_key: true, ..Form::default() };
        let (body, width) = match tower {
            Tower::Vision => {
                let sizes = config.vision.as_ref().ok_or_else(|| missing(word))?;
                let form = Form { norm_before: true, ..Form::default() };
                (Body::Vision(VisionStem::load(&stem, sizes)?, trunk(form)?), sizes.embed_dim)
            }
            Tower::Text => {
                let sizes = config.text.as_ref().ok_or_else(|| missing(word))?;
                let form = Form { causal: true, ..Form::default() };
                (Body::Text(TextStem::load(&stem, sizes)?, trunk(form)?), sizes.embed_dim)
            }
            Tower::Audio => {
                let sizes = config.audio.as_ref().ok_or_else(|| missing(word))?;
                let (size, width) = ([sizes.num_mel_bins, sizes.target_len], sizes.embed_dim);
                let stem = PlaneStem::load(&stem, "rgbt_stem", size, (sizes.kernel, sizes.stride), width)?;
                (Body::Plane(stem, trunk(extra_key)?), width)
            }
            Tower::Depth | Tower::Thermal => {
                let (sizes, name) = match tower {
                    Tower::Depth => (&config.depth, "depth_stem"),
                    _ => (&config.thermal, "rgbt_stem"),
                };
                let sizes = sizes.as_ref().ok_or_else(|| missing(word))?;
                let (kernel, width) = (sizes.kernel, sizes.embed_dim);
                let stem = PlaneStem::load(&stem, name, sizes.image_size, (kernel, kernel), width)?;
                (Body::Plane(stem, trunk(extra_key)?), width)
            }
            Tower::Imu => {
                let sizes = config.imu.as_ref().ok_or_else(|| missing(word))?;
                (Body::Imu(ImuStem::load(&stem, sizes)?, trunk(extra_key)?), sizes.embed_dim)
            }
            Tower::Point => {
                let sizes = config.point.as_ref().ok_or_else(|| missing(word))?;
                (Body::Point(PointTrunk::load(&scope.at("point_trunk"), sizes)?), sizes.proj_dim)
            }
        };
        let (under, layers) = match tower {
            Tower::Text => ("text.proj", ["0", "1"]),
            Tower::Imu => ("imu", ["0", "3"]), // a dropout is counted before the projection
            _ => (word, ["0", "2"]),
        };
        // What learns, learns by directions: the loss has a scale of its own.
        let scale = match tower {
            Tower::Vision => None,
            _ if scope.placement.variables.is_some() => None,
            _ => {
                let scope = scope.at("modality_postprocessors").at(word).at(1);
                Some(Scale::from_log(scope.values("log_logit_scale", &[])?[0]))
            }
        };
        let head = scope.at("modality_heads").at(under);
        let head = Head::load(&head, layers, width, config.out_embed_dim, scale)?;
        Ok(Encoder { body, head })
    }

    fn finish(
        &self,
        trunk: &Trunk,
        tokens: &Tensor,
        select: Option<&[u32]>,
        observe: Observe<'_>,
    ) -> Result<head::Heads, Error> {
        observe("tokens", tokens);
        self.head.forward(&trunk.forward(tokens, observe)?, select)
    }
}

/// Whether a checkpoint has the encoder of a modality.
pub fn holds(weights: &Weights, modality: Modality) -> bool {
    let head = format!("modality_heads.{}.", Tower::of(modality).word());
    weights.names().any(|name| name.starts_with(&head))
}

fn missing(word: &str) -> Error {
    Error::Config(format!("it has no `{word}` part"))
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
