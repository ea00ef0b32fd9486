//! Parquet: tables with a column of vectors, and tables of metadata.
//!
//! ```text
//!  embedding: list<float>   id: int64   image_path: string   caption: string   similarity: double
//!  └ the only list of        └ id        └ uri, the first     └ a tag           └ not read
//!    floats, or by name                    of the usual names
//! ```
//!
//! Only the columns that have a role are read. The file's own types are used and the copy of the Arrow schema
//! that writers embed is passed over: lists of any kind are then lists, and strings of any kind, dictionaries
//! included, are strings. The price is that a fixed list length is not known from the header; the dimension
//! is instead the commonest length among the first rows, and rows of another length are set aside.
//!
//! Left out: floats, dates and nested columns as tags.

use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use ::parquet::errors::ParquetError;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field};

use super::Options;
use super::error::Error;
use super::raw::{About, Batches, Raw, Role, URI_NAMES, tag_role, text_ids};
use super::values::usable;

/// How every file begins (and ends).
pub(super) const MAGIC: &[u8] = b"PAR1";

/// Rows read at once where the caller has no wish: to find the dimension, and of metadata.
const BATCH: usize = 256;

/// A parquet file and what its columns are for.
pub(super) struct Table {
    path: PathBuf,
    pub(super) rows: u64,
    metadata: ArrowReaderMetadata,
    /// Columns that are read, by number, in order.
    roles: Vec<(usize, Role)>,
    /// What is not as its names would have it.
    pub(super) notes: Vec<String>,
}

/// A parquet file with a column of vectors.
pub(super) struct Embeddings {
    table: Table,
    pub(super) dim: usize,
}

impl Table {
    /// Opens a table of metadata.
    pub(super) fn metadata(path: &Path, options: &Options) -> Result<Table, Error> {
        let mut table = Table::open(path)?;
        table.assign(options, None)?;
        Ok(table)
    }

    fn open(path: &Path) -> Result<Table, Error> {
        let file = File::open(path).map_err(|source| Error::unreadable(path, source))?;
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = guard(path, || ArrowReaderMetadata::load(&file, options))?;
        let rows = metadata.metadata().file_metadata().num_rows();
        let rows = u64::try_from(rows).map_err(|_| Error::damaged(path, format!("announces {rows} rows")))?;
        Ok(Table { path: path.to_owned(), rows, metadata, roles: Vec::new(), notes: Vec::new() })
    }

    /// Gives every usable column its role; `embedding` is the number of the column of vectors.
    fn assign(&mut self, options: &Options, embedding: Option<usize>) -> Result<(), Error> {
        let id = self.named(&options.id_column, "--id-column", "integer, float or string", could_be_id)?;
        let id = id.or_else(|| self.field("id").filter(|id| is_number(id)).map(|_| "id"));
        let id = id.filter(|_| !options.no_ids);
        let uri = self.named(&options.uri_column, "--uri-column", "string", is_string)?;
        let uri = uri.or_else(|| URI_NAMES.into_iter().find(|name| self.field(name).is_some_and(is_string)));
        let text_id = id.is_none() && !options.no_ids && self.field("id").is_some_and(is_string);
        // Text in a column `id` names the thing as well as a uri does.
        let uri = uri.or(if text_id { Some("id") } else { None });
        let (mut roles, mut dropped, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        if text_id {
            notes.push(text_ids(&self.path, uri == Some("id")));
        }
        for (number, field) in self.metadata.schema().fields().iter().enumerate() {
            let role = match field.name() {
                _ if Some(number) == embedding => Role::Embedding,
                name if Some(name.as_str()) == id => Role::Id,
                name if Some(name.as_str()) == uri => Role::Uri,
                name if is_scalar(field) => tag_role(name, options),
                name => {
                    dropped.push(format!("{name} ({})", field.data_type()));
                    continue;
                }
            };
            if role != Role::Unused {
                roles.push((number, role));
            }
        }
        let missing =
            options.tag_columns.iter().flatten().filter(|name| !self.field(name).is_some_and(is_scalar));
        if let Some(missing) = missing.clone().next() {
            let problem = format!("has no column '{missing}' of strings, integers or booleans");
            return Err(self.choose(problem, "--tag-columns"));
        }
        if !dropped.is_empty() && options.tag_columns.is_none() {
            notes.push(format!(
                "{}: not read, because no tag can be made of them: {}",
                self.path.display(),
                dropped.join(", ")
            ));
        }
        (self.roles, self.notes) = (roles, notes);
        Ok(())
    }

    /// The column that an option names, if it is of the right type.
    fn named<'a>(
        &self,
        name: &'a Option<String>,
        option: &'static str,
        kind: &str,
        fits: fn(&Field) -> bool,
    ) -> Result<Option<&'a str>, Error> {
        match name {
            Some(name) if !self.field(name).is_some_and(fits) => {
                Err(self.choose(format!("has no {kind} column '{name}'"), option))
            }
            name => Ok(name.as_deref()),
        }
    }

    fn field(&self, name: &str) -> Option<&Field> {
        self.metadata.schema().fields().find(name).map(|(_, field)| field.as_ref())
    }

    fn choose(&self, problem: String, option: &'static str) -> Error {
        let fields = self.metadata.schema().fields().iter();
        let columns: Vec<String> =
            fields.map(|field| format!("{}: {}", field.name(), field.data_type())).collect();
        Error::ChooseColumn { path: self.path.clone(), problem, option, columns: columns.join(", ") }
    }

    /// Reads the columns with a role that `wanted` accepts.
    fn read(&self, size: usize, from: u64, wanted: fn(&Role) -> bool) -> Result<Reader<'_>, Error> {
        let file = File::open(&self.path).map_err(|source| Error::unreadable(&self.path, source))?;
        let columns = self.roles.iter().filter(|(_, role)| wanted(role)).map(|(number, _)| *number);
        let columns = ProjectionMask::roots(self.metadata.parquet_schema(), columns);
        // `from` is below `rows`, and a table of more rows than an address has bits is not on this disk.
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone());
        let builder = builder.with_projection(columns).with_batch_size(size).with_offset(from);
        Ok(Reader { path: &self.path, batches: guard(&self.path, || builder.build())? })
    }

    /// Reads a table of metadata row by row, from `from` on.
    pub(super) fn rows_from(&self, from: u64) -> Result<TableRows<'_>, Error> {
        let reader = self.read(BATCH, from, |_| true)?;
        Ok(TableRows { table: self, reader, batch: None, next: 0 })
    }

    /// What the columns of a batch say about one row; `Err` is the reason why it cannot be so.
    fn about(&self, batch: &RecordBatch, row: usize) -> Result<About, String> {
        let mut about = About::default();
        for ((_, role), column) in self.roles.iter().zip(batch.columns()) {
            if let Some(text) = text(column, row) {
                about.note(role, text)?;
            }
        }
        Ok(about)
    }
}

/// Batches of a file, with its name in every error.
struct Reader<'a> {
    path: &'a Path,
    batches: ParquetRecordBatchReader,
}

impl Iterator for Reader<'_> {
    type Item = Result<RecordBatch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        guard(self.path, || self.batches.next().transpose().map_err(ParquetError::from)).transpose()
    }
}

/// Names the file in what goes wrong, and takes a panic for what it is.
///
/// The reader asserts some facts that a damaged file can contradict (one flipped bit in 600 of a
/// small file does). Nothing is used again after an error, so that a half-done step cannot be seen.
fn guard<T>(path: &Path, step: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, Error> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(result) => result.map_err(|source| Error::Parquet { path: path.to_owned(), source }),
        Err(_) => Err(Error::damaged(path, "contradicts itself, so that the parquet reader gives up")),
    }
}

/// Rows of a table of metadata; the inner error is the reason why a row makes no sense.
pub(super) struct TableRows<'a> {
    table: &'a Table,
    reader: Reader<'a>,
    batch: Option<RecordBatch>,
    next: usize,
}

impl Iterator for TableRows<'_> {
    type Item = Result<Result<About, String>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(batch) = self.batch.as_ref().filter(|batch| self.next < batch.num_rows()) {
                self.next += 1;
                return Some(Ok(self.table.about(batch, self.next - 1)));
            }
            match self.reader.next()? {
                Ok(batch) => (self.batch, self.next) = (Some(batch), 0),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Embeddings {
    /// Finds the column of vectors and their dimension.
    pub(super) fn open(path: &Path, options: &Options) -> Result<Embeddings, Error> {
        let mut table = Table::open(path)?;
        if table.rows == 0 {
            return Err(Error::no_rows(path));
        }
        let fields = table.metadata.schema().fields();
        let vectors: Vec<usize> = (0..fields.len()).filter(|number| is_vector(&fields[*number])).collect();
        let column = match &options.embedding_column {
            Some(name) => {
                let column =
                    fields.find(name).map(|(number, _)| number).filter(|number| vectors.contains(number));
                column.ok_or_else(|| format!("has no column '{name}' of lists of floats"))
            }
            None => match vectors[..] {
                [only] => Ok(only),
                [] => Err("has no column of lists of floats".to_owned()),
                _ => Err(format!("has {} columns of lists of floats", vectors.len())),
            },
        };
        let column = column.map_err(|problem| table.choose(problem, "--embedding-column"))?;
        // With one metadata file for everything, that is where the named columns are.
        let unnamed = Options::default();
        table.assign(if options.metadata.is_some() { &unnamed } else { options }, Some(column))?;
        let dim = match options.dim {
            Some(dim) => dim,
            None => dimension(&table)?,
        };
        Ok(Embeddings { table, dim })
    }

    pub(super) fn rows(&self) -> u64 {
        self.table.rows
    }

    /// What is not as its names would have it.
    pub(super) fn notes(&self) -> &[String] {
        &self.table.notes
    }

    /// Whether a column holds ids.
    pub(super) fn has_ids(&self) -> bool {
        self.table.roles.iter().any(|(_, role)| *role == Role::Id)
    }

    /// Reads rows from `from` on, at most `size` (at least 1) at once.
    pub(super) fn batches(&self, size: usize, from: u64) -> Result<Batches<'_>, Error> {
        let reader = self.table.read(size, from, |_| true)?;
        Ok(Box::new(reader.map(|batch| {
            let batch = batch?;
            Ok((0..batch.num_rows()).map(|row| self.raw(&batch, row)).collect())
        })))
    }

    fn raw(&self, batch: &RecordBatch, row: usize) -> Raw {
        let column = self.table.roles.iter().position(|(_, role)| *role == Role::Embedding);
        let values = column.and_then(|column| list(batch.column(column), row));
        let values = match values {
            None => Err("the vector is null".to_owned()),
            Some(values) if values.len() != self.dim => {
                Err(format!("has {} values, expected {}", values.len(), self.dim))
            }
            Some(values) => floats(&values),
        };
        match self.table.about(batch, row) {
            Ok(about) => Raw { values, about },
            Err(reason) => Raw { values: Err(reason), about: About::default() },
        }
    }
}

/// The commonest length (the greatest of several) of the usable vectors in the first batch that has any: a placeholder such as
/// one NaN is none.
fn dimension(table: &Table) -> Result<usize, Error> {
    for batch in table.read(BATCH, 0, |role| *role == Role::Embedding)? {
        let batch = batch?;
        let mut lengths = BTreeMap::<usize, usize>::new();
        for row in 0..batch.num_rows() {
            if let Some(values) = list(batch.column(0), row).and_then(|values| floats(&values).ok()) {
                *lengths.entry(values.len()).or_default() += 1;
            }
        }
        if let Some((dim, _)) = lengths.into_iter().max_by_key(|(_, count)| *count) {
            return Ok(dim);
        }
    }
    let problem = "has no usable vector: only nulls, NaN or zeros where they should be";
    Err(Error::unsupported(&table.path, problem, "leave it out"))
}

/// The list at a row, if it is not null.
fn list(column: &ArrayRef, row: usize) -> Option<ArrayRef> {
    column.as_list_opt::<i32>().filter(|lists| lists.is_valid(row)).map(|lists| lists.value(row))
}

/// The values of a vector, or why it is unusable.
fn floats(values: &ArrayRef) -> Result<Vec<f32>, String> {
    if let Some(column) = (0..values.len()).find(|column| values.is_null(*column)) {
        return Err(format!("value at column {column} is null"));
    }
    match values.data_type() {
        DataType::Float16 => usable(values.as_primitive::<Float16Type>().values().iter().map(|v| v.to_f64())),
        DataType::Float32 => {
            usable(values.as_primitive::<Float32Type>().values().iter().map(|v| f64::from(*v)))
        }
        DataType::Float64 => usable(values.as_primitive::<Float64Type>().values().iter().copied()),
        other => Err(format!("has values of {other}")),
    }
}

/// A string, number or boolean as text; `None` if it is null or something else. A float that is NaN is null to pandas.
fn text(column: &ArrayRef, row: usize) -> Option<String> {
    fn number<T: ArrowPrimitiveType<Native: ToString>>(column: &ArrayRef, row: usize) -> String {
        column.as_primitive::<T>().value(row).to_string()
    }
    if column.is_null(row) {
        return None;
    }
    let text = match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
        DataType::Boolean => column.as_boolean().value(row).to_string(),
        // Only ids are read from floats.
        DataType::Float16 => column.as_primitive::<Float16Type>().value(row).to_f64().to_string(),
        DataType::Float32 => number::<Float32Type>(column, row),
        DataType::Float64 => number::<Float64Type>(column, row),
        DataType::Int8 => number::<Int8Type>(column, row),
        DataType::Int16 => number::<Int16Type>(column, row),
        DataType::Int32 => number::<Int32Type>(column, row),
        DataType::Int64 => number::<Int64Type>(column, row),
        DataType::UInt8 => number::<UInt8Type>(column, row),
        DataType::UInt16 => number::<UInt16Type>(column, row),
        DataType::UInt32 => number::<UInt32Type>(column, row),
        DataType::UInt64 => number::<UInt64Type>(column, row),
        _ => return None,
    };
    Some(text).filter(|text| text != "NaN" || !column.data_type().is_floating())
}

fn is_vector(field: &Field) -> bool {
    matches!(field.data_type(), DataType::List(item) if item.data_type().is_floating())
}

fn is_integer(field: &Field) -> bool {
    field.data_type().is_integer()
}

fn is_number(field: &Field) -> bool {
    is_integer(field) || field.data_type().is_floating()
}

fn could_be_id(field: &Field) -> bool {
    is_number(field) || is_string(field)
}

fn is_string(field: &Field) -> bool {
    *field.data_type() == DataType::Utf8
}

fn is_scalar(field: &Field) -> bool {
    is_integer(field) || is_string(field) || *field.data_type() == DataType::Boolean
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::import::tests::{Read, read_all_with};
    use ::parquet::arrow::ArrowWriter;
    use arrow_array::builder::{FixedSizeListBuilder, Float16Builder, LargeListBuilder};
    use arrow_array::types::Int32Type;
    use arrow_array::{
        BooleanArray, DictionaryArray, Float64Array, Int64Array, LargeStringArray, ListArray, StringArray,
        UInt32Array,
    };
    use half::f16;
    use std::sync::Arc;
    use tempfile::TempDir;

    /// Writes a table, in row groups of 3.
    pub(in crate::import) fn write_table(path: &Path, columns: &[(&str, ArrayRef)]) {
        let batch = RecordBatch::try_from_iter_with_nullable(
            columns.iter().map(|(name, column)| (name, column.clone(), true)),
        );
        let batch = batch.unwrap();
        let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
        for first in (0..batch.num_rows()).step_by(3) {
            writer.write(&batch.slice(first, 3.min(batch.num_rows() - first))).unwrap();
            writer.flush().unwrap();
        }
        writer.close().unwrap();
    }

    fn lists(rows: Vec<Option<Vec<Option<f32>>>>) -> ArrayRef {
        Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(rows))
    }

    fn read(columns: &[(&str, ArrayRef)], options: &Options, size: usize) -> Result<Read, String> {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("t.parquet");
        write_table(&path, columns);
        let prefix = format!("{}/", folder.path().display());
        read_all_with(&path, options, size).map_err(|error| error.to_string().replace(&prefix, ""))
    }

    #[test]
    fn columns_find_their_roles_and_bad_rows_their_reasons() {
        let two = |a, b| Some(vec![Some(a), Some(b)]);
        let vectors =
            lists(vec![two(1.0, 2.0), None, Some(vec![Some(3.0)]), two(f32::NAN, 1.0), two(5.0, 6.0)]);
        let columns: [(&str, ArrayRef); 7] = [
            ("path", Arc::new(LargeStringArray::from(vec!["p0", "p1", "p2", "p3", "p4"]))),
            ("vector", vectors),
            ("id", Arc::new(UInt32Array::from(vec![Some(7), None, None, None, None]))),
            ("url", Arc::new(StringArray::from(vec![None, None, None, None, Some("u4")]))),
            ("label", Arc::new("cat cat cat dog dog".split(' ').collect::<DictionaryArray<Int32Type>>())),
            ("ok", Arc::new(BooleanArray::from(vec![Some(true), None, None, None, None]))),
            ("similarity", Arc::new(Float64Array::from(vec![0.5; 5]))),
        ];
        for size in [1, 2, 100] {
            let (rows, bad) = read(&columns, &Options::default(), size).unwrap();
            assert_eq!(
                bad.iter().map(|bad| (bad.row, &bad.reason[..])).collect::<Vec<_>>(),
                [(1, "the vector is null"), (2, "has 1 values, expected 2"), (3, "value at column 0 is NaN"),]
            );
            let read: Vec<_> =
                rows.iter().map(|row| (row.row, &row.values[..], row.id, row.uri.as_deref())).collect();
            assert_eq!(read, [(0, &[1.0, 2.0][..], Some(7), None), (4, &[5.0, 6.0][..], None, Some("u4"))]);
            assert_eq!(format!("{:?}", rows[0].tags), r#"{"label": "cat", "ok": "true", "path": "p0"}"#);
        }
        let options = Options { id_column: None, uri_column: Some("path".into()), ..Options::default() };
        let (rows, _) = read(&columns, &options, 2).unwrap();
        assert_eq!((rows[1].uri.as_deref(), &rows[1].tags["url"][..]), (Some("p4"), "u4"));
    }

    #[test]
    fn lists_of_any_kind_and_width_are_vectors() {
        let mut halves = FixedSizeListBuilder::new(Float16Builder::new(), 2);
        let mut doubles = LargeListBuilder::new(arrow_array::builder::Float64Builder::new());
        for row in [[1.0, -0.5], [0.25, 1e-3]] {
            row.iter().for_each(|value| halves.values().append_value(f16::from_f64(*value)));
            halves.append(true);
            doubles.append_value(row.map(|value| Some(f16::from_f64(value).to_f64())));
        }
        let columns: [(&str, ArrayRef); 2] =
            [("h", Arc::new(halves.finish())), ("d", Arc::new(doubles.finish()))];
        let named = |name: &str| Options { embedding_column: Some(name.to_owned()), ..Options::default() };
        let halves = read(&columns, &named("h"), 9).unwrap();
        assert_eq!(halves.0[0].values, [1.0, -0.5]);
        assert_eq!(read(&columns, &named("d"), 1).unwrap(), halves);
        let message = read(&columns, &Options::default(), 9).unwrap_err();
        let expected = "t.parquet: has 2 columns of lists of floats; name one with --embedding-column;";
        assert!(message.starts_with(expected), "{message}");
    }

    #[test]
    fn columns_that_do_not_fit_are_listed() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![-1]));
        let vectors = lists(vec![Some(vec![Some(1.0)])]);
        let columns = [("id", numbers.clone()), ("v", vectors)];
        let cases = [
            (
                &columns[..1],
                Options::default(),
                "t.parquet: has no column of lists of floats; name one with --embedding-column; the columns",
            ),
            (
                &columns,
                Options { embedding_column: Some("id".into()), ..Options::default() },
                "t.parquet: has no column 'id' of lists of floats;",
            ),
            (
                &columns,
                Options { id_column: Some("v".into()), ..Options::default() },
                "t.parquet: has no integer, float or string column 'v'; name one with --id-column;",
            ),
            (
                &columns,
                Options { uri_column: Some("id".into()), ..Options::default() },
                "t.parquet: has no string column 'id'; name one with --uri-column;",
            ),
            (
                &[("v", lists(vec![None]))],
                Options::default(),
                "t.parquet: has no usable vector: only nulls, NaN or zeros where they should be; leave it out",
            ),
            (&[("v", lists(vec![]))], Options::default(), "t.parquet: has no rows; leave it out"),
        ];
        for (columns, options, expected) in cases {
            let message = read(columns, &options, 9).unwrap_err();
            assert!(message.starts_with(expected), "{message}\nis not\n{expected}");
        }
        let (_, bad) = read(&columns, &Options::default(), 9).unwrap();
        assert_eq!(bad[0].reason, format!("id '-1' is not an integer from 0 to {}", u64::MAX));
    }

    #[test]
    fn placeholders_do_not_decide_the_dimension() {
        let placeholder = Some(vec![Some(f32::NAN)]);
        let vectors = [vec![placeholder; 300], vec![Some(vec![Some(1.0); 8])]].concat();
        let (rows, bad) = read(&[("v", lists(vectors.clone()))], &Options::default(), 64).unwrap();
        assert_eq!((rows.len(), bad.len(), rows[0].values.len()), (1, 300, 8));
        let (rows, _) =
            read(&[("v", lists(vectors))], &Options { dim: Some(3), ..Options::default() }, 64).unwrap();
        assert!(rows.is_empty());
    }

    #[test]
    fn ids_are_integers_whole_floats_or_text() {
        let vectors = || lists(vec![Some(vec![Some(1.0)]); 3]);
        let ids = |ids: ArrayRef, more: Option<ArrayRef>, options: &Options| {
            let mut columns = vec![("v", vectors()), ("id", ids)];
            columns.extend(more.map(|more| ("url", more)));
            read(&columns, options, 2).unwrap()
        };
        let floats = || Arc::new(Float64Array::from(vec![Some(11.0), None, Some(13.0)]));
        let (rows, _) = ids(floats(), None, &Options::default());
        assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [Some(11), None, Some(13)]);
        let (rows, _) = ids(floats(), None, &Options { no_ids: true, ..Options::default() });
        assert!(rows.iter().all(|row| row.id.is_none()));
        let (rows, bad) =
            ids(Arc::new(Float64Array::from(vec![0.5, f64::NAN, 2.0])), None, &Options::default());
        assert_eq!((rows.len(), bad.len()), (2, 1), "a NaN is a gap, a half is no id");
        let text = || Arc::new(StringArray::from(vec!["a", "b", "7"]));
        let (rows, _) = ids(text(), None, &Options::default());
        assert_eq!(rows[0].uri.as_deref(), Some("a"));
        let (rows, _) = ids(text(), Some(text()), &Options::default());
        assert_eq!((rows[1].id, &rows[1].tags["id"][..]), (None, "b"));
        let (rows, bad) = ids(text(), None, &Options { id_column: Some("id".into()), ..Options::default() });
        assert_eq!((rows[0].id, bad.len()), (Some(7), 2));
    }

    #[test]
    fn only_the_columns_asked_for_become_tags() {
        let text = || -> ArrayRef { Arc::new(StringArray::from(vec!["x"])) };
        let columns = [("v", lists(vec![Some(vec![Some(1.0)])])), ("a", text()), ("b", text())];
        let only = |names: &[&str]| Options {
            tag_columns: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            ..Options::default()
        };
        let (rows, _) = read(&columns, &only(&["b"]), 2).unwrap();
        assert_eq!(format!("{:?}", rows[0].tags), r#"{"b": "x"}"#);
        assert!(read(&columns, &only(&[]), 2).unwrap().0[0].tags.is_empty());
        assert!(read(&columns, &only(&["c"]), 2).unwrap_err().contains("no column 'c'"));
    }

    /// A small file of seven vectors.
    pub(in crate::import) fn table() -> Vec<u8> {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("t.parquet");
        let vectors = lists(vec![Some(vec![Some(1.0); 4]); 7]);
        write_table(&path, &[("v", vectors), ("url", Arc::new(StringArray::from(vec!["a"; 7])))]);
        std::fs::read(&path).unwrap()
    }

    /// Every byte of a small file, which is mostly the numbers that the reader must not believe.
    #[test]
    fn damage_is_an_error_and_no_panic() {
        let (folder, good) = (TempDir::new().unwrap(), table());
        let path = folder.path().join("t.parquet");
        std::fs::write(&path, &good).unwrap();
        let mut given_up = 0;
        let attempt = |bytes: &[u8]| {
            // A new file each time: some file systems wait for the disk when one is written over.
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
            read_all_with(&path, &Options::default(), 3)
        };
        for at in 0..good.len() {
            if at % 16 == 0 {
                assert!(attempt(&good[..at]).is_err(), "cut at {at}");
            }
            for bit in [3, 7] {
                let mut flipped = good.clone();
                flipped[at] ^= 1_u8 << bit;
                let read = attempt(&flipped);
                given_up += usize::from(read.is_err_and(|error| error.to_string().contains("gives up")));
            }
        }
        assert!(given_up > 0, "the reader no longer panics: guard can go");
    }
}
