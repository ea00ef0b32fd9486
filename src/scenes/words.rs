//! Captions in other words than the canonical ones, and what a caption gets right.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::Scene;
use super::scene::{Background, Colour, Position, Shape, Size};

/// An attribute of a scene.
#[derive(Clone, Copy, Debug, Eq, PartialEq, PartialOrd, Ord)]
pub enum Attribute {
    /// Of the object.
    Colour,
    /// Of the object.
    Shape,
    /// Of the object.
    Size,
    /// Of the object in the picture.
    Position,
    /// What is behind it.
    Background,
}

impl Attribute {
    /// Every attribute.
    pub const ALL: [Attribute; 5] =
        [Attribute::Colour, Attribute::Shape, Attribute::Size, Attribute::Position, Attribute::Background];

    /// A word for it.
    pub fn word(self) -> &'static str {
        match self {
            Attribute::Colour => "colour",
            Attribute::Shape => "shape",
            Attribute::Size => "size",
            Attribute::Position => "position",
            Attribute::Background => "background",
        }
    }

    /// Canonical words of all its values.
    fn values(self) -> Vec<&'static str> {
        match self {
            Attribute::Colour => Colour::ALL.map(Colour::word).to_vec(),
            Attribute::Shape => Shape::ALL.map(Shape::word).to_vec(),
            Attribute::Size => Size::ALL.map(Size::word).to_vec(),
            Attribute::Position => Position::ALL.map(Position::word).to_vec(),
            Attribute::Background => Background::ALL.map(Background::word).to_vec(),
        }
    }

    /// The canonical word of a scene's value.
    fn of(self, scene: &Scene) -> &'static str {
        match self {
            Attribute::Colour => scene.colour.word(),
            Attribute::Shape => scene.shape.word(),
            Attribute::Size => scene.size.word(),
            Attribute::Position => scene.position.word(),
            Attribute::Background => scene.background.word(),
        }
    }

    /// Whether a caption gets it right: of the words for its values there is one, once, and it is the scene's.
    pub fn is_right(self, caption: &str, scene: &Scene) -> bool {
        let values = self.values();
        let mut said =
            caption.split(' ').map(|word| word.trim_matches([',', '.'])).filter(|w| values.contains(w));
        said.next() == Some(self.of(scene)) && said.next().is_none()
    }
}

/// How a scene is put into words.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wording {
    /// [`Scene::caption`].
    Canonical,
    /// Six templates that are trained with, and any synonyms.
    Free,
    /// What is said of pictures on the web: size, place and background are left out every other time, colour and shape every fourth.
    Partial,
    /// Two templates that nothing was trained with, and any synonyms.
    HeldOut,
    /// Colour and shape alone.
    ColourShape,
    /// What is spoken: size, colour and shape.
    Spoken,
}

impl Wording {
    /// The scene in these words.
    pub fn of(self, scene: &Scene, rng: &mut impl Rng) -> String {
        let (colour, shape) = (scene.colour.word(), scene.shape.word());
        match self {
            Wording::Canonical => scene.caption(),
            Wording::ColourShape => format!("{colour} {shape}"),
            Wording::Spoken => scene.spoken(),
            Wording::Free => free(scene, rng),
            Wording::Partial => partial(scene, rng),
            Wording::HeldOut => {
                let size = any(rng, sizes(scene.size));
                let place = any(rng, places(scene.position));
                let background = any(rng, backgrounds(scene.background));
                match rng.random_range(0..2) {
                    0 => format!("on a {background} background , a {size} {shape} in {colour} {place}"),
                    _ => format!(
                        "{place} you can see a {size} {colour} {shape} and the background is {background}"
                    ),
                }
            }
        }
    }
}

fn free(scene: &Scene, rng: &mut impl Rng) -> String {
    let (colour, shape) = (scene.colour.word(), scene.shape.word());
    let size = any(rng, sizes(scene.size));
    let place = any(rng, places(scene.position));
    let background = any(rng, backgrounds(scene.background));
    match rng.random_range(0..6) {
        0 => format!("a {size} {colour} {shape} {place} on a {background} background"),
        1 => format!("a picture of a {size} {colour} {shape} {place} on a {background} background"),
        2 => format!("{place} there is a {size} {colour} {shape} on {background}"),
        3 => format!("{background} background with a {size} {colour} {shape} {place}"),
        4 => format!("a {colour} {shape} {place} , {size} , {background} background"),
        _ => format!("{size} {colour} {shape} , {place} , on {background}"),
    }
}

fn partial(scene: &Scene, rng: &mut impl Rng) -> String {
    let mut said =
        |probability: f64, words: &[&'static str]| rng.random_bool(probability).then(|| any(rng, words));
    let size = said(0.5, sizes(scene.size));
    let colour = said(0.75, &[scene.colour.word()]);
    let shape = said(0.75, &[scene.shape.word()]).unwrap_or("object");
    let place = said(0.5, places(scene.position));
    let background = said(0.5, backgrounds(scene.background));
    let object = [Some("a"), size, colour, Some(shape), place].into_iter().flatten().collect::<Vec<_>>();
    let object = object.join(" ");
    match (rng.random_bool(0.5), background) {
        (true, Some(background)) => format!("{object} on a {background} background"),
        (false, Some(background)) => format!("{background} background with {object}"),
        (false, None) if rng.random_bool(0.5) => format!("a picture of {object}"),
        (_, None) => object,
    }
}

fn any(rng: &mut impl Rng, words: &[&'static str]) -> &'static str {
    words[rng.random_range(0..words.len())]
}

fn sizes(size: Size) -> &'static [&'static str] {
    match size {
        Size::Small => &["small", "little", "tiny"],
        Size::Large => &["large", "big", "huge"],
    }
}

fn places(position: Position) -> &'static [&'static str] {
    match position {
        Position::Left => &["at the left", "on the left", "on the left side"],
        Position::Right => &["at the right", "on the right", "on the right side"],
        Position::Top => &["at the top", "near the top", "in the upper part"],
        Position::Bottom => &["at the bottom", "near the bottom", "in the lower part"],
        Position::Centre => &["in the centre", "in the middle", "centred"],
    }
}

fn backgrounds(background: Background) -> &'static [&'static str] {
    match background {
        Background::White => &["white"],
        Background::Grey => &["grey", "gray"],
        Background::Black => &["black"],
        Background::Striped => &["striped"],
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_pcg::Pcg64;

    use super::*;
    use crate::scenes::Set;

    #[test]
    fn a_caption_is_judged_attribute_by_attribute() {
        let (scene, ..) = Set::Test.scene(1, 0);
        let caption = scene.caption();
        assert_eq!(caption, "a small red crescent at the left on a striped background");
        let right = |caption: &str| Attribute::ALL.map(|attribute| attribute.is_right(caption, &scene));
        assert_eq!(right(&caption), [true; 5]);
        assert_eq!(right(&caption.replace("red", "blue")), [false, true, true, true, true]);
        assert_eq!(right(&caption.replace("red", "red blue")), [false, true, true, true, true]);
        assert_eq!(right(&caption.replace("red", "red , red")), [false, true, true, true, true]);
        assert_eq!(right(""), [false; 5]);
        assert_eq!(right("crescent , small ."), [false, true, true, false, false]);
    }

    #[test]
    fn other_words_say_the_same() {
        let mut rng = Pcg64::seed_from_u64(5);
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..400 {
            let (scene, ..) = Set::Train.scene(1, index);
            let said = Wording::HeldOut.of(&scene, &mut rng);
            assert!(said.contains(scene.colour.word()) && said.contains(scene.shape.word()), "{said}");
            seen.insert(said.starts_with("on a"));
            assert!(Wording::Spoken.of(&scene, &mut rng).split(' ').count() == 3);
            assert_eq!(Wording::Canonical.of(&scene, &mut rng), scene.caption());
        }
        assert_eq!(seen.len(), 2, "both templates come");
    }

    #[test]
    fn what_is_trained_with_says_all_or_a_part() {
        let mut rng = Pcg64::seed_from_u64(6);
        let mut begins = std::collections::BTreeSet::new();
        let mut told = [0; 5];
        for index in 0..2000 {
            let (scene, ..) = Set::Train.scene(1, index);
            let free = Wording::Free.of(&scene, &mut rng);
            let canonical = free
                .replace("little", "small")
                .replace("tiny", "small")
                .replace("big", "large")
                .replace("huge", "large")
                .replace("gray", "grey")
                .replace("upper", "top")
                .replace("lower", "bottom")
                .replace("middle", "centre")
                .replace("centred", "centre");
            assert!(Attribute::ALL.iter().all(|attribute| attribute.is_right(&canonical, &scene)), "{free}");
            begins.insert(free.split(' ').take(3).last().map(str::to_owned));
            let partial = Wording::Partial.of(&scene, &mut rng);
            for (count, words) in told.iter_mut().zip([
                &[scene.colour.word()][..],
                &[scene.shape.word()],
                sizes(scene.size),
                places(scene.position),
                backgrounds(scene.background),
            ]) {
                *count += usize::from(
                    words.iter().any(|word| format!(" {partial} ").contains(&format!(" {word} "))),
                );
            }
        }
        assert!(begins.len() > 6, "all templates come");
        for (count, share) in told.into_iter().zip([0.75, 0.75, 0.5, 0.5, 0.5]) {
            assert!((f64::from(count as u32) / 2000.0 - share).abs() < 0.05, "{told:?}");
        }
    }
}
