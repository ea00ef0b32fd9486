//! A checkpoint of the published model's full size, in both formats, loads and embeds within a bounded memory.
//!
//! The numbers are random: every tensor of `imagebind_huge` by name and shape, nearly 5 GB a file. It needs that much free
//! disk; where that is missing the test says so. Each measurement is a process of its own, this test program started
//! again, because a process's peak never falls.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{parts, say};
use viscache::media::{MediaLimits, Orientation};
use viscache::models::DeviceKind;
use viscache::models::encoder::{Encoder, EncoderOptions};
use viscache::types::Modality;

/// Peak memory over the loaded modality's bytes.
const MOST: f64 = 1.3;
/// Tells a started-again program which checkpoint to load.
const CHILD: &str = "VISCACHE_TEST_HUGE_CHECKPOINT";

#[test]
fn the_full_size_model_loads_within_its_memory() {
    let Some(path) = parts("imagebind/imagebind_huge_params.json").into_iter().next() else { return };
    let names: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tensors: Vec<(String, Vec<usize>)> =
        serde_json::from_value::<BTreeMap<String, Vec<usize>>>(names["tensors"].clone())
            .unwrap()
            .into_iter()
            .collect();
    let loaded: usize = tensors
        .iter()
        .filter(|(name, _)| name.contains(".vision."))
        .map(|(_, shape)| 4 * shape.iter().product::<usize>())
        .sum();
    let dir = tempfile::tempdir().unwrap();
    for (file, write) in [
        ("huge.safetensors", write_safetensors as fn(&Path, &[(String, Vec<usize>)]) -> std::io::Result<()>),
        ("huge.pth", write_pth),
    ] {
        let path = dir.path().join(file);
        if let Err(e) = write(&path, &tensors) {
            say(&format!("skipped: a checkpoint of 4.8 GB cannot be written here ({e})"));
            return;
        }
        let peak = peak_of_child(&path);
        let ratio = peak as f64 / loaded as f64;
        say(&format!(
            "{file}: {} tensors; peak {} MiB for {} MiB of vision weights, {ratio:.3}",
            tensors.len(),
            peak >> 20,
            loaded >> 20
        ));
        assert!(ratio < MOST, "{file}: peak memory is {ratio:.3} times the loaded weights");
        std::fs::remove_file(&path).unwrap();
    }
}

/// The started-again program: loads, embeds one picture, prints its peak. Does nothing in an ordinary run.
#[test]
fn child() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let encoder = Encoder::open(&EncoderOptions {
        network: Default::default(),
        weights: Some(PathBuf::from(path)),
        sizes: None,
        modalities: Some(vec![Modality::Image]),
        device: DeviceKind::Cpu,
        dtype: None,
        threads: 1,
        orientation: Orientation::Apply,
        limits: MediaLimits::default(),
    })
    .unwrap();
    let picture = image::RgbImage::from_fn(300, 200, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
    let mut bytes = Vec::new();
    picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    let prepared = encoder.prepare(Modality::Image, &bytes).unwrap();
    let embedding = encoder.encode(&[prepared]).remove(0).unwrap().embedding;
    assert_eq!(embedding.dim(), 1024);
    assert!((embedding.norm() - 1.0).abs() < 1e-4);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("peak {}", peak.trim().trim_end_matches(" kB"));
}

fn peak_of_child(checkpoint: &Path) -> u64 {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, checkpoint)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let peak = text.lines().find_map(|line| line.split("peak ").nth(1)).unwrap();
    peak.trim().parse::<u64>().unwrap() * 1024
}

/// Small random numbers, so that 32 blocks of them stay finite; the scale of a norm is near 1 as in any trained model.
fn numbers(name: &str, count: usize, sink: &mut impl Write) -> std::io::Result<()> {
    let centre = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
    let mut state =
        blake3::hash(name.as_bytes()).as_bytes()[..8].iter().fold(1u64, |s, &b| s << 8 | u64::from(b)) | 1;
    let mut block = Vec::with_capacity(1 << 16);
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let value = centre + ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.04;
        block.extend_from_slice(&value.to_le_bytes());
        if block.len() == block.capacity() {
            sink.write_all(&block)?;
            block.clear();
        }
    }
    sink.write_all(&block)
}

fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>)]) -> std::io::Result<()> {
    let (mut header, mut offset) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let end = offset + 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] });
        header.insert(name.clone(), entry);
        offset = end;
    }
    let header = serde_json::to_vec(&header)?;
    let mut sink = BufWriter::new(File::create(path)?);
    sink.write_all(&(header.len() as u64).to_le_bytes())?;
    sink.write_all(&header)?;
    for (name, shape) in tensors {
        numbers(name, shape.iter().product(), &mut sink)?;
    }
    sink.flush()
}

/// What `torch.save` writes: a zip of a pickle, which rebuilds every tensor from a storage, and the storages as they are.
fn write_pth(path: &Path, tensors: &[(String, Vec<usize>)]) -> std::io::Result<()> {
    let mut zip = zip::ZipWriter::new(BufWriter::new(File::create(path)?));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .large_file(true);
    zip.start_file("archive/data.pkl", options)?;
    zip.write_all(&pickle(tensors))?;
    for (i, (name, shape)) in tensors.iter().enumerate() {
        zip.start_file(format!("archive/data/{i}"), options)?;
        numbers(name, shape.iter().product(), &mut zip)?;
    }
    zip.finish()?.flush()
}

/// The pickle, protocol 2.
fn pickle(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let mut p = vec![0x80, 2, b'}', b'('];
    let text = |p: &mut Vec<u8>, text: &str| {
        p.push(b'X');
        p.extend((text.len() as u32).to_le_bytes());
        p.extend(text.as_bytes());
    };
    let int = |p: &mut Vec<u8>, value: usize| {
        p.push(b'J');
        p.extend((value as i32).to_le_bytes());
    };
    for (i, (name, shape)) in tensors.iter().enumerate() {
        text(&mut p, name);
        p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut p, "storage");
        p.extend(b"ctorch\nFloatStorage\n");
        text(&mut p, &i.to_string());
        text(&mut p, "cpu");
        int(&mut p, shape.iter().product());
        p.extend(b"tQ"); // the tuple above, as a persistent id
        int(&mut p, 0); // offset
        p.push(b'(');
        shape.iter().for_each(|&side| int(&mut p, side));
        p.extend(b"t(");
        (1..=shape.len()).for_each(|axis| int(&mut p, shape[axis..].iter().product()));
        p.extend(b"t\x89ccollections\nOrderedDict\n)RtR"); // no gradient, no hooks
    }
    p.extend(b"u."); // set items, stop
    p
}
