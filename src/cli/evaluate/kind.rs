//! What a file is, where the list does not say: by the ending of its name, else by its first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use viscache::types::Modality;

const IMAGE: [&str; 19] = [
    "apng", "bmp", "dib", "gif", "jfif", "jif", "jpe", "jpeg", "jpg", "mpo", "pam", "pbm", "pgm", "png",
    "pnm", "ppm", "tif", "tiff", "webp",
];
const AUDIO: [&str; 6] = ["flac", "mp3", "oga", "ogg", "wav", "wave"];
const VIDEO: [&str; 8] = ["avi", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "webm"];
/// Endings that several kinds of file have.
const OPEN: [&str; 4] = ["csv", "exr", "npy", "txt"];
/// Bytes that tell a file.
const HEAD: usize = 16;

/// What a file is. A picture is taken for one that shows colours: depth and thermal pictures have to be named.
///
/// # Errors
/// A sentence, for a file that is not told.
pub(super) fn of(path: &Path) -> Result<Modality, String> {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let ending = ending.as_str();
    let known = match ending {
        "ply" | "xyz" => Some(Modality::Point),
        _ if IMAGE.contains(&ending) => Some(Modality::Image),
        _ if AUDIO.contains(&ending) => Some(Modality::Audio),
        _ if VIDEO.contains(&ending) => Some(Modality::Video),
        _ if OPEN.contains(&ending) => None,
        _ => by_content(path),
    };
    known.ok_or_else(|| {
        let words = Modality::ALL.map(Modality::word).join(", ");
        format!("its name and its first bytes do not tell what it is; say it in a column `modality`: {words}")
    })
}

fn by_content(path: &Path) -> Option<Modality> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(HEAD as u64).read_to_end(&mut head).ok()?;
    let riff = |form: &[u8]| head.starts_with(b"RIFF") && head.get(8..12) == Some(form);
    let starts = |magic: &[&[u8]]| magic.iter().any(|magic| head.starts_with(magic));
    if riff(b"WAVE") || starts(&[b"fLaC", b"OggS", b"ID3"]) {
        return Some(Modality::Audio);
    }
    if riff(b"AVI ") || starts(&[b"\x1a\x45\xdf\xa3"]) || head.get(4..8) == Some(b"ftyp") {
        return Some(Modality::Video);
    }
    if starts(&[b"ply\n", b"ply\r"]) {
        return Some(Modality::Point);
    }
    let pictures: [&[u8]; 5] = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*"];
    (riff(b"WEBP") || starts(&pictures)).then_some(Modality::Image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_and_bytes_tell_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            of(&path)
        };
        assert_eq!(of("a.JPG", b""), Ok(Modality::Image));
        assert_eq!(of("a.wav", b""), Ok(Modality::Audio));
        assert_eq!(of("a.mp4", b""), Ok(Modality::Video));
        assert_eq!(of("a.ply", b""), Ok(Modality::Point));
        assert_eq!(of("a", b"\x89PNG\r\n\x1a\nx"), Ok(Modality::Image));
        assert_eq!(of("a.dat", b"RIFF....WAVEfmt "), Ok(Modality::Audio));
        assert_eq!(of("b", b"RIFF....WEBP"), Ok(Modality::Image));
        assert_eq!(of("c", b"\0\0\0\x18ftypisom"), Ok(Modality::Video));
        for (name, bytes) in [("a.npy", &b"x"[..]), ("a.csv", b"1,2"), ("d", b"hello"), ("e", b"")] {
            assert!(of(name, bytes).unwrap_err().contains("`modality`: image, text"), "{name}");
        }
    }
}
