//! Pictures whose pixels have labels: a part at some scale to train, windows that cover it all to test.
//!
//! ```text
//! train   shorter side to S·(½ … 2) ─► S×S anywhere in it; what it lacks is the mean colour, without labels ─► mirrored? ─► normalise
//! test    shorter side to S ─► squares S×S along the longer one, spread evenly, as few as cover it ─► normalise
//! ```
//! Pictures are resized as elsewhere here, bicubic; labels keep theirs: the nearest.
//!
//! Left out: changes of colour, and drawing again where one class fills most of a part.
//!
//! Source: the usual preparation of ADE20K, as in mmsegmentation's `ade20k.py`.

use rand::RngExt;
use rand_pcg::Pcg64;

use super::{MEAN, STD};
use crate::media::image::normalise;
use crate::media::resample::resample;
use crate::media::{Error, LabelMap, Rgb, Window};

/// Windows along a picture, at most: one that is longer is pressed together.
const MOST_WINDOWS: usize = 8;

/// How pictures with labels are prepared for training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Labelled {
    /// Side of the square, S.
    pub side: usize,
    /// Least and most of what the shorter side becomes, in S.
    pub scale: [f64; 2],
    /// How often it is mirrored, 0 to 1.
    pub flip: f64,
}

/// All that is drawn for one picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice {
    /// Width and height that it is resized to.
    size: [usize; 2],
    /// What is shown of that.
    part: Window,
    flip: bool,
}

impl Labelled {
    /// As usual for ADE20K.
    pub fn new(side: usize) -> Self {
        Labelled { side, scale: [0.5, 2.0], flip: 0.5 }
    }

    /// Refuses settings that no picture can be prepared with.
    ///
    /// # Errors
    /// [`Error::Option`], which names the first of them.
    pub fn validate(&self) -> Result<(), Error> {
        let [low, high] = self.scale;
        if !(low > 0.0 && low <= high && high <= 16.0) {
            let why = format!("[{low}, {high}] are not two numbers above 0 and up to 16, the lower first");
            return Err(Error::Option { name: "scale", why });
        }
        if !(0.0..=1.0).contains(&self.flip) {
            return Err(Error::Option { name: "flip", why: format!("{} is not in 0 … 1", self.flip) });
        }
        Ok(())
    }

    /// Chooses and applies: `[3, S, S]`, and `S·S` labels.
    ///
    /// * `labels`: of the picture's size.
    pub fn prepare(&self, picture: &Rgb, labels: &LabelMap, random: &mut Pcg64) -> (Vec<f32>, Vec<u8>) {
        let choice = self.choose(picture.width, picture.height, random);
        self.apply(picture, labels, &choice)
    }

    fn choose(&self, width: usize, height: usize, random: &mut Pcg64) -> Choice {
        let [low, high] = self.scale;
        let shorter = (self.side as f64 * (low + (high - low) * random.random::<f64>())).round().max(1.0);
        let size = to_shorter(width, height, shorter as usize);
        let mut place = |size: usize| match size.checked_sub(self.side) {
            None => (0, size),
            Some(surplus) => (random.random_range(0..=surplus), self.side),
        };
        let ((left, width), (top, height)) = (place(size[0]), place(size[1]));
        Choice { size, part: Window { left, top, width, height }, flip: random.random::<f64>() < self.flip }
    }

    fn apply(&self, picture: &Rgb, labels: &LabelMap, choice: &Choice) -> (Vec<f32>, Vec<u8>) {
        let (side, Choice { size, part, flip }) = (self.side, *choice);
        let mut shown = Rgb { width: part.width, height: part.height, data: resample(picture, size, part) };
        let from = |axis: usize, at: usize| {
            let length = [labels.width, labels.height][axis];
            (((at as f64 + 0.5) * length as f64 / size[axis] as f64) as usize).min(length - 1)
        };
        let columns = part.left..part.left + part.width;
        let mut columns: Vec<usize> = columns.map(|x| from(0, x)).collect();
        if flip {
            shown.mirror();
            columns.reverse();
        }
        let values = normalise(&shown.data, MEAN, STD);
        let (mut square, mut known) = (vec![0.0; 3 * side * side], vec![0; side * side]);
        let rows = square.chunks_exact_mut(side).zip(0..).filter(|(_, row)| row % side < part.height);
        for ((row, _), values) in rows.zip(values.chunks_exact(part.width.max(1))) {
            row[..part.width].copy_from_slice(values);
        }
        for (y, row) in known.chunks_exact_mut(side).take(part.height).enumerate() {
            let labels = &labels.labels[from(1, part.top + y) * labels.width..];
            row.iter_mut().zip(&columns).for_each(|(label, &x)| *label = labels[x]);
        }
        (square, known)
    }
}

/// A picture as squares.
#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    /// Width and height that it was resized to.
    pub size: [usize; 2],
    /// They cover all of it.
    pub windows: Vec<CutWindow>,
}

/// A square of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct CutWindow {
    /// Its left and top.
    pub corner: [usize; 2],
    /// `[3, S, S]`, normalised.
    pub values: Vec<f32>,
}

/// Prepares a picture for a test.
///
/// * `side`: S, at least 1.
pub fn windows(picture: &Rgb, side: usize) -> Cut {
    let size = to_shorter(picture.width, picture.height, side).map(|length| length.min(MOST_WINDOWS * side));
    let corners = |length: usize| -> Vec<usize> {
        let count = length.div_ceil(side);
        (0..count).map(|i| i * (length - side) / (count - 1).max(1)).collect()
    };
    let (across, down) = (corners(size[0]), corners(size[1]));
    let corners = down.iter().flat_map(|&top| across.iter().map(move |&left| [left, top]));
    let window = |corner: [usize; 2]| {
        let part = Window { left: corner[0], top: corner[1], width: side, height: side };
        CutWindow { corner, values: normalise(&resample(picture, size, part), MEAN, STD) }
    };
    Cut { size, windows: corners.map(window).collect() }
}

/// Width and height, when the shorter of them becomes this.
fn to_shorter(width: usize, height: usize, shorter: usize) -> [usize; 2] {
    match width <= height {
        true => [shorter, (shorter * height / width).max(1)],
        false => [(shorter * width / height).max(1), shorter],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    /// A picture whose red is its label, in bands.
    fn banded(width: usize, height: usize) -> (Rgb, LabelMap) {
        let label = |i: usize| (1 + (i % width) * 4 / width + 4 * ((i / width) * 2 / height)) as u8;
        let labels: Vec<u8> = (0..width * height).map(label).collect();
        let data = labels.iter().flat_map(|&label| [label * 20, 128, 0]).collect();
        (Rgb { width, height, data }, LabelMap { width, height, labels })
    }

    #[test]
    fn labels_go_where_their_pixels_go() {
        let mut random = Pcg64::seed_from_u64(5);
        let mut padded = 0;
        for (width, height) in [(60, 40), (40, 60), (16, 16), (200, 30)] {
            let (picture, labels) = banded(width, height);
            for _ in 0..50 {
                let (values, known) = Labelled::new(32).prepare(&picture, &labels, &mut random);
                assert_eq!((values.len(), known.len()), (3 * 1024, 1024));
                let mut off = 0;
                for (value, &label) in values.iter().zip(&known) {
                    let red = (value * STD[0] + MEAN[0]) * 255.0;
                    match label {
                        0 => {
                            assert_eq!(*value, 0.0, "what has no label is the mean");
                            padded += 1;
                        }
                        // Pixels at the border of two bands are mixed.
                        label => off += usize::from((red - f32::from(label) * 20.0).abs() > 3.0),
                    }
                }
                assert!(off < 1024 / 2, "{width}×{height}: {off}");
            }
        }
        assert!(padded > 0);
    }

    #[test]
    fn a_plain_choice_is_the_picture() {
        let (picture, labels) = banded(8, 8);
        let plain = Choice { size: [8, 8], part: Window::whole(8, 8), flip: false };
        let side = Labelled::new(8);
        let (values, known) = side.apply(&picture, &labels, &plain);
        assert_eq!((known.clone(), values), (labels.labels.clone(), normalise(&picture.data, MEAN, STD)));
        let (_, mirrored) = side.apply(&picture, &labels, &Choice { flip: true, ..plain });
        let back: Vec<u8> = mirrored.chunks(8).flat_map(|row| row.iter().rev().copied()).collect();
        assert_eq!(back, known);
        // Half as large, in the upper left of a square.
        let small = Choice { size: [4, 4], part: Window::whole(4, 4), flip: false };
        let (values, known) = side.apply(&picture, &labels, &small);
        assert_eq!(known[..8], [1, 2, 3, 4, 0, 0, 0, 0]);
        assert!(known[32..].iter().all(|&label| label == 0) && values[4..8] == [0.0; 4]);
    }

    #[test]
    fn windows_cover_a_picture() {
        for (width, height) in [(90, 60), (60, 90), (32, 32), (1, 900), (900, 1), (61, 60)] {
            let (picture, _) = banded(width, height);
            let cut = windows(&picture, 16);
            assert_eq!(cut.size[0].min(cut.size[1]), 16);
            let most = cut.size[0].max(cut.size[1]);
            assert!(most <= 128 && cut.windows.len() == most.div_ceil(16), "{:?}", cut.size);
            for at in 0..most {
                let within = |window: &CutWindow| {
                    let from = window.corner[0].max(window.corner[1]);
                    (from..from + 16).contains(&at)
                };
                assert!(cut.windows.iter().any(within), "{width}×{height}: {at}");
            }
            assert!(cut.windows.iter().all(|window| window.values.len() == 3 * 256));
        }
    }

    #[test]
    fn settings_that_cannot_be_used_are_named() {
        assert_eq!(Labelled::new(8).validate(), Ok(()));
        for wrong in [[0.0, 1.0], [2.0, 1.0], [1.0, 99.0], [f64::NAN, 1.0]] {
            assert!(Labelled { scale: wrong, ..Labelled::new(8) }.validate().is_err());
        }
        assert!(Labelled { flip: 2.0, ..Labelled::new(8) }.validate().is_err());
    }
}
