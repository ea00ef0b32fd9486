//! The decoder as something that learns: the loss of a batch as a differentiable function of chosen tensors.
//!
//! ```text
//! group of tensors (data) ─► variables; everything else is read and stays as it is
//! batch ─► what was seen ─► logits ─► mean cross entropy of what is to be learned ─► a gradient for each variable
//! ```
//! The decoder is the one that answers ([`super::Decoder`]), loaded with variables: its layers then fold nothing and fuse nothing, so
//! that every operation has a derivative. CLIP is never trained.
//!
//! **Which tensors learn** is a [`Group`]. The published phases are presets. Two of them are the paper's *joint training*, in
//! our reading (arXiv 2304.15010, §3.2): caption batches move [`Group::V2_PRETRAIN`], instruction batches
//! [`Group::V2_FINETUNE`], in turn, in one model; the published program runs one after the other.
//!
//! Source: the training programs of ImageBind-LLM and LLaMA-Adapter V2.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{D, Device, Tensor, Var};

use super::Decoder;
use super::checkpoint::Checkpoint;
use super::config::Config;
use crate::models::device::Variables;
use crate::models::{Error, Placement};

/// Tensors that learn together, by what their names contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// What the names begin with; empty for any.
    pub within: &'static str,
    /// Of these, a name begins with one …
    pub begins: &'static [&'static str],
    /// … or contains one.
    pub contains: &'static [&'static str],
}

impl Group {
    /// ImageBind-LLM's first phase: gates, prefix and bind network.
    pub const BIND_PRETRAIN: Group =
        Group { within: "", begins: &["image_bind_", "prefix_query."], contains: &["gate"] };
    /// Its second phase: norms, biases and low-rank matrices of the backbone.
    pub const BIND_FINETUNE: Group =
        Group { within: "llama.", begins: &[], contains: &["norm", "bias", "lora"] };
    /// The multimodal V2's first phase, which caption batches of joint training move: the visual networks, prompts and gates.
    pub const V2_PRETRAIN: Group = Group {
        within: "",
        begins: &[],
        contains: &["gate", "clip_proj", "visual_query", "visual_blocks", "visual_proj", "adapter_query"],
    };
    /// Its second phase as published, which instruction batches of joint training move. Low-rank matrices are not among them,
    /// though models with such were released.
    pub const V2_FINETUNE: Group = Group { within: "llama.", begins: &[], contains: &["norm", "bias"] };
    /// The same with low-rank matrices, as the released `LORA-BIAS-7B` must have been trained. Their gates are in the first phase.
    pub const V2_FINETUNE_LORA: Group =
        Group { within: "llama.", begins: &[], contains: &["norm", "bias", "lora"] };
    /// The chat program's: biases, scales, norms, and prompts with their gates where there are any. The published filter looks
    /// for names that its tensors no longer have.
    pub const CHAT: Group =
        Group { within: "", begins: &[], contains: &["_bias", "_scale", "norm", "gate", "adapter_query"] };

    /// Whether a tensor of this name learns.
    pub fn holds(&self, name: &str) -> bool {
        name.starts_with(self.within)
            && !name.starts_with("clip.")
            && !name.starts_with("image_bind.")
            && (self.begins.iter().any(|part| name.starts_with(part))
                || self.contains.iter().any(|part| name.contains(part)))
    }
}

/// What a batch is about.
#[derive(Debug, Clone, Copy)]
pub enum Shown<'a> {
    /// Nothing.
    Nothing,
    /// Embeddings as the cache hands them on, `[B, d]`.
    Embeddings(&'a Tensor),
    /// Pictures, normalised and in the model's order of channels, `[B, 3, S, S]`.
    Pictures(&'a Tensor),
}

/// Texts of one length with what is to be learned of them.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Ids, `[B · T]`, text after text.
    pub ids: &'a [u32],
    /// The same, and 0 where nothing is to be learned.
    pub labels: &'a [u32],
    /// Tokens of a text, T.
    pub length: usize,
    /// What they are about.
    pub shown: Shown<'a>,
}

/// A decoder of which some tensors are variables.
pub struct Learner {
    decoder: Decoder,
    variables: Arc<Variables>,
}

impl Learner {
    /// Makes variables of a group's tensors, as the files have them.
    ///
    /// # Errors
    /// As [`Decoder::load`]; [`Error::Config`] for a group without tensors.
    pub fn new(
        checkpoint: &Checkpoint,
        config: &Config,
        vocab_size: usize,
        group: &Group,
    ) -> Result<Self, Error> {
        let mut variables = Variables::new();
        for name in checkpoint.names().into_iter().filter(|name| group.holds(name)) {
            let Some(shape) = checkpoint.shape(&name) else { continue };
            let values = checkpoint.values(&name, &shape)?;
            variables.insert(name, Var::from_vec(values, shape, &Device::Cpu)?);
        }
        if variables.is_empty() {
            return Err(Error::Config(format!("no tensor of these files is in the group {group:?}")));
        }
        let placement = Placement::learning(variables);
        let decoder = Decoder::load(checkpoint, config, vocab_size, &placement)?;
        let variables = placement.variables.unwrap_or_default();
        Ok(Learner { decoder, variables })
    }

    /// What learns, by name.
    pub fn variables(&self) -> &BTreeMap<String, Var> {
        &self.variables
    }

    /// The loss of a batch and the gradient of every variable; a variable that had no part in it has none, and an optimiser must
    /// leave it alone, decay included.
    ///
    /// # Errors
    /// [`Error::Input`] for a batch that the model cannot be given.
    pub fn gradients(&self, batch: &Batch<'_>) -> Result<(f32, BTreeMap<String, Tensor>), Error> {
        let (loss, store) = self.backward(batch)?;
        let of = |(name, var): (&String, &Var)| Some((name.clone(), store.get(var.as_tensor())?.clone()));
        Ok((loss, self.variables.iter().filter_map(of).collect()))
    }

    /// The same as candle keeps it.
    pub(super) fn backward(&self, batch: &Batch<'_>) -> Result<(f32, GradStore), Error> {
        let loss = self.loss(&self.logits(batch)?, batch)?;
        Ok((loss.to_scalar::<f32>()?, loss.backward()?))
    }

    /// `[B, T, V]`
    ///
    /// # Errors
    /// As [`Learner::gradients`].
    pub fn logits(&self, batch: &Batch<'_>) -> Result<Tensor, Error> {
        if batch.labels.len() != batch.ids.len() {
            let (received, why) =
                (vec![batch.ids.len(), batch.labels.len()], "ids and labels are [B, T] alike".into());
            return Err(Error::Input { received, why });
        }
        let mut x = self.decoder.embedded(batch.ids, batch.length)?;
        let shown = self.decoder.shown(batch.shown)?;
        for i in 0..self.decoder.config().n_layers {
            x = self.decoder.through(i, &x, shown.as_ref())?;
        }
        self.decoder.spoken(&x)
    }

    /// The mean over what is to be learned; 0 where that is nothing.
    fn loss(&self, logits: &Tensor, batch: &Batch<'_>) -> Result<Tensor, Error> {
        let (texts, length, words) = logits.dims3()?;
        let logs = candle_nn::ops::log_softmax(&logits.reshape((texts * length, words))?, D::Minus1)?;
        let next = |i: usize| {
            let last = (i + 1).is_multiple_of(length);
            if last { 0 } else { batch.labels[i + 1] }
        };
        let labels: Vec<u32> = (0..texts * length).map(next).collect();
        let learned: Vec<f32> = labels.iter().map(|&label| f32::from(u8::from(label != 0))).collect();
        let count = learned.iter().sum::<f32>().max(1.0);
        let place = |n| (n, 1);
        let labels = Tensor::from_vec(labels, place(texts * length), &Device::Cpu)?;
        let learned = Tensor::from_vec(learned, place(texts * length), &Device::Cpu)?;
        let chosen = (logs.gather(&labels, 1)? * learned)?;
        Ok((chosen.sum_all()? * (-1.0 / f64::from(count)))?)
    }
}
