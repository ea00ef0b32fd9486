//! Bytes of a sound file become waveforms.
//!
//! WAV of any width (8-bit samples are unsigned, 16 bits are divided by 2¹⁵, 24 by 2²³; floats are taken as they are), FLAC,
//! MP3 and Ogg Vorbis. WAV files of plain numbers are read here: in one go, and with format chunks that are longer than they need to
//! be, which are found in the wild and which `symphonia` refuses. MP3 inside a WAV file is unwrapped first; everything else is
//! symphonia's.
//!
//! Only two waveforms are kept of a file, however many channels it has: the first channel, which is what the encoder hears, and
//! the mean of all, which the reference subtracts.

use std::io::{Cursor, ErrorKind};

use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::audio::AudioDecoderOptions;
use symphonia::core::errors::Error as CodecError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;

use super::{AudioLimits, foreign};
use crate::media::Error;

/// Formats of WAV files: `WAVE_FORMAT_PCM`, `_IEEE_FLOAT`, `_MPEGLAYER3`, `_EXTENSIBLE`.
const PCM: u16 = 1;
const FLOAT: u16 = 3;
const MP3_IN_WAV: u16 = 0x55;
const EXTENSIBLE: u16 = 0xfffe;

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
    let wav = Wav::read(bytes);
    if let Some(sound) = wav.and_then(|wav| wav.plain(limits)) {
        return sound;
    }
    if let Some(refusal) = foreign::refusal(bytes) {
        return Err(Error::NotASound(refusal));
    }
    let bytes_long = bytes.len() as u64;
    // Recorders wrap MP3 in WAV, and few programs read that.
    let mp3 = wav.filter(|wav| wav.tag == MP3_IN_WAV);
    let (bytes, mut hint) = (mp3.map_or(bytes, |wav| wav.data), Hint::new());
    if mp3.is_some() || looks_like_mp3(bytes) {
        hint.with_extension("mp3");
    }
    let unreadable = |e: CodecError| match (e, wav) {
        (CodecError::Unsupported(_), Some(Wav { tag, .. })) => Error::NotASound(foreign::in_wav(tag)),
        (e, _) => Error::NotASound(e.to_string()),
    };
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
    let channels = codec.channels.as_ref().map_or(1, |channels| channels.count());
    // A sample takes a byte at least, or the header lies.
    let announced = track.num_frames.unwrap_or(0).min(bytes_long) as usize;
    let track = track.id;
    let mut sound = Collected {
        rate: None,
        channels: 0,
        left: Vec::with_capacity(announced),
        mean: Vec::with_capacity(if channels > 1 { announced } else { 0 }),
        planes: Vec::new(),
    };
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
        check_format(rate, channels)?;
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

/// What a WAV file is made of.
#[derive(Debug, Clone, Copy)]
struct Wav<'a> {
    tag: u16,
    channels: u16,
    rate: u32,
    bits: u16,
    data: &'a [u8],
}

impl<'a> Wav<'a> {
    /// The parts of a WAV file whose format comes before its data, as everybody writes them.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(b"RIFF")?.get(4..)?.strip_prefix(b"WAVE")?;
        let mut format: Option<&[u8]> = None;
        loop {
            let (head, body) = rest.split_at_checked(8)?;
            let length = u32::from_le_bytes(head[4..].try_into().ok()?) as usize;
            // A recorder that is switched off, or writes into a pipe, announces more than there is.
            let chunk = &body[..length.min(body.len())];
            match &head[..4] {
                b"fmt " => format = Some(chunk),
                b"data" => {
                    let format = format?;
                    let short =
                        |at: usize| Some(u16::from_le_bytes(format.get(at..at + 2)?.try_into().ok()?));
                    let long = u32::from_le_bytes(format.get(4..8)?.try_into().ok()?);
                    // The extensible form names the real format at the head of its identifier.
                    let tag = if short(0)? == EXTENSIBLE { short(24)? } else { short(0)? };
                    return Some(Wav { tag, channels: short(2)?, rate: long, bits: short(14)?, data: chunk });
                }
                _ => {}
            }
            // Chunks begin at even places.
            rest = body.get(length.checked_add(length % 2)?..)?;
        }
    }

    /// The sound, when its samples are plain numbers; nothing for compressed ones.
    fn plain(self, limits: &AudioLimits) -> Option<Result<Sound, Error>> {
        match (self.tag, self.bits) {
            (PCM, 8) => Some(self.split(limits, |&[v]: &[u8; 1]| (f32::from(v) - 128.0) / 128.0)),
            (PCM, 16) => Some(self.split(limits, |&v| f32::from(i16::from_le_bytes(v)) / 32768.0)),
            (PCM, 24) => {
                let whole = |&[a, b, c]: &[u8; 3]| i32::from_le_bytes([0, a, b, c]) >> 8;
                Some(self.split(limits, move |v| whole(v) as f32 / 8_388_608.0))
            }
            (PCM, 32) => Some(self.split(limits, |&v| i32::from_le_bytes(v) as f32 / 2_147_483_648.0)),
            (FLOAT, 32) => Some(self.split(limits, |&v| f32::from_le_bytes(v))),
            (FLOAT, 64) => Some(self.split(limits, |&v| f64::from_le_bytes(v) as f32)),
            _ => None,
        }
    }

    /// First channel, and the mean of all, of samples of `W` bytes.
    fn split<const W: usize>(
        self,
        limits: &AudioLimits,
        value: impl Fn(&[u8; W]) -> f32,
    ) -> Result<Sound, Error> {
        let Wav { channels, rate, data, .. } = self;
        check_format(rate, channels.into())?;
        let channels = usize::from(channels);
        let frames = data.len() / (W * channels);
        if frames as u64 > u64::from(rate) * u64::from(limits.max_seconds) {
            return Err(Error::TooLong { what: "sound", limit: limits.max_seconds });
        }
        if frames == 0 {
            return Err(Error::NoSamples);
        }
        let samples = &data.as_chunks::<W>().0[..frames * channels];
        let (left, mean): (Vec<f32>, Option<Vec<f32>>) = match channels {
            1 => (samples.iter().map(&value).collect(), None),
            2 => {
                let pairs = samples.as_chunks::<2>().0;
                let mean = pairs.iter().map(|[left, right]| (value(left) + value(right)) / 2.0);
                (pairs.iter().map(|[left, _]| value(left)).collect(), Some(mean.collect()))
            }
            _ => {
                let frames = || samples.chunks_exact(channels);
                let mean = |frame: &[[u8; W]]| frame.iter().map(&value).sum::<f32>() / channels as f32;
                (frames().map(|frame| value(&frame[0])).collect(), Some(frames().map(mean).collect()))
            }
        };
        // Whole numbers always are; what is not finite in one channel is not in the mean either.
        if self.tag != PCM
            && let Some(at) = mean.as_ref().unwrap_or(&left).iter().position(|sample| !sample.is_finite())
        {
            return Err(Error::DamagedSound(format!("sample {at} is not a finite number")));
        }
        Ok(Sound { rate, left, mean })
    }
}

/// Rates and channels that are read.
fn check_format(rate: u32, channels: usize) -> Result<(), Error> {
    let max = AudioLimits::MAX_RATE;
    match channels > 0 && (1..=max).contains(&rate) {
        true => Ok(()),
        false => Err(Error::NotASound(format!(
            "{channels} channels of {rate} Hz; 1 channel and more of 1 to {max} Hz are read"
        ))),
    }
}

/// MP3 frames without any header before them, which the probe may take for something else.
fn looks_like_mp3(bytes: &[u8]) -> bool {
    matches!(bytes, [0xff, second, ..] if second & 0xe0 == 0xe0) || bytes.starts_with(b"ID3")
}
