//! A sample, and reading its bytes.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use super::Error;
use crate::scenes::{self, Set, draw};

/// A picture to learn from, not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Where its bytes lie.
    pub place: Place,
    /// What it is learned with.
    pub target: Target,
}

/// What a picture is learned with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Its class, by its place in [`super::Samples::classes`].
    Class(u32),
    /// What it shows; not empty.
    Caption(Box<str>),
}

impl Target {
    /// The class, if it is one.
    pub fn class(&self) -> Option<u32> {
        match self {
            Target::Class(class) => Some(*class),
            Target::Caption(_) => None,
        }
    }
}

/// Where the bytes of a picture lie.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// A file of its own. Many share a folder.
    File {
        /// The folder.
        folder: Arc<Path>,
        /// The path below it.
        name: Box<Path>,
    },
    /// A member of a tar.
    Member {
        /// The tar.
        file: Arc<Path>,
        /// The member's name.
        name: Box<str>,
        /// Where its bytes begin.
        offset: u64,
        /// How many there are.
        length: u64,
    },
    /// A scene that is drawn when it is read.
    Scene {
        /// Which set it is of.
        set: Set,
        /// Of the set.
        seed: u64,
        /// Its place in the set.
        index: u32,
    },
    /// A record of a batch of CIFAR-10: a label, and 32×32 bytes each of red, green and blue.
    Record {
        /// The batch.
        file: Arc<Path>,
        /// Counted from 0.
        record: u32,
    },
}

impl Place {
    /// Side of CIFAR-10's pictures.
    pub(super) const CIFAR_SIDE: usize = 32;
    /// Bytes of one of them.
    pub(super) const CIFAR_BYTES: usize = 3 * Self::CIFAR_SIDE * Self::CIFAR_SIDE;
    /// Bytes of a record, with its label.
    pub(super) const RECORD: usize = 1 + Self::CIFAR_BYTES;

    /// Reads the bytes of the picture, as a file of it has them. Of CIFAR-10's records and of scenes, a PPM is made.
    ///
    /// * `most`: bytes allowed; checked before anything is read.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::TooLarge`]; [`Error::Cut`] for a file that has become shorter since it was listed.
    pub fn read(&self, most: u64) -> Result<Vec<u8>, Error> {
        match self {
            Place::File { folder, name } => {
                let path = folder.join(name);
                let mut file = File::open(&path).map_err(Error::io(&path))?;
                let bytes = file.metadata().map_err(Error::io(&path))?.len();
                self.allow(bytes, most)?;
                let mut contents = Vec::with_capacity(bytes as usize);
                // A file that grows while it is read is not read for ever.
                let read = file.by_ref().take(most.saturating_add(1)).read_to_end(&mut contents);
                read.map_err(Error::io(&path))?;
                self.allow(contents.len() as u64, most)?;
                Ok(contents)
            }
            Place::Member { file, offset, length, .. } => {
                self.allow(*length, most)?;
                self.part(file, *offset, *length as usize)
            }
            Place::Record { file, record } => {
                self.allow(Self::CIFAR_BYTES as u64, most)?;
                let offset = u64::from(*record) * Self::RECORD as u64 + 1;
                let planes = self.part(file, offset, Self::CIFAR_BYTES)?;
                Ok(ppm(Self::CIFAR_SIDE, pixels(&planes)))
            }
            Place::Scene { set, seed, index } => {
                let (scene, style, mut random) = set.scene(*seed, u64::from(*index));
                let drawn = draw(&scene, style, &mut random);
                self.allow(drawn.as_flattened().len() as u64, most)?;
                Ok(ppm(scenes::SIDE as usize, drawn.as_flattened().iter().copied()))
            }
        }
    }

    fn allow(&self, bytes: u64, most: u64) -> Result<(), Error> {
        match bytes > most {
            true => Err(Error::TooLarge { place: self.to_string(), bytes, most }),
            false => Ok(()),
        }
    }

    /// Reads a part of a file.
    fn part(&self, path: &Path, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; length];
        let mut file = File::open(path).map_err(Error::io(path))?;
        let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes));
        match read {
            Ok(()) => Ok(bytes),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                let why = format!("it has become shorter since it was listed, and ends before {self} does");
                Err(Error::Cut { path: path.to_owned(), why })
            }
            Err(e) => Err(Error::io(path)(e)),
        }
    }
}

/// The pixels of what lies plane by plane.
fn pixels(planes: &[u8]) -> impl Iterator<Item = u8> {
    let plane = planes.len() / 3;
    let [red, green, blue] = [0, 1, 2].map(|channel| &planes[channel * plane..(channel + 1) * plane]);
    red.iter().zip(green).zip(blue).flat_map(|((&r, &g), &b)| [r, g, b])
}

/// A picture file of square pixels.
fn ppm(side: usize, pixels: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut bytes = format!("P6\n{side} {side}\n255\n").into_bytes();
    bytes.extend(pixels);
    bytes
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { folder, name } => write!(f, "{}", folder.join(name).display()),
            Place::Member { file, name, .. } => write!(f, "{name} of {}", file.display()),
            Place::Record { file, record } => write!(f, "record {record} of {}", file.display()),
            Place::Scene { set, seed, index } => write!(f, "scene {index} of {set:?}, seed {seed}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_within_their_limit() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), b"0123456789").unwrap();
        let shared: Arc<Path> = folder.path().into();
        let file = Place::File { folder: shared, name: Path::new("a").into() };
        assert_eq!(file.read(10).unwrap(), b"0123456789");
        let refused = file.read(9).unwrap_err();
        assert!(matches!(refused, Error::TooLarge { bytes: 10, most: 9, .. }), "{refused}");
        let path: Arc<Path> = folder.path().join("a").into();
        let member = |offset, length| Place::Member { file: path.clone(), name: "m".into(), offset, length };
        assert_eq!(member(3, 4).read(4).unwrap(), b"3456");
        assert!(matches!(member(3, 4).read(3), Err(Error::TooLarge { .. })));
        let cut = member(8, 4).read(9).unwrap_err();
        assert!(matches!(cut, Error::Cut { .. }) && cut.to_string().contains("m of "), "{cut}");
        // A length that a damaged header made up costs nothing.
        assert!(matches!(member(0, u64::MAX).read(99), Err(Error::TooLarge { .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(file.read(10), Err(Error::Io { .. })));
    }
}
