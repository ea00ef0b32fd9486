//! Where items lie: from an id to its slot, in every version of an index.
//!
//! ```text
//! in order   slots are in the order of their ids: the index as it was stored         binary search over the ids of the slots
//! moved      sorted (ids, slots) · newer ids, for which the others do not count       binary search, after a look at the newer
//! ```
//!
//! What is found is held against the ids of the slots: a slot whose item has gone may have another one by now.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

/// Newer ids, beside one in so many older ones, before they are merged with them.
const MERGE: usize = 16;
/// Newer ids that are borne in any case.
const BORNE: usize = 4096;

/// Slots by id. Copies are cheap.
#[derive(Clone)]
pub(super) enum Lookup {
    /// Slot i has the i-th id.
    InOrder,
    Moved {
        older: Arc<(Vec<u64>, Vec<u32>)>,
        newer: Arc<BTreeMap<u64, u32>>,
    },
}

impl Lookup {
    /// The slot that an id has, or had.
    ///
    /// * `len`: of the slots. `id_at`: of a slot.
    pub(super) fn slot(&self, id: u64, len: usize, id_at: impl Fn(u32) -> u64) -> Option<u32> {
        let slot = match self {
            Lookup::InOrder => first_from(id, len, &id_at),
            Lookup::Moved { older, newer } => match newer.get(&id) {
                Some(&slot) => slot,
                None => older.1[older.0.binary_search(&id).ok()?],
            },
        };
        ((slot as usize) < len && id_at(slot) == id).then_some(slot)
    }

    /// Ids not below one, ascending, with the slots that they have.
    ///
    /// * `len`, `id_at`: as [`Lookup::slot`] has them.
    pub(super) fn from<'a>(
        &'a self,
        id: u64,
        len: usize,
        id_at: impl Fn(u32) -> u64 + Copy + 'a,
    ) -> Box<dyn Iterator<Item = (u64, u32)> + 'a> {
        match self {
            Lookup::InOrder => {
                let first = first_from(id, len, id_at);
                Box::new((first..len as u32).map(move |slot| (id_at(slot), slot)))
            }
            Lookup::Moved { older, newer } => {
                let first = older.0.partition_point(|&other| other < id);
                let mut older =
                    older.0[first..].iter().copied().zip(older.1[first..].iter().copied()).peekable();
                let mut newer = newer.range((Bound::Included(id), Bound::Unbounded)).peekable();
                let merged = std::iter::from_fn(move || match (older.peek(), newer.peek()) {
                    (Some(old), Some((id, _))) if old.0 < **id => older.next(),
                    (Some(old), Some((id, slot))) => {
                        let same = (old.0 == **id).then(|| older.next());
                        debug_assert!(same.is_none_or(|old| old.is_some()));
                        let next = (**id, **slot);
                        newer.next();
                        Some(next)
                    }
                    (Some(_), None) => older.next(),
                    (None, _) => newer.next().map(|(&id, &slot)| (id, slot)),
                });
                Box::new(merged.filter(move |&(id, slot)| (slot as usize) < len && id_at(slot) == id))
            }
        }
    }

    /// Says where items lie now.
    ///
    /// * `len`, `id_at`: as [`Lookup::slot`] has them, before the items came.
    pub(super) fn put(
        &mut self,
        items: impl Iterator<Item = (u64, u32)>,
        len: usize,
        id_at: impl Fn(u32) -> u64,
    ) {
        if let Lookup::InOrder = self {
            let older = Arc::new(((0..len as u32).map(&id_at).collect(), (0..len as u32).collect()));
            *self = Lookup::Moved { older, newer: Arc::default() };
        }
        if let Lookup::Moved { older, newer } = self {
            let items: Vec<(u64, u32)> = items.collect();
            Arc::make_mut(newer).extend(items.iter().copied());
            if newer.len() > BORNE.max(older.0.len() / MERGE) {
                let come: HashMap<u32, u64> = items.iter().map(|&(id, slot)| (slot, id)).collect();
                let has = |id: u64, slot: u32| match come.get(&slot) {
                    Some(&new) => new == id,
                    None => (slot as usize) < len && id_at(slot) == id,
                };
                let merged = merged(older, newer, has);
                (*older, *newer) = (Arc::new(merged), Arc::default());
            }
        }
    }

    /// Bytes of memory that it takes.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Lookup::InOrder => 0,
            Lookup::Moved { older, newer } => (12 * older.0.len() + 32 * newer.len()) as u64,
        }
    }
}

/// The first slot whose id is not below one, where they are in the order of their ids.
fn first_from(id: u64, len: usize, id_at: impl Fn(u32) -> u64) -> u32 {
    let (mut low, mut high) = (0, len as u32);
    while low < high {
        let middle = low + (high - low) / 2;
        match id_at(middle) < id {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    low
}

/// Both in order; of what is in both, the newer. Ids whose slots others have by now are left out, or ids that went would add up.
///
/// * `has`: whether a slot is that of an id.
fn merged(
    older: &(Vec<u64>, Vec<u32>),
    newer: &BTreeMap<u64, u32>,
    has: impl Fn(u64, u32) -> bool,
) -> (Vec<u64>, Vec<u32>) {
    let len = older.0.len() + newer.len();
    let (mut ids, mut slots) = (Vec::with_capacity(len), Vec::with_capacity(len));
    let mut add = |id: u64, slot: u32| {
        if has(id, slot) {
            ids.push(id);
            slots.push(slot);
        }
    };
    let mut newer = newer.iter().peekable();
    for (&id, &slot) in older.0.iter().zip(&older.1) {
        while let Some((&new, &at)) = newer.next_if(|(new, _)| **new < id) {
            add(new, at);
        }
        add(id, newer.next_if(|(new, _)| **new == id).map_or(slot, |(_, &at)| at));
    }
    newer.for_each(|(&id, &slot)| add(id, slot));
    (ids, slots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_that_went_do_not_add_up() {
        // A window of ids that slides: every new one takes the place of the oldest.
        let mut slots: Vec<u64> = (0..1000).collect();
        let mut lookup = Lookup::InOrder;
        for from in (1000..400_000u64).step_by(500) {
            let (before, place) = (slots.clone(), |id: u64| (id % 1000) as usize);
            (from..from + 500).for_each(|id| slots[place(id)] = id);
            lookup
                .put((from..from + 500).map(|id| (id, place(id) as u32)), 1000, |slot| before[slot as usize]);
        }
        let bytes = lookup.bytes();
        assert!(bytes <= 32 * (BORNE as u64 + 2 * 1000 + 500), "{bytes} bytes for 1000 items");
        assert!(slots.iter().all(|&id| lookup.slot(id, 1000, |slot| slots[slot as usize]).is_some()));
    }

    proptest! {
        #[test]
        fn it_is_a_map_of_the_latest(
            ids in prop::collection::btree_set(0u64..3000, 1..300),
            rounds in prop::collection::vec(prop::collection::vec((0u64..3000, any::<bool>()), 0..300), 0..60),
            from in 0u64..3000,
        ) {
            // The ids of the slots; an item that comes takes a new slot, or that of one that has gone.
            let mut slots: Vec<u64> = ids.iter().copied().collect();
            let mut lookup = Lookup::InOrder;
            let mut truth: BTreeMap<u64, u32> = ids.iter().copied().zip(0..).collect();
            for round in rounds {
                let (before, mut put) = (slots.clone(), BTreeMap::new());
                for (id, instead) in round {
                    let gone = (id * 7 % slots.len() as u64) as u32;
                    let slot = match instead && !put.values().any(|&slot| slot == gone) {
                        true => gone,
                        false => {
                            slots.push(id);
                            slots.len() as u32 - 1
                        }
                    };
                    truth.retain(|_, at| *at != slot);
                    slots[slot as usize] = id;
                    truth.insert(id, slot);
                    put.insert(id, slot);
                }
                lookup.put(put.into_iter(), before.len(), |slot| before[slot as usize]);
            }
            let id_at = |slot: u32| slots[slot as usize];
            for id in 0..3000 {
                let found = lookup.slot(id, slots.len(), id_at);
                // A slot whose item moved on may still be named by its id: whoever looks knows that it is dead.
                prop_assert!(found == truth.get(&id).copied() || (found.is_some() && !truth.contains_key(&id)));
            }
            let listed: Vec<(u64, u32)> = lookup.from(from, slots.len(), id_at).collect();
            prop_assert!(listed.windows(2).all(|pair| pair[0].0 < pair[1].0));
            for (id, slot) in truth.range(from..) {
                prop_assert!(listed.contains(&(*id, *slot)));
            }
        }
    }
}
