//! The knobs of building and searching, with the paper's letters and what other libraries take by default.
//!
//! Source: Malkov and Yashunin, *Efficient and robust approximate nearest neighbor search using Hierarchical
//! Navigable Small World graphs* (arXiv 1603.09320).

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Error;

/// Components that share a line of 4-bit codes.
pub(super) const BLOCK_4: usize = 128;

/// How rows are coded for the search. The stored rows themselves are not touched by this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodeKind {
    /// Four bytes a component; scores are exact.
    F32,
    /// Two bytes a component.
    F16,
    /// One byte a component, mean-centred.
    U8,
    /// Half a byte a component, mean-centred. An eighth of the memory traffic, so the fastest; wants more rescoring.
    U4,
}

impl CodeKind {
    /// The word used in settings and reports.
    pub const fn word(self) -> &'static str {
        match self {
            CodeKind::F32 => "f32",
            CodeKind::F16 => "f16",
            CodeKind::U8 => "u8",
            CodeKind::U4 => "u4",
        }
    }

    /// Bytes of a coded row of `dim` components: whole cache lines.
    pub const fn stride(self, dim: usize) -> usize {
        match self {
            CodeKind::F32 => (4 * dim).next_multiple_of(64),
            CodeKind::F16 => (2 * dim).next_multiple_of(64),
            CodeKind::U8 => dim.next_multiple_of(64),
            CodeKind::U4 => dim.next_multiple_of(BLOCK_4) / 2,
        }
    }

    /// Most components of a row: of longer ones a sum of products of codes leaves the kernels' integers.
    pub const fn longest(self) -> usize {
        match self {
            CodeKind::F32 | CodeKind::F16 => usize::MAX,
            CodeKind::U8 => 1 << 15,
            CodeKind::U4 => 1 << 20,
        }
    }

    /// Every kind, widest first.
    pub(super) const ALL: [CodeKind; 4] = [CodeKind::F32, CodeKind::F16, CodeKind::U8, CodeKind::U4];
}

impl std::str::FromStr for CodeKind {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|k| k.word() == word).ok_or_else(|| Error::Parameter {
            name: "codes",
            value: word.into(),
            allowed: "f32, f16, u8 or u4".into(),
        })
    }
}

/// How a graph is built. It is kept with every generation: later programs may write more than this one knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildParams {
    /// Links per node and upper level: the paper's M; level 0 takes 2·M (M₀). faiss 32, hnswlib 16.
    pub m: usize,
    /// Candidates kept while inserting: the paper's efConstruction. faiss 40, hnswlib 200.
    pub ef_construction: usize,
    /// Rounds in which every node looks for better links once the graph stands; each costs a search a row. They mend a
    /// graph of a small `ef_construction` for queries like the rows, and give repair little that it does not find itself.
    #[serde(default)]
    pub refine: usize,
    /// What the search runs on.
    pub codes: CodeKind,
    /// Choose the codes by measuring, whatever `codes` says; that then is what was chosen before, or a first guess.
    #[serde(default)]
    pub choose_codes: bool,
    /// Threads that build. With more than one, the order in which rows arrive at the graph decides some of its links.
    #[serde(default = "one")]
    pub threads: usize,
    /// Insert in order, on one thread, so that the same rows give the same graph; the rest stays parallel.
    #[serde(default)]
    pub deterministic: bool,
}

fn one() -> usize {
    1
}

impl BuildParams {
    /// Default of [`BuildParams::m`].
    pub const DEFAULT_M: usize = 16;
    /// Default of [`BuildParams::ef_construction`].
    pub const DEFAULT_EF_CONSTRUCTION: usize = 96;
    /// Default of [`BuildParams::refine`].
    pub const DEFAULT_REFINE: usize = 0;
    /// What is guessed before codes are chosen.
    pub const DEFAULT_CODES: CodeKind = CodeKind::U4;
    /// Most links a node may be given: `hnsw_rs` counts them in a byte, and 2·M must fit.
    pub const MAX_M: usize = 127;

    /// Defaults, with codes that are chosen by measuring.
    pub fn choosing() -> Self {
        BuildParams { choose_codes: true, ..BuildParams::default() }
    }

    /// Checks every field, because `hnsw_rs` ends the process on a bad one.
    ///
    /// # Errors
    /// [`Error::Parameter`].
    pub fn validate(&self) -> Result<(), Error> {
        in_range("m", self.m, 2, Self::MAX_M)?;
        in_range("ef_construction", self.ef_construction, 8, 4096)?;
        in_range("refine", self.refine, 0, 8)?;
        in_range("threads", self.threads, 1, 1024)
    }

    /// Bytes of a coded row of `dim` components.
    pub fn code_bytes(&self, dim: usize) -> u64 {
        self.codes.stride(dim) as u64
    }

    /// Bytes that a row takes in memory beside the index that is stored: its signs, which 4-bit codes are searched behind.
    pub fn beside_bytes(&self, dim: usize) -> u64 {
        if self.codes == CodeKind::U4 { self.code_bytes(dim) / 4 } else { 0 }
    }

    /// Most links of a node on level 0, M₀.
    pub fn m0(&self) -> usize {
        2 * self.m
    }
}

impl Default for BuildParams {
    fn default() -> Self {
        BuildParams {
            m: Self::DEFAULT_M,
            ef_construction: Self::DEFAULT_EF_CONSTRUCTION,
            refine: Self::DEFAULT_REFINE,
            codes: Self::DEFAULT_CODES,
            choose_codes: false,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            deterministic: false,
        }
    }
}

/// How a graph is searched.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SearchParams {
    /// Width of the beam: the paper's ef. Raised to what the caller wants back. faiss 16, hnswlib 10.
    pub ef_search: usize,
    /// Most candidates rescored on the stored rows, at least `top_k`; raised to that. None: as many as the index was measured
    /// to need, or [`SearchParams::DEFAULT_RESCORE`]. With rows in memory, rescoring ends sooner when no further candidate can
    /// matter. More costs row reads, not hops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rescore: Option<usize>,
    /// How far below the tenth best a row may score for the beam to go on from it, for a query of length 1: it grows with the
    /// query, as its scores do. None: as far as the beam is wide. With it the beam may grow to [`SearchParams::WIDER`] times `ef_search` where a query's neighbours lie dense, and ends sooner
    /// where they do not. Made for the ten best. What it does to recall depends on the data: see `cache::calibrate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f32>,
    /// Scan every row instead: the truth, in time proportional to the cache.
    pub exact: bool,
    /// Score every code, also where a beam of this width would cost less: what was measured by a scan is promised of one.
    #[serde(skip)]
    pub scan: bool,
    /// When an answer is no longer wanted; a search then ends with [`Error::Deadline`].
    #[serde(skip)]
    pub deadline: Option<Instant>,
}

impl SearchParams {
    /// Default of [`SearchParams::ef_search`].
    pub const DEFAULT_EF_SEARCH: usize = 96;
    /// The same for queries of a kind that nothing was measured by: what is wide enough for pictures may not be for voices.
    pub const UNMEASURED_EF_SEARCH: usize = 160;
    /// Default of [`SearchParams::rescore`].
    pub const DEFAULT_RESCORE: usize = 40;
    /// Largest accepted [`SearchParams::ef_search`].
    pub const MAX_EF_SEARCH: usize = 16_384;
    /// Of the hits, the one that [`SearchParams::margin`] is measured from.
    pub const MARGIN_RANK: usize = 10;
    /// What a beam with a margin may grow to, in `ef_search`.
    pub const WIDER: usize = 2;

    /// What to search by for so many hits: a margin that was measured from the tenth says nothing of those beyond.
    pub fn for_hits(self, top_k: usize) -> Self {
        if top_k <= Self::MARGIN_RANK { self } else { self.without_margin() }
    }

    /// A beam without a margin that finds no less: as wide as this one may grow.
    pub fn without_margin(self) -> Self {
        match self.margin {
            Some(_) => {
                let ef_search = (self.ef_search * Self::WIDER).min(Self::MAX_EF_SEARCH);
                SearchParams { ef_search, margin: None, ..self }
            }
            None => self,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Parameter`].
    pub fn validate(&self) -> Result<(), Error> {
        in_range("ef_search", self.ef_search, 1, Self::MAX_EF_SEARCH)?;
        self.rescore.map_or(Ok(()), |rescore| in_range("rescore", rescore, 1, Self::MAX_EF_SEARCH))?;
        match self.margin {
            Some(margin) if !(margin > 0.0 && margin.is_finite()) => {
                let allowed = "a number above 0".to_owned();
                Err(Error::Parameter { name: "margin", value: margin.to_string(), allowed })
            }
            _ => Ok(()),
        }
    }
}

impl Default for SearchParams {
    fn default() -> Self {
        SearchParams {
            ef_search: Self::DEFAULT_EF_SEARCH,
            rescore: None,
            margin: None,
            exact: false,
            scan: false,
            deadline: None,
        }
    }
}

/// A recall@10 to be reached, or of more than ten hits a recall@100, in place of the width of a beam.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct TargetRecall(f64);

impl TargetRecall {
    /// Smallest accepted: less than half is no search.
    pub const MIN: f64 = 0.5;
    /// Largest accepted: more than can be measured. For all of it, search exactly.
    pub const MAX: f64 = 0.9999;

    /// Checks a recall.
    ///
    /// # Errors
    /// [`Error::Parameter`].
    pub fn new(recall: f64) -> Result<Self, Error> {
        if (Self::MIN..=Self::MAX).contains(&recall) {
            return Ok(TargetRecall(recall));
        }
        let allowed = format!("from {} to {}; for all of it, search exactly", Self::MIN, Self::MAX);
        Err(Error::Parameter { name: "target_recall", value: recall.to_string(), allowed })
    }

    /// The recall, 0 to 1.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for TargetRecall {
    type Error = Error;

    fn try_from(recall: f64) -> Result<Self, Error> {
        TargetRecall::new(recall)
    }
}

impl From<TargetRecall> for f64 {
    fn from(target: TargetRecall) -> f64 {
        target.0
    }
}

fn in_range(name: &'static str, value: usize, min: usize, max: usize) -> Result<(), Error> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::Parameter {
        name,
        value: value.to_string(),
        allowed: format!("a whole number from {min} to {max}"),
    })
}
