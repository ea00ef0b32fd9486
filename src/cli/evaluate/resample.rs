//! Means, and how sure they are: the middle 95 % of the means of resampled values.
//!
//! Source: Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 13.

use rand::RngExt;
use rand_pcg::Pcg64;

/// Resamplings of an interval.
const RESAMPLINGS: usize = 2000;

/// The mean; 0 of nothing.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The middle 95 % of the means of resampled values.
///
/// * `values`: at least one.
pub(super) fn interval(values: &[f64], rng: &mut Pcg64) -> [f64; 2] {
    let mut means: Vec<f64> = (0..RESAMPLINGS)
        .map(|_| {
            (0..values.len()).map(|_| values[rng.random_range(0..values.len())]).sum::<f64>()
                / values.len() as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    [means[RESAMPLINGS / 40], means[RESAMPLINGS - 1 - RESAMPLINGS / 40]]
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

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
}
