//! From the grid of patches to pixels.
//!
//! ```text
//! at = (pixel + ½)·scale − ½, held within the grid      between patch ⌊at⌋ and the next, by the rest of `at`; across, then down
//!
//! logits of a pixel  l = Σ wᵢ·gᵢ, of the four patches around it
//! loss               −1/N · Σ log softmax(l)[label]      over the N labelled pixels of a batch
//! its gradient       ∂/∂gᵢ = 1/N · Σ wᵢ·(softmax(l) − [label])
//! ```
//! Labels are from 1 on; 0 is none, and counts nowhere.
//!
//! Source: PyTorch, `interpolate(mode="bilinear", align_corners=False)`.

use crate::media::LabelMap;

/// Logits of a square of patches.
pub(super) struct Grid {
    /// Patches of a side, g.
    pub(super) side: usize,
    /// C.
    pub(super) classes: usize,
    /// `[g, g, C]`
    pub(super) logits: Vec<f32>,
}

/// The two patches that a pixel lies between, and the share of the second.
#[derive(Clone, Copy)]
struct Between {
    low: usize,
    high: usize,
    share: f32,
}

impl Between {
    /// * `at`: in patches, 0 in the middle of the first. `side`: how many there are.
    fn new(at: f64, side: usize) -> Self {
        let at = at.clamp(0.0, (side - 1) as f64);
        let low = at as usize;
        Between { low, high: (low + 1).min(side - 1), share: (at - low as f64) as f32 }
    }

    /// Adds to `sum` what lies between two of the rows, each as long as it.
    fn blend(&self, rows: &[f32], sum: &mut [f32]) {
        let [low, high] = [self.low, self.high].map(|row| &rows[row * sum.len()..(row + 1) * sum.len()]);
        for (sum, (low, high)) in sum.iter_mut().zip(low.iter().zip(high)) {
            *sum += low * (1.0 - self.share) + high * self.share;
        }
    }

    /// Gives back to the two rows what came out of them.
    fn share_out(&self, rows: &mut [f32], given: &[f32]) {
        for (row, share) in [(self.low, 1.0 - self.share), (self.high, self.share)] {
            let row = &mut rows[row * given.len()..(row + 1) * given.len()];
            row.iter_mut().zip(given).for_each(|(sum, given)| *sum += share * given);
        }
    }
}

/// The loss of a picture's labelled pixels, and its gradient with respect to the grid's logits.
///
/// * `map`: `S·S` labels, S a multiple of the grid's side. `share`: what a pixel counts, 1/N.
pub(super) fn loss(grid: &Grid, map: &[u8], share: f64) -> (f64, Vec<f32>) {
    let &Grid { side, classes, ref logits } = grid;
    let pixels = map.len().isqrt();
    let scale = side as f64 / pixels as f64;
    let taps: Vec<Between> =
        (0..pixels).map(|o| Between::new((o as f64 + 0.5) * scale - 0.5, side)).collect();
    let row_length = side * classes;
    let (mut sum, mut gradient) = (0.0, vec![0.0; logits.len()]);
    let mut here = vec![0.0; classes];
    for (down, labels) in taps.iter().zip(map.chunks_exact(pixels.max(1))) {
        if labels.iter().all(|&label| label == 0) {
            continue;
        }
        let (mut row, mut of_row) = (vec![0.0; row_length], vec![0.0; row_length]);
        down.blend(logits, &mut row);
        for (across, &label) in taps.iter().zip(labels) {
            let Some(class) = usize::from(label).checked_sub(1).filter(|&class| class < classes) else {
                continue;
            };
            here.fill(0.0);
            across.blend(&row, &mut here);
            let most = here.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let of_label = here[class] - most;
            here.iter_mut().for_each(|value| *value = (*value - most).exp());
            let total: f64 = here.iter().map(|&power| f64::from(power)).sum();
            sum += total.ln() - f64::from(of_label);
            let factor = (share / total) as f32;
            here.iter_mut().for_each(|power| *power *= factor);
            here[class] -= share as f32;
            across.share_out(&mut of_row, &here);
        }
        down.share_out(&mut gradient, &of_row);
    }
    (sum * share, gradient)
}

/// The best class of every pixel, from 1 on; of equal ones the first. Where windows overlap their logits are summed, which names the same
/// class as their mean.
///
/// * `grids`: of windows of one size; together they cover the picture. `corners`: left and top of each, in pixels of the picture as it
///   was cut. `patch`: pixels of a patch there. `cut`: width and height of that picture. `size`: width and height of the labels.
pub(super) fn labels(
    grids: &[Grid],
    corners: &[[usize; 2]],
    patch: usize,
    cut: [usize; 2],
    size: [usize; 2],
) -> LabelMap {
    let [width, height] = size;
    // In pixels of the picture as it was cut, from its left or upper border to a pixel's middle.
    let middles = |axis: usize| -> Vec<f64> {
        let scale = cut[axis] as f64 / size[axis] as f64;
        (0..size[axis]).map(|o| (o as f64 + 0.5) * scale).collect()
    };
    let (across, down) = (middles(0), middles(1));
    let within = |at: f64, corner: usize, side: usize| {
        let at = at - corner as f64;
        (0.0..=(side * patch) as f64).contains(&at).then(|| Between::new(at / patch as f64 - 0.5, side))
    };
    let mut labels = Vec::with_capacity(width * height);
    let mut here = Vec::new();
    for y in down {
        let rows: Vec<Option<Vec<f32>>> = grids
            .iter()
            .zip(corners)
            .map(|(grid, corner)| {
                let between = within(y, corner[1], grid.side)?;
                let mut row = vec![0.0; grid.side * grid.classes];
                between.blend(&grid.logits, &mut row);
                Some(row)
            })
            .collect();
        for &x in &across {
            here.clear();
            for ((grid, corner), row) in grids.iter().zip(corners).zip(&rows) {
                here.resize(grid.classes, 0.0f32);
                let Some((row, between)) = row.as_ref().zip(within(x, corner[0], grid.side)) else {
                    continue;
                };
                between.blend(row, &mut here);
            }
            let mut best = 0;
            for (class, value) in here.iter().enumerate() {
                // A number that is none is never the best.
                if *value > here[best] || here[best].is_nan() {
                    best = class;
                }
            }
            labels.push(best as u8 + 1);
        }
    }
    LabelMap { width, height, labels }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        (0..count as u32).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 250.0 - 2.0).collect()
    }

    /// The slow way: every pixel's logits from all patches, by how much of each it is.
    fn naive(grid: &Grid, map: &[u8], share: f64) -> f64 {
        let pixels = map.len().isqrt();
        let scale = grid.side as f64 / pixels as f64;
        let weight = |pixel: usize, patch: usize| {
            let at = ((pixel as f64 + 0.5) * scale - 0.5).clamp(0.0, (grid.side - 1) as f64);
            (1.0 - (at - patch as f64).abs()).max(0.0)
        };
        let mut sum = 0.0;
        for (at, &label) in map.iter().enumerate().filter(|(_, label)| **label > 0) {
            let mut logits = vec![0.0; grid.classes];
            for patch in 0..grid.side * grid.side {
                let w = weight(at / pixels, patch / grid.side) * weight(at % pixels, patch % grid.side);
                for (class, logit) in logits.iter_mut().enumerate() {
                    *logit += w * f64::from(grid.logits[patch * grid.classes + class]);
                }
            }
            let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
            sum += total.ln() - logits[usize::from(label) - 1];
        }
        sum * share
    }

    #[test]
    fn the_loss_is_that_of_every_pixel_and_the_gradient_its_slope() {
        let (side, classes) = (3, 4);
        let grid = |logits| Grid { side, classes, logits };
        let map: Vec<u8> = (0..144u32).map(|i| (i * i % 5) as u8).collect();
        let share = 1.0 / map.iter().filter(|label| **label > 0).count() as f64;
        let first = numbers(side * side * classes, 1);
        let (value, gradient) = loss(&grid(first.clone()), &map, share);
        assert!((value - naive(&grid(first.clone()), &map, share)).abs() < 1e-6, "{value}");
        for i in 0..first.len() {
            let at = |step: f32| {
                let mut logits = first.clone();
                logits[i] += step;
                naive(&grid(logits), &map, share)
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((slope - f64::from(gradient[i])).abs() < 1e-5, "{i}: {slope} {}", gradient[i]);
        }
        // A picture without labels has no part in it.
        let (none, flat) = loss(&grid(first), &[0; 144], 1.0);
        assert!(none == 0.0 && flat.iter().all(|&g| g == 0.0));
    }

    #[test]
    fn pixels_have_the_class_of_the_patches_around_them() {
        // Two patches a side: the left ones are class 2, the right ones class 1; sure by 4 and by 2.
        let logits = [0.0, 4.0, 2.0, 0.0].repeat(2);
        let grid = Grid { side: 2, classes: 2, logits };
        let map = labels(&[grid], &[[0, 0]], 4, [8, 8], [8, 8]);
        // Between the middles at 2 and 6: class 2 where 4·(1 − s) > 2·s, s < 2/3, at < 2 + 8/3.
        assert_eq!(map.labels[..8], [2, 2, 2, 2, 2, 1, 1, 1]);
        assert_eq!((map.width, map.height, map.labels.len()), (8, 8, 64));
    }

    #[test]
    fn windows_are_averaged_where_they_overlap() {
        // Each of one patch: sure of its class everywhere. The second reaches from 2 to 6 of 6.
        let of = |logits: [f32; 2]| Grid { side: 1, classes: 2, logits: logits.to_vec() };
        let map = labels(&[of([3.0, 0.0]), of([0.0, 2.0])], &[[0, 0], [2, 0]], 4, [6, 4], [6, 4]);
        assert_eq!(map.labels[..6], [1, 1, 1, 1, 2, 2]);
        // Twice as large labels are of the same places.
        let map = labels(&[of([3.0, 0.0]), of([0.0, 2.0])], &[[0, 0], [2, 0]], 4, [6, 4], [12, 2]);
        assert_eq!(map.labels[..12], [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2]);
    }
}
