//! Any sample rate becomes 16 kHz: the reference's windowed sinc, phase by phase.
//!
//! ```text
//! o, n = rates divided by their greatest common divisor      base = 0.99·min(o, n)
//! output m·n + j = Σ_τ k[j][τ] · x[m·o + τ]                  τ from −width to width + o − 1,  width = ⌈6·o/base⌉
//! k[j][τ] = base/o · cos²(πt/12) · sinc(πt)                  t = (−j/n + τ/o)·base, held within ±6
//! ```
//!
//! Where t is held the window is zero, so of the `2·width + o` taps of a phase about `12·o/base` count, and only those are
//! kept: 34 of 475 when 44.1 kHz becomes 16.
//!
//! Source: torchaudio, `functional.resample` with its defaults (width 6, roll-off 0.99, Hann window), which ImageBind's
//! `load_and_transform_audio_data` calls. `−j/n` is rounded to f32 there before it is added, and so it is here.

use std::ops::Range;

/// Zero crossings on either side.
const WIDTH: f64 = 6.0;
/// Pass band, as a share of the lower of both rates.
const ROLL_OFF: f64 = 0.99;
/// Taps that are summed side by side.
const LANES: usize = 8;

/// Turns one rate into another.
#[derive(Debug, Clone)]
pub(super) struct Resampler {
    /// Input samples in the time of `to` output samples.
    from: usize,
    to: usize,
    /// One for each of `to` outputs; none when both rates are the same.
    phases: Vec<Phase>,
}

/// The taps of one output in `to`.
#[derive(Debug, Clone)]
struct Phase {
    /// Input sample of the first tap, counted from the block's first.
    first: i64,
    /// A multiple of [`LANES`] of them, zeros at the end.
    weights: Vec<f32>,
}

impl Resampler {
    /// For rates above 0.
    pub(super) fn new(from: u32, to: u32) -> Self {
        let divisor = gcd(from, to);
        let (from, to) = (from / divisor, to / divisor);
        let phases = if from == to { Vec::new() } else { (0..to).map(|j| Phase::new(from, to, j)).collect() };
        Resampler { from: from as usize, to: to as usize, phases }
    }

    /// Output samples of `samples` input samples: `⌈to·samples/from⌉`, the quotient in f32 as in the reference.
    pub(super) fn len(&self, samples: usize) -> usize {
        match self.phases.is_empty() {
            true => samples,
            false => ((self.to as f64 * samples as f64 / self.from as f64) as f32).ceil() as usize,
        }
    }

    /// Some of the output samples of an input.
    pub(super) fn range(&self, input: &[f32], wanted: Range<usize>) -> Vec<f32> {
        if self.phases.is_empty() {
            return input.get(wanted).unwrap_or_default().to_vec();
        }
        let one = |at: usize| {
            let phase = &self.phases[at % self.to];
            phase.sum(input, (at / self.to * self.from) as i64 + phase.first)
        };
        wanted.map(one).collect()
    }
}

impl Phase {
    fn new(from: u32, to: u32, j: u32) -> Self {
        let (o, n) = (f64::from(from), f64::from(to));
        let base = ROLL_OFF * o.min(n);
        let width = (WIDTH * o / base).ceil() as i64;
        let shift = f64::from((-f64::from(j) / n) as f32);
        let tap = |tau: i64| {
            let t = ((shift + tau as f64 / o) * base).clamp(-WIDTH, WIDTH);
            let window = (std::f64::consts::PI * t / (2.0 * WIDTH)).cos().powi(2);
            let angle = std::f64::consts::PI * t;
            let sinc = if angle == 0.0 { 1.0 } else { angle.sin() / angle };
            (base / o * window * sinc) as f32
        };
        // Where |t| < 6, and one tap more on either side for rounding.
        let at = |t: f64| (t / base - shift) * o;
        let low = (at(-WIDTH).floor() as i64 - 1).max(-width);
        let high = (at(WIDTH).ceil() as i64 + 1).min(width + i64::from(from) - 1);
        let taps: Vec<(i64, f32)> = (low..=high).map(|tau| (tau, tap(tau))).collect();
        let first = taps.iter().position(|(_, weight)| *weight != 0.0).unwrap_or(0);
        let last = taps.iter().rposition(|(_, weight)| *weight != 0.0).unwrap_or(0);
        let mut weights: Vec<f32> = taps[first..=last].iter().map(|(_, weight)| *weight).collect();
        weights.resize(weights.len().next_multiple_of(LANES), 0.0);
        Phase { first: taps[first].0, weights }
    }

    /// The taps over the samples from `start` on, silence beyond either end.
    fn sum(&self, input: &[f32], start: i64) -> f32 {
        let inside =
            usize::try_from(start).ok().and_then(|start| input.get(start..start + self.weights.len()));
        let Some(samples) = inside else {
            let sample = |i: usize| usize::try_from(start + i as i64).ok().and_then(|at| input.get(at));
            let taps = self.weights.iter().enumerate();
            return taps.map(|(i, weight)| weight * sample(i).copied().unwrap_or(0.0)).sum();
        };
        let mut sums = [0.0f32; LANES];
        for (weights, samples) in self.weights.chunks_exact(LANES).zip(samples.chunks_exact(LANES)) {
            for lane in 0..LANES {
                sums[lane] += weights[lane] * samples[lane];
            }
        }
        sums.iter().sum()
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
