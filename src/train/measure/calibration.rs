//! Whether a classifier is right as often as it says that it is.
//!
//! ```text
//! confidence = probability of the best class, in (0, 1]
//! bin m of M holds confidences in ((m − 1)/M, m/M]
//! ECE = Σ n_m/n · |accuracy_m − mean confidence_m|
//! ```
//!
//! Source: Guo et al., *On Calibration of Modern Neural Networks* (ICML 2017), equations 2 and 3.

/// Bins of equal width, as the published comparisons have them.
const BINS: usize = 15;

/// Confidences and what became of them, by bin.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    bins: Vec<Bin>,
}

/// What fell into one bin.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bin {
    /// Pictures.
    pub count: u64,
    /// Of which the best class was the right one.
    pub right: u64,
    /// Sum of their confidences.
    pub confidence: f64,
}

impl Bin {
    /// Mean confidence and accuracy; nothing of an empty bin.
    pub fn means(&self) -> Option<(f64, f64)> {
        let count = self.count as f64;
        (self.count > 0).then(|| (self.confidence / count, self.right as f64 / count))
    }
}

impl Default for Calibration {
    fn default() -> Self {
        Calibration { bins: vec![Bin::default(); BINS] }
    }
}

impl Calibration {
    /// Takes one picture.
    ///
    /// * `confidence`: from 0 to 1.
    pub fn add(&mut self, confidence: f64, is_right: bool) {
        let upper = (confidence * self.bins.len() as f64).ceil() as usize;
        let at = upper.saturating_sub(1).min(self.bins.len() - 1);
        let bin = &mut self.bins[at];
        bin.count += 1;
        bin.right += u64::from(is_right);
        bin.confidence += confidence;
    }

    /// The bins, from the least confidence up.
    pub fn bins(&self) -> &[Bin] {
        &self.bins
    }

    /// The expected calibration error, from 0 (right as often as it says) to 1; nothing without pictures.
    pub fn error(&self) -> Option<f64> {
        let all: u64 = self.bins.iter().map(|bin| bin.count).sum();
        let gap = |bin: &Bin| {
            let (confidence, accuracy) = bin.means().unwrap_or_default();
            bin.count as f64 * (accuracy - confidence).abs()
        };
        (all > 0).then(|| self.bins.iter().map(gap).sum::<f64>() / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pictures: &[(f64, bool)]) -> Calibration {
        let mut calibration = Calibration::default();
        pictures.iter().for_each(|&(confidence, is_right)| calibration.add(confidence, is_right));
        calibration
    }

    #[test]
    fn the_error_is_the_one_computed_by_hand() {
        // 0.95, 0.97 and 0.99 share the bin above 14/15; mean 0.97, accuracy ⅔. 0.50 is in the eighth alone, and right.
        let calibration = of(&[(0.95, true), (0.97, true), (0.99, false), (0.5, true)]);
        let expected = 0.75 * (0.97 - 2.0 / 3.0) + 0.25 * 0.5;
        assert!((calibration.error().unwrap() - expected).abs() < 1e-12, "{:?}", calibration.error());
        let counts: Vec<u64> = calibration.bins().iter().map(|bin| bin.count).collect();
        assert_eq!(counts, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3]);
        // One that is right four times of five at 0.8 says what is so.
        let good = of(&[(0.8, true), (0.8, true), (0.8, true), (0.8, true), (0.8, false)]);
        assert!(good.error().unwrap() < 1e-12);
        assert_eq!(of(&[]).error(), None);
    }

    #[test]
    fn a_bin_has_its_upper_edge_and_not_its_lower() {
        let at = |confidence: f64| of(&[(confidence, true)]).bins().iter().position(|bin| bin.count == 1);
        assert_eq!([at(0.0), at(1.0), at(0.2), at(0.2 + 1e-9)], [Some(0), Some(14), Some(2), Some(3)]);
    }

    #[test]
    fn too_sure_in_one_bin_and_not_enough_in_another_do_not_cancel() {
        let calibration = of(&[(0.9, false), (0.1, true)]);
        assert!((calibration.error().unwrap() - 0.9).abs() < 1e-12);
    }
}
