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
pub(in crate::models) fn values(name: &str, inputs: usize, count: usize, random: &mut Pcg64) -> Vec<f32> {
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

#[cfg(test)]
mod tests {
    use super::super::Size;
    use super::*;
    use crate::models::learning::{state, write};

    fn small(classes: usize, side: usize) -> Config {
        Config { patch: 4, depth: 2, ..Size::Tiny.config(side, classes) }
    }

    #[test]
    fn first_values_are_as_the_program_draws_them() {
        let config = small(10, 32);
        let values = state(&initial(&config, 5, BTreeMap::new()).unwrap()).unwrap();
        assert_eq!(values.len(), shapes(&config).len());
        let of = |name: &str| &values[name].1;
        let spread = |name: &str| {
            let squares: f64 = of(name).iter().map(|&v| f64::from(v).powi(2)).sum();
            (squares / of(name).len() as f64).sqrt()
        };
        for name in ["pos_embed", "blocks.1.attn.qkv.weight", "blocks.0.mlp.fc2.weight", "head.weight"] {
            assert!((spread(name) - SIGMA).abs() < 0.002, "{name}: {}", spread(name));
        }
        let bound = 1.0 / 48f32.sqrt();
        let patches = of("patch_embed.proj.weight");
        assert!(patches.iter().all(|v| v.abs() <= bound) && patches.iter().any(|v| v.abs() > 0.9 * bound));
        assert!(of("patch_embed.proj.bias").iter().any(|&v| v != 0.0));
        assert!(of("blocks.0.norm1.weight").iter().all(|&v| v == 1.0));
        assert!(of("blocks.0.attn.qkv.bias").iter().chain(of("head.bias")).all(|&v| v == 0.0));
        let again = state(&initial(&config, 5, BTreeMap::new()).unwrap()).unwrap();
        let other = state(&initial(&config, 6, BTreeMap::new()).unwrap()).unwrap();
        assert!(values == again && values != other);
    }

    #[test]
    fn published_sizes_have_their_parameters() {
        let count = |config: &Config| -> usize {
            shapes(config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
        };
        let counts = Size::ALL.map(|size| [224, 384].map(|side| count(&size.config(side, 1000))));
        assert_eq!(
            counts,
            [
                [5_701_096, 5_774_056],
                [22_018_024, 22_163_944],
                [86_502_376, 86_794_216],
                [310_445_032, 310_834_152]
            ]
        );
    }

    #[test]
    fn another_model_is_gone_on_with() {
        let (from, to) = (small(10, 32), small(7, 48));
        let before = state(&initial(&from, 1, BTreeMap::new()).unwrap()).unwrap();
        let file = Weights::from_memory("before", write(&before, Default::default()).unwrap()).unwrap();
        let after = state(&continued(&to, 2, &file).unwrap()).unwrap();
        assert_eq!(after["head.weight"].0, [7, to.width], "the head begins anew");
        assert_eq!(after["pos_embed"].0, [1, 145, to.width]);
        let class = |values: &[f32]| values[values.len() - to.width..].to_vec();
        assert_eq!(class(&after["pos_embed"].1), class(&before["pos_embed"].1), "the class token's stays");
        assert_eq!(after["blocks.1.mlp.fc1.weight"], before["blocks.1.mlp.fc1.weight"]);
        let same = state(&continued(&from, 2, &file).unwrap()).unwrap();
        assert!(same == before);
        let deeper = Config { depth: 3, ..small(10, 32) };
        assert!(matches!(continued(&deeper, 0, &file), Err(Error::MissingTensor { .. })));
        let flatter = Config { depth: 1, ..small(10, 32) };
        assert!(matches!(continued(&flatter, 0, &file), Err(Error::SurplusTensor { .. })));
    }

    #[test]
    fn values_that_fit_no_tensor_are_refused() {
        let config = small(10, 32);
        let chosen = |name: &str, shape: Vec<usize>| {
            let values = vec![0.5; shape.iter().product()];
            BTreeMap::from([(name.to_owned(), Thinned { shape, values })])
        };
        let norm = chosen("blocks.0.norm1.weight", vec![config.width]);
        let values = state(&initial(&config, 0, norm).unwrap()).unwrap();
        assert!(values["blocks.0.norm1.weight"].1.iter().all(|&v| v == 0.5));
        assert!(initial(&config, 0, chosen("blocks.0.norm1.weight", vec![3])).is_err());
        assert!(initial(&config, 0, chosen("blocks.9.norm1.weight", vec![config.width])).is_err());
    }
}
