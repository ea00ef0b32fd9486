//! `index-builder verify`, in words and tables.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use serde_json::json;
use viscache::store::{Access, Store};

use super::FAILED;
use super::args::VerifyArgs;
use crate::verify;

/// Checks caches and says what was found.
pub(super) fn verify_all(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let store = Arc::new(Store::open(&args.store, Access::Read)?);
    let records = match &args.cache {
        Some(name) => vec![store.cache(name)?],
        None => store.caches()?,
    };
    if records.is_empty() {
        bail!("the store at {} has no cache", args.store.display());
    }
    let mut sound = true;
    for record in records {
        let verdict = verify::verify(&store, &record, args.sample, &args.queries)?;
        sound &= verdict.problems.is_empty();
        if args.json {
            told!("{}", json!(verdict));
            continue;
        }
        let state = if verdict.problems.is_empty() { "sound" } else { "NOT SOUND" };
        told!("{}: {state}; {} items, generations {:?}", verdict.cache, verdict.items, verdict.generations);
        match args.recall {
            true => told!("{}", recall_table(&verdict).trim_end()),
            false if verdict.recall.is_empty() => {}
            false => told!("  recall@10 by ef_search: {}", curve_line(&verdict.recall)),
        }
        verdict.problems.iter().for_each(|problem| told!("  {problem}"));
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Recall by width and kind. A kind ends where a wider beam was no longer tried.
fn recall_table(verdict: &verify::Verdict) -> String {
    let given = verdict.recall_by.iter().map(|(kind, curve)| (kind.as_str(), curve));
    let columns: Vec<_> = std::iter::once(("rows", &verdict.recall)).chain(given).collect();
    let widths: BTreeSet<usize> = columns.iter().flat_map(|(_, curve)| curve.iter().map(|p| p.0)).collect();
    let mut table = format!("  {:>9}", "ef_search");
    columns.iter().for_each(|(kind, _)| table += &format!(" {kind:>8}"));
    for width in widths {
        table += &format!("\n  {width:>9}");
        for (kind, curve) in &columns {
            let recall = curve.iter().find(|p| p.0 == width).map(|p| format!("{:.4}", p.1));
            table += &format!(" {:>1$}", recall.unwrap_or_default(), kind.len().max(8));
        }
    }
    table + "\n"
}

/// Recall by width, in words.
pub(super) fn curve_line(curve: &[(usize, f64)]) -> String {
    curve.iter().map(|(ef, r)| format!("{r:.4} at {ef}")).collect::<Vec<_>>().join(", ")
}
