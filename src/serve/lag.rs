//! How long requests wait before anybody looks at them, and whom that turns away.
//!
//! Work of a moment is done where it arrives; more of it than the processors can do shows as a line of requests that have come and were
//! not begun. While they wait longer than [`PATIENCE`], newcomers are refused where that line is longer than what is begun in that time:
//! whoever is let in is answered about as soon as ever, and whoever is not learns it at once. A burst after a quiet moment
//! finds nobody waiting, and comes in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time that a request may wait to be begun before newcomers are refused.
const PATIENCE: Duration = Duration::from_millis(8);
/// A line that is never too long.
const SHORT: usize = 16;
/// Share of a new measurement in the mean.
const NEW: f64 = 0.1;
/// Time over which it is counted how many are begun.
const WINDOW: Duration = Duration::from_millis(100);

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Lag(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Requests that have come and were not begun.
    waiting: usize,
    /// Seconds that the last ones waited, on the mean.
    wait: f64,
    /// When the last one was begun.
    last: Option<Instant>,
    /// Requests begun in the window that began then, and a second in the one before.
    begun: usize,
    window: Option<Instant>,
    rate: f64,
}

impl Lag {
    /// Whether one more may come in; it then waits until [`Lag::begun`] or [`Lag::left`] says that it does not.
    pub(super) fn comes(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let fits = SHORT.max((state.rate * PATIENCE.as_secs_f64()) as usize);
        // What was measured long ago says nothing of now.
        let fresh = state.last.is_some_and(|last| now.saturating_duration_since(last) < WINDOW);
        if fresh && state.wait > PATIENCE.as_secs_f64() && state.waiting >= fits {
            return false;
        }
        state.waiting += 1;
        true
    }

    /// One that came at `since` is begun.
    pub(super) fn begun(&self, since: Instant, now: Instant) {
        let mut state = self.lock();
        state.waiting = state.waiting.saturating_sub(1);
        let waited = now.saturating_duration_since(since).as_secs_f64();
        state.wait += NEW * (waited - state.wait);
        state.last = Some(now);
        let window = *state.window.get_or_insert(now);
        state.begun += 1;
        let passed = now.saturating_duration_since(window);
        if passed >= WINDOW {
            state.rate = state.begun as f64 / passed.as_secs_f64();
            (state.begun, state.window) = (0, Some(now));
        }
    }

    /// One that came has left without having been begun.
    pub(super) fn left(&self) {
        let mut state = self.lock();
        state.waiting = state.waiting.saturating_sub(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One that has come, until it is begun or leaves.
pub(super) struct Waits {
    lag: Arc<Lag>,
    since: Instant,
    waits: AtomicBool,
}

impl Waits {
    /// * `counted`: whether it was among those that [`Lag::comes`] has let in.
    pub(super) fn new(lag: &Arc<Lag>, counted: bool) -> Self {
        Waits { lag: lag.clone(), since: Instant::now(), waits: AtomicBool::new(counted) }
    }

    /// It is begun; of a stream, its first message.
    pub(super) fn begun(&self, now: Instant) {
        if self.waits.swap(false, Ordering::Relaxed) {
            self.lag.begun(self.since, now);
        }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if self.waits.load(Ordering::Relaxed) {
            self.lag.left();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_comes_in_and_a_crowd_that_waits_keeps_others_out() {
        let (lag, start) = (Lag::default(), Instant::now());
        assert!((0..200).all(|_| lag.comes(start)), "nobody has waited yet");
        (0..200).for_each(|_| lag.left());
        // A thousand come each second more than are begun: 2000.
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut line = std::collections::VecDeque::new();
        let (mut refused, mut longest) = (0, Duration::ZERO);
        for ms in 0..3000u64 {
            for _ in 0..3 {
                match lag.comes(at(ms)) {
                    true => line.push_back(at(ms)),
                    false => refused += 1,
                }
            }
            for since in line.drain(..line.len().min(2)) {
                lag.begun(since, at(ms));
                if ms > 500 {
                    longest = longest.max(at(ms) - since);
                }
            }
        }
        assert!((2500..=3100).contains(&refused), "{refused}");
        assert!(longest <= 2 * PATIENCE, "{longest:?}");
        // And it is forgotten as soon as it is over.
        line.clear();
        assert!(lag.comes(at(3200)));
    }
}
