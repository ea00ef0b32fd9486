//! Marks of what a search has seen, without clearing them between searches.
//!
//! A slot is seen when its mark equals the current search's number. Only when the number wraps, once in 65 535
//! searches, are the marks cleared.

/// The marks of one searching thread.
#[derive(Debug, Default)]
pub(super) struct Visited {
    marks: Vec<u16>,
    current: u16,
}

impl Visited {
    /// Forgets everything and makes room for slots `0..n`.
    pub(super) fn begin(&mut self, n: usize) {
        if self.marks.len() < n {
            self.marks.resize(n, 0);
        }
        self.current = match self.current.checked_add(1) {
            Some(next) => next,
            None => {
                self.marks.fill(0);
                1
            }
        };
    }

    /// Marks a slot; true when it had not been seen.
    pub(super) fn insert(&mut self, slot: u32) -> bool {
        let mark = &mut self.marks[slot as usize];
        let new = *mark != self.current;
        *mark = self.current;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_do_not_survive_a_search_nor_the_wrap() {
        let mut visited = Visited::default();
        for search in 0..70_000u32 {
            visited.begin(4);
            let slot = search % 4;
            assert!(visited.insert(slot), "search {search}");
            assert!(!visited.insert(slot));
        }
    }
}
