//! `import` from end to end: the values in the file are the values in the store, and every row says where it came from.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::types::Float32Type;
use arrow_array::{FixedSizeListArray, RecordBatch, StringArray, UInt64Array};
use arrow_schema::{DataType, Field, Schema};
use npyz::WriterBuilder;

use crate::common::{Bench, assert_unique, data, golden};

/// Writes an array `[n, dim]`.
fn write_npy(path: &Path, rows: &[Vec<f32>]) {
    let shape = [rows.len() as u64, rows[0].len() as u64];
    let mut file = File::create(path).unwrap();
    let mut writer =
        npyz::WriteOptions::new().default_dtype().shape(&shape).writer(&mut file).begin_nd().unwrap();
    writer.extend(rows.iter().flatten().copied()).unwrap();
    writer.finish().unwrap();
}

/// `n` rows, no two alike.
fn some_rows(n: usize) -> Vec<Vec<f32>> {
    (0..n).map(|i| (0..8).map(|j| ((i * 8 + j) as f32 * 0.7).sin()).collect()).collect()
}

fn unit(row: &[f32]) -> Vec<f32> {
    let norm = viscache::types::norm(row);
    row.iter().map(|&v| (f64::from(v) / norm) as f32).collect()
}

#[test]
fn nasty_arrays_have_the_stated_outcomes() {
    let Some(manifest) = data("nasty/manifest.tsv") else { return };
    let bench = Bench::new();
    let root = manifest.parent().unwrap();
    bench.run("import --cache good --vectors", &[&root.join("npy/good-f32.npy")]).expect(0);
    let good = bench.rows("good");
    assert_eq!(good.len(), 12);
    let mut checked = 0;
    for line in fs::read_to_string(&manifest).unwrap().lines() {
        let fields: Vec<_> = line.split('\t').collect();
        let Some(name) = fields[0].strip_prefix("npy/") else { continue };
        let cache = name.trim_end_matches(".npy");
        let ran = bench.run(&format!("import --cache {cache} --vectors"), &[&root.join(fields[0])]);
        match (name, fields[2]) {
            (_, "ok") => {
                assert_eq!(ran.code, 0, "{name}: {}", ran.err);
                assert_eq!(bench.rows(cache), good, "{name}");
            }
            // One row is bad: it is named, and the others are stored.
            ("nan-row.npy", _) => {
                assert_eq!(ran.code, 3, "{}", ran.err);
                let bad = bench.bad(cache);
                let (uri, reason) = bad.first_key_value().unwrap();
                assert!(uri.ends_with("nan-row.npy#4") && reason.contains("NaN"), "{bad:?}");
                assert_eq!((bad.len(), bench.items(cache).len()), (1, 11));
            }
            _ => {
                assert_eq!(ran.code, 1, "{name}: {}", ran.out);
                assert!(ran.err.contains(name), "the message names the file: {}", ran.err);
            }
        }
        checked += 1;
    }
    assert_eq!(checked, 6);
}

/// The tensor `base` of a safetensors file, row by row.
fn base(path: &Path) -> Vec<Vec<f32>> {
    let bytes = fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
    let (offsets, dim) = (&tensors["base"]["data_offsets"], number(&tensors["base"]["shape"][1]));
    let data = &bytes[8 + header..][number(&offsets[0])..number(&offsets[1])];
    let values: Vec<f32> = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    values.chunks_exact(dim).map(<[f32]>::to_vec).collect()
}

#[test]
fn faiss_files_give_the_vectors_they_were_made_from() {
    let Some(folder) = golden("visual_cache") else { return };
    let base = base(&folder.join("base.safetensors"));
    let bench = Bench::new();
    for kind in ["flat_ip", "hnsw16_flat_ip", "ivf16_flat_ip"] {
        let file = folder.join(format!("faiss/{kind}.index"));
        bench.run(&format!("import --cache {kind} --keep-duplicates --vectors"), &[&file]).expect(0);
        let rows = bench.rows(kind);
        assert_eq!(rows.len(), base.len());
        for (id, row) in rows {
            assert_eq!(row, base[id as usize], "{kind}: row {id} is stored bit for bit");
        }
    }
    bench.assert_sound();
}

#[test]
fn features_with_a_table_beside_them_keep_its_names_and_tags() {
    let Some(vectors) = data("squeezenet-cifar10-3000.npy") else { return };
    let bench = Bench::new();
    bench.run("import --cache a --row-type f16 --vectors", &[&vectors]).expect(0);
    let items = bench.items("a");
    let table = fs::read_to_string(vectors.with_extension("tsv")).unwrap();
    let expected: BTreeMap<&str, &str> = table
        .lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<_> = line.split('\t').collect();
            (fields[1], fields[2])
        })
        .collect();
    let stored: BTreeMap<&str, &str> =
        items.values().map(|item| (item.uri.as_str(), item.tags["imagenet_top1"].as_str())).collect();
    let duplicates = bench.report()["outcomes"]["written"]["duplicates"].as_u64().unwrap() as usize;
    assert_eq!(items.len() + duplicates, 3000);
    assert_unique(&items);
    assert!(stored.iter().all(|(uri, tag)| expected[uri] == *tag));
    bench.assert_sound();
    let again = bench.run("import --cache a --row-type f16 --vectors", &[&vectors]).expect(0);
    assert!(again.out.starts_with("0 stored, 0 replaced, 0 duplicates, 0 bad; "), "{}", again.out);
    assert_eq!(bench.items("a"), items);
}

fn write_parquet(path: &Path, ids: &[u64], rows: &[Vec<f32>]) {
    let n = rows.len();
    let lists = rows.iter().map(|row| Some(row.iter().map(|&v| Some(v)).collect::<Vec<_>>()));
    let vectors = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(lists, 8);
    let urls = StringArray::from_iter_values((0..n).map(|i| format!("https://example.org/{i}.jpg")));
    let labels = StringArray::from_iter_values((0..n).map(|i| ["cat", "dog"][i % 2]));
    let list = DataType::FixedSizeList(Arc::new(Field::new("item", DataType::Float32, true)), 8);
    let schema = Schema::new(vec![
        Field::new("number", DataType::UInt64, false),
        Field::new("url", DataType::Utf8, false),
        Field::new("label", DataType::Utf8, false),
        Field::new("embedding", list, false),
    ]);
    let columns: Vec<arrow_array::ArrayRef> =
        vec![Arc::new(UInt64Array::from(ids.to_vec())), Arc::new(urls), Arc::new(labels), Arc::new(vectors)];
    let batch = RecordBatch::try_new(Arc::new(schema), columns).unwrap();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn a_table_brings_its_own_ids_names_and_tags() {
    let bench = Bench::new();
    let (path, rows) = (bench.path("t.parquet"), some_rows(40));
    let ids: Vec<u64> = (0..40).map(|i| 1000 - 7 * i).collect();
    write_parquet(&path, &ids, &rows);
    let words = "import --cache a --id-column number --embedding-column embedding --vectors";
    bench.run(words, &[&path]).expect(0);
    let (items, stored) = (bench.items("a"), bench.rows("a"));
    for (i, id) in ids.iter().enumerate() {
        assert_eq!(items[id].uri, format!("https://example.org/{i}.jpg"));
        assert_eq!(items[id].tags["label"], ["cat", "dog"][i % 2]);
        assert_eq!(stored[id], unit(&rows[i]));
    }
    assert_eq!(items.len(), 40);
    bench.assert_sound();
    let again = bench.run(words, &[&path]).expect(0);
    assert!(again.out.starts_with("0 stored, 0 replaced, 0 duplicates, 0 bad; 40 items"), "{}", again.out);
}

/// Vectors with a `.jsonl` of ids and uris beside them.
fn with_ids(bench: &Bench, name: &str, rows: &[Vec<f32>], ids: impl Iterator<Item = u64>) -> PathBuf {
    let path = bench.path(name);
    write_npy(&path, rows);
    let lines: Vec<_> =
        ids.enumerate().map(|(i, id)| format!("{{\"id\": {id}, \"uri\": \"{name}/{i}\"}}")).collect();
    fs::write(path.with_extension("jsonl"), lines.join("\n") + "\n").unwrap();
    path
}

#[test]
fn an_id_given_twice_is_refused_the_second_time() {
    let bench = Bench::new();
    let rows = some_rows(10);
    let path = with_ids(&bench, "v.npy", &rows, (0..10).map(|i| if i == 7 { 40 } else { 10 * i }));
    bench.run("import --cache a --vectors", &[&path]).expect(3);
    let bad = bench.bad("a");
    let (uri, reason) = bad.first_key_value().unwrap();
    assert!(uri.ends_with("v.npy#7") && reason.contains("id 40") && reason.contains("v.npy/4"), "{bad:?}");
    assert_eq!((bad.len(), bench.items("a").len()), (1, 9));
    // In a later import too.
    let path = with_ids(&bench, "w.npy", &some_rows(12)[10..], [500, 90].into_iter());
    bench.run("import --cache a --vectors", &[&path]).expect(3);
    assert_eq!((bench.bad("a").len(), bench.items("a").len()), (2, 10));
    assert_eq!(bench.items("a")[&90].uri, "v.npy/9", "the first owner keeps it");
    assert_eq!(bench.rows("a")[&90], unit(&rows[9]));
    bench.assert_sound();
}

#[test]
fn an_interrupted_sequence_of_files_goes_on_without_repeating() {
    let bench = Bench::new();
    let (rows, folder) = (some_rows(30), bench.path("in"));
    fs::create_dir(&folder).unwrap();
    write_npy(&folder.join("a.npy"), &rows[..10]);
    bench.run("import --cache a --vectors", &[&folder]).expect(0);
    write_npy(&folder.join("b.npy"), &rows[10..30]);
    let ran = bench.run("import --cache a --vectors", &[&folder]).expect(0);
    assert!(ran.out.starts_with("20 stored, 0 replaced, 0 duplicates"), "{}", ran.out);
    assert!(bench.rows("a").into_values().eq(rows.iter().map(|row| unit(row))));
    assert_eq!(bench.record("a").current.unwrap().0, 2);

    // A file that was written anew replaces its rows under their ids.
    let mut changed = rows[..10].to_vec();
    changed[3] = vec![1.0; 8];
    write_npy(&folder.join("a.npy"), &changed);
    bench.run("import --cache a --vectors", &[&folder]).expect(0);
    let stored = bench.rows("a");
    assert_eq!((stored.len(), &stored[&3]), (30, &unit(&[1.0; 8])));
    bench.assert_sound();
}

#[test]
fn what_does_not_fit_is_refused_before_a_row_is_stored() {
    let bench = Bench::new();
    let (eight, four) = (bench.path("8.npy"), bench.path("4.npy"));
    write_npy(&eight, &some_rows(3));
    write_npy(&four, &[vec![1.0; 4]]);
    let ran = bench.run("import --cache a --vectors", &[&eight, &four]).expect(1);
    assert!(ran.err.contains("4.npy") && ran.err.contains('8'), "{}", ran.err);
    bench.run("import --cache a --vectors", &[&eight]).expect(0);
    let ran = bench.run("import --cache a --vectors", &[&four]).expect(1);
    assert!(ran.err.contains("4 components") && ran.err.contains('8'), "{}", ran.err);
    let ran = bench.run("import --cache b --nano --vectors", &[&eight]).expect(1);
    assert!(ran.err.contains("128"), "{}", ran.err);
    let ran = bench.run("import --cache a --dry-run --vectors", &[&eight]).expect(0);
    assert!(ran.out.contains("6 items afterwards"), "{}", ran.out);
    assert_eq!(bench.record("a").items, 3);
}

/// Writes a table of vectors of one component more than zero, with an `id` and a `url` column.
fn write_ids(path: &Path, ids: arrow_array::ArrayRef, urls: &[&str]) {
    let rows: Vec<Vec<f32>> =
        (0..urls.len()).map(|i| (0..8).map(|j| ((i * 9 + j) as f32).cos()).collect()).collect();
    let lists = rows.iter().map(|row| Some(row.iter().map(|&v| Some(v)).collect::<Vec<_>>()));
    let vectors = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(lists, 8);
    let columns: [(&str, arrow_array::ArrayRef); 3] = [
        ("id", ids),
        ("url", Arc::new(StringArray::from_iter_values(urls))),
        ("embedding", Arc::new(vectors)),
    ];
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn rows_without_an_id_get_none_that_a_row_of_the_import_names() {
    // The gap comes first, in the middle, and in a file of its own before the one that names ids.
    for gap in [0, 1, 2] {
        let bench = Bench::new();
        let path = bench.path("t.parquet");
        let ids: Vec<Option<u64>> =
            (0..3).map(|i| (i != gap).then_some(if i > gap { i - 1 } else { i })).collect();
        write_ids(&path, Arc::new(UInt64Array::from(ids)), &["a", "b", "c"]);
        bench.run("import --cache c --vectors", &[&path]).expect(0);
        let items: Vec<_> = bench.items("c").into_iter().map(|(id, item)| (id, item.uri)).collect();
        assert_eq!(items.len(), 3, "{items:?}");
        assert!(items.contains(&(2, ["a", "b", "c"][gap as usize].into())), "{items:?}");
        bench.assert_sound();
    }
    let bench = Bench::new();
    let folder = bench.path("in");
    fs::create_dir(&folder).unwrap();
    write_npy(&folder.join("1.npy"), &some_rows(1500));
    with_ids(&bench, "in/2.npy", &some_rows(1503)[1500..], [0, 700, 1499].into_iter());
    bench.run("import --cache c --no-index --vectors", &[&folder]).expect(0);
    let items = bench.items("c");
    assert_eq!(items.len(), 1503);
    assert!([0, 700, 1499].iter().all(|id| items[id].uri.starts_with("in/2.npy/")));
}

#[test]
fn two_rows_of_one_id_are_two_lines_also_when_they_are_of_one_thing() {
    let bench = Bench::new();
    let path = bench.path("t.parquet");
    write_ids(&path, Arc::new(UInt64Array::from(vec![7, 7, 8])), &["same", "same", "other"]);
    let ran = bench.run("import --cache c --vectors", &[&path]).expect(3);
    assert!(ran.out.starts_with("2 stored, 0 replaced, 0 duplicates, 1 bad; 2 items"), "{}", ran.out);
    let bad = bench.bad("c");
    assert!(bad.len() == 1 && bad.keys().all(|uri| uri.ends_with("#1")), "{bad:?}");
    // A run that goes on after a kill knows them too.
    bench.run("import --cache c --vectors", &[&path]).expect(3);
    assert_eq!(bench.items("c").len(), 2);
    // Another file that says something new of the same thing replaces it.
    let newer = bench.path("u.parquet");
    write_ids(&newer, Arc::new(UInt64Array::from(vec![8, 7])), &["other", "same"]);
    let ran = bench.run("import --cache c --vectors", &[&newer]).expect(0);
    assert!(ran.out.starts_with("0 stored, 2 replaced"), "{}", ran.out);
}

#[test]
fn rows_that_name_their_ids_are_never_dropped_as_duplicates() {
    let bench = Bench::new();
    let rows = [some_rows(3), some_rows(3)].concat();
    let path = with_ids(&bench, "v.npy", &rows, 10..16);
    bench.run("import --cache a --vectors", &[&path]).expect(0);
    assert_eq!(bench.items("a").len(), 6);
    let ran = bench.run("import --cache b --no-ids --vectors", &[&path]).expect(0);
    assert!(ran.out.starts_with("3 stored, 0 replaced, 3 duplicates"), "{}", ran.out);
    bench.assert_sound();
}

#[test]
fn one_bad_line_of_metadata_costs_its_row() {
    let bench = Bench::new();
    let path = with_ids(&bench, "v.npy", &some_rows(4), 0..4);
    let lines = "{\"id\": 3}\nno json\n{\"id\": -1}\n{\"id\": 5, \"uri\": \"last\"}\n";
    fs::write(path.with_extension("jsonl"), lines).unwrap();
    let ran = bench.run("import --cache a --vectors", &[&path]).expect(3);
    assert!(ran.out.starts_with("2 stored, 0 replaced, 0 duplicates, 2 bad"), "{}", ran.out);
    let bad = bench.bad("a");
    assert!(bad.values().any(|reason| reason.contains("line 2: is not a JSON object")), "{bad:?}");
    assert_eq!(bench.items("a")[&5].uri, "last");
}

#[test]
fn columns_that_are_not_taken_and_rows_that_are_changed_are_said() {
    let bench = Bench::new();
    let path = bench.path("t.parquet");
    write_ids(&path, Arc::new(StringArray::from(vec!["x1", "x2"])), &["a", "b"]);
    let ran = bench.run("import --cache a --vectors", &[&path]).expect(0);
    assert!(ran.out.contains("its `id` is text and kept as tag"), "{}", ran.out);
    assert!(ran.out.contains("2 rows were not of length 1 and are stored with it"), "{}", ran.out);
    assert_eq!(bench.items("a")[&0].tags["id"], "x1");
    bench.run("import --cache b --no-tags --vectors", &[&path]).expect(0);
    assert!(bench.items("b")[&0].tags.is_empty());
    assert_eq!(bench.report()["notes"].as_array().unwrap().len(), 2);
}
