//! `viscache train`: what is learned, what is left out, and a run that is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::Value;

use crate::common::seed;
use crate::programs::programs;

const SIDE: usize = 16;
const CLASSES: [&str; 3] = ["blue", "green", "red"];

/// Pictures of three colours on noise.
fn pictures(root: &Path, each: usize, seed: u64) {
    let mut random = Pcg64::seed_from_u64(seed);
    for (class, name) in CLASSES.iter().enumerate() {
        fs::create_dir_all(root.join(name)).unwrap();
        for i in 0..each {
            let mut bytes = format!("P6\n{SIDE} {SIDE}\n255\n").into_bytes();
            for _ in 0..SIDE * SIDE {
                let mut pixel = [0; 3].map(|_: u8| random.random_range(0..120u8));
                pixel[2 - class] += 100;
                bytes.extend(pixel);
            }
            fs::write(root.join(name).join(format!("{i:03}.ppm")), bytes).unwrap();
        }
    }
}

const RECIPE: &str = r#"
[run]
seed = 3
epochs = 4
batch = 4
accumulate = 2
average = 0.9
checkpoint_every = 2

[rate]
from = 2e-3
to = 1e-5
warmup_epochs = 1

[decay]
from = 0.05

[illama]
model = { size = "tiny", side = 16, patch = 4, width = 64, depth = 2 }
train = { folder = "train" }
test = { folder = "test" }
mask = { rate = 1.0, mode = "soft", schedule = "linear", cutoff_epoch = 2 }
drop_path = { rate = 0.2 }
mixup = { mixup_alpha = 0.2, cutmix_alpha = 0.5 }
augment = { area = [0.5, 1.0] }
"#;

struct Run {
    folder: tempfile::TempDir,
}

impl Run {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        pictures(&folder.path().join("train"), 16, 1);
        pictures(&folder.path().join("test"), 6, 2);
        fs::write(folder.path().join("recipe.toml"), RECIPE).unwrap();
        Run { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, out: &str, threads: usize, more: &[&str]) -> Command {
        let mut command = Command::new(programs().join("viscache"));
        command.arg("train").arg(self.path("recipe.toml")).arg("--out").arg(self.path(out));
        command.arg("--threads").arg(threads.to_string()).args(more);
        command
    }

    fn run(&self, out: &str, more: &[&str]) -> Output {
        self.command(out, 2, more).output().unwrap()
    }

    /// All files that a run's numbers are in, of its last checkpoint and of its best weights.
    fn numbers(&self, out: &str) -> Vec<(String, Vec<u8>)> {
        let last = last(&self.path(out));
        let of = |folder: &Path, name: &str| (name.to_owned(), fs::read(folder.join(name)).unwrap());
        let mut files: Vec<_> = ["weights", "moments", "average"]
            .iter()
            .map(|name| of(&last, &format!("{name}.safetensors")))
            .collect();
        files.push(of(&last, "run.json"));
        files.push(of(&self.path(out).join("best"), "weights.safetensors"));
        files
    }
}

pub(crate) fn last(out: &Path) -> PathBuf {
    let names = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("step-")).max().unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn log(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn colours_are_learned_and_the_weights_are_a_model() {
    let run = Run::new();
    let more = [
        "--set",
        "run.epochs=20",
        "--set",
        "illama.mixup.probability=0.0",
        "--set",
        "illama.augment.operations=0",
    ];
    let done = run.run("out", &more);
    assert!(done.status.success(), "{}", stderr(&done));
    let log = log(&run.path("out"));
    let losses: Vec<f64> =
        log.iter().filter_map(|line| line["loss"].as_f64().filter(|_| line["rate"].is_f64())).collect();
    assert_eq!(losses.len(), 20 * 6);
    let tested: Vec<&Value> = log.iter().filter(|line| line["top1"].is_f64()).collect();
    assert_eq!(tested.len(), 2 * 20, "every epoch, and the average");
    assert!(tested.iter().any(|line| line["top1"].as_f64().unwrap() > 0.8), "{tested:?}");
    assert!(tested.iter().all(|line| line["tested"] == 18.0));
    let best = run.path("out/best");
    for name in ["weights.safetensors", "config.json", "classes.txt", "measures.json"] {
        assert!(best.join(name).exists(), "{name}");
    }
    assert_eq!(fs::read_to_string(best.join("classes.txt")).unwrap(), "blue\ngreen\nred\n");
    let steps = fs::read_dir(run.path("out"))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("step-"));
    assert_eq!(steps.count(), 3, "the last three stay");
    // Done is done.
    let again = run.run("out", &more);
    assert!(
        again.status.success() && stderr(&again).contains("goes on after step 120 of 120"),
        "{}",
        stderr(&again)
    );
}

/// A probe of what another run left: its head learns, and `best` is a whole model.
#[test]
fn a_head_alone_is_taught_by_a_recipe() {
    let run = Run::new();
    let done = run.run("first", &["--set", "run.epochs=2"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let recipe = RECIPE.lines().filter(|line| {
        !["mask =", "drop_path =", "mixup =", "augment ="].iter().any(|key| line.starts_with(key))
    });
    let recipe = recipe.collect::<Vec<_>>().join("\n") + "\nlearn = \"head\"\n";
    fs::write(run.path("recipe.toml"), recipe + "start = { weights = \"first/best/weights.safetensors\" }\n")
        .unwrap();
    let more = ["--set", "run.epochs=20", "--set", "rate.from=2e-2"];
    let done = run.run("probe", &more);
    assert!(done.status.success(), "{}", stderr(&done));
    let best = run.path("probe/best");
    let mut classify = Command::new(programs().join("viscache"));
    classify.args(["evaluate", "accuracy", "test", "--model", "illama", "--json", "--weights"]);
    classify.arg(best.join("weights.safetensors")).arg("--sizes").arg(best.join("config.json"));
    let output = classify.current_dir(run.folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(figures["measured"][0]["top_1"].as_f64().unwrap() > 0.6, "{figures}");
    let refused = run.run("other", &["--set", "illama.drop_path.rate=0.1"]);
    assert!(stderr(&refused).contains("leave out `mask` and `drop_path`"), "{}", stderr(&refused));
}

/// Killed at random moments, it ends at the same bits.
#[test]
fn a_run_that_is_killed_ends_at_the_same_weights() {
    let run = Run::new();
    let whole = run.run("whole", &[]);
    assert!(whole.status.success(), "{}", stderr(&whole));
    let mut random = Pcg64::seed_from_u64(seed());
    let (mut kills, mut gone_on) = (0, 0);
    let killed = run.path("killed");
    for attempt in 0.. {
        let mut child =
            run.command("killed", 2, &[]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        // Long enough to come further now and then, and mostly not to the end.
        std::thread::sleep(Duration::from_millis(random.random_range(5..60 + 40 * attempt)));
        let ended = child.try_wait().unwrap();
        if ended.is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        let output = child.wait_with_output().unwrap();
        gone_on += usize::from(stderr(&output).contains("goes on after step"));
        if ended.is_some() {
            assert!(output.status.success(), "{}", stderr(&output));
            if kills >= 10 {
                break;
            }
            // Too quick: from the beginning.
            fs::remove_dir_all(&killed).unwrap();
        }
        assert!(attempt < 400, "it never comes to its end");
    }
    assert!(gone_on > 0, "{kills} kills, and it began anew each time");
    for ((name, expected), (_, received)) in run.numbers("whole").iter().zip(run.numbers("killed")) {
        assert!(*expected == received, "{name} differs after {kills} kills");
    }
    let names = fs::read_dir(&killed).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_str().unwrap().ends_with(".part")));
    // Every step stands in the log once.
    let steps: Vec<u64> = log(&killed)
        .iter()
        .filter(|line| line["rate"].is_f64())
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=24).collect::<Vec<u64>>());
}

#[test]
fn an_interrupted_run_is_gone_on_with_and_another_recipe_is_not() {
    let run = Run::new();
    let one = ["--set", "run.epochs=1", "--set", "illama.mask.cutoff_epoch=1"];
    let other = run.run("out", &one);
    assert!(other.status.success(), "{}", stderr(&other));
    let refused = run.run("out", &["--set", "rate.from=1e-2"]);
    assert!(!refused.status.success());
    let said = stderr(&refused);
    assert!(said.contains("`recipe.") && said.contains("take another folder"), "{said}");
    let refused = run.command("out", 1, &one).output().unwrap();
    assert!(
        !refused.status.success() && stderr(&refused).contains("machine.threads"),
        "{}",
        stderr(&refused)
    );
    // A checkpoint with another byte is refused by its name.
    let weights = last(&run.path("out")).join("moments.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let refused = run.run("out", &one);
    assert!(
        !refused.status.success() && stderr(&refused).contains("moments.safetensors is not what was written")
    );
}

#[test]
fn bad_pictures_are_named_and_left_out() {
    let run = Run::new();
    fs::write(run.path("train/red/broken.png"), b"\x89PNG\r\n\x1a\nno picture").unwrap();
    fs::write(run.path("train/red/empty.jpg"), b"").unwrap();
    fs::write(run.path("train/notes.txt"), b"x").unwrap();
    let done = run.run(
        "out",
        &["--set", "run.batch=7", "--set", "run.accumulate=1", "--set", "illama.mixup.probability=0.0"],
    );
    let said = stderr(&done);
    assert!(done.status.success(), "{said}");
    assert!(said.contains("broken.png") && said.contains("empty picture files"), "{said}");
    assert!(said.contains("4 samples could not be used"), "one an epoch: {said}");
    let named = log(&run.path("out")).into_iter().filter(|line| line["left_out"].is_array()).count();
    assert_eq!(named, 4);
}

#[test]
fn recipes_that_cannot_be_followed_say_why() {
    let run = Run::new();
    for (set, says) in [
        ("run.epochs=0", "run.epochs"),
        ("run.batch=1000", "full batch"),
        ("run.batch=5", "even"),
        ("illama.mask.cutoff_epoch=9", "cutoff_epoch is 9"),
        ("illama.model.side=15", "whole patches"),
        ("illama.train.folder=\"nowhere\"", "nowhere"),
        ("illama.drop_paths.rate=0.1", "drop_paths"),
        ("illama.model.size=\"huge\"", "huge"),
        ("rate.from=-1.0", "from is -1"),
        ("illama.augment.area=[2.0, 1.0]", "crop.area"),
        ("illama.start={ weights = \"none.pth\" }", "none.pth"),
        ("illama.train.cifar=\"x\"", "name one of"),
        ("illama", "KEY=VALUE"),
        ("run.epochs.more=1", "`epochs` is no table"),
    ] {
        let refused = run.run("out", &["--set", set]);
        let said = stderr(&refused);
        assert!(!refused.status.success() && said.contains(says), "{set}: {said}");
        assert!(!said.contains("panicked"), "{set}: {said}");
    }
    fs::remove_dir_all(run.path("train/red")).unwrap();
    fs::remove_dir_all(run.path("train/blue")).unwrap();
    let refused = run.run("out", &[]);
    assert!(stderr(&refused).contains("one class only"), "{}", stderr(&refused));
}

/// A rate that is far too high ends with the names of the samples, not with weights of no number.
#[test]
fn a_run_that_diverges_says_so() {
    let run = Run::new();
    let more = ["--set", "rate.from=1e30", "--set", "rate.to=1e30", "--set", "rate.warmup_epochs=0"];
    let ended = run.run("out", &more);
    let said = stderr(&ended);
    assert!(!ended.status.success(), "{said}");
    assert!(said.contains("lower the learning rate") || said.contains("finite"), "{said}");
}
