//! The sizes of a LLaMA, from the `params.json` of the original files or the `config.json` of Hugging Face's.

use serde::{Deserialize, Serialize};

use crate::models::Error;

/// Sizes of a decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Width of the residual stream, D.
    pub dim: usize,
    /// Blocks.
    pub n_layers: usize,
    /// Heads of attention; keys and values have as many.
    pub n_heads: usize,
    /// Width of the feed-forward layer.
    pub hidden: usize,
    /// Of the RMS norms.
    pub norm_eps: f32,
    /// Pieces of the vocabulary; `None` until the tokenizer says.
    pub vocab_size: Option<usize>,
    /// Positions of a sequence: prompt and answer together.
    pub max_seq_len: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Which program's adapter it has; `None` until its tensors say.
    #[serde(default)]
    pub family: Option<Family>,
    /// What LLaMA-Adapter V2's files do not say of the way from a picture to the decoder.
    #[serde(default)]
    pub picture: PictureConfig,
}

/// Whose adapter a decoder has. The published programs share names and differ in what these mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// ImageBind-LLM: one embedding of the joint space in every adapter layer. Decoders without an adapter count as it.
    ImageBindLlm,
    /// LLaMA-Adapter V2, multimodal: several tokens seen in one picture.
    V2Picture,
    /// LLaMA-Adapter V2, chat: biases and scales, nothing shown.
    V2Chat,
}

/// Of LLaMA-Adapter V2's visual blocks and wiring. Keys of `params.json` (or `config.json`), all optional.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PictureConfig {
    /// Heads of the visual blocks.
    #[serde(rename = "v_num_heads")]
    pub heads: usize,
    /// In which order the published weights saw a picture's channels.
    pub channel_order: ChannelOrder,
    /// The paper's early fusion, in our reading of it, instead of the published wiring: so many first layers are given what
    /// was seen, without prompts, and the last ones prompts alone. 0: every adapter layer is given their sum.
    pub early_fusion: usize,
}

impl Default for PictureConfig {
    fn default() -> Self {
        PictureConfig { heads: 16, channel_order: ChannelOrder::Bgr, early_fusion: 0 }
    }
}

/// Order of a picture's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelOrder {
    /// Red first, as CLIP was trained.
    Rgb,
    /// Blue first: the published V2 programs read pictures with OpenCV, in training as well.
    Bgr,
}

/// Positions where a file does not say; the published programs' own figures.
const MAX_SEQ_LEN: usize = 512;
const CHAT_MAX_SEQ_LEN: usize = 2048;
/// Most positions that are served, whatever a file says.
const MAX_POSITIONS: usize = 1 << 16;
/// Largest width, hidden width or rounding of it that a file may state: far beyond any model, and its products still fit.
const MAX_SIZE: usize = 1 << 20;

/// `params.json`. Defaults are the published program's.
#[derive(Deserialize)]
struct Params {
    #[serde(default = "five_hundred_twelve")]
    dim: usize,
    #[serde(default = "eight")]
    n_layers: usize,
    #[serde(default = "eight")]
    n_heads: usize,
    n_kv_heads: Option<usize>,
    #[serde(default = "two_hundred_fifty_six")]
    multiple_of: usize,
    ffn_dim_multiplier: Option<f64>,
    #[serde(default = "small")]
    norm_eps: f32,
    vocab_size: Option<i64>,
    max_seq_len: Option<usize>,
    rope_theta: Option<f64>,
    #[serde(flatten)]
    picture: PictureConfig,
}

fn five_hundred_twelve() -> usize {
    512
}

fn eight() -> usize {
    8
}

fn two_hundred_fifty_six() -> usize {
    256
}

fn small() -> f32 {
    1e-5
}

/// `config.json` of a converted checkpoint.
#[derive(Deserialize)]
struct HuggingFace {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    intermediate_size: usize,
    rms_norm_eps: f32,
    vocab_size: usize,
    rope_theta: Option<f64>,
    #[serde(flatten)]
    picture: PictureConfig,
}

impl Family {
    /// What it is called.
    pub fn title(self) -> &'static str {
        match self {
            Family::ImageBindLlm => "ImageBind-LLM",
            Family::V2Picture => "LLaMA-Adapter V2",
            Family::V2Chat => "LLaMA-Adapter V2's chat program",
        }
    }

    fn positions(self) -> usize {
        match self {
            Family::ImageBindLlm | Family::V2Picture => MAX_SEQ_LEN,
            Family::V2Chat => CHAT_MAX_SEQ_LEN,
        }
    }
}

impl Config {
    /// Reads a `params.json`.
    ///
    /// * `family`: which program's figure of positions counts where the file has none.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn from_params(json: &str, family: Family) -> Result<Self, Error> {
        let p: Params = serde_json::from_str(json).map_err(|e| Error::Config(format!("params.json: {e}")))?;
        Self::new_heads(p.n_heads, p.n_kv_heads)?;
        if p.dim > MAX_SIZE || p.multiple_of > MAX_SIZE {
            return Err(too_large());
        }
        let whole = 2 * (4 * p.dim) / 3;
        // The cast saturates, and the bound keeps what is rounded up from overflowing; `checked` refuses it.
        let scaled =
            p.ffn_dim_multiplier.map_or(whole, |factor| (factor * whole as f64) as usize).min(8 * MAX_SIZE);
        Config {
            dim: p.dim,
            n_layers: p.n_layers,
            n_heads: p.n_heads,
            hidden: scaled.next_multiple_of(p.multiple_of.max(1)),
            norm_eps: p.norm_eps,
            vocab_size: p.vocab_size.and_then(|n| usize::try_from(n).ok()),
            max_seq_len: p.max_seq_len.unwrap_or(family.positions()),
            rope_theta: p.rope_theta.unwrap_or(10_000.0),
            family: None,
            picture: p.picture,
        }
        .checked()
    }

    /// Reads a `config.json` of Hugging Face's LLaMA.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn from_hugging_face(json: &str, family: Family) -> Result<Self, Error> {
        let c: HuggingFace =
            serde_json::from_str(json).map_err(|e| Error::Config(format!("config.json: {e}")))?;
        Self::new_heads(c.num_attention_heads, c.num_key_value_heads)?;
        Config {
            dim: c.hidden_size,
            n_layers: c.num_hidden_layers,
            n_heads: c.num_attention_heads,
            hidden: c.intermediate_size,
            norm_eps: c.rms_norm_eps,
            vocab_size: Some(c.vocab_size),
            max_seq_len: family.positions(),
            rope_theta: c.rope_theta.unwrap_or(10_000.0),
            family: None,
            picture: c.picture,
        }
        .checked()
    }

    /// Components of a head.
    pub fn head(&self) -> usize {
        self.dim / self.n_heads
    }

    fn new_heads(heads: usize, kv: Option<usize>) -> Result<(), Error> {
        match kv {
            Some(kv) if kv != heads => Err(Error::Config(format!(
                "{kv} heads of keys for {heads} of queries: the adapters are for LLaMA 1, which has as many of both"
            ))),
            _ => Ok(()),
        }
    }

    pub(super) fn checked(self) -> Result<Self, Error> {
        let fail = |why: String| Err(Error::Config(why));
        if [self.dim, self.hidden, self.n_layers, self.n_heads].into_iter().any(|size| size > MAX_SIZE) {
            return Err(too_large());
        }
        if self.dim == 0 || self.n_layers == 0 || self.n_heads == 0 || self.hidden == 0 {
            return fail("width, layers, heads and feed-forward width must be above 0".into());
        }
        if !self.dim.is_multiple_of(2 * self.n_heads) {
            return fail(format!(
                "a width of {} is no even number for each of {} heads",
                self.dim, self.n_heads
            ));
        }
        if self.max_seq_len == 0 || self.max_seq_len > MAX_POSITIONS {
            return fail(format!(
                "max_seq_len is {}; from 1 to {MAX_POSITIONS} can be served",
                self.max_seq_len
            ));
        }
        if !(self.norm_eps > 0.0 && self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return fail("norm_eps and rope_theta must be above 0".into());
        }
        Ok(self)
    }
}

fn too_large() -> Error {
    Error::Config(format!("its sizes are beyond any model: at most {MAX_SIZE} each"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Config, Error> {
        Config::from_params(json, Family::ImageBindLlm)
    }

    #[test]
    fn the_published_sizes() {
        let json = r#"{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1}"#;
        let config = read(json).unwrap();
        assert_eq!((config.hidden, config.vocab_size, config.max_seq_len), (11008, None, 512));
        let grouped = r#"{"dim": 8192, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80}"#;
        assert!(read(grouped).unwrap_err().to_string().contains("LLaMA 1"));
        assert!(read(r#"{"dim": 30, "n_heads": 4}"#).is_err());
        let chat =
            r#"{"dim": 8192, "n_heads": 64, "v_num_heads": 4, "channel_order": "rgb", "early_fusion": 1}"#;
        let chat = Config::from_params(chat, Family::V2Chat).unwrap();
        assert_eq!(chat.max_seq_len, 2048);
        let told = PictureConfig { heads: 4, channel_order: ChannelOrder::Rgb, early_fusion: 1 };
        assert_eq!(chat.picture, told);
        assert_eq!(config.picture, PictureConfig::default());
        assert!(read(r#"{"channel_order": "grb"}"#).is_err());
        for absurd in [
            r#"{"dim": 18446744073709551615}"#,
            r#"{"n_heads": 18446744073709551615}"#,
            r#"{"multiple_of": 18446744073709551615}"#,
            r#"{"dim": 64, "ffn_dim_multiplier": 1e300}"#,
            r#"{"dim": 64, "n_layers": 18446744073709551615}"#,
        ] {
            let refused = read(absurd).unwrap_err().to_string();
            assert!(refused.contains("beyond any model"), "{absurd}: {refused}");
        }
    }
}
