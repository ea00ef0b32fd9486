//! A folder of folders, as ImageNet's: `ROOT/n01440764/n01440764_10026.JPEG`.
//!
//! The folders directly below are the classes, sorted by name; pictures may lie in folders below those. Names that begin with a dot
//! are not looked at. The folders of classes may be links; links to folders below them are not followed, so that none goes round.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::gather::{Gather, Labels, Samples, Wanted, is_picture};
use super::skipped::Reason;
use super::{Error, Place};

/// Folders within each other, below that of a class.
const DEEPEST: usize = 8;
/// Names of folders that are no classes, if there are no others.
const SPLITS: [&str; 5] = ["test", "train", "val", "valid", "validation"];

impl Samples {
    /// The pictures of a folder of classes.
    ///
    /// * `known`: the classes of the training, in their order; without them, the folders are the classes.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Splits`], [`Error::OneClass`], [`Error::Nothing`].
    pub fn of_folder(root: &Path, known: Option<&[String]>) -> Result<Samples, Error> {
        let mut gather = Gather::default();
        let mut folders = Vec::new();
        for (name, path) in entries(root)? {
            match path.is_dir() {
                true => folders.push((name, path)),
                false if is_picture(&path) => gather.skipped.add(Reason::NoLabel, path.display()),
                false => gather.skipped.add(Reason::NotAPicture, path.display()),
            }
        }
        if !folders.is_empty() && folders.iter().all(|(name, _)| SPLITS.contains(&name.as_str())) {
            let folders: Vec<String> = folders.into_iter().map(|(name, _)| name).collect();
            return Err(Error::Splits { path: root.to_owned(), folders: folders.join(", ") });
        }
        for (class, path) in folders {
            gather.word(&class);
            if pictures(&mut gather, &path, &class, 0)? == 0 {
                gather.skipped.add(Reason::EmptyClass, path.display());
            }
        }
        gather.finish(root, Wanted::Classes, Labels::Names, known)
    }
}

/// Takes the pictures of a folder and those below it, and tells how many there were.
fn pictures(gather: &mut Gather, folder: &Path, class: &str, depth: usize) -> Result<usize, Error> {
    let shared: Arc<Path> = folder.into();
    let mut count = 0;
    for (_, path) in entries(folder)? {
        // Of what a link leads to, but for links into nothing, which are not there.
        let Ok(about) = fs::metadata(&path) else {
            gather.skipped.add(Reason::Missing, path.display());
            continue;
        };
        if about.is_dir() {
            match (path.is_symlink(), depth < DEEPEST) {
                (true, _) => gather.skipped.add(Reason::Link, path.display()),
                (false, false) => gather.skipped.add(Reason::TooDeep, path.display()),
                (false, true) => count += pictures(gather, &path, class, depth + 1)?,
            }
            continue;
        }
        if !about.is_file() || !is_picture(&path) {
            gather.skipped.add(Reason::NotAPicture, path.display());
        } else if about.len() == 0 {
            gather.skipped.add(Reason::Empty, path.display());
        } else if let Some(name) = path.file_name() {
            let place = Place::File { folder: shared.clone(), name: Path::new(name).into() };
            gather.take(place, class, Wanted::Classes);
            count += 1;
        }
    }
    Ok(count)
}

/// What is in a folder, by name.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            entries.push((name, entry.path()));
        }
    }
    entries.sort();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, contents) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
    }

    #[test]
    fn folders_are_classes_in_the_order_of_their_names() {
        let root = tempfile::tempdir().unwrap();
        let files = [
            ("n02/b.JPEG", "2b"),
            ("n01/a.jpg", "1a"),
            ("n02/images/a.png", "2ia"),
            ("n01/notes.txt", "x"),
            ("n01/empty.png", ""),
            ("n03/readme.md", "x"),
            (".hidden/a.jpg", "x"),
            ("loose.jpg", "x"),
        ];
        write(root.path(), &files);
        let samples = Samples::of_folder(root.path(), None).unwrap();
        assert_eq!(samples.classes, ["n01", "n02", "n03"]);
        let read: Vec<_> = samples
            .samples
            .iter()
            .map(|sample| {
                (String::from_utf8(sample.place.read(9).unwrap()).unwrap(), sample.target.class().unwrap())
            })
            .collect();
        let expected = [("1a", 0), ("2b", 1), ("2ia", 1)].map(|(text, class)| (text.to_owned(), class));
        assert_eq!(read, expected);
        let counts =
            [Reason::NotAPicture, Reason::Empty, Reason::EmptyClass, Reason::NoLabel, Reason::Missing]
                .map(|reason| samples.skipped.count(reason));
        assert_eq!(counts, [2, 1, 1, 1, 0], "{}", samples.skipped);
        // A test keeps the classes of the training.
        let known = ["n02".to_owned(), "n09".to_owned()];
        let test = Samples::of_folder(root.path(), Some(&known)).unwrap();
        assert_eq!((test.samples.len(), test.skipped.count(Reason::BeyondClasses)), (2, 1));
        assert!(test.samples.iter().all(|sample| sample.target.class() == Some(0)));
    }

    #[cfg(unix)]
    #[test]
    fn links_to_pictures_and_classes_are_followed_and_none_goes_round() {
        use std::os::unix::fs::symlink;
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &[("data/a/1.jpg", "1"), ("data/b/2.jpg", "2"), ("other/3.jpg", "3")]);
        let data = root.path().join("data");
        symlink(root.path().join("other"), data.join("c")).unwrap();
        symlink(&data, data.join("a/round")).unwrap();
        symlink(root.path().join("other/3.jpg"), data.join("a/3.jpg")).unwrap();
        symlink("nowhere", data.join("a/gone.jpg")).unwrap();
        let samples = Samples::of_folder(&data, None).unwrap();
        assert_eq!((samples.samples.len(), samples.classes.len()), (4, 3));
        let counts = [Reason::Link, Reason::Missing].map(|reason| samples.skipped.count(reason));
        assert_eq!(counts, [1, 1], "{}", samples.skipped);
    }

    #[test]
    fn folders_that_nothing_can_be_learned_from_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let of = |folder: &str| Samples::of_folder(&root.path().join(folder), None).unwrap_err();
        assert!(matches!(of("gone"), Error::Io { .. }));
        write(root.path(), &[("set/train/a/1.jpg", "1"), ("set/val/a/1.jpg", "1"), ("one/a/1.jpg", "1")]);
        let splits = of("set");
        assert!(splits.to_string().contains("train, val"), "{splits}");
        assert!(matches!(of("one"), Error::OneClass { .. }));
        write(root.path(), &[("none/a/1.txt", "1"), ("none/b/1.jpg", "")]);
        let nothing = of("none").to_string();
        assert!(
            nothing.contains("classes without pictures: 2") && nothing.contains("empty picture files: 1"),
            "{nothing}"
        );
        let deep = format!("deep/a/{}1.jpg", "x/".repeat(DEEPEST + 1));
        write(root.path(), &[(deep.as_str(), "1"), ("deep/b/1.jpg", "1"), ("deep/c/1.jpg", "1")]);
        let samples = Samples::of_folder(&root.path().join("deep"), None).unwrap();
        assert_eq!((samples.samples.len(), samples.skipped.count(Reason::TooDeep)), (2, 1));
    }
}
