//! Layers that more than one tower uses.
//!
//! Bias and GELU are one pass of our own over the widest activation, and sums are made in place. On the CPU candle's exact
//! GELU goes through a scalar f64 `erf`, which costs a tenth of a whole ViT-H forward pass; on a card every pass over
//! memory that is saved counts ([`super::cuda`]).

use std::borrow::Cow;
use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{
    CpuStorage, D, DType, InplaceOp1, InplaceOp2, Layout, Result as TensorResult, Storage, Tensor, bail,
};
use candle_nn::Module;
use rayon::prelude::*;

use super::weights::Weights;
use super::{Error, Placement};
use crate::kernels::{Kernels, q8};
use crate::types::WeightDtype;

/// Where a model's tensors come from and go to, with a name prefix.
#[derive(Clone)]
pub(super) struct Scope<'a> {
    pub(super) weights: &'a Weights,
    pub(super) placement: &'a Placement,
    prefix: String,
}

impl<'a> Scope<'a> {
    pub(super) fn new(weights: &'a Weights, placement: &'a Placement) -> Self {
        Scope { weights, placement, prefix: String::new() }
    }

    pub(super) fn at(&self, part: impl std::fmt::Display) -> Self {
        let prefix =
            if self.prefix.is_empty() { part.to_string() } else { format!("{}.{part}", self.prefix) };
        Scope { prefix, ..self.clone() }
    }

    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        self.weights.take(&self.at(name).prefix, shape, self.placement.dtype(), &self.placement.device)
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

    pub(super) fn new(weight: Tensor, bias: Tensor, eps: f32) -> Self {
        LayerNorm { weight, bias, eps }
    }

    /// Weight and bias.
    pub(super) fn parts(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }

    pub(super) fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        candle_nn::ops::layer_norm(&x.contiguous()?, &self.weight, &self.bias, self.eps)
    }
}

/// `y = x Wᵀ + b`.
pub(super) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
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
}

/// A matrix in ggml's blocks.
pub(super) struct Blocks<'a> {
    /// `[out, in]`
    pub(super) shape: [usize; 2],
    pub(super) bytes: Cow<'a, [u8]>,
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
    pub(super) fn new(weight: &Tensor, bias: Option<Tensor>) -> TensorResult<Self> {
        Ok(Linear { weight: Weight::Full(weight.t()?.contiguous()?), bias })
    }

    pub(super) fn load(scope: &Scope<'_>, out: usize, width: usize, bias: bool) -> Result<Self, Error> {
        let bias = bias.then(|| scope.tensor("bias", &[out])).transpose()?;
        Ok(Linear::new(&scope.tensor("weight", &[out, width])?, bias)?)
    }

    /// A layer of a transformer block, where nearly all of the work is: in 8 bits where the scope says so. A row that is
    /// no whole number of blocks stays as it is.
    ///
    /// * `names`: of weight and bias.
    pub(super) fn block(
        scope: &Scope<'_>,
        names: [&str; 2],
        out: usize,
        width: usize,
        bias: bool,
    ) -> Result<Self, Error> {
        let [weight, added] = names;
        let bias = bias.then(|| scope.tensor(added, &[out])).transpose()?;
        Linear::of(scope.placement, scope.values(weight, &[out, width])?, width, bias)
    }

    /// As [`Linear::block`], of weights that are read: `[out, width]`, row by row.
    pub(super) fn of(
        placement: &Placement,
        weight: Vec<f32>,
        width: usize,
        bias: Option<Tensor>,
    ) -> Result<Self, Error> {
        if let Some(kind) = k_type(placement.numbers).filter(|_| width > 0 && width.is_multiple_of(K_BLOCK)) {
            let out = weight.len() / width;
            let weight = Tensor::from_vec(weight, (out, width), &candle_core::Device::Cpu)?;
            return Ok(Linear { weight: Weight::Blocks(QTensor::quantize(&weight, kind)?.into()), bias });
        }
        if placement.coarse() && width > 0 && width.is_multiple_of(q8::BLOCK) {
            return Ok(Linear {
                weight: Weight::Eight(q8::Tiles::new(&weight, width, placement.reach).into()),
                bias,
            });
        }
        let out = weight.len() / width.max(1);
        let weight = Tensor::from_vec(weight, (out, width), &candle_core::Device::Cpu)?;
        if placement.numbers == WeightDtype::F16 {
            let weight = Weight::Half(weight.t()?.to_dtype(DType::F16)?.contiguous()?);
            return Ok(Linear { weight, bias });
        }
        let weight = weight.to_dtype(placement.dtype())?.to_device(&placement.device)?;
        Ok(Linear::new(&weight, bias)?)
    }

    /// Of weights that are in 8 bits already.
    pub(super) fn ready(weight: q8::Tiles, bias: Option<Tensor>) -> Self {
        Linear { weight: Weight::Eight(Box::new(weight)), bias }
    }

    /// Of weights that are in ggml's blocks already, `[out, width]`.
    ///
    /// # Errors
    /// [`Error::Config`] for numbers that are no such blocks, or bytes that do not fit the shape.
    pub(super) fn of_blocks(
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
        Ok(Linear { weight: Weight::Blocks(QTensor::new(storage, (out, width))?.into()), bias })
    }

    /// The weights as ggml's blocks, where they are held so.
    pub(super) fn blocks(&self) -> TensorResult<Option<Blocks<'_>>> {
        let Weight::Blocks(blocks) = &self.weight else { return Ok(None) };
        let (out, width) = blocks.shape().dims2()?;
        Ok(Some(Blocks { shape: [out, width], bytes: blocks.data()? }))
    }

    /// The weights as they are held, where they are held in 8 bits.
    pub(super) fn tiles(&self) -> Option<&q8::Tiles> {
        match &self.weight {
            Weight::Eight(tiles) => Some(tiles),
            Weight::Full(_) | Weight::Blocks(_) | Weight::Half(_) => None,
        }
    }

    /// The weights `[out, in]`, where they are not.
    pub(super) fn matrix(&self) -> TensorResult<Option<Tensor>> {
        match &self.weight {
            Weight::Eight(_) | Weight::Blocks(_) => Ok(None),
            Weight::Full(weight) | Weight::Half(weight) => Ok(Some(weight.t()?.contiguous()?)),
        }
    }

    /// The bias.
    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    pub(super) fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let product = self.product(x)?;
        match &self.bias {
            Some(bias) => add_to(product, bias),
            None => Ok(product),
        }
    }

    /// The linear layer followed by the exact GELU, `x·½(1 + erf(x/√2))`.
    pub(super) fn forward_gelu(&self, x: &Tensor) -> TensorResult<Tensor> {
        match &self.bias {
            Some(bias) if in_place(x) => {
                let product = self.product(x)?;
                product.inplace_op2(bias, &BiasGelu)?;
                Ok(product)
            }
            _ => self.forward(x)?.gelu_erf(),
        }
    }

    /// Several layers of one input: in 8 bits it is rounded once, and their work is shared out together.
    pub(super) fn forward_all<const N: usize>(layers: [&Linear; N], x: &Tensor) -> TensorResult<[Tensor; N]> {
        let tiles: Vec<&q8::Tiles> = layers.iter().filter_map(|layer| layer.tiles()).collect();
        let products: Vec<Tensor> = match tiles.len() == N {
            true => in_8_bits(&tiles, x)?,
            false => layers.iter().map(|layer| layer.product(x)).collect::<TensorResult<_>>()?,
        };
        let done = layers.iter().zip(products).map(|(layer, product)| match &layer.bias {
            Some(bias) => add_to(product, bias),
            None => Ok(product),
        });
        let done: Vec<Tensor> = done.collect::<TensorResult<_>>()?;
        done.try_into().map_err(|_| candle_core::Error::Msg("a product for each layer".into()))
    }

    fn product(&self, x: &Tensor) -> TensorResult<Tensor> {
        let weight = match &self.weight {
            Weight::Full(weight) => weight,
            Weight::Eight(weight) => return Ok(in_8_bits(&[weight], x)?.remove(0)),
            Weight::Blocks(weight) => {
                return QMatMul::QTensor(weight.clone()).forward(&x.contiguous()?);
            }
            Weight::Half(weight) => weight,
        };
        let (width, out) = weight.dims2()?;
        let mut shape = x.dims().to_vec();
        let rows = x.elem_count() / width;
        let x = x.reshape((rows, width))?;
        let product = match weight.dtype() == x.dtype() {
            true => x.matmul(weight)?, // [rows, out]
            false => x.to_dtype(weight.dtype())?.matmul(weight)?.to_dtype(x.dtype())?,
        };
        if let Some(last) = shape.last_mut() {
            *last = out;
        }
        product.reshape(shape) // [.., out]
    }
}

/// Weights of a product that are worth handing to another thread.
const SHARE: usize = 1 << 18;
/// Shares of a thread: one that is held up does not hold up the others for long.
const SHARES: usize = 4;

/// `x Wᵀ` for several matrices of 8 bits, `[.., out]` each, on all threads of the pool that asks: an encoder's lane has one.
fn in_8_bits(matrices: &[&q8::Tiles], x: &Tensor) -> TensorResult<Vec<Tensor>> {
    thread_local! {
        static ROWS: Cell<q8::Rows> = Cell::default();
    }
    let x = x.contiguous()?;
    let width = x.dim(D::Minus1)?;
    let reach = matrices.first().map(|matrix| matrix.reach()).unwrap_or_default();
    if let Some(other) = matrices.iter().find(|matrix| matrix.width() != width) {
        bail!("activations of shape {:?} do not fit weights of {} columns", x.dims(), other.width());
    }
    // Taken, not borrowed: while this thread waits for others it may be given another product.
    let mut rows = ROWS.take();
    {
        let (storage, layout) = x.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) =
            (&*storage, layout.contiguous_offsets())
        else {
            bail!("a product of 8 bits needs f32 activations on the processor");
        };
        Kernels::get().quantize_rows(&values[start..end], width, reach, &mut rows);
    }
    let products = multiply(&rows, matrices);
    ROWS.set(rows);
    let shaped = products.into_iter().zip(matrices).map(|(product, matrix)| {
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = matrix.out();
        }
        Tensor::from_vec(product, shape, x.device())
    });
    shaped.collect()
}

/// The products of rows and each matrix.
fn multiply(rows: &q8::Rows, matrices: &[&q8::Tiles]) -> Vec<Vec<f32>> {
    let threads = rayon::current_num_threads();
    let mut products: Vec<Vec<f32>> =
        matrices.iter().map(|matrix| vec![0.0; rows.count() * matrix.out()]).collect();
    let all: usize = matrices.iter().map(|matrix| matrix.out() * matrix.width()).sum();
    let share = SHARE.max(all / (SHARES * threads));
    if all <= share || threads == 1 {
        for (matrix, product) in matrices.iter().zip(&mut products) {
            Kernels::get().matmul_q8(rows, matrix, 0..matrix.tiles(), product);
        }
        return products;
    }
    let parts = matrices.iter().enumerate().flat_map(|(i, matrix)| {
        let shares = (matrix.out() * matrix.width()).div_ceil(share).max(1);
        let step = matrix.tiles().div_ceil(shares).max(1);
        (0..matrix.tiles()).step_by(step).map(move |start| (i, start..matrix.tiles().min(start + step)))
    });
    let parts: Vec<(usize, Range<usize>)> = parts.collect();
    let done: Vec<Vec<f32>> = parts
        .par_iter()
        .map(|(i, tiles)| {
            let mut part = vec![0.0; rows.count() * matrices[*i].columns(tiles)];
            Kernels::get().matmul_q8(rows, matrices[*i], tiles.clone(), &mut part);
            part
        })
        .collect();
    let mut at = vec![0; matrices.len()];
    for ((i, tiles), part) in parts.into_iter().zip(done) {
        let (out, columns) = (matrices[i].out(), matrices[i].columns(&tiles));
        for (row, part) in products[i].chunks_exact_mut(out).zip(part.chunks_exact(columns)) {
            row[at[i]..at[i] + columns].copy_from_slice(part);
        }
        at[i] += columns;
    }
    products
}

/// Attention of all heads over projected rows, `softmax(q·kᵀ/√(width/heads))·v`: `[B, L, 3·width]` → `[B, L, width]`.
///
/// * `mask`: added to the scores, `[L, L]`. `extra`: one more key and value, `[1, 1, width]` each.
pub(super) fn attend(
    qkv: &Tensor,
    heads: usize,
    mask: Option<&Tensor>,
    extra: Option<(&Tensor, &Tensor)>,
) -> TensorResult<Tensor> {
    let (batch, length, width) = qkv.dims3()?;
    let (width, head) = (width / 3, width / 3 / heads);
    let part = |i: usize, extra: Option<&Tensor>| {
        let rows = qkv.narrow(D::Minus1, i * width, width)?;
        let rows = match extra {
            Some(row) => Tensor::cat(&[&rows, &row.broadcast_as((batch, 1, width))?], 1)?,
            None => rows,
        };
        let length = rows.dim(1)?;
        rows.reshape((batch, length, heads, head))?.transpose(1, 2)?.contiguous() // [B, heads, L, head]
    };
    let q = (part(0, None)? * (head as f64).powf(-0.5))?;
    let scores = q.matmul(&part(1, extra.map(|e| e.0))?.t()?)?; // [B, heads, L, L]
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    let mixed = softmax(scores)?.matmul(&part(2, extra.map(|e| e.1))?)?; // [B, heads, L, head]
    mixed.transpose(1, 2)?.reshape((batch, length, width))
}

/// `x + term`, a term of the same shape or of one row; in the memory of `x` where there is a pass for it. Nothing else may
/// hold `x`.
pub(super) fn add_to(x: Tensor, term: &Tensor) -> TensorResult<Tensor> {
    if in_place(&x) {
        x.inplace_op2(term, &Add)?;
        Ok(x)
    } else {
        x.broadcast_add(term)
    }
}

/// The softmax over the last axis, in the memory of `x` on the processor. Nothing else may hold `x`.
pub(super) fn softmax(x: Tensor) -> TensorResult<Tensor> {
    if x.device().is_cpu() && x.dtype() == DType::F32 {
        x.inplace_op1(&Softmax { width: x.dim(D::Minus1)? })?;
        Ok(x)
    } else {
        candle_nn::ops::softmax_last_dim(&x)
    }
}

/// Whether our own passes over a tensor's memory apply.
fn in_place(x: &Tensor) -> bool {
    if x.device().is_cpu() {
        return x.dtype() == DType::F32;
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let rows = x.dims().last().is_some_and(|&width| super::cuda::takes(width));
        return rows && matches!(x.dtype(), DType::F32 | DType::BF16);
    }
    false
}

/// The pass of a card with the same result.
#[cfg(feature = "cuda")]
macro_rules! on_a_card {
    ($pass:ident) => {
        fn cuda_fwd(
            &self,
            x: &mut candle_core::CudaStorage,
            layout: &Layout,
            term: &candle_core::CudaStorage,
            term_layout: &Layout,
        ) -> TensorResult<()> {
            super::cuda::run(super::cuda::Pass::$pass, x, layout, term, term_layout)
        }
    };
}

/// `x ← x + term`, row by row.
struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add-in-place"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        layout: &Layout,
        term: &CpuStorage,
        term_layout: &Layout,
    ) -> TensorResult<()> {
        let (x, term) = rows(x, layout, term, term_layout)?;
        for row in x.chunks_exact_mut(term.len()) {
            row.iter_mut().zip(term).for_each(|(x, &term)| *x += term);
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    on_a_card!(Add);
}

/// `x ← softmax(x)`, row by row.
struct Softmax {
    width: usize,
}

impl InplaceOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax-in-place"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> TensorResult<()> {
        let (Some((start, end)), CpuStorage::F32(x)) = (layout.contiguous_offsets(), x) else {
            bail!("work in place needs contiguous f32 tensors");
        };
        let kernels = Kernels::get();
        x[start..end].chunks_exact_mut(self.width.max(1)).for_each(|row| kernels.softmax(row));
        Ok(())
    }
}

/// `x ← gelu(x + bias)`, row by row.
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
        let (x, bias) = rows(x, layout, bias, bias_layout)?;
        x.chunks_exact_mut(bias.len()).for_each(|row| Kernels::get().bias_gelu(row, bias));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    on_a_card!(BiasGelu);
}

/// The memory of a contiguous f32 tensor and of the row (or tensor) that goes into each of its rows.
fn rows<'a>(
    x: &'a mut CpuStorage,
    layout: &Layout,
    row: &'a CpuStorage,
    row_layout: &Layout,
) -> TensorResult<(&'a mut [f32], &'a [f32])> {
    match (layout.contiguous_offsets(), row_layout.contiguous_offsets(), x, row) {
        (Some((start, end)), Some((from, to)), CpuStorage::F32(x), CpuStorage::F32(row)) if to > from => {
            Ok((&mut x[start..end], &row[from..to]))
        }
        _ => bail!("work in place needs contiguous f32 tensors"),
    }
}
