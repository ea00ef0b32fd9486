//! Nearest neighbours by inner product: vectors in, a searchable frozen graph out.
//!
//! ```text
//! build path                                          read path
//! f32 rows ─► quant::Codec::train ─► codes            bytes ─► view::Index (checked once, zero-copy)
//!    codes ─► build (hnsw_rs) ─► raw link lists                  │
//!            freeze: legal levels, mirrored, pruned,    query ─► search: greedy descent, then a beam over level 0
//!                    every node reachable                        │ scored on codes
//!            layout::Parts ─► bytes                              ▼
//!                                                      candidates ─► rescored on f32 rows by the caller (`exact`)
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `params.rs` | the knobs: the paper's letters, defaults, valid ranges |
//! | `build.rs` | the only user of `hnsw_rs` |
//! | `freeze.rs` | link lists become a proper layered graph |
//! | `repair.rs` | better links: refined by searching, repaired by a sample of queries |
//! | `space.rs` | exact distances between coded rows, for building |
//! | `quant.rs` | codecs: f32, f16, 8-bit and 4-bit mean-centred |
//! | `rows.rs` | rows read in passes, never all in memory |
//! | `rotate.rs` | the rotation under 4-bit codes |
//! | `layout.rs` | the byte format, drawn; the writer |
//! | `view.rs` | validated reading of those bytes |
//! | `search.rs` | the beam, of one query or of several in turn |
//! | `sketch.rs` | a bit a component: rows passed over without reading their codes |
//! | `filter.rs` | searching among some of the slots: which way, and the walk that steps over the others |
//! | `scan.rs` | every code scored, where a beam would cost more |
//! | `visited.rs` | pooled marks of what a search has seen |
//! | `exact.rs` | brute force: the truth, and the rescoring of candidates |
//!
//! Why not search in `hnsw_rs`: its points are `Arc`s behind locks, its descent takes one hop a level and each visit
//! goes through a hash map. The same graph frozen into flat arrays and searched on codes answers several times as
//! many queries (`benches/search.rs` prints how many). Why a graph in one piece and not one key per node: in RocksDB
//! every hop would be a lookup and a copy.
//!
//! This module knows no store, no files and no async; rows reach it as slices.

mod build;
pub mod exact;
mod filter;
mod freeze;
mod layout;
mod params;
mod pool;
mod quant;
mod ranks;
mod repair;
mod rotate;
pub mod rows;
mod scan;
mod search;
mod sketch;
mod space;
mod view;
mod visited;

pub use build::{Stage, build, build_coded};
pub use filter::{Among, Plan, ScanPrice};
pub use freeze::{Graph, Reach};
pub use layout::{FORMAT_VERSION, Parts};
pub use params::{BuildParams, CodeKind, SearchParams, TargetRecall};
pub use quant::{Codec, Coded};
pub use rows::{InMemory, Rows};
pub use search::{Candidate, Candidates, Cost, Searcher};
pub use sketch::{SignQuery, Signs};
pub use view::{AlignedBytes, Index, Summary};

/// Why an index cannot be built or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A knob outside its range.
    #[error("{name} is {value}; it must be {allowed}")]
    Parameter {
        /// Which knob.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would be accepted.
        allowed: String,
    },
    /// Nothing to index.
    #[error("there are no vectors to index")]
    Empty,
    /// More rows than a slot can name.
    #[error("{received} vectors are more than one generation can hold ({limit})")]
    TooMany {
        /// Rows given.
        received: usize,
        /// Most a generation holds.
        limit: usize,
    },
    /// A query of another length than the index.
    #[error("the query has {received} components, the index {expected}")]
    Dimension {
        /// Components of the index.
        expected: usize,
        /// Components of the query.
        received: usize,
    },
    /// A search that was not done in time.
    #[error("the deadline passed during the search")]
    Deadline,
    /// Bytes that are not an index, or not one of this format version.
    #[error("not a readable index: {0}; rebuild it with `index-builder index`")]
    Format(String),
    /// A section whose bytes are not what was written.
    #[error(
        "section `{section}` of the index is damaged (its checksum does not match); rebuild it with `index-builder index`"
    )]
    Damaged {
        /// Name of the section.
        section: &'static str,
    },
    /// The sink of the bytes failed.
    #[error("could not write the index")]
    Write(#[from] std::io::Error),
    /// Memory that cannot be had.
    #[error("{len} bytes of memory cannot be had")]
    Memory {
        /// Bytes asked for.
        len: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The threads for a build could not be started.
    #[error("could not start {threads} build threads")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// Why.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
}
