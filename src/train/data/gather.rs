//! What all sources share: pictures are gathered with a word each, and the words become classes or captions.
//!
//! ```text
//! classes known       a word is a name of theirs ─► its place;  a number below their count, where the source has numbers ─► that
//! not known           all words are numbers, where the source has them ─► 0 … the highest
//!                     else names, sorted as text: "10" before "2", as folders of classes always were
//! ```
//!
//! A test must know the classes of the training, or its own sorting gives them other numbers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use super::skipped::{Reason, Skipped};
use super::{Error, Place, Sample, Target};

/// Endings of picture files, in small letters.
const ENDINGS: [&str; 12] =
    ["bmp", "gif", "jpe", "jpeg", "jpg", "pbm", "pgm", "png", "ppm", "tif", "tiff", "webp"];
/// Classes that numbers may count up to: a column of ids is none of labels.
const MOST_CLASSES: u32 = 1 << 20;

/// What pictures are learned with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Each has one of some classes.
    Classes,
    /// Each has a line of text.
    Captions,
}

/// What a source has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Samples {
    /// In the order of the source, which is the same each time.
    pub samples: Vec<Sample>,
    /// Names of the classes; none with captions.
    pub classes: Vec<String>,
    /// What gave no sample.
    pub skipped: Skipped,
}

/// Whether labels may be numbers of classes, or are names in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Labels {
    Names,
    NamesOrNumbers,
}

/// Pictures that were found, each with its word.
#[derive(Debug, Default)]
pub(super) struct Gather {
    found: Vec<(Place, usize)>,
    /// Every word once, by its place in `words`.
    places: HashMap<String, usize>,
    words: Vec<String>,
    pub(super) skipped: Skipped,
}

impl Gather {
    /// Takes a picture with its label or caption; without a word in it, it is skipped.
    pub(super) fn take(&mut self, place: Place, word: &str, wanted: Wanted) {
        let word = word.trim();
        if word.is_empty() {
            let reason = match wanted {
                Wanted::Classes => Reason::NoLabel,
                Wanted::Captions => Reason::NoCaption,
            };
            return self.skipped.add(reason, place);
        }
        let word = self.word(word);
        self.found.push((place, word));
    }

    /// Makes a class known that may have no pictures.
    pub(super) fn word(&mut self, word: &str) -> usize {
        if let Some(&at) = self.places.get(word) {
            return at;
        }
        self.words.push(word.to_owned());
        self.places.insert(word.to_owned(), self.words.len() - 1);
        self.words.len() - 1
    }

    pub(super) fn finish(
        self,
        source: &Path,
        wanted: Wanted,
        labels: Labels,
        known: Option<&[String]>,
    ) -> Result<Samples, Error> {
        match wanted {
            Wanted::Classes => self.classes(source, labels, known),
            Wanted::Captions => self.captions(source),
        }
    }

    fn captions(self, source: &Path) -> Result<Samples, Error> {
        let Gather { found, words, skipped, .. } = self;
        let target = |word: usize| Target::Caption(words[word].as_str().into());
        let samples: Vec<Sample> =
            found.into_iter().map(|(place, word)| Sample { place, target: target(word) }).collect();
        something(source, Samples { samples, classes: Vec::new(), skipped })
    }

    fn classes(self, source: &Path, labels: Labels, known: Option<&[String]>) -> Result<Samples, Error> {
        let Gather { found, words, mut skipped, .. } = self;
        let one_class = |class: &str| Error::OneClass { path: source.to_owned(), class: class.to_owned() };
        let used: HashSet<usize> = found.iter().map(|(_, word)| *word).collect();
        if let ([only], true) = (known.unwrap_or_default(), known.is_some()) {
            return Err(one_class(only));
        }
        if let (1, None, Some(&only)) = (used.len(), known, used.iter().next()) {
            return Err(one_class(&words[only]));
        }
        let (numbers, classes) = match known {
            Some(known) => (among(&words, known, labels), known.to_vec()),
            None => own(source, &words, labels)?,
        };
        let mut samples = Vec::with_capacity(found.len());
        for (place, word) in found {
            match numbers[word] {
                Some(class) => samples.push(Sample { place, target: Target::Class(class) }),
                None => skipped.add(Reason::BeyondClasses, format!("{place}: `{}`", words[word])),
            }
        }
        something(source, Samples { samples, classes, skipped })
    }
}

fn something(source: &Path, samples: Samples) -> Result<Samples, Error> {
    match samples.samples.is_empty() {
        true => Err(Error::Nothing { path: source.to_owned(), skipped: samples.skipped }),
        false => Ok(samples),
    }
}

/// The place of every word among known classes.
fn among(words: &[String], known: &[String], labels: Labels) -> Vec<Option<u32>> {
    let by_name: HashMap<&str, u32> = (0..).zip(known).map(|(i, name)| (name.as_str(), i)).collect();
    let there = |&number: &u32| labels == Labels::NamesOrNumbers && (number as usize) < known.len();
    let number = |word: &String| word.parse().ok().filter(there);
    words.iter().map(|word| by_name.get(word.as_str()).copied().or_else(|| number(word))).collect()
}

/// Numbers and names of classes that nothing else is known of.
fn own(source: &Path, words: &[String], labels: Labels) -> Result<(Vec<Option<u32>>, Vec<String>), Error> {
    let as_numbers: Option<Vec<u32>> = words.iter().map(|word| word.parse().ok()).collect();
    if let (Labels::NamesOrNumbers, Some(numbers)) = (labels, as_numbers) {
        let highest = numbers.iter().copied().max().unwrap_or_default();
        if highest >= MOST_CLASSES {
            let (path, label, most) = (source.to_owned(), highest, MOST_CLASSES - 1);
            return Err(Error::TooManyClasses { path, label, most });
        }
        let classes = (0..=highest).map(|number| number.to_string()).collect();
        return Ok((numbers.into_iter().map(Some).collect(), classes));
    }
    let sorted: BTreeMap<&String, ()> = words.iter().map(|word| (word, ())).collect();
    let classes: Vec<String> = sorted.into_keys().cloned().collect();
    Ok((among(words, &classes, labels), classes))
}

/// Whether a file is a picture, by its ending.
pub(super) fn is_picture(name: &Path) -> bool {
    let ending = name.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(words: &[&str]) -> Gather {
        let mut gather = Gather::default();
        for (i, word) in words.iter().enumerate() {
            let place = Place::Record { file: Path::new("x").into(), record: i as u32 };
            gather.take(place, word, Wanted::Classes);
        }
        gather
    }

    fn finish(words: &[&str], labels: Labels, known: Option<&[&str]>) -> Result<Samples, Error> {
        let known: Option<Vec<String>> =
            known.map(|known| known.iter().map(|&name| name.to_owned()).collect());
        gathered(words).finish(Path::new("x"), Wanted::Classes, labels, known.as_deref())
    }

    fn classes(samples: &Samples) -> Vec<u32> {
        samples.samples.iter().filter_map(|sample| sample.target.class()).collect()
    }

    #[test]
    fn names_are_sorted_and_numbers_counted() {
        let names = finish(&["dog", "cat", " dog "], Labels::NamesOrNumbers, None).unwrap();
        assert_eq!(
            (classes(&names), names.classes),
            (vec![1, 0, 1], vec!["cat".to_owned(), "dog".to_owned()])
        );
        let numbers = finish(&["3", "0"], Labels::NamesOrNumbers, None).unwrap();
        assert_eq!((classes(&numbers), numbers.classes.len()), (vec![3, 0], 4));
        let folders = finish(&["2", "10"], Labels::Names, None).unwrap();
        assert_eq!((classes(&folders), folders.classes), (vec![1, 0], vec!["10".to_owned(), "2".to_owned()]));
    }

    #[test]
    fn known_classes_keep_their_numbers() {
        let known = Some(&["zebra", "ant"][..]);
        let words = ["ant", "zebra", "1", "2", "cat", ""];
        let samples = finish(&words, Labels::NamesOrNumbers, known).unwrap();
        assert_eq!(classes(&samples), [1, 0, 1]);
        assert_eq!(
            (samples.skipped.count(Reason::BeyondClasses), samples.skipped.count(Reason::NoLabel)),
            (2, 1)
        );
        assert!(samples.skipped.to_string().contains("`cat`"), "{}", samples.skipped);
        assert_eq!(
            classes(&finish(&words, Labels::Names, known).unwrap()),
            [1, 0],
            "a folder `1` is none of them"
        );
        // A part of the classes is a test.
        assert_eq!(classes(&finish(&["ant"], Labels::Names, known).unwrap()), [1]);
    }

    #[test]
    fn what_cannot_be_learned_from_is_refused() {
        let one = finish(&["cat", "cat"], Labels::Names, None).unwrap_err();
        assert!(matches!(&one, Error::OneClass { class, .. } if class == "cat"), "{one}");
        assert!(matches!(finish(&["7", "7"], Labels::NamesOrNumbers, None), Err(Error::OneClass { .. })));
        assert!(matches!(finish(&["cat"], Labels::Names, Some(&["cat"])), Err(Error::OneClass { .. })));
        let many = finish(&["7", "4000000000"], Labels::NamesOrNumbers, None);
        assert!(matches!(many, Err(Error::TooManyClasses { label: 4_000_000_000, .. })));
        let nothing = finish(&["", "a"], Labels::Names, Some(&["x", "y"])).unwrap_err();
        assert!(nothing.to_string().contains("pictures without a label: 1"), "{nothing}");
        assert!(matches!(finish(&[], Labels::Names, None), Err(Error::Nothing { .. })));
        assert!(matches!(finish(&["a"], Labels::Names, Some(&[])), Err(Error::Nothing { .. })));
    }
}
