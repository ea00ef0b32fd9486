//! Whole texts of one length from their beginnings, without keys and values that are kept: what learning needs.
//!
//! ```text
//! ids [B·T] ─ embedded ─► [B, T, D] ─ through block 0 … ─► [B, T, D] ─ spoken ─► logits [B, T, V]
//! ```
//! The blocks are those of [`Decoder::forward`]; only who looks at whom is said anew: every text at itself, all at once.

use candle_core::{DType, Tensor};

use super::{Decoder, Front};
use crate::models::Error;
use crate::models::layers::{causal, heads_apart, heads_together, weigh};

impl Decoder {
    /// Tokens as the first block is given them, `[B, T, D]`.
    ///
    /// * `ids`: `[B · T]`, text after text. `length`: T.
    ///
    /// # Errors
    /// [`Error::Input`] for lengths that do not fit, or a token that there is not.
    pub(super) fn embedded(&self, ids: &[u32], length: usize) -> Result<Tensor, Error> {
        let refuse = |why: String| Err(Error::Input { received: vec![ids.len()], why });
        let most = self.config.max_seq_len;
        if length == 0 || !ids.len().is_multiple_of(length) || length > most {
            return refuse(format!("texts are [B, T], with T at most {most}"));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return refuse(format!("there is no token {id}, only {}", self.vocab_size));
        }
        let rows = Tensor::from_slice(ids, ids.len(), self.embeddings.device())?;
        let x = self.embeddings.index_select(&rows, 0)?.to_dtype(self.placement.dtype())?;
        Ok(x.reshape((ids.len() / length, length, self.config.dim))?)
    }

    /// `[B, T, D]` → the same, through block `i`.
    ///
    /// * `shown`: what the adapter is given, `[B, P, D]`.
    ///
    /// # Errors
    /// [`Error::Input`] for a block that there is not; [`Error::Tensor`].
    pub(super) fn through(&self, i: usize, x: &Tensor, shown: Option<&Tensor>) -> Result<Tensor, Error> {
        let Some(block) = self.blocks.get(i) else {
            return Err(Error::Input { received: vec![i], why: "there is no such block".into() });
        };
        block.forward(x, i, self.config.norm_eps, &mut |_, _| {}, |[q, k, v], _| {
            let (q, k) = (self.rotary.turn(q, 0)?, self.rotary.turn(k, 0)?); // [B, H, T, d]
            let v = heads_apart(v, self.config.n_heads)?;
            let mask = causal(x.dim(1)?, 0, x)?;
            let mixed = heads_together(&weigh(&q, &k, &v, Some(&mask))?)?; // [B, T, D]
            let adapter = block.adapter.as_ref();
            match adapter.map(|adapter| adapter.addition(&block.projections(), shown)).transpose()?.flatten()
            {
                Some(addition) => addition.add_to(&mixed, &q),
                None => Ok(mixed),
            }
        })
    }

    /// What the last block gives as logits, `[B, T, V]`, f32.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub(super) fn spoken(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(self.output.forward(&self.normed(x)?)?.to_dtype(DType::F32)?)
    }

    /// What the adapter is given for embeddings `[B, d]`, or for pictures `[B, 3, S, S]`: `[B, P, D]`.
    ///
    /// # Errors
    /// [`Error::Input`] for what this decoder does not take.
    pub(super) fn shown(&self, shown: super::Shown<'_>) -> Result<Option<Tensor>, Error> {
        let refuse = |why: &str| Err(Error::Input { received: vec![], why: why.into() });
        match (shown, &self.front) {
            (super::Shown::Nothing, _) => Ok(None),
            (super::Shown::Embeddings(x), Front::Bind(_)) => Ok(Some(self.visual(x)?.unsqueeze(1)?)),
            (super::Shown::Pictures(x), Front::Picture(picture)) => {
                picture.forward(&self.placement.place(x)?, &mut |_, _| {}).map(Some)
            }
            (super::Shown::Embeddings(_), _) => refuse("this decoder takes no embeddings"),
            (super::Shown::Pictures(_), _) => refuse("this decoder looks at no pictures"),
        }
    }
}
