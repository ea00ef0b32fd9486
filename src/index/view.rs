//! Validated reading of index bytes, without copying them.
//!
//! [`Index::open`] checks magic, version, lengths, checksums and every link once; after that a search may follow links
//! without asking. Arbitrary bytes give an error, never a panic and never an allocation that the bytes do not pay for.

use rayon::prelude::*;

use super::freeze::Graph;
use super::layout::{
    ALIGNMENT, ENTRY_LEN, FORMAT_VERSION, HEADER_CHECKSUM, HEADER_LEN, MAGIC, SECTIONS, header_checksum,
    kind_of,
};
use super::quant::{self, Codec, Coded};
use super::ranks::Ranks;
use super::search::Links;
use super::sketch::{Signs, Sketch};
use super::{CodeKind, Error};
use crate::kernels::Kernels;
use crate::types::{ItemId, Slot};

/// A byte buffer of its own pages, huge ones where the system gives them: a search touches rows all over it, and with
/// small pages most of those would also miss the translation buffer.
pub struct AlignedBytes {
    pages: memmap2::MmapMut,
    len: usize,
}

impl AlignedBytes {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// [`Error::Memory`] when the system has not that much to give.
    pub fn zeroed(len: usize) -> Result<Self, Error> {
        let pages = memmap2::MmapMut::map_anon(len.max(1)).map_err(|source| Error::Memory { len, source })?;
        // A hint: without huge pages everything works, a little slower.
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage);
        Ok(AlignedBytes { pages, len })
    }

    /// A copy that begins on a page.
    ///
    /// # Errors
    /// As [`AlignedBytes::zeroed`].
    pub fn copy_of(bytes: &[u8]) -> Result<Self, Error> {
        let mut aligned = AlignedBytes::zeroed(bytes.len())?;
        aligned.as_mut_slice().copy_from_slice(bytes);
        Ok(aligned)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.pages[..self.len]
    }

    /// The bytes, to be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.pages[..self.len]
    }
}

/// An opened index: the bytes and where their parts lie.
pub struct Index {
    bytes: AlignedBytes,
    codec: Codec,
    nodes: usize,
    m: usize,
    entry: u32,
    row_len: usize,
    level0: std::ops::Range<usize>,
    upper: Vec<UpperRange>,
    /// Of the slots of each upper level.
    ranks: Vec<Ranks>,
    ids: std::ops::Range<usize>,
    codes: std::ops::Range<usize>,
    sketch: Option<Sketch>,
}

/// Where one upper level's three arrays begin, in words of the `upper` section, which starts at byte `base`.
#[derive(Debug, Clone, Copy)]
struct UpperRange {
    base: usize,
    slots: usize,
    offsets: usize,
    links: usize,
    count: usize,
}

/// What an index says of itself.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Summary {
    /// Rows.
    pub nodes: usize,
    /// Components of a row.
    pub dim: usize,
    /// What the search runs on.
    pub codes: CodeKind,
    /// Links per node and upper level, M.
    pub m: usize,
    /// Levels above level 0.
    pub upper_levels: usize,
    /// Mean number of links on level 0.
    pub mean_degree: f64,
    /// Size of the index.
    pub bytes: u64,
}

impl Index {
    /// Checks bytes and takes them.
    ///
    /// # Errors
    /// [`Error::Format`] for bytes that are no index of this version, [`Error::Damaged`] for a section that fails its
    /// checksum.
    pub fn open(bytes: AlignedBytes) -> Result<Self, Error> {
        SectionTable::read(bytes.as_slice())?.verify(bytes.as_slice())?;
        Index::open_unchanged(bytes)
    }

    /// As [`Index::open`], of bytes that are known to be those that were written: their sections' checksums are not computed
    /// once more. What they say is checked all the same.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub fn open_unchanged(bytes: AlignedBytes) -> Result<Self, Error> {
        let sections = SectionTable::read(bytes.as_slice())?;
        let head = Header::read(bytes.as_slice())?;

        let [level0, upper, codec, ids, codes] = sections.ranges;
        let dim = head.dim;
        let expect = |what: &str, range: &std::ops::Range<usize>, len: Option<usize>| {
            if Some(range.len()) == len {
                return Ok(());
            }
            Err(Error::Format(format!(
                "section `{what}` has {} bytes, which does not fit the header",
                range.len()
            )))
        };
        expect("level0", &level0, head.nodes.checked_mul(head.row_len).and_then(|w| w.checked_mul(4)))?;
        expect("codec", &codec, dim.checked_add(1).and_then(|w| w.checked_mul(4)))?;
        expect("ids", &ids, head.nodes.checked_mul(8))?;
        expect("codes", &codes, head.nodes.checked_mul(quant::stride(head.kind, dim)))?;

        let values: &[f32] = bytemuck::cast_slice(&bytes.as_slice()[codec]);
        let codec = Codec { kind: head.kind, step: values[0], mean: values[1..].to_vec() };
        quant::check(&codec)?;
        let upper = upper_ranges(bytes.as_slice(), upper, head.upper_levels)?;
        let sketch = Sketch::of(Coded { codec: &codec, codes: &bytes.as_slice()[codes.clone()] })?;
        let mut index = Index {
            bytes,
            codec,
            nodes: head.nodes,
            m: head.m,
            entry: head.entry,
            row_len: head.row_len,
            level0,
            upper,
            ranks: Vec::new(),
            ids,
            codes,
            sketch,
        };
        index.check_links()?;
        index.ranks =
            (0..index.upper.len()).map(|level| Ranks::of(index.nodes, index.upper(level).0)).collect();
        Ok(index)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.nodes
    }

    /// An opened index has at least one row; there for symmetry with [`Index::len`].
    pub fn is_empty(&self) -> bool {
        self.nodes == 0
    }

    /// Components of a row.
    pub fn dim(&self) -> usize {
        self.codec.dim()
    }

    /// Bytes of a coded row.
    pub fn code_bytes(&self) -> usize {
        self.codec.stride()
    }

    /// The item at a slot.
    pub fn id(&self, slot: Slot) -> ItemId {
        ItemId(self.ids()[slot.index()])
    }

    /// The slot of an item, if this generation has it.
    pub fn slot(&self, id: ItemId) -> Option<Slot> {
        self.ids().binary_search(&id.0).ok().map(|slot| Slot(slot as u32))
    }

    /// Item ids of all slots, ascending.
    pub fn ids(&self) -> &[u64] {
        bytemuck::cast_slice(&self.bytes.as_slice()[self.ids.clone()])
    }

    /// What a score on codes may lack of the true one, for [`super::exact::rescore`]: four standard deviations of its error.
    /// Eight find no more (synthetic 100k, both kinds of queries), three lose one neighbour in a thousand. In 8 bits it is
    /// eight: what is clipped of features with heavy tails doubles the error that is expected (`tests/cache/codecs.rs`).
    ///
    /// * `query`: length D.
    pub fn score_error(&self, query: &[f32]) -> f32 {
        let largest = query.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let norm = Kernels::get().dot(query, query).sqrt();
        let deviations = if self.codec.kind() == CodeKind::U8 { 8.0 } else { 4.0 };
        deviations * self.codec.score_error(norm, largest)
    }

    /// What the index says of itself.
    pub fn summary(&self) -> Summary {
        let degrees: u64 = (0..self.nodes as u32).map(|slot| self.links(slot).len() as u64).sum();
        Summary {
            nodes: self.nodes,
            dim: self.dim(),
            codes: self.codec.kind(),
            m: self.m,
            upper_levels: self.upper.len(),
            mean_degree: degrees as f64 / self.nodes as f64,
            bytes: self.bytes.as_slice().len() as u64,
        }
    }

    /// Slots that the entry cannot reach on level 0: none, unless the bytes were made by someone else.
    pub fn unreachable(&self) -> Vec<Slot> {
        let mut reached = vec![false; self.nodes];
        let mut open = vec![self.entry];
        reached[self.entry as usize] = true;
        while let Some(slot) = open.pop() {
            for &next in self.links(slot) {
                if !std::mem::replace(&mut reached[next as usize], true) {
                    open.push(next);
                }
            }
        }
        (0..self.nodes as u32).filter(|&slot| !reached[slot as usize]).map(Slot).collect()
    }

    pub(super) fn codec(&self) -> &Codec {
        &self.codec
    }

    /// Signs of rows that are not in it, by its mean.
    pub fn signs(&self) -> Signs<'_> {
        Signs::new(&self.codec)
    }

    /// The bytes it was opened from.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    pub(super) fn sketch(&self) -> Option<&Sketch> {
        self.sketch.as_ref()
    }

    pub(super) fn coded(&self) -> Coded<'_> {
        Coded { codec: &self.codec, codes: &self.bytes.as_slice()[self.codes.clone()] }
    }

    /// The slots, offsets and links of an upper level.
    fn upper(&self, level: usize) -> (&[u32], &[u32], &[u32]) {
        let range = self.upper[level];
        let bytes = self.bytes.as_slice();
        let words: &[u32] = bytemuck::cast_slice(&bytes[range.base..range.base + 4 * range.end(self)]);
        (&words[range.slots..][..range.count], &words[range.offsets..range.links], &words[range.links..])
    }

    /// Every link must name a row, and none of a row's twice; every degree must fit its row.
    fn check_links(&self) -> Result<(), Error> {
        let bad = |what: String| Err(Error::Format(what));
        if self.nodes == 0 || self.nodes > Graph::MAX_NODES || self.entry as usize >= self.nodes {
            return bad(format!("entry slot {} of {} rows", self.entry, self.nodes));
        }
        let level0: &[u32] = bytemuck::cast_slice(&self.bytes.as_slice()[self.level0.clone()]);
        let broken = level0.par_chunks_exact(self.row_len).position_any(|row| {
            let degree = row[0] as usize;
            degree >= row.len() || row[1..=degree].iter().any(|&to| to as usize >= self.nodes)
        });
        if let Some(slot) = broken {
            return bad(format!("the links of slot {slot} lead out of the index"));
        }
        // A search looks at a row's links before it marks any: one named twice would be found twice.
        let twice = level0.par_chunks_exact(self.row_len).position_any(|row| {
            let links = &row[1..=row[0] as usize];
            links.iter().enumerate().any(|(at, to)| links[..at].contains(to))
        });
        if let Some(slot) = twice {
            return bad(format!("slot {slot} has a link twice"));
        }
        if let Some(pair) = self.ids().windows(2).position(|pair| pair[0] >= pair[1]) {
            return bad(format!("item ids are not ascending at slot {pair}"));
        }
        for level in 0..self.upper.len() {
            let (slots, _, links) = self.upper(level);
            let ascending = slots.windows(2).all(|pair| pair[0] < pair[1]);
            if !ascending || slots.iter().chain(links).any(|&slot| slot as usize >= self.nodes) {
                return bad(format!("upper level {} leads out of the index", level + 1));
            }
        }
        Ok(())
    }
}

impl Links for Index {
    fn len(&self) -> usize {
        self.nodes
    }

    fn entry(&self) -> u32 {
        self.entry
    }

    fn upper_levels(&self) -> usize {
        self.upper.len()
    }

    fn row(&self, slot: u32) -> &[u32] {
        let level0: &[u32] = bytemuck::cast_slice(&self.bytes.as_slice()[self.level0.clone()]);
        &level0[slot as usize * self.row_len..][..self.row_len]
    }

    fn upper_len(&self, level: usize) -> usize {
        self.upper[level].count
    }

    fn upper_links(&self, level: usize, slot: u32) -> &[u32] {
        let (_, offsets, links) = self.upper(level);
        match self.ranks[level].place(slot) {
            Some(at) => &links[offsets[at] as usize..offsets[at + 1] as usize],
            None => &[],
        }
    }
}

impl UpperRange {
    /// Words up to the end of this level's links. Offsets were checked when the range was made.
    fn end(&self, index: &Index) -> usize {
        let at = self.base + 4 * (self.offsets + self.count);
        let word = &index.bytes.as_slice()[at..at + 4];
        self.links + u32::from_le_bytes([word[0], word[1], word[2], word[3]]) as usize
    }
}

fn upper_ranges(
    bytes: &[u8],
    section: std::ops::Range<usize>,
    levels: usize,
) -> Result<Vec<UpperRange>, Error> {
    let base = section.start;
    let words: &[u32] = bytemuck::try_cast_slice(&bytes[section])
        .map_err(|_| Error::Format("section `upper` is not a whole number of words".into()))?;
    let cut = || Error::Format("section `upper` is cut short".into());
    let mut at = 0usize;
    let mut ranges = Vec::new();
    for _ in 0..levels {
        let count = *words.get(at).ok_or_else(cut)? as usize;
        let (slots, offsets) = (at + 1, at + 1 + count);
        let links = offsets + count + 1;
        let table = words.get(offsets..links).ok_or_else(cut)?;
        let end = links + table[count] as usize;
        if table[0] != 0 || table.windows(2).any(|pair| pair[0] > pair[1]) || end > words.len() {
            return Err(Error::Format("section `upper` has offsets that are not ascending".into()));
        }
        ranges.push(UpperRange { base, slots, offsets, links, count });
        at = end;
    }
    Ok(ranges)
}

/// The fixed fields behind the magic.
struct Header {
    kind: CodeKind,
    nodes: usize,
    dim: usize,
    m: usize,
    entry: u32,
    row_len: usize,
    upper_levels: usize,
}

impl Header {
    /// Reads the fields. [`SectionTable::read`] has checked magic, version and checksum.
    fn read(bytes: &[u8]) -> Result<Self, Error> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let kind =
            kind_of(word(12)).ok_or_else(|| Error::Format(format!("unknown code kind {}", word(12))))?;
        let header = Header {
            kind,
            nodes: (u64::from(word(16)) | u64::from(word(20)) << 32) as usize,
            dim: word(24) as usize,
            m: word(28) as usize,
            entry: word(32),
            row_len: word(36) as usize,
            upper_levels: word(44) as usize,
        };
        let sound = header.dim > 0
            && header.row_len > 1
            && header.row_len <= Graph::row_len(u16::MAX as usize)
            && header.upper_levels <= Graph::MAX_UPPER;
        // Past it, a sum of products of codes leaves the kernels' integers.
        let longest = match kind {
            CodeKind::F32 | CodeKind::F16 => usize::MAX,
            CodeKind::U8 => 1 << 15,
            CodeKind::U4 => 1 << 20,
        };
        if sound && header.dim <= longest {
            Ok(header)
        } else {
            Err(Error::Format("the header's sizes are out of range".into()))
        }
    }
}

/// Where the sections lie, in the order of [`SECTIONS`], and their checksums.
struct SectionTable {
    ranges: [std::ops::Range<usize>; SECTIONS.len()],
    checksums: [[u8; 32]; SECTIONS.len()],
}

impl SectionTable {
    fn read(bytes: &[u8]) -> Result<Self, Error> {
        let table = HEADER_LEN + SECTIONS.len() * ENTRY_LEN;
        if bytes.len() < table || &bytes[..8] != MAGIC {
            return Err(Error::Format("it does not begin like one".into()));
        }
        let version = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        if version != FORMAT_VERSION {
            return Err(Error::Format(format!(
                "it has format version {version}, this program reads {FORMAT_VERSION}"
            )));
        }
        let head = &bytes[..table];
        if header_checksum(head) != head[HEADER_CHECKSUM] {
            return Err(Error::Damaged { section: "header" });
        }
        let mut ranges: [std::ops::Range<usize>; SECTIONS.len()] = Default::default();
        let mut checksums = [[0u8; 32]; SECTIONS.len()];
        for (i, name) in SECTIONS.iter().enumerate() {
            let entry = &head[HEADER_LEN + i * ENTRY_LEN..][..ENTRY_LEN];
            let number = |at: usize| {
                let mut eight = [0u8; 8];
                eight.copy_from_slice(&entry[at..at + 8]);
                usize::try_from(u64::from_le_bytes(eight)).ok()
            };
            let named =
                entry[..8].strip_prefix(name.as_bytes()).is_some_and(|rest| rest.iter().all(|&b| b == 0));
            let range = number(8).zip(number(16)).and_then(|(at, len)| Some(at..at.checked_add(len)?));
            match range {
                Some(range) if named && range.start % ALIGNMENT == 0 && range.end <= bytes.len() => {
                    ranges[i] = range
                }
                _ => return Err(Error::Format(format!("section `{name}` does not lie inside it"))),
            }
            checksums[i].copy_from_slice(&entry[32..64]);
        }
        Ok(SectionTable { ranges, checksums })
    }

    /// Every byte is vouched for: by its section's checksum, or by being zero between two sections.
    fn verify(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut end = HEADER_LEN + SECTIONS.len() * ENTRY_LEN;
        for (range, section) in self.ranges.iter().zip(SECTIONS) {
            let between = bytes.get(end..range.start);
            if !between.is_some_and(|between| between.iter().all(|&byte| byte == 0)) {
                return Err(Error::Format(format!("the bytes before section `{section}` are not zeros")));
            }
            end = range.end;
        }
        if end != bytes.len() {
            return Err(Error::Format("there are bytes behind its last section".into()));
        }
        for (i, section) in SECTIONS.into_iter().enumerate() {
            let mut hasher = blake3::Hasher::new();
            hasher.update_rayon(&bytes[self.ranges[i].clone()]);
            if hasher.finalize().as_bytes() != &self.checksums[i] {
                return Err(Error::Damaged { section });
            }
        }
        Ok(())
    }
}
