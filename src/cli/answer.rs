//! `ask` and `score`: what the decoder says about files and texts, and how likely it finds given answers.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use viscache::serve::proto::{self, CacheMode, generate_event};
use viscache::types::Filter;

use super::ask::{self, search_params};
use super::filter;
use super::flags::{DecoderFlags, Given, ModelFlags};
use super::media::MediaArgs;
use super::show::{self, print_line};
use super::{SearchOptions, Target, target};
use crate::config::Config;

/// An expert by its word.
#[derive(Clone, Copy, clap::ValueEnum)]
enum ExpertWord {
    Ocr,
    Caption,
}

/// What the decoder is shown and asked.
#[derive(Args)]
#[command(next_help_heading = "Input")]
struct Conditioned {
    /// The instruction, such as "What is happening?".
    #[arg(value_name = "INSTRUCTION")]
    instruction: String,
    #[command(flatten)]
    media: MediaArgs,
    /// Weights of the inputs: pictures first, then texts, sounds and so on, each in the order given.
    #[arg(long, value_name = "W,W,…", value_delimiter = ',', allow_hyphen_values = true)]
    mix: Vec<f64>,
    /// A text that the instruction is about.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    input: Option<String>,
    /// Use the instruction as the whole prompt, without the template that the adapter was trained with.
    #[arg(long)]
    raw: bool,
    /// Hold a conversation: the instruction is what was said last. Formats: `v1`, `conv_v1`, `bair_v1`.
    #[arg(long, value_name = "FORMAT", conflicts_with_all = ["raw", "input"])]
    chat: Option<String>,
    /// What was said before, the first by who asks, the next by the assistant and so on; repeat for each.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    said: Vec<String>,
    /// What the assistant is told first, instead of the format's own words.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Who is asked about the pictures first: `ocr` for what is written in them, `caption` for what they show; repeat for both.
    #[arg(long = "expert", value_name = "EXPERT", value_enum)]
    experts: Vec<ExpertWord>,
    /// Show the decoder the inputs as they are, without the cache.
    #[arg(long, help_heading = "Blend")]
    no_cache: bool,
    /// Neighbours to blend.
    #[arg(long, value_name = "K", help_heading = "Blend")]
    top_k: Option<u32>,
    /// Multiplies the scores before the softmax over the neighbours.
    #[arg(long, value_name = "T", help_heading = "Blend")]
    blend_temperature: Option<f32>,
    /// Share of the prototype, 0 to 1.
    #[arg(long, value_name = "W", help_heading = "Blend")]
    weight: Option<f32>,
    #[command(flatten)]
    search: SearchOptions,
    /// Only among the items that match, as in `tag.species = dog`.
    #[arg(long, value_name = "FILTER", value_parser = filter::parse, help_heading = "Search")]
    filter: Option<Filter>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    decoder: DecoderFlags,
}

/// Ask the decoder about files and texts, with the cache or without it.
#[derive(Args)]
pub(super) struct AskArgs {
    #[command(flatten)]
    asked: Conditioned,
    /// Answer without the cache and with it, under the same seed.
    #[arg(long, conflicts_with = "no_cache", help_heading = "Output")]
    compare: bool,
    /// Divides the logits; 0 takes the likeliest token.
    #[arg(long, value_name = "T", help_heading = "Output")]
    temperature: Option<f32>,
    /// Share of the probability that is kept.
    #[arg(long, value_name = "P", help_heading = "Output")]
    top_p: Option<f32>,
    /// Tokens that are kept, the likeliest.
    #[arg(long, value_name = "N", help_heading = "Output")]
    keep: Option<u32>,
    /// Share of the likeliest token's probability that one has to have.
    #[arg(long, value_name = "P", help_heading = "Output")]
    min_p: Option<f32>,
    /// What makes tokens that came before less likely: 1 does not, 1.2 does a little.
    #[arg(long, value_name = "F", help_heading = "Output")]
    repetition_penalty: Option<f32>,
    /// The same seed gives the same answer.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Output")]
    seed: u64,
    /// Tokens of the answer at most.
    #[arg(long, value_name = "N", help_heading = "Output")]
    max_tokens: Option<u32>,
    /// Text that ends the answer; repeat for several.
    #[arg(long, value_name = "TEXT", help_heading = "Output")]
    stop: Vec<String>,
    /// Answer with one of these texts; repeat for each.
    #[arg(long, value_name = "TEXT", group = "form", help_heading = "Output")]
    choice: Vec<String>,
    /// Answer with a text that matches this expression as a whole.
    #[arg(long, value_name = "EXPRESSION", group = "form", help_heading = "Output")]
    regex: Option<String>,
    /// Answer with JSON that the schema in this file admits.
    #[arg(long, value_name = "FILE", group = "form", help_heading = "Output")]
    json_schema: Option<PathBuf>,
    /// Give every token's log-probability; with --json.
    #[arg(long, requires = "json", help_heading = "Output")]
    logprobs: bool,
    /// Print every event as a JSON object a line.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// How likely the decoder finds given answers.
#[derive(Args)]
pub(super) struct ScoreArgs {
    #[command(flatten)]
    asked: Conditioned,
    /// An answer to judge; repeat for several.
    #[arg(long = "answer", value_name = "TEXT", required = true, help_heading = "Output")]
    answers: Vec<String>,
    /// Count the token that ends an answer too.
    #[arg(long, help_heading = "Output")]
    include_end: bool,
    /// Print one JSON object per answer.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl AskArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        self.asked.given()
    }

    /// What the answer has to be.
    fn form(&self) -> anyhow::Result<Option<proto::Form>> {
        use proto::form::Form::{Choice, JsonSchema, Regex};
        let form = if let Some(path) = &self.json_schema {
            let schema = std::fs::read_to_string(path);
            JsonSchema(schema.with_context(|| format!("cannot read the schema {}", path.display()))?)
        } else if let Some(expression) = &self.regex {
            Regex(expression.clone())
        } else if self.choice.is_empty() {
            return Ok(None);
        } else {
            Choice(proto::Choice { texts: self.choice.clone() })
        };
        Ok(Some(proto::Form { form: Some(form) }))
    }
}

impl ScoreArgs {
    /// The settings that were given.
    pub(super) fn given(&self) -> Given<'_> {
        self.asked.given()
    }
}

impl Conditioned {
    fn given(&self) -> Given<'_> {
        Given { model: Some(&self.model), decoder: Some(&self.decoder), ..self.target.given() }
    }

    fn message(&self, compare: bool) -> anyhow::Result<proto::Conditioning> {
        if !self.said.len().is_multiple_of(2) {
            bail!(
                "--said was given {} times: each question has its answer, and the last is asked now",
                self.said.len()
            );
        }
        let media = self.media.read()?;
        if !self.mix.is_empty() && self.mix.len() != media.len() {
            bail!("--mix has {} weights for {} inputs", self.mix.len(), media.len());
        }
        let parts = media.into_iter().enumerate().map(|(i, (_, media))| proto::Part {
            content: Some(proto::part::Content::Media(media)),
            weight: self.mix.get(i).copied(),
        });
        let parts: Vec<proto::Part> = parts.collect();
        let allow_negative_weights = self.mix.iter().any(|weight| *weight < 0.0);
        let query = (!parts.is_empty()).then_some(proto::Query { parts, allow_negative_weights });
        let prompt = match (&self.chat, self.raw) {
            (Some(template), _) => proto::prompt::Prompt::Conversation(proto::Conversation {
                template: template.clone(),
                system: self.system.clone(),
                turns: self.turns(),
            }),
            (None, true) => proto::prompt::Prompt::Raw(self.instruction.clone()),
            (None, false) => proto::prompt::Prompt::Instruction(proto::Instruction {
                text: self.instruction.clone(),
                input: self.input.clone().unwrap_or_default(),
            }),
        };
        let mode = match (self.no_cache, compare) {
            (_, true) => CacheMode::Compare,
            (true, false) => CacheMode::Off,
            // On, where the decoder has use for it.
            (false, false) => CacheMode::Unspecified,
        };
        let expert = |word: &ExpertWord| match word {
            ExpertWord::Ocr => proto::Expert::Ocr.into(),
            ExpertWord::Caption => proto::Expert::Caption.into(),
        };
        Ok(proto::Conditioning {
            prompt: Some(proto::Prompt { prompt: Some(prompt) }),
            query,
            cache_mode: mode.into(),
            cache: self.target.cache.clone().unwrap_or_default(),
            blend: Some(proto::BlendParams {
                top_k: self.top_k,
                temperature: self.blend_temperature,
                weight: self.weight,
            }),
            search: Some(search_params(&self.search)),
            filter: self.filter.as_ref().map(filter::message),
            experts: self.experts.iter().map(expert).collect(),
        })
    }

    /// Everything that was said, in turn.
    fn turns(&self) -> Vec<proto::Turn> {
        let all = self.said.iter().chain(std::iter::once(&self.instruction));
        let speakers = [proto::Speaker::Human, proto::Speaker::Assistant];
        let turn =
            |(i, text): (usize, &String)| proto::Turn { speaker: speakers[i % 2].into(), text: text.clone() };
        all.enumerate().map(turn).collect()
    }
}

pub(super) async fn ask(config: &Config, args: AskArgs) -> anyhow::Result<ExitCode> {
    let (conditioning, form) = (args.asked.message(args.compare)?, args.form()?);
    let request = proto::GenerateRequest {
        conditioning: Some(conditioning),
        sampling: Some(proto::Sampling {
            temperature: args.temperature,
            top_p: args.top_p,
            seed: Some(args.seed),
            top_k: args.keep,
            min_p: args.min_p,
            repetition_penalty: args.repetition_penalty,
            logit_bias: Default::default(),
        }),
        max_tokens: args.max_tokens,
        stop: args.stop,
        logprobs: args.logprobs,
        return_neighbors: true,
        top_logprobs: 0,
        answers: None,
        form,
    };
    let channel = target::open(config, &args.asked.target, target::ANSWERS).await?;
    let (mut client, mut caches) = (target::generate(channel.clone()), target::cache(channel));
    let mut events = client.generate(request).await.map_err(show::refused)?.into_inner();
    // Of two answers one would cut into the other: each is printed when it is whole.
    let mut whole = [String::new(), String::new()];
    while let Some(event) = events.message().await.map_err(show::refused)? {
        let cached = event.cached;
        match event.event {
            Some(event) if args.json => print_line(&event_json(cached, &event))?,
            Some(generate_event::Event::Token(token)) if args.compare => {
                whole[usize::from(cached)] += &token.text;
            }
            Some(generate_event::Event::Token(token)) => {
                let mut out = std::io::stdout().lock();
                write!(out, "{}", show::printable(&token.text))?;
                out.flush()?;
            }
            Some(generate_event::Event::Summary(summary)) if args.compare => {
                whole[usize::from(cached)] += &summary.tail;
            }
            Some(generate_event::Event::Summary(summary)) => {
                writeln!(std::io::stdout(), "{}", show::printable(&summary.tail))?;
            }
            Some(generate_event::Event::Begin(begin)) => {
                begin.findings.iter().for_each(|finding| eprintln!("{}", show::printable(&finding.text)));
                let best: Vec<f32> = begin.neighbors.iter().map(|neighbor| neighbor.score).collect();
                // A filter may leave out what is near.
                let kind =
                    ask::kind(&args.asked.media, &args.asked.search).filter(|_| args.asked.filter.is_none());
                if let Some(note) = ask::strange(&mut caches, &args.asked.target, kind, &best).await {
                    eprintln!("{note}");
                }
            }
            None => {}
        }
    }
    if args.compare && !args.json {
        let [off, on] = whole.map(|text| show::printable(text.trim()));
        writeln!(std::io::stdout(), "cache off: {off}\ncache on:  {on}")?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn score(config: &Config, args: ScoreArgs) -> anyhow::Result<ExitCode> {
    let request = proto::ScoreRequest {
        conditioning: Some(args.asked.message(false)?),
        answers: args.answers.clone(),
        include_end: args.include_end,
    };
    let mut client = target::generate(target::open(config, &args.asked.target, target::ANSWERS).await?);
    let reply = client.score(request).await.map_err(show::refused)?.into_inner();
    let mut shown = show::Shown::new("answer", args.json);
    for (answer, score) in args.answers.iter().zip(&reply.scores) {
        shown.scored(answer, score)?;
    }
    Ok(shown.exit_code())
}

fn finding_json(finding: &proto::Finding) -> serde_json::Value {
    let expert = finding.expert().as_str_name().trim_start_matches("EXPERT_").to_lowercase();
    json!({ "expert": expert, "text": finding.text, "took_us": finding.took_us })
}

fn event_json(cached: bool, event: &generate_event::Event) -> serde_json::Value {
    match event {
        generate_event::Event::Begin(begin) => json!({
            "event": "begin",
            "cached": cached,
            "prompt_tokens": begin.prompt_tokens,
            "dropped_tokens": begin.dropped_tokens,
            "findings": begin.findings.iter().map(finding_json).collect::<Vec<_>>(),
            "cosine": begin.cosine,
            "cache": begin.source.as_ref().map(|s| &s.cache),
            "generation": begin.source.as_ref().map(|s| s.generation),
            "neighbors": show::neighbors(&begin.neighbors, true),
            "decoder": begin.decoder.as_ref().map(|d| &d.name),
            "max_positions": begin.decoder.as_ref().map(|d| d.max_positions),
        }),
        generate_event::Event::Token(token) => {
            let mut value = json!({ "event": "token", "cached": cached, "id": token.id, "text": token.text });
            if let Some(logprob) = token.logprob {
                value["logprob"] = json!(logprob);
            }
            value
        }
        generate_event::Event::Summary(summary) => json!({
            "event": "summary",
            "cached": cached,
            "text": summary.text,
            "stop_reason": summary.stop_reason().as_str_name().trim_start_matches("STOP_REASON_").to_lowercase(),
            "answer_tokens": summary.answer_tokens,
            "reused_tokens": summary.reused_tokens,
            "queue_us": summary.queue_us,
            "prefill_us": summary.prefill_us,
            "decode_us": summary.decode_us,
        }),
    }
}
