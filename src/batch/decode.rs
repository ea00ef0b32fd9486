//! The thread that owns the decoder: answers that join, grow by a token a step, and leave.
//!
//! Prompts are read in slices beside the answers that grow (`pace.rs`), so that a long one stops nobody.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::beginnings::{Beginnings, LEAST, Read};
use super::line::{Event, Finish, GenerateOptions, Shared, StopReason, Task, Waiting};
use super::pace::{Pace, shares};
use super::{Error, Wait};
use crate::models;
use crate::models::llama::{Choice, Sampler, Sequence, likeliest};
use crate::models::llm::Llm;
use crate::text::{Constraint, Detokenizer, Stops};

/// How often the thread looks at those who wait while nothing runs: their time passes.
const LOOK: Duration = Duration::from_millis(50);

/// An answer that grows.
struct Running {
    /// The prompt, and what it has said.
    text: Read,
    /// Ids that the decoder has not seen.
    next: Vec<u32>,
    /// Ids of the prompt that had been read already.
    reused: usize,
    /// Whether its prompt was read.
    growing: bool,
    /// Bytes that its keys and values may come to take.
    bytes: u64,
    sampler: Sampler,
    constraint: Option<Constraint>,
    detokenizer: Detokenizer,
    stops: Stops,
    said: usize,
    max_tokens: usize,
    top: usize,
    wait: Wait,
    events: UnboundedSender<Event>,
    since: Instant,
    joined: Instant,
    first: Option<Instant>,
}

/// Answers until nobody asks any more.
pub(super) fn work(shared: &Shared, options: &GenerateOptions) {
    let (mut running, mut pace, mut beginnings): (Vec<Running>, Pace, Beginnings) = Default::default();
    while let Some((joining, finishing)) = join(shared, options, &running, &mut beginnings) {
        for waiting in joining {
            running.extend(begin(shared, waiting));
        }
        running.retain_mut(|one| match one.wait.check() {
            _ if one.events.is_closed() => false,
            Ok(()) if finishing => one.end(StopReason::Stopped),
            Ok(()) => true,
            Err(error) => {
                _ = one.events.send(Event::Failed(error));
                false
            }
        });
        if running.is_empty() {
            continue;
        }
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            let waiting = take_over(&mut running, &mut beginnings)?;
            step(&shared.llm, &mut running, &waiting, &mut pace)
        }));
        let why = match stepped {
            Ok(Ok(ended)) => {
                ended.into_iter().for_each(|text| beginnings.keep(text, options.memory / 4));
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "decoding crashed".to_owned(),
        };
        // Nobody's tokens can be trusted after that.
        beginnings = Beginnings::default();
        for one in running.drain(..) {
            _ = one.events.send(Event::Failed(failed(why.clone())));
        }
    }
}

fn failed(why: String) -> Error {
    models::Error::Input { received: vec![], why }.into()
}

/// Takes what fits into the free slots and the memory, in the order they came; waits for something when nothing runs. Says whether
/// what runs is to end as well. Nothing when the end has come.
fn join(
    shared: &Shared,
    options: &GenerateOptions,
    running: &[Running],
    beginnings: &mut Beginnings,
) -> Option<(Vec<Waiting>, bool)> {
    let mut state = shared.lock();
    state.let_go();
    beginnings.age();
    while running.is_empty() && state.waiting.is_empty() {
        if state.closed {
            return None;
        }
        state = shared.wait(state, LOOK);
        state.let_go();
        beginnings.age();
    }
    let mut held: u64 = running.iter().map(|one| one.bytes).sum();
    let mut joining = Vec::new();
    while running.len() + joining.len() < options.slots.max(1)
        && let Some(next) = state.waiting.front()
        && held + shared.needs(&next.task) <= options.memory
    {
        held += shared.needs(&next.task);
        joining.extend(state.waiting.pop_front());
    }
    beginnings.shrink(options.memory.saturating_sub(held));
    Some((joining, state.finishing))
}

/// A sequence for a task; nothing when it is no longer wanted or cannot be begun, which its caller is told.
fn begin(shared: &Shared, waiting: Waiting) -> Option<Running> {
    let bytes = shared.needs(&waiting.task);
    let Waiting { task, since, events } = waiting;
    let begun = catch_unwind(AssertUnwindSafe(|| sequence(&shared.llm, &task)));
    match begun.unwrap_or_else(|_| Err(failed("beginning it crashed".into()))) {
        Ok(_) if task.max_tokens == 0 => {
            let queued = since.elapsed();
            let (reason, text, none) = (StopReason::MaxTokens, String::new(), Duration::ZERO);
            let finish = Finish { reason, text, reused: 0, queued, prefill: none, decode: none };
            _ = events.send(Event::Done(finish));
            None
        }
        Ok(sequence) => Some(Running {
            text: Read { seen: task.seen, ids: task.prompt.clone(), sequence },
            reused: 0,
            sampler: {
                let mut sampler = Sampler::new(task.sampling);
                sampler.saw(&task.prompt);
                sampler
            },
            next: task.prompt,
            growing: false,
            bytes,
            top: task.top,
            constraint: task.constraint,
            detokenizer: Detokenizer::default(),
            stops: Stops::new(task.stop),
            said: 0,
            max_tokens: task.max_tokens,
            wait: task.wait,
            events,
            since,
            joined: Instant::now(),
            first: None,
        }),
        Err(error) => {
            _ = events.send(Event::Failed(error));
            None
        }
    }
}

fn sequence(llm: &Llm, task: &Task) -> Result<Sequence, Error> {
    task.wait.check()?;
    let decoder = llm.decoder();
    let visual = task.seen.as_ref().map(|seen| seen.visual(llm)).transpose()?;
    let capacity = (task.prompt.len() + task.max_tokens).min(decoder.config().max_seq_len);
    Ok(decoder.begin(visual.as_ref(), capacity)?)
}

/// Lets those of whom nothing was read yet begin with what was, of another text. Says of each whether it waits for one before it to
/// read what both begin with.
fn take_over(running: &mut [Running], beginnings: &mut Beginnings) -> Result<Vec<bool>, models::Error> {
    let mut waits = vec![false; running.len()];
    for (i, waits) in waits.iter_mut().enumerate() {
        let (before, rest) = running.split_at_mut(i);
        let Some(one) = rest.first_mut().filter(|one| one.text.sequence.is_empty()) else { continue };
        // Its last token is read in any case: what comes after it is not kept.
        let most = one.text.ids.len().saturating_sub(1);
        let kept = beginnings.longest(&one.text);
        let (mut held, mut from) = kept.map_or((0, None), |(held, from)| (held, Some(from)));
        let mut coming = 0;
        for other in before.iter() {
            let common = other.text.common(&one.text);
            if common.min(other.text.sequence.len()) > held {
                (held, from) = (common.min(other.text.sequence.len()), Some(&other.text.sequence));
            }
            if !other.growing {
                coming = coming.max(common.min(most));
            }
        }
        let held = held.min(most);
        *waits = coming >= held + LEAST;
        if let Some(from) = from.filter(|_| !*waits && held >= LEAST) {
            one.text.sequence = from.fork(held, one.text.sequence.capacity())?;
            one.next.drain(..held);
            one.reused = held;
        }
    }
    Ok(waits)
}

/// One pass: a token more for each answer that grows, and slices of prompts, but of those that wait; those that end leave, and their
/// texts come back.
fn step(
    llm: &Llm,
    running: &mut Vec<Running>,
    waits: &[bool],
    pace: &mut Pace,
) -> Result<Vec<Read>, models::Error> {
    let growing = running.iter().filter(|one| one.growing).count();
    let waiting = running.iter().zip(waits).map(|(one, waits)| match waits {
        true => (0, false),
        false => (one.next.len(), one.growing),
    });
    let waiting: Vec<(usize, bool)> = waiting.collect();
    let shares = shares(&waiting, pace.rows(growing));
    let begun = Instant::now();
    let taking = running.iter_mut().zip(&shares).filter(|(_, share)| **share > 0);
    let mut batch: Vec<(&mut Sequence, &[u32])> =
        taking.map(|(one, share)| (&mut one.text.sequence, &one.next[..*share])).collect();
    let logits = llm.decoder().forward(&mut batch)?.to_vec2::<f32>()?;
    let rows = shares.iter().sum::<usize>() - growing;
    pace.stepped(growing, rows, begun.elapsed());
    let (mut rows, mut shares) = (logits.iter(), shares.iter());
    let ended = running.extract_if(.., |one| match shares.next() {
        None | Some(0) => false,
        Some(share) => rows.next().is_none_or(|logits| !one.read(llm, *share, logits)),
    });
    Ok(ended.map(|one| one.text).collect())
}

impl Running {
    /// So many of its ids were read; false when the answer has ended.
    fn read(&mut self, llm: &Llm, count: usize, logits: &[f32]) -> bool {
        self.next.drain(..count);
        // The rest of the prompt comes first.
        if !self.next.is_empty() {
            return true;
        }
        self.growing = true;
        self.take(llm, logits)
    }

    /// Chooses the next token; false when the answer has ended.
    fn take(&mut self, llm: &Llm, logits: &[f32]) -> bool {
        if !logits.iter().any(|logit| logit.is_finite()) {
            let why = "the decoder's numbers are not finite any more: its weights, or what it was shown, are absurd";
            _ = self.events.send(Event::Failed(failed(why.into())));
            return false;
        }
        let now = Instant::now();
        self.first.get_or_insert(now);
        let Choice { id, logprob } = match self.choose(llm, logits) {
            Ok(choice) => choice,
            Err(error) => {
                _ = self.events.send(Event::Failed(error));
                return false;
            }
        };
        let top = likeliest(logits, self.top);
        if id == llm.tokenizer().eos() {
            return self.end(StopReason::EndOfText);
        }
        self.said += 1;
        let text = self.detokenizer.push(llm.tokenizer(), id);
        let text = self.stops.push(&text);
        // Nobody listens: the slot is free.
        if self.events.send(Event::Token { id, logprob, top, text }).is_err() {
            return false;
        }
        if self.stops.found() {
            return self.end(StopReason::StopText);
        }
        if self.constraint.as_ref().is_some_and(Constraint::is_over) {
            return self.end(StopReason::EndOfText);
        }
        if self.said >= self.max_tokens {
            return self.end(StopReason::MaxTokens);
        }
        // The token just chosen takes a place too.
        let sequence = &self.text.sequence;
        if sequence.len() + 1 >= sequence.capacity() {
            return self.end(StopReason::Positions);
        }
        self.text.ids.push(id);
        self.next = vec![id];
        true
    }

    /// The next token, of those that the answer's form allows.
    fn choose(&mut self, llm: &Llm, logits: &[f32]) -> Result<Choice, Error> {
        let Some(constraint) = &mut self.constraint else {
            return Ok(self.sampler.choose(logits, None));
        };
        let choice = self.sampler.choose(logits, Some(&constraint.allowed()?));
        if choice.id != llm.tokenizer().eos() {
            constraint.take(choice.id)?;
        }
        Ok(choice)
    }

    /// Tells the caller how it ended; false, because it has.
    fn end(&mut self, reason: StopReason) -> bool {
        let tail = self.detokenizer.finish();
        let text = match reason {
            StopReason::StopText => String::new(),
            _ => self.stops.push(&tail) + &self.stops.rest(),
        };
        let (now, first) = (Instant::now(), self.first.unwrap_or(self.joined));
        let finish = Finish {
            reason,
            text,
            reused: self.reused,
            queued: self.joined - self.since,
            prefill: first.saturating_duration_since(self.joined),
            decode: now.saturating_duration_since(first),
        };
        _ = self.events.send(Event::Done(finish));
        false
    }
}
