//! Items and rows one after another, in the order of their ids.

use rocksdb::{DBRawIteratorWithThreadMode, ReadOptions};

use super::{CacheId, DB, Error, ITEMS, ItemRecord, Key, Store, VECTORS, keys, records};
use crate::types::ItemId;

/// Bytes read at a time.
const READ_AHEAD: usize = 1 << 20;

impl Store {
    /// Visits the rows of items `from..` in ascending order until `visit` answers false or they end.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`], and whatever `visit` fails with.
    pub fn scan_rows<E: From<Error>>(
        &self,
        cache: CacheId,
        from: ItemId,
        visit: impl FnMut(ItemId, &[u8]) -> Result<bool, E>,
    ) -> Result<(), E> {
        self.row_scan(cache, from).each(visit)
    }

    /// As [`Store::scan_rows`], over item records.
    ///
    /// # Errors
    /// As [`Store::scan_rows`].
    pub fn scan_items<E: From<Error>>(
        &self,
        cache: CacheId,
        from: ItemId,
        mut visit: impl FnMut(ItemId, ItemRecord) -> Result<bool, E>,
    ) -> Result<(), E> {
        ItemScan::begin(self, ITEMS, cache, from, options(cache))
            .each(|id, value| visit(id, records::decode("item record", value).map_err(E::from)?))
    }

    /// A scan of the rows of items `from..` as they are now, whatever is written before it comes to them.
    pub fn row_scan(&self, cache: CacheId, from: ItemId) -> ItemScan<'_> {
        ItemScan::begin(self, VECTORS, cache, from, options(cache))
    }
}

/// How the items of a cache are scanned.
pub(super) fn options(cache: CacheId) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(Key::after_prefix(&Key::items(cache)));
    options.set_readahead_size(READ_AHEAD);
    options.fill_cache(false);
    options
}

/// A look through a family in the order of items, with a view of the store as of its beginning.
pub struct ItemScan<'a> {
    store: &'a Store,
    family: &'static str,
    entries: DBRawIteratorWithThreadMode<'a, DB>,
}

impl<'a> ItemScan<'a> {
    pub(super) fn begin(
        store: &'a Store,
        family: &'static str,
        cache: CacheId,
        from: ItemId,
        options: ReadOptions,
    ) -> Self {
        let mut entries = store.db.raw_iterator_cf_opt(&store.family(family), options);
        entries.seek(Key::item(cache, from));
        ItemScan { store, family, entries }
    }

    /// Visits what is left in ascending order until `visit` answers false or it ends.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`], and whatever `visit` fails with.
    pub fn each<E: From<Error>>(
        &mut self,
        mut visit: impl FnMut(ItemId, &[u8]) -> Result<bool, E>,
    ) -> Result<(), E> {
        while let Some((key, value)) = self.entries.item() {
            let id = keys::item_of(key).ok_or_else(|| Error::Damaged {
                what: format!("key {key:?} of `{}`", self.family),
                why: "it is not an item's key".into(),
            })?;
            if !visit(id, value)? {
                return Ok(());
            }
            self.entries.next();
        }
        self.entries.status().map_err(|e| E::from(self.store.rocks(e)))
    }
}
