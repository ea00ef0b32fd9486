//! What is learned from: pictures with a class or a caption, found without being decoded, and instructions with their answers.
//!
//! ```text
//! folder of folders ────┐
//! CIFAR-10's batches ───┤                  ┌─ samples: a place, and a class or a caption
//! tars of pictures ─────┼─► Samples::of_… ─┼─ classes, by name
//! table of paths, scenes ┘                 └─ skipped: how many, why, and the first of them by name
//!                                            samples ─► Order: which comes when ─► Place::read: the bytes of one
//! ```
//!
//! | file | what |
//! |---|---|
//! | `sample.rs` | a sample, and reading its bytes |
//! | `folder.rs` | `ROOT/class/…/picture.jpg` |
//! | `cifar.rs` | `data_batch_1.bin` … |
//! | `archive.rs` | tars of pictures; `tar.rs` knows their headers |
//! | `table.rs` | CSV and TSV |
//! | `drawn.rs` | scenes that are drawn, and what is said about them |
//! | `annotated.rs` | pictures with a label for each pixel, as ADE20K's |
//! | `exchange.rs` | an instruction, its answer, and maybe a picture |
//! | `instructions.rs` | these as JSON |
//! | `gather.rs` | from words to classes; what all sources share |
//! | `source.rs` | any of these, as a recipe says it |
//! | `skipped.rs` | what gives no sample |
//! | `order.rs` | the order of an epoch |
//!
//! # Bad data
//!
//! What one sample lacks costs that sample: it is skipped, counted and named ([`Skipped`]). What makes the whole doubtful is refused.
//!
//! | skipped | refused |
//! |---|---|
//! | a picture that is not there, or empty | nothing left to learn from |
//! | a file that is no picture, by its ending | one class only |
//! | no label, or an empty caption | a tar that is cut short, damaged or compressed |
//! | a label beyond the classes | a batch of CIFAR-10 that is cut short or not there |
//! | a description that cannot be read | a table without its columns, or with a row of another length |
//! | an item of instructions without a question, without an answer, or of other types | JSON that is cut short, damaged or no array |
//! | a text whose prompt alone takes all its tokens | pictures with classes where captions are asked for |
//! | a picture that cannot be decoded, where embeddings are learned from | more embeddings than the memory that is allowed |
//! | a picture without an annotation, or the other way round; an annotation that cannot be read, has another size, no label or one too high | a folder that is not in ADE20K's layout |
//! | a link inside a tar; a folder behind a link, or too deep | a folder of `train` and `val` in place of one of them |
//!
//! Pictures are only looked at by name and length here; one that cannot be decoded is found out by whoever decodes it. Texts are cut to
//! the length that a recipe says and count as whole; how many were is told.
//!
//! Left out: compressed tars, whose members cannot be read where they lie (`gunzip` first); several captions of one picture in one
//! sample (each row of a table is a sample).

mod annotated;
mod archive;
mod cifar;
mod drawn;
mod exchange;
mod folder;
mod gather;
mod instructions;
mod order;
mod sample;
mod skipped;
mod source;
mod table;
mod tar;

use std::path::PathBuf;

pub use annotated::{Annotated, Pair};
pub use archive::{ArchiveOptions, LabelFrom};
pub use cifar::Split;
pub use drawn::{About, Sayings, Scenes};
pub use exchange::{CAPTION_INSTRUCTION, Exchange, Exchanges};
pub use gather::{Samples, Wanted};
pub use order::{Order, Walk};
pub use sample::{Place, Sample, Target};
pub use skipped::{Reason, Skipped};
pub use source::{Instructions, Source, Table, Tars};
pub use table::TableOptions;

/// Why there are no samples, or no bytes of one. All but [`Error::Io`] are mended by mending the data.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read. Trying again may help.
    #[error("{} cannot be read", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file ends before its contents do.
    #[error("{} is cut short: {why}; fetch it again", path.display())]
    Cut {
        /// Which.
        path: PathBuf,
        /// Where.
        why: String,
    },
    /// A file is not what it should be.
    #[error("{} cannot be used: {why}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why not, and the cure.
        why: String,
    },
    /// A row of a table.
    #[error("{}, line {line}: {why}", path.display())]
    Row {
        /// The table.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A table lacks a column.
    #[error("{} has no column `{column}`; it has: {there}", path.display())]
    Column {
        /// The table.
        path: PathBuf,
        /// Which.
        column: String,
        /// Those it has.
        there: String,
    },
    /// Nothing can be told apart.
    #[error("{} has one class only, `{class}`: nothing can be learned from it", path.display())]
    OneClass {
        /// The source.
        path: PathBuf,
        /// The class.
        class: String,
    },
    /// A folder of splits in place of one of them.
    #[error("{} has the folders {folders}, which are no classes: name one of them", path.display())]
    Splits {
        /// The folder.
        path: PathBuf,
        /// Those in it.
        folders: String,
    },
    /// A label is too high a number.
    #[error("{} has the label {label}, and classes are counted up to {most}: are these classes?", path.display())]
    TooManyClasses {
        /// The source.
        path: PathBuf,
        /// The highest label.
        label: u32,
        /// The highest allowed.
        most: u32,
    },
    /// No samples at all.
    #[error("{} has nothing to learn from{}", path.display(), match skipped.is_empty() {
        true => String::new(),
        false => format!(": {skipped}"),
    })]
    Nothing {
        /// The source.
        path: PathBuf,
        /// What there was instead.
        skipped: Skipped,
    },
    /// A picture has more bytes than allowed.
    #[error("{place} has {bytes} bytes, more than the limit of {most}")]
    TooLarge {
        /// Where it lies.
        place: String,
        /// Its bytes.
        bytes: u64,
        /// Bytes allowed.
        most: u64,
    },
}

impl Error {
    /// For `map_err` where a file or folder is read.
    fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
        |source| Error::Io { path: path.to_owned(), source }
    }
}
