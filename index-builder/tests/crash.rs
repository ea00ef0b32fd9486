//! Crashes on purpose at every step of put and publish: afterwards the old state or the new, never one between.
//!
//! `cargo test -p index-builder --features failpoints --test crash`. The process aborts where `FAILPOINTS` says.
//! Source of the idea: quickwit-oss/tantivy `tests/failpoints/mod.rs`.

#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Bench, assert_unique, draw, finish};

/// Every point, and whether the new state is there after an abort at it.
const PUT: [(&str, bool); 2] = [("put::before_commit", false), ("put::after_commit", true)];
const PUBLISH: [(&str, bool); 4] = [
    ("publish::before_blob", false),
    ("blob::part", false),
    ("publish::before_flip", false),
    ("publish::after_flip", true),
];

/// Runs a command that must abort at a point.
fn crash(bench: &Bench, words: &str, folder: &Path, point: &str) {
    let paths: &[&Path] = if words.ends_with("--images") { &[folder] } else { &[] };
    let mut command = bench.command(words, paths);
    command.env("FAILPOINTS", format!("{point}=return"));
    let ran = finish(command);
    assert_eq!(ran.code, -1, "no abort at {point}: {}{}", ran.out, ran.err);
}

fn pictures(bench: &Bench) -> PathBuf {
    let folder = bench.path("in");
    draw(&folder, 0, 60);
    folder
}

const BUILD: &str = "build --cache a --batch 8 --images";

/// Runs to the end: all items once, sound, and the next run finds nothing to do.
fn assert_recovers(bench: &Bench, folder: &Path, expected: usize) {
    bench.run(BUILD, &[folder]).expect(0);
    let items = bench.items("a");
    assert_eq!(items.len(), expected);
    assert_unique(&items);
    bench.assert_sound();
    let ran = bench.run(BUILD, &[folder]).expect(0);
    assert!(ran.out.starts_with("0 stored, 0 replaced, 0 duplicates, 0 bad"), "{}", ran.out);
}

#[test]
fn a_crash_in_the_first_put_leaves_all_of_it_or_nothing() {
    for (point, there) in PUT {
        let bench = Bench::new();
        let folder = pictures(&bench);
        crash(&bench, BUILD, &folder, point);
        let record = bench.record("a");
        let items = bench.items("a");
        assert_eq!(record.items, items.len() as u64, "{point}");
        assert_eq!(!items.is_empty(), there, "{point}");
        assert!(bench.rows("a").keys().eq(items.keys()), "{point}");
        let ledger = bench.open().ledger(record.id).unwrap();
        assert_eq!(ledger.len(), items.len(), "{point}: the ledger knows what is stored and no more");
        assert_recovers(&bench, &folder, 60);
    }
}

#[test]
fn a_crash_in_a_later_put_leaves_what_was_there() {
    for (point, there) in PUT {
        let bench = Bench::new();
        let folder = pictures(&bench);
        bench.run(BUILD, &[&folder]).expect(0);
        let more = bench.path("more");
        draw(&more, 100, 10);
        // One picture is replaced, the others are new.
        fs::rename(more.join("00000100.png"), folder.join("00000007.png")).unwrap();
        for number in 101..110 {
            let name = format!("{number:08}.png");
            fs::rename(more.join(&name), folder.join(&name)).unwrap();
        }
        let (items, rows) = (bench.items("a"), bench.rows("a"));
        crash(&bench, BUILD, &folder, point);
        match there {
            false => assert_eq!((items, rows), (bench.items("a"), bench.rows("a")), "{point}"),
            true => {
                assert_eq!(bench.items("a").len(), 69, "{point}");
                assert_ne!(bench.rows("a")[&7], rows[&7], "{point}");
            }
        }
        assert_eq!(bench.cache("a").unwrap().snapshot().generation().0, 1, "{point}: still serves");
        assert_recovers(&bench, &folder, 69);
        assert_eq!(bench.record("a").current.unwrap().0, 2, "{point}");
    }
}

#[test]
fn a_crash_in_the_first_publish_leaves_none_or_the_new_generation() {
    for (point, there) in PUBLISH {
        let bench = Bench::new();
        let folder = pictures(&bench);
        crash(&bench, BUILD, &folder, point);
        let record = bench.record("a");
        assert_eq!(record.items, 60, "{point}: storing had ended");
        assert_eq!(record.current.is_some(), there, "{point}");
        assert_eq!(bench.open().generations(record.id).unwrap().len(), usize::from(there), "{point}");
        assert_eq!(bench.cache("a").is_ok(), there, "{point}");
        assert_recovers(&bench, &folder, 60);
        assert_eq!(bench.record("a").current.unwrap().0, 1, "{point}: an orphan takes no number");
    }
}

#[test]
fn a_crash_in_a_later_publish_leaves_the_old_or_the_new_generation() {
    for (point, there) in PUBLISH {
        let bench = Bench::new();
        let folder = pictures(&bench);
        bench.run(BUILD, &[&folder]).expect(0);
        bench.run("index --cache a", &[]).expect(0);
        // Generations 1 and 2 are there; the third publish drops the first. Its index is of another length.
        let old = bench.cache("a").unwrap().snapshot().index().summary();
        crash(&bench, "index --cache a --codes f32", &folder, point);
        let record = bench.record("a");
        let current = if there { 3 } else { 2 };
        assert_eq!(record.current.unwrap().0, current, "{point}");
        let generations: Vec<_> =
            bench.open().generations(record.id).unwrap().iter().map(|g| g.generation.0).collect();
        assert_eq!(generations, [current - 1, current], "{point}: the one before is kept");
        let now = bench.cache("a").unwrap().snapshot().index().summary();
        assert_eq!(now == old, !there, "{point}");
        bench.assert_sound();
        // The orphan of the larger index must not show in the smaller one that takes its number.
        bench.run("index --cache a --codes u8", &[]).expect(0);
        assert_eq!(bench.record("a").current.unwrap().0, current + 1, "{point}");
        bench.assert_sound();
        assert_recovers(&bench, &folder, 60);
    }
}

#[test]
fn many_crashes_in_a_row() {
    let bench = Bench::new();
    let folder = pictures(&bench);
    for (point, _) in PUT.into_iter().chain(PUBLISH) {
        let ran = finish({
            let mut command = bench.command(BUILD, &[&folder]);
            command.env("FAILPOINTS", format!("{point}=return"));
            command
        });
        assert!(ran.code <= 0, "{point}: {}", ran.err);
    }
    assert_recovers(&bench, &folder, 60);
}
