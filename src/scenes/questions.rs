//! What can be asked of a scene, with the right answer.

use rand::{Rng, RngExt};

use super::Scene;
use super::scene::{Colour, Shape};

/// How many kinds of questions there are.
pub const KINDS: usize = 8;

/// A question about a scene and its answer, each kind as often.
pub fn ask(scene: &Scene, rng: &mut impl Rng) -> (String, String) {
    let kind = rng.random_range(0..KINDS);
    question(scene, kind, rng)
}

/// * `kind`: from 0 to [`KINDS`], excluded.
fn question(scene: &Scene, kind: usize, rng: &mut impl Rng) -> (String, String) {
    let (colour, shape) = (scene.colour.word(), scene.shape.word());
    let yes_or_no = |holds: bool| if holds { "yes" } else { "no" }.to_owned();
    // Every other time it is so; else it is by chance.
    let so = rng.random_bool(0.5);
    match kind {
        0 => ("What colour is the object?".into(), colour.into()),
        1 => ("What shape is it?".into(), format!("a {shape}")),
        2 => ("How big is the object?".into(), scene.size.word().into()),
        3 => ("Where is the object?".into(), scene.position.place().into()),
        4 => ("What is the background?".into(), scene.background.word().into()),
        5 => ("Name the object.".into(), format!("a {colour} {shape}")),
        6 => {
            let asked = if so { scene.colour } else { Colour::ALL[rng.random_range(0..Colour::ALL.len())] };
            (format!("Is the object {}?", asked.word()), yes_or_no(asked == scene.colour))
        }
        _ => {
            let asked = if so { scene.shape } else { Shape::ALL[rng.random_range(0..Shape::ALL.len())] };
            (format!("Is it a {}?", asked.word()), yes_or_no(asked == scene.shape))
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_pcg::Pcg64;

    use super::*;
    use crate::scenes::Set;

    #[test]
    fn answers_are_right() {
        let (scene, ..) = Set::Test.scene(1, 0);
        assert_eq!(scene.caption(), "a small red crescent at the left on a striped background");
        let mut rng = Pcg64::seed_from_u64(1);
        let answers = [0, 1, 2, 3, 4, 5].map(|kind| question(&scene, kind, &mut rng).1);
        assert_eq!(answers, ["red", "a crescent", "small", "at the left", "striped", "a red crescent"]);
        let mut yes = 0;
        for _ in 0..1000 {
            for (kind, right) in [(6, "Is the object red?"), (7, "Is it a crescent?")] {
                let (asked, answer) = question(&scene, kind, &mut rng);
                assert_eq!(answer == "yes", asked == right, "{asked} {answer}");
                yes += usize::from(answer == "yes");
            }
        }
        // A half, and an eighth of the other half.
        assert!((yes as f64 / 2000.0 - 0.5625).abs() < 0.04, "{yes}");
        let kinds: std::collections::BTreeSet<String> = (0..200).map(|_| ask(&scene, &mut rng).0).collect();
        assert!(kinds.len() > KINDS);
    }
}
