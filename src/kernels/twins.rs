//! Every path held against `scalar`, its reference twin.
//!
//! A [`Case`] is one set of inputs, a check one kernel on all paths. A new kernel gets a line in [`CHECKS`] and a function
//! below it. Property tests make cases with proptest; where that cannot run, as under an emulator of another processor
//! (`scripts/emulated`), [`Case::random`] does. So this file names nothing but [`Kernels`] and `half`.

use half::f16;

use super::{Kernels, PLANES, q8};

/// Rows of a case's matrix.
const ROWS: usize = 20;

/// Inputs for every kernel. All but `slots` have one length.
#[derive(Debug, Clone, Default)]
pub(super) struct Case {
    pub(super) code: Vec<u8>,
    pub(super) other: Vec<u8>,
    pub(super) query: Vec<i8>,
    pub(super) a: Vec<f32>,
    pub(super) b: Vec<f32>,
    /// Below [`ROWS`].
    pub(super) slots: Vec<u32>,
}

/// Compares one kernel of a path with the scalar one; the error says how they differ.
pub(super) type Check = fn(Kernels, &Case) -> Result<(), String>;

/// One line a kernel.
pub(super) const CHECKS: &[(&str, Check)] = &[
    ("dot", dot),
    ("dot_f16", dot_f16),
    ("dot_codes", |path, case| both(path, |path| path.dot_codes(&case.code, &case.query))),
    ("dot_nibbles", |path, case| {
        let (code, query) = case.nibbles();
        both(path, |path| path.dot_nibbles(code, &query))
    }),
    ("product_nibbles", |path, case| both(path, |path| path.product_nibbles(&case.code, &case.other))),
    ("distance_codes", |path, case| both(path, |path| path.distance_codes(&case.code, &case.other))),
    ("bias_gelu", bias_gelu),
    ("gelu_slope", |path, case| curve(case, |x| path.gelu_slope(x), |x| SCALAR.gelu_slope(x))),
    ("sigmoid", |path, case| curve(case, |x| path.sigmoid(x), |x| SCALAR.sigmoid(x))),
    ("softmax", softmax),
    ("scale_query", |path, case| {
        both(path, |path| {
            let mut out = vec![7; case.a.len()];
            (path.scale_query(&case.a, &mut out), out)
        })
    }),
    ("hadamard", |path, case| {
        let len = case.a.len().checked_ilog2().map_or(0, |k| 1 << k);
        both(path, |path| {
            let mut values = case.a[..len].to_vec();
            if len > 0 {
                path.hadamard(&mut values);
            }
            values
        })
    }),
    ("score_codes", |path, case| {
        let rows = matrix(&case.code);
        both(path, |path| filled(|out| path.score_codes(&rows[..], &case.slots, &case.query, out)))
    }),
    ("score_nibbles", |path, case| {
        let (code, query) = case.nibbles();
        let rows = matrix(code);
        both(path, |path| filled(|out| path.score_nibbles(&rows[..], &case.slots, &query, out)))
    }),
    ("score_signs", |path, case| {
        let (row, planes) = case.signs();
        let rows = matrix(row);
        both(path, |path| filled(|out| path.score_signs(&rows[..], &case.slots, &planes, out)))
    }),
    ("matmul_q8", matmul_q8),
    ("score_f32", score_f32),
    ("score_f16", score_f16),
];

const SCALAR: Kernels = Kernels::Scalar;

impl Case {
    /// The case of a seed.
    #[allow(dead_code, reason = "for harnesses without proptest")]
    pub(super) fn random(seed: u64) -> Self {
        let mut state = seed;
        // SplitMix64 (Steele, Lea and Flood, 2014).
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        let len = match next() % 4 {
            0 => 128 * (next() % 17) as usize,
            _ => (next() % 300) as usize,
        };
        let mut case = Case::default();
        // One case in eight is all extremes, where narrow sums overflow first.
        let extremes = next() % 8 == 0;
        for _ in 0..len {
            let bits = if extremes { 0x80_00ff } else { next() };
            case.code.push(bits as u8);
            case.other.push((bits >> 8) as u8);
            case.query.push((bits >> 16) as i8);
            case.a.push(f32::from((bits >> 24) as u16) / 32.0 - 1000.0);
            case.b.push(f32::from((bits >> 40) as u16) / 32.0 - 1000.0);
        }
        case.slots = (0..next() % 40).map(|_| (next() % ROWS as u64) as u32).collect();
        case
    }

    fn halves(&self) -> Vec<f16> {
        self.b.iter().map(|&v| f16::from_f32(v)).collect()
    }

    /// Whole lines of 4-bit codes and a query for them.
    fn nibbles(&self) -> (&[u8], Vec<i8>) {
        let code = &self.code[..self.code.len() / 64 * 64];
        (code, self.query.iter().copied().cycle().take(2 * code.len()).collect())
    }

    /// Whole words of signs, and levels for them.
    fn signs(&self) -> (&[u8], Vec<u64>) {
        let (words, rest) = self.code.as_chunks::<8>();
        let levels = self.other.iter().copied().cycle().enumerate();
        let mut levels =
            levels.map(|(i, byte)| u64::from(byte).wrapping_mul(0x9e37_79b9_7f4a_7c15 + 2 * i as u64));
        let planes = (0..PLANES * words.len()).filter_map(|_| levels.next()).collect();
        (&self.code[..self.code.len() - rest.len()], planes)
    }

    /// What a sum of products may be off by: units in the last place of the sum of magnitudes.
    fn slack(&self) -> f32 {
        let magnitude: f32 = self.a.iter().zip(&self.b).map(|(x, y)| (x * y).abs()).sum();
        1.6e-5 * magnitude.max(1e-20)
    }
}

/// [`ROWS`] rows, each the one before turned by one.
fn matrix<T: Copy>(row: &[T]) -> Vec<T> {
    (0..ROWS).flat_map(|i| row.iter().copied().cycle().skip(i).take(row.len())).collect()
}

/// Holds every kernel of every path of this processor against the scalar one.
///
/// # Panics
/// Naming the kernel and the path that differ.
pub(super) fn check(case: &Case) {
    for path in Kernels::available() {
        for (kernel, check) in CHECKS {
            if let Err(difference) = check(path, case) {
                panic!("`{kernel}` on {}: {difference}", path.name());
            }
        }
    }
}

/// Exact kernels: the same number on both paths.
fn both<T: PartialEq + std::fmt::Debug>(path: Kernels, run: impl Fn(Kernels) -> T) -> Result<(), String> {
    same(run(path), run(SCALAR))
}

fn same<T: PartialEq + std::fmt::Debug>(found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}")) }
}

fn near(found: f32, expected: f32, slack: f32) -> Result<(), String> {
    if (found - expected).abs() <= slack { Ok(()) } else { Err(format!("{found} instead of {expected}")) }
}

/// What a kernel leaves in a buffer that was not empty.
fn filled<T: Copy + Default>(fill: impl FnOnce(&mut Vec<T>)) -> Vec<T> {
    let mut out = vec![T::default(); 3];
    fill(&mut out);
    out
}

fn dot(path: Kernels, case: &Case) -> Result<(), String> {
    near(path.dot(&case.a, &case.b), SCALAR.dot(&case.a, &case.b), case.slack())
}

fn dot_f16(path: Kernels, case: &Case) -> Result<(), String> {
    let halves = case.halves();
    near(path.dot_f16(&case.a, &halves), SCALAR.dot_f16(&case.a, &halves), case.slack())
}

fn bias_gelu(path: Kernels, case: &Case) -> Result<(), String> {
    let (mut found, mut expected) = (case.a.clone(), case.a.clone());
    path.bias_gelu(&mut found, &case.b);
    SCALAR.bias_gelu(&mut expected, &case.b);
    let mut pairs = found.into_iter().zip(expected);
    pairs.try_for_each(|(found, expected)| near(found, expected, 1e-6 * expected.abs().max(1.0)))
}

/// A function of every number, on both sides of 0.
fn curve(case: &Case, path: impl Fn(&mut [f32]), twin: impl Fn(&mut [f32])) -> Result<(), String> {
    let scaled: Vec<f32> = case.a.iter().map(|v| v / 64.0).collect();
    let (mut found, mut expected) = (scaled.clone(), scaled);
    path(&mut found);
    twin(&mut expected);
    let mut pairs = found.into_iter().zip(expected);
    pairs.try_for_each(|(found, expected)| near(found, expected, 2e-6 * expected.abs().min(1.0) + 1e-7))
}

fn softmax(path: Kernels, case: &Case) -> Result<(), String> {
    let scaled: Vec<f32> = case.a.iter().map(|v| v / 16.0).collect();
    let (mut found, mut expected) = (scaled.clone(), scaled);
    path.softmax(&mut found);
    SCALAR.softmax(&mut expected);
    let mut pairs = found.into_iter().zip(expected);
    pairs.try_for_each(|(found, expected)| near(found, expected, 2e-6 * expected.abs() + 1e-37))
}

/// A product whose sizes are no multiples of what the kernels take at a time.
fn matmul_q8(path: Kernels, case: &Case) -> Result<(), String> {
    let width = case.a.len() / q8::BLOCK * q8::BLOCK;
    if width == 0 {
        return Ok(());
    }
    let count = 1 + case.slots.len() % 12;
    let turned = |values: &[f32], count: usize| -> Vec<f32> {
        (0..count).flat_map(|i| values.iter().copied().cycle().skip(i).take(width)).collect()
    };
    let reach = if case.slots.len().is_multiple_of(2) { q8::Reach::Full } else { q8::Reach::Short };
    let weights = q8::Tiles::new(&turned(&case.b, ROWS + count), width, reach);
    let run = |path: Kernels| {
        let (mut rows, mut out) = (q8::Rows::default(), vec![1.0f32; count * weights.out()]);
        path.quantize_rows(&turned(&case.a, count), width, reach, &mut rows);
        path.matmul_q8(&rows, &weights, 0..weights.tiles(), &mut out);
        // A share of the tiles gives the same numbers.
        let share = 1..weights.tiles();
        let columns = weights.columns(&share);
        let mut part = vec![1.0f32; count * columns];
        path.matmul_q8(&rows, &weights, share, &mut part);
        for (whole, part) in out.chunks_exact(weights.out()).zip(part.chunks_exact(columns)) {
            assert_eq!(&whole[weights.out() - columns..], part);
        }
        out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    both(path, run)
}

/// Batches of floats have no path of their own: what is held is that they score the rows they are told to.
fn score_f32(path: Kernels, case: &Case) -> Result<(), String> {
    let rows = matrix(&case.b);
    let one = |&slot: &u32| path.dot(&case.a, &rows[slot as usize * case.a.len()..][..case.a.len()]);
    let expected = case.slots.iter().map(one).collect();
    same(filled(|out| path.score_f32(&rows[..], &case.slots, &case.a, out)), expected)
}

fn score_f16(path: Kernels, case: &Case) -> Result<(), String> {
    let rows = matrix(&case.halves());
    let one = |&slot: &u32| path.dot_f16(&case.a, &rows[slot as usize * case.a.len()..][..case.a.len()]);
    let expected = case.slots.iter().map(one).collect();
    same(filled(|out| path.score_f16(&rows[..], &case.slots, &case.a, out)), expected)
}
