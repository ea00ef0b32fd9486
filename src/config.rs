//! The settings: flags over environment over file over defaults, and where each value came from.
//!
//! A setting has one name everywhere: `limits.max_batch` in the file is `VISCACHE_LIMITS__MAX_BATCH` in the environment.
//! `viscache config` prints the effective settings with their origin; what it prints is a valid file.
//!
//! An unknown name in a file is an error, with the name that it is nearest to. In the environment it is not, because others write
//! there too: beside a Service of the name `viscache`, Kubernetes sets `VISCACHE_PORT` and more. Those are named in a warning.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::{Figment, Metadata};
use serde::{Deserialize, Serialize};
use viscache::batch::{self, GenerateOptions};
use viscache::blend::BlendParams;
use viscache::cache::{CompactOptions, RowsMode};
use viscache::flow::{ExpertSettings, Limits, SamplingOptions, VideoLimits, Width};
use viscache::index::{SearchParams, TargetRecall};
use viscache::media::{self, AudioLimits, MediaLimits, Orientation, PointLimits};
use viscache::models::DeviceKind;
use viscache::types::{CacheName, WeightDtype};

use crate::memory::{Memory, MemoryBudget};

/// The file that is read when it is there and no other is named.
const DEFAULT_FILE: &str = "viscache.toml";
/// Before the names of settings in the environment.
const ENV_PREFIX: &str = "VISCACHE_";

/// Between the names of a table and of a setting in it, in the environment.
const ENV_SEPARATOR: &str = "__";

/// Variables of that prefix that tell the tests where their data is, and which Python to run; every other unknown one is named in
/// a warning.
const NOT_SETTINGS: [&str; 3] = ["data", "golden", "python"];

/// Every setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder of the store; `none` serves models alone.
    pub store: PathBuf,
    /// Address that `serve` listens on. The default is reachable from this machine only.
    pub listen: String,
    /// Caches to serve; none means all of the store.
    pub caches: Vec<CacheName>,
    /// Cache meant when a request names none; without it, a single cache is meant.
    pub default_cache: Option<CacheName>,
    /// Model for pictures and texts: `auto` (the one that made the cache), `nano`, `none`, `illama-tiny`, `illama-small`,
    /// `illama-base`, `illama-large` or `illama` (any size) with its `weights`, or the path of a checkpoint of ImageBind's.
    pub model: String,
    /// Checkpoint of the model that is named: safetensors or `.pth`. Where none is named, a checkpoint of ImageBind's.
    pub weights: Option<PathBuf>,
    /// Sizes of that checkpoint as JSON; without it, those of `imagebind_huge`, or those that an iLLaMA's weights have.
    pub sizes: Option<PathBuf>,
    /// Decoder for answers: `auto` (the built-in one, where the built-in model is served), `nano`, `none`, or where a LLaMA's weights
    /// are: a folder of `consolidated.*.pth` and `params.json`, a folder of safetensors and `config.json`, or one file.
    pub decoder: String,
    /// The adapter made for that decoder, as ImageBind-LLM's `7B.pth`, or a folder that training wrote, as `RUN/best`.
    pub adapter: Option<PathBuf>,
    /// CLIP ViT-L/14, for an adapter that looks at pictures through it: OpenAI's `ViT-L-14.pt`, or the same as safetensors.
    pub clip: Option<PathBuf>,
    /// Its `tokenizer.model`; without it, the one beside the decoder or a folder up.
    pub tokenizer: Option<PathBuf>,
    /// Numbers of the decoder: `f32`, `f16`, `q8_0`, `q6_k` or `q4_k` on the CPU, `bf16` or `f32` on a card. Without it, f32
    /// and bf16.
    pub decoder_dtype: Option<WeightDtype>,
    /// EXIF orientation of pictures: `apply` or `reference` (ignored, as the published loader does). Without it, as the
    /// cache was made.
    pub orientation: Option<Orientation>,
    /// Where the model runs: `cpu` or `cuda`.
    pub device: DeviceKind,
    /// Numbers of the encoders: `f32`, `bf16` (a card's own) or `q8_0` (8 bits, on the CPU). Without it, the device's own:
    /// f32 on the CPU.
    pub encoder_dtype: Option<WeightDtype>,
    /// Inputs embedded at the same time on the CPU; 0 means one per core.
    pub threads: usize,
    /// Where stored rows are kept: `auto`, `ram` or `disk`.
    pub rows: RowsMode,
    /// Memory of the server, MiB: of all caches, upserted items included, and of all requests. A cache that is built anew takes as much
    /// again meanwhile. `auto`: three quarters of what the system, or the process's control group, leaves when it starts.
    pub memory_budget_mib: MemoryBudget,
    /// Whether `serve` takes upserts and deletions. It is then the store's one writer: builders have to wait.
    pub writable: bool,
    /// Messages of this level and above, by module: the syntax of `RUST_LOG`.
    pub log: String,
    /// Log lines as JSON.
    pub log_json: bool,
    /// What the cache does to a query when the request does not say.
    pub blend: Blend,
    /// How a cache is searched when the request does not say. `target_recall`, when it is set, takes the place of the others.
    pub search: Search,
    /// When and how what was upserted and deleted is compacted into a new generation: `automatic`, `after_changes` and
    /// `after_share` (both have to be reached), `threads` (0 means half of the cores), `rebuild_below` (items from which on changes
    /// are built in, and not everything anew).
    pub compact: CompactOptions,
    /// How many searches a server measures the recall of, by an exact search beside: `rate` (share of them, 0 for none) and
    /// `max_per_second`.
    pub recall_sampling: SamplingOptions,
    /// Who tells the decoder about a picture in words, how they are asked and how they are quoted.
    pub experts: ExpertSettings,
    /// What a server tells of itself in numbers.
    pub metrics: MetricSettings,
    /// How a server ends.
    pub stop: StopSettings,
    /// What is refused beyond.
    pub limits: LimitSettings,
}

/// How a server ends when it is told to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StopSettings {
    /// Seconds between the word that it stops (health says NOT_SERVING) and the moment from which it takes nothing new.
    pub delay_seconds: u32,
    /// Seconds that what has begun may take from then on; a second signal ends it at once.
    pub drain_seconds: u32,
}

/// Defaults of the search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Search {
    /// Width of the beam; without it, what is usual for queries of their kind.
    pub ef_search: Option<usize>,
    /// Candidates scored again on the stored rows; without it, as many as the cache was measured to need.
    pub rescore: Option<usize>,
    /// Scan every row.
    pub exact: bool,
    /// Recall@10 to be reached.
    pub target_recall: Option<TargetRecall>,
}

/// Where numbers can be read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricSettings {
    /// Address that serves them to Prometheus, over HTTP and without authentication; empty for nowhere.
    pub listen: String,
}

/// Defaults of the blend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Blend {
    /// Neighbours.
    pub top_k: usize,
    /// Inverse temperature of the softmax.
    pub temperature: f32,
    /// Share of the prototype.
    pub weight: f32,
}

/// Limits of the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSettings {
    /// Bytes of one request message, MiB.
    pub max_message_mib: usize,
    /// Queries or inputs of one request.
    pub max_batch: usize,
    /// Parts of one query.
    pub max_parts: usize,
    /// Requests worked on or waiting.
    pub max_concurrent: usize,
    /// Of these, requests that wait for one of the threads that search, read and write. Default: 24 for each processor.
    pub max_waiting_searches: usize,
    /// Streams of requests that are open; each of their messages is a request while it is worked on.
    pub max_streams: usize,
    /// Connections; fewer where the system lets the process open fewer files.
    pub max_connections: usize,
    /// Memory of all requests together (messages, what becomes of them, replies), MiB, out of `memory_budget_mib`. Without it, a
    /// quarter, from 64 MiB to 2 GiB.
    pub max_request_memory_mib: Option<u64>,
    /// Seconds without a byte after which a request that arrives, or a reply that is read, is given up.
    pub stall_seconds: u32,
    /// Seconds without a request after which a connection is closed.
    pub idle_seconds: u32,
    /// Caches of the store, beyond which none is made by request.
    pub max_caches: usize,
    /// Bytes of one picture file, MiB.
    pub max_image_mib: usize,
    /// Longest side of a picture.
    pub max_image_side: u32,
    /// Pixels of a picture.
    pub max_image_pixels: u64,
    /// Bytes of one sound file, MiB.
    pub max_audio_mib: usize,
    /// Length of a sound.
    pub max_audio_seconds: u32,
    /// Bytes of one film file, MiB.
    pub max_video_mib: usize,
    /// Length of a film.
    pub max_video_seconds: u32,
    /// Pixels of a frame of a film.
    pub max_video_pixels: u64,
    /// Time that decoding a film may take.
    pub video_timeout_seconds: u32,
    /// Bytes of one point cloud or table of measurements, MiB.
    pub max_table_mib: usize,
    /// Points of a cloud.
    pub max_points: usize,
    /// Inputs of one modality that may wait for the model.
    pub max_waiting: usize,
    /// Pictures' worth of inputs that a card works on at a time.
    pub device_batch: u64,
    /// Answers that grow at the same time. Each keeps its keys and values in memory: with a 7B decoder 1 MiB a token.
    pub answers: usize,
    /// Questions that may wait for the decoder.
    pub max_waiting_questions: usize,
    /// Memory of the keys and values of all answers, MiB.
    pub max_answer_memory_mib: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            store: "./store".into(),
            listen: "127.0.0.1:50051".into(),
            caches: Vec::new(),
            default_cache: None,
            model: "auto".into(),
            weights: None,
            sizes: None,
            decoder: "auto".into(),
            adapter: None,
            clip: None,
            tokenizer: None,
            decoder_dtype: None,
            orientation: None,
            device: DeviceKind::Cpu,
            encoder_dtype: None,
            threads: 0,
            rows: RowsMode::Auto,
            memory_budget_mib: MemoryBudget::Auto,
            writable: false,
            log: "info".into(),
            log_json: false,
            blend: Blend::default(),
            search: Search::default(),
            compact: CompactOptions::default(),
            recall_sampling: SamplingOptions::default(),
            experts: ExpertSettings::default(),
            metrics: MetricSettings::default(),
            stop: StopSettings::default(),
            limits: LimitSettings::default(),
        }
    }
}

impl Default for StopSettings {
    fn default() -> Self {
        let Limits { stop_delay, drain, .. } = Limits::default();
        StopSettings { delay_seconds: stop_delay.as_secs() as u32, drain_seconds: drain.as_secs() as u32 }
    }
}

impl Default for Blend {
    fn default() -> Self {
        let BlendParams { top_k, temperature, weight } = BlendParams::default();
        Blend { top_k, temperature, weight }
    }
}

impl Default for Search {
    fn default() -> Self {
        let SearchParams { rescore, exact, .. } = SearchParams::default();
        Search { ef_search: None, rescore, exact, target_recall: None }
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        let limits = Limits::default();
        LimitSettings {
            max_message_mib: limits.max_message_bytes >> 20,
            max_batch: limits.max_batch,
            max_parts: limits.max_parts,
            max_concurrent: limits.max_concurrent,
            max_waiting_searches: limits.max_waiting_searches,
            max_streams: limits.max_streams,
            max_connections: limits.max_connections,
            max_request_memory_mib: None,
            stall_seconds: limits.stall.as_secs() as u32,
            idle_seconds: limits.idle.as_secs() as u32,
            max_caches: limits.max_caches,
            max_image_mib: limits.media.image.max_bytes >> 20,
            max_image_side: limits.media.image.max_side,
            max_image_pixels: limits.media.image.max_pixels,
            max_audio_mib: limits.media.audio.max_bytes >> 20,
            max_audio_seconds: limits.media.audio.max_seconds,
            max_video_mib: limits.video.max_bytes >> 20,
            max_video_seconds: limits.video.max_seconds,
            max_video_pixels: limits.video.max_pixels,
            video_timeout_seconds: limits.video.timeout_seconds,
            max_table_mib: limits.media.point.max_bytes >> 20,
            max_points: limits.media.point.max_points,
            max_waiting: batch::Options::DEFAULT_CAPACITY,
            device_batch: batch::Options::DEFAULT_BATCH,
            answers: GenerateOptions::default().slots,
            max_waiting_questions: GenerateOptions::default().capacity,
            max_answer_memory_mib: GenerateOptions::DEFAULT_MEMORY >> 20,
        }
    }
}

impl Config {
    /// Reads the settings.
    ///
    /// * `file`: a settings file that must exist. `flags`: values given on the command line, others left out.
    ///
    /// # Errors
    /// An unknown setting (in the environment, see [`unknown_variables`]), a value of the wrong type or out of range, each with its
    /// origin.
    pub fn read(file: Option<&Path>, flags: impl Serialize) -> anyhow::Result<(Self, Figment)> {
        let default_file = Path::new(DEFAULT_FILE);
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        match file {
            Some(file) if !file.is_file() => bail!("there is no settings file {}", file.display()),
            Some(file) => figment = figment.merge(Toml::file_exact(file)),
            None if default_file.is_file() => figment = figment.merge(Toml::file_exact(default_file)),
            None => {}
        }
        let known = names();
        let environment = Env::prefixed(ENV_PREFIX)
            .split(ENV_SEPARATOR)
            .filter(move |name| known.contains(&name.as_str().to_lowercase()));
        let figment = figment.merge(environment).merge(Serialized::globals(flags));
        let config: Config = figment.extract().map_err(told)?;
        config.validate()?;
        Ok((config, figment))
    }

    fn validate(&self) -> anyhow::Result<()> {
        self.blend_params().validate()?;
        self.search_params().validate()?;
        self.metrics_address()?;
        let rate = self.recall_sampling.rate;
        if !(0.0..=1.0).contains(&rate) {
            bail!("recall_sampling.rate is {rate}; it must be from 0 to 1");
        }
        let limits = &self.limits;
        for (name, value) in [
            ("max_message_mib", limits.max_message_mib),
            ("max_batch", limits.max_batch),
            ("max_parts", limits.max_parts),
            ("max_concurrent", limits.max_concurrent),
            ("max_waiting_searches", limits.max_waiting_searches),
            ("max_streams", limits.max_streams),
            ("max_connections", limits.max_connections),
            ("max_request_memory_mib", limits.max_request_memory_mib.unwrap_or(1) as usize),
            ("stall_seconds", limits.stall_seconds as usize),
            ("idle_seconds", limits.idle_seconds as usize),
            ("max_caches", limits.max_caches),
            ("max_image_mib", limits.max_image_mib),
            ("max_image_side", limits.max_image_side as usize),
            ("max_image_pixels", limits.max_image_pixels as usize),
            ("max_audio_mib", limits.max_audio_mib),
            ("max_audio_seconds", limits.max_audio_seconds as usize),
            ("max_video_mib", limits.max_video_mib),
            ("max_video_seconds", limits.max_video_seconds as usize),
            ("max_video_pixels", limits.max_video_pixels as usize),
            ("video_timeout_seconds", limits.video_timeout_seconds as usize),
            ("max_table_mib", limits.max_table_mib),
            ("max_points", limits.max_points),
            ("max_waiting", limits.max_waiting),
            ("device_batch", limits.device_batch as usize),
            ("answers", limits.answers),
            ("max_waiting_questions", limits.max_waiting_questions),
            ("max_answer_memory_mib", limits.max_answer_memory_mib as usize),
        ] {
            if value == 0 || value > 1 << 40 {
                bail!("limits.{name} is {value}; it must be at least 1");
            }
        }
        if let Some((name, problem)) = self.experts.problem() {
            bail!("experts.{name}: {problem}");
        }
        let compact = &self.compact;
        if !(0.0..=1.0).contains(&compact.after_share) {
            bail!("compact.after_share is {}; it must be from 0 to 1", compact.after_share);
        }
        if compact.after_changes == 0 {
            bail!("compact.after_changes is 0; it must be at least 1");
        }
        if compact.threads > 1024 {
            bail!("compact.threads is {}; it must be at most 1024", compact.threads);
        }
        if limits.max_message_mib > 1024 {
            bail!("limits.max_message_mib is {}; gRPC messages end at 1024", limits.max_message_mib);
        }
        Ok(())
    }

    /// Defaults of the blend.
    pub fn blend_params(&self) -> BlendParams {
        let Blend { top_k, temperature, weight } = self.blend;
        BlendParams { top_k, temperature, weight }
    }

    /// Defaults of the search, the target aside.
    pub fn search_params(&self) -> SearchParams {
        let Search { ef_search, rescore, exact, .. } = self.search;
        let ef_search = ef_search.unwrap_or(SearchParams::DEFAULT_EF_SEARCH);
        SearchParams { ef_search, rescore, exact, ..SearchParams::default() }
    }

    /// How wide the beam is by default.
    pub fn search_width(&self) -> Width {
        let Search { ef_search, exact, target_recall, .. } = self.search;
        match target_recall {
            Some(target) => Width::Recall(target),
            None if exact || ef_search.is_some() => Width::Given,
            None => Width::Usual,
        }
    }

    /// Where numbers can be read, if anywhere.
    ///
    /// # Errors
    /// What is not an address.
    pub fn metrics_address(&self) -> anyhow::Result<Option<SocketAddr>> {
        match self.metrics.listen.as_str() {
            "" => Ok(None),
            listen => {
                let address = listen.parse();
                address.map(Some).with_context(|| {
                    format!(
                        "metrics.listen is `{listen}`; it must be an address and a port, as in 127.0.0.1:9091"
                    )
                })
            }
        }
    }

    /// Who gets how much memory.
    pub fn memory(&self) -> Memory {
        let requests = self.limits.max_request_memory_mib.map(|mib| mib << 20);
        Memory::of(self.memory_budget_mib, requests, self.rows)
    }

    /// What is refused beyond.
    pub fn limits(&self) -> Limits {
        let limits = &self.limits;
        Limits {
            max_message_bytes: limits.max_message_mib << 20,
            max_batch: limits.max_batch,
            max_parts: limits.max_parts,
            max_concurrent: limits.max_concurrent,
            max_waiting_searches: limits.max_waiting_searches,
            max_streams: limits.max_streams,
            max_connections: limits.max_connections,
            stall: Duration::from_secs(limits.stall_seconds.into()),
            idle: Duration::from_secs(limits.idle_seconds.into()),
            stop_delay: Duration::from_secs(self.stop.delay_seconds.into()),
            drain: Duration::from_secs(self.stop.drain_seconds.into()),
            max_caches: limits.max_caches,
            media: MediaLimits {
                image: media::Limits {
                    max_bytes: limits.max_image_mib << 20,
                    max_side: limits.max_image_side,
                    max_pixels: limits.max_image_pixels,
                },
                audio: AudioLimits {
                    max_bytes: limits.max_audio_mib << 20,
                    max_seconds: limits.max_audio_seconds,
                },
                point: PointLimits { max_bytes: limits.max_table_mib << 20, max_points: limits.max_points },
            },
            video: VideoLimits {
                max_bytes: limits.max_video_mib << 20,
                max_seconds: limits.max_video_seconds,
                max_pixels: limits.max_video_pixels,
                timeout_seconds: limits.video_timeout_seconds,
            },
        }
    }

    /// How inputs wait for the model.
    pub fn batch(&self) -> batch::Options {
        batch::Options { capacity: self.limits.max_waiting, batch: self.limits.device_batch }
    }

    /// Bounds of the decoder's line.
    pub fn answers(&self) -> GenerateOptions {
        GenerateOptions {
            slots: self.limits.answers,
            capacity: self.limits.max_waiting_questions,
            memory: self.limits.max_answer_memory_mib << 20,
        }
    }

    /// Inputs embedded at the same time on the CPU.
    pub fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// The names of all settings, as in `limits.max_batch`, and of their tables.
fn names() -> BTreeSet<String> {
    fn add(names: &mut BTreeSet<String>, path: &str, value: &serde_json::Value) {
        for (name, value) in value.as_object().into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            add(names, &path, value);
            names.insert(path);
        }
    }
    let mut names = BTreeSet::new();
    add(&mut names, "", &serde_json::json!(Config::default()));
    names
}

/// Variables of the environment that look like settings and are none, each with the one that may have been meant.
pub fn unknown_variables() -> Vec<String> {
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    unknown_among(variables)
}

fn unknown_among(variables: impl Iterator<Item = String>) -> Vec<String> {
    let known = names();
    let unknown = |variable: String| {
        let (prefix, name) = variable.split_at_checked(ENV_PREFIX.len())?;
        let path = name.to_lowercase().replace(ENV_SEPARATOR, ".");
        let ours = known.contains(&path) || NOT_SETTINGS.contains(&path.as_str());
        if ours || !prefix.eq_ignore_ascii_case(ENV_PREFIX) {
            return None;
        }
        Some(match nearest(&path, &known) {
            Some(meant) => format!("{variable} (did you mean {}?)", variable_of(meant)),
            None => variable,
        })
    };
    let mut unknown: Vec<String> = variables.filter_map(unknown).collect();
    unknown.sort();
    unknown
}

/// The variable of the environment that makes a setting.
fn variable_of(path: &str) -> String {
    format!("{ENV_PREFIX}{}", path.replace('.', ENV_SEPARATOR).to_uppercase())
}

/// The known name that a mistyped one most likely means: one that differs in few letters, or has the same place in another table.
fn nearest<'a>(path: &str, known: &'a BTreeSet<String>) -> Option<&'a str> {
    let few = path.len() / 4;
    let near = known.iter().map(|name| (edits(path, name), name)).min().filter(|(edits, _)| *edits <= few);
    let last = |path: &str| path.rsplit('.').next().map(str::to_owned);
    let elsewhere = || known.iter().find(|name| last(name) == last(path));
    near.map(|(_, name)| name).or_else(elsewhere).map(String::as_str)
}

/// Letters to insert, delete or replace until one name is the other.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[to.len()]
}

/// The effective settings as a file, every line with its origin.
pub fn print(config: &Config, figment: &Figment) -> anyhow::Result<String> {
    let mut text = String::from(
        "# Effective settings. Flags win over the environment, that over the file, that over defaults.\n",
    );
    let value = serde_json::to_value(config)?;
    let settings = value.as_object().context("settings are a table")?;
    let (tables, plain): (Vec<_>, Vec<_>) = settings.iter().partition(|(_, value)| value.is_object());
    for (name, value) in plain {
        text += &line(name, name, value, figment);
    }
    for (table, values) in tables {
        text += &format!("\n[{table}]\n");
        for (name, value) in values.as_object().into_iter().flatten() {
            text += &line(&format!("{table}.{name}"), name, value, figment);
        }
    }
    Ok(text)
}

fn line(path: &str, name: &str, value: &serde_json::Value, figment: &Figment) -> String {
    let origin = origin(path, figment.find_metadata(path));
    match value {
        serde_json::Value::Null => format!("# {name} is not set\n"),
        value => format!("{:<40} # {origin}\n", format!("{name} = {value}")),
    }
}

/// Where a setting was made, as whoever made it knows the place.
fn origin(path: &str, metadata: Option<&Metadata>) -> String {
    match metadata {
        Some(metadata) if metadata.name.contains("TOML") => match &metadata.source {
            Some(source) => source.to_string(),
            None => "file".into(),
        },
        Some(metadata) if metadata.name.contains("environment") && path.is_empty() => "environment".into(),
        Some(metadata) if metadata.name.contains("environment") => variable_of(path),
        Some(metadata) if metadata.name == std::any::type_name::<Config>() => "default".into(),
        Some(_) => "flag".into(),
        None => "default".into(),
    }
}

/// What is wrong with which setting, and where it was made.
fn told(errors: figment::Error) -> anyhow::Error {
    let one = |error: figment::Error| {
        let (path, metadata) = (error.path.join("."), error.metadata.as_ref());
        match &error.kind {
            Kind::UnknownField(name, _) => unknown(&path, name, metadata),
            kind if path.is_empty() => format!("{kind} ({})", origin("", metadata)),
            kind => format!("`{path}` ({}): {kind}", origin(&path, metadata)),
        }
    };
    let all: Vec<String> = errors.into_iter().map(one).collect();
    anyhow::anyhow!("the settings cannot be used: {}", all.join("; "))
}

/// An unknown setting, and the one that may have been meant.
///
/// * `path`: of its table, perhaps with its own name.
fn unknown(path: &str, name: &str, metadata: Option<&Metadata>) -> String {
    let path = match path {
        "" => name.to_owned(),
        path if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        table => format!("{table}.{name}"),
    };
    let origin = origin(&path, metadata);
    match nearest(&path, &names()) {
        Some(meant) => format!("unknown setting `{path}` ({origin}); did you mean `{meant}`?"),
        None => format!("unknown setting `{path}` ({origin}); `viscache config` prints all that there are"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_a_valid_file_with_the_same_meaning() {
        let (config, figment) =
            Config::read(None, serde_json::json!({"threads": 3, "search": {"target_recall": 0.95}})).unwrap();
        let text = print(&config, &figment).unwrap();
        let read: Config = Figment::new().merge(Toml::string(&text)).extract().unwrap();
        assert_eq!(read, config);
        assert!(text.contains("threads = 3"), "{text}");
    }

    #[test]
    fn a_refusal_names_the_setting_and_where_it_was_made() {
        let said = |flags| Config::read(None, flags).unwrap_err().to_string();
        let wrong = said(serde_json::json!({"threads": "many"}));
        assert!(wrong.contains("`threads` (flag)") && !wrong.contains(".rs"), "{wrong}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("settings.toml");
        std::fs::write(&file, "[search]\nef_serach = 5\n").unwrap();
        let wrong = Config::read(Some(&file), serde_json::json!({})).unwrap_err().to_string();
        assert!(wrong.contains("ef_serach") && wrong.contains("settings.toml"), "{wrong}");
    }

    #[test]
    fn an_unknown_setting_of_a_file_is_refused_with_the_nearest_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("settings.toml");
        let said = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let said = Config::read(Some(&file), serde_json::json!({})).unwrap_err().to_string();
            assert!(said.contains("settings.toml") && !said.contains("expected"), "{said}");
            said
        };
        for (text, unknown, meant) in [
            ("[limits]\nmax_bacth = 3\n", "`limits.max_bacth`", "did you mean `limits.max_batch`?"),
            ("threds = 3\n", "`threds`", "did you mean `threads`?"),
            ("max_batch = 3\n", "`max_batch`", "did you mean `limits.max_batch`?"),
            ("[limit]\nmax_batch = 3\n", "`limit`", "did you mean `limits`?"),
            ("[metrics]\nlisten_on = \"\"\n", "`metrics.listen_on`", "did you mean `metrics.listen`?"),
            ("colour = 3\n", "`colour`", "`viscache config` prints all that there are"),
        ] {
            let said = said(text);
            assert!(said.contains(&format!("unknown setting {unknown}")) && said.contains(meant), "{said}");
        }
    }

    #[test]
    fn variables_that_are_no_settings_are_named_and_nothing_else() {
        let variables = [
            "PATH",
            "VISCACHE_THREADS",
            "VISCACHE_LIMITS__MAX_BATCH",
            "viscache_rows",
            "VISCACHE_LIMITS",
            "VISCACHE_DATA",
            "VISCACHE_PORT",
            "VISCACHE_PORT_50051_TCP_ADDR",
            "VISCACHE_THREDS",
            "VISCACHE_LIMITS__MAX_BACTH",
            "VISCACHE_",
        ];
        let unknown = unknown_among(variables.into_iter().map(str::to_owned));
        assert_eq!(
            unknown,
            [
                "VISCACHE_",
                "VISCACHE_LIMITS__MAX_BACTH (did you mean VISCACHE_LIMITS__MAX_BATCH?)",
                "VISCACHE_PORT",
                "VISCACHE_PORT_50051_TCP_ADDR",
                "VISCACHE_THREDS (did you mean VISCACHE_THREADS?)",
            ]
        );
    }

    #[test]
    fn edits_are_counted() {
        for (from, to, expected) in
            [("", "abc", 3), ("abc", "abc", 0), ("bacth", "batch", 2), ("kitten", "sitting", 3)]
        {
            assert_eq!((edits(from, to), edits(to, from)), (expected, expected), "{from} {to}");
        }
    }

    #[test]
    fn unknown_and_impossible_settings_are_refused() {
        let read = |flags| Config::read(None, flags).map(|_| ());
        assert!(read(serde_json::json!({"unknown": 1})).is_err());
        assert!(read(serde_json::json!({"blend": {"weight": 2.0}})).is_err());
        assert!(read(serde_json::json!({"limits": {"max_batch": 0}})).is_err());
        assert!(read(serde_json::json!({"search": {"target_recall": 1.0}})).is_err());
        assert!(read(serde_json::json!({"recall_sampling": {"rate": 1.5}})).is_err());
        assert!(read(serde_json::json!({"metrics": {"listen": "9091"}})).is_err());
    }
}
