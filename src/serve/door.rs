//! Who may come in, how long they wait, and what is counted.
//!
//! A request takes one of `max_concurrent` places or is refused at once, in words that say when to come back. Inside,
//! it waits for one of a few workers, because more threads than cores only make everyone slower. Its deadline is the
//! client's `grpc-timeout`; when that passes, or the client goes, the flag in its [`Call`] stops the work. Work of a
//! fraction of a millisecond is done on the thread it arrived on: handing it over would cost as much as doing it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::status;
use crate::flow::{self, App, Call, Limits};
use crate::metrics;

/// Taken off a client's timeout, so that our own answer wins over the transport's less telling one.
const TIMEOUT_MARGIN: Duration = Duration::from_millis(2);

/// The way in of one server.
pub(super) struct Door {
    places: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    capacity: usize,
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
    _place: OwnedSemaphorePermit,
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
    pub(super) fn new(limits: &Limits) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Door {
            places: Arc::new(Semaphore::new(limits.max_concurrent)),
            workers: Arc::new(Semaphore::new(2 * cores)),
            capacity: limits.max_concurrent,
            started: Instant::now(),
            methods: Mutex::default(),
        }
    }

    /// Takes a place.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when there is none.
    pub(super) fn enter(&self, method: &'static str) -> Result<Pass, Status> {
        let counts = {
            let mut methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
            methods.entry(method).or_default().clone()
        };
        match self.places.clone().try_acquire_owned() {
            Ok(place) => Ok(Pass { _place: place, method, counts, code: Code::Cancelled }),
            Err(_) => {
                counts.calls.fetch_add(1, Ordering::Relaxed);
                counts.errors.fetch_add(1, Ordering::Relaxed);
                metrics::observe_request(method, status::code_name(Code::ResourceExhausted));
                Err(status::exhausted(self.capacity))
            }
        }
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
        let done = self.run(app, metadata, load, work).await;
        pass.code = done.as_ref().map_or_else(Status::code, |_| Code::Ok);
        done
    }

    async fn run<T: Send + 'static>(
        &self,
        app: &Arc<App>,
        metadata: &MetadataMap,
        load: Load,
        work: impl FnOnce(&App, &Call) -> Result<T, flow::Error> + Send + 'static,
    ) -> Result<(T, Duration), Status> {
        let arrived = Instant::now();
        let deadline = timeout(metadata).map(|t| arrived + t.saturating_sub(TIMEOUT_MARGIN));
        let call = Call { deadline, ..Call::default() };
        let _cancel = CancelOnDrop(call.cancelled.clone());
        if let (Load::Light, Ok(_worker)) = (load, self.workers.try_acquire()) {
            let done = catch_unwind(AssertUnwindSafe(|| call.check().and_then(|()| work(app, &call))));
            return answer(done.map_err(|_| ())).map(|result| (result, Duration::ZERO));
        }
        let (app, workers) = (app.clone(), self.workers.clone());
        let run = async move {
            let worker = match load {
                Load::Model => None,
                Load::Light | Load::Heavy => {
                    let worker = workers.acquire_owned().await;
                    Some(worker.map_err(|_| status::of(&flow::Error::Cancelled))?)
                }
            };
            let waited = arrived.elapsed();
            let done = tokio::task::spawn_blocking(move || {
                let _worker = worker;
                call.check()?;
                work(&app, &call)
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

    /// Time since the server started.
    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Places taken.
    pub(super) fn in_flight(&self) -> usize {
        self.capacity - self.places.available_permits()
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
        Err(()) => Err(status::internal("the request's work crashed; the server goes on")),
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
        for bad in ["", "5", "x", "5x", "99999999999999999999S", "-1S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_full_house_refuses_and_a_leaver_makes_room() {
        let door = Door::new(&Limits { max_concurrent: 1, ..Limits::default() });
        let pass = door.enter("a").unwrap();
        let refused = door.enter("a").err().unwrap();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        drop(pass);
        assert!(door.enter("a").is_ok());
    }
}
