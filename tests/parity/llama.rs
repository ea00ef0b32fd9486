//! ImageBind-LLM's decoder against the published program: every layer, every cached step, every greedy answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::Value;
use viscache::models::Placement;
use viscache::models::llama::{
    Bind, Checkpoint, Config, Decoder, Family, Files, Rotary, SampleParams, Sampler, Saved, filtered, softmax,
};
use viscache::models::weights::Weights;
use viscache::text::{SentencePiece, Template};
use viscache::types::{Fingerprint, WeightDtype};

use crate::common::{Limit, Tally, Tensors, json, max_abs, parts, read, short};
use crate::decoder::{
    LAYERS, backbone, config_of, expected_answer, floats, generate, ids, limit, normalised, tensor,
    tokenizer_of, width, write,
};

/// Of single operations, likewise.
const OPERATIONS: f64 = 1e-5;

/// The golden folders that hold a decoder.
fn folders() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in parts("imagebind_llm_decoder") {
        let entries = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
        found.extend(entries.filter(|path| path.join("forward_full.safetensors").exists()));
    }
    found.sort();
    assert!(!found.is_empty(), "no decoder found: not even the one in tests/golden");
    found
}

/// A backbone in some form, with a folder's adapter.
fn files<'a>(backbone: &'a Path, adapter: &'a Path) -> Files<'a> {
    Files { backbone, adapter: Some(adapter), clip: None }
}

/// The decoder of a folder: from its one file or, where a clone carries less, from backbone and adapter.
fn whole(folder: &Path) -> Decoder {
    let config = config_of(folder);
    let file = folder.join("weights.safetensors");
    let checkpoint = if file.exists() {
        Checkpoint::new(vec![Weights::open(&file).unwrap()], None, config.n_heads)
    } else {
        Checkpoint::open(files(&folder.join("llama"), &folder.join("adapter.pth"))).unwrap().0
    };
    Decoder::load(&checkpoint, &config, config.vocab_size.unwrap(), &Placement::cpu()).unwrap()
}

#[test]
fn every_layer_is_reproduced() {
    for folder in folders() {
        let case = Tensors::open(&folder.join("forward_full.safetensors"));
        let mut tally = Tally::new(short(&folder));
        full(&whole(&folder), &case, &mut tally);
        tally.finish();
    }
}

/// A batch of sequences in one pass.
fn full(decoder: &Decoder, case: &Tensors, tally: &mut Tally) {
    let tokens = case.get("tokens");
    let (batch, length) = (tokens.shape[0], tokens.shape[1]);
    let ids = ids(tokens);
    let visual = decoder.visual(&normalised(case.get("image_embed_raw"))).unwrap(); // [B, D]
    let golden = case.get("visual_feats");
    tally.floats(
        "visual_feats",
        &floats(&visual),
        golden.floats(),
        width(golden),
        limit(golden.floats(), LAYERS),
    );
    let rows: Vec<Tensor> = (0..batch).map(|b| visual.narrow(0, b, 1).unwrap()).collect();
    let mut sequences: Vec<_> = rows.iter().map(|row| decoder.begin(Some(row), length).unwrap()).collect();
    let mut seen: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    let mut observe = |name: &str, x: &Tensor| seen.entry(name.to_owned()).or_default().push(x.clone());
    let mut pairs: Vec<_> = sequences.iter_mut().zip(ids.chunks_exact(length)).collect();
    let logits = decoder.forward_all(&mut pairs, &mut observe).unwrap();
    observe("logits", &logits);
    let last = decoder.config().n_layers - 1;
    decoder
        .observe_adapter(last, Some(&visual), &mut |name, x| observe(&format!("layer.{last}.{name}"), x))
        .unwrap();
    for (name, expected) in case.iter() {
        if ["tokens", "image_embed_raw", "visual_feats"].contains(&name) {
            continue;
        }
        let received = &seen.get(name).unwrap_or_else(|| panic!("`{name}` is never shown"));
        let mut values: Vec<f32> = if name.ends_with("_rope") && !name.ends_with("pre_rope") {
            // One for each sequence, heads first.
            received.iter().flat_map(|x| floats(&x.transpose(0, 1).unwrap().contiguous().unwrap())).collect()
        } else {
            received.iter().flat_map(floats).collect()
        };
        if name.ends_with("tanh_gate") {
            values = values.into_iter().step_by(decoder.config().head()).collect(); // one for each head
        }
        tally.floats(name, &values, expected.floats(), width(expected), limit(expected.floats(), LAYERS));
    }
}

#[test]
fn a_backbone_and_its_adapter_file_are_the_whole() {
    for folder in folders().iter().filter(|folder| folder.join("adapter.pth").exists()) {
        let (checkpoint, mut config) =
            Checkpoint::open(files(&folder.join("llama"), &folder.join("adapter.pth"))).unwrap();
        assert_eq!(config.vocab_size, None, "-1 means the tokenizer's");
        let whole_config = config_of(folder);
        config.max_seq_len = whole_config.max_seq_len;
        let vocabulary = whole_config.vocab_size.unwrap();
        let decoder = Decoder::load(&checkpoint, &config, vocabulary, &Placement::cpu()).unwrap();
        let mut tally = Tally::new(format!("{} from files as released", short(folder)));
        full(&decoder, &Tensors::open(&folder.join("forward_full.safetensors")), &mut tally);
        tally.finish();
        // Another backbone's shapes are refused by name.
        let other = Config { hidden: config.hidden + 32, ..config.clone() };
        let refused = Decoder::load(&checkpoint, &other, vocabulary, &Placement::cpu()).err().unwrap();
        assert!(refused.to_string().contains("feed_forward.w1"), "{refused}");
        let other = Config { vocab_size: Some(vocabulary + 1), ..config };
        let refused = Decoder::load(&checkpoint, &other, vocabulary, &Placement::cpu());
        assert!(refused.err().unwrap().to_string().contains("tokenizer"), "vocabularies differ");
    }
}

/// Logits of a few tokens from a backbone in some form, with the adapter.
fn logits_of(backbone: &Path, folder: &Path, params: &Value) -> Vec<f32> {
    let (checkpoint, mut config) = Checkpoint::open(files(backbone, &folder.join("adapter.pth"))).unwrap();
    config.max_seq_len = params["max_seq_len"].as_u64().unwrap() as usize;
    let vocabulary = params["vocab_size"].as_u64().unwrap() as usize;
    let decoder = Decoder::load(&checkpoint, &config, vocabulary, &Placement::cpu()).unwrap();
    let tokens = Tensors::open(&folder.join("forward_full.safetensors"));
    let tokens = &ids(tokens.get("tokens"))[..width(tokens.get("tokens"))];
    let mut sequence = decoder.begin(None, tokens.len()).unwrap();
    floats(&decoder.forward(&mut [(&mut sequence, tokens)]).unwrap())
}

#[test]
fn converted_and_split_backbones_are_the_original() {
    for folder in folders().iter().filter(|folder| folder.join("adapter.pth").exists()) {
        let params = json(&folder.join("config.json"));
        let original = logits_of(&folder.join("llama"), folder, &params);
        let place = tempfile::tempdir().unwrap();
        let heads = params["n_heads"].as_u64().unwrap() as usize;

        // Hugging Face's names, and its order of rotary halves: rows 2j and 2j + 1 of a head become j and j + d/2.
        let converted = place.path().join("hf");
        std::fs::create_dir(&converted).unwrap();
        let renamed = backbone(folder).into_iter().map(|(name, shape, values)| {
            let turned = name.ends_with("wq.weight") || name.ends_with("wk.weight");
            let values = match (turned, &shape[..]) {
                (true, &[rows, width]) => {
                    let head = rows / heads;
                    let from =
                        |row: usize| row / head * head + row % (head / 2) * 2 + row % head / (head / 2);
                    (0..rows).flat_map(|row| values[from(row) * width..][..width].to_vec()).collect()
                }
                _ => values,
            };
            let theirs = [
                ("tok_embeddings.", "model.embed_tokens."),
                ("output.", "lm_head."),
                ("layers.", "model.layers."),
                ("attention.wq", "self_attn.q_proj"),
                ("attention.wk", "self_attn.k_proj"),
                ("attention.wv", "self_attn.v_proj"),
                ("attention.wo", "self_attn.o_proj"),
                ("feed_forward.w1", "mlp.gate_proj"),
                ("feed_forward.w2", "mlp.down_proj"),
                ("feed_forward.w3", "mlp.up_proj"),
                ("attention_norm", "input_layernorm"),
                ("ffn_norm", "post_attention_layernorm"),
            ];
            let name = match name.as_str() {
                "norm.weight" => "model.norm.weight".to_owned(),
                _ => theirs.iter().fold(name, |name, (ours, theirs)| name.replacen(ours, theirs, 1)),
            };
            (name, shape, values)
        });
        let renamed: Vec<_> = renamed.collect();
        let (first, second) = renamed.split_at(renamed.len() / 2);
        write(&converted.join("model-00001-of-00002.safetensors"), first);
        write(&converted.join("model-00002-of-00002.safetensors"), second);
        let sizes = serde_json::json!({
            "hidden_size": params["dim"], "num_hidden_layers": params["n_layers"],
            "num_attention_heads": heads, "intermediate_size": params["ffn_hidden"],
            "rms_norm_eps": params["norm_eps"], "vocab_size": params["vocab_size"],
        });
        std::fs::write(converted.join("config.json"), sizes.to_string()).unwrap();
        assert_eq!(logits_of(&converted, folder, &params), original);

        // One file without a prefix, beside its sizes.
        let single = place.path().join("single");
        std::fs::create_dir(&single).unwrap();
        write(&single.join("llama.safetensors"), &backbone(folder));
        std::fs::copy(folder.join("llama/params.json"), single.join("params.json")).unwrap();
        assert_eq!(logits_of(&single.join("llama.safetensors"), folder, &params), original);

        let lost = format!("layers.{}.attention.wv", config_of(folder).n_layers - 1);
        let lacking: Vec<_> =
            backbone(folder).into_iter().filter(|(name, ..)| !name.starts_with(&lost)).collect();
        write(&single.join("llama.safetensors"), &lacking);
        let (checkpoint, config) =
            Checkpoint::open(files(&single.join("llama.safetensors"), &folder.join("adapter.pth"))).unwrap();
        let vocabulary = config_of(folder).vocab_size.unwrap();
        let refused = Decoder::load(&checkpoint, &config, vocabulary, &Placement::cpu()).err().unwrap();
        assert!(refused.to_string().contains(&lost), "{refused}");
        let nothing = Checkpoint::open(Files { backbone: place.path(), adapter: None, clip: None })
            .err()
            .unwrap()
            .to_string();
        assert!(nothing.contains("consolidated") && nothing.contains("config.json"), "{nothing}");
    }
}

#[test]
fn cached_steps_are_those_of_the_whole_pass() {
    for folder in folders() {
        let decoder = whole(&folder);
        let case = Tensors::open(&folder.join("decode_incremental.safetensors"));
        let mut tally = Tally::new(format!("{}/decode_incremental", short(&folder)));
        let (tokens, prefill) = (ids(case.get("tokens")), case.get("prefill_len").wholes()[0] as usize);
        let visual = tensor(case.get("visual_feats")).squeeze(1).unwrap(); // [1, D]
        let mut sequence = decoder.begin(Some(&visual), tokens.len()).unwrap();
        let logits = decoder.forward(&mut [(&mut sequence, &tokens[..prefill])]).unwrap();
        let expected = case.get("prefill_last_logits");
        tally.floats(
            "prefill",
            &floats(&logits),
            expected.floats(),
            width(expected),
            limit(expected.floats(), LAYERS),
        );
        let steps = case.get("step_logits");
        for (step, token) in tokens[prefill..].iter().enumerate() {
            let mut seen = BTreeMap::new();
            let mut observe = |name: &str, x: &Tensor| _ = seen.insert(name.to_owned(), floats(x));
            let logits = decoder.forward_all(&mut [(&mut sequence, &[*token][..])], &mut observe).unwrap();
            let expected = steps.row(step);
            tally.floats(
                &format!("step {step}"),
                &floats(&logits),
                expected,
                expected.len(),
                limit(expected, LAYERS),
            );
            if step == 0 {
                for (name, expected) in case.under("step0.") {
                    tally.floats(
                        name,
                        &seen[name],
                        expected.floats(),
                        width(expected),
                        limit(expected.floats(), LAYERS),
                    );
                }
            }
        }
        for (name, expected) in case.under("cache.layer.") {
            let (layer, what) = name.split_once('.').unwrap();
            let cache = sequence.cache(layer.parse().unwrap()).unwrap();
            let held = expected.shape[1];
            let kept = if what == "k" { cache.keys(held) } else { cache.values(held) };
            tally.floats(
                name,
                &floats(&kept.unwrap()),
                expected.floats(),
                width(expected),
                limit(expected.floats(), LAYERS),
            );
        }
        tally.finish();
        // No room, no tokens, no such token: said, and nothing is lost.
        let mut step =
            |ids: &[u32]| decoder.forward(&mut [(&mut sequence, ids)]).map(drop).unwrap_err().to_string();
        assert!(step(&[1]).contains("room for 0"));
        assert!(step(&[]).contains("without new tokens"));
        assert!(decoder.begin(None, decoder.config().max_seq_len + 1).is_err());
    }
}

/// What an adapter goes through apart is kept apart, of whatever width: one that is no multiple of a block of 8 bits is
/// saved in f32.
#[test]
fn a_narrow_decoder_is_saved_with_its_bare_matrices() {
    let (dim, hidden, heads, rank, words) = (48, 128, 4, 2, 32);
    let at = |part: &str| format!("llama.layers.0.{part}.weight");
    let mut shapes = vec![
        ("llama.tok_embeddings.weight".to_owned(), vec![words, dim]),
        ("llama.output.weight".to_owned(), vec![words, dim]),
        ("llama.norm.weight".to_owned(), vec![dim]),
        ("prefix_query.weight".to_owned(), vec![1, dim]),
        ("llama.layers.0.attention.gate".to_owned(), vec![1, heads, 1, 1]),
        (at("attention.lora_wv_l1"), vec![rank, dim]),
        (at("attention.lora_wv_l2"), vec![dim, rank]),
        (at("feed_forward.w2"), vec![dim, hidden]),
    ];
    shapes.extend(["wq", "wk", "wv", "wo"].map(|name| (at(&format!("attention.{name}")), vec![dim, dim])));
    shapes.extend(["w1", "w3"].map(|name| (at(&format!("feed_forward.{name}")), vec![hidden, dim])));
    shapes.extend(["attention_norm", "ffn_norm"].map(|name| (at(name), vec![dim])));
    let wave = |n: usize, by: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * by).sin()).collect() };
    let tensors: Vec<_> = shapes
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let values = wave(shape.iter().product(), 0.7 + i as f32 / 10.0);
            (name, shape, values)
        })
        .collect();
    let place = tempfile::tempdir().unwrap();
    let (path, saved) = (place.path().join("whole.safetensors"), place.path().join("saved.safetensors"));
    write(&path, &tensors);
    let sizes = serde_json::json!({ "dim": dim, "n_heads": heads, "n_layers": 1, "multiple_of": hidden });
    let config = Config::from_params(&sizes.to_string(), Family::ImageBindLlm).unwrap();
    let eight = Placement::open(Default::default(), Some(WeightDtype::Q8_0)).unwrap();
    let checkpoint = Checkpoint::new(vec![Weights::open(&path).unwrap()], None, heads);
    let decoder = Decoder::load(&checkpoint, &config, words, &eight).unwrap();
    decoder.save(&saved, b"no tokenizer", Fingerprint::of(b"waves")).unwrap();
    let file = Weights::open(&saved).unwrap();
    let told = Saved::of(&file).unwrap().unwrap();
    let back = Decoder::load(&Checkpoint::saved(file, &told).unwrap(), &told.config, words, &eight).unwrap();
    let seen = Tensor::from_vec(wave(dim, 0.3), (1, dim), &candle_core::Device::Cpu).unwrap();
    let logits = |decoder: &Decoder| {
        let mut sequence = decoder.begin(Some(&seen), 3).unwrap();
        floats(&decoder.forward(&mut [(&mut sequence, &[1, 5, 9])]).unwrap())
    };
    assert_eq!(logits(&back), logits(&decoder));
}

#[test]
fn greedy_answers_are_equal() {
    for folder in folders() {
        let decoder = whole(&folder);
        let Some(tokenizer) = tokenizer_of(folder.parent().unwrap()) else { continue };
        let cases = json(&folder.join("generate.json"));
        let inputs = Tensors::open(&folder.join("generate_inputs.safetensors"));
        let mut tally = Tally::new(format!("{}/generate", short(&folder)));
        for (number, case) in cases["cases"].as_array().unwrap().iter().enumerate() {
            let visual = tensor(inputs.get(&format!("case{number}.visual_feats"))).squeeze(1).unwrap();
            let raw = normalised(inputs.get(&format!("case{number}.image_embed_raw")));
            let ours = floats(&decoder.visual(&raw).unwrap());
            let expected = floats(&visual);
            tally.floats("visual_feats", &ours, &expected, decoder.config().dim, limit(&expected, LAYERS));
            let prompts: Vec<Vec<u32>> = serde_json::from_value(case["prompt_ids"].clone()).unwrap();
            for (text, ids) in case["prompts"].as_array().unwrap().iter().zip(&prompts) {
                let mut encoded = vec![tokenizer.bos()];
                encoded.extend(tokenizer.encode(text.as_str().unwrap()).unwrap());
                tally.equal("prompt ids", &encoded, ids);
            }
            let max_gen_len = case["max_gen_len"].as_u64().unwrap() as usize;
            let shown: Vec<_> = (0..prompts.len()).map(|i| visual.narrow(0, i, 1).unwrap()).collect();
            let shown: Vec<_> = shown.iter().map(Some).collect();
            let answers = generate(&decoder, &prompts, &shown, max_gen_len, tokenizer.eos());
            for (i, answer) in answers.iter().enumerate() {
                let expected = expected_answer(case, i, prompts[i].len(), tokenizer.eos());
                tally.equal(&format!("case {number} answer {i}"), answer, &expected);
                let said: Vec<u32> = answer.iter().copied().filter(|&id| id != tokenizer.eos()).collect();
                let expected = case["decoded"][i].as_str().unwrap().to_owned();
                tally.equal(&format!("case {number} text {i}"), &[tokenizer.decode(&said)], &[expected]);
                // Alone it says the same as among others.
                let alone = generate(&decoder, &prompts[i..=i], &shown[i..=i], max_gen_len, tokenizer.eos());
                tally.equal(&format!("case {number} answer {i} alone"), &alone[0], answer);
            }
        }
        tally.finish();
    }
}

#[test]
fn rotation_and_norms() {
    for root in parts("imagebind_llm_decoder") {
        let path = root.join("rope_rmsnorm.safetensors");
        if !path.exists() {
            continue;
        }
        let case = Tensors::open(&path);
        let mut tally = Tally::new(short(&path));
        let heads: Vec<&str> = case.iter().filter_map(|(name, _)| name.strip_suffix(".q")).collect();
        for name in heads {
            let head = name.strip_prefix("hd").unwrap().parse().unwrap();
            // `cos_row_N` is one row far from the beginning.
            let prefix = format!("{name}.cos_row_");
            let far = case.under(&prefix).map(|(row, _)| row.parse::<usize>().unwrap() + 1);
            let near = case.get(&format!("{name}.cos")).shape[0];
            let positions = far.fold(near, usize::max);
            let rotary = Rotary::new(head, positions, 10_000.0, &Placement::cpu()).unwrap();
            let (cos, sin) = rotary.tables();
            for (part, table) in [("cos", cos), ("sin", sin)] {
                let expected = case.get(&format!("{name}.{part}"));
                let rows = floats(&table.narrow(0, 0, expected.shape[0]).unwrap());
                tally.floats(
                    &format!("{name}.{part}"),
                    &rows,
                    expected.floats(),
                    head / 2,
                    limit(expected.floats(), OPERATIONS),
                );
                for (at, expected) in case.under(&format!("{name}.{part}_row_")) {
                    let row = floats(&table.narrow(0, at.parse().unwrap(), 1).unwrap());
                    tally.floats(
                        &format!("{name}.{part}, row {at}"),
                        &row,
                        expected.floats(),
                        head / 2,
                        limit(expected.floats(), OPERATIONS),
                    );
                }
            }
            for part in ["q", "k"] {
                let (input, expected) =
                    (case.get(&format!("{name}.{part}")), case.get(&format!("{name}.{part}_out")));
                let (length, heads) = (input.shape[1], input.shape[2]);
                let rows = tensor(input).reshape((length, heads * head)).unwrap();
                let turned = rotary.turn(&rows, 0).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
                tally.floats(
                    &format!("{name}.{part}_out"),
                    &floats(&turned),
                    expected.floats(),
                    head,
                    limit(expected.floats(), OPERATIONS),
                );
            }
        }
        for (name, expected) in case.under("rms.eps") {
            let eps: f32 = name.strip_suffix(".out").unwrap().parse().unwrap();
            let out =
                candle_nn::ops::rms_norm(&tensor(case.get("rms.x")), &tensor(case.get("rms.weight")), eps)
                    .unwrap();
            tally.floats(
                name,
                &floats(&out),
                expected.floats(),
                width(expected),
                limit(expected.floats(), OPERATIONS),
            );
        }
        tally.finish();
    }
}

#[test]
fn what_top_p_keeps() {
    for root in parts("imagebind_llm_decoder") {
        if !root.join("sampling.json").exists() {
            continue;
        }
        let (cases, tensors) =
            (json(&root.join("sampling.json")), Tensors::open(&root.join("sampling.safetensors")));
        let mut tally = Tally::new(short(&root.join("sampling")));
        for case in cases.as_array().unwrap() {
            let top_p = case["top_p"].as_f64().unwrap() as f32;
            if let Some(bounds) = case.get("boundary_probs") {
                let probabilities: Vec<f32> = serde_json::from_value(bounds.clone()).unwrap();
                let expected: Vec<f32> = serde_json::from_value(case["filtered"].clone()).unwrap();
                let mut kept = vec![0.0; expected.len()];
                filtered(&probabilities, top_p).iter().for_each(|&(id, p)| kept[id as usize] = p);
                tally.floats("boundary", &kept, &expected, expected.len(), limit(&expected, 1e-6));
                continue;
            }
            let (number, temperature) =
                (case["case"].as_u64().unwrap(), case["temperature"].as_f64().unwrap() as f32);
            let get = |part: &str| tensors.get(&format!("case{number}.{part}"));
            for row in 0..get("logits").shape[0] {
                let logits = get("logits").row(row);
                let probabilities = softmax(logits, temperature);
                let expected = get("probs").row(row);
                tally.floats("probs", &probabilities, expected, expected.len(), limit(expected, 1e-5));
                let kept = filtered(&probabilities, top_p);
                // As many as theirs; but where all that differ begin at the bound itself, rounding decides of them.
                let count = case["kept"][row].as_u64().unwrap() as usize;
                let mut before: Vec<f32> = probabilities.clone();
                before.sort_by(|a, b| b.total_cmp(a));
                let mass = |n: usize| before[..n].iter().map(|p| f64::from(*p)).sum::<f64>();
                let (fewer, more) = (count.min(kept.len()), count.max(kept.len()));
                let at_the_bound = |n: usize| (mass(n) - f64::from(top_p)).abs() < 1e-6;
                tally.check("kept", (fewer..more).all(at_the_bound), || {
                    format!("{count} expected, {} received", kept.len())
                });
                // Two tokens of one probability may come in either order.
                let order: Vec<i64> = kept[..fewer].iter().map(|&(id, _)| i64::from(id)).collect();
                let sorted = &get("sorted_ids").whole_row(row)[..fewer];
                let theirs: Vec<f32> = sorted.iter().map(|&id| expected[id as usize]).collect();
                tally.same_but_for_ties("order", &order, sorted, &theirs, 1e-7);
                let mut full = vec![0.0; logits.len()];
                kept.iter().for_each(|&(id, p)| full[id as usize] = p);
                let expected = get("filtered_probs_vocab_order").row(row);
                tally.floats("filtered", &full, expected, expected.len(), limit(expected, 1e-5));
                // Draws follow them: every kept token and no other, in about its share. That of one strays by
                // √(p(1−p)/n), 0.008 at most; together they turn by (1/Σp² − 1)/2n on average. Five times of the one, ten
                // of the other.
                const DRAWS: u16 = 4000;
                let draws = f64::from(DRAWS);
                let mut sampler =
                    Sampler::new(SampleParams { temperature, top_p, seed: 3, ..SampleParams::default() });
                let mut drawn = vec![0.0f32; logits.len()];
                (0..DRAWS)
                    .for_each(|_| drawn[sampler.choose(logits, None).id as usize] += 1.0 / f32::from(DRAWS));
                let squares: f64 = expected.iter().map(|p| f64::from(*p).powi(2)).sum();
                let limit = Limit { absolute: 0.04, turn: 5.0 / (squares * draws) };
                tally.floats("drawn", &drawn, expected, expected.len(), limit);
            }
        }
        tally.finish();
    }
}

#[test]
fn texts_and_ids() {
    for root in parts("imagebind_llm_decoder") {
        if !root.join("tokenizer_cases.json").exists() {
            continue;
        }
        let tokenizer = SentencePiece::from_bytes(&read(&root.join("tokenizer.model"))).unwrap();
        let cases = json(&root.join("tokenizer_cases.json"));
        let mut tally = Tally::new(short(&root.join("tokenizer")));
        let list = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
        tally.equal("pieces", &[tokenizer.len() as u64], &[cases["vocab_size"].as_u64().unwrap()]);
        let ends = [tokenizer.bos(), tokenizer.eos()].map(u64::from);
        tally.equal("ends", &ends, &["bos_id", "eos_id"].map(|key| cases[key].as_u64().unwrap()));
        for case in cases["encode"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids = tokenizer.encode(text).unwrap();
            tally.equal(&format!("{text:?}"), &ids, &list(&case["ids"]));
            tally.equal(
                &format!("{text:?} back"),
                &[tokenizer.decode(&ids).as_str()],
                &[case["decoded"].as_str().unwrap()],
            );
        }
        for case in cases["decode"].as_array().unwrap() {
            let ids = list(&case["ids"]);
            tally.equal(
                &format!("{ids:?}"),
                &[tokenizer.decode(&ids).as_str()],
                &[case["decoded"].as_str().unwrap()],
            );
        }
        for case in json(&root.join("prompts.json")).as_array().unwrap() {
            let (instruction, input) = (case["instruction"].as_str().unwrap(), case["input"].as_str());
            for (key, template) in
                [("imagebind_llm", Template::ImageBindLlm), ("v2_multimodal", Template::V2Multimodal)]
            {
                let filled = template.fill(instruction, input);
                tally.equal(
                    &format!("{key} {instruction:?}"),
                    &[filled.as_str()],
                    &[case[key].as_str().unwrap()],
                );
            }
        }
        tally.finish();
    }
}

#[test]
fn the_bind_network_in_both_forms() {
    for root in parts("visual_cache") {
        if !root.join("bind_cases.safetensors").exists() {
            continue;
        }
        let cases = Tensors::open(&root.join("bind_cases.safetensors"));
        let mut tally = Tally::new(short(&root.join("bind")));
        let input = tensor(cases.get("input"));
        // A clone carries some of them.
        let entries = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
        let stem = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
        let named = entries.map(|path| (stem(&path), path));
        let networks = named.filter(|(name, _)| name.starts_with("bind_") && name != "bind_cases");
        let mut networks: Vec<(String, PathBuf)> = networks.collect();
        let nested = root.join("adapter_like.pth");
        networks.extend(nested.exists().then(|| ("bind_rms".to_owned(), nested)));
        networks.sort();
        for (name, path) in networks {
            let file = path.file_name().unwrap().to_str().unwrap();
            let checkpoint = Checkpoint::new(Vec::new(), Some(Weights::open(&path).unwrap()), 1);
            let dim = width(cases.get(&format!("{name}.proj")));
            let bind = Bind::load(&checkpoint, dim, &Placement::cpu()).unwrap().unwrap();
            let mut seen = BTreeMap::new();
            bind.forward(&input, &mut |part, x| _ = seen.insert(part.to_owned(), floats(x))).unwrap();
            for (part, expected) in cases.under(&format!("{name}.")) {
                let largest = max_abs(expected.floats());
                let absolute = if name.ends_with("_eps") { 1e-5 * largest } else { 5e-5 * largest.max(1.0) };
                let limit = Limit { absolute, turn: 1e-7 };
                tally.floats(
                    &format!("{file} {part}"),
                    &seen[part],
                    expected.floats(),
                    width(expected),
                    limit,
                );
            }
        }
        tally.finish();
    }
}
