//! All the senses over gRPC: sounds, films, depth and thermal pictures, movements and point clouds, alone and mixed.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tonic::Code;
use viscache::cache::RowsMode;
use viscache::flow::Limits;
use viscache::media::{MediaLimits, Orientation, npy};
use viscache::models::encoder::{Encoder, EncoderOptions};
use viscache::models::imagebind::{self, Config, ImageBind};
use viscache::models::weights::Weights;
use viscache::models::{DeviceKind, Placement};
use viscache::serve::proto::{self, EmbedOutput, EmbedRequest, EnhanceRequest, Media, SearchRequest, media};
use viscache::types::Modality;

use crate::common::{self, parts, read, say};
use crate::server::{self, Server, bad_argument, image, item, media_part, ok, query, rows, text};
use crate::store::{self, SCENES, encode, mixed, scene};

const SPEECH: &[u8] = include_bytes!("../../assets/nano/large_orange_cross.wav");

/// A server over the scenes with a model.
async fn serve(encoder: Encoder) -> (Server, TempDir) {
    let folder = TempDir::new().unwrap();
    store::make_scenes(folder.path());
    let app = store::app(folder.path(), Some(encoder), RowsMode::Ram, Limits::default());
    (Server::start(app).await, folder)
}

/// A model of a golden folder, with every sense that its sizes name.
fn open(weights: PathBuf, sizes: PathBuf) -> Encoder {
    Encoder::open(&EncoderOptions {
        network: Default::default(),
        weights: Some(weights),
        sizes: Some(sizes),
        modalities: None,
        device: DeviceKind::Cpu,
        dtype: None,
        threads: 2,
        orientation: Orientation::Apply,
        limits: MediaLimits::default(),
    })
    .unwrap()
}

/// A server with a model whose embeddings no cache here holds.
async fn serve_alone(encoder: Encoder) -> (Server, TempDir) {
    let folder = TempDir::new().unwrap();
    store::make_rows(folder.path(), 10);
    let app = store::app(folder.path(), Some(encoder), RowsMode::Ram, Limits::default());
    (Server::start(app).await, folder)
}

fn one(kind: media::Kind) -> Media {
    Media { kind: Some(kind) }
}

fn film(source: proto::video::Source) -> Media {
    one(media::Kind::Video(proto::Video { source: Some(source) }))
}

async fn embed(server: &Server, inputs: Vec<Media>) -> (Vec<Vec<f32>>, Vec<server::Told>) {
    let reply = answer(server, inputs).await;
    (rows(&reply.vectors), reply.results.iter().map(|result| item(&result.status)).collect())
}

async fn answer(server: &Server, inputs: Vec<Media>) -> proto::EmbedResponse {
    let request = EmbedRequest { inputs, output: EmbedOutput::Model.into(), ..Default::default() };
    server.embed().embed(request).await.unwrap().into_inner()
}

/// A medium that cannot be embedded, and what is said of it.
fn bad_media(result: &proto::ItemStatus) -> String {
    let told = item(&result.status);
    assert_eq!((told.code, told.reason.as_str()), (Code::InvalidArgument, "BAD_MEDIA"), "{result:?}");
    result.status.as_ref().unwrap().message.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoken_query_is_embedded_mixed_and_finds_its_kind() {
    let (server, _folder) = serve(store::encoder()).await;
    let encoder = store::encoder();
    let sound = || one(media::Kind::Audio(SPEECH.into()));
    let heard = encode(&encoder, Modality::Audio, SPEECH).embedding;
    let (received, told) = embed(&server, vec![sound()]).await;
    assert_eq!((received[0].as_slice(), &told[0]), (heard.as_slice(), &ok()));

    // Mixed with a picture and a text: unit parts, shares of the sum, not normalised again.
    let seen = encode(&encoder, Modality::Image, &scene(3)).embedding;
    let said = encode(&encoder, Modality::Text, b"a blue square").embedding;
    let all = [(seen.as_slice(), 0.5), (said.as_slice(), 1.0), (heard.as_slice(), 2.0)];
    let expected = mixed(&all);
    let parts = vec![
        media_part(image(&scene(3)), Some(0.5)),
        media_part(text("a blue square"), Some(1.0)),
        media_part(sound(), Some(2.0)),
    ];
    let request = SearchRequest {
        cache: SCENES.into(),
        queries: vec![query(parts)],
        top_k: Some(1),
        return_vectors: true,
        ..Default::default()
    };
    let reply = server.cache().search(request).await.unwrap().into_inner();
    let nearest = &reply.results[0].neighbors[0];
    let row = &rows(&nearest.embedding)[0];
    let score: f64 = expected.iter().zip(row).map(|(q, v)| q * f64::from(*v)).sum();
    assert!((score - f64::from(nearest.score)).abs() < 1e-6, "{score} {}", nearest.score);
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_below_zero_take_away_where_they_are_allowed() {
    let (server, _folder) = serve(store::encoder()).await;
    let encoder = store::encoder();
    let (a, b) = (scene(3), scene(4));
    let ask = |allow: bool| EnhanceRequest {
        cache: SCENES.into(),
        queries: vec![proto::Query {
            parts: vec![media_part(image(&a), Some(1.0)), media_part(image(&b), Some(-0.25))],
            allow_negative_weights: allow,
        }],
        blend: Some(proto::BlendParams { weight: Some(0.0), ..Default::default() }),
        ..Default::default()
    };
    let reply = server.cache().enhance(ask(false)).await.unwrap().into_inner();
    assert_eq!(item(&reply.results[0].status), bad_argument("queries[0].parts[1].weight"));
    let reply = server.cache().enhance(ask(true)).await.unwrap().into_inner();
    assert_eq!(item(&reply.results[0].status), ok());
    let [first, second] = [&a, &b].map(|file| encode(&encoder, Modality::Image, file).embedding);
    // With no share of the cache, the answer is the direction of the sum.
    let sum: Vec<f64> = first
        .as_slice()
        .iter()
        .zip(second.as_slice())
        .map(|(x, y)| (f64::from(*x) - 0.25 * f64::from(*y)) / 1.250_001)
        .collect();
    let norm = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
    let received = &rows(&reply.vectors)[0];
    assert!(received.iter().zip(&sum).all(|(r, s)| (f64::from(*r) - s / norm).abs() < 1e-6));
}

/// ffmpeg's own test picture as a film without loss, and its frames.
fn made_film(folder: &Path, seconds: u32, rate: u32) -> (Vec<u8>, Vec<Vec<u8>>) {
    let run = |arguments: &[&str]| {
        let done =
            Command::new("ffmpeg").args(["-v", "error", "-y"]).args(arguments).current_dir(folder).status();
        assert!(done.expect("ffmpeg is installed (.ci/run does it)").success(), "{arguments:?}");
    };
    let source = format!("testsrc=duration={seconds}:size=96x64:rate={rate}");
    run(&["-f", "lavfi", "-i", &source, "-c:v", "ffv1", "-pix_fmt", "bgr0", "film.mkv"]);
    run(&["-i", "film.mkv", "-fps_mode", "passthrough", "frame%04d.png"]);
    let frames = (1..=seconds * rate).map(|n| read(&folder.join(format!("frame{n:04}.png")))).collect();
    (read(&folder.join("film.mkv")), frames)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_film_and_its_frames_are_the_same() {
    let (server, folder) = serve(store::encoder()).await;
    let (file, frames) = made_film(folder.path(), 3, 10);
    let frames = |rate: f64| {
        let frames = frames.iter().map(|frame| frame.clone().into()).collect();
        film(proto::video::Source::Frames(proto::VideoFrames { frames, rate }))
    };
    let whole = film(proto::video::Source::File(file.clone().into()));
    let (received, told) = embed(&server, vec![whole, frames(10.0), frames(2.0)]).await;
    assert_eq!(told, [ok(), ok(), ok()]);
    assert_eq!(received[0], received[1]);
    assert_ne!(received[0], received[2], "another rate sees other frames");
    // The mean of fifteen unit vectors is shorter than 1.
    let norm = received[0].iter().map(|v| v * v).sum::<f32>().sqrt();
    assert!(norm < 1.0 && norm > 0.5, "{norm}");
}

#[tokio::test(flavor = "multi_thread")]
async fn films_that_are_none_and_frames_that_do_not_fit_are_refused_one_by_one() {
    let (server, folder) = serve(store::encoder()).await;
    let (file, frames) = made_film(folder.path(), 1, 5);
    let source = |frames: Vec<Vec<u8>>, rate: f64| {
        let frames = frames.into_iter().map(Into::into).collect();
        film(proto::video::Source::Frames(proto::VideoFrames { frames, rate }))
    };
    // A playlist that names another file must not be followed.
    let playlist = format!("ffconcat version 1.0\nfile {}\n", folder.path().join("film.mkv").display());
    let inputs = vec![
        film(proto::video::Source::File(b"no film".to_vec().into())),
        film(proto::video::Source::File(playlist.into_bytes().into())),
        film(proto::video::Source::File(file[..file.len() / 3].to_vec().into())),
        one(media::Kind::Video(proto::Video { source: None })),
        source(vec![], 5.0),
        source(frames.clone(), 0.0),
        source(vec![frames[0].clone(), scene(1)], 1.0),
        source(vec![b"x".to_vec()], 1.0),
        source(frames, 5.0),
    ];
    let count = inputs.len();
    let (_, told) = embed(&server, inputs).await;
    for (i, told) in told.iter().enumerate() {
        match i {
            2 => {} // the beginning of a film is a film, or not one; the server lives either way
            3 => assert_eq!(told, &bad_argument("inputs[3].video")),
            4 => assert_eq!(told, &bad_argument("inputs[4].video.frames.frames")),
            5 => assert_eq!(told, &bad_argument("inputs[5].video.frames.rate")),
            _ if i == count - 1 => assert_eq!(told, &ok()),
            _ => assert_eq!((told.code, told.reason.as_str()), (Code::InvalidArgument, "BAD_MEDIA"), "{i}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sense_that_the_model_lacks_is_refused_and_bad_settings_are_named() {
    let (server, _folder) = serve(store::encoder()).await;
    let map: bytes::Bytes = npy::write(&[1.0; 6], 3).into();
    let depth = |depth: proto::Depth| one(media::Kind::Depth(proto::Depth { file: map.clone(), ..depth }));
    let inputs = vec![
        depth(proto::Depth::default()),
        depth(proto::Depth { baseline: Some(-1.0), ..Default::default() }),
        one(media::Kind::Thermal(proto::Thermal { file: map.clone(), low: Some(1.0), ..Default::default() })),
        one(media::Kind::Imu(proto::Imu { file: map.clone(), rate: Some(f64::NAN), ..Default::default() })),
        one(media::Kind::PointCloud(proto::PointCloud::default())),
        one(media::Kind::ModelInput(proto::ModelInput::default())),
        one(media::Kind::Audio(b"RIFF".to_vec().into())),
    ];
    let reply = answer(&server, inputs).await;
    let told: Vec<_> = reply.results.iter().map(|result| item(&result.status)).collect();
    assert!(bad_media(&reply.results[0]).contains("without depth"));
    assert_eq!(told[1], bad_argument("inputs[1].depth.baseline"));
    assert_eq!(told[2], bad_argument("inputs[2].thermal"));
    assert_eq!(told[3], bad_argument("inputs[3].imu.rate"));
    assert_eq!(told[4], bad_argument("inputs[4].point_cloud.file"));
    assert_eq!(told[5], bad_argument("inputs[5].model_input.modality"));
    assert!(bad_media(&reply.results[6]).contains("not a readable sound"));
}

#[tokio::test(flavor = "multi_thread")]
async fn point_clouds_reach_their_encoder_ready_made_and_as_files() {
    let Some(folder) = parts("imagebind/point").into_iter().find(|p| p.join("config.json").exists()) else {
        return say("skipped: point clouds over gRPC (no golden model here)");
    };
    let sizes: serde_json::Value =
        serde_json::from_slice(&common::read(&folder.join("config.json"))).unwrap();
    let config = serde_json::json!({ "out_embed_dim": sizes["out_embed_dim"], "point": sizes }).to_string();
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("sizes.json"), &config).unwrap();
    let weights = folder.join("point.safetensors");
    let encoder = open(weights.clone(), place.path().join("sizes.json"));
    let (server, _store) = serve_alone(encoder).await;
    let case = common::Tensors::open(&folder.join("case.safetensors"));
    let input = case.get("input");
    let [count, points, 3] = input.shape[..] else { panic!("{:?}", input.shape) };
    // The golden case begins at points of its own; over gRPC a ready cloud begins at its first.
    let model = {
        let (config, weights) = (Config::from_json(&config).unwrap(), Weights::open(&weights).unwrap());
        ImageBind::load(&weights, &config, &[Modality::Point], &Placement::cpu()).unwrap()
    };
    let shape = input.shape.as_slice();
    let clouds = candle_core::Tensor::from_slice(input.floats(), shape, &candle_core::Device::Cpu).unwrap();
    let expected = model.encode(Modality::Point, &clouds, &mut imagebind::ignore).unwrap().output;
    let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let clouds = input.floats().chunks_exact(3 * points).map(|values| {
        let tensor =
            proto::Tensor { shape: vec![points as i64, 3], values: values.to_vec(), ..Default::default() };
        let modality = proto::Modality::Point.into();
        one(media::Kind::ModelInput(proto::ModelInput { modality, tensor: Some(tensor) }))
    });
    let (received, told) = embed(&server, clouds.collect()).await;
    assert!(told.len() == count && told.iter().all(|told| *told == ok()), "{told:?}");
    for (received, expected) in received.concat().iter().zip(expected) {
        assert!((received - expected).abs() <= 5e-5 * expected.abs().max(1.0), "{received}, not {expected}");
    }
    // The same points as a file, with the same seed twice: a cloud that is small enough is taken whole.
    let file: bytes::Bytes = npy::write(&input.floats()[..3 * points], 3).into();
    let cloud =
        || one(media::Kind::PointCloud(proto::PointCloud { file: file.clone(), ..Default::default() }));
    let (received, told) = embed(&server, vec![cloud(), cloud()]).await;
    assert!(told.iter().all(|told| *told == ok()), "{told:?}");
    assert_eq!(received[0], received[1], "sampling is seeded");
}

/// The golden models that have their real input geometry.
fn models() -> Vec<PathBuf> {
    let found: Vec<PathBuf> =
        parts("imagebind/tiny").into_iter().filter(|p| p.join("config.json").exists()).collect();
    if found.is_empty() {
        say("skipped: ready inputs of all encoders (no golden model here)");
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_inputs_reach_every_encoder_as_they_are() {
    for folder in models() {
        let encoder = open(folder.join("tiny.safetensors"), folder.join("config.json"));
        let (server, _store) = serve_alone(encoder).await;
        let (inputs, outputs) = (
            common::Tensors::open(&folder.join("inputs.safetensors")),
            common::Tensors::open(&folder.join("outputs.safetensors")),
        );
        let cases = [
            ("audio.clips", proto::Modality::Audio),
            ("depth.map", proto::Modality::Depth),
            ("thermal.map", proto::Modality::Thermal),
            ("imu.signal", proto::Modality::Imu),
            ("vision.image", proto::Modality::Image),
            ("vision.video", proto::Modality::Video),
        ];
        for (case, modality) in cases {
            let (input, expected) = (inputs.get(case), outputs.get(&format!("{case}.output")));
            let size = input.floats().len() / input.shape[0];
            let shape: Vec<i64> = input.shape[1..].iter().map(|&axis| axis as i64).collect();
            let media = input.floats().chunks_exact(size).map(|values| {
                let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let tensor = proto::Tensor { shape: shape.clone(), data: data.into(), ..Default::default() };
                one(media::Kind::ModelInput(proto::ModelInput {
                    modality: modality.into(),
                    tensor: Some(tensor),
                }))
            });
            let (received, told) = embed(&server, media.collect()).await;
            assert!(told.iter().all(|told| *told == ok()), "{case}: {told:?}");
            for (received, expected) in received.concat().iter().zip(expected.floats()) {
                let limit = 5e-5 * expected.abs().max(10.0);
                assert!((received - expected).abs() <= limit, "{case}: {received}, not {expected}");
            }
        }
        let short = proto::Tensor { shape: vec![6, 3], values: vec![0.0; 18], ..Default::default() };
        let modality = proto::Modality::Imu.into();
        let short = one(media::Kind::ModelInput(proto::ModelInput { modality, tensor: Some(short) }));
        let words = |id: f32| {
            let tensor = proto::Tensor { shape: vec![77], values: vec![id; 77], ..Default::default() };
            let modality = proto::Modality::Text.into();
            one(media::Kind::ModelInput(proto::ModelInput { modality, tensor: Some(tensor) }))
        };
        // So thin a spread that nothing finite is left.
        let file: bytes::Bytes = npy::write(&[1.0; 6], 3).into();
        let thin = one(media::Kind::Depth(proto::Depth { file, std: Some(1e-45), ..Default::default() }));
        let reply = answer(&server, vec![short, words(-1.0), words(0.5), words(5e6), thin]).await;
        for (result, says) in reply.results.iter().zip(["[6, 3]", "-1", "0.5", "5000000", "not finite"]) {
            assert!(bad_media(result).contains(says), "{result:?}");
        }
    }
}
