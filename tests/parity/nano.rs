//! A nano model from file and text to the enhanced query, against the program that trained it: the model that lies in the golden folder. The
//! one that the program has built in was trained by ourselves, and nobody else has said anything of it.
//!
//! Everything goes through [`Encoder`], front ends included. The makers of the model promise agreement to about 1e-4. The
//! pictures are lossless, so what differs is the order of f32 sums; that leaves 5e-7, and the limit is 1e-5.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use viscache::batch::{Event, GenerateOptions, Generator, Seen, Task, Wait};
use viscache::blend::{BlendParams, blend, mix};
use viscache::index::exact;
use viscache::media::{MediaLimits, Orientation};
use viscache::models::DeviceKind;
use viscache::models::encoder::{Encoder, EncoderOptions, Prepared, Values};
use viscache::models::llama::SampleParams;
use viscache::models::llm::{Llm, LlmOptions, Prompt};
use viscache::types::{Embedding, Hit, ItemId, Modality};

use crate::common::{Limit, Tally, Tensors, json, max_abs, parts, read, say, short};

const LIMIT: Limit = Limit { absolute: 1e-5, turn: 1e-9 };
/// Spectrograms near the floor differ by the reference's own noise; its readme expects agreement to about 1e-4.
const HEARD: Limit = Limit { absolute: 1e-4, turn: 1e-7 };

/// A file of a golden folder.
fn file(folder: &Path, name: &str) -> Option<PathBuf> {
    Some(folder.join(name))
}

fn encoder(folder: &Path) -> Encoder {
    Encoder::open(&EncoderOptions {
        network: Default::default(),
        weights: file(folder, "imagebind.safetensors"),
        sizes: file(folder, "imagebind.json"),
        modalities: None,
        device: DeviceKind::Cpu,
        dtype: None,
        threads: 2,
        orientation: Orientation::Reference,
        limits: MediaLimits::default(),
    })
    .unwrap()
}

/// One row of `expected.json` that we can embed.
struct Query {
    /// Its row in the tensors.
    row: usize,
    name: String,
    prepared: Prepared,
}

fn queries(encoder: &Encoder, folder: &Path, expected: &Value, tally: &mut Tally) -> Vec<Query> {
    let mut skipped: BTreeMap<&str, usize> = BTreeMap::new();
    let mut queries = vec![];
    for (row, query) in expected["queries"].as_array().unwrap().iter().enumerate() {
        let (kind, id) = (query["kind"].as_str().unwrap(), query["id"].as_str().unwrap());
        let name = format!("{kind} {id}");
        let prepared = match kind {
            "image" => encoder.prepare(Modality::Image, &read(&folder.join(id))).unwrap(),
            "text" => {
                let text = query["text"].as_str().unwrap();
                let prepared = encoder.prepare(Modality::Text, text.as_bytes()).unwrap();
                let ids: Vec<u32> = serde_json::from_value(query["ids"].clone()).unwrap();
                let Values::Ids(received) = &prepared.values else { panic!("{name} became a picture") };
                tally.equal(&format!("{name}, ids"), received, &ids);
                prepared
            }
            "audio" => encoder.prepare(Modality::Audio, &read(&folder.join(id))).unwrap(),
            other => {
                *skipped.entry(other).or_default() += 1;
                continue;
            }
        };
        queries.push(Query { row, name, prepared });
    }
    for (kind, count) in skipped {
        say(&format!("skipped: {count} {kind} queries of {} (no such encoder here)", short(folder)));
    }
    queries
}

#[test]
fn queries_neighbours_and_enhanced_queries() {
    for path in parts("nano/expected.json") {
        let folder = path.parent().unwrap();
        let encoder = encoder(folder);
        let expected = json(&path);
        let golden = Tensors::open(&path.with_file_name("expected.safetensors"));
        let cache = golden.get("cache.embeddings");
        let mut tally = Tally::new(short(&path));
        let queries = queries(&encoder, folder, &expected, &mut tally);
        let prepared: Vec<Prepared> = queries.iter().map(|query| query.prepared.clone()).collect();
        let mut reordered = 0;
        for (Query { row, name, .. }, encoded) in queries.iter().zip(encoder.encode(&prepared)) {
            let embedding = encoded.unwrap().embedding;
            let unit = embedding.unit().unwrap();
            let heard = name.starts_with("audio");
            let (limit, gap) = if heard { (HEARD, 1e-4) } else { (LIMIT, 1e-5) };
            let stored = golden.get("queries").row(*row);
            tally.floats(&format!("{name}, embedding"), unit.as_slice(), stored, unit.dim(), limit);

            // The reference's own query must find its neighbours exactly; ours may swap two that score alike.
            let (ids, scores) =
                (golden.get("neighbour_ids").whole_row(*row), golden.get("neighbour_scores").row(*row));
            let theirs = search(cache.floats(), &Embedding::new(stored.to_vec()).unwrap(), ids.len());
            let found: Vec<i64> = theirs.iter().map(|hit| hit.id.0 as i64).collect();
            tally.same_but_for_ties(&format!("{name}, neighbours"), &found, ids, scores, 1e-6);
            let ours = search(cache.floats(), &unit, ids.len());
            let found: Vec<i64> = ours.iter().map(|hit| hit.id.0 as i64).collect();
            reordered += usize::from(found != ids);
            tally.same_but_for_ties(&format!("{name}, neighbours end to end"), &found, ids, scores, gap);
            let received: Vec<f32> = ours.iter().map(|hit| hit.score).collect();
            tally.floats(&format!("{name}, scores"), &received, scores, scores.len(), limit);

            let q = mix(&[(&embedding, 1.0)]).unwrap();
            for setting in ["default", "other"] {
                let params = &expected[format!("cache_{setting}")];
                let params = BlendParams {
                    top_k: params["k"].as_u64().unwrap() as usize,
                    temperature: params["t"].as_f64().unwrap() as f32,
                    weight: params["w"].as_f64().unwrap() as f32,
                };
                let x = blend(&q, &search(cache.floats(), &q, params.top_k), &params).unwrap().embedding;
                let stored = golden.get(&format!("mixed.{setting}")).row(*row);
                tally.floats(&format!("{name}, mixed.{setting}"), x.as_slice(), stored, x.dim(), limit);
            }
        }
        let n = queries.len();
        say(&format!(
            "{}: {n} queries, {reordered} of them with close neighbours in another order",
            short(&path)
        ));
        tally.finish();
    }
}

fn search(cache: &[f32], query: &Embedding, k: usize) -> Vec<Hit> {
    let found = exact::search(cache, query.as_slice(), k);
    let hit = |s: exact::Scored| Hit {
        id: ItemId(s.slot.0.into()),
        score: s.score,
        embedding: Embedding::new(cache[s.slot.index() * query.dim()..][..query.dim()].to_vec()).unwrap(),
    };
    found.into_iter().map(hit).collect()
}

/// What is asked, greedily, until it ends.
fn answers(generator: &Generator, asked: Vec<(String, Vec<f32>)>) -> Vec<String> {
    let task = |(instruction, embedding): (String, Vec<f32>)| Task {
        constraint: None,
        prompt: generator.llm().encode(&Prompt::Instruction { instruction, input: None }, 1).unwrap().0,
        seen: Some(Seen::Embedding(Embedding::new(embedding).unwrap())),
        max_tokens: 100,
        top: 0,
        sampling: SampleParams { temperature: 0.0, ..SampleParams::default() },
        stop: Vec::new(),
        wait: Wait::default(),
    };
    let tasks = asked.into_iter().map(task).collect();
    let said = generator.submit(tasks).unwrap().into_iter().map(|mut events| {
        let mut said = String::new();
        loop {
            match events.blocking_recv().unwrap() {
                Event::Token { text, .. } => said += &text,
                Event::Done(finish) => return said + &finish.text,
                Event::Failed(error) => panic!("{error}"),
            }
        }
    });
    said.collect()
}

#[test]
fn the_decoder_says_what_it_said() {
    for path in parts("nano/expected.json") {
        let folder = path.parent().unwrap();
        let (backbone, adapter) = (file(folder, "llama.safetensors"), file(folder, "adapter.safetensors"));
        let llm = Llm::open(&LlmOptions { backbone, adapter, ..LlmOptions::default() }).unwrap();
        let options = GenerateOptions { slots: 32, capacity: 1 << 20, ..GenerateOptions::default() };
        let generator = Generator::start(llm, options).unwrap();
        let expected = json(&path);
        let golden = Tensors::open(&path.with_file_name("expected.safetensors"));
        let mut tally = Tally::new(format!("{}, answers", short(&path)));
        let prompt =
            Prompt::Instruction { instruction: "Generate caption of this image".into(), input: None };
        let ids: Vec<u32> = serde_json::from_value(expected["prompt_ids"].clone()).unwrap();
        tally.equal("prompt ids", &generator.llm().encode(&prompt, 1).unwrap().0, &ids);
        let decoder = generator.llm().decoder();
        let limit = |expected: &[f32]| Limit { absolute: 1e-4 * max_abs(expected).max(1.0), turn: 1e-7 };
        let (mut asked, mut said) = (Vec::new(), Vec::new());
        for (row, query) in expected["queries"].as_array().unwrap().iter().enumerate() {
            let name = format!("{} {}", query["kind"].as_str().unwrap(), query["id"].as_str().unwrap());
            for (setting, tensor) in
                [("off", "queries"), ("default", "mixed.default"), ("other", "mixed.other")]
            {
                let shown = golden.get(tensor).row(row);
                let visual = decoder.visual_of(shown).unwrap();
                let values = visual.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let stored = golden.get(&format!("visual_feats.{setting}")).row(row);
                tally.floats(
                    &format!("{name}, visual_feats.{setting}"),
                    &values,
                    stored,
                    stored.len(),
                    limit(stored),
                );
                if setting == "off" {
                    let mut sequence = decoder.begin(Some(&visual), ids.len()).unwrap();
                    let logits = decoder.forward(&mut [(&mut sequence, &ids)]).unwrap();
                    let logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    let stored = golden.get("prompt_logits.off").row(row);
                    tally.floats(
                        &format!("{name}, prompt logits"),
                        &logits,
                        stored,
                        stored.len(),
                        limit(stored),
                    );
                }
                for (question, by_setting) in query["answers"].as_object().unwrap() {
                    asked.push((question.clone(), shown.to_vec()));
                    said.push((
                        format!("{name}, {setting}, {question}"),
                        by_setting[setting].as_str().unwrap().to_owned(),
                    ));
                }
            }
        }
        for (answer, (name, expected)) in answers(&generator, asked).iter().zip(said) {
            tally.equal(&name, &[answer.trim()], &[expected.trim()]);
        }
        tally.finish();
    }
}
