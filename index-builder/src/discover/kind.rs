//! What an input is: by the ending of its name where that is telling, else by its first bytes.
//!
//! | kind | is |
//! |---|---|
//! | [`Kind::Picture`] | read; whether it is good is found out by decoding it |
//! | [`Kind::Tar`], [`Kind::TarGz`] | looked into |
//! | [`Kind::Beside`] | no picture, and no loss: text and tables that describe pictures, what systems leave in folders |
//! | [`Kind::Sense`] | a sound or a film: the same, where it has a picture's name |
//! | [`Kind::Other`] | passed over and named: pictures of formats that are not read, unknown bytes |

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

/// Bytes that tell a kind: up to the magic of a tar, behind its first header's name.
pub const HEAD: usize = 512;

/// Why something is passed over, for people: what it is, and what to do.
pub type Reason = &'static str;

/// What an input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A picture of a format that is read, by its looks.
    Picture,
    /// A tar archive.
    Tar,
    /// A tar archive compressed by gzip.
    TarGz,
    /// Nothing to embed, and nothing lost.
    Beside,
    /// Not read, for this reason.
    Other(Reason),
    /// A sound or a film. One that has the name of a picture belongs to it, as a text would; another is passed over.
    Sense(Reason),
}

const PICTURES: [&str; 19] = [
    "jpg", "jpeg", "jpe", "jfif", "jif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff",
    "ppm", "pgm", "pbm", "pnm", "pam",
];
const BESIDE: [&str; 32] = [
    "txt", "text", "caption", "captions", "json", "jsonl", "ndjson", "csv", "tsv", "cls", "cls2", "xml",
    "yaml", "yml", "toml", "ini", "html", "htm", "md", "rst", "log", "parquet", "arrow", "feather", "npy",
    "npz", "idx", "index", "srt", "vtt", "sha256", "md5",
];
const SYSTEM: [&str; 4] = [".ds_store", "thumbs.db", "desktop.ini", ".directory"];

const HEIC: Reason =
    "HEIC, which is not read: convert it, for instance with `heif-convert`, or let the telephone export JPEG";
const AVIF: Reason = "AVIF, which is not read: convert it to PNG, for instance with `avifdec`";
const JPEG_2000: Reason = "JPEG 2000, which is not read: convert it to PNG, for instance with `magick`";
const JPEG_XL: Reason = "JPEG XL, which is not read: convert it to PNG with `djxl`";
const RAW: Reason =
    "a camera's raw picture, which is not read: develop it, for instance with `darktable-cli`";
const LAYERED: Reason = "a picture of layers, which is not read: export it as PNG";
const VECTOR: Reason = "a drawing or document, which is not read: export its pages as PNG";
const HIGH_RANGE: Reason = "a picture of high range, which is not read here: convert it to PNG";
const OTHER_PICTURE: Reason = "a picture of a format that is not read: convert it to PNG";
const FILM: Reason =
    "a film: take pictures out of it first, for instance with `ffmpeg -i FILM -r 1 %06d.png`";
const SOUND: Reason = "a sound: caches are built from pictures";
const PACKED: Reason =
    "an archive of a kind that is not looked into: unpack it, or pack it as .tar or .tar.gz";
const GZIP: Reason = "a file compressed by gzip that holds no tar: unpack it";
const EMPTY: Reason = "empty (0 bytes)";
pub const UNKNOWN: Reason = "no picture of a format that is read";

/// Whether a picture has the name of something else, but for its ending.
pub fn has_picture(path: &Path) -> bool {
    PICTURES.iter().any(|ending| path.with_extension(ending).is_file())
}

/// The kind that a name tells, without looking inside.
pub fn by_name(name: &[u8]) -> Option<Kind> {
    let name = name.rsplit(|b| *b == b'/').next().unwrap_or(name).to_ascii_lowercase();
    let ends = |end: &str| name.ends_with(end.as_bytes());
    if SYSTEM.iter().any(|known| name == known.as_bytes()) {
        return Some(Kind::Beside);
    }
    // What a Mac puts beside a picture has its name, and its ending.
    if name.starts_with(b"._") {
        return None;
    }
    if ends(".tar.gz") || ends(".tgz") {
        return Some(Kind::TarGz);
    }
    let ending = std::str::from_utf8(ending(&name)?).ok()?;
    Some(match ending {
        "tar" => Kind::Tar,
        ending if PICTURES.contains(&ending) => Kind::Picture,
        ending if BESIDE.contains(&ending) => Kind::Beside,
        "heic" | "heif" | "hif" => Kind::Other(HEIC),
        "avif" => Kind::Other(AVIF),
        "nef" | "dng" | "cr2" | "cr3" | "arw" | "orf" | "rw2" | "raf" | "pef" | "srw" => Kind::Other(RAW),
        _ => return None,
    })
}

/// The kind that the first [`HEAD`] bytes tell; a shorter slice is a whole file.
pub fn by_content(head: &[u8]) -> Kind {
    let brand = head.get(8..12).unwrap_or_default();
    let riff = |form: &[u8]| head.starts_with(b"RIFF") && brand == form;
    match head {
        [] => Kind::Other(EMPTY),
        [0xff, 0xd8, 0xff, ..] => Kind::Picture,
        _ if head.starts_with(b"\x89PNG\r\n\x1a\n") || head.starts_with(b"GIF8") || riff(b"WEBP") => {
            Kind::Picture
        }
        _ if head.starts_with(b"II*\0") || head.starts_with(b"MM\0*") => Kind::Picture,
        [b'B', b'M', ..] if matches!(head.get(14), Some(12 | 40 | 52 | 56 | 64 | 108 | 124)) => Kind::Picture,
        [b'P', b'1'..=b'7', space, ..] if space.is_ascii_whitespace() => Kind::Picture,
        _ if head.get(257..262) == Some(b"ustar") => Kind::Tar,
        [0x1f, 0x8b, ..] => inside_gzip(head),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => match brand {
            b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1" => Kind::Other(HEIC),
            b"avif" | b"avis" => Kind::Other(AVIF),
            b"crx " => Kind::Other(RAW),
            b"M4A " | b"M4B " => Kind::Sense(SOUND),
            _ => Kind::Sense(FILM),
        },
        _ if head.starts_with(b"\0\0\0\x0cjP  ") || head.starts_with(b"\xff\x4f\xff\x51") => {
            Kind::Other(JPEG_2000)
        }
        _ if head.starts_with(b"\0\0\0\x0cJXL ") || head.starts_with(b"\xff\x0a") => Kind::Other(JPEG_XL),
        _ if head.starts_with(b"8BPS") || head.starts_with(b"gimp xcf") => Kind::Other(LAYERED),
        _ if head.starts_with(b"%PDF") || head.starts_with(b"%!PS") || is_svg(head) => Kind::Other(VECTOR),
        _ if head.starts_with(b"\x76\x2f\x31\x01") || head.starts_with(b"#?RADIANCE") => {
            Kind::Other(HIGH_RANGE)
        }
        _ if head.starts_with(b"qoif") || head.starts_with(b"DDS ") || head.starts_with(b"\0\0\x01\0") => {
            Kind::Other(OTHER_PICTURE)
        }
        _ if head.starts_with(b"\x1a\x45\xdf\xa3")
            || riff(b"AVI ")
            || head.starts_with(b"\0\0\x01\xba")
            || head.starts_with(b"FLV") =>
        {
            Kind::Sense(FILM)
        }
        _ if head.starts_with(b"ID3")
            || head.starts_with(b"fLaC")
            || head.starts_with(b"OggS")
            || riff(b"WAVE") =>
        {
            Kind::Sense(SOUND)
        }
        _ if [
            &b"PK\x03\x04"[..],
            b"PK\x05\x06",
            b"7z\xbc\xaf\x27\x1c",
            b"Rar!",
            b"\xfd7zXZ\0",
            b"BZh",
            b"\x28\xb5\x2f\xfd",
            b"\x04\x22\x4d\x18",
        ]
        .iter()
        .any(|magic| head.starts_with(magic)) =>
        {
            Kind::Other(PACKED)
        }
        _ if head.starts_with(b"\0\x05\x16\x07") || head.starts_with(b"\0\x05\x16\0") => Kind::Beside,
        _ if is_text(head) => Kind::Beside,
        _ => Kind::Other(UNKNOWN),
    }
}

/// How a name ends, for counting: in small letters, with its dot; `(no ending)` where it has none.
pub fn ending_of(name: &[u8]) -> String {
    let name = name.rsplit(|b| *b == b'/').next().unwrap_or(name);
    match ending(name) {
        Some(ending) => {
            format!(".{}", super::name::shown(&super::name::of_bytes(&ending.to_ascii_lowercase())))
        }
        None => "(no ending)".into(),
    }
}

/// What follows the last dot of a file's name, unless that begins it or is too long to be an ending.
fn ending(name: &[u8]) -> Option<&[u8]> {
    let at = name.iter().rposition(|b| *b == b'.').filter(|&at| at > 0)?;
    Some(&name[at + 1..]).filter(|ending| (1..=12).contains(&ending.len()))
}

fn inside_gzip(head: &[u8]) -> Kind {
    let mut inside = [0; HEAD];
    let (mut decoder, mut len) = (GzDecoder::new(head), 0);
    while let Some(room) = inside.get_mut(len..).filter(|room| !room.is_empty()) {
        match decoder.read(room) {
            Ok(0) | Err(_) => break,
            Ok(read) => len += read,
        }
    }
    match by_content(&inside[..len]) {
        Kind::Tar => Kind::TarGz,
        _ => Kind::Other(GZIP),
    }
}

fn is_svg(head: &[u8]) -> bool {
    let text = head.trim_ascii_start();
    text.starts_with(b"<svg") || text.starts_with(b"<?xml") && head.windows(4).any(|w| w == b"<svg")
}

/// UTF-8 or an older text of one byte a letter, without what never stands in text.
fn is_text(head: &[u8]) -> bool {
    let control = |b: &u8| *b < 0x20 && !matches!(b, b'\t' | b'\n' | b'\r' | 0x0c) || *b == 0x7f;
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return true; // UTF-16 with its mark
    }
    let foreign = head.iter().filter(|b| **b >= 0x80).count();
    // A last letter may be cut in two.
    let utf8 = std::str::from_utf8(head).map_or_else(|e| e.error_len().is_none(), |_| true);
    !head.iter().any(control) && (utf8 || foreign * 4 < head.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn endings_tell_where_they_can() {
        for name in ["a.JPE", "b/c.MPO", "x.apng", "s.ppm", "scan.TIFF", "a.b.jfif"] {
            assert_eq!(by_name(name.as_bytes()), Some(Kind::Picture), "{name}");
        }
        assert_eq!(by_name(b"a/0001.tar"), Some(Kind::Tar));
        assert_eq!(by_name(b"0001.TAR.GZ"), Some(Kind::TarGz));
        for name in ["a.json", "Thumbs.db", "x/.DS_Store"] {
            assert_eq!(by_name(name.as_bytes()), Some(Kind::Beside), "{name}");
        }
        assert!(matches!(by_name(b"IMG_1.HEIC"), Some(Kind::Other(HEIC))));
        for name in ["photo", "a.img", ".hidden", "a.2024-01-01 12:00:00", "b/._photo.jpg"] {
            assert_eq!(by_name(name.as_bytes()), None, "{name}");
        }
        assert_eq!(ending_of(b"a.b/c"), "(no ending)");
        assert_eq!(ending_of(b"a.b/c.JPG"), ".jpg");
        assert_eq!(ending_of(b"x.\xff\n"), ".\\xFF\\n");
    }

    #[test]
    fn content_tells_the_rest() {
        let boxed = |brand: &[u8]| [b"\0\0\0\x18ftyp", brand].concat();
        let cases: [(&[u8], Kind); 14] = [
            (b"\xff\xd8\xff\xe1", Kind::Picture),
            (b"P6\n2 2\n255\n", Kind::Picture),
            (b"II*\0", Kind::Picture),
            (&boxed(b"heic"), Kind::Other(HEIC)),
            (&boxed(b"avif"), Kind::Other(AVIF)),
            (&boxed(b"isom"), Kind::Sense(FILM)),
            (b"PK\x03\x04", Kind::Other(PACKED)),
            (b"\x89PNX\r\n\x1a\n", Kind::Other(UNKNOWN)),
            (b"<svg>", Kind::Other(VECTOR)),
            (b"", Kind::Other(EMPTY)),
            (b"a caption\n", Kind::Beside),
            (b"caf\xe9 au lait", Kind::Beside),
            ("é".as_bytes().split_at(1).0, Kind::Beside),
            (b"\x1f\x8b\x08", Kind::Other(GZIP)),
        ];
        for (head, kind) in cases {
            assert_eq!(by_content(head), kind, "{}", head.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_kind(bytes in prop::collection::vec(any::<u8>(), 0..HEAD), gzip: bool) {
            by_content(&[if gzip { &b"\x1f\x8b\x08"[..] } else { b"" }, &bytes].concat());
            by_name(&bytes);
            ending_of(&bytes);
        }
    }
}
