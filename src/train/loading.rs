//! Samples that are read by threads, and what becomes of those that cannot be.

use super::Stop;
use crate::models::DeviceKind;

/// What a run is given to work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Threads that make samples ready and, on the CPU, parts of a batch that are learned at a time.
    pub threads: usize,
    /// Where the network is.
    pub device: DeviceKind,
}

impl Machine {
    /// The CPU, with so many threads.
    pub fn cpu(threads: usize) -> Self {
        Machine { threads, device: DeviceKind::Cpu }
    }
}

/// Threads that make samples ready.
///
/// # Errors
/// [`Stop::Threads`].
pub(super) fn loaders(threads: usize) -> Result<rayon::ThreadPool, Stop> {
    let loaders = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("load-{i}"));
    loaders.build().map_err(|e| Stop::Threads(e.to_string()))
}

/// A batch without what cannot be used: the next whole sample takes the place of one that is not, so that every batch is full.
pub(super) struct Filled<T> {
    /// For each place, which sample of the batch is there, and what it is.
    pub(super) samples: Vec<(usize, T)>,
    /// Why others were left out.
    pub(super) spoiled: Vec<String>,
}

/// * `ready`: the samples of a batch, or why one cannot be used.
///
/// # Errors
/// [`Stop::Spoiled`] where none can be.
pub(super) fn filled<T: Clone>(ready: Vec<Result<T, String>>) -> Result<Filled<T>, Stop> {
    let spoiled: Vec<String> = ready.iter().filter_map(|one| one.as_ref().err().cloned()).collect();
    let next = |place: usize| {
        let all = (place..ready.len()).chain(0..place);
        all.filter_map(|i| Some((i, ready[i].as_ref().ok()?.clone()))).next()
    };
    let samples: Vec<(usize, T)> = (0..ready.len()).filter_map(next).collect();
    match samples.is_empty() {
        true => Err(Stop::Spoiled { why: spoiled.into_iter().next().unwrap_or_default() }),
        false => Ok(Filled { samples, spoiled }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_whole_sample_takes_the_place_of_a_spoiled_one() {
        let bad = |why: &str| Err(why.to_owned());
        let batch = filled(vec![bad("a"), Ok('b'), Ok('c'), bad("d"), bad("e")]).unwrap();
        assert_eq!(batch.samples, [(1, 'b'), (1, 'b'), (2, 'c'), (1, 'b'), (1, 'b')]);
        assert_eq!(batch.spoiled, ["a", "d", "e"]);
        let none = filled(vec![Err::<char, _>("x".to_owned())]);
        assert!(matches!(none, Err(Stop::Spoiled { why }) if why == "x"));
    }
}
