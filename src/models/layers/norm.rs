//! Norms over the last axis.

use candle_core::{D, Result as TensorResult, Tensor};

use super::fused;
use super::graph::learns;
use super::scope::Scope;
use crate::models::Error;

/// Layer norm, biased variance.
pub(in crate::models) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    pub(in crate::models) fn load(scope: &Scope<'_>, width: usize, eps: f32) -> Result<Self, Error> {
        Ok(LayerNorm {
            weight: scope.tensor("weight", &[width])?,
            bias: scope.tensor("bias", &[width])?,
            eps,
        })
    }

    pub(in crate::models) fn new(weight: Tensor, bias: Tensor, eps: f32) -> Self {
        LayerNorm { weight, bias, eps }
    }

    /// Weight and bias.
    pub(in crate::models) fn parts(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }

    pub(in crate::models) fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let LayerNorm { weight, bias, eps } = self;
        if !learns(&[x, weight, bias]) {
            return candle_nn::ops::layer_norm(&x.contiguous()?, weight, bias, *eps);
        }
        if fused::applies(&[x, weight, bias]) {
            return fused::layer_norm(x, weight, bias, *eps);
        }
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + f64::from(*eps))?.sqrt()?)?;
        normed.broadcast_mul(weight)?.broadcast_add(bias)
    }
}

/// `x / √(mean x² + eps) ⊙ weight`
pub(in crate::models) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> TensorResult<Tensor> {
    if !learns(&[x, weight]) {
        return candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps);
    }
    if fused::applies(&[x, weight]) {
        return fused::rms_norm(x, weight, eps);
    }
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + f64::from(eps))?.sqrt()?)?.broadcast_mul(weight)
}
