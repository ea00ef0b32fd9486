//! Learned positions of a square grid, resized for pictures of another size: bicubic as PyTorch's `interpolate` has it, half-pixel
//! centres, edges clamped, no anti-aliasing.

/// The cubic of PyTorch's `interpolate`.
const CUBIC_A: f64 = -0.75;

/// Bicubic resize of `[from, from, width]` to `[to, to, width]`.
pub(super) fn resized(grid: &[f32], from: usize, to: usize, width: usize) -> Vec<f32> {
    let taps: Vec<[(usize, f64); 4]> = (0..to).map(|o| cubic_taps(o, from, to)).collect();
    let mut resized = Vec::with_capacity(to * to * width);
    for vertical in &taps {
        for horizontal in &taps {
            resized.extend((0..width).map(|c| {
                let row = |y: usize| -> f64 {
                    horizontal.iter().map(|&(x, wx)| wx * f64::from(grid[(y * from + x) * width + c])).sum()
                };
                vertical.iter().map(|&(y, wy)| wy * row(y)).sum::<f64>() as f32
            }));
        }
    }
    resized
}

/// Source positions and weights of output `o` when `from` samples become `to`.
fn cubic_taps(o: usize, from: usize, to: usize) -> [(usize, f64); 4] {
    let x = (o as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    let (floor, t) = (x.floor(), x - x.floor());
    let weight = |d: f64| {
        let d = d.abs();
        if d <= 1.0 {
            (CUBIC_A + 2.0) * d.powi(3) - (CUBIC_A + 3.0) * d.powi(2) + 1.0
        } else if d < 2.0 {
            CUBIC_A * d.powi(3) - 5.0 * CUBIC_A * d.powi(2) + 8.0 * CUBIC_A * d - 4.0 * CUBIC_A
        } else {
            0.0
        }
    };
    [-1.0, 0.0, 1.0, 2.0].map(|offset| {
        let at = (floor + offset).clamp(0.0, (from - 1) as f64) as usize;
        (at, weight(t - offset))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resizing_to_the_same_grid_changes_nothing() {
        let grid: Vec<f32> = (0..18).map(|v| v as f32).collect();
        assert_eq!(resized(&grid, 3, 3, 2), grid);
    }

    #[test]
    fn taps_sum_to_one() {
        for (from, to) in [(4, 7), (7, 4), (16, 20)] {
            for o in 0..to {
                let sum: f64 = cubic_taps(o, from, to).iter().map(|tap| tap.1).sum();
                assert!((sum - 1.0).abs() < 1e-12);
            }
        }
    }
}
