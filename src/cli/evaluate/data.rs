//! `evaluate data`: whether the cache helps on the user's own questions, and which settings do.

use std::io::{ErrorKind, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use viscache::flow::{App, Call};

use super::grid::{self, Setting};
use super::list::{self, Bad, List, Row};
use super::measure::{CHUNK, Job, Measured, measure};
use super::results::Results;
use super::summary::{About, Measure, Summary, summarise};
use super::{chart, results, table};
use crate::app;
use crate::cli::flags::{DecoderFlags, Given, ModelFlags, StoreFlags};
use crate::cli::{INTERRUPTED, SOME_BAD, target};
use crate::config::Config;

/// The file of all figures.
const SUMMARY: &str = "summary.json";
/// What is asked of rows that ask nothing.
const QUESTION: &str = "Generate caption of this image";

#[derive(Args)]
pub(super) struct DataArgs {
    /// The list: CSV, or TSV by its ending. Its first line names the columns: `file` or `text`, `answers` (right ones, between `|`), and
    /// if there are any `question`, `wrong` (wrong answers, between `|`: then the likeliest answer counts), `modality` and `kind`
    /// (what rows are grouped by). Files are relative to the list.
    #[arg(value_name = "LIST.csv")]
    list: PathBuf,
    /// Neighbours to blend; several to compare.
    #[arg(long, value_name = "K,K,…", value_delimiter = ',', help_heading = "Grid")]
    top_k: Vec<usize>,
    /// Multiplies the scores before the softmax over the neighbours; several to compare.
    #[arg(long, value_name = "T,T,…", value_delimiter = ',', help_heading = "Grid")]
    temperature: Vec<f32>,
    /// Share of the prototype, 0 to 1; several to compare.
    #[arg(long, value_name = "W,W,…", value_delimiter = ',', help_heading = "Grid")]
    weight: Vec<f32>,
    /// What is told: `accuracy` (an answer is right when a right one is in it, word for word), `likelihood` (of the right answers) or
    /// `both`.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = MeasureArg::Both)]
    #[arg(hide_possible_values = true, help_heading = "Measure")]
    measure: MeasureArg,
    /// What is asked of rows without a question.
    #[arg(long, value_name = "TEXT", default_value = QUESTION, help_heading = "Measure")]
    question: String,
    /// Tokens of an answer at most.
    #[arg(long, value_name = "N", default_value = "60", help_heading = "Measure")]
    max_tokens: NonZeroUsize,
    /// Choose the best setting on one half of the inputs and tell its figures of the other: always, or never with `=false`. Without it,
    /// where there are 40 inputs or more.
    #[arg(long, value_name = "YES", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(help_heading = "Measure")]
    choose_on_half: Option<bool>,
    /// Other seeds give other halves and resamplings.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Measure")]
    seed: u64,
    /// Fail at the first bad row, instead of counting it and going on.
    #[arg(long, help_heading = "Measure")]
    strict: bool,
    /// Folder for `results.csv` (a line for each row and setting), `summary.json` and `grid.svg`; made if missing.
    #[arg(long, value_name = "FOLDER", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Print all figures as one JSON object.
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Name of the cache; without it, the default or the store's only one.
    #[arg(long, value_name = "NAME", help_heading = "Store")]
    cache: Option<String>,
    #[command(flatten)]
    store: StoreFlags,
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    decoder: DecoderFlags,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MeasureArg {
    Accuracy,
    Likelihood,
    Both,
}

impl MeasureArg {
    fn measures(self) -> &'static [Measure] {
        match self {
            MeasureArg::Accuracy => &[Measure::Accuracy],
            MeasureArg::Likelihood => &[Measure::Likelihood],
            MeasureArg::Both => &[Measure::Accuracy, Measure::Likelihood],
        }
    }
}

impl DataArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        Given {
            store: Some(&self.store),
            model: Some(&self.model),
            decoder: Some(&self.decoder),
            caches: self.cache.as_slice(),
            ..Given::default()
        }
    }
}

/// What has come of the list so far.
#[derive(Default)]
struct Found {
    measured: Vec<Measured>,
    bad: Vec<Bad>,
}

pub(super) fn run(config: &Config, args: &DataArgs) -> anyhow::Result<ExitCode> {
    let settings = grid::settings(&args.top_k, &args.temperature, &args.weight, config.blend_params())?;
    let List { rows, bad, unused } = list::read(&args.list)?;
    if !unused.is_empty() {
        eprintln!("columns of the list that are not used: {}", unused.join(", "));
    }
    let mut found = Found { measured: Vec::new(), bad };
    check(&args.list, args.strict, rows.len(), &found.bad)?;
    let app = open(config)?;
    let cache = args.cache.as_deref().unwrap_or_default();
    let about = about(args, &app, cache)?;
    let mut results = args.out.as_deref().map(begin).transpose()?;
    let call = Call { cancelled: interruption()?, ..Call::default() };
    let measures = args.measure.measures();
    let job = Job {
        app: &app,
        cache,
        settings: &settings,
        accuracy: measures.contains(&Measure::Accuracy),
        likelihood: measures.contains(&Measure::Likelihood),
        question: &args.question,
        max_tokens: args.max_tokens.get(),
        call: &call,
    };
    let outcome = go(&job, &rows, args.strict, results.as_mut(), &mut found);
    if call.cancelled.load(Ordering::Relaxed) {
        let rest = match &args.out {
            Some(folder) => format!("{} has these", folder.join(results::FILE).display()),
            None => "nothing is written".to_owned(),
        };
        eprintln!("interrupted: {} of {} rows were measured; {rest}", found.measured.len(), rows.len());
        return Ok(ExitCode::from(INTERRUPTED));
    }
    outcome?;
    if found.measured.is_empty() {
        check(&args.list, args.strict, 0, &found.bad)?;
    }
    // Rows about one input came together.
    found.measured.sort_by_key(|measured| measured.row);
    let summary = summarise(about, &settings, &rows, &found.measured, found.bad, measures);
    tell(&summary, args)
}

/// Whether rows are left, and none is bad where none may be.
fn check(list: &Path, strict: bool, good: usize, bad: &[Bad]) -> anyhow::Result<()> {
    let first = || bad.first().map(|Bad { line, why }| format!("line {line}: {why}")).unwrap_or_default();
    match (good, bad.len()) {
        (0, 0) => bail!("the list {} has no rows", list.display()),
        (0, count) => bail!("none of the {count} rows of {} can be asked; {}", list.display(), first()),
        (_, count) if strict && count > 0 => {
            bail!("{count} rows of {} are bad; {}", list.display(), first())
        }
        _ => Ok(()),
    }
}

/// Store and models, with a decoder that a cache can help.
fn open(config: &Config) -> anyhow::Result<App> {
    let mut config = config.clone();
    // All questions about some inputs are put into the line at once; how many grow together stays as it is set.
    config.limits.max_waiting_questions = 1 << 30;
    config.limits.max_waiting = config.limits.max_waiting.max(CHUNK);
    let app = app::open(&config, target::ANSWERS)?;
    if app.embedder.is_none() {
        bail!(
            "there is no model to embed the list's inputs with; name the one that made the cache by --model"
        );
    }
    let Some(generator) = &app.generator else {
        bail!("there is no decoder to answer with; name one by --decoder");
    };
    let decoder = generator.llm().decoder();
    if decoder.picture().is_some() || decoder.embedding_width().is_none() {
        bail!("the decoder `{}` takes no embeddings, so that no cache can help it", generator.llm().name());
    }
    Ok(app)
}

fn about(args: &DataArgs, app: &App, cache: &str) -> anyhow::Result<About> {
    let snapshot = app.cache(cache)?.snapshot();
    let record = snapshot.record();
    let llm = app.generator.as_ref().map(|generator| generator.llm());
    let takes = llm.and_then(|llm| llm.decoder().embedding_width());
    if let Some(takes) = takes.filter(|takes| *takes != record.dim) {
        bail!("cache `{}` has {} components, the decoder takes {takes}", record.name, record.dim);
    }
    if snapshot.live() == 0 {
        bail!("cache `{}` is empty", record.name);
    }
    Ok(About {
        list: args.list.display().to_string(),
        cache: record.name.to_string(),
        generation: snapshot.generation().0,
        items: snapshot.live(),
        model: app.encoder().map(|encoder| encoder.origin().model.to_string()).unwrap_or_default(),
        decoder: llm.map(|llm| llm.name().to_owned()).unwrap_or_default(),
        question: args.question.clone(),
        max_tokens: args.max_tokens.get(),
        seed: args.seed,
        choose_on_half: args.choose_on_half,
    })
}

/// Begins what is written; what another run left goes first, as it would not fit.
fn begin(folder: &Path) -> anyhow::Result<Results> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for file in [SUMMARY, chart::FILE] {
        let path = folder.join(file);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot replace {}", path.display()));
            }
            _ => {}
        }
    }
    Results::begin(folder)
}

/// Raised when the user interrupts; the second time ends the program.
fn interruption() -> anyhow::Result<Arc<AtomicBool>> {
    let (flag, raised) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let shared = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("interrupt".into()).spawn(move || {
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if raised.swap(true, Ordering::Relaxed) {
                    std::process::exit(INTERRUPTED.into());
                }
                shared.store(true, Ordering::Relaxed);
            }
        });
    })?;
    Ok(flag)
}

/// Measures the rows, and shows how far it is.
fn go(
    job: &Job<'_>,
    rows: &[Row],
    strict: bool,
    mut results: Option<&mut Results>,
    found: &mut Found,
) -> anyhow::Result<()> {
    let bar = ProgressBar::new(rows.len() as u64);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} rows · {per_sec} · {eta} left{msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.tick();
    let settings: &[Setting] = job.settings;
    let outcome = measure(job, rows, |at, measured| {
        let row = rows.get(at).context("a row that is none")?;
        match measured {
            Ok(measured) => {
                if let Some(results) = results.as_mut() {
                    let question = row.question.as_deref().unwrap_or(job.question);
                    results.add(row, question, &measured, settings)?;
                }
                found.measured.push(measured);
            }
            Err(why) if strict => bail!("line {}: {why}", row.line),
            Err(why) => {
                found.bad.push(Bad { line: row.line, why });
                bar.set_message(format!(" · {} bad", found.bad.len()));
            }
        }
        bar.inc(1);
        Ok(())
    });
    bar.finish_and_clear();
    outcome
}

/// Prints and writes the figures.
fn tell(summary: &Summary, args: &DataArgs) -> anyhow::Result<ExitCode> {
    table::write_bad(summary, &mut std::io::stderr().lock())?;
    let object = serde_json::to_string(summary)?;
    if let Some(folder) = &args.out {
        chart::write(summary, folder)?;
        // Last of all: where it is, the others are whole.
        let path = folder.join(SUMMARY);
        std::fs::write(&path, format!("{object}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{object}")?,
        false => table::write(summary, &mut out)?,
    }
    Ok(if summary.bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(SOME_BAD) })
}
