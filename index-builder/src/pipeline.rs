//! The stages of a build and the bounded channels between them. Read this file first.
//!
//! ```text
//!  feed ───work───► decode × N ──decoded──► embed × 1 ──finished──► write × 1 (this thread)
//!   │ one at a time   read, digest, resize    batches, in the        one synced batch a second,
//!   │                                         order of the inputs    or every 512 units
//!   └ stops at Ctrl-C; what is in the pipe is finished and written
//! ```
//!
//! Every channel is bounded, and so is what waits in `embed` for an earlier unit: a unit is fed only when one of a fixed number
//! of places is free. A builder wants full batches, not quick ones: no async, no queue for latency. The embedder owns the
//! model; on the CPU it spreads a batch over its lanes.
//!
//! Ready embeddings ([`import`]) enter at `write`; nothing after it can tell them from computed ones.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded};
use viscache::cache::Writer;
use viscache::models::encoder::Encoder;
use viscache::store::{CacheId, CacheRecord, ItemRecord, LedgerRecord, Outcome, Stamp, Store};
use viscache::types::{Embedding, Fingerprint, ItemId, Modality};

use crate::decode::{Picture, decode, tagged};
use crate::discover::{Found, Inputs, Refusal, TagRule, Unit, Visitor, name};
use crate::import::{Chunk, Import};
use crate::ledger::{Again, Judge, Standing, Work};
use crate::progress::Progress;
use crate::write::{Finish, Finished, Good, Memory, Written, write};

/// Units written together at most.
const UNITS_PER_WRITE: usize = 512;
/// Time between two writes at most, when there is something to write.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Rows of an import handled together.
const ROWS_PER_CHUNK: usize = 1024;

/// How far from 1 the length of an imported row may be without being said: f16 leaves that much.
const NOT_UNIT: f64 = 1e-3;

/// How a pipeline runs.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Decoding threads.
    pub threads: usize,
    /// Units embedded together.
    pub batch: usize,
    /// Whether content that is already stored is not stored again.
    pub dedup: bool,
    /// Whether units that were refused are tried again.
    pub retry_bad: bool,
    /// Progress as JSON.
    pub json: bool,
}

impl Options {
    /// Units between being fed and being embedded, at most.
    pub fn in_flight(&self) -> usize {
        4 * self.batch + 2 * self.threads
    }
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
    /// Rows of an import that were stored before and have not changed.
    pub known_good: u64,
    /// Rows of an import that were refused before and have not changed.
    pub known_bad: u64,
    /// Rows of an import whose length was not 1.
    pub normalised: u64,
    /// Pictures stored without some of the tags that were asked for, because the text beside them could not be used.
    pub untagged: u64,
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
        self.known_good += other.known_good;
        self.known_bad += other.known_bad;
        self.normalised += other.normalised;
        self.untagged += other.untagged;
        self.interrupted |= other.interrupted;
    }
}

/// What a build is made of.
pub struct Build<'a> {
    /// Where items go.
    pub store: &'a Store,
    /// What embeds them.
    pub encoder: &'a Encoder,
    /// Where they come from.
    pub inputs: &'a Inputs,
    /// How.
    pub options: Options,
    /// Set by Ctrl-C. What has been begun is finished and written.
    pub stop: &'a AtomicBool,
}

impl<'a> Build<'a> {
    /// Decodes, embeds and writes what is pending of the inputs: once, and what failed or lost what it relied on once more.
    ///
    /// * `pending`: how many there are, for the progress that is shown.
    /// * Returns how the inputs stood when the run came to them, and what became of them.
    ///
    /// # Errors
    /// When the store fails; what was written before stays.
    pub fn run(&self, writer: &mut Writer<'_>, pending: u64) -> anyhow::Result<(Standing, Outcomes)> {
        let mut memory = Memory::new(self.options.dedup);
        let judge =
            Judge::new(Some((self.store, writer.record().clone())), self.options.retry_bad).remembering();
        let (judge, mut outcomes, _) = self.pass(writer, &mut memory, judge, pending)?;
        let Written { replaced, failed, .. } = outcomes.written;
        if outcomes.interrupted || replaced + failed + memory.again == 0 {
            return Ok((judge.standing(), outcomes));
        }
        // Duplicates of what has been replaced are now the only ones with their content. What failed may have been a moment's.
        let again = failed + memory.again;
        let judge = Judge::again(judge, writer.record().clone());
        let (judge, second, before) = self.pass(writer, &mut memory, judge, again)?;
        outcomes += second;
        // They were counted the first time too.
        outcomes.written.duplicates -= before.duplicates;
        outcomes.written.failed -= before.failed;
        Ok((judge.standing(), outcomes))
    }

    /// One pass over the inputs, as a judge has it.
    ///
    /// * Returns the judge, what became of the units, and what those of a second pass had come to in the first.
    fn pass(
        &self,
        writer: &mut Writer<'_>,
        memory: &mut Memory,
        judge: Judge<'a>,
        pending: u64,
    ) -> anyhow::Result<(Judge<'a>, Outcomes, Written)> {
        let Build { store, encoder, inputs, ref options, stop } = *self;
        let start = Instant::now();
        let progress = Progress::new("embed", pending, options.json);
        let abandoned = AtomicBool::new(false);
        let stopped = || stop.load(Ordering::Relaxed) || abandoned.load(Ordering::Relaxed);
        let (work_in, work_out) = bounded::<(usize, Work)>(options.threads);
        let (decoded_in, decoded_out) = bounded::<(usize, Decoded)>(2 * options.batch);
        let (finished_in, finished_out) = bounded::<Finished>(2 * options.batch);
        // A place for every unit under way; the embedder gives it back.
        let (places_in, places_out) = bounded::<()>(options.in_flight());
        let (decode_time, embed_time, untagged) = (Clock::default(), Clock::default(), AtomicU64::new(0));
        let stage = DecodeStage {
            encoder,
            store,
            cache: writer.record().id,
            dedup: options.dedup,
            rules: &inputs.tags,
            untagged: &untagged,
        };
        let limit = encoder.images().limits.max_bytes as u64;

        let (mut outcomes, (judge, before)) = std::thread::scope(|scope| {
            let feed = scope.spawn(|| {
                let (work, places) = (work_in, places_in);
                let send =
                    |unit: (usize, Work)| !stopped() && places.send(()).is_ok() && work.send(unit).is_ok();
                let mut feed = Feed { judge, send, number: 0, before: Written::default() };
                inputs.walk(Some(limit), &mut feed).map(|()| (feed.judge, feed.before))
            });
            for _ in 0..options.threads {
                let (work, decoded, clock) = (work_out.clone(), decoded_in.clone(), &decode_time);
                let stage = &stage;
                scope.spawn(move || stage.run(work, decoded, clock));
            }
            drop((work_out, decoded_in));
            scope.spawn(|| {
                embed_stage(encoder, decoded_out, places_out, finished_in, options.batch, &embed_time)
            });
            let result = write_stage(store, writer, &finished_out, memory, &progress);
            // A write that failed must not leave the other stages waiting for room.
            abandoned.store(result.is_err(), Ordering::Relaxed);
            drop(finished_out);
            let judge = feed.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, anyhow::Error>((result?, judge?))
        })?;
        progress.finish();
        outcomes.interrupted = stop.load(Ordering::Relaxed);
        if !outcomes.interrupted && !memory.archives.is_empty() {
            crate::ledger::forget_members(store, writer, &memory.archives, &judge)?;
        }
        outcomes.seconds = start.elapsed().as_secs_f64();
        outcomes.decode_seconds = decode_time.seconds();
        outcomes.embed_seconds = embed_time.seconds();
        outcomes.untagged = untagged.into_inner();
        Ok((judge, outcomes, before))
    }
}

/// Sends what is to be done down the pipe.
struct Feed<'a, S: FnMut((usize, Work)) -> bool> {
    judge: Judge<'a>,
    send: S,
    number: usize,
    /// What its units had come to before.
    before: Written,
}

impl<S: FnMut((usize, Work)) -> bool> Feed<'_, S> {
    /// Whether it was taken.
    fn send(&mut self, work: Work) -> bool {
        let number = self.number;
        self.number += 1;
        (self.send)((number, work))
    }
}

impl<S: FnMut((usize, Work)) -> bool> Visitor for Feed<'_, S> {
    fn is_done(&mut self, archive: &str, stamp: Stamp) -> anyhow::Result<bool> {
        let done = self.judge.is_done(archive, stamp)?;
        // Where it begins, what is counted of its members does too. A pipe that takes no more is met at the first of them.
        if !done {
            self.send(Work::Begin);
        }
        Ok(done)
    }

    fn visit(&mut self, found: Found) -> anyhow::Result<ControlFlow<()>> {
        let Some(work) = self.judge.judge(found)? else { return Ok(ControlFlow::Continue(())) };
        match &work {
            Work::Unit { earlier: Some(Again::Failed), .. } => self.before.failed += 1,
            Work::Unit { earlier: Some(Again::Duplicate), .. } => self.before.duplicates += 1,
            _ => {}
        }
        Ok(if self.send(work) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    }
}

/// Work that is ready for the embedder, or needs none.
enum Decoded {
    /// A unit with its picture, or why there is none.
    Unit { uri: String, stamp: Stamp, picture: Result<Picture, Refusal> },
    /// Nothing to embed.
    Finished(Finished),
}

/// What decoding threads share.
struct DecodeStage<'a> {
    encoder: &'a Encoder,
    store: &'a Store,
    cache: CacheId,
    dedup: bool,
    rules: &'a [TagRule],
    untagged: &'a AtomicU64,
}

impl DecodeStage<'_> {
    fn run(&self, work: Receiver<(usize, Work)>, decoded: Sender<(usize, Decoded)>, clock: &Clock) {
        for (number, work) in work {
            let start = Instant::now();
            let result = match work {
                Work::Unit { unit, .. } => self.unit(unit),
                Work::Note { uri, stamp, refusal } => {
                    Decoded::Finished(Finished { uri, stamp, outcome: Finish::Noted(refusal) })
                }
                Work::Begin => {
                    let (uri, stamp) = Default::default();
                    Decoded::Finished(Finished { uri, stamp, outcome: Finish::Begin })
                }
                Work::Archive { uri, stamp, record } => {
                    Decoded::Finished(Finished { uri, stamp, outcome: Finish::Archive(record) })
                }
            };
            clock.add(start);
            if decoded.send((number, result)).is_err() {
                return;
            }
        }
    }

    fn unit(&self, unit: Unit) -> Decoded {
        // Content that cannot be looked up is embedded; writing it will tell what is wrong with the store.
        let is_stored = |digest: &Fingerprint| {
            self.dedup && self.store.item_of_digest(self.cache, digest).is_ok_and(|item| item.is_some())
        };
        // A decoder that panics on a hostile file costs that file, not the build.
        let decoded = catch_unwind(AssertUnwindSafe(|| {
            let picture = decode(self.encoder, &unit.place, is_stored)?;
            let (picture, wrong) = tagged(picture, self.rules, &unit.texts);
            self.untagged.fetch_add(u64::from(wrong.is_some()), Ordering::Relaxed);
            Ok(picture)
        }));
        let picture = decoded.unwrap_or_else(|_| Err(Refusal::Bad("the decoder crashed on it".into())));
        Decoded::Unit { uri: unit.uri, stamp: unit.stamp, picture }
    }
}

/// Puts units back into their order and embeds them in batches, so that item ids do not depend on threads.
fn embed_stage(
    encoder: &Encoder,
    decoded: Receiver<(usize, Decoded)>,
    places: Receiver<()>,
    finished: Sender<Finished>,
    batch: usize,
    clock: &Clock,
) {
    let (mut early, mut next) = (BTreeMap::new(), 0);
    let (mut ready, mut pictures) = (Vec::new(), 0);
    for (number, unit) in decoded {
        early.insert(number, unit);
        while let Some(unit) = early.remove(&next) {
            pictures += usize::from(
                matches!(&unit, Decoded::Unit { picture: Ok(picture), .. } if picture.prepared.is_some()),
            );
            ready.push(unit);
            next += 1;
            // It has been here since before the unit was fed.
            let _ = places.recv();
        }
        let full = pictures >= batch || ready.len() >= UNITS_PER_WRITE;
        if full && !embed_batch(encoder, std::mem::take(&mut ready), &finished, clock) {
            return;
        }
        pictures *= usize::from(!full);
    }
    embed_batch(encoder, ready, &finished, clock);
}

/// Embeds a batch and hands it on; false when nobody takes it any more.
fn embed_batch(encoder: &Encoder, batch: Vec<Decoded>, finished: &Sender<Finished>, clock: &Clock) -> bool {
    let start = Instant::now();
    let (mut batch, mut prepared) = (batch, Vec::new());
    // For each unit, whether a picture of it goes to the model.
    let embedded: Vec<bool> = batch
        .iter_mut()
        .map(|unit| {
            let input = match unit {
                Decoded::Unit { picture: Ok(picture), .. } => picture.prepared.take(),
                Decoded::Unit { .. } | Decoded::Finished(_) => None,
            };
            let goes = input.is_some();
            prepared.extend(input);
            goes
        })
        .collect();
    let mut encoded = encoder.encode(&prepared);
    // A card that has no memory left for a batch may have it for one picture.
    for (input, encoded) in prepared.iter().zip(&mut encoded).filter(|(_, encoded)| encoded.is_err()) {
        if let Some(again) = encoder.encode(std::slice::from_ref(input)).pop() {
            *encoded = again;
        }
    }
    let mut encoded = encoded.into_iter();
    clock.add(start);
    batch.into_iter().zip(embedded).all(|(unit, embedded)| {
        let (uri, stamp, picture) = match unit {
            Decoded::Finished(unit) => return finished.send(unit).is_ok(),
            Decoded::Unit { uri, stamp, picture } => (uri, stamp, picture),
        };
        let outcome = match picture {
            Err(refusal) => Finish::Refused(refusal),
            Ok(picture) if !embedded => Finish::Known(picture.digest),
            Ok(Picture { digest, tags, .. }) => match encoded.next() {
                Some(Ok(encoded)) => {
                    let modality = Some(Modality::Image);
                    let record = ItemRecord { uri: uri.clone(), modality, digest, tags };
                    Finish::Good(Good { id: None, embedding: encoded.embedding, record })
                }
                // The picture could be decoded: that the model failed on it is not its fault.
                Some(Err(e)) => Finish::Refused(Refusal::Failed(e.to_string())),
                None => Finish::Refused(Refusal::Failed("the model returned too few rows".into())),
            },
        };
        finished.send(Finished { uri, stamp, outcome }).is_ok()
    })
}

fn write_stage(
    store: &Store,
    writer: &mut Writer<'_>,
    finished: &Receiver<Finished>,
    memory: &mut Memory,
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
            let start = Instant::now();
            let written = write(store, writer, std::mem::take(&mut batch), memory)?;
            outcomes.written += written;
            outcomes.write_seconds += start.elapsed().as_secs_f64();
            progress.advance(written.sum(), outcomes.written.bad + outcomes.written.failed);
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
    let names: Vec<String> = import.files.iter().map(|f| name::of_path(&f.path)).collect();
    let stamps = import.files.iter().map(|file| stamp(&file.path)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut outcomes = Outcomes::default();
    let mut memory = Memory::new(options.dedup);
    // Rows without an id get ids that no row of the import names, also none that comes later.
    if let Some(last) = import.last_named_id()? {
        writer.reserve_ids(ItemId(last.saturating_add(1)));
    }
    for chunk in import.chunks(ROWS_PER_CHUNK, 0) {
        if stop.load(Ordering::Relaxed) {
            outcomes.interrupted = true;
            break;
        }
        let chunk = chunk?;
        let count = (chunk.rows.len() + chunk.bad.len()) as u64;
        let fresh = fresh_rows(store, writer, chunk, (&names, &stamps), &mut memory, &mut outcomes)?;
        let begin = Instant::now();
        if !fresh.is_empty() {
            outcomes.written += write(store, writer, fresh, &mut memory)?;
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
    (names, stamps): (&[String], &[Stamp]),
    memory: &mut Memory,
    outcomes: &mut Outcomes,
) -> anyhow::Result<Vec<Finished>> {
    let CacheRecord { id: cache, .. } = *writer.record();
    let mut fresh = Vec::new();
    let mut offer = |source: usize, row: u64, outcome: Finish| -> anyhow::Result<()> {
        let (uri, stamp) = (format!("{}#{row}", names[source]), stamps[source]);
        let known = store.ledger_unit(cache, &uri)?.filter(|known| known.stamp == stamp);
        // A row that was stored from an older version of the file is replaced under its id.
        match known {
            Some(LedgerRecord { outcome: Outcome::Bad(_), .. }) => outcomes.known_bad += 1,
            Some(LedgerRecord { item, .. }) => {
                outcomes.known_good += 1;
                if let (Finish::Good(Good { id: Some(_), .. }), Some(item)) = (&outcome, item) {
                    memory.named.insert(item.0);
                }
            }
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
        let good = match Embedding::new(row.values) {
            Ok(embedding) => {
                outcomes.normalised += u64::from((embedding.norm() - 1.0).abs() > NOT_UNIT);
                Finish::Good(Good { id: row.id.map(ItemId), embedding, record })
            }
            Err(e) => Finish::Refused(Refusal::Bad(e.to_string())),
        };
        offer(row.source, row.row, good)?;
    }
    for bad in chunk.bad {
        offer(bad.source, bad.row, Finish::Refused(Refusal::Bad(bad.reason)))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use viscache::models::DeviceKind;
    use viscache::models::encoder::EncoderOptions;

    /// A unit that is late keeps those behind it from giving their places back, so that no more of them are fed.
    #[test]
    fn what_waits_for_an_earlier_unit_is_bounded() {
        let options = EncoderOptions {
            network: Default::default(),
            weights: None,
            sizes: None,
            modalities: Some(vec![Modality::Image]),
            device: DeviceKind::Cpu,
            dtype: None,
            threads: 1,
            orientation: Default::default(),
            limits: Default::default(),
        };
        let encoder = Encoder::open(&options).unwrap();
        let (places_in, places_out) = bounded::<()>(4);
        let (decoded_in, decoded_out) = bounded(100);
        let (finished_in, finished_out) = bounded(100);
        let refused = |number: usize| {
            let (uri, stamp) = (number.to_string(), Stamp::default());
            (number, Decoded::Unit { uri, stamp, picture: Err(Refusal::Bad(String::new())) })
        };
        std::thread::scope(|scope| {
            scope.spawn(|| embed_stage(&encoder, decoded_out, places_out, finished_in, 1, &Clock::default()));
            let decoded = decoded_in;
            for number in 1..4 {
                places_in.send(()).unwrap();
                decoded.send(refused(number)).unwrap();
            }
            places_in.send(()).unwrap();
            let full = places_in.send_timeout((), Duration::from_millis(100));
            assert!(full.is_err(), "a place was given back out of turn");
            decoded.send(refused(0)).unwrap();
            places_in.send_timeout((), Duration::from_secs(10)).unwrap();
        });
        let order: Vec<String> = finished_out.iter().map(|finished| finished.uri).collect();
        assert_eq!(order, ["0", "1", "2", "3"]);
    }
}
