//! `evaluate nano`: what the cache does for the built-in model's answers, on scenes drawn for the purpose.
//!
//! ```text
//! training pictures ─► rows of a cache, searched exactly
//! queries of each kind ─► as they are (off), enhanced (on) ─► a caption each, greedily ─► which attributes are right
//! ```
//! An attribute is right when exactly one of its words is in the caption and it is the scene's. Shares come with a 95 %
//! interval by resampling the queries; the gain is resampled in pairs.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use clap::Args;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;
use rayon::prelude::*;
use serde_json::json;
use viscache::batch::{GenerateOptions, Generator, Seen, Task, Wait};
use viscache::blend::{self, BlendParams};
use viscache::index::exact;
use viscache::models::encoder::{Encoder, EncoderOptions};
use viscache::models::llama::SampleParams;
use viscache::models::llm::{Llm, LlmOptions, Prompt};
use viscache::scenes::speech::{self, Speakers, Voice};
use viscache::scenes::{Attribute, DEFAULT_SEED, Scene, Set, Wording, draw, png};
use viscache::types::{Embedding, Hit, ItemId, Modality};

use super::resample::{interval, mean};
use super::said;
use crate::cli::flags::{DecoderNumbers, DeviceFlags, Given};
use crate::cli::show::print_line;
use crate::config::Config;

/// Pictures embedded at a time.
const CHUNK: u64 = 512;
/// Tokens of a caption at most; the longest has some 25.
const MAX_TOKENS: usize = 60;
const INSTRUCTION: &str = "Generate caption of this image";
/// What is scored of a spoken query.
const SPOKEN: [Attribute; 3] = [Attribute::Colour, Attribute::Shape, Attribute::Size];

#[derive(Args)]
pub(super) struct NanoArgs {
    /// Training pictures in the cache.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pictures: u64,
    /// Queries of each kind at most.
    #[arg(long, value_name = "N", default_value_t = 500)]
    queries: usize,
    /// Other seeds give other pictures, words and voices.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEED)]
    seed: u64,
    /// Another model of the kind: a folder with the files that `make nano` writes.
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// A file of tensors that replace the model's own, such as an encoder that was trained in another way.
    #[arg(long, value_name = "FILE")]
    overlay: Option<PathBuf>,
    /// Leave out spoken queries, which need the program espeak-ng.
    #[arg(long)]
    no_speech: bool,
    #[command(flatten)]
    device: DeviceFlags,
    #[command(flatten)]
    numbers: DecoderNumbers,
    /// Print a JSON object for each kind of query.
    #[arg(long)]
    json: bool,
}

impl NanoArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        Given { device: Some(&self.device), numbers: Some(&self.numbers), ..Given::default() }
    }
}

/// A kind of query.
struct Kind {
    name: &'static str,
    modality: Modality,
    attributes: &'static [Attribute],
    queries: Vec<(Scene, Vec<u8>)>,
}

/// Whether the attributes of each query are right.
type Judged = Vec<Vec<bool>>;

pub(super) fn run(config: &Config, args: &NanoArgs) -> anyhow::Result<ExitCode> {
    if args.pictures == 0 || args.queries == 0 {
        bail!("--pictures and --queries must be at least 1");
    }
    let params = config.blend_params();
    if args.pictures < params.top_k as u64 {
        bail!("--pictures is {}, fewer than the {} neighbours that are blended", args.pictures, params.top_k);
    }
    let file = |name: &str| args.model.as_ref().map(|folder| folder.join(name));
    let options = EncoderOptions {
        network: Default::default(),
        weights: file("imagebind.safetensors"),
        sizes: file("imagebind.json"),
        modalities: None,
        device: config.device,
        dtype: config.encoder_dtype,
        threads: config.threads(),
        orientation: Default::default(),
        limits: config.limits().media,
    };
    let encoder = Encoder::open_overlaid(&options, args.overlay.as_deref())?;
    let llm = Llm::open(&LlmOptions {
        backbone: file("llama.safetensors"),
        adapter: file("adapter.safetensors"),
        device: config.device,
        dtype: config.decoder_dtype,
        ..LlmOptions::default()
    })?;
    // Answers that grow together share the reading of the weights; what they say does not depend on it.
    let generator = Generator::start(
        llm,
        GenerateOptions { slots: 32, capacity: usize::MAX, ..GenerateOptions::default() },
    )?;
    let mut kinds = drawn(args)?;
    match (args.no_speech, speech::speaks()) {
        (true, _) => {}
        (false, true) => kinds.extend(spoken(args)?),
        (false, false) => eprintln!("no spoken queries: the program espeak-ng is not installed"),
    }
    let begun = Instant::now();
    let cache = rows(&encoder, args)?;
    eprintln!("{} pictures embedded in {:.0} s", args.pictures, begun.elapsed().as_secs_f64());
    if !args.json {
        writeln!(
            std::io::stdout(),
            "cache of {} pictures, top_k {}, temperature {}, weight {}; share of captions with the attribute right, 95 % interval",
            args.pictures,
            params.top_k,
            params.temperature,
            params.weight
        )?;
        writeln!(std::io::stdout(), "{:<36} {:>5} {:<5} {}   all", "queries", "n", "cache", heading())?;
    }
    for kind in kinds {
        let sides = judge(&encoder, &generator, &cache, &params, &kind)?;
        let mut rng = Pcg64::seed_from_u64(args.seed);
        report(&kind, &sides, &mut rng, args.json)?;
    }
    if !args.json && args.overlay.is_none() {
        writeln!(
            std::io::stdout(),
            "\nThe text encoder is built to have CLIP's gap, by CLIP's own causes: partial captions and a large fixed logit scale.\n\
             One that has none gains nothing from a cache. The spoken queries are near that; --overlay shows others."
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Queries that are drawn or written.
fn drawn(args: &NanoArgs) -> anyhow::Result<Vec<Kind>> {
    let scenes = |set: Set| (0..args.queries as u64).map(move |i| set.scene(args.seed, i));
    let pictures = |name, set: Set| -> anyhow::Result<Kind> {
        let queries =
            scenes(set).map(|(scene, style, mut rng)| Ok((scene, png(&draw(&scene, style, &mut rng))?)));
        let queries = queries.collect::<anyhow::Result<_>>()?;
        Ok(Kind { name, modality: Modality::Image, attributes: &Attribute::ALL, queries })
    };
    let texts = |name, set: Set, wording: Wording, attributes| {
        let mut rng = Pcg64::seed_from_u64(args.seed);
        let queries =
            scenes(set).map(|(scene, ..)| (scene, wording.of(&scene, &mut rng).into_bytes())).collect();
        Kind { name, modality: Modality::Text, attributes, queries }
    };
    let all = &Attribute::ALL;
    Ok(vec![
        pictures("image, test", Set::Test)?,
        pictures("image, style never seen", Set::Style)?,
        texts("text, test", Set::Test, Wording::Canonical, all),
        texts("text, templates never seen", Set::Test, Wording::HeldOut, all),
        texts("text, colour and shape alone", Set::Test, Wording::ColourShape, &SPOKEN[..2]),
        pictures("image, pairs never seen", Set::Comb)?,
        texts("text, pairs never seen", Set::Comb, Wording::Canonical, all),
    ])
}

/// Queries that are spoken: size, colour and shape.
fn spoken(args: &NanoArgs) -> anyhow::Result<Vec<Kind>> {
    let kind = |name, held_out, times, speakers| -> anyhow::Result<Kind> {
        let mut rng = Pcg64::seed_from_u64(args.seed);
        let mut said: Vec<(Scene, Voice)> = speech::phrases(held_out)
            .into_iter()
            .flat_map(|scene| std::iter::repeat_n(scene, times))
            .map(|scene| (scene, Voice::any(speakers, &mut rng)))
            .collect();
        said.shuffle(&mut rng);
        said.truncate(args.queries);
        let queries = said.into_par_iter().map(|(scene, voice)| Ok((scene, speech::speak(&scene, &voice)?)));
        let queries = queries.collect::<anyhow::Result<_>>()?;
        Ok(Kind { name, modality: Modality::Audio, attributes: &SPOKEN, queries })
    };
    Ok(vec![
        kind("speech, test", false, 4, Speakers::Known)?,
        kind("speech, voices never heard", false, 4, Speakers::Unknown)?,
        kind("speech, pairs never seen", true, 8, Speakers::Known)?,
    ])
}

/// The cache: embeddings of training pictures, one after another.
fn rows(encoder: &Encoder, args: &NanoArgs) -> anyhow::Result<Vec<f32>> {
    let mut rows = Vec::with_capacity(args.pictures as usize * encoder.dim());
    for start in (0..args.pictures).step_by(CHUNK as usize) {
        let picture = |i: u64| {
            let (scene, style, mut rng) = Set::Train.scene(args.seed, i);
            Ok((scene, png(&draw(&scene, style, &mut rng))?))
        };
        let drawn = (start..args.pictures.min(start + CHUNK)).into_par_iter().map(picture);
        for embedding in embed(encoder, Modality::Image, &drawn.collect::<anyhow::Result<Vec<_>>>()?)? {
            rows.extend_from_slice(embedding.unit()?.as_slice());
        }
    }
    Ok(rows)
}

fn embed(
    encoder: &Encoder,
    modality: Modality,
    inputs: &[(Scene, Vec<u8>)],
) -> anyhow::Result<Vec<Embedding>> {
    let prepared = inputs.par_iter().map(|(_, bytes)| encoder.prepare(modality, bytes));
    let prepared = prepared.collect::<Result<Vec<_>, _>>()?;
    encoder.encode(&prepared).into_iter().map(|encoded| Ok(encoded?.embedding)).collect()
}

/// What is right of the captions without the cache and with it.
fn judge(
    encoder: &Encoder,
    generator: &Generator,
    cache: &[f32],
    params: &BlendParams,
    kind: &Kind,
) -> anyhow::Result<[Judged; 2]> {
    let embeddings = embed(encoder, kind.modality, &kind.queries)?;
    let shown = embeddings.par_iter().map(|embedding| {
        let query = blend::mix(&[(embedding, 1.0)])?;
        let hits = exact::search(cache, query.as_slice(), params.top_k).into_iter().map(|found| {
            let row = cache[found.slot.index() * query.dim()..][..query.dim()].to_vec();
            Ok(Hit { id: ItemId(found.slot.0.into()), score: found.score, embedding: Embedding::new(row)? })
        });
        let hits = hits.collect::<anyhow::Result<Vec<_>>>()?;
        let enhanced = blend::blend(&query, &hits, params)?.embedding;
        Ok([query, enhanced])
    });
    let shown: Vec<[Embedding; 2]> = shown.collect::<anyhow::Result<_>>()?;
    let prompt = Prompt::Instruction { instruction: INSTRUCTION.into(), input: None };
    let (prompt, _) = generator.llm().encode(&prompt, MAX_TOKENS)?;
    let mut sides = [Vec::new(), Vec::new()];
    for (side, judged) in sides.iter_mut().enumerate() {
        let task = |shown: &[Embedding; 2]| Task {
            constraint: None,
            prompt: prompt.clone(),
            seen: Some(Seen::Embedding(shown[side].clone())),
            max_tokens: MAX_TOKENS,
            top: 0,
            sampling: SampleParams { temperature: 0.0, ..SampleParams::default() },
            stop: Vec::new(),
            wait: Wait::default(),
        };
        let answers = generator.submit(shown.iter().map(task).collect())?;
        for (events, (scene, _)) in answers.into_iter().zip(&kind.queries) {
            let caption = said::whole(events)?;
            judged.push(kind.attributes.iter().map(|a| a.is_right(&caption, scene)).collect());
        }
    }
    Ok(sides)
}

fn heading() -> String {
    Attribute::ALL.map(|attribute| format!("{:>11}", attribute.word())).concat()
}

fn report(kind: &Kind, sides: &[Judged; 2], rng: &mut Pcg64, as_json: bool) -> anyhow::Result<()> {
    let whole = |judged: &Judged| -> Vec<f64> {
        judged.iter().map(|query| f64::from(query.iter().all(|&right| right))).collect()
    };
    let [off, on] = [whole(&sides[0]), whole(&sides[1])];
    let difference: Vec<f64> = on.iter().zip(&off).map(|(on, off)| on - off).collect();
    let share =
        |judged: &Judged, i: usize| mean(&judged.iter().map(|query| f64::from(query[i])).collect::<Vec<_>>());
    let gain = (mean(&difference), interval(&difference, rng));
    let mut lines = Vec::new();
    for ((name, judged), all) in [("off", &sides[0]), ("on", &sides[1])].into_iter().zip([off, on]) {
        let (all, range) = (mean(&all), interval(&all, rng));
        if as_json {
            let attributes: serde_json::Map<String, serde_json::Value> = kind
                .attributes
                .iter()
                .enumerate()
                .map(|(i, attribute)| (attribute.word().to_owned(), json!(share(judged, i))))
                .collect();
            lines.push(json!({ "attributes": attributes, "all": all, "interval": range }));
            continue;
        }
        let cell = |attribute: &Attribute| match kind.attributes.iter().position(|a| a == attribute) {
            Some(i) => format!("{:>11.2}", share(judged, i)),
            None => format!("{:>11}", "–"),
        };
        let cells: String = Attribute::ALL.iter().map(cell).collect();
        let (title, count) =
            if name == "off" { (kind.name, kind.queries.len().to_string()) } else { ("", String::new()) };
        writeln!(
            std::io::stdout(),
            "{title:<36} {count:>5} {name:<5} {cells}   {all:.2} [{:.2}, {:.2}]",
            range[0],
            range[1]
        )?;
    }
    if as_json {
        let [off, on] = &lines[..] else { return Ok(()) };
        print_line(&json!({
            "queries": kind.name, "n": kind.queries.len(), "off": off, "on": on,
            "gain": gain.0, "gain_interval": gain.1,
        }))?;
    } else {
        let (gain, [low, high]) = gain;
        writeln!(
            std::io::stdout(),
            "{:<36} {:>5} {:<5} {:>55}   {gain:+.2} [{low:+.2}, {high:+.2}]",
            "",
            "",
            "gain",
            ""
        )?;
    }
    Ok(())
}
