//! What the table of tags will take, from a sample of the items. A name with few values costs next to nothing, one that
//! has another value for every item a bitmap for each: only looking tells them apart.

use std::collections::{BTreeMap, HashMap};

use viscache::store::{CacheRecord, Store};
use viscache::types::ItemId;

/// Bytes of memory that a value of a name takes while the table is made, beside its texts: an entry of a half-full tree (110), a
/// string's and a bitmap's pieces on the heap (250), and what is written of them. By the sizes of those structures, on the safe
/// side; not measured.
const VALUE_BYTES: f64 = 450.0;
/// Bytes that a value takes on disk beside its texts.
const STORED_VALUE_BYTES: f64 = 45.0;
/// Bytes that a tag of an item takes: a place in its value's bitmap and in its name's, in memory and as written.
const TAG_BYTES: f64 = 8.0;
/// Stored items that are looked at.
const STORED: usize = 4096;

/// Tags of some items.
#[derive(Debug, Default)]
pub struct TagSample {
    items: u64,
    names: HashMap<String, HashMap<String, u64>>,
}

/// What a table of tags takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TagCost {
    /// Bytes of memory while it is made.
    pub memory: u64,
    /// Bytes on disk.
    pub disk: u64,
}

impl TagSample {
    /// Of a cache's first items; of nothing without a cache.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub fn of_stored(stored: Option<(&Store, &CacheRecord)>) -> anyhow::Result<Self> {
        let (mut sample, mut left) = (TagSample::default(), STORED);
        if let Some((store, cache)) = stored {
            store.scan_items(cache.id, ItemId(0), |_, item| {
                sample.see(&item.tags);
                left -= 1;
                Ok::<bool, anyhow::Error>(left > 0)
            })?;
        }
        Ok(sample)
    }

    /// Adds the tags of one item.
    pub fn see(&mut self, tags: &BTreeMap<String, String>) {
        self.items += 1;
        for (name, value) in tags {
            *self.names.entry(name.clone()).or_default().entry(value.clone()).or_default() += 1;
        }
    }

    /// What the table of so many items takes, if the others are like those that were seen. The share of values that were
    /// met once is how often the next item brings a new one (Good and Turing).
    pub fn cost(&self, items: u64) -> TagCost {
        let (mut memory, mut disk) = (0.0, 0.0);
        let seen = self.items.max(1) as f64;
        for (name, values) in &self.names {
            let (tags, once) = (values.values().sum::<u64>(), values.values().filter(|n| **n == 1).count());
            let unseen = items.saturating_sub(self.items) as f64 * once as f64 / seen;
            let text = values.keys().map(String::len).sum::<usize>() as f64 / values.len().max(1) as f64
                + name.len() as f64;
            let (distinct, places) =
                (values.len() as f64 + unseen, TAG_BYTES * tags as f64 / seen * items as f64);
            memory += distinct * (VALUE_BYTES + 3.0 * text) + places;
            disk += distinct * (STORED_VALUE_BYTES + text) + places / 2.0;
        }
        TagCost { memory: memory as u64, disk: disk as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(value: impl Fn(u64) -> String) -> TagSample {
        let mut sample = TagSample::default();
        for i in 0..1000 {
            sample.see(&BTreeMap::from([("name".to_owned(), value(i))]));
        }
        sample
    }

    #[test]
    fn few_values_cost_places_and_many_a_bitmap_each() {
        let few = sample(|i| format!("value {}", i % 10)).cost(10_000_000);
        assert!(few.memory < 100 << 20, "{few:?}");
        let many = sample(|i| format!("value {i}")).cost(10_000_000);
        assert!(many.memory > 4 << 30 && many.disk > 500 << 20, "{many:?}");
        assert_eq!(TagSample::default().cost(10_000_000), TagCost::default());
        let mut none = TagSample::default();
        none.see(&BTreeMap::new());
        assert_eq!(none.cost(10), TagCost::default());
    }
}
