//! Writes that happen together or not at all.

use rocksdb::WriteBatch;

use super::keys::Key;
use super::records::{self, ItemStamp, Stamped};
use super::{
    BLOBS, CHANGES, CacheId, CacheRecord, ChangeRecord, GenerationRecord, ITEMS, ItemRecord, LEDGER,
    LedgerRecord, META, Store, VECTORS,
};
use crate::types::{Fingerprint, Generation, ItemId};

/// Writes that happen together or not at all.
pub struct Batch<'a> {
    pub(super) store: &'a Store,
    pub(super) writes: WriteBatch,
}

impl Batch<'_> {
    /// Puts an item and its row (little-endian components of the cache's row type), to be found by its uri too. Of an item that it
    /// replaces, [`Batch::delete_uri`] comes first.
    ///
    /// * `sequence`: of the last change of the cache, this one included if it is in the log.
    pub fn put_item(&mut self, cache: CacheId, id: ItemId, record: &ItemRecord, row: &[u8], sequence: u64) {
        self.put_item_record(cache, id, record, row, sequence);
        self.put(VECTORS, Key::item(cache, id), row);
    }

    /// Replaces an item's record, leaving its row; otherwise as [`Batch::put_item`].
    pub fn put_item_record(
        &mut self,
        cache: CacheId,
        id: ItemId,
        record: &ItemRecord,
        row: &[u8],
        sequence: u64,
    ) {
        let stamp = ItemStamp::of(sequence, row);
        self.put(ITEMS, Key::item(cache, id), records::encode(&Stamped { record, stamp }));
        self.put_uri(cache, &record.uri, id);
    }

    /// Takes out an item: its record and its row. [`Batch::delete_uri`] takes out its uri.
    pub fn delete_item(&mut self, cache: CacheId, id: ItemId) {
        self.writes.delete_cf(&self.store.family(ITEMS), Key::item(cache, id));
        self.writes.delete_cf(&self.store.family(VECTORS), Key::item(cache, id));
    }

    /// Appends to the change log.
    pub fn put_change(&mut self, cache: CacheId, sequence: u64, change: &ChangeRecord) {
        self.put(CHANGES, Key::change(cache, sequence), records::encode(change));
    }

    /// Drops the changes up to and including this one: what every stored generation contains.
    pub fn delete_changes_to(&mut self, cache: CacheId, sequence: u64) {
        let end = Key::change(cache, sequence.saturating_add(1));
        self.writes.delete_range_cf(&self.store.family(CHANGES), Key::change(cache, 0), end);
    }

    /// Puts what was done with a unit.
    pub fn put_ledger(&mut self, cache: CacheId, record: &LedgerRecord) {
        self.put(LEDGER, Key::unit(cache, &record.uri), records::encode(record));
    }

    /// Forgets what was done with a unit.
    pub fn delete_ledger(&mut self, cache: CacheId, uri: &str) {
        self.writes.delete_cf(&self.store.family(LEDGER), Key::unit(cache, uri));
    }

    /// Remembers which item has some content.
    pub fn put_digest(&mut self, cache: CacheId, digest: &Fingerprint, id: ItemId) {
        self.put(LEDGER, Key::digest(cache, digest), id.0.to_be_bytes());
    }

    /// Forgets which item has some content.
    pub fn delete_digest(&mut self, cache: CacheId, digest: &Fingerprint) {
        self.writes.delete_cf(&self.store.family(LEDGER), Key::digest(cache, digest));
    }

    /// Puts a cache's record.
    pub fn put_cache(&mut self, record: &CacheRecord) {
        self.put(META, Key::cache(&record.name), records::encode(record));
    }

    /// Puts a generation's record.
    pub fn put_generation(&mut self, cache: CacheId, record: &GenerationRecord) {
        self.put(META, Key::generation(cache, record.generation), records::encode(record));
    }

    /// Drops a generation: its record and its blobs.
    pub fn delete_generation(&mut self, cache: CacheId, generation: Generation) {
        self.writes.delete_cf(&self.store.family(META), Key::generation(cache, generation));
        let blobs = Key::blobs(cache, generation);
        let end = Key::after_prefix(&blobs);
        self.writes.delete_range_cf(&self.store.family(BLOBS), blobs, end);
    }

    /// Drops the blobs of every generation from this one on: what a crash before the flip left behind.
    pub fn delete_blobs_from(&mut self, cache: CacheId, generation: Generation) {
        let start = Key::blobs(cache, generation);
        let end = Key::after_prefix(&Key::items(cache));
        self.writes.delete_range_cf(&self.store.family(BLOBS), start, end);
    }

    /// Bytes gathered so far.
    pub fn len(&self) -> usize {
        self.writes.size_in_bytes()
    }

    /// Whether nothing has been put.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    pub(super) fn put(&mut self, family: &'static str, key: Vec<u8>, value: impl AsRef<[u8]>) {
        self.writes.put_cf(&self.store.family(family), key, value);
    }
}
