//! A decoder with its tokenizer: prompts in, token by token text out. The counterpart of [`super::encoder`].

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::Tensor;

use super::llama::{
    ChannelOrder, Checkpoint, Config, Decoder, Family, Files, Picture, SampleParams, Saved, adapter_file,
};
use super::weights::Weights;
use super::{DeviceKind, Error, Placement, nano};
use crate::media::{self, ImageOptions, Orientation};
use crate::text::{self, Constrainer, Constraint, Conversation, Form, FormError, SentencePiece, Template};
use crate::types::{Fingerprint, WeightDtype};

/// Which decoder to load and how to run it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LlmOptions {
    /// The backbone: a folder or a file ([`Files::backbone`]); `None` is the built-in nano decoder.
    pub backbone: Option<PathBuf>,
    /// What is added to the backbone: another one, of the same sizes.
    pub delta: Option<PathBuf>,
    /// The adapter made for it: a file, or a folder that training wrote. Without a backbone, one for the built-in decoder's.
    pub adapter: Option<PathBuf>,
    /// CLIP, for an adapter that looks at pictures through it.
    pub clip: Option<PathBuf>,
    /// Its `tokenizer.model`; `None`: in the backbone's folder, or the one above.
    pub tokenizer: Option<PathBuf>,
    /// Where to run.
    pub device: DeviceKind,
    /// In which numbers; `None`: the device's own.
    pub dtype: Option<WeightDtype>,
}

/// A decoder and its tokenizer.
pub struct Llm {
    decoder: Decoder,
    tokenizer: SentencePiece,
    tokenizer_file: Vec<u8>,
    name: String,
    fingerprint: Fingerprint,
    /// What it sees in a picture of nothing.
    nothing: OnceLock<Tensor>,
    /// The tokenizer as constrained answers look at it, from the first of them on.
    constrainer: OnceLock<Constrainer>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// An instruction, and a text it is about, put into the template that the adapter was trained with.
    Instruction {
        /// The instruction.
        instruction: String,
        /// The text it is about, if any.
        input: Option<String>,
    },
    /// A prompt as it is.
    Raw(String),
    /// What was said so far, in the format of the chat program.
    Conversation(Conversation),
}

/// Why a prompt cannot be answered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PromptError {
    /// A text that cannot be encoded.
    #[error(transparent)]
    Text(#[from] text::Error),
    /// An answer to be judged that has nothing to judge.
    #[error("the answer has no token of its own behind the prompt")]
    NoAnswer,
    /// Nothing to go on.
    #[error("the prompt is empty")]
    Empty,
    /// More than the decoder has positions for.
    #[error("the prompt has {received} tokens; the decoder has {limit} positions for it and its answer")]
    TooLong {
        /// Tokens of the prompt, BOS included.
        received: usize,
        /// Positions there are.
        limit: usize,
    },
}

impl Llm {
    /// Loads a decoder.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`Decoder::load`]; [`Error::Weights`] for a tokenizer that cannot be read.
    pub fn open(options: &LlmOptions) -> Result<Self, Error> {
        let placement = Placement::open(options.device, options.dtype)?;
        let (name, checkpoint, config, tokenizer) = match &options.backbone {
            None => {
                let (checkpoint, config) = nano_with(options)?;
                (nano::NAME.to_owned(), checkpoint, config, nano::TOKENIZER.to_vec())
            }
            Some(path) if path.is_file() && saved(path)?.is_some() => {
                let (file, saved) =
                    saved(path)?.ok_or_else(|| Error::Config("the file has changed".into()))?;
                if let Some(numbers) = options.dtype.filter(|&numbers| numbers != saved.numbers) {
                    let (path, own) = (path.display(), saved.numbers);
                    return Err(Error::Config(format!("{path} is in {own} and cannot be run in {numbers}")));
                }
                if options.adapter.is_some() || options.clip.is_some() || options.delta.is_some() {
                    let why = "was converted: it has what belongs to it, and takes no adapter, CLIP or delta";
                    return Err(Error::Config(format!("{} {why}", path.display())));
                }
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("decoder");
                let name = name.split('.').next().unwrap_or(name).to_owned();
                let checkpoint = Checkpoint::saved(file, &saved)?;
                let placement = Placement::open(options.device, Some(saved.numbers))?;
                let tokenizer = read_tokenizer(&saved.tokenizer)?;
                let decoder = Decoder::load(&checkpoint, &saved.config, tokenizer.len(), &placement)?;
                let fingerprint = saved.fingerprint;
                return Ok(Llm {
                    decoder,
                    tokenizer,
                    tokenizer_file: saved.tokenizer,
                    name,
                    fingerprint,
                    nothing: OnceLock::new(),
                    constrainer: OnceLock::new(),
                });
            }
            Some(backbone) => {
                let files =
                    Files { backbone, adapter: options.adapter.as_deref(), clip: options.clip.as_deref() };
                let (checkpoint, config) = Checkpoint::open(files)?;
                let checkpoint = with_delta(checkpoint, options.delta.as_deref())?;
                let name = options.adapter.as_ref().unwrap_or(backbone);
                let name = name.file_stem().map_or("decoder".into(), |s| s.to_string_lossy().into_owned());
                (name, checkpoint, config, tokenizer_file(backbone, options.tokenizer.as_deref())?)
            }
        };
        let (tokenizer_file, tokenizer) = (tokenizer.clone(), read_tokenizer(&tokenizer)?);
        let decoder = Decoder::load(&checkpoint, &config, tokenizer.len(), &placement)?;
        if options.clip.is_some() && decoder.picture().is_none() {
            return Err(Error::Config(
                "CLIP's file is named, and this decoder does not look through it".into(),
            ));
        }
        let mut digest = blake3::Hasher::new();
        checkpoint.fingerprints()?.iter().for_each(|part| _ = digest.update(part.as_bytes()));
        let fingerprint = Fingerprint::from_digest(*digest.finalize().as_bytes());
        let (nothing, constrainer) = (OnceLock::new(), OnceLock::new());
        Ok(Llm { decoder, tokenizer, tokenizer_file, name, fingerprint, nothing, constrainer })
    }

    /// Whether a decoder's files fit together, by the names and shapes of their tensors alone. Gives its family and sizes.
    ///
    /// # Errors
    /// As [`Llm::open`].
    pub fn check(options: &LlmOptions) -> Result<Config, Error> {
        let Some(backbone) = &options.backbone else {
            let (checkpoint, config) = nano_with(options)?;
            Decoder::check(checkpoint, &config, read_tokenizer(nano::TOKENIZER)?.len())?;
            return Ok(config);
        };
        if backbone.is_file()
            && let Some((_, saved)) = saved(backbone)?
        {
            return Ok(saved.config);
        }
        let (adapter, clip) = (options.adapter.as_deref(), options.clip.as_deref());
        let (checkpoint, config) = Checkpoint::open(Files { backbone, adapter, clip })?;
        let checkpoint = with_delta(checkpoint, options.delta.as_deref())?;
        let tokenizer = read_tokenizer(&tokenizer_file(backbone, options.tokenizer.as_deref())?)?;
        Decoder::check(checkpoint, &config, tokenizer.len())?;
        Ok(config)
    }

    /// Writes it as one file that is opened by mapping it; it must have been opened in q8_0, q6_k or q4_k.
    ///
    /// # Errors
    /// As [`Decoder::save`].
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        self.decoder.save(path, &self.tokenizer_file, self.fingerprint)
    }

    /// The network.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &SentencePiece {
        &self.tokenizer
    }

    /// What an answer of this form may go on with, before its first token.
    ///
    /// # Errors
    /// [`FormError`].
    pub fn constrain(&self, form: &Form) -> Result<Constraint, FormError> {
        let constrainer = match self.constrainer.get() {
            Some(known) => known,
            None => {
                let made = Constrainer::new(&self.tokenizer)?;
                self.constrainer.get_or_init(|| made)
            }
        };
        constrainer.begin(form)
    }

    /// A name for people: `nano`, or the adapter's file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Digest of backbone and adapter.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// A picture file as the decoder looks at it, `[3, S, S]`.
    ///
    /// # Errors
    /// [`media::Error`]; [`media::Error::NotAnImage`] for a decoder that looks at none.
    pub fn prepare_picture(&self, file: &[u8], limits: media::Limits) -> Result<Vec<f32>, media::Error> {
        let Some(picture) = self.decoder.picture() else {
            return Err(media::Error::NotAnImage("this decoder looks at no pictures".into()));
        };
        // OpenCV, which the published programs read with, turns a picture as its EXIF mark says.
        let options = ImageOptions { side: picture.side(), orientation: Orientation::Apply, limits };
        match picture.channel_order() {
            ChannelOrder::Rgb => media::image::prepare(file, &options),
            ChannelOrder::Bgr => media::image::prepare_bgr(file, &options),
        }
    }

    /// What a decoder that looks at pictures sees where there is none: the zeros that it was trained with. Computed once.
    ///
    /// # Errors
    /// As [`Decoder::visual_of_picture`].
    pub fn visual_of_nothing(&self) -> Result<Tensor, Error> {
        if let Some(seen) = self.nothing.get() {
            return Ok(seen.clone());
        }
        let side = self.decoder.picture().map_or(0, Picture::side);
        let seen = self.decoder.visual_of_picture(&vec![0.0; 3 * side * side])?;
        Ok(self.nothing.get_or_init(|| seen).clone())
    }

    /// How tokens are chosen where nobody says; the published programs' own figures.
    pub fn sampling(&self) -> SampleParams {
        match self.decoder.family() {
            Family::ImageBindLlm | Family::V2Picture => SampleParams::default(),
            Family::V2Chat => SampleParams { temperature: 0.8, top_p: 0.95, ..SampleParams::default() },
        }
    }

    /// The text that the decoder reads.
    pub fn text(&self, prompt: &Prompt) -> String {
        match prompt {
            Prompt::Raw(text) => text.clone(),
            Prompt::Conversation(conversation) => conversation.text(),
            Prompt::Instruction { instruction, input } => {
                let template = match self.decoder.family() {
                    Family::V2Picture => Template::V2Multimodal,
                    Family::ImageBindLlm | Family::V2Chat => Template::ImageBindLlm,
                };
                template.fill(instruction, input.as_deref())
            }
        }
    }

    /// The ids of a prompt, BOS before them, and how many of its first were dropped: a conversation that has grown too long
    /// keeps its end, as in the chat program, which leaves `max_tokens` positions for the answer (here half of all at most).
    /// BOS is lost then.
    ///
    /// # Errors
    /// [`PromptError`]: any other prompt must leave room for one token at least.
    pub fn encode(&self, prompt: &Prompt, max_tokens: usize) -> Result<(Vec<u32>, usize), PromptError> {
        let empty = match prompt {
            Prompt::Raw(own) | Prompt::Instruction { instruction: own, .. } => own.is_empty(),
            Prompt::Conversation(conversation) => conversation.turns.is_empty(),
        };
        if empty {
            return Err(PromptError::Empty);
        }
        let mut ids = vec![self.tokenizer.bos()];
        ids.extend(self.tokenizer.encode(&self.text(prompt))?);
        let limit = self.decoder.config().max_seq_len;
        let dropped = match prompt {
            // However long an answer is allowed, half of the positions are the conversation's.
            Prompt::Conversation(_) => ids.len().saturating_sub((limit - max_tokens.min(limit / 2)).max(1)),
            _ => 0,
        };
        ids.drain(..dropped);
        if ids.len() >= limit {
            return Err(PromptError::TooLong { received: ids.len(), limit });
        }
        Ok((ids, dropped))
    }
}

/// The built-in backbone with its own adapter, or with one that was trained on it.
fn nano_with(options: &LlmOptions) -> Result<(Checkpoint, Config), Error> {
    match &options.adapter {
        None => nano::decoder(),
        Some(path) => nano::backbone(Some(Weights::open(&adapter_file(path))?), options.clip.as_deref()),
    }
}

/// The tokenizer of a decoder: the built-in one's without a backbone, else as [`LlmOptions::tokenizer`] says.
///
/// # Errors
/// [`Error::Weights`].
pub fn tokenizer(backbone: Option<&Path>, named: Option<&Path>) -> Result<SentencePiece, Error> {
    match backbone {
        None if named.is_none() => read_tokenizer(nano::TOKENIZER),
        backbone => read_tokenizer(&tokenizer_file(backbone.unwrap_or(Path::new("")), named)?),
    }
}

/// A file that [`Llm::save`] wrote, and what it says; nothing for any other.
fn saved(path: &Path) -> Result<Option<(Weights, Saved)>, Error> {
    let file = Weights::open(path)?;
    Ok(Saved::of(&file)?.map(|saved| (file, saved)))
}

fn read_tokenizer(file: &[u8]) -> Result<SentencePiece, Error> {
    SentencePiece::from_bytes(file)
        .map_err(|e| Error::Weights { path: "tokenizer.model".into(), why: e.to_string() })
}

/// The same with a delta, if there is one.
fn with_delta(checkpoint: Checkpoint, delta: Option<&Path>) -> Result<Checkpoint, Error> {
    let Some(backbone) = delta else { return Ok(checkpoint) };
    let (delta, _) = Checkpoint::open(Files { backbone, adapter: None, clip: None })?;
    Ok(checkpoint.plus(delta))
}

/// The bytes of the tokenizer: as named, else beside the backbone or one folder up, where the original files have it.
fn tokenizer_file(backbone: &Path, named: Option<&Path>) -> Result<Vec<u8>, Error> {
    const NAME: &str = "tokenizer.model";
    let folder = if backbone.is_dir() { backbone } else { backbone.parent().unwrap_or(Path::new(".")) };
    let places: Vec<PathBuf> = match named {
        Some(path) => vec![path.to_owned()],
        None => [Some(folder), folder.parent()].into_iter().flatten().map(|f| f.join(NAME)).collect(),
    };
    let found = places.iter().find(|path| path.is_file()).ok_or_else(|| Error::Weights {
        path: places.first().map(|path| path.display().to_string()).unwrap_or_default(),
        why: "there is no tokenizer.model; name it".into(),
    })?;
    std::fs::read(found).map_err(|e| Error::Weights { path: found.display().to_string(), why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{ChatTemplate, Speaker, Turn};

    #[test]
    fn prompts_are_refused_by_both_lengths() {
        let llm = Llm::open(&LlmOptions::default()).unwrap();
        let ask = |instruction: &str| {
            llm.encode(&Prompt::Instruction { instruction: instruction.into(), input: None }, 20)
        };
        assert_eq!(ask("Generate caption of this image").unwrap().0.len(), 37);
        assert_eq!(ask(""), Err(PromptError::Empty));
        assert_eq!(llm.encode(&Prompt::Raw(String::new()), 20), Err(PromptError::Empty));
        let long = ask(&"zebra ".repeat(200)).unwrap_err();
        assert!(matches!(long, PromptError::TooLong { received: 161.., limit: 160 }), "{long}");
        assert!(matches!(ask(&"a".repeat(1 << 20)), Err(PromptError::Text(_))));
        // A conversation loses its beginning instead.
        let said = |text: &str| Turn { by: Speaker::Human, text: text.into() };
        let mut talk = Conversation { template: ChatTemplate::BairV1, system: None, turns: vec![said("Hi")] };
        let whole = llm.encode(&Prompt::Conversation(talk.clone()), 20).unwrap();
        assert_eq!((whole.0[0], whole.1), (llm.tokenizer().bos(), 0));
        talk.turns.splice(0..0, [said(&"zebra ".repeat(200)), said("Two.")]);
        let (cut, dropped) = llm.encode(&Prompt::Conversation(talk), 20).unwrap();
        assert!(cut.len() == 140 && dropped > 0 && cut.ends_with(&whole.0[whole.0.len() - 5..]));
    }

    #[test]
    fn a_saved_decoder_says_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nano.q8.safetensors");
        let nano = |backbone, dtype| Llm::open(&LlmOptions { backbone, dtype, ..LlmOptions::default() });
        let eight = nano(None, Some(WeightDtype::Q8_0)).unwrap();
        eight.save(&path).unwrap();
        let saved = nano(Some(path.clone()), None).unwrap();
        assert_eq!((saved.name(), saved.fingerprint()), ("nano", eight.fingerprint()));
        let prompt = Prompt::Instruction { instruction: "What shape is it?".into(), input: None };
        let (ids, _) = eight.encode(&prompt, 20).unwrap();
        assert_eq!(saved.encode(&prompt, 20).unwrap().0, ids);
        let logits = |llm: &Llm| {
            let shown: Vec<f32> = (0..128).map(|i| (i as f32 * 0.37).sin()).collect();
            let visual = llm.decoder().visual_of(&shown).unwrap();
            let mut sequence = llm.decoder().begin(Some(&visual), ids.len()).unwrap();
            let logits = llm.decoder().forward(&mut [(&mut sequence, &ids)]).unwrap();
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(logits(&eight), logits(&saved));
        // And nearly what the exact one says.
        let exact = logits(&nano(None, None).unwrap());
        let worst = exact.iter().zip(logits(&saved)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 0.5, "{worst}");
        assert!(nano(None, None).unwrap().save(&path).unwrap_err().to_string().contains("q8_0"));
        // Every way of cutting it short is told, and nothing is read beyond its end.
        let whole = std::fs::read(&path).unwrap();
        for len in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert!(nano(Some(path.clone()), None).is_err(), "{len}");
        }
    }
}
