//! The bytes of an index.
//!
//! ```text
//! 0     magic "VISCIDX\0"   8
//! 8     format version  u32      12  code kind  u32 (1 f32, 2 f16, 3 u8, 4 u4)
//! 16    nodes           u64      24  dimension  u32      28  M          u32
//! 32    entry slot      u32      36  row words  u32      40  sections   u32      44  upper levels u32
//! 48    checksum of everything up to the first section, these 16 bytes taken as zero       16
//! 64    section table: per section  name 8 · offset u64 · length u64 · zero 8 · checksum 32    (64 each)
//! …     sections, each beginning on a multiple of 64, zeros between
//!
//! level0   u32 [nodes, row words]    degree, links …
//! upper    per level 1, 2, …: u32 count, then slots[count] ascending, offsets[count + 1], links[offsets[count]]
//! codec    f32 step, then mean [dimension]
//! ids      u64 [nodes]               the item id of every slot, ascending
//! codes    u8  [nodes, stride]       stride a multiple of 64
//! ```
//!
//! Little-endian throughout. Checksums are BLAKE3 (the header's cut to 16 bytes). Every byte is vouched for, by a checksum
//! or by having to be zero, and the last section ends the index. A reader refuses a version it does not know: see
//! [`FORMAT_VERSION`]. Sections begin on cache lines so that a buffer that does can be used as it is.

use super::CodeKind;

/// The version this code writes, and the only one it reads. It changes when a byte changes its meaning.
pub const FORMAT_VERSION: u32 = 1;

pub(super) const MAGIC: &[u8; 8] = b"VISCIDX\0";
pub(super) const HEADER_LEN: usize = 64;
pub(super) const ENTRY_LEN: usize = 64;
pub(super) const ALIGNMENT: usize = 64;
/// Most nodes of one generation: a search marks a slot with its top bit.
pub(super) const MAX_NODES: usize = 1 << 31;
/// Most levels above 0. Each holds one node in M, so that half of them suffice for as many nodes as there may be; a file that
/// says more costs memory for nothing.
pub(super) const MAX_UPPER: usize = 64;
/// Places in a level-0 row, at the least, that only reconnection and repair may fill.
const SPARE: usize = 15;
/// Where the header's checksum lies.
pub(super) const HEADER_CHECKSUM: std::ops::Range<usize> = 48..64;
/// Section names in the order they are written.
pub(super) const SECTIONS: [&str; 5] = ["level0", "upper", "codec", "ids", "codes"];

/// Words of a level-0 row for graphs built with this M.
pub(super) fn row_len(m: usize) -> usize {
    (1 + 2 * m + SPARE).next_multiple_of(16)
}

/// BLAKE3 over header and table with the checksum's own place zeroed, cut to 16 bytes.
pub(super) fn header_checksum(head: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head[..HEADER_CHECKSUM.start]).update(&[0u8; 16]).update(&head[HEADER_CHECKSUM.end..]);
    let mut checksum = [0u8; 16];
    hasher.finalize_xof().fill(&mut checksum);
    checksum
}

pub(super) fn kind_number(kind: CodeKind) -> u32 {
    match kind {
        CodeKind::F32 => 1,
        CodeKind::F16 => 2,
        CodeKind::U8 => 3,
        CodeKind::U4 => 4,
    }
}

pub(super) fn kind_of(number: u32) -> Option<CodeKind> {
    CodeKind::ALL.into_iter().find(|&kind| kind_number(kind) == number)
}

#[cfg(target_endian = "big")]
compile_error!("the index format is read and written in place; it needs a little-endian machine");
