//! Which slots have which tag: one bitmap a name and value, in a table that is searched as it lies in memory.
//!
//! ```text
//! table   magic "viscTAGS" 8 · version 4 · slots 4 · entries 8 · ends 8 × entries · entries …
//! entry   name length 4 · value length 4 · name · value · bitmap        ordered by name, then value
//! ```
//!
//! Numbers are little-endian. An end is where its entry ends, counted from the first entry's beginning. A value length of
//! [`ANY`] marks the entry of a name with whatever value; it comes before those with one. Bitmaps are in Roaring's portable
//! format (github.com/RoaringBitmap/RoaringFormatSpec). The store's checksums guard the bytes; here every length is checked
//! when a table is opened, and a bitmap when it is read, so that arbitrary bytes give an error and never a panic.
//!
//! Bitmaps are read for each filter and not once for all: a table in which every item has a value of its own would take
//! several times its length, and a bitmap of a million slots is read in the time of a few rows.

use std::collections::BTreeMap;
use std::ops::Range;

use roaring::RoaringBitmap;

use super::Error;
use crate::index::{AlignedBytes, Index};
use crate::store::{self, CacheRecord, Store};
use crate::types::{Filter, ItemId};

const MAGIC: &[u8; 8] = b"viscTAGS";
/// Version of the format; another one is refused.
const VERSION: u32 = 1;
const HEADER_LEN: usize = 24;
const ENTRY_HEADER_LEN: usize = 8;
/// What gathering tags takes, in lengths of the table that it makes: a map's nodes and small bitmaps are more than their
/// bytes.
pub(super) const TAG_COPIES: u64 = 4;
/// In the place of a value's length.
const ANY: u32 = u32::MAX;

/// Gathers the slots of every tag and writes them as a table.
#[derive(Default)]
pub(super) struct TagWriter {
    slots: u32,
    /// By name, then value; `None` for whatever value.
    bitmaps: BTreeMap<String, BTreeMap<Option<String>, RoaringBitmap>>,
}

impl TagWriter {
    /// Adds the tags of a slot.
    fn put(&mut self, slot: u32, tags: BTreeMap<String, String>) {
        for (name, value) in tags {
            let values = self.bitmaps.entry(name).or_default();
            for value in [None, Some(value)] {
                values.entry(value).or_default().insert(slot);
            }
        }
    }

    /// The table.
    pub(super) fn finish(self) -> Vec<u8> {
        let (mut ends, mut entries) = (Vec::new(), Vec::new());
        for (name, values) in &self.bitmaps {
            for (value, bitmap) in values {
                let value_len = value.as_ref().map_or(ANY, |value| value.len() as u32);
                entries.extend_from_slice(&(name.len() as u32).to_le_bytes());
                entries.extend_from_slice(&value_len.to_le_bytes());
                entries.extend_from_slice(name.as_bytes());
                entries.extend_from_slice(value.as_deref().unwrap_or_default().as_bytes());
                bitmap.serialize_into(&mut entries).expect("writing to memory does not fail");
                ends.extend_from_slice(&(entries.len() as u64).to_le_bytes());
            }
        }
        let mut table = Vec::with_capacity(HEADER_LEN + ends.len() + entries.len());
        table.extend_from_slice(MAGIC);
        table.extend_from_slice(&VERSION.to_le_bytes());
        table.extend_from_slice(&self.slots.to_le_bytes());
        table.extend_from_slice(&(ends.len() as u64 / 8).to_le_bytes());
        table.append(&mut ends);
        table.append(&mut entries);
        table
    }
}

/// The table of some items, from their records as they are stored now. What was changed after the generation was made is
/// masked there, whatever the table says of it.
///
/// * `items`: with their slots, by ascending ids. `slots`: how many there are.
///
/// # Errors
/// [`Error::Store`].
pub(super) fn of_items(
    store: &Store,
    record: &CacheRecord,
    items: impl Iterator<Item = (ItemId, u32)>,
    slots: usize,
) -> Result<Vec<u8>, Error> {
    let (mut writer, mut items) =
        (TagWriter { slots: slots as u32, ..TagWriter::default() }, items.peekable());
    if let Some(&(first, _)) = items.peek() {
        store.scan_items(record.id, first, |id, item| {
            while items.next_if(|(wanted, _)| *wanted < id).is_some() {}
            if let Some((_, slot)) = items.next_if(|(wanted, _)| *wanted == id) {
                writer.put(slot, item.tags);
            }
            Ok::<bool, Error>(items.peek().is_some())
        })?;
    }
    Ok(writer.finish())
}

/// A table that has been checked.
pub(super) struct TagTable {
    bytes: AlignedBytes,
    slots: u32,
    /// Where the entries begin.
    entries: usize,
    count: usize,
}

/// What an entry is of. Ordered as the entries are.
type Name<'a> = (&'a [u8], Option<&'a [u8]>);

impl TagTable {
    /// Checks bytes and takes them.
    ///
    /// * `slots`: those of the generation.
    ///
    /// # Errors
    /// [`store::Error::Damaged`].
    pub(super) fn open(bytes: AlignedBytes, slots: usize) -> Result<Self, Error> {
        let header = bytes.as_slice().first_chunk::<HEADER_LEN>().filter(|header| header.starts_with(MAGIC));
        let header = header.ok_or_else(|| damaged("it does not begin like one"))?;
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if word(8) != VERSION {
            return Err(damaged(format!("it has version {}, this program reads {VERSION}", word(8))));
        }
        if word(12) as usize != slots {
            return Err(damaged(format!("it is of {} slots, the generation has {slots}", word(12))));
        }
        let count = u64::from(word(16)) | u64::from(word(20)) << 32;
        let count = usize::try_from(count).ok().filter(|&count| count <= bytes.as_slice().len() / 8);
        let count = count.ok_or_else(|| damaged("it is cut short"))?;
        let table = TagTable { slots: word(12), entries: HEADER_LEN + 8 * count, count, bytes };
        table.check()?;
        Ok(table)
    }

    /// The table of the items of an index, from their records as they are stored now.
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Index`] when there is no memory.
    pub(super) fn of_items(store: &Store, record: &CacheRecord, index: &Index) -> Result<Self, Error> {
        let items = index.items_from(ItemId(0)).map(|(id, slot)| (id, slot.0));
        let bytes = of_items(store, record, items, index.len())?;
        TagTable::open(AlignedBytes::copy_of(&bytes)?, index.len())
    }

    /// Every entry must lie behind the one before, hold its texts, and be of something later.
    fn check(&self) -> Result<(), Error> {
        let len = self
            .bytes
            .as_slice()
            .len()
            .checked_sub(self.entries)
            .ok_or_else(|| damaged("it is cut short"))?;
        let (mut before, mut last) = (0, None);
        for at in 0..self.count {
            let end = self.end(at);
            if end < before || end > len as u64 {
                return Err(damaged(format!("entry {at} does not lie inside it")));
            }
            before = end;
            let texts = self.split(at).map(|(name, _)| name);
            let name = texts.ok_or_else(|| damaged(format!("entry {at} is cut short")))?;
            if last.is_some_and(|last| last >= name) {
                return Err(damaged(format!("entry {at} is out of order")));
            }
            last = Some(name);
        }
        match before == len as u64 {
            true => Ok(()),
            false => Err(damaged("something follows its last entry")),
        }
    }

    /// Bytes it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.as_slice().len() as u64
    }

    /// Where an entry ends, as written.
    fn end(&self, at: usize) -> u64 {
        let mut end = [0; 8];
        end.copy_from_slice(&self.bytes.as_slice()[HEADER_LEN + 8 * at..][..8]);
        u64::from_le_bytes(end)
    }

    /// Where an entry lies. Its end and the one before have been checked.
    fn range(&self, at: usize) -> Range<usize> {
        let begin = if at == 0 { 0 } else { self.end(at - 1) as usize };
        self.entries + begin..self.entries + self.end(at) as usize
    }

    /// What an entry is of, and its bitmap; nothing if its texts do not fit it.
    fn split(&self, at: usize) -> Option<(Name<'_>, &[u8])> {
        let (head, rest) = self.bytes.as_slice()[self.range(at)].split_at_checked(ENTRY_HEADER_LEN)?;
        let (name_len, value_len) = head.split_at(4);
        let len = |bytes: &[u8]| Some(u32::from_le_bytes(bytes.try_into().ok()?));
        let (name, rest) = rest.split_at_checked(len(name_len)? as usize)?;
        match len(value_len)? {
            ANY => Some(((name, None), rest)),
            value_len => {
                let (value, rest) = rest.split_at_checked(value_len as usize)?;
                Some(((name, Some(value)), rest))
            }
        }
    }

    /// The slots that have a tag: of this value, or of any.
    fn slots(&self, name: &str, value: Option<&str>) -> Result<RoaringBitmap, Error> {
        let wanted: Name<'_> = (name.as_bytes(), value.map(str::as_bytes));
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let (found, bitmap) = self.split(middle).ok_or_else(|| damaged("an entry is cut short"))?;
            match found.cmp(&wanted) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return self.bitmap(middle, bitmap),
            }
        }
        Ok(RoaringBitmap::new())
    }

    fn bitmap(&self, at: usize, bytes: &[u8]) -> Result<RoaringBitmap, Error> {
        let bitmap = RoaringBitmap::deserialize_from(bytes);
        let bitmap = bitmap.map_err(|e| damaged(format!("the bitmap of entry {at}: {e}")))?;
        match bitmap.max().is_none_or(|slot| slot < self.slots) {
            true => Ok(bitmap),
            false => Err(damaged(format!("the bitmap of entry {at} has slots beyond {}", self.slots))),
        }
    }

    /// The slots whose items match.
    ///
    /// # Errors
    /// [`store::Error::Damaged`] for a bitmap that cannot be read.
    pub(super) fn matching(&self, filter: &Filter, index: &Index) -> Result<RoaringBitmap, Error> {
        self.evaluate(filter, &|id| index.slot(id).map(|slot| slot.0))
    }

    fn evaluate(
        &self,
        filter: &Filter,
        slot: &impl Fn(ItemId) -> Option<u32>,
    ) -> Result<RoaringBitmap, Error> {
        let all = || {
            let mut all = RoaringBitmap::new();
            all.insert_range(0..self.slots);
            all
        };
        Ok(match filter {
            Filter::Tag { key, values } => {
                let mut slots = RoaringBitmap::new();
                for value in values {
                    slots |= self.slots(key, Some(value))?;
                }
                slots
            }
            Filter::HasTag(key) => self.slots(key, None)?,
            // Ids and slots ascend together.
            Filter::Ids(ids) => ids.iter().filter_map(|&id| slot(id)).collect(),
            Filter::All(filters) => {
                let mut slots: Option<RoaringBitmap> = None;
                for filter in filters {
                    slots = Some(match (slots, filter) {
                        // Taking away costs less than turning round.
                        (Some(slots), Filter::Not(filter)) => slots - self.evaluate(filter, slot)?,
                        (Some(slots), filter) => slots & self.evaluate(filter, slot)?,
                        (None, filter) => self.evaluate(filter, slot)?,
                    });
                }
                slots.unwrap_or_else(all)
            }
            Filter::Any(filters) => {
                let mut slots = RoaringBitmap::new();
                for filter in filters {
                    slots |= self.evaluate(filter, slot)?;
                }
                slots
            }
            Filter::Not(filter) => all() - self.evaluate(filter, slot)?,
        })
    }
}

fn damaged(why: impl Into<String>) -> Error {
    store::Error::Damaged { what: "table of tags".into(), why: why.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 3] = ["", "a", "ab"];
    const VALUES: [&str; 4] = ["", "b", "x", "ü\""];

    fn tags() -> impl Strategy<Value = BTreeMap<String, String>> {
        let text = |of: &'static [&'static str]| prop::sample::select(of).prop_map(str::to_owned);
        prop::collection::btree_map(text(&NAMES), text(&VALUES), 0..3)
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let text = |of: &'static [&'static str]| prop::sample::select(of).prop_map(str::to_owned);
        let unknown = prop_oneof![9 => text(&NAMES), 1 => Just("unknown".to_owned())];
        let leaf = prop_oneof![
            (unknown.clone(), prop::collection::btree_set(text(&VALUES), 0..3))
                .prop_map(|(key, values)| Filter::Tag { key, values }),
            unknown.prop_map(Filter::HasTag),
            prop::collection::btree_set((0u64..200).prop_map(ItemId), 0..20).prop_map(Filter::Ids),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Filter::All),
                prop::collection::vec(inner.clone(), 0..4).prop_map(Filter::Any),
                inner.prop_map(|filter| Filter::Not(Box::new(filter))),
            ]
        })
    }

    fn open(bytes: &[u8], slots: usize) -> Result<TagTable, Error> {
        TagTable::open(AlignedBytes::copy_of(bytes).unwrap(), slots)
    }

    fn table(items: &[BTreeMap<String, String>]) -> Vec<u8> {
        let mut writer = TagWriter { slots: items.len() as u32, ..TagWriter::default() };
        items.iter().zip(0..).for_each(|(tags, slot)| writer.put(slot, tags.clone()));
        writer.finish()
    }

    proptest! {
        #[test]
        fn the_table_says_of_all_what_the_filter_says_of_one(
            items in prop::collection::vec(tags(), 0..90), filter in filter()
        ) {
            // The item at slot s has id 2s + 1: ids between are of no item.
            let table = open(&table(&items), items.len()).unwrap();
            let slot = |ItemId(id): ItemId| Some((id / 2) as u32).filter(|&s| id % 2 == 1 && (s as usize) < items.len());
            let found: Vec<u32> = table.evaluate(&filter, &slot).unwrap().iter().collect();
            let one = |(s, tags): (usize, &BTreeMap<_, _>)| filter.matches(ItemId(2 * s as u64 + 1), tags).then_some(s as u32);
            let expected: Vec<u32> = items.iter().enumerate().filter_map(one).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn damaged_and_arbitrary_bytes_give_errors(
            items in prop::collection::vec(tags(), 1..40), filter in filter(),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(), tail in prop::collection::vec(any::<u8>(), 0..80), cuts in any::<bool>()
        ) {
            let mut bytes = table(&items);
            flips.iter().for_each(|(at, byte)| *at.get_mut(&mut bytes) = *byte);
            if cuts {
                bytes.truncate(cut.index(bytes.len()));
                bytes.extend(&tail);
            }
            let slot = |ItemId(id): ItemId| Some(id as u32).filter(|&s| (s as usize) < items.len());
            if let Ok(table) = open(&bytes, items.len())
                && let Ok(slots) = table.evaluate(&filter, &slot)
            {
                prop_assert!(slots.max().is_none_or(|slot| (slot as usize) < items.len()));
            }
            let _ = open(&tail, 3).map(|table| table.evaluate(&filter, &slot).is_ok());
        }
    }

    #[test]
    fn bytes_on_disk() {
        let tags =
            |pairs: &[(&str, &str)]| pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        let bytes = table(&[tags(&[("k", "v")]), tags(&[])]);
        let bitmap = [58, 48, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0];
        let entry = |value: &[u8], text: &[u8]| [&[1, 0, 0, 0][..], value, b"k", text, &bitmap].concat();
        let expected = [
            &b"viscTAGS"[..],
            &[1, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            &[27, 0, 0, 0, 0, 0, 0, 0, 55, 0, 0, 0, 0, 0, 0, 0],
            &entry(&[255; 4], b""),
            &entry(&[1, 0, 0, 0], b"v"),
        ]
        .concat();
        assert_eq!(bytes, expected);
        for (at, why) in [(0, "begin"), (8, "version"), (12, "slots"), (17, "cut short"), (24, "entry 0")] {
            let mut broken = bytes.clone();
            broken[at] = 99;
            let error = open(&broken, 2).map(drop).unwrap_err().to_string();
            assert!(error.contains(why), "{at}: {error}");
        }
        let error = open(&[&bytes[..], &[0]].concat(), 2).map(drop).unwrap_err().to_string();
        assert!(error.contains("follows"), "{error}");
    }
}
