//! How a learning rate or a decay goes over a run: a straight rise from 0, then half a cosine.
//!
//! ```text
//! from ┤     ╭─╮
//!      │   ╱    ╲              counted by iterations          counted by epochs
//!      │ ╱        ╲            rise: first value 0, last      the value at the moment at which an
//!   to ┤╱           ╰──        value `from`; then `from`      iteration begins; `from` comes once,
//!      └┬────┬────────┬        again, as the first of the     where the warm-up is over
//!       0  warm-up   end       fall, which stops short of `to`
//! ```
//!
//! The programs differ in what they count. iLLaMA's computes a value for each iteration in advance, the adapters' ask for the
//! value at a fraction of an epoch; [`Counted`] chooses. Neither ever quite reaches `to`.
//!
//! A [`Cosine`] is what a recipe says. It becomes numbers over a [`Span`], and there it is checked.
//!
//! Left out: a warm-up counted in iterations, and values computed in advance, which would be the same ones.
//!
//! Source: the training programs of iLLaMA (`utils.py`, `cosine_scheduler`) and of LLaMA-Adapter (`util/lr_sched.py`).

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::{Error, from_zero, within};

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    epochs: usize,
    iterations: usize,
}

impl Span {
    /// * `iterations`: of the optimiser, in each epoch.
    ///
    /// # Errors
    /// [`Error::Parameter`] where either is 0, or both together are beyond counting.
    pub fn new(epochs: usize, iterations: usize) -> Result<Self, Error> {
        let refuse =
            |name, value: usize, allowed| Err(Error::Parameter { name, value: value.to_string(), allowed });
        match (epochs, iterations, epochs.checked_mul(iterations)) {
            (0, _, _) => refuse("epochs", epochs, "1 or more"),
            (_, 0, _) => {
                refuse("iterations of an epoch", iterations, "1 or more; is there a full batch of data?")
            }
            (_, _, None) => refuse("epochs", epochs, "fewer: so many iterations cannot be counted"),
            (_, _, Some(_)) => Ok(Span { epochs, iterations }),
        }
    }

    /// Epochs of the run.
    pub fn epochs(&self) -> usize {
        self.epochs
    }

    /// Iterations of one epoch.
    pub fn iterations(&self) -> usize {
        self.iterations
    }

    /// Iterations of the run.
    pub fn total(&self) -> usize {
        self.epochs * self.iterations
    }

    /// An iteration, or the last one of the run where it is behind that.
    pub(super) fn clamp(&self, iteration: usize) -> usize {
        iteration.min(self.total() - 1)
    }
}

/// What a schedule counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Counted {
    /// Iterations, as iLLaMA's program.
    #[default]
    Iterations,
    /// Epochs and their fractions, as the adapters' programs.
    Epochs,
}

/// A value over a run, as a recipe says it.
///
/// A learning rate: `from = 4e-3, to = 1e-6, warmup_epochs = 5`. A decay that stays: `from = 0.05`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cosine {
    /// Where the warm-up ends and the fall begins.
    pub from: f64,
    /// Where the fall ends; without it, the value stays.
    #[serde(default)]
    pub to: Option<f64>,
    /// Epochs of warm-up, which begins at 0.
    #[serde(default)]
    pub warmup_epochs: f64,
    /// What is counted.
    #[serde(default)]
    pub counted: Counted,
}

impl Cosine {
    /// One value for the whole run.
    pub fn constant(value: f64) -> Self {
        Cosine { from: value, to: None, warmup_epochs: 0.0, counted: Counted::default() }
    }

    /// The numbers of a run.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a value that is negative or not finite, [`Error::TooLong`] for a warm-up longer than the run.
    pub fn over(&self, span: Span) -> Result<Values, Error> {
        let (to, epochs) = (self.to.unwrap_or(self.from), span.epochs as f64);
        let form = match self.counted {
            Counted::Epochs => Form::Epochs(ByEpoch::new(self.from, to, self.warmup_epochs, epochs)?),
            Counted::Iterations => {
                check(self.from, to, self.warmup_epochs, epochs)?;
                Form::Iterations {
                    from: self.from,
                    to,
                    warmup: (self.warmup_epochs * span.iterations as f64).round() as usize,
                }
            }
        };
        Ok(Values { span, form })
    }
}

/// The values of a [`Cosine`] over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Values {
    span: Span,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// `warmup` in iterations.
    Iterations {
        from: f64,
        to: f64,
        warmup: usize,
    },
    Epochs(ByEpoch),
}

impl Values {
    /// The value that an iteration of the run is made with; one behind the last has the last's.
    pub fn at(&self, iteration: usize) -> f64 {
        let (i, n) = (self.span.clamp(iteration), self.span.iterations);
        match self.form {
            Form::Epochs(form) => form.at((i / n) as f64 + (i % n) as f64 / n as f64),
            Form::Iterations { from, warmup, .. } if i < warmup => spaced(0.0, from, warmup, i),
            Form::Iterations { from, to, warmup } => {
                let part = (i - warmup) as f64 / (self.span.total() - warmup) as f64;
                half_cosine(from, to, part)
            }
        }
    }
}

/// A value at any moment of a run: the adapters' form.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ByEpoch {
    from: f64,
    to: f64,
    warmup: f64,
    epochs: f64,
}

impl ByEpoch {
    /// * `from`: where the warm-up ends. `to`: where the run does. `warmup`, `epochs`: lengths of the warm-up and of the run with
    ///   it, epochs.
    ///
    /// # Errors
    /// As [`Cosine::over`].
    pub fn new(from: f64, to: f64, warmup: f64, epochs: f64) -> Result<Self, Error> {
        check(from, to, warmup, epochs)?;
        Ok(ByEpoch { from, to, warmup, epochs })
    }

    /// The value after so many epochs, fractions counted.
    pub fn at(&self, epoch: f64) -> f64 {
        if epoch < self.warmup {
            return self.from * epoch / self.warmup;
        }
        let fall = self.epochs - self.warmup;
        // A run that is all warm-up has no fall; its end is the end of the warm-up.
        let part = if fall > 0.0 { ((epoch - self.warmup) / fall).min(1.0) } else { 0.0 };
        half_cosine(self.from, self.to, part)
    }
}

fn check(from: f64, to: f64, warmup: f64, epochs: f64) -> Result<(), Error> {
    from_zero("from", from)?;
    from_zero("to", to)?;
    from_zero("warmup_epochs", warmup)?;
    within("epochs", epochs, epochs.is_finite() && epochs > 0.0, "a finite number above 0")?;
    match warmup > epochs {
        true => Err(Error::TooLong { name: "warmup_epochs", received: warmup, epochs }),
        false => Ok(()),
    }
}

/// * `part`: how much of the way is done, 0 to 1.
fn half_cosine(from: f64, to: f64, part: f64) -> f64 {
    to + 0.5 * (from - to) * (1.0 + (PI * part).cos())
}

/// Value `i` of `count` evenly spaced ones, both ends among them; of a single one, the start.
pub(super) fn spaced(start: f64, end: f64, count: usize, i: usize) -> f64 {
    match count.saturating_sub(1) {
        0 => start,
        last if i >= last => end,
        last => i as f64 * ((end - start) / last as f64) + start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(epochs: usize, iterations: usize) -> Span {
        Span::new(epochs, iterations).unwrap()
    }

    fn rate(from: f64, to: f64, warmup_epochs: f64) -> Cosine {
        Cosine { from, to: Some(to), warmup_epochs, counted: Counted::Iterations }
    }

    #[test]
    fn the_warm_up_begins_at_nothing_and_ends_at_the_top_which_comes_twice() {
        let values = rate(1.0, 0.0, 2.0).over(span(4, 3)).unwrap();
        let all: Vec<f64> = (0..12).map(|i| values.at(i)).collect();
        assert_eq!(all[..7], [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0, 1.0]);
        assert!(all[6..].windows(2).all(|pair| pair[0] > pair[1]), "{all:?}");
        assert!(all[11] > 0.0, "the end is not reached");
        assert_eq!(values.at(12), all[11], "behind the run");
        assert_eq!(values.at(usize::MAX), all[11]);
    }

    #[test]
    fn a_decay_stays_unless_it_is_told_to_move() {
        let values = Cosine::constant(0.05).over(span(2, 2)).unwrap();
        assert!((0..4).all(|i| values.at(i) == 0.05));
        let rising = rate(0.05, 0.5, 0.0).over(span(2, 2)).unwrap();
        assert!((rising.at(0) - 0.05).abs() < 1e-15);
        assert!(rising.at(3) > rising.at(2));
    }

    #[test]
    fn epochs_are_counted_at_the_beginning_of_an_iteration() {
        let recipe = Cosine { counted: Counted::Epochs, ..rate(1.0, 0.1, 0.5) };
        let (values, by_epoch) =
            (recipe.over(span(3, 4)).unwrap(), ByEpoch::new(1.0, 0.1, 0.5, 3.0).unwrap());
        assert_eq!([0, 1, 2].map(|i| values.at(i)), [0.0, 0.5, 1.0]);
        assert!((0..12).all(|i| values.at(i) == by_epoch.at(i as f64 / 4.0)));
        assert_eq!((by_epoch.at(3.0), by_epoch.at(7.0)), (0.1, 0.1), "the run is over");
    }

    #[test]
    fn runs_that_are_all_warm_up_end_at_the_top() {
        assert_eq!(rate(1.0, 0.0, 2.0).over(span(2, 2)).unwrap().at(3), 1.0);
        assert_eq!(rate(1.0, 0.0, 1.0).over(span(1, 1)).unwrap().at(0), 0.0, "a single value is the first");
        assert_eq!(ByEpoch::new(1.0, 0.0, 2.0, 2.0).unwrap().at(2.0), 1.0);
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_name() {
        let says = |recipe: Cosine| recipe.over(span(4, 2)).unwrap_err().to_string();
        assert_eq!(says(rate(-1.0, 0.0, 0.0)), "from is -1; it must be a finite number, 0 or above");
        assert_eq!(says(rate(1.0, f64::NAN, 0.0)), "to is NaN; it must be a finite number, 0 or above");
        assert_eq!(
            says(rate(1.0, 0.0, f64::INFINITY)),
            "warmup_epochs is inf; it must be a finite number, 0 or above"
        );
        for counted in [Counted::Iterations, Counted::Epochs] {
            assert_eq!(
                says(Cosine { counted, ..rate(1.0, 0.0, 4.5) }),
                "warmup_epochs is 4.5, but the run has only 4 epochs; shorten the one or lengthen the other"
            );
        }
        assert!(ByEpoch::new(1.0, 0.0, 0.0, 0.0).is_err());
        for (epochs, iterations) in [(0, 1), (1, 0), (usize::MAX, 2)] {
            assert!(Span::new(epochs, iterations).is_err(), "{epochs} {iterations}");
        }
    }

    #[test]
    fn recipes_say_as_little_as_they_may_and_nothing_unknown() {
        let read = |json: &str| serde_json::from_str::<Cosine>(json);
        assert_eq!(read(r#"{"from": 0.05}"#).unwrap(), Cosine::constant(0.05));
        let full = read(r#"{"from": 1, "to": 0.5, "warmup_epochs": 2, "counted": "epochs"}"#).unwrap();
        assert_eq!(full, Cosine { counted: Counted::Epochs, ..rate(1.0, 0.5, 2.0) });
        assert!(read(r#"{"from": 1, "warm_up": 2}"#).unwrap_err().to_string().contains("`warm_up`"));
    }
}
