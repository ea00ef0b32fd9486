//! RocksDB: bytes and records in, bytes and records out. The only module that names `rocksdb`, and one that knows no
//! vector arithmetic.
//!
//! | column family | key (big-endian, ordered) | value |
//! |---|---|---|
//! | `meta` | `format` · `cache` name · `alias` name · `generation` cache, number | JSON records, small and few |
//! | `items` | cache · item id | [`ItemRecord`]: modality, uri, digest, tags |
//! | `vectors` | cache · item id | the row, little-endian f32 or f16: the truth all codes can be rebuilt from |
//! | `blobs` | cache · generation · kind · part | the frozen index, the table of tags; checksummed parts of at most 4 MiB |
//! | `ledger` | cache · unit, content digest, uri or request | what a build has done with each input; which item has some content or uri; what a request was answered |
//! | `changes` | cache · sequence | which item was upserted or deleted, since the oldest kept generation |
//!
//! ```text
//! one unit of work ──► Batch { items, vectors, ledger, cache record } ──► one atomic, synced write
//! kill -9 before it: nothing of the unit is there; after it: all of it is
//! ```
//!
//! **Two ways to open.** [`Access::Write`] takes RocksDB's lock: one process at a time. [`Access::Read`] opens a
//! *follower* that needs no lock, sees what was there when it opened or last [`Store::refresh`]ed, and works while
//! another process writes. `viscache serve` and every read-only command follow; the builder writes.
//!
//! Left out: transactions (there is one writer), merge operators, and time-to-live.

mod batch;
mod blobs;
mod caches;
mod compact;
mod folder;
mod keys;
mod moment;
mod options;
mod read;
mod records;
mod requests;
mod scan;
mod uris;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rocksdb::{
    BoundColumnFamily, ColumnFamilyDescriptor, DB, IteratorMode, ReadOptions, WriteBatch, WriteOptions,
};
use tempfile::TempDir;

use crate::types::CacheName;

pub use batch::Batch;
pub use blobs::{BlobReader, BlobWriter, PART_LEN};
pub use keys::{BlobKind, CacheId};
pub use moment::Moment;
pub use records::{
    ArchiveRecord, CacheRecord, ChangeKind, ChangeRecord, Choice, GenerationRecord, ItemRecord, ItemStamp,
    LedgerRecord, Measured, ModelSource, Outcome, QuerySource, RecallCurve, RecallPoint, Recalls,
    RequestRecord, RequestResult, RowType, Stamp, Tried,
};
pub use requests::REQUEST_WINDOW;
pub use scan::ItemScan;

use keys::Key;
use options::{Memory, db_options, family_options};

/// Version of the store's layout; a newer one is refused. 2 added `changes`, 3 outcomes in the ledger, 4 aliases, uris and
/// requests: an older store is read as it is, and made one of this version when it is opened for writing.
pub const STORE_VERSION: u32 = 4;

const META: &str = "meta";
const ITEMS: &str = "items";
const VECTORS: &str = "vectors";
const BLOBS: &str = "blobs";
const LEDGER: &str = "ledger";
const CHANGES: &str = "changes";
const FAMILIES: [&str; 6] = [META, ITEMS, VECTORS, BLOBS, LEDGER, CHANGES];

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No store there.
    #[error("there is no store at {path}; make one with `index-builder build` or `index-builder import`")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Another process is writing.
    #[error(
        "the store at {path} is being written by another process; wait for it to end (reading needs no lock)"
    )]
    Locked {
        /// Which store.
        path: PathBuf,
    },
    /// Written by a later program.
    #[error(
        "the store at {path} has layout version {found}, this program reads up to {STORE_VERSION}; use a newer viscache"
    )]
    TooNew {
        /// Which store.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A cache that is not there.
    #[error("there is no cache `{name}` in this store; it has: {}", list(.known))]
    NoCache {
        /// The name asked for.
        name: CacheName,
        /// The names there are.
        known: Vec<CacheName>,
    },
    /// A cache that is there already.
    #[error("the cache `{0}` exists already")]
    CacheExists(CacheName),
    /// A name for a cache that an alias has.
    #[error("`{alias}` is an alias of cache `{cache}` already; delete the alias first, or take another name")]
    AliasExists {
        /// The name.
        alias: CacheName,
        /// What it stands for.
        cache: CacheName,
    },
    /// An alias where a cache's own name is needed.
    #[error("`{alias}` is an alias; name the cache itself, which is `{cache}`")]
    IsAlias {
        /// The name given.
        alias: CacheName,
        /// What it stands for.
        cache: CacheName,
    },
    /// An alias that is not there.
    #[error("there is no alias `{name}` in this store; it has: {}", list(.known))]
    NoAlias {
        /// The name asked for.
        name: CacheName,
        /// The aliases there are.
        known: Vec<CacheName>,
    },
    /// A cache that aliases stand for.
    #[error("cache `{name}` has aliases ({}); move or delete them first, or delete it by force, and them with it", list(.aliases))]
    HasAliases {
        /// The cache.
        name: CacheName,
        /// Its aliases.
        aliases: Vec<CacheName>,
    },
    /// A record that cannot be read.
    #[error("the {what} is damaged: {why}; run `index-builder verify`")]
    Damaged {
        /// Which record or part.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Writing on a follower.
    #[error("the store was opened for reading")]
    ReadOnly,
    /// RocksDB failed.
    #[error("the store at {path} failed")]
    Rocks {
        /// Which store.
        path: PathBuf,
        /// What RocksDB says.
        #[source]
        source: rocksdb::Error,
    },
    /// Files that could not be merged, of which RocksDB says no more.
    #[error("{problems} merges of files failed in the store at {path}; its file LOG says why, try again")]
    Unmerged {
        /// Which store.
        path: PathBuf,
        /// How many failed.
        problems: u64,
    },
    /// A follower has no place for its own log.
    #[error(
        "a folder cannot be made in {folder}: reading a store needs a writable temporary folder; name one by TMPDIR"
    )]
    Scratch {
        /// The system's temporary folder.
        folder: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The folder could not be made or read.
    #[error("cannot use {path} as a store")]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Whether RocksDB says that another has the store's lock. `lock` alone is in words such as "block checksum mismatch", and in paths.
fn is_held_lock(said: &str) -> bool {
    let by_this_process = said.starts_with("IO error: lock hold by current process");
    by_this_process || (said.starts_with("IO error: While lock file:") && said.contains("/LOCK: "))
}

fn list(names: &[CacheName]) -> String {
    if names.is_empty() {
        return "none yet".into();
    }
    let shown = names.iter().take(CacheName::SHOWN).map(CacheName::as_str).collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(CacheName::SHOWN) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

/// How a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Exclusive; makes the store if it is not there.
    Write,
    /// Beside a writer; see [`Store::refresh`].
    Read,
}

/// An open store.
pub struct Store {
    db: DB,
    path: PathBuf,
    access: Access,
    /// Held while names are looked at and then changed.
    naming: Mutex<()>,
    /// A follower's private folder, removed when it closes.
    // After the database, so that it goes when that is closed.
    _scratch: Option<TempDir>,
}

impl Store {
    /// Opens the store in a folder.
    ///
    /// # Errors
    /// [`Error::Missing`] (reading), [`Error::Locked`] (writing), [`Error::TooNew`], [`Error::Rocks`].
    pub fn open(path: &Path, access: Access) -> Result<Self, Error> {
        let exists = Store::exists(path);
        let owned = path.to_owned();
        let fail = |source: rocksdb::Error| {
            if is_held_lock(source.as_ref()) {
                Error::Locked { path: owned.clone() }
            } else {
                Error::Rocks { path: owned.clone(), source }
            }
        };
        let memory = Memory::new();
        let families = |names: &[&str]| {
            let one = |name: &&str| ColumnFamilyDescriptor::new(*name, family_options(name, &memory));
            names.iter().map(one).collect::<Vec<_>>()
        };
        let (db, scratch) = match access {
            Access::Write => {
                folder::make(path).map_err(|source| Error::Folder { path: owned.clone(), source })?;
                (
                    DB::open_cf_descriptors(&db_options(&memory), path, families(&FAMILIES)).map_err(fail)?,
                    None,
                )
            }
            Access::Read if !exists => return Err(Error::Missing { path: owned }),
            Access::Read => {
                let scratch = folder::scratch()
                    .map_err(|source| Error::Scratch { folder: std::env::temp_dir(), source })?;
                // A store of version 1 has no `changes`, and a follower cannot make it.
                let known = DB::list_cf(&db_options(&memory), path).map_err(fail)?;
                let there = |name: &&str| *name != CHANGES || known.iter().any(|known| known == name);
                let names: Vec<&str> = FAMILIES.into_iter().filter(there).collect();
                let db = DB::open_cf_descriptors_as_secondary(
                    &db_options(&memory),
                    path,
                    scratch.path(),
                    families(&names),
                );
                let db = db.map_err(|source| {
                    // A writer names the store before it makes the families: for a reader it is not there yet.
                    let unfinished = source.as_ref().contains("Column family not found");
                    if unfinished { Error::Missing { path: owned.clone() } } else { fail(source) }
                });
                (db?, Some(scratch))
            }
        };
        let store = Store { db, path: owned, access, naming: Mutex::new(()), _scratch: scratch };
        store.check_version()?;
        if access == Access::Write {
            store.reclaim_all()?;
        }
        Ok(store)
    }

    /// Whether there is a store in a folder.
    pub fn exists(path: &Path) -> bool {
        path.join("CURRENT").is_file()
    }

    /// How it was opened.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Where the store lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets a follower see what has been written since it opened. Does nothing for a writer.
    ///
    /// # Errors
    /// [`Error::Rocks`].
    pub fn refresh(&self) -> Result<(), Error> {
        match self.access {
            Access::Read => self.db.try_catch_up_with_primary().map_err(|e| self.rocks(e)),
            Access::Write => Ok(()),
        }
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch<'_> {
        Batch { store: self, writes: WriteBatch::default() }
    }

    /// Writes a batch: all of it or nothing, on disk when this returns.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Rocks`].
    pub fn commit(&self, batch: Batch<'_>) -> Result<(), Error> {
        self.write(batch, true)
    }

    /// Writes a batch: all of it or nothing, on disk once a later [`Store::sync`] or [`Store::commit`] has returned. So
    /// several callers can share the wait for the disk.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn commit_unsynced(&self, batch: Batch<'_>) -> Result<(), Error> {
        self.write(batch, false)
    }

    /// Waits until everything committed before is on disk.
    ///
    /// # Errors
    /// [`Error::Rocks`].
    pub fn sync(&self) -> Result<(), Error> {
        self.db.flush_wal(true).map_err(|e| self.rocks(e))
    }

    fn write(&self, batch: Batch<'_>, sync: bool) -> Result<(), Error> {
        if self.access == Access::Read {
            return Err(Error::ReadOnly);
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db.write_opt(batch.writes, &options).map_err(|e| self.rocks(e))
    }

    /// Moves what is in memory and in the log into table files, whose every block has a checksum.
    ///
    /// # Errors
    /// [`Error::Rocks`].
    pub fn flush(&self) -> Result<(), Error> {
        self.families()
            .try_for_each(|family| self.db.flush_cf(&self.family(family)).map_err(|e| self.rocks(e)))
    }

    /// Bytes on disk of each column family.
    pub fn sizes(&self) -> Vec<(&'static str, u64)> {
        let size = |family: &'static str| {
            let property = rocksdb::properties::TOTAL_SST_FILES_SIZE;
            self.db.property_int_value_cf(&self.family(family), property).ok().flatten().unwrap_or(0)
        };
        self.families().map(|family| (family, size(family))).collect()
    }

    /// Reads every block of every file against RocksDB's own checksums.
    ///
    /// # Errors
    /// [`Error::Rocks`] naming the file.
    pub fn verify_files(&self) -> Result<(), Error> {
        for family in self.families() {
            let mut options = ReadOptions::default();
            options.set_verify_checksums(true);
            options.fill_cache(false);
            let mut rows = self.db.raw_iterator_cf_opt(&self.family(family), options);
            rows.seek_to_first();
            while rows.valid() {
                rows.next();
            }
            rows.status().map_err(|e| self.rocks(e))?;
        }
        Ok(())
    }

    fn check_version(&self) -> Result<(), Error> {
        match self.get(META, &Key::format())? {
            Some(value) => {
                let found: u32 = records::decode("layout version", &value)?;
                if found > STORE_VERSION {
                    return Err(Error::TooNew { path: self.path.clone(), found });
                }
                if found < STORE_VERSION && self.access == Access::Write {
                    self.put_version()
                } else {
                    Ok(())
                }
            }
            None if self.access == Access::Write => self.put_version(),
            None => Err(Error::Missing { path: self.path.clone() }),
        }
    }

    fn put_version(&self) -> Result<(), Error> {
        let mut batch = self.batch();
        batch.put(META, Key::format(), records::encode(&STORE_VERSION));
        self.commit(batch)
    }

    /// The families of this store: a follower of an old one lacks `changes`.
    fn families(&self) -> impl Iterator<Item = &'static str> {
        FAMILIES.into_iter().filter(|name| self.db.cf_handle(name).is_some())
    }

    fn family(&self, name: &'static str) -> std::sync::Arc<BoundColumnFamily<'_>> {
        self.db.cf_handle(name).expect("every family was named when the store was opened")
    }

    fn get(&self, family: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.db.get_cf(&self.family(family), key).map_err(|e| self.rocks(e))
    }

    fn scan<T>(
        &self,
        family: &'static str,
        prefix: &[u8],
        decode: impl Fn(&[u8], &[u8]) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(Key::after_prefix(prefix));
        let mode = IteratorMode::From(prefix, rocksdb::Direction::Forward);
        self.db
            .iterator_cf_opt(&self.family(family), options, mode)
            .map(|entry| {
                let (key, value) = entry.map_err(|e| self.rocks(e))?;
                decode(&key, &value)
            })
            .collect()
    }

    fn rocks(&self, source: rocksdb::Error) -> Error {
        Error::Rocks { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ItemId;

    /// A store as the program before the change log left it.
    fn version_1(path: &Path) {
        let store = Store::open(path, Access::Write).unwrap();
        let mut batch = store.batch();
        batch.put(META, Key::format(), records::encode(&1u32));
        let record = br#"{"id":1,"name":"a","dim":2,"rows":"f32","origin":{"model":"m","weights":null,"preprocessing":null},"current":1,"items":0,"next_item":0,"created_ms":0}"#;
        batch.put(META, b"ca".to_vec(), [&[1u8][..], record].concat());
        let generation =
            br#"{"generation":1,"items":0,"index_bytes":0,"build":null,"recall":[],"created_ms":0}"#;
        batch.put(
            META,
            Key::generation(CacheId(1), crate::types::Generation(1)),
            [&[1u8][..], generation].concat(),
        );
        store.commit(batch).unwrap();
        store.db.drop_cf(CHANGES).unwrap();
    }

    #[test]
    fn a_store_of_version_1_is_read_as_it_is_and_gets_its_log_when_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        version_1(folder.path());
        let name = CacheName::new("a").unwrap();
        for access in [Access::Read, Access::Write, Access::Read] {
            let store = Store::open(folder.path(), access).unwrap();
            let record = store.cache(&name).unwrap();
            assert_eq!((record.sequence, store.generations(record.id).unwrap()[0].sequence), (0, 0));
            assert!(store.changes(record.id, 0).unwrap().is_empty());
            assert!(store.sizes().len() >= 5);
            store.verify_files().unwrap();
            store.refresh().unwrap();
        }
        let store = Store::open(folder.path(), Access::Write).unwrap();
        let version: u32 =
            records::decode("version", &store.get(META, &Key::format()).unwrap().unwrap()).unwrap();
        assert_eq!(version, STORE_VERSION);
    }

    #[test]
    fn a_held_lock_is_told_from_damage_by_the_words_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("block1");
        let store = Store::open(&path, Access::Write).unwrap();
        assert!(matches!(Store::open(&path, Access::Write), Err(Error::Locked { .. })));
        store.flush().unwrap();
        drop(store);
        assert!(is_held_lock("IO error: While lock file: /s/LOCK: Resource temporarily unavailable"));
        for other in [
            "Corruption: block checksum mismatch: stored = 1",
            "IO error: No space left on device: While appending to file: /mnt/block1/000012.sst",
            "IO error: While open a file for lock: /s/LOCK: Permission denied",
        ] {
            assert!(!is_held_lock(other), "{other}");
        }
        // Damaged files are not "being written".
        let manifest = std::fs::read_dir(&path).unwrap().map(|file| file.unwrap().path());
        for file in
            manifest.filter(|file| file.file_name().unwrap().to_str().unwrap().starts_with("MANIFEST"))
        {
            let mut bytes = std::fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle..].iter_mut().for_each(|byte| *byte ^= 0x55);
            std::fs::write(&file, bytes).unwrap();
        }
        assert!(matches!(Store::open(&path, Access::Write), Err(Error::Rocks { .. })));
    }

    #[test]
    fn the_log_is_in_order_and_a_gap_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Access::Write).unwrap();
        let cache = CacheId(3);
        let mut batch = store.batch();
        let change = |item| ChangeRecord { kind: ChangeKind::Upsert, item: ItemId(item) };
        for sequence in [1, 2, 3, 4, 6] {
            batch.put_change(cache, sequence, &change(sequence));
        }
        batch.put_change(CacheId(4), 1, &change(9));
        batch.delete_changes_to(cache, 2);
        store.commit_unsynced(batch).unwrap();
        store.sync().unwrap();
        assert!(matches!(store.changes(cache, 0), Err(Error::Damaged { .. })), "1 and 2 are gone");
        assert!(matches!(store.changes(cache, 2), Err(Error::Damaged { .. })), "5 is missing");
        assert_eq!(store.changes(cache, 5).unwrap(), [(6, change(6))]);
        assert_eq!(store.changes(CacheId(4), 0).unwrap().len(), 1);
    }

    /// What is not flushed yet and what was read have one limit, whatever family they are of.
    #[test]
    fn a_store_takes_no_more_memory_than_it_may() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new();
        let names = [VECTORS, BLOBS, "items", "digests", "uris"];
        let families = names.map(|name| ColumnFamilyDescriptor::new(name, family_options(name, &memory)));
        let db = DB::open_cf_descriptors(&db_options(&memory), folder.path(), families).unwrap();
        let mut unlogged = WriteOptions::default();
        unlogged.disable_wal(true);
        let value = |i: u32| {
            let bytes = (0..1 << 20).map(|at: u32| (at.wrapping_mul(i + 7) >> 11) as u8);
            bytes.collect::<Vec<u8>>()
        };
        let mut most = 0;
        for i in 0..40u32 {
            for name in names {
                let family = db.cf_handle(name).unwrap();
                db.put_cf_opt(&family, i.to_be_bytes(), value(i), &unlogged).unwrap();
            }
            most = most.max(memory.buffers.get_usage());
        }
        assert!(most < options::BUFFERS / 4 * 5, "{} MiB of changes", most >> 20);
        for i in 0..40u32 {
            for name in names {
                let family = db.cf_handle(name).unwrap();
                assert_eq!(db.get_cf(&family, i.to_be_bytes()).unwrap(), Some(value(i)));
            }
            let read = memory.blocks.get_usage();
            assert!(read < options::MEMORY / 8 * 9, "{} MiB of blocks", read >> 20);
        }
    }
}
