//! Means, and how sure they are.
//!
//! ```text
//! rows ─► groups of rows that share an input ─► as many groups drawn, with repeats ─► a mean      2000 times
//!                                               the middle 95 % of the means: the interval
//! ```
//! Two questions about one picture are right or wrong together, so whole groups are drawn: as if each question were about a picture of
//! its own, intervals would come out too narrow. Differences are taken row by row first: what is hard for both sides cancels out.
//!
//! Left out: corrections of the percentiles (BCa), and one for looking at many settings. Of twenty settings that do nothing, one is
//! expected to be told apart at 95 %.
//!
//! Source: Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), chapters 8 and 13.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde::Serialize;

/// Resamplings of an interval.
pub(super) const RESAMPLINGS: usize = 2000;
/// Inputs below which no interval is believed: a resampling of a handful does not know what it has not seen.
pub(super) const FEWEST: usize = 10;

/// What one side has before another, row by row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Difference {
    /// The mean of the differences.
    pub(super) mean: f64,
    /// The 95 % interval of it.
    pub(super) interval: [f64; 2],
    /// Inputs behind it.
    pub(super) inputs: usize,
}

impl Difference {
    /// Of `on` to `off`, row by row.
    ///
    /// * `inputs`: which input each row is about. `off`, `on`: of each row, at least one.
    pub(super) fn of(off: &[f64], on: &[f64], inputs: &[usize], seed: u64) -> Self {
        let mut groups: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
        for ((off, on), input) in off.iter().zip(on).zip(inputs) {
            let (sum, rows) = groups.entry(*input).or_default();
            *sum += on - off;
            *rows += 1;
        }
        let groups: Vec<(f64, usize)> = groups.into_values().collect();
        let (sum, rows) = groups.iter().fold((0.0, 0), |(a, b), (sum, rows)| (a + sum, b + rows));
        // Every setting is resampled in the same way, so that its interval does not depend on which others there are.
        let interval = interval_of_groups(&groups, &mut Pcg64::seed_from_u64(seed));
        Difference { mean: sum / rows.max(1) as f64, interval, inputs: groups.len() }
    }

    /// Whether the interval says that there is a difference: it leaves out 0, and there are at least [`FEWEST`] inputs.
    pub(super) fn is_told_apart(&self) -> bool {
        let [low, high] = self.interval;
        self.inputs >= FEWEST && (low > 0.0 || high < 0.0)
    }
}

/// The mean; 0 of nothing.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The middle 95 % of the means of resampled values.
///
/// * `values`: at least one.
pub(super) fn interval(values: &[f64], rng: &mut Pcg64) -> [f64; 2] {
    interval_of_groups(&values.iter().map(|&value| (value, 1)).collect::<Vec<_>>(), rng)
}

/// The middle 95 % of the means of resampled groups.
///
/// * `groups`: of each, the sum of its values and how many they are; at least one.
fn interval_of_groups(groups: &[(f64, usize)], rng: &mut Pcg64) -> [f64; 2] {
    let mut means: Vec<f64> = (0..RESAMPLINGS)
        .map(|_| {
            let drawn = (0..groups.len()).map(|_| groups[rng.random_range(0..groups.len())]);
            let (sum, count) = drawn.fold((0.0, 0), |(a, b), (sum, count)| (a + sum, b + count));
            sum / count as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    [means[RESAMPLINGS / 40], means[RESAMPLINGS - 1 - RESAMPLINGS / 40]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_holds_the_mean_and_narrows() {
        let mut rng = Pcg64::seed_from_u64(1);
        let values = |n: usize| (0..n).map(|i| f64::from(i % 4 == 0)).collect::<Vec<_>>();
        let [few, many] = [interval(&values(40), &mut rng), interval(&values(4000), &mut rng)];
        for [low, high] in [few, many] {
            assert!(low <= 0.25 && 0.25 <= high, "{low} {high}");
        }
        // Of 40 values: two deviations of √(¼·¾/40) on either side.
        assert!((few[1] - few[0] - 0.268).abs() < 0.05, "{few:?}");
        assert!((many[1] - many[0] - 0.0268).abs() < 0.005, "{many:?}");
    }

    #[test]
    fn a_difference_is_taken_row_by_row() {
        // Hard and easy rows, each helped by the same: no doubt is left, though the sides vary.
        let off: Vec<f64> = (0..20).map(|i| f64::from(i % 5)).collect();
        let on: Vec<f64> = off.iter().map(|value| value + 0.5).collect();
        let inputs: Vec<usize> = (0..20).collect();
        let told = Difference::of(&off, &on, &inputs, 1);
        assert_eq!(told, Difference { mean: 0.5, interval: [0.5, 0.5], inputs: 20 });
        assert!(told.is_told_apart());
        let same = Difference::of(&off, &off, &inputs, 1);
        assert!(same.mean == 0.0 && !same.is_told_apart());
        // Ten rows gain and ten lose: two deviations of √(1/20) on either side of nothing.
        let mixed: Vec<f64> = off.iter().enumerate().map(|(i, v)| v + [1.0, -1.0][i % 2]).collect();
        let mixed = Difference::of(&off, &mixed, &inputs, 1);
        assert!(mixed.mean == 0.0 && !mixed.is_told_apart(), "{mixed:?}");
        let [low, high] = mixed.interval;
        assert!((low + 0.438).abs() < 0.07 && (high - 0.438).abs() < 0.07, "{mixed:?}");
    }

    #[test]
    fn questions_about_one_input_count_as_one() {
        let (off, on): (Vec<f64>, Vec<f64>) = (0..40).map(|i| (0.0, f64::from(i / 10 % 2 == 0))).unzip();
        let apart = Difference::of(&off, &on, &(0..40).collect::<Vec<_>>(), 1);
        // The same rows, ten to an input: four things are known and not forty.
        let together = Difference::of(&off, &on, &(0..40).map(|i| i / 10).collect::<Vec<_>>(), 1);
        assert_eq!((apart.mean, together.mean), (0.5, 0.5));
        assert_eq!((apart.inputs, together.inputs), (40, 4));
        assert_eq!(together.interval, [0.0, 1.0]);
        assert!(apart.interval[0] > 0.3 && apart.interval[1] < 0.7, "{apart:?}");
        // Groups of 3 and 1: the mean is over rows.
        let uneven = Difference::of(&[0.0; 4], &[1.0, 1.0, 1.0, 0.0], &[7, 7, 7, 2], 1);
        assert_eq!((uneven.mean, uneven.interval), (0.75, [0.0, 1.0]));
    }

    #[test]
    fn a_handful_tells_nothing() {
        let few = Difference::of(&[0.0; 9], &[1.0; 9], &(0..9).collect::<Vec<_>>(), 1);
        assert!(few.interval == [1.0, 1.0] && !few.is_told_apart());
        assert!(Difference::of(&[0.0; 10], &[1.0; 10], &(0..10).collect::<Vec<_>>(), 1).is_told_apart());
    }
}
