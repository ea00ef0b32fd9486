//! Checkpoints of iLLaMAs whose numbers follow from the names of their tensors, so that no file of them is needed.

#![allow(dead_code, reason = "every test crate uses a part of this")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeMap;
use std::path::Path;

use viscache::models::illama::{self, Config};

/// A model of two blocks for pictures of 32 pixels.
pub fn small(classes: usize) -> Config {
    Config { side: 32, patch: 16, classes, width: 64, depth: 2, heads: 1, norm_eps: 1e-6 }
}

/// Every tensor of a model, with its shape.
pub fn shapes_of(config: &Config) -> BTreeMap<String, Vec<usize>> {
    illama::shapes(config).into_iter().collect()
}

/// Numbers that follow from a name: FNV-1a of it seeds SplitMix64, whose upper bits become −1 to 1.
pub fn computed(name: &str, count: usize) -> Vec<f32> {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let number = |i: u64| {
        let mut z = hash.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        ((z >> 40) as f64 / f64::from(1u32 << 23) - 1.0) as f32
    };
    (0..count as u64).map(number).collect()
}

fn computed_weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let values = computed(name, shape.iter().product()).into_iter();
    let fan_in = shape[1..].iter().product::<usize>();
    let scale = (3.0 / fan_in as f64).sqrt() as f32;
    let value: Box<dyn Fn(f32) -> f32> = match name {
        name if name.contains("norm") && name.ends_with("weight") => Box::new(|f| 1.0 + 0.1 * f),
        name if name.ends_with(".bias") => Box::new(|f| 0.05 * f),
        "pos_embed" | "cls_token" => Box::new(|f| 0.2 * f),
        _ => Box::new(move |f| scale * f),
    };
    values.map(value).collect()
}

/// Writes a model as safetensors.
pub fn write(path: &Path, config: &Config) {
    write_with(path, config, |_, values| values);
}

/// Writes a model that gives every picture these probabilities.
pub fn write_certain(path: &Path, probabilities: &[f32]) {
    let head = |name: &str, values: Vec<f32>| match name {
        "head.weight" => vec![0.0; values.len()],
        "head.bias" => probabilities.iter().map(|p| p.ln()).collect(),
        _ => values,
    };
    write_with(path, &small(probabilities.len()), head);
}

fn write_with(path: &Path, config: &Config, change: impl Fn(&str, Vec<f32>) -> Vec<f32>) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in shapes_of(config) {
        let begin = data.len();
        let values = change(&name, computed_weight(&name, &shape));
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let tensor =
            serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] });
        header.insert(name, tensor);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length[..], &header, &data].concat()).unwrap();
}
