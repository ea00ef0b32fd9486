//! Causal attention of one sequence, and the keys and values it keeps.
//!
//! Position t sees positions up to t. Queries and keys are turned by their position before they are kept.

use candle_core::Tensor;

use crate::models::layers::{causal, heads_apart, heads_together, learns, weigh};
use crate::models::{Error, Placement};

/// Keys and values of one layer, in memory of a fixed size.
pub struct KvCache {
    /// `[H, capacity, d]`, turned.
    keys: Tensor,
    values: Tensor,
}

impl KvCache {
    pub(super) fn new(
        heads: usize,
        head: usize,
        capacity: usize,
        placement: &Placement,
    ) -> Result<Self, Error> {
        let room = || Tensor::zeros((heads, capacity.max(1), head), placement.dtype(), &placement.device);
        Ok(KvCache { keys: room()?, values: room()? })
    }

    /// A copy of the first `len` tokens, with room for `capacity`.
    pub(super) fn copied(&self, len: usize, capacity: usize) -> Result<Self, Error> {
        let copied = |from: &Tensor| -> Result<Tensor, Error> {
            let (heads, _, head) = from.dims3()?;
            let room = Tensor::zeros((heads, capacity.max(1), head), from.dtype(), from.device())?;
            if len > 0 {
                room.slice_set(&from.narrow(1, 0, len)?.contiguous()?, 1, 0)?;
            }
            Ok(room)
        };
        Ok(KvCache { keys: copied(&self.keys)?, values: copied(&self.values)? })
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
