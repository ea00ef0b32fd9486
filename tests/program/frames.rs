//! Frames of HTTP/2 as no client would send them: whatever comes ends its connection at worst, and the server serves on.
//!
//! `VISCACHE_CASES=1000000 cargo test --test program frames` for the long form, in which a case is a frame.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use viscache::serve::proto;

use crate::common;
use crate::world::{Served, World, endpoint};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;
/// Flags: of a stream's end, and of the headers'.
const END: u8 = 1;
const END_HEADERS: u8 = 4;
/// Frames of one connection at most.
const FRAMES: usize = 24;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header as HPACK's literal that no table keeps.
fn header(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0, name.len() as u8], name, &[value.len() as u8], value].concat()
}

/// What a good call begins with, or nearly.
fn headers(random: &mut Pcg64) -> Vec<u8> {
    const PATHS: [&str; 6] = [
        "/viscache.v1.CacheService/Enhance",
        "/viscache.v1.CacheService/Describe",
        "/viscache.v1.GenerateService/Generate",
        "/viscache.v1.AdminService/UpsertStream",
        "/grpc.health.v1.Health/Watch",
        "/nobody.v1/Nothing",
    ];
    let mut all = vec![
        header(b":method", b"POST"),
        header(b":scheme", b"http"),
        header(b":path", PATHS[random.random_range(0..PATHS.len())].as_bytes()),
        header(b":authority", b"localhost"),
        header(b"te", b"trailers"),
        header(b"content-type", b"application/grpc"),
    ];
    match random.random_range(0..6) {
        0 => all.push(header(b"grpc-timeout", &bytes(random, 12))),
        1 => all.push(header(b"grpc-encoding", [&b"gzip"[..], b"zstd", b"br"][random.random_range(0..3)])),
        2 => all.push(header(&bytes(random, 20), &bytes(random, 100))),
        3 => drop(all.remove(random.random_range(0..all.len()))),
        _ => {}
    }
    all.concat()
}

/// A message in its envelope, whose length is right or not.
fn message(random: &mut Pcg64) -> Vec<u8> {
    let body = bytes(random, 60);
    let length = match random.random_range(0..4) {
        0 => random.random(),
        _ => body.len() as u32,
    };
    [&[u8::from(random.random_range(0..4) == 0)][..], &length.to_be_bytes(), &body].concat()
}

fn bytes(random: &mut Pcg64, most: usize) -> Vec<u8> {
    (0..random.random_range(0..=most)).map(|_| random.random()).collect()
}

/// The next frame of a connection.
fn next(random: &mut Pcg64) -> Vec<u8> {
    let stream = match random.random_range(0..8) {
        0 => 0,
        1 => random.random(),
        _ => 2 * random.random_range(0..12) + 1,
    };
    let mut frame = match random.random_range(0..10) {
        0..3 => {
            let block = headers(random);
            match random.random_range(0..6) {
                // In two parts, or never in the second.
                0 => {
                    let (first, rest) = block.split_at(random.random_range(0..block.len()));
                    [frame(HEADERS, 0, stream, first), frame(CONTINUATION, END_HEADERS, stream, rest)]
                        .concat()
                }
                1 => frame(HEADERS, random.random(), stream, &block),
                2 => frame(HEADERS, END_HEADERS, stream, &bytes(random, 80)),
                _ => frame(HEADERS, END_HEADERS | (random.random::<u8>() & END), stream, &block),
            }
        }
        3..6 => frame(DATA, random.random::<u8>() & (END | 8), stream, &message(random)),
        6 => frame(RESET, 0, stream, &random.random::<[u8; 4]>()),
        7 => {
            let grown = random.random::<u32>() >> random.random_range(0..32u32);
            frame(WINDOW, 0, stream, &grown.to_be_bytes())
        }
        8 => {
            let settings = (0..random.random_range(0..6)).flat_map(|_| {
                let (name, value) = (random.random_range(0..10u16), random.random::<u32>());
                [&name.to_be_bytes()[..], &(value >> random.random_range(0..32u32)).to_be_bytes()].concat()
            });
            let settings: Vec<u8> = settings.collect();
            frame(SETTINGS, 0, 0, &settings)
        }
        _ => {
            let kind = if random.random_range(0..3) == 0 { PING } else { random.random() };
            frame(kind, random.random(), stream, &bytes(random, 40))
        }
    };
    if random.random_range(0..24) == 0 {
        let at = random.random_range(0..frame.len());
        frame[at] = random.random();
    }
    frame
}

/// One connection, and how many frames it sent.
fn connection(server: &str, random: &mut Pcg64) -> usize {
    // No place for it is an answer too, and so is its end at any moment.
    let Ok(mut stream) = TcpStream::connect(server) else { return 1 };
    let mut all = match random.random_range(0..40) {
        0 => bytes(random, 60),
        1 => PREFACE[..random.random_range(0..PREFACE.len())].to_vec(),
        _ => PREFACE.to_vec(),
    };
    if random.random_range(0..20) > 0 {
        all.extend(frame(SETTINGS, 0, 0, &[]));
    }
    let count = random.random_range(1..=FRAMES);
    (0..count).for_each(|_| all.extend(next(random)));
    _ = stream.write_all(&all);
    if random.random_range(0..4) == 0 {
        stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        _ = stream.read(&mut [0; 4096]);
    }
    // Half of them reset what they have not read, the others end in order.
    if random.random() {
        _ = stream.shutdown(Shutdown::Write);
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_any_kind_end_their_connection_at_worst() {
    let world = World::new();
    let settings = [("VISCACHE_LIMITS__STALL_SECONDS", "2"), ("VISCACHE_MEMORY_BUDGET_MIB", "1024")];
    let (server, log) = Served::logged(&world, "", &["--writable", "--decoder", "nano"], &settings);
    let cases: usize = std::env::var("VISCACHE_CASES").map_or(4000, |cases| cases.parse().unwrap());
    let address = server.address.clone();
    let senders = (0..4).map(|sender| {
        let address = address.clone();
        tokio::task::spawn_blocking(move || {
            let mut random = Pcg64::seed_from_u64(common::seed() + sender);
            let mut sent = 0;
            while sent < cases / 4 {
                sent += connection(&address, &mut random);
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.unwrap();
    }
    // Somebody else is served, and nothing of all that is under way once it was given up.
    let mut admin =
        proto::admin_service_client::AdminServiceClient::new(endpoint(&address).connect().await.unwrap());
    let begun = Instant::now();
    loop {
        let stats = admin.stats(proto::StatsRequest {}).await.unwrap().into_inner();
        if stats.in_flight <= 1 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{} requests are under way", stats.in_flight);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let log = fs::read_to_string(log).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(server.end("TERM"), Some(0));
}
