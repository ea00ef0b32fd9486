//! The bytes of an index, and their writer.
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

use std::io::Write;

use super::freeze::Graph;
use super::quant::Codec;
use super::{CodeKind, Error};
use crate::types::ItemId;

/// The version this code writes, and the only one it reads. It changes when a byte changes its meaning.
pub const FORMAT_VERSION: u32 = 1;

pub(super) const MAGIC: &[u8; 8] = b"VISCIDX\0";
pub(super) const HEADER_LEN: usize = 64;
pub(super) const ENTRY_LEN: usize = 64;
pub(super) const ALIGNMENT: usize = 64;
/// Where the header's checksum lies.
pub(super) const HEADER_CHECKSUM: std::ops::Range<usize> = 48..64;
/// Section names in the order they are written.
pub(super) const SECTIONS: [&str; 5] = ["level0", "upper", "codec", "ids", "codes"];

/// Everything that goes into an index, borrowed.
pub struct Parts<'a> {
    /// The frozen graph.
    pub graph: &'a Graph,
    /// How the codes were made.
    pub codec: &'a Codec,
    /// The item id of every slot, strictly ascending.
    pub ids: &'a [ItemId],
    /// [`Codec::encode`] of the rows.
    pub codes: &'a [u8],
}

impl Parts<'_> {
    /// Bytes [`Parts::write`] will write.
    pub fn len(&self) -> u64 {
        let sections = self.sections();
        let table = HEADER_LEN + SECTIONS.len() * ENTRY_LEN;
        sections.iter().fold(table, |end, s| end.next_multiple_of(ALIGNMENT) + s.len()) as u64
    }

    /// An index is never empty; there for symmetry with [`Parts::len`].
    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }

    /// Writes the index.
    ///
    /// # Errors
    /// [`Error::Write`] when the sink fails.
    pub fn write(&self, sink: &mut impl Write) -> Result<(), Error> {
        let sections = self.sections();
        let mut head = self.header();
        let mut offset = HEADER_LEN + SECTIONS.len() * ENTRY_LEN;
        for (name, section) in SECTIONS.iter().zip(&sections) {
            offset = offset.next_multiple_of(ALIGNMENT);
            let mut entry = [0u8; ENTRY_LEN];
            entry[..name.len()].copy_from_slice(name.as_bytes());
            entry[8..16].copy_from_slice(&(offset as u64).to_le_bytes());
            entry[16..24].copy_from_slice(&(section.len() as u64).to_le_bytes());
            entry[32..64].copy_from_slice(blake3::hash(section).as_bytes());
            head.extend_from_slice(&entry);
            offset += section.len();
        }
        let checksum = header_checksum(&head);
        head[HEADER_CHECKSUM].copy_from_slice(&checksum);

        sink.write_all(&head)?;
        let mut written = head.len();
        for section in &sections {
            let start = written.next_multiple_of(ALIGNMENT);
            sink.write_all(&[0u8; ALIGNMENT][..start - written])?;
            sink.write_all(section)?;
            written = start + section.len();
        }
        Ok(sink.flush()?)
    }

    fn header(&self) -> Vec<u8> {
        let mut head = Vec::with_capacity(HEADER_LEN + SECTIONS.len() * ENTRY_LEN);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        head.extend_from_slice(&kind_number(self.codec.kind()).to_le_bytes());
        head.extend_from_slice(&(self.ids.len() as u64).to_le_bytes());
        let upper = self.graph.upper.len();
        for word in [
            self.codec.dim(),
            self.graph.m,
            self.graph.entry as usize,
            self.graph.row_len,
            SECTIONS.len(),
            upper,
        ] {
            head.extend_from_slice(&(word as u32).to_le_bytes());
        }
        head.resize(HEADER_LEN, 0);
        head
    }

    /// The sections in the order of [`SECTIONS`].
    fn sections(&self) -> [std::borrow::Cow<'_, [u8]>; 5] {
        let mut upper: Vec<u32> = Vec::new();
        for level in &self.graph.upper {
            upper.push(level.slots.len() as u32);
            upper.extend_from_slice(&level.slots);
            upper.extend_from_slice(&level.offsets);
            upper.extend_from_slice(&level.links);
        }
        let mut codec = vec![self.codec.step];
        codec.extend_from_slice(&self.codec.mean);
        let ids: Vec<u64> = self.ids.iter().map(|id| id.0).collect();
        [
            bytemuck::cast_slice(&self.graph.level0).into(),
            bytemuck::cast_slice::<u32, u8>(&upper).to_vec().into(),
            bytemuck::cast_slice::<f32, u8>(&codec).to_vec().into(),
            bytemuck::cast_slice::<u64, u8>(&ids).to_vec().into(),
            self.codes.into(),
        ]
    }
}

/// BLAKE3 over header and table with the checksum's own place zeroed, cut to 16 bytes.
pub(super) fn header_checksum(head: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head[..HEADER_CHECKSUM.start]).update(&[0u8; 16]).update(&head[HEADER_CHECKSUM.end..]);
    let mut checksum = [0u8; 16];
    hasher.finalize_xof().fill(&mut checksum);
    checksum
}

fn kind_number(kind: CodeKind) -> u32 {
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
