//! Numbers of any width become the `f32` of a row, or the reason why they cannot.
//!
//! All widths pass through f64, which holds every f16 and f32 exactly: a finite f32 comes out with the bits
//! it had, and there is one place where "finite and with a direction" is decided. A row that fails is set
//! aside with its reason; it does not stop an import of millions of others.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use viscache::media::npy::Element;

use super::error::Error;

/// Numbers in a faiss file.
pub(super) const LITTLE_F32: Element = Element { width: 4, big_endian: false };

/// Reads a row of `bytes.len() / width` numbers.
///
/// # Errors
/// The reason why the row is unusable, see [`usable`].
pub(super) fn decode(element: Element, bytes: &[u8]) -> Result<Vec<f32>, String> {
    usable(bytes.chunks_exact(element.width).map(|number| element.number(number)))
}

/// Takes a row over as f32 if it can be indexed.
///
/// # Errors
/// The reason, which names the first column (from 0) that is NaN, infinite or beyond f32, or says that all
/// are zero.
pub(super) fn usable(values: impl Iterator<Item = f64>) -> Result<Vec<f32>, String> {
    let mut row = Vec::with_capacity(values.size_hint().0);
    let mut zero = true;
    for (column, value) in values.enumerate() {
        let narrow = value as f32;
        if value.is_nan() {
            return Err(format!("value at column {column} is NaN"));
        } else if value.is_infinite() {
            return Err(format!("value at column {column} is infinite"));
        } else if narrow.is_infinite() {
            return Err(format!("value at column {column} is {value:e}, beyond the range of f32"));
        }
        zero &= narrow == 0.0;
        row.push(narrow);
    }
    if zero { Err("every value is zero: the row has no direction".to_owned()) } else { Ok(row) }
}

/// Cuts the rows `from..rows` into runs (first row, length) of at most `size`, which is at least 1.
pub(super) fn runs(from: u64, rows: u64, size: usize) -> impl Iterator<Item = (u64, usize)> {
    (from..rows).step_by(size).map(move |first| match usize::try_from(rows - first) {
        Ok(left) => (first, left.min(size)),
        Err(_) => (first, size),
    })
}

/// Fills `bytes` from a place in a file.
pub(super) fn read_at(file: &mut File, path: &Path, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(bytes))
        .map_err(|source| Error::unreadable(path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_row_without_use_says_where() {
        let reason = |row: &[f64]| usable(row.iter().copied()).expect_err("unusable");
        assert_eq!(reason(&[1.0, f64::NAN, f64::INFINITY]), "value at column 1 is NaN");
        assert_eq!(reason(&[1.0, 0.0, f64::NEG_INFINITY]), "value at column 2 is infinite");
        assert_eq!(reason(&[-1e39, f64::NAN]), "value at column 0 is -1e39, beyond the range of f32");
        assert_eq!(reason(&[0.0, -0.0, 1e-300]), "every value is zero: the row has no direction");
    }

    #[test]
    fn runs_cover_every_row_once() {
        assert_eq!(runs(3, 10, 4).collect::<Vec<_>>(), [(3, 4), (7, 3)]);
        assert_eq!(runs(10, 10, 4).count() + runs(11, 10, 4).count(), 0);
        assert_eq!(runs(0, 2, usize::MAX).collect::<Vec<_>>(), [(0, 2)]);
    }

    proptest! {
        #[test]
        fn finite_f32_keep_their_bits(row in prop::collection::vec(prop::num::f32::ANY, 1..20)) {
            let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_be_bytes()).collect();
            match decode(Element { width: 4, big_endian: true }, &bytes) {
                Ok(read) => prop_assert!(read.iter().map(|v| v.to_bits()).eq(row.iter().map(|v| v.to_bits()))),
                Err(_) => prop_assert!(row.iter().any(|v| !v.is_finite()) || row.iter().all(|v| *v == 0.0)),
            }
        }
    }
}
