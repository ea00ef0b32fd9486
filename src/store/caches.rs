//! Caches made, renamed and deleted: each one batch, so that a crash leaves the old state or the new one.

use super::keys::Key;
use super::{BLOBS, Batch, CHANGES, CacheId, CacheRecord, Error, ITEMS, LEDGER, META, Store, VECTORS};
use crate::types::CacheName;

impl Store {
    /// Makes an empty cache.
    ///
    /// # Errors
    /// [`Error::CacheExists`].
    pub fn create_cache(&self, new: CacheRecord) -> Result<CacheRecord, Error> {
        let known = self.caches()?;
        if known.iter().any(|record| record.name == new.name) {
            return Err(Error::CacheExists(new.name));
        }
        let id = CacheId(known.iter().map(|record| record.id.0).max().map_or(1, |id| id + 1));
        let record = CacheRecord { id, ..new };
        let mut batch = self.batch();
        batch.put_cache(&record);
        self.commit(batch)?;
        Ok(record)
    }

    /// Takes out a cache: its record, its generations, items, rows, ledger and changes. Disk space comes back as files are
    /// merged, or at once by [`Store::compact`].
    ///
    /// # Errors
    /// [`Error::NoCache`], [`Error::ReadOnly`].
    pub fn delete_cache(&self, name: &CacheName) -> Result<CacheRecord, Error> {
        let record = self.cache(name)?;
        let mut batch = self.batch();
        batch.delete_contents(record.id);
        batch.delete_record(name);
        self.commit(batch)?;
        Ok(record)
    }

    /// Gives a cache another name. Its contents stay where they are.
    ///
    /// # Errors
    /// [`Error::NoCache`], [`Error::CacheExists`] for the new name, [`Error::ReadOnly`].
    pub fn rename_cache(&self, from: &CacheName, to: &CacheName) -> Result<CacheRecord, Error> {
        let record = CacheRecord { name: to.clone(), ..self.cache(from)? };
        if self.caches()?.iter().any(|known| &known.name == to) {
            return Err(Error::CacheExists(to.clone()));
        }
        let mut batch = self.batch();
        batch.delete_record(from);
        batch.put_cache(&record);
        self.commit(batch)?;
        Ok(record)
    }
}

impl Batch<'_> {
    fn delete_record(&mut self, name: &CacheName) {
        self.writes.delete_cf(&self.store.family(META), Key::cache(name));
    }

    fn delete_contents(&mut self, cache: CacheId) {
        let mut range = |family: &'static str, prefix: Vec<u8>| {
            let end = Key::after_prefix(&prefix);
            self.writes.delete_range_cf(&self.store.family(family), prefix, end);
        };
        for family in [ITEMS, VECTORS, BLOBS, LEDGER, CHANGES] {
            range(family, Key::items(cache));
        }
        range(META, Key::generations(cache));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Access, BlobKind, ItemRecord, LedgerRecord, Outcome, RowType, Stamp};
    use super::*;
    use std::io::Write as _;

    use crate::types::{Fingerprint, Generation, ItemId, Origin};

    fn name(name: &str) -> CacheName {
        CacheName::new(name).unwrap()
    }

    fn made(store: &Store, name: &CacheName) -> CacheRecord {
        let new = CacheRecord {
            id: CacheId(0),
            name: name.clone(),
            dim: 1,
            rows: RowType::F32,
            origin: Origin::of("m"),
            model: None,
            current: None,
            items: 1,
            next_item: ItemId(1),
            sequence: 0,
            replaced: 0,
            created_ms: 0,
        };
        let record = store.create_cache(new).unwrap();
        let mut batch = store.batch();
        let digest = Fingerprint::of(b"x");
        let item = ItemRecord { uri: "a".into(), modality: None, digest, tags: Default::default() };
        batch.put_item(record.id, ItemId(0), &item, &[0; 4]);
        batch.put_digest(record.id, &digest, ItemId(0));
        let outcome = Outcome::Stored(ItemId(0));
        let (stamp, item, digest) = (Stamp::default(), Some(ItemId(0)), None);
        batch.put_ledger(record.id, &LedgerRecord { uri: "a".into(), stamp, outcome, item, digest });
        store.commit(batch).unwrap();
        let mut blob = store.write_blob(record.id, Generation(1), BlobKind::Index);
        blob.write_all(&[1; 9]).unwrap();
        blob.finish().unwrap();
        store.sync().unwrap();
        record
    }

    #[test]
    fn a_deleted_cache_leaves_nothing_and_its_neighbours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        let records: Vec<_> = ["a", "b", "c"].iter().map(|n| made(&store, &name(n))).collect();
        store.delete_cache(&name("b")).unwrap();
        assert!(matches!(store.cache(&name("b")), Err(Error::NoCache { .. })));
        for record in &records {
            let there = record.name != name("b");
            assert_eq!(store.item(record.id, ItemId(0)).unwrap().is_some(), there);
            assert_eq!(store.row(record.id, ItemId(0)).unwrap().is_some(), there);
            assert_eq!(store.ledger_unit(record.id, "a").unwrap().is_some(), there);
            assert_eq!(store.item_of_digest(record.id, &Fingerprint::of(b"x")).unwrap().is_some(), there);
            let blob = store.read_blob(record.id, Generation(1), BlobKind::Index, &mut [0; 9]);
            assert_eq!(blob.is_ok(), there);
        }
        assert!(matches!(store.delete_cache(&name("b")), Err(Error::NoCache { .. })));
    }

    #[test]
    fn a_renamed_cache_keeps_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        let record = made(&store, &name("a"));
        made(&store, &name("b"));
        assert!(matches!(store.rename_cache(&name("a"), &name("b")), Err(Error::CacheExists(_))));
        store.rename_cache(&name("a"), &name("z")).unwrap();
        assert_eq!(store.cache(&name("z")).unwrap().id, record.id);
        assert!(store.cache(&name("a")).is_err() && store.item(record.id, ItemId(0)).unwrap().is_some());
    }
}
