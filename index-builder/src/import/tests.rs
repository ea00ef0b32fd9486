//! The importers together, on written files and on the shared golden ones.

use std::fs;
use std::ops::Deref;
use std::sync::Arc;

use arrow_array::{ArrayRef, StringArray};
use tempfile::TempDir;

use super::parquet::tests::write_table;
use super::*;

/// Usable and other rows.
pub(super) type Read = (Vec<Row>, Vec<BadRow>);

/// A file that goes with its folder.
pub(super) struct Written {
    path: PathBuf,
    _folder: TempDir,
}

impl Deref for Written {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

pub(super) fn write(name: &str, bytes: &[u8]) -> Written {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    Written { path, _folder: folder }
}

pub(super) fn read_all(path: &Path, size: usize) -> Result<Read, Error> {
    read_all_with(path, &Options::default(), size)
}

pub(super) fn read_all_with(path: &Path, options: &Options, size: usize) -> Result<Read, Error> {
    collect(&open(&[path.to_owned()], options)?, size, 0)
}

/// The message about a file that must not be imported.
pub(super) fn problem(name: &str, bytes: &[u8]) -> (String, PathBuf) {
    let path = write(name, bytes);
    (read_all(&path, 10).unwrap_err().to_string(), path.to_path_buf())
}

fn collect(import: &Import, size: usize, skip: u64) -> Result<Read, Error> {
    let (mut rows, mut bad, mut next) = (Vec::new(), Vec::new(), skip);
    for chunk in import.chunks(size, skip) {
        let mut chunk = chunk?;
        assert_eq!(chunk.first, next);
        next += (chunk.rows.len() + chunk.bad.len()) as u64;
        rows.append(&mut chunk.rows);
        bad.append(&mut chunk.bad);
    }
    assert_eq!(next, import.rows.max(skip));
    Ok((rows, bad))
}

/// An array of two columns whose row i is (first + i, 1).
fn array(first: usize, rows: usize) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 2), }}\n");
    let mut bytes = [npy::MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat();
    for row in first..first + rows {
        bytes.extend([row as f32, 1.0].map(f32::to_le_bytes).concat());
    }
    bytes
}

fn strings(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

#[test]
fn a_folder_is_read_in_order_with_its_metadata_from_any_row_on() {
    let folder = TempDir::new().unwrap();
    let embeddings = folder.path().join("img_emb");
    fs::create_dir_all(folder.path().join("metadata")).unwrap();
    fs::create_dir_all(embeddings.join("deeper.npy")).unwrap();
    // One with metadata of the sibling folder, of its own folder, by its own name, and without.
    fs::write(embeddings.join("img_emb_0.npy"), array(1, 4)).unwrap();
    write_table(
        &folder.path().join("metadata/metadata_0.parquet"),
        &[("url", strings(&["a", "b", "c", "d"]))],
    );
    fs::write(embeddings.join("img_emb_1.npy"), array(5, 2)).unwrap();
    write_table(&embeddings.join("metadata_1.parquet"), &[("url", strings(&["e", "f"]))]);
    fs::write(embeddings.join("k.npy"), array(7, 2)).unwrap();
    fs::write(embeddings.join("k.jsonl"), "{\"uri\": \"g\"}\n{\"uri\": \"h\"}\n").unwrap();
    fs::write(embeddings.join("z.npy"), array(9, 1)).unwrap();

    let import = open(std::slice::from_ref(&embeddings), &Options::default()).unwrap();
    let names: Vec<_> = import
        .files
        .iter()
        .map(|file| (file.path.file_name().unwrap().to_str().unwrap(), file.rows))
        .collect();
    assert_eq!(names, [("img_emb_0.npy", 4), ("img_emb_1.npy", 2), ("k.npy", 2), ("z.npy", 1)]);
    let (all, _) = collect(&import, 3, 0).unwrap();
    assert!(all.iter().map(|row| row.values[0]).eq((1..=9).map(|value| value as f32)));
    assert_eq!(all.iter().filter_map(|row| row.uri.as_deref()).collect::<String>(), "abcdefgh");
    assert_eq!(all.iter().map(|row| (row.source, row.row)).nth(5), Some((1, 1)));
    for skip in 0..11 {
        for size in [0, 1, 3, 100] {
            assert_eq!(collect(&import, size, skip).unwrap().0, all[all.len().min(skip as usize)..]);
        }
    }

    let shared = folder.path().join("all.tsv");
    fs::write(&shared, "row\turl\n0\tA\n1\tB\n2\tC\n3\tD\n4\tE\n5\tF\n6\tG\n7\tH\n8\tI\n").unwrap();
    let import = open(&[embeddings], &Options { metadata: Some(shared), ..Options::default() }).unwrap();
    let uris =
        |skip| collect(&import, 2, skip).unwrap().0.into_iter().filter_map(|row| row.uri).collect::<String>();
    assert_eq!((uris(0), uris(5)), ("ABCDEFGHI".to_owned(), "FGHI".to_owned()));
}

#[test]
fn parts_are_taken_by_the_numbers_in_their_names() {
    let folder = TempDir::new().unwrap();
    for part in 0..12 {
        fs::write(folder.path().join(format!("emb_{part}.npy")), array(part, 1)).unwrap();
    }
    fs::write(folder.path().join("emb_007b.npy"), array(100, 1)).unwrap();
    let import = open(&[folder.path().to_owned()], &Options::default()).unwrap();
    let (rows, _) = collect(&import, 3, 0).unwrap();
    let firsts: Vec<f32> = rows.iter().map(|row| row.values[0]).collect();
    assert_eq!(firsts, [0., 1., 2., 3., 4., 5., 6., 7., 100., 8., 9., 10., 11.]);
}

#[test]
fn disagreements_are_found_before_the_first_row() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("a.npy"), array(1, 2)).unwrap();
    fs::write(
        path("b.faiss"),
        b"IxFI\x01\0\0\0\x01\0\0\0\0\0\0\0................\x01\0\0\0\0\x01\0\0\0\0\0\0\0abcd",
    )
    .unwrap();
    fs::create_dir(path("empty")).unwrap();
    let message = |names: &[&str], options: &Options| {
        let paths: Vec<PathBuf> = names.iter().map(|name| path(name)).collect();
        let message = open(&paths, options).err().unwrap().to_string();
        message.replace(&format!("{}/", folder.path().display()), "")
    };
    let none = Options::default();
    assert!(message(&[], &none).starts_with("nothing to import; name"));
    assert!(message(&["no.npy"], &none).starts_with("no.npy: cannot be read; check that it exists"));
    assert!(message(&["empty"], &none).starts_with("empty: has no .npy or .parquet file"));
    assert!(
        message(&["a.npy", "b.faiss"], &none).starts_with("b.faiss: has vectors of 1 values, a.npy has 2;")
    );
    fs::write(path("a.jsonl"), "{}").unwrap();
    assert!(message(&["a.npy"], &none).starts_with("a.jsonl: has 1 rows for 2 vectors (from "));
    fs::write(path("a.tsv"), "id\n1\n2\n").unwrap();
    assert!(
        message(&["a.npy"], &none)
            .starts_with("a.npy: has more than one metadata file (a.jsonl, a.tsv); keep")
    );
    let named = Options { metadata: Some(path("a.tsv")), ..Options::default() };
    assert_eq!(read_all_with(&path("a.npy"), &named, 9).unwrap().0[1].id, Some(2));
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error_and_the_end() {
    let file = write("a.npy", &array(1, 4));
    let import = open(&[file.to_path_buf()], &Options::default()).unwrap();
    let mut chunks = import.chunks(2, 0);
    assert_eq!(chunks.next().unwrap().unwrap().rows.len(), 2);
    fs::write(&*file, array(1, 2)).unwrap();
    assert!(matches!(chunks.next(), Some(Err(Error::Unreadable { .. }))));
    assert!(chunks.next().is_none());
}

/// A file of the shared data, or `None` after saying that the test is skipped.
fn shared(variable: &str, default: &str, file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from);
    let path = folder.join(file);
    if !path.exists() {
        eprintln!("skipped: {} is not there; set {variable} to the folder that has it", path.display());
        return None;
    }
    Some(path)
}

fn data(file: &str) -> Option<PathBuf> {
    shared("VISCACHE_DATA", concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data"), file)
}

fn golden(file: &str) -> Option<PathBuf> {
    shared("VISCACHE_GOLDEN", concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden"), file)
}

#[test]
fn golden_faiss_files_are_bit_equal_to_their_base() {
    let Some(base) = golden("visual_cache/base.safetensors") else {
        return;
    };
    let base = fs::read(base).unwrap();
    let (length, rest) = base.split_first_chunk().unwrap();
    let (header, body) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: serde_json::Value = serde_json::from_slice(header).unwrap();
    assert_eq!(header["base"]["shape"], serde_json::json!([2000, 32]));
    let offset = |index: usize| header["base"]["data_offsets"][index].as_u64().unwrap() as usize;
    let base: Vec<[u8; 4]> =
        body[offset(0)..offset(1)].chunks_exact(4).map(|it| it.try_into().unwrap()).collect();
    for name in ["flat_ip", "hnsw16_flat_ip", "ivf16_flat_ip"] {
        let Some(path) = golden(&format!("visual_cache/faiss/{name}.index")) else {
            return;
        };
        let (rows, bad) = read_all(&path, 300).unwrap();
        assert!(bad.is_empty() && rows.len() == 2000);
        let read = rows.iter().flat_map(|row| &row.values).map(|value| value.to_le_bytes());
        assert!(read.eq(base.iter().copied()), "{name}");
    }
}

#[test]
fn awkward_arrays_have_the_outcomes_of_their_manifest() {
    let Some(manifest) = data("nasty/manifest.tsv") else {
        return;
    };
    let good = read_all(&data("nasty/npy/good-f32.npy").unwrap(), 5).unwrap();
    assert_eq!((good.0.len(), good.0[0].values.len(), good.1.len()), (12, 16, 0));
    let mut seen = 0;
    for line in fs::read_to_string(manifest).unwrap().lines().filter(|line| line.starts_with("npy/")) {
        let fields: Vec<&str> = line.split('\t').collect();
        let path = data(&format!("nasty/{}", fields[0])).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        match (fields[2], read_all(&path, 5)) {
            ("ok", Ok(read)) => assert_eq!(read, good, "{name}"),
            ("reject", Ok((rows, bad))) => {
                assert_eq!((name, rows.len()), ("nan-row.npy", 11));
                assert!(bad[0].row == 4 && bad[0].reason.ends_with("is NaN"), "{bad:?}");
            }
            ("reject", Err(error)) => assert!(error.to_string().contains(name), "{error}"),
            (expected, read) => panic!("{name}: expected {expected}, got {read:?}"),
        }
        seen += 1;
    }
    assert_eq!(seen, 6);
}

#[test]
fn a_collection_with_a_tsv_beside_it_has_uris() {
    let Some(path) = data("squeezenet-cifar10-3000.npy") else {
        return;
    };
    let (rows, bad) = read_all(&path, 700).unwrap();
    assert!(bad.is_empty(), "{bad:?}");
    assert_eq!((rows.len(), rows[0].values.len()), (3000, 512));
    assert!(rows.iter().all(|row| row.uri.is_some()));
    assert_eq!(rows[1].uri.as_deref(), Some("cifar10/train/airplane_0001.jpg"));
    assert_eq!(format!("{:?}", rows[1].tags), r#"{"imagenet_top1": "813"}"#);
}
