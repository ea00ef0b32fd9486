//! Positions as turns: components 2j and 2j + 1 of a head together, by position · θ^(−2j/d).
//!
//! Source: RoFormer (arXiv 2104.09864), in the form of LLaMA's published program.

use candle_core::{D, Tensor};

use super::attention::heads_apart;
use super::graph::learns;
use crate::models::{Error, Placement};

/// The tables of turns.
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
        let place = |values: Vec<f32>| placement.tensor(values, &[positions, half]);
        Ok(Rotary { cos: place(cos)?, sin: place(sin)?, head })
    }

    /// `[.., T, D]` → `[.., H, T, d]`, turned; the first of the T rows lies at `position`.
    ///
    /// # Errors
    /// [`Error::Tensor`], for rows beyond the tables too.
    pub fn turn(&self, x: &Tensor, position: usize) -> Result<Tensor, Error> {
        let x = heads_apart(x, x.dim(D::Minus1)? / self.head)?; // [.., H, T, d]
        let count = x.dim(D::Minus2)?;
        let (cos, sin) = (self.cos.narrow(0, position, count)?, self.sin.narrow(0, position, count)?);
        if !learns(&[&x]) {
            let flat = x.reshape(((), x.dim(D::Minus(3))?, count, self.head))?;
            return Ok(candle_nn::rotary_emb::rope_i(&flat, &cos, &sin)?.reshape(x.dims())?);
        }
        let mut pairs = x.dims().to_vec();
        pairs.pop();
        let halves = [&pairs[..], &[self.head / 2]].concat();
        pairs.extend([self.head / 2, 2]);
        let pairs = x.reshape(pairs)?;
        let part = |n: usize| pairs.narrow(D::Minus1, n, 1)?.reshape(&halves[..]);
        let (even, odd) = (part(0)?, part(1)?);
        let first = (even.broadcast_mul(&cos)? - odd.broadcast_mul(&sin)?)?;
        let second = (even.broadcast_mul(&sin)? + odd.broadcast_mul(&cos)?)?;
        let rank = first.rank();
        Ok(Tensor::stack(&[first, second], rank)?.reshape(x.dims())?)
    }

    /// Both tables, `[positions, d/2]`.
    pub fn tables(&self) -> (&Tensor, &Tensor) {
        (&self.cos, &self.sin)
    }
}
