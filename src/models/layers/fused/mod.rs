//! Operations of several steps with derivatives of their own, for what is learned: f32 on the CPU.
//!
//! ```text
//! candle's graph     a node for each step: its result, its gradient, zeros that the gradient is added to, and what a broadcast or a
//!                    transpose lays out anew, both ways
//! here               a node for all of them: one pass forward, one back, and nothing kept that is quickly made again
//! ```
//! | file | operations |
//! |---|---|
//! | `rows.rs` | (what they share: numbers of tensors, sums) |
//! | `norm.rs` | RMS norm, layer norm |
//! | `product.rs` | `x Wᵀ + b` |
//! | `gate.rs` | `silu(a) ⊙ b`, the exact GELU |
//! | `softmax.rs` | the softmax |
//! | `heads.rs` | (rows of all heads as heads, with turns, and back) |
//! | `attention.rs` | attention from projected rows to mixed ones |
//!
//! A derivative is found for operands that learn alone: weights that are only learned through cost no product. Each is held to the
//! graph of candle's own operations.

mod attention;
mod gate;
mod heads;
mod norm;
mod product;
mod rows;
mod softmax;
#[cfg(test)]
mod tests;

pub(in crate::models) use attention::{Attention, attend};
pub(super) use gate::{gelu, swiglu};
pub(super) use norm::{layer_norm, rms_norm};
pub(super) use product::product;
pub(in crate::models) use rows::applies;
pub(super) use softmax::softmax;
