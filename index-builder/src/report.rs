//! `report.json`: what a run did, for people who come later.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use viscache::cache::IndexReport;
use viscache::index::BuildParams;
use viscache::store::{CacheRecord, Store};

use crate::ledger::Standing;
use crate::pipeline::Outcomes;

/// Everything worth knowing of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of the program.
    pub version: &'static str,
    /// The cache: name, dimension, counts, and the fingerprints of what made it.
    pub cache: CacheRecord,
    /// How the inputs stood when the run began.
    pub inputs: Standing,
    /// What became of them, with seconds by stage.
    pub outcomes: Outcomes,
    /// What was changed or left out on the way.
    pub notes: Vec<String>,
    /// Inputs that were not stored, in this run and in earlier ones.
    pub bad_total: u64,
    /// The new generation, with recall@10 by `ef_search` and seconds by stage.
    pub index: Option<IndexReport>,
    /// How it was built.
    pub build: BuildParams,
    /// Bytes on disk by column family.
    pub sizes: std::collections::BTreeMap<&'static str, u64>,
}

impl Report {
    /// Bytes on disk by column family.
    pub fn sizes(store: &Store) -> std::collections::BTreeMap<&'static str, u64> {
        store.sizes().into_iter().collect()
    }

    /// Writes the report beside its name and moves it there: a killed run leaves no half report.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        let temporary = path.with_extension("json.tmp");
        std::fs::write(&temporary, text + "\n")
            .and_then(|()| std::fs::rename(&temporary, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
