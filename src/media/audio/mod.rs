//! A sound file becomes three spectrograms of two seconds, `[3, bands, frames]`.
//!
//! ```text
//! bytes ─► decode ─► 16 kHz ─► 3 clips of 2 s, evenly spread ─► less the clip's mean ─► mel energies ─► normalise
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `decode.rs` | files: the first channel, and the mean of all |
//! | `foreign.rs` | files that are not read, by name, and the way out |
//! | `resample.rs` | 16 kHz by the reference's kernel |
//! | `clips.rs` | where clips begin and end, exactly |
//! | `mel.rs` | Kaldi's filter bank |
//!
//! What is easily got wrong: the encoder hears only the first channel, but the mean that is subtracted is that of all. It is
//! subtracted *in place*, clip by clip, so where clips overlap (in sounds shorter than 6 s) the later ones see what the
//! earlier ones took away. Columns after the last window hold 0 *before* they are normalised.
//!
//! **Short sounds.** A sound of up to 2 s gives three times the same clip, filled up with those zeros. One shorter than a
//! window of 25 ms has no spectrum: it is refused, and so is a file without samples. (The reference crashes on both.)
//!
//! Source: ImageBind, `imagebind/data.py`, `load_and_transform_audio_data`.

pub mod clips;
mod decode;
mod foreign;
mod lanes;
mod mel;
mod resample;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

pub use decode::{Sound, decode};
use mel::FilterBank;
use resample::Resampler;

use super::Error;
use crate::types::Fingerprint;

/// Samples a second that the encoder takes.
const RATE: u32 = 16_000;
/// Clips of a sound, and the length of each in seconds.
pub const CLIPS: usize = 3;
const CLIP_SECONDS: u32 = 2;
/// Mean and standard deviation of the mel energies, of the published training set.
const MEAN: f32 = -4.268;
const STD: f32 = 9.138;
/// Changes whenever a rule in this folder changes a number.
const RULES_VERSION: u32 = 1;
/// Resamplers that are kept, each for one rate.
const KEPT_RATES: usize = 16;

/// What one sound file may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AudioLimits {
    /// Bytes of the encoded file.
    pub max_bytes: usize,
    /// Its length. Decoding takes 8 bytes a sample in time.
    pub max_seconds: u32,
}

impl AudioLimits {
    /// Default of [`AudioLimits::max_bytes`]: 64 MiB.
    pub const DEFAULT_MAX_BYTES: usize = 64 << 20;
    /// Default of [`AudioLimits::max_seconds`]: ten minutes.
    pub const DEFAULT_MAX_SECONDS: u32 = 600;
    /// Highest sample rate that is read.
    pub const MAX_RATE: u32 = 384_000;
}

impl Default for AudioLimits {
    fn default() -> Self {
        AudioLimits { max_bytes: Self::DEFAULT_MAX_BYTES, max_seconds: Self::DEFAULT_MAX_SECONDS }
    }
}

/// Prepares sounds for one encoder.
pub struct AudioFront {
    bands: usize,
    columns: usize,
    limits: AudioLimits,
    filters: FilterBank,
    resamplers: Mutex<BTreeMap<u32, Arc<Resampler>>>,
}

impl AudioFront {
    /// For an encoder that takes `[bands, columns]`.
    pub fn new(bands: usize, columns: usize, limits: AudioLimits) -> Self {
        let filters = FilterBank::new(bands, RATE);
        AudioFront { bands, columns, limits, filters, resamplers: Mutex::default() }
    }

    /// Identifies everything here that changes a number.
    pub fn fingerprint(&self) -> Fingerprint {
        let rules = format!(
            "audio rules {RULES_VERSION}; {} bands; {} columns; {CLIPS} clips of {CLIP_SECONDS} s; mean {MEAN}; std {STD}",
            self.bands, self.columns
        );
        Fingerprint::of(rules.as_bytes())
    }

    /// Prepares a sound file: `[3, bands, columns]`, clip by clip, band by band.
    ///
    /// # Errors
    /// As [`decode`] and [`AudioFront::spectrograms`].
    pub fn prepare(&self, bytes: &[u8]) -> Result<Vec<f32>, Error> {
        self.spectrograms(&decode(bytes, &self.limits)?)
    }

    /// Prepares a decoded sound, likewise.
    ///
    /// # Errors
    /// [`Error::TooShort`].
    pub fn spectrograms(&self, sound: &Sound) -> Result<Vec<f32>, Error> {
        self.first(sound, CLIPS)
    }

    /// The first clip alone, `[bands, columns]`: of a sound of up to two seconds, all that there is.
    ///
    /// # Errors
    /// [`Error::TooShort`].
    pub fn spectrogram(&self, sound: &Sound) -> Result<Vec<f32>, Error> {
        self.first(sound, 1)
    }

    /// So many of the clips, from the first on.
    fn first(&self, sound: &Sound, count: usize) -> Result<Vec<f32>, Error> {
        let resampler = self.resampler(sound.rate);
        let samples = resampler.len(sound.left.len());
        if samples < mel::WINDOW {
            return Err(Error::TooShort { samples, needed: mel::WINDOW });
        }
        let mut clips = clips::sample_ranges(samples, RATE, CLIPS, CLIP_SECONDS);
        clips.truncate(count);
        let mut left = Heard::new(&resampler, &sound.left, &clips);
        let mut lowered: Vec<(Range<usize>, f64)> = Vec::new();
        let size = self.bands * self.columns;
        let mut spectrograms = vec![0.0; count * size];
        for (clip, into) in clips.into_iter().zip(spectrograms.chunks_exact_mut(size)) {
            let level = match &sound.mean {
                None => left.mean(&clip),
                // Of all channels only the sum is needed, less what earlier clips have taken away of it.
                Some(mean) => {
                    let taken = lowered.iter().map(|(other, level)| {
                        let shared = clip.start.max(other.start)..clip.end.min(other.end);
                        level * shared.len() as f64
                    });
                    (resampler.sum(mean, clip.clone()) - taken.sum::<f64>()) / clip.len() as f64
                }
            };
            lowered.push((clip.clone(), level));
            left.lower(&clip, level as f32);
            self.filters.write(left.at(&clip), self.columns, into);
        }
        spectrograms.iter_mut().for_each(|v| *v = (*v - MEAN) / STD);
        Ok(spectrograms)
    }

    fn resampler(&self, rate: u32) -> Arc<Resampler> {
        let mut kept = self.resamplers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resampler) = kept.get(&rate) {
            return resampler.clone();
        }
        let resampler = Arc::new(Resampler::new(rate, RATE));
        if kept.len() >= KEPT_RATES {
            kept.clear();
        }
        kept.insert(rate, resampler.clone());
        resampler
    }
}

/// What the clips hear of a resampled signal: all of it where they overlap, or their own stretches.
struct Heard {
    stretches: Vec<(usize, Vec<f32>)>,
}

impl Heard {
    fn new(resampler: &Resampler, signal: &[f32], clips: &[Range<usize>]) -> Self {
        let apart = clips.windows(2).all(|pair| pair[0].end <= pair[1].start);
        let stretch = |range: Range<usize>| (range.start, resampler.range(signal, range));
        let stretches = match apart {
            true => clips.iter().cloned().map(stretch).collect(),
            false => vec![stretch(0..clips.iter().map(|clip| clip.end).max().unwrap_or(0))],
        };
        Heard { stretches }
    }

    fn at(&self, clip: &Range<usize>) -> &[f32] {
        let holder = self.stretches.iter().rfind(|(start, _)| *start <= clip.start);
        holder.map_or(&[], |(start, samples)| &samples[clip.start - start..clip.end - start])
    }

    fn mean(&self, clip: &Range<usize>) -> f64 {
        let samples = self.at(clip);
        lanes::total(samples) / samples.len() as f64
    }

    fn lower(&mut self, clip: &Range<usize>, level: f32) {
        if let Some((start, samples)) = self.stretches.iter_mut().rfind(|(start, _)| *start <= clip.start) {
            samples[clip.start - *start..clip.end - *start].iter_mut().for_each(|sample| *sample -= level);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A WAV file of one format.
    pub(super) fn wav(tag: u16, bits: u16, rate: u32, channels: u16, data: &[u8]) -> Vec<u8> {
        let block = channels * bits / 8;
        let mut bytes =
            [b"RIFF", &(36 + data.len() as u32).to_le_bytes()[..], b"WAVEfmt ", &16u32.to_le_bytes()]
                .concat();
        for part in [tag, channels] {
            bytes.extend(part.to_le_bytes());
        }
        for part in [rate, rate.wrapping_mul(block.into())] {
            bytes.extend(part.to_le_bytes());
        }
        for part in [block, bits] {
            bytes.extend(part.to_le_bytes());
        }
        bytes.extend(b"data");
        bytes.extend((data.len() as u32).to_le_bytes());
        bytes.extend(data);
        bytes
    }

    fn front() -> AudioFront {
        AudioFront::new(64, 204, AudioLimits::default())
    }

    fn tone(samples: usize) -> Vec<f32> {
        (0..samples).map(|i| (i as f32 * 0.3).sin() * 0.5).collect()
    }

    fn pcm16(samples: &[f32]) -> Vec<u8> {
        samples.iter().flat_map(|v| ((v * 32767.0) as i16).to_le_bytes()).collect()
    }

    #[test]
    fn every_width_is_the_same_sound() {
        let sixteen: Vec<i16> = tone(2000).iter().map(|v| (v * 100.0) as i16 * 256).collect();
        let each = |to: &dyn Fn(i16) -> Vec<u8>| sixteen.iter().flat_map(|&v| to(v)).collect::<Vec<u8>>();
        let files = [
            wav(1, 8, 16_000, 1, &each(&|v| vec![(v / 256 + 128) as u8])),
            wav(1, 16, 16_000, 1, &each(&|v| v.to_le_bytes().to_vec())),
            wav(1, 24, 16_000, 1, &each(&|v| (i32::from(v) * 256).to_le_bytes()[..3].to_vec())),
            wav(1, 32, 16_000, 1, &each(&|v| (i32::from(v) << 16).to_le_bytes().to_vec())),
            wav(3, 32, 16_000, 1, &each(&|v| (f32::from(v) / 32768.0).to_le_bytes().to_vec())),
            wav(3, 64, 16_000, 1, &each(&|v| (f64::from(v) / 32768.0).to_le_bytes().to_vec())),
        ];
        let expected: Vec<f32> = sixteen.iter().map(|&v| f32::from(v) / 32768.0).collect();
        for file in files {
            assert_eq!(decode(&file, &AudioLimits::default()).unwrap().left, expected);
        }
    }

    #[test]
    fn the_first_channel_is_heard_and_the_mean_of_all_subtracted() {
        let left = tone(16_000);
        let right: Vec<f32> = left.iter().map(|v| 0.25 - v).collect();
        let both: Vec<f32> = left.iter().zip(&right).flat_map(|(l, r)| [*l, *r]).collect();
        let sound = decode(&wav(1, 16, 16_000, 2, &pcm16(&both)), &AudioLimits::default()).unwrap();
        let mean = sound.mean.as_ref().unwrap();
        assert!(mean.iter().all(|v| (v - 0.125).abs() < 1e-4));
        // The mean of a frame is taken away again, so a level alone is not heard, wherever it comes from.
        let stereo = front().spectrograms(&sound).unwrap();
        let mono = front().spectrograms(&Sound { mean: None, ..sound }).unwrap();
        let off = stereo.iter().zip(&mono).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 0.2, "{off}");
    }

    #[test]
    fn short_sounds_and_empty_ones_follow_the_rule() {
        let refused = |samples: usize| {
            let file = wav(1, 16, 16_000, 1, &pcm16(&tone(samples)));
            front().prepare(&file).unwrap_err()
        };
        assert_eq!(refused(0), Error::NoSamples);
        assert_eq!(refused(399), Error::TooShort { samples: 399, needed: 400 });
        let one = front().prepare(&wav(1, 16, 16_000, 1, &pcm16(&tone(400)))).unwrap();
        assert_eq!(one.len(), 3 * 64 * 204);
        // One window, then silence as the encoder was trained with it.
        assert!(one.chunks_exact(204).all(|row| row[1..].iter().all(|v| (v - 0.467_06).abs() < 1e-5)));
        let (first, rest) = one.split_at(64 * 204);
        let sound = decode(&wav(1, 16, 16_000, 1, &pcm16(&tone(400))), &AudioLimits::default()).unwrap();
        assert_eq!(front().spectrogram(&sound).unwrap(), first);
        assert!(
            rest.chunks_exact(64 * 204).all(|clip| clip.iter().zip(first).all(|(a, b)| (a - b).abs() < 2e-3))
        );
        assert_eq!(front().prepare(b""), Err(Error::Empty));
        assert!(matches!(front().prepare(b"not a sound at all"), Err(Error::NotASound(_))));
    }

    #[test]
    fn long_sounds_are_resampled_where_they_are_heard() {
        // The clips of ten seconds lie apart; those of a sound that was resampled as a whole are the same.
        let samples = tone(441_000);
        let resampler = Resampler::new(44_100, RATE);
        let whole = resampler.range(&samples, 0..resampler.len(samples.len()));
        let clips = clips::sample_ranges(whole.len(), RATE, CLIPS, CLIP_SECONDS);
        let heard = Heard::new(&resampler, &samples, &clips);
        assert_eq!(heard.stretches.len(), 3);
        assert!(clips.iter().all(|clip| heard.at(clip) == &whole[clip.clone()]));
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let file = wav(1, 16, 16_000, 1, &pcm16(&tone(33_000)));
        let limits = AudioLimits { max_seconds: 2, ..AudioLimits::default() };
        assert_eq!(decode(&file, &limits), Err(Error::TooLong { what: "sound", limit: 2 }));
        let limits = AudioLimits { max_bytes: 100, ..AudioLimits::default() };
        assert!(matches!(decode(&file, &limits), Err(Error::TooManyBytes { .. })));
        let wild: Vec<u8> = [0.0, f32::NAN, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let wild = wav(3, 32, 16_000, 1, &wild);
        assert!(decode(&wild, &AudioLimits::default()).unwrap_err().to_string().contains("sample 1"));
        let rate = wav(1, 16, 4_000_000_000, 1, &pcm16(&tone(1000)));
        assert!(decode(&rate, &AudioLimits::default()).is_err());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(256))]
        #[test]
        fn damaged_files_are_errors_or_sounds(at in 0usize..60, to in proptest::prelude::any::<u8>(), cut in 0usize..700) {
            let mut file = wav(1, 16, 16_000, 1, &pcm16(&tone(500)));
            let length = file.len();
            file[at] = to;
            file.truncate(length - cut);
            if let Ok(sound) = decode(&file, &AudioLimits::default()) {
                proptest::prop_assert!(!sound.left.is_empty() && sound.rate > 0);
            }
        }
    }
}
