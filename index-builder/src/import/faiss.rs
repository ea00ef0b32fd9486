//! Indexes written by faiss, of which only the vectors are taken.
//!
//! ```text
//! header  'tag4'  dimension d i32  vectors n i64  2^20 i64 twice  trained u8  metric i32  [f32 if metric > 1]
//! vec<T>  count u64, then count T                                               all little endian
//!
//! IxFI IxF2  header  vec<f32> of n·d, row i = vector i
//! IHNf       header  vec<f64> vec<i32> vec<i32> vec<u64> vec<i32>  5 · i32   IxFI or IxF2 with the vectors
//!                    └──────────── graph, passed over ────────────────────┘
//! IwFl       header  lists u64  probes u64  coarse index (IxFI, IxF2 or IHNf)  map u8  vec<i64>
//!            'ilar'  lists u64  bytes per vector u64 (= 4·d)
//!            'full'  vec<u64> of sizes   or   'sprs'  vec<u64> of pairs (list, size)
//!            per list: size · d f32, then size · id i64
//! IxMp IxM2  header  one of those above  vec<i64>: the ids of its vectors, by their numbers in it
//! ```
//!
//! An inverted file stores vectors by list. They come out in the order of their ids, by way of a table of 16
//! bytes a vector (id, offset) that lives as long as its file is being read. Ids that are just 0, 1, …, n−1
//! are the row numbers that faiss gives by itself, and are not passed on as ids; then the three kinds of
//! index read alike.
//!
//! A row is found by a read of its own there, which costs a seek a vector. Left out: every other index; most
//! of them hold compressed vectors.
//!
//! Source: facebookresearch/faiss `faiss/impl/index_read.cpp`.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::error::Error;
use super::raw::{About, Batches, Raw};
use super::values::{LITTLE_F32, decode, read_at, runs};

/// A faiss file whose lengths have all been found to fit.
pub(super) struct Faiss {
    path: PathBuf,
    pub(super) rows: u64,
    pub(super) dim: usize,
    place: Place,
    /// Offset of the ids that a map gives to the vectors by their numbers, if one does.
    map: Option<u64>,
    /// Whether it was made for distances, not inner products.
    pub(super) distances: bool,
}

/// Where the vectors are.
enum Place {
    /// One after the other, from an offset on.
    Flat(u64),
    /// List after list, from an offset on; the sizes of the lists that are not empty.
    Lists(u64, Vec<u64>),
}

/// What every index begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    dim: u64,
    rows: u64,
    metric: i32,
}

impl Header {
    fn size(&self) -> (u64, u64) {
        (self.dim, self.rows)
    }
}

/// The metric of an index that was made for distances.
const METRIC_L2: i32 = 1;

impl Faiss {
    /// Reads everything but the vectors, and compares it with the size of the file.
    pub(super) fn open(path: &Path) -> Result<Faiss, Error> {
        let mut bytes = Bytes::open(path)?;
        let mut tag = bytes.tag()?;
        let mapped = matches!(&tag, b"IxMp" | b"IxM2");
        let outer = if mapped { Some(bytes.header()?) } else { None };
        if mapped {
            tag = bytes.tag()?;
        }
        let (header, place) = match &tag {
            b"IxFI" | b"IxF2" | b"IHNf" => {
                bytes.index(tag).map(|(header, body)| (header, Place::Flat(body)))?
            }
            b"IwFl" => bytes.inverted_file()?,
            _ => {
                let problem = format!(
                    "{} '{}', which is not numpy, parquet or IxFI, IxF2, IHNf, IwFl of faiss",
                    if mapped { "maps ids onto" } else { "begins with" },
                    tag.escape_ascii()
                );
                let cure = match mapped {
                    true => {
                        "write its vectors with numpy.save(index.index.reconstruct_n(0, index.ntotal)) and its ids, faiss.vector_to_array(index.id_map), as metadata"
                    }
                    false => "convert it, for instance with reconstruct_n of the index and numpy.save",
                };
                return Err(Error::unsupported(path, problem, cure));
            }
        };
        let map = match outer {
            Some(outer) if outer.size() != header.size() => {
                return Err(bytes.damaged("maps ids onto an index of another size"));
            }
            Some(_) => {
                let count = bytes.u64()?;
                if count != header.rows {
                    return Err(bytes.damaged(format!("maps {count} ids onto {} vectors", header.rows)));
                }
                let at = bytes.at;
                bytes.skip(count, 8)?;
                Some(at)
            }
            None => None,
        };
        if bytes.left() > 0 {
            return Err(bytes.damaged(format!("has {} bytes after its end", bytes.left())));
        }
        if header.rows == 0 {
            return Err(Error::no_rows(path));
        }
        let dim =
            usize::try_from(header.dim).map_err(|_| bytes.damaged("announces vectors longer than memory"))?;
        let distances = header.metric == METRIC_L2;
        Ok(Faiss { path: path.to_owned(), rows: header.rows, dim, place, map, distances })
    }

    /// Reads rows from `from` on, at most `size` (at least 1) at once.
    pub(super) fn batches(&self, size: usize, from: u64) -> Result<Batches<'_>, Error> {
        let mut file = File::open(&self.path).map_err(|source| Error::unreadable(&self.path, source))?;
        let row = self.dim * LITTLE_F32.width;
        match &self.place {
            Place::Flat(body) => {
                let mut bytes = Vec::new();
                Ok(Box::new(runs(from, self.rows, size).map(move |(first, count)| {
                    bytes.resize(count * row, 0);
                    read_at(&mut file, &self.path, body + first * row as u64, &mut bytes)?;
                    let ids = self.mapped(&mut file, first, count)?;
                    let rows = bytes.chunks_exact(row).enumerate();
                    Ok(rows.map(|(at, row)| raw(decode(LITTLE_F32, row), ids.get(at).copied())).collect())
                })))
            }
            Place::Lists(body, sizes) => {
                let order = self.order(*body, sizes)?;
                let plain = order.iter().zip(0..).all(|((id, _), row)| *id == row);
                let mut bytes = vec![0; row];
                Ok(Box::new(runs(from, self.rows, size).map(move |(first, count)| {
                    let rows = order[first as usize..][..count].iter();
                    rows.map(|&(id, offset)| {
                        read_at(&mut file, &self.path, offset, &mut bytes)?;
                        let values = decode(LITTLE_F32, &bytes);
                        // Below a map, an id is a number in the map.
                        let number =
                            u64::try_from(id).ok().filter(|number| self.map.is_some() && *number < self.rows);
                        let id = match (number, self.map) {
                            (Some(number), _) => self.mapped(&mut file, number, 1)?.pop(),
                            (None, Some(_)) => Some(-1),
                            (None, None) => Some(id).filter(|id| !plain || *id < 0),
                        };
                        Ok(raw(values, id))
                    })
                    .collect()
                })))
            }
        }
    }

    /// The ids that a map gives to `count` vectors; none without a map.
    fn mapped(&self, file: &mut File, first: u64, count: usize) -> Result<Vec<i64>, Error> {
        let Some(map) = self.map else { return Ok(Vec::new()) };
        let mut bytes = vec![0; count * 8];
        read_at(file, &self.path, map + first * 8, &mut bytes)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|id| i64::from_le_bytes(*id)).collect())
    }

    /// The id and the offset of every vector of an inverted file, by id.
    fn order(&self, body: u64, sizes: &[u64]) -> Result<Vec<(i64, u64)>, Error> {
        let mut bytes = Bytes::open(&self.path)?;
        let row = self.dim as u64 * LITTLE_F32.width as u64;
        let mut order = Vec::with_capacity(self.rows as usize);
        bytes.skip(body, 1)?;
        for size in sizes {
            let first = bytes.at;
            bytes.skip(*size, row)?;
            for index in 0..*size {
                order.push((i64::from_le_bytes(bytes.array()?), first + index * row));
            }
        }
        order.sort_unstable();
        Ok(order)
    }
}

/// A row with its id, if it has one.
fn raw(values: Result<Vec<f32>, String>, id: Option<i64>) -> Raw {
    let mut about = About::default();
    match id.map(|id| (id, u64::try_from(id))) {
        Some((id, Err(_))) => return Raw { values: Err(format!("id {id} is negative")), about },
        Some((_, Ok(id))) => about.id = Some(id),
        None => {}
    }
    Raw { values, about }
}

/// A file read from front to back, which knows how much of it is left.
struct Bytes<'a> {
    path: &'a Path,
    file: BufReader<File>,
    at: u64,
    size: u64,
}

impl Bytes<'_> {
    fn open(path: &Path) -> Result<Bytes<'_>, Error> {
        let file = File::open(path).map_err(|source| Error::unreadable(path, source))?;
        let size = file.metadata().map_err(|source| Error::unreadable(path, source))?.len();
        Ok(Bytes { path, file: BufReader::new(file), at: 0, size })
    }

    /// A whole index without lists, after its tag: what it holds and where its vectors are.
    fn index(&mut self, tag: [u8; 4]) -> Result<(Header, u64), Error> {
        let header = self.header()?;
        if &tag == b"IHNf" {
            for width in [8, 4, 4, 8, 4] {
                self.vector(width)?;
            }
            self.skip(5, 4)?;
            let inner = self.tag()?;
            // Flat only: an HNSW in an HNSW in an HNSW would be a loop that the file decides the length of.
            if !matches!(&inner, b"IxFI" | b"IxF2") || self.header()?.size() != header.size() {
                return Err(self.damaged(format!("has '{}' of another size inside", inner.escape_ascii())));
            }
        } else if !matches!(&tag, b"IxFI" | b"IxF2") {
            return Err(self.unsupported_part(tag));
        }
        let count = self.u64()?;
        if header.rows.checked_mul(header.dim) != Some(count) {
            let Header { dim, rows, .. } = header;
            return Err(self.damaged(format!("announces {rows} vectors of {dim} but has {count} numbers")));
        }
        let body = self.at;
        self.skip(count, LITTLE_F32.width as u64)?;
        Ok((header, body))
    }

    /// A whole inverted file, after its tag.
    fn inverted_file(&mut self) -> Result<(Header, Place), Error> {
        let header = self.header()?;
        let lists = self.u64()?;
        self.skip(1, 8)?; // probes
        let coarse = self.tag()?;
        self.index(coarse)?;
        let [map] = self.array()?;
        self.vector(8)?;
        match map {
            0 | 1 => {}
            2 => self.vector(16)?, // a hash table, as pairs
            _ => return Err(self.damaged(format!("has a direct map of the unknown kind {map}"))),
        }
        let tag = self.tag()?;
        if &tag != b"ilar" {
            return Err(self.unsupported_part(tag));
        }
        if (self.u64()?, self.u64()?) != (lists, header.dim * LITTLE_F32.width as u64) {
            return Err(self.damaged("has inverted lists of another number or width than it announced"));
        }
        let sizes = self.sizes(lists)?;
        let body = self.at;
        let rows = sizes.iter().try_fold(0_u64, |rows, size| rows.checked_add(*size));
        if rows != Some(header.rows) {
            return Err(
                self.damaged(format!("announces {} vectors but its lists have another number", header.rows))
            );
        }
        self.skip(header.rows, header.dim * LITTLE_F32.width as u64 + 8)?;
        Ok((header, Place::Lists(body, sizes)))
    }

    /// Sizes of the lists that are not empty, in the order of the lists.
    fn sizes(&mut self, lists: u64) -> Result<Vec<u64>, Error> {
        let tag = self.tag()?;
        let count = self.u64()?;
        self.fits(count, 8)?;
        let mut sizes = Vec::new();
        match &tag {
            b"full" if count == lists => {
                for _ in 0..count {
                    sizes.push(self.u64()?);
                }
            }
            b"sprs" if count.is_multiple_of(2) => {
                let mut next = 0;
                for _ in 0..count / 2 {
                    let (list, size) = (self.u64()?, self.u64()?);
                    if list < next || list >= lists {
                        return Err(self.damaged(format!("has list {list} out of order")));
                    }
                    next = list + 1;
                    sizes.push(size);
                }
            }
            b"full" | b"sprs" => return Err(self.damaged(format!("has {count} sizes for {lists} lists"))),
            _ => return Err(self.unsupported_part(tag)),
        }
        sizes.retain(|size| *size > 0);
        Ok(sizes)
    }

    fn header(&mut self) -> Result<Header, Error> {
        let dim = i32::from_le_bytes(self.array()?);
        let rows = i64::from_le_bytes(self.array()?);
        self.skip(8 + 8 + 1, 1)?;
        let metric = i32::from_le_bytes(self.array()?);
        if metric > 1 {
            self.skip(1, 4)?;
        }
        match (u64::try_from(dim), u64::try_from(rows)) {
            (Ok(dim @ 1..), Ok(rows)) => Ok(Header { dim, rows, metric }),
            _ => Err(self.damaged(format!("announces {rows} vectors of {dim} values"))),
        }
    }

    fn tag(&mut self) -> Result<[u8; 4], Error> {
        self.array()
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    /// Passes over a count and so many items of `width` bytes.
    fn vector(&mut self, width: u64) -> Result<(), Error> {
        let count = self.u64()?;
        self.skip(count, width)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => self.damaged(format!("ends at byte {} inside a field", self.size)),
            _ => Error::unreadable(self.path, source),
        })?;
        self.at += N as u64;
        Ok(bytes)
    }

    /// Passes over `count` items of `width` bytes that must be there.
    fn skip(&mut self, count: u64, width: u64) -> Result<(), Error> {
        let bytes = self.fits(count, width)?;
        self.at += bytes;
        self.file.seek(SeekFrom::Start(self.at)).map_err(|source| Error::unreadable(self.path, source))?;
        Ok(())
    }

    /// The bytes of `count` items of `width`, if so many are left.
    fn fits(&self, count: u64, width: u64) -> Result<u64, Error> {
        let bytes = count.checked_mul(width).filter(|bytes| *bytes <= self.left());
        bytes.ok_or_else(|| {
            self.damaged(format!(
                "announces {count} items of {width} bytes at byte {}, {} are left",
                self.at,
                self.left()
            ))
        })
    }

    fn left(&self) -> u64 {
        self.size.saturating_sub(self.at)
    }

    fn damaged(&self, problem: impl Into<String>) -> Error {
        Error::damaged(self.path, problem)
    }

    fn unsupported_part(&self, tag: [u8; 4]) -> Error {
        let problem = format!("has a part '{}', which is not supported", tag.escape_ascii());
        Error::unsupported(self.path, problem, "convert the index with faiss to a flat one")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use crate::import::tests::{problem, read_all, write};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    /// Vector i is (i + 1, -i).
    const FOUR: [[f32; 2]; 4] = [[1.0, 0.0], [2.0, -1.0], [3.0, -2.0], [4.0, -3.0]];

    fn header(tag: &str, rows: i64, metric: i32) -> Vec<u8> {
        let mut bytes = [tag.as_bytes(), &2_i32.to_le_bytes(), &rows.to_le_bytes(), &[0; 16], &[1]].concat();
        bytes.extend(metric.to_le_bytes());
        if metric > 1 {
            bytes.extend(0.5_f32.to_le_bytes());
        }
        bytes
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn codes(vectors: &[[f32; 2]]) -> Vec<u8> {
        vectors.iter().flatten().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn flat(tag: &str, vectors: &[[f32; 2]]) -> Vec<u8> {
        [header(tag, vectors.len() as i64, 0), words(&[vectors.len() as u64 * 2]), codes(vectors)].concat()
    }

    fn hnsw() -> Vec<u8> {
        let mut bytes = header("IHNf", 4, 7);
        for (count, width) in [(3, 8), (4, 4), (4, 4), (5, 8), (0, 4)] {
            bytes.extend(words(&[count]));
            bytes.resize(bytes.len() + (count * width) as usize, 9);
        }
        bytes.resize(bytes.len() + 20, 9);
        // The inner header must agree in size, not in metric.
        bytes.extend(flat("IxFI", &FOUR));
        bytes
    }

    /// Lists 0 to 3; list 1 has vectors 3 and 0, list 3 has 2 and 1.
    fn inverted(map: u8, sparse: bool, ids: [i64; 4]) -> Vec<u8> {
        let mut bytes = [header("IwFl", 4, 0), words(&[4, 1]), flat("IxF2", &FOUR), vec![map]].concat();
        bytes.extend(if map == 2 { words(&[0, 1, 5, 6]) } else { words(&[2, 5, 6]) });
        bytes.extend([b"ilar".to_vec(), words(&[4, 8])].concat());
        bytes.extend(if sparse { b"sprs" } else { b"full" });
        bytes.extend(if sparse { words(&[4, 1, 2, 3, 2]) } else { words(&[4, 0, 2, 0, 2]) });
        let ids = ids.map(|id| id as u64);
        bytes.extend([codes(&[FOUR[3], FOUR[0]]), words(&[ids[3], ids[0]])].concat());
        bytes.extend([codes(&[FOUR[2], FOUR[1]]), words(&[ids[2], ids[1]])].concat());
        bytes
    }

    pub(in crate::import) fn all_kinds() -> Vec<Vec<u8>> {
        let plain = [0, 1, 2, 3];
        let lists = [(0, false), (1, true), (2, false)].map(|(map, sparse)| inverted(map, sparse, plain));
        [vec![flat("IxFI", &FOUR), flat("IxF2", &FOUR), hnsw()], lists.to_vec()].concat()
    }

    #[test]
    fn all_kinds_read_alike() {
        for (kind, bytes) in all_kinds().iter().enumerate() {
            for size in [1, 3, 100] {
                let (rows, bad) = read_all(&write("x.bin", bytes), size).unwrap();
                assert_eq!(rows.iter().map(|row| &row.values[..]).collect::<Vec<_>>(), FOUR, "kind {kind}");
                assert!(bad.is_empty() && rows.iter().all(|row| row.id.is_none()));
            }
        }
    }

    #[test]
    fn ids_of_an_inverted_file_order_the_rows() {
        let (rows, bad) = read_all(&write("x.faiss", &inverted(0, true, [70, 30, 1 << 40, -5])), 2).unwrap();
        let read: Vec<_> = rows.iter().map(|row| (row.row, row.id, row.values[0])).collect();
        assert_eq!(read, [(1, Some(30), 2.0), (2, Some(70), 1.0), (3, Some(1 << 40), 3.0)]);
        assert_eq!((bad[0].row, &bad[0].reason[..]), (0, "id -5 is negative"));
    }

    /// An index below a map of ids.
    fn mapped(tag: &str, inner: Vec<u8>, ids: &[i64]) -> Vec<u8> {
        let ids: Vec<u64> = ids.iter().map(|id| *id as u64).collect();
        [header(tag, 4, 0), inner, words(&[ids.len() as u64]), words(&ids)].concat()
    }

    #[test]
    fn a_map_gives_the_ids() {
        for inner in all_kinds() {
            for (tag, size) in [("IxMp", 1), ("IxM2", 3), ("IxMp", 100)] {
                let bytes = mapped(tag, inner.clone(), &[9, 1 << 40, 0, -3]);
                let (rows, bad) = read_all(&write("x.index", &bytes), size).unwrap();
                let read: Vec<_> = rows.iter().map(|row| (row.id, row.values[0])).collect();
                assert_eq!(read, [(Some(9), 1.0), (Some(1 << 40), 2.0), (Some(0), 3.0)]);
                assert_eq!(bad[0].reason, "id -3 is negative");
            }
        }
        let short = mapped("IxMp", flat("IxFI", &FOUR), &[1, 2]);
        assert!(problem("x.index", &short).0.contains("maps 2 ids onto 4 vectors"));
        let packed = [header("IxM2", 4, 0), b"IxPQ".to_vec()].concat();
        let message = problem("x.index", &packed).0;
        assert!(message.contains("maps ids onto 'IxPQ'") && message.contains("vector_to_array"), "{message}");
        let twice = [header("IxMp", 4, 0), b"IxMp".to_vec()].concat();
        assert!(problem("x.index", &twice).0.contains("maps ids onto 'IxMp'"));
    }

    #[test]
    fn refusals_name_the_tag_or_the_length() {
        let flat_but = |at: usize, bytes: &[u8]| {
            let mut file = flat("IxFI", &FOUR);
            file.splice(at..at + bytes.len(), bytes.iter().copied());
            file
        };
        let plain = inverted(0, false, [0, 1, 2, 3]);
        let cases = [
            (b"IxPQ....".to_vec(), "begins with 'IxPQ', which is not numpy"),
            (b"\0\xff..".to_vec(), "begins with '\\x00\\xff..', which is not numpy"),
            (b"Ix".to_vec(), "ends at byte 2 inside a field; the file is damaged"),
            (flat_but(4, &[0; 4]), "announces 4 vectors of 0 values;"),
            (flat_but(8, &[255; 8]), "announces -1 vectors of 2 values;"),
            (flat_but(8, &[9]), "announces 9 vectors of 2 but has 8 numbers;"),
            ([flat("IxFI", &FOUR), vec![0]].concat(), "has 1 bytes after its end;"),
            (flat("IxFI", &FOUR)[..68].to_vec(), "announces 8 items of 4 bytes at byte 45, 23 are left;"),
            (flat("IxFI", &[]), "has no rows; leave it out"),
            (plain[..plain.len() - 1].to_vec(), "announces 4 items of 16 bytes at byte"),
        ];
        for (bytes, expected) in cases {
            let (message, path) = problem("bad.index", &bytes);
            assert!(
                message.starts_with(&format!("{}: {expected}", path.display())),
                "{message}\nis not\n{expected}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn damage_never_panics(kind in 0_usize..6, cut: Index, flip: Index, bit in 0_u8..8) {
            let good = &all_kinds()[kind];
            prop_assert!(read_all(&write("x.index", &good[..cut.index(good.len())]), 3).is_err());
            let mut flipped = good.clone();
            flipped[flip.index(good.len())] ^= 1_u8 << bit;
            let _ = read_all(&write("x.index", &flipped), 3);
        }

        #[test]
        fn any_bytes_never_panic(tag in "IxFI|IxF2|IHNf|IwFl|IxMp|IxM2|.{4}", bytes in vec(any::<u8>(), 0..200)) {
            let _ = read_all(&write("x.index", &[tag.as_bytes(), &bytes].concat()), 3);
        }

        /// Lengths of any size in an otherwise possible file.
        #[test]
        fn any_length_never_panics(kind in 0_usize..6, at: Index, length: u64) {
            let mut bytes = all_kinds()[kind].clone();
            let at = at.index(bytes.len() - 8);
            bytes[at..at + 8].copy_from_slice(&length.to_le_bytes());
            let _ = read_all(&write("x.index", &bytes), 3);
        }
    }
}
