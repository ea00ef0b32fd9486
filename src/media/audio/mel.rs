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
        let mut time = [0.0f32; FFT];
        let mut spectrum = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        let mut power = [0.0f32; FFT / 2];
        for (column, frame) in waveform.windows(WINDOW).step_by(SHIFT).take(columns).enumerate() {
            let mean = frame.iter().sum::<f32>() / WINDOW as f32;
            let mut previous = frame[0] - mean;
            for ((out, &sample), &weight) in time.iter_mut().zip(frame).zip(&self.window) {
                let centred = sample - mean;
                *out = (centred - PRE_EMPHASIS * previous) * weight;
                previous = centred;
            }
            time[WINDOW..].fill(0.0);
            // The lengths are those of the plan, which is all that can be wrong.
            if self.fft.process_with_scratch(&mut time, &mut spectrum, &mut scratch).is_err() {
                spectrum.fill(Default::default());
            }
            power.iter_mut().zip(&spectrum).for_each(|(p, c)| *p = c.re * c.re + c.im * c.im);
            for (b, band) in self.bands.iter().enumerate() {
                let bins = &power[band.first..][..band.weights.len()];
                let energy: f32 = bins.iter().zip(&band.weights).map(|(p, w)| p * w).sum();
                into[b * columns + column] = energy.max(FLOOR).ln();
            }
        }
    }
}

fn mel(hz: f64) -> f64 {
    1127.0 * (1.0 + hz / 700.0).ln()
}
