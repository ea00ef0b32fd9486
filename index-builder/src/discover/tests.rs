//! Discovery on folders, lists and archives made for it.

use super::*;
use proptest::prelude::*;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

/// Everything that a walk shows.
#[derive(Default)]
struct All(Vec<Found>);

impl Visitor for All {
    fn is_done(&mut self, _: &str, _: Stamp) -> anyhow::Result<bool> {
        Ok(false)
    }

    fn visit(&mut self, found: Found) -> anyhow::Result<ControlFlow<()>> {
        self.0.push(found);
        Ok(ControlFlow::Continue(()))
    }
}

impl All {
    fn units(&self) -> Vec<&Unit> {
        self.0
            .iter()
            .filter_map(|found| if let Found::Unit(unit) = found { Some(unit) } else { None })
            .collect()
    }

    /// Last parts of names, with the reason.
    fn refused(&self) -> Vec<(&str, &str)> {
        fn not(found: &Found) -> Option<(&str, &str)> {
            match found {
                Found::Not { uri, refusal, .. } => Some((short(uri), refusal.reason())),
                _ => None,
            }
        }
        self.0.iter().filter_map(not).collect()
    }

    fn names(&self) -> Vec<&str> {
        self.units().iter().map(|unit| short(&unit.uri)).collect()
    }
}

fn short(uri: &str) -> &str {
    uri.rsplit(['/', '!']).next().unwrap_or(uri)
}

fn inputs(images: &[&Path]) -> Inputs {
    let images = images.iter().map(|path| path.to_path_buf()).collect();
    Inputs { images, lists: Vec::new(), tags: Vec::new(), ignore: Vec::new() }
}

fn walk(inputs: &Inputs) -> All {
    let mut all = All::default();
    inputs.walk(Some(1 << 20), &mut all).unwrap();
    all
}

fn listed(list: &Path) -> All {
    walk(&Inputs { lists: vec![List::open(list).unwrap()], ..inputs(&[]) })
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let members: Vec<(&[u8], &[u8])> = members.iter().map(|(name, data)| (name.as_bytes(), *data)).collect();
    tar_of(&members)
}

fn tar_of(members: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const JPEG: &[u8] = b"\xff\xd8\xff\xe0 a picture, by its looks";

#[test]
fn folders_are_walked_in_order_without_hanging_in_loops() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["b/2.JPG", "a/1.png", "note.txt"] {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    symlink(dir.path(), dir.path().join("a/loop")).unwrap();
    symlink(dir.path().join("gone.png"), dir.path().join("dangling.png")).unwrap();
    let all = walk(&inputs(&[dir.path()]));
    assert_eq!(all.names(), ["1.png", "2.JPG"]);
    assert_eq!(all.refused().iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["dangling.png"]);
    assert!(all.0.contains(&Found::Beside(".txt".into())));
    assert_eq!(all.0.len(), 4);
}

#[test]
fn content_decides_where_the_name_does_not() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("plain", JPEG),
        ("a.img", b"\x89PNG\r\n\x1a\n"),
        ("b.heic", b"whatever"),
        ("c.dat", b"\0\0\0\x18ftypavif"),
        ("d.bin", b"\0\x01\x02\x03"),
        ("e", b"text"),
        ("f.mp4", b"\0\0\0\x18ftypisom"),
    ] {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let all = walk(&inputs(&[dir.path()]));
    assert_eq!(all.names(), ["a.img", "plain"]);
    let refused = all.refused();
    for (name, word) in [("b.heic", "HEIC"), ("c.dat", "AVIF"), ("d.bin", "no picture"), ("f.mp4", "film")] {
        assert!(refused.iter().any(|(n, reason)| *n == name && reason.contains(word)), "{name}: {refused:?}");
    }
    assert_eq!(all.0.len(), 7);
    let ignoring = Inputs { ignore: vec![".mp4".into(), ".heic".into()], ..inputs(&[dir.path()]) };
    let all = walk(&ignoring);
    assert_eq!((all.refused().len(), all.0.len()), (2, 7));
}

#[test]
fn members_are_read_in_place_and_may_not_lead_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.tar");
    let members: [(&str, &[u8]); 7] = [
        ("a.jpg", b"one"),
        ("../x.jpg", b"two"),
        ("c.txt", b"no"),
        ("d.png", b"three"),
        ("e.image", JPEG),
        ("f.heic", b"x"),
        ("inner.tar", b"x"),
    ];
    for (packed, bytes) in [(false, tar(&members)), (true, gzip(&tar(&members)))] {
        let path = if packed { path.with_extension("tar.gz") } else { path.clone() };
        fs::write(&path, bytes).unwrap();
        let all = walk(&inputs(&[&path]));
        assert_eq!(all.names(), ["a.jpg", "d.png", "e.image"]);
        let bytes: Vec<_> = all.units().iter().map(|u| read(&u.place, 100).unwrap()).collect();
        assert_eq!(bytes, [b"one".to_vec(), b"three".to_vec(), JPEG.to_vec()]);
        let refused: Vec<_> = all.refused().iter().map(|(name, _)| *name).collect();
        assert_eq!(refused, ["x.jpg", "f.heic", "inner.tar"]);
        assert!(all.refused()[0].1.contains("leads out"));
        assert!(read(&all.units()[1].place, 4).unwrap_err().reason().contains("limit"));
        assert!(matches!(all.0.last(), Some(Found::Archive { whole: true, .. })));
        assert_eq!(all.0.len(), members.len() + 1, "every member, and the archive");
    }
}

#[test]
fn folders_of_shards_are_read_and_damaged_ones_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let whole = tar(&[("a.jpg", &[1; 600]), ("b.jpg", &[2; 600])]);
    fs::write(dir.path().join("0.tar"), &whole).unwrap();
    fs::write(dir.path().join("1.tar.gz"), gzip(&whole)).unwrap();
    fs::write(dir.path().join("2.tar"), &whole[..2000]).unwrap();
    let packed = gzip(&whole);
    fs::write(dir.path().join("3.tgz"), &packed[..packed.len() / 2]).unwrap();
    fs::write(dir.path().join("4"), &whole).unwrap();
    let all = walk(&inputs(&[dir.path()]));
    let whole: Vec<bool> = all
        .0
        .iter()
        .filter_map(|f| if let Found::Archive { whole, .. } = f { Some(*whole) } else { None })
        .collect();
    assert_eq!(whole, [true, true, false, false, true]);
    assert_eq!(all.refused().len(), 2, "{:?}", all.refused());
    assert!(
        all.refused().iter().all(|(_, reason)| reason.contains("cut short") || reason.contains("damaged"))
    );
}

#[test]
fn sounds_and_films_belong_to_the_picture_of_their_name() {
    let dir = tempfile::tempdir().unwrap();
    let members: [(&str, &[u8]); 4] = [
        ("a.wav", b"RIFF\0\0\0\0WAVE"),
        ("a.jpg", JPEG),
        ("b.mp3", b"ID3"),
        ("c.mp4", b"\0\0\0\x18ftypisom"),
    ];
    fs::write(dir.path().join("s.tar"), tar(&members)).unwrap();
    let folder = dir.path().join("f");
    fs::create_dir(&folder).unwrap();
    for (name, bytes) in members {
        fs::write(folder.join(name), bytes).unwrap();
    }
    for input in [folder, dir.path().join("s.tar")] {
        let all = walk(&inputs(&[&input]));
        assert!(all.0.contains(&Found::Beside(".wav".into())));
        assert_eq!(all.refused().iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["b.mp3", "c.mp4"]);
    }
}

#[test]
fn sparse_members_are_read_or_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.tar");
    // Four bytes at 0 and four at 4096 of a file of 5000.
    let mut header = tar::Header::new_gnu();
    header.set_path("a.jpg").unwrap();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_size(1024);
    {
        let gnu = header.as_gnu_mut().unwrap();
        let octal =
            |field: &mut [u8; 12], value: u64| field.copy_from_slice(format!("{value:011o}\0").as_bytes());
        for (part, (offset, len)) in gnu.sparse.iter_mut().zip([(0, 512), (4096, 512)]) {
            octal(&mut part.offset, offset);
            octal(&mut part.numbytes, len);
        }
        octal(&mut gnu.realsize, 4608);
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend([[7u8; 512], [8; 512]].concat());
    bytes.extend([0; 1024]);
    fs::write(&path, bytes).unwrap();
    let all = walk(&inputs(&[&path]));
    let bytes = read(&all.units()[0].place, 1 << 20).unwrap();
    assert_eq!((bytes.len(), bytes[0], bytes[1000], bytes[4096]), (4608, 7, 0, 8));

    let pax = b"26 GNU.sparse.major=1\n";
    let mut extended = tar::Header::new_ustar();
    extended.set_entry_type(tar::EntryType::XHeader);
    extended.set_path("x").unwrap();
    extended.set_size(pax.len() as u64);
    extended.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&extended, &b"22 GNU.sparse.major=1\n"[..]).unwrap();
    let mut plain = tar::Header::new_ustar();
    plain.set_path("b.jpg").unwrap();
    plain.set_size(4);
    plain.set_cksum();
    builder.append(&plain, &b"abcd"[..]).unwrap();
    fs::write(&path, builder.into_inner().unwrap()).unwrap();
    let all = walk(&inputs(&[&path]));
    assert!(all.units().is_empty() && all.refused()[0].1.contains("sparse"), "{:?}", all.0);
}

#[test]
fn names_need_not_be_text() {
    let dir = tempfile::tempdir().unwrap();
    for name in [&b"caf\xe9.jpg"[..], b"caf\xe8.jpg", b"cafe.jpg"] {
        fs::write(dir.path().join(std::ffi::OsStr::from_bytes(name)), JPEG).unwrap();
    }
    assert_eq!(walk(&inputs(&[dir.path()])).names(), [r"cafe.jpg", r"caf\xE8.jpg", r"caf\xE9.jpg"]);
    let path = dir.path().join("s.tar");
    fs::write(&path, tar_of(&[(b"caf\xe9.jpg", b"1"), (b"caf\xe8.jpg", b"2"), (b"a\tb.jpg", b"3")])).unwrap();
    let all = walk(&inputs(&[&path]));
    assert_eq!(all.names(), [r"caf\xE9.jpg", r"caf\xE8.jpg", "a\tb.jpg"]);
    let list = dir.path().join("list");
    fs::write(&list, b"caf\xe9.jpg\n").unwrap();
    let all = listed(&list);
    assert_eq!((all.names(), all.refused().len()), (vec![r"caf\xE9.jpg"], 0));
    assert_eq!(read(&all.units()[0].place, 100).unwrap(), JPEG);
}

#[test]
fn lists_name_files_archives_and_folders() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.png", "#1 best.jpg", " padded.png", "sub/b.png"] {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let list = dir.path().join("list.txt");
    let lines =
        "\u{feff}a.png\r\n# a comment\n#1 best.jpg\n\n padded.png\n  a.png  \nsub\nmissing.png\nnote.txt\n";
    fs::write(&list, lines).unwrap();
    fs::write(dir.path().join("note.txt"), "x").unwrap();
    let all = listed(&list);
    assert_eq!(all.names(), ["a.png", "#1 best.jpg", " padded.png", "a.png", "b.png"]);
    let refused = all.refused();
    assert_eq!(refused.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["missing.png", "note.txt"]);
    assert!(refused[1].1.contains("text"), "who lists a text meant a picture");
    let nowhere = Inputs { images: vec![dir.path().join("nowhere")], ..inputs(&[]) };
    assert!(nowhere.walk(None, &mut All::default()).is_err());
}

#[test]
fn a_list_elsewhere_may_name_paths_from_the_current_folder() {
    let dir = tempfile::tempdir().unwrap();
    // Tests run in the package's folder.
    fs::write(dir.path().join("list"), "src/main.rs\n").unwrap();
    let all = listed(&dir.path().join("list"));
    assert_eq!(all.refused(), [("main.rs", "it is a text, no picture")]);
}

#[test]
fn what_may_pass_is_tried_again_and_is_not_called_bad() {
    use rustix::io::Errno;
    let failing = |errno: Errno, times: u32| {
        let mut calls = 0;
        let read = patiently(|| {
            calls += 1;
            if calls <= times { Err(std::io::Error::from_raw_os_error(errno.raw_os_error())) } else { Ok(()) }
        });
        (read.is_ok(), calls)
    };
    assert_eq!(failing(Errno::IO, 1), (true, 2));
    assert_eq!(failing(Errno::STALE, 9), (false, 1 + RETRIES));
    assert_eq!(failing(Errno::NOENT, 9), (false, 1), "what is not there stays so for a while");
    for (error, bad) in [
        (std::io::Error::from_raw_os_error(Errno::IO.raw_os_error()), false),
        (std::io::Error::from_raw_os_error(Errno::ACCESS.raw_os_error()), false),
        (std::io::Error::from(std::io::ErrorKind::InvalidData), true),
        (std::io::Error::from(std::io::ErrorKind::UnexpectedEof), true),
    ] {
        assert_eq!(matches!(Refusal::io(&error), Refusal::Bad(_)), bad, "{error}");
    }
    let gone = Place::File("/nowhere/at/all.jpg".into());
    assert!(matches!(read(&gone, 10), Err(Refusal::Failed(_))));
}

#[test]
fn texts_of_a_sample_give_tags() {
    let dir = tempfile::tempdir().unwrap();
    let rules: Vec<TagRule> =
        ["caption=txt", "label=cls", "json.width"].map(|rule| rule.parse().unwrap()).into();
    let members: [(&str, &[u8]); 6] = [
        ("0/a.txt", b"first"),
        ("0/a.jpg", JPEG),
        ("0/a.json", b"{\"width\": 3}"),
        ("0/b.jpg", JPEG),
        ("0/b.cls", b"7"),
        ("0/c.jpg", JPEG),
    ];
    fs::write(dir.path().join("s.tar"), tar(&members)).unwrap();
    fs::write(dir.path().join("t.tar.gz"), gzip(&tar(&members))).unwrap();
    fs::create_dir(dir.path().join("0")).unwrap();
    for (name, bytes) in members {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let all = walk(&Inputs { tags: rules.clone(), ..inputs(&[dir.path()]) });
    let tags: Vec<String> =
        all.units().iter().map(|u| format!("{:?}", read_tags(&rules, &u.texts))).collect();
    let expected =
        [r#"({"caption": "first", "width": "3"}, None)"#, r#"({"label": "7"}, None)"#, "({}, None)"];
    assert_eq!(tags, [expected, expected, expected].concat());
    assert_eq!(all.0.iter().filter(|found| matches!(found, Found::Beside(_))).count(), 9);
}

proptest! {
    #[test]
    fn damaged_archives_give_what_they_can(cut in 0usize..4000, at in 0usize..4000, flip: u8, packed: bool) {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = tar(&[("a.jpg", &[1; 600]), ("b.jpg", &[2; 600])]);
        if packed {
            bytes = gzip(&bytes);
        }
        let at = at % bytes.len();
        bytes[at] ^= flip;
        bytes.truncate(cut);
        let path = dir.path().join(if packed { "s.tar.gz" } else { "s.tar" });
        fs::write(&path, bytes).unwrap();
        walk(&inputs(&[&path])).units().iter().for_each(|unit| drop(read(&unit.place, 10_000)));
    }
}
