//! One bit a component, to pass over rows without reading their codes.
//!
//! A beam scores some ten rows for each that enters its pool, and waits for memory while it does. The signs of x−μ,
//! rotated, are a quarter of a 4-bit code and say enough to pass most of those rows over:
//!
//! ```text
//! v = x−μ, rotated, components near normal of deviation σ      q·v ≈ √(π/2)·σ · Σ lᵢ·sign(vᵢ)
//! l = q in four levels, ±1 and ±3 times a unit                 such that l·q = |q|²
//! error of that                                                near normal, deviation σ·√(|l|²·(π/2 − 1) + |l − q|²)
//! ```
//!
//! A row whose estimate lies more than [`SLACK`] such deviations below the worst of a full pool is not scored. The signs are the
//! highest bits of the codes: they are taken from there when an index is opened, and not stored.
//!
//! With four levels the sum over signs is two population counts. Sixteen make it five and the deviation 15 % smaller: a search
//! of the same recall took 7 % longer.
//!
//! What it costs: a row that belongs to the pool is passed over when its estimate errs by more than one deviation, one in six
//! at the very edge and hardly one further up. What it saves: half to two thirds of the codes read (synthetic 100k, recall
//! 0.95 of cross-modal queries, with sixteen levels: 638 of 1384 at a loss of recall of 0.0003).
//!
//! Tried and dropped: a factor for each row, |v|²/Σ|vᵢ|, as the source has it: 4 % fewer codes, for one more miss a row.
//!
//! Source: Gao and Long, *RaBitQ* (SIGMOD 2024), with the rotation and the codes that are there anyway.

use rayon::prelude::*;

use super::chunks::Chunks;
use super::quant::{Coded, STEP_4};
use super::rotate::rotate;
use super::{CodeKind, Codec, Error};
use crate::kernels::{self, Kernels, PLANES, Table};

/// Deviations below the pool's worst at which a row is passed over.
const SLACK: f32 = 1.0;

/// The signs of all rows. Copies are cheap, and share them.
#[derive(Clone)]
pub(super) struct Sketch {
    /// A bit a component, padding included: 16 bytes for each line of codes.
    bits: Chunks,
    /// D, padding left out.
    dim: usize,
    /// σ.
    deviation: f32,
}

/// A query against sketches: what bits are held against, and what their distance from it says.
#[derive(Debug, Default)]
pub(super) struct SketchQuery {
    levels: Levels,
    /// The most that a row may score, within [`SLACK`], is `nearest - distance·step`.
    nearest: f32,
    step: f32,
    distances: Vec<i32>,
}

impl Sketch {
    /// Of 4-bit codes; nothing for others, whose components are not alike.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub(super) fn of<R: Table<u8> + Sync>(
        Coded { codec, codes }: Coded<'_, R>,
        rows: usize,
    ) -> Result<Option<Self>, Error> {
        if codec.kind() != CodeKind::U4 {
            return Ok(None);
        }
        let (stride, code_len) = (codec.stride() / 4, codec.stride());
        let mut bits = Chunks::zeroed(rows, stride)?;
        let parts: Vec<_> = bits.parts_mut().collect();
        parts.into_par_iter().for_each(|(first, part)| {
            for (slot, bits) in (first..).zip(part.chunks_exact_mut(stride)) {
                signs(codes.row(slot, code_len), bits);
            }
        });
        Ok(Some(Sketch { bits, dim: codec.dim(), deviation: codec.step / STEP_4 as f32 }))
    }

    /// Makes room for more rows.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub(super) fn grow(&mut self, len: usize) -> Result<(), Error> {
        self.bits.grow(len)
    }

    /// Puts the signs of a row into the place of another's.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub(super) fn set(&mut self, slot: u32, code: &[u8]) -> Result<(), Error> {
        let mut bits = vec![0; self.bits.stride()];
        signs(code, &mut bits);
        self.bits.set(slot, &bits)
    }

    /// Bytes of memory that it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.bits.bytes()
    }

    /// * `values`: the query as 4-bit codes want it: rotated, scaled, padded. `unit`: what 1 of them is worth. `mean`: the
    ///   query's score on μ.
    pub(super) fn aim(&self, values: &[i8], unit: f32, mean: f32, aim: &mut SketchQuery) {
        aim.levels.set(values, self.dim);
        let unit = unit * self.deviation;
        aim.step = unit * aim.levels.step;
        aim.nearest = mean + unit * (aim.levels.nearest + SLACK * aim.levels.error);
    }

    /// Adds the slots whose score may reach `floor` to `kept`.
    pub(super) fn sift(&self, aim: &mut SketchQuery, slots: &[u32], floor: f32, kept: &mut Vec<u32>) {
        let SketchQuery { levels, nearest, step, distances } = aim;
        Kernels::get().score_signs(&self.bits, slots, &levels.planes, distances);
        let farthest = ((*nearest - floor) / *step).floor() as i32;
        let start = kept.len();
        kept.resize(start + slots.len(), 0);
        let mut end = start;
        // Whether a row is kept is anyone's guess, the processor's as well: no branch.
        for (&slot, &distance) in slots.iter().zip(&*distances) {
            kept[end] = slot;
            end += usize::from(distance <= farthest);
        }
        kept.truncate(end);
    }

    /// Fetches the bits of rows that will be sifted.
    pub(super) fn fetch(&self, slots: &[u32]) {
        for &slot in slots {
            kernels::prefetch(self.bits.row(slot));
        }
    }
}

/// Signs of rows that no index holds yet, by the mean and the rotation of one. Each row's length is kept beside them, and what
/// is said of its score is a bound.
pub struct Signs<'a> {
    codec: &'a Codec,
}

/// A query against such signs.
pub struct SignQuery {
    levels: Levels,
    /// Its score on the mean.
    mean: f32,
    /// What 1 of its values is worth on a row of unit length.
    unit: f32,
}

impl<'a> Signs<'a> {
    /// By the mean of a codec.
    pub fn new(codec: &'a Codec) -> Self {
        Signs { codec }
    }

    /// Components from which on a sum over signs is near enough to normal for six deviations to bound it.
    pub const LEAST_DIM: usize = 256;
    /// Deviations that an estimate is never off: one in 10⁹ would be, if they were normal.
    pub const DEVIATIONS: f32 = 6.0;

    /// Bytes of a row's signs.
    pub fn bytes(dim: usize) -> usize {
        dim.next_multiple_of(64) / 8
    }

    /// A row less the mean, rotated: what its signs are of.
    pub fn turned(&self, row: &[f32]) -> Vec<f32> {
        let mut turned: Vec<f32> = row.iter().zip(&self.codec.mean).map(|(v, m)| v - m).collect();
        rotate(&mut turned);
        turned
    }

    /// Adds the signs of a row to `bits`.
    ///
    /// * `turned`: the row, [`Signs::turned`].
    pub fn of_turned(turned: &[f32], bits: &mut Vec<u8>) {
        let end = bits.len() + Signs::bytes(turned.len());
        bits.extend(turned.chunks(8).map(|v| v.iter().rev().fold(0u8, |b, v| b << 1 | u8::from(*v >= 0.0))));
        bits.resize(end, 0);
    }

    /// A query rotated, as rows are, and its score on the mean.
    pub fn turned_query(&self, query: &[f32]) -> (Vec<f32>, f32) {
        let mut turned = query.to_vec();
        rotate(&mut turned);
        (turned, Kernels::get().dot(query, &self.codec.mean))
    }

    /// A query in the form that signs want.
    ///
    /// * `turned`, `mean`: [`Signs::turned_query`].
    pub fn of_query(turned: &[f32], mean: f32) -> SignQuery {
        let mut values = vec![0i8; turned.len().next_multiple_of(64)];
        let scale = Kernels::get().scale_query(turned, &mut values[..turned.len()]);
        let mut levels = Levels::default();
        levels.set(&values, turned.len());
        let unit = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        SignQuery { levels, mean, unit: unit / (turned.len() as f32).sqrt() }
    }
}

impl SignQuery {
    /// What the signs of some rows say: of each, an estimate of its score and how far that may be off.
    ///
    /// * `bits`, `lengths`: of all rows, and the lengths of those rows [`Signs::turned`]. `rows`: those that are wanted.
    pub fn judge(
        &self,
        bits: &[u8],
        lengths: &[f32],
        rows: &[u32],
        distances: &mut Vec<i32>,
        mut each: impl FnMut(u32, f32, f32),
    ) {
        let Levels { planes, nearest, step, error } = &self.levels;
        Kernels::get().score_signs(bits, rows, planes, distances);
        for (&row, &distance) in rows.iter().zip(&*distances) {
            let unit = self.unit * lengths[row as usize];
            each(
                row,
                self.mean + unit * (nearest - step * distance as f32),
                unit * Signs::DEVIATIONS * error,
            );
        }
    }
}

impl SignQuery {
    /// The rows that may score `needed`, as far as their signs say, into `kept`, which is cleared first; as
    /// [`SignQuery::judge`] has them.
    pub fn sift(
        &self,
        bits: &[u8],
        lengths: &[f32],
        rows: &[u32],
        needed: f32,
        distances: &mut Vec<i32>,
        kept: &mut Vec<u32>,
    ) {
        let Levels { planes, nearest, step, error } = &self.levels;
        Kernels::get().score_signs(bits, rows, planes, distances);
        let (nearest, step) = (self.unit * (nearest + Signs::DEVIATIONS * error), self.unit * step);
        kept.clear();
        kept.resize(rows.len(), 0);
        let mut end = 0;
        for (&row, &distance) in rows.iter().zip(&*distances) {
            kept[end] = row;
            let most = self.mean + lengths[row as usize] * (nearest - step * distance as f32);
            end += usize::from(most >= needed);
        }
        kept.truncate(end);
    }
}

/// √(π/2), and √(π/2 − 1).
const FACTOR: f32 = 1.253_314_1;
const ERROR: f32 = 0.755_510_6;
/// Where the levels of a normal distribution are told apart that stand for it best, in deviations: 0, and this either way
/// (Max, *Quantizing for minimum distortion*, 1960, table II: four equal steps).
const MIDDLE: f32 = 0.9957;

/// A query's components in four levels, ±1 and ±3, and what a row of deviation 1 probably scores.
#[derive(Debug, Default)]
struct Levels {
    /// The lower bits of all levels, then the upper ones, as [`Kernels::score_signs`] wants them: −3 is 00, 3 is 11. Padding is
    /// of zeros, as it is in every row.
    planes: Vec<u64>,
    /// The estimate is `nearest - step·distance`, its deviation `error`, all in units of the values.
    nearest: f32,
    step: f32,
    error: f32,
}

impl Levels {
    /// * `values`: whole words, padding included. `dim`: how many are none.
    fn set(&mut self, values: &[i8], dim: usize) {
        let (chunks, _) = values.as_chunks::<64>();
        let squares =
            chunks.iter().map(|chunk| sum(chunk.map(|v| i32::from(v) * i32::from(v))) as f32).sum::<f32>();
        let middle = (MIDDLE * (squares / dim as f32).sqrt()) as u8;
        let words = chunks.len();
        self.planes.clear();
        self.planes.resize(PLANES * words, 0);
        let (lower, upper) = self.planes.split_at_mut(words);
        let (mut along, mut outer) = (0, 0);
        for (at, ((values, lower), upper)) in chunks.iter().zip(lower).zip(upper).enumerate() {
            let padding = (64 * (at + 1)).saturating_sub(dim) as u32;
            let inside = u64::MAX.checked_shr(padding).unwrap_or(0);
            let plus = gathered(values.map(|v| u8::from(v >= 0)));
            let far = values.map(|v| u8::from(v.unsigned_abs() > middle));
            let magnitudes = values.map(|v| i32::from(v.unsigned_abs()));
            let of_far = std::array::from_fn(|i| magnitudes[i] & -i32::from(far[i]));
            along += sum(magnitudes) + 2 * sum(of_far);
            let far = gathered(far);
            outer += far.count_ones() as i32;
            *lower = !(plus ^ far) & inside;
            *upper = plus & inside;
        }
        let unit = if along > 0 { squares / along as f32 } else { 0.0 };
        let square = unit * unit * (dim as i32 + 8 * outer) as f32; // |l|²
        self.nearest = FACTOR * unit * 3.0 * dim as f32;
        self.step = FACTOR * unit * 2.0;
        self.error = (ERROR * ERROR * square + (square - squares).max(0.0)).sqrt();
    }
}

/// The signs of a row of codes.
fn signs(code: &[u8], bits: &mut [u8]) {
    bits.chunks_exact_mut(16).zip(code.chunks_exact(64)).for_each(|(bits, line)| sketch(line, bits));
}

/// The highest bits of a line of codes.
fn sketch(line: &[u8], bits: &mut [u8]) {
    for (at, bytes) in line.chunks_exact(8).enumerate() {
        let word = word(bytes);
        bits[at] = lowest_bits(word >> 3);
        bits[8 + at] = lowest_bits(word >> 7);
    }
}

/// The sum of what cannot overflow: where overflow is looked for, nothing is added side by side.
fn sum(values: [i32; 64]) -> i32 {
    values.iter().fold(0, |sum, &v| sum.wrapping_add(v))
}

/// The lowest bits of 64 bytes.
fn gathered(bytes: [u8; 64]) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|at| lowest_bits(word(&bytes[8 * at..][..8]))))
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap_or_default())
}

/// The lowest bit of each byte, gathered into one byte.
fn lowest_bits(bytes: u64) -> u8 {
    ((bytes & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn levels_are_those_of_the_values(values in prop::collection::vec(-127i8..=127, 1..300)) {
            let dim = values.len();
            let mut padded = values.clone();
            padded.resize(dim.next_multiple_of(128), 0);
            let mut levels = Levels::default();
            levels.set(&padded, dim);
            let squares: f32 = values.iter().map(|&v| f32::from(v).powi(2)).sum();
            let middle = (MIDDLE * (squares / dim as f32).sqrt()).floor();
            let words = padded.len() / 64;
            let bit = |plane: usize, at: usize| levels.planes[plane * words + at / 64] >> (at % 64) & 1;
            let level = |&v: &i8| {
                let size = if f32::from(v).abs() > middle { 3 } else { 1 };
                if v < 0 { -size } else { size }
            };
            for (at, v) in values.iter().enumerate() {
                prop_assert_eq!(4 * bit(1, at) as i32 + 2 * bit(0, at) as i32 - 3, level(v), "{} at {}", v, at);
            }
            prop_assert!((dim..padded.len()).all(|at| bit(0, at) == 0 && bit(1, at) == 0));
            // Scaled so that the query itself scores what it should.
            let along: f32 = values.iter().map(|v| f32::from(*v) * level(v) as f32).sum();
            let unit = levels.step / (2.0 * FACTOR);
            prop_assert!((unit * along - squares).abs() <= 1e-4 * squares);
            prop_assert!((levels.nearest - FACTOR * unit * 3.0 * dim as f32).abs() <= 1e-4 * levels.nearest);
        }
    }

    /// Scores by signs against true ones: the deviation is what is said of it, and none lies outside the bound.
    #[test]
    fn estimates_by_signs_are_as_good_as_they_say() {
        let dim = 384;
        let mut state = 5u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let centre: Vec<f32> = (0..dim).map(|_| next()).collect();
        let mut rows = |n: usize, pull: f32| -> Vec<f32> {
            let mut rows = Vec::new();
            for _ in 0..n {
                let mut row: Vec<f32> = centre.iter().map(|c| pull * c + next()).collect();
                let norm = crate::types::norm(&row) as f32;
                row.iter_mut().for_each(|v| *v /= norm);
                rows.extend(row);
            }
            rows
        };
        let (stored, queries) = (rows(2000, 0.7), rows(20, 0.3));
        let codec = Codec::train(CodeKind::U8, &stored, dim);
        let signs = Signs::new(&codec);
        let mut bits = Vec::new();
        let one = |row: &[f32]| {
            let turned = signs.turned(row);
            Signs::of_turned(&turned, &mut bits);
            crate::types::norm(&turned) as f32
        };
        let lengths: Vec<f32> = stored.chunks_exact(dim).map(one).collect();
        assert_eq!(bits.len(), 2000 * Signs::bytes(dim));
        let all: Vec<u32> = (0..2000).collect();
        let (mut squares, mut sums) = (0.0f64, Vec::new());
        for query in queries.chunks_exact(dim) {
            let (turned, mean) = signs.turned_query(query);
            let asked = Signs::of_query(&turned, mean);
            let (mut kept, needed, mut reach) = (Vec::new(), 0.3, Vec::new());
            asked.sift(&bits, &lengths, &all, needed, &mut sums, &mut kept);
            asked.judge(&bits, &lengths, &all, &mut sums, |row, estimate, bound| {
                reach.push((row, estimate + bound));
                let truth = Kernels::get().dot(query, &stored[row as usize * dim..][..dim]);
                assert!((truth - estimate).abs() <= bound, "row {row}: {truth} and {estimate} ± {bound}");
                squares += f64::from((truth - estimate) * Signs::DEVIATIONS / bound).powi(2);
            });
            // One sum in two orders: what lies on the edge may fall on either side.
            for (row, most) in reach {
                assert!((most - needed).abs() < 1e-5 || kept.contains(&row) == (most >= needed), "{row}");
            }
        }
        let deviation = (squares / 40_000.0).sqrt();
        assert!((0.8..1.2).contains(&deviation), "{deviation}");
    }
}
