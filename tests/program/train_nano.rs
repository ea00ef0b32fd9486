//! The road of `make nano`, on a few scenes: encoders that agree, a decoder that reads, an adapter that looks; what comes out is a
//! model, and a run that is killed gives the same one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use viscache::models::learning::{Values, read};
use viscache::models::weights::Weights;
use viscache::scenes::speech::speaks;

use crate::common::seed;
use crate::train::{log, stderr};
use crate::world::viscache;

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes")
}

/// `--set` of each, behind what makes a recipe of the project small.
fn command(folder: &Path, name: &str, set: &[&str]) -> Command {
    let mut command = viscache(folder);
    command.arg("train").arg(recipes().join(format!("nano-{name}.toml")));
    command.args(["--threads", "2", "--out", name]);
    set.iter().for_each(|pair| _ = command.args(["--set", pair]));
    command
}

fn trained(folder: &Path, name: &str, set: &[&str]) -> Output {
    let output = command(folder, name, set).output().unwrap();
    assert!(output.status.success(), "{name}: {}", stderr(&output));
    output
}

fn values(path: PathBuf) -> Values {
    read(&Weights::open(&path).unwrap()).unwrap()
}

fn bits(values: &Values) -> Vec<(&String, Vec<u32>)> {
    values.iter().map(|(name, (_, v))| (name, v.iter().map(|v| v.to_bits()).collect())).collect()
}

fn losses(run: &Path) -> Vec<f64> {
    log(run).iter().filter_map(|line| line["rate"].is_f64().then(|| line["loss"].as_f64())?).collect()
}

/// What of `after` is as `before` has it, by the beginning of the names.
fn kept(before: &Values, after: &Values, part: &str) -> bool {
    let of = |values: &Values| -> Vec<(String, Vec<u32>)> {
        let named = values.iter().filter(|(name, _)| name.contains(part));
        named.map(|(name, (_, v))| (name.clone(), v.iter().map(|v| v.to_bits()).collect())).collect()
    };
    !of(before).is_empty() && of(before) == of(after)
}

#[test]
fn a_small_world_becomes_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    let start = |run: &str| format!("pairs.start=\"{}\"", at(run).display());
    let told = trained(
        folder.path(),
        "vision",
        &[
            "run.epochs=2",
            "run.batch=16",
            "pairs.pictures.count=128",
            "pairs.test=64",
            "rate.warmup_epochs=0.5",
            "pairs.pictures.worlds=[{ until = 1, colours = 4, shapes = 4 }, { colours = 8, shapes = 8 }]",
        ],
    );
    assert!(stderr(&told).contains("128 pictures an epoch, drawn anew, with texts"), "{}", stderr(&told));
    let vision = values(at("vision/best/imagebind.safetensors"));
    let scale = &vision["modality_postprocessors.text.1.log_logit_scale"];
    assert!(scale.0.is_empty() && scale.1[0] != (1.0f32 / 0.07).ln(), "the scale was learned: {scale:?}");
    let (first, last) = (losses(&at("vision"))[0], losses(&at("vision"))[15]);
    assert!(last < first, "{first} {last}");

    let small = ["run.batch=32", "pairs.pictures.count=1200", "pairs.test=64", "rate.warmup_epochs=0.2"];
    let begin = start("vision/best");
    trained(folder.path(), "text", &[&small[..], &["run.epochs=1", &begin]].concat());
    let text = values(at("text/best/imagebind.safetensors"));
    assert!(kept(&vision, &text, ".vision."), "pictures' encoder does not learn");
    assert!(!kept(&vision, &text, ".text."));
    assert_eq!(text["modality_postprocessors.text.1.log_logit_scale"].1, [100f32.ln()]);
    let spoken = speaks();
    if spoken {
        let begin = start("text/best");
        let few = ["run.epochs=1", "pairs.speech.utterances=1", &begin];
        trained(folder.path(), "speech", &[&small[..], &few].concat());
        let speech = values(at("speech/best/imagebind.safetensors"));
        assert!(kept(&text, &speech, ".vision.") && kept(&text, &speech, ".text."));
        assert_eq!(speech["modality_postprocessors.audio.1.log_logit_scale"].1, [20f32.ln()]);
        assert_eq!(
            speech.len(),
            Weights::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/nano/imagebind.safetensors"))
                .unwrap()
                .names()
                .count(),
            "as many as the program has built in"
        );
    }

    trained(
        folder.path(),
        "language",
        &[
            "language.train.scenes.count=960",
            "language.test.scenes.count=40",
            "run.batch=16",
            "rate.warmup_epochs=0.2",
        ],
    );
    let losses = losses(&at("language"));
    assert!(losses[0] > 5.5 && losses[59] < 0.6 * losses[0], "{losses:?}");

    let best = if spoken { "speech/best" } else { "text/best" };
    let of = |key: &str, path: String| format!("adapter.{key}=\"{}\"", at(&path).display());
    let adapter = [
        of("encoder", format!("{best}/imagebind.safetensors")),
        of("encoder_sizes", format!("{best}/imagebind.json")),
        of("backbone", "language/best/backbone.safetensors".into()),
    ];
    let adapter: Vec<&str> = adapter.iter().map(String::as_str).collect();
    let few = ["run.epochs=1", "run.batch=16", "rate.warmup_epochs=0.2"];
    let pretrain = ["adapter.captions.scenes.count=128", "adapter.test.captions.scenes.count=16"];
    trained(folder.path(), "pretrain", &[&adapter[..], &few, &pretrain].concat());
    let begin = of("start", "pretrain/best".into());
    let finetune =
        ["adapter.instructions.scenes.count=128", "adapter.test.instructions.scenes.count=16", &begin];
    trained(folder.path(), "finetune", &[&adapter[..], &few, &finetune].concat());

    fs::create_dir(at("model")).unwrap();
    for (from, to) in [
        (format!("{best}/imagebind.safetensors"), "imagebind.safetensors"),
        (format!("{best}/imagebind.json"), "imagebind.json"),
        ("language/best/backbone.safetensors".into(), "llama.safetensors"),
        ("language/best/params.json".into(), "params.json"),
        ("language/best/tokenizer.model".into(), "tokenizer.model"),
        ("finetune/best/adapter.safetensors".into(), "adapter.safetensors"),
    ] {
        fs::copy(at(&from), at("model").join(to)).unwrap();
    }
    let few = [
        "evaluate",
        "nano",
        "--pictures",
        "64",
        "--queries",
        "4",
        "--no-speech",
        "--json",
        "--model",
        "model",
    ];
    let told = viscache(folder.path()).args(few).output().unwrap();
    assert!(told.status.success(), "{}", stderr(&told));
    assert_eq!(String::from_utf8(told.stdout).unwrap().lines().count(), 7);
    // The same files are a decoder, as `--decoder` takes it.
    let asked = viscache(folder.path())
        .args(["ask", "--store", "none", "--model", "nano", "--no-cache", "--text", "a red circle"])
        .args(["--decoder", "model/llama.safetensors", "--adapter", "model/adapter.safetensors"])
        .args(["--temperature", "0", "What colour is the object?"])
        .output()
        .unwrap();
    assert!(asked.status.success(), "{}", stderr(&asked));
}

/// Killed at random moments, and gone on with: the same weights, bit for bit.
#[test]
fn encoders_that_are_killed_become_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let set = [
        "run.epochs=2",
        "run.batch=8",
        "run.checkpoint_every=2",
        "pairs.pictures.count=64",
        "pairs.test=16",
        "rate.warmup_epochs=0.5",
    ];
    let begun = std::time::Instant::now();
    trained(folder.path(), "vision", &set);
    let whole = begun.elapsed();
    let expected = values(folder.path().join("vision/best/weights.safetensors"));
    fs::rename(folder.path().join("vision"), folder.path().join("undisturbed")).unwrap();
    let mut random = Pcg64::seed_from_u64(seed());
    for _ in 0..4 {
        let mut child = command(folder.path(), "vision", &set)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole.mul_f64(random.random_range(0.1..0.8)).min(Duration::from_secs(20)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    trained(folder.path(), "vision", &set);
    let again = values(folder.path().join("vision/best/weights.safetensors"));
    assert_eq!(bits(&again), bits(&expected));
}

#[test]
fn recipes_of_scenes_that_cannot_be_followed_say_why() {
    let folder = tempfile::tempdir().unwrap();
    for (name, set, says) in [
        ("vision", &["pairs.learns=[\"audio\"]"][..], "`image`, and `text` or `audio`"),
        ("vision", &["pairs.learns=[]"], "`image`, and `text` or `audio`"),
        (
            "vision",
            &["pairs.learns=[\"text\"]"],
            "`worlds` and `noise` are for pictures whose encoder learns",
        ),
        ("vision", &["pairs.scale=0"], "above 0, and 100 at most"),
        ("vision", &["pairs.pictures.worlds=[{ colours = 9, shapes = 1 }]"], "from 1 to 8"),
        ("vision", &["pairs.speech={ utterances = 1 }"], "name one of them"),
        ("vision", &["pairs.texts.wording=\"loud\""], "loud"),
        ("vision", &["pairs.pictures.count=5"], "is there a full batch of data"),
        ("text", &["pairs.start=nowhere"], "nowhere"),
        ("speech", &["run.batch=113"], "112"),
        ("speech", &["pairs.speech.silence=2.5"], "from 0 to 2"),
        ("speech", &["pairs.learns=[\"audio\", \"image\"]"], "name their encoder by `start`"),
        ("language", &["language.model=none.json"], "language.tokenizer"),
        ("language", &["language.prompt_weight=2"], "a number from 0 to 1"),
        ("language", &["language.train.scenes.count=0"], "nothing to learn from"),
        ("language", &["language.train.paths=[\"a.json\"]"], "name `paths` or `scenes`"),
        ("language", &["language.length=9999"], "no more than the decoder has positions for"),
    ] {
        let refused = command(folder.path(), name, set).output().unwrap();
        let told = stderr(&refused);
        assert!(!refused.status.success() && told.contains(says), "{name} {set:?}: {told}");
        assert!(!folder.path().join(name).join("log.jsonl").exists(), "nothing is begun");
    }
}
