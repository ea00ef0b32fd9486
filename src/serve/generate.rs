//! `GenerateService`: convert, call one flow, and hand on what happens to the answers.
//!
//! A question keeps its place at the door until its answers have ended. Their events wait for the caller without bound, but
//! there are never more than an answer has tokens; a caller who stalls holds nobody up.

use std::pin::Pin;
use std::sync::Arc;

use rand::RngExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::convert::{self, micros};
use super::door::{Door, Load, Pass};
use super::proto::{
    self, CacheMode, DecoderFamily, generate_event, generate_service_server::GenerateService,
};
use super::seat::Seat;
use super::status::{self, failures};
use crate::batch::{self, StopReason};
use crate::flow::{self, App, Branch, Conditioning, ExpertKind, Shown};
use crate::models::llama::{Family, SampleParams};
use crate::models::llm::{Llm, Prompt};
use crate::text::{ChatTemplate, Conversation, Form, Speaker, Turn};

/// Tokens of an answer when the request does not say; the published program's figure.
const MAX_TOKENS: u32 = 256;
/// Stop texts of a request, and bytes of one.
const MAX_STOPS: usize = 8;
const MAX_STOP_BYTES: usize = 256;
/// Tokens with a bias, and how large one may be.
const MAX_BIASES: usize = 1024;
const MAX_BIAS: f32 = 100.0;
/// Likeliest tokens that are told, and answers to one question.
const MAX_TOP: u32 = 20;
const MAX_ANSWERS_TO_ONE: u32 = 16;
/// Answers of a request to be judged.
const MAX_ANSWERS: usize = 256;
/// Turns of a conversation.
const MAX_TURNS: usize = 1024;
/// Events on their way to a caller before the next one waits.
const IN_FLIGHT: usize = 16;

pub(super) struct Service {
    app: Arc<App>,
    door: Arc<Door>,
}

impl Service {
    pub(super) fn new(app: Arc<App>, door: Arc<Door>) -> Self {
        Service { app, door }
    }
}

#[tonic::async_trait]
impl GenerateService for Service {
    type GenerateStream = Pin<Box<dyn Stream<Item = Result<proto::GenerateEvent, Status>> + Send>>;

    async fn generate(
        &self,
        request: Request<proto::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let mut pass = self.door.enter("viscache.v1.GenerateService/Generate")?;
        let (metadata, _, request) = request.into_parts();
        let logprobs = request.logprobs;
        let work = move |app: &App, call: &flow::Call| {
            let neighbors = request.return_neighbors;
            let question = question(app, request)?;
            let llm = llm(app)?;
            let begun = flow::generate(app, question, call)?;
            let with_begin = |branch: Branch| Ok((begin(llm, &branch, neighbors, call)?, branch));
            begun.into_iter().map(with_begin).collect::<Result<Vec<_>, flow::Error>>()
        };
        let (branches, _) = self.door.work(&mut pass, &self.app, &metadata, Load::Model, work).await?;
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let told = tell(self.app.clone(), branches, logprobs, sender, pass);
        match Seat::current() {
            Some(seat) => tokio::spawn(seat.scope(told)),
            None => tokio::spawn(told),
        };
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn score(
        &self,
        request: Request<proto::ScoreRequest>,
    ) -> Result<Response<proto::ScoreResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.GenerateService/Score")?;
        let (metadata, _, request) = request.into_parts();
        let work = move |app: &App, call: &flow::Call| {
            let count = request.answers.len();
            if count == 0 || count > MAX_ANSWERS {
                let why = format!("1 to {MAX_ANSWERS} answers are taken, {count} were sent");
                return Err(convert::argument("answers", why));
            }
            let asked = conditioning(app, request.conditioning.unwrap_or_default())?;
            if asked.cached.len() > 1 {
                let why = "answers are judged with the cache or without it; send two requests to compare";
                return Err(convert::argument("conditioning.cache_mode", why));
            }
            let llm = llm(app)?;
            let (scores, shown) = flow::score(app, asked, &request.answers, request.include_end, call)?;
            let score = |(i, scored): (usize, flow::Scored)| {
                let status = Some(status::outcome(&scored, &format!("answers[{i}]")));
                let token_logprobs = scored.unwrap_or_default();
                proto::Score { status, logprob: token_logprobs.iter().sum(), token_logprobs }
            };
            Ok(proto::ScoreResponse {
                scores: scores.into_iter().enumerate().map(score).collect(),
                source: source(&shown),
                decoder: Some(decoder(llm)),
            })
        };
        let (reply, _) = self.door.work(&mut pass, &self.app, &metadata, Load::Model, work).await?;
        pass.count(reply.scores.len(), failures(reply.scores.iter().map(|s| &s.status)));
        Ok(Response::new(reply))
    }
}

/// Hands the events of all branches on as they come, until they have ended, one fails, or nobody listens.
async fn tell(
    app: Arc<App>,
    branches: Vec<(proto::Begin, Branch)>,
    logprobs: bool,
    sender: mpsc::Sender<Result<proto::GenerateEvent, Status>>,
    mut pass: Pass,
) {
    let count = branches.len();
    let streams = branches.into_iter().map(|(begin, branch)| {
        let (cached, index, app) = (branch.shown.enhanced.is_some(), branch.index as u32, app.clone());
        let mut answer = Answer { logprobs, ..Answer::default() };
        let event = Some(generate_event::Event::Begin(begin));
        let first: Result<_, Status> = Ok(proto::GenerateEvent { cached, index, event });
        let events = tokio_stream::wrappers::UnboundedReceiverStream::new(branch.events);
        let rest = events.map(move |event| {
            let event = answer.event(&app, event)?;
            Ok(proto::GenerateEvent { cached, index, event: Some(event) })
        });
        tokio_stream::once(first).chain(rest)
    });
    let mut all = tokio_stream::StreamMap::new();
    streams.enumerate().for_each(|(i, stream)| _ = all.insert(i, stream));
    let mut failed = 0;
    while let Some((_, event)) = all.next().await {
        let bad = event.is_err();
        if let Err(status) = &event {
            failed += 1;
            pass.failed(status.code());
        }
        // One that fails ends the stream, as gRPC has it; the others are dropped with it.
        if sender.send(event).await.is_err() || bad {
            break;
        }
    }
    pass.count(count, failed);
}

/// An answer as it grows.
#[derive(Default)]
struct Answer {
    logprobs: bool,
    text: String,
    tokens: u32,
}

impl Answer {
    fn event(&mut self, app: &App, event: batch::Event) -> Result<generate_event::Event, Status> {
        match event {
            batch::Event::Token { id, logprob, top, text } => {
                self.text += &text;
                self.tokens += 1;
                let logprob = self.logprobs.then_some(logprob);
                let piece =
                    |id| app.generator.as_ref().map(|g| g.llm().tokenizer().piece(id)).unwrap_or_default();
                let top = top.into_iter().map(|(id, logprob)| proto::TokenProbability {
                    id,
                    text: piece(id),
                    logprob,
                });
                Ok(generate_event::Event::Token(proto::Token { id, text, logprob, top: top.collect() }))
            }
            batch::Event::Done(finish) => {
                let reason = match finish.reason {
                    StopReason::EndOfText => proto::StopReason::EndOfText,
                    StopReason::StopText => proto::StopReason::StopText,
                    StopReason::MaxTokens => proto::StopReason::MaxTokens,
                    StopReason::Positions => proto::StopReason::Positions,
                    StopReason::Stopped => proto::StopReason::ServerStops,
                };
                self.text += &finish.text;
                Ok(generate_event::Event::Summary(proto::Summary {
                    stop_reason: reason.into(),
                    answer_tokens: self.tokens,
                    tail: finish.text,
                    reused_tokens: finish.reused as u32,
                    text: std::mem::take(&mut self.text),
                    queue_us: micros(finish.queued),
                    prefill_us: micros(finish.prefill),
                    decode_us: micros(finish.decode),
                }))
            }
            batch::Event::Failed(error) => Err(status::of(&error.into())),
        }
    }
}

fn llm(app: &App) -> Result<&Llm, flow::Error> {
    app.generator.as_ref().map(batch::Generator::llm).ok_or(flow::Error::NoDecoder)
}

fn begin(
    llm: &Llm,
    branch: &Branch,
    neighbors: bool,
    call: &flow::Call,
) -> Result<proto::Begin, flow::Error> {
    let enhanced = branch.shown.enhanced.as_ref();
    let neighbors = match enhanced.filter(|_| neighbors) {
        Some((found, snapshot)) => convert::neighbors(snapshot, &found.hits, &found.weights, None, call)?,
        None => Vec::new(),
    };
    Ok(proto::Begin {
        prompt_tokens: branch.prompt_tokens as u32,
        dropped_tokens: branch.dropped as u32,
        findings: branch.findings.iter().map(finding).collect(),
        source: source(&branch.shown),
        neighbors,
        cosine: enhanced.map_or(1.0, |(found, _)| found.cosine),
        decoder: Some(decoder(llm)),
        seed: branch.seed,
    })
}

fn source(shown: &Shown) -> Option<proto::Source> {
    shown.enhanced.as_ref().map(|(_, snapshot)| convert::source(&snapshot.0))
}

fn finding(found: &flow::Finding) -> proto::Finding {
    let expert = match found.expert {
        ExpertKind::Ocr => proto::Expert::Ocr,
        ExpertKind::Caption => proto::Expert::Caption,
    };
    proto::Finding { expert: expert.into(), text: found.text.clone(), took_us: micros(found.took) }
}

/// A loaded decoder as a message.
pub(super) fn decoder(llm: &Llm) -> proto::Decoder {
    let family = match llm.decoder().family() {
        Family::ImageBindLlm => DecoderFamily::ImagebindLlm,
        Family::V2Picture => DecoderFamily::V2Multimodal,
        Family::V2Chat => DecoderFamily::V2Chat,
    };
    proto::Decoder {
        name: llm.name().into(),
        weights_fingerprint: llm.fingerprint().to_string(),
        max_positions: llm.decoder().config().max_seq_len as u32,
        family: family.into(),
    }
}

fn question(app: &App, request: proto::GenerateRequest) -> Result<flow::GenerateRequest, flow::Error> {
    let (sampling, default) = (request.sampling.clone().unwrap_or_default(), llm(app)?.sampling());
    let sampling = SampleParams {
        temperature: sampling.temperature.unwrap_or(default.temperature),
        top_p: sampling.top_p.unwrap_or(default.top_p),
        top_k: sampling.top_k.map_or(default.top_k, |k| k as usize),
        min_p: sampling.min_p.unwrap_or(default.min_p),
        repetition_penalty: sampling.repetition_penalty.unwrap_or(default.repetition_penalty),
        bias: sampling.logit_bias.into_iter().collect(),
        seed: sampling.seed.unwrap_or_else(|| rand::rng().random()),
    };
    if !(sampling.temperature.is_finite() && sampling.temperature >= 0.0) {
        let why = format!("{} is no temperature: it must be 0 or above", sampling.temperature);
        return Err(convert::argument("sampling.temperature", why));
    }
    if !(0.0..=1.0).contains(&sampling.top_p) {
        let why = format!("{} is not from 0 to 1", sampling.top_p);
        return Err(convert::argument("sampling.top_p", why));
    }
    if sampling.top_k == 0 && request.sampling.as_ref().is_some_and(|sent| sent.top_k.is_some()) {
        return Err(convert::argument(
            "sampling.top_k",
            "is 0; keep at least one token, or leave it out to keep all",
        ));
    }
    if !(0.0..=1.0).contains(&sampling.min_p) {
        return Err(convert::argument("sampling.min_p", format!("{} is not from 0 to 1", sampling.min_p)));
    }
    if !(sampling.repetition_penalty.is_finite() && sampling.repetition_penalty > 0.0) {
        let why = format!("{} is no penalty: it must be above 0", sampling.repetition_penalty);
        return Err(convert::argument("sampling.repetition_penalty", why));
    }
    let pieces = llm(app)?.decoder().vocab_size();
    let odd = |(id, bias): &&(u32, f32)| *id as usize >= pieces || !(-MAX_BIAS..=MAX_BIAS).contains(bias);
    if let Some((id, bias)) = sampling.bias.iter().find(odd) {
        let why =
            format!("{bias} for token {id}: ids end at {pieces}, and it is from -{MAX_BIAS} to {MAX_BIAS}");
        return Err(convert::argument("sampling.logit_bias", why));
    }
    if sampling.bias.len() > MAX_BIASES {
        let why = format!("{} tokens; at most {MAX_BIASES} are taken", sampling.bias.len());
        return Err(convert::argument("sampling.logit_bias", why));
    }
    if request.top_logprobs > MAX_TOP {
        let why = format!("{}; at most {MAX_TOP} are told", request.top_logprobs);
        return Err(convert::argument("top_logprobs", why));
    }
    let answers = request.answers.unwrap_or(1);
    if !(1..=MAX_ANSWERS_TO_ONE).contains(&answers) {
        return Err(convert::argument("answers", format!("{answers} is not from 1 to {MAX_ANSWERS_TO_ONE}")));
    }
    if request.stop.len() > MAX_STOPS {
        let why = format!("{} stop texts; at most {MAX_STOPS} are taken", request.stop.len());
        return Err(convert::argument("stop", why));
    }
    if let Some(i) = request.stop.iter().position(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        let why = format!("a stop text has 1 to {MAX_STOP_BYTES} bytes, this one {}", request.stop[i].len());
        return Err(convert::argument(format!("stop[{i}]"), why));
    }
    let conditioning = conditioning(app, request.conditioning.unwrap_or_default())?;
    let own = match &conditioning.prompt {
        Prompt::Conversation(conversation) => Some(conversation.template.stop().to_owned()),
        Prompt::Instruction { .. } | Prompt::Raw(_) => None,
    };
    Ok(flow::GenerateRequest {
        conditioning,
        answers: answers as usize,
        top: request.top_logprobs as usize,
        sampling,
        max_tokens: request.max_tokens.unwrap_or(MAX_TOKENS) as usize,
        form: request.form.map(form).transpose()?,
        stop: request.stop.into_iter().chain(own).collect(),
    })
}

fn form(asked: proto::Form) -> Result<Form, flow::Error> {
    use proto::form::Form::{Choice, JsonSchema, Regex};
    match asked.form {
        Some(Choice(choice)) => Ok(Form::Choice(choice.texts)),
        Some(Regex(expression)) => Ok(Form::Regex(expression)),
        Some(JsonSchema(schema)) => Ok(Form::JsonSchema(schema)),
        None => Err(convert::argument("form", "says nothing; give it a choice, an expression or a schema")),
    }
}

fn conditioning(app: &App, asked: proto::Conditioning) -> Result<Conditioning, flow::Error> {
    let prompt = match asked.prompt.and_then(|prompt| prompt.prompt) {
        Some(proto::prompt::Prompt::Instruction(instruction)) => Prompt::Instruction {
            instruction: instruction.text,
            input: Some(instruction.input).filter(|input| !input.is_empty()),
        },
        Some(proto::prompt::Prompt::Raw(text)) => Prompt::Raw(text),
        Some(proto::prompt::Prompt::Conversation(said)) => Prompt::Conversation(conversation(said)?),
        None => {
            return Err(convert::argument(
                "conditioning.prompt",
                "nothing is asked; send an instruction or a prompt",
            ));
        }
    };
    let mode = CacheMode::try_from(asked.cache_mode).map_err(|_| {
        convert::argument("conditioning.cache_mode", format!("{} is not a known mode", asked.cache_mode))
    })?;
    let enhances = llm(app)?.decoder().embedding_width().is_some();
    let cached = match mode {
        CacheMode::Off => vec![false],
        CacheMode::Unspecified if !enhances => vec![false],
        CacheMode::On | CacheMode::Compare if !enhances => {
            let why = "the loaded decoder takes no embedding, so there is none for the cache to enhance";
            return Err(convert::argument("conditioning.cache_mode", why));
        }
        CacheMode::Unspecified | CacheMode::On => vec![true],
        CacheMode::Compare => vec![false, true],
    };
    if asked.query.is_none() && mode == CacheMode::Compare {
        let why = "there is no query for the cache to enhance, so there is nothing to compare";
        return Err(convert::argument("conditioning.cache_mode", why));
    }
    let expert = |(i, expert): (usize, &i32)| match proto::Expert::try_from(*expert) {
        Ok(proto::Expert::Ocr) => Ok(ExpertKind::Ocr),
        Ok(proto::Expert::Caption) => Ok(ExpertKind::Caption),
        Ok(proto::Expert::Unspecified) | Err(_) => {
            let why = format!("{expert} is no known expert");
            Err(convert::argument(format!("conditioning.experts[{i}]"), why))
        }
    };
    let experts = asked.experts.iter().enumerate().map(expert).collect::<Result<_, _>>()?;
    let query = asked.query.map(|query| convert::query(app, query, "conditioning.query")).transpose()?;
    Ok(Conditioning {
        prompt,
        query,
        experts,
        cached,
        cache: asked.cache,
        blend: convert::blend_params(app, asked.blend)?,
        search: convert::search_params(app, asked.search.as_ref())?,
        aim: convert::aim(app, asked.search.as_ref())?,
        filter: convert::filter(asked.filter)?,
    })
}

fn conversation(said: proto::Conversation) -> Result<Conversation, flow::Error> {
    const FIELD: &str = "conditioning.prompt.conversation";
    let template = match said.template.as_str() {
        "" => ChatTemplate::default(),
        word => ChatTemplate::named(word).ok_or_else(|| {
            let known = ChatTemplate::ALL.map(ChatTemplate::word).join(", ");
            convert::argument(format!("{FIELD}.template"), format!("`{word}` is not one of {known}"))
        })?,
    };
    if said.turns.len() > MAX_TURNS {
        let why = format!("{} turns; at most {MAX_TURNS} are taken", said.turns.len());
        return Err(convert::argument(format!("{FIELD}.turns"), why));
    }
    let turn = |(i, turn): (usize, proto::Turn)| {
        let by = match turn.speaker() {
            proto::Speaker::Human => Speaker::Human,
            proto::Speaker::Assistant => Speaker::Assistant,
            proto::Speaker::Unspecified => {
                let why = format!("{} is no known speaker", turn.speaker);
                return Err(convert::argument(format!("{FIELD}.turns[{i}].speaker"), why));
            }
        };
        Ok(Turn { by, text: turn.text })
    };
    let turns = said.turns.into_iter().enumerate().map(turn).collect::<Result<_, _>>()?;
    Ok(Conversation { template, system: said.system, turns })
}
