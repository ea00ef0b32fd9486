//! What a classifier is worth, from the numbers that it gives: nothing here looks at pictures.
//!
//! ```text
//! logits ─► probabilities ─┬─► place of the right class ─► top-1, top-5
//!                          ├─► confidence, right or not ─► bins ─► expected calibration error
//!                          ├─► best class, in 32 bits and in 8 ─► share that is the same
//!                          └─► mean of each group of classes ─► decision ─► shape, texture or neither
//! labels of pixels, true and named ─► counts of pairs ─► IoU of each class, and means
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `probabilities.rs` | logits into probabilities, and the best of them |
//! | `share.rs` | so many of so many |
//! | `calibration.rs` | whether confidence is what it says |
//! | `cues.rs` | whether shape or texture decides |
//! | `segmentation.rs` | how well pixels are named |

mod calibration;
mod cues;
mod probabilities;
mod segmentation;
mod share;

pub use calibration::{Bin, Calibration};
pub use cues::{Bias, Cues, Decision, Groups};
pub use probabilities::{best, place, softmax};
pub use segmentation::Confusion;
pub use share::Share;

/// Why groups of classes cannot be used. Mended by mending the file they come from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing to decide between.
    #[error("there are {0} groups of classes; a decision is between two at least")]
    Few(usize),
    /// A group without a class.
    #[error("the group `{0}` has no classes")]
    Empty(String),
    /// A number that is no class.
    #[error("the group `{group}` has the class {class}, and the model has classes 0 to {last}")]
    Class {
        /// Which group.
        group: String,
        /// Its class.
        class: usize,
        /// The highest there is.
        last: usize,
    },
    /// A class that would count twice.
    #[error("the class {class} is in the groups `{first}` and `{second}`; it can be in one of them")]
    Twice {
        /// Which class.
        class: usize,
        /// A group that has it.
        first: String,
        /// Another, or the same once more.
        second: String,
    },
}
