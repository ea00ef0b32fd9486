//! `evaluate segmentation`: a segmenter on pictures whose pixels have labels.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use rayon::prelude::*;
use serde_json::{Value, json};
use viscache::train::data::{Annotated, Pair, Split};
use viscache::train::measure::Confusion;

use super::iou;
use crate::cli::flags::{Given, ModelFlags};
use crate::cli::pictures::Bad;
use crate::cli::{SOME_BAD, segment, show};
use crate::config::Config;

/// Between two words about how far it is.
const SILENCE: Duration = Duration::from_secs(20);

#[derive(Args)]
pub(super) struct SegmentationArgs {
    /// Folder in ADE20K's layout: `images/validation/*.jpg` and `annotations/validation/*.png`.
    #[arg(value_name = "DIR", help_heading = "Input")]
    folder: PathBuf,
    /// Names of the classes: one a line. Without it, those beside the weights (`classes.txt`), or numbers.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    labels: Option<PathBuf>,
    /// Folder for the plot of each class's IoU (`iou.svg`) and the figures (`segmentation.json`).
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    model: ModelFlags,
    /// Print one JSON object.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl SegmentationArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        Given { model: Some(&self.model), ..Given::default() }
    }
}

pub(super) fn run(config: &Config, args: &SegmentationArgs) -> anyhow::Result<ExitCode> {
    let opened = segment::open(config, args.labels.as_deref())?;
    let classes = opened.names.len();
    let list = || Annotated::of_folder(&args.folder, Split::Test, classes, &opened.limits);
    let found = opened.threads.install(list);
    let found = found.with_context(|| format!("{} cannot be measured on", args.folder.display()))?;
    if !found.skipped.is_empty() {
        eprintln!("left out: {}", found.skipped);
    }
    // Where a folder becomes one of the results, it is made before hours of work.
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    }
    let one = |pair: &Pair| -> anyhow::Result<Confusion> {
        let (picture, truth) = pair.read(&opened.limits).map_err(|why| anyhow!(why))?;
        let named = opened.model.label(&picture, [truth.width, truth.height])?;
        let mut confusion = Confusion::new(classes);
        confusion.add(&truth.labels, &named.labels);
        Ok(confusion)
    };
    let (mut confusion, mut bad) = (Confusion::new(classes), Bad::default());
    let (mut said, mut done) = (Instant::now(), 0);
    for some in found.pairs.chunks(opened.threads.current_num_threads().max(1)) {
        let parts: Vec<_> = opened.threads.install(|| some.par_iter().map(one).collect());
        for part in parts {
            match part {
                Ok(part) => confusion.join(&part),
                Err(problem) => bad.add(&problem),
            }
        }
        done += some.len();
        if done < found.pairs.len() && said.elapsed() > SILENCE {
            eprintln!("{done} of {} pictures", found.pairs.len());
            said = Instant::now();
        }
    }
    bad.say();
    let count = found.pairs.len() as u64 - bad.count;
    if confusion.pixels() == 0 {
        bail!("none of the {} pictures of {} could be judged", found.pairs.len(), args.folder.display());
    }
    let figures = figures(&confusion, &opened.names, count, bad.count);
    if let Some(out) = &args.out {
        let write = |name: &str, text: String| {
            let path = out.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("iou.svg", iou::plot(&format!("{count} pictures"), &confusion, &opened.names)?)?;
        write("segmentation.json", format!("{figures:#}\n"))?;
    }
    match args.json {
        true => show::print_line(&figures)?,
        false => print(&confusion, &opened.names, count)?,
    }
    Ok(if bad.count > 0 { ExitCode::from(SOME_BAD) } else { ExitCode::SUCCESS })
}

fn figures(confusion: &Confusion, names: &[String], pictures: u64, bad: u64) -> Value {
    let of_class = |(class, name): (usize, &String)| {
        json!({
            "label": class + 1,
            "name": name,
            "pixels": confusion.there(class),
            "iou": confusion.iou(class),
            "accuracy": confusion.accuracy(class),
        })
    };
    json!({
        "pictures": pictures,
        "bad": bad,
        "pixels": confusion.pixels(),
        "mean_iou": confusion.mean_iou(),
        "mean_accuracy": confusion.mean_accuracy(),
        "pixel_accuracy": confusion.pixel_accuracy(),
        "classes": names.iter().enumerate().map(of_class).collect::<Vec<_>>(),
    })
}

fn print(confusion: &Confusion, names: &[String], pictures: u64) -> anyhow::Result<()> {
    let cell = |value: Option<f64>| value.map_or_else(|| "–".into(), |value| format!("{value:.4}"));
    let mut out = std::io::stdout();
    writeln!(out, "{pictures} pictures of {} classes", names.len())?;
    writeln!(out, "mIoU {}", cell(confusion.mean_iou()))?;
    writeln!(out, "mean accuracy {}", cell(confusion.mean_accuracy()))?;
    writeln!(out, "pixel accuracy {}", cell(confusion.pixel_accuracy()))?;
    writeln!(out, "{:>5} {:<24} {:>8} {:>8} {:>8}", "label", "class", "pixels", "IoU", "accuracy")?;
    for (class, name) in names.iter().enumerate() {
        let share = cell(Some(confusion.there(class) as f64 / confusion.pixels() as f64));
        let [iou, accuracy] = [confusion.iou(class), confusion.accuracy(class)].map(cell);
        writeln!(out, "{:>5} {name:<24} {share:>8} {iou:>8} {accuracy:>8}", class + 1)?;
    }
    Ok(())
}
