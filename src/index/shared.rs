//! Links of level 0 that are read while they are written.
//!
//! A row is `[degree, link, link, …]`, a whole number of cache lines. All versions of an index share the rows, and one thread may
//! write them: a link is only a hint where to look next. A reader may meet a row half-way between two states. What it then sees
//! are links that stood or will stand there, one of them perhaps twice; where one leads to a slot that its version does not have,
//! or has no item in, it passes on.

use std::sync::atomic::{AtomicU32, Ordering};

use super::Error;
use super::bytes::pages;
use super::chunks::CHUNK;
use crate::kernels::{self, Pages};

/// Rows of links, by slot. Copies share them.
#[derive(Clone)]
pub(super) struct LinkRows {
    chunks: Vec<Pages<AtomicU32>>,
    row_len: usize,
}

impl LinkRows {
    /// Rows without links.
    ///
    /// * `row_len`: words of a row, a multiple of 16.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub(super) fn new(len: usize, row_len: usize) -> Result<Self, Error> {
        let mut rows = LinkRows { chunks: Vec::new(), row_len };
        rows.extend(len)?;
        Ok(rows)
    }

    /// Makes rows without links, up to the one before slot `len`. Where the last chunk is short, its rows are shared no more.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub(super) fn grow(&mut self, len: usize) -> Result<(), Error> {
        let before = self.chunks.len().saturating_sub(1) * CHUNK;
        if let Some(last) = self.chunks.last_mut()
            && len > before + last.as_slice().len() / self.row_len
            && last.as_slice().len() < CHUNK * self.row_len
        {
            // Rows that are shared cannot be moved: a copy gets all the places that a chunk has.
            let whole: Pages<AtomicU32> = pages(CHUNK * self.row_len)?;
            for (place, word) in whole.as_slice().iter().zip(last.as_slice()) {
                place.store(read(word), Ordering::Relaxed);
            }
            *last = whole;
        }
        self.extend(len.next_multiple_of(CHUNK))
    }

    fn extend(&mut self, len: usize) -> Result<(), Error> {
        let had = self.chunks.len() * CHUNK;
        for first in (had..len).step_by(CHUNK) {
            self.chunks.push(pages((len - first).min(CHUNK) * self.row_len)?);
        }
        Ok(())
    }

    /// Words of a row.
    pub(super) fn row_len(&self) -> usize {
        self.row_len
    }

    #[inline(always)]
    fn row(&self, slot: u32) -> &[AtomicU32] {
        let chunk = self.chunks[slot as usize / CHUNK].as_slice();
        &chunk[slot as usize % CHUNK * self.row_len..][..self.row_len]
    }

    /// Visits the links of a slot.
    #[inline]
    pub(super) fn each(&self, slot: u32, mut visit: impl FnMut(u32)) {
        if let Some((degree, links)) = self.row(slot).split_first() {
            let degree = (read(degree) as usize).min(links.len());
            links[..degree].iter().for_each(|link| visit(read(link)));
        }
    }

    /// Links of a slot.
    pub(super) fn degree(&self, slot: u32) -> usize {
        self.stored_degree(slot).min(self.row_len - 1)
    }

    /// What a row says of its length, whether it has so many places or not.
    pub(super) fn stored_degree(&self, slot: u32) -> usize {
        read(&self.row(slot)[0]) as usize
    }

    /// Writes the links of a slot; those beyond the row's places are left out.
    pub(super) fn set(&self, slot: u32, links: &[u32]) {
        let row = self.row(slot);
        let links = &links[..links.len().min(self.row_len - 1)];
        for (word, &link) in row[1..].iter().zip(links) {
            word.store(link, Ordering::Relaxed);
        }
        row[0].store(links.len() as u32, Ordering::Relaxed);
    }

    /// Adds a link if the row has a place left.
    pub(super) fn push(&self, slot: u32, to: u32) -> bool {
        let (row, degree) = (self.row(slot), self.degree(slot));
        let Some(place) = row.get(degree + 1) else { return false };
        place.store(to, Ordering::Relaxed);
        row[0].store(degree as u32 + 1, Ordering::Relaxed);
        true
    }

    /// Fetches what [`LinkRows::each`] will read.
    pub(super) fn fetch(&self, slot: u32) {
        kernels::prefetch(self.row(slot));
    }

    /// Fills words as if all rows lay one behind the other.
    ///
    /// * `at`: the first word's place.
    pub(super) fn fill(&mut self, mut at: usize, words: &[u8]) {
        let mut words =
            words.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        let chunk_len = CHUNK * self.row_len;
        while words.len() > 0 {
            let (places, before) = (&self.chunks[at / chunk_len].as_slice()[at % chunk_len..], words.len());
            places.iter().zip(words.by_ref()).for_each(|(place, word)| place.store(word, Ordering::Relaxed));
            at += before - words.len();
        }
    }

    /// Bytes of memory that they take.
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| size_of_val(chunk.as_slice()) as u64).sum()
    }
}

#[inline(always)]
fn read(word: &AtomicU32) -> u32 {
    word.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn links(rows: &LinkRows, slot: u32) -> Vec<u32> {
        let mut links = Vec::new();
        rows.each(slot, |to| links.push(to));
        links
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn rows_hold_what_was_written(
            lists in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..47), 1..40), more in any::<u32>()
        ) {
            let mut rows = LinkRows::new(lists.len(), 48).unwrap();
            let mut bytes = Vec::new();
            for list in &lists {
                let row = std::iter::once(list.len() as u32).chain(list.iter().copied());
                bytes.extend(row.chain(std::iter::repeat(0)).take(48).flat_map(u32::to_le_bytes));
            }
            // In two parts that meet inside a row.
            let (first, second) = bytes.split_at(bytes.len() / 8 * 4);
            rows.fill(0, first);
            rows.fill(first.len() / 4, second);
            let mut whole = rows.clone();
            whole.grow(lists.len()).unwrap();
            prop_assert_eq!(whole.bytes(), rows.bytes(), "nothing is to be made");
            whole.grow(CHUNK + 1).unwrap();
            for (slot, list) in lists.iter().enumerate() {
                let slot = slot as u32;
                prop_assert_eq!(&links(&rows, slot), list);
                prop_assert_eq!(rows.degree(slot), list.len());
                prop_assert_eq!(whole.push(slot, more), list.len() < 47);
                let longer: Vec<u32> = list.iter().copied().chain([more]).take(47).collect();
                prop_assert_eq!(&links(&whole, slot), &longer);
                prop_assert_eq!(&links(&rows, slot), list, "a copy of the last chunk has rows of its own");
                let shared = whole.clone();
                whole.set(slot, &longer[..longer.len() / 2]);
                prop_assert_eq!(&links(&shared, slot), &longer[..longer.len() / 2]);
            }
            prop_assert_eq!(links(&whole, CHUNK as u32), Vec::<u32>::new());
        }
    }
}
