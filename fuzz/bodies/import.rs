//! Whatever a file holds, an import of it is refused or read to its end: no panic.

use std::path::Path;

use crate::import::{Options, open};

/// As an array of numpy.
pub fn npy(data: &[u8]) {
    drop(read(&[("x.npy", data)]));
}

/// As an index of faiss: what is neither numpy nor parquet.
pub fn faiss(data: &[u8]) {
    drop(read(&[("x.index", data)]));
}

/// As a table with vectors.
pub fn parquet(data: &[u8]) {
    drop(read(&[("x.parquet", data)]));
}

/// As metadata of three vectors.
///
/// * `data`: which form 1 byte, then the file.
pub fn metadata(data: &[u8]) {
    const HEADER: &str = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 1), }";
    let Some((&form, text)) = data.split_first() else { return };
    let mut vectors =
        [b"\x93NUMPY\x01\0", &(HEADER.len() as u16).to_le_bytes()[..], HEADER.as_bytes()].concat();
    vectors.extend([1.0f32, 2.0, 3.0].map(f32::to_le_bytes).concat());
    let name = ["x.jsonl", "x.tsv", "x.parquet"][usize::from(form) % 3];
    drop(read(&[("x.npy", &vectors), (name, text)]));
}

/// Imports the first of some files, beside which the others lie.
///
/// * Returns how many rows were read, usable or not, or what was said against it.
pub fn read(files: &[(&str, &[u8])]) -> Result<u64, String> {
    let folder = tempfile::tempdir().expect("a folder for a test");
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).expect("a file for a test");
    }
    rows(&folder.path().join(files[0].0)).map_err(|error| error.to_string())
}

fn rows(path: &Path) -> Result<u64, crate::import::Error> {
    let import = open(&[path.to_owned()], &Options::default())?;
    let mut next = 0;
    for chunk in import.chunks(3, 0) {
        let chunk = chunk?;
        assert_eq!(chunk.first, next);
        assert!(chunk.rows.iter().all(|row| row.values.len() == import.dim));
        assert!(chunk.rows.iter().flat_map(|row| &row.values).all(|value| value.is_finite()));
        next += (chunk.rows.len() + chunk.bad.len()) as u64;
    }
    assert_eq!(next, import.rows);
    Ok(next)
}
