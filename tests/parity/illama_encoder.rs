//! iLLaMA as an encoder, by its whole way from a file: features and logits of the published program, pictures by its loader's rules.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use viscache::media::augment::{Evaluation, MEAN, STD};
use viscache::media::{Limits, Orientation};
use viscache::models::encoder::{Encoder, EncoderOptions, Media, Network, PrepareError};
use viscache::models::illama::{Illama, Size};
use viscache::models::weights::Weights;
use viscache::models::{DeviceKind, Placement};
use viscache::types::{Modality, WeightDtype};

use crate::classifier;
use crate::common::{Limit, Tally, Tensors, data, parts, read, say, short};
use crate::decoder::{LAYERS, floats, limit};
use crate::illama::{config_of, folders};

fn options(weights: PathBuf, network: Network) -> EncoderOptions {
    EncoderOptions {
        network,
        weights: Some(weights),
        sizes: None,
        modalities: None,
        device: DeviceKind::Cpu,
        dtype: None,
        threads: 2,
        orientation: Orientation::Reference,
        limits: Default::default(),
    }
}

/// The golden pictures of a folder's model, through both forms of its weights: rate 0 of the mask, as encoders are run.
#[test]
fn features_and_logits_are_the_published_ones() {
    for folder in folders() {
        let golden = Tensors::open(&folder.join("forward_rate_0.safetensors"));
        let pictures = ["forward_rate_0", "forward_rate_1"]
            .iter()
            .find_map(|file| {
                let path = folder.join(format!("{file}.safetensors"));
                path.exists().then(|| Tensors::open(&path).find("images").cloned()).flatten()
            })
            .unwrap();
        let config = config_of(&folder);
        for weights in ["weights.safetensors", "checkpoint.pth"] {
            let path = folder.join(weights);
            let sizes = Some(folder.join("config.json"));
            let options = EncoderOptions { sizes, ..options(path.clone(), Network::Illama(None)) };
            let encoder = Encoder::open(&options).unwrap();
            assert_eq!((encoder.dim(), encoder.classes()), (config.width, config.classes));
            assert_eq!(encoder.modalities(), [Modality::Image]);
            let shape = &pictures.shape[1..];
            let inputs: Vec<_> = pictures
                .floats()
                .chunks_exact(shape.iter().product())
                .map(|values| encoder.prepare_media(&Media::Ready(Modality::Image, shape, values)).unwrap())
                .collect();
            let mut tally = Tally::new(format!("{} as an encoder", short(&path)));
            let (features, logits) = (golden.get("features"), golden.get("logits"));
            for (i, encoded) in encoder.encode(&inputs).into_iter().enumerate() {
                let (encoded, expected) = (encoded.unwrap(), features.row(i));
                tally.floats(
                    "features",
                    encoded.embedding.as_slice(),
                    expected,
                    expected.len(),
                    limit(expected, LAYERS),
                );
                assert_eq!(encoded.embedding, encoded.prenorm, "it has no postprocessor");
            }
            for (i, own) in encoder.logits(&inputs).into_iter().enumerate() {
                let expected = logits.row(i);
                tally.floats("logits", &own.unwrap(), expected, expected.len(), limit(expected, LAYERS));
            }
            tally.finish();
        }
    }
}

/// Picture files at both sizes: cropped at 224, warped at 384. What the encoder makes of them is what the network makes of pictures
/// that the published loader prepared.
#[test]
fn picture_files_go_the_published_way() {
    let folder = tempfile::tempdir().unwrap();
    for root in parts("illama/preprocess.json") {
        let expected = Tensors::open(&root.with_file_name("preprocess.safetensors"));
        let mut tally = Tally::new(format!("{} through an encoder", short(&root)));
        for (case, side) in [(0, 224), (2, 384)] {
            let config = Size::Tiny.config(side, 1000);
            let path = folder.path().join(format!("{side}.safetensors"));
            classifier::write(&path, &config);
            let model = Illama::load(&Weights::open(&path).unwrap(), &config, &Placement::cpu()).unwrap();
            let pixels = expected.get(&format!("case{case}.u8_hwc")).wholes();
            let values: Vec<f32> = (0..3)
                .flat_map(|c| {
                    let value = move |&pixel: &i64| (pixel as f32 / 255.0 - MEAN[c]) / STD[c];
                    pixels.iter().skip(c).step_by(3).map(value)
                })
                .collect();
            let pictures = Tensor::from_vec(values, (1, 3, side, side), &Device::Cpu).unwrap();
            let looked = model.forward(&pictures, 0.0).unwrap();
            // A handful of pixels may be a level off (`illama_preprocess.rs`).
            let bound = Limit { absolute: 5e-3, turn: 1e-5 };
            let bytes = read(&root.with_file_name(format!("preprocess_{case}.png")));
            for network in [Network::Illama(Some(Size::Tiny)), Network::Illama(None)] {
                let encoder = Encoder::open(&options(path.clone(), network)).unwrap();
                let input = encoder.prepare(Modality::Image, &bytes).unwrap();
                assert_eq!(input.shape, [3, side, side]);
                let embedding = encoder.encode(std::slice::from_ref(&input)).remove(0).unwrap().embedding;
                let logits = encoder.logits(&[input]).remove(0).unwrap();
                for (what, own, expected) in [
                    ("features", embedding.as_slice(), floats(&looked.features)),
                    ("logits", &logits, floats(&looked.logits)),
                ] {
                    tally.floats(&format!("{side} {what}"), own, &expected, expected.len(), bound);
                }
            }
        }
        tally.finish();
    }
}

/// A small model whose weights follow from their names.
fn small(folder: &Path) -> PathBuf {
    let path = folder.join("small.safetensors");
    classifier::write(&path, &classifier::small(10));
    path
}

#[test]
fn a_batch_of_any_size_gives_what_the_network_gives() {
    let folder = tempfile::tempdir().unwrap();
    let path = small(folder.path());
    let config = classifier::small(10);
    let weights = Weights::open(&path).unwrap();
    let model = Illama::load(&weights, &config, &Placement::cpu()).unwrap();
    let encoder = Encoder::open(&options(path, Network::Illama(None))).unwrap();
    let values: Vec<Vec<f32>> =
        (0..5).map(|i| classifier::computed(&format!("picture {i}"), 3 * 32 * 32)).collect();
    let ready = |values: &Vec<f32>| {
        encoder.prepare_media(&Media::Ready(Modality::Image, &[3, 32, 32], values)).unwrap()
    };
    let inputs: Vec<_> = values.iter().map(ready).collect();
    let together: Vec<_> = encoder.encode(&inputs).into_iter().map(Result::unwrap).collect();
    let here: Vec<_> = encoder.encode_here(&inputs).into_iter().map(Result::unwrap).collect();
    assert_eq!(together, here);
    for (values, encoded) in values.into_iter().zip(together) {
        let picture = Tensor::from_vec(values, (1, 3, 32, 32), &Device::Cpu).unwrap();
        let expected = floats(&model.forward(&picture, 0.0).unwrap().features);
        let off = encoded.embedding.as_slice().iter().zip(&expected).map(|(a, b)| (a - b).abs());
        assert!(off.fold(0.0, f32::max) < 1e-5, "{:?} {expected:?}", encoded.embedding);
    }
}

#[test]
fn what_does_not_fit_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = small(folder.path());
    let said = |options: &EncoderOptions| Encoder::open(options).err().unwrap().to_string();
    let named = options(path.clone(), Network::Illama(Some(Size::Base)));
    let refused = said(&named);
    for part in [
        "small.safetensors",
        "width 64, 2 blocks of 1 heads",
        "illama-base",
        "width 768, 12 blocks of 12 heads",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let refused = said(&EncoderOptions { weights: None, ..named.clone() });
    assert!(refused.contains("illama-base needs a checkpoint"), "{refused}");
    let refused = said(&options(path.clone(), Network::ImageBind));
    assert!(refused.contains("is an iLLaMA"), "{refused}");
    let any = options(path, Network::Illama(None));
    let texts = EncoderOptions { modalities: Some(vec![Modality::Image, Modality::Text]), ..any.clone() };
    assert!(said(&texts).contains("without text"), "{}", said(&texts));
    let encoder = Encoder::open(&any).unwrap();
    assert_eq!(encoder.prepare(Modality::Text, b"a cat"), Err(PrepareError::NotLoaded(Modality::Text)));
    let ready = encoder.prepare_media(&Media::Ready(Modality::Image, &[3, 16, 64], &[0.0; 3072]));
    assert!(matches!(ready, Err(PrepareError::Ready { .. })), "{ready:?}");
    assert!(matches!(encoder.prepare(Modality::Image, b"no picture"), Err(PrepareError::Media(_))));
}

#[test]
fn pictures_are_turned_upright_and_the_origin_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = small(folder.path());
    let reference = Encoder::open(&options(path.clone(), Network::Illama(None))).unwrap();
    let upright =
        EncoderOptions { orientation: Orientation::Apply, ..options(path.clone(), Network::Illama(None)) };
    let upright = Encoder::open(&upright).unwrap();
    let difference = reference.origin().difference(upright.origin()).unwrap();
    assert!(difference.contains("preprocessing differs"), "{difference}");
    let eight = EncoderOptions { dtype: Some(WeightDtype::Q8_0), ..options(path, Network::Illama(None)) };
    let eight = Encoder::open(&eight).unwrap();
    assert_eq!(eight.origin().difference(reference.origin()), None, "8 bits are the same model");
    let Some(turned) = data("nasty/images") else { return };
    let turned = std::fs::read_dir(turned)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().contains("exif-orientation-6"));
    let Some(turned) = turned else { return say("skipped: no picture with an EXIF orientation of 6") };
    let bytes = read(&turned);
    let values = |encoder: &Encoder| encoder.prepare(Modality::Image, &bytes).unwrap();
    assert_ne!(values(&upright), values(&reference));
    let evaluation = Evaluation { orientation: Orientation::Apply, ..Evaluation::new(32) };
    let expected = evaluation.prepare_bytes(&bytes, &Limits::default()).unwrap();
    assert_eq!(values(&upright).values, viscache::models::encoder::Values::Float(expected));
}
