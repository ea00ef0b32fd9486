//! Weights into an encoder: which network they are read as, and the front ends that go with it.

use std::path::Path;

use super::network::{Model, Network};
use super::{Encoder, EncoderOptions};
use crate::kernels::q8::Reach;
use crate::media::ImageOptions;
use crate::media::audio::AudioFront;
use crate::media::augment::Evaluation;
use crate::models::illama::{self, Illama, Size};
use crate::models::imagebind::{self, Config, ImageBind};
use crate::models::weights::Weights;
use crate::models::{Error, Placement, nano};
use crate::text::ClipTokenizer;
use crate::types::{Fingerprint, Modality, Origin, WeightDtype};

/// A tensor that every iLLaMA has and no ImageBind.
const ONLY_ILLAMAS: &str = "patch_embed.proj.weight";

/// A loaded network with what prepares its inputs.
struct Loaded {
    model: Model,
    modalities: Vec<Modality>,
    /// Side of its pictures; 0 where it takes none.
    side: usize,
    tokenizer: Option<ClipTokenizer>,
    sounds: Option<AudioFront>,
    /// Everything about its sizes that changes a number.
    sizes: String,
}

impl Encoder {
    /// Loads a model.
    ///
    /// # Errors
    /// As [`Weights::open`], [`ImageBind::load`] and [`Illama::load`]; [`Error::Config`] for unreadable sizes, for weights that are not
    /// of the network or size that is named, or for a vocabulary that no merge table fits; [`Error::Device`].
    pub fn open(options: &EncoderOptions) -> Result<Self, Error> {
        Self::open_overlaid(options, None)
    }

    /// Loads a model of which another file replaces some tensors.
    ///
    /// # Errors
    /// As [`Encoder::open`]; [`Error::SurplusTensor`] for a file with tensors that the model does not have.
    pub fn open_overlaid(options: &EncoderOptions, overlay: Option<&Path>) -> Result<Self, Error> {
        let (name, weights) = match (&options.weights, options.network) {
            (None, Network::ImageBind) => (nano::NAME.to_owned(), nano::weights()?),
            (None, network) => {
                let why = format!("{} needs a checkpoint: name one by `weights`", network.word());
                return Err(Error::Config(why));
            }
            (Some(path), _) => {
                let name =
                    path.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
                (name, Weights::open(path)?)
            }
        };
        let weights = match overlay {
            None => weights,
            Some(path) => weights.overlaid(Weights::open(path)?)?,
        };
        if let Some(numbers @ (WeightDtype::F16 | WeightDtype::Q4K | WeightDtype::Q6K)) = options.dtype {
            let why = format!("encoders are not held in {numbers}; use f32, q8_0 or, on a card, bf16");
            return Err(Error::Config(why));
        }
        // An encoder multiplies hundreds of rows at once, so that the product's speed is what counts; a decoder multiplies
        // one, waits for memory, and keeps all of a byte.
        let placement = Placement { reach: Reach::Short, ..Placement::open(options.device, options.dtype)? };
        let loaded = match options.network {
            Network::ImageBind => imagebind(&weights, options, &placement)?,
            Network::Illama(size) => illama(&weights, size, options, &placement)?,
        };
        let Loaded { model, modalities, side, tokenizer, sounds, sizes } = loaded;
        let images = ImageOptions { side, orientation: options.orientation, limits: options.limits.image };
        let preprocessing = match &model {
            Model::ImageBind(_) => images.fingerprint(),
            Model::Illama(_, evaluation) => evaluation.fingerprint(),
        };
        let mut digest = blake3::Hasher::new();
        digest.update(weights.fingerprint()?.as_bytes()).update(sizes.as_bytes());
        let origin = Origin {
            model: name,
            weights: Some(Fingerprint::from_digest(*digest.finalize().as_bytes())),
            preprocessing: Some(preprocessing),
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
        let limits = options.limits;
        Ok(Encoder { model, tokenizer, images, sounds, limits, origin, lanes, modalities })
    }
}

/// Text of the file of sizes, if one is named.
fn stated_sizes(options: &EncoderOptions) -> Result<Option<String>, Error> {
    let read = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path)
            .map_err(|e| Error::Config(format!("cannot read {}: {e}", path.display())))
    };
    options.sizes.as_ref().map(read).transpose()
}

fn imagebind(weights: &Weights, options: &EncoderOptions, placement: &Placement) -> Result<Loaded, Error> {
    if weights.shape(ONLY_ILLAMAS).is_some() {
        let why = format!("{} is an iLLaMA; name its size too, as in `illama-base`", weights.path());
        return Err(Error::Config(why));
    }
    let sizes = match (stated_sizes(options)?, &options.weights) {
        (Some(json), _) => Config::from_json(&json)?,
        (None, Some(_)) => Config::huge(),
        (None, None) => nano::config()?,
    };
    let modalities = match &options.modalities {
        Some(modalities) => modalities.clone(),
        None => sizes.modalities().into_iter().filter(|m| imagebind::holds(weights, *m)).collect(),
    };
    let model = ImageBind::load(weights, &sizes, &modalities, placement)?;
    let side = match &sizes.vision {
        Some(vision) if vision.image_size[0] == vision.image_size[1] => vision.image_size[0],
        Some(_) if model.has(Modality::Image) => {
            return Err(Error::Config("`vision.image_size` must be square to load picture files".into()));
        }
        _ => 0,
    };
    let tokenizer = sizes.text.as_ref().filter(|_| model.has(Modality::Text)).map(tokenizer).transpose()?;
    let sounds = sizes.audio.as_ref().filter(|_| model.has(Modality::Audio));
    let sounds = sounds.map(|a| AudioFront::new(a.num_mel_bins, a.target_len, options.limits.audio));
    let sizes = format!("{sizes:?}");
    Ok(Loaded { model: Model::ImageBind(Box::new(model)), modalities, side, tokenizer, sounds, sizes })
}

fn illama(
    weights: &Weights,
    size: Option<Size>,
    options: &EncoderOptions,
    placement: &Placement,
) -> Result<Loaded, Error> {
    if let Some(other) = options.modalities.iter().flatten().find(|m| **m != Modality::Image) {
        return Err(Error::NotLoaded(*other));
    }
    let config = match stated_sizes(options)? {
        Some(json) => illama::Config::from_json(&json)?,
        None => illama::Config::of(weights)?,
    };
    if let Some(size) = size {
        let named = size.config(config.side, config.classes);
        if named != config {
            let why = format!(
                "{} has {}, and {} has {}; name the size that it is, or `illama` for any",
                weights.path(),
                config.in_words(),
                size.name(),
                named.in_words()
            );
            return Err(Error::Config(why));
        }
    }
    let model = Illama::load(weights, &config, placement)?;
    let evaluation = Evaluation { orientation: options.orientation, ..Evaluation::new(config.side) };
    Ok(Loaded {
        model: Model::Illama(Box::new(model), evaluation),
        modalities: vec![Modality::Image],
        side: config.side,
        tokenizer: None,
        sounds: None,
        sizes: format!("{config:?}"),
    })
}

/// The tokenizer whose merge table fits a vocabulary: CLIP's whole one, or a beginning of the shipped one.
///
/// # Errors
/// [`Error::Config`] for a vocabulary that none fits.
pub fn tokenizer(sizes: &imagebind::TextConfig) -> Result<ClipTokenizer, Error> {
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
