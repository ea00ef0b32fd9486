//! Many answers, one decoder: sequences join and leave at every step.
//!
//! ```text
//! callers ─► waiting, in their order ─► slots ─► one pass over the new tokens of all ─► a token each ─► its caller
//!              full: refused              │        (a prompt whole, of others the last token)      gone or late: the
//!              gone or late: dropped      └ freed when an answer ends                              slot is free again
//! ```
//! The visual feature of a sequence, and what it adds to every layer, are computed once, when it joins. What a sequence says
//! does not depend on who else is there: each draws with its own seed and attends to its own tokens.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Error, Wait};
use crate::models::llama::{Choice, SampleParams, Sampler, Sequence};
use crate::models::llm::Llm;
use crate::models::{self, Tensor};
use crate::text::Detokenizer;
use crate::types::Embedding;

/// What is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateOptions {
    /// Answers that grow at the same time.
    pub slots: usize,
    /// Requests that may wait for a slot.
    pub capacity: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions { slots: 8, capacity: 64 }
    }
}

/// An answer that is wanted.
#[derive(Debug, Clone)]
pub struct Task {
    /// Ids of the prompt, BOS first.
    pub prompt: Vec<u32>,
    /// What the decoder is shown; `None` leaves out what the adapter needs it for.
    pub seen: Option<Seen>,
    /// Tokens at most.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SampleParams,
    /// Texts that end an answer; they are not part of it.
    pub stop: Vec<String>,
    /// How long, and whether, the caller waits.
    pub wait: Wait,
}

/// What a decoder is shown.
#[derive(Debug, Clone)]
pub enum Seen {
    /// An embedding, for a decoder with a bind network.
    Embedding(Embedding),
    /// What it made of a picture ([`models::llama::Decoder::visual_of_picture`]), `[P, D]`.
    Tokens(Tensor),
}

impl Seen {
    /// What the adapter is given.
    fn visual(&self, llm: &Llm) -> Result<Tensor, models::Error> {
        match self {
            Seen::Embedding(embedding) => llm.decoder().visual_of(embedding.as_slice()),
            Seen::Tokens(tokens) => Ok(tokens.clone()),
        }
    }
}

/// What happens to a task.
#[derive(Debug)]
pub enum Event {
    /// One more token.
    Token {
        /// Its id.
        id: u32,
        /// Logarithm of its probability.
        logprob: f32,
        /// The text that it settles: whole characters, sometimes none.
        text: String,
    },
    /// The end of a good answer; nothing follows.
    Done(Finish),
    /// The end of one that failed; nothing follows.
    Failed(Error),
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// Why.
    pub reason: StopReason,
    /// Text that no token settled.
    pub text: String,
    /// Waiting for a slot.
    pub queued: Duration,
    /// Until the first token.
    pub prefill: Duration,
    /// From then on.
    pub decode: Duration,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model said so.
    EndOfText,
    /// A stop text came.
    StopText,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The decoder has no more positions.
    Positions,
}

/// A decoder that many may ask. Dropping it ends its thread.
pub struct Generator {
    shared: Arc<Shared>,
    options: GenerateOptions,
    scoring: Mutex<()>,
}

/// Answers that are judged in one pass.
const SCORED: usize = 8;

struct Shared {
    llm: Llm,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    closed: bool,
}

struct Waiting {
    task: Task,
    since: Instant,
    events: UnboundedSender<Event>,
}

/// An answer that grows.
struct Running {
    sequence: Sequence,
    /// Ids that the decoder has not seen.
    next: Vec<u32>,
    sampler: Sampler,
    detokenizer: Detokenizer,
    stops: Stops,
    said: usize,
    max_tokens: usize,
    wait: Wait,
    events: UnboundedSender<Event>,
    since: Instant,
    joined: Instant,
    first: Option<Instant>,
}

impl Generator {
    /// Starts a decoder's thread.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn start(llm: Llm, options: GenerateOptions) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { llm, state: Mutex::default(), work: Condvar::new() });
        let worker = shared.clone();
        let named = std::thread::Builder::new().name("decoder".into());
        named.spawn(move || work(&worker, options.slots.max(1)))?;
        Ok(Generator { shared, options, scoring: Mutex::default() })
    }

    /// The decoder, for what needs no turn.
    pub fn llm(&self) -> &Llm {
        &self.shared.llm
    }

    /// Bounds.
    pub fn options(&self) -> GenerateOptions {
        self.options
    }

    /// Puts tasks into the line, all or none; each one's events come as they happen.
    ///
    /// # Errors
    /// [`Error::Line`].
    pub fn submit(&self, tasks: Vec<Task>) -> Result<Vec<UnboundedReceiver<Event>>, Error> {
        let mut state = self.shared.lock();
        let (waiting, capacity) = (state.waiting.len(), self.options.capacity);
        if waiting + tasks.len() > capacity {
            return Err(Error::Line { waiting, capacity });
        }
        let since = Instant::now();
        let receivers = tasks.into_iter().map(|task| {
            let (events, receiver) = unbounded_channel();
            state.waiting.push_back(Waiting { task, since, events });
            receiver
        });
        let receivers = receivers.collect();
        drop(state);
        self.shared.work.notify_all();
        Ok(receivers)
    }

    /// Log-probabilities of the tokens of each answer behind a prompt, on the thread that asks; one caller at a time, so that
    /// answers which grow meanwhile keep a share of the processors. The prompt is read once.
    ///
    /// # Errors
    /// [`Error::Model`]: a prompt without tokens, or more tokens than positions; what `wait` says.
    pub fn score(
        &self,
        prompt: &[u32],
        answers: &[&[u32]],
        seen: Option<&Seen>,
        wait: &Wait,
    ) -> Result<Vec<Vec<f32>>, Error> {
        let _turn = self.scoring.lock().unwrap_or_else(PoisonError::into_inner);
        let decoder = self.shared.llm.decoder();
        wait.check()?;
        let visual = seen.map(|seen| seen.visual(&self.shared.llm)).transpose()?;
        let mut asked = decoder.begin(visual.as_ref(), prompt.len())?;
        let first = decoder.forward(&mut [(&mut asked, prompt)])?;
        let first = first.to_vec2::<f32>().map_err(models::Error::from)?.remove(0);
        let mut scores = Vec::with_capacity(answers.len());
        for answers in answers.chunks(SCORED) {
            wait.check()?;
            // The last token of an answer is judged and not read.
            let read = |answer: &&[u32]| answer.len().saturating_sub(1);
            let forks = answers.iter().filter(|answer| read(answer) > 0);
            let forks =
                forks.map(|answer| Ok((asked.fork(prompt.len() + read(answer))?, &answer[..read(answer)])));
            let mut forks: Vec<(Sequence, &[u32])> = forks.collect::<Result<_, models::Error>>()?;
            let rows = match forks.is_empty() {
                true => Vec::new(),
                false => {
                    let mut batch: Vec<(&mut Sequence, &[u32])> =
                        forks.iter_mut().map(|(sequence, ids)| (sequence, *ids)).collect();
                    let logits = decoder.forward_all(&mut batch, &mut |_, _| {})?;
                    logits.to_vec2::<f32>().map_err(models::Error::from)?
                }
            };
            let mut rows = rows.iter();
            for answer in answers {
                let before = std::iter::once(&first).filter(|_| !answer.is_empty());
                let before = before.chain(rows.by_ref().take(read(answer)));
                scores.push(
                    before.zip(*answer).map(|(logits, &id)| models::llama::logprob(logits, id)).collect(),
                );
            }
        }
        Ok(scores)
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn work(shared: &Shared, slots: usize) {
    let mut running: Vec<Running> = Vec::new();
    loop {
        let Some(joining) = join(shared, slots, running.is_empty(), running.len()) else { return };
        for waiting in joining {
            running.extend(begin(&shared.llm, waiting));
        }
        running.retain(|one| match one.wait.check() {
            Ok(()) => true,
            Err(error) => {
                _ = one.events.send(Event::Failed(error));
                false
            }
        });
        if running.is_empty() {
            continue;
        }
        let stepped = catch_unwind(AssertUnwindSafe(|| step(&shared.llm, &mut running)));
        let why = match stepped {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "decoding crashed".to_owned(),
        };
        // Nobody's tokens can be trusted after that.
        for one in running.drain(..) {
            let error = models::Error::Input { received: vec![], why: why.clone() };
            _ = one.events.send(Event::Failed(error.into()));
        }
    }
}

/// Takes what fits into the free slots; waits for something when nothing runs. Nothing when the end has come.
fn join(shared: &Shared, slots: usize, idle: bool, taken: usize) -> Option<Vec<Waiting>> {
    let mut state = shared.lock();
    while idle && state.waiting.is_empty() {
        if state.closed {
            return None;
        }
        state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    let free = slots.saturating_sub(taken).min(state.waiting.len());
    Some(state.waiting.drain(..free).collect())
}

/// A sequence for a task; nothing when it is no longer wanted or cannot be begun, which its caller is told.
fn begin(llm: &Llm, waiting: Waiting) -> Option<Running> {
    let Waiting { task, since, events } = waiting;
    let begun = || -> Result<Sequence, Error> {
        task.wait.check()?;
        let decoder = llm.decoder();
        let visual = task.seen.as_ref().map(|seen| seen.visual(llm)).transpose()?;
        let capacity = (task.prompt.len() + task.max_tokens).min(decoder.config().max_seq_len);
        Ok(decoder.begin(visual.as_ref(), capacity)?)
    };
    match begun() {
        Ok(_) if task.max_tokens == 0 => {
            let queued = since.elapsed();
            let (reason, text, none) = (StopReason::MaxTokens, String::new(), Duration::ZERO);
            _ = events.send(Event::Done(Finish { reason, text, queued, prefill: none, decode: none }));
            None
        }
        Ok(sequence) => Some(Running {
            sequence,
            next: task.prompt,
            sampler: Sampler::new(task.sampling),
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

/// One pass, one token for each; those that end leave.
fn step(llm: &Llm, running: &mut Vec<Running>) -> Result<(), models::Error> {
    let mut batch: Vec<(&mut Sequence, &[u32])> =
        running.iter_mut().map(|one| (&mut one.sequence, &one.next[..])).collect();
    let logits = llm.decoder().forward(&mut batch)?.to_vec2::<f32>()?;
    let mut rows = logits.iter();
    running.retain_mut(|one| rows.next().is_some_and(|logits| one.take(llm, logits)));
    Ok(())
}

impl Running {
    /// Chooses the next token; false when the answer has ended.
    fn take(&mut self, llm: &Llm, logits: &[f32]) -> bool {
        let now = Instant::now();
        self.first.get_or_insert(now);
        let Choice { id, logprob } = self.sampler.choose(logits);
        if id == llm.tokenizer().eos() {
            return self.end(StopReason::EndOfText);
        }
        self.said += 1;
        let text = self.detokenizer.push(llm.tokenizer(), id);
        let text = self.stops.push(&text);
        // Nobody listens: the slot is free.
        if self.events.send(Event::Token { id, logprob, text }).is_err() {
            return false;
        }
        if self.stops.found {
            return self.end(StopReason::StopText);
        }
        if self.said >= self.max_tokens {
            return self.end(StopReason::MaxTokens);
        }
        // The token just chosen takes a place too.
        if self.sequence.len() + 1 >= self.sequence.capacity() {
            return self.end(StopReason::Positions);
        }
        self.next = vec![id];
        true
    }

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
            queued: self.joined - self.since,
            prefill: first.saturating_duration_since(self.joined),
            decode: now.saturating_duration_since(first),
        };
        _ = self.events.send(Event::Done(finish));
        false
    }
}

/// Watches for texts that end an answer, and keeps back what may be the beginning of one.
#[derive(Debug, Default)]
struct Stops {
    stops: Vec<String>,
    kept: String,
    found: bool,
}

impl Stops {
    fn new(stops: Vec<String>) -> Self {
        Stops { stops, ..Stops::default() }
    }

    /// The text that is surely part of the answer.
    fn push(&mut self, text: &str) -> String {
        if self.found {
            return String::new();
        }
        self.kept += text;
        if let Some(at) = self.stops.iter().filter_map(|stop| self.kept.find(stop)).min() {
            self.found = true;
            self.kept.truncate(at);
            return std::mem::take(&mut self.kept);
        }
        let begun = |from: usize| self.stops.iter().any(|stop| stop.starts_with(&self.kept[from..]));
        let places = self.kept.char_indices().map(|(at, _)| at);
        let sure = places.into_iter().find(|&at| begun(at)).unwrap_or(self.kept.len());
        let rest = self.kept.split_off(sure);
        std::mem::replace(&mut self.kept, rest)
    }

    /// What was kept back for nothing.
    fn rest(&mut self) -> String {
        std::mem::take(&mut self.kept)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::models::llm::{LlmOptions, Prompt};

    fn generator(options: GenerateOptions) -> Generator {
        Generator::start(Llm::open(&LlmOptions::default()).unwrap(), options).unwrap()
    }

    fn task(generator: &Generator, instruction: &str, seed: u64) -> Task {
        let prompt = Prompt::Instruction { instruction: instruction.into(), input: None };
        let mut values = vec![0.0f32; 128];
        values[(seed as usize * 37 + instruction.len()) % 128] = 1.0;
        Task {
            prompt: generator.llm().encode(&prompt, 20).unwrap().0,
            seen: Some(Seen::Embedding(Embedding::new(values).unwrap())),
            max_tokens: 20,
            sampling: SampleParams { temperature: 0.8, top_p: 0.95, seed },
            stop: Vec::new(),
            wait: Wait::default(),
        }
    }

    fn answer(mut events: UnboundedReceiver<Event>) -> (Vec<u32>, String, Result<StopReason, Error>) {
        let (mut ids, mut said) = (Vec::new(), String::new());
        loop {
            match events.blocking_recv().expect("an answer has an end") {
                Event::Token { id, text, .. } => {
                    ids.push(id);
                    said += &text;
                }
                Event::Done(finish) => return (ids, said + &finish.text, Ok(finish.reason)),
                Event::Failed(error) => return (ids, said, Err(error)),
            }
        }
    }

    #[test]
    fn an_answer_does_not_depend_on_who_else_is_there() {
        let generator = generator(GenerateOptions { slots: 5, capacity: 64 });
        let questions = ["What colour is the object?", "What shape is it?", "Generate caption of this image"];
        let tasks = || (0..12).map(|i| task(&generator, questions[i % 3], i as u64));
        let alone: Vec<_> =
            tasks().map(|task| answer(generator.submit(vec![task]).unwrap().remove(0)).0).collect();
        // More than there are slots: some join while others are half-way.
        let together = generator.submit(tasks().collect()).unwrap();
        let together: Vec<_> = together.into_iter().map(|events| answer(events).0).collect();
        assert_eq!(alone, together);
        assert!(alone.iter().any(|ids| ids != &alone[0]));
    }

    #[test]
    fn bounds_and_stop_texts_end_an_answer() {
        let generator = generator(GenerateOptions::default());
        let ask = |change: &dyn Fn(&mut Task)| {
            let mut one = task(&generator, "Generate caption of this image", 1);
            one.sampling.temperature = 0.0;
            change(&mut one);
            answer(generator.submit(vec![one]).unwrap().remove(0))
        };
        let (ids, text, reason) = ask(&|_| {});
        assert!(text.starts_with("a ") && text.contains(" background"), "{text}");
        assert_eq!((reason.unwrap(), ids.len() < 20), (StopReason::EndOfText, true));
        let (ids, _, reason) = ask(&|task| task.max_tokens = 3);
        assert_eq!((ids.len(), reason.unwrap()), (3, StopReason::MaxTokens));
        let (_, cut, reason) = ask(&|task| task.stop = vec![" background".into(), "never".into()]);
        assert_eq!(reason.unwrap(), StopReason::StopText);
        assert_eq!(cut, text[..text.find(" background").unwrap()]);
        let (ids, _, reason) = ask(&|task| {
            task.max_tokens = 1000;
            task.prompt.extend(std::iter::repeat_n(300, 156 - task.prompt.len()));
        });
        assert!(ids.len() <= 4 && reason.is_ok(), "{ids:?}");
    }

    #[test]
    fn who_has_gone_frees_the_slot_and_a_full_line_refuses() {
        let generator = generator(GenerateOptions { slots: 1, capacity: 2 });
        let long = |seed| {
            let mut one = task(&generator, "What shape is it?", seed);
            one.max_tokens = 100;
            one.sampling.temperature = 5.0;
            one
        };
        let gone = long(1);
        gone.wait.cancelled.store(true, Ordering::Relaxed);
        let late = Task { wait: Wait { deadline: Some(Instant::now()), ..Wait::default() }, ..long(2) };
        let answers = generator.submit(vec![gone, late]).unwrap();
        let ends: Vec<_> = answers.into_iter().map(|events| answer(events).2).collect();
        assert!(matches!(ends[..], [Err(Error::Cancelled), Err(Error::Deadline)]), "{ends:?}");
        let refused = generator.submit(vec![long(1), long(2), long(3)]).unwrap_err();
        assert!(matches!(refused, Error::Line { capacity: 2, .. }), "{refused}");
        assert!(answer(generator.submit(vec![long(4)]).unwrap().remove(0)).2.is_ok(), "the others live");
    }

    #[test]
    fn a_score_is_what_generation_says() {
        let generator = generator(GenerateOptions::default());
        let one = task(&generator, "What colour is the object?", 3);
        let mut events = generator.submit(vec![one.clone()]).unwrap().remove(0);
        let mut tokens = Vec::new();
        while let Some(Event::Token { id, logprob, .. }) = events.blocking_recv() {
            tokens.push((id, logprob));
        }
        let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
        let shorter = &ids[..ids.len() - 1];
        let answers: Vec<&[u32]> = [&ids[..], &[], shorter].into_iter().cycle().take(20).collect();
        let scores = generator.score(&one.prompt, &answers, one.seen.as_ref(), &Wait::default()).unwrap();
        assert!(!ids.is_empty() && scores[0].len() == ids.len() && scores[1].is_empty());
        for (i, scores) in scores.iter().enumerate().filter(|(i, _)| i % 3 != 1) {
            assert_eq!(scores.len(), answers[i].len());
            for (score, (_, logprob)) in scores.iter().zip(&tokens) {
                assert!((score - logprob).abs() < 1e-3, "{i}: {score} {logprob}");
            }
        }
        let gone = Wait { deadline: Some(Instant::now()), ..Wait::default() };
        assert!(matches!(generator.score(&one.prompt, &answers, None, &gone), Err(Error::Deadline)));
        for (score, (_, logprob)) in scores[0].iter().zip(tokens) {
            assert!((score - logprob).abs() < 1e-3, "{score} {logprob}");
        }
    }

    #[test]
    fn the_beginning_of_a_stop_text_is_kept_back() {
        let mut stops = Stops::new(vec!["###".into()]);
        assert_eq!(stops.push("a #"), "a ");
        assert_eq!(stops.push("b"), "#b");
        assert_eq!(stops.push("##"), "");
        assert_eq!(stops.push("#c"), "");
        assert!(stops.found);
    }
}
