//! Each input embedded and searched once, each question answered under every setting.
//!
//! ```text
//! input ─► embedding ─► the nearest items, for the largest top_k ─┬─ blend of the first k, a setting each ─► on, on, …
//!             └──────────────────────────────────────────────────┴─────────────────────────────────────► off
//! question under each of them ─► the decoder's line: an answer, greedily ─► right or not
//!                             └► log-probabilities of given answers       ─► likelihood; of right and wrong ones: a choice
//! ```
//! The hits of a smaller `top_k` are the first of the largest. A server that is asked for fewer searches with a narrower beam, and may
//! miss one of them now and then.
//!
//! **Likelihood** of a row: of each right answer the mean of its tokens' log-probabilities, the token that ends it included; then the
//! mean over the right answers. A **choice** goes by the sum over the tokens, as it is which answer the decoder would rather give; a tie
//! is not right.

use std::collections::HashMap;
use std::path::Path;

use tokio::sync::mpsc::UnboundedReceiver;
use viscache::batch::Event;
use viscache::blend;
use viscache::flow::{
    self, Aim, App, Call, Conditioning, Error, GenerateRequest, MediaInput, Query, SearchRequest,
};
use viscache::media::{DepthOptions, ImuOptions, PointOptions, ThermalOptions};
use viscache::models::llama::SampleParams;
use viscache::models::llm::Prompt;
use viscache::types::{Embedding, Modality};

use super::grid::Setting;
use super::list::{Input, Row};
use super::{judge, said};

/// Inputs that are worked on together.
pub(super) const CHUNK: usize = 32;

/// What is measured, and how.
pub(super) struct Job<'a> {
    /// Store and models.
    pub(super) app: &'a App,
    /// Name of the cache; empty for the default.
    pub(super) cache: &'a str,
    /// What is compared with no cache; at least one.
    pub(super) settings: &'a [Setting],
    /// Whether answers are wanted, and judged.
    pub(super) accuracy: bool,
    /// Whether right answers are scored.
    pub(super) likelihood: bool,
    /// What is asked of rows that ask nothing.
    pub(super) question: &'a str,
    /// Tokens of an answer at most.
    pub(super) max_tokens: usize,
    /// Whether it is still wanted.
    pub(super) call: &'a Call,
}

/// What came of a row under one setting, or without the cache.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Reading {
    /// What was answered or chosen.
    pub(super) answer: Option<String>,
    /// Whether that is right.
    pub(super) right: Option<bool>,
    /// Mean log-likelihood of the right answers, nats a token.
    pub(super) likelihood: Option<f64>,
}

/// What came of a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    /// Which row.
    pub(super) row: usize,
    /// Which input, counted from 0; rows about the same have the same.
    pub(super) input: usize,
    /// Without the cache first, then under each setting.
    pub(super) readings: Vec<Reading>,
}

/// Measures all rows. `each` is told of every one, rows about one input together: what came of it, or why nothing did.
///
/// # Errors
/// What is no fault of a row: store, cache, model, an interruption; those of `each`.
pub(super) fn measure(
    job: &Job<'_>,
    rows: &[Row],
    mut each: impl FnMut(usize, Result<Measured, String>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let inputs = inputs(rows);
    for (chunk, first) in inputs.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
        let shown = show(job, chunk)?;
        // All questions go into the decoder's line at once, so that answers grow together; likelihoods are looked at meanwhile.
        let mut begun = Vec::new();
        for (input, ((_, about), shown)) in chunk.iter().zip(shown).enumerate() {
            for &row in about {
                let asked = match &shown {
                    Ok(shown) => ask(job, &rows[row], shown)?,
                    Err(why) => Err(why.clone()),
                };
                begun.push((
                    row,
                    first + input,
                    asked.map(|events| (events, shown.clone().unwrap_or_default())),
                ));
            }
        }
        for (row, input, asked) in begun {
            let readings = match asked {
                Ok((events, shown)) => read(job, &rows[row], &shown, events)?,
                Err(why) => Err(why),
            };
            each(row, readings.map(|readings| Measured { row, input, readings }))?;
        }
    }
    Ok(())
}

/// The inputs, each with the rows about it.
fn inputs(rows: &[Row]) -> Vec<(&Input, Vec<usize>)> {
    let (mut inputs, mut known): (Vec<(&Input, Vec<usize>)>, _) = (Vec::new(), HashMap::new());
    for (i, row) in rows.iter().enumerate() {
        let at = *known.entry(&row.input).or_insert(inputs.len());
        match inputs.get_mut(at) {
            Some((_, about)) => about.push(i),
            None => inputs.push((&row.input, vec![i])),
        }
    }
    inputs
}

/// What the decoder is shown of each input: the query as it is, then enhanced under each setting.
fn show(
    job: &Job<'_>,
    inputs: &[(&Input, Vec<usize>)],
) -> anyhow::Result<Vec<Result<Vec<Embedding>, String>>> {
    let media: Vec<Result<MediaInput, String>> = inputs.iter().map(|(input, _)| taken(input)).collect();
    let good: Vec<&MediaInput> = media.iter().filter_map(|media| media.as_ref().ok()).collect();
    let mut encoded = flow::embed(job.app, &good, job.call)?.into_iter();
    let largest = job.settings.iter().map(|setting| setting.top_k).max().unwrap_or(1);
    let mut all = Vec::with_capacity(inputs.len());
    for media in media {
        job.call.check()?;
        let media = match media {
            Ok(media) => media,
            Err(why) => {
                all.push(Err(why));
                continue;
            }
        };
        let encoded = encoded.next().unwrap_or(Err(Error::Cancelled));
        let shown = encoded.and_then(|encoded| {
            let query = blend::mix(&[(&encoded.embedding, 1.0)])?;
            let request = SearchRequest {
                cache: job.cache.to_owned(),
                queries: vec![Ok(Query::Ready(query.clone()))],
                top_k: largest,
                search: job.app.default_search,
                filter: None,
                aim: Aim { width: job.app.default_width, kind: Some(media.modality().into()) },
            };
            let mut searched = flow::search(job.app, request, job.call, |_, answer| Ok(answer.found.hits))?;
            let hits = searched.results.pop().unwrap_or(Err(Error::Cancelled))?;
            let on = job.settings.iter().map(|setting| {
                let hits = &hits[..setting.top_k.min(hits.len())];
                Ok(blend::blend(&query, hits, &setting.params())?.embedding)
            });
            std::iter::once(Ok(query.clone())).chain(on).collect::<Result<Vec<_>, Error>>()
        });
        all.push(match shown {
            Ok(shown) => Ok(shown),
            Err(error) => Err(fault(error)?),
        });
    }
    Ok(all)
}

/// An input as the model takes it.
fn taken(input: &Input) -> Result<MediaInput, String> {
    let (path, modality) = match input {
        Input::Text(text) => return Ok(MediaInput::Text(text.clone().into())),
        Input::File(path, modality) => (path, modality),
    };
    let bytes = read_file(path)?.into();
    Ok(match modality {
        Modality::Image => MediaInput::Image(bytes),
        Modality::Text => MediaInput::Text(bytes),
        Modality::Audio => MediaInput::Audio(bytes),
        Modality::Video => MediaInput::Film(bytes),
        Modality::Depth => MediaInput::Depth(bytes, DepthOptions::default()),
        Modality::Thermal => MediaInput::Thermal(bytes, ThermalOptions::default()),
        Modality::Imu => MediaInput::Imu(bytes, ImuOptions::default()),
        Modality::Point => MediaInput::Point(bytes, PointOptions::default()),
    })
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

/// What a row asks about a query that is shown as it is.
fn conditioning(job: &Job<'_>, row: &Row, shown: &Embedding) -> Conditioning {
    let instruction = row.question.as_deref().unwrap_or(job.question).to_owned();
    Conditioning {
        prompt: Prompt::Instruction { instruction, input: None },
        query: Some(Query::Ready(shown.clone())),
        experts: Vec::new(),
        cached: vec![false],
        cache: job.cache.to_owned(),
        blend: job.app.default_blend,
        search: job.app.default_search,
        aim: Aim::default(),
        filter: None,
    }
}

type Answers = Vec<UnboundedReceiver<Event>>;

/// Begins the answers to a row, one for each of `shown`; none where there is a choice, or answers are not wanted.
fn ask(job: &Job<'_>, row: &Row, shown: &[Embedding]) -> anyhow::Result<Result<Answers, String>> {
    if !job.accuracy || !row.wrong.is_empty() {
        return Ok(Ok(Vec::new()));
    }
    let mut answers = Vec::with_capacity(shown.len());
    for shown in shown {
        job.call.check()?;
        let request = GenerateRequest {
            conditioning: conditioning(job, row, shown),
            answers: 1,
            top: 0,
            sampling: SampleParams { temperature: 0.0, ..SampleParams::default() },
            max_tokens: job.max_tokens,
            form: None,
            stop: Vec::new(),
        };
        match flow::generate(job.app, request, job.call) {
            Ok(branches) => answers.extend(branches.into_iter().map(|branch| branch.events)),
            Err(error) => return Ok(Err(fault(error)?)),
        }
    }
    Ok(Ok(answers))
}

/// What came of a row: likelihoods, and answers that have been begun.
fn read(
    job: &Job<'_>,
    row: &Row,
    shown: &[Embedding],
    answers: Answers,
) -> anyhow::Result<Result<Vec<Reading>, String>> {
    let choice = job.accuracy && !row.wrong.is_empty();
    let mut readings = vec![Reading::default(); shown.len()];
    if choice || job.likelihood {
        let wrong = if choice { &row.wrong[..] } else { &[] };
        let given: Vec<String> = row.right.iter().chain(wrong).cloned().collect();
        for (reading, shown) in readings.iter_mut().zip(shown) {
            job.call.check()?;
            let scored = flow::score(job.app, conditioning(job, row, shown), &given, true, job.call);
            let tokens = scored.and_then(|(scores, _)| scores.into_iter().collect::<Result<Vec<_>, Error>>());
            let tokens = match tokens {
                Ok(tokens) => tokens,
                Err(error) => return Ok(Err(fault(error)?)),
            };
            if job.likelihood {
                reading.likelihood = Some(likelihood(&tokens[..row.right.len()]));
            }
            if choice {
                let chosen = chosen(&tokens);
                reading.right = Some(chosen < row.right.len());
                reading.answer = given.get(chosen).cloned();
            }
        }
    }
    for (reading, events) in readings.iter_mut().zip(answers) {
        job.call.check()?;
        let answer = said::whole(events)?;
        reading.right = Some(judge::is_right(&answer, &row.right));
        reading.answer = Some(answer);
    }
    Ok(Ok(readings))
}

/// The mean over answers of the mean over their tokens.
///
/// * `answers`: at least one, each of at least one log-probability.
fn likelihood(answers: &[Vec<f32>]) -> f64 {
    let one = |tokens: &Vec<f32>| total(tokens) / tokens.len().max(1) as f64;
    answers.iter().map(one).sum::<f64>() / answers.len().max(1) as f64
}

/// The likeliest answer; of equals the last, which is a wrong one where there is one.
fn chosen(answers: &[Vec<f32>]) -> usize {
    let best = answers.iter().enumerate().max_by(|(_, a), (_, b)| total(a).total_cmp(&total(b)));
    best.map_or(0, |(at, _)| at)
}

fn total(tokens: &[f32]) -> f64 {
    tokens.iter().map(|&token| f64::from(token)).sum()
}

/// What is wrong with a row.
///
/// # Errors
/// What is no fault of it.
fn fault(error: Error) -> anyhow::Result<String> {
    match error {
        Error::Prompt(_)
        | Error::Prepare(_)
        | Error::Part { .. }
        | Error::Blend(_)
        | Error::Argument { .. }
        | Error::NoFfmpeg { .. } => Ok(format!("{:#}", anyhow::Error::from(error))),
        other => Err(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihoods_are_means_and_choices_are_sums() {
        let answers = [vec![-1.0, -2.0], vec![-4.0], vec![-1.0, -1.0, -1.5]];
        // (−1.5 − 4) / 2.
        assert_eq!(likelihood(&answers[..2]), -2.75);
        // −3, −4 and −3.5: the first, though the last has the likelier tokens.
        assert_eq!(chosen(&answers), 0);
        assert_eq!(chosen(&answers[1..]), 1);
        assert_eq!(chosen(&[vec![-1.0], vec![-0.5, -0.5]]), 1, "a tie is not right");
    }

    #[test]
    fn rows_about_one_input_are_found_together() {
        let row = |line, text: &str| Row {
            line,
            input: Input::Text(text.into()),
            name: text.into(),
            question: None,
            right: vec!["x".into()],
            wrong: Vec::new(),
            kind: "text".into(),
        };
        let rows = [row(2, "a"), row(3, "b"), row(4, "a")];
        let found: Vec<_> = inputs(&rows).into_iter().map(|(_, about)| about).collect();
        assert_eq!(found, [vec![0, 2], vec![1]]);
    }
}
