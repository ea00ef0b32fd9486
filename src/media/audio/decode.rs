//! Bytes of a sound file become waveforms.
//!
//! WAV of any width (8-bit samples are unsigned, 16 bits are divided by 2¹⁵, 24 by 2²³; floats are taken as they are), FLAC,
//! MP3 and Ogg Vorbis. MP3 inside a WAV file, which recorders write and few programs read, is unwrapped first.
//!
//! Only two waveforms are kept of a file, however many channels it has: the first channel, which is what the encoder hears, and
//! the mean of all, which the reference subtracts.

use std::borrow::Cow;
use std::io::{Cursor, ErrorKind};

use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::audio::AudioDecoderOptions;
use symphonia::core::errors::Error as CodecError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;

use super::AudioLimits;
use crate::media::Error;

/// `WAVE_FORMAT_MPEGLAYER3`
const MP3_IN_WAV: u16 = 0x55;

/// A sound at the rate of its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Sound {
    /// Samples a second.
    pub rate: u32,
    /// The first channel.
    pub left: Vec<f32>,
    /// The mean of all channels, when there are several.
    pub mean: Option<Vec<f32>>,
}

/// Decodes a sound file.
///
/// # Errors
/// [`Error::Empty`], [`Error::TooManyBytes`], [`Error::NotASound`], [`Error::DamagedSound`], [`Error::TooLong`].
pub fn decode(bytes: &[u8], limits: &AudioLimits) -> Result<Sound, Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(Error::TooManyBytes { received: bytes.len(), limit: limits.max_bytes });
    }
    let (bytes, mut hint) = (unwrapped(bytes), Hint::new());
    if matches!(bytes, Cow::Owned(_)) || looks_like_mp3(&bytes) {
        hint.with_extension("mp3");
    }
    let unreadable = |e: CodecError| Error::NotASound(e.to_string());
    let stream = MediaSourceStream::new(Box::new(Cursor::new(bytes)), Default::default());
    let options = (FormatOptions::default(), MetadataOptions::default());
    let mut format =
        symphonia::default::get_probe().probe(&hint, stream, options.0, options.1).map_err(unreadable)?;
    let track = format
        .default_track(TrackType::Audio)
        .ok_or_else(|| Error::NotASound("it has no audio track".into()))?;
    let codec = track.codec_params.as_ref().and_then(|codec| codec.audio());
    let codec = codec.ok_or_else(|| Error::NotASound("its track names no codec".into()))?;
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(codec, &AudioDecoderOptions::default())
        .map_err(unreadable)?;
    let track = track.id;
    let mut sound =
        Collected { rate: None, channels: 0, left: Vec::new(), mean: Vec::new(), planes: Vec::new() };
    let mut damage = None;
    loop {
        let packet = match format.next_packet() {
            Ok(Some(packet)) if packet.track_id == track => packet,
            Ok(Some(_)) => continue,
            // A recorder that is switched off leaves a header that promises more than there is: what is there counts. A
            // chained stream's second part is another sound.
            Ok(None) | Err(CodecError::ResetRequired) => break,
            Err(CodecError::IoError(e)) if e.kind() == ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(Error::DamagedSound(e.to_string())),
        };
        match decoder.decode(&packet) {
            Ok(buffer) => sound.add(buffer, limits)?,
            // The first frames of an MP3 refer to others that may have been cut off.
            Err(e @ (CodecError::DecodeError(_) | CodecError::IoError(_))) => damage = Some(e.to_string()),
            Err(e) => return Err(Error::DamagedSound(e.to_string())),
        }
    }
    match (sound.rate, damage) {
        (Some(rate), _) if !sound.left.is_empty() => {
            let mean = (sound.channels > 1).then_some(sound.mean);
            Ok(Sound { rate, left: sound.left, mean })
        }
        (_, Some(damage)) => Err(Error::DamagedSound(damage)),
        _ => Err(Error::NoSamples),
    }
}

struct Collected {
    rate: Option<u32>,
    channels: usize,
    left: Vec<f32>,
    mean: Vec<f32>,
    planes: Vec<Vec<f32>>,
}

impl Collected {
    fn add(&mut self, buffer: GenericAudioBufferRef<'_>, limits: &AudioLimits) -> Result<(), Error> {
        let (rate, channels) = (buffer.spec().rate(), buffer.spec().channels().count());
        if buffer.frames() == 0 {
            return Ok(());
        }
        if rate == 0 || rate > AudioLimits::MAX_RATE || channels == 0 {
            let max = AudioLimits::MAX_RATE;
            return Err(Error::NotASound(format!(
                "{channels} channels of {rate} Hz; 1 channel and more of 1 to {max} Hz are read"
            )));
        }
        match self.rate {
            None => (self.rate, self.channels) = (Some(rate), channels),
            Some(first) if first == rate && self.channels == channels => {}
            Some(first) => {
                return Err(Error::DamagedSound(format!(
                    "it changes from {} channels of {first} Hz to {channels} of {rate} Hz",
                    self.channels
                )));
            }
        }
        let allowed = u64::from(rate) * u64::from(limits.max_seconds);
        if (self.left.len() + buffer.frames()) as u64 > allowed {
            return Err(Error::TooLong { what: "sound", limit: limits.max_seconds });
        }
        buffer.copy_to_vecs_planar(&mut self.planes);
        let Some(left) = self.planes.first() else { return Ok(()) };
        if let Some(at) = self.planes.iter().flatten().position(|sample| !sample.is_finite()) {
            let at = self.left.len() + at % left.len();
            return Err(Error::DamagedSound(format!("sample {at} is not a finite number")));
        }
        self.left.extend_from_slice(left);
        if channels > 1 {
            let start = self.mean.len();
            self.mean.extend_from_slice(left);
            for plane in &self.planes[1..] {
                self.mean[start..].iter_mut().zip(plane).for_each(|(mean, sample)| *mean += sample);
            }
            self.mean[start..].iter_mut().for_each(|mean| *mean /= channels as f32);
        }
        Ok(())
    }
}

/// The MP3 inside a WAV file, or the bytes as they are.
fn unwrapped(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut format = None;
    let mut rest = match bytes {
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'A', b'V', b'E', rest @ ..] => rest,
        _ => return Cow::Borrowed(bytes),
    };
    while let [a, b, c, d, s0, s1, s2, s3, body @ ..] = rest {
        let length = u32::from_le_bytes([*s0, *s1, *s2, *s3]) as usize;
        let chunk = &body[..length.min(body.len())];
        match &[*a, *b, *c, *d] {
            b"fmt " => format = chunk.first_chunk::<2>().map(|tag| u16::from_le_bytes(*tag)),
            b"data" if format == Some(MP3_IN_WAV) => return Cow::Owned(chunk.to_vec()),
            _ => {}
        }
        // Chunks begin at even places.
        rest = body.get(length.saturating_add(length % 2)..).unwrap_or_default();
    }
    Cow::Borrowed(bytes)
}

/// MP3 frames without any header before them, which the probe may take for something else.
fn looks_like_mp3(bytes: &[u8]) -> bool {
    matches!(bytes, [0xff, second, ..] if second & 0xe0 == 0xe0) || bytes.starts_with(b"ID3")
}
