//! Order-preserving keys: one constructor per kind, big-endian numbers, so that one prefix scan is one kind.
//!
//! ```text
//! meta     'f'                         layout version
//!          'c' name                    cache record
//!          'a' name                    alias → cache
//!          'n'                         the number that the next cache gets
//!          'x' cache₄                  a cache whose record is gone and whose contents are to go
//!          'g' cache₄ generation₈      generation record
//! items    cache₄ item₈
//! vectors  cache₄ item₈
//! blobs    cache₄ generation₈ kind₁ part₄
//! ledger   cache₄ 'u' digest₃₂         unit, by the digest of its uri
//!          cache₄ 'd' digest₃₂         content digest → item
//!          cache₄ 'i' digest₁₆ item₈   an item, by the digest of its uri
//!          cache₄ 'r' digest₃₂         what a request was answered, by the digest of its id
//!          cache₄ 'q' number₈          which request that was, in the order they came
//! changes  cache₄ sequence₈            what was upserted or deleted, in order
//! ```
//!
//! These bytes are on disk: a change needs a new layout version.

use serde::{Deserialize, Serialize};

use crate::types::{CacheName, Fingerprint, Generation, ItemId};

/// A cache's number inside its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CacheId(pub u32);

/// What a blob is. The numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum BlobKind {
    /// The frozen index.
    Index = 1,
    /// Which slots have which tag.
    Tags = 2,
    /// The sample of queries that the graph was repaired for.
    Queries = 3,
}

/// Bytes of a uri's digest in a key. Whoever looks one up asks the item itself, so two of the same digest do no harm.
const URI_LEN: usize = 16;

/// Constructors of keys and prefixes.
pub(super) struct Key;

impl Key {
    pub(super) fn format() -> Vec<u8> {
        b"f".to_vec()
    }

    pub(super) fn caches() -> Vec<u8> {
        b"c".to_vec()
    }

    pub(super) fn cache(name: &CacheName) -> Vec<u8> {
        [b"c", name.as_str().as_bytes()].concat()
    }

    pub(super) fn alias(name: &CacheName) -> Vec<u8> {
        [b"a", name.as_str().as_bytes()].concat()
    }

    pub(super) fn aliases() -> Vec<u8> {
        b"a".to_vec()
    }

    pub(super) fn next_cache() -> Vec<u8> {
        b"n".to_vec()
    }

    pub(super) fn leaving(cache: CacheId) -> Vec<u8> {
        [&b"x"[..], &cache.0.to_be_bytes()].concat()
    }

    pub(super) fn all_leaving() -> Vec<u8> {
        b"x".to_vec()
    }

    pub(super) fn generations(cache: CacheId) -> Vec<u8> {
        [&b"g"[..], &cache.0.to_be_bytes()].concat()
    }

    pub(super) fn generation(cache: CacheId, generation: Generation) -> Vec<u8> {
        [&Key::generations(cache)[..], &generation.0.to_be_bytes()].concat()
    }

    /// Prefix of everything in `items`, `vectors`, `blobs`, `ledger` and `changes` that belongs to a cache.
    pub(super) fn items(cache: CacheId) -> Vec<u8> {
        cache.0.to_be_bytes().to_vec()
    }

    pub(super) fn item(cache: CacheId, id: ItemId) -> Vec<u8> {
        [&cache.0.to_be_bytes()[..], &id.0.to_be_bytes()].concat()
    }

    pub(super) fn blobs(cache: CacheId, generation: Generation) -> Vec<u8> {
        [&cache.0.to_be_bytes()[..], &generation.0.to_be_bytes()].concat()
    }

    pub(super) fn blob_part(cache: CacheId, generation: Generation, kind: BlobKind, part: u32) -> Vec<u8> {
        [&Key::blobs(cache, generation)[..], &[kind as u8], &part.to_be_bytes()].concat()
    }

    pub(super) fn units(cache: CacheId) -> Vec<u8> {
        [&cache.0.to_be_bytes()[..], b"u"].concat()
    }

    pub(super) fn unit(cache: CacheId, uri: &str) -> Vec<u8> {
        [&Key::units(cache)[..], Fingerprint::of(uri.as_bytes()).as_bytes()].concat()
    }

    pub(super) fn digest(cache: CacheId, digest: &Fingerprint) -> Vec<u8> {
        [&cache.0.to_be_bytes()[..], b"d", digest.as_bytes()].concat()
    }

    /// Prefix of the items that have a uri, and perhaps of others whose uri has the same digest.
    pub(super) fn uri(cache: CacheId, uri: &str) -> Vec<u8> {
        let digest = Fingerprint::of(uri.as_bytes());
        [&cache.0.to_be_bytes()[..], b"i", &digest.as_bytes()[..URI_LEN]].concat()
    }

    pub(super) fn uri_of(cache: CacheId, uri: &str, id: ItemId) -> Vec<u8> {
        [&Key::uri(cache, uri)[..], &id.0.to_be_bytes()].concat()
    }

    pub(super) fn request(cache: CacheId, digest: &Fingerprint) -> Vec<u8> {
        [&cache.0.to_be_bytes()[..], b"r", digest.as_bytes()].concat()
    }

    pub(super) fn request_number(cache: CacheId, number: u64) -> Vec<u8> {
        [&cache.0.to_be_bytes()[..], b"q", &number.to_be_bytes()].concat()
    }

    pub(super) fn change(cache: CacheId, sequence: u64) -> Vec<u8> {
        [&cache.0.to_be_bytes()[..], &sequence.to_be_bytes()].concat()
    }

    /// The first key after all that begin with `prefix`.
    pub(super) fn after_prefix(prefix: &[u8]) -> Vec<u8> {
        let mut end = prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return end;
            }
        }
        // Nothing comes after a prefix of 0xff: no kind of key is that long in such bytes.
        vec![u8::MAX; prefix.len() + 64]
    }
}

/// The item of a key of `items` or `vectors`.
pub(super) fn item_of(key: &[u8]) -> Option<ItemId> {
    number_of(key).map(ItemId)
}

/// The item of a key of [`Key::uri_of`].
pub(super) fn item_of_uri(key: &[u8]) -> Option<ItemId> {
    Some(ItemId(u64::from_be_bytes(<[u8; 8]>::try_from(key.get(5 + URI_LEN..)?).ok()?)))
}

/// The cache of a key of [`Key::leaving`].
pub(super) fn cache_of_leaving(key: &[u8]) -> Option<CacheId> {
    Some(CacheId(u32::from_be_bytes(<[u8; 4]>::try_from(key.get(1..)?).ok()?)))
}

/// The number behind the cache in a key of `items`, `vectors` or `changes`.
pub(super) fn number_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(<[u8; 8]>::try_from(key.get(4..)?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_on_disk() {
        let (cache, generation) = (CacheId(1), Generation(2));
        assert_eq!(Key::item(cache, ItemId(3)), [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3]);
        let part = Key::blob_part(cache, generation, BlobKind::Index, 7);
        assert_eq!(part, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 7]);
        assert_eq!(Key::generation(cache, generation), [b'g', 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(Key::unit(cache, "a").len(), 37);
        assert_eq!(Key::leaving(cache), [b'x', 0, 0, 0, 1]);
        assert_eq!(cache_of_leaving(&Key::leaving(cache)), Some(cache));
        assert_eq!(Key::request_number(cache, 9), [0, 0, 0, 1, b'q', 0, 0, 0, 0, 0, 0, 0, 9]);
        let key = Key::uri_of(cache, "a", ItemId(3));
        assert_eq!((key.len(), item_of_uri(&key)), (29, Some(ItemId(3))));
        assert!(key.starts_with(&Key::uri(cache, "a")));
    }

    proptest! {
        #[test]
        fn item_keys_order_like_items_and_give_them_back(cache in any::<u32>(), a in any::<u64>(), b in any::<u64>()) {
            let (ka, kb) = (Key::item(CacheId(cache), ItemId(a)), Key::item(CacheId(cache), ItemId(b)));
            prop_assert_eq!(ka.cmp(&kb), a.cmp(&b));
            prop_assert_eq!(item_of(&ka), Some(ItemId(a)));
        }

        #[test]
        fn after_prefix_is_after_every_extension(
            prefix in prop::collection::vec(any::<u8>(), 1..6), tail in prop::collection::vec(any::<u8>(), 0..40)
        ) {
            let key = [&prefix[..], &tail].concat();
            prop_assert!(key < Key::after_prefix(&prefix));
        }
    }
}
