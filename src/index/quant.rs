//! Codecs: how a row is written down for the search.
//!
//! `u8`: with μ the mean of the rows and one step for all components, `c = clamp(round((x−μ)/step) + 128, 0, 255)`.
//! Taking the mean off first does not change the ranking (`q·x = q·μ + q·(x−μ)`, and `q·μ` is the same for every row),
//! but the codes use their range better and the modality gap leaves the picture. The step puts the 99.99 % quantile
//! of |x−μ| at 127; what lies beyond is clipped. The query is scaled to ±127 on its own, so a score is
//! `q·μ + (Σ cᵢ·q̂ᵢ − 128·Σ q̂ᵢ)·step/scale`: one integer inner product a row.
//!
//! `u4`: x−μ is rotated first (`rotate.rs`), and so is the query; then the same with 16 levels,
//! `c = clamp(round((x−μ)/step + 7.5), 0, 15)`, the step 0.335 standard deviations of x−μ
//! (the least mean squared error of 16 even levels on a Gaussian; the outermost 0.6 % are clipped). Two components
//! share a byte: of every 128, the first 64 are the low halves of a cache line, the others the high halves, so that a
//! line becomes two lines of bytes by one mask and one shift.
//!
//! Error of a score: rounding moves a component by at most step/2 and the query by at most 1/(2·scale), both
//! independent over the components. What is clipped comes on top: 8-bit codes of features with heavy tails err twice as
//! much. Rescoring on the rows recovers the ranking. `tests/cache/codecs.rs` measures error and recall, on made rows and on
//! real features, and holds both to bounds; its figures are in `benches/README.md`.
//!
//! Rows of codes are padded to whole cache lines of 64 bytes; the query is zero there.

use half::f16;
use rayon::prelude::*;

use super::chunks::Numbers;
use super::params::BLOCK_4;
use super::rotate::rotate;
use super::{CodeKind, Error};
use crate::kernels::{Kernels, Table};

/// Rows looked at when a codec is trained.
pub(super) const SAMPLE: usize = 16_384;
/// Rows of those whose spread is looked at.
const QUANTILE_ROWS: usize = 4096;
/// Share of |x−μ| that is not clipped.
const KEPT: f64 = 0.9999;
/// Code of the mean in 8 bits.
const ZERO: i32 = 128;
/// Code of the mean in 4 bits: between two levels.
pub(super) const ZERO_4: f32 = 7.5;
/// Step of 16 even levels, in standard deviations.
pub(super) const STEP_4: f64 = 0.335;
/// Mean squared error of those levels, in variances.
const DISTORTION_4: f32 = 0.011_54;

/// A trained codec for rows of one dimension.
#[derive(Debug, Clone, PartialEq)]
pub struct Codec {
    pub(super) kind: CodeKind,
    pub(super) mean: Vec<f32>,
    pub(super) step: f32,
}

/// A query in the form that the rows' codes want.
#[derive(Debug)]
pub(super) enum CodedQuery {
    /// For f32 and f16 rows.
    Float(Vec<f32>),
    /// For codes: a row's score is `offset + scale · (codes · values)`.
    Integer {
        values: Vec<i8>,
        offset: f32,
        scale: f32,
        /// The query's score on the mean, and what 1 of `values` is worth.
        mean: f32,
        unit: f32,
    },
}

impl Codec {
    /// Learns mean and step from an even sample of the rows.
    ///
    /// * `rows`: row-major `[n, dim]`, n ≥ 1.
    pub fn train(kind: CodeKind, rows: &[f32], dim: usize) -> Self {
        let n = rows.len() / dim;
        let stride = n.div_ceil(SAMPLE).max(1);
        let sample: Vec<&[f32]> = rows.chunks_exact(dim).step_by(stride).collect();

        let mut mean = vec![0.0f64; dim];
        for row in &sample {
            mean.iter_mut().zip(*row).for_each(|(m, &v)| *m += f64::from(v));
        }
        let mean: Vec<f32> = mean.iter().map(|m| (m / sample.len() as f64) as f32).collect();

        // A few thousand rows are plenty for one quantile, and bound the memory of the selection.
        let mut spread: Vec<f32> = sample
            .par_iter()
            .step_by(sample.len().div_ceil(QUANTILE_ROWS))
            .flat_map_iter(|row| row.iter().zip(&mean).map(|(v, m)| (v - m).abs()))
            .collect();
        if kind == CodeKind::U4 {
            let squares: f64 = spread.iter().map(|&v| f64::from(v).powi(2)).sum();
            let deviation = (squares / spread.len() as f64).sqrt();
            let step = if deviation > 0.0 { (deviation * STEP_4) as f32 } else { 1.0 };
            return Codec { kind, mean, step };
        }
        let rank = ((spread.len() as f64 * KEPT) as usize).min(spread.len().saturating_sub(1));
        let (_, quantile, _) = spread.select_nth_unstable_by(rank, f32::total_cmp);
        // Equal rows have no spread; any positive step codes them all as the mean.
        let step = if *quantile > 0.0 { *quantile / 127.0 } else { 1.0 };
        Codec { kind, mean, step }
    }

    /// Components of a row.
    pub fn dim(&self) -> usize {
        self.mean.len()
    }

    /// The mean of the rows that it was trained on.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// What the codec writes.
    pub fn kind(&self) -> CodeKind {
        self.kind
    }

    /// Bytes of one coded row, a multiple of 64.
    pub fn stride(&self) -> usize {
        self.kind.stride(self.dim())
    }

    /// The codec in 8 bits: what the graph is built on, whatever the search runs on.
    ///
    /// * `rows`: those this one was trained on, or the sample of them.
    pub fn as_u8(&self, rows: &[f32]) -> Codec {
        match self.kind {
            CodeKind::U4 => Codec::train(CodeKind::U8, rows, self.dim()),
            _ => Codec { kind: CodeKind::U8, ..self.clone() },
        }
    }

    /// The codec in 4 bits: what a build walks on.
    ///
    /// * `rows`: as [`Codec::as_u8`] has them.
    pub fn as_u4(&self, rows: &[f32]) -> Codec {
        match self.kind {
            CodeKind::U4 => self.clone(),
            _ => Codec::train(CodeKind::U4, rows, self.dim()),
        }
    }

    /// A codec that writes numbers as they are, with this one's mean: f16 or f32.
    pub fn in_floats(&self, kind: CodeKind) -> Codec {
        Codec { kind, step: 1.0, mean: self.mean.clone() }
    }

    /// Codes all rows, in parallel on the current rayon pool.
    ///
    /// * `rows`: row-major `[n, dim]`. Returns n · [`Codec::stride`] bytes.
    pub fn encode(&self, rows: &[f32]) -> Vec<u8> {
        let mut codes = vec![0u8; rows.len() / self.dim() * self.stride()];
        codes
            .par_chunks_exact_mut(self.stride())
            .zip(rows.par_chunks_exact(self.dim()))
            .for_each(|(code, row)| self.encode_row(row, code));
        codes
    }

    pub(super) fn encode_row(&self, row: &[f32], code: &mut [u8]) {
        match self.kind {
            CodeKind::F32 => code[..row.len() * 4].copy_from_slice(bytemuck::cast_slice(row)),
            CodeKind::F16 => {
                for (bytes, &v) in code.chunks_exact_mut(2).zip(row) {
                    bytes.copy_from_slice(&f16::from_f32(v).to_ne_bytes());
                }
            }
            CodeKind::U8 => {
                for ((c, &v), &m) in code.iter_mut().zip(row).zip(&self.mean) {
                    *c = (((v - m) / self.step).round() as i32 + ZERO).clamp(0, 255) as u8;
                }
            }
            CodeKind::U4 => {
                let mut centred: Vec<f32> = row.iter().zip(&self.mean).map(|(v, m)| v - m).collect();
                rotate(&mut centred);
                for (i, v) in centred.into_iter().enumerate() {
                    let level = (v / self.step + ZERO_4).round().clamp(0.0, 15.0) as u8;
                    let high = i % BLOCK_4 >= BLOCK_4 / 2;
                    code[i / BLOCK_4 * 64 + i % 64] |= level << (4 * u8::from(high));
                }
            }
        }
    }

    /// Standard deviation of a score on codes around the true one: rows and query are each rounded by up to half a
    /// step, independently over the components. Clipping is not in it.
    ///
    /// * `norm`, `largest`: of the query, its length and its largest component. Rows have unit length.
    pub(super) fn score_error(&self, norm: f32, largest: f32) -> f32 {
        const UNIFORM: f32 = 0.288_675; // of a width of 1: 1/√12
        match self.kind {
            // Kernels sum rows and their padded codes in different orders.
            CodeKind::F32 => norm * (-22f32).exp2(),
            // The last place of a component, which is at most 1.
            CodeKind::F16 => UNIFORM * norm * (-10f32).exp2(),
            CodeKind::U8 | CodeKind::U4 => UNIFORM * (self.step * norm).hypot(largest / 127.0),
        }
    }

    /// What scores on codes are multiplied with. Coarse levels lie nearer to the mean than what they stand for:
    /// E\[v·v̂\] = (1 − D)·E\[v²\].
    fn unshrink(&self) -> f32 {
        if self.kind == CodeKind::U4 { 1.0 / (1.0 - DISTORTION_4) } else { 1.0 }
    }

    /// Brings a query into the codes' form.
    pub(super) fn code_query(&self, query: &[f32]) -> CodedQuery {
        let (stride, zero) = match self.kind {
            CodeKind::F32 | CodeKind::F16 => {
                let mut values = query.to_vec();
                values.resize(self.stride() / if self.kind == CodeKind::F32 { 4 } else { 2 }, 0.0);
                return CodedQuery::Float(values);
            }
            CodeKind::U8 => (self.stride(), ZERO as f32),
            CodeKind::U4 => (2 * self.stride(), ZERO_4),
        };
        let rotated = (self.kind == CodeKind::U4).then(|| {
            let mut rotated = query.to_vec();
            rotate(&mut rotated);
            rotated
        });
        let scaled = rotated.as_deref().unwrap_or(query);
        self.scaled(scaled, stride, zero, Kernels::get().dot(query, &self.mean))
    }

    /// A query in the space of the codes, where the mean has score `mean`.
    fn scaled(&self, query: &[f32], stride: usize, zero: f32, mean: f32) -> CodedQuery {
        let mut values = vec![0i8; stride];
        let scale = Kernels::get().scale_query(query, &mut values[..query.len()]);
        let sum: i32 = values.iter().map(|&v| i32::from(v)).sum();
        let unit = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let scale = self.step * self.unshrink() * unit;
        CodedQuery::Integer { values, offset: mean - zero * sum as f32 * scale, scale, mean, unit }
    }
}

/// Rows of 4-bit codes, each of which can ask for its neighbours.
pub(super) struct RowQueries<'a> {
    codec: &'a Codec,
    /// The mean, rotated as the rows are.
    mean: Vec<f32>,
}

impl<'a> RowQueries<'a> {
    pub(super) fn new(codec: &'a Codec) -> Self {
        let mut mean = codec.mean.clone();
        rotate(&mut mean);
        RowQueries { codec, mean }
    }

    /// The query that a row is, as far as its code says.
    pub(super) fn query(&self, code: &[u8]) -> CodedQuery {
        let row = self.mean.iter().enumerate().map(|(i, mean)| {
            let byte = code[i / BLOCK_4 * 64 + i % 64];
            let level = if i % BLOCK_4 >= BLOCK_4 / 2 { byte >> 4 } else { byte & 15 };
            mean + (f32::from(level) - ZERO_4) * self.codec.step
        });
        let row: Vec<f32> = row.collect();
        let mean = Kernels::get().dot(&row, &self.mean);
        self.codec.scaled(&row, 2 * self.codec.stride(), ZERO_4, mean)
    }
}

/// Codes of many rows, and what made them.
#[derive(Clone, Copy)]
pub struct Coded<'a, R = &'a [u8]> {
    /// What made them.
    pub codec: &'a Codec,
    /// [`Codec::stride`] bytes a row.
    pub codes: R,
}

impl<R: Table<u8>> Coded<'_, R> {
    /// Scores of some rows on their codes.
    ///
    /// * `query`: length D.
    pub fn scores(&self, query: &[f32], slots: &[u32]) -> Vec<f32> {
        let (mut integers, mut scores) = (Vec::new(), Vec::with_capacity(slots.len()));
        let query = self.codec.code_query(query);
        score(Kernels::get(), self.codes, slots, &query, self.codec.kind(), &mut integers, &mut scores);
        scores
    }
}

/// Scores the rows `slots` of `codes` against a coded query. `scores` is cleared first; `integers` is scratch.
pub(super) fn score(
    kernels: Kernels,
    codes: impl Table<u8>,
    slots: &[u32],
    query: &CodedQuery,
    kind: CodeKind,
    integers: &mut Vec<i32>,
    scores: &mut Vec<f32>,
) {
    match (query, kind) {
        (CodedQuery::Integer { values, offset, scale, .. }, kind) => {
            match kind {
                CodeKind::U4 => kernels.score_nibbles(codes, slots, values, integers),
                _ => kernels.score_codes(codes, slots, values, integers),
            }
            scores.clear();
            scores.extend(integers.iter().map(|&s| offset + s as f32 * scale));
        }
        (CodedQuery::Float(values), CodeKind::F16) => {
            kernels.score_f16(Numbers(codes), slots, values, scores);
        }
        (CodedQuery::Float(values), _) => {
            kernels.score_f32(Numbers(codes), slots, values, scores);
        }
    }
}

/// Checks what a codec read from bytes must satisfy.
///
/// # Errors
/// [`Error::Format`].
pub(super) fn check(codec: &Codec) -> Result<(), Error> {
    let sound = codec.step.is_finite() && codec.step > 0.0 && codec.mean.iter().all(|m| m.is_finite());
    if sound { Ok(()) } else { Err(Error::Format("the codec's mean or step is not a finite number".into())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::AlignedBytes;
    use proptest::prelude::*;

    fn unit_rows(seed: u32, n: usize, dim: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 - 0.5
        };
        let mut rows: Vec<f32> = (0..n * dim).map(|_| next()).collect();
        for row in rows.chunks_exact_mut(dim) {
            let norm = crate::types::norm(row) as f32;
            row.iter_mut().for_each(|v| *v /= norm);
        }
        rows
    }

    proptest! {
        #[test]
        fn scores_on_codes_are_near_the_true_ones(seed in 1u32..10_000, dim in 1usize..200) {
            let rows = unit_rows(seed, 40, dim);
            let query = &unit_rows(seed + 1, 1, dim)[..];
            for (kind, bound) in [(CodeKind::F32, 1e-5f32), (CodeKind::F16, 1e-3), (CodeKind::U8, 0.05), (CodeKind::U4, 0.4)] {
                let codec = Codec::train(kind, &rows, dim);
                let codes = AlignedBytes::copy_of(&codec.encode(&rows)).unwrap();
                let slots: Vec<u32> = (0..40).collect();
                let (mut integers, mut scores) = (Vec::new(), Vec::new());
                let coded = codec.code_query(query);
                score(Kernels::get(), codes.as_slice(), &slots, &coded, kind, &mut integers, &mut scores);
                for (row, score) in rows.chunks_exact(dim).zip(&scores) {
                    let truth: f32 = row.iter().zip(query).map(|(a, b)| a * b).sum();
                    prop_assert!((truth - score).abs() < bound, "{kind:?} dim {dim}: {truth} {score}");
                }
            }
        }
    }

    #[test]
    fn equal_rows_and_a_zero_query_are_harmless() {
        let rows = [0.6f32, 0.8].repeat(5);
        let codec = Codec::train(CodeKind::U8, &rows, 2);
        assert_eq!(codec.encode(&rows)[..2], [128, 128]);
        assert!(matches!(codec.code_query(&[0.0, 0.0]), CodedQuery::Integer { scale: 0.0, offset: 0.0, .. }));
    }
}
