//! A batch in parts, one for each lane.
//!
//! ```text
//! a batch ─► a part for each lane, one thread of its own ─► what it gives ─► in the order of the parts
//! ```
//! Parts, because candle works on all but its matrix products with one thread. The same lanes give the same bits.

use std::ops::Range;
use std::thread::ScopedJoinHandle;

use candle_core::Device;

use super::{Gradients, Sum};
use crate::models::Error;

/// Threads that work on a part of a batch each.
#[derive(Default)]
pub(in crate::models) struct Lanes(Vec<rayon::ThreadPool>);

impl Lanes {
    /// * `threads`: parts at a time; 0 is taken as 1. On a card there are none: it works on all of a batch.
    ///
    /// # Errors
    /// [`Error::Device`] where no thread can be started.
    pub(in crate::models) fn start(threads: usize, device: &Device) -> Result<Self, Error> {
        if !device.is_cpu() {
            return Ok(Lanes::default());
        }
        let lanes = (0..threads.max(1)).map(|i| {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| format!("learn-{i}"));
            pool.build().map_err(|e| Error::Device { asked: "cpu".into(), why: e.to_string() })
        });
        Ok(Lanes(lanes.collect::<Result<_, _>>()?))
    }

    /// Works on `0..count` in parts of one size, the last maybe smaller; without lanes, on all of it where it is called.
    ///
    /// # Errors
    /// The first part's that failed.
    pub(in crate::models) fn over<T: Send>(
        &self,
        count: usize,
        part: &(dyn Fn(Range<usize>) -> Result<T, Error> + Sync),
    ) -> Result<Vec<T>, Error> {
        if self.0.is_empty() {
            return Ok(vec![part(0..count)?]);
        }
        let size = count.div_ceil(self.0.len()).max(1);
        let parts = (0..count).step_by(size).map(|first| first..count.min(first + size));
        std::thread::scope(|scope| {
            let running: Vec<_> = parts
                .zip(&self.0)
                .map(|(rows, lane)| scope.spawn(move || lane.install(|| part(rows))))
                .collect();
            let join = |part: ScopedJoinHandle<'_, _>| {
                part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            // All are waited for before the first failure is told.
            running.into_iter().map(join).collect::<Vec<_>>().into_iter().collect()
        })
    }

    /// The loss and the gradients of a batch whose parts give their shares of both.
    ///
    /// # Errors
    /// As [`Lanes::over`].
    pub(in crate::models) fn sum(
        &self,
        count: usize,
        part: &(dyn Fn(Range<usize>) -> Result<(f32, Gradients), Error> + Sync),
    ) -> Result<(f32, Gradients), Error> {
        let (mut loss, mut sum) = (0.0, Sum::default());
        for (share, gradients) in self.over(count, part)? {
            loss += share;
            sum.add(gradients)?;
        }
        Ok((loss, sum.times(1.0)?))
    }
}
