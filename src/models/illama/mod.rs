//! iLLaMA: a LLaMA that looks at one picture and names it.
//!
//! ```text
//! picture [B,3,S,S] ─ patches p×p ─► [B,P,E] ─ class token LAST, + positions ─► blocks ─ norm ─ last token ─► features [B,E] ─ head ─► logits [B,C]
//!
//! block   x = x + proj( M ⊙ softmax(q·kᵀ/√d) · v )      q, k turned by their place in the row of tokens, the class token at P
//!         x = x + fc2( silu(fc1 m) ⊙ fc3 m )            m = norm x
//! M       r + (1 − r)·L                                 L: 1 up to the diagonal and on it, 0 above
//! ```
//! **The mask multiplies the softmax's result**, which has run over all tokens, and nothing is brought back to a sum of 1: with
//! r = 0 early tokens keep the share of attention that fell on their past. A mask that is added before the softmax, as in LLaMA,
//! gives other logits, and the published weights do not work with it. The class token stands last, so that it sees all others.
//!
//! | file | its one idea |
//! |---|---|
//! | `config.rs` | sizes: the four published ones, or those that weights have |
//! | `network.rs` | the blocks |
//! | `initial.rs` | first values of what learns |
//! | `learner.rs` | the loss of a batch, and its gradients |
//! | `probe.rs` | a head alone that learns, from features that stay |
//! | `selection.rs` | first weights from a LLaMA |
//!
//! Left out: dropout on positions and attention, which no published recipe uses.
//!
//! Source: *Adapting LLaMA Decoder to Vision Transformer* (arXiv 2404.06773) and the program published with it.

mod config;
mod initial;
mod learner;
mod network;
mod probe;
mod selection;

pub use config::{Config, Size};
pub(super) use initial::values as first_values;
pub use initial::{continued, initial, shapes};
pub use learner::{Learner, Lesson};
pub use network::{Illama, Looked};
pub(super) use network::{Keep, known};
pub use probe::{Probe, is_head};
pub use selection::{Thinned, select, thinned};
