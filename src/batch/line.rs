//! The line before the decoder: what is asked for, what is told of it, and who waits.
//!
//! **A thread that has died owns up.** Whoever waits is told, and whoever comes is refused ([`Error::Dead`]).

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::{Error, Wait};
use crate::models::llama::SampleParams;
use crate::models::llm::Llm;
use crate::models::{self, Tensor};
use crate::text::Constraint;
use crate::types::Embedding;

/// What is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateOptions {
    /// Answers that grow at the same time.
    pub slots: usize,
    /// Requests that may wait for a slot, and as many that may wait to be judged.
    pub capacity: usize,
    /// Bytes of keys and values of all answers together.
    pub memory: u64,
}

impl GenerateOptions {
    /// Default of [`GenerateOptions::memory`]: 4 GiB.
    pub const DEFAULT_MEMORY: u64 = 4 << 30;
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions { slots: 8, capacity: 64, memory: Self::DEFAULT_MEMORY }
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
    /// Likeliest tokens that are told beside each that was chosen.
    pub top: usize,
    /// How tokens are chosen.
    pub sampling: SampleParams,
    /// What the answer has to be, if not any text.
    pub constraint: Option<Constraint>,
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
    /// Whether it is the same; of two pictures that are alike only one that was looked at once is.
    pub(super) fn is(&self, other: &Seen) -> bool {
        match (self, other) {
            (Seen::Embedding(one), Seen::Embedding(other)) => one == other,
            (Seen::Tokens(one), Seen::Tokens(other)) => one.id() == other.id(),
            _ => false,
        }
    }

    /// What the adapter is given.
    pub(super) fn visual(&self, llm: &Llm) -> Result<Tensor, models::Error> {
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
        /// The likeliest in its place, as many as were asked for, and the logarithms of their probabilities.
        top: Vec<(u32, f32)>,
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
    /// Tokens of the prompt that had been read already, for another answer or an earlier one.
    pub reused: usize,
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
    /// The model said so, or nothing may come after it.
    EndOfText,
    /// A stop text came.
    StopText,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The decoder has no more positions.
    Positions,
    /// The server stops.
    Stopped,
}

pub(super) struct Shared {
    pub(super) llm: Llm,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) waiting: VecDeque<Waiting>,
    /// Nobody asks any more.
    pub(super) closed: bool,
    /// What comes is refused, and what waits: the server stops.
    pub(super) stopping: bool,
    /// And what runs is to end.
    pub(super) finishing: bool,
    /// Why there is nobody who answers.
    pub(super) dead: Option<String>,
}

/// A task in the line.
pub(super) struct Waiting {
    pub(super) task: Task,
    pub(super) since: Instant,
    pub(super) events: UnboundedSender<Event>,
}

impl State {
    /// Whether anything new is taken at all.
    pub(super) fn takes(&self) -> Result<(), Error> {
        match &self.dead {
            Some(why) => Err(Error::Dead(why.clone())),
            None if self.stopping => Err(Error::Stopping),
            None => Ok(()),
        }
    }

    /// See [`super::Generator::admits`].
    pub(super) fn admits(&mut self, answers: usize, capacity: usize) -> Result<(), Error> {
        self.takes()?;
        self.let_go();
        let waiting = self.waiting.len();
        if waiting + answers > capacity {
            return Err(Error::Line { waiting, capacity });
        }
        Ok(())
    }

    /// Lets those go who have gone themselves, or whose time is over; they are told.
    pub(super) fn let_go(&mut self) {
        let stopping = self.stopping;
        self.waiting.retain(|one| match one.task.wait.check() {
            _ if one.events.is_closed() => false,
            Ok(()) if !stopping => true,
            ended => {
                _ = one.events.send(Event::Failed(ended.err().unwrap_or(Error::Stopping)));
                false
            }
        });
    }
}

impl Shared {
    pub(super) fn new(llm: Llm) -> Self {
        Shared { llm, state: Mutex::default(), work: Condvar::new() }
    }

    /// Something has changed for the thread that answers.
    pub(super) fn wake(&self) {
        self.work.notify_all();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do, but not for long: deadlines pass meanwhile.
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        self.work.wait_timeout(state, most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Bytes of keys and values that an answer may come to take.
    pub(super) fn needs(&self, task: &Task) -> u64 {
        let decoder = self.llm.decoder();
        let tokens = (task.prompt.len() + task.max_tokens).min(decoder.config().max_seq_len);
        decoder.token_bytes() * tokens as u64
    }

    /// Runs the thread that answers, and sees to it that nobody waits for one that has died.
    pub(super) fn supervised(&self, work: impl FnOnce()) {
        struct Owner<'a>(&'a Shared);
        impl Drop for Owner<'_> {
            fn drop(&mut self) {
                if !std::thread::panicking() {
                    return;
                }
                let why = "the thread that answers has crashed; the server has to be started again";
                tracing::error!(why, "the decoder is dead");
                let mut state = self.0.lock();
                state.dead = Some(why.into());
                for waiting in state.waiting.drain(..) {
                    _ = waiting.events.send(Event::Failed(Error::Dead(why.into())));
                }
            }
        }
        let _owner = Owner(self);
        work();
    }
}
