//! A tiny segmenter on drawn squares and discs: what it learns, what stays, what is left out.

use std::fs;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::{SegmentationRecipe, SegmentationTask};
use crate::media::LabelMap;
use crate::models::learning::{Values, read};
use crate::models::segmenter::is_decoder;
use crate::models::weights::Weights;
use crate::train::schedule::Cosine;
use crate::train::task::Task;
use crate::train::{Machine, Plan, Stop, run};

/// Draws a picture: ground is 1, squares are 2 and reddish, discs are 3 and bluish, a border says nothing.
fn draw(root: &Path, split: &str, name: &str, random: &mut Pcg64) {
    let (width, height) = (random.random_range(36..56usize), random.random_range(36..56usize));
    let (mut labels, mut data) = (vec![1u8; width * height], Vec::new());
    for label in [2u8, 3] {
        let radius = random.random_range(6..12usize);
        let (x, y) = (random.random_range(0..width), random.random_range(0..height));
        for (at, pixel) in labels.iter_mut().enumerate() {
            let (dx, dy) = ((at % width).abs_diff(x), (at / width).abs_diff(y));
            let within = if label == 2 { dx.max(dy) <= radius } else { dx * dx + dy * dy <= radius * radius };
            *pixel = if within { label } else { *pixel };
        }
    }
    for (at, pixel) in labels.iter_mut().enumerate() {
        let (x, y) = (at % width, at / width);
        if x == 0 || y == 0 || x + 1 == width || y + 1 == height {
            *pixel = 0;
        }
        let mut colour = [0; 3].map(|_: u8| random.random_range(60..120u8));
        match *pixel {
            2 => colour[0] += 110,
            3 => colour[2] += 110,
            _ => {}
        }
        data.extend(colour);
    }
    let picture = [format!("P6\n{width} {height}\n255\n").into_bytes(), data].concat();
    fs::write(root.join(format!("images/{split}/{name}.ppm")), picture).unwrap();
    let map = LabelMap { width, height, labels };
    fs::write(root.join(format!("annotations/{split}/{name}.png")), map.png().unwrap()).unwrap();
}

fn desk() -> tempfile::TempDir {
    let desk = tempfile::tempdir().unwrap();
    let (root, mut random) = (desk.path().join("set"), Pcg64::seed_from_u64(5));
    for (split, count) in [("training", 24), ("validation", 8)] {
        for kind in ["images", "annotations"] {
            fs::create_dir_all(root.join(kind).join(split)).unwrap();
        }
        (0..count).for_each(|i| draw(&root, split, &format!("{i:02}"), &mut random));
    }
    desk
}

fn recipe(more: serde_json::Value) -> SegmentationRecipe {
    let mut recipe = serde_json::json!({
        "model": { "size": "tiny", "side": 32, "patch": 4, "width": 64, "depth": 2 },
        "data": "set",
        "classes": 3,
    });
    recipe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(recipe).unwrap()
}

fn plan(epochs: usize) -> Plan {
    Plan {
        seed: 3,
        epochs,
        batch: 8,
        accumulate: 1,
        rate: Cosine::constant(3e-3),
        decay: Cosine::constant(0.05),
        average: None,
        evaluate_every: epochs,
        checkpoint_every: None,
        keep: 1,
        recipe: serde_json::Value::Null,
        machine: serde_json::Value::Null,
    }
}

fn open(recipe: &SegmentationRecipe, base: &Path, epochs: usize) -> Result<SegmentationTask, Stop> {
    SegmentationTask::open(recipe, base, 3, |samples| plan(epochs).span(samples), Machine::cpu(2))
}

fn tensors(path: &Path) -> Values {
    read(&Weights::open(path).unwrap()).unwrap()
}

#[test]
fn squares_and_discs_are_learned() {
    let desk = desk();
    let epochs = 12;
    let task = open(&recipe(serde_json::json!({"drop_path": {"rate": 0.1}})), desk.path(), epochs).unwrap();
    let out = desk.path().join("out");
    let outcome = run(&task, &plan(epochs), &out, &mut |_| true).unwrap();
    // All ground would have an mIoU of about 0.28: 0.85 of the ground, nothing of the others.
    let miou = outcome.best.unwrap().0;
    assert!(miou > 0.6, "mIoU {miou}");
    for name in ["weights.safetensors", "config.json", "classes.txt", "measures.json"] {
        assert!(out.join("best").join(name).exists(), "{name}");
    }
    assert_eq!(fs::read_to_string(out.join("best/classes.txt")).unwrap(), "1\n2\n3\n");
}

#[test]
fn a_decoder_that_learns_alone_leaves_all_else_as_it_was() {
    let desk = desk();
    let first = open(&recipe(serde_json::json!({})), desk.path(), 1).unwrap();
    run(&first, &plan(1), &desk.path().join("before"), &mut |_| true).unwrap();
    // It goes on with a classifier's file; here the decoder's tensors are taken out of a segmenter's.
    let mut before = tensors(&desk.path().join("before/best/weights.safetensors"));
    before.retain(|name, _| !name.starts_with("decoder."));
    let bytes = crate::models::learning::write(&before, Default::default()).unwrap();
    fs::write(desk.path().join("before.safetensors"), bytes).unwrap();
    let more =
        serde_json::json!({"learn": "head", "start": {"weights": "before.safetensors"}, "blockwise": true});
    let task = open(&recipe(more), desk.path(), 1).unwrap();
    assert!(task.variables().keys().all(|name| is_decoder(name)));
    run(&task, &plan(1), &desk.path().join("out"), &mut |_| true).unwrap();
    let best = tensors(&desk.path().join("out/best/weights.safetensors"));
    for (name, (_, values)) in &before {
        let same = values.iter().map(|v| v.to_bits()).eq(best[name].1.iter().map(|v| v.to_bits()));
        assert_eq!(same, !is_decoder(name), "{name}");
    }
    assert!(best.contains_key("decoder.near.weight"));
}

#[test]
fn bad_pairs_are_left_out_and_others_take_their_places() {
    let desk = desk();
    let root = desk.path().join("set");
    let task = open(&recipe(serde_json::json!({})), desk.path(), 1).unwrap();
    assert_eq!((task.samples(), task.train().pixels.len()), (24, 3));
    // Behind its header it is broken: that is found when it is read.
    let path = root.join("images/training/03.ppm");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let samples: Vec<u32> = (0..8).collect();
    let batch = task.prepare(crate::train::data::Order::new(0), &samples).unwrap();
    assert!(task.spoiled(&batch).len() == 1 && task.spoiled(&batch)[0].contains("03.ppm"));
    let places = task.places(&batch);
    assert!(places.len() == 8 && places[3] == places[4] && places[3].ends_with("04.ppm"), "{places:?}");
}

#[test]
fn recipes_that_cannot_be_followed_say_why() {
    let desk = desk();
    fs::write(desk.path().join("two.txt"), "ground\nsquare\n").unwrap();
    for (more, says) in [
        (serde_json::json!({"names": "two.txt"}), "2 names"),
        (serde_json::json!({"names": "gone.txt"}), "gone.txt"),
        (serde_json::json!({"classes": 1}), "from 2 to 255"),
        (serde_json::json!({"blocks": [2]}), "0 to 1"),
        (serde_json::json!({"mask_rate": 1.5}), "rate of the mask"),
        (serde_json::json!({"augment": {"scale": [0.0, 1.0]}}), "scale"),
        (serde_json::json!({"data": "gone"}), "images/training"),
        (serde_json::json!({"drop_path": {"rate": 1.0}}), "drop rate"),
    ] {
        let refused = open(&recipe(more), desk.path(), 1).err().unwrap();
        let whole = crate::train::stop::told(&refused);
        assert!(whole.contains(says), "{says}: {whole}");
    }
    fs::remove_dir_all(desk.path().join("set/images/validation")).unwrap();
    assert!(open(&recipe(serde_json::json!({})), desk.path(), 1).unwrap().test().is_none());
    let refused = open(&recipe(serde_json::json!({"learn": "head"})), desk.path(), 1).err().unwrap();
    assert!(crate::train::stop::told(&refused).contains("validation"));
}
