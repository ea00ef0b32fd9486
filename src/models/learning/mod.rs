//! What networks that learn have in common.
//!
//! ```text
//! variables by name ─► network ─► loss ─► gradients by name ─► summed over parts of a batch ─► AdamW moves the variables
//!                      └ all at once, or one block at a time (`blockwise.rs`)                  └ their average follows
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `values.rs` | tensors as names, shapes and numbers: to a file and back |
//! | `gradients.rs` | gradients by name, and their sum |
//! | `blockwise.rs` | a stack of blocks with the activations of one at a time |
//! | `lanes.rs` | a batch in parts, one for each thread |
//! | `adamw.rs` | the optimiser |
//! | `average.rs` | a moving average of the weights |

pub mod adamw;
mod average;
mod blockwise;
mod gradients;
mod lanes;
mod values;

pub use average::Average;
pub(super) use blockwise::through_blocks;
pub use gradients::{Gradients, Sum};
pub(super) use lanes::Lanes;
pub use values::{Values, placed, read, restore, state, write, write_all};

pub use super::device::Variables;
