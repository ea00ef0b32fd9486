//! The front ends against the published loaders: pictures to the last bit where the file is lossless, texts to the id.

use std::collections::BTreeMap;

use viscache::media::image::{self, Rgb};
use viscache::media::{ImageOptions, Limits, Orientation};
use viscache::text::ClipTokenizer;

use crate::common::{Limit, Tally, Tensors, data, json, parts, read, say, short};

/// Of the published encoder, for pictures that no golden value belongs to.
const SIDE: usize = 224;
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

fn options(side: usize, orientation: Orientation) -> ImageOptions {
    ImageOptions { side, orientation, limits: Limits::default() }
}

/// `(v/255 − mean)/std`, channels first: what the reference makes of its pixels.
fn normalised(pixels: &[i64]) -> Vec<f32> {
    let plane =
        |c: usize| pixels.iter().skip(c).step_by(3).map(move |&v| (v as f32 / 255.0 - MEAN[c]) / STD[c]);
    (0..3).flat_map(plane).collect()
}

#[test]
fn pictures_are_resized_cropped_and_normalised_as_the_loader_does() {
    let exact = Limit { absolute: 0.0, turn: 1e-12 };
    for root in parts("imagebind/preprocess/image.json") {
        let rows = json(&root);
        let expected = Tensors::open(&root.with_file_name("image.safetensors"));
        let assets = root.parent().unwrap().parent().unwrap().join("assets");
        let (mut lossless, mut jpeg) = (0, 0);
        let mut tally = Tally::new(short(&root));
        for (file, row) in rows.as_object().unwrap() {
            let known_as = row["identical_to"].as_str().unwrap_or(file);
            let pixels = expected.get(&format!("{known_as}.u8"));
            let options = options(pixels.shape[0], Orientation::Reference);
            let bytes = read(&assets.join(file));
            let picture = image::decode(&bytes, &options).unwrap();
            let size = [row["size_wh"][0].as_u64().unwrap(), row["size_wh"][1].as_u64().unwrap()];
            tally.equal(&format!("{file}, size"), &[picture.width as u64, picture.height as u64], &size);
            let received: Vec<i64> =
                image::resize_and_crop(&picture, options.side).iter().map(|&v| i64::from(v)).collect();
            if file.ends_with(".jpg") {
                jpeg += 1;
                jpeg_levels(&mut tally, file, &received, pixels.wholes());
                continue;
            }
            lossless += 1;
            tally.equal(file, &received, pixels.wholes());
            let (values, side) = (image::prepare(&bytes, &options).unwrap(), options.side);
            tally.floats(&format!("{file}, normalised"), &values, &normalised(pixels.wholes()), side, exact);
            if let Some(stored) = expected.find(&format!("{known_as}.normalized")) {
                tally.floats(&format!("{file}, normalised, stored"), &values, stored.floats(), side, exact);
            }
        }
        say(&format!("{}: {lossless} lossless files, {jpeg} JPEGs", short(&root)));
        tally.finish();
    }
}

/// Another JPEG decoder may be a few levels off: 1.0 in the mean, and 6 in all but a thousandth of the values.
fn jpeg_levels(tally: &mut Tally, file: &str, received: &[i64], expected: &[i64]) {
    assert_eq!(received.len(), expected.len(), "{file}");
    let mut levels: BTreeMap<i64, usize> = BTreeMap::new();
    received.iter().zip(expected).for_each(|(r, e)| *levels.entry((r - e).abs()).or_default() += 1);
    let n = expected.len() as f64;
    let mean = levels.iter().map(|(&level, &count)| level as f64 * count as f64).sum::<f64>() / n;
    let beyond = levels.range(7..).map(|(_, count)| count).sum::<usize>() as f64 / n;
    let worst = *levels.keys().last().unwrap();
    say(&format!("{file}: mean {mean:.3} levels, {:.4} % beyond 6, worst {worst}", beyond * 100.0));
    let otherwise =
        || format!("mean {mean:.3} levels (limit 1.0), {beyond:.5} beyond 6 (limit 0.001), worst {worst}");
    tally.check(file, mean <= 1.0 && beyond <= 0.001, otherwise);
}

#[test]
fn texts_become_the_reference_s_ids() {
    for path in parts("imagebind/preprocess/text.json") {
        let file = json(&path);
        let tokenizer = ClipTokenizer::clip(file["context_length"].as_u64().unwrap() as usize);
        let mut tiers: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
        let mut tally = Tally::new(short(&path));
        for (i, row) in file["rows"].as_array().unwrap().iter().enumerate() {
            let (text, tier) = (row["text"].as_str().unwrap(), row["tier"].as_str().unwrap());
            let expected: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
            let received = tokenizer.encode(text).unwrap();
            let name = format!("row {i} ({tier}) {text:?}, which the reference reads as {}", row["cleaned"]);
            let counts = tiers.entry(tier).or_default();
            counts[usize::from(received != expected)] += 1;
            tally.equal(&name, &received, &expected);
        }
        for (tier, [same, other]) in tiers {
            say(&format!("{}: tier {tier}: {same} rows equal, {other} not", short(&path)));
        }
        tally.finish();
    }
}

/// Every file of the family shows one picture of 384×240, stored turned and marked so.
#[test]
fn exif_marks_turn_a_picture_upright() {
    let Some(folder) = data("nasty/images") else { return };
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut family: Vec<_> = entries.filter(|path| short(path).contains("exif-orientation-")).collect();
    family.sort();
    let mut tally = Tally::new("EXIF family");
    let mut first: Option<Rgb> = None;
    for path in &family {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let bytes = read(path);
        let upright = image::decode(&bytes, &options(SIDE, Orientation::Apply)).unwrap();
        let stored = image::decode(&bytes, &options(SIDE, Orientation::Reference)).unwrap();
        tally.equal(&format!("{name}, size"), &[upright.width, upright.height], &[384, 240]);
        tally.check(&name, stored != upright, || "the mark changed nothing".into());
        let first = first.get_or_insert_with(|| upright.clone());
        if first.data.len() != upright.data.len() {
            continue;
        }
        // Each was compressed after it was turned, so blocks differ by a little; a wrong turn differs by a lot.
        let (same, turned) = (mean_difference(first, &upright), mean_difference(first, &half_turn(&upright)));
        say(&format!("{name}: {same:.2} levels from the first, {turned:.1} when upside down"));
        tally.check(&name, same < 2.0 && turned > 20.0, || format!("{same:.2} levels from the first"));
    }
    tally.check("family", family.len() > 1, || format!("{} files", family.len()));
    tally.finish();
}

fn mean_difference(a: &Rgb, b: &Rgb) -> f64 {
    let sum: f64 = a.data.iter().zip(&b.data).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    sum / a.data.len() as f64
}

fn half_turn(picture: &Rgb) -> Rgb {
    let data = picture.data.chunks_exact(3).rev().flatten().copied().collect();
    Rgb { data, ..*picture }
}

/// The manifest says of each awkward picture whether it must be taken or refused.
#[test]
fn awkward_pictures_are_taken_or_refused_as_their_manifest_says() {
    let Some(manifest) = data("nasty/manifest.tsv") else { return };
    let mut tally = Tally::new("awkward pictures");
    for line in String::from_utf8(read(&manifest)).unwrap().lines().filter(|line| line.starts_with("images/"))
    {
        let columns: Vec<&str> = line.split('\t').collect();
        let (file, expect) = (columns[0], columns[2]);
        let result =
            image::prepare(&read(&manifest.with_file_name(file)), &options(SIDE, Orientation::Apply));
        let outcome = result.map(|values| (values.len(), values.iter().all(|v| v.is_finite())));
        let holds = match (expect, &outcome) {
            ("ok" | "either", Ok(made)) => *made == (3 * SIDE * SIDE, true),
            ("reject" | "either", Err(e)) => !e.to_string().is_empty(),
            _ => false,
        };
        tally.check(file, holds, || format!("expected `{expect}`, received {outcome:?}"));
    }
    tally.finish();
}
