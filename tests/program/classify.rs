//! Classifiers by the command line: pictures judged, caches of their features.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use serde_json::Value;
use tempfile::TempDir;
use viscache::media::augment::Evaluation;
use viscache::media::{Limits, Orientation};
use viscache::models::Placement;
use viscache::models::illama::Illama;
use viscache::models::weights::Weights;

use crate::classifier;
use crate::programs::programs;
use crate::store::scene;
use crate::world::{expect, lines, viscache};

/// What the certain model says of every picture.
const PROBABILITIES: [f32; 6] = [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125];

/// A folder with two classifiers of six classes and some pictures.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Desk { folder: TempDir::new().unwrap() };
        classifier::write(&desk.path("random.safetensors"), &classifier::small(6));
        classifier::write_certain(&desk.path("certain.safetensors"), &PROBABILITIES);
        for i in 0..3 {
            desk.put(&format!("{i}.png"), &scene(i));
        }
        desk.put("broken.png", b"no picture");
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// Runs a command line, expecting an exit code.
    fn run(&self, code: i32, line: &str) -> Output {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        expect(code, &arguments, viscache(self.folder.path()).args(&arguments).output().unwrap())
    }

    fn json(&self, code: i32, line: &str) -> Vec<Value> {
        lines(&self.run(code, &format!("{line} --json")))
    }

    fn refused(&self, line: &str) -> String {
        String::from_utf8(self.run(1, line).stderr).unwrap()
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Probabilities of a picture, best first, not by the code under test.
fn expected(weights: &Path, picture: &[u8]) -> Vec<(u64, f64)> {
    let config = classifier::small(6);
    let model = Illama::load(&Weights::open(weights).unwrap(), &config, &Placement::cpu()).unwrap();
    let evaluation = Evaluation { orientation: Orientation::Apply, ..Evaluation::new(32) };
    let values = evaluation.prepare_bytes(picture, &Limits::default()).unwrap();
    let picture = Tensor::from_vec(values, (1, 3, 32, 32), &Device::Cpu).unwrap();
    let logits = model.forward(&picture, 0.0).unwrap().logits.to_vec2::<f32>().unwrap().remove(0);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    let mut all: Vec<(u64, f64)> =
        (0..).zip(logits.iter().map(|&logit| f64::from(logit).exp() / sum)).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all
}

#[test]
fn pictures_are_taken_for_what_the_network_takes_them_for() {
    let desk = Desk::new();
    let shown = desk.json(0, "classify --model illama --weights random.safetensors 0.png 1.png 2.png");
    assert_eq!(shown.len(), 3);
    for (i, shown) in shown.iter().enumerate() {
        assert_eq!(shown["picture"], format!("{i}.png"));
        let classes = shown["classes"].as_array().unwrap();
        assert_eq!(classes.len(), 5);
        for (shown, (class, probability)) in
            classes.iter().zip(expected(&desk.path("random.safetensors"), &scene(i)))
        {
            assert_eq!(shown["class"], class);
            assert!(
                (shown["probability"].as_f64().unwrap() - probability).abs() < 1e-6,
                "{shown} {probability}"
            );
        }
    }
    // By names, from each kind of file; the settings may come from the environment.
    desk.put("names.txt", b"n01440764 tench\nn01443537 goldfish\na\nb\nc\nd\n");
    desk.put("names.json", br#"{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"], "2": ["x", "a"], "3": ["x", "b"], "4": ["x", "c"], "5": ["x", "d"]}"#);
    for labels in ["names.txt", "names.json"] {
        let line = format!("classify --top 2 --labels {labels} 0.png");
        let mut command = viscache(desk.folder.path());
        command.env("VISCACHE_MODEL", "illama").env("VISCACHE_WEIGHTS", "certain.safetensors");
        let output = command.args(line.split_whitespace()).output().unwrap();
        assert_eq!(text(expect(0, &[&line], output).stdout), "0.png\n  0.5000  tench\n  0.2500  goldfish\n");
    }
    let numbers = "classify --model illama --weights certain.safetensors --top 1 0.png";
    assert_eq!(text(desk.run(0, numbers).stdout), "0.png\n  0.5000  class 0\n");
    // 8 bits are near.
    let eight =
        &desk.json(0, "classify --model illama --weights random.safetensors --encoder-dtype q8_0 0.png")[0];
    let [eight, full] = [eight, &shown[0]].map(|shown| shown["classes"][0]["probability"].as_f64().unwrap());
    assert!((eight - full).abs() < 0.02 && eight != full, "{eight} {full}");
}

#[test]
fn a_bad_picture_is_named_and_the_others_are_judged() {
    let desk = Desk::new();
    let line = "classify --model illama --weights certain.safetensors 0.png broken.png missing.png 1.png";
    let output = desk.run(3, line);
    let (out, errors) = (text(output.stdout), text(output.stderr));
    assert!(out.starts_with("0.png\n") && out.contains("\n1.png\n"), "{out}");
    assert!(
        errors.contains("broken.png: not a readable image") && errors.contains("missing.png cannot be read"),
        "{errors}"
    );
    let shown = desk.json(3, line);
    let bad: Vec<bool> = shown.iter().map(|shown| shown.get("error").is_some()).collect();
    assert_eq!(bad, [false, true, true, false]);
    let small = "--config small.toml classify --model illama --weights certain.safetensors 0.png";
    desk.put("small.toml", b"[limits]\nmax_image_side = 95\n");
    assert!(text(desk.run(3, small).stderr).contains("96×96"), "limits are those of the settings");
}

#[test]
fn a_model_that_is_not_there_is_explained() {
    let desk = Desk::new();
    for (line, says) in [
        ("classify 0.png", "--model illama-base --weights FILE"),
        ("classify --model nano 0.png", "--model illama-base --weights FILE"),
        ("classify --weights random.safetensors 0.png", "--model illama-base --weights FILE"),
        ("classify --model illama-base 0.png", "--model illama-base needs --weights"),
        ("embed --store none --model illama --image 0.png", "--model illama needs --weights"),
        ("classify --model illama-huge --weights random.safetensors 0.png", "illama-small"),
        ("classify --model nano --weights random.safetensors 0.png", "--weights is of a network"),
        ("classify --model illama-base --weights random.safetensors 0.png", "width 64, 2 blocks of 1 heads"),
        ("classify --model illama-base --weights random.safetensors 0.png", "illama-base has width 768"),
        ("classify --model illama --weights absent.pth 0.png", "absent.pth"),
        ("classify --model illama --weights broken.png 0.png", "neither safetensors nor a zip-format .pth"),
        (
            "classify --model illama --weights random.safetensors --labels broken.png 0.png",
            "names 1 classes, and the model has 6",
        ),
        ("embed --store none --model random.safetensors --image 0.png", "is an iLLaMA; name its size"),
        ("embed --store none --weights random.safetensors --image 0.png", "is an iLLaMA; name its size"),
    ] {
        let errors = desk.refused(line);
        assert!(errors.contains(says), "{line}: {errors}");
    }
    desk.run(2, "classify --model illama --weights random.safetensors");
    desk.run(2, "classify --model illama --weights random.safetensors --top 0 0.png");
}

#[test]
fn a_cache_of_features_is_built_searched_and_refuses_other_queries() {
    let desk = Desk::new();
    for i in 0..8 {
        desk.put(&format!("photos/{i}.png"), &scene(i));
    }
    let build =
        "build --store store --cache features --images photos --model illama --weights random.safetensors";
    let output = Command::new(programs().join("index-builder"))
        .current_dir(desk.folder.path())
        .args(build.split_whitespace())
        .output()
        .unwrap();
    expect(0, &[build], output);
    // The cache says which model made it.
    let found = &desk.json(0, "search --store store --image 2.png --top-k 3")[0];
    let best = &found["neighbors"][0];
    assert!(best["uri"].as_str().unwrap().ends_with("2.png"), "{found}");
    assert!((best["score"].as_f64().unwrap() - 1.0).abs() < 1e-4, "{found}");
    let named = "search --store store --model illama --weights random.safetensors --image 2.png --top-k 3";
    assert_eq!(&desk.json(0, named)[0], found);
    desk.run(0, "embed --store store --image 2.png --out row.npy");
    desk.run(3, "search --store store --text cat");
    for other in ["--model nano", "--model illama --weights certain.safetensors"] {
        let errors = desk.refused(&format!("search --store store --cache features {other} --image 2.png"));
        assert!(errors.contains("model weights differ"), "{errors}");
    }
    let turned = desk.refused("search --store store --cache features --orientation reference --image 2.png");
    assert!(turned.contains("preprocessing differs"), "{turned}");
}
