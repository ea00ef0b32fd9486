//! What every path must give, on this processor. `twins.rs` holds the paths against each other.

use std::io::Write;

use proptest::prelude::*;

use super::{Kernels, PLANES, twins};

/// `VISCACHE_MIN_ISA` names a path that must be among them: a test that was not run has not passed.
#[test]
fn this_machine_says_what_it_tested() {
    let names: Vec<&str> = Kernels::available().into_iter().map(Kernels::name).collect();
    let line = format!("kernels tested: {}; in use: {}\n", names.join(" "), Kernels::get().name());
    // Past the harness, which would keep it to itself.
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    assert_eq!(names[0], "scalar");
    if let Ok(needed) = std::env::var("VISCACHE_MIN_ISA") {
        assert!(
            names.contains(&needed.as_str()),
            "this processor has {names:?}, `{needed}` was to be tested"
        );
    }
}

#[test]
fn the_front_page_has_every_kernel_that_is_compared() {
    let page = include_str!("mod.rs");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("//! | `")).collect();
    for (kernel, _) in twins::CHECKS {
        assert!(rows.iter().any(|row| row.contains(&format!("`{kernel}`"))), "{kernel} is not in the table");
    }
}

#[test]
fn extreme_codes_do_not_saturate() {
    for len in [1, 63, 64, 65, 1024, 8192, 1 << 15] {
        for kernels in Kernels::available() {
            let dot = kernels.dot_codes(&vec![255; len], &vec![-128; len]);
            assert_eq!(dot, -(255 * 128) * len as i32, "{} {len}", kernels.name());
            let distance = kernels.distance_codes(&vec![255; len], &vec![0; len]);
            assert_eq!(distance, 255 * 255 * len as u32, "{} {len}", kernels.name());
            let lines = len.min(8192);
            let nibbles = kernels.dot_nibbles(&vec![255; 64 * lines], &vec![-128; 128 * lines]);
            assert_eq!(nibbles, -(15 * 128) * 128 * lines as i32, "{} {lines}", kernels.name());
            let product = kernels.product_nibbles(&vec![255; 64 * lines], &vec![255; 64 * lines]);
            assert_eq!(product, 15 * 15 * 128 * lines as u32, "{} {lines}", kernels.name());
        }
    }
}

/// erf by its Maclaurin series, in f64: slow and obvious.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn gelu_is_the_exact_one() {
    let inputs: Vec<f32> = (-12_000..=12_000).map(|i| i as f32 / 1000.0).collect();
    let bias = vec![0.25f32; inputs.len()];
    for kernels in Kernels::available() {
        let mut outputs = inputs.clone();
        kernels.bias_gelu(&mut outputs, &bias);
        for (x, y) in inputs.iter().zip(outputs) {
            let x = f64::from(x + 0.25);
            let truth = x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2));
            let error = (f64::from(y) - truth).abs();
            assert!(error <= 5e-7 * x.abs().max(1.0), "{} gelu({x}) = {y}, not {truth}", kernels.name());
        }
    }
}

#[test]
fn slopes_and_sigmoids_are_the_exact_ones() {
    let inputs: Vec<f32> = (-12_000..=12_000).map(|i| i as f32 / 1000.0).collect();
    for kernels in Kernels::available() {
        let (mut slopes, mut sigmoids) = (inputs.clone(), inputs.clone());
        kernels.gelu_slope(&mut slopes);
        kernels.sigmoid(&mut sigmoids);
        for ((&x, slope), sigmoid) in inputs.iter().zip(slopes).zip(sigmoids) {
            let x = f64::from(x);
            let bell = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
            let truth = 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)) + x * bell;
            assert!((f64::from(slope) - truth).abs() <= 1e-6, "{} at {x}: {slope}", kernels.name());
            let truth = 1.0 / (1.0 + (-x).exp());
            assert!(
                (f64::from(sigmoid) - truth).abs() <= 1e-6 * truth,
                "{} at {x}: {sigmoid}",
                kernels.name()
            );
        }
        let mut ends = [f32::NEG_INFINITY, -88.0, 88.0, f32::INFINITY, f32::NAN];
        kernels.sigmoid(&mut ends);
        assert_eq!(ends[..4], [0.0, 0.0, 1.0, 1.0], "{}", kernels.name());
        assert!(ends[4].is_nan());
    }
}

#[test]
fn softmax_is_the_exact_one() {
    for kernels in Kernels::available() {
        for len in [1usize, 7, 16, 257, 1000] {
            let inputs: Vec<f32> = (0..len).map(|i| (i * 7919 % 2000) as f32 / 17.0 - 60.0).collect();
            let largest = f64::from(inputs.iter().fold(f32::NEG_INFINITY, |max, &v| max.max(v)));
            let powers: Vec<f64> = inputs.iter().map(|&x| (f64::from(x) - largest).exp()).collect();
            let sum: f64 = powers.iter().sum();
            let mut found = inputs.clone();
            kernels.softmax(&mut found);
            for (power, found) in powers.into_iter().zip(found) {
                let (truth, found) = (power / sum, f64::from(found));
                assert!(
                    (found - truth).abs() <= 1e-6 * truth + 1e-7 * truth * (power.ln().abs() + 1.0) + 1e-37,
                    "{}: {found}, not {truth}",
                    kernels.name()
                );
            }
        }
        let mut masked = [0.5, f32::NEG_INFINITY, 0.5, f32::NEG_INFINITY];
        kernels.softmax(&mut masked);
        assert_eq!(masked, [0.5, 0.0, 0.5, 0.0], "{}", kernels.name());
        for nothing in [vec![f32::NAN; 20], vec![f32::NEG_INFINITY; 20], {
            let mut one = vec![0.0; 20];
            one[3] = f32::NAN;
            one
        }] {
            let mut found = nothing.clone();
            kernels.softmax(&mut found);
            assert!(found.iter().all(|v| v.is_nan()), "{}: {nothing:?} became {found:?}", kernels.name());
        }
        kernels.softmax(&mut []);
    }
}

/// Lengths around whole registers and lines, and those with loops of their own.
fn case() -> impl Strategy<Value = twins::Case> {
    let len = prop_oneof![4 => 0usize..300, 1 => (0usize..17).prop_map(|lines| 128 * lines)];
    let inputs = len.prop_flat_map(|len| {
        let one = (any::<u8>(), any::<u8>(), any::<i8>(), -1e3f32..1e3, -1e3f32..1e3);
        (prop::collection::vec(one, len), prop::collection::vec(0u32..20, 0..40))
    });
    inputs.prop_map(|(inputs, slots)| {
        let mut case = twins::Case { slots, ..Default::default() };
        for (code, other, query, a, b) in inputs {
            case.code.push(code);
            case.other.push(other);
            case.query.push(query);
            case.a.push(a);
            case.b.push(b);
        }
        case
    })
}

proptest! {
    #[test]
    fn every_path_agrees_with_scalar(case in case()) {
        twins::check(&case);
    }

    #[test]
    fn nibbles_are_what_they_stand_for(
        lines in prop::collection::vec(any::<[[u8; 8]; 8]>(), 0..9), seed in any::<u64>()
    ) {
        let code: Vec<u8> = lines.iter().flatten().flatten().copied().collect();
        let query: Vec<i8> =
            (0..2 * code.len() as u64).map(|i| (seed.wrapping_mul(2 * i + 1) >> 40) as i8).collect();
        let blocks = code.chunks_exact(64).zip(query.chunks_exact(128));
        let plain: i32 = blocks.flat_map(|(code, query)| {
            let component = |i: usize| if i < 64 { code[i] & 15 } else { code[i - 64] >> 4 };
            (0..128).map(move |i| i32::from(component(i)) * i32::from(query[i])).collect::<Vec<_>>()
        }).sum();
        for kernels in Kernels::available() {
            prop_assert_eq!(kernels.dot_nibbles(&code, &query), plain, "{}", kernels.name());
        }
    }

    #[test]
    fn the_hadamard_transform_is_its_own_inverse(values in prop::collection::vec(-10f32..10.0, 128)) {
        for (kernels, len) in Kernels::available().into_iter().flat_map(|k| [(k, 1), (k, 2), (k, 32), (k, 128)]) {
            let (mut once, mut scalar) = (values[..len].to_vec(), values[..len].to_vec());
            kernels.hadamard(&mut once);
            Kernels::Scalar.hadamard(&mut scalar);
            prop_assert_eq!(&once, &scalar, "{}", kernels.name());
            let mean: f32 = values[..len].iter().sum::<f32>() / (len as f32).sqrt();
            prop_assert!((once[0] - mean).abs() < 1e-3);
            kernels.hadamard(&mut once);
            prop_assert!(once.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-3));
        }
    }

    #[test]
    fn scaled_queries_are_the_rounded_ones(query in prop::collection::vec(-1e3f32..1e3, 0..300)) {
        let largest = query.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let scale = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let expected: Vec<i8> = query.iter().map(|v| (v * scale).round_ties_even() as i8).collect();
        for kernels in Kernels::available() {
            let mut out = vec![7i8; query.len()];
            prop_assert_eq!(kernels.scale_query(&query, &mut out), scale);
            prop_assert_eq!(&out, &expected, "{}", kernels.name());
        }
    }

    #[test]
    fn distances_of_signs_are_exact(
        words in prop_oneof![1usize..20, Just(16)], slots in prop::collection::vec(0u32..20, 0..40), seed in any::<u64>()
    ) {
        let mut state = seed | 1;
        let mut next = || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; state };
        let rows: Vec<u8> = (0..20 * words).flat_map(|_| next().to_le_bytes()).collect();
        let planes: Vec<u64> = (0..PLANES * words).map(|_| next()).collect();
        let bit = |words: &[u64], at: usize| (words[at / 64] >> (at % 64) & 1) as i32;
        let distance = |&slot: &u32| -> i32 {
            let row = &rows[slot as usize * words * 8..][..words * 8];
            let differs = |at: usize, plane: usize| {
                i32::from(row[at / 8] >> (at % 8) & 1) ^ bit(&planes[plane * words..], at)
            };
            (0..words * 64).map(|at| differs(at, 0) + 2 * differs(at, 1)).sum()
        };
        let expected: Vec<i32> = slots.iter().map(distance).collect();
        for kernels in Kernels::available() {
            let mut out = vec![7; 3];
            kernels.score_signs(&rows[..], &slots, &planes, &mut out);
            prop_assert_eq!(&out, &expected, "{}", kernels.name());
        }
    }
}
