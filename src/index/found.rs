//! What a search says: candidates, how it went about it, and the work.

use std::time::Instant;

use super::{Error, SearchParams};
use crate::types::Slot;

/// A slot and its score on codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Where.
    pub slot: Slot,
    /// Approximate inner product with the query.
    pub score: f32,
}

/// The work a search did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Nodes whose links were read.
    pub visited_nodes: u64,
    /// Rows scored to find candidates: on codes, or in full where they are scanned.
    pub scored_vectors: u64,
    /// Candidates scored again in full.
    pub rescored_vectors: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.visited_nodes += other.visited_nodes;
        self.scored_vectors += other.scored_vectors;
        self.rescored_vectors += other.rescored_vectors;
    }
}

impl std::ops::Add for Cost {
    type Output = Cost;

    fn add(mut self, other: Self) -> Cost {
        self += other;
        self
    }
}

/// Candidates, best first by their score on codes, and the work it took.
pub type Candidates = (Vec<Candidate>, Cost);

/// How a search went about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// By the graph; what may not be found was dropped at the end.
    Graph,
    /// By the graph; what may not be found was walked through and took no place.
    GraphWithSkip,
    /// By scoring every item that may be found.
    Exact,
    /// By scoring every code, because a beam as wide would cost more.
    Scan,
}

/// Looks at the clock once in some nodes: a look costs as much as scoring a row.
pub(super) fn check_deadline(params: &SearchParams, cost: Cost) -> Result<(), Error> {
    match params.deadline {
        Some(deadline) if cost.visited_nodes.is_multiple_of(32) && Instant::now() >= deadline => {
            Err(Error::Deadline)
        }
        _ => Ok(()),
    }
}
