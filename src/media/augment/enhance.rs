//! Operations on contrasts: a picture is mixed with one that lacks them, or moved away from it.
//!
//! ```text
//! Color       grey picture ───────┐
//! Contrast    its mean grey ──────┤
//! Brightness  black ──────────────┼─► without + factor · (picture − without), held to bytes; factor 1 changes nothing
//! Sharpness   smoothed picture ───┘
//! ```
//!
//! Source: Pillow, `ImageEnhance.py`, `src/libImaging/Blend.c`, `Convert.c`, `Filter.c`.

use crate::media::Rgb;

/// More or less colour.
pub(super) fn color(picture: Rgb, factor: f64) -> Rgb {
    let without = picture.data.as_chunks::<3>().0.iter().flat_map(|&pixel| [grey(pixel); 3]).collect();
    mixed(picture, without, factor)
}

/// More or less contrast.
pub(super) fn contrast(picture: Rgb, factor: f64) -> Rgb {
    let pixels = picture.data.as_chunks::<3>().0;
    let sum: u64 = pixels.iter().map(|&pixel| u64::from(grey(pixel))).sum();
    let mean = (sum as f64 / pixels.len().max(1) as f64 + 0.5) as u8;
    let without = vec![mean; picture.data.len()];
    mixed(picture, without, factor)
}

/// Lighter or darker.
pub(super) fn brightness(picture: Rgb, factor: f64) -> Rgb {
    let without = vec![0; picture.data.len()];
    mixed(picture, without, factor)
}

/// Sharper or softer.
pub(super) fn sharpness(picture: Rgb, factor: f64) -> Rgb {
    let without = smoothed(&picture);
    mixed(picture, without, factor)
}

/// Luma, ITU-R 601, with 16 fractional bits.
fn grey([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// `without + factor · (picture − without)`, cut to whole numbers and held to bytes.
fn mixed(mut picture: Rgb, without: Vec<u8>, factor: f64) -> Rgb {
    let factor = factor as f32;
    for (value, without) in picture.data.iter_mut().zip(without) {
        let without = f32::from(without);
        *value = (without + factor * (f32::from(*value) - without)) as u8;
    }
    picture
}

/// Each pixel as 5/13 of itself and 1/13 of each of its eight neighbours. The border stays as it is.
fn smoothed(picture: &Rgb) -> Vec<u8> {
    const MIDDLE: f32 = 5.0 / 13.0;
    const AROUND: f32 = 1.0 / 13.0;
    let stride = picture.width * 3;
    let mut smooth = picture.data.clone();
    if picture.width < 3 || picture.height < 3 {
        return smooth;
    }
    let rows: Vec<&[u8]> = picture.data.chunks_exact(stride).collect();
    for (rows, out) in rows.windows(3).zip(smooth.chunks_exact_mut(stride).skip(1)) {
        for at in 3..stride - 3 {
            // Added up in Pillow's order, lowest row first: sums of f32 depend on it.
            let line = |row: &[u8], middle: f32| {
                let [left, here, right] = [row[at - 3], row[at], row[at + 3]].map(f32::from);
                left * AROUND + here * middle + right * AROUND
            };
            let sum = 0.5 + line(rows[2], AROUND) + line(rows[1], MIDDLE) + line(rows[0], AROUND);
            out[at] = sum as u8;
        }
    }
    smooth
}
