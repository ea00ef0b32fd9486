//! A segmenter: an iLLaMA whose patches are named, in the place of the picture.
//!
//! ```text
//! picture [B,3,S,S] ─ iLLaMA's blocks ─► patch tokens behind some of them, K × [B,P,E]
//!
//! each ─ norm ─► side by side [B,P,K·E] ─ mix ─► m [B,P,E] ─► m + near( 3×3 neighbours of silu m ) ─ norm, head ─► logits [B,P,C]
//!
//! logits of the grid of patches ─ bilinear ─► logits of every pixel ─► the best class
//! ```
//! Norm and head are iLLaMA's own, and name patches here; so that weights of the same classes go on with their head. The class token
//! is looked at by nobody. The decoder has `E·(K·E + 9·E)` weights: at most about three blocks' worth.
//!
//! Loss: cross entropy of every labelled pixel, on logits that are blended from the four patches around it. Its gradient with respect to
//! the grid is written down (`pixels.rs`): the logits of all pixels at once would be 150 MB for a picture of 512 pixels and 150 classes.
//!
//! | file | its one idea |
//! |---|---|
//! | `config.rs` | sizes |
//! | `network.rs` | backbone and decoder; the labels of a picture |
//! | `initial.rs` | first values of the decoder |
//! | `learner.rs` | the loss of a batch, and its gradients |
//! | `pixels.rs` | from the grid to pixels: labels, loss, gradient |
//!
//! Left out: an auxiliary head, and pyramids as in UPerNet: what is measured here is the backbone.
//!
//! Source: SETR (arXiv 2012.15840) and Segmenter (arXiv 2105.05633), which name patches linearly and upsample; ours mixes several blocks
//! and neighbours.

mod config;
mod initial;
mod learner;
mod network;
mod pixels;

pub use config::Config;
pub use initial::initial;
pub use learner::{Learner, Lesson};
pub use network::{Segmenter, is_decoder};
