//! Items one after another, by id: those that a search of the same snapshot could find.
//!
//! ```text
//! slots of the generation, without masked ones ─┐
//! items of the delta ───────────────────────────┴► ascending, a few at a time
//! ```
//!
//! An item of the delta is masked in the generation, so none comes twice.

use super::{Filtered, Snapshot};
use crate::types::ItemId;

impl Snapshot {
    /// The first items after one, ascending; from the first one on without it.
    pub fn ids_after(&self, after: Option<ItemId>, limit: usize) -> Vec<ItemId> {
        let masked = self.delta.masked();
        let live = self.index().items_from(first(after)).filter(|(_, slot)| !masked.contains(slot.0));
        let old = live.map(|(id, _)| id).take(limit).collect();
        let mut new = Vec::new();
        self.delta.each_live(|block, at, _| new.extend(later(block.ids[at], after)));
        merged(old, new, limit)
    }
}

impl Filtered<'_> {
    /// As [`Snapshot::ids_after`], of the items that match.
    pub fn ids_after(&self, after: Option<ItemId>, limit: usize) -> Vec<ItemId> {
        let slots = &self.matching.slots;
        let old = self.snapshot.index().items_from(first(after)).filter(|(_, slot)| slots.contains(*slot));
        let old = old.map(|(id, _)| id).take(limit).collect();
        let delta = &self.snapshot.delta;
        let new = self.matching.delta.positions().iter();
        merged(old, new.filter_map(|&position| later(delta.row(position).0, after)).collect(), limit)
    }
}

fn later(id: ItemId, after: Option<ItemId>) -> Option<ItemId> {
    Some(id).filter(|&id| after.is_none_or(|after| id > after))
}

/// The least id after one.
fn first(after: Option<ItemId>) -> ItemId {
    after.map_or(ItemId(0), |after| ItemId(after.0.saturating_add(1)))
}

/// The first of both.
fn merged(mut old: Vec<ItemId>, mut new: Vec<ItemId>, limit: usize) -> Vec<ItemId> {
    if new.len() > limit {
        new.select_nth_unstable(limit);
        new.truncate(limit);
    }
    old.append(&mut new);
    old.sort_unstable();
    old.truncate(limit);
    old
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_both_come_in_order() {
        let ids = |ids: &[u64]| ids.iter().map(|&id| ItemId(id)).collect::<Vec<_>>();
        assert_eq!(merged(ids(&[1, 4, 9]), ids(&[8, 2, 3, 7]), 4), ids(&[1, 2, 3, 4]));
        assert_eq!(merged(ids(&[]), ids(&[8, 2]), 4), ids(&[2, 8]));
        assert_eq!(merged(ids(&[5]), ids(&[]), 0), ids(&[]));
        assert_eq!([first(None), first(Some(ItemId(2)))], [ItemId(0), ItemId(3)]);
    }
}
