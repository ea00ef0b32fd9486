//! Does a build keep the cores busy, and how near does it come to decoding alone?
//!
//! `index-builder build` on photographs with the nano model, whose pictures are 64×64, against two bare loops over the
//! same files on all cores: reading, decoding and resizing (`media::image::prepare`); and nano's encoder on what comes
//! of it. Both share the cores in a build, so the most it can do is `1 / (1/decode + 1/embed)`: that bound is the goal's
//! yardstick. Digests, the ledger and the synced writes are in the build and not in the bound.
//!
//! ```text
//! VISCACHE_DATA=DIR cargo bench --profile dev -p index-builder --bench pipeline
//! ```
//! `DIR` holds `photos-200.tar`. The build runs without indexing; its rate is units by `outcomes.seconds` of its report,
//! its use of the cores is user and system time of the process by wall-clock time and cores, start included.

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

#[path = "../../benches/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{cores, machine, median, setting, timed, verdict};
use rayon::prelude::*;
use viscache::media::{MediaLimits, Orientation};
use viscache::models::DeviceKind;
use viscache::models::encoder::{Encoder, EncoderOptions};
use viscache::types::Modality;

fn main() {
    machine();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data =
        std::env::var_os("VISCACHE_DATA").map_or_else(|| here.join("../../shared/data"), PathBuf::from);
    let archive = data.join("photos-200.tar");
    if !archive.exists() {
        println!("skipped: photos-200.tar is not there (set VISCACHE_DATA)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    for copy in 0..setting("VISCACHE_BENCH_COPIES", 5) {
        let file = std::fs::File::open(&archive).unwrap();
        tar::Archive::new(file).unpack(pictures.join(copy.to_string())).unwrap();
    }
    let files: Vec<PathBuf> = walkdir::WalkDir::new(&pictures)
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.extension().is_some_and(|e| e == "jpg" || e == "jpeg" || e == "png"))
        .collect();
    let encoder = Encoder::open(&EncoderOptions {
        network: Default::default(),
        weights: None,
        sizes: None,
        modalities: Some(vec![Modality::Image]),
        device: DeviceKind::Cpu,
        dtype: None,
        threads: cores(),
        orientation: Orientation::Apply,
        limits: MediaLimits::default(),
    })
    .unwrap();
    println!("{} photographs, side {}", files.len(), encoder.images().side);

    let count = files.len() as f64;
    let (mut decodes, mut embeds, mut builds, mut busy) = (vec![], vec![], vec![], vec![]);
    for round in 0..setting("VISCACHE_BENCH_ROUNDS", 3) {
        let prepare =
            |file: &PathBuf| encoder.prepare(Modality::Image, &std::fs::read(file).unwrap()).unwrap();
        let (prepared, time) = timed(|| files.par_iter().map(prepare).collect::<Vec<_>>());
        decodes.push(count / time.wall);
        let (encoded, time) =
            timed(|| prepared.chunks(64).flat_map(|b| encoder.encode(b)).filter(Result::is_ok).count());
        assert_eq!(encoded, files.len());
        embeds.push(count / time.wall);

        let store = folder.path().join(format!("store-{round}"));
        let cpu = common::process_cpu(true).unwrap_or(0.0);
        let (status, time) = timed(|| build(&pictures, &store));
        assert!(status.success(), "the build failed: {status}");
        busy.push((common::process_cpu(true).unwrap_or(0.0) - cpu) / (time.wall * cores() as f64));
        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(store.join("report.json")).unwrap()).unwrap();
        let outcomes = &report["outcomes"];
        builds.push(count / outcomes["seconds"].as_f64().unwrap());
        if round == 0 {
            let stage = |name: &str| outcomes[name].as_f64().unwrap_or(f64::NAN);
            let (d, e, w) = (stage("decode_seconds"), stage("embed_seconds"), stage("write_seconds"));
            println!("a build's stages, seconds: decode {d:.2} (all threads) embed {e:.2} write {w:.2}");
        }
    }
    let ratios = |bounds: &[f64]| median(builds.iter().zip(bounds).map(|(b, bound)| b / bound).collect());
    let both: Vec<f64> = decodes.iter().zip(&embeds).map(|(d, e)| 1.0 / (1.0 / d + 1.0 / e)).collect();
    let (of_both, of_decode, busy) = (ratios(&both), ratios(&decodes), median(busy));
    println!(
        "pictures/s: decode and resize {:.0}, embed {:.0}, both on the same cores {:.0}, the build {:.0}",
        median(decodes),
        median(embeds),
        median(both),
        median(builds)
    );
    println!(
        "RATIO build / bound of both: {:.0} %  (goal ≥ 90 %: {})",
        of_both * 100.0,
        verdict(of_both >= 0.9)
    );
    println!("ratio build / decode alone: {:.0} %", of_decode * 100.0);
    println!("RATIO of cores busy: {:.0} %  (goal ≥ 85 %: {})", busy * 100.0, verdict(busy >= 0.85));
}

fn build(pictures: &Path, store: &Path) -> std::process::ExitStatus {
    let mut command = Command::new(env!("CARGO_BIN_EXE_index-builder"));
    command.args(["build", "--cache", "bench", "--keep-duplicates", "--no-index", "--force", "--images"]);
    command.arg(pictures).arg("--store").arg(store).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap()
}
