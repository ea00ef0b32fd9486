//! The pre-norm transformer block that CLIP's tower and the visual blocks share: full attention, then a feed-forward layer.
//!
//! ```text
//! x = x + attention(norm_1 x)
//! x = x + fc2( act(fc1(norm_2 x)) )       act: CLIP x·σ(1.702x), visual blocks the exact GELU
//! ```

use candle_core::Tensor;

use super::LAYER_NORM_EPS;
use crate::models::layers::{LayerNorm, Linear, add_to, attend};
use crate::models::llama::checkpoint::Checkpoint;
use crate::models::llama::saved::{Part, matrix_name};
use crate::models::{Error, Placement};

/// What a kind of block calls its parts, and its activation.
pub(super) struct Kind {
    norms: [&'static str; 2],
    /// Weight and bias of each: queries, keys and values together; the way out; both halves of the feed-forward layer.
    linears: [[&'static str; 2]; 4],
    quick: bool,
}

/// CLIP's own.
pub(super) const CLIP: Kind = Kind {
    norms: ["ln_1", "ln_2"],
    linears: [
        ["attn.in_proj_weight", "attn.in_proj_bias"],
        ["attn.out_proj.weight", "attn.out_proj.bias"],
        ["mlp.c_fc.weight", "mlp.c_fc.bias"],
        ["mlp.c_proj.weight", "mlp.c_proj.bias"],
    ],
    quick: true,
};

/// The visual blocks of LLaMA-Adapter V2.
pub(super) const VISUAL: Kind = Kind {
    norms: ["norm1", "norm2"],
    linears: [
        ["attn.qkv.weight", "attn.qkv.bias"],
        ["attn.proj.weight", "attn.proj.bias"],
        ["mlp.fc1.weight", "mlp.fc1.bias"],
        ["mlp.fc2.weight", "mlp.fc2.bias"],
    ],
    quick: false,
};

pub(super) struct Block {
    kind: &'static Kind,
    name: String,
    heads: usize,
    norms: [LayerNorm; 2],
    linears: [Linear; 4],
}

impl Block {
    /// * `name`: what its tensors' names begin with.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        kind: &'static Kind,
        name: String,
        width: usize,
        heads: usize,
        placement: &Placement,
    ) -> Result<Self, Error> {
        let at = |part: &str| format!("{name}.{part}");
        let norm = |i: usize| checkpoint.layer_norm(&at(kind.norms[i]), width, LAYER_NORM_EPS, placement);
        let hidden = checkpoint.matrix_shape(matrix_name(&at(kind.linears[2][0])));
        let hidden = hidden.map_or(4 * width, |[out, _]| out);
        let linear = |i: usize, shape: [usize; 2]| {
            let [weight, bias] = kind.linears[i].map(at);
            checkpoint.linear(&weight, Some(&bias), shape, placement)
        };
        let linears = [
            linear(0, [3 * width, width])?,
            linear(1, [width, width])?,
            linear(2, [hidden, width])?,
            linear(3, [width, hidden])?,
        ];
        let norms = [norm(0)?, norm(1)?];
        Ok(Block { kind, heads, norms, linears, name })
    }

    /// `[B, L, width]` → the same.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        let [qkv, out, fc1, fc2] = &self.linears;
        let attended =
            out.forward(&attend(&qkv.forward(&self.norms[0].forward(x)?)?, self.heads, None, None)?)?;
        let x = add_to(attended, x)?;
        let normed = self.norms[1].forward(&x)?;
        let hidden = match self.kind.quick {
            false => fc1.forward_gelu(&normed)?,
            true => {
                let hidden = fc1.forward(&normed)?;
                (candle_nn::ops::sigmoid(&(&hidden * 1.702)?)? * hidden)?
            }
        };
        Ok(add_to(fc2.forward(&hidden)?, &x)?)
    }

    /// Its parts by the names they are read under.
    pub(super) fn parts(&self) -> impl Iterator<Item = (String, Part<'_>)> {
        let at = |part: &str| format!("{}.{part}", self.name);
        let norms = self
            .kind
            .norms
            .iter()
            .zip(&self.norms)
            .flat_map(move |(name, norm)| Part::layer_norm(&at(name), norm));
        let linears =
            self.kind.linears.iter().zip(&self.linears).flat_map(move |([weight, bias], linear)| {
                Part::linear(format!("{}.{weight}", self.name), format!("{}.{bias}", self.name), linear)
            });
        norms.chain(linears)
    }
}
