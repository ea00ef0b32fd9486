//! What the operations share: numbers of tensors, sums of rows.

use candle_core::{CpuStorage, D, DType, Layout, Result as TensorResult, Shape, Storage, Tensor, bail};

use super::super::graph::learns;

/// Lanes of a sum.
const LANES: usize = 16;

/// Whether these operations are for such operands: f32 on the CPU, of which something is learned.
pub(in crate::models) fn applies(operands: &[&Tensor]) -> bool {
    let fits = |operand: &&Tensor| operand.device().is_cpu() && operand.dtype() == DType::F32;
    learns(operands) && operands.iter().all(fits)
}

/// The numbers of a contiguous tensor, as an operation is given them.
pub(super) fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> TensorResult<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => bail!("a fused operation needs contiguous f32 tensors"),
    }
}

/// Work on the numbers of tensors, row by row, on the CPU.
pub(super) fn with<const N: usize, R>(
    tensors: [&Tensor; N],
    work: impl FnOnce([&[f32]; N]) -> TensorResult<R>,
) -> TensorResult<R> {
    let mut laid_out = Vec::with_capacity(N);
    for tensor in tensors {
        laid_out.push(tensor.detach().contiguous()?);
    }
    let held: Vec<_> = laid_out.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut slices = [&[][..]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&held) {
        let Storage::Cpu(storage) = &**storage else { bail!("a fused operation works on the CPU") };
        *slice = numbers(storage, layout)?;
    }
    work(slices)
}

/// What an operation gives back.
pub(super) fn made(values: Vec<f32>, shape: &Shape) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.clone())
}

/// The length of rows, not 0.
pub(super) fn width(x: &Tensor) -> TensorResult<usize> {
    match x.dim(D::Minus1)? {
        0 => bail!("rows of no numbers"),
        width => Ok(width),
    }
}

/// As [`width`], for what an operation is given.
pub(super) fn width_of(layout: &Layout, row: &[f32]) -> TensorResult<usize> {
    match layout.dims().last() {
        Some(&width) if width > 0 && width == row.len() => Ok(width),
        _ => bail!("rows of {:?} do not fit one of {} numbers", layout.dims(), row.len()),
    }
}

/// Σ x
pub(super) fn sum(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, v)| *sum += v);
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}
