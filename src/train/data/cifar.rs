//! CIFAR-10, as its binary version has it.
//!
//! ```text
//! data_batch_1.bin … data_batch_5.bin, test_batch.bin      10 000 records each
//! record    label, 1 byte │ red, 1024 bytes, row by row │ green, 1024 │ blue, 1024
//! batches.meta.txt         the names of the classes, one a line; the published ones if it is not there
//! ```
//!
//! A batch may have any number of whole records, so that a part of the set will do.
//!
//! Source: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009).

use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use super::gather::{Gather, Labels, Samples, Wanted};
use super::{Error, Place};

const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
const NAMES: &str = "batches.meta.txt";

/// A part of the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What is learned.
    Train,
    /// What is tested.
    Test,
}

impl Samples {
    /// The pictures of CIFAR-10. Labels are read, pictures are not.
    ///
    /// # Errors
    /// [`Error::Io`] if a batch is not there; [`Error::Cut`]; [`Error::Unusable`] for names that are not ten;
    /// [`Error::Nothing`].
    pub fn of_cifar(folder: &Path, split: Split) -> Result<Samples, Error> {
        let batches = match split {
            Split::Train => (1..=5).map(|batch| format!("data_batch_{batch}.bin")).collect(),
            Split::Test => vec!["test_batch.bin".to_owned()],
        };
        let classes = names(&folder.join(NAMES))?;
        let mut gather = Gather::default();
        for batch in batches {
            labels(&mut gather, &folder.join(batch))?;
        }
        gather.finish(folder, Wanted::Classes, Labels::NamesOrNumbers, Some(&classes))
    }
}

/// Takes the records of a batch, each with the number of its class.
fn labels(gather: &mut Gather, path: &Path) -> Result<(), Error> {
    let file = File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    let (records, rest) = (length / Place::RECORD as u64, length % Place::RECORD as u64);
    if rest != 0 {
        let why = format!("{records} records of {} bytes leave {rest}", Place::RECORD);
        return Err(Error::Cut { path: path.to_owned(), why });
    }
    let (mut reader, mut record) = (BufReader::with_capacity(1 << 20, file), [0; Place::RECORD]);
    let shared: Arc<Path> = path.into();
    for number in 0..records {
        reader.read_exact(&mut record).map_err(Error::io(path))?;
        let place = Place::Record { file: shared.clone(), record: number as u32 };
        gather.take(place, &record[0].to_string(), Wanted::Classes);
    }
    Ok(())
}

/// The names of the classes.
fn names(path: &Path) -> Result<Vec<String>, Error> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(CLASSES.map(str::to_owned).to_vec()),
        Err(e) => return Err(Error::io(path)(e)),
    };
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    match names.len() == CLASSES.len() {
        true => Ok(names),
        false => {
            let why = format!("it has {} names of classes, and there are {}", names.len(), CLASSES.len());
            Err(Error::Unusable { path: path.to_owned(), why })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Reason;
    use super::*;

    /// A batch of records, each all of its label but for the first pixel.
    fn batch(labels: &[u8]) -> Vec<u8> {
        let record = |&label: &u8| {
            let mut record = vec![label; Place::RECORD];
            (record[1], record[1025], record[2049]) = (200, 100, 50);
            record
        };
        labels.iter().flat_map(record).collect()
    }

    fn set(folder: &Path) {
        (1..=5u8)
            .for_each(|i| fs::write(folder.join(format!("data_batch_{i}.bin")), batch(&[i, 9])).unwrap());
        fs::write(folder.join("test_batch.bin"), batch(&[3, 10, 255])).unwrap();
    }

    #[test]
    fn records_are_pictures() {
        let folder = tempfile::tempdir().unwrap();
        set(folder.path());
        let train = Samples::of_cifar(folder.path(), Split::Train).unwrap();
        let classes: Vec<_> = train.samples.iter().filter_map(|sample| sample.target.class()).collect();
        assert_eq!(classes, [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]);
        assert_eq!((train.classes[3].as_str(), train.skipped.is_empty()), ("cat", true));
        let bytes = train.samples[3].place.read(4000).unwrap();
        let picture = image::load_from_memory(&bytes).unwrap().into_rgb8();
        assert_eq!((picture.dimensions(), picture.get_pixel(0, 0).0), ((32, 32), [200, 100, 50]));
        assert_eq!(picture.get_pixel(31, 31).0, [9, 9, 9]);
    }

    #[test]
    fn labels_beyond_the_ten_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        set(folder.path());
        let test = Samples::of_cifar(folder.path(), Split::Test).unwrap();
        assert_eq!((test.samples.len(), test.skipped.count(Reason::BeyondClasses)), (1, 2));
        assert!(test.skipped.to_string().contains("record 1 of "), "{}", test.skipped);
    }

    #[test]
    fn what_is_cut_or_not_there_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        set(folder.path());
        let path = folder.path().join("data_batch_4.bin");
        fs::write(&path, &batch(&[1, 2])[..4000]).unwrap();
        let cut = Samples::of_cifar(folder.path(), Split::Train).unwrap_err();
        assert!(matches!(&cut, Error::Cut { .. }) && cut.to_string().contains("data_batch_4"), "{cut}");
        fs::remove_file(&path).unwrap();
        let gone = Samples::of_cifar(folder.path(), Split::Train).unwrap_err();
        assert!(matches!(&gone, Error::Io { .. }) && gone.to_string().contains("data_batch_4"), "{gone}");
        fs::write(folder.path().join(NAMES), "one\ntwo\n\n").unwrap();
        let names = Samples::of_cifar(folder.path(), Split::Test).unwrap_err();
        assert!(names.to_string().contains("2 names"), "{names}");
    }
}
