//! The fuzzer's target for the index (`fuzz/bodies/view.rs`), on seeded edits of the fixtures: every run of the tests tries
//! some thousand. And what it does not reach.

#[path = "../../fuzz/bodies/view.rs"]
mod body;
#[path = "../../fuzz/bodies/mutate.rs"]
mod mutate;

use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64;
use viscache::index::{BuildParams, CodeKind, Codec, Parts, build};
use viscache::types::ItemId;

#[test]
fn checksums_are_mended_as_they_were_written() {
    for sound in body::SOUND {
        let mut bytes = sound.to_vec();
        body::mend(&mut bytes);
        assert_eq!(bytes, sound);
        assert!(body::open(&bytes).is_some());
    }
}

#[test]
fn mutated_bytes() {
    let mut random = Pcg64::seed_from_u64(mutate::seed());
    for case in 0..4000 {
        body::bytes(&mutate::mutated(body::SOUND[case % body::SOUND.len()], &mut random));
    }
}

#[test]
fn edits_under_fitting_checksums() {
    let mut random = Pcg64::seed_from_u64(mutate::seed());
    let cases = 20_000;
    let opened = (0..cases).filter(|_| {
        let mut data = vec![0; 1 + 8 * random.random_range(1..6usize)];
        random.fill_bytes(&mut data);
        body::mended(&data)
    });
    let share = opened.count() as f64 / f64::from(cases);
    // Both sides of every check are reached.
    assert!((0.1..0.9).contains(&share), "{share} of the edited indexes were opened");
}

/// The beam looks at all links of a row before it marks one, and gave the slot that was named twice back twice.
#[test]
fn a_row_with_a_link_twice_is_refused() {
    for sound in body::SOUND {
        let mut bytes = sound.to_vec();
        // The first row of `level0`, the first section: its degree, then its links.
        bytes.copy_within(384 + 4..384 + 8, 384 + 8);
        body::mend(&mut bytes);
        assert!(body::open(&bytes).is_none());
    }
}

/// Products of longer rows leave the kernels' integers: the scores would be wrong, or a sum overflow.
#[test]
fn rows_too_long_for_sums_of_their_codes_are_refused() {
    for (codes, dim, opens) in [
        (CodeKind::U8, 1 << 15, true),
        (CodeKind::U8, (1 << 15) + 1, false),
        (CodeKind::F16, (1 << 15) + 1, true),
    ] {
        let rows = vec![1.0 / (dim as f32).sqrt(); dim];
        let codec = Codec::train(codes, &rows, dim);
        let params = BuildParams { codes, threads: 1, ..BuildParams::default() };
        let graph = build(&params, &codec, &rows, &[], |_, _| {}).unwrap();
        let (codes, mut bytes) = (codec.encode(&rows), Vec::new());
        Parts { graph: &graph, codec: &codec, ids: &[ItemId(0)], codes: &codes }.write(&mut bytes).unwrap();
        assert_eq!(body::open(&bytes).is_some(), opens, "{dim} components");
    }
}
