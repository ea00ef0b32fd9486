//! The encoders against the published program, tensor by tensor.
//!
//! Folders are discovered: whatever lies under `imagebind/` with a `config.json` that has the part of an encoder is loaded
//! with the sizes in that file and run on every stored input. Every stored intermediate is compared, so a difference
//! names the layer it begins in. The limit is 5e-5 × max(1, largest value): the published program in f32 and an
//! independent f64 twin of it differ by a fifth of that at most.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use viscache::media::{ImageOptions, Limits, MediaLimits, Orientation, image};
use viscache::models::encoder::{Encoder, EncoderOptions};
use viscache::models::imagebind::{Config, Encoded, ImageBind, ignore};
use viscache::models::weights::Weights;
use viscache::models::{DeviceKind, Error, Placement};
use viscache::text::ClipTokenizer;
use viscache::types::Modality;

use crate::common::{Golden, Limit, Tally, Tensors, Values, json, max_abs, parts, read, say, short};

/// 1 − cosine that rounding leaves of a row, ample: f32 sums leave about 1e-11, a wrong LayerNorm epsilon 1e-4 and more.
const TURN: f64 = 1e-8;

fn limit(expected: &[f32]) -> Limit {
    Limit { absolute: 5e-5 * max_abs(expected).max(1.0), turn: TURN }
}

/// The checkpoint's word for what we embed.
fn tower(modality: Modality) -> &'static str {
    match modality {
        Modality::Image | Modality::Video => "vision",
        other => other.word(),
    }
}

/// A model of the golden collection.
struct Folder {
    path: PathBuf,
    name: String,
    config: Config,
    modalities: Vec<Modality>,
}

impl Folder {
    fn weights(&self, extension: &str) -> Option<PathBuf> {
        Some(self.path.join(format!("{}.{extension}", self.name))).filter(|path| path.exists())
    }

    fn load(&self, weights: &Path) -> ImageBind {
        let weights = Weights::open(weights).unwrap();
        ImageBind::load(&weights, &self.config, &self.modalities, &Placement::cpu()).unwrap()
    }

    fn file(&self, name: &str) -> Option<Tensors> {
        Some(self.path.join(name)).filter(|path| path.exists()).map(|path| Tensors::open(&path))
    }

    /// The stored inputs of the encoders we have, as modality, case and tensor.
    fn cases(&self) -> Vec<(Modality, String, Golden)> {
        let Some(inputs) = self.file("inputs.safetensors") else { return vec![] };
        let mut others = BTreeSet::new();
        let mut cases = vec![];
        for (name, input) in inputs.iter() {
            let (word, case) = name.split_once('.').unwrap();
            match self.modalities.iter().find(|modality| tower(**modality) == word) {
                Some(modality) => cases.push((*modality, case.to_owned(), input.clone())),
                None => _ = others.insert(word.to_owned()),
            }
        }
        if !others.is_empty() {
            say(&format!("skipped: {} of {} (no such encoder here)", join(others), short(&self.path)));
        }
        cases
    }
}

fn join(words: impl IntoIterator<Item = String>) -> String {
    words.into_iter().collect::<Vec<_>>().join(", ")
}

/// Every model under `imagebind/` that has an encoder of ours.
fn folders() -> Vec<Folder> {
    let mut folders = vec![];
    for root in parts("imagebind") {
        let entries = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<PathBuf> = entries.filter(|path| path.join("config.json").exists()).collect();
        paths.sort();
        for path in paths {
            let text = String::from_utf8(read(&path.join("config.json"))).unwrap();
            if text.contains("\"num_group\"") {
                say(&format!("skipped here: {} (point clouds, see parity_point)", short(&path)));
                continue;
            }
            let config = Config::from_json(&text).unwrap();
            let modalities = config.modalities();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            folders.push(Folder { path, name, config, modalities });
        }
    }
    assert!(!folders.is_empty(), "no model found: not even the one in tests/golden");
    folders
}

fn tensor(golden: &Golden) -> Tensor {
    match &golden.values {
        Values::Float(values) => Tensor::from_slice(values, golden.shape.as_slice(), &Device::Cpu).unwrap(),
        Values::Whole(values) => Tensor::from_slice(values, golden.shape.as_slice(), &Device::Cpu).unwrap(),
    }
}

fn encode(
    model: &ImageBind,
    modality: Modality,
    input: &Tensor,
    observe: &mut dyn FnMut(&str, &Tensor),
) -> Result<Encoded, Error> {
    model.encode(modality, input, observe)
}

fn flat(tensor: &Tensor) -> (Vec<usize>, Vec<f32>) {
    (tensor.dims().to_vec(), tensor.flatten_all().unwrap().to_vec1().unwrap())
}

/// Every tensor that an encoder shows on its way, and its two results.
fn observed(
    model: &ImageBind,
    modality: Modality,
    input: &Golden,
) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut seen = BTreeMap::new();
    let mut observe = |name: &str, tensor: &Tensor| {
        assert!(seen.insert(name.to_owned(), flat(tensor)).is_none(), "`{name}` was shown twice");
    };
    let encoded = encode(model, modality, &tensor(input), &mut observe).unwrap();
    assert_eq!(seen["output"], flat(&encoded.output), "what is returned is not what was shown");
    assert_eq!(seen["prenorm"], flat(&encoded.prenorm), "what is returned is not what was shown");
    seen
}

#[test]
fn every_stored_tensor_of_every_model_is_reproduced() {
    for folder in folders() {
        let Some(outputs) = folder.file("outputs.safetensors") else {
            panic!("{} has no outputs", folder.name)
        };
        let cases = folder.cases();
        if cases.is_empty() {
            say(&format!("skipped here: {} (its inputs are texts, see below)", short(&folder.path)));
            continue;
        }
        let model = folder.load(&folder.weights("safetensors").unwrap());
        let mut tally = Tally::new(format!("{}, {} cases", short(&folder.path), cases.len()));
        let mut claimed = BTreeSet::new();
        for (modality, case, input) in &cases {
            let seen = observed(&model, *modality, input);
            let prefix = format!("{}.{case}.", tower(*modality));
            let before = claimed.len();
            for (what, expected) in outputs.under(&prefix) {
                let name = format!("{prefix}{what}");
                claimed.insert(name.clone());
                let Some((shape, received)) = seen.get(what) else {
                    tally.check(&name, false, || "the encoder never shows it".into());
                    continue;
                };
                tally.equal(&format!("{name}, shape"), shape, &expected.shape);
                let width = *expected.shape.last().unwrap();
                tally.floats(&name, received, expected.floats(), width, limit(expected.floats()));
            }
            tally.check(&prefix, claimed.len() > before, || "no output is stored for this input".into());
        }
        let ours =
            |name: &&str| folder.modalities.iter().any(|m| name.starts_with(&format!("{}.", tower(*m))));
        let names: Vec<&str> = outputs.iter().map(|(name, _)| name).filter(ours).collect();
        for name in names {
            tally.check(name, claimed.contains(name), || "stored, but no input leads to it".into());
        }
        tally.finish();
    }
}

#[test]
fn a_pth_and_a_safetensors_file_of_one_model_are_the_same_model() {
    let mut tally = Tally::new("containers");
    for folder in folders() {
        let (Some(safetensors), Some(pth)) = (folder.weights("safetensors"), folder.weights("pth")) else {
            say(&format!("skipped: {} (no .pth)", short(&folder.path)));
            continue;
        };
        let (ours, theirs) = (Weights::open(&safetensors).unwrap(), Weights::open(&pth).unwrap());
        let names = |weights: &Weights| weights.names().map(str::to_owned).collect::<Vec<_>>();
        tally.equal(&format!("{}, names", folder.name), &names(&theirs), &names(&ours));
        for (name, golden) in Tensors::open(&safetensors).iter() {
            let (a, b) =
                (ours.values(name, &golden.shape).unwrap(), theirs.values(name, &golden.shape).unwrap());
            tally.equal(name, &b, &a);
            tally.equal(name, &a, golden.floats());
        }
        let prints = [ours.fingerprint().unwrap(), theirs.fingerprint().unwrap()];
        tally.equal(&format!("{}, fingerprint", folder.name), &prints[1..], &prints[..1]);
        let (ours, theirs) = (folder.load(&safetensors), folder.load(&pth));
        for (modality, case, input) in folder.cases() {
            let (a, b) = (observed(&ours, modality, &input), observed(&theirs, modality, &input));
            tally.check(&case, a == b, || "equal weights gave unequal tensors".into());
        }
    }
    if tally.is_empty() {
        return say("skipped: containers (no folder here has both)");
    }
    tally.finish();
}

#[test]
fn a_logit_scale_beyond_100_is_clamped() {
    let mut found = false;
    for folder in folders() {
        let Some(clamped) = folder.file("clamped.safetensors") else { continue };
        found = true;
        let log_scale = clamped.get("text.log_logit_scale").floats();
        assert!(log_scale[0].exp() > 100.0, "the stored scale does not reach the clamp");
        let path = folder.weights("safetensors").unwrap();
        let changed = with_tensor(&path, "modality_postprocessors.text.1.log_logit_scale", log_scale);
        let (model, plain) = (folder.load(changed.path()), folder.load(&path));
        let (_, _, ids) = folder.cases().into_iter().find(|(_, case, _)| case == "ids").unwrap();
        let seen = observed(&model, Modality::Text, &ids);
        let mut tally = Tally::new(format!("{}, clamped", short(&folder.path)));
        for what in ["head", "output"] {
            let expected = clamped.get(&format!("text.{what}"));
            tally.floats(what, &seen[what].1, expected.floats(), expected.shape[1], limit(expected.floats()));
        }
        let other = observed(&plain, Modality::Text, &ids);
        tally.check("output", seen["output"] != other["output"], || "the scale changes nothing".into());

        // Thermal's scale is a buffer, not a parameter, and is read all the same.
        let name = "modality_postprocessors.thermal.1.log_logit_scale";
        let changed = with_tensor(&path, name, clamped.get("thermal.log_logit_scale").floats());
        let map = folder.cases().into_iter().find(|(m, case, _)| *m == Modality::Thermal && case == "map");
        let seen = observed(&folder.load(changed.path()), Modality::Thermal, &map.unwrap().2);
        for what in ["head", "output"] {
            let expected = clamped.get(&format!("thermal.{what}"));
            tally.floats(what, &seen[what].1, expected.floats(), expected.shape[1], limit(expected.floats()));
        }
        tally.finish();
    }
    if !found {
        say("skipped: the clamp of the logit scale (no folder here has clamped.safetensors)");
    }
}

/// A copy of a safetensors file in which one tensor has other values.
fn with_tensor(path: &Path, name: &str, values: &[f32]) -> tempfile::NamedTempFile {
    let bytes = read(path);
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert!(file.names().contains(&name), "{} has no `{name}`", short(path));
    let replacement: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let tensors = file.iter().map(|(other, view)| {
        let data = if other == name { &replacement } else { view.data() };
        let view = safetensors::tensor::TensorView::new(view.dtype(), view.shape().to_vec(), data);
        (other.to_owned(), view.unwrap())
    });
    let changed = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(changed.path(), safetensors::serialize(tensors, None).unwrap()).unwrap();
    changed
}

/// A model whose inputs are the rows of `preprocess/text.json`: from ids, and from the texts through the front end.
#[test]
fn texts_of_the_real_vocabulary_from_ids_and_from_strings() {
    let mut found = false;
    for folder in folders() {
        let Some(outputs) = folder.file("outputs.safetensors").filter(|o| o.find("ids").is_some()) else {
            continue;
        };
        let text = folder.path.parent().unwrap().join("preprocess/text.json");
        if !text.exists() {
            say(&format!("skipped: {} (no texts beside it)", short(&folder.path)));
            continue;
        }
        found = true;
        let rows = json(&text)["rows"].as_array().unwrap().clone();
        let ids: Vec<Vec<i64>> =
            rows.iter().map(|row| serde_json::from_value(row["ids"].clone()).unwrap()).collect();
        let mut tally = Tally::new(format!("{}, {} texts", short(&folder.path), rows.len()));
        tally.equal("ids", &ids.concat(), outputs.get("ids").wholes());

        let path = folder.weights("safetensors").unwrap();
        let model = folder.load(&path);
        let input = Golden { shape: vec![ids.len(), ids[0].len()], values: Values::Whole(ids.concat()) };
        let seen = observed(&model, Modality::Text, &input);
        for what in ["head", "output"] {
            let expected = outputs.get(what);
            tally.floats(what, &seen[what].1, expected.floats(), expected.shape[1], limit(expected.floats()));
        }

        // The same from strings, where the front end finds the reference's ids; where not is parity_preprocess's matter.
        let encoder = Encoder::open(&options(&folder, &path, vec![Modality::Text])).unwrap();
        let tokenizer = ClipTokenizer::clip(ids[0].len());
        for (i, row) in rows.iter().enumerate() {
            let text = row["text"].as_str().unwrap();
            let same =
                tokenizer.encode(text).unwrap().iter().map(|&id| i64::from(id)).eq(ids[i].iter().copied());
            if !same {
                say(&format!(
                    "skipped: row {i} from its string, {text:?} (other ids, see parity_preprocess)"
                ));
                continue;
            }
            let prepared = encoder.prepare(Modality::Text, text.as_bytes()).unwrap();
            let encoded = encoder.encode(&[prepared]).remove(0).unwrap();
            let expected = [outputs.get("head").row(i), outputs.get("output").row(i)];
            let received = [encoded.prenorm.as_slice(), encoded.embedding.as_slice()];
            for (received, expected) in received.into_iter().zip(expected) {
                tally.floats(&format!("row {i}"), received, expected, expected.len(), limit(expected));
            }
        }
        tally.finish();
    }
    if !found {
        say("skipped: texts of the real vocabulary (no folder here stores ids with its outputs)");
    }
}

fn options(folder: &Folder, weights: &Path, modalities: Vec<Modality>) -> EncoderOptions {
    EncoderOptions {
        network: Default::default(),
        weights: Some(weights.to_owned()),
        sizes: Some(folder.path.join("config.json")),
        modalities: Some(modalities),
        device: DeviceKind::Cpu,
        dtype: None,
        threads: 1,
        orientation: Orientation::Reference,
        limits: MediaLimits::default(),
    }
}

/// Pictures through `media::image::prepare`, and again through the encoder with its front end; sounds through the latter.
#[test]
fn picture_and_sound_files_end_to_end() {
    let mut found = false;
    for folder in folders() {
        let Some(expected) = folder.file("end_to_end.safetensors") else { continue };
        found = true;
        let path = folder.weights("safetensors").unwrap();
        let model = folder.load(&path);
        let encoder = Encoder::open(&options(&folder, &path, vec![Modality::Image])).unwrap();
        let side = folder.config.vision.as_ref().unwrap().image_size[0];
        let options = ImageOptions { side, orientation: Orientation::Reference, limits: Limits::default() };
        let mut tally = Tally::new(format!("{}, end to end", short(&folder.path)));
        let sounds = Encoder::open(&self::options(&folder, &path, vec![Modality::Audio])).unwrap();
        for (file, expected) in expected.under("audio.") {
            let bytes = read(&folder.path.parent().unwrap().join("assets").join(file));
            let prepared = sounds.prepare(Modality::Audio, &bytes).unwrap();
            let encoded = sounds.encode(&[prepared]).remove(0).unwrap();
            // Spectrograms differ by the reference's own noise; that leaves 1e-3 of an output of 7.
            let limit = Limit { absolute: 1.5e-3 * max_abs(expected.floats()).max(1.0), turn: 1e-5 };
            tally.floats(file, encoded.embedding.as_slice(), expected.floats(), expected.shape[1], limit);
        }
        for (file, expected) in expected.under("vision.") {
            // A lossless file has the reference's pixels. A JPEG has those of another decoder: ±3 levels of noise
            // move an output by up to 4e-2. So does the same picture stored losslessly as the reference decoded it,
            // but by nothing.
            let decoded = file.replace(".jpg", "_decoded.png");
            let lossy = Limit { absolute: 4e-2, turn: 1e-2 };
            let runs = match file.ends_with(".jpg") {
                true => vec![(file, lossy), (decoded.as_str(), limit(expected.floats()))],
                false => vec![(file, limit(expected.floats()))],
            };
            for (file, limit) in runs {
                let bytes = read(&folder.path.parent().unwrap().join("assets").join(file));
                let values = image::prepare(&bytes, &options).unwrap();
                let input = Golden { shape: vec![1, 3, side, side], values: Values::Float(values) };
                let received = &observed(&model, Modality::Image, &input)["output"].1;
                tally.floats(file, received, expected.floats(), expected.shape[1], limit);
                let prepared = encoder.prepare(Modality::Image, &bytes).unwrap();
                let encoded = encoder.encode(&[prepared]).remove(0).unwrap();
                tally.floats(file, encoded.embedding.as_slice(), expected.floats(), expected.shape[1], limit);
            }
        }
        tally.finish();
    }
    if !found {
        say("skipped: files end to end (no folder here has end_to_end.safetensors)");
    }
}

/// What the published program fails on, or runs by accident, is an error that names the shape.
#[test]
fn inputs_without_an_answer_are_errors() {
    let mut tally = Tally::new("inputs without an answer");
    for folder in folders() {
        let model = folder.load(&folder.weights("safetensors").unwrap());
        let mut refused = |modality: Modality, what: &str, input: &Tensor| {
            let result =
                encode(&model, modality, input, &mut ignore).map(|encoded| encoded.output.dims().to_vec());
            let named = matches!(&result, Err(Error::Input { received, why })
                if received.ends_with(&input.dims()[input.dims().len().saturating_sub(2)..]) && !why.is_empty());
            tally.check(&format!("{}: {what}", folder.name), named, || format!("{result:?}"));
        };
        let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        if let Some(vision) = folder.config.vision.as_ref() {
            let ([_, kh, kw], [h, w]) = (vision.kernel, vision.image_size);
            let picture = |shape: &[usize]| zeros(shape, DType::F32);
            for frames in [4, 5, 8] {
                let clip = picture(&[1, 1, 3, frames, h, w]);
                refused(Modality::Image, &format!("a clip of {frames} frames"), &clip);
            }
            // Neither the trained number of patches nor a square.
            refused(Modality::Image, "2 patches", &picture(&[1, 3, kh, 2 * kw]));
            refused(Modality::Image, "a row too many", &picture(&[1, 3, h + kh, w]));
            refused(Modality::Image, "smaller than a patch", &picture(&[1, 3, kh - 1, w]));
            refused(Modality::Image, "five axes", &picture(&[1, 3, 2, h, w]));
            refused(Modality::Image, "one channel", &picture(&[1, 1, h, w]));
            refused(Modality::Image, "three axes", &picture(&[3, h, w]));
        }
        if let Some(text) = folder.config.text.as_ref() {
            let length = text.context_length;
            refused(Modality::Text, "an id short", &zeros(&[1, length - 1], DType::I64));
            refused(Modality::Text, "an id too many", &zeros(&[1, length + 1], DType::I64));
            refused(Modality::Text, "one axis", &zeros(&[length], DType::I64));
            for id in [-1, text.vocab_size as i64] {
                let ids = (zeros(&[1, length], DType::I64) + id as f64).unwrap();
                refused(Modality::Text, &format!("id {id}"), &ids);
            }
        }
        if let Some(audio) = folder.config.audio.as_ref() {
            let (bands, columns) = (audio.num_mel_bins, audio.target_len);
            let sound = |shape: &[usize]| zeros(shape, DType::F32);
            refused(Modality::Audio, "a column short", &sound(&[1, 1, bands, columns - 1]));
            refused(Modality::Audio, "a band too many", &sound(&[1, 3, 1, bands + 1, columns]));
            refused(Modality::Audio, "two channels", &sound(&[1, 2, bands, columns]));
        }
        if let Some(imu) = folder.config.imu.as_ref() {
            let signal = |shape: &[usize]| zeros(shape, DType::F32);
            refused(Modality::Imu, "a window short", &signal(&[1, imu.channels, imu.length - imu.kernel]));
            refused(Modality::Imu, "a window too many", &signal(&[1, imu.channels, imu.length + imu.kernel]));
            refused(Modality::Imu, "an axis short", &signal(&[1, imu.channels - 1, imu.length]));
        }
    }
    tally.finish();
}
