//! Files, texts and ready tensors into what an encoder takes.

use candle_core::Tensor;

use super::super::Error;
use super::Encoder;
use super::network::Model;
use crate::media::augment::Evaluation;
use crate::media::{self, DepthOptions, ImuOptions, PointOptions, Rgb, ThermalOptions};
use crate::models::imagebind::Config;
use crate::text;
use crate::types::Modality;

/// Most clips of a ready-made input.
const MAX_CLIPS: usize = 64;

/// Something to embed, before it is prepared.
#[derive(Debug, Clone, Copy)]
pub enum Media<'a> {
    /// A picture file.
    Image(&'a [u8]),
    /// A text, UTF-8.
    Text(&'a [u8]),
    /// A sound file.
    Audio(&'a [u8]),
    /// First and last frame of each clip of a film, as [`media::video::picks`] chooses them.
    Video(&'a [[&'a Rgb; 2]; 5]),
    /// A depth picture.
    Depth(&'a [u8], DepthOptions),
    /// A thermal picture.
    Thermal(&'a [u8], ThermalOptions),
    /// A table of measurements.
    Imu(&'a [u8], ImuOptions),
    /// A point cloud.
    Point(&'a [u8], PointOptions),
    /// What the encoder of a modality takes, ready made: shape without the batch, values row by row.
    Ready(Modality, &'a [usize], &'a [f32]),
}

impl Media<'_> {
    /// What it is.
    pub fn modality(&self) -> Modality {
        match self {
            Media::Image(_) => Modality::Image,
            Media::Text(_) => Modality::Text,
            Media::Audio(_) => Modality::Audio,
            Media::Video(_) => Modality::Video,
            Media::Depth(..) => Modality::Depth,
            Media::Thermal(..) => Modality::Thermal,
            Media::Imu(..) => Modality::Imu,
            Media::Point(..) => Modality::Point,
            Media::Ready(modality, ..) => *modality,
        }
    }
}

/// What an encoder takes, for one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// Which encoder.
    pub modality: Modality,
    /// Shape of the values, without the batch.
    pub shape: Vec<usize>,
    /// The values.
    pub values: Values,
    /// The point that grouping begins at; 0 for everything but point clouds.
    pub start: usize,
}

/// Numbers of a [`Prepared`].
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Of a signal.
    Float(Vec<f32>),
    /// Token ids, padding included.
    Ids(Vec<u32>),
}

impl Prepared {
    fn float(modality: Modality, shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        Prepared { modality, shape: shape.into(), values: Values::Float(values), start: 0 }
    }

    /// A film's views, each as a film of one, in their order; nothing of what is looked at as a whole.
    pub fn views(&self) -> Vec<Prepared> {
        let (Values::Float(values), Modality::Video, [count, ..]) =
            (&self.values, self.modality, &self.shape[..])
        else {
            return Vec::new();
        };
        if *count < 2 {
            return Vec::new();
        }
        let view = |values: &[f32]| Prepared {
            modality: self.modality,
            shape: [1].into_iter().chain(self.shape[1..].iter().copied()).collect(),
            values: Values::Float(values.to_vec()),
            start: self.start,
        };
        values.chunks_exact((values.len() / count).max(1)).map(view).collect()
    }

    /// A batch of one shape and modality, `[B, …]`.
    pub(super) fn stack(batch: &[&Prepared]) -> Result<Tensor, Error> {
        let Some(first) = batch.first() else { return Err(Error::Config("an empty batch".into())) };
        let shape: Vec<usize> = [batch.len()].into_iter().chain(first.shape.iter().copied()).collect();
        let cpu = candle_core::Device::Cpu;
        let (mut floats, mut ids) = (Vec::new(), Vec::new());
        for prepared in batch {
            match &prepared.values {
                Values::Float(values) => floats.extend_from_slice(values),
                Values::Ids(values) => ids.extend_from_slice(values),
            }
        }
        Ok(match ids.is_empty() {
            true => Tensor::from_vec(floats, shape, &cpu)?,
            false => Tensor::from_vec(ids, shape, &cpu)?,
        })
    }
}

/// Why an input cannot be prepared. Always the input's fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PrepareError {
    /// A picture that cannot be read.
    #[error(transparent)]
    Media(#[from] media::Error),
    /// A text that cannot be encoded.
    #[error(transparent)]
    Text(#[from] text::Error),
    /// Text that is not UTF-8.
    #[error("the text is not UTF-8 (byte {0} is not)")]
    NotUtf8(usize),
    /// A ready-made input of a shape that its encoder does not take.
    #[error(
        "the encoder of {modality} takes no tensor of shape {shape:?}, or it holds a number that is not finite"
    )]
    Ready {
        /// Which encoder.
        modality: Modality,
        /// The shape sent.
        shape: Vec<usize>,
    },
    /// A token that the vocabulary does not have.
    #[error("{0} is not the id of a token of this model")]
    TokenId(f32),
    /// Numbers or settings so large that nothing finite becomes of them.
    #[error(
        "what becomes of this {0} is not finite: its numbers, or the settings it comes with, are too large"
    )]
    NotFinite(Modality),
    /// A modality that was not loaded.
    #[error("this model was loaded without {0}")]
    NotLoaded(Modality),
}

impl Encoder {
    /// Brings a file or text of a modality that needs no settings into the model's form, by the defaults where it has some.
    ///
    /// # Errors
    /// [`PrepareError`]; for videos always, whose frames somebody else decodes ([`Media::Video`]).
    pub fn prepare(&self, modality: Modality, bytes: &[u8]) -> Result<Prepared, PrepareError> {
        self.prepare_media(&match modality {
            Modality::Image => Media::Image(bytes),
            Modality::Text => Media::Text(bytes),
            Modality::Audio => Media::Audio(bytes),
            Modality::Depth => Media::Depth(bytes, DepthOptions::default()),
            Modality::Thermal => Media::Thermal(bytes, ThermalOptions::default()),
            Modality::Imu => Media::Imu(bytes, ImuOptions::default()),
            Modality::Point => Media::Point(bytes, PointOptions::default()),
            Modality::Video => {
                return Err(media::Error::Film("its frames are not decoded here".into()).into());
            }
        })
    }

    /// Brings anything into the model's form.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub fn prepare_media(&self, media: &Media<'_>) -> Result<Prepared, PrepareError> {
        let prepared = self.prepare_unchecked(media)?;
        match &prepared.values {
            Values::Float(values) if values.iter().any(|value| !value.is_finite()) => {
                Err(PrepareError::NotFinite(prepared.modality))
            }
            _ => Ok(prepared),
        }
    }

    fn prepare_unchecked(&self, media: &Media<'_>) -> Result<Prepared, PrepareError> {
        self.expects(media.modality())?;
        match &self.model {
            Model::ImageBind(model) => self.for_imagebind(model.config(), media),
            Model::Illama(_, evaluation) => self.for_illama(evaluation, media),
        }
    }

    /// Pictures, by the rules that a classifier is tested with.
    fn for_illama(&self, evaluation: &Evaluation, media: &Media<'_>) -> Result<Prepared, PrepareError> {
        let (modality, shape) = (media.modality(), [3, evaluation.side, evaluation.side]);
        match media {
            Media::Image(bytes) => {
                let values = evaluation.prepare_bytes(bytes, &self.limits.image)?;
                Ok(Prepared::float(modality, shape, values))
            }
            Media::Ready(_, sent, values) => {
                match *sent == shape && values.len() == sent.iter().product::<usize>() {
                    true => Ok(Prepared::float(modality, shape, values.to_vec())),
                    false => Err(PrepareError::Ready { modality, shape: sent.to_vec() }),
                }
            }
            _ => Err(PrepareError::NotLoaded(modality)),
        }
    }

    fn for_imagebind(&self, sizes: &Config, media: &Media<'_>) -> Result<Prepared, PrepareError> {
        let (modality, side) = (media.modality(), self.images.side);
        let missing = || PrepareError::NotLoaded(modality);
        Ok(match media {
            Media::Image(bytes) => {
                Prepared::float(modality, [3, side, side], media::image::prepare(bytes, &self.images)?)
            }
            Media::Video(clips) => {
                let values = media::video::prepare(clips, side)?;
                Prepared::float(modality, [media::video::VIEWS, 3, 2, side, side], values)
            }
            Media::Text(bytes) => {
                let tokenizer = self.tokenizer.as_ref().ok_or_else(missing)?;
                let text = std::str::from_utf8(bytes).map_err(|e| PrepareError::NotUtf8(e.valid_up_to()))?;
                let ids = tokenizer.encode(text)?;
                Prepared { modality, shape: vec![ids.len()], values: Values::Ids(ids), start: 0 }
            }
            Media::Audio(bytes) => {
                let (front, sizes) = self.sounds.as_ref().zip(sizes.audio.as_ref()).ok_or_else(missing)?;
                let shape = [media::audio::CLIPS, 1, sizes.num_mel_bins, sizes.target_len];
                Prepared::float(modality, shape, front.prepare(bytes)?)
            }
            Media::Depth(bytes, options) => {
                let [height, width] = sizes.depth.as_ref().ok_or_else(missing)?.image_size;
                let values =
                    media::plane::prepare_depth(bytes, [height, width], options, &self.limits.image)?;
                Prepared::float(modality, [1, height, width], values)
            }
            Media::Thermal(bytes, options) => {
                let [height, width] = sizes.thermal.as_ref().ok_or_else(missing)?.image_size;
                let values =
                    media::plane::prepare_thermal(bytes, [height, width], options, &self.limits.image)?;
                Prepared::float(modality, [1, height, width], values)
            }
            Media::Imu(bytes, options) => {
                let steps = sizes.imu.as_ref().ok_or_else(missing)?.length;
                let values = media::imu::prepare(bytes, steps, options, self.limits.point.max_bytes)?;
                Prepared::float(modality, [media::imu::AXES, steps], values)
            }
            Media::Point(bytes, options) => {
                let sizes = sizes.point.as_ref().ok_or_else(missing)?;
                let (least, most) = (sizes.group_size, sizes.npoints);
                let cloud = media::points::prepare(bytes, (least, most), *options, &self.limits.point)?;
                let shape = [cloud.values.len() / 3, 3];
                Prepared { start: cloud.start, ..Prepared::float(modality, shape, cloud.values) }
            }
            Media::Ready(_, shape, values) => {
                let fits =
                    self.takes(sizes, modality, shape) && shape.iter().product::<usize>() == values.len();
                if !fits || values.iter().any(|value| !value.is_finite()) {
                    return Err(PrepareError::Ready { modality, shape: shape.to_vec() });
                }
                match modality {
                    Modality::Text => {
                        let vocabulary = sizes.text.as_ref().ok_or_else(missing)?.vocab_size as f32;
                        if let Some(&id) =
                            values.iter().find(|&&id| id.fract() != 0.0 || !(0.0..vocabulary).contains(&id))
                        {
                            return Err(PrepareError::TokenId(id));
                        }
                        let ids = values.iter().map(|&id| id as u32).collect();
                        Prepared { modality, shape: shape.to_vec(), values: Values::Ids(ids), start: 0 }
                    }
                    _ => Prepared::float(modality, *shape, values.to_vec()),
                }
            }
        })
    }

    /// Whether an encoder of ImageBind takes a tensor of a shape as one input.
    fn takes(&self, sizes: &Config, modality: Modality, shape: &[usize]) -> bool {
        let side = self.images.side;
        let plane = |height: usize, width: usize| match *shape {
            [1, h, w] | [1..=MAX_CLIPS, 1, h, w] => (h, w) == (height, width),
            _ => false,
        };
        let some = shape.iter().all(|&axis| axis > 0);
        some
            && match modality {
                Modality::Image => shape == [3, side, side],
                Modality::Video => {
                    matches!(*shape, [1..=MAX_CLIPS, 3, 1..=3, h, w] if (h, w) == (side, side))
                }
                Modality::Text => sizes.text.as_ref().is_some_and(|text| shape == [text.context_length]),
                Modality::Audio => {
                    sizes.audio.as_ref().is_some_and(|audio| plane(audio.num_mel_bins, audio.target_len))
                }
                Modality::Depth => {
                    sizes.depth.as_ref().is_some_and(|p| plane(p.image_size[0], p.image_size[1]))
                }
                Modality::Thermal => {
                    sizes.thermal.as_ref().is_some_and(|p| plane(p.image_size[0], p.image_size[1]))
                }
                Modality::Imu => sizes.imu.as_ref().is_some_and(|imu| shape == [imu.channels, imu.length]),
                Modality::Point => sizes.point.as_ref().is_some_and(|point| {
                    matches!(*shape, [n, 3] if n >= point.group_size && n <= self.limits.point.max_points)
                }),
            }
    }
}
