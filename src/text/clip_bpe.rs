//! CLIP's byte-pair encoding.
//!
//! The text is cleaned, split into pieces by CLIP's expression, and every piece is merged on its own. Ids: 256 bytes, 256
//! bytes that end a piece, one per merge, then start and end. The merges come from the crate `instant-clip-tokenizer`,
//! which carries CLIP's table; a shortened table (the nano model's first 1000) gives a smaller vocabulary.
//!
//! The result is `[start] + ids`, cut so that the end token always fits, and zeros. (ImageBind-LLM's copy cuts after
//! appending the end token, by which every long text gets one and the same embedding. We do not.) The two special
//! strings are live: a user's text may contain them, as in the reference.
//!
//! Source: openai/CLIP, `clip/simple_tokenizer.py`.

use std::sync::LazyLock;

use instant_clip_tokenizer::{Token, Tokenizer};
use regex::Regex;

use super::Error;
use super::clean::clean;

/// Longest text taken, in bytes: far beyond 77 tokens, far below what cleaning would choke on.
pub const MAX_TEXT_BYTES: usize = 64 << 10;

/// Bytes of a longer piece that are looked at first, and tokens of it that have to follow those that are kept: how a word is split up to
/// a token depends on the few that follow.
const WINDOW: usize = 1 << 10;
const FOLLOWING: usize = 16;

/// Ids before the first merge.
const BYTE_IDS: usize = 512;
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

static PIECES: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?i)<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    )
    .expect("the expression is a constant and a test compiles it")
});

/// A tokenizer with its merge table and context length.
pub struct ClipTokenizer {
    bpe: Tokenizer,
    context: usize,
}

impl ClipTokenizer {
    /// CLIP's own table of 48 894 merges.
    ///
    /// * `context`: tokens of a text, padding included (77 for the published model).
    pub fn clip(context: usize) -> Self {
        ClipTokenizer { bpe: Tokenizer::new(), context }
    }

    /// A table of one's own: a header line, then one merge a line.
    ///
    /// # Errors
    /// [`Error::Merges`].
    pub fn with_merges(table: &str, context: usize) -> Result<Self, Error> {
        let merges = table.lines().count().saturating_sub(1);
        let vocabulary = u16::try_from(BYTE_IDS + merges + 2)
            .map_err(|_| Error::Merges(format!("{merges} merges are more than ids can name")))?;
        let bpe = Tokenizer::with_vocabulary(table.as_bytes(), vocabulary)
            .map_err(|e| Error::Merges(e.to_string()))?;
        Ok(ClipTokenizer { bpe, context })
    }

    /// Tokens of a text, padding included.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Encodes a text into exactly [`ClipTokenizer::context`] ids.
    ///
    /// # Errors
    /// [`Error::TooLong`] above [`MAX_TEXT_BYTES`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(Error::TooLong { received: text.len(), limit: MAX_TEXT_BYTES });
        }
        let mut tokens = vec![self.bpe.start_of_text()];
        let room = self.context - 1;
        for piece in PIECES.find_iter(&clean(text)) {
            // What follows would be cut off.
            if tokens.len() >= room {
                break;
            }
            match piece.as_str() {
                START => tokens.push(self.bpe.start_of_text()),
                END => tokens.push(self.bpe.end_of_text()),
                piece => self.split(piece, room - tokens.len(), &mut tokens),
            }
        }
        tokens.truncate(room);
        tokens.push(self.bpe.end_of_text());
        let mut ids: Vec<u32> = tokens.into_iter().map(|token: Token| u32::from(token.to_u16())).collect();
        ids.resize(self.context, 0);
        Ok(ids)
    }

    /// Splits a piece into at least `wanted` tokens, or all that it has. The time for a whole piece grows with the square of its
    /// length, so no more of a long one is looked at than that takes.
    fn split(&self, piece: &str, wanted: usize, tokens: &mut Vec<Token>) {
        let (begun, mut window) = (tokens.len(), WINDOW);
        loop {
            let seen = piece.floor_char_boundary(window);
            self.bpe.encode(&piece[..seen], tokens);
            if seen == piece.len() || tokens.len() - begun >= wanted + FOLLOWING {
                return;
            }
            tokens.truncate(begun);
            window *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_empty_text_and_a_long_one_keep_their_end() {
        let tokenizer = ClipTokenizer::clip(77);
        let empty = tokenizer.encode("").unwrap();
        assert_eq!(empty[..3], [49406, 49407, 0]);
        let long = tokenizer.encode(&"dog ".repeat(200)).unwrap();
        assert_eq!((long.len(), long[76]), (77, 49407));
        assert!(matches!(tokenizer.encode(&"x".repeat(MAX_TEXT_BYTES + 1)), Err(Error::TooLong { .. })));
    }

    #[test]
    fn a_long_word_is_split_as_if_all_of_it_were_looked_at() {
        let tokenizer = ClipTokenizer::clip(77);
        let mixed: String = (0..6000u32).map(|i| char::from(b'a' + (i * i % 26 * 7 % 26) as u8)).collect();
        for word in [mixed, "=".repeat(6000), "ab".repeat(3000), "å".repeat(3000), "lo".repeat(2500) + "l"] {
            let mut whole = vec![tokenizer.bpe.start_of_text()];
            tokenizer.bpe.encode(&word, &mut whole);
            let whole: Vec<u32> = whole.iter().take(76).map(|token| u32::from(token.to_u16())).collect();
            assert_eq!(tokenizer.encode(&word).unwrap()[..whole.len()], whole, "{}", &word[..12]);
        }
        // The longest that is taken.
        assert_eq!(tokenizer.encode(&"zq".repeat(32 << 10)).unwrap().len(), 77);
    }

    #[test]
    fn special_strings_are_live() {
        let ids = ClipTokenizer::clip(77).encode("a <|endoftext|> b").unwrap();
        assert_eq!(ids[2], 49407);
    }

    #[test]
    fn a_broken_merge_table_is_an_error() {
        assert!(matches!(ClipTokenizer::with_merges("header\nq", 8), Err(Error::Merges(_))));
    }

    proptest! {
        #[test]
        fn any_text_gives_exactly_the_context(text in "\\PC{0,200}") {
            let ids = ClipTokenizer::with_merges("header\na b\n", 16).unwrap().encode(&text).unwrap();
            prop_assert_eq!(ids.len(), 16);
            prop_assert!(ids.iter().all(|&id| id < 515));
        }
    }
}
