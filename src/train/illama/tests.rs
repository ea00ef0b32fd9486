//! A head that learns alone: what it learns, what stays, and what is refused.

use std::fs;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::{IllamaRecipe, ProbeTask};
use crate::models::illama::{Config, Size, initial, is_head};
use crate::models::learning::{Values, read, state, write};
use crate::models::weights::Weights;
use crate::train::schedule::Cosine;
use crate::train::task::Task;
use crate::train::{Machine, News, Outcome, Plan, Stop, run};

const SIDE: usize = 16;

/// Pictures of three colours on noise, and a model that has learned nothing.
fn desk() -> tempfile::TempDir {
    let desk = tempfile::tempdir().unwrap();
    let mut random = Pcg64::seed_from_u64(1);
    for (split, each) in [("train", 12), ("test", 5)] {
        for class in 0..3 {
            let folder = desk.path().join(split).join(["a", "b", "c"][class]);
            fs::create_dir_all(&folder).unwrap();
            for i in 0..each {
                let mut bytes = format!("P6\n{SIDE} {SIDE}\n255\n").into_bytes();
                for _ in 0..SIDE * SIDE {
                    let mut pixel = [0; 3].map(|_: u8| random.random_range(0..120u8));
                    pixel[class] += 100;
                    bytes.extend(pixel);
                }
                fs::write(folder.join(format!("{i}.ppm")), bytes).unwrap();
            }
        }
    }
    let before = state(&initial(&config(3), 7, Default::default()).unwrap()).unwrap();
    fs::write(desk.path().join("before.safetensors"), write(&before, Default::default()).unwrap()).unwrap();
    desk
}

fn config(classes: usize) -> Config {
    Config { patch: 4, width: 64, depth: 2, heads: 1, ..Size::Tiny.config(SIDE, classes) }
}

fn recipe(more: serde_json::Value) -> IllamaRecipe {
    let mut recipe = serde_json::json!({
        "learn": "head",
        "model": { "size": "tiny", "side": SIDE, "patch": 4, "width": 64, "depth": 2 },
        "start": { "weights": "before.safetensors" },
        "train": { "folder": "train" },
        "test": { "folder": "test" },
    });
    recipe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    recipe.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    serde_json::from_value(recipe).unwrap()
}

fn plan() -> Plan {
    Plan {
        seed: 3,
        epochs: 8,
        batch: 6,
        accumulate: 1,
        rate: Cosine::constant(0.02),
        decay: Cosine::constant(0.1),
        average: Some(0.7),
        evaluate_every: 1,
        checkpoint_every: Some(1),
        keep: 3,
        recipe: serde_json::Value::Null,
        machine: serde_json::Value::Null,
    }
}

fn open(recipe: &IllamaRecipe, base: &Path) -> Result<ProbeTask, Stop> {
    ProbeTask::open(recipe, base, 3, |samples| plan().span(samples), Machine::cpu(2), &mut |_, _| {})
}

fn tensors(path: &Path) -> Values {
    read(&Weights::open(path).unwrap()).unwrap()
}

#[test]
fn the_head_learns_and_all_else_is_the_same_bit_for_bit() {
    let desk = desk();
    let task = open(&recipe(serde_json::json!({})), desk.path()).unwrap();
    assert_eq!(task.variables().keys().collect::<Vec<_>>(), ["head.bias", "head.weight"]);
    let out = desk.path().join("out");
    let outcome: Outcome = run(&task, &plan(), &out, &mut |_| true).unwrap();
    assert!(outcome.best.unwrap().0 > 0.9, "colours are told apart: {outcome:?}");
    let before = tensors(&desk.path().join("before.safetensors"));
    let best = tensors(&out.join("best/weights.safetensors"));
    assert!(before.keys().eq(best.keys()), "the whole model is there");
    for (name, values) in &best {
        let same = values.1.iter().map(|v| v.to_bits()).eq(before[name].1.iter().map(|v| v.to_bits()));
        assert_eq!(same, !is_head(name), "{name}");
    }
    // Checkpoints have what learns alone.
    let step = tensors(&out.join("step-000048/weights.safetensors"));
    assert!(step.keys().all(|name| is_head(name)) && step.len() == 2);
    // Stopped on the way, it ends at the same bits.
    let again = desk.path().join("again");
    let task = open(&recipe(serde_json::json!({})), desk.path()).unwrap();
    let stop = |news: News<'_>| !matches!(news, News::Step { step: 11, .. });
    let interrupted = run(&task, &plan(), &again, &mut { stop }).unwrap();
    assert!(interrupted.interrupted && interrupted.step == 11);
    let task = open(&recipe(serde_json::json!({})), desk.path()).unwrap();
    run(&task, &plan(), &again, &mut |_| true).unwrap();
    for name in
        ["best/weights.safetensors", "step-000048/weights.safetensors", "step-000048/moments.safetensors"]
    {
        assert!(fs::read(out.join(name)).unwrap() == fs::read(again.join(name)).unwrap(), "{name}");
    }
}

/// What does not learn is in no checkpoint: a run goes on with the same alone.
#[test]
fn a_run_is_not_gone_on_with_over_another_backbone() {
    let desk = desk();
    let out = desk.path().join("out");
    let first = open(&recipe(serde_json::json!({})), desk.path()).unwrap();
    run(&first, &plan(), &out, &mut |news| !matches!(news, News::Step { step: 3, .. })).unwrap();
    let other = open(&recipe(serde_json::json!({"start": null})), desk.path()).unwrap();
    let refused = run(&other, &plan(), &out, &mut |_| true).unwrap_err();
    assert!(
        matches!(&refused, Stop::OtherRun { differs, .. } if differs.contains("machine.others")),
        "{refused}"
    );
}

#[test]
fn features_do_not_hang_on_threads_and_bad_pictures_are_left_out() {
    let desk = desk();
    fs::write(desk.path().join("train/a/broken.png"), b"\x89PNG\r\n\x1a\nno picture").unwrap();
    let recipe = recipe(serde_json::json!({}));
    let mut told = Vec::new();
    let mut watch = |done, all| told.push((done, all));
    let one =
        ProbeTask::open(&recipe, desk.path(), 3, |n| plan().span(n), Machine::cpu(1), &mut watch).unwrap();
    let three = ProbeTask::open(&recipe, desk.path(), 3, |n| plan().span(n), Machine::cpu(3), &mut |_, _| {})
        .unwrap();
    assert_eq!(told.last(), Some(&(52, 52)));
    assert_eq!((one.samples(), one.train().samples.len()), (36, 36));
    assert!(one.train().skipped.to_string().contains("broken.png"), "{}", one.train().skipped);
    let samples: Vec<u32> = (0..36).collect();
    let loss = |task: &ProbeTask| {
        let batch = task.prepare(crate::train::data::Order::new(0), &samples).unwrap();
        let at = crate::train::task::Moment { step: 0, part: 0 };
        task.gradients(&batch, at).unwrap().0
    };
    assert_eq!(loss(&one).to_bits(), loss(&three).to_bits());
}

#[test]
fn chance_in_pictures_is_refused() {
    let desk = desk();
    for (more, says) in [
        (serde_json::json!({"mask": {"rate": 1.0}}), "`mask`"),
        (serde_json::json!({"drop_path": {"rate": 0.1}}), "`drop_path`"),
        (serde_json::json!({"mixup": {"mixup_alpha": 0.1, "cutmix_alpha": 0.1}}), "`mixup`"),
        (serde_json::json!({"augment": {"flip": 0.0}}), "`augment`"),
        (serde_json::json!({"test": null}), "needs a `test`"),
    ] {
        let refused = open(&recipe(more), desk.path()).err().unwrap();
        let why = std::error::Error::source(&refused).unwrap().to_string();
        assert!(why.contains(says), "{why}");
    }
    // A head of other classes, and one that begins from nothing.
    assert!(open(&recipe(serde_json::json!({"start": null})), desk.path()).is_ok());
}
