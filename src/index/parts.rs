//! Writes an index down, in the bytes that `layout.rs` draws.

use std::borrow::Cow;
use std::io::Write;

use super::Error;
use super::chunks::Chunks;
use super::excerpt::Excerpt;
use super::freeze::Graph;
use super::layout::{
    ALIGNMENT, ENTRY_LEN, FORMAT_VERSION, HEADER_CHECKSUM, HEADER_LEN, MAGIC, SECTIONS, header_checksum,
    kind_number,
};
use super::quant::Codec;
use super::upper::UpperLevel;
use super::view::Index;
use crate::types::{ItemId, Slot};

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
        self.stored().len()
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
        self.stored().write(sink)
    }

    fn stored(&self) -> Stored<'_> {
        let Graph { entry, m, row_len, level0, upper, .. } = self.graph;
        Stored {
            shape: Shape { entry: *entry, m: *m, row_len: *row_len, upper },
            level0: Section::Bytes(bytemuck::cast_slice(level0).into()),
            codec: self.codec,
            ids: self.ids,
            codes: Section::Bytes(self.codes.into()),
        }
    }
}

impl Index {
    /// Writes an index of some of the rows, in which slots are in the order of their ids, as all stored ones are. Nobody may change
    /// links meanwhile: they are read more than once.
    ///
    /// * `rows`: items and their slots, by ascending ids; at least one.
    /// * Returns the bytes written.
    ///
    /// # Errors
    /// [`Error::Write`] when the sink fails.
    pub fn write_some(&self, rows: Vec<(ItemId, Slot)>, sink: &mut impl Write) -> Result<u64, Error> {
        let (ids, order): (Vec<ItemId>, Vec<Slot>) = rows.into_iter().unzip();
        let graph = Excerpt::of(self, &order);
        let stored = Stored {
            shape: Shape { entry: graph.entry, m: self.m, row_len: graph.row_len(), upper: &graph.upper },
            level0: Section::Links(&graph),
            codec: &self.codec,
            ids: &ids,
            codes: Section::Rows(&self.codes, &order),
        };
        stored.write(sink)?;
        Ok(stored.len())
    }

    /// Bytes of memory that [`Index::write_some`] takes for all rows, what it is given included: items and slots, as pairs and as
    /// lists.
    pub fn write_needs(&self) -> u64 {
        let row = size_of::<(ItemId, Slot)>() + size_of::<ItemId>() + size_of::<Slot>();
        (self.len() * row) as u64 + 2 * self.upper.bytes()
    }
}

/// What is written, wherever it lies.
struct Stored<'a> {
    shape: Shape<'a>,
    level0: Section<'a>,
    codec: &'a Codec,
    ids: &'a [ItemId],
    codes: Section<'a>,
}

/// A graph but for its level 0.
struct Shape<'a> {
    entry: u32,
    m: usize,
    row_len: usize,
    upper: &'a [UpperLevel],
}

/// The bytes of a section.
enum Section<'a> {
    Bytes(Cow<'a, [u8]>),
    /// Rows of some slots.
    Rows(&'a Chunks, &'a [Slot]),
    Ids(&'a [ItemId]),
    /// Rows of links.
    Links(&'a Excerpt<'a>),
}

impl Section<'_> {
    fn len(&self) -> usize {
        match self {
            Section::Bytes(bytes) => bytes.len(),
            Section::Rows(rows, slots) => rows.stride() * slots.len(),
            Section::Ids(ids) => size_of_val(*ids),
            Section::Links(graph) => graph.len() * graph.row_len() * size_of::<u32>(),
        }
    }

    fn each(&self, mut visit: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
        match self {
            Section::Bytes(bytes) => visit(bytes),
            Section::Rows(rows, slots) => slots.iter().try_for_each(|slot| visit(rows.row(slot.0))),
            Section::Ids(ids) => ids.iter().try_for_each(|id| visit(&id.0.to_ne_bytes())),
            Section::Links(graph) => graph.each_row(|rows| visit(bytemuck::cast_slice(rows))),
        }
    }

    fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let hashed = self.each(|bytes| {
            hasher.update(bytes);
            Ok(())
        });
        debug_assert!(hashed.is_ok(), "nothing is written");
        hasher.finalize()
    }
}

impl Stored<'_> {
    fn len(&self) -> u64 {
        let sections = self.sections();
        let table = HEADER_LEN + SECTIONS.len() * ENTRY_LEN;
        let lens = self.in_order(&sections).map(Section::len);
        lens.fold(table, |end, len| end.next_multiple_of(ALIGNMENT) + len) as u64
    }

    fn write(&self, sink: &mut impl Write) -> Result<(), Error> {
        let sections = self.sections();
        let sections: Vec<&Section<'_>> = self.in_order(&sections).collect();
        let mut head = self.header();
        let mut offset = HEADER_LEN + SECTIONS.len() * ENTRY_LEN;
        for (name, section) in SECTIONS.iter().zip(&sections) {
            offset = offset.next_multiple_of(ALIGNMENT);
            let mut entry = [0u8; ENTRY_LEN];
            entry[..name.len()].copy_from_slice(name.as_bytes());
            entry[8..16].copy_from_slice(&(offset as u64).to_le_bytes());
            entry[16..24].copy_from_slice(&(section.len() as u64).to_le_bytes());
            entry[32..64].copy_from_slice(section.hash().as_bytes());
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
            section.each(|bytes| sink.write_all(bytes))?;
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
        let Shape { entry, m, row_len, upper } = self.shape;
        for word in [self.codec.dim(), m, entry as usize, row_len, SECTIONS.len(), upper.len()] {
            head.extend_from_slice(&(word as u32).to_le_bytes());
        }
        head.resize(HEADER_LEN, 0);
        head
    }

    /// All sections, in the order of [`SECTIONS`].
    ///
    /// * `between`: those between the first and the last.
    fn in_order<'s>(&'s self, between: &'s [Section<'_>]) -> impl Iterator<Item = &'s Section<'s>> {
        [&self.level0].into_iter().chain(between).chain([&self.codes])
    }

    /// The sections between level 0 and the codes.
    fn sections(&self) -> [Section<'_>; 3] {
        let mut upper: Vec<u32> = Vec::new();
        for level in self.shape.upper {
            upper.push(level.slots.len() as u32);
            upper.extend_from_slice(&level.slots);
            upper.extend_from_slice(&level.offsets);
            upper.extend_from_slice(&level.links);
        }
        let mut codec = vec![self.codec.step];
        codec.extend_from_slice(&self.codec.mean);
        let parts = [
            bytemuck::cast_slice::<u32, u8>(&upper).to_vec().into(),
            bytemuck::cast_slice::<f32, u8>(&codec).to_vec().into(),
        ];
        let [upper, codec] = parts.map(|bytes: Cow<'_, [u8]>| Section::Bytes(bytes));
        [upper, codec, Section::Ids(self.ids)]
    }
}
