//! Operations on places: each pixel is looked up where the inverse of a movement puts it.
//!
//! ```text
//! centre of an output pixel ─► matrix ─► a place in the picture ─► outside: fill; else 2×2 or 4×4 pixels around it, mixed
//! ```
//!
//! Pillow's cubic here has a = −1, unlike the one for resizing, and drops what is behind the point instead of rounding.
//!
//! Source: Pillow, `src/libImaging/Geometry.c`, `ImagingGenericTransform`, and `Image.rotate`.

use crate::media::Rgb;

/// How pixels around a place are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// Of 2×2 pixels.
    Bilinear,
    /// Of 4×4 pixels.
    Bicubic,
}

/// From an output place to one in the picture: `x' = a·x + b·y + c`, `y' = d·x + e·y + f`.
pub(super) type Matrix = [f64; 6];

/// The matrix that turns a picture counterclockwise around its middle.
pub(super) fn rotation(degrees: f64, width: usize, height: usize) -> Matrix {
    let angle = -degrees.rem_euclid(360.0).to_radians();
    let [cos, sin] = [angle.cos(), angle.sin()].map(to_fifteen_places);
    let (x, y) = (width as f64 / 2.0, height as f64 / 2.0);
    [cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y]
}

/// As Python's `round(v, 15)`.
fn to_fifteen_places(value: f64) -> f64 {
    format!("{value:.15}").parse().unwrap_or(value)
}

/// Moves a picture; what comes from outside of it is `fill`.
pub(super) fn moved(picture: &Rgb, matrix: Matrix, by: Interpolation, fill: [u8; 3]) -> Rgb {
    let &Rgb { width, height, .. } = picture;
    let [a, b, c, d, e, f] = matrix;
    let mut data = Vec::with_capacity(picture.data.len());
    for row in 0..height {
        let y = row as f64 + 0.5;
        for column in 0..width {
            let x = column as f64 + 0.5;
            let (x, y) = (a * x + b * y + c, d * x + e * y + f);
            let outside = x < 0.0 || x >= width as f64 || y < 0.0 || y >= height as f64;
            data.extend(match (outside, by) {
                (true, _) => fill,
                (false, Interpolation::Bilinear) => mixed::<2>(picture, x, y, linear),
                (false, Interpolation::Bicubic) => mixed::<4>(picture, x, y, cubic),
            });
        }
    }
    Rgb { width, height, data }
}

/// The mix of N×N pixels around a place within the picture. Beyond its edges, they repeat.
fn mixed<const N: usize>(picture: &Rgb, x: f64, y: f64, mix: fn([f64; N], f64) -> f64) -> [u8; 3] {
    let ((x, dx), (y, dy)) = (apart(x - 0.5), apart(y - 0.5));
    // Pixels before the one at the place itself.
    let before = N as i64 / 2 - 1;
    let held = |at: i64, size: usize| at.clamp(0, size as i64 - 1) as usize;
    let columns: [usize; N] = std::array::from_fn(|i| held(x - before + i as i64, picture.width) * 3);
    let rows: [usize; N] =
        std::array::from_fn(|i| held(y - before + i as i64, picture.height) * picture.width * 3);
    std::array::from_fn(|channel| {
        let down = rows.map(|row| mix(columns.map(|at| picture.data[row + at + channel].into()), dx));
        // As a number becomes a byte: held to 0 and 255, and cut.
        mix(down, dy) as u8
    })
}

/// The whole number below, and the rest.
fn apart(place: f64) -> (i64, f64) {
    let whole = place.floor();
    (whole as i64, place - whole)
}

fn linear([a, b]: [f64; 2], d: f64) -> f64 {
    a + (b - a) * d
}

fn cubic([a, b, c, d]: [f64; 4], t: f64) -> f64 {
    let (first, second, third) = (-a + c, 2.0 * (a - b) + c - d, -a + b - c + d);
    b + t * (first + t * (second + t * third))
}
