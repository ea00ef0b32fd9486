//! What came of every row, as a table: a line for each setting, and one without the cache.
//!
//! It is written as rows are measured, so that of a run that was interrupted there is what it came to.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::grid::Setting;
use super::list::Row;
use super::measure::Measured;

/// The file that it is.
pub(super) const FILE: &str = "results.csv";

/// A table that grows.
pub(super) struct Results {
    table: csv::Writer<File>,
    path: PathBuf,
}

impl Results {
    /// Begins the table in a folder that is there.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(super) fn begin(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(FILE);
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut results = Results { table: csv::Writer::from_writer(file), path };
        let columns = [
            "line",
            "kind",
            "input",
            "question",
            "cache",
            "top_k",
            "temperature",
            "weight",
            "answer",
            "right",
            "log_likelihood",
        ];
        results.write(columns)?;
        Ok(results)
    }

    /// Adds a row's lines.
    ///
    /// * `question`: what it was asked.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(super) fn add(
        &mut self,
        row: &Row,
        question: &str,
        measured: &Measured,
        settings: &[Setting],
    ) -> anyhow::Result<()> {
        let settings = std::iter::once(None).chain(settings.iter().map(Some));
        for (setting, reading) in settings.zip(&measured.readings) {
            let of = |value: fn(&Setting) -> String| setting.map(value).unwrap_or_default();
            self.write([
                row.line.to_string().as_str(),
                &row.kind,
                &row.name,
                question,
                if setting.is_some() { "on" } else { "off" },
                &of(|setting| setting.top_k.to_string()),
                &of(|setting| setting.temperature.to_string()),
                &of(|setting| setting.weight.to_string()),
                reading.answer.as_deref().unwrap_or_default(),
                &reading.right.map(|right| u8::from(right).to_string()).unwrap_or_default(),
                &reading.likelihood.map(|likelihood| format!("{likelihood:.6}")).unwrap_or_default(),
            ])?;
        }
        self.table.flush().with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn write(&mut self, record: [&str; 11]) -> anyhow::Result<()> {
        self.table.write_record(record).with_context(|| format!("cannot write {}", self.path.display()))
    }
}
