//! Strings become token ids.
//!
//! | file | its one idea |
//! |---|---|
//! | `clean.rs` | the cleaning that CLIP does before it splits |
//! | `clip_bpe.rs` | CLIP's byte-pair encoding, for the full and for a shortened merge table |
//! | `sentencepiece.rs` | LLaMA's tokenizer, and ids back to text as they come |
//! | `prompt.rs` | the prompts that the adapters were trained with |
//! | `constrain.rs` | answers of a form that was asked for |
//! | `stops.rs` | texts that end an answer |

mod clean;
mod clip_bpe;
mod constrain;
mod conversation;
mod prompt;
mod sentencepiece;
mod stops;

pub use clip_bpe::{ClipTokenizer, MAX_TEXT_BYTES};
pub use constrain::{Allowed, Constrainer, Constraint, Form, FormError, MAX_FORM_BYTES};
pub use conversation::{ChatTemplate, Conversation, Speaker, Turn};
pub use prompt::Template;
pub use sentencepiece::{Detokenizer, MAX_PROMPT_BYTES, SentencePiece};
pub use stops::Stops;

/// Why a text has no token ids.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A merge table that cannot be read.
    #[error("the merge table cannot be read: {0}")]
    Merges(String),
    /// A tokenizer file that cannot be used.
    #[error("the tokenizer cannot be used: {0}")]
    Model(String),
    /// A text beyond any use.
    #[error("the text has {received} bytes; at most {limit} are taken, more than a model reads")]
    TooLong {
        /// Bytes given.
        received: usize,
        /// Bytes taken.
        limit: usize,
    },
}
