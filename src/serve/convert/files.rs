//! Files and ready inputs of every kind, with what is said of them.

use bytes::Bytes;

use super::{argument, check_bytes, known_modality};
use crate::flow::{App, Error, MediaInput};
use crate::media::{DepthOptions, ImuOptions, PointOptions, ThermalOptions};
use crate::serve::proto::{self, media};
use crate::serve::tensor::decode_array;

/// One thing to embed.
pub(in crate::serve) fn media(app: &App, media: proto::Media, field: &str) -> Result<MediaInput, Error> {
    let limits = &app.limits;
    let file = |name: &str, bytes: Bytes, limit: usize| {
        let field = format!("{field}.{name}");
        check_bytes(&field, bytes.len(), limit)?;
        match bytes.is_empty() {
            true => Err(argument(field, "is empty; send the bytes of a file")),
            false => Ok(bytes),
        }
    };
    let (image, table) = (limits.media.image.max_bytes, limits.media.point.max_bytes);
    Ok(match media.kind {
        None => {
            let why = "is empty; set one of image, text, audio, video, depth, thermal, imu, point_cloud, model_input";
            return Err(argument(field, why));
        }
        Some(media::Kind::Image(bytes)) => {
            check_bytes(&format!("{field}.image"), bytes.len(), image)?;
            MediaInput::Image(bytes)
        }
        Some(media::Kind::Text(text)) => {
            check_bytes(&format!("{field}.text"), text.len(), limits.max_text_bytes())?;
            MediaInput::Text(text.into_bytes().into())
        }
        Some(media::Kind::Audio(bytes)) => {
            MediaInput::Audio(file("audio", bytes, limits.media.audio.max_bytes)?)
        }
        Some(media::Kind::Video(proto::Video { source })) => match source {
            None => return Err(argument(format!("{field}.video"), "has neither `file` nor `frames`")),
            Some(proto::video::Source::File(bytes)) => {
                MediaInput::Film(file("video.file", bytes, limits.video.max_bytes)?)
            }
            Some(proto::video::Source::Frames(proto::VideoFrames { frames, rate })) => {
                let field = format!("{field}.video.frames");
                if !(rate.is_finite() && rate > 0.0) {
                    return Err(argument(format!("{field}.rate"), format!("{rate} is not a rate above 0")));
                }
                if frames.is_empty() {
                    return Err(argument(format!("{field}.frames"), "is empty; send at least one picture"));
                }
                let total = frames.iter().map(|frame| frame.len()).sum();
                check_bytes(&format!("{field}.frames"), total, limits.video.max_bytes)?;
                MediaInput::Frames(frames, rate)
            }
        },
        Some(media::Kind::Depth(depth)) => {
            let default = DepthOptions::default();
            let options = DepthOptions {
                scale: depth.scale,
                baseline: depth.baseline.unwrap_or(default.baseline),
                focal_length: depth.focal_length.unwrap_or(default.focal_length),
                max_disparity: depth.max_disparity.unwrap_or(default.max_disparity),
                mean: depth.mean.unwrap_or(default.mean),
                std: depth.std.unwrap_or(default.std),
            };
            options.validate().map_err(|e| option(&format!("{field}.depth"), e))?;
            MediaInput::Depth(file("depth.file", depth.file, image)?, options)
        }
        Some(media::Kind::Thermal(thermal)) => {
            let default = ThermalOptions::default();
            let options = ThermalOptions {
                range: match (thermal.low, thermal.high) {
                    (Some(low), Some(high)) => Some([low, high]),
                    (None, None) => None,
                    _ => {
                        let why = "has one of `low` and `high`; send both or neither";
                        return Err(argument(format!("{field}.thermal"), why));
                    }
                },
                mean: thermal.mean.unwrap_or(default.mean),
                std: thermal.std.unwrap_or(default.std),
            };
            options.validate().map_err(|e| option(&format!("{field}.thermal"), e))?;
            MediaInput::Thermal(file("thermal.file", thermal.file, image)?, options)
        }
        Some(media::Kind::Imu(imu)) => {
            let options = ImuOptions { rate: imu.rate, in_g: imu.in_g, in_degrees: imu.in_degrees };
            options.validate().map_err(|e| option(&format!("{field}.imu"), e))?;
            MediaInput::Imu(file("imu.file", imu.file, table)?, options)
        }
        Some(media::Kind::PointCloud(cloud)) => {
            let options = PointOptions { normalize: cloud.normalize, seed: cloud.seed };
            MediaInput::Point(file("point_cloud.file", cloud.file, table)?, options)
        }
        Some(media::Kind::ModelInput(input)) => {
            let field = format!("{field}.model_input");
            let modality = known_modality(input.modality, &format!("{field}.modality"))?
                .ok_or_else(|| argument(format!("{field}.modality"), "is not set"))?;
            let tensor = input.tensor.unwrap_or_default();
            let (shape, values) =
                decode_array(&tensor).map_err(|e| argument(format!("{field}.tensor"), e))?;
            MediaInput::Ready(modality, shape, values)
        }
    })
}

/// A setting of a medium that cannot be used, with the path of its field.
fn option(field: &str, error: crate::media::Error) -> Error {
    match error {
        crate::media::Error::Option { name, why } => argument(format!("{field}.{name}"), why),
        other => argument(field, other.to_string()),
    }
}
