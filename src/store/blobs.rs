//! Large values in checksummed parts.
//!
//! ```text
//! part = version 1 · BLAKE3 cut to 16 bytes 16 · data ≤ 4 MiB
//! ```
//!
//! Parts are written as the bytes arrive and are nobody's until a generation record says that they count. A reader
//! knows the whole length from that record, so a missing part, a short one and a flipped byte are all told apart.
//!
//! ```text
//! parts ─► memory ─► table files, synced ([`Store::flush_blobs`]) ─► the generation's record, by the log, synced
//! ```
//! They do not go through RocksDB's log: an index would be written twice, once into the log and once into the table files that it is
//! flushed to before it counts. So a crash before the flush leaves nothing of what was still in memory, and nothing that anybody asks for.
//! Deletions of parts do go through the log: one that was lost would only leave orphans.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use rocksdb::WriteOptions;

use super::{Access, BLOBS, BlobKind, CacheId, Error, Key, Store};
use crate::types::Generation;

/// Most data bytes of one part.
pub const PART_LEN: usize = 4 << 20;

/// Threads that check and copy parts, behind one that reads ahead.
const READERS: usize = 2;
const VERSION: u8 = 1;
const CHECKSUM_LEN: usize = 16;
const PREFIX_LEN: usize = 1 + CHECKSUM_LEN;

/// Writes one blob; [`Write::flush`] and drop write nothing, [`BlobWriter::finish`] does. On disk it is once
/// [`Store::flush_blobs`] has returned.
pub struct BlobWriter<'a> {
    store: &'a Store,
    cache: CacheId,
    generation: Generation,
    kind: BlobKind,
    buffer: Vec<u8>,
    parts: u32,
    len: u64,
}

/// Reads one blob here and there; holds the part that was read last, checked.
pub struct BlobReader<'a> {
    store: &'a Store,
    cache: CacheId,
    generation: Generation,
    kind: BlobKind,
    len: usize,
    /// Its number and its data.
    part: Option<(usize, Vec<u8>)>,
}

impl Store {
    /// Begins a blob. Nothing reads it before a generation record counts it.
    pub fn write_blob(&self, cache: CacheId, generation: Generation, kind: BlobKind) -> BlobWriter<'_> {
        let buffer = Vec::with_capacity(PREFIX_LEN + PART_LEN);
        BlobWriter { store: self, cache, generation, kind, buffer, parts: 0, len: 0 }
    }

    /// Moves written parts out of memory into table files, on disk when this returns: they are in no log, so this comes before a record
    /// that counts them.
    ///
    /// # Errors
    /// [`Error::Rocks`].
    pub fn flush_blobs(&self) -> Result<(), Error> {
        self.db.flush_cf(&self.family(BLOBS)).map_err(|e| self.rocks(e))
    }

    /// Reads a blob into `into`, whose length must be the blob's; parts are read and checked by several threads.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the part.
    pub fn read_blob(
        &self,
        cache: CacheId,
        generation: Generation,
        kind: BlobKind,
        into: &mut [u8],
    ) -> Result<(), Error> {
        let len = into.len();
        let places: Vec<_> = into.chunks_mut(PART_LEN).map(Mutex::new).collect();
        self.read_blob_by_parts(cache, generation, kind, len, |at, part| {
            places[at / PART_LEN].lock().unwrap_or_else(PoisonError::into_inner).copy_from_slice(part);
        })
    }

    /// Reads a blob and hands over its parts, each checked: the first before all others, these in any order and by several
    /// threads at a time.
    ///
    /// * `len`: the blob's length. `take`: gets the place of a part's first byte, and the part.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the part.
    pub fn read_blob_by_parts(
        &self,
        cache: CacheId,
        generation: Generation,
        kind: BlobKind,
        len: usize,
        take: impl Fn(usize, &[u8]) + Sync,
    ) -> Result<(), Error> {
        let read = |part: usize| {
            self.with_part(cache, generation, kind, len, part, |stored| take(part * PART_LEN, stored))
        };
        let count = len.div_ceil(PART_LEN);
        if count > 0 {
            read(0)?;
        }
        if count <= 1 {
            // One part is not worth a thread, and a store may have thousands of small caches.
            return Ok(());
        }
        let parts = Mutex::new(1..count);
        let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || std::iter::from_fn(next).try_for_each(read);
        let [first, last] = [0, u32::MAX].map(|part| Key::blob_part(cache, generation, kind, part));
        let files = self.files_of(BLOBS, &first, &last);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Where the system has no threads to give, this one does the work alone.
            let spawn = || std::thread::Builder::new().name("blob-read".into());
            let ahead = spawn().spawn_scoped(scope, || read_ahead(&files, &done));
            let others: Vec<_> = (1..READERS).map_while(|_| spawn().spawn_scoped(scope, work).ok()).collect();
            let join = |other: ScopedJoinHandle<'_, _>| {
                other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let mine = work();
            let all = others.into_iter().map(join).fold(mine, Result::and);
            done.store(true, Ordering::Relaxed);
            drop(ahead);
            all
        })
    }

    /// Reads a blob here and there, from front to back best.
    ///
    /// * `len`: the blob's length.
    pub fn blob_reader(
        &self,
        cache: CacheId,
        generation: Generation,
        kind: BlobKind,
        len: usize,
    ) -> BlobReader<'_> {
        BlobReader { store: self, cache, generation, kind, len, part: None }
    }

    /// Reads a part of a blob, checks it, and hands it over.
    ///
    /// * `len`: the blob's length.
    fn with_part(
        &self,
        cache: CacheId,
        generation: Generation,
        kind: BlobKind,
        len: usize,
        part: usize,
        take: impl FnOnce(&[u8]),
    ) -> Result<(), Error> {
        let damaged = |why: &str| Error::Damaged {
            what: format!("part {part} of the {kind:?} blob of generation {generation}"),
            why: why.into(),
        };
        let key = Key::blob_part(cache, generation, kind, part as u32);
        let mut options = rocksdb::ReadOptions::default();
        options.fill_cache(false);
        let family = self.family(BLOBS);
        let get = || self.db.get_pinned_cf_opt(&family, &key, &options).map_err(|e| self.rocks(e));
        let value = match get()? {
            // A follower looks at the list of files first and at the log after, and may have met a record that came between the two.
            // What it counts was in the files before.
            None if self.access == Access::Read => {
                self.refresh()?;
                get()?
            }
            value => value,
        };
        let value = value.ok_or_else(|| damaged("it is missing"))?;
        let Some((prefix, stored)) = value.split_at_checked(PREFIX_LEN) else {
            return Err(damaged("it is cut short"));
        };
        if prefix[0] != VERSION {
            return Err(damaged("its version is unknown"));
        }
        if stored.len() != (len - part * PART_LEN).min(PART_LEN) {
            return Err(damaged("it has the wrong length"));
        }
        if checksum(stored) != prefix[1..] {
            return Err(damaged("its checksum does not match"));
        }
        take(stored);
        Ok(())
    }

    /// The table files of a family that have keys between two, in the order of their keys.
    fn files_of(&self, family: &str, from: &[u8], to: &[u8]) -> Vec<PathBuf> {
        let mut files = self.db.live_files().unwrap_or_default();
        files.retain(|file| {
            let (first, last) = (file.start_key.as_deref(), file.end_key.as_deref());
            file.column_family_name == family
                && first.is_none_or(|first| first <= to)
                && last.is_none_or(|last| last >= from)
        });
        files.sort_by(|a, b| a.start_key.cmp(&b.start_key));
        files.iter().map(|file| self.path.join(file.name.trim_start_matches('/'))).collect()
    }
}

/// Reads files into the system's cache, from which RocksDB takes them: it asks for them as one who jumps about, so that the
/// system does not read ahead.
fn read_ahead(files: &[PathBuf], done: &AtomicBool) {
    let mut buffer = vec![0u8; 1 << 20];
    for file in files {
        let Ok(mut file) = std::fs::File::open(file) else { continue };
        while !done.load(Ordering::Relaxed) && file.read(&mut buffer).is_ok_and(|read| read > 0) {}
    }
}

impl BlobReader<'_> {
    /// Reads the bytes from a place on, as many as there is room for.
    ///
    /// # Errors
    /// [`Error::Damaged`] naming the part, or for bytes behind the blob's end.
    pub fn read_at(&mut self, from: usize, into: &mut [u8]) -> Result<(), Error> {
        let BlobReader { store, cache, generation, kind, len, .. } = *self;
        if from.checked_add(into.len()).is_none_or(|to| to > len) {
            let what = format!("{kind:?} blob of generation {generation}");
            return Err(Error::Damaged { what, why: "it is cut short".into() });
        }
        let (mut at, mut rest) = (from, into);
        while !rest.is_empty() {
            let (number, first) = (at / PART_LEN, at % PART_LEN);
            let part = match &mut self.part {
                Some((kept, part)) if *kept == number => part,
                kept => {
                    let mut part = kept.take().map(|(_, part)| part).unwrap_or_default();
                    part.clear();
                    store.with_part(cache, generation, kind, len, number, |stored| {
                        part.extend_from_slice(stored);
                    })?;
                    &mut kept.insert((number, part)).1
                }
            };
            let (some, others) = rest.split_at_mut((part.len() - first).min(rest.len()));
            some.copy_from_slice(&part[first..first + some.len()]);
            (at, rest) = (at + some.len(), others);
        }
        Ok(())
    }
}

impl BlobWriter<'_> {
    /// Writes what is left and returns the blob's length. The parts are on disk once [`Store::flush_blobs`] has returned.
    ///
    /// # Errors
    /// [`Error::Rocks`].
    pub fn finish(mut self) -> Result<u64, Error> {
        if !self.buffer.is_empty() {
            self.write_part()?;
        }
        Ok(self.len)
    }

    fn write_part(&mut self) -> Result<(), Error> {
        if self.store.access == Access::Read {
            return Err(Error::ReadOnly);
        }
        fail::fail_point!("blob::part", |_| std::process::abort());
        let mut value = Vec::with_capacity(PREFIX_LEN + self.buffer.len());
        value.push(VERSION);
        value.extend_from_slice(&checksum(&self.buffer));
        value.append(&mut self.buffer);
        let key = Key::blob_part(self.cache, self.generation, self.kind, self.parts);
        self.parts += 1;
        let family = self.store.family(BLOBS);
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.store.db.put_cf_opt(&family, key, value, &options).map_err(|e| self.store.rocks(e))
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = data.len().min(PART_LEN - self.buffer.len());
        self.buffer.extend_from_slice(&data[..taken]);
        self.len += taken as u64;
        if self.buffer.len() == PART_LEN {
            self.write_part().map_err(io::Error::other)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn checksum(data: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut checksum = [0u8; CHECKSUM_LEN];
    checksum.copy_from_slice(&blake3::hash(data).as_bytes()[..CHECKSUM_LEN]);
    checksum
}

#[cfg(test)]
mod tests {
    use super::super::META;
    use super::*;

    const CACHE: CacheId = CacheId(7);
    const GENERATION: Generation = Generation(3);

    fn read(store: &Store, len: usize) -> Result<Vec<u8>, Error> {
        let mut into = vec![0; len];
        store.read_blob(CACHE, GENERATION, BlobKind::Index, &mut into)?;
        Ok(into)
    }

    #[test]
    fn every_byte_of_every_part_is_watched_and_its_part_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Access::Write).unwrap();
        let data: Vec<u8> = (0..2 * PART_LEN + 1000).map(|i| (i * 37 % 251) as u8).collect();
        let mut blob = store.write_blob(CACHE, GENERATION, BlobKind::Index);
        blob.write_all(&data).unwrap();
        assert_eq!(blob.finish().unwrap(), data.len() as u64);
        assert_eq!(read(&store, data.len()).unwrap(), data);

        let put = |part: u32, value: &[u8]| {
            let key = Key::blob_part(CACHE, GENERATION, BlobKind::Index, part);
            store.db.put_cf(&store.family(BLOBS), key, value).unwrap();
        };
        for part in 0..3 {
            let key = Key::blob_part(CACHE, GENERATION, BlobKind::Index, part);
            let sound = store.get(BLOBS, &key).unwrap().unwrap();
            let named = |value: Option<&[u8]>, why: &str| {
                match value {
                    Some(value) => put(part, value),
                    None => store.db.delete_cf(&store.family(BLOBS), &key).unwrap(),
                }
                let error = read(&store, data.len()).unwrap_err().to_string();
                let what = format!("the part {part} of the Index blob of generation 3 is damaged: {why}");
                assert!(error.starts_with(&what), "{error}");
            };
            // The version, the checksum's ends, the data's.
            let places = [0, 1, PREFIX_LEN - 1, PREFIX_LEN, (PREFIX_LEN + sound.len()) / 2, sound.len() - 1];
            for at in places {
                let mut value = sound.clone();
                value[at] ^= 0x10;
                named(
                    Some(&value),
                    if at == 0 { "its version is unknown" } else { "its checksum does not match" },
                );
            }
            named(Some(&sound[..PREFIX_LEN - 1]), "it is cut short");
            named(Some(&sound[..sound.len() - 1]), "it has the wrong length");
            named(Some(&[&sound[..], &[0]].concat()), "it has the wrong length");
            named(None, "it is missing");
            put(part, &sound);
        }
        assert_eq!(read(&store, data.len()).unwrap(), data);
    }

    #[test]
    fn a_follower_that_sees_what_counts_a_blob_sees_the_blob() {
        const ROUNDS: u64 = 200;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Access::Write).unwrap();
        let follower = Store::open(folder.path(), Access::Read).unwrap();
        let counted = || b"x".to_vec();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    let mut blob = store.write_blob(CACHE, Generation(round), BlobKind::Index);
                    blob.write_all(&[round as u8; 1000]).unwrap();
                    blob.finish().unwrap();
                    store.flush_blobs().unwrap();
                    let mut batch = store.batch();
                    batch.put(META, counted(), round.to_be_bytes());
                    store.commit(batch).unwrap();
                }
            });
            let mut seen = 0;
            while seen < ROUNDS {
                follower.refresh().unwrap();
                let Some(value) = follower.get(META, &counted()).unwrap() else { continue };
                seen = u64::from_be_bytes(value.try_into().unwrap());
                let mut into = [0; 1000];
                follower.read_blob(CACHE, Generation(seen), BlobKind::Index, &mut into).unwrap();
                assert_eq!(into, [seen as u8; 1000]);
            }
        });
    }

    #[test]
    fn a_blob_is_read_here_and_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Access::Write).unwrap();
        let data: Vec<u8> = (0..2 * PART_LEN + 1000).map(|i| (i * 37 % 251) as u8).collect();
        let mut blob = store.write_blob(CACHE, GENERATION, BlobKind::Queries);
        blob.write_all(&data).unwrap();
        blob.finish().unwrap();
        let mut reader = store.blob_reader(CACHE, GENERATION, BlobKind::Queries, data.len());
        for (from, len) in
            [(0, 10), (PART_LEN - 3, 7), (PART_LEN - 1, PART_LEN + 2), (5, 0), (data.len() - 4, 4), (1, 2)]
        {
            let mut into = vec![0; len];
            reader.read_at(from, &mut into).unwrap();
            assert_eq!(into, data[from..from + len], "{len} from {from}");
        }
        for (from, len) in [(data.len() - 1, 2), (usize::MAX, 1), (data.len() + 1, 0)] {
            assert!(matches!(reader.read_at(from, &mut vec![0; len]), Err(Error::Damaged { .. })));
        }
    }
}
