//! The list: a row for each question, and why others are none.
//!
//! ```text
//! file,text,question,answers,wrong,modality,kind
//! beach.jpg,,What is on the sand?,dog|a dog,cat|cow,,photo
//! ,a dog that barks,,dog,,,text
//! ```
//! The first line names the columns, in any order. Needed are `answers` and one of `file` and `text`. CSV, where fields may be quoted
//! and have lines in them; in a `.tsv` a quote is a character like any other. Files are relative to the list.
//!
//! Every row that is not blank ends as a [`Row`] or as a [`Bad`]: together they are the rows of the list.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use csv::{ByteRecord, ReaderBuilder};
use serde::Serialize;
use viscache::types::Modality;

use super::{judge, kind};

/// Stands between answers.
const BETWEEN: char = '|';
const COLUMNS: [&str; 7] = ["file", "text", "question", "answers", "wrong", "modality", "kind"];

/// What a question is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Input {
    /// A file and what it is.
    File(PathBuf, Modality),
    /// A text.
    Text(String),
}

/// A question and its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// Where it begins in the list.
    pub(super) line: u64,
    /// What it is about.
    pub(super) input: Input,
    /// The file as the list has it, or the text.
    pub(super) name: String,
    /// What is asked, where the list says.
    pub(super) question: Option<String>,
    /// Right answers, at least one.
    pub(super) right: Vec<String>,
    /// Wrong ones; with them it is a choice.
    pub(super) wrong: Vec<String>,
    /// What rows are grouped by.
    pub(super) kind: String,
}

/// A row that cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Bad {
    /// Where it begins in the list.
    pub(super) line: u64,
    /// Why.
    pub(super) why: String,
}

/// What is in a list.
#[derive(Debug, Default)]
pub(super) struct List {
    /// The good rows.
    pub(super) rows: Vec<Row>,
    /// The others.
    pub(super) bad: Vec<Bad>,
    /// Columns that mean nothing here.
    pub(super) unused: Vec<String>,
}

/// Reads a list.
///
/// # Errors
/// A list that cannot be read, or has not the columns that are needed.
pub(super) fn read(path: &Path) -> anyhow::Result<List> {
    let bytes = fs::read(path).with_context(|| format!("cannot read the list {}", path.display()))?;
    let list = of(&bytes, path).with_context(|| format!("the list {}", path.display()))?;
    Ok(list)
}

fn of(bytes: &[u8], path: &Path) -> anyhow::Result<List> {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let tabs = ["tsv", "tab"].contains(&ending.as_str());
    let delimiter = if tabs { b'\t' } else { b',' };
    let mut table =
        ReaderBuilder::new().delimiter(delimiter).quoting(!tabs).flexible(true).from_reader(bytes);
    let columns = Columns::of(table.byte_headers()?)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let (mut list, mut record, mut lines) = (List::default(), ByteRecord::new(), Lines::default());
    while table.read_byte_record(&mut record)? {
        let begin = record.position().map_or(0, |at| at.byte() as usize);
        let line = lines.of(bytes, begin);
        // Spreadsheets leave rows of nothing behind.
        if record.iter().all(|field| field.trim_ascii().is_empty()) {
            continue;
        }
        match columns.row(&record, folder, line) {
            Ok(row) => list.rows.push(row),
            Err(why) => list.bad.push(Bad { line, why }),
        }
    }
    list.unused = columns.unused;
    Ok(list)
}

/// Where the columns are.
struct Columns {
    at: [Option<usize>; COLUMNS.len()],
    count: usize,
    unused: Vec<String>,
}

impl Columns {
    fn of(header: &ByteRecord) -> anyhow::Result<Columns> {
        let (mut at, mut unused) = ([None; COLUMNS.len()], Vec::new());
        for (i, field) in header.iter().enumerate() {
            let name = String::from_utf8_lossy(field).trim().to_lowercase();
            match COLUMNS.iter().position(|column| *column == name) {
                Some(column) if at[column].is_some() => bail!("it has two columns `{name}`"),
                Some(column) => at[column] = Some(i),
                None if name.is_empty() => {}
                None => unused.push(name),
            }
        }
        let columns = Columns { at, count: header.len(), unused };
        let there =
            || header.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>();
        if columns.place("answers").is_none() {
            bail!("it has no column `answers`; its first line names: {}", there().join(", "));
        }
        if columns.place("file").or(columns.place("text")).is_none() {
            bail!("it has neither a column `file` nor `text`; its first line names: {}", there().join(", "));
        }
        Ok(columns)
    }

    fn place(&self, name: &str) -> Option<usize> {
        COLUMNS.iter().position(|column| *column == name).and_then(|column| self.at[column])
    }

    /// A row of the list, or why it is none.
    fn row(&self, record: &ByteRecord, folder: &Path, line: u64) -> Result<Row, String> {
        if record.len() != self.count {
            return Err(format!("it has {} fields, and the first line {}", record.len(), self.count));
        }
        let field = |name: &str| -> Result<&str, String> {
            let bytes = self.place(name).and_then(|at| record.get(at)).unwrap_or_default();
            let text = std::str::from_utf8(bytes).map_err(|_| format!("`{name}` is not UTF-8"))?;
            Ok(text.trim())
        };
        let modality = match field("modality")? {
            "" => None,
            word => Some(word.parse::<Modality>().map_err(|e| e.to_string())?),
        };
        let (right, wrong) = (answers(field("answers")?), answers(field("wrong")?));
        if right.is_empty() {
            return Err("it has no right answer in `answers`".into());
        }
        if wrong.is_empty()
            && let Some(answer) = right.iter().find(|answer| judge::form(answer).is_empty())
        {
            return Err(format!("the answer `{answer}` is of punctuation alone"));
        }
        if let Some(both) = wrong.iter().find(|answer| right.contains(answer)) {
            return Err(format!("`{both}` is among the right answers and the wrong ones"));
        }
        let (file, text) = (field("file")?, field("text")?);
        let input = match (file, text) {
            ("", "") => return Err("it has neither a file nor a text".into()),
            ("", text) => match modality {
                None | Some(Modality::Text) => Input::Text(text.to_owned()),
                Some(other) => return Err(format!("it has a text, and its modality is {other}")),
            },
            (file, "") => located(folder, file, modality)?,
            _ => return Err("it has a file and a text; give one of them".into()),
        };
        let own = match &input {
            Input::File(_, modality) => *modality,
            Input::Text(_) => Modality::Text,
        };
        Ok(Row {
            line,
            name: if file.is_empty() { text } else { file }.to_owned(),
            question: Some(field("question")?).filter(|asked| !asked.is_empty()).map(str::to_owned),
            right,
            wrong,
            kind: Some(field("kind")?).filter(|kind| !kind.is_empty()).unwrap_or(own.word()).to_owned(),
            input,
        })
    }
}

/// A file that is there.
fn located(folder: &Path, name: &str, modality: Option<Modality>) -> Result<Input, String> {
    let path = folder.join(name);
    let about = fs::metadata(&path).map_err(|e| format!("the file `{name}` cannot be read: {e}"))?;
    if !about.is_file() {
        return Err(format!("`{name}` is not a file"));
    }
    if about.len() == 0 {
        return Err(format!("the file `{name}` is empty"));
    }
    let modality = match modality {
        Some(modality) => modality,
        None => kind::of(&path).map_err(|why| format!("`{name}`: {why}"))?,
    };
    Ok(Input::File(path, modality))
}

/// Answers, each once and without spaces around it.
fn answers(field: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for answer in field.split(BETWEEN).map(str::trim).filter(|answer| !answer.is_empty()) {
        if !all.iter().any(|there| there == answer) {
            all.push(answer.to_owned());
        }
    }
    all
}

/// Lines up to a place, counted once however often one asks; places only grow.
#[derive(Default)]
struct Lines {
    counted: usize,
    ends: u64,
}

impl Lines {
    /// The line of the first thing at `begin` or behind that is no end of a line: where a reader stands, blank lines may follow.
    fn of(&mut self, bytes: &[u8], begin: usize) -> u64 {
        let rest = bytes.get(begin..).unwrap_or_default();
        let blank = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let at = (begin + blank).min(bytes.len());
        let ends = |i: usize| match bytes[i] {
            b'\n' => true,
            b'\r' => bytes.get(i + 1) != Some(&b'\n'),
            _ => false,
        };
        self.ends += (self.counted..at).filter(|&i| ends(i)).count() as u64;
        self.counted = self.counted.max(at);
        self.ends + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        for (name, bytes) in [("a.png", "x"), ("sub/b.wav", "x"), ("empty.png", ""), ("what", "x")] {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn list(name: &str, bytes: &[u8]) -> anyhow::Result<List> {
        let folder = folder();
        of(bytes, &folder.path().join(name))
    }

    fn whys(list: &List) -> Vec<(u64, &str)> {
        list.bad.iter().map(|bad| (bad.line, bad.why.as_str())).collect()
    }

    #[test]
    fn rows_are_questions() {
        let text = "\u{feff}File, question ,ANSWERS,wrong,kind,text,note\r\n\
                    a.png,\"What,\r\nthen?\",cat| a cat ||cat,dog,photo,,x\r\n\
                    \r\n\
                    sub/b.wav,,dog,,,,\r\n\
                    ,,,,,,\r\n\
                    ,,yes,,,\"a \"\"text\"\"\",\r\n";
        let list = list("l.csv", text.as_bytes()).unwrap();
        assert_eq!((list.bad, list.unused), (vec![], vec!["note".to_owned()]));
        let [cat, dog, yes] = &list.rows[..] else { panic!("{:?}", list.rows) };
        assert_eq!((cat.line, dog.line, yes.line), (2, 5, 7));
        assert_eq!(cat.question.as_deref(), Some("What,\r\nthen?"));
        assert_eq!(
            (&cat.right[..], &cat.wrong[..]),
            (&["cat".into(), "a cat".into()][..], &["dog".into()][..])
        );
        assert_eq!((cat.kind.as_str(), dog.kind.as_str(), yes.kind.as_str()), ("photo", "audio", "text"));
        assert!(matches!(&dog.input, Input::File(path, Modality::Audio) if path.ends_with("sub/b.wav")));
        assert_eq!((&yes.input, &yes.question), (&Input::Text("a \"text\"".into()), &None));
        assert_eq!((cat.name.as_str(), yes.name.as_str()), ("a.png", "a \"text\""));
    }

    #[test]
    fn tabs_leave_quotes_alone() {
        let list = list("l.TSV", b"text\tanswers\n\"a\tb\"|c, d\n").unwrap();
        assert_eq!(
            (list.rows[0].name.as_str(), &list.rows[0].right[..]),
            ("\"a", &["b\"".into(), "c, d".into()][..])
        );
    }

    #[test]
    fn bad_rows_are_named_by_their_lines() {
        let text = b"file,text,answers,wrong,modality\n\
            gone.png,,cat,,\n\
            a.png,,,,\n\
            a.png,, | ,,\n\
            a.png,some,cat,,\n\
            ,,cat,,\n\
            a.png,,cat,dog|cat,\n\
            a.png,,cat,,smell\n\
            ,some,cat,,audio\n\
            a.png,,cat,\n\
            empty.png,,cat,,\n\
            sub,,cat,,\n\
            what,,cat,,\n\
            ,\xff,cat,,\n\
            ,some,?!,,\n\
            what,,cat,,depth\n\
            ,some,?!,!?,\n";
        let list = list("l.csv", text).unwrap();
        let whys = whys(&list);
        let expected = [
            (2, "`gone.png` cannot be read"),
            (3, "no right answer"),
            (4, "no right answer"),
            (5, "a file and a text"),
            (6, "neither a file nor a text"),
            (7, "`cat` is among the right answers and the wrong ones"),
            (8, "`smell` is not a modality"),
            (9, "its modality is audio"),
            (10, "it has 4 fields, and the first line 5"),
            (11, "is empty"),
            (12, "is not a file"),
            (13, "column `modality`"),
            (14, "`text` is not UTF-8"),
            (15, "`?!` is of punctuation alone"),
        ];
        assert_eq!(whys.len(), expected.len(), "{whys:?}");
        for ((line, why), (expected, part)) in whys.iter().zip(expected) {
            assert!(
                *line == expected && why.contains(part),
                "line {line}: {why}; expected {expected}: {part}"
            );
        }
        assert_eq!(list.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [16, 17]);
    }

    #[test]
    fn a_list_without_its_columns_is_refused() {
        let why = |bytes: &[u8]| list("l.csv", bytes).unwrap_err().to_string();
        assert!(
            why(b"file,anwers\na.png,cat\n")
                .contains("no column `answers`; its first line names: file, anwers")
        );
        assert!(why(b"answers,kind\ncat,x\n").contains("neither a column `file` nor `text`"));
        assert!(why(b"file,answers,File\n").contains("two columns `file`"));
        assert!(why(b"").contains("no column"));
        assert!(list("l.csv", b"file,answers").unwrap().rows.is_empty());
        assert!(
            read(Path::new("gone.csv")).unwrap_err().to_string().contains("cannot read the list gone.csv")
        );
    }

    #[test]
    fn lines_end_in_every_way() {
        let mut lines = Lines::default();
        let text = b"a\r\nb\rc\n\n\r\nd";
        assert_eq!([0, 1, 3, 5, 6].map(|at| lines.of(text, at)), [1, 2, 2, 3, 6]);
        assert_eq!(lines.of(text, 99), 6);
    }
}
