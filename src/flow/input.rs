//! What a caller sends to be embedded.

use bytes::Bytes;

use crate::media::{DepthOptions, ImuOptions, PointOptions, ThermalOptions};
use crate::types::{Fingerprint, Modality};

/// Something to embed, as it came.
#[derive(Debug, Clone)]
pub enum MediaInput {
    /// A picture file.
    Image(Bytes),
    /// A text.
    Text(Bytes),
    /// A sound file.
    Audio(Bytes),
    /// A film file.
    Film(Bytes),
    /// The frames of a film, picture files each, and how many there are a second.
    Frames(Vec<Bytes>, f64),
    /// A depth picture.
    Depth(Bytes, DepthOptions),
    /// A thermal picture.
    Thermal(Bytes, ThermalOptions),
    /// A table of measurements.
    Imu(Bytes, ImuOptions),
    /// A point cloud.
    Point(Bytes, PointOptions),
    /// What the encoder takes: which one, shape, values.
    Ready(Modality, Vec<usize>, Vec<f32>),
}

impl MediaInput {
    /// What it is.
    pub fn modality(&self) -> Modality {
        match self {
            MediaInput::Image(_) => Modality::Image,
            MediaInput::Text(_) => Modality::Text,
            MediaInput::Audio(_) => Modality::Audio,
            MediaInput::Film(_) | MediaInput::Frames(..) => Modality::Video,
            MediaInput::Depth(..) => Modality::Depth,
            MediaInput::Thermal(..) => Modality::Thermal,
            MediaInput::Imu(..) => Modality::Imu,
            MediaInput::Point(..) => Modality::Point,
            MediaInput::Ready(modality, ..) => *modality,
        }
    }

    /// Digest of the bytes, by which an item is known to be unchanged.
    pub fn digest(&self) -> Fingerprint {
        match self {
            MediaInput::Image(bytes)
            | MediaInput::Text(bytes)
            | MediaInput::Audio(bytes)
            | MediaInput::Film(bytes)
            | MediaInput::Depth(bytes, _)
            | MediaInput::Thermal(bytes, _)
            | MediaInput::Imu(bytes, _)
            | MediaInput::Point(bytes, _) => Fingerprint::of(bytes),
            MediaInput::Frames(frames, _) => Fingerprint::of(&frames.concat()),
            MediaInput::Ready(_, _, values) => Fingerprint::of(bytemuck::cast_slice(values)),
        }
    }
}
