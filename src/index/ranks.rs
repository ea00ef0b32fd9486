//! Where a slot stands among those that reach a level.
//!
//! A bit a slot and a count a word: two reads, where a binary search over the level's slots has a miss for every doubling.

/// Places in an ascending list of slots.
#[derive(Debug)]
pub(super) struct Ranks {
    words: Vec<u64>,
    /// Listed slots before each word.
    before: Vec<u32>,
}

impl Ranks {
    /// * `slots`: ascending, each less than `n`.
    pub(super) fn of(n: usize, slots: &[u32]) -> Self {
        let mut words = vec![0u64; n.div_ceil(64)];
        slots.iter().for_each(|&slot| words[slot as usize / 64] |= 1 << (slot % 64));
        let before = words.iter().scan(0, |count, word| {
            *count += word.count_ones();
            Some(*count - word.count_ones())
        });
        Ranks { before: before.collect(), words }
    }

    /// The place of a slot, if it is listed.
    pub(super) fn place(&self, slot: u32) -> Option<usize> {
        let (at, bit) = (slot as usize / 64, 1u64 << (slot % 64));
        let word = *self.words.get(at)?;
        (word & bit != 0).then(|| (self.before[at] + (word & (bit - 1)).count_ones()) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_place_is_that_of_a_binary_search(slots in prop::collection::btree_set(0u32..500, 0..200)) {
            let slots: Vec<u32> = slots.into_iter().collect();
            let ranks = Ranks::of(500, &slots);
            for slot in 0..600 {
                prop_assert_eq!(ranks.place(slot), slots.binary_search(&slot).ok());
            }
        }
    }
}
