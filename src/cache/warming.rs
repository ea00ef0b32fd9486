//! Rows on their way into memory.
//!
//! Reading the rows of a large generation takes much longer than reading its index, and a search can do without them: it
//! reads the few that it needs from the store. So they come behind, while the cache is served.
//!
//! ```text
//! begin ─► every reader holds its view of the store ─► the change log is read ─► settle ─► … ─► in memory
//! ```
//!
//! Searches go first: while one reads from the store, the readers wait, a little. Few rows ([`AT_ONCE`]) are read on the spot: a
//! store may have thousands of small caches, and no thread is worth starting for one.
//!
//! What a reader sees is the store as of its beginning, however long it takes. An item that was deleted before that has no
//! row, and the log, which is read afterwards, must know why.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::Error;
use super::mask::Mask;
use crate::index::{CHUNK, Chunks, Index};
use crate::store::{CacheRecord, RowType, Store};
use crate::types::{ItemId, Slot};

/// Bytes between two looks whether a search is waiting, and how long it may keep a reader: 1 MiB in 2 ms is half a GiB a second.
const WAY_EVERY: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_millis(2);

/// Bytes of rows that are read without a thread: less than a millisecond's work.
const AT_ONCE: usize = 256 << 10;

/// The rows of one generation, once they are read. Dropped before, they are not read any further.
pub(super) struct Warming {
    rows: Arc<OnceLock<Chunks>>,
    stop: Arc<AtomicBool>,
    /// Searches that are reading from the store.
    searches: Arc<AtomicUsize>,
    work: Work,
}

/// Who reads the rows.
enum Work {
    /// A thread.
    Behind {
        /// To the thread: what the log says.
        masked: mpsc::Sender<Mask>,
        thread: Mutex<Option<JoinHandle<Result<(), Error>>>>,
    },
    /// Whoever began; it waits to hear what the log says.
    Here(Mutex<Here>),
}

/// Rows that were read on the spot.
enum Here {
    /// They, and the slots that had none.
    Read(Chunks, Vec<Slot>),
    Failed(Error),
    Done,
}

impl Warming {
    /// Begins to read the rows of an index, in threads of its own.
    ///
    /// # Errors
    /// [`Error::Index`] when there is no memory, [`Error::Store`], [`Error::Thread`].
    pub(super) fn begin(store: &Arc<Store>, record: &CacheRecord, index: &Arc<Index>) -> Result<Self, Error> {
        let (rows, stop) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
        let searches = Arc::new(AtomicUsize::new(0));
        if index.len() * record.dim * record.rows.bytes() <= AT_ONCE {
            let reader = Reader { store, record, stop: &stop, searches: &searches };
            let here = match reader.few(&index.ids()) {
                Ok((bytes, gone)) => Here::Read(bytes, gone),
                Err(problem) => Here::failed(record, problem),
            };
            return Ok(Warming { rows, stop, searches, work: Work::Here(Mutex::new(here)) });
        }
        let (begun, all_begun) = mpsc::channel();
        let (masked, log) = mpsc::channel::<Mask>();
        let (store, record, index, cache) =
            (store.clone(), record.clone(), index.clone(), record.name.clone());
        let (into, stopped, searching) = (rows.clone(), stop.clone(), searches.clone());
        let work = move || {
            let reader = Reader { store: &store, record: &record, stop: &stopped, searches: &searching };
            let Some((bytes, gone)) = reader.all(&index.ids(), begun)? else { return Ok(()) };
            // Without an answer the cache was not opened after all.
            let Ok(masked) = log.recv() else { return Ok(()) };
            if let Some(slot) = gone.into_iter().find(|slot| !masked.contains(slot.0)) {
                return Err(wrong(&record, index.id(slot), "missing"));
            }
            into.get_or_init(|| bytes);
            Ok(())
        };
        let thread = Builder::new().name("warm-rows".into()).spawn(move || {
            work().inspect_err(|problem| {
                let problem: &dyn std::error::Error = problem;
                tracing::error!(%cache, problem, "the rows are not read into memory");
            })
        });
        let thread = Mutex::new(Some(thread.map_err(Error::Thread)?));
        let warming = Warming { rows, stop, searches, work: Work::Behind { masked, thread } };
        match all_begun.recv() {
            Ok(()) => Ok(warming),
            Err(_) => warming.join().map(|()| warming),
        }
    }

    /// Says which slots the change log knows to be replaced or deleted.
    ///
    /// * `record`, `index`: those that it began with.
    pub(super) fn settle(&self, record: &CacheRecord, index: &Index, masked: &Mask) {
        match &self.work {
            // A thread that does not listen has failed, and said so.
            Work::Behind { masked: to_thread, .. } => drop(to_thread.send(masked.clone())),
            Work::Here(here) => {
                let mut here = here.lock().unwrap_or_else(PoisonError::into_inner);
                *here = match std::mem::replace(&mut *here, Here::Done) {
                    Here::Read(bytes, gone) => match gone.into_iter().find(|slot| !masked.contains(slot.0)) {
                        Some(slot) => Here::failed(record, wrong(record, index.id(slot), "missing")),
                        None => {
                            self.rows.get_or_init(|| bytes);
                            Here::Done
                        }
                    },
                    other => other,
                };
            }
        }
    }

    /// Waits until the rows are in memory, or have failed to get there; the first who waits hears why.
    ///
    /// # Errors
    /// [`Error::Row`] naming one that is missing or misshapen, [`Error::Store`].
    pub(super) fn join(&self) -> Result<(), Error> {
        let thread = match &self.work {
            Work::Behind { thread, .. } => thread,
            Work::Here(here) => {
                let mut here = here.lock().unwrap_or_else(PoisonError::into_inner);
                return match std::mem::replace(&mut *here, Here::Done) {
                    Here::Failed(problem) => Err(problem),
                    Here::Read(..) | Here::Done => Ok(()),
                };
            }
        };
        let mut thread = thread.lock().unwrap_or_else(PoisonError::into_inner);
        match thread.take().map(JoinHandle::join) {
            Some(Ok(done)) => done,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }

    /// Whether the rows are in memory, or have failed to get there.
    pub(super) fn ended(&self) -> bool {
        match &self.work {
            Work::Behind { thread, .. } => {
                let thread = thread.lock().unwrap_or_else(PoisonError::into_inner);
                thread.as_ref().is_none_or(JoinHandle::is_finished)
            }
            Work::Here(_) => true,
        }
    }

    /// Keeps the readers from the disk for as long as what comes back lives, and a little patience allows.
    pub(super) fn search(&self) -> Search<'_> {
        self.searches.fetch_add(1, Ordering::Relaxed);
        Search(&self.searches)
    }

    /// The rows as stored; zeros for those that are gone.
    pub(super) fn rows(&self) -> Option<&Chunks> {
        self.rows.get()
    }
}

/// A search that reads from the store.
pub(super) struct Search<'a>(&'a AtomicUsize);

impl Drop for Search<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Warming {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let Work::Behind { masked, thread } = &mut self.work else { return };
        // It waits for the log.
        *masked = mpsc::channel().0;
        let thread = thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // What it failed with was told where it happened.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Here {
    /// Says what went wrong, and keeps it for who waits.
    fn failed(record: &CacheRecord, error: Error) -> Self {
        let problem: &dyn std::error::Error = &error;
        tracing::error!(cache = %record.name, problem, "the rows are not read into memory");
        Here::Failed(error)
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    store: &'a Store,
    record: &'a CacheRecord,
    stop: &'a AtomicBool,
    searches: &'a AtomicUsize,
}

impl Reader<'_> {
    /// The rows of exactly these items, in their order, and the slots whose row is not stored (any more): zeros stand for it.
    /// Nothing when it was stopped, which leaves rows that nobody has looked for.
    ///
    /// * `ids`: ascending. The cache may hold other items between them, put since the generation was made.
    /// * `begun`: told when every thread has its view of the store.
    fn all(self, ids: &[u64], begun: mpsc::Sender<()>) -> Result<Option<(Chunks, Vec<Slot>)>, Error> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut rows = Chunks::zeroed(ids.len(), self.row_len())?;
        let mut parts: Vec<(u32, &mut [u8])> = rows.parts_mut().collect();
        let share = parts.len().div_ceil(threads).max(1);
        let gone = std::thread::scope(|scope| {
            let shares = parts.chunks_mut(share).zip(ids.chunks(share * CHUNK)).enumerate();
            let (started, starts) = mpsc::channel();
            let threads: Vec<_> = shares
                .map(|(i, (into, ids))| {
                    let started = started.clone();
                    let work = move || self.share(ids, into, i * share * CHUNK, started);
                    Builder::new().name(format!("warm-rows-{i}")).spawn_scoped(scope, work)
                })
                .collect::<Result<_, _>>()
                .map_err(Error::Thread)?;
            drop(started);
            // A thread that fails before it starts is left out: its error comes below.
            while starts.recv().is_ok() {}
            let _ = begun.send(());
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<Slot>, Error>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            Ok::<_, Error>(threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()?.concat())
        })?;
        Ok((!self.stop.load(Ordering::Relaxed)).then_some((rows, gone)))
    }

    /// As [`Reader::all`], of few items, on the calling thread.
    fn few(self, ids: &[u64]) -> Result<(Chunks, Vec<Slot>), Error> {
        let (len, wanted) = (self.row_len(), ids.iter().map(|&id| ItemId(id)).collect::<Vec<_>>());
        let (mut rows, mut gone) = (Chunks::zeroed(ids.len(), len)?, Vec::new());
        let mut place = vec![0; len];
        for (slot, row) in self.store.rows(self.record.id, &wanted)?.into_iter().enumerate() {
            match row {
                Some(row) => {
                    self.take(wanted[slot], &row, &mut place)?;
                    rows.set(slot as u32, &place)?;
                }
                None => gone.push(Slot(slot as u32)),
            }
        }
        Ok((rows, gone))
    }

    /// Copies a row to its place, if it is one.
    fn take(&self, id: ItemId, row: &[u8], place: &mut [u8]) -> Result<(), Error> {
        if row.len() != place.len() {
            let why = format!("{} bytes long instead of {}", row.len(), place.len());
            return Err(wrong(self.record, id, &why));
        }
        place.copy_from_slice(row);
        // A row that is not finite would poison every score; rows are finite by type when they are put.
        match finite(place, self.record.rows) {
            true => Ok(()),
            false => Err(wrong(self.record, id, "not finite")),
        }
    }

    /// One thread's share of [`Reader::all`]: a scan from its first id, in step with the ids it wants.
    ///
    /// * `first`: slot of the first of them. `started`: dropped once the view of the store is held.
    fn share(
        self,
        ids: &[u64],
        into: &mut [(u32, &mut [u8])],
        first: usize,
        started: mpsc::Sender<()>,
    ) -> Result<Vec<Slot>, Error> {
        let len = self.row_len();
        let Some(&start) = ids.first() else { return Ok(Vec::new()) };
        let mut rows = self.store.row_scan(self.record.id, ItemId(start));
        drop(started);
        let (mut gone, mut next, mut read) = (Vec::new(), 0, 0);
        rows.each(|id, row| {
            read += row.len();
            if read >= WAY_EVERY {
                read = 0;
                self.give_way();
            }
            while next < ids.len() && ids[next] < id.0 {
                gone.push(Slot((first + next) as u32));
                next += 1;
            }
            if ids.get(next) == Some(&id.0) {
                self.take(id, row, &mut into[next / CHUNK].1[next % CHUNK * len..][..len])?;
                next += 1;
            }
            Ok::<bool, Error>(next < ids.len() && !self.stop.load(Ordering::Relaxed))
        })?;
        gone.extend((next..ids.len()).map(|at| Slot((first + at) as u32)));
        Ok(gone)
    }

    /// Lets searches go first, but not for ever: there may always be one.
    fn give_way(&self) {
        let start = Instant::now();
        while self.searches.load(Ordering::Relaxed) > 0 && start.elapsed() < PATIENCE {
            std::thread::sleep(PATIENCE / 20);
        }
    }

    fn row_len(&self) -> usize {
        self.record.dim * self.record.rows.bytes()
    }
}

fn wrong(record: &CacheRecord, id: ItemId, why: &str) -> Error {
    Error::Row { cache: record.name.clone(), id, why: why.into() }
}

fn finite(row: &[u8], kind: RowType) -> bool {
    match kind {
        RowType::F32 => row.chunks_exact(4).all(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()),
        RowType::F16 => row.chunks_exact(2).all(|b| half::f16::from_le_bytes([b[0], b[1]]).is_finite()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{NewCache, NewItem, Writer};
    use crate::store::{Access, ItemRecord};
    use crate::types::{Embedding, Fingerprint, Origin};

    #[test]
    fn readers_that_are_stopped_miss_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Access::Write).unwrap();
        let new = NewCache { dim: 4, rows: RowType::F32, origin: Origin::of("test"), model: None };
        let mut writer = Writer::open(&store, &"a".parse().unwrap(), &new).unwrap();
        let item = |i: u8| {
            let digest = Fingerprint::of(&[i]);
            let record = ItemRecord { uri: i.to_string(), modality: None, digest, tags: Default::default() };
            NewItem { id: None, embedding: Embedding::new(vec![f32::from(i) + 1.0; 4]).unwrap(), record }
        };
        writer.put((0..100).map(item).collect(), |_, _, _| ()).unwrap();
        drop(writer);
        let record = store.cache(&"a".parse().unwrap()).unwrap();
        let (searches, ids) = (AtomicUsize::new(0), Vec::from_iter(0..100));
        let read = |stop| {
            let stop = AtomicBool::new(stop);
            let reader = Reader { store: &store, record: &record, stop: &stop, searches: &searches };
            reader
                .all(&ids, mpsc::channel().0)
                .unwrap()
                .map(|(rows, gone)| (rows.len() * rows.stride(), gone))
        };
        assert_eq!(read(false), Some((100 * 16, Vec::new())));
        assert_eq!(read(true), None);
    }
}
