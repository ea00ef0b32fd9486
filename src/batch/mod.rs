//! Many callers, one model.
//!
//! ```text
//! callers ─► [ queue: a line for each modality, the most urgent first ] ─► workers ─► answers, each to its caller
//!             full: refused at the door                late or gone: dropped    CPU: a thread a lane, one input at a time
//!                                                      before the model         card: one thread, batches by cost
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `queue.rs` | who is next: a pure state machine |
//! | `worker.rs` | the threads that own the model |
//! | `views.rs` | a film in many turns |
//! | `line.rs` | what is asked of the decoder, what is told of it, who waits |
//! | `generate.rs` | who may ask it |
//! | `decode.rs` | the thread that owns it: answers that join and leave at every step |
//! | `beginnings.rs` | what was read already is not read again |
//! | `pace.rs` | how much of the prompts a step reads beside them |
//! | `score.rs` | how likely given answers are |
//!
//! On the CPU a large batch is no quicker per input, so inputs are worked on one by one, on as many threads as there are lanes,
//! whoever sent them; then an embedding cannot depend on what else was asked for. On a card, a batch is filled with whatever
//! waits in one line, up to a cost.
//!
//! Inputs may come as they were sent. The lane that takes one prepares it first: with more threads than cores that prepare and
//! encode at the same time, both are slower.
//!
//! A caller blocks; the threads that wait cost nothing but their stack.

mod beginnings;
mod decode;
mod generate;
mod line;
mod pace;
mod queue;
mod score;
mod views;
mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use generate::Generator;
pub use line::{Event, Finish, GenerateOptions, Seen, StopReason, Task};
use queue::Queue;
use views::Film;
use worker::Answer;

use crate::models;
use crate::models::encoder::{Encoded, Encoder, PrepareError, Prepared};
use crate::text::FormError;
use crate::types::Modality;

/// How often a caller who waits for room looks at whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// Why an input was not embedded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too many wait already.
    #[error(
        "{waiting} inputs of kind {modality} wait for the model, of at most {capacity}; try again shortly"
    )]
    Full {
        /// Of which kind.
        modality: Modality,
        /// How many wait.
        waiting: usize,
        /// How many may.
        capacity: usize,
    },
    /// Too many wait for the decoder already.
    #[error("{waiting} answers wait for the decoder, of at most {capacity}; try again shortly")]
    Line {
        /// How many wait.
        waiting: usize,
        /// How many may.
        capacity: usize,
    },
    /// An answer that would take more memory than all of them may.
    #[error(
        "an answer of {tokens} tokens, its prompt included, takes {needed} MiB of keys and values, and for all answers there are \
         {budget} MiB; ask for fewer tokens, or raise `limits.max_answer_memory_mib`"
    )]
    Keys {
        /// Tokens of prompt and answer.
        tokens: usize,
        /// MiB that they take.
        needed: u64,
        /// MiB that there are.
        budget: u64,
    },
    /// The server stops.
    #[error("the server stops; ask another, or this one after a while")]
    Stopping,
    /// There is nobody who answers any more.
    #[error("{0}")]
    Dead(String),
    /// The caller's deadline has passed.
    #[error("the deadline passed before the model came to it")]
    Deadline,
    /// The caller has gone, or the model is shut down.
    #[error("the caller has gone")]
    Cancelled,
    /// The input could not be brought into the model's form.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// A constrained answer that cannot go on.
    #[error(transparent)]
    Form(#[from] FormError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] models::Error),
}

/// Brings an input into the model's form.
pub type Prepare = Box<dyn FnOnce(&Encoder) -> Result<Prepared, PrepareError> + Send>;

/// Something to embed.
pub enum Input {
    /// In the model's form.
    Prepared(Prepared),
    /// To be prepared by the thread that then encodes it: until then it takes no more memory than what it is made from, and one
    /// who is gone, late or refused has cost nothing.
    Raw(Modality, Prepare),
}

impl Input {
    fn modality(&self) -> Modality {
        match self {
            Input::Prepared(prepared) => prepared.modality,
            Input::Raw(modality, _) => *modality,
        }
    }

    /// What it costs the model. Of a raw one it is not known, and need not be where lanes take one at a time: any cost that is
    /// not 0 keeps two out of one batch.
    fn cost(&self, encoder: &Encoder) -> u64 {
        match self {
            Input::Prepared(prepared) => encoder.cost(prepared),
            Input::Raw(..) => 1,
        }
    }
}

/// How long, and whether, a caller waits.
#[derive(Debug, Clone, Default)]
pub struct Wait {
    /// When the answer is no longer wanted.
    pub deadline: Option<Instant>,
    /// Set when the caller has gone.
    pub cancelled: Arc<AtomicBool>,
}

impl Wait {
    fn check(&self) -> Result<(), Error> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Error::Deadline),
            _ => Ok(()),
        }
    }
}

/// What is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Inputs of one modality that may wait.
    pub capacity: usize,
    /// Pictures' worth of inputs that a card works on at a time.
    pub batch: u64,
}

impl Options {
    /// Default of [`Options::capacity`].
    pub const DEFAULT_CAPACITY: usize = 1024;
    /// Default of [`Options::batch`].
    pub const DEFAULT_BATCH: u64 = 64;
}

impl Default for Options {
    fn default() -> Self {
        Options { capacity: Self::DEFAULT_CAPACITY, batch: Self::DEFAULT_BATCH }
    }
}

/// A model that many may ask. Dropping it ends its threads.
pub struct Embedder {
    shared: Arc<Shared>,
    options: Options,
}

struct Shared {
    encoder: Encoder,
    state: Mutex<State>,
    /// Something waits, or the end has come.
    work: Condvar,
    /// Something was taken.
    room: Condvar,
}

struct State {
    queue: Queue<Job>,
    closed: bool,
}

/// One input on its way.
struct Job {
    input: Input,
    wait: Wait,
    since: Instant,
    answer: Answer,
}

impl Embedder {
    /// Starts a model's threads.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(encoder: Encoder, options: Options) -> std::io::Result<Self> {
        let state = Mutex::new(State { queue: Queue::new(options.capacity), closed: false });
        let shared = Arc::new(Shared { encoder, state, work: Condvar::new(), room: Condvar::new() });
        let embedder = Embedder { shared, options };
        worker::start(&embedder.shared, options.batch)?;
        Ok(embedder)
    }

    /// Whether an input is best left raw: on the CPU, where the threads that encode are all there are. A card would wait for it.
    pub fn prepares(&self) -> bool {
        self.shared.encoder.lanes() > 0
    }

    /// The model, for what needs no turn: preparing inputs, saying what it is.
    pub fn encoder(&self) -> &Encoder {
        &self.shared.encoder
    }

    /// What lanes take one at a time: a film's views, or the input as it is.
    fn turns(&self, input: Input) -> Vec<Input> {
        let views = match &input {
            Input::Prepared(prepared) if self.prepares() => prepared.views(),
            _ => Vec::new(),
        };
        match views.is_empty() {
            true => vec![input],
            false => views.into_iter().map(Input::Prepared).collect(),
        }
    }

    /// Embeds inputs, each with a result of its own, in order. Blocks.
    ///
    /// * `admitted`: whether the caller is in already and waits for room; otherwise a full line refuses at once.
    ///
    /// # Errors
    /// [`Error::Full`], and deadline and cancellation while waiting for room; then nothing was begun.
    pub fn encode(
        &self,
        inputs: Vec<Input>,
        wait: &Wait,
        admitted: bool,
    ) -> Result<Vec<Result<Encoded, Error>>, Error> {
        let count = inputs.len();
        let (answer, answers) = crossbeam_channel::bounded(count.max(1));
        let inputs: Vec<Vec<Input>> = inputs.into_iter().map(|input| self.turns(input)).collect();
        {
            let mut state = self.shared.lock();
            loop {
                let of = |m| inputs.iter().flatten().filter(|input| input.modality() == m).count();
                let counts = Modality::ALL.map(|m| (m, of(m)));
                let full = counts.into_iter().find(|&(m, n)| n > 0 && !state.queue.has_room(m, n));
                let Some((modality, _)) = full else { break };
                if !admitted {
                    let (waiting, capacity) = (state.queue.len(modality), self.options.capacity);
                    return Err(Error::Full { modality, waiting, capacity });
                }
                wait.check()?;
                state = self.shared.room.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            }
            let since = Instant::now();
            let mut push = |input: Input, answer: Answer, due: Instant| {
                let (modality, cost) = (input.modality(), input.cost(&self.shared.encoder));
                let job = Job { input, wait: wait.clone(), since, answer };
                state.queue.push(modality, job, cost, wait.deadline, due);
            };
            for (at, turns) in inputs.into_iter().enumerate() {
                let (answer, count) = (Answer::of(at, answer.clone()), turns.len());
                let film = (count > 1).then(|| Film::of(count));
                for (nth, input) in turns.into_iter().enumerate() {
                    let answer = film.as_ref().map_or(answer.clone(), |film| answer.of_view(film, nth));
                    push(input, answer, since + nth as u32 * views::PACE);
                }
            }
        }
        drop(answer);
        self.shared.work.notify_all();
        let mut results: Vec<Result<Encoded, Error>> = (0..count).map(|_| Err(Error::Cancelled)).collect();
        // Ends when every job has answered or was dropped.
        for (at, result) in answers {
            results[at] = result;
        }
        Ok(results)
    }
}

impl Drop for Embedder {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{self, MediaLimits, Orientation};
    use crate::models::DeviceKind;
    use crate::models::encoder::EncoderOptions;

    fn embedder(options: Options, threads: usize) -> Embedder {
        let encoder = EncoderOptions {
            network: Default::default(),
            weights: None,
            sizes: None,
            modalities: None,
            device: DeviceKind::Cpu,
            dtype: None,
            threads,
            orientation: Orientation::Apply,
            limits: MediaLimits::default(),
        };
        Embedder::start(Encoder::open(&encoder).unwrap(), options).unwrap()
    }

    fn inputs(prepared: &[Prepared]) -> Vec<Input> {
        prepared.iter().cloned().map(Input::Prepared).collect()
    }

    fn texts(embedder: &Embedder, count: usize) -> Vec<Prepared> {
        let one = |i: usize| {
            embedder.encoder().prepare(Modality::Text, format!("a red circle {i}").as_bytes()).unwrap()
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn many_callers_get_their_own_answers_bit_for_bit() {
        let embedder = embedder(Options::default(), 2);
        let alone: Vec<Encoded> = texts(&embedder, 24)
            .iter()
            .map(|input| embedder.encoder().encode(std::slice::from_ref(input)).remove(0).unwrap())
            .collect();
        std::thread::scope(|scope| {
            for caller in 0..8 {
                let (embedder, alone) = (&embedder, &alone);
                scope.spawn(move || {
                    let own = &texts(embedder, 24)[3 * caller..][..3];
                    // Half of them come raw.
                    let raw = |i: usize| {
                        let text = format!("a red circle {}", 3 * caller + i);
                        let prepare =
                            move |encoder: &Encoder| encoder.prepare(Modality::Text, text.as_bytes());
                        Input::Raw(Modality::Text, Box::new(prepare))
                    };
                    let sent = if caller % 2 == 0 { inputs(own) } else { (0..3).map(raw).collect() };
                    let got = embedder.encode(sent, &Wait::default(), false).unwrap();
                    for (got, expected) in got.into_iter().zip(&alone[3 * caller..]) {
                        assert_eq!(got.unwrap(), *expected);
                    }
                });
            }
        });
    }

    #[test]
    fn a_full_line_refuses_strangers_and_the_late_are_not_worked_on() {
        let embedder = embedder(Options { capacity: 4, ..Options::default() }, 1);
        let many = texts(&embedder, 40);
        std::thread::scope(|scope| {
            let busy = scope.spawn(|| embedder.encode(inputs(&many), &Wait::default(), false));
            while embedder.shared.lock().queue.len(Modality::Text) == 0 && !busy.is_finished() {
                std::thread::yield_now();
            }
            let refused = embedder.encode(inputs(&many), &Wait::default(), false);
            if !busy.is_finished() {
                assert!(matches!(refused, Err(Error::Full { capacity: 4, .. })) || refused.is_ok());
            }
            // Whoever is in waits for room.
            assert!(
                embedder
                    .encode(inputs(&many[..2]), &Wait::default(), true)
                    .unwrap()
                    .iter()
                    .all(Result::is_ok)
            );
            assert!(busy.join().unwrap().unwrap().iter().all(Result::is_ok));
        });
        let late = Wait { deadline: Some(Instant::now()), ..Wait::default() };
        let results = embedder.encode(inputs(&many[..2]), &late, false).unwrap();
        assert!(results.iter().all(|result| matches!(result, Err(Error::Deadline))));
        let gone = Wait { cancelled: Arc::new(AtomicBool::new(true)), ..Wait::default() };
        let results = embedder.encode(inputs(&many[..2]), &gone, false).unwrap();
        assert!(results.iter().all(|result| matches!(result, Err(Error::Cancelled))));
    }

    /// A lane that is in the middle of a film turns to a text when the view that it is at is seen.
    #[test]
    fn a_film_is_looked_at_in_turns() {
        let embedder = embedder(Options::default(), 1);
        let side = 32;
        let film = |views: usize| {
            let values = (0..views * 3 * 2 * side * side).map(|i| (i as f32 * 0.013).sin()).collect();
            Prepared {
                modality: Modality::Video,
                shape: vec![views, 3, 2, side, side],
                values: crate::models::encoder::Values::Float(values),
                start: 0,
            }
        };
        // Nano sees 32 × 32 points; a film of another size is refused as a whole.
        let whole = embedder.encoder().encode(&[film(5)]).remove(0);
        let Ok(whole) = whole else { panic!("{whole:?}") };
        let turns = embedder.encode(inputs(&[film(5)]), &Wait::default(), false).unwrap().remove(0).unwrap();
        for (a, b) in whole.embedding.as_slice().iter().zip(turns.embedding.as_slice()) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        std::thread::scope(|scope| {
            let (long, text) = (film(400), texts(&embedder, 1));
            let seen =
                scope.spawn(|| embedder.encode(inputs(&[long]), &Wait::default(), false).unwrap().remove(0));
            while embedder.shared.lock().queue.len(Modality::Video) == 0 {
                std::thread::yield_now();
            }
            let answered = embedder.encode(inputs(&text), &Wait::default(), false).unwrap().remove(0);
            assert!(answered.is_ok());
            assert!(!seen.is_finished(), "the text waited for the film");
            assert!(seen.join().unwrap().is_ok());
        });
        // Whoever goes is noticed between two views.
        let gone = Wait::default();
        std::thread::scope(|scope| {
            let (long, wait, embedder) = (film(400), gone.clone(), &embedder);
            let seen = scope.spawn(move || embedder.encode(inputs(&[long]), &wait, false).unwrap().remove(0));
            while embedder.shared.lock().queue.len(Modality::Video) > 390
                || embedder.shared.lock().queue.len(Modality::Video) == 0
            {
                std::thread::yield_now();
            }
            gone.cancelled.store(true, Ordering::Relaxed);
            assert!(matches!(seen.join().unwrap(), Err(Error::Cancelled)));
        });
    }

    #[test]
    fn what_cannot_be_prepared_costs_its_own_answer() {
        let embedder = embedder(Options::default(), 1);
        let raw = |prepare: Prepare| Input::Raw(Modality::Text, prepare);
        let sent = vec![
            raw(Box::new(|encoder| encoder.prepare(Modality::Text, b"a cat"))),
            raw(Box::new(|encoder| encoder.prepare(Modality::Text, b"\xff"))),
            raw(Box::new(|_| panic!("a table of a decoder is too short"))),
            raw(Box::new(|encoder| encoder.prepare(Modality::Text, b"a dog"))),
        ];
        let got = embedder.encode(sent, &Wait::default(), false).unwrap();
        assert!(matches!(got[1], Err(Error::Prepare(PrepareError::NotUtf8(0)))), "{:?}", got[1]);
        assert!(matches!(got[2], Err(Error::Prepare(PrepareError::Media(media::Error::Crashed)))));
        assert!(got[0].is_ok() && got[3].is_ok());
        // The thread lives on, and nobody who has gone is prepared.
        let gone = Wait { cancelled: Arc::new(AtomicBool::new(true)), ..Wait::default() };
        let got = embedder.encode(vec![raw(Box::new(|_| unreachable!()))], &gone, false).unwrap();
        assert!(matches!(got[0], Err(Error::Cancelled)));
    }
}
