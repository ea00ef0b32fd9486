//! The visual cache's maths: a query and its neighbours in, an enhanced query out.
//!
//! A decoder that was trained on image embeddings only is handed a text or audio embedding. It lies in the right
//! region of the joint space, but off the images. So it is pulled towards the images it is near to:
//!
//! ```text
//! inputs u₁ … uₙ, weights w ──► q = Σ wᵢ·uᵢ/‖uᵢ‖          mix       (q is NOT unit: see below)
//!                                │ top-k of ⟨q, v⟩          index
//! hits (score sⱼ, vector vⱼ) ────┤ a = softmax(t·s)
//!                                │ r = unit(Σ aⱼ·vⱼ)        the prototype
//!                                ▼
//!                               x = unit((1−α)·q + α·r)     blend
//! ```
//!
//! Three things are easily got wrong. The mixed query is *not* normalised, so several inputs flatten the softmax and
//! weigh less against the prototype. The prototype is normalised *before* it is mixed in. And `α = 0` still
//! normalises, so it is not the same as no cache.
//!
//! Sums are taken in f64; the reference takes them in f32 and agrees to 1e-6. Left out: the reference's behaviour
//! for batches, which pairs every query with every other query's neighbours. Here a query never sees another.
//!
//! Source: Han et al., *ImageBind-LLM* (arXiv 2309.03905), §3.3; OpenGVLab/LLaMA-Adapter,
//! `imagebind_LLM/llama/llama_adapter.py`, `forward_visual`.

use crate::types::{Embedding, Hit, Modality};

/// Added to the sum of the weights before they are divided by it, as in the reference.
const WEIGHT_EPS: f64 = 1e-6;
/// Norm below which a vector counts as having no direction.
const NO_DIRECTION: f64 = 1e-12;

/// What the cache does to a query. `Default` gives the reference's values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlendParams {
    /// Number of neighbours, k (`cache_size`).
    pub top_k: usize,
    /// Multiplies the scores before the softmax, t (`cache_t`): an *inverse* temperature. 0 is the plain mean.
    pub temperature: f32,
    /// Share of the prototype in the result, α (`cache_weight`), in [0, 1].
    pub weight: f32,
}

impl BlendParams {
    /// Default of [`BlendParams::top_k`].
    pub const DEFAULT_TOP_K: usize = 10;
    /// Default of [`BlendParams::temperature`].
    pub const DEFAULT_TEMPERATURE: f32 = 20.0;
    /// Default of [`BlendParams::weight`].
    pub const DEFAULT_WEIGHT: f32 = 0.5;
    /// Largest accepted [`BlendParams::top_k`].
    pub const MAX_TOP_K: usize = 1000;

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Parameter`] naming the field, its value and what is allowed.
    pub fn validate(&self) -> Result<(), Error> {
        let refuse = |name, value: String, allowed| Err(Error::Parameter { name, value, allowed });
        if self.top_k == 0 || self.top_k > Self::MAX_TOP_K {
            return refuse("top_k", self.top_k.to_string(), "a whole number from 1 to 1000");
        }
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return refuse("temperature", self.temperature.to_string(), "a finite number, 0 or above");
        }
        if !(0.0..=1.0).contains(&self.weight) {
            return refuse("weight", self.weight.to_string(), "a number from 0 to 1");
        }
        Ok(())
    }
}

impl Default for BlendParams {
    fn default() -> Self {
        BlendParams {
            top_k: Self::DEFAULT_TOP_K,
            temperature: Self::DEFAULT_TEMPERATURE,
            weight: Self::DEFAULT_WEIGHT,
        }
    }
}

/// Why a blend has no answer. Every variant is the caller's input; trying again does not help.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A parameter outside its range.
    #[error("{name} is {value}; it must be {allowed}")]
    Parameter {
        /// Field of [`BlendParams`].
        name: &'static str,
        /// Its value.
        value: String,
        /// What would be accepted.
        allowed: &'static str,
    },
    /// No input at all.
    #[error("there is no input to mix; send at least one embedding or media part")]
    NoInput,
    /// A weight that is zero or not finite. The reference refuses 0 for a selected input too.
    #[error(
        "the weight of input {position} is {weight}; it must be finite and not 0 (leave the input out instead of weighing it 0)"
    )]
    InputWeight {
        /// Index of the input.
        position: usize,
        /// Its weight.
        weight: f64,
    },
    /// Two vectors of different length.
    #[error("{what} has {received} components where {expected} are expected")]
    Dimension {
        /// Which vector.
        what: String,
        /// Components it should have.
        expected: usize,
        /// Components it has.
        received: usize,
    },
    /// The cache has nothing to offer.
    #[error("the cache returned no neighbours, so there is no prototype; is it empty?")]
    NoHits,
    /// A vector without a direction.
    #[error("{what} has no direction (norm {norm:e}): {cure}")]
    Degenerate {
        /// Which vector.
        what: String,
        /// Its norm.
        norm: f64,
        /// What to do.
        cure: &'static str,
    },
    /// A result outside f32.
    #[error("{what} is not finite: the inputs are too large for f32")]
    NotFinite {
        /// Which vector.
        what: String,
    },
}

/// An enhanced query and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Blended {
    /// x, unit norm (before [`restore_norm`], in the image-generation path).
    pub embedding: Embedding,
    /// Softmax weight of each hit, in their order; sums to 1.
    pub weights: Vec<f32>,
    /// Shannon entropy of `weights` in nats: 0 when one neighbour decides, ln k when all count the same.
    pub entropy: f32,
    /// Score of the best hit.
    pub max_score: f32,
    /// Cosine between the query and the result: 1 when the cache changed nothing.
    pub cosine: f32,
}

/// Mixes several inputs into one query: `q = Σ (wᵢ / (Σ|w| + 1e-6)) · uᵢ/‖uᵢ‖`. The result is **not** unit.
///
/// * `inputs`: embeddings of equal length D with their weights, in the order of the request. Weights are not 0; those below
///   it take away, which is ours (the reference has none; for weights above 0 this is its formula).
///
/// # Errors
/// [`Error::NoInput`], [`Error::InputWeight`], [`Error::Dimension`], [`Error::Degenerate`] for a zero vector.
///
/// Source: `forward_visual`, the loop over `inputs`.
pub fn mix(inputs: &[(&Embedding, f64)]) -> Result<Embedding, Error> {
    let normalised = inputs
        .iter()
        .enumerate()
        .map(|(position, (embedding, _))| {
            let norm = embedding.norm();
            if norm < NO_DIRECTION {
                return Err(Error::Degenerate {
                    what: format!("input {position}"),
                    norm,
                    cure: "send an embedding that is not zero",
                });
            }
            Ok(embedding.as_slice().iter().map(|&v| (f64::from(v) / norm) as f32).collect())
        })
        .collect::<Result<Vec<Vec<f32>>, Error>>()?;
    weighted_sum(inputs, &normalised)
}

/// The mixture of the image-generation path: as [`mix`], but the parts keep their length.
///
/// * `inputs`: embeddings *before* the postprocessor (a point cloud's already divided by 5).
///
/// # Errors
/// As [`mix`], zero vectors excepted.
pub fn mix_unnormalised(inputs: &[(&Embedding, f64)]) -> Result<Embedding, Error> {
    let parts: Vec<Vec<f32>> = inputs.iter().map(|(e, _)| e.as_slice().to_vec()).collect();
    weighted_sum(inputs, &parts)
}

/// What an embedding before the postprocessor counts as in the image-generation path: a point cloud's is divided by 5.
///
/// Source: `forward_visual`'s image-generation variant.
pub fn generation_part(modality: Modality, prenorm: Embedding) -> Result<Embedding, crate::types::Error> {
    match modality {
        Modality::Point => Embedding::new(prenorm.as_slice().iter().map(|v| v / 5.0).collect()),
        _ => Ok(prenorm),
    }
}

fn weighted_sum(inputs: &[(&Embedding, f64)], parts: &[Vec<f32>]) -> Result<Embedding, Error> {
    let dim = inputs.first().ok_or(Error::NoInput)?.0.dim();
    for (position, (embedding, weight)) in inputs.iter().enumerate() {
        if !weight.is_finite() || *weight == 0.0 {
            return Err(Error::InputWeight { position, weight: *weight });
        }
        if embedding.dim() != dim {
            let what = format!("input {position}");
            return Err(Error::Dimension { what, expected: dim, received: embedding.dim() });
        }
    }
    let total: f64 = inputs.iter().map(|(_, weight)| weight.abs()).sum::<f64>() + WEIGHT_EPS;
    let mut sum = vec![0.0f64; dim];
    for ((_, weight), part) in inputs.iter().zip(parts) {
        let share = weight / total;
        sum.iter_mut().zip(part).for_each(|(s, &v)| *s += share * f64::from(v));
    }
    finite("the mixed query", sum.iter().map(|&v| v as f32).collect())
}

/// Blends a query with what the cache knows about it.
///
/// `a = softmax(t·score)`, `r = unit(Σ aⱼ·vⱼ)`, result `unit((1−α)·q + α·r)`.
///
/// * `query`: length D, as [`mix`] returns it (not necessarily unit).
/// * `hits`: 1..=k neighbours, best first; fewer than `params.top_k` when the cache is smaller. k larger than the
///   cache means all of it; the reference fails there.
/// * Returns the unit vector x of length D. O(k·D), accumulated in f64.
///
/// # Errors
/// [`Error::NoHits`]; [`Error::Parameter`]; [`Error::Degenerate`] when the query is zero, or when the prototype or its mix
/// with the query cancels out to a norm below 1e-12: the reference answers NaN there.
pub fn blend(query: &Embedding, hits: &[Hit], params: &BlendParams) -> Result<Blended, Error> {
    params.validate()?;
    let query_norm = query.norm();
    if query_norm < NO_DIRECTION {
        return Err(Error::Degenerate {
            what: "the query".into(),
            norm: query_norm,
            cure: "send a query that is not zero",
        });
    }
    for hit in hits {
        if hit.embedding.dim() != query.dim() {
            return Err(Error::Dimension {
                what: format!("the stored embedding of item {}", hit.id),
                expected: query.dim(),
                received: hit.embedding.dim(),
            });
        }
    }
    let weights = softmax(hits.iter().map(|h| h.score), params.temperature)?;
    let prototype = prototype(hits, &weights)?;

    let (keep, take) = (1.0 - f64::from(params.weight), f64::from(params.weight));
    let mixed: Vec<f64> =
        query.as_slice().iter().zip(&prototype).map(|(&q, r)| keep * f64::from(q) + take * r).collect();
    let unit = normalise(
        "the blend of query and prototype",
        mixed,
        "query and prototype cancel out; use another `weight`",
    )?;

    let cosine = query.as_slice().iter().zip(&unit).map(|(&q, x)| f64::from(q) * x).sum::<f64>() / query_norm;
    Ok(Blended {
        embedding: finite("the enhanced query", unit.iter().map(|&v| v as f32).collect())?,
        entropy: -weights.iter().filter(|&&a| a > 0.0).map(|&a| a * a.ln()).sum::<f64>() as f32,
        weights: weights.iter().map(|&a| a as f32).collect(),
        max_score: hits.iter().map(|h| h.score).fold(f32::NEG_INFINITY, f32::max),
        cosine: cosine as f32,
    })
}

/// Splits a pre-postprocessor mixture into direction and length, for the image-generation path: search with the
/// direction, [`blend`] it, and give the length back with [`restore_norm`].
///
/// # Errors
/// [`Error::Degenerate`] for a zero vector.
///
/// Source: `forward_visual` of the image-generation path (`generate_variant` in our golden values).
pub fn split_norm(mixed: &Embedding) -> Result<(Embedding, f64), Error> {
    let norm = mixed.norm();
    let unit = mixed.unit().map_err(|_| Error::Degenerate {
        what: "the mixed query".into(),
        norm,
        cure: "send inputs that do not cancel out",
    })?;
    Ok((unit, norm))
}

/// Gives an enhanced direction the length that [`split_norm`] took off.
///
/// # Errors
/// [`Error::NotFinite`] when the result leaves f32.
pub fn restore_norm(blended: &Embedding, norm: f64) -> Result<Embedding, Error> {
    let scaled = blended.as_slice().iter().map(|&v| (f64::from(v) * norm) as f32).collect();
    finite("the enhanced query", scaled)
}

/// Softmax of `t·score`, with the maximum taken off first so that no t overflows.
fn softmax(scores: impl Iterator<Item = f32> + Clone, temperature: f32) -> Result<Vec<f64>, Error> {
    let scaled = scores.map(|s| f64::from(s) * f64::from(temperature));
    let max = scaled.clone().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return Err(Error::NoHits);
    }
    let exp: Vec<f64> = scaled.map(|s| (s - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    Ok(exp.into_iter().map(|e| e / sum).collect())
}

fn prototype(hits: &[Hit], weights: &[f64]) -> Result<Vec<f64>, Error> {
    let mut sum = vec![0.0f64; hits.first().ok_or(Error::NoHits)?.embedding.dim()];
    for (hit, weight) in hits.iter().zip(weights) {
        sum.iter_mut().zip(hit.embedding.as_slice()).for_each(|(s, &v)| *s += weight * f64::from(v));
    }
    normalise(
        "the prototype",
        sum,
        "the neighbours cancel out; use fewer (`top_k`) or a higher `temperature`",
    )
}

fn normalise(what: &str, mut values: Vec<f64>, cure: &'static str) -> Result<Vec<f64>, Error> {
    let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    if norm < NO_DIRECTION {
        return Err(Error::Degenerate { what: what.into(), norm, cure });
    }
    values.iter_mut().for_each(|v| *v /= norm);
    Ok(values)
}

fn finite(what: &str, values: Vec<f32>) -> Result<Embedding, Error> {
    Embedding::new(values).map_err(|_| Error::NotFinite { what: what.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ItemId;
    use proptest::prelude::*;

    fn embedding(values: &[f32]) -> Embedding {
        Embedding::new(values.to_vec()).unwrap()
    }

    fn hits(query: &Embedding, rows: &[&[f32]]) -> Vec<Hit> {
        let score = |row: &[f32]| query.as_slice().iter().zip(row).map(|(a, b)| a * b).sum();
        rows.iter()
            .enumerate()
            .map(|(i, row)| Hit { id: ItemId(i as u64), score: score(row), embedding: embedding(row) })
            .collect()
    }

    #[test]
    fn one_input_of_weight_one_is_a_millionth_short_of_unit() {
        let q = mix(&[(&embedding(&[3.0, 4.0]), 1.0)]).unwrap();
        assert!((q.norm() - 0.999_999).abs() < 1e-7, "{}", q.norm());
        let q = mix(&[(&embedding(&[3.0, 4.0]), 0.001)]).unwrap();
        assert!((q.norm() - 0.999).abs() < 1e-5, "{}", q.norm());
    }

    #[test]
    fn one_neighbour_is_the_prototype_itself() {
        let q = embedding(&[1.0, 0.0]);
        let params = BlendParams { top_k: 1, weight: 1.0, ..Default::default() };
        let blended = blend(&q, &hits(&q, &[&[0.0, 1.0]]), &params).unwrap();
        assert_eq!(blended.embedding.as_slice(), [0.0, 1.0]);
        assert_eq!((blended.entropy, blended.cosine), (0.0, 0.0));
    }

    #[test]
    fn weight_zero_still_normalises() {
        let q = embedding(&[0.3, 0.4]);
        let params = BlendParams { weight: 0.0, ..Default::default() };
        let blended = blend(&q, &hits(&q, &[&[0.0, 1.0]]), &params).unwrap();
        assert!((blended.embedding.norm() - 1.0).abs() < 1e-7);
        assert!((blended.cosine - 1.0).abs() < 1e-7);
    }

    #[test]
    fn temperature_zero_is_the_plain_mean() {
        let q = embedding(&[1.0, 0.0]);
        let params = BlendParams { temperature: 0.0, ..Default::default() };
        let blended = blend(&q, &hits(&q, &[&[1.0, 0.0], &[0.0, 1.0]]), &params).unwrap();
        assert_eq!(blended.weights, [0.5, 0.5]);
        assert!((blended.entropy - 2f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn huge_temperature_does_not_overflow() {
        let q = embedding(&[1.0, 0.0]);
        let params = BlendParams { temperature: f32::MAX, ..Default::default() };
        let blended = blend(&q, &hits(&q, &[&[1.0, 0.0], &[0.6, 0.8]]), &params).unwrap();
        assert_eq!(blended.weights, [1.0, 0.0]);
    }

    #[test]
    fn what_has_no_answer_is_an_error_that_says_so() {
        let q = embedding(&[1.0, 0.0]);
        let default = BlendParams::default();
        assert_eq!(blend(&q, &[], &default), Err(Error::NoHits));
        let opposite = blend(&q, &hits(&q, &[&[-1.0, 0.0]]), &default);
        assert!(matches!(opposite, Err(Error::Degenerate { .. })), "{opposite:?}");
        let cancelling = blend(&q, &hits(&q, &[&[0.0, 1.0], &[0.0, -1.0]]), &default);
        assert!(matches!(cancelling, Err(Error::Degenerate { .. })), "{cancelling:?}");
        let zero = blend(&embedding(&[0.0, 0.0]), &hits(&q, &[&[1.0, 0.0]]), &default);
        assert!(matches!(zero, Err(Error::Degenerate { .. })), "{zero:?}");
        assert_eq!(mix(&[]), Err(Error::NoInput));
        for weight in [0.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(mix(&[(&q, weight)]), Err(Error::InputWeight { position: 0, .. })), "{weight}");
        }
        assert!(matches!(mix(&[(&q, 1.0), (&embedding(&[1.0]), 1.0)]), Err(Error::Dimension { .. })));
        assert!(matches!(mix(&[(&embedding(&[0.0, 0.0]), 1.0)]), Err(Error::Degenerate { .. })));
        let bad = [(0, 20.0, 0.5), (1001, 20.0, 0.5), (1, f32::NAN, 0.5), (1, -1.0, 0.5), (1, 1.0, 1.1)];
        for (top_k, temperature, weight) in bad {
            let params = BlendParams { top_k, temperature, weight };
            assert!(matches!(params.validate(), Err(Error::Parameter { .. })), "{params:?}");
        }
    }

    proptest! {
        #[test]
        fn the_result_is_unit_and_weights_sum_to_one(
            query in prop::collection::vec(-1.0f32..1.0, 8),
            rows in prop::collection::vec(prop::collection::vec(-1.0f32..1.0, 8), 1..12),
            temperature in 0.0f32..200.0,
            weight in 0.0f32..1.0,
        ) {
            let Ok(q) = embedding(&query).unit() else { return Ok(()) };
            let rows: Vec<Vec<f32>> =
                rows.iter().filter_map(|r| embedding(r).unit().ok()).map(Embedding::into_vec).collect();
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let params = BlendParams { top_k: 12, temperature, weight };
            match blend(&q, &hits(&q, &rows), &params) {
                Ok(b) => {
                    prop_assert!((b.embedding.norm() - 1.0).abs() < 1e-6);
                    prop_assert!((b.weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                    prop_assert!(b.entropy >= -1e-6 && b.entropy <= (rows.len() as f32).ln() + 1e-5);
                }
                Err(e) => prop_assert!(rows.is_empty() || matches!(e, Error::Degenerate { .. }), "{e}"),
            }
        }
    }
}
