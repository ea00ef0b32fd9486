//! Where stored rows are read from: a block of memory, or RocksDB one batch at a time.

use std::borrow::Cow;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::Error;
use super::mask::Mask;
use super::warming::{Search, Warming};
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

/// The rows of one generation, by slot: in memory, or in the store, where they are read from until then.
pub(super) struct Rows {
    kind: RowType,
    warming: Option<Warming>,
}

impl Rows {
    /// * `warming`: brings them into memory, if they belong there.
    pub(super) fn new(kind: RowType, warming: Option<Warming>) -> Self {
        Rows { kind, warming }
    }

    /// Says which slots the change log knows to be replaced or deleted.
    pub(super) fn settle(&self, masked: &Mask) {
        self.warming.iter().for_each(|warming| warming.settle(masked));
    }

    /// Waits for rows that belong in memory.
    ///
    /// # Errors
    /// As [`Warming::join`].
    pub(super) fn join(&self) -> Result<(), Error> {
        self.warming.as_ref().map_or(Ok(()), Warming::join)
    }

    /// Lets a search go before the reading of rows into memory, for as long as what comes back lives.
    pub(super) fn search(&self) -> Option<Search<'_>> {
        self.warming.as_ref().filter(|warming| warming.bytes().is_none()).map(Warming::search)
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
        let at = |slot: &Slot| slot.index() * cache.dim..(slot.index() + 1) * cache.dim;
        match self.block() {
            Some(Block::F32(rows)) => Ok(slots.iter().map(|slot| Some(rows[at(slot)].into())).collect()),
            Some(Block::F16(rows)) => {
                let row = |slot| rows[at(slot)].to_f32_vec().into();
                Ok(slots.iter().map(|slot| Some(row(slot))).collect())
            }
            None => {
                let found = store.rows(cache.id, ids)?;
                let one = |(row, &id): (Option<Vec<u8>>, &ItemId)| match row {
                    None if store.item(cache.id, id)?.is_none() => Ok(None),
                    row => Ok(Some(check_row(&cache.name, id, row.as_deref(), self.kind, cache.dim)?.into())),
                };
                found.into_iter().zip(ids).map(one).collect()
            }
        }
    }

    /// All rows, once they are in memory.
    pub(super) fn block(&self) -> Option<Block<'_>> {
        let bytes = self.warming.as_ref()?.bytes()?;
        Some(match self.kind {
            RowType::F32 => Block::F32(bytemuck::cast_slice(bytes)),
            RowType::F16 => Block::F16(bytemuck::cast_slice(bytes)),
        })
    }
}

/// Rows in memory, row-major, by slot.
#[derive(Clone, Copy)]
pub(super) enum Block<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
}

impl Block<'_> {
    /// Inner products of the rows `slots` with a query; `out` is cleared first.
    pub(super) fn score(self, slots: &[u32], query: &[f32], out: &mut Vec<f32>) {
        match self {
            Block::F32(rows) => Kernels::get().score_f32(rows, slots, query, out),
            Block::F16(rows) => Kernels::get().score_f16(rows, slots, query, out),
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
