//! What the parity tests of decoders share.

#![allow(dead_code, reason = "every test crate uses a part of this")]

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::Value;
use viscache::models::llama::{Checkpoint, Config, Decoder, Family, SampleParams, Sampler};
use viscache::models::weights::Weights;
use viscache::text::SentencePiece;

use crate::common::{Golden, Limit, max_abs, read, say, short};

/// Of layer outputs and logits, times the largest magnitude where that is above 1.
pub const LAYERS: f64 = 5e-5;

pub fn limit(expected: &[f32], factor: f64) -> Limit {
    Limit { absolute: factor * max_abs(expected).max(1.0), turn: 1e-7 }
}

pub fn tensor(golden: &Golden) -> Tensor {
    Tensor::from_slice(golden.floats(), golden.shape.as_slice(), &Device::Cpu).unwrap()
}

pub fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub fn ids(golden: &Golden) -> Vec<u32> {
    golden.wholes().iter().map(|&id| u32::try_from(id).unwrap()).collect()
}

pub fn width(golden: &Golden) -> usize {
    golden.shape.last().copied().unwrap_or(1)
}

/// The sizes of a golden model.
pub fn config_of(folder: &Path) -> Config {
    let json = String::from_utf8(read(&folder.join("config.json"))).unwrap();
    Config::from_params(&json, Family::ImageBindLlm).unwrap()
}

/// The tokenizer that the ids of a part are of: the one of the same root.
///
/// * `part`: `llama_adapter_v2` or `imagebind_llm_decoder` of a root.
pub fn tokenizer_of(part: &Path) -> Option<SentencePiece> {
    let path = part.parent().unwrap().join("imagebind_llm_decoder/tokenizer.model");
    if !path.exists() {
        say(&format!("skipped: texts of {} (no tokenizer beside it)", short(part)));
        return None;
    }
    Some(SentencePiece::from_bytes(&read(&path)).unwrap())
}

/// The files of a folder's backbone, as the original ones are split.
pub fn shards(folder: &Path) -> Vec<Weights> {
    (0..)
        .map(|i| folder.join(format!("llama/consolidated.{i:02}.pth")))
        .take_while(|path| path.exists())
        .map(|path| Weights::open(&path).unwrap())
        .collect()
}

/// A backbone's tensors by their plain names, with shapes.
pub fn backbone(folder: &Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let files = shards(folder);
    let names: Vec<String> =
        files[0].names().filter(|name| *name != "rope.freqs").map(str::to_owned).collect();
    let joined = Checkpoint::new(files, None, config_of(folder).n_heads);
    let read = |name: String| {
        let own = format!("llama.{name}");
        let shape = joined.shape(&own).unwrap();
        let values = joined.values(&own, &shape).unwrap();
        (name, shape, values)
    };
    names.into_iter().map(read).collect()
}

/// Greedy continuations of several prompts together, each until EOS or its bound.
pub fn generate(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    shown: &[Option<&Tensor>],
    max_gen_len: usize,
    eos: u32,
) -> Vec<Vec<u32>> {
    let room = decoder.config().max_seq_len;
    let begin = |(prompt, shown): (&Vec<u32>, &Option<&Tensor>)| {
        decoder.begin(*shown, room.min(prompt.len() + max_gen_len)).unwrap()
    };
    let mut sequences: Vec<_> = prompts.iter().zip(shown).map(begin).collect();
    let mut next: Vec<Vec<u32>> = prompts.to_vec();
    let mut answers = vec![Vec::new(); prompts.len()];
    let greedy = SampleParams { temperature: 0.0, ..SampleParams::default() };
    let mut running: Vec<usize> =
        (0..prompts.len()).filter(|&i| sequences[i].capacity() > prompts[i].len()).collect();
    while !running.is_empty() {
        let mut pairs: Vec<_> = sequences
            .iter_mut()
            .zip(&next)
            .enumerate()
            .filter(|(i, _)| running.contains(i))
            .map(|(_, (sequence, ids))| (sequence, &ids[..]))
            .collect();
        let logits = decoder.forward(&mut pairs).unwrap().to_vec2::<f32>().unwrap();
        let mut still = Vec::new();
        for (&i, logits) in running.iter().zip(logits) {
            let id = Sampler::new(greedy.clone()).choose(&logits, None).id;
            answers[i].push(id);
            next[i] = vec![id];
            if id != eos && prompts[i].len() + answers[i].len() < sequences[i].capacity() {
                still.push(i);
            }
        }
        running = still;
    }
    answers
}

/// The ids that the published program gave behind a prompt of `len`, its first EOS the last of them.
pub fn expected_answer(case: &Value, i: usize, len: usize, eos: u32) -> Vec<u32> {
    let matrix: Vec<i64> = serde_json::from_value(case["token_matrix"][i].clone()).unwrap();
    let most = case["max_gen_len"].as_u64().unwrap() as usize;
    let mut expected: Vec<u32> =
        matrix[len..].iter().take(most).take_while(|&&id| id >= 0).map(|&id| id as u32).collect();
    if let Some(end) = expected.iter().position(|&id| id == eos) {
        expected.truncate(end + 1);
    }
    expected
}

/// Writes a safetensors file of f32 tensors.
pub fn write(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(.., values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
        (name.clone(), view)
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// What the `i`th of `n` files of a backbone has of a tensor, as the original files are split. What `n` does not divide is
/// shared out as evenly as it goes.
pub fn shard(
    name: &str,
    shape: &[usize],
    values: &[f32],
    i: usize,
    n: usize,
) -> (String, Vec<usize>, Vec<f32>) {
    let is = |parts: &[&str]| parts.iter().any(|part| name.ends_with(&format!("{part}.weight")));
    let own = |length: usize| i * length / n..(i + 1) * length / n;
    let (shape, values) = match *shape {
        [rows, width] if is(&["wq", "wk", "wv", "w1", "w3", "output"]) => {
            let own = own(rows);
            (vec![own.len(), width], values[own.start * width..own.end * width].to_vec())
        }
        [rows, width] if is(&["wo", "w2", "tok_embeddings"]) => {
            let own = own(width);
            let part = values.chunks_exact(width).flat_map(|row| row[own.clone()].to_vec());
            (vec![rows, own.len()], part.collect())
        }
        _ => (shape.to_vec(), values.to_vec()),
    };
    (name.to_owned(), shape, values)
}

/// What the visual cache hands on when it is off: unit length, and a single input's weight of 1 / (1 + 1e-6).
pub fn normalised(raw: &Golden) -> Tensor {
    let width = width(raw);
    let rows = raw.floats().chunks_exact(width).flat_map(|row| {
        let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        row.iter().map(move |v| (f64::from(*v) / norm / (1.0 + 1e-6)) as f32).collect::<Vec<_>>()
    });
    let values: Vec<f32> = rows.collect();
    Tensor::from_vec(values, raw.shape.as_slice(), &Device::Cpu).unwrap()
}
