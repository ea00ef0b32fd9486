//! Upsert and delete: visible to the next search, on disk when they return.
//!
//! ```text
//! lock ─► one batch: items, rows, uris, log entries, what the request is answered, cache record ─► next snapshot ─► unlock
//!      ─► wait for the disk
//! ```
//!
//! Waiting comes after unlocking: calls that wait at the same time share one wait. A search may therefore find an item a
//! moment before its upsert is acknowledged.
//!
//! **Again.** A caller who does not know whether it was heard asks once more. An item with an id or a uri of its own is put in
//! the place of what it put the first time; a request with an id is answered as the first time, as long as it is remembered
//! ([`REQUEST_WINDOW`]).

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::delta::{Tags, bytes_of_tags};
use super::overlay::Change;
use super::rows::decode_row;
use super::upkeep::{BATCH, chunk_bytes};
use super::writer::unit_row;
use super::{Cache, Error, NewItem, State};
use crate::index::CHUNK;
use crate::store::{
    Batch, CacheId, CacheRecord, ChangeKind, ChangeRecord, ItemRecord, LedgerRecord, Outcome, RequestRecord,
    RequestResult, Store,
};
use crate::types::{Filter, Fingerprint, ItemId};

#[cfg(doc)]
use crate::store::REQUEST_WINDOW;

/// Items that wait to be built in for which a writer waits a little, so that searches need not scan ever more of them.
const CROWDED: u64 = 16_384;
const SLOWED: Duration = Duration::from_millis(250);
/// How long a writer waits for room that is being made.
const PATIENCE: Duration = Duration::from_secs(5);
const NAP: Duration = Duration::from_millis(2);
/// Items that are entered by their uris in one batch.
const ENTERED_TOGETHER: usize = 4096;

/// What is to be stored of one item.
struct Put {
    record: ItemRecord,
    /// In its stored form.
    row: Vec<u8>,
}

/// What is known of an item that is to be replaced or deleted.
pub(super) struct Old {
    pub(super) uri: String,
    pub(super) digest: Fingerprint,
}

/// Items to put, and what else a call of [`Cache::put`] says.
pub struct Upserts<'a> {
    /// The items.
    pub items: Vec<NewItem>,
    /// Further ids that the caller named, for items that did not come so far. Like those of `items` they are given to none that
    /// names no id: the caller may come back with what is meant to be there.
    pub named: &'a [ItemId],
    /// Whether an item takes the place of the one that has its uri. Its own id then does not count.
    pub by_uri: bool,
    /// What makes it one that may come again.
    pub request: Option<Repeatable<'a>>,
}

/// Says what a request is answered, given the outcomes of its items.
pub type Answering<'a> = dyn Fn(&[Result<ItemId, Error>]) -> Vec<RequestResult> + 'a;

/// A request that is answered as before when it comes again.
pub struct Repeatable<'a> {
    /// Its id.
    pub id: &'a str,
    /// Digest of what it asks for.
    pub content: Fingerprint,
    /// What it is answered, given the outcomes of [`Upserts::items`].
    pub answer: &'a Answering<'a>,
}

/// What came of a call of [`Cache::put`].
pub enum Upserted {
    /// One result for each item, in order: its id, or why it was not stored.
    Now(Vec<Result<ItemId, Error>>),
    /// The request has come before, and was answered so.
    Before(Vec<RequestResult>),
}

/// The ids that the items of a call get.
struct Ids {
    /// The one after the largest ever.
    next: ItemId,
    /// Those that the call names.
    named: HashSet<ItemId>,
}

impl Ids {
    /// The id of the next item: its own, or one that is new and that the call does not name. None when there is none left.
    fn give(&mut self, own: Option<ItemId>) -> Option<ItemId> {
        while own.is_none() && self.next.0 < u64::MAX && self.named.contains(&self.next) {
            self.next.0 += 1;
        }
        // The largest number is kept, so that there is always one that is next.
        let id = own.unwrap_or(self.next);
        let after = ItemId(id.0.checked_add(1)?);
        self.next = self.next.max(after);
        Some(id)
    }
}

impl Cache {
    /// Puts items, each under its id or the next one after the largest ever. An id that exists is replaced, also one that an
    /// earlier of these items has.
    ///
    /// * Returns one result for each item, in order: its id, or why it was not stored; the others are.
    ///
    /// # Errors
    /// For the call as a whole, of which then nothing is stored: [`Error::NotWritable`], [`Error::Deleted`], [`Error::Full`], a
    /// store that fails. For an item: [`Error::Dimension`], [`Error::Row`] without direction, [`Error::NoFreeId`].
    pub fn upsert(&self, items: Vec<NewItem>) -> Result<Vec<Result<ItemId, Error>>, Error> {
        self.upsert_beside(items, &[])
    }

    /// As [`Cache::upsert`].
    ///
    /// * `named`: as [`Upserts::named`].
    ///
    /// # Errors
    /// As [`Cache::upsert`].
    pub fn upsert_beside(
        &self,
        items: Vec<NewItem>,
        named: &[ItemId],
    ) -> Result<Vec<Result<ItemId, Error>>, Error> {
        match self.put(Upserts { items, named, by_uri: false, request: None })? {
            Upserted::Now(results) => Ok(results),
            // Without a request there is none before.
            Upserted::Before(_) => Ok(Vec::new()),
        }
    }

    /// As [`Cache::upsert`], with all there is to say of it.
    ///
    /// # Errors
    /// As [`Cache::upsert`], and [`Error::RequestReused`]. For an item told by its uri: [`Error::NoUri`],
    /// [`Error::AmbiguousUri`].
    pub fn put(&self, upserts: Upserts<'_>) -> Result<Upserted, Error> {
        self.check_writable()?;
        let Upserts { items, named, by_uri, request } = upserts;
        if by_uri {
            self.enter_uris()?;
        }
        let record = self.snapshot().record().clone();
        let prepare = |item: NewItem| {
            if item.embedding.dim() != record.dim {
                let (expected, received) = (record.dim, item.embedding.dim());
                return Err(Error::Dimension { cache: record.name.clone(), expected, received });
            }
            if by_uri && item.record.uri.is_empty() {
                return Err(Error::NoUri);
            }
            let row = unit_row(item.embedding, &record, item.id.unwrap_or(ItemId(0)))?;
            Ok((item.id, Put { record: item.record, row }))
        };
        let named = items.iter().filter_map(|item| item.id).chain(named.iter().copied()).collect();
        // The work that needs no lock is done before it is taken.
        let prepared: Vec<Result<(Option<ItemId>, Put), Error>> = items.into_iter().map(prepare).collect();
        let tags = prepared.iter().flatten().map(|(_, put)| bytes_of_tags(&put.record.tags)).sum::<u64>();
        let bytes = 5 * (prepared.len() * record.dim) as u64 + tags;
        self.wait_for_upkeep(bytes);
        let mut state = self.state()?;
        // Here, where nobody else can be about to store the same.
        if let Some(request) = &request
            && let Some(before) = self.remembered(request.id, &request.content)?
        {
            drop(state);
            self.synced()?;
            return Ok(Upserted::Before(before));
        }
        self.check_room(bytes)?;
        let mut ids = Ids { next: state.record.next_item, named };
        let mut by_uris: HashMap<String, ItemId> = HashMap::new();
        let mut changes = Vec::with_capacity(prepared.len());
        let mut results = Vec::with_capacity(prepared.len());
        for prepared in prepared {
            let mut one = |(id, put): (Option<ItemId>, Put)| {
                let own = match (by_uri, by_uris.get(&put.record.uri)) {
                    (false, _) => id,
                    (true, Some(&here)) => Some(here),
                    (true, None) => self.item_of_uri(&state.record, &put.record.uri)?,
                };
                let id = ids.give(own).ok_or_else(|| Error::NoFreeId(self.name()))?;
                if by_uri {
                    by_uris.insert(put.record.uri.clone(), id);
                }
                changes.push((id, Some(put)));
                Ok(id)
            };
            results.push(prepared.and_then(&mut one));
        }
        self.write(&mut state, changes, |batch, record| {
            let Some(request) = &request else { return Ok(()) };
            record.requests += 1;
            let (number, content, results) = (record.requests, request.content, (request.answer)(&results));
            Ok(batch.put_request(record.id, request.id, &RequestRecord { number, content, results })?)
        })?;
        drop(state);
        self.synced()?;
        Ok(Upserted::Now(results))
    }

    /// What a request was answered, if it is remembered; on disk when this returns.
    ///
    /// * `content`: digest of what it asks for.
    ///
    /// # Errors
    /// [`Error::RequestReused`] if that was something else; [`Error::Store`].
    pub fn answered(&self, id: &str, content: &Fingerprint) -> Result<Option<Vec<RequestResult>>, Error> {
        let before = self.remembered(id, content)?;
        if before.is_some() {
            // Whoever came first may still be waiting for it.
            self.synced()?;
        }
        Ok(before)
    }

    fn remembered(&self, id: &str, content: &Fingerprint) -> Result<Option<Vec<RequestResult>>, Error> {
        match self.store.request(self.id(), id)? {
            Some(record) if record.content != *content => Err(Error::RequestReused(id.to_owned())),
            found => Ok(found.map(|record| record.results)),
        }
    }

    /// Deletes items. One that is not there is not an error.
    ///
    /// * Returns for each id, in order, whether it was there.
    ///
    /// # Errors
    /// Of which nothing is deleted: [`Error::NotWritable`], [`Error::Deleted`], a store that fails.
    pub fn delete(&self, ids: &[ItemId]) -> Result<Vec<bool>, Error> {
        self.check_writable()?;
        let mut state = self.state()?;
        let found = self.write(&mut state, ids.iter().map(|&id| (id, None)).collect(), |_, _| Ok(()))?;
        drop(state);
        self.synced()?;
        Ok(found)
    }

    /// Deletes those of some items that match a filter now.
    ///
    /// * Returns how many they were.
    ///
    /// # Errors
    /// As [`Cache::delete`].
    pub fn delete_matching(&self, ids: &[ItemId], filter: &Filter) -> Result<u64, Error> {
        self.check_writable()?;
        let mut state = self.state()?;
        let items = self.store.items(state.record.id, ids)?;
        let matches = |(&id, item): (&ItemId, Option<ItemRecord>)| {
            item.is_some_and(|item| filter.matches(id, &item.tags)).then_some((id, None))
        };
        let changes = ids.iter().zip(items).filter_map(matches).collect();
        let found = self.write(&mut state, changes, |_, _| Ok(()))?;
        drop(state);
        self.synced()?;
        Ok(found.into_iter().filter(|found| *found).count() as u64)
    }

    /// The one item of a uri, if there is one.
    fn item_of_uri(&self, record: &CacheRecord, uri: &str) -> Result<Option<ItemId>, Error> {
        match self.store.items_of_uri(record.id, uri)?[..] {
            [] => Ok(None),
            [id] => Ok(Some(id)),
            [first, second, ..] => Err(Error::AmbiguousUri { uri: uri.to_owned(), first, second }),
        }
    }

    /// Enters the items of a cache of before layout 4 by their uris, once, while others go on changing it: whatever they put
    /// enters itself, and an entry of what has gone meanwhile does no harm. Cut short, it begins anew the next time.
    fn enter_uris(&self) -> Result<(), Error> {
        if self.state()?.record.uris {
            return Ok(());
        }
        let _one = self.entering.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = {
            let state = self.state()?;
            if state.record.uris {
                return Ok(());
            }
            state.record.id
        };
        let (store, mut count) = (&*self.store, 0);
        let mut batch = store.batch();
        store.scan_items(cache, ItemId(0), |id, item| {
            batch.put_uri(cache, &item.uri, id);
            count += 1;
            if count % ENTERED_TOGETHER == 0 {
                store.commit_unsynced(std::mem::replace(&mut batch, store.batch()))?;
            }
            Ok::<bool, Error>(true)
        })?;
        store.commit_unsynced(batch)?;
        let mut state = self.state()?;
        let record = CacheRecord { uris: true, ..state.record.clone() };
        let mut batch = store.batch();
        batch.put_cache(&record);
        store.commit(batch)?;
        state.record = record;
        Ok(())
    }

    /// Waits for the disk.
    pub(super) fn synced(&self) -> Result<(), Error> {
        self.store.sync()?;
        fail::fail_point!("change::after_sync", |_| std::process::abort());
        Ok(())
    }

    /// Waits a while where changes come quicker than they are built in: until few of them wait, and so many more bytes may be held.
    fn wait_for_upkeep(&self, bytes: u64) {
        let start = Instant::now();
        let crowded = || self.snapshot().delta().items > CROWDED;
        // Between two turns of the work behind it is as if there were none.
        let working = || self.compacting() || start.elapsed() < SLOWED;
        while (self.compacting() && start.elapsed() < SLOWED && crowded())
            || (working() && start.elapsed() < PATIENCE && self.check_room(bytes).is_err())
        {
            std::thread::sleep(NAP);
        }
    }

    /// Whether so many more bytes may be held. Where changes are built in, room to write a generation is kept back, and where places run
    /// out, room for a chunk of new ones: what waits is built into it, and that is what makes room.
    pub(super) fn check_room(&self, bytes: u64) -> Result<(), Error> {
        let (now, budget) = (self.snapshot(), self.budget());
        let index = now.index();
        let places = index.capacity() - index.len() + now.delta().masked as usize;
        let chunk = if places < BATCH { chunk_bytes(&now.frozen) } else { 0 };
        let most = budget.saturating_sub(now.loaded().plan.total()) / 5 * 4;
        let kept = match index.len() >= CHUNK {
            true => (chunk + self.unreserved_writing(&now)).min(most),
            false => 0,
        };
        let held = self.held() + self.reserved.load(Ordering::Relaxed).max(kept);
        if held + bytes > budget { Err(self.full()) } else { Ok(()) }
    }

    /// Bytes that are held: by what is shown, by the changes beside it, and while a generation of them is written.
    pub(super) fn held(&self) -> u64 {
        let now = self.snapshot();
        now.loaded().plan.total() + now.delta().bytes + self.writing.load(Ordering::Relaxed)
    }

    pub(super) fn full(&self) -> Error {
        let (held, budget) = (self.held() >> 20, self.budget() >> 20);
        Error::Full { cache: self.name(), held, budget }
    }

    /// Writes changes in one batch and shows them to readers. Returns for each whether the item was there.
    ///
    /// * `beside`: adds to the batch, when there is one.
    fn write(
        &self,
        state: &mut State,
        changes: Vec<(ItemId, Option<Put>)>,
        beside: impl FnOnce(&mut Batch<'_>, &mut CacheRecord) -> Result<(), Error>,
    ) -> Result<Vec<bool>, Error> {
        let store = &*self.store;
        let mut record = state.record.clone();
        let (mut batch, mut applied) = (store.batch(), Vec::with_capacity(changes.len()));
        // What this very batch has put or deleted before.
        let mut here: HashMap<ItemId, Option<Old>> = HashMap::new();
        // The contents of its items as they are stored.
        let mut before: HashMap<ItemId, Fingerprint> = HashMap::new();
        let mut found = Vec::with_capacity(changes.len());
        for (id, put) in changes {
            let old = match here.remove(&id) {
                Some(old) => old,
                None if id >= record.next_item => None,
                None => {
                    let stored = store.item(record.id, id)?;
                    before.extend(stored.as_ref().map(|item| (id, item.digest)));
                    stored.map(|item| Old { uri: item.uri, digest: item.digest })
                }
            };
            found.push(old.is_some());
            if old.is_none() && put.is_none() {
                here.insert(id, None);
                continue;
            }
            if let Some(old) = &old {
                forget(store, &mut batch, &record, id, old, put.as_ref().map(|put| &put.record))?;
            }
            record.sequence += 1;
            let kind = if put.is_some() { ChangeKind::Upsert } else { ChangeKind::Delete };
            batch.put_change(record.id, record.sequence, &ChangeRecord { kind, item: id });
            record.items = record.items + u64::from(put.is_some()) - u64::from(old.is_some());
            record.next_item = record.next_item.max(ItemId(id.0.saturating_add(1)));
            match put {
                Some(put) => {
                    batch.put_item(record.id, id, &put.record, &put.row, record.sequence);
                    let Put { record: ItemRecord { uri, digest, tags, .. }, row } = put;
                    here.insert(id, Some(Old { uri, digest }));
                    // The row as it will be read back, f16 included.
                    applied.push((id, Some((decode_row(&row, record.rows), Tags::new(tags)))));
                }
                None => {
                    batch.delete_item(record.id, id);
                    here.insert(id, None);
                    applied.push((id, None));
                }
            }
        }
        if applied.is_empty() {
            return Ok(found);
        }
        know_contents(store, &mut batch, record.id, &before, &here)?;
        beside(&mut batch, &mut record)?;
        self.commit_changes(state, batch, record, applied)?;
        Ok(found)
    }

    /// Commits a batch of changes and shows them to readers.
    ///
    /// * `record`: the cache's with them.
    pub(super) fn commit_changes(
        &self,
        state: &mut State,
        mut batch: Batch<'_>,
        record: CacheRecord,
        changes: Vec<Change>,
    ) -> Result<(), Error> {
        batch.put_cache(&record);
        fail::fail_point!("change::before_commit", |_| std::process::abort());
        self.store.commit_unsynced(batch)?;
        fail::fail_point!("change::after_commit", |_| std::process::abort());
        let frozen = self.snapshot().frozen.clone();
        state.overlay.apply(&frozen.index, changes, record.sequence);
        state.record = record;
        self.show(&frozen, &state.overlay, &state.record);
        Ok(())
    }
}

/// Writes down which items have which contents after a batch, so that a later build neither stores a content once more nor takes a
/// file for a duplicate of what is gone. The first item that has a content stays known for it.
///
/// * `before`: contents of the batch's items as they are stored. `after`: the items as it leaves them.
fn know_contents(
    store: &Store,
    batch: &mut Batch<'_>,
    cache: CacheId,
    before: &HashMap<ItemId, Fingerprint>,
    after: &HashMap<ItemId, Option<Old>>,
) -> Result<(), Error> {
    let digest_of = |id: &ItemId| after.get(id).and_then(|item| Some(item.as_ref()?.digest));
    let mut free: HashSet<Fingerprint> = HashSet::new();
    for (id, digest) in before {
        if digest_of(id) != Some(*digest) && store.item_of_digest(cache, digest)? == Some(*id) {
            batch.delete_digest(cache, digest);
            free.insert(*digest);
        }
    }
    let mut put: Vec<(ItemId, Fingerprint)> =
        after.keys().filter_map(|id| Some((*id, digest_of(id)?))).collect();
    put.sort_unstable_by_key(|(id, _)| *id);
    let mut taken: HashSet<Fingerprint> = HashSet::new();
    for (id, digest) in put {
        let known = store.item_of_digest(cache, &digest)?.filter(|_| !free.contains(&digest));
        if known.is_none() && taken.insert(digest) {
            batch.put_digest(cache, &digest, id);
        }
    }
    Ok(())
}

/// Takes an item's uri, and what a build remembers of its file, out of the ledger, so that a later run does not say that the file is
/// stored.
///
/// * `new`: what takes its place, if anything does.
pub(super) fn forget(
    store: &Store,
    batch: &mut Batch<'_>,
    cache: &CacheRecord,
    id: ItemId,
    old: &Old,
    new: Option<&ItemRecord>,
) -> Result<(), Error> {
    if new.is_none_or(|new| new.uri != old.uri) {
        batch.delete_uri(cache.id, &old.uri, id);
    }
    // Whatever became of the file since: an item that is not of it is not replaced when it is read again.
    if new.is_none_or(|new| new.uri != old.uri)
        && let Some(unit) = store.ledger_unit(cache.id, &old.uri)?
        && unit.item == Some(id)
    {
        let outcome = match unit.outcome {
            Outcome::Stored(stored) if stored == id => Outcome::Deleted,
            other => other,
        };
        batch.put_ledger(cache.id, &LedgerRecord { outcome, item: None, content: None, ..unit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn given(next: u64, wished: &[Option<u64>]) -> Vec<Option<u64>> {
        let named = wished.iter().flatten().map(|&id| ItemId(id)).collect();
        let mut ids = Ids { next: ItemId(next), named };
        wished.iter().map(|id| ids.give(id.map(ItemId)).map(|id| id.0)).collect()
    }

    #[test]
    fn an_id_that_is_named_is_not_given_to_an_item_without_one() {
        assert_eq!(given(5, &[None, Some(5)]), [Some(6), Some(5)]);
        assert_eq!(given(5, &[None, None, Some(6), Some(5)]), [Some(7), Some(8), Some(6), Some(5)]);
        assert_eq!(given(5, &[None, Some(7), None, Some(500)]), [Some(5), Some(7), Some(8), Some(500)]);
        let last = u64::MAX - 1;
        assert_eq!(given(last, &[None, Some(last)]), [None, Some(last)], "the largest number is no id");
        assert_eq!(given(last, &[None, None, Some(u64::MAX)]), [Some(last), None, None]);
        assert_eq!(given(0, &[Some(last), None]), [Some(last), None]);
    }

    proptest! {
        #[test]
        fn given_ids_are_new_and_nobody_elses(
            next in prop_oneof![0u64..20, u64::MAX - 20..=u64::MAX],
            wished in prop::collection::vec(
                prop::option::of(prop_oneof![0u64..20, u64::MAX - 20..=u64::MAX]), 0..30),
        ) {
            let given = given(next, &wished);
            let mut free = HashSet::new();
            for (wished, given) in wished.iter().zip(&given) {
                match (wished, given) {
                    (Some(id), given) => prop_assert_eq!(*given, (*id < u64::MAX).then_some(*id)),
                    (None, Some(id)) => {
                        prop_assert!(*id >= next && *id < u64::MAX);
                        prop_assert!(free.insert(*id), "{} was given twice", id);
                    }
                    (None, None) => {}
                }
            }
            prop_assert!(wished.iter().flatten().all(|id| !free.contains(id)));
        }
    }
}
