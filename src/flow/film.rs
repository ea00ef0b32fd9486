//! A film file becomes the few frames that the encoder looks at, by the program `ffmpeg`.
//!
//! ```text
//! bytes ─► a file of our own ─► ffprobe: frames, rate, size ─► limits ─► picks ─► ffmpeg: those frames as PPM ─► RGB
//! ```
//!
//! Decoders for films are large and often attacked, so they run as a process of their own, without our environment, without
//! the network, for a limited time, on a limited size of picture, and reading no file but the one we wrote: formats that refer to
//! other files (playlists) are not on the list of those allowed.
//!
//! Frames are counted by their packets, which is what the rate times the duration gives for all but damaged files; where the
//! last ones cannot be decoded, the last that can stands in for them.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::process::{self, Failure};
use super::room::room_of;
use super::{Call, Error};
use crate::budget::Lease;
use crate::media::{self, Orientation, Rgb, video};

/// Containers that hold their own data.
const FORMATS: &str =
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,gif,asf,h264,hevc,m4v,ivf";
/// Bytes of a PPM header, ample.
const PPM_HEADER: u64 = 64;
/// Most bytes that a probe says.
const MAX_PROBE: u64 = 1 << 16;

/// What one film may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VideoLimits {
    /// Bytes of the file.
    pub max_bytes: usize,
    /// Its length.
    pub max_seconds: u32,
    /// Pixels of a frame.
    pub max_pixels: u64,
    /// Time that the decoding may take.
    pub timeout_seconds: u32,
}

impl VideoLimits {
    /// Default of [`VideoLimits::max_bytes`]: 256 MiB.
    pub const DEFAULT_MAX_BYTES: usize = 256 << 20;
    /// Default of [`VideoLimits::max_seconds`]: an hour.
    pub const DEFAULT_MAX_SECONDS: u32 = 3600;
    /// Default of [`VideoLimits::max_pixels`]: a frame of 4096 × 2304.
    pub const DEFAULT_MAX_PIXELS: u64 = 4096 * 2304;
    /// Default of [`VideoLimits::timeout_seconds`].
    pub const DEFAULT_TIMEOUT_SECONDS: u32 = 60;
}

impl Default for VideoLimits {
    fn default() -> Self {
        VideoLimits {
            max_bytes: Self::DEFAULT_MAX_BYTES,
            max_seconds: Self::DEFAULT_MAX_SECONDS,
            max_pixels: Self::DEFAULT_MAX_PIXELS,
            timeout_seconds: Self::DEFAULT_TIMEOUT_SECONDS,
        }
    }
}

/// The frames of a film that the encoder looks at.
pub(super) struct Film {
    frames: Vec<Rgb>,
    /// For each clip, the places of its two frames.
    clips: Vec<[usize; 2]>,
    _room: Lease,
}

impl Film {
    /// By clip.
    pub(super) fn clips(&self) -> Vec<[&Rgb; 2]> {
        self.clips.iter().map(|clip| clip.map(|at| &self.frames[at])).collect()
    }
}

/// Decodes the frames of a film that the encoder looks at.
///
/// # Errors
/// [`Error::NoFfmpeg`]; [`Error::Memory`]; [`Error::Media`] for a film that cannot be used; deadline and cancellation.
pub(super) fn decode(
    bytes: &[u8],
    orientation: Orientation,
    limits: &VideoLimits,
    call: &Call,
) -> Result<Film, Error> {
    if bytes.is_empty() {
        return Err(media::Error::Empty.into());
    }
    if bytes.len() > limits.max_bytes {
        return Err(media::Error::TooManyBytes { received: bytes.len(), limit: limits.max_bytes }.into());
    }
    let own = |e: std::io::Error| Error::NoFfmpeg { why: format!("a temporary file cannot be written: {e}") };
    let mut file = tempfile::NamedTempFile::new().map_err(own)?;
    file.write_all(bytes).and_then(|()| file.flush()).map_err(own)?;
    let path = file.path();
    let until = Instant::now() + Duration::from_secs(limits.timeout_seconds.into());

    let mut probe = Command::new("ffprobe");
    probe.args(["-v", "error", "-format_whitelist", FORMATS, "-protocol_whitelist", "file"]);
    probe.args(["-select_streams", "v:0", "-count_packets", "-of", "json", "-show_entries"]);
    probe.arg("stream=nb_read_packets,avg_frame_rate,width,height").arg(path);
    let said = run(probe, MAX_PROBE, until, call)?;
    let film = Probed::read(&said).ok_or_else(|| refuse("it has no video stream that can be read"))?;
    if film.frames as f64 / film.rate > f64::from(limits.max_seconds) {
        return Err(media::Error::TooLong { what: "film", limit: limits.max_seconds }.into());
    }
    if film.pixels > limits.max_pixels {
        let (pixels, limit) = (film.pixels, limits.max_pixels);
        return Err(refuse(&format!("its frames have {pixels} pixels, more than the limit of {limit}")));
    }

    let picks = video::picks(film.frames, film.rate);
    let mut wanted: Vec<usize> = picks.concat();
    wanted.sort_unstable();
    wanted.dedup();
    let select: Vec<String> = wanted.iter().map(|n| format!("eq(n\\,{n})")).collect();
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-threads", "1", "-format_whitelist", FORMATS]);
    ffmpeg.args(["-protocol_whitelist", "file", "-max_pixels", &limits.max_pixels.to_string()]);
    if orientation == Orientation::Reference {
        ffmpeg.arg("-noautorotate");
    }
    ffmpeg.arg("-i").arg(path).args(["-map", "0:v:0", "-vf", &format!("select={}", select.join("+"))]);
    ffmpeg.args(["-frames:v", &wanted.len().to_string(), "-fps_mode", "passthrough", "-pix_fmt", "rgb24"]);
    ffmpeg.args(["-f", "image2pipe", "-c:v", "ppm", "-"]);
    let most = wanted.len() as u64 * (3 * film.pixels + PPM_HEADER);
    // As they come, and one by one.
    let _room = room_of(call, 2 * most)?;
    let frames = ppm_frames(&run(ffmpeg, most, until, call)?);
    let last = frames.len().checked_sub(1).ok_or_else(|| refuse("none of its frames can be decoded"))?;
    let place = |n: usize| wanted.binary_search(&n).map_or(last, |at| at.min(last));
    let clips = picks.iter().map(|clip| clip.map(place)).collect();
    Ok(Film { frames, clips, _room })
}

/// What ffprobe says of a film.
struct Probed {
    frames: usize,
    rate: f64,
    pixels: u64,
}

impl Probed {
    fn read(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Answer {
            streams: Vec<Stream>,
        }
        #[derive(Deserialize)]
        struct Stream {
            width: u64,
            height: u64,
            avg_frame_rate: String,
            nb_read_packets: String,
        }
        let answer: Answer = serde_json::from_slice(json).ok()?;
        let stream = answer.streams.into_iter().next()?;
        let (numerator, denominator) = stream.avg_frame_rate.split_once('/')?;
        let rate = numerator.parse::<f64>().ok()? / denominator.parse::<f64>().ok()?;
        // A single picture has no rate; which one is taken does not matter then.
        let rate = if rate.is_finite() && rate > 0.0 { rate } else { 1.0 };
        let frames = stream.nb_read_packets.parse().ok().filter(|&frames| frames > 0)?;
        Some(Probed { frames, rate, pixels: stream.width.checked_mul(stream.height)? })
    }
}

fn refuse(why: &str) -> Error {
    media::Error::Film(why.into()).into()
}

/// What one of ffmpeg's programs writes.
fn run(command: Command, most: u64, until: Instant, call: &Call) -> Result<Vec<u8>, Error> {
    process::run(command, most, until, call).map_err(|failure| match failure {
        Failure::Start(why) => Error::NoFfmpeg { why },
        Failure::Slow => refuse("decoding it takes longer than allowed"),
        Failure::Much => refuse("it decodes to more bytes than its header says"),
        Failure::Refused(why) => refuse(&why),
        Failure::Gone(error) => error,
    })
}

/// Pictures one after another: `P6`, width, height, 255, and the bytes. Ends at the first that is not whole.
fn ppm_frames(mut bytes: &[u8]) -> Vec<Rgb> {
    let mut frames = Vec::new();
    while let Some((frame, rest)) = ppm_frame(bytes) {
        frames.push(frame);
        bytes = rest;
    }
    frames
}

fn ppm_frame(bytes: &[u8]) -> Option<(Rgb, &[u8])> {
    let mut rest = bytes.strip_prefix(b"P6")?;
    let mut numbers = [0usize; 3];
    for number in &mut numbers {
        rest = rest.trim_ascii_start();
        let digits = rest.iter().position(|b| !b.is_ascii_digit())?;
        *number = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
        rest = &rest[digits..];
    }
    let [width, height, 255] = numbers else { return None };
    let (data, rest) = rest.get(1..)?.split_at_checked(width.checked_mul(height)?.checked_mul(3)?)?;
    (width > 0 && height > 0).then(|| (Rgb { width, height, data: data.to_vec() }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_out_of_the_stream() {
        let one = b"P6\n2 1\n255\nabcdef";
        let two = [&one[..], b"P6 1 1 255\nxyz", b"P6\n9 9\n255\nshort"].concat();
        let frames = ppm_frames(&two);
        assert_eq!(frames.len(), 2);
        assert_eq!((frames[0].width, frames[0].height, frames[0].data.as_slice()), (2, 1, &b"abcdef"[..]));
        assert_eq!(frames[1].data, b"xyz");
    }

    #[test]
    fn a_probe_without_a_stream_is_no_film() {
        let film =
            br#"{"streams":[{"width":64,"height":48,"avg_frame_rate":"30000/1001","nb_read_packets":"90"}]}"#;
        let film = Probed::read(film).unwrap();
        assert_eq!((film.frames, film.pixels), (90, 3072));
        assert!((film.rate - 29.97).abs() < 1e-3);
        assert!(Probed::read(br#"{"streams":[]}"#).is_none());
        assert!(Probed::read(b"").is_none());
    }
}
