//! `viscache train` with adapters: drawn pictures with captions and questions, the built-in backbone, and what is served afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};
use viscache::models::learning::{Values, read};
use viscache::models::weights::Weights;
use viscache::scenes::{DEFAULT_SEED, Set, draw, png};

use crate::common::seed;
use crate::train::{last, log, stderr};
use crate::world::viscache;

const ASKED: &str = "Generate caption of this image";
const TESTED: usize = 6;

const RECIPE: &str = r#"
[run]
seed = 3
epochs = 8
batch = 8

[rate]
from = 2e-3
to = 0.0
warmup_epochs = 1
counted = "epochs"

[decay]
from = 0.05

[adapter]
family = "imagebind-llm"
phase = "pretrain"
backbone = "nano"
encoder = "nano"
length = 96
sizes = { rank = 8, prefix_deviation = 0.02 }
captions = { table = { path = "train.csv", picture = "url", target = "caption" } }
test = { captions = { table = { path = "test.csv", picture = "url", target = "caption" } } }
"#;

pub struct Run {
    folder: tempfile::TempDir,
}

impl Run {
    /// * `count`: pictures to learn from.
    pub fn new(count: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut items = vec![
            json!({"instruction": "Say yes.", "input": "", "output": "yes"}),
            json!({"instruction": "Rewrite the caption.", "input": "a red disc", "output": "a red circle"}),
        ];
        for (set, name, count) in [(Set::Train, "train", count), (Set::Test, "test", TESTED as u64)] {
            // As the captions of the first phase are published: tabs, and `.csv` all the same.
            let mut table = "url\tcaption\n".to_owned();
            for index in 0..count {
                let (scene, style, mut random) = set.scene(DEFAULT_SEED, index);
                let file = format!("{name}{index}.png");
                let picture = png(&draw(&scene, style, &mut random)).unwrap();
                fs::write(folder.path().join(&file), picture).unwrap();
                table += &format!("{file}\t{}\n", scene.caption());
                if set == Set::Train {
                    let asked = json!({"from": "human", "value": "What colour is the object?"});
                    let told = json!({"from": "gpt", "value": scene.colour.word()});
                    items.push(json!({"image": file, "conversations": [asked, told]}));
                }
            }
            fs::write(folder.path().join(format!("{name}.csv")), table).unwrap();
        }
        fs::write(folder.path().join("asked.json"), serde_json::to_vec(&items).unwrap()).unwrap();
        fs::write(folder.path().join("recipe.toml"), RECIPE).unwrap();
        Run { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, out: &str, set: &[&str]) -> Command {
        let mut command = viscache(self.folder.path());
        command.args(["train", "recipe.toml", "--threads", "2", "--out", out]);
        set.iter().for_each(|pair| _ = command.args(["--set", pair]));
        command
    }

    pub fn run(&self, out: &str, set: &[&str]) -> Output {
        self.command(out, set).output().unwrap()
    }

    pub fn trained(&self, out: &str, set: &[&str]) {
        let done = self.run(out, set);
        assert!(done.status.success(), "{}", stderr(&done));
    }

    /// What `score` and `ask` say with an adapter, without a cache.
    pub fn answered(&self, command: &str, asked: &str, adapter: &str, more: &[&str]) -> String {
        let output = viscache(self.folder.path())
            .args([command, asked, "--no-cache", "--store", "none", "--model", "nano"])
            .args(["--decoder", "nano", "--adapter", adapter])
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same, about a picture.
    pub fn asked(&self, command: &str, adapter: &str, picture: &str, more: &[&str]) -> String {
        self.answered(command, ASKED, adapter, &[&["--image", picture][..], more].concat())
    }

    /// The mean of `−log p` of the test's captions and their ends, as a server judges them.
    pub fn judged(&self, adapter: &str, more: &[&str]) -> f64 {
        let (mut sum, mut count) = (0.0, 0);
        for index in 0..TESTED {
            let caption = Set::Test.scene(DEFAULT_SEED, index as u64).0.caption();
            let more = [&["--answer", &caption, "--include-end", "--json"][..], more].concat();
            let (loss, tokens) = judgement(&self.asked("score", adapter, &format!("test{index}.png"), &more));
            sum += loss;
            count += tokens;
        }
        sum / count as f64
    }

    /// Runs a recipe to its end and, into another folder, with a few kills at random moments: both end at the same bits.
    pub fn ends_the_same(&self, set: &[&str]) {
        let begun = Instant::now();
        self.trained("whole", set);
        let whole = begun.elapsed();
        let mut random = Pcg64::seed_from_u64(seed());
        let (mut kills, mut gone_on) = (0, 0);
        for attempt in 0.. {
            let mut command = self.command("killed", set);
            let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            // Longer each time, so that it comes to its end however long it takes to begin.
            std::thread::sleep(
                whole.mul_f64(random.random_range(0.2..0.9) * (1.0 + f64::from(attempt) / 20.0)),
            );
            let ended = child.try_wait().unwrap();
            if ended.is_none() {
                child.kill().unwrap();
                kills += 1;
            }
            let output = child.wait_with_output().unwrap();
            gone_on += usize::from(stderr(&output).contains("goes on after step"));
            if ended.is_some() {
                assert!(output.status.success(), "{}", stderr(&output));
                if kills >= 3 && gone_on > 0 {
                    break;
                }
                fs::remove_dir_all(self.path("killed")).unwrap();
            }
            assert!(attempt < 100, "it never comes to its end");
        }
        for name in ["weights.safetensors", "moments.safetensors", "average.safetensors", "run.json"] {
            let of = |out: &str| fs::read(last(&self.path(out)).join(name)).unwrap();
            assert!(of("whole") == of("killed"), "{name} differs after {kills} kills");
        }
    }
}

/// What `score --json` says of one answer: `−log p`, and of how many tokens.
pub fn judgement(line: &str) -> (f64, usize) {
    let line: Value = serde_json::from_str(line).unwrap();
    (-line["logprob"].as_f64().unwrap(), line["token_logprobs"].as_array().unwrap().len())
}

pub fn values(path: &Path) -> Values {
    read(&Weights::open(path).unwrap()).unwrap()
}

pub fn bits(values: &Values) -> Vec<(&String, Vec<u32>)> {
    values.iter().map(|(name, (_, v))| (name, v.iter().map(|v| v.to_bits()).collect())).collect()
}

fn is_first(name: &str) -> bool {
    name.starts_with("image_bind_") || name.starts_with("prefix_query") || name.ends_with(".gate")
}

pub fn best_loss(out: &Path) -> f64 {
    let text = fs::read_to_string(out.join("best/measures.json")).unwrap();
    let told: Value = serde_json::from_str(&text).unwrap();
    let measures = told["measures"].as_array().unwrap();
    assert_eq!(measures[0]["name"], "log_likelihood");
    let loss = measures.iter().find(|measure| measure["name"] == "loss").unwrap();
    assert_eq!(loss["value"].as_f64(), measures[0]["value"].as_f64().map(|value| -value));
    loss["value"].as_f64().unwrap()
}

/// Both phases one behind the other; each is served, and judged as training judged it.
#[test]
fn an_adapter_learns_to_look_and_is_served() {
    let run = Run::new(96);
    run.trained("pre", &[]);
    let steps: Vec<f64> = log(&run.path("pre"))
        .iter()
        .filter(|line| line["rate"].is_f64())
        .map(|line| line["loss"].as_f64().unwrap())
        .collect();
    assert_eq!(steps.len(), 96);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (begin, end) = (mean(&steps[..8]), mean(&steps[88..]));
    assert!(end < 0.92 * begin, "{begin} → {end}");
    let loss = best_loss(&run.path("pre"));
    let judged = run.judged("pre/best", &[]);
    assert!((loss - judged).abs() < 1e-3 * loss, "training says {loss}, the server {judged}");
    let answer = run.asked("ask", "pre/best", "test0.png", &["--temperature", "0"]);
    assert!(answer.contains("background"), "{answer}");
    // What learned is the whole adapter.
    let pre = values(&run.path("pre/best/weights.safetensors"));
    assert!(pre.keys().all(|name| is_first(name)) && !run.path("pre/best/adapter.safetensors").exists());

    let fine = [
        "adapter.phase=finetune",
        "adapter.start=pre/best",
        "adapter.instructions={ paths = [\"asked.json\"] }",
        "run.epochs=2",
        "rate.from=1e-3",
    ];
    let refused = run.run("fine", &fine);
    assert!(stderr(&refused).contains("`finetune` learns from `instructions` alone"), "{}", stderr(&refused));
    // A recipe of its own: a key cannot be taken away from the command line.
    let recipe: String = RECIPE
        .lines()
        .filter(|line| !line.starts_with("captions"))
        .fold(String::new(), |all, line| all + line + "\n");
    fs::write(run.path("recipe.toml"), recipe).unwrap();
    run.trained("fine", &fine);
    let (tuned, whole) = (
        values(&run.path("fine/best/weights.safetensors")),
        values(&run.path("fine/best/adapter.safetensors")),
    );
    let kept: Values =
        whole.iter().filter(|(name, _)| is_first(name)).map(|(n, v)| (n.clone(), v.clone())).collect();
    assert_eq!(bits(&kept), bits(&pre), "what does not learn is the same");
    assert_eq!(whole.len(), pre.len() + tuned.len());
    assert!(tuned.keys().all(|name| ["norm", "bias", "lora"].iter().any(|part| name.contains(part))));
    let moved = |name: &str| tuned[name].1.iter().any(|&value| value != 0.0);
    assert!(
        moved("llama.layers.0.attention.lora_wq_l2.weight") && moved("llama.layers.3.feed_forward.w2.bias")
    );
    let (loss, judged) = (best_loss(&run.path("fine")), run.judged("fine/best", &[]));
    assert!((loss - judged).abs() < 1e-3 * loss, "training says {loss}, the server {judged}");
    // Checkpoints are served as well.
    let step = last(&run.path("fine"));
    let answer = run.asked("ask", step.to_str().unwrap(), "test0.png", &["--temperature", "0"]);
    assert!(!answer.trim().is_empty());
}

/// Captions move the one half, questions the other, in one run; killed at random moments, it ends at the same bits.
#[test]
fn joint_training_that_is_killed_ends_at_the_same_weights() {
    let run = Run::new(24);
    let joint = [
        "adapter.phase=joint",
        "adapter.instructions={ paths = [\"asked.json\"] }",
        "adapter.blockwise=true",
        "run.epochs=2",
        "run.batch=4",
        "run.average=0.9",
        "run.checkpoint_every=1",
    ];
    run.ends_the_same(&joint);
    // 24 captions and 26 questions: an epoch is 2 · 26 samples in batches of 4.
    assert_eq!(log(&run.path("whole")).iter().filter(|line| line["rate"].is_f64()).count(), 26);
    let moments = values(&last(&run.path("whole")).join("moments.safetensors"));
    let told: Value =
        serde_json::from_slice(&fs::read(last(&run.path("whole")).join("run.json")).unwrap()).unwrap();
    // Each half has made its own 13 steps.
    for name in ["image_bind_proj.weight", "llama.norm.weight", "llama.layers.1.attention.lora_wv_l2.weight"]
    {
        assert_eq!(told["moved"][name], 13, "{name}");
        assert!(moments.contains_key(&format!("{name}.first")));
    }
}

#[test]
fn bad_data_are_named_counted_and_left_out() {
    let run = Run::new(8);
    fs::write(run.path("broken.png"), b"\x89PNG\r\n\x1a\nno picture").unwrap();
    fs::write(run.path("empty.png"), b"").unwrap();
    let mut table = fs::read_to_string(run.path("train.csv")).unwrap();
    table += "gone.png\ta star\nbroken.png\ta star\nempty.png\ta star\ntrain0.png\t \n";
    table += &format!("train1.png\t{}\n", "a very long caption ".repeat(40));
    fs::write(run.path("train.csv"), table).unwrap();
    let done = run.run("out", &["run.epochs=1", "run.batch=3"]);
    let said = stderr(&done);
    assert!(done.status.success(), "{said}");
    for part in [
        "9 captions to learn from",
        "1 of these captions are too long and were cut",
        "pictures that are not there: 1 (line 10: `gone.png`)",
        "empty picture files: 1",
        "pictures without a caption: 1",
        "pictures that cannot be decoded: 1",
        "broken.png",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // No room for an answer: none of the texts is left.
    let refused = stderr(&run.run("short", &["adapter.length=30"]));
    assert!(
        refused.contains("none of the captions can be used: ") && refused.contains("no room"),
        "{refused}"
    );

    let joint = |text: &str| {
        fs::write(run.path("bad.json"), text).unwrap();
        let more = [
            "adapter.phase=joint",
            "adapter.instructions={ paths = [\"bad.json\"] }",
            "run.epochs=1",
            "run.batch=2",
        ];
        stderr(&run.run("joint", &more))
    };
    assert!(joint("[{\"instruction\": ").contains("bad.json is cut short"));
    assert!(joint("{}").contains("an array of objects"));
    assert!(joint("[]").contains("nothing to learn from"));
    let said =
        joint(r#"[{"instruction": "a"}, {"image": "gone.png", "instruction": "a", "output": "b"}, 7]"#);
    assert!(
        said.contains("instructions without an answer: 1") && said.contains("item 2: `gone.png`"),
        "{said}"
    );
}

#[test]
fn recipes_for_adapters_that_cannot_be_followed_say_why() {
    let run = Run::new(8);
    for (set, says) in [
        ("adapter.phase=finetune", "learns from `instructions` alone"),
        ("adapter.phase=joint", "needs `captions` and `instructions`"),
        ("adapter.phase=last", "last"),
        ("adapter.family=v3", "v3"),
        ("adapter.backbone=nowhere", "nowhere"),
        ("adapter.start=nowhere.pth", "nowhere.pth"),
        ("adapter.encoder=nowhere.pth", "nowhere.pth"),
        ("adapter.length=161", "adapter.length is 161"),
        ("adapter.length=1", "adapter.length is 1"),
        ("adapter.memory_mib=0", "adapter.memory_mib is 0"),
        ("adapter.sizes.rank=0", "above 0"),
        ("adapter.captions={ folder = \".\" }", "folders have classes"),
        ("adapter.caption={}", "caption"),
        ("adapter.optimiser={ betas = [1.0, 0.9] }", "betas[0] is 1"),
        ("run.batch=100", "full batch"),
        (
            "illama={ model = { size = \"tiny\", side = 16 }, train = { folder = \"x\" } }",
            "one of the tables",
        ),
    ] {
        let refused = run.run("out", &[set]);
        let said = stderr(&refused);
        assert!(!refused.status.success() && said.contains(says), "{set}: {said}");
        assert!(!said.contains("panicked"), "{set}: {said}");
    }
    // The built-in adapter goes on as well, with parts that a first phase does not move.
    let done = run.run("on", &["adapter.start=nano", "run.epochs=1"]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(run.path("on/best/adapter.safetensors").exists());
    // Another start is another run.
    let refused = stderr(&run.run("on", &["run.epochs=1"]));
    assert!(refused.contains("take another folder"), "{refused}");
}
