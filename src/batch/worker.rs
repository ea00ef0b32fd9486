//! The threads that own the model: on the CPU one for each lane, on a card one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crossbeam_channel::Sender;
use rayon::ThreadPoolBuilder;

use super::queue::Taken;
use super::views::Film;
use super::{Error, Input, Job, Shared};
use crate::models::encoder::{Encoded, Encoder, PrepareError, Prepared};
use crate::{media, metrics, models};

/// Starts them; each ends when the queue is closed and empty.
///
/// # Errors
/// When the system refuses a thread.
pub(super) fn start(shared: &Arc<Shared>, batch: u64) -> std::io::Result<()> {
    // A lane takes one input at a time, whatever it costs.
    let (threads, most) = match shared.encoder.lanes() {
        0 => (1, batch * shared.encoder.picture_cost()),
        lanes => (lanes, 0),
    };
    for lane in 0..threads {
        let shared = shared.clone();
        let named = std::thread::Builder::new().name(format!("model-{lane}"));
        named.spawn(move || work(&shared, most))?;
    }
    Ok(())
}

fn work(shared: &Shared, most: u64) {
    // candle spreads its work over the pool it is called in: here this thread alone, which then need not wake another.
    let pool = ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    let alone = (shared.encoder.lanes() > 0).then(|| pool.build());
    if let Some(Err(error)) = &alone {
        tracing::warn!(%error, "the threads of the model share one pool");
    }
    while let Some(Taken { batch, dropped }) = next(shared, most) {
        for job in dropped {
            metrics::observe_embed_dropped(job.input.modality().word());
            let error = if job.wait.check().is_err_and(|e| matches!(e, Error::Cancelled)) {
                Error::Cancelled
            } else {
                Error::Deadline
            };
            job.answer.answer(Err(error));
        }
        let Some(first) = batch.first() else { continue };
        metrics::observe_batch(first.input.modality().word(), batch.len(), first.since.elapsed());
        let (mut inputs, mut jobs) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for Job { input, answer, .. } in batch {
            match prepared(&shared.encoder, input) {
                Ok(input) => {
                    inputs.push(input);
                    jobs.push(answer);
                }
                Err(error) => answer.answer(Err(error.into())),
            }
        }
        let done = catch_unwind(AssertUnwindSafe(|| shared.encoder.encode_here(&inputs)));
        let mut done = done.unwrap_or_default().into_iter();
        for job in jobs {
            let crashed =
                || Err(models::Error::Input { received: vec![], why: "encoding it crashed".into() });
            job.answer(done.next().unwrap_or_else(crashed).map_err(Error::from));
        }
    }
}

/// A decoder that panics on a hostile file costs that file, not the thread.
fn prepared(encoder: &Encoder, input: Input) -> Result<Prepared, PrepareError> {
    match input {
        Input::Prepared(prepared) => Ok(prepared),
        Input::Raw(_, prepare) => catch_unwind(AssertUnwindSafe(|| prepare(encoder)))
            .unwrap_or_else(|_| Err(media::Error::Crashed.into())),
    }
}

/// Waits for the next batch; nothing when the end has come.
fn next(shared: &Shared, most: u64) -> Option<Taken<Job>> {
    let mut state = shared.lock();
    loop {
        let taken = state.queue.next_batch(Instant::now(), most, |job| {
            job.wait.cancelled.load(Ordering::Relaxed) || job.answer.is_known()
        });
        if !taken.batch.is_empty() || !taken.dropped.is_empty() {
            drop(state);
            shared.room.notify_all();
            return Some(taken);
        }
        if state.closed {
            return None;
        }
        state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Where a result goes.
#[derive(Clone)]
pub(super) struct Answer {
    /// The input's place among those its caller sent.
    at: usize,
    caller: Sender<(usize, Result<Encoded, Error>)>,
    /// It is of one view of a film.
    view: Option<(Arc<Film>, usize)>,
}

impl Answer {
    pub(super) fn of(at: usize, caller: Sender<(usize, Result<Encoded, Error>)>) -> Self {
        Answer { at, caller, view: None }
    }

    pub(super) fn of_view(&self, film: &Arc<Film>, nth: usize) -> Self {
        Answer { view: Some((film.clone(), nth)), ..self.clone() }
    }

    /// Whether the caller knows already, by another view.
    fn is_known(&self) -> bool {
        self.view.as_ref().is_some_and(|(film, _)| film.is_answered())
    }

    /// Nobody may be listening any more.
    fn answer(self, result: Result<Encoded, Error>) {
        let whole = match &self.view {
            None => Some(result),
            Some((film, nth)) => film.seen(*nth, result),
        };
        if let Some(result) = whole {
            _ = self.caller.send((self.at, result));
        }
    }
}
