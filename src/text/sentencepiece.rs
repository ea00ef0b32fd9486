//! LLaMA's tokenizer: a SentencePiece model file of byte-pair encoding with byte fallback.
//!
//! ```text
//! text ─► " " before it ─► spaces become ▁ ─► symbols, one a character ─► merge the best pair, again and again ─► ids
//! ```
//! The best pair is the one whose union is the piece of the highest score, leftmost first. What is no piece in the end
//! becomes the piece of each of its bytes. Control and byte pieces never match text, so nobody can type `</s>`.
//!
//! Written here and not taken from a library: of those that read this file format in Rust, one needs a C++ build and the
//! other decodes byte pieces wrongly. Source of the rules: SentencePiece, `bpe_model.cc` and `sentencepiece_processor.cc`.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use prost::Message;

use super::Error;

/// What stands for a space inside pieces.
const SPACE: char = '\u{2581}';
/// How an unknown piece is written.
const UNKNOWN: &str = " \u{2047} ";
/// Most bytes of a text: some 60 000 tokens, more than any decoder here has positions.
pub const MAX_PROMPT_BYTES: usize = 1 << 18;
/// Bytes of a model file at most.
const MAX_MODEL_BYTES: usize = 64 << 20;
/// `TrainerSpec::ModelType::BPE`.
const BPE: i32 = 2;

/// The parts of the file that are read.
#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<PieceProto>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerProto>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerProto>,
}

#[derive(Clone, PartialEq, Message)]
struct PieceProto {
    #[prost(string, tag = "1")]
    piece: String,
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(int32, tag = "3", default = 1)]
    kind: i32,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerProto {
    #[prost(int32, tag = "3", default = 1)]
    model_type: i32,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerProto {
    #[prost(bytes = "vec", tag = "2")]
    charsmap: Vec<u8>,
    #[prost(bool, tag = "3", default = true)]
    add_dummy_prefix: bool,
    #[prost(bool, tag = "4", default = true)]
    remove_extra_whitespaces: bool,
}

/// What a piece stands for.
#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(String),
    Byte(u8),
    Control,
    Unknown,
}

/// A tokenizer.
#[derive(Debug)]
pub struct SentencePiece {
    pieces: Vec<Piece>,
    /// Pieces that text can become: id and score.
    ordinary: HashMap<String, (u32, f32)>,
    bytes: [u32; 256],
    bos: u32,
    eos: u32,
}

/// Two neighbours that can be merged.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Length of both together: a pair of which one has been merged since is out of date.
    len: usize,
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

/// A part of the text while it is merged.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    before: Option<usize>,
    after: Option<usize>,
}

impl SentencePiece {
    /// Reads a `tokenizer.model`.
    ///
    /// # Errors
    /// [`Error::Model`] for what is no such file, or one of other settings than LLaMA's: they would give other ids.
    pub fn from_bytes(file: &[u8]) -> Result<Self, Error> {
        let fail = |why: &str| Error::Model(why.to_owned());
        if file.len() > MAX_MODEL_BYTES {
            return Err(fail("it is far larger than any vocabulary"));
        }
        let model = ModelProto::decode(file)
            .map_err(|e| Error::Model(format!("it is no SentencePiece model: {e}")))?;
        if model.pieces.is_empty() {
            return Err(fail("it has no pieces"));
        }
        if model.trainer.as_ref().is_none_or(|trainer| trainer.model_type != BPE) {
            return Err(fail("it is not one of byte-pair encoding, as LLaMA's is"));
        }
        if model.normalizer.as_ref().is_some_and(|rules| {
            !rules.charsmap.is_empty() || !rules.add_dummy_prefix || rules.remove_extra_whitespaces
        }) {
            return Err(fail("it changes texts before it splits them, which LLaMA's does not"));
        }
        let (mut pieces, mut ordinary) = (Vec::with_capacity(model.pieces.len()), HashMap::new());
        let (mut bytes, mut known) = ([0u32; 256], 0usize);
        let (mut bos, mut eos) = (None, None);
        for (id, piece) in model.pieces.into_iter().enumerate() {
            let id = id as u32;
            pieces.push(match piece.kind {
                2 => Piece::Unknown,
                3 => {
                    match piece.piece.as_str() {
                        "<s>" => bos = Some(id),
                        "</s>" => eos = Some(id),
                        _ => {}
                    }
                    Piece::Control
                }
                6 => {
                    let hex = piece.piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                    let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
                    let byte =
                        byte.ok_or_else(|| Error::Model(format!("`{}` names no byte", piece.piece)))?;
                    bytes[usize::from(byte)] = id;
                    known += 1;
                    Piece::Byte(byte)
                }
                _ if !piece.score.is_finite() => {
                    return Err(Error::Model(format!("piece {id} has a score that is not finite")));
                }
                _ => {
                    ordinary.insert(piece.piece.clone(), (id, piece.score));
                    Piece::Text(piece.piece)
                }
            });
        }
        if known != 256 {
            return Err(Error::Model(format!("it has pieces for {known} bytes, not for all 256")));
        }
        let (bos, eos) = bos.zip(eos).ok_or_else(|| fail("it has no `<s>` or no `</s>`"))?;
        Ok(SentencePiece { pieces, ordinary, bytes, bos, eos })
    }

    /// Pieces of the vocabulary.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Never; a model without pieces is refused.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The id before every text.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The id that ends an answer.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The ids of a text, without BOS and EOS.
    ///
    /// # Errors
    /// [`Error::TooLong`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        if text.len() > MAX_PROMPT_BYTES {
            return Err(Error::TooLong { received: text.len(), limit: MAX_PROMPT_BYTES });
        }
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let text: String =
            std::iter::once(' ').chain(text.chars()).map(|c| if c == ' ' { SPACE } else { c }).collect();
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                before: i.checked_sub(1),
                after: Some(i + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.after = None;
        }
        let mut pairs = BinaryHeap::new();
        let offer = |pairs: &mut BinaryHeap<Pair>, symbols: &[Symbol], left: usize, right: usize| {
            let len = symbols[left].len + symbols[right].len;
            if let Some(&(_, score)) = self.ordinary.get(&text[symbols[left].start..][..len]) {
                pairs.push(Pair { score, left, right, len });
            }
        };
        (1..symbols.len()).for_each(|right| offer(&mut pairs, &symbols, right - 1, right));
        while let Some(Pair { left, right, len, .. }) = pairs.pop() {
            // Of a pair of which one was merged, that one has another length now, or none.
            if symbols[left].len == 0
                || symbols[right].len == 0
                || symbols[left].len + symbols[right].len != len
            {
                continue;
            }
            let after = symbols[right].after;
            symbols[left].len = len;
            symbols[left].after = after;
            symbols[right].len = 0;
            if let Some(after) = after {
                symbols[after].before = Some(left);
                offer(&mut pairs, &symbols, left, after);
            }
            if let Some(before) = symbols[left].before {
                offer(&mut pairs, &symbols, before, left);
            }
        }
        let mut ids = Vec::new();
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let part = &text[symbol.start..][..symbol.len];
            match self.ordinary.get(part) {
                Some(&(id, _)) => ids.push(id),
                None => ids.extend(part.bytes().map(|byte| self.bytes[usize::from(byte)])),
            }
        }
        Ok(ids)
    }

    /// The text of one piece as it stands within others: with its space, and a byte as `<0x0A>`.
    pub fn piece(&self, id: u32) -> String {
        match self.pieces.get(id as usize) {
            Some(Piece::Text(piece)) => piece.replace(SPACE, " "),
            Some(Piece::Byte(byte)) => format!("<0x{byte:02X}>"),
            Some(Piece::Control) => String::new(),
            Some(Piece::Unknown) | None => UNKNOWN.to_owned(),
        }
    }

    /// What one piece adds to a text; nothing for what is no text.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        match self.pieces.get(id as usize) {
            Some(Piece::Text(piece)) => piece.replace(SPACE, " ").into_bytes(),
            Some(Piece::Byte(byte)) => vec![*byte],
            Some(Piece::Control | Piece::Unknown) | None => Vec::new(),
        }
    }

    /// The text of ids; ids beyond the vocabulary are as unknown ones.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = Detokenizer::default();
        let mut text = String::new();
        ids.iter().for_each(|&id| text += &stream.push(self, id));
        text + &stream.finish()
    }
}

/// Turns ids into text as they come: never a part of a character, and all together what [`SentencePiece::decode`] gives.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// Bytes of byte pieces that are no text yet.
    waiting: Vec<u8>,
    /// Whether a piece that is not a control piece has come.
    begun: bool,
}

impl Detokenizer {
    /// The text that one more id completes; empty when it ends inside of a character.
    pub fn push(&mut self, model: &SentencePiece, id: u32) -> String {
        let piece = model.pieces.get(id as usize).unwrap_or(&Piece::Unknown);
        let text = match piece {
            Piece::Control => return String::new(),
            Piece::Byte(byte) => {
                self.begun = true;
                self.waiting.push(*byte);
                return self.settled();
            }
            Piece::Unknown => UNKNOWN.to_owned(),
            Piece::Text(piece) => {
                let piece = match self.begun {
                    true => piece.as_str(),
                    false => piece.strip_prefix(SPACE).unwrap_or(piece),
                };
                piece.replace(SPACE, " ")
            }
        };
        self.begun = true;
        self.finish() + &text
    }

    /// What is left when no id will come any more: bytes that never became a character.
    pub fn finish(&mut self) -> String {
        replaced(&std::mem::take(&mut self.waiting))
    }

    /// Takes the bytes that are decided: whole characters, and what cannot begin one.
    fn settled(&mut self) -> String {
        let undecided = match std::str::from_utf8(&self.waiting) {
            Ok(_) => 0,
            Err(error) => {
                // The first problem may hide others behind it; only an end that is cut short may wait.
                let mut rest = &self.waiting[error.valid_up_to()..];
                let mut error = error;
                while let Some(bad) = error.error_len() {
                    rest = &rest[bad..];
                    match std::str::from_utf8(rest) {
                        Ok(_) => break,
                        Err(next) => {
                            rest = &rest[next.valid_up_to()..];
                            error = next;
                        }
                    }
                }
                if error.error_len().is_none() { rest.len() } else { 0 }
            }
        };
        let decided = self.waiting.len() - undecided;
        let tail = self.waiting.split_off(decided);
        replaced(&std::mem::replace(&mut self.waiting, tail))
    }
}

/// UTF-8, with U+FFFD for every byte that is none.
fn replaced(mut bytes: &[u8]) -> String {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(rest) => return text + rest,
            Err(error) => {
                let (good, bad) = bytes.split_at(error.valid_up_to());
                text += &String::from_utf8_lossy(good);
                // One for each byte, where Rust would write one for a whole sequence that was begun well.
                let count = error.error_len().unwrap_or(bad.len());
                (0..count).for_each(|_| text.push(char::REPLACEMENT_CHARACTER));
                bytes = &bad[count..];
            }
        }
    }
}
