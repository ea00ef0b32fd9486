//! Where samples and instructions come from, as a recipe says it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    ArchiveOptions, Error, Exchanges, LabelFrom, Samples, Sayings, Scenes, Split, TableOptions, Wanted,
};

/// One of: a folder of classes, CIFAR-10's batches, tars, a table, scenes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "Named")]
pub enum Source {
    /// `ROOT/class/…/picture.jpg`.
    Folder(PathBuf),
    /// The folder of `data_batch_1.bin` …; which of them are read hangs on what they are for.
    Cifar(PathBuf),
    /// Tars of pictures.
    Tars(Tars),
    /// A CSV or TSV.
    Table(Table),
    /// Scenes that are drawn.
    Scenes(Scenes),
}

/// Tars of pictures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tars {
    /// All of them.
    pub paths: Vec<PathBuf>,
    /// Where labels are.
    #[serde(default)]
    pub labels: LabelFrom,
    /// Only members of this folder and those below it.
    #[serde(default)]
    pub under: String,
}

/// A CSV or TSV.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Which file.
    pub path: PathBuf,
    /// The column of pictures.
    pub picture: String,
    /// The column of labels or captions.
    pub target: String,
    /// The folder that pictures are relative to; the table's own where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
}

/// What was named: one of two would be chosen in silence.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    folder: Option<PathBuf>,
    cifar: Option<PathBuf>,
    tars: Option<Tars>,
    table: Option<Table>,
    scenes: Option<Scenes>,
}

impl TryFrom<Named> for Source {
    type Error = &'static str;

    fn try_from(named: Named) -> Result<Self, &'static str> {
        let Named { folder, cifar, tars, table, scenes } = named;
        let kinds = [
            folder.map(Source::Folder),
            cifar.map(Source::Cifar),
            tars.map(Source::Tars),
            table.map(Source::Table),
            scenes.map(Source::Scenes),
        ];
        let mut named = kinds.into_iter().flatten();
        match (named.next(), named.next()) {
            (Some(source), None) => Ok(source),
            _ => Err("data have one source: name one of folder, cifar, tars, table, scenes"),
        }
    }
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
            Source::Scenes(scenes) => Samples::of_scenes(scenes, wanted, split, known),
            Source::Folder(folder) => Samples::of_folder(&base.join(folder), known),
            Source::Cifar(folder) => Samples::of_cifar(&base.join(folder), split),
            Source::Tars(Tars { paths, labels, under }) => {
                let paths: Vec<PathBuf> = paths.iter().map(|path| base.join(path)).collect();
                let options = ArchiveOptions { wanted, labels: *labels, under: under.clone() };
                Samples::of_archives(&paths, &options, known)
            }
            Source::Table(Table { path, picture, target, folder }) => {
                let folder = folder.as_ref().map(|folder| base.join(folder));
                let (picture, target) = (picture.clone(), target.clone());
                Samples::of_table(&base.join(path), &TableOptions { wanted, picture, target, folder }, known)
            }
        }
    }
}

/// Where instructions come from, as a recipe says it: JSON files, or scenes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NamedInstructions")]
pub struct Instructions {
    /// JSON files, one behind the other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathBuf>,
    /// The folder that pictures are relative to; that of each file where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// What is said about scenes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scenes: Option<Sayings>,
}

/// What was named: one of two would be chosen in silence.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedInstructions {
    #[serde(default)]
    paths: Vec<PathBuf>,
    folder: Option<PathBuf>,
    scenes: Option<Sayings>,
}

impl TryFrom<NamedInstructions> for Instructions {
    type Error = &'static str;

    fn try_from(named: NamedInstructions) -> Result<Self, &'static str> {
        let NamedInstructions { paths, folder, scenes } = named;
        match paths.is_empty() == scenes.is_some() {
            true => Ok(Instructions { paths, folder, scenes }),
            false => Err("instructions have one source: name `paths` or `scenes`"),
        }
    }
}

impl Instructions {
    /// Reads them.
    ///
    /// * `base`: the folder that paths are relative to. `split`: what they are for.
    ///
    /// # Errors
    /// As [`Exchanges::of_json`]; [`Error::Nothing`] where nothing is left.
    pub fn list(&self, base: &Path, split: Split) -> Result<Exchanges, Error> {
        let folder = self.folder.as_ref().map(|folder| base.join(folder));
        let mut all =
            self.scenes.as_ref().map(|scenes| Exchanges::of_scenes(scenes, split)).unwrap_or_default();
        for path in &self.paths {
            all.of_json(&base.join(path), folder.as_deref())?;
        }
        match all.exchanges.is_empty() {
            true => {
                let path = self.paths.first().map_or("scenes".into(), |path| base.join(path));
                Err(Error::Nothing { path, skipped: all.skipped })
            }
            false => Ok(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_names_one_source() {
        let read = |json: &str| serde_json::from_str::<Source>(json).map_err(|e| e.to_string());
        assert_eq!(read(r#"{"folder": "a"}"#), Ok(Source::Folder("a".into())));
        let tars = read(r#"{"tars": {"paths": ["a.tar"], "labels": "name"}}"#).unwrap();
        assert!(matches!(&tars, Source::Tars(Tars { labels: LabelFrom::Name, .. })));
        assert_eq!(read(&serde_json::to_string(&tars).unwrap()), Ok(tars));
        for none in ["{}", r#"{"folder": "a", "cifar": "b"}"#] {
            assert!(read(none).unwrap_err().contains("name one of"), "{none}");
        }
        assert!(read(r#"{"folders": "a"}"#).unwrap_err().contains("folders"));
    }
}
