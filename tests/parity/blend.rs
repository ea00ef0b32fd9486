//! The cache's maths against the published `forward_visual`, over an exact search.
//!
//! Stored are: the mixed query, the neighbours and their scores, the softmax, the prototype, the result. The reference
//! computes in f32; an independent f64 twin of it agrees to 2e-7, we must to 1e-6.

use serde_json::Value;
use viscache::blend::{self, BlendParams, Blended, Error, blend, mix, mix_unnormalised};
use viscache::index::exact;
use viscache::kernels::Kernels;
use viscache::types::{Embedding, Hit, ItemId, norm};

use crate::common::{Golden, Limit, Tally, Tensors, json, max_abs, parts, short};

/// What f32 sums may leave of a value around 1; as 1 − cosine that is 5e-13, and f32 storage adds as much.
const LIMIT: Limit = Limit { absolute: 1e-6, turn: 1e-11 };

/// What two programs' f32 sums leave between their scores of unit vectors, the rounding of t·score included: three units in
/// the last place of a number below 1. Scores themselves are held to [`LIMIT`].
const SCORE: f64 = 2e-7;

/// Share of a softmax weight that comes of the scores' last digits.
///
/// `wⱼ = exp(t·sⱼ) / Σ exp(t·sᵢ)`: where each score is off by at most ε, numerator and denominator are off by a factor
/// of at most exp(t·ε) each. So `|Δwⱼ| ≤ wⱼ·(exp(2·t·ε) − 1)`: 8e-6 of a weight at t = 20, 4e-4 at t = 1000.
fn steepness(params: &BlendParams) -> f64 {
    (2.0 * f64::from(params.temperature) * SCORE).exp_m1()
}

/// What this leaves in each value of the prototype, of its direction, and of the result.
///
/// What the weights are off by sums to 0, so that in the prototype it counts by how far the neighbours lie from it. What is
/// made a unit is off by as much more as it was shorter.
fn slack(q: &Embedding, hits: &[Hit], weights: &[f32], params: &BlendParams) -> [f64; 3] {
    let share = f64::from(params.weight);
    let r = prototype(hits, weights);
    let apart = |i: usize| {
        let of = |(hit, weight): (&Hit, &f32)| f64::from(weight * (hit.embedding.as_slice()[i] - r[i]).abs());
        hits.iter().zip(weights).map(of).sum::<f64>()
    };
    let spread = (0..r.len()).map(apart).fold(0.0, f64::max);
    let length = norm(&r);
    let mixed =
        |(q, r): (&f32, &f32)| ((1.0 - share) * f64::from(*q) + share * f64::from(*r) / length) as f32;
    let mixed: Vec<f32> = q.as_slice().iter().zip(&r).map(mixed).collect();
    let own = steepness(params) * spread;
    [own, own / length, share * own / length / norm(&mixed)]
}

/// The weighted sum of the neighbours.
fn prototype(hits: &[Hit], weights: &[f32]) -> Vec<f32> {
    let mut sum = vec![0.0f64; hits[0].embedding.dim()];
    for (hit, weight) in hits.iter().zip(weights) {
        let add = |(sum, v): (&mut f64, &f32)| *sum += f64::from(*weight) * f64::from(*v);
        sum.iter_mut().zip(hit.embedding.as_slice()).for_each(add);
    }
    sum.iter().map(|&v| v as f32).collect()
}

/// `slack` more in each value than [`LIMIT`], and as far as that turns a row of this length.
fn loosened(slack: f64, expected: &[f32]) -> Limit {
    let turn = (slack / norm(expected)).powi(2) * expected.len() as f64;
    Limit { absolute: LIMIT.absolute + slack, turn: LIMIT.turn + turn }
}

fn embedding(values: &[f32]) -> Embedding {
    Embedding::new(values.to_vec()).unwrap()
}

fn hits(base: &Golden, query: &Embedding, k: usize) -> Vec<Hit> {
    let found = exact::search(base.floats(), query.as_slice(), k);
    let hit = |s: exact::Scored| Hit {
        id: ItemId(s.slot.0.into()),
        score: s.score,
        embedding: embedding(base.row(s.slot.index())),
    };
    found.into_iter().map(hit).collect()
}

/// The stated parameters; the reference's slider for k gives floats and cuts them.
fn params(case: &Value) -> BlendParams {
    BlendParams {
        top_k: case["cache_size"].as_f64().unwrap() as usize,
        temperature: case["cache_t"].as_f64().unwrap() as f32,
        weight: case["cache_weight"].as_f64().unwrap() as f32,
    }
}

/// Kind, weight and tensor name of each input.
fn inputs(case: &Value) -> Vec<(&str, f64, &str)> {
    let word = |value| Value::as_str(value).unwrap();
    let inputs = case["inputs"].as_array().unwrap().iter();
    inputs.map(|i| (word(&i["type"]), i["weight"].as_f64().unwrap(), word(&i["tensor"]))).collect()
}

fn mixed<F>(parts: &[(Embedding, f64)], how: F) -> Embedding
where
    F: Fn(&[(&Embedding, f64)]) -> Result<Embedding, Error>,
{
    how(&parts.iter().map(|(e, w)| (e, *w)).collect::<Vec<_>>()).unwrap()
}

#[test]
fn every_case_of_the_paper_s_cache() {
    for path in parts("visual_cache/cases.json") {
        let file = json(&path);
        let base = Tensors::open(&path.with_file_name("base.safetensors"));
        let (base, golden) = (base.get("base"), Tensors::open(&path.with_file_name("cases.safetensors")));
        let cases = file["cases"].as_array().unwrap();
        let mut tally = Tally::new(format!("{}, {} cases", short(&path), cases.len()));
        for case in cases {
            let name = case["name"].as_str().unwrap();
            for row in 0..file["batch"].as_u64().unwrap() as usize {
                let expected = |what: &str| golden.get(&format!("{name}.{what}"));
                let label = |what: &str| format!("{name}.{what}, query {row}");
                let parts: Vec<(Embedding, f64)> = inputs(case)
                    .iter()
                    .map(|(_, weight, tensor)| (embedding(golden.get(tensor).row(row)), *weight))
                    .collect();
                let q = mixed(&parts, mix);
                tally.floats(&label("mixed"), q.as_slice(), expected("mixed").row(row), q.dim(), LIMIT);
                if !case["cache"].as_bool().unwrap() {
                    continue;
                }
                let params = params(case);
                let mut hits = hits(base, &q, params.top_k);
                let found: Vec<i64> = hits.iter().map(|hit| hit.id.0 as i64).collect();
                let (ids, sims) = (expected("topk_ids").whole_row(row), expected("topk_sims").row(row));
                tally.same_but_for_ties(&label("topk_ids"), &found, ids, sims, LIMIT.absolute as f32);
                // Float kernels sum in an order of their own, so every path of this processor has its say.
                for kernels in Kernels::available() {
                    for hit in &mut hits {
                        hit.score = kernels.dot(q.as_slice(), hit.embedding.as_slice());
                    }
                    let label = |what: &str| format!("{}, {}", label(what), kernels.name());
                    let expected = |what: &str| expected(what).row(row);
                    blends(&mut tally, &label, &expected, &q, &hits, &params);
                }
            }
        }
        tally.finish();
    }
}

/// What the neighbours lead to, as far as it is stored: scores, softmax, prototype, result.
fn blends<'a>(
    tally: &mut Tally,
    label: &dyn Fn(&str) -> String,
    expected: &dyn Fn(&str) -> &'a [f32],
    q: &Embedding,
    hits: &[Hit],
    params: &BlendParams,
) {
    let scores: Vec<f32> = hits.iter().map(|hit| hit.score).collect();
    let sims = expected("topk_sims");
    let limit = Limit { absolute: LIMIT.absolute, ..loosened(SCORE, sims) };
    tally.floats(&label("topk_sims"), &scores, sims, sims.len(), limit);
    let blended = blend(q, hits, params).unwrap();
    softmax(tally, &label("softmax"), &blended, expected("softmax"), params);
    let [own, direction, result] = slack(q, hits, &blended.weights, params);
    let (x, expected_x) = (blended.embedding.as_slice(), expected("enhanced"));
    tally.floats(&label("enhanced"), x, expected_x, x.len(), loosened(result, expected_x));
    tally.check(&label("norm"), (norm(x) - 1.0).abs() < 1e-6, || format!("{}", norm(x)));

    // The prototype before it is normalised, from the weights that came back; and the direction that a weight of 1 leaves.
    let r = expected("prototype");
    tally.floats(&label("prototype"), &prototype(hits, &blended.weights), r, r.len(), loosened(own, r));
    let only = blend(q, hits, &BlendParams { weight: 1.0, ..*params }).unwrap().embedding;
    let unit = embedding(r).unit().unwrap();
    let limit = loosened(direction, unit.as_slice());
    tally.floats(&label("unit prototype"), only.as_slice(), unit.as_slice(), r.len(), limit);
}

/// Weights, as far as scores decide them.
fn softmax(tally: &mut Tally, name: &str, blended: &Blended, expected: &[f32], params: &BlendParams) {
    tally.equal(&format!("{name}, neighbours"), &[blended.weights.len()], &[expected.len()]);
    let steepness = steepness(params);
    for (j, (received, expected)) in blended.weights.iter().zip(expected).enumerate() {
        let off = (f64::from(*received) - f64::from(*expected)).abs();
        let limit = LIMIT.absolute + steepness * f64::from(*expected);
        tally.check(&format!("{name}[{j}]"), off <= limit, || {
            format!("expected {expected:e}, received {received:e}: off by {off:.1e}, limit {limit:.1e}")
        });
    }
}

/// Equal vectors may come in any order: scores and result are the same.
#[test]
fn ties_do_not_change_the_result() {
    for path in parts("visual_cache/ties.safetensors") {
        let golden = Tensors::open(&path);
        let (base, queries) = (golden.get("base"), golden.get("query"));
        let mut tally = Tally::new(short(&path));
        let ks: Vec<usize> = golden
            .iter()
            .filter_map(|(name, _)| name.strip_prefix('k')?.strip_suffix(".enhanced")?.parse().ok())
            .collect();
        for k in ks {
            for query in 0..queries.shape[0] {
                let q = mix(&[(&embedding(queries.row(query)), 1.0)]).unwrap();
                let mut hits = hits(base, &q, k);
                let scores: Vec<f32> = hits.iter().map(|hit| hit.score).collect();
                let name = |what: &str| format!("k{k}.{what}, query {query}");
                let sims = golden.get(&format!("k{k}.topk_sims")).row(query);
                tally.floats(&name("topk_sims"), &scores, sims, k, LIMIT);
                let params = BlendParams { top_k: k, ..Default::default() };
                let expected = golden.get(&format!("k{k}.enhanced")).row(query);
                for order in ["as found", "reversed"] {
                    let x = blend(&q, &hits, &params).unwrap().embedding;
                    let name = name(&format!("enhanced, {order}"));
                    tally.floats(&name, x.as_slice(), expected, x.dim(), LIMIT);
                    hits.reverse();
                }
            }
        }
        tally.finish();
    }
}

/// The image-generation path: parts keep their length, a point cloud's is divided by 5, the norm comes back at the end.
#[test]
fn the_image_generation_path() {
    for path in parts("visual_cache/generate_variant.json") {
        let file = json(&path);
        let base = Tensors::open(&path.with_file_name("base.safetensors"));
        let (base, raw) = (base.get("base"), Tensors::open(&path.with_file_name("cases.safetensors")));
        let golden = Tensors::open(&path.with_file_name("generate_variant.safetensors"));
        let point = file["point_scale"].as_f64().unwrap() as f32;
        let cases = file["cases"].as_array().unwrap();
        let mut tally = Tally::new(format!("{}, {} cases", short(&path), cases.len()));
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let expected = golden.get(&format!("{name}.output"));
            for query in 0..expected.shape[0] {
                let part = |(kind, weight, tensor): &(&str, f64, &str)| {
                    let (tensor, factor) = tensor.split_once(" * ").unwrap();
                    let factor: f32 = factor.parse().unwrap();
                    let divide = if *kind == "Point" { point } else { 1.0 };
                    let values = raw.get(tensor).row(query).iter().map(|v| v * factor / divide);
                    (Embedding::new(values.collect()).unwrap(), *weight)
                };
                let parts: Vec<(Embedding, f64)> = inputs(case).iter().map(part).collect();
                let e = mixed(&parts, mix_unnormalised);
                let (q, length) = blend::split_norm(&e).unwrap();
                let params = params(case);
                let hits = hits(base, &q, params.top_k);
                let blended = blend(&q, &hits, &params).unwrap();
                let output = blend::restore_norm(&blended.embedding, length).unwrap();
                let expected = expected.row(query);
                let [.., slack] = slack(&q, &hits, &blended.weights, &params);
                let limit = loosened(length * slack, expected);
                let absolute = limit.absolute * max_abs(expected).max(1.0);
                let limit = Limit { absolute, ..limit };
                tally.floats(&format!("{name}, query {query}"), output.as_slice(), expected, q.dim(), limit);
                let difference = (output.norm() - e.norm()).abs();
                tally.check(name, difference < 1e-5 * e.norm(), || {
                    format!("the norm moved by {difference:e}")
                });
            }
        }
        tally.finish();
    }
}

/// Where the reference fails or answers NaN, and where two of its settings look alike and are not.
#[test]
fn degenerate_cases() {
    for path in parts("visual_cache/base.safetensors") {
        let file = Tensors::open(&path);
        let base = file.get("base");
        let (n, dim) = (base.shape[0], base.shape[1]);
        let q = mix(&[(&embedding(base.row(n / 2)), 0.5)]).unwrap();
        let mut tally = Tally::new(format!("{}, degenerate cases", short(&path)));

        let all = hits(base, &q, n + 1000);
        tally.check("k beyond the cache", all.len() == n, || format!("{} hits of {n}", all.len()));
        let flat = BlendParams { temperature: 0.0, weight: 1.0, ..Default::default() };
        let mean = blend(&q, &all, &flat).unwrap();
        let uniform = vec![(1.0 / n as f64) as f32; n];
        tally.floats("t = 0", &mean.weights, &uniform, n, LIMIT);

        let off = BlendParams { weight: 0.0, ..Default::default() };
        let x = blend(&q, &all[..n.min(10)], &off).unwrap().embedding;
        tally.floats("weight 0 is the query, unit", x.as_slice(), q.unit().unwrap().as_slice(), dim, LIMIT);
        tally.check("weight 0 is not the cache off", x != q, || "the query was not normalised".into());
        let one = BlendParams { top_k: 1, weight: 1.0, ..Default::default() };
        let x = blend(&q, &all[..1], &one).unwrap().embedding;
        let neighbour = all[0].embedding.as_slice();
        tally.floats("k = 1, weight 1 is the neighbour", x.as_slice(), neighbour, dim, LIMIT);

        let zero = embedding(&vec![0.0; dim]);
        let axis = |length: f32| embedding(&[&[length], vec![0.0; dim - 1].as_slice()].concat());
        let opposite = Hit { id: ItemId(0), score: -1.0, embedding: axis(-1.0) };
        let default = BlendParams::default();
        let refused = [
            (
                "an empty cache",
                blend(&q, &hits(&Golden { shape: vec![0, dim], ..base.clone() }, &q, 0), &default),
            ),
            ("k = 0", blend(&q, &all[..1], &BlendParams { top_k: 0, ..default })),
            ("a query of zeros", blend(&zero, &all[..1], &default)),
            ("a query and its opposite", blend(&axis(1.0), &[opposite], &default)),
            ("another length", blend(&embedding(&[1.0]), &all[..1], &default)),
        ];
        for (what, result) in refused {
            tally.check(what, result.is_err(), || format!("{result:?}"));
        }
        tally.check("an input of zeros", mix(&[(&zero, 1.0)]).is_err(), || "it was mixed".into());
        tally.finish();
    }
}
