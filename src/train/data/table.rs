//! A table of pictures: CSV, or TSV by its ending or where its first line has a tab and no comma, as the adapters' captions are published.
//!
//! ```text
//! path,label                    image<TAB>n<TAB>caption
//! a/1.jpg,dog                   1.jpg<TAB>1<TAB>A man on skis, seen from behind
//! ```
//!
//! The first line names the columns. Paths are relative to a folder, which is the table's if nothing else is said. In CSV, fields may
//! be quoted; in TSV a quote is a character like any other, as captions have them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use csv::{ReaderBuilder, StringRecord};

use super::gather::{Gather, Labels, Samples, Wanted, is_picture};
use super::skipped::Reason;
use super::{Error, Place};

/// How a table is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableOptions {
    /// What pictures are learned with.
    pub wanted: Wanted,
    /// The column of their paths.
    pub picture: String,
    /// The column of their labels or captions.
    pub target: String,
    /// The folder that paths are relative to.
    pub folder: Option<PathBuf>,
}

impl Samples {
    /// The pictures of a table, a sample for each row.
    ///
    /// * `known`: the classes of the training, in their order.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Column`], [`Error::Row`], [`Error::OneClass`], [`Error::TooManyClasses`], [`Error::Nothing`].
    pub fn of_table(path: &Path, options: &TableOptions, known: Option<&[String]>) -> Result<Samples, Error> {
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let bytes = fs::read(path).map_err(Error::io(path))?;
        let first = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let tabs =
            ["tsv", "tab"].contains(&ending.as_str()) || (first.contains(&b'\t') && !first.contains(&b','));
        let delimiter = if tabs { b'\t' } else { b',' };
        let mut table = ReaderBuilder::new().delimiter(delimiter).quoting(!tabs).from_reader(&bytes[..]);
        let wrong = |e: csv::Error| wrong(path, &bytes, &e);
        let columns = table.headers().map_err(wrong)?.clone();
        let column = |name: &str| {
            let there = || columns.iter().collect::<Vec<_>>().join(", ");
            columns.iter().position(|column| column.trim() == name).ok_or_else(|| Error::Column {
                path: path.to_owned(),
                column: name.to_owned(),
                there: there(),
            })
        };
        let (picture, target) = (column(&options.picture)?, column(&options.target)?);
        let own = || path.parent().unwrap_or(Path::new("")).to_owned();
        let folder: Arc<Path> = options.folder.clone().unwrap_or_else(own).into();
        let (mut gather, mut row) = (Gather::default(), StringRecord::new());
        while table.read_record(&mut row).map_err(wrong)? {
            let line = line(&bytes, row.position());
            let field = |column: usize| row.get(column).unwrap_or_default().trim();
            match look(&folder, field(picture)) {
                Ok(place) => gather.take(place, field(target), options.wanted),
                Err(reason) => gather.skipped.add(reason, format!("line {line}: `{}`", field(picture))),
            }
        }
        gather.finish(path, options.wanted, Labels::NamesOrNumbers, known)
    }
}

/// Where a picture lies, if it is there.
pub(super) fn look(folder: &Arc<Path>, name: &str) -> Result<Place, Reason> {
    let about = fs::metadata(folder.join(name)).ok().filter(fs::Metadata::is_file);
    match about.ok_or(Reason::Missing)?.len() {
        _ if !is_picture(Path::new(name)) => Err(Reason::NotAPicture),
        0 => Err(Reason::Empty),
        _ => Ok(Place::File { folder: folder.clone(), name: Path::new(name).into() }),
    }
}

/// The line that a row begins in. Where lines end with two characters, the reader stands between them.
fn line(table: &[u8], position: Option<&csv::Position>) -> u64 {
    let between = |at: &csv::Position| table.get(at.byte() as usize) == Some(&b'\n');
    position.map_or(1, |at| at.line() + u64::from(between(at)))
}

/// What is wrong with a table, and where.
fn wrong(path: &Path, table: &[u8], e: &csv::Error) -> Error {
    let line = line(table, e.position());
    let why = match e.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("it has {len} fields, and the first line {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "it is not UTF-8".to_owned(),
        _ => e.to_string(),
    };
    Error::Row { path: path.to_owned(), line, why }
}

#[cfg(test)]
mod tests {
    use super::super::Target;
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        for (name, contents) in [("1.jpg", "one"), ("sub/2.png", "two"), ("empty.jpg", ""), ("3.txt", "x")] {
            fs::write(folder.path().join(name), contents).unwrap();
        }
        folder
    }

    fn of(folder: &Path, name: &str, table: &[u8], wanted: Wanted) -> Result<Samples, Error> {
        let path = folder.join(name);
        fs::write(&path, table).unwrap();
        let target = if wanted == Wanted::Classes { "label" } else { "caption" };
        let options = TableOptions { wanted, picture: "path".into(), target: target.into(), folder: None };
        Samples::of_table(&path, &options, None)
    }

    #[test]
    fn rows_are_samples() {
        let folder = folder();
        let table = "\u{feff}path,label\r\n1.jpg,dog\r\n\"sub/2.png\", cat \r\ngone.jpg,dog\r\nempty.jpg,dog\r\n\
                     3.txt,dog\r\n1.jpg,\r\nsub,dog\r\n";
        let samples = of(folder.path(), "a.csv", table.as_bytes(), Wanted::Classes).unwrap();
        let read: Vec<_> = samples
            .samples
            .iter()
            .map(|sample| (sample.place.read(9).unwrap(), sample.target.class()))
            .collect();
        assert_eq!(read, [(b"one".to_vec(), Some(1)), (b"two".to_vec(), Some(0))]);
        assert_eq!(samples.classes, ["cat", "dog"]);
        let counts = [Reason::Missing, Reason::Empty, Reason::NotAPicture, Reason::NoLabel]
            .map(|reason| samples.skipped.count(reason));
        assert_eq!(counts, [2, 1, 1, 1], "{}", samples.skipped);
        assert!(samples.skipped.to_string().contains("line 4: `gone.jpg`"), "{}", samples.skipped);
    }

    #[test]
    fn captions_may_have_quotes_and_commas() {
        let folder = folder();
        let table = "n\tcaption\tpath\n1\t\"Hello\", he said\t1.jpg\n2\t  \t1.jpg\n3\tanother\t1.jpg\n";
        let samples = of(folder.path(), "a.tsv", table.as_bytes(), Wanted::Captions).unwrap();
        let captions: Vec<_> = samples.samples.iter().map(|sample| sample.target.clone()).collect();
        let expected = ["\"Hello\", he said", "another"].map(|caption| Target::Caption(caption.into()));
        assert_eq!((captions, samples.skipped.count(Reason::NoCaption)), (expected.to_vec(), 1));
        // Tabs in a `.csv`, as published.
        let published = of(folder.path(), "b.csv", table.as_bytes(), Wanted::Captions).unwrap();
        assert_eq!(published.samples, samples.samples);
    }

    #[test]
    fn paths_may_be_of_another_folder() {
        let (pictures, tables) = (folder(), tempfile::tempdir().unwrap());
        let path = tables.path().join("a.csv");
        fs::write(&path, "path,label\n1.jpg,5\nsub/2.png,3\n").unwrap();
        let options = TableOptions {
            wanted: Wanted::Classes,
            picture: "path".into(),
            target: "label".into(),
            folder: Some(pictures.path().into()),
        };
        let samples = Samples::of_table(&path, &options, None).unwrap();
        assert_eq!((samples.samples.len(), samples.classes.len()), (2, 6));
        // Numbers of known classes.
        let known: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let samples = Samples::of_table(&path, &options, Some(&known)).unwrap();
        assert_eq!((samples.samples.len(), samples.skipped.count(Reason::BeyondClasses)), (1, 1));
    }

    #[test]
    fn wrong_tables_are_refused_with_their_line() {
        let folder = folder();
        let why = |table: &[u8]| of(folder.path(), "a.csv", table, Wanted::Classes).unwrap_err().to_string();
        assert!(why(b"file,label\n1.jpg,a\n").contains("no column `path`; it has: file, label"));
        let fields = why(b"path,label\n1.jpg,a\n1.jpg,a,b\n");
        assert!(fields.contains("line 3: it has 3 fields, and the first line 2"), "{fields}");
        let fields = why(b"path,label\r\n1.jpg,a\r\n1.jpg\r\n");
        assert!(fields.contains("line 3: it has 1 fields"), "{fields}");
        let text = why(b"path,label\n1.jpg,a\n\xff\xfe.jpg,b\n");
        assert!(text.contains("line 3: it is not UTF-8"), "{text}");
        assert!(why(b"").contains("no column"));
        assert!(why(b"path,label\n").contains("nothing to learn from"));
        assert!(why(b"path,label\n1.jpg,a\nsub/2.png,a\n").contains("one class only"));
        let gone = Samples::of_table(
            Path::new("gone.csv"),
            &TableOptions { wanted: Wanted::Captions, picture: "a".into(), target: "b".into(), folder: None },
            None,
        );
        assert!(matches!(gone, Err(Error::Io { .. })));
    }
}
