//! Two kinds of batches in turn, each kind in an order of its own.
//!
//! ```text
//! batch of the run      0 captions   1 instructions   2 captions   3 instructions …
//! each kind            from where its last batch ended, round and round; another order each time round
//! ```
//! An epoch is as long as the larger kind takes; the smaller goes round more often. Which samples a batch has hangs on the place of the
//! batch alone, so that a run goes on from anywhere.

use std::sync::{Arc, Mutex, PoisonError};

use crate::train::data::Order;

/// Which time round the samples of a kind it is, and their order then.
type Round = (u64, Arc<Vec<u32>>);

/// Samples of two kinds.
pub struct Alternate {
    counts: [u32; 2],
    /// Batches of an epoch.
    batches: u64,
    /// The last order of each kind that was asked for, and which time round it is of.
    shuffled: Mutex<[Option<Round>; 2]>,
}

impl Alternate {
    /// * `counts`: samples of both kinds, above 0. `batch`: samples of a batch. `accumulate`: batches of a step.
    pub fn new(counts: [u32; 2], batch: usize, accumulate: usize) -> Self {
        let all = Self::samples(counts) as usize;
        let batches = (all / (batch * accumulate).max(1) * accumulate) as u64;
        Alternate { counts, batches, shuffled: Mutex::default() }
    }

    /// Samples of an epoch.
    pub fn samples(counts: [u32; 2]) -> u32 {
        counts[0].max(counts[1]).saturating_mul(2)
    }

    /// The kind of a batch, 0 or 1, and its samples.
    ///
    /// * `order`: before it. `batch`: its samples.
    pub fn batch(&self, order: Order, batch: usize) -> (usize, Vec<u32>) {
        let number = order.epoch * self.batches + order.position / batch.max(1) as u64;
        let (kind, before) = ((number % 2) as usize, number / 2);
        let count = u64::from(self.counts[kind].max(1));
        let at = |i: u64| {
            let place = before * batch as u64 + i;
            let order = self.round(kind, order.seed, place / count);
            order.get((place % count) as usize).copied().unwrap_or_default()
        };
        (kind, (0..batch as u64).map(at).collect())
    }

    fn round(&self, kind: usize, seed: u64, round: u64) -> Arc<Vec<u32>> {
        // What is kept is whole whenever it is looked at.
        let mut kept = self.shuffled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, order)) = kept[kind].as_ref()
            && *of == round
        {
            return order.clone();
        }
        let own = Order { seed: seed.wrapping_add(1 + kind as u64), epoch: round, position: 0 };
        let order = Arc::new(own.shuffled(self.counts[kind]));
        kept[kind] = Some((round, order.clone()));
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_take_turns_and_none_is_left_out() {
        let alternate = Alternate::new([10, 4], 2, 1);
        assert_eq!((Alternate::samples([10, 4]), alternate.batches), (20, 10));
        let mut seen = [Vec::new(), Vec::new()];
        for (epoch, number) in (0..2).flat_map(|epoch| (0..10).map(move |number| (epoch, number))) {
            let order = Order { seed: 5, epoch, position: 2 * number };
            let (kind, samples) = alternate.batch(order, 2);
            assert_eq!(kind, (number % 2) as usize);
            // Asked for again by itself, it is the same.
            assert_eq!(Alternate::new([10, 4], 2, 1).batch(order, 2), (kind, samples.clone()));
            seen[kind].extend(samples);
        }
        let sorted = |samples: &[u32]| {
            let mut samples = samples.to_vec();
            samples.sort_unstable();
            samples
        };
        assert_eq!(sorted(&seen[0][..10]), (0..10).collect::<Vec<u32>>());
        assert_eq!(sorted(&seen[0][10..]), (0..10).collect::<Vec<u32>>());
        assert_ne!(seen[0][..10], seen[0][10..]);
        assert!(seen[1].chunks(4).all(|round| sorted(round) == [0, 1, 2, 3]), "{:?}", seen[1]);
    }
}
