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

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Tensor;

use super::imagebind::{self, Config, ImageBind, ignore};
use super::weights::Weights;
use super::{DeviceKind, Error, nano};
use crate::media::{self, ImageOptions, Limits, Orientation};
use crate::text::{self, ClipTokenizer};
use crate::types::{Embedding, Fingerprint, Modality, Origin};

/// Which model to load and how to run it.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderOptions {
    /// A checkpoint; `None` is the built-in nano model.
    pub weights: Option<PathBuf>,
    /// Sizes as JSON; `None` with a checkpoint means the published `imagebind_huge`.
    pub sizes: Option<PathBuf>,
    /// Encoders to load.
    pub modalities: Vec<Modality>,
    /// Where to run.
    pub device: DeviceKind,
    /// Inputs encoded at the same time on the CPU.
    pub threads: usize,
    /// What is done with EXIF orientation.
    pub orientation: Orientation,
    /// What one picture file may cost.
    pub limits: Limits,
}

/// A model with its front ends.
pub struct Encoder {
    model: ImageBind,
    tokenizer: Option<ClipTokenizer>,
    images: ImageOptions,
    origin: Origin,
    lanes: Vec<rayon::ThreadPool>,
    modalities: Vec<Modality>,
}

/// What an encoder takes.
#[derive(Debug, Clone, PartialEq)]
pub enum Prepared {
    /// `[3, S, S]`
    Image(Vec<f32>),
    /// Ids, padding included.
    Text(Vec<u32>),
}

/// What an encoder gives for one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// After the postprocessor: unit for images, unit × logit scale for text.
    pub embedding: Embedding,
    /// Before the postprocessor, for the image-generation path.
    pub prenorm: Embedding,
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
    /// A modality that was not loaded.
    #[error("this model was loaded without {0}")]
    NotLoaded(Modality),
}

impl Encoder {
    /// Loads a model.
    ///
    /// # Errors
    /// As [`Weights::open`] and [`ImageBind::load`]; [`Error::Config`] for unreadable sizes or a vocabulary that no
    /// merge table fits; [`Error::Device`].
    pub fn open(options: &EncoderOptions) -> Result<Self, Error> {
        let (name, weights, sizes) = match &options.weights {
            None => (nano::NAME.to_owned(), nano::weights()?, nano::config()?),
            Some(path) => {
                let name =
                    path.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
                (name, Weights::open(path)?, Config::huge())
            }
        };
        let sizes = match &options.sizes {
            None => sizes,
            Some(path) => {
                let json = std::fs::read_to_string(path)
                    .map_err(|e| Error::Config(format!("cannot read {}: {e}", path.display())))?;
                Config::from_json(&json)?
            }
        };
        let (device, dtype) = options.device.open()?;
        let model = ImageBind::load(&weights, &sizes, &options.modalities, &device, dtype)?;
        let side = match &sizes.vision {
            Some(vision) if vision.image_size[0] == vision.image_size[1] => vision.image_size[0],
            Some(_) if model.has(Modality::Image) => {
                return Err(Error::Config("`vision.image_size` must be square to load picture files".into()));
            }
            _ => 0,
        };
        let tokenizer =
            sizes.text.as_ref().filter(|_| model.has(Modality::Text)).map(tokenizer).transpose()?;
        let images = ImageOptions { side, orientation: options.orientation, limits: options.limits };
        let mut digest = blake3::Hasher::new();
        digest.update(weights.fingerprint()?.as_bytes()).update(format!("{sizes:?}").as_bytes());
        let origin = Origin {
            model: name,
            weights: Some(Fingerprint::from_digest(*digest.finalize().as_bytes())),
            preprocessing: Some(images.fingerprint()),
        };
        let lanes = if device.is_cpu() { options.threads.max(1) } else { 0 };
        let lanes = (0..lanes).map(|i| {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| format!("encode-{i}"));
            pool.build().map_err(|e| Error::Device { asked: "cpu".into(), why: e.to_string() })
        });
        let lanes = lanes.collect::<Result<_, _>>()?;
        Ok(Encoder { model, tokenizer, images, origin, lanes, modalities: options.modalities.clone() })
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

    /// Brings a file or text into the model's form.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub fn prepare(&self, modality: Modality, bytes: &[u8]) -> Result<Prepared, PrepareError> {
        match modality {
            Modality::Image if self.model.has(modality) => {
                Ok(Prepared::Image(media::image::prepare(bytes, &self.images)?))
            }
            Modality::Text => {
                let tokenizer = self.tokenizer.as_ref().ok_or(PrepareError::NotLoaded(modality))?;
                let text = std::str::from_utf8(bytes).map_err(|e| PrepareError::NotUtf8(e.valid_up_to()))?;
                Ok(Prepared::Text(tokenizer.encode(text)?))
            }
            Modality::Image => Err(PrepareError::NotLoaded(modality)),
        }
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

    fn encode_one(&self, input: &Prepared) -> Result<Encoded, Error> {
        let encoded = match input {
            Prepared::Image(values) => {
                let side = self.images.side;
                let image = Tensor::from_slice(values, (1, 3, side, side), &candle_core::Device::Cpu)?;
                self.model.encode_vision(&image, &mut ignore)?
            }
            Prepared::Text(ids) => {
                let ids = Tensor::from_slice(ids, (1, ids.len()), &candle_core::Device::Cpu)?;
                self.model.encode_text(&ids, &mut ignore)?
            }
        };
        rows(encoded)?.pop().unwrap_or_else(|| Err(Error::Config("the model returned no row".into())))
    }

    /// Whole batches, one per kind of input.
    fn encode_on_device(&self, inputs: &[Prepared]) -> Vec<Result<Encoded, Error>> {
        let side = self.images.side;
        let (mut images, mut texts) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        for (at, input) in inputs.iter().enumerate() {
            match input {
                Prepared::Image(values) => {
                    images.0.push(at);
                    images.1.extend_from_slice(values);
                }
                Prepared::Text(ids) => {
                    texts.0.push(at);
                    texts.1.extend_from_slice(ids);
                }
            }
        }
        let cpu = candle_core::Device::Cpu;
        let vision = |n: usize, values: Vec<f32>| {
            self.model.encode_vision(&Tensor::from_vec(values, (n, 3, side, side), &cpu)?, &mut ignore)
        };
        let text = |n: usize, ids: Vec<u32>| {
            self.model.encode_text(&Tensor::from_vec(ids.clone(), (n, ids.len() / n), &cpu)?, &mut ignore)
        };
        let mut results: Vec<Option<Result<Encoded, Error>>> = inputs.iter().map(|_| None).collect();
        let mut place = |positions: Vec<usize>, encoded: Result<imagebind::Encoded, Error>| {
            let rows = encoded.and_then(rows);
            match rows {
                Ok(rows) => positions.into_iter().zip(rows).for_each(|(at, row)| results[at] = Some(row)),
                Err(e) => {
                    let why = e.to_string();
                    for at in positions {
                        results[at] = Some(Err(Error::Input { received: vec![], why: why.clone() }));
                    }
                }
            }
        };
        if !images.0.is_empty() {
            let n = images.0.len();
            place(images.0, vision(n, images.1));
        }
        if !texts.0.is_empty() {
            let n = texts.0.len();
            place(texts.0, text(n, texts.1));
        }
        let missing = || Err(Error::Config("the model returned too few rows".into()));
        results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
    }
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
        Encoder::open(&EncoderOptions {
            weights: None,
            sizes: None,
            modalities: Modality::ALL.to_vec(),
            device: DeviceKind::Cpu,
            threads: 2,
            orientation: Orientation::Apply,
            limits: Limits::default(),
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
            modalities: vec![Modality::Image],
            device: DeviceKind::Cpu,
            threads: 1,
            orientation: Orientation::Apply,
            limits: Limits::default(),
        };
        let encoder = Encoder::open(&options).unwrap();
        assert_eq!(encoder.prepare(Modality::Text, b"x"), Err(PrepareError::NotLoaded(Modality::Text)));
    }
}
