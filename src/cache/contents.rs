//! What a deleted cache leaves behind is taken out of the store when nobody reads it any more.
//!
//! ```text
//! cache ─┐
//! snapshots that requests hold ─┼─► contents ─► the last one to go reclaims them, if the cache was deleted
//! a compaction under way ─┘
//! ```
//!
//! So a request that has begun ends on what it began with, with rows on disk too, and a compaction of a deleted cache finds what
//! it reads; whatever it had written goes with the rest. After a crash the store does it when it is opened for writing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::error;

use crate::store::{CacheId, Store};

/// A cache's place in the store.
pub(super) struct Contents {
    store: Arc<Store>,
    cache: CacheId,
    deleted: AtomicBool,
}

impl Contents {
    pub(super) fn new(store: &Arc<Store>, cache: CacheId) -> Arc<Self> {
        Arc::new(Contents { store: store.clone(), cache, deleted: AtomicBool::new(false) })
    }

    /// Whether the cache is deleted.
    pub(super) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// Says that the cache is deleted.
    pub(super) fn delete(&self) {
        self.deleted.store(true, Ordering::Release);
    }
}

impl Drop for Contents {
    fn drop(&mut self) {
        if *self.deleted.get_mut()
            && let Err(problem) = self.store.reclaim(self.cache)
        {
            let problem: &dyn std::error::Error = &problem;
            error!(
                problem,
                "what a deleted cache left behind stays until the store is opened for writing again"
            );
        }
    }
}
