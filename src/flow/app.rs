//! What `serve` and the command line hold: the store, the open caches, the model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::{Caches, Error, ExpertSettings, Experts, Sampler, Slots, VideoLimits, Width};
use crate::batch::{Embedder, Generator};
use crate::blend::BlendParams;
use crate::budget::Budget;
use crate::cache::{Background, Cache, CompactOptions, LoadOptions};
use crate::index::{SearchParams, Searcher};
use crate::media::MediaLimits;
use crate::models::encoder::Encoder;
use crate::store::{ModelSource, Store};
use crate::text::MAX_TEXT_BYTES;
use crate::types::{CacheName, Embedding};

/// What is refused beyond. Every number is real: checked at the door, and but for waiting searches and how a server ends told by Describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one request message.
    pub max_message_bytes: usize,
    /// Queries or inputs of one request.
    pub max_batch: usize,
    /// Parts of one query.
    pub max_parts: usize,
    /// Requests worked on or waiting.
    pub max_concurrent: usize,
    /// Requests that wait for one of the threads that search, read and write.
    pub max_waiting_searches: usize,
    /// Streams of requests that are open.
    pub max_streams: usize,
    /// Connections.
    pub max_connections: usize,
    /// Time without a byte after which a request that arrives, or a reply that is read, is given up.
    pub stall: Duration,
    /// Time without a request after which a connection is closed.
    pub idle: Duration,
    /// Time between the word that the server stops and the moment from which it takes nothing new.
    pub stop_delay: Duration,
    /// Time that what has begun may take from then on.
    pub drain: Duration,
    /// Caches of the store, beyond which none is made.
    pub max_caches: usize,
    /// What one file may cost.
    pub media: MediaLimits,
    /// What one film may cost.
    pub video: VideoLimits,
}

impl Limits {
    /// Default of [`Limits::max_message_bytes`]: 64 MiB, 16 000 embeddings of ImageBind.
    pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 64 << 20;
    /// Default of [`Limits::max_batch`].
    pub const DEFAULT_MAX_BATCH: usize = 4096;
    /// Default of [`Limits::max_parts`].
    pub const DEFAULT_MAX_PARTS: usize = 16;
    /// Default of [`Limits::max_concurrent`].
    pub const DEFAULT_MAX_CONCURRENT: usize = 256;
    /// Default of [`Limits::max_waiting_searches`], for each processor.
    pub const DEFAULT_WAITING_SEARCHES: usize = 24;
    /// Default of [`Limits::max_streams`].
    pub const DEFAULT_MAX_STREAMS: usize = 1024;
    /// Default of [`Limits::max_connections`].
    pub const DEFAULT_MAX_CONNECTIONS: usize = 1024;
    /// Default of [`Limits::stall`].
    pub const DEFAULT_STALL: Duration = Duration::from_secs(30);
    /// Default of [`Limits::idle`].
    pub const DEFAULT_IDLE: Duration = Duration::from_secs(3600);
    /// Default of [`Limits::drain`].
    pub const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
    /// Default of [`App::budget`]: 2 GiB.
    pub const DEFAULT_REQUEST_MEMORY: u64 = 2 << 30;
    /// Default of [`Limits::max_caches`].
    pub const DEFAULT_MAX_CACHES: usize = 4096;

    /// Bytes of one text.
    pub fn max_text_bytes(&self) -> usize {
        MAX_TEXT_BYTES
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_message_bytes: Self::DEFAULT_MAX_MESSAGE_BYTES,
            max_batch: Self::DEFAULT_MAX_BATCH,
            max_parts: Self::DEFAULT_MAX_PARTS,
            max_concurrent: Self::DEFAULT_MAX_CONCURRENT,
            max_waiting_searches: Self::DEFAULT_WAITING_SEARCHES * processors(),
            max_streams: Self::DEFAULT_MAX_STREAMS,
            max_connections: Self::DEFAULT_MAX_CONNECTIONS,
            stall: Self::DEFAULT_STALL,
            idle: Self::DEFAULT_IDLE,
            stop_delay: Duration::ZERO,
            drain: Self::DEFAULT_DRAIN,
            max_caches: Self::DEFAULT_MAX_CACHES,
            media: MediaLimits::default(),
            video: VideoLimits::default(),
        }
    }
}

/// Processors that threads may run on.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A cache that should be served: open, or the reason why not.
pub type ServedCache = Result<Arc<Cache>, String>;

/// Everything the use-cases need.
pub struct App {
    /// The store, opened for reading, or for writing where items may be changed; nothing for models alone.
    pub store: Option<Arc<Store>>,
    /// The caches by name, as they are now.
    pub caches: Caches,
    /// How caches are opened that are made, or found, while serving.
    pub load: LoadOptions,
    /// Memory of all caches together.
    pub memory: Budget,
    /// The model, when one is loaded.
    pub embedder: Option<Embedder>,
    /// How to load it again, for the records of caches that are made for it.
    pub source: Option<ModelSource>,
    /// The decoder, when one is loaded.
    pub generator: Option<Generator>,
    /// Who can be asked about a picture before the decoder is.
    pub experts: Experts,
    /// Values used where a request leaves one out.
    pub default_blend: BlendParams,
    /// Likewise.
    pub default_search: SearchParams,
    /// The width of its beam.
    pub default_width: Width,
    /// What measures the recall of live searches.
    pub sampler: Sampler,
    /// When and how changes are compacted.
    pub compact: CompactOptions,
    /// Whose turn it is to be compacted.
    pub background: Background,
    /// What is refused beyond.
    pub limits: Limits,
    /// Memory of all requests together: messages, what becomes of them, replies.
    pub budget: Budget,
    /// Programs that run for requests: decoders of films, experts.
    pub(super) programs: Slots,
    /// Files that are decoded beside the model's own threads.
    pub(super) decodes: Slots,
    /// What the encoder makes of a picture of nothing, once it was asked for.
    pub(super) nothing: OnceLock<Embedding>,
    searchers: Mutex<Vec<Searcher>>,
}

impl App {
    /// Puts the parts together. Without a default, a single cache is it.
    pub fn new(
        store: impl Into<Option<Arc<Store>>>,
        caches: BTreeMap<CacheName, ServedCache>,
        default_cache: Option<CacheName>,
        embedder: Option<Embedder>,
        limits: Limits,
    ) -> Self {
        let store = store.into();
        App {
            caches: Caches::new(store.as_deref(), caches, default_cache),
            store,
            load: LoadOptions::default(),
            memory: Budget::unlimited(),
            embedder,
            source: None,
            generator: None,
            experts: Experts { settings: ExpertSettings::default(), captioner: None },
            default_blend: BlendParams::default(),
            default_search: SearchParams::default(),
            default_width: Width::Usual,
            sampler: Sampler::off(),
            compact: CompactOptions::default(),
            background: Background::default(),
            limits,
            budget: Budget::of(Limits::DEFAULT_REQUEST_MEMORY),
            programs: Slots::of_processors(),
            decodes: Slots::of_processors(),
            nothing: OnceLock::new(),
            searchers: Mutex::new(Vec::new()),
        }
    }

    /// The cache of this name or alias, or the default for an empty one.
    ///
    /// # Errors
    /// [`Error::NoDefaultCache`], [`Error::NoCache`], [`Error::CacheUnavailable`].
    pub fn cache(&self, name: &str) -> Result<Arc<Cache>, Error> {
        self.caches.get(name)
    }

    /// The loaded model's encoder.
    pub fn encoder(&self) -> Option<&Encoder> {
        self.embedder.as_ref().map(Embedder::encoder)
    }

    /// The decoders that are loaded: the one that answers, and the captioner's own.
    pub fn generators(&self) -> impl Iterator<Item = &Generator> {
        self.generator.iter().chain(&self.experts.captioner)
    }

    /// Lends a searcher's scratch memory to `work`.
    pub(super) fn with_searcher<T>(&self, work: impl FnOnce(&mut Searcher) -> T) -> T {
        let pool = || self.searchers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut searcher = pool().pop().unwrap_or_default();
        let result = work(&mut searcher);
        pool().push(searcher);
        result
    }
}
