//! A question in, answers out: with the cache, without it, or both.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::consult::consult;
use super::embed::embed;
use super::enhance::{Request as EnhanceRequest, Variant, enhance};
use super::input::MediaInput;
use super::search::SnapshotRef;
use super::see::see;
use super::{Aim, App, Call, Enhanced, Error, ExpertKind, Finding, Query};
use crate::batch::{Event, Generator, Seen, Task, Wait};
use crate::blend::{self, BlendParams};
use crate::index::SearchParams;
use crate::models::llama::SampleParams;
use crate::models::llm::{Llm, Prompt, PromptError};
use crate::text::Form;
use crate::types::{Embedding, Filter, Modality};

/// What the decoder is shown and asked.
#[derive(Debug)]
pub struct Conditioning {
    /// What is asked.
    pub prompt: Prompt,
    /// What it is about; without it no cache takes part, and the adapter is shown what it was trained with where there was nothing.
    pub query: Option<Query>,
    /// Whose findings in the query's pictures join the prompt.
    pub experts: Vec<ExpertKind>,
    /// Whether the cache enhances the query: yes, no, or one answer each. Only decoders that take embeddings ask it.
    pub cached: Vec<bool>,
    /// Name of the cache; empty means the default.
    pub cache: String,
    /// What the cache does to the query.
    pub blend: BlendParams,
    /// How it is searched.
    pub search: SearchParams,
    /// What recall is wanted.
    pub aim: Aim,
    /// Which items may be blended, if not all may.
    pub filter: Option<Filter>,
}

/// A question.
#[derive(Debug)]
pub struct Request {
    /// What is shown and asked.
    pub conditioning: Conditioning,
    /// Answers to each, of the seeds from the one given on.
    pub answers: usize,
    /// Likeliest tokens that are told beside each that was chosen.
    pub top: usize,
    /// How tokens are chosen.
    pub sampling: SampleParams,
    /// Tokens at most.
    pub max_tokens: usize,
    /// What each answer has to be, if not any text.
    pub form: Option<Form>,
    /// Texts that end an answer.
    pub stop: Vec<String>,
}

/// An answer that has been begun.
pub struct Branch {
    /// What the decoder is shown.
    pub shown: Arc<Shown>,
    /// Which of the answers to it, from 0.
    pub index: usize,
    /// The seed that its tokens are drawn with.
    pub seed: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens that were dropped from the beginning of a conversation.
    pub dropped: usize,
    /// What experts found.
    pub findings: Arc<[Finding]>,
    /// What happens to it.
    pub events: UnboundedReceiver<Event>,
}

/// What the decoder is shown in one branch.
pub struct Shown {
    /// What it is; nothing for a question without a query, and for a decoder that reads text alone.
    pub seen: Option<Seen>,
    /// How the cache came to it, and which, where one did.
    pub enhanced: Option<(Enhanced, SnapshotRef)>,
}

/// How likely an answer is: for each token the logarithm of its probability.
pub type Scored = Result<Vec<f32>, Error>;

/// Embeds, enhances, and puts the question into the decoder's line.
///
/// # Errors
/// [`Error::NoDecoder`], [`Error::Prompt`], [`Error::Form`], [`Error::Busy`], [`Error::Memory`]; as [`enhance`]; for a query of another width than the decoder's.
pub fn generate(app: &App, mut request: Request, call: &Call) -> Result<Vec<Branch>, Error> {
    let generator = decoder(app)?;
    generator.admits(request.conditioning.cached.len() * request.answers)?;
    let constraint = match &request.form {
        Some(form) => {
            call.tab.add(form.needs())?;
            Some(generator.llm().constrain(form)?)
        }
        None => None,
    };
    let findings: Arc<[Finding]> = ask_experts(app, &mut request.conditioning, call)?.into();
    let (prompt, dropped) = generator.llm().encode(&request.conditioning.prompt, request.max_tokens)?;
    let shown = show(app, generator, request.conditioning, call)?;
    let asked: Vec<(Arc<Shown>, usize, u64)> = shown
        .into_iter()
        .map(Arc::new)
        .flat_map(|shown| (0..request.answers).map(move |index| (shown.clone(), index)))
        .map(|(shown, index)| (shown, index, request.sampling.seed.wrapping_add(index as u64)))
        .collect();
    let task = |(shown, _, seed): &(Arc<Shown>, usize, u64)| Task {
        prompt: prompt.clone(),
        seen: shown.seen.clone(),
        max_tokens: request.max_tokens,
        top: request.top,
        sampling: SampleParams { seed: *seed, ..request.sampling.clone() },
        constraint: constraint.clone(),
        stop: request.stop.clone(),
        // Whoever takes no more events has gone; the call's own flag is raised when this function is left.
        wait: Wait { deadline: call.deadline, ..Wait::default() },
    };
    let events = generator.submit(asked.iter().map(task).collect())?;
    let branch = |((shown, index, seed), events)| {
        let findings = findings.clone();
        Branch { shown, index, seed, prompt_tokens: prompt.len(), dropped, findings, events }
    };
    Ok(asked.into_iter().zip(events).map(branch).collect())
}

/// Judges answers: each with a result of its own.
///
/// * `include_end`: whether the token that ends an answer counts.
///
/// # Errors
/// As [`generate`].
pub fn score(
    app: &App,
    mut conditioning: Conditioning,
    answers: &[String],
    include_end: bool,
    call: &Call,
) -> Result<(Vec<Scored>, Shown), Error> {
    let generator = decoder(app)?;
    let _judged = generator.judges()?;
    ask_experts(app, &mut conditioning, call)?;
    let (llm, prompt) = (generator.llm(), conditioning.prompt.clone());
    let (bare, _) = llm.encode(&prompt, 1)?;
    let shown = show(app, generator, conditioning, call)?;
    let shown = shown.into_iter().next().ok_or(Error::Cancelled)?;
    let limit = llm.decoder().config().max_seq_len;
    // As in training: prompt and answer are one text, and what is beyond the prompt's own tokens is the answer.
    let split = |answer: &String| -> Result<(Vec<u32>, Vec<u32>), Error> {
        let mut whole = vec![llm.tokenizer().bos()];
        whole.extend(llm.tokenizer().encode(&(llm.text(&prompt) + answer)).map_err(PromptError::from)?);
        if include_end {
            whole.push(llm.tokenizer().eos());
        }
        if whole.len() > limit {
            return Err(PromptError::TooLong { received: whole.len(), limit }.into());
        }
        let after = whole.split_off(bare.len().min(whole.len()));
        if after.is_empty() {
            return Err(PromptError::NoAnswer.into());
        }
        Ok((whole, after))
    };
    let mut scores: Vec<Scored> = Vec::with_capacity(answers.len());
    // Nearly all begin with the same tokens; where a piece crosses from prompt to answer, they do not.
    let mut alike: BTreeMap<Vec<u32>, Vec<(usize, Vec<u32>)>> = BTreeMap::new();
    for (i, answer) in answers.iter().enumerate() {
        scores.push(match split(answer) {
            Ok((before, after)) => {
                alike.entry(before).or_default().push((i, after));
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        });
    }
    for (before, group) in alike {
        let tokens: Vec<&[u32]> = group.iter().map(|(_, after)| &after[..]).collect();
        let found = generator.score(&before, &tokens, shown.seen.as_ref(), &call.wait())?;
        for ((i, _), found) in group.iter().zip(found) {
            scores[*i] = Ok(found);
        }
    }
    Ok((scores, shown))
}

fn decoder(app: &App) -> Result<&Generator, Error> {
    app.generator.as_ref().ok_or(Error::NoDecoder)
}

/// Lets experts add to the prompt what they find in the query's pictures.
fn ask_experts(app: &App, asked: &mut Conditioning, call: &Call) -> Result<Vec<Finding>, Error> {
    consult(app, &asked.experts, asked.query.as_ref(), &mut asked.prompt, call)
}

/// What the encoder makes of a picture of nothing, which a decoder with a bind network was trained with where there was no picture:
/// zeros, after they were normalised. Nothing where no encoder that fits the decoder is loaded.
fn embedding_of_nothing(app: &App, llm: &Llm, call: &Call) -> Result<Option<Embedding>, Error> {
    let Some(encoder) = app.encoder() else { return Ok(None) };
    if llm.decoder().embedding_width() != Some(encoder.dim()) || encoder.expects(Modality::Image).is_err() {
        return Ok(None);
    }
    if let Some(known) = app.nothing.get() {
        return Ok(Some(known.clone()));
    }
    let side = encoder.images().side;
    let zeros = MediaInput::Ready(Modality::Image, vec![3, side, side], vec![0.0; 3 * side * side]);
    let encoded = embed(app, &[&zeros], call)?.pop().ok_or(Error::Cancelled)??;
    let mixed = blend::mix(&[(&encoded.embedding, 1.0)])?;
    Ok(Some(app.nothing.get_or_init(|| mixed).clone()))
}

/// What the decoder is shown, one for each branch.
fn show(app: &App, generator: &Generator, asked: Conditioning, call: &Call) -> Result<Vec<Shown>, Error> {
    let llm = generator.llm();
    let Some(query) = asked.query else {
        let seen = match llm.decoder().picture() {
            // As in training, where texts come with a picture of nothing.
            Some(_) => Some(Seen::Tokens(llm.visual_of_nothing()?)),
            None => embedding_of_nothing(app, llm, call)?.map(Seen::Embedding),
        };
        return Ok(vec![Shown { seen, enhanced: None }]);
    };
    let seen = see(app, llm, query, call)?;
    let Seen::Embedding(mixed) = seen else {
        return Ok(vec![Shown { seen: Some(seen), enhanced: None }]);
    };
    let branch = |&cached: &bool| {
        if !cached {
            return Ok(Shown { seen: Some(Seen::Embedding(mixed.clone())), enhanced: None });
        }
        let request = EnhanceRequest {
            cache: asked.cache.clone(),
            queries: vec![Ok(Query::Ready(mixed.clone()))],
            blend: asked.blend,
            search: asked.search,
            filter: asked.filter.clone(),
            aim: asked.aim.clone(),
            variant: Variant::Condition,
            expected_weights: String::new(),
        };
        let mut found = enhance(app, request, call, |_, enhanced| Ok(enhanced))?;
        let enhanced = found.results.pop().ok_or(Error::Cancelled)??;
        let seen = Some(Seen::Embedding(enhanced.embedding.clone()));
        Ok(Shown { seen, enhanced: Some((enhanced, found.snapshot)) })
    };
    asked.cached.iter().map(branch).collect()
}
