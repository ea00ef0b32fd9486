//! iLLaMA against the published program: logits and what lies on the way to them, at every rate of the mask, at another size of pictures,
//! at full size with computed weights; first weights from a LLaMA.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use viscache::models::illama::{Config, Illama, Looked, Size, thinned};
use viscache::models::weights::Weights;
use viscache::models::{DeviceKind, Placement};
use viscache::types::WeightDtype;

use crate::classifier::{self, computed, shapes_of};
use crate::common::{Limit, Tally, Tensors, json, parts, read, say, short};
use crate::decoder::{LAYERS, floats, limit, tensor, width};

/// Folders of small models.
pub(crate) fn folders() -> Vec<PathBuf> {
    let all = parts("illama").into_iter().flat_map(|root| std::fs::read_dir(root).unwrap());
    let mut found: Vec<PathBuf> =
        all.map(|entry| entry.unwrap().path()).filter(|path| path.join("config.json").exists()).collect();
    found.sort();
    found
}

pub(crate) fn config_of(folder: &Path) -> Config {
    Config::from_json(&String::from_utf8(read(&folder.join("config.json"))).unwrap()).unwrap()
}

/// Both results against a file's.
fn compare(tally: &mut Tally, golden: &Tensors, looked: &Looked) {
    for (name, own) in [("features", &looked.features), ("logits", &looked.logits)] {
        let expected = golden.get(name).floats();
        tally.floats(name, &floats(own), expected, width(golden.get(name)), limit(expected, LAYERS));
    }
}

/// The rate that a file's name says.
fn rate_of(path: &Path) -> Option<f32> {
    path.file_stem()?.to_str()?.strip_prefix("forward_rate_")?.parse().ok()
}

#[test]
fn every_rate_of_the_mask() {
    for folder in folders() {
        let config = config_of(&folder);
        let mut files: Vec<(f32, PathBuf)> = std::fs::read_dir(&folder)
            .unwrap()
            .filter_map(|entry| {
                let path = entry.unwrap().path();
                Some((rate_of(&path)?, path))
            })
            .collect();
        files.sort_by(|a, b| a.0.total_cmp(&b.0));
        // The pictures are the same for all, and are in some of the files.
        let pictures =
            files.iter().find_map(|(_, file)| Tensors::open(file).find("images").map(tensor)).unwrap();
        for weights in ["weights.safetensors", "checkpoint.pth"] {
            let weights = Weights::open(&folder.join(weights)).unwrap();
            let model = Illama::load(&weights, &config, &Placement::cpu()).unwrap();
            for (rate, file) in &files {
                let golden = Tensors::open(file);
                let mut tally =
                    Tally::new(format!("{} of {}", short(file), short(Path::new(weights.path()))));
                let mut compared = 0;
                let looked = model
                    .observed(&pictures, *rate, &mut |name, x| {
                        let Some(expected) = golden.find(name) else { return };
                        // Heads stand behind the tokens there.
                        let x = if name.ends_with("_rope") { x.transpose(1, 2).unwrap() } else { x.clone() };
                        let width = *expected.shape.last().unwrap();
                        tally.floats(
                            name,
                            &floats(&x),
                            expected.floats(),
                            width,
                            limit(expected.floats(), LAYERS),
                        );
                        compared += 1;
                    })
                    .unwrap();
                assert!(compared >= config.depth, "{compared}");
                compare(&mut tally, &golden, &looked);
                // Without onlookers the last block is made for the class token alone.
                compare(&mut tally, &golden, &model.forward(&pictures, *rate).unwrap());
                tally.finish();
            }
        }
    }
}

#[test]
fn another_size_of_pictures() {
    for folder in folders() {
        let golden = Tensors::open(&folder.join("second_resolution.safetensors"));
        let pictures = tensor(golden.get("images"));
        let config = config_of(&folder).with_side(pictures.dims()[3]).unwrap();
        let weights = Weights::open(&folder.join("weights.safetensors")).unwrap();
        let model = Illama::load(&weights, &config, &Placement::cpu()).unwrap();
        let looked = model.forward(&pictures, 0.0).unwrap();
        let mut tally = Tally::new(format!("{}/second_resolution", short(&folder)));
        compare(&mut tally, &golden, &looked);
        tally.finish();
    }
}

#[test]
fn sizes_are_read_off_published_weights_and_hold_every_tensor() {
    for root in parts("illama") {
        for size in Size::ALL {
            for (side, classes, file) in [(224, 1000, "224"), (384, 1000, "384"), (224, 10450, "224_21k")] {
                let path = root.join(format!("{}_{file}_params.json", size.name().replace('-', "_")));
                if !path.exists() {
                    continue;
                }
                let said = json(&path);
                let config = size.config(side, classes);
                assert_eq!(config.hidden() as u64, said["ffn_hidden"].as_u64().unwrap(), "{}", short(&path));
                let shapes = shapes_of(&config);
                let count: usize = shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
                assert_eq!(count as u64, said["n_params"].as_u64().unwrap(), "{}", short(&path));
            }
        }
    }
}

/// Writes weights that follow from their names.
fn written(folder: &Path, config: &Config) -> PathBuf {
    let path = folder.join(format!("{}.safetensors", config.side));
    classifier::write(&path, config);
    path
}

#[test]
fn the_real_size_with_computed_weights() {
    let folder = tempfile::tempdir().unwrap();
    for root in parts("illama/full_size_formula_weights.safetensors") {
        let golden = Tensors::open(&root);
        let mut tally = Tally::new(short(&root));
        let bound = Limit { absolute: 2e-4, turn: 1e-6 };
        for (side, rates) in [(224usize, &[0.0f32, 0.5, 1.0][..]), (384, &[0.0])] {
            let config = Size::Tiny.config(side, 1000);
            let path = written(folder.path(), &config);
            let weights = Weights::open(&path).unwrap();
            assert_eq!(Config::of(&weights).unwrap(), config);
            let model = Illama::load(&weights, &config, &Placement::cpu()).unwrap();
            let pictures = computed(&format!("input.{side}"), 3 * side * side);
            let pictures = Tensor::from_vec(pictures, (1, 3, side, side), &Device::Cpu).unwrap();
            for rate in rates {
                let at = |name: &str| golden.find(&format!("tiny.{side}.rate{rate}.{name}"));
                let mut compare = |name: &str, own: &[f32]| {
                    if let Some(expected) = at(name) {
                        tally.floats(
                            &format!("{side} {rate} {name}"),
                            own,
                            expected.floats(),
                            own.len(),
                            bound,
                        );
                    }
                };
                let looked = model
                    .observed(&pictures, *rate, &mut |name, x| {
                        let Some(block) = name.strip_suffix(".out") else { return };
                        let token = |n: usize| floats(&x.narrow(1, n, 1).unwrap());
                        compare(&format!("{block}.last_token"), &token(x.dims()[1] - 1));
                        compare(&format!("{block}.token0"), &token(0));
                    })
                    .unwrap();
                compare("features", &floats(&looked.features));
                compare("logits", &floats(&looked.logits));
            }
            // In 8 bits it names what it names in full, and all embeddings lie near.
            let eight = Placement::open(DeviceKind::Cpu, Some(WeightDtype::Q8_0)).unwrap();
            let rounded = Illama::load(&weights, &config, &eight).unwrap().forward(&pictures, 0.0).unwrap();
            let full = model.forward(&pictures, 0.0).unwrap();
            let (own, full) = (floats(&rounded.features), floats(&full.features));
            tally.floats("q8_0", &own, &full, own.len(), Limit { absolute: 0.5, turn: 2e-3 });
        }
        tally.finish();
    }
}

#[test]
fn weights_are_selected_as_the_published_program_does() {
    for path in parts("illama/weight_selection.safetensors") {
        let golden = Tensors::open(&path);
        for case in 0.. {
            let (Some(from), Some(to)) =
                (golden.find(&format!("case{case}.in")), golden.find(&format!("case{case}.out")))
            else {
                assert!(case >= 4, "{case}");
                break;
            };
            let thin = thinned(from.floats(), &from.shape, &to.shape).unwrap();
            assert_eq!((thin.shape, thin.values), (to.shape.clone(), to.floats().to_vec()), "case {case}");
        }
    }
    for path in parts("illama/weight_selection_indices.json") {
        for case in json(&path).as_array().unwrap() {
            let size = |name: &str| case[name].as_u64().unwrap() as usize;
            let all: Vec<f32> = (0..size("from_dim")).map(|i| i as f32).collect();
            let thin = thinned(&all, &[all.len()], &[size("to_dim")]).unwrap();
            let expected: Vec<f32> =
                case["indices"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as f32).collect();
            assert_eq!(thin.values, expected, "{} to {}", size("from_dim"), size("to_dim"));
        }
    }
    say("iLLaMA: weight selection compared");
}
