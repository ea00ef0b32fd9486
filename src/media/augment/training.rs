//! How pictures are prepared for training: a choice, and what it does.
//!
//! Source: timm 0.5.4, `transforms_factory.py`, `transforms_imagenet_train`.

use rand::RngExt;
use rand_pcg::Pcg64;

use super::{Crop, Erase, Erased, MEAN, Operation, Operations, STD};
use crate::media::image::normalise;
use crate::media::resample::resample;
use crate::media::{Error, Rgb, Window};

/// How pictures are prepared for training.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// Side of the square, S.
    pub side: usize,
    /// Which part of a picture is shown.
    pub crop: Crop,
    /// How often it is mirrored, 0 to 1.
    pub flip: f64,
    /// What else is done to it.
    pub operations: Operations,
    /// The box of noise.
    pub erase: Erase,
    /// Mean of each channel, of values in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
}

/// All that is drawn for one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The part that is shown.
    pub part: Window,
    /// Left becomes right.
    pub flip: bool,
    /// In this order.
    pub operations: Vec<Operation>,
    /// The box of noise, if there is one.
    pub erased: Option<Erased>,
}

impl Training {
    /// As the published recipes have it.
    pub fn new(side: usize) -> Self {
        Training {
            side,
            crop: Crop::default(),
            flip: 0.5,
            operations: Operations::default(),
            erase: Erase::default(),
            mean: MEAN,
            std: STD,
        }
    }

    /// Refuses settings that no picture can be prepared with.
    ///
    /// # Errors
    /// [`Error::Option`], which names the first of them.
    pub fn validate(&self) -> Result<(), Error> {
        let refuse = |name, why: String| Err(Error::Option { name, why });
        if self.side == 0 {
            return refuse("side", "it is 0".into());
        }
        let ranges = [
            ("crop.area", self.crop.area),
            ("crop.aspect", self.crop.aspect),
            ("erase.area", self.erase.area),
            ("erase.aspect", self.erase.aspect),
        ];
        for (name, [low, high]) in ranges {
            if !(low > 0.0 && low <= high && high.is_finite()) {
                return refuse(name, format!("[{low}, {high}] are not two numbers above 0, the lower first"));
            }
        }
        let shares = [
            ("flip", self.flip),
            ("operations.probability", self.operations.probability),
            ("erase.probability", self.erase.probability),
        ];
        if let Some((name, share)) = shares.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return refuse(name, format!("{share} is not in 0 … 1"));
        }
        let levels = [
            ("operations.magnitude", self.operations.magnitude),
            ("operations.deviation", self.operations.deviation),
        ];
        if let Some((name, level)) = levels.into_iter().find(|(_, level)| !(0.0..=10.0).contains(level)) {
            return refuse(name, format!("{level} is not in 0 … 10"));
        }
        if !self.mean.iter().all(|mean| mean.is_finite()) {
            return refuse("mean", format!("{:?} are not three finite numbers", self.mean));
        }
        if !self.std.iter().all(|std| std.is_finite() && *std > 0.0) {
            return refuse("std", format!("{:?} are not three finite numbers above 0", self.std));
        }
        Ok(())
    }

    /// Draws what is done to a picture of this size, each at least 1.
    pub fn choose(&self, width: usize, height: usize, random: &mut Pcg64) -> Choice {
        Choice {
            part: self.crop.choose(width, height, random),
            flip: random.random::<f64>() < self.flip,
            operations: self.operations.choose(random),
            erased: self.erase.choose(self.side, random),
        }
    }

    /// The bytes of the square before they are normalised, row by row: `S · S · 3`.
    ///
    /// * `choice`: of a part that reaches beyond the picture, what lies within is taken.
    pub fn pixels(&self, picture: &Rgb, choice: &Choice) -> Vec<u8> {
        let part = picture.cut(choice.part);
        let data = resample(&part, [self.side; 2], Window::whole(self.side, self.side));
        let mut square = Rgb { width: self.side, height: self.side, data };
        if choice.flip {
            square.mirror();
        }
        let fill = self.mean.map(|mean| (mean * 255.0).round_ties_even() as u8);
        choice.operations.iter().fold(square, |square, operation| operation.apply(square, fill)).data
    }

    /// Does to a picture what was chosen: `[3, S, S]`, channel by channel, row by row.
    pub fn apply(&self, picture: &Rgb, choice: &Choice) -> Vec<f32> {
        let mut values = normalise(&self.pixels(picture, choice), self.mean, self.std);
        if let Some(erased) = choice.erased {
            erased.apply(&mut values, self.side);
        }
        values
    }

    /// Chooses and applies: `[3, S, S]`.
    pub fn prepare(&self, picture: &Rgb, random: &mut Pcg64) -> Vec<f32> {
        let choice = self.choose(picture.width, picture.height, random);
        self.apply(picture, &choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn gradient(width: usize, height: usize) -> Rgb {
        let pixel = |i: usize| [(i % width) as u8, (i / width) as u8, (i * 7 % 256) as u8];
        Rgb { width, height, data: (0..width * height).flat_map(pixel).collect() }
    }

    fn plain(part: Window) -> Choice {
        Choice { part, flip: false, operations: Vec::new(), erased: None }
    }

    #[test]
    fn the_same_seed_gives_the_same_picture() {
        let (training, picture) = (Training::new(32), gradient(90, 60));
        let of = |seed| training.prepare(&picture, &mut Pcg64::seed_from_u64(seed));
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        let mut random = Pcg64::seed_from_u64(3);
        for (width, height) in [(1, 1), (2, 300), (300, 2), (32, 32)] {
            let picture = gradient(width, height);
            for _ in 0..60 {
                let values = training.prepare(&picture, &mut random);
                assert!(values.len() == 3 * 32 * 32 && values.iter().all(|v| v.is_finite()));
            }
        }
    }

    #[test]
    fn a_part_is_cut_before_it_is_resized() {
        let (training, picture) = (Training::new(8), gradient(20, 20));
        let part = Window { left: 3, top: 5, width: 8, height: 8 };
        let pixels = training.pixels(&picture, &plain(part));
        let expected: Vec<u8> = (0..64)
            .flat_map(|i| [3 + i % 8, 5 + i / 8, ((5 + i / 8) * 140 + (3 + i % 8) * 7) % 256])
            .map(|v| v as u8)
            .collect();
        assert_eq!(pixels, expected);
        let flipped = training.pixels(&picture, &Choice { flip: true, ..plain(part) });
        assert_eq!((flipped[0], flipped[21]), (10, 3));
        // Nothing of the white around it comes in, as it would if the whole were resized.
        let mut framed = Rgb { width: 20, height: 20, data: vec![255; 1200] };
        for y in 5..13 {
            framed.data[(y * 20 + 3) * 3..(y * 20 + 11) * 3].fill(0);
        }
        let small = Training::new(5).pixels(&framed, &plain(part));
        assert!(small.iter().all(|&value| value == 0), "{small:?}");
    }

    #[test]
    fn a_choice_for_another_picture_does_no_harm() {
        let training = Training::new(4);
        let beyond = plain(Window { left: 10, top: 2, width: 30, height: 0 });
        assert_eq!(training.apply(&gradient(5, 5), &beyond).len(), 48);
    }

    #[test]
    fn what_comes_from_outside_is_the_mean() {
        let by = super::super::Interpolation::Bilinear;
        let operations = vec![Operation::TranslateX { share: 0.5, by }];
        let choice = Choice { operations, ..plain(Window::whole(4, 4)) };
        let pixels = Training::new(4).pixels(&gradient(4, 4), &choice);
        assert_eq!(pixels[6..12], [124, 116, 104, 124, 116, 104]);
    }

    #[test]
    fn settings_that_cannot_be_used_are_named() {
        assert_eq!(Training::new(8).validate(), Ok(()));
        let named = |training: Training| match training.validate() {
            Err(Error::Option { name, .. }) => name,
            other => panic!("{other:?}"),
        };
        let new = || Training::new(8);
        assert_eq!(named(Training::new(0)), "side");
        assert_eq!(
            named(Training { crop: Crop { area: [0.5, 0.4], ..Crop::default() }, ..new() }),
            "crop.area"
        );
        assert_eq!(named(Training { flip: f64::NAN, ..new() }), "flip");
        let erase = Erase { aspect: [0.0, 1.0], ..Erase::default() };
        assert_eq!(named(Training { erase, ..new() }), "erase.aspect");
        let operations = Operations { magnitude: 11.0, ..Operations::default() };
        assert_eq!(named(Training { operations, ..new() }), "operations.magnitude");
        assert_eq!(named(Training { std: [1.0, 0.0, 1.0], ..new() }), "std");
    }
}
