//! Bytes of a file become what an encoder takes. Pure and deterministic.
//!
//! | file | from | to |
//! |---|---|---|
//! | `image.rs` | JPEG, PNG, WebP, GIF, BMP | `[3, S, S]` |
//! | `gif.rs` | GIF | its first frame |
//! | `rgb.rs` | | a decoded picture, a part of it |
//! | `resample.rs` | | resizing as Pillow does it |
//! | `labels.rs` | PNG of one channel | a label for each pixel |
//! | `augment/` | decoded pictures | `[3, S, S]`, for a classifier that learns or is tested |
//! | `video.rs` | frames | `[15, 3, 2, S, S]` |
//! | `audio/` | WAV, FLAC, MP3, Ogg | `[3, bands, columns]` |
//! | `plane.rs` | depth, thermal: PNG, EXR, npy | `[1, H, W]` |
//! | `imu.rs` | CSV, npy | `[6, T]` |
//! | `points.rs` | PLY, XYZ, npy | `[N, 3]` |
//! | `npy.rs` | numpy's arrays | numbers |
//! | `bilinear.rs` | | resizing along one axis |
//! | `limits.rs` | | what one picture may cost |
//!
//! Preprocessing is part of the model: a plain resize in place of the reference's costs about 1 % of cosine. So every
//! rule here that changes a number is part of a fingerprint, which a cache keeps beside its weights' fingerprint.

pub mod audio;
pub mod augment;
mod bilinear;
mod gif;
pub mod image;
pub mod imu;
mod labels;
mod limits;
pub mod npy;
pub mod plane;
pub mod points;
mod resample;
mod rgb;
pub mod video;

use serde::{Deserialize, Serialize};

pub use audio::AudioLimits;
pub use image::{ImageOptions, Orientation};
pub use imu::ImuOptions;
pub use labels::LabelMap;
pub use limits::Limits;
pub use plane::{DepthOptions, ThermalOptions};
pub use points::{PointLimits, PointOptions};
pub use rgb::{Rgb, Window};

/// What one file of each kind may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MediaLimits {
    /// Pictures; depth and thermal pictures and the frames of a film as well.
    pub image: Limits,
    /// Sounds.
    pub audio: AudioLimits,
    /// Point clouds; IMU tables by their bytes as well.
    pub point: PointLimits,
}

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
    #[error("not a readable image (JPEG, PNG, WebP, GIF, BMP, TIFF and PNM are read): {0}")]
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
    /// There is no memory to decode it in.
    #[error("it cannot be decoded now: {0}; try again shortly")]
    NoRoom(String),
    /// A decoder gave up in a way that it should not.
    #[error("the decoder crashed on it: the file is damaged, or made to do so")]
    Crashed,
    /// Broken behind its header.
    #[error("the image is damaged or cut short: {0}")]
    Damaged(String),
    /// Not a sound that can be read.
    #[error("not a readable sound (WAV, FLAC, MP3 and Ogg Vorbis are read): {0}")]
    NotASound(String),
    /// A sound that is broken behind its header.
    #[error("the sound is damaged: {0}")]
    DamagedSound(String),
    /// A sound file without sound.
    #[error("the sound has no samples")]
    NoSamples,
    /// A sound shorter than a window.
    #[error("the sound is too short: {samples} samples at 16 kHz, a window has {needed} (25 ms)")]
    TooShort {
        /// Its samples.
        samples: usize,
        /// Samples needed.
        needed: usize,
    },
    /// Longer than allowed.
    #[error("the {what} is longer than the limit of {limit} s")]
    TooLong {
        /// A sound or a film.
        what: &'static str,
        /// Seconds allowed.
        limit: u32,
    },
    /// A film whose frames cannot be used.
    #[error("not a usable film: {0}")]
    Film(String),
    /// Not a picture of one channel that can be read.
    #[error("not a readable picture of one channel (PNG of 8 or 16 bits, EXR and .npy [H, W] are read): {0}")]
    NotAPlane(String),
    /// Not a map of labels that can be read or written.
    #[error("not a map of labels (a grey PNG of 8 bits is read): {0}")]
    NotALabelMap(String),
    /// Not measurements that can be read.
    #[error("not readable IMU measurements (CSV and .npy [6, T] are read): {0}")]
    NotMeasurements(String),
    /// Not points that can be read.
    #[error("not a readable point cloud (PLY, XYZ and .npy [N, 3] are read): {0}")]
    NotACloud(String),
    /// A setting of the request that cannot be used.
    #[error("`{name}`: {why}")]
    Option {
        /// Which.
        name: &'static str,
        /// Why not.
        why: String,
    },
}
