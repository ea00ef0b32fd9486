//! Arrays written by numpy's `save`: one row per vector.
//!
//! ```text
//! 93 'NUMPY'  major minor  header length        header                                          body
//! └─ 6 bytes ─┘ u8    u8   u16 LE (version 1)   {'descr': '<f4', 'fortran_order': False,        rows · dim
//!                          u32 LE (2 and 3)      'shape': (12, 16), }  spaces  newline          numbers
//!
//! C order        row 0: v0 v1 … v(dim-1), row 1: …      a run of rows is one piece of the file
//! Fortran order  column 0: row 0, row 1, …, column 1: … a run of rows is one piece per column
//! ```
//!
//! The header's text is read by the library ([`viscache::media::npy`]); here it is held against the file. The body must
//! have exactly the length that the header announces.
//!
//! Left out: integers (most often labels, named by mistake), complex numbers, records, and arrays of one or
//! of more than two axes, whose rows would be a guess.
//!
//! Source: numpy `numpy/lib/format.py`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::raw::{About, Batches, Raw};
use super::values::{decode, read_at, runs};
use viscache::media::npy::{Element, Header};

pub(super) use viscache::media::npy::MAGIC;

/// Longest header taken seriously; numpy itself refuses to evaluate more than 10 000 bytes.
const HEADER_LIMIT: u64 = 1 << 16;

/// An array of two axes, checked against the size of its file.
pub(super) struct Npy {
    path: PathBuf,
    pub(super) rows: u64,
    pub(super) dim: usize,
    element: Element,
    fortran: bool,
    /// Offset of the first number.
    body: u64,
}

impl Npy {
    /// Reads the header and compares it with the size of the file.
    pub(super) fn open(path: &Path) -> Result<Npy, Error> {
        let damaged = |problem: &str| Error::damaged(path, problem);
        let unreadable = |source| Error::unreadable(path, source);
        let mut file = File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        let mut start = Vec::new();
        file.by_ref().take(12).read_to_end(&mut start).map_err(unreadable)?;
        if !start.starts_with(MAGIC) {
            return Err(Error::unsupported(
                path,
                "does not begin as a numpy file",
                "write it with numpy.save",
            ));
        }
        let (text, length) = match start[MAGIC.len()..] {
            [1, _, a, b, ..] => (10, u64::from(u16::from_le_bytes([a, b]))),
            [2 | 3, _, a, b, c, d] => (12, u64::from(u32::from_le_bytes([a, b, c, d]))),
            [1..=3, ..] | [] => return Err(damaged("ends inside its header")),
            _ => {
                return Err(Error::unsupported(
                    path,
                    "has an unknown numpy format version",
                    "save it as version 1",
                ));
            }
        };
        let body = text + length;
        if body > size || length > HEADER_LIMIT {
            return Err(damaged(&format!("announces a header of {length} bytes in a file of {size}")));
        }
        let mut header = vec![0; length as usize];
        read_at(&mut file, path, text, &mut header)?;
        let header = std::str::from_utf8(&header).ok().and_then(Header::parse);
        let header = header.ok_or_else(|| damaged("has a header that is not that of one plain array"))?;

        let element = header.element().ok_or_else(|| {
            let problem = format!("has dtype {:?}, not float16, float32 or float64", header.descr);
            Error::unsupported(path, problem, "save array.astype('float32') if these are the vectors")
        })?;
        let [rows, dim] = header.shape[..] else {
            let problem =
                format!("has an array of {} axes (shape {:?}), not 2", header.shape.len(), header.shape);
            return Err(Error::unsupported(path, problem, "save array.reshape(rows, dimension)"));
        };
        let bytes = rows.checked_mul(dim).and_then(|count| count.checked_mul(element.width as u64));
        if bytes != Some(size - body) {
            let problem = format!("announces {rows} x {dim} numbers of {} bytes", element.width);
            return Err(damaged(&format!("{problem}, but {} bytes follow the header", size - body)));
        }
        if rows == 0 || dim == 0 {
            return Err(Error::no_rows(path));
        }
        let dim = usize::try_from(dim).map_err(|_| damaged("announces rows longer than memory"))?;
        Ok(Npy { path: path.to_owned(), rows, dim, element, fortran: header.fortran, body })
    }

    /// Reads rows from `from` on, at most `size` (at least 1) at once.
    pub(super) fn batches(&self, size: usize, from: u64) -> Result<Batches<'_>, Error> {
        let mut file = File::open(&self.path).map_err(|source| Error::unreadable(&self.path, source))?;
        let mut bytes = Vec::new();
        Ok(Box::new(runs(from, self.rows, size).map(move |(first, count)| {
            self.read(&mut file, first, count, &mut bytes)?;
            let rows = bytes.chunks_exact(self.dim * self.element.width);
            Ok(rows.map(|row| Raw { values: decode(self.element, row), about: About::default() }).collect())
        })))
    }

    /// Fills `bytes` with `count` rows in C order.
    fn read(&self, file: &mut File, first: u64, count: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let width = self.element.width;
        let row = self.dim * width;
        bytes.resize(count * row, 0);
        if !self.fortran {
            return read_at(file, &self.path, self.body + first * row as u64, bytes);
        }
        let mut column = vec![0; count * width];
        for index in 0..self.dim {
            let number = index as u64 * self.rows + first;
            read_at(file, &self.path, self.body + number * width as u64, &mut column)?;
            for (row, value) in bytes.chunks_exact_mut(row).zip(column.chunks_exact(width)) {
                row[index * width..][..width].copy_from_slice(value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::import::tests::{problem, read_all, write};
    use half::f16;
    use npyz::WriterBuilder;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// What numpy would write for `rows` (row-major) of the type T.
    pub(in crate::import) fn npy<T: npyz::AutoSerialize + Copy>(
        values: &[T],
        dim: usize,
        fortran: bool,
    ) -> Vec<u8> {
        let rows = values.len() / dim;
        let order = if fortran { npyz::Order::Fortran } else { npyz::Order::C };
        let mut bytes = Vec::new();
        let options =
            npyz::WriteOptions::new().default_dtype().shape(&[rows as u64, dim as u64]).order(order);
        let mut writer = options.writer(&mut bytes).begin_nd().unwrap();
        for index in 0..values.len() {
            let index = if fortran { index % rows * dim + index / rows } else { index };
            writer.push(&values[index]).unwrap();
        }
        writer.finish().unwrap();
        bytes
    }

    /// A file with this header text and this many bytes of body.
    fn forged(header: &str, body: usize) -> Vec<u8> {
        let mut bytes = [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat();
        bytes.resize(bytes.len() + body, 1);
        bytes
    }

    #[test]
    fn refusals_name_the_file_the_problem_and_the_cure() {
        let header = |descr: &str, shape: &str| {
            format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")
        };
        let cases = [
            (Vec::new(), "is empty (0 bytes); the file is damaged or incomplete: write or fetch it again"),
            (b"hello, world".to_vec(), "does not begin as a numpy file; write it with numpy.save"),
            (MAGIC.to_vec(), "ends inside its header; the file"),
            ([MAGIC, &[2, 0, 0, 0]].concat(), "ends inside its header; the file"),
            (
                [MAGIC, &[2, 0, 255, 255, 255, 255]].concat(),
                "announces a header of 4294967295 bytes in a file of 12;",
            ),
            ([MAGIC, &[9, 0, 0, 0]].concat(), "has an unknown numpy format version; save it as version 1"),
            (forged("{'descr': ", 0), "has a header that is not that of one plain array;"),
            (
                forged(&header("[('a', '<f4')]", "(2, 3)"), 24),
                "has a header that is not that of one plain array;",
            ),
            (forged(&header("'<f4'", "(2, -3)"), 24), "has a header that is not that of one plain array;"),
            (
                forged(&header("'<i8'", "(2, 3)"), 48),
                "has dtype \"<i8\", not float16, float32 or float64; save",
            ),
            (
                forged(&header("'<V2'", "(2, 3)"), 12),
                "has dtype \"<V2\", not float16, float32 or float64; save",
            ),
            (
                forged(&header("'<f4'", "(6,)"), 24),
                "has an array of 1 axes (shape [6]), not 2; save array.reshape(",
            ),
            (
                forged(&header("'<f4'", "()"), 4),
                "has an array of 0 axes (shape []), not 2; save array.reshape(",
            ),
            (
                forged(&header("'<f4'", "(2, 3)"), 23),
                "announces 2 x 3 numbers of 4 bytes, but 23 bytes follow",
            ),
            (
                forged(&header("'<f4'", "(2, 3)"), 25),
                "announces 2 x 3 numbers of 4 bytes, but 25 bytes follow",
            ),
            (
                forged(&header("'<f4'", "(4294967296, 4294967296)"), 0),
                "announces 4294967296 x 4294967296 numbers of",
            ),
            (forged(&header("'<f4'", "(0, 1000000000000)"), 0), "has no rows; leave it out"),
        ];
        for (bytes, expected) in cases {
            let (message, path) = problem("bad.npy", &bytes);
            assert!(
                message.starts_with(&format!("{}: {expected}", path.display())),
                "{message}\nis not\n{expected}"
            );
        }
    }

    #[test]
    fn headers_of_other_writers_are_understood() {
        let text = "{\"shape\":(2L,3L),\"fortran_order\":True,\"descr\":\">f8\"}\n";
        let header = Header::parse(text).unwrap();
        assert_eq!(header.element(), Some(Element { width: 8, big_endian: true }));
        assert_eq!((header.fortran, header.shape), (true, vec![2, 3]));
    }

    #[test]
    fn unusable_rows_are_set_aside() {
        let values = [1.0, 2.0, 0.0, 0.0, 1e300, 1.0, f64::NAN, 1.0, 3.0, 4.0];
        let (rows, bad) = read_all(&write("x.npy", &npy(&values, 2, true)), 3).unwrap();
        assert_eq!(
            rows.iter().map(|row| (row.row, &row.values[..])).collect::<Vec<_>>(),
            [(0, &[1.0, 2.0][..]), (4, &[3.0, 4.0][..])]
        );
        assert_eq!(
            bad.iter().map(|bad| (bad.row, &bad.reason[..])).collect::<Vec<_>>(),
            [
                (1, "every value is zero: the row has no direction"),
                (2, "value at column 0 is 1e300, beyond the range of f32"),
                (3, "value at column 0 is NaN"),
            ]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Every way to store the same numbers reads equal, for any size of chunk.
        #[test]
        fn all_forms_are_equal(seed in vec(1_u16..0x7c00, 1..60), dim in 1_usize..7, size in 1_usize..9) {
            let dim = dim.min(seed.len());
            let halves: Vec<f16> = seed[..seed.len() / dim * dim].iter().copied().map(f16::from_bits).collect();
            let singles: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
            let doubles: Vec<f64> = halves.iter().map(|half| half.to_f64()).collect();
            let mut big = npy(&singles, dim, false);
            let body = big.len() - 4 * singles.len();
            big[body..].chunks_exact_mut(4).for_each(<[u8]>::reverse);
            let descr = big.windows(3).position(|window| window == b"<f4").unwrap();
            big[descr] = b'>';
            let forms = [
                npy(&halves, dim, false), npy(&halves, dim, true), npy(&singles, dim, true),
                npy(&doubles, dim, false), npy(&doubles, dim, true), big,
            ];
            let reference = read_all(&write("x.npy", &npy(&singles, dim, false)), 1000).unwrap();
            prop_assert!(reference.0.iter().flat_map(|row| &row.values).eq(&singles));
            for form in forms {
                prop_assert_eq!(&read_all(&write("x.npy", &form), size).unwrap(), &reference);
            }
        }

        #[test]
        fn damage_never_panics(fortran: bool, cut in 0_usize..300, flip in 0_usize..2400) {
            let good = npy(&[1.0_f32; 40], 8, fortran);
            let _ = read_all(&write("x.npy", &good[..cut.min(good.len())]), 3);
            let mut flipped = good.clone();
            flipped[flip / 8 % good.len()] ^= 1 << (flip % 8);
            let _ = read_all(&write("x.npy", &flipped), 3);
        }

        #[test]
        fn any_bytes_never_panic(version in 0_u8..4, bytes in vec(any::<u8>(), 0..200), header in ".{0,80}") {
            let _ = read_all(&write("x.npy", &bytes), 3);
            let _ = read_all(&write("x.npy", &[MAGIC, &[version, 0], &bytes].concat()), 3);
            let _ = read_all(&write("x.npy", &forged(&header, bytes.len())), 3);
        }
    }
}
