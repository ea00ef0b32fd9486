//! A real server on a loopback port, clients of it, and shorthands for messages and refusals.

#![allow(dead_code, reason = "every test crate uses a part of this")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_types::{RpcStatusExt, StatusExt, pb};
use viscache::flow::App;
use viscache::serve::proto::admin_service_client::AdminServiceClient;
use viscache::serve::proto::cache_service_client::CacheServiceClient;
use viscache::serve::proto::embed_service_client::EmbedServiceClient;
use viscache::serve::proto::generate_service_client::GenerateServiceClient;
use viscache::serve::proto::{self, Dtype, Media, Part, Query, Tensor, media, part};
use viscache::serve::{self, decode_tensor, encode_tensor};

pub struct Server {
    pub address: SocketAddr,
    pub channel: Channel,
    stop: Option<oneshot::Sender<()>>,
    done: JoinHandle<Result<serve::Stopped, serve::Error>>,
}

impl Server {
    pub async fn start(app: App) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let done = tokio::spawn(serve::run(listener, Arc::new(app), async {
            let _ = stopped.await;
        }));
        let channel = Server::connect(address).await;
        Server { address, channel, stop: Some(stop), done }
    }

    /// A connection of its own.
    pub async fn connect(address: SocketAddr) -> Channel {
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
    }

    pub fn cache(&self) -> CacheServiceClient<Channel> {
        CacheServiceClient::new(self.channel.clone()).max_decoding_message_size(1 << 30)
    }

    pub fn embed(&self) -> EmbedServiceClient<Channel> {
        EmbedServiceClient::new(self.channel.clone()).max_decoding_message_size(1 << 30)
    }

    pub fn generate(&self) -> GenerateServiceClient<Channel> {
        GenerateServiceClient::new(self.channel.clone())
    }

    pub fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    pub fn begin_stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits for the end of a server that was told to stop.
    pub async fn ended(self) {
        let Server { channel, done, .. } = self;
        drop(channel);
        tokio::time::timeout(Duration::from_secs(20), done).await.expect("the server ends").unwrap().unwrap();
    }

    pub async fn stop(mut self) {
        self.begin_stop();
        self.ended().await;
    }

    /// Requests worked on or waiting.
    pub async fn in_flight(&self) -> u32 {
        self.admin().stats(proto::StatsRequest {}).await.unwrap().into_inner().in_flight
    }

    /// Waits for a number of requests to be in flight.
    pub async fn until_in_flight(&self, wanted: u32) {
        for _ in 0..1500 {
            if self.in_flight().await == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{} requests are in flight, {wanted} expected", self.in_flight().await);
    }
}

/// Rows as f32.
pub fn tensor(rows: &[Vec<f32>]) -> Tensor {
    encode_tensor(&rows.concat(), rows[0].len(), Dtype::F32)
}

/// The rows of a reply's tensor.
pub fn rows(tensor: &Option<Tensor>) -> Vec<Vec<f32>> {
    let tensor = tensor.as_ref().expect("the reply has a tensor");
    decode_tensor(tensor).unwrap().iter().map(<[f32]>::to_vec).collect()
}

pub fn image(bytes: &[u8]) -> Media {
    Media { kind: Some(media::Kind::Image(bytes.to_vec().into())) }
}

pub fn text(text: &str) -> Media {
    Media { kind: Some(media::Kind::Text(text.to_owned())) }
}

pub fn media_part(media: Media, weight: Option<f64>) -> Part {
    Part { content: Some(part::Content::Media(media)), weight }
}

pub fn row_part(row: &[f32], weight: Option<f64>) -> Part {
    let tensor = Tensor { values: row.to_vec(), ..Tensor::default() };
    Part { content: Some(part::Content::Embedding(tensor)), weight }
}

pub fn query(parts: Vec<Part>) -> Query {
    Query { parts, ..Query::default() }
}

/// What a refusal says to programs: code, reason, fields.
#[derive(Debug, PartialEq)]
pub struct Told {
    pub code: Code,
    pub reason: String,
    pub fields: Vec<String>,
}

pub fn item(status: &Option<pb::Status>) -> Told {
    let status = status.as_ref().expect("every item has a status");
    let details = status.get_error_details();
    told(Code::from_i32(status.code), &details)
}

pub fn whole(status: &tonic::Status) -> Told {
    told(status.code(), &status.get_error_details())
}

fn told(code: Code, details: &tonic_types::ErrorDetails) -> Told {
    let info = details.error_info();
    if let Some(info) = info {
        assert_eq!(info.domain, "viscache");
    }
    let fields = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    Told {
        code,
        reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
        fields: fields.into_iter().map(|violation| violation.field).collect(),
    }
}

pub fn ok() -> Told {
    refusal(Code::Ok, "", "")
}

/// A refusal that names at most one field.
pub fn refusal(code: Code, reason: &str, field: &str) -> Told {
    let fields = if field.is_empty() { vec![] } else { vec![field.to_owned()] };
    Told { code, reason: reason.to_owned(), fields }
}

pub fn bad_argument(field: &str) -> Told {
    refusal(Code::InvalidArgument, "INVALID_ARGUMENT", field)
}
