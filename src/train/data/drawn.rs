//! Scenes as data: drawn when they are asked for, and nothing on disk ([`crate::scenes`]).
//!
//! ```text
//! scenes = { count = 20000 }                     pictures with captions, or with their shape as a class
//! scenes = { count = 20000, about = "pictures" } two in five times the caption is asked for, else something about the picture
//! scenes = { count = 24000, about = "texts" }    without a picture: captions, their other wordings, and questions about them
//! ```

use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};

use super::exchange::{CAPTION_INSTRUCTION, Exchange, Exchanges};
use super::gather::{Gather, Labels, Samples, Wanted};
use super::{Error, Place, Split};
use crate::scenes::{DEFAULT_SEED, Scene, Set, Wording, questions};

/// How often a picture's caption is asked for, and not something else.
const CAPTIONS: f64 = 0.4;

/// Scenes that are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenes {
    /// How many.
    pub count: u32,
    /// Of the pictures; what is learned with the default is what the demo's caches hold.
    #[serde(default = "default_seed")]
    pub seed: u64,
}

/// What is said about scenes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sayings {
    /// How many.
    pub count: u32,
    /// Of the pictures, and of what is asked about them.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Whether a picture is shown.
    pub about: About,
}

/// What something is said about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum About {
    /// A picture that is shown.
    Pictures,
    /// A text, or nothing: what a decoder reads before it sees.
    Texts,
}

fn default_seed() -> u64 {
    DEFAULT_SEED
}

impl Split {
    fn set(self) -> Set {
        match self {
            Split::Train => Set::Train,
            Split::Test => Set::Test,
        }
    }
}

impl Samples {
    /// Pictures of scenes, with their captions or their shapes.
    ///
    /// # Errors
    /// [`Error::Nothing`].
    pub fn of_scenes(
        scenes: &Scenes,
        wanted: Wanted,
        split: Split,
        known: Option<&[String]>,
    ) -> Result<Samples, Error> {
        let mut gather = Gather::default();
        for index in 0..scenes.count {
            let (scene, ..) = split.set().scene(scenes.seed, index.into());
            let word = match wanted {
                Wanted::Captions => scene.caption(),
                Wanted::Classes => scene.shape.word().to_owned(),
            };
            gather.take(Place::Scene { set: split.set(), seed: scenes.seed, index }, &word, wanted);
        }
        gather.finish(Path::new("scenes"), wanted, Labels::Names, known)
    }
}

impl Exchanges {
    /// What is said about scenes.
    pub fn of_scenes(sayings: &Sayings, split: Split) -> Exchanges {
        // Not the stream that a picture is drawn from.
        let mut random = Pcg64::seed_from_u64(!sayings.seed);
        let exchanges = (0..sayings.count).map(|index| {
            let set = split.set();
            let (scene, ..) = set.scene(sayings.seed, index.into());
            let (instruction, input, answer) = match sayings.about {
                About::Pictures => about_a_picture(&scene, &mut random),
                About::Texts => about_a_text(&scene, &mut random),
            };
            let picture = match sayings.about {
                About::Pictures => Some(Place::Scene { set, seed: sayings.seed, index }),
                About::Texts => None,
            };
            let told = format!("scene {index}");
            Exchange { picture, instruction, input, answer, later: Vec::new(), told }
        });
        Exchanges { exchanges: exchanges.collect(), skipped: Default::default() }
    }
}

/// Instruction, input and answer.
fn about_a_picture(scene: &Scene, random: &mut Pcg64) -> (String, Option<String>, String) {
    match random.random_bool(CAPTIONS) {
        true => (CAPTION_INSTRUCTION.into(), None, scene.caption()),
        false => {
            let (question, answer) = questions::ask(scene, random);
            (question, None, answer)
        }
    }
}

/// Likewise.
fn about_a_text(scene: &Scene, random: &mut Pcg64) -> (String, Option<String>, String) {
    let (question, answer) = questions::ask(scene, random);
    let said = Wording::Free.of(scene, random);
    match random.random::<f64>() {
        p if p < 0.35 => (CAPTION_INSTRUCTION.into(), None, scene.caption()),
        p if p < 0.55 => (question, None, answer),
        p if p < 0.65 => ("Describe the picture.".into(), None, said),
        p if p < 0.75 => ("Rewrite the caption.".into(), Some(said), scene.caption()),
        _ => (question, Some(said), answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::image::decode_within;
    use crate::media::{Limits, Orientation};

    const SCENES: Scenes = Scenes { count: 400, seed: 3 };

    #[test]
    fn scenes_are_pictures_with_captions_or_shapes() {
        let captions = Samples::of_scenes(&SCENES, Wanted::Captions, Split::Train, None).unwrap();
        assert_eq!(captions.samples.len(), 400);
        let bytes = captions.samples[7].place.read(1 << 20).unwrap();
        let picture = decode_within(&bytes, Orientation::Reference, &Limits::default()).unwrap();
        assert_eq!((picture.width, picture.height), (64, 64));
        let (scene, style, mut random) = Set::Train.scene(3, 7);
        let drawn = crate::scenes::draw(&scene, style, &mut random);
        assert_eq!(picture.data, drawn.as_flattened());
        let classes = Samples::of_scenes(&SCENES, Wanted::Classes, Split::Test, None).unwrap();
        assert_eq!(classes.classes.len(), 8);
        assert_ne!(classes.samples[7].place, captions.samples[7].place, "tests have pictures of their own");
        let none = Scenes { count: 0, seed: 3 };
        assert!(Samples::of_scenes(&none, Wanted::Captions, Split::Train, None).is_err());
        assert!(captions.samples[7].place.read(100).is_err(), "the limit holds");
    }

    #[test]
    fn sayings_are_about_their_scene_and_the_same_each_time() {
        for about in [About::Pictures, About::Texts] {
            let sayings = Sayings { count: 2000, seed: 1, about };
            let all = Exchanges::of_scenes(&sayings, Split::Train).exchanges;
            assert_eq!(all, Exchanges::of_scenes(&sayings, Split::Train).exchanges);
            assert!(all.iter().all(|one| one.picture.is_some() == (about == About::Pictures)));
            assert!(all.iter().all(|one| !one.instruction.is_empty() && !one.answer.is_empty()));
            let share = |of: &dyn Fn(&Exchange) -> bool| {
                all.iter().filter(|one| of(one)).count() as f64 / all.len() as f64
            };
            let captions = share(&|one| one.instruction == CAPTION_INSTRUCTION);
            let expected = if about == About::Pictures { 0.4 } else { 0.35 };
            assert!((captions - expected).abs() < 0.04, "{captions}");
            let inputs = share(&|one| one.input.is_some());
            let expected = if about == About::Pictures { 0.0 } else { 0.35 };
            assert!((inputs - expected).abs() < 0.04, "{inputs}");
            for (index, one) in all.iter().enumerate() {
                let (scene, ..) = Set::Train.scene(1, index as u64);
                if one.instruction == CAPTION_INSTRUCTION {
                    assert_eq!(one.answer, scene.caption());
                }
            }
        }
    }
}
