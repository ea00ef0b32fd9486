//! Files merged, and whether that went well.
//!
//! RocksDB's `CompactRange` has a status, and neither its interface for C nor the crate on top hands it on. What is handed on is the state
//! of its background work: a merge that fails there stops the store (`wait_for_compact` then says why), or, where RocksDB gets over it by
//! itself, is only counted.

use rocksdb::{WaitForCompactOptions, properties};

use super::{Access, Error, Store};

impl Store {
    /// Merges the store's files and drops what was deleted or replaced.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; [`Error::Rocks`] where a file is damaged or cannot be written, after which the store takes nothing more until it
    /// is opened again; [`Error::Unmerged`].
    pub fn compact(&self) -> Result<(), Error> {
        if self.access == Access::Read {
            return Err(Error::ReadOnly);
        }
        let before = self.problems()?;
        for family in self.families() {
            self.db.compact_range_cf(&self.family(family), None::<&[u8]>, None::<&[u8]>);
        }
        self.db.wait_for_compact(&WaitForCompactOptions::default()).map_err(|e| self.rocks(e))?;
        let problems = self.problems()?.saturating_sub(before);
        if problems > 0 {
            return Err(Error::Unmerged { path: self.path.clone(), problems });
        }
        self.db.flush().map_err(|e| self.rocks(e))
    }

    /// How often background work has failed since the store was opened.
    fn problems(&self) -> Result<u64, Error> {
        let count = self.db.property_int_value(properties::BACKGROUND_ERRORS);
        Ok(count.map_err(|e| self.rocks(e))?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::VECTORS;
    use super::*;

    /// Two files with the same keys, which have to be merged.
    fn two_files(path: &std::path::Path) -> Vec<PathBuf> {
        let store = Store::open(path, Access::Write).unwrap();
        for round in 0..2u8 {
            let mut batch = store.batch();
            for key in 0..200u64 {
                batch.put(VECTORS, key.to_be_bytes().to_vec(), vec![round; 1000]);
            }
            store.commit(batch).unwrap();
            store.db.flush_cf(&store.family(VECTORS)).unwrap();
        }
        let files = store.db.live_files().unwrap();
        let files = files.into_iter().filter(|file| file.column_family_name == VECTORS);
        files.map(|file| path.join(file.name.trim_start_matches('/'))).collect()
    }

    #[test]
    fn sound_files_are_merged() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(two_files(folder.path()).len(), 2);
        let store = Store::open(folder.path(), Access::Write).unwrap();
        store.compact().unwrap();
        let files = store.db.live_files().unwrap();
        assert_eq!(files.iter().filter(|file| file.column_family_name == VECTORS).count(), 1);
        drop(store);
        let follower = Store::open(folder.path(), Access::Read).unwrap();
        assert!(matches!(follower.compact(), Err(Error::ReadOnly)));
    }

    #[test]
    fn a_merge_that_meets_a_damaged_file_fails() {
        let folder = tempfile::tempdir().unwrap();
        for file in two_files(folder.path()) {
            let mut bytes = std::fs::read(&file).unwrap();
            let quarter = bytes.len() / 4;
            bytes[quarter] ^= 1;
            std::fs::write(&file, bytes).unwrap();
        }
        let store = Store::open(folder.path(), Access::Write).unwrap();
        let problem = store.compact().unwrap_err();
        assert!(matches!(problem, Error::Rocks { .. } | Error::Unmerged { .. }), "{problem}");
        let why = std::error::Error::source(&problem).map(ToString::to_string).unwrap_or_default();
        assert!(why.contains("checksum"), "{problem}: {why}");
    }
}
