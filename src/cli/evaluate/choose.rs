//! The best setting, and what it is worth.
//!
//! ```text
//! rows ─┬─ one half ──► the setting with the best mean
//!       └─ the other ─► that setting's figure
//! ```
//! The best of many settings was also lucky on the rows that it was chosen on, so these flatter it. Where there are [`ENOUGH`] inputs,
//! one half chooses and the other tells; else all rows do both, and the report says so.
//!
//! Inputs are drawn into halves and not rows, kind by kind: two questions about one picture do not part, and each half has its share of
//! every kind.

use std::collections::{BTreeMap, HashMap};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;
use serde::Serialize;

use super::resample::{Difference, mean};

/// Inputs from which on a half of them chooses.
pub(super) const ENOUGH: usize = 40;

/// What a group of rows has of one measure, without the cache and under each setting.
pub(super) struct Values {
    /// Which input each row is about.
    pub(super) inputs: Vec<usize>,
    /// Of each row, without the cache.
    pub(super) off: Vec<f64>,
    /// The same under each setting.
    pub(super) on: Vec<Vec<f64>>,
    /// Whether a row is of the half that chooses.
    pub(super) chooses: Vec<bool>,
}

/// A setting that was chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Choice {
    /// Which of the settings.
    pub(super) setting: usize,
    /// Whether its mean is above that without the cache, on the rows that it was chosen on.
    pub(super) beats_off: bool,
    /// Whether it was chosen on other rows than the figures are of.
    pub(super) held_out: bool,
    /// Rows that it was chosen on.
    pub(super) chosen_on: usize,
    /// Rows that the figures are of.
    pub(super) told_on: usize,
    /// The mean of these without the cache.
    pub(super) off: f64,
    /// The mean of these with it.
    pub(super) on: f64,
    /// The one less the other.
    pub(super) difference: Difference,
}

/// Whether each row is of the half that chooses.
///
/// * `kinds`, `inputs`: of each row. An input is of its first row's kind.
pub(super) fn halves(kinds: &[&str], inputs: &[usize], seed: u64) -> Vec<bool> {
    let (mut by_kind, mut half): (BTreeMap<&str, Vec<usize>>, HashMap<usize, bool>) = Default::default();
    for (kind, &input) in kinds.iter().zip(inputs) {
        if half.insert(input, false).is_none() {
            by_kind.entry(kind).or_default().push(input);
        }
    }
    let mut rng = Pcg64::seed_from_u64(seed);
    // One after the other over all kinds, so that odd ones do not add up.
    let mut chooses = false;
    for mut of_kind in by_kind.into_values() {
        of_kind.shuffle(&mut rng);
        for input in of_kind {
            half.insert(input, chooses);
            chooses = !chooses;
        }
    }
    inputs.iter().map(|input| half.get(input).copied().unwrap_or_default()).collect()
}

/// The best setting of a group of rows; nothing where there is only one.
///
/// * `wanted`: whether one half chooses; without it, where there are [`ENOUGH`] inputs. Not where a half would be empty.
pub(super) fn choose(values: &Values, wanted: Option<bool>, seed: u64) -> Option<Choice> {
    if values.on.len() < 2 {
        return None;
    }
    let count = values.inputs.iter().collect::<std::collections::HashSet<_>>().len();
    let choosing = values.chooses.iter().filter(|&&chooses| chooses).count();
    let both = choosing > 0 && choosing < values.chooses.len();
    let held_out = wanted.unwrap_or(count >= ENOUGH) && both;
    let only = |of: &[f64], side: bool| -> Vec<f64> {
        of.iter().zip(&values.chooses).filter(|(_, c)| !held_out || **c == side).map(|(v, _)| *v).collect()
    };
    // Of equals the first of the grid.
    let means = values.on.iter().map(|on| mean(&only(on, true))).enumerate();
    let (setting, reached) = means.reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    let (off, on) = (only(&values.off, false), only(values.on.get(setting)?, false));
    let told = values.inputs.iter().zip(&values.chooses).filter(|(_, c)| !held_out || !**c);
    let inputs: Vec<usize> = told.map(|(input, _)| *input).collect();
    Some(Choice {
        setting,
        beats_off: reached > mean(&only(&values.off, true)),
        held_out,
        chosen_on: if held_out { choosing } else { off.len() },
        told_on: off.len(),
        off: mean(&off),
        on: mean(&on),
        difference: Difference::of(&off, &on, &inputs, seed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_even_in_every_kind_and_no_input_is_parted() {
        let kinds: Vec<&str> = (0..90).map(|i| if i < 30 { "text" } else { "picture" }).collect();
        let inputs: Vec<usize> = (0..90).map(|i| i / 2).collect();
        let chooses = halves(&kinds, &inputs, 1);
        let count = |range: std::ops::Range<usize>| chooses[range].iter().filter(|c| **c).count();
        // 15 and 30 inputs of two rows.
        assert!([14, 16].contains(&count(0..30)), "{}", count(0..30));
        assert_eq!((count(30..90), chooses.len()), (30, 90));
        assert!(chooses.chunks(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(chooses, halves(&kinds, &inputs, 1));
        assert_ne!(chooses, halves(&kinds, &inputs, 2));
    }

    /// Six rows: the first three choose. The second setting is best there, and worth nothing on the others.
    fn values() -> Values {
        Values {
            inputs: (0..6).collect(),
            off: vec![0.0, 0.0, 1.0, 1.0, 0.0, 0.0],
            on: vec![vec![0.0, 0.0, 1.0, 1.0, 1.0, 1.0], vec![1.0, 1.0, 1.0, 1.0, 0.0, 0.0]],
            chooses: vec![true, true, true, false, false, false],
        }
    }

    #[test]
    fn what_one_half_chooses_the_other_tells() {
        let choice = choose(&values(), Some(true), 1).unwrap();
        assert_eq!((choice.setting, choice.held_out, choice.chosen_on, choice.told_on), (1, true, 3, 3));
        assert_eq!((choice.off, choice.on, choice.difference.mean), (1.0 / 3.0, 1.0 / 3.0, 0.0));
        assert_eq!((choice.difference.inputs, choice.beats_off), (3, true));
        let lost = Values { off: vec![1.0; 6], ..values() };
        assert!(!choose(&lost, Some(true), 1).unwrap().beats_off, "of equals, off is the simpler");
    }

    #[test]
    fn few_rows_choose_and_tell_all_together() {
        // Both settings have 4 of 6: the first is taken.
        let choice = choose(&values(), None, 1).unwrap();
        assert_eq!((choice.setting, choice.held_out, choice.chosen_on, choice.told_on), (0, false, 6, 6));
        assert!((choice.off - 2.0 / 6.0).abs() < 1e-12 && (choice.on - 4.0 / 6.0).abs() < 1e-12);
        let one_sided = Values { chooses: vec![true; 6], ..values() };
        assert!(!choose(&one_sided, Some(true), 1).unwrap().held_out);
        let alone = Values { on: vec![vec![0.0; 6]], ..values() };
        assert_eq!(choose(&alone, Some(true), 1), None);
    }

    #[test]
    fn enough_rows_are_halved_unless_told_otherwise() {
        let many = |n: usize| Values {
            inputs: (0..n).collect(),
            off: vec![0.0; n],
            on: vec![vec![0.0; n], vec![1.0; n]],
            chooses: (0..n).map(|i| i % 2 == 0).collect(),
        };
        assert!(!choose(&many(ENOUGH - 1), None, 1).unwrap().held_out);
        assert!(choose(&many(ENOUGH), None, 1).unwrap().held_out);
        assert!(!choose(&many(ENOUGH), Some(false), 1).unwrap().held_out);
    }
}
