//! A stack of blocks with the activations of one at a time in memory.
//!
//! ```text
//! forward     x₀ ─ block 0 ─► x₁ ─ block 1 ─► … xₙ     kept: x₀ … xₙ alone; a block's graph goes when it is done
//! backward    end(xₙ) ─► gradient of xₙ
//!             block n−1 of xₙ₋₁ once more, with its graph ─► gradients of its weights, and of xₙ₋₁      … down to x₀
//! ```
//!
//! What is shown to several blocks comes in as one tensor beside the stack. Each block's backward pass finds a gradient of it; their sum
//! goes through what made it, at the end.
//!
//! It takes the forward pass of every block twice, and gives the same gradients: what a block computes is the same both times.
//!
//! Source: Chen et al., *Training Deep Nets with Sublinear Memory Cost* (arXiv 1604.06174), with a checkpoint at every block.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use crate::models::Error;

/// A block: its number, xᵢ and what is shown to it → xᵢ₊₁.
pub(in crate::models) type Through<'a> = &'a dyn Fn(usize, &Tensor, Option<&Tensor>) -> Result<Tensor, Error>;

/// Takes a backward pass through blocks, and gives the loss.
///
/// * `input`: x₀, with the graph that made it. `shown`: what every block may look at, likewise. `count`: of blocks. `end`: xₙ → the loss,
///   a scalar. `collect`: gets what each backward pass found; the gradients of a weight that is used in several come in several.
pub(in crate::models) fn through_blocks(
    input: &Tensor,
    shown: Option<&Tensor>,
    count: usize,
    block: Through<'_>,
    end: &dyn Fn(&Tensor) -> Result<Tensor, Error>,
    collect: &mut dyn FnMut(&GradStore) -> Result<(), Error>,
) -> Result<f32, Error> {
    let beside = shown.map(|shown| Var::from_tensor(&shown.detach())).transpose()?;
    let beside = beside.as_ref().map(Var::as_tensor);
    let mut inputs = vec![Var::from_tensor(&input.detach())?];
    for i in 0..count {
        let x = block(i, &inputs[i], beside)?.detach();
        inputs.push(Var::from_tensor(&x)?);
    }
    let lost = || Error::Config("a block has no part in the loss".into());
    let Some(last) = inputs.pop() else { return Err(lost()) };
    let loss = end(&last)?;
    let found = loss.backward()?;
    collect(&found)?;
    let mut upstream = found.get(&last).cloned().ok_or_else(lost)?;
    let mut of_shown: Option<Tensor> = None;
    for (i, x) in inputs.iter().enumerate().rev() {
        let found = pulled(&block(i, x, beside)?, &upstream)?;
        collect(&found)?;
        upstream = found.get(x).cloned().ok_or_else(lost)?;
        if let Some(more) = beside.and_then(|beside| found.get(beside)) {
            of_shown = Some(match of_shown {
                Some(sum) => (sum + more)?,
                None => more.clone(),
            });
        }
    }
    collect(&pulled(input, &upstream)?)?;
    if let Some((shown, upstream)) = shown.zip(of_shown) {
        collect(&pulled(shown, &upstream)?)?;
    }
    Ok(loss.to_scalar()?)
}

/// The gradients of whatever made a tensor, for a given gradient of it.
fn pulled(tensor: &Tensor, upstream: &Tensor) -> Result<GradStore, Error> {
    Ok((tensor * &upstream.detach())?.sum_all()?.backward()?)
}
