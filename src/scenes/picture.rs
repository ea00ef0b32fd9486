//! From a scene to pixels.
//!
//! ```text
//!   pixel = background · (1 − coverage) + coverage · colour · style + noise
//! ```
//!
//! Coverage is the share of four samples per pixel that are inside the shape. Coordinates are in pixels, x to
//! the right, y down, centres of pixels at +0.5. All arithmetic is f32; sines and logarithms come from the
//! platform, so that on another one a channel may be rounded the other way.

use std::f32::consts::{PI, TAU};
use std::ops::Range;

use rand::{Rng, RngExt};

use super::scene::{Background, Colour, Position, Scene, Shape, Size};

/// Width and height of a picture, in pixels.
pub const SIDE: u32 = 64;

/// How far colours and greys stray from their own value, per picture.
const JITTER: Range<f32> = -0.05..0.05;

/// How the object is filled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Style {
    /// One colour.
    Flat,
    /// Darker toward one side.
    Shaded,
    /// Each pixel darkened by chance.
    Speckled,
    /// Dark stripes. Kept from everything that learns, as [`Scene::is_held_out`] pairs are.
    Hatched,
}

impl Style {
    /// The styles of every set but [`Set::Style`](super::Set::Style).
    pub const ORDINARY: [Style; 3] = [Style::Flat, Style::Shaded, Style::Speckled];
}

/// Draws one of the many pictures of `scene`.
///
/// * Returns RGB, row by row from the top, length [`SIDE`]².
pub fn draw(scene: &Scene, style: Style, rng: &mut impl Rng) -> Vec<[u8; 3]> {
    // The order of the draws is part of what a seed means: change it and every picture changes.
    let object = Object::any(scene, rng);
    let backdrop = Backdrop::any(scene.background, rng);
    let colour = rgb(scene.colour).map(|channel| channel + rng.random_range(JITTER));
    let fill = Fill::any(style, rng);
    let mut noise = Noise { sigma: rng.random_range(0.0..0.06), spare: None };

    let mut pixels = Vec::with_capacity((SIDE * SIDE) as usize);
    for (row, column) in (0..SIDE).flat_map(|row| (0..SIDE).map(move |column| (row, column))) {
        let (x, y) = (column as f32 + 0.5, row as f32 + 0.5);
        let coverage = object.coverage(x, y);
        let behind = backdrop.grey(x, y) * (1.0 - coverage);
        let factor = fill.factor(&object, x, y, rng);
        pixels.push(colour.map(|channel| {
            let value = behind + coverage * channel * factor + noise.next(rng);
            (value.clamp(0.0, 1.0) * 255.0).round() as u8
        }));
    }
    pixels
}

fn rgb(colour: Colour) -> [f32; 3] {
    match colour {
        Colour::Red => [0.85, 0.10, 0.10],
        Colour::Green => [0.10, 0.60, 0.15],
        Colour::Blue => [0.12, 0.20, 0.85],
        Colour::Yellow => [0.95, 0.85, 0.10],
        Colour::Orange => [0.97, 0.50, 0.05],
        Colour::Purple => [0.50, 0.10, 0.65],
        Colour::Pink => [0.98, 0.55, 0.75],
        Colour::Cyan => [0.10, 0.80, 0.85],
    }
}

/// A shape put into its place.
struct Object {
    shape: Shape,
    centre_x: f32,
    centre_y: f32,
    radius: f32,
    sin: f32,
    cos: f32,
}

impl Object {
    fn any(scene: &Scene, rng: &mut impl Rng) -> Object {
        let (low, middle, high) = (17.5..20.5, 29.5..34.5, 43.5..46.5);
        let (columns, rows) = match scene.position {
            Position::Left => (low, middle),
            Position::Right => (high, middle),
            Position::Top => (middle, low),
            Position::Bottom => (middle, high),
            Position::Centre => (middle.clone(), middle),
        };
        let radius = match scene.size {
            Size::Small => rng.random_range(7.5..10.0),
            Size::Large => rng.random_range(13.5..17.0),
        };
        let (centre_x, centre_y) = (rng.random_range(columns), rng.random_range(rows));
        let (sin, cos) = rng.random_range(-25f32..25.0).to_radians().sin_cos();
        Object { shape: scene.shape, centre_x, centre_y, radius, sin, cos }
    }

    fn contains(&self, x: f32, y: f32) -> bool {
        let (dx, dy) = (x - self.centre_x, y - self.centre_y);
        let (u, v) = (self.cos * dx + self.sin * dy, self.cos * dy - self.sin * dx);
        self.shape.contains(u / self.radius, v / self.radius)
    }

    /// The share of the pixel around (x, y) that the object covers, in quarters.
    fn coverage(&self, x: f32, y: f32) -> f32 {
        let samples = [(-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25)];
        samples.iter().filter(|(dx, dy)| self.contains(x + dx, y + dy)).count() as f32 / 4.0
    }
}

/// Bands of equal width, every other one lit.
struct Stripes {
    sin: f32,
    cos: f32,
    period: f32,
    phase: f32,
}

impl Stripes {
    /// Any direction and a period out of `periods`, in pixels; the origin is at the edge of a lit band.
    fn any(periods: Range<f32>, rng: &mut impl Rng) -> Stripes {
        let (sin, cos) = rng.random_range(0.0..PI).sin_cos();
        Stripes { sin, cos, period: rng.random_range(periods), phase: 0.0 }
    }

    fn lit(&self, x: f32, y: f32) -> bool {
        (x * self.cos + y * self.sin + self.phase).rem_euclid(self.period) < self.period / 2.0
    }
}

/// What is behind the object; grey throughout.
enum Backdrop {
    Plain(f32),
    Striped { light: f32, dark: f32, stripes: Stripes },
}

impl Backdrop {
    fn any(background: Background, rng: &mut impl Rng) -> Backdrop {
        let mut near = |grey: f32| grey + rng.random_range(JITTER);
        match background {
            Background::White => Backdrop::Plain(near(0.95)),
            Background::Grey => Backdrop::Plain(near(0.50)),
            Background::Black => Backdrop::Plain(near(0.05)),
            Background::Striped => {
                let (light, dark) = (near(0.70), near(0.30));
                let mut stripes = Stripes::any(6.0..10.0, rng);
                stripes.phase = rng.random_range(0.0..stripes.period);
                Backdrop::Striped { light, dark, stripes }
            }
        }
    }

    fn grey(&self, x: f32, y: f32) -> f32 {
        match self {
            Backdrop::Plain(grey) => *grey,
            Backdrop::Striped { light, dark, stripes } => {
                if stripes.lit(x, y) {
                    *light
                } else {
                    *dark
                }
            }
        }
    }
}

/// A [`Style`] with its own draws made.
enum Fill {
    Flat,
    Shaded { sin: f32, cos: f32 },
    Speckled,
    Hatched(Stripes),
}

impl Fill {
    fn any(style: Style, rng: &mut impl Rng) -> Fill {
        match style {
            Style::Flat => Fill::Flat,
            Style::Shaded => {
                let (sin, cos) = rng.random_range(0.0..TAU).sin_cos();
                Fill::Shaded { sin, cos }
            }
            Style::Speckled => Fill::Speckled,
            Style::Hatched => Fill::Hatched(Stripes::any(3.5..5.5, rng)),
        }
    }

    /// What the colour at (x, y) is multiplied by.
    fn factor(&self, object: &Object, x: f32, y: f32, rng: &mut impl Rng) -> f32 {
        match self {
            Fill::Flat => 1.0,
            Fill::Shaded { sin, cos } => {
                let toward = (x - object.centre_x) * cos + (y - object.centre_y) * sin;
                (0.8 + 0.2 * toward / object.radius).clamp(0.55, 1.05)
            }
            Fill::Speckled => 1.0 - 0.35 * rng.random::<f32>(),
            Fill::Hatched(stripes) if stripes.lit(x, y) => 1.0,
            Fill::Hatched(_) => 0.6,
        }
    }
}

/// Normal numbers of standard deviation `sigma`, by Box and Muller: two at a time, one kept for the next
/// call.
struct Noise {
    sigma: f32,
    spare: Option<f32>,
}

impl Noise {
    fn next(&mut self, rng: &mut impl Rng) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        // 1 − U is in (0, 1], where the logarithm is finite.
        let length = self.sigma * (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
        let (sin, cos) = (TAU * rng.random::<f32>()).sin_cos();
        self.spare = Some(length * sin);
        length * cos
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_pcg::Pcg64;

    use super::*;

    const SCENE: Scene = Scene {
        colour: Colour::Red,
        shape: Shape::Square,
        size: Size::Large,
        position: Position::Centre,
        background: Background::White,
    };

    /// Pictures of `scene`, as colours in 0..=1.
    fn pictures(scene: Scene, style: Style, count: usize) -> Vec<Vec<[f64; 3]>> {
        let mut rng = Pcg64::seed_from_u64(7);
        let unit = |pixel: [u8; 3]| pixel.map(|channel| f64::from(channel) / 255.0);
        (0..count).map(|_| draw(&scene, style, &mut rng).into_iter().map(unit).collect()).collect()
    }

    /// Mean colour over the middle of all `pictures`, where a large centred square always is.
    fn middle(pictures: &[Vec<[f64; 3]>]) -> [f64; 3] {
        let inside =
            |i: &usize| (30..34).contains(&(i / SIDE as usize)) && (30..34).contains(&(i % SIDE as usize));
        let mut sum = [0.0; 3];
        for picture in pictures {
            for i in (0..picture.len()).filter(inside) {
                sum = std::array::from_fn(|channel| sum[channel] + picture[i][channel]);
            }
        }
        sum.map(|sum| sum / (16 * pictures.len()) as f64)
    }

    #[test]
    fn flat_red_is_red_and_the_other_styles_are_darker() {
        let [red, green, blue] = middle(&pictures(SCENE, Style::Flat, 400));
        for (mean, expected) in [(red, 0.85), (green, 0.10), (blue, 0.10)] {
            assert!((mean - expected).abs() < 0.01, "{mean}, expected {expected}");
        }
        // Mean factors: the middle of the shading, 1 − 0.35/2, and half 1.0 half 0.6.
        for (style, factor) in [(Style::Shaded, 0.8), (Style::Speckled, 0.825), (Style::Hatched, 0.8)] {
            let mean = middle(&pictures(SCENE, style, 400))[0];
            assert!((mean / red - factor).abs() < 0.02, "{style:?}: {mean}, expected {}", factor * red);
        }
    }

    #[test]
    fn objects_are_where_they_should_be() {
        let places =
            [(Position::Left, 19.0, 32.0), (Position::Bottom, 32.0, 45.0), (Position::Centre, 32.0, 32.0)];
        for (position, expected_x, expected_y) in places {
            for picture in pictures(Scene { position, size: Size::Small, ..SCENE }, Style::Flat, 50) {
                let red: Vec<_> =
                    (0..picture.len()).filter(|i| picture[*i][0] - picture[*i][1] > 0.4).collect();
                let mean = |of: fn(usize) -> usize| {
                    red.iter().map(|i| of(*i) as f64 + 0.5).sum::<f64>() / red.len() as f64
                };
                let (x, y) = (mean(|i| i % SIDE as usize), mean(|i| i / SIDE as usize));
                assert!(
                    (x - expected_x).abs() < 3.0 && (y - expected_y).abs() < 3.0,
                    "{position:?}: {x}, {y}"
                );
                // Area 2.56 r²: r between 7.5 and 10.
                assert!((130..=270).contains(&red.len()), "{position:?}: {} pixels", red.len());
            }
        }
    }

    #[test]
    fn noise_is_normal() {
        let mut rng = Pcg64::seed_from_u64(7);
        let mut noise = Noise { sigma: 0.5, spare: None };
        let drawn: Vec<f64> = (0..200_000).map(|_| f64::from(noise.next(&mut rng)) / 0.5).collect();
        // Of a standard normal number: mean, variance, fourth moment.
        for (power, expected, tolerance) in [(1, 0.0, 0.01), (2, 1.0, 0.015), (4, 3.0, 0.1)] {
            let moment = drawn.iter().map(|value| value.powi(power)).sum::<f64>() / drawn.len() as f64;
            assert!((moment - expected).abs() < tolerance, "moment {power}: {moment}, expected {expected}");
        }
    }
}
