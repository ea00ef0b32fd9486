//! What is done, and therefore what is pending: the only authority on resuming.
//!
//! The ledger lies in the store, in the same batch as the items it speaks of, so the two cannot disagree. A unit is
//! pending when the ledger does not know it, or knows it with another stamp: its file has changed since. A unit that
//! was bad and has not changed is not tried again, unless asked.

use std::collections::HashSet;

use viscache::store::{CacheId, LedgerRecord, Outcome, Store};

use crate::discover::Unit;

/// How the units of a run stand.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Standing {
    /// Done in an earlier run.
    pub done: u64,
    /// Refused in an earlier run and unchanged since.
    pub bad: u64,
    /// Could not even be listed: a dangling link, a damaged archive.
    pub unreadable: u64,
    /// Still to do.
    pub pending: u64,
    /// Named twice by the inputs.
    pub repeated: u64,
}

/// Parts the units into pending ones and the rest.
///
/// * `retry_bad`: whether units that were refused are tried again.
///
/// # Errors
/// When the store cannot be read.
pub fn pending(
    store: &Store,
    cache: Option<CacheId>,
    units: Vec<Unit>,
    retry_bad: bool,
) -> anyhow::Result<(Vec<Unit>, Standing)> {
    let (mut standing, mut todo) = (Standing::default(), Vec::new());
    let mut seen = HashSet::new();
    for unit in units {
        if !seen.insert(unit.uri.clone()) {
            standing.repeated += 1;
            continue;
        }
        let known = match cache {
            Some(cache) => known(store, cache, &unit)?,
            None => None,
        };
        match known {
            Some(LedgerRecord { outcome: Outcome::Bad(_), .. }) if retry_bad => todo.push(unit),
            Some(LedgerRecord { outcome: Outcome::Bad(_), .. }) => standing.bad += 1,
            Some(_) => standing.done += 1,
            None => todo.push(unit),
        }
    }
    standing.pending = todo.len() as u64;
    Ok((todo, standing))
}

/// What the ledger says of a unit, if that still holds.
fn known(store: &Store, cache: CacheId, unit: &Unit) -> anyhow::Result<Option<LedgerRecord>> {
    let record = store.ledger_unit(cache, &unit.uri)?.filter(|record| record.stamp == unit.stamp);
    // The item that a duplicate relied on may have got other content since.
    match record.as_ref().and_then(|record| record.digest) {
        Some(digest) if store.item_of_digest(cache, &digest)?.is_none() => Ok(None),
        _ => Ok(record),
    }
}

/// The units that were refused, by name.
///
/// # Errors
/// When the store cannot be read.
pub fn bad(store: &Store, cache: CacheId) -> anyhow::Result<Vec<(String, String)>> {
    let records = store.ledger(cache)?.into_iter();
    let mut bad: Vec<(String, String)> = records
        .filter_map(|record| match record.outcome {
            Outcome::Bad(reason) => Some((record.uri, reason)),
            _ => None,
        })
        .collect();
    bad.sort();
    Ok(bad)
}
