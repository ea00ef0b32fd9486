//! Classifiers by the command line: pictures judged, whole folders measured, caches of their features.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
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
    assert!(!errors.contains("missing.png: missing.png"), "it is named once: {errors}");
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

/// Pictures of the classes 0 (three), 1 (one) and 5 (one), among six.
fn labelled(desk: &Desk) {
    for (i, name) in ["a/0.png", "a/1.png", "a/2.png", "b/0.png", "f/0.png"].iter().enumerate() {
        desk.put(&format!("val/{name}"), &scene(i));
    }
    for class in ["c", "d", "e"] {
        std::fs::create_dir_all(desk.path("val").join(class)).unwrap();
    }
}

#[test]
fn accuracy_and_calibration_are_those_counted_by_hand() {
    let desk = Desk::new();
    labelled(&desk);
    let line = "evaluate accuracy val --model illama --weights certain.safetensors";
    let figures = &desk.json(0, &format!("{line} --eight-bits --out figures"))[0];
    let near = |value: &Value, expected: f64| {
        assert!((value.as_f64().unwrap() - expected).abs() < 1e-5, "{value} {expected}")
    };
    assert_eq!(
        (&figures["pictures"], &figures["classes"], &figures["bad"]),
        (&json!(5), &json!(6), &json!(0))
    );
    assert_eq!(figures["same"], 1.0);
    for (measured, numbers) in figures["measured"].as_array().unwrap().iter().zip(["f32", "q8_0"]) {
        assert_eq!(measured["numbers"], numbers);
        // Always class 0, of half the confidence: right of three in five. Of the six classes the last is the sixth best.
        near(&measured["top_1"], 0.6);
        near(&measured["top_5"], 0.8);
        near(&measured["ece"], 0.1);
        let bins = measured["bins"].as_array().unwrap();
        let filled: Vec<usize> = (0..15).filter(|&bin| bins[bin]["pictures"] != 0).collect();
        assert_eq!((filled, bins.len()), (vec![7], 15));
        near(&bins[7]["accuracy"], 0.6);
    }
    let stored: Value =
        serde_json::from_slice(&std::fs::read(desk.path("figures/accuracy.json")).unwrap()).unwrap();
    assert_eq!(&stored, figures);
    for (file, numbers) in [("reliability.svg", "f32"), ("reliability-q8_0.svg", "q8_0")] {
        let svg = std::fs::read_to_string(desk.path("figures").join(file)).unwrap();
        assert!(svg.contains(&format!("certain, 5 pictures, {numbers}, ECE 0.1000")), "{svg}");
    }
    let table = text(desk.run(0, line).stdout);
    assert!(
        table.contains("5 pictures of 6 classes") && table.contains("0.6000   0.8000   0.1000"),
        "{table}"
    );
    assert!(!table.contains("same"), "{table}");

    // What cannot be judged is named and not counted.
    desk.put("val/b/broken.png", b"no picture");
    let output = desk.run(3, &format!("{line} --json"));
    let errors = text(output.stderr.clone());
    assert!(
        errors.contains("broken.png: not a readable image") && errors.contains("1 pictures could not"),
        "{errors}"
    );
    assert!(errors.contains("classes without pictures: 3"), "{errors}");
    let figures = &lines(&output)[0];
    assert_eq!((&figures["pictures"], &figures["bad"]), (&json!(5), &json!(1)));
    near(&figures["measured"][0]["top_1"], 0.6);
}

#[test]
fn folders_that_say_nothing_are_refused() {
    let desk = Desk::new();
    desk.put("few/a/0.png", &scene(0));
    desk.put("few/b/0.png", &scene(1));
    desk.put("one/a/0.png", &scene(0));
    desk.put("splits/val/a/0.png", &scene(0));
    desk.put("broken/a/0.png", b"no picture");
    desk.put("broken/b/0.png", b"no picture");
    std::fs::create_dir(desk.path("empty")).unwrap();
    desk.put("names.txt", b"z\ny\nx\na\nw\nb\n");
    let model = "--model illama --weights certain.safetensors";
    for (line, says) in [
        ("evaluate accuracy few", "few has 2 classes, and the model has 6; name all"),
        ("evaluate accuracy one", "one class only"),
        ("evaluate accuracy empty", "empty has nothing"),
        ("evaluate accuracy absent", "absent"),
        ("evaluate accuracy splits", "val"),
        ("evaluate accuracy broken --labels names.txt", "none of the 2 pictures"),
    ] {
        let errors = desk.refused(&format!("{line} {model}"));
        assert!(errors.contains(says), "{line}: {errors}");
    }
    // With the names of all classes, two of them can be measured on: `a` is class 3 there and `b` class 5.
    let figures = &desk.json(0, &format!("evaluate accuracy few --labels names.txt {model}"))[0];
    assert_eq!(
        (&figures["measured"][0]["top_1"], &figures["measured"][0]["top_5"]),
        (&json!(0.0), &json!(0.5))
    );
}

#[test]
fn batches_of_cifar_are_measured_on() {
    let desk = Desk::new();
    let probabilities: Vec<f32> = (1..=10).map(|i| i as f32 / 55.0).collect();
    classifier::write_certain(&desk.path("ten.safetensors"), &probabilities);
    let record = |label: u8| [&[label][..], &[label; 3072]].concat();
    desk.put("cifar/test_batch.bin", &[9u8, 9, 3, 5].map(record).concat());
    let figures = &desk.json(0, "evaluate accuracy cifar --model illama --weights ten.safetensors")[0];
    let measured = &figures["measured"][0];
    assert_eq!((&measured["top_1"], &measured["top_5"]), (&json!(0.5), &json!(0.75)));
    let errors = desk.refused("evaluate accuracy cifar --model illama --weights certain.safetensors");
    assert!(errors.contains("10 classes, and the model has 6"), "{errors}");
}

#[test]
fn shape_and_texture_are_told_apart() {
    let desk = Desk::new();
    desk.put("groups.json", br#"{"cat": [0, 1], "clock": [2], "dog": [3, 4, 5]}"#);
    // The certain model says cat, whatever it is shown.
    for (i, name) in [
        "cat/cat1-clock1.png",
        "cat/cat2-dog1.png",
        "clock/clock1-cat1.png",
        "dog/dog1-clock2.png",
        "dog/dog2-dog1.png",
        "dog/clock3-cat3.png",
        "cat/photo.png",
        "cat/cat7-fish1.png",
    ]
    .iter()
    .enumerate()
    {
        desk.put(&format!("cues/{name}"), &scene(i));
    }
    let line =
        "evaluate shape-texture cues --groups groups.json --model illama --weights certain.safetensors";
    let figures = &desk.json(0, line)[0];
    let counts =
        |of: &Value| [&of["shape"], &of["texture"], &of["neither"]].map(|count| count.as_u64().unwrap());
    assert_eq!(counts(&figures["all"]), [2, 1, 1]);
    assert_eq!(figures["all"]["shape_bias"], 2.0 / 3.0);
    assert_eq!(counts(&figures["shapes"]["cat"]), [2, 0, 0]);
    assert_eq!(counts(&figures["shapes"]["clock"]), [0, 1, 0]);
    assert_eq!(figures["shapes"]["dog"]["shape_bias"], Value::Null);
    let left_out =
        [&figures["pictures"], &figures["agreeing"], &figures["unnamed"]].map(|n| n.as_u64().unwrap());
    assert_eq!(left_out, [4, 1, 3]);
    let output = desk.run(0, line);
    let (table, errors) = (text(output.stdout), text(output.stderr));
    assert!(table.contains("0.667") && table.contains("1 whose cues agree"), "{table}");
    assert!(errors.contains("3 pictures whose names are not as"), "{errors}");
    desk.put("cues/dog/dog9-cat9.png", b"no picture");
    let output = desk.run(3, line);
    assert!(text(output.stderr).contains("dog9-cat9.png: not a readable image"));

    for (groups, says) in [
        (&br#"{"cat": [0], "dog": [6]}"#[..], "has the class 6, and the model has classes 0 to 5"),
        (br#"{"cat": [0]}"#, "1 groups"),
        (br#"["cat"]"#, "other.json"),
        (br#"{"boat": [0], "car": [1]}"#, "cannot be measured on"),
    ] {
        desk.put("other.json", groups);
        let errors = desk.refused(&line.replace("groups.json", "other.json"));
        assert!(errors.contains(says), "{errors}");
    }
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
