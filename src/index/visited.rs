//! Marks of what a search has seen.
//!
//! One bit a slot, because the marks are read at random: at a million rows they take 125 kB and stay in a core's own
//! cache. A search clears what it has set, word by word, when the next one begins.

/// The marks of one searching thread.
#[derive(Debug, Default)]
pub(super) struct Visited {
    words: Vec<u64>,
    touched: Vec<u32>,
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
    }

    /// Whether a slot has been seen.
    pub(super) fn contains(&self, slot: u32) -> bool {
        self.words[slot as usize / 64] >> (slot % 64) & 1 == 1
    }

    /// Marks slots that have not been seen.
    pub(super) fn extend(&mut self, slots: &[u32]) {
        for &slot in slots {
            self.words[slot as usize / 64] |= 1 << (slot % 64);
        }
        self.touched.extend(slots.iter().map(|slot| slot / 64));
    }

    /// Marks a slot; true when it had not been seen.
    pub(super) fn insert(&mut self, slot: u32) -> bool {
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
