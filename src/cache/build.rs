//! An index over everything stored, from nothing: rows are read in passes, codes and graph are built in memory.

use std::time::Instant;

use super::Error;
use super::apart::{APART, apart, of_other_modalities};
use super::calibrate::{RECALL_SAMPLE, near_rows};
use super::choose::{self, choose};
use super::publish::write_blobs;
use super::queries::{Queries, QuerySample};
use super::rows::check_row;
use super::scan::RowAccess;
use super::tags;
use crate::index::{self, AlignedBytes, BuildParams, CodeKind, Codec, Coded, Parts, Reach, Rows as _};
use crate::store::{
    BlobWriter, CacheId, CacheRecord, Choice, GenerationRecord, ItemRecord, Moment, QuerySource, Recalls,
    Store,
};
use crate::types::{ItemId, Modality, Slot};

/// A moment of [`super::Writer::index`], for progress display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexStep {
    /// Ids and a sample of rows are being read.
    Read,
    /// So many more rows have been coded.
    Coded(usize),
    /// Codes are being chosen.
    Choose,
    /// A stage of the graph is done with so many more rows or queries.
    Built(index::Stage, usize),
    /// The index is being written down, measured and published.
    Publish,
}

/// An index that is not stored yet.
pub(super) struct Built {
    index: AlignedBytes,
    tags: Vec<u8>,
    queries: Vec<u8>,
    /// What recall is measured by, beside queries like the rows.
    pub(super) asked: Queries,
    pub(super) items: u64,
    /// Every change up to this one is in it.
    sequence: u64,
    /// [`CacheRecord::put`] as of now.
    put: u64,
    build: serde_json::Value,
    pub(super) choice: Option<Choice>,
    pub(super) reach: Reach,
    pub(super) recall: Recalls,
    /// Of reading rows, building, and measuring recall.
    pub(super) seconds: [f64; 3],
}

/// What recall is measured with: the index and its rows.
pub(super) type Measure = fn(&index::Index, &StoredRows<'_>, &Queries) -> Result<Recalls, Error>;

/// Builds an index over everything stored.
///
/// Rows are read three times and never all in memory: ids and a sample to train codecs, codes to build on, codes to search.
///
/// * `record`: the cache's, committed before the call: what was changed since may be in the index or not.
/// * `queries`, `measure`: as [`super::Writer::index`] has them.
///
/// # Errors
/// As [`super::Writer::index`].
pub(super) fn build<M>(
    store: &Store,
    record: &CacheRecord,
    params: &BuildParams,
    queries: &QuerySample,
    progress: impl Fn(IndexStep) + Sync,
    measure: Option<M>,
) -> Result<Built, Error>
where
    M: FnOnce(&index::Index, &StoredRows<'_>, &Queries) -> Result<Recalls, Error>,
{
    let mut clock = Instant::now();
    let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed().as_secs_f64();
    if !params.choose_codes && record.dim > params.codes.longest() {
        let allowed = format!("f16 or f32 for rows of {} components", record.dim);
        return Err(
            index::Error::Parameter { name: "codes", value: params.codes.word().into(), allowed }.into()
        );
    }
    progress(IndexStep::Read);
    let rows = StoredRows::now(store, record)?;
    if rows.is_empty() {
        return Err(index::Error::Empty.into());
    }
    let tags = tags::of_items(store, record, rows.ids.iter().copied().zip(0..), rows.ids.len())?;
    let sample = index::rows::sample(&rows)?;
    let [wide, narrow] = [CodeKind::U8, CodeKind::U4].map(|kind| Codec::train(kind, &sample, record.dim));
    let image = Modality::Image.word();
    let (mut asked, mut source) = (queries.held_out.clone(), QuerySource::Given);
    if params.choose_codes {
        if queries.is_empty() {
            let items = |visit: &mut dyn FnMut(ItemId, &ItemRecord)| {
                rows.moment.scan_items(record.id, |id, item| {
                    visit(id, &item);
                    Ok::<bool, Error>(true)
                })
            };
            let slot = |id: ItemId| Some(Slot(rows.ids.binary_search(&id).ok()? as u32));
            (asked, source) = (of_other_modalities(record.dim, items, slot, &rows)?, QuerySource::Rows);
        }
        if asked.is_empty() {
            source = QuerySource::Made;
            let made = apart(&sample, wide.mean(), RECALL_SAMPLE);
            asked.extend((!made.is_empty()).then(|| (APART.to_owned(), made)));
        }
        let near = near_rows(rows.len(), record.dim, &rows, choose::QUERIES)?;
        asked.entry(image.to_owned()).or_insert(near);
    }
    drop(sample);
    let [wide_codes, narrow_codes] =
        index::rows::encode(&rows, [&wide, &narrow], &|n| progress(IndexStep::Coded(n)))?;
    let read = lap();
    let choice = match params.choose_codes {
        false => None,
        true => {
            progress(IndexStep::Choose);
            let coded = [(&narrow, &narrow_codes[..]), (&wide, &wide_codes[..])];
            let coded = coded.map(|(codec, codes)| Coded { codec, codes });
            let half = wide.in_floats(CodeKind::F16);
            let row_bytes = record.dim * record.rows.bytes();
            Some(choose(&rows, coded, &half, row_bytes, (&asked, source))?)
        }
    };
    // The rows' own are made anew where recall is measured.
    if queries.held_out.get(image).is_none_or(Vec::is_empty) {
        asked.remove(image);
    }
    let kind = match &choice {
        Some(choice) => choice.codes.parse()?,
        None => params.codes,
    };
    let params = &BuildParams { codes: kind, ..params.clone() };
    let chosen = lap();
    let graph = index::build_coded(
        params,
        Coded { codec: &wide, codes: &wide_codes },
        Coded { codec: &narrow, codes: &narrow_codes },
        &queries.repair,
        |stage, n| progress(IndexStep::Built(stage, n)),
    )?;
    progress(IndexStep::Publish);
    let (codec, codes) = match kind {
        CodeKind::U8 => (wide, wide_codes),
        CodeKind::U4 => (narrow, narrow_codes),
        CodeKind::F16 | CodeKind::F32 => {
            drop((wide_codes, narrow_codes));
            let codec = wide.in_floats(kind);
            let [codes] = index::rows::encode(&rows, [&codec], &|_| ())?;
            (codec, codes)
        }
    };
    let reach = graph.reach();
    let parts = Parts { graph: &graph, codec: &codec, ids: &rows.ids, codes: &codes };
    let mut bytes = AlignedBytes::zeroed(parts.len() as usize)?;
    parts.write(&mut bytes.as_mut_slice())?;
    drop((graph, codes));
    // Checked and measured on the very bytes that will be published, as a server reads them.
    let index = index::Index::open(bytes.as_slice())?;
    let built = lap();

    let recall = match measure {
        Some(measure) => measure(&index, &rows, &asked)?,
        None => Default::default(),
    };
    let seconds = [read, chosen + built, lap()];
    let (items, sequence) = (rows.ids.len() as u64, record.sequence);
    let build = serde_json::to_value(params).expect("build parameters are plain values");
    let queries = if queries.is_empty() { Vec::new() } else { queries.encode(record.dim, rows.ids.len()) };
    let put = record.put;
    Ok(Built {
        index: bytes,
        tags,
        queries,
        asked,
        items,
        sequence,
        put,
        build,
        choice,
        reach,
        recall,
        seconds,
    })
}

/// The rows of a cache in the order of their ids, as of one moment, read as often as a build needs.
pub struct StoredRows<'a> {
    moment: Moment<'a>,
    record: &'a CacheRecord,
    ids: Vec<ItemId>,
}

impl<'a> StoredRows<'a> {
    /// As they are now.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn now(store: &'a Store, record: &'a CacheRecord) -> Result<Self, Error> {
        let moment = store.moment();
        let mut ids = Vec::with_capacity(record.items as usize);
        moment.scan_rows(record.id, |id, _| {
            ids.push(id);
            Ok::<bool, Error>(true)
        })?;
        Ok(StoredRows { moment, record, ids })
    }
}

impl RowAccess for StoredRows<'_> {
    fn row(&self, slot: Slot) -> Result<Option<Vec<f32>>, Error> {
        let (record, id) = (self.record, self.ids[slot.index()]);
        let found = self.moment.rows(record.id, &[id])?.pop().flatten();
        check_row(&record.name, id, found.as_deref(), record.rows, record.dim).map(Some)
    }

    fn scan(&self, visit: &mut dyn FnMut(Slot, &[f32]) -> bool) -> Result<(), Error> {
        let mut go_on = true;
        index::Rows::each(self, &mut |first, rows| {
            go_on = go_on && visit(Slot(first as u32), rows);
        })
    }
}

impl index::Rows for StoredRows<'_> {
    type Error = Error;

    fn dim(&self) -> usize {
        self.record.dim
    }

    fn len(&self) -> usize {
        self.ids.len()
    }

    fn each(&self, visit: &mut dyn FnMut(usize, &[f32])) -> Result<(), Error> {
        let CacheRecord { name, rows, dim, .. } = self.record;
        let mut chunks = index::rows::Chunks::new(*dim, visit);
        self.moment.scan_rows(self.record.id, |id, bytes| {
            chunks.push(check_row(name, id, Some(bytes), *rows, *dim)?);
            Ok::<bool, Error>(true)
        })?;
        chunks.finish();
        Ok(())
    }
}

/// Writes what was built as the blobs of the next generation. They count once [`super::publish::flip`] says so.
///
/// # Errors
/// [`Error::Store`].
pub(super) fn write_generation(
    store: &Store,
    cache: CacheId,
    built: &Built,
) -> Result<GenerationRecord, Error> {
    fn all<'a>(bytes: &'a [u8]) -> impl FnOnce(&mut BlobWriter<'_>) -> Result<(), Error> + 'a {
        |sink| Ok(std::io::Write::write_all(sink, bytes).map_err(index::Error::Write)?)
    }
    let written = write_blobs(store, cache, &built.tags, all(built.index.as_slice()), all(&built.queries))?;
    let Recalls { rows: recall, by_kind: recall_by, measured, nearest } = built.recall.clone();
    Ok(GenerationRecord {
        generation: written.generation,
        items: built.items,
        index_bytes: written.index_bytes,
        tags_bytes: written.tags_bytes,
        queries_bytes: written.queries_bytes,
        rescore: built.choice.as_ref().map(|choice| choice.rescore),
        choice: built.choice.clone(),
        build: built.build.clone(),
        built: Some(built.items),
        recall,
        recall_by,
        measured,
        nearest,
        put: built.put,
        sequence: built.sequence,
        created_ms: written.created_ms,
    })
}
