//! Who may come in, how long they wait, and what is counted.
//!
//! A request takes one of `max_concurrent` places or is refused at once, in words that say when to come back; it keeps the place until
//! its reply has gone ([`Seat`]). A stream has a place among streams, and each of its messages one among requests while it is worked
//! on. Inside, a request waits for one of a few workers, because more threads than cores only make everyone slower. Its deadline is
//! the client's `grpc-timeout`; when that passes, or the client goes, the flag in its [`Call`] stops the work. Work of a fraction of a
//! millisecond is done on the thread it arrived on: handing it over would cost as much as doing it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tracing::Span;

use super::body::Replies;
use super::methods::Method;
use super::seat::Seat;
use super::status;
use crate::budget::{Budget, Tab};
use crate::flow::{self, App, Call, Limits};
use crate::metrics;

/// Taken off a client's timeout, so that our own answer wins over the transport's less telling one.
const TIMEOUT_MARGIN: Duration = Duration::from_millis(2);

/// The way in of one server.
pub(super) struct Door {
    /// What is refused beyond.
    pub(super) limits: Limits,
    /// Replies on their way.
    pub(super) replies: Replies,
    /// Memory of all requests together.
    budget: Budget,
    places: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    /// Places to wait for one of them.
    line: Arc<Semaphore>,
    /// Whether the server stops, and takes nothing new.
    stopping: watch::Sender<bool>,
    started: Instant,
    methods: Mutex<BTreeMap<&'static str, Arc<Counts>>>,
}

/// What has been counted of one method.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) calls: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) items: AtomicU64,
    pub(super) item_errors: AtomicU64,
}

/// A place taken; counts its call when it ends.
pub(super) struct Pass {
    /// Of a message of a stream; other requests have theirs in their seat.
    _place: Option<OwnedSemaphorePermit>,
    seat: Option<Arc<Seat>>,
    method: &'static str,
    counts: Arc<Counts>,
    /// How the call ends, as far as is known: one that is dropped half-way was cancelled.
    code: Code,
}

impl Pass {
    /// Says that a call which had begun well has ended badly.
    pub(super) fn failed(&mut self, code: Code) {
        self.code = code;
    }

    /// Says how many items were in the call and how many of them failed.
    pub(super) fn count(&mut self, items: usize, errors: usize) {
        self.counts.items.fetch_add(items as u64, Ordering::Relaxed);
        self.counts.item_errors.fetch_add(errors as u64, Ordering::Relaxed);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        self.counts.errors.fetch_add(u64::from(self.code != Code::Ok), Ordering::Relaxed);
        metrics::observe_request(self.method, status::code_name(self.code));
    }
}

/// What a request's work asks of the thread it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// A few searches in memory: done on the thread that serves the connection, when a worker is free.
    Light,
    /// Disks, large batches: done on a thread that may block.
    Heavy,
    /// Something to embed: such work mostly waits for its turn at the model, so it takes no worker from others. The queue before
    /// the model bounds it.
    Model,
}

/// Raises a call's flag when the future that holds it is dropped: the client has gone.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Door {
    pub(super) fn new(limits: &Limits, budget: &Budget) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Door {
            limits: *limits,
            replies: Replies::default(),
            budget: budget.clone(),
            places: Arc::new(Semaphore::new(limits.max_concurrent)),
            streams: Arc::new(Semaphore::new(limits.max_streams)),
            workers: Arc::new(Semaphore::new(2 * cores)),
            line: Arc::new(Semaphore::new(limits.max_waiting_searches)),
            stopping: watch::Sender::new(false),
            started: Instant::now(),
            methods: Mutex::default(),
        }
    }

    /// Takes a place for a request whose first header has come.
    ///
    /// * `span`: what the log calls it. `packed`: whether replies are compressed.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when there is none; UNAVAILABLE while the server stops.
    pub(super) fn seat(
        &self,
        method: &'static Method,
        span: Span,
        packed: bool,
    ) -> Result<Arc<Seat>, Status> {
        let place = match method {
            _ if *self.stopping.borrow() => Err(status::stopping()),
            // Whoever looks after a full house asks for these numbers.
            Method { always: true, .. } => Ok(None),
            Method { stream, .. } => {
                let (places, capacity, what) = match stream {
                    true => (&self.streams, self.limits.max_streams, "streams"),
                    false => (&self.places, self.limits.max_concurrent, "requests"),
                };
                self.place(places, capacity, what).map(Some)
            }
        };
        match place {
            Ok(place) => {
                let limit = self.limits.max_message_bytes;
                Ok(Arc::new(Seat::new(method, span, packed, limit, &self.budget, place)))
            }
            Err(refused) => {
                self.refused(&method.name, &refused);
                Err(refused)
            }
        }
    }

    /// Lets a request in that the caller works for, or one message of a stream.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when there is no place for a message.
    pub(super) fn enter(&self, method: &'static str) -> Result<Pass, Status> {
        let seat = Seat::current();
        let seated = seat.as_ref().is_some_and(|seat| !seat.method.stream);
        let place = match seated {
            true => None,
            false => match self.place(&self.places, self.limits.max_concurrent, "requests") {
                Ok(place) => Some(place),
                Err(refused) => {
                    self.refused(method, &refused);
                    return Err(refused);
                }
            },
        };
        Ok(Pass { _place: place, seat, method, counts: self.counts_of(method), code: Code::Cancelled })
    }

    fn place(
        &self,
        places: &Arc<Semaphore>,
        capacity: usize,
        what: &str,
    ) -> Result<OwnedSemaphorePermit, Status> {
        places.clone().try_acquire_owned().map_err(|_| status::exhausted(capacity, what))
    }

    fn counts_of(&self, method: &'static str) -> Arc<Counts> {
        let mut methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        methods.entry(method).or_default().clone()
    }

    fn refused(&self, method: &'static str, status: &Status) {
        let counts = self.counts_of(method);
        counts.calls.fetch_add(1, Ordering::Relaxed);
        counts.errors.fetch_add(1, Ordering::Relaxed);
        metrics::observe_request(method, status::code_name(status.code()));
    }

    /// Takes nothing new from now on, and ends the streams after what they work on.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Whether the server stops, for who waits for it.
    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Runs work as one of the workers, within the caller's deadline. The pass is told how it ended.
    ///
    /// # Errors
    /// What the work fails with, DEADLINE_EXCEEDED, or INTERNAL if it panics (the server lives).
    pub(super) async fn work<T: Send + 'static>(
        &self,
        pass: &mut Pass,
        app: &Arc<App>,
        metadata: &MetadataMap,
        load: Load,
        work: impl FnOnce(&App, &Call) -> Result<T, flow::Error> + Send + 'static,
    ) -> Result<(T, Duration), Status> {
        let done = self.run(pass.seat.clone(), app, metadata, load, work).await;
        pass.code = done.as_ref().map_or_else(Status::code, |_| Code::Ok);
        done
    }

    async fn run<T: Send + 'static>(
        &self,
        seat: Option<Arc<Seat>>,
        app: &Arc<App>,
        metadata: &MetadataMap,
        load: Load,
        work: impl FnOnce(&App, &Call) -> Result<T, flow::Error> + Send + 'static,
    ) -> Result<(T, Duration), Status> {
        let arrived = Instant::now();
        // One that is too far away to be told is none.
        let deadline = timeout(metadata).and_then(|t| arrived.checked_add(t.saturating_sub(TIMEOUT_MARGIN)));
        let tab = seat.as_ref().map_or_else(|| Tab::of(&self.budget), |seat| seat.tab());
        let call = Call { deadline, tab, ..Call::default() };
        let _cancel = CancelOnDrop(call.cancelled.clone());
        if let (Load::Light, Ok(_worker)) = (load, self.workers.try_acquire()) {
            let done = catch_unwind(AssertUnwindSafe(|| call.check().and_then(|()| work(app, &call))));
            return answer(done.map_err(|_| ())).map(|result| (result, Duration::ZERO));
        }
        let (app, workers) = (app.clone(), self.workers.clone());
        // Whoever would wait long is told so at once, and those who are served are served as soon as ever.
        let waiting = match load {
            Load::Model => None,
            Load::Light | Load::Heavy => {
                Some(self.place(&self.line, self.limits.max_waiting_searches, "searches")?)
            }
        };
        let run = async move {
            let worker = match waiting {
                None => None,
                Some(_waiting) => {
                    let worker = workers.acquire_owned().await;
                    Some(worker.map_err(|_| status::of(&flow::Error::Cancelled))?)
                }
            };
            let waited = arrived.elapsed();
            let done = tokio::task::spawn_blocking(move || {
                let _worker = worker;
                let work = || {
                    call.check()?;
                    work(&app, &call)
                };
                match &seat {
                    Some(seat) => seat.within(work),
                    None => work(),
                }
            });
            answer(done.await.map_err(|_| ())).map(|result| (result, waited))
        };
        match deadline {
            None => run.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), run)
                .await
                .unwrap_or_else(|_| Err(status::of(&flow::Error::Deadline))),
        }
    }

    /// Calls that ended.
    pub(super) fn calls(&self) -> u64 {
        let methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        methods.values().map(|counts| counts.calls.load(Ordering::Relaxed)).sum()
    }

    /// Time since the server started.
    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Places taken.
    pub(super) fn in_flight(&self) -> usize {
        self.limits.max_concurrent - self.places.available_permits()
    }

    /// Streams that are open.
    pub(super) fn open_streams(&self) -> usize {
        self.limits.max_streams - self.streams.available_permits()
    }

    /// Counts of every method that was called.
    pub(super) fn counts(&self) -> Vec<(&'static str, Arc<Counts>)> {
        let methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        methods.iter().map(|(name, counts)| (*name, counts.clone())).collect()
    }
}

/// The answer of work that may have failed, or crashed.
fn answer<T>(done: Result<Result<T, flow::Error>, ()>) -> Result<T, Status> {
    match done {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(status::of(&error)),
        Err(()) => Err(status::crashed()),
    }
}

/// Reads `grpc-timeout`: up to eight digits and a unit.
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let value = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count.checked_mul(3600)?),
        "M" => Duration::from_secs(count.checked_mul(60)?),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |value: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", value.parse().unwrap());
            timeout(&metadata)
        };
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("9999999999999999999S"), Some(Duration::from_secs(9999999999999999999)));
        for bad in ["", "5", "x", "5x", "99999999999999999999S", "-1S", "9999999999999999999H"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_full_house_refuses_and_a_leaver_makes_room() {
        let door = Door::new(&Limits { max_concurrent: 1, ..Limits::default() }, &Budget::unlimited());
        let pass = door.enter("a").unwrap();
        let refused = door.enter("a").err().unwrap();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        drop(pass);
        assert!(door.enter("a").is_ok());
    }
}
