//! iLLaMA as it learns: losses, gradients, sums over half batches, four steps and their moving average, against the published program;
//! at once and block by block.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use viscache::models::illama::{Config, Learner, Lesson, continued};
use viscache::models::learning::adamw::{AdamW, Settings};
use viscache::models::learning::{Average, Gradients, Sum};
use viscache::models::weights::Weights;
use viscache::train::mixup::{self, Choice};

use crate::common::{Limit, Tally, Tensors, json, max_abs, read, say, short};
use crate::decoder::{LAYERS, floats, limit, width};
use crate::illama::folders;

fn config_of(folder: &Path) -> Config {
    Config::from_json(&String::from_utf8(read(&folder.join("config.json"))).unwrap()).unwrap()
}

/// * `threads`: parts of a batch.
fn learner(folder: &Path, threads: usize, blockwise: bool) -> Learner {
    let weights = Weights::open(&folder.join("weights.safetensors")).unwrap();
    let config = config_of(folder);
    Learner::new(&config, continued(&config, 0, &weights).unwrap(), threads, blockwise).unwrap()
}

/// The soft targets of a file, whichever way it has them.
fn targets(file: &Tensors, classes: usize, smoothing: f64) -> Vec<f32> {
    let labels: Vec<u32> = match file.find("targets").filter(|targets| targets.shape.len() == 2) {
        Some(soft) => return soft.floats().to_vec(),
        None => file.get("labels").wholes().iter().map(|&label| label as u32).collect(),
    };
    mixup::targets(&Choice::Plain, &labels, classes, smoothing).unwrap()
}

fn with_training() -> Vec<PathBuf> {
    let found: Vec<PathBuf> =
        folders().into_iter().filter(|folder| folder.join("train.json").exists()).collect();
    assert!(!found.is_empty());
    found
}

fn compare_gradients(tally: &mut Tally, file: &Tensors, gradients: &Gradients) -> usize {
    let mut compared = 0;
    for (name, expected) in file.under("grad.") {
        let bound = Limit { absolute: 1e-3 * max_abs(expected.floats()), turn: 1.0 };
        tally.floats(name, &floats(&gradients[name]), expected.floats(), width(expected), bound);
        compared += 1;
    }
    compared
}

#[test]
fn losses_and_all_gradients() {
    for folder in with_training() {
        let told = json(&folder.join("train.json"));
        let classes = config_of(&folder).classes;
        for (kind, smoothing) in [("soft_target", 0.0), ("label_smoothing", 0.1), ("plain", 0.0)] {
            let path = folder.join(format!("train_loss_{kind}.safetensors"));
            let file = Tensors::open(&path);
            let rate = told[kind]["soft_mask_rate"].as_f64().unwrap() as f32;
            let targets = targets(&file, classes, smoothing);
            let pictures = file.get("images").floats();
            for (threads, blockwise) in [(1, false), (3, false), (1, true), (2, true)] {
                let learner = learner(&folder, threads, blockwise);
                let lesson = Lesson { pictures, targets: &targets, rate, kept: &[] };
                let (loss, gradients) = learner.gradients(&lesson).unwrap();
                let mut tally =
                    Tally::new(format!("{}, {threads} parts, blockwise {blockwise}", short(&path)));
                let expected = file.get("loss").floats()[0];
                let bound = Limit { absolute: 1e-5 * f64::from(expected), turn: 1.0 };
                tally.floats("loss", &[loss], &[expected], 1, bound);
                let compared = compare_gradients(&mut tally, &file, &gradients);
                assert!(compared == 0 || compared == learner.variables().len(), "{compared}");
                assert_eq!(gradients.len(), learner.variables().len());
                tally.finish();
            }
        }
    }
}

#[test]
fn logits_of_what_learns_are_those_of_the_model() {
    for folder in with_training() {
        let path = folder.join("train_loss_plain.safetensors");
        let (file, config) = (Tensors::open(&path), config_of(&folder));
        let weights = Weights::open(&folder.join("weights.safetensors")).unwrap();
        let model =
            viscache::models::illama::Illama::load(&weights, &config, &viscache::models::Placement::cpu());
        let rate = json(&folder.join("train.json"))["plain"]["soft_mask_rate"].as_f64().unwrap() as f32;
        let logits = model.unwrap().logits(file.get("images").floats().to_vec(), rate).unwrap().concat();
        let expected = file.get("logits").floats();
        let mut tally = Tally::new(short(&path));
        tally.floats("logits", &logits, expected, config.classes, limit(expected, LAYERS));
        tally.finish();
    }
}

/// The same gradients from two halves as from the whole, and as the program has them.
#[test]
fn gradients_of_half_batches_are_summed() {
    for folder in with_training() {
        let path = folder.join("train_accum2.safetensors");
        let (file, run) = (Tensors::open(&path), Tensors::open(&folder.join("train_run.safetensors")));
        let find = |name: &str| file.find(name).or_else(|| run.find(name)).unwrap();
        let (pictures, targets) = (find("images").floats(), find("targets").floats());
        let learner = learner(&folder, 1, false);
        let mut sum = Sum::default();
        let half =
            |values: &[f32], i: usize| values[i * values.len() / 2..(i + 1) * values.len() / 2].to_vec();
        for i in 0..2 {
            let (pictures, targets) = (half(pictures, i), half(targets, i));
            let lesson = Lesson { pictures: &pictures, targets: &targets, rate: 0.0, kept: &[] };
            sum.add(learner.gradients(&lesson).unwrap().1).unwrap();
        }
        let gradients = sum.times(0.5).unwrap();
        let mut tally = Tally::new(short(&path));
        assert!(compare_gradients(&mut tally, &file, &gradients) > 0);
        tally.finish();
    }
}

#[test]
fn four_steps_and_their_average_arrive_where_the_program_does() {
    for folder in with_training() {
        let path = folder.join("train_run.safetensors");
        let (file, told) = (Tensors::open(&path), json(&folder.join("train.json")));
        let learner = learner(&folder, 1, false);
        let mut adamw = AdamW::new(learner.variables(), Settings::illama()).unwrap();
        let mut average = Average::new(0.9, learner.variables()).unwrap();
        let mut tally = Tally::new(short(&path));
        let (mut moved, mut quiet) = (0.0, BTreeMap::<String, Vec<bool>>::new());
        for (i, step) in told["run"]["steps"].as_array().unwrap().iter().enumerate() {
            let number = |name: &str| step[name].as_f64().unwrap();
            let lesson = Lesson {
                pictures: file.get("images").floats(),
                targets: file.get("targets").floats(),
                rate: number("soft_mask_rate") as f32,
                kept: &[],
            };
            let (loss, gradients) = learner.gradients(&lesson).unwrap();
            for (name, gradient) in &gradients {
                let gradient = floats(gradient);
                let least = 1e-4 * max_abs(&gradient) as f32;
                let quiet = quiet.entry(name.clone()).or_insert_with(|| vec![false; gradient.len()]);
                quiet.iter_mut().zip(gradient).for_each(|(quiet, g)| *quiet |= g.abs() <= least);
            }
            let expected = number("loss") as f32;
            let bound = if i == 0 { 1e-5 } else { 1e-3 } * f64::from(expected);
            tally.floats(&format!("loss {i}"), &[loss], &[expected], 1, Limit { absolute: bound, turn: 1.0 });
            adamw.apply(&gradients, number("lr"), number("weight_decay")).unwrap();
            average.follow(learner.variables()).unwrap();
            moved += 2.0 * number("lr");
        }
        let narrow = f64::max(2e-5, 1e-3 * moved);
        let mut compared = 0;
        for (name, expected) in file.under("after_step4.") {
            let own = floats(learner.variables()[name].as_tensor());
            for (j, (own, expected)) in own.iter().zip(expected.floats()).enumerate() {
                let bound = if quiet[name][j] { moved + narrow } else { narrow };
                let off = f64::from((own - expected).abs());
                assert!(off <= bound, "{name}[{j}]: {own}, not {expected}");
            }
            compared += 1;
        }
        assert_eq!(compared, learner.variables().len());
        let loud = quiet.values().flatten().filter(|quiet| !**quiet).count();
        let all = quiet.values().map(Vec::len).sum::<usize>();
        assert!(2 * loud > all, "{loud} of {all} values are held to the narrow bound");
        let mut averages = 0;
        for (name, expected) in file.under("ema_decay0.9_after_step4.") {
            let bound = Limit { absolute: narrow, turn: 1.0 };
            tally.floats(name, &average.values()[name].1, expected.floats(), width(expected), bound);
            averages += 1;
        }
        assert!(averages > 0);
        say(&format!("{}: {loud} of {all} values are held to the narrow bound", short(&path)));
        tally.finish();
    }
}

/// What chance leaves out of a branch is left out, and the rest is raised.
#[test]
fn branches_that_are_dropped_have_no_part() {
    for folder in with_training() {
        let file = Tensors::open(&folder.join("train_loss_soft_target.safetensors"));
        let config = config_of(&folder);
        let (pictures, targets) = (file.get("images").floats(), file.get("targets").floats());
        let count = targets.len() / config.classes;
        let gradients = |kept: &[f32], threads: usize, blockwise: bool| {
            let lesson = Lesson { pictures, targets, rate: 0.4, kept };
            learner(&folder, threads, blockwise).gradients(&lesson).unwrap()
        };
        let all = vec![1.0; 2 * config.depth * count];
        assert_eq!(gradients(&[], 1, false).0, gradients(&all, 1, false).0);
        let mut kept = all.clone();
        kept[..count].fill(0.0);
        let (loss, none) = gradients(&kept, 1, false);
        assert_ne!(loss, gradients(&all, 1, false).0);
        assert!(floats(&none["blocks.0.attn.proj.weight"]).iter().all(|&g| g == 0.0));
        assert!(floats(&none["blocks.0.mlp.fc2.weight"]).iter().any(|&g| g != 0.0));
        // A picture's own, whichever part it falls into.
        kept = all;
        kept[2 * count] = 0.0;
        kept[2 * count + 1] = 2.0;
        let (loss, whole) = gradients(&kept, 1, false);
        for (threads, blockwise) in [(count, false), (1, true)] {
            let (other, parts) = gradients(&kept, threads, blockwise);
            assert!((loss - other).abs() < 1e-5 * loss);
            for (name, gradient) in &whole {
                let (own, expected) = (floats(&parts[name]), floats(gradient));
                let bound = 1e-4 * max_abs(&expected) as f32 + 1e-9;
                assert!(own.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= bound), "{name}");
            }
        }
    }
}

#[test]
fn lessons_that_do_not_fit_are_refused() {
    let folder = &with_training()[0];
    let file = Tensors::open(&folder.join("train_loss_soft_target.safetensors"));
    let learner = learner(folder, 2, false);
    let lesson = Lesson {
        pictures: file.get("images").floats(),
        targets: file.get("targets").floats(),
        rate: 0.5,
        kept: &[],
    };
    assert!(learner.gradients(&lesson).is_ok());
    for bad in [
        Lesson { pictures: &lesson.pictures[1..], ..lesson },
        Lesson { targets: &lesson.targets[1..], ..lesson },
        Lesson { targets: &[], pictures: &[], ..lesson },
        Lesson { kept: &[1.0], ..lesson },
        Lesson { rate: 1.5, ..lesson },
    ] {
        assert!(learner.gradients(&bad).is_err());
    }
}
