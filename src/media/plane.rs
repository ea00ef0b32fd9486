//! Pictures of one channel become what the depth and thermal encoders take, `[1, H, W]`.
//!
//! ```text
//! PNG of 8 or 16 bits, EXR, .npy [H, W] ─► values ─► depth: metres ─► disparity ┐─► short side to S ─► centre ─► normalise
//!                                                    thermal: share of a range  ┘
//! ```
//!
//! ImageBind's repository has no loader for these, so the rules are ours, and every one can be set for a request:
//!
//! * **Depth.** Values become metres by `scale` (default: 0.001 for whole numbers, which are millimetres, 1 for floats). Metres
//!   are held within 0.01 and 50 and become disparity, `baseline · focal_length / metres` in pixels, which is held below
//!   `max_disparity` and divided by it. 0, negative and non-finite values mean *not measured* and get disparity 0. Then the
//!   mean is subtracted and the deviation divided by, as users of ImageBind report them.
//! * **Thermal.** Values become a share of a range: 0 to 255 for 8 bits, 0 to 65535 for 16, 0 to 1 for floats, or the one that
//!   is given, and are held within it. No mean or deviation is applied unless one is given.
//! * **Resize.** Bilinear, half-pixel centres, no anti-aliasing; the shorter side becomes S and the centre is cut out.
//!
//! Source: the defaults of depth are those of SUN RGB-D's first Kinect as Omnivore (arXiv 2201.08377), by the same authors, uses
//! them: baseline 0.075 m, focal length 518.86 pixels, disparities up to 75.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageReader};

use super::bilinear::{Tap, taps};
use super::{Error, Limits, npy};

/// Metres between which depths are held.
const METRES: std::ops::RangeInclusive<f32> = 0.01..=50.0;

/// How depths become the encoder's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DepthOptions {
    /// Metres for a value of 1; `None`: 0.001 for whole numbers, 1 for floats.
    pub scale: Option<f32>,
    /// Distance between the stereo pair's cameras, metres.
    pub baseline: f32,
    /// Focal length, pixels.
    pub focal_length: f32,
    /// Disparity that becomes 1, pixels.
    pub max_disparity: f32,
    /// Subtracted.
    pub mean: f32,
    /// Divided by.
    pub std: f32,
}

impl Default for DepthOptions {
    fn default() -> Self {
        DepthOptions {
            scale: None,
            baseline: 0.075,
            focal_length: 518.86,
            max_disparity: 75.0,
            mean: 0.0418,
            std: 0.0295,
        }
    }
}

impl DepthOptions {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Option`] naming the first that cannot be used.
    pub fn validate(&self) -> Result<(), Error> {
        above_zero("scale", self.scale.unwrap_or(1.0))?;
        above_zero("baseline", self.baseline)?;
        above_zero("focal_length", self.focal_length)?;
        above_zero("max_disparity", self.max_disparity)?;
        above_zero("std", self.std)?;
        finite("mean", self.mean)
    }
}

/// How temperatures become the encoder's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ThermalOptions {
    /// Values that become 0 and 1; `None`: the whole range of the file's type, 0 to 1 for floats.
    pub range: Option<[f32; 2]>,
    /// Subtracted.
    pub mean: f32,
    /// Divided by.
    pub std: f32,
}

impl Default for ThermalOptions {
    fn default() -> Self {
        ThermalOptions { range: None, mean: 0.0, std: 1.0 }
    }
}

impl ThermalOptions {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Option`] naming the first that cannot be used.
    pub fn validate(&self) -> Result<(), Error> {
        finite("mean", self.mean)?;
        above_zero("std", self.std)?;
        match self.range {
            Some([low, high]) if !(low.is_finite() && high.is_finite() && low < high) => Err(Error::Option {
                name: "range",
                why: format!("[{low}, {high}] is not a range from low to high"),
            }),
            _ => Ok(()),
        }
    }
}

/// A picture of one channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Row by row.
    pub values: Vec<f32>,
    /// Largest value of the file's type: 255, 65535, or 1 for floats.
    pub full: f32,
}

/// Prepares a depth picture: `[1, H, W]`.
///
/// # Errors
/// As [`decode`]; [`Error::Option`].
pub fn prepare_depth(
    bytes: &[u8],
    size: [usize; 2],
    options: &DepthOptions,
    limits: &Limits,
) -> Result<Vec<f32>, Error> {
    options.validate()?;
    let mut plane = decode(bytes, limits)?;
    let scale = options.scale.unwrap_or(if plane.full > 1.0 { 0.001 } else { 1.0 });
    for value in &mut plane.values {
        let metres = *value * scale;
        *value = match metres.is_finite() && metres > 0.0 {
            true => {
                let disparity =
                    options.baseline * options.focal_length / metres.clamp(*METRES.start(), *METRES.end());
                disparity.min(options.max_disparity) / options.max_disparity
            }
            false => 0.0,
        };
    }
    Ok(finish(&plane, size, options.mean, options.std))
}

/// Prepares a thermal picture: `[1, H, W]`.
///
/// # Errors
/// As [`decode`]; [`Error::Option`]; [`Error::Damaged`] for a value that is not a number.
pub fn prepare_thermal(
    bytes: &[u8],
    size: [usize; 2],
    options: &ThermalOptions,
    limits: &Limits,
) -> Result<Vec<f32>, Error> {
    options.validate()?;
    let mut plane = decode(bytes, limits)?;
    let [low, high] = options.range.unwrap_or([0.0, plane.full]);
    if let Some(at) = plane.values.iter().position(|value| !value.is_finite()) {
        let (x, y) = (at % plane.width, at / plane.width);
        return Err(Error::Damaged(format!("the value in column {x} of row {y} is not a finite number")));
    }
    plane.values.iter_mut().for_each(|value| *value = ((*value - low) / (high - low)).clamp(0.0, 1.0));
    Ok(finish(&plane, size, options.mean, options.std))
}

/// Reads a picture of one channel. Of an EXR file with several the one named Z, depth, Y or R is taken; other pictures in colour
/// are refused.
///
/// # Errors
/// [`Error::Empty`], [`Error::TooManyBytes`], [`Error::TooManyPixels`], [`Error::NotAPlane`], [`Error::Damaged`].
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Plane, Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(Error::TooManyBytes { received: bytes.len(), limit: limits.max_bytes });
    }
    if bytes.starts_with(npy::MAGIC) {
        return from_npy(bytes, limits);
    }
    if bytes.starts_with(&exr::meta::magic_number::BYTES) {
        return from_exr(bytes, limits);
    }
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| Error::NotAPlane(e.to_string()))?;
    let mut allocation = image::Limits::default();
    allocation.max_image_width = Some(limits.max_side);
    allocation.max_image_height = Some(limits.max_side);
    allocation.max_alloc = Some(limits.memory());
    reader.limits(allocation);
    let decoder = reader.into_decoder().map_err(|e| Error::NotAPlane(e.to_string()))?;
    let (width, height) = decoder.dimensions();
    check_size(u64::from(width), u64::from(height), limits)?;
    let picture = DynamicImage::from_decoder(decoder).map_err(|e| Error::Damaged(e.to_string()))?;
    let (values, full): (Vec<f32>, f32) = match picture {
        DynamicImage::ImageLuma8(p) => (p.into_raw().into_iter().map(f32::from).collect(), 255.0),
        DynamicImage::ImageLuma16(p) => (p.into_raw().into_iter().map(f32::from).collect(), 65535.0),
        other => {
            return Err(Error::NotAPlane(format!("it has the channels {:?}, one is taken", other.color())));
        }
    };
    Ok(Plane { width: width as usize, height: height as usize, values, full })
}

/// Channels of an EXR file that are taken, in this order; without any of them, its first.
const EXR_CHANNELS: [&str; 5] = ["Z", "depth", "Depth", "Y", "R"];

fn from_exr(bytes: &[u8], limits: &Limits) -> Result<Plane, Error> {
    use exr::prelude::{ReadChannels, ReadLayers};
    let unreadable = |e: exr::error::Error| Error::NotAPlane(e.to_string());
    // Sizes first: the reader itself allocates whatever a header says.
    let meta = exr::meta::MetaData::read_from_buffered(Cursor::new(bytes), false).map_err(unreadable)?;
    let channels: usize = meta.headers.iter().map(|header| header.channels.list.len()).sum();
    for header in &meta.headers {
        let (width, height) = (header.layer_size.width() as u64, header.layer_size.height() as u64);
        check_size(width, height, limits)?;
        if width * height * channels as u64 > limits.max_pixels {
            return Err(Error::NotAPlane(format!(
                "its {channels} channels of {width}×{height} are more than {} values",
                limits.max_pixels
            )));
        }
    }
    let image = exr::prelude::read()
        .no_deep_data()
        .largest_resolution_level()
        .all_channels()
        .first_valid_layer()
        .all_attributes()
        .non_parallel()
        .from_buffered(Cursor::new(bytes))
        .map_err(|e| Error::Damaged(e.to_string()))?;
    let layer = image.layer_data;
    let named = |name: &str| layer.channel_data.list.iter().find(|channel| channel.name.eq(name));
    let channel = EXR_CHANNELS.iter().find_map(|name| named(name)).or(layer.channel_data.list.first());
    let channel = channel.ok_or_else(|| Error::NotAPlane("it has no channel".into()))?;
    let values: Vec<f32> = channel.sample_data.values_as_f32().collect();
    let (width, height) = (layer.size.width(), layer.size.height());
    if values.len() != width * height {
        return Err(Error::NotAPlane(format!("its channel `{}` is sampled more coarsely", channel.name)));
    }
    Ok(Plane { width, height, values, full: 1.0 })
}

fn from_npy(bytes: &[u8], limits: &Limits) -> Result<Plane, Error> {
    let array = npy::read_array(bytes).map_err(Error::NotAPlane)?;
    let (height, width) = match array.shape[..] {
        [height, width] | [1, height, width] => (height, width),
        _ => return Err(Error::NotAPlane(format!("its shape {:?} is not [H, W]", array.shape))),
    };
    check_size(width as u64, height as u64, limits)?;
    Ok(Plane { width, height, values: array.values, full: array.full })
}

fn check_size(width: u64, height: u64, limits: &Limits) -> Result<(), Error> {
    if width == 0 || height == 0 {
        return Err(Error::NotAPlane(format!("it is {width}×{height}")));
    }
    if width.max(height) > u64::from(limits.max_side) || width.saturating_mul(height) > limits.max_pixels {
        let (width, height) = (width.min(u64::from(u32::MAX)) as u32, height.min(u64::from(u32::MAX)) as u32);
        let (max_side, max_pixels) = (limits.max_side, limits.max_pixels);
        return Err(Error::TooManyPixels { width, height, max_side, max_pixels });
    }
    Ok(())
}

fn finish(plane: &Plane, size: [usize; 2], mean: f32, std: f32) -> Vec<f32> {
    let mut values = cover(plane, size);
    values.iter_mut().for_each(|value| *value = (*value - mean) / std);
    values
}

/// Resizes so that the picture just covers `size`, and cuts the centre out.
fn cover(plane: &Plane, [height, width]: [usize; 2]) -> Vec<f32> {
    let scale = (height as f64 / plane.height as f64).max(width as f64 / plane.width as f64);
    let scaled = |side: usize, at_least: usize| ((side as f64 * scale) as usize).max(at_least);
    let (new_height, new_width) = (scaled(plane.height, height), scaled(plane.width, width));
    let (top, left) = ((new_height - height) / 2, (new_width - width) / 2);
    let rows: Vec<Tap> = taps(plane.height, new_height).skip(top).take(height).collect();
    let columns: Vec<Tap> = taps(plane.width, new_width).skip(left).take(width).collect();
    let mut values = Vec::with_capacity(height * width);
    for row in rows {
        let (above, below) =
            (&plane.values[row.low * plane.width..], &plane.values[row.high * plane.width..]);
        values.extend(columns.iter().map(|column| row.mix(column.of(above), column.of(below))));
    }
    values
}

fn above_zero(name: &'static str, value: f32) -> Result<(), Error> {
    match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => Err(Error::Option { name, why: format!("{value} is not a finite number above 0") }),
    }
}

fn finite(name: &'static str, value: f32) -> Result<(), Error> {
    match value.is_finite() {
        true => Ok(()),
        false => Err(Error::Option { name, why: format!("{value} is not a finite number") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ExtendedColorType, ImageEncoder};
    use proptest::prelude::*;

    fn png(values: &[u16], width: u32, height: u32) -> Vec<u8> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        let mut png = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut png);
        encoder.write_image(&bytes, width, height, ExtendedColorType::L16).unwrap();
        png
    }

    fn exr(values: &[f32], width: usize, height: usize, channel: &str) -> Vec<u8> {
        use exr::prelude::*;
        let samples = FlatSamples::F32(values.to_vec());
        let channels = AnyChannels::sort([AnyChannel::new(channel, samples)].into_iter().collect());
        let mut bytes = Vec::new();
        let image = Image::from_channels((width, height), channels);
        image.write().non_parallel().to_buffered(Cursor::new(&mut bytes)).unwrap();
        bytes
    }

    const PLAIN: DepthOptions = DepthOptions {
        scale: None,
        baseline: 1.0,
        focal_length: 1.0,
        max_disparity: 1.0,
        mean: 0.0,
        std: 1.0,
    };

    #[test]
    fn millimetres_and_metres_are_the_same_depth() {
        let metres = [1.0f32, 2.0, 4.0, 8.0, 1.6, 3.2];
        let millimetres: Vec<u16> = metres.iter().map(|m| (m * 1000.0) as u16).collect();
        let files = [png(&millimetres, 3, 2), exr(&metres, 3, 2, "Z"), npy::write(&metres, 3)];
        for file in files {
            let depth = prepare_depth(&file, [2, 3], &PLAIN, &Limits::default()).unwrap();
            let expected: Vec<f32> = metres.iter().map(|m| 1.0 / m).collect();
            assert!(depth.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{depth:?}");
        }
    }

    #[test]
    fn what_was_not_measured_is_far_and_the_near_is_held() {
        let file = npy::write(&[0.0, -1.0, f32::NAN, f32::INFINITY, 0.001, 100.0], 3);
        let depth = prepare_depth(&file, [2, 3], &PLAIN, &Limits::default()).unwrap();
        assert_eq!(depth, [0.0, 0.0, 0.0, 0.0, 1.0, 0.02]);
    }

    #[test]
    fn temperatures_are_a_share_of_a_range() {
        let limits = Limits::default();
        let whole = prepare_thermal(&png(&[0, 65535], 2, 1), [1, 2], &ThermalOptions::default(), &limits);
        assert_eq!(whole.unwrap(), [0.0, 1.0]);
        let options = ThermalOptions { range: Some([20.0, 40.0]), mean: 0.5, std: 0.5 };
        let some = prepare_thermal(&npy::write(&[10.0, 30.0, 50.0], 3), [1, 3], &options, &limits);
        assert_eq!(some.unwrap(), [-1.0, 0.0, 1.0]);
        let nan = npy::write(&[1.0, f32::NAN], 2);
        let refused = prepare_thermal(&nan, [1, 2], &ThermalOptions::default(), &limits);
        assert!(refused.unwrap_err().to_string().contains("column 1 of row 0"));
        let turned = ThermalOptions { range: Some([1.0, 1.0]), ..ThermalOptions::default() };
        assert!(matches!(turned.validate(), Err(Error::Option { name: "range", .. })));
    }

    #[test]
    fn the_centre_is_cut_out_of_what_just_covers() {
        // Twice as wide as high: the shorter side is kept, the middle two of four columns remain.
        let plane = Plane { width: 4, height: 2, values: (0..8).map(|v| v as f32).collect(), full: 1.0 };
        assert_eq!(cover(&plane, [2, 2]), [1.0, 2.0, 5.0, 6.0]);
        let one = Plane { width: 1, height: 1, values: vec![7.0], full: 1.0 };
        assert_eq!(cover(&one, [3, 3]), [7.0; 9]);
    }

    #[test]
    fn pictures_in_colour_and_huge_ones_are_refused() {
        let mut colour = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut colour);
        encoder.write_image(&[0; 3], 1, 1, ExtendedColorType::Rgb8).unwrap();
        assert!(matches!(decode(&colour, &Limits::default()), Err(Error::NotAPlane(_))));
        let small = Limits { max_pixels: 5, ..Limits::default() };
        for file in [png(&[0; 6], 3, 2), exr(&[0.0; 6], 3, 2, "Y"), npy::write(&[0.0; 6], 3)] {
            assert!(matches!(decode(&file, &small), Err(Error::TooManyPixels { .. })));
        }
        assert_eq!(decode(b"", &small), Err(Error::Empty));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn damaged_files_are_errors_or_planes(at in 0usize..400, to in any::<u8>(), cut in 0usize..400, kind in 0usize..3) {
            let values = [1.0f32, 2.0, 3.0, 4.0];
            let mut file = match kind {
                0 => png(&[1, 2, 3, 4], 2, 2),
                1 => exr(&values, 2, 2, "Z"),
                _ => npy::write(&values, 2),
            };
            let length = file.len();
            file[at % length] = to;
            file.truncate(length.saturating_sub(cut % length));
            if let Ok(plane) = decode(&file, &Limits { max_pixels: 1 << 16, ..Limits::default() }) {
                prop_assert_eq!(plane.values.len(), plane.width * plane.height);
            }
        }
    }
}
