//! How much of the waiting prompts a step of the decoder reads, so that those who are being answered hardly notice.
//!
//! A step that reads prompts takes longer than one that only goes on with answers. How much longer a row of a prompt makes it is
//! measured, step by step; as many are read as keep it within [`LONGER`] times the usual. While nobody is being answered there is
//! nobody to notice.

use std::time::Duration;

/// How many times the usual step one may take that reads prompts beside answers.
const LONGER: f64 = 2.5;
/// Rows of prompts before anything is known, and when nobody is being answered.
const FIRST: usize = 16;
const MOST: usize = 256;
/// Share of a new measurement in what is taken for usual.
const NEW: f64 = 0.2;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Pace {
    /// Seconds of a step without prompts.
    usual: Option<f64>,
    rows: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { usual: None, rows: FIRST }
    }
}

impl Pace {
    /// Rows of prompts that the next step may read.
    ///
    /// * `growing`: answers that wait for their next token.
    pub(super) fn rows(&self, growing: usize) -> usize {
        if growing == 0 { MOST } else { self.rows }
    }

    /// Notes how long a step took.
    ///
    /// * `rows`: of prompts that it read.
    pub(super) fn stepped(&mut self, growing: usize, rows: usize, took: Duration) {
        let took = took.as_secs_f64();
        match (growing, rows, self.usual) {
            (0, _, _) => {}
            (_, 0, usual) => {
                self.usual = Some(usual.map_or(took, |usual| (1.0 - NEW) * usual + NEW * took));
            }
            (_, _, None) => {}
            (_, _, Some(usual)) => {
                // What a row costs beside the answers, the least that can be told apart.
                let row = ((took - usual) / rows as f64).max(usual * 1e-3);
                let fit = ((LONGER - 1.0) * usual / row) as usize;
                self.rows = fit.clamp(1, (2 * self.rows).min(MOST));
            }
        }
    }
}

/// How many tokens each sequence is given in a step: those that are being answered their one, prompts a slice each, the first first.
///
/// * `waiting`: for each, tokens that were not read yet, and whether it is being answered. `rows`: of prompts.
pub(super) fn shares(waiting: &[(usize, bool)], mut rows: usize) -> Vec<usize> {
    let share = |&(tokens, growing): &(usize, bool)| match growing {
        true => tokens,
        false => {
            let slice = tokens.min(rows);
            rows -= slice;
            slice
        }
    };
    waiting.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn prompts_take_what_answers_leave() {
        assert_eq!(shares(&[(1, true), (500, false), (20, false), (1, true)], 64), [1, 64, 0, 1]);
        assert_eq!(shares(&[(10, false), (1, true), (20, false), (500, false)], 64), [10, 1, 20, 34]);
        assert_eq!(shares(&[], 64), [0; 0]);
    }

    #[test]
    fn a_step_with_prompts_stays_within_its_bounds() {
        // Answers take 10 ms, a row of a prompt 1 ms: 15 rows make a step two and a half times as long.
        let mut pace = Pace::default();
        assert_eq!((pace.rows(0), pace.rows(1)), (MOST, FIRST));
        pace.stepped(1, 0, 10 * MS);
        for _ in 0..20 {
            let rows = pace.rows(1);
            pace.stepped(1, rows, (10 + rows as u32) * MS);
        }
        assert!((14..=15).contains(&pace.rows(1)), "{pace:?}");
        // Rows that cost next to nothing are read by the hundred, though not from one step to the next.
        pace.stepped(1, 15, 10 * MS);
        assert_eq!(pace.rows(1), 30);
        for _ in 0..9 {
            let rows = pace.rows(1);
            pace.stepped(1, rows, 10 * MS);
        }
        assert_eq!(pace.rows(1), MOST);
        // And one step that takes too long is enough.
        pace.stepped(1, 100, 1000 * MS);
        assert_eq!(pace.rows(1), 1);
        pace.stepped(0, 100, 1000 * MS);
        assert_eq!(pace.rows(1), 1, "nobody was kept waiting");
    }
}
