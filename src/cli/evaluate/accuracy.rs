//! `evaluate accuracy`: a classifier on pictures whose classes are known.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use viscache::models::encoder::Encoder;
use viscache::train::data::{Place, Samples, Split};
use viscache::train::measure::{Calibration, Share, best, place, softmax};
use viscache::types::WeightDtype;

use super::reliability;
use crate::app;
use crate::cli::flags::{Given, ModelFlags};
use crate::cli::pictures::{self, Bad};
use crate::cli::{SOME_BAD, labels, show};
use crate::config::Config;

/// The wider of the two tops.
const WIDE: usize = 5;
/// What tells a folder of CIFAR-10's from one of folders.
const CIFAR: &str = "test_batch.bin";

#[derive(Args)]
pub(super) struct AccuracyArgs {
    /// Folder with a folder of pictures for each class, as ImageNet's `val`; or CIFAR-10's, with `test_batch.bin`.
    #[arg(value_name = "DIR", help_heading = "Input")]
    pictures: PathBuf,
    /// All classes of the model in their order, as folders are called: one a line, or JSON as ImageNet's. Without it, the sorted
    /// folders are all of them.
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    labels: Option<PathBuf>,
    /// Measure it in f32 and in 8 bits (q8_0), and how often both say the same.
    #[arg(long)]
    eight_bits: bool,
    /// Folder for the reliability plot (`reliability.svg`) and the figures (`accuracy.json`).
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    model: ModelFlags,
    /// Print one JSON object.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl AccuracyArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        Given { model: Some(&self.model), ..Given::default() }
    }
}

/// What is measured of a classifier in some numbers.
struct Measured {
    numbers: String,
    first: Share,
    wide: Share,
    calibration: Calibration,
}

pub(super) fn run(config: &Config, args: &AccuracyArgs) -> anyhow::Result<ExitCode> {
    let encoders = match args.eight_bits {
        false => vec![app::classifier(config, None)?],
        true => vec![
            app::classifier(config, Some(WeightDtype::F32))?,
            app::classifier(config, Some(WeightDtype::Q8_0))?,
        ],
    };
    let Some(encoder) = encoders.first() else { bail!("there is no classifier") };
    let found = samples(&args.pictures, args.labels.as_deref(), encoder.classes())?;
    if !found.skipped.is_empty() {
        eprintln!("left out: {}", found.skipped);
    }
    // Where a folder becomes one of the results, it is made before hours of work.
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    }
    let mut measured: Vec<Measured> = encoders.iter().map(Measured::of).collect();
    let (mut same, mut bad) = (Share::default(), Bad::default());
    let known: Vec<(&Place, usize)> = found
        .samples
        .iter()
        .filter_map(|sample| Some((&sample.place, sample.target.class()? as usize)))
        .collect();
    let places: Vec<&Place> = known.iter().map(|(place, _)| *place).collect();
    let mut classes = known.iter().map(|(_, class)| *class);
    let shown: Vec<&Encoder> = encoders.iter().collect();
    pictures::judge(&shown, &places, |_, judged| {
        let class = classes.next().context("more results than pictures")?;
        match judged {
            Ok(logits) => {
                let tops: Vec<Option<usize>> =
                    measured.iter_mut().zip(&logits).map(|(m, logits)| m.take(logits, class)).collect();
                if let [full, rounded] = tops[..] {
                    same.add(full == rounded);
                }
            }
            Err(problem) => bad.add(&problem),
        }
        Ok(())
    })?;
    bad.say();
    let count = places.len() as u64 - bad.count;
    if count == 0 {
        bail!("none of the {} pictures of {} could be judged", places.len(), args.pictures.display());
    }
    let figures = json!({
        "model": encoder.origin().model,
        "pictures": count,
        "classes": encoder.classes(),
        "bad": bad.count,
        "measured": measured.iter().map(|m| m.as_json(encoder.classes())).collect::<Vec<_>>(),
        "same": same.value(),
    });
    if let Some(out) = &args.out {
        let title = format!("{}, {count} pictures", encoder.origin().model);
        for (i, measured) in measured.iter().enumerate() {
            let name = if i == 0 {
                "reliability.svg".into()
            } else {
                format!("reliability-{}.svg", measured.numbers)
            };
            let title = format!("{title}, {}", measured.numbers);
            write(&out.join(name), reliability::plot(&title, &measured.calibration)?.as_bytes())?;
        }
        write(&out.join("accuracy.json"), format!("{figures:#}\n").as_bytes())?;
    }
    match args.json {
        true => show::print_line(&figures)?,
        false => print(encoder, count, &measured, same)?,
    }
    Ok(if bad.count > 0 { ExitCode::from(SOME_BAD) } else { ExitCode::SUCCESS })
}

/// The pictures of a folder, with the classes that the model has.
fn samples(folder: &Path, labels: Option<&Path>, classes: usize) -> anyhow::Result<Samples> {
    let unusable = || format!("{} cannot be measured on", folder.display());
    let is_cifar = folder.join(CIFAR).is_file();
    let found = match labels {
        _ if is_cifar => Samples::of_cifar(folder, Split::Test).with_context(unusable)?,
        None => Samples::of_folder(folder, None).with_context(unusable)?,
        Some(labels) => {
            let known = labels::folders(&labels::read(labels, classes)?, folder)?;
            Samples::of_folder(folder, Some(&known)).with_context(unusable)?
        }
    };
    if found.classes.len() != classes {
        let cure = if is_cifar { "" } else { "; name all of the model's in their order by --labels" };
        bail!("{} has {} classes, and the model has {classes}{cure}", folder.display(), found.classes.len());
    }
    Ok(found)
}

impl Measured {
    fn of(encoder: &Encoder) -> Self {
        let numbers = encoder.origin().encoder_dtype.map_or_else(String::new, |numbers| numbers.to_string());
        let (first, wide, calibration) = Default::default();
        Measured { numbers, first, wide, calibration }
    }

    /// Takes a picture of a class; says what the classifier took it for.
    fn take(&mut self, logits: &[f32], class: usize) -> Option<usize> {
        let probabilities = softmax(logits);
        let at = place(&probabilities, class);
        let top = best(&probabilities, 1);
        let &(best, confidence) = top.first()?;
        self.first.add(at == 0);
        self.wide.add(at < WIDE);
        self.calibration.add(confidence, at == 0);
        Some(best)
    }

    fn as_json(&self, classes: usize) -> Value {
        let bins: Vec<Value> = self
            .calibration
            .bins()
            .iter()
            .map(|bin| {
                let (confidence, accuracy) = bin.means().unzip();
                json!({ "pictures": bin.count, "confidence": confidence, "accuracy": accuracy })
            })
            .collect();
        json!({
            "numbers": self.numbers,
            "top_1": self.first.value(),
            "top_5": self.wide.value().filter(|_| classes > WIDE),
            "ece": self.calibration.error(),
            "bins": bins,
        })
    }
}

fn print(encoder: &Encoder, count: u64, measured: &[Measured], same: Share) -> anyhow::Result<()> {
    let (mut out, classes) = (std::io::stdout(), encoder.classes());
    let cell = |value: Option<f64>| value.map_or_else(|| "–".into(), |value| format!("{value:.4}"));
    writeln!(out, "{}: {count} pictures of {classes} classes", encoder.origin().model)?;
    writeln!(out, "{:<8} {:>8} {:>8} {:>8}", "numbers", "top-1", "top-5", "ECE")?;
    for Measured { numbers, first, wide, calibration } in measured {
        let wide = wide.value().filter(|_| classes > WIDE);
        let [first, wide, error] = [first.value(), wide, calibration.error()].map(cell);
        writeln!(out, "{numbers:<8} {first:>8} {wide:>8} {error:>8}")?;
    }
    if let Some(same) = same.value() {
        writeln!(out, "the same best class in both: {same:.4}")?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
