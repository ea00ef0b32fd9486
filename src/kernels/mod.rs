//! The inner products everything waits for, and the only `unsafe` arithmetic of the house.
//!
//! ```text
//! Kernels::get() ── once per process ──► the widest of   x86-64   Avx512Vnni │ Avx512 │ Avx2 │ Scalar
//!        │                                               64-bit Arm             NeonDotprod │ Neon │ Scalar
//!        │                                     each a token whose existence proves the processor can
//!        └─ dot · dot_f16 · dot_codes · distance_codes · score_codes …     safe functions, slices in, numbers out
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `scalar.rs` | portable code, the reference of the others |
//! | `avx2.rs` | AVX2, FMA, F16C |
//! | `avx512.rs` | AVX-512 F and BW, with VNNI and without |
//! | `neon.rs` | NEON, with `dotprod` and without |
//! | `q8.rs` | how 8-bit matrices lie in memory for their product |
//! | `twins.rs` | every path held against `scalar` |
//!
//! **Safety.** A token is only made by its `new`, which asks the processor. So a method that holds one may enter a
//! function compiled for those instructions (`enter!`): that is the whole argument. Inside, loads go through raw pointers
//! into slices whose length the loop has just compared; tails are handed to `scalar`.
//!
//! **Numerics contract.** Integer kernels are exact: every path returns the same number. Float kernels sum in f32 in
//! an order of their own, so paths agree to a few units in the last place of the sum of magnitudes, and one path is
//! deterministic. `twins` holds every path to it, on this processor or another.
//!
//! A batch of rows is scored by one call ([`Kernels::score_codes`]): the rows of a graph's neighbours lie anywhere in
//! memory, so the call fetches rows ahead of the one it works on, and the choice of path costs one branch per batch.

/// The methods of a token: each enters a function compiled for instructions that the token proves.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! enter {
    ($($method:ident = $($function:ident)::+($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)+) => {$(
        #[allow(unused_unsafe, reason = "nothing is to be proved where every processor of the target can")]
        pub(super) fn $method(self, $($argument: $kind),*) $(-> $result)? {
            // SAFETY: `self` proves the instructions: no function named here is compiled for others than `new` asks for.
            unsafe { $($function)::+($($argument),*) }
        }
    )+};
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod q8;
mod scalar;
#[cfg(test)]
mod twins;

use std::sync::OnceLock;

use half::f16;

/// How many rows ahead of the current one are fetched. 8 and 16 measure alike, 2 loses a tenth.
const ROWS_AHEAD: usize = 8;

/// Bits of a level in [`Kernels::score_signs`].
pub const PLANES: usize = 2;

/// One instruction set's kernels. A value other than [`Kernels::Scalar`] proves that this processor has it.
#[derive(Debug, Clone, Copy)]
pub enum Kernels {
    /// Portable code, the reference of the others.
    Scalar,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    /// AVX-512 F and BW.
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    /// AVX-512 F, BW and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(avx512::Avx512Vnni),
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
    /// NEON and its products of bytes.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(neon::NeonDotprod),
}

/// Calls the same method on whichever path `self` is.
macro_rules! dispatch {
    ($self:ident, $method:ident ( $($argument:expr),* )) => {
        match $self {
            Kernels::Scalar => scalar::$method($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx2(token) => token.$method($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx512(token) => token.$method($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx512Vnni(token) => token.$method($($argument),*),
            #[cfg(target_arch = "aarch64")]
            Kernels::Neon(token) => token.$method($($argument),*),
            #[cfg(target_arch = "aarch64")]
            Kernels::NeonDotprod(token) => token.$method($($argument),*),
        }
    };
}

impl Kernels {
    /// The widest path this processor has, detected once.
    pub fn get() -> Kernels {
        static CHOICE: OnceLock<Kernels> = OnceLock::new();
        *CHOICE.get_or_init(|| *Kernels::available().last().unwrap_or(&Kernels::Scalar))
    }

    /// Every path this processor has, narrowest first; for tests and benches.
    pub fn available() -> Vec<Kernels> {
        let paths = std::iter::once(Kernels::Scalar);
        #[cfg(target_arch = "x86_64")]
        let paths = paths
            .chain(avx2::Avx2::new().map(Kernels::Avx2))
            .chain(avx512::Avx512::new().map(Kernels::Avx512))
            .chain(avx512::Avx512Vnni::new().map(Kernels::Avx512Vnni));
        #[cfg(target_arch = "aarch64")]
        let paths = paths
            .chain(neon::Neon::new().map(Kernels::Neon))
            .chain(neon::NeonDotprod::new().map(Kernels::NeonDotprod));
        paths.collect()
    }

    /// Name of the path, as printed by `describe` and the benches.
    pub fn name(self) -> &'static str {
        match self {
            Kernels::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx512Vnni(_) => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Kernels::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Kernels::NeonDotprod(_) => "neon-dotprod",
        }
    }

    /// Inner product of two f32 vectors of equal length.
    ///
    /// # Panics
    /// When the lengths differ (so do the other kernels: lengths are fixed when an index is opened).
    pub fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "vectors of one index have one length");
        dispatch!(self, dot(a, b))
    }

    /// Inner product of an f32 query with a row of halves.
    pub fn dot_f16(self, query: &[f32], row: &[f16]) -> f32 {
        assert_eq!(query.len(), row.len(), "vectors of one index have one length");
        dispatch!(self, dot_f16(query, row))
    }

    /// Inner product of unsigned codes with a signed query. Exact for up to 2¹⁵ components.
    pub fn dot_codes(self, code: &[u8], query: &[i8]) -> i32 {
        assert_eq!(code.len(), query.len(), "codes of one index have one length");
        dispatch!(self, dot_codes(code, query))
    }

    /// Inner product of packed 4-bit codes with a signed query. Of every 64 bytes the low halves are the components
    /// 0–63 of a block of 128, the high halves its components 64–127. Exact for up to 2²⁰ components.
    pub fn dot_nibbles(self, code: &[u8], query: &[i8]) -> i32 {
        assert_eq!(code.len() * 2, query.len(), "codes of one index have one length");
        assert_eq!(code.len() % 64, 0, "packed codes are whole cache lines");
        dispatch!(self, dot_nibbles(code, query))
    }

    /// Inner product of two rows of packed 4-bit codes, as numbers from 0 to 15. Exact for up to 2²³ components.
    pub fn product_nibbles(self, a: &[u8], b: &[u8]) -> u32 {
        assert_eq!(a.len(), b.len(), "codes of one index have one length");
        dispatch!(self, product_nibbles(a, b))
    }

    /// Squared Euclidean distance of two code rows, in code steps. Exact for up to 2¹⁵ components.
    pub fn distance_codes(self, a: &[u8], b: &[u8]) -> u32 {
        assert_eq!(a.len(), b.len(), "codes of one index have one length");
        dispatch!(self, distance_codes(a, b))
    }

    /// `x ← gelu(x + bias)` with the exact GELU, `x·½(1 + erf(x/√2))`, to within 5e-7·max(1, |x|).
    pub fn bias_gelu(self, x: &mut [f32], bias: &[f32]) {
        assert_eq!(x.len(), bias.len(), "a row and its bias have one length");
        dispatch!(self, bias_gelu(x, bias))
    }

    /// `xᵢ ← e^xᵢ / Σ e^xⱼ`, to within f32's own rounding of the exponents; −∞ becomes 0. Where one of them is no number, or none is finite,
    /// they all become none.
    pub fn softmax(self, x: &mut [f32]) {
        dispatch!(self, softmax(x))
    }

    /// Rounds activations `[m, width]` to 8 bits for [`Kernels::matmul_q8`].
    ///
    /// * `reach`: that of the weights which they will be multiplied with.
    pub fn quantize_rows(self, values: &[f32], width: usize, reach: q8::Reach, rows: &mut q8::Rows) {
        assert!(width > 0 && width.is_multiple_of(q8::BLOCK), "rows are whole blocks");
        assert_eq!(values.len() % width, 0, "activations are whole rows");
        rows.reset(values.len() / width, width / q8::BLOCK, reach);
        dispatch!(self, quantize_rows(values, rows));
    }

    /// `out ← rows · weightsᵀ` for some of the tiles of the weights: `[m, outputs of those tiles]`. Every path gives the same
    /// bits, however the tiles are shared out: products of a block are summed exactly, and blocks are added up in their order.
    pub fn matmul_q8(
        self,
        rows: &q8::Rows,
        weights: &q8::Tiles,
        tiles: std::ops::Range<usize>,
        out: &mut [f32],
    ) {
        assert_eq!(rows.blocks, weights.blocks, "an input is as long as a row of weights");
        assert_eq!(rows.reach, weights.reach, "both sides of a product reach equally far");
        let columns = weights.columns(&tiles);
        assert_eq!(out.len(), rows.count * columns, "there is a result for every row and output");
        dispatch!(self, matmul_q8(rows, weights, tiles, out));
    }

    /// Scales a query so that its largest component becomes ±127, rounds half to even into `out`, and returns the scale;
    /// 0 for a query of zeros.
    pub fn scale_query(self, query: &[f32], out: &mut [i8]) -> f32 {
        assert_eq!(query.len(), out.len(), "a query and its codes have one length");
        dispatch!(self, scale_query(query, out))
    }

    /// The orthonormal Walsh–Hadamard transform, in place. Every path gives the same bits.
    ///
    /// * `values`: a power of two of them.
    pub fn hadamard(self, values: &mut [f32]) {
        assert!(values.len().is_power_of_two(), "the transform is of powers of two");
        dispatch!(self, hadamard(values))
    }

    /// Scores the rows `slots` of `rows` (row length = query length), fetching ahead; `out` is cleared first.
    pub fn score_f32(self, rows: &[f32], slots: &[u32], query: &[f32], out: &mut Vec<f32>) {
        self.score(rows, slots, query.len(), out, |row| self.dot(query, row));
    }

    /// As [`Kernels::score_f32`] over halves.
    pub fn score_f16(self, rows: &[f16], slots: &[u32], query: &[f32], out: &mut Vec<f32>) {
        self.score(rows, slots, query.len(), out, |row| self.dot_f16(query, row));
    }

    /// As [`Kernels::score_f32`] over codes; the scores are exact integers.
    pub fn score_codes(self, rows: &[u8], slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
        dispatch!(self, score_codes(rows, slots, query, out));
    }

    /// As [`Kernels::score_codes`] over packed 4-bit codes ([`Kernels::dot_nibbles`]).
    pub fn score_nibbles(self, rows: &[u8], slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
        assert_eq!(query.len() % 128, 0, "packed codes are whole cache lines");
        dispatch!(self, score_nibbles(rows, slots, query, out));
    }

    /// For each of the rows `slots` of one bit a component, how far it is from levels of two bits: the bits in which it
    /// differs from their lower ones, and twice those in which it differs from their upper ones. `out` is cleared first.
    ///
    /// * `planes`: the lower bits of the levels, then the upper ones, each in as many words as a row has; the first bit is the
    ///   lowest of the first word.
    pub fn score_signs(self, rows: &[u8], slots: &[u32], planes: &[u64], out: &mut Vec<i32>) {
        assert_eq!(planes.len() % PLANES, 0, "planes have one length");
        dispatch!(self, score_signs(rows, slots, planes, out));
    }

    fn score<T, S>(self, rows: &[T], slots: &[u32], len: usize, out: &mut Vec<S>, one: impl Fn(&[T]) -> S) {
        score_rows(rows, slots, len, out, one);
    }
}

/// Scores rows one by one, fetching ahead. Inlined into each instruction set's own function, so that `one` is compiled
/// for it.
#[inline(always)]
fn score_rows<T, S>(rows: &[T], slots: &[u32], len: usize, out: &mut Vec<S>, one: impl Fn(&[T]) -> S) {
    let row = |slot: u32| &rows[slot as usize * len..][..len];
    slots.iter().take(ROWS_AHEAD).for_each(|&slot| prefetch(row(slot)));
    out.clear();
    out.reserve(slots.len());
    for (i, &slot) in slots.iter().enumerate() {
        if let Some(&ahead) = slots.get(i + ROWS_AHEAD) {
            prefetch(row(ahead));
        }
        out.push(one(row(slot)));
    }
}

/// What is left over behind whole registers; usually nothing, and then no call spills them.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn tail<A, B, S: Default>(a: &[A], b: &[B], scalar: impl Fn(&[A], &[B]) -> S) -> S {
    if a.is_empty() { S::default() } else { scalar(a, b) }
}

/// Asks the processor to bring `data` near. Never faults, never changes a result.
pub fn prefetch<T>(data: &[T]) {
    #[cfg(target_arch = "x86_64")]
    use avx2::fetch;
    #[cfg(target_arch = "aarch64")]
    use neon::fetch;
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn fetch(_: *const u8) {}
    let start = data.as_ptr().cast::<u8>();
    (0..size_of_val(data)).step_by(64).for_each(|line| fetch(start.wrapping_add(line)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use std::io::Write;

    /// `VISCACHE_MIN_ISA` names a path that must be among them: a test that was not run has not passed.
    #[test]
    fn this_machine_says_what_it_tested() {
        let names: Vec<&str> = Kernels::available().into_iter().map(Kernels::name).collect();
        let line = format!("kernels tested: {}; in use: {}\n", names.join(" "), Kernels::get().name());
        // Past the harness, which would keep it to itself.
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        assert_eq!(names[0], "scalar");
        if let Ok(needed) = std::env::var("VISCACHE_MIN_ISA") {
            assert!(
                names.contains(&needed.as_str()),
                "this processor has {names:?}, `{needed}` was to be tested"
            );
        }
    }

    #[test]
    fn extreme_codes_do_not_saturate() {
        for len in [1, 63, 64, 65, 1024, 8192] {
            for kernels in Kernels::available() {
                let dot = kernels.dot_codes(&vec![255; len], &vec![-128; len]);
                assert_eq!(dot, -(255 * 128) * len as i32, "{} {len}", kernels.name());
                let nibbles = kernels.dot_nibbles(&vec![255; 64 * len], &vec![-128; 128 * len]);
                assert_eq!(nibbles, -(15 * 128) * 128 * len as i32, "{} {len}", kernels.name());
                let distance = kernels.distance_codes(&vec![255; len], &vec![0; len]);
                assert_eq!(distance, 255 * 255 * len as u32, "{} {len}", kernels.name());
            }
        }
    }

    /// erf by its Maclaurin series, in f64: slow and obvious.
    fn erf(x: f64) -> f64 {
        if x.abs() > 5.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn gelu_is_the_exact_one() {
        let inputs: Vec<f32> = (-12_000..=12_000).map(|i| i as f32 / 1000.0).collect();
        let bias = vec![0.25f32; inputs.len()];
        for kernels in Kernels::available() {
            let mut outputs = inputs.clone();
            kernels.bias_gelu(&mut outputs, &bias);
            for (x, y) in inputs.iter().zip(outputs) {
                let x = f64::from(x + 0.25);
                let truth = x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2));
                let error = (f64::from(y) - truth).abs();
                assert!(error <= 5e-7 * x.abs().max(1.0), "{} gelu({x}) = {y}, not {truth}", kernels.name());
            }
        }
    }

    #[test]
    fn softmax_is_the_exact_one() {
        for kernels in Kernels::available() {
            for len in [1usize, 7, 16, 257, 1000] {
                let inputs: Vec<f32> = (0..len).map(|i| (i * 7919 % 2000) as f32 / 17.0 - 60.0).collect();
                let largest = f64::from(inputs.iter().fold(f32::NEG_INFINITY, |max, &v| max.max(v)));
                let powers: Vec<f64> = inputs.iter().map(|&x| (f64::from(x) - largest).exp()).collect();
                let sum: f64 = powers.iter().sum();
                let mut found = inputs.clone();
                kernels.softmax(&mut found);
                for (power, found) in powers.into_iter().zip(found) {
                    let (truth, found) = (power / sum, f64::from(found));
                    assert!(
                        (found - truth).abs()
                            <= 1e-6 * truth + 1e-7 * truth * (power.ln().abs() + 1.0) + 1e-37,
                        "{}: {found}, not {truth}",
                        kernels.name()
                    );
                }
            }
            let mut masked = [0.5, f32::NEG_INFINITY, 0.5, f32::NEG_INFINITY];
            kernels.softmax(&mut masked);
            assert_eq!(masked, [0.5, 0.0, 0.5, 0.0], "{}", kernels.name());
            for nothing in [vec![f32::NAN; 20], vec![f32::NEG_INFINITY; 20], {
                let mut one = vec![0.0; 20];
                one[3] = f32::NAN;
                one
            }] {
                let mut found = nothing.clone();
                kernels.softmax(&mut found);
                assert!(found.iter().all(|v| v.is_nan()), "{}: {nothing:?} became {found:?}", kernels.name());
            }
            kernels.softmax(&mut []);
        }
    }

    /// Lengths around whole registers and lines, and those with loops of their own.
    fn case() -> impl Strategy<Value = twins::Case> {
        let len = prop_oneof![4 => 0usize..300, 1 => (0usize..17).prop_map(|lines| 128 * lines)];
        let inputs = len.prop_flat_map(|len| {
            let one = (any::<u8>(), any::<u8>(), any::<i8>(), -1e3f32..1e3, -1e3f32..1e3);
            (prop::collection::vec(one, len), prop::collection::vec(0u32..20, 0..40))
        });
        inputs.prop_map(|(inputs, slots)| {
            let mut case = twins::Case { slots, ..Default::default() };
            for (code, other, query, a, b) in inputs {
                case.code.push(code);
                case.other.push(other);
                case.query.push(query);
                case.a.push(a);
                case.b.push(b);
            }
            case
        })
    }

    proptest! {
        #[test]
        fn every_path_agrees_with_scalar(case in case()) {
            twins::check(&case);
        }

        #[test]
        fn nibbles_are_what_they_stand_for(
            lines in prop::collection::vec(any::<[[u8; 8]; 8]>(), 0..9), seed in any::<u64>()
        ) {
            let code: Vec<u8> = lines.iter().flatten().flatten().copied().collect();
            let query: Vec<i8> =
                (0..2 * code.len() as u64).map(|i| (seed.wrapping_mul(2 * i + 1) >> 40) as i8).collect();
            let blocks = code.chunks_exact(64).zip(query.chunks_exact(128));
            let plain: i32 = blocks.flat_map(|(code, query)| {
                let component = |i: usize| if i < 64 { code[i] & 15 } else { code[i - 64] >> 4 };
                (0..128).map(move |i| i32::from(component(i)) * i32::from(query[i])).collect::<Vec<_>>()
            }).sum();
            for kernels in Kernels::available() {
                prop_assert_eq!(kernels.dot_nibbles(&code, &query), plain, "{}", kernels.name());
            }
        }

        #[test]
        fn the_hadamard_transform_is_its_own_inverse(values in prop::collection::vec(-10f32..10.0, 128)) {
            for (kernels, len) in Kernels::available().into_iter().flat_map(|k| [(k, 1), (k, 2), (k, 32), (k, 128)]) {
                let (mut once, mut scalar) = (values[..len].to_vec(), values[..len].to_vec());
                kernels.hadamard(&mut once);
                Kernels::Scalar.hadamard(&mut scalar);
                prop_assert_eq!(&once, &scalar, "{}", kernels.name());
                let mean: f32 = values[..len].iter().sum::<f32>() / (len as f32).sqrt();
                prop_assert!((once[0] - mean).abs() < 1e-3);
                kernels.hadamard(&mut once);
                prop_assert!(once.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-3));
            }
        }

        #[test]
        fn scaled_queries_are_the_rounded_ones(query in prop::collection::vec(-1e3f32..1e3, 0..300)) {
            let largest = query.iter().fold(0.0f32, |max, v| max.max(v.abs()));
            let scale = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let expected: Vec<i8> = query.iter().map(|v| (v * scale).round_ties_even() as i8).collect();
            for kernels in Kernels::available() {
                let mut out = vec![7i8; query.len()];
                prop_assert_eq!(kernels.scale_query(&query, &mut out), scale);
                prop_assert_eq!(&out, &expected, "{}", kernels.name());
            }
        }

        #[test]
        fn distances_of_signs_are_exact(
            words in prop_oneof![1usize..20, Just(16)], slots in prop::collection::vec(0u32..20, 0..40), seed in any::<u64>()
        ) {
            let mut state = seed | 1;
            let mut next = || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; state };
            let rows: Vec<u8> = (0..20 * words).flat_map(|_| next().to_le_bytes()).collect();
            let planes: Vec<u64> = (0..PLANES * words).map(|_| next()).collect();
            let bit = |words: &[u64], at: usize| (words[at / 64] >> (at % 64) & 1) as i32;
            let distance = |&slot: &u32| -> i32 {
                let row = &rows[slot as usize * words * 8..][..words * 8];
                let differs = |at: usize, plane: usize| {
                    i32::from(row[at / 8] >> (at % 8) & 1) ^ bit(&planes[plane * words..], at)
                };
                (0..words * 64).map(|at| differs(at, 0) + 2 * differs(at, 1)).sum()
            };
            let expected: Vec<i32> = slots.iter().map(distance).collect();
            for kernels in Kernels::available() {
                let mut out = vec![7; 3];
                kernels.score_signs(&rows, &slots, &planes, &mut out);
                prop_assert_eq!(&out, &expected, "{}", kernels.name());
            }
        }
    }
}
