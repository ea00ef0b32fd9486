//! Many answers, one decoder: who may ask it.
//!
//! ```text
//! callers ─► waiting, in their order ─► slots ─► a step: the next token of all, and slices of prompts ─► a token each ─► its caller
//!              full: refused              │                                                  gone or late: the
//!              gone or late: let go       └ memory for its keys and values is there          slot is free again
//! ```
//! The visual feature of a sequence, and what it adds to every layer, are computed once, when it joins. What a sequence says
//! does not depend on who else is there: each draws with its own seed and attends to its own tokens.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::line::{Event, GenerateOptions, Shared, Task, Waiting};
use super::{Error, Wait, decode};
use crate::models::llm::Llm;

/// A decoder that many may ask. Dropping it ends its thread.
pub struct Generator {
    shared: Arc<Shared>,
    options: GenerateOptions,
    pub(super) turn: Turn,
}

/// Whose turn it is to have answers judged, and how many want theirs.
#[derive(Default)]
pub(super) struct Turn {
    waiting: Mutex<Taken>,
    free: Condvar,
}

#[derive(Default)]
struct Taken {
    taken: bool,
    wanted: usize,
}

impl Generator {
    /// Starts a decoder's thread.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn start(llm: Llm, options: GenerateOptions) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(llm));
        let worker = shared.clone();
        let named = std::thread::Builder::new().name("decoder".into());
        named.spawn(move || worker.supervised(|| decode::work(&worker, &options)))?;
        Ok(Generator { shared, options, turn: Turn::default() })
    }

    /// The decoder, for what needs no turn.
    pub fn llm(&self) -> &Llm {
        &self.shared.llm
    }

    /// Bounds.
    pub fn options(&self) -> GenerateOptions {
        self.options
    }

    /// Why nobody answers any more, if so.
    pub fn dead(&self) -> Option<String> {
        self.shared.lock().dead.clone()
    }

    /// Refuses what comes, and what waits, from now on; what has begun goes on.
    pub fn stop(&self) {
        self.shared.lock().stopping = true;
        self.shared.wake();
    }

    /// Ends what has begun as well: with what it has said so far.
    pub fn finish(&self) {
        let mut state = self.shared.lock();
        (state.stopping, state.finishing) = (true, true);
        drop(state);
        self.shared.wake();
    }

    /// Whether so many answers would find room in the line: asked before anything is paid for them.
    ///
    /// # Errors
    /// As [`Generator::submit`].
    pub fn admits(&self, answers: usize) -> Result<(), Error> {
        self.shared.lock().admits(answers, self.options.capacity)
    }

    /// Whether one more may have answers judged: asked before anything is paid for it, and held until it is done.
    ///
    /// # Errors
    /// [`Error::Line`], [`Error::Stopping`], [`Error::Dead`].
    pub fn judges(&self) -> Result<impl Drop + '_, Error> {
        self.shared.lock().takes()?;
        self.turn.want(self.options.capacity)
    }

    /// Puts tasks into the line, all or none; each one's events come as they happen.
    ///
    /// # Errors
    /// [`Error::Line`], [`Error::Keys`], [`Error::Stopping`], [`Error::Dead`].
    pub fn submit(&self, tasks: Vec<Task>) -> Result<Vec<UnboundedReceiver<Event>>, Error> {
        for task in &tasks {
            let (needed, budget) = (self.shared.needs(task), self.options.memory);
            if needed > budget {
                let tokens = task.prompt.len() + task.max_tokens;
                return Err(Error::Keys { tokens, needed: needed >> 20, budget: budget >> 20 });
            }
        }
        let mut state = self.shared.lock();
        state.admits(tasks.len(), self.options.capacity)?;
        let since = Instant::now();
        let receivers = tasks.into_iter().map(|task| {
            let (events, receiver) = unbounded_channel();
            state.waiting.push_back(Waiting { task, since, events });
            receiver
        });
        let receivers = receivers.collect();
        drop(state);
        self.shared.wake();
        Ok(receivers)
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake();
    }
}

impl Turn {
    /// Waits for its turn, for as long as the caller does.
    ///
    /// # Errors
    /// What `wait` says.
    pub(super) fn take(&self, wait: &Wait) -> Result<impl Drop + '_, Error> {
        struct Held<'a>(&'a Turn);
        impl Drop for Held<'_> {
            fn drop(&mut self) {
                self.0.lock().taken = false;
                self.0.free.notify_one();
            }
        }
        let mut taken = self.lock();
        loop {
            wait.check()?;
            if !taken.taken {
                taken.taken = true;
                drop(taken);
                return Ok(Held(self));
            }
            taken = self.free.wait_timeout(taken, super::LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// One more wants it, until what comes back is dropped.
    ///
    /// # Errors
    /// [`Error::Line`].
    fn want(&self, capacity: usize) -> Result<impl Drop + '_, Error> {
        struct Wanted<'a>(&'a Turn);
        impl Drop for Wanted<'_> {
            fn drop(&mut self) {
                self.0.lock().wanted -= 1;
            }
        }
        let mut taken = self.lock();
        // One has its turn, and the others wait.
        if taken.wanted > capacity {
            return Err(Error::Line { waiting: taken.wanted - 1, capacity });
        }
        taken.wanted += 1;
        drop(taken);
        Ok(Wanted(self))
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::batch::line::{Seen, StopReason};
    use crate::models::llama::SampleParams;
    use crate::models::llm::{LlmOptions, Prompt};
    use crate::types::Embedding;

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
            top: 0,
            sampling: SampleParams { temperature: 0.8, top_p: 0.95, seed, ..SampleParams::default() },
            constraint: None,
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
        let generator = generator(GenerateOptions { slots: 5, capacity: 64, ..GenerateOptions::default() });
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
    fn what_several_begin_with_is_read_once() {
        let fresh = || generator(GenerateOptions { slots: 4, ..GenerateOptions::default() });
        let long = |generator: &Generator, seed: u64| {
            let mut one = task(generator, "What shape is it?", 3);
            one.prompt.splice(1..1, (0..80).map(|i| 300 + (i * 7) % 200));
            one.sampling.seed = seed;
            one
        };
        let alone: Vec<_> = (0..6u64)
            .map(|seed| {
                let generator = fresh();
                answer(generator.submit(vec![long(&generator, seed)]).unwrap().remove(0)).0
            })
            .collect();
        let generator = fresh();
        let told = |mut events: UnboundedReceiver<Event>| {
            let mut ids = Vec::new();
            loop {
                match events.blocking_recv().unwrap() {
                    Event::Token { id, .. } => ids.push(id),
                    Event::Done(finish) => return (ids, finish.reused),
                    Event::Failed(error) => panic!("{error}"),
                }
            }
        };
        let events = generator.submit((0..6).map(|seed| long(&generator, seed)).collect()).unwrap();
        let together: Vec<_> = events.into_iter().map(told).collect();
        let prompt = long(&generator, 0).prompt;
        assert_eq!(together.iter().map(|(ids, _)| ids.clone()).collect::<Vec<_>>(), alone);
        let reused: Vec<usize> = together.iter().map(|(_, reused)| *reused).collect();
        assert_eq!(reused[0], 0);
        assert!(reused[1..].iter().all(|&reused| reused == prompt.len() - 1), "{reused:?}");
        // A conversation that goes on, and somebody who was shown something else.
        let more = |generator: &Generator| {
            let mut next = long(generator, 9);
            next.prompt.extend(&alone[5][..2]);
            next.prompt.extend([300, 301, 302]);
            next
        };
        let other = fresh();
        let expected = told(other.submit(vec![more(&other)]).unwrap().remove(0));
        let (ids, reused) = told(generator.submit(vec![more(&generator)]).unwrap().remove(0));
        assert_eq!((ids, reused, expected.1), (expected.0, prompt.len() + 2, 0));
        let mut shown = long(&generator, 1);
        shown.seen = task(&generator, "What shape is it?", 4).seen;
        assert_eq!(told(generator.submit(vec![shown]).unwrap().remove(0)).1, 0);
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
        let generator = generator(GenerateOptions { slots: 1, capacity: 2, ..GenerateOptions::default() });
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
    fn abandoned_questions_keep_nobody_out() {
        let generator = generator(GenerateOptions { slots: 1, capacity: 1, ..GenerateOptions::default() });
        let long = |seed| Task {
            max_tokens: 100,
            sampling: SampleParams { temperature: 50.0, top_p: 1.0, seed, ..SampleParams::default() },
            ..task(&generator, "What shape is it?", seed)
        };
        // A thread that was not let run for long finds the first one over: then once more.
        let (first, waiting) = loop {
            let mut first = generator.submit(vec![long(1)]).unwrap().remove(0);
            assert!(matches!(first.blocking_recv(), Some(Event::Token { .. })), "it has the slot");
            let waiting = generator.submit(vec![long(2)]).unwrap();
            if matches!(generator.admits(1), Err(Error::Line { .. })) {
                break (first, waiting);
            }
            waiting.into_iter().for_each(|events| drop(answer(events)));
        };
        drop(waiting);
        assert!(generator.admits(1).is_ok());
        assert!(generator.submit(vec![long(4)]).is_ok(), "whoever has gone takes no place");
        // Nor does it have to be its turn for somebody to be told that it is too late.
        generator.shared.lock().waiting.clear();
        let soon =
            Wait { deadline: Some(Instant::now() + std::time::Duration::from_millis(1)), ..Wait::default() };
        let late = generator.submit(vec![Task { wait: soon, ..long(5) }]).unwrap().remove(0);
        assert!(matches!(answer(late).2, Err(Error::Deadline)));
        drop(first);
        assert!(answer(generator.submit(vec![long(6)]).unwrap().remove(0)).2.is_ok());
    }

    #[test]
    fn long_prompts_are_read_beside_an_answer() {
        let generator = generator(GenerateOptions::default());
        let long = |seed: u64| {
            let mut one = task(&generator, "Generate caption of this image", seed);
            let filler = (0..120).map(|i| 300 + (seed as u32 * 31 + i * 7) % 200);
            one.prompt.splice(1..1, filler);
            one.prompt.truncate(150);
            one.max_tokens = 6;
            one.sampling.temperature = 0.0;
            // It is to say something.
            one.sampling.bias = vec![(generator.llm().tokenizer().eos(), -100.0)];
            one
        };
        // Of another generator: this one would know them.
        let other = self::generator(GenerateOptions::default());
        let alone: Vec<_> =
            (0..7).map(|seed| answer(other.submit(vec![long(seed)]).unwrap().remove(0)).0).collect();
        let growing = |seed| Task {
            max_tokens: 110,
            sampling: SampleParams { temperature: 50.0, top_p: 1.0, seed, ..SampleParams::default() },
            ..task(&generator, "What shape is it?", 3)
        };
        let undisturbed = answer(generator.submit(vec![growing(9)]).unwrap().remove(0)).0;
        let mut first = generator.submit(vec![growing(9)]).unwrap().remove(0);
        let Some(Event::Token { id, .. }) = first.blocking_recv() else { panic!("it begins") };
        let mut ids = vec![id];
        let mut others = generator.submit((0..7).map(long).collect()).unwrap();
        // What it says before the last of them says anything is said while they are read.
        let (mut meanwhile, mut last, mut ended) = (0, None, false);
        while !ended && last.is_none() {
            match others[6].try_recv() {
                Ok(Event::Token { id, .. }) => last = Some(id),
                Ok(other) => panic!("{other:?}"),
                Err(_) => match first.blocking_recv() {
                    Some(Event::Token { id, .. }) => {
                        ids.push(id);
                        meanwhile += 1;
                    }
                    _ => ended = true,
                },
            }
        }
        assert!(meanwhile >= 5, "{meanwhile} tokens while 1050 were read");
        if !ended {
            ids.extend(answer(first).0);
        }
        assert_eq!(ids, undisturbed, "and the same as alone");
        let mut together: Vec<_> = others.into_iter().map(|events| answer(events).0).collect();
        last.into_iter().for_each(|id| together[6].insert(0, id));
        assert_eq!(together, alone, "slices change nothing");
    }

    #[test]
    fn answers_share_the_memory_of_keys_and_values() {
        let llm = Llm::open(&LlmOptions::default()).unwrap();
        let token = llm.decoder().token_bytes();
        assert_eq!(token, 2 * 4 * 128 * 4, "four layers of 128 components, keys and values, f32");
        let generator = generator(GenerateOptions { memory: 100 * token, ..GenerateOptions::default() });
        let one = |seed, max_tokens| Task { max_tokens, ..task(&generator, "What shape is it?", seed) };
        let prompt = one(1, 1).prompt.len();
        let much = generator.submit(vec![one(1, 101 - prompt)]).unwrap_err();
        assert!(matches!(much, Error::Keys { tokens: 101, .. }), "{much}");
        // Each takes more than half of it: one after the other.
        let both = generator.submit(vec![one(1, 60 - prompt), one(2, 60 - prompt)]).unwrap();
        assert!(both.into_iter().all(|events| answer(events).2.is_ok()));
    }

    #[test]
    fn what_is_not_finite_is_no_answer() {
        let generator = generator(GenerateOptions::default());
        let absurd = crate::models::llama::embeddings(&[f32::NAN; 128], 128).unwrap();
        let one = Task { seen: Some(Seen::Tokens(absurd)), ..task(&generator, "What shape is it?", 1) };
        let (ids, _, ended) = answer(generator.submit(vec![one]).unwrap().remove(0));
        assert!(ids.is_empty() && ended.unwrap_err().to_string().contains("not finite"));
        assert!(
            answer(generator.submit(vec![task(&generator, "What shape is it?", 1)]).unwrap().remove(0))
                .2
                .is_ok()
        );
    }

    #[test]
    fn a_server_that_stops_ends_answers_with_what_they_have() {
        let generator = generator(GenerateOptions { slots: 1, ..GenerateOptions::default() });
        let long = |seed| Task {
            max_tokens: 110,
            sampling: SampleParams { temperature: 50.0, top_p: 1.0, seed, ..SampleParams::default() },
            ..task(&generator, "What shape is it?", seed)
        };
        let mut all = generator.submit((1..9).map(long).collect()).unwrap();
        assert!(matches!(all[0].blocking_recv(), Some(Event::Token { .. })));
        generator.stop();
        assert!(matches!(answer(all.pop().unwrap()).2, Err(Error::Stopping)), "the last was waiting");
        assert!(matches!(generator.submit(vec![long(9)]), Err(Error::Stopping)));
        generator.finish();
        let (ids, text, ended) = answer(all.swap_remove(0));
        assert!(matches!(ended, Ok(StopReason::Stopped | StopReason::MaxTokens)), "{ended:?} {ids:?} {text}");
    }

    #[test]
    fn nobody_waits_for_a_thread_that_has_died() {
        let shared = Shared::new(Llm::open(&LlmOptions::default()).unwrap());
        let (events, receiver) = unbounded_channel();
        let task = Task {
            prompt: vec![1],
            seen: None,
            max_tokens: 1,
            top: 0,
            sampling: SampleParams::default(),
            constraint: None,
            stop: Vec::new(),
            wait: Wait::default(),
        };
        shared.lock().waiting.push_back(Waiting { task, since: Instant::now(), events });
        let shared = Arc::new(shared);
        let worker = shared.clone();
        let thread = std::thread::spawn(move || worker.supervised(|| panic!("a bug")));
        assert!(thread.join().is_err());
        assert!(matches!(answer(receiver).2, Err(Error::Dead(_))));
        let generator = Generator { shared, options: GenerateOptions::default(), turn: Turn::default() };
        assert!(matches!(generator.admits(1), Err(Error::Dead(_))));
        assert!(generator.dead().unwrap().contains("crashed"));
    }
}
