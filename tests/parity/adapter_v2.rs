//! LLaMA-Adapter V2 against the published programs: pictures, every layer, cached steps, greedy answers, conversations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use viscache::media::Limits;
use viscache::media::image::{ImageOptions, Orientation, prepare, prepare_bgr};
use viscache::models::Placement;
use viscache::models::llama::{Checkpoint, Config, Decoder, Family, Files, PictureConfig, Saved, logprob};
use viscache::models::weights::Weights;
use viscache::text::{ChatTemplate, Conversation, Speaker, Template, Turn};
use viscache::types::{Fingerprint, WeightDtype};

use crate::common::{self, Tally, Tensors, json, parts, read, say, short};
use crate::decoder::{
    self, LAYERS, config_of, expected_answer, floats, generate, ids, limit, shards, tensor, tokenizer_of,
    width,
};

const GOLDEN: &str = "llama_adapter_v2";

/// The golden folders that hold a decoder.
fn folders() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in parts(GOLDEN) {
        let entries = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
        found.extend(entries.filter(|path| path.join("forward_full.safetensors").exists()));
    }
    found.sort();
    assert!(!found.is_empty(), "no decoder found: not even those in tests/golden");
    found
}

/// The decoder of a folder from its one file, wired as asked.
fn whole(folder: &Path, early_fusion: usize) -> Decoder {
    let mut config = config_of(folder);
    config.picture = PictureConfig { early_fusion, ..config.picture };
    decoder_of(&folder.join("weights.safetensors"), &config)
}

/// The decoder of one file.
fn decoder_of(path: &Path, config: &Config) -> Decoder {
    let checkpoint = Checkpoint::new(vec![Weights::open(path).unwrap()], None, config.n_heads);
    Decoder::load(&checkpoint, config, config.vocab_size.unwrap(), &Placement::cpu()).unwrap()
}

/// What a case's pictures are seen as, `[B, P, D]`; nothing for a case without pictures.
fn seen(
    decoder: &Decoder,
    pictures: Option<&common::Golden>,
    observe: &mut dyn FnMut(&str, &Tensor),
) -> Option<Tensor> {
    Some(decoder.picture()?.forward(&tensor(pictures?), observe).unwrap())
}

/// A batch of sequences in one pass; everything the case holds is compared.
fn full(decoder: &Decoder, case: &Tensors, tally: &mut Tally) {
    let tokens = case.get("tokens");
    let (batch, length) = (tokens.shape[0], tokens.shape[1]);
    let words = ids(tokens);
    let mut shown: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    let mut observe = |name: &str, x: &Tensor| shown.entry(name.to_owned()).or_default().push(x.clone());
    let seen = seen(decoder, case.find("images"), &mut observe);
    let rows: Vec<Option<Tensor>> =
        (0..batch).map(|b| seen.as_ref().map(|seen| seen.get(b).unwrap())).collect();
    let mut sequences: Vec<_> = rows.iter().map(|row| decoder.begin(row.as_ref(), length).unwrap()).collect();
    let mut pairs: Vec<_> = sequences.iter_mut().zip(words.chunks_exact(length)).collect();
    let logits = decoder.forward_all(&mut pairs, &mut observe).unwrap();
    observe("logits", &logits);
    let last = decoder.config().n_layers - 1;
    let mut named = |name: &str, x: &Tensor| observe(&format!("layer.{last}.{name}"), x);
    decoder.observe_adapter(last, seen.as_ref(), &mut named).unwrap();
    if let Some(x) = case.find("probe.x") {
        observe("probe.wq_out", &decoder.queries(last, &tensor(x)).unwrap());
    }
    if let Some(labels) = case.find("labels") {
        // The mean over what is to be learned, each token told by what is before it.
        let rows = logits.to_vec2::<f32>().unwrap();
        let all = labels.wholes();
        let told = (0..batch * length).filter(|i| (i + 1) % length > 0 && all[i + 1] != 0);
        let losses: Vec<f64> = told.map(|i| -f64::from(logprob(&rows[i], all[i + 1] as u32))).collect();
        let loss = losses.iter().sum::<f64>() / losses.len() as f64;
        observe("loss", &Tensor::new(&[loss as f32], &candle_core::Device::Cpu).unwrap());
    }
    for (name, expected) in case.iter() {
        if ["tokens", "images", "labels", "probe.x"].contains(&name) {
            continue;
        }
        let received = &shown.get(name).unwrap_or_else(|| panic!("`{name}` is never shown"));
        let values: Vec<f32> = received.iter().flat_map(floats).collect();
        tally.floats(name, &values, expected.floats(), width(expected), limit(expected.floats(), LAYERS));
    }
}

#[test]
fn every_stage_is_reproduced() {
    for folder in folders().iter().filter(|folder| folder.join("weights.safetensors").exists()) {
        let mut tally = Tally::new(short(folder));
        full(&whole(folder, 0), &Tensors::open(&folder.join("forward_full.safetensors")), &mut tally);
        tally.finish();
        let fused = folder.join("derived_early_fusion.safetensors");
        if fused.exists() {
            let layers = json(&folder.join("derived_early_fusion.json"))["K"].as_u64().unwrap() as usize;
            let mut tally = Tally::new(short(&fused));
            full(&whole(folder, layers), &Tensors::open(&fused), &mut tally);
            tally.finish();
        }
    }
}

/// A tensor of a model whose visual blocks have `more` hidden components that say nothing: rows of zeros below `fc1`, columns
/// of zeros beside `fc2`.
fn widened(name: &str, shape: &[usize], values: &[f32], more: usize) -> (String, Vec<usize>, Vec<f32>) {
    let part = name.strip_prefix("visual_blocks.").and_then(|name| name.split_once(".mlp."));
    let (shape, values) = match (part.map(|(_, part)| part), shape) {
        (Some("fc1.weight"), &[hidden, width]) => {
            (vec![hidden + more, width], [values, &vec![0.0; more * width]].concat())
        }
        (Some("fc1.bias"), &[hidden]) => (vec![hidden + more], [values, &vec![0.0; more]].concat()),
        (Some("fc2.weight"), &[width, hidden]) => {
            let rows = values.chunks_exact(hidden).map(|row| [row, &vec![0.0; more]].concat());
            (vec![width, hidden + more], rows.collect::<Vec<_>>().concat())
        }
        _ => (shape.to_vec(), values.to_vec()),
    };
    (name.to_owned(), shape, values)
}

/// Their hidden width is what the file says, be it four times their width or not.
#[test]
fn visual_blocks_of_another_ratio_are_read() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("weights.safetensors");
    for folder in folders() {
        let original = folder.join("weights.safetensors");
        let Some(file) = original.exists().then(|| Weights::open(&original).unwrap()) else { continue };
        let Some(&[_, width]) = file.shape("visual_query.weight") else { continue };
        let tensors = file.names().map(|name| {
            let shape = file.shape(name).unwrap();
            widened(name, shape, &file.values(name, shape).unwrap(), width)
        });
        decoder::write(&path, &tensors.collect::<Vec<_>>());
        let mut tally = Tally::new(format!("{}, wider visual blocks", short(&folder)));
        let model = decoder_of(&path, &config_of(&folder));
        full(&model, &Tensors::open(&folder.join("forward_full.safetensors")), &mut tally);
        tally.finish();
    }
}

/// The files of a folder as they are released: backbone, tuned tensors, CLIP.
fn released(folder: &Path) -> Option<(Decoder, Family)> {
    let tuned =
        ["adapter.pth", "tuned.pth"].iter().map(|name| folder.join(name)).find(|path| path.exists())?;
    let backbone = folder.join("llama");
    if !backbone.is_dir() {
        return None;
    }
    // CLIP is a file of its own, which the golden folders have only within the whole.
    let whole = Weights::open(&folder.join("weights.safetensors")).unwrap();
    let clip = tempfile::tempdir().unwrap();
    let path = clip.path().join("clip.safetensors");
    let names: Vec<&str> = whole.names().filter(|name| name.starts_with("clip.")).collect();
    let tensors = names.iter().map(|&name| {
        let shape = whole.shape(name).unwrap().to_vec();
        let values = whole.values(name, &shape).unwrap();
        (name.strip_prefix("clip.").unwrap().to_owned(), shape, values)
    });
    decoder::write(&path, &tensors.collect::<Vec<_>>());
    let clip = (!names.is_empty()).then_some(&path);
    let files = Files { backbone: &backbone, adapter: Some(&tuned), clip: clip.map(PathBuf::as_path) };
    let (checkpoint, mut config) = Checkpoint::open(files).unwrap();
    let sizes = config_of(folder);
    assert_eq!(config.vocab_size, None, "-1 means the tokenizer's");
    (config.max_seq_len, config.picture) = (sizes.max_seq_len, sizes.picture);
    let decoder = Decoder::load(&checkpoint, &config, sizes.vocab_size.unwrap(), &Placement::cpu()).unwrap();
    Some((decoder, checkpoint.family()))
}

#[test]
fn released_files_are_the_whole() {
    for folder in folders() {
        let Some((decoder, family)) = released(&folder) else { continue };
        let looks = json(&folder.join("config.json")).get("v_depth").is_some();
        assert_eq!(family, if looks { Family::V2Picture } else { Family::V2Chat });
        let mut tally = Tally::new(format!("{} from files as released", short(&folder)));
        full(&decoder, &Tensors::open(&folder.join("forward_full.safetensors")), &mut tally);
        tally.finish();
    }
}

/// A chat model need not have both biases and scales: one without biases says what biases of zeros would.
#[test]
fn a_chat_model_of_scales_alone_is_one() {
    let place = tempfile::tempdir().unwrap();
    let mut found = false;
    for folder in folders() {
        let original = folder.join("weights.safetensors");
        let Some(file) = original.exists().then(|| Weights::open(&original).unwrap()) else { continue };
        if Checkpoint::new(vec![file], None, 1).family() != Family::V2Chat {
            continue;
        }
        found = true;
        let file = Weights::open(&original).unwrap();
        let bias = |name: &str| name.ends_with("_bias");
        let read = |name: &str| {
            let shape = file.shape(name).unwrap().to_vec();
            let values = file.values(name, &shape).unwrap();
            (name.to_owned(), shape, if bias(name) { vec![0.0; values.len()] } else { values })
        };
        let case = Tensors::open(&folder.join("forward_full.safetensors"));
        let tokens = &ids(case.get("tokens"))[..width(case.get("tokens"))];
        let path = place.path().join("weights.safetensors");
        let logits = |lacking: bool| {
            let names = file.names().filter(|name| !(lacking && bias(name)));
            decoder::write(&path, &names.map(read).collect::<Vec<_>>());
            let decoder = decoder_of(&path, &config_of(&folder));
            assert_eq!(decoder.family(), Family::V2Chat, "{}", short(&folder));
            let mut sequence = decoder.begin(None, tokens.len()).unwrap();
            floats(&decoder.forward(&mut [(&mut sequence, tokens)]).unwrap())
        };
        assert_eq!(logits(true), logits(false), "{}", short(&folder));
    }
    assert!(found, "no chat model found: not even the one in tests/golden");
}

#[test]
fn backbones_of_any_number_of_files_are_one() {
    for folder in folders() {
        let parts = shards(&folder);
        if parts.len() < 2 {
            continue;
        }
        let heads = config_of(&folder).n_heads;
        let whole = Weights::open(&folder.join("weights.safetensors")).unwrap();
        let whole = Checkpoint::new(vec![whole], None, heads);
        let names: Vec<String> =
            parts[0].names().filter(|name| *name != "rope.freqs").map(str::to_owned).collect();
        let of_whole = |name: &str| {
            let name = format!("llama.{name}");
            let shape = whole.shape(&name).unwrap();
            let values = whole.values(&name, &shape).unwrap();
            (shape, values)
        };
        // Joined, and split anew into another number of files.
        let (count, more) = (parts.len(), parts.len() + 2);
        let place = tempfile::tempdir().unwrap();
        let path = |i: usize| place.path().join(format!("{i}.safetensors"));
        for i in 0..more {
            let part = names.iter().map(|name| {
                let (shape, values) = of_whole(name);
                decoder::shard(name, &shape, &values, i, more)
            });
            decoder::write(&path(i), &part.collect::<Vec<_>>());
        }
        let anew = |count: usize| (0..count).map(|i| Weights::open(&path(i)).unwrap()).collect();
        for (files, what) in [(parts, format!("{count} files")), (anew(more), format!("{more} files, anew"))]
        {
            let joined = Checkpoint::new(files, None, heads);
            let mut tally = Tally::new(format!("{} from {what}", short(&folder)));
            // The tuned file's norms are in the whole one.
            for name in names.iter().filter(|name| !name.contains("norm")) {
                let (shape, values) = of_whole(name);
                let name = format!("llama.{name}");
                tally.equal(&name, &joined.values(&name, &shape).unwrap(), &values);
            }
            tally.finish();
        }
        // One of them is missing.
        let lacking = Checkpoint::new(anew(more - 1), None, heads);
        let (shape, _) = of_whole("output.weight");
        let refused = lacking.values("llama.output.weight", &shape).unwrap_err().to_string();
        let (files, rows) = (format!("{} shards", more - 1), ((more - 1) * shape[0] / more).to_string());
        assert!(refused.contains(&files) && refused.contains(&rows), "{refused}");
    }
}

#[test]
fn cached_steps_are_those_of_the_whole_pass() {
    for folder in folders().iter().filter(|folder| folder.join("weights.safetensors").exists()) {
        let decoder = whole(folder, 0);
        let case = Tensors::open(&folder.join("decode_incremental.safetensors"));
        let mut tally = Tally::new(format!("{}/decode_incremental", short(folder)));
        let (tokens, prefill) = (ids(case.get("tokens")), case.get("prefill_len").wholes()[0] as usize);
        let seen = case.find("visual_query_tokens").map(|seen| tensor(seen).squeeze(0).unwrap());
        let mut sequence = decoder.begin(seen.as_ref(), tokens.len()).unwrap();
        let logits = decoder.forward(&mut [(&mut sequence, &tokens[..prefill])]).unwrap();
        let mut compare = |name: &str, received: &Tensor, expected: &[f32]| {
            tally.floats(name, &floats(received), expected, expected.len(), limit(expected, LAYERS));
        };
        compare("prefill", &logits, case.get("prefill_last_logits").floats());
        // The last of the steps' logits are those behind the last token but one.
        for (step, token) in tokens[prefill..].iter().enumerate().take(case.get("step_logits").shape[0]) {
            let logits = decoder.forward(&mut [(&mut sequence, &[*token][..])]).unwrap();
            compare(&format!("step {step}"), &logits, case.get("step_logits").row(step));
        }
        for (name, expected) in case.under("cache.layer.") {
            let (layer, what) = name.split_once('.').unwrap();
            let (cache, held) = (sequence.cache(layer.parse().unwrap()).unwrap(), expected.shape[2]);
            let kept = if what == "k" { cache.keys(held) } else { cache.values(held) };
            // The program keeps them heads first.
            let kept = kept.unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
            compare(name, &kept, expected.floats());
        }
        tally.finish();
    }
}

#[test]
fn greedy_answers_are_equal() {
    for folder in folders().iter().filter(|folder| folder.join("weights.safetensors").exists()) {
        let decoder = whole(folder, 0);
        let Some(tokenizer) = tokenizer_of(folder.parent().unwrap()) else { continue };
        let cases = json(&folder.join("generate.json"));
        let inputs = folder.join("generate_inputs.safetensors");
        let inputs = inputs.exists().then(|| Tensors::open(&inputs));
        let mut tally = Tally::new(format!("{}/generate", short(folder)));
        for (number, case) in cases["cases"].as_array().unwrap().iter().enumerate() {
            let most = case["max_gen_len"].as_u64().unwrap() as usize;
            // The chat program leaves room for the answer: a long prompt keeps its end.
            let room = decoder.config().max_seq_len.checked_sub(most).filter(|&room| room > 0);
            let room = room.filter(|_| decoder.family() == Family::V2Chat).unwrap_or(usize::MAX);
            let end = |ids: Vec<u32>| ids[ids.len().saturating_sub(room)..].to_vec();
            let prompts: Vec<Vec<u32>> = serde_json::from_value(case["prompt_ids"].clone()).unwrap();
            let prompts: Vec<Vec<u32>> = prompts.into_iter().map(end).collect();
            for (text, ids) in case["prompts"].as_array().unwrap().iter().zip(&prompts) {
                let mut encoded = vec![tokenizer.bos()];
                encoded.extend(tokenizer.encode(text.as_str().unwrap()).unwrap());
                tally.equal("prompt ids", &end(encoded), ids);
            }
            let pictures = inputs.as_ref().and_then(|inputs| inputs.find(&format!("case{number}.images")));
            let seen = match seen(&decoder, pictures, &mut |_, _| {}) {
                Some(seen) => {
                    let expected = inputs.as_ref().unwrap().get(&format!("case{number}.visual_query_tokens"));
                    let bound = limit(expected.floats(), LAYERS);
                    tally.floats("seen", &floats(&seen), expected.floats(), width(expected), bound);
                    (0..prompts.len()).map(|i| Some(seen.get(i).unwrap())).collect()
                }
                None => vec![None; prompts.len()],
            };
            let seen: Vec<Option<&Tensor>> = seen.iter().map(Option::as_ref).collect();
            let answers = generate(&decoder, &prompts, &seen, most, tokenizer.eos());
            for (i, answer) in answers.iter().enumerate() {
                let expected = expected_answer(case, i, prompts[i].len(), tokenizer.eos());
                // The multimodal program stops when all of a batch have ended or its room is full; ours goes on.
                let whole = answer.len().min(expected.len());
                tally.equal(&format!("case {number} answer {i}"), &answer[..whole], &expected);
                let said: Vec<u32> = expected.iter().copied().filter(|&id| id != tokenizer.eos()).collect();
                let told = case["decoded"][i].as_str().unwrap().to_owned();
                tally.equal(&format!("case {number} text {i}"), &[tokenizer.decode(&said)], &[told]);
                let alone = generate(&decoder, &prompts[i..=i], &seen[i..=i], most, tokenizer.eos());
                tally.equal(&format!("case {number} answer {i} alone"), &alone[0], answer);
            }
        }
        tally.finish();
    }
}

/// A text as Python writes it down.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let escaped = text.chars().map(|c| match c {
        '\n' => "\\n".into(),
        '\r' => "\\r".into(),
        '\t' => "\\t".into(),
        '\\' => "\\\\".into(),
        c if c == quote => format!("\\{c}"),
        c if c.is_ascii_control() => format!("\\x{:02x}", c as u32),
        c => c.into(),
    });
    let escaped: String = escaped.collect();
    format!("{quote}{escaped}{quote}")
}

#[test]
fn conversations_and_prompts() {
    for root in parts(GOLDEN) {
        let path = root.join("conversations.json");
        if !path.exists() {
            continue;
        }
        let all = json(&path);
        let mut tally = Tally::new(short(&path));
        for (number, case) in all["cases"].as_array().unwrap().iter().enumerate() {
            let name = case["template"].as_str().unwrap().split('(').next().unwrap();
            let template = ChatTemplate::named(name).unwrap();
            let turns = case["appended"].as_array().unwrap().iter().map(|turn| Turn {
                by: match turn[0].as_str().unwrap() {
                    "Human" | "USER" => Speaker::Human,
                    _ => Speaker::Assistant,
                },
                text: turn[1].as_str().unwrap_or_default().to_owned(),
            });
            let conversation = Conversation { template, system: None, turns: turns.collect() };
            tally.equal(
                &format!("case {number}"),
                &[conversation.text().as_str()],
                &[case["prompt"].as_str().unwrap()],
            );
        }
        for (name, told) in all["templates"].as_object().unwrap() {
            let template = ChatTemplate::named(name).unwrap();
            tally.equal(name, &[template.stop()], &[told["stop"].as_str().unwrap()]);
        }
        tally.finish();
        let path = root.join("dataset.json");
        let (Some(tokenizer), true) = (tokenizer_of(&root), path.exists()) else { continue };
        let mut tally = Tally::new(short(&path));
        for samples in json(&path).as_object().unwrap().values().filter_map(|samples| samples.as_array()) {
            for (number, sample) in samples.iter().enumerate() {
                let item = &sample["item"];
                let ids: Vec<u32> = serde_json::from_value(sample["input_ids"].clone()).unwrap();
                let (asked, input, answer) = match item["instruction"].as_str() {
                    // The published loader hands on a tuple of one instead of the text.
                    Some(asked) => {
                        (format!("({},)", quoted(asked)), item["input"].as_str(), item["output"].as_str())
                    }
                    None => {
                        let said = |i: usize| item["conversations"][i]["value"].as_str();
                        (said(0).unwrap().to_owned(), None, said(1))
                    }
                };
                let prompt = Template::V2Multimodal.fill(&asked, input);
                let own = tokenizer.encode(&(prompt + answer.unwrap())).unwrap();
                let shared = own.len().min(ids.len() - 1);
                tally.equal(&format!("sample {number}"), &ids[1..=shared], &own[..shared]);
            }
        }
        tally.finish();
    }
}

#[test]
fn pictures_are_prepared_as_published() {
    for root in parts(GOLDEN) {
        let path = root.join("preprocess.json");
        if !path.exists() {
            continue;
        }
        let tensors = Tensors::open(&root.join("preprocess.safetensors"));
        let mut tally = Tally::new(short(&path));
        for case in json(&path).as_array().unwrap() {
            let number = case["case"].as_u64().unwrap();
            let bytes = read(&root.join(format!("preprocess_{number}.png")));
            let options = ImageOptions {
                side: case["n_px"].as_u64().unwrap() as usize,
                orientation: Orientation::Apply,
                limits: Limits::default(),
            };
            for (order, prepared) in
                [("rgb", prepare(&bytes, &options).unwrap()), ("bgr", prepare_bgr(&bytes, &options).unwrap())]
            {
                if let Some(expected) = tensors.find(&format!("case{number}.{order}")) {
                    let bound = common::Limit { absolute: 1e-5, turn: 1e-7 };
                    tally.floats(
                        &format!("case{number}.{order}"),
                        &prepared,
                        expected.floats(),
                        width(expected),
                        bound,
                    );
                }
            }
        }
        tally.finish();
    }
}

/// A file with the names and shapes of a manifest, and no numbers in it: its data is one hole.
fn hollow(path: &Path, shapes: &Shapes) {
    let mut header = serde_json::Map::new();
    let mut end = 0u64;
    for (name, shape) in shapes {
        let start = end;
        end += 2 * shape.iter().product::<usize>() as u64;
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]}),
        );
    }
    let text = serde_json::Value::Object(header).to_string();
    std::fs::write(path, [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()).unwrap();
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(8 + text.len() as u64 + end).unwrap();
}

/// Tensors of a decoder and their shapes.
type Shapes = BTreeMap<String, Vec<usize>>;

fn shapes_of(path: &Path) -> Shapes {
    serde_json::from_value(json(path)["params"].clone()).unwrap()
}

/// The shape of a tensor of the backbone, which the chat program names without a prefix.
fn backbone_shape<'a>(shapes: &'a Shapes, name: &str) -> &'a [usize] {
    let found = shapes.get(&format!("llama.{name}")).or_else(|| shapes.get(name));
    found.unwrap_or_else(|| panic!("there is no `{name}`"))
}

fn layers_of(shapes: &Shapes) -> usize {
    shapes.keys().filter(|name| name.ends_with("attention.wq.weight")).count()
}

/// The `params.json` of a model of these tensors: the hidden width counts as what it is rounded up to, and heads are those of
/// the gates, or have LLaMA's 128 components.
fn params_of(shapes: &Shapes) -> String {
    let &[words, dim] = backbone_shape(shapes, "tok_embeddings.weight") else { panic!("no table of words") };
    let hidden = backbone_shape(shapes, "layers.0.feed_forward.w1.weight")[0];
    let gate = shapes.iter().find(|(name, _)| name.ends_with("attention.gate"));
    let heads = gate.map_or(dim / 128, |(_, shape)| shape[1]);
    let layers = layers_of(shapes);
    serde_json::json!({
        "dim": dim, "multiple_of": hidden, "n_heads": heads, "n_layers": layers, "vocab_size": words,
    })
    .to_string()
}

/// Whether a model of these tensors is whole and has nothing that we do not know.
fn fits(shapes: &Shapes, params: &str, place: &Path) -> Result<(), String> {
    let path = place.join("all.safetensors");
    hollow(&path, shapes);
    let said = |e: viscache::models::Error| e.to_string();
    let all = Weights::open(&path).map_err(said)?;
    // In the adapter's place, where what nobody asks for is refused.
    let checkpoint = Checkpoint::new(Vec::new(), Some(all), 1);
    let config = Config::from_params(params, checkpoint.family()).map_err(said)?;
    Decoder::check(checkpoint, &config, config.vocab_size.unwrap()).map_err(said)
}

#[test]
fn the_published_sizes_have_every_tensor_and_no_other() {
    for folder in [GOLDEN, "imagebind_llm_decoder"] {
        for root in parts(folder) {
            let files = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
            for path in files.filter(|path| path.to_str().unwrap().ends_with("_params.json")) {
                let shapes = shapes_of(&path);
                if !shapes.keys().any(|name| name.ends_with("tok_embeddings.weight")) {
                    continue; // what is extracted lacks what another file has
                }
                let params = &params_of(&shapes);
                let place = tempfile::tempdir().unwrap();
                let outcome = fits(&shapes, params, place.path());
                assert_eq!(outcome, Ok(()), "{}", short(&path));
                // Without these a file is one of another kind; plain layers have gates that nobody needs.
                const OPTIONAL: [&str; 10] = [
                    "bias",
                    "gate",
                    "image_bind",
                    "lora",
                    "prefix",
                    "query",
                    "resblocks",
                    "scale",
                    "token_embedding",
                    "visual_blocks",
                ];
                let text_side = |name: &str| name.starts_with("clip.") && !name.starts_with("clip.visual.");
                let needed = shapes
                    .keys()
                    .filter(|name| !OPTIONAL.iter().any(|part| name.contains(part)) && !text_side(name));
                let needed: Vec<&String> = needed.step_by(17).collect();
                for name in &needed {
                    let mut lacking = shapes.clone();
                    lacking.remove(*name);
                    let refused = fits(&lacking, params, place.path()).unwrap_err();
                    assert!(refused.contains(name.as_str()), "{name}: {refused}");
                    let mut other = shapes.clone();
                    other.get_mut(*name).unwrap().push(2);
                    let refused = fits(&other, params, place.path()).unwrap_err();
                    assert!(refused.contains(name.trim_end_matches(".weight")), "{name}: {refused}");
                }
                assert!(needed.len() > 10, "{}", short(&path));
                let mut more = shapes.clone();
                more.insert("llama.layers.0.attention.wx.weight".into(), vec![2]);
                let refused = fits(&more, params, place.path()).unwrap_err();
                assert!(refused.contains("attention.wx"), "{refused}");
                say(&format!("{}: {} tensors", short(&path), shapes.len()));
            }
        }
    }
}

/// CLIP's width need not be a multiple of a head's usual 64: what is left over is shared out.
#[test]
fn a_clip_of_another_width_has_as_many_heads_as_its_own_program_gives_it() {
    for folder in folders() {
        let original = folder.join("weights.safetensors");
        let Some(file) = original.exists().then(|| Weights::open(&original).unwrap()) else { continue };
        let Some(width) = file.shape("clip.visual.conv1.weight").map(|shape| shape[0]) else { continue };
        let config = String::from_utf8(read(&folder.join("config.json"))).unwrap();
        let place = tempfile::tempdir().unwrap();
        let of_width = |other: usize| {
            let shapes = file.names().map(|name| {
                let mut shape = file.shape(name).unwrap().to_vec();
                let own = match name {
                    "clip.visual.proj" => 1, // what leaves keeps its width
                    _ if name.starts_with("clip.visual.") => shape.len(),
                    _ => 0,
                };
                for side in shape[..own].iter_mut().filter(|side| side.is_multiple_of(width)) {
                    *side = *side / width * other;
                }
                (name.to_owned(), shape)
            });
            fits(&shapes.collect(), &config, place.path())
        };
        // Three heads of 64, one of 96, two of 80.
        for other in [192, 96, 160] {
            assert_eq!(of_width(other), Ok(()), "{}, {other}", short(&folder));
        }
        assert!(of_width(63).unwrap_err().contains("no CLIP"), "a width without a head");
        assert!(of_width(193).unwrap_err().contains("193"), "three heads have no equal share of it");
    }
}

/// What is published as an adapter lacks what other files have: with the backbone and CLIP from theirs it is whole, and
/// alone it is told what is missing.
#[test]
fn extracted_adapters_of_the_published_sizes_fit_their_backbones() {
    let cases = [
        (GOLDEN, "v2_7b_extracted_BIAS_params.json", "v2_7b_bias_params.json"),
        (GOLDEN, "v2_7b_extracted_LORA_params.json", "v2_7b_lora_bias_params.json"),
        (
            "imagebind_llm_decoder",
            "imagebind_llm_7b_adapter_file_params.json",
            "imagebind_llm_7b_finetune_params.json",
        ),
    ];
    for (folder, extracted, whole) in cases {
        for root in parts(folder).into_iter().filter(|root| root.join(extracted).exists()) {
            let (extracted, whole) = (shapes_of(&root.join(extracted)), shapes_of(&root.join(whole)));
            let rest = |prefix: &str| -> Shapes {
                let own = whole.iter().filter(|(name, _)| !extracted.contains_key(*name));
                own.filter_map(|(name, shape)| Some((name.strip_prefix(prefix)?.to_owned(), shape.clone())))
                    .collect()
            };
            let (backbone, clip) = (rest("llama."), rest("clip."));
            assert_eq!(backbone.len(), layers_of(&whole) * 7 + 2, "the frozen matrices");
            let place = tempfile::tempdir().unwrap();
            let file = |name: &str| place.path().join(name);
            hollow(&file("adapter.safetensors"), &extracted);
            hollow(&file("llama.safetensors"), &backbone);
            hollow(&file("clip.safetensors"), &clip);
            std::fs::write(file("params.json"), params_of(&whole)).unwrap();
            let check = |adapter: Option<&str>, clip: bool| -> Result<(), String> {
                let (adapter, clip) = (adapter.map(file), clip.then(|| file("clip.safetensors")));
                let backbone = file("llama.safetensors");
                let files = Files { backbone: &backbone, adapter: adapter.as_deref(), clip: clip.as_deref() };
                let (checkpoint, config) = Checkpoint::open(files).map_err(|e| e.to_string())?;
                Decoder::check(checkpoint, &config, config.vocab_size.unwrap()).map_err(|e| e.to_string())
            };
            assert_eq!(check(Some("adapter.safetensors"), !clip.is_empty()), Ok(()), "{}", short(&root));
            assert!(check(None, !clip.is_empty()).is_err(), "a backbone alone has no norms here");
            if !clip.is_empty() {
                let refused = check(Some("adapter.safetensors"), false).unwrap_err();
                assert!(refused.contains("clip"), "{refused}");
            }
            for name in extracted.keys().filter(|name| name.ends_with("norm.weight")).step_by(13) {
                let mut lacking = extracted.clone();
                lacking.remove(name);
                hollow(&file("lacking.safetensors"), &lacking);
                let refused = check(Some("lacking.safetensors"), !clip.is_empty()).unwrap_err();
                assert!(refused.contains(name.as_str()), "{name}: {refused}");
            }
        }
    }
}

#[test]
fn what_is_saved_in_8_bits_says_nearly_the_same() {
    for folder in folders().iter().filter(|folder| folder.join("weights.safetensors").exists()) {
        let config = config_of(folder);
        let eight = Placement::open(Default::default(), Some(WeightDtype::Q8_0)).unwrap();
        let load = |checkpoint: &Checkpoint, config: &Config| {
            Decoder::load(checkpoint, config, config.vocab_size.unwrap(), &eight).unwrap()
        };
        let file = Weights::open(&folder.join("weights.safetensors")).unwrap();
        let rounded = load(&Checkpoint::new(vec![file], None, config.n_heads), &config);
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("saved.safetensors");
        rounded.save(&path, b"no tokenizer", Fingerprint::of(b"golden")).unwrap();
        let file = Weights::open(&path).unwrap();
        let saved = Saved::of(&file).unwrap().unwrap();
        let back = load(&Checkpoint::saved(file, &saved).unwrap(), &saved.config);
        assert_eq!(back.family(), rounded.family());
        let case = Tensors::open(&folder.join("forward_full.safetensors"));
        let tokens = &ids(case.get("tokens"))[..case.get("tokens").shape[1]];
        let logits = |decoder: &Decoder| {
            let seen = seen(decoder, case.find("images"), &mut |_, _| {}).map(|seen| seen.get(0).unwrap());
            let mut sequence = decoder.begin(seen.as_ref(), tokens.len()).unwrap();
            floats(&decoder.forward_all(&mut [(&mut sequence, tokens)], &mut |_, _| {}).unwrap())
        };
        let (rounded, back) = (logits(&rounded), logits(&back));
        assert_eq!(rounded, back, "{}", short(folder));
        let exact = &case.get("logits").floats()[..back.len()];
        let (dot, a, b) = exact.iter().zip(&back).fold((0.0f64, 0.0, 0.0), |(dot, a, b), (x, y)| {
            let (x, y) = (f64::from(*x), f64::from(*y));
            (dot + x * y, a + x * x, b + y * y)
        });
        let cosine = dot / (a * b).sqrt();
        assert!(cosine > 0.995, "{}: {cosine}", short(folder));
    }
}

/// A decoder of random weights that is wide enough for blocks of 256, as a folder of original files.
fn wide(folder: &Path) -> (usize, usize) {
    let (dim, hidden, layers, words) = (256, 768, 2, 64);
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) / 8.0
    };
    let mut tensors = vec![
        ("tok_embeddings.weight".to_owned(), vec![words, dim]),
        ("output.weight".to_owned(), vec![words, dim]),
        ("norm.weight".to_owned(), vec![dim]),
    ];
    for i in 0..layers {
        let at = |part: &str| format!("layers.{i}.{part}.weight");
        tensors
            .extend(["wq", "wk", "wv", "wo"].map(|name| (at(&format!("attention.{name}")), vec![dim, dim])));
        tensors.extend(["w1", "w3"].map(|name| (at(&format!("feed_forward.{name}")), vec![hidden, dim])));
        tensors.push((at("feed_forward.w2"), vec![dim, hidden]));
        tensors.extend(["attention_norm", "ffn_norm"].map(|name| (at(name), vec![dim])));
    }
    let filled = tensors.into_iter().map(|(name, shape)| {
        let norm = shape.len() == 1;
        let values = (0..shape.iter().product()).map(|_| if norm { 1.0 } else { next() }).collect();
        (name, shape, values)
    });
    decoder::write(&folder.join("llama.safetensors"), &filled.collect::<Vec<_>>());
    let params = serde_json::json!({"dim": dim, "n_heads": 4, "n_layers": layers, "multiple_of": 256, "max_seq_len": 64});
    std::fs::write(folder.join("params.json"), params.to_string()).unwrap();
    (words, dim)
}

#[test]
fn blocks_of_256_and_halves_say_nearly_the_same() {
    let place = tempfile::tempdir().unwrap();
    let (words, _) = wide(place.path());
    let file = place.path().join("llama.safetensors");
    let (checkpoint, config) =
        Checkpoint::open(Files { backbone: &file, adapter: None, clip: None }).unwrap();
    let load = |numbers| {
        let placement = Placement::open(Default::default(), Some(numbers)).unwrap();
        Decoder::load(&checkpoint, &config, words, &placement).unwrap()
    };
    let ids: Vec<u32> = (0..24).map(|i| i * 7 % words as u32).collect();
    let logits = |decoder: &Decoder| {
        let mut sequence = decoder.begin(None, ids.len()).unwrap();
        floats(&decoder.forward_all(&mut [(&mut sequence, &ids)], &mut |_, _| {}).unwrap())
    };
    let exact = logits(&load(WeightDtype::F32));
    let cosine = |other: &[f32]| {
        let sum = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        sum(&exact, other) / (sum(&exact, &exact) * sum(other, other)).sqrt()
    };
    // Fifteen matrices of evenly spread numbers one after the other, each off by a step's twelfth: by 0.9 and 3.6 % with 6 and
    // 4 bits.
    for (numbers, least) in [
        (WeightDtype::F16, 0.999_99),
        (WeightDtype::Q8_0, 0.999),
        (WeightDtype::Q6K, 0.998),
        (WeightDtype::Q4K, 0.98),
    ] {
        let rounded = load(numbers);
        let said = logits(&rounded);
        assert!(cosine(&said) > least, "{numbers}: {}", cosine(&said));
        // What a sequence is told does not depend on who else is there.
        let mut others = [5usize, 1, 9].map(|len| rounded.begin(None, len).unwrap());
        let mut own = rounded.begin(None, ids.len()).unwrap();
        let [a, b, c] = &mut others;
        let mut batch = [(a, &ids[..5]), (&mut own, &ids[..]), (b, &ids[7..8]), (c, &ids[3..12])];
        let together = floats(&rounded.forward(&mut batch).unwrap().get(1).unwrap());
        assert_eq!(together, said[said.len() - words..], "{numbers}");
        let path = place.path().join(format!("{numbers}.saved.safetensors"));
        let saved = rounded.save(&path, b"no tokenizer", Fingerprint::of(b"random"));
        if numbers == WeightDtype::F16 {
            assert!(saved.unwrap_err().to_string().contains("q4_k"));
            continue;
        }
        saved.unwrap();
        let size = std::fs::metadata(&path).unwrap().len();
        assert!(size < std::fs::metadata(&file).unwrap().len() / 2, "{numbers}: {size}");
        let file = Weights::open(&path).unwrap();
        let told = Saved::of(&file).unwrap().unwrap();
        assert_eq!(told.numbers, numbers);
        let placement = Placement::open(Default::default(), Some(numbers)).unwrap();
        let back =
            Decoder::load(&Checkpoint::saved(file, &told).unwrap(), &told.config, words, &placement).unwrap();
        assert_eq!(logits(&back), said, "{numbers}");
        // Cut short it is refused, and nothing is read beyond its end.
        let whole = std::fs::read(&path).unwrap();
        for len in [whole.len() / 3, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            let cut = Weights::open(&path).and_then(|file| Saved::of(&file).map(drop));
            assert!(cut.is_err(), "{numbers}, {len}");
        }
    }
}
