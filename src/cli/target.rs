//! Whom a command asks: a server elsewhere, or the same service over a store in this process.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tonic::transport::{Channel, Endpoint};
use viscache::serve;
use viscache::serve::proto::admin_service_client::AdminServiceClient;
use viscache::serve::proto::cache_service_client::CacheServiceClient;
use viscache::serve::proto::embed_service_client::EmbedServiceClient;
use viscache::serve::proto::generate_service_client::GenerateServiceClient;

use super::Target;
use crate::app::{self, Wants};
use crate::config::Config;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Replies may be as large as the server makes them.
const MAX_REPLY_BYTES: usize = 1 << 30;

/// For questions about what is stored.
pub const STORED: Wants = Wants { encoder: false, decoder: false, caches: true };
/// For caches to be made, named and deleted.
pub const NAMES: Wants = Wants { caches: false, ..STORED };
/// For files and texts to be embedded.
pub const EMBEDDINGS: Wants = Wants { encoder: true, ..STORED };
/// For answers.
pub const ANSWERS: Wants = Wants { encoder: true, decoder: true, ..STORED };

/// What a command with files and texts, or without, asks for.
pub fn wants(media: bool) -> Wants {
    if media { EMBEDDINGS } else { STORED }
}

/// Opens the way to whoever answers.
///
/// * `wants`: what will be asked.
///
/// # Errors
/// A server that cannot be reached, a store that cannot be opened.
pub async fn open(config: &Config, target: &Target, wants: Wants) -> anyhow::Result<Channel> {
    open_at(config, target.connect.as_deref(), wants).await
}

/// As [`open`], where no cache is named.
pub async fn open_at(config: &Config, connect: Option<&str>, wants: Wants) -> anyhow::Result<Channel> {
    let Some(address) = connect else {
        let app = app::open(config, wants)?;
        return Ok(serve::in_process(Arc::new(app)).await?);
    };
    let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(uri).with_context(|| format!("`{address}` is not an address"))?;
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .connect()
        .await
        .with_context(|| format!("no server answers at {address}; start one with `viscache serve`"))
}

/// A client of the cache service.
pub fn cache(channel: Channel) -> CacheServiceClient<Channel> {
    CacheServiceClient::new(channel)
        .max_decoding_message_size(MAX_REPLY_BYTES)
        .max_encoding_message_size(MAX_REPLY_BYTES)
}

/// A client of the generate service.
pub fn generate(channel: Channel) -> GenerateServiceClient<Channel> {
    GenerateServiceClient::new(channel)
        .max_decoding_message_size(MAX_REPLY_BYTES)
        .max_encoding_message_size(MAX_REPLY_BYTES)
}

/// A client of the admin service.
pub fn admin(channel: Channel) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(channel)
        .max_decoding_message_size(MAX_REPLY_BYTES)
        .max_encoding_message_size(MAX_REPLY_BYTES)
}

/// A client of the embed service.
pub fn embed(channel: Channel) -> EmbedServiceClient<Channel> {
    EmbedServiceClient::new(channel)
        .max_decoding_message_size(MAX_REPLY_BYTES)
        .max_encoding_message_size(MAX_REPLY_BYTES)
}
