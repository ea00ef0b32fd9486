//! The decoder as something that learns: the loss of a batch as a differentiable function of chosen tensors.
//!
//! ```text
//! group of tensors (data) ─► variables; everything else is read and stays as it is
//! batch ─► a part for each lane ─► what was seen ─► logits ─► cross entropy ─► gradients ─► summed in the order of the parts
//! ```
//! The loss is the mean over everything that is to be learned in the whole batch, however it is cut into parts. With [`Learner::spread`]
//! the parts run side by side, and if asked for, with the activations of one block at a time.
//!
//! The decoder is the one that answers ([`super::Decoder`]), loaded with variables: its layers then fold nothing and fuse nothing, so
//! that every operation has a derivative. CLIP is never trained.
//!
//! **Which tensors learn** is a [`Group`]. The published phases are presets. Two of them are the paper's *joint training*, in
//! our reading (arXiv 2304.15010, §3.2): caption batches move [`Group::V2_PRETRAIN`], instruction batches
//! [`Group::V2_FINETUNE`], in turn, in one model; the published program runs one after the other.
//!
//! Source: the training programs of ImageBind-LLM and LLaMA-Adapter V2.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, Device, Tensor, Var};

use super::Decoder;
use super::checkpoint::Checkpoint;
use super::config::Config;
use super::picture::Picture;
use crate::models::device::Variables;
use crate::models::learning::{Gradients, Lanes, Sum, placed, through_blocks};
use crate::models::{DeviceKind, Error, Placement};

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
    /// Everything of a decoder without an adapter.
    pub const BACKBONE: Group = Group { within: "llama.", begins: &["llama."], contains: &[] };
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

/// Embeddings for [`Shown::Embeddings`], `[B, d]`, from numbers row by row.
///
/// # Errors
/// [`Error::Input`] for numbers that are no whole rows.
pub fn embeddings(values: &[f32], width: usize) -> Result<Tensor, Error> {
    if width == 0 || !values.len().is_multiple_of(width) {
        let why = format!("embeddings are rows of {width} numbers");
        return Err(Error::Input { received: vec![values.len()], why });
    }
    Ok(Tensor::from_slice(values, (values.len() / width, width), &Device::Cpu)?)
}

/// Pictures for [`Shown::Pictures`], `[B, 3, S, S]`, from numbers picture by picture.
///
/// # Errors
/// [`Error::Input`] for numbers that are no whole pictures.
pub fn pictures(values: &[f32], side: usize) -> Result<Tensor, Error> {
    let each = 3 * side * side;
    if each == 0 || !values.len().is_multiple_of(each) {
        let why = format!("pictures have [3, {side}, {side}] numbers each");
        return Err(Error::Input { received: vec![values.len()], why });
    }
    Ok(Tensor::from_slice(values, (values.len() / each, 3, side, side), &Device::Cpu)?)
}

/// Texts of one length with what is to be learned of them.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Ids, `[B · T]`, text after text.
    pub ids: &'a [u32],
    /// The same, and 0 where nothing is to be learned.
    pub labels: &'a [u32],
    /// How much each label counts, 0 or above, `[B · T]`; empty where all count alike.
    pub weights: &'a [f32],
    /// Tokens of a text, T.
    pub length: usize,
    /// What they are about.
    pub shown: Shown<'a>,
}

impl Batch<'_> {
    /// Texts.
    fn texts(&self) -> usize {
        self.ids.len() / self.length.max(1)
    }

    /// The label of every position, the token behind it, and how much it counts: 0 where it is not to be learned.
    fn learned(&self, texts: Range<usize>) -> Learned {
        let next = |i: usize| {
            let last = (i + 1).is_multiple_of(self.length);
            let label = if last { 0 } else { self.labels[i + 1] };
            let weight = if self.weights.is_empty() || last { 1.0 } else { self.weights[i + 1] };
            (label, if label == 0 { 0.0 } else { weight })
        };
        let (labels, weights) = (texts.start * self.length..texts.end * self.length).map(next).unzip();
        Learned { labels, weights }
    }

    /// Refuses parts that do not fit each other.
    fn check(&self) -> Result<(), Error> {
        if self.labels.len() != self.ids.len()
            || self.length == 0
            || self.ids.is_empty()
            || !self.ids.len().is_multiple_of(self.length)
        {
            let received = vec![self.ids.len(), self.labels.len(), self.length];
            return Err(Error::Input { received, why: "ids and labels are [B, T] alike".into() });
        }
        let weighed = |&weight: &f32| weight.is_finite() && weight >= 0.0;
        if !self.weights.is_empty()
            && (self.weights.len() != self.ids.len() || !self.weights.iter().all(weighed))
        {
            let why = "weights are [B, T] as ids are, finite and 0 or above".into();
            return Err(Error::Input { received: vec![self.weights.len(), self.ids.len()], why });
        }
        match self.shown {
            Shown::Embeddings(x) | Shown::Pictures(x) if x.dims().first() != Some(&self.texts()) => {
                let why = format!("there are {} texts, and what is shown is for others", self.texts());
                Err(Error::Input { received: x.dims().to_vec(), why })
            }
            _ => Ok(()),
        }
    }
}

/// What is to be learned of some texts, position by position.
struct Learned {
    labels: Vec<u32>,
    weights: Vec<f32>,
}

impl Learned {
    fn weight(&self) -> f64 {
        self.weights.iter().map(|&weight| f64::from(weight)).sum()
    }
}

/// A decoder of which some tensors are variables.
pub struct Learner {
    decoder: Decoder,
    variables: Arc<Variables>,
    device: Device,
    lanes: Lanes,
    /// Whether blocks are computed twice, for the activations of one of them at a time.
    blockwise: bool,
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
        Self::of_groups(checkpoint, config, vocab_size, &[*group])
    }

    /// Makes variables of the tensors of several groups, which may learn in turn.
    ///
    /// # Errors
    /// As [`Learner::new`].
    pub fn of_groups(
        checkpoint: &Checkpoint,
        config: &Config,
        vocab_size: usize,
        groups: &[Group],
    ) -> Result<Self, Error> {
        Self::on(DeviceKind::Cpu, checkpoint, config, vocab_size, groups)
    }

    /// The same on a device, on which everything is then.
    ///
    /// # Errors
    /// As [`Learner::new`]; [`Error::Device`] where there is none.
    pub fn on(
        device: DeviceKind,
        checkpoint: &Checkpoint,
        config: &Config,
        vocab_size: usize,
        groups: &[Group],
    ) -> Result<Self, Error> {
        let mut variables = Variables::new();
        let learns = |name: &String| groups.iter().any(|group| group.holds(name));
        for name in checkpoint.names().into_iter().filter(learns) {
            let Some(shape) = checkpoint.shape(&name) else { continue };
            let values = checkpoint.values(&name, &shape)?;
            variables.insert(name, Var::from_vec(values, shape, &Device::Cpu)?);
        }
        if variables.is_empty() {
            return Err(Error::Config(format!("no tensor of these files is in the groups {groups:?}")));
        }
        let placement = Placement::learning(placed(variables, device)?);
        let decoder = Decoder::load(checkpoint, config, vocab_size, &placement)?;
        let (device, variables) = (placement.device, placement.variables.unwrap_or_default());
        Ok(Learner { decoder, variables, device, lanes: Lanes::default(), blockwise: false })
    }

    /// The same, with a batch in parts.
    ///
    /// * `threads`: parts that are worked on at a time, on the CPU. `blockwise`: hold the activations of one block at a time; each is computed twice for that.
    ///
    /// # Errors
    /// [`Error::Device`] where no thread can be started.
    pub fn spread(self, threads: usize, blockwise: bool) -> Result<Self, Error> {
        Ok(Learner { lanes: Lanes::start(threads, &self.device)?, blockwise, ..self })
    }

    /// What learns, by name.
    pub fn variables(&self) -> &BTreeMap<String, Var> {
        &self.variables
    }

    /// The networks that look at pictures; `None` for a decoder that takes embeddings, or nothing.
    pub fn picture(&self) -> Option<&Picture> {
        self.decoder.picture()
    }

    /// Components of the embeddings it takes; `None` for a decoder without a bind network.
    pub fn embedding_width(&self) -> Option<usize> {
        self.decoder.embedding_width()
    }

    /// The loss of a batch and the gradient of every variable; a variable that had no part in it has none, and an optimiser must
    /// leave it alone, decay included.
    ///
    /// # Errors
    /// [`Error::Input`] for a batch that the model cannot be given.
    pub fn gradients(&self, batch: &Batch<'_>) -> Result<(f32, Gradients), Error> {
        batch.check()?;
        let weight = batch.learned(0..batch.texts()).weight();
        let share = if weight > 0.0 { 1.0 / weight } else { 1.0 };
        self.lanes.sum(batch.texts(), &|texts| self.part(batch, texts, share))
    }

    /// What a batch costs without learning: the sum of `−log p` over what is to be learned, each by its weight, and of how many tokens
    /// that is.
    ///
    /// # Errors
    /// As [`Learner::gradients`].
    pub fn loss(&self, batch: &Batch<'_>) -> Result<(f64, usize), Error> {
        batch.check()?;
        let of_part = |texts: Range<usize>| {
            let learned = batch.learned(texts.clone());
            let (x, shown) = self.begun(batch, &texts)?;
            let shown = shown.map(|shown| shown.detach());
            // No graph is kept: activations go block by block.
            let x = (0..self.decoder.config().n_layers)
                .try_fold(x, |x, i| Ok::<_, Error>(self.decoder.through(i, &x, shown.as_ref())?.detach()))?;
            let lost = lost(&self.decoder.spoken(&x)?, &learned, 1.0)?.to_scalar::<f32>()?;
            Ok((f64::from(lost), learned.weights.iter().filter(|&&weight| weight > 0.0).count()))
        };
        let parts = self.lanes.over(batch.texts(), &of_part)?;
        Ok(parts.into_iter().fold((0.0, 0), |(loss, count), (l, c)| (loss + l, count + c)))
    }

    /// `[B, T, V]`
    ///
    /// # Errors
    /// As [`Learner::gradients`].
    pub fn logits(&self, batch: &Batch<'_>) -> Result<Tensor, Error> {
        batch.check()?;
        let (x, shown) = self.begun(batch, &(0..batch.texts()))?;
        let x = (0..self.decoder.config().n_layers)
            .try_fold(x, |x, i| self.decoder.through(i, &x, shown.as_ref()))?;
        self.decoder.spoken(&x)
    }

    /// Some texts as the first block is given them, `[b, T, D]`, and what the adapter is given, `[b, P, D]`.
    fn begun(&self, batch: &Batch<'_>, texts: &Range<usize>) -> Result<(Tensor, Option<Tensor>), Error> {
        let ids = &batch.ids[texts.start * batch.length..texts.end * batch.length];
        let some = |x: &Tensor| x.narrow(0, texts.start, texts.len());
        let shown = match batch.shown {
            Shown::Nothing => self.decoder.shown(Shown::Nothing)?,
            Shown::Embeddings(x) => self.decoder.shown(Shown::Embeddings(&some(x)?))?,
            Shown::Pictures(x) => self.decoder.shown(Shown::Pictures(&some(x)?))?,
        };
        Ok((self.decoder.embedded(ids, batch.length)?, shown))
    }

    /// Some texts of a batch; `share`: what a token counts.
    fn part(&self, batch: &Batch<'_>, texts: Range<usize>, share: f64) -> Result<(f32, Gradients), Error> {
        let learned = batch.learned(texts.clone());
        let (x, shown) = self.begun(batch, &texts)?;
        let layers = self.decoder.config().n_layers;
        let block = |i: usize, x: &Tensor, shown: Option<&Tensor>| self.decoder.through(i, x, shown);
        let end = |x: &Tensor| lost(&self.decoder.spoken(x)?, &learned, share);
        let mut sum = Sum::default();
        if self.blockwise {
            let mut collect = |found: &_| sum.add_found(&self.variables, found);
            let loss = through_blocks(&x, shown.as_ref(), layers, &block, &end, &mut collect)?;
            return Ok((loss, sum.times(1.0)?));
        }
        let x = (0..layers).try_fold(x, |x, i| block(i, &x, shown.as_ref()))?;
        let loss = end(&x)?;
        sum.add_found(&self.variables, &loss.backward()?)?;
        Ok((loss.to_scalar()?, sum.times(1.0)?))
    }
}

/// The sum of `−log p` over the labels, each times its weight and a share.
///
/// * `logits`: `[b, T, V]`.
fn lost(logits: &Tensor, learned: &Learned, share: f64) -> Result<Tensor, Error> {
    let (texts, length, words) = logits.dims3()?;
    let logs = candle_nn::ops::log_softmax(&logits.reshape((texts * length, words))?, D::Minus1)?;
    let place = (texts * length, 1);
    let weights = Tensor::from_slice(&learned.weights, place, logs.device())?;
    let chosen = (logs.gather(&Tensor::from_slice(&learned.labels, place, logs.device())?, 1)? * weights)?;
    Ok((chosen.sum_all()? * -share)?)
}
