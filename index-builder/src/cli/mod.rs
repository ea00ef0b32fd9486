//! The command line of `index-builder`.
//!
//! Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 some items were bad, 130 interrupted (run again to go on).

mod args;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::Parser;
use serde_json::json;
use viscache::cache::{NewCache, QuerySample, Writer};
use viscache::index::BuildParams;
use viscache::media::Limits;
use viscache::store::{Access, CacheId, GenerationRecord, Store};
use viscache::types::{Agreement, CacheName, Origin};

use self::args::{BuildArgs, Cli, Command, Graph, ImportArgs, IndexArgs, Place, Run};
use self::verify::{curve_line, verify_all};
use crate::import::Import;
use crate::ledger::Standing;
use crate::pipeline::{Options, Outcomes};
use crate::plan::{Facts, Plan};
use crate::report::Report;
use crate::{discover, import, index, ledger, model, pipeline, plan, scenes};

/// Exit code of a command that failed.
pub const FAILED: u8 = 1;
const SOME_BAD: u8 = 3;
const INTERRUPTED: u8 = 130;

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
        Command::Verify(args) => verify_all(&args),
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
