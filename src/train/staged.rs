//! Rates that end, or begin, at an epoch: of the soft mask, of drop path and of dropout.
//!
//! ```text
//! mode                       until the cutoff                      from the cutoff on
//! standard                   rate                                  rate
//! soft (early), constant     rate                                  0
//! soft (early), linear       rate ─► 0, both among the values      0
//! late, constant             0                                     rate
//! ```
//!
//! The published programs call the same thing `soft` of a mask and `early` of a drop rate; a recipe may say either word.
//!
//! One trap of theirs is refused here: a cutoff with the mode `standard`, which would be ignored without a word. A picture
//! classifier trained so never becomes causal.
//!
//! Source: the training program of iLLaMA (`drop_scheduler.py` and its sibling for the mask).

use rand::RngExt;
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};

use super::data::Order;
use super::schedule::{Span, spaced};
use super::{Error, within};

/// Which part of a run has the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// All of it.
    #[default]
    Standard,
    /// What comes before the cutoff.
    #[serde(alias = "soft")]
    Early,
    /// What comes behind the cutoff.
    Late,
}

/// How the rate goes while it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Course {
    /// It stays.
    #[default]
    Constant,
    /// It falls in a straight line to 0, which the last iteration before the cutoff has.
    Linear,
}

/// A rate over a run, as a recipe says it.
///
/// iLLaMA-base's mask: `rate = 1.0, mode = "soft", schedule = "linear", cutoff_epoch = 25`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Staged {
    /// The rate where there is one: its start where it falls.
    pub rate: f64,
    /// Which part of the run has it.
    #[serde(default)]
    pub mode: Mode,
    /// How it goes there.
    #[serde(default)]
    pub schedule: Course,
    /// Epochs before the change; 0 where there is none.
    #[serde(default)]
    pub cutoff_epoch: usize,
}

impl Staged {
    /// One rate for the whole run.
    pub fn constant(rate: f64) -> Self {
        Staged { rate, mode: Mode::Standard, schedule: Course::Constant, cutoff_epoch: 0 }
    }

    /// The soft mask's rates over a run: 1 lets tokens see all others, 0 only those before.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a rate outside `[0, 1]`, [`Error::TooLong`] for a cutoff behind the end of the run,
    /// [`Error::Contradiction`] for a mode that masks have not, or one that the other settings do not fit.
    pub fn mask_rates(&self, span: Span) -> Result<StagedValues, Error> {
        within("the mask's rate", self.rate, (0.0..=1.0).contains(&self.rate), "a number from 0 to 1")?;
        match self.mode {
            Mode::Late => Err(Error::Contradiction(
                "a mask has no mode `late`, because a model must end causal; choose `standard` or `soft`",
            )),
            Mode::Standard | Mode::Early => self.over(span),
        }
    }

    /// Rates of drop path or dropout over a run.
    ///
    /// # Errors
    /// As [`Staged::mask_rates`]. A rate of 1 would drop everything, and is refused as well.
    pub fn drop_rates(&self, span: Span) -> Result<StagedValues, Error> {
        check_drop(self.rate)?;
        self.over(span)
    }

    fn over(&self, span: Span) -> Result<StagedValues, Error> {
        let cut = self.cutoff_epoch > 0 || self.schedule == Course::Linear;
        if self.mode == Mode::Standard && cut {
            return Err(Error::Contradiction(
                "with the mode `standard` a rate stays for the whole run, so it has no cutoff_epoch and no schedule `linear`; \
                 leave them out, or choose the mode `soft`",
            ));
        }
        if self.mode == Mode::Late && self.schedule == Course::Linear {
            return Err(Error::Contradiction("the mode `late` has only the schedule `constant`"));
        }
        if self.cutoff_epoch > span.epochs() {
            let (received, epochs) = (self.cutoff_epoch as f64, span.epochs() as f64);
            return Err(Error::TooLong { name: "cutoff_epoch", received, epochs });
        }
        Ok(StagedValues { staged: *self, span })
    }
}

/// The values of a [`Staged`] rate over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StagedValues {
    staged: Staged,
    span: Span,
}

impl StagedValues {
    /// The rate that an iteration of the run is made with; one behind the last has the last's.
    pub fn at(&self, iteration: usize) -> f64 {
        let Staged { rate, mode, schedule, cutoff_epoch } = self.staged;
        let (i, cutoff) = (self.span.clamp(iteration), cutoff_epoch * self.span.iterations());
        match (mode, schedule, i < cutoff) {
            (Mode::Standard, ..) | (Mode::Early, Course::Constant, true) | (Mode::Late, _, false) => rate,
            (Mode::Early, Course::Linear, true) => spaced(rate, 0.0, cutoff, i),
            (Mode::Early, _, false) | (Mode::Late, _, true) => 0.0,
        }
    }
}

/// The drop-path rate of every block, when the last has `rate`: evenly spaced from 0, in f32 as the published program has them.
///
/// * `depth`: blocks. A single one has the rate 0.
///
/// # Errors
/// [`Error::Parameter`] for a rate outside `[0, 1)`.
pub fn drop_path_rates(rate: f64, depth: usize) -> Result<Vec<f32>, Error> {
    let rate = check_drop(rate)? as f32;
    let last = depth.saturating_sub(1);
    let step = rate / last.max(1) as f32;
    // The second half is counted down from the end, and product and sum are rounded together: the program's last bits.
    let of_block = |i| match i < depth / 2 || last == 0 {
        true => step * i as f32,
        false => (-step).mul_add((last - i) as f32, rate),
    };
    Ok((0..depth).map(of_block).collect())
}

/// What of each branch is added, with drop path: its share of survivors, and 0 for those that do not; `[2·depth, B]`, two branches in
/// each block. Empty where all are added as they are.
///
/// * `rate`: of the last block. `seeds`: of each sample's chance, `[B]`.
///
/// # Errors
/// As [`drop_path_rates`].
pub(super) fn survivors(rate: f64, depth: usize, seeds: &[u64]) -> Result<Vec<f32>, Error> {
    if rate == 0.0 {
        return Ok(Vec::new());
    }
    let rates = drop_path_rates(rate, depth)?;
    let mut random: Vec<_> = seeds.iter().map(|&seed| Order::new(seed).random(0)).collect();
    let branches = rates.iter().flat_map(|&rate| [rate; 2]);
    let of_branch = |rate: f32| {
        let keep = 1.0 - rate;
        let survives = |random: &mut Pcg64| random.random::<f32>() < keep;
        random.iter_mut().map(|random| if survives(random) { 1.0 / keep } else { 0.0 }).collect::<Vec<_>>()
    };
    Ok(branches.map(of_branch).collect::<Vec<_>>().concat())
}

fn check_drop(rate: f64) -> Result<f64, Error> {
    within("the drop rate", rate, (0.0..1.0).contains(&rate), "a number from 0 to 1, 1 excluded")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span() -> Span {
        Span::new(4, 2).unwrap()
    }

    fn staged(mode: Mode, schedule: Course, cutoff_epoch: usize) -> Staged {
        Staged { rate: 0.6, mode, schedule, cutoff_epoch }
    }

    fn values(recipe: Staged) -> Vec<f64> {
        let values = recipe.drop_rates(span()).unwrap();
        assert_eq!(values.at(usize::MAX), values.at(7));
        (0..8).map(|i| values.at(i)).collect()
    }

    #[test]
    fn rates_end_or_begin_at_their_epoch() {
        let (on, off) = ([0.6; 4], [0.0; 4]);
        assert_eq!(values(Staged::constant(0.6)), [0.6; 8]);
        assert_eq!(values(staged(Mode::Early, Course::Constant, 2)), [on, off].concat());
        assert_eq!(values(staged(Mode::Late, Course::Constant, 2)), [off, on].concat());
        let falling = values(staged(Mode::Early, Course::Linear, 2));
        assert_eq!((falling[0], falling[3]), (0.6, 0.0), "both ends are among the values");
        assert!((falling[1] - 0.4).abs() < 1e-12 && falling[4..] == off, "{falling:?}");
        assert_eq!(values(staged(Mode::Early, Course::Linear, 0)), [0.0; 8]);
        assert_eq!(values(staged(Mode::Late, Course::Constant, 4)), [0.0; 8]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let says = |recipe: Staged| recipe.drop_rates(span()).unwrap_err().to_string();
        assert!(says(Staged::constant(f64::NAN)).starts_with("the drop rate is NaN"));
        assert!(says(Staged::constant(-0.1)).contains("from 0 to 1"));
        assert!(says(Staged::constant(1.0)).contains("1 excluded"));
        assert!(says(staged(Mode::Early, Course::Linear, 5)).contains("cutoff_epoch is 5"));
        assert!(says(staged(Mode::Late, Course::Linear, 2)).contains("`late`"));
        assert!(says(staged(Mode::Standard, Course::Linear, 0)).contains("`standard`"));
        assert!(says(staged(Mode::Standard, Course::Constant, 2)).contains("`standard`"));
        assert!(Staged::constant(1.0).mask_rates(span()).is_ok());
        assert!(Staged::constant(1.01).mask_rates(span()).is_err());
        assert!(staged(Mode::Late, Course::Constant, 1).mask_rates(span()).is_err());
    }

    #[test]
    fn recipes_may_use_the_word_of_either_program() {
        let read = |mode: &str| {
            serde_json::from_str::<Staged>(&format!(
                r#"{{"rate": 0.6, "mode": "{mode}", "schedule": "linear", "cutoff_epoch": 2}}"#
            ))
        };
        assert_eq!(read("soft").unwrap(), staged(Mode::Early, Course::Linear, 2));
        assert_eq!(read("early").unwrap(), read("soft").unwrap());
        assert!(read("sooft").is_err());
        assert_eq!(serde_json::from_str::<Staged>(r#"{"rate": 0.6}"#).unwrap(), Staged::constant(0.6));
        assert!(serde_json::from_str::<Staged>(r#"{"rate": 0.6, "cutoff": 3}"#).is_err());
    }

    #[test]
    fn blocks_share_a_rate_evenly() {
        assert_eq!(drop_path_rates(0.5, 3).unwrap(), [0.0, 0.25, 0.5]);
        assert_eq!(drop_path_rates(0.5, 1).unwrap(), [0.0]);
        assert_eq!(drop_path_rates(0.5, 0).unwrap(), [0.0; 0]);
        assert!(drop_path_rates(1.0, 3).is_err() && drop_path_rates(f64::NAN, 3).is_err());
    }
}
