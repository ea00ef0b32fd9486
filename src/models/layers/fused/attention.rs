//! Attention of all heads, from projected rows to mixed ones.
//!
//! ```text
//! rows of q, k, v ─► heads, turned ─► s = q·kᵀ/√d ─► p = softmax(s + added) ─► a = p ⊙ times ─► a·v ─► rows
//! back            a and p are kept as p alone;       ds = a ⊙ da − p · Σ a ⊙ da        the rest is made again from the rows
//! ```

use std::sync::OnceLock;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, D, Device, Layout, Result as TensorResult, Shape, Tensor, bail,
};

use super::super::graph::learns;
use super::super::in_place;
use super::heads::Heads;
use super::rows::{made, numbers, with};
use crate::kernels::Kernels;

/// How rows look at each other.
#[derive(Clone, Copy, Default)]
pub(in crate::models) struct Attention<'a> {
    /// Heads side by side in a row.
    pub(in crate::models) heads: usize,
    /// Added to the scores, `[L, S]`; it is not learned.
    pub(in crate::models) added: Option<&'a Tensor>,
    /// What the softmax is multiplied by, `[L, S]`; it is not learned.
    pub(in crate::models) times: Option<&'a Tensor>,
    /// Cosines and sines of the turns of queries and keys, `[≥ L, d/2]` each.
    pub(in crate::models) turns: Option<[&'a Tensor; 2]>,
    /// One more key and value, `[.., width]` each: S is then L + 1, else L.
    pub(in crate::models) extra: Option<[&'a Tensor; 2]>,
    /// Whether the last row alone looks.
    pub(in crate::models) last: bool,
}

/// `(times ⊙ softmax(q·kᵀ/√d + added))·v` of rows `[B, L, 3·width]` → `[B, L, width]`, or `[B, 1, width]` of the last.
pub(in crate::models) fn attend(qkv: &Tensor, how: &Attention<'_>) -> TensorResult<Tensor> {
    let (_, length, wide) = qkv.dims3()?;
    let (width, keys) = (wide / 3, length + usize::from(how.extra.is_some()));
    let head = width / how.heads.max(1);
    let first = if how.last { length.saturating_sub(1) } else { 0 };
    if length == 0 || head * how.heads != width || width * 3 != wide || width == 0 {
        bail!("rows of shape {:?} are no queries, keys and values of {} heads", qkv.dims(), how.heads);
    }
    let mask = |mask: Option<&Tensor>| {
        let Some(mask) = mask else { return Ok(None) };
        if learns(&[mask]) {
            bail!("a mask of fused attention has no derivative");
        }
        Ok(Some(mask.reshape((length, keys))?.narrow(0, first, length - first)?.contiguous()?))
    };
    let turns = how.turns.map(|turns| turns.map(|table| table.narrow(0, 0, length)?.contiguous()));
    let turns = match turns {
        Some([cos, sin]) => {
            let tables = [cos?, sin?];
            if learns(&[&tables[0], &tables[1]]) || tables.iter().any(|t| t.elem_count() * 2 != length * head)
            {
                bail!("tables of turns that learn, or are of other heads");
            }
            Some(tables)
        }
        None => None,
    };
    let op = Op {
        heads: how.heads,
        first,
        added: mask(how.added)?,
        times: mask(how.times)?,
        turns,
        weights: OnceLock::new(),
    };
    let qkv = qkv.contiguous()?;
    match how.extra {
        Some([key, value]) => qkv.apply_op3(&key.contiguous()?, &value.contiguous()?, op),
        None => qkv.apply_op1(op),
    }
}

struct Op {
    heads: usize,
    first: usize,
    /// `[M, S]`, of the rows that look.
    added: Option<Tensor>,
    times: Option<Tensor>,
    turns: Option<[Tensor; 2]>,
    /// The softmax, `[B, H, M, S]`.
    weights: OnceLock<Tensor>,
}

/// Queries `[B, H, M, d]`, keys and values `[B, H, S, d]`.
struct Parts {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Op {
    /// Where queries, keys and values lie in rows `[B, L, 3·width]`, for work on them.
    fn places<R>(
        &self,
        [batch, length, wide]: [usize; 3],
        work: impl FnOnce([Heads<'_>; 3]) -> TensorResult<R>,
    ) -> TensorResult<R> {
        let width = wide / 3;
        let sizes = [batch, length, self.heads, width / self.heads];
        let scale = 1.0 / (sizes[3] as f32).sqrt();
        let all = |[cos, sin]: [&[f32]; 2]| {
            let turns = self.turns.is_some().then_some([cos, sin]);
            let value = Heads { sizes, row: wide, at: 2 * width, first: 0, turns: None, scale: 1.0 };
            let key = Heads { at: width, turns, ..value };
            work([Heads { at: 0, first: self.first, scale, ..key }, key, value])
        };
        match &self.turns {
            Some([cos, sin]) => with([cos, sin], all),
            None => all([&[], &[]]),
        }
    }

    /// Where heads lie in mixed rows.
    fn mixed(&self, [batch, length, wide]: [usize; 3]) -> Heads<'static> {
        let (width, count) = (wide / 3, length - self.first);
        let sizes = [batch, count, self.heads, width / self.heads];
        Heads { sizes, row: width, at: 0, first: 0, turns: None, scale: 1.0 }
    }

    fn parts(&self, shape: [usize; 3], qkv: &[f32], extra: Option<[&[f32]; 2]>) -> TensorResult<Parts> {
        let [batch, length, wide] = shape;
        let (keys, head) = (length + usize::from(extra.is_some()), wide / 3 / self.heads);
        self.places(shape, |[q, k, v]| {
            let queries = Tensor::from_vec(
                q.apart(qkv, q.count()),
                (batch, self.heads, q.count(), head),
                &Device::Cpu,
            )?;
            let beside = |heads: Heads<'_>, extra: Option<&[f32]>| {
                let mut all = heads.apart(qkv, keys);
                if let Some(extra) = extra {
                    let heads = all.chunks_exact_mut(keys * head).zip(extra.chunks_exact(head).cycle());
                    heads.for_each(|(all, extra)| all[length * head..].copy_from_slice(extra));
                }
                Tensor::from_vec(all, (batch, self.heads, keys, head), &Device::Cpu)
            };
            let [key, value] = [extra.map(|extra| extra[0]), extra.map(|extra| extra[1])];
            Ok(Parts { q: queries, k: beside(k, key)?, v: beside(v, value)? })
        })
    }

    /// What values are mixed by: the softmax times what it is multiplied by.
    fn mixing(&self, weights: &Tensor) -> TensorResult<Tensor> {
        let Some(times) = &self.times else { return Ok(weights.clone()) };
        let mixing = with([weights, times], |[weights, times]| {
            let mut mixing = Vec::with_capacity(weights.len());
            for weights in weights.chunks_exact(times.len()) {
                mixing.extend(weights.iter().zip(times).map(|(p, t)| p * t));
            }
            Ok(mixing)
        })?;
        Tensor::from_vec(mixing, weights.shape(), &Device::Cpu)
    }

    fn forward(
        &self,
        qkv: &CpuStorage,
        layout: &Layout,
        extra: Option<[&[f32]; 2]>,
    ) -> TensorResult<(CpuStorage, Shape)> {
        let (batch, length, wide) = layout.shape().dims3()?;
        let shape = [batch, length, wide];
        let width = wide / 3;
        if extra.is_some_and(|extra| extra.iter().any(|row| row.len() != width)) {
            bail!("one more key and value are of {width} numbers each");
        }
        let Parts { q, k, v } = self.parts(shape, numbers(qkv, layout)?, extra)?;
        let scores = q.matmul(&k.t()?)?; // [B, H, M, S]
        let scores = match &self.added {
            Some(mask) => in_place::add_to(scores, mask)?,
            None => scores,
        };
        let weights = in_place::softmax(scores)?;
        let mixed = self.mixing(&weights)?.matmul(&v)?; // [B, H, M, d]
        let count = length - self.first;
        let mut rows = vec![0.0; batch * count * width];
        with([&mixed], |[mixed]| {
            self.mixed(shape).together(mixed, count, &mut rows);
            Ok(())
        })?;
        // Made once: an operation is applied to one tensor.
        let _ = self.weights.set(weights);
        Ok(made(rows, &(batch, count, width).into()))
    }

    /// Gradients of the rows, and of one more key and value.
    fn back(
        &self,
        qkv: &Tensor,
        extra: Option<[&Tensor; 2]>,
        gradient: &Tensor,
    ) -> TensorResult<(Tensor, Option<[Tensor; 2]>)> {
        let (batch, length, wide) = qkv.dims3()?;
        let shape = [batch, length, wide];
        let Some(weights) = self.weights.get() else { bail!("attention that was not computed") };
        let parts = match extra {
            Some([key, value]) => {
                with([qkv, key, value], |[qkv, key, value]| self.parts(shape, qkv, Some([key, value])))?
            }
            None => with([qkv], |[qkv]| self.parts(shape, qkv, None))?,
        };
        let Parts { q, k, v } = parts;
        let mixed = self.mixed(shape);
        let gradient = with([gradient], |[gradient]| Ok(mixed.apart(gradient, mixed.count())))?;
        let gradient = Tensor::from_vec(gradient, q.shape(), &Device::Cpu)?; // [B, H, M, d]
        let mixing = self.mixing(weights)?;
        let of_v = mixing.t()?.matmul(&gradient)?; // [B, H, S, d]
        let of_mixing = gradient.matmul(&v.t()?)?; // [B, H, M, S]
        let keys = weights.dim(D::Minus1)?;
        let of_scores = with([weights, &mixing, &of_mixing], |[weights, mixing, of_mixing]| {
            let mut of_scores = Vec::with_capacity(weights.len());
            let rows = mixing.chunks_exact(keys).zip(of_mixing.chunks_exact(keys));
            for (p, (a, g)) in weights.chunks_exact(keys).zip(rows) {
                let sum = Kernels::get().dot(a, g);
                of_scores.extend(a.iter().zip(g).zip(p).map(|((a, g), p)| a * g - p * sum));
            }
            Ok(of_scores)
        })?;
        drop((mixing, of_mixing));
        let of_scores = Tensor::from_vec(of_scores, weights.shape(), &Device::Cpu)?;
        let (of_q, of_k) = (of_scores.matmul(&k)?, of_scores.t()?.matmul(&q)?);
        let mut rows = vec![0.0; batch * length * wide];
        let of_extra = with([&of_q, &of_k, &of_v], |[of_q, of_k, of_v]| {
            self.places(shape, |[q, k, v]| {
                q.together(of_q, q.count(), &mut rows);
                k.together(of_k, keys, &mut rows);
                v.together(of_v, keys, &mut rows);
                Ok(())
            })?;
            let behind = |all: &[f32]| {
                let head = wide / 3 / self.heads;
                let mut sums = vec![0.0; wide / 3];
                for (i, all) in all.chunks_exact(keys * head).enumerate() {
                    let into = &mut sums[i % self.heads * head..][..head];
                    into.iter_mut().zip(&all[length * head..]).for_each(|(sum, g)| *sum += g);
                }
                sums
            };
            Ok(extra.map(|_| [behind(of_k), behind(of_v)]))
        })?;
        let rows = Tensor::from_vec(rows, qkv.shape(), &Device::Cpu)?;
        let Some(([key, value], [of_key, of_value])) = extra.zip(of_extra) else { return Ok((rows, None)) };
        let of = |values, tensor: &Tensor| Tensor::from_vec(values, tensor.shape(), &Device::Cpu);
        Ok((rows, Some([of(of_key, key)?, of(of_value, value)?])))
    }
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> TensorResult<(CpuStorage, Shape)> {
        self.forward(qkv, layout, None)
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, gradient: &Tensor) -> TensorResult<Option<Tensor>> {
        Ok(Some(self.back(qkv, None, gradient)?.0))
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "attention-with-one-more"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        layout: &Layout,
        key: &CpuStorage,
        key_layout: &Layout,
        value: &CpuStorage,
        value_layout: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        self.forward(qkv, layout, Some([numbers(key, key_layout)?, numbers(value, value_layout)?]))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        key: &Tensor,
        value: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (rows, extra) = self.back(qkv, Some([key, value]), gradient)?;
        let [of_key, of_value] = match extra {
            Some(extra) => extra.map(Some),
            None => [None, None],
        };
        let of = |tensor: &Tensor, found: Option<Tensor>| found.filter(|_| learns(&[tensor]));
        Ok((learns(&[qkv]).then_some(rows), of(key, of_key), of(value, of_value)))
    }
}
