//! A model with its front ends: files and texts in, embeddings out.
//!
//! ```text
//! bytes ─► prepare (any thread) ─► Prepared ─► encode ─► Encoded { embedding, prenorm }
//!                                              │ CPU: lanes, each one thread of its own, one input at a time
//!                                              └ CUDA: the whole batch at once
//! ```
//!
//! Why lanes: candle splits every matrix product over the threads of the pool it runs in. A pool of one thread keeps an
//! input on its core, and as many inputs run as there are lanes; two cores then do twice the work of one, which they
//! do not when they share each product. An embedding does not depend on what else is in its batch.

mod prepare;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

pub use self::prepare::{Media, PrepareError, Prepared, Values};
use super::imagebind::{self, Config, ImageBind, ignore};
use super::weights::Weights;
use super::{DeviceKind, Error, Placement, nano};
use crate::kernels::q8::Reach;
use crate::media::audio::AudioFront;
use crate::media::{ImageOptions, MediaLimits, Orientation};
use crate::text::ClipTokenizer;
use crate::types::{Agreement, Embedding, Fingerprint, Modality, Origin, WeightDtype};

/// Which model to load and how to run it.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderOptions {
    /// A checkpoint; `None` is the built-in nano model.
    pub weights: Option<PathBuf>,
    /// Sizes as JSON; `None` with a checkpoint means the published `imagebind_huge`.
    pub sizes: Option<PathBuf>,
    /// Encoders to load; `None`: all that the weights and sizes have.
    pub modalities: Option<Vec<Modality>>,
    /// Where to run.
    pub device: DeviceKind,
    /// In which numbers; `None`: the device's own.
    pub dtype: Option<WeightDtype>,
    /// Inputs encoded at the same time on the CPU.
    pub threads: usize,
    /// What is done with EXIF orientation.
    pub orientation: Orientation,
    /// What one file may cost.
    pub limits: MediaLimits,
}

/// A model with its front ends.
pub struct Encoder {
    model: ImageBind,
    tokenizer: Option<ClipTokenizer>,
    images: ImageOptions,
    sounds: Option<AudioFront>,
    limits: MediaLimits,
    origin: Origin,
    lanes: Vec<rayon::ThreadPool>,
    modalities: Vec<Modality>,
}

/// What an encoder gives for one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// After the postprocessor: unit for images, unit × logit scale for text.
    pub embedding: Embedding,
    /// Before the postprocessor, for the image-generation path.
    pub prenorm: Embedding,
}

impl Encoder {
    /// Loads a model.
    ///
    /// # Errors
    /// As [`Weights::open`] and [`ImageBind::load`]; [`Error::Config`] for unreadable sizes or a vocabulary that no
    /// merge table fits; [`Error::Device`].
    pub fn open(options: &EncoderOptions) -> Result<Self, Error> {
        Self::open_overlaid(options, None)
    }

    /// Loads a model of which another file replaces some tensors.
    ///
    /// # Errors
    /// As [`Encoder::open`]; [`Error::SurplusTensor`] for a file with tensors that the model does not have.
    pub fn open_overlaid(options: &EncoderOptions, overlay: Option<&Path>) -> Result<Self, Error> {
        let (name, weights, sizes) = match &options.weights {
            None => (nano::NAME.to_owned(), nano::weights()?, nano::config()?),
            Some(path) => {
                let name =
                    path.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
                (name, Weights::open(path)?, Config::huge())
            }
        };
        let weights = match overlay {
            None => weights,
            Some(path) => weights.overlaid(Weights::open(path)?)?,
        };
        let sizes = match &options.sizes {
            None => sizes,
            Some(path) => {
                let json = std::fs::read_to_string(path)
                    .map_err(|e| Error::Config(format!("cannot read {}: {e}", path.display())))?;
                Config::from_json(&json)?
            }
        };
        if let Some(numbers @ (WeightDtype::F16 | WeightDtype::Q4K | WeightDtype::Q6K)) = options.dtype {
            let why = format!("encoders are not held in {numbers}; use f32, q8_0 or, on a card, bf16");
            return Err(Error::Config(why));
        }
        // An encoder multiplies hundreds of rows at once, so that the product's speed is what counts; a decoder multiplies
        // one, waits for memory, and keeps all of a byte.
        let placement = Placement { reach: Reach::Short, ..Placement::open(options.device, options.dtype)? };
        let modalities = match &options.modalities {
            Some(modalities) => modalities.clone(),
            None => sizes.modalities().into_iter().filter(|m| imagebind::holds(&weights, *m)).collect(),
        };
        let model = ImageBind::load(&weights, &sizes, &modalities, &placement)?;
        let side = match &sizes.vision {
            Some(vision) if vision.image_size[0] == vision.image_size[1] => vision.image_size[0],
            Some(_) if model.has(Modality::Image) => {
                return Err(Error::Config("`vision.image_size` must be square to load picture files".into()));
            }
            _ => 0,
        };
        let tokenizer =
            sizes.text.as_ref().filter(|_| model.has(Modality::Text)).map(tokenizer).transpose()?;
        let images = ImageOptions { side, orientation: options.orientation, limits: options.limits.image };
        let sounds = sizes.audio.as_ref().filter(|_| model.has(Modality::Audio));
        let sounds = sounds.map(|a| AudioFront::new(a.num_mel_bins, a.target_len, options.limits.audio));
        let mut digest = blake3::Hasher::new();
        digest.update(weights.fingerprint()?.as_bytes()).update(format!("{sizes:?}").as_bytes());
        let origin = Origin {
            model: name,
            weights: Some(Fingerprint::from_digest(*digest.finalize().as_bytes())),
            preprocessing: Some(images.fingerprint()),
            encoder_dtype: Some(placement.numbers),
            agreement: None,
        };
        let lanes = if placement.device.is_cpu() { options.threads.max(1) } else { 0 };
        let lanes = (0..lanes).map(|i| {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| format!("encode-{i}"));
            pool.build().map_err(|e| Error::Device { asked: "cpu".into(), why: e.to_string() })
        });
        let lanes = lanes.collect::<Result<_, _>>()?;
        let (limits, modalities) = (options.limits, modalities);
        Ok(Encoder { model, tokenizer, images, sounds, limits, origin, lanes, modalities })
    }

    /// What its embeddings come from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The encoders that were loaded.
    pub fn modalities(&self) -> &[Modality] {
        &self.modalities
    }

    /// Components of an embedding.
    pub fn dim(&self) -> usize {
        self.model.config().out_embed_dim
    }

    /// How pictures are prepared.
    pub fn images(&self) -> &ImageOptions {
        &self.images
    }

    /// Refuses what was not loaded.
    ///
    /// # Errors
    /// [`PrepareError::NotLoaded`].
    pub fn expects(&self, modality: Modality) -> Result<(), PrepareError> {
        if self.model.has(modality) { Ok(()) } else { Err(PrepareError::NotLoaded(modality)) }
    }

    /// Encodes inputs, each with a result of its own, in their order.
    pub fn encode(&self, inputs: &[Prepared]) -> Vec<Result<Encoded, Error>> {
        if self.lanes.is_empty() {
            return self.encode_on_device(inputs);
        }
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                match inputs.get(at) {
                    Some(input) => done.push((at, self.encode_one(input))),
                    None => return done,
                }
            }
        };
        let mut results: Vec<(usize, Result<Encoded, Error>)> = std::thread::scope(|scope| {
            let lanes = self.lanes.iter().take(inputs.len());
            let running: Vec<_> = lanes.map(|lane| scope.spawn(|| lane.install(work))).collect();
            let finished = running.into_iter().flat_map(|lane| lane.join().unwrap_or_default());
            finished.collect()
        });
        results.sort_by_key(|(at, _)| *at);
        let lost = || Err(Error::Input { received: vec![], why: "encoding it crashed".into() });
        let mut results = results.into_iter().peekable();
        let in_order = (0..inputs.len()).map(|at| match results.next_if(|(done, _)| *done == at) {
            Some((_, result)) => result,
            None => lost(),
        });
        in_order.collect()
    }

    /// Threads that work on inputs at the same time on the CPU; 0 on a card.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// As [`Encoder::encode`], one input after another on the calling thread and the pool it belongs to; on a card as there.
    pub fn encode_here(&self, inputs: &[Prepared]) -> Vec<Result<Encoded, Error>> {
        match self.lanes.is_empty() {
            true => self.encode_on_device(inputs),
            false => inputs.iter().map(|input| self.encode_one(input)).collect(),
        }
    }

    /// Millions of multiplications that an input costs.
    pub fn cost(&self, input: &Prepared) -> u64 {
        let clips = match input.shape[..] {
            [clips, _, _, _] | [clips, _, _, _, _] => clips as u64,
            _ => 1,
        };
        clips * self.model.cost(input.modality)
    }

    /// Those of a picture, or of a text where pictures are not known.
    pub fn picture_cost(&self) -> u64 {
        let known = [Modality::Image, Modality::Text].into_iter().find(|modality| self.model.has(*modality));
        known.map_or(1, |modality| self.model.cost(modality)).max(1)
    }

    fn encode_one(&self, input: &Prepared) -> Result<Encoded, Error> {
        let mut encoded = rows(self.encode_stacked(&[input])?)?;
        encoded.pop().unwrap_or_else(|| Err(Error::Config("the model returned no row".into())))
    }

    /// Inputs of one modality and shape.
    fn encode_stacked(&self, batch: &[&Prepared]) -> Result<imagebind::Encoded, Error> {
        let modality = batch.first().map_or(Modality::Image, |first| first.modality);
        let starts: Vec<usize> = batch.iter().map(|input| input.start).collect();
        self.model.encode_from(modality, &Prepared::stack(batch)?, &starts, &mut ignore)
    }

    /// Whole batches, one for each modality and shape.
    fn encode_on_device(&self, inputs: &[Prepared]) -> Vec<Result<Encoded, Error>> {
        let mut batches: BTreeMap<(Modality, &[usize]), Vec<usize>> = BTreeMap::new();
        for (at, input) in inputs.iter().enumerate() {
            batches.entry((input.modality, &input.shape)).or_default().push(at);
        }
        let mut results: Vec<Option<Result<Encoded, Error>>> = inputs.iter().map(|_| None).collect();
        for positions in batches.into_values() {
            let batch: Vec<&Prepared> = positions.iter().map(|&at| &inputs[at]).collect();
            match self.encode_stacked(&batch).and_then(rows) {
                Ok(rows) => positions.into_iter().zip(rows).for_each(|(at, row)| results[at] = Some(row)),
                Err(e) => {
                    let why = e.to_string();
                    for at in positions {
                        results[at] = Some(Err(Error::Input { received: vec![], why: why.clone() }));
                    }
                }
            }
        }
        let missing = || Err(Error::Config("the model returned too few rows".into()));
        results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
    }
}

/// How near the embeddings of one encoder come to another's, over the inputs that both can embed; `None` where there is none.
pub fn agreement(ours: &Encoder, exact: &Encoder, inputs: &[Prepared]) -> Option<Agreement> {
    let pairs = ours.encode(inputs).into_iter().zip(exact.encode(inputs));
    let cosines: Vec<f32> = pairs
        .filter_map(|(ours, exact)| {
            let (ours, exact) = (ours.ok()?.embedding.unit().ok()?, exact.ok()?.embedding.unit().ok()?);
            Some(ours.as_slice().iter().zip(exact.as_slice()).map(|(a, b)| a * b).sum())
        })
        .collect();
    let pictures = cosines.len() as u32;
    let mean = cosines.iter().sum::<f32>() / pictures as f32;
    let min = cosines.into_iter().reduce(f32::min)?;
    Some(Agreement { mean, min, pictures })
}

fn rows(encoded: imagebind::Encoded) -> Result<Vec<Result<Encoded, Error>>, Error> {
    let outputs = encoded.output.to_vec2::<f32>()?;
    let prenorms = encoded.prenorm.to_vec2::<f32>()?;
    let pairs = outputs.into_iter().zip(prenorms);
    Ok(pairs
        .map(|(e, p)| Ok(Encoded { embedding: Embedding::new(e)?, prenorm: Embedding::new(p)? }))
        .collect())
}

/// The merge table that fits a vocabulary: CLIP's whole one, or a beginning of the shipped one.
fn tokenizer(sizes: &imagebind::TextConfig) -> Result<ClipTokenizer, Error> {
    const CLIP_VOCABULARY: usize = 49408;
    const IDS_WITHOUT_MERGES: usize = 514;
    let shipped = nano::MERGES.lines().count() - 1;
    let merges = sizes.vocab_size.checked_sub(IDS_WITHOUT_MERGES);
    match merges {
        _ if sizes.vocab_size == CLIP_VOCABULARY => Ok(ClipTokenizer::clip(sizes.context_length)),
        Some(merges) if merges <= shipped => {
            let table: Vec<&str> = nano::MERGES.lines().take(1 + merges).collect();
            let tokenizer = ClipTokenizer::with_merges(&table.join("\n"), sizes.context_length);
            tokenizer.map_err(|e| Error::Config(e.to_string()))
        }
        _ => Err(Error::Config(format!(
            "`text.vocab_size` {} has no merge table here: it must be {CLIP_VOCABULARY}, or from {IDS_WITHOUT_MERGES} to {}",
            sizes.vocab_size,
            IDS_WITHOUT_MERGES + shipped
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nano_encoder() -> Encoder {
        nano_of(None)
    }

    fn nano_of(dtype: Option<WeightDtype>) -> Encoder {
        Encoder::open(&EncoderOptions {
            weights: None,
            sizes: None,
            modalities: None,
            device: DeviceKind::Cpu,
            dtype,
            threads: 2,
            orientation: Orientation::Apply,
            limits: MediaLimits::default(),
        })
        .unwrap()
    }

    #[test]
    fn an_embedding_does_not_depend_on_its_batch() {
        let encoder = nano_encoder();
        let texts = ["a small red circle", "blue", "a large star at the top", "red"];
        let inputs: Vec<Prepared> =
            texts.iter().map(|t| encoder.prepare(Modality::Text, t.as_bytes()).unwrap()).collect();
        let together: Vec<Encoded> = encoder.encode(&inputs).into_iter().map(Result::unwrap).collect();
        for (input, batched) in inputs.iter().zip(together) {
            let alone = encoder.encode(std::slice::from_ref(input)).remove(0).unwrap();
            assert_eq!(alone, batched);
        }
    }

    #[test]
    fn eight_bits_come_near_and_the_origin_says_so() {
        let (exact, eight) = (nano_encoder(), nano_of(Some(WeightDtype::Q8_0)));
        assert_eq!(exact.origin().encoder_dtype, Some(WeightDtype::F32));
        assert_eq!(eight.origin().encoder_dtype, Some(WeightDtype::Q8_0));
        assert_eq!(
            exact.origin().difference(eight.origin()),
            None,
            "queries of the one fit rows of the other"
        );
        let texts = ["a small red circle", "blue", "a large star at the top", "red"];
        let inputs: Vec<Prepared> =
            texts.iter().map(|t| exact.prepare(Modality::Text, t.as_bytes()).unwrap()).collect();
        let Agreement { mean, min, pictures } = agreement(&eight, &exact, &inputs).unwrap();
        assert!(min > 0.999 && mean >= min && pictures == 4, "{mean} {min} {pictures}");
        assert!(mean < 1.0, "rounding has an effect");
        assert_eq!(agreement(&eight, &exact, &[]), None);
    }

    #[test]
    fn bad_inputs_are_told_apart() {
        let encoder = nano_encoder();
        assert_eq!(encoder.prepare(Modality::Text, &[b'a', 0xff]), Err(PrepareError::NotUtf8(1)));
        assert!(matches!(encoder.prepare(Modality::Image, b"text"), Err(PrepareError::Media(_))));
    }

    #[test]
    fn only_what_was_asked_for_is_loaded() {
        let options = EncoderOptions {
            weights: None,
            sizes: None,
            modalities: Some(vec![Modality::Image]),
            device: DeviceKind::Cpu,
            dtype: None,
            threads: 1,
            orientation: Orientation::Apply,
            limits: MediaLimits::default(),
        };
        let encoder = Encoder::open(&options).unwrap();
        assert_eq!(encoder.prepare(Modality::Text, b"x"), Err(PrepareError::NotLoaded(Modality::Text)));
    }
}
