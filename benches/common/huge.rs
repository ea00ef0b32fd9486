//! A vision encoder of ImageBind-huge's size with random weights, and the same in PyTorch.

use std::ffi::OsStr;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

use viscache::models::imagebind::Config;

use super::Noise;

/// Pictures a second of `encode_torch.py`, a number for each batch.
pub fn torch_rates(python: &OsStr, threads: usize, batches: &[usize], flags: &[&str]) -> Vec<f64> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/encode_torch.py");
    let sizes = batches.iter().map(usize::to_string);
    let output =
        Command::new(python).arg(script).arg(threads.to_string()).args(sizes).args(flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter(|line| line.starts_with("batch "));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

/// Random weights of the vision encoder, small enough that 32 blocks neither vanish nor blow up.
pub fn write_weights(path: &Path) {
    let config = Config::huge();
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
