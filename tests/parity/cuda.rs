//! Every encoder of the built-in model on a card against the CPU. Built with the feature `cuda`; says so where there is no card.

use viscache::media::{MediaLimits, Orientation};
use viscache::models::encoder::{Encoder, EncoderOptions, Media, Prepared, agreement};
use viscache::models::{DeviceKind, nano};
use viscache::types::{Agreement, Modality, WeightDtype};

use crate::common::say;

fn open(device: DeviceKind, dtype: WeightDtype) -> Result<Encoder, viscache::models::Error> {
    Encoder::open(&EncoderOptions {
        network: Default::default(),
        weights: None,
        sizes: None,
        modalities: None,
        device,
        dtype: Some(dtype),
        threads: 2,
        orientation: Orientation::Apply,
        limits: MediaLimits::default(),
    })
}

/// Inputs of a modality, ready made, from a seeded sequence.
fn inputs(encoder: &Encoder, modality: Modality) -> Vec<Prepared> {
    let sizes = nano::config().unwrap();
    let shape = match modality {
        Modality::Text => {
            let texts = ["a small red circle", "two blue squares", "a large star at the top"];
            return texts.iter().map(|t| encoder.prepare(modality, t.as_bytes()).unwrap()).collect();
        }
        Modality::Image => vec![3, encoder.images().side, encoder.images().side],
        Modality::Audio => {
            let sizes = sizes.audio.unwrap();
            vec![3, 1, sizes.num_mel_bins, sizes.target_len]
        }
        other => panic!("the built-in model has an encoder of {other} that this test does not know"),
    };
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut one = || -> Prepared {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
        encoder.prepare_media(&Media::Ready(modality, &shape, &values)).unwrap()
    };
    (0..5).map(|_| one()).collect()
}

#[test]
fn a_card_gives_the_embeddings_of_the_cpu() {
    let exact = open(DeviceKind::Cpu, WeightDtype::F32).unwrap();
    for (dtype, least) in [(WeightDtype::F32, 0.999_99), (WeightDtype::Bf16, 0.9995)] {
        let card = match open(DeviceKind::Cuda, dtype) {
            Ok(card) => card,
            Err(problem) => return say(&format!("no card: {problem}")),
        };
        for &modality in card.modalities().iter().filter(|&&modality| modality != Modality::Video) {
            let Agreement { mean, min, .. } = agreement(&card, &exact, &inputs(&exact, modality)).unwrap();
            say(&format!("{modality}, {dtype}: cosine {mean:.7} in the mean, {min:.7} at least"));
            assert!(min >= least, "{modality}, {dtype}: {min}");
        }
    }
}
