//! What a card is given, bf16 in the place of f32, on the processor: whether the decoder's arithmetic bears it, wherever there is no card.

use viscache::models::llama::Decoder;
use viscache::models::{Placement, nano};
use viscache::types::WeightDtype;

use crate::common::say;
use crate::decoder::floats;

/// Logits of every token of a text that is read in three slices, `[T, V]`.
fn logits(numbers: WeightDtype, seen: &[f32], ids: &[u32]) -> Vec<f32> {
    let (checkpoint, config) = nano::decoder().unwrap();
    let placement = Placement { numbers, ..Placement::cpu() };
    let decoder = Decoder::load(&checkpoint, &config, 512, &placement).unwrap();
    let visual = decoder.visual_of(seen).unwrap();
    let mut sequence = decoder.begin(Some(&visual), ids.len()).unwrap();
    let slices = ids.chunks(ids.len().div_ceil(3));
    slices
        .flat_map(|ids| floats(&decoder.forward_all(&mut [(&mut sequence, ids)], &mut |_, _| {}).unwrap()))
        .collect()
}

#[test]
fn the_decoder_bears_the_numbers_of_a_card() {
    let (mut worst, mut alike, mut tokens) = (1.0f64, 0, 0);
    for case in 0..6u32 {
        let seen: Vec<f32> = (0..128).map(|i| ((i * 37 + case * 11) as f32).sin()).collect();
        let ids: Vec<u32> =
            std::iter::once(1).chain((0..110).map(|i| 300 + (i * 7 + case * 31) % 200)).collect();
        let exact = logits(WeightDtype::F32, &seen, &ids);
        let coarse = logits(WeightDtype::Bf16, &seen, &ids);
        for (exact, coarse) in exact.chunks(512).zip(coarse.chunks(512)) {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            worst = worst.min(dot(exact, coarse) / (dot(exact, exact) * dot(coarse, coarse)).sqrt());
            let first = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
            alike += usize::from(first(exact) == first(coarse));
            tokens += 1;
        }
    }
    say(&format!(
        "bf16 on the processor: cosine of logits {worst:.6} at least, {alike} of {tokens} first tokens"
    ));
    assert!(worst > 0.99 && alike * 100 >= tokens * 95);
}
