//! A store as of one moment: what is written later is not seen.

use rocksdb::SnapshotWithThreadMode;

use super::{CacheId, DB, Error, ITEMS, ItemRecord, ItemScan, Key, Store, VECTORS, records, scan};
use crate::types::ItemId;

/// Rows as of one moment, however often they are read. Held for long, it keeps RocksDB from dropping what was replaced since.
pub struct Moment<'a> {
    store: &'a Store,
    snapshot: SnapshotWithThreadMode<'a, DB>,
}

impl Store {
    /// Now. Not for a follower, which sees what its writer has flushed and has no moments of its own.
    pub fn moment(&self) -> Moment<'_> {
        Moment { store: self, snapshot: self.db.snapshot() }
    }
}

impl Moment<'_> {
    /// As [`Store::scan_rows`].
    ///
    /// # Errors
    /// As [`Store::scan_rows`].
    pub fn scan_rows<E: From<Error>>(
        &self,
        cache: CacheId,
        visit: impl FnMut(ItemId, &[u8]) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut options = scan::options(cache);
        options.set_snapshot(&self.snapshot);
        ItemScan::begin(self.store, VECTORS, cache, ItemId(0), options).each(visit)
    }

    /// As [`Store::scan_items`].
    ///
    /// # Errors
    /// As [`Store::scan_items`].
    pub fn scan_items<E: From<Error>>(
        &self,
        cache: CacheId,
        mut visit: impl FnMut(ItemId, ItemRecord) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut options = scan::options(cache);
        options.set_snapshot(&self.snapshot);
        ItemScan::begin(self.store, ITEMS, cache, ItemId(0), options)
            .each(|id, value| visit(id, records::decode("item record", value).map_err(E::from)?))
    }

    /// As [`Store::rows`].
    ///
    /// # Errors
    /// As [`Store::rows`].
    pub fn rows(&self, cache: CacheId, ids: &[ItemId]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let family = self.store.family(VECTORS);
        let keys = ids.iter().map(|&id| (&family, Key::item(cache, id)));
        let found = self.snapshot.multi_get_cf(keys).into_iter();
        found.map(|row| row.map_err(|e| self.store.rocks(e))).collect()
    }
}
