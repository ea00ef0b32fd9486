//! One operation of RandAugment, with how strong it is.
//!
//! Source: timm 0.5.4, `auto_augment.py`.

use super::affine::{Interpolation, moved, rotation};
use super::{enhance, point};
use crate::media::Rgb;

/// What is done to a picture. Names are Pillow's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// Each channel is stretched to the full range.
    AutoContrast,
    /// The values of each channel are made about as frequent.
    Equalize,
    /// Light becomes dark.
    Invert,
    /// Turned around its middle.
    Rotate {
        /// Counterclockwise.
        degrees: f64,
        /// How pixels are mixed.
        by: Interpolation,
    },
    /// Only the upper bits are kept.
    Posterize {
        /// How many, 0 to 8. Of none, black is left.
        bits: u32,
    },
    /// Values from a threshold on are inverted.
    Solarize {
        /// 0 to 256.
        threshold: u32,
    },
    /// Values below 128 are raised.
    SolarizeAdd {
        /// By how much.
        add: u32,
    },
    /// More or less colour.
    Color {
        /// 0: grey, 1: as it is.
        factor: f64,
    },
    /// More or less contrast.
    Contrast {
        /// 0: the mean grey, 1: as it is.
        factor: f64,
    },
    /// Lighter or darker.
    Brightness {
        /// 0: black, 1: as it is.
        factor: f64,
    },
    /// Sharper or softer.
    Sharpness {
        /// 0: smoothed, 1: as it is.
        factor: f64,
    },
    /// Rows are moved, each by its place.
    ShearX {
        /// Columns a row.
        factor: f64,
        /// How pixels are mixed.
        by: Interpolation,
    },
    /// Columns are moved, each by its place.
    ShearY {
        /// Rows a column.
        factor: f64,
        /// How pixels are mixed.
        by: Interpolation,
    },
    /// Moved to the left; to the right, if negative.
    TranslateX {
        /// By this share of its width.
        share: f64,
        /// How pixels are mixed.
        by: Interpolation,
    },
    /// Moved up; down, if negative.
    TranslateY {
        /// By this share of its height.
        share: f64,
        /// How pixels are mixed.
        by: Interpolation,
    },
}

impl Operation {
    /// Does it to a picture of at least 1×1. The size stays.
    ///
    /// * `fill`: the colour of what comes from outside of the picture.
    pub fn apply(self, picture: Rgb, fill: [u8; 3]) -> Rgb {
        let (width, height) = (picture.width, picture.height);
        match self {
            Operation::AutoContrast => point::auto_contrast(picture),
            Operation::Equalize => point::equalize(picture),
            Operation::Invert => point::invert(picture),
            Operation::Posterize { bits } => point::posterize(picture, bits),
            Operation::Solarize { threshold } => point::solarize(picture, threshold),
            Operation::SolarizeAdd { add } => point::solarize_add(picture, add),
            Operation::Color { factor } => enhance::color(picture, factor),
            Operation::Contrast { factor } => enhance::contrast(picture, factor),
            Operation::Brightness { factor } => enhance::brightness(picture, factor),
            Operation::Sharpness { factor } => enhance::sharpness(picture, factor),
            Operation::Rotate { degrees, by } => moved(&picture, rotation(degrees, width, height), by, fill),
            Operation::ShearX { factor, by } => moved(&picture, [1.0, factor, 0.0, 0.0, 1.0, 0.0], by, fill),
            Operation::ShearY { factor, by } => moved(&picture, [1.0, 0.0, 0.0, factor, 1.0, 0.0], by, fill),
            Operation::TranslateX { share, by } => {
                moved(&picture, [1.0, 0.0, share * width as f64, 0.0, 1.0, 0.0], by, fill)
            }
            Operation::TranslateY { share, by } => {
                moved(&picture, [1.0, 0.0, 0.0, 0.0, 1.0, share * height as f64], by, fill)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::Window;
    use crate::media::resample::resample;

    /// What Pillow made, with the program that made it beside it.
    const FIXTURE: &str = include_str!("../../../tests/fixtures/augment.json");
    const FILL: [u8; 3] = [124, 116, 104];

    /// As `picture` of the program.
    fn picture(width: usize, height: usize) -> Rgb {
        let value = |x: usize, y: usize, c: usize| {
            let noise = (x * 37 + y * 91 + c * 53) * (x + 3 * y + 5) % 61;
            (30 + (x * 11 + y * (7 + 4 * c) + noise) % (190 - 30 * c)) as u8
        };
        let pixel = |i: usize| [0, 1, 2].map(|c| value(i % width, i / width, c));
        Rgb { width, height, data: (0..width * height).flat_map(pixel).collect() }
    }

    /// As the program names it.
    fn operation(name: &str) -> Operation {
        let words: Vec<&str> = name.split(' ').collect();
        let number = || words[words.len() - 1].parse::<f64>().unwrap();
        let by = match words.get(1) {
            Some(&"BILINEAR") => Interpolation::Bilinear,
            _ => Interpolation::Bicubic,
        };
        match words[0] {
            "AutoContrast" => Operation::AutoContrast,
            "Equalize" => Operation::Equalize,
            "Invert" => Operation::Invert,
            "Posterize" => Operation::Posterize { bits: number() as u32 },
            "Solarize" => Operation::Solarize { threshold: number() as u32 },
            "SolarizeAdd" => Operation::SolarizeAdd { add: number() as u32 },
            "Color" => Operation::Color { factor: number() },
            "Contrast" => Operation::Contrast { factor: number() },
            "Brightness" => Operation::Brightness { factor: number() },
            "Sharpness" => Operation::Sharpness { factor: number() },
            "Rotate" => Operation::Rotate { degrees: number(), by },
            "ShearX" => Operation::ShearX { factor: number(), by },
            "ShearY" => Operation::ShearY { factor: number(), by },
            "TranslateX" => Operation::TranslateX { share: number(), by },
            "TranslateY" => Operation::TranslateY { share: number(), by },
            other => panic!("{other}"),
        }
    }

    /// Everything is equal to the byte. A processor whose sines differ in the last place may be one off where pixels are mixed.
    #[test]
    fn operations_and_parts_are_pillow_s() {
        let fixture: serde_json::Value = serde_json::from_str(FIXTURE).unwrap();
        let cases: Vec<(String, usize, usize, String)> =
            serde_json::from_value(fixture["cases"].clone()).unwrap();
        assert!(cases.len() > 50, "{}", cases.len());
        for (name, width, height, expected) in cases {
            let byte = |i: usize| u8::from_str_radix(&expected[i..i + 2], 16).unwrap();
            let expected: Vec<u8> = (0..expected.len()).step_by(2).map(byte).collect();
            let received = match name.strip_prefix("part ") {
                Some(part) => {
                    let sides: Vec<usize> = part.split(' ').map(|side| side.parse().unwrap()).collect();
                    let [left, top, across, down] = sides[..] else { panic!("{name}") };
                    let part = picture(40, 30).cut(Window { left, top, width: across, height: down });
                    resample(&part, [width, height], Window::whole(width, height))
                }
                None => {
                    let made = operation(&name).apply(picture(width, height), FILL);
                    assert_eq!((made.width, made.height), (width, height), "{name}");
                    made.data
                }
            };
            assert_eq!(received.len(), expected.len(), "{name}");
            let most = if name.starts_with("Rotate") { 1 } else { 0 };
            let wrong = received.iter().zip(&expected).position(|(r, e)| r.abs_diff(*e) > most);
            assert_eq!(wrong, None, "{name}: {received:?}, expected {expected:?}");
        }
    }

    #[test]
    fn tiny_pictures_and_extreme_strengths_do_no_harm() {
        let (by, far) = (Interpolation::Bicubic, 1e300);
        let all = [
            Operation::AutoContrast,
            Operation::Equalize,
            Operation::Posterize { bits: 0 },
            Operation::Posterize { bits: u32::MAX },
            Operation::SolarizeAdd { add: u32::MAX },
            Operation::Color { factor: -far },
            Operation::Contrast { factor: f64::NAN },
            Operation::Sharpness { factor: far },
            Operation::Rotate { degrees: f64::INFINITY, by },
            Operation::Rotate { degrees: 90.0, by },
            Operation::ShearX { factor: far, by },
            Operation::TranslateY { share: f64::NAN, by },
        ];
        for (width, height) in [(1, 1), (2, 1), (1, 3), (3, 3)] {
            for operation in all {
                let made = operation.apply(picture(width, height), FILL);
                assert_eq!(made.data.len(), width * height * 3, "{operation:?}");
            }
        }
        let black = Operation::Posterize { bits: 0 }.apply(picture(3, 3), FILL);
        assert!(black.data.iter().all(|&value| value == 0));
    }
}
