//! Bytes that begin on a page, large ones where the system gives them.

use super::Error;
use crate::kernels::Pages;

/// A byte buffer of its own pages.
pub struct AlignedBytes(Pages<u8>);

impl AlignedBytes {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// [`Error::Memory`] when the system has not that much to give.
    pub fn zeroed(len: usize) -> Result<Self, Error> {
        Ok(AlignedBytes(pages(len)?))
    }

    /// A copy that begins on a page.
    ///
    /// # Errors
    /// As [`AlignedBytes::zeroed`].
    pub fn copy_of(bytes: &[u8]) -> Result<Self, Error> {
        let mut aligned = AlignedBytes::zeroed(bytes.len())?;
        aligned.as_mut_slice().copy_from_slice(bytes);
        Ok(aligned)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// The bytes, to be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.0.get_mut().expect("it is never copied")
    }
}

/// Pages of `len` words of zeros.
///
/// # Errors
/// [`Error::Memory`] when the system has not that much to give.
pub(super) fn pages<T: crate::kernels::Word>(len: usize) -> Result<Pages<T>, Error> {
    Pages::zeroed(len).map_err(|source| Error::Memory { len: len.saturating_mul(size_of::<T>()), source })
}
