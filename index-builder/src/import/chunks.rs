//! Walks the files in order and joins every row with its metadata.
//!
//! One file is open at a time. Vectors come in batches, metadata row by row behind them; both were counted
//! when the import was opened, so running short of either means that a file changed under us, which is an
//! error and not an end.

use super::error::Error;
use super::metadata::Records;
use super::raw::{About, Batches};
use super::{BadRow, Chunk, Import, Row, Source};

/// The iterator behind [`Import::chunks`].
pub(super) struct Chunks<'a> {
    import: &'a Import,
    rows_per_chunk: usize,
    /// Global number of the next row.
    next: u64,
    /// The file of the next row.
    source: usize,
    opened: Option<(Batches<'a>, Option<Records<'a>>)>,
    /// Metadata of the whole import, at row `next`.
    shared: Option<Records<'a>>,
    failed: bool,
}

impl<'a> Chunks<'a> {
    pub(super) fn new(import: &'a Import, rows_per_chunk: usize, skip: u64) -> Chunks<'a> {
        let rows_per_chunk = rows_per_chunk.max(1);
        Chunks { import, rows_per_chunk, next: skip, source: 0, opened: None, shared: None, failed: false }
    }

    fn advance(&mut self) -> Result<Option<Chunk>, Error> {
        while let Some(source) = self.import.sources.get(self.source) {
            let end = source.first + source.vectors.shape().0;
            if self.next >= end {
                self.opened = None;
                self.source += 1;
                continue;
            }
            let (vectors, own) = match &mut self.opened {
                Some(opened) => opened,
                none => none.insert(open(source, self.rows_per_chunk, self.next)?),
            };
            let batch = vectors.next().transpose()?.unwrap_or_default();
            let path = &self.import.files[self.source].path;
            if batch.is_empty() || batch.len() as u64 > end - self.next {
                return Err(Error::damaged(path, "has another number of rows than it announced"));
            }
            if let (None, Some(metadata)) = (&self.shared, &self.import.metadata) {
                self.shared = Some(metadata.records(self.next)?);
            }
            let mut chunk =
                Chunk { first: self.next, rows: Vec::with_capacity(batch.len()), bad: Vec::new() };
            for raw in batch {
                let about = match own.as_mut().or(self.shared.as_mut()) {
                    Some(records) => records.read()?.map(|about| about.or(raw.about)),
                    None => Ok(raw.about),
                };
                let (source, row) = (self.source, self.next - source.first);
                match raw.values.and_then(|values| Ok((values, about?))) {
                    Ok((values, About { id, uri, tags })) => {
                        chunk.rows.push(Row { source, row, values, id, uri, tags });
                    }
                    Err(reason) => chunk.bad.push(BadRow { source, row, reason }),
                }
                self.next += 1;
            }
            return Ok(Some(chunk));
        }
        Ok(None)
    }
}

/// Opens a file and its own metadata at a row that it has.
fn open(source: &Source, size: usize, next: u64) -> Result<(Batches<'_>, Option<Records<'_>>), Error> {
    let from = next - source.first;
    let records = source.metadata.as_ref().map(|metadata| metadata.records(from)).transpose()?;
    Ok((source.vectors.batches(size, from)?, records))
}

impl Iterator for Chunks<'_> {
    type Item = Result<Chunk, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let chunk = self.advance();
        self.failed = chunk.is_err();
        chunk.transpose()
    }
}
