//! Streams of requests, answered one after another in their order.

use std::pin::Pin;

use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Status, Streaming};

/// Answers that may wait for a slow reader.
const BUFFER: usize = 4;

/// A stream of answers, as tonic wants it.
pub(super) type Answers<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

/// Answers every request by `answer`, until the requests end or the client goes. Work for a client that has gone is
/// dropped, which stops it and frees its place.
pub(super) fn answer_each<Q, A, F>(
    mut requests: Streaming<Q>,
    answer: impl Fn(Q) -> F + Send + Sync + 'static,
) -> Answers<A>
where
    Q: Send + 'static,
    A: Send + 'static,
    F: Future<Output = A> + Send,
{
    let (answers, replies) = tokio::sync::mpsc::channel(BUFFER);
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
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
    });
    Box::pin(ReceiverStream::new(replies))
}
