//! Rows in which all heads lie side by side, as rows of each head, and back.
//!
//! ```text
//! [B, L, row]   at ─► head 0 │ head 1 │ …        one of q, k, v in a row of all three
//!                     ▼  turned by the row's position, scaled
//! [B, H, S, d]  head 0: row 0, row 1, …          S ≥ L: rows that come from elsewhere stand behind
//! ```

/// Where heads lie in rows, and what becomes of them on the way.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    /// Batch, rows L, heads H, components of a head d.
    pub(super) sizes: [usize; 4],
    /// Numbers of a row, and the place in it where the first head begins.
    pub(super) row: usize,
    pub(super) at: usize,
    /// The first of the rows that are taken, of L.
    pub(super) first: usize,
    /// Cosines and sines `[L, d/2]` of the turns of components 2j and 2j + 1.
    pub(super) turns: Option<[&'a [f32]; 2]>,
    /// What all is multiplied by.
    pub(super) scale: f32,
}

impl Heads<'_> {
    /// Rows taken, of each input.
    pub(super) fn count(&self) -> usize {
        self.sizes[1] - self.first
    }

    /// `[B, L, row]` → `[B, H, S, d]`; rows behind those that are taken stay 0.
    pub(super) fn apart(&self, rows: &[f32], length: usize) -> Vec<f32> {
        let [batch, _, heads, head] = self.sizes;
        let mut apart = vec![0.0; batch * heads * length * head];
        self.walk(length, |position, wide, narrow| {
            let (from, into) = (&rows[wide..wide + head], &mut apart[narrow..narrow + head]);
            match self.turns(position) {
                Some([cos, sin]) => turn(from, into, cos, sin, self.scale),
                None => into.iter_mut().zip(from).for_each(|(into, from)| *into = from * self.scale),
            }
        });
        apart
    }

    /// The gradient of the rows, `[B, L, row]`, for one of what [`Heads::apart`] made of them; written into its place.
    pub(super) fn together(&self, apart: &[f32], length: usize, rows: &mut [f32]) {
        let head = self.sizes[3];
        self.walk(length, |position, wide, narrow| {
            let (from, into) = (&apart[narrow..narrow + head], &mut rows[wide..wide + head]);
            match self.turns(position) {
                Some([cos, sin]) => turn_back(from, into, cos, sin, self.scale),
                None => into.iter_mut().zip(from).for_each(|(into, from)| *into = from * self.scale),
            }
        });
    }

    /// Goes through all heads of all rows: position, place in the rows, place among the heads.
    fn walk(&self, length: usize, mut each: impl FnMut(usize, usize, usize)) {
        let [batch, rows, heads, head] = self.sizes;
        for input in 0..batch {
            for position in self.first..rows {
                let wide = (input * rows + position) * self.row + self.at;
                for h in 0..heads {
                    let narrow = ((input * heads + h) * length + position - self.first) * head;
                    each(position, wide + h * head, narrow);
                }
            }
        }
    }

    fn turns(&self, position: usize) -> Option<[&[f32]; 2]> {
        let half = self.sizes[3] / 2;
        self.turns.map(|turns| turns.map(|table| &table[position * half..(position + 1) * half]))
    }
}

fn turn(from: &[f32], into: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    let pairs = from.as_chunks::<2>().0.iter().zip(into.as_chunks_mut::<2>().0);
    for (([even, odd], into), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
        *into = [(even * cos - odd * sin) * scale, (even * sin + odd * cos) * scale];
    }
}

fn turn_back(from: &[f32], into: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    let pairs = from.as_chunks::<2>().0.iter().zip(into.as_chunks_mut::<2>().0);
    for (([even, odd], into), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
        *into = [(even * cos + odd * sin) * scale, (odd * cos - even * sin) * scale];
    }
}
