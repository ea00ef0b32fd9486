//! Numpy's `.npy`: the header, and small matrices as a whole.
//!
//! ```text
//! 93 'NUMPY'  major minor  header length        header                                          body
//! └─ 6 bytes ─┘ u8    u8   u16 LE (version 1)   {'descr': '<f4', 'fortran_order': False,        rows · dim
//!                          u32 LE (2 and 3)      'shape': (12, 16), }  spaces  newline          numbers
//! ```
//!
//! The header is read by the few lines below rather than by a parser of Python literals: such a parser recurses as
//! deeply as the file nests brackets, and multiplies the shape before anybody has checked it.
//!
//! Source: numpy `numpy/lib/format.py`.

use half::f16;

/// How every file begins.
pub const MAGIC: &[u8] = b"\x93NUMPY";

/// As many axes as numpy can have.
const AXES_LIMIT: usize = 64;

/// How one number is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    /// 2, 4 or 8 bytes: f16, f32, f64.
    pub width: usize,
    /// Most significant byte first.
    pub big_endian: bool,
}

impl Element {
    /// Reads one number; f64 holds every f16 and f32 exactly.
    ///
    /// * `bytes`: `width` of them.
    pub fn number(self, bytes: &[u8]) -> f64 {
        let mut little = [0; 8];
        little[..self.width].copy_from_slice(bytes);
        if self.big_endian {
            little[..self.width].reverse();
        }
        let [a, b, c, d, ..] = little;
        match self.width {
            2 => f16::from_le_bytes([a, b]).to_f64(),
            4 => f32::from_le_bytes([a, b, c, d]).into(),
            _ => f64::from_le_bytes(little),
        }
    }
}

/// A whole matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Components of a row, at least 1.
    pub dim: usize,
    /// Row-major.
    pub values: Vec<f32>,
}

/// Reads a whole file of one matrix `[rows, dim]`, or of one vector `[dim]`, of f16, f32 or f64.
///
/// # Errors
/// A sentence that says what is wrong with the file.
pub fn read(bytes: &[u8]) -> Result<Matrix, String> {
    let (header, body) = split(bytes)?;
    let element =
        header.element().ok_or_else(|| format!("dtype {:?} is not float16, 32 or 64", header.descr))?;
    let (rows, dim) = match header.shape[..] {
        [dim] => (1, dim),
        [rows, dim] => (rows, dim),
        _ => return Err(format!("its shape {:?} is neither [rows, dim] nor [dim]", header.shape)),
    };
    let len = rows.checked_mul(dim).and_then(|count| count.checked_mul(element.width as u64));
    if rows == 0 || dim == 0 || len != Some(body.len() as u64) {
        return Err(format!(
            "its shape {:?} does not fit the {} bytes that follow",
            header.shape,
            body.len()
        ));
    }
    let (rows, dim) = (rows as usize, dim as usize);
    let number = |index: usize| element.number(&body[index * element.width..][..element.width]) as f32;
    let place = |i: usize| if header.fortran { i % dim * rows + i / dim } else { i };
    Ok(Matrix { dim, values: (0..rows * dim).map(|i| number(place(i))).collect() })
}

/// A whole array of any shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Lengths of the axes, none of them 0.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
    /// Largest value of a whole-number type, as in 255 for `uint8`; 1 for floats.
    pub full: f32,
}

/// Reads a whole file of floats, or of whole numbers of up to 4 bytes.
///
/// # Errors
/// A sentence that says what is wrong with the file.
pub fn read_array(bytes: &[u8]) -> Result<Array, String> {
    let (header, body) = split(bytes)?;
    let known = header.element().map(|element| (Number::Float(element), 1.0));
    let (number, full) = known.or_else(|| Number::whole(header.descr)).ok_or_else(|| {
        format!("dtype {:?} is neither float16, 32 or 64 nor an integer of up to 32 bits", header.descr)
    })?;
    let width = number.width();
    let count = header.shape.iter().try_fold(1u64, |count, &axis| count.checked_mul(axis));
    let len = count.and_then(|count| count.checked_mul(width as u64));
    if body.is_empty() || len != Some(body.len() as u64) {
        let (shape, bytes) = (&header.shape, body.len());
        return Err(format!("its shape {shape:?} does not fit the {bytes} bytes that follow"));
    }
    let shape: Vec<usize> = header.shape.iter().map(|&axis| axis as usize).collect();
    let stored: Vec<f32> = body.chunks_exact(width).map(|bytes| number.read(bytes)).collect();
    let values = if header.fortran { row_major(&stored, &shape) } else { stored };
    Ok(Array { shape, values, full })
}

/// Columns that lie together become rows that do.
fn row_major(stored: &[f32], shape: &[usize]) -> Vec<f32> {
    let mut at = vec![0usize; shape.len()];
    let mut values = Vec::with_capacity(stored.len());
    for _ in 0..stored.len() {
        let place = at.iter().zip(shape).rev().fold(0, |place, (&i, &axis)| place * axis + i);
        values.push(stored[place]);
        for (i, &axis) in at.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < axis {
                break;
            }
            *i = 0;
        }
    }
    values
}

/// How a number of [`read_array`] is stored.
#[derive(Debug, Clone, Copy)]
enum Number {
    Float(Element),
    /// Bytes, two's complement, most significant byte first.
    Whole {
        width: usize,
        signed: bool,
        big_endian: bool,
    },
}

impl Number {
    /// The whole number behind a `descr` such as `<u2`, and its largest value.
    fn whole(descr: &str) -> Option<(Self, f32)> {
        let (order, kind) = descr.split_at_checked(1)?;
        let big_endian = match order {
            "<" | "|" | "=" => false,
            ">" => true,
            _ => return None,
        };
        let (signed, width) = match kind {
            "u1" => (false, 1),
            "i1" => (true, 1),
            "u2" => (false, 2),
            "i2" => (true, 2),
            "u4" => (false, 4),
            "i4" => (true, 4),
            _ => return None,
        };
        let full = (1u64 << (8 * width - u32::from(signed))) - 1;
        Some((Number::Whole { width: width as usize, signed, big_endian }, full as f32))
    }

    fn width(self) -> usize {
        match self {
            Number::Float(element) => element.width,
            Number::Whole { width, .. } => width,
        }
    }

    fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Number::Float(element) => element.number(bytes) as f32,
            Number::Whole { width, signed, big_endian } => {
                let mut little = [0; 8];
                little[..width].copy_from_slice(bytes);
                if big_endian {
                    little[..width].reverse();
                }
                let (value, unused) = (u64::from_le_bytes(little), 64 - 8 * width as u32);
                if signed { ((value << unused) as i64 >> unused) as f32 } else { value as f32 }
            }
        }
    }
}

/// Ids in rows of equal length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdRows {
    /// Ids of a row, at least 1.
    pub width: usize,
    /// Row-major.
    pub ids: Vec<u64>,
}

/// Reads a whole file of ids `[n]`: whole numbers, not negative, of 4 or 8 bytes.
///
/// # Errors
/// A sentence that says what is wrong with the file.
pub fn read_ids(bytes: &[u8]) -> Result<Vec<u64>, String> {
    let (header, body) = split(bytes)?;
    let [_] = header.shape[..] else {
        return Err(format!("its shape {:?} is not [n]", header.shape));
    };
    ids(&header, body)
}

/// As [`read_ids`], of shape `[rows, width]`.
///
/// # Errors
/// A sentence that says what is wrong with the file.
pub fn read_id_rows(bytes: &[u8]) -> Result<IdRows, String> {
    let (header, body) = split(bytes)?;
    let (rows, width) = match header.shape[..] {
        [rows, width] if rows > 0 && width > 0 => (rows as usize, width as usize),
        _ => return Err(format!("its shape {:?} is not [rows, width]", header.shape)),
    };
    let ids = ids(&header, body)?;
    let place = |i: usize| if header.fortran { i % width * rows + i / width } else { i };
    Ok(IdRows { width, ids: (0..ids.len()).map(|i| ids[place(i)]).collect() })
}

/// The ids of a file of any shape, in the order in which they are stored.
fn ids(header: &Header<'_>, body: &[u8]) -> Result<Vec<u64>, String> {
    let width = match header.descr {
        "<i4" | "<u4" => 4,
        "<i8" | "<u8" => 8,
        other => return Err(format!("dtype {other:?} is not that of ids: int32, int64 or unsigned")),
    };
    let count = header.shape.iter().try_fold(1u64, |count, &axis| count.checked_mul(axis));
    if count.and_then(|count| count.checked_mul(width as u64)) != Some(body.len() as u64) {
        let (shape, bytes) = (&header.shape, body.len());
        return Err(format!("its shape {shape:?} does not fit the {bytes} bytes that follow"));
    }
    let signed = header.descr.contains('i');
    let one = |bytes: &[u8]| {
        let mut little = [0; 8];
        little[..width].copy_from_slice(bytes);
        let negative = signed && bytes.last().is_some_and(|top| top & 0x80 != 0);
        if negative { Err("it has negative ids".to_owned()) } else { Ok(u64::from_le_bytes(little)) }
    };
    body.chunks_exact(width).map(one).collect()
}

/// A file's header and what follows it.
fn split(bytes: &[u8]) -> Result<(Header<'_>, &[u8]), String> {
    let damaged = || "it is not a whole .npy file".to_owned();
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let (text, body) = match *rest {
        [1, _, a, b, ref rest @ ..] => rest.split_at_checked(usize::from(u16::from_le_bytes([a, b]))),
        [2 | 3, _, a, b, c, d, ref rest @ ..] => {
            rest.split_at_checked(u32::from_le_bytes([a, b, c, d]) as usize)
        }
        _ => None,
    }
    .ok_or_else(damaged)?;
    let header = std::str::from_utf8(text).ok().and_then(Header::parse).ok_or_else(damaged)?;
    Ok((header, body))
}

/// Writes a matrix `[values.len() / dim, dim]` as f32 in C order.
pub fn write(values: &[f32], dim: usize) -> Vec<u8> {
    let rows = values.len().checked_div(dim).unwrap_or(0);
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    // Numpy pads so that the body begins on a multiple of 64.
    let unpadded = MAGIC.len() + 4 + header.len() + 1;
    header.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    header.push('\n');
    let mut bytes = [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat();
    values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    bytes
}

/// The three facts of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header<'a> {
    /// The type, such as `<f4`.
    pub descr: &'a str,
    /// Whether columns lie together rather than rows.
    pub fortran: bool,
    /// Lengths of the axes. Their product may overflow.
    pub shape: Vec<u64>,
}

impl<'a> Header<'a> {
    /// Reads the Python dictionary of a plain array; a record's `descr` is a list and therefore `None`.
    pub fn parse(text: &'a str) -> Option<Header<'a>> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        let mut rest = Scan(text);
        rest.eat('{')?;
        while rest.eat('}').is_none() {
            let key = rest.string()?;
            rest.eat(':')?;
            match key {
                "descr" => descr = Some(rest.string()?),
                "fortran_order" => fortran = Some(rest.boolean()?),
                "shape" => shape = Some(rest.shape()?),
                _ => return None,
            }
            if rest.eat(',').is_none() {
                rest.eat('}')?;
                break;
            }
        }
        let nothing_follows = rest.0.trim().is_empty();
        nothing_follows.then_some(Header { descr: descr?, fortran: fortran?, shape: shape? })
    }

    /// The float behind `descr`, as in `<f4`.
    pub fn element(&self) -> Option<Element> {
        let (order, kind) = self.descr.split_at_checked(1)?;
        let big_endian = match order {
            "<" => false,
            ">" => true,
            "=" => cfg!(target_endian = "big"),
            _ => return None,
        };
        let width = match kind {
            "f2" => 2,
            "f4" => 4,
            "f8" => 8,
            _ => return None,
        };
        Some(Element { width, big_endian })
    }
}

/// What is left of a header; every step skips the blanks before it.
struct Scan<'a>(&'a str);

impl<'a> Scan<'a> {
    fn eat(&mut self, character: char) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(character)?;
        Some(())
    }

    /// A short string in quotes of either kind, without escapes.
    fn string(&mut self) -> Option<&'a str> {
        let quote = self.0.trim_start().chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
        self.eat(quote)?;
        let (inside, rest) = self.0.split_once(quote)?;
        self.0 = rest;
        (inside.len() <= 32).then_some(inside)
    }

    /// Letters and digits up to something else; not empty.
    fn word(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let (word, rest) =
            text.split_at(text.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(text.len()));
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }

    fn boolean(&mut self) -> Option<bool> {
        match self.word()? {
            "True" => Some(true),
            "False" => Some(false),
            _ => None,
        }
    }

    /// A tuple of sizes, which Python 2 wrote as `(12L, 16L)`.
    fn shape(&mut self) -> Option<Vec<u64>> {
        let mut shape = Vec::new();
        self.eat('(')?;
        while self.eat(')').is_none() {
            if shape.len() == AXES_LIMIT {
                return None;
            }
            let word = self.word()?;
            shape.push(word.strip_suffix('L').unwrap_or(word).parse().ok()?);
            if self.eat(',').is_none() {
                self.eat(')')?;
                break;
            }
        }
        Some(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(rows in 1usize..5, dim in 1usize..9) {
            let values: Vec<f32> = (0..rows * dim).map(|i| i as f32 * 0.37 - 1.0).collect();
            let bytes = write(&values, dim);
            prop_assert_eq!(read(&bytes).unwrap(), Matrix { dim, values });
            prop_assert_eq!((bytes.len() - 4 * rows * dim) % 64, 0);
        }

        #[test]
        fn damaged_files_are_errors(at in 0usize..200, flip in 1u8.., cut in 0usize..200) {
            let bytes = write(&[1.0; 6], 3);
            prop_assert!(read(&bytes[..cut.min(bytes.len() - 1)]).is_err());
            let mut flipped = bytes.clone();
            let at = at % bytes.len();
            flipped[at] ^= flip;
            if let Ok(matrix) = read(&flipped) {
                prop_assert_eq!(matrix.values.len() % matrix.dim, 0);
            }
        }
    }

    /// A file of whole numbers.
    fn numbers(descr: &str, fortran: &str, shape: &str, body: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes(), body].concat()
    }

    proptest! {
        #[test]
        fn ids_are_read_in_rows(rows in 1usize..5, width in 1usize..5, cut in 1usize..8, fortran: bool) {
            let ids: Vec<u64> = (0..rows * width).map(|i| i as u64 * 1_000_003).collect();
            let stored = |i: usize| if fortran { ids[i % rows * width + i / rows] } else { ids[i] };
            let (i8, u4): (Vec<_>, Vec<_>) =
                (0..ids.len()).map(|i| (stored(i).to_le_bytes(), (stored(i) as u32).to_le_bytes())).unzip();
            let (order, shape) = (if fortran { "True" } else { "False" }, format!("({rows}, {width})"));
            let wide = numbers("<i8", order, &shape, &i8.concat());
            let expected = IdRows { width, ids: ids.clone() };
            prop_assert_eq!(read_id_rows(&wide).unwrap(), expected.clone());
            prop_assert_eq!(read_id_rows(&numbers("<u4", order, &shape, &u4.concat())).unwrap(), expected);
            prop_assert!(read_id_rows(&wide[..wide.len() - cut]).is_err());
            prop_assert!(read_ids(&wide).unwrap_err().contains("[n]"));
        }
    }

    #[test]
    fn what_is_no_rows_of_ids_is_refused() {
        let sixteen = [0u8; 16];
        for (descr, shape, body, says) in [
            ("<i8", "(2,)", &sixteen[..], "[rows, width]"),
            ("<i8", "(1, 1, 2)", &sixteen, "[rows, width]"),
            ("<i8", "(0, 2)", &[], "[rows, width]"),
            ("<i8", "(2, 0)", &[], "[rows, width]"),
            ("<i8", "(2, 2)", &sixteen, "does not fit"),
            ("<i8", "(9223372036854775807, 4)", &sixteen, "does not fit"),
            ("<f4", "(2, 2)", &sixteen, "not that of ids"),
            ("<i8", "(1, 2)", &[255; 16], "negative"),
        ] {
            let error = read_id_rows(&numbers(descr, "False", shape, body)).unwrap_err();
            assert!(error.contains(says), "{descr} {shape}: {error}");
        }
        assert_eq!(read_ids(&numbers("<u8", "False", "(2,)", &sixteen)), Ok(vec![0, 0]));
    }

    #[test]
    fn fortran_order_is_transposed() {
        let c = write(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3);
        let text = String::from_utf8_lossy(&c[..128]).replace("False", "True ");
        let body: Vec<u8> = [1.0f32, 4.0, 2.0, 5.0, 3.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut fortran = c[..128].to_vec();
        let at = text.find("True ").unwrap();
        // The magic's first byte is not UTF-8 and became three bytes in `text`.
        fortran[at - 2..at + 3].copy_from_slice(b"True ");
        fortran.extend(body);
        assert_eq!(read(&fortran).unwrap(), read(&c).unwrap());
    }
}
