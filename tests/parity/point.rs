//! The point-cloud encoder against the published program, tensor by tensor.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use viscache::models::Placement;
use viscache::models::imagebind::{Config, ImageBind};
use viscache::models::weights::Weights;
use viscache::types::Modality;

use crate::common::{Limit, Tally, Tensors, parts, read, say, short};

/// The stored values and ours differ by less in every tensor.
const LIMIT: Limit = Limit { absolute: 1e-5, turn: 1e-8 };

#[test]
fn every_stored_tensor_of_the_point_clouds_is_reproduced() {
    let mut found = false;
    for root in parts("imagebind") {
        let folder = root.join("point");
        if !folder.join("config.json").exists() {
            continue;
        }
        found = true;
        // The folder's file has the sizes of this one encoder, not the parts of several.
        let sizes: serde_json::Value = serde_json::from_slice(&read(&folder.join("config.json"))).unwrap();
        let config = serde_json::json!({ "out_embed_dim": sizes["out_embed_dim"], "point": sizes });
        let config = Config::from_json(&config.to_string()).unwrap();
        let weights = Weights::open(&folder.join("point.safetensors")).unwrap();
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
                    tally.floats(name, &received, expected.floats(), width, LIMIT);
                }
            }
        }
        tally.finish();
    }
    if !found {
        say("skipped: the point-cloud encoder (no such folder here)");
    }
}

fn whole(tensor: &Tensor) -> Vec<i64> {
    tensor.flatten_all().unwrap().to_vec1::<u32>().unwrap().into_iter().map(i64::from).collect()
}
