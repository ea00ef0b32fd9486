//! The first frame of a GIF, as Pillow shows it.
//!
//! ```text
//! canvas, in the colour of the transparent index, or of index 0 ─► the frame's pixels, transparent ones in their own colour ─► RGB
//! ```
//!
//! A frame may be smaller than its canvas; what lies around it has no colour by the format, and `image` leaves it black. One that
//! reaches beyond the canvas makes it larger. Without any palette, indices are shades of grey.
//!
//! Source: Pillow, `src/PIL/GifImagePlugin.py`, `_seek` and `load_prepare`.

use std::num::NonZeroU64;

use image::RgbImage;

use super::{Error, Limits};

/// The first frame on its canvas.
///
/// # Errors
/// [`Error::Damaged`], [`Error::TooManyPixels`].
pub(super) fn first_frame(bytes: &[u8], limits: &Limits) -> Result<RgbImage, Error> {
    let damaged = |e: gif::DecodingError| Error::Damaged(e.to_string());
    let mut options = gif::DecodeOptions::new();
    if let Some(memory) = NonZeroU64::new(limits.memory()) {
        options.set_memory_limit(gif::MemoryLimit::Bytes(memory));
    }
    let mut reader = options.read_info(bytes).map_err(damaged)?;
    let canvas = (reader.width(), reader.height());
    let frame = reader.next_frame_info().map_err(damaged)?;
    let frame = frame.ok_or_else(|| Error::Damaged("it has no frame".into()))?.clone();
    let [left, top, columns, rows] = [frame.left, frame.top, frame.width, frame.height].map(u32::from);
    let (width, height) = (u32::from(canvas.0).max(left + columns), u32::from(canvas.1).max(top + rows));
    limits.check_size(width, height)?;
    let mut indices = vec![0; reader.buffer_size()];
    reader.read_into_buffer(&mut indices).map_err(damaged)?;

    let palette = frame.palette.as_deref().or(reader.global_palette());
    let colours: [image::Rgb<u8>; 256] = std::array::from_fn(|index| {
        let Some(palette) = palette else { return image::Rgb([index as u8; 3]) };
        // A palette may be shorter than its indices: black, as in Pillow.
        image::Rgb(palette.as_chunks::<3>().0.get(index).copied().unwrap_or_default())
    });
    let around = usize::from(frame.transparent.unwrap_or(0));
    let mut picture = RgbImage::from_pixel(width, height, colours[around]);
    for (y, row) in (top..).zip(indices.chunks_exact(columns.max(1) as usize)) {
        for (x, &index) in (left..).zip(row) {
            picture.put_pixel(x, y, colours[usize::from(index)]);
        }
    }
    Ok(picture)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::media::image::{ImageOptions, Orientation, decode};

    const RED: [u8; 3] = [200, 10, 10];
    const GREEN: [u8; 3] = [10, 200, 10];
    const BLUE: [u8; 3] = [10, 10, 200];

    /// A frame of 2×1 pixels, indices 1 and 2, at (1, 1) of a canvas; colours 0 to 2 are red, green and blue.
    fn small(canvas: (u16, u16), transparent: Option<u8>, local: Option<Vec<u8>>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder =
            gif::Encoder::new(&mut bytes, canvas.0, canvas.1, &[RED, GREEN, BLUE].concat()).unwrap();
        let frame = gif::Frame {
            left: 1,
            top: 1,
            width: 2,
            height: 1,
            transparent,
            palette: local,
            buffer: Cow::Borrowed(&[1, 2]),
            ..gif::Frame::default()
        };
        encoder.write_frame(&frame).unwrap();
        drop(encoder);
        bytes
    }

    /// The pixels, row by row.
    fn pixels(bytes: &[u8]) -> (usize, Vec<[u8; 3]>) {
        let options = ImageOptions { side: 8, orientation: Orientation::Apply, limits: Limits::default() };
        let rgb = decode(bytes, &options).unwrap();
        (rgb.width, rgb.data.as_chunks::<3>().0.to_vec())
    }

    #[test]
    fn around_a_small_first_frame_is_the_first_colour() {
        let expected = [RED, RED, RED, RED, GREEN, BLUE];
        assert_eq!(pixels(&small((3, 2), None, None)), (3, expected.to_vec()));
        let local = [BLUE, RED, GREEN].concat();
        let expected = [BLUE, BLUE, BLUE, BLUE, RED, GREEN];
        assert_eq!(
            pixels(&small((3, 2), None, Some(local))),
            (3, expected.to_vec()),
            "the frame's own palette"
        );
    }

    #[test]
    fn around_a_small_first_frame_with_transparency_is_the_transparent_colour() {
        let expected = [BLUE, BLUE, BLUE, BLUE, GREEN, BLUE];
        assert_eq!(pixels(&small((3, 2), Some(2), None)), (3, expected.to_vec()));
    }

    #[test]
    fn a_first_frame_beyond_the_canvas_makes_it_larger() {
        let expected = [RED, RED, RED, RED, GREEN, BLUE];
        assert_eq!(pixels(&small((2, 1), None, None)), (3, expected.to_vec()));
        let limits = Limits { max_side: 2, ..Limits::default() };
        let options = ImageOptions { side: 8, orientation: Orientation::Apply, limits };
        let large = decode(&small((2, 1), None, None), &options);
        assert!(matches!(large, Err(Error::TooManyPixels { width: 3, height: 2, .. })), "{large:?}");
    }
}
