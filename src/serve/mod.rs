//! gRPC and nothing else: convert, call one flow, convert.
//!
//! ```text
//! connection ─► gate: a place, an id, a share of memory ─► codec: counted, then decoded ─► door: a worker, a deadline
//!                 └ none left: RESOURCE_EXHAUSTED with a delay
//!     ─► convert (field paths) ─► flow, on a blocking thread ─► convert ─► reply, in pieces ─► all of it given back
//!                                  └ caller gone: its flag stops the work  └ not read: given up
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `proto.rs` `methods.rs` | the generated messages; the methods that take them |
//! | `listen.rs` | connections: how many, and which have to go |
//! | `gate.rs` | the layer around all services |
//! | `seat.rs` | what one request holds |
//! | `body.rs` | bodies in and out: counted, and given up where nothing moves |
//! | `cost.rs` `codec.rs` | what a message takes, told from its bytes; decoding after that |
//! | `door.rs` | who may come in, how long they wait, what is counted |
//! | `convert/` | messages ⇄ domain; every check of a request is there |
//! | `tensor.rs` | tensors ⇄ embeddings |
//! | `packing.rs` | which replies are compressed |
//! | `stream.rs` | many requests over one stream, in order |
//! | `status.rs` | domain error → Status: one exhaustive match |
//! | `cache.rs` `embed.rs` `generate.rs` `admin.rs` | the services |
//! | `items.rs` | what `admin.rs` does with items |

mod admin;
mod body;
mod cache;
mod codec;
mod convert;
mod cost;
mod door;
mod embed;
mod gate;
mod generate;
mod items;
mod listen;
mod methods;
mod packing;
pub mod proto;
mod seat;
mod status;
mod stream;
mod tensor;

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding::{Gzip, Zstd};
use tonic::transport::server::Router;
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::layer::util::{Identity, Stack};
use tracing::warn;

use crate::allocator;
use crate::batch::Generator;
use crate::flow::App;
use crate::types::Modality;
use door::Door;
use listen::Connections;
use proto::admin_service_server::AdminServiceServer;
use proto::cache_service_server::CacheServiceServer;
use proto::embed_service_server::EmbedServiceServer;
use proto::generate_service_server::GenerateServiceServer;

pub use convert::MAX_REQUEST_ID_BYTES;
pub use status::code_name;
pub use tensor::{decode_tensor, encode_tensor};

/// Bytes that a reply may have beyond the largest request: neighbours with their embeddings are larger than queries.
const MAX_REPLY_BYTES: usize = 1 << 30;

/// Calls that a client may cancel before they are even looked at, before its whole connection is closed on it as an attack. A client
/// whose deadline passes cancels all that it has under way at once, and each of them costs a few hundred bytes until then.
const MAX_CANCELLED: usize = 1024;

/// Calls that one connection may have under way at least, whatever the places are.
const MIN_STREAMS: usize = 256;

/// Bytes of a call's headers.
const MAX_HEADER_BYTES: u32 = 32 << 10;

/// Bytes of a call that may be on their way unread; of a whole connection, twice as many. They are beside the budget.
const WINDOW_BYTES: u32 = 1 << 20;

/// How often somebody looks for replies that nobody reads, and for connections that say nothing.
const SWEEP: Duration = Duration::from_secs(1);

/// How often memory is given back between calls that leave no second free, and how long after the last of them it is done again: longer
/// than the ten seconds that a thread without work lives.
const GIVE_BACK: Duration = Duration::from_secs(15);

/// How often a stopping server looks whether all is answered, and what it leaves answers to end, and the last bytes.
const LOOK: Duration = Duration::from_millis(10);
const LAST_WORDS: Duration = Duration::from_secs(1);
const LAST_BYTES: Duration = Duration::from_millis(100);

/// What the pipe of [`in_process`] holds before a writer waits.
const PIPE_BYTES: usize = 4 << 20;

/// Names that health is reported under, besides the empty one for the whole server.
const CACHE_SERVICE: &str = "viscache.v1.CacheService";
const EMBED_SERVICE: &str = "viscache.v1.EmbedService";
const GENERATE_SERVICE: &str = "viscache.v1.GenerateService";
const ADMIN_SERVICE: &str = "viscache.v1.AdminService";

/// Why the server stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The transport failed.
    #[error("the gRPC transport failed")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptors compiled into this program do not parse.
    #[error("reflection could not be set up: {0}")]
    Reflection(String),
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Requests that were still worked on when its patience ended.
    pub cut: usize,
}

/// Serves until `shutdown` is ready, then answers what has begun and returns.
///
/// ```text
/// shutdown ─► health: NOT_SERVING ─ stop_delay ─► nothing new; streams end ─ all answered, or `drain` is over ─► end
/// ```
///
/// # Errors
/// [`Error`].
pub async fn run(
    listener: TcpListener,
    app: Arc<App>,
    shutdown: impl Future<Output = ()>,
) -> Result<Stopped, Error> {
    let limits = app.limits;
    let Served { router, health, door } = served(app.clone()).await?;
    let connections = Arc::new(Connections::new(limits.max_connections));
    tokio::spawn(sweep(Arc::downgrade(&door), Some(connections.clone())));
    tokio::spawn(watch(Arc::downgrade(&app), health.clone()));
    let draining = Arc::new(tokio::sync::Notify::new());
    let (begun, stopped, asked) = (draining.clone(), door.clone(), app.clone());
    // Health says it first, so that balancers send nothing new by the time that we take nothing new.
    let drain = async move {
        shutdown.await;
        for service in ["", CACHE_SERVICE, ADMIN_SERVICE, EMBED_SERVICE, GENERATE_SERVICE] {
            health.set_service_status(service, ServingStatus::NotServing).await;
        }
        tokio::time::sleep(limits.stop_delay).await;
        stopped.stop();
        asked.generators().for_each(Generator::stop);
        begun.notify_one();
    };
    let serving = router.serve_with_incoming_shutdown(listen::accept(listener, connections), drain);
    // A connection that nobody closes (a health watch, say) must not keep the process.
    let patience = async {
        draining.notified().await;
        let until = tokio::time::Instant::now() + limits.drain;
        while door.in_flight() + door.open_streams() > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        // Answers end with what they have said so far.
        app.generators().for_each(Generator::finish);
        let until = tokio::time::Instant::now() + LAST_WORDS;
        while door.in_flight() > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        let cut = door.in_flight();
        // What was written last has yet to leave.
        tokio::time::sleep(LAST_BYTES).await;
        cut
    };
    tokio::select! {
        served = serving => served.map(|()| Stopped { cut: 0 }).map_err(Error::from),
        cut = patience => Ok(Stopped { cut }),
    }
}

/// Says through health when a part of the server has died, for as long as there is a server.
async fn watch(app: Weak<App>, health: HealthReporter) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(app) = app.upgrade() else { return };
        if app.generators().any(|generator| generator.dead().is_some()) {
            health.set_service_status(GENERATE_SERVICE, ServingStatus::NotServing).await;
            return;
        }
    }
}

/// Looks after replies that nobody reads, connections that say nothing, and memory that nobody uses, for as long as there is a server.
async fn sweep(door: Weak<Door>, connections: Option<Arc<Connections>>) {
    // Calls when it was last looked, and when memory was last given back; when that was, and whether it was for the second time.
    let (mut before, mut clean, mut at, mut twice) = (0, 0, Instant::now(), true);
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(door) = door.upgrade() else { return };
        let given_up = door.replies.sweep(door.limits.stall);
        if given_up > 0 {
            warn!(given_up, "replies that nobody read were given up");
        }
        if let Some(connections) = &connections {
            connections.sweep(door.limits.idle);
        }
        // After calls as soon as a second goes by without one, and once more when threads that had to do have ended; else every so often.
        let calls = door.calls();
        let waited = at.elapsed() >= GIVE_BACK;
        let due = if calls == clean { waited && !twice } else { waited || calls == before };
        if due && door.in_flight() == 0 && connections.is_some() {
            (clean, at, twice) = (calls, Instant::now(), calls == clean);
            tokio::task::spawn_blocking(allocator::give_back);
        }
        before = calls;
    }
}

/// Serves inside this process, over a pipe in memory: the same requests, checks and answers without a port.
///
/// # Errors
/// [`Error`].
pub async fn in_process(app: Arc<App>) -> Result<Channel, Error> {
    let (client, server) = tokio::io::duplex(PIPE_BYTES);
    let Served { router, door, .. } = served(app).await?;
    tokio::spawn(sweep(Arc::downgrade(&door), None));
    tokio::spawn(router.serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(server))));
    let mut client = Some(client);
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let end = client.take().map(hyper_util::rt::TokioIo::new);
        std::future::ready(end.ok_or_else(|| std::io::Error::other("the pipe is closed")))
    });
    Ok(Endpoint::from_static("http://in.process").connect_with_connector(connector).await?)
}

/// A server before it listens.
struct Served {
    router: Router<Stack<gate::Layer, Stack<packing::Layer, Identity>>>,
    health: HealthReporter,
    door: Arc<Door>,
}

async fn served(app: Arc<App>) -> Result<Served, Error> {
    let door = Arc::new(Door::new(&app.limits, &app.budget));
    let (health, health_service) = tonic_health::server::health_reporter();
    let embeds = app.encoder().is_some_and(|e| e.modalities().iter().any(|m| Modality::ALL.contains(m)));
    let answers = app.generator.is_some();
    for (service, serving) in [
        ("", true),
        (CACHE_SERVICE, app.store.is_some()),
        (ADMIN_SERVICE, true),
        (EMBED_SERVICE, embeds),
        (GENERATE_SERVICE, answers),
    ] {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status(service, status).await;
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let broken = |e: tonic_reflection::server::Error| Error::Reflection(e.to_string());
    let (v1, v1alpha) =
        (reflection().build_v1().map_err(broken)?, reflection().build_v1alpha().map_err(broken)?);

    // Both ways for all of them; the limit counts a message as it is once unpacked.
    macro_rules! packed {
        ($service:expr) => {
            $service
                .accept_compressed(Gzip)
                .accept_compressed(Zstd)
                .send_compressed(Gzip)
                .send_compressed(Zstd)
        };
    }
    let limit = app.limits.max_message_bytes;
    let streams = u32::try_from(app.limits.max_concurrent.max(MIN_STREAMS)).unwrap_or(u32::MAX);
    let cancelled = MAX_CANCELLED.max(app.limits.max_concurrent);
    let cache = CacheServiceServer::new(cache::Service::new(app.clone(), door.clone()))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(MAX_REPLY_BYTES);
    let embed = EmbedServiceServer::new(embed::Service::new(app.clone(), door.clone()))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(MAX_REPLY_BYTES);
    let generate = GenerateServiceServer::new(generate::Service::new(app.clone(), door.clone()))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(MAX_REPLY_BYTES);
    let admin = AdminServiceServer::new(admin::Service::new(app, door.clone()))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(MAX_REPLY_BYTES);

    let router = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .max_concurrent_streams(streams)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES)
        .http2_max_pending_accept_reset_streams(Some(cancelled))
        .layer(packing::layer())
        .layer(gate::Layer(door.clone()))
        .add_service(packed!(health_service))
        .add_service(packed!(v1))
        .add_service(packed!(v1alpha))
        .add_service(packed!(cache))
        .add_service(packed!(embed))
        .add_service(packed!(generate))
        .add_service(packed!(admin));
    Ok(Served { router, health, door })
}
