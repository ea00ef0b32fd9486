//! What an adapter learns from, and what it begins with, against the published programs.

use std::collections::BTreeMap;

use serde_json::Value;
use viscache::models::learning::Values;
use viscache::models::llama::{AdapterSizes, Checkpoint, Config, Family, Stages, begin};
use viscache::text::{SentencePiece, Template};
use viscache::train::data::{CAPTION_INSTRUCTION, Exchange};
use viscache::train::texts::{Form, Text, padded};

use crate::common::{of_one_root, parts, read, say};
use crate::decoder::{config_of, shards};

/// A text as Python writes it in a tuple of one: the published loader puts instructions without a picture into the prompt so.
fn in_a_tuple(text: &str) -> String {
    let (single, double) = (text.contains('\''), text.contains('"'));
    let written = text.replace('\\', "\\\\").replace('\n', "\\n");
    match (single, double) {
        (true, false) => format!("(\"{written}\",)"),
        _ => format!("('{}',)", written.replace('\'', "\\'")),
    }
}

#[test]
fn ids_and_labels_are_those_of_the_published_loaders() {
    for (part, template, cases) in [
        ("imagebind_llm_decoder", Template::ImageBindLlm, 11),
        ("llama_adapter_v2", Template::V2Multimodal, 1),
    ] {
        loaded_as_published(part, template, cases);
    }
}

/// * `least`: texts that are to be compared.
fn loaded_as_published(part: &str, template: Template, least: usize) {
    let model = "imagebind_llm_decoder/tokenizer.model";
    let Some([cases, model]) = of_one_root([&format!("{part}/dataset.json")[..], model]) else { return };
    let cases: Value = serde_json::from_slice(&read(&cases)).unwrap();
    let tokenizer = SentencePiece::from_bytes(&read(&model)).unwrap();
    let ids = |value: &Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let (mut compared, mut nothing) = (0, 0);
    for (phase, case) in ["pretrain", "finetune"]
        .into_iter()
        .flat_map(|phase| cases[phase].as_array().into_iter().flatten().map(move |case| (phase, case)))
    {
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        let item = &case["item"];
        let (instruction, input, answer) = match phase {
            "pretrain" => (CAPTION_INSTRUCTION.to_owned(), None, word(&case["caption_in_file"])),
            _ if item["image"].is_string() => {
                let said = &item["conversations"];
                (word(&said[0]["value"]), None, word(&said[1]["value"]))
            }
            _ => (in_a_tuple(&word(&item["instruction"])), Some(word(&item["input"])), word(&item["output"])),
        };
        let (later, told) = (Vec::new(), String::new());
        let exchange = Exchange { picture: None, instruction, input, answer, later, told };
        let length = case["max_words"].as_u64().unwrap() as usize;
        let (expected, labels) = (ids(&case["input_ids"]), ids(&case["labels"]));
        let Some(text) = Text::new(&tokenizer, Form::Instruction(template), &exchange, length) else {
            assert!(labels.iter().all(|&label| label == 0), "{case}");
            nothing += 1;
            continue;
        };
        let (own, own_labels, longest) = padded(std::iter::once(&text));
        // The published loader fills up to the most that is allowed.
        let filled = |mut values: Vec<u32>| {
            values.resize(length, 0);
            values
        };
        assert_eq!((filled(own), filled(own_labels)), (expected, labels), "{case}");
        assert_eq!(longest, text.ids.len());
        assert_eq!(text.cut, text.ids.last() != Some(&tokenizer.eos()), "{case}");
        compared += 1;
    }
    say(&format!("{part}/dataset.json: {compared} texts are the same, {nothing} have nothing to learn"));
    assert!(compared >= least);
}

#[test]
fn recipes_that_come_with_the_program_can_be_read() {
    use figment::Figment;
    use figment::providers::{Format, Toml};
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut adapters = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let recipe = Figment::from(Toml::file(&path)).extract::<viscache::train::Recipe>();
        let recipe = recipe.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let plan = recipe.plan(Value::Null).unwrap();
        let span = plan.span(1 << 20).unwrap();
        assert!(plan.rate.over(span).is_ok() && plan.decay.over(span).is_ok(), "{}", path.display());
        let published = path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with("imagebind-llm-") || name.starts_with("adapter-v2-")
        });
        if let (viscache::train::Lesson::Adapter(lesson), true) = (recipe.lesson().unwrap(), published) {
            assert_eq!(lesson.optimiser, viscache::models::learning::adamw::Settings::adapters());
            assert_eq!((plan.batch * plan.accumulate, plan.rate.to), (32, Some(0.0)));
            adapters += 1;
        }
    }
    assert_eq!(adapters, 5);
}

#[test]
fn texts_of_a_batch_are_filled_to_the_longest() {
    let text = |ids: &[u32], learned: &[[usize; 2]]| Text {
        ids: ids.to_vec(),
        learned: learned.iter().map(|&[begin, end]| begin..end).collect(),
        cut: false,
    };
    let texts = [text(&[1, 5, 6, 2], &[[2, 4]]), text(&[1, 7, 2], &[[2, 3]])];
    let (ids, labels, length) = padded(texts.iter());
    assert_eq!((ids, length), (vec![1, 5, 6, 2, 1, 7, 2, 0], 4));
    assert_eq!(labels, [0, 0, 6, 2, 0, 0, 2, 0]);
    assert_eq!(padded([].iter()), (vec![], vec![], 0));
    let talk = [text(&[1, 3, 4, 5, 6, 7, 2], &[[1, 3], [5, 7]]), text(&[1, 8], &[[1, 2]])];
    let (_, labels, _) = padded(talk.iter());
    assert_eq!(labels, [0, 3, 4, 0, 0, 7, 2, 0, 8, 0, 0, 0, 0, 0]);
}

/// V2's programs: names and shapes are those of the published ones, for both.
#[test]
fn adapters_of_v2_begin_with_the_tensors_of_the_published_ones() {
    let mut compared = 0;
    for part in parts("llama_adapter_v2") {
        for name in ["mm_tiny_bias", "mm_tiny_lora", "chat65b_tiny", "chat65b_tiny_adapter"] {
            let folder = part.join(name);
            if !folder.join("weights.safetensors").exists() {
                continue;
            }
            let told = crate::common::json(&folder.join("config.json"));
            let size = |key: &str| told[key].as_u64().unwrap_or(0) as usize;
            let open =
                || viscache::models::weights::Weights::open(&folder.join("weights.safetensors")).unwrap();
            let config = config_of(&folder);
            let whole = Checkpoint::new(vec![], Some(open()), config.n_heads);
            let chat = name.starts_with("chat");
            let config = Config { family: Some(whole.family()), ..config };
            assert_eq!(whole.family(), if chat { Family::V2Chat } else { Family::V2Picture });
            let whole = whole.adapter().values(|_| true).unwrap();
            // The same backbone, from which all of the adapter is left out.
            let values = viscache::models::learning::read(&open()).unwrap();
            let adapted = |name: &str| {
                let own = if chat { format!("llama.{name}") } else { name.to_owned() };
                let norm = name.contains("norm") && !name.starts_with("clip") && !name.starts_with("visual");
                (whole.contains_key(name) || whole.contains_key(&own)) && !norm
            };
            let values: Values = values.into_iter().filter(|(name, _)| !adapted(name)).collect();
            let bytes = viscache::models::learning::write(&values, Default::default()).unwrap();
            let bare = viscache::models::weights::Weights::from_memory("bare", bytes).unwrap();
            let bare = Checkpoint::new(vec![bare], None, config.n_heads);
            assert_eq!(bare.family(), Family::ImageBindLlm, "nothing of it is left");
            let sizes = match chat {
                true => AdapterSizes {
                    query_layers: Some(size("adapter_layer")),
                    queries: size("adapter_len").max(1),
                    ..AdapterSizes::default()
                },
                false => AdapterSizes {
                    rank: Some(if told["w_lora"] == true { size("lora_rank") } else { 0 }),
                    query_layers: Some(size("query_layer")),
                    queries: size("query_len"),
                    visual_width: size("v_embed_dim"),
                    visual_blocks: size("v_depth"),
                    ..AdapterSizes::default()
                },
            };
            let stages = Stages { first: true, second: true };
            let begun = begin(&bare, &config, &sizes, size("clip_out_dim"), stages, 1).unwrap();
            assert_eq!(shapes(&begun), shapes(&whole), "{name}");
            compared += 1;
        }
    }
    say(&format!("{compared} adapters of V2 begin with the published tensors"));
}

/// Names and shapes of everything that is no backbone's matrix.
fn shapes(values: &Values) -> BTreeMap<String, Vec<usize>> {
    values.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect()
}

#[test]
fn an_adapter_begins_with_the_tensors_of_the_published_one() {
    for part in parts("imagebind_llm_decoder") {
        let folder = part.join("tiny_a");
        if !["llama/consolidated.00.pth", "weights.safetensors"].iter().all(|file| folder.join(file).exists())
        {
            say("skipped: first values (a backbone and its adapter are not there together)");
            continue;
        }
        let config = config_of(&folder);
        let whole = viscache::models::weights::Weights::open(&folder.join("weights.safetensors")).unwrap();
        let whole = Checkpoint::new(vec![], Some(whole), config.n_heads);
        let whole = whole.adapter().values(|_| true).unwrap();
        let bare = || Checkpoint::new(shards(&folder), None, config.n_heads);
        let sizes = AdapterSizes { rank: Some(6), query_layers: Some(3), ..AdapterSizes::default() };
        let of = |first, second, seed| {
            begin(&bare(), &config, &sizes, 48, Stages { first, second }, seed).unwrap()
        };
        let both = of(true, true, 1);
        assert_eq!(shapes(&both), shapes(&whole));
        assert_eq!(of(true, true, 1), both, "a seed gives the same");
        assert_ne!(of(true, true, 2), both);
        // A first phase has no biases and low-rank matrices, and begins at the same values.
        let first = of(true, false, 1);
        assert!(first.iter().all(|(name, values)| both.get(name) == Some(values)));
        assert!(first.keys().all(|name| !name.starts_with("llama.") || name.ends_with(".gate")));
        for (name, (shape, values)) in &both {
            let all = |number: f32| values.iter().all(|&value| value == number);
            let most = values.iter().fold(0f32, |most, value| most.max(value.abs()));
            let bound = 1.0 / (*shape.last().unwrap() as f32).sqrt();
            match name.as_str() {
                name if name.ends_with(".gate") || name.contains("_l2.") => assert!(all(0.0), "{name}"),
                "image_bind_proj.bias" => assert!(most > 0.0 && most <= 1.0 / 48f32.sqrt()),
                name if name.ends_with(".bias") => assert!(all(0.0), "{name}"),
                name if name.starts_with("image_bind_norm") => assert!(all(1.0), "{name}"),
                "prefix_query.weight" => {
                    let deviation = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
                    assert!((0.8..1.2).contains(&deviation), "{deviation}");
                }
                name if name.contains("norm") => {
                    let own = bare().values(name, shape).unwrap();
                    assert_eq!(own, *values, "{name} is the backbone's");
                }
                name => assert!(most <= bound && most > 0.8 * bound, "{name}: {most} of {bound}"),
            }
        }
        // What an adapter has already stays, and what it lacks is what it would have begun with.
        let start = viscache::models::learning::write(&first, Default::default()).unwrap();
        let start = viscache::models::weights::Weights::from_memory("start", start).unwrap();
        let on = Checkpoint::new(shards(&folder), Some(start), config.n_heads);
        let lacking = begin(&on, &config, &sizes, 48, Stages { first: true, second: true }, 1).unwrap();
        assert!(lacking.iter().all(|(name, values)| both.get(name) == Some(values)));
        assert!(lacking.keys().all(|name| !first.contains_key(name)));
        let lacking = viscache::models::learning::write(&lacking, Default::default()).unwrap();
        let lacking = viscache::models::weights::Weights::from_memory("lacking", lacking).unwrap();
        let on = on.beginning_with(lacking).into_adapter();
        assert_eq!(on.values(|_| true).unwrap(), both);
        assert!(
            on.has_beside(|name| first.contains_key(name)) && !on.has_beside(|name| both.contains_key(name))
        );
        let refused = |sizes: AdapterSizes| {
            begin(&bare(), &config, &sizes, 48, Stages { first: true, second: true }, 9).unwrap_err()
        };
        assert!(refused(AdapterSizes { rank: Some(0), ..sizes.clone() }).to_string().contains("above 0"));
        let wild = AdapterSizes { prefix_deviation: f64::NAN, ..sizes };
        assert!(refused(wild).to_string().contains("prefix_deviation"));
    }
}
