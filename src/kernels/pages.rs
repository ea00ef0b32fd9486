//! Memory of its own pages, huge ones where the system gives them: a search touches rows all over it, and with small pages most
//! of those would also miss the translation buffer.

use std::io;
use std::marker::PhantomData;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use memmap2::{MmapMut, MmapRaw};

/// Bytes of a page on every machine, or a share of one: what is shorter gets no advice.
#[cfg(target_os = "linux")]
const PAGE: usize = 4096;

/// What pages may hold.
pub trait Word: sealed::Sealed + Send + Sync {}

impl Word for u8 {}
impl Word for AtomicU32 {}

mod sealed {
    /// Of no more than a page's alignment, valid whatever its bytes are, and nothing to drop.
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for super::AtomicU32 {}
}

/// Words that begin on a page. Copies share them: bytes may be written while there is no copy, atomics at any time.
pub struct Pages<T> {
    /// Where the words begin. It stands here, and not behind `memory`, because a search comes by for every row.
    start: *mut u8,
    len: usize,
    memory: Arc<MmapRaw>,
    words: PhantomData<T>,
}

// SAFETY: the pointer is into `memory`, which may go from thread to thread and be shared, and so may the words (`Word`).
unsafe impl<T: Word> Send for Pages<T> {}
// SAFETY: as above; what is behind a shared reference is only read, but for atomics.
unsafe impl<T: Word> Sync for Pages<T> {}

impl<T> Clone for Pages<T> {
    fn clone(&self) -> Self {
        Pages { start: self.start, len: self.len, memory: self.memory.clone(), words: PhantomData }
    }
}

impl<T: Word> Pages<T> {
    /// `len` words of zeros.
    ///
    /// # Errors
    /// When the system has not that much to give.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let pages = MmapMut::map_anon(bytes.max(1))?;
        // A hint: without huge pages everything works, a little slower. What is shorter than one may lie in one with its neighbours.
        #[cfg(target_os = "linux")]
        if bytes >= PAGE {
            let _ = pages.advise(memmap2::Advice::HugePage);
        }
        let memory = Arc::new(MmapRaw::from(pages));
        Ok(Pages { start: memory.as_mut_ptr(), len, memory, words: PhantomData })
    }

    /// The words.
    #[inline(always)]
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `memory` has so many words from `start` on, aligned since they begin on a page, and whatever is in them is valid;
        // it lives as long as `self`. Bytes are written by `get_mut` alone, while nobody else holds them.
        unsafe { slice::from_raw_parts(self.start.cast::<T>(), self.len) }
    }

    /// The words, to be written; nothing while there is a copy.
    pub fn get_mut(&mut self) -> Option<&mut [T]> {
        Arc::get_mut(&mut self.memory)?;
        // SAFETY: as above; and since there is no copy, `self` alone leads here.
        Some(unsafe { slice::from_raw_parts_mut(self.start.cast::<T>(), self.len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn bytes_are_written_while_there_is_no_copy() {
        let mut bytes = Pages::<u8>::zeroed(5000).unwrap();
        assert_eq!(bytes.as_slice(), [0; 5000]);
        bytes.get_mut().unwrap()[4999] = 7;
        let copy = bytes.clone();
        assert!(bytes.get_mut().is_none());
        drop(bytes);
        assert_eq!((copy.as_slice()[4999], copy.as_slice().len()), (7, 5000));
        assert!(Pages::<u8>::zeroed(0).unwrap().as_slice().is_empty());
    }

    #[test]
    fn atomics_are_shared() {
        let words = Pages::<AtomicU32>::zeroed(1000).unwrap();
        let copy = words.clone();
        std::thread::scope(|scope| {
            scope.spawn(|| copy.as_slice()[999].store(9, Ordering::Relaxed));
        });
        assert_eq!(words.as_slice()[999].load(Ordering::Relaxed), 9);
        assert_eq!(words.as_slice().as_ptr() as usize % 64, 0);
        assert!(Pages::<AtomicU32>::zeroed(usize::MAX / 2).is_err());
    }
}
