//! What waits for the model: one line for each modality, the most urgent first. A pure state machine: no clock, no threads.
//!
//! An input is due at its caller's deadline, or [`PATIENCE`] after it came if that is earlier: so callers in a hurry go
//! first, and nobody waits for ever behind them. A batch is of one modality, that of the input which is due first, and takes as
//! many of its line as its cost allows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::types::Modality;

/// Time after which an input without a deadline is as urgent as one whose deadline is now.
const PATIENCE: Duration = Duration::from_secs(2);

/// Inputs that wait.
pub(super) struct Queue<T> {
    lines: BTreeMap<Modality, BTreeMap<(Instant, u64), Waiting<T>>>,
    /// Most inputs in one line.
    capacity: usize,
    arrivals: u64,
}

struct Waiting<T> {
    item: T,
    cost: u64,
    deadline: Option<Instant>,
}

/// What [`Queue::next_batch`] found.
pub(super) struct Taken<T> {
    /// To be worked on, all of one modality; empty when nothing waits.
    pub(super) batch: Vec<T>,
    /// Too late, or no longer wanted.
    pub(super) dropped: Vec<T>,
}

impl<T> Queue<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Queue { lines: BTreeMap::new(), capacity, arrivals: 0 }
    }

    /// Inputs of a modality that wait.
    pub(super) fn len(&self, modality: Modality) -> usize {
        self.lines.get(&modality).map_or(0, BTreeMap::len)
    }

    /// Whether so many more may wait. A line that is empty takes any number, so that no request is too large for ever.
    pub(super) fn has_room(&self, modality: Modality, count: usize) -> bool {
        let waiting = self.len(modality);
        waiting == 0 || waiting + count <= self.capacity
    }

    /// Puts an input into its line.
    pub(super) fn push(
        &mut self,
        modality: Modality,
        item: T,
        cost: u64,
        deadline: Option<Instant>,
        now: Instant,
    ) {
        let patience = now + PATIENCE;
        let due = deadline.map_or(patience, |deadline| deadline.min(patience));
        self.arrivals += 1;
        let line = self.lines.entry(modality).or_default();
        line.insert((due, self.arrivals), Waiting { item, cost, deadline });
    }

    /// Takes the next batch.
    ///
    /// * `most`: cost of a batch; one input is taken whatever it costs. `gone`: whether an input is no longer wanted.
    pub(super) fn next_batch(&mut self, now: Instant, most: u64, gone: impl Fn(&T) -> bool) -> Taken<T> {
        let (mut batch, mut dropped, mut cost) = (Vec::new(), Vec::new(), 0u64);
        while batch.is_empty() {
            let urgent =
                |line: &BTreeMap<(Instant, u64), Waiting<T>>| line.first_key_value().map(|(key, _)| *key);
            let heads = self.lines.iter().filter_map(|(modality, line)| Some((urgent(line)?, *modality)));
            let Some((_, modality)) = heads.min() else { break };
            let Some(line) = self.lines.get_mut(&modality) else { break };
            while let Some(first) = line.first_entry() {
                let waiting = first.get();
                if waiting.deadline.is_some_and(|deadline| deadline <= now) || gone(&waiting.item) {
                    dropped.push(first.remove().item);
                } else if batch.is_empty() || cost + waiting.cost <= most {
                    cost += waiting.cost;
                    batch.push(first.remove().item);
                } else {
                    break;
                }
            }
        }
        Taken { batch, dropped }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn later(now: Instant, ms: u64) -> Option<Instant> {
        Some(now + Duration::from_millis(ms))
    }

    #[test]
    fn the_most_urgent_line_goes_first_and_a_batch_is_of_one_modality() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        queue.push(Modality::Image, "patient", 1, None, now);
        queue.push(Modality::Text, "soon", 1, later(now, 50), now);
        queue.push(Modality::Image, "sooner", 1, later(now, 20), now);
        queue.push(Modality::Text, "later", 1, later(now, 90), now);
        assert_eq!(queue.next_batch(now, 10, |_| false).batch, ["sooner", "patient"]);
        assert_eq!(queue.next_batch(now, 10, |_| false).batch, ["soon", "later"]);
        assert!(queue.next_batch(now, 10, |_| false).batch.is_empty());
    }

    #[test]
    fn cost_bounds_a_batch_but_not_a_single_input() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        for (name, cost) in [("video", 15), ("a", 1), ("b", 1)] {
            queue.push(Modality::Video, name, cost, None, now);
        }
        assert_eq!(queue.next_batch(now, 2, |_| false).batch, ["video"]);
        assert_eq!(queue.next_batch(now, 2, |_| false).batch, ["a", "b"]);
    }

    #[test]
    fn what_is_late_or_gone_is_not_worked_on() {
        let (mut queue, now) = (Queue::new(10), Instant::now());
        queue.push(Modality::Image, "late", 1, later(now, 1), now);
        queue.push(Modality::Image, "gone", 1, later(now, 500), now);
        queue.push(Modality::Audio, "wanted", 1, None, now);
        let taken = queue.next_batch(now + Duration::from_millis(2), 10, |item| *item == "gone");
        assert_eq!((taken.batch, taken.dropped), (vec!["wanted"], vec!["late", "gone"]));
    }

    #[test]
    fn a_full_line_refuses_and_an_empty_one_takes_anything() {
        let (mut queue, now) = (Queue::new(2), Instant::now());
        assert!(queue.has_room(Modality::Image, 100));
        queue.push(Modality::Image, (), 1, None, now);
        assert!(queue.has_room(Modality::Image, 1) && !queue.has_room(Modality::Image, 2));
        assert!(queue.has_room(Modality::Text, 3), "lines do not crowd each other out");
    }

    proptest! {
        #[test]
        fn every_input_comes_out_once(
            inputs in prop::collection::vec((0usize..3, 1u64..20, prop::option::of(0u64..100)), 0..60), most in 1u64..40,
        ) {
            let (mut queue, now) = (Queue::new(1000), Instant::now());
            for (i, (modality, cost, deadline)) in inputs.iter().enumerate() {
                let deadline = deadline.map(|ms| now + Duration::from_millis(ms));
                queue.push(Modality::ALL[*modality], (i, *modality, *cost), *cost, deadline, now);
            }
            let mut seen = Vec::new();
            loop {
                let Taken { batch, dropped } = queue.next_batch(now + Duration::from_millis(50), most, |(i, ..)| i % 7 == 3);
                if batch.is_empty() && dropped.is_empty() {
                    break;
                }
                let cost: u64 = batch.iter().map(|(_, _, cost)| cost).sum();
                prop_assert!(batch.len() <= 1 || cost <= most);
                prop_assert!(batch.iter().all(|(i, m, _)| *m == batch[0].1 && i % 7 != 3));
                seen.extend(batch.into_iter().chain(dropped).map(|(i, ..)| i));
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..inputs.len()).collect::<Vec<_>>());
        }
    }
}
