//! Resizing as Pillow does it, bicubic, to the bit.
//!
//! ```text
//! 8 bits ─► across: integer weights of 22 fractional bits ─► 8 bits ─► down: the same ─► 8 bits
//! ```
//!
//! A picture that becomes smaller is smoothed: the cubic is as wide as the step between two outputs. Only the rows and columns that
//! are kept of the result are computed.
//!
//! Pillow 13 goes down first where a picture is tall and becomes small; up to version 9, by which models were trained, it never
//! did, nor is it done here. Most values are then the same or a level apart, at sharp edges up to 14.
//!
//! Source: Pillow, `src/libImaging/Resample.c`.

use super::rgb::{Rgb, Window};

/// The cubic of Pillow.
const CUBIC_A: f64 = -0.5;
/// Fractional bits of a resize weight.
const WEIGHT_BITS: u32 = 22;

/// Resizes to `[width, height]` and keeps a part of that: `kept.width · kept.height · 3` bytes.
///
/// * `kept`: lies inside of the new size.
pub(super) fn resample(picture: &Rgb, size: [usize; 2], kept: Window) -> Vec<u8> {
    struct Resample<'a>(&'a Rgb, [usize; 2], Window);
    impl pulp::WithSimd for Resample<'_> {
        type Output = Vec<u8>;

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> Vec<u8> {
            resampled(self.0, self.1, self.2)
        }
    }
    // The same code for every instruction set: whole numbers, so the same result.
    pulp::Arch::new().dispatch(Resample(picture, size, kept))
}

/// The products that are summed are below 2³¹ together: weights sum to 2²², with overshoot to 1.4 times that in magnitude, and values
/// are below 2⁸. So sums wrap, which the compiler can vectorise, without ever doing so.
#[inline(always)]
fn resampled(picture: &Rgb, [new_width, new_height]: [usize; 2], kept: Window) -> Vec<u8> {
    let (width, height) = (picture.width, picture.height);
    let across = Taps::new(width, new_width, kept.left..kept.left + kept.width);
    let down = Taps::new(height, new_height, kept.top..kept.top + kept.height);

    // Horizontally first, and only the rows that the vertical pass will read. Two samples fill a register, four lanes a pixel.
    let (rows, across) = (down.source(), across.paired());
    let stride = kept.width * 3;
    let mut narrow = vec![0u8; rows.len() * stride];
    let mut wide = vec![0i32; (width + 1) * 4];
    let mut lanes = vec![[0i32; 8]; kept.width];
    let read = picture.data.chunks_exact(width * 3).skip(rows.start);
    for (row, narrow) in read.zip(narrow.chunks_exact_mut(stride)) {
        for (wide, pixel) in wide.as_chunks_mut::<4>().0.iter_mut().zip(row.as_chunks::<3>().0) {
            *wide = [pixel[0].into(), pixel[1].into(), pixel[2].into(), 0];
        }
        for (lanes, (from, weights)) in lanes.iter_mut().zip(&across) {
            let mut sums = [0i32; 8];
            for (pixels, weights) in wide[from * 4..].as_chunks::<8>().0.iter().zip(weights) {
                for lane in 0..8 {
                    sums[lane] = sums[lane].wrapping_add(weights[lane].wrapping_mul(pixels[lane]));
                }
            }
            *lanes = sums;
        }
        // Behind the loop, not in it: else a compiler fills half registers.
        for (out, lanes) in narrow.as_chunks_mut::<3>().0.iter_mut().zip(&lanes) {
            for channel in 0..3 {
                let sum = lanes[channel].wrapping_add(lanes[channel + 4]);
                out[channel] = Taps::round(Taps::ROUNDING.wrapping_add(sum));
            }
        }
    }

    let mut resized = vec![0u8; kept.height * stride];
    let mut sums = vec![0i32; stride];
    for ((from, weights), out) in down.outputs().zip(resized.chunks_exact_mut(stride)) {
        sums.fill(Taps::ROUNDING);
        let narrow = &narrow[(from - rows.start) * stride..];
        // Four rows while the sums are at hand.
        let (fours, rest) = weights.as_chunks::<4>();
        for (rows, w) in narrow.chunks_exact(4 * stride).zip(fours) {
            let (ab, cd) = rows.split_at(2 * stride);
            let (ab, cd) = (ab.split_at(stride), cd.split_at(stride));
            let values = ab.0.iter().zip(ab.1).zip(cd.0.iter().zip(cd.1));
            for (sum, ((&a, &b), (&c, &d))) in sums.iter_mut().zip(values) {
                let ab = w[0].wrapping_mul(a.into()).wrapping_add(w[1].wrapping_mul(b.into()));
                let cd = w[2].wrapping_mul(c.into()).wrapping_add(w[3].wrapping_mul(d.into()));
                *sum = sum.wrapping_add(ab).wrapping_add(cd);
            }
        }
        for (row, &weight) in narrow.chunks_exact(stride).skip(4 * fours.len()).zip(rest) {
            for (sum, &v) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(weight.wrapping_mul(v.into()));
            }
        }
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = Taps::round(sum);
        }
    }
    resized
}

/// The source samples and integer weights of each output sample of one pass.
struct Taps {
    /// First source sample, and where its weights begin.
    starts: Vec<(usize, usize)>,
    weights: Vec<i32>,
    source: std::ops::Range<usize>,
}

impl Taps {
    /// Half of the last kept place, so that a shift rounds.
    const ROUNDING: i32 = 1 << (WEIGHT_BITS - 1);

    /// Weights of the outputs `kept` when `from` samples become `to`.
    fn new(from: usize, to: usize, kept: std::ops::Range<usize>) -> Self {
        let mut taps = Taps { starts: Vec::with_capacity(kept.len()), weights: Vec::new(), source: 0..0 };
        if from == to {
            // No pass at all: weight one on the sample itself rounds to the sample.
            taps.starts.extend(kept.clone().enumerate().map(|(i, o)| (o, i)));
            taps.weights = vec![1 << WEIGHT_BITS; kept.len()];
            taps.source = kept;
            return taps;
        }
        let scale = from as f64 / to as f64;
        let filter_scale = scale.max(1.0);
        let support = 2.0 * filter_scale;
        let (mut first, mut last) = (from, 0);
        for output in kept {
            let centre = (output as f64 + 0.5) * scale;
            let low = (centre - support + 0.5).max(0.0) as usize;
            let high = ((centre + support + 0.5) as usize).min(from);
            let raw: Vec<f64> =
                (low..high).map(|j| cubic((j as f64 - centre + 0.5) / filter_scale)).collect();
            let sum: f64 = raw.iter().sum();
            taps.starts.push((low, taps.weights.len()));
            taps.weights.extend(raw.iter().map(|w| {
                let scaled = w / sum * f64::from(1 << WEIGHT_BITS);
                (scaled + 0.5f64.copysign(scaled)) as i32
            }));
            (first, last) = (first.min(low), last.max(high));
        }
        taps.source = first..last;
        taps
    }

    /// First source sample and weights of every output, two samples at a time: four lanes of one weight, four of the next.
    fn paired(&self) -> Vec<(usize, Vec<[i32; 8]>)> {
        let pair = |pair: &[i32]| {
            let (first, second) = (pair[0], pair.get(1).copied().unwrap_or(0));
            std::array::from_fn(|lane| if lane < 4 { first } else { second })
        };
        self.outputs().map(|(from, weights)| (from, weights.chunks(2).map(pair).collect())).collect()
    }

    /// Source samples that any output reads.
    fn source(&self) -> std::ops::Range<usize> {
        self.source.clone()
    }

    /// First source sample and weights of every output.
    #[inline(always)]
    fn outputs(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let ends = self.starts.iter().skip(1).map(|&(_, at)| at).chain([self.weights.len()]);
        self.starts.iter().zip(ends).map(|(&(from, at), end)| (from, &self.weights[at..end]))
    }

    #[inline(always)]
    fn round(sum: i32) -> u8 {
        (sum >> WEIGHT_BITS).clamp(0, 255) as u8
    }
}

fn cubic(d: f64) -> f64 {
    let d = d.abs();
    if d < 1.0 {
        ((CUBIC_A + 2.0) * d - (CUBIC_A + 3.0)) * d * d + 1.0
    } else if d < 2.0 {
        (((d - 5.0) * d + 8.0) * d - 4.0) * CUBIC_A
    } else {
        0.0
    }
}
