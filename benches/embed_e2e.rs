//! Does the service keep the model as busy as a program that has it to itself?
//!
//! Pictures are prepared and encoded in batches of 64 in this process, and then sent one a request by 64 clients at once, in turn; the
//! ratio of both rates. Then the clients ask at a steady pace, together 70 % of the rate that they reached, for p50 and p99.
//! The built-in nano model, whose pictures take a millisecond or two: what the service adds cannot show more. With
//! `VISCACHE_BENCH_DATA` an encoder of ImageBind-huge's size, random weights (`DIR/vision-huge.safetensors`, 2.5 GB, written
//! once): one round in which every client asks once or twice, and no percentiles, for which it takes too long.
//!
//! ```text
//! [VISCACHE_BENCH_DATA=DIR] cargo bench --profile dev --bench embed_e2e
//! ```

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::huge::write_weights;
use common::{Noise, machine, median, quantile, timed, verdict};
use tonic::transport::{Channel, Endpoint};
use viscache::batch::{self, Embedder};
use viscache::flow::{self, App, Call, Limits, MediaInput};
use viscache::media::{MediaLimits, Orientation};
use viscache::models::DeviceKind;
use viscache::models::encoder::{Encoder, EncoderOptions};
use viscache::serve::proto::embed_service_client::EmbedServiceClient;
use viscache::serve::{self, proto};
use viscache::store::{Access, Store};
use viscache::types::Modality;

const CLIENTS: usize = 64;
const CONNECTIONS: usize = 8;
const BATCH: usize = 64;
const ROUNDS: usize = 5;
/// Length of a round.
const SECONDS: f64 = 2.0;
const LOAD: f64 = 0.7;

fn main() {
    // SAFETY: this is the first statement of the process.
    unsafe { viscache::models::device::settle_process() };
    machine();
    let weights = common::data().map(|folder| folder.join("vision-huge.safetensors"));
    if let Some(missing) = weights.as_ref().filter(|weights| !weights.exists()) {
        write_weights(missing);
    }
    let huge = weights.is_some();
    let (count, rounds) = if huge { (BATCH, 1) } else { (4 * BATCH, ROUNDS) };
    let encoder = Encoder::open(&EncoderOptions {
        network: Default::default(),
        weights,
        sizes: None,
        modalities: Some(vec![Modality::Image]),
        device: DeviceKind::Cpu,
        dtype: None,
        threads: common::cores(),
        orientation: Orientation::Apply,
        limits: MediaLimits::default(),
    })
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(folder.path(), Access::Write).unwrap());
    let embedder = Embedder::start(encoder, batch::Options::default()).unwrap();
    let app = Arc::new(App::new(store, Default::default(), None, Some(embedder), Limits::default()));
    let pictures: Vec<bytes::Bytes> = (0..count as u64).map(|i| picture(i).into()).collect();

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (address, server) = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = async move { drop(stopped.await) };
        (address, tokio::spawn(serve::run(listener, app.clone(), shutdown)))
    });
    let clients: Vec<EmbedServiceClient<Channel>> = runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let channel = Endpoint::new(format!("http://{address}")).unwrap().connect().await.unwrap();
            clients.push(EmbedServiceClient::new(channel));
        }
        clients
    });

    let (mut direct, mut remote) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        direct.push(in_process(&app, &pictures));
        remote.push(runtime.block_on(closed_loop(&clients, &pictures)));
    }
    let share: Vec<f64> = direct.iter().zip(&remote).map(|(d, r)| r / d).collect();
    let (direct, remote, share) = (median(direct), median(remote), median(share));
    println!("pictures/s: in process {direct:.3}, {CLIENTS} clients over gRPC {remote:.3}");
    println!("RATIO: {:.0} %  (goal ≥ 90 %: {})", share * 100.0, verdict(share >= 0.9));

    if !huge {
        let mut times = runtime.block_on(paced(&clients, &pictures, LOAD * remote));
        let (p50, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
        println!("at {:.0} % of that, {} requests, ms: p50 {p50:.2} p99 {p99:.2}", LOAD * 100.0, times.len());
        println!("RATIO: {:.1} ×  (goal ≤ 2.5 ×: {})", p99 / p50, verdict(p99 <= 2.5 * p50));
    }
    drop(clients);
    drop(stop);
    runtime.block_on(server).unwrap().unwrap();
}

/// A picture of the size of a photograph's thumbnail, as JPEG.
fn picture(seed: u64) -> Vec<u8> {
    let mut noise = Noise(seed + 1);
    let mut at = [0.0f32; 3];
    let data: Vec<u8> = (0..160 * 120)
        .flat_map(|_| {
            at.iter_mut().for_each(|v| *v = 0.98 * *v + noise.next());
            at.map(|v| (128.0 + 20.0 * v).clamp(0.0, 255.0) as u8)
        })
        .collect();
    let mut jpeg = Vec::new();
    let picture = image::RgbImage::from_raw(160, 120, data).unwrap();
    picture.write_to(&mut Cursor::new(&mut jpeg), image::ImageFormat::Jpeg).unwrap();
    jpeg
}

fn in_process(app: &App, pictures: &[bytes::Bytes]) -> f64 {
    let (mut done, start) = (0, Instant::now());
    while start.elapsed().as_secs_f64() < SECONDS {
        for chunk in pictures.chunks(BATCH) {
            let inputs: Vec<MediaInput> = chunk.iter().cloned().map(MediaInput::Image).collect();
            let (results, _) =
                timed(|| flow::embed(app, &inputs.iter().collect::<Vec<_>>(), &Call::default()));
            done += results.unwrap().iter().filter(|result| result.is_ok()).count();
        }
    }
    done as f64 / start.elapsed().as_secs_f64()
}

fn request(picture: &bytes::Bytes) -> proto::EmbedRequest {
    let media = proto::Media { kind: Some(proto::media::Kind::Image(picture.clone())) };
    proto::EmbedRequest { inputs: vec![media], ..Default::default() }
}

/// Every client asks again when it is answered.
async fn closed_loop(clients: &[EmbedServiceClient<Channel>], pictures: &[bytes::Bytes]) -> f64 {
    let start = Instant::now();
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|caller| {
            let (mut client, pictures) = (clients[caller % CONNECTIONS].clone(), pictures.to_vec());
            tokio::spawn(async move {
                let mut done = 0;
                for picture in pictures.iter().cycle().skip(caller * 4) {
                    if start.elapsed().as_secs_f64() >= SECONDS {
                        break;
                    }
                    client.embed(request(picture)).await.unwrap();
                    done += 1;
                }
                done
            })
        })
        .collect();
    let mut done = 0;
    for task in tasks {
        done += task.await.unwrap();
    }
    f64::from(done) / start.elapsed().as_secs_f64()
}

/// Every client asks at a pace of its own, from a random moment on, whether or not it has been answered: milliseconds of each.
async fn paced(clients: &[EmbedServiceClient<Channel>], pictures: &[bytes::Bytes], rate: f64) -> Vec<f64> {
    let mut noise = Noise(5);
    let (begin, gap) = (Instant::now(), CLIENTS as f64 / rate);
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|caller| {
            let (client, pictures) = (clients[caller % CONNECTIONS].clone(), pictures.to_vec());
            let mut due = begin + Duration::from_secs_f64(gap * f64::from(noise.next()).abs());
            tokio::spawn(async move {
                let mut asked = Vec::new();
                while due < begin + Duration::from_secs_f64(3.0 * SECONDS) {
                    tokio::time::sleep_until(due.into()).await;
                    let (mut client, since) = (client.clone(), due);
                    let picture = pictures[(caller + CLIENTS * asked.len()) % pictures.len()].clone();
                    asked.push(tokio::spawn(async move {
                        client.embed(request(&picture)).await.unwrap();
                        since.elapsed().as_secs_f64() * 1e3
                    }));
                    due += Duration::from_secs_f64(gap);
                }
                let mut times = Vec::new();
                for one in asked {
                    times.push(one.await.unwrap());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    times
}
