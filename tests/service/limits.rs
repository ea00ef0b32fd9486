//! What the server refuses beyond, and that it lives: sizes, crowds, deadlines, callers who go, awkward files.

use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};
use tonic_types::StatusExt;
use viscache::cache::RowsMode;
use viscache::flow::Limits;
use viscache::serve::proto::{
    EmbedRequest, EnhanceRequest, EnhanceStreamRequest, GetItemsRequest, SearchParams, SearchRequest,
};

use crate::common;
use crate::server::{
    self, Server, bad_argument, image, item, ok, query, refusal, row_part, rows, tensor, text, whole,
};
use crate::store::{self, ROWS, ROWS_DIM, SCENES};

/// A server whose rows lie on disk, so that a big exact batch takes a while.
async fn start(limits: Limits, model: bool) -> (Server, TempDir) {
    let folder = TempDir::new().unwrap();
    store::make_scenes(folder.path());
    store::make_rows(folder.path(), 3000);
    let encoder = model.then(store::encoder);
    let server = Server::start(store::app(folder.path(), encoder, RowsMode::Disk, limits)).await;
    (server, folder)
}

fn batch(count: usize) -> EnhanceRequest {
    EnhanceRequest {
        cache: ROWS.into(),
        vectors: Some(tensor(&store::random_rows(count, ROWS_DIM, 50))),
        search: Some(SearchParams { exact: true, ..SearchParams::default() }),
        ..EnhanceRequest::default()
    }
}

async fn still_serves(server: &Server) {
    let reply = server.cache().enhance(batch(1)).await.unwrap().into_inner();
    assert_eq!(item(&reply.results[0].status), ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_big_is_refused() {
    let limits = Limits { max_message_bytes: 1 << 20, max_batch: 20, max_parts: 3, ..Limits::default() };
    let (server, _folder) = start(limits, true).await;
    let status = server.cache().enhance(batch(10_000)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(status.message().contains("1048576"), "the limit is named: {}", status.message());
    still_serves(&server).await;

    server.cache().enhance(batch(20)).await.unwrap();
    let many = server.cache().enhance(batch(21)).await.unwrap_err();
    assert_eq!(whole(&many), bad_argument("vectors"));
    assert!(many.message().contains("20"), "{}", many.message());
    let row = vec![1.0; ROWS_DIM];
    let queries = |count, parts| vec![query(vec![row_part(&row, None); parts]); count];
    let request = |queries| EnhanceRequest { vectors: None, queries, ..batch(1) };
    assert_eq!(
        whole(&server.cache().enhance(request(queries(21, 1))).await.unwrap_err()),
        bad_argument("queries")
    );
    let mut mixed = queries(2, 3);
    mixed[1] = queries(1, 4).remove(0);
    let reply = server.cache().enhance(request(mixed)).await.unwrap().into_inner();
    assert_eq!(item(&reply.results[0].status), ok());
    assert_eq!(item(&reply.results[1].status), bad_argument("queries[1].parts"));

    let search = SearchRequest { cache: ROWS.into(), vectors: batch(21).vectors, ..SearchRequest::default() };
    assert_eq!(whole(&server.cache().search(search).await.unwrap_err()), bad_argument("vectors"));
    let items = GetItemsRequest { cache: ROWS.into(), ids: (0..21).collect(), ..GetItemsRequest::default() };
    assert_eq!(whole(&server.cache().get_items(items).await.unwrap_err()), bad_argument("ids"));
    let embed = EmbedRequest { inputs: vec![text("x"); 21], ..EmbedRequest::default() };
    assert_eq!(whole(&server.embed().embed(embed).await.unwrap_err()), bad_argument("inputs"));
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_is_told_when_to_come_back() {
    let (server, _folder) = start(Limits { max_concurrent: 2, ..Limits::default() }, false).await;
    let work: Vec<_> = (0..2)
        .map(|_| {
            let mut client = server.cache();
            tokio::spawn(async move { client.enhance(batch(1500)).await })
        })
        .collect();
    server.until_in_flight(2).await;
    let refused = server.cache().enhance(batch(1)).await.unwrap_err();
    assert_eq!(whole(&refused), refusal(Code::ResourceExhausted, "TOO_MANY_REQUESTS", ""));
    let delay = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(delay > Duration::ZERO && delay < Duration::from_secs(10), "{delay:?}");
    for task in work {
        assert_eq!(
            task.await.unwrap().unwrap().into_inner().results.len(),
            1500,
            "those inside are answered"
        );
    }
    server.until_in_flight(0).await;
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_would_wait_long_is_told_so() {
    let (server, _folder) = start(Limits { max_waiting_searches: 1, ..Limits::default() }, false).await;
    // Twice as many as there are threads for, single ones and batches alike.
    let callers = 4 * std::thread::available_parallelism().unwrap().get() + 8;
    let work = (0..callers).map(|caller| {
        let mut client = server.cache();
        let rows = if caller % 2 == 0 { 1500 } else { 1000 };
        tokio::spawn(async move {
            client.enhance(batch(rows)).await.map(|reply| reply.into_inner().results.len())
        })
    });
    let (mut answered, mut refused) = (0, 0);
    for task in work.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Ok(count) => answered += usize::from(count >= 1000),
            Err(status) => {
                assert_eq!(whole(&status), refusal(Code::ResourceExhausted, "TOO_MANY_REQUESTS", ""));
                assert!(status.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
                refused += 1;
            }
        }
    }
    assert!(
        answered > 0 && refused > 0 && answered + refused == callers,
        "{answered} answered, {refused} refused"
    );
    server.until_in_flight(0).await;
    still_serves(&server).await;
}

/// A deadline that only the service reads: one digit more than the transport takes, on either side.
fn within<T>(message: T, milliseconds: u32) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("{milliseconds:09}m");
    request.metadata_mut().insert("grpc-timeout", MetadataValue::try_from(value).unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_the_work() {
    let (server, _folder) = start(Limits::default(), false).await;
    for milliseconds in [0, 30] {
        let start = Instant::now();
        let late = server.cache().enhance(within(batch(4000), milliseconds)).await.unwrap_err();
        assert_eq!(whole(&late), refusal(Code::DeadlineExceeded, "DEADLINE", ""), "{milliseconds} ms");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
    let mut usual = Request::new(batch(4000));
    usual.set_timeout(Duration::from_millis(60));
    let late = server.cache().enhance(usual).await.unwrap_err();
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");
    server.until_in_flight(0).await;
    still_serves(&server).await;
    let reply = server.cache().enhance(within(batch(2), 60_000)).await.unwrap().into_inner();
    assert_eq!(item(&reply.results[1].status), ok(), "time enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_goes_frees_the_place() {
    let (server, _folder) = start(Limits { max_concurrent: 1, ..Limits::default() }, false).await;
    let mut client = server.cache();
    let call = tokio::spawn(async move { client.enhance(batch(4000)).await });
    server.until_in_flight(1).await;
    call.abort();
    let start = Instant::now();
    server.until_in_flight(0).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    still_serves(&server).await;
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a call.
fn head(stream: u32, method: &str) -> Vec<u8> {
    // POST, http, the path, the authority, and the headers that gRPC wants, each in full.
    let headers = [
        &[0x83, 0x86, 0x44, method.len() as u8],
        method.as_bytes(),
        b"\x41\x01a\x40\x0ccontent-type\x10application/grpc\x40\x02te\x08trailers",
    ];
    frame(1, 4, stream, &headers.concat())
}

/// A call with an empty message.
fn call(stream: u32, method: &str) -> Vec<u8> {
    [head(stream, method), frame(0, 1, stream, &[0; 5])].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_cancels_hundreds_of_calls_keeps_its_connection() {
    let (server, _folder) = start(Limits::default(), false).await;
    let mut connection = TcpStream::connect(server.address).await.unwrap();
    let mut opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    opening.extend(frame(4, 0, 0, &[]));
    opening.extend(call(1, "/grpc.health.v1.Health/Watch"));
    connection.write_all(&opening).await.unwrap();
    let mut received = Received { connection, bytes: Vec::new() };
    // The first state of the server: the stream has begun.
    while received.next().await != (0, 1) {}

    let cancel = 8u32.to_be_bytes();
    let cancelled = (0..Limits::default().max_concurrent.max(500) as u32).map(|i| 3 + 2 * i);
    let last = cancelled.clone().next_back().unwrap() + 2;
    let one =
        |stream| [head(stream, "/viscache.v1.CacheService/Search"), frame(3, 0, stream, &cancel)].concat();
    let burst: Vec<u8> = cancelled.flat_map(one).chain(call(last, "/grpc.health.v1.Health/Check")).collect();
    received.connection.write_all(&burst).await.unwrap();
    // A call behind them is answered, and the stream that was there before still hears the server's state change.
    while received.next().await != (0, last) {}
    let mut server = server;
    server.begin_stop();
    while received.next().await != (0, 1) {}
}

/// What a server sends over a connection.
struct Received {
    connection: TcpStream,
    bytes: Vec<u8>,
}

impl Received {
    /// Kind and stream of the next frame; a connection that is given up is a failure.
    async fn next(&mut self) -> (u8, u32) {
        loop {
            if let Some((head, rest)) = self.bytes.split_at_checked(9) {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let (kind, stream) = (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
                if rest.len() >= length {
                    // With an error, unlike that of a server that ends.
                    let ends = kind == 7 && rest[4..8] != [0; 4];
                    assert!(!ends, "GOAWAY: {}", String::from_utf8_lossy(&rest[8..length]));
                    self.bytes.drain(..9 + length);
                    return (kind, stream);
                }
            }
            let mut more = [0; 4096];
            let read = tokio::time::timeout(Duration::from_secs(10), self.connection.read(&mut more)).await;
            let read = read.expect("the server sends something").unwrap();
            assert_ne!(read, 0, "the connection was closed");
            self.bytes.extend(&more[..read]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_caller_goes_frees_the_place() {
    let (server, _folder) = start(Limits { max_concurrent: 1, ..Limits::default() }, false).await;
    let mut client = server.cache();
    let requests = (0..3).map(|tag| EnhanceStreamRequest { tag, request: Some(batch(4000)) });
    let requests = tokio_stream::iter(requests.collect::<Vec<_>>());
    let replies = client.enhance_stream(requests).await.unwrap();
    server.until_in_flight(1).await;
    drop(replies);
    let start = Instant::now();
    server.until_in_flight(0).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_answers_what_has_begun() {
    let (mut server, _folder) = start(Limits::default(), false).await;
    let mut client = server.cache();
    let call = tokio::spawn(async move { client.enhance(batch(300)).await });
    server.until_in_flight(1).await;
    server.begin_stop();
    assert_eq!(call.await.unwrap().unwrap().into_inner().results.len(), 300);
    server.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn awkward_pictures_have_the_stated_outcome() {
    let Some(manifest) = common::data("nasty/manifest.tsv") else { return };
    let (server, _folder) = start(Limits::default(), true).await;
    let lines = String::from_utf8(common::read(&manifest)).unwrap();
    let mut upright = Vec::new();
    for line in lines.lines().filter(|line| line.starts_with("images/")) {
        let columns: Vec<&str> = line.split('\t').collect();
        let (path, expect) = (columns[0], columns[2]);
        let bytes = common::read(&manifest.with_file_name(path));
        let start = Instant::now();
        let request = EmbedRequest { inputs: vec![image(&bytes)], ..EmbedRequest::default() };
        let reply = server.embed().embed(request).await.unwrap().into_inner();
        let (told, took) = (item(&reply.results[0].status), start.elapsed());
        let row = rows(&reply.vectors).remove(0);
        match told.code {
            Code::Ok => {
                assert_ne!(expect, "reject", "{path}");
                let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
                assert!((norm - 1.0).abs() < 1e-5, "{path}: norm {norm}");
            }
            Code::InvalidArgument => {
                assert_ne!(expect, "ok", "{path}: {:?}", reply.results[0].status);
                assert_eq!(told.reason, "BAD_MEDIA", "{path}");
            }
            other => panic!("{path}: {other:?}"),
        }
        if path.contains("bomb") {
            assert!(took < Duration::from_secs(1), "{path} took {took:?}");
        }
        if path.contains("exif-orientation") {
            upright.push(row);
        }
        still_serves(&server).await;
    }
    for other in &upright[1..] {
        let cosine: f32 = upright[0].iter().zip(other).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.98, "the same picture, turned: {cosine}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn awkward_texts_are_embedded_or_refused() {
    let Some(prompts) = common::data("nasty/text/prompts.jsonl") else { return };
    let (server, _folder) = start(Limits::default(), true).await;
    let lines = String::from_utf8(common::read(&prompts)).unwrap();
    for line in lines.lines() {
        let prompt: serde_json::Value = serde_json::from_str(line).unwrap();
        let (id, words) = (prompt["id"].as_str().unwrap(), prompt["text"].as_str().unwrap());
        let request = EmbedRequest { inputs: vec![text(words)], ..EmbedRequest::default() };
        let reply = server.embed().embed(request).await.unwrap().into_inner();
        let told = item(&reply.results[0].status);
        assert!(matches!(told.code, Code::Ok | Code::InvalidArgument), "{id}: {told:?}");
        let row = rows(&reply.vectors).remove(0);
        assert!(row.iter().all(|v| v.is_finite()), "{id}");
        assert_eq!(row.iter().any(|v| *v != 0.0), told.code == Code::Ok, "{id}");
        let part = query(vec![server::media_part(text(words), None)]);
        let request =
            EnhanceRequest { cache: SCENES.into(), queries: vec![part], ..EnhanceRequest::default() };
        let reply = server.cache().enhance(request).await.unwrap().into_inner();
        assert_eq!(item(&reply.results[0].status).code, told.code, "{id}");
        assert!(rows(&reply.vectors)[0].iter().all(|v| v.is_finite()), "{id}");
    }
}
