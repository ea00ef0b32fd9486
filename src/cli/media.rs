//! Files and texts given on the command line.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use viscache::serve::proto::{self, media};
use viscache::types::Modality;

/// Files and texts, each of which may be given several times.
#[derive(Args)]
#[group(id = "media", multiple = true)]
#[command(next_help_heading = "Input")]
pub(super) struct MediaArgs {
    /// Picture file.
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Text.
    #[arg(long = "text", value_name = "TEXT")]
    texts: Vec<String>,
    /// Sound file: WAV, FLAC, MP3 or Ogg Vorbis.
    #[arg(long = "audio", value_name = "FILE")]
    sounds: Vec<PathBuf>,
    /// Film file; needs ffmpeg where the model runs.
    #[arg(long = "video", value_name = "FILE")]
    videos: Vec<PathBuf>,
    /// Depth picture: PNG, EXR or .npy; millimetres as whole numbers, metres as floats.
    #[arg(long = "depth", value_name = "FILE")]
    depths: Vec<PathBuf>,
    /// Thermal picture: PNG, EXR or .npy.
    #[arg(long = "thermal", value_name = "FILE")]
    thermals: Vec<PathBuf>,
    /// IMU measurements: CSV or .npy, in m/s² and rad/s, as many steps as the model takes.
    #[arg(long = "imu", value_name = "FILE")]
    imus: Vec<PathBuf>,
    /// Steps a second of the IMU measurements: they are resampled.
    #[arg(long, value_name = "HZ", requires = "imus")]
    imu_rate: Option<f64>,
    /// Point cloud: PLY, XYZ or .npy.
    #[arg(long = "points", value_name = "FILE")]
    clouds: Vec<PathBuf>,
    /// Centre the point clouds and scale them to a radius of 1.
    #[arg(long, requires = "clouds")]
    normalize_points: bool,
}

/// One input: the name of its file, or the text itself, and how to read it.
pub(super) type Source<'a> = (String, Box<dyn Fn() -> anyhow::Result<media::Kind> + 'a>);

impl MediaArgs {
    /// The options that name files.
    pub(super) const FILES: [&str; 7] =
        ["images", "sounds", "videos", "depths", "thermals", "imus", "clouds"];

    /// All of it, in the order of the options above; nothing is read yet.
    pub(super) fn sources(&self) -> Vec<Source<'_>> {
        let mut all: Vec<Source<'_>> = Vec::new();
        for path in &self.images {
            all.push((named(path), Box::new(|| Ok(media::Kind::Image(read(path)?.into())))));
        }
        for text in &self.texts {
            all.push((text.clone(), Box::new(|| Ok(media::Kind::Text(text.clone())))));
        }
        for path in &self.sounds {
            all.push((named(path), Box::new(|| Ok(media::Kind::Audio(read(path)?.into())))));
        }
        for path in &self.videos {
            let film = || {
                let source = Some(proto::video::Source::File(read(path)?.into()));
                Ok(media::Kind::Video(proto::Video { source }))
            };
            all.push((named(path), Box::new(film)));
        }
        for path in &self.depths {
            let depth =
                || Ok(media::Kind::Depth(proto::Depth { file: read(path)?.into(), ..Default::default() }));
            all.push((named(path), Box::new(depth)));
        }
        for path in &self.thermals {
            let thermal = || {
                Ok(media::Kind::Thermal(proto::Thermal { file: read(path)?.into(), ..Default::default() }))
            };
            all.push((named(path), Box::new(thermal)));
        }
        for path in &self.imus {
            let imu = || {
                let (file, rate) = (read(path)?.into(), self.imu_rate);
                Ok(media::Kind::Imu(proto::Imu { file, rate, ..Default::default() }))
            };
            all.push((named(path), Box::new(imu)));
        }
        for path in &self.clouds {
            let cloud = || {
                let (file, normalize) = (read(path)?.into(), self.normalize_points);
                Ok(media::Kind::PointCloud(proto::PointCloud { file, normalize, seed: 0 }))
            };
            all.push((named(path), Box::new(cloud)));
        }
        all
    }

    /// What kind of query it makes, if it is one input alone.
    pub(super) fn kind(&self) -> Option<&'static str> {
        let kinds = [
            (Modality::Image, self.images.len()),
            (Modality::Text, self.texts.len()),
            (Modality::Audio, self.sounds.len()),
            (Modality::Video, self.videos.len()),
            (Modality::Depth, self.depths.len()),
            (Modality::Thermal, self.thermals.len()),
            (Modality::Imu, self.imus.len()),
            (Modality::Point, self.clouds.len()),
        ];
        let mut given = kinds.iter().filter(|(_, count)| *count > 0);
        given.next().filter(|(_, count)| *count == 1 && given.next().is_none()).map(|(kind, _)| kind.word())
    }

    /// All of it, read.
    pub(super) fn read(&self) -> anyhow::Result<Vec<(String, proto::Media)>> {
        let media = |(name, read): Source<'_>| Ok((name, proto::Media { kind: Some(read()?) }));
        self.sources().into_iter().map(media).collect()
    }
}

fn named(path: &Path) -> String {
    path.display().to_string()
}

/// A file that was named.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
