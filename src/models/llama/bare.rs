//! First values of a LLaMA that has read nothing.
//!
//! ```text
//! tok_embeddings       normal, σ = 0.02
//! matrices, output     even in ±1/√in
//! norms                1
//! ```
//! Names are those of the original files, without a prefix.
//!
//! Source: PyTorch's defaults, but for the embeddings.

use std::f64::consts::TAU;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::config::Config;
use crate::models::learning::Values;

/// Standard deviation of first embeddings.
const SIGMA: f64 = 0.02;

/// All tensors of a decoder without an adapter; a seed gives the same values always.
///
/// * `vocab_size`: pieces of its tokenizer.
pub fn bare(config: &Config, vocab_size: usize, seed: u64) -> Values {
    let (dim, hidden) = (config.dim, config.hidden);
    let mut random = Pcg64::seed_from_u64(seed);
    let mut values = Values::new();
    let mut add = |name: String, shape: Vec<usize>, draw: &mut dyn FnMut(&mut Pcg64) -> f64| {
        let drawn = (0..shape.iter().product::<usize>()).map(|_| draw(&mut random) as f32).collect();
        values.insert(name, (shape, drawn));
    };
    let even = |inputs: usize| {
        let bound = 1.0 / (inputs as f64).sqrt();
        move |random: &mut Pcg64| random.random_range(-bound..bound)
    };
    let mut normal = |random: &mut Pcg64| {
        let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
        SIGMA * radius * (TAU * random.random::<f64>()).cos()
    };
    let mut one = |_: &mut Pcg64| 1.0;
    add("tok_embeddings.weight".into(), vec![vocab_size, dim], &mut normal);
    for layer in 0..config.n_layers {
        let at = |part: &str| format!("layers.{layer}.{part}.weight");
        for part in ["wq", "wk", "wv", "wo"] {
            add(at(&format!("attention.{part}")), vec![dim, dim], &mut even(dim));
        }
        for (part, out, width) in [("w1", hidden, dim), ("w2", dim, hidden), ("w3", hidden, dim)] {
            add(at(&format!("feed_forward.{part}")), vec![out, width], &mut even(width));
        }
        add(at("attention_norm"), vec![dim], &mut one);
        add(at("ffn_norm"), vec![dim], &mut one);
    }
    add("norm.weight".into(), vec![dim], &mut one);
    add("output.weight".into(), vec![vocab_size, dim], &mut even(dim));
    values
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, Checkpoint, Group, Learner, Shown};
    use super::*;
    use crate::models::learning::adamw::{AdamW, Settings};
    use crate::models::learning::write;
    use crate::models::nano;
    use crate::models::weights::Weights;

    #[test]
    fn a_bare_decoder_has_the_tensors_of_one_and_learns_all_of_them() {
        let (there, config) = nano::backbone(None, None).unwrap();
        let values = bare(&config, 512, 3);
        assert_eq!(values.len(), there.names().len());
        assert!(bare(&config, 512, 3) == values && bare(&config, 512, 4) != values);
        let file = Weights::from_memory("bare", write(&values, Default::default()).unwrap()).unwrap();
        let checkpoint = Checkpoint::new(vec![file], None, config.n_heads);
        for name in there.names() {
            assert_eq!(checkpoint.shape(&name), there.shape(&name), "{name}");
        }
        let learner = Learner::new(&checkpoint, &config, 512, &Group::BACKBONE).unwrap();
        assert_eq!(learner.variables().len(), values.len());
        let (ids, labels) = ([1, 40, 50, 60, 70, 2], [0, 40, 50, 60, 70, 2]);
        let weights = [1.0, 0.1, 0.1, 1.0, 1.0, 1.0];
        let batch = |weights| Batch { ids: &ids, labels: &labels, weights, length: 6, shown: Shown::Nothing };
        let mut optimiser = AdamW::new(learner.variables(), Settings::adapters()).unwrap();
        let (first, gradients) = learner.gradients(&batch(&weights)).unwrap();
        assert!(gradients.keys().eq(learner.variables().keys()), "everything has a gradient");
        // Logits stray by a half, so that a token costs a sixth more on the mean, and more or less of five.
        assert!((first - 512f32.ln()).abs() < 0.8, "{first}");
        let mut gradients = gradients;
        for _ in 0..60 {
            optimiser.apply(&gradients, 3e-3, 0.0).unwrap();
            gradients = learner.gradients(&batch(&weights)).unwrap().1;
        }
        let (last, _) = learner.gradients(&batch(&weights)).unwrap();
        assert!(last < 0.1, "{last}");
    }

    /// A weighted mean is that of the parts it is made of.
    #[test]
    fn tokens_count_by_their_weights() {
        let (checkpoint, config) = nano::backbone(None, None).unwrap();
        let learner = Learner::new(&checkpoint, &config, 512, &Group::BACKBONE).unwrap();
        let ids = [1, 40, 50, 60, 1, 90, 80, 2];
        let loss = |labels: &[u32], weights: &[f32]| {
            learner.loss(&Batch { ids: &ids, labels, weights, length: 4, shown: Shown::Nothing }).unwrap()
        };
        let (prompt, first) = loss(&[0, 40, 0, 0, 0, 90, 0, 0], &[]);
        let (answer, second) = loss(&[0, 0, 50, 60, 0, 0, 80, 2], &[]);
        assert_eq!((first, second), (2, 4));
        let labels = [0, 40, 50, 60, 0, 90, 80, 2];
        let weights = [9.0, 0.25, 2.0, 2.0, 9.0, 0.25, 2.0, 2.0];
        let (both, count) = loss(&labels, &weights);
        assert_eq!(count, 6);
        assert!((both - (0.25 * prompt + 2.0 * answer)).abs() < 1e-3, "{both} {prompt} {answer}");
        let batch = Batch { ids: &ids, labels: &labels, weights: &weights, length: 4, shown: Shown::Nothing };
        let (mean, _) = learner.gradients(&batch).unwrap();
        assert!((f64::from(mean) - both / 8.5).abs() < 1e-4);
        let (_, none) = loss(&labels, &[0.0; 8]);
        assert_eq!(none, 0);
        for wrong in [&[1.0; 7][..], &[f32::NAN; 8], &[-1.0; 8]] {
            let refused = learner.loss(&Batch { weights: wrong, ..batch }).unwrap_err().to_string();
            assert!(refused.contains("weights"), "{refused}");
        }
    }
}
