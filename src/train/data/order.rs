//! Which sample comes when: another order each epoch, the same whenever it is asked for again.
//!
//! ```text
//! seed, epoch ─► a shuffled list of 0 … n−1 ─► from the position on, batch by batch ─► next epoch
//! └────────── what is stored with a checkpoint, and gone on from ──────────┘
//! ```
//!
//! The order hangs on these numbers and the count of samples alone, and is kept by a test: neither threads nor another version of a
//! library change it. So do the random numbers of a sample, which each thread that prepares one makes for itself.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};

/// How far a run has come through its samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Order {
    /// Of the run.
    pub seed: u64,
    /// Counted from 0.
    pub epoch: u64,
    /// Samples of this epoch that have been taken.
    pub position: u64,
}

impl Order {
    /// At the first sample of the first epoch.
    pub fn new(seed: u64) -> Self {
        Order { seed, epoch: 0, position: 0 }
    }

    /// The order of the whole epoch: each of `0..count` once.
    pub fn shuffled(&self, count: u32) -> Vec<u32> {
        let mut random = Pcg64::seed_from_u64(mix(mix(self.seed) ^ self.epoch));
        let mut order: Vec<u32> = (0..count).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, below(last as u64 + 1, &mut random) as usize);
        }
        order
    }

    /// The random numbers of one sample in this epoch, whoever prepares it.
    pub fn random(&self, sample: u32) -> Pcg64 {
        // Not those of the order itself, which has no sample.
        Pcg64::seed_from_u64(mix(mix(mix(self.seed) ^ self.epoch) ^ (u64::from(sample) + 1)))
    }

    /// Goes on from here, over so many samples.
    pub fn walk(self, count: u32) -> Walk {
        Walk { shuffled: self.shuffled(count), order: self }
    }
}

/// An [`Order`] under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    order: Order,
    shuffled: Vec<u32>,
}

impl Walk {
    /// Where it is: what is stored, and gone on from with [`Order::walk`].
    pub fn order(&self) -> Order {
        self.order
    }

    /// Samples of this epoch that are left.
    pub fn left(&self) -> usize {
        self.shuffled.len().saturating_sub(self.position())
    }

    /// The next samples, at most so many; none at the end of an epoch.
    pub fn take(&mut self, most: usize) -> &[u32] {
        let (from, count) = (self.position(), most.min(self.left()));
        self.order.position += count as u64;
        self.shuffled.get(from..from + count).unwrap_or_default()
    }

    /// The next samples, exactly so many; nothing if fewer are left, which then stay out of this epoch.
    pub fn batch(&mut self, size: usize) -> Option<&[u32]> {
        match size > 0 && size <= self.left() {
            true => Some(self.take(size)),
            false => None,
        }
    }

    /// Goes to the beginning of the next epoch.
    pub fn next_epoch(&mut self) {
        self.order = Order { epoch: self.order.epoch + 1, position: 0, ..self.order };
        self.shuffled = self.order.shuffled(self.shuffled.len() as u32);
    }

    fn position(&self) -> usize {
        usize::try_from(self.order.position).unwrap_or(usize::MAX)
    }
}

/// Even in `0..bound`, but for 2⁻⁶⁴.
fn below(bound: u64, random: &mut Pcg64) -> u64 {
    ((u128::from(random.next_u64()) * u128::from(bound)) >> 64) as u64
}

/// Spreads a number over all 64 bits (SplitMix64).
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_the_same_for_ever() {
        assert_eq!(Order::new(7).shuffled(10), KEPT[0]);
        assert_eq!(Order { epoch: 1, ..Order::new(7) }.shuffled(10), KEPT[1]);
    }

    /// What stored positions rely on.
    const KEPT: [[u32; 10]; 2] = [[7, 0, 4, 3, 8, 5, 9, 2, 1, 6], [4, 1, 7, 8, 0, 6, 3, 9, 5, 2]];

    #[test]
    fn every_sample_comes_once_an_epoch_and_orders_differ() {
        let sorted = |order: Order| {
            let mut samples = order.shuffled(1000);
            samples.sort_unstable();
            samples
        };
        let orders = [Order::new(1), Order { epoch: 1, ..Order::new(1) }, Order::new(2)];
        for (i, order) in orders.into_iter().enumerate() {
            assert_eq!(sorted(order), (0..1000).collect::<Vec<_>>());
            for other in &orders[..i] {
                let (a, b) = (order.shuffled(1000), other.shuffled(1000));
                assert!(a.iter().zip(&b).filter(|(a, b)| a == b).count() < 10);
            }
        }
        assert_eq!((Order::new(1).shuffled(0), Order::new(1).shuffled(1)), (vec![], vec![0]));
    }

    #[test]
    fn each_place_is_as_likely() {
        let mut counts = [0; 5];
        (0..5000).for_each(|seed| counts[Order::new(seed).shuffled(5)[0] as usize] += 1);
        assert!(counts.iter().all(|count| (870..1130).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_stored_order_goes_on_where_it_was() {
        let mut whole = Order::new(9).walk(10);
        let mut all = Vec::new();
        for _ in 0..3 {
            while let Some(batch) = whole.batch(3) {
                all.push(batch.to_vec());
            }
            assert_eq!(whole.left(), 1);
            whole.next_epoch();
        }
        assert_eq!(all.len(), 9);
        // The same, stored and taken up again after every batch.
        let mut stored = serde_json::to_string(&Order::new(9)).unwrap();
        for expected in &all {
            let mut walk = serde_json::from_str::<Order>(&stored).unwrap().walk(10);
            if walk.left() < 3 {
                walk.next_epoch();
            }
            assert_eq!(walk.batch(3), Some(expected.as_slice()));
            stored = serde_json::to_string(&walk.order()).unwrap();
        }
        let mut rest = Order { position: 8, ..Order::new(9) }.walk(10);
        assert_eq!((rest.take(5).len(), rest.take(5).len(), rest.batch(0)), (2, 0, None));
        // Of a set that has become smaller, nothing is left of the epoch.
        let mut beyond = Order { position: u64::MAX, ..Order::new(9) }.walk(10);
        assert_eq!((beyond.left(), beyond.take(3).len()), (0, 0));
    }

    #[test]
    fn samples_have_random_numbers_of_their_own() {
        let first = |order: Order, sample| order.random(sample).next_u64();
        let order = Order::new(3);
        assert_eq!(first(order, 5), first(Order { position: 77, ..order }, 5));
        let others = [first(order, 6), first(Order { epoch: 1, ..order }, 5), first(Order::new(4), 5)];
        assert!(others.iter().all(|&other| other != first(order, 5)));
    }
}
