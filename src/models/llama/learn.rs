//! The decoder as something that learns: the loss of a batch as a differentiable function of chosen tensors.
//!
//! ```text
//! group of tensors (data) ─► variables; everything else is read and stays as it is
//! batch ─► what was seen ─► logits ─► mean cross entropy of what is to be learned ─► a gradient for each variable
//! ```
//! Inference ([`super::Decoder`]) folds what is linear into the weights and keeps keys and values; here every tensor stays
//! apart, in f32, and every operation has a derivative. CLIP is never trained and is run as in inference.
//!
//! **Which tensors learn** is a [`Group`]. The published phases are presets. Two of them are the paper's *joint training*, in
//! our reading (arXiv 2304.15010, §3.2): caption batches move [`Group::V2_PRETRAIN`], instruction batches
//! [`Group::V2_FINETUNE`], in turn, in one model; the published program runs one after the other.
//!
//! Source: the training programs of ImageBind-LLM and LLaMA-Adapter V2.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Tensor, Var};

use super::bind;
use super::checkpoint::Checkpoint;
use super::config::{Config, Family};
use super::picture::{LAYER_NORM_EPS, Picture};
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
pub struct Learner<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    family: Family,
    vocab_size: usize,
    picture: Option<Picture>,
    variables: BTreeMap<String, Var>,
    constants: RefCell<BTreeMap<String, Tensor>>,
}

impl<'a> Learner<'a> {
    /// Makes variables of a group's tensors, as the files have them.
    ///
    /// # Errors
    /// As [`super::Decoder::load`]; [`Error::Config`] for a group without tensors.
    pub fn new(
        checkpoint: &'a Checkpoint,
        config: &'a Config,
        vocab_size: usize,
        group: &Group,
    ) -> Result<Self, Error> {
        let family = config.family.unwrap_or_else(|| checkpoint.family());
        if config.picture.early_fusion > 0 {
            return Err(Error::Config("early fusion is for inference; it has no gradients here".into()));
        }
        let picture = match family {
            Family::V2Picture => {
                Some(Picture::load(checkpoint, config.dim, &config.picture, &Placement::cpu())?)
            }
            Family::ImageBindLlm | Family::V2Chat => None,
        };
        let mut variables = BTreeMap::new();
        for name in checkpoint.names().into_iter().filter(|name| group.holds(name)) {
            let shape = checkpoint.shape(&name).unwrap_or_default();
            let values = checkpoint.values(&name, &shape)?;
            variables.insert(name, Var::from_vec(values, shape, &Device::Cpu)?);
        }
        if variables.is_empty() {
            return Err(Error::Config(format!("no tensor of these files is in the group {group:?}")));
        }
        let constants = RefCell::default();
        Ok(Learner { checkpoint, config, family, vocab_size, picture, variables, constants })
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
        let (count, length) = (batch.ids.len(), batch.length);
        let fits = length > 0 && count.is_multiple_of(length) && batch.labels.len() == count;
        if !fits || length > self.config.max_seq_len {
            let why = format!("ids and labels are [B, T] alike, with T at most {}", self.config.max_seq_len);
            return Err(Error::Input { received: vec![count, length], why });
        }
        let (dim, texts) = (self.config.dim, count / length);
        let ids = Tensor::from_slice(batch.ids, count, &Device::Cpu)?;
        let table = self.get("llama.tok_embeddings.weight", &[self.vocab_size, dim])?;
        let mut x = table.index_select(&ids, 0)?.reshape((texts, length, dim))?;
        let seen = self.seen(batch.shown)?;
        let mask = causal(length)?;
        for i in 0..self.config.n_layers {
            x = self.block(&x, i, seen.as_ref(), &mask)?;
        }
        let x = self.rms(&x, "llama.norm.weight", self.config.norm_eps)?;
        let output = self.get("llama.output.weight", &[self.vocab_size, dim])?;
        Ok(x.reshape((count, dim))?.matmul(&output.t()?)?.reshape((texts, length, self.vocab_size))?)
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

    /// What the adapter is given, `[B, P, D]`.
    fn seen(&self, shown: Shown<'_>) -> Result<Option<Tensor>, Error> {
        let refuse = |why: &str| Err(Error::Input { received: vec![], why: why.into() });
        match (shown, self.family) {
            (Shown::Nothing, _) => Ok(None),
            (Shown::Embeddings(x), Family::ImageBindLlm) => Ok(Some(self.bound(x)?.unsqueeze(1)?)),
            (Shown::Pictures(x), Family::V2Picture) => self.looked(x).map(Some),
            (Shown::Embeddings(_), _) => refuse("this decoder takes no embeddings"),
            (Shown::Pictures(_), _) => refuse("this decoder looks at no pictures"),
        }
    }

    /// The bind network: `[B, d]` → `[B, D]`.
    fn bound(&self, x: &Tensor) -> Result<Tensor, Error> {
        let dim = self.config.dim;
        let width = x.dim(D::Minus1)?;
        let hidden = self.checkpoint.matrix_shape("image_bind_f1_1").map_or(4 * dim, |[out, _]| out);
        let legacy = self.has("image_bind_norm_1.bias");
        let mut h = self.linear(x, "image_bind_proj", [dim, width])?;
        for n in 1..=bind::BLOCKS {
            let norm = format!("image_bind_norm_{n}");
            let normed = match legacy {
                true => self.layer_norm(&h, &norm, bind::LAYER_EPS)?,
                false => self.rms(&h, &format!("{norm}.weight"), bind::RMS_EPS)?,
            };
            let part = |f: &str, x: &Tensor, shape| self.linear(x, &format!("image_bind_{f}_{n}"), shape);
            let gated = (part("f1", &normed, [hidden, dim])?.silu()? * part("f3", &normed, [hidden, dim])?)?;
            h = (h + part("f2", &gated, [dim, hidden])?)?;
        }
        Ok(h)
    }

    /// The visual networks behind CLIP: `[B, 3, S, S]` → `[B, P, D]`.
    fn looked(&self, pictures: &Tensor) -> Result<Tensor, Error> {
        let Some(picture) = &self.picture else {
            return Err(Error::Input { received: vec![], why: "this decoder looks at no pictures".into() });
        };
        let tokens = picture.clip(pictures)?.detach();
        let (batch, _, out) = tokens.dims3()?;
        let [rows, width] = picture.query_shape();
        let tokens = self.linear(&tokens, "clip_proj", [width, out])?;
        let tokens = self.layer_norm(&tokens, "clip_proj_norm", LAYER_NORM_EPS)?;
        let query = self.get("visual_query.weight", &[rows, width])?;
        let query = query.unsqueeze(0)?.broadcast_as((batch, rows, width))?;
        let mut x = Tensor::cat(&[&query, &tokens], 1)?;
        for i in 0..picture.depth() {
            let at = |part: &str| format!("visual_blocks.{i}.{part}");
            let hidden = self.checkpoint.matrix_shape(&at("mlp.fc1")).map_or(4 * width, |[out, _]| out);
            let normed = self.layer_norm(&x, &at("norm1"), LAYER_NORM_EPS)?;
            let qkv = self.linear(&normed, &at("attn.qkv"), [3 * width, width])?;
            let heads = self.config.picture.heads;
            let part = |n: usize| heads_of(&qkv.narrow(D::Minus1, n * width, width)?, heads);
            let mixed = attended(&part(0)?, &part(1)?, &part(2)?, None)?;
            x = (x + self.linear(&joined(&mixed)?, &at("attn.proj"), [width, width])?)?;
            let normed = self.layer_norm(&x, &at("norm2"), LAYER_NORM_EPS)?;
            let raised = self.linear(&normed, &at("mlp.fc1"), [hidden, width])?.gelu_erf()?;
            x = (x + self.linear(&raised, &at("mlp.fc2"), [width, hidden])?)?;
        }
        let kept = x.narrow(1, 0, rows)?.contiguous()?;
        let kept = self.linear(&kept, "visual_proj", [self.config.dim, width])?;
        self.layer_norm(&kept, "visual_proj_norm", LAYER_NORM_EPS)
    }

    /// `[B, T, D]` → the same.
    fn block(&self, x: &Tensor, i: usize, seen: Option<&Tensor>, mask: &Tensor) -> Result<Tensor, Error> {
        let Config { dim, n_heads: heads, hidden, norm_eps, .. } = *self.config;
        let at = |part: &str| format!("llama.layers.{i}.{part}");
        let normed = self.rms(x, &at("attention_norm.weight"), norm_eps)?;
        let tuned = |x: &Tensor, group: &str, name: &str, shape| self.tuned(x, i, group, name, shape);
        let [q, k, v] = ["wq", "wk", "wv"].map(|name| tuned(&normed, "attention", name, [dim, dim]));
        let (q, k) = (self.turned(&heads_of(&q?, heads)?)?, self.turned(&heads_of(&k?, heads)?)?);
        let mut mixed = attended(&q, &k, &heads_of(&v?, heads)?, Some(mask))?;
        if let Some(added) = self.added(i, &q, seen)? {
            mixed = (mixed + added)?;
        }
        let x = (x + tuned(&joined(&mixed)?, "attention", "wo", [dim, dim])?)?;
        let normed = self.rms(&x, &at("ffn_norm.weight"), norm_eps)?;
        let raise = |name: &str| tuned(&normed, "feed_forward", name, [hidden, dim]);
        let gated = (raise("w1")?.silu()? * raise("w3")?)?;
        Ok((x + tuned(&gated, "feed_forward", "w2", [dim, hidden])?)?)
    }

    /// What the adapter of a layer adds to the heads' outputs, `[B, H, T, d]`; nothing in a plain layer.
    fn added(&self, i: usize, q: &Tensor, seen: Option<&Tensor>) -> Result<Option<Tensor>, Error> {
        let Config { dim, n_heads: heads, n_layers: layers, .. } = *self.config;
        let name = match self.family {
            Family::ImageBindLlm => "prefix_query.weight",
            Family::V2Picture | Family::V2Chat => "adapter_query.weight",
        };
        let Some(all) = self.checkpoint.shape(name).and_then(|shape| shape.first().copied()) else {
            return Ok(None);
        };
        let batch = q.dim(0)?;
        let gate = |i: usize| format!("llama.layers.{i}.attention.gate");
        let rows = match (self.family, &self.picture) {
            (Family::V2Chat, _) => all / (0..layers).filter(|&i| self.has(&gate(i))).count().max(1),
            (_, Some(picture)) => picture.query_shape()[0],
            (_, None) => 1,
        };
        let Some(plain) = layers.checked_sub(all / rows.max(1)) else {
            return Err(Error::Config(format!("`{name}` has {all} rows, more than {rows} for each layer")));
        };
        if i < plain || (seen.is_none() && self.family != Family::V2Chat) {
            return Ok(None);
        }
        let query = self.get(name, &[all, dim])?.narrow(0, (i - plain) * rows, rows)?.unsqueeze(0)?;
        let input = match seen {
            Some(seen) => seen.broadcast_add(&query)?,
            None => query.broadcast_as((batch, rows, dim))?.contiguous()?,
        };
        let through = |name: &str| -> Result<Tensor, Error> {
            if self.family == Family::V2Chat {
                return self.tuned(&input, i, "attention", name, [dim, dim]);
            }
            let bare = self.get(&format!("llama.layers.{i}.attention.{name}.weight"), &[dim, dim])?;
            product(&input, &bare)
        };
        let (k, v) = (heads_of(&through("wk")?, heads)?, heads_of(&through("wv")?, heads)?);
        let mut added =
            attended(q, &k, &v, None)?.broadcast_mul(&self.get(&gate(i), &[1, heads, 1, 1])?.tanh()?)?;
        let second = format!("llama.layers.{i}.attention.new_gate");
        if self.has(&second) {
            added = added.broadcast_mul(&self.get(&second, &[1, 1, 1, 1])?)?;
        }
        Ok(Some(added))
    }

    /// A projection of the backbone with whatever it is tuned by.
    fn tuned(
        &self,
        x: &Tensor,
        layer: usize,
        group: &str,
        name: &str,
        [out, width]: [usize; 2],
    ) -> Result<Tensor, Error> {
        let own = format!("llama.layers.{layer}.{group}.{name}");
        let scale = format!("{own}_scale");
        let x = match self.has(&scale) {
            true => x.broadcast_mul(&self.get(&scale, &[width])?)?,
            false => x.clone(),
        };
        let mut y = product(&x, &self.get(&format!("{own}.weight"), &[out, width])?)?;
        for bias in [format!("{own}.bias"), format!("{own}_bias")] {
            if self.has(&bias) {
                y = y.broadcast_add(&self.get(&bias, &[out])?)?;
            }
        }
        let [down, up] = [1, 2].map(|n| format!("llama.layers.{layer}.{group}.lora_{name}_l{n}.weight"));
        if let Some(rank) = self.checkpoint.shape(&down).and_then(|shape| shape.first().copied()) {
            let low = product(&x, &self.get(&down, &[rank, width])?)?;
            y = (y + product(&low, &self.get(&up, &[out, rank])?)?)?;
        }
        Ok(y)
    }

    /// Turns the components of heads by their position, neighbours together: `[B, H, T, d]` → the same.
    fn turned(&self, x: &Tensor) -> Result<Tensor, Error> {
        let (batch, heads, length, head) = x.dims4()?;
        let rotary = super::Rotary::new(head, length, self.config.rope_theta, &Placement::cpu())?;
        let (cos, sin) = rotary.tables();
        let pairs = x.reshape((batch, heads, length, head / 2, 2))?;
        let part = |n: usize| pairs.narrow(4, n, 1)?.squeeze(4);
        let (even, odd) = (part(0)?, part(1)?);
        let first = (even.broadcast_mul(cos)? - odd.broadcast_mul(sin)?)?;
        let second = (even.broadcast_mul(sin)? + odd.broadcast_mul(cos)?)?;
        Ok(Tensor::stack(&[first, second], 4)?.reshape((batch, heads, length, head))?)
    }

    fn rms(&self, x: &Tensor, name: &str, eps: f32) -> Result<Tensor, Error> {
        let weight = self.get(name, &[x.dim(D::Minus1)?])?;
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        Ok(x.broadcast_div(&(mean + f64::from(eps))?.sqrt()?)?.broadcast_mul(&weight)?)
    }

    fn layer_norm(&self, x: &Tensor, name: &str, eps: f32) -> Result<Tensor, Error> {
        let width = x.dim(D::Minus1)?;
        let part = |part: &str| self.get(&format!("{name}.{part}"), &[width]);
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + f64::from(eps))?.sqrt()?)?;
        Ok(normed.broadcast_mul(&part("weight")?)?.broadcast_add(&part("bias")?)?)
    }

    /// A linear layer by its name, with its bias if it has one.
    fn linear(&self, x: &Tensor, name: &str, [out, width]: [usize; 2]) -> Result<Tensor, Error> {
        let y = product(x, &self.get(&format!("{name}.weight"), &[out, width])?)?;
        let bias = format!("{name}.bias");
        match self.has(&bias) {
            true => Ok(y.broadcast_add(&self.get(&bias, &[out])?)?),
            false => Ok(y),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.checkpoint.shape(name).is_some()
    }

    /// A variable, or what the files have.
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        if let Some(variable) = self.variables.get(name) {
            return Ok(variable.as_tensor().clone());
        }
        if let Some(constant) = self.constants.borrow().get(name) {
            return Ok(constant.clone());
        }
        let tensor = Tensor::from_vec(self.checkpoint.values(name, shape)?, shape, &Device::Cpu)?;
        self.constants.borrow_mut().insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }
}

/// `[.., in]` · `[out, in]ᵀ` → `[.., out]`.
fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor, Error> {
    let mut shape = x.dims().to_vec();
    let (out, width) = weight.dims2()?;
    let y = x.reshape((x.elem_count() / width.max(1), width))?.matmul(&weight.t()?)?;
    if let Some(last) = shape.last_mut() {
        *last = out;
    }
    Ok(y.reshape(shape)?)
}

/// `[B, T, D]` → `[B, H, T, d]`.
fn heads_of(x: &Tensor, heads: usize) -> Result<Tensor, Error> {
    let (batch, length, dim) = x.dims3()?;
    Ok(x.reshape((batch, length, heads, dim / heads))?.transpose(1, 2)?.contiguous()?)
}

/// `[B, H, T, d]` → `[B, T, D]`.
fn joined(x: &Tensor) -> Result<Tensor, Error> {
    let (batch, heads, length, head) = x.dims4()?;
    Ok(x.transpose(1, 2)?.reshape((batch, length, heads * head))?)
}

/// `softmax(q·kᵀ/√d)·v` of every head.
fn attended(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, Error> {
    let scale = (q.dim(D::Minus1)? as f64).powf(-0.5);
    let mut scores = (q.matmul(&k.t()?)? * scale)?;
    if let Some(mask) = mask {
        scores = scores.broadcast_add(mask)?;
    }
    Ok(candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(v)?)
}

/// `[T, T]`: 0 up to the diagonal, −∞ above it.
fn causal(length: usize) -> Result<Tensor, Error> {
    let above = |i: usize| if i % length > i / length { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> = (0..length * length).map(above).collect();
    Ok(Tensor::from_vec(mask, (length, length), &Device::Cpu)?.to_dtype(DType::F32)?)
}
