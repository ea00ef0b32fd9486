//! A first look at all inputs, before anything is paid: how they stand, and a few of them to try.

use std::ops::ControlFlow;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use viscache::store::Stamp;

use crate::discover::{Found, Inputs, Place, Unit, Visitor};
use crate::ledger::{Judge, Standing, Work};

/// Pending units that are kept to be tried.
const SAMPLE: usize = 64;

/// What a first look tells.
pub struct Survey {
    /// How the inputs stand.
    pub standing: Standing,
    /// Some pending units, spread over all of them, in their order.
    pub sample: Vec<Unit>,
}

/// Looks at all inputs.
///
/// # Errors
/// An input that is not there, a store that cannot be read.
pub fn survey(inputs: &Inputs, judge: Judge<'_>) -> anyhow::Result<Survey> {
    let random = Pcg64::seed_from_u64(0);
    let mut surveyor = Surveyor { judge, sample: Vec::with_capacity(SAMPLE), pending: 0, random };
    inputs.walk(None, &mut surveyor)?;
    let Surveyor { judge, mut sample, .. } = surveyor;
    sample.sort_by_key(|(number, _)| *number);
    Ok(Survey { standing: judge.standing(), sample: sample.into_iter().map(|(_, unit)| unit).collect() })
}

struct Surveyor<'a> {
    judge: Judge<'a>,
    sample: Vec<(u64, Unit)>,
    pending: u64,
    random: Pcg64,
}

impl Visitor for Surveyor<'_> {
    fn is_done(&mut self, archive: &str, stamp: Stamp) -> anyhow::Result<bool> {
        self.judge.is_done(archive, stamp)
    }

    fn visit(&mut self, found: Found) -> anyhow::Result<ControlFlow<()>> {
        // What is in memory only while it is fed cannot be tried now.
        if let Some(Work::Unit { unit, .. }) = self.judge.judge(found)?
            && !matches!(unit.place, Place::Unread { .. })
        {
            let number = self.pending;
            self.pending += 1;
            // Every unit has the same chance to be kept, however many there turn out to be.
            if self.sample.len() < SAMPLE {
                self.sample.push((number, unit));
            } else if let Some(kept) = self.sample.get_mut(self.random.random_range(0..self.pending) as usize)
            {
                *kept = (number, unit);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
