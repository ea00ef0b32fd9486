//! Caches of a classifier's features.

use std::path::Path;

use viscache::models::encoder::{Encoder, EncoderOptions, Network};
use viscache::types::Modality;

use crate::classifier;
use crate::common::{Bench, Ran, draw, finish};

fn build(bench: &Bench, words: &str, weights: &Path, folder: &Path) -> Ran {
    let mut command = bench.command(&format!("build {words} --images"), &[folder]);
    command.arg("--weights").arg(weights);
    finish(command)
}

#[test]
fn rows_are_the_features_and_the_record_names_the_network() {
    let bench = Bench::new();
    let (folder, weights) = (bench.path("in"), bench.path("a model.safetensors"));
    classifier::write(&weights, &classifier::small(6));
    draw(&folder, 0, 12);
    build(&bench, "--cache a --model illama", &weights, &folder).expect(0);
    let record = bench.record("a");
    assert_eq!((record.items, record.dim), (12, 64));
    let source = record.model.clone().unwrap();
    assert_eq!((source.network.as_deref(), &source.weights), (Some("illama"), &Some(weights.clone())));
    let encoder = Encoder::open(&EncoderOptions {
        network: Network::Illama(None),
        weights: Some(weights.clone()),
        sizes: None,
        modalities: None,
        device: Default::default(),
        dtype: None,
        threads: 1,
        orientation: Default::default(),
        limits: Default::default(),
    })
    .unwrap();
    assert_eq!(record.origin.difference(encoder.origin()), None);
    let rows = bench.rows("a");
    for (id, item) in bench.items("a") {
        let path = item.uri.strip_prefix("file://").unwrap_or(&item.uri);
        let input = encoder.prepare(Modality::Image, &std::fs::read(path).unwrap()).unwrap();
        let unit = encoder.encode(&[input]).remove(0).unwrap().embedding.unit().unwrap();
        let off = unit.as_slice().iter().zip(&rows[&id]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-6, "{path}: {off}");
    }
    bench.assert_sound();

    // Another model's rows do not join it, nor those of its own weights that see pictures in another way.
    let longer = bench.run("build --cache a --images", &[&folder]).expect(1);
    assert!(longer.err.contains("128 components, cache `a` has 64"), "{}", longer.err);
    let others = bench.path("other.safetensors");
    classifier::write_certain(&others, &[0.5, 0.5]);
    let other = build(&bench, "--cache a --model illama", &others, &folder).expect(1);
    assert!(other.err.contains("model weights differ"), "{}", other.err);
    let turned =
        build(&bench, "--cache a --model illama --orientation reference", &weights, &folder).expect(1);
    assert!(turned.err.contains("preprocessing differs"), "{}", turned.err);
    let eight =
        build(&bench, "--cache eight --model illama --encoder-dtype q8_0", &weights, &folder).expect(0);
    assert!(eight.out.contains("q8_0 against f32 on 12 pictures"), "{}", eight.out);
}

#[test]
fn a_model_that_does_not_fit_makes_no_store() {
    let bench = Bench::new();
    let (folder, weights) = (bench.path("in"), bench.path("small.safetensors"));
    classifier::write(&weights, &classifier::small(6));
    draw(&folder, 0, 2);
    let base = build(&bench, "--cache a --model illama-base", &weights, &folder).expect(1);
    assert!(base.err.contains("width 64") && base.err.contains("illama-base has width 768"), "{}", base.err);
    let unnamed = build(&bench, "--cache a", &weights, &folder).expect(1);
    assert!(unnamed.err.contains("is an iLLaMA; name its size"), "{}", unnamed.err);
    let words = build(&bench, "--cache a --model resnet", &weights, &folder).expect(2);
    assert!(words.err.contains("illama-tiny"), "{}", words.err);
    let none = bench.run("build --cache a --model illama-tiny --images", &[&folder]).expect(2);
    assert!(none.err.contains("--weights"), "{}", none.err);
    assert!(!bench.store.exists());
}
