//! AVX2: every processor for servers since 2013.

use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;

use super::prefetch::fetch;
use super::q8::{self, BLOCK, GROUP, Reach, Rows, TILE, Tiles, WIDE_ROWS};
use super::rows::{Table, score_rows, side_by_side, tail};
use super::scalar::{self, PLANES};

/// Words of signs in a register, and the most registers of a row: 2048 components.
const WORDS: usize = 4;
const SIGN_LINES: usize = 8;

/// Proof of AVX2, FMA, F16C and POPCNT.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    pub(super) fn new() -> Option<Self> {
        let supported = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("popcnt");
        supported.then_some(Avx2(()))
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

#[target_feature(enable = "avx2,fma")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    let (a, b) = side_by_side::<32, 32, _, _>(a, b, |x, y| {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 32 floats and i ≤ 3, so 8 floats from 8·i lie inside.
            let (x, y) =
                unsafe { (_mm256_loadu_ps(x.as_ptr().add(8 * i)), _mm256_loadu_ps(y.as_ptr().add(8 * i))) };
            *sum = _mm256_fmadd_ps(x, y, *sum);
        }
    });
    sum(sums) + tail(a, b, scalar::dot)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot_f16(query: &[f32], row: &[f16]) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    let (query, row) = side_by_side::<32, 32, _, _>(query, row, |q, r| {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 32 values and i ≤ 3, so 8 values from 8·i lie inside.
            let (q, r) = unsafe {
                (_mm256_loadu_ps(q.as_ptr().add(8 * i)), _mm_loadu_si128(r.as_ptr().add(8 * i).cast()))
            };
            *sum = _mm256_fmadd_ps(q, _mm256_cvtph_ps(r), *sum);
        }
    });
    sum(sums) + tail(query, row, scalar::dot_f16)
}

#[target_feature(enable = "avx2")]
fn sum(sums: [__m256; 4]) -> f32 {
    let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let mut lanes = [0.0f32; 8];
    // SAFETY: `lanes` holds 8 floats.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    lanes.iter().sum()
}

#[target_feature(enable = "avx2")]
fn dot_codes(code: &[u8], query: &[i8]) -> i32 {
    // `maddubs` would saturate (2·255·127 > 2¹⁵), so both sides are widened to 16 bit first.
    let mut sums = [_mm256_setzero_si256(); 2];
    let (code, query) = side_by_side::<32, 32, _, _>(code, query, |c, q| {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 32 bytes and i ≤ 1, so 16 bytes from 16·i lie inside.
            let (c, q) = unsafe {
                (
                    _mm_loadu_si128(c.as_ptr().add(16 * i).cast()),
                    _mm_loadu_si128(q.as_ptr().add(16 * i).cast()),
                )
            };
            let products = _mm256_madd_epi16(_mm256_cvtepu8_epi16(c), _mm256_cvtepi8_epi16(q));
            *sum = _mm256_add_epi32(*sum, products);
        }
    });
    sum_i32(_mm256_add_epi32(sums[0], sums[1])) + tail(code, query, scalar::dot_codes)
}

#[target_feature(enable = "avx2")]
fn dot_nibbles(code: &[u8], query: &[i8]) -> i32 {
    let (mask, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let mut sum = _mm256_setzero_si256();
    // The products of half a line, in 16 bits.
    let half = |c: &[u8; 64], q: &[i8; 128], i: usize| {
        // SAFETY: i ≤ 1: 32 bytes lie inside from 32·i and from 64 + 32·i.
        let (c, low, high) = unsafe {
            (
                _mm256_loadu_si256(c.as_ptr().add(32 * i).cast()),
                _mm256_loadu_si256(q.as_ptr().add(32 * i).cast()),
                _mm256_loadu_si256(q.as_ptr().add(64 + 32 * i).cast()),
            )
        };
        let a = _mm256_maddubs_epi16(_mm256_and_si256(c, mask), low);
        let b = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16::<4>(c), mask), high);
        _mm256_add_epi16(a, b)
    };
    let line = |c: &[u8; 64], q: &[i8; 128]| _mm256_add_epi16(half(c, q, 0), half(c, q, 1));
    // Eight products are summed in 16 bits before they are widened: 2·15·128 times 8 is 30 720.
    let (code, query) = side_by_side::<128, 256, _, _>(code, query, |c, q| {
        let (([c0, c1], _), ([q0, q1], _)) = (c.as_chunks::<64>(), q.as_chunks::<128>()) else { return };
        let both = _mm256_add_epi16(line(c0, q0), line(c1, q1));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(both, ones));
    });
    side_by_side::<64, 128, _, _>(code, query, |c, q| {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(line(c, q), ones));
    });
    sum_i32(sum)
}

#[target_feature(enable = "avx2")]
fn score_codes(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
    score_rows(rows, slots, query.len(), out, |row| dot_codes(row, query));
}

#[target_feature(enable = "avx2")]
fn score_nibbles(rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
    score_rows(rows, slots, query.len() / 2, out, |row| dot_nibbles(row, query));
}

#[target_feature(enable = "avx2,popcnt")]
pub(super) fn score_signs(rows: impl Table<u8>, slots: &[u32], planes: &[u64], out: &mut Vec<i32>) {
    let words = planes.len() / PLANES;
    if !words.is_multiple_of(WORDS) || words > WORDS * SIGN_LINES {
        return score_rows(rows, slots, words * 8, out, |row| scalar::sign_distance(row, planes));
    }
    // Bits are counted by looking up half a byte at a time, in a table for each plane. A byte of a line comes to 24 at most, of
    // all lines to 192.
    let mask = _mm256_set1_epi8(15);
    let halves = |x: __m256i| [_mm256_and_si256(x, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(x), mask)];
    let mut query = [[[_mm256_setzero_si256(); 2]; PLANES]; SIGN_LINES];
    for (line, query) in query.iter_mut().take(words / WORDS).enumerate() {
        for (p, query) in query.iter_mut().enumerate() {
            let plane = &planes[p * words + line * WORDS..][..WORDS];
            // SAFETY: `plane` holds 32 bytes.
            *query = halves(unsafe { _mm256_loadu_si256(plane.as_ptr().cast()) });
        }
    }
    let bits = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    let worth = [bits, _mm256_add_epi8(bits, bits)];
    score_rows(rows, slots, words * 8, out, |row| {
        let mut sums = _mm256_setzero_si256();
        side_by_side::<{ 8 * WORDS }, 1, _, _>(row, &query, |line, [query]| {
            // SAFETY: `line` holds 32 bytes.
            let row = halves(unsafe { _mm256_loadu_si256(line.as_ptr().cast()) });
            for p in 0..PLANES {
                let differ =
                    |half: usize| _mm256_shuffle_epi8(worth[p], _mm256_xor_si256(row[half], query[p][half]));
                sums = _mm256_add_epi8(sums, _mm256_add_epi8(differ(0), differ(1)));
            }
        });
        sum_i32(_mm256_sad_epu8(sums, _mm256_setzero_si256()))
    });
}

#[target_feature(enable = "avx2")]
fn product_nibbles(a: &[u8], b: &[u8]) -> u32 {
    let (mask, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let halves = |x: __m256i| (_mm256_and_si256(x, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(x), mask));
    let mut sum = _mm256_setzero_si256();
    let (a, b) = side_by_side::<32, 32, _, _>(a, b, |a, b| {
        // SAFETY: both hold 32 bytes.
        let (a, b) =
            unsafe { (_mm256_loadu_si256(a.as_ptr().cast()), _mm256_loadu_si256(b.as_ptr().cast())) };
        let ((a_low, a_high), (b_low, b_high)) = (halves(a), halves(b));
        // 4·15·15 fits 16 bits: nothing saturates.
        let pairs =
            _mm256_add_epi16(_mm256_maddubs_epi16(a_low, b_low), _mm256_maddubs_epi16(a_high, b_high));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    });
    (sum_i32(sum) as u32).wrapping_add(tail(a, b, scalar::product_nibbles))
}

#[target_feature(enable = "avx2")]
fn distance_codes(a: &[u8], b: &[u8]) -> u32 {
    let even = _mm256_set1_epi16(0xff);
    let mut sums = [_mm256_setzero_si256(); 2];
    let (a, b) = side_by_side::<32, 32, _, _>(a, b, |x, y| {
        // SAFETY: both chunks hold 32 bytes.
        let (x, y) =
            unsafe { (_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(y.as_ptr().cast())) };
        // One of the two is 0 in every byte.
        let off = _mm256_or_si256(_mm256_subs_epu8(x, y), _mm256_subs_epu8(y, x));
        let square = |off| _mm256_madd_epi16(off, off);
        sums[0] = _mm256_add_epi32(sums[0], square(_mm256_and_si256(off, even)));
        sums[1] = _mm256_add_epi32(sums[1], square(_mm256_srli_epi16::<8>(off)));
    });
    sum_i32(_mm256_add_epi32(sums[0], sums[1])) as u32 + tail(a, b, scalar::distance_codes)
}

#[target_feature(enable = "avx2")]
#[inline]
fn sum_i32(sum: __m256i) -> i32 {
    let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
    _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum)))
}

#[target_feature(enable = "avx2,fma")]
fn bias_gelu(x: &mut [f32], bias: &[f32]) {
    scalar::bias_gelu(x, bias);
}

#[target_feature(enable = "avx2,fma")]
fn gelu_slope(x: &mut [f32]) {
    scalar::gelu_slope(x);
}

#[target_feature(enable = "avx2,fma")]
fn sigmoid(x: &mut [f32]) {
    scalar::sigmoid(x);
}

#[target_feature(enable = "avx2,fma")]
fn softmax(x: &mut [f32]) {
    scalar::softmax(x);
}

#[target_feature(enable = "avx2,fma")]
fn scale_query(query: &[f32], out: &mut [i8]) -> f32 {
    scalar::scale_query(query, out)
}

#[target_feature(enable = "avx2,fma")]
fn hadamard(values: &mut [f32]) {
    scalar::hadamard(values);
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn quantize_rows(values: &[f32], rows: &mut Rows) {
    q8::quantize(values, rows);
}

/// Bytes that weights are fetched ahead.
const AHEAD: usize = 8192;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn matmul_q8(rows: &Rows, weights: &Tiles, tiles: Range<usize>, out: &mut [f32]) {
    // A tile stays in the second cache for all rows.
    for tile in tiles.clone() {
        let at = (tile, tile - tiles.start);
        for row in (0..rows.count).step_by(WIDE_ROWS) {
            match (weights.reach, rows.count - row) {
                (Reach::Full, 1) => products::<1>(rows, row, weights, at, out),
                (Reach::Full, 2) => products::<2>(rows, row, weights, at, out),
                // Of three rows the fourth is of zeros and is not kept.
                (Reach::Full, _) => products::<WIDE_ROWS>(rows, row, weights, at, out),
                (Reach::Short, 1) => short_products::<1>(rows, row, weights, at, out),
                (Reach::Short, 2) => short_products::<2>(rows, row, weights, at, out),
                (Reach::Short, 3) => short_products::<3>(rows, row, weights, at, out),
                (Reach::Short, _) => short_products::<WIDE_ROWS>(rows, row, weights, at, out),
            }
        }
    }
}

/// The products of `R` rows and a tile, of codes of short reach: four products are summed up in 16 bits.
///
/// * `place`: the tile's place among those that `out` has columns of.
#[target_feature(enable = "avx2,fma,f16c")]
fn short_products<const R: usize>(
    rows: &Rows,
    row: usize,
    weights: &Tiles,
    (tile, place): (usize, usize),
    out: &mut [f32],
) {
    let blocks = rows.blocks;
    let codes: [&[i8]; R] =
        std::array::from_fn(|r| &rows.codes[(row + r) * blocks * BLOCK..][..blocks * BLOCK]);
    let of_rows: [(&[f32], &[i32]); R] = std::array::from_fn(|r| {
        let start = (row + r) * blocks;
        (&rows.scales[start..][..blocks], &rows.corrections[start..][..blocks])
    });
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for (block, (lines, scales)) in weights.tile(tile).enumerate() {
        if row == 0 {
            lines.iter().for_each(|line| fetch(line.0.as_ptr().wrapping_add(AHEAD)));
        }
        let mut exact = of_rows.map(|(_, corrections)| [_mm256_set1_epi32(corrections[block]); 2]);
        for (i, two) in lines.chunks_exact(2).enumerate() {
            // SAFETY: a line holds 64 bytes, of eight rows of weights in each half.
            let halves: [[__m256i; 2]; 2] = std::array::from_fn(|l| unsafe {
                let line = two[l].0.as_ptr().cast::<__m256i>();
                [_mm256_load_si256(line), _mm256_load_si256(line.add(1))]
            });
            for (exact, codes) in exact.iter_mut().zip(&codes) {
                // SAFETY: both lines' eight codes lie in the row.
                *exact = unsafe {
                    add_products(*exact, halves, codes.as_ptr().add(block * BLOCK + 2 * i * GROUP))
                };
            }
        }
        // SAFETY: there are 16 scales of 16 bits.
        let scales = unsafe {
            let halves = scales.as_ptr().cast::<__m128i>();
            [_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves.add(1)))]
        };
        for ((sums, exact), (of_row, _)) in sums.iter_mut().zip(exact).zip(&of_rows) {
            *sums = add_scaled(*sums, exact, of_row[block], scales);
        }
    }
    let width = out.len() / rows.count;
    for (r, sums) in sums.into_iter().enumerate() {
        q8::keep(&together(sums), &mut out[(row + r) * width..][..width], place);
    }
}

/// `exact + Σ weights·codes` over two lines of weights and eight codes.
///
/// In the compiler's own order the halves of a block's lines do not all fit in the registers: half of the speed goes to
/// moving them.
///
/// # Safety
/// Eight bytes can be read at `codes`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn add_products(
    [mut low, mut high]: [__m256i; 2],
    [first, second]: [[__m256i; 2]; 2],
    codes: *const i8,
) -> [__m256i; 2] {
    #[repr(align(32))]
    struct Ones([i16; 16]);
    static ONES: Ones = Ones([1; 16]);
    // SAFETY: the caller's; the ones are 32 bytes at a multiple of 32.
    unsafe {
        std::arch::asm!(
            "vpbroadcastd {a}, [{codes}]",
            "vpbroadcastd {b}, [{codes} + 4]",
            "vpmaddubsw {c}, {first_low}, {a}",
            "vpmaddubsw {d}, {second_low}, {b}",
            "vpmaddubsw {a}, {first_high}, {a}",
            "vpmaddubsw {b}, {second_high}, {b}",
            "vpaddw {c}, {c}, {d}",
            "vpaddw {a}, {a}, {b}",
            "vpmaddwd {c}, {c}, [{ones}]",
            "vpmaddwd {a}, {a}, [{ones}]",
            "vpaddd {low}, {low}, {c}",
            "vpaddd {high}, {high}, {a}",
            codes = in(reg) codes,
            ones = in(reg) ONES.0.as_ptr(),
            first_low = in(ymm_reg) first[0],
            first_high = in(ymm_reg) first[1],
            second_low = in(ymm_reg) second[0],
            second_high = in(ymm_reg) second[1],
            a = out(ymm_reg) _,
            b = out(ymm_reg) _,
            c = out(ymm_reg) _,
            d = out(ymm_reg) _,
            low = inout(ymm_reg) low,
            high = inout(ymm_reg) high,
            options(readonly, nostack, preserves_flags),
        );
    }
    [low, high]
}

/// `sums + exact · of_row · scales`, in 16 columns.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn add_scaled(sums: [__m256; 2], exact: [__m256i; 2], of_row: f32, scales: [__m256; 2]) -> [__m256; 2] {
    let of_row = _mm256_set1_ps(of_row);
    let one =
        |h: usize| _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact[h]), _mm256_mul_ps(of_row, scales[h]), sums[h]);
    [one(0), one(1)]
}

/// A tile's sums, side by side.
#[target_feature(enable = "avx2")]
#[inline]
fn together(sums: [__m256; 2]) -> [f32; TILE] {
    let mut done = [0.0f32; TILE];
    // SAFETY: `done` holds 16 floats.
    unsafe {
        _mm256_storeu_ps(done.as_mut_ptr(), sums[0]);
        _mm256_storeu_ps(done.as_mut_ptr().add(8), sums[1]);
    }
    done
}

/// The products of `R` rows, or the last ones, and a tile, of codes of full reach: products of bytes would saturate when
/// they are summed in pairs, so both sides are widened to 16 bits, the activations when they are rounded, the weights as
/// they come.
///
/// * `row`: a multiple of [`WIDE_ROWS`]. `place`: the tile's place among those that `out` has columns of.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn products<const R: usize>(
    rows: &Rows,
    row: usize,
    weights: &Tiles,
    (tile, place): (usize, usize),
    out: &mut [f32],
) {
    let blocks = rows.blocks;
    let codes = rows.wide[row * blocks * BLOCK..].chunks_exact(WIDE_ROWS * BLOCK);
    let here = R.min(rows.count - row);
    // Of a number of four bytes the first two and the last two, as 16 bits each.
    let spread = |from: i8| {
        let four = |i: i8| [4 * i + from, -1, 4 * i + from + 1, -1];
        let lane: [[i8; 4]; 4] = [four(0), four(1), four(2), four(3)];
        _mm256_broadcastsi128_si256(bytemuck::cast(lane))
    };
    let [low, high]: [__m256i; 2] = [spread(0), spread(2)];
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for (block, ((lines, scales), codes)) in weights.tile(tile).zip(codes).enumerate() {
        let at: [usize; R] = std::array::from_fn(|r| (row + r.min(here - 1)) * blocks + block);
        let mut exact = at.map(|at| [_mm256_set1_epi32(rows.corrections[at]); 2]);
        if row == 0 {
            // Whoever comes first waits for memory, and pages of 4 KB stop the processor's own prefetcher.
            lines.iter().for_each(|line| fetch(line.0.as_ptr().wrapping_add(AHEAD)));
        }
        for (line, codes) in lines.iter().zip(codes.chunks_exact(WIDE_ROWS * GROUP)) {
            // SAFETY: a line holds 64 bytes.
            let halves = unsafe {
                let line = line.0.as_ptr().cast::<__m256i>();
                [_mm256_load_si256(line), _mm256_load_si256(line.add(1))] // [8 rows of weights][4 columns] each
            };
            let pairs = halves.map(|half| [_mm256_shuffle_epi8(half, low), _mm256_shuffle_epi8(half, high)]);
            for (r, exact) in exact.iter_mut().enumerate() {
                // SAFETY: `codes` holds four numbers of 16 bits for each of the four rows.
                let two = |i: usize| unsafe {
                    _mm256_set1_epi32(codes.as_ptr().cast::<i32>().add(2 * r + i).read_unaligned())
                };
                for (exact, pairs) in exact.iter_mut().zip(pairs) {
                    for (pair, two) in pairs.into_iter().zip([two(0), two(1)]) {
                        *exact = in_order(_mm256_add_epi32(*exact, _mm256_madd_epi16(pair, two)));
                    }
                }
            }
        }
        // SAFETY: there are 16 scales of 16 bits.
        let scales = unsafe {
            let halves = scales.as_ptr().cast::<__m128i>();
            [_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves.add(1)))]
        };
        for ((sums, exact), at) in sums.iter_mut().zip(exact).zip(at) {
            *sums = add_scaled(*sums, exact, rows.scales[at], scales);
        }
    }
    let width = out.len() / rows.count;
    for (r, sums) in sums.into_iter().enumerate().take(here) {
        q8::keep(&together(sums), &mut out[(row + r) * width..][..width], place);
    }
}

/// The same, behind the compiler's back: it would add in another order, for which there are not enough registers.
#[target_feature(enable = "avx2")]
#[inline]
fn in_order(mut x: __m256i) -> __m256i {
    // SAFETY: no instruction, and nothing that it touches.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) x, options(pure, nomem, nostack, preserves_flags)) };
    x
}
