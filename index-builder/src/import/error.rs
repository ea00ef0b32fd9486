//! What can be wrong with an import, by what its user can do about it.
//!
//! No variant is worth a retry except [`Error::Unreadable`]; the others ask for another file or another
//! option.

use std::io;
use std::path::{Path, PathBuf};

use ::parquet::errors::ParquetError;

/// Why files cannot be imported. Every message names the file, what is wrong, and the cure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list of paths is empty.
    #[error("nothing to import; name .npy, .parquet or faiss files, or a folder with .npy or .parquet files")]
    NothingNamed,
    /// A folder without a file of vectors.
    #[error("{folder}: has no .npy or .parquet file with vectors; name the folder that holds them itself")]
    EmptyFolder {
        /// As named.
        folder: PathBuf,
    },
    /// The operating system says no.
    #[error("{path}: cannot be read; check that it exists, that it may be read, and the disk")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The file contradicts itself.
    #[error("{path}: {problem}; the file is damaged or incomplete: write or fetch it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// The file may be right, but is nothing that can be imported.
    #[error("{path}: {problem}; {cure}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        problem: String,
        /// How to make it importable.
        cure: &'static str,
    },
    /// The parquet reader gives up.
    #[error("{path}: cannot be read as parquet; write or fetch it again")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        #[source]
        source: ParquetError,
    },
    /// It is not clear which column to use.
    #[error("{path}: {problem}; name one with {option}; the columns are {columns}")]
    ChooseColumn {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        problem: String,
        /// The command line option to set.
        option: &'static str,
        /// Names, with types where there are types.
        columns: String,
    },
    /// Several files could be the metadata of one.
    #[error("{path}: has more than one metadata file ({found}); keep one, or name one with --metadata")]
    ChooseMetadata {
        /// The file of vectors.
        path: PathBuf,
        /// The candidates.
        found: String,
    },
    /// Vectors of two lengths.
    #[error(
        "{path}: has vectors of {received} values, {first} has {expected}; import one dimension at a time"
    )]
    DimensionsDiffer {
        /// The later file.
        path: PathBuf,
        /// Its dimension.
        received: usize,
        /// The first file.
        first: PathBuf,
        /// Its dimension.
        expected: usize,
    },
    /// Metadata of another length than the vectors.
    #[error(
        "{path}: has {received} rows for {expected} vectors (from {vectors}); one row per vector is needed"
    )]
    RowsDiffer {
        /// The metadata file.
        path: PathBuf,
        /// Its rows.
        received: u64,
        /// The file of vectors, or the first of them.
        vectors: PathBuf,
        /// Its rows.
        expected: u64,
    },
    /// A line of metadata after which none can be trusted.
    #[error("{path}, {place}: {problem}; correct it or leave the metadata out")]
    MetadataRow {
        /// The metadata file.
        path: PathBuf,
        /// Line of a text file (from 1), row of a table (from 0).
        place: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    pub(super) fn unreadable(path: &Path, source: io::Error) -> Error {
        Error::Unreadable { path: path.to_owned(), source }
    }

    pub(super) fn damaged(path: &Path, problem: impl Into<String>) -> Error {
        Error::Damaged { path: path.to_owned(), problem: problem.into() }
    }

    pub(super) fn unsupported(path: &Path, problem: impl Into<String>, cure: &'static str) -> Error {
        Error::Unsupported { path: path.to_owned(), problem: problem.into(), cure }
    }

    pub(super) fn no_rows(path: &Path) -> Error {
        Error::unsupported(path, "has no rows", "leave it out")
    }
}
