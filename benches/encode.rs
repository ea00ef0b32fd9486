//! How many pictures a second does a vision encoder of ImageBind-huge's size encode, and is it as quick as PyTorch?
//!
//! Random weights under the published names and shapes, f32, 224×224, all cores. `encode_torch.py` runs a plain ViT of the
//! same sizes in PyTorch; with `VISCACHE_BENCH_PYTHON` naming an interpreter that has torch, this bench runs it in
//! turn with ours and prints the ratio.
//!
//! ```text
//! VISCACHE_BENCH_DATA=DIR VISCACHE_BENCH_PYTHON=python cargo bench --profile dev --bench encode
//! ```
//! The weights are written once (`DIR/vision-huge.safetensors`, 2.5 GB).

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

use common::{Noise, cores, machine, setting, timed, verdict};
use viscache::media::{MediaLimits, Orientation};
use viscache::models::DeviceKind;
use viscache::models::encoder::{Encoder, EncoderOptions, Prepared, Values};
use viscache::models::imagebind::Config;
use viscache::types::Modality;

const BATCHES: [usize; 3] = [2, 4, 8];
const GOAL: f64 = 0.95;

fn main() {
    machine();
    let Some(folder) = common::data() else {
        println!("skipped (set VISCACHE_BENCH_DATA to a folder with 3 GB free)");
        return;
    };
    let weights = folder.join("vision-huge.safetensors");
    if !weights.exists() {
        write_weights(&weights, &Config::huge());
    }
    let threads = setting("VISCACHE_BENCH_THREADS", cores());
    let options = EncoderOptions {
        weights: Some(weights),
        sizes: None,
        modalities: Some(vec![Modality::Image]),
        device: DeviceKind::Cpu,
        threads,
        orientation: Orientation::Apply,
        limits: MediaLimits::default(),
    };
    let (encoder, took) = timed(|| Encoder::open(&options).unwrap());
    println!("{threads} threads; loaded in {:.1} s", took.wall);
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
    let (mut ours, mut theirs) = ([0.0f64; BATCHES.len()], [0.0f64; BATCHES.len()]);
    encode(&encoder, &pictures[..2]);
    for _ in 0..rounds {
        for (at, batch) in BATCHES.into_iter().enumerate() {
            ours[at] = ours[at].max(encode(&encoder, &pictures[..batch]));
        }
        if let Some(python) = &python {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/encode_torch.py");
            let sizes = BATCHES.map(|b| b.to_string());
            let output =
                Command::new(python).arg(script).arg(threads.to_string()).args(sizes).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            for (at, line) in String::from_utf8_lossy(&output.stdout).lines().take(BATCHES.len()).enumerate()
            {
                let rate: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
                theirs[at] = theirs[at].max(rate);
            }
        }
    }
    println!("batch   ours, pictures/s   PyTorch   (best of {rounds} rounds)");
    for (at, batch) in BATCHES.into_iter().enumerate() {
        println!("{batch:>5} {:>18.3} {:>9.3}", ours[at], theirs[at]);
    }
    let best = |rates: [f64; BATCHES.len()]| rates.into_iter().fold(0.0, f64::max);
    if python.is_some() {
        let ratio = best(ours) / best(theirs);
        println!("RATIO of the best batches: {ratio:.2} ×  (goal ≥ {GOAL} ×: {})", verdict(ratio >= GOAL));
    }
}

/// Pictures a second.
fn encode(encoder: &Encoder, pictures: &[Prepared]) -> f64 {
    let (encoded, time) = timed(|| encoder.encode(pictures));
    assert!(encoded.iter().all(|one| one.is_ok()), "{:?}", encoded.iter().find(|one| one.is_err()));
    pictures.len() as f64 / time.wall
}

/// Random weights of the vision encoder, small enough that 32 blocks neither vanish nor blow up.
fn write_weights(path: &Path, config: &Config) {
    let vision = config.vision.as_ref().unwrap();
    let (width, [t, kh, kw]) = (vision.embed_dim, vision.kernel);
    let patches = vision.image_size[0] / kh * (vision.image_size[1] / kw);
    let pre = "modality_preprocessors.vision";
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        (format!("{pre}.cls_token"), vec![1, 1, width]),
        (format!("{pre}.rgbt_stem.proj.1.weight"), vec![width, 3, t, kh, kw]),
        (format!("{pre}.pos_embedding_helper.pos_embed"), vec![1, 1 + patches, width]),
        ("modality_heads.vision.2.weight".into(), vec![config.out_embed_dim, width]),
    ];
    for part in ["weight", "bias"] {
        tensors.push((format!("modality_trunks.vision.pre_transformer_layer.0.{part}"), vec![width]));
        tensors.push((format!("modality_heads.vision.0.{part}"), vec![width]));
    }
    for block in 0..vision.num_blocks {
        for (name, shape) in [
            ("attn.in_proj_weight", vec![3 * width, width]),
            ("attn.in_proj_bias", vec![3 * width]),
            ("attn.out_proj.weight", vec![width, width]),
            ("attn.out_proj.bias", vec![width]),
            ("norm_1.weight", vec![width]),
            ("norm_1.bias", vec![width]),
            ("norm_2.weight", vec![width]),
            ("norm_2.bias", vec![width]),
            ("mlp.fc1.weight", vec![4 * width, width]),
            ("mlp.fc1.bias", vec![4 * width]),
            ("mlp.fc2.weight", vec![width, 4 * width]),
            ("mlp.fc2.bias", vec![width]),
        ] {
            tensors.push((format!("modality_trunks.vision.blocks.{block}.{name}"), shape));
        }
    }
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in &tensors {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let unfinished = path.with_extension("part");
    let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create(&unfinished).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let mut noise = Noise(5);
    for (_, shape) in &tensors {
        let fan_in = *shape.last().unwrap() as f32;
        for _ in 0..shape.iter().product::<usize>() {
            file.write_all(&(noise.next() / fan_in.sqrt()).to_le_bytes()).unwrap();
        }
    }
    file.flush().unwrap();
    std::fs::rename(unfinished, path).unwrap();
}
