//! A projection of the backbone with what an adapter tunes it by: a scale of its inputs, a bias, low-rank matrices.
//!
//! **What is linear is folded into the weights when they are read**: `W + B·A`, no scaling, and `W·diag(s)`. The same sums in another
//! order, within the tolerance of the golden numbers. Where something is learned, every part stays by itself.

use super::checkpoint::Checkpoint;
use crate::models::layers::{Linear, Tuning};
use crate::models::{Error, Placement};

/// The projection `name` of a group of a layer: `llama.layers.{layer}.{group}.{name}`, `[out, width]`.
///
/// # Errors
/// As [`Checkpoint::values`].
pub(super) fn projection(
    checkpoint: &Checkpoint,
    layer: usize,
    (group, name): (&str, &str),
    [out, width]: [usize; 2],
    placement: &Placement,
) -> Result<Linear, Error> {
    let own = format!("llama.layers.{layer}.{group}.{name}");
    let bias = [format!("{own}.bias"), format!("{own}_bias")]
        .into_iter()
        .find(|bias| checkpoint.shape(bias).is_some());
    let [down, up] = [1, 2].map(|n| format!("llama.layers.{layer}.{group}.lora_{name}_l{n}.weight"));
    let (weight, scale) = (format!("{own}.weight"), format!("{own}_scale"));
    let (low, scaled) = (checkpoint.shape(&down), checkpoint.shape(&scale).is_some());
    if low.is_none() && !scaled {
        return checkpoint.linear(&weight, bias.as_deref(), [out, width], placement);
    }
    let rank = low.as_ref().map(|shape| shape.first().copied().unwrap_or(0));
    if placement.variables.is_some() {
        let tensor = |name: &str, shape: &[usize]| checkpoint.tensor(name, shape, placement);
        let scale = scaled.then(|| tensor(&scale, &[width])).transpose()?;
        let low = match rank {
            Some(rank) => Some([tensor(&down, &[rank, width])?, tensor(&up, &[out, rank])?]),
            None => None,
        };
        let bias = bias.map(|bias| tensor(&bias, &[out])).transpose()?;
        let weight = checkpoint.as_given(&weight, &[out, width], placement)?;
        return Ok(Linear::as_given(weight, bias, Tuning { scale, low }));
    }
    let names = [weight.as_str(), bias.as_deref().unwrap_or_default()];
    checkpoint.layer(names, [out, width], placement, |weight| {
        if let Some(rank) = rank {
            let (a, b) = (checkpoint.values(&down, &[rank, width])?, checkpoint.values(&up, &[out, rank])?);
            add_low_rank(weight, &a, &b, rank, width);
        }
        if scaled {
            let scale = checkpoint.values(&scale, &[width])?;
            for row in weight.chunks_exact_mut(width) {
                row.iter_mut().zip(&scale).for_each(|(w, s)| *w *= s);
            }
        }
        Ok(())
    })
}

/// `weight += b · a`, `[out, rank] · [rank, width]`.
fn add_low_rank(weight: &mut [f32], a: &[f32], b: &[f32], rank: usize, width: usize) {
    if rank == 0 {
        return;
    }
    for (row, factors) in weight.chunks_exact_mut(width).zip(b.chunks_exact(rank)) {
        for (factor, a) in factors.iter().zip(a.chunks_exact(width)) {
            row.iter_mut().zip(a).for_each(|(w, a)| *w += factor * a);
        }
    }
}
