//! The bind network: an embedding of the joint space becomes what the decoder is given.
//!
//! ```text
//! h = proj(x)                                             [B, d] ─► [B, D]
//! h = h + f2ₙ( silu(f1ₙ(normₙ h)) ⊙ f3ₙ(normₙ h) )        n = 1, 2, 3; inner width 4·D
//! ```
//! The current form has RMS norms and no biases inside; the legacy form has layer norms and biases. A file holds the legacy
//! one when it has `image_bind_norm_1.bias`.
//!
//! Source: ImageBind-LLM, arXiv 2309.03905, and its `llama_adapter.py`.

use candle_core::Tensor;

use super::Checkpoint;
use super::saved::Part;
use crate::models::layers::{LayerNorm, Linear, rms_norm, swiglu};
use crate::models::{Error, Placement};

/// Of the RMS norms, whatever the decoder's own is.
const RMS_EPS: f32 = 1e-6;
/// Of the legacy form's layer norms.
const LAYER_EPS: f32 = 1e-5;
const BLOCKS: usize = 3;

/// The network.
pub struct Bind {
    project: Linear,
    blocks: Vec<Block>,
    width: usize,
}

struct Block {
    norm: Norm,
    f1: Linear,
    f2: Linear,
    f3: Linear,
}

enum Norm {
    Rms(Tensor),
    Layer(LayerNorm),
}

impl Bind {
    /// Loads it; `None` when the files have none.
    ///
    /// * `dim`: of the decoder.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`].
    pub fn load(checkpoint: &Checkpoint, dim: usize, placement: &Placement) -> Result<Option<Self>, Error> {
        let Some([_, width]) = checkpoint.matrix_shape("image_bind_proj") else { return Ok(None) };
        let hidden = checkpoint.matrix_shape("image_bind_f1_1").map_or(4 * dim, |[out, _]| out);
        let legacy = checkpoint.shape("image_bind_norm_1.bias").is_some();
        let linear = |name: String, out: usize, width: usize, bias: bool| {
            let bias = bias.then(|| format!("{name}.bias"));
            checkpoint.linear(&format!("{name}.weight"), bias.as_deref(), [out, width], placement)
        };
        let block = |n: usize| {
            let norm = format!("image_bind_norm_{n}");
            let norm = match legacy {
                false => Norm::Rms(checkpoint.tensor(&format!("{norm}.weight"), &[dim], placement)?),
                true => Norm::Layer(checkpoint.layer_norm(&norm, dim, LAYER_EPS, placement)?),
            };
            Ok(Block {
                norm,
                f1: linear(format!("image_bind_f1_{n}"), hidden, dim, legacy)?,
                f2: linear(format!("image_bind_f2_{n}"), dim, hidden, legacy)?,
                f3: linear(format!("image_bind_f3_{n}"), hidden, dim, legacy)?,
            })
        };
        Ok(Some(Bind {
            project: linear("image_bind_proj".into(), dim, width, true)?,
            blocks: (1..=BLOCKS).map(block).collect::<Result<_, Error>>()?,
            width,
        }))
    }

    /// Components of what it takes.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `[B, d]` → `[B, D]`.
    ///
    /// * `observe`: receives `proj`, `norm1`, `block1`, `block2`, `output`.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn forward(&self, x: &Tensor, observe: &mut dyn FnMut(&str, &Tensor)) -> Result<Tensor, Error> {
        let mut h = self.project.forward(x)?; // [B, D]
        observe("proj", &h);
        for (n, block) in self.blocks.iter().enumerate() {
            let normed = match &block.norm {
                Norm::Rms(weight) => rms_norm(&h, weight, RMS_EPS)?,
                Norm::Layer(norm) => norm.forward(&h)?,
            };
            if n == 0 {
                observe("norm1", &normed);
            }
            let gated = swiglu(&block.f1.forward(&normed)?, &block.f3.forward(&normed)?)?;
            h = (h + block.f2.forward(&gated)?)?;
            observe(
                &if n + 1 == self.blocks.len() { "output".into() } else { format!("block{}", n + 1) },
                &h,
            );
        }
        Ok(h)
    }

    /// Its parts by name.
    pub(super) fn parts(&self) -> Vec<(String, Part<'_>)> {
        let linear =
            |name: String, linear| Part::linear(format!("{name}.weight"), format!("{name}.bias"), linear);
        let mut parts = linear("image_bind_proj".to_owned(), &self.project);
        for (block, n) in self.blocks.iter().zip(1..) {
            let norm = format!("image_bind_norm_{n}");
            match &block.norm {
                Norm::Rms(weight) => parts.push((format!("{norm}.weight"), Part::Tensor(weight.clone()))),
                Norm::Layer(layer) => parts.extend(Part::layer_norm(&norm, layer)),
            }
            for (f, part) in [("f1", &block.f1), ("f2", &block.f2), ("f3", &block.f3)] {
                parts.extend(linear(format!("image_bind_{f}_{n}"), part));
            }
        }
        parts
    }
}
