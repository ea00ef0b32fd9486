//! What people really have: folders, lists and archives of everything. Whatever is in them, the sum of what the summary says is
//! the sum of what is there, and nothing is lost in silence.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use image::{ImageFormat, Rgb, RgbImage};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::Value;
use viscache::cache::{Cache, LoadOptions, NewCache, NewItem, RowsMode};
use viscache::media::npy;
use viscache::store::{Access, ItemRecord, RowType, Store};
use viscache::types::{CacheName, Embedding, Fingerprint, ItemId, Origin};

use crate::common::{Bench, name, say, seed};

/// A picture of its own, in some format.
fn picture(random: &mut Pcg64, format: ImageFormat) -> Vec<u8> {
    let (colour, size): ([u8; 3], u32) = (random.random(), random.random_range(8..40));
    let picture = RgbImage::from_fn(size, size + 3, |x, y| {
        if x * 2 > y { Rgb(colour) } else { Rgb([(x * 7) as u8, y as u8, colour[0]]) }
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A name that is new, more or less odd, and its ending.
fn odd_name(random: &mut Pcg64, number: usize, ending: &str) -> Vec<u8> {
    let odd: &[u8] = match random.random_range(0..9) {
        0 => b"caf\xe9 ",
        1 => b"line\nbreak ",
        2 => b"tab\t",
        3 => b"#",
        4 => b"-rf ",
        5 => "漢字 🐶 ".as_bytes(),
        6 => b"back\\slash\\x41 ",
        _ => b"",
    };
    [odd, format!("{number}").as_bytes(), ending.as_bytes()].concat()
}

/// One file of some kind: its bytes, and its ending.
fn some_file(random: &mut Pcg64) -> (Vec<u8>, &'static str) {
    let good = |random: &mut Pcg64, format, endings: &[&'static str]| {
        (picture(random, format), endings[random.random_range(0..endings.len())])
    };
    match random.random_range(0..22) {
        0..=2 => good(random, ImageFormat::Jpeg, &[".jpg", ".JPEG", ".jpe", ".MPO", ".jfif", "", ".img"]),
        3..=5 => good(random, ImageFormat::Png, &[".png", ".apng", ".image", ""]),
        6 => good(random, ImageFormat::Gif, &[".gif"]),
        7 => good(random, ImageFormat::Bmp, &[".bmp", ".dib"]),
        8 => good(random, ImageFormat::Tiff, &[".tif", ".TIFF"]),
        9 => good(random, ImageFormat::Pnm, &[".ppm", ""]),
        10 => good(random, ImageFormat::WebP, &[".webp"]),
        11 => (b"\0\0\0\x18ftypheic and more".to_vec(), ".HEIC"),
        12 => (b"\0\0\0\x18ftypavif and more".to_vec(), [".avif", "", ".jpg"][random.random_range(0..3)]),
        13 => (b"\0\0\0\x0cjP  \r\n\x87\n".to_vec(), ".jp2"),
        14 => (b"a caption".to_vec(), [".txt", ".json", ".cls", ""][random.random_range(0..4)]),
        15 => (Vec::new(), [".jpg", ".dat", ".txt"][random.random_range(0..3)]),
        16 => (b"no picture".to_vec(), ".png"),
        17 => {
            let whole = picture(random, ImageFormat::Png);
            (whole[..whole.len() / 2].to_vec(), ".png")
        }
        18 => (b"\0\0\0\x18ftypisom".to_vec(), ".mp4"),
        19 => (b"PK\x03\x04 and more".to_vec(), ".zip"),
        20 => (b"\x1f\x8b\x08\0 no tar in it".to_vec(), ".gz"),
        _ => {
            ((0..30).map(|_| random.random_range(0..9u8)).collect(), [".bin", ""][random.random_range(0..2)])
        }
    }
}

/// An archive of some files; how many members there are.
fn archive(random: &mut Pcg64, members: usize) -> (Vec<u8>, usize) {
    let mut builder = tar::Builder::new(Vec::new());
    for number in 0..members {
        let (bytes, ending) = some_file(random);
        let name: Vec<u8> =
            odd_name(random, number, ending).into_iter().map(|b| if b == b'\\' { b'_' } else { b }).collect();
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.as_mut_bytes()[..name.len()].copy_from_slice(&name);
        header.set_cksum();
        builder.append(&header, &bytes[..]).unwrap();
    }
    (builder.into_inner().unwrap(), members)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What lies in a folder: its paths, and how many things that are.
struct Mixed {
    paths: Vec<PathBuf>,
    things: u64,
}

/// Fills a folder with so many files of every kind.
fn fill(folder: &Path, count: usize, random: &mut Pcg64) -> Mixed {
    let (mut paths, mut things, mut archives) = (Vec::new(), 0, HashSet::new());
    for number in 0..count {
        let below = ["", "a", "a/b", "c d"][random.random_range(0..4)];
        let below = folder.join(below);
        fs::create_dir_all(&below).unwrap();
        let (name, inside) = match random.random_range(0..40) {
            0 => {
                let members = random.random_range(1..6);
                let (bytes, members) = archive(random, members);
                let packed = random.random_bool(0.5);
                let path = below.join(format!("{number}.{}", if packed { "tar.gz" } else { "tar" }));
                fs::write(&path, if packed { gzip(&bytes) } else { bytes }).unwrap();
                (path, members)
            }
            1 => {
                let path = below.join(format!("{number}-dangling.jpg"));
                symlink("nowhere", &path).unwrap();
                (path, 0)
            }
            2 if !paths.is_empty() => {
                let to: &PathBuf = &paths[random.random_range(0..paths.len())];
                let path = below.join(format!("{number}-link"));
                // A link has no ending: to what is an archive by its content, it would be one more.
                let to = if archives.contains(to) { Path::new("nowhere") } else { to };
                symlink(to, &path).unwrap();
                (path, 0)
            }
            3 if !paths.is_empty() => {
                let from: &PathBuf = &paths[random.random_range(0..paths.len())];
                let path = below.join(format!("{number}-copy.png"));
                fs::write(&path, fs::read(from).unwrap_or_default()).unwrap();
                if archives.contains(from) {
                    archives.insert(path.clone());
                }
                // A picture by its name, whatever is in it.
                (path, 0)
            }
            _ => {
                let (bytes, ending) = some_file(random);
                let path = below.join(OsStr::from_bytes(&odd_name(random, number, ending)));
                fs::write(&path, bytes).unwrap();
                (path, 0)
            }
        };
        if inside > 0 {
            archives.insert(name.clone());
        }
        paths.push(name);
        things += 1 + inside as u64;
    }
    // A loop of links is nothing.
    symlink(folder, folder.join("loop")).unwrap();
    Mixed { paths, things }
}

fn number(value: &Value) -> u64 {
    match value {
        Value::Object(counts) => counts.values().map(number).sum(),
        value => value.as_u64().unwrap_or_else(|| panic!("{value}")),
    }
}

/// The sum of all ends that a report tells of.
fn ends(report: &Value) -> u64 {
    let (inputs, written) = (&report["inputs"], &report["outcomes"]["written"]);
    let settled = ["archives", "done", "bad", "unreadable", "passed", "beside", "ignored", "repeated"];
    let written_now = ["stored", "replaced", "touched", "duplicates", "bad", "failed"];
    settled.iter().map(|end| number(&inputs[end])).sum::<u64>()
        + written_now.iter().map(|end| number(&written[end])).sum::<u64>()
}

#[test]
fn a_thousand_mixed_files_add_up_as_folder_as_list_and_as_archive() {
    let mut random = Pcg64::seed_from_u64(seed());
    let bench = Bench::new();
    let folder = bench.path("in");
    let mixed = fill(&folder, 1000, &mut random);
    let check = |words: &str, path: &Path, things: u64| {
        let ran = bench.run(words, &[path]).expect(3);
        let report = bench.report();
        assert_eq!(number(&report["inputs"]["inputs"]), things, "{words}: {}", ran.out);
        assert_eq!(ends(&report), things, "{words}: {}", ran.out);
        assert!(ran.out.contains(&format!("{things} inputs: ")), "{}", ran.out);
        ran
    };
    check("build --cache folder --images", &folder, mixed.things);
    let first = bench.report();
    let notes = bench.bad("folder").len() as u64;
    let not_stored = number(&first["bad_total"]);
    assert_eq!(notes, not_stored, "the ledger has every input that was not stored");
    // Everything is as before, and nothing is done again.
    let again = check("build --cache folder --images", &folder, mixed.things);
    assert!(again.out.starts_with("0 stored, 0 replaced, 0 duplicates, 0 bad;"), "{}", again.out);
    assert_eq!(number(&bench.report()["bad_total"]), not_stored);

    // The same files by a list; of names with line breaks a list cannot speak.
    let list = bench.path("list");
    let mut lines = b"# everything\n".to_vec();
    let mut listed = 0;
    for path in mixed.paths.iter().filter(|path| !path.as_os_str().as_bytes().contains(&b'\n')) {
        lines.extend(path.as_os_str().as_bytes());
        lines.push(b'\n');
        listed += 1;
    }
    fs::write(&list, lines).unwrap();
    bench.run("build --cache list --list", &[&list]).expect(3);
    let report = bench.report();
    assert!(number(&report["inputs"]["inputs"]) >= listed);
    assert_eq!(ends(&report), number(&report["inputs"]["inputs"]));

    // And as one archive, plain and packed.
    let (bytes, members) = archive(&mut random, 300);
    for (name, bytes) in [("all.tar", bytes.clone()), ("all.tar.gz", gzip(&bytes))] {
        let path = bench.path(name);
        fs::write(&path, bytes).unwrap();
        check(&format!("build --cache {} --images", name.replace('.', "-")), &path, members as u64 + 1);
        // Done as a whole: nothing of it is looked at again.
        check(&format!("build --cache {} --images", name.replace('.', "-")), &path, members as u64 + 1);
    }
    assert_eq!(bench.items("all-tar").len(), bench.items("all-tar-gz").len());
    bench.assert_sound();
    say(&format!("{} things, {not_stored} not stored", mixed.things));
}

#[test]
fn what_is_not_read_is_counted_named_and_in_the_exit_code() {
    let bench = Bench::new();
    let folder = bench.path("in");
    fs::create_dir(&folder).unwrap();
    let mut random = Pcg64::seed_from_u64(1);
    for (name, bytes) in [
        ("a.jpg", picture(&mut random, ImageFormat::Jpeg)),
        ("b.MPO", picture(&mut random, ImageFormat::Jpeg)),
        ("c", picture(&mut random, ImageFormat::Png)),
        ("d.apng", picture(&mut random, ImageFormat::Png)),
        ("e.tiff", picture(&mut random, ImageFormat::Tiff)),
        ("f.heic", b"\0\0\0\x18ftypheic".to_vec()),
        ("g.avif", b"\0\0\0\x18ftypavif".to_vec()),
        ("h.jp2", b"\0\0\0\x0cjP  \r\n\x87\n".to_vec()),
    ] {
        fs::write(folder.join(name), bytes).unwrap();
    }
    let ran = bench.run("build --cache a --images", &[&folder]).expect(3);
    assert!(ran.out.starts_with("5 stored"), "{}", ran.out);
    for line in [
        "8 inputs: 5 stored, 3 passed over",
        "1 .heic: it is HEIC",
        "1 .avif: it is AVIF",
        "1 .jp2: it is JPEG 2000",
    ] {
        assert!(ran.out.contains(line), "no {line} in {}", ran.out);
    }
    assert_eq!(bench.bad("a").len(), 3);
    // Who knows of them may leave them out.
    bench.run("build --cache b --ignore heic,.AVIF,jp2 --images", &[&folder]).expect(0);

    let only = bench.path("only");
    fs::create_dir(&only).unwrap();
    fs::rename(folder.join("f.heic"), only.join("f.heic")).unwrap();
    let ran = bench.run("build --cache c --images", &[&only]).expect(1);
    assert!(
        ran.err.contains("no picture was found in 1 inputs") && ran.err.contains("1 .heic"),
        "{}",
        ran.err
    );
    assert_eq!(bench.bad("c").len(), 1);
    fs::remove_file(only.join("f.heic")).unwrap();
    let ran = bench.run("build --cache d --images", &[&only]).expect(1);
    assert!(ran.err.contains("nothing in the inputs"), "{}", ran.err);
}

#[test]
fn a_mended_archive_has_no_entry_any_more() {
    let bench = Bench::new();
    let mut random = Pcg64::seed_from_u64(2);
    let mut builder = tar::Builder::new(Vec::new());
    for name in ["a.jpg", "b.jpg", "c.jpg"] {
        let bytes = picture(&mut random, ImageFormat::Jpeg);
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    let whole = builder.into_inner().unwrap();
    let path = bench.path("s.tar");
    // Cut inside a header, inside a member, and foreign from some place on.
    for damaged in
        [whole[..1700].to_vec(), whole[..2100].to_vec(), [&whole[..whole.len() - 2048], &[9; 600]].concat()]
    {
        let cache = format!("c{}", damaged.len());
        fs::write(&path, damaged).unwrap();
        bench.run(&format!("build --cache {cache} --images"), &[&path]).expect(3);
        assert_eq!(bench.bad(&cache).len(), 1);
        fs::write(&path, &whole).unwrap();
        bench.run(&format!("build --cache {cache} --images"), &[&path]).expect(0);
        assert!(bench.bad(&cache).is_empty(), "{:?}", bench.bad(&cache));
        assert_eq!(bench.items(&cache).len(), 3);
    }
    bench.assert_sound();
}

#[test]
fn an_archive_that_is_done_is_not_opened_again() {
    let bench = Bench::new();
    let mut random = Pcg64::seed_from_u64(5);
    let (bytes, _) = archive(&mut random, 60);
    let path = bench.path("s.tar");
    fs::write(&path, &bytes).unwrap();
    bench.run("build --cache a --images", &[&path]).expect(3);
    let told = |ran: &str| ran.lines().skip(1).take_while(|line| !line.contains("generation")).count();
    let before = (bench.report()["bad_total"].clone(), bench.report()["inputs"]["inputs"].clone());
    // Other bytes of the same length and time: whoever opened it would meet damage.
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, vec![7; bytes.len()]).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
    let ran = bench.run("build --cache a --images", &[&path]).expect(3);
    assert!(ran.out.starts_with("0 stored") && told(&ran.out) > 1, "{}", ran.out);
    assert_eq!(before, (bench.report()["bad_total"].clone(), bench.report()["inputs"]["inputs"].clone()));
    // Asked to try what was refused, it has to.
    let ran = bench.run("build --cache a --retry-bad --images", &[&path]).expect(3);
    assert!(ran.out.contains("unreadable"), "{}", ran.out);
}

/// A duplicate in an archive relies on an item that another file may take away.
#[test]
fn duplicates_in_archives_are_stored_when_their_item_is_replaced() {
    let bench = Bench::new();
    let mut random = Pcg64::seed_from_u64(7);
    let [one, two] = [(); 2].map(|()| picture(&mut random, ImageFormat::Png));
    let folder = bench.path("in");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.png"), &one).unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(one.len() as u64);
    builder.append_data(&mut header, "same.png", &one[..]).unwrap();
    fs::write(folder.join("z.tar"), builder.into_inner().unwrap()).unwrap();
    let ran = bench.run("build --cache a --images", &[&folder]).expect(0);
    assert!(ran.out.starts_with("1 stored, 0 replaced, 1 duplicates"), "{}", ran.out);
    fs::write(folder.join("a.png"), &two).unwrap();
    let ran = bench.run("build --cache a --images", &[&folder]).expect(0);
    assert!(ran.out.starts_with("1 stored, 1 replaced, 0 duplicates, 0 bad; 2 items"), "{}", ran.out);
    bench.assert_sound();
}

#[test]
fn content_that_is_stored_is_found_under_any_name() {
    let bench = Bench::new();
    let folder = bench.path("in");
    fs::create_dir(&folder).unwrap();
    let mut random = Pcg64::seed_from_u64(3);
    for i in 0..5 {
        fs::write(folder.join(format!("{i}.png")), picture(&mut random, ImageFormat::Png)).unwrap();
    }
    bench.run("build --cache a --images", &[&folder]).expect(0);
    let run_in = |path: &str| {
        let mut command = bench.command("build --cache a --images", &[Path::new(path)]);
        command.current_dir(bench.folder.path());
        crate::common::finish(command).expect(0)
    };
    // The same folder under another name is the same content, and is not embedded again.
    let ran = run_in("in");
    assert!(ran.out.starts_with("0 stored, 0 replaced, 5 duplicates"), "{}", ran.out);
    assert!(bench.report()["outcomes"]["embed_seconds"].as_f64().unwrap() < 0.01);
    let ran = run_in("./in//");
    assert!(ran.out.contains("5 inputs: 5 done before"), "`./in//` is `in`: {}", ran.out);
    // A file that was only touched keeps its item, and is not embedded either.
    let bytes = fs::read(folder.join("2.png")).unwrap();
    fs::remove_file(folder.join("2.png")).unwrap();
    fs::write(folder.join("2.png"), bytes).unwrap();
    let ran = bench.run("build --cache a --images", &[&folder]).expect(0);
    assert!(ran.out.contains("1 of another time and the same content, 4 done before"), "{}", ran.out);
    bench.assert_sound();
}

/// Puts an item as a server does.
fn upsert(bench: &Bench, id: Option<u64>, uri: &str, bytes: &[u8]) -> u64 {
    let store = std::sync::Arc::new(Store::open(&bench.store, Access::Write).unwrap());
    let options = LoadOptions { rows: RowsMode::Disk, memory_budget: u64::MAX };
    let cache = Cache::open(&store, &name("a"), None, options).unwrap();
    let digest = Fingerprint::of(bytes);
    let record = ItemRecord { uri: uri.into(), modality: None, digest, tags: Default::default() };
    let embedding = Embedding::new(vec![1.0; cache.snapshot().record().dim]).unwrap();
    let ids = cache.upsert(vec![NewItem { id: id.map(ItemId), embedding, record }]).unwrap();
    ids[0].as_ref().unwrap().0
}

/// A server and a builder know each other's pictures by their content.
#[test]
fn content_that_a_server_stored_is_not_stored_again() {
    let bench = Bench::new();
    let folder = bench.path("in");
    fs::create_dir(&folder).unwrap();
    let mut random = Pcg64::seed_from_u64(6);
    let pictures: Vec<Vec<u8>> = (0..4).map(|_| picture(&mut random, ImageFormat::Png)).collect();
    for (i, bytes) in pictures.iter().enumerate().take(3) {
        fs::write(folder.join(format!("{i}.png")), bytes).unwrap();
    }
    bench.run("build --cache a --images", &[&folder]).expect(0);
    let id = upsert(&bench, None, "sent by a client", &pictures[3]);
    fs::write(folder.join("3.png"), &pictures[3]).unwrap();
    let ran = bench.run("build --cache a --images", &[&folder]).expect(0);
    assert!(ran.out.starts_with("0 stored, 0 replaced, 1 duplicates, 0 bad; 4 items"), "{}", ran.out);
    // Whoever sends the same content again asks for another item, and gets it; the first one stays known.
    let again = upsert(&bench, None, "sent once more", &pictures[3]);
    assert_eq!((id, again), (3, 4));
    bench.run("build --cache a --images", &[&folder]).expect(0);
    assert_eq!(bench.items("a").len(), 5);
    bench.assert_sound();
}

/// What a client has put under an id stays, whatever file was stored under it before.
#[test]
fn a_build_does_not_replace_what_a_client_has_put() {
    let bench = Bench::new();
    let folder = bench.path("in");
    fs::create_dir(&folder).unwrap();
    let mut random = Pcg64::seed_from_u64(8);
    let mut next = || picture(&mut random, ImageFormat::Png);
    for i in 0..3 {
        fs::write(folder.join(format!("{i}.png")), next()).unwrap();
    }
    bench.run("build --cache a --images", &[&folder]).expect(0);
    let first = fs::read(folder.join("0.png")).unwrap();
    // One becomes unreadable, another a duplicate; both keep their items.
    fs::write(folder.join("1.png"), b"no picture any more").unwrap();
    fs::write(folder.join("2.png"), &first).unwrap();
    bench.run("build --cache a --images", &[&folder]).expect(3);
    let theirs = [upsert(&bench, Some(1), "theirs/1", b"one"), upsert(&bench, Some(2), "theirs/2", b"two")];
    assert_eq!(theirs, [1, 2]);
    for i in 1..3 {
        fs::write(folder.join(format!("{i}.png")), next()).unwrap();
    }
    let ran = bench.run("build --cache a --images", &[&folder]).expect(0);
    assert!(ran.out.starts_with("2 stored, 0 replaced"), "{}", ran.out);
    let items = bench.items("a");
    assert_eq!(items.len(), 5);
    for (id, uri) in [(1, "theirs/1"), (2, "theirs/2")] {
        assert_eq!(items[&id].uri, uri);
    }
    bench.assert_sound();
}

/// The same of an import, whose rows have names of their own.
#[test]
fn an_import_does_not_replace_what_a_client_has_put() {
    let bench = Bench::new();
    let (file, names) = (bench.path("rows.npy"), bench.path("rows.jsonl"));
    let write = |first: f32| {
        fs::write(&file, npy::write(&[first, 0.0, 0.0, 1.0], 2)).unwrap();
        fs::write(&names, "{\"uri\": \"x\"}\n{\"uri\": \"y\"}\n").unwrap();
    };
    write(1.0);
    bench.run("import --cache a --vectors", &[&file]).expect(0);
    assert_eq!(upsert(&bench, Some(0), "theirs", b"one"), 0);
    write(-1.0);
    fs::File::open(&file).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    bench.run("import --cache a --vectors", &[&file]).expect(0);
    let items = bench.items("a");
    assert_eq!(items[&0].uri, "theirs", "{items:?}");
    assert!(items.values().any(|item| item.uri == "x"), "{items:?}");
    bench.assert_sound();
}

#[test]
fn tags_come_from_the_texts_beside_pictures_when_asked_for() {
    let bench = Bench::new();
    let mut random = Pcg64::seed_from_u64(4);
    let (one, two) = (picture(&mut random, ImageFormat::Jpeg), picture(&mut random, ImageFormat::Png));
    let members: [(&str, &[u8]); 5] = [
        ("00/1.jpg", &one),
        ("00/1.json", br#"{"license": "by", "width": 3}"#),
        ("00/1.txt", b"a dog"),
        ("00/2.png", &two),
        ("00/2.txt", b"\xff\xfe"),
    ];
    let mut builder = tar::Builder::new(Vec::new());
    let folder = bench.path("in");
    fs::create_dir_all(folder.join("00")).unwrap();
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    }
    let shard = bench.path("s.tar.gz");
    fs::write(&shard, gzip(&builder.into_inner().unwrap())).unwrap();
    for (cache, path) in [("folder", &folder), ("shard", &shard)] {
        let words = format!("build --cache {cache} --tag caption=txt --tag licence=json.license --images");
        let ran = bench.run(&words, &[path]).expect(0);
        assert!(
            ran.out.contains("1 pictures have a text beside them that no tag could be taken from"),
            "{}",
            ran.out
        );
        let tags: BTreeMap<u64, _> =
            bench.items(cache).into_iter().map(|(id, item)| (id, item.tags)).collect();
        assert_eq!(format!("{tags:?}"), r#"{0: {"caption": "a dog", "licence": "by"}, 1: {}}"#);
    }
    bench.run("build --cache plain --images", &[&shard]).expect(0);
    assert!(bench.items("plain")[&0].tags.is_empty());
}

#[test]
fn a_run_that_stores_nothing_is_in_nobodys_way() {
    let bench = Bench::new();
    let empty = bench.path("empty");
    fs::create_dir(&empty).unwrap();
    fs::write(empty.join("broken.png"), "no").unwrap();
    bench.run("build --cache c --images", &[&empty]).expect(1);
    let vectors = bench.path("x.npy");
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n";
    let mut bytes =
        [&b"\x93NUMPY\x01\x00"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat();
    bytes.extend([1.0f32, 0.0, 0.0, 3.0, 4.0, 0.0].map(f32::to_le_bytes).concat());
    fs::write(&vectors, bytes).unwrap();
    let ran = bench.run("import --cache c --vectors", &[&vectors]).expect(0);
    assert!(ran.out.contains("1 rows were not of length 1"), "{}", ran.out);
    assert_eq!(bench.record("c").dim, 3);

    // Caches can be listed, renamed and deleted.
    assert!(bench.run("caches list", &[]).expect(0).out.starts_with("c\t2 items of 3 components"));
    bench.run("caches rename --cache c --to d", &[]).expect(0);
    assert_eq!(bench.record("d").items, 2);
    let ran = bench.run("caches delete --cache d", &[]).expect(1);
    assert!(ran.err.contains("--yes"), "{}", ran.err);
    bench.run("caches delete --yes --cache d", &[]).expect(0);
    assert_eq!(bench.run("caches list", &[]).expect(0).out, "");
    bench.run("caches rename --cache d --to e", &[]).expect(1);

    // One that was made by itself is what it was made, and one that a server has filled is whole without an index.
    let (c, live) = (CacheName::new("c").unwrap(), CacheName::new("live").unwrap());
    let make = |dim: usize| {
        let store = Store::open(&bench.store, Access::Write).unwrap();
        let new = NewCache { dim, rows: RowType::F32, origin: Origin::of("x"), model: None };
        new.make(&store, &c).unwrap();
        store.set_alias(&live, &c).unwrap();
    };
    make(5);
    let ran = bench.run("import --cache c --vectors", &[&vectors]).expect(1);
    assert!(ran.err.contains("has 5"), "{}", ran.err);
    // An alias stands for its cache here too, and neither goes without the other.
    assert!(bench.run("caches list", &[]).expect(0).out.contains("\talso live"));
    assert!(bench.run("caches delete --cache live", &[]).expect(1).err.contains("is an alias"));
    assert!(bench.run("caches delete --cache c", &[]).expect(1).err.contains("has aliases (live)"));
    bench.run("caches delete --cache c --force", &[]).expect(0);
    make(3);
    bench.run("import --cache live --vectors", &[&vectors]).expect(0);
    assert_eq!((bench.record("c").items, bench.record("c").dim), (2, 3));
    bench.run("caches rename --cache c --to e", &[]).expect(0);
    assert_eq!(bench.record("live").name.as_str(), "e");
    bench.run("verify --cache live", &[]).expect(0);
}

#[test]
fn the_built_in_model_says_that_it_does_not_know_photographs() {
    let bench = Bench::new();
    let scenes = bench.path("scenes");
    crate::common::draw(&scenes, 0, 80);
    let told = |ran: &crate::common::Ran| ran.out.contains("hardly tells these pictures apart");
    assert!(!told(&bench.run("build --cache scenes --no-index --images", &[&scenes]).expect(0)));
    let Some(archive) = crate::common::data("photos-200.tar") else { return };
    let ran = bench.run("build --cache photos --no-index --images", &[&archive]);
    assert!(told(&ran), "{}", ran.out);
}

#[test]
fn a_reader_that_goes_away_does_not_end_a_build() {
    for words in ["build --cache a --images", "build --cache a --json --images"] {
        let bench = Bench::new();
        let folder = bench.path("in");
        crate::common::draw(&folder, 0, 20);
        let mut child =
            bench.command(words, &[&folder]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert_eq!(bench.record("a").current.map(|generation| generation.0), Some(1));
    }
}

#[test]
fn the_ledger_is_a_line_an_input() {
    let bench = Bench::new();
    let folder = bench.path("in");
    fs::create_dir(&folder).unwrap();
    let names = [&b"line\nbreak.png"[..], b"tab\tin.png", b"esc\x1b[31m.png", b"caf\xe9.png"];
    for name in names {
        fs::write(folder.join(OsStr::from_bytes(name)), "no").unwrap();
    }
    bench.run("build --cache a --images", &[&folder]).expect(1);
    let table = bench.run("ledger --cache a", &[]).expect(0).out;
    assert_eq!(table.lines().count(), names.len(), "{table}");
    assert!(table.lines().all(|line| line.split('\t').count() == 2), "{table}");
    for shown in ["line\\nbreak.png", "tab\\tin.png", "esc\\u{1b}[31m.png", "caf\\xE9.png"] {
        assert!(table.contains(shown), "{shown}: {table}");
    }
}
