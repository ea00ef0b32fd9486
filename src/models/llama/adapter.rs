//! What an adapter adds to the attention of a layer.
//!
//! | family | rows of the adapter in layer j | keys and values |
//! |---|---|---|
//! | ImageBind-LLM | 1: visual feature + `prefix_query[j]` | through the bare `wv` |
//! | V2 multimodal | P: visual tokens + `adapter_query[j]` | through the bare `wk` and `wv` |
//! | V2 multimodal, early fusion (ours, after the paper) | P: the visual tokens in the first K layers, `adapter_query[j]` in the last | likewise |
//! | V2 chat | P: `adapter_query[j]`; the published 65B file has none | through the tuned `wk` and `wv` |
//!
//! "Bare" leaves out bias and low-rank matrices. With queries q of the words, turned and tuned as for their own attention:
//!
//! ```text
//! added = new_gate · tanh(gate) · softmax(q·akᵀ/√d) · av        over the adapter's rows alone, head by head
//! ```
//! Of one row the softmax is 1, and what is added is the same at every position.
//!
//! Source: LLaMA-Adapter (arXiv 2303.16199), V2 (2304.15010) and the programs published with them.

use candle_core::{DType, Tensor};

use super::checkpoint::Checkpoint;
use super::config::{Config, Family};
use super::saved::Part;
use crate::models::layers::{Linear, heads_apart, heads_together, weigh};
use crate::models::{Error, Placement};

/// An adapter layer.
pub(super) struct Adapter {
    /// `[P, D]`; nothing in a layer that is given what was seen and no more.
    query: Option<Tensor>,
    /// Whether what was seen is part of its rows.
    seen: bool,
    /// Projections without bias and low-rank matrices, where those of the block have such.
    bare: [Option<Linear>; 2],
    /// `[1, H, 1, 1]`, f32.
    gate: Tensor,
    /// `[1, 1, 1, 1]`, f32.
    new_gate: Option<Tensor>,
    heads: usize,
}

/// What an adapter layer adds: for one sequence, or with a batch in front of all shapes.
#[derive(Clone)]
pub(super) enum Addition {
    /// The same at every position: `[1, D]`.
    Row(Tensor),
    /// Keys and gated values to attend to, `[H, P, d]` each.
    Rows { keys: Tensor, values: Tensor },
}

/// The projections of a block that an adapter layer may go through.
pub(super) struct Projections<'a> {
    pub(super) wk: &'a Linear,
    pub(super) wv: &'a Linear,
}

/// The rows of each layer's adapter as the files hold them, `[P, D]`, and whether what was seen belongs to them.
pub(super) struct Queries {
    layers: Vec<(Option<Tensor>, bool)>,
}

impl Queries {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        family: Family,
        placement: &Placement,
    ) -> Result<Self, Error> {
        let (dim, layers) = (config.dim, config.n_layers);
        let (name, seen) = match family {
            Family::ImageBindLlm => ("prefix_query.weight", true),
            Family::V2Picture => ("adapter_query.weight", true),
            Family::V2Chat => ("adapter_query.weight", false),
        };
        let early = config.picture.early_fusion;
        if early > 0 && family != Family::V2Picture {
            let why = "early_fusion is set, and only the multimodal LLaMA-Adapter V2 can be wired so";
            return Err(Error::Config(why.into()));
        }
        let mut all: Vec<(Option<Tensor>, bool)> = (0..layers).map(|_| (None, false)).collect();
        let Some(rows) = checkpoint.shape(name).and_then(|shape| shape.first().copied()) else {
            return Ok(Queries { layers: all });
        };
        let each = match family {
            Family::ImageBindLlm => 1,
            Family::V2Picture => {
                checkpoint.shape("visual_query.weight").and_then(|s| s.first().copied()).unwrap_or(0)
            }
            // Here only adapter layers have gates.
            Family::V2Chat => {
                let gated = |i: &usize| checkpoint.shape(&gate_name(*i)).is_some();
                rows / (0..layers).filter(gated).count().max(1)
            }
        };
        if each == 0 || rows % each != 0 || rows / each > layers {
            let why =
                format!("`{name}` has {rows} rows, which are no {each} for each of at most {layers} layers");
            return Err(Error::Config(why));
        }
        let prompted = rows / each;
        let table = checkpoint.tensor(name, &[rows, dim], placement)?;
        if early > layers - prompted {
            return Err(Error::Config(format!(
                "early fusion in {early} layers, but only {} of the {layers} are without prompts",
                layers - prompted
            )));
        }
        let fused = early > 0;
        for (j, slot) in all[layers - prompted..].iter_mut().enumerate() {
            *slot = (Some(table.narrow(0, j * each, each)?.contiguous()?), seen && !fused);
        }
        if fused {
            all[..early].iter_mut().for_each(|slot| *slot = (None, true));
        }
        Ok(Queries { layers: all })
    }

    /// All rows together, as they are kept in a file; nothing where there are none.
    pub(super) fn joined<'a>(adapters: impl Iterator<Item = &'a Adapter>) -> Result<Option<Tensor>, Error> {
        let rows: Vec<&Tensor> = adapters.filter_map(|adapter| adapter.query.as_ref()).collect();
        Ok(if rows.is_empty() { None } else { Some(Tensor::cat(&rows, 0)?) })
    }
}

fn gate_name(layer: usize) -> String {
    format!("llama.layers.{layer}.attention.gate")
}

impl Adapter {
    /// The adapter of layer `i`; nothing for a plain one.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        i: usize,
        config: &Config,
        family: Family,
        queries: &Queries,
        through: &Projections<'_>,
        placement: &Placement,
    ) -> Result<Option<Self>, Error> {
        let at = |part: &str| format!("llama.layers.{i}.attention.{part}");
        let (query, seen) = queries.layers[i].clone();
        let heads = config.n_heads;
        // Plain layers of some programs have gates too, without effect; they are read so that they count as known.
        let small = |name: String, shape: &[usize]| match checkpoint.shape(&name) {
            Some(_) => checkpoint.small(&name, shape, placement).map(Some),
            None => Ok(None),
        };
        let gate = small(gate_name(i), &[1, heads, 1, 1])?;
        let new_gate = small(at("new_gate"), &[1, 1, 1, 1])?;
        if query.is_none() && !seen {
            return Ok(None);
        }
        let Some(gate) = gate else {
            return Err(Error::Config(format!("layer {i} has an adapter and no `attention.gate`")));
        };
        let bare = |name: &str, tuned: &Linear| -> Result<Option<Linear>, Error> {
            let (own, dim) = (at(&format!("bare_{name}")), config.dim);
            // Of a saved decoder; what is too narrow for 8 bits lies there as it is.
            if checkpoint.matrix_shape(&own).is_some() {
                let weight = format!("{own}.weight");
                return Ok(Some(checkpoint.linear(&weight, None, [dim, dim], placement)?));
            }
            if let Some(untuned) = tuned.untuned() {
                return Ok(Some(untuned).filter(|_| family != Family::V2Chat));
            }
            let has = |part: String| checkpoint.shape(&at(&part)).is_some();
            let tuned = has(format!("lora_{name}_l1.weight")) || has(format!("{name}.bias"));
            if family == Family::V2Chat || !tuned {
                return Ok(None);
            }
            Ok(Some(checkpoint.linear(&at(&format!("{name}.weight")), None, [dim, dim], placement)?))
        };
        // One row needs no keys.
        let keys = family != Family::ImageBindLlm;
        let bare = [if keys { bare("wk", through.wk)? } else { None }, bare("wv", through.wv)?];
        Ok(Some(Adapter { query, seen, bare, gate, new_gate, heads }))
    }

    /// tanh(gate) of every head, times the second gate, once for each of the head's components: `[D]`.
    fn gating(&self, like: &Tensor) -> Result<Tensor, Error> {
        let dim = like.dim(candle_core::D::Minus1)?;
        let gate = self.gate.tanh()?;
        let gate = match &self.new_gate {
            Some(second) => gate.broadcast_mul(second)?,
            None => gate,
        };
        let each = gate.reshape((self.heads, 1))?.broadcast_as((self.heads, dim / self.heads))?;
        Ok(each.reshape(dim)?.to_dtype(like.dtype())?)
    }

    /// What it adds for what was seen, `[P, D]` or `[B, P, D]`; nothing when it needs that and there is none.
    pub(super) fn addition(
        &self,
        through: &Projections<'_>,
        seen: Option<&Tensor>,
    ) -> Result<Option<Addition>, Error> {
        let Some(rows) = self.rows(seen)? else { return Ok(None) };
        let values = self.values(through, &rows)?;
        let values = values.broadcast_mul(&self.gating(&values)?)?; // [.., P, D]
        if values.dim(candle_core::D::Minus2)? == 1 {
            return Ok(Some(Addition::Row(values)));
        }
        let keys = heads_apart(&self.keys(through, &rows)?, self.heads)?;
        Ok(Some(Addition::Rows { keys, values: heads_apart(&values, self.heads)? }))
    }

    /// Its rows, `[.., P, D]`.
    fn rows(&self, seen: Option<&Tensor>) -> Result<Option<Tensor>, Error> {
        Ok(match (&self.query, seen.filter(|_| self.seen)) {
            (Some(query), Some(seen)) => Some(seen.broadcast_add(query)?),
            (Some(query), None) if !self.seen => Some(query.clone()),
            (None, Some(seen)) => Some(seen.clone()),
            (_, None) => None,
        })
    }

    fn keys(&self, through: &Projections<'_>, rows: &Tensor) -> Result<Tensor, Error> {
        Ok(self.bare[0].as_ref().unwrap_or(through.wk).forward(rows)?)
    }

    fn values(&self, through: &Projections<'_>, rows: &Tensor) -> Result<Tensor, Error> {
        Ok(self.bare[1].as_ref().unwrap_or(through.wv).forward(rows)?)
    }

    /// Shows its rows, their keys and values, and its gates, for many at once: `seen` is `[B, D]` or `[B, P, D]`.
    pub(super) fn observe(
        &self,
        through: &Projections<'_>,
        seen: Option<&Tensor>,
        observe: super::Observe<'_>,
    ) -> Result<(), Error> {
        let Some(rows) = self.rows(seen)? else { return Ok(()) };
        observe("adapter_input", &rows);
        observe("adapter_key", &self.keys(through, &rows)?);
        let values = self.values(through, &rows)?;
        observe("tanh_gate", &self.gating(&values)?);
        observe("adapter_value", &values);
        Ok(())
    }

    /// Its parts by the names they are read under, without its rows.
    pub(super) fn parts(&self, layer: usize) -> Result<Vec<(String, Part<'_>)>, Error> {
        let at = |part: &str| format!("llama.layers.{layer}.attention.{part}");
        let mut parts = vec![(gate_name(layer), Part::Tensor(self.gate.clone()))];
        if let Some(gate) = &self.new_gate {
            parts.push((at("new_gate"), Part::Tensor(gate.clone())));
        }
        let named = ["bare_wk.weight", "bare_wv.weight"].into_iter().zip(&self.bare);
        parts.extend(named.filter_map(|(name, bare)| Some((at(name), Part::Matrix(bare.as_ref()?)))));
        Ok(parts)
    }
}

impl Addition {
    /// Adds it to the heads' outputs `[.., T, D]`, for queries `[.., H, T, d]`.
    pub(super) fn add_to(&self, out: &Tensor, q: &Tensor) -> Result<Tensor, Error> {
        match self {
            Addition::Row(row) => Ok(out.broadcast_add(row)?),
            Addition::Rows { keys, values } => {
                // Rows that do not depend on what was shown are the same for a whole batch.
                let batch = &q.dims()[..q.rank().saturating_sub(keys.rank())];
                let beside = |x: &Tensor| {
                    x.broadcast_as([batch, x.dims()].concat())?.to_dtype(DType::F32)?.contiguous()
                };
                let added = weigh(&q.to_dtype(DType::F32)?, &beside(keys)?, &beside(values)?, None)?;
                Ok((out + heads_together(&added)?.to_dtype(out.dtype())?)?)
            }
        }
    }
}
