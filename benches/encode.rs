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

use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

use common::{Noise, cores, machine, setting, timed, verdict};
use viscache::media::{MediaLimits, Orientation};
use viscache::models::DeviceKind;
use viscache::models::encoder::{Encoder, EncoderOptions, Prepared, Values, agreement};
use viscache::models::imagebind::Config;
use viscache::types::{Agreement, EncoderDtype, Modality};

const BATCHES: [usize; 3] = [2, 4, 8];
const GOAL: f64 = 0.95;
const EIGHT_BIT_GOAL: f64 = 2.5;
const COSINE_GOAL: f32 = 0.995;

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
    let open = |weights: Option<&Path>, dtype| {
        let options = EncoderOptions {
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
    let (encoder, eight) =
        (open(Some(&weights), EncoderDtype::F32), open(Some(&weights), EncoderDtype::Q8_0));
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
        let (encoder, eight) = (open(None, EncoderDtype::F32), open(None, EncoderDtype::Q8_0));
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
