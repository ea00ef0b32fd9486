//! Layers that more than one network uses, for running and for learning alike.
//!
//! ```text
//! no operand learns    fused, in the memory of their input: one pass over memory where the parts would take several
//! one does             fused, with derivatives of their own (f32 on the CPU); else made of operations that have a derivative
//! ```
//! An operand learns when it is a variable, or was made from one (`learns`). A fused pass is outside the graph that derivatives are
//! taken from, so that a gradient through it would be wrong without an error: each refuses an operand that learns.
//!
//! | file | its one idea |
//! |---|---|
//! | `graph.rs` | whether something is learned through an operand |
//! | `scope.rs` | where tensors come from, and under which names |
//! | `linear.rs` | `x Wᵀ + b`, whatever the weights are held in |
//! | `eight_bits.rs` | the product with weights of 8 bits |
//! | `norm.rs` | layer norm and RMS norm |
//! | `gate.rs` | the gate of a feed-forward layer |
//! | `rotary.rs` | positions as turns of neighbouring components |
//! | `attention.rs` | softmax and attention of all heads |
//! | `in_place.rs` | passes of our own over a tensor's memory |
//! | `fused/` | operations with derivatives of our own |
//!
//! On the CPU candle's exact GELU goes through a scalar f64 `erf`, which costs a tenth of a whole ViT-H forward pass; on a card
//! every pass over memory that is saved counts ([`super::cuda`]).

mod attention;
mod eight_bits;
pub(super) mod fused;
mod gate;
mod graph;
mod in_place;
mod linear;
mod norm;
mod rotary;
mod scope;

pub(super) use attention::{attend, causal, heads_apart, heads_together, softmax, weigh};
pub(super) use gate::swiglu;
pub(super) use graph::learns;
pub(super) use in_place::add_to;
pub(super) use linear::{Blocks, Linear, Tuning};
pub(super) use norm::{LayerNorm, rms_norm};
pub use rotary::Rotary;
pub(super) use scope::Scope;
