//! `viscache segment`: what the pixels of pictures show.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use rayon::prelude::*;
use serde_json::json;
use viscache::media::{LabelMap, Limits, Orientation};
use viscache::models::Placement;
use viscache::models::segmenter::{self, Segmenter};
use viscache::models::weights::Weights;
use viscache::train::data::Place;

use super::flags::{Given, ModelFlags};
use super::{SOME_BAD, labels, show};
use crate::config::Config;

/// Classes named for a picture.
const TOP: usize = 5;

#[derive(Args)]
pub(super) struct SegmentArgs {
    /// Picture files.
    #[arg(value_name = "FILE", required = true, help_heading = "Input")]
    pictures: Vec<PathBuf>,
    /// Folder for the maps: a grey PNG for each picture, in its size and by its name, whose values are classes from 1 on.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    /// Names of the classes: one a line. Without it, those beside the weights (`classes.txt`), or numbers.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    labels: Option<PathBuf>,
    #[command(flatten)]
    model: ModelFlags,
    /// Print one JSON object per picture.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl SegmentArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        Given { model: Some(&self.model), ..Given::default() }
    }
}

/// A segmenter, as the settings name it.
pub(super) struct Opened {
    pub(super) model: Segmenter,
    /// Of its classes, in their order.
    pub(super) names: Vec<String>,
    pub(super) limits: Limits,
    /// Each works on a picture of its own.
    pub(super) threads: rayon::ThreadPool,
}

/// Opens the segmenter that the settings name.
///
/// * `names`: a file of names.
///
/// # Errors
/// Settings that name none; as [`Segmenter::load`].
pub(super) fn open(config: &Config, names: Option<&Path>) -> anyhow::Result<Opened> {
    let Some(path) = &config.weights else {
        bail!("name a segmenter that training left, as in `--weights runs/ade/best/weights.safetensors`");
    };
    let beside = |name: &str| path.with_file_name(name);
    let sizes = config.sizes.clone().unwrap_or_else(|| beside("config.json"));
    let json = std::fs::read_to_string(&sizes)
        .with_context(|| format!("cannot read {}; --sizes names the sizes of the model", sizes.display()))?;
    let sizes = segmenter::Config::from_json(&json).with_context(|| sizes.display().to_string())?;
    let placement = Placement::open(config.device, config.encoder_dtype)?;
    let model =
        Segmenter::load(&Weights::open(path)?, &sizes, &placement).context("the model cannot be loaded")?;
    let classes = sizes.classes();
    let found =
        names.map(Path::to_owned).or_else(|| Some(beside("classes.txt")).filter(|path| path.is_file()));
    let names = match found {
        Some(path) => labels::read(&path, classes)?.into_iter().map(|label| label.name).collect(),
        None => (1..=classes).map(|label| label.to_string()).collect(),
    };
    let threads = rayon::ThreadPoolBuilder::new().num_threads(config.threads()).build()?;
    Ok(Opened { model, names, limits: config.limits().media.image, threads })
}

/// Writes a map of each picture, and says what covers most of it.
pub(super) fn run(config: &Config, args: &SegmentArgs) -> anyhow::Result<ExitCode> {
    let opened = open(config, args.labels.as_deref())?;
    let mut outputs = BTreeMap::new();
    for picture in &args.pictures {
        let out = args.out.join(picture.file_stem().unwrap_or_default()).with_extension("png");
        if let Some(first) = outputs.insert(out.clone(), picture) {
            let (first, second, out) = (first.display(), picture.display(), out.display());
            bail!("{first} and {second} would both become {out}");
        }
        let same = |path: &Path| path.canonicalize().ok();
        if same(&out).is_some_and(|out| Some(out) == same(picture)) {
            bail!("the map of {} would take its place; name another folder by --out", picture.display());
        }
    }
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let orientation = config.orientation.unwrap_or(Orientation::Apply);
    let one = |path: &PathBuf| -> anyhow::Result<LabelMap> {
        let place = Place::File { folder: Path::new("").into(), name: path.as_path().into() };
        let bytes = place.read(opened.limits.max_bytes as u64)?;
        let picture = viscache::media::image::decode_within(&bytes, orientation, &opened.limits)
            .with_context(|| place.to_string())?;
        Ok(opened.model.label(&picture, [picture.width, picture.height])?)
    };
    let (mut is_bad, mut outputs) = (false, args.pictures.iter());
    for some in args.pictures.chunks(opened.threads.current_num_threads().max(1)) {
        let maps: Vec<_> = opened.threads.install(|| some.par_iter().map(one).collect());
        for map in maps {
            let picture = outputs.next().context("more maps than pictures")?;
            match map {
                Ok(map) => {
                    let out = args.out.join(picture.file_stem().unwrap_or_default()).with_extension("png");
                    std::fs::write(&out, map.png()?)
                        .with_context(|| format!("cannot write {}", out.display()))?;
                    print(picture, &out, &map, &opened.names, args.json)?;
                }
                Err(problem) => {
                    is_bad = true;
                    match args.json {
                        true => {
                            show::print_line(&json!({ "picture": picture, "error": format!("{problem:#}") }))?
                        }
                        false => eprintln!("{problem:#}"),
                    }
                }
            }
        }
    }
    Ok(if is_bad { ExitCode::from(SOME_BAD) } else { ExitCode::SUCCESS })
}

fn print(picture: &Path, out: &Path, map: &LabelMap, names: &[String], as_json: bool) -> anyhow::Result<()> {
    let counts = map.counts();
    let mut classes: Vec<(usize, u64)> =
        (1..counts.len()).map(|label| (label, counts[label])).filter(|(_, count)| *count > 0).collect();
    classes.sort_by_key(|&(label, count)| (std::cmp::Reverse(count), label));
    let share = |count: u64| count as f64 / map.labels.len().max(1) as f64;
    let name = |label: usize| names.get(label - 1).map_or("", String::as_str);
    if as_json {
        let classes: Vec<_> = classes
            .iter()
            .map(|&(label, count)| json!({ "label": label, "name": name(label), "share": share(count) }))
            .collect();
        return show::print_line(&json!({ "picture": picture, "map": out, "classes": classes }));
    }
    let mut to = std::io::stdout();
    writeln!(to, "{} → {}", picture.display(), out.display())?;
    for &(label, count) in classes.iter().take(TOP) {
        writeln!(to, "  {:.4}  {}", share(count), name(label))?;
    }
    Ok(())
}
