//! Names of inputs: bytes on disk, text in the store.
//!
//! Most names are UTF-8 and stay as they are. A byte that is no part of any is written `\xE9`, and so is a backslash that
//! could be taken for the beginning of one: the bytes can always be had back, and two names are never one.
//!
//! ```text
//!   caf\xe9.jpg (Latin-1)   ─►  caf\xE9.jpg          a\xE9.jpg (these very eight letters)  ─►  a\x5CxE9.jpg
//! ```

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// A name as text.
pub fn of_bytes(bytes: &[u8]) -> String {
    let mut name = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some(at) = rest.find('\\') {
            name.push_str(&rest[..at]);
            name.push_str(if escaped(rest.as_bytes(), at).is_some() { "\\x5C" } else { "\\" });
            rest = &rest[at + 1..];
        }
        name.push_str(rest);
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            let _ = write!(name, "\\x{byte:02X}");
        }
    }
    name
}

/// The name of a path.
pub fn of_path(path: &Path) -> String {
    of_bytes(path.as_os_str().as_bytes())
}

/// A path without what changes nothing, so that `./a//b` and `a/b` are one.
pub fn tidy(path: &Path) -> PathBuf {
    let parts: PathBuf = path.components().filter(|part| !matches!(part, Component::CurDir)).collect();
    if parts.as_os_str().is_empty() { PathBuf::from(".") } else { parts }
}

/// The path that some bytes of a list or an archive name.
pub fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// A name on one line of a terminal or a table: no line break, no tab, nothing that a terminal obeys.
pub fn shown(name: &str) -> String {
    let mut shown = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            // What turns the direction of writing, or cannot be seen, could make one name look like another.
            c if c.is_control()
                || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                shown.extend(c.escape_unicode());
            }
            c => shown.push(c),
        }
    }
    shown
}

/// The byte that `\xHH` at a place stands for.
fn escaped(name: &[u8], at: usize) -> Option<u8> {
    let [b'\\', b'x', high, low] = *name.get(at..at + 4)? else { return None };
    let digit = |c: u8| char::from(c).to_digit(16).filter(|_| !c.is_ascii_lowercase());
    Some((digit(high)? * 16 + digit(low)?) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bytes that a name was made of.
    fn to_bytes(name: &str) -> Vec<u8> {
        let (name, mut bytes, mut at) = (name.as_bytes(), Vec::with_capacity(name.len()), 0);
        while at < name.len() {
            match escaped(name, at) {
                Some(byte) => {
                    bytes.push(byte);
                    at += 4;
                }
                None => {
                    bytes.push(name[at]);
                    at += 1;
                }
            }
        }
        bytes
    }

    #[test]
    fn names_are_text_and_stay_apart() {
        assert_eq!(of_bytes(b"caf\xe9.jpg"), r"caf\xE9.jpg");
        assert_eq!(of_bytes(br"caf\xE9.jpg"), r"caf\x5CxE9.jpg");
        assert_eq!(of_bytes("a\\b\n漢.png".as_bytes()), "a\\b\n漢.png");
        assert_eq!(shown("a\tb\nc\u{1b}[0m"), r"a\tb\nc\u{1b}[0m");
        assert_eq!(tidy(Path::new("./a//b/./c")), Path::new("a/b/c"));
        assert_eq!((tidy(Path::new("./.")), tidy(Path::new("../a"))), (".".into(), "../a".into()));
    }

    proptest! {
        #[test]
        fn bytes_come_back(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\\'), Just(b'x'), Just(b'E')], 0..40)) {
            let name = of_bytes(&bytes);
            prop_assert_eq!(to_bytes(&name), bytes);
            let told = shown(&name).contains(['\n', '\t', '\x1b']);
            prop_assert!(!told);
        }
    }
}
