//! Codes that a build chooses by measuring, on rows that nobody here has shaped or that are hard for codes: low dimensions, tight
//! ranges, real features, a small model's pictures asked by captions. With the defaults, nearly all neighbours must be found.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use viscache::cache::{
    Cache, LoadOptions, NewCache, NewItem, QuerySample, RECALL_SAMPLE, RowsMode, Writer, calibrate,
};
use viscache::index::{BuildParams, SearchParams, Searcher, exact};
use viscache::media::npy;
use viscache::models::DeviceKind;
use viscache::models::encoder::{Encoder, EncoderOptions};
use viscache::scenes::{Set, Wording, draw, png};
use viscache::store::{Access, ItemRecord, QuerySource, RowType, Store};
use viscache::types::{CacheName, Embedding, Fingerprint, ItemId, Modality, Origin};

use crate::common;

/// What a build chose, and the recall of the default search.
#[derive(Debug)]
struct Outcome {
    queries: QuerySource,
    recall: f64,
}

/// Builds a cache as `index-builder` does and asks it.
///
/// * `rows`: unit rows. `sample`: queries of the kind that will ask, if there is one.
fn outcome(rows: &[Vec<f32>], sample: Option<&[Vec<f32>]>, queries: &[Vec<f32>]) -> Outcome {
    let (folder, name) = (tempfile::tempdir().unwrap(), CacheName::new("chosen").unwrap());
    let store = Arc::new(Store::open(folder.path(), Access::Write).unwrap());
    let new = NewCache { dim: rows[0].len(), rows: RowType::F32, origin: Origin::of("test"), model: None };
    let mut writer = Writer::open(&store, &name, &new).unwrap();
    let item = |(i, row): (usize, &Vec<f32>)| NewItem {
        id: None,
        embedding: Embedding::new(row.clone()).unwrap(),
        record: ItemRecord {
            uri: i.to_string(),
            modality: None,
            digest: Fingerprint::of(&i.to_le_bytes()),
            tags: BTreeMap::new(),
        },
    };
    writer.put(rows.iter().enumerate().map(item).collect(), |_, _, _| ()).unwrap();
    let held_out = sample.map(|sample| ("text".to_owned(), sample.to_vec())).into_iter().collect();
    let sample = QuerySample { repair: Vec::new(), held_out };
    let report = writer
        .index(
            &BuildParams::choosing(),
            &sample,
            |_| (),
            |index, rows, asked| calibrate(index, rows, RECALL_SAMPLE, asked),
        )
        .unwrap();
    drop(writer);
    let choice = report.choice.unwrap();
    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: 1 << 30 };
    let snapshot = Cache::open(&store, &name, None, options).unwrap().snapshot();
    assert_eq!(snapshot.index().codes().word(), choice.codes);
    assert_eq!(snapshot.rescore(&SearchParams::default()), choice.rescore);
    // What is stored is what is searched for.
    let stored: Vec<f32> =
        rows.iter().flat_map(|row| Embedding::new(row.clone()).unwrap().unit().unwrap().into_vec()).collect();
    let (mut searcher, mut found) = (Searcher::default(), 0.0);
    for query in queries {
        let truth =
            exact::search(&stored, query, 10).into_iter().map(|scored| ItemId(u64::from(scored.slot.0)));
        let query = Embedding::new(query.clone()).unwrap();
        let hits = snapshot.search(&mut searcher, &query, 10, &SearchParams::default()).unwrap().hits;
        let ids: Vec<ItemId> = hits.iter().map(|hit| hit.id).collect();
        found += exact::recall(&truth.collect::<Vec<_>>(), &ids);
    }
    Outcome { queries: choice.queries, recall: found / queries.len() as f64 }
}

fn random(seed: u64, count: usize, dim: usize) -> Vec<Vec<f32>> {
    let mut random = Pcg64::seed_from_u64(seed);
    let row = |_| (0..dim).map(|_| random.random_range(-1.0f32..1.0)).collect();
    (0..count).map(row).collect()
}

fn unit(rows: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    rows.into_iter().map(|row| Embedding::new(row).unwrap().unit().unwrap().into_vec()).collect()
}

#[test]
fn rows_of_few_components_and_of_many_are_found() {
    for dim in [2, 3, 8, 33, 100, 768] {
        let (rows, queries) = (unit(random(1, 2500, dim)), random(2, 200, dim));
        for sample in [None, Some(&queries[100..])] {
            let outcome = outcome(&rows, sample, &queries[..100]);
            assert!(outcome.recall >= 0.95, "{dim} components: {outcome:?}");
            let expected = if sample.is_some() { QuerySource::Given } else { QuerySource::Made };
            assert_eq!(outcome.queries, expected);
        }
    }
}

#[test]
fn rows_that_are_nearly_the_same_are_told_apart() {
    // Ten rows, each three hundred times with a little noise: the ten best of a query are within thousandths of each other.
    let (base, noise) = (unit(random(3, 10, 64)), random(4, 3000, 64));
    for spread in [1e-2f32, 1e-3] {
        let near = |(i, noise): (usize, &Vec<f32>)| {
            base[i % 10].iter().zip(noise).map(|(v, n)| v + spread * n).collect()
        };
        let rows = unit(noise.iter().enumerate().map(near).collect());
        let queries = random(5, 150, 64);
        let outcome = outcome(&rows, Some(&queries[100..]), &queries[..100]);
        assert!(outcome.recall >= 0.95, "{spread}: {outcome:?}");
    }
    // All at right angles, each twice: nine of any ten best score next to nothing.
    let rows: Vec<Vec<f32>> =
        (0..512).map(|i| (0..256).map(|at| f32::from(u8::from(at == i % 256))).collect()).collect();
    let queries = random(6, 150, 256);
    let outcome = outcome(&rows, Some(&queries[100..]), &queries[..100]);
    assert!(outcome.recall >= 0.95, "{outcome:?}");
}

#[test]
fn features_of_a_published_model_are_found() {
    let (Some(rows), Some(photos)) =
        (common::data("squeezenet-cifar10-3000.npy"), common::data("squeezenet-photos-200.npy"))
    else {
        return;
    };
    let read = |path: &std::path::Path| {
        let matrix = npy::read(&common::read(path)).unwrap();
        unit(matrix.values.chunks_exact(matrix.dim).map(<[f32]>::to_vec).collect())
    };
    let (rows, photos) = (read(&rows), read(&photos));
    let (rows, held_out) = rows.split_at(2800);
    for (what, queries) in [("the same kind", held_out), ("photographs", &photos[..])] {
        for sample in [None, Some(&queries[100..])] {
            let outcome = outcome(rows, sample, &queries[..100]);
            assert!(outcome.recall >= if sample.is_some() { 0.95 } else { 0.9 }, "{what}: {outcome:?}");
        }
    }
}

#[test]
fn captions_find_the_pictures_of_the_nano_model() {
    let options = EncoderOptions {
        network: Default::default(),
        weights: None,
        sizes: None,
        modalities: Some(vec![Modality::Image, Modality::Text]),
        device: DeviceKind::Cpu,
        dtype: None,
        threads: 2,
        orientation: Default::default(),
        limits: Default::default(),
    };
    let encoder = Encoder::open(&options).unwrap();
    let embed = |modality, contents: Vec<Vec<u8>>| -> Vec<Vec<f32>> {
        let inputs: Vec<_> = contents.iter().map(|bytes| encoder.prepare(modality, bytes).unwrap()).collect();
        let embedded = inputs.chunks(64).flat_map(|inputs| encoder.encode(inputs));
        embedded.map(|encoded| encoded.unwrap().embedding.into_vec()).collect()
    };
    let scene = |i| {
        let (scene, style, mut random) = Set::Train.scene(1, i);
        png(&draw(&scene, style, &mut random)).unwrap()
    };
    let pictures = embed(Modality::Image, (0..1500).map(scene).collect());
    let mut random = Pcg64::seed_from_u64(7);
    let caption = |i| Wording::HeldOut.of(&Set::Test.scene(1, i).0, &mut random).into_bytes();
    let texts = embed(Modality::Text, (0..200).map(caption).collect());
    for (sample, least) in [(None, 0.9), (Some(&texts[100..]), 0.95)] {
        let outcome = outcome(&pictures, sample, &texts[..100]);
        assert!(outcome.recall >= least, "{outcome:?}");
    }
}
