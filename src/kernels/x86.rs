//! AVX2 and AVX-512 kernels behind proof-of-support tokens.
//!
//! A token is only made by `new`, which asks the processor. So a method that holds one may enter a function compiled
//! for those instructions: that is the whole safety argument of this file. Inside, loads go through raw pointers into
//! slices whose length the loop has just compared; tails are handed to [`scalar`].

use std::arch::x86_64::*;

use half::f16;

use super::{PLANES, scalar, score_rows};

/// Proof of AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

/// Proof of AVX-512 F, BW and VNNI, and whether there is VPOPCNTDQ.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(bool);

impl Avx2 {
    pub(super) fn new() -> Option<Self> {
        let supported = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("popcnt");
        supported.then_some(Avx2(()))
    }

    pub(super) fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        // SAFETY: `self` proves AVX2, FMA and F16C.
        unsafe { avx2_dot(a, b) }
    }

    pub(super) fn dot_f16(self, query: &[f32], row: &[f16]) -> f32 {
        // SAFETY: `self` proves AVX2, FMA and F16C.
        unsafe { avx2_dot_f16(query, row) }
    }

    pub(super) fn dot_codes(self, code: &[u8], query: &[i8]) -> i32 {
        // SAFETY: `self` proves AVX2.
        unsafe { avx2_dot_codes(code, query) }
    }

    pub(super) fn distance_codes(self, a: &[u8], b: &[u8]) -> u32 {
        // SAFETY: `self` proves AVX2.
        unsafe { avx2_distance_codes(a, b) }
    }

    pub(super) fn dot_nibbles(self, code: &[u8], query: &[i8]) -> i32 {
        // SAFETY: `self` proves AVX2.
        unsafe { avx2_dot_nibbles(code, query) }
    }

    pub(super) fn score_codes(
        self,
        rows: &[u8],
        slots: &[u32],
        ahead: &[u32],
        query: &[i8],
        out: &mut Vec<i32>,
    ) {
        // SAFETY: `self` proves AVX2.
        unsafe { avx2_score_codes(rows, slots, ahead, query, out) }
    }

    pub(super) fn score_nibbles(
        self,
        rows: &[u8],
        slots: &[u32],
        ahead: &[u32],
        query: &[i8],
        out: &mut Vec<i32>,
    ) {
        // SAFETY: `self` proves AVX2.
        unsafe { avx2_score_nibbles(rows, slots, ahead, query, out) }
    }

    pub(super) fn product_nibbles(self, a: &[u8], b: &[u8]) -> u32 {
        // SAFETY: `self` proves AVX2.
        unsafe { avx2_product_nibbles(a, b) }
    }

    pub(super) fn score_signs(self, rows: &[u8], slots: &[u32], planes: &[u64], out: &mut Vec<i32>) {
        // SAFETY: `self` proves AVX2 and POPCNT.
        unsafe { avx2_score_signs(rows, slots, planes, out) }
    }

    pub(super) fn bias_gelu(self, x: &mut [f32], bias: &[f32]) {
        // SAFETY: `self` proves AVX2 and FMA.
        unsafe { avx2_bias_gelu(x, bias) }
    }

    pub(super) fn hadamard(self, values: &mut [f32]) {
        // SAFETY: `self` proves AVX2 and FMA.
        unsafe { avx2_hadamard(values) }
    }

    pub(super) fn scale_query(self, query: &[f32], out: &mut [i8]) -> f32 {
        // SAFETY: `self` proves AVX2 and FMA.
        unsafe { avx2_scale_query(query, out) }
    }
}

impl Avx512 {
    pub(super) fn new() -> Option<Self> {
        let supported = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni");
        supported.then(|| Avx512(is_x86_feature_detected!("avx512vpopcntdq")))
    }

    pub(super) fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { avx512_dot(a, b) }
    }

    pub(super) fn dot_f16(self, query: &[f32], row: &[f16]) -> f32 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { avx512_dot_f16(query, row) }
    }

    pub(super) fn dot_codes(self, code: &[u8], query: &[i8]) -> i32 {
        // SAFETY: `self` proves AVX-512 F and VNNI.
        unsafe { avx512_dot_codes(code, query) }
    }

    pub(super) fn distance_codes(self, a: &[u8], b: &[u8]) -> u32 {
        // SAFETY: `self` proves AVX-512 F and BW.
        unsafe { avx512_distance_codes(a, b) }
    }

    pub(super) fn dot_nibbles(self, code: &[u8], query: &[i8]) -> i32 {
        // SAFETY: `self` proves AVX-512 F, BW and VNNI.
        unsafe { avx512_dot_nibbles(code, query) }
    }

    pub(super) fn score_codes(
        self,
        rows: &[u8],
        slots: &[u32],
        ahead: &[u32],
        query: &[i8],
        out: &mut Vec<i32>,
    ) {
        // SAFETY: `self` proves AVX-512 F, BW and VNNI.
        unsafe { avx512_score_codes(rows, slots, ahead, query, out) }
    }

    pub(super) fn score_nibbles(
        self,
        rows: &[u8],
        slots: &[u32],
        ahead: &[u32],
        query: &[i8],
        out: &mut Vec<i32>,
    ) {
        // SAFETY: `self` proves AVX-512 F, BW and VNNI.
        unsafe { avx512_score_nibbles(rows, slots, ahead, query, out) }
    }

    pub(super) fn product_nibbles(self, a: &[u8], b: &[u8]) -> u32 {
        // SAFETY: `self` proves AVX-512 F, BW and VNNI.
        unsafe { avx512_product_nibbles(a, b) }
    }

    pub(super) fn score_signs(self, rows: &[u8], slots: &[u32], planes: &[u64], out: &mut Vec<i32>) {
        match self.0 {
            // SAFETY: `self` proves AVX-512 F and, here, VPOPCNTDQ.
            true => unsafe { avx512_score_signs(rows, slots, planes, out) },
            // SAFETY: `self` proves AVX2 and POPCNT: what has AVX-512 has both.
            false => unsafe { avx2_score_signs(rows, slots, planes, out) },
        }
    }

    pub(super) fn bias_gelu(self, x: &mut [f32], bias: &[f32]) {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { avx512_bias_gelu(x, bias) }
    }

    pub(super) fn hadamard(self, values: &mut [f32]) {
        // SAFETY: `self` proves AVX-512 F and BW.
        unsafe { avx512_hadamard(values) }
    }

    pub(super) fn scale_query(self, query: &[f32], out: &mut [i8]) -> f32 {
        // SAFETY: `self` proves AVX-512 F and BW.
        unsafe { avx512_scale_query(query, out) }
    }
}

/// Fetches every cache line of `data` into the first-level cache.
pub(super) fn prefetch<T>(data: &[T]) {
    let start = data.as_ptr().cast::<i8>();
    for line in (0..size_of_val(data)).step_by(64) {
        // SAFETY: SSE is part of x86-64, and a prefetch of any address is a hint that cannot fault; this one lies
        // inside `data`.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line)) };
    }
}

/// What is left over behind whole registers; usually nothing, and then no call spills them.
#[inline(always)]
fn tail<A, B, S: Default>(a: &[A], b: &[B], scalar: fn(&[A], &[B]) -> S) -> S {
    if a.is_empty() { S::default() } else { scalar(a, b) }
}

#[target_feature(enable = "avx2,fma")]
fn avx2_dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, b_chunks) = (a.chunks_exact(32), b.chunks_exact(32));
    let tail = tail(a_chunks.remainder(), b_chunks.remainder(), scalar::dot);
    let mut sums = [_mm256_setzero_ps(); 4];
    for (x, y) in a_chunks.zip(b_chunks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 32 floats and i ≤ 3, so 8 floats from 8·i lie inside.
            let (x, y) =
                unsafe { (_mm256_loadu_ps(x.as_ptr().add(8 * i)), _mm256_loadu_ps(y.as_ptr().add(8 * i))) };
            *sum = _mm256_fmadd_ps(x, y, *sum);
        }
    }
    avx2_sum(sums) + tail
}

#[target_feature(enable = "avx2,fma,f16c")]
fn avx2_dot_f16(query: &[f32], row: &[f16]) -> f32 {
    let (q_chunks, r_chunks) = (query.chunks_exact(32), row.chunks_exact(32));
    let tail = tail(q_chunks.remainder(), r_chunks.remainder(), scalar::dot_f16);
    let mut sums = [_mm256_setzero_ps(); 4];
    for (q, r) in q_chunks.zip(r_chunks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 32 values and i ≤ 3, so 8 values from 8·i lie inside.
            let (q, r) = unsafe {
                (_mm256_loadu_ps(q.as_ptr().add(8 * i)), _mm_loadu_si128(r.as_ptr().add(8 * i).cast()))
            };
            *sum = _mm256_fmadd_ps(q, _mm256_cvtph_ps(r), *sum);
        }
    }
    avx2_sum(sums) + tail
}

#[target_feature(enable = "avx2")]
fn avx2_sum(sums: [__m256; 4]) -> f32 {
    let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let mut lanes = [0.0f32; 8];
    // SAFETY: `lanes` holds 8 floats.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    lanes.iter().sum()
}

#[target_feature(enable = "avx2")]
fn avx2_dot_codes(code: &[u8], query: &[i8]) -> i32 {
    // `maddubs` would saturate (2·255·127 > 2¹⁵), so both sides are widened to 16 bit first.
    let (c_chunks, q_chunks) = (code.chunks_exact(32), query.chunks_exact(32));
    let tail = tail(c_chunks.remainder(), q_chunks.remainder(), scalar::dot_codes);
    let mut sums = [_mm256_setzero_si256(); 2];
    for (c, q) in c_chunks.zip(q_chunks) {
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
    }
    avx2_sum_i32(_mm256_add_epi32(sums[0], sums[1])) + tail
}

#[target_feature(enable = "avx2")]
fn avx2_dot_nibbles(code: &[u8], query: &[i8]) -> i32 {
    let (mask, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let mut sums = [_mm256_setzero_si256(); 2];
    for (c, q) in code.chunks_exact(64).zip(query.chunks_exact(128)) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `c` holds 64 bytes and `q` 128, and i ≤ 1: 32 bytes lie inside from 32·i and from 64 + 32·i.
            let (c, low, high) = unsafe {
                (
                    _mm256_loadu_si256(c.as_ptr().add(32 * i).cast()),
                    _mm256_loadu_si256(q.as_ptr().add(32 * i).cast()),
                    _mm256_loadu_si256(q.as_ptr().add(64 + 32 * i).cast()),
                )
            };
            // 2·15·128 fits 16 bits, so `maddubs` cannot saturate here; four such sums fit too.
            let a = _mm256_maddubs_epi16(_mm256_and_si256(c, mask), low);
            let b = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16::<4>(c), mask), high);
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_add_epi16(a, b), ones));
        }
    }
    avx2_sum_i32(_mm256_add_epi32(sums[0], sums[1]))
}

#[target_feature(enable = "avx2")]
fn avx2_score_codes(rows: &[u8], slots: &[u32], ahead: &[u32], query: &[i8], out: &mut Vec<i32>) {
    score_rows(rows, slots, ahead, query.len(), out, |row| avx2_dot_codes(row, query));
}

#[target_feature(enable = "avx2")]
fn avx2_score_nibbles(rows: &[u8], slots: &[u32], ahead: &[u32], query: &[i8], out: &mut Vec<i32>) {
    score_rows(rows, slots, ahead, query.len() / 2, out, |row| avx2_dot_nibbles(row, query));
}

#[target_feature(enable = "avx2,popcnt")]
fn avx2_score_signs(rows: &[u8], slots: &[u32], planes: &[u64], out: &mut Vec<i32>) {
    score_rows(rows, slots, &[], planes.len() / PLANES * 8, out, |row| scalar::sum_signs(row, planes));
}

#[target_feature(enable = "avx512f,avx512vpopcntdq")]
fn avx512_score_signs(rows: &[u8], slots: &[u32], planes: &[u64], out: &mut Vec<i32>) {
    let words = planes.len() / PLANES;
    if words * 64 != RESIDENT {
        return score_rows(rows, slots, &[], words * 8, out, |row| scalar::sum_signs(row, planes));
    }
    let mut lines = [[_mm512_setzero_si512(); 2]; PLANES];
    for (line, words) in lines.as_flattened_mut().iter_mut().zip(planes.chunks_exact(8)) {
        // SAFETY: `words` holds 64 bytes.
        *line = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
    }
    score_rows(rows, slots, &[], words * 8, out, |row| {
        let row: &[u8; RESIDENT / 8] = row.try_into().unwrap_or(&[0; RESIDENT / 8]);
        // SAFETY: `row` holds 128 bytes.
        let (a, b) = unsafe {
            (_mm512_loadu_si512(row.as_ptr().cast()), _mm512_loadu_si512(row.as_ptr().add(64).cast()))
        };
        let count = |p: usize| {
            let (a, b) = (_mm512_and_si512(a, lines[p][0]), _mm512_and_si512(b, lines[p][1]));
            _mm512_add_epi64(_mm512_popcnt_epi64(a), _mm512_popcnt_epi64(b))
        };
        let twice = |x: __m512i| _mm512_add_epi64(x, x);
        let high = _mm512_add_epi64(count(2), twice(count(3)));
        let low = _mm512_add_epi64(count(0), twice(count(1)));
        let levels = _mm512_add_epi64(low, twice(twice(high)));
        let set = _mm512_add_epi64(_mm512_popcnt_epi64(a), _mm512_popcnt_epi64(b));
        let fifteen = _mm512_sub_epi64(_mm512_slli_epi64::<4>(set), set);
        _mm512_reduce_add_epi64(_mm512_sub_epi64(twice(levels), fifteen)) as i32
    });
}

#[target_feature(enable = "avx2")]
fn avx2_product_nibbles(a: &[u8], b: &[u8]) -> u32 {
    let (a_chunks, b_chunks) = (a.chunks_exact(32), b.chunks_exact(32));
    let tail = tail(a_chunks.remainder(), b_chunks.remainder(), scalar::product_nibbles);
    let (mask, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let halves = |x: __m256i| (_mm256_and_si256(x, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(x), mask));
    let mut sum = _mm256_setzero_si256();
    for (a, b) in a_chunks.zip(b_chunks) {
        // SAFETY: both hold 32 bytes.
        let (a, b) =
            unsafe { (_mm256_loadu_si256(a.as_ptr().cast()), _mm256_loadu_si256(b.as_ptr().cast())) };
        let ((a_low, a_high), (b_low, b_high)) = (halves(a), halves(b));
        // 4·15·15 fits 16 bits: nothing saturates.
        let pairs =
            _mm256_add_epi16(_mm256_maddubs_epi16(a_low, b_low), _mm256_maddubs_epi16(a_high, b_high));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    (avx2_sum_i32(sum) as u32).wrapping_add(tail)
}

#[target_feature(enable = "avx2")]
fn avx2_distance_codes(a: &[u8], b: &[u8]) -> u32 {
    let (a_chunks, b_chunks) = (a.chunks_exact(32), b.chunks_exact(32));
    let tail = tail(a_chunks.remainder(), b_chunks.remainder(), scalar::distance_codes);
    let mut sums = [_mm256_setzero_si256(); 2];
    for (x, y) in a_chunks.zip(b_chunks) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks hold 32 bytes and i ≤ 1, so 16 bytes from 16·i lie inside.
            let (x, y) = unsafe {
                (
                    _mm_loadu_si128(x.as_ptr().add(16 * i).cast()),
                    _mm_loadu_si128(y.as_ptr().add(16 * i).cast()),
                )
            };
            let difference = _mm256_sub_epi16(_mm256_cvtepu8_epi16(x), _mm256_cvtepu8_epi16(y));
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(difference, difference));
        }
    }
    avx2_sum_i32(_mm256_add_epi32(sums[0], sums[1])) as u32 + tail
}

#[target_feature(enable = "avx2")]
fn avx2_sum_i32(sum: __m256i) -> i32 {
    let mut lanes = [0i32; 8];
    // SAFETY: `lanes` holds 32 bytes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
    lanes.iter().fold(0, |total, &lane| total.wrapping_add(lane))
}

#[target_feature(enable = "avx512f")]
fn avx512_dot(a: &[f32], b: &[f32]) -> f32 {
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
    avx512_sum(sums) + tail
}

#[target_feature(enable = "avx512f")]
fn avx512_dot_f16(query: &[f32], row: &[f16]) -> f32 {
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
    avx512_sum(sums) + tail
}

#[target_feature(enable = "avx512f")]
fn avx512_sum(sums: [__m512; 4]) -> f32 {
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn avx512_dot_codes(code: &[u8], query: &[i8]) -> i32 {
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
    avx512_sum_i32(sums).wrapping_add(tail)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn avx512_dot_nibbles(code: &[u8], query: &[i8]) -> i32 {
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
    avx512_sum_i32(sums)
}

/// Components of ImageBind's embeddings: their coded query fits the registers and stays there from row to row.
const RESIDENT: usize = 1024;

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn avx512_score_codes(rows: &[u8], slots: &[u32], ahead: &[u32], query: &[i8], out: &mut Vec<i32>) {
    if query.len() != RESIDENT {
        return score_rows(rows, slots, ahead, query.len(), out, |row| avx512_dot_codes(row, query));
    }
    let query = avx512_lines(query);
    score_rows(rows, slots, ahead, RESIDENT, out, |row| {
        let mut sums = [_mm512_setzero_si512(); 4];
        for (i, line) in row.chunks_exact(64).enumerate().take(query.len()) {
            // SAFETY: `line` holds 64 bytes.
            let line = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
            sums[i % 4] = _mm512_dpbusd_epi32(sums[i % 4], line, query[i]);
        }
        avx512_sum_i32(sums)
    });
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn avx512_score_nibbles(rows: &[u8], slots: &[u32], ahead: &[u32], query: &[i8], out: &mut Vec<i32>) {
    if query.len() != RESIDENT {
        return score_rows(rows, slots, ahead, query.len() / 2, out, |row| avx512_dot_nibbles(row, query));
    }
    let (query, mask) = (avx512_lines(query), _mm512_set1_epi8(15));
    score_rows(rows, slots, ahead, RESIDENT / 2, out, |row| {
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
        avx512_sum_i32(sums)
    });
}

/// A query of [`RESIDENT`] components in registers.
#[target_feature(enable = "avx512f")]
#[inline]
fn avx512_lines(query: &[i8]) -> [__m512i; RESIDENT / 64] {
    let mut lines = [_mm512_setzero_si512(); RESIDENT / 64];
    for (line, values) in lines.iter_mut().zip(query.chunks_exact(64)) {
        // SAFETY: `values` holds 64 bytes.
        *line = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
    }
    lines
}

#[target_feature(enable = "avx512f")]
#[inline]
fn avx512_sum_i32(sums: [__m512i; 4]) -> i32 {
    _mm512_reduce_add_epi32(_mm512_add_epi32(
        _mm512_add_epi32(sums[0], sums[1]),
        _mm512_add_epi32(sums[2], sums[3]),
    ))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn avx512_product_nibbles(a: &[u8], b: &[u8]) -> u32 {
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
fn avx512_distance_codes(a: &[u8], b: &[u8]) -> u32 {
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

#[target_feature(enable = "avx2,fma")]
fn avx2_bias_gelu(x: &mut [f32], bias: &[f32]) {
    scalar::bias_gelu(x, bias);
}

#[target_feature(enable = "avx512f")]
fn avx512_bias_gelu(x: &mut [f32], bias: &[f32]) {
    scalar::bias_gelu(x, bias);
}

#[target_feature(enable = "avx2,fma")]
fn avx2_scale_query(query: &[f32], out: &mut [i8]) -> f32 {
    scalar::scale_query(query, out)
}

#[target_feature(enable = "avx512f,avx512bw")]
fn avx512_scale_query(query: &[f32], out: &mut [i8]) -> f32 {
    scalar::scale_query(query, out)
}

#[target_feature(enable = "avx2,fma")]
fn avx2_hadamard(values: &mut [f32]) {
    scalar::hadamard(values);
}

#[target_feature(enable = "avx512f,avx512bw")]
fn avx512_hadamard(values: &mut [f32]) {
    scalar::hadamard(values);
}
