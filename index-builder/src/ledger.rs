//! What is done, and therefore what is pending: the only authority on resuming.
//!
//! The ledger lies in the store, in the same batch as the items it speaks of, so the two cannot disagree. A unit is
//! pending when the ledger does not know it, or knows it with another stamp: its file has changed since. A unit that
//! was bad and has not changed is not tried again, unless asked; one that could not be read is tried again by every run. An
//! archive of which all is done is known as a whole, and not opened.
//!
//! A [`Judge`] is shown everything that the inputs hold, in order, and counts it all: [`Standing`] adds up to it.

use std::collections::{BTreeMap, HashSet};

use viscache::cache::Writer;
use viscache::store::{ArchiveRecord, CacheId, CacheRecord, LedgerRecord, Outcome, Stamp, Store};
use viscache::types::Fingerprint;

use crate::discover::{self, Found, Refusal, Unit};
use crate::sorted::Sorter;

/// How the inputs of a run stand, before anything is done.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Standing {
    /// Everything there is: files, archives, members of archives, lines of lists that name nothing.
    pub inputs: u64,
    /// Archives looked into, or done as a whole before. A damaged one counts as unreadable.
    pub archives: u64,
    /// Done in an earlier run.
    pub done: u64,
    /// Refused in an earlier run and unchanged since.
    pub bad: u64,
    /// Could not even be looked at: a dangling link, a damaged archive.
    pub unreadable: u64,
    /// Passed over, by ending and reason.
    pub passed: BTreeMap<String, u64>,
    /// Texts and tables beside pictures, by ending.
    pub beside: BTreeMap<String, u64>,
    /// Left out by request, by ending.
    pub ignored: BTreeMap<String, u64>,
    /// Still to do.
    pub pending: u64,
    /// Named twice by the inputs.
    pub repeated: u64,
}

impl Standing {
    /// What is not embedded and was passed over.
    pub fn passed_over(&self) -> u64 {
        self.passed.values().sum()
    }

    /// Whether every input has come to one end.
    pub fn adds_up(&self) -> bool {
        let sum = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>();
        let settled = self.archives + self.done + self.bad + self.unreadable + self.repeated + self.pending;
        self.inputs == settled + sum(&self.passed) + sum(&self.beside) + sum(&self.ignored)
    }
}

/// What a unit was counted as before it was taken up again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// One that failed.
    Failed,
    /// A duplicate.
    Duplicate,
}

/// What is to be done with something that the inputs hold.
#[derive(Debug)]
pub enum Work {
    /// To be embedded.
    Unit {
        /// What.
        unit: Unit,
        /// What the first pass counted it as, in a second one.
        earlier: Option<Again>,
    },
    /// To be put into the ledger.
    Note {
        /// What.
        uri: String,
        /// Its stamp.
        stamp: Stamp,
        /// Why it gives no unit.
        refusal: Refusal,
    },
    /// An archive begins.
    Begin,
    /// An archive has been read to its end. What its members came to before this run.
    Archive {
        /// Its name.
        uri: String,
        /// Its stamp.
        stamp: Stamp,
        /// So far.
        record: ArchiveRecord,
    },
}

/// Decides about everything that the inputs hold.
pub struct Judge<'a> {
    /// The store and the cache in it, if there are any yet.
    place: Option<(&'a Store, CacheRecord)>,
    retry_bad: bool,
    standing: Standing,
    /// Names seen, by the first half of their digests.
    seen: HashSet<u128>,
    /// Of those, the pending ones, where a second pass may have to know them.
    pending: Option<HashSet<u128>>,
    /// In a second pass, what the first one saw.
    first: Option<Box<Judge<'a>>>,
    /// What the second pass has taken up again.
    taken: HashSet<u128>,
    /// What was met in the archive under way.
    archive: ArchiveRecord,
    /// That archive's name.
    open: Option<u128>,
    /// Whether a later run has to look into it again.
    reopen: bool,
}

impl<'a> Judge<'a> {
    /// * `retry_bad`: whether units that were refused are tried again.
    pub fn new(place: Option<(&'a Store, CacheRecord)>, retry_bad: bool) -> Self {
        Judge {
            place,
            retry_bad,
            standing: Standing::default(),
            seen: HashSet::new(),
            pending: None,
            first: None,
            taken: HashSet::new(),
            archive: ArchiveRecord::default(),
            open: None,
            reopen: false,
        }
    }

    /// For a pass that may be followed by another.
    pub fn remembering(self) -> Self {
        Judge { pending: Some(HashSet::new()), ..self }
    }

    /// For a second pass over the same inputs: of what the first one saw, only what failed, or lost what it relied on.
    pub fn again(first: Judge<'a>, cache: CacheRecord) -> Self {
        let place = first.place.as_ref().map(|(store, _)| (*store, cache));
        Judge { first: Some(Box::new(first)), ..Judge::new(place, false) }
    }

    /// What has been counted: in a second pass, by the first.
    pub fn standing(self) -> Standing {
        self.first.map_or(self.standing, |first| first.standing)
    }

    /// Whether all of an archive is done, and nothing has taken back what its duplicates rely on.
    pub fn is_done(&mut self, uri: &str, stamp: Stamp) -> anyhow::Result<bool> {
        self.standing.inputs += 1;
        if !self.is_new(uri) {
            // Named twice, and so would be all its members.
            self.standing.repeated += 1;
            return Ok(true);
        }
        self.standing.archives += 1;
        (self.archive, self.reopen, self.open) = (ArchiveRecord::default(), false, Some(key(uri)));
        let Some((store, cache)) = &self.place else { return Ok(false) };
        let known = store.ledger_unit(cache.id, uri)?.filter(|known| known.stamp == stamp);
        let Some(LedgerRecord { outcome: Outcome::Archive(archive), .. }) = known else { return Ok(false) };
        let relied_on = archive.duplicates > 0 && archive.as_of != (cache.replaced, cache.sequence);
        if relied_on || (archive.bad > 0 && self.retry_bad) {
            return Ok(false);
        }
        let standing = &mut self.standing;
        standing.done += archive.stored + archive.duplicates;
        standing.bad += archive.bad;
        standing.repeated += archive.repeated;
        standing.inputs += archive.stored + archive.duplicates + archive.bad + archive.repeated;
        for (ending, reason, count) in archive.passed {
            *standing.passed.entry(of_kind(&ending, &reason)).or_default() += count;
            standing.inputs += count;
        }
        for (ending, count) in archive.beside {
            *standing.beside.entry(ending).or_default() += count;
            standing.inputs += count;
        }
        Ok(true)
    }

    /// Counts the next thing, and says what is to be done with it, if anything is.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn judge(&mut self, found: Found) -> anyhow::Result<Option<Work>> {
        if self.first.is_some() {
            return match found {
                Found::Unit(unit) => self.first.as_mut().map_or(Ok(None), |first| first.unit_again(unit)),
                _ => Ok(None),
            };
        }
        match found {
            Found::Unit(unit) => {
                self.standing.inputs += 1;
                self.unit(unit)
            }
            Found::Not { uri, stamp, refusal } => self.not(uri, stamp, refusal),
            Found::Beside(ending) => {
                self.standing.inputs += 1;
                *self.standing.beside.entry(ending.clone()).or_default() += 1;
                *self.archive.beside.entry(ending).or_default() += 1;
                Ok(None)
            }
            Found::Ignored(ending) => {
                self.standing.inputs += 1;
                *self.standing.ignored.entry(ending).or_default() += 1;
                // Another run may not leave it out.
                self.reopen = true;
                Ok(None)
            }
            Found::Archive { uri, stamp, whole } => {
                let record = std::mem::take(&mut self.archive);
                self.open = None;
                Ok((whole && !self.reopen).then_some(Work::Archive { uri, stamp, record }))
            }
        }
    }

    fn unit(&mut self, unit: Unit) -> anyhow::Result<Option<Work>> {
        if !self.is_new(&unit.uri) {
            self.standing.repeated += 1;
            self.archive.repeated += 1;
            return Ok(None);
        }
        let known = self.known(&unit)?.map(|known| known.outcome);
        match known {
            Some(Outcome::Bad(_)) if !self.retry_bad => {
                self.standing.bad += 1;
                self.archive.bad += 1;
            }
            Some(Outcome::Stored(_) | Outcome::Deleted) => {
                self.standing.done += 1;
                self.archive.stored += 1;
            }
            Some(Outcome::Duplicate(_)) => {
                self.standing.done += 1;
                self.archive.duplicates += 1;
            }
            // An archive or something foreign had its name before.
            None | Some(Outcome::Bad(_) | Outcome::Failed(_) | Outcome::Passed(_) | Outcome::Archive(_)) => {
                self.standing.pending += 1;
                if let Some(pending) = &mut self.pending {
                    pending.insert(key(&unit.uri));
                }
                return Ok(Some(Work::Unit { unit, earlier: None }));
            }
        }
        Ok(None)
    }

    /// Asked of the judge of the first pass: whether a unit is to be taken up again.
    fn unit_again(&mut self, unit: Unit) -> anyhow::Result<Option<Work>> {
        let (Some((store, cache)), key) = (&self.place, key(&unit.uri)) else { return Ok(None) };
        let known = store.ledger_unit(cache.id, &unit.uri)?;
        let pending = self.pending.as_ref().is_some_and(|pending| pending.contains(&key));
        let earlier = match known {
            // Taken for a duplicate of what was gone when it came to be written.
            None if pending => Some(Again::Duplicate),
            Some(LedgerRecord { outcome: Outcome::Failed(_), .. }) if pending => Some(Again::Failed),
            Some(LedgerRecord { outcome: Outcome::Duplicate(_), digest: Some(digest), .. })
                if store.item_of_digest(cache.id, &digest)?.is_none() =>
            {
                pending.then_some(Again::Duplicate)
            }
            _ => return Ok(None),
        };
        // Named twice, it is taken up once.
        if !self.taken.insert(key) {
            return Ok(None);
        }
        if earlier.is_none() {
            // It was one of an earlier run, and counted as done: by itself, or with its archive.
            self.standing.done -= 1;
            self.standing.pending += 1;
        }
        Ok(Some(Work::Unit { unit, earlier }))
    }

    fn not(&mut self, uri: String, stamp: Stamp, refusal: Refusal) -> anyhow::Result<Option<Work>> {
        if self.open == Some(key(&uri)) {
            // Not a member but the archive itself, which was counted when it was opened.
            self.standing.archives -= 1;
        } else {
            self.standing.inputs += 1;
            if !self.is_new(&uri) {
                self.standing.repeated += 1;
                return Ok(None);
            }
        }
        match &refusal {
            Refusal::Passed(reason) => {
                // Of a member, not of its archive.
                let ending = discover::ending_of(uri.rsplit('!').next().unwrap_or(&uri).as_bytes());
                *self.standing.passed.entry(of_kind(&ending, reason)).or_default() += 1;
                match self.archive.passed.iter_mut().find(|(e, r, _)| (e, r) == (&ending, reason)) {
                    Some((_, _, count)) => *count += 1,
                    None => self.archive.passed.push((ending, reason.clone(), 1)),
                }
            }
            Refusal::Bad(_) => {
                self.standing.unreadable += 1;
                self.archive.bad += 1;
            }
            Refusal::Failed(_) => {
                self.standing.unreadable += 1;
                self.reopen = true;
            }
        }
        let known = match &self.place {
            Some((store, cache)) => store.ledger_unit(cache.id, &uri)?,
            None => None,
        };
        let noted = known.is_some_and(|known| known.stamp == stamp && known.outcome == outcome_of(&refusal));
        Ok((!noted).then_some(Work::Note { uri, stamp, refusal }))
    }

    /// What the ledger says of a unit, if that still holds.
    fn known(&self, unit: &Unit) -> anyhow::Result<Option<LedgerRecord>> {
        let Some((store, cache)) = &self.place else { return Ok(None) };
        let record = store.ledger_unit(cache.id, &unit.uri)?.filter(|record| record.stamp == unit.stamp);
        // The item that a duplicate relied on may have got other content since.
        match record.as_ref().and_then(|record| record.digest) {
            Some(digest) if store.item_of_digest(cache.id, &digest)?.is_none() => Ok(None),
            _ => Ok(record),
        }
    }

    /// Whether a name was met in this run.
    fn has_seen(&self, uri: &str) -> bool {
        self.first.as_deref().unwrap_or(self).seen.contains(&key(uri))
    }

    /// Whether a name is seen for the first time.
    fn is_new(&mut self, uri: &str) -> bool {
        self.seen.insert(key(uri))
    }
}

/// The first half of a name's digest: two of ten million names are alike with a probability of 10⁻²⁵.
fn key(uri: &str) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&Fingerprint::of(uri.as_bytes()).as_bytes()[..16]);
    u128::from_le_bytes(half)
}

/// What the ledger keeps of something that gives no unit.
pub fn outcome_of(refusal: &Refusal) -> Outcome {
    match refusal {
        Refusal::Bad(reason) => Outcome::Bad(reason.clone()),
        Refusal::Failed(reason) => Outcome::Failed(reason.clone()),
        Refusal::Passed(reason) => Outcome::Passed(reason.clone()),
    }
}

/// An ending and what is said of it, as the summary says it.
fn of_kind(ending: &str, reason: &str) -> String {
    format!("{ending}: {reason}")
}

/// Takes out of the ledger what it says of members that an archive no longer has: of archives that this run has read to their
/// end.
///
/// * `archives`: their names. `judge`: the one who met every name of the run.
///
/// # Errors
/// When the store cannot be read or written.
pub fn forget_members(
    store: &Store,
    writer: &mut Writer<'_>,
    archives: &HashSet<String>,
    judge: &Judge<'_>,
) -> anyhow::Result<()> {
    let cache = writer.record().id;
    let mut gone = Vec::new();
    store.scan_ledger(cache, |record| {
        let of_these = record.uri.split_once('!').is_some_and(|(archive, _)| archives.contains(archive));
        let is_note = matches!(record.outcome, Outcome::Bad(_) | Outcome::Failed(_) | Outcome::Passed(_));
        if of_these && is_note && !judge.has_seen(&record.uri) {
            gone.push(record.uri);
        }
        Ok::<bool, viscache::store::Error>(true)
    })?;
    let mut batch = store.batch();
    gone.iter().for_each(|uri| batch.delete_ledger(cache, uri));
    if !gone.is_empty() {
        store.commit(batch)?;
    }
    Ok(())
}

/// One line of the ledger about an input that was not stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Line {
    /// Its name.
    pub uri: String,
    /// Why.
    pub reason: String,
    /// How it ended.
    pub outcome: Missed,
}

/// How an input ended that was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// It is no good.
    Bad,
    /// The next run tries it again.
    Failed,
    /// It was passed over.
    Passed,
}

/// Bytes of lines that are held while they are sorted.
const HELD: usize = 64 << 20;

/// Visits the inputs that were not stored, by name. However many there are, few are held at a time.
///
/// # Errors
/// When the store cannot be read; what `visit` fails with.
pub fn not_stored(
    store: &Store,
    cache: CacheId,
    visit: impl FnMut(Line) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut lines = Sorter::new(HELD);
    store.scan_ledger(cache, |record| {
        let (outcome, reason) = match record.outcome {
            Outcome::Bad(reason) => (Missed::Bad, reason),
            Outcome::Failed(reason) => (Missed::Failed, reason),
            Outcome::Passed(reason) => (Missed::Passed, reason),
            Outcome::Stored(_) | Outcome::Duplicate(_) | Outcome::Deleted | Outcome::Archive(_) => {
                return Ok(true);
            }
        };
        let line = Line { uri: record.uri, reason, outcome };
        let bytes = size_of::<Line>() + line.uri.len() + line.reason.len();
        lines.push(line, bytes)?;
        Ok::<bool, anyhow::Error>(true)
    })?;
    lines.each(visit)
}
