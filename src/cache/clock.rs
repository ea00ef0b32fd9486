//! When a scan is no longer wanted: looked at between stretches of rows, by all threads that scan.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::index::{Error, SearchParams};

/// The deadline of one search.
pub(super) struct Clock {
    deadline: Option<Instant>,
    late: AtomicBool,
}

impl Clock {
    pub(super) fn of(params: &SearchParams) -> Self {
        Clock { deadline: params.deadline, late: AtomicBool::new(false) }
    }

    /// None.
    pub(super) fn never() -> Self {
        Clock { deadline: None, late: AtomicBool::new(false) }
    }

    /// Whether it is late by now. Looking costs as much as scoring a row.
    pub(super) fn look(&self) -> bool {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.late.store(true, Ordering::Relaxed);
        }
        self.late()
    }

    /// Whether it was late at some look.
    pub(super) fn late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }

    /// # Errors
    /// [`Error::Deadline`] when it was late at some look: what was scanned is then not all.
    pub(super) fn in_time(&self) -> Result<(), Error> {
        if self.late() { Err(Error::Deadline) } else { Ok(()) }
    }
}
