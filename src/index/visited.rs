//! Marks of what a search has seen.
//!
//! One bit a slot, because the marks are read at random: at a million rows they take 125 kB and stay in a core's own
//! cache. A search clears what it has set, word by word, when the next one begins.

/// The marks of one searching thread.
#[derive(Debug, Default)]
pub(super) struct Visited {
    words: Vec<u64>,
    touched: Vec<u32>,
    /// Slots from here on are none: they count as seen.
    end: u32,
}

impl Visited {
    /// Forgets everything and makes room for slots `0..n`.
    pub(super) fn begin(&mut self, n: usize) {
        for word in self.touched.drain(..) {
            self.words[word as usize] = 0;
        }
        if self.words.len() < n.div_ceil(64) {
            self.words.resize(n.div_ceil(64), 0);
        }
        self.end = n as u32;
    }

    /// Whether a slot has been seen, or is none.
    #[inline]
    pub(super) fn contains(&self, slot: u32) -> bool {
        let word = self.words.get(slot as usize / 64).copied().unwrap_or(u64::MAX);
        (word >> (slot % 64) & 1 == 1) | (slot >= self.end)
    }

    /// Marks slots, and leaves those that had not been seen, each once.
    ///
    /// * `slots`: below the end.
    pub(super) fn admit(&mut self, slots: &mut Vec<u32>) {
        let mut count = 0;
        for at in 0..slots.len() {
            let slot = slots[at];
            let word = &mut self.words[slot as usize / 64];
            let bit = 1 << (slot % 64);
            slots[count] = slot;
            count += usize::from(*word & bit == 0);
            *word |= bit;
        }
        slots.truncate(count);
        self.touched.extend(slots.iter().map(|slot| slot / 64));
    }

    /// Marks a slot; true when it had not been seen.
    pub(super) fn insert(&mut self, slot: u32) -> bool {
        if slot >= self.end {
            return false;
        }
        let (at, bit) = (slot / 64, 1u64 << (slot % 64));
        let word = &mut self.words[at as usize];
        let new = *word & bit == 0;
        if new {
            // Most words get a single mark; a word listed twice is only cleared twice.
            *word |= bit;
            self.touched.push(at);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_slot_counts_as_seen_and_what_is_named_twice_comes_once() {
        let mut visited = Visited::default();
        visited.begin(500);
        visited.begin(100);
        assert!([100, 499, u32::MAX].into_iter().all(|slot| visited.contains(slot) && !visited.insert(slot)));
        let mut slots = vec![7, 99, 7, 3];
        visited.insert(3);
        visited.admit(&mut slots);
        assert_eq!(slots, [7, 99]);
        assert!(visited.contains(7) && !visited.contains(8));
    }

    #[test]
    fn marks_do_not_survive_a_search() {
        let mut visited = Visited::default();
        for search in 0..1000u32 {
            visited.begin(200);
            for slot in [search % 200, (search + 64) % 200] {
                assert!(visited.insert(slot), "search {search}");
                assert!(!visited.insert(slot));
            }
        }
    }
}
