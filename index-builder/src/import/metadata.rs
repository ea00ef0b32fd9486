//! What is known of the rows: id, uri and tags, from a file beside the vectors.
//!
//! Row i of the metadata belongs to row i of the vectors, so the rows are counted first and a file of another
//! length is refused before anything is read. After that it is streamed behind the vectors, a line or a batch
//! at a time.
//!
//! ```text
//! .jsonl    {"id": 7, "uri": "a.jpg", "label": "cat"}        one object a line
//! .tsv      row ⇥ file ⇥ label                                a header line, then
//!           0   ⇥ a.jpg ⇥ cat                                 one line a row
//! .parquet  columns id, uri, label
//!             │    │    └─ every other string, integer or boolean is a tag
//!             │    └─ the first of URI_NAMES that is there
//!             └─ `id`, an integer of 0 or more
//! ```
//!
//! A TSV column `row` says which row a line is for; it must agree with the place of the line, and is no tag.
//! Empty lines are passed over. Empty TSV fields and nulls mean "not known".
//!
//! Left out: quotes in TSV (a tab or line break cannot be part of a field: that is what JSON lines are for),
//! lists and objects in JSON, and looking a row up by anything but its number.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::Error;
use super::parquet::{Table, TableRows};
use super::{Options, has_extension};

/// Columns and keys that hold a uri when none is named, best first.
pub(super) const URI_NAMES: [&str; 6] = ["uri", "url", "path", "image_path", "key", "file"];

/// Longest line of a text file; more is not metadata, and would be held in memory.
const LINE_LIMIT: u64 = 16 << 20;

/// What is known of one row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct About {
    pub(super) id: Option<u64>,
    pub(super) uri: Option<String>,
    pub(super) tags: BTreeMap<String, String>,
}

/// What a column or key is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    Embedding,
    Id,
    Uri,
    Position,
    Tag(String),
}

impl About {
    /// Notes what one column says. `Err` is the reason why it cannot be so.
    pub(super) fn note(&mut self, role: &Role, text: String) -> Result<(), String> {
        match role {
            Role::Id => match text.parse() {
                Ok(id) => self.id = Some(id),
                Err(_) => {
                    return Err(format!("id {} is not an integer from 0 to {}", short(&text), u64::MAX));
                }
            },
            Role::Uri => self.uri = Some(text),
            Role::Tag(name) => drop(self.tags.insert(name.clone(), text)),
            Role::Embedding | Role::Position => {}
        }
        Ok(())
    }

    /// Fills what is not known from another source.
    pub(super) fn or(mut self, other: About) -> About {
        for (name, text) in other.tags {
            self.tags.entry(name).or_insert(text);
        }
        About { id: self.id.or(other.id), uri: self.uri.or(other.uri), tags: self.tags }
    }
}

/// A metadata file whose rows have been counted.
pub(super) struct Metadata {
    path: PathBuf,
    form: Form,
}

enum Form {
    JsonLines { id: String, uri: Option<String> },
    Tsv { roles: Vec<Role> },
    Parquet(Table),
}

/// The metadata files that a file of vectors has by its name; more than one is for the caller to sort out.
pub(super) fn beside(vectors: &Path) -> Vec<PathBuf> {
    let same_name = ["jsonl", "tsv", "parquet"].map(|extension| vectors.with_extension(extension));
    let found: Vec<PathBuf> = same_name.into_iter().filter(|path| path.is_file()).collect();
    if !found.is_empty() {
        return found;
    }
    // clip-retrieval: img_emb/img_emb_0.npy and metadata/metadata_0.parquet, or all in one folder.
    let stem = vectors.file_stem().and_then(|stem| stem.to_str()).filter(|_| has_extension(vectors, "npy"));
    let Some((_, number)) = stem.and_then(|stem| stem.rsplit_once("_emb_")) else {
        return Vec::new();
    };
    let name = format!("metadata_{number}.parquet");
    let sibling = vectors.with_file_name("..").join("metadata").join(&name);
    [vectors.with_file_name(&name), sibling].into_iter().find(|path| path.is_file()).into_iter().collect()
}

impl Metadata {
    /// Counts the rows, which must be `expected`, those of the file `vectors`.
    pub(super) fn open(
        path: &Path,
        options: &Options,
        vectors: &Path,
        expected: u64,
    ) -> Result<Metadata, Error> {
        let (form, received) = if has_extension(path, "parquet") {
            let table = Table::metadata(path, options)?;
            let rows = table.rows;
            (Form::Parquet(table), rows)
        } else if has_extension(path, "tsv") {
            let mut lines = Lines::open(path)?;
            let roles = if lines.advance()? { tsv_roles(&lines, options)? } else { Vec::new() };
            (Form::Tsv { roles }, lines.count_rest()?)
        } else if has_extension(path, "jsonl") || has_extension(path, "ndjson") {
            let id = options.id_column.clone().unwrap_or_else(|| "id".to_owned());
            (Form::JsonLines { id, uri: options.uri_column.clone() }, Lines::open(path)?.count_rest()?)
        } else {
            let problem = "is not known as metadata by its name";
            return Err(Error::unsupported(path, problem, "use a .jsonl, .tsv or .parquet file"));
        };
        if received != expected {
            let (path, vectors) = (path.to_owned(), vectors.to_owned());
            return Err(Error::RowsDiffer { path, received, vectors, expected });
        }
        Ok(Metadata { path: path.to_owned(), form })
    }

    /// Reads the rows from `from` on.
    pub(super) fn records(&self, from: u64) -> Result<Records<'_>, Error> {
        let skip = |lines: u64| {
            let mut text = Lines::open(&self.path)?;
            for _ in 0..lines {
                text.advance()?;
            }
            Ok(text)
        };
        let rows = match &self.form {
            Form::JsonLines { .. } => Rows::Text(skip(from)?),
            Form::Tsv { .. } => Rows::Text(skip(from + 1)?),
            Form::Parquet(table) => Rows::Table(Box::new(table.rows_from(from)?)),
        };
        Ok(Records { metadata: self, rows, next: from })
    }
}

/// Rows of metadata in order.
pub(super) struct Records<'a> {
    metadata: &'a Metadata,
    rows: Rows<'a>,
    next: u64,
}

enum Rows<'a> {
    Text(Lines),
    Table(Box<TableRows<'a>>),
}

impl Records<'_> {
    /// Reads the next row, which is there unless the file has changed.
    pub(super) fn read(&mut self) -> Result<About, Error> {
        let row = self.next;
        self.next += 1;
        let gone = || Error::damaged(&self.metadata.path, format!("has lost row {row} since it was opened"));
        match (&mut self.rows, &self.metadata.form) {
            (Rows::Table(rows), _) => {
                let about = rows.next().ok_or_else(gone)??;
                about.map_err(|problem| {
                    let (path, place) = (self.metadata.path.clone(), format!("row {row}"));
                    Error::MetadataRow { path, place, problem }
                })
            }
            (Rows::Text(lines), form) => {
                if !lines.advance()? {
                    return Err(gone());
                }
                let about = match form {
                    Form::Tsv { roles } => lines.text().and_then(|line| tsv_row(line, roles, row)),
                    Form::JsonLines { id, uri } => {
                        lines.text().and_then(|line| json_row(line, id, uri.as_deref()))
                    }
                    Form::Parquet(_) => return Err(gone()),
                };
                about.map_err(|problem| lines.error(problem))
            }
        }
    }
}

/// What the columns of a header line are for.
fn tsv_roles(lines: &Lines, options: &Options) -> Result<Vec<Role>, Error> {
    let header = lines.text().map_err(|problem| lines.error(problem))?;
    let names: Vec<&str> = header.split('\t').collect();
    for (name, option) in [(&options.id_column, "--id-column"), (&options.uri_column, "--uri-column")] {
        if let Some(name) = name.as_deref().filter(|name| !names.contains(name)) {
            let (path, problem) = (lines.path.clone(), format!("has no column '{name}'"));
            return Err(Error::ChooseColumn { path, problem, option, columns: names.join(", ") });
        }
    }
    let id = options.id_column.as_deref().unwrap_or("id");
    let uri = options.uri_column.as_deref();
    let uri = uri.or_else(|| URI_NAMES.into_iter().find(|name| names.contains(name)));
    let role = |name: &str| match name {
        _ if name == id => Role::Id,
        _ if Some(name) == uri => Role::Uri,
        "row" => Role::Position,
        _ => Role::Tag(name.to_owned()),
    };
    Ok(names.into_iter().map(role).collect())
}

fn tsv_row(line: &str, roles: &[Role], row: u64) -> Result<About, String> {
    let fields = line.split('\t').count();
    if fields != roles.len() {
        return Err(format!("has {fields} fields, the header has {}", roles.len()));
    }
    let mut about = About::default();
    for (role, field) in roles.iter().zip(line.split('\t')) {
        if *role == Role::Position && field.parse() != Ok(row) {
            return Err(format!("is row {row} by its place but says {} in the column 'row'", short(field)));
        }
        if !field.is_empty() {
            about.note(role, field.to_owned())?;
        }
    }
    Ok(about)
}

fn json_row(line: &str, id: &str, uri: Option<&str>) -> Result<About, String> {
    let object: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| format!("is not a JSON object ({error})"))?;
    let is_text = |name: &&str| object.get(*name).is_some_and(Value::is_string);
    let uri = uri.or_else(|| URI_NAMES.into_iter().find(is_text)).map(str::to_owned);
    let mut about = About::default();
    for (name, value) in object {
        let role = match () {
            () if name == id => Role::Id,
            () if uri.as_ref() == Some(&name) => Role::Uri,
            () => Role::Tag(name),
        };
        let text = match (&role, value) {
            (_, Value::Null) => continue,
            (Role::Id, value) if !value.is_number() => {
                return Err(format!("id {} is not an integer", short(&value.to_string())));
            }
            (Role::Uri, value) if !value.is_string() => {
                return Err(format!("uri {} is not a string", short(&value.to_string())));
            }
            (_, Value::String(text)) => text,
            (_, value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
            (_, Value::Array(_) | Value::Object(_)) => continue,
        };
        about.note(&role, text)?;
    }
    Ok(about)
}

/// Text for a message: not a page of it, and on one line.
fn short(text: &str) -> String {
    let start: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    format!("'{start}{}'", if text.chars().nth(40).is_some() { "…" } else { "" })
}

/// The lines of a text file that are not empty.
struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    /// Number of the current line, from 1.
    number: u64,
    line: Vec<u8>,
}

impl Lines {
    fn open(path: &Path) -> Result<Lines, Error> {
        let file = File::open(path).map_err(|source| Error::unreadable(path, source))?;
        Ok(Lines { path: path.to_owned(), file: BufReader::new(file), number: 0, line: Vec::new() })
    }

    /// Goes to the next line, if there is one.
    fn advance(&mut self) -> Result<bool, Error> {
        loop {
            self.line.clear();
            self.number += 1;
            let read = self.file.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut self.line);
            match read.map_err(|source| Error::unreadable(&self.path, source))? as u64 {
                0 => return Ok(false),
                LINE_LIMIT => return Err(self.error(format!("is longer than {} MiB", LINE_LIMIT >> 20))),
                _ => {}
            }
            while let Some(b'\n' | b'\r') = self.line.last() {
                self.line.pop();
            }
            if self.number == 1 && self.line.starts_with(b"\xef\xbb\xbf") {
                self.line.drain(..3);
            }
            if !self.line.is_empty() {
                return Ok(true);
            }
        }
    }

    fn count_rest(mut self) -> Result<u64, Error> {
        let mut count = 0;
        while self.advance()? {
            count += 1;
        }
        Ok(count)
    }

    fn text(&self) -> Result<&str, String> {
        std::str::from_utf8(&self.line)
            .map_err(|error| format!("is not UTF-8 from byte {} on", error.valid_up_to()))
    }

    fn error(&self, problem: String) -> Error {
        Error::MetadataRow { path: self.path.clone(), place: format!("line {}", self.number), problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    /// The rows of a metadata file from `from` to `rows`, or the message without the folder.
    fn read(name: &str, text: &str, options: &Options, from: u64, rows: u64) -> Result<Vec<About>, String> {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        let read = || {
            let metadata = Metadata::open(&path, options, Path::new("x.npy"), rows)?;
            let mut records = metadata.records(from)?;
            (from..rows).map(|_| records.read()).collect::<Result<Vec<_>, Error>>()
        };
        let prefix = format!("{}/", folder.path().display());
        read().map_err(|error: Error| error.to_string().replace(&prefix, ""))
    }

    fn about(id: Option<u64>, uri: Option<&str>, tags: &[(&str, &str)]) -> About {
        let tags = tags.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        About { id, uri: uri.map(str::to_owned), tags }
    }

    #[test]
    fn json_lines() {
        let text = "\u{feff}{\"id\": 18446744073709551615, \"key\": \"k\", \"url\": \"u\", \"n\": 1.5}\r\n\n\
                    {\"key\": 5, \"file\": \"f\", \"ok\": true, \"none\": null, \"deep\": [1]}\n{}";
        let rows = [
            about(Some(u64::MAX), Some("u"), &[("key", "k"), ("n", "1.5")]),
            about(None, Some("f"), &[("key", "5"), ("ok", "true")]),
            About::default(),
        ];
        assert_eq!(read("m.jsonl", text, &Options::default(), 0, 3).unwrap(), rows);
        assert_eq!(read("m.jsonl", text, &Options::default(), 1, 3).unwrap(), rows[1..]);
        let options =
            Options { id_column: Some("key".into()), uri_column: Some("file".into()), ..Options::default() };
        assert_eq!(
            read("m.jsonl", &text[text.find("{\"key").unwrap()..], &options, 0, 2).unwrap()[0],
            about(Some(5), Some("f"), &[("ok", "true")])
        );
    }

    #[test]
    fn tsv() {
        let text = "row\tfile\tlabel\n0\ta b.jpg\t\"cat\"\n1\t\t\n";
        let rows = [about(None, Some("a b.jpg"), &[("label", "\"cat\"")]), About::default()];
        assert_eq!(read("m.tsv", text, &Options::default(), 0, 2).unwrap(), rows);
        assert_eq!(read("m.tsv", text, &Options::default(), 1, 2).unwrap(), rows[1..]);
    }

    #[test]
    fn mistakes_name_the_line() {
        let uri = Options { uri_column: Some("photo".into()), ..Options::default() };
        let none = Options::default();
        let cases = [
            ("m.jsonl", "{}\n{}\n", &none, 3, "m.jsonl: has 2 rows for 3 vectors (from x.npy)"),
            ("m.tsv", "", &none, 1, "m.tsv: has 0 rows for 1 vectors (from x.npy)"),
            ("m.csv", "a\n", &none, 1, "m.csv: is not known as metadata by its name; use a .jsonl"),
            ("m.jsonl", "{}\n\n[]\n", &none, 2, "m.jsonl, line 3: is not a JSON object (invalid type"),
            ("m.jsonl", "{\"id\": -1}", &none, 1, "m.jsonl, line 1: id '-1' is not an integer from 0 to"),
            ("m.jsonl", "{\"id\": 1.0}", &none, 1, "m.jsonl, line 1: id '1.0' is not an integer from 0 to"),
            ("m.jsonl", "{\"id\": \"1\"}", &none, 1, "m.jsonl, line 1: id '\\\"1\\\"' is not an integer;"),
            ("m.jsonl", "{\"photo\": 1}", &uri, 1, "m.jsonl, line 1: uri '1' is not a string;"),
            ("m.tsv", "id\nx\n", &none, 1, "m.tsv, line 2: id 'x' is not an integer from 0 to"),
            ("m.tsv", "a\tb\n1\n", &none, 1, "m.tsv, line 2: has 1 fields, the header has 2;"),
            ("m.tsv", "row\n0\n2\n", &none, 2, "m.tsv, line 3: is row 1 by its place but says '2' in the"),
            (
                "m.tsv",
                "id\turl\n1\tx\n",
                &uri,
                1,
                "m.tsv: has no column 'photo'; name one with --uri-column;",
            ),
        ];
        for (name, text, options, rows, expected) in cases {
            let message = read(name, text, options, 0, rows).unwrap_err();
            assert!(message.starts_with(expected), "{message}\nis not\n{expected}");
        }
    }

    #[test]
    fn long_lines_are_not_held() {
        let line = "x".repeat(LINE_LIMIT as usize + 1);
        let message = read("m.tsv", &line, &Options::default(), 0, 1).unwrap_err();
        assert_eq!(message, "m.tsv, line 1: is longer than 16 MiB; correct it or leave the metadata out");
    }
}
