//! The world of the nano model: drawn scenes, and what can be said of them.
//!
//! A scene is one object on a background. 2560 can be told apart by their five attributes, and no two
//! pictures of the same scene are alike: place, rotation, colour, drawing style and noise vary within it.
//!
//! ```text
//!   seed ──► key of the set ── + index ──► generator ──► scene ──► style ──► pixels
//!            (train, test, comb or style)
//! ```
//! A picture is a pure function of (seed, set, index).
//!
//! | file | content |
//! |---|---|
//! | `scene.rs` | the five attributes, their words, the pairs held out |
//! | `shape.rs` | what is inside each shape |
//! | `picture.rs` | from a scene to pixels |
//! | `words.rs` | captions in other words, and what a caption gets right |
//! | `questions.rs` | questions about a scene, with their answers |
//! | `speech.rs` | scenes that are spoken of |

pub mod picture;
pub mod questions;
pub mod scene;
mod shape;
pub mod speech;
pub mod words;

use image::{ImageEncoder, ImageResult, codecs::png::PngEncoder};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

pub use picture::{SIDE, Style, draw};
pub use scene::Scene;
pub use words::{Attribute, Wording};

/// The seed of the pictures that everybody gets who does not ask for others.
pub const DEFAULT_SEED: u64 = 1;

/// Sets of pictures, each with a random stream of its own.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, clap::ValueEnum)]
pub enum Set {
    /// Ordinary pictures, to train on and to fill caches with.
    Train,
    /// Ordinary pictures, to measure on.
    Test,
    /// Only pairs of colour and shape that no other set shows.
    Comb,
    /// Only the hatched drawing style, which no other set shows.
    Style,
}

impl Set {
    /// The scene at `index`, the style it is drawn in, and the generator to [`draw`] it with.
    pub fn scene(self, seed: u64, index: u64) -> (Scene, Style, Pcg64) {
        // Keys come first, so that (seed, index + 1) is not (seed + 1, index) under another name.
        let keys: [u64; 4] = Pcg64::seed_from_u64(seed).random();
        let mut rng = Pcg64::seed_from_u64(keys[self as usize].wrapping_add(index));
        let scene = loop {
            let scene = Scene::any(&mut rng);
            if scene.is_held_out() == (self == Set::Comb) {
                break scene;
            }
        };
        let style = match self {
            Set::Style => Style::Hatched,
            _ => Style::ORDINARY[rng.random_range(0..Style::ORDINARY.len())],
        };
        (scene, style, rng)
    }
}

/// A picture as a PNG file.
///
/// * `pixels`: row by row, length [`SIDE`]².
///
/// # Errors
/// Those of the encoder.
pub fn png(pixels: &[[u8; 3]]) -> ImageResult<Vec<u8>> {
    let mut file = Vec::new();
    let encoder = PngEncoder::new(&mut file);
    encoder.write_image(pixels.as_flattened(), SIDE, SIDE, image::ExtendedColorType::Rgb8)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::ValueEnum;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_picture_depends_on_seed_set_and_index_only(seed: u64, index: u64) {
            for set in Set::value_variants() {
                let draw_it = || {
                    let (scene, style, mut rng) = set.scene(seed, index);
                    (scene, style, draw(&scene, style, &mut rng))
                };
                let (scene, style, pixels) = draw_it();
                prop_assert_eq!((scene, style, pixels), draw_it());
                prop_assert_eq!(scene.is_held_out(), *set == Set::Comb);
                prop_assert_eq!(style == Style::Hatched, *set == Set::Style);
            }
        }
    }

    #[test]
    fn every_ordinary_scene_and_style_is_drawn_and_no_other() {
        let drawn: Vec<_> = (0..60_000).map(|index| Set::Train.scene(DEFAULT_SEED, index)).collect();
        let scenes: HashSet<Scene> = drawn.iter().map(|(scene, ..)| *scene).collect();
        assert_eq!(scenes.len(), 2560 * 7 / 8);
        assert!(scenes.iter().all(|scene| !scene.is_held_out()));
        for style in Style::ORDINARY {
            let share = drawn.iter().filter(|(_, its, _)| *its == style).count() as f64 / drawn.len() as f64;
            assert!((share - 1.0 / 3.0).abs() < 0.01, "{style:?}: {share}");
        }
        let comb: HashSet<_> = (0..10_000).map(|index| Set::Comb.scene(DEFAULT_SEED, index).0).collect();
        assert_eq!(comb.len(), 2560 / 8);
    }

    /// Fails when an upgrade changes the generators, and with them every picture.
    #[test]
    fn the_first_scenes_stay_what_they_are() {
        let first = |set: Set| (0..2).map(move |index| set.scene(DEFAULT_SEED, index).0.caption());
        let captions: Vec<_> = Set::value_variants().iter().flat_map(|set| first(*set)).collect();
        let expected = "a large pink ring at the bottom on a grey background
a small yellow ring at the top on a grey background
a small red crescent at the left on a striped background
a large green circle in the centre on a black background
a large red square at the right on a black background
a large pink star at the right on a black background
a large green star at the left on a grey background
a large orange square at the bottom on a striped background";
        assert_eq!(captions.join("\n"), expected);
    }
}
