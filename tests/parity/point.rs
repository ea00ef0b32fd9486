//! The point-cloud encoder against the published program, tensor by tensor.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use serde_json::Value;
use viscache::models::Placement;
use viscache::models::imagebind::{Config, ImageBind};
use viscache::models::weights::Weights;
use viscache::types::Modality;

use crate::common::{Limit, Tally, Tensors, json, max_abs, parts, short};

/// The stored values and ours differ by less in every tensor, times the largest magnitude where that is above 1.
fn limit(expected: &[f32]) -> Limit {
    Limit { absolute: 1e-5 * max_abs(expected).max(1.0), turn: 1e-8 }
}

/// The golden folders with the sizes of this one encoder, not the parts of several.
fn folders() -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    for root in parts("imagebind") {
        let entries = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
        let sized = entries.filter(|path| path.join("config.json").exists());
        let sized = sized.map(|path| (path.clone(), json(&path.join("config.json"))));
        found.extend(sized.filter(|(_, sizes)| sizes.get("num_group").is_some()));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

#[test]
fn every_stored_tensor_of_the_point_clouds_is_reproduced() {
    let folders = folders();
    assert!(!folders.is_empty(), "no model found: not even the one in tests/golden");
    for (folder, sizes) in folders {
        let config = serde_json::json!({ "out_embed_dim": sizes["out_embed_dim"], "point": sizes });
        let config = Config::from_json(&config.to_string()).unwrap();
        let weights = Weights::open(
            &folder.join(format!("{}.safetensors", folder.file_name().unwrap().to_str().unwrap())),
        )
        .unwrap();
        let model = ImageBind::load(&weights, &config, &[Modality::Point], &Placement::cpu()).unwrap();
        let case = Tensors::open(&folder.join("case.safetensors"));
        let input = case.get("input");
        let clouds = Tensor::from_slice(input.floats(), input.shape.as_slice(), &Device::Cpu).unwrap();
        let starts: Vec<usize> = case.get("fps_start").wholes().iter().map(|&start| start as usize).collect();
        let mut seen: BTreeMap<String, Tensor> = BTreeMap::new();
        let mut observe = |name: &str, tensor: &Tensor| _ = seen.insert(name.to_owned(), tensor.clone());
        model.encode_from(Modality::Point, &clouds, &starts, &mut observe).unwrap();

        let mut tally = Tally::new(short(&folder));
        for (name, expected) in case.iter() {
            match name {
                "input" | "fps_start" => {}
                "center_index" => tally.equal(name, &whole(&seen[name]), expected.wholes()),
                "neighbor_index_sorted" => {
                    let size = *expected.shape.last().unwrap();
                    let mut received = whole(&seen["neighbor_index"]);
                    received.chunks_exact_mut(size).for_each(<[i64]>::sort_unstable);
                    tally.equal(name, &received, expected.wholes());
                }
                _ => {
                    let received = seen.get(name).unwrap_or_else(|| panic!("`{name}` is never shown"));
                    tally.equal(&format!("{name}, shape"), received.dims(), &expected.shape);
                    let received = received.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    let width = *expected.shape.last().unwrap();
                    tally.floats(name, &received, expected.floats(), width, limit(expected.floats()));
                }
            }
        }
        tally.finish();
    }
}

fn whole(tensor: &Tensor) -> Vec<i64> {
    tensor.flatten_all().unwrap().to_vec1::<u32>().unwrap().into_iter().map(i64::from).collect()
}
