//! Where the members of a tar lie. Only headers are read.
//!
//! An archive that does not end with a block of zeros was cut between two members, and is refused like one that was cut within one.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use tar::EntryType;

use super::Error;

const BLOCK: u64 = 512;
/// Where a header has its member's kind.
const KIND: u64 = 156;

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
        let start = self.read(0, BLOCK.min(self.length))?;
        self.file.rewind().map_err(Error::io(self.path))?;
        let mut members = Vec::new();
        let mut archive = tar::Archive::new(&mut self.file);
        // Where the next header is.
        let mut at = 0;
        let (path, length) = (self.path, self.length);
        let mut failure = None;
        for member in archive.entries_with_seek().map_err(Error::io(path))? {
            let mut member = match member {
                Ok(member) => member,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            };
            let (offset, size) = (member.raw_file_position(), member.size());
            let kind = member.header().entry_type();
            let sparse = kind.is_gnu_sparse() || has_gaps(&mut member);
            let name = member.path_bytes();
            let name = String::from_utf8_lossy(name.strip_prefix(b"./").unwrap_or(&name)).into_owned();
            if size > length.saturating_sub(offset) {
                return Err(cut(path, format!("it ends within `{name}`")));
            }
            at = offset + size.next_multiple_of(BLOCK);
            match kind {
                _ if sparse => return Err(gaps(path, &format!("`{name}`"))),
                EntryType::Regular | EntryType::Continuous if !name.ends_with('/') => {
                    members.push(Member { name, offset, length: size, link: false });
                }
                EntryType::Link | EntryType::Symlink => {
                    members.push(Member { name, offset, length: 0, link: true });
                }
                _ => {}
            }
        }
        if let Some(error) = failure {
            let kind = self.read(at + KIND, u64::from(length > at + KIND)).unwrap_or_default();
            return Err(match kind[..] {
                [b'S'] => gaps(path, "a member"),
                _ => broken(path, &start, at, length, &error),
            });
        }
        let end = BLOCK.min(length.saturating_sub(at));
        match self.read(at, end)? {
            end if end.len() as u64 == BLOCK && end.iter().all(|&byte| byte == 0) => Ok(members),
            _ => Err(no_end(path, length)),
        }
    }

    /// The contents of a short member; nothing of a long one.
    pub(super) fn short(&mut self, member: &Member, most: u64) -> Result<Option<Vec<u8>>, Error> {
        match member.length <= most {
            true => self.read(member.offset, member.length).map(Some),
            false => Ok(None),
        }
    }

    fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; length as usize];
        let read = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map(|()| bytes).map_err(Error::io(self.path))
    }
}

/// Whether a member's keys say that not all of it is stored.
fn has_gaps<R: Read>(member: &mut tar::Entry<'_, R>) -> bool {
    let keys = member.pax_extensions().ok().flatten();
    keys.is_some_and(|mut keys| {
        keys.any(|key| key.is_ok_and(|key| key.key_bytes().starts_with(b"GNU.sparse.")))
    })
}

/// What it means that no header could be read.
///
/// * `start`: the archive's first bytes. `at`: where the header is.
fn broken(path: &Path, start: &[u8], at: u64, length: u64, error: &std::io::Error) -> Error {
    let packed = [&b"\x1f\x8b"[..], b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"];
    let why: Cow<'_, str> = match at {
        0 if packed.iter().any(|mark| start.starts_with(mark)) => {
            "it is compressed, and members are read where they lie: decompress it first".into()
        }
        _ if length.saturating_sub(at) < BLOCK => return no_end(path, length),
        0 => "it is not a tar".into(),
        _ => format!("at byte {at} the header of a member is damaged ({error}): fetch it again").into(),
    };
    unusable(path, why.into_owned())
}

fn gaps(path: &Path, what: &str) -> Error {
    unusable(path, format!("{what} is stored with gaps: pack it without --sparse"))
}

fn no_end(path: &Path, length: u64) -> Error {
    cut(path, format!("it ends at byte {length}, without the mark of an end"))
}

fn cut(path: &Path, why: String) -> Error {
    Error::Cut { path: path.to_owned(), why }
}

fn unusable(path: &Path, why: String) -> Error {
    Error::Unusable { path: path.to_owned(), why }
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
        // Only GNU's headers can say that there are gaps.
        block[257..265].copy_from_slice(if kind == b'S' { b"ustar  \0" } else { b"ustar\x0000" });
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
