//! First values of an iLLaMA that has learned nothing, and of one that goes on with another's.
//!
//! ```text
//! pos_embed, cls_token, matrices     normal, σ = 0.02, cut at ±2
//! norms                              1
//! biases                             0
//! patches                            even in ±1/√fan_in, weight and bias
//! ```
//!
//! Source: the program published with iLLaMA; PyTorch's default for convolutions.

use std::collections::BTreeMap;
use std::f64::consts::TAU;

use candle_core::{Device, Var};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::{Config, Thinned};
use crate::models::learning::Variables;
use crate::models::weights::Weights;
use crate::models::{Error, positions};

/// Standard deviation of first values, and where they are cut.
const SIGMA: f64 = 0.02;
const CUT: f64 = 2.0;

/// Names and shapes of all tensors of an iLLaMA, in the order of the published program.
pub fn shapes(config: &Config) -> Vec<(String, Vec<usize>)> {
    let Config { width, depth, patch, classes, .. } = *config;
    let hidden = config.hidden();
    let mut shapes = vec![
        ("cls_token".to_owned(), vec![1, 1, width]),
        ("pos_embed".to_owned(), vec![1, config.patches() + 1, width]),
        ("patch_embed.proj.weight".to_owned(), vec![width, 3, patch, patch]),
        ("patch_embed.proj.bias".to_owned(), vec![width]),
    ];
    for i in 0..depth {
        let of_block: [(&str, Vec<usize>); 9] = [
            ("norm1.weight", vec![width]),
            ("attn.qkv.weight", vec![3 * width, width]),
            ("attn.qkv.bias", vec![3 * width]),
            ("attn.proj.weight", vec![width, width]),
            ("attn.proj.bias", vec![width]),
            ("norm2.weight", vec![width]),
            ("mlp.fc1.weight", vec![hidden, width]),
            ("mlp.fc2.weight", vec![width, hidden]),
            ("mlp.fc3.weight", vec![hidden, width]),
        ];
        shapes.extend(of_block.map(|(name, shape)| (format!("blocks.{i}.{name}"), shape)));
    }
    shapes.push(("norm.weight".to_owned(), vec![width]));
    shapes.push(("head.weight".to_owned(), vec![classes, width]));
    shapes.push(("head.bias".to_owned(), vec![classes]));
    shapes
}

/// Variables with the values that a new model begins with; a seed gives the same ones always.
///
/// * `chosen`: of another model, in the place of those ([`super::select`]).
///
/// # Errors
/// [`Error::Config`] for chosen values of no tensor, or of another shape.
pub fn initial(
    config: &Config,
    seed: u64,
    mut chosen: BTreeMap<String, Thinned>,
) -> Result<Variables, Error> {
    let mut random = Pcg64::seed_from_u64(seed);
    let mut variables = Variables::new();
    for (name, shape) in shapes(config) {
        let count = shape.iter().product();
        // Drawn for all of them, so that one that is chosen changes no other.
        let drawn = values(&name, 3 * config.patch * config.patch, count, &mut random);
        let values = match chosen.remove(&name) {
            None => drawn,
            Some(other) if other.shape == shape => other.values,
            Some(other) => {
                let why = format!("chosen values of `{name}` have shape {:?}, not {shape:?}", other.shape);
                return Err(Error::Config(why));
            }
        };
        variables.insert(name, Var::from_vec(values, shape, &Device::Cpu)?);
    }
    match chosen.keys().next() {
        None => Ok(variables),
        Some(name) => Err(Error::Config(format!("values were chosen for `{name}`, which an iLLaMA lacks"))),
    }
}

/// Variables with the values of a file. Positions of another grid are resized; a head for other classes begins anew.
///
/// # Errors
/// As [`Weights::values`], and [`Error::SurplusTensor`].
pub fn continued(config: &Config, seed: u64, weights: &Weights) -> Result<Variables, Error> {
    let first = initial(config, seed, BTreeMap::new())?;
    let all = shapes(config);
    weights.refuse_surplus(|name| all.iter().any(|(own, _)| own == name))?;
    let mut variables = Variables::new();
    for (name, shape) in all {
        let stored = weights.shape(&name).map(<[usize]>::to_vec);
        let other_head =
            name.starts_with("head.") && stored.as_ref().is_none_or(|stored| stored.first() != shape.first());
        if other_head {
            let fresh = first.get(&name).cloned();
            variables.extend(fresh.map(|fresh| (name, fresh)));
            continue;
        }
        let values = match stored {
            Some(stored) if name == "pos_embed" && stored.len() == 3 && stored != shape => {
                let (from, to) = (stored[1].saturating_sub(1).isqrt(), config.patches().isqrt());
                if from == 0 || from * from + 1 != stored[1] || stored[2] != config.width {
                    weights.values(&name, &shape)?
                } else {
                    let values = weights.values(&name, &stored)?;
                    let (grid, class) = values.split_at(from * from * config.width);
                    [&positions::resized(grid, from, to, config.width), class].concat()
                }
            }
            _ => weights.values(&name, &shape)?,
        };
        variables.insert(name, Var::from_vec(values, shape, &Device::Cpu)?);
    }
    Ok(variables)
}

/// * `inputs`: of a patch.
fn values(name: &str, inputs: usize, count: usize, random: &mut Pcg64) -> Vec<f32> {
    if name.starts_with("patch_embed.proj.") {
        let bound = 1.0 / (inputs as f64).sqrt();
        return (0..count).map(|_| random.random_range(-bound..bound) as f32).collect();
    }
    if name.contains("norm") {
        return vec![1.0; count];
    }
    if name.ends_with(".bias") {
        return vec![0.0; count];
    }
    (0..count).map(|_| normal(random) as f32).collect()
}

/// Of a normal distribution that is cut: values beyond the cut are drawn again.
fn normal(random: &mut Pcg64) -> f64 {
    loop {
        let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
        let value = SIGMA * radius * (TAU * random.random::<f64>()).cos();
        if value.abs() <= CUT {
            return value;
        }
    }
}
