//! How many pictures a second does a vision encoder of ImageBind-huge's size encode, is it as quick as PyTorch, and what
//! do 8-bit weights gain?
//!
//! Random weights under the published names and shapes, 224×224, all cores, f32 and q8_0 in turn. `encode_torch.py` runs a
//! plain ViT of the same sizes in PyTorch, f32; with `VISCACHE_BENCH_PYTHON` naming an interpreter that has torch, this
//! bench runs it in turn with ours and prints the ratio. With `VISCACHE_BENCH_PICTURES` naming a folder of JPEGs the
//! built-in nano model, which is trained, says how near q8_0 comes to f32 on them.
//!
//! ```text
//! VISCACHE_BENCH_DATA=DIR VISCACHE_BENCH_PYTHON=python cargo bench --profile dev --bench encode
//! ```
//! The weights are written once (`DIR/vision-huge.safetensors`, 2.5 GB).

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::path::Path;

use common::huge::{torch_rates, write_weights};
use common::{Noise, cores, machine, setting, timed, verdict};
use viscache::media::{MediaLimits, Orientation};
use viscache::models::DeviceKind;
use viscache::models::encoder::{Encoder, EncoderOptions, Prepared, Values, agreement};
use viscache::types::{Agreement, Modality, WeightDtype};

const BATCHES: [usize; 3] = [2, 4, 8];
const GOAL: f64 = 0.95;
const EIGHT_BIT_GOAL: f64 = 2.5;
const COSINE_GOAL: f32 = 0.995;

fn main() {
    // SAFETY: this is the first statement of the process.
    unsafe { viscache::models::device::settle_process() };
    machine();
    let Some(folder) = common::data() else {
        println!("skipped (set VISCACHE_BENCH_DATA to a folder with 3 GB free)");
        return;
    };
    let weights = folder.join("vision-huge.safetensors");
    if !weights.exists() {
        write_weights(&weights);
    }
    let threads = setting("VISCACHE_BENCH_THREADS", cores());
    let open = |weights: Option<&Path>, dtype| {
        let options = EncoderOptions {
            network: Default::default(),
            weights: weights.map(Path::to_owned),
            sizes: None,
            modalities: Some(vec![Modality::Image]),
            device: DeviceKind::Cpu,
            dtype: Some(dtype),
            threads,
            orientation: Orientation::Apply,
            limits: MediaLimits::default(),
        };
        let (encoder, took) = timed(|| Encoder::open(&options).unwrap());
        println!("{threads} threads, {dtype}; loaded in {:.1} s", took.wall);
        encoder
    };
    let (encoder, eight) = (open(Some(&weights), WeightDtype::F32), open(Some(&weights), WeightDtype::Q8_0));
    let mut noise = Noise(11);
    let picture = |_| Prepared {
        modality: Modality::Image,
        shape: vec![3, 224, 224],
        values: Values::Float((0..3 * 224 * 224).map(|_| noise.next()).collect()),
        start: 0,
    };
    let pictures: Vec<Prepared> = (0..8).map(picture).collect();

    let rounds = setting("VISCACHE_BENCH_ROUNDS", 3);
    let python = std::env::var_os("VISCACHE_BENCH_PYTHON");
    let none = [0.0f64; BATCHES.len()];
    let (mut ours, mut coarse, mut theirs) = (none, none, none);
    encode(&encoder, &pictures[..2]);
    encode(&eight, &pictures[..2]);
    for _ in 0..rounds {
        for (at, batch) in BATCHES.into_iter().enumerate() {
            ours[at] = ours[at].max(encode(&encoder, &pictures[..batch]));
            coarse[at] = coarse[at].max(encode(&eight, &pictures[..batch]));
        }
        if let Some(python) = &python {
            for (at, rate) in torch_rates(python, threads, &BATCHES, &[]).into_iter().enumerate() {
                theirs[at] = theirs[at].max(rate);
            }
        }
    }
    println!("batch   f32, pictures/s      q8_0   PyTorch f32   (best of {rounds} rounds)");
    for (at, batch) in BATCHES.into_iter().enumerate() {
        println!("{batch:>5} {:>17.3} {:>9.3} {:>13.3}", ours[at], coarse[at], theirs[at]);
    }
    let best = |rates: [f64; BATCHES.len()]| rates.into_iter().fold(0.0, f64::max);
    if python.is_some() {
        let ratio = best(ours) / best(theirs);
        println!("RATIO f32 to PyTorch: {ratio:.2} ×  (goal ≥ {GOAL} ×: {})", verdict(ratio >= GOAL));
    }
    let ratio = best(coarse) / best(ours);
    println!(
        "RATIO q8_0 to f32: {ratio:.2} ×  (goal ≥ {EIGHT_BIT_GOAL} ×: {})",
        verdict(ratio >= EIGHT_BIT_GOAL)
    );
    let near = |name: &str, agreement: Option<Agreement>| {
        if let Some(Agreement { mean, min, pictures }) = agreement {
            println!(
                "cosine of q8_0 to f32, {name}, {pictures} pictures: {mean:.5} in the mean, {min:.5} at least"
            );
        }
    };
    near("random weights of huge, noise", agreement(&eight, &encoder, &pictures));
    if let Some(folder) = std::env::var_os("VISCACHE_BENCH_PICTURES") {
        let (encoder, eight) = (open(None, WeightDtype::F32), open(None, WeightDtype::Q8_0));
        let files =
            std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        let pictures: Vec<Prepared> =
            files.filter_map(|bytes| encoder.prepare(Modality::Image, &bytes).ok()).collect();
        let agreement = agreement(&eight, &encoder, &pictures);
        near("nano, files", agreement);
        let mean = agreement.map_or(0.0, |a| a.mean);
        println!("goal ≥ {COSINE_GOAL}: {}", verdict(mean >= COSINE_GOAL));
    }
}

/// Pictures a second.
fn encode(encoder: &Encoder, pictures: &[Prepared]) -> f64 {
    let (encoded, time) = timed(|| encoder.encode(pictures));
    assert!(encoded.iter().all(|one| one.is_ok()), "{:?}", encoded.iter().find(|one| one.is_err()));
    pictures.len() as f64 / time.wall
}
