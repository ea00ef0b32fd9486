//! A map of labels: what each pixel of a picture shows.
//!
//! ```text
//! PNG, grey, 8 bits ─► a byte for each pixel: 0 for none, classes from 1 on
//! ```
//! Palettes and colours are refused: which colour is which class stands in no file of theirs.

use std::io::Cursor;

use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder};

use super::{Error, Limits};

/// A map of labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelMap {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `width · height` labels, row by row.
    pub labels: Vec<u8>,
}

impl LabelMap {
    /// Reads a PNG.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::TooManyBytes`], [`Error::TooManyPixels`], [`Error::NotALabelMap`], [`Error::Damaged`].
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, Error> {
        if bytes.is_empty() {
            return Err(Error::Empty);
        }
        if bytes.len() > limits.max_bytes {
            return Err(Error::TooManyBytes { received: bytes.len(), limit: limits.max_bytes });
        }
        let mut allocation = image::Limits::default();
        allocation.max_alloc = Some(limits.memory());
        let decoder = image::codecs::png::PngDecoder::with_limits(Cursor::new(bytes), allocation);
        let decoder = decoder.map_err(|e| Error::NotALabelMap(e.to_string()))?;
        let (width, height) = decoder.dimensions();
        limits.check_size(width, height)?;
        let colours = decoder.original_color_type();
        if colours != ExtendedColorType::L8 {
            let what = match colours {
                ExtendedColorType::L1 | ExtendedColorType::L2 | ExtendedColorType::L4 => "it has fewer bits",
                ExtendedColorType::L16 => "it has 16 bits",
                _ => "it has colours or a palette",
            };
            return Err(Error::NotALabelMap(what.into()));
        }
        let picture = DynamicImage::from_decoder(decoder).map_err(|e| Error::Damaged(e.to_string()))?;
        Ok(LabelMap {
            width: width as usize,
            height: height as usize,
            labels: picture.into_luma8().into_raw(),
        })
    }

    /// As a PNG.
    ///
    /// # Errors
    /// [`Error::NotALabelMap`] for another number of labels than pixels.
    pub fn png(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let (width, height) = (self.width as u32, self.height as u32);
        if self.labels.len() != self.width * self.height {
            let why = format!("{} labels of {width}×{height} pixels", self.labels.len());
            return Err(Error::NotALabelMap(why));
        }
        let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
        let written = encoder.write_image(&self.labels, width, height, ExtendedColorType::L8);
        written.map_err(|e| Error::NotALabelMap(e.to_string()))?;
        Ok(bytes)
    }

    /// How many pixels have each label, `[256]`.
    pub fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; 256];
        self.labels.iter().for_each(|&label| counts[usize::from(label)] += 1);
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_back_and_colours_are_refused() {
        let map = LabelMap { width: 3, height: 2, labels: vec![0, 1, 150, 255, 7, 7] };
        let limits = Limits::default();
        assert_eq!(LabelMap::decode(&map.png().unwrap(), &limits).unwrap(), map);
        let counts = map.counts();
        assert_eq!((counts[7], counts[0], counts[2]), (2, 1, 0));
        let of = |picture: DynamicImage| {
            let mut bytes = Cursor::new(Vec::new());
            picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
            LabelMap::decode(&bytes.into_inner(), &limits)
        };
        for colours in [DynamicImage::new_rgb8(2, 2), DynamicImage::new_luma16(2, 2)] {
            assert!(matches!(of(colours), Err(Error::NotALabelMap(_))));
        }
        let whole = map.png().unwrap();
        for cut in [1, 20, whole.len() / 2] {
            assert!(LabelMap::decode(&whole[..cut], &limits).is_err());
        }
        assert_eq!(LabelMap::decode(&[], &limits), Err(Error::Empty));
        let small = Limits { max_side: 2, ..limits };
        assert!(matches!(LabelMap::decode(&whole, &small), Err(Error::TooManyPixels { .. })));
        assert!(LabelMap { width: 9, ..map }.png().is_err());
    }

    /// Two pixels by a palette of two colours.
    #[test]
    fn a_palette_is_refused() {
        const BYTES: &[u8] = b"\x89\x50\x4e\x47\x0d\x0a\x1a\x0a\x00\x00\x00\x0d\x49\x48\x44\x52\x00\x00\x00\x02\x00\x00\x00\x01\x08\x03\x00\x00\x00\xc3\xfc\x8f\xb8\x00\x00\x00\x06\x50\x4c\x54\x45\x00\x00\x00\xff\x00\x00\x1b\xff\x8d\x22\x00\x00\x00\x0b\x49\x44\x41\x54\x78\x9c\x63\x60\x60\x04\x00\x00\x04\x00\x02\xbf\x7a\x3f\x4a\x00\x00\x00\x00\x49\x45\x4e\x44\xae\x42\x60\x82";
        let refused = LabelMap::decode(BYTES, &Limits::default()).unwrap_err();
        assert!(refused.to_string().contains("palette"), "{refused}");
    }
}
