//! Stores to ask: drawn scenes embedded by nano, and rows of random numbers. Made through the library, in a folder that
//! goes away with its owner. Beside each, what a test needs to know the answer without asking: the rows as stored.

#![allow(dead_code, reason = "every test crate uses a part of this")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use viscache::batch::{self, Embedder};
use viscache::cache::{Cache, LoadOptions, NewCache, NewItem, RowsMode, Writer, decode_row, encode_row};
use viscache::flow::{App, Limits};
use viscache::index::BuildParams;
use viscache::media::Orientation;
use viscache::models::DeviceKind;
use viscache::models::encoder::{Encoded, Encoder, EncoderOptions};
use viscache::models::llm::{Llm, LlmOptions};
use viscache::store::{Access, ItemRecord, ModelSource, Recalls, RowType, Store};
use viscache::types::{CacheName, Embedding, Fingerprint, ItemId, Modality, Origin};

/// The cache of drawn scenes.
pub const SCENES: &str = "scenes";
/// Items of it.
pub const SCENE_COUNT: usize = 24;
/// The cache of random rows.
pub const ROWS: &str = "rows";
/// Components of its rows.
pub const ROWS_DIM: usize = 32;

/// An item as it is stored.
#[derive(Debug, Clone)]
pub struct Item {
    pub id: u64,
    pub uri: String,
    pub row: Vec<f32>,
}

pub fn encoder() -> Encoder {
    Encoder::open(&EncoderOptions {
        network: Default::default(),
        weights: None,
        sizes: None,
        modalities: None,
        device: DeviceKind::Cpu,
        dtype: None,
        threads: 2,
        orientation: Orientation::Apply,
        limits: Limits::default().media,
    })
    .unwrap()
}

/// The built-in decoder.
pub fn llm() -> Llm {
    let nano = LlmOptions::default();
    Llm::open(&nano).unwrap()
}

/// Embeds one thing, not through the code under test.
pub fn encode(encoder: &Encoder, modality: Modality, bytes: &[u8]) -> Encoded {
    let prepared = encoder.prepare(modality, bytes).unwrap();
    encoder.encode(&[prepared]).remove(0).unwrap()
}

/// The `i`th scene as a PNG file: a disc or a square, its colour and place given by `i`.
pub fn scene(i: usize) -> Vec<u8> {
    const SIDE: i64 = 96;
    let colours = [[220, 30, 30], [30, 160, 60], [40, 60, 220], [230, 210, 40], [150, 40, 170]];
    let (colour, disc) = (colours[i % colours.len()], i.is_multiple_of(2));
    let (cx, cy) = (24 + 12 * (i as i64 % 5), 24 + 16 * (i as i64 / 5 % 4));
    let radius = 10 + 3 * (i as i64 % 4);
    let picture = image::RgbImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
        let (dx, dy) = (i64::from(x) - cx, i64::from(y) - cy);
        let inside = match disc {
            true => dx * dx + dy * dy <= radius * radius,
            false => dx.abs() <= radius && dy.abs() <= radius,
        };
        image::Rgb(if inside { colour } else { [245, 245, 245] })
    });
    let mut png = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

/// `count` random unit rows.
pub fn random_rows(count: usize, dim: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(seed);
    let mut row = || {
        let row: Vec<f32> = (0..dim).map(|_| random.random_range(-1.0f32..1.0)).collect();
        Embedding::new(row).unwrap().unit().unwrap().into_vec()
    };
    (0..count).map(|_| row()).collect()
}

/// Makes the cache of scenes.
pub fn make_scenes(path: &Path) -> Vec<Item> {
    let encoder = encoder();
    let new = NewCache {
        dim: encoder.dim(),
        rows: RowType::F32,
        origin: encoder.origin().clone(),
        model: Some(ModelSource::default()),
    };
    let rows = (0..SCENE_COUNT).map(|i| encode(&encoder, Modality::Image, &scene(i)).embedding.into_vec());
    add(path, SCENES, &new, rows.collect(), Some(Modality::Image))
}

/// Makes a cache of random rows, stored as f16: an import of unknown origin.
pub fn make_rows(path: &Path, count: usize) -> Vec<Item> {
    let origin = Origin::of("import");
    let new = NewCache { dim: ROWS_DIM, rows: RowType::F16, origin, model: None };
    add(path, ROWS, &new, random_rows(count, ROWS_DIM, 7), None)
}

/// Puts rows into a cache that may exist and publishes a generation over everything in it.
pub fn add(
    path: &Path,
    cache: &str,
    new: &NewCache,
    rows: Vec<Vec<f32>>,
    modality: Option<Modality>,
) -> Vec<Item> {
    let items = put(path, cache, new, rows, modality);
    publish(path, cache, Recalls { rows: vec![(96, 1.0)], ..Recalls::default() });
    items
}

/// Publishes a generation over everything in a cache, of which so much is said to be found.
pub fn publish(path: &Path, cache: &str, recalls: Recalls) {
    let store = Store::open(path, Access::Write).unwrap();
    let mut writer = Writer::existing(&store, &CacheName::new(cache).unwrap()).unwrap();
    let params = BuildParams { m: 8, ef_construction: 32, threads: 1, ..BuildParams::default() };
    writer.index(&params, &Default::default(), |_| {}, |_, _, _| Ok(recalls)).unwrap();
}

fn put(
    path: &Path,
    cache: &str,
    new: &NewCache,
    rows: Vec<Vec<f32>>,
    modality: Option<Modality>,
) -> Vec<Item> {
    let store = Store::open(path, Access::Write).unwrap();
    let mut writer = Writer::open(&store, &CacheName::new(cache).unwrap(), new).unwrap();
    let first = writer.record().items as usize;
    let item = |(i, row): (usize, Vec<f32>)| {
        let uri = format!("{cache}/{:04}.png", first + i);
        let unit = Embedding::new(row).unwrap().unit().unwrap();
        let stored = decode_row(&encode_row(unit.as_slice(), new.rows), new.rows);
        let record = ItemRecord {
            digest: Fingerprint::of(uri.as_bytes()),
            uri: uri.clone(),
            modality,
            tags: BTreeMap::from([("number".to_owned(), (first + i).to_string())]),
        };
        (NewItem { id: None, embedding: unit, record }, uri, stored)
    };
    let (mut put, mut made) = (Vec::new(), Vec::new());
    for (new, uri, row) in rows.into_iter().enumerate().map(item) {
        put.push(new);
        made.push((uri, row));
    }
    let ids = writer.put(put, |_, _, _| {}).unwrap();
    ids.into_iter().zip(made).map(|(ItemId(id), (uri, row))| Item { id, uri, row }).collect()
}

/// A model that a server can ask.
pub fn embedder(encoder: Encoder) -> Embedder {
    Embedder::start(encoder, batch::Options::default()).unwrap()
}

/// Opens everything in a store as a server would.
pub fn app(path: &Path, encoder: Option<Encoder>, rows: RowsMode, limits: Limits) -> App {
    let store = Arc::new(Store::open(path, Access::Read).unwrap());
    let options = LoadOptions { rows, memory_budget: 1 << 30 };
    let expected = encoder.as_ref().map(|e| e.origin().clone());
    let records = store.caches().unwrap();
    let caches = records.into_iter().map(|record| {
        let cache = Cache::open(&store, &record.name, expected.as_ref(), options);
        (record.name, cache.map(Arc::new).map_err(|e| e.to_string()))
    });
    App::new(store.clone(), caches.collect(), None, encoder.map(embedder), limits)
}

/// The reference's answer, written down a second time: mix, softmax over the `k` best of all items, prototype, mix.
pub struct Expected {
    pub vector: Vec<f64>,
    /// Id, score and weight, best first.
    pub neighbors: Vec<(u64, f64, f64)>,
}

/// `Σ wᵢ/(Σw + 1e-6) · uᵢ/‖uᵢ‖`.
pub fn mixed(parts: &[(&[f32], f64)]) -> Vec<f64> {
    let sum: f64 = parts.iter().map(|(_, weight)| weight).sum::<f64>() + 1e-6;
    let mut mixed = vec![0.0; parts[0].0.len()];
    for (values, weight) in parts {
        let unit = unit(&values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
        mixed.iter_mut().zip(unit).for_each(|(m, u)| *m += u * weight / sum);
    }
    mixed
}

pub fn unit(values: &[f64]) -> Vec<f64> {
    let norm = norm(values);
    values.iter().map(|v| v / norm).collect()
}

pub fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

pub fn enhanced(query: &[f64], items: &[Item], k: usize, temperature: f64, weight: f64) -> Expected {
    let dot = |row: &[f32]| query.iter().zip(row).map(|(q, v)| q * f64::from(*v)).sum::<f64>();
    let mut scored: Vec<(f64, &Item)> = items.iter().map(|item| (dot(&item.row), item)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.truncate(k);
    let best = scored[0].0;
    let shares: Vec<f64> = scored.iter().map(|(score, _)| ((score - best) * temperature).exp()).collect();
    let sum: f64 = shares.iter().sum();
    let mut prototype = vec![0.0; query.len()];
    for ((_, item), share) in scored.iter().zip(&shares) {
        prototype.iter_mut().zip(&item.row).for_each(|(p, v)| *p += share / sum * f64::from(*v));
    }
    let prototype = unit(&prototype);
    let vector: Vec<f64> =
        query.iter().zip(prototype).map(|(q, p)| (1.0 - weight) * q + weight * p).collect();
    let neighbors = scored.iter().zip(&shares).map(|((score, item), share)| (item.id, *score, share / sum));
    Expected { vector: unit(&vector), neighbors: neighbors.collect() }
}
