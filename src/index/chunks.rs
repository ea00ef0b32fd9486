//! Rows of bytes in chunks of slots, which the versions of an index share.
//!
//! ```text
//! slot ─► chunk slot / 4096 ─► row slot % 4096          version 1   [a][b][c]
//!                                                       version 2   [a][d][c]    some rows of the second are others
//! ```
//!
//! A version that is being read never changes. Who makes the next one writes into chunks that nobody else holds, and copies the
//! others first: so a change costs its chunk, whatever the index holds.

use super::Error;
use super::bytes::pages;
use crate::kernels::{Pages, Table};

/// Slots of a chunk: at 4 bits and 1024 components its codes are one huge page.
pub const CHUNK: usize = 1 << SHIFT;
const SHIFT: u32 = 12;

/// Rows of one length, by slot. Copies are cheap and share all chunks.
#[derive(Clone)]
pub struct Chunks {
    chunks: Vec<Pages<u8>>,
    stride: usize,
    len: usize,
}

impl Chunks {
    /// Rows of zeros.
    ///
    /// * `stride`: bytes of a row.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn zeroed(len: usize, stride: usize) -> Result<Self, Error> {
        let lens = (0..len).step_by(CHUNK).map(|first| (len - first).min(CHUNK));
        let chunks = lens.map(|rows| pages(rows * stride)).collect::<Result<_, _>>()?;
        Ok(Chunks { chunks, stride, len })
    }

    /// Rows one behind the other.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn copy_of(bytes: &[u8], stride: usize) -> Result<Self, Error> {
        let mut rows = Chunks::zeroed(bytes.len() / stride.max(1), stride)?;
        rows.fill(0, bytes)?;
        Ok(rows)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Rows that there can be without more memory.
    pub fn capacity(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.as_slice().len()).sum::<usize>() / self.stride.max(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of a row.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The row of a slot.
    #[inline(always)]
    pub fn row(&self, slot: u32) -> &[u8] {
        self.part(slot, self.stride)
    }

    #[inline(always)]
    fn part(&self, slot: u32, len: usize) -> &[u8] {
        &self.chunks[(slot >> SHIFT) as usize].as_slice()[(slot as usize % CHUNK) * len..][..len]
    }

    /// The rows, up to so many at a time, none of which leave a chunk: the first one's slot, and their bytes.
    pub fn blocks(&self, most: usize) -> impl Iterator<Item = (u32, &[u8])> {
        self.chunks.iter().enumerate().flat_map(move |(at, chunk)| {
            let (first, stride) = (at * CHUNK, self.stride);
            let here = (self.len - first).min(CHUNK) * stride;
            let blocks = chunk.as_slice()[..here].chunks(most.min(CHUNK) * stride).enumerate();
            blocks.map(move |(i, rows)| ((first + i * most.min(CHUNK)) as u32, rows))
        })
    }

    /// Some consecutive rows of one chunk.
    pub fn run(&self, slots: std::ops::Range<usize>) -> &[u8] {
        let (chunk, first) = (slots.start / CHUNK, slots.start % CHUNK);
        &self.chunks[chunk].as_slice()[first * self.stride..][..slots.len() * self.stride]
    }

    /// The chunks to be filled by as many threads: each with the slot of its first row. Only while nobody else holds any of them.
    pub fn parts_mut(&mut self) -> impl Iterator<Item = (u32, &mut [u8])> {
        let parts = self.chunks.iter_mut().enumerate();
        parts.filter_map(|(at, chunk)| Some(((at * CHUNK) as u32, chunk.get_mut()?)))
    }

    /// Writes bytes as if all rows lay one behind the other.
    ///
    /// * `at`: the first byte's place.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn fill(&mut self, mut at: usize, mut bytes: &[u8]) -> Result<(), Error> {
        let chunk_len = CHUNK * self.stride;
        while !bytes.is_empty() {
            let (chunk, from) = (at / chunk_len, at % chunk_len);
            let into = &mut own(&mut self.chunks[chunk])?[from..];
            let (here, rest) = bytes.split_at(into.len().min(bytes.len()));
            into[..here.len()].copy_from_slice(here);
            (at, bytes) = (at + here.len(), rest);
        }
        Ok(())
    }

    /// Puts a row into the place of another.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn set(&mut self, slot: u32, row: &[u8]) -> Result<(), Error> {
        self.fill(slot as usize * self.stride, row)
    }

    /// Adds rows of zeros.
    ///
    /// * `len`: how many there are to be.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn grow(&mut self, len: usize) -> Result<(), Error> {
        let whole = CHUNK * self.stride;
        // The last chunk gets all the places that it can have: more rows will follow these.
        if let Some(last) = self.chunks.last_mut()
            && len > self.len
            && last.as_slice().len() < whole
        {
            *last = longer(last, whole)?;
        }
        while self.chunks.len() * CHUNK < len {
            self.chunks.push(pages(whole)?);
        }
        self.len = self.len.max(len);
        Ok(())
    }

    /// Bytes of memory that it holds, shared or not.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.as_slice().len() as u64).sum()
    }
}

/// A copy of a chunk with room for more.
fn longer(chunk: &Pages<u8>, len: usize) -> Result<Pages<u8>, Error> {
    let (mut copy, bytes) = (pages(len)?, chunk.as_slice());
    copy.get_mut().expect("it was made just now")[..bytes.len()].copy_from_slice(bytes);
    Ok(copy)
}

/// The bytes of a chunk to be written, in a copy if somebody else holds it.
fn own(chunk: &mut Pages<u8>) -> Result<&mut [u8], Error> {
    if chunk.get_mut().is_none() {
        *chunk = longer(chunk, chunk.as_slice().len())?;
    }
    Ok(chunk.get_mut().expect("nobody else holds it"))
}

impl Table<u8> for &Chunks {
    #[inline(always)]
    fn row(&self, slot: u32, len: usize) -> &[u8] {
        self.part(slot, len)
    }
}

/// The rows of a table of bytes as numbers.
#[derive(Clone, Copy)]
pub struct Numbers<R>(pub R);

impl<T: bytemuck::AnyBitPattern, R: Table<u8>> Table<T> for Numbers<R> {
    #[inline(always)]
    fn row(&self, slot: u32, len: usize) -> &[T] {
        bytemuck::cast_slice(self.0.row(slot, len * size_of::<T>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Row `slot` of a table that is told from others by `salt`.
    fn row(slot: u32, salt: u8) -> [u8; 3] {
        [slot as u8, (slot >> 8) as u8, salt]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_version_stays_as_it_was(
            len in prop_oneof![0usize..10, CHUNK - 2..CHUNK + 3, 2 * CHUNK..2 * CHUNK + 5],
            grown in 0usize..CHUNK + 9,
            written in prop::collection::vec(0usize..3 * CHUNK, 0..20),
        ) {
            let bytes: Vec<u8> = (0..len as u32).flat_map(|slot| row(slot, 0)).collect();
            let old = Chunks::copy_of(&bytes, 3).unwrap();
            let mut new = old.clone();
            new.grow(len + grown).unwrap();
            prop_assert_eq!(new.len(), len + grown);
            let written: Vec<u32> =
                written.into_iter().filter(|&slot| slot < len + grown).map(|slot| slot as u32).collect();
            for &slot in &written {
                new.set(slot, &row(slot, 7)).unwrap();
            }
            for slot in 0..(len + grown) as u32 {
                let expected = match (written.contains(&slot), (slot as usize) < len) {
                    (true, _) => row(slot, 7),
                    (false, true) => row(slot, 0),
                    (false, false) => [0; 3],
                };
                prop_assert_eq!(new.row(slot), &expected);
                if (slot as usize) < len {
                    prop_assert_eq!(old.row(slot), &row(slot, 0));
                }
            }
            let again: Vec<u8> = old.blocks(1000).flat_map(|(_, rows)| rows).copied().collect();
            prop_assert_eq!(again, bytes);
            for (first, rows) in new.blocks(700) {
                prop_assert_eq!(&rows[..3], new.row(first));
                prop_assert_eq!(new.run(first as usize..first as usize + rows.len() / 3), rows);
            }
        }
    }

    #[test]
    fn what_nobody_else_holds_is_written_in_place() {
        let mut rows = Chunks::zeroed(3 * CHUNK, 8).unwrap();
        let place = rows.row(CHUNK as u32).as_ptr();
        rows.set(CHUNK as u32, &[1; 8]).unwrap();
        assert_eq!(rows.row(CHUNK as u32).as_ptr(), place);
        let held = rows.clone();
        rows.set(CHUNK as u32, &[2; 8]).unwrap();
        assert_ne!(rows.row(CHUNK as u32).as_ptr(), place);
        assert_eq!(rows.row(0).as_ptr(), held.row(0).as_ptr(), "other chunks are shared");
        assert_eq!(Table::<u64>::row(&Numbers(&held), CHUNK as u32, 1), [0x0101_0101_0101_0101]);
    }
}
