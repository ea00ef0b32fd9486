//! Bodies on their way in and out: counted, and given up where nothing moves.
//!
//! ```text
//! in     frame ─► the length of the next message: taken from the budget, before the rest of it comes
//!        nothing for a while within a message, or too slow altogether: DEADLINE_EXCEEDED
//! out    reply ─► pieces, the next one when the transport asks for it
//!        not asked for a while: the reader has stopped; what the reply holds is given back, and the rest of it is not sent
//! ```
//! A reader who has stopped is found by a round over all replies ([`Replies::sweep`]): whoever is not asked cannot look at a clock.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Frame;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

use super::listen::Busy;
use super::seat::Seat;
use super::status;

/// Bytes before a message: whether it is compressed, and its length.
const HEADER: usize = 5;
/// Bytes of a reply that the transport is given at a time.
const PIECE: usize = 64 << 10;
/// Time that a whole message may take on its way, however steadily it comes.
const MESSAGE_TIME: Duration = Duration::from_secs(300);

/// A request's body.
pub(super) struct Incoming {
    body: Body,
    seat: Arc<Seat>,
    /// Largest message.
    limit: u64,
    patience: Duration,
    /// Of the header that is being read: its bytes so far.
    header: Vec<u8>,
    /// Bytes that are missing of the message that is being read.
    missing: u64,
    /// When the message that is being read began.
    begun: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// * `limit`: bytes of a message; of a larger one the decoder says so. `patience`: time without a byte.
    pub(super) fn new(body: Body, seat: Arc<Seat>, limit: usize, patience: Duration) -> Self {
        let limit = limit as u64;
        let (header, begun) = (Vec::with_capacity(HEADER), Instant::now());
        Incoming { body, seat, limit, patience, header, missing: 0, begun, timer: None }
    }

    /// Takes what the messages that begin in these bytes need.
    fn account(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        while !bytes.is_empty() {
            if self.missing > 0 {
                let here = self.missing.min(bytes.len() as u64);
                self.missing -= here;
                bytes = &bytes[here as usize..];
                continue;
            }
            if self.header.is_empty() {
                self.begun = Instant::now();
            }
            let (head, rest) = bytes.split_at(bytes.len().min(HEADER - self.header.len()));
            self.header.extend_from_slice(head);
            bytes = rest;
            if let &[packed, a, b, c, d] = &self.header[..] {
                let length = [a, b, c, d];
                self.header.clear();
                self.missing = u32::from_be_bytes(length).into();
                let unpacked = if packed == 0 { 0 } else { self.limit };
                if self.missing <= self.limit {
                    self.seat.arrives(self.missing, unpacked).map_err(|full| status::full(&full))?;
                }
            }
        }
        Ok(())
    }

    /// Whether somebody waits for bytes that were announced: of a stream nobody does between two messages.
    fn waited_for(&self) -> bool {
        self.missing > 0 || !self.header.is_empty() || !self.seat.method.stream
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let slow =
            || Status::deadline_exceeded("the request stopped arriving, or came too slowly; send it again");
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.timer = None;
                if let Some(bytes) = frame.data_ref().cloned() {
                    self.account(&bytes)?;
                }
                if self.missing > 0 && self.begun.elapsed() > MESSAGE_TIME {
                    return Poll::Ready(Some(Err(slow())));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending if self.waited_for() => {
                let patience = self.patience;
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                ready!(timer.as_mut().poll(context));
                Poll::Ready(Some(Err(slow())))
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// A reply's body.
pub(super) struct Outgoing(Arc<Reply>);

struct Reply(Mutex<State>);

struct State {
    /// Nothing when it has ended, or was given up.
    going: Option<Going>,
    /// When the transport was last given something, if it has not asked for more since.
    given: Option<Instant>,
}

/// A reply that is being sent.
struct Going {
    body: Body,
    /// What of the last frame was not given yet.
    rest: Bytes,
    /// Held until it has gone.
    _seat: Option<Arc<Seat>>,
    _busy: Busy,
}

/// The replies that are being sent.
#[derive(Default)]
pub(super) struct Replies(Mutex<Vec<Weak<Reply>>>);

impl Replies {
    /// Sends a reply for which a seat is held, and the connection is busy.
    pub(super) fn send(&self, body: Body, seat: Option<Arc<Seat>>, busy: Busy) -> Body {
        let going = Some(Going { body, rest: Bytes::new(), _seat: seat, _busy: busy });
        let reply = Arc::new(Reply(Mutex::new(State { going, given: None })));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&reply));
        Body::new(Outgoing(reply))
    }

    /// Gives up the replies whose readers have taken nothing for so long. Returns how many.
    pub(super) fn sweep(&self, patience: Duration) -> usize {
        let mut stopped = Vec::new();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|reply| {
            let Some(reply) = reply.upgrade() else { return false };
            let mut state = reply.lock();
            if state.given.is_some_and(|since| since.elapsed() >= patience) {
                stopped.extend(state.going.take());
            }
            state.going.is_some()
        });
        // Dropped here, where nobody waits for a lock.
        stopped.len()
    }
}

impl Reply {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut state = self.0.lock();
        let State { going, given } = &mut *state;
        *given = None;
        let Some(Going { body, rest, .. }) = going else {
            return Poll::Ready(Some(Err(Status::deadline_exceeded("the reply was not read; it is gone"))));
        };
        if rest.is_empty() {
            match ready!(Pin::new(body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => *rest = data,
                    Err(trailers) => {
                        *given = Some(Instant::now());
                        return Poll::Ready(Some(Ok(trailers)));
                    }
                },
                ended => {
                    *going = None;
                    return Poll::Ready(ended);
                }
            }
        }
        let piece = rest.split_to(rest.len().min(PIECE));
        *given = Some(Instant::now());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.lock();
        state.going.as_ref().is_some_and(|going| going.rest.is_empty() && going.body.is_end_stream())
    }
}
