//! `viscache classify`: what a classifier takes pictures for.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use viscache::train::data::Place;
use viscache::train::measure::{best, softmax};

use super::flags::{Given, ModelFlags};
use super::labels::{self, Label};
use super::{SOME_BAD, pictures, show};
use crate::app;
use crate::config::Config;

/// Classes named for a picture.
const TOP: u32 = 5;

#[derive(Args)]
pub(super) struct ClassifyArgs {
    /// Picture files.
    #[arg(value_name = "FILE", required = true, help_heading = "Input")]
    pictures: Vec<PathBuf>,
    /// Names of the classes: one a line, or JSON as ImageNet's `{"0": ["n01440764", "tench"], …}`. Without it, classes are numbers.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    labels: Option<PathBuf>,
    /// Classes named for each picture.
    #[arg(long, value_name = "N", default_value_t = TOP, help_heading = "Output")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    #[command(flatten)]
    model: ModelFlags,
    /// Print one JSON object per picture.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl ClassifyArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        Given { model: Some(&self.model), ..Given::default() }
    }
}

/// Prints the best classes of each picture, and what is wrong with those that cannot be judged.
pub(super) fn run(config: &Config, args: &ClassifyArgs) -> anyhow::Result<ExitCode> {
    let encoder = app::classifier(config, None)?;
    let labels = args.labels.as_ref().map(|path| labels::read(path, encoder.classes())).transpose()?;
    let places: Vec<Place> = args
        .pictures
        .iter()
        .map(|path| Place::File { folder: Path::new("").into(), name: path.as_path().into() })
        .collect();
    let mut is_bad = false;
    pictures::judge(&[&encoder], &places.iter().collect::<Vec<_>>(), |place, judged| match judged {
        Ok(logits) => {
            let probabilities = logits.first().map(|logits| softmax(logits)).unwrap_or_default();
            print(place, &best(&probabilities, args.top as usize), labels.as_deref(), args.json)
        }
        Err(problem) => {
            is_bad = true;
            match args.json {
                true => show::print_line(
                    &json!({ "picture": place.to_string(), "error": format!("{problem:#}") }),
                )?,
                false => eprintln!("{problem:#}"),
            }
            Ok(())
        }
    })?;
    Ok(if is_bad { ExitCode::from(SOME_BAD) } else { ExitCode::SUCCESS })
}

fn print(
    place: &Place,
    best: &[(usize, f64)],
    labels: Option<&[Label]>,
    as_json: bool,
) -> anyhow::Result<()> {
    let label = |class: usize| labels.and_then(|labels| labels.get(class));
    if as_json {
        let classes: Vec<_> = best
            .iter()
            .map(|(class, probability)| {
                let mut shown = json!({ "class": class, "probability": probability });
                if let Some(Label { id, name }) = label(*class) {
                    shown["name"] = json!(name);
                    id.iter().for_each(|id| shown["id"] = json!(id));
                }
                shown
            })
            .collect();
        return show::print_line(&json!({ "picture": place.to_string(), "classes": classes }));
    }
    let mut out = std::io::stdout();
    writeln!(out, "{place}")?;
    for (class, probability) in best {
        match label(*class) {
            Some(Label { name, .. }) => writeln!(out, "  {probability:.4}  {name}")?,
            None => writeln!(out, "  {probability:.4}  class {class}")?,
        }
    }
    Ok(())
}
