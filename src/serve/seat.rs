//! What one request holds from its first header to the last byte of its reply: a place at the door, and memory.
//!
//! ```text
//! header ─► Seat ─► arriving: a message's length ─► decoded: what it takes ─► working: what flows write down ─► replying ─► dropped
//! ```
//! The layer around the services makes it; whoever works for the request finds it as the task's own ([`Seat::current`]), because the
//! codec that decodes a message is told nothing else. Of a stream every message takes the place of the one before.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedSemaphorePermit;
use tracing::Span;

use super::methods::Method;
use crate::budget::{Budget, Full, Lease, Tab};

tokio::task_local! {
    static CURRENT: Arc<Seat>;
}

/// See the module's text.
pub(super) struct Seat {
    /// What was called.
    pub(super) method: &'static Method,
    /// Around everything that is logged for it.
    pub(super) span: Span,
    /// Whether its messages may be compressed, and replies then are.
    packed: bool,
    /// Bytes that one message may take when it is decoded.
    pub(super) most_decoded: u64,
    budget: Budget,
    held: Mutex<Held>,
    _place: Option<OwnedSemaphorePermit>,
}

/// How many times its largest size a message may take when it is decoded, and bytes that every one may.
const DECODED: u64 = 4;
const DECODED_LEAST: u64 = 16 << 20;

struct Held {
    /// Messages that arrive or are worked on.
    asked: Lease,
    /// What was taken for each message that is not decoded yet.
    arriving: VecDeque<u64>,
    /// The reply that is being sent.
    reply: Lease,
    /// What was written down for the message that is worked on.
    tab: Option<Tab>,
}

impl Seat {
    pub(super) fn new(
        method: &'static Method,
        span: Span,
        packed: bool,
        max_message_bytes: usize,
        budget: &Budget,
        place: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let most_decoded = (DECODED * max_message_bytes as u64).max(DECODED_LEAST);
        let held =
            Held { asked: budget.lease(), arriving: VecDeque::new(), reply: budget.lease(), tab: None };
        let (budget, held) = (budget.clone(), Mutex::new(held));
        Seat { method, span, packed, most_decoded, budget, held, _place: place }
    }

    /// The seat of the request that the calling task or thread works for.
    pub(super) fn current() -> Option<Arc<Seat>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Works for it in a future.
    pub(super) fn scope<F: Future>(self: &Arc<Self>, work: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self.clone(), tracing::Instrument::instrument(work, self.span.clone()))
    }

    /// Works for it on this thread.
    pub(super) fn within<T>(self: &Arc<Self>, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), || self.span.in_scope(work))
    }

    /// A message of so many bytes is about to arrive.
    ///
    /// * `unpacked`: what it may become where it is compressed.
    ///
    /// # Errors
    /// [`Full`].
    pub(super) fn arrives(&self, bytes: u64, unpacked: u64) -> Result<(), Full> {
        let mut held = self.held();
        held.asked.grow(bytes + unpacked)?;
        held.arriving.push_back(bytes + unpacked);
        Ok(())
    }

    /// The next message has arrived and is about to be decoded: bytes of it, and what it takes beside them.
    ///
    /// # Errors
    /// [`Full`].
    pub(super) fn decodes(&self, bytes: u64, beside: u64) -> Result<(), Full> {
        let mut held = self.held();
        held.arriving.pop_front();
        let waiting: u64 = held.arriving.iter().sum();
        held.asked.resize(waiting + bytes + beside)
    }

    /// A tab for the message that is worked on; that of the one before is given back with its last holder.
    pub(super) fn tab(&self) -> Tab {
        let tab = Tab::of(&self.budget);
        self.held().tab = Some(tab.clone());
        tab
    }

    /// A reply of so many bytes is written; the one before has left. Refusing it would be too late: what it is made of is there, and was
    /// counted.
    pub(super) fn replies(&self, bytes: u64) {
        let twice = if self.packed { 2 } else { 1 };
        self.held().reply.note(twice * bytes);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
