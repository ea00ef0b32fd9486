//! gRPC and nothing else: convert, call one flow, convert.
//!
//! ```text
//! request ─► door: a place, a deadline ─► convert (field paths) ─► flow, on a blocking thread ─► convert ─► reply
//!               └ none left: RESOURCE_EXHAUSTED with a delay        └ caller gone: its flag stops the work
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `proto.rs` | the generated messages |
//! | `door.rs` | who may come in, how long they wait, what is counted |
//! | `convert/` | messages ⇄ domain; every check of a request is there |
//! | `tensor.rs` | tensors ⇄ embeddings |
//! | `packing.rs` | which replies are compressed |
//! | `stream.rs` | many requests over one stream, in order |
//! | `status.rs` | domain error → Status: one exhaustive match |
//! | `cache.rs` `embed.rs` `generate.rs` `admin.rs` | the services |
//! | `items.rs` | what `admin.rs` does with items |

mod admin;
mod cache;
mod convert;
mod door;
mod embed;
mod generate;
mod items;
mod packing;
pub mod proto;
mod status;
mod stream;
mod tensor;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding::{Gzip, Zstd};
use tonic::transport::server::{Router, TcpIncoming};
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::flow::App;
use crate::types::Modality;
use door::Door;
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

/// Time that requests under way have when the server is told to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

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

/// Serves until `shutdown` is ready, then answers what has begun and returns.
///
/// # Errors
/// [`Error`].
pub async fn run(
    listener: TcpListener,
    app: Arc<App>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let (router, health) = router(app).await?;
    let draining = Arc::new(tokio::sync::Notify::new());
    let begun = draining.clone();
    // When the drain begins, health says so at once: balancers then send nothing new.
    let drain = async move {
        shutdown.await;
        for service in ["", CACHE_SERVICE, ADMIN_SERVICE, EMBED_SERVICE, GENERATE_SERVICE] {
            health.set_service_status(service, ServingStatus::NotServing).await;
        }
        begun.notify_one();
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = router.serve_with_incoming_shutdown(incoming, drain);
    // A stream that nobody closes (a health watch, say) must not keep the process for ever.
    let patience = async {
        draining.notified().await;
        tokio::time::sleep(DRAIN_LIMIT).await;
    };
    tokio::select! {
        served = serving => Ok(served?),
        () = patience => Ok(()),
    }
}

/// Serves inside this process, over a pipe in memory: the same requests, checks and answers without a port.
///
/// # Errors
/// [`Error`].
pub async fn in_process(app: Arc<App>) -> Result<Channel, Error> {
    let (client, server) = tokio::io::duplex(PIPE_BYTES);
    let (router, _) = router(app).await?;
    tokio::spawn(router.serve_with_incoming(tokio_stream::once(Ok::<_, std::io::Error>(server))));
    let mut client = Some(client);
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let end = client.take().map(hyper_util::rt::TokioIo::new);
        std::future::ready(end.ok_or_else(|| std::io::Error::other("the pipe is closed")))
    });
    Ok(Endpoint::from_static("http://in.process").connect_with_connector(connector).await?)
}

async fn router(app: Arc<App>) -> Result<(Router<packing::Stack>, HealthReporter), Error> {
    let door = Arc::new(Door::new(&app.limits));
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
    let admin = AdminServiceServer::new(admin::Service::new(app, door))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(MAX_REPLY_BYTES);

    let router = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .http2_max_pending_accept_reset_streams(Some(cancelled))
        .tcp_nodelay(true)
        .layer(packing::layer())
        .add_service(packed!(health_service))
        .add_service(packed!(v1))
        .add_service(packed!(v1alpha))
        .add_service(packed!(cache))
        .add_service(packed!(embed))
        .add_service(packed!(generate))
        .add_service(packed!(admin));
    Ok((router, health))
}
