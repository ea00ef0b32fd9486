//! The pre-norm transformer all encoders share.
//!
//! ```text
//! x = norm(x)                      vision only
//! x = x + attention(norm_1(x))     × blocks
//! x = x + fc2(gelu(fc1(norm_2(x))))
//! ```
//! There is no norm at the end; the head has it.
//!
//! Source: ImageBind, `imagebind/models/transformer.py`.

use candle_core::{D, Tensor};

use super::config::TrunkConfig;
use super::{LAYER_NORM_EPS, Observe};
use crate::models::Error;
use crate::models::layers::{LayerNorm, Linear, Scope, add_to};

const MLP_RATIO: usize = 4;

pub(super) struct Trunk {
    before: Option<LayerNorm>,
    blocks: Vec<Block>,
    causal: bool,
}

struct Block {
    norm_1: LayerNorm,
    attention: Attention,
    norm_2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

struct Attention {
    heads: usize,
    in_proj: Linear,
    out_proj: Linear,
}

impl Trunk {
    pub(super) fn load(
        scope: &Scope<'_>,
        sizes: TrunkConfig,
        norm_before: bool,
        causal: bool,
    ) -> Result<Self, Error> {
        let width = sizes.width;
        let before = scope.at("pre_transformer_layer.0");
        let before = norm_before.then(|| LayerNorm::load(&before, width, LAYER_NORM_EPS)).transpose()?;
        let blocks = (0..sizes.blocks).map(|i| {
            let scope = scope.at("blocks").at(i);
            let attention = scope.at("attn");
            Ok(Block {
                norm_1: LayerNorm::load(&scope.at("norm_1"), width, LAYER_NORM_EPS)?,
                attention: Attention {
                    heads: sizes.heads,
                    in_proj: Linear::new(
                        &attention.tensor("in_proj_weight", &[3 * width, width])?,
                        Some(attention.tensor("in_proj_bias", &[3 * width])?),
                    )?,
                    out_proj: Linear::load(&attention.at("out_proj"), width, width, true)?,
                },
                norm_2: LayerNorm::load(&scope.at("norm_2"), width, LAYER_NORM_EPS)?,
                fc1: Linear::load(&scope.at("mlp.fc1"), MLP_RATIO * width, width, true)?,
                fc2: Linear::load(&scope.at("mlp.fc2"), width, MLP_RATIO * width, true)?,
            })
        });
        Ok(Trunk { before, blocks: blocks.collect::<Result<_, Error>>()?, causal })
    }

    /// `[B, L, width]` → the same.
    pub(super) fn forward(&self, tokens: &Tensor, observe: Observe<'_>) -> Result<Tensor, Error> {
        let mut x = tokens.clone();
        if let Some(before) = &self.before {
            x = before.forward(&x)?;
            observe("pre_ln", &x);
        }
        let mask = if self.causal { Some(causal_mask(&x)?) } else { None };
        for (i, block) in self.blocks.iter().enumerate() {
            let attended = block.attention.forward(&block.norm_1.forward(&x)?, mask.as_ref())?;
            observe(&format!("attn.{i}"), &attended);
            x = (x + attended)?;
            let hidden = block.fc1.forward_gelu(&block.norm_2.forward(&x)?)?; // [B, L, 4·width]
            x = add_to(block.fc2.forward(&hidden)?, &x)?;
            observe(&format!("block.{i}"), &x);
        }
        Ok(x)
    }
}

impl Attention {
    fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, Error> {
        let (batch, length, width) = x.dims3()?;
        let head = width / self.heads;
        let qkv = self.in_proj.forward(x)?; // [B, L, 3·width]
        let part = |i: usize| {
            qkv.narrow(D::Minus1, i * width, width)?
                .reshape((batch, length, self.heads, head))?
                .transpose(1, 2)? // [B, heads, L, head]
                .contiguous()
        };
        let q = (part(0)? * (head as f64).powf(-0.5))?;
        let scores = q.matmul(&part(1)?.t()?)?; // [B, heads, L, L]
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        let mixed = weights.matmul(&part(2)?)?; // [B, heads, L, head]
        let mixed = mixed.transpose(1, 2)?.reshape((batch, length, width))?; // [B, L, width]
        Ok(self.out_proj.forward(&mixed)?)
    }
}

/// `[L, L]`: 0 up to the diagonal, −∞ above it.
fn causal_mask(x: &Tensor) -> Result<Tensor, Error> {
    let length = x.dim(1)?;
    let mask: Vec<f32> =
        (0..length * length).map(|i| if i % length > i / length { f32::NEG_INFINITY } else { 0.0 }).collect();
    Ok(Tensor::from_vec(mask, (length, length), x.device())?.to_dtype(x.dtype())?)
}
