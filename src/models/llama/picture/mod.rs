//! The way of the multimodal LLaMA-Adapter V2 from a picture to the decoder.
//!
//! ```text
//! picture ─ CLIP, all tokens ─► clip_proj, norm ─ visual_query in front ─► visual blocks ─ first P rows ─► visual_proj, norm ─► [B, P, D]
//! ```
//! Source: LLaMA-Adapter V2, arXiv 2304.15010, and its `llama_adapter.py`.

mod block;
mod clip;

use candle_core::Tensor;

use self::block::{Block, VISUAL};
use self::clip::Tower;
use super::checkpoint::Checkpoint;
use super::config::{ChannelOrder, PictureConfig};
use super::saved::Part;
use crate::models::layers::{LayerNorm, Linear};
use crate::models::{Error, Placement};

/// Of all layer norms on the way from a picture to the decoder.
const LAYER_NORM_EPS: f32 = 1e-5;

/// The networks between picture and decoder.
pub struct Picture {
    clip: Tower,
    clip_proj: Linear,
    clip_proj_norm: LayerNorm,
    /// `[P, W]`
    query: Tensor,
    blocks: Vec<Block>,
    visual_proj: Linear,
    visual_proj_norm: LayerNorm,
    order: ChannelOrder,
}

const CLIP_PROJ: [&str; 2] = ["clip_proj.weight", "clip_proj.bias"];
const VISUAL_PROJ: [&str; 2] = ["visual_proj.weight", "visual_proj.bias"];

impl Picture {
    /// Loads them.
    ///
    /// * `dim`: of the decoder.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::Config`].
    pub fn load(
        checkpoint: &Checkpoint,
        dim: usize,
        config: &PictureConfig,
        placement: &Placement,
    ) -> Result<Self, Error> {
        let shape = checkpoint.shape("visual_query.weight").unwrap_or_default();
        let [rows, width] = shape[..] else {
            return Err(Error::Config(format!("`visual_query` of shape {shape:?} is no table")));
        };
        let heads = config.heads;
        if heads == 0 || width % heads != 0 {
            let why = format!(
                "visual blocks of width {width} cannot have {heads} heads; set v_num_heads in params.json"
            );
            return Err(Error::Config(why));
        }
        let clip = Tower::load(checkpoint, placement)?;
        let name = |i: usize| format!("visual_blocks.{i}");
        let depth =
            (0..).take_while(|&i| checkpoint.shape(&format!("{}.norm1.weight", name(i))).is_some()).count();
        let linear = |[weight, bias]: [&str; 2], out: usize, width: usize| {
            checkpoint.linear(weight, Some(bias), [out, width], placement)
        };
        let norm = |name: &str, width: usize| checkpoint.layer_norm(name, width, LAYER_NORM_EPS, placement);
        Ok(Picture {
            clip_proj: linear(CLIP_PROJ, width, clip.out())?,
            clip_proj_norm: norm("clip_proj_norm", width)?,
            query: checkpoint.tensor("visual_query.weight", &[rows, width], placement)?,
            blocks: (0..depth)
                .map(|i| Block::load(checkpoint, &VISUAL, name(i), width, heads, placement))
                .collect::<Result<_, _>>()?,
            visual_proj: linear(VISUAL_PROJ, dim, width)?,
            visual_proj_norm: norm("visual_proj_norm", dim)?,
            order: config.channel_order,
            clip,
        })
    }

    /// Pixels of a picture's side.
    pub fn side(&self) -> usize {
        self.clip.side()
    }

    /// Order of its channels.
    pub fn channel_order(&self) -> ChannelOrder {
        self.order
    }

    /// Pictures `[B, 3, S, S]`, channels in the model's order and normalised → `[B, P, D]`.
    ///
    /// * `observe`: receives `clip.*`, `clip_proj_norm`, `visual_block.N`, `visual_query_tokens`.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn forward(
        &self,
        pictures: &Tensor,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor, Error> {
        let tokens = self.clip.forward(pictures, observe)?;
        let tokens = self.clip_proj_norm.forward(&self.clip_proj.forward(&tokens)?)?; // [B, 1 + g², W]
        observe("clip_proj_norm", &tokens);
        let (rows, width) = self.query.dims2()?;
        let query = self.query.unsqueeze(0)?.broadcast_as((tokens.dim(0)?, rows, width))?;
        let mut x = Tensor::cat(&[&query, &tokens], 1)?; // [B, P + 1 + g², W]
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x)?;
            observe(&format!("visual_block.{i}"), &x);
        }
        let kept = x.narrow(1, 0, rows)?.contiguous()?;
        let seen = self.visual_proj_norm.forward(&self.visual_proj.forward(&kept)?)?;
        observe("visual_query_tokens", &seen);
        Ok(seen)
    }

    /// Its parts by the names they are read under.
    pub(super) fn parts(&self) -> Vec<(String, Part<'_>)> {
        let mut parts = self.clip.parts();
        parts.push(("visual_query.weight".into(), Part::Tensor(self.query.clone())));
        for ([weight, bias], linear) in [(CLIP_PROJ, &self.clip_proj), (VISUAL_PROJ, &self.visual_proj)] {
            parts.extend(Part::linear(weight.into(), bias.into(), linear));
        }
        parts.extend(Part::layer_norm("clip_proj_norm", &self.clip_proj_norm));
        parts.extend(Part::layer_norm("visual_proj_norm", &self.visual_proj_norm));
        parts.extend(self.blocks.iter().flat_map(Block::parts));
        parts
    }
}
