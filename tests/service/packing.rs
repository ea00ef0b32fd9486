//! Compressed messages, both ways, and what they may become.

use tempfile::TempDir;
use tonic::codec::CompressionEncoding::{self, Gzip, Zstd};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_response::MessageResponse};
use viscache::cache::RowsMode;
use viscache::flow::Limits;
use viscache::serve::proto::{EmbedRequest, ListCachesRequest, ScoreRequest, SearchRequest, Tensor};

use crate::server::{self, Server, item, ok, tensor, text};
use crate::store::{self, ROWS, ROWS_DIM};

async fn start(limits: Limits, model: bool) -> (Server, TempDir) {
    let folder = TempDir::new().unwrap();
    store::make_scenes(folder.path());
    store::make_rows(folder.path(), 300);
    let encoder = model.then(store::encoder);
    let server = Server::start(store::app(folder.path(), encoder, RowsMode::Ram, limits)).await;
    (server, folder)
}

fn search(rows: usize) -> SearchRequest {
    let vectors = Some(tensor(&store::random_rows(rows, ROWS_DIM, 50)));
    SearchRequest { cache: ROWS.into(), vectors, return_vectors: true, ..SearchRequest::default() }
}

/// The encoding that a reply says it came in.
fn encoding<T>(reply: &tonic::Response<T>) -> Option<&str> {
    reply.metadata().get("grpc-encoding").map(|value| value.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_takes_and_sends_compressed_messages() {
    let (server, _folder) = start(Limits::default(), true).await;
    let plain = server.cache().search(search(3)).await.unwrap();
    assert_eq!(encoding(&plain), None);
    for (packing, name) in [(Gzip, "gzip"), (Zstd, "zstd")] {
        let mut cache = server.cache().send_compressed(packing).accept_compressed(packing);
        let reply = cache.search(search(3)).await.unwrap();
        assert_eq!(encoding(&reply), Some(name));
        let (mut packed, mut plain) = (reply.into_inner(), plain.get_ref().clone());
        packed.results.iter_mut().chain(&mut plain.results).for_each(|result| result.timings = None);
        assert_eq!(packed.results, plain.results);

        let mut embed = server.embed().send_compressed(packing).accept_compressed(packing);
        let request = EmbedRequest { inputs: vec![text("a disc")], ..EmbedRequest::default() };
        let reply = embed.embed(request).await.unwrap();
        assert_eq!((encoding(&reply), item(&reply.get_ref().results[0].status)), (Some(name), ok()));

        let mut admin = server.admin().send_compressed(packing).accept_compressed(packing);
        let reply = admin.list_caches(ListCachesRequest {}).await.unwrap();
        assert_eq!((encoding(&reply), reply.get_ref().caches.len()), (Some(name), 2));

        // There is no decoder here: the request was read, or it could not have been refused so.
        let mut generate = server.generate().send_compressed(packing).accept_compressed(packing);
        let refused = generate.score(ScoreRequest::default()).await.unwrap_err();
        assert_ne!(refused.code(), Code::Unimplemented, "{refused:?}");

        let mut health = HealthClient::new(server.channel.clone());
        health = health.send_compressed(packing).accept_compressed(packing);
        let reply = health.check(HealthCheckRequest::default()).await.unwrap();
        assert_eq!((encoding(&reply), reply.get_ref().status), (Some(name), 1));

        let mut reflection = ServerReflectionClient::new(server.channel.clone());
        reflection = reflection.send_compressed(packing).accept_compressed(packing);
        let asked = MessageRequest::ListServices(String::new());
        let asked = ServerReflectionRequest { host: String::new(), message_request: Some(asked) };
        let reply = reflection.server_reflection_info(tokio_stream::iter([asked])).await.unwrap();
        assert_eq!(encoding(&reply), Some(name));
        let told = reply.into_inner().message().await.unwrap().unwrap().message_response;
        assert!(matches!(told, Some(MessageResponse::ListServicesResponse(_))), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_is_compressed_for_those_who_compress_and_accept_it() {
    let (server, _folder) = start(Limits::default(), false).await;
    let asked = |sends: Option<CompressionEncoding>, accepts: &[CompressionEncoding]| {
        let mut client = server.cache();
        for &packing in accepts {
            client = client.accept_compressed(packing);
        }
        let mut client = sends.into_iter().fold(client, |client, packing| client.send_compressed(packing));
        async move { encoding(&client.search(Request::new(search(2))).await.unwrap()).map(str::to_owned) }
    };
    assert_eq!(asked(Some(Gzip), &[]).await, None, "it does not accept it");
    assert_eq!(asked(None, &[Gzip, Zstd]).await, None, "it does not compress itself");
    assert_eq!(asked(Some(Gzip), &[Zstd]).await.as_deref(), Some("zstd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_message_counts_what_it_unpacks_to() {
    let (server, _folder) = start(Limits { max_message_bytes: 1 << 20, ..Limits::default() }, false).await;
    // 64 MiB of zeros: some ten kilobytes in gzip, fewer in zstd.
    let zeros = Tensor { data: vec![0; 64 << 20].into(), ..Tensor::default() };
    let bomb = SearchRequest { cache: ROWS.into(), vectors: Some(zeros), ..SearchRequest::default() };
    for packing in [Gzip, Zstd] {
        let mut client = server.cache().send_compressed(packing).accept_compressed(packing);
        let refused = client.search(bomb.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        assert!(refused.message().contains("1048576"), "the limit is named: {}", refused.message());
        let reply = client.search(search(1)).await.unwrap().into_inner();
        assert_eq!(server::item(&reply.results[0].status), ok(), "the connection goes on");
    }
}
