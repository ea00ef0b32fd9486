//! How many tokens a second does a decoder of LLaMA-7B's shape write in 8 bits, alone and eight streams at a time, how soon is
//! its file open, and what does llama.cpp do?
//!
//! Random weights, written once (7.5 GB, on the way there 13 more). With `VISCACHE_BENCH_PYTHON` naming an interpreter that has `llama_cpp` and `gguf`,
//! `decode_llama.py` writes a model of the same shape in q8_0 and decodes with it, in turn with ours.
//!
//! ```text
//! VISCACHE_BENCH_DATA=DIR VISCACHE_BENCH_PYTHON=python cargo bench --profile dev --bench decode
//! ```
//! `VISCACHE_BENCH_LAYERS` takes fewer layers than 32, where there is less memory; `VISCACHE_BENCH_NUMBERS=q4_k` (or `q6_k`) both
//! programs in other numbers than `q8_0`.

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

use common::{Noise, cores, machine, median, setting, timed, verdict};
use viscache::models::Placement;
use viscache::models::llama::{Checkpoint, Decoder, Files, Saved, Sequence};
use viscache::models::weights::Weights;
use viscache::types::Fingerprint;

const PROMPT: usize = 32;
const STEPS: usize = 24;
const STREAMS: usize = 8;
const VOCABULARY: usize = 32000;
/// Goals: to llama.cpp, of eight streams to one, seconds to open, memory beyond file and keys.
const OF_PEER: f64 = 0.9;
const OF_ONE: f64 = 3.0;
const OPEN: f64 = 3.0;
const MEMORY: f64 = 1.1;

fn main() {
    // SAFETY: this is the first statement of the process.
    unsafe { viscache::models::device::settle_process() };
    machine();
    let Some(folder) = common::data() else {
        println!("skipped (set VISCACHE_BENCH_DATA to a folder with 8 GB free)");
        return;
    };
    let layers = setting("VISCACHE_BENCH_LAYERS", 32);
    let numbers = std::env::var("VISCACHE_BENCH_NUMBERS").unwrap_or("q8_0".into());
    let placement = Placement { numbers: numbers.parse().unwrap(), ..Placement::cpu() };
    let file = folder.join(format!("llama-{layers}.{numbers}.safetensors"));
    if !file.exists() {
        write(&file, layers, &placement);
    }
    let open = || {
        let weights = Weights::open(&file).unwrap();
        let saved = Saved::of(&weights).unwrap().unwrap();
        let checkpoint = Checkpoint::saved(weights, &saved).unwrap();
        Decoder::load(&checkpoint, &saved.config, VOCABULARY, &placement).unwrap()
    };
    drop(open());
    let (decoder, took) = timed(open);
    println!("open, the file in memory: {:.2} s  (goal < {OPEN}: {})", took.wall, verdict(took.wall < OPEN));

    let ids: Vec<u32> = (0..PROMPT as u32).map(|i| 3 + i * 97 % 31_000).collect();
    let begin = || decoder.begin(None, PROMPT + STEPS + 1).unwrap();
    let mut one = vec![begin()];
    let (_, prefill) = timed(|| step(&decoder, &mut one, &ids));
    let mut rates = Vec::new();
    for _ in 0..STEPS {
        rates.push(1.0 / timed(|| step(&decoder, &mut one, &ids[..1])).1.wall);
    }
    let alone = median(rates);
    let mut many: Vec<Sequence> = (0..STREAMS).map(|_| begin()).collect();
    step(&decoder, &mut many, &ids);
    let mut rates = Vec::new();
    for _ in 0..STEPS / 2 {
        rates.push(STREAMS as f64 / timed(|| step(&decoder, &mut many, &ids[..1])).1.wall);
    }
    let together = median(rates);
    println!(
        "prefill {:.1} tokens/s; decode {alone:.3} tokens/s alone, {together:.3} in {STREAMS} streams; {} cores",
        PROMPT as f64 / prefill.wall,
        cores()
    );
    let ratio = together / alone;
    println!(
        "RATIO of {STREAMS} streams to one: {ratio:.2} ×  (goal ≥ {OF_ONE}: {})",
        verdict(ratio >= OF_ONE)
    );
    let size = std::fs::metadata(&file).unwrap().len();
    let keys = (STREAMS + 1) * layers * 2 * (PROMPT + STEPS + 1) * decoder.config().dim * 4;
    if let Some(peak) = peak_memory() {
        let ratio = peak as f64 / (size + keys as u64) as f64;
        println!(
            "RATIO of peak memory ({} MiB) to file and keys: {ratio:.3}  (goal ≤ {MEMORY}: {})",
            peak >> 20,
            verdict(ratio <= MEMORY)
        );
    }
    if let Some(python) = std::env::var_os("VISCACHE_BENCH_PYTHON") {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/decode_llama.py");
        let counts = [layers, cores(), PROMPT, STEPS].map(|n| n.to_string());
        let output =
            Command::new(python).arg(script).arg(&folder).args(counts).arg(&numbers).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let theirs: f64 = text.lines().last().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        let ratio = alone / theirs;
        println!(
            "llama.cpp: {theirs:.3} tokens/s\nRATIO to llama.cpp: {ratio:.2} ×  (goal ≥ {OF_PEER}: {})",
            verdict(ratio >= OF_PEER)
        );
    }
}

fn step(decoder: &Decoder, sequences: &mut [Sequence], ids: &[u32]) {
    let mut batch: Vec<(&mut Sequence, &[u32])> =
        sequences.iter_mut().map(|sequence| (sequence, ids)).collect();
    decoder.forward(&mut batch).unwrap();
}

/// Largest resident memory of this process, bytes.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

/// A decoder of 7B's shape with random weights: written as f16 (13 GB, removed again), read, rounded and saved. Every matrix
/// holds the same numbers: nothing here depends on them.
fn write(path: &Path, layers: usize, placement: &Placement) {
    let (dim, hidden) = (4096, 11008);
    let folder = path.with_extension("f16");
    std::fs::create_dir_all(&folder).unwrap();
    let params = serde_json::json!({
        "dim": dim, "n_layers": layers, "n_heads": 32, "multiple_of": 256, "norm_eps": 1e-6,
        "vocab_size": VOCABULARY,
    });
    std::fs::write(folder.join("params.json"), params.to_string()).unwrap();
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("tok_embeddings.weight".into(), vec![VOCABULARY, dim]),
        ("output.weight".into(), vec![VOCABULARY, dim]),
        ("norm.weight".into(), vec![dim]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, shape: [usize; 2]| {
            tensors.push((format!("layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        for name in ["wq", "wk", "wv", "wo"] {
            add(&format!("attention.{name}"), [dim, dim]);
        }
        for name in ["w1", "w3"] {
            add(&format!("feed_forward.{name}"), [hidden, dim]);
        }
        add("feed_forward.w2", [dim, hidden]);
        for name in ["attention_norm", "ffn_norm"] {
            tensors.push((format!("layers.{layer}.{name}.weight"), vec![dim]));
        }
    }
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in &tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = serde_json::json!({ "dtype": "F16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let whole = folder.join("model.safetensors");
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&whole).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let mut noise = Noise(7);
    let numbers: Vec<u8> =
        (0..VOCABULARY * dim).flat_map(|_| half::f16::from_f32(noise.next() / 64.0).to_le_bytes()).collect();
    for (_, shape) in &tensors {
        file.write_all(&numbers[..2 * shape.iter().product::<usize>()]).unwrap();
    }
    file.flush().unwrap();
    let (checkpoint, config) =
        Checkpoint::open(Files { backbone: &whole, adapter: None, clip: None }).unwrap();
    let (decoder, took) = timed(|| Decoder::load(&checkpoint, &config, VOCABULARY, placement).unwrap());
    println!("read and rounded in {:.0} s", took.wall);
    decoder.save(path, b"no tokenizer", Fingerprint::of(b"random")).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}
