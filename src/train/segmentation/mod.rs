//! An iLLaMA that learns to name the pixels of pictures.
//!
//! ```text
//! picture and annotation ─► some scale, a square of it, mirrored ─► batch ─► models::segmenter ─► gradients
//! a test                 ─► windows that cover it ─► labels in the annotation's size ─► counts of pairs ─► mIoU
//! ```
//! A pair that cannot be read is named and left out: another of its batch takes its place.
//!
//! | file | its one idea |
//! |---|---|
//! | `recipe.rs` | what a recipe says |
//! | `task.rs` | the task |

mod recipe;
mod task;
#[cfg(test)]
mod tests;

pub use recipe::{Scales, SegmentationRecipe};
pub use task::{Batch, SegmentationTask};
