//! Operations on values: each channel goes through a table of 256 places.
//!
//! Source: Pillow, `ImageOps.py`; timm 0.5.4, `auto_augment.py`, for `solarize_add`.

use crate::media::Rgb;

/// What each value of a channel becomes.
type Table = [u8; 256];

/// What nothing changes by.
const SAME: Table = {
    let mut table = [0; 256];
    let mut value = 0;
    while value < 256 {
        table[value] = value as u8;
        value += 1;
    }
    table
};

/// Sends each channel through its table.
fn through(mut picture: Rgb, tables: &[Table; 3]) -> Rgb {
    for pixel in picture.data.as_chunks_mut::<3>().0 {
        for (value, table) in pixel.iter_mut().zip(tables) {
            *value = table[usize::from(*value)];
        }
    }
    picture
}

/// The same for all channels.
fn each(picture: Rgb, becomes: impl Fn(u8) -> u8) -> Rgb {
    through(picture, &[SAME.map(becomes); 3])
}

/// How many values of each kind a channel has.
fn histogram(picture: &Rgb, channel: usize) -> [u64; 256] {
    let mut counts = [0; 256];
    picture.data.as_chunks::<3>().0.iter().for_each(|pixel| counts[usize::from(pixel[channel])] += 1);
    counts
}

/// Stretches each channel so that its darkest value becomes 0 and its lightest 255.
pub(super) fn auto_contrast(picture: Rgb) -> Rgb {
    let tables = std::array::from_fn(|channel| {
        let counts = histogram(&picture, channel);
        let there = |value: &usize| counts[*value] > 0;
        match ((0..256).find(there), (0..256).rfind(there)) {
            (Some(low), Some(high)) if high > low => {
                let scale = 255.0 / (high - low) as f64;
                let offset = -(low as f64) * scale;
                // Cut to a whole number, and held to a byte.
                SAME.map(|value| (f64::from(value) * scale + offset) as u8)
            }
            _ => SAME,
        }
    });
    through(picture, &tables)
}

/// Spreads the values of each channel so that all are about as frequent.
pub(super) fn equalize(picture: Rgb) -> Rgb {
    let tables = std::array::from_fn(|channel| {
        let counts = histogram(&picture, channel);
        let last = counts.iter().rfind(|&&count| count > 0).copied().unwrap_or_default();
        let step = (counts.iter().sum::<u64>() - last) / 255;
        if step == 0 {
            return SAME;
        }
        let mut sum = step / 2;
        counts.map(|count| {
            let value = (sum / step).min(255) as u8;
            sum += count;
            value
        })
    });
    through(picture, &tables)
}

/// Light becomes dark.
pub(super) fn invert(picture: Rgb) -> Rgb {
    each(picture, |value| 255 - value)
}

/// Keeps the upper bits; of none, black is left.
pub(super) fn posterize(picture: Rgb, bits: u32) -> Rgb {
    let mask = 0xff_u8.checked_shl(8 - bits.min(8)).unwrap_or(0);
    each(picture, |value| value & mask)
}

/// Inverts values from the threshold on.
pub(super) fn solarize(picture: Rgb, threshold: u32) -> Rgb {
    each(picture, |value| if u32::from(value) < threshold { value } else { 255 - value })
}

/// Makes values of the darker half lighter.
pub(super) fn solarize_add(picture: Rgb, add: u32) -> Rgb {
    each(picture, |value| match value < 128 {
        true => (u32::from(value).saturating_add(add)).min(255) as u8,
        false => value,
    })
}
