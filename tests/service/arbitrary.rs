//! Every method with arbitrary bytes: whatever comes is answered with a status, nothing crashes, and the server serves on.
//!
//! `VISCACHE_CASES=1000000 cargo test --test service arbitrary` for the long form.

use bytes::Bytes;
use prost::Message;
use prost_types::FileDescriptorSet;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use tempfile::TempDir;
use tonic::Code;
use viscache::batch::{GenerateOptions, Generator};
use viscache::cache::RowsMode;
use viscache::flow::Limits;
use viscache::models::llm::{Llm, LlmOptions};
use viscache::serve::proto::{self, DESCRIPTOR, Dtype, EnhanceRequest, GenerateRequest};

use crate::common;
use crate::raw;
use crate::server::{Server, item, ok, tensor, text};
use crate::store::{self, ROWS, ROWS_DIM};

/// Every method of ours that takes one message, and whether it gives back many.
fn methods() -> Vec<(&'static str, bool)> {
    let set = FileDescriptorSet::decode(DESCRIPTOR).unwrap();
    let mut methods = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in service.method.iter().filter(|method| !method.client_streaming()) {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                methods.push((&*path.leak(), method.server_streaming()));
            }
        }
    }
    methods
}

/// A message as nobody would write it: fields of any number and type, in each other, sometimes cut off.
fn message(random: &mut Pcg64, depth: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.random_range(0..6) {
        let (number, kind) = (random.random_range(1..14u64), random.random_range(0..8u64));
        let kind = if kind > 5 { 2 } else { kind };
        varint(number << 3 | kind, &mut bytes);
        match kind {
            0 => varint(number_of(random), &mut bytes),
            1 => bytes.extend(random.random::<[u8; 8]>()),
            5 => bytes.extend(random.random::<[u8; 4]>()),
            2 => {
                let inner = match random.random_range(0..4) {
                    0 if depth > 0 => message(random, depth - 1),
                    1 if depth > 0 => message(random, depth - 1),
                    2 => words(random).into_bytes(),
                    _ => (0..random.random_range(0..40)).map(|_| random.random()).collect(),
                };
                varint(inner.len() as u64, &mut bytes);
                bytes.extend(inner);
            }
            _ => {}
        }
    }
    if random.random_range(0..8) == 0 {
        bytes.truncate(random.random_range(0..bytes.len() + 1));
    }
    bytes
}

/// Small, large, and what lies at an edge.
fn number_of(random: &mut Pcg64) -> u64 {
    match random.random_range(0..4) {
        0 => random.random_range(0..4),
        1 => random.random(),
        2 => u64::MAX >> random.random_range(0..64u32),
        _ => 1 << random.random_range(0..64u32),
    }
}

/// Names that there are, and others.
fn words(random: &mut Pcg64) -> String {
    const KNOWN: [&str; 8] = [ROWS, store::SCENES, "", "image", "text", "*", "\u{0}\u{1b}", "colour"];
    match random.random_range(0..2) {
        0 => KNOWN[random.random_range(0..KNOWN.len())].to_owned(),
        _ => (0..random.random_range(0..20)).map(|_| random.random_range('\u{0}'..'\u{2fff}')).collect(),
    }
}

fn varint(mut value: u64, bytes: &mut Vec<u8>) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// A good request with some of its bytes changed.
fn damaged(random: &mut Pcg64) -> Vec<u8> {
    let row = tensor(&store::random_rows(2, ROWS_DIM, 7));
    let media = proto::Part { content: Some(proto::part::Content::Media(text("a dog"))), weight: None };
    let query = proto::Query { parts: vec![media], ..Default::default() };
    let enhance = EnhanceRequest { cache: ROWS.into(), vectors: Some(row.clone()), ..Default::default() };
    let mut bytes = match random.random_range(0..4) {
        0 => enhance.encode_to_vec(),
        1 => EnhanceRequest { vectors: None, queries: vec![query], ..enhance }.encode_to_vec(),
        2 => proto::UpsertRequest { cache: ROWS.into(), vectors: Some(row), ..Default::default() }
            .encode_to_vec(),
        _ => proto::SearchRequest {
            cache: ROWS.into(),
            vectors: Some(row),
            top_k: Some(5),
            ..Default::default()
        }
        .encode_to_vec(),
    };
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..bytes.len());
        bytes[at] = random.random();
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_is_answered() {
    let folder = TempDir::new().unwrap();
    store::make_scenes(folder.path());
    store::make_rows(folder.path(), 200);
    let mut app = store::app(folder.path(), Some(store::encoder()), RowsMode::Ram, Limits::default());
    let llm = Llm::open(&LlmOptions::default()).unwrap();
    app.generator = Some(Generator::start(llm, GenerateOptions::default()).unwrap());
    let server = Server::start(app).await;
    let cases = std::env::var("VISCACHE_CASES").map_or(4000, |cases| cases.parse().unwrap());
    let (methods, mut random) = (methods(), Pcg64::seed_from_u64(common::seed()));
    for case in 0..cases {
        let (path, streams) = methods[case % methods.len()];
        let sent = match random.random_range(0..3) {
            0 => damaged(&mut random),
            _ => message(&mut random, 4),
        };
        let sent = Bytes::from(sent);
        let refused = match streams {
            false => raw::call(&server.channel, path, sent.clone()).await.err(),
            true => match raw::ask(&server.channel, path, sent.clone()).await {
                Err(status) => Some(status),
                Ok(events) => {
                    let mut events = events.into_inner();
                    loop {
                        match events.message().await {
                            Ok(Some(_)) => {}
                            Ok(None) => break None,
                            Err(status) => break Some(status),
                        }
                    }
                }
            },
        };
        if let Some(status) = refused {
            // What cannot be decoded is INTERNAL to the transport: it says so.
            let decoding = status.message().contains("failed to decode");
            assert!(status.code() != Code::Internal || decoding, "{path} {sent:?}: {status:?}");
            assert_ne!(status.code(), Code::Unknown, "{path} {sent:?}: {status:?}");
        }
    }
    let request = EnhanceRequest {
        cache: ROWS.into(),
        vectors: Some(viscache::serve::encode_tensor(&[1.0; ROWS_DIM], ROWS_DIM, Dtype::F32)),
        ..Default::default()
    };
    let reply = server.cache().enhance(request).await.unwrap().into_inner();
    assert_eq!(item(&reply.results[0].status), ok());
    assert!(server.generate().generate(GenerateRequest::default()).await.is_err());
    server.stop().await;
}
