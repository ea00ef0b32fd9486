//! Every encoder of the built-in model on a card against the CPU. Built with the feature `cuda`; says so where there is no card.

use viscache::media::{MediaLimits, Orientation};
use viscache::models::encoder::{Encoder, EncoderOptions, Media, Prepared, agreement};
use viscache::models::illama::{self, Config, Lesson, Size, initial};
use viscache::models::learning::placed;
use viscache::models::llama::{self, Group};
use viscache::models::{DeviceKind, nano};
use viscache::types::{Agreement, Modality, WeightDtype};

use crate::common::say;
use crate::decoder::floats;

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

/// Two small networks learn on a card as on the CPU: the loss, and where all gradients together lead.
#[test]
fn a_card_learns_what_the_cpu_learns() {
    let config = Config { width: 64, depth: 2, heads: 1, ..Size::Tiny.config(32, 10) };
    let config = Config { patch: 8, ..config }.with_side(32).unwrap();
    let pictures: Vec<f32> = (0..6 * 3 * 32 * 32).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
    let targets: Vec<f32> = (0..60).map(|i| if i % 10 == i / 10 { 1.0 } else { 0.0 }).collect();
    let step = |device| -> Result<(f32, Vec<f32>), viscache::models::Error> {
        let variables = placed(initial(&config, 3, Default::default())?, device)?;
        let learner = illama::Learner::new(&config, variables, 2, true)?;
        let lesson = Lesson { pictures: &pictures, targets: &targets, rate: 0.5, kept: &[] };
        let (loss, gradients) = learner.gradients(&lesson)?;
        Ok((loss, gradients.values().flat_map(floats).collect()))
    };
    let (expected, straight) = step(DeviceKind::Cpu).unwrap();
    let (loss, along) = match step(DeviceKind::Cuda) {
        Ok(found) => found,
        Err(problem) => return say(&format!("no card: {problem}")),
    };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let cosine = dot(&along, &straight) / (dot(&along, &along) * dot(&straight, &straight)).sqrt();
    say(&format!("iLLaMA's step: loss {loss} and {expected}, cosine of the gradients {cosine:.6}"));
    assert!((loss - expected).abs() < 0.02 * expected && cosine > 0.999);

    let tokens: Vec<u32> = (0..48).map(|i| 3 + i * 7 % 200).collect();
    let seen = llama::embeddings(&vec![0.1; 4 * 128], 128).unwrap();
    let batch = llama::Batch {
        ids: &tokens,
        labels: &tokens,
        weights: &[],
        length: 12,
        shown: llama::Shown::Embeddings(&seen),
    };
    let step = |device| {
        let (checkpoint, config) = nano::decoder()?;
        let groups = [Group::BIND_PRETRAIN, Group::BIND_FINETUNE];
        let learner = llama::Learner::on(device, &checkpoint, &config, 512, &groups)?.spread(2, true)?;
        let (loss, gradients) = learner.gradients(&batch)?;
        Ok::<_, viscache::models::Error>((loss, gradients.values().flat_map(floats).collect::<Vec<f32>>()))
    };
    let ((expected, straight), (loss, along)) =
        (step(DeviceKind::Cpu).unwrap(), step(DeviceKind::Cuda).unwrap());
    let cosine = dot(&along, &straight) / (dot(&along, &along) * dot(&straight, &straight)).sqrt();
    say(&format!("an adapter's step: loss {loss} and {expected}, cosine of the gradients {cosine:.6}"));
    assert!((loss - expected).abs() < 0.02 * expected && cosine > 0.999);
}
