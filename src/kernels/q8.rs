//! Matrices of 8-bit numbers with a scale to every 32 (`q8_0` of ggml), laid out for the product kernels.
//!
//! ```text
//! weights      [out, in]  ─►  tiles of 16 rows × 32 columns     codes 8 lines of [16 rows][4 columns], bytes, 128 added
//!                                                               scales [16], f16
//! activations  [m, in]    ─►  rows of blocks of 32              codes, signed bytes; a scale and a sum for each block
//! ```
//! `Σ w·a = Σ (w + 128)·a − 128·Σ a`: weights are kept unsigned because one instruction multiplies unsigned bytes by
//! signed ones, and the sums of activations pay for it. Where codes keep to ±63 ([`Reach::Short`]) 64 is added, and four
//! products fit in 16 bits: a processor without VNNI, which adds them up there, is twice as fast. Every processor takes
//! the same codes, so that embeddings do not depend on where they were made.

use std::ops::Range;
use std::sync::Arc;

use half::f16;

/// Numbers that share a scale.
pub const BLOCK: usize = 32;
/// Rows of a weight matrix in a tile.
pub(super) const TILE: usize = 16;
/// Columns of a weight matrix that lie side by side for each of its rows: what one instruction sums up.
pub(super) const GROUP: usize = 4;

/// How far codes reach, of weights and of the activations that they are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// ±127, all of a byte.
    #[default]
    Full,
    /// ±63: twice the rounding error, and `4·127·64 < 2¹⁵`.
    Short,
}

impl Reach {
    /// The largest code.
    fn limit(self) -> f32 {
        match self {
            Reach::Full => 127.0,
            Reach::Short => 63.0,
        }
    }

    /// Added to every weight.
    pub(super) fn offset(self) -> i32 {
        match self {
            Reach::Full => 128,
            Reach::Short => 64,
        }
    }
}

/// One cache line: four columns of 16 rows.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; TILE * GROUP]);

/// Rows of activations that lie side by side in 16 bits.
pub(super) const WIDE_ROWS: usize = 4;

/// Lines of a tile.
pub(super) const LINES: usize = BLOCK / GROUP;

/// Memory that somebody else holds, as a mapped file.
pub type Lent = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A weight matrix `[out, in]`.
#[derive(Clone)]
pub struct Tiles {
    pub(super) out: usize,
    pub(super) blocks: usize,
    pub(super) reach: Reach,
    held: Held,
}

#[derive(Clone)]
enum Held {
    /// `[out / 16][in / 32][LINES]` and `[out / 16][in / 32][16]`.
    Own(Vec<Line>, Vec<f16>),
    /// The same as bytes, at these places.
    Lent(Lent, [Range<usize>; 2]),
}

impl std::fmt::Debug for Tiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tiles [{}, {}]", self.out, self.width())
    }
}

impl Tiles {
    /// Rounds a matrix to 8 bits.
    ///
    /// * `weights`: `[out, in]`, row by row; `width`: in, a multiple of [`BLOCK`].
    ///
    /// # Panics
    /// When `width` is no multiple of [`BLOCK`] or does not divide the number of weights.
    pub fn new(weights: &[f32], width: usize, reach: Reach) -> Self {
        assert!(width > 0 && width.is_multiple_of(BLOCK), "rows are whole blocks");
        assert!(weights.len().is_multiple_of(width), "a matrix is whole rows");
        let (out, blocks) = (weights.len() / width, width / BLOCK);
        let tiles = out.div_ceil(TILE) * blocks;
        // Rows beyond the last stay without effect: their scale is 0.
        let mut lines = vec![Line([reach.offset() as u8; TILE * GROUP]); tiles * LINES];
        let mut scales = vec![f16::ZERO; tiles * TILE];
        for (row, values) in weights.chunks_exact(width).enumerate() {
            for (block, values) in values.chunks_exact(BLOCK).enumerate() {
                let tile = row / TILE * blocks + block;
                let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let scale = f16::from_f32(largest / reach.limit());
                scales[tile * TILE + row % TILE] = scale;
                let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
                for (i, value) in values.iter().enumerate() {
                    let code = (value * inverse).round().clamp(-reach.limit(), reach.limit()) as i32;
                    lines[tile * LINES + i / GROUP].0[row % TILE * GROUP + i % GROUP] =
                        (code + reach.offset()) as u8;
                }
            }
        }
        Tiles { out, blocks, reach, held: Held::Own(lines, scales) }
    }

    /// Takes a matrix of codes of full reach that lies in somebody else's memory, as [`Tiles::bytes`] gave it; nothing when
    /// the lengths or the alignment (64 bytes for codes) do not fit.
    pub fn lent(
        out: usize,
        width: usize,
        memory: Lent,
        codes: Range<usize>,
        scales: Range<usize>,
    ) -> Option<Self> {
        if width == 0 || !width.is_multiple_of(BLOCK) {
            return None;
        }
        let blocks = width / BLOCK;
        let tiles = out
            .div_ceil(TILE)
            .checked_mul(blocks)
            .filter(|tiles| tiles.checked_mul(LINES * TILE).is_some())?;
        let bytes = (*memory).as_ref();
        let lines: &[Line] = bytemuck::try_cast_slice(bytes.get(codes.clone())?).ok()?;
        let halves: &[f16] = bytemuck::try_cast_slice(bytes.get(scales.clone())?).ok()?;
        let fits = lines.len() == tiles * LINES && halves.len() == tiles * TILE;
        fits.then_some(Tiles { out, blocks, reach: Reach::Full, held: Held::Lent(memory, [codes, scales]) })
    }

    /// Codes and scales as they lie in memory.
    pub fn bytes(&self) -> [&[u8]; 2] {
        [bytemuck::cast_slice(self.lines()), bytemuck::cast_slice(self.scales())]
    }

    /// Bytes of codes and of scales of a matrix.
    pub fn sizes(out: usize, width: usize) -> [usize; 2] {
        let tiles = out.div_ceil(TILE) * (width / BLOCK);
        [tiles * LINES * size_of::<Line>(), tiles * TILE * size_of::<f16>()]
    }

    pub(super) fn lines(&self) -> &[Line] {
        match &self.held {
            Held::Own(lines, _) => lines,
            // Checked when it was taken: memory that is lent does not change.
            Held::Lent(memory, [codes, _]) => bytemuck::cast_slice(&(**memory).as_ref()[codes.clone()]),
        }
    }

    pub(super) fn scales(&self) -> &[f16] {
        match &self.held {
            Held::Own(_, scales) => scales,
            Held::Lent(memory, [_, scales]) => bytemuck::cast_slice(&(**memory).as_ref()[scales.clone()]),
        }
    }

    /// How far its codes reach.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Rows of the matrix: components of a result.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Columns of the matrix: components of an input.
    pub fn width(&self) -> usize {
        self.blocks * BLOCK
    }

    /// Tiles of 16 rows.
    pub fn tiles(&self) -> usize {
        self.out.div_ceil(TILE)
    }

    /// Lines and scales of a tile, block by block.
    #[inline]
    pub(super) fn tile(&self, tile: usize) -> impl Iterator<Item = (&[Line; LINES], &[f16; TILE])> {
        let lines = &self.lines()[tile * self.blocks * LINES..][..self.blocks * LINES];
        let scales = &self.scales()[tile * self.blocks * TILE..][..self.blocks * TILE];
        lines.as_chunks().0.iter().zip(scales.as_chunks().0)
    }

    /// Components of a result that some tiles make.
    pub fn columns(&self, tiles: &Range<usize>) -> usize {
        (tiles.end * TILE).min(self.out) - (tiles.start * TILE).min(self.out)
    }
}

/// Activations `[m, in]`.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    pub(super) count: usize,
    pub(super) blocks: usize,
    pub(super) reach: Reach,
    /// `[m][in]`
    pub(super) codes: Vec<i8>,
    /// The same in 16 bits where codes reach far, `[m / 4][in / 4][4][4]`, for processors that cannot sum up products of
    /// bytes: what is multiplied with a line of weights lies together. Rows up to a multiple of four are 0.
    pub(super) wide: Vec<i16>,
    /// `[m][in / 32]`
    pub(super) scales: Vec<f32>,
    /// `−128·Σ codes`, or `−64·Σ codes` of short reach, `[m][in / 32]`
    pub(super) corrections: Vec<i32>,
}

impl Rows {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Makes room for rows that [`super::Kernels::quantize_rows`] fills.
    pub(super) fn reset(&mut self, count: usize, blocks: usize, reach: Reach) {
        (self.count, self.blocks, self.reach) = (count, blocks, reach);
        self.codes.resize(count * blocks * BLOCK, 0);
        self.wide.clear();
        if reach == Reach::Full {
            self.wide.resize(count.next_multiple_of(WIDE_ROWS) * blocks * BLOCK, 0);
        }
        self.scales.resize(count * blocks, 0.0);
        self.corrections.resize(count * blocks, 0);
    }
}

/// Writes a tile's sums into its columns of a row.
///
/// * `place`: the tile's place among those that the row has columns of.
#[inline]
pub(super) fn keep(sums: &[f32; TILE], row: &mut [f32], place: usize) {
    let columns = TILE.min(row.len() - place * TILE);
    row[place * TILE..][..columns].copy_from_slice(&sums[..columns]);
}

/// Rounds activations: the largest of a block becomes the largest code, halves go to even.
#[inline(always)]
pub(super) fn quantize(values: &[f32], rows: &mut Rows) {
    // Adding and taking away 1.5·2²³ rounds to a whole number, half to even, and compiles to two plain instructions.
    const ROUND: f32 = 12_582_912.0;
    let (blocks, reach) = (rows.blocks, rows.reach);
    let (limit, offset) = (reach.limit(), reach.offset());
    let of_blocks = rows.scales.iter_mut().zip(&mut rows.corrections);
    let codes = rows.codes.chunks_exact_mut(BLOCK).zip(of_blocks);
    for (at, (values, (codes, (scale, correction)))) in values.chunks_exact(BLOCK).zip(codes).enumerate() {
        let mut lanes = [0.0f32; 8];
        for chunk in values.chunks_exact(8) {
            lanes
                .iter_mut()
                .zip(chunk)
                .for_each(|(lane, v)| *lane = if v.abs() > *lane { v.abs() } else { *lane });
        }
        let largest = lanes.iter().fold(0.0f32, |m, &v| if v > m { v } else { m });
        *scale = largest / limit;
        // What is smaller has no reciprocal, and counts as zeros.
        let inverse = if *scale >= f32::MIN_POSITIVE { 1.0 / *scale } else { 0.0 };
        let mut sum = 0i32;
        for (code, value) in codes.iter_mut().zip(values) {
            // The cast saturates, and takes a number that is none to 0.
            *code = (value * inverse + ROUND - ROUND) as i8;
            sum = sum.wrapping_add(i32::from(*code));
        }
        *correction = sum.wrapping_mul(-offset);
        if reach == Reach::Short {
            continue;
        }
        let (row, block) = (at / blocks, at % blocks);
        let first = (row / WIDE_ROWS * blocks + block) * BLOCK * WIDE_ROWS + row % WIDE_ROWS * GROUP;
        let groups = rows.wide[first..].chunks_mut(GROUP * WIDE_ROWS);
        for (wide, codes) in groups.zip(codes.chunks_exact(GROUP)) {
            wide.iter_mut().zip(codes).for_each(|(wide, &code)| *wide = i16::from(code));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Kernels;

    fn noise(seed: u32, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn a_product_of_8_bits_is_near_the_exact_one() {
        let (width, out, count) = (1280, 40, 5);
        let (weights, inputs) = (noise(1, width * out), noise(2, width * count));
        for (kernels, (reach, near)) in Kernels::available()
            .into_iter()
            .flat_map(|k| [(Reach::Full, 0.1), (Reach::Short, 0.2)].map(|r| (k, r)))
        {
            let tiles = Tiles::new(&weights, width, reach);
            assert_eq!((tiles.out(), tiles.width(), tiles.reach()), (out, width, reach));
            let (mut rows, mut found) = (Rows::default(), vec![0.0; count * out]);
            kernels.quantize_rows(&inputs, width, reach, &mut rows);
            kernels.matmul_q8(&rows, &tiles, 0..tiles.tiles(), &mut found);
            for (i, found) in found.into_iter().enumerate() {
                let (input, row) =
                    (&inputs[i / out * width..][..width], &weights[i % out * width..][..width]);
                let exact: f64 = input.iter().zip(row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                // Both roundings, of half a 254th or a 126th of the range each, add up like noise over 1280 products.
                let error = (f64::from(found) - exact).abs();
                assert!(error < near, "{}, {reach:?}: {found} instead of {exact}", kernels.name());
            }
        }
    }

    #[test]
    fn lent_memory_that_does_not_fit_is_refused() {
        let tiles = Tiles::new(&noise(3, 20 * 64), 64, Reach::Full);
        let [codes, scales] = tiles.bytes();
        let at = codes.len();
        // Room before the codes, so that they can begin at a multiple of 64 wherever the memory lies.
        let mut bytes = vec![0u8; 64 + at + scales.len()];
        let first = bytes.as_ptr().align_offset(64);
        bytes[first..first + at].copy_from_slice(codes);
        bytes[first + at..first + at + scales.len()].copy_from_slice(scales);
        let end = first + at + scales.len();
        let memory: Lent = Arc::new(bytes);
        let lent = |out, width, codes: Range<usize>, scales: Range<usize>| {
            Tiles::lent(out, width, memory.clone(), codes, scales)
        };
        let whole = lent(20, 64, first..first + at, first + at..end).unwrap();
        assert_eq!(whole.bytes(), tiles.bytes());
        assert!(lent(20, 64, first + 1..first + 1 + at, first + at..end).is_none(), "not aligned");
        assert!(lent(40, 64, first..first + at, first + at..end).is_none(), "too few");
        assert!(lent(20, 64, first..first + at, first + at..usize::MAX).is_none(), "beyond the end");
        for (out, width) in [(20, 0), (20, 33), (usize::MAX, 64), (usize::MAX, usize::MAX - 31)] {
            assert!(lent(out, width, first..first + at, first + at..end).is_none(), "{out} {width}");
        }
    }

    #[test]
    fn zeros_and_numbers_that_are_none_do_no_harm_to_others() {
        let width = 2 * BLOCK;
        for (kernels, reach) in
            Kernels::available().into_iter().flat_map(|k| [Reach::Full, Reach::Short].map(|r| (k, r)))
        {
            let tiles = Tiles::new(&vec![0.0; 3 * width], width, reach);
            let mut rows = Rows::default();
            let mut inputs = vec![0.0; 2 * width];
            inputs[width] = f32::NAN;
            kernels.quantize_rows(&inputs, width, reach, &mut rows);
            let mut out = vec![1.0; 6];
            kernels.matmul_q8(&rows, &tiles, 0..tiles.tiles(), &mut out);
            assert_eq!(out, [0.0; 6], "{}", kernels.name());
        }
    }
}
