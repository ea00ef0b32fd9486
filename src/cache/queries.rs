//! A sample of queries of other kinds than the stored rows: what a graph is repaired for, and what its recall is measured by.
//!
//! It is kept with the generation, so that a server's compaction repairs and measures as the builder did:
//!
//! ```text
//! 0   "VQRY"   4      version 1  u32      4      length of the header  u64      8
//! 16  header, JSON: components, queries to repair by, held-out queries by kind
//! …   all of them in that order, f16
//! ```
//!
//! The blob's parts have checksums; lengths are checked here. Queries are kept with length 1, in halves: neither what is repaired nor
//! what is measured depends on a query's length, and a query is rounded less than an 8-bit code.

use std::collections::BTreeMap;
use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use crate::store::{BlobKind, CacheRecord, Error, GenerationRecord, Store};
use crate::types::norm;

const MAGIC: &[u8; 8] = b"VQRY\x01\0\0\0";
const PREFIX: usize = 16;
/// What the whole sample of queries takes where everything is built anew, in lengths of its blob: as floats, which are twice as long as
/// halves, and as the next generation's blob beside.
pub(super) const QUERY_COPIES: u64 = 3;

/// Bytes that are copied at a time.
const COPIED: usize = 1 << 16;

/// Queries by kind.
pub type Queries = BTreeMap<String, Vec<Vec<f32>>>;

/// Queries of other kinds than the stored rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QuerySample {
    /// What the graph is repaired for, row-major `[q, dim]`.
    pub repair: Vec<f32>,
    /// What recall is measured by, by kind.
    pub held_out: BTreeMap<String, Vec<Vec<f32>>>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    dim: usize,
    repair: usize,
    held_out: BTreeMap<String, usize>,
}

impl QuerySample {
    /// Queries to repair by that are kept with a generation, at the most: so many, or one for [`Self::ROWS`] rows where that is
    /// more; an even choice of what was given. In halves they are a sixteenth of what rows in f32 take.
    pub const KEPT: usize = 16_384;
    /// See [`Self::KEPT`].
    pub const ROWS: usize = 8;

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.repair.is_empty() && self.held_out.values().all(Vec::is_empty)
    }

    /// The bytes that are kept.
    ///
    /// * `dim`: of every query. `rows`: of the generation.
    pub(super) fn encode(&self, dim: usize, rows: usize) -> Vec<u8> {
        let every = (self.repair.len() / dim).div_ceil(Self::KEPT.max(rows / Self::ROWS)).max(1);
        let repair: Vec<&[f32]> = self.repair.chunks_exact(dim).step_by(every).collect();
        let held_out = self.held_out.iter().map(|(kind, queries)| (kind.clone(), queries.len()));
        let header = Header { dim, repair: repair.len(), held_out: held_out.collect() };
        let header = serde_json::to_vec(&header).expect("a header serialises because its keys are strings");
        let mut bytes = [&MAGIC[..], &(header.len() as u64).to_le_bytes(), &header].concat();
        let held_out = self.held_out.values().flatten().map(Vec::as_slice);
        for query in repair.into_iter().chain(held_out) {
            let length = norm(query);
            // One without direction stays as it is: all zeros, or so small that halves make it so.
            let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
            let unit = query.iter().map(|&v| f16::from_f64(f64::from(v) * scale));
            bytes.extend(unit.flat_map(f16::to_le_bytes));
        }
        bytes
    }
}

fn damaged(why: &str) -> Error {
    Error::Damaged { what: "sample of queries".into(), why: why.into() }
}

/// A sample where it is stored: what is asked for is read, and no more, since as floats it may take as much as a share of the cache.
pub(super) struct KeptQueries<R> {
    /// Reads the bytes from a place on.
    read: R,
    header: Header,
    /// Where the queries begin.
    at: usize,
}

/// Reads bytes of the store from a place on.
pub(super) type ReadBlob<'a> = Box<dyn FnMut(usize, &mut [u8]) -> Result<(), Error> + 'a>;

/// The sample that a generation was stored with; none where it was stored without.
///
/// # Errors
/// As [`KeptQueries::open`].
pub(super) fn kept_queries<'a>(
    store: &'a Store,
    record: &CacheRecord,
    generation: &GenerationRecord,
) -> Result<Option<KeptQueries<ReadBlob<'a>>>, Error> {
    let Some(len) = generation.queries_bytes else { return Ok(None) };
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let mut blob = store.blob_reader(record.id, generation.generation, BlobKind::Queries, len);
    let read: ReadBlob<'_> = Box::new(move |from, into| blob.read_at(from, into));
    Ok(Some(KeptQueries::open(read, len, record.dim)?))
}

impl<R: FnMut(usize, &mut [u8]) -> Result<(), Error>> KeptQueries<R> {
    /// * `read`: fills a slice with the bytes from a place on. `len`: all bytes. `dim`: of every query.
    ///
    /// # Errors
    /// [`Error::Damaged`] for what is no sample for `dim` components; what `read` fails with.
    pub(super) fn open(mut read: R, len: usize, dim: usize) -> Result<Self, Error> {
        let mut prefix = [0; PREFIX];
        if len < PREFIX {
            return Err(damaged("it is cut short"));
        }
        read(0, &mut prefix)?;
        let (magic, header) = prefix.split_at(8);
        if magic != MAGIC {
            return Err(damaged("it does not begin like one, or its version is unknown"));
        }
        let header = header.iter().rev().fold(0u64, |len, &byte| len << 8 | u64::from(byte));
        let header = usize::try_from(header).ok().filter(|&header| header <= len - PREFIX);
        let mut json = vec![0; header.ok_or_else(|| damaged("its header is cut short"))?];
        read(PREFIX, &mut json)?;
        let at = PREFIX + json.len();
        let header: Header = serde_json::from_slice(&json).map_err(|e| damaged(&e.to_string()))?;
        let counts = header.held_out.values().try_fold(header.repair, |sum, &n| sum.checked_add(n));
        let expected = counts.and_then(|n| n.checked_mul(dim)).and_then(|n| n.checked_mul(2));
        if header.dim != dim || expected != Some(len - at) {
            return Err(damaged("its length does not fit its header"));
        }
        Ok(KeptQueries { read, header, at })
    }

    /// Whether it holds nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.header.repair == 0 && self.header.held_out.values().all(|&n| n == 0)
    }

    /// Queries to repair by.
    pub(super) fn repair_count(&self) -> usize {
        self.header.repair
    }

    /// Some of those to repair by, row-major `[q, dim]`.
    ///
    /// # Errors
    /// As [`KeptQueries::open`].
    pub(super) fn repair(&mut self, some: Range<usize>) -> Result<Vec<f32>, Error> {
        self.floats(some)
    }

    /// An even choice of those to repair by, `most` at the most: row-major `[q, dim]`.
    ///
    /// # Errors
    /// As [`KeptQueries::open`].
    pub(super) fn some_to_repair_by(&mut self, most: usize) -> Result<Vec<f32>, Error> {
        let every = self.header.repair.div_ceil(most.max(1)).max(1);
        let some = (0..self.header.repair).step_by(every).map(|i| self.floats(i..i + 1));
        Ok(some.collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// An even choice of the held-out queries, `most` of a kind at the most.
    ///
    /// # Errors
    /// As [`KeptQueries::open`].
    pub(super) fn held_out(&mut self, most: usize) -> Result<Queries, Error> {
        let (mut kinds, mut first) = (Queries::new(), self.header.repair);
        for (kind, n) in self.header.held_out.clone() {
            let count = n.min(most);
            let some = (0..count).map(|i| first + i * n / count).map(|i| self.floats(i..i + 1));
            kinds.insert(kind, some.collect::<Result<_, _>>()?);
            first += n;
        }
        Ok(kinds)
    }

    /// All of it.
    ///
    /// # Errors
    /// As [`KeptQueries::open`].
    pub(super) fn sample(&mut self) -> Result<QuerySample, Error> {
        let repair = self.repair(0..self.header.repair)?;
        Ok(QuerySample { repair, held_out: self.held_out(usize::MAX)? })
    }

    /// Writes it as it is.
    ///
    /// # Errors
    /// As [`KeptQueries::open`]; what `sink` fails with.
    pub(super) fn copy<E: From<Error>>(
        &mut self,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let queries = self.header.held_out.values().sum::<usize>() + self.header.repair;
        let len = self.at + 2 * self.header.dim * queries;
        let mut some = vec![0; COPIED.min(len)];
        for from in (0..len).step_by(COPIED) {
            let some = &mut some[..COPIED.min(len - from)];
            (self.read)(from, some)?;
            sink(some)?;
        }
        Ok(())
    }

    fn floats(&mut self, some: Range<usize>) -> Result<Vec<f32>, Error> {
        let dim = self.header.dim;
        let mut floats = vec![0.0f32; some.len() * dim];
        let mut bytes = vec![0; 2 * dim];
        for (i, floats) in some.zip(floats.chunks_mut(dim.max(1))) {
            (self.read)(self.at + 2 * dim * i, &mut bytes)?;
            let halves: Vec<f16> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
            halves.convert_to_f32_slice(floats);
        }
        match floats.iter().all(|v| v.is_finite()) {
            true => Ok(floats),
            false => Err(damaged("it holds a value that is not finite")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8], dim: usize) -> Result<QuerySample, Error> {
        let read = |from: usize, into: &mut [u8]| {
            let bytes = from.checked_add(into.len()).and_then(|to| bytes.get(from..to));
            into.copy_from_slice(bytes.ok_or_else(|| damaged("it is cut short"))?);
            Ok(())
        };
        KeptQueries::open(read, bytes.len(), dim)?.sample()
    }

    fn sample(repair: usize) -> QuerySample {
        // Of length 1, and halves.
        let row = |i: usize| if i.is_multiple_of(2) { vec![0.0, -1.0, 0.0] } else { vec![1.0, 0.0, 0.0] };
        let held_out = BTreeMap::from([("none".into(), vec![]), ("text".into(), vec![row(7), row(8)])]);
        QuerySample { repair: (0..repair).flat_map(row).collect(), held_out }
    }

    #[test]
    fn a_sample_survives_and_a_large_one_is_thinned() {
        for repair in [0, 1, 5] {
            let sample = sample(repair);
            assert_eq!(decode(&sample.encode(3, 1), 3).unwrap(), sample);
        }
        let many = sample(QuerySample::KEPT + 1);
        for (rows, kept) in
            [(1, many.repair.len() / 6 + 1), (QuerySample::ROWS * many.repair.len(), many.repair.len() / 3)]
        {
            let thinned = decode(&many.encode(3, rows), 3).unwrap();
            assert_eq!(thinned.repair.len() / 3, kept, "{rows} rows");
        }
        assert!(decode(&sample(2).encode(3, 1), 4).is_err());
        assert!(QuerySample::default().is_empty() && !sample(0).is_empty());
    }

    #[test]
    fn a_part_of_a_sample_is_read_alone() {
        let sample = sample(7);
        let bytes = sample.encode(3, 1);
        let mut read = 0;
        let mut kept = KeptQueries::open(
            |from, into| {
                read += into.len();
                into.copy_from_slice(&bytes[from..from + into.len()]);
                Ok(())
            },
            bytes.len(),
            3,
        )
        .unwrap();
        assert_eq!((kept.repair_count(), kept.is_empty()), (7, false));
        assert_eq!(kept.repair(2..4).unwrap(), sample.repair[6..12]);
        let some = [0, 3, 6].map(|i| &sample.repair[3 * i..3 * i + 3]).concat();
        assert_eq!(kept.some_to_repair_by(3).unwrap(), some);
        assert_eq!(kept.some_to_repair_by(0).unwrap(), sample.repair[..3]);
        let held_out = kept.held_out(1).unwrap();
        assert_eq!(held_out["text"], sample.held_out["text"][..1]);
        assert!(held_out["none"].is_empty());
        assert_eq!(kept.sample().unwrap(), sample);
        let mut copy = Vec::new();
        kept.copy(|some| {
            copy.extend_from_slice(some);
            Ok::<_, Error>(())
        })
        .unwrap();
        assert_eq!(copy, bytes);
        drop(kept);
        assert!(read < 3 * bytes.len(), "{read} bytes read of {}", bytes.len());
    }

    #[test]
    fn queries_of_any_length_are_kept_with_length_1() {
        for scale in [1e-30f32, 1e-3, 1.0, 1e5, 1e30] {
            let row = vec![3.0 * scale, -4.0 * scale, 0.0];
            let held_out = BTreeMap::from([("text".into(), vec![row.clone(), vec![0.0; 3]])]);
            let kept = decode(&QuerySample { repair: row, held_out }.encode(3, 1), 3).unwrap();
            for query in
                kept.repair.chunks_exact(3).chain(kept.held_out["text"].iter().take(1).map(Vec::as_slice))
            {
                let off = query.iter().zip([0.6, -0.8, 0.0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 1e-3, "{query:?} of {scale}");
            }
            assert_eq!(kept.held_out["text"][1], [0.0; 3]);
        }
    }

    proptest! {
        #[test]
        fn damaged_bytes_are_refused_or_read_and_never_a_panic(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut in any::<prop::sample::Index>()
        ) {
            let mut bytes = sample(3).encode(3, 1);
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = decode(&bytes, 3);
            prop_assert!(decode(&bytes[..cut.index(bytes.len())], 3).is_err());
        }
    }
}
