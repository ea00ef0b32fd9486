//! What a run writes down of itself: a line of JSON for each step and each measurement, and the same for TensorBoard.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Stop;
use super::events::Events;
use super::task::Measure;

const NAME: &str = "log.jsonl";

/// The log of a run that is going on.
pub struct Journal {
    file: File,
    path: PathBuf,
    events: Events,
}

impl Journal {
    /// Goes on from a step: what is written of later ones is taken away, since they come again.
    ///
    /// # Errors
    /// [`Stop::File`].
    pub fn open(folder: &Path, step: usize) -> Result<Self, Stop> {
        let path = folder.join(NAME);
        let before = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Stop::file(&path)(e)),
        };
        let stays = |line: &&str| {
            let line: Option<Value> = serde_json::from_str(line).ok();
            line.and_then(|line| line["step"].as_u64()).is_some_and(|at| at <= step as u64)
        };
        let kept: String = before.lines().filter(stays).flat_map(|line| [line, "\n"]).collect();
        let mut file = File::create(&path).map_err(Stop::file(&path))?;
        file.write_all(kept.as_bytes()).map_err(Stop::file(&path))?;
        Ok(Journal { file, path, events: Events::begin(folder, step)? })
    }

    /// Notes what a step did.
    ///
    /// # Errors
    /// [`Stop::File`].
    pub fn step(&mut self, step: usize, numbers: &[(&str, f64)]) -> Result<(), Stop> {
        let named: Vec<(String, f64)> =
            numbers.iter().map(|(name, value)| (format!("train/{name}"), *value)).collect();
        let named: Vec<(&str, f64)> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        self.events.add(step, &named)?;
        self.line(step, numbers.iter().map(|&(name, value)| (name, json!(value))))
    }

    /// Notes what was measured after a step.
    ///
    /// # Errors
    /// [`Stop::File`].
    pub fn measures(&mut self, step: usize, measures: &[Measure], average: bool) -> Result<(), Stop> {
        let group = if average { "test of the average" } else { "test" };
        let named: Vec<(String, f64)> =
            measures.iter().map(|measure| (format!("{group}/{}", measure.name), measure.value)).collect();
        let named: Vec<(&str, f64)> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        self.events.add(step, &named)?;
        let measures = measures.iter().map(|measure| (measure.name.as_str(), json!(measure.value)));
        self.line(step, std::iter::once(("average", json!(average))).chain(measures))
    }

    /// Notes what could not be used.
    ///
    /// # Errors
    /// [`Stop::File`].
    pub fn spoiled(&mut self, step: usize, what: &[String]) -> Result<(), Stop> {
        self.line(step, std::iter::once(("left_out", json!(what))))
    }

    fn line<'a>(&mut self, step: usize, values: impl Iterator<Item = (&'a str, Value)>) -> Result<(), Stop> {
        let mut line = Map::from_iter([("step".to_owned(), json!(step))]);
        line.extend(values.map(|(name, value)| (name.to_owned(), value)));
        writeln!(self.file, "{}", Value::Object(line)).map_err(Stop::file(&self.path))
    }
}
