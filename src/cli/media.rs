//! Files and texts given on the command line.

use std::path::{Path, PathBuf};

use clap::Args;
use viscache::serve::proto::{self, media};

use super::ask::read;

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

impl MediaArgs {
    /// All of it, in the order of the options above, each with the name of its file or the text itself.
    pub(super) fn read(&self) -> anyhow::Result<Vec<(String, proto::Media)>> {
        let mut all = Vec::new();
        let mut add = |name: String, kind| all.push((name, proto::Media { kind: Some(kind) }));
        let named = |path: &Path| path.display().to_string();
        for path in &self.images {
            add(named(path), media::Kind::Image(read(path)?.into()));
        }
        for text in &self.texts {
            add(text.clone(), media::Kind::Text(text.clone()));
        }
        for path in &self.sounds {
            add(named(path), media::Kind::Audio(read(path)?.into()));
        }
        for path in &self.videos {
            let source = Some(proto::video::Source::File(read(path)?.into()));
            add(named(path), media::Kind::Video(proto::Video { source }));
        }
        for path in &self.depths {
            let depth = proto::Depth { file: read(path)?.into(), ..Default::default() };
            add(named(path), media::Kind::Depth(depth));
        }
        for path in &self.thermals {
            let thermal = proto::Thermal { file: read(path)?.into(), ..Default::default() };
            add(named(path), media::Kind::Thermal(thermal));
        }
        for path in &self.imus {
            let (file, rate) = (read(path)?.into(), self.imu_rate);
            add(named(path), media::Kind::Imu(proto::Imu { file, rate, ..Default::default() }));
        }
        for path in &self.clouds {
            let (file, normalize) = (read(path)?.into(), self.normalize_points);
            add(named(path), media::Kind::PointCloud(proto::PointCloud { file, normalize, seed: 0 }));
        }
        Ok(all)
    }
}
