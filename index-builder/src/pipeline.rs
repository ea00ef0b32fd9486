//! The stages of a build and the bounded channels between them. Read this file first.
//!
//! ```text
//!  feed ──units──► decode × N ──decoded──► embed × 1 ──finished──► write × 1 (this thread)
//!   │ one at a time   read, digest, resize    batches, in the        one synced batch a second,
//!   │                                         order of the units     or every 512 units
//!   └ stops at Ctrl-C; what is in the pipe is finished and written
//! ```
//!
//! Every channel is bounded, so memory is: units in flight × one prepared picture. A builder wants full batches, not
//! quick ones: no async, no queue for latency. The embedder owns the model; on the CPU it spreads a batch over its lanes.
//!
//! Ready embeddings ([`import`]) enter at `write`; nothing after it can tell them from computed ones.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded};
use viscache::cache::Writer;
use viscache::models::encoder::Encoder;
use viscache::store::{ItemRecord, Outcome, Stamp, Store};
use viscache::types::{Embedding, Fingerprint, ItemId, Modality};

use crate::decode::{Decoded, decode};
use crate::discover::Unit;
use crate::import::{Chunk, Import};
use crate::progress::Progress;
use crate::write::{Finished, Good, Written, write};

/// Units written together at most.
const UNITS_PER_WRITE: usize = 512;
/// Time between two writes at most, when there is something to write.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Rows of an import handled together.
const ROWS_PER_CHUNK: usize = 1024;

/// How a pipeline runs.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decoding threads.
    pub threads: usize,
    /// Units embedded together.
    pub batch: usize,
    /// Whether content that is already stored is not stored again.
    pub dedup: bool,
    /// Progress as JSON.
    pub json: bool,
}

/// What a pipeline did.
#[derive(Debug, Default, Clone, Copy, serde::Serialize)]
pub struct Outcomes {
    /// What became of the units.
    pub written: Written,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Seconds that decoding threads worked, added up.
    pub decode_seconds: f64,
    /// Seconds that the embedder worked.
    pub embed_seconds: f64,
    /// Seconds that writing took.
    pub write_seconds: f64,
    /// Rows of an import that were refused before and have not changed.
    pub known_bad: u64,
    /// Whether it was interrupted.
    pub interrupted: bool,
}

impl std::ops::AddAssign for Outcomes {
    fn add_assign(&mut self, other: Outcomes) {
        self.written += other.written;
        self.seconds += other.seconds;
        self.decode_seconds += other.decode_seconds;
        self.embed_seconds += other.embed_seconds;
        self.write_seconds += other.write_seconds;
        self.known_bad += other.known_bad;
        self.interrupted |= other.interrupted;
    }
}

/// Decodes, embeds and writes units.
///
/// * `stop`: set by Ctrl-C. What has been begun is finished and written.
///
/// # Errors
/// When the store fails; what was written before stays.
pub fn run(
    store: &Store,
    writer: &mut Writer<'_>,
    encoder: &Encoder,
    units: Vec<Unit>,
    options: &Options,
    stop: &AtomicBool,
) -> anyhow::Result<Outcomes> {
    let start = Instant::now();
    let progress = Progress::new("embed", units.len() as u64, options.json);
    let abandoned = AtomicBool::new(false);
    let stopped = || stop.load(Ordering::Relaxed) || abandoned.load(Ordering::Relaxed);
    let (units_in, units_out) = bounded::<(usize, Unit)>(options.threads);
    let (decoded_in, decoded_out) = bounded::<(usize, Decoded)>(2 * options.batch);
    let (finished_in, finished_out) = bounded::<Finished>(2 * options.batch);
    let (decode_time, embed_time) = (Clock::default(), Clock::default());

    let mut outcomes = std::thread::scope(|scope| {
        scope.spawn(|| {
            let feed = units_in;
            for unit in units.into_iter().enumerate() {
                if stopped() || feed.send(unit).is_err() {
                    return;
                }
            }
        });
        for _ in 0..options.threads {
            let (units, decoded) = (units_out.clone(), decoded_in.clone());
            scope.spawn(|| decode_stage(encoder, units, decoded, &decode_time));
        }
        drop((units_out, decoded_in));
        scope.spawn(|| embed_stage(encoder, decoded_out, finished_in, options.batch, &embed_time));
        let result = write_stage(store, writer, &finished_out, options, &progress);
        // A write that failed must not leave the other stages waiting for room.
        abandoned.store(result.is_err(), Ordering::Relaxed);
        drop(finished_out);
        result
    })?;
    progress.finish();
    outcomes.interrupted = stop.load(Ordering::Relaxed);
    outcomes.seconds = start.elapsed().as_secs_f64();
    outcomes.decode_seconds = decode_time.seconds();
    outcomes.embed_seconds = embed_time.seconds();
    Ok(outcomes)
}

fn decode_stage(
    encoder: &Encoder,
    units: Receiver<(usize, Unit)>,
    decoded: Sender<(usize, Decoded)>,
    clock: &Clock,
) {
    for (number, unit) in units {
        let start = Instant::now();
        let (uri, stamp, place) = (unit.uri.clone(), unit.stamp, unit.place.clone());
        // A decoder that panics on a hostile file costs that file, not the build.
        let result = catch_unwind(AssertUnwindSafe(|| decode(encoder, unit))).unwrap_or_else(|_| Decoded {
            unit: Unit { uri, stamp, place },
            outcome: Err("the decoder crashed on it".into()),
        });
        clock.add(start);
        if decoded.send((number, result)).is_err() {
            return;
        }
    }
}

/// Puts units back into their order and embeds them in batches, so that item ids do not depend on threads.
fn embed_stage(
    encoder: &Encoder,
    decoded: Receiver<(usize, Decoded)>,
    finished: Sender<Finished>,
    batch: usize,
    clock: &Clock,
) {
    let (mut early, mut next) = (BTreeMap::new(), 0);
    let mut ready: Vec<Decoded> = Vec::new();
    for (number, unit) in decoded {
        early.insert(number, unit);
        while let Some(unit) = early.remove(&next) {
            ready.push(unit);
            next += 1;
        }
        if ready.len() >= batch && !embed_batch(encoder, std::mem::take(&mut ready), &finished, clock) {
            return;
        }
    }
    embed_batch(encoder, ready, &finished, clock);
}

/// Embeds a batch and hands it on; false when nobody takes it any more.
fn embed_batch(encoder: &Encoder, batch: Vec<Decoded>, finished: &Sender<Finished>, clock: &Clock) -> bool {
    let start = Instant::now();
    let (mut prepared, mut digests) = (Vec::new(), Vec::new());
    for unit in batch {
        let outcome = unit.outcome.map(|(digest, input)| {
            prepared.push(input);
            digest
        });
        digests.push((unit.unit, outcome));
    }
    let mut encoded = encoder.encode(&prepared).into_iter();
    clock.add(start);
    digests.into_iter().all(|(unit, digest)| {
        let outcome = digest.and_then(|digest| {
            let encoded =
                encoded.next().ok_or("the model returned too few rows")?.map_err(|e| e.to_string())?;
            let record = ItemRecord {
                uri: unit.uri.clone(),
                modality: Some(Modality::Image),
                digest,
                tags: BTreeMap::new(),
            };
            Ok(Good { id: None, embedding: encoded.embedding, record })
        });
        finished.send(Finished { uri: unit.uri, stamp: unit.stamp, outcome }).is_ok()
    })
}

fn write_stage(
    store: &Store,
    writer: &mut Writer<'_>,
    finished: &Receiver<Finished>,
    options: &Options,
    progress: &Progress,
) -> anyhow::Result<Outcomes> {
    let mut outcomes = Outcomes::default();
    let mut batch = Vec::new();
    let mut last = Instant::now();
    loop {
        let next = finished.recv();
        let ended = next.is_err();
        batch.extend(next.ok());
        let due = batch.len() >= UNITS_PER_WRITE || last.elapsed() >= WRITE_INTERVAL || ended;
        if due && !batch.is_empty() {
            let (start, count) = (Instant::now(), batch.len() as u64);
            outcomes.written += write(store, writer, std::mem::take(&mut batch), options.dedup)?;
            outcomes.write_seconds += start.elapsed().as_secs_f64();
            progress.advance(count, outcomes.written.bad);
            last = Instant::now();
        }
        if ended {
            return Ok(outcomes);
        }
    }
}

/// Writes ready embeddings.
///
/// # Errors
/// When a file or the store fails; what was written before stays.
pub fn import(
    store: &Store,
    writer: &mut Writer<'_>,
    import: &Import,
    options: &Options,
    stop: &AtomicBool,
) -> anyhow::Result<Outcomes> {
    let start = Instant::now();
    let progress = Progress::new("import", import.rows, options.json);
    let names: Vec<String> = import.files.iter().map(|f| f.path.to_string_lossy().into_owned()).collect();
    let stamps = import.files.iter().map(|file| stamp(&file.path)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut outcomes = Outcomes::default();
    for chunk in import.chunks(ROWS_PER_CHUNK, 0) {
        if stop.load(Ordering::Relaxed) {
            outcomes.interrupted = true;
            break;
        }
        let chunk = chunk?;
        let count = (chunk.rows.len() + chunk.bad.len()) as u64;
        let fresh = fresh_rows(store, writer, chunk, &names, &stamps, &mut outcomes.known_bad)?;
        let begin = Instant::now();
        if !fresh.is_empty() {
            outcomes.written += write(store, writer, fresh, options.dedup)?;
        }
        outcomes.write_seconds += begin.elapsed().as_secs_f64();
        progress.advance(count, outcomes.written.bad);
    }
    progress.finish();
    outcomes.seconds = start.elapsed().as_secs_f64();
    Ok(outcomes)
}

/// The rows of a chunk that the ledger does not know yet.
fn fresh_rows(
    store: &Store,
    writer: &Writer<'_>,
    chunk: Chunk,
    names: &[String],
    stamps: &[Stamp],
    known_bad: &mut u64,
) -> anyhow::Result<Vec<Finished>> {
    let cache = writer.record().id;
    let mut fresh = Vec::new();
    let mut offer = |source: usize, row: u64, outcome: Result<Good, String>| -> anyhow::Result<()> {
        let (uri, stamp) = (format!("{}#{row}", names[source]), stamps[source]);
        let known = store.ledger_unit(cache, &uri)?.filter(|known| known.stamp == stamp);
        // A row that was stored from an older version of the file is replaced under its id.
        match known {
            Some(known) => *known_bad += u64::from(matches!(known.outcome, Outcome::Bad(_))),
            None => fresh.push(Finished { uri, stamp, outcome }),
        }
        Ok(())
    };
    for row in chunk.rows {
        let bytes: Vec<u8> = row.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let record = ItemRecord {
            uri: row.uri.unwrap_or_else(|| format!("{}#{}", names[row.source], row.row)),
            modality: None,
            digest: Fingerprint::of(&bytes),
            tags: row.tags,
        };
        let embedding = Embedding::new(row.values).map_err(|e| e.to_string());
        let good = embedding.map(|embedding| Good { id: row.id.map(ItemId), embedding, record });
        offer(row.source, row.row, good)?;
    }
    for bad in chunk.bad {
        offer(bad.source, bad.row, Err(bad.reason))?;
    }
    Ok(fresh)
}

fn stamp(path: &std::path::Path) -> anyhow::Result<Stamp> {
    let about = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    let since = about.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(Stamp { bytes: about.len(), modified_ns: since.map_or(0, |s| s.as_nanos() as u64) })
}

/// Adds up time from several threads.
#[derive(Default)]
struct Clock(std::sync::atomic::AtomicU64);

impl Clock {
    fn add(&self, start: Instant) {
        self.0.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    fn seconds(&self) -> f64 {
        self.0.load(Ordering::Relaxed) as f64 / 1e9
    }
}
