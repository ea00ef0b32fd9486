//! The use-cases, each a straight function one can read aloud.
//!
//! ```text
//! enhance = embed the parts ─► mix ─► search ─► blend
//! search  = embed the parts ─► mix ─► search
//! embed   = prepare ─► encode
//! upsert  = embed the media ─► write
//! create · rename · alias · delete a cache = store ─► the next map of caches
//! generate = ask experts ─► enhance (or only mix, or look at the picture) ─► decode, token by token
//! ```
//!
//! Everything here blocks and is called from a thread that may; the edge above is async. Every item of a batch has a
//! result of its own: one bad picture fails one query. A [`Call`] is asked between items whether the caller still waits.

mod app;
mod caches;
mod change;
mod consult;
mod embed;
mod enhance;
mod experts;
mod film;
mod generate;
mod input;
mod items;
mod manage;
mod process;
mod room;
mod sample;
mod search;
mod see;
mod slots;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::budget::{self, Tab};
use crate::cache::Snapshot;
use crate::index::{SearchParams, TargetRecall};
use crate::types::{CacheName, Embedding, Modality, QueryKind};
use crate::{batch, blend, cache, media, models, text};

pub use app::{App, Limits};
pub use caches::{Caches, ServedCache};
pub use change::{Again, Changed, Refusal, Upsert, UpsertRequest, Upserted, compact, delete, upsert};
pub use embed::embed;
pub use enhance::{Enhanced, Request as EnhanceRequest, Variant, enhance};
pub use experts::{ExpertKind, ExpertSettings, Experts, Finding};
pub use film::VideoLimits;
pub use generate::{Branch, Conditioning, Request as GenerateRequest, Scored, Shown, generate, score};
pub use input::MediaInput;
pub use items::{DEFAULT_PAGE, Item, Page, count, delete_matching, list, update};
pub use manage::{Create, MadeBy, Reloaded, create, delete_alias, delete_cache, reload, rename, set_alias};
pub use sample::{LiveRecall, Sampler, SamplingOptions};
pub use search::{Answer, Request as SearchRequest, Searched, SnapshotRef, search};
pub use slots::Slots;

/// Why a use-case has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong, at a place that has a name.
    #[error("{field}: {description}")]
    Argument {
        /// Path of the field, such as `queries[3].parts[0].weight`.
        field: String,
        /// What is wrong with it and what would be accepted.
        description: String,
    },
    /// A cache that is not served.
    #[error("there is no cache `{name}` here; there are: {known}")]
    NoCache {
        /// The name asked for.
        name: String,
        /// Names served.
        known: String,
    },
    /// No name given and none to choose by default.
    #[error("the request names no cache and this server has no default; name one of: {0}")]
    NoDefaultCache(String),
    /// A cache that is known but could not be opened.
    #[error("cache `{name}` cannot be served: {problem}")]
    CacheUnavailable {
        /// Which cache.
        name: CacheName,
        /// Why.
        problem: String,
    },
    /// Weights of another digest than the caller relies on.
    #[error("cache `{cache}` was made by weights `{actual}`, the request expects `{expected}`")]
    Fingerprint {
        /// Which cache.
        cache: CacheName,
        /// What the caller expects.
        expected: String,
        /// What is there.
        actual: String,
    },
    /// Caches or aliases are to be changed, and the store is only read.
    #[error(
        "this server only reads its store; start it with `viscache serve --writable` to change its caches"
    )]
    ReadOnly,
    /// There is no store.
    #[error("this server has no store, so it has no caches; name one by --store")]
    NoStore,
    /// As many caches as may be.
    #[error("the store has {limit} caches, which is the limit; delete one, or raise `limits.max_caches`")]
    TooManyCaches {
        /// How many.
        limit: usize,
    },
    /// Media were sent and no model is loaded.
    #[error("{what} needs a model and none is loaded; send embeddings, or start the server with one")]
    NoModel {
        /// What was sent.
        what: String,
    },
    /// An answer is wanted and no decoder is loaded.
    #[error("answers need a decoder and none is loaded; start the server with one (--decoder)")]
    NoDecoder,
    /// A prompt that cannot be answered.
    #[error(transparent)]
    Prompt(#[from] models::llm::PromptError),
    /// A form that answers cannot be brought into.
    #[error(transparent)]
    Form(#[from] text::FormError),
    /// A part of a query of which something else is wrong.
    #[error("part {part}: {source}")]
    Part {
        /// Its position in the query.
        part: usize,
        /// What is wrong.
        source: Box<Error>,
    },
    /// An input that cannot be prepared.
    #[error(transparent)]
    Prepare(#[from] models::encoder::PrepareError),
    /// Films cannot be decoded here.
    #[error(
        "video files are decoded by the programs ffmpeg and ffprobe: {why}; install them, or send frames"
    )]
    NoFfmpeg {
        /// What went wrong.
        why: String,
    },
    /// An expert who cannot be asked.
    #[error("the expert `{}` cannot be asked: {why}", expert.word())]
    Expert {
        /// Who.
        expert: ExpertKind,
        /// What went wrong.
        why: String,
    },
    /// There is no memory for it.
    #[error(transparent)]
    Memory(#[from] budget::Full),
    /// The server stops.
    #[error("the server stops; ask another, or this one after a while")]
    Stopping,
    /// A part of the server has crashed that nothing goes without.
    #[error("{0}")]
    Dead(String),
    /// Too much waits for the model.
    #[error("{0}")]
    Busy(String),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// Nothing to blend, because a filter lets nothing through.
    #[error("no item matches the filter, so there is nothing to blend; loosen the filter, or leave it out")]
    NoMatch,
    /// The maths has no answer.
    #[error(transparent)]
    Blend(#[from] blend::Error),
    /// The caller's deadline has passed.
    #[error("the deadline passed before the answer was ready")]
    Deadline,
    /// The caller has gone.
    #[error("the caller cancelled the request")]
    Cancelled,
}

/// How long, and whether, a caller waits.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// When the answer is no longer wanted.
    pub deadline: Option<Instant>,
    /// Set when the caller has gone.
    pub cancelled: Arc<AtomicBool>,
    /// What the request holds in memory: written down before it is taken.
    pub tab: Tab,
}

impl Call {
    /// The same, for the model.
    fn wait(&self) -> batch::Wait {
        batch::Wait { deadline: self.deadline, cancelled: self.cancelled.clone() }
    }

    /// Asked before every piece of work.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Deadline`].
    pub fn check(&self) -> Result<(), Error> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Error::Deadline),
            _ => Ok(()),
        }
    }
}

/// One input of a query.
#[derive(Debug, Clone)]
pub struct Part {
    /// What.
    pub content: Content,
    /// Its share.
    pub weight: f64,
}

/// What an input is.
#[derive(Debug, Clone)]
pub enum Content {
    /// An embedding of the caller's.
    Embedding(Embedding),
    /// A file or text to embed.
    Media(MediaInput),
}

/// A query as the edge hands it down.
#[derive(Debug, Clone)]
pub enum Query {
    /// Parts to be mixed.
    Parts(Vec<Part>),
    /// A vector that the caller has mixed: used as it is.
    Ready(Embedding),
}

/// How wide a beam is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Width {
    /// As usual for queries of their kind.
    #[default]
    Usual,
    /// As the parameters of the search say.
    Given,
    /// As wide as this recall needs.
    Recall(TargetRecall),
}

/// How wide a beam a request wants, and what its queries are.
#[derive(Debug, Clone, Default)]
pub struct Aim {
    /// The width of the beam.
    pub width: Width,
    /// Of every query in the request; without it, media speak for themselves.
    pub kind: Option<QueryKind>,
}

/// An error and what caused it, in a sentence.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let (mut told, mut source) = (error.to_string(), error.source());
    while let Some(cause) = source {
        let text = cause.to_string();
        // Transparent variants repeat their source's text.
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        source = cause.source();
    }
    told
}

impl Aim {
    /// How a cache is searched for hits of one query.
    ///
    /// * `search`: what the request says, or the server's defaults. `kind`: of the query.
    ///
    /// # Errors
    /// [`cache::Error::NotCalibrated`], where a recall is wanted.
    pub fn params(
        &self,
        snapshot: &Snapshot,
        search: SearchParams,
        kind: Option<&QueryKind>,
        top_k: usize,
    ) -> Result<SearchParams, cache::Error> {
        match self.width {
            Width::Usual => Ok(snapshot.usual(search, kind)),
            Width::Given => Ok(search),
            Width::Recall(target) => snapshot.params_for(target, kind, top_k),
        }
    }
}

impl Modality {
    fn article(self) -> String {
        match self {
            Modality::Image => "an image".into(),
            Modality::Text => "a text".into(),
            Modality::Video => "a video".into(),
            Modality::Audio => "a sound".into(),
            Modality::Depth => "a depth picture".into(),
            Modality::Thermal => "a thermal picture".into(),
            Modality::Imu => "an IMU measurement".into(),
            Modality::Point => "a point cloud".into(),
        }
    }
}

impl From<batch::Error> for Error {
    fn from(error: batch::Error) -> Self {
        match error {
            batch::Error::Full { .. } | batch::Error::Line { .. } => Error::Busy(error.to_string()),
            batch::Error::Keys { .. } => {
                Error::Argument { field: "max_tokens".into(), description: error.to_string() }
            }
            batch::Error::Stopping => Error::Stopping,
            batch::Error::Dead(why) => Error::Dead(why),
            batch::Error::Deadline => Error::Deadline,
            batch::Error::Cancelled => Error::Cancelled,
            batch::Error::Prepare(error) => Error::Prepare(error),
            batch::Error::Form(error) => Error::Form(error),
            batch::Error::Model(error) => Error::Model(error),
        }
    }
}

impl From<media::Error> for Error {
    fn from(error: media::Error) -> Self {
        Error::Prepare(error.into())
    }
}
