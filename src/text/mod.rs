//! Strings become token ids.
//!
//! | file | its one idea |
//! |---|---|
//! | `clean.rs` | the cleaning that CLIP does before it splits |
//! | `clip_bpe.rs` | CLIP's byte-pair encoding, for the full and for a shortened merge table |

mod clean;
mod clip_bpe;

pub use clip_bpe::{ClipTokenizer, MAX_TEXT_BYTES};

/// Why a text has no token ids.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A merge table that cannot be read.
    #[error("the merge table cannot be read: {0}")]
    Merges(String),
    /// A text beyond any use.
    #[error("the text has {received} bytes; at most {limit} are taken (a model reads 77 tokens)")]
    TooLong {
        /// Bytes given.
        received: usize,
        /// Bytes taken.
        limit: usize,
    },
}
