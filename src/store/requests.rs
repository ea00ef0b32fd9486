//! Requests that may come again: what each was answered, for the last [`REQUEST_WINDOW`] of a cache.
//!
//! ```text
//! 'r' digest of the id ─► number, digest of the content, answer        one batch with what the request stored
//! 'q' number           ─► digest of the id                            the one that leaves the window goes in the same batch
//! ```

use super::keys::Key;
use super::{Batch, CacheId, Error, LEDGER, RequestRecord, Store, records};
use crate::types::Fingerprint;

/// Requests that a cache remembers: the last ones that had an id.
pub const REQUEST_WINDOW: u64 = 1024;

impl Store {
    /// What a request was answered, if it is remembered.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`].
    pub fn request(&self, cache: CacheId, id: &str) -> Result<Option<RequestRecord>, Error> {
        let digest = Fingerprint::of(id.as_bytes());
        let found = self.get(LEDGER, &Key::request(cache, &digest))?;
        found.map(|value| records::decode("request record", &value)).transpose()
    }
}

impl Batch<'_> {
    /// Remembers what a request was answered, and forgets the one that leaves the window.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Rocks`].
    pub fn put_request(&mut self, cache: CacheId, id: &str, record: &RequestRecord) -> Result<(), Error> {
        if let Some(old) = record.number.checked_sub(REQUEST_WINDOW) {
            let number = Key::request_number(cache, old);
            if let Some(digest) = self.store.get(LEDGER, &number)? {
                let digest = <[u8; 32]>::try_from(&digest[..]).map_err(|_| Error::Damaged {
                    what: format!("entry of request {old}"),
                    why: format!("{} bytes instead of 32", digest.len()),
                })?;
                let ledger = self.store.family(LEDGER);
                self.writes.delete_cf(&ledger, Key::request(cache, &Fingerprint::from_digest(digest)));
                self.writes.delete_cf(&ledger, number);
            }
        }
        let digest = Fingerprint::of(id.as_bytes());
        self.put(LEDGER, Key::request(cache, &digest), records::encode(record));
        self.put(LEDGER, Key::request_number(cache, record.number), digest.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Access, RequestResult};
    use super::*;
    use crate::types::ItemId;

    #[test]
    fn the_last_requests_are_remembered_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Access::Write).unwrap();
        let cache = CacheId(3);
        let record = |number: u64| RequestRecord {
            number,
            content: Fingerprint::of(&number.to_be_bytes()),
            results: vec![
                RequestResult::Stored(ItemId(number)),
                RequestResult::Refused { code: 3, reason: "BAD_MEDIA".into(), message: "no".into() },
            ],
        };
        for number in 1..=REQUEST_WINDOW + 2 {
            let mut batch = store.batch();
            batch.put_request(cache, &number.to_string(), &record(number)).unwrap();
            store.commit_unsynced(batch).unwrap();
        }
        let found = |number: u64| store.request(cache, &number.to_string()).unwrap();
        assert_eq!((found(1), found(2)), (None, None));
        assert_eq!(found(3), Some(record(3)));
        assert_eq!(found(REQUEST_WINDOW + 2), Some(record(REQUEST_WINDOW + 2)));
        assert_eq!(store.request(CacheId(4), "3").unwrap(), None);
        let entries = store.scan(LEDGER, &Key::items(cache), |_, _| Ok(())).unwrap().len();
        assert_eq!(entries as u64, 2 * REQUEST_WINDOW);
    }
}
