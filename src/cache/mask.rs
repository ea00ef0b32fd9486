//! A set of positions that is cheap to copy: copies share every chunk that neither has touched since.

use std::sync::Arc;

use roaring::RoaringBitmap;

/// Words of a chunk: 4096 positions in 512 bytes.
const WORDS: usize = 64;

/// A set of positions.
#[derive(Debug, Clone, Default)]
pub(super) struct Mask {
    chunks: Vec<Arc<[u64; WORDS]>>,
    count: usize,
}

impl Mask {
    /// Whether a position is in the set.
    pub(super) fn contains(&self, position: u32) -> bool {
        let (chunk, word, bit) = place(position);
        self.chunks.get(chunk).is_some_and(|chunk| chunk[word] & bit != 0)
    }

    /// Puts a position into the set.
    pub(super) fn insert(&mut self, position: u32) {
        let (chunk, word, bit) = place(position);
        if self.chunks.len() <= chunk {
            self.chunks.resize(chunk + 1, Arc::new([0; WORDS]));
        }
        let word = &mut Arc::make_mut(&mut self.chunks[chunk])[word];
        self.count += usize::from(*word & bit == 0);
        *word |= bit;
    }

    /// Takes a position out of the set.
    pub(super) fn remove(&mut self, position: u32) {
        if self.contains(position) {
            let (chunk, word, bit) = place(position);
            Arc::make_mut(&mut self.chunks[chunk])[word] &= !bit;
            self.count -= 1;
        }
    }

    /// The set as a bitmap.
    pub(super) fn bitmap(&self) -> RoaringBitmap {
        let bytes = self.chunks.iter().flat_map(|chunk| chunk.iter()).flat_map(|word| word.to_le_bytes());
        RoaringBitmap::from_lsb0_bytes(0, &bytes.collect::<Vec<u8>>())
    }

    /// Positions in the set.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

fn place(position: u32) -> (usize, usize, u64) {
    let at = position as usize;
    (at / (WORDS * 64), at / 64 % WORDS, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mask_is_a_set_and_its_copies_stay_as_they_were(
            first in prop::collection::vec(0u32..20_000, 0..200),
            then in prop::collection::vec(0u32..20_000, 0..200),
            gone in prop::collection::vec(0u32..20_000, 0..2000),
        ) {
            let mut mask = Mask::default();
            first.iter().for_each(|&p| mask.insert(p));
            let copy = mask.clone();
            then.iter().for_each(|&p| mask.insert(p));
            gone.iter().for_each(|&p| mask.remove(p));
            let (before, mut after): (BTreeSet<u32>, BTreeSet<u32>) =
                (first.iter().copied().collect(), first.iter().chain(&then).copied().collect());
            gone.iter().for_each(|p| _ = after.remove(p));
            prop_assert_eq!((copy.len(), mask.len()), (before.len(), after.len()));
            prop_assert!(mask.bitmap().iter().eq(after.iter().copied()));
            for position in 0..20_100 {
                prop_assert_eq!(copy.contains(position), before.contains(&position));
                prop_assert_eq!(mask.contains(position), after.contains(&position));
            }
        }
    }
}
