//! The decoder: LLaMA with ImageBind-LLM's adapter, for many sequences at a time.
//!
//! ```text
//! ids ─► tok_embeddings ─► block × n ─► norm ─► output ─► logits
//!
//! block   h = h + wo( attention(norm h) + g )             g: what the visual feature adds, the same at every position
//!         h = h + w2( silu(w1 m) ⊙ w3 m )   m = norm h
//!
//! g       tanh(gate) of a head times wv(visual feature + prefix_query of the layer): the bare wv, no norm, no rotation
//! ```
//! | file | its one idea |
//! |---|---|
//! | `config.rs` | sizes from `params.json` or `config.json` |
//! | `checkpoint.rs` | tensors from original, converted and adapter files |
//! | `bind.rs` | embedding → visual feature |
//! | `attention.rs` | causal attention over a sequence's own keys and values |
//! | `sample.rs` | logits → the next token |
//! | `saved.rs` | a decoder in 8 bits as one file that is mapped |
//!
//! **Low-rank matrices are added to their weights when they are read** (`W + B·A`, no scaling): the same sums in another
//! order, within the tolerance of the golden numbers. Only the adapter's way goes through the bare `wv`.
//!
//! **One pass takes any tokens of any sequences** ([`Decoder::forward`]): the beginning of one beside the next token of
//! others. Weights are read once for all rows, and each sequence attends to its own keys only.
//!
//! Source: LLaMA (arXiv 2302.13971), LLaMA-Adapter (2303.16199), ImageBind-LLM (2309.03905), and its `llama.py`.

mod attention;
mod bind;
mod checkpoint;
mod config;
mod sample;
mod saved;

use candle_core::{DType, Tensor};

pub use attention::{KvCache, Rotary};
pub use bind::Bind;
pub use checkpoint::Checkpoint;
pub use config::Config;
pub use sample::{Choice, SampleParams, Sampler, filtered, logprob, softmax};
pub use saved::Saved;

use super::layers::Linear;
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
    bind: Option<Bind>,
    placement: Placement,
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

/// What an adapter layer adds to attention.
struct Adapter {
    /// `[D]`
    query: Tensor,
    /// The bare projection of values.
    wv: Linear,
    /// tanh of the gate of each head, once for each of its components: `[D]`.
    gate: Tensor,
    /// The gates as they were trained, one a head.
    gates: Vec<f32>,
}

/// One text while it grows.
pub struct Sequence {
    caches: Vec<KvCache>,
    /// For each layer, what the visual feature adds: `[1, D]`.
    additions: Vec<Option<Tensor>>,
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
        let queries = match checkpoint.shape("prefix_query.weight").as_deref() {
            None => Vec::new(),
            Some(&[rows, _]) if rows <= layers => {
                let values = checkpoint.values("prefix_query.weight", &[rows, dim])?;
                values.chunks_exact(dim).map(<[f32]>::to_vec).collect()
            }
            Some(shape) => {
                return Err(Error::Config(format!(
                    "`prefix_query` of shape {shape:?} has more rows than the {layers} layers of the backbone"
                )));
            }
        };
        let plain = layers - queries.len();
        let mut queries = queries.into_iter();
        let blocks = (0..layers).map(|i| {
            let query = if i >= plain { queries.next() } else { None };
            Block::load(checkpoint, i, config, query, placement)
        });
        let blocks = blocks.collect::<Result<_, Error>>()?;
        let table = tensor(checkpoint, "llama.tok_embeddings.weight", &[vocab_size, dim], placement)?;
        let output = match checkpoint.ready("llama.output", vocab_size, dim)? {
            Some(ready) => Linear::ready(ready, None),
            None => {
                let values = checkpoint.values("llama.output.weight", &[vocab_size, dim])?;
                Linear::of(placement, values, dim, None)?
            }
        };
        let decoder = Decoder {
            vocab_size,
            // Read a row at a time: half the memory costs nothing where weights are rounded anyway.
            embeddings: if placement.coarse() { table.to_dtype(DType::F16)? } else { table },
            blocks,
            norm: tensor(checkpoint, "llama.norm.weight", &[dim], placement)?,
            output,
            rotary: Rotary::new(config.head(), config.max_seq_len, config.rope_theta, placement)?,
            bind: Bind::load(checkpoint, dim, placement)?,
            config: config.clone(),
            placement: placement.clone(),
        };
        checkpoint.refuse_surplus()?;
        Ok(decoder)
    }

    /// The sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Components of the embeddings it takes; `None` for a decoder without a bind network.
    pub fn embedding_width(&self) -> Option<usize> {
        self.bind.as_ref().map(Bind::width)
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
        let Some(bind) = &self.bind else {
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

    /// An empty sequence with room for `capacity` tokens.
    ///
    /// * `visual`: `[1, D]`; `None` leaves the adapter out.
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
        let additions = self.blocks.iter().map(|block| match (&block.adapter, visual) {
            (Some(adapter), Some(visual)) => Ok(Some(adapter.addition(visual, &mut |_, _| {})?)),
            _ => Ok(None),
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
            ("llama.output".to_owned(), Part::Matrix(&self.output)),
        ];
        let mut queries = Vec::new();
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
            parts.extend(matrices.map(|(name, linear)| (at(name), Part::Matrix(linear))));
            if let Some(adapter) = &block.adapter {
                let gates = Tensor::from_slice(
                    &adapter.gates,
                    (1, adapter.gates.len(), 1, 1),
                    &candle_core::Device::Cpu,
                )?;
                parts.push((at("attention.gate"), Part::Tensor(gates)));
                parts.push((at("attention.bare_wv"), Part::Matrix(&adapter.wv)));
                queries.push(adapter.query.clone());
            }
        }
        if !queries.is_empty() {
            parts.push(("prefix_query.weight".into(), Part::Tensor(Tensor::stack(&queries, 0)?)));
        }
        parts.extend(self.bind.iter().flat_map(Bind::parts));
        Ok(parts)
    }

    fn normed(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(candle_nn::ops::rms_norm(&x.contiguous()?, &self.norm, self.config.norm_eps)?)
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
            x = block.forward(&x, i, batch, &self.rotary, &self.config, observe)?;
        }
        for (sequence, ids) in batch {
            sequence.len += ids.len();
        }
        Ok(x)
    }

    /// What an adapter layer makes of a visual feature `[B, D]`: its input, its values, tanh of its gates; for parity tests.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn observe_adapter(&self, layer: usize, visual: &Tensor, observe: Observe<'_>) -> Result<(), Error> {
        if let Some(adapter) = self.blocks.get(layer).and_then(|block| block.adapter.as_ref()) {
            adapter.addition(visual, observe)?;
        }
        Ok(())
    }
}

impl Adapter {
    /// `[B, D]` → what is added to the heads' outputs, `[B, D]`.
    fn addition(&self, visual: &Tensor, observe: Observe<'_>) -> Result<Tensor, Error> {
        let input = visual.broadcast_add(&self.query)?;
        observe("adapter_input", &input);
        let values = self.wv.forward(&input)?;
        observe("adapter_value", &values);
        observe("tanh_gate", &self.gate);
        Ok(values.broadcast_mul(&self.gate)?)
    }
}

impl Block {
    fn load(
        checkpoint: &Checkpoint,
        i: usize,
        config: &Config,
        query: Option<Vec<f32>>,
        placement: &Placement,
    ) -> Result<Self, Error> {
        let (dim, hidden) = (config.dim, config.hidden);
        let at = |part: &str| format!("llama.layers.{i}.{part}");
        // A projection with its low-rank matrices added, and its bias if there is one.
        let linear = |group: &str, name: &str, out: usize, width: usize| -> Result<Linear, Error> {
            let own = at(&format!("{group}.{name}"));
            let bias = format!("{own}.bias");
            let bias = match checkpoint.shape(&bias) {
                Some(_) => Some(tensor(checkpoint, &bias, &[out], placement)?),
                None => None,
            };
            if let Some(ready) = checkpoint.ready(&own, out, width)? {
                return Ok(Linear::ready(ready, bias));
            }
            let mut weight = checkpoint.values(&format!("{own}.weight"), &[out, width])?;
            let [down, up] = [1, 2].map(|n| at(&format!("{group}.lora_{name}_l{n}.weight")));
            if let Some(shape) = checkpoint.shape(&down) {
                let rank = shape.first().copied().unwrap_or(0);
                let (a, b) =
                    (checkpoint.values(&down, &[rank, width])?, checkpoint.values(&up, &[out, rank])?);
                add_low_rank(&mut weight, &a, &b, rank, width);
            }
            Linear::of(placement, weight, width, bias)
        };
        let gate = at("attention.gate");
        let gates = match checkpoint.shape(&gate) {
            // Plain layers have gates too, without effect; they are read so that they count as known.
            Some(_) => Some(checkpoint.values(&gate, &[1, config.n_heads, 1, 1])?),
            None => None,
        };
        let adapter = match (query, gates) {
            (None, _) => None,
            (Some(_), None) => {
                return Err(Error::Config(format!("layer {i} has a `prefix_query` and no `attention.gate`")));
            }
            (Some(query), Some(gates)) => {
                let gate: Vec<f32> =
                    gates.iter().flat_map(|gate| std::iter::repeat_n(gate.tanh(), config.head())).collect();
                let wv = match checkpoint.ready(&at("attention.bare_wv"), dim, dim)? {
                    Some(ready) => Linear::ready(ready, None),
                    None => {
                        let bare = checkpoint.values(&at("attention.wv.weight"), &[dim, dim])?;
                        Linear::of(placement, bare, dim, None)?
                    }
                };
                let place = |values: Vec<f32>| place(values, &[dim], placement);
                Some(Adapter { query: place(query)?, wv, gate: place(gate)?, gates })
            }
        };
        Ok(Block {
            attention_norm: tensor(checkpoint, &at("attention_norm.weight"), &[dim], placement)?,
            wq: linear("attention", "wq", dim, dim)?,
            wk: linear("attention", "wk", dim, dim)?,
            wv: linear("attention", "wv", dim, dim)?,
            wo: linear("attention", "wo", dim, dim)?,
            ffn_norm: tensor(checkpoint, &at("ffn_norm.weight"), &[dim], placement)?,
            w1: linear("feed_forward", "w1", hidden, dim)?,
            w2: linear("feed_forward", "w2", dim, hidden)?,
            w3: linear("feed_forward", "w3", hidden, dim)?,
            adapter,
        })
    }

    /// `[N, D]` → the same; `i` is this block's number.
    fn forward(
        &self,
        x: &Tensor,
        i: usize,
        batch: &mut [(&mut Sequence, &[u32])],
        rotary: &Rotary,
        config: &Config,
        observe: Observe<'_>,
    ) -> Result<Tensor, Error> {
        let mut see = |name: &str, x: &Tensor| observe(&format!("layer.{i}.{name}"), x);
        let normed = candle_nn::ops::rms_norm(x, &self.attention_norm, config.norm_eps)?;
        see("attention_norm", &normed);
        let (q, k, v) = (self.wq.forward(&normed)?, self.wk.forward(&normed)?, self.wv.forward(&normed)?);
        see("q_pre_rope", &q);
        see("k_pre_rope", &k);
        let (mut mixed, mut at) = (Vec::with_capacity(batch.len()), 0);
        for (sequence, ids) in batch.iter_mut() {
            let (count, position) = (ids.len(), sequence.len);
            let part = |x: &Tensor| x.narrow(0, at, count);
            let (q, k) = (rotary.turn(&part(&q)?, position)?, rotary.turn(&part(&k)?, position)?); // [H, T, d]
            see("q_rope", &q);
            see("k_rope", &k);
            let out = sequence.caches[i].attend(&q, &k, &part(&v)?, position)?; // [T, D]
            mixed.push(match &sequence.additions[i] {
                Some(addition) => out.broadcast_add(addition)?,
                None => out,
            });
            at += count;
        }
        let mixed = if mixed.len() == 1 { mixed.remove(0) } else { Tensor::cat(&mixed, 0)? }; // [N, D]
        see("attn_pre_wo", &mixed);
        let attended = self.wo.forward(&mixed)?;
        see("attn", &attended);
        let x = (x + attended)?;
        let normed = candle_nn::ops::rms_norm(&x, &self.ffn_norm, config.norm_eps)?;
        let gated = (candle_nn::ops::silu(&self.w1.forward(&normed)?)? * self.w3.forward(&normed)?)?;
        let fed = self.w2.forward(&gated)?; // [N, D]
        see("ffn", &fed);
        let x = (x + fed)?;
        see("out", &x);
        Ok(x)
    }
}

/// `weight += b · a`, `[out, rank] · [rank, width]`.
fn add_low_rank(weight: &mut [f32], a: &[f32], b: &[f32], rank: usize, width: usize) {
    if rank == 0 {
        return;
    }
    for (row, factors) in weight.chunks_exact_mut(width).zip(b.chunks_exact(rank)) {
        for (factor, a) in factors.iter().zip(a.chunks_exact(width)) {
            row.iter_mut().zip(a).for_each(|(w, a)| *w += factor * a);
        }
    }
}

/// A tensor of a checkpoint, where the model is.
fn tensor(
    checkpoint: &Checkpoint,
    name: &str,
    shape: &[usize],
    placement: &Placement,
) -> Result<Tensor, Error> {
    place(checkpoint.values(name, shape)?, shape, placement)
}

fn place(values: Vec<f32>, shape: &[usize], placement: &Placement) -> Result<Tensor, Error> {
    let x = Tensor::from_vec(values, shape, &candle_core::Device::Cpu)?;
    Ok(x.to_dtype(placement.dtype())?.to_device(&placement.device)?)
}
