//! [`Kernels`]: which path this processor takes, and every kernel as a safe function on it.

use std::sync::OnceLock;

use half::f16;

#[cfg(target_arch = "aarch64")]
use super::neon;
use super::q8;
use super::rows::{Table, score_rows};
use super::scalar::{self, PLANES};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

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

    /// `x ← d gelu(x)/dx` of the exact GELU, to within 1e-6.
    pub fn gelu_slope(self, x: &mut [f32]) {
        dispatch!(self, gelu_slope(x))
    }

    /// `x ← 1 / (1 + e^−x)`, to within 1e-6 of its value; 0 below −87.4.
    pub fn sigmoid(self, x: &mut [f32]) {
        dispatch!(self, sigmoid(x))
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
    pub fn score_f32(self, rows: impl Table<f32>, slots: &[u32], query: &[f32], out: &mut Vec<f32>) {
        self.score(rows, slots, query.len(), out, |row| self.dot(query, row));
    }

    /// As [`Kernels::score_f32`] over halves.
    pub fn score_f16(self, rows: impl Table<f16>, slots: &[u32], query: &[f32], out: &mut Vec<f32>) {
        self.score(rows, slots, query.len(), out, |row| self.dot_f16(query, row));
    }

    /// As [`Kernels::score_f32`] over codes; the scores are exact integers.
    pub fn score_codes(self, rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
        dispatch!(self, score_codes(rows, slots, query, out));
    }

    /// As [`Kernels::score_codes`] over packed 4-bit codes ([`Kernels::dot_nibbles`]).
    pub fn score_nibbles(self, rows: impl Table<u8>, slots: &[u32], query: &[i8], out: &mut Vec<i32>) {
        assert_eq!(query.len() % 128, 0, "packed codes are whole cache lines");
        dispatch!(self, score_nibbles(rows, slots, query, out));
    }

    /// For each of the rows `slots` of one bit a component, how far it is from levels of two bits: the bits in which it
    /// differs from their lower ones, and twice those in which it differs from their upper ones. `out` is cleared first.
    ///
    /// * `planes`: the lower bits of the levels, then the upper ones, each in as many words as a row has; the first bit is the
    ///   lowest of the first word.
    pub fn score_signs(self, rows: impl Table<u8>, slots: &[u32], planes: &[u64], out: &mut Vec<i32>) {
        assert_eq!(planes.len() % PLANES, 0, "planes have one length");
        dispatch!(self, score_signs(rows, slots, planes, out));
    }

    fn score<T, S>(
        self,
        rows: impl Table<T>,
        slots: &[u32],
        len: usize,
        out: &mut Vec<S>,
        one: impl Fn(&[T]) -> S,
    ) {
        score_rows(rows, slots, len, out, one);
    }
}
