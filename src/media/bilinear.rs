//! Bilinear resizing along one axis: half-pixel centres, no anti-aliasing, edges held.
//!
//! Source: PyTorch, `interpolate(mode="bilinear", align_corners=False)`.

/// The two samples an output lies between.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tap {
    pub(super) low: usize,
    pub(super) high: usize,
    /// Share of the higher one.
    share: f32,
}

impl Tap {
    /// Between two values.
    pub(super) fn mix(&self, low: f32, high: f32) -> f32 {
        low * (1.0 - self.share) + high * self.share
    }

    /// Of a row of samples.
    pub(super) fn of(&self, row: &[f32]) -> f32 {
        self.mix(row[self.low], row[self.high])
    }
}

/// The taps of every output when `from` samples become `to`.
pub(super) fn taps(from: usize, to: usize) -> impl Iterator<Item = Tap> {
    let scale = from as f32 / to as f32;
    (0..to).map(move |o| {
        let at = ((o as f32 + 0.5) * scale - 0.5).max(0.0);
        let low = (at as usize).min(from - 1);
        Tap { low, high: (low + 1).min(from - 1), share: at - low as f32 }
    })
}
