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

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

use crate::store::Error;
use crate::types::norm;

const MAGIC: &[u8; 8] = b"VQRY\x01\0\0\0";
const PREFIX: usize = 16;
/// What the sample of queries takes, in lengths of its blob: floats are twice as long as halves, and both are there at a time.
pub(super) const QUERY_COPIES: u64 = 3;

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

    /// Reads such bytes.
    ///
    /// # Errors
    /// [`Error::Damaged`] for bytes that are no sample for `dim` components.
    pub(super) fn decode(bytes: &[u8], dim: usize) -> Result<Self, Error> {
        let damaged = |why: &str| Error::Damaged { what: "sample of queries".into(), why: why.into() };
        let (prefix, rest) = bytes.split_at_checked(PREFIX).ok_or_else(|| damaged("it is cut short"))?;
        let (magic, len) = prefix.split_at(8);
        if magic != MAGIC {
            return Err(damaged("it does not begin like one, or its version is unknown"));
        }
        let len = len.iter().rev().fold(0u64, |len, &byte| len << 8 | u64::from(byte));
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let (header, values) =
            rest.split_at_checked(len).ok_or_else(|| damaged("its header is cut short"))?;
        let header: Header = serde_json::from_slice(header).map_err(|e| damaged(&e.to_string()))?;
        let counts = header.held_out.values().try_fold(header.repair, |sum, &n| sum.checked_add(n));
        let expected = counts.and_then(|n| n.checked_mul(dim)).and_then(|n| n.checked_mul(2));
        if header.dim != dim || expected != Some(values.len()) {
            return Err(damaged("its length does not fit its header"));
        }
        let mut floats = vec![0.0f32; values.len() / 2];
        for (floats, halves) in floats.chunks_mut(dim.max(1)).zip(values.chunks(2 * dim.max(1))) {
            let halves: Vec<f16> = halves.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
            halves.convert_to_f32_slice(floats);
        }
        let mut values = floats;
        if !values.iter().all(|v| v.is_finite()) {
            return Err(damaged("it holds a value that is not finite"));
        }
        let mut held_out = values.split_off(header.repair * dim);
        let mut take = |n: usize| {
            let rest = held_out.split_off(n * dim);
            std::mem::replace(&mut held_out, rest).chunks_exact(dim).map(<[f32]>::to_vec).collect()
        };
        let held_out = header.held_out.into_iter().map(|(kind, n)| (kind, take(n))).collect();
        Ok(QuerySample { repair: values, held_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            assert_eq!(QuerySample::decode(&sample.encode(3, 1), 3).unwrap(), sample);
        }
        let many = sample(QuerySample::KEPT + 1);
        for (rows, kept) in
            [(1, many.repair.len() / 6 + 1), (QuerySample::ROWS * many.repair.len(), many.repair.len() / 3)]
        {
            let thinned = QuerySample::decode(&many.encode(3, rows), 3).unwrap();
            assert_eq!(thinned.repair.len() / 3, kept, "{rows} rows");
        }
        assert!(QuerySample::decode(&sample(2).encode(3, 1), 4).is_err());
        assert!(QuerySample::default().is_empty() && !sample(0).is_empty());
    }

    #[test]
    fn queries_of_any_length_are_kept_with_length_1() {
        for scale in [1e-30f32, 1e-3, 1.0, 1e5, 1e30] {
            let row = vec![3.0 * scale, -4.0 * scale, 0.0];
            let held_out = BTreeMap::from([("text".into(), vec![row.clone(), vec![0.0; 3]])]);
            let kept = QuerySample::decode(&QuerySample { repair: row, held_out }.encode(3, 1), 3).unwrap();
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
            let _ = QuerySample::decode(&bytes, 3);
            prop_assert!(QuerySample::decode(&bytes[..cut.index(bytes.len())], 3).is_err());
        }
    }
}
