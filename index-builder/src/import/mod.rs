//! Reads embeddings people already have, so that a cache can be built without running an encoder.
//!
//! Such collections come as a pile of files of one dimension: arrays from numpy, parquet from a data
//! pipeline, an index from faiss. Whatever they are, the builder sees one numbered sequence of rows, in
//! chunks:
//!
//! ```text
//!  a.npy      rows 0..n ─┐                        ┌─ a.jsonl, a.tsv or a.parquet
//!  b.parquet  rows 0..m ─┼─ [Raw] ── join by row ─┤  metadata_0.parquet for img_emb_0.npy
//!  c.index    rows 0..k ─┘               │        └─ or one file for all of it, named by option
//!                                        ▼
//!          Chunk { first, rows: [Row { values, id, uri, tags }], bad: [BadRow { reason }] }
//!          global row number = rows of the files before + row in its file
//! ```
//!
//! | file | content |
//! |---|---|
//! | `npy` | numpy arrays |
//! | `parquet` | tables with a column of vectors; tables of metadata |
//! | `faiss` | flat, HNSW-flat and inverted-file-flat indexes, with or without a map of ids |
//! | `metadata` | id, uri and tags of a row from JSON lines, TSV or parquet |
//! | `values` | numbers of any width to the `f32` of a usable row |
//! | `raw` | what a file says of its rows, whatever it is |
//! | `chunks` | the sequence of chunks |
//! | `error` | what can be wrong, and what to do about it |
//!
//! Two promises. [`open`] looks at the header of *every* file before the first row is read, so that a bad
//! last file does not surface after a night of work. Memory follows the chunk, not the file: nothing is sized
//! by a number read from a file unless the file is long enough to hold what the number announces.
//!
//! Left out: vectors that are compressed (their files hold approximations, and the originals exist
//! somewhere), `.npz` (unpack it), folders inside folders, and normalisation, which belongs to the caller:
//! values are handed on as they are.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

mod chunks;
mod error;
mod faiss;
#[cfg(test)]
mod fuzz;
mod metadata;
mod npy;
mod parquet;
mod raw;
#[cfg(test)]
mod tests;
mod values;

pub use error::Error;

use chunks::Chunks;
use metadata::Metadata;
use raw::Batches;

/// One imported embedding and what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Index into [`Import::files`].
    pub source: usize,
    /// Number of the row in its file, from 0.
    pub row: u64,
    /// Length [`Import::dim`]; finite, not all zero, not normalised; bit-equal to a source of f32.
    pub values: Vec<f32>,
    /// From the metadata, else from the file; need not be unique.
    pub id: Option<u64>,
    /// Where the thing behind the embedding is: a URL, a path, a key.
    pub uri: Option<String>,
    /// Everything else that is known, as text.
    pub tags: BTreeMap<String, String>,
}

/// A row that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Index into [`Import::files`].
    pub source: usize,
    /// Number of the row in its file, from 0.
    pub row: u64,
    /// For people, as in `value at column 3 is NaN`; columns count from 0.
    pub reason: String,
}

/// One file of vectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// As named by the caller, or folder and name.
    pub path: PathBuf,
    /// Usable or not.
    pub rows: u64,
}

/// What the caller may say when the files do not speak for themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Length of the vectors of a parquet file; without it, that of its first usable rows.
    pub dim: Option<usize>,
    /// Parquet column with the vectors; without it, the only column that could be it.
    pub embedding_column: Option<String>,
    /// Column or key of the id, a whole number; without it, `id`.
    pub id_column: Option<String>,
    /// Whether ids in the files are not taken.
    pub no_ids: bool,
    /// Column or key of the uri, a string; without it, the first of the usual names that is there.
    pub uri_column: Option<String>,
    /// Columns or keys that become tags; without it, all that can.
    pub tag_columns: Option<Vec<String>>,
    /// One metadata file for the whole import, row by global row; without it, each file may have its own
    /// beside it.
    pub metadata: Option<PathBuf>,
}

/// Files that were looked at and agree, ready to be read as often as wanted.
pub struct Import {
    /// Length of every vector, at least 1.
    pub dim: usize,
    /// Rows of all files together.
    pub rows: u64,
    /// In the order in which rows are numbered.
    pub files: Vec<File>,
    sources: Vec<Source>,
    metadata: Option<Metadata>,
}

/// Consecutive rows of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Global number of the first row. The chunk covers `rows.len() + bad.len()` rows from here.
    pub first: u64,
    /// Usable rows, in order.
    pub rows: Vec<Row>,
    /// The others, in order.
    pub bad: Vec<BadRow>,
}

/// A file of vectors, its place in the sequence, and the metadata of its own.
struct Source {
    vectors: Vectors,
    first: u64,
    metadata: Option<Metadata>,
}

enum Vectors {
    Npy(npy::Npy),
    Parquet(parquet::Embeddings),
    Faiss(faiss::Faiss),
}

/// Opens files of vectors and their metadata for import.
///
/// * `paths`: `.npy`, `.parquet` and faiss files, told apart by their first bytes; a folder stands for the
///   `.npy` and `.parquet` files in it, by the numbers in their names, less those that are metadata of another.
///
/// # Errors
/// Any [`Error`], about the first file that cannot be imported: not there, damaged, of an unknown kind,
/// without rows, of another dimension, or with metadata of another length. Only lines of text metadata are
/// left for later.
pub fn open(paths: &[PathBuf], options: &Options) -> Result<Import, Error> {
    let mut files: Vec<File> = Vec::new();
    let mut sources: Vec<Source> = Vec::new();
    let mut first: Option<(PathBuf, usize)> = None;
    let mut rows = 0_u64;
    for path in expand(paths, options)? {
        let vectors = Vectors::open(&path, options)?;
        let (count, dim) = vectors.shape();
        let (first_path, expected) = first.get_or_insert_with(|| (path.clone(), dim));
        if dim != *expected {
            let (first, expected) = (first_path.clone(), *expected);
            return Err(Error::DimensionsDiffer { path, received: dim, first, expected });
        }
        let metadata = match &options.metadata {
            Some(_) => None,
            None => own_metadata(&path, &vectors, options)?,
        };
        sources.push(Source { vectors, first: rows, metadata });
        rows = rows.checked_add(count).ok_or_else(|| {
            Error::damaged(&path, format!("announces {count} rows, more than can be counted"))
        })?;
        files.push(File { path, rows: count });
    }
    let (first_path, dim) = first.ok_or(Error::NothingNamed)?;
    let metadata = match &options.metadata {
        Some(path) => Some(Metadata::open(path, options, &first_path, rows)?),
        None => None,
    };
    Ok(Import { dim, rows, files, sources, metadata })
}

impl Import {
    /// What is read otherwise than its file would have it, in sentences.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for (source, file) in self.sources.iter().zip(&self.files) {
            notes.extend(source.metadata.iter().flat_map(|metadata| metadata.notes.clone()));
            match &source.vectors {
                Vectors::Parquet(table) => notes.extend(table.notes().iter().cloned()),
                Vectors::Faiss(index) if index.distances => notes.push(format!(
                    "{} was made for L2 distances; here the score is the inner product of rows of length 1, so neighbours may come in \
                     another order unless its rows are of length 1 already",
                    file.path.display()
                )),
                Vectors::Faiss(_) | Vectors::Npy(_) => {}
            }
        }
        notes.extend(self.metadata.iter().flat_map(|metadata| metadata.notes.clone()));
        notes
    }

    /// The largest id that a row names, if one does: read before the first row is stored, so that no other row is given it.
    ///
    /// # Errors
    /// As [`Import::chunks`].
    pub fn last_named_id(&self) -> Result<Option<u64>, Error> {
        if !self.names_ids() {
            return Ok(None);
        }
        let mut last = None;
        for chunk in self.chunks(4096, 0) {
            last = last.max(chunk?.rows.iter().filter_map(|row| row.id).max());
        }
        Ok(last)
    }

    /// Whether rows can have ids at all.
    fn names_ids(&self) -> bool {
        let file = |source: &Source| match &source.vectors {
            Vectors::Npy(_) => source.metadata.is_some(),
            Vectors::Parquet(table) => table.has_ids(),
            Vectors::Faiss(_) => true,
        };
        self.metadata.is_some() || self.sources.iter().any(file)
    }

    /// Reads the rows from the first, or from where an earlier run stopped.
    ///
    /// * `rows_per_chunk`: at most so many rows at once, taken as 1 when 0. A chunk never spans two files.
    /// * `skip`: so many leading rows, counted over all files, are not read.
    ///
    /// # Errors
    /// Of the items: a file changed or became unreadable since [`open`], or a line of metadata cannot be
    /// understood. The sequence ends after an error.
    pub fn chunks(&self, rows_per_chunk: usize, skip: u64) -> impl Iterator<Item = Result<Chunk, Error>> {
        Chunks::new(self, rows_per_chunk, skip)
    }
}

impl Vectors {
    fn open(path: &Path, options: &Options) -> Result<Vectors, Error> {
        let status = fs::metadata(path).map_err(|source| Error::unreadable(path, source))?;
        // Before opening: a pipe would wait for a writer that never comes.
        if !status.is_file() {
            return Err(Error::unsupported(
                path,
                "is not a regular file",
                "name a file or a folder of files",
            ));
        }
        let mut head = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(8).read_to_end(&mut head))
            .map_err(|source| Error::unreadable(path, source))?;
        if head.is_empty() {
            return Err(Error::damaged(path, "is empty (0 bytes)"));
        }
        if head.starts_with(npy::MAGIC) || has_extension(path, "npy") {
            Ok(Vectors::Npy(npy::Npy::open(path)?))
        } else if head.starts_with(parquet::MAGIC) || has_extension(path, "parquet") {
            Ok(Vectors::Parquet(parquet::Embeddings::open(path, options)?))
        } else {
            Ok(Vectors::Faiss(faiss::Faiss::open(path)?))
        }
    }

    /// (rows, dimension)
    fn shape(&self) -> (u64, usize) {
        match self {
            Vectors::Npy(file) => (file.rows, file.dim),
            Vectors::Parquet(file) => (file.rows(), file.dim),
            Vectors::Faiss(file) => (file.rows, file.dim),
        }
    }

    /// Reads the rows of this file from `from` on, at most `size` at once.
    fn batches(&self, size: usize, from: u64) -> Result<Batches<'_>, Error> {
        match self {
            Vectors::Npy(file) => file.batches(size, from),
            Vectors::Parquet(file) => file.batches(size, from),
            Vectors::Faiss(file) => file.batches(size, from),
        }
    }
}

/// The metadata file beside a file of vectors. Parquet brings its own columns and has none.
fn own_metadata(path: &Path, vectors: &Vectors, options: &Options) -> Result<Option<Metadata>, Error> {
    if matches!(vectors, Vectors::Parquet(_)) {
        return Ok(None);
    }
    match metadata::beside(path).as_slice() {
        [] => Ok(None),
        [one] => Metadata::open(one, options, path, vectors.shape().0).map(Some),
        several => {
            let found: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            Err(Error::ChooseMetadata { path: path.to_owned(), found: found.join(", ") })
        }
    }
}

/// Replaces folders by the files of vectors in them.
fn expand(paths: &[PathBuf], options: &Options) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(path).map_err(|source| Error::unreadable(path, source))? {
            let file = entry.map_err(|source| Error::unreadable(path, source))?.path();
            if file.is_file() && (has_extension(&file, "npy") || has_extension(&file, "parquet")) {
                found.push(file);
            }
        }
        let mut claimed: HashSet<PathBuf> = found
            .iter()
            .filter(|file| has_extension(file, "npy"))
            .flat_map(|file| metadata::beside(file))
            .collect();
        if let Some(named) = options.metadata.as_ref().and_then(|path| fs::canonicalize(path).ok()) {
            claimed.extend(
                found.iter().filter(|file| fs::canonicalize(file).is_ok_and(|it| it == named)).cloned(),
            );
        }
        found.retain(|file| !claimed.contains(file));
        if found.is_empty() {
            return Err(Error::EmptyFolder { folder: path.clone() });
        }
        found.sort_by(|a, b| by_number(a.as_os_str().as_encoded_bytes(), b.as_os_str().as_encoded_bytes()));
        files.append(&mut found);
    }
    Ok(files)
}

/// Orders names as people number them: `part_2` before `part_10`, and so as one metadata file for all of them would.
fn by_number(a: &[u8], b: &[u8]) -> Ordering {
    let pieces = |name| Pieces(name);
    pieces(a).cmp(pieces(b)).then_with(|| a.cmp(b))
}

/// Runs of digits, as numbers, and single bytes.
struct Pieces<'a>(&'a [u8]);

impl<'a> Iterator for Pieces<'a> {
    /// A number is its digits without leading zeros: first how many, then which.
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let digits = self.0.iter().take_while(|b| b.is_ascii_digit()).count();
        let (piece, rest) = self.0.split_at_checked(digits.max(1))?;
        self.0 = rest;
        let zeros = piece.iter().take_while(|b| **b == b'0').count();
        Some(if digits == 0 { (0, piece) } else { (1 + digits - zeros, &piece[zeros..]) })
    }
}

/// Whether a path ends in `.{extension}`, in whatever case.
fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|it| it.eq_ignore_ascii_case(extension))
}
