//! The current goes while a build, an import or a publication is under way: what was committed is on disk.
//!
//! The program is ended where `FAILPOINTS` says, by an abort, which loses nothing: what a reader finds then is what was committed.
//! After the power cut it must find the same. `tests/common/power.rs` says what such a cut takes away.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use npyz::WriterBuilder;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use tempfile::TempDir;
use viscache::store::{Access, ItemRecord, LedgerRecord, Store};

use crate::common::{Bench, draw, finish, items, name, say, seed};
use crate::power::{Cut, Lost, Power};

const BUILD: &str = "build --cache a --batch 8 --images";
const PICTURES: usize = 24;
const IMPORT: &str = "import --cache a --no-index --vectors";
/// Rows that an import commits together, and those of two and a half such.
const CHUNK: usize = 1024;
const ROWS: usize = 2 * CHUNK + CHUNK / 2;
const DIM: usize = 24;

/// A store in a folder of its own, which is there and is watched: making the store is a part of it.
fn bench() -> Bench {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    let store = folder.path().join("data").join("store");
    Bench { folder, store }
}

/// What a reader finds: everything that was committed.
#[derive(Debug, Default, PartialEq)]
struct State {
    items: BTreeMap<u64, ItemRecord>,
    rows: BTreeMap<u64, Vec<u8>>,
    ledger: BTreeMap<String, LedgerRecord>,
    /// The current generation, and those there are.
    generations: (Option<u64>, Vec<u64>),
    index: Option<String>,
}

fn state(bench: &Bench) -> State {
    let store = match Store::open(&bench.store, Access::Read) {
        Ok(store) => store,
        Err(viscache::store::Error::Missing { .. }) => return State::default(),
        Err(e) => panic!("{:#}", anyhow::Error::from(e)),
    };
    let Some(record) = store.caches().unwrap().into_iter().find(|record| record.name == name("a")) else {
        return State::default();
    };
    let mut rows = BTreeMap::new();
    let visit = |id: viscache::types::ItemId, row: &[u8]| {
        rows.insert(id.0, row.to_vec());
        Ok::<bool, viscache::store::Error>(true)
    };
    store.scan_rows(record.id, viscache::types::ItemId(0), visit).unwrap();
    let ledger = store.ledger(record.id).unwrap().into_iter().map(|line| (line.uri.clone(), line)).collect();
    let generations = store.generations(record.id).unwrap().iter().map(|g| g.generation.0).collect();
    let current = record.current.map(|generation| generation.0);
    // What a server would load: all of its bytes are checked.
    let index = current.map(|_| format!("{:?}", bench.cache("a").unwrap().snapshot().index().summary()));
    let items = items(&store, "a");
    State { items, rows, ledger, generations: (current, generations), index }
}

/// Ends a command at a point, and then the current. None where no power can be cut.
fn cut_at(
    bench: &Bench,
    (words, paths): (&str, &[&Path]),
    points: Option<&str>,
    how: Cut,
    random: &mut Pcg64,
) -> Option<(State, Lost)> {
    let mut power = Power::over(bench.store.parent().unwrap(), say)?;
    let mut command = bench.command(words, paths);
    power.watch(&mut command);
    if let Some(points) = points {
        command.env("FAILPOINTS", points);
    }
    let ran = finish(command);
    let expected = if points.is_some() { -1 } else { 0 };
    assert_eq!(ran.code, expected, "{words} at {points:?}: {}{}", ran.out, ran.err);
    let committed = state(bench);
    Some((committed, power.cut(how, random)))
}

/// After a power cut everything that was committed is there.
#[track_caller]
fn assert_outlives(bench: &Bench, committed: &State, what: &str) {
    let found = state(bench);
    let (then, now) = (committed.items.len(), found.items.len());
    assert!(
        &found == committed,
        "{what}: {then} items were committed and {now} are there; {:?} was current and {:?} is",
        committed.generations,
        found.generations
    );
}

fn vectors(bench: &Bench) -> PathBuf {
    let path = bench.path("rows.npy");
    let mut random = Pcg64::seed_from_u64(5);
    let mut file = fs::File::create(&path).unwrap();
    let mut rows = npyz::WriteOptions::new()
        .default_dtype()
        .shape(&[ROWS as u64, DIM as u64])
        .writer(&mut file)
        .begin_nd()
        .unwrap();
    rows.extend((0..ROWS * DIM).map(|_| random.random_range(-1.0f32..1.0))).unwrap();
    rows.finish().unwrap();
    path
}

#[test]
fn what_was_committed_of_an_import_outlives_a_power_cut() {
    let mut random = Pcg64::seed_from_u64(seed());
    let mut lost = 0;
    for how in [Cut::Everything, Cut::AsItComes] {
        for (points, stored) in [
            ("put::before_commit=1*off->return", CHUNK),
            ("put::after_commit=return", CHUNK),
            ("put::after_commit=1*off->return", 2 * CHUNK),
        ] {
            let bench = bench();
            let path = vectors(&bench);
            let watched = cut_at(&bench, (IMPORT, &[&path]), Some(points), how, &mut random);
            let Some((committed, cut)) = watched else { return };
            assert_eq!(committed.items.len(), stored, "{points}");
            lost += cut.bytes;
            assert_outlives(&bench, &committed, &format!("{points}, {how:?}"));
            bench.run(IMPORT, &[&path]).expect(0);
            assert_eq!(bench.items("a").len(), ROWS);
        }
    }
    say(&format!("the power cuts took {lost} bytes"));
    assert!(lost > 0, "nothing was there to be lost");
}

#[test]
fn a_build_that_has_ended_outlives_a_power_cut_store_and_all() {
    let mut random = Pcg64::seed_from_u64(seed());
    let bench = bench();
    let folder = bench.path("in");
    draw(&folder, 0, PICTURES);
    let Some((committed, _)) = cut_at(&bench, (BUILD, &[&folder]), None, Cut::Everything, &mut random) else {
        return;
    };
    assert_eq!(committed.items.len(), PICTURES);
    assert_eq!(committed.generations, (Some(1), vec![1]));
    assert_outlives(&bench, &committed, "at the end");
    bench.run(BUILD, &[&folder]).expect(0);
    bench.assert_sound();
}

#[test]
fn a_publication_outlives_a_power_cut_or_has_not_been() {
    let mut random = Pcg64::seed_from_u64(seed());
    for how in [Cut::Everything, Cut::AsItComes] {
        let bench = bench();
        let folder = bench.path("in");
        draw(&folder, 0, PICTURES);
        bench.run(BUILD, &[&folder]).expect(0);
        // Each finds what the one before left: orphans of a larger index among them, and from the third on a generation to drop.
        let mut current = 1;
        for (point, there) in [
            ("blob::part", false),
            ("publish::after_flip", true),
            ("publish::before_flip", false),
            ("publish::after_flip", true),
            ("publish::before_flip", false),
        ] {
            let codes = ["u4", "f32", "u8"][random.random_range(0..3)];
            let words = format!("index --cache a --codes {codes}");
            let points = format!("{point}=return");
            let Some((committed, _)) = cut_at(&bench, (&words, &[]), Some(&points), how, &mut random) else {
                return;
            };
            current += u64::from(there);
            assert_eq!(committed.generations.0, Some(current), "{point}");
            assert_outlives(&bench, &committed, &format!("{point}, {codes}, {how:?}"));
        }
        bench.assert_sound();
    }
}
