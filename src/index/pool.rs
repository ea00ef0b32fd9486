//! The beam's pool: one sorted array of 64-bit keys, score above, slot below, so that a comparison is one instruction and an
//! insertion one binary search and one move. A walk over a level ends when every entry is expanded.

/// Set in a key's slot half once the node has been expanded.
const EXPANDED: u64 = 1 << 31;

/// Score in the upper half, in an order-preserving form; slot in the lower.
pub(super) fn key(score: f32, slot: u32) -> u64 {
    let bits = score.to_bits();
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(slot)
}

pub(super) fn slot_of(key: u64) -> u32 {
    (key & (EXPANDED - 1)) as u32
}

pub(super) fn score_of(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

/// The best `ef` keys seen so far, descending.
#[derive(Debug, Default)]
pub(super) struct Pool {
    keys: Vec<u64>,
    ef: usize,
    /// Everything before it is expanded.
    next: usize,
}

impl Pool {
    /// Its keys, best first.
    pub(super) fn keys(&self) -> &[u64] {
        &self.keys
    }

    /// Empty, with one place.
    pub(super) fn begin(&mut self) {
        self.keys.clear();
        self.reopen(1);
    }

    /// The best `ef` of what it holds, none of it expanded.
    pub(super) fn reopen(&mut self, ef: usize) {
        self.keys.truncate(ef);
        self.keys.reserve(ef + 1);
        self.keys.iter_mut().for_each(|key| *key &= !EXPANDED);
        self.ef = ef;
        self.next = 0;
    }

    /// Whether the key is now among the next two to be expanded.
    #[inline]
    pub(super) fn insert(&mut self, key: u64) -> bool {
        if self.keys.len() == self.ef {
            if self.keys.last().is_some_and(|&worst| key <= worst) {
                return false;
            }
            self.keys.pop();
        }
        // The mark of expanded nodes lies in the low half: compare scores only.
        let at = self.keys.partition_point(|&other| other >> 32 >= key >> 32);
        self.keys.insert(at, key);
        self.next = self.next.min(at);
        at <= self.next + 1
    }

    /// The score that a key must beat to enter, once the pool is full.
    #[inline]
    pub(super) fn floor(&self) -> Option<f32> {
        self.keys.last().filter(|_| self.keys.len() == self.ef).map(|&worst| score_of(worst))
    }

    /// The best key not yet expanded.
    #[inline]
    pub(super) fn peek_next(&mut self) -> Option<u32> {
        while self.keys.get(self.next)? & EXPANDED != 0 {
            self.next += 1;
        }
        self.keys.get(self.next).map(|&key| slot_of(key))
    }

    /// As [`Pool::peek_next`], and marks it expanded; nothing when it scores less than `least`.
    #[inline]
    pub(super) fn expand_next(&mut self, least: f32) -> Option<u32> {
        let slot = self.peek_next()?;
        if score_of(self.keys[self.next]) < least {
            return None;
        }
        self.keys[self.next] |= EXPANDED;
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_order_like_scores_and_give_them_back(a in -1e6f32..1e6, b in -1e6f32..1e6, slot in 0u32..1 << 31) {
            prop_assert_eq!(score_of(key(a, slot)), a);
            prop_assert_eq!(slot_of(key(a, slot) | EXPANDED), slot);
            prop_assert_eq!(key(a, 5) >> 32 > key(b, 5) >> 32, a > b);
        }

        #[test]
        fn a_pool_keeps_the_best_in_order(scores in prop::collection::vec(-1.0f32..1.0, 1..200), ef in 1usize..50) {
            let mut pool = Pool::default();
            pool.begin();
            pool.reopen(ef);
            for (i, &score) in scores.iter().enumerate() {
                pool.insert(key(score, i as u32));
                if i % 3 == 0 {
                    pool.expand_next(f32::NEG_INFINITY);
                }
            }
            let kept: Vec<f32> = pool.keys.iter().map(|&k| score_of(k)).collect();
            let mut best = scores.clone();
            best.sort_by(|a, b| b.total_cmp(a));
            best.truncate(ef);
            prop_assert_eq!(kept, best);
        }
    }
}
