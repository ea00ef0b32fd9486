//! Losses and gradients of the adapters' phases against the published programs, and of joint training.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use viscache::models::llama::{Batch, Checkpoint, Family, Group, Learner, Shown};
use viscache::models::weights::Weights;

use crate::common::{Limit, Tally, Tensors, json, max_abs, parts, short};
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
    found
}

/// The parts of a batch in a file, under a prefix.
fn compare(folder: &Path, file: &str, prefix: &str, group: &Group, named: &str) {
    let case = Tensors::open(&folder.join(file));
    let get = |name: &str| case.find(&format!("{prefix}{name}"));
    let config = config_of(folder);
    let weights = Weights::open(&folder.join("weights.safetensors")).unwrap();
    let mut checkpoint = Checkpoint::new(vec![weights], None, config.n_heads);
    if named == "pretrain" {
        // The first phase is of models without them.
        checkpoint = match checkpoint.family() {
            Family::ImageBindLlm => checkpoint.without(&[".bias", ".lora_"]),
            Family::V2Picture | Family::V2Chat => checkpoint.without(&[".bias"]),
        };
    }
    let learner = Learner::new(&checkpoint, &config, config.vocab_size.unwrap(), group).unwrap();
    let (tokens, labels) = (ids(get("tokens").unwrap()), ids(get("labels").unwrap()));
    let length = width(get("tokens").unwrap());
    let seen: Option<Tensor> = get("images").map(tensor).or_else(|| get("image_embed_raw").map(normalised));
    let shown = match (&seen, checkpoint.family()) {
        (Some(seen), Family::V2Picture) => Shown::Pictures(seen),
        (Some(seen), _) => Shown::Embeddings(seen),
        (None, _) => Shown::Nothing,
    };
    let batch = Batch { ids: &tokens, labels: &labels, length, shown };
    let mut tally = Tally::new(format!("{}/{prefix}{named}", short(folder)));
    let (loss, gradients) = learner.gradients(&batch).unwrap();
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
        let finetune = match folder.to_str().unwrap().contains("lora") {
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
        let learner = Learner::new(&checkpoint, &config, 512, &Group::CHAT).unwrap();
        let batch = Batch { ids: &[1, 2, 3], labels: &[0, 2, 3], length: 3, shown: Shown::Nothing };
        assert!(learner.gradients(&batch).unwrap().0 > 0.0);
        let nothing = Batch { labels: &[0; 3], ..batch };
        assert_eq!(learner.gradients(&nothing).unwrap().0, 0.0, "nothing is to be learned");
        for bad in [
            Batch { length: 2, ..batch },
            Batch { length: 0, ..batch },
            Batch { labels: &[0, 2], ..batch },
            Batch { ids: &[1, 2, 900], ..batch },
            Batch { labels: &[0, 2, 900], ..batch },
        ] {
            assert!(learner.gradients(&bad).is_err(), "{bad:?}");
        }
        let pictures =
            Tensor::zeros((1, 3, 28, 28), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        assert!(learner.gradients(&Batch { shown: Shown::Pictures(&pictures), ..batch }).is_err());
        let none =
            Learner::new(&checkpoint, &config, 512, &Group { within: "no", begins: &[], contains: &[""] });
        assert!(none.is_err());
    }
}
