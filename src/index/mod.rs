//! Nearest neighbours by inner product: vectors in, a searchable frozen graph out.
//!
//! ```text
//! build path                                          read path
//! f32 rows ─► quant::Codec::train ─► codes            bytes ─► open ─► view::Index (checked once)
//!    codes ─► build (hnsw_rs) ─► raw link lists                  │
//!            freeze: legal levels, mirrored, pruned,    query ─► searcher: greedy descent, then a beam over level 0
//!                    every node reachable                        │ scored on codes
//!            layout::Parts ─► bytes                              ▼
//!                                                      candidates ─► rescored on f32 rows by the caller (`exact`)
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `params.rs` | the knobs: the paper's letters, defaults, valid ranges |
//! | `found.rs` | what a search says: candidates, plan, work |
//! | `bytes.rs` | bytes that begin on a page |
//! | `rotate.rs` | the rotation under 4-bit codes |
//! | `quant.rs` | codecs: f32, f16, 8-bit and 4-bit mean-centred |
//! | `sketch.rs` | a bit a component: rows passed over without reading their codes |
//! | `rows.rs` | rows read in passes, never all in memory |
//! | `space.rs` | exact distances between coded rows, for building |
//! | `links.rs` | what a walk wants of a graph |
//! | `chunks.rs` | rows in chunks, which versions of an index share |
//! | `shared.rs` | links that are read while they are written |
//! | `upper.rs` | the levels above 0 |
//! | `lookup.rs` | from an id to its slot |
//! | `layout.rs` | the byte format, drawn |
//! | `prune.rs` | which of many candidates a node is linked to |
//! | `freeze.rs` | link lists become a proper layered graph |
//! | `build.rs` | the only user of `hnsw_rs` |
//! | `repair.rs` | better links: refined by searching, repaired by a sample of queries |
//! | `excerpt.rs` | the graph of some of an index's rows |
//! | `parts.rs` | the writer of the bytes |
//! | `near.rs` | distances by the codes of an index |
//! | `edit/` | rows come into a graph that is being searched, and go |
//! | `ranks.rs` | places of slots among some |
//! | `view.rs` | an index in memory |
//! | `open.rs` | validated reading of those bytes |
//! | `pool.rs`, `visited.rs` | the best so far; pooled marks of what a search has seen |
//! | `exact.rs` | brute force: the truth, and the rescoring of candidates |
//! | `walk.rs` | the beam, of one query or of several in turn |
//! | `price.rs` | what a walk costs, and a scan |
//! | `scan.rs` | every code scored, where a beam would cost more |
//! | `among.rs` | searching among some of the slots: which way, and the walk that steps over the others |
//! | `searcher.rs` | a thread's scratch, and which of these a search takes |
//!
//! Why not search in `hnsw_rs`: its points are `Arc`s behind locks, its descent takes one hop a level and each visit
//! goes through a hash map. The same graph frozen into flat arrays and searched on codes answers several times as
//! many queries (`benches/search.rs` prints how many). Why a graph in one piece and not one key per node: in RocksDB
//! every hop would be a lookup and a copy.
//!
//! This module knows no store, no files and no async; rows reach it as slices.

mod among;
mod build;
mod bytes;
mod chunks;
mod edit;
pub mod exact;
mod excerpt;
mod found;
mod freeze;
mod layout;
mod links;
mod lookup;
mod near;
mod open;
mod params;
mod parts;
mod pool;
mod price;
mod prune;
mod quant;
mod ranks;
mod repair;
mod rotate;
pub mod rows;
mod scan;
mod searcher;
mod shared;
mod sketch;
mod space;
mod upper;
mod view;
mod visited;
mod walk;

pub use among::Among;
pub use build::{Stage, build, build_coded};
pub use bytes::AlignedBytes;
pub use chunks::{CHUNK, Chunks, Numbers};
pub use edit::{Consolidation, Editor, Places, upper_graph, upper_needs};
pub use found::{Candidate, Candidates, Cost, Plan};
pub use freeze::{Graph, Reach};
pub use layout::FORMAT_VERSION;
pub use open::Loading;
pub use params::{BuildParams, CodeKind, SearchParams, TargetRecall};
pub use parts::Parts;
pub use price::ScanPrice;
pub use quant::{Codec, Coded};
pub use rows::{InMemory, Rows};
pub use searcher::{Live, Searcher};
pub use sketch::{SignQuery, Signs};
pub use view::{Index, Summary};

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
