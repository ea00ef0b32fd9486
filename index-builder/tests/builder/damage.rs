//! Damaged files: found, named, and never a panic. And the bytes of format version 1, read for ever.
//!
//! ```text
//! a byte of …          is vouched for by              so that damage is named
//! a table file         RocksDB's block checksums      by the file
//! a blob               its part's checksum            by the part            (unit test of store/blobs.rs)
//! an index             header and section checksums   by the section
//! ```

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use viscache::cache::{Cache, LoadOptions, NewCache, NewItem, RowsMode, Writer, encode_row};
use viscache::index::{BuildParams, CodeKind, Codec, Index, Parts, SearchParams, Searcher, exact};
use viscache::store::{Access, BlobKind, ItemRecord, RowType, Store};
use viscache::types::{Embedding, Fingerprint, ItemId, Origin};

use crate::common::{self, Bench, draw, name, say, seed};

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

/// The table files with some bytes, and where those begin.
fn tables_with(bench: &Bench, needle: &[u8]) -> Vec<(PathBuf, usize)> {
    let place = |table: PathBuf| {
        let at = fs::read(&table).unwrap().windows(needle.len()).position(|window| window == needle)?;
        Some((table, at))
    };
    let found: Vec<_> = tables(bench).into_iter().filter_map(place).collect();
    assert!(
        !found.is_empty(),
        "{} is in no table file, although the store was compacted",
        needle.escape_ascii()
    );
    found
}

#[test]
fn a_damaged_index_is_not_served() {
    let bench = built();
    assert!(bench.cache("a").is_ok());
    let (table, at) = tables_with(&bench, b"VISCIDX\0").remove(0);
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

/// Every kind of record and value: a byte flipped where it lies is named by its file, by `verify` and by whoever reads it.
#[test]
fn a_flipped_byte_of_every_kind_of_value_is_named_by_its_file() {
    let bench = built();
    let (part, row) = {
        let (items, rows) = (bench.items("a"), bench.rows("a"));
        // Records are compressed: of what they say, only some stretches are written out.
        let whole: Vec<Vec<u8>> = tables(&bench).iter().map(|table| fs::read(table).unwrap()).collect();
        let written = |part: &Vec<u8>| whole.iter().any(|bytes| bytes.windows(part.len()).any(|w| w == part));
        let parts = items.values().flat_map(|item| {
            let said = item.digest.to_string();
            said.as_bytes().windows(12).map(<[u8]>::to_vec).collect::<Vec<_>>()
        });
        let part = { parts }.find(written).expect("a part of some digest is written out");
        (part, encode_row(&rows[&40], RowType::F32))
    };
    // The index's part begins with its version and its checksum, 17 bytes before the index's own magic.
    let places: [(&str, &[u8], isize); 9] = [
        ("cache record", br#""name":"a","dim":"#, 4),
        ("generation record", br#"{"gener"#, 4),
        ("item record", &part, 1),
        ("row", &row[..32], 5),
        ("version of a part", b"VISCIDX\0", -17),
        ("checksum of a part", b"VISCIDX\0", -3),
        ("index header", b"VISCIDX\0", 20),
        ("section table", b"VISCIDX\0", 70),
        ("section", b"VISCIDX\0", 5000),
    ];
    for (what, needle, offset) in places {
        for (table, at) in tables_with(&bench, needle) {
            let (file, whole) =
                (table.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&table).unwrap());
            let mut bytes = whole.clone();
            bytes[at.strict_add_signed(offset)] ^= 0x04;
            fs::write(&table, bytes).unwrap();
            let ran = bench.run("verify", &[]).expect(1);
            assert!(format!("{}{}", ran.out, ran.err).contains(&file), "{what}: {}{}", ran.out, ran.err);
            if what != "item record" {
                // Rows in memory: all that is served is read when the cache is opened.
                let error =
                    opened(&bench, RowsMode::Ram).err().map(|e| format!("{:#}", anyhow::Error::from(e)));
                assert!(error.as_ref().is_some_and(|error| error.contains(&file)), "{what}: {error:?}");
            }
            fs::write(&table, whole).unwrap();
        }
    }
    bench.assert_sound();
}

fn opened(bench: &Bench, rows: RowsMode) -> Result<Cache, viscache::cache::Error> {
    let store = Arc::new(Store::open(&bench.store, Access::Read)?);
    let options = LoadOptions { rows, memory_budget: u64::MAX };
    Cache::open(&store, &name("a"), None, options)
}

/// Codes so good that eight candidates have the three nearest among them.
fn params() -> BuildParams {
    BuildParams { m: 8, ef_construction: 32, codes: CodeKind::U8, threads: 1, ..BuildParams::default() }
}

/// Rows of 1 KiB, so that they fill several blocks.
fn many_rows() -> (Bench, Vec<Vec<f32>>) {
    const DIM: usize = 256;
    let mut random = Pcg64::seed_from_u64(3);
    let rows: Vec<Vec<f32>> = (0..200)
        .map(|_| {
            let row = (0..DIM).map(|_| random.random_range(-1.0f32..1.0)).collect();
            Embedding::new(row).unwrap().unit().unwrap().into_vec()
        })
        .collect();
    let bench = Bench::new();
    let store = Store::open(&bench.store, Access::Write).unwrap();
    let origin = Origin::of("test");
    let new = NewCache { dim: DIM, rows: RowType::F32, origin, model: None };
    let mut writer = Writer::open(&store, &name("a"), &new).unwrap();
    let items = rows.iter().enumerate().map(|(i, row)| {
        let digest = Fingerprint::of(&i.to_le_bytes());
        let record = ItemRecord { uri: i.to_string(), modality: None, digest, tags: Default::default() };
        NewItem { id: None, embedding: Embedding::new(row.clone()).unwrap(), record }
    });
    writer.put(items.collect(), |_, _, _| {}).unwrap();
    writer.index(&params(), &Default::default(), |_| {}, |_, _, _| Ok(Default::default())).unwrap();
    store.flush().unwrap();
    store.compact().unwrap();
    drop(store);
    (bench, rows)
}

#[test]
fn a_damaged_row_on_disk_is_an_error_that_names_the_file_and_never_a_wrong_answer() {
    let mut random = Pcg64::seed_from_u64(seed());
    let (bench, rows) = many_rows();
    let whole = SearchParams { ef_search: 512, rescore: Some(8), ..SearchParams::default() };
    let exact = SearchParams { exact: true, ..whole };
    let truth = |query: &[f32], k: usize| {
        let all = rows.concat();
        exact::search(&all, query, k).iter().map(|s| (u64::from(s.slot.0), s.score)).collect::<Vec<_>>()
    };
    for _ in 0..4 {
        let (damaged, byte) = (random.random_range(0..rows.len()), random.random_range(0..1024usize));
        let needle = encode_row(&rows[damaged], RowType::F32);
        let (table, at) = tables_with(&bench, &needle).remove(0);
        let (file, sound) =
            (table.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&table).unwrap());
        let mut bytes = sound.clone();
        bytes[at + byte] ^= 1 << random.random_range(0..8u32);
        fs::write(&table, bytes).unwrap();

        // With rows on disk, opening reads none.
        let cache = opened(&bench, RowsMode::Disk).unwrap();
        let snapshot = cache.snapshot();
        let (mut searcher, mut failed) = (Searcher::default(), 0);
        for (i, row) in rows.iter().enumerate() {
            let query = Embedding::new(row.clone()).unwrap();
            match snapshot.search(&mut searcher, &query, 3, &whole) {
                Ok(found) => {
                    let hits: Vec<(u64, f32)> = found.hits.iter().map(|hit| (hit.id.0, hit.score)).collect();
                    assert_eq!(hits, truth(row, 3), "query {i}");
                    assert_ne!(i, damaged, "its own row is the nearest and must have been read");
                }
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    assert!(error.contains(&file), "{error}");
                    failed += 1;
                }
            }
        }
        assert!(failed > 0);
        let scan = snapshot.search(&mut searcher, &Embedding::new(rows[0].clone()).unwrap(), 3, &exact);
        let error = format!("{:#}", anyhow::Error::from(scan.unwrap_err()));
        assert!(error.contains(&file), "{error}");
        fs::write(&table, sound).unwrap();
    }
    assert!(opened(&bench, RowsMode::Ram).is_ok());
}

/// `verify` used to list the generations that it checked, and to check the current one.
#[test]
fn damage_in_a_generation_kept_for_a_roll_back_is_found() {
    let (bench, _) = many_rows();
    let store = Store::open(&bench.store, Access::Write).unwrap();
    let mut writer = Writer::existing(&store, &name("a")).unwrap();
    writer.index(&params(), &Default::default(), |_| {}, |_, _, _| Ok(Default::default())).unwrap();
    let record = store.cache(&name("a")).unwrap();
    let old = store.generations(record.id).unwrap().remove(0);
    assert_ne!(record.current, Some(old.generation));
    let mut bytes = vec![0; old.index_bytes as usize];
    store.read_blob(record.id, old.generation, BlobKind::Index, &mut bytes).unwrap();
    // Written as such, so that neither RocksDB nor the part's checksum can know.
    *bytes.last_mut().unwrap() ^= 1;
    let mut blob = store.write_blob(record.id, old.generation, BlobKind::Index);
    blob.write_all(&bytes).unwrap();
    blob.finish().unwrap();
    drop(store);
    let ran = bench.run("verify", &[]).expect(1);
    assert!(
        ran.out.contains("generation 1: section `codes` of the index is damaged"),
        "{}{}",
        ran.out,
        ran.err
    );
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
        let (table, _) = tables_with(&bench, b"VISCIDX\0").remove(0);
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
        let origin = Origin::of("test");
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

/// One fixture for each kind of code, with the least score that a row gets for itself on its codes.
const FIXTURES: [(CodeKind, &str, f32); 4] = [
    (CodeKind::U8, "index-v1.bin", 0.98),
    (CodeKind::U4, "index-v1-u4.bin", 0.8),
    (CodeKind::F16, "index-v1-f16.bin", 0.999),
    (CodeKind::F32, "index-v1-f32.bin", 0.99999),
];

fn fixture_path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(file)
}

fn fixture(file: &str) -> Vec<u8> {
    fs::read(fixture_path(file)).unwrap()
}

/// How the fixtures were made. They must not be made anew: what a released program wrote is what this program has to read.
#[test]
#[ignore = "writes the files of tests/fixtures that are not there"]
fn write_the_fixtures() {
    let rows = fixture_rows();
    for (codes, file, _) in FIXTURES {
        if fixture_path(file).exists() {
            continue;
        }
        let params = BuildParams { m: 8, ef_construction: 64, codes, threads: 1, ..Default::default() };
        let codec = Codec::train(params.codes, &rows, DIM);
        let graph = viscache::index::build(&params, &codec, &rows, &[], |_, _| {}).unwrap();
        let ids: Vec<ItemId> = (0..ROWS as u64).map(|i| ItemId(3 * i + 1)).collect();
        let codes = codec.encode(&rows);
        let mut bytes = Vec::new();
        Parts { graph: &graph, codec: &codec, ids: &ids, codes: &codes }.write(&mut bytes).unwrap();
        fs::write(fixture_path(file), bytes).unwrap();
    }
}

#[test]
fn indexes_of_format_version_1_open_and_find() {
    for (codes, file, own_score) in FIXTURES {
        let index = Index::open(&fixture(file)).unwrap();
        let summary = index.summary();
        assert_eq!((summary.nodes, summary.dim, summary.m, summary.codes), (ROWS, DIM, 8, codes));
        assert_eq!(index.ids()[..3], [1, 4, 7]);
        assert!(index.unreachable().is_empty());
        let (rows, mut searcher) = (fixture_rows(), Searcher::default());
        let params = SearchParams { ef_search: ROWS, ..SearchParams::default() };
        for query in rows.chunks_exact(DIM) {
            let truth = exact::search(&rows, query, 5);
            let (found, _) = searcher.search(&index, query, ROWS, &params).unwrap();
            assert_eq!(found[0].slot, truth[0].slot, "{file}");
            assert!(
                found[0].score > own_score && found[0].score < 2.0 - own_score,
                "{file}: {}",
                found[0].score
            );
            let found: Vec<_> = found.iter().map(|candidate| candidate.slot).collect();
            assert!(truth.iter().all(|scored| found.contains(&scored.slot)));
        }
    }
}

/// Where a byte of an index lies, as the error about it has to say.
fn place(bytes: &[u8], at: usize) -> String {
    const SECTIONS: [&str; 5] = ["level0", "upper", "codec", "ids", "codes"];
    match at {
        0..8 => return "does not begin like one".into(),
        8..12 => return "format version".into(),
        12..384 => return "section `header`".into(),
        _ => {}
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    for (i, section) in SECTIONS.iter().enumerate() {
        let (start, len) = (word(64 + 64 * i + 8), word(64 + 64 * i + 16));
        if at < start {
            return format!("the bytes before section `{section}`");
        }
        if at < start + len {
            return format!("section `{section}` of the index is damaged");
        }
    }
    unreachable!("the index ends with its last section")
}

#[test]
fn every_byte_of_an_index_is_watched_and_its_place_named() {
    for (i, (_, file, _)) in FIXTURES.into_iter().enumerate() {
        let whole = fixture(file);
        let mut bytes = whole.clone();
        // All of one, some of the others.
        for at in (0..whole.len()).step_by(if i == 0 { 1 } else { 13 }) {
            bytes[at] ^= 1 << (at % 8);
            let error = Index::open(&bytes).err();
            let error = error.map_or_else(|| "nothing".into(), |error| error.to_string());
            assert!(error.contains(&place(&whole, at)), "{file}, byte {at}: {error}");
            bytes[at] = whole[at];
        }
    }
}

/// Opens bytes; when they are taken for an index, searching it must be safe too.
fn open_and_search(bytes: &[u8]) -> Option<Index> {
    let index = Index::open(bytes).ok()?;
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
        let bytes = fixture("index-v1.bin");
        prop_assert!(open_and_search(&bytes[..cut.index(bytes.len())]).is_none());
    }
}
