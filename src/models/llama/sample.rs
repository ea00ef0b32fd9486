//! Which token comes next.
//!
//! `p = softmax(logits / temperature)`, sorted downwards; a token is dropped when the probability *before* it is above
//! `top_p` (strictly, so the first always stays); of the others one is drawn. At a temperature of 0 the largest logit wins.
//!
//! Source: LLaMA, `generation.py`.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// How a token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleParams {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f32,
    /// Probability that is kept.
    pub top_p: f32,
    /// Of the draws: the same seed gives the same answer.
    pub seed: u64,
}

impl Default for SampleParams {
    /// The published program's.
    fn default() -> Self {
        SampleParams { temperature: 0.1, top_p: 0.75, seed: 0 }
    }
}

/// Draws tokens for one sequence.
#[derive(Debug)]
pub struct Sampler {
    params: SampleParams,
    random: Pcg64Mcg,
}

/// A token that was chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Its id.
    pub id: u32,
    /// Logarithm of its probability under the model itself, at a temperature of 1.
    pub logprob: f32,
}

impl Sampler {
    /// Starts at a seed.
    pub fn new(params: SampleParams) -> Self {
        Sampler { params, random: Pcg64Mcg::seed_from_u64(params.seed) }
    }

    /// Chooses the next token.
    ///
    /// * `logits`: one for each piece; at least one is finite.
    pub fn choose(&mut self, logits: &[f32]) -> Choice {
        let id = match self.params.temperature {
            temperature if temperature > 0.0 => {
                let kept = filtered(&softmax(logits, temperature), self.params.top_p);
                let mut rest: f32 = self.random.random();
                let drawn = kept.iter().find(|(_, p)| {
                    rest -= p;
                    rest < 0.0
                });
                // The sum may fall short of 1 by a rounding; then the last is meant.
                drawn.or(kept.last()).map_or(0, |(id, _)| *id)
            }
            _ => largest(logits),
        };
        Choice { id, logprob: logprob(logits, id) }
    }
}

/// The largest, the first of several.
fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (at, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = at;
        }
    }
    best as u32
}

/// Logarithm of a token's probability.
pub fn logprob(logits: &[f32], id: u32) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - top).exp()).sum();
    (f64::from(logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY) - top) - sum.ln()) as f32
}

/// Probabilities at a temperature.
pub fn softmax(logits: &[f32], temperature: f32) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|logit| ((logit - top) / temperature).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// What top-p keeps, downwards, renormalised.
pub fn filtered(probabilities: &[f32], top_p: f32) -> Vec<(u32, f32)> {
    let mut sorted: Vec<(u32, f32)> = probabilities.iter().enumerate().map(|(i, &p)| (i as u32, p)).collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    // In f32 the rounding of many small ones would add up to more than the last of them.
    let mut mass = 0.0f64;
    let kept = sorted.iter().take_while(|(_, p)| {
        mass += f64::from(*p);
        mass as f32 - p <= top_p
    });
    let count = kept.count().max(1);
    sorted.truncate(count);
    let sum: f32 = sorted.iter().map(|(_, p)| p).sum();
    sorted.iter_mut().for_each(|(_, p)| *p /= sum);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_top_p_of_one_keeps_all_of_a_large_vocabulary() {
        let equal = vec![1.0 / 50_000.0; 50_000];
        assert_eq!(filtered(&equal, 1.0).len(), equal.len());
    }
}
