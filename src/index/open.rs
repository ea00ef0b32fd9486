//! Stored bytes become an index: read once, as they come, each to where it belongs.
//!
//! Arbitrary bytes give an error, never a panic and never an allocation that the bytes do not pay for: after
//! [`Loading::finish`] a search may follow links without asking.

use rayon::prelude::*;

use super::chunks::Chunks;
use super::layout::{
    ALIGNMENT, ENTRY_LEN, FORMAT_VERSION, HEADER_CHECKSUM, HEADER_LEN, MAGIC, MAX_NODES, MAX_UPPER, SECTIONS,
    header_checksum, kind_of, row_len,
};
use super::lookup::Lookup;
use super::quant::{self, Codec, Coded};
use super::shared::LinkRows;
use super::sketch::Sketch;
use super::upper::{Upper, UpperLevel};
use super::view::Index;
use super::{CodeKind, Error};

/// Bytes that an index begins with: they say where everything else lies.
const HEAD_LEN: usize = HEADER_LEN + SECTIONS.len() * ENTRY_LEN;

/// An index whose bytes are coming in.
pub struct Loading {
    len: usize,
    head: Header,
    sections: SectionTable,
    level0: LinkRows,
    upper: Vec<u8>,
    codec: Vec<u8>,
    ids: Chunks,
    codes: Chunks,
}

impl Loading {
    /// Looks at the beginning, and makes room for the rest.
    ///
    /// * `head`: the first bytes, as many as there are or more than the head has. `len`: of all.
    ///
    /// # Errors
    /// [`Error::Format`] for what is no beginning of an index of so many bytes of this version, [`Error::Memory`].
    pub fn begin(head: &[u8], len: usize) -> Result<Self, Error> {
        let sections = SectionTable::read(head, len)?;
        let header = Header::read(head)?;
        let dim = header.dim;
        let [level0, upper, codec, ids, codes] = &sections.ranges;
        let expect = |what: &str, range: &std::ops::Range<usize>, len: Option<usize>| {
            if Some(range.len()) == len {
                return Ok(());
            }
            Err(Error::Format(format!(
                "section `{what}` has {} bytes, which does not fit the header",
                range.len()
            )))
        };
        expect("level0", level0, header.nodes.checked_mul(header.row_len).and_then(|w| w.checked_mul(4)))?;
        expect("codec", codec, dim.checked_add(1).and_then(|w| w.checked_mul(4)))?;
        expect("ids", ids, header.nodes.checked_mul(8))?;
        expect("codes", codes, header.nodes.checked_mul(header.kind.stride(dim)))?;
        if header.nodes == 0 || header.nodes > MAX_NODES || header.entry as usize >= header.nodes {
            return Err(Error::Format(format!("entry slot {} of {} rows", header.entry, header.nodes)));
        }
        Ok(Loading {
            len,
            level0: LinkRows::new(header.nodes, header.row_len)?,
            upper: vec![0; upper.len()],
            codec: vec![0; codec.len()],
            ids: Chunks::zeroed(header.nodes, 8)?,
            codes: Chunks::zeroed(header.nodes, header.kind.stride(dim))?,
            head: header,
            sections,
        })
    }

    /// Takes some of the bytes, in any order.
    ///
    /// * `at`: the first one's place, a multiple of four. `bytes`: whole words.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), Error> {
        let end = at + bytes.len();
        for (section, range) in self.sections.ranges.iter().enumerate() {
            let (from, to) = (range.start.max(at), range.end.min(end));
            if from >= to {
                continue;
            }
            let (part, place) = (&bytes[from - at..to - at], from - range.start);
            match section {
                0 => self.level0.fill(place / 4, part),
                1 => self.upper[place..][..part.len()].copy_from_slice(part),
                2 => self.codec[place..][..part.len()].copy_from_slice(part),
                3 => self.ids.fill(place, part)?,
                _ => self.codes.fill(place, part)?,
            }
        }
        Ok(())
    }

    /// Checks what has come, and takes it for an index.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub fn finish(self) -> Result<Index, Error> {
        let Loading { len, head, level0, upper, codec, ids, codes, .. } = self;
        let floats: Vec<f32> = bytemuck::pod_collect_to_vec(&codec);
        let codec = Codec { kind: head.kind, step: floats[0], mean: floats[1..].to_vec() };
        quant::check(&codec)?;
        let levels = upper_levels(&upper, head.upper_levels)?;
        check_links(&head, &level0, &levels)?;
        let id = |slot: usize| bytemuck::pod_read_unaligned::<u64>(ids.row(slot as u32));
        if let Some(pair) = (1..head.nodes).find(|&slot| id(slot - 1) >= id(slot)) {
            return Err(Error::Format(format!("item ids are not ascending at slot {}", pair - 1)));
        }
        let sketch = Sketch::of(Coded { codec: &codec, codes: &codes }, head.nodes)?;
        let upper = Upper::new(head.entry, levels, head.nodes);
        Ok(Index {
            codec: codec.into(),
            m: head.m,
            stored: len as u64,
            links: level0,
            upper: upper.into(),
            lookup: Lookup::InOrder,
            ids,
            codes,
            sketch,
        })
    }
}

impl Index {
    /// Checks bytes and takes a copy of them.
    ///
    /// # Errors
    /// [`Error::Format`] for bytes that are no index of this version, [`Error::Damaged`] for a section that fails its
    /// checksum.
    pub fn open(bytes: &[u8]) -> Result<Self, Error> {
        SectionTable::read(bytes, bytes.len())?.verify(bytes)?;
        Index::open_unchanged(bytes)
    }

    /// As [`Index::open`], of bytes that are known to be those that were written: their sections' checksums are not computed
    /// once more. What they say is checked all the same.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub fn open_unchanged(bytes: &[u8]) -> Result<Self, Error> {
        let mut loading = Loading::begin(bytes, bytes.len())?;
        loading.put(0, bytes)?;
        loading.finish()
    }
}

/// Every link must name a row, and none of a row's twice; every degree must fit its row.
fn check_links(head: &Header, level0: &LinkRows, upper: &[UpperLevel]) -> Result<(), Error> {
    let bad = |what: String| Err(Error::Format(what));
    let list = |slot: usize| {
        let mut links = Vec::with_capacity(head.row_len);
        level0.each(slot as u32, |to| links.push(to));
        links
    };
    let broken = (0..head.nodes).into_par_iter().position_any(|slot| {
        level0.stored_degree(slot as u32) >= head.row_len
            || list(slot).iter().any(|&to| to as usize >= head.nodes)
    });
    if let Some(slot) = broken {
        return bad(format!("the links of slot {slot} lead out of the index"));
    }
    let twice = (0..head.nodes).into_par_iter().position_any(|slot| {
        let links = list(slot);
        links.iter().enumerate().any(|(at, to)| links[..at].contains(to))
    });
    if let Some(slot) = twice {
        return bad(format!("slot {slot} has a link twice"));
    }
    for (level, UpperLevel { slots, links, .. }) in upper.iter().enumerate() {
        let ascending = slots.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || slots.iter().chain(links).any(|&slot| slot as usize >= head.nodes) {
            return bad(format!("upper level {} leads out of the index", level + 1));
        }
    }
    Ok(())
}

/// Reads the levels above 0.
fn upper_levels(section: &[u8], levels: usize) -> Result<Vec<UpperLevel>, Error> {
    if !section.len().is_multiple_of(4) {
        return Err(Error::Format("section `upper` is not a whole number of words".into()));
    }
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(section);
    let cut = || Error::Format("section `upper` is cut short".into());
    let mut at = 0usize;
    let mut read = Vec::new();
    for _ in 0..levels {
        let count = *words.get(at).ok_or_else(cut)? as usize;
        let (slots, offsets) = (at + 1, at + 1 + count);
        let links = offsets + count + 1;
        let table = words.get(offsets..links).ok_or_else(cut)?;
        let end = links + table[count] as usize;
        if table[0] != 0 || table.windows(2).any(|pair| pair[0] > pair[1]) || end > words.len() {
            return Err(Error::Format("section `upper` has offsets that are not ascending".into()));
        }
        read.push(UpperLevel {
            slots: words[slots..offsets].to_vec(),
            offsets: table.to_vec(),
            links: words[links..end].to_vec(),
        });
        at = end;
    }
    Ok(read)
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
            && header.row_len <= row_len(u16::MAX as usize)
            && header.upper_levels <= MAX_UPPER;
        if sound && header.dim <= kind.longest() {
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
    /// * `bytes`: the first ones. `len`: of all.
    fn read(bytes: &[u8], len: usize) -> Result<Self, Error> {
        if bytes.len() < HEAD_LEN || &bytes[..8] != MAGIC {
            return Err(Error::Format("it does not begin like one".into()));
        }
        let version = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        if version != FORMAT_VERSION {
            return Err(Error::Format(format!(
                "it has format version {version}, this program reads {FORMAT_VERSION}"
            )));
        }
        let head = &bytes[..HEAD_LEN];
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
                Some(range) if named && range.start % ALIGNMENT == 0 && range.end <= len => ranges[i] = range,
                _ => return Err(Error::Format(format!("section `{name}` does not lie inside it"))),
            }
            checksums[i].copy_from_slice(&entry[32..64]);
        }
        Ok(SectionTable { ranges, checksums })
    }

    /// Every byte is vouched for: by its section's checksum, or by being zero between two sections.
    fn verify(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut end = HEAD_LEN;
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
