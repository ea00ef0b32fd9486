//! A waveform at 16 kHz becomes a spectrogram: Kaldi's filter bank.
//!
//! ```text
//! 400 samples every 160 ─► less their mean ─► x − 0.97·previous ─► Hann ─► 512-point |FFT|² ─► mel triangles ─► ln
//! ```
//!
//! Only whole windows count. Nothing is scaled to 16 bits, dithered, or added for energy. The triangles stand at equal steps
//! of `mel(f) = 1127 ln(1 + f/700)` from 20 Hz to 8 kHz and are straight on the mel axis; one of 128 holds no bin at all and
//! is always at the floor.
//!
//! Source: torchaudio, `compliance.kaldi.fbank` as ImageBind's `waveform2melspec` calls it.

use std::sync::Arc;

use realfft::{RealFftPlanner, RealToComplex};

use super::lanes::{self, LANES};

/// Samples of a window, 25 ms.
pub(super) const WINDOW: usize = 400;
/// Samples from one window to the next, 10 ms.
const SHIFT: usize = 160;
const FFT: usize = 512;
const PRE_EMPHASIS: f32 = 0.97;
const LOWEST_HZ: f64 = 20.0;
/// Smallest energy: f32's epsilon.
const FLOOR: f32 = f32::EPSILON;

/// The filter bank of one number of bands.
pub(super) struct FilterBank {
    fft: Arc<dyn RealToComplex<f32>>,
    window: [f32; WINDOW],
    bands: Vec<Band>,
}

/// One triangle: its first bin and its weights.
struct Band {
    first: usize,
    weights: Vec<f32>,
}

impl FilterBank {
    pub(super) fn new(bands: usize, rate: u32) -> Self {
        let window = std::array::from_fn(|i| {
            (0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / (WINDOW - 1) as f64).cos()) as f32
        });
        let nyquist = f64::from(rate) / 2.0;
        let (low, high) = (mel(LOWEST_HZ), mel(nyquist));
        let step = (high - low) / (bands + 1) as f64;
        let bin = |k: usize| mel(f64::from(rate) / FFT as f64 * k as f64);
        let band = |b: usize| {
            let (left, right) = (low + b as f64 * step, low + (b + 2) as f64 * step);
            let weight = |k: usize| ((bin(k) - left) / step).min((right - bin(k)) / step).max(0.0) as f32;
            let inside: Vec<usize> = (0..FFT / 2).filter(|&k| weight(k) > 0.0).collect();
            let first = inside.first().copied().unwrap_or(0);
            Band { first, weights: inside.into_iter().map(weight).collect() }
        };
        let fft = RealFftPlanner::new().plan_fft_forward(FFT);
        FilterBank { fft, window, bands: (0..bands).map(band).collect() }
    }

    /// Writes the log energies of a waveform band by band, `[bands, columns]`. Windows beyond `columns` are left out; columns
    /// beyond the last window keep what they hold.
    pub(super) fn write(&self, waveform: &[f32], columns: usize, into: &mut [f32]) {
        pulp::Arch::new().dispatch(Write { bank: self, waveform, columns, into });
    }

    #[inline(always)]
    fn write_with(&self, waveform: &[f32], columns: usize, into: &mut [f32]) {
        let mut centred = [0.0f32; WINDOW];
        let mut time = [0.0f32; FFT];
        let mut spectrum = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        // Bin by bin the windows that are beside each other.
        let mut power = [[0.0f32; LANES]; FFT / 2];
        let mut windows = waveform.windows(WINDOW).step_by(SHIFT).take(columns);
        for first in (0..columns).step_by(LANES) {
            let mut count = 0;
            for (lane, frame) in windows.by_ref().take(LANES).enumerate() {
                let mean = lanes::sum(frame) / WINDOW as f32;
                centred.iter_mut().zip(frame).for_each(|(out, sample)| *out = sample - mean);
                time[0] = (centred[0] - PRE_EMPHASIS * centred[0]) * self.window[0];
                let pairs = centred.iter().zip(&centred[1..]).zip(&self.window[1..]);
                for (out, ((previous, sample), weight)) in time[1..].iter_mut().zip(pairs) {
                    *out = (sample - PRE_EMPHASIS * previous) * weight;
                }
                time[WINDOW..].fill(0.0);
                // The lengths are those of the plan, which is all that can be wrong.
                if self.fft.process_with_scratch(&mut time, &mut spectrum, &mut scratch).is_err() {
                    spectrum.fill(Default::default());
                }
                power.iter_mut().zip(&spectrum).for_each(|(p, c)| p[lane] = c.re * c.re + c.im * c.im);
                count += 1;
            }
            if count == 0 {
                break;
            }
            for (band, row) in self.bands.iter().zip(into.chunks_exact_mut(columns)) {
                let mut energy = [0.0f32; LANES];
                for (bins, weight) in power[band.first..].iter().zip(&band.weights) {
                    energy.iter_mut().zip(bins).for_each(|(sum, p)| *sum += p * weight);
                }
                let log = energy.map(|energy| ln(energy.max(FLOOR)));
                row[first..][..count].copy_from_slice(&log[..count]);
            }
        }
    }
}

/// Natural logarithm of a normal number above 0, to two units in the last place, without branches: `e·ln 2 + ln m`, the mantissa m
/// from √½ to √2 by the polynomial of Cephes' `logf`.
#[inline(always)]
fn ln(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    const SQRT_HALF: u32 = 0x3f35_04f3;
    // Whole powers of two, so that what is left lies around 1.
    let bits = x.to_bits().wrapping_sub(SQRT_HALF);
    let exponent = (bits as i32 >> 23) as f32;
    let m = f32::from_bits((bits & 0x007f_ffff).wrapping_add(SQRT_HALF)) - 1.0;
    let square = m * m;
    let polynomial = P.iter().fold(0.0, |sum, coefficient| sum * m + coefficient);
    let small = m * square * polynomial - 2.121_944_4e-4 * exponent - 0.5 * square;
    m + small + 0.693_359_4 * exponent
}

/// A spectrogram to be written, with whatever instructions there are.
struct Write<'a> {
    bank: &'a FilterBank,
    waveform: &'a [f32],
    columns: usize,
    into: &'a mut [f32],
}

impl pulp::WithSimd for Write<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        self.bank.write_with(self.waveform, self.columns, self.into);
    }
}

fn mel(hz: f64) -> f64 {
    1127.0 * (1.0 + hz / 700.0).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_logarithm_is_the_logarithm() {
        for i in 0..200_000 {
            let x = FLOOR * 1.0003f32.powi(i % 100_000) * if i < 100_000 { 1.0 } else { 1.000_07 };
            if x.is_finite() {
                let (ours, exact) = (f64::from(ln(x)), f64::from(x).ln());
                assert!((ours - exact).abs() <= 2.5e-7 * exact.abs().max(1.0), "{x}: {ours}, not {exact}");
            }
        }
    }
}
