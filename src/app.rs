//! The only place where everything is put together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use tracing::{error, info, warn};
use viscache::batch::{Embedder, Generator};
use viscache::budget::Budget;
use viscache::cache::Cache;
use viscache::flow::{App, Experts, ServedCache};
use viscache::models::encoder::{Encoder, EncoderOptions, Network};
use viscache::models::llm::{Llm, LlmOptions};
use viscache::models::nano;
use viscache::store::{Access, CacheRecord, ModelSource, Store};
use viscache::types::{CacheName, WeightDtype};

use crate::config::Config;

/// In place of a store: there is none, and models alone are served.
pub const NO_STORE: &str = "none";

/// What may be asked of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wants {
    /// Files or texts may come.
    pub encoder: bool,
    /// Answers may be wanted.
    pub decoder: bool,
    /// Caches may be asked, or their items changed; without it, only made, named and deleted.
    pub caches: bool,
}

/// Opens store, caches and models.
///
/// * `wants`: what may be asked; of what is not, no model is loaded.
///
/// # Errors
/// A store that cannot be read, a cache that was named and cannot be served, a model that was named and cannot be
/// loaded. A cache that was not named and cannot be served is reported and listed with its problem.
pub fn open(config: &Config, wants: Wants) -> anyhow::Result<App> {
    let store = store(config)?;
    let records = store.as_ref().map_or(Ok(Vec::new()), |store| chosen(config, store))?;
    let default = match (&config.default_cache, &store) {
        (Some(default), Some(store)) => Some(store.alias(default)?.unwrap_or_else(|| default.clone())),
        (default, _) => default.clone(),
    };
    let (encoder, source) = match wants.encoder {
        true => model(config, &records, default.as_ref())?.unzip(),
        false => (None, None),
    };
    let records = if wants.caches { records } else { Vec::new() };
    let llm = match wants.decoder {
        true => decoder(config, encoder.as_ref())?,
        false => None,
    };
    let memory = config.memory();
    let shared = Budget::of(memory.caches);
    let mut caches: BTreeMap<CacheName, ServedCache> = BTreeMap::new();
    let of_store = store.iter().flat_map(|store| records.iter().map(move |record| (store, record)));
    for (store, record) in of_store {
        let expected = encoder.as_ref().map(Encoder::origin);
        let opened = Cache::open_among(store, &record.name, expected, memory.load_options(), &shared);
        let opened = match opened {
            Ok(cache) => {
                let (snapshot, loaded) = (cache.snapshot(), cache.snapshot().loaded());
                info!(
                    cache = %record.name,
                    generation = snapshot.generation().0,
                    items = snapshot.index().len(),
                    plan = %loaded.plan,
                    seconds = format!("{:.3}", loaded.took.as_secs_f64()),
                    "cache opened"
                );
                Ok(Arc::new(cache))
            }
            Err(problem) if !config.caches.is_empty() => return Err(problem.into()),
            Err(problem) => {
                let problem = format!("{:#}", anyhow::Error::from(problem));
                error!(cache = %record.name, problem, "cache not served");
                Err(problem)
            }
        };
        caches.insert(record.name.clone(), opened);
    }
    if wants.caches
        && let Some(default) = &default
        && !caches.contains_key(default)
    {
        bail!("the default cache `{default}` is not among those served");
    }
    let embedder = encoder.map(|encoder| Embedder::start(encoder, config.batch())).transpose()?;
    let mut app = App::new(store, caches, config.default_cache.clone(), embedder, config.limits());
    let generator = llm.map(|llm| Generator::start(llm, config.answers())).transpose()?;
    app.generator = generator;
    info!(caches_mib = memory.caches >> 20, requests_mib = memory.requests >> 20, "memory");
    app.load = memory.load_options();
    app.memory = shared;
    app.budget = Budget::of(memory.requests);
    app.source = source;
    if !config.caches.is_empty() {
        app.caches.serve_only(config.caches.clone());
    }
    if wants.decoder {
        app.experts = Experts { settings: config.experts.clone(), captioner: captioner(config)? };
    }
    app.default_blend = config.blend_params();
    app.default_search = config.search_params();
    app.default_width = config.search_width();
    app.compact = config.compact.clone();
    Ok(app)
}

/// The store; nothing where models alone are served.
fn store(config: &Config) -> anyhow::Result<Option<Arc<Store>>> {
    if config.store.as_os_str() == NO_STORE {
        if !config.caches.is_empty() || config.default_cache.is_some() || config.writable {
            bail!(
                "the store is `{NO_STORE}`, and caches are named or it is to be writable; name the store they are in"
            );
        }
        return Ok(None);
    }
    // Opening for writing would make a store that is not there.
    let write = config.writable && Store::exists(&config.store);
    let access = if write { Access::Write } else { Access::Read };
    Ok(Some(Arc::new(Store::open(&config.store, access)?)))
}

/// The caches to serve.
fn chosen(config: &Config, store: &Store) -> anyhow::Result<Vec<CacheRecord>> {
    if config.caches.is_empty() {
        return Ok(store.caches()?);
    }
    config.caches.iter().map(|name| Ok(store.cache(name)?)).collect()
}

/// The model that is asked for, or that made the caches.
///
/// * `default`: the name of the default cache, if there is one.
fn model(
    config: &Config,
    records: &[CacheRecord],
    default: Option<&CacheName>,
) -> anyhow::Result<Option<(Encoder, ModelSource)>> {
    if config.model == "none" {
        return Ok(None);
    }
    let named = named(config, records)?;
    let default = records.iter().find(|record| Some(&record.name) == default);
    let of_caches = || default.into_iter().chain(records).find_map(|record| record.model.clone());
    let is_named = named.is_some();
    let Some(source) = named.or_else(of_caches) else {
        info!("no cache says which model made it: serving embeddings only");
        return Ok(None);
    };
    // As a cache's record names it: by the settings that it was opened with.
    let source = ModelSource {
        sizes: config.sizes.clone().or(source.sizes),
        orientation: config.orientation.unwrap_or(source.orientation),
        ..source
    };
    let opened = encoder_options(config, &source).and_then(|options| Ok(Encoder::open(&options)?));
    match opened {
        Ok(encoder) => {
            let origin = encoder.origin();
            info!(model = origin.model, weights = origin.weights.map(|w| w.short()), "model loaded");
            Ok(Some((encoder, source)))
        }
        Err(error) if is_named => Err(error).context("the model cannot be loaded"),
        Err(error) => {
            let problem = format!("{error:#}");
            warn!(
                problem,
                "the model that made the cache cannot be loaded: serving embeddings only; name it with --model"
            );
            Ok(None)
        }
    }
}

/// The model that the settings name; nothing where they leave it to the caches.
fn named(config: &Config, records: &[CacheRecord]) -> anyhow::Result<Option<ModelSource>> {
    let (word, weights) = (config.model.as_str(), config.weights.clone());
    let orientation = records.iter().find_map(|r| Some(r.model.as_ref()?.orientation)).unwrap_or_default();
    let of = |network: Option<Network>, weights: Option<PathBuf>| {
        let network = network.map(|network| network.word().to_owned());
        Some(ModelSource { network, weights, sizes: config.sizes.clone(), orientation })
    };
    Ok(match (word, word.parse::<Network>(), weights) {
        ("auto", _, None) => None,
        ("nano", _, None) => Some(ModelSource::default()),
        (_, Ok(_), None) => bail!("--model {word} needs --weights: the file of its checkpoint"),
        (_, Ok(network), weights) => of(Some(network), weights),
        ("auto", _, weights) => of(None, weights),
        (_, Err(problem), _) if word.starts_with("illama") && !Path::new(word).exists() => bail!("{problem}"),
        (_, _, Some(_)) => {
            bail!("--weights is of a network that --model names ({}), and `{word}` is none", Network::words())
        }
        (path, _, None) => of(None, Some(PathBuf::from(path))),
    })
}

/// The classifier that the settings name.
///
/// * `dtype`: its numbers, in place of those of the settings.
///
/// # Errors
/// Settings that name none; as [`Encoder::open`].
pub fn classifier(config: &Config, dtype: Option<WeightDtype>) -> anyhow::Result<Encoder> {
    let named = match config.model.as_str() {
        "none" => None,
        _ => named(config, &[])?,
    };
    let Some(source) = named.filter(|source| source.network.is_some()) else {
        bail!("name a classifier and its checkpoint, as in `--model illama-base --weights FILE`");
    };
    let source = ModelSource { orientation: config.orientation.unwrap_or(source.orientation), ..source };
    let options = encoder_options(config, &source)?;
    let options = EncoderOptions { dtype: dtype.or(options.dtype), ..options };
    let encoder = Encoder::open(&options).context("the model cannot be loaded")?;
    if encoder.classes() == 0 {
        bail!("{} is no classifier; name one, as in `--model illama-base`", config.model);
    }
    Ok(encoder)
}

fn encoder_options(config: &Config, source: &ModelSource) -> anyhow::Result<EncoderOptions> {
    let network =
        source.network.as_deref().map(str::parse).transpose().map_err(anyhow::Error::msg::<String>)?;
    Ok(EncoderOptions {
        network: network.unwrap_or_default(),
        weights: source.weights.clone(),
        sizes: source.sizes.clone(),
        modalities: None,
        device: config.device,
        dtype: config.encoder_dtype,
        threads: config.threads(),
        orientation: source.orientation,
        limits: config.limits().media,
    })
}

/// The decoder that is asked for, or the one that belongs to the model that is served.
fn decoder(config: &Config, encoder: Option<&Encoder>) -> anyhow::Result<Option<Llm>> {
    let backbone = match config.decoder.as_str() {
        "none" => return Ok(None),
        "auto" if config.adapter.is_some() || config.clip.is_some() || config.tokenizer.is_some() => {
            bail!(
                "an adapter, CLIP or a tokenizer is named and no decoder that it is for; name it by --decoder"
            );
        }
        "auto" if encoder.is_some_and(|encoder| encoder.origin().model == nano::NAME) => None,
        "auto" => return Ok(None),
        "nano" => None,
        path => Some(PathBuf::from(path)),
    };
    if backbone.is_none() && config.tokenizer.is_some() {
        bail!("a tokenizer is named, and the built-in decoder has its own");
    }
    let llm = Llm::open(&llm_options(config, backbone)).context("the decoder cannot be loaded")?;
    info!(decoder = llm.name(), weights = llm.fingerprint().short(), "decoder loaded");
    Ok(Some(llm))
}

/// The captioner's own decoder, where it has one.
fn captioner(config: &Config) -> anyhow::Result<Option<Generator>> {
    let settings = &config.experts;
    let Some(path) = &settings.captioner else { return Ok(None) };
    let options = LlmOptions {
        backbone: (path.as_os_str() != "nano").then(|| path.clone()),
        delta: None,
        adapter: settings.captioner_adapter.clone(),
        clip: settings.captioner_clip.clone(),
        tokenizer: settings.captioner_tokenizer.clone(),
        device: config.device,
        dtype: config.decoder_dtype,
    };
    let llm = Llm::open(&options).context("the captioner's decoder cannot be loaded")?;
    info!(decoder = llm.name(), weights = llm.fingerprint().short(), "captioner loaded");
    Ok(Some(Generator::start(llm, config.answers())?))
}

/// How a decoder is opened.
pub fn llm_options(config: &Config, backbone: Option<PathBuf>) -> LlmOptions {
    LlmOptions {
        backbone,
        delta: None,
        adapter: config.adapter.clone(),
        clip: config.clip.clone(),
        tokenizer: config.tokenizer.clone(),
        device: config.device,
        dtype: config.decoder_dtype,
    }
}
