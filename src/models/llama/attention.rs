//! Causal attention of one sequence, and the keys and values it keeps.
//!
//! Position t sees positions up to t. Queries and keys are turned by their position before they are kept.

use candle_core::Tensor;

use crate::models::layers::{causal, heads_apart, heads_together, learns, weigh};
use crate::models::{Error, Placement};

/// Tokens that memory is taken for at least, and by whose number it grows.
const BLOCK: usize = 64;

/// Keys and values of one layer, in memory that grows with the text.
pub struct KvCache {
    /// `[H, room, d]`, turned.
    keys: Tensor,
    values: Tensor,
    /// Tokens that there will be at most.
    capacity: usize,
}

impl KvCache {
    pub(super) fn new(
        heads: usize,
        head: usize,
        capacity: usize,
        placement: &Placement,
    ) -> Result<Self, Error> {
        let first = capacity.clamp(1, BLOCK);
        let room = || Tensor::zeros((heads, first, head), placement.dtype(), &placement.device);
        Ok(KvCache { keys: room()?, values: room()?, capacity })
    }

    /// A copy of the first `len` tokens, with room for `capacity`.
    pub(super) fn copied(&self, len: usize, capacity: usize) -> Result<Self, Error> {
        let room = len.next_multiple_of(BLOCK).min(capacity).max(1);
        Ok(KvCache { keys: moved(&self.keys, len, room)?, values: moved(&self.values, len, room)?, capacity })
    }

    /// Bytes that are taken now.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = |kept: &Tensor| (kept.elem_count() * kept.dtype().size_in_bytes()) as u64;
        bytes(&self.keys) + bytes(&self.values)
    }

    /// Makes room for so many tokens; what is there is moved a few times while a text grows, and not at every token.
    fn reserve(&mut self, len: usize, tokens: usize) -> Result<(), Error> {
        let room = self.keys.dim(1)?;
        if tokens <= room {
            return Ok(());
        }
        let more = tokens.max(room + room / 2).next_multiple_of(BLOCK).min(self.capacity).max(tokens);
        (self.keys, self.values) = (moved(&self.keys, len, more)?, moved(&self.values, len, more)?);
        Ok(())
    }

    /// Appends keys and values of T tokens at `position` and lets their queries look at everything up to themselves.
    ///
    /// * `q`, `k`: `[H, T, d]`, turned. `v`: `[T, D]`. Returns `[T, D]`.
    ///
    /// # Errors
    /// [`Error::Input`] for what learns: writing into the memory of others is outside the graph of derivatives.
    pub(super) fn attend(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        position: usize,
    ) -> Result<Tensor, Error> {
        if learns(&[k, v]) {
            let why = "keys and values that are kept have no derivative; learn from whole texts".into();
            return Err(Error::Input { received: k.dims().to_vec(), why });
        }
        let (heads, count, _) = q.dims3()?;
        let v = heads_apart(v, heads)?; // [H, T, d]
        self.reserve(position, position + count)?;
        self.keys.slice_set(k, 1, position)?;
        self.values.slice_set(&v, 1, position)?;
        let seen = position + count;
        let (keys, values) = (self.keys.narrow(1, 0, seen)?, self.values.narrow(1, 0, seen)?);
        let mask = if count > 1 { Some(causal(count, position, q)?) } else { None };
        Ok(heads_together(&weigh(q, &keys, &values, mask.as_ref())?)?)
    }

    /// Keys of the first `len` tokens, turned, as `[len, H, d]`.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn keys(&self, len: usize) -> Result<Tensor, Error> {
        Ok(self.keys.narrow(1, 0, len)?.transpose(0, 1)?.contiguous()?)
    }

    /// Their values.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn values(&self, len: usize) -> Result<Tensor, Error> {
        Ok(self.values.narrow(1, 0, len)?.transpose(0, 1)?.contiguous()?)
    }
}

/// The first `len` tokens of keys or values in memory of their own, with room for `room`.
fn moved(from: &Tensor, len: usize, room: usize) -> Result<Tensor, Error> {
    let (heads, _, head) = from.dims3()?;
    let to = Tensor::zeros((heads, room, head), from.dtype(), from.device())?;
    if len > 0 {
        to.slice_set(&from.narrow(1, 0, len)?.contiguous()?, 1, 0)?;
    }
    Ok(to)
}
