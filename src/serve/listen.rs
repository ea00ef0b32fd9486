//! Connections: how many there may be, and which have to go.
//!
//! ```text
//! accept ─► silent ─► the first bytes of HTTP/2 ─► busy with requests ⇄ quiet
//!    │          └ closed after some seconds                                └ closed after long
//!    └ no room: the one that has been silent for longest goes, else the one that has been quiet for longest
//! ```
//! A connection takes a file of the process and memory for what is on its way. Without room the listener rests: neither a full house nor
//! a system that has no more files makes it spin.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::warn;

/// Bytes that every client of HTTP/2 begins with.
const PREFACE: u64 = 24;
/// Time that a connection may take for them.
const SILENT: Duration = Duration::from_secs(10);
/// Time without a request after which a connection may be closed to make room for another.
const QUIET: Duration = Duration::from_secs(1);
/// How long the listener rests when there is no room, or accepting fails.
const REST: Duration = Duration::from_millis(50);
/// Files that are left for everything but connections.
const OTHER_FILES: u64 = 192;
/// Time between two warnings of the same.
const TOLD: Duration = Duration::from_secs(60);

/// The connections of one server.
pub(super) struct Connections {
    limit: usize,
    open: Mutex<Vec<Weak<Entry>>>,
    freed: Notify,
}

/// What is known of one.
pub(super) struct Entry(Mutex<State>);

struct State {
    read: u64,
    /// Requests under way.
    busy: usize,
    /// Since when there are none.
    quiet: Instant,
    closed: bool,
    reader: Option<Waker>,
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection: its next look for bytes finds the end.
    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
    }
}

impl Connections {
    /// * `limit`: how many there may be, if the system lets the process have as many files.
    pub(super) fn new(limit: usize) -> Self {
        let files = raise_file_limit().map_or(usize::MAX, |files| {
            files.saturating_sub(OTHER_FILES).max(files / 2).try_into().unwrap_or(usize::MAX)
        });
        if files < limit {
            warn!(
                files,
                limit,
                "the system lets this process open few files, so there are fewer connections; see `ulimit -n`"
            );
        }
        Connections { limit: limit.min(files).max(1), open: Mutex::default(), freed: Notify::new() }
    }

    fn open(&self) -> MutexGuard<'_, Vec<Weak<Entry>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that there are.
    fn entries(&self) -> Vec<Arc<Entry>> {
        let mut open = self.open();
        open.retain(|entry| entry.strong_count() > 0);
        open.iter().filter_map(Weak::upgrade).collect()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.entries().len()
    }

    /// Closes those that have said nothing for long.
    ///
    /// * `quiet`: time without a request.
    pub(super) fn sweep(&self, quiet: Duration) {
        for entry in self.entries() {
            let state = entry.lock();
            let patience = if state.read < PREFACE { SILENT } else { quiet };
            let late = state.busy == 0 && state.quiet.elapsed() >= patience;
            drop(state);
            if late {
                entry.close();
            }
        }
    }

    /// Closes the one that is missed least, if there is one that may go.
    fn make_room(&self) {
        let rank = |entry: &Arc<Entry>| {
            let state = entry.lock();
            let silent = state.read < PREFACE;
            let idle = state.busy == 0 && !state.closed && (silent || state.quiet.elapsed() >= QUIET);
            idle.then_some((!silent, state.quiet))
        };
        let entries = self.entries();
        let least =
            entries.iter().filter_map(|entry| Some((rank(entry)?, entry))).min_by_key(|(rank, _)| *rank);
        if let Some((_, entry)) = least {
            entry.close();
        }
    }

    /// The next connection, as soon as there is room for one.
    async fn next(
        self: &Arc<Self>,
        listener: &TcpListener,
        told: &mut Option<Instant>,
    ) -> Connection<TcpStream> {
        loop {
            while self.count() >= self.limit {
                self.make_room();
                let rest = tokio::time::timeout(REST, self.freed.notified());
                _ = rest.await;
            }
            match listener.accept().await {
                Ok((stream, address)) => {
                    _ = stream.set_nodelay(true);
                    return self.connection(stream, Some(address));
                }
                Err(problem) => {
                    self.make_room();
                    if told.is_none_or(|then| then.elapsed() >= TOLD) {
                        warn!(%problem, "a connection cannot be accepted");
                        *told = Some(Instant::now());
                    }
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    fn connection<S>(self: &Arc<Self>, stream: S, address: Option<SocketAddr>) -> Connection<S> {
        let state = State { read: 0, busy: 0, quiet: Instant::now(), closed: false, reader: None };
        let entry = Arc::new(Entry(Mutex::new(state)));
        self.open().push(Arc::downgrade(&entry));
        Connection { stream, address, entry: Some(entry), connections: self.clone() }
    }
}

/// Accepts connections until nobody takes them any more.
pub(super) fn accept(
    listener: TcpListener,
    connections: Arc<Connections>,
) -> ReceiverStream<io::Result<Connection<TcpStream>>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut told = None;
        loop {
            let next = tokio::select! {
                next = connections.next(&listener, &mut told) => next,
                () = sender.closed() => return,
            };
            if sender.send(Ok(next)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// One connection.
pub(super) struct Connection<S> {
    stream: S,
    address: Option<SocketAddr>,
    entry: Option<Arc<Entry>>,
    connections: Arc<Connections>,
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.entry = None;
        self.connections.freed.notify_one();
    }
}

/// Who is at the other end.
#[derive(Clone, Default)]
pub(super) struct Peer {
    address: Option<SocketAddr>,
    entry: Weak<Entry>,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address {
            Some(address) => address.fmt(f),
            None => f.write_str("this process"),
        }
    }
}

/// A request of a connection is under way.
pub(super) struct Busy(Weak<Entry>);

impl Peer {
    /// Until what comes back is dropped, the connection is busy.
    pub(super) fn busy(&self) -> Busy {
        if let Some(entry) = self.entry.upgrade() {
            entry.lock().busy += 1;
        }
        Busy(self.entry.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(entry) = self.0.upgrade() {
            let mut state = entry.lock();
            state.busy = state.busy.saturating_sub(1);
            state.quiet = Instant::now();
        }
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer { address: self.address, entry: self.entry.as_ref().map(Arc::downgrade).unwrap_or_default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(entry) = &self.entry {
            let mut state = entry.lock();
            if state.closed {
                // The end of what the other side says.
                return Poll::Ready(Ok(()));
            }
            if state.reader.as_ref().is_none_or(|reader| !reader.will_wake(context.waker())) {
                state.reader = Some(context.waker().clone());
            }
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(entry) = &self.entry {
            let more = (buffer.filled().len() - before) as u64;
            let mut state = entry.lock();
            state.read = state.read.saturating_add(more);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Lets the process open as many files as the system lets it ask for, and says how many those are, where the system has such a limit.
fn raise_file_limit() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        // Not being allowed to is no harm: there are fewer connections then.
        let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
        if raised { maximum } else { current }
    }
    #[cfg(not(target_os = "linux"))]
    None
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn connections(limit: usize) -> Arc<Connections> {
        Arc::new(Connections { limit, open: Mutex::default(), freed: Notify::new() })
    }

    /// One that has sent so many bytes, and its other end.
    async fn one(all: &Arc<Connections>, sent: usize) -> (Connection<DuplexStream>, DuplexStream) {
        let (mut client, server) = duplex(1 << 10);
        client.write_all(&vec![b'x'; sent]).await.unwrap();
        let mut connection = all.connection(server, None);
        let mut read = vec![0; sent];
        connection.read_exact(&mut read).await.unwrap();
        (connection, client)
    }

    fn age(connection: &Connection<DuplexStream>, by: Duration) {
        let entry = connection.entry.as_ref().unwrap();
        let mut state = entry.lock();
        state.quiet = state.quiet.checked_sub(by).unwrap();
    }

    #[tokio::test]
    async fn the_silent_go_before_the_quiet_and_the_busy_stay() {
        let all = connections(9);
        let (mut silent, _a) = one(&all, 3).await;
        let (mut quiet, _b) = one(&all, 24).await;
        let (mut busy, _c) = one(&all, 24).await;
        let request = busy.connect_info().busy();
        age(&quiet, Duration::from_secs(5));
        let ended = |connection: &mut Connection<DuplexStream>| {
            let waker = std::task::Waker::noop();
            let (mut bytes, mut context) = ([0; 8], Context::from_waker(waker));
            Pin::new(connection).poll_read(&mut context, &mut ReadBuf::new(&mut bytes)).is_ready()
        };
        assert!(!ended(&mut silent) && !ended(&mut quiet) && !ended(&mut busy));
        all.make_room();
        assert!(ended(&mut silent) && !ended(&mut quiet), "whoever has said nothing goes first");
        all.make_room();
        all.make_room();
        assert!(ended(&mut quiet) && !ended(&mut busy), "a request is under way");
        drop(request);
        all.make_room();
        assert!(!ended(&mut busy), "it has only just answered");
        age(&busy, Duration::from_secs(2));
        all.sweep(Duration::from_secs(3));
        assert!(!ended(&mut busy));
        all.sweep(Duration::from_secs(2));
        assert!(ended(&mut busy));
        drop((silent, quiet));
        assert_eq!(all.count(), 1);
    }

    #[tokio::test]
    async fn one_that_says_nothing_is_woken_to_its_end() {
        let all = connections(9);
        let (mut silent, _client) = one(&all, 3).await;
        age(&silent, SILENT);
        let reading = tokio::spawn(async move { silent.read(&mut [0; 8]).await });
        tokio::task::yield_now().await;
        all.sweep(Duration::from_secs(3600));
        let read = tokio::time::timeout(Duration::from_secs(5), reading).await.unwrap().unwrap();
        assert_eq!(read.unwrap(), 0);
    }
}
