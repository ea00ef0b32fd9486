//! A decoded picture, and a part of one.

/// 8-bit RGB pixels, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `width · height · 3` bytes.
    pub data: Vec<u8>,
}

/// A part of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Columns left of it.
    pub left: usize,
    /// Rows above it.
    pub top: usize,
    /// Its columns.
    pub width: usize,
    /// Its rows.
    pub height: usize,
}

impl Window {
    /// The whole of a picture.
    pub fn whole(width: usize, height: usize) -> Self {
        Window { left: 0, top: 0, width, height }
    }
}

impl Rgb {
    /// A part of it, as a picture of its own. Of a part that reaches beyond it, what lies within; at least one pixel.
    pub fn cut(&self, part: Window) -> Rgb {
        let held = |from: usize, length: usize, size: usize| {
            let from = from.min(size.saturating_sub(1));
            (from, length.clamp(1, (size - from).max(1)))
        };
        let (left, width) = held(part.left, part.width, self.width);
        let (top, height) = held(part.top, part.height, self.height);
        let rows = self.data.chunks_exact((self.width * 3).max(1)).skip(top).take(height);
        let data = rows.flat_map(|row| &row[left * 3..(left + width) * 3]).copied().collect();
        Rgb { width, height, data }
    }

    /// Left becomes right.
    pub fn mirror(&mut self) {
        for row in self.data.chunks_exact_mut((self.width * 3).max(1)) {
            row.as_chunks_mut::<3>().0.reverse();
        }
    }
}
