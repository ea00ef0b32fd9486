//! `evaluate shape-texture`: a classifier on pictures whose shape and texture are of different things.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use viscache::train::data::{Place, Samples};
use viscache::train::measure::{Bias, Cues, Groups, softmax};

use crate::app;
use crate::cli::flags::{Given, ModelFlags};
use crate::cli::pictures::{self, Bad};
use crate::cli::{SOME_BAD, show};
use crate::config::Config;

#[derive(Args)]
pub(super) struct ShapeTextureArgs {
    /// Folder with a folder for each shape, of pictures that are called as `cat10-elephant3.png`: shape, then texture.
    #[arg(value_name = "DIR", help_heading = "Input")]
    pictures: PathBuf,
    /// Which of the model's classes make a cat, an elephant and so on: JSON, as `{"cat": [281, 282], "elephant": [385, 386]}`.
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    groups: PathBuf,
    #[command(flatten)]
    model: ModelFlags,
    /// Print one JSON object.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl ShapeTextureArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        Given { model: Some(&self.model), ..Given::default() }
    }
}

/// A picture with the groups of its shape and its texture.
struct Conflict<'a> {
    place: &'a Place,
    shape: usize,
    texture: usize,
}

pub(super) fn run(config: &Config, args: &ShapeTextureArgs) -> anyhow::Result<ExitCode> {
    let encoder = app::classifier(config, None)?;
    let groups = groups(&args.groups, encoder.classes())?;
    let found = Samples::of_folder(&args.pictures, Some(groups.names()))
        .with_context(|| format!("{} cannot be measured on", args.pictures.display()))?;
    if !found.skipped.is_empty() {
        eprintln!("left out: {}", found.skipped);
    }
    let (mut conflicts, mut agreeing, mut unnamed) = (Vec::new(), 0, Vec::new());
    for sample in &found.samples {
        match conflict(&sample.place, sample.target.class(), &groups) {
            None => unnamed.push(sample.place.to_string()),
            Some(conflict) if conflict.shape == conflict.texture => agreeing += 1,
            Some(conflict) => conflicts.push(conflict),
        }
    }
    if let Some(first) = unnamed.first() {
        eprintln!(
            "left out: {} pictures whose names are not as `cat10-elephant3.png`, of groups there are ({first}, …)",
            unnamed.len()
        );
    }
    if conflicts.is_empty() {
        bail!("{} has no picture whose shape and texture are of different groups", args.pictures.display());
    }
    let (mut biases, mut bad) = (vec![Bias::default(); groups.names().len()], Bad::default());
    let places: Vec<&Place> = conflicts.iter().map(|conflict| conflict.place).collect();
    let mut expected = conflicts.iter();
    pictures::judge(&[&encoder], &places, |_, judged| {
        let Conflict { shape, texture, .. } = *expected.next().context("more results than pictures")?;
        match judged {
            Ok(logits) => {
                let probabilities = logits.first().map(|logits| softmax(logits)).unwrap_or_default();
                biases[shape].add(groups.decide(&probabilities), shape, texture);
            }
            Err(problem) => bad.add(&problem),
        }
        Ok(())
    })?;
    bad.say();
    if bad.count as usize == places.len() {
        bail!("none of the {} pictures of {} could be judged", places.len(), args.pictures.display());
    }
    let shapes: Vec<(&str, Bias)> = groups
        .names()
        .iter()
        .zip(biases)
        .filter(|(_, bias)| *bias != Bias::default())
        .map(|(name, bias)| (name.as_str(), bias))
        .collect();
    let all = shapes.iter().fold(Bias::default(), |all, (_, bias)| all.with(*bias));
    if args.json {
        let shown = |bias: &Bias| {
            let Bias { shape, texture, neither } = bias;
            json!({ "shape": shape, "texture": texture, "neither": neither, "shape_bias": bias.share().value() })
        };
        let by_shape: serde_json::Map<_, _> =
            shapes.iter().map(|(name, bias)| ((*name).to_owned(), shown(bias))).collect();
        show::print_line(&json!({
            "model": encoder.origin().model,
            "pictures": all.shape + all.texture + all.neither,
            "agreeing": agreeing,
            "unnamed": unnamed.len(),
            "bad": bad.count,
            "all": shown(&all),
            "shapes": by_shape,
        }))?;
    } else {
        print(&encoder.origin().model, agreeing, &shapes, &all)?;
    }
    Ok(if bad.count > 0 { ExitCode::from(SOME_BAD) } else { ExitCode::SUCCESS })
}

fn groups(path: &Path, classes: usize) -> anyhow::Result<Groups> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let unusable = || format!("the groups of classes in {}", path.display());
    let groups: BTreeMap<String, Vec<usize>> = serde_json::from_str(&text).with_context(unusable)?;
    Groups::new(groups, classes).with_context(unusable)
}

/// What a picture's name says; nothing if it says nothing, or another shape than its folder.
fn conflict<'a>(place: &'a Place, folder: Option<u32>, groups: &Groups) -> Option<Conflict<'a>> {
    let Place::File { name, .. } = place else { return None };
    let cues = Cues::of_name(name.to_str()?)?;
    let (shape, texture) = (groups.find(cues.shape)?, groups.find(cues.texture)?);
    (folder? as usize == shape).then_some(Conflict { place, shape, texture })
}

fn print(model: &str, agreeing: usize, shapes: &[(&str, Bias)], all: &Bias) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    let count = all.shape + all.texture + all.neither;
    writeln!(
        out,
        "{model}: {count} pictures of conflicting cues ({agreeing} whose cues agree are left out)"
    )?;
    writeln!(
        out,
        "{:<14} {:>7} {:>8} {:>8} {:>11}",
        "shape of", "shape", "texture", "neither", "shape bias"
    )?;
    for (name, bias) in shapes.iter().copied().chain([("all", *all)]) {
        let Bias { shape, texture, neither } = bias;
        let share = bias.share().value().map_or_else(|| "–".into(), |share| format!("{share:.3}"));
        writeln!(out, "{name:<14} {shape:>7} {texture:>8} {neither:>8} {share:>11}")?;
    }
    Ok(())
}
