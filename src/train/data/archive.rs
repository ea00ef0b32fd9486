//! Tars of pictures, with what is known of them in the same tar.
//!
//! ```text
//! beside    shard/000017.jpg   shard/000017.cls  "3"                      a class's number or name
//!                              shard/000017.txt  "a dog on a beach"       a caption, or a class
//!                              shard/000017.json {"label": 3, "caption": "a dog on a beach"}
//! folder    train/dog/17.jpg                                              class: the folder that it lies in
//! name      train/dog_0017.jpg                                            class: its name without `_` and digits
//! ```
//!
//! Beside each other are members of the same name up to its first dot, in any order. Several tars are one set.
//!
//! Source: the WebDataset format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::gather::{Gather, Labels, Samples, Wanted, is_picture};
use super::skipped::Reason;
use super::tar::{Member, Tar};
use super::{Error, Place};

/// Most bytes of a text beside a picture.
const MOST_TEXT: u64 = 64 << 10;

/// Where the label of a picture in a tar is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelFrom {
    /// In a member of the same name, with another ending.
    #[default]
    Beside,
    /// The folder that it lies in.
    Folder,
    /// Its name, without `_` and digits at the end.
    Name,
}

impl FromStr for LabelFrom {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "beside" => Ok(LabelFrom::Beside),
            "folder" => Ok(LabelFrom::Folder),
            "name" => Ok(LabelFrom::Name),
            other => Err(format!("`{other}` is not one of beside, folder, name")),
        }
    }
}

/// How tars are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveOptions {
    /// What pictures are learned with. Captions are only found beside them.
    pub wanted: Wanted,
    /// Where their labels are.
    pub labels: LabelFrom,
    /// Only members of this folder and those below it, as `cifar10/train`; all if it is empty.
    pub under: String,
}

impl Samples {
    /// The pictures of some tars.
    ///
    /// * `known`: the classes of the training, in their order.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Cut`], [`Error::Unusable`], [`Error::OneClass`], [`Error::TooManyClasses`], [`Error::Nothing`].
    pub fn of_archives(
        archives: &[PathBuf],
        options: &ArchiveOptions,
        known: Option<&[String]>,
    ) -> Result<Samples, Error> {
        let mut gather = Gather::default();
        for path in archives {
            let mut tar = Tar::open(path)?;
            let mut members = tar.members()?;
            members.retain(|member| is_under(&member.name, &options.under));
            let shared: Arc<Path> = path.as_path().into();
            match (options.labels, options.wanted) {
                (LabelFrom::Beside, _) | (_, Wanted::Captions) => {
                    beside(&mut gather, &mut tar, &shared, members, options.wanted)?;
                }
                (labels, Wanted::Classes) => {
                    for member in members {
                        if let Some(place) = picture(&mut gather, &shared, member) {
                            take_named(&mut gather, place, labels);
                        }
                    }
                }
            }
        }
        let labels = match options.labels {
            LabelFrom::Beside => Labels::NamesOrNumbers,
            LabelFrom::Folder | LabelFrom::Name => Labels::Names,
        };
        let source = archives.first().map(PathBuf::as_path).unwrap_or(Path::new("no archive"));
        gather.finish(source, options.wanted, labels, known)
    }
}

fn is_under(name: &str, folder: &str) -> bool {
    let folder = folder.trim_matches('/');
    folder.is_empty() || name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// Where a picture lies; counts what is none.
fn picture(gather: &mut Gather, file: &Arc<Path>, member: Member) -> Option<Place> {
    let Member { name, offset, length, link } = member;
    let reason = match (is_picture(Path::new(&name)), link, length) {
        (false, ..) => Reason::NotAPicture,
        (true, true, _) => Reason::Link,
        (true, false, 0) => Reason::Empty,
        (true, false, _) => {
            return Some(Place::Member { file: file.clone(), name: name.into(), offset, length });
        }
    };
    gather.skipped.add(reason, format!("{name} of {}", file.display()));
    None
}

/// Takes a picture by its own name.
fn take_named(gather: &mut Gather, place: Place, labels: LabelFrom) {
    let Place::Member { name, .. } = &place else { return };
    let path = Path::new(&**name);
    let of = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let label = match labels {
        LabelFrom::Folder => of(path.parent().and_then(Path::file_name)),
        _ => of(path.file_stem()).and_then(|stem| {
            let (label, digits) = stem.rsplit_once('_')?;
            let counted = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
            counted.then(|| label.to_owned())
        }),
    };
    gather.take(place, &label.unwrap_or_default(), Wanted::Classes);
}

/// What members of one name up to its first dot are.
#[derive(Default)]
struct Group {
    picture: Option<Place>,
    /// By their endings.
    texts: BTreeMap<String, Member>,
}

/// Takes pictures with what lies beside them.
fn beside(
    gather: &mut Gather,
    tar: &mut Tar<'_>,
    file: &Arc<Path>,
    members: Vec<Member>,
    wanted: Wanted,
) -> Result<(), Error> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for member in members {
        let base = member.name.rfind('/').map_or(0, |slash| slash + 1);
        let dot = member.name[base..].find('.').map_or(member.name.len(), |dot| base + dot);
        let (key, ending) = member.name.split_at(dot);
        let (key, ending) = (key.to_owned(), ending.trim_start_matches('.').to_ascii_lowercase());
        if ["cls", "txt", "json"].contains(&ending.as_str()) {
            groups.entry(key).or_default().texts.insert(ending, member);
        } else if let Some(place) = picture(gather, file, member) {
            let group = groups.entry(key).or_default();
            // Of two pictures, the first.
            group.picture.get_or_insert(place);
        }
    }
    for (key, Group { picture, texts }) in groups {
        let Some(place) = picture else {
            gather.skipped.add(Reason::NoPicture, format!("{key} of {}", file.display()));
            continue;
        };
        match word(tar, &texts, wanted)? {
            Some(word) => gather.take(place, &word, wanted),
            None => gather.skipped.add(Reason::Unreadable, place),
        }
    }
    Ok(())
}

/// What the texts say of a picture: empty if they do not, nothing if one cannot be read.
fn word(
    tar: &mut Tar<'_>,
    texts: &BTreeMap<String, Member>,
    wanted: Wanted,
) -> Result<Option<String>, Error> {
    let (endings, keys): (&[&str], &[&str]) = match wanted {
        Wanted::Classes => (&["cls", "json", "txt"], &["label", "cls", "class"]),
        Wanted::Captions => (&["txt", "json"], &["caption", "text"]),
    };
    for ending in endings {
        let Some(member) = texts.get(*ending) else { continue };
        let text = tar.short(member, MOST_TEXT)?.and_then(|bytes| String::from_utf8(bytes).ok());
        let Some(text) = text else { return Ok(None) };
        if *ending != "json" {
            return Ok(Some(text));
        }
        let Ok(json) = serde_json::from_str::<Value>(&text) else { return Ok(None) };
        match keys.iter().find_map(|key| json.get(key)) {
            Some(Value::String(word)) => return Ok(Some(word.clone())),
            Some(Value::Number(number)) => return Ok(Some(number.to_string())),
            Some(_) => return Ok(None),
            None => {}
        }
    }
    Ok(Some(String::new()))
}

#[cfg(test)]
mod tests {
    use super::super::tar::made::{member, tar};
    use super::super::{Split, Target};
    use super::*;

    fn options(wanted: Wanted, labels: LabelFrom, under: &str) -> ArchiveOptions {
        ArchiveOptions { wanted, labels, under: under.into() }
    }

    fn of(bytes: &[u8], options: &ArchiveOptions) -> Result<(Vec<(String, Target)>, Samples), Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        std::fs::write(&path, bytes).unwrap();
        let samples = Samples::of_archives(&[path], options, None)?;
        let read = samples.samples.iter().map(|sample| {
            (String::from_utf8(sample.place.read(99).unwrap()).unwrap(), sample.target.clone())
        });
        Ok((read.collect(), samples))
    }

    #[test]
    fn labels_and_captions_lie_beside_pictures() {
        let bytes = tar(&[
            ("s/1.jpg", b"one"),
            ("s/1.cls", b"2\n"),
            ("s/1.txt", b" a caption \n"),
            ("s/2.json", br#"{"label": 0, "caption": "two"}"#),
            ("s/2.png", b"two"),
            ("s/3.jpg", b"three"),
            ("s/3.json", b"{"),
            ("s/4.jpg", b"four"),
            ("s/5.txt", b"alone"),
            ("s/6.jpg", b""),
            ("s/6.cls", b"1"),
            ("s/7.jpg", b"seven"),
            ("s/7.txt", b"  "),
            ("s/7.cls", b"\xff"),
            ("s/8.mp4", b"eight"),
        ]);
        let (read, samples) = of(&bytes, &options(Wanted::Classes, LabelFrom::Beside, "")).unwrap();
        let expected = [("one", 2), ("two", 0)].map(|(text, class)| (text.to_owned(), Target::Class(class)));
        assert_eq!((read, samples.classes.len()), (expected.to_vec(), 3));
        let reasons = [
            Reason::Unreadable,
            Reason::NoLabel,
            Reason::NoPicture,
            Reason::Empty,
            Reason::NotAPicture,
            Reason::NoCaption,
        ];
        // Of 6, a label without a picture is left as well.
        let counts = reasons.map(|reason| samples.skipped.count(reason));
        assert_eq!(counts, [2, 1, 2, 1, 1, 0], "{}", samples.skipped);

        let (read, samples) = of(&bytes, &options(Wanted::Captions, LabelFrom::Beside, "")).unwrap();
        let expected = [("one", "a caption"), ("two", "two")]
            .map(|(text, caption)| (text.to_owned(), Target::Caption(caption.into())));
        assert_eq!((read, samples.classes.len()), (expected.to_vec(), 0));
        let counts = reasons.map(|reason| samples.skipped.count(reason));
        assert_eq!(counts, [1, 0, 2, 1, 1, 2], "{}", samples.skipped);
    }

    #[test]
    fn labels_are_folders_or_names() {
        let mut bytes: Vec<u8> = [
            member("set/train/dog_0001.jpg", b'0', b"a"),
            member("set/train/big_cat_0001.jpg", b'0', b"b"),
            member("set/train/other.jpg", b'0', b"c"),
            member("set/train/dog_0002.jpg", b'2', b""),
            member("set/test/dog_0003.jpg", b'0', b"d"),
            member("set/trainer/cow_1.jpg", b'0', b"e"),
        ]
        .concat();
        bytes.extend([0; 1024]);
        let (read, samples) = of(&bytes, &options(Wanted::Classes, LabelFrom::Name, "set/train/")).unwrap();
        let expected = [("a", 1), ("b", 0)].map(|(text, class)| (text.to_owned(), Target::Class(class)));
        assert_eq!(
            (read, samples.classes.clone()),
            (expected.to_vec(), vec!["big_cat".into(), "dog".into()])
        );
        let counts = [Reason::NoLabel, Reason::Link].map(|reason| samples.skipped.count(reason));
        assert_eq!(counts, [1, 1], "{}", samples.skipped);

        let (read, samples) = of(&bytes, &options(Wanted::Classes, LabelFrom::Folder, "")).unwrap();
        assert_eq!((read.len(), samples.classes), (5, vec!["test".into(), "train".into(), "trainer".into()]));
        let one = of(&bytes, &options(Wanted::Classes, LabelFrom::Folder, "set/test")).unwrap_err();
        assert!(matches!(one, Error::OneClass { .. }), "{one}");
        let none = of(&bytes, &options(Wanted::Classes, LabelFrom::Folder, "elsewhere")).unwrap_err();
        assert!(matches!(none, Error::Nothing { .. }), "{none}");
        let cut = of(&bytes[..1800], &options(Wanted::Classes, LabelFrom::Name, "")).unwrap_err();
        assert!(matches!(cut, Error::Cut { .. }), "{cut}");
    }

    #[test]
    fn shards_are_one_set_and_may_not_be_gone() {
        let folder = tempfile::tempdir().unwrap();
        let shard = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).unwrap();
            folder.path().join(name)
        };
        let shards = [
            shard("0.tar", &tar(&[("1.jpg", b"x"), ("1.cls", b"cat")])),
            shard("1.tar", &tar(&[("1.jpg", b"y"), ("1.cls", b"dog")])),
        ];
        let options = options(Wanted::Classes, LabelFrom::Beside, "");
        let samples = Samples::of_archives(&shards, &options, None).unwrap();
        assert_eq!((samples.samples.len(), samples.classes), (2, vec!["cat".to_owned(), "dog".to_owned()]));
        let gone = [folder.path().join("2.tar")];
        assert!(matches!(Samples::of_archives(&gone, &options, None), Err(Error::Io { .. })));
        assert!(matches!(Samples::of_archives(&[], &options, None), Err(Error::Nothing { .. })));
        assert!(matches!(Samples::of_cifar(folder.path(), Split::Test), Err(Error::Io { .. })));
        assert_eq!("folder".parse(), Ok(LabelFrom::Folder));
        assert!("folders".parse::<LabelFrom>().unwrap_err().contains("beside"));
    }
}
