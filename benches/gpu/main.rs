//! What a card does: parity with the CPU, pictures a second beside PyTorch, the builder from files to rows.
//!
//! `benches/gpu/run.sh` builds and runs it. By hand:
//!
//! ```text
//! VISCACHE_BENCH_DATA=DIR [VISCACHE_BENCH_PYTHON=python] [VISCACHE_BENCH_PICTURES=DIR VISCACHE_BENCH_BUILDER=FILE] \
//!     cargo bench --features cuda --bench gpu
//! ```
//! The vision encoder has ImageBind-huge's sizes and random weights (written once, 2.5 GB). `VISCACHE_BENCH_PYTHON` names an
//! interpreter with torch for this card; `VISCACHE_BENCH_PICTURES` a folder of JPEGs, which `VISCACHE_BENCH_BUILDER`, an
//! index-builder with the feature `cuda`, embeds until it has worked for a while.

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

#[path = "../common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use common::huge::{torch_rates, write_weights};
use common::{Noise, cores, machine, median, timed, verdict};
use viscache::media::{MediaLimits, Orientation};
use viscache::models::DeviceKind;
use viscache::models::encoder::{Encoder, EncoderOptions, Prepared, Values, agreement};
use viscache::models::imagebind::Config;
use viscache::types::{Agreement, Modality, WeightDtype};

const BATCHES: [usize; 4] = [32, 64, 128, 256];
const ROUNDS: usize = 9;
/// Goals: cosine to f32, to compiled PyTorch, share of the card's peak, of the model's rate in the builder.
const COSINE: f32 = 0.9995;
const OF_TORCH: f64 = 1.0;
const OF_PEAK: f64 = 0.6;
const OF_MODEL: f64 = 0.85;
/// Pictures that the builder embeds at least.
const BUILT: usize = 20_000;

fn main() {
    // SAFETY: this is the first statement of the process.
    unsafe { viscache::models::device::settle_process() };
    machine();
    let Some(folder) = common::data() else {
        println!("skipped (set VISCACHE_BENCH_DATA to a folder with 3 GB free)");
        return;
    };
    let card = match Device::new_cuda(0) {
        Ok(card) => card,
        Err(problem) => {
            println!("skipped: no card can be used ({problem})");
            return;
        }
    };
    let weights = folder.join("vision-huge.safetensors");
    if !weights.exists() {
        write_weights(&weights);
    }
    parity(&weights);
    let encoder = open(Some(&weights), DeviceKind::Cuda, WeightDtype::Bf16);
    let rate = throughput(&encoder, &card);
    drop(encoder); // the builder needs the card
    builder(&weights, &folder, rate);
}

fn open(weights: Option<&Path>, device: DeviceKind, dtype: WeightDtype) -> Encoder {
    let options = EncoderOptions {
        network: Default::default(),
        weights: weights.map(Path::to_owned),
        sizes: None,
        modalities: Some(vec![Modality::Image]),
        device,
        dtype: Some(dtype),
        threads: cores(),
        orientation: Orientation::Apply,
        limits: MediaLimits::default(),
    };
    Encoder::open(&options).unwrap()
}

fn pictures(count: usize, side: usize) -> Vec<Prepared> {
    let mut noise = Noise(11);
    let mut picture = || Prepared {
        modality: Modality::Image,
        shape: vec![3, side, side],
        values: Values::Float((0..3 * side * side).map(|_| noise.next()).collect()),
        start: 0,
    };
    (0..count).map(|_| picture()).collect()
}

/// bf16 and f32 on the card against f32 on the CPU.
fn parity(weights: &Path) {
    for (name, weights) in [("huge, random weights", Some(weights)), ("nano", None)] {
        let exact = open(weights, DeviceKind::Cpu, WeightDtype::F32);
        let inputs = pictures(8, exact.images().side);
        for dtype in [WeightDtype::Bf16, WeightDtype::F32] {
            let near = agreement(&open(weights, DeviceKind::Cuda, dtype), &exact, &inputs);
            let Agreement { mean, min, pictures } = near.unwrap();
            println!(
                "PARITY {name}, {dtype} on the card, {pictures} pictures: cosine {mean:.6} in the mean, {min:.6} at least (goal ≥ {COSINE}: {})",
                verdict(min >= COSINE)
            );
        }
    }
}

/// Pictures a second, the best batch's returned.
fn throughput(encoder: &Encoder, card: &Device) -> f64 {
    let peak = peak(card);
    println!("peak of this card by a product of 8192³ in bf16: {:.0} TFLOP/s", peak / 1e12);
    let vision = Config::huge().vision.unwrap();
    let (width, blocks) = (vision.embed_dim as f64, vision.num_blocks as f64);
    let tokens = 1.0 + (vision.image_size[0] / vision.kernel[1]).pow(2) as f64;
    let flop = blocks * (24.0 * tokens * width * width + 4.0 * tokens * tokens * width);
    let inputs = pictures(BATCHES[BATCHES.len() - 1], vision.image_size[0]);
    let ours = BATCHES.map(|batch| {
        let run = || {
            let (encoded, time) = timed(|| encoder.encode(&inputs[..batch]));
            assert!(encoded.iter().all(|one| one.is_ok()), "{:?}", encoded.iter().find(|one| one.is_err()));
            time.wall
        };
        run();
        batch as f64 / median((0..ROUNDS).map(|_| run()).collect())
    });
    let python = std::env::var_os("VISCACHE_BENCH_PYTHON");
    let theirs = |flags: &[&str]| {
        python.as_ref().map(|python| torch_rates(python, cores(), &BATCHES, flags)).unwrap_or_default()
    };
    let (eager, compiled) = (theirs(&["--cuda"]), theirs(&["--cuda", "--compile"]));
    println!(
        "batch   ours, pictures/s   of the peak   PyTorch eager   compiled   (ours from host memory to host memory)"
    );
    let of = |rates: &[f64], at: usize| rates.get(at).map_or("–".into(), |rate| format!("{rate:.0}"));
    for (at, batch) in BATCHES.into_iter().enumerate() {
        let share = ours[at] * flop / peak;
        println!(
            "{batch:>5} {:>18.0} {share:>13.2} {:>15} {:>10}",
            ours[at],
            of(&eager, at),
            of(&compiled, at)
        );
    }
    let best = |rates: &[f64]| rates.iter().copied().fold(0.0, f64::max);
    let rate = best(&ours);
    let share = rate * flop / peak;
    println!("RATIO to the peak: {share:.2}  (goal ≥ {OF_PEAK}: {})", verdict(share >= OF_PEAK));
    if !compiled.is_empty() {
        let ratio = rate / best(&compiled);
        println!(
            "RATIO to compiled PyTorch: {ratio:.2} ×  (goal ≥ {OF_TORCH} ×: {})",
            verdict(ratio >= OF_TORCH)
        );
    }
    rate
}

/// FLOP/s of a large product.
fn peak(card: &Device) -> f64 {
    const N: usize = 8192;
    let matrix = || Tensor::randn(0f32, 1.0, (N, N), card).unwrap().to_dtype(DType::BF16).unwrap();
    let (a, b) = (matrix(), matrix());
    let run = || {
        let product = || {
            a.matmul(&b).unwrap();
            card.synchronize().unwrap();
        };
        timed(product).1.wall
    };
    (0..3).for_each(|_| _ = run());
    2.0 * (N as f64).powi(3) / median((0..ROUNDS).map(|_| run()).collect())
}

/// The builder from JPEG files to rows in a store.
fn builder(weights: &Path, folder: &Path, rate: f64) {
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (Some(source), Some(program)) = (named("VISCACHE_BENCH_PICTURES"), named("VISCACHE_BENCH_BUILDER"))
    else {
        println!("builder: skipped (set VISCACHE_BENCH_PICTURES and VISCACHE_BENCH_BUILDER)");
        return;
    };
    let work = folder.join("gpu-builder");
    let _ = std::fs::remove_dir_all(&work);
    let originals: Vec<PathBuf> = std::fs::read_dir(source).unwrap().map(|e| e.unwrap().path()).collect();
    for (i, original) in originals.iter().cycle().take(BUILT.max(originals.len())).enumerate() {
        let into = work.join("pictures").join(format!("{}", i / 1000));
        std::fs::create_dir_all(&into).unwrap();
        // Links, not copies: what is read is the same.
        std::fs::hard_link(original, into.join(format!("{i}.jpg")))
            .or_else(|_| std::fs::copy(original, into.join(format!("{i}.jpg"))).map(drop))
            .unwrap();
    }
    let report = work.join("report.json");
    let status = Command::new(program)
        .args([
            "build",
            "--cache",
            "bench",
            "--keep-duplicates",
            "--no-index",
            "--device",
            "cuda",
            "--batch",
            "128",
        ])
        .arg("--weights")
        .arg(weights)
        .arg("--store")
        .arg(work.join("store"))
        .arg("--images")
        .arg(work.join("pictures"))
        .arg("--report")
        .arg(&report)
        .status()
        .unwrap();
    assert!(status.success(), "the builder failed");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let outcomes = &report["outcomes"];
    let (seconds, decode) =
        (outcomes["seconds"].as_f64().unwrap(), outcomes["decode_seconds"].as_f64().unwrap());
    let built = report["cache"]["items"].as_f64().unwrap() / seconds;
    let decoding = report["cache"]["items"].as_f64().unwrap() / decode * cores() as f64;
    let share = built / rate;
    println!("builder: {built:.0} pictures/s; decoding alone could do {decoding:.0} on {} cores", cores());
    // Where the cores cannot decode as fast as the card encodes, they are the bound.
    let bound = rate.min(decoding);
    println!(
        "RATIO of the builder to the model: {share:.2}; to the lower of model and decoding: {:.2}  (goal ≥ {OF_MODEL}: {})",
        built / bound,
        verdict(built / bound >= OF_MODEL)
    );
    let _ = std::fs::remove_dir_all(&work);
}
