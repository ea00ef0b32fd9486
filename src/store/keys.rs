//! Order-preserving keys: one constructor per kind, big-endian numbers, so that one prefix scan is one kind.
//!
//! ```text
//! meta     'f'                         layout version
//!          'c' name                    cache record
//!          'g' cache₄ generation₈      generation record
//! items    cache₄ item₈
//! vectors  cache₄ item₈
//! blobs    cache₄ generation₈ kind₁ part₄
//! ledger   cache₄ 'u' digest₃₂         unit, by the digest of its uri
//!          cache₄ 'd' digest₃₂         content digest → item
//! changes  cache₄ sequence₈            what was upserted or deleted, in order
//! ```
//!
//! These bytes are on disk: a change needs a new layout version.

use serde::{Deserialize, Serialize};

use super::BlobKind;
use crate::types::{CacheName, Fingerprint, Generation, ItemId};

/// A cache's number inside its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CacheId(pub u32);

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
