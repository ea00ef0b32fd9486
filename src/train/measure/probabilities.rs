//! Logits into probabilities, and the best of them.

use std::cmp::Ordering;

/// Probabilities of classes: `exp(lᵢ) / Σ exp(lⱼ)`, in f64.
///
/// * `logits`: `[C]`, finite.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) - f64::from(most)).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// The `count` best classes with their values, best first; of equal ones the lower number first.
pub fn best(values: &[f64], count: usize) -> Vec<(usize, f64)> {
    let mut all: Vec<(usize, f64)> = values.iter().copied().enumerate().collect();
    let order = |a: &(usize, f64), b: &(usize, f64)| match b.1.total_cmp(&a.1) {
        Ordering::Equal => a.0.cmp(&b.0),
        other => other,
    };
    if count < all.len() {
        all.select_nth_unstable_by(count, order);
        all.truncate(count);
    }
    all.sort_unstable_by(order);
    all
}

/// The place of a class among all, best first: 0 is the best. The order is that of [`best`].
///
/// * `class`: below the number of values.
pub fn place(values: &[f64], class: usize) -> usize {
    let own = values[class];
    let before = |&(other, value): &(usize, &f64)| match value.total_cmp(&own) {
        Ordering::Greater => true,
        Ordering::Equal => other < class,
        Ordering::Less => false,
    };
    values.iter().enumerate().filter(before).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_become_shares_of_their_powers() {
        // ln 1, ln 2 and ln 5: eighths.
        let logits = [0.0, 2f32.ln(), 5f32.ln()];
        for shift in [0.0, 80.0, -300.0, 3e37] {
            let probabilities = softmax(&logits.map(|logit| logit + shift));
            assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{shift}");
            if shift.abs() < 1.0 {
                let expected = [0.125, 0.25, 0.625];
                let near = probabilities.iter().zip(expected).all(|(p, e)| (p - e).abs() < 1e-7);
                assert!(near, "{probabilities:?}");
            }
        }
    }

    #[test]
    fn places_and_the_best_are_of_one_order() {
        let values = [0.1, 0.4, 0.1, 0.4, 0.0];
        assert_eq!(best(&values, 3), [(1, 0.4), (3, 0.4), (0, 0.1)]);
        assert_eq!(best(&values, 9).len(), 5);
        assert!(best(&values, 0).is_empty());
        let places: Vec<usize> = (0..5).map(|class| place(&values, class)).collect();
        assert_eq!(places, [2, 0, 3, 1, 4]);
        for (at, (class, _)) in best(&values, 5).into_iter().enumerate() {
            assert_eq!(place(&values, class), at);
        }
    }
}
