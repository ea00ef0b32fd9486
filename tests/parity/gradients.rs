//! Losses, gradients and steps of the adapters' phases against the published programs, and of joint training.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use viscache::models::learning::adamw::{AdamW, Settings};
use viscache::models::llama::{Batch, Checkpoint, Config, Family, Group, Learner, Shown};
use viscache::models::weights::Weights;
use viscache::train::schedule::ByEpoch;

use crate::common::{Limit, Tally, Tensors, json, max_abs, parts, say, short};
use crate::decoder::{LAYERS, config_of, floats, ids, limit, normalised, tensor, width};

/// Folders of golden decoders that hold a file.
fn folders(part: &str, file: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in parts(part) {
        let entries = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
        found.extend(
            entries.filter(|path| path.join(file).exists() && path.join("weights.safetensors").exists()),
        );
    }
    found.sort();
    if found.is_empty() {
        say(&format!("skipped: {file} (in no folder of {part} here)"));
    }
    found
}

/// A decoder of a folder as a phase of training begins with it.
fn opened(folder: &Path, pretrain: bool) -> (Checkpoint, Config) {
    let config = config_of(folder);
    let weights = Weights::open(&folder.join("weights.safetensors")).unwrap();
    let checkpoint = Checkpoint::new(vec![weights], None, config.n_heads);
    if !pretrain {
        return (checkpoint, config);
    }
    // The first phase is of models without them.
    let checkpoint = match checkpoint.family() {
        Family::ImageBindLlm => checkpoint.without(&[".bias", ".lora_"]),
        Family::V2Picture | Family::V2Chat => checkpoint.without(&[".bias"]),
    };
    (checkpoint, config)
}

/// What the texts of a batch are about.
fn shown(seen: Option<&Tensor>, family: Family) -> Shown<'_> {
    match (seen, family) {
        (Some(seen), Family::V2Picture) => Shown::Pictures(seen),
        (Some(seen), _) => Shown::Embeddings(seen),
        (None, _) => Shown::Nothing,
    }
}

/// How a batch is worked on: in how many parts at a time, and whether block by block. Nothing: as a whole, where it is called.
const WAYS: [Option<(usize, bool)>; 4] = [None, Some((1, true)), Some((2, false)), Some((3, true))];

/// The parts of a batch in a file, under a prefix, in every way.
fn compare(folder: &Path, file: &str, prefix: &str, group: &Group, named: &str) {
    WAYS.into_iter().for_each(|way| compare_in(folder, file, prefix, group, named, way));
}

fn compare_in(
    folder: &Path,
    file: &str,
    prefix: &str,
    group: &Group,
    named: &str,
    way: Option<(usize, bool)>,
) {
    let case = Tensors::open(&folder.join(file));
    let get = |name: &str| case.find(&format!("{prefix}{name}"));
    let (checkpoint, config) = opened(folder, named == "pretrain");
    let learner = Learner::new(&checkpoint, &config, config.vocab_size.unwrap(), group).unwrap();
    let learner = match way {
        Some((threads, blockwise)) => learner.spread(threads, blockwise).unwrap(),
        None => learner,
    };
    let (tokens, labels) = (ids(get("tokens").unwrap()), ids(get("labels").unwrap()));
    let length = width(get("tokens").unwrap());
    let seen: Option<Tensor> = get("images").map(tensor).or_else(|| get("image_embed_raw").map(normalised));
    let shown = shown(seen.as_ref(), checkpoint.family());
    let batch = Batch { ids: &tokens, labels: &labels, weights: &[], length, shown };
    let mut tally = Tally::new(format!("{}/{prefix}{named} {way:?}", short(folder)));
    let (loss, gradients) = learner.gradients(&batch).unwrap();
    // The same, bit for bit, when it is asked again; and what it costs is the same without gradients.
    let (again, once_more) = learner.gradients(&batch).unwrap();
    let bits = |gradients: &BTreeMap<String, Tensor>| -> Vec<u32> {
        gradients.values().flat_map(floats).map(f32::to_bits).collect()
    };
    assert!(loss.to_bits() == again.to_bits() && bits(&gradients) == bits(&once_more), "{way:?}");
    let (lost, count) = learner.loss(&batch).unwrap();
    assert!((lost / count.max(1) as f64 - f64::from(loss)).abs() <= 1e-5 * f64::from(loss), "{lost} {count}");
    let expected = get("loss").unwrap().floats()[0];
    let bound = Limit { absolute: 1e-5 * f64::from(expected), turn: 1.0 };
    tally.floats("loss", &[loss], &[expected], 1, bound);
    if let Some(expected) = get("logits") {
        let logits = floats(&learner.logits(&batch).unwrap());
        tally.floats("logits", &logits, expected.floats(), width(expected), limit(expected.floats(), LAYERS));
    }
    let mut compared = 0;
    for (name, expected) in case.under(&format!("{prefix}grad.")) {
        let own = match name.strip_prefix("layers.").or(name.strip_prefix("norm.")) {
            Some(_) => format!("llama.{name}"), // the chat program has no prefix
            None => name.to_owned(),
        };
        assert!(learner.variables().contains_key(&own), "{own} does not learn");
        let zeros = vec![0.0; expected.floats().len()];
        let gradient = gradients.get(&own).map_or(zeros, floats);
        let bound = Limit { absolute: 1e-3 * max_abs(expected.floats()), turn: 1.0 };
        tally.floats(name, &gradient, expected.floats(), width(expected), bound);
        compared += 1;
    }
    // Nothing else learns: those without a place in the file had no part in the loss.
    let others = gradients.keys().filter(|name| {
        let plain = name.strip_prefix("llama.").unwrap_or(name);
        ![name.as_str(), plain].iter().any(|name| get(&format!("grad.{name}")).is_some())
    });
    assert_eq!(others.count(), 0, "{}", short(folder));
    assert!(compared > 0);
    tally.finish();
}

#[test]
fn both_phases_of_imagebind_llm() {
    for folder in folders("imagebind_llm_decoder", "train_pretrain.safetensors") {
        compare(&folder, "train_pretrain.safetensors", "", &Group::BIND_PRETRAIN, "pretrain");
        compare(&folder, "train_finetune.safetensors", "", &Group::BIND_FINETUNE, "finetune");
    }
}

#[test]
fn both_phases_of_the_multimodal_v2() {
    for folder in folders("llama_adapter_v2", "train_pretrain.safetensors") {
        compare(&folder, "train_pretrain.safetensors", "", &Group::V2_PRETRAIN, "pretrain");
        compare(&folder, "train_finetune.safetensors", "", &Group::V2_FINETUNE, "finetune");
    }
}

/// Steps on one batch, with the rates that the schedule gives.
fn walk(folder: &Path, phase: &str, group: &Group) {
    let case = Tensors::open(&folder.join(format!("train_{phase}.safetensors")));
    let told = &json(&folder.join("train.json"))[phase];
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let hyper = |name: &str| number(&told["hyper"][name]);
    let schedule =
        ByEpoch::new(hyper("lr"), hyper("min_lr"), hyper("warmup_epochs"), hyper("epochs")).unwrap();
    let (checkpoint, config) = opened(folder, phase == "pretrain");
    let learner = Learner::new(&checkpoint, &config, config.vocab_size.unwrap(), group).unwrap();
    let (tokens, labels) = (ids(case.get("tokens")), ids(case.get("labels")));
    let seen = case.find("images").map(tensor).or_else(|| case.find("image_embed_raw").map(normalised));
    let shown = shown(seen.as_ref(), checkpoint.family());
    let batch =
        Batch { ids: &tokens, labels: &labels, weights: &[], length: width(case.get("tokens")), shown };
    let before: BTreeMap<String, Vec<f32>> =
        learner.variables().iter().map(|(name, var)| (name.clone(), floats(var.as_tensor()))).collect();
    let mut adamw = AdamW::new(learner.variables(), Settings::adapters()).unwrap();
    let mut tally = Tally::new(format!("{}/{phase}, steps", short(folder)));
    let (mut compared, mut moved) = (0, 0.0);
    // Where there was next to no gradient at some step, its sign was noise, and a step has one length. More of it from the second
    // on, when both programs stand at places of their own.
    let mut quiet: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    for (i, step) in told["steps"].as_array().unwrap().iter().enumerate() {
        for (name, gradient) in learner.gradients(&batch).unwrap().1 {
            let gradient = floats(&gradient);
            let least = if i == 0 { 1e-4 } else { 1e-3 } * max_abs(&gradient) as f32;
            let quiet = quiet.entry(name).or_insert_with(|| vec![false; gradient.len()]);
            quiet.iter_mut().zip(gradient).for_each(|(quiet, g)| *quiet |= g.abs() <= least);
        }
        let rate = schedule.at(number(&step["fractional_epoch"]));
        assert!((rate - number(&step["lr"])).abs() <= 1e-12, "{rate}: {step}");
        let (loss, gradients) = learner.gradients(&batch).unwrap();
        adamw.apply(&gradients, rate, hyper("weight_decay")).unwrap();
        let expected = number(&step["loss"]) as f32;
        // Behind the first step stand parameters that differ by what their bounds allow.
        let bound = if i == 0 { 1e-5 } else { 1e-3 } * f64::from(expected);
        tally.floats(&format!("loss {i}"), &[loss], &[expected], 1, Limit { absolute: bound, turn: 1.0 });
        moved += 2.0 * rate;
        for (name, expected) in case.under(&format!("after_step{}.", i + 1)) {
            let own = floats(learner.variables()[name].as_tensor());
            match quiet.get(name) {
                // Had no part in the loss: neither moved nor decayed.
                None => {
                    assert!(case.find(&format!("grad.{name}")).is_none_or(|g| max_abs(g.floats()) == 0.0));
                    assert_eq!(own, before[name], "{name}");
                }
                Some(quiet) => {
                    // A gradient that is off by a thousandth turns a step by a thousandth of its length.
                    let narrow = f64::max(2e-5, 1e-3 * moved);
                    for (j, (own, expected)) in own.iter().zip(expected.floats()).enumerate() {
                        let bound = if quiet[j] { moved + narrow } else { narrow };
                        let off = f64::from((own - expected).abs());
                        assert!(off <= bound, "{name}[{j}] after {}: {own}, not {expected}", i + 1);
                    }
                }
            }
            compared += 1;
        }
    }
    assert!(compared > 0, "{}", short(folder));
    let (all, loud) =
        quiet.values().flatten().fold((0, 0), |(all, loud), quiet| (all + 1, loud + i32::from(!quiet)));
    say(&format!("{}/{phase}: {loud} of {all} values are held to the narrow bound", short(folder)));
    assert!(2 * loud > all, "{loud} of {all} values are held to the narrow bound");
    tally.finish();
}

#[test]
fn steps_of_both_phases_lead_where_the_published_programs_arrive() {
    for (part, pretrain, finetune) in [
        ("imagebind_llm_decoder", Group::BIND_PRETRAIN, Group::BIND_FINETUNE),
        ("llama_adapter_v2", Group::V2_PRETRAIN, Group::V2_FINETUNE),
    ] {
        for folder in folders(part, "train_pretrain.safetensors") {
            walk(&folder, "pretrain", &pretrain);
            walk(&folder, "finetune", &finetune);
        }
    }
}

#[test]
fn rates_follow_the_published_schedule() {
    for root in parts("imagebind_llm_decoder") {
        let Ok(bytes) = std::fs::read(root.join("lr_schedule.json")) else { continue };
        let runs: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        for run in runs.as_array().unwrap() {
            let of = |name: &str| run[name].as_f64().unwrap();
            let peak = of("lr");
            let schedule = ByEpoch::new(peak, of("min_lr"), of("warmup_epochs"), of("epochs")).unwrap();
            for pair in run["values"].as_array().unwrap() {
                let (epoch, expected) = (pair[0].as_f64().unwrap(), pair[1].as_f64().unwrap());
                let rate = schedule.at(epoch);
                assert!((rate - expected).abs() <= 1e-9 * peak, "{}: {rate} at {epoch}", run["name"]);
            }
        }
    }
}

#[test]
fn the_chat_program() {
    for folder in folders("llama_adapter_v2", "train.safetensors") {
        compare(&folder, "train.safetensors", "", &Group::CHAT, "chat");
    }
}

#[test]
fn joint_training_moves_disjoint_groups() {
    for folder in folders("llama_adapter_v2", "derived_joint.safetensors") {
        let told = json(&folder.join("derived_joint.json"));
        let finetune = match json(&folder.join("config.json"))["w_lora"] == true {
            true => Group::V2_FINETUNE_LORA,
            false => Group::V2_FINETUNE,
        };
        compare(&folder, "derived_joint.safetensors", "caption.", &Group::V2_PRETRAIN, "joint");
        compare(&folder, "derived_joint.safetensors", "instruction.", &finetune, "joint");
        // The groups are those of the file, name by name, and share nothing.
        for (key, group) in [
            ("group_A_from_caption_batches", Group::V2_PRETRAIN),
            ("group_B_from_instruction_batches", finetune),
        ] {
            let names: Vec<&str> =
                told[key].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
            assert!(names.iter().all(|name| group.holds(name)), "{key}");
            let other = if group == finetune { Group::V2_PRETRAIN } else { finetune };
            assert!(names.iter().all(|name| !other.holds(name)), "{key}");
        }
    }
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    for folder in folders("llama_adapter_v2", "train.safetensors").iter().take(1) {
        let config = config_of(folder);
        let weights = Weights::open(&folder.join("weights.safetensors")).unwrap();
        let checkpoint = Checkpoint::new(vec![weights], None, config.n_heads);
        let words = config.vocab_size.unwrap();
        let learner = Learner::new(&checkpoint, &config, words, &Group::CHAT).unwrap();
        let batch =
            Batch { ids: &[1, 2, 3], labels: &[0, 2, 3], weights: &[], length: 3, shown: Shown::Nothing };
        assert!(learner.gradients(&batch).unwrap().0 > 0.0);
        let nothing = Batch { labels: &[0; 3], ..batch };
        assert_eq!(learner.gradients(&nothing).unwrap().0, 0.0, "nothing is to be learned");
        for bad in [
            Batch { length: 2, ..batch },
            Batch { length: 0, ..batch },
            Batch { labels: &[0, 2], ..batch },
            Batch { ids: &[1, 2, words as u32], ..batch },
            Batch { labels: &[0, 2, words as u32], ..batch },
        ] {
            assert!(learner.gradients(&bad).is_err(), "{bad:?}");
        }
        let pictures =
            Tensor::zeros((1, 3, 28, 28), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        assert!(learner.gradients(&Batch { shown: Shown::Pictures(&pictures), ..batch }).is_err());
        let none =
            Learner::new(&checkpoint, &config, words, &Group { within: "no", begins: &[], contains: &[""] });
        assert!(none.is_err());
    }
}
