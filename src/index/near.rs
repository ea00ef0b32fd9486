//! Distances between rows of an index by the codes that it is searched on, whichever these are.

use half::f16;

use super::CodeKind;
use super::chunks::Chunks;
use super::space::Look;
use crate::kernels::{self, Kernels};

/// What a distance of 1 is as a whole number, for codes that are numbers themselves: twice the largest fits.
const UNIT: f32 = (1u32 << 28) as f32;

/// Distances from one row. They are squared ones, each kind of codes in a unit of its own.
pub(super) struct CodeView<'a> {
    codes: &'a Chunks,
    kind: CodeKind,
    kernels: Kernels,
    /// Of 4-bit codes, the squared length of each.
    squares: &'a [u32],
    slot: u32,
    /// Of codes that are numbers: the row.
    row: Vec<f32>,
}

impl<'a> CodeView<'a> {
    /// * `squares`: [`CodeView::squares`] of the same codes.
    pub(super) fn new(codes: &'a Chunks, kind: CodeKind, squares: &'a [u32]) -> Self {
        CodeView { codes, kind, kernels: Kernels::get(), squares, slot: 0, row: Vec::new() }
    }

    /// The squared lengths of all rows, where they are needed.
    pub(super) fn squares(codes: &Chunks, kind: CodeKind) -> Vec<u32> {
        match kind {
            CodeKind::U4 => (0..codes.len() as u32).map(|slot| Self::square(codes.row(slot))).collect(),
            CodeKind::U8 | CodeKind::F16 | CodeKind::F32 => Vec::new(),
        }
    }

    /// The squared length of a row of 4-bit codes.
    pub(super) fn square(code: &[u8]) -> u32 {
        Kernels::get().product_nibbles(code, code)
    }
}

impl Look for CodeView<'_> {
    fn turn(&mut self, slot: u32) {
        self.slot = slot;
        let code = self.codes.row(slot);
        self.row.clear();
        match self.kind {
            CodeKind::U4 | CodeKind::U8 => {}
            CodeKind::F16 => {
                self.row.extend(bytemuck::cast_slice::<u8, f16>(code).iter().map(|v| v.to_f32()))
            }
            CodeKind::F32 => self.row.extend_from_slice(bytemuck::cast_slice(code)),
        }
    }

    fn distance(&self, to: u32) -> u32 {
        let row = self.codes.row(to);
        let of_unit_rows = |dot: f32| ((2.0 - 2.0 * dot).max(0.0) * UNIT) as u32;
        match self.kind {
            CodeKind::U4 => {
                let product = self.kernels.product_nibbles(self.codes.row(self.slot), row);
                self.squares[self.slot as usize] + self.squares[to as usize] - 2 * product
            }
            CodeKind::U8 => self.kernels.distance_codes(self.codes.row(self.slot), row),
            CodeKind::F16 => of_unit_rows(self.kernels.dot_f16(&self.row, bytemuck::cast_slice(row))),
            CodeKind::F32 => of_unit_rows(self.kernels.dot(&self.row, bytemuck::cast_slice(row))),
        }
    }

    fn distances(&self, to: &[u32], out: &mut Vec<u32>) {
        to.iter().for_each(|&to| kernels::prefetch(self.codes.row(to)));
        out.clear();
        out.extend(to.iter().map(|&to| self.distance(to)));
    }
}
