//! Damaged files: found, named, and never a panic. And the bytes of format version 1, read for ever.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Bench, draw, name, say, seed};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use viscache::cache::{NewCache, NewItem, Writer};
use viscache::index::{
    AlignedBytes, BuildParams, CodeKind, Codec, Index, Parts, SearchParams, Searcher, exact,
};
use viscache::store::{Access, ItemRecord, RowType, Store};
use viscache::types::{Embedding, Fingerprint, ItemId, Origin};

/// A built and compacted store: everything lies in table files.
fn built() -> Bench {
    let bench = Bench::new();
    let folder = bench.path("in");
    draw(&folder, 0, 80);
    bench.run("build --cache a --images", &[&folder]).expect(0);
    bench.run("compact", &[]).expect(0);
    bench
}

fn tables(bench: &Bench) -> Vec<PathBuf> {
    let files = fs::read_dir(&bench.store).unwrap().map(|entry| entry.unwrap().path());
    let mut tables: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "sst")).collect();
    tables.sort();
    tables
}

/// `verify` must fail and say why, in whatever way it ends.
#[track_caller]
fn assert_found(bench: &Bench, what: &str) {
    let ran = bench.run("verify", &[]).expect(1);
    let unsound = ran.out.contains("NOT SOUND") && ran.out.lines().any(|line| line.starts_with("  "));
    assert!(unsound || ran.err.starts_with("error: "), "{what}: {}{}", ran.out, ran.err);
}

#[test]
fn flipped_bytes_in_table_files_are_found() {
    let mut random = Pcg64::seed_from_u64(seed());
    let bench = built();
    bench.assert_sound();
    let tables = tables(&bench);
    assert!(tables.len() >= 4, "{tables:?}");
    let mut flips = 0;
    for table in &tables {
        let whole = fs::read(table).unwrap();
        for part in 0..4 {
            // The first three quarters are blocks of data; the rest holds filters and properties too, of which RocksDB
            // reads only what it needs.
            let at = random.random_range(0..whole.len() / 4) + part * (whole.len() / 4);
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << random.random_range(0..8u32);
            fs::write(table, bytes).unwrap();
            let ran = bench.run("verify", &[]);
            let found = ran.code == 1
                && (ran.out.contains("NOT SOUND") && ran.out.contains("\n  ")
                    || ran.err.starts_with("error: "));
            // A table of a few records is mostly properties.
            let data = whole.len() > 16 << 10 && part < 3;
            assert!(found || !data, "byte {at} of {}: {}{}", table.display(), ran.out, ran.err);
            // Whatever is found, a server never panics on it.
            let _ = bench.run("ledger --cache a", &[]);
            flips += usize::from(found);
        }
        fs::write(table, whole).unwrap();
    }
    say(&format!("{flips} flips found in {} table files", tables.len()));
    bench.assert_sound();
}

/// The index's bytes in a table file, told by their magic.
fn table_with(bench: &Bench, needle: &[u8]) -> (PathBuf, usize) {
    let found = tables(bench).into_iter().find_map(|table| {
        let at = fs::read(&table).unwrap().windows(needle.len()).position(|window| window == needle);
        at.map(|at| (table, at))
    });
    found.expect("the index lies in a table file because the store was compacted")
}

#[test]
fn a_damaged_index_is_not_served() {
    let bench = built();
    assert!(bench.cache("a").is_ok());
    let (table, at) = table_with(&bench, b"VISCIDX\0");
    let whole = fs::read(&table).unwrap();
    for offset in [0, 9, 100, 1000, 9000] {
        let mut bytes = whole.clone();
        bytes[at + offset] ^= 0x10;
        fs::write(&table, bytes).unwrap();
        let Err(error) = bench.cache("a") else { panic!("served with byte {offset} of the index flipped") };
        assert!(!format!("{:#}", anyhow::Error::from(error)).is_empty());
        assert_found(&bench, "index");
    }
}

/// Also the ledger's, which nothing else counts on.
#[test]
fn any_missing_table_file_is_found() {
    let bench = built();
    for table in tables(&bench) {
        let aside = bench.path("aside");
        fs::rename(&table, &aside).unwrap();
        assert_found(&bench, &table.display().to_string());
        fs::rename(&aside, &table).unwrap();
    }
    bench.assert_sound();
}

#[test]
fn a_missing_or_cut_table_file_is_named() {
    for cut in [false, true] {
        let bench = built();
        let (table, _) = table_with(&bench, b"VISCIDX\0");
        match cut {
            true => fs::OpenOptions::new().write(true).open(&table).unwrap().set_len(100).unwrap(),
            false => fs::remove_file(&table).unwrap(),
        }
        let ran = bench.run("verify", &[]).expect(1);
        let file = table.file_name().unwrap().to_string_lossy().into_owned();
        let text = format!("{}{}", ran.out, ran.err);
        assert!(text.contains(&file) || text.contains("part 0 of the Index blob"), "{file}: {text}");
    }
}

#[test]
fn a_cut_log_loses_only_its_end() {
    let mut random = Pcg64::seed_from_u64(seed());
    for _ in 0..10 {
        let bench = Bench::new();
        let store = Store::open(&bench.store, Access::Write).unwrap();
        let origin = Origin { model: "test".into(), weights: None, preprocessing: None };
        let new = NewCache { dim: 4, rows: RowType::F32, origin, model: None };
        let mut writer = Writer::open(&store, &name("a"), &new).unwrap();
        for i in 0..20u8 {
            let embedding = Embedding::new(vec![f32::from(i), 1.0, 2.0, 3.0]).unwrap();
            let digest = Fingerprint::of(&[i]);
            let record = ItemRecord { uri: i.to_string(), modality: None, digest, tags: Default::default() };
            writer.put(vec![NewItem { id: None, embedding, record }], |_, _, _| {}).unwrap();
        }
        drop(store);
        let files = fs::read_dir(&bench.store).unwrap().map(|entry| entry.unwrap().path());
        let log = files.filter(|path| path.extension().is_some_and(|e| e == "log")).max().unwrap();
        let len = fs::metadata(&log).unwrap().len();
        let cut = random.random_range(len / 4..len);
        fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(cut).unwrap();

        let store = Store::open(&bench.store, Access::Write).unwrap();
        let items = common::items(&store, "a");
        assert!(!items.is_empty() && items.len() < 20, "cut at {cut} of {len}");
        assert_eq!(store.cache(&name("a")).unwrap().items, items.len() as u64, "cut at {cut} of {len}");
        assert!(
            items.keys().copied().eq(0..items.len() as u64),
            "cut at {cut} of {len}: only the end is lost"
        );
    }
}

const ROWS: usize = 50;
const DIM: usize = 16;

fn fixture_rows() -> Vec<f32> {
    let mut random = Pcg64::seed_from_u64(1);
    let mut rows = Vec::new();
    for _ in 0..ROWS {
        let row: Vec<f32> = (0..DIM).map(|_| random.random_range(-1.0f32..1.0)).collect();
        let norm = viscache::types::norm(&row) as f32;
        rows.extend(row.iter().map(|v| v / norm));
    }
    rows
}

fn fixture_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/index-v1.bin")
}

fn fixture() -> Vec<u8> {
    fs::read(fixture_path()).unwrap()
}

/// How the fixture was made. It must not be made anew: what a released program wrote is what this program has to read.
#[test]
#[ignore = "writes tests/fixtures/index-v1.bin"]
fn write_the_fixture() {
    let rows = fixture_rows();
    let params =
        BuildParams { m: 8, ef_construction: 64, codes: CodeKind::U8, threads: 1, ..Default::default() };
    let codec = Codec::train(params.codes, &rows, DIM);
    let graph = viscache::index::build(&params, &codec, &rows, &[], |_, _| {}).unwrap();
    let ids: Vec<ItemId> = (0..ROWS as u64).map(|i| ItemId(3 * i + 1)).collect();
    let codes = codec.encode(&rows);
    let mut bytes = Vec::new();
    Parts { graph: &graph, codec: &codec, ids: &ids, codes: &codes }.write(&mut bytes).unwrap();
    fs::create_dir_all(fixture_path().parent().unwrap()).unwrap();
    fs::write(fixture_path(), bytes).unwrap();
}

#[test]
fn an_index_of_format_version_1_opens_and_finds() {
    let index = Index::open(AlignedBytes::copy_of(&fixture()).unwrap()).unwrap();
    let summary = index.summary();
    assert_eq!((summary.nodes, summary.dim, summary.m, summary.codes), (ROWS, DIM, 8, CodeKind::U8));
    assert_eq!(index.ids()[..3], [1, 4, 7]);
    assert!(index.unreachable().is_empty());
    let (rows, mut searcher) = (fixture_rows(), Searcher::default());
    let params = SearchParams { ef_search: ROWS, ..SearchParams::default() };
    for query in rows.chunks_exact(DIM) {
        let truth = exact::search(&rows, query, 5);
        let (found, _) = searcher.search(&index, query, ROWS, &params).unwrap();
        assert_eq!(found[0].slot, truth[0].slot);
        let found: Vec<_> = found.iter().map(|candidate| candidate.slot).collect();
        assert!(truth.iter().all(|scored| found.contains(&scored.slot)));
    }
}

/// Opens bytes; when they are taken for an index, searching it must be safe too.
fn open_and_search(bytes: &[u8]) -> Option<Index> {
    let index = Index::open(AlignedBytes::copy_of(bytes).unwrap()).ok()?;
    let query = vec![0.25; index.dim()];
    Searcher::default().search(&index, &query, 10, &SearchParams::default()).unwrap();
    Some(index)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_are_no_index(bytes in proptest::collection::vec(any::<u8>(), 0..2000), magic: bool) {
        let mut bytes = bytes;
        if magic {
            bytes.splice(0..0, *b"VISCIDX\0\x01\0\0\0");
        }
        prop_assert!(open_and_search(&bytes).is_none());
    }

    #[test]
    fn a_cut_index_is_refused(cut: prop::sample::Index) {
        let bytes = fixture();
        prop_assert!(open_and_search(&bytes[..cut.index(bytes.len())]).is_none());
    }

    #[test]
    fn a_flipped_byte_is_found_or_is_padding(at: prop::sample::Index, flip in 1u8..) {
        let whole = fixture();
        let mut bytes = whole.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Some(index) = open_and_search(&bytes) {
            prop_assert_eq!(whole[at], 0, "byte {} is no padding", at);
            let sound = Index::open(AlignedBytes::copy_of(&whole).unwrap()).unwrap();
            prop_assert_eq!(index.summary(), sound.summary());
            prop_assert_eq!(index.ids(), sound.ids());
        }
    }
}
