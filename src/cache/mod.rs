//! The visual cache as a stored thing: index and store joined.
//!
//! ```text
//! life of a generation     write blob g+1 ─► [ flip current, drop g−1 ] ─► swap Arc ─► last reader leaves ─► gone
//! a crash there leaves     orphan blob g+1    old or new, never between    the same
//! ```
//!
//! | file | its one idea |
//! |---|---|
//! | `generation.rs` | one generation in memory: loaded, verified, searched |
//! | `rows.rs` | where the stored rows are read from: memory or RocksDB |
//! | `writer.rs` | the single writer: put items, index them, publish |
//!
//! A [`Cache`] is what a server holds: the current generation behind an atomically swapped pointer. A search takes
//! the pointer once and keeps that generation to its end, so a switch fails no request.

mod generation;
mod rows;
mod writer;

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::store::{self, Store};
use crate::types::{CacheName, Generation, Origin};
use crate::{blend, index};

pub use generation::{Found, LoadOptions, Loaded, MemoryPlan, Snapshot};
pub use rows::{RowsMode, decode_row, encode_row};
pub use writer::{IndexReport, IndexStep, NewCache, NewItem, Writer, publish_existing};

/// Why a cache cannot be opened, searched or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] index::Error),
    /// The maths has no answer.
    #[error(transparent)]
    Blend(#[from] blend::Error),
    /// A query or item of the wrong length.
    #[error("the embedding has {received} components, cache `{cache}` has {expected}")]
    Dimension {
        /// Which cache.
        cache: CacheName,
        /// Components of the cache.
        expected: usize,
        /// Components given.
        received: usize,
    },
    /// Items that were made otherwise than the cache's.
    #[error("cache `{cache}` does not fit: {difference}")]
    Origin {
        /// Which cache.
        cache: CacheName,
        /// In words.
        difference: String,
    },
    /// Nothing has been indexed yet.
    #[error("cache `{0}` has no generation yet; run `index-builder index --cache {0}`")]
    NotIndexed(CacheName),
    /// A generation that is not stored.
    #[error("cache `{cache}` has no generation {generation}; it has: {known}")]
    NoGeneration {
        /// Which cache.
        cache: CacheName,
        /// The one asked for.
        generation: Generation,
        /// Those there are.
        known: String,
    },
    /// More memory than allowed.
    #[error(
        "cache `{cache}` needs {needed} MiB ({plan}) and the budget is {budget} MiB; raise `memory_budget_mib`, or read rows from disk with `rows = \"disk\"`"
    )]
    Memory {
        /// Which cache.
        cache: CacheName,
        /// What it needs.
        needed: u64,
        /// What it may have.
        budget: u64,
        /// Of what that consists.
        plan: MemoryPlan,
    },
    /// An item of the index whose row is gone or misshapen.
    #[error("the row of item {id} in cache `{cache}` is {why}; run `index-builder verify`")]
    Row {
        /// Which cache.
        cache: CacheName,
        /// Which item.
        id: crate::types::ItemId,
        /// What is wrong.
        why: String,
    },
}

/// A named cache, open for searching.
pub struct Cache {
    name: CacheName,
    options: LoadOptions,
    current: ArcSwap<Snapshot>,
}

impl Cache {
    /// Opens the current generation of a cache and verifies it.
    ///
    /// * `expected`: what queries will be made by; `None` when only ready embeddings will come.
    ///
    /// # Errors
    /// [`store::Error::NoCache`], [`Error::NotIndexed`], [`Error::Origin`] naming what differs, [`Error::Memory`] with
    /// the plan, and damage by name.
    pub fn open(
        store: &Arc<Store>,
        name: &CacheName,
        expected: Option<&Origin>,
        options: LoadOptions,
    ) -> Result<Self, Error> {
        let snapshot = Snapshot::load(store, name, options)?;
        if let Some(difference) = expected.and_then(|origin| snapshot.record().origin.difference(origin)) {
            return Err(Error::Origin { cache: name.clone(), difference });
        }
        Ok(Cache { name: name.clone(), options, current: ArcSwap::from_pointee(snapshot) })
    }

    /// The cache's name.
    pub fn name(&self) -> &CacheName {
        &self.name
    }

    /// The generation being served; hold it for as long as an answer takes.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Switches to the store's current generation if it is another one. Requests under way keep theirs.
    ///
    /// # Errors
    /// As [`Cache::open`]; the old generation then stays.
    pub fn reload(&self, store: &Arc<Store>) -> Result<bool, Error> {
        store.refresh()?;
        let record = store.cache(&self.name)?;
        let now = self.snapshot();
        if record.current == Some(now.generation()) && record.id == now.record().id {
            return Ok(false);
        }
        let snapshot = Snapshot::load(store, &self.name, self.options)?;
        if let Some(difference) = snapshot.record().origin.difference(&now.record().origin) {
            return Err(Error::Origin { cache: self.name.clone(), difference });
        }
        self.current.store(Arc::new(snapshot));
        Ok(true)
    }
}
