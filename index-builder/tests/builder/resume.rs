//! Kills and interrupts at random moments: nothing is lost, nothing is stored twice, and readers never see half a state.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use viscache::cache::{LoadOptions, RowsMode, Snapshot};
use viscache::store::{Access, Store};

use crate::common::{Bench, assert_unique, draw, finish, items, name, say, seed};

const PICTURES: usize = 400;
/// Rounds in which the first build must get by with what kills leave of it.
const FIRST_BUILD: usize = 15;
/// Kills to survive, and the rounds in which that many must have come about.
const KILLS: usize = 50;
const ROUNDS: usize = 250;
/// Pictures changed before a build of what is already stored.
const CHANGED: usize = 6;
/// Longest wait before the first kill; afterwards it follows what this machine needs.
const LONGEST_MS: u64 = 1500;

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Kills a process after so long; false when it had ended by itself.
fn kill_after(mut child: Child, delay: Duration) -> bool {
    let end = Instant::now() + delay;
    while Instant::now() < end {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1).min(end - Instant::now()));
    }
    child.kill().unwrap();
    child.wait().unwrap().code().is_none()
}

/// What a reader finds must be whole; returns the number of items and of the current generation.
fn look(bench: &Bench, cache: &str) -> (u64, u64) {
    let store = match Store::open(&bench.store, Access::Read) {
        Ok(store) => std::sync::Arc::new(store),
        // Killed before the store was made.
        Err(viscache::store::Error::Missing { .. }) => return (0, 0),
        Err(e) => panic!("{:#}", anyhow::Error::from(e)),
    };
    let Some(record) = store.caches().unwrap().into_iter().find(|record| record.name == name(cache)) else {
        return (0, 0);
    };
    let items = items(&store, cache);
    assert_eq!(items.len() as u64, record.items, "the record counts what is there");
    assert_unique(&items);
    let mut rows = Vec::new();
    let visit = |id: viscache::types::ItemId, _: &[u8]| {
        rows.push(id.0);
        Ok::<bool, viscache::store::Error>(true)
    };
    store.scan_rows(record.id, viscache::types::ItemId(0), visit).unwrap();
    assert!(rows.iter().eq(items.keys()), "a row for every item and an item for every row");
    let Some(current) = record.current else { return (record.items, 0) };
    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: u64::MAX };
    let snapshot = Snapshot::load(&store, &name(cache), options).unwrap();
    assert_eq!(snapshot.generation(), current);
    assert_eq!(snapshot.index().unreachable().len(), 0);
    (record.items, current.0)
}

/// Ends a test: run to the end, and every picture of the folder is there exactly once.
fn finish_and_compare(bench: &Bench, folder: &Path, words: &str) {
    finish(bench.command(words, &[folder])).expect(0);
    let stored: BTreeMap<_, _> = bench.items("a").into_values().map(|item| (item.uri, item.digest)).collect();
    let mut expected = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_some_and(|e| e == "png") {
            let digest = viscache::types::Fingerprint::of(&fs::read(&entry).unwrap());
            expected.insert(entry.display().to_string(), digest);
        }
    }
    assert_eq!(bench.items("a").len(), expected.len());
    assert_eq!(stored, expected);
    bench.assert_sound();
    let again = finish(bench.command(words, &[folder])).expect(0);
    assert!(again.out.starts_with("0 stored, 0 replaced, 0 duplicates, 0 bad"), "{}", again.out);
}

#[test]
fn fifty_kills_lose_nothing_and_repeat_nothing() {
    let mut random = Pcg64::seed_from_u64(seed());
    let bench = Bench::new();
    let (folder, spare) = (bench.path("in"), bench.path("spare"));
    draw(&folder, 0, PICTURES);
    draw(&spare, PICTURES, CHANGED * ROUNDS);
    let mut others =
        fs::read_dir(&spare).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().unwrap() == "png");
    let (mut round, mut killed, mut in_put, mut in_index, mut before) = (0, 0, 0, 0, (0, 0));
    let mut longest = [LONGEST_MS, LONGEST_MS / 2];
    while killed < KILLS {
        assert!(round < ROUNDS, "only {killed} of {ROUNDS} rounds ended in a kill");
        if round == FIRST_BUILD && before.1 == 0 {
            finish(bench.command("build --cache a --images", &[&folder])).expect(0);
            before = look(&bench, "a");
        }
        // Once all is stored, rounds alternate between building the graph anew and replacing changed pictures.
        let whole = before.0 == PICTURES as u64;
        let reindex = whole && round % 2 == 0;
        let child = if reindex {
            start(bench.command("index --cache a", &[]))
        } else {
            for other in others.by_ref().take(if whole { CHANGED } else { 0 }) {
                let at = random.random_range(0..PICTURES);
                fs::copy(other, folder.join(format!("{at:08}.png"))).unwrap();
            }
            let batch = [1, 8, 64][random.random_range(0..3)];
            start(bench.command(&format!("build --cache a --batch {batch} --images"), &[&folder]))
        };
        let kind = usize::from(reindex);
        let ended = !kill_after(child, Duration::from_millis(random.random_range(0..longest[kind])));
        // So that kills land everywhere from the start of a run to its end, on a slow machine as on a fast one.
        longest[kind] = if ended { longest[kind] * 3 / 4 } else { (longest[kind] * 9 / 8).min(4000) };
        if !ended {
            killed += 1;
            if reindex { in_index += 1 } else { in_put += 1 }
        }
        let after = look(&bench, "a");
        assert!(after.0 >= before.0 && after.1 >= before.1, "round {round}: from {before:?} to {after:?}");
        before = after;
        round += 1;
    }
    say(&format!(
        "{killed} of {round} rounds killed: {in_put} builds, {in_index} while indexing anew; then {before:?}"
    ));
    finish_and_compare(&bench, &folder, "build --cache a --images");
}

#[test]
fn an_interrupt_finishes_what_is_in_hand() {
    let bench = Bench::new();
    let folder = bench.path("in");
    draw(&folder, 0, 1000);
    let words = "build --cache a --batch 4 --images";
    let child = start(bench.command(words, &[&folder]));
    let pid = child.id();
    // Wait for the first write, so that the handler is in place and work is in hand.
    while !bench.store.join("CURRENT").exists() || look(&bench, "a").0 == 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
    // The shell's own `kill`: a bare machine has no other.
    let signal = Command::new("sh").args(["-c", &format!("kill -INT {pid}")]).status().unwrap();
    assert!(signal.success());
    let mut child = child;
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let (stored, generation) = look(&bench, "a");
    assert!(stored > 0 && stored < 1000, "{stored}");
    assert_eq!(generation, 0, "an interrupted run does not index");
    finish_and_compare(&bench, &folder, words);
}

/// While the graph is built nothing is in hand that could be finished, so the first interrupt ends it.
#[test]
fn an_interrupt_while_indexing_ends_at_once_and_keeps_everything() {
    const ROWS: usize = 60_000;
    let bench = Bench::new();
    let vectors = bench.path("v.npy");
    write_rows(&vectors, ROWS, 32, &mut Pcg64::seed_from_u64(seed()));
    let words = "import --cache a --ef-construction 400 --min-recall 0 --vectors";
    let mut command = bench.command(words, &[&vectors]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !bench.store.join("CURRENT").exists() || look(&bench, "a").0 < ROWS as u64 {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    let kill = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("stopped while indexing; everything is stored"), "{told}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(look(&bench, "a"), (ROWS as u64, 0));
}

/// Writes an array of so many rows.
fn write_rows(path: &Path, rows: usize, dim: usize, random: &mut Pcg64) {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    header.extend(std::iter::repeat_n(' ', 117 - header.len()));
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend(header.bytes().chain([b'\n']));
    bytes.extend((0..rows * dim).flat_map(|_| random.random_range(-1.0f32..1.0).to_le_bytes()));
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_killed_import_goes_on() {
    const ROWS: usize = 8_000;
    const DIM: usize = 32;
    let mut random = Pcg64::seed_from_u64(seed());
    let bench = Bench::new();
    let vectors = bench.path("v.npy");
    write_rows(&vectors, ROWS, DIM, &mut random);
    let (mut before, mut killed) = ((0, 0), 0);
    for round in 0..15 {
        let child = start(bench.command("import --cache a --vectors", &[&vectors]));
        killed += u32::from(kill_after(child, Duration::from_millis(random.random_range(0..800))));
        let after = look(&bench, "a");
        assert!(after.0 >= before.0 && after.1 >= before.1, "round {round}: from {before:?} to {after:?}");
        before = after;
    }
    say(&format!("{killed} of 15 imports killed; then {before:?}"));
    finish(bench.command("import --cache a --vectors", &[&vectors])).expect(0);
    let items = bench.items("a");
    assert_eq!(items.len(), ROWS);
    assert_unique(&items);
    assert!(items.iter().all(|(id, item)| item.uri.ends_with(&format!("v.npy#{id}"))));
    bench.assert_sound();
}
