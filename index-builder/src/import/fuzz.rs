//! The fuzzer's targets for the importers, on mutations of sound files: every run of the tests tries some thousand.

use rand::SeedableRng;
use rand_pcg::Pcg64;

use super::{faiss, npy, parquet};

#[path = "../../../fuzz/bodies/import.rs"]
mod body;
#[path = "../../../fuzz/bodies/mutate.rs"]
mod mutate;

/// Runs a target on mutations of every sound file in turn.
fn run(sound: &[Vec<u8>], cases: usize, target: fn(&[u8])) {
    let mut random = Pcg64::seed_from_u64(mutate::seed());
    for case in 0..cases {
        target(&mutate::mutated(&sound[case % sound.len()], &mut random));
    }
}

#[test]
fn mutated_arrays() {
    let values: Vec<f32> = (0..24).map(|i| i as f32 + 0.5).collect();
    let sound = [npy::tests::npy(&values, 4, false), npy::tests::npy(&values, 4, true)];
    assert_eq!(body::read(&[("x.npy", &sound[0])]), Ok(6));
    run(&sound, 1000, body::npy);
}

#[test]
fn mutated_faiss_indexes() {
    let sound = faiss::tests::all_kinds();
    assert_eq!(body::read(&[("x.index", &sound[3])]), Ok(4));
    run(&sound, 1000, body::faiss);
}

#[test]
fn mutated_tables() {
    let sound = parquet::tests::table();
    assert_eq!(body::read(&[("x.parquet", &sound)]), Ok(7));
    run(&[sound], 1000, body::parquet);
}

#[test]
fn mutated_metadata() {
    let jsonl = "\0{\"id\": 1, \"uri\": \"a\", \"n\": 1.5}\n{\"key\": 5, \"ok\": true, \"deep\": [1]}\n{\"file\": null}\n";
    let tsv = "\u{1}row\tid\tfile\tlabel\n0\t7\ta.jpg\tcat\n1\t\t\t\n2\t8\tb\té\n";
    let table = [&[2], &parquet::tests::table()[..]].concat();
    run(&[jsonl.into(), tsv.into(), table], 1000, body::metadata);
}
