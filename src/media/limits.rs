//! What one picture may cost.

use serde::{Deserialize, Serialize};

use super::Error;

/// What one file may cost. Checked on the header, before anything is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of the encoded file.
    pub max_bytes: usize,
    /// Pixels of the longer side.
    pub max_side: u32,
    /// Pixels in all. Decoding takes up to 12 bytes for each (a 16-bit picture and its 8-bit copy).
    pub max_pixels: u64,
}

impl Limits {
    /// Default of [`Limits::max_bytes`]: 32 MiB.
    pub const DEFAULT_MAX_BYTES: usize = 32 << 20;
    /// Default of [`Limits::max_side`].
    pub const DEFAULT_MAX_SIDE: u32 = 16_384;
    /// Default of [`Limits::max_pixels`]: a camera of 64 megapixels.
    pub const DEFAULT_MAX_PIXELS: u64 = 64 << 20;
    /// Memory that decoding one allowed picture may take, per pixel.
    const BYTES_PER_PIXEL: u64 = 12;

    /// Most memory that decoding one picture may take.
    pub fn memory(&self) -> u64 {
        self.max_bytes as u64 + self.max_pixels * Self::BYTES_PER_PIXEL
    }

    /// Refuses a picture that is too large.
    ///
    /// # Errors
    /// [`Error::TooManyPixels`].
    pub(super) fn check_size(&self, width: u32, height: u32) -> Result<(), Error> {
        let &Limits { max_side, max_pixels, .. } = self;
        match width.max(height) > max_side || u64::from(width) * u64::from(height) > max_pixels {
            true => Err(Error::TooManyPixels { width, height, max_side, max_pixels }),
            false => Ok(()),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_bytes: Self::DEFAULT_MAX_BYTES,
            max_side: Self::DEFAULT_MAX_SIDE,
            max_pixels: Self::DEFAULT_MAX_PIXELS,
        }
    }
}
