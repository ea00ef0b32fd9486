//! Where samples come from, as a recipe says it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ArchiveOptions, Error, LabelFrom, Samples, Split, TableOptions, Wanted};

/// One of: a folder of classes, CIFAR-10's batches, tars, a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub enum Source {
    /// `ROOT/class/…/picture.jpg`.
    Folder(PathBuf),
    /// The folder of `data_batch_1.bin` …; which of them are read hangs on what they are for.
    Cifar(PathBuf),
    /// Tars of pictures.
    Tars {
        /// All of them.
        paths: Vec<PathBuf>,
        /// Where labels are.
        #[serde(default)]
        labels: LabelFrom,
        /// Only members of this folder and those below it.
        #[serde(default)]
        under: String,
    },
    /// A CSV or TSV.
    Table {
        /// Which file.
        path: PathBuf,
        /// The column of pictures.
        picture: String,
        /// The column of labels or captions.
        target: String,
        /// The folder that pictures are relative to; the table's own where nothing is said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        folder: Option<PathBuf>,
    },
}

impl Source {
    /// Lists the samples.
    ///
    /// * `base`: the folder that paths are relative to. `split`: what they are for. `known`: the classes of the training, for a test.
    ///
    /// # Errors
    /// As those of [`Samples`].
    pub fn list(
        &self,
        base: &Path,
        wanted: Wanted,
        split: Split,
        known: Option<&[String]>,
    ) -> Result<Samples, Error> {
        match self {
            Source::Folder(folder) => Samples::of_folder(&base.join(folder), known),
            Source::Cifar(folder) => Samples::of_cifar(&base.join(folder), split),
            Source::Tars { paths, labels, under } => {
                let paths: Vec<PathBuf> = paths.iter().map(|path| base.join(path)).collect();
                let options = ArchiveOptions { wanted, labels: *labels, under: under.clone() };
                Samples::of_archives(&paths, &options, known)
            }
            Source::Table { path, picture, target, folder } => {
                let folder = folder.as_ref().map(|folder| base.join(folder));
                let (picture, target) = (picture.clone(), target.clone());
                Samples::of_table(&base.join(path), &TableOptions { wanted, picture, target, folder }, known)
            }
        }
    }
}
