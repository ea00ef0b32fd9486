//! The pre-norm transformer all encoders share.
//!
//! ```text
//! x = norm(x)                      vision only
//! x = x + attention(norm_1(x))     × blocks
//! x = x + fc2(gelu(fc1(norm_2(x))))
//! ```
//! There is no norm at the end; the head has it. Audio, depth, thermal and IMU have one more key and value than tokens: learned
//! rows that join *after* the projection and are never masked.
//!
//! Source: ImageBind, `imagebind/models/transformer.py`.

use candle_core::Tensor;

use super::config::TrunkConfig;
use super::{LAYER_NORM_EPS, NAMES, Observe};
use crate::models::Error;
use crate::models::layers::{LayerNorm, Linear, Scope, add_to, attend};

pub(super) const MLP_RATIO: usize = 4;

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
    /// Key and value of no token, `[1, 1, width]` each.
    extra: Option<(Tensor, Tensor)>,
}

/// What the trunks differ in.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Form {
    /// A norm before the first block.
    pub(super) norm_before: bool,
    /// No token sees a later one.
    pub(super) causal: bool,
    /// One more key and value.
    pub(super) extra_key: bool,
}

impl Trunk {
    pub(super) fn load(scope: &Scope<'_>, sizes: TrunkConfig, form: Form) -> Result<Self, Error> {
        let width = sizes.width;
        let before = scope.at("pre_transformer_layer.0");
        let before = form.norm_before.then(|| LayerNorm::load(&before, width, LAYER_NORM_EPS)).transpose()?;
        let blocks = (0..sizes.blocks).map(|i| {
            let scope = scope.at("blocks").at(i);
            let attention = scope.at("attn");
            Ok(Block {
                norm_1: LayerNorm::load(&scope.at("norm_1"), width, LAYER_NORM_EPS)?,
                attention: Attention {
                    heads: sizes.heads,
                    in_proj: Linear::block(
                        &attention,
                        ["in_proj_weight", "in_proj_bias"],
                        3 * width,
                        width,
                        true,
                    )?,
                    out_proj: Linear::block(&attention.at("out_proj"), NAMES, width, width, true)?,
                    extra: match form.extra_key {
                        false => None,
                        true => {
                            let row = |name: &str| attention.tensor(name, &[1, 1, width]);
                            Some((row("bias_k")?, row("bias_v")?))
                        }
                    },
                },
                norm_2: LayerNorm::load(&scope.at("norm_2"), width, LAYER_NORM_EPS)?,
                fc1: Linear::block(&scope.at("mlp.fc1"), NAMES, MLP_RATIO * width, width, true)?,
                fc2: Linear::block(&scope.at("mlp.fc2"), NAMES, width, MLP_RATIO * width, true)?,
            })
        });
        Ok(Trunk { before, blocks: blocks.collect::<Result<_, Error>>()?, causal: form.causal })
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
        let qkv = self.in_proj.forward(x)?; // [B, L, 3·width]
        let extra = self.extra.as_ref().map(|(key, value)| (key, value));
        Ok(self.out_proj.forward(&attend(&qkv, self.heads, mask, extra)?)?)
    }
}

/// `[L, L]`: 0 up to the diagonal, −∞ above it.
fn causal_mask(x: &Tensor) -> Result<Tensor, Error> {
    let length = x.dim(1)?;
    let mask: Vec<f32> =
        (0..length * length).map(|i| if i % length > i / length { f32::NEG_INFINITY } else { 0.0 }).collect();
    Ok(Tensor::from_vec(mask, (length, length), x.device())?.to_dtype(x.dtype())?)
}
