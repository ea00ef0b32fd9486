//! Inputs become units of work, one after the other, in a stable order.
//!
//! ```text
//! folder          every file under it, sorted by path; links are followed, loops are not
//! list.txt        a path a line: pictures, archives, folders
//! shard.tar(.gz)  every member, in the order of the archive: WebDataset
//! ```
//!
//! | file | content |
//! |---|---|
//! | `kind` | what an input is: picture, archive, text beside pictures, something else |
//! | `name` | names that are not UTF-8, and how names are shown |
//! | `list` | lists of paths |
//! | `archive` | members of archives |
//! | `tags` | tags from texts beside pictures |
//!
//! A unit's name (`uri`) is how the ledger knows it again: the path as the user would write it, or `shard.tar!member`.
//! Its stamp (size and time of the file) says whether it has changed since. Nothing is unpacked: members are read in
//! place, so a member's name can point nowhere.
//!
//! Nothing is collected: ten million listed files cost a look at each and no memory. Whoever visits them counts. What gives no
//! unit is visited too ([`Found::Not`], [`Found::Beside`]): the sum of all visits is the sum of all files and members.

mod archive;
mod kind;
mod list;
pub mod name;
mod tags;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use viscache::store::Stamp;
use walkdir::WalkDir;

pub use kind::ending_of;
pub use list::List;
pub use tags::TagRule;

use kind::{HEAD, Kind};

/// Largest member read into memory, whatever the limits on pictures say.
const MAX_MEMBER: u64 = 1 << 30;
/// Times that a read is begun again when the system fails it in a way that may pass, and the first wait in between.
const RETRIES: u32 = 2;
const RETRY_WAIT: Duration = Duration::from_millis(200);

/// One input to embed.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// Its name: a path, or `shard.tar!member`.
    pub uri: String,
    /// Size and time of its file.
    pub stamp: Stamp,
    /// Where its bytes are.
    pub place: Place,
    /// Texts beside it that tags are taken from: which rule, and where.
    pub texts: Vec<(usize, Place)>,
}

/// Where bytes are.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// A file of its own.
    File(PathBuf),
    /// Part of an archive.
    Member {
        /// The archive.
        archive: Arc<Path>,
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// A member of an archive whose holes are left out: read by way of its header.
    Sparse {
        /// The archive.
        archive: Arc<Path>,
        /// Offset of the member's header.
        header: u64,
        /// Number of bytes, holes included.
        len: u64,
    },
    /// In memory: a member of a compressed archive, which cannot be read in place.
    Held(Arc<[u8]>),
    /// It was in memory, and only its size was asked for.
    Unread {
        /// Number of bytes.
        len: u64,
    },
}

/// Why something gives no unit, and must not be silent either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It can never be used as it is.
    Bad(String),
    /// It could not be read now; another time it might.
    Failed(String),
    /// It is not what caches are built from.
    Passed(String),
}

impl Refusal {
    /// In words.
    pub fn reason(&self) -> &str {
        match self {
            Refusal::Bad(reason) | Refusal::Failed(reason) | Refusal::Passed(reason) => reason,
        }
    }

    /// What the system's failure to read something means.
    fn io(error: &std::io::Error) -> Self {
        let reason = format!("cannot read it: {error}");
        // An error without a number of the system's was found in the bytes.
        match error.raw_os_error() {
            Some(_) => Refusal::Failed(reason),
            None => Refusal::Bad(reason),
        }
    }
}

/// One thing that the inputs hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// A picture, by its looks.
    Unit(Unit),
    /// No unit, and why.
    Not {
        /// What.
        uri: String,
        /// Its size and time; nothing where even that could not be told.
        stamp: Stamp,
        /// Why.
        refusal: Refusal,
    },
    /// A text or table beside pictures, or what a system left: nothing is lost by leaving it. Its ending.
    Beside(String),
    /// Left out by request. Its ending.
    Ignored(String),
    /// An archive has been read to its end, or as far as it could be.
    Archive {
        /// Its name.
        uri: String,
        /// Its size and time.
        stamp: Stamp,
        /// Whether nothing of it is missing.
        whole: bool,
    },
}

/// Who is shown everything.
pub trait Visitor {
    /// Whether an archive need not be opened: all of it is done.
    ///
    /// # Errors
    /// As the visitor fails; the walk ends with it.
    fn is_done(&mut self, archive: &str, stamp: Stamp) -> anyhow::Result<bool>;

    /// Takes the next thing.
    ///
    /// # Errors
    /// As the visitor fails; the walk ends with it.
    fn visit(&mut self, found: Found) -> anyhow::Result<ControlFlow<()>>;
}

/// What to look at, and how.
pub struct Inputs {
    /// Folders, single pictures and archives.
    pub images: Vec<PathBuf>,
    /// Lists of paths.
    pub lists: Vec<List>,
    /// Where tags come from.
    pub tags: Vec<TagRule>,
    /// Endings that are left out without a word, in small letters and with their dot.
    pub ignore: Vec<String>,
}

/// What a walk does: everything goes to the visitor, which may end it.
type Step = anyhow::Result<ControlFlow<()>>;

/// One walk over all inputs.
struct Walk<'a> {
    inputs: &'a Inputs,
    visitor: &'a mut dyn Visitor,
    /// Most bytes of a member of a compressed archive that are held; without it, none are.
    hold: Option<u64>,
}

impl Inputs {
    /// Whether what was named on the command line is there.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> anyhow::Result<()> {
        self.images.iter().try_for_each(|input| {
            fs::metadata(input).map(drop).with_context(|| format!("cannot read {}", input.display()))
        })
    }

    /// Looks at everything in order.
    ///
    /// * `hold`: most bytes of a member of a compressed archive, which is read on the way; `None` reads none.
    ///
    /// # Errors
    /// An input that is not there: a mistake in the command, not in the data. Whatever the visitor fails with.
    pub fn walk(&self, hold: Option<u64>, visitor: &mut dyn Visitor) -> anyhow::Result<()> {
        let mut walk = Walk { inputs: self, visitor, hold };
        for input in &self.images {
            let about = fs::metadata(input).with_context(|| format!("cannot read {}", input.display()))?;
            if walk.named(&name::tidy(input), &about)?.is_break() {
                return Ok(());
            }
        }
        for list in &self.lists {
            if walk.list(list)?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Walk<'_> {
    /// Something that a person or a list names.
    fn named(&mut self, path: &Path, about: &fs::Metadata) -> Step {
        if about.is_dir() {
            return self.folder(path);
        }
        match self.looked_at(path, about)? {
            // Whoever names it means it.
            Ok(Kind::Beside) => self.not(path, stamp(about), Refusal::Bad("it is a text, no picture".into())),
            kind => self.file(path, about, kind),
        }
    }

    fn folder(&mut self, root: &Path) -> Step {
        // Two walks of a folder find its files in one order, and so give them the same ids.
        for entry in WalkDir::new(root).follow_links(true).sort_by_file_name() {
            let step = match entry {
                Ok(entry) if entry.file_type().is_dir() => ControlFlow::Continue(()),
                Ok(entry) => match entry.metadata() {
                    Ok(about) => {
                        let path = name::tidy(entry.path());
                        let kind = self.looked_at(&path, &about)?;
                        self.file(&path, &about, kind)?
                    }
                    Err(e) => self.not(entry.path(), Stamp::default(), Refusal::Failed(e.to_string()))?,
                },
                // A loop of links is not data: walking on without it loses nothing. A dangling link is a lost picture.
                Err(e) if e.loop_ancestor().is_some() => ControlFlow::Continue(()),
                Err(e) => {
                    let path = e.path().unwrap_or(root).to_owned();
                    let named = kind::by_name(path.as_os_str().as_encoded_bytes());
                    if path != root
                        && path.is_symlink()
                        && !matches!(named, Some(Kind::Picture | Kind::Tar | Kind::TarGz))
                    {
                        let step = self.visitor.visit(Found::Beside("(link to nothing)".into()))?;
                        if step.is_break() {
                            return Ok(step);
                        }
                        continue;
                    }
                    let reason =
                        e.into_io_error().map_or_else(|| "it cannot be walked".into(), |e| e.to_string());
                    self.not(&path, Stamp::default(), Refusal::Failed(reason))?
                }
            };
            if step.is_break() {
                return Ok(step);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What a file is; nothing is read where its name tells.
    fn looked_at(&mut self, path: &Path, about: &fs::Metadata) -> anyhow::Result<Result<Kind, Refusal>> {
        if !about.is_file() {
            return Ok(Err(Refusal::Passed("it is no file but a pipe, a socket or a device".into())));
        }
        if let Some(kind) = kind::by_name(path.as_os_str().as_encoded_bytes()) {
            return Ok(Ok(kind));
        }
        let head = patiently(|| {
            let mut head = Vec::with_capacity(HEAD);
            File::open(path)?.take(HEAD as u64).read_to_end(&mut head)?;
            Ok(head)
        });
        Ok(head.map(|head| kind::by_content(&head)).map_err(|e| Refusal::io(&e)))
    }

    fn file(&mut self, path: &Path, about: &fs::Metadata, kind: Result<Kind, Refusal>) -> Step {
        let ending = ending_of(path.as_os_str().as_encoded_bytes());
        if self.inputs.ignore.contains(&ending) {
            return self.visitor.visit(Found::Ignored(ending));
        }
        match kind {
            Ok(Kind::Picture) => {
                let beside = |rule: &TagRule| tags::beside(path, &rule.ending);
                let texts = self.inputs.tags.iter().map(beside).enumerate();
                let texts =
                    texts.filter(|(_, text)| text.is_file()).map(|(rule, text)| (rule, Place::File(text)));
                let texts = texts.collect();
                let unit = Unit {
                    uri: name::of_path(path),
                    stamp: stamp(about),
                    place: Place::File(path.to_owned()),
                    texts,
                };
                self.visitor.visit(Found::Unit(unit))
            }
            Ok(Kind::Tar) => self.archive(path, about, false),
            Ok(Kind::TarGz) => self.archive(path, about, true),
            Ok(Kind::Beside) => self.visitor.visit(Found::Beside(ending)),
            Ok(Kind::Sense(_)) if kind::has_picture(path) => self.visitor.visit(Found::Beside(ending)),
            Ok(Kind::Other(reason) | Kind::Sense(reason)) => {
                self.not(path, stamp(about), Refusal::Passed(format!("it is {reason}")))
            }
            Err(refusal) => self.not(path, stamp(about), refusal),
        }
    }

    fn not(&mut self, path: &Path, stamp: Stamp, refusal: Refusal) -> Step {
        self.visitor.visit(Found::Not { uri: name::of_path(path), stamp, refusal })
    }
}

/// Reads bytes.
///
/// * `limit`: most bytes; a longer one is an error before it is read.
///
/// # Errors
/// In words, for the ledger; [`Refusal::Failed`] for what may pass.
pub fn read(place: &Place, limit: u64) -> Result<Vec<u8>, Refusal> {
    let fail = |e: std::io::Error| Refusal::io(&e);
    let len = match place {
        Place::File(path) => patiently(|| fs::metadata(path)).map_err(fail)?.len(),
        Place::Member { len, .. } | Place::Sparse { len, .. } | Place::Unread { len } => *len,
        Place::Held(bytes) => bytes.len() as u64,
    };
    if len > limit || len > MAX_MEMBER {
        return Err(Refusal::Bad(format!("it has {len} bytes, more than the limit of {limit}")));
    }
    let from = |path: &Path, offset: u64| {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok::<File, std::io::Error>(file)
    };
    let bytes = patiently(|| {
        let mut bytes = Vec::with_capacity(len as usize);
        match place {
            Place::File(path) => File::open(path)?.take(len).read_to_end(&mut bytes)?,
            Place::Member { archive, offset, .. } => {
                from(archive, *offset)?.take(len).read_to_end(&mut bytes)?
            }
            Place::Sparse { archive, header, .. } => {
                let mut rest = tar::Archive::new(from(archive, *header)?);
                let member = rest.entries()?.next().transpose()?;
                member.map_or(Ok(0), |member| member.take(len).read_to_end(&mut bytes))?
            }
            Place::Held(held) => {
                bytes.extend_from_slice(held);
                held.len()
            }
            Place::Unread { .. } => 0,
        };
        Ok(bytes)
    })
    .map_err(fail)?;
    match place {
        Place::File(_) => Ok(bytes),
        _ if bytes.len() as u64 == len => Ok(bytes),
        _ => Err(Refusal::Bad(format!("the archive is cut short: {} of {len} bytes are there", bytes.len()))),
    }
}

/// What the texts beside a unit say, and what is wrong with the first that says nothing usable.
pub fn read_tags(rules: &[TagRule], texts: &[(usize, Place)]) -> (BTreeMap<String, String>, Option<String>) {
    let (mut found, mut wrong) = (BTreeMap::new(), None);
    for (rule, place) in texts {
        let text = read(place, tags::MAX_TEXT).map_err(|refusal| refusal.reason().to_owned());
        if let Err(reason) = text.and_then(|text| rules[*rule].read(&text, &mut found)) {
            wrong = wrong.or(Some(reason));
        }
    }
    (found, wrong)
}

/// Why bytes are no picture, with what they are where that can be told: a file may have the wrong ending.
pub fn explained(bytes: &[u8], error: &dyn std::fmt::Display) -> String {
    match kind::by_content(&bytes[..bytes.len().min(HEAD)]) {
        Kind::Other(what) | Kind::Sense(what) if !bytes.is_empty() && what != kind::UNKNOWN => {
            format!("it is {what}")
        }
        _ => error.to_string(),
    }
}

/// Tries a few times what a network or a disk may fail once.
fn patiently<T>(mut read: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    let mut wait = RETRY_WAIT;
    for _ in 0..RETRIES {
        match read() {
            Err(e) if may_pass(&e) => std::thread::sleep(wait),
            result => return result,
        }
        wait *= 4;
    }
    read()
}

/// Whether an error is of the kind that the same call may not meet again: a stale handle of a network file system, a
/// disk's hiccup, a timeout. What is not there or not allowed stays so for a while.
fn may_pass(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::IO,
        Errno::STALE,
        Errno::AGAIN,
        Errno::TIMEDOUT,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::NOBUFS,
        Errno::MFILE,
        Errno::NFILE,
    ];
    error.raw_os_error().is_some_and(|code| passing.iter().any(|errno| errno.raw_os_error() == code))
}

fn stamp(about: &fs::Metadata) -> Stamp {
    let since = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Stamp { bytes: about.len(), modified_ns: since.map_or(0, |since| since.as_nanos() as u64) }
}

#[cfg(test)]
mod tests;
