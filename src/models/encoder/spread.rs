//! Inputs over the lanes of a CPU, or in whole batches on a card; each with a result of its own, in their order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::prepare::Prepared;
use crate::models::Error;
use crate::types::Modality;

/// What a network makes of a batch of one modality and shape: a result for each input.
type Batch<T> = Result<Vec<Result<T, Error>>, Error>;

/// One input at a time in each lane.
///
/// * `run`: takes a batch of one.
pub(super) fn over_lanes<T: Send>(
    lanes: &[rayon::ThreadPool],
    inputs: &[Prepared],
    run: impl Fn(&[&Prepared]) -> Batch<T> + Sync,
) -> Vec<Result<T, Error>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            match inputs.get(at) {
                Some(input) => done.push((at, alone(input, &run))),
                None => return done,
            }
        }
    };
    let mut results: Vec<(usize, Result<T, Error>)> = std::thread::scope(|scope| {
        let lanes = lanes.iter().take(inputs.len());
        let running: Vec<_> = lanes.map(|lane| scope.spawn(|| lane.install(work))).collect();
        let finished = running.into_iter().flat_map(|lane| lane.join().unwrap_or_default());
        finished.collect()
    });
    results.sort_by_key(|(at, _)| *at);
    let lost = || Err(Error::Input { received: vec![], why: "encoding it crashed".into() });
    let mut results = results.into_iter().peekable();
    let in_order = (0..inputs.len()).map(|at| match results.next_if(|(done, _)| *done == at) {
        Some((_, result)) => result,
        None => lost(),
    });
    in_order.collect()
}

/// An input as a batch of its own.
pub(super) fn alone<T>(input: &Prepared, run: impl Fn(&[&Prepared]) -> Batch<T>) -> Result<T, Error> {
    let missing = || Err(Error::Config("the model returned no row".into()));
    run(&[input])?.pop().unwrap_or_else(missing)
}

/// Whole batches, one for each modality and shape.
pub(super) fn in_batches<T>(
    inputs: &[Prepared],
    run: impl Fn(&[&Prepared]) -> Batch<T>,
) -> Vec<Result<T, Error>> {
    let mut batches: BTreeMap<(Modality, &[usize]), Vec<usize>> = BTreeMap::new();
    for (at, input) in inputs.iter().enumerate() {
        batches.entry((input.modality, &input.shape)).or_default().push(at);
    }
    let mut results: Vec<Option<Result<T, Error>>> = inputs.iter().map(|_| None).collect();
    for positions in batches.into_values() {
        let batch: Vec<&Prepared> = positions.iter().map(|&at| &inputs[at]).collect();
        match run(&batch) {
            Ok(rows) => positions.into_iter().zip(rows).for_each(|(at, row)| results[at] = Some(row)),
            Err(e) => {
                let why = e.to_string();
                for at in positions {
                    results[at] = Some(Err(Error::Input { received: vec![], why: why.clone() }));
                }
            }
        }
    }
    let missing = || Err(Error::Config("the model returned too few rows".into()));
    results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
}
