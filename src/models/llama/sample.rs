//! Which token comes next.
//!
//! ```text
//! logits ─► + bias ─► repeated ones made less likely ─► p = softmax(· / temperature)
//!        ─► the top_k likeliest ─► top_p of what is left ─► none below min_p of the likeliest ─► one is drawn
//! ```
//! Of those sorted downwards a token is dropped when the probability *before* it is above `top_p` (strictly, so the first always
//! stays). At a temperature of 0 the largest logit wins. What is left out by default is the published program's way.
//!
//! Source: LLaMA, `generation.py`; the penalty is that of CTRL (arXiv 1909.05858), as other programs have it.

use std::collections::HashSet;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::text::Allowed;

/// So many tokens are looked at first.
const FEW: usize = 256;

/// How a token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleParams {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f32,
    /// Probability that is kept.
    pub top_p: f32,
    /// Tokens that are kept; 0 keeps all.
    pub top_k: usize,
    /// Share of the likeliest token's probability that one has to have; 0 asks for none.
    pub min_p: f32,
    /// What the logits of tokens that came before are divided by, or multiplied where they are below 0; 1 leaves them alone.
    pub repetition_penalty: f32,
    /// Added to the logits of some tokens.
    pub bias: Vec<(u32, f32)>,
    /// Of the draws: the same seed gives the same answer.
    pub seed: u64,
}

impl Default for SampleParams {
    /// The published program's.
    fn default() -> Self {
        SampleParams {
            temperature: 0.1,
            top_p: 0.75,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            bias: Vec::new(),
            seed: 0,
        }
    }
}

/// Draws tokens for one sequence.
#[derive(Debug)]
pub struct Sampler {
    params: SampleParams,
    random: Pcg64Mcg,
    /// Tokens that came before, where that matters.
    before: HashSet<u32>,
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
        let random = Pcg64Mcg::seed_from_u64(params.seed);
        Sampler { params, random, before: HashSet::new() }
    }

    /// Tokens that came before: those of a prompt. Those that it chooses itself it knows.
    pub fn saw(&mut self, ids: &[u32]) {
        if self.params.repetition_penalty != 1.0 {
            self.before.extend(ids);
        }
    }

    /// Chooses the next token.
    ///
    /// * `logits`: one for each piece; at least one is finite.
    /// * `allowed`: tokens that may come; nothing for all.
    pub fn choose(&mut self, logits: &[f32], allowed: Option<&Allowed>) -> Choice {
        let mut changed = self.changed(logits);
        if let Some(allowed) = allowed {
            let changed = changed.get_or_insert_with(|| logits.to_vec());
            let others = changed.iter_mut().zip(0u32..).filter(|(_, id)| !allowed.has(*id));
            others.for_each(|(logit, _)| *logit = f32::NEG_INFINITY);
        }
        let shown = changed.as_deref().unwrap_or(logits);
        let SampleParams { temperature, top_p, top_k, min_p, .. } = self.params;
        let id = match temperature {
            temperature if temperature > 0.0 => {
                let kept = kept(&softmax(shown, temperature), top_k, top_p, min_p);
                let mut rest: f32 = self.random.random();
                let drawn = kept.iter().find(|(_, p)| {
                    rest -= p;
                    rest < 0.0
                });
                // The sum may fall short of 1 by a rounding; then the last is meant.
                drawn.or(kept.last()).map_or(0, |(id, _)| *id)
            }
            _ => largest(shown),
        };
        self.saw(&[id]);
        Choice { id, logprob: logprob(logits, id) }
    }

    /// The logits with what is added to some and taken from others; nothing where all stay.
    fn changed(&self, logits: &[f32]) -> Option<Vec<f32>> {
        if self.params.bias.is_empty() && self.before.is_empty() {
            return None;
        }
        let mut changed = logits.to_vec();
        let penalty = self.params.repetition_penalty;
        for logit in self.before.iter().filter_map(|&id| Some((id as usize, *logits.get(id as usize)?))) {
            let (id, logit) = logit;
            changed[id] = if logit > 0.0 { logit / penalty } else { logit * penalty };
        }
        for &(id, bias) in &self.params.bias {
            if let Some(logit) = changed.get_mut(id as usize) {
                *logit += bias;
            }
        }
        Some(changed)
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

/// The likeliest tokens and the logarithms of their probabilities, downwards.
pub fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let count = count.min(all.len());
    if count == 0 {
        return Vec::new();
    }
    all.select_nth_unstable_by(count - 1, by_logit);
    all.truncate(count);
    all.sort_by(by_logit);
    all.into_iter().map(|id| (id, logprob(logits, id))).collect()
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
    kept(probabilities, 0, top_p, 0.0)
}

/// What all of them keep, downwards, renormalised.
fn kept(probabilities: &[f32], top_k: usize, top_p: f32, min_p: f32) -> Vec<(u32, f32)> {
    let count = if top_k > 0 { top_k } else { FEW };
    let few = among(first(probabilities, count), top_k, top_p, min_p);
    // Nearly always it is a few of many, and the others need no order.
    match top_k == 0 && few.len() == count {
        true => among(first(probabilities, probabilities.len()), top_k, top_p, min_p),
        false => few,
    }
}

/// The likeliest so many, downwards.
fn first(probabilities: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = probabilities.iter().enumerate().map(|(i, &p)| (i as u32, p)).collect();
    let downwards = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count > 0 && count < all.len() {
        all.select_nth_unstable_by(count - 1, downwards);
        all.truncate(count);
    }
    all.sort_unstable_by(downwards);
    all
}

/// As [`kept`], of the likeliest.
fn among(mut sorted: Vec<(u32, f32)>, top_k: usize, top_p: f32, min_p: f32) -> Vec<(u32, f32)> {
    // Of what is left, all of it is one.
    let whole: f64 = match top_k {
        0 => 1.0,
        _ => sorted.iter().map(|(_, p)| f64::from(*p)).sum(),
    };
    let least = min_p * sorted.first().map_or(0.0, |(_, p)| *p);
    // In f32 the rounding of many small ones would add up to more than the last of them.
    let mut mass = 0.0f64;
    let kept = sorted.iter().take_while(|(_, p)| {
        mass += f64::from(*p) / whole;
        mass as f32 - (f64::from(*p) / whole) as f32 <= top_p && *p >= least && *p > 0.0
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

    #[test]
    fn few_of_many_are_those_of_all() {
        let mut random = Pcg64Mcg::seed_from_u64(3);
        for case in 0..40 {
            let sharp = [0.1, 1.0, 5.0, 20.0][case % 4];
            let logits: Vec<f32> = (0..3000).map(|_| random.random::<f32>()).collect();
            let p = softmax(&logits, 1.0 / sharp);
            for (top_p, min_p) in [(0.3, 0.0), (0.95, 0.0), (1.0, 0.0), (1.0, 0.5), (0.05, 0.9)] {
                let all = among(first(&p, p.len()), 0, top_p, min_p);
                assert_eq!(kept(&p, 0, top_p, min_p), all, "{case} {top_p} {min_p}");
            }
        }
        // Of two that are as likely the first comes first, also where a part of them is taken.
        assert_eq!(kept(&[0.1; 10], 3, 1.0, 0.0).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn each_way_keeps_what_it_says() {
        let p = [0.05, 0.5, 0.2, 0.15, 0.1];
        let ids = |kept: Vec<(u32, f32)>| kept.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!(ids(kept(&p, 0, 1.0, 0.0)), [1, 2, 3, 4, 0]);
        assert_eq!(ids(kept(&p, 3, 1.0, 0.0)), [1, 2, 3]);
        assert_eq!(ids(kept(&p, 0, 1.0, 0.25)), [1, 2, 3], "0.125 at least");
        assert_eq!(ids(kept(&p, 0, 0.6, 0.0)), [1, 2]);
        // Of the two that top-k leaves, the first is 0.71 of all.
        assert_eq!(ids(kept(&p, 2, 0.7, 0.0)), [1]);
        assert_eq!(ids(kept(&p, 1, 0.0, 1.0)), [1], "the likeliest always stays");
        let sum: f32 = kept(&p, 3, 0.9, 0.1).iter().map(|(_, p)| p).sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }

    #[test]
    fn bias_and_repetition_change_what_is_chosen_and_not_its_probability() {
        let logits = [1.0, 2.0, -1.0, 1.9];
        let greedy = || SampleParams { temperature: 0.0, ..SampleParams::default() };
        let mut plain = Sampler::new(greedy());
        assert_eq!((plain.choose(&logits, None).id, plain.choose(&logits, None).id), (1, 1));
        let mut repeats = Sampler::new(SampleParams { repetition_penalty: 2.0, ..greedy() });
        repeats.saw(&[2]);
        let chosen: Vec<u32> = (0..3).map(|_| repeats.choose(&logits, None).id).collect();
        // 2 becomes 1, then 1.9 becomes 0.95, then the first of 1 and 1 is taken.
        assert_eq!(chosen, [1, 3, 0]);
        let mut biased = Sampler::new(SampleParams { bias: vec![(2, 10.0), (99, 1.0)], ..greedy() });
        let choice = biased.choose(&logits, None);
        assert_eq!(choice, Choice { id: 2, logprob: logprob(&logits, 2) });
        let never =
            SampleParams { bias: vec![(1, f32::NEG_INFINITY)], temperature: 1.0, top_p: 1.0, ..greedy() };
        let mut never = Sampler::new(never);
        assert!((0..200).all(|_| never.choose(&logits, None).id != 1));
    }

    #[test]
    fn the_likeliest_come_downwards() {
        let logits = [0.0, 3.0, 1.0, 3.0, -2.0];
        let told = likeliest(&logits, 3);
        assert_eq!(told.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
        assert!(told.iter().all(|(id, p)| *p == logprob(&logits, *id)));
        assert_eq!((likeliest(&logits, 99).len(), likeliest(&logits, 0).len()), (5, 0));
    }
}
