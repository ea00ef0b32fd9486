//! What a build will take, said before it begins, and refused when it does not fit.
//!
//! Memory and disk follow from counts and sizes; time from embedding a few of the very pictures. The constants below
//! are for `hnsw_rs` 0.3.5, on the safe side of what a build of 100 000 rows of 1024 components took.

use std::fmt;
use std::path::Path;
use std::time::Instant;

use anyhow::bail;
use serde::Serialize;
use viscache::index::{BuildParams, CodeKind};
use viscache::models::encoder::Encoder;

use crate::decode::decode;
use crate::discover::Unit;
use crate::tag_cost::TagSample;

/// Bytes that a point takes in `hnsw_rs`: the point, its lists, and for each of M the links. A million points at M = 16 took
/// 2600 each.
const POINT_BYTES: u64 = 1600;
const POINT_BYTES_PER_M: u64 = 80;
/// Seconds of one core to insert a point among 100 000 of 1024 components.
const INSERT_SECONDS: f64 = 0.000_55;
/// Bytes of an item's records: uri, digest, ledger, keys.
const RECORD_BYTES: u64 = 600;
/// Bytes of the process itself: code, RocksDB's buffers and caches.
const PROCESS_BYTES: u64 = 400 << 20;
/// Pictures that are embedded to learn how long one takes, and the most time given to that.
const PROBES: usize = 8;
const PROBE_SECONDS: f64 = 10.0;
/// Share of what is free that a plan may take.
const SHARE: f64 = 0.9;

/// What a build will take.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Items in the cache afterwards, if all pending ones are good.
    pub items: u64,
    /// Units to embed or rows to import.
    pub pending: u64,
    /// Bytes of memory at the peak.
    pub memory_bytes: u64,
    /// Bytes of memory that are free.
    pub memory_free: u64,
    /// Bytes that the store grows by.
    pub disk_bytes: u64,
    /// Bytes that are free where the store lies.
    pub disk_free: u64,
    /// Seconds to embed or import, if known.
    pub embed_seconds: Option<f64>,
    /// Seconds to index.
    pub index_seconds: f64,
}

/// What a plan is made from.
pub struct Facts<'a> {
    /// Items already in the cache.
    pub stored: u64,
    /// Units to embed or rows to import.
    pub pending: u64,
    /// Components of a row.
    pub dim: usize,
    /// Bytes of a stored component.
    pub row_component: usize,
    /// Bytes of the loaded model.
    pub model_bytes: u64,
    /// Bytes of units in flight.
    pub in_flight: u64,
    /// How the graph will be built.
    pub build: &'a BuildParams,
    /// Where the store lies or will lie.
    pub store: &'a Path,
    /// Seconds to embed one unit with all threads.
    pub seconds_per_unit: Option<f64>,
    /// Whether the graph will be built at all.
    pub index: bool,
    /// Tags of some of the items, stored ones and pending ones.
    pub tags: &'a TagSample,
}

impl Plan {
    /// Adds everything up.
    pub fn new(facts: &Facts<'_>) -> Self {
        let items = facts.stored + facts.pending;
        let [wide, narrow] = [CodeKind::U8, CodeKind::U4]
            .map(|codes| BuildParams { codes, ..facts.build.clone() }.code_bytes(facts.dim));
        let links = 4 * (2 * facts.build.m as u64 + 16);
        // Codes that are to be chosen may be the wider ones.
        let codes = if facts.build.choose_codes { wide } else { facts.build.code_bytes(facts.dim) };
        let index_bytes = items * (codes + links + 8);
        let row = (facts.dim * facts.row_component) as u64;
        // Codes of 8 and of 4 bits, the graph under construction, and the finished index. Rows are read in passes.
        let graph = POINT_BYTES + POINT_BYTES_PER_M * facts.build.m as u64;
        let tags = facts.tags.cost(items);
        let indexing = items * (wide + narrow + graph) + index_bytes + tags.memory;
        let embedding = facts.model_bytes + facts.in_flight;
        let growth = (items as f64).max(2.0).log2() / 100_000f64.log2();
        let index_seconds = items as f64 * INSERT_SECONDS * growth * (facts.dim as f64 / 1024.0).max(0.25)
            / facts.build.threads as f64;
        Plan {
            items,
            pending: facts.pending,
            memory_bytes: PROCESS_BYTES + if facts.index { indexing.max(embedding) } else { embedding },
            memory_free: free_memory(),
            // Twice the rows: RocksDB keeps old and new files while it merges them.
            disk_bytes: facts.pending * (2 * row + RECORD_BYTES)
                + if facts.index { 2 * (index_bytes + tags.disk) } else { 0 },
            disk_free: free_disk(facts.store),
            embed_seconds: facts.seconds_per_unit.map(|s| s * facts.pending as f64),
            index_seconds: if facts.index { index_seconds } else { 0.0 },
        }
    }

    /// Refuses what does not fit.
    ///
    /// # Errors
    /// A sentence with both figures and what to do.
    pub fn check(&self) -> anyhow::Result<()> {
        let fits = |needed: u64, free: u64| needed as f64 <= free as f64 * SHARE;
        if !fits(self.memory_bytes, self.memory_free) {
            bail!(
                "the build would take {} of memory and {} are free; take fewer items, or `--no-index` and index on a larger machine (or `--force`)",
                Bytes(self.memory_bytes),
                Bytes(self.memory_free)
            );
        }
        if !fits(self.disk_bytes, self.disk_free) {
            bail!(
                "the store would grow by up to {} and {} are free there; choose another --store, or `--row-type f16` (or `--force`)",
                Bytes(self.disk_bytes),
                Bytes(self.disk_free)
            );
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} to do, {} items afterwards", self.pending, self.items)?;
        writeln!(f, "memory  {} at the peak, {} free", Bytes(self.memory_bytes), Bytes(self.memory_free))?;
        writeln!(f, "disk    up to {} more, {} free", Bytes(self.disk_bytes), Bytes(self.disk_free))?;
        match self.embed_seconds {
            Some(embed) => {
                write!(f, "time    about {embed:.0} s to embed, {:.0} s to index", self.index_seconds)
            }
            None => write!(f, "time    about {:.0} s to index", self.index_seconds),
        }
    }
}

/// Seconds that one unit takes with all threads busy, from trying a few; nothing when none is good.
pub fn probe(encoder: &Encoder, sample: &[Unit], threads: usize) -> Option<f64> {
    let step = (sample.len() / PROBES).max(1);
    let (start, mut decoding, mut embedding, mut count) = (Instant::now(), 0.0, 0.0, 0usize);
    for unit in sample.iter().step_by(step).take(PROBES) {
        let begin = Instant::now();
        let Ok(picture) = decode(encoder, &unit.place, |_| false) else { continue };
        let Some(prepared) = picture.prepared else { continue };
        decoding += begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        encoder.encode(std::slice::from_ref(&prepared));
        embedding += begin.elapsed().as_secs_f64();
        count += 1;
        if start.elapsed().as_secs_f64() > PROBE_SECONDS {
            break;
        }
    }
    (count > 0).then(|| (decoding + embedding) / count as f64 / threads as f64)
}

/// Free bytes, or so many that nothing is refused where the system does not tell.
fn free_memory() -> u64 {
    let Ok(mut system) = sysinfo::System::new() else { return u64::MAX };
    system.refresh_memory();
    // In a container the limit counts, not the machine.
    match system.cgroup_limits() {
        Some(limits) => limits.free_memory.min(system.available_memory()),
        None => system.available_memory(),
    }
}

/// Bytes that may still be written where a store lies or will lie: asked of the nearest folder that is there, links followed.
fn free_disk(store: &Path) -> u64 {
    let store = std::path::absolute(store).unwrap_or_else(|_| store.to_owned());
    let answer = store.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok());
    // What no file system answers for cannot be judged; writing will tell.
    answer.map_or(u64::MAX, |about| about.f_bavail.saturating_mul(about.f_frsize))
}

/// A number of bytes for people.
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 10 << 30 => write!(f, "{} GiB", bytes >> 30),
            bytes => write!(f, "{} MiB", bytes.div_ceil(1 << 20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(pending: u64) -> Plan {
        let build = BuildParams::default();
        Plan::new(&Facts {
            stored: 0,
            pending,
            dim: 1024,
            row_component: 4,
            model_bytes: 0,
            in_flight: 0,
            build: &build,
            store: Path::new("."),
            seconds_per_unit: Some(0.5),
            index: true,
            tags: &TagSample::default(),
        })
    }

    #[test]
    fn disk_is_asked_where_the_store_will_lie() {
        let (dir, shm) = (tempfile::tempdir().unwrap(), Path::new("/dev/shm"));
        let about = rustix::fs::statvfs(shm).unwrap();
        std::os::unix::fs::symlink(shm, dir.path().join("link")).unwrap();
        let (size, free) = (about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize);
        for store in [shm.join("not/there/yet"), dir.path().join("link/not/there")] {
            // Others may write there meanwhile.
            let found = free_disk(&store);
            assert!(
                found <= size && found.abs_diff(free) < size / 4,
                "{found} of {free} in {}",
                store.display()
            );
        }
    }

    #[test]
    fn a_plan_grows_with_its_items_and_what_cannot_fit_is_refused() {
        assert!(plan(1000).memory_bytes < plan(100_000).memory_bytes);
        assert!(plan(10).check().is_ok());
        let refused = plan(4_000_000_000).check().unwrap_err().to_string();
        assert!(refused.contains("free"), "{refused}");
        assert_eq!(plan(10).embed_seconds, Some(5.0));
    }
}
