//! A few at a time: programs that run for requests, and pictures that are decoded beside the model's own threads.
//!
//! Whoever waits looks at whether it is still wanted, so that a slot is never waited for by nobody. Waiting is done on the thread that
//! a request has for itself, and never on those that all requests share.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Call, Error};

/// How often one who waits looks at whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// So many at a time.
#[derive(Debug)]
pub struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot<'a>(&'a Slots);

impl Slots {
    /// As many as there are processors.
    pub fn of_processors() -> Self {
        Slots::of(std::thread::available_parallelism().map_or(1, usize::from))
    }

    pub(super) fn of(count: usize) -> Self {
        Slots { free: Mutex::new(count.max(1)), freed: Condvar::new() }
    }

    /// Waits for one.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Deadline`].
    pub(super) fn take(&self, call: &Call) -> Result<Slot<'_>, Error> {
        let mut free = self.lock();
        loop {
            call.check()?;
            if let Some(rest) = free.checked_sub(1) {
                *free = rest;
                return Ok(Slot(self));
            }
            free = self.freed.wait_timeout(free, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.lock() += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use super::*;

    #[test]
    fn there_are_never_more_than_so_many() {
        let (slots, inside, most) = (Slots::of(2), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _slot = slots.take(&Call::default()).unwrap();
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.into_inner() <= 2);
        let _both = [slots.take(&Call::default()).unwrap(), slots.take(&Call::default()).unwrap()];
        let late = Call { deadline: Some(Instant::now() + Duration::from_millis(5)), ..Call::default() };
        assert!(matches!(slots.take(&late), Err(Error::Deadline)));
    }
}
