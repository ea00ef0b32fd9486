//! The recall of live searches, measured beside them.
//!
//! ```text
//! search done ─► chosen? ─► small queue ─► one thread: a scan of every row ─► window of its cache and kind
//!                  │            └ full, or the thread rests: dropped and counted
//!                  └ a share of them, and not more than so many a second
//! ```
//!
//! No search waits for any of this: choosing is a random number, and what has no place is dropped. What it costs the rest of
//! the machine is bounded as well: one thread of the lowest priority, which rests [`REST`] times as long as it computes, and at least
//! as long as that took. Waiting for a core is not computing: a rest by the clock would silence it on a busy machine, where a
//! scan of a millisecond may take a second.
//!
//! What lies in the queue keeps the state it was asked of in memory. So nothing is taken in while the thread rests, the queue is
//! emptied when its scans take long, and an old generation is held for about one scan. That ends early when the server does.
//!
//! Left out: exact searches, whose recall is no question.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::cache::{RECALL_K, Snapshot, step_back};
use crate::index::exact;
use crate::metrics;
use crate::store::CacheId;
use crate::types::{Embedding, Generation, Hit, ItemId, QueryKind};

/// Samples that wait while one is measured.
const QUEUE: usize = 4;
/// Rest after work, in times of what the work took of a core.
const REST: u32 = 9;
/// Work after which the thread rests, whatever waits.
const LONG: Duration = Duration::from_secs(1);
/// Samples that a mean is taken over.
const WINDOW: usize = 1000;
/// Kinds of query that are told apart in one cache. The word is the caller's, so there may be any number of them.
const MAX_KINDS: usize = 16;
/// What is kept of queries without a kind, and of kinds beyond those.
const OTHER: &str = "other";

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingOptions {
    /// Share of the searches, 0 to 1; 0 measures nothing.
    pub rate: f64,
    /// Most of them in a second.
    pub max_per_second: u32,
}

impl SamplingOptions {
    /// Default of [`SamplingOptions::rate`].
    pub const DEFAULT_RATE: f64 = 0.001;
    /// Default of [`SamplingOptions::max_per_second`].
    pub const DEFAULT_MAX_PER_SECOND: u32 = 2;
}

impl Default for SamplingOptions {
    fn default() -> Self {
        SamplingOptions { rate: Self::DEFAULT_RATE, max_per_second: Self::DEFAULT_MAX_PER_SECOND }
    }
}

/// What was measured of one kind of query.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveRecall {
    /// The kind's word; `other` for queries of no known kind.
    pub kind: String,
    /// Mean recall of the samples in the window, each over its ten nearest, or as many as were asked for if those are fewer.
    pub recall: f64,
    /// Samples in the window: the last ones of the generation.
    pub samples: usize,
    /// When the first of them was measured.
    pub oldest: SystemTime,
    /// When the last was.
    pub newest: SystemTime,
}

/// Chooses searches and has their recall measured, until it is dropped.
pub struct Sampler {
    options: SamplingOptions,
    started: Instant,
    /// The current second, counted from `started`, and the samples sent in it.
    sent: AtomicU64,
    shared: Arc<Shared>,
    worker: Option<Worker>,
}

/// What the thread and everybody else know.
#[derive(Default)]
struct Shared {
    resting: AtomicBool,
    stop: AtomicBool,
    dropped: AtomicU64,
    windows: Mutex<HashMap<CacheId, BTreeMap<String, Window>>>,
}

impl Shared {
    fn count_dropped(&self, snapshot: &Snapshot) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        metrics::observe_recall_dropped(snapshot.record().name.as_str());
    }
}

struct Worker {
    queue: Sender<Sample>,
    /// Dropped to wake the thread from its rest.
    awake: Sender<()>,
    thread: JoinHandle<()>,
}

/// A search that was answered.
struct Sample {
    snapshot: Arc<Snapshot>,
    query: Embedding,
    kind: Option<QueryKind>,
    /// Neighbours that are compared, at most [`RECALL_K`].
    k: usize,
    found: Vec<ItemId>,
}

/// The last samples of one kind, all of one generation.
struct Window {
    generation: Generation,
    samples: VecDeque<(f64, SystemTime)>,
}

impl Window {
    fn mean(&self) -> f64 {
        self.samples.iter().map(|(recall, _)| recall).sum::<f64>() / self.samples.len().max(1) as f64
    }
}

impl Sampler {
    /// One that measures nothing.
    pub fn off() -> Self {
        Sampler {
            options: SamplingOptions { rate: 0.0, ..Default::default() },
            started: Instant::now(),
            sent: AtomicU64::new(0),
            shared: Arc::default(),
            worker: None,
        }
    }

    /// One with a thread of its own, when the rate is above 0.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn start(options: SamplingOptions) -> std::io::Result<Self> {
        let mut sampler = Sampler::off();
        if options.rate <= 0.0 {
            return Ok(sampler);
        }
        let (queue, samples) = crossbeam_channel::bounded(QUEUE);
        let (awake, asleep) = crossbeam_channel::bounded(0);
        let shared = sampler.shared.clone();
        let thread = std::thread::Builder::new().name("recall".into());
        let thread = thread.spawn(move || work(&shared, &samples, &asleep))?;
        sampler.options = options;
        sampler.worker = Some(Worker { queue, awake, thread });
        Ok(sampler)
    }

    /// The share of searches that is measured.
    pub fn rate(&self) -> f64 {
        self.options.rate
    }

    /// Samples that had no place.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// What was measured of one generation, by kind.
    pub fn live(&self, cache: CacheId, generation: Generation) -> Vec<LiveRecall> {
        let windows = self.shared.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let live = |(kind, window): (&String, &Window)| {
            let (oldest, newest) = (window.samples.front()?.1, window.samples.back()?.1);
            let (recall, samples) = (window.mean(), window.samples.len());
            (window.generation == generation).then(|| LiveRecall {
                kind: kind.clone(),
                recall,
                samples,
                oldest,
                newest,
            })
        };
        windows.get(&cache).into_iter().flatten().filter_map(live).collect()
    }

    /// Forgets what was measured of all caches but some.
    pub(super) fn keep(&self, cache: impl Fn(CacheId) -> bool) {
        let mut windows = self.shared.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|id, _| cache(*id));
    }

    /// Offers an answered search. Never waits.
    ///
    /// * `query`: as it was searched with. `hits`: the `top_k` best.
    pub(super) fn offer(
        &self,
        snapshot: &Arc<Snapshot>,
        query: &Embedding,
        kind: Option<&QueryKind>,
        top_k: usize,
        hits: &[Hit],
    ) {
        let Some(worker) = &self.worker else { return };
        if rand::random::<f64>() >= self.options.rate {
            return;
        }
        let k = top_k.min(RECALL_K);
        let room = !self.shared.resting.load(Ordering::Relaxed) && !worker.queue.is_full() && self.admit();
        let sample = || Sample {
            snapshot: snapshot.clone(),
            query: query.clone(),
            kind: kind.cloned(),
            k,
            found: hits.iter().take(k).map(|hit| hit.id).collect(),
        };
        if !room || worker.queue.try_send(sample()).is_err() {
            self.shared.count_dropped(snapshot);
        }
    }

    /// Whether this second has room for one more.
    fn admit(&self) -> bool {
        let second = self.started.elapsed().as_secs() & u64::from(u32::MAX);
        let most = u64::from(self.options.max_per_second);
        let next = |sent: u64| {
            let count = if sent >> 32 == second { sent & u64::from(u32::MAX) } else { 0 };
            (count < most).then_some(second << 32 | (count + 1))
        };
        self.sent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        let Some(Worker { queue, awake, thread }) = self.worker.take() else { return };
        // First the flag: what is under way ends at the next block of rows.
        self.shared.stop.store(true, Ordering::Relaxed);
        drop((queue, awake));
        if thread.join().is_err() {
            warn!("the thread that measures live recall had crashed");
        }
    }
}

/// The thread: measures what is there, then rests.
fn work(shared: &Shared, samples: &Receiver<Sample>, asleep: &Receiver<()>) {
    step_back(19);
    while let Ok(first) = samples.recv() {
        let (start, computed) = (Instant::now(), core_time());
        let mut waiting = std::iter::once(first).chain(samples.try_iter()).take(QUEUE + 1);
        while start.elapsed() < LONG
            && let Some(sample) = waiting.next()
        {
            measure(shared, sample);
        }
        let took = start.elapsed();
        let computed = core_time().zip(computed).map_or(took, |(now, before)| now.saturating_sub(before));
        let rest = took.max(computed * REST);
        shared.resting.store(true, Ordering::Relaxed);
        // What is left, or slipped in between, would be kept alive through the rest.
        samples.try_iter().for_each(|sample| shared.count_dropped(&sample.snapshot));
        if asleep.recv_timeout(rest) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        shared.resting.store(false, Ordering::Relaxed);
    }
}

fn measure(shared: &Shared, sample: Sample) {
    let Sample { snapshot, query, kind, k, found } = sample;
    let truth = match snapshot.truth(&query, k, &shared.stop) {
        Ok(Some(truth)) => truth,
        Ok(None) => return,
        Err(problem) => return warn!(%problem, "the recall of a search could not be measured"),
    };
    let (recall, now) = (exact::recall(&truth, &found), SystemTime::now());
    let (cache, generation) = (snapshot.record(), snapshot.generation());
    let mut windows = shared.windows.lock().unwrap_or_else(PoisonError::into_inner);
    let kinds = windows.entry(cache.id).or_default();
    let word = match &kind {
        Some(kind) if kinds.len() < MAX_KINDS || kinds.contains_key(kind.as_str()) => kind.as_str(),
        _ => OTHER,
    };
    let window = kinds.entry(word.to_owned()).or_insert(Window { generation, samples: VecDeque::new() });
    if window.generation != generation {
        *window = Window { generation, samples: VecDeque::new() };
    }
    if window.samples.len() == WINDOW {
        window.samples.pop_front();
    }
    window.samples.push_back((recall, now));
    metrics::observe_recall(cache.name.as_str(), word, window.mean());
}

/// What the calling thread has had of a core so far, where the system tells.
fn core_time() -> Option<Duration> {
    #[cfg(target_os = "linux")]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Some(Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?))
    }
    #[cfg(not(target_os = "linux"))]
    None
}
