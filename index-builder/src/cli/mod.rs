//! The command line of `index-builder`.
//!
//! Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 some inputs were not stored, 130 interrupted (run again to go on).

/// Prints a line for whoever still listens: a reader that has gone, as `head` does, must not end a build half-way.
macro_rules! told {
    ($($line:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($line)*)));
    }};
}

mod args;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::{CommandFactory, Parser};
use serde_json::json;
use viscache::cache::{APART, NewCache, QuerySample, Writer};
use viscache::index::BuildParams;
use viscache::media::Limits;
use viscache::store::{Access, CacheRecord, Choice, GenerationRecord, QuerySource, Store, Tried};
use viscache::types::{Agreement, CacheName, Origin};

use self::args::{BuildArgs, Caches, Cli, Codes, Command, Graph, ImportArgs, IndexArgs, Place, Run};
use self::verify::{curve_line, verify_all};
use crate::discover::{self, Inputs, List, name};
use crate::import::Import;
use crate::ledger::{Judge, Standing};
use crate::pipeline::{Options, Outcomes};
use crate::plan::{Facts, Plan};
use crate::report::Report;
use crate::summary::{self, Summary};
use crate::survey::{Survey, survey};
use crate::tag_cost::TagSample;
use crate::{import, index, ledger, model, pipeline, plan, scenes};

/// Exit code of a command that failed.
pub const FAILED: u8 = 1;
const SOME_BAD: u8 = 3;
const INTERRUPTED: u8 = 130;
/// Rows of an import whose tags are looked at for the plan.
const TAG_SAMPLE: usize = 4096;

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
        Command::Ledger { place, json } => list_ledger(&place, json),
        Command::Caches { what } => caches(&what),
        Command::Scenes(args) => {
            let summary = scenes::run(&args)?;
            told!("{} pictures drawn, captions in {}", summary.pictures, summary.captions.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "index-builder", &mut std::io::stdout());
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
    let inputs = Inputs {
        images: args.images,
        lists: args.lists.iter().map(|path| List::open(path)).collect::<anyhow::Result<_>>()?,
        tags: args.tags,
        ignore: args
            .ignore
            .iter()
            .map(|ending| format!(".{}", ending.trim_start_matches('.').to_lowercase()))
            .collect(),
    };
    // A mistake in the command makes no store.
    inputs.check()?;
    let limits = Limits {
        max_bytes: args.max_image_mib << 20,
        max_pixels: args.max_image_pixels,
        ..Limits::default()
    };
    let source = args.model.source()?;
    let encoder = model::open(&source, (args.device, args.encoder_dtype), threads, limits)?;
    let options = Options {
        threads,
        batch: args.batch,
        dedup: !args.run.keep_duplicates,
        retry_bad: args.retry_bad,
        json: args.run.json,
    };

    let dry = args.run.dry_run;
    let store = open_store(&args.place.store, dry)?;
    let cache = cache_record(store.as_ref(), &args.place.cache)?;
    let Survey { standing, sample } =
        survey(&inputs, Judge::new(store.as_ref().zip(cache.clone()), args.retry_bad))?;
    let mut tags = TagSample::of_stored(store.as_ref().zip(cache.as_ref()))?;
    sample.iter().for_each(|unit| tags.see(&discover::read_tags(&inputs.tags, &unit.texts).0));
    let side = encoder.images().side;
    let plan = Plan::new(&Facts {
        stored: cache.as_ref().map_or(0, |cache| cache.items),
        pending: standing.pending,
        dim: encoder.dim(),
        row_component: args.run.row_type.row_type().bytes(),
        model_bytes: model::bytes(&source, args.encoder_dtype),
        in_flight: (options.in_flight() * 3 * side * side * 4) as u64
            + threads as u64 * (limits.max_bytes as u64 + (64 << 20)),
        build: &params,
        store: &args.place.store,
        seconds_per_unit: plan::probe(&encoder, &sample, threads),
        index: !args.run.no_index,
        tags: &tags,
    });
    if !check_plan(&plan, &args.run)? {
        return Ok(ExitCode::SUCCESS);
    }

    // Said now, not after the last picture.
    sample_queries(&args.run.graph, encoder.dim())?;
    let store = store.context("a store is open unless this is a dry run")?;
    let agreement = match cache {
        None => model::compare_with_f32(&encoder, &source, threads, &sample)?,
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
    let before = writer.record().items;
    let stop = Stop::on_signals()?;
    let (mut standing, outcomes) = {
        let build =
            pipeline::Build { store: &store, encoder: &encoder, inputs: &inputs, options, stop: stop.flag() };
        let (seen, outcomes) = build.run(&mut writer, standing.pending)?;
        // An interrupted run has not seen everything; the first look has.
        (if outcomes.interrupted { standing } else { seen }, outcomes)
    };
    drop(encoder); // its memory is needed for the graph
    standing.passed.retain(|_, count| *count > 0);
    finish(
        &store,
        &mut writer,
        &args.run,
        params,
        Ran { before, standing, outcomes, notes: Vec::new() },
        &stop,
    )
}

fn import(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let threads = threads(args.run.threads);
    let params = build_params(&args.run.graph, threads)?;
    let named = args.vectors;
    let options = import::Options {
        dim: named.dim,
        embedding_column: named.embedding_column,
        id_column: named.id_column,
        no_ids: named.no_ids,
        uri_column: named.uri_column,
        tag_columns: if named.no_tags { Some(Vec::new()) } else { named.tag_columns },
        metadata: named.metadata,
    };
    let import: Import = import::open(&named.vectors, &options)?;
    let (origin, model) = model::stated(args.nano, &args.model, threads, import.dim)?;
    let store = open_store(&args.place.store, args.run.dry_run)?;
    let cache = cache_record(store.as_ref(), &args.place.cache)?;
    let stored = cache.as_ref().map_or(0, |cache| cache.items);
    let mut tags = TagSample::of_stored(store.as_ref().zip(cache.as_ref()))?;
    // What is wrong with them is said when they are read to be stored.
    if let Some(Ok(chunk)) = import.chunks(TAG_SAMPLE, 0).next() {
        chunk.rows.iter().for_each(|row| tags.see(&row.tags));
    }
    let standing = Standing { inputs: import.rows, pending: import.rows, ..Standing::default() };
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
        tags: &tags,
    });
    if !check_plan(&plan, &args.run)? {
        return Ok(ExitCode::SUCCESS);
    }
    // Said now, not after the last row.
    sample_queries(&args.run.graph, import.dim)?;
    let store = store.context("a store is open unless this is a dry run")?;
    let new = NewCache { dim: import.dim, rows: args.run.row_type.row_type(), origin, model };
    let mut writer = Writer::open(&store, &args.place.cache, &new)?;
    let before = writer.record().items;
    let dedup = !args.run.keep_duplicates;
    let options = Options { threads, batch: 1, dedup, retry_bad: false, json: args.run.json };
    let stop = Stop::on_signals()?;
    let outcomes = pipeline::import(&store, &mut writer, &import, &options, stop.flag())?;
    let mut notes = import.notes();
    if outcomes.normalised > 0 {
        notes.push(format!("{} rows were not of length 1 and are stored with it", outcomes.normalised));
    }
    finish(&store, &mut writer, &args.run, params, Ran { before, standing, outcomes, notes }, &stop)
}

/// What a run has done before it indexes.
struct Ran {
    /// Items before it.
    before: u64,
    standing: Standing,
    outcomes: Outcomes,
    /// What was changed or left out on the way, in sentences.
    notes: Vec<String>,
}

/// Checks that what was done adds up, indexes what is stored, writes the report, and says how it went.
fn finish(
    store: &Store,
    writer: &mut Writer<'_>,
    run: &Run,
    build: BuildParams,
    ran: Ran,
    stop: &Stop,
) -> anyhow::Result<ExitCode> {
    let Ran { before, standing: inputs, outcomes, mut notes } = ran;
    let summary = Summary { inputs: &inputs, outcomes: &outcomes };
    // Of the inputs of this run: what an earlier command was given and refused is that command's affair.
    let bad = summary.not_stored();
    let (written, cache) = (outcomes.written, writer.record().name.clone());
    say(run, || format!("{}\n{}", summary.line(cache.as_str(), writer.record().items), summary.details()));
    notes.extend(summary::strangers(store, writer)?);
    notes.iter().for_each(|note| say(run, || note.clone()));
    if !outcomes.interrupted {
        let ended = written.sum() + outcomes.known_good + outcomes.known_bad;
        summary::check_inputs(&inputs, ended)?;
    }
    summary::check_store(store, writer, before, written.stored)?;
    if stop.is_set() {
        say(run, || "stopped; run the same command again to go on".into());
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let changed = written.stored + written.replaced > 0;
    let stale = writer.record().current.is_none() || !indexed(store, writer)?;
    let index = if run.no_index || writer.record().items == 0 || !(changed || stale) {
        None
    } else {
        let queries = sample_queries(&run.graph, writer.record().dim)?;
        stop.at_once();
        Some(index::run(writer, &build, &queries, run.graph.min_recall, run.json)?)
    };
    if let Some(index) = &index {
        say(run, || index_line(index));
    }
    store.flush()?;
    let list = format!("index-builder ledger --store {} --cache {cache}", store.path().display());
    let nothing = (writer.record().items == 0).then(|| summary.nothing_stored(&list));
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        cache: writer.record().clone(),
        inputs,
        outcomes,
        notes,
        bad_total: bad,
        index,
        build,
        sizes: Report::sizes(store),
    };
    report.write(&run.report.clone().unwrap_or_else(|| store.path().join("report.json")))?;
    if run.json {
        told!("{}", json!({ "report": report }));
    }
    if let Some(nothing) = nothing {
        bail!(nothing);
    }
    if bad == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    say(run, || format!("{bad} inputs were not stored; `{list}` lists them"));
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
        let what = if kind == APART { "made queries".to_owned() } else { format!("the {kind} sample") };
        line += &format!("; of {what}: {}", curve_line(recall));
    }
    if index.reach.repaired > 0 {
        line += &format!(" ({} links added)", index.reach.repaired);
    }
    if let Some(choice) = &index.choice {
        line += &format!("\n{}", choice_line(choice));
    }
    for (kind, recall) in &index.flat {
        line += &format!(
            "\nrecall of {kind} queries ends at {recall:.3}, however wide the beam: wider codes may tell more apart (`--codes f16`)"
        );
    }
    line
}

/// Which codes were chosen, and what the others would have left within reach.
fn choice_line(Choice { codes, rescore, tried, queries }: &Choice) -> String {
    // Of all kinds of queries, the one that is hardest for some codes; at the depth that was chosen.
    let hardest = |word: &str| {
        let of = tried.iter().filter(|tried| tried.codes == word && tried.rescore == *rescore);
        of.min_by(|a, b| a.within.total_cmp(&b.within))
    };
    let mut seen: Vec<&str> = Vec::new();
    tried.iter().for_each(|tried| {
        if !seen.contains(&tried.codes.as_str()) {
            seen.push(&tried.codes);
        }
    });
    let shares: Vec<String> = seen
        .iter()
        .filter_map(|word| {
            let Tried { kind, within, .. } = hardest(word)?;
            Some(format!("{word} {within:.3} ({kind})"))
        })
        .collect();
    let trust = match queries {
        QuerySource::Given => "",
        QuerySource::Rows => "; by rows of other modalities, for want of a sample of queries",
        QuerySource::Made => {
            "; by made queries, for want of a sample of real ones: give one by --queries to be surer"
        }
    };
    format!(
        "codes {codes}, of which the best {rescore} are scored again: share of the true ten within those, {}{trust}",
        shares.join(", ")
    )
}

fn reindex(args: IndexArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open(&existing(&args.place.store)?, Access::Write)?;
    let mut writer = Writer::existing(&store, &args.place.cache)?;
    let params = build_params(&args.graph, threads(args.threads))?;
    let queries = sample_queries(&args.graph, writer.record().dim)?;
    let report = index::run(&mut writer, &params, &queries, args.graph.min_recall, args.json)?;
    match args.json {
        true => told!("{}", json!({ "index": report })),
        false => told!("{}", index_line(&report)),
    }
    Ok(ExitCode::SUCCESS)
}

fn list_ledger(place: &Place, json: bool) -> anyhow::Result<ExitCode> {
    let store = Store::open(&place.store, Access::Read)?;
    ledger::not_stored(&store, store.cache(&place.cache)?.id, |line| {
        match json {
            true => told!("{}", json!(line)),
            false => told!("{}\t{}", name::shown(&line.uri), name::shown(&line.reason)),
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

fn caches(what: &Caches) -> anyhow::Result<ExitCode> {
    match what {
        Caches::List { store, json } => {
            let store = Store::open(store, Access::Read)?;
            let aliases = store.aliases()?;
            for cache in store.caches()? {
                let own = aliases.iter().filter(|(_, name)| *name == cache.name);
                let own: Vec<&str> = own.map(|(alias, _)| alias.as_str()).collect();
                if *json {
                    let mut line = json!(cache);
                    line["aliases"] = json!(own);
                    told!("{line}");
                    continue;
                }
                let also = if own.is_empty() { String::new() } else { format!("\talso {}", own.join(", ")) };
                told!(
                    "{}\t{} items of {} components\t{}\t{}{also}",
                    cache.name,
                    cache.items,
                    cache.dim,
                    name::shown(&cache.origin.model),
                    cache.current.map_or_else(|| "not indexed".into(), |g| format!("generation {g}")),
                );
            }
        }
        Caches::Rename { place, to } => {
            Store::open(&existing(&place.store)?, Access::Write)?.rename_cache(&place.cache, to)?;
            told!("`{}` is `{to}` now", place.cache);
        }
        Caches::Delete { place, yes, force } => {
            let store = Store::open(&existing(&place.store)?, Access::Write)?;
            let items = store.cache(&place.cache)?.items;
            if items > 0 && !yes {
                bail!("cache `{}` has {items} items; say --yes to delete them", place.cache);
            }
            store.delete_cache(&place.cache, *force)?;
            told!(
                "`{}` is deleted, with {items} items; `index-builder compact` gives back its space",
                place.cache
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the plan; false when the run ends here.
fn check_plan(plan: &Plan, run: &Run) -> anyhow::Result<bool> {
    if run.dry_run {
        match run.json {
            true => told!("{}", json!({ "plan": plan })),
            false => told!("{plan}"),
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

fn cache_record(store: Option<&Store>, name: &CacheName) -> anyhow::Result<Option<CacheRecord>> {
    match store.map(|store| store.cache(name)) {
        Some(Ok(record)) => Ok(Some(record)),
        None | Some(Err(viscache::store::Error::NoCache { .. })) => Ok(None),
        Some(Err(error)) => Err(error.into()),
    }
}

fn build_params(graph: &Graph, threads: usize) -> anyhow::Result<BuildParams> {
    if !(0.0..=1.0).contains(&graph.min_recall) {
        bail!("--min-recall is {}; it must be from 0 to 1", graph.min_recall);
    }
    let (codes, choose_codes) = match graph.codes {
        Codes::Auto => (BuildParams::DEFAULT_CODES, true),
        Codes::Given(codes) => (codes, false),
    };
    let params = BuildParams {
        m: graph.m,
        ef_construction: graph.ef_construction,
        refine: graph.refine,
        codes,
        choose_codes,
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

/// What Ctrl-C and SIGTERM do: let what is in hand be finished, or end the process at once where nothing is in hand that a
/// later run could not do as well. A second one always ends it, which loses nothing that was written.
struct Stop {
    flag: Arc<AtomicBool>,
    at_once: Arc<AtomicBool>,
}

impl Stop {
    fn on_signals() -> anyhow::Result<Self> {
        let stop = Stop { flag: Arc::default(), at_once: Arc::default() };
        let (flag, at_once) = (stop.flag.clone(), stop.at_once.clone());
        ctrlc::set_handler(move || {
            let at_once = at_once.load(Ordering::Relaxed);
            if at_once {
                eprintln!(
                    "stopped while indexing; everything is stored, and the same command or `index-builder index` builds the graph"
                );
            }
            if at_once || flag.swap(true, Ordering::Relaxed) {
                std::process::exit(i32::from(INTERRUPTED));
            }
            eprintln!("finishing what is in hand; once more to stop at once");
        })?;
        Ok(stop)
    }

    /// Set by the first signal.
    fn flag(&self) -> &AtomicBool {
        &self.flag
    }

    fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// From now on, the first signal ends the process.
    fn at_once(&self) {
        self.at_once.store(true, Ordering::Relaxed);
    }
}

/// Says something to people; programs do not hear it.
fn say(run: &Run, text: impl FnOnce() -> String) {
    if !run.json {
        told!("{}", text());
    }
}
