//! Where clips begin and end, by the reference's exact arithmetic.
//!
//! Durations are f64, and everything after them is exact there (Python's fractions). An f64 is a whole number over a power of
//! two, so 128-bit integers do it. Plain f64 arithmetic is off by one sample in half of all files.
//!
//! Source: ImageBind, `imagebind/data.py`, `get_clip_timepoints`; pytorchvideo, `ConstantClipsPerVideoSampler`.

use std::ops::Range;

/// Sample ranges of `clips` clips of `seconds` each, evenly spread over a signal of `samples` samples, `rate` a second. A
/// signal that is not longer than a clip gives its whole length every time.
pub fn sample_ranges(samples: usize, rate: u32, clips: usize, seconds: u32) -> Vec<Range<usize>> {
    let duration = samples as f64 / f64::from(rate);
    let slack = (duration - f64::from(seconds)).max(0.0);
    let steps = clips.saturating_sub(1).max(1) as u128;
    (0..clips as u128)
        .map(|clip| {
            let start = floor_product(slack, clip * u128::from(rate), steps);
            let end = (start + seconds as usize * rate as usize).min(samples);
            start.min(end)..end
        })
        .collect()
}

/// Frame ranges of `clips` clips of `seconds` each, evenly spread over a film of `frames` frames, `rate` a second.
pub fn frame_ranges(frames: usize, rate: f64, clips: usize, seconds: u32) -> Vec<Range<usize>> {
    let duration = frames as f64 / rate;
    let slack = (duration - f64::from(seconds)).max(0.0);
    let steps = clips.saturating_sub(1).max(1) as f64;
    (0..clips)
        .map(|clip| {
            // Both ends are exact fractions, rounded once: `steps` is a power of two for the reference's five clips.
            let start = (rate * (slack / steps * clip as f64)).ceil();
            let end = (rate * (slack / steps).mul_add(clip as f64, f64::from(seconds))).ceil();
            let end = (end as usize).min(frames);
            (start as usize).min(end.saturating_sub(1))..end
        })
        .collect()
}

/// `⌊value · factor / divisor⌋`, exactly, for a value of at least 0.
fn floor_product(value: f64, factor: u128, divisor: u128) -> usize {
    let bits = value.to_bits();
    let (exponent, fraction) = ((bits >> 52 & 0x7ff) as i32, bits & ((1 << 52) - 1));
    let (mantissa, exponent) = match exponent {
        0 => (fraction, -1074),
        _ => (fraction | 1 << 52, exponent - 1075),
    };
    let product = u128::from(mantissa) * factor;
    let scaled = match u32::try_from(exponent) {
        Ok(up) => product.checked_shl(up).unwrap_or(u128::MAX) / divisor,
        // `⌊⌊a / 2^k⌋ / d⌋ = ⌊a / (2^k · d)⌋`
        Err(_) => product.checked_shr(exponent.unsigned_abs()).unwrap_or(0) / divisor,
    };
    usize::try_from(scaled).unwrap_or(usize::MAX)
}
