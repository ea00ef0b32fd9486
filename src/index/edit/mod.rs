//! Rows come into a graph that is being searched, and go.
//!
//! ```text
//! insert        a place: one that is free, else a new one ─► code, signs, id ─► a walk finds what is near ─► links both ways
//! remove        nothing here: whoever searches passes over rows that are dead, and walks through them until …
//! consolidate   … every link to them is replaced by links to what they were linked to. Then their places are free.
//! renew, fix    now and then the levels above 0 are built anew, and queries of other kinds add links, as in a build
//! ```
//!
//! An [`Editor`] makes versions of an [`Index`](super::Index); one that was taken never changes, but for its links on level 0, which all of
//! them share ([`super::shared`]). So what a search finds is a matter of its version, and only how soon it finds it depends on
//! when it came by. The price of a row is a walk and a few prunings, and a share of a pass over the links for every row that
//! went: nothing that grows with the index but the walk, which grows with its logarithm.
//!
//! Without the last, an index that has got all of its rows in this way finds less: synthetic 100k, all replaced, 0.991 of
//! 1.000 at a beam of 64, and cross-modal 0.703 of 0.919. With it, at every tenth of the rows, 1.000 and 0.947.
//!
//! Sources: insertion is the HNSW paper's algorithm 1, without its layers' greedy descent; consolidation is Singh et al.,
//! *FreshDiskANN* (arXiv 2105.09613, algorithm 4), on every level.

mod consolidate;
mod editor;
mod insert;
mod levels;
mod renew;
#[cfg(test)]
mod tests;

pub use consolidate::Consolidation;
pub use editor::Editor;
pub use insert::Places;
pub use renew::{upper_graph, upper_needs};
