//! What a batch is made of: scenes of a small world, their pictures, and sounds as they may be heard.

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use rand_pcg::Pcg64;

use super::recipe::{SpeechOptions, World};
use crate::media::audio::{AudioFront, Sound};
use crate::media::image::prepare_rgb;
use crate::media::{self, Rgb};
use crate::scenes::scene::{Colour, Shape};
use crate::scenes::{SIDE, Scene, Set, draw};

/// Scenes of some colours and shapes.
pub(super) struct Place {
    colours: Vec<Colour>,
    shapes: Vec<Shape>,
}

impl Place {
    /// Some of the colours and shapes, of which at least one pair is not held out.
    pub(super) fn any(world: &World, random: &mut Pcg64) -> Place {
        fn some<T: Copy>(all: &[T], count: usize, random: &mut Pcg64) -> Vec<T> {
            let mut all = all.to_vec();
            all.shuffle(random);
            all.truncate(count);
            all
        }
        loop {
            let place = Place {
                colours: some(&Colour::ALL, world.colours, random),
                shapes: some(&Shape::ALL, world.shapes, random),
            };
            let mut pairs = place
                .colours
                .iter()
                .flat_map(|&colour| place.shapes.iter().map(move |&shape| (colour, shape)));
            if pairs.any(|(colour, shape)| !Scene::pair_is_held_out(colour, shape)) {
                return place;
            }
        }
    }

    fn has(&self, scene: &Scene) -> bool {
        self.colours.contains(&scene.colour) && self.shapes.contains(&scene.shape)
    }

    /// The index of one of its training scenes.
    pub(super) fn index(place: Option<&Place>, seed: u64, random: &mut Pcg64) -> u64 {
        loop {
            // Far from the first ones, which caches are filled with.
            let index = u64::from(random.random::<u32>()) << 16;
            if place.is_none_or(|place| place.has(&Set::Train.scene(seed, index).0)) {
                return index;
            }
        }
    }
}

/// A picture of a set, ready for an encoder of this side: `[3, side, side]`.
pub(super) fn picture(set: Set, seed: u64, index: u64, side: usize) -> (Scene, Vec<f32>) {
    let (scene, style, mut random) = set.scene(seed, index);
    let data = draw(&scene, style, &mut random).into_flattened();
    let picture = Rgb { width: SIDE as usize, height: SIDE as usize, data };
    (scene, prepare_rgb(&picture, side))
}

/// Adds noise.
pub(super) fn blur(values: &mut [f32], deviation: f32, random: &mut Pcg64) {
    if deviation > 0.0 {
        values.iter_mut().for_each(|value| *value += deviation * normal(random));
    }
}

/// A sound as it may be heard, `[bands, frames]`.
///
/// * `rolled`: frames that it is moved by. `hidden`: bands that are left out.
///
/// # Errors
/// As [`AudioFront::spectrogram`].
pub(super) fn heard(
    sound: &Sound,
    front: &AudioFront,
    options: &SpeechOptions,
    most: usize,
    random: &mut Pcg64,
) -> Result<Vec<f32>, media::Error> {
    let silence = (options.silence * f64::from(sound.rate)) as usize;
    let mut left = vec![0.0; random.random_range(0..=silence)];
    left.extend_from_slice(&sound.left);
    left.truncate(most);
    let gain = 10f64.powf(between(options.gain, random)) as f32;
    let noise = options.noise.map_or(0.0, |noise| 10f64.powf(between(noise, random)) as f32);
    left.iter_mut().for_each(|sample| *sample *= gain);
    blur(&mut left, noise, random);
    front.spectrogram(&Sound { rate: sound.rate, left, mean: None })
}

/// Moves the frames of spectrograms to the right, and leaves bands out.
///
/// * `frames`: of one. `hidden`: which of its bands.
pub(super) fn altered(spectrogram: &mut [f32], frames: usize, rolled: usize, hidden: std::ops::Range<usize>) {
    for band in spectrogram.chunks_exact_mut(frames) {
        band.rotate_right(rolled.min(frames));
    }
    let (from, to) = (hidden.start * frames, hidden.end * frames);
    if let Some(hidden) = spectrogram.get_mut(from..to) {
        hidden.fill(0.0);
    }
}

fn between([from, to]: [f64; 2], random: &mut Pcg64) -> f64 {
    from + (to - from) * random.random::<f64>()
}

fn normal(random: &mut impl Rng) -> f32 {
    let radius = (-2.0 * (1.0 - random.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * random.random::<f32>()).cos()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_world_has_so_many_colours_and_shapes() {
        let mut random = Pcg64::seed_from_u64(2);
        for (colours, shapes) in [(4, 4), (2, 8), (1, 1), (8, 8)] {
            let place = Place::any(&World { until: None, colours, shapes }, &mut random);
            let scenes: Vec<Scene> =
                (0..200).map(|_| Set::Train.scene(1, Place::index(Some(&place), 1, &mut random)).0).collect();
            let count = |of: &dyn Fn(&Scene) -> usize| {
                scenes.iter().map(of).collect::<std::collections::BTreeSet<_>>().len()
            };
            assert_eq!(count(&|scene| scene.colour as usize), colours);
            assert!(count(&|scene| scene.shape as usize) <= shapes);
            assert!(scenes.iter().all(|scene| !scene.is_held_out()));
        }
    }

    #[test]
    fn spectrograms_are_moved_and_bands_left_out() {
        let mut spectrogram: Vec<f32> = (0..12).map(|v| v as f32 + 1.0).collect();
        altered(&mut spectrogram, 4, 1, 1..2);
        assert_eq!(spectrogram, [4., 1., 2., 3., 0., 0., 0., 0., 12., 9., 10., 11.]);
        altered(&mut spectrogram, 4, 9, 2..5);
        assert_eq!(spectrogram[..4], [4., 1., 2., 3.], "bands that are not there leave all as it is");
    }

    #[test]
    fn sounds_are_heard_louder_later_and_through_noise() {
        let sound = Sound {
            rate: 16_000,
            left: (0..8000).map(|i| (i as f32 * 0.2).sin() * 0.3).collect(),
            mean: None,
        };
        let front = AudioFront::new(64, 204, Default::default());
        let plain =
            SpeechOptions { utterances: 1, silence: 0.0, gain: [0.0; 2], noise: None, roll: 0, bands: 0 };
        let mut random = Pcg64::seed_from_u64(1);
        let same = heard(&sound, &front, &plain, 32_000, &mut random).unwrap();
        assert_eq!(same, front.spectrogram(&sound).unwrap());
        let loud = SpeechOptions { gain: [1.0; 2], ..plain };
        let loud = heard(&sound, &front, &loud, 32_000, &mut random).unwrap();
        // Ten times as loud is a hundred times the energy: 2·ln 10 in the logarithm, over the published deviation.
        assert!((loud[20 * 204 + 10] - same[20 * 204 + 10] - 4.605 / 9.138).abs() < 0.02);
        let noisy = SpeechOptions { noise: Some([-2.0; 2]), silence: 0.2, ..plain };
        let noisy = heard(&sound, &front, &noisy, 32_000, &mut random).unwrap();
        assert_ne!(noisy, same);
        let cut = heard(&sound, &front, &plain, 4000, &mut random).unwrap();
        assert_ne!(cut, same, "what is too long is cut");
    }
}
