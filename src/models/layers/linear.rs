//! `x Wᵀ + b`, whatever the weights are held in.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{DType, Result as TensorResult, Tensor, bail};
use candle_nn::Module;

use super::eight_bits::in_8_bits;
use super::fused;
use super::graph::learns;
use super::in_place::{add_and_gelu, add_to};
use super::scope::Scope;
use crate::kernels::q8;
use crate::models::{Error, Placement};
use crate::types::WeightDtype;

/// `y = x Wᵀ + b`.
pub(in crate::models) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    tuning: Option<Box<Tuning>>,
}

/// What adapters tune a layer by, where it is learned or learned through; else it is part of the weights:
/// `y = (x ⊙ s) Wᵀ + b + (x ⊙ s) Aᵀ Bᵀ`.
#[derive(Default)]
pub(in crate::models) struct Tuning {
    /// s, `[in]`
    pub(in crate::models) scale: Option<Tensor>,
    /// A `[rank, in]` and B `[out, rank]`.
    pub(in crate::models) low: Option<[Tensor; 2]>,
}

enum Weight {
    /// `[in, out]`: the product reads it in the order it lies in memory, instead of transposing it in every call.
    Full(Tensor),
    /// `[out, in]`, 32 weights of a row to a scale (ggml's `q8_0`). Activations are rounded to 8 bits as they come.
    Eight(Box<q8::Tiles>),
    /// `[out, in]` in ggml's blocks of 256.
    Blocks(Arc<QTensor>),
    /// `[in, out]` in 16 bits; so are activations, as they come.
    Half(Tensor),
    /// `[out, in]` as it lies in the file, or as a variable: brought into the activations' type when it is used.
    AsGiven(Tensor),
}

/// A matrix in ggml's blocks.
pub(in crate::models) struct Blocks<'a> {
    /// `[out, in]`
    pub(in crate::models) shape: [usize; 2],
    pub(in crate::models) bytes: Cow<'a, [u8]>,
}

/// Weights of a block of ggml's `k` types.
const K_BLOCK: usize = 256;

/// ggml's type for numbers that candle multiplies in its blocks.
fn k_type(numbers: WeightDtype) -> Option<GgmlDType> {
    match numbers {
        WeightDtype::Q4K => Some(GgmlDType::Q4K),
        WeightDtype::Q6K => Some(GgmlDType::Q6K),
        WeightDtype::F32 | WeightDtype::Bf16 | WeightDtype::Q8_0 | WeightDtype::F16 => None,
    }
}

impl Linear {
    /// * `weight`: `[out, in]`, as checkpoints have it.
    pub(in crate::models) fn new(weight: &Tensor, bias: Option<Tensor>) -> TensorResult<Self> {
        Ok(Linear::held(Weight::Full(weight.t()?.contiguous()?), bias))
    }

    fn held(weight: Weight, bias: Option<Tensor>) -> Self {
        Linear { weight, bias, tuning: None }
    }

    /// One that is learned, or learned through.
    ///
    /// * `weight`: `[out, in]`, a variable or not, in whatever floats.
    pub(in crate::models) fn as_given(weight: Tensor, bias: Option<Tensor>, tuning: Tuning) -> Self {
        let tuning = (tuning.scale.is_some() || tuning.low.is_some()).then(|| Box::new(tuning));
        Linear { weight: Weight::AsGiven(weight), bias, tuning }
    }

    pub(in crate::models) fn load(
        scope: &Scope<'_>,
        out: usize,
        width: usize,
        bias: bool,
    ) -> Result<Self, Error> {
        let bias = bias.then(|| scope.tensor("bias", &[out])).transpose()?;
        let weight = scope.tensor("weight", &[out, width])?;
        match scope.placement.variables.is_some() {
            true => Ok(Linear::as_given(weight, bias, Tuning::default())),
            false => Ok(Linear::new(&weight, bias)?),
        }
    }

    /// A convolution whose kernel is as large as its step, as a layer of unfolded patches.
    ///
    /// * `kernel`: its shape as it is stored. `out`, `width`: of the matrix that it is.
    pub(in crate::models) fn of_kernel(
        scope: &Scope<'_>,
        kernel: &[usize],
        [out, width]: [usize; 2],
    ) -> Result<Self, Error> {
        let bias = Some(scope.tensor("bias", &[out])?);
        let weight = scope.tensor("weight", kernel)?.reshape((out, width))?;
        match scope.placement.variables.is_some() {
            true => Ok(Linear::as_given(weight, bias, Tuning::default())),
            false => Ok(Linear::new(&weight, bias)?),
        }
    }

    /// A layer of a transformer block, where nearly all of the work is: in 8 bits where the scope says so. A row that is
    /// no whole number of blocks stays as it is.
    ///
    /// * `names`: of weight and bias.
    pub(in crate::models) fn block(
        scope: &Scope<'_>,
        names: [&str; 2],
        out: usize,
        width: usize,
        bias: bool,
    ) -> Result<Self, Error> {
        let [weight, added] = names;
        let bias = bias.then(|| scope.tensor(added, &[out])).transpose()?;
        if scope.placement.variables.is_some() {
            return Ok(Linear::as_given(scope.tensor(weight, &[out, width])?, bias, Tuning::default()));
        }
        Linear::of(scope.placement, scope.values(weight, &[out, width])?, width, bias)
    }

    /// As [`Linear::block`], of weights that are read: `[out, width]`, row by row.
    pub(in crate::models) fn of(
        placement: &Placement,
        weight: Vec<f32>,
        width: usize,
        bias: Option<Tensor>,
    ) -> Result<Self, Error> {
        if let Some(kind) = k_type(placement.numbers).filter(|_| width > 0 && width.is_multiple_of(K_BLOCK)) {
            let out = weight.len() / width;
            let weight = Tensor::from_vec(weight, (out, width), &candle_core::Device::Cpu)?;
            return Ok(Linear::held(Weight::Blocks(QTensor::quantize(&weight, kind)?.into()), bias));
        }
        if placement.coarse() && width > 0 && width.is_multiple_of(q8::BLOCK) {
            let tiles = q8::Tiles::new(&weight, width, placement.reach);
            return Ok(Linear::held(Weight::Eight(tiles.into()), bias));
        }
        let out = weight.len() / width.max(1);
        let weight = Tensor::from_vec(weight, (out, width), &candle_core::Device::Cpu)?;
        if placement.numbers == WeightDtype::F16 {
            let weight = Weight::Half(weight.t()?.to_dtype(DType::F16)?.contiguous()?);
            return Ok(Linear::held(weight, bias));
        }
        let weight = weight.to_dtype(placement.dtype())?.to_device(&placement.device)?;
        Ok(Linear::new(&weight, bias)?)
    }

    /// Of weights that are in 8 bits already.
    pub(in crate::models) fn ready(weight: q8::Tiles, bias: Option<Tensor>) -> Self {
        Linear::held(Weight::Eight(Box::new(weight)), bias)
    }

    /// Of weights that are in ggml's blocks already, `[out, width]`.
    ///
    /// # Errors
    /// [`Error::Config`] for numbers that are no such blocks, or bytes that do not fit the shape.
    pub(in crate::models) fn of_blocks(
        numbers: WeightDtype,
        bytes: &[u8],
        [out, width]: [usize; 2],
        bias: Option<Tensor>,
    ) -> Result<Self, Error> {
        let kind = k_type(numbers).ok_or_else(|| Error::Config(format!("{numbers} has no blocks")))?;
        let blocks = out.checked_mul(width / K_BLOCK).and_then(|n| n.checked_mul(kind.type_size()));
        if width == 0 || !width.is_multiple_of(K_BLOCK) || blocks != Some(bytes.len()) {
            let why = format!("{} bytes are no matrix [{out}, {width}] in {numbers}", bytes.len());
            return Err(Error::Config(why));
        }
        let storage = QStorage::from_data(bytes.into(), &candle_core::Device::Cpu, kind)?;
        Ok(Linear::held(Weight::Blocks(QTensor::new(storage, (out, width))?.into()), bias))
    }

    /// The weights as ggml's blocks, where they are held so.
    pub(in crate::models) fn blocks(&self) -> TensorResult<Option<Blocks<'_>>> {
        let Weight::Blocks(blocks) = &self.weight else { return Ok(None) };
        let (out, width) = blocks.shape().dims2()?;
        Ok(Some(Blocks { shape: [out, width], bytes: blocks.data()? }))
    }

    /// The weights as they are held, where they are held in 8 bits.
    pub(in crate::models) fn tiles(&self) -> Option<&q8::Tiles> {
        match &self.weight {
            Weight::Eight(tiles) => Some(tiles),
            Weight::Full(_) | Weight::Blocks(_) | Weight::Half(_) | Weight::AsGiven(_) => None,
        }
    }

    /// The weights `[out, in]`, where they are not.
    pub(in crate::models) fn matrix(&self) -> TensorResult<Option<Tensor>> {
        match &self.weight {
            Weight::Eight(_) | Weight::Blocks(_) => Ok(None),
            Weight::Full(weight) | Weight::Half(weight) => Ok(Some(weight.t()?.contiguous()?)),
            Weight::AsGiven(weight) => Ok(Some(weight.clone())),
        }
    }

    /// The same weights without bias and tuning, where those stand beside them: nothing is held twice.
    pub(in crate::models) fn untuned(&self) -> Option<Linear> {
        match &self.weight {
            Weight::AsGiven(weight) => Some(Linear::held(Weight::AsGiven(weight.clone()), None)),
            Weight::Full(_) | Weight::Eight(_) | Weight::Blocks(_) | Weight::Half(_) => None,
        }
    }

    /// The bias.
    pub(in crate::models) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    pub(in crate::models) fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        if let Some(weight) = self.learned(x)? {
            return fused::product(x, &weight, self.bias.as_ref());
        }
        let product = self.product(x)?;
        match &self.bias {
            Some(bias) => add_to(product, bias),
            None => Ok(product),
        }
    }

    /// The linear layer followed by the exact GELU.
    pub(in crate::models) fn forward_gelu(&self, x: &Tensor) -> TensorResult<Tensor> {
        if let Some(weight) = self.learned(x)? {
            return fused::gelu(&fused::product(x, &weight, self.bias.as_ref())?);
        }
        match &self.bias {
            Some(bias) => add_and_gelu(self.product(x)?, bias),
            None => self.product(x)?.gelu_erf(),
        }
    }

    /// Several layers of one input: in 8 bits it is rounded once, and their work is shared out together.
    pub(in crate::models) fn forward_all<const N: usize>(
        layers: [&Linear; N],
        x: &Tensor,
    ) -> TensorResult<[Tensor; N]> {
        let tiles: Vec<&q8::Tiles> = layers.iter().filter_map(|layer| layer.tiles()).collect();
        let products = if tiles.len() == N { in_8_bits(&tiles, x)? } else { Vec::new() };
        let mut products = products.into_iter();
        let done = layers.iter().map(|layer| match (products.next(), &layer.bias) {
            (Some(product), Some(bias)) => add_to(product, bias),
            (Some(product), None) => Ok(product),
            (None, _) => layer.forward(x),
        });
        let done: Vec<Tensor> = done.collect::<TensorResult<_>>()?;
        done.try_into().map_err(|_| candle_core::Error::Msg("a product for each layer".into()))
    }

    /// The weights `[out, in]`, where the layer is fused for learning: of floats as `x` has, and not tuned besides.
    fn learned(&self, x: &Tensor) -> TensorResult<Option<Tensor>> {
        let (Weight::Full(weight) | Weight::AsGiven(weight)) = &self.weight else { return Ok(None) };
        if self.tuning.is_some() || !fused::applies(&[x, weight, self.bias.as_ref().unwrap_or(x)]) {
            return Ok(None);
        }
        match &self.weight {
            Weight::Full(weight) => Ok(Some(weight.t()?)),
            _ => Ok(Some(weight.clone())),
        }
    }

    /// Without the bias.
    fn product(&self, x: &Tensor) -> TensorResult<Tensor> {
        let tuning = self.tuning.as_deref();
        let scale = tuning.and_then(|tuning| tuning.scale.as_ref());
        let scaled = scale.map(|scale| x.broadcast_mul(scale)).transpose()?;
        let x = scaled.as_ref().unwrap_or(x);
        let product = match &self.weight {
            Weight::Full(weight) if fused::applies(&[x, weight]) => fused::product(x, &weight.t()?, None)?,
            Weight::Full(weight) => times(x, weight, weight.dtype())?,
            Weight::Half(weight) => times(x, weight, DType::F16)?,
            Weight::AsGiven(weight) => given(x, weight)?,
            Weight::Eight(weight) => in_8_bits(&[weight], x)?.remove(0),
            Weight::Blocks(_) if learns(&[x]) => {
                bail!(
                    "a product with ggml's blocks has no derivative; load what is learned through in f32 or f16"
                )
            }
            Weight::Blocks(weight) => QMatMul::QTensor(weight.clone()).forward(&x.contiguous()?)?,
        };
        match tuning.and_then(|tuning| tuning.low.as_ref()) {
            Some([a, b]) => product + given(&given(x, a)?, b)?,
            None => Ok(product),
        }
    }
}

/// `[.., in]` · `[out, in]`ᵀ → `[.., out]` in the type of `x`. On a card it is multiplied in bf16, whatever is learned.
fn given(x: &Tensor, weight: &Tensor) -> TensorResult<Tensor> {
    match fused::applies(&[x, weight]) {
        true => fused::product(x, weight, None),
        false => times(x, &weight.t()?, if x.device().is_cuda() { DType::BF16 } else { x.dtype() }),
    }
}

/// `[.., in]` · `[in, out]` → `[.., out]` in the type of `x`, multiplied in `dtype`.
fn times(x: &Tensor, weight: &Tensor, dtype: DType) -> TensorResult<Tensor> {
    let (width, out) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    let rows = x.reshape((x.elem_count() / width.max(1), width))?;
    let product = rows.to_dtype(dtype)?.matmul(&weight.to_dtype(dtype)?)?.to_dtype(x.dtype())?; // [rows, out]
    if let Some(last) = shape.last_mut() {
        *last = out;
    }
    product.reshape(shape)
}
