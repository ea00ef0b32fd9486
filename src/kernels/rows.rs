//! Many rows for one query: the loop that every path shares, and what is left over behind whole registers.

use super::prefetch::prefetch;

/// Rows of one length, each found by its slot.
pub trait Table<T>: Copy {
    /// The row of a slot.
    ///
    /// * `len`: components of every row.
    ///
    /// # Panics
    /// For a slot that the table does not have.
    fn row(&self, slot: u32, len: usize) -> &[T];
}

/// Rows one behind the other.
impl<T> Table<T> for &[T] {
    #[inline(always)]
    fn row(&self, slot: u32, len: usize) -> &[T] {
        &self[slot as usize * len..][..len]
    }
}

/// How many rows ahead of the current one are fetched. 8 and 16 measure alike, 2 loses a tenth.
const ROWS_AHEAD: usize = 8;

/// Scores rows one by one, fetching ahead. Inlined into each instruction set's own function, so that `one` is compiled
/// for it.
#[inline(always)]
pub(super) fn score_rows<T, S>(
    rows: impl Table<T>,
    slots: &[u32],
    len: usize,
    out: &mut Vec<S>,
    one: impl Fn(&[T]) -> S,
) {
    let row = |slot: u32| rows.row(slot, len);
    slots.iter().take(ROWS_AHEAD).for_each(|&slot| prefetch(row(slot)));
    out.clear();
    out.reserve(slots.len());
    for (i, &slot) in slots.iter().enumerate() {
        if let Some(&ahead) = slots.get(i + ROWS_AHEAD) {
            prefetch(row(ahead));
        }
        out.push(one(row(slot)));
    }
}

/// Goes over two rows together, some values of each at a time, and hands back what is left of both.
///
/// A `zip` would do if every build brought the parts of a crate together in the end: where they stay apart, it is a call for
/// every step.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn side_by_side<'a, const A: usize, const B: usize, T, U>(
    a: &'a [T],
    b: &'a [U],
    mut visit: impl FnMut(&[T; A], &[U; B]),
) -> (&'a [T], &'a [U]) {
    let ((a, a_left), (b, b_left)) = (a.as_chunks(), b.as_chunks());
    let (mut i, end) = (0, if a.len() < b.len() { a.len() } else { b.len() });
    while i < end {
        visit(&a[i], &b[i]);
        i += 1;
    }
    (a_left, b_left)
}

/// What is left over behind whole registers; usually nothing, and then no call spills them.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(super) fn tail<A, B, S: Default>(a: &[A], b: &[B], scalar: impl Fn(&[A], &[B]) -> S) -> S {
    if a.is_empty() { S::default() } else { scalar(a, b) }
}
