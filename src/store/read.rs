//! Records and rows, read.

use rocksdb::{IteratorMode, ReadOptions};

use super::keys::{self, Key};
use super::{
    CHANGES, CacheId, CacheRecord, ChangeRecord, Error, GenerationRecord, ITEMS, ItemRecord, ItemStamp,
    LEDGER, LedgerRecord, META, Store, VECTORS, records,
};
use crate::types::{CacheName, Fingerprint, ItemId};

impl Store {
    /// Every cache, by name.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`].
    pub fn caches(&self) -> Result<Vec<CacheRecord>, Error> {
        self.scan(META, &Key::caches(), |_, value| records::decode("cache record", value))
    }

    /// One cache's record, by its name or an alias.
    ///
    /// # Errors
    /// [`Error::NoCache`] naming the caches there are.
    pub fn cache(&self, name: &CacheName) -> Result<CacheRecord, Error> {
        let mut found = self.get(META, &Key::cache(name))?;
        if found.is_none()
            && let Some(cache) = self.alias(name)?
        {
            found = self.get(META, &Key::cache(&cache))?;
        }
        match found {
            Some(value) => records::decode("cache record", &value),
            None => {
                let known = self.caches()?.into_iter().map(|record| record.name).collect();
                Err(Error::NoCache { name: name.clone(), known })
            }
        }
    }

    /// The committed generations of a cache, ascending.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`].
    pub fn generations(&self, cache: CacheId) -> Result<Vec<GenerationRecord>, Error> {
        self.scan(META, &Key::generations(cache), |_, value| records::decode("generation record", value))
    }

    /// One item's record.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`].
    pub fn item(&self, cache: CacheId, id: ItemId) -> Result<Option<ItemRecord>, Error> {
        self.get(ITEMS, &Key::item(cache, id))?
            .map(|value| records::decode("item record", &value))
            .transpose()
    }

    /// Several items' records in one batched read, in the order of `ids`.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`].
    pub fn items(&self, cache: CacheId, ids: &[ItemId]) -> Result<Vec<Option<ItemRecord>>, Error> {
        let decode =
            |value: Option<Vec<u8>>| value.map(|value| records::decode("item record", &value)).transpose();
        self.several(ITEMS, cache, ids)?.into_iter().map(decode).collect()
    }

    /// As [`Store::items`], each with what its row must fit.
    ///
    /// # Errors
    /// As [`Store::items`].
    pub fn stamped_items(
        &self,
        cache: CacheId,
        ids: &[ItemId],
    ) -> Result<Vec<Option<(ItemRecord, ItemStamp)>>, Error> {
        let decode = |value: Option<Vec<u8>>| {
            let both = |value: &Vec<u8>| {
                Ok((records::decode("item record", value)?, records::decode("item record", value)?))
            };
            value.as_ref().map(both).transpose()
        };
        self.several(ITEMS, cache, ids)?.into_iter().map(decode).collect()
    }

    /// One item's row, as stored.
    ///
    /// # Errors
    /// [`Error::Rocks`].
    pub fn row(&self, cache: CacheId, id: ItemId) -> Result<Option<Vec<u8>>, Error> {
        self.get(VECTORS, &Key::item(cache, id))
    }

    /// Several items' rows in one batched read, in the order of `ids`.
    ///
    /// # Errors
    /// [`Error::Rocks`].
    pub fn rows(&self, cache: CacheId, ids: &[ItemId]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        self.several(VECTORS, cache, ids)
    }

    fn several(
        &self,
        family: &'static str,
        cache: CacheId,
        ids: &[ItemId],
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let family = self.family(family);
        let keys: Vec<Vec<u8>> = ids.iter().map(|&id| Key::item(cache, id)).collect();
        self.db
            .batched_multi_get_cf(&family, keys.iter(), false)
            .into_iter()
            .map(|value| Ok(value.map_err(|e| self.rocks(e))?.map(|pinned| pinned.to_vec())))
            .collect()
    }

    /// The changes after a sequence number, in order, without gaps.
    ///
    /// # Errors
    /// [`Error::Damaged`] when one is missing (a follower may meet that when the writer has just published: opened again,
    /// it begins at the new generation), [`Error::Rocks`].
    pub fn changes(&self, cache: CacheId, after: u64) -> Result<Vec<(u64, ChangeRecord)>, Error> {
        let Some(family) = self.db.cf_handle(CHANGES) else { return Ok(Vec::new()) };
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(Key::after_prefix(&Key::items(cache)));
        let start = Key::change(cache, after.saturating_add(1));
        let mode = IteratorMode::From(&start, rocksdb::Direction::Forward);
        let mut changes = Vec::new();
        for entry in self.db.iterator_cf_opt(&family, options, mode) {
            let (key, value) = entry.map_err(|e| self.rocks(e))?;
            let expected = after + 1 + changes.len() as u64;
            if keys::number_of(&key) != Some(expected) {
                let what = format!("change log at change {expected}");
                return Err(Error::Damaged { what, why: "it is missing".into() });
            }
            changes.push((expected, records::decode("change record", &value)?));
        }
        Ok(changes)
    }

    /// What a build did with the unit of this name.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`].
    pub fn ledger_unit(&self, cache: CacheId, uri: &str) -> Result<Option<LedgerRecord>, Error> {
        self.get(LEDGER, &Key::unit(cache, uri))?
            .map(|value| records::decode("ledger record", &value))
            .transpose()
    }

    /// Visits the whole ledger of a cache, in no useful order; `false` ends it.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`]; what `visit` fails with.
    pub fn scan_ledger<E: From<Error>>(
        &self,
        cache: CacheId,
        mut visit: impl FnMut(LedgerRecord) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut options = ReadOptions::default();
        let prefix = Key::units(cache);
        options.set_iterate_upper_bound(Key::after_prefix(&prefix));
        options.fill_cache(false);
        let mode = IteratorMode::From(&prefix, rocksdb::Direction::Forward);
        for entry in self.db.iterator_cf_opt(&self.family(LEDGER), options, mode) {
            let (_, value) = entry.map_err(|e| E::from(self.rocks(e)))?;
            if !visit(records::decode("ledger record", &value)?)? {
                break;
            }
        }
        Ok(())
    }

    /// The whole ledger of a cache, in no useful order.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`].
    pub fn ledger(&self, cache: CacheId) -> Result<Vec<LedgerRecord>, Error> {
        let mut all = Vec::new();
        self.scan_ledger(cache, |record| {
            all.push(record);
            Ok::<bool, Error>(true)
        })?;
        Ok(all)
    }

    /// Items and rows that a cache has, counted by their keys: what its record should say.
    ///
    /// # Errors
    /// [`Error::Rocks`].
    pub fn count_items(&self, cache: CacheId) -> Result<(u64, u64), Error> {
        let count = |family: &'static str| {
            let mut options = ReadOptions::default();
            let prefix = Key::items(cache);
            options.set_iterate_upper_bound(Key::after_prefix(&prefix));
            options.fill_cache(false);
            let mut keys = self.db.raw_iterator_cf_opt(&self.family(family), options);
            keys.seek(&prefix);
            let mut count = 0;
            while keys.valid() {
                count += 1;
                keys.next();
            }
            keys.status().map_err(|e| self.rocks(e))?;
            Ok(count)
        };
        Ok((count(ITEMS)?, count(VECTORS)?))
    }

    /// The item with this content, if there is one.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`].
    pub fn item_of_digest(&self, cache: CacheId, digest: &Fingerprint) -> Result<Option<ItemId>, Error> {
        let Some(value) = self.get(LEDGER, &Key::digest(cache, digest))? else { return Ok(None) };
        let bytes = <[u8; 8]>::try_from(&value[..]).map_err(|_| Error::Damaged {
            what: "digest entry".into(),
            why: format!("{} bytes instead of 8", value.len()),
        })?;
        Ok(Some(ItemId(u64::from_be_bytes(bytes))))
    }
}
