//! Causal attention of one sequence, and the keys and values it keeps.
//!
//! Position t sees positions up to t. Queries and keys are rotated by their position before they are kept: components 2j and
//! 2j + 1 of a head together, by position · θ^(−2j/d).

use candle_core::{D, Tensor};

use super::checkpoint::place;
use crate::models::layers::softmax;
use crate::models::{Error, Placement};

/// The rotary tables.
pub struct Rotary {
    /// `[positions, d/2]`
    cos: Tensor,
    sin: Tensor,
    head: usize,
}

impl Rotary {
    /// Computes them.
    ///
    /// * `head`: components of a head, d.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn new(head: usize, positions: usize, theta: f64, placement: &Placement) -> Result<Self, Error> {
        let half = head / 2;
        // In f32 up to the angle, as the published program: far from the beginning the difference shows.
        let angles = (0..positions * half).map(|i| {
            let exponent = (2 * (i % half)) as f32 / head as f32;
            let frequency = 1.0 / theta.powf(f64::from(exponent)) as f32;
            f64::from((i / half) as f32 * frequency)
        });
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        let place = |values: Vec<f32>| place(values, &[positions, half], placement);
        Ok(Rotary { cos: place(cos)?, sin: place(sin)?, head })
    }

    /// `[T, D]` → `[H, T, d]`, turned; the first row lies at `position`.
    ///
    /// # Errors
    /// [`Error::Tensor`], for rows beyond the tables too.
    pub fn turn(&self, x: &Tensor, position: usize) -> Result<Tensor, Error> {
        let (count, dim) = x.dims2()?;
        let heads = dim / self.head;
        let x = x.reshape((1, count, heads, self.head))?.transpose(1, 2)?.contiguous()?; // [1, H, T, d]
        let rows = |table: &Tensor| table.narrow(0, position, count);
        Ok(candle_nn::rotary_emb::rope_i(&x, &rows(&self.cos)?, &rows(&self.sin)?)?.squeeze(0)?)
    }
}

/// Keys and values of one layer, in memory of a fixed size.
pub struct KvCache {
    /// `[H, capacity, d]`, turned.
    keys: Tensor,
    values: Tensor,
}

impl Rotary {
    /// Both tables, `[positions, d/2]`.
    pub fn tables(&self) -> (&Tensor, &Tensor) {
        (&self.cos, &self.sin)
    }
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
    pub(super) fn attend(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        position: usize,
    ) -> Result<Tensor, Error> {
        let (heads, count, head) = q.dims3()?;
        let v = v.reshape((count, heads, head))?.transpose(0, 1)?.contiguous()?; // [H, T, d]
        self.keys.slice_set(k, 1, position)?;
        self.values.slice_set(&v, 1, position)?;
        let seen = position + count;
        let (keys, values) = (self.keys.narrow(1, 0, seen)?, self.values.narrow(1, 0, seen)?);
        let q = (q * (head as f64).powf(-0.5))?;
        let mut scores = q.contiguous()?.matmul(&keys.t()?)?; // [H, T, S]
        if count > 1 {
            let mask: Vec<f32> = (0..count * seen)
                .map(|i| if i % seen > position + i / seen { f32::NEG_INFINITY } else { 0.0 })
                .collect();
            let mask = Tensor::from_vec(mask, (count, seen), q.device())?.to_dtype(q.dtype())?;
            scores = scores.broadcast_add(&mask)?;
        }
        let weights = softmax(scores)?;
        debug_assert_eq!(weights.dim(D::Minus1)?, seen);
        Ok(weights.matmul(&values)?.transpose(0, 1)?.reshape((count, heads * head))?)
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
