//! Whether files are what they claim to be: damaged and renamed downloads look like any other by their shapes.
//!
//! | file | where its digest is known from | when it is looked at |
//! |---|---|---|
//! | a released adapter | its own name, `SHA-256_NAME.pth` | whenever it is opened |
//! | `consolidated.*.pth` of the original files | `checklist.chk` beside them, MD5 | when a decoder is converted, which reads all of them |

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use md5::Md5;
use sha2::{Digest, Sha256};

use crate::models::Error;

/// Bytes read at a time.
const PIECE: usize = 1 << 20;
/// The list that comes with the original files.
const CHECKLIST: &str = "checklist.chk";

/// Refuses a released adapter whose bytes are not those that its name states. Other names state nothing.
///
/// # Errors
/// [`Error::Weights`].
pub(super) fn check_adapter(path: &Path) -> Result<(), Error> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stated = name.split('_').next().filter(|part| part.len() == 64 && is_hex(part));
    match stated {
        Some(stated) => compare::<Sha256>(path, stated, "its name"),
        None => Ok(()),
    }
}

/// Refuses original files that differ from the list beside them; without a list, nothing is known.
///
/// * `folder`: of `consolidated.*.pth`.
///
/// # Errors
/// [`Error::Weights`].
pub fn check_backbone(folder: &Path) -> Result<(), Error> {
    let Ok(list) = std::fs::read_to_string(folder.join(CHECKLIST)) else { return Ok(()) };
    for line in list.lines() {
        let mut words = line.split_whitespace();
        let (Some(stated), Some(name)) = (words.next(), words.next()) else { continue };
        let plain = Path::new(name).file_name().is_some_and(|own| own == name);
        let path = folder.join(name);
        if plain && stated.len() == 32 && is_hex(stated) && path.is_file() {
            compare::<Md5>(&path, stated, CHECKLIST)?;
        }
    }
    Ok(())
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn compare<D: Digest>(path: &Path, stated: &str, source: &str) -> Result<(), Error> {
    let fail = |why: String| Error::Weights { path: path.display().to_string(), why };
    let file = File::open(path).map_err(|e| fail(e.to_string()))?;
    let mut reader = BufReader::with_capacity(PIECE, file);
    let mut digest = D::new();
    loop {
        let piece = reader.fill_buf().map_err(|e| fail(e.to_string()))?;
        if piece.is_empty() {
            break;
        }
        digest.update(piece);
        let read = piece.len();
        reader.consume(read);
    }
    let found: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found.eq_ignore_ascii_case(stated) {
        return Ok(());
    }
    Err(fail(format!(
        "its digest is {found}, {source} says {stated}: it is damaged, or another file; fetch it again"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_lists_are_held_to() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, bytes: &[u8]| std::fs::write(at(name), bytes).unwrap();
        // Of "abc".
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let name = format!("{sha}_BIAS-7B.pth");
        write(&name, b"abc");
        assert!(check_adapter(&at(&name)).is_ok());
        write(&name, b"abd");
        let refused = check_adapter(&at(&name)).unwrap_err().to_string();
        assert!(refused.contains("its name says ba7816bf"), "{refused}");
        write("7B.pth", b"anything");
        assert!(check_adapter(&at("7B.pth")).is_ok());

        assert!(check_backbone(folder.path()).is_ok(), "without a list nothing is known");
        write("consolidated.00.pth", b"abc");
        write(CHECKLIST, b"900150983cd24fb0d6963f7d28e17f72  consolidated.00.pth\n00  x\n../../etc\nmissing");
        assert!(check_backbone(folder.path()).is_ok());
        write("consolidated.00.pth", b"abd");
        let refused = check_backbone(folder.path()).unwrap_err().to_string();
        assert!(
            refused.contains("consolidated.00.pth") && refused.contains("checklist.chk says 9001"),
            "{refused}"
        );
    }
}
