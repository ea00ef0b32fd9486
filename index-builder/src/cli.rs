//! The command line of `index-builder`.
//!
//! Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 some items were bad, 130 interrupted (run again to go on).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::json;
use viscache::cache::{NewCache, QuerySample, RECALL_SAMPLE, Writer};
use viscache::index::{BuildParams, CodeKind};
use viscache::media::Limits;
use viscache::models::DeviceKind;
use viscache::store::{Access, CacheId, GenerationRecord, RowType, Store};
use viscache::types::{Agreement, CacheName, Origin, WeightDtype};

use crate::import::Import;
use crate::ledger::Standing;
use crate::model::ModelArgs;
use crate::pipeline::{Options, Outcomes};
use crate::plan::{Facts, Plan};
use crate::report::Report;
use crate::{discover, import, index, ledger, model, pipeline, plan, scenes, verify};

/// Exit code of a command that failed.
pub const FAILED: u8 = 1;
const SOME_BAD: u8 = 3;
const INTERRUPTED: u8 = 130;

/// Builds visual caches: pictures or ready embeddings in, an indexed cache out.
///
/// A command that was interrupted or killed goes on where it stopped when it is run again.
///
/// Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 some items were bad, 130 interrupted.
#[derive(Parser)]
#[command(name = "index-builder", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Embed pictures, store them, index the cache.
    Build(BuildArgs),
    /// Store embeddings that exist already, index the cache.
    Import(ImportArgs),
    /// Build the graph of what is stored anew.
    Index(IndexArgs),
    /// Check checksums, alignment, reachability and recall.
    Verify(VerifyArgs),
    /// Merge the store's files and give back what was replaced.
    Compact {
        /// Folder of the store.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
    },
    /// List the inputs that were refused, and why.
    Ledger {
        #[command(flatten)]
        place: Place,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Draw scenes of the nano model's world, with captions.
    Scenes(scenes::Args),
}

/// Which cache of which store.
#[derive(Args)]
struct Place {
    /// Folder of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// Name of the cache.
    #[arg(long, value_name = "NAME")]
    cache: CacheName,
}

/// How a run goes.
#[derive(Args)]
struct Run {
    /// Threads; 0 means one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Store content that is already stored once more.
    #[arg(long)]
    keep_duplicates: bool,
    /// How new caches store rows.
    #[arg(long, value_enum, default_value_t = RowTypeArg::F32)]
    row_type: RowTypeArg,
    /// Print the plan (memory, disk, time) and stop.
    #[arg(long)]
    dry_run: bool,
    /// Go on although the plan does not fit.
    #[arg(long)]
    force: bool,
    /// Only store; index later with `index-builder index`.
    #[arg(long)]
    no_index: bool,
    /// Where the report goes; without it, `report.json` in the store.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Progress and result as JSON, an object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    graph: Graph,
}

/// How the graph is built.
#[derive(Args)]
struct Graph {
    /// Links per node and upper level; level 0 has twice as many.
    #[arg(long, value_name = "M", default_value_t = BuildParams::DEFAULT_M)]
    m: usize,
    /// Candidates kept while inserting.
    #[arg(long, value_name = "EF", default_value_t = BuildParams::DEFAULT_EF_CONSTRUCTION)]
    ef_construction: usize,
    /// Rounds in which every item looks for better links once all are in: for quick builds with a small ef-construction.
    #[arg(long, value_name = "N", default_value_t = BuildParams::DEFAULT_REFINE)]
    refine: usize,
    /// What the search runs on: f32, f16, u8 or u4.
    #[arg(long, value_name = "KIND", default_value = BuildParams::DEFAULT_CODES.word())]
    codes: CodeKind,
    /// A sample of queries of another modality (numpy file, a row each): nine in ten repair the graph, the others
    /// measure its recall. Once for every kind of query, each with its name: `--queries text=t.npy --queries audio=a.npy`.
    #[arg(long, value_name = "[KIND=]FILE")]
    queries: Vec<index::Sample>,
    /// Insert in order on one thread: the same items give the same index.
    #[arg(long)]
    deterministic: bool,
    /// Recall@10 below which a new generation is not published.
    #[arg(long, value_name = "R", default_value_t = 0.9)]
    min_recall: f64,
}

#[derive(Clone, Copy, ValueEnum)]
enum RowTypeArg {
    /// Four bytes a component.
    F32,
    /// Two bytes a component.
    F16,
}

#[derive(Args)]
struct BuildArgs {
    #[command(flatten)]
    place: Place,
    /// Folder, picture or WebDataset `.tar`; repeat for several.
    #[arg(long, value_name = "PATH", required_unless_present = "lists", num_args = 1..)]
    images: Vec<PathBuf>,
    /// File with a path a line; repeat for several.
    #[arg(long = "list", value_name = "FILE")]
    lists: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    /// Where the model runs: cpu or cuda.
    #[arg(long, default_value = "cpu")]
    device: DeviceKind,
    /// Numbers of the encoder: f32, bf16 (on a card) or q8_0 (8 bits, on the CPU). Without it, the device's own. What
    /// coarser ones cost is measured on pictures of the build and kept with the cache.
    #[arg(long, value_name = "TYPE")]
    encoder_dtype: Option<WeightDtype>,
    /// Pictures embedded together.
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch: usize,
    /// Try inputs again that were refused before and have not changed.
    #[arg(long)]
    retry_bad: bool,
    /// Largest picture file, MiB.
    #[arg(long, value_name = "MIB", default_value_t = Limits::DEFAULT_MAX_BYTES >> 20)]
    max_image_mib: usize,
    /// Largest picture, pixels.
    #[arg(long, value_name = "N", default_value_t = Limits::DEFAULT_MAX_PIXELS)]
    max_image_pixels: u64,
    #[command(flatten)]
    run: Run,
}

#[derive(Args)]
struct ImportArgs {
    #[command(flatten)]
    place: Place,
    /// `.npy`, `.parquet` or faiss file, or a folder of them; repeat for several.
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    vectors: Vec<PathBuf>,
    /// Ids, uris and tags, a row each: .jsonl, .tsv or .parquet. Without it, a file of the same name beside the vectors.
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// Column of a parquet file that holds the embeddings.
    #[arg(long, value_name = "NAME")]
    embedding_column: Option<String>,
    /// Column that holds ids.
    #[arg(long, value_name = "NAME")]
    id_column: Option<String>,
    /// Column that holds uris.
    #[arg(long, value_name = "NAME")]
    uri_column: Option<String>,
    /// The embeddings were made by the built-in nano model.
    #[arg(long, conflicts_with = "weights")]
    nano: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    run: Run,
}

#[derive(Args)]
struct IndexArgs {
    #[command(flatten)]
    place: Place,
    /// Threads; 0 means one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Progress and result as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    graph: Graph,
}

#[derive(Args)]
struct VerifyArgs {
    /// Folder of the store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// Name of the cache; without it, every cache.
    #[arg(long, value_name = "NAME")]
    cache: Option<CacheName>,
    /// Stored rows that recall is measured by, each moved a little.
    #[arg(long, value_name = "N", default_value_t = RECALL_SAMPLE)]
    sample: usize,
    /// Print recall@10 against exact search as a table: a line for every width of the beam, a column for every kind of query.
    #[arg(long)]
    recall: bool,
    /// Measure recall by these queries as well (numpy file, a row each), once for every kind. Give others than the index was
    /// repaired by: those are found more easily.
    #[arg(long, value_name = "[KIND=]FILE", requires_all = ["recall", "cache"])]
    queries: Vec<index::Sample>,
    /// Print one JSON object per cache.
    #[arg(long)]
    json: bool,
}

/// Parses the command line and runs the command.
///
/// # Errors
/// Whatever the command fails with; `main` prints it and exits with [`FAILED`].
pub fn run() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new("warn"))
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().command {
        Command::Build(args) => build(args),
        Command::Import(args) => import(args),
        Command::Index(args) => reindex(args),
        Command::Verify(args) => verify_all(args),
        Command::Compact { store } => {
            Store::open(&existing(&store)?, Access::Write)?.compact()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Ledger { place, json } => list_bad(&place, json),
        Command::Scenes(args) => {
            let summary = scenes::run(&args)?;
            println!("{} pictures drawn, captions in {}", summary.pictures, summary.captions.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn build(args: BuildArgs) -> anyhow::Result<ExitCode> {
    let threads = threads(args.run.threads);
    if args.batch == 0 {
        bail!("--batch is 0; it must be at least 1");
    }
    let params = build_params(&args.run.graph, threads)?;
    let found = discover::discover(&args.images, &args.lists)?;
    let limits = Limits {
        max_bytes: args.max_image_mib << 20,
        max_pixels: args.max_image_pixels,
        ..Limits::default()
    };
    let source = args.model.source()?;
    let encoder = model::open(&source, (args.device, args.encoder_dtype), threads, limits)?;

    let dry = args.run.dry_run;
    let store = open_store(&args.place.store, dry)?;
    let cache = cache_id(store.as_ref(), &args.place.cache)?;
    let all_units = found.units.clone();
    let (units, standing) = match &store {
        Some(store) => ledger::pending(store, cache, found.units, args.retry_bad)?,
        None => (found.units, Standing::default()),
    };
    let standing = Standing { pending: units.len() as u64, ..standing };
    let stored = stored_items(store.as_ref(), &args.place.cache)?;
    let side = encoder.images().side;
    let in_flight = 4 * args.batch + 2 * threads;
    let plan = Plan::new(&Facts {
        stored,
        pending: standing.pending,
        dim: encoder.dim(),
        row_component: args.run.row_type.row_type().bytes(),
        model_bytes: model::bytes(&source, args.encoder_dtype),
        in_flight: (in_flight * 3 * side * side * 4) as u64
            + threads as u64 * (limits.max_bytes as u64 + (64 << 20)),
        build: &params,
        store: &args.place.store,
        seconds_per_unit: plan::probe(&encoder, &units, threads),
        index: !args.run.no_index,
    });
    if !check_plan(&plan, &args.run)? {
        return Ok(ExitCode::SUCCESS);
    }

    // Said now, not after the last picture.
    sample_queries(&args.run.graph, encoder.dim())?;
    let store = store.context("a store is open unless this is a dry run")?;
    let agreement = match cache {
        None => model::compare_with_f32(&encoder, &source, threads, &units)?,
        Some(_) => None, // it was measured when the cache was made
    };
    if let (Some(dtype), Some(cost)) = (encoder.origin().encoder_dtype, agreement) {
        say(&args.run, || {
            let Agreement { mean, min, pictures } = cost;
            format!(
                "{dtype} against f32 on {pictures} pictures: cosine {mean:.5} in the mean, {min:.5} at least"
            )
        });
    }
    let new = NewCache {
        dim: encoder.dim(),
        rows: args.run.row_type.row_type(),
        origin: Origin { agreement, ..encoder.origin().clone() },
        model: Some(source),
    };
    let mut writer = Writer::open(&store, &args.place.cache, &new)?;
    let standing = Standing { unreadable: found.oddities.len() as u64, ..standing };
    record_oddities(&store, &mut writer, found.oddities)?;
    let options =
        Options { threads, batch: args.batch, dedup: !args.run.keep_duplicates, json: args.run.json };
    let stop = stop_flag()?;
    let mut outcomes = pipeline::run(&store, &mut writer, &encoder, units, &options, &stop)?;
    if outcomes.written.replaced > 0 && !outcomes.interrupted {
        // Duplicates of what has been replaced are now the only ones with their content.
        let (units, _) = ledger::pending(&store, Some(writer.record().id), all_units, false)?;
        outcomes += pipeline::run(&store, &mut writer, &encoder, units, &options, &stop)?;
    }
    drop(encoder); // its memory is needed for the graph
    finish(&store, &mut writer, &args.run, params, standing, outcomes, &stop)
}

fn import(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let threads = threads(args.run.threads);
    let params = build_params(&args.run.graph, threads)?;
    let options = import::Options {
        embedding_column: args.embedding_column,
        id_column: args.id_column,
        uri_column: args.uri_column,
        metadata: args.metadata,
    };
    let import: Import = import::open(&args.vectors, &options)?;
    let (origin, model) = model::stated(args.nano, &args.model, threads, import.dim)?;
    let store = open_store(&args.place.store, args.run.dry_run)?;
    let stored = stored_items(store.as_ref(), &args.place.cache)?;
    let standing = Standing { pending: import.rows, ..Standing::default() };
    let plan = Plan::new(&Facts {
        stored,
        pending: import.rows,
        dim: import.dim,
        row_component: args.run.row_type.row_type().bytes(),
        model_bytes: 0,
        in_flight: 4096 * import.dim as u64 * 4,
        build: &params,
        store: &args.place.store,
        seconds_per_unit: None,
        index: !args.run.no_index,
    });
    if !check_plan(&plan, &args.run)? {
        return Ok(ExitCode::SUCCESS);
    }
    // Said now, not after the last row.
    sample_queries(&args.run.graph, import.dim)?;
    let store = store.context("a store is open unless this is a dry run")?;
    let new = NewCache { dim: import.dim, rows: args.run.row_type.row_type(), origin, model };
    let mut writer = Writer::open(&store, &args.place.cache, &new)?;
    let options = Options { threads, batch: 1, dedup: !args.run.keep_duplicates, json: args.run.json };
    let stop = stop_flag()?;
    let outcomes = pipeline::import(&store, &mut writer, &import, &options, &stop)?;
    finish(&store, &mut writer, &args.run, params, standing, outcomes, &stop)
}

/// Indexes what is stored, writes the report, and says how it went.
fn finish(
    store: &Store,
    writer: &mut Writer<'_>,
    run: &Run,
    build: BuildParams,
    inputs: Standing,
    outcomes: Outcomes,
    stop: &AtomicBool,
) -> anyhow::Result<ExitCode> {
    // Of the inputs of this run: what an earlier command was given and refused is that command's affair.
    let bad = inputs.bad + inputs.unreadable + outcomes.known_bad + outcomes.written.bad;
    let (written, cache) = (outcomes.written, writer.record().name.clone());
    say(run, || {
        format!(
            "{} stored, {} replaced, {} duplicates, {} bad; {} items in `{cache}`",
            written.stored,
            written.replaced,
            written.duplicates,
            written.bad,
            writer.record().items
        )
    });
    if stop.load(Ordering::Relaxed) {
        say(run, || "stopped; run the same command again to go on".into());
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let changed = written.stored + written.replaced > 0;
    let stale = writer.record().current.is_none() || !indexed(store, writer)?;
    let index = if run.no_index || writer.record().items == 0 || !(changed || stale) {
        None
    } else {
        let queries = sample_queries(&run.graph, writer.record().dim)?;
        Some(index::run(writer, &build, &queries, run.graph.min_recall, run.json)?)
    };
    if let Some(index) = &index {
        say(run, || index_line(index));
    }
    store.flush()?;
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        cache: writer.record().clone(),
        inputs,
        outcomes,
        bad_total: bad,
        index,
        build,
        sizes: Report::sizes(store),
    };
    report.write(&run.report.clone().unwrap_or_else(|| store.path().join("report.json")))?;
    if run.json {
        println!("{}", json!({ "report": report }));
    }
    if writer.record().items == 0 {
        bail!(
            "there is not one good item; `index-builder ledger --store {} --cache {cache}` lists why",
            store.path().display()
        );
    }
    if bad == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    say(run, || {
        let list = format!("index-builder ledger --store {} --cache {cache}", store.path().display());
        format!("{bad} inputs are bad; `{list}` lists them")
    });
    Ok(ExitCode::from(SOME_BAD))
}

/// Whether the current generation holds every stored item and every change.
fn indexed(store: &Store, writer: &Writer<'_>) -> anyhow::Result<bool> {
    let record = writer.record();
    let generations = store.generations(record.id)?;
    let holds_all = |g: &GenerationRecord| g.items == record.items && g.sequence == record.sequence;
    Ok(generations.iter().any(|g| Some(g.generation) == record.current && holds_all(g)))
}

fn index_line(index: &viscache::cache::IndexReport) -> String {
    let mut line = format!(
        "generation {} of {} items; recall@10 by ef_search: {}",
        index.generation,
        index.items,
        curve_line(&index.recall)
    );
    for (kind, recall) in &index.recall_by {
        line += &format!("; of the {kind} sample: {}", curve_line(recall));
    }
    if index.reach.repaired > 0 {
        line += &format!(" ({} links added)", index.reach.repaired);
    }
    line
}

fn curve_line(curve: &[(usize, f64)]) -> String {
    curve.iter().map(|(ef, r)| format!("{r:.4} at {ef}")).collect::<Vec<_>>().join(", ")
}

/// Recall by width and kind. A kind ends where a wider beam was no longer tried.
fn recall_table(verdict: &verify::Verdict) -> String {
    let given = verdict.recall_by.iter().map(|(kind, curve)| (kind.as_str(), curve));
    let columns: Vec<_> = std::iter::once(("rows", &verdict.recall)).chain(given).collect();
    let widths: BTreeSet<usize> = columns.iter().flat_map(|(_, curve)| curve.iter().map(|p| p.0)).collect();
    let mut table = format!("  {:>9}", "ef_search");
    columns.iter().for_each(|(kind, _)| table += &format!(" {kind:>8}"));
    for width in widths {
        table += &format!("\n  {width:>9}");
        for (kind, curve) in &columns {
            let recall = curve.iter().find(|p| p.0 == width).map(|p| format!("{:.4}", p.1));
            table += &format!(" {:>1$}", recall.unwrap_or_default(), kind.len().max(8));
        }
    }
    table + "\n"
}

fn reindex(args: IndexArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&existing(&args.place.store)?, Access::Write)?;
    let mut writer = Writer::existing(&store, &args.place.cache)?;
    let params = build_params(&args.graph, threads(args.threads))?;
    let queries = sample_queries(&args.graph, writer.record().dim)?;
    let report = index::run(&mut writer, &params, &queries, args.graph.min_recall, args.json)?;
    match args.json {
        true => println!("{}", json!({ "index": report })),
        false => println!("{}", index_line(&report)),
    }
    Ok(ExitCode::SUCCESS)
}

fn verify_all(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let store = Arc::new(Store::open(&args.store, Access::Read)?);
    let records = match &args.cache {
        Some(name) => vec![store.cache(name)?],
        None => store.caches()?,
    };
    if records.is_empty() {
        bail!("the store at {} has no cache", args.store.display());
    }
    let mut sound = true;
    for record in records {
        let verdict = verify::verify(&store, &record, args.sample, &args.queries)?;
        sound &= verdict.problems.is_empty();
        if args.json {
            println!("{}", json!(verdict));
            continue;
        }
        let state = if verdict.problems.is_empty() { "sound" } else { "NOT SOUND" };
        println!(
            "{}: {state}; {} items, generations {:?}",
            verdict.cache, verdict.items, verdict.generations
        );
        match args.recall {
            true => print!("{}", recall_table(&verdict)),
            false if verdict.recall.is_empty() => {}
            false => println!("  recall@10 by ef_search: {}", curve_line(&verdict.recall)),
        }
        verdict.problems.iter().for_each(|problem| println!("  {problem}"));
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn list_bad(place: &Place, json: bool) -> anyhow::Result<ExitCode> {
    let store = Store::open(&place.store, Access::Read)?;
    for (uri, reason) in ledger::bad(&store, store.cache(&place.cache)?.id)? {
        match json {
            true => println!("{}", json!({ "uri": uri, "reason": reason })),
            false => println!("{uri}\t{reason}"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts what could not even become a unit into the ledger.
fn record_oddities(
    store: &Store,
    writer: &mut Writer<'_>,
    oddities: Vec<discover::Oddity>,
) -> anyhow::Result<()> {
    let finished = oddities.into_iter().map(|oddity| crate::write::Finished {
        uri: oddity.uri,
        stamp: Default::default(),
        outcome: Err(oddity.reason),
    });
    let finished: Vec<_> = finished.collect();
    if !finished.is_empty() {
        crate::write::write(store, writer, finished, true)?;
    }
    Ok(())
}

/// Prints the plan; false when the run ends here.
fn check_plan(plan: &Plan, run: &Run) -> anyhow::Result<bool> {
    if run.dry_run {
        match run.json {
            true => println!("{}", json!({ "plan": plan })),
            false => println!("{plan}"),
        }
    }
    if !run.force {
        plan.check()?;
    }
    Ok(!run.dry_run)
}

/// The store for writing; for a dry run, for reading if it is there.
fn open_store(path: &Path, dry: bool) -> anyhow::Result<Option<Store>> {
    match dry {
        false => Ok(Some(Store::open(path, Access::Write)?)),
        true if path.join("CURRENT").is_file() => Ok(Some(Store::open(path, Access::Read)?)),
        true => Ok(None),
    }
}

fn existing(store: &Path) -> anyhow::Result<PathBuf> {
    if !store.join("CURRENT").is_file() {
        return Err(viscache::store::Error::Missing { path: store.to_owned() }.into());
    }
    Ok(store.to_owned())
}

fn cache_id(store: Option<&Store>, name: &CacheName) -> anyhow::Result<Option<CacheId>> {
    let caches = store.map(Store::caches).transpose()?.unwrap_or_default();
    Ok(caches.into_iter().find(|record| &record.name == name).map(|record| record.id))
}

fn stored_items(store: Option<&Store>, name: &CacheName) -> anyhow::Result<u64> {
    let caches = store.map(Store::caches).transpose()?.unwrap_or_default();
    Ok(caches.into_iter().find(|record| &record.name == name).map_or(0, |record| record.items))
}

fn build_params(graph: &Graph, threads: usize) -> anyhow::Result<BuildParams> {
    if !(0.0..=1.0).contains(&graph.min_recall) {
        bail!("--min-recall is {}; it must be from 0 to 1", graph.min_recall);
    }
    let params = BuildParams {
        m: graph.m,
        ef_construction: graph.ef_construction,
        refine: graph.refine,
        codes: graph.codes,
        threads,
        deterministic: graph.deterministic,
    };
    params.validate()?;
    Ok(params)
}

/// The samples of queries that were named.
fn sample_queries(graph: &Graph, dim: usize) -> anyhow::Result<QuerySample> {
    index::sampled(&graph.queries, dim)
}

fn threads(asked: usize) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// A flag that Ctrl-C and SIGTERM set; a second one ends the process at once, which loses nothing that was written.
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        eprintln!("finishing what is in hand; once more to stop at once");
    })?;
    Ok(stop)
}

/// Says something to people; programs do not hear it.
fn say(run: &Run, text: impl FnOnce() -> String) {
    if !run.json {
        println!("{}", text());
    }
}

impl RowTypeArg {
    fn row_type(self) -> RowType {
        match self {
            RowTypeArg::F32 => RowType::F32,
            RowTypeArg::F16 => RowType::F16,
        }
    }
}
