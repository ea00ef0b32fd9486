//! Whether shape or texture decides, where they say different things.
//!
//! ```text
//! cat/cat10-elephant3.png     the shape of a cat, the texture of an elephant
//!
//! probabilities of the model's classes ─► mean of those in each group ─► best group ─┬─ that of the shape
//!                                                                                   ├─ that of the texture
//! shape bias = shape / (shape + texture)                                             └─ neither: not counted
//! ```
//! Pictures whose cues are of one group have no conflict, and are left out.
//!
//! Source: Geirhos et al., *ImageNet-trained CNNs are biased towards texture* (ICLR 2019), and `texture-vs-shape` published with it.

use std::collections::BTreeMap;

use super::{Error, Share};

/// Groups of classes that decisions are between, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    names: Vec<String>,
    classes: Vec<Vec<usize>>,
}

impl Groups {
    /// Groups of a model's classes.
    ///
    /// * `classes`: how many the model has.
    ///
    /// # Errors
    /// Every variant of [`Error`].
    pub fn new(groups: BTreeMap<String, Vec<usize>>, classes: usize) -> Result<Self, Error> {
        if groups.len() < 2 {
            return Err(Error::Few(groups.len()));
        }
        let mut owners: BTreeMap<usize, &str> = BTreeMap::new();
        for (group, members) in &groups {
            if members.is_empty() {
                return Err(Error::Empty(group.clone()));
            }
            for &class in members {
                if class >= classes {
                    return Err(Error::Class {
                        group: group.clone(),
                        class,
                        last: classes.saturating_sub(1),
                    });
                }
                if let Some(first) = owners.insert(class, group) {
                    return Err(Error::Twice { class, first: first.to_owned(), second: group.clone() });
                }
            }
        }
        let (names, classes) = groups.into_iter().unzip();
        Ok(Groups { names, classes })
    }

    /// Their names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The group of a name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|group| group == name)
    }

    /// The group whose classes have the highest mean probability.
    ///
    /// * `probabilities`: of all classes of the model.
    pub fn decide(&self, probabilities: &[f64]) -> usize {
        let mean = |classes: &Vec<usize>| {
            classes.iter().map(|&class| probabilities[class]).sum::<f64>() / classes.len() as f64
        };
        let means: Vec<f64> = self.classes.iter().map(mean).collect();
        super::best(&means, 1).first().map_or(0, |(group, _)| *group)
    }
}

/// What a picture shows, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cues<'a> {
    /// Group of the shape.
    pub shape: &'a str,
    /// Group of the texture.
    pub texture: &'a str,
}

impl<'a> Cues<'a> {
    /// Reads a file's name, as `cat10-elephant3.png`: the shape, a number, a hyphen, the texture, a number.
    pub fn of_name(name: &'a str) -> Option<Self> {
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let (shape, texture) = stem.split_once('-')?;
        let word = |cue: &'a str| {
            let word = cue.trim_end_matches(|c: char| c.is_ascii_digit());
            (!word.is_empty() && word.len() < cue.len()).then_some(word)
        };
        Some(Cues { shape: word(shape)?, texture: word(texture)? })
    }
}

/// What a decision followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The shape.
    Shape,
    /// The texture.
    Texture,
    /// Something else.
    Neither,
}

/// Decisions about pictures of one shape, or of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bias {
    /// For the shape.
    pub shape: u64,
    /// For the texture.
    pub texture: u64,
    /// For neither.
    pub neither: u64,
}

impl Bias {
    /// Takes a decision between groups, and says what it followed.
    ///
    /// * `shape`, `texture`: groups, not the same one.
    pub fn add(&mut self, decided: usize, shape: usize, texture: usize) -> Decision {
        let (count, decision) = match decided {
            group if group == shape => (&mut self.shape, Decision::Shape),
            group if group == texture => (&mut self.texture, Decision::Texture),
            _ => (&mut self.neither, Decision::Neither),
        };
        *count += 1;
        decision
    }

    /// Share of shape among decisions for shape or texture.
    pub fn share(&self) -> Share {
        Share { true_of: self.shape, all: self.shape + self.texture }
    }

    /// Both together.
    pub fn with(self, other: Bias) -> Bias {
        Bias {
            shape: self.shape + other.shape,
            texture: self.texture + other.texture,
            neither: self.neither + other.neither,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(of: &[(&str, &[usize])]) -> Result<Groups, Error> {
        Groups::new(of.iter().map(|(name, classes)| ((*name).to_owned(), classes.to_vec())).collect(), 6)
    }

    #[test]
    fn a_group_is_worth_the_mean_of_its_classes() {
        let groups = groups(&[("cat", &[0, 1, 2]), ("bear", &[3]), ("clock", &[5])]).unwrap();
        assert_eq!(groups.names(), ["bear", "cat", "clock"]);
        // Cats have more together (0.45), and less in the mean (0.15) than the one bear (0.2).
        let probabilities = [0.4, 0.05, 0.0, 0.2, 0.25, 0.1];
        assert_eq!(groups.decide(&probabilities), groups.find("bear").unwrap());
        // What is in no group does not count, however likely it is.
        assert_eq!(groups.decide(&[0.0, 0.0, 0.0, 0.05, 0.85, 0.1]), groups.find("clock").unwrap());
        assert_eq!(groups.find("dog"), None);
    }

    #[test]
    fn groups_that_decide_nothing_are_refused() {
        assert_eq!(groups(&[("cat", &[0])]), Err(Error::Few(1)));
        assert_eq!(groups(&[("cat", &[0]), ("dog", &[])]), Err(Error::Empty("dog".into())));
        let beyond = groups(&[("cat", &[0]), ("dog", &[6])]).unwrap_err();
        assert_eq!(beyond, Error::Class { group: "dog".into(), class: 6, last: 5 });
        assert!(beyond.to_string().contains("0 to 5"));
        let twice = groups(&[("cat", &[0, 1]), ("dog", &[1])]);
        assert!(matches!(twice, Err(Error::Twice { class: 1, .. })), "{twice:?}");
    }

    #[test]
    fn names_say_both_cues() {
        let cues = |name| Cues::of_name(name).map(|cues| (cues.shape, cues.texture));
        assert_eq!(cues("cat10-elephant3.png"), Some(("cat", "elephant")));
        assert_eq!(cues("knife1-knife2"), Some(("knife", "knife")));
        for other in ["cat10.png", "cat-elephant3.png", "cat10-elephant.png", "10-3.png", "", "-"] {
            assert_eq!(cues(other), None, "{other}");
        }
    }

    #[test]
    fn the_bias_is_the_one_counted_by_hand() {
        let mut bias = Bias::default();
        // Groups: 0 cat, 1 elephant, 2 clock. A cat's shape with an elephant's texture, five times.
        let decisions = [0, 1, 1, 2, 1].map(|decided| bias.add(decided, 0, 1));
        let counted = |what: Decision| decisions.iter().filter(|&&decision| decision == what).count() as u64;
        assert_eq!(bias, Bias { shape: 1, texture: 3, neither: 1 });
        assert_eq!((counted(Decision::Shape), counted(Decision::Neither)), (1, 1));
        assert_eq!(bias.share().value(), Some(0.25));
        let all = bias.with(Bias { shape: 2, texture: 0, neither: 4 });
        assert_eq!((all.share().value(), all.neither), (Some(0.5), 5));
        assert_eq!(Bias { neither: 3, ..Bias::default() }.share().value(), None);
    }
}
