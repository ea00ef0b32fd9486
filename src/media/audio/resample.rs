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

use super::lanes::{LANES, dot, folded};

/// Zero crossings on either side.
const WIDTH: f64 = 6.0;
/// Pass band, as a share of the lower of both rates.
const ROLL_OFF: f64 = 0.99;
/// Samples of which the weights of all phases together are kept in a row, at the least.
const ROW: usize = 512;
/// Outputs whose lanes are made together.
const TOGETHER: usize = 16;

/// Turns one rate into another.
#[derive(Debug, Clone)]
pub(super) struct Resampler {
    /// Input samples in the time of `to` output samples.
    from: usize,
    to: usize,
    /// One for each of `to` outputs; none when both rates are the same.
    phases: Vec<Phase>,
    /// What all outputs together give to an input sample, by its place in a block; as many blocks as fill a row.
    columns: Vec<f64>,
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
        let phases: Vec<Phase> =
            if from == to { Vec::new() } else { (0..to).map(|j| Phase::new(from, to, j)).collect() };
        let mut columns = vec![0.0; from as usize];
        for phase in &phases {
            for (weight, k) in phase.weights.iter().zip(phase.first..) {
                columns[k.rem_euclid(i64::from(from)) as usize] += f64::from(*weight);
            }
        }
        let columns = columns.repeat(ROW.div_ceil(from as usize));
        Resampler { from: from as usize, to: to as usize, phases, columns }
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
        pulp::Arch::new().dispatch(Outputs { resampler: self, input, wanted })
    }

    /// The sum of some of the output samples, without making them: within, every input sample counts by what all phases
    /// together give it.
    pub(super) fn sum(&self, input: &[f32], wanted: Range<usize>) -> f64 {
        let direct =
            |range: Range<usize>| self.range(input, range).iter().map(|&v| f64::from(v)).sum::<f64>();
        if self.phases.is_empty() || wanted.len() < 4 * self.to {
            return direct(wanted);
        }
        let (from, to) = (self.from as i64, self.to as i64);
        let first = |at: i64| at.div_euclid(to) * from + self.phases[at.rem_euclid(to) as usize].first;
        let end = |at: i64| first(at) + self.phases[at.rem_euclid(to) as usize].weights.len() as i64;
        let (low, high) = (wanted.start as i64, wanted.end as i64);
        // Samples that no output before or behind touches.
        let inner = end(low - 1).max(0)..first(high).min(input.len() as i64);
        if inner.is_empty() {
            return direct(wanted);
        }
        let samples = &input[inner.start as usize..inner.end as usize];
        let row = &self.columns[inner.start.rem_euclid(self.columns.len() as i64) as usize..];
        let (head, samples) = samples.split_at(row.len().min(samples.len()));
        let whole = samples.chunks(self.columns.len()).map(|samples| dot(samples, &self.columns));
        let mut sum = dot(head, row) + whole.sum::<f64>();
        // Those at either end, by the outputs that touch them.
        let mut edge = |at: i64, range: Range<i64>| {
            let phase = &self.phases[at.rem_euclid(to) as usize];
            for (weight, k) in phase.weights.iter().zip(first(at)..) {
                if range.contains(&k)
                    && let Some(&x) = usize::try_from(k).ok().and_then(|k| input.get(k))
                {
                    sum += f64::from(x) * f64::from(*weight);
                }
            }
        };
        (low..high).take_while(|&at| first(at) < inner.start).for_each(|at| edge(at, 0..inner.start));
        let behind = inner.end..input.len() as i64;
        (low..high).rev().take_while(|&at| end(at) > inner.end).for_each(|at| edge(at, behind.clone()));
        sum
    }
}

/// Output samples to be made: the same sums in the same order, with whatever instructions there are.
struct Outputs<'a> {
    resampler: &'a Resampler,
    input: &'a [f32],
    wanted: Range<usize>,
}

impl pulp::WithSimd for Outputs<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Vec<f32> {
        let Outputs { resampler: Resampler { from, to, phases, .. }, input, wanted } = self;
        let mut output = vec![0.0; wanted.len()];
        let (mut block, mut phase) = (wanted.start / to, wanted.start % to);
        // The lanes of several first, and then their sums: of one at a time a compiler makes halves and quarters.
        let mut lanes = [[0.0; LANES]; TOGETHER];
        for output in output.chunks_mut(TOGETHER) {
            for lanes in &mut lanes[..output.len()] {
                let taps = &phases[phase];
                *lanes = taps.lanes(input, (block * from) as i64 + taps.first);
                phase += 1;
                if phase == *to {
                    (block, phase) = (block + 1, 0);
                }
            }
            output.iter_mut().zip(&lanes).for_each(|(output, lanes)| *output = folded(*lanes));
        }
        output
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

    /// The taps over the samples from `start` on, silence beyond either end: what is to be folded.
    #[inline(always)]
    fn lanes(&self, input: &[f32], start: i64) -> [f32; LANES] {
        let mut sums = [0.0f32; LANES];
        let inside =
            usize::try_from(start).ok().and_then(|start| input.get(start..start + self.weights.len()));
        match inside {
            Some(samples) => {
                for (weights, samples) in self.weights.chunks_exact(LANES).zip(samples.chunks_exact(LANES)) {
                    for lane in 0..LANES {
                        sums[lane] += weights[lane] * samples[lane];
                    }
                }
            }
            None => {
                let sample = |i: usize| usize::try_from(start + i as i64).ok().and_then(|at| input.get(at));
                for (i, weight) in self.weights.iter().enumerate() {
                    sums[i % LANES] += weight * sample(i).copied().unwrap_or(0.0);
                }
            }
        }
        sums
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_sum_is_the_sum_of_the_samples(rate in 1_000u32..60_000, seconds in 0.01f64..0.4, cut in 0.0f64..0.5) {
            let resampler = Resampler::new(rate, 16_000);
            let input: Vec<f32> = (0..(seconds * f64::from(rate)) as usize).map(|i| (i as f32 * 0.7).sin() + 0.3).collect();
            let length = resampler.len(input.len());
            let range = (cut * length as f64) as usize..length - (0.5 * cut * length as f64) as usize;
            let samples: f64 = resampler.range(&input, range.clone()).iter().map(|&v| f64::from(v)).sum();
            let sum = resampler.sum(&input, range);
            prop_assert!((sum - samples).abs() < 1e-4 * (1.0 + samples.abs()), "{} {}", sum, samples);
        }
    }
}
