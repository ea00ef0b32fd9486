//! `train`: a recipe is followed, from where it was left.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use clap::Args;
use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use viscache::models::DeviceKind;
use viscache::train::adapter::AdapterTask;
use viscache::train::data::{Annotated, Samples};
use viscache::train::illama::{IllamaTask, Learn, ProbeTask};
use viscache::train::language::LanguageTask;
use viscache::train::pairs::PairsTask;
use viscache::train::segmentation::SegmentationTask;
use viscache::train::task::{Measure, Task};
use viscache::train::{Lesson, Machine, News, Plan, Recipe, run};

/// Exit code of a run that was interrupted.
const INTERRUPTED: u8 = 130;

const NO_TEST: &str = "nothing to test by, so no weights are called the best";

/// Train a model by a recipe. A run that was stopped goes on from its last checkpoint, to the same weights.
#[derive(Args)]
pub(super) struct TrainArgs {
    /// The recipe, a TOML file; its paths are relative to it.
    #[arg(value_name = "RECIPE.toml")]
    recipe: PathBuf,
    /// The folder of the run: checkpoints, `best`, `log.jsonl`, TensorBoard's events.
    #[arg(long, value_name = "FOLDER", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Another value for a key of the recipe, as `run.epochs=10` or `illama.train.folder="/data/pictures"`; repeat for several.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Parts of a batch that are worked on at a time; all cores where nothing is said. It is a part of what the weights hang on.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Where the network learns: `cpu` or `cuda`. It is a part of what the weights hang on.
    #[arg(long, value_name = "DEVICE", default_value = "cpu", help_heading = "Model")]
    device: DeviceKind,
    /// Only read the recipe and list the data.
    #[arg(long)]
    dry_run: bool,
    /// Print a JSON object for each step and test.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub(super) fn run_command(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let recipe = read(&args.recipe, &args.set)?;
    let base = args.recipe.parent().unwrap_or(Path::new("."));
    let threads = match args.threads {
        Some(0) => bail!("--threads must be at least 1"),
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let machine = Machine { threads, device: args.device };
    let mut told = json!({"threads": threads});
    if args.device != DeviceKind::Cpu {
        told["device"] = json!(args.device);
    }
    let mut plan = recipe.plan(told)?;
    match recipe.lesson()? {
        Lesson::Illama(lesson) if lesson.learn == Learn::Head => {
            let mut watch = long_wait("pictures were looked at");
            let span = |samples| plan.span(samples);
            let task = ProbeTask::open(lesson, base, plan.seed, span, machine, &mut watch)?;
            tell_pictures(task.train(), Some(task.test()));
            follow(&task, &recipe, &plan, args)
        }
        Lesson::Illama(lesson) => {
            let task = IllamaTask::open(lesson, base, plan.seed, |samples| plan.span(samples), machine)?;
            tell_pictures(task.train(), task.test());
            follow(&task, &recipe, &plan, args)
        }
        Lesson::Segmentation(lesson) => {
            let span = |samples| plan.span(samples);
            let task = SegmentationTask::open(lesson, base, plan.seed, span, machine)?;
            tell_annotated(&task);
            follow(&task, &recipe, &plan, args)
        }
        Lesson::Adapter(lesson) => {
            let mut watch = long_wait("pictures are embedded");
            let task = AdapterTask::open(lesson, base, &plan, machine, &mut watch)?;
            plan.span(task.samples())?;
            plan.machine["files"] = json!(task.files());
            tell_texts(&task);
            follow(&task, &recipe, &plan, args)
        }
        Lesson::Pairs(lesson) => {
            let mut watch = |doing: &str| eprintln!("{doing}");
            let task = PairsTask::open(lesson, base, (plan.seed, plan.batch), machine, &mut watch)?;
            plan.span(task.samples())?;
            eprintln!("{}", task.told());
            follow(&task, &recipe, &plan, args)
        }
        Lesson::Language(lesson) => {
            let task = LanguageTask::open(lesson, base, &plan, machine)?;
            plan.span(task.samples())?;
            eprintln!("{} texts to learn from, {} to test by", task.train().len(), task.test().len());
            for texts in [task.train(), task.test()] {
                if texts.cut > 0 {
                    eprintln!("{} of these texts are too long and were cut", texts.cut);
                }
                if !texts.skipped.is_empty() {
                    eprintln!("left out: {}", texts.skipped);
                }
            }
            follow(&task, &recipe, &plan, args)
        }
    }
}

/// Says how far something is: ten lines of a long wait, none of a short one.
fn long_wait(what: &'static str) -> impl FnMut(usize, usize) {
    let mut told = 0;
    move |done, all| {
        let tenth = done * 10 / all.max(1);
        if all > 1000 && tenth > told {
            told = tenth;
            eprintln!("{done} of {all} {what}");
        }
    }
}

/// Says what a segmenter learns from.
fn tell_annotated(task: &SegmentationTask) {
    let told = |found: &Annotated, what: &str| {
        let there = found.pixels.iter().filter(|&&pixels| pixels > 0).count();
        let of = format!("with pixels of {there} classes out of {}", found.pixels.len());
        eprintln!("{} annotated pictures to {what}, {of}", found.pairs.len());
        if !found.skipped.is_empty() {
            eprintln!("left out: {}", found.skipped);
        }
    };
    told(task.train(), "learn from");
    match task.test() {
        Some(test) => told(test, "test by"),
        None => eprintln!("{NO_TEST}"),
    }
}

/// Says what an iLLaMA learns from.
fn tell_pictures(train: &Samples, test: Option<&Samples>) {
    eprintln!("{} pictures of {} classes to learn from", train.samples.len(), train.classes.len());
    if !train.skipped.is_empty() {
        eprintln!("left out: {}", train.skipped);
    }
    match test {
        Some(test) => eprintln!("{} pictures to test by", test.samples.len()),
        None => eprintln!("{NO_TEST}"),
    }
    if let Some(skipped) = test.map(|test| &test.skipped).filter(|skipped| !skipped.is_empty()) {
        eprintln!("left out: {skipped}");
    }
}

/// Says what an adapter learns from.
fn tell_texts(task: &AdapterTask) {
    for (what, kinds) in [("to learn from", task.train()), ("to test by", task.test())] {
        for (name, texts) in AdapterTask::KINDS.iter().zip(kinds) {
            if !texts.is_empty() {
                eprintln!("{} {name} {what}", texts.len());
            }
            if texts.cut > 0 {
                eprintln!("{} of these {name} are too long and were cut", texts.cut);
            }
            if !texts.skipped.is_empty() {
                eprintln!("left out: {}", texts.skipped);
            }
        }
    }
    if task.test().iter().all(viscache::train::adapter::Texts::is_empty) {
        eprintln!("{NO_TEST}");
    }
    eprintln!("{}", task.shown());
}

/// Teaches, and says how it ended.
fn follow<T: Task>(task: &T, recipe: &Recipe, plan: &Plan, args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let Some(out) = args.out.as_ref().filter(|_| !args.dry_run) else {
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(recipe)?)?;
        return Ok(ExitCode::SUCCESS);
    };
    static INTERRUPT: AtomicBool = AtomicBool::new(false);
    // A second one ends it at once; what is written by then is whole.
    ctrlc::set_handler(|| {
        if INTERRUPT.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })
    .context("interrupts cannot be heard")?;
    // What was needed to load it goes back first.
    viscache::allocator::hold();
    let mut screen = Screen::new(args.json);
    let outcome = run(task, plan, out, &mut |news| {
        screen.show(&news);
        !INTERRUPT.load(Ordering::Relaxed)
    })?;
    screen.bar.finish_and_clear();
    match outcome.best {
        Some((best, step)) => {
            eprintln!("best: {best:.4} after step {step}, in {}", out.join("best").display());
        }
        None => eprintln!(
            "{} steps are done; the weights are in the last step-… of {}",
            outcome.step,
            out.display()
        ),
    }
    if outcome.left_out > 0 {
        eprintln!("{} samples could not be used; log.jsonl names them", outcome.left_out);
    }
    if outcome.interrupted {
        eprintln!("interrupted after step {}; the same command goes on from there", outcome.step);
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a recipe, and puts other values in the places of its own: whole tables as well.
fn read(path: &Path, set: &[String]) -> anyhow::Result<Recipe> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the recipe {}", path.display()))?;
    let table = |text: &str| {
        let read = Figment::from(Toml::string(text)).extract::<Map<String, Value>>();
        read.map_err(anyhow::Error::new)
    };
    let mut recipe = table(&text).with_context(|| format!("{} is no TOML", path.display()))?;
    for pair in set {
        let Some((keys, value)) = pair.split_once('=') else { bail!("--set {pair}: it is KEY=VALUE") };
        // A word that is no TOML value is a text.
        let value = table(&format!("value = {value}")).ok().and_then(|mut table| table.remove("value"));
        let value = value.unwrap_or_else(|| pair[keys.len() + 1..].into());
        let mut keys: Vec<&str> = keys.split('.').map(str::trim).collect();
        let Some(last) = keys.pop() else { continue };
        let mut at = &mut recipe;
        for key in keys {
            let inner = at.entry(key).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(inner) = inner else { bail!("--set {pair}: `{key}` is no table") };
            at = inner;
        }
        at.insert(last.to_owned(), value);
    }
    let recipe = Figment::from(Serialized::defaults(recipe)).extract();
    recipe.map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
}

/// What is shown while it goes on.
struct Screen {
    bar: ProgressBar,
    json: bool,
    epoch: usize,
}

impl Screen {
    fn new(json: bool) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        Screen { bar, json, epoch: 1 }
    }

    fn show(&mut self, news: &News<'_>) {
        match news {
            News::Begins { step, steps, epoch } => {
                let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} steps, {msg}, {eta} left");
                self.bar.set_length(*steps as u64);
                self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                self.bar.set_position(*step as u64);
                self.bar.reset_eta();
                self.epoch = (*epoch).max(1);
                if *step > 0 {
                    eprintln!("goes on after step {step} of {steps}");
                }
            }
            News::Step { step, loss, rate, pace } => {
                self.bar.set_position(*step as u64);
                self.bar.set_message(format!("loss {loss:.4}, rate {rate:.2e}, {pace:.0} samples/s"));
                if self.json {
                    self.line(&json!({"step": step, "loss": loss, "rate": rate, "pace": pace}));
                }
            }
            News::Tested { step, measures, average } => {
                let told: Vec<String> =
                    measures.iter().map(|Measure { name, value }| format!("{name} {value:.4}")).collect();
                let of = if *average { ", the average" } else { "" };
                self.bar.suspend(|| {
                    eprintln!("epoch {:.1}{of}: {}", *step as f64 / self.epoch as f64, told.join(", "));
                });
                if self.json {
                    self.line(&json!({"step": step, "average": average, "measures": measures}));
                }
            }
            News::LeftOut(what) => self.bar.suspend(|| {
                for one in *what {
                    eprintln!("left out: {one}");
                }
            }),
        }
    }

    /// Whoever reads them may have gone; the run goes on.
    fn line(&self, value: &Value) {
        let _ = writeln!(std::io::stdout(), "{value}");
    }
}
