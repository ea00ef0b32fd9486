//! Beginnings that were read already: of a question that is asked several times, of a conversation up to its last turn, of texts with
//! one system prompt. What was kept of them is copied and not computed again.
//!
//! A beginning is the same where the tokens are, and where the decoder was shown the same: what it is shown changes what it keeps of
//! every token. Texts that have ended are kept for a while, a quarter of the memory at most, and go first when an answer needs room.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::line::Seen;
use crate::models::llama::Sequence;

/// Tokens of a beginning that it is worth while for.
pub(super) const LEAST: usize = 16;
/// How long an ended text waits for one that begins like it: somebody thinks about what to say next.
const KEPT: Duration = Duration::from_secs(60);

/// A text that the decoder holds.
pub(super) struct Read {
    /// What it was shown.
    pub(super) seen: Option<Seen>,
    /// Its tokens; the decoder holds the first of them.
    pub(super) ids: Vec<u32>,
    /// What it keeps of those.
    pub(super) sequence: Sequence,
}

impl Read {
    /// How many first tokens another text has in common with it, where both were shown the same.
    pub(super) fn common(&self, other: &Read) -> usize {
        let same = match (&self.seen, &other.seen) {
            (None, None) => true,
            (Some(one), Some(other)) => one.is(other),
            _ => false,
        };
        let alike = self.ids.iter().zip(&other.ids).take_while(|(one, other)| one == other);
        if same { alike.count() } else { 0 }
    }
}

/// Texts that have ended.
#[derive(Default)]
pub(super) struct Beginnings {
    /// The one that was of use last is the last.
    kept: VecDeque<(Read, Instant)>,
}

impl Beginnings {
    /// Bytes that they take.
    pub(super) fn bytes(&self) -> u64 {
        self.kept.iter().map(|(read, _)| read.sequence.bytes()).sum()
    }

    /// Lets the oldest go, until they take so many bytes at most.
    pub(super) fn shrink(&mut self, most: u64) {
        while self.bytes() > most {
            self.kept.pop_front();
        }
    }

    /// Lets go what nobody came for.
    pub(super) fn age(&mut self) {
        self.kept.retain(|(_, used)| used.elapsed() < KEPT);
    }

    /// Keeps a text that has ended, of so many bytes at most for all.
    pub(super) fn keep(&mut self, read: Read, most: u64) {
        if read.sequence.len() < LEAST {
            return;
        }
        // One that it begins with says nothing new.
        self.kept.retain(|(kept, _)| kept.common(&read) < kept.sequence.len());
        self.kept.push_back((read, Instant::now()));
        self.shrink(most);
    }

    /// The text that has most in common with this one, and how many of those tokens are held; nothing where they are too few.
    pub(super) fn longest(&mut self, one: &Read) -> Option<(usize, &Sequence)> {
        let held = self.kept.iter().map(|(kept, _)| kept.common(one).min(kept.sequence.len()));
        let (at, held) = held.enumerate().max_by_key(|(_, held)| *held).filter(|(_, held)| *held >= LEAST)?;
        let (read, _) = self.kept.remove(at)?;
        self.kept.push_back((read, Instant::now()));
        Some((held, &self.kept.back()?.0.sequence))
    }
}
