//! A power cut, made up: what a program had not synced is taken out of its folder again.
//!
//! A killed process loses nothing that it has written: the system keeps it, and writes it down later. So a test that only kills
//! passes without a single fsync. Here a library below RocksDB (`power.c`, loaded by `LD_PRELOAD`) keeps a journal of what was
//! synced, and after the program was killed its folder is made to look as a disk would after the current was gone:
//!
//! ```text
//!                             Cut::Everything                 Cut::AsItComes
//! bytes of a file             those it was synced with        more of them, as many as it happens; in logs, or zeros in their place
//! names, made and renamed     those synced with the folder    more of them, in the order in which they were changed
//! files that were deleted     there again                     the same
//! ```
//!
//! What was in the folder when the program began counts as synced. A file's own fsync makes its bytes durable and not its name:
//! some file systems do both, none has to.
//!
//! Left out: disks that say they have written and have not, and blocks written out of order inside of what was not synced.

#![allow(dead_code, reason = "every test crate uses a part of this")]

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rand::RngExt;
use rand_pcg::Pcg64;
use tempfile::TempDir;

/// How much of what was not synced is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All of it.
    Everything,
    /// A part of it, by chance.
    AsItComes,
}

/// What a cut took away.
#[derive(Debug, Default, Clone, Copy)]
pub struct Lost {
    /// Bytes behind the synced ones.
    pub bytes: u64,
    /// Names that were made, renamed or deleted.
    pub names: usize,
}

/// Watches one program at a time in a folder.
pub struct Power {
    root: PathBuf,
    library: &'static Path,
    /// The journal, and files that lost their name. On the disk of the folder, as links need it.
    side: TempDir,
    /// What there was when the program began: the length of every file, by inode.
    before: HashMap<u64, u64>,
}

/// A change of a name.
#[derive(Debug, Clone)]
enum Change {
    Create(PathBuf),
    MakeFolder(PathBuf),
    Unlink { path: PathBuf, kept: String },
    Rename { from: PathBuf, to: PathBuf, kept: Option<String> },
}

/// What a journal says.
#[derive(Debug, Default)]
struct Journal {
    changes: BTreeMap<u64, Change>,
    /// Synced length, by inode.
    lengths: HashMap<u64, u64>,
    /// Up to which change the names of a folder are synced, by the folder's inode.
    names: HashMap<u64, u64>,
}

impl Power {
    /// Of a folder that is there, and what is below it. None, said aloud, where no program can be watched.
    pub fn over(root: &Path, say: impl Fn(&str)) -> Option<Power> {
        if cfg!(not(all(target_os = "linux", target_env = "gnu"))) || cfg!(target_feature = "crt-static") {
            say("skipped: power cuts (no library can be put below a program here; glibc on Linux lets one)");
            return None;
        }
        let root = root.canonicalize().unwrap();
        let side = tempfile::Builder::new().prefix("power-").tempdir_in(root.parent().unwrap()).unwrap();
        Some(Power { root, library: library(), side, before: HashMap::new() })
    }

    /// Puts the library below a program that is about to be started. What is in the folder now counts as synced.
    pub fn watch(&mut self, command: &mut Command) {
        let _ = fs::remove_file(self.journal());
        let _ = fs::remove_dir_all(self.kept());
        fs::create_dir(self.kept()).unwrap();
        self.before.clear();
        let lengths = &mut self.before;
        each_file(&self.root, &mut |path| {
            let file = fs::metadata(path).unwrap();
            lengths.insert(file.ino(), file.len());
        });
        command.env("LD_PRELOAD", self.library).env("POWER_ROOT", &self.root);
        command.env("POWER_JOURNAL", self.journal()).env("POWER_KEPT", self.kept());
    }

    /// The program has ended, one way or another: takes away what it had not synced.
    ///
    /// # Panics
    /// When the program was not watched, or did what a journal cannot follow.
    pub fn cut(&self, how: Cut, random: &mut Pcg64) -> Lost {
        let journal = Journal::read(&self.journal());
        let mut lost = Lost::default();
        // Changes of names that are on disk make a beginning; what comes by chance is a beginning of the rest.
        let inode = |path: &Path| fs::metadata(path).map(|file| file.ino()).ok();
        let durable = |number: u64, change: &Change| {
            let folder = inode(change.path().parent().unwrap());
            folder.and_then(|inode| journal.names.get(&inode)).is_some_and(|&until| number <= until)
        };
        let loose: Vec<&Change> =
            journal.changes.iter().filter(|(n, change)| !durable(**n, change)).map(|(_, c)| c).collect();
        let stay = match how {
            Cut::Everything => 0,
            Cut::AsItComes => random.random_range(0..=loose.len()),
        };
        for change in loose[stay..].iter().rev() {
            lost.names += usize::from(self.undo(change));
        }
        each_file(&self.root, &mut |path| {
            let file = fs::metadata(path).unwrap();
            let known = |lengths: &HashMap<u64, u64>| lengths.get(&file.ino()).copied().unwrap_or(0);
            let synced = known(&self.before).max(known(&journal.lengths));
            let written = file.len();
            if written <= synced {
                return;
            }
            let (stay, zeros) = match how {
                Cut::Everything => (synced, false),
                Cut::AsItComes => match random.random_range(0..4) {
                    0 => (synced, false),
                    1 => (written, false),
                    2 => (random.random_range(synced..=written), false),
                    // Of a file that was made longer in advance; others are as long as what came to the disk, where the file
                    // system orders data before lengths. RocksDB takes zeros behind a cut record of its manifest for damage.
                    _ => {
                        (random.random_range(synced..=written), path.extension().is_some_and(|e| e == "log"))
                    }
                },
            };
            lost.bytes += written - stay;
            let open = OpenOptions::new().write(true).open(path).unwrap();
            open.set_len(stay).unwrap();
            if zeros {
                open.set_len(written).unwrap();
            }
        });
        lost
    }

    /// Takes a change of a name back; false where it had not been made.
    fn undo(&self, change: &Change) -> bool {
        let there = |path: &Path| fs::symlink_metadata(path).is_ok();
        let kept = |name: &String| self.kept().join(name);
        match change {
            Change::Create(path) => fs::remove_file(path).is_ok(),
            Change::MakeFolder(path) => fs::remove_dir_all(path).is_ok(),
            Change::Unlink { path, kept: name } => {
                !there(path) && fs::hard_link(kept(name), path).map(|()| true).unwrap()
            }
            Change::Rename { from, to, kept: name } => {
                let made = there(to) && !there(from);
                if made {
                    fs::rename(to, from).unwrap();
                    name.iter().for_each(|name| fs::hard_link(kept(name), to).unwrap());
                }
                made
            }
        }
    }

    fn journal(&self) -> PathBuf {
        self.side.path().join("journal")
    }

    fn kept(&self) -> PathBuf {
        self.side.path().join("kept")
    }
}

impl Change {
    /// A name whose folder has to be synced for it.
    fn path(&self) -> &Path {
        match self {
            Change::Create(path) | Change::MakeFolder(path) => path,
            Change::Unlink { path, .. } | Change::Rename { to: path, .. } => path,
        }
    }
}

impl Journal {
    fn read(path: &Path) -> Journal {
        let text = fs::read_to_string(path).expect("the library was loaded: the program has a journal");
        let (mut journal, mut alarms) = (Journal::default(), Vec::new());
        for line in text.split_inclusive('\n') {
            // The last line of a killed program may be cut short; then what it says has not taken place.
            let Some(line) = line.strip_suffix('\n') else { break };
            let (what, rest) = line.split_once(' ').unwrap();
            let mut words = rest.splitn(3, ' ');
            let mut word = || words.next().unwrap().to_owned();
            let number = |word: String| word.parse::<u64>().unwrap();
            match what {
                "create" | "mkdir" => {
                    let (n, path) = rest.split_once(' ').unwrap();
                    let make = if what == "create" { Change::Create } else { Change::MakeFolder };
                    journal.changes.insert(n.parse().unwrap(), make(path.into()));
                }
                "unlink" => {
                    let (n, kept, path) = (number(word()), word(), word().into());
                    journal.changes.insert(n, Change::Unlink { path, kept });
                }
                "rename" => {
                    let (n, kept, paths) = (number(word()), word(), word());
                    let (from, to) = paths.split_once('>').unwrap();
                    let kept = Some(kept).filter(|kept| kept != "-");
                    journal.changes.insert(n, Change::Rename { from: from.into(), to: to.into(), kept });
                }
                "undone" => drop(journal.changes.remove(&number(word()))),
                "synced" => {
                    let (inode, length) = (number(word()), number(word()));
                    let known = journal.lengths.entry(inode).or_default();
                    *known = length.max(*known);
                }
                "names" => {
                    let (inode, until) = (number(word()), number(word()));
                    let known = journal.names.entry(inode).or_default();
                    *known = until.max(*known);
                }
                _ => alarms.push(line.to_owned()),
            }
        }
        assert!(alarms.is_empty(), "the journal cannot follow this program: {alarms:#?}");
        assert!(!journal.changes.is_empty() || !journal.lengths.is_empty(), "the program has done nothing");
        journal
    }
}

fn each_file(folder: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => each_file(&path, visit),
            false => visit(&path),
        }
    }
}

/// The library, compiled once for every test program.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = LIBRARY.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let (source, library) = (folder.path().join("power.c"), folder.path().join("power.so"));
        fs::write(&source, include_str!("power.c")).unwrap();
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        let mut words = compiler.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl");
        let output = command.output().unwrap_or_else(|e| panic!("`{compiler}` is the C compiler: {e}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (folder, library)
    });
    path
}
