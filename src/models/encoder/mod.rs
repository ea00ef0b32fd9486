//! A model with its front ends: files and texts in, embeddings out; pictures in, logits out, of a model that is a classifier.
//!
//! ```text
//! bytes ─► prepare (any thread) ─► Prepared ─┬► encode ─► Encoded { embedding, prenorm }
//!                                            └► logits ─► one for each class
//!                                              │ CPU: lanes, each one thread of its own, one input at a time
//!                                              └ CUDA: the whole batch at once
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `network.rs` | which network it is, and what all networks can do |
//! | `open.rs` | weights into an encoder |
//! | `prepare.rs` | files into what a network takes |
//! | `spread.rs` | inputs over lanes, or in whole batches |
//!
//! Why lanes: candle splits every matrix product over the threads of the pool it runs in. A pool of one thread keeps an
//! input on its core, and as many inputs run as there are lanes; two cores then do twice the work of one, which they
//! do not when they share each product. An embedding does not depend on what else is in its batch.

mod network;
mod open;
mod prepare;
mod spread;

use std::path::PathBuf;

use self::network::Model;
pub use self::network::Network;
pub use self::open::tokenizer;
pub use self::prepare::{Media, PrepareError, Prepared, Values};
use self::spread::{alone, in_batches, over_lanes};
use super::{DeviceKind, Error};
use crate::media::audio::AudioFront;
use crate::media::{ImageOptions, MediaLimits, Orientation};
use crate::text::ClipTokenizer;
use crate::types::{Agreement, Embedding, Modality, Origin, WeightDtype};

/// Which model to load and how to run it.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderOptions {
    /// Which network the checkpoint is.
    pub network: Network,
    /// A checkpoint; `None` is the built-in nano model.
    pub weights: Option<PathBuf>,
    /// Sizes as JSON; `None` with a checkpoint means the published `imagebind_huge`, or what an iLLaMA's weights say.
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
    model: Model,
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
    /// After the postprocessor: unit for images, unit × logit scale for text. Of an iLLaMA, the class token behind the last norm, of
    /// any length.
    pub embedding: Embedding,
    /// Before the postprocessor, for the image-generation path. An iLLaMA has none: the same as `embedding`.
    pub prenorm: Embedding,
}

impl Encoded {
    /// The mean of what views of one thing gave.
    ///
    /// # Errors
    /// [`Error::Output`] for numbers that are not finite, and where there is no view.
    pub fn mean(views: &[Encoded]) -> Result<Encoded, Error> {
        let mean = |part: fn(&Encoded) -> &Embedding| {
            let mut sum = views.first().map_or(Vec::new(), |first| vec![0f32; part(first).as_slice().len()]);
            for view in views {
                sum.iter_mut().zip(part(view).as_slice()).for_each(|(sum, v)| *sum += v);
            }
            sum.iter_mut().for_each(|sum| *sum *= (1.0 / views.len() as f64) as f32);
            Embedding::new(sum)
        };
        Ok(Encoded { embedding: mean(|view| &view.embedding)?, prenorm: mean(|view| &view.prenorm)? })
    }
}

impl Encoder {
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
        self.model.dim()
    }

    /// Classes that it tells apart; 0 for a model that is no classifier.
    pub fn classes(&self) -> usize {
        self.model.classes()
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
        match self.lanes.is_empty() {
            true => in_batches(inputs, |batch| self.encoded(batch)),
            false => over_lanes(&self.lanes, inputs, |batch| self.encoded(batch)),
        }
    }

    /// How much each class is favoured in pictures, `[C]` finite numbers each, as [`Encoder::encode`] goes about it.
    ///
    /// # Errors
    /// For each picture: [`Error::Config`] of a model that is no classifier; [`Error::Output`] for numbers that are not finite.
    pub fn logits(&self, inputs: &[Prepared]) -> Vec<Result<Vec<f32>, Error>> {
        match self.lanes.is_empty() {
            true => in_batches(inputs, |batch| self.judged(batch)),
            false => over_lanes(&self.lanes, inputs, |batch| self.judged(batch)),
        }
    }

    /// Threads that work on inputs at the same time on the CPU; 0 on a card.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// As [`Encoder::encode`], one input after another on the calling thread and the pool it belongs to; on a card as there.
    pub fn encode_here(&self, inputs: &[Prepared]) -> Vec<Result<Encoded, Error>> {
        match self.lanes.is_empty() {
            true => in_batches(inputs, |batch| self.encoded(batch)),
            false => inputs.iter().map(|input| alone(input, |batch| self.encoded(batch))).collect(),
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

    /// Inputs of one modality and shape, as embeddings.
    fn encoded(&self, batch: &[&Prepared]) -> Result<Vec<Result<Encoded, Error>>, Error> {
        let modality = batch.first().map_or(Modality::Image, |first| first.modality);
        let starts: Vec<usize> = batch.iter().map(|input| input.start).collect();
        let encoded = self.model.encode(modality, &Prepared::stack(batch)?, &starts)?;
        let outputs = encoded.output.to_vec2::<f32>()?;
        let prenorms = encoded.prenorm.to_vec2::<f32>()?;
        let pairs = outputs.into_iter().zip(prenorms);
        Ok(pairs
            .map(|(e, p)| Ok(Encoded { embedding: Embedding::new(e)?, prenorm: Embedding::new(p)? }))
            .collect())
    }

    /// Pictures, as logits.
    fn judged(&self, batch: &[&Prepared]) -> Result<Vec<Result<Vec<f32>, Error>>, Error> {
        let logits = self.model.logits(&Prepared::stack(batch)?)?.to_vec2::<f32>()?;
        // Any numbers that are finite make an embedding.
        Ok(logits.into_iter().map(|row| Ok(Embedding::new(row)?.into_vec())).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn nano_encoder() -> Encoder {
        nano_of(None)
    }

    fn nano_of(dtype: Option<WeightDtype>) -> Encoder {
        Encoder::open(&EncoderOptions {
            network: Default::default(),
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
            network: Default::default(),
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
