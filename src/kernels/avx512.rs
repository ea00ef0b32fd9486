//! AVX-512, with VNNI and without it, as in Skylake-X. Only integer products differ: VNNI multiplies bytes and sums four
//! products in one instruction; without it bytes are widened to 16 bits first, or 4-bit codes are summed in 16 bits.

use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::avx2::{self, Avx2};
use super::q8::{self, BLOCK, GROUP, Rows, TILE, Tiles};
use super::rows::{Table, score_rows, tail};
use super::scalar::{self, PLANES};

/// Proof of AVX-512 F and BW, and of what [`Avx2`] proves.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

/// Proof of what [`Avx512`] proves and of VNNI; and whether there is VPOPCNTDQ, which Cascade Lake lacks.
#[derive(Debug, Clone, Copy)]
pub struct Avx512Vnni {
    popcount: bool,
}

impl Avx512 {
    pub(super) fn new() -> Option<Self> {
        let supported = Avx2::new().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw");
        supported.then_some(Avx512(()))
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
        score_signs = avx2::score_signs(rows: impl Table<u8>, slots: &[u32], planes: &[u64], out: &mut Vec<i32>);
        bias_gelu = bias_gelu(x: &mut [f32], bias: &[f32]);
        gelu_slope = gelu_slope(x: &mut [f32]);
        sigmoid = sigmoid(x: &mut [f32]);
        softmax = softmax(x: &mut [f32]);
        hadamard = hadamard(values: &mut [f32]);
        scale_query = scale_query(query: &[f32], out: &mut [i8]) -> f32;
        quantize_rows = avx2::quantize_rows(values: &[f32], rows: &mut Rows);
        matmul_q8 = avx2::matmul_q8(rows: &Rows, weights: &Tiles, tiles: Range<usize>, out: &mut [f32]);
    }
}

impl Avx512Vnni {
    pub(super) fn new() -> Option<Self> {
        let supported = Avx512::new().is_some() && is_x86_feature_detected!("avx512vnni");
        supported.then(|| Avx512Vnni { popcount: is_x86_feature_detected!("avx512vpopcntdq") })
    }

    enter! {
        dot = dot(a: &[f32], b: &[f32]) -> f32;
        dot_f16 = dot_f16(query: &[f32], row: &[f16]) -> f32;
        dot_codes = dot_codes_vnni(code: &[u8], query: &[i8]) -> i32;
        dot_nibbles = dot_nibbles_vnni(code: &[u8], query: &[i8]) -> i32;
        product_nibbles = product_nibbles_vnni(a: &[u8], b: &[u8]) -> u32;
        distance_codes = distance_codes(a: &[u8], b: &[u8]) -> u32;
        score_codes = score_codes_vnni(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>);
        score_nibbles = score_nibbles_vnni(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>);
        bias_gelu = bias_gelu(x: &mut [f32], bias: &[f32]);
        gelu_slope = gelu_slope(x: &mut [f32]);
        sigmoid = sigmoid(x: &mut [f32]);
        softmax = softmax(x: &mut [f32]);
        hadamard = hadamard(values: &mut [f32]);
        scale_query = scale_query(query: &[f32], out: &mut [i8]) -> f32;
        quantize_rows = avx2::quantize_rows(values: &[f32], rows: &mut Rows);
        matmul_q8 = matmul_q8_vnni(rows: &Rows, weights: &Tiles, tiles: Range<usize>, out: &mut [f32]);
    }

    pub(super) fn score_signs(self, rows: impl Table<u8>, slots: &[u32], planes: &[u64], out: &mut Vec<i32>) {
        match self.popcount {
            // SAFETY: `self` proves AVX-512 F and, here, VPOPCNTDQ.
            true => unsafe { score_signs_popcount(rows, slots, planes, out) },
            // SAFETY: `self` proves AVX2 and POPCNT.
            false => unsafe { avx2::score_signs(rows, slots, planes, out) },
        }
    }
}

#[target_feature(enable = "avx512f")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, b_chunks) = (a.chunks_exact(64), b.chunks_exact(64));
    let tail = tail(a_chunks.remainder(), b_chunks.remainder(), scalar::dot);
    let mut sums = [_mm512_setzero_ps(); 4];
    for (x, y) in a_chunks.zip(b_chunks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 64 floats and i ≤ 3, so 16 floats from 16·i lie inside.
            let (x, y) =
                unsafe { (_mm512_loadu_ps(x.as_ptr().add(16 * i)), _mm512_loadu_ps(y.as_ptr().add(16 * i))) };
            *sum = _mm512_fmadd_ps(x, y, *sum);
        }
    }
    sum(sums) + tail
}

#[target_feature(enable = "avx512f")]
fn dot_f16(query: &[f32], row: &[f16]) -> f32 {
    let (q_chunks, r_chunks) = (query.chunks_exact(64), row.chunks_exact(64));
    let tail = tail(q_chunks.remainder(), r_chunks.remainder(), scalar::dot_f16);
    let mut sums = [_mm512_setzero_ps(); 4];
    for (q, r) in q_chunks.zip(r_chunks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 64 values and i ≤ 3, so 16 values from 16·i lie inside.
            let (q, r) = unsafe {
                (_mm512_loadu_ps(q.as_ptr().add(16 * i)), _mm256_loadu_si256(r.as_ptr().add(16 * i).cast()))
            };
            *sum = _mm512_fmadd_ps(q, _mm512_cvtph_ps(r), *sum);
        }
    }
    sum(sums) + tail
}

#[target_feature(enable = "avx512f")]
fn sum(sums: [__m512; 4]) -> f32 {
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])))
}

#[target_feature(enable = "avx512f,avx512bw")]
fn dot_codes(code: &[u8], query: &[i8]) -> i32 {
    // As on AVX2, `maddubs` would saturate.
    let (c_chunks, q_chunks) = (code.chunks_exact(64), query.chunks_exact(64));
    let tail = tail(c_chunks.remainder(), q_chunks.remainder(), scalar::dot_codes);
    let mut sums = [_mm512_setzero_si512(); 2];
    for (c, q) in c_chunks.zip(q_chunks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 64 bytes and i ≤ 1, so 32 bytes from 32·i lie inside.
            let (c, q) = unsafe {
                (
                    _mm256_loadu_si256(c.as_ptr().add(32 * i).cast()),
                    _mm256_loadu_si256(q.as_ptr().add(32 * i).cast()),
                )
            };
            let products = _mm512_madd_epi16(_mm512_cvtepu8_epi16(c), _mm512_cvtepi8_epi16(q));
            *sum = _mm512_add_epi32(*sum, products);
        }
    }
    _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1])).wrapping_add(tail)
}

#[target_feature(enable = "avx512f,avx512bw")]
fn dot_nibbles(code: &[u8], query: &[i8]) -> i32 {
    let (mask, ones) = (_mm512_set1_epi8(15), _mm512_set1_epi16(1));
    let mut sum = _mm512_setzero_si512();
    for (c, q) in code.chunks_exact(64).zip(query.chunks_exact(128)) {
        // SAFETY: `c` holds 64 bytes and `q` 128.
        let (c, low, high) = unsafe {
            (
                _mm512_loadu_si512(c.as_ptr().cast()),
                _mm512_loadu_si512(q.as_ptr().cast()),
                _mm512_loadu_si512(q.as_ptr().add(64).cast()),
            )
        };
        // As on AVX2: four products of 4 and 8 bits fit 16.
        let a = _mm512_maddubs_epi16(_mm512_and_si512(c, mask), low);
        let b = _mm512_maddubs_epi16(_mm512_and_si512(_mm512_srli_epi16::<4>(c), mask), high);
        sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_add_epi16(a, b), ones));
    }
    _mm512_reduce_add_epi32(sum)
}

#[target_feature(enable = "avx512f,avx512bw")]
fn score_codes(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
    score_rows(rows, slots, query.len(), out, |row| dot_codes(row, query));
}

#[target_feature(enable = "avx512f,avx512bw")]
fn score_nibbles(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
    score_rows(rows, slots, query.len() / 2, out, |row| dot_nibbles(row, query));
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dot_codes_vnni(code: &[u8], query: &[i8]) -> i32 {
    let (c_chunks, q_chunks) = (code.chunks_exact(256), query.chunks_exact(256));
    let (c_rest, q_rest) = (c_chunks.remainder(), q_chunks.remainder());
    let mut sums = [_mm512_setzero_si512(); 4];
    for (c, q) in c_chunks.zip(q_chunks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 256 bytes and i ≤ 3, so 64 bytes from 64·i lie inside.
            let (c, q) = unsafe {
                (
                    _mm512_loadu_si512(c.as_ptr().add(64 * i).cast()),
                    _mm512_loadu_si512(q.as_ptr().add(64 * i).cast()),
                )
            };
            *sum = _mm512_dpbusd_epi32(*sum, c, q);
        }
    }
    let (c_chunks, q_chunks) = (c_rest.chunks_exact(64), q_rest.chunks_exact(64));
    let tail = tail(c_chunks.remainder(), q_chunks.remainder(), scalar::dot_codes);
    for (c, q) in c_chunks.zip(q_chunks) {
        // SAFETY: both chunks hold 64 bytes.
        let (c, q) =
            unsafe { (_mm512_loadu_si512(c.as_ptr().cast()), _mm512_loadu_si512(q.as_ptr().cast())) };
        sums[0] = _mm512_dpbusd_epi32(sums[0], c, q);
    }
    sum_i32(sums).wrapping_add(tail)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dot_nibbles_vnni(code: &[u8], query: &[i8]) -> i32 {
    let mask = _mm512_set1_epi8(15);
    let mut sums = [_mm512_setzero_si512(); 4];
    let line = |c: &[u8], q: &[i8], low: __m512i, high: __m512i| {
        // SAFETY: `c` holds 64 bytes and `q` 128.
        let (c, q_low, q_high) = unsafe {
            (
                _mm512_loadu_si512(c.as_ptr().cast()),
                _mm512_loadu_si512(q.as_ptr().cast()),
                _mm512_loadu_si512(q.as_ptr().add(64).cast()),
            )
        };
        let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(c), mask);
        (_mm512_dpbusd_epi32(low, _mm512_and_si512(c, mask), q_low), _mm512_dpbusd_epi32(high, upper, q_high))
    };
    let (pairs, query_pairs) = (code.chunks_exact(128), query.chunks_exact(256));
    let (rest, query_rest) = (pairs.remainder(), query_pairs.remainder());
    for (c, q) in pairs.zip(query_pairs) {
        (sums[0], sums[1]) = line(&c[..64], &q[..128], sums[0], sums[1]);
        (sums[2], sums[3]) = line(&c[64..], &q[128..], sums[2], sums[3]);
    }
    if rest.len() == 64 {
        (sums[0], sums[1]) = line(rest, query_rest, sums[0], sums[1]);
    }
    sum_i32(sums)
}

/// Components of ImageBind's embeddings: their coded query fits the registers and stays there from row to row.
const RESIDENT: usize = 1024;

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn score_codes_vnni(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
    if query.len() != RESIDENT {
        return score_rows(rows, slots, query.len(), out, |row| dot_codes_vnni(row, query));
    }
    let query = lines(query);
    score_rows(rows, slots, RESIDENT, out, |row| {
        let mut sums = [_mm512_setzero_si512(); 4];
        for (i, line) in row.chunks_exact(64).enumerate().take(query.len()) {
            // SAFETY: `line` holds 64 bytes.
            let line = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
            sums[i % 4] = _mm512_dpbusd_epi32(sums[i % 4], line, query[i]);
        }
        sum_i32(sums)
    });
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn score_nibbles_vnni(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
    if query.len() != RESIDENT {
        return score_rows(rows, slots, query.len() / 2, out, |row| dot_nibbles_vnni(row, query));
    }
    let (query, mask) = (lines(query), _mm512_set1_epi8(15));
    score_rows(rows, slots, RESIDENT / 2, out, |row| {
        let mut sums = [_mm512_setzero_si512(); 4];
        for (i, line) in row.chunks_exact(64).enumerate().take(query.len() / 2) {
            // SAFETY: `line` holds 64 bytes.
            let line = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
            let (low, high) =
                (_mm512_and_si512(line, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(line), mask));
            let at = 2 * (i % 2);
            sums[at] = _mm512_dpbusd_epi32(sums[at], low, query[2 * i]);
            sums[at + 1] = _mm512_dpbusd_epi32(sums[at + 1], high, query[2 * i + 1]);
        }
        sum_i32(sums)
    });
}

#[target_feature(enable = "avx512f,avx512vpopcntdq")]
fn score_signs_popcount(rows: impl Table<u8>, slots: &[u32], planes: &[u64], out: &mut Vec<i32>) {
    let words = planes.len() / PLANES;
    if words * 64 != RESIDENT {
        return score_rows(rows, slots, words * 8, out, |row| scalar::sign_distance(row, planes));
    }
    let mut lines = [[_mm512_setzero_si512(); 2]; PLANES];
    for (line, words) in lines.as_flattened_mut().iter_mut().zip(planes.chunks_exact(8)) {
        // SAFETY: `words` holds 64 bytes.
        *line = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
    }
    score_rows(rows, slots, words * 8, out, |row| {
        let row: &[u8; RESIDENT / 8] = row.try_into().unwrap_or(&[0; RESIDENT / 8]);
        // SAFETY: `row` holds 128 bytes.
        let (a, b) = unsafe {
            (_mm512_loadu_si512(row.as_ptr().cast()), _mm512_loadu_si512(row.as_ptr().add(64).cast()))
        };
        let count = |p: usize| {
            let (a, b) = (_mm512_xor_si512(a, lines[p][0]), _mm512_xor_si512(b, lines[p][1]));
            _mm512_add_epi64(_mm512_popcnt_epi64(a), _mm512_popcnt_epi64(b))
        };
        _mm512_reduce_add_epi64(_mm512_add_epi64(count(0), _mm512_slli_epi64::<1>(count(1)))) as i32
    });
}

/// A query of [`RESIDENT`] components in registers.
#[target_feature(enable = "avx512f")]
#[inline]
fn lines(query: &[i8]) -> [__m512i; RESIDENT / 64] {
    let mut lines = [_mm512_setzero_si512(); RESIDENT / 64];
    for (line, values) in lines.iter_mut().zip(query.chunks_exact(64)) {
        // SAFETY: `values` holds 64 bytes.
        *line = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
    }
    lines
}

#[target_feature(enable = "avx512f")]
#[inline]
fn sum_i32(sums: [__m512i; 4]) -> i32 {
    _mm512_reduce_add_epi32(_mm512_add_epi32(
        _mm512_add_epi32(sums[0], sums[1]),
        _mm512_add_epi32(sums[2], sums[3]),
    ))
}

#[target_feature(enable = "avx512f,avx512bw")]
fn product_nibbles(a: &[u8], b: &[u8]) -> u32 {
    let (a_lines, b_lines) = (a.chunks_exact(64), b.chunks_exact(64));
    let tail = tail(a_lines.remainder(), b_lines.remainder(), scalar::product_nibbles);
    let (mask, ones) = (_mm512_set1_epi8(15), _mm512_set1_epi16(1));
    let halves =
        |line: __m512i| (_mm512_and_si512(line, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(line), mask));
    let mut sum = _mm512_setzero_si512();
    for (a, b) in a_lines.zip(b_lines) {
        // SAFETY: both hold 64 bytes.
        let (a, b) =
            unsafe { (_mm512_loadu_si512(a.as_ptr().cast()), _mm512_loadu_si512(b.as_ptr().cast())) };
        let ((a_low, a_high), (b_low, b_high)) = (halves(a), halves(b));
        // As on AVX2: 4·15·15 fits 16 bits.
        let pairs =
            _mm512_add_epi16(_mm512_maddubs_epi16(a_low, b_low), _mm512_maddubs_epi16(a_high, b_high));
        sum = _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, ones));
    }
    (_mm512_reduce_add_epi32(sum) as u32).wrapping_add(tail)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn product_nibbles_vnni(a: &[u8], b: &[u8]) -> u32 {
    let (a_lines, b_lines) = (a.chunks_exact(64), b.chunks_exact(64));
    let tail = tail(a_lines.remainder(), b_lines.remainder(), scalar::product_nibbles);
    let mask = _mm512_set1_epi8(15);
    let halves =
        |line: __m512i| (_mm512_and_si512(line, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(line), mask));
    let mut sums = [_mm512_setzero_si512(); 2];
    for (a, b) in a_lines.zip(b_lines) {
        // SAFETY: both hold 64 bytes.
        let (a, b) =
            unsafe { (_mm512_loadu_si512(a.as_ptr().cast()), _mm512_loadu_si512(b.as_ptr().cast())) };
        let ((a_low, a_high), (b_low, b_high)) = (halves(a), halves(b));
        sums[0] = _mm512_dpbusd_epi32(sums[0], a_low, b_low);
        sums[1] = _mm512_dpbusd_epi32(sums[1], a_high, b_high);
    }
    (_mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1])) as u32).wrapping_add(tail)
}

#[target_feature(enable = "avx512f,avx512bw")]
fn distance_codes(a: &[u8], b: &[u8]) -> u32 {
    let (a_chunks, b_chunks) = (a.chunks_exact(64), b.chunks_exact(64));
    let tail = tail(a_chunks.remainder(), b_chunks.remainder(), scalar::distance_codes);
    let zero = _mm512_setzero_si512();
    let mut sums = [zero; 2];
    for (x, y) in a_chunks.zip(b_chunks) {
        // SAFETY: both chunks hold 64 bytes.
        let (x, y) =
            unsafe { (_mm512_loadu_si512(x.as_ptr().cast()), _mm512_loadu_si512(y.as_ptr().cast())) };
        // |x − y| of unsigned bytes: one of the two saturating differences is 0.
        let difference = _mm512_or_si512(_mm512_subs_epu8(x, y), _mm512_subs_epu8(y, x));
        let (low, high) = (_mm512_unpacklo_epi8(difference, zero), _mm512_unpackhi_epi8(difference, zero));
        sums[0] = _mm512_add_epi32(sums[0], _mm512_madd_epi16(low, low));
        sums[1] = _mm512_add_epi32(sums[1], _mm512_madd_epi16(high, high));
    }
    (_mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1])) as u32).wrapping_add(tail)
}

#[target_feature(enable = "avx512f")]
fn bias_gelu(x: &mut [f32], bias: &[f32]) {
    scalar::bias_gelu(x, bias);
}

#[target_feature(enable = "avx512f")]
fn gelu_slope(x: &mut [f32]) {
    scalar::gelu_slope(x);
}

#[target_feature(enable = "avx512f")]
fn sigmoid(x: &mut [f32]) {
    scalar::sigmoid(x);
}

#[target_feature(enable = "avx512f")]
fn softmax(x: &mut [f32]) {
    scalar::softmax(x);
}

#[target_feature(enable = "avx512f,avx512bw")]
fn scale_query(query: &[f32], out: &mut [i8]) -> f32 {
    scalar::scale_query(query, out)
}

#[target_feature(enable = "avx512f,avx512bw")]
fn hadamard(values: &mut [f32]) {
    scalar::hadamard(values);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn matmul_q8_vnni(rows: &Rows, weights: &Tiles, tiles: Range<usize>, out: &mut [f32]) {
    for tile in tiles.clone() {
        let at = (tile, tile - tiles.start);
        let mut row = 0;
        while row + 8 <= rows.count {
            products_vnni::<8>(rows, row, weights, at, out);
            row += 8;
        }
        while row < rows.count {
            products_vnni::<1>(rows, row, weights, at, out);
            row += 1;
        }
    }
}

/// The products of `R` rows and a tile.
///
/// * `place`: the tile's place among those that `out` has columns of.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn products_vnni<const R: usize>(
    rows: &Rows,
    row: usize,
    weights: &Tiles,
    (tile, place): (usize, usize),
    out: &mut [f32],
) {
    let blocks = rows.blocks;
    let mut sums = [_mm512_setzero_ps(); R];
    for (block, (lines, scales)) in weights.tile(tile).enumerate() {
        let at: [usize; R] = std::array::from_fn(|r| (row + r) * blocks + block);
        let codes: [&[[i8; GROUP]]; R] =
            at.map(|at| bytemuck::cast_slice(&rows.codes[at * BLOCK..][..BLOCK]));
        let mut exact = at.map(|at| _mm512_set1_epi32(rows.corrections[at]));
        for (i, line) in lines.iter().enumerate() {
            // SAFETY: a line holds 64 bytes.
            let line = unsafe { _mm512_loadu_si512(line.0.as_ptr().cast()) };
            for (exact, codes) in exact.iter_mut().zip(&codes) {
                *exact = _mm512_dpbusd_epi32(*exact, line, _mm512_set1_epi32(bytemuck::cast(codes[i])));
            }
        }
        // SAFETY: there are 16 scales of 16 bits.
        let scales = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) });
        for ((sum, exact), at) in sums.iter_mut().zip(exact).zip(at) {
            let scale = _mm512_mul_ps(_mm512_set1_ps(rows.scales[at]), scales);
            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scale, *sum);
        }
    }
    let width = out.len() / rows.count;
    for (r, sum) in sums.into_iter().enumerate() {
        let mut done = [0.0f32; TILE];
        // SAFETY: `done` holds 16 floats.
        unsafe { _mm512_storeu_ps(done.as_mut_ptr(), sum) };
        q8::keep(&done, &mut out[(row + r) * width..][..width], place);
    }
}
