//! NEON, which every 64-bit Arm processor has; and NEON with `dotprod` (Neoverse N1, Apple M1 and later), whose `sdot`
//! multiplies bytes and sums four products in one instruction.
//!
//! `sdot` wants both sides signed, so it is given codes less 128, and 128·Σq is added at the end. Plain NEON widens both
//! sides to 16 bits instead.
//!
//! Three instructions are written as assembly: `sdot` and `udot` have no stable intrinsic, `fcvtl` has one only from Rust
//! 1.94 on. All loads go through raw pointers into chunks of known length, as on x86.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::ops::Range;

use half::f16;

use super::q8::{self, BLOCK, GROUP, Rows, TILE, Tiles};
use super::rows::{Table, score_rows, tail};
use super::scalar::{self, PLANES};

/// Proof of NEON.
#[derive(Debug, Clone, Copy)]
pub struct Neon(());

/// Proof of NEON and `dotprod`.
#[derive(Debug, Clone, Copy)]
pub struct NeonDotprod(());

impl Neon {
    pub(super) fn new() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }

    enter! {
        dot = dot(a: &[f32], b: &[f32]) -> f32;
        dot_f16 = dot_f16(query: &[f32], row: &[f16]) -> f32;
        dot_codes = dot_codes(code: &[u8], query: &[i8]) -> i32;
        dot_nibbles = dot_nibbles(code: &[u8], query: &[i8]) -> i32;
        product_nibbles = product_nibbles(a: &[u8], b: &[u8]) -> u32;
        distance_codes = distance_codes(a: &[u8], b: &[u8]) -> u32;
        score_codes = score_codes(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>);
        score_nibbles = score_nibbles(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>);
        score_signs = score_signs(rows: impl Table<u8>, slots: &[u32], planes: &[u64], out: &mut Vec<i32>);
        bias_gelu = bias_gelu(x: &mut [f32], bias: &[f32]);
        gelu_slope = gelu_slope(x: &mut [f32]);
        sigmoid = sigmoid(x: &mut [f32]);
        softmax = softmax(x: &mut [f32]);
        hadamard = hadamard(values: &mut [f32]);
        scale_query = scale_query(query: &[f32], out: &mut [i8]) -> f32;
        quantize_rows = quantize_rows(values: &[f32], rows: &mut Rows);
        matmul_q8 = matmul_q8(rows: &Rows, weights: &Tiles, tiles: Range<usize>, out: &mut [f32]);
    }
}

impl NeonDotprod {
    pub(super) fn new() -> Option<Self> {
        let supported = Neon::new().is_some() && is_aarch64_feature_detected!("dotprod");
        supported.then_some(NeonDotprod(()))
    }

    enter! {
        dot = dot(a: &[f32], b: &[f32]) -> f32;
        dot_f16 = dot_f16(query: &[f32], row: &[f16]) -> f32;
        dot_codes = dot_codes_dotprod(code: &[u8], query: &[i8]) -> i32;
        dot_nibbles = dot_nibbles_dotprod(code: &[u8], query: &[i8]) -> i32;
        product_nibbles = product_nibbles_dotprod(a: &[u8], b: &[u8]) -> u32;
        distance_codes = distance_codes_dotprod(a: &[u8], b: &[u8]) -> u32;
        score_codes = score_codes_dotprod(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>);
        score_nibbles = score_nibbles_dotprod(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>);
        score_signs = score_signs(rows: impl Table<u8>, slots: &[u32], planes: &[u64], out: &mut Vec<i32>);
        bias_gelu = bias_gelu(x: &mut [f32], bias: &[f32]);
        gelu_slope = gelu_slope(x: &mut [f32]);
        sigmoid = sigmoid(x: &mut [f32]);
        softmax = softmax(x: &mut [f32]);
        hadamard = hadamard(values: &mut [f32]);
        scale_query = scale_query(query: &[f32], out: &mut [i8]) -> f32;
        quantize_rows = quantize_rows(values: &[f32], rows: &mut Rows);
        matmul_q8 = matmul_q8_dotprod(rows: &Rows, weights: &Tiles, tiles: Range<usize>, out: &mut [f32]);
    }
}

#[target_feature(enable = "neon")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, b_chunks) = (a.chunks_exact(32), b.chunks_exact(32));
    let tail = tail(a_chunks.remainder(), b_chunks.remainder(), scalar::dot);
    let mut sums = [vdupq_n_f32(0.0); 8];
    for (x, y) in a_chunks.zip(b_chunks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 32 floats and i ≤ 7, so 4 floats from 4·i lie inside.
            let (x, y) = unsafe { (vld1q_f32(x.as_ptr().add(4 * i)), vld1q_f32(y.as_ptr().add(4 * i))) };
            *sum = vfmaq_f32(*sum, x, y);
        }
    }
    sum_f32(sums) + tail
}

#[target_feature(enable = "neon")]
fn dot_f16(query: &[f32], row: &[f16]) -> f32 {
    let (q_chunks, r_chunks) = (query.chunks_exact(32), row.chunks_exact(32));
    let tail = tail(q_chunks.remainder(), r_chunks.remainder(), scalar::dot_f16);
    let mut sums = [vdupq_n_f32(0.0); 8];
    for (q, r) in q_chunks.zip(r_chunks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 32 values and i ≤ 7, so 4 values from 4·i lie inside.
            let (q, r) =
                unsafe { (vld1q_f32(q.as_ptr().add(4 * i)), vld1_u16(r.as_ptr().add(4 * i).cast())) };
            *sum = vfmaq_f32(*sum, q, widened(r));
        }
    }
    sum_f32(sums) + tail
}

/// Four halves as floats.
#[target_feature(enable = "neon")]
#[inline]
fn widened(halves: uint16x4_t) -> float32x4_t {
    let floats: float32x4_t;
    // SAFETY: the instruction is part of NEON and touches nothing but these two registers.
    unsafe {
        asm!("fcvtl {:v}.4s, {:v}.4h", lateout(vreg) floats, in(vreg) halves, options(pure, nomem, nostack));
    }
    floats
}

#[target_feature(enable = "neon")]
#[inline]
fn sum_f32(sums: [float32x4_t; 8]) -> f32 {
    let [a, b, c, d, e, f, g, h] = sums;
    let low = vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d));
    vaddvq_f32(vaddq_f32(low, vaddq_f32(vaddq_f32(e, f), vaddq_f32(g, h))))
}

#[target_feature(enable = "neon")]
#[inline]
fn sum_i32(sums: [int32x4_t; 4]) -> i32 {
    let [a, b, c, d] = sums;
    vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)))
}

#[target_feature(enable = "neon")]
#[inline]
fn sum_u32(sums: [uint32x4_t; 4]) -> u32 {
    let [a, b, c, d] = sums;
    vaddvq_u32(vaddq_u32(vaddq_u32(a, b), vaddq_u32(c, d)))
}

#[target_feature(enable = "neon")]
fn dot_codes(code: &[u8], query: &[i8]) -> i32 {
    let (c_chunks, q_chunks) = (code.chunks_exact(16), query.chunks_exact(16));
    let tail = tail(c_chunks.remainder(), q_chunks.remainder(), scalar::dot_codes);
    let mut sums = [vdupq_n_s32(0); 4];
    for (c, q) in c_chunks.zip(q_chunks) {
        // SAFETY: both chunks hold 16 bytes.
        let (c, q) = unsafe { (vld1q_u8(c.as_ptr()), vld1q_s8(q.as_ptr())) };
        let c_low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(c)));
        let c_high = vreinterpretq_s16_u16(vmovl_high_u8(c));
        let (q_low, q_high) = (vmovl_s8(vget_low_s8(q)), vmovl_high_s8(q));
        sums[0] = vmlal_s16(sums[0], vget_low_s16(c_low), vget_low_s16(q_low));
        sums[1] = vmlal_high_s16(sums[1], c_low, q_low);
        sums[2] = vmlal_s16(sums[2], vget_low_s16(c_high), vget_low_s16(q_high));
        sums[3] = vmlal_high_s16(sums[3], c_high, q_high);
    }
    sum_i32(sums).wrapping_add(tail)
}

#[target_feature(enable = "neon")]
fn dot_nibbles(code: &[u8], query: &[i8]) -> i32 {
    let mut sums = [vdupq_n_s32(0); 4];
    for (c, q) in code.chunks_exact(64).zip(query.chunks_exact(128)) {
        for (i, sum) in sums.iter_mut().enumerate() {
            let (low, high, q_low, q_high) = nibbles(c, q, i);
            // Four products of 4 and 8 bits fit 16.
            let products = vmull_s8(vget_low_s8(low), vget_low_s8(q_low));
            let products = vmlal_high_s8(products, low, q_low);
            let products = vmlal_s8(products, vget_low_s8(high), vget_low_s8(q_high));
            *sum = vpadalq_s16(*sum, vmlal_high_s8(products, high, q_high));
        }
    }
    sum_i32(sums)
}

/// The i-th quarter of a line of 4-bit codes and of its part of the query: low halves, high halves, and what they meet.
///
/// * `code`: 64 bytes. `query`: 128. `i`: 0 to 3.
#[target_feature(enable = "neon")]
#[inline]
fn nibbles(code: &[u8], query: &[i8], i: usize) -> (int8x16_t, int8x16_t, int8x16_t, int8x16_t) {
    let (code, low, high) = (&code[16 * i..][..16], &query[16 * i..][..16], &query[64 + 16 * i..][..16]);
    // SAFETY: each slice holds 16 bytes.
    let (code, low, high) =
        unsafe { (vld1q_u8(code.as_ptr()), vld1q_s8(low.as_ptr()), vld1q_s8(high.as_ptr())) };
    let (lower, upper) = halves(code);
    (vreinterpretq_s8_u8(lower), vreinterpretq_s8_u8(upper), low, high)
}

#[target_feature(enable = "neon")]
fn product_nibbles(a: &[u8], b: &[u8]) -> u32 {
    let (a_chunks, b_chunks) = (a.chunks_exact(64), b.chunks_exact(64));
    let tail = tail(a_chunks.remainder(), b_chunks.remainder(), scalar::product_nibbles);
    let mut sums = [vdupq_n_u32(0); 4];
    for (a, b) in a_chunks.zip(b_chunks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 64 bytes and i ≤ 3, so 16 bytes from 16·i lie inside.
            let (a, b) = unsafe { (vld1q_u8(a.as_ptr().add(16 * i)), vld1q_u8(b.as_ptr().add(16 * i))) };
            let ((a_low, a_high), (b_low, b_high)) = (halves(a), halves(b));
            // 4·15·15 fits 16 bits.
            let products = vmull_u8(vget_low_u8(a_low), vget_low_u8(b_low));
            let products = vmlal_high_u8(products, a_low, b_low);
            let products = vmlal_u8(products, vget_low_u8(a_high), vget_low_u8(b_high));
            *sum = vpadalq_u16(*sum, vmlal_high_u8(products, a_high, b_high));
        }
    }
    sum_u32(sums).wrapping_add(tail)
}

/// The low and the high halves of 16 bytes.
#[target_feature(enable = "neon")]
#[inline]
fn halves(code: uint8x16_t) -> (uint8x16_t, uint8x16_t) {
    (vandq_u8(code, vdupq_n_u8(15)), vshrq_n_u8::<4>(code))
}

#[target_feature(enable = "neon")]
fn distance_codes(a: &[u8], b: &[u8]) -> u32 {
    let (a_chunks, b_chunks) = (a.chunks_exact(32), b.chunks_exact(32));
    let tail = tail(a_chunks.remainder(), b_chunks.remainder(), scalar::distance_codes);
    let mut sums = [vdupq_n_u32(0); 4];
    for (x, y) in a_chunks.zip(b_chunks) {
        for (i, sums) in sums.chunks_exact_mut(2).enumerate() {
            // SAFETY: both chunks hold 32 bytes and i ≤ 1, so 16 bytes from 16·i lie inside.
            let (x, y) = unsafe { (vld1q_u8(x.as_ptr().add(16 * i)), vld1q_u8(y.as_ptr().add(16 * i))) };
            let difference = vabdq_u8(x, y);
            let low = vget_low_u8(difference);
            sums[0] = vpadalq_u16(sums[0], vmull_u8(low, low));
            sums[1] = vpadalq_u16(sums[1], vmull_high_u8(difference, difference));
        }
    }
    sum_u32(sums).wrapping_add(tail)
}

#[target_feature(enable = "neon")]
fn score_codes(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
    score_rows(rows, slots, query.len(), out, |row| dot_codes(row, query));
}

#[target_feature(enable = "neon")]
fn score_nibbles(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
    score_rows(rows, slots, query.len() / 2, out, |row| dot_nibbles(row, query));
}

#[target_feature(enable = "neon")]
fn score_signs(rows: impl Table<u8>, slots: &[u32], planes: &[u64], out: &mut Vec<i32>) {
    score_rows(rows, slots, planes.len() / PLANES * 8, out, |row| sign_distance(row, planes));
}

/// Two words of the row at a time: bits are counted by the byte, and no byte's count leaves a byte.
#[target_feature(enable = "neon")]
#[inline]
fn sign_distance(row: &[u8], planes: &[u64]) -> i32 {
    let words = planes.len() / PLANES;
    let mut sums = vdupq_n_u32(0);
    let pairs = row.chunks_exact(16);
    let rest = pairs.remainder();
    for (i, pair) in pairs.enumerate() {
        // SAFETY: `pair` holds 16 bytes.
        let bits = unsafe { vld1q_u8(pair.as_ptr()) };
        let count = |p: usize| {
            let plane = &planes[p * words + 2 * i..][..2];
            // SAFETY: `plane` holds 16 bytes.
            vcntq_u8(veorq_u8(bits, unsafe { vld1q_u8(plane.as_ptr().cast()) }))
        };
        let bytes = vaddq_u8(count(0), vshlq_n_u8::<1>(count(1)));
        sums = vpadalq_u16(sums, vpaddlq_u8(bytes));
    }
    let sum = vaddvq_u32(sums) as i32;
    if rest.is_empty() {
        return sum;
    }
    sum + scalar::sign_distance(
        rest,
        &std::array::from_fn::<u64, PLANES, _>(|p| planes[p * words + words - 1]),
    )
}

#[target_feature(enable = "neon")]
fn bias_gelu(x: &mut [f32], bias: &[f32]) {
    scalar::bias_gelu(x, bias);
}

#[target_feature(enable = "neon")]
fn gelu_slope(x: &mut [f32]) {
    scalar::gelu_slope(x);
}

#[target_feature(enable = "neon")]
fn sigmoid(x: &mut [f32]) {
    scalar::sigmoid(x);
}

#[target_feature(enable = "neon")]
fn softmax(x: &mut [f32]) {
    scalar::softmax(x);
}

#[target_feature(enable = "neon")]
fn scale_query(query: &[f32], out: &mut [i8]) -> f32 {
    scalar::scale_query(query, out)
}

#[target_feature(enable = "neon")]
fn hadamard(values: &mut [f32]) {
    scalar::hadamard(values);
}

#[target_feature(enable = "neon")]
fn quantize_rows(values: &[f32], rows: &mut Rows) {
    scalar::quantize_rows(values, rows);
}

#[target_feature(enable = "neon")]
fn matmul_q8(rows: &Rows, weights: &Tiles, tiles: Range<usize>, out: &mut [f32]) {
    scalar::matmul_q8(rows, weights, tiles, out);
}

#[target_feature(enable = "neon,dotprod")]
fn matmul_q8_dotprod(rows: &Rows, weights: &Tiles, tiles: Range<usize>, out: &mut [f32]) {
    for tile in tiles.clone() {
        let at = (tile, tile - tiles.start);
        let mut row = 0;
        while row + 4 <= rows.count {
            products::<4>(rows, row, weights, at, out);
            row += 4;
        }
        while row < rows.count {
            products::<1>(rows, row, weights, at, out);
            row += 1;
        }
    }
}

/// The products of `R` rows and a tile.
///
/// * `place`: the tile's place among those that `out` has columns of.
#[target_feature(enable = "neon,dotprod")]
fn products<const R: usize>(
    rows: &Rows,
    row: usize,
    weights: &Tiles,
    (tile, place): (usize, usize),
    out: &mut [f32],
) {
    const QUARTERS: usize = 4;
    let blocks = rows.blocks;
    // Both factors are signed here: what was added to the weights is taken off them, and nothing is left to correct.
    let added = vdupq_n_u8(weights.reach.offset() as u8);
    let mut sums = [[vdupq_n_f32(0.0); QUARTERS]; R];
    for (block, (lines, scales)) in weights.tile(tile).enumerate() {
        let at: [usize; R] = std::array::from_fn(|r| (row + r) * blocks + block);
        let codes: [&[[i8; GROUP]]; R] =
            at.map(|at| bytemuck::cast_slice(&rows.codes[at * BLOCK..][..BLOCK]));
        let mut exact = [[vdupq_n_s32(0); QUARTERS]; R];
        for (i, line) in lines.iter().enumerate() {
            let weights: [int8x16_t; QUARTERS] = std::array::from_fn(|q| {
                // SAFETY: a line holds 64 bytes.
                let four = unsafe { vld1q_u8(line.0.as_ptr().add(16 * q)) }; // [4 rows of weights][4 columns]
                vreinterpretq_s8_u8(vsubq_u8(four, added))
            });
            for (exact, codes) in exact.iter_mut().zip(&codes) {
                let codes = vreinterpretq_s8_s32(vdupq_n_s32(bytemuck::cast(codes[i])));
                for (exact, weights) in exact.iter_mut().zip(weights) {
                    *exact = sdot(*exact, weights, codes);
                }
            }
        }
        let scales: [float32x4_t; QUARTERS] = std::array::from_fn(|q| {
            // SAFETY: there are 16 scales of 16 bits.
            widened(unsafe { vld1_u16(scales.as_ptr().add(4 * q).cast()) })
        });
        for ((sums, exact), at) in sums.iter_mut().zip(exact).zip(at) {
            for ((sum, exact), scale) in sums.iter_mut().zip(exact).zip(scales) {
                *sum = vfmaq_f32(*sum, vcvtq_f32_s32(exact), vmulq_n_f32(scale, rows.scales[at]));
            }
        }
    }
    let width = out.len() / rows.count;
    for (r, sums) in sums.into_iter().enumerate() {
        let mut done = [0.0f32; TILE];
        for (done, sum) in done.chunks_exact_mut(4).zip(sums) {
            // SAFETY: four floats.
            unsafe { vst1q_f32(done.as_mut_ptr(), sum) };
        }
        q8::keep(&done, &mut out[(row + r) * width..][..width], place);
    }
}

#[target_feature(enable = "neon,dotprod")]
#[inline]
fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: this function is compiled for `dotprod`; the instruction touches nothing but these registers.
    unsafe {
        asm!("sdot {:v}.4s, {:v}.16b, {:v}.16b", inout(vreg) sum, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

#[target_feature(enable = "neon,dotprod")]
#[inline]
fn udot(mut sum: uint32x4_t, a: uint8x16_t, b: uint8x16_t) -> uint32x4_t {
    // SAFETY: as in `sdot`.
    unsafe {
        asm!("udot {:v}.4s, {:v}.16b, {:v}.16b", inout(vreg) sum, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

#[target_feature(enable = "neon,dotprod")]
fn dot_codes_dotprod(code: &[u8], query: &[i8]) -> i32 {
    dot_centred(code, query).wrapping_add(centre(query))
}

/// Inner product of codes less 128 with a query.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dot_centred(code: &[u8], query: &[i8]) -> i32 {
    let (c_chunks, q_chunks) = (code.chunks_exact(64), query.chunks_exact(64));
    let tail = tail(c_chunks.remainder(), q_chunks.remainder(), |code, query| {
        scalar::dot_codes(code, query).wrapping_sub(centre(query))
    });
    let mut sums = [vdupq_n_s32(0); 4];
    for (c, q) in c_chunks.zip(q_chunks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 64 bytes and i ≤ 3, so 16 bytes from 16·i lie inside.
            let (c, q) = unsafe { (vld1q_u8(c.as_ptr().add(16 * i)), vld1q_s8(q.as_ptr().add(16 * i))) };
            *sum = sdot(*sum, vreinterpretq_s8_u8(veorq_u8(c, vdupq_n_u8(128))), q);
        }
    }
    sum_i32(sums).wrapping_add(tail)
}

/// What [`dot_centred`] leaves out: 128·Σq.
fn centre(query: &[i8]) -> i32 {
    query.iter().map(|&q| i32::from(q)).sum::<i32>().wrapping_mul(128)
}

#[target_feature(enable = "neon,dotprod")]
fn dot_nibbles_dotprod(code: &[u8], query: &[i8]) -> i32 {
    let mut sums = [vdupq_n_s32(0); 4];
    for (c, q) in code.chunks_exact(64).zip(query.chunks_exact(128)) {
        for (i, sum) in sums.iter_mut().enumerate() {
            let (low, high, q_low, q_high) = nibbles(c, q, i);
            *sum = sdot(sdot(*sum, low, q_low), high, q_high);
        }
    }
    sum_i32(sums)
}

#[target_feature(enable = "neon,dotprod")]
fn product_nibbles_dotprod(a: &[u8], b: &[u8]) -> u32 {
    let (a_chunks, b_chunks) = (a.chunks_exact(64), b.chunks_exact(64));
    let tail = tail(a_chunks.remainder(), b_chunks.remainder(), scalar::product_nibbles);
    let mut sums = [vdupq_n_u32(0); 4];
    for (a, b) in a_chunks.zip(b_chunks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 64 bytes and i ≤ 3, so 16 bytes from 16·i lie inside.
            let (a, b) = unsafe { (vld1q_u8(a.as_ptr().add(16 * i)), vld1q_u8(b.as_ptr().add(16 * i))) };
            let ((a_low, a_high), (b_low, b_high)) = (halves(a), halves(b));
            *sum = udot(udot(*sum, a_low, b_low), a_high, b_high);
        }
    }
    sum_u32(sums).wrapping_add(tail)
}

#[target_feature(enable = "neon,dotprod")]
fn distance_codes_dotprod(a: &[u8], b: &[u8]) -> u32 {
    let (a_chunks, b_chunks) = (a.chunks_exact(64), b.chunks_exact(64));
    let tail = tail(a_chunks.remainder(), b_chunks.remainder(), scalar::distance_codes);
    let mut sums = [vdupq_n_u32(0); 4];
    for (x, y) in a_chunks.zip(b_chunks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 64 bytes and i ≤ 3, so 16 bytes from 16·i lie inside.
            let (x, y) = unsafe { (vld1q_u8(x.as_ptr().add(16 * i)), vld1q_u8(y.as_ptr().add(16 * i))) };
            let difference = vabdq_u8(x, y);
            *sum = udot(*sum, difference, difference);
        }
    }
    sum_u32(sums).wrapping_add(tail)
}

#[target_feature(enable = "neon,dotprod")]
fn score_codes_dotprod(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
    let centre = centre(query);
    score_rows(rows, slots, query.len(), out, |row| dot_centred(row, query).wrapping_add(centre));
}

#[target_feature(enable = "neon,dotprod")]
fn score_nibbles_dotprod(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
    score_rows(rows, slots, query.len() / 2, out, |row| dot_nibbles_dotprod(row, query));
}
