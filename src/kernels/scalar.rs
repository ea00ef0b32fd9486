//! The portable kernels, and the reference twin of every other file here.
//!
//! Sixteen running sums instead of one: the compiler can vectorise them, because no float addition is reordered.

use std::ops::Range;

use half::f16;

use super::q8::{self, BLOCK, GROUP, LINES, Rows, TILE, Tiles};
use super::rows::{Table, score_rows};

const LANES: usize = 16;

/// Bits of a level in [`super::Kernels::score_signs`].
pub const PLANES: usize = 2;

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    lanes(a, b, |x, y| x * y)
}

pub(super) fn dot_f16(query: &[f32], row: &[f16]) -> f32 {
    lanes(query, row, |x, y| x * y.to_f32())
}

pub(super) fn dot_codes(code: &[u8], query: &[i8]) -> i32 {
    code.iter().zip(query).map(|(&c, &q)| i32::from(c) * i32::from(q)).sum()
}

pub(super) fn dot_nibbles(code: &[u8], query: &[i8]) -> i32 {
    let blocks = code.chunks_exact(64).zip(query.chunks_exact(128));
    blocks
        .map(|(code, query)| {
            let (low, high) = query.split_at(64);
            let pairs = code.iter().zip(low.iter().zip(high));
            pairs
                .map(|(&c, (&l, &h))| i32::from(c & 15) * i32::from(l) + i32::from(c >> 4) * i32::from(h))
                .sum::<i32>()
        })
        .sum()
}

pub(super) fn score_codes(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
    score_rows(rows, slots, query.len(), out, |row| dot_codes(row, query));
}

pub(super) fn score_nibbles(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
    score_rows(rows, slots, query.len() / 2, out, |row| dot_nibbles(row, query));
}

/// Inlined, so that counting bits is one instruction where the caller is compiled for it: by hand it costs ten times as much.
#[inline(always)]
pub(super) fn sign_distance(row: &[u8], planes: &[u64]) -> i32 {
    let words = row.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default()));
    let len = planes.len() / PLANES;
    let word = |(at, word): (usize, u64)| -> u32 {
        (0..PLANES).map(|p| (word ^ planes[p * len + at]).count_ones() << p).sum()
    };
    words.enumerate().map(word).sum::<u32>() as i32
}

pub(super) fn score_signs(rows: impl Table<u8>, slots: &[u32], planes: &[u64], out: &mut Vec<i32>) {
    score_rows(rows, slots, planes.len() / PLANES * 8, out, |row| sign_distance(row, planes));
}

pub(super) fn product_nibbles(a: &[u8], b: &[u8]) -> u32 {
    let both =
        |(&a, &b): (&u8, &u8)| u32::from(a & 15) * u32::from(b & 15) + u32::from(a >> 4) * u32::from(b >> 4);
    a.iter().zip(b).map(both).sum()
}

pub(super) fn distance_codes(a: &[u8], b: &[u8]) -> u32 {
    a.iter().zip(b).map(|(&x, &y)| u32::from(x.abs_diff(y)).pow(2)).sum()
}

/// One body for every instruction set: it has no branches, so the compiler vectorises it as wide as it may.
#[inline(always)]
pub(super) fn bias_gelu(x: &mut [f32], bias: &[f32]) {
    for (x, &b) in x.iter_mut().zip(bias) {
        let v = *x + b;
        *x = 0.5 * v * (1.0 + erf(v * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// As [`bias_gelu`]: one body, no branches.
#[inline(always)]
pub(super) fn gelu_slope(x: &mut [f32]) {
    // 1 / √(2π)
    const PEAK: f32 = 0.398_942_3;
    for x in x {
        let v = *x;
        *x = 0.5 * (1.0 + erf(v * std::f32::consts::FRAC_1_SQRT_2)) + v * PEAK * exp(-0.5 * v * v);
    }
}

/// As [`bias_gelu`]: one body, no branches.
#[inline(always)]
pub(super) fn sigmoid(x: &mut [f32]) {
    for x in x {
        let power = exp(-x.abs());
        *x = if *x < 0.0 { power } else { 1.0 } / (1.0 + power);
    }
}

/// As [`bias_gelu`]: one body, no branches.
#[inline(always)]
pub(super) fn softmax(x: &mut [f32]) {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        maxima.iter_mut().zip(chunk).for_each(|(max, &v)| *max = if v > *max { v } else { *max });
    }
    let largest = maxima.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &v| if v > max { v } else { max });
    x.iter_mut().for_each(|v| *v = exp(*v - largest));
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, v)| *sum += v);
    }
    let sum = sums.iter().sum::<f32>() + rest.iter().sum::<f32>();
    x.iter_mut().for_each(|v| *v /= sum);
}

/// As [`bias_gelu`]: one body for every instruction set. Additions keep their order in all of them.
#[inline(always)]
pub(super) fn hadamard(values: &mut [f32]) {
    let mut half = 1;
    // Inside a register's worth of lanes the strides are shuffles, which the compiler only finds when they are constants.
    if values.len() >= LANES {
        for chunk in values.as_chunks_mut::<LANES>().0 {
            butterflies::<1>(chunk);
            butterflies::<2>(chunk);
            butterflies::<4>(chunk);
            butterflies::<8>(chunk);
        }
        half = LANES;
    }
    while half < values.len() {
        for pair in values.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (values.len() as f32).sqrt();
    values.iter_mut().for_each(|v| *v *= scale);
}

/// (a, b) ← (a + b, a − b) for lanes that lie `HALF` apart.
#[inline(always)]
fn butterflies<const HALF: usize>(lanes: &mut [f32; LANES]) {
    let before = *lanes;
    for (at, lane) in lanes.iter_mut().enumerate() {
        let sign = if at & HALF == 0 { 1.0 } else { -1.0 };
        *lane = before[at] * sign + before[at ^ HALF];
    }
}

/// As [`bias_gelu`]: one body, no branches.
#[inline(always)]
pub(super) fn scale_query(query: &[f32], out: &mut [i8]) -> f32 {
    // 1.5·2²³: added to a number below 2²², it leaves the rounded number in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let mut maxima = [0.0f32; LANES];
    let chunks = query.chunks_exact(LANES);
    let tail = chunks.remainder().iter().fold(0.0f32, |max, v| max.max(v.abs()));
    for chunk in chunks {
        for lane in 0..LANES {
            maxima[lane] = maxima[lane].max(chunk[lane].abs());
        }
    }
    let largest = maxima.iter().fold(tail, |max, &v| max.max(v));
    let scale = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    for (out, &v) in out.iter_mut().zip(query) {
        *out = (v * scale + ROUND).to_bits() as i8;
    }
    scale
}

/// eˣ for x ≤ 0, as 2ⁿ·eʳ with |r| ≤ ½·ln 2; 0 below the smallest normal number; NaN stays NaN.
///
/// Source of the polynomial and of ln 2 in two parts: Cephes (`expf`).
#[inline(always)]
fn exp(x: f32) -> f32 {
    // 1.5·2²³: added to a small number, it leaves the rounded number in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const SMALLEST: f32 = -87.336_54;
    const P: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // Not `max`, which would take −87 for NaN.
    let within = if x < SMALLEST { SMALLEST } else { x };
    let shifted = within * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = within - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = P.iter().fold(0.0, |sum, c| sum * r + c);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    let value = (p * r * r + r + 1.0) * power;
    if x < SMALLEST { 0.0 } else { value }
}

/// erf as x·P(x²)/Q(x²) on [-4, 4], beyond which f32 knows only ±1.
///
/// Source of the coefficients: the rational minimax approximation used by Eigen (`generic_fast_erf_float`) and XLA.
#[inline(always)]
fn erf(x: f32) -> f32 {
    const P: [f32; 7] = [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906_4e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    const Q: [f32; 5] = [-1.456_607_2e-5, -2.133_740_5e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2];
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let p = P.iter().fold(0.0, |sum, c| sum * square + c);
    let q = Q.iter().fold(0.0, |sum, c| sum * square + c);
    x * p / q
}

fn lanes<T: Copy>(a: &[f32], b: &[T], product: impl Fn(f32, T) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let tail: f32 = tail.map(|(&x, &y)| product(x, y)).sum();
    for (xs, ys) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += product(xs[lane], ys[lane]);
        }
    }
    sums.iter().sum::<f32>() + tail
}

pub(super) fn quantize_rows(values: &[f32], rows: &mut Rows) {
    q8::quantize(values, rows);
}

pub(super) fn matmul_q8(rows: &Rows, weights: &Tiles, tiles: Range<usize>, out: &mut [f32]) {
    let columns = weights.columns(&tiles);
    for row in 0..rows.count {
        for column in 0..columns {
            out[row * columns + column] = q8_product(rows, row, weights, tiles.start * TILE + column);
        }
    }
}

/// One number of a product.
fn q8_product(rows: &Rows, row: usize, weights: &Tiles, column: usize) -> f32 {
    let blocks = rows.blocks;
    let (tile, lane) = (column / TILE * blocks, column % TILE);
    let mut sum = 0.0;
    for block in 0..blocks {
        let at = row * blocks + block;
        let codes = rows.codes[at * BLOCK..][..BLOCK].chunks_exact(GROUP);
        let lines = &weights.lines()[(tile + block) * LINES..][..LINES];
        let products = lines.iter().zip(codes).flat_map(|(line, codes)| {
            let weights = &line.0[lane * GROUP..][..GROUP];
            weights.iter().zip(codes).map(|(&w, &a)| i32::from(w) * i32::from(a))
        });
        let exact = products.sum::<i32>() + rows.corrections[at];
        let scale = rows.scales[at] * weights.scales()[(tile + block) * TILE + lane].to_f32();
        sum = (exact as f32).mul_add(scale, sum);
    }
    sum
}
