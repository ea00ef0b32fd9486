//! `viscache train` with LLaMA-Adapter V2's adapters, on the built-in backbone: pictures through a small made-up CLIP, and conversations.

use std::fs;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};
use viscache::models::learning::{Values, write};

use crate::train::{last, log, stderr};
use crate::train_adapter::{Run, best_loss, bits, judgement, values};

const PICTURES: &str = r#"
[run]
seed = 3
epochs = 16
batch = 8

[rate]
from = 2e-2
to = 0.0
warmup_epochs = 1
counted = "epochs"

[adapter]
family = "llama-adapter-v2"
phase = "pretrain"
backbone = "nano"
clip = "clip.safetensors"
length = 110
test = { captions = { table = { path = "test.csv", picture = "url", target = "caption" } } }

[adapter.sizes]
rank = 4
queries = 3
visual_width = 32
visual_blocks = 1
prefix_deviation = 0.1
"#;

const CAPTIONS: &str =
    "adapter.captions={ table = { path = \"train.csv\", picture = \"url\", target = \"caption\" } }";
const QUESTIONS: &str = "adapter.instructions={ paths = [\"asked.json\"] }";

/// A vision tower of CLIP's for pictures of 32 pixels, under the names of OpenAI's file.
fn clip(path: &Path) {
    let mut random = Pcg64::seed_from_u64(11);
    let mut all = Values::new();
    let mut add = |name: &str, shape: &[usize]| {
        let count = shape.iter().product();
        let norm = name.contains("ln_") && name.ends_with("weight");
        let one = || if norm { 1.0 } else { random.random_range(-0.2..0.2) };
        let drawn = std::iter::repeat_with(one).take(count).collect();
        all.insert(format!("visual.{name}"), (shape.to_vec(), drawn));
    };
    add("conv1.weight", &[64, 3, 16, 16]);
    add("class_embedding", &[64]);
    add("positional_embedding", &[5, 64]);
    add("proj", &[64, 32]);
    let block = "transformer.resblocks.0";
    for norm in ["ln_pre", "ln_post", &format!("{block}.ln_1"), &format!("{block}.ln_2")] {
        add(&format!("{norm}.weight"), &[64]);
        add(&format!("{norm}.bias"), &[64]);
    }
    for (part, out, inputs) in [
        ("attn.in_proj_", 192, 64),
        ("attn.out_proj.", 64, 64),
        ("mlp.c_fc.", 256, 64),
        ("mlp.c_proj.", 64, 256),
    ] {
        add(&format!("{block}.{part}weight"), &[out, inputs]);
        add(&format!("{block}.{part}bias"), &[out]);
    }
    fs::write(path, write(&all, Default::default()).unwrap()).unwrap();
}

fn pictures(count: u64) -> Run {
    let run = Run::new(count);
    clip(&run.path("clip.safetensors"));
    fs::write(run.path("recipe.toml"), PICTURES).unwrap();
    run
}

fn is_first(name: &str) -> bool {
    !name.starts_with("llama.") || name.ends_with("gate")
}

/// Both phases, each served and judged as training judged it.
#[test]
fn an_adapter_of_v2_learns_to_look_and_is_served() {
    let run = pictures(48);
    run.trained("pre", &[CAPTIONS]);
    let steps: Vec<f64> = log(&run.path("pre"))
        .iter()
        .filter(|line| line["rate"].is_f64())
        .map(|line| line["loss"].as_f64().unwrap())
        .collect();
    assert_eq!(steps.len(), 96);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (begin, end) = (mean(&steps[..12]), mean(&steps[84..]));
    assert!(end < 0.95 * begin, "{begin} → {end}");
    let clip = ["--clip", "clip.safetensors"];
    let (loss, judged) = (best_loss(&run.path("pre")), run.judged("pre/best", &clip));
    assert!((loss - judged).abs() < 1e-3 * loss, "training says {loss}, the server {judged}");
    let pre = values(&run.path("pre/best/weights.safetensors"));
    assert!(pre.keys().all(|name| is_first(name)), "{:?}", pre.keys());
    assert!(pre["adapter_query.weight"].0 == [9, 128], "three layers of four, three rows each");

    let fine =
        ["adapter.phase=finetune", "adapter.start=pre/best", QUESTIONS, "run.epochs=2", "rate.from=2e-3"];
    run.trained("fine", &fine);
    let tuned = values(&run.path("fine/best/weights.safetensors"));
    let whole = values(&run.path("fine/best/adapter.safetensors"));
    let kept: Values =
        whole.iter().filter(|(name, _)| is_first(name)).map(|(n, v)| (n.clone(), v.clone())).collect();
    assert_eq!(bits(&kept), bits(&pre), "what does not learn is the same");
    let moved = |name: &str| tuned[name].1.iter().any(|&value| value != 0.0);
    assert!(
        moved("llama.layers.0.attention.lora_wq_l2.weight") && moved("llama.layers.3.feed_forward.w2.bias")
    );
    let (loss, judged) = (best_loss(&run.path("fine")), run.judged("fine/best", &clip));
    assert!((loss - judged).abs() < 1e-3 * loss, "training says {loss}, the server {judged}");
    let answer =
        run.asked("ask", "fine/best", "test0.png", &["--temperature", "0", "--clip", "clip.safetensors"]);
    assert!(!answer.trim().is_empty());
}

#[test]
fn joint_training_of_v2_that_is_killed_ends_at_the_same_weights() {
    let run = pictures(16);
    let joint = [
        "adapter.phase=joint",
        CAPTIONS,
        QUESTIONS,
        "adapter.sizes.rank=0",
        "run.epochs=2",
        "run.batch=4",
        "run.average=0.9",
        "run.checkpoint_every=1",
    ];
    run.ends_the_same(&joint);
    let told: Value =
        serde_json::from_slice(&fs::read(last(&run.path("whole")).join("run.json")).unwrap()).unwrap();
    // 18 instructions: 9 batches of each kind. A first layer without prompts has a gate, which nothing moves.
    for name in ["visual_query.weight", "llama.layers.1.attention.gate", "llama.norm.weight"] {
        assert_eq!(told["moved"][name], 9, "{name}");
    }
    assert!(told["moved"]["llama.layers.0.attention.gate"].as_u64().is_none_or(|steps| steps == 0));
    assert!(
        values(&last(&run.path("whole")).join("weights.safetensors"))
            .keys()
            .all(|name| !name.contains("lora"))
    );
}

/// A picture that cannot be read costs that picture: it is named, and another text of its batch takes the place.
#[test]
fn pictures_of_v2_that_cannot_be_read_are_named() {
    let run = pictures(12);
    fs::write(run.path("broken.png"), b"\x89PNG\r\n\x1a\nno picture").unwrap();
    let mut table = fs::read_to_string(run.path("train.csv")).unwrap();
    table += "broken.png\ta star\ngone.png\ta star\n";
    fs::write(run.path("train.csv"), table).unwrap();
    let done = run.run("out", &[CAPTIONS, "run.epochs=1", "run.batch=13"]);
    let said = stderr(&done);
    assert!(done.status.success(), "{said}");
    for part in ["13 captions to learn from", "gone.png", "1 samples could not be used", "32×32 pixels"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let left: Vec<Value> =
        log(&run.path("out")).into_iter().filter(|line| line.to_string().contains("broken.png")).collect();
    assert!(!left.is_empty(), "the journal names it");
    // A test of which nothing can be read says so, and no weights are called the best.
    fs::write(run.path("test.csv"), "url\tcaption\nbroken.png\ta star\n").unwrap();
    let said = stderr(&run.run("blind", &[CAPTIONS, "run.epochs=1", "run.batch=13"]));
    assert!(said.contains("no picture of the test can be read"), "{said}");
}

const CHAT: &str = r#"
[run]
epochs = 25
batch = 6

[rate]
from = 2e-2
to = 0.0
warmup_epochs = 1

[adapter]
family = "chat"
phase = "finetune"
backbone = "nano"
conversation = "bair_v1"
instructions = { paths = ["talks.json"] }
test = { instructions = { paths = ["test.json"] } }
"#;

#[test]
fn conversations_are_learned_and_judged_as_they_are_served() {
    let run = Run::new(4);
    let said = |value: &str| json!({"value": value});
    let mut talks: Vec<Value> = (0..24)
        .map(|i| {
            let (colour, other) = [("red", "green"), ("blue", "red"), ("green", "blue")][i % 3];
            let first = [said(&format!("a {colour} star. colour?")), said(colour)];
            let second = [said(&format!("and a {other} ring?")), said(other)];
            let turns = [first, second].concat();
            json!({ "conversations": turns })
        })
        .collect();
    fs::write(run.path("test.json"), serde_json::to_vec(&talks[..2]).unwrap()).unwrap();
    talks.push(json!({"image": "train0.png", "instruction": "What is it?", "output": "a star"}));
    fs::write(run.path("talks.json"), serde_json::to_vec(&talks).unwrap()).unwrap();
    fs::write(run.path("recipe.toml"), CHAT).unwrap();
    let done = run.run("talk", &[]);
    let told = stderr(&done);
    assert!(done.status.success(), "{told}");
    for part in
        ["24 instructions to learn from", "about a picture, for what looks at none: 1", "nothing is shown"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    let steps: Vec<f64> = log(&run.path("talk")).iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert!(steps[steps.len() - 1] < 0.5 * steps[0], "{steps:?}");
    // Both answers of each test, with what ends them; the end of the text is behind the last.
    let (mut sum, mut count) = (0.0, 0);
    for (colour, other) in [("red", "green"), ("blue", "red")] {
        let first = format!("a {colour} star. colour?");
        let second = format!("and a {other} ring?");
        let chat = ["--chat", "bair_v1", "--json"];
        let judged = |asked: &str, answer: &str, more: &[&str]| {
            let answer = format!("--answer= {answer}</s>");
            judgement(&run.answered("score", asked, "talk/best", &[&chat[..], &[&answer], more].concat()))
        };
        for (loss, tokens) in [
            judged(&first, colour, &[]),
            judged(&second, other, &["--include-end", "--said", &first, "--said", colour]),
        ] {
            sum += loss;
            count += tokens;
        }
    }
    let (loss, judged) = (best_loss(&run.path("talk")), sum / count as f64);
    assert!((loss - judged).abs() < 1e-3 * loss, "training says {loss}, the server {judged}");
    let adapter = values(&run.path("talk/best/weights.safetensors"));
    assert!(!run.path("talk/best/adapter.safetensors").exists(), "what learned is all of it");
    let moved = |name: &str, first: f32| adapter[name].1.iter().any(|&value| value != first);
    assert!(
        moved("llama.layers.2.attention.wk_bias", 0.0) && moved("llama.layers.0.feed_forward.w2_scale", 1.0)
    );
    let answer =
        run.answered("ask", "a red star. colour?", "talk/best", &["--chat", "bair_v1", "--temperature", "0"]);
    assert_eq!(answer.trim(), "red");
    // Prompts with gates as well.
    run.trained("prompted", &["adapter.sizes={ query_layers = 2, queries = 3 }", "run.epochs=1"]);
    let prompted = values(&run.path("prompted/best/weights.safetensors"));
    assert_eq!(prompted["adapter_query.weight"].0, [6, 128]);
}

#[test]
fn recipes_for_adapters_of_v2_that_cannot_be_followed_say_why() {
    let run = pictures(8);
    for (set, says) in [
        (vec![], "learns from `captions` alone"),
        (vec![CAPTIONS, QUESTIONS], "learns from `captions` alone"),
        (vec![CAPTIONS, "adapter.encoder=nano"], "have no `encoder`"),
        (vec![CAPTIONS, "adapter.conversation=v1"], "`conversation` is of the chat program"),
        (vec![CAPTIONS, "adapter.crop=[0.5, 0.4]"], "crop.area"),
        (vec![CAPTIONS, "adapter.clip=nowhere.pt"], "nowhere.pt"),
        (vec![CAPTIONS, "adapter.clip=test0.png"], "test0.png"),
        (vec![CAPTIONS, "adapter.start=nano"], "an adapter of ImageBind-LLM"),
        (vec![CAPTIONS, "adapter.sizes.queries=0"], "queries"),
        (vec![CAPTIONS, "adapter.sizes.visual_width=30"], "heads"),
        (vec![QUESTIONS, "adapter.phase=finetune"], "name it by `start`"),
        (vec![CAPTIONS, "adapter.family=chat"], "its phase is `finetune`"),
        (vec![QUESTIONS, "adapter.family=chat", "adapter.phase=finetune"], "is tested by `instructions`"),
    ] {
        let said = stderr(&run.run("out", &set));
        assert!(said.contains(says) && !said.contains("panicked"), "{set:?}: {said}");
    }
    fs::write(run.path("recipe.toml"), CHAT.replace("bair_v1", "v9")).unwrap();
    assert!(stderr(&run.run("out", &[])).contains("v1, conv_v1 or bair_v1"));
    fs::write(
        run.path("recipe.toml"),
        CHAT.replace("talks.json", "asked.json").replace("test.json", "asked.json"),
    )
    .unwrap();
    assert!(stderr(&run.run("out", &["adapter.sizes.rank=4"])).contains("rank must be 0"));
    assert!(stderr(&run.run("out", &["adapter.clip=clip.safetensors"])).contains("no `clip`"));
    // The example that `v1` begins with is longer than the built-in decoder's positions.
    let said = stderr(&run.run("out", &["adapter.conversation=v1"]));
    assert!(said.contains("none of the instructions can be used") && said.contains("no room"), "{said}");
    // CLIP's file beside a decoder that does not look through it.
    let asked = [
        "ask",
        "What?",
        "--store",
        "none",
        "--no-cache",
        "--image",
        "test0.png",
        "--decoder",
        "nano",
        "--clip",
        "clip.safetensors",
    ];
    let output = crate::world::viscache(&run.path("")).args(asked).output().unwrap();
    assert!(stderr(&output).contains("does not look through it"), "{}", stderr(&output));
}
