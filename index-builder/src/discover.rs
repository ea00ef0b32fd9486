//! Inputs become units of work, in a stable order.
//!
//! ```text
//! folder          every picture file under it, sorted by path; links are followed, loops are not
//! list.txt        a path a line, relative to the list's folder; `#` begins a comment
//! shard.tar       every picture member, in the order of the archive: WebDataset
//! ```
//!
//! A unit's name (`uri`) is how the ledger knows it again: the path as the user would write it, or `shard.tar!member`.
//! Its stamp (size and time of the file) says whether it has changed since. Nothing is unpacked: members are read in
//! place, so a member's name can point nowhere.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, bail};
use viscache::store::Stamp;
use walkdir::WalkDir;

/// Endings of files that are taken for pictures. Whether they are is found out by reading them.
const PICTURES: [&str; 7] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "jfif"];
/// Largest member read into memory, whatever the limits on pictures say.
const MAX_MEMBER: u64 = 1 << 30;

/// One input to embed.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// Its name: a path, or `shard.tar!member`.
    pub uri: String,
    /// Size and time of its file.
    pub stamp: Stamp,
    /// Where its bytes are.
    pub place: Place,
}

/// Where a unit's bytes are.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// A file of its own.
    File(PathBuf),
    /// Part of an archive.
    Member {
        /// The archive.
        archive: PathBuf,
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
}

/// Something that is no unit and must not be silent either.
#[derive(Debug, Clone, PartialEq)]
pub struct Oddity {
    /// What.
    pub uri: String,
    /// Why it gives no unit.
    pub reason: String,
}

/// What the inputs hold.
#[derive(Debug, Default)]
pub struct Discovered {
    /// Units in the order in which they will be stored.
    pub units: Vec<Unit>,
    /// What could not be read.
    pub oddities: Vec<Oddity>,
}

/// Looks at all inputs.
///
/// * `images`: folders, single pictures and `.tar` archives. `lists`: files with a path a line.
///
/// # Errors
/// An input that is not there or is of no known kind: a mistake in the command, not in the data.
pub fn discover(images: &[PathBuf], lists: &[PathBuf]) -> anyhow::Result<Discovered> {
    let mut found = Discovered::default();
    for input in images {
        let about = fs::metadata(input).with_context(|| format!("cannot read {}", input.display()))?;
        match () {
            () if about.is_dir() => folder(input, &mut found),
            () if has_extension(input, &["tar"]) => archive(input, &mut found)?,
            () if about.is_file() => found.units.push(file(input.clone(), &about)),
            () => bail!("{} is neither a folder nor a file", input.display()),
        }
    }
    for list in lists {
        self::list(list, &mut found)?;
    }
    Ok(found)
}

/// Reads a unit's bytes.
///
/// * `limit`: most bytes; a longer one is an error before it is read.
///
/// # Errors
/// In words, for the ledger.
pub fn read(unit: &Unit, limit: usize) -> Result<Vec<u8>, String> {
    let fail = |e: std::io::Error| format!("cannot read it: {e}");
    let (path, offset, len) = match &unit.place {
        Place::File(path) => (path, 0, fs::metadata(path).map_err(fail)?.len()),
        Place::Member { archive, offset, len } => (archive, *offset, *len),
    };
    if len > limit as u64 || len > MAX_MEMBER {
        return Err(format!("it has {len} bytes, more than the limit of {limit}"));
    }
    let mut file = File::open(path).map_err(fail)?;
    file.seek(SeekFrom::Start(offset)).map_err(fail)?;
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(len).read_to_end(&mut bytes).map_err(fail)?;
    if matches!(unit.place, Place::Member { .. }) && bytes.len() as u64 != len {
        return Err(format!("the archive is cut short: {} of {len} bytes are there", bytes.len()));
    }
    Ok(bytes)
}

fn folder(root: &Path, found: &mut Discovered) {
    for entry in WalkDir::new(root).follow_links(true).sort_by_file_name() {
        match entry {
            Ok(entry) if entry.file_type().is_file() && has_extension(entry.path(), &PICTURES) => {
                match entry.metadata() {
                    Ok(about) => found.units.push(file(entry.into_path(), &about)),
                    Err(e) => found.oddities.push(oddity(&entry.path().to_string_lossy(), &e)),
                }
            }
            Ok(_) => {}
            // A loop of links is not data: walking on without it loses nothing. A dangling link is a lost picture.
            Err(e) if e.loop_ancestor().is_some() => {}
            Err(e) => {
                let path = e.path().unwrap_or(root);
                if path == root || has_extension(path, &PICTURES) || !path.is_symlink() {
                    found.oddities.push(oddity(&path.to_string_lossy(), &e));
                }
            }
        }
    }
}

fn list(path: &Path, found: &mut Discovered) -> anyhow::Result<()> {
    let context = || format!("cannot read the list {}", path.display());
    let base = path.parent().unwrap_or(Path::new("."));
    for line in BufReader::new(File::open(path).with_context(context)?).lines() {
        let line = line.with_context(context)?;
        let entry = line.trim();
        if entry.is_empty() || entry.starts_with('#') {
            continue;
        }
        let entry = base.join(entry);
        match fs::metadata(&entry) {
            Ok(about) if about.is_file() && has_extension(&entry, &["tar"]) => archive(&entry, found)?,
            Ok(about) if about.is_file() => found.units.push(file(entry, &about)),
            Ok(_) => found.oddities.push(oddity(&entry.to_string_lossy(), &"it is not a file")),
            Err(e) => found.oddities.push(oddity(&entry.to_string_lossy(), &e)),
        }
    }
    Ok(())
}

fn archive(path: &Path, found: &mut Discovered) -> anyhow::Result<()> {
    let context = || format!("cannot read the archive {}", path.display());
    let file = File::open(path).with_context(context)?;
    let about = file.metadata().with_context(context)?;
    let mut archive = tar::Archive::new(BufReader::new(file));
    let name = path.to_string_lossy();
    for entry in archive.entries_with_seek().with_context(context)? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                found.oddities.push(oddity(&name, &format!("the archive is damaged from here on: {e}")));
                break;
            }
        };
        let member = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if !entry.header().entry_type().is_file() || !has_extension(Path::new(&member), &PICTURES) {
            continue;
        }
        let uri = format!("{name}!{member}");
        if leaves(&member) {
            found.oddities.push(oddity(&uri, &"its name leads out of the archive"));
            continue;
        }
        let (offset, len) = (entry.raw_file_position(), entry.size());
        if offset.checked_add(len).is_none_or(|end| end > about.len()) {
            found.oddities.push(oddity(&uri, &"the archive is cut short inside this member"));
            break;
        }
        let place = Place::Member { archive: path.to_owned(), offset, len };
        let stamp = Stamp { bytes: len, modified_ns: modified_ns(&about) };
        found.units.push(Unit { uri, stamp, place });
    }
    Ok(())
}

/// Whether a member's name is absolute or climbs out with `..`.
fn leaves(member: &str) -> bool {
    member.starts_with('/') || member.contains('\\') || member.split('/').any(|part| part == "..")
}

fn file(path: PathBuf, about: &fs::Metadata) -> Unit {
    let stamp = Stamp { bytes: about.len(), modified_ns: modified_ns(about) };
    Unit { uri: path.to_string_lossy().into_owned(), stamp, place: Place::File(path) }
}

fn modified_ns(about: &fs::Metadata) -> u64 {
    let since = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_nanos() as u64)
}

fn oddity(uri: &str, reason: &dyn std::fmt::Display) -> Oddity {
    Oddity { uri: uri.to_owned(), reason: reason.to_string() }
}

fn has_extension(path: &Path, known: &[&str]) -> bool {
    path.extension().is_some_and(|e| known.iter().any(|k| e.eq_ignore_ascii_case(k)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in members {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, *data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn folders_are_walked_in_order_without_hanging_in_loops() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b/2.JPG", "a/1.png", "note.txt"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        symlink(dir.path(), dir.path().join("a/loop")).unwrap();
        symlink(dir.path().join("gone.png"), dir.path().join("dangling.png")).unwrap();
        let found = discover(&[dir.path().to_owned()], &[]).unwrap();
        let names: Vec<_> =
            found.units.iter().map(|u| &u.uri[dir.path().to_string_lossy().len()..]).collect();
        assert_eq!(names, ["/a/1.png", "/b/2.JPG"]);
        assert_eq!(found.oddities.len(), 1, "{:?}", found.oddities);
        assert!(found.oddities[0].uri.ends_with("dangling.png"));
    }

    #[test]
    fn members_are_read_in_place_and_may_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.tar");
        fs::write(
            &path,
            tar(&[("a.jpg", b"one"), ("../x.jpg", b"two"), ("c.txt", b"no"), ("d.png", b"three")]),
        )
        .unwrap();
        let found = discover(&[path], &[]).unwrap();
        let bytes: Vec<_> = found.units.iter().map(|u| read(u, 100).unwrap()).collect();
        assert_eq!(bytes, [b"one".to_vec(), b"three".to_vec()]);
        assert!(found.oddities[0].reason.contains("leads out"));
        assert!(read(&found.units[1], 4).unwrap_err().contains("limit"));
    }

    #[test]
    fn lists_name_files_relative_to_themselves() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.png"), "x").unwrap();
        let list = dir.path().join("list.txt");
        fs::write(&list, "# pictures\na.png\n\nmissing.png\n").unwrap();
        let found = discover(&[], &[list]).unwrap();
        assert_eq!((found.units.len(), found.oddities.len()), (1, 1));
        assert!(discover(&[dir.path().join("nowhere")], &[]).is_err());
    }

    proptest! {
        #[test]
        fn damaged_archives_give_what_they_can(cut in 0usize..4000, at in 0usize..4000, flip: u8) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s.tar");
            let mut bytes = tar(&[("a.jpg", &[1; 600]), ("b.jpg", &[2; 600])]);
            let at = at % bytes.len();
            bytes[at] ^= flip;
            bytes.truncate(cut);
            fs::write(&path, bytes).unwrap();
            if let Ok(found) = discover(&[path], &[]) {
                found.units.iter().for_each(|unit| drop(read(unit, 10_000)));
            }
        }
    }
}
