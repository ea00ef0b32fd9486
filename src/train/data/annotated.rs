//! Pictures with a label for each pixel, in ADE20K's layout.
//!
//! ```text
//! ROOT/images/training/ADE_train_00000001.jpg       ROOT/annotations/training/ADE_train_00000001.png
//! ROOT/images/validation/…                          ROOT/annotations/validation/…
//!
//! annotation    grey PNG of 8 bits and of the picture's size: 1 … C are classes, 0 is something else and counts nowhere
//! ```
//! Every annotation is read when it is listed, on all threads: so what is wrong with one is told before the first step, and a set with
//! one class only is refused. Of pictures, the headers are looked at.
//!
//! Folders within these are not looked at.
//!
//! Source: MIT scene parsing benchmark, `ADEChallengeData2016`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::gather::is_picture;
use super::skipped::{Reason, Skipped};
use super::{Error, Place, Split};
use crate::media::image::{decode_within, dimensions};
use crate::media::{LabelMap, Limits, Orientation, Rgb};

/// A picture and the labels of its pixels, not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The picture.
    pub picture: Place,
    /// Its annotation.
    pub labels: Place,
}

/// Pixels of each label of a pair, `[256]`; or why it is none.
type Looked = Result<Vec<u64>, (Reason, String)>;

/// What a folder in ADE20K's layout has of one split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotated {
    /// By name.
    pub pairs: Vec<Pair>,
    /// Pixels of each class in all of them, `[C]`.
    pub pixels: Vec<u64>,
    /// What gave no pair.
    pub skipped: Skipped,
}

impl Split {
    /// What ADE20K calls it.
    fn folder(self) -> &'static str {
        match self {
            Split::Train => "training",
            Split::Test => "validation",
        }
    }
}

impl Annotated {
    /// Whether a folder has a split at all.
    pub fn has(root: &Path, split: Split) -> bool {
        root.join("images").join(split.folder()).is_dir()
    }

    /// The pairs of a split.
    ///
    /// * `classes`: how many there are, C.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a folder of another layout, [`Error::Io`], [`Error::OneClass`], [`Error::Nothing`].
    pub fn of_folder(root: &Path, split: Split, classes: usize, limits: &Limits) -> Result<Self, Error> {
        let [images, annotations] =
            ["images", "annotations"].map(|kind| root.join(kind).join(split.folder()));
        if let Some(missing) = [&images, &annotations].into_iter().find(|folder| !folder.is_dir()) {
            let why = format!("it has no folder {}; ADE20K's layout has", missing.display());
            return Err(Error::Unusable { path: root.to_owned(), why });
        }
        let mut skipped = Skipped::default();
        let mut maps =
            named(&annotations, |path| path.extension().is_some_and(|e| e == "png"), &mut skipped)?;
        let mut found: Vec<(PathBuf, PathBuf)> = Vec::new();
        for (stem, picture) in named(&images, is_picture, &mut skipped)? {
            match maps.remove(&stem) {
                Some(map) => found.push((picture, map)),
                None => skipped.add(Reason::NoAnnotation, picture.display()),
            }
        }
        maps.into_values().for_each(|map| skipped.add(Reason::NoPicture, map.display()));
        let [images, annotations]: [Arc<Path>; 2] = [images.into(), annotations.into()];
        let place = |folder: &Arc<Path>, path: &Path| Place::File {
            folder: folder.clone(),
            name: Path::new(path.file_name().unwrap_or_default()).into(),
        };
        let looked: Vec<(Pair, Looked)> = found
            .par_iter()
            .map(|(picture, map)| {
                let pair = Pair { picture: place(&images, picture), labels: place(&annotations, map) };
                let counts = pair.look(classes, limits);
                (pair, counts)
            })
            .collect();
        let (mut pairs, mut pixels) = (Vec::new(), vec![0; classes]);
        for (pair, counts) in looked {
            match counts {
                Ok(counts) => {
                    pixels.iter_mut().zip(&counts[1..]).for_each(|(sum, count)| *sum += count);
                    pairs.push(pair);
                }
                Err((reason, why)) => skipped.add(reason, why),
            }
        }
        let mut used = pixels.iter().zip(1..).filter(|(count, _)| **count > 0).map(|(_, label)| label);
        match (used.next(), used.next()) {
            (Some(_), Some(_)) => Ok(Annotated { pairs, pixels, skipped }),
            (Some(only), None) => Err(Error::OneClass { path: root.to_owned(), class: only.to_string() }),
            (None, _) => Err(Error::Nothing { path: root.to_owned(), skipped }),
        }
    }
}

impl Pair {
    /// Looks at both.
    fn look(&self, classes: usize, limits: &Limits) -> Looked {
        let most = limits.max_bytes as u64;
        let said = |reason, place: &Place, why: &dyn std::fmt::Display| (reason, format!("{place}: {why}"));
        let bytes = |place: &Place, reason| place.read(most).map_err(|e| (reason, e.to_string()));
        let picture = bytes(&self.picture, Reason::Damaged)?;
        let [width, height] =
            dimensions(&picture, limits).map_err(|e| said(Reason::Damaged, &self.picture, &e))?;
        let labels = bytes(&self.labels, Reason::Unreadable)?;
        let map =
            LabelMap::decode(&labels, limits).map_err(|e| said(Reason::Unreadable, &self.labels, &e))?;
        if [map.width, map.height] != [width, height] {
            let why = format!("{}×{} for {width}×{height}", map.width, map.height);
            return Err(said(Reason::OtherSize, &self.labels, &why));
        }
        let counts = map.counts();
        if let Some(label) = (classes + 1..counts.len()).find(|&label| counts[label] > 0) {
            let why = format!("label {label} of {classes}");
            return Err(said(Reason::BeyondClasses, &self.labels, &why));
        }
        match counts[1..].iter().any(|&count| count > 0) {
            true => Ok(counts),
            false => Err((Reason::NoLabel, self.labels.to_string())),
        }
    }

    /// Reads both.
    ///
    /// # Errors
    /// Why they are not what was listed, with their names.
    pub fn read(&self, limits: &Limits) -> Result<(Rgb, LabelMap), String> {
        let most = limits.max_bytes as u64;
        let told = |place: &Place, e: &dyn std::error::Error| format!("{place}: {e}");
        let bytes = |place: &Place| place.read(most).map_err(|e| told(place, &e));
        // Annotations are of the picture as it lies in its file.
        let picture = decode_within(&bytes(&self.picture)?, Orientation::Reference, limits)
            .map_err(|e| told(&self.picture, &e))?;
        let labels = LabelMap::decode(&bytes(&self.labels)?, limits).map_err(|e| told(&self.labels, &e))?;
        match (labels.width, labels.height) == (picture.width, picture.height) {
            true => Ok((picture, labels)),
            false => Err(format!("{}: it has another size than when it was listed", self.labels)),
        }
    }
}

/// Files of a folder by their names without ending; of two with one name the first.
fn named(
    folder: &Path,
    wanted: impl Fn(&Path) -> bool,
    skipped: &mut Skipped,
) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        paths.push(entry.map_err(Error::io(folder))?.path());
    }
    paths.sort();
    let mut files = BTreeMap::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() || !wanted(&path) {
            skipped.add(Reason::NotAPicture, path.display());
        } else if let Entry::Vacant(place) = files.entry(stem) {
            place.insert(path);
        } else {
            skipped.add(Reason::Twice, path.display());
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Set(tempfile::TempDir);

    impl Set {
        fn new() -> Self {
            let set = Set(tempfile::tempdir().unwrap());
            for kind in ["images", "annotations"] {
                for split in ["training", "validation"] {
                    fs::create_dir_all(set.0.path().join(kind).join(split)).unwrap();
                }
            }
            set
        }

        fn put(&self, name: &str, bytes: &[u8]) {
            fs::write(self.0.path().join(name), bytes).unwrap();
        }

        fn picture(&self, name: &str, width: usize, height: usize) {
            let head = format!("P6\n{width} {height}\n255\n").into_bytes();
            let data = vec![100; width * height * 3];
            self.put(&format!("images/training/{name}"), &[head, data].concat());
        }

        fn map(&self, name: &str, width: usize, labels: &[u8]) {
            let map = LabelMap { width, height: labels.len() / width, labels: labels.to_vec() };
            self.put(&format!("annotations/training/{name}"), &map.png().unwrap());
        }

        fn list(&self, classes: usize) -> Result<Annotated, Error> {
            Annotated::of_folder(self.0.path(), Split::Train, classes, &Limits::default())
        }
    }

    #[test]
    fn pairs_are_found_by_name_and_what_is_none_is_counted() {
        let set = Set::new();
        for (name, labels) in [("b", [0, 1, 2, 2]), ("a", [3, 3, 3, 0])] {
            set.picture(&format!("{name}.ppm"), 2, 2);
            set.map(&format!("{name}.png"), 2, &labels);
        }
        set.picture("alone.ppm", 2, 2);
        set.map("alone-too.png", 2, &[1; 4]);
        set.picture("wide.ppm", 4, 1);
        set.map("wide.png", 2, &[1; 4]);
        set.picture("beyond.ppm", 2, 2);
        set.map("beyond.png", 2, &[1, 4, 1, 1]);
        set.picture("nothing.ppm", 2, 2);
        set.map("nothing.png", 2, &[0; 4]);
        set.picture("broken.ppm", 2, 2);
        set.put("annotations/training/broken.png", b"no picture");
        set.put("images/training/damaged.jpg", b"no picture");
        set.map("damaged.png", 2, &[1; 4]);
        set.put("images/training/notes.txt", b"x");
        set.put("images/training/.hidden.jpg", b"x");
        set.picture("a.webp", 2, 2);
        let found = set.list(3).unwrap();
        let names: Vec<String> = found.pairs.iter().map(|pair| pair.picture.to_string()).collect();
        assert!(names.len() == 2 && names[0].ends_with("a.ppm") && names[1].ends_with("b.ppm"), "{names:?}");
        assert_eq!(found.pixels, [1, 2, 3]);
        let reasons = [
            Reason::NoAnnotation,
            Reason::NoPicture,
            Reason::OtherSize,
            Reason::BeyondClasses,
            Reason::NoLabel,
            Reason::Unreadable,
            Reason::Damaged,
            Reason::NotAPicture,
            Reason::Twice,
        ];
        let counts = reasons.map(|reason| found.skipped.count(reason));
        assert_eq!(counts, [1; 9], "{}", found.skipped);
        let said = found.skipped.to_string();
        for words in ["2×2 for 4×1", "label 4 of 3", "alone.ppm", "alone-too.png", "broken.png"] {
            assert!(said.contains(words), "{words}: {said}");
        }
        let (picture, labels) = found.pairs[1].read(&Limits::default()).unwrap();
        assert_eq!((picture.width, labels.labels), (2, vec![0, 1, 2, 2]));
        // More classes take the one that was beyond.
        assert_eq!(set.list(4).unwrap().pairs.len(), 3);
        // It may go between listing and reading.
        fs::remove_file(set.0.path().join("annotations/training/b.png")).unwrap();
        assert!(found.pairs[1].read(&Limits::default()).unwrap_err().contains("b.png"));
    }

    #[test]
    fn sets_that_nothing_can_be_learned_from_are_refused() {
        let set = Set::new();
        assert!(matches!(set.list(3), Err(Error::Nothing { .. })));
        set.picture("a.ppm", 2, 2);
        set.map("a.png", 2, &[2, 2, 0, 2]);
        let one = set.list(3).unwrap_err();
        assert!(matches!(&one, Error::OneClass { class, .. } if class == "2"), "{one}");
        fs::remove_dir_all(set.0.path().join("annotations/training")).unwrap();
        let other = set.list(3).unwrap_err().to_string();
        assert!(other.contains("annotations/training"), "{other}");
        assert!(Annotated::has(set.0.path(), Split::Test) && !Annotated::has(Path::new("gone"), Split::Test));
    }
}
