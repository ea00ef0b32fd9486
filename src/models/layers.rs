//! Layers that more than one tower uses.
//!
//! On the CPU, bias and GELU are one pass of our own kernel over the widest activation: candle's exact GELU goes
//! through a scalar f64 `erf`, which costs a tenth of a whole ViT-H forward pass.

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result as TensorResult, Tensor, bail};

use super::Error;
use super::weights::Weights;
use crate::kernels::Kernels;

/// Where a model's tensors come from and go to, with a name prefix.
#[derive(Clone)]
pub(super) struct Scope<'a> {
    pub(super) weights: &'a Weights,
    pub(super) device: &'a Device,
    pub(super) dtype: DType,
    prefix: String,
}

impl<'a> Scope<'a> {
    pub(super) fn new(weights: &'a Weights, device: &'a Device, dtype: DType) -> Self {
        Scope { weights, device, dtype, prefix: String::new() }
    }

    pub(super) fn at(&self, part: impl std::fmt::Display) -> Self {
        let prefix =
            if self.prefix.is_empty() { part.to_string() } else { format!("{}.{part}", self.prefix) };
        Scope { prefix, ..self.clone() }
    }

    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        self.weights.take(&self.at(name).prefix, shape, self.dtype, self.device)
    }

    pub(super) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        self.weights.values(&self.at(name).prefix, shape)
    }
}

/// Layer norm over the last axis, biased variance.
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    pub(super) fn load(scope: &Scope<'_>, width: usize, eps: f32) -> Result<Self, Error> {
        Ok(LayerNorm {
            weight: scope.tensor("weight", &[width])?,
            bias: scope.tensor("bias", &[width])?,
            eps,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        candle_nn::ops::layer_norm(&x.contiguous()?, &self.weight, &self.bias, self.eps)
    }
}

/// `y = x Wᵀ + b`.
pub(super) struct Linear {
    /// `[out, in]`
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Linear { weight, bias }
    }

    pub(super) fn load(scope: &Scope<'_>, out: usize, width: usize, bias: bool) -> Result<Self, Error> {
        let weight = scope.tensor("weight", &[out, width])?;
        Ok(Linear { weight, bias: bias.then(|| scope.tensor("bias", &[out])).transpose()? })
    }

    pub(super) fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let product = self.product(x)?;
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }

    /// The linear layer followed by the exact GELU, `x·½(1 + erf(x/√2))`.
    pub(super) fn forward_gelu(&self, x: &Tensor) -> TensorResult<Tensor> {
        match &self.bias {
            Some(bias) if x.device().is_cpu() && x.dtype() == DType::F32 => {
                let product = self.product(x)?;
                product.inplace_op2(bias, &BiasGelu)?;
                Ok(product)
            }
            _ => self.forward(x)?.gelu_erf(),
        }
    }

    fn product(&self, x: &Tensor) -> TensorResult<Tensor> {
        let (out, width) = self.weight.dims2()?;
        let mut shape = x.dims().to_vec();
        let rows = x.elem_count() / width;
        let product = x.reshape((rows, width))?.matmul(&self.weight.t()?)?; // [rows, out]
        if let Some(last) = shape.last_mut() {
            *last = out;
        }
        product.reshape(shape) // [.., out]
    }
}

/// `x ← gelu(x + bias)` on contiguous f32 rows, in place.
struct BiasGelu;

impl InplaceOp2 for BiasGelu {
    fn name(&self) -> &'static str {
        "bias-gelu"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> TensorResult<()> {
        let (Some((start, end)), Some((b_start, b_end))) =
            (layout.contiguous_offsets(), bias_layout.contiguous_offsets())
        else {
            bail!("bias-gelu needs contiguous tensors")
        };
        let (CpuStorage::F32(x), CpuStorage::F32(bias)) = (x, bias) else {
            bail!("bias-gelu needs f32 tensors")
        };
        let bias = &bias[b_start..b_end];
        x[start..end].chunks_exact_mut(bias.len()).for_each(|row| Kernels::get().bias_gelu(row, bias));
        Ok(())
    }
}
