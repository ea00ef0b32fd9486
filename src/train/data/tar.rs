//! Where the members of a tar lie. Only headers are read.
//!
//! ```text
//! header, 512 bytes │ contents, filled up to 512 │ header │ … │ 512 zeros, twice
//!   0 name, 100 · 124 size, 12 octal digits (or base 256) · 148 checksum, 8 · 156 kind · 257 "ustar" · 345 front of the name, 155
//! kinds     '0', 0 and '7' files · 'L' the next name, long (GNU) · 'x' keys of the next, as `path` and `size` (PAX) · others
//! ```
//!
//! An archive that does not end with zeros was cut between two members, and is refused like one that was cut within one.
//!
//! Source: POSIX.1-2001, *pax interchange format*; GNU tar's manual.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::Error;

const BLOCK: u64 = 512;
/// Most bytes of a name or of keys.
const MOST: u64 = 1 << 20;

/// A file in a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Without `./` before it.
    pub(super) name: String,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// It stands for another member, and has no contents.
    pub(super) link: bool,
}

/// An open tar.
pub(super) struct Tar<'a, R = File> {
    path: &'a Path,
    file: R,
    length: u64,
}

impl<'a> Tar<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        Ok(Tar { path, file, length })
    }
}

impl<R: Read + Seek> Tar<'_, R> {
    /// All files and links, in their order.
    pub(super) fn members(&mut self) -> Result<Vec<Member>, Error> {
        let mut members = Vec::new();
        let (mut at, mut long_name, mut long_size) = (0, None, None);
        loop {
            if self.length.saturating_sub(at) < BLOCK {
                return Err(self.cut(format!("it ends at byte {}, without the mark of an end", self.length)));
            }
            let header = self.read(at, BLOCK)?;
            if header.iter().all(|&byte| byte == 0) {
                return Ok(members);
            }
            let Some(Header { name, size, kind }) = Header::of(&header) else {
                return Err(self.no_header(at, &header));
            };
            let (name, size) = (long_name.take().unwrap_or(name), long_size.take().unwrap_or(size));
            let offset = at + BLOCK;
            if size > self.length - offset {
                return Err(self.cut(format!("it ends within `{name}`")));
            }
            at = offset + size.next_multiple_of(BLOCK);
            match kind {
                b'L' => long_name = Some(text(&self.described(offset, size)?)),
                b'x' => (long_name, long_size) = keys(&self.described(offset, size)?),
                b'0' | 0 | b'7' if !name.ends_with('/') => {
                    let name = name.trim_start_matches("./").to_owned();
                    members.push(Member { name, offset, length: size, link: false });
                }
                b'1' | b'2' => members.push(Member { name, offset, length: 0, link: true }),
                b'S' => {
                    let why = format!("`{name}` is stored with gaps: pack it without --sparse");
                    return Err(self.unusable(why));
                }
                _ => {}
            }
        }
    }

    /// The contents of a short member; nothing of a long one.
    pub(super) fn short(&mut self, member: &Member, most: u64) -> Result<Option<Vec<u8>>, Error> {
        match member.length <= most {
            true => self.read(member.offset, member.length).map(Some),
            false => Ok(None),
        }
    }

    fn described(&mut self, offset: u64, size: u64) -> Result<Vec<u8>, Error> {
        match size <= MOST {
            true => self.read(offset, size),
            false => Err(self.unusable(format!("the name of a member has {size} bytes"))),
        }
    }

    fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; length as usize];
        let read = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map(|()| bytes).map_err(Error::io(self.path))
    }

    fn no_header(&self, at: u64, found: &[u8]) -> Error {
        let packed = [&b"\x1f\x8b"[..], b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"];
        match at {
            0 if packed.iter().any(|mark| found.starts_with(mark)) => self.unusable(
                "it is compressed, and members are read where they lie: decompress it first".into(),
            ),
            0 => self.unusable("it is not a tar".into()),
            _ => self.unusable(format!("at byte {at} the header of a member is damaged: fetch it again")),
        }
    }

    fn cut(&self, why: String) -> Error {
        Error::Cut { path: self.path.to_owned(), why }
    }

    fn unusable(&self, why: String) -> Error {
        Error::Unusable { path: self.path.to_owned(), why }
    }
}

/// What a header says.
struct Header {
    name: String,
    size: u64,
    kind: u8,
}

impl Header {
    /// Nothing if its checksum or its size is wrong.
    fn of(block: &[u8]) -> Option<Header> {
        let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
        // The checksum's own place counts as spaces.
        let own: u64 = block[148..156].iter().map(|&byte| u64::from(byte)).sum();
        if number(&block[148..156])? != sum - own + 8 * u64::from(b' ') {
            return None;
        }
        let (name, front) = (text(&block[..100]), text(&block[345..500]));
        // GNU's headers, "ustar" with a space, have times where others have the front of the name.
        let name = match &block[257..263] == b"ustar\0" && !front.is_empty() {
            true => format!("{front}/{name}"),
            false => name,
        };
        Some(Header { name, size: number(&block[124..136])?, kind: block[156] })
    }
}

/// Up to the first zero; what is no text is replaced.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Octal digits, or base 256 where the highest bit says so.
fn number(field: &[u8]) -> Option<u64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let digit = |sum: u64, &byte: &u8| sum.checked_mul(256)?.checked_add(byte.into());
        return rest.iter().try_fold(u64::from(first & 0x7f), digit);
    }
    let text = text(field);
    match text.trim() {
        "" => Some(0),
        digits => u64::from_str_radix(digits, 8).ok(),
    }
}

/// Name and size out of the keys of PAX: `length key=value\n`, one after the other.
fn keys(mut bytes: &[u8]) -> (Option<String>, Option<u64>) {
    let (mut name, mut size) = (None, None);
    while let Some(space) = bytes.iter().position(|&byte| byte == b' ') {
        let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|digits| digits.parse().ok());
        let Some(length) = length.filter(|&length: &usize| length > space + 1 && length <= bytes.len())
        else {
            break;
        };
        let (record, rest) = bytes.split_at(length);
        let record = String::from_utf8_lossy(record[space + 1..].trim_ascii_end());
        match record.split_once('=') {
            Some(("path", value)) => name = Some(value.to_owned()),
            Some(("size", value)) => size = value.parse().ok(),
            _ => {}
        }
        bytes = rest;
    }
    (name, size)
}

/// Tars for tests.
#[cfg(test)]
pub(super) mod made {
    /// One member: header and contents.
    pub fn member(name: &str, kind: u8, contents: &[u8]) -> Vec<u8> {
        let mut block = vec![0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block.extend(contents);
        block.resize(block.len().next_multiple_of(512), 0);
        block
    }

    /// A whole tar of files.
    pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            files.iter().flat_map(|(name, contents)| member(name, b'0', contents)).collect();
        bytes.extend([0; 1024]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::made::{member, tar};
    use super::*;

    fn members(bytes: &[u8]) -> Result<Vec<Member>, Error> {
        let (path, length) = (Path::new("a.tar"), bytes.len() as u64);
        Tar { path, file: std::io::Cursor::new(bytes), length }.members()
    }

    #[test]
    fn members_lie_where_their_headers_say() {
        let long = "folder/".repeat(30) + "picture.jpg";
        let keys = format!("{} path={long}\n12 size=600\n", 10 + long.len());
        let bytes = [
            member("./a.jpg", b'0', b"12345"),
            member("folder/", b'5', b""),
            member("L", b'L', format!("{long}\0").as_bytes()),
            member("cut", b'0', &[1; 513]),
            member("x", b'x', keys.as_bytes()),
            member("cut", b'0', &[2; 600]),
            member("link.jpg", b'2', b""),
            vec![0; 1024],
        ];
        let found = members(&bytes.concat()).unwrap();
        let names: Vec<&str> = found.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["a.jpg", &long, &long, "link.jpg"]);
        let lengths: Vec<u64> = found.iter().map(|member| member.length).collect();
        assert_eq!((lengths, found[0].offset, found[3].link), (vec![5, 513, 600, 0], 512, true));
        assert!(bytes.concat()[found[2].offset as usize..].starts_with(&[2; 600]));
    }

    #[test]
    fn numbers_are_octal_or_of_base_256() {
        assert_eq!(number(b"00000001750\0"), Some(1000));
        assert_eq!(number(b"   1750 \0\0\0\0"), Some(1000));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\0"), Some(2 << 32));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!((number(b"\0\0\0"), number(b"9")), (Some(0), None));
    }

    #[test]
    fn cut_damaged_and_other_files_are_refused() {
        let whole = tar(&[("a.jpg", &[1; 700]), ("b.jpg", &[2; 100])]);
        assert_eq!(members(&whole).unwrap().len(), 2);
        for length in [0, 100, 512, 1000, 1536, 1600, 2048 + 512] {
            let cut = members(&whole[..length]).unwrap_err();
            assert!(matches!(cut, Error::Cut { .. }), "{length}: {cut}");
        }
        let within = members(&whole[..2060]).unwrap_err().to_string();
        assert!(within.contains("within `b.jpg`"), "{within}");
        let why = |bytes: &[u8]| members(bytes).unwrap_err().to_string();
        let mut damaged = whole.clone();
        damaged[1536 + 3] ^= 1;
        assert!(why(&damaged).contains("at byte 1536"), "{}", why(&damaged));
        assert!(why(&[7; 2000]).contains("not a tar"));
        assert!(why(&[&b"\x1f\x8b"[..], &[0; 1000]].concat()).contains("decompress"));
        assert!(why(&[member("a", b'S', b""), vec![0; 1024]].concat()).contains("--sparse"));
    }

    #[test]
    fn any_byte_may_be_wrong() {
        let whole = [
            member("L", b'L', b"name\0"),
            member("x", b'x', b"12 size=600\n"),
            member("a", b'0', &[2; 600]),
            vec![0; 1024],
        ];
        let whole = whole.concat();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] = bytes[at].wrapping_add(37);
            if let Ok(members) = members(&bytes) {
                let length = bytes.len() as u64;
                assert!(members.iter().all(|member| member.offset + member.length <= length), "{at}");
            }
        }
    }
}
