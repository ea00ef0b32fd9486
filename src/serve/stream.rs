//! Streams of requests, answered one after another in their order.

use std::pin::Pin;
use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Status, Streaming};

use super::door::Door;
use super::seat::Seat;
use super::status;

/// Answers that may wait for a slow reader.
const BUFFER: usize = 4;

/// A stream of answers, as tonic wants it.
pub(super) type Answers<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

/// Answers every request by `answer`, until the requests end, the client goes or the server stops. Work for a client that has gone
/// is dropped, which stops it and frees its place; where the server stops, what is worked on is answered first.
pub(super) fn answer_each<Q, A, F>(
    door: &Arc<Door>,
    mut requests: Streaming<Q>,
    answer: impl Fn(Q) -> F + Send + Sync + 'static,
) -> Answers<A>
where
    Q: Send + 'static,
    A: Send + 'static,
    F: Future<Output = A> + Send,
{
    let (answers, replies) = tokio::sync::mpsc::channel(BUFFER);
    let mut stopping = door.stopping();
    let all = async move {
        loop {
            let next = tokio::select! {
                next = requests.next() => next,
                _ = stopping.wait_for(|stopping| *stopping) => Some(Err(status::stopping())),
            };
            let Some(request) = next else { return };
            let reply = match request {
                Err(broken) => Err(broken),
                Ok(request) => tokio::select! {
                    reply = answer(request) => Ok(reply),
                    () = answers.closed() => return,
                },
            };
            let last = reply.is_err();
            // A closed channel is a client that has gone.
            if answers.send(reply).await.is_err() || last {
                return;
            }
        }
    };
    match Seat::current() {
        Some(seat) => tokio::spawn(seat.scope(all)),
        None => tokio::spawn(all),
    };
    Box::pin(ReceiverStream::new(replies))
}
