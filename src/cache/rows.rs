//! Where stored rows are read from: a block of memory, or RocksDB one batch at a time.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::Error;
use super::mask::Mask;
use super::warming::{Search, Warming};
use crate::index::{Chunks, Index, Numbers};
use crate::kernels::Kernels;
use crate::store::{RowType, Store};
use crate::types::{CacheName, ItemId, Slot, all_finite};

/// Where rows are kept while serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowsMode {
    /// In memory when they fit the budget, else on disk.
    #[default]
    Auto,
    /// In memory, or refuse. A server that starts reads them from RocksDB until they are there.
    Ram,
    /// Read from RocksDB for every query.
    Disk,
}

impl std::str::FromStr for RowsMode {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(RowsMode::Auto),
            "ram" => Ok(RowsMode::Ram),
            "disk" => Ok(RowsMode::Disk),
            other => Err(format!("`{other}` is not one of auto, ram, disk")),
        }
    }
}

/// The rows of one version of an index, by slot: in memory, or in the store, where they are read from until then. Copies are cheap,
/// and share them.
#[derive(Clone)]
pub(super) struct Rows {
    kind: RowType,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Disk,
    /// On their way into memory.
    Warming(Arc<Warming>),
    Memory(Chunks),
}

impl Rows {
    /// * `warming`: brings them into memory, if they belong there.
    pub(super) fn new(kind: RowType, warming: Option<Warming>) -> Self {
        let source = warming.map_or(Source::Disk, |warming| Source::Warming(Arc::new(warming)));
        Rows { kind, source }
    }

    /// Says which slots the change log knows to be replaced or deleted.
    ///
    /// * `record`, `index`: of the generation.
    pub(super) fn settle(&self, record: &crate::store::CacheRecord, index: &Index, masked: &Mask) {
        self.warming().into_iter().for_each(|warming| warming.settle(record, index, masked));
    }

    /// Waits for rows that belong in memory.
    ///
    /// # Errors
    /// As [`Warming::join`].
    pub(super) fn join(&self) -> Result<(), Error> {
        self.warming().map_or(Ok(()), Warming::join)
    }

    /// Lets a search go before the reading of rows into memory, for as long as what comes back lives.
    pub(super) fn search(&self) -> Option<Search<'_>> {
        self.warming().filter(|warming| warming.rows().is_none()).map(Warming::search)
    }

    /// Whether they have come to where they stay.
    pub(super) fn settled(&self) -> bool {
        self.warming().is_none_or(Warming::ended)
    }

    /// These rows with others in some places, or in new ones.
    ///
    /// # Errors
    /// [`Error::Index`] when there is no memory.
    pub(super) fn with<'a>(
        &self,
        rows: impl Iterator<Item = (Slot, &'a [f32])>,
        len: usize,
    ) -> Result<Rows, Error> {
        // Those in the store are there already, under the items' ids.
        let Some(Resident { rows: old, .. }) = self.block() else { return Ok(self.clone()) };
        let mut new = old.clone();
        new.grow(len)?;
        for (slot, row) in rows {
            new.set(slot.0, &encode_row(row, self.kind))?;
        }
        Ok(Rows { kind: self.kind, source: Source::Memory(new) })
    }

    /// Bytes of memory that they take, or will.
    pub(super) fn bytes(&self, planned: u64) -> u64 {
        match &self.source {
            Source::Disk => 0,
            Source::Warming(_) => planned,
            Source::Memory(rows) => rows.bytes(),
        }
    }

    fn warming(&self) -> Option<&Warming> {
        match &self.source {
            Source::Warming(warming) => Some(warming),
            Source::Disk | Source::Memory(_) => None,
        }
    }

    /// Reads the rows of `slots` as f32, in their order; from memory where they lie there as such. `None` for an item that was
    /// deleted since the reader's moment: its record is gone as well.
    pub(super) fn read(
        &self,
        store: &Store,
        cache: &crate::store::CacheRecord,
        slots: &[Slot],
        ids: &[ItemId],
    ) -> Result<Vec<Option<Cow<'_, [f32]>>>, Error> {
        match self.block() {
            Some(rows) => Ok(slots.iter().map(|slot| Some(rows.row(*slot))).collect()),
            None => {
                let found = store.rows(cache.id, ids)?;
                let one = |(row, &id): (Option<Vec<u8>>, &ItemId)| {
                    let row = match row {
                        None if store.item(cache.id, id)?.is_none() => return Ok(None),
                        // It may have come back between the two looks.
                        None => store.row(cache.id, id)?,
                        row => row,
                    };
                    Ok(Some(check_row(&cache.name, id, row.as_deref(), self.kind, cache.dim)?.into()))
                };
                found.into_iter().zip(ids).map(one).collect()
            }
        }
    }

    /// All rows, once they are in memory.
    pub(super) fn block(&self) -> Option<Resident<'_>> {
        let rows = match &self.source {
            Source::Disk => None,
            Source::Warming(warming) => warming.rows(),
            Source::Memory(rows) => Some(rows),
        };
        rows.map(|rows| Resident { kind: self.kind, rows })
    }
}

/// Rows in memory, by slot.
#[derive(Clone, Copy)]
pub(super) struct Resident<'a> {
    kind: RowType,
    rows: &'a Chunks,
}

impl<'a> Resident<'a> {
    /// Inner products of the rows `slots` with a query; `out` is cleared first.
    pub(super) fn score(self, slots: &[u32], query: &[f32], out: &mut Vec<f32>) {
        match self.kind {
            RowType::F32 => Kernels::get().score_f32(Numbers(self.rows), slots, query, out),
            RowType::F16 => Kernels::get().score_f16(Numbers(self.rows), slots, query, out),
        }
    }

    fn row(self, slot: Slot) -> Cow<'a, [f32]> {
        self.run(slot.index()..slot.index() + 1)
    }

    /// Consecutive rows of one chunk, row-major; as they lie there if that is how they are stored.
    pub(super) fn run(self, slots: Range<usize>) -> Cow<'a, [f32]> {
        let bytes = self.rows.run(slots);
        match self.kind {
            RowType::F32 => bytemuck::cast_slice(bytes).into(),
            RowType::F16 => bytemuck::cast_slice::<u8, f16>(bytes).to_f32_vec().into(),
        }
    }
}

/// Brings a row into its stored form: little-endian components.
pub fn encode_row(row: &[f32], kind: RowType) -> Vec<u8> {
    match kind {
        RowType::F32 => row.iter().flat_map(|v| v.to_le_bytes()).collect(),
        RowType::F16 => row.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
    }
}

/// Reads a row back. `bytes` holds whole components.
pub fn decode_row(bytes: &[u8], kind: RowType) -> Vec<f32> {
    match kind {
        RowType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        RowType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    }
}

/// Decodes a row that must be there and have `dim` finite components.
pub(super) fn check_row(
    cache: &CacheName,
    id: ItemId,
    bytes: Option<&[u8]>,
    kind: RowType,
    dim: usize,
) -> Result<Vec<f32>, Error> {
    let wrong = |why: String| Error::Row { cache: cache.clone(), id, why };
    let bytes = bytes.ok_or_else(|| wrong("missing".into()))?;
    if bytes.len() != dim * kind.bytes() {
        return Err(wrong(format!("{} bytes long instead of {}", bytes.len(), dim * kind.bytes())));
    }
    let row = decode_row(bytes, kind);
    match all_finite(&row) {
        true => Ok(row),
        false => Err(wrong("not finite".into())),
    }
}
