//! The product with matrices of 8 bits, shared out over threads.

use std::cell::Cell;
use std::ops::Range;

use candle_core::{CpuStorage, D, Result as TensorResult, Storage, Tensor, bail};
use rayon::prelude::*;

use super::graph::learns;
use crate::kernels::{Kernels, q8};

/// Weights of a product that are worth handing to another thread.
const SHARE: usize = 1 << 18;
/// Shares of a thread: one that is held up does not hold up the others for long.
const SHARES: usize = 4;

/// `x Wᵀ` for several matrices of 8 bits, `[.., out]` each, on all threads of the pool that asks: an encoder's lane has one.
pub(super) fn in_8_bits(matrices: &[&q8::Tiles], x: &Tensor) -> TensorResult<Vec<Tensor>> {
    thread_local! {
        static ROWS: Cell<q8::Rows> = Cell::default();
    }
    if learns(&[x]) {
        bail!("a product of 8 bits has no derivative; load what is learned through in f32 or f16");
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
