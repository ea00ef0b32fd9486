//! Bytes of a file become what an encoder takes. Pure and deterministic.
//!
//! Preprocessing is part of the model: a plain resize in place of the reference's costs about 1 % of cosine. So every
//! rule here that changes a number is part of a fingerprint, which a cache keeps beside its weights' fingerprint.

pub mod image;
pub mod npy;

pub use image::{ImageOptions, Limits, Orientation};

/// Why a file gives no input. Every variant is the file's fault: trying again does not help.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// Nothing there.
    #[error("the file is empty")]
    Empty,
    /// More bytes than allowed.
    #[error("the file has {received} bytes, more than the limit of {limit}")]
    TooManyBytes {
        /// Bytes given.
        received: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not a picture that can be read.
    #[error("not a readable image (JPEG, PNG, WebP, GIF and BMP are read): {0}")]
    NotAnImage(String),
    /// More pixels than allowed, as the header says; nothing was allocated.
    #[error("the image is {width}×{height}, more than the limit of {max_side} a side or {max_pixels} pixels")]
    TooManyPixels {
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
        /// Longest side allowed.
        max_side: u32,
        /// Pixels allowed.
        max_pixels: u64,
    },
    /// Broken behind its header.
    #[error("the image is damaged or cut short: {0}")]
    Damaged(String),
}
