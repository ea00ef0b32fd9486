//! Which items have a uri. An entry is a hint: whoever finds one asks the item, so that one too many does no harm, and none may be
//! missing.

use super::keys::{self, Key};
use super::{Batch, CacheId, Error, LEDGER, Store};
use crate::types::ItemId;

impl Store {
    /// The items that have a uri, ascending. Of a cache whose record says so ([`super::CacheRecord::uris`]), all of them.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`].
    pub fn items_of_uri(&self, cache: CacheId, uri: &str) -> Result<Vec<ItemId>, Error> {
        let entry = |key: &[u8], _: &[u8]| {
            keys::item_of_uri(key).ok_or_else(|| Error::Damaged {
                what: format!("key {key:?} of `{LEDGER}`"),
                why: "it is not a uri's key".into(),
            })
        };
        let mut items = self.scan(LEDGER, &Key::uri(cache, uri), entry)?;
        let found = self.items(cache, &items)?;
        let mut has = found.into_iter().map(|item| item.is_some_and(|item| item.uri == uri));
        items.retain(|_| has.next().unwrap_or(false));
        Ok(items)
    }
}

impl Batch<'_> {
    /// Remembers that an item has a uri.
    pub fn put_uri(&mut self, cache: CacheId, uri: &str, id: ItemId) {
        if !uri.is_empty() {
            self.put(LEDGER, Key::uri_of(cache, uri, id), []);
        }
    }

    /// Forgets that an item has a uri.
    pub fn delete_uri(&mut self, cache: CacheId, uri: &str, id: ItemId) {
        self.writes.delete_cf(&self.store.family(LEDGER), Key::uri_of(cache, uri, id));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Access, ItemRecord};
    use super::*;
    use crate::types::Fingerprint;

    #[test]
    fn a_uri_finds_the_items_that_have_it_now() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Access::Write).unwrap();
        let cache = CacheId(3);
        let item = |uri: &str| ItemRecord {
            uri: uri.into(),
            modality: None,
            digest: Fingerprint::of(uri.as_bytes()),
            tags: Default::default(),
        };
        let mut batch = store.batch();
        for (id, uri) in [(9, "a"), (2, "a"), (5, "b"), (6, "")] {
            batch.put_item(cache, ItemId(id), &item(uri), &[0; 4], 0);
        }
        batch.put_item(CacheId(4), ItemId(1), &item("a"), &[0; 4], 0);
        store.commit(batch).unwrap();
        let found =
            |uri: &str| store.items_of_uri(cache, uri).unwrap().iter().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!((found("a"), found("b"), found("c"), found("")), (vec![2, 9], vec![5], vec![], vec![]));

        // An entry that is too many, and one that was taken out.
        let mut batch = store.batch();
        batch.put_uri(cache, "b", ItemId(2));
        batch.put_uri(cache, "b", ItemId(77));
        batch.delete_uri(cache, "a", ItemId(9));
        store.commit(batch).unwrap();
        assert_eq!((found("a"), found("b")), (vec![2], vec![5]));
    }
}
