//! `build` from end to end on real files: what goes in comes out once, and what cannot go in is named.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;

use viscache::index::{SearchParams, Searcher};
use viscache::types::Embedding;

use crate::common::{Bench, assert_unique, data, draw, json_lines};

fn unpack(archive: &Path, into: &Path) {
    tar::Archive::new(File::open(archive).unwrap()).unpack(into).unwrap();
}

/// Names without what comes before the last `/`.
fn short(uris: impl IntoIterator<Item = impl AsRef<str>>) -> BTreeSet<String> {
    uris.into_iter().map(|uri| uri.as_ref().rsplit('/').next().unwrap().to_owned()).collect()
}

#[test]
fn photographs_give_the_same_rows_from_an_archive_and_from_a_folder() {
    let Some(archive) = data("photos-200.tar") else { return };
    let bench = Bench::new();
    let folder = bench.path("unpacked");
    unpack(&archive, &folder);
    bench.run("build --cache tar --images", &[&archive]).expect(0);
    bench.run("build --cache folder --batch 7 --threads 3 --images", &[&folder]).expect(0);
    let (from_tar, from_folder) = (bench.items("tar"), bench.items("folder"));
    assert_eq!((from_tar.len(), from_folder.len()), (200, 200));
    assert_unique(&from_tar);
    let digests: Vec<_> = from_tar.values().map(|item| item.digest).collect();
    assert_eq!(digests, from_folder.values().map(|item| item.digest).collect::<Vec<_>>());
    for (id, item) in &from_tar {
        assert!(item.uri.contains("photos-200.tar!photos/"), "{}", item.uri);
        let (a, b) = (&bench.rows("tar")[id], &bench.rows("folder")[id]);
        let cosine: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum();
        assert!(cosine > 0.9999, "{}: {cosine}", item.uri);
        if *id > 20 {
            break;
        }
    }
    bench.assert_sound();
}

#[test]
fn captioned_pictures_and_a_report() {
    let Some(archive) = data("captioned-150.tar") else { return };
    let bench = Bench::new();
    let ran = bench.run("build --cache a --json --images", &[&archive]).expect(0);
    let lines = json_lines(&ran.out);
    let report = bench.report();
    assert_eq!(lines.last().unwrap()["report"], report, "the last line is the report");
    assert_eq!(report["cache"]["name"], "a");
    assert_eq!(report["cache"]["items"], 150);
    assert_eq!(report["cache"]["current"], 1);
    let origin = &report["cache"]["origin"];
    assert_eq!(origin["model"], "nano");
    for fingerprint in ["weights", "preprocessing"] {
        assert_eq!(origin[fingerprint].as_str().unwrap().len(), 64);
    }
    assert_eq!(report["inputs"]["pending"], 150);
    assert_eq!(report["outcomes"]["written"]["stored"], 150);
    assert_eq!(report["bad_total"], 0);
    for stage in ["seconds", "decode_seconds", "embed_seconds", "write_seconds"] {
        assert!(report["outcomes"][stage].as_f64().unwrap() > 0.0, "{stage}");
    }
    let recall = report["index"]["recall"].as_array().unwrap();
    assert!(!recall.is_empty(), "{recall:?}");
    for pair in recall {
        assert!(pair[0].as_u64().is_some() && pair[1].as_f64().unwrap() > 0.9, "{pair}");
    }
    assert_eq!(report["index"]["seconds"].as_array().unwrap().len(), 4);
    assert!(report["index"]["index_bytes"].as_u64().unwrap() > 150 * 128);
    assert_eq!(report["build"]["codes"], "u4");
    assert_eq!(report["build"]["m"], 16);
    for (family, least) in [("vectors", 150 * 128 * 4), ("blobs", 150 * 128), ("items", 1), ("ledger", 1)] {
        assert!(report["sizes"][family].as_u64().unwrap() >= least, "{family} of {}", report["sizes"]);
    }
}

#[test]
fn six_thousand_small_pictures() {
    let Some(archive) = data("cifar10-images-6000.tar") else { return };
    let bench = Bench::new();
    bench.run("build --cache a --images", &[&archive]).expect(0);
    let items = bench.items("a");
    assert_eq!(items.len() as u64, bench.record("a").items);
    let done = bench.report()["outcomes"]["written"].clone();
    assert_eq!(done["stored"].as_u64().unwrap() + done["duplicates"].as_u64().unwrap(), 6000);
    assert_unique(&items);
    bench.assert_sound();
}

#[test]
fn a_second_run_does_nothing_and_ends_alike() {
    let bench = Bench::new();
    let folder = bench.path("in");
    draw(&folder, 0, 20);
    bench.run("build --cache a --images", &[&folder]).expect(0);
    let before = (bench.items("a"), bench.rows("a"), bench.record("a"));
    let ran = bench.run("build --cache a --images", &[&folder]).expect(0);
    assert!(ran.out.starts_with("0 stored, 0 replaced, 0 duplicates, 0 bad; 20 items"), "{}", ran.out);
    assert_eq!(before, (bench.items("a"), bench.rows("a"), bench.record("a")));
    assert_eq!(bench.report()["inputs"]["done"], 20);

    fs::write(folder.join("broken.png"), "no").unwrap();
    bench.run("build --cache a --images", &[&folder]).expect(3);
    bench.run("build --cache a --images", &[&folder]).expect(3);
    assert_eq!(bench.report()["inputs"]["bad"], 1);
    assert_eq!(bench.record("a").current, before.2.current, "nothing new, so no new generation");
}

#[test]
fn lists_name_files_and_archives() {
    let bench = Bench::new();
    let folder = bench.path("in");
    draw(&folder, 0, 6);
    let list = bench.path("in/list.txt");
    fs::write(&list, "# three of six\n00000003.png\n00000001.png\n\n./00000003.png\nmissing.png\n").unwrap();
    bench.run("build --cache a --list", &[&list]).expect(3);
    let items = bench.items("a");
    assert_eq!(
        short(items.values().map(|i| &i.uri)),
        ["00000001.png", "00000003.png"].map(String::from).into()
    );
    assert!(items[&0].uri.ends_with("00000003.png"), "the order of the list is kept");
    let bad = bench.bad("a");
    assert_eq!(short(bad.keys()), ["missing.png".to_owned()].into());
    assert!(bad.values().next().unwrap().contains("No such file"), "{bad:?}");
}

#[test]
fn equal_content_is_stored_once_unless_asked_otherwise() {
    let bench = Bench::new();
    let folder = bench.path("in");
    draw(&folder, 0, 10);
    for i in 0..4 {
        fs::copy(folder.join(format!("0000000{i}.png")), folder.join(format!("copy{i}.png"))).unwrap();
    }
    let ran = bench.run("build --cache once --batch 3 --images", &[&folder]).expect(0);
    assert!(ran.out.starts_with("10 stored, 0 replaced, 4 duplicates, 0 bad"), "{}", ran.out);
    assert_unique(&bench.items("once"));
    bench.run("build --cache twice --keep-duplicates --images", &[&folder]).expect(0);
    assert_eq!(bench.items("twice").len(), 14);
    // Across runs too.
    fs::copy(folder.join("00000009.png"), folder.join("later.png")).unwrap();
    let ran = bench.run("build --cache once --images", &[&folder]).expect(0);
    assert!(ran.out.starts_with("0 stored, 0 replaced, 1 duplicates"), "{}", ran.out);
    bench.assert_sound();
}

#[test]
fn a_changed_file_is_replaced_under_its_id() {
    let bench = Bench::new();
    let (folder, other) = (bench.path("in"), bench.path("other"));
    draw(&folder, 0, 10);
    draw(&other, 100, 1);
    bench.run("build --cache a --images", &[&folder]).expect(0);
    let (items, rows) = (bench.items("a"), bench.rows("a"));
    fs::copy(other.join("00000100.png"), folder.join("00000004.png")).unwrap();
    let ran = bench.run("build --cache a --images", &[&folder]).expect(0);
    assert!(ran.out.starts_with("0 stored, 1 replaced, 0 duplicates, 0 bad; 10 items"), "{}", ran.out);
    let (new_items, new_rows) = (bench.items("a"), bench.rows("a"));
    for (id, item) in &items {
        let changed = item.uri.ends_with("00000004.png");
        assert_eq!(new_items[id].uri, item.uri);
        assert_eq!(new_items[id].digest != item.digest, changed, "{}", item.uri);
        assert_eq!(new_rows[id] != rows[id], changed, "{}", item.uri);
    }
    assert_eq!(bench.record("a").current.unwrap().0, 2, "a replaced row means a new generation");
    bench.assert_sound();
}

/// Content that moves to another name while its old name gets new content must not be lost: it is no duplicate of an
/// item that is being replaced.
#[test]
fn content_whose_item_is_replaced_in_the_same_batch_is_stored() {
    for (first, renamed) in [("b.png", "c.png"), ("b.png", "a.png")] {
        let bench = Bench::new();
        let (folder, drawn) = (bench.path("in"), bench.path("drawn"));
        fs::create_dir(&folder).unwrap();
        draw(&drawn, 0, 2);
        fs::copy(drawn.join("00000000.png"), folder.join(first)).unwrap();
        bench.run("build --cache a --images", &[&folder]).expect(0);
        fs::rename(folder.join(first), folder.join(renamed)).unwrap();
        fs::copy(drawn.join("00000001.png"), folder.join(first)).unwrap();
        bench.run("build --cache a --images", &[&folder]).expect(0);
        let items = bench.items("a");
        assert_eq!(items.len(), 2, "{first} to {renamed}: {items:?}");
        assert_unique(&items);
        bench.assert_sound();
    }
}

#[test]
fn nasty_pictures_are_taken_or_named() {
    let Some(folder) = data("nasty/images") else { return };
    let bench = Bench::new();
    bench.run("build --cache a --images", &[&folder]).expect(3);
    let bad = bench.bad("a");
    let rejected = ["bomb-30000x30000-1bit.png", "text-named.jpg", "zero-byte.jpg"].map(String::from);
    assert_eq!(short(bad.keys()), rejected.into());
    assert!(bad.values().all(|reason| !reason.is_empty()));
    assert_eq!(bench.items("a").len() + bad.len(), fs::read_dir(&folder).unwrap().count());
    bench.assert_sound();
    let table = bench.run("ledger --cache a", &[]).expect(0).out;
    assert!(table.lines().count() == 3 && table.lines().all(|line| line.contains('\t')), "{table}");

    // The two EXIF pictures are one picture when orientation is applied, and two when it is not.
    let cosine = |cache: &str| -> f64 {
        let (items, rows) = (bench.items(cache), bench.rows(cache));
        let exif: Vec<_> =
            items.iter().filter(|(_, item)| item.uri.contains("exif")).map(|(id, _)| id).collect();
        rows[exif[0]].iter().zip(&rows[exif[1]]).map(|(a, b)| f64::from(a * b)).sum()
    };
    bench.run("build --cache reference --orientation reference --images", &[&folder]).expect(3);
    assert!(cosine("a") > 0.99, "{}", cosine("a"));
    assert!(cosine("reference") < cosine("a"), "{} {}", cosine("reference"), cosine("a"));
}

#[test]
fn refused_files_are_tried_again_when_asked_or_changed() {
    let bench = Bench::new();
    let folder = bench.path("in");
    draw(&folder, 0, 3);
    fs::write(folder.join("late.png"), "no").unwrap();
    // Too large for this run, and unchanged in the next.
    let ran = bench.run("build --cache a --max-image-pixels 100 --images", &[&folder]).expect(1);
    assert!(ran.err.contains("not one good item") && ran.err.contains("ledger"), "{}", ran.err);
    assert_eq!(bench.bad("a").len(), 4);
    bench.run("build --cache a --images", &[&folder]).expect(1);
    assert_eq!(bench.record("a").items, 0, "not tried again unasked");
    bench.run("build --cache a --retry-bad --images", &[&folder]).expect(3);
    assert_eq!((bench.record("a").items, bench.bad("a").len()), (3, 1));
    fs::copy(folder.join("00000000.png"), folder.join("late.png")).unwrap();
    let ran = bench.run("build --cache a --images", &[&folder]).expect(0);
    assert!(ran.out.contains("1 duplicates, 0 bad"), "a changed file is tried unasked: {}", ran.out);
    assert!(bench.bad("a").is_empty());
    bench.assert_sound();
}

#[test]
fn archives_cannot_lead_outside() {
    let Some(archive) = data("nasty/tar/path-traversal.tar") else { return };
    let bench = Bench::new();
    let inner = bench.path("one/two");
    fs::create_dir_all(&inner).unwrap();
    let copy = inner.join("t.tar");
    fs::copy(archive, &copy).unwrap();
    // What the members' names lead to, if they lead anywhere.
    draw(&bench.path("drawn"), 0, 1);
    let picture = bench.path("drawn/00000000.png");
    for name in ["escape-dotdot.jpg", "one/escape-mid.jpg"] {
        fs::copy(&picture, bench.path(name)).unwrap();
    }
    let bytes = fs::read(&picture).unwrap();
    bench.run("build --cache a --images", &[&copy]).expect(3);
    let items = bench.items("a");
    assert_eq!(short(items.values().map(|i| &i.uri)), ["a.jpg".to_owned()].into());
    assert_ne!(items[&0].digest, viscache::types::Fingerprint::of(&bytes));
    let bad = bench.bad("a");
    assert_eq!(short(bad.keys()), ["escape-dotdot.jpg", "escape-mid.jpg"].map(String::from).into());
    assert!(bad.values().all(|reason| reason.contains("leads out")), "{bad:?}");
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 1, "nothing was unpacked");
    for name in ["escape-dotdot.jpg", "one/escape-mid.jpg"] {
        assert_eq!(fs::read(bench.path(name)).unwrap(), bytes, "{name} was written");
    }
}

#[test]
fn a_cut_archive_gives_what_it_has() {
    let Some(archive) = data("nasty/tar/truncated.tar") else { return };
    let bench = Bench::new();
    bench.run("build --cache a --images", &[&archive]).expect(3);
    assert_eq!(short(bench.items("a").values().map(|i| &i.uri)), ["0.jpg".to_owned()].into());
    let bad = bench.bad("a");
    assert!(bad.len() == 1 && bad.values().all(|reason| reason.contains("cut short")), "{bad:?}");
    bench.assert_sound();
}

#[test]
fn odd_names_are_kept_and_links_do_not_hang() {
    let Some(archive) = data("nasty/tar/names-and-links.tar") else { return };
    let bench = Bench::new();
    let folder = bench.path("in");
    unpack(&archive, &folder);
    bench.run("build --cache a --images", &[&folder]).expect(3);
    let names = ["ünïcødé-漢字-🐶.jpg", "new\nline.jpg", "space and 'quote'.jpg", "-rf.jpg"];
    assert_eq!(short(bench.items("a").values().map(|i| &i.uri)), names.map(String::from).into());
    assert_eq!(short(bench.bad("a").keys()), ["dangling.jpg".to_owned()].into());
    bench.assert_sound();
}

#[test]
fn a_dry_run_prints_a_plan_and_writes_nothing() {
    let bench = Bench::new();
    let folder = bench.path("in");
    draw(&folder, 0, 5);
    let ran = bench.run("build --cache a --dry-run --images", &[&folder]).expect(0);
    for word in ["5 to do, 5 items afterwards", "memory", "disk", "time"] {
        assert!(ran.out.contains(word), "{}", ran.out);
    }
    assert!(!bench.store.exists());
    let lines = json_lines(&bench.run("build --cache a --dry-run --json --images", &[&folder]).expect(0).out);
    assert_eq!(lines[0]["plan"]["pending"], 5);
    assert!(lines[0]["plan"]["memory_bytes"].as_u64().unwrap() > 0);

    bench.run("build --cache a --images", &[&folder]).expect(0);
    let before = listing(&bench.store);
    let ran = bench.run("build --cache a --dry-run --images", &[&folder]).expect(0);
    assert!(ran.out.contains("0 to do, 5 items afterwards"), "{}", ran.out);
    assert_eq!(before, listing(&bench.store));
}

fn listing(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.map(|path| (path.display().to_string(), fs::read(&path).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn other_codes_change_speed_and_not_the_answer() {
    let bench = Bench::new();
    let folder = bench.path("in");
    draw(&folder, 0, 300);
    bench.run("build --cache a --no-index --images", &[&folder]).expect(0);
    assert!(matches!(bench.cache("a"), Err(viscache::cache::Error::NotIndexed(_))));
    let refused = bench.run("verify --cache a", &[]).expect(1);
    assert!(
        refused.out.contains("NOT SOUND") && refused.out.contains("index-builder index"),
        "{}",
        refused.out
    );
    let queries: Vec<_> = bench.rows("a").into_values().step_by(29).collect();
    let mut sizes = BTreeSet::new();
    for (number, codes) in ["u4", "u8", "f16", "f32"].into_iter().enumerate() {
        let ran = bench.run(&format!("index --cache a --json --m 16 --codes {codes}"), &[]).expect(0);
        let report = json_lines(&ran.out).pop().unwrap();
        assert_eq!(report["index"]["generation"], number as u64 + 1);
        let cache = bench.cache("a").unwrap();
        let snapshot = cache.snapshot();
        assert_eq!(snapshot.index().codes().word(), codes);
        sizes.insert(snapshot.index().summary().bytes);
        let mut searcher = Searcher::default();
        for query in &queries {
            let query = Embedding::new(query.clone()).unwrap();
            let mut top = |exact| {
                let params = SearchParams { exact, ef_search: 128, ..SearchParams::default() };
                let hits = snapshot.search(&mut searcher, &query, 10, &params).unwrap().hits;
                hits.into_iter().map(|hit| (hit.id, hit.score)).collect::<Vec<_>>()
            };
            assert_eq!(top(false), top(true), "{codes}");
        }
        bench.assert_sound();
    }
    assert_eq!(sizes.len(), 4, "the codes do differ in size");
    let rows = bench.rows("a");
    bench.run("compact", &[]).expect(0);
    assert_eq!(rows, bench.rows("a"));
    bench.assert_sound();
}

#[test]
fn a_sample_of_queries_repairs_the_graph_and_measures_it() {
    let bench = Bench::new();
    let folder = bench.path("in");
    draw(&folder, 0, 300);
    bench.run("build --cache a --no-index --images", &[&folder]).expect(0);
    let rows: Vec<Vec<f32>> = bench.rows("a").into_values().collect();
    let dim = rows[0].len();
    let file = |name: &str, rows: &[Vec<f32>], dim: usize| {
        let path = bench.path(name);
        fs::write(&path, viscache::media::npy::write(&rows.concat(), dim)).unwrap();
        path
    };
    // Far off the rows, as another modality is.
    let mut queries = rows.clone();
    queries.iter_mut().for_each(|row| row[0] += 3.0);
    let good = file("queries.npy", &queries, dim);
    let ran = bench.run("index --cache a --json --deterministic --m 4 --queries", &[&good]).expect(0);
    let report = json_lines(&ran.out).pop().unwrap()["index"].clone();
    let curve = report["recall_by"]["queries"].as_array().unwrap();
    assert!(curve.last().unwrap()[1].as_f64().unwrap() > 0.9, "{report}");
    assert!(report["reach"]["repaired"].as_u64().is_some());
    bench.assert_sound();

    let told = bench.run("index --cache a --queries", &[&good]).expect(0);
    assert!(told.out.contains("of the queries sample"), "{}", told.out);

    // A generation keeps what a kind found, and `verify` measures it again, on queries of its own.
    let given = format!("text={}", good.display());
    bench.run(&format!("index --cache a --deterministic --m 4 --queries {given}"), &[]).expect(0);
    let store = bench.open();
    let (record, kept) = (bench.record("a"), store.generations(bench.record("a").id).unwrap());
    let kept = kept.into_iter().find(|g| Some(g.generation) == record.current).unwrap();
    assert_eq!(kept.recall_by.keys().collect::<Vec<_>>(), ["text"]);
    drop(store);
    let words = format!("verify --cache a --recall --queries {given}");
    let table = bench.run(&words, &[]).expect(0).out;
    let head: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(head, ["ef_search", "rows", "text"], "{table}");
    let verdict = json_lines(&bench.run(&format!("{words} --json"), &[]).expect(0).out).remove(0);
    for curve in [&verdict["recall"], &verdict["recall_by"]["text"]] {
        let last = curve.as_array().unwrap().last().unwrap();
        assert!(last[1].as_f64().unwrap() > 0.9, "{verdict}");
        assert!(table.contains(&format!("{:.4}", last[1].as_f64().unwrap())), "{verdict} {table}");
    }
    assert_eq!(verdict["problems"], serde_json::json!([]));
    bench.run(&format!("verify --recall --queries {given}"), &[]).expect(2);

    let generation = bench.record("a").current;
    let few = file("few.npy", &queries[..5], dim);
    let narrow = file("narrow.npy", &queries, 4);
    let mut broken = queries.clone();
    broken[7][1] = f32::NAN;
    let broken = file("broken.npy", &broken, dim);
    for (path, why) in [
        (&few, "has 5 rows; a sample of queries needs at least 10"),
        (&narrow, "has rows of 4 components"),
        (&broken, "row 7"),
        (&folder.join("nothing.npy"), "cannot read"),
    ] {
        let ran = bench.run("index --cache a --queries", &[path]).expect(1);
        assert!(ran.err.contains(why), "{why}: {}", ran.err);
    }
    assert_eq!(bench.record("a").current, generation, "what is refused publishes nothing");
}

#[test]
fn coarser_numbers_are_measured_and_not_mixed_with_others() {
    let bench = Bench::new();
    let folder = bench.path("in");
    draw(&folder, 0, 24);
    let said = bench.run("build --cache eight --encoder-dtype q8_0 --images", &[&folder]).expect(0);
    assert!(said.out.contains("q8_0 against f32 on 16 pictures"), "{}", said.out);
    let origin = bench.report()["cache"]["origin"].clone();
    assert_eq!(origin["encoder_dtype"], "q8_0");
    let mean = origin["agreement"]["mean"].as_f64().unwrap();
    assert!((0.995..1.0).contains(&mean), "{mean}");
    assert_eq!(origin["agreement"]["pictures"], 16);
    // Rows of other numbers do not join it; f32 rows have no figure.
    let refused = bench.run("build --cache eight --images", &[&folder]).expect(1);
    assert!(refused.err.contains("q8_0") && refused.err.contains("f32"), "{}", refused.err);
    bench.run("build --cache full --images", &[&folder]).expect(0);
    assert_eq!(bench.report()["cache"]["origin"]["encoder_dtype"], "f32");
    assert!(bench.report()["cache"]["origin"].get("agreement").is_none());
    let refused = bench.run("build --cache b --encoder-dtype bf16 --images", &[&folder]).expect(1);
    assert!(refused.err.contains("use f32 or q8_0"), "{}", refused.err);
    bench.assert_sound();
}

#[test]
fn a_cache_takes_only_what_was_made_alike() {
    let bench = Bench::new();
    let (folder, more) = (bench.path("in"), bench.path("more"));
    draw(&folder, 0, 5);
    draw(&more, 10, 5);
    bench.run("build --cache a --images", &[&folder]).expect(0);
    let ran = bench.run("build --cache a --orientation reference --images", &[&more]).expect(1);
    assert!(ran.err.contains("preprocess"), "the sentence names what differs: {}", ran.err);
    assert_eq!(bench.record("a").items, 5);
    bench.assert_sound();
}

#[test]
fn what_is_not_there_is_said() {
    let bench = Bench::new();
    let missing = bench.path("missing");
    let ran = bench.run("build --cache a --images", &[&missing]).expect(1);
    assert!(ran.err.contains("missing"), "{}", ran.err);
    for words in ["verify", "ledger --cache a", "index --cache a", "compact"] {
        let ran = bench.run(words, &[]).expect(1);
        assert!(ran.err.contains("there is no store"), "{words}: {}", ran.err);
    }
    assert!(!bench.store.exists(), "asking makes no store");
    bench.run("build --cache a", &[]).expect(2);
}
