//! Softmax, and attention of all heads.

use candle_core::{D, DType, Result as TensorResult, Tensor};

use super::fused::{self, Attention};
use super::graph::learns;
use super::in_place;

/// Attention of all heads over projected rows, `softmax(q·kᵀ/√(width/heads))·v`: `[B, L, 3·width]` → `[B, L, width]`.
///
/// * `mask`: added to the scores, `[L, L]`. `extra`: one more key and value, `[1, 1, width]` each.
pub(in crate::models) fn attend(
    qkv: &Tensor,
    heads: usize,
    mask: Option<&Tensor>,
    extra: Option<(&Tensor, &Tensor)>,
) -> TensorResult<Tensor> {
    let extras: Vec<&Tensor> = std::iter::once(qkv).chain(extra.iter().flat_map(|e| [e.0, e.1])).collect();
    if fused::applies(&extras) {
        let extra = extra.map(|(key, value)| [key, value]);
        return fused::attend(qkv, &Attention { heads, added: mask, extra, ..Attention::default() });
    }
    let (batch, _, width) = qkv.dims3()?;
    let width = width / 3;
    let part = |i: usize, extra: Option<&Tensor>| {
        let rows = qkv.narrow(D::Minus1, i * width, width)?;
        let rows = match extra {
            Some(row) => Tensor::cat(&[&rows, &row.broadcast_as((batch, 1, width))?], 1)?,
            None => rows,
        };
        heads_apart(&rows, heads) // [B, heads, L, head]
    };
    let (k, v) = (part(1, extra.map(|e| e.0))?, part(2, extra.map(|e| e.1))?);
    heads_together(&weigh(&part(0, None)?, &k, &v, mask)?)
}

/// `softmax(q·kᵀ/√head)·v`: `[.., L, head]` of queries over `[.., S, head]` of keys and values.
///
/// * `mask`: added to the scores, `[L, S]`.
pub(in crate::models) fn weigh(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
) -> TensorResult<Tensor> {
    let q = (q * (q.dim(D::Minus1)? as f64).powf(-0.5))?;
    let scores = q.contiguous()?.matmul(&k.t()?)?; // [.., L, S]
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    softmax(scores)?.matmul(v)
}

/// `[.., L, heads·head]` → `[.., heads, L, head]`
pub(in crate::models) fn heads_apart(x: &Tensor, heads: usize) -> TensorResult<Tensor> {
    let mut shape = x.dims().to_vec();
    let width = shape.pop().unwrap_or_default();
    shape.extend([heads, width / heads.max(1)]);
    x.reshape(shape)?.transpose(D::Minus(3), D::Minus2)?.contiguous()
}

/// `[.., heads, L, head]` → `[.., L, heads·head]`
pub(in crate::models) fn heads_together(x: &Tensor) -> TensorResult<Tensor> {
    let mut shape = x.dims().to_vec();
    let (head, length, heads) =
        (shape.pop().unwrap_or_default(), shape.pop().unwrap_or_default(), shape.pop().unwrap_or_default());
    shape.extend([length, heads * head]);
    x.transpose(D::Minus(3), D::Minus2)?.reshape(shape)
}

/// `[L, S]`: 0 up to a position and at it, −∞ behind it; the first of the L rows lies at `position`.
pub(in crate::models) fn causal(length: usize, position: usize, like: &Tensor) -> TensorResult<Tensor> {
    let seen = position + length;
    let mask: Vec<f32> = (0..length * seen)
        .map(|i| if i % seen > position + i / seen { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    Tensor::from_vec(mask, (length, seen), like.device())?.to_dtype(like.dtype())
}

/// The softmax over the last axis. Nothing else may hold `x`: where nothing learns, it is made in its memory.
pub(in crate::models) fn softmax(x: Tensor) -> TensorResult<Tensor> {
    if fused::applies(&[&x]) {
        return fused::softmax(&x);
    }
    if learns(&[&x]) {
        return candle_nn::ops::softmax(&x, D::Minus1);
    }
    if x.device().is_cpu() && x.dtype() == DType::F32 {
        return in_place::softmax(x);
    }
    candle_nn::ops::softmax_last_dim(&x)
}
