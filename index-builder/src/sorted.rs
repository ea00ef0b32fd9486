//! Much sorted in little memory: sorted runs go to temporary files and are merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Seek, Write};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Takes values in any order and gives them back in theirs.
pub struct Sorter<T> {
    held: Vec<T>,
    /// Bytes of what is held, about, and how many may be.
    bytes: usize,
    most: usize,
    /// Each a JSON line a value.
    runs: Vec<File>,
}

impl<T: Ord + Serialize + DeserializeOwned> Sorter<T> {
    /// * `most`: bytes that may be held, as they are told to [`Sorter::push`].
    pub fn new(most: usize) -> Self {
        Sorter { held: Vec::new(), bytes: 0, most, runs: Vec::new() }
    }

    /// Takes a value.
    ///
    /// * `bytes`: what it takes.
    ///
    /// # Errors
    /// When a temporary file cannot be written.
    pub fn push(&mut self, value: T, bytes: usize) -> anyhow::Result<()> {
        self.held.push(value);
        self.bytes += bytes;
        if self.bytes > self.most {
            self.put_down()
                .context("what is to be sorted cannot be put down; name a folder for it by TMPDIR")?;
        }
        Ok(())
    }

    fn put_down(&mut self) -> anyhow::Result<()> {
        self.held.sort_unstable();
        let mut file = BufWriter::new(tempfile::tempfile()?);
        for value in self.held.drain(..) {
            serde_json::to_writer(&mut file, &value)?;
            file.write_all(b"\n")?;
        }
        let mut file = file.into_inner().map_err(|e| e.into_error())?;
        file.rewind()?;
        self.runs.push(file);
        self.bytes = 0;
        Ok(())
    }

    /// Visits all of them in order.
    ///
    /// # Errors
    /// When a temporary file cannot be read; what `visit` fails with.
    pub fn each(mut self, mut visit: impl FnMut(T) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.held.sort_unstable();
        let mut runs: Vec<_> = self.runs.into_iter().map(|run| BufReader::new(run).lines()).collect();
        let mut held = self.held.into_iter();
        let last = runs.len();
        let mut next = |run: usize| -> anyhow::Result<Option<T>> {
            match runs.get_mut(run) {
                Some(lines) => lines.next().map(|line| Ok(serde_json::from_str(&line?)?)).transpose(),
                None => Ok(held.next()),
            }
        };
        let mut firsts = BinaryHeap::new();
        for run in 0..=last {
            firsts.extend(next(run)?.map(|value| Reverse((value, run))));
        }
        while let Some(Reverse((value, run))) = firsts.pop() {
            firsts.extend(next(run)?.map(|value| Reverse((value, run))));
            visit(value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_sorts_as_memory_does(
            mut values in prop::collection::vec((".{0,4}", any::<u8>()), 0..200), most in 0usize..400
        ) {
            let mut sorter = Sorter::new(most);
            for value in &values {
                sorter.push(value.clone(), value.0.len() + 1).unwrap();
            }
            prop_assert!(sorter.bytes <= most);
            let mut sorted = Vec::new();
            sorter.each(|value| { sorted.push(value); Ok(()) }).unwrap();
            values.sort();
            prop_assert_eq!(sorted, values);
        }
    }
}
