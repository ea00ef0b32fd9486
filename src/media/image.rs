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
//! * **Resize.** On 8-bit values, with integer weights of 22 fractional bits, rounded to 8 bits between the horizontal
//!   and the vertical pass: Pillow's bicubic, to the bit. Only what the crop keeps is computed.
//!
//! The header is read before anything is allocated: `image`'s own limits let a file of 389 kB grow to 1.5 GiB.
//!
//! Source: ImageBind, `imagebind/data.py`, `load_and_transform_vision_data`; Pillow, `src/libImaging/Resample.c`.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};
use serde::{Deserialize, Serialize};

use super::{Error, Limits, gif};
use crate::types::Fingerprint;

/// Mean of each channel over CLIP's training pictures.
pub(super) const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of each channel.
pub(super) const STD: [f32; 3] = [0.268_629_55, 0.261_302_6, 0.275_777_1];
/// The cubic of Pillow.
const CUBIC_A: f64 = -0.5;
/// Fractional bits of a resize weight.
const WEIGHT_BITS: u32 = 22;
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
    Ok(normalise(&resize_and_crop(&decode(bytes, options)?, options.side)))
}

/// As [`prepare`], blue first: for a model that was trained on pictures as OpenCV reads them. Each place keeps its own mean
/// and deviation, so blue is given those of red.
///
/// # Errors
/// Every variant of [`Error`].
pub fn prepare_bgr(bytes: &[u8], options: &ImageOptions) -> Result<Vec<f32>, Error> {
    let mut pixels = resize_and_crop(&decode(bytes, options)?, options.side);
    pixels.chunks_exact_mut(3).for_each(|pixel| pixel.reverse());
    Ok(normalise(&pixels))
}

/// 8-bit RGB pixels, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `width · height · 3` bytes.
    pub data: Vec<u8>,
}

/// Decodes a picture into 8-bit RGB, upright if the options say so.
///
/// # Errors
/// Every variant of [`Error`].
pub fn decode(bytes: &[u8], options: &ImageOptions) -> Result<Rgb, Error> {
    let limits = &options.limits;
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
    let orientation = match options.orientation {
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
    struct Resize<'a>(&'a Rgb, usize);
    impl pulp::WithSimd for Resize<'_> {
        type Output = Vec<u8>;

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> Vec<u8> {
            resized(self.0, self.1)
        }
    }
    // The same code for every instruction set: whole numbers, so the same result.
    pulp::Arch::new().dispatch(Resize(picture, side))
}

/// The products that are summed are below 2³¹ together: weights sum to 2²², with overshoot to 1.4 times that in magnitude, and values
/// are below 2⁸. So sums wrap, which the compiler can vectorise, without ever doing so.
#[inline(always)]
fn resized(picture: &Rgb, side: usize) -> Vec<u8> {
    let (width, height) = (picture.width, picture.height);
    let (new_width, new_height) = match width <= height {
        true => (side, side * height / width),
        false => (side * width / height, side),
    };
    let (left, top) = (centre_offset(new_width, side), centre_offset(new_height, side));
    let across = Taps::new(width, new_width, left..left + side);
    let down = Taps::new(height, new_height, top..top + side);

    // Horizontally first, and only the rows that the vertical pass will read. Two samples fill a register, four lanes a pixel.
    let (rows, across) = (down.source(), across.paired());
    let stride = side * 3;
    let mut narrow = vec![0u8; rows.len() * stride];
    let mut wide = vec![0i32; (width + 1) * 4];
    let mut lanes = vec![[0i32; 8]; side];
    let read = picture.data.chunks_exact(width * 3).skip(rows.start);
    for (row, narrow) in read.zip(narrow.chunks_exact_mut(stride)) {
        for (wide, pixel) in wide.as_chunks_mut::<4>().0.iter_mut().zip(row.as_chunks::<3>().0) {
            *wide = [pixel[0].into(), pixel[1].into(), pixel[2].into(), 0];
        }
        for (lanes, (from, weights)) in lanes.iter_mut().zip(&across) {
            let mut sums = [0i32; 8];
            for (pixels, weights) in wide[from * 4..].as_chunks::<8>().0.iter().zip(weights) {
                for lane in 0..8 {
                    sums[lane] = sums[lane].wrapping_add(weights[lane].wrapping_mul(pixels[lane]));
                }
            }
            *lanes = sums;
        }
        // Behind the loop, not in it: else a compiler fills half registers.
        for (out, lanes) in narrow.as_chunks_mut::<3>().0.iter_mut().zip(&lanes) {
            for channel in 0..3 {
                let sum = lanes[channel].wrapping_add(lanes[channel + 4]);
                out[channel] = Taps::round(Taps::ROUNDING.wrapping_add(sum));
            }
        }
    }

    let mut square = vec![0u8; side * stride];
    let mut sums = vec![0i32; stride];
    for ((from, weights), out) in down.outputs().zip(square.chunks_exact_mut(stride)) {
        sums.fill(Taps::ROUNDING);
        let narrow = &narrow[(from - rows.start) * stride..];
        // Four rows while the sums are at hand.
        let (fours, rest) = weights.as_chunks::<4>();
        for (rows, w) in narrow.chunks_exact(4 * stride).zip(fours) {
            let (ab, cd) = rows.split_at(2 * stride);
            let (ab, cd) = (ab.split_at(stride), cd.split_at(stride));
            let values = ab.0.iter().zip(ab.1).zip(cd.0.iter().zip(cd.1));
            for (sum, ((&a, &b), (&c, &d))) in sums.iter_mut().zip(values) {
                let ab = w[0].wrapping_mul(a.into()).wrapping_add(w[1].wrapping_mul(b.into()));
                let cd = w[2].wrapping_mul(c.into()).wrapping_add(w[3].wrapping_mul(d.into()));
                *sum = sum.wrapping_add(ab).wrapping_add(cd);
            }
        }
        for (row, &weight) in narrow.chunks_exact(stride).skip(4 * fours.len()).zip(rest) {
            for (sum, &v) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(weight.wrapping_mul(v.into()));
            }
        }
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = Taps::round(sum);
        }
    }
    square
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
fn normalise(square: &[u8]) -> Vec<f32> {
    let mut values = Vec::with_capacity(square.len());
    for channel in 0..3 {
        let table: [f32; 256] = std::array::from_fn(|v| (v as f32 / 255.0 - MEAN[channel]) / STD[channel]);
        values.extend(square.as_chunks::<3>().0.iter().map(|pixel| table[usize::from(pixel[channel])]));
    }
    values
}

/// The source samples and integer weights of each output sample of one pass.
struct Taps {
    /// First source sample, and where its weights begin.
    starts: Vec<(usize, usize)>,
    weights: Vec<i32>,
    source: std::ops::Range<usize>,
}

impl Taps {
    /// Half of the last kept place, so that a shift rounds.
    const ROUNDING: i32 = 1 << (WEIGHT_BITS - 1);

    /// Weights of the outputs `kept` when `from` samples become `to`.
    fn new(from: usize, to: usize, kept: std::ops::Range<usize>) -> Self {
        let mut taps = Taps { starts: Vec::with_capacity(kept.len()), weights: Vec::new(), source: 0..0 };
        if from == to {
            // No pass at all: weight one on the sample itself rounds to the sample.
            taps.starts.extend(kept.clone().enumerate().map(|(i, o)| (o, i)));
            taps.weights = vec![1 << WEIGHT_BITS; kept.len()];
            taps.source = kept;
            return taps;
        }
        let scale = from as f64 / to as f64;
        let filter_scale = scale.max(1.0);
        let support = 2.0 * filter_scale;
        let (mut first, mut last) = (from, 0);
        for output in kept {
            let centre = (output as f64 + 0.5) * scale;
            let low = (centre - support + 0.5).max(0.0) as usize;
            let high = ((centre + support + 0.5) as usize).min(from);
            let raw: Vec<f64> =
                (low..high).map(|j| cubic((j as f64 - centre + 0.5) / filter_scale)).collect();
            let sum: f64 = raw.iter().sum();
            taps.starts.push((low, taps.weights.len()));
            taps.weights.extend(raw.iter().map(|w| {
                let scaled = w / sum * f64::from(1 << WEIGHT_BITS);
                (scaled + 0.5f64.copysign(scaled)) as i32
            }));
            (first, last) = (first.min(low), last.max(high));
        }
        taps.source = first..last;
        taps
    }

    /// First source sample and weights of every output, two samples at a time: four lanes of one weight, four of the next.
    fn paired(&self) -> Vec<(usize, Vec<[i32; 8]>)> {
        let pair = |pair: &[i32]| {
            let (first, second) = (pair[0], pair.get(1).copied().unwrap_or(0));
            std::array::from_fn(|lane| if lane < 4 { first } else { second })
        };
        self.outputs().map(|(from, weights)| (from, weights.chunks(2).map(pair).collect())).collect()
    }

    /// Source samples that any output reads.
    fn source(&self) -> std::ops::Range<usize> {
        self.source.clone()
    }

    /// First source sample and weights of every output.
    #[inline(always)]
    fn outputs(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let ends = self.starts.iter().skip(1).map(|&(_, at)| at).chain([self.weights.len()]);
        self.starts.iter().zip(ends).map(|(&(from, at), end)| (from, &self.weights[at..end]))
    }

    #[inline(always)]
    fn round(sum: i32) -> u8 {
        (sum >> WEIGHT_BITS).clamp(0, 255) as u8
    }
}

fn cubic(d: f64) -> f64 {
    let d = d.abs();
    if d < 1.0 {
        ((CUBIC_A + 2.0) * d - (CUBIC_A + 3.0)) * d * d + 1.0
    } else if d < 2.0 {
        (((d - 5.0) * d + 8.0) * d - 4.0) * CUBIC_A
    } else {
        0.0
    }
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
