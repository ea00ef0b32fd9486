//! A picture file becomes `[3, S, S]` f32, the way the published loader makes it.
//!
//! ```text
//! bytes ─► header: format, size, limits ─► 8-bit RGB ─► upright ─► resize short side to S ─► centre S×S ─► normalise
//! ```
//!
//! * **RGB.** Grey is replicated, alpha dropped (not composited), of 16 bits the upper 8 kept, the first frame of an animation
//!   taken (`gif.rs`). Colour profiles are ignored. One difference from the published loader is meant: Pillow makes nearly all of
//!   a *grey* picture of 16 bits white, because it holds the values below 256 instead of scaling them; here it looks as its 8-bit
//!   copy does.
//! * **Upright.** EXIF orientation is applied by default, since photographs from phones need it;
//!   [`Orientation::Reference`] ignores it as the published loader does.
//! * **Resize.** Pillow's bicubic, to the bit (`resample.rs`). Only what the crop keeps is computed.
//!
//! The header is read before anything is allocated: `image`'s own limits let a file of 389 kB grow to 1.5 GiB.
//!
//! Source: ImageBind, `imagebind/data.py`, `load_and_transform_vision_data`.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};
use serde::{Deserialize, Serialize};

use super::resample::resample;
use super::rgb::Window;
use super::{Error, Limits, gif};
use crate::types::Fingerprint;

pub use super::rgb::Rgb;

/// Mean of each channel over CLIP's training pictures.
pub(super) const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of each channel.
pub(super) const STD: [f32; 3] = [0.268_629_55, 0.261_302_6, 0.275_777_1];
/// Changes whenever a rule in this file changes a number.
const RULES_VERSION: u32 = 2;

/// What is done with EXIF orientation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Orientation {
    /// The picture is turned upright.
    #[default]
    Apply,
    /// It is ignored, as the published loader does.
    Reference,
}

impl std::str::FromStr for Orientation {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "apply" => Ok(Orientation::Apply),
            "reference" => Ok(Orientation::Reference),
            other => Err(format!("`{other}` is not one of apply, reference")),
        }
    }
}

/// How pictures are prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageOptions {
    /// Side of the square the encoder takes, S.
    pub side: usize,
    /// What is done with EXIF orientation.
    pub orientation: Orientation,
    /// What one file may cost.
    pub limits: Limits,
}

impl ImageOptions {
    /// Identifies everything here that changes a number.
    pub fn fingerprint(&self) -> Fingerprint {
        let rules = format!(
            "image rules {RULES_VERSION}; side {}; orientation {:?}; mean {MEAN:?}; std {STD:?}",
            self.side, self.orientation
        );
        Fingerprint::of(rules.as_bytes())
    }
}

/// Prepares a picture: `[3, S, S]`, channel by channel, row by row.
///
/// # Errors
/// Every variant of [`Error`].
pub fn prepare(bytes: &[u8], options: &ImageOptions) -> Result<Vec<f32>, Error> {
    Ok(prepare_rgb(&decode(bytes, options)?, options.side))
}

/// As [`prepare`], of a picture that is decoded already.
pub fn prepare_rgb(picture: &Rgb, side: usize) -> Vec<f32> {
    normalised(resize_and_crop(picture, side), false)
}

/// As [`prepare`], blue first: for a model that was trained on pictures as OpenCV reads them. Each place keeps its own mean
/// and deviation, so blue is given those of red.
///
/// # Errors
/// Every variant of [`Error`].
pub fn prepare_bgr(bytes: &[u8], options: &ImageOptions) -> Result<Vec<f32>, Error> {
    Ok(normalised(resize_and_crop(&decode(bytes, options)?, options.side), true))
}

/// The bytes of a square, row by row, as an encoder takes them: `[3, S, S]`.
///
/// * `blue_first`: as [`prepare_bgr`] has it.
pub fn normalised(mut pixels: Vec<u8>, blue_first: bool) -> Vec<f32> {
    if blue_first {
        pixels.chunks_exact_mut(3).for_each(|pixel| pixel.reverse());
    }
    normalise(&pixels, MEAN, STD)
}

/// Decodes a picture into 8-bit RGB, upright if the options say so.
///
/// # Errors
/// Every variant of [`Error`].
pub fn decode(bytes: &[u8], options: &ImageOptions) -> Result<Rgb, Error> {
    decode_within(bytes, options.orientation, &options.limits)
}

/// As [`decode`], for whoever has no side yet.
///
/// # Errors
/// Every variant of [`Error`].
pub fn decode_within(bytes: &[u8], orientation: Orientation, limits: &Limits) -> Result<Rgb, Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(Error::TooManyBytes { received: bytes.len(), limit: limits.max_bytes });
    }
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| Error::NotAnImage(e.to_string()))?;
    let mut allocation = image::Limits::default();
    allocation.max_image_width = Some(limits.max_side);
    allocation.max_image_height = Some(limits.max_side);
    allocation.max_alloc = Some(limits.memory());
    reader.limits(allocation);
    let is_gif = reader.format() == Some(ImageFormat::Gif);
    let mut decoder = match reader.into_decoder() {
        Ok(decoder) => decoder,
        Err(image::ImageError::Limits(_)) => return Err(too_many_pixels(bytes, limits)),
        Err(e) => return Err(Error::NotAnImage(e.to_string())),
    };
    let (width, height) = decoder.dimensions();
    limits.check_size(width, height)?;
    if width == 0 || height == 0 {
        return Err(Error::NotAnImage(format!("it is {width}×{height}")));
    }
    // Orientation in a picture whose EXIF block is itself broken is not known; the pixels still count.
    let orientation = match orientation {
        Orientation::Apply => decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms),
        Orientation::Reference => image::metadata::Orientation::NoTransforms,
    };
    let rgb = match is_gif {
        true => gif::first_frame(bytes, limits)?,
        false => eight_bits(DynamicImage::from_decoder(decoder).map_err(|e| Error::Damaged(e.to_string()))?),
    };
    let mut picture = DynamicImage::ImageRgb8(rgb);
    picture.apply_orientation(orientation);
    let rgb = picture.into_rgb8();
    Ok(Rgb { width: rgb.width() as usize, height: rgb.height() as usize, data: rgb.into_raw() })
}

/// Width and height of a picture as it lies in its file, by its header alone.
///
/// # Errors
/// [`Error::Empty`], [`Error::NotAnImage`], [`Error::TooManyPixels`].
pub fn dimensions(bytes: &[u8], limits: &Limits) -> Result<[usize; 2], Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    let fail = |e: &dyn std::fmt::Display| Error::NotAnImage(e.to_string());
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| fail(&e))?;
    let (width, height) = reader.into_dimensions().map_err(|e| fail(&e))?;
    limits.check_size(width, height)?;
    Ok([width as usize, height as usize])
}

/// As 8-bit RGB. Of 16 bits the upper 8 are kept; `image` would round.
fn eight_bits(picture: DynamicImage) -> RgbImage {
    let high = |value: u16| (value >> 8) as u8;
    let (width, height) = (picture.width(), picture.height());
    let rgb = match &picture {
        DynamicImage::ImageRgb16(p) => p.as_raw().iter().map(|&value| high(value)).collect(),
        DynamicImage::ImageRgba16(p) => {
            let pixels = p.as_raw().as_chunks::<4>().0;
            pixels.iter().flat_map(|&[r, g, b, _]| [r, g, b].map(high)).collect()
        }
        DynamicImage::ImageLuma16(p) => p.as_raw().iter().flat_map(|&grey| [high(grey); 3]).collect(),
        DynamicImage::ImageLumaA16(p) => {
            let pixels = p.as_raw().as_chunks::<2>().0;
            pixels.iter().flat_map(|&[grey, _]| [high(grey); 3]).collect()
        }
        _ => return picture.into_rgb8(),
    };
    RgbImage::from_raw(width, height, rgb).expect("three bytes were made of every pixel")
}

/// The error for a picture that the decoder itself refused by its header.
fn too_many_pixels(bytes: &[u8], limits: &Limits) -> Error {
    let size = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok().and_then(|mut reader| {
        reader.no_limits();
        reader.into_dimensions().ok()
    });
    let (width, height) = size.unwrap_or((u32::MAX, u32::MAX));
    Error::TooManyPixels { width, height, max_side: limits.max_side, max_pixels: limits.max_pixels }
}

/// Resizes the shorter side to `side` and cuts the centre square: `side · side · 3` bytes.
pub fn resize_and_crop(picture: &Rgb, side: usize) -> Vec<u8> {
    resize_shorter(picture, side, side)
}

/// Resizes the shorter side to `shorter`, or to `side` if that is more, and cuts the centre square: `side · side · 3` bytes.
pub(super) fn resize_shorter(picture: &Rgb, shorter: usize, side: usize) -> Vec<u8> {
    let (width, height, shorter) = (picture.width, picture.height, shorter.max(side));
    let (new_width, new_height) = match width <= height {
        true => (shorter, shorter * height / width),
        false => (shorter * width / height, shorter),
    };
    let (left, top) = (centre_offset(new_width, side), centre_offset(new_height, side));
    resample(picture, [new_width, new_height], Window { left, top, width: side, height: side })
}

/// Half of the surplus, ties to even, as Python's `round`.
fn centre_offset(size: usize, side: usize) -> usize {
    let surplus = size - side;
    match surplus % 4 {
        3 => surplus / 2 + 1,
        _ => surplus / 2,
    }
}

/// `(v/255 − mean)/std`, channels first.
pub(super) fn normalise(square: &[u8], mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
    let mut values = Vec::with_capacity(square.len());
    for channel in 0..3 {
        let table: [f32; 256] = std::array::from_fn(|v| (v as f32 / 255.0 - mean[channel]) / std[channel]);
        values.extend(square.as_chunks::<3>().0.iter().map(|pixel| table[usize::from(pixel[channel])]));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(side: usize) -> ImageOptions {
        ImageOptions { side, orientation: Orientation::Apply, limits: Limits::default() }
    }

    fn png(width: u32, height: u32) -> Vec<u8> {
        let picture =
            image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, (x ^ y) as u8]));
        let mut bytes = Vec::new();
        picture.write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
        bytes
    }

    #[test]
    fn crop_offsets_round_half_to_even() {
        let offsets: Vec<usize> = [1, 3, 5, 7, 2, 0].iter().map(|s| centre_offset(224 + s, 224)).collect();
        assert_eq!(offsets, [0, 2, 2, 4, 1, 0]);
    }

    #[test]
    fn flat_pictures_stay_flat_at_any_size() {
        for (width, height) in [(1, 1), (7, 500), (500, 7), (64, 64), (63, 65)] {
            let picture = Rgb { width, height, data: [200, 10, 90].repeat(width * height) };
            let square = resize_and_crop(&picture, 64);
            assert_eq!(square.len(), 64 * 64 * 3);
            assert!(square.chunks_exact(3).all(|p| p == [200, 10, 90]), "{width}×{height}");
        }
    }

    #[test]
    fn limits_are_checked_on_the_header() {
        let bytes = png(40, 30);
        let limited = |max_bytes, max_side, max_pixels| ImageOptions {
            limits: Limits { max_bytes, max_side, max_pixels },
            ..options(8)
        };
        assert_eq!(prepare(&[], &options(8)), Err(Error::Empty));
        assert!(matches!(
            prepare(&bytes, &limited(10, 99, 9999)),
            Err(Error::TooManyBytes { limit: 10, .. })
        ));
        let side = prepare(&bytes, &limited(1 << 20, 39, 9999));
        assert!(matches!(side, Err(Error::TooManyPixels { width: 40, height: 30, .. })), "{side:?}");
        let pixels = prepare(&bytes, &limited(1 << 20, 99, 1199));
        assert!(matches!(pixels, Err(Error::TooManyPixels { width: 40, .. })), "{pixels:?}");
        assert!(prepare(&bytes, &limited(1 << 20, 40, 1200)).is_ok());
    }

    #[test]
    fn of_16_bits_the_upper_8_are_kept() {
        // 0x12ff would be rounded up, and so would 0x80ff.
        let (r, g, b) = (0x12ff, 0x80ff, 0xff00);
        let of = |picture: DynamicImage| {
            let mut bytes = Vec::new();
            picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
            decode(&bytes, &options(8)).unwrap().data
        };
        let pixel = |colour| image::ImageBuffer::from_pixel(1, 1, colour);
        assert_eq!(of(DynamicImage::ImageRgb16(pixel(image::Rgb([r, g, b])))), [0x12, 0x80, 0xff]);
        let rgba = image::ImageBuffer::from_pixel(1, 1, image::Rgba([r, g, b, 7]));
        assert_eq!(of(DynamicImage::ImageRgba16(rgba)), [0x12, 0x80, 0xff], "alpha is dropped");
        let grey = image::ImageBuffer::from_pixel(1, 1, image::Luma([g]));
        assert_eq!(of(DynamicImage::ImageLuma16(grey)), [0x80; 3]);
        let grey = image::ImageBuffer::from_pixel(1, 1, image::LumaA([g, 7]));
        assert_eq!(of(DynamicImage::ImageLumaA16(grey)), [0x80; 3]);
    }

    #[test]
    fn the_orientation_setting_is_part_of_the_fingerprint() {
        let reference = ImageOptions { orientation: Orientation::Reference, ..options(8) };
        assert_ne!(options(8).fingerprint(), reference.fingerprint());
        assert_ne!(options(8).fingerprint(), options(9).fingerprint());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn arbitrary_and_damaged_files_never_panic(
            noise in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..2000, flip in any::<(usize, u8)>()
        ) {
            prop_assert!(prepare(&noise, &options(8)).is_err());
            let mut bytes = png(20, 30);
            bytes.truncate(cut.max(1));
            let at = flip.0 % bytes.len();
            bytes[at] ^= flip.1;
            if let Ok(values) = prepare(&bytes, &options(8)) {
                prop_assert_eq!(values.len(), 3 * 64);
            }
        }

        #[test]
        fn every_size_gives_a_full_square(width in 1usize..90, height in 1usize..90) {
            let data = (0..width * height * 3).map(|i| (i * 7 % 256) as u8).collect();
            prop_assert_eq!(resize_and_crop(&Rgb { width, height, data }, 16).len(), 16 * 16 * 3);
        }
    }
}
