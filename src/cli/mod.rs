//! The command line.
//!
//! Every question can be put to a server (`--connect`) or to a store (`--store`), also while a server has it open: then
//! the same service answers inside this process. Text for people, `--json` for programs, one object a line.
//!
//! Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 some items were bad.

mod answer;
mod ask;
mod bench;
mod change;
mod check;
mod convert;
mod evaluate;
mod filter;
mod media;
mod serve;
mod show;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use viscache::types::QueryKind;

use viscache::types::Filter;

use self::media::MediaArgs;
use crate::config::{self, Config};
use crate::telemetry;

/// Exit code of a command that failed.
pub const FAILED: u8 = 1;
/// Exit code of a command of which some items were bad.
pub const SOME_BAD: u8 = 3;

/// A training-free visual cache for multimodal models.
///
/// Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 some items were bad.
#[derive(Parser)]
#[command(name = "viscache", version)]
struct Cli {
    /// Settings file; without it, `viscache.toml` if it is there.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

/// Settings that flags override. Those not given come from environment, file or defaults.
#[derive(Args, Serialize)]
struct Settings {
    /// Folder of the store; `none` for models alone.
    #[arg(long, global = true, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<PathBuf>,
    /// Model for files and texts: `auto` (the one that made the cache), `nano`, `none`, or a checkpoint.
    #[arg(long, global = true, visible_alias = "weights", value_name = "MODEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// Sizes of the checkpoint as JSON, when it is not `imagebind_huge`.
    #[arg(long, global = true, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sizes: Option<PathBuf>,
    /// Decoder for answers: `auto` (the built-in one, with the built-in model), `nano`, `none`, or where LLaMA's weights are.
    #[arg(long, global = true, value_name = "DECODER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    decoder: Option<String>,
    /// Adapter made for that decoder, as ImageBind-LLM's `7B.pth`.
    #[arg(long, global = true, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<PathBuf>,
    /// CLIP ViT-L/14, for an adapter that looks at pictures through it: OpenAI's `ViT-L-14.pt` or safetensors.
    #[arg(long, global = true, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    clip: Option<PathBuf>,
    /// The decoder's `tokenizer.model`, when it is not beside it.
    #[arg(long, global = true, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tokenizer: Option<PathBuf>,
    /// Numbers of the decoder: `f32`, `f16`, `q8_0`, `q6_k` or `q4_k` on the CPU, `bf16` or `f32` on a card.
    #[arg(long, global = true, value_name = "TYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    decoder_dtype: Option<String>,
    /// EXIF orientation of pictures: `apply` or `reference`.
    #[arg(long, global = true, value_name = "RULE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    orientation: Option<String>,
    /// Where the model runs: `cpu` or `cuda`.
    #[arg(long, global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// Numbers of the encoders: `f32`, `bf16` (on a card) or `q8_0` (8 bits, on the CPU).
    #[arg(long, global = true, value_name = "TYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    encoder_dtype: Option<String>,
    /// Inputs embedded at the same time on the CPU; 0 means one per core.
    #[arg(long, global = true, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    /// Where stored rows are kept: `auto`, `ram` or `disk`.
    #[arg(long, global = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<String>,
    /// Most memory one cache may take, MiB.
    #[arg(long, global = true, value_name = "MIB")]
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_budget_mib: Option<u64>,
    /// Log level and filter, as in `info` or `viscache=debug`. Asking commands default to `warn`.
    #[arg(long, global = true, value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    #[arg(skip)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    writable: bool,
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    #[arg(skip)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    caches: Vec<String>,
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    default_cache: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve caches over gRPC until interrupted.
    Serve {
        /// Address to listen on.
        #[arg(long, value_name = "ADDR")]
        listen: Option<String>,
        /// Cache to serve; repeat for several. Without it, all of the store.
        #[arg(long = "cache", value_name = "NAME")]
        caches: Vec<String>,
        /// Cache meant when a request names none.
        #[arg(long, value_name = "NAME")]
        default_cache: Option<String>,
        /// Take upserts and deletions, as the store's one writer.
        #[arg(long)]
        writable: bool,
    },
    /// Enhance queries: search, softmax over the neighbours, prototype, mix.
    Enhance(EnhanceArgs),
    /// The nearest items of queries.
    Search(SearchArgs),
    /// Embeddings of files and texts.
    Embed(EmbedArgs),
    /// Ask the decoder about files and texts, with the cache or without it.
    Ask(answer::AskArgs),
    /// How likely the decoder finds given answers.
    Score(answer::ScoreArgs),
    /// Store items, new or in the place of those that have their ids.
    Upsert(UpsertArgs),
    /// Delete items by id.
    Delete(DeleteArgs),
    /// What a cache is, what may be asked of it, and every limit.
    Describe {
        #[command(flatten)]
        target: Target,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Whether settings, store, caches and model (or a server) are in order.
    Check {
        #[command(flatten)]
        target: Target,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Round a decoder and its adapter to 8 bits, once: one file that a server opens by mapping it.
    Convert(convert::ConvertArgs),
    /// Measure recall, speed and throughput on your own queries.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Measure what the cache does for answers.
    Evaluate(evaluate::EvaluateArgs),
    /// Print the effective settings and where each came from.
    Config,
}

/// Whom to ask.
#[derive(Args)]
struct Target {
    /// A server's address; without it, the store is read directly.
    #[arg(long, value_name = "ADDR")]
    connect: Option<String>,
    /// Name of the cache; without it, the server's default or the store's only one.
    #[arg(long, value_name = "NAME")]
    cache: Option<String>,
}

/// What to ask about. Files and texts together make one query; every row of `--vectors` is one.
#[derive(Args)]
struct Inputs {
    #[command(flatten)]
    media: MediaArgs,
    /// Weights of the inputs: pictures first, then texts, sounds and so on, each in the order given. Below 0 an input is taken
    /// away.
    #[arg(long, value_name = "W,W,…", value_delimiter = ',', allow_hyphen_values = true)]
    mix: Vec<f64>,
    /// Ready embeddings, a row each.
    #[arg(long, value_name = "FILE.npy", conflicts_with_all = ["media", "mix"])]
    vectors: Option<PathBuf>,
}

/// How to search.
#[derive(Args)]
struct SearchOptions {
    /// Width of the beam.
    #[arg(long, value_name = "N")]
    ef_search: Option<u32>,
    /// Candidates scored again on the stored rows.
    #[arg(long, value_name = "N")]
    rescore: Option<u32>,
    /// Scan every row.
    #[arg(long)]
    exact: bool,
    /// Recall@10 to be reached, in place of a beam.
    #[arg(long, value_name = "R", conflicts_with_all = ["ef_search", "rescore", "exact"])]
    target_recall: Option<f64>,
    /// What the queries are, as in `text`; without it, files and texts speak for themselves.
    #[arg(long, value_name = "KIND")]
    query_kind: Option<QueryKind>,
}

#[derive(Args)]
struct EnhanceArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    inputs: Inputs,
    /// Neighbours to blend.
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Multiplies the scores before the softmax.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Share of the prototype, 0 to 1.
    #[arg(long, value_name = "W")]
    weight: Option<f32>,
    #[command(flatten)]
    search: SearchOptions,
    /// Only among the items that match, as in `tag.species = dog and not tag.licence in (nc, unknown) or id in (1, 2)`;
    /// `has tag.NAME` asks for a tag of whatever value.
    #[arg(long, value_name = "FILTER", value_parser = filter::parse)]
    filter: Option<Filter>,
    /// What the result is for.
    #[arg(long, value_enum, default_value_t = VariantArg::Condition)]
    variant: VariantArg,
    /// Use `--vectors` as they are, without normalising them first.
    #[arg(long, requires = "vectors")]
    as_is: bool,
    /// Write the enhanced queries as a matrix of f32.
    #[arg(long, value_name = "FILE.npy")]
    out: Option<PathBuf>,
    /// Print one JSON object per query.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum VariantArg {
    /// Conditioning a decoder.
    Condition,
    /// Conditioning an image generator.
    ImageGeneration,
}

#[derive(Args)]
struct SearchArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    inputs: Inputs,
    /// Hits per query.
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    #[command(flatten)]
    search: SearchOptions,
    /// Only among the items that match, as in `tag.species = dog and not tag.licence in (nc, unknown) or id in (1, 2)`;
    /// `has tag.NAME` asks for a tag of whatever value.
    #[arg(long, value_name = "FILTER", value_parser = filter::parse)]
    filter: Option<Filter>,
    /// Print one JSON object per query.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct EmbedArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    media: MediaArgs,
    /// Which of the model's vectors.
    #[arg(long, value_enum, default_value_t = OutputArg::Unit)]
    output: OutputArg,
    /// Write the embeddings as a matrix of f32; pictures first, then texts, sounds and so on.
    #[arg(long, value_name = "FILE.npy")]
    out: Option<PathBuf>,
    /// Print one JSON object per input.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct UpsertArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    media: MediaArgs,
    /// Ready embeddings, a row each.
    #[arg(long, value_name = "FILE.npy", conflicts_with = "media")]
    vectors: Option<PathBuf>,
    /// Ids of the items: pictures first, then texts, sounds and so on; or of the rows. Without them, new ones are given.
    #[arg(long, value_name = "ID,ID,…|FILE.npy")]
    ids: Option<String>,
    /// Tag of every item; repeat for several.
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = change::tag)]
    tags: Vec<(String, String)>,
    /// Print one JSON object per item.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct DeleteArgs {
    #[command(flatten)]
    target: Target,
    /// Ids of the items.
    #[arg(long, value_name = "ID,ID,…|FILE.npy")]
    ids: String,
    /// Print one JSON object per id.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum OutputArg {
    /// Unit norm.
    Unit,
    /// As the published model returns it.
    Model,
    /// Before the model's postprocessor.
    Prenorm,
}

/// Parses the command line and runs the command.
///
/// # Errors
/// Whatever the command fails with; `main` prints it and exits with [`FAILED`].
pub fn run() -> anyhow::Result<ExitCode> {
    let Cli { config: file, mut settings, command } = Cli::parse();
    let asks = !matches!(command, Command::Serve { .. } | Command::Config);
    match &command {
        Command::Serve { listen, caches, default_cache, writable } => {
            settings.writable = *writable;
            settings.listen.clone_from(listen);
            settings.caches.clone_from(caches);
            settings.default_cache.clone_from(default_cache);
        }
        Command::Enhance(EnhanceArgs { target, .. })
        | Command::Search(SearchArgs { target, .. })
        | Command::Embed(EmbedArgs { target, .. })
        | Command::Describe { target, .. }
        | Command::Check { target, .. } => settings.caches.extend(target.cache.clone()),
        Command::Ask(args) => settings.caches.extend(args.target().cache.clone()),
        Command::Score(args) => settings.caches.extend(args.target().cache.clone()),
        Command::Bench(bench) => settings.caches.extend(bench.cache().cloned()),
        Command::Upsert(UpsertArgs { target, .. }) | Command::Delete(DeleteArgs { target, .. }) => {
            settings.caches.extend(target.cache.clone());
            settings.writable = true;
        }
        Command::Config | Command::Convert(_) | Command::Evaluate(_) => {}
    }
    let log = settings.log.clone();
    let (mut config, origins) = Config::read(file.as_deref(), settings)?;
    // A command ends with its answer and would cut a compaction short; the next server does it.
    config.compact.automatic &= !asks;
    let filter = log.unwrap_or_else(|| if asks { "warn".into() } else { config.log.clone() });
    telemetry::init(&filter, config.log_json)?;
    match command {
        Command::Convert(args) => convert::run(&config, &args),
        Command::Evaluate(args) => evaluate::run(&config, &args),
        Command::Config => {
            print!("{}", config::print(&config, &origins)?);
            Ok(ExitCode::SUCCESS)
        }
        command => tokio::runtime::Runtime::new()?.block_on(dispatch(command, config)),
    }
}

async fn dispatch(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve { .. } => serve::run(&config).await,
        Command::Enhance(args) => ask::enhance(&config, args).await,
        Command::Search(args) => ask::search(&config, args).await,
        Command::Embed(args) => ask::embed(&config, args).await,
        Command::Ask(args) => answer::ask(&config, args).await,
        Command::Score(args) => answer::score(&config, args).await,
        Command::Upsert(args) => change::upsert(&config, args).await,
        Command::Delete(args) => change::delete(&config, args).await,
        Command::Describe { target, json } => ask::describe(&config, &target, json).await,
        Command::Check { target, json } => check::run(&config, &target, json).await,
        Command::Bench(bench) => bench::run(&config, bench).await,
        Command::Config | Command::Convert(_) | Command::Evaluate(_) => Ok(ExitCode::SUCCESS),
    }
}
