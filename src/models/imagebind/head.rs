//! Select a token, norm, project, normalise.
//!
//! The norm works token by token, so selecting first gives the same for less. The logit scale belongs to the
//! postprocessor and comes from the checkpoint: all embeddings but those of pictures and videos have its length, not length 1.
//!
//! Source: ImageBind, `imagebind/models/imagebind_model.py`, `_create_modality_heads` and `_postprocessors`.

use candle_core::{D, DType, Tensor};

use super::LAYER_NORM_EPS;
use crate::models::Error;
use crate::models::layers::{LayerNorm, Linear, Scope};

/// Norms below it are taken as it, like PyTorch's `normalize`.
const NORMALIZE_EPS: f64 = 1e-12;
/// Largest logit scale.
const MAX_SCALE: f64 = 100.0;

pub(super) struct Head {
    norm: LayerNorm,
    project: Linear,
    scale: Option<Scale>,
}

/// `min(exp(log_logit_scale), 100)`
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale(f64);

/// Both results of a head, f32, `[B, D]`.
pub(super) struct Heads {
    /// Before the postprocessor.
    pub(super) head: Tensor,
    /// After it.
    pub(super) post: Tensor,
}

impl Scale {
    pub(super) fn from_log(log_scale: f32) -> Self {
        Scale(f64::from(log_scale).exp().min(MAX_SCALE))
    }
}

impl Head {
    /// * `layers`: names of the norm and of the projection. `scale`: of the postprocessor, if it has one.
    pub(super) fn load(
        scope: &Scope<'_>,
        layers: [&str; 2],
        width: usize,
        dim: usize,
        scale: Option<Scale>,
    ) -> Result<Self, Error> {
        let norm = LayerNorm::load(&scope.at(layers[0]), width, LAYER_NORM_EPS)?;
        Ok(Head { norm, project: Linear::load(&scope.at(layers[1]), dim, width, false)?, scale })
    }

    /// `[B, L, width]` → `[B, D]`, from token 0 or from the token that `select` names per row.
    pub(super) fn forward(&self, x: &Tensor, select: Option<&[u32]>) -> Result<Heads, Error> {
        let token = match select {
            None => x.narrow(1, 0, 1)?.squeeze(1)?,
            Some(positions) => {
                let (batch, length, width) = x.dims3()?;
                let rows: Vec<u32> = (0..).zip(positions).map(|(b, p)| b * length as u32 + p).collect();
                let rows = Tensor::from_vec(rows, positions.len(), x.device())?;
                x.reshape((batch * length, width))?.index_select(&rows, 0)?
            }
        }; // [B, width]
        self.project(&token)
    }

    /// `[B, width]` → `[B, D]`.
    pub(super) fn project(&self, token: &Tensor) -> Result<Heads, Error> {
        let head = self.project.forward(&self.norm.forward(token)?)?.to_dtype(DType::F32)?; // [B, D]
        let norm = head.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(NORMALIZE_EPS)?; // [B, 1]
        let unit = head.broadcast_div(&norm)?;
        let post = match self.scale {
            Some(Scale(scale)) => (unit * scale)?,
            None => unit,
        };
        Ok(Heads { head, post })
    }
}
