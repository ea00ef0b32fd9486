//! A run on disk: everything that going on takes, bit for bit.
//!
//! ```text
//! step-000123.part/ ─ files, each synced ─► folder synced ─► renamed to step-000123/ ─► parent synced      a crash leaves a `.part`
//!     weights.safetensors     what learns
//!     moments.safetensors     NAME.first, NAME.second of the optimiser; how often each was moved is in run.json
//!     average.safetensors     the moving average, if there is one
//!     run.json                steps done, place in the samples, best measure, the recipe, digests of the files above
//!     …                       what makes it a model (sizes, classes)
//! best/                       a copy of the best one's weights and model files
//! ```
//!
//! A run that is begun again takes the last whole one. One whose files do not have their digests is refused by name, never skipped: a
//! disk that changes bytes is not to be trusted with the next.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Stop;
use super::data::Order;
use crate::models::learning::adamw::Moments;
use crate::models::learning::{Values, read, write, write_all};
use crate::models::weights::Weights;

const WEIGHTS: &str = "weights.safetensors";
const MOMENTS: &str = "moments.safetensors";
const AVERAGE: &str = "average.safetensors";
const ABOUT: &str = "run.json";
const BEST: &str = "best";
const UNFINISHED: &str = ".part";
const VERSION: u32 = 1;

/// A run between two steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// What learns.
    pub weights: Values,
    /// What the optimiser remembers.
    pub moments: BTreeMap<String, Moments>,
    /// The moving average, if there is one.
    pub average: Option<Values>,
    /// The rest.
    pub about: About,
}

/// What a checkpoint says beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Of the form of a checkpoint.
    pub version: u32,
    /// Iterations that are done.
    pub step: usize,
    /// Place in the samples.
    pub order: Order,
    /// The best measure so far, and the step that had it.
    pub best: Option<(f64, usize)>,
    /// The recipe, as it was read.
    pub recipe: serde_json::Value,
    /// What the weights hang on beside the recipe: data and threads.
    pub machine: serde_json::Value,
    /// How often each tensor was moved.
    #[serde(default)]
    pub moved: BTreeMap<String, u64>,
    /// Digests of the files.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

impl About {
    /// Of a run that goes on in this form.
    pub fn new(recipe: serde_json::Value, machine: serde_json::Value, seed: u64) -> Self {
        About {
            version: VERSION,
            step: 0,
            order: Order::new(seed),
            best: None,
            recipe,
            machine,
            moved: BTreeMap::new(),
            files: BTreeMap::new(),
        }
    }
}

/// The folder of a run.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it, and takes away what a crash left half-written.
    ///
    /// # Errors
    /// [`Stop::File`].
    pub fn open(path: &Path) -> Result<Self, Stop> {
        fs::create_dir_all(path).map_err(Stop::file(path))?;
        // The best before stays until the new one is there.
        let (best, before) = (path.join(BEST), path.join(format!("{BEST}.old{UNFINISHED}")));
        if before.exists() && !best.exists() {
            fs::rename(&before, &best).map_err(Stop::file(&before))?;
        }
        for (name, path) in names(path)? {
            if name.ends_with(UNFINISHED) {
                fs::remove_dir_all(&path).map_err(Stop::file(&path))?;
            }
        }
        Ok(Folder(path.to_owned()))
    }

    /// The last whole checkpoint.
    ///
    /// # Errors
    /// [`Stop::Checkpoint`] naming what is damaged, [`Stop::File`].
    pub fn last(&self) -> Result<Option<Saved>, Stop> {
        let Some((_, path)) = self.steps()?.pop() else { return Ok(None) };
        let damaged = |why: String| Stop::Checkpoint { path: path.clone(), why };
        let json = fs::read_to_string(path.join(ABOUT)).map_err(Stop::file(&path.join(ABOUT)))?;
        let about: About = serde_json::from_str(&json).map_err(|e| damaged(format!("{ABOUT}: {e}")))?;
        if about.version != VERSION {
            return Err(damaged(format!("its version is {}, this program reads {VERSION}", about.version)));
        }
        for (name, digest) in &about.files {
            let bytes = fs::read(path.join(name)).map_err(Stop::file(&path.join(name)))?;
            if blake3::hash(&bytes).to_hex().as_str() != digest {
                return Err(damaged(format!(
                    "{name} is not what was written; take this folder away to go on from the one before"
                )));
            }
        }
        let values = |name: &str| Ok::<_, Stop>(read(&Weights::open(&path.join(name))?)?);
        let average = about.files.contains_key(AVERAGE).then(|| values(AVERAGE)).transpose()?;
        let (weights, mut moments) = (values(WEIGHTS)?, values(MOMENTS)?);
        let mut take = |name: &str, part: &str| {
            let values = moments.remove(&format!("{name}.{part}")).map(|(_, values)| values);
            values.ok_or_else(|| damaged(format!("{MOMENTS} lacks `{name}.{part}`")))
        };
        let moments = about.moved.iter().map(|(name, &count)| {
            let (first, second) = (take(name, "first")?, take(name, "second")?);
            Ok::<_, Stop>((name.clone(), Moments { count, first, second }))
        });
        let moments = moments.collect::<Result<_, _>>()?;
        Ok(Some(Saved { weights, moments, average, about }))
    }

    /// Writes a checkpoint, and takes away old ones.
    ///
    /// * `keep`: how many stay. `describe`: writes what makes it a model.
    ///
    /// # Errors
    /// [`Stop::File`]; then the checkpoints before are as they were.
    pub fn save(
        &self,
        saved: &Saved,
        keep: usize,
        describe: impl Fn(&Path) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let path = self.0.join(format!("step-{:06}", saved.about.step));
        let shape = |name: &str| saved.weights.get(name).map(|(shape, _)| shape.clone());
        let moments = saved.moments.iter().flat_map(|(name, Moments { first, second, .. })| {
            let shape = shape(name).unwrap_or_else(|| vec![first.len()]);
            [("first", first), ("second", second)]
                .map(|(part, values)| (format!("{name}.{part}"), (shape.clone(), values.clone())))
        });
        let moments: Values = moments.collect();
        let mut tensors = vec![(WEIGHTS, &saved.weights), (MOMENTS, &moments)];
        tensors.extend(saved.average.as_ref().map(|average| (AVERAGE, average)));
        whole(&path, |folder| {
            let mut about = About { files: BTreeMap::new(), ..saved.about.clone() };
            about.moved = saved.moments.iter().map(|(name, moments)| (name.clone(), moments.count)).collect();
            for (name, values) in tensors {
                let bytes = write(values, HashMap::new())?;
                about.files.insert(name.to_owned(), blake3::hash(&bytes).to_hex().to_string());
                put(&folder.join(name), &bytes)?;
            }
            describe(folder)?;
            let json = serde_json::to_vec_pretty(&about)
                .map_err(|e| Stop::Checkpoint { path: folder.to_owned(), why: e.to_string() })?;
            put(&folder.join(ABOUT), &json)
        })?;
        let mut steps = self.steps()?;
        steps.truncate(steps.len().saturating_sub(keep.max(1)));
        for (_, old) in steps {
            fs::remove_dir_all(&old).map_err(Stop::file(&old))?;
        }
        Ok(())
    }

    /// Writes the best weights so far as a model.
    ///
    /// * `parts`: its tensors, of names of their own each.
    ///
    /// # Errors
    /// [`Stop::File`]; then the best before is as it was.
    pub fn save_best(
        &self,
        parts: &[&Values],
        about: &serde_json::Value,
        describe: impl Fn(&Path) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        whole(&self.0.join(BEST), |folder| {
            put(&folder.join(WEIGHTS), &write_all(parts, HashMap::new())?)?;
            put(&folder.join("measures.json"), about.to_string().as_bytes())?;
            describe(folder)
        })
    }

    /// Whole checkpoints, the last at the end.
    fn steps(&self) -> Result<Vec<(usize, PathBuf)>, Stop> {
        let mut steps: Vec<(usize, PathBuf)> = names(&self.0)?
            .into_iter()
            .filter_map(|(name, path)| Some((name.strip_prefix("step-")?.parse().ok()?, path)))
            .collect();
        steps.sort();
        Ok(steps)
    }
}

/// Writes a folder that is either there as a whole or not at all.
fn whole(path: &Path, fill: impl FnOnce(&Path) -> Result<(), Stop>) -> Result<(), Stop> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (aside, old) = (
        path.with_file_name(format!("{name}{UNFINISHED}")),
        path.with_file_name(format!("{name}.old{UNFINISHED}")),
    );
    for rest in [&aside, &old] {
        if rest.exists() {
            fs::remove_dir_all(rest).map_err(Stop::file(rest))?;
        }
    }
    fs::create_dir_all(&aside).map_err(Stop::file(&aside))?;
    fill(&aside)?;
    sync(&aside)?;
    if path.exists() {
        fs::rename(path, &old).map_err(Stop::file(path))?;
    }
    fs::rename(&aside, path).map_err(Stop::file(path))?;
    if let Some(parent) = path.parent() {
        sync(parent)?;
    }
    if old.exists() {
        fs::remove_dir_all(&old).map_err(Stop::file(&old))?;
    }
    Ok(())
}

/// Writes a file, on disk when this returns.
pub(super) fn put(path: &Path, bytes: &[u8]) -> Result<(), Stop> {
    let mut file = File::create(path).map_err(Stop::file(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Stop::file(path))
}

fn sync(folder: &Path) -> Result<(), Stop> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Stop::file(folder))
}

fn names(folder: &Path) -> Result<Vec<(String, PathBuf)>, Stop> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Stop::file(folder))? {
        let entry = entry.map_err(Stop::file(folder))?;
        names.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(names)
}
