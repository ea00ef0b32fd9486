//! What needs no store: evaluation of the built-in model, decoders asked by themselves, files that are only looked at.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::common::{self, of_one_root, roots};

fn viscache(arguments: &[&str]) -> Output {
    // Settings of whoever runs the tests do not count.
    let folder = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_viscache")).args(arguments).current_dir(folder.path()).output().unwrap()
}

fn said(arguments: &[&str]) -> String {
    let output = viscache(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let output = viscache(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_cache_lifts_texts_and_leaves_pictures() {
    let few = ["evaluate", "nano", "--pictures", "1000", "--queries", "40", "--no-speech"];
    let lines = said(&[&few[..], &["--json"]].concat());
    let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let row = |name: &str| rows.iter().find(|row| row["queries"] == name).unwrap();
    let all = |row: &Value, side: &str| row[side]["all"].as_f64().unwrap();
    // Recorded with 20 000 pictures and 500 queries: text 0.02 → 0.68, pictures 0.68 → 0.66. Fewer of both blur it.
    let text = row("text, test");
    assert!(all(text, "off") < 0.2 && all(text, "on") > 0.35, "{text}");
    assert!(text["gain_interval"][0].as_f64().unwrap() > 0.1, "{text}");
    let picture = row("image, test");
    assert!(all(picture, "off") > 0.5 && all(picture, "on") > 0.4, "{picture}");
    for side in ["off", "on"] {
        let colour = picture[side]["attributes"]["colour"].as_f64().unwrap();
        assert!(colour > 0.9, "{picture}");
        let range = &picture[side]["interval"];
        assert!(
            range[0].as_f64().unwrap() <= all(picture, side)
                && all(picture, side) <= range[1].as_f64().unwrap()
        );
    }
    let table = said(&few);
    assert!(
        table.contains("image, pairs never seen") && table.contains("gain") && table.contains("CLIP's gap"),
        "{table}"
    );
    assert!(refused(&["evaluate", "nano", "--pictures", "3"]).contains("fewer than the 10"));
}

#[test]
fn an_encoder_without_a_gap_gains_nothing() {
    let Some([overlay]) = of_one_root(["nano/text_joint.safetensors"]) else {
        return common::say("skipped: the overlays are not here");
    };
    let arguments =
        ["evaluate", "nano", "--pictures", "1000", "--queries", "60", "--no-speech", "--json", "--overlay"];
    let lines = said(&[&arguments[..], &[overlay.to_str().unwrap()]].concat());
    let text: Value = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .find(|row| row["queries"] == "text, test")
        .unwrap();
    assert!(text["off"]["all"].as_f64().unwrap() > 0.4 && text["gain"].as_f64().unwrap() < 0.15, "{text}");
    let other = overlay.with_file_name("adapter.safetensors");
    let refused = refused(&[&arguments[..], &[other.to_str().unwrap()]].concat());
    assert!(refused.contains("no place for"), "{refused}");
}

#[test]
fn models_alone_need_no_store() {
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/assets/sign.png");
    let picture = picture.to_str().unwrap();
    let ask =
        ["ask", "--store", "none", "--model", "nano", "--image", picture, "Generate caption of this image"];
    assert!(said(&[&ask[..], &["--no-cache"]].concat()).contains("background"));
    assert!(refused(&ask).contains("CACHE_NOT_FOUND"));
    let odd = [&ask[..], &["--no-cache", "--chat", "v1", "--said", "Hi"]].concat();
    assert!(refused(&odd).contains("given 1 times"));
    assert!(refused(&["serve", "--store", "none", "--writable"]).contains("name the store"));
}

#[test]
fn files_are_looked_at_before_they_are_read() {
    for root in roots() {
        let folder = root.join("llama_adapter_v2/chat65b_tiny");
        let tokenizer = root.join("imagebind_llm_decoder/tokenizer.model");
        if !folder.join("tuned.pth").exists() || !tokenizer.exists() {
            continue;
        }
        let (backbone, tuned) = (folder.join("llama"), folder.join("tuned.pth"));
        let files = [
            "convert",
            "--dry-run",
            "--decoder",
            backbone.to_str().unwrap(),
            "--adapter",
            tuned.to_str().unwrap(),
            "--tokenizer",
            tokenizer.to_str().unwrap(),
        ];
        let sizes: Value = serde_json::from_str(&said(&files)).unwrap();
        assert_eq!((&sizes["family"], &sizes["max_seq_len"]), (&"v2-chat".into(), &2048.into()));
        // The tuned tensors of one program are not those of another's backbone.
        let other = root.join("llama_adapter_v2/mm_tiny_lora/llama");
        if other.exists() {
            let mut mixed = files;
            mixed[3] = other.to_str().unwrap();
            let refused = refused(&mixed);
            assert!(refused.contains("do not make a decoder"), "{refused}");
        }
    }
}
