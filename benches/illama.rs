//! Does iLLaMA look at pictures, and learn from them, as quickly as in PyTorch?
//!
//! iLLaMA-tiny with random weights, f32, all cores: pictures a second, forward alone and as a whole step of training (loss, gradients,
//! AdamW), in turn with `illama_torch.py`, medians over the rounds.
//!
//! ```text
//! VISCACHE_BENCH_PYTHON=python cargo bench --profile dev --bench illama      VISCACHE_BENCH_ROUNDS (5)
//! ```
//! On a card (`VISCACHE_BENCH_DEVICE=cuda`, a program with the feature `cuda`): products in bf16 on both sides, larger batches.

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use common::{Noise, cores, machine, median, setting, timed, verdict};
use viscache::models::illama::{Illama, Learner, Lesson, Size, initial};
use viscache::models::learning::adamw::{AdamW, Settings};
use viscache::models::learning::{placed, state, write};
use viscache::models::weights::Weights;
use viscache::models::{DeviceKind, Placement};

/// Side, patch and batch, on the CPU and on a card.
const CASES: [[usize; 3]; 2] = [[32, 4, 100], [224, 16, 16]];
const ON_A_CARD: [[usize; 3]; 2] = [[32, 4, 1024], [224, 16, 128]];
const CLASSES: usize = 1000;
const GOALS: [(&str, f64); 2] = [("forward", 1.0), ("step", 0.7)];

fn main() {
    // SAFETY: this is the first statement of the process.
    unsafe { viscache::models::device::settle_process() };
    // As the program that trains.
    viscache::allocator::hold();
    machine();
    let (threads, rounds) = (setting("VISCACHE_BENCH_THREADS", cores()), setting("VISCACHE_BENCH_ROUNDS", 5));
    let python = std::env::var_os("VISCACHE_BENCH_PYTHON");
    let device = std::env::var("VISCACHE_BENCH_DEVICE").map_or(DeviceKind::Cpu, |word| word.parse().unwrap());
    for [side, patch, batch] in if device == DeviceKind::Cpu { CASES } else { ON_A_CARD } {
        let config = viscache::models::illama::Config { patch, ..Size::Tiny.config(side, CLASSES) };
        let variables = initial(&config, 0, BTreeMap::new()).unwrap();
        let file = write(&state(&variables).unwrap(), Default::default()).unwrap();
        let weights = Weights::from_memory("random", file).unwrap();
        let model = Illama::load(&weights, &config, &Placement::open(device, None).unwrap()).unwrap();
        let variables = placed(variables, device).unwrap();
        let learner = Learner::new(&config, variables, threads, false).unwrap();
        let mut optimiser = AdamW::new(learner.variables(), Settings::illama()).unwrap();
        let mut noise = Noise(3);
        let pictures: Vec<f32> = (0..batch * 3 * side * side).map(|_| noise.next()).collect();
        let targets = vec![1.0 / CLASSES as f32; batch * CLASSES];
        let lanes: Vec<rayon::ThreadPool> =
            (0..threads).map(|_| rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap()).collect();
        // Parts of the batch side by side, as an encoder and a learner share it out.
        let forward = || {
            let lanes = if device == DeviceKind::Cpu { &lanes[..] } else { &lanes[..1] };
            let part = (batch.div_ceil(lanes.len())) * 3 * side * side;
            std::thread::scope(|scope| {
                for (pictures, lane) in pictures.chunks(part).zip(lanes) {
                    let model = &model;
                    scope.spawn(move || lane.install(|| model.logits(pictures.to_vec(), 0.5).unwrap()));
                }
            });
        };
        let mut step = || {
            let lesson = Lesson { pictures: &pictures, targets: &targets, rate: 0.5, kept: &[] };
            let (_, gradients) = learner.gradients(&lesson).unwrap();
            optimiser.apply(&gradients, 1e-4, 0.05).unwrap();
        };
        forward();
        step();
        let (mut ours, mut theirs) = ([vec![], vec![]], [vec![], vec![]]);
        for _ in 0..rounds {
            ours[0].push(batch as f64 / timed(forward).1.wall);
            ours[1].push(batch as f64 / timed(&mut step).1.wall);
            if let Some(python) = &python {
                let rates = torch(python, [threads, side, patch, batch, 3]);
                theirs.iter_mut().zip(rates).for_each(|(all, rate)| all.push(rate));
            }
        }
        println!("{side}×{side} in patches of {patch}, batch {batch}, {threads} threads, pictures a second");
        for (((name, goal), ours), theirs) in GOALS.into_iter().zip(ours).zip(theirs) {
            let ours = median(ours);
            match theirs.is_empty() {
                true => println!("  {name:<8} {ours:>9.1}"),
                false => {
                    let theirs = median(theirs);
                    let (ratio, held) = (ours / theirs, verdict(ours / theirs >= goal));
                    println!(
                        "  {name:<8} {ours:>9.1}   PyTorch {theirs:>9.1}   RATIO {ratio:.2} × (goal ≥ {goal} ×: {held})"
                    );
                }
            }
        }
    }
}

/// Pictures a second of both.
fn torch(python: &OsStr, arguments: [usize; 5]) -> Vec<f64> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/illama_torch.py");
    let output = Command::new(python).arg(script).args(arguments.map(|n| n.to_string())).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}
