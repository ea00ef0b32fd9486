//! Frames of a film become clips and crops, `[15, 3, 2, S, S]`.
//!
//! ```text
//! film ─► 5 clips of 2 s, evenly spread ─► first and last frame of each ─► short side to S ─► 3 crops ─► normalise
//! ```
//!
//! A film shorter than a clip gives the same clip five times; one of a single frame, that frame twice. The crops lie along the
//! longer side, at its beginning, middle and end; the other side is centred. Views are in the order of clips, then crops.
//!
//! Values are resized as floats, bilinearly and without anti-aliasing: another filter than that of pictures.
//!
//! Decoding is not done here: [`picks`] says which frames are needed, and whoever has them calls [`prepare`].
//!
//! Source: ImageBind, `imagebind/data.py`, `load_and_transform_video_data`; pytorchvideo, `UniformTemporalSubsample`,
//! `ShortSideScale`.

use super::Error;
use super::audio::clips::frame_ranges;
use super::bilinear::{Tap, taps};
use super::image::{MEAN, Rgb, STD};
use crate::types::Fingerprint;

/// Clips of a film, and the length of each in seconds.
const CLIPS: usize = 5;
const CLIP_SECONDS: u32 = 2;
/// Crops of a clip.
const CROPS: usize = 3;
/// Views of a film: `CLIPS · CROPS`.
pub const VIEWS: usize = CLIPS * CROPS;
/// Changes whenever a rule in this file changes a number.
const RULES_VERSION: u32 = 1;

/// Identifies everything here that changes a number.
pub fn fingerprint(side: usize) -> Fingerprint {
    let rules = format!(
        "video rules {RULES_VERSION}; side {side}; {CLIPS} clips of {CLIP_SECONDS} s; {CROPS} crops; mean {MEAN:?}; std {STD:?}"
    );
    Fingerprint::of(rules.as_bytes())
}

/// The frames that are needed of a film: first and last of each clip, in order.
///
/// * `frames`: how many there are, at least 1. `rate`: of them a second, above 0.
pub fn picks(frames: usize, rate: f64) -> [[usize; 2]; CLIPS] {
    let ranges = frame_ranges(frames, rate, CLIPS, CLIP_SECONDS);
    std::array::from_fn(|clip| {
        let range = &ranges[clip];
        [range.start, range.end.saturating_sub(1).max(range.start)]
    })
}

/// Prepares the frames of each clip: `[15, 3, 2, S, S]`.
///
/// # Errors
/// [`Error::Film`] for frames of different size.
pub fn prepare(clips: &[[&Rgb; 2]; CLIPS], side: usize) -> Result<Vec<f32>, Error> {
    let first = clips[0][0];
    let same = |frame: &&Rgb| (frame.width, frame.height) == (first.width, first.height);
    if let Some(other) = clips.iter().flatten().find(|frame| !same(frame)) {
        return Err(Error::Film(format!(
            "its frames are of different size, {}×{} and {}×{}",
            first.width, first.height, other.width, other.height
        )));
    }
    let views = Views::new(first.width, first.height, side);
    let size = 3 * 2 * side * side;
    let mut values = vec![0.0; VIEWS * size];
    for (clip, into) in clips.iter().zip(values.chunks_exact_mut(CROPS * size)) {
        for (crop, into) in into.chunks_exact_mut(size).enumerate() {
            for (channel, into) in into.chunks_exact_mut(2 * side * side).enumerate() {
                for (frame, into) in clip.iter().zip(into.chunks_exact_mut(side * side)) {
                    views.write(frame, channel, crop, into);
                }
            }
        }
    }
    Ok(values)
}

/// Where the crops of a film lie.
struct Views {
    rows: Vec<Tap>,
    columns: Vec<Tap>,
    /// Row and column of each crop in the resized frame.
    corners: [(usize, usize); CROPS],
    side: usize,
}

impl Views {
    fn new(width: usize, height: usize, side: usize) -> Self {
        let longer = |long: usize, short: usize| (long as f64 / short as f64 * side as f64).floor() as usize;
        let (new_width, new_height) = match width < height {
            true => (side, longer(height, width)),
            false => (longer(width, height), side),
        };
        let middle = |size: usize| (size - side).div_ceil(2);
        let along = |size: usize| [0, middle(size), size - side];
        let corners = match new_height > new_width {
            true => along(new_height).map(|row| (row, middle(new_width))),
            false => along(new_width).map(|column| (middle(new_height), column)),
        };
        Views {
            rows: taps(height, new_height).collect(),
            columns: taps(width, new_width).collect(),
            corners,
            side,
        }
    }

    /// One channel of one crop of a frame.
    fn write(&self, frame: &Rgb, channel: usize, crop: usize, into: &mut [f32]) {
        let (top, left) = self.corners[crop];
        let value = |row: usize, column: usize| {
            f32::from(frame.data[(row * frame.width + column) * 3 + channel]) / 255.0
        };
        let rows = self.rows[top..][..self.side].iter();
        for (row, into) in rows.zip(into.chunks_exact_mut(self.side)) {
            for (column, into) in self.columns[left..][..self.side].iter().zip(into) {
                let low = column.mix(value(row.low, column.low), value(row.low, column.high));
                let high = column.mix(value(row.high, column.low), value(row.high, column.high));
                *into = (row.mix(low, high) - MEAN[channel]) / STD[channel];
            }
        }
    }
}
