//! The command line.
//!
//! Every question can be put to a server (`--connect`) or to a store (`--store`), also while a server has it open: then
//! the same service answers inside this process. Text for people, `--json` for programs, one object a line.
//!
//! Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 some items were bad, 130 interrupted, 141 whoever read the
//! output went away.

mod answer;
mod ask;
mod bench;
mod caches;
mod change;
mod check;
mod classify;
mod convert;
mod evaluate;
mod filter;
mod flags;
mod items;
mod labels;
mod media;
mod pictures;
mod segment;
mod serve;
mod show;
mod target;
mod train;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use tracing::warn;
use viscache::types::{Filter, QueryKind};

use self::flags::{AllFlags, DecoderFlags, Given, ModelFlags, StoreFlags};
use self::media::MediaArgs;
use crate::config::{self, Config};
use crate::telemetry;

/// Exit code of a command that failed.
pub const FAILED: u8 = 1;
/// Exit code of a command whose output nobody reads any more: the shell's for the signal that ends other programs then.
pub const UNREAD: u8 = 141;
/// Exit code of a command of which some items were bad.
pub const SOME_BAD: u8 = 3;
/// Exit code of a command that the user interrupted: the shell's for the signal that ends other programs then.
pub const INTERRUPTED: u8 = 130;
/// Time that work has to end which nobody waits for any more.
const LEFT_OVER: Duration = Duration::from_millis(500);

/// A training-free visual cache for multimodal models.
///
/// Flags that make settings (of store, model and decoder) may also stand before the command.
///
/// Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 some items were bad, 130 interrupted.
#[derive(Parser)]
#[command(name = "viscache", version)]
struct Cli {
    /// Settings file; without it, `viscache.toml` if it is there.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Log level and filter, as in `info` or `viscache=debug`. Asking commands default to `warn`.
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    #[command(flatten)]
    before: AllFlags,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// The command line: flags that each command lists for itself are not listed again before all of them.
    fn described() -> clap::Command {
        let listed = |arg: &clap::Arg| arg.is_global_set();
        let described = Cli::command().mut_args(|arg| if listed(&arg) { arg } else { arg.hide(true) });
        // Nothing else follows the files to be stored, so one flag may name many.
        let many = |arg: clap::Arg| {
            if MediaArgs::FILES.contains(&arg.get_id().as_str()) { arg.num_args(1..) } else { arg }
        };
        described.mut_subcommand("upsert", |upsert| upsert.mut_args(many))
    }
}

#[derive(Subcommand)]
enum Command {
    /// Serve caches over gRPC until interrupted.
    Serve(ServeArgs),
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
    /// Delete items by id, or all that match a filter.
    Delete(items::DeleteArgs),
    /// Every cache of the store, served or not; make, rename and delete them, and call them by other names.
    Caches(caches::CachesArgs),
    /// What is known of items: where they came from, and their tags. List, count, delete and tag them.
    Items(items::ItemsArgs),
    /// What a server has done since it started.
    Stats {
        #[command(flatten)]
        target: Target,
        /// Print one JSON object.
        #[arg(long, help_heading = "Output")]
        json: bool,
    },
    /// Serve another stored generation: a roll-back, or its opposite.
    Publish {
        #[command(flatten)]
        target: Target,
        /// Which generation.
        #[arg(long, value_name = "N")]
        generation: u64,
    },
    /// Let a server look at what others have published and changed.
    Reload {
        #[command(flatten)]
        target: Target,
        /// Every cache, not one alone.
        #[arg(long, conflicts_with = "cache")]
        all: bool,
    },
    /// Build a generation of everything that has changed, and serve it.
    Compact {
        #[command(flatten)]
        target: Target,
    },
    /// What a cache is, what may be asked of it, and every limit.
    Describe {
        #[command(flatten)]
        target: Target,
        /// Print one JSON object.
        #[arg(long, help_heading = "Output")]
        json: bool,
    },
    /// Whether settings, store, caches and model (or a server) are in order.
    Check {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        model: ModelFlags,
        #[command(flatten)]
        decoder: DecoderFlags,
        /// Print one JSON object a line.
        #[arg(long, help_heading = "Output")]
        json: bool,
    },
    /// Round a decoder and its adapter to 8 bits, once: one file that a server opens by mapping it.
    Convert(convert::ConvertArgs),
    /// Measure recall, speed and throughput on your own queries.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// What a classifier takes pictures for.
    Classify(classify::ClassifyArgs),
    /// What the pixels of pictures show.
    Segment(segment::SegmentArgs),
    /// Measure what the cache does for answers, or how good a classifier is.
    Evaluate(evaluate::EvaluateArgs),
    /// Train a model by a recipe.
    Train(train::TrainArgs),
    /// Print the effective settings and where each came from; flags of settings stand before it.
    Config,
    /// Print a shell's script that completes this command line.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Args)]
struct ServeArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    store: StoreFlags,
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    decoder: DecoderFlags,
}

#[derive(Args)]
#[command(next_help_heading = "Server")]
struct ServerArgs {
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
}

/// Whom to ask.
#[derive(Args)]
#[command(next_help_heading = "Store")]
struct Target {
    /// A server's address; without it, the store is read directly.
    #[arg(long, value_name = "ADDR")]
    connect: Option<String>,
    /// Name of the cache; without it, the server's default or the store's only one.
    #[arg(long, value_name = "NAME")]
    cache: Option<String>,
    #[command(flatten)]
    store: StoreFlags,
}

impl Target {
    /// As settings.
    fn given(&self) -> Given<'_> {
        Given { store: Some(&self.store), caches: self.cache.as_slice(), ..Given::default() }
    }
}

/// Whom to ask about caches as such.
#[derive(Args)]
#[command(next_help_heading = "Store")]
struct Keeper {
    /// A server's address; without it, the store is used directly.
    #[arg(long, value_name = "ADDR")]
    connect: Option<String>,
    #[command(flatten)]
    store: StoreFlags,
}

impl Keeper {
    /// As settings, for what changes the store.
    fn given(&self) -> Given<'_> {
        Given { store: Some(&self.store), writable: true, ..Given::default() }
    }
}

/// What to ask about. Files and texts together make one query; every row of `--vectors` is one.
#[derive(Args)]
#[command(next_help_heading = "Input")]
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
#[command(next_help_heading = "Search")]
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
    inputs: Inputs,
    /// Use `--vectors` as they are, without normalising them first.
    #[arg(long, requires = "vectors", help_heading = "Input")]
    as_is: bool,
    /// Neighbours to blend.
    #[arg(long, value_name = "K", help_heading = "Blend")]
    top_k: Option<u32>,
    /// Multiplies the scores before the softmax.
    #[arg(long, value_name = "T", help_heading = "Blend")]
    temperature: Option<f32>,
    /// Share of the prototype, 0 to 1.
    #[arg(long, value_name = "W", help_heading = "Blend")]
    weight: Option<f32>,
    /// What the result is for: `condition` (a decoder) or `image-generation`.
    #[arg(long, value_enum, default_value_t = VariantArg::Condition)]
    #[arg(hide_possible_values = true, help_heading = "Blend")]
    variant: VariantArg,
    #[command(flatten)]
    search: SearchOptions,
    /// Only among the items that match, as in `tag.species = dog and not tag.licence in (nc, unknown) or id in (1, 2)`;
    /// `has tag.NAME` asks for a tag of whatever value.
    #[arg(long, value_name = "FILTER", value_parser = filter::parse, help_heading = "Search")]
    filter: Option<Filter>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    model: ModelFlags,
    /// Write the enhanced queries as a matrix of f32.
    #[arg(long, value_name = "FILE.npy", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Print one JSON object per query.
    #[arg(long, help_heading = "Output")]
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
    inputs: Inputs,
    /// Hits per query.
    #[arg(long, value_name = "K", help_heading = "Search")]
    top_k: Option<u32>,
    #[command(flatten)]
    search: SearchOptions,
    /// Only among the items that match, as in `tag.species = dog and not tag.licence in (nc, unknown) or id in (1, 2)`;
    /// `has tag.NAME` asks for a tag of whatever value.
    #[arg(long, value_name = "FILTER", value_parser = filter::parse, help_heading = "Search")]
    filter: Option<Filter>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    model: ModelFlags,
    /// Print one JSON object per query.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Args)]
struct EmbedArgs {
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    model: ModelFlags,
    /// Which of the model's vectors: `unit`, `model` (as the published one returns it) or `prenorm` (before its postprocessor).
    #[arg(long, value_enum, default_value_t = OutputArg::Unit)]
    #[arg(hide_possible_values = true, help_heading = "Output")]
    output: OutputArg,
    /// Write the embeddings as a matrix of f32; pictures first, then texts, sounds and so on.
    #[arg(long, value_name = "FILE.npy", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Print one JSON object per input.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Args)]
struct UpsertArgs {
    #[command(flatten)]
    media: MediaArgs,
    /// Ready embeddings, a row each.
    #[arg(long, value_name = "FILE.npy", conflicts_with = "media", help_heading = "Input")]
    vectors: Option<PathBuf>,
    /// Ids of the items: pictures first, then texts, sounds and so on; or of the rows. Without them, new ones are given.
    #[arg(long, value_name = "ID,ID,…|FILE.npy", help_heading = "Input")]
    ids: Option<String>,
    /// Tag of every item; repeat for several.
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = change::tag, help_heading = "Input")]
    tags: Vec<(String, String)>,
    /// What tells an item that is stored already from a new one: its id (`--ids`), or its `uri`, which is the file's path. Such an
    /// item is replaced.
    #[arg(long, value_enum, value_name = "KEY", default_value_t = KeyArg::Id)]
    #[arg(hide_possible_values = true, help_heading = "Input")]
    key: KeyArg,
    /// An id that makes the command one that can be given again: what it has stored is not stored once more.
    #[arg(long, value_name = "ID", help_heading = "Input")]
    request_id: Option<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    model: ModelFlags,
    /// Print one JSON object per item.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KeyArg {
    /// Its id.
    Id,
    /// Its uri.
    Uri,
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
    let matches = Cli::described().get_matches();
    let Cli { config: file, log, before, mut command } =
        Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let Command::Completions { shell } = command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::described(), "viscache", &mut script);
        std::io::stdout().write_all(&script)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Bench(bench) = &mut command {
        bench.take_threads(before.model.device.threads);
    }
    let asks = !matches!(command, Command::Serve(_) | Command::Config);
    let given = Given { log: log.as_deref(), ..given(&command) };
    let (mut config, origins) = Config::read(file.as_deref(), flags::together(&before, &given)?)?;
    // A command ends with its answer and would cut a compaction short; the next server does it.
    config.compact.automatic &= !asks;
    let filter = log.unwrap_or_else(|| if asks { "warn".into() } else { config.log.clone() });
    telemetry::init(&filter, config.log_json)?;
    let unknown = config::unknown_variables();
    if !unknown.is_empty() {
        warn!("variables of the environment that name no setting are ignored: {}", unknown.join(", "));
    }
    match command {
        Command::Convert(args) => convert::run(&config, &args),
        Command::Classify(args) => classify::run(&config, &args),
        Command::Segment(args) => segment::run(&config, &args),
        Command::Evaluate(args) => evaluate::run(&config, &args),
        Command::Train(args) => train::run_command(&args),
        Command::Config => {
            std::io::stdout().write_all(config::print(&config, &origins)?.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        command => {
            let runtime = tokio::runtime::Runtime::new()?;
            let done = runtime.block_on(dispatch(command, config));
            // Work that nobody waits for any more, such as a compaction, ends with the process.
            runtime.shutdown_timeout(LEFT_OVER);
            done
        }
    }
}

/// The settings that a command was given.
fn given(command: &Command) -> Given<'_> {
    match command {
        Command::Serve(ServeArgs { server, store, model, decoder }) => Given {
            store: Some(store),
            model: Some(model),
            decoder: Some(decoder),
            writable: server.writable,
            listen: server.listen.as_deref(),
            caches: &server.caches,
            default_cache: server.default_cache.as_deref(),
            ..Given::default()
        },
        Command::Enhance(EnhanceArgs { target, model, .. })
        | Command::Search(SearchArgs { target, model, .. })
        | Command::Embed(EmbedArgs { target, model, .. }) => Given { model: Some(model), ..target.given() },
        Command::Upsert(UpsertArgs { target, model, .. }) => {
            Given { model: Some(model), writable: true, ..target.given() }
        }
        Command::Delete(args) => args.given(),
        Command::Caches(args) => args.given(),
        Command::Items(args) => args.given(),
        Command::Publish { target, .. } | Command::Compact { target } => {
            Given { writable: true, ..target.given() }
        }
        Command::Stats { target, .. } | Command::Reload { target, .. } | Command::Describe { target, .. } => {
            target.given()
        }
        Command::Check { target, model, decoder, .. } => {
            Given { model: Some(model), decoder: Some(decoder), ..target.given() }
        }
        Command::Ask(args) => args.given(),
        Command::Score(args) => args.given(),
        Command::Bench(bench) => bench.given(),
        Command::Convert(args) => Given { decoder: Some(args.decoder()), ..Given::default() },
        Command::Classify(args) => args.given(),
        Command::Segment(args) => args.given(),
        Command::Evaluate(args) => args.given(),
        Command::Train(_) | Command::Config | Command::Completions { .. } => Given::default(),
    }
}

async fn dispatch(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(_) => serve::run(&config).await,
        Command::Enhance(args) => ask::enhance(&config, args).await,
        Command::Search(args) => ask::search(&config, args).await,
        Command::Embed(args) => ask::embed(&config, args).await,
        Command::Ask(args) => answer::ask(&config, args).await,
        Command::Score(args) => answer::score(&config, args).await,
        Command::Upsert(args) => change::upsert(&config, args).await,
        Command::Delete(args) => items::delete(&config, args).await,
        Command::Caches(args) => caches::run(&config, args).await,
        Command::Items(args) => items::run(&config, args).await,
        Command::Stats { target, json } => caches::stats(&config, &target, json).await,
        Command::Publish { target, generation } => caches::publish(&config, &target, generation).await,
        Command::Reload { target, all } => caches::reload(&config, &target, all).await,
        Command::Compact { target } => caches::compact(&config, &target).await,
        Command::Describe { target, json } => ask::describe(&config, &target, json).await,
        Command::Check { target, json, .. } => check::run(&config, &target, json).await,
        Command::Bench(bench) => bench::run(&config, bench).await,
        Command::Config
        | Command::Completions { .. }
        | Command::Convert(_)
        | Command::Classify(_)
        | Command::Segment(_)
        | Command::Evaluate(_)
        | Command::Train(_) => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// clap asserts this itself, but not as we compile it.
    #[test]
    fn no_two_flags_of_a_command_are_the_same() {
        fn check(command: &clap::Command) {
            let ids = command.get_arguments().map(|arg| arg.get_id().to_string());
            let longs = command.get_arguments().filter_map(|arg| Some(format!("--{}", arg.get_long()?)));
            for mut names in [ids.collect::<Vec<_>>(), longs.collect()] {
                names.sort();
                let twice = names.windows(2).find(|two| two[0] == two[1]);
                assert_eq!(twice, None, "{}", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        let mut command = Cli::command();
        command.build();
        check(&command);
    }
}
