//! Rows as a build reads them: from the first to the last, as often as it needs, never all in memory.
//!
//! A million rows of ImageBind are 4 GiB, their 8-bit codes one. So a build reads rows in passes, of which each keeps what it
//! is there for: a sample to train a codec, codes, the best of some queries.

use rayon::prelude::*;

use super::quant::SAMPLE;
use super::{Codec, Error};

/// Rows worked on at a time: enough for every core, and a few MiB.
const CHUNK: usize = 2048;

/// Rows that can be read in order.
pub trait Rows: Sync {
    /// Why reading fails.
    type Error: From<Error>;

    /// Components of a row.
    fn dim(&self) -> usize;

    /// Number of rows.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Visits the rows in the order of their slots, `CHUNK` or fewer at a time: the first one's slot, and row-major rows.
    ///
    /// # Errors
    /// As the source fails.
    fn each(&self, visit: &mut dyn FnMut(usize, &[f32])) -> Result<(), Self::Error>;
}

/// Rows in memory, row-major.
#[derive(Debug, Clone, Copy)]
pub struct InMemory<'a> {
    /// `[n, dim]`.
    pub rows: &'a [f32],
    /// Components of a row.
    pub dim: usize,
}

impl Rows for InMemory<'_> {
    type Error = Error;

    fn dim(&self) -> usize {
        self.dim
    }

    fn len(&self) -> usize {
        self.rows.len() / self.dim
    }

    fn each(&self, visit: &mut dyn FnMut(usize, &[f32])) -> Result<(), Error> {
        let chunks = self.rows.chunks(CHUNK * self.dim).enumerate();
        chunks.for_each(|(i, rows)| visit(i * CHUNK, rows));
        Ok(())
    }
}

/// Gathers single rows into chunks for [`Rows::each`].
pub struct Chunks<'a> {
    rows: Vec<f32>,
    dim: usize,
    next: usize,
    visit: &'a mut dyn FnMut(usize, &[f32]),
}

impl<'a> Chunks<'a> {
    /// Of rows of `dim` components.
    pub fn new(dim: usize, visit: &'a mut dyn FnMut(usize, &[f32])) -> Self {
        Chunks { rows: Vec::with_capacity(CHUNK * dim), dim, next: 0, visit }
    }

    /// Takes the next row.
    pub fn push(&mut self, row: impl IntoIterator<Item = f32>) {
        self.rows.extend(row);
        if self.rows.len() >= CHUNK * self.dim {
            self.finish();
        }
    }

    /// Hands on what is left.
    pub fn finish(&mut self) {
        if !self.rows.is_empty() {
            (self.visit)(self.next, &self.rows);
            self.next += self.rows.len() / self.dim;
            self.rows.clear();
        }
    }
}

/// An even sample of the rows, as much as training a codec looks at; row-major.
///
/// # Errors
/// As the rows fail.
pub fn sample<R: Rows>(rows: &R) -> Result<Vec<f32>, R::Error> {
    let every = rows.len().div_ceil(SAMPLE).max(1);
    let mut sample = Vec::with_capacity(rows.len().div_ceil(every) * rows.dim());
    rows.each(&mut |start, chunk| {
        let chosen =
            chunk.chunks_exact(rows.dim()).enumerate().filter(|(i, _)| (start + i).is_multiple_of(every));
        chosen.for_each(|(_, row)| sample.extend_from_slice(row));
    })?;
    Ok(sample)
}

/// The codes of all rows by each of some codecs, in one pass, on all threads of the current rayon pool.
///
/// # Errors
/// As the rows fail.
pub fn encode<R: Rows, const N: usize>(
    rows: &R,
    codecs: [&Codec; N],
    progress: &(impl Fn(usize) + Sync),
) -> Result<[Vec<u8>; N], R::Error> {
    let mut codes = codecs.map(|codec| vec![0u8; rows.len() * codec.stride()]);
    rows.each(&mut |start, chunk| {
        for (codec, codes) in codecs.iter().zip(&mut codes) {
            let into = codes[start * codec.stride()..].par_chunks_exact_mut(codec.stride());
            into.zip(chunk.par_chunks_exact(rows.dim())).for_each(|(code, row)| codec.encode_row(row, code));
        }
        progress(chunk.len() / rows.dim());
    })?;
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use super::super::CodeKind;
    use super::*;

    fn rows(n: usize, dim: usize) -> Vec<f32> {
        let mut state = 9u64;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..n * dim).map(next).collect()
    }

    #[test]
    fn passes_give_what_rows_in_memory_give() {
        let dim = 16;
        for n in [1, CHUNK - 1, CHUNK, 3 * CHUNK + 5] {
            let values = rows(n, dim);
            let source = InMemory { rows: &values, dim };
            let (wide, narrow) =
                (Codec::train(CodeKind::U8, &values, dim), Codec::train(CodeKind::U4, &values, dim));
            let codes = encode(&source, [&wide, &narrow], &|_| ()).unwrap();
            assert_eq!(codes, [wide.encode(&values), narrow.encode(&values)]);
            let mut again = Vec::new();
            let mut chunks = |start: usize, rows: &[f32]| {
                assert_eq!(start * dim, again.len());
                again.extend_from_slice(rows);
            };
            let mut gathered = Chunks::new(dim, &mut chunks);
            values.chunks_exact(dim).for_each(|row| gathered.push(row.iter().copied()));
            gathered.finish();
            assert_eq!(again, values);
        }
    }

    #[test]
    fn a_sample_is_even() {
        let values: Vec<f32> = (0..SAMPLE as u32 * 2 + 1).map(|i| i as f32).collect();
        let sample = sample(&InMemory { rows: &values, dim: 1 }).unwrap();
        assert_eq!(sample.len(), (SAMPLE * 2 + 1).div_ceil(3));
        assert!(sample.windows(2).all(|pair| pair[1] - pair[0] == 3.0));
    }
}
