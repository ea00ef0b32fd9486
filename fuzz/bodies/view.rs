//! Whatever bytes an index is opened from, it is refused, or it can be searched: no panic and no read outside.
//!
//! Checksums would refuse nearly everything a fuzzer makes. [`mended`] takes its input as edits of a sound index and makes
//! the checksums fit, so that it is the checks of the structure that have to hold.

use viscache::index::{Index, SearchParams, Searcher};
use viscache::types::Slot;

/// Sound indexes of every kind of code.
pub const SOUND: [&[u8]; 4] = [
    include_bytes!("../../index-builder/tests/fixtures/index-v1.bin"),
    include_bytes!("../../index-builder/tests/fixtures/index-v1-u4.bin"),
    include_bytes!("../../index-builder/tests/fixtures/index-v1-f16.bin"),
    include_bytes!("../../index-builder/tests/fixtures/index-v1-f32.bin"),
];

const HEADER: usize = 64;
const ENTRY: usize = 64;
const SECTIONS: usize = 5;
/// Bytes of one edit: where, how, and a number.
const EDIT: usize = 8;

/// Opens any bytes.
pub fn bytes(data: &[u8]) {
    open(data);
}

/// Opens a sound index after some edits.
///
/// * `data`: which index 1 byte, then edits of [`EDIT`] bytes.
/// * Returns whether it was taken for an index still.
pub fn mended(data: &[u8]) -> bool {
    let Some((&which, edits)) = data.split_first() else { return false };
    let mut bytes = SOUND[usize::from(which) % SOUND.len()].to_vec();
    edits.chunks_exact(EDIT).for_each(|edit| apply(&mut bytes, edit));
    mend(&mut bytes);
    open(&bytes).is_some()
}

/// An edit: part u8 (header, table, a section, the length), how u8, which word u16, number u32.
fn apply(bytes: &mut Vec<u8>, edit: &[u8]) {
    let at = usize::from(u16::from_le_bytes([edit[2], edit[3]]));
    let number = u32::from_le_bytes([edit[4], edit[5], edit[6], edit[7]]);
    let part = match edit[0] % 8 {
        0 => 12..48,
        1 => HEADER..HEADER + SECTIONS * ENTRY,
        7 => return bytes.resize(bytes.len().min(8 * at) + number as usize % 256, number as u8),
        section => range(bytes, usize::from(section) - 2).unwrap_or(0..0),
    };
    let Some(part) = bytes.get_mut(part) else { return };
    let words = part.len() / 4;
    let Some(word) = part.chunks_exact_mut(4).nth(at % words.max(1)) else { return };
    let old = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
    let new = match edit[1] % 4 {
        0 => number,
        1 => number % 64,
        2 => old.wrapping_add(number % 17).wrapping_sub(8),
        _ => [0, 1, 1 << 15, 1 << 31, u32::MAX, f32::NAN.to_bits(), f32::MAX.to_bits(), 49]
            [number as usize % 8],
    };
    word.copy_from_slice(&new.to_le_bytes());
}

/// Where a section says that it lies.
fn range(bytes: &[u8], section: usize) -> Option<std::ops::Range<usize>> {
    let entry = bytes.get(HEADER + section * ENTRY..)?.get(..ENTRY)?;
    let number = |at: usize| Some(u64::from_le_bytes(entry[at..at + 8].try_into().ok()?) as usize);
    let (start, len) = (number(8)?, number(16)?);
    let range = start..start.checked_add(len)?;
    bytes.get(range.clone()).map(|_| range)
}

/// Makes every checksum fit what it stands for.
pub fn mend(bytes: &mut [u8]) {
    for section in 0..SECTIONS {
        let Some(range) = range(bytes, section) else { continue };
        let checksum = blake3::hash(&bytes[range]);
        bytes[HEADER + section * ENTRY + 32..][..32].copy_from_slice(checksum.as_bytes());
    }
    if let Some(head) = bytes.get_mut(..HEADER + SECTIONS * ENTRY) {
        head[48..64].fill(0);
        let checksum = blake3::hash(head);
        head[48..64].copy_from_slice(&checksum.as_bytes()[..16]);
    }
}

/// Opens bytes; what is taken for an index is asked for everything it can tell.
pub fn open(bytes: &[u8]) -> Option<Index> {
    let index = Index::open(bytes).ok()?;
    let (n, dim) = (index.len(), index.dim());
    assert!(n > 0 && dim > 0 && index.ids().len() == n && index.summary().nodes == n);
    assert!(index.unreachable().len() < n);
    for slot in [0, n as u32 / 2, n as u32 - 1].map(Slot) {
        assert_eq!(index.slot(index.id(slot)), Some(slot));
    }
    let mut searcher = Searcher::default();
    let queries = [vec![0.25; dim], vec![0.0; dim], vec![f32::MAX; dim], vec![-1e-30; dim]];
    for query in queries {
        index.score_error(&query);
        for (ef_search, wanted) in [(1, 1), (10, 3), (1, 64)] {
            let params = SearchParams { ef_search, ..SearchParams::default() };
            let (found, cost) =
                searcher.search(&index, &query, wanted, &params).expect("an opened index is searched");
            let mut slots: Vec<u32> = found.iter().map(|candidate| candidate.slot.0).collect();
            slots.sort_unstable();
            slots.dedup();
            assert!(slots.len() == found.len() && !found.is_empty() && found.len() <= wanted, "{found:?}");
            assert!(slots.iter().all(|&slot| (slot as usize) < n) && cost.scored_vectors > 0);
            // Codes of halves and floats may be anything, NaN too.
            let ordered = found.windows(2).all(|pair| pair[0].score.total_cmp(&pair[1].score).is_ge());
            assert!(ordered, "{found:?}");
        }
    }
    Some(index)
}
