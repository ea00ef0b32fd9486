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
//!             └─ `id`, an integer of 0 or more; whole floats are integers too (what pandas makes of a gap)
//! ```
//!
//! A TSV column `row` says which row a line is for; it must agree with the place of the line, and is no tag.
//! Empty lines are passed over. Empty TSV fields and nulls mean "not known". A row that makes no sense is set aside with its
//! reason; the others are read. A column `id` that begins with text is no id: it is the uri where there is none, else a tag.
//!
//! Left out: quotes in TSV (a tab or line break cannot be part of a field: that is what JSON lines are for),
//! lists and objects in JSON, and looking a row up by anything but its number.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::Error;
use super::parquet::{Table, TableRows};
use super::raw::{About, Role, URI_NAMES, short, tag_role, text_ids, whole};
use super::{Options, has_extension};

/// Longest line of a text file; more is not metadata, and would be held in memory.
const LINE_LIMIT: u64 = 16 << 20;

/// A metadata file whose rows have been counted.
pub(super) struct Metadata {
    path: PathBuf,
    form: Form,
    /// What is not as its names would have it.
    pub(super) notes: Vec<String>,
}

enum Form {
    JsonLines(JsonRoles),
    Tsv { roles: Vec<Role> },
    Parquet(Table),
}

/// What keys of JSON lines are for.
struct JsonRoles {
    /// The key that holds ids, if one does.
    id: Option<String>,
    uri: Option<String>,
    /// The only keys that become tags, if not all do.
    tags: Option<Vec<String>>,
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
        let mut notes = Vec::new();
        let (form, received) = if has_extension(path, "parquet") {
            let table = Table::metadata(path, options)?;
            let rows = table.rows;
            notes.clone_from(&table.notes);
            (Form::Parquet(table), rows)
        } else if has_extension(path, "tsv") {
            let mut lines = Lines::open(path)?;
            let mut roles = if lines.advance()? { tsv_roles(&lines, options)? } else { Vec::new() };
            let rows = lines.count_rest()?;
            if options.id_column.is_none()
                && first_tsv_id(path, &roles)?.is_some_and(|id| whole(&id).is_err())
            {
                let no_uri = !roles.contains(&Role::Uri);
                let id = if no_uri { Role::Uri } else { tag_role("id", options) };
                roles.iter_mut().filter(|role| **role == Role::Id).for_each(|role| *role = id.clone());
                notes.push(text_ids(path, no_uri));
            }
            (Form::Tsv { roles }, rows)
        } else if has_extension(path, "jsonl") || has_extension(path, "ndjson") {
            let name = options.id_column.clone().unwrap_or_else(|| "id".to_owned());
            let mut id = Some(name).filter(|_| !options.no_ids);
            if options.id_column.is_none()
                && id.is_some()
                && first_json_id(path)?.is_some_and(|id| id.is_string())
            {
                id = None;
                notes.push(text_ids(path, false));
            }
            let roles = JsonRoles { id, uri: options.uri_column.clone(), tags: options.tag_columns.clone() };
            (Form::JsonLines(roles), Lines::open(path)?.count_rest()?)
        } else {
            let problem = "is not known as metadata by its name";
            return Err(Error::unsupported(path, problem, "use a .jsonl, .tsv or .parquet file"));
        };
        if received != expected {
            let (path, vectors) = (path.to_owned(), vectors.to_owned());
            return Err(Error::RowsDiffer { path, received, vectors, expected });
        }
        Ok(Metadata { path: path.to_owned(), form, notes })
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
            Form::JsonLines(_) => Rows::Text(skip(from)?),
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
    /// Reads the next row, which is there unless the file has changed; the inner error is the reason why the row makes no
    /// sense.
    pub(super) fn read(&mut self) -> Result<Result<About, String>, Error> {
        let row = self.next;
        self.next += 1;
        let path = &self.metadata.path;
        let gone = || Error::damaged(path, format!("has lost row {row} since it was opened"));
        match (&mut self.rows, &self.metadata.form) {
            (Rows::Table(rows), _) => {
                let about = rows.next().ok_or_else(gone)??;
                Ok(about.map_err(|problem| format!("{}, row {row}: {problem}", path.display())))
            }
            (Rows::Text(lines), form) => {
                if !lines.advance()? {
                    return Err(gone());
                }
                let about = match form {
                    Form::Tsv { roles } => match lines.text() {
                        Ok(line) => tsv_row(line, roles, row).map_err(|problem| lines.error(problem))?,
                        Err(problem) => Err(problem),
                    },
                    Form::JsonLines(roles) => lines.text().and_then(|line| json_row(line, roles)),
                    Form::Parquet(_) => return Err(gone()),
                };
                let number = lines.number;
                Ok(about.map_err(|problem| format!("{}, line {number}: {problem}", path.display())))
            }
        }
    }
}

/// The first id of a table that has any.
fn first_tsv_id(path: &Path, roles: &[Role]) -> Result<Option<String>, Error> {
    let Some(column) = roles.iter().position(|role| *role == Role::Id) else { return Ok(None) };
    let mut lines = Lines::open(path)?;
    lines.advance()?;
    while lines.advance()? {
        let field = lines.text().ok().and_then(|line| line.split('\t').nth(column));
        if let Some(field) = field.filter(|field| !field.is_empty()) {
            return Ok(Some(field.to_owned()));
        }
    }
    Ok(None)
}

/// The first `id` of JSON lines that have any.
fn first_json_id(path: &Path) -> Result<Option<Value>, Error> {
    let mut lines = Lines::open(path)?;
    while lines.advance()? {
        let object = lines.text().ok().and_then(|line| serde_json::from_str::<Map<String, Value>>(line).ok());
        if let Some(id) = object.and_then(|mut object| object.remove("id")).filter(|id| !id.is_null()) {
            return Ok(Some(id));
        }
    }
    Ok(None)
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
        _ if name == id && !options.no_ids => Role::Id,
        _ if Some(name) == uri => Role::Uri,
        "row" => Role::Position,
        _ => tag_role(name, options),
    };
    Ok(names.into_iter().map(role).collect())
}

/// The outer error is one of the whole table: its rows are not those of the vectors.
fn tsv_row(line: &str, roles: &[Role], row: u64) -> Result<Result<About, String>, String> {
    let fields = line.split('\t').count();
    if fields != roles.len() {
        return Ok(Err(format!("has {fields} fields, the header has {}", roles.len())));
    }
    let (mut about, mut wrong) = (About::default(), None);
    for (role, field) in roles.iter().zip(line.split('\t')) {
        if *role == Role::Position && field.parse() != Ok(row) {
            return Err(format!("is row {row} by its place but says {} in the column 'row'", short(field)));
        }
        if !field.is_empty() && wrong.is_none() {
            wrong = about.note(role, field.to_owned()).err();
        }
    }
    Ok(wrong.map_or(Ok(about), Err))
}

fn json_row(line: &str, roles: &JsonRoles) -> Result<About, String> {
    let object: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| format!("is not a JSON object ({error})"))?;
    let is_text = |name: &&str| object.get(*name).is_some_and(Value::is_string);
    let uri = roles.uri.as_deref().or_else(|| URI_NAMES.into_iter().find(is_text)).map(str::to_owned);
    let mut about = About::default();
    for (name, value) in object {
        let role = match () {
            () if roles.id.as_ref() == Some(&name) => Role::Id,
            () if uri.as_ref() == Some(&name) => Role::Uri,
            () if roles.tags.as_ref().is_some_and(|wanted| !wanted.contains(&name)) => continue,
            () => Role::Tag(name),
        };
        let text = match (&role, value) {
            (_, Value::Null) => continue,
            (Role::Id, value @ (Value::Bool(_) | Value::Array(_) | Value::Object(_))) => {
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
        let read = || -> Result<Vec<About>, String> {
            let open = || Metadata::open(&path, options, Path::new("x.npy"), rows);
            let metadata = open().map_err(|error| error.to_string())?;
            let mut records = metadata.records(from).map_err(|error| error.to_string())?;
            let rows = (from..rows).map(|_| records.read()).collect::<Result<Vec<_>, Error>>();
            rows.map_err(|error| error.to_string())?.into_iter().collect()
        };
        let prefix = format!("{}/", folder.path().display());
        read().map_err(|error: String| error.replace(&prefix, ""))
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
    fn ids_may_be_whole_floats_or_text() {
        let none = Options::default();
        assert_eq!(read("m.jsonl", "{\"id\": 11.0}\n{\"id\": null}", &none, 0, 2).unwrap()[0].id, Some(11));
        assert_eq!(read("m.tsv", "id\n13.0\n", &none, 0, 1).unwrap(), [about(Some(13), None, &[])]);
        // Text is no id: a tag, or the uri where there is none.
        let text = "{\"id\": \"a\", \"url\": \"u\"}\n{\"id\": 7}";
        let rows = [about(None, Some("u"), &[("id", "a")]), about(None, None, &[("id", "7")])];
        assert_eq!(read("m.jsonl", text, &none, 0, 2).unwrap(), rows);
        assert_eq!(read("m.tsv", "id\n\nx1\n", &none, 0, 1).unwrap(), [about(None, Some("x1"), &[])]);
        assert_eq!(
            read("m.tsv", "id\turl\nx1\tu\n", &none, 0, 1).unwrap(),
            [about(None, Some("u"), &[("id", "x1")])]
        );
        // Named, it has to hold numbers, however they are written.
        let named = Options { id_column: Some("id".into()), ..Options::default() };
        assert_eq!(read("m.jsonl", "{\"id\": \"12\"}", &named, 0, 1).unwrap(), [about(Some(12), None, &[])]);
        let left_out = Options { no_ids: true, ..Options::default() };
        assert_eq!(read("m.tsv", "id\n3\n", &left_out, 0, 1).unwrap(), [about(None, None, &[("id", "3")])]);
        let only = Options { tag_columns: Some(vec!["b".into()]), ..Options::default() };
        assert_eq!(
            read("m.jsonl", "{\"a\": 1, \"b\": 2}", &only, 0, 1).unwrap(),
            [about(None, None, &[("b", "2")])]
        );
        assert_eq!(read("m.tsv", "a\tb\n1\t2\n", &only, 0, 1).unwrap(), [about(None, None, &[("b", "2")])]);
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
            ("m.jsonl", "{\"id\": 1.5}", &none, 1, "m.jsonl, line 1: id '1.5' is not an integer from 0 to"),
            ("m.jsonl", "{\"id\": 1e17}", &none, 1, "m.jsonl, line 1: id '1e+17' is a float too large"),
            ("m.jsonl", "{\"id\": [1]}", &none, 1, "m.jsonl, line 1: id '[1]' is not an integer"),
            (
                "m.jsonl",
                "{\"id\": 1}\n{\"id\": \"x\"}",
                &none,
                2,
                "m.jsonl, line 2: id 'x' is not an integer from",
            ),
            ("m.jsonl", "{\"photo\": 1}", &uri, 1, "m.jsonl, line 1: uri '1' is not a string"),
            ("m.tsv", "id\n1\nx\n", &none, 2, "m.tsv, line 3: id 'x' is not an integer from 0 to"),
            ("m.tsv", "a\tb\n1\n", &none, 1, "m.tsv, line 2: has 1 fields, the header has 2"),
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
