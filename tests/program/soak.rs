//! Everything at once, and for as long as one likes: legal requests at the edges of the limits, calls that are given up, connections that
//! say nothing or break off, replies that nobody reads. Somebody with a small question is answered meanwhile, and when it is over the
//! server holds what it held before.
//!
//! `VISCACHE_SOAK=3600 cargo test --test program soak -- --nocapture` for an hour; 24 seconds without the variable.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use viscache::cache::NewCache;
use viscache::serve::proto::{self, Tensor};
use viscache::store::RowType;
use viscache::types::Origin;

use crate::common;
use crate::raw;
use crate::store::{self, ROWS, ROWS_DIM, SCENES};
use crate::world::{Served, World, endpoint};

/// `memory_budget_mib`, and what else a server may take beside it.
const BUDGET_MIB: u64 = 1024;
const BESIDE_MIB: u64 = 256;
/// What settled memory may differ by without anything growing: what the allocators hold differs from rest to rest. A kilobyte a call would
/// be more in two minutes.
const SLACK_MIB: u64 = 96;
/// A larger cache, whose items are replaced again and again.
const MANY: &str = "many";
const MANY_ITEMS: u64 = 20_000;
const SILENT: usize = 1500;
const UPSERT: &str = "/viscache.v1.AdminService/Upsert";

/// What became of calls.
#[derive(Default)]
struct Told {
    outcomes: Mutex<BTreeMap<String, u64>>,
    given_up: AtomicU64,
    sent_away: AtomicU64,
    broken_off: AtomicU64,
}

impl Told {
    /// Counts one, and panics where it ended as no legal request may.
    fn count(&self, path: &str, outcome: &Result<(), Status>) {
        let method = path.rsplit('/').next().unwrap();
        let word = match outcome {
            Ok(()) => "ok".to_owned(),
            Err(status) => {
                let details = status.get_error_details();
                let reason = details.error_info().map_or("", |info| info.reason.as_str());
                match (status.code(), reason) {
                    (Code::InvalidArgument, "REQUEST_TOO_LARGE") => {}
                    // Whoever may come again is told when; room that changes take is made by others.
                    (Code::ResourceExhausted, "REQUEST_MEMORY" | "TOO_MANY_REQUESTS" | "MODEL_BUSY") => {
                        assert!(details.retry_info().is_some(), "{path}: {status:?}");
                    }
                    (Code::ResourceExhausted, "MEMORY_BUDGET") => {}
                    _ => panic!("{path}: {status:?}"),
                }
                reason.to_owned()
            }
        };
        *self.outcomes.lock().unwrap().entry(format!("{method} {word}")).or_default() += 1;
    }
}

fn rows(random: &mut Pcg64, count: usize) -> Option<Tensor> {
    // Lengths far from 1 as well.
    let scale = [1.0, 1.0, 1e-4, 1e4][random.random_range(0..4)];
    let values: Vec<f32> = (0..count * ROWS_DIM).map(|_| scale * random.random_range(-1.0f32..1.0)).collect();
    Some(viscache::serve::encode_tensor(&values, ROWS_DIM, proto::Dtype::F32))
}

/// Whether this process may have so many files open, after asking for it.
fn may_open(files: usize) -> bool {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum.map_or(Some(1 << 16), |most| Some(most.min(1 << 16)));
    _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.is_none_or(|limit| limit >= files as u64)
}

/// New rows for some items, whose records stay as large as they are.
fn upsert(random: &mut Pcg64, ids: std::ops::Range<u64>) -> Bytes {
    let item = |id: u64| proto::UpsertItem {
        id: Some(id),
        uri: format!("{id}{}", "/long".repeat(id as usize % 100)),
        tags: [("n".to_owned(), "x".repeat(id as usize % 200))].into(),
        ..Default::default()
    };
    let upsert = proto::UpsertRequest {
        cache: MANY.into(),
        vectors: rows(random, (ids.end - ids.start) as usize),
        items: ids.map(item).collect(),
        ..Default::default()
    };
    upsert.encode_to_vec().into()
}

/// Something legal, and often the most of it; whether it is answered by a stream.
fn legal(random: &mut Pcg64, pictures: &[Bytes]) -> (&'static str, bool, Bytes) {
    let mut pick = |edges: &[u64]| edges[random.random_range(0..edges.len())];
    let (count, top_k, kind) =
        (pick(&[1, 1, 64, 700, 4096]), pick(&[1, 10, 10, 100, 1000]), pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8]));
    let (page, words) = (pick(&[1, 100, 4096]), pick(&[1, 10, 2000, 60_000]));
    let cache = [MANY, ROWS][random.random_range(0..2)].to_owned();
    let [neighbors, vectors] = [random.random(), random.random()];
    // Wide beams and scans for few queries, or a request takes a minute.
    let search = proto::SearchParams {
        ef_search: [None, Some(1), Some(16_384)][random.random_range(0..if count > 64 { 2 } else { 3 })],
        exact: count <= 64 && random.random_range(0..8) == 0,
        ..Default::default()
    };
    let media = |kind| proto::Media { kind: Some(kind) };
    let text = media(proto::media::Kind::Text("word ".repeat(words as usize / 5 + 1)));
    let ids = |random: &mut Pcg64, count: u64| {
        (0..count).map(|_| random.random_range(0..MANY_ITEMS)).collect::<Vec<u64>>()
    };
    let conditioning = || proto::Conditioning {
        prompt: Some(proto::Prompt {
            prompt: Some(proto::prompt::Prompt::Raw("say what you see".repeat(3))),
        }),
        query: Some(proto::Query {
            parts: vec![proto::Part {
                content: Some(proto::part::Content::Media(text.clone())),
                weight: None,
            }],
            ..Default::default()
        }),
        cache: SCENES.into(),
        ..Default::default()
    };
    match kind {
        0 | 1 => {
            let filter = (kind == 1).then(|| proto::Filter {
                condition: Some(proto::filter::Condition::Ids(proto::ItemIds { ids: ids(random, 65_536) })),
            });
            let vectors_in = rows(random, count as usize);
            let search = proto::SearchRequest {
                cache,
                vectors: vectors_in,
                top_k: Some(top_k as u32),
                search: Some(search),
                return_vectors: vectors,
                filter,
                ..Default::default()
            };
            ("/viscache.v1.CacheService/Search", false, search.encode_to_vec().into())
        }
        2 => {
            let enhance = proto::EnhanceRequest {
                cache,
                vectors: rows(random, count as usize),
                blend: Some(proto::BlendParams { top_k: Some(top_k as u32), ..Default::default() }),
                search: Some(search),
                return_neighbors: neighbors,
                return_vectors: vectors,
                ..Default::default()
            };
            ("/viscache.v1.CacheService/Enhance", false, enhance.encode_to_vec().into())
        }
        3 => {
            let picture = || media(proto::media::Kind::Image(pictures[0].clone()));
            let inputs = (0..count.min(64)).map(|i| if i % 8 == 0 { text.clone() } else { picture() });
            let embed = proto::EmbedRequest { inputs: inputs.collect(), ..Default::default() };
            ("/viscache.v1.EmbedService/Embed", false, embed.encode_to_vec().into())
        }
        4 => {
            let first = random.random_range(0..MANY_ITEMS - count);
            (UPSERT, false, upsert(random, first..first + count))
        }
        5 => {
            let list = proto::ListItemsRequest {
                cache,
                page_size: page as u32,
                return_vectors: vectors,
                ..Default::default()
            };
            ("/viscache.v1.AdminService/ListItems", false, list.encode_to_vec().into())
        }
        6 => {
            let get = proto::GetItemsRequest { cache, ids: ids(random, page), return_vectors: vectors };
            ("/viscache.v1.CacheService/GetItems", false, get.encode_to_vec().into())
        }
        7 => {
            let generate = proto::GenerateRequest {
                conditioning: Some(conditioning()),
                max_tokens: Some(random.random_range(1..40)),
                answers: Some(random.random_range(1..5)),
                form: form(random),
                ..Default::default()
            };
            ("/viscache.v1.GenerateService/Generate", true, generate.encode_to_vec().into())
        }
        _ => {
            let answers = (0..count.min(16)).map(|i| format!("a red square number {i}")).collect();
            let score =
                proto::ScoreRequest { conditioning: Some(conditioning()), answers, ..Default::default() };
            ("/viscache.v1.GenerateService/Score", false, score.encode_to_vec().into())
        }
    }
}

/// What an answer has to be: often nothing.
fn form(random: &mut Pcg64) -> Option<proto::Form> {
    use proto::form::Form::{Choice, JsonSchema, Regex};
    let form = match random.random_range(0..6) {
        0 => Choice(proto::Choice { texts: (0..1000).map(|i| format!("number {i}")).collect() }),
        1 => Regex("([a-z ]{1,40}, ){1,20}[a-z]+".into()),
        2 => JsonSchema(
            r##"{"type": "array", "items": {"anyOf": [{"type": "string"}, {"$ref": "#"}]}}"##.into(),
        ),
        _ => return None,
    };
    Some(proto::Form { form: Some(form) })
}

async fn call(
    channel: &Channel,
    (path, streams, message): (&'static str, bool, Bytes),
) -> Result<(), Status> {
    if !streams {
        return raw::call(channel, path, message).await.map(drop);
    }
    let mut events = raw::ask(channel, path, message).await?.into_inner();
    while events.message().await?.is_some() {}
    Ok(())
}

/// Who asks what is legal, and now and then goes before the answer.
async fn asker(server: String, seed: u64, pictures: Arc<Vec<Bytes>>, told: Arc<Told>, over: Arc<AtomicBool>) {
    let mut random = Pcg64::seed_from_u64(seed);
    let channel = endpoint(&server).connect().await.unwrap();
    while !over.load(Ordering::Relaxed) {
        let asked = legal(&mut random, &pictures);
        let path = asked.0;
        let patience = match random.random_range(0..3) {
            0 => Duration::from_micros(random.random_range(0..30_000)),
            _ => Duration::from_secs(120),
        };
        match tokio::time::timeout(patience, call(&channel, asked)).await {
            Ok(outcome) => told.count(path, &outcome),
            Err(_) if patience < Duration::from_secs(1) => {
                told.given_up.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => panic!("{path} is not answered"),
        }
    }
}

/// Who gives up small calls, one after the other. Of a server that comes to nothing for a second it may lose the connection: more than
/// a thousand calls that nobody has looked at and that are cancelled are an attack.
async fn quitter(server: String, seed: u64, told: Arc<Told>, over: Arc<AtomicBool>) {
    let mut random = Pcg64::seed_from_u64(seed);
    let channel = endpoint(&server).connect().await.unwrap();
    while !over.load(Ordering::Relaxed) {
        let enhance =
            proto::EnhanceRequest { cache: MANY.into(), vectors: rows(&mut random, 1), ..Default::default() };
        let path = "/viscache.v1.CacheService/Enhance";
        let asked = call(&channel, (path, false, enhance.encode_to_vec().into()));
        let patience = Duration::from_micros(random.random_range(0..1500));
        match tokio::time::timeout(patience, asked).await {
            Ok(Err(status)) if std::error::Error::source(&status).is_some() => {
                told.sent_away.fetch_add(1, Ordering::Relaxed);
            }
            Ok(outcome) => told.count(path, &outcome),
            Err(_) => {
                told.given_up.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Who begins to speak HTTP/2 and breaks off, or asks for much and reads nothing of it.
async fn rude(server: String, seed: u64, told: Arc<Told>, over: Arc<AtomicBool>) {
    let mut random = Pcg64::seed_from_u64(seed);
    while !over.load(Ordering::Relaxed) {
        if random.random_range(0..4) == 0 {
            let endpoint = endpoint(&server).initial_stream_window_size(1 << 10);
            let channel = endpoint.connect().await.unwrap();
            let search = proto::SearchRequest {
                cache: MANY.into(),
                vectors: rows(&mut random, 64),
                top_k: Some(1000),
                return_vectors: true,
                ..Default::default()
            };
            let replies =
                raw::ask(&channel, "/viscache.v1.CacheService/Search", search.encode_to_vec().into()).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
            drop((replies, channel));
        } else {
            let server = server.clone();
            let length = random.random_range(0..60);
            let sent = tokio::task::spawn_blocking(move || {
                let mut stream = TcpStream::connect(&server)?;
                // The beginning, settings, and headers that never end. What the server says stays unread, so closing resets.
                let all = [
                    &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
                    b"\0\0\0\x04\0\0\0\0\0",
                    b"\0\0\x20\x01\0\0\0\0\x01\x83\x87",
                    &[0; 40],
                ];
                let all = all.concat();
                stream.write_all(&all[..length.min(all.len())])?;
                std::thread::sleep(Duration::from_millis(5));
                Ok::<(), std::io::Error>(())
            });
            // No place for it is an answer as well.
            _ = sent.await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        told.broken_off.fetch_add(1, Ordering::Relaxed);
    }
}

/// Who has a small question, and how long each answer takes.
async fn ordinary(server: String, over: Arc<AtomicBool>) -> (Vec<Duration>, u64) {
    let (mut took, mut refused, mut random) = (Vec::new(), 0, Pcg64::seed_from_u64(1));
    let channel = endpoint(&server).connect().await.unwrap();
    while !over.load(Ordering::Relaxed) {
        let enhance =
            proto::EnhanceRequest { cache: ROWS.into(), vectors: rows(&mut random, 1), ..Default::default() };
        let begun = Instant::now();
        match raw::call(&channel, "/viscache.v1.CacheService/Enhance", enhance.encode_to_vec().into()).await {
            Ok(_) => took.push(begun.elapsed()),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                refused += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (took, refused)
}

/// A line of the process's status, MiB.
fn held(server: &Served, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let found = status.lines().find_map(|found| found.strip_prefix(line)).unwrap();
    found.trim_start_matches(':').split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

/// Waits until nothing is under way and the processor rests, and then so long; the memory that is held then, MiB.
async fn settled(server: &Served, rest: Duration) -> u64 {
    let mut admin = proto::admin_service_client::AdminServiceClient::new(
        endpoint(&server.address).connect().await.unwrap(),
    );
    let begun = Instant::now();
    loop {
        let before = server.taken();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let busy = server.taken() - before;
        let under_way = admin.stats(proto::StatsRequest {}).await.unwrap().into_inner().in_flight;
        if busy < Duration::from_millis(200) && under_way <= 1 {
            tokio::time::sleep(rest).await;
            return held(server, "VmRSS");
        }
        assert!(
            begun.elapsed() < Duration::from_secs(90),
            "{under_way} requests are under way and {busy:?} of two seconds are taken, with nobody there"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_gets_everything_at_once_holds_what_it_held() {
    let seconds: f64 = std::env::var("VISCACHE_SOAK").map_or(24.0, |seconds| seconds.parse().unwrap());
    let world = World::new();
    let new = NewCache { dim: ROWS_DIM, rows: RowType::F16, origin: Origin::of("import"), model: None };
    store::add(&world.store, MANY, &new, store::random_rows(MANY_ITEMS as usize, ROWS_DIM, 3), None);
    let budget = BUDGET_MIB.to_string();
    let settings = [
        ("VISCACHE_MEMORY_BUDGET_MIB", &budget[..]),
        ("VISCACHE_LIMITS__STALL_SECONDS", "5"),
        ("VISCACHE_RECALL_SAMPLING__RATE", "0"),
    ];
    let arguments = ["--writable", "--decoder", "nano"];
    let (server, log) = Served::logged(&world, "ulimit -n 1024", &arguments, &settings);
    let pictures = Arc::new(vec![Bytes::from(store::scene(3))]);
    let told = Arc::new(Told::default());

    // Rounds of at most ten minutes, a rest after each. What fills caches and pools once is filled by the second; the others may take
    // no more.
    let rounds = (seconds / 600.0).ceil().max(if seconds < 100.0 { 3.0 } else { 4.0 });
    let rest = Duration::from_secs(if seconds < 100.0 { 3 } else { 20 });
    // Every item as large as it will be.
    let channel = endpoint(&server.address).connect().await.unwrap();
    let mut random = Pcg64::seed_from_u64(1);
    for first in (0..MANY_ITEMS).step_by(1000) {
        let upsert = upsert(&mut random, first..first + 1000);
        raw::call(&channel, UPSERT, upsert).await.unwrap();
    }
    let mut rests = Vec::new();
    let (mut took, mut refused) = (Vec::new(), 0);
    for round in 0..rounds as u64 {
        let over = Arc::new(AtomicBool::new(false));
        let silent = if may_open(SILENT + 200) { SILENT } else { 200 };
        let silent: Vec<TcpStream> =
            (0..silent).filter_map(|_| TcpStream::connect(&server.address).ok()).collect();
        let small = tokio::spawn(ordinary(server.address.clone(), over.clone()));
        let mut others = Vec::new();
        for client in 0..6 {
            let seed = common::seed() + 100 * round + client;
            let (to, told, over) = (server.address.clone(), told.clone(), over.clone());
            others.push(match client {
                0..4 => tokio::spawn(asker(to, seed, pictures.clone(), told, over)),
                4 => tokio::spawn(quitter(to, seed, told, over)),
                _ => tokio::spawn(rude(to, seed, told, over)),
            });
        }
        let until = Instant::now() + Duration::from_secs_f64(seconds / rounds);
        while Instant::now() < until && !others.iter().any(|task| task.is_finished()) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        over.store(true, Ordering::Relaxed);
        let failed = |error: tokio::task::JoinError| -> ! {
            let log = fs::read_to_string(&log).unwrap();
            panic!("{error}; the log ends: {}", &log[log.len().saturating_sub(2000)..])
        };
        let (times, no) = small.await.unwrap_or_else(|error| failed(error));
        took.extend(times);
        refused += no;
        for task in others {
            task.await.unwrap_or_else(|error| failed(error));
        }
        drop(silent);
        rests.push(settled(&server, rest).await);
    }

    took.sort_unstable();
    let (peak, at) = (held(&server, "VmHWM"), |share: f64| took[((took.len() - 1) as f64 * share) as usize]);
    println!(
        "{seconds} s: {} calls given up, {} connections broken off; a small question took {:?} at p50, {:?} at p99, {refused} of {} refused",
        told.given_up.load(Ordering::Relaxed),
        told.broken_off.load(Ordering::Relaxed),
        at(0.5),
        at(0.99),
        took.len() as u64 + refused,
    );
    println!("peak {peak} MiB; at rest {rests:?} MiB; {:#?}", told.outcomes.lock().unwrap());
    let log = fs::read_to_string(log).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    assert!(peak <= BUDGET_MIB + BESIDE_MIB, "{peak} MiB");
    let (given_up, sent_away) =
        (told.given_up.load(Ordering::Relaxed), told.sent_away.load(Ordering::Relaxed));
    assert!(sent_away <= 2 + given_up / 1000, "{sent_away} times the connection was closed on a client");
    assert!(took.len() as u64 > refused, "{} small questions answered, {refused} refused", took.len());
    let hours = (seconds - 2.0 * seconds / rounds) / 3600.0;
    let allowed = (rests[1] as f64 * (1.0 + 0.01 * hours)) as u64 + SLACK_MIB;
    assert!(rests[1..].iter().all(|&rest| rest <= allowed), "{rests:?} MiB at rest, more than {allowed}");
    let mut admin = proto::admin_service_client::AdminServiceClient::new(
        endpoint(&server.address).connect().await.unwrap(),
    );
    let count = proto::CountItemsRequest { cache: MANY.into(), filter: None };
    assert_eq!(admin.count_items(count).await.unwrap().into_inner().count, MANY_ITEMS);
    assert_eq!(server.end("TERM"), Some(0));
}
