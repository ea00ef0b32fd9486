//! Pictures through classifiers, a few at a time: read, prepared and judged, each with a result of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::Context;
use rayon::prelude::*;
use viscache::media;
use viscache::models::encoder::{Encoder, Prepared};
use viscache::train::data::Place;
use viscache::types::Modality;

/// Pictures in memory at a time.
const CHUNK: usize = 64;
/// Between two words about how far it is.
const SILENCE: Duration = Duration::from_secs(20);
/// Pictures that cannot be judged and are named; the others are counted.
const NAMED: usize = 10;

/// Logits of a picture, of each classifier; or what is wrong, with the picture's name.
pub(super) type Judged = anyhow::Result<Vec<Vec<f32>>>;

/// Shows pictures to classifiers, and gives what comes of each to `take`, in their order.
///
/// * `encoders`: that prepare pictures alike.
///
/// # Errors
/// What `take` fails with; a bad picture is a result.
pub(super) fn judge<'a>(
    encoders: &[&Encoder],
    places: &[&'a Place],
    mut take: impl FnMut(&'a Place, Judged) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some(first) = encoders.first() else { return Ok(()) };
    let (mut said, mut done) = (Instant::now(), 0);
    for chunk in places.chunks(CHUNK) {
        let prepared: Vec<anyhow::Result<Prepared>> =
            chunk.par_iter().map(|place| prepare(first, place)).collect();
        let (mut good, mut outcomes) = (Vec::new(), Vec::new());
        for prepared in prepared {
            outcomes.push(prepared.map(|prepared| good.push(prepared)));
        }
        let mut judged: Vec<_> = encoders.iter().map(|encoder| encoder.logits(&good).into_iter()).collect();
        for (place, outcome) in chunk.iter().zip(outcomes) {
            let logits = outcome.and_then(|()| {
                let all = judged.iter_mut().map(|judged| judged.next().context("it was not judged"));
                // All of them are asked before any fails, so that they keep step.
                let all: Vec<anyhow::Result<_>> = all.collect();
                let named = || place.to_string();
                all.into_iter().map(|logits| logits?.with_context(named)).collect()
            });
            take(place, logits)?;
        }
        done += chunk.len();
        if done < places.len() && said.elapsed() > SILENCE {
            eprintln!("{done} of {} pictures", places.len());
            said = Instant::now();
        }
    }
    Ok(())
}

/// A decoder that panics on a hostile file costs that file.
fn prepare(encoder: &Encoder, place: &Place) -> anyhow::Result<Prepared> {
    let bytes = place.read(encoder.images().limits.max_bytes as u64)?;
    let prepared = catch_unwind(AssertUnwindSafe(|| encoder.prepare(Modality::Image, &bytes)));
    prepared.unwrap_or_else(|_| Err(media::Error::Crashed.into())).with_context(|| place.to_string())
}

/// What could not be judged.
#[derive(Default)]
pub(super) struct Bad {
    /// How many.
    pub(super) count: u64,
    named: Vec<String>,
}

impl Bad {
    /// Takes one more.
    pub(super) fn add(&mut self, why: &anyhow::Error) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(format!("{why:#}"));
        }
    }

    /// Names the first of them, and says how many there are.
    pub(super) fn say(&self) {
        self.named.iter().for_each(|line| eprintln!("{line}"));
        if self.count > 0 {
            eprintln!("{} pictures could not be judged, and are not counted", self.count);
        }
    }
}
