//! The nano world embedded by the nano model: rows and queries that no formula of a bench has made. Scenes as a cache has them,
//! and captions and spoken words as people ask.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use rayon::prelude::*;
use viscache::media::MediaLimits;
use viscache::models::DeviceKind;
use viscache::models::encoder::{Encoder, EncoderOptions};
use viscache::scenes::{Set, Wording, draw, png};
use viscache::types::Modality;

use super::fbin;

/// Inputs embedded in one go.
const BATCH: usize = 64;

/// Rows of pictures of training scenes, `[n, dim]`; kept in `folder` from run to run.
pub fn scenes(folder: &Path, n: usize) -> (Vec<f32>, usize) {
    kept(folder, &format!("scenes-{n}"), || {
        embedded(n, Modality::Image, |i| {
            let (scene, style, mut random) = Set::Train.scene(viscache::scenes::DEFAULT_SEED, i as u64);
            png(&draw(&scene, style, &mut random)).expect("a picture can be written to memory")
        })
    })
}

/// Captions, none twice and as many as there are up to `n`: of training scenes as a sample is taken, or of test scenes in other
/// words.
pub fn texts(folder: &Path, n: usize, test: bool) -> (Vec<f32>, usize) {
    let (set, wording, name) = match test {
        true => (Set::Test, Wording::HeldOut, "asked"),
        false => (Set::Train, Wording::Canonical, "sampled"),
    };
    kept(folder, &format!("texts-{name}-{n}"), || {
        let mut random = Pcg64::seed_from_u64(if test { 2 } else { 3 });
        let mut seen = BTreeSet::new();
        let texts = (0..8 * n as u64).map(|i| wording.of(&set.scene(7, i).0, &mut random));
        let texts: Vec<String> = texts.filter(|text| seen.insert(text.clone())).take(n).collect();
        embedded(texts.len(), Modality::Text, |i| texts[i].clone().into_bytes())
    })
}

/// Spoken scenes in different voices; none where the program espeak-ng is not installed.
pub fn voices(folder: &Path, n: usize, test: bool) -> Option<(Vec<f32>, usize)> {
    let mut said = Command::new("espeak-ng");
    said.arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .ok()
        .filter(|s| s.success())?;
    let (set, seed) = if test { (Set::Test, 4) } else { (Set::Train, 5) };
    Some(kept(folder, &format!("voices-{}-{n}", if test { "asked" } else { "sampled" }), || {
        embedded(n, Modality::Audio, |i| {
            let mut random = Pcg64::seed_from_u64(seed + 1000 * i as u64);
            let text = Wording::Spoken.of(&set.scene(8, i as u64).0, &mut random);
            let voice = ["en-gb", "en-us", "en-gb-scotland", "en-029"][random.random_range(0..4)];
            let timbre = ["", "+m1", "+m3", "+f1", "+f2"][random.random_range(0..5)];
            speak(
                &text,
                &format!("{voice}{timbre}"),
                random.random_range(130..=190),
                random.random_range(30..=70),
            )
        })
    }))
}

/// Two seconds at most, as a WAV file.
fn speak(text: &str, voice: &str, speed: u32, pitch: u32) -> Vec<u8> {
    let arguments = ["-v", voice, "-s", &speed.to_string(), "-p", &pitch.to_string(), "--stdout", text];
    let output = Command::new("espeak-ng").args(arguments).output().expect("espeak-ng runs");
    let mut file = output.stdout;
    file.truncate(44 + 2 * 2 * 22_050);
    // It does not know the length when it writes its header.
    let data = (file.len() - 44) as u32;
    file[4..8].copy_from_slice(&(data + 36).to_le_bytes());
    file[40..44].copy_from_slice(&data.to_le_bytes());
    file
}

/// Rows from a file, or made and put there.
fn kept(folder: &Path, name: &str, make: impl FnOnce() -> (Vec<f32>, usize)) -> (Vec<f32>, usize) {
    let path = folder.join(format!("{name}.fbin"));
    if path.exists() {
        return fbin(&path);
    }
    std::fs::create_dir_all(folder).expect("the folder can be made");
    let (rows, dim) = make();
    let head = [(rows.len() / dim) as u32, dim as u32].into_iter().flat_map(u32::to_le_bytes);
    let bytes = head.chain(rows.iter().flat_map(|v| v.to_le_bytes()));
    std::fs::write(&path, bytes.collect::<Vec<u8>>()).expect("the folder can be written");
    (rows, dim)
}

fn embedded(n: usize, modality: Modality, content: impl Fn(usize) -> Vec<u8> + Sync) -> (Vec<f32>, usize) {
    let options = EncoderOptions {
        network: Default::default(),
        weights: None,
        sizes: None,
        modalities: None,
        device: DeviceKind::Cpu,
        dtype: None,
        threads: super::cores(),
        orientation: Default::default(),
        limits: MediaLimits::default(),
    };
    let encoder = Encoder::open(&options).expect("the nano model opens");
    let mut rows = Vec::with_capacity(n * encoder.dim());
    for start in (0..n).step_by(BATCH) {
        let inputs: Vec<_> = (start..n.min(start + BATCH))
            .into_par_iter()
            .map(|i| encoder.prepare(modality, &content(i)).expect("an input that can be prepared"))
            .collect();
        for encoded in encoder.encode(&inputs) {
            rows.extend_from_slice(encoded.expect("an input that can be embedded").embedding.as_slice());
        }
    }
    (rows, encoder.dim())
}
