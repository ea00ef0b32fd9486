//! Lists: a path a line.
//!
//! * A line is a name as it is on disk, whatever its encoding; `\r\n` ends it as well as `\n`, and a mark of UTF-8 at the
//!   beginning of the file is no part of it.
//! * It is taken from the list's own folder; where nothing of that name is there, from the current one. So a list can
//!   travel with its pictures, and a list that `find` wrote from here works wherever it is kept.
//! * A line that begins with `#` is a comment, unless a file of that very name is there. `./#1.jpg` is always a name.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context;
use viscache::store::Stamp;

use super::{Refusal, Step, Walk, name};

/// Longest line; a longer one is no path.
const MAX_LINE: u64 = 64 << 10;

/// A list that can be read as often as needed.
pub struct List {
    file: File,
    /// As it was named.
    path: PathBuf,
    /// Where its lines are looked for first.
    folder: PathBuf,
}

impl List {
    /// Opens a list; `-` is what comes from standard input.
    ///
    /// A pipe is copied aside, because it can be read only once.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot read the list {}", path.display());
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let from = if path == Path::new("-") { Path::new("/dev/stdin") } else { path };
        let mut file = File::open(from).with_context(context)?;
        if !file.metadata().with_context(context)?.is_file() {
            let mut copy = tempfile::tempfile().context(
                "a list that is no file is copied into a temporary one; TMPDIR names a folder for it",
            )?;
            std::io::copy(&mut file, &mut copy).with_context(context)?;
            copy.flush()?;
            file = copy;
        }
        Ok(List { file, path: path.to_owned(), folder })
    }

    /// Calls `line` with every line that is a name.
    fn lines(&self, mut line: impl FnMut(&[u8]) -> Step) -> Step {
        let context = || format!("cannot read the list {}", self.path.display());
        // Readers of one file share its place, so it has to be set, and only one may read at a time.
        (&self.file).seek(SeekFrom::Start(0)).with_context(context)?;
        let (mut reader, mut bytes, mut first) = (BufReader::new(&self.file), Vec::new(), true);
        loop {
            bytes.clear();
            let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes).with_context(context)?;
            if read == 0 {
                return Ok(ControlFlow::Continue(()));
            }
            let mut entry = &bytes[..];
            if std::mem::take(&mut first) {
                entry = entry.strip_prefix(b"\xef\xbb\xbf").unwrap_or(entry);
            }
            entry = entry.strip_suffix(b"\n").unwrap_or(entry);
            entry = entry.strip_suffix(b"\r").unwrap_or(entry);
            if !entry.trim_ascii().is_empty() && line(entry)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }

    /// The path that a line names, and what is there; `None` for a comment.
    fn place(&self, line: &[u8]) -> Option<(PathBuf, std::io::Result<fs::Metadata>)> {
        let exact = self.candidates(line);
        // Blanks around a name belong to it if there is such a file; mostly a list's author only indented.
        let trimmed =
            Some(line.trim_ascii()).filter(|trimmed| *trimmed != line).map(|line| self.candidates(line));
        let all = exact.into_iter().chain(trimmed.into_iter().flatten());
        let mut missing = None;
        for path in all {
            match fs::metadata(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    missing.get_or_insert((path, Err(e)));
                }
                about => return Some((path, about)),
            }
        }
        missing.filter(|_| !line.trim_ascii_start().starts_with(b"#"))
    }

    fn candidates(&self, line: &[u8]) -> [PathBuf; 2] {
        let path = name::path(line);
        [name::tidy(&self.folder.join(&path)), name::tidy(&path)]
    }
}

impl Walk<'_> {
    pub(super) fn list(&mut self, list: &List) -> Step {
        list.lines(|line| match list.place(line) {
            None => Ok(ControlFlow::Continue(())),
            Some((path, Ok(about))) => self.named(&path, &about),
            Some((path, Err(e))) => self.not(&path, Stamp::default(), Refusal::Failed(e.to_string())),
        })
    }
}
