//! The decoder: LLaMA with one of three adapters, for many sequences at a time.
//!
//! ```text
//! ids ─► tok_embeddings ─► block × n ─► norm ─► output ─► logits
//!
//! block   h = h + wo( attention(norm h) + g )             g: what the adapter adds
//!         h = h + w2( silu(w1 m) ⊙ w3 m )   m = norm h
//! ```
//! | file | its one idea |
//! |---|---|
//! | `config.rs` | sizes from `params.json` or `config.json` |
//! | `checkpoint.rs` | tensors from original, converted and adapter files |
//! | `adapter_files.rs` | of these, an adapter's own |
//! | `digest.rs` | whether files are what they claim to be |
//! | `bind.rs` | embedding → visual feature: what ImageBind-LLM's adapter is given |
//! | `picture/` | picture → visual tokens: what the multimodal LLaMA-Adapter V2 is given |
//! | `tuned.rs` | a projection with what an adapter tunes it by |
//! | `adapter.rs` | what each family's adapter adds to attention |
//! | `attention.rs` | causal attention over a sequence's own keys and values |
//! | `sample.rs` | logits → the next token |
//! | `saved.rs` | a decoder in 8 bits as one file that is mapped |
//! | `texts.rs` | whole texts of one length, as learning needs them |
//! | `bare.rs` | first values of a decoder that has read nothing |
//! | `initial.rs` | first values of an adapter |
//! | `learn.rs` | the loss of a batch as a differentiable function of chosen tensors |
//!
//! **One pass takes any tokens of any sequences** ([`Decoder::forward`]): the beginning of one beside the next token of
//! others. Weights are read once for all rows, and each sequence attends to its own keys only.
//!
//! Source: LLaMA (arXiv 2302.13971), LLaMA-Adapter (2303.16199), V2 (2304.15010), ImageBind-LLM (2309.03905), and the
//! programs published with them.

mod adapter;
mod adapter_files;
mod attention;
mod bare;
mod bind;
mod checkpoint;
mod config;
mod digest;
mod initial;
mod learn;
mod picture;
mod sample;
mod saved;
mod texts;
mod tuned;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use adapter::{Adapter, Addition, Projections, Queries};
pub use adapter_files::{AdapterFiles, WHOLE_ADAPTER, adapter_file};
pub use attention::KvCache;
pub use bare::bare;
pub use bind::Bind;
pub use checkpoint::{Checkpoint, Files};
pub use config::{ChannelOrder, Config, Family, PictureConfig};
pub use digest::check_backbone;
pub use initial::{AdapterSizes, Stages, begin};
pub use learn::{Batch, Group, Learner, Shown, embeddings, pictures};
pub use picture::Picture;
pub use sample::{Choice, SampleParams, Sampler, filtered, likeliest, logprob, softmax};
pub use saved::Saved;

pub use super::layers::Rotary;
use super::layers::{Linear, rms_norm, swiglu};
use super::{Error, Placement};
use saved::Part;

/// Receives named intermediate tensors.
pub type Observe<'a> = &'a mut dyn FnMut(&str, &Tensor);

/// A loaded decoder.
pub struct Decoder {
    config: Config,
    vocab_size: usize,
    embeddings: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    output: Linear,
    rotary: Rotary,
    front: Front,
    family: Family,
    placement: Placement,
}

/// What turns something into what the adapter is given.
enum Front {
    Nothing,
    Bind(Bind),
    Picture(Box<Picture>),
}

struct Block {
    attention_norm: Tensor,
    wq: Linear,
    wk: Linear,
    wv: Linear,
    wo: Linear,
    ffn_norm: Tensor,
    w1: Linear,
    w2: Linear,
    w3: Linear,
    adapter: Option<Adapter>,
}

/// One text while it grows.
pub struct Sequence {
    caches: Vec<KvCache>,
    /// For each layer, what its adapter adds.
    additions: Vec<Option<Addition>>,
    len: usize,
    capacity: usize,
}

impl Sequence {
    /// Tokens that it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of keys and values that it takes now.
    pub fn bytes(&self) -> u64 {
        self.caches.iter().map(KvCache::bytes).sum()
    }

    /// The first `len` tokens once more, with room for `capacity`, to be gone on with in another way.
    ///
    /// # Errors
    /// [`Error::Input`] for more than it holds, or than there is room for.
    pub fn fork(&self, len: usize, capacity: usize) -> Result<Self, Error> {
        if len > self.len.min(capacity) {
            let why = format!("{len} tokens of a text of {}, with room for {capacity}", self.len);
            return Err(Error::Input { received: vec![len, capacity], why });
        }
        let caches = self.caches.iter().map(|cache| cache.copied(len, capacity));
        let caches = caches.collect::<Result<_, _>>()?;
        Ok(Sequence { caches, additions: self.additions.clone(), len, capacity })
    }

    /// Keys and values of a layer.
    pub fn cache(&self, layer: usize) -> Option<&KvCache> {
        self.caches.get(layer)
    }
}

impl Decoder {
    /// Loads it.
    ///
    /// * `vocab_size`: of the tokenizer.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::SurplusTensor`], [`Error::TensorShape`] (the backbone is not the one the adapter was
    /// made for), [`Error::Config`].
    pub fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        vocab_size: usize,
        placement: &Placement,
    ) -> Result<Self, Error> {
        if let Some(stated) = config.vocab_size.filter(|&stated| stated != vocab_size) {
            return Err(Error::Config(format!(
                "the model has {stated} pieces and the tokenizer {vocab_size}: they do not belong together"
            )));
        }
        let (dim, layers) = (config.dim, config.n_layers);
        let family = config.family.unwrap_or_else(|| checkpoint.family());
        let queries = Queries::load(checkpoint, config, family, placement)?;
        let blocks = (0..layers).map(|i| Block::load(checkpoint, i, config, family, &queries, placement));
        let blocks = blocks.collect::<Result<_, Error>>()?;
        let table = match placement.variables {
            Some(_) => checkpoint.as_given("llama.tok_embeddings.weight", &[vocab_size, dim], placement)?,
            None => checkpoint.tensor("llama.tok_embeddings.weight", &[vocab_size, dim], placement)?,
        };
        let front = match family {
            Family::V2Picture => {
                Front::Picture(Picture::load(checkpoint, dim, &config.picture, placement)?.into())
            }
            Family::ImageBindLlm => {
                Bind::load(checkpoint, dim, placement)?.map_or(Front::Nothing, Front::Bind)
            }
            Family::V2Chat => Front::Nothing,
        };
        let decoder = Decoder {
            vocab_size,
            // Read a row at a time: half the memory costs nothing where weights are rounded anyway.
            embeddings: if placement.coarse() { table.to_dtype(DType::F16)? } else { table },
            blocks,
            norm: checkpoint.tensor("llama.norm.weight", &[dim], placement)?,
            output: checkpoint.linear("llama.output.weight", None, [vocab_size, dim], placement)?,
            rotary: Rotary::new(config.head(), config.max_seq_len, config.rope_theta, placement)?,
            front,
            family,
            config: config.clone(),
            placement: placement.clone(),
        };
        checkpoint.refuse_surplus()?;
        Ok(decoder)
    }

    /// Whether the files fit together, by the names and shapes of their tensors alone: nothing else is read.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn check(checkpoint: Checkpoint, config: &Config, vocab_size: usize) -> Result<(), Error> {
        Self::load(&checkpoint.shapes_only(), config, vocab_size, &Placement::cpu()).map(drop)
    }

    /// The sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes of keys and values that a token of a sequence takes.
    pub fn token_bytes(&self) -> u64 {
        let row = self.config.n_heads * self.config.head() * self.placement.dtype().size_in_bytes();
        (2 * self.blocks.len() * row) as u64
    }

    /// Whose adapter it has.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Components of the embeddings it takes; `None` for a decoder without a bind network.
    pub fn embedding_width(&self) -> Option<usize> {
        match &self.front {
            Front::Bind(bind) => Some(bind.width()),
            Front::Nothing | Front::Picture(_) => None,
        }
    }

    /// The networks that look at pictures; `None` for a decoder that takes embeddings, or nothing.
    pub fn picture(&self) -> Option<&Picture> {
        match &self.front {
            Front::Picture(picture) => Some(picture),
            Front::Nothing | Front::Bind(_) => None,
        }
    }

    /// Pieces of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The visual features of embeddings: `[B, d]` → `[B, D]`.
    ///
    /// # Errors
    /// [`Error::Input`] for another width, or a decoder without a bind network.
    pub fn visual(&self, embeddings: &Tensor) -> Result<Tensor, Error> {
        let received = embeddings.dims().to_vec();
        let Front::Bind(bind) = &self.front else {
            return Err(Error::Input { received, why: "this decoder has no bind network".into() });
        };
        if embeddings.rank() != 2 || embeddings.dim(1)? != bind.width() {
            let why = format!("the bind network takes [B, {}]", bind.width());
            return Err(Error::Input { received, why });
        }
        bind.forward(&self.placement.place(embeddings)?, &mut |_, _| {})
    }

    /// The visual feature of one embedding, `[1, D]`.
    ///
    /// # Errors
    /// As [`Decoder::visual`].
    pub fn visual_of(&self, embedding: &[f32]) -> Result<Tensor, Error> {
        self.visual(&Tensor::from_slice(embedding, (1, embedding.len()), &candle_core::Device::Cpu)?)
    }

    /// The visual tokens of one picture `[3, S, S]`, channels in the model's order and normalised: `[P, D]`.
    ///
    /// # Errors
    /// [`Error::Input`] for another size, or a decoder that looks at no pictures.
    pub fn visual_of_picture(&self, pixels: &[f32]) -> Result<Tensor, Error> {
        let received = vec![pixels.len()];
        let Some(picture) = self.picture() else {
            return Err(Error::Input { received, why: "this decoder looks at no pictures".into() });
        };
        let side = picture.side();
        if pixels.len() != 3 * side * side {
            return Err(Error::Input { received, why: format!("a picture has [3, {side}, {side}]") });
        }
        let pixels = Tensor::from_slice(pixels, (1, 3, side, side), &candle_core::Device::Cpu)?;
        Ok(picture.forward(&self.placement.place(&pixels)?, &mut |_, _| {})?.squeeze(0)?)
    }

    /// An empty sequence with room for `capacity` tokens.
    ///
    /// * `visual`: what was seen, `[1, D]` or `[P, D]`; `None` leaves out the adapter layers that need it.
    ///
    /// # Errors
    /// [`Error::Input`] for more than `max_seq_len` tokens.
    pub fn begin(&self, visual: Option<&Tensor>, capacity: usize) -> Result<Sequence, Error> {
        if capacity > self.config.max_seq_len {
            let why = format!(
                "{capacity} tokens are more than the {} positions there are",
                self.config.max_seq_len
            );
            return Err(Error::Input { received: vec![capacity], why });
        }
        let additions = self.blocks.iter().map(|block| match &block.adapter {
            Some(adapter) => adapter.addition(&block.projections(), visual),
            None => Ok(None),
        });
        let additions = additions.collect::<Result<_, Error>>()?;
        let caches = (0..self.blocks.len())
            .map(|_| KvCache::new(self.config.n_heads, self.config.head(), capacity, &self.placement));
        Ok(Sequence { caches: caches.collect::<Result<_, _>>()?, additions, len: 0, capacity })
    }

    /// Appends tokens to sequences and gives the logits of each one's last, `[B, V]`, f32.
    ///
    /// # Errors
    /// [`Error::Input`] for a sequence without room, without tokens, or a token that there is not.
    pub fn forward(&self, batch: &mut [(&mut Sequence, &[u32])]) -> Result<Tensor, Error> {
        let x = self.hidden(batch, &mut |_, _| {})?; // [N, D]
        let mut end = 0;
        let last = batch.iter().map(|(_, ids)| {
            end += ids.len();
            end as u32 - 1
        });
        let last: Vec<u32> = last.collect();
        let last = Tensor::from_vec(last, batch.len(), x.device())?;
        self.logits(&x.index_select(&last, 0)?)
    }

    /// As [`Decoder::forward`], for every token: `[N, V]`, sequence after sequence.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn forward_all(
        &self,
        batch: &mut [(&mut Sequence, &[u32])],
        observe: Observe<'_>,
    ) -> Result<Tensor, Error> {
        let x = self.hidden(batch, observe)?;
        let normed = self.normed(&x)?;
        observe("norm_out", &normed);
        Ok(self.output.forward(&normed)?.to_dtype(DType::F32)?)
    }

    /// Its parts by the names they are read under.
    fn parts(&self) -> Result<Vec<(String, Part<'_>)>, Error> {
        let mut parts = vec![
            ("llama.tok_embeddings.weight".to_owned(), Part::Tensor(self.embeddings.clone())),
            ("llama.norm.weight".to_owned(), Part::Tensor(self.norm.clone())),
            ("llama.output.weight".to_owned(), Part::Matrix(&self.output)),
        ];
        for (i, block) in self.blocks.iter().enumerate() {
            let at = |part: &str| format!("llama.layers.{i}.{part}");
            for (name, norm) in [("attention_norm", &block.attention_norm), ("ffn_norm", &block.ffn_norm)] {
                parts.push((at(&format!("{name}.weight")), Part::Tensor(norm.clone())));
            }
            let matrices = [
                ("attention.wq", &block.wq),
                ("attention.wk", &block.wk),
                ("attention.wv", &block.wv),
                ("attention.wo", &block.wo),
                ("feed_forward.w1", &block.w1),
                ("feed_forward.w2", &block.w2),
                ("feed_forward.w3", &block.w3),
            ];
            for (name, linear) in matrices {
                parts.extend(Part::linear(
                    at(&format!("{name}.weight")),
                    at(&format!("{name}.bias")),
                    linear,
                ));
            }
            if let Some(adapter) = &block.adapter {
                parts.extend(adapter.parts(i)?);
            }
        }
        let adapters = self.blocks.iter().filter_map(|block| block.adapter.as_ref());
        if let Some(queries) = Queries::joined(adapters)? {
            let name = match self.family {
                Family::ImageBindLlm => "prefix_query.weight",
                Family::V2Picture | Family::V2Chat => "adapter_query.weight",
            };
            parts.push((name.into(), Part::Tensor(queries)));
        }
        match &self.front {
            Front::Nothing => {}
            Front::Bind(bind) => parts.extend(bind.parts()),
            Front::Picture(picture) => parts.extend(picture.parts()),
        }
        Ok(parts)
    }

    fn normed(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(rms_norm(x, &self.norm, self.config.norm_eps)?)
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(self.output.forward(&self.normed(x)?)?.to_dtype(DType::F32)?) // [B, V]
    }

    /// The residual stream after the last block, `[N, D]`.
    fn hidden(&self, batch: &mut [(&mut Sequence, &[u32])], observe: Observe<'_>) -> Result<Tensor, Error> {
        let refuse = |ids: &[u32], why: String| Err(Error::Input { received: vec![ids.len()], why });
        for (sequence, ids) in batch.iter() {
            if ids.is_empty() {
                return refuse(ids, "a sequence without new tokens".into());
            }
            let room = sequence.capacity - sequence.len;
            if ids.len() > room {
                return refuse(ids, format!("a sequence has room for {room} tokens"));
            }
            if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
                return refuse(ids, format!("there is no token {id}, only {}", self.vocab_size));
            }
        }
        let ids: Vec<u32> = batch.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        let ids = Tensor::from_slice(&ids, ids.len(), self.embeddings.device())?;
        let mut x = self.embeddings.index_select(&ids, 0)?.to_dtype(self.placement.dtype())?; // [N, D]
        observe("h_embed", &x);
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, i, self.config.norm_eps, observe, |[q, k, v], see| {
                mixed(i, [q, k, v], batch, &self.rotary, see)
            })?;
        }
        for (sequence, ids) in batch {
            sequence.len += ids.len();
        }
        Ok(x)
    }

    /// Queries of a layer before they are turned, of rows `[.., D]`; for parity tests.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn queries(&self, layer: usize, x: &Tensor) -> Result<Tensor, Error> {
        match self.blocks.get(layer) {
            Some(block) => Ok(block.wq.forward(x)?),
            None => Err(Error::Input { received: vec![layer], why: "there is no such layer".into() }),
        }
    }

    /// What an adapter layer makes of what was seen, `[B, D]` or `[B, P, D]`: its rows, their keys and values, tanh of its
    /// gates; for parity tests.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn observe_adapter(
        &self,
        layer: usize,
        seen: Option<&Tensor>,
        observe: Observe<'_>,
    ) -> Result<(), Error> {
        match self.blocks.get(layer).and_then(|block| Some((block, block.adapter.as_ref()?))) {
            Some((block, adapter)) => adapter.observe(&block.projections(), seen, observe),
            None => Ok(()),
        }
    }
}

/// Attention of every sequence to itself, and what the adapter of layer `i` adds: `[N, D]` → the same.
fn mixed(
    i: usize,
    [q, k, v]: [&Tensor; 3],
    batch: &mut [(&mut Sequence, &[u32])],
    rotary: &Rotary,
    see: Observe<'_>,
) -> Result<Tensor, Error> {
    let mut end = 0;
    let starts = batch.iter().map(|(_, ids)| {
        end += ids.len();
        end - ids.len()
    });
    let starts: Vec<usize> = starts.collect();
    let attend = |((sequence, ids), at): (&mut (&mut Sequence, &[u32]), usize)| {
        let part = |x: &Tensor| x.narrow(0, at, ids.len());
        let position = sequence.len;
        let (q, k) = (rotary.turn(&part(q)?, position)?, rotary.turn(&part(k)?, position)?); // [H, T, d]
        let out = sequence.caches[i].attend(&q, &k, &part(v)?, position)?; // [T, D]
        let out = match &sequence.additions[i] {
            Some(addition) => addition.add_to(&out, &q)?,
            None => out,
        };
        Ok((q, k, out))
    };
    // Small work for each sequence: side by side where there are processors for it.
    let done: Result<Vec<(Tensor, Tensor, Tensor)>, Error> = match batch.len() > 1 && q.device().is_cpu() {
        true => batch.par_iter_mut().zip(starts).map(attend).collect(),
        false => batch.iter_mut().zip(starts).map(attend).collect(),
    };
    let mut mixed = Vec::with_capacity(batch.len());
    for (q, k, out) in done? {
        see("q_rope", &q);
        see("k_rope", &k);
        mixed.push(out);
    }
    Ok(if mixed.len() == 1 { mixed.remove(0) } else { Tensor::cat(&mixed, 0)? })
}

impl Block {
    fn load(
        checkpoint: &Checkpoint,
        i: usize,
        config: &Config,
        family: Family,
        queries: &Queries,
        placement: &Placement,
    ) -> Result<Self, Error> {
        let (dim, hidden) = (config.dim, config.hidden);
        let at = |part: &str| format!("llama.layers.{i}.{part}");
        let linear = |group: &str, name: &str, out: usize, width: usize| {
            tuned::projection(checkpoint, i, (group, name), [out, width], placement)
        };
        let (wk, wv) = (linear("attention", "wk", dim, dim)?, linear("attention", "wv", dim, dim)?);
        let through = Projections { wk: &wk, wv: &wv };
        let adapter = Adapter::load(checkpoint, i, config, family, queries, &through, placement)?;
        Ok(Block {
            attention_norm: checkpoint.tensor(&at("attention_norm.weight"), &[dim], placement)?,
            wq: linear("attention", "wq", dim, dim)?,
            wk,
            wv,
            wo: linear("attention", "wo", dim, dim)?,
            ffn_norm: checkpoint.tensor(&at("ffn_norm.weight"), &[dim], placement)?,
            w1: linear("feed_forward", "w1", hidden, dim)?,
            w2: linear("feed_forward", "w2", dim, hidden)?,
            w3: linear("feed_forward", "w3", hidden, dim)?,
            adapter,
        })
    }

    fn projections(&self) -> Projections<'_> {
        Projections { wk: &self.wk, wv: &self.wv }
    }

    /// `[N, D]` → the same; `i` is this block's number.
    ///
    /// * `mix`: of queries, keys and values, `[N, D]` each, what attention makes of them, with what the adapter adds.
    fn forward(
        &self,
        x: &Tensor,
        i: usize,
        eps: f32,
        observe: Observe<'_>,
        mix: impl FnOnce([&Tensor; 3], Observe<'_>) -> Result<Tensor, Error>,
    ) -> Result<Tensor, Error> {
        let mut see = |name: &str, x: &Tensor| observe(&format!("layer.{i}.{name}"), x);
        let normed = rms_norm(x, &self.attention_norm, eps)?;
        see("attention_norm", &normed);
        let [q, k, v] = Linear::forward_all([&self.wq, &self.wk, &self.wv], &normed)?;
        see("q_pre_rope", &q);
        see("k_pre_rope", &k);
        let mixed = mix([&q, &k, &v], &mut see)?; // [N, D]
        see("attn_pre_wo", &mixed);
        let attended = self.wo.forward(&mixed)?;
        see("attn", &attended);
        let x = (x + attended)?;
        let normed = rms_norm(&x, &self.ffn_norm, eps)?;
        let [gate, raised] = Linear::forward_all([&self.w1, &self.w3], &normed)?;
        let fed = self.w2.forward(&swiglu(&gate, &raised)?)?; // [N, D]
        see("ffn", &fed);
        let x = (x + fed)?;
        see("out", &x);
        Ok(x)
    }
}
