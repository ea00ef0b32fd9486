//! How many times faster than torchaudio, and than torchvision with Pillow, do sounds and pictures become an encoder's input?
//!
//! The same files, one thread each, processor time, medians; both sides read the files anew every time and repeat what the
//! published loaders do (`prepare_torch.py`). Run it pinned to a core.
//!
//! ```text
//! VISCACHE_BENCH_SOUNDS=DIR VISCACHE_BENCH_PICTURES=DIR VISCACHE_BENCH_PYTHON=python \
//!   cargo bench --profile dev --bench prepare
//! ```
//! `DIR`s are searched for `.wav` (16 bit) and `.jpg` files.

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{machine, median, thread_cpu, verdict};
use viscache::media::audio::AudioFront;
use viscache::media::{AudioLimits, ImageOptions, Limits, Orientation, image};

const ROUNDS: usize = 5;
const ROUND_SECONDS: f64 = 0.4;

fn main() {
    machine();
    let front = AudioFront::new(128, 204, AudioLimits::default());
    let options = ImageOptions { side: 224, orientation: Orientation::Reference, limits: Limits::default() };
    let sound = |bytes: &[u8]| front.prepare(bytes).unwrap().len();
    let picture = |bytes: &[u8]| image::prepare(bytes, &options).unwrap().len();
    measure("sounds", "VISCACHE_BENCH_SOUNDS", "wav", 5.0, sound);
    measure("pictures", "VISCACHE_BENCH_PICTURES", "jpg", 2.0, picture);
}

fn measure(what: &str, variable: &str, extension: &str, goal: f64, work: impl Fn(&[u8]) -> usize) {
    let Some(folder) = std::env::var_os(variable) else {
        println!("skipped: {what} (set {variable})");
        return;
    };
    let mut files: Vec<PathBuf> = Vec::new();
    find(Path::new(&folder), extension, &mut files);
    files.sort();
    assert!(!files.is_empty(), "no .{extension} in {}", folder.to_string_lossy());
    // Long enough for a clock that ticks in milliseconds.
    let round = |_| {
        let (start, mut passes, mut took) = (thread_cpu().unwrap(), 0, 0.0);
        while took < ROUND_SECONDS {
            for file in &files {
                std::hint::black_box(work(&std::fs::read(file).unwrap()));
            }
            passes += 1;
            took = thread_cpu().unwrap() - start;
        }
        took / f64::from(passes)
    };
    round(0);
    let ours = median((0..ROUNDS).map(round).collect());
    let each = ours / files.len() as f64 * 1e3;
    println!("{what}: {} files, ours {each:.3} ms each", files.len());
    let Some(python) = std::env::var_os("VISCACHE_BENCH_PYTHON") else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/prepare_torch.py");
    let output = Command::new(python).arg(script).arg(what).args(&files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    let theirs: f64 = said.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let ratio = theirs / ours;
    println!("  torch {:.3} ms each", theirs / files.len() as f64 * 1e3);
    println!("  RATIO {ratio:.2} ×  (goal ≥ {goal} ×: {})", verdict(ratio >= goal));
}

fn find(folder: &Path, extension: &str, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, extension, files);
        } else if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
}
