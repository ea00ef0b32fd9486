//! Sums that processors are quick at: eight beside each other, folded in pairs at the end.
//!
//! The order of additions is fixed, so it is the same with whatever instructions there are.

/// Numbers that are added beside each other.
pub(super) const LANES: usize = 8;

/// The sum of the lanes, three additions deep.
#[inline(always)]
pub(super) fn folded(lanes: [f32; LANES]) -> f32 {
    let four: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// The sum of many.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in whole {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    folded(lanes) + rest.iter().sum::<f32>()
}

/// The sum of many in f64.
#[inline(always)]
pub(super) fn total(values: &[f32]) -> f64 {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0f64; LANES];
    for chunk in whole {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(*value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|value| f64::from(*value)).sum::<f64>()
}

/// The sum of products in f64, of as many as both have.
#[inline(always)]
pub(super) fn dot(values: &[f32], weights: &[f64]) -> f64 {
    let (a, a_rest) = values[..values.len().min(weights.len())].as_chunks::<LANES>();
    let (b, b_rest) = weights[..values.len().min(weights.len())].as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += f64::from(*a) * b;
        }
    }
    lanes.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(*a) * b).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_summed_whole() {
        for length in 0..40usize {
            let values: Vec<f32> = (0..length).map(|i| i as f32 + 0.5).collect();
            let weights: Vec<f64> = (0..length).map(|i| 3.0 - i as f64).collect();
            assert_eq!(sum(&values), values.iter().sum::<f32>());
            assert_eq!(total(&values), values.iter().map(|value| f64::from(*value)).sum::<f64>());
            let exact: f64 = values.iter().zip(&weights).map(|(a, b)| f64::from(*a) * b).sum();
            assert_eq!(dot(&values, &weights), exact);
        }
    }
}
