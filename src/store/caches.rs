//! Caches and their names: made, renamed, deleted, and called by other names. Each is one batch, so that a crash leaves the old
//! state or the new one.
//!
//! ```text
//! names      one for a cache, any number of aliases; no name is both
//! numbers    a cache's number is never given again: whoever still reads a deleted cache must not meet another one's items
//! deletion   [ record and aliases out, number noted as leaving ] ─► last reader leaves ─► [ contents and note out ]
//!            a crash between the two: the next who opens the store for writing does the second
//! ```

use std::sync::{MutexGuard, PoisonError};

use super::keys::{self, Key};
use super::{
    BLOBS, Batch, CHANGES, CacheId, CacheRecord, Error, ITEMS, LEDGER, META, Store, VECTORS, records,
};
use crate::types::CacheName;

impl Store {
    /// Makes an empty cache.
    ///
    /// # Errors
    /// [`Error::CacheExists`], [`Error::AliasExists`], [`Error::ReadOnly`].
    pub fn create_cache(&self, new: CacheRecord) -> Result<CacheRecord, Error> {
        let _naming = self.naming();
        self.check_free(&new.name)?;
        let id = self.next_cache()?;
        let record = CacheRecord { id, ..new };
        let mut batch = self.batch();
        batch.put_cache(&record);
        batch.put(META, Key::next_cache(), records::encode(&CacheId(id.0.saturating_add(1))));
        fail::fail_point!("names::before_commit", |_| std::process::abort());
        self.commit(batch)?;
        fail::fail_point!("names::after_commit", |_| std::process::abort());
        Ok(record)
    }

    /// Takes out a cache: its record, its generations, items, rows, ledger and changes. Disk space comes back as files are
    /// merged, or at once by [`Store::compact`].
    ///
    /// * `force`: also one that has aliases, which then go with it.
    ///
    /// # Errors
    /// [`Error::NoCache`], [`Error::IsAlias`], [`Error::HasAliases`], [`Error::ReadOnly`].
    pub fn delete_cache(&self, name: &CacheName, force: bool) -> Result<CacheRecord, Error> {
        let record = self.leave_cache(name, force)?;
        self.reclaim(record.id)?;
        Ok(record)
    }

    /// Takes out a cache's record and name. Its contents stay until [`Store::reclaim`], for those who still read them.
    ///
    /// # Errors
    /// As [`Store::delete_cache`].
    pub fn leave_cache(&self, name: &CacheName, force: bool) -> Result<CacheRecord, Error> {
        let _naming = self.naming();
        let record = self.exact_cache(name)?;
        let aliases: Vec<CacheName> =
            self.aliases()?.into_iter().filter(|(_, cache)| cache == name).map(|(alias, _)| alias).collect();
        if !aliases.is_empty() && !force {
            return Err(Error::HasAliases { name: name.clone(), aliases });
        }
        let next = self.next_cache()?;
        let mut batch = self.batch();
        batch.delete_record(name);
        aliases.iter().for_each(|alias| batch.delete_alias(alias));
        batch.put(META, Key::leaving(record.id), []);
        batch.put(META, Key::next_cache(), records::encode(&next));
        fail::fail_point!("names::before_commit", |_| std::process::abort());
        self.commit(batch)?;
        fail::fail_point!("names::after_commit", |_| std::process::abort());
        Ok(record)
    }

    /// Takes out what a cache that has left has left behind.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Rocks`].
    pub fn reclaim(&self, cache: CacheId) -> Result<(), Error> {
        let mut batch = self.batch();
        batch.delete_contents(cache);
        fail::fail_point!("names::before_reclaim", |_| std::process::abort());
        self.commit(batch)
    }

    /// Takes out what all caches that have left have left behind.
    pub(super) fn reclaim_all(&self) -> Result<(), Error> {
        let left = self.scan(META, &Key::all_leaving(), |key, _| {
            keys::cache_of_leaving(key).ok_or_else(|| Error::Damaged {
                what: format!("key {key:?} of `{META}`"),
                why: "it is not a cache's key".into(),
            })
        })?;
        left.into_iter().try_for_each(|cache| self.reclaim(cache))
    }

    /// Gives a cache another name. Its contents stay where they are, and its aliases stay its own.
    ///
    /// # Errors
    /// [`Error::NoCache`], [`Error::IsAlias`]; for the new name [`Error::CacheExists`], [`Error::AliasExists`];
    /// [`Error::ReadOnly`].
    pub fn rename_cache(&self, from: &CacheName, to: &CacheName) -> Result<CacheRecord, Error> {
        let _naming = self.naming();
        let record = CacheRecord { name: to.clone(), ..self.exact_cache(from)? };
        self.check_free(to)?;
        let mut batch = self.batch();
        batch.delete_record(from);
        batch.put_cache(&record);
        for (alias, _) in self.aliases()?.iter().filter(|(_, cache)| cache == from) {
            batch.put_alias(alias, to);
        }
        fail::fail_point!("names::before_commit", |_| std::process::abort());
        self.commit(batch)?;
        fail::fail_point!("names::after_commit", |_| std::process::abort());
        Ok(record)
    }

    /// Lets an alias stand for a cache, instead of what it stood for.
    ///
    /// * `cache`: its name or another alias of it. Returns its name, and what the alias stood for.
    ///
    /// # Errors
    /// [`Error::NoCache`], [`Error::CacheExists`] for the name of a cache, [`Error::ReadOnly`].
    pub fn set_alias(
        &self,
        alias: &CacheName,
        cache: &CacheName,
    ) -> Result<(CacheName, Option<CacheName>), Error> {
        let _naming = self.naming();
        if self.get(META, &Key::cache(alias))?.is_some() {
            return Err(Error::CacheExists(alias.clone()));
        }
        let (cache, before) = (self.cache(cache)?.name, self.alias(alias)?);
        let mut batch = self.batch();
        batch.put_alias(alias, &cache);
        fail::fail_point!("names::before_commit", |_| std::process::abort());
        self.commit(batch)?;
        fail::fail_point!("names::after_commit", |_| std::process::abort());
        Ok((cache, before))
    }

    /// Takes out an alias; what it stood for stays. Returns that.
    ///
    /// # Errors
    /// [`Error::NoAlias`], [`Error::ReadOnly`].
    pub fn delete_alias(&self, alias: &CacheName) -> Result<CacheName, Error> {
        let _naming = self.naming();
        let Some(cache) = self.alias(alias)? else {
            let known = self.aliases()?.into_iter().map(|(alias, _)| alias).collect();
            return Err(Error::NoAlias { name: alias.clone(), known });
        };
        let mut batch = self.batch();
        batch.delete_alias(alias);
        fail::fail_point!("names::before_commit", |_| std::process::abort());
        self.commit(batch)?;
        fail::fail_point!("names::after_commit", |_| std::process::abort());
        Ok(cache)
    }

    /// Every alias with the cache it stands for, by name.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`].
    pub fn aliases(&self) -> Result<Vec<(CacheName, CacheName)>, Error> {
        let damaged = |key: &[u8]| Error::Damaged {
            what: format!("key {key:?} of `{META}`"),
            why: "it is not an alias".into(),
        };
        self.scan(META, &Key::aliases(), |key, value| {
            let name = key.get(1..).and_then(|name| std::str::from_utf8(name).ok());
            let name = name.and_then(|name| CacheName::new(name).ok()).ok_or_else(|| damaged(key))?;
            Ok((name, records::decode("alias", value)?))
        })
    }

    /// The cache that an alias stands for, if there is such an alias.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`].
    pub fn alias(&self, name: &CacheName) -> Result<Option<CacheName>, Error> {
        self.get(META, &Key::alias(name))?.map(|value| records::decode("alias", &value)).transpose()
    }

    /// The cache of exactly this name.
    fn exact_cache(&self, name: &CacheName) -> Result<CacheRecord, Error> {
        let record = self.cache(name)?;
        match record.name == *name {
            true => Ok(record),
            false => Err(Error::IsAlias { alias: name.clone(), cache: record.name }),
        }
    }

    /// Whether a cache may have a name.
    fn check_free(&self, name: &CacheName) -> Result<(), Error> {
        if self.get(META, &Key::cache(name))?.is_some() {
            return Err(Error::CacheExists(name.clone()));
        }
        match self.alias(name)? {
            Some(cache) => Err(Error::AliasExists { alias: name.clone(), cache }),
            None => Ok(()),
        }
    }

    /// A number that no cache has or had.
    fn next_cache(&self) -> Result<CacheId, Error> {
        let noted: Option<CacheId> = self
            .get(META, &Key::next_cache())?
            .map(|value| records::decode("number of the next cache", &value))
            .transpose()?;
        let known = self.caches()?.iter().map(|record| record.id.0.saturating_add(1)).max().unwrap_or(1);
        Ok(CacheId(known.max(noted.map_or(1, |id| id.0))))
    }

    fn naming(&self) -> MutexGuard<'_, ()> {
        self.naming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batch<'_> {
    fn delete_record(&mut self, name: &CacheName) {
        self.writes.delete_cf(&self.store.family(META), Key::cache(name));
    }

    fn put_alias(&mut self, alias: &CacheName, cache: &CacheName) {
        self.put(META, Key::alias(alias), records::encode(cache));
    }

    fn delete_alias(&mut self, alias: &CacheName) {
        self.writes.delete_cf(&self.store.family(META), Key::alias(alias));
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
        self.writes.delete_cf(&self.store.family(META), Key::leaving(cache));
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
            put: 0,
            made: false,
            uris: true,
            requests: 0,
            created_ms: 0,
        };
        let record = store.create_cache(new).unwrap();
        let mut batch = store.batch();
        let digest = Fingerprint::of(b"x");
        let item = ItemRecord { uri: "a".into(), modality: None, digest, tags: Default::default() };
        batch.put_item(record.id, ItemId(0), &item, &[0; 4], 0);
        batch.put_digest(record.id, &digest, ItemId(0));
        let outcome = Outcome::Stored(ItemId(0));
        let (stamp, item, digest) = (Stamp::default(), Some(ItemId(0)), None);
        batch.put_ledger(
            record.id,
            &LedgerRecord { uri: "a".into(), stamp, outcome, item, content: None, digest },
        );
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
        store.delete_cache(&name("b"), false).unwrap();
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
        assert!(matches!(store.delete_cache(&name("b"), false), Err(Error::NoCache { .. })));
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

    #[test]
    fn a_number_is_never_given_again_and_what_left_is_reclaimed_later() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        made(&store, &name("a"));
        let last = made(&store, &name("b"));
        store.leave_cache(&name("b"), false).unwrap();
        assert!(store.cache(&name("b")).is_err() && store.item(last.id, ItemId(0)).unwrap().is_some());
        let again = made(&store, &name("b"));
        assert!(again.id.0 > last.id.0);
        drop(store);
        // A crash would have come here.
        let store = Store::open(dir.path(), Access::Write).unwrap();
        assert!(store.item(last.id, ItemId(0)).unwrap().is_none());
        assert!(store.item(again.id, ItemId(0)).unwrap().is_some());
        store.delete_cache(&name("b"), false).unwrap();
        store.delete_cache(&name("a"), false).unwrap();
        assert!(made(&store, &name("c")).id.0 > again.id.0);
    }

    #[test]
    fn names_are_of_one_cache_or_alias_and_aliases_follow_their_cache() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::Write).unwrap();
        let (a, b) = (made(&store, &name("a")), made(&store, &name("b")));
        assert_eq!(store.set_alias(&name("live"), &name("a")).unwrap(), (name("a"), None));
        assert_eq!(store.cache(&name("live")).unwrap().id, a.id);
        // An alias of an alias is one of the cache.
        assert_eq!(store.set_alias(&name("too"), &name("live")).unwrap(), (name("a"), None));
        assert_eq!(store.set_alias(&name("live"), &name("b")).unwrap(), (name("b"), Some(name("a"))));
        assert_eq!(
            (store.cache(&name("live")).unwrap().id, store.cache(&name("too")).unwrap().id),
            (b.id, a.id)
        );

        assert!(matches!(store.set_alias(&name("a"), &name("b")), Err(Error::CacheExists(_))));
        assert!(matches!(store.set_alias(&name("x"), &name("y")), Err(Error::NoCache { .. })));
        assert!(matches!(
            store.create_cache(CacheRecord { name: name("live"), ..a.clone() }),
            Err(Error::AliasExists { .. })
        ));
        assert!(matches!(store.rename_cache(&name("a"), &name("live")), Err(Error::AliasExists { .. })));
        assert!(matches!(store.rename_cache(&name("live"), &name("z")), Err(Error::IsAlias { .. })));
        assert!(matches!(store.delete_cache(&name("live"), true), Err(Error::IsAlias { .. })));
        assert!(matches!(store.delete_alias(&name("a")), Err(Error::NoAlias { .. })));

        store.rename_cache(&name("b"), &name("c")).unwrap();
        let aliases = [(name("live"), name("c")), (name("too"), name("a"))];
        assert_eq!(store.aliases().unwrap(), aliases);
        assert!(matches!(store.delete_cache(&name("c"), false), Err(Error::HasAliases { .. })));
        assert_eq!(store.delete_alias(&name("too")).unwrap(), name("a"));
        store.delete_cache(&name("c"), true).unwrap();
        assert_eq!(store.aliases().unwrap(), []);
        assert!(matches!(store.cache(&name("live")), Err(Error::NoCache { .. })));
    }
}
