//! First values of an adapter that has learned nothing: what a bare backbone lacks, and what a pretrained adapter does.
//!
//! ```text
//! gates                        0: at first nothing is added
//! prefix_query                 normal, as an embedding of PyTorch's
//! image_bind_proj, f1, f2, f3  even in ±1/√in, weight and bias
//! image_bind_norm              1
//! lora_…_l1                    even in ±1/√in;  lora_…_l2: 0, so that at first they add nothing either
//! biases                       0
//! norms of the backbone        as the backbone has them
//! ```
//! What an adapter has already stays as it is. Values are drawn for all tensors, so that one that is there changes no other.
//!
//! Source: the programs published with ImageBind-LLM (arXiv 2309.03905); PyTorch's defaults.

use std::f64::consts::TAU;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use super::config::{Config, Family};
use crate::models::Error;
use crate::models::learning::Values;

/// Sizes of an adapter, as far as the backbone does not tell them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterSizes {
    /// Rank of the low-rank matrices.
    pub rank: usize,
    /// Last layers that have the adapter; no more than there are.
    pub query_layers: usize,
    /// Inner width of the bind network; four times the decoder's where nothing is said.
    pub hidden: Option<usize>,
    /// Standard deviation of the first prefix.
    pub prefix_deviation: f64,
}

impl Default for AdapterSizes {
    fn default() -> Self {
        AdapterSizes { rank: 16, query_layers: 32, hidden: None, prefix_deviation: 1.0 }
    }
}

/// Which tensors an adapter has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stages {
    /// Gates, prefix and bind network.
    pub first: bool,
    /// Norms, biases and low-rank matrices.
    pub second: bool,
}

/// How a tensor begins.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Begin {
    Zeros,
    Ones,
    /// Even, for so many inputs.
    Even(usize),
    Normal(f64),
    /// As the backbone has it.
    Backbone,
}

/// The tensors of an ImageBind-LLM adapter.
fn tensors(
    config: &Config,
    sizes: &AdapterSizes,
    width: usize,
    stages: Stages,
) -> Vec<(String, Vec<usize>, Begin)> {
    let (dim, inner, layers, heads) = (config.dim, config.hidden, config.n_layers, config.n_heads);
    let hidden = sizes.hidden.unwrap_or(4 * dim);
    let mut all = Vec::new();
    let mut add = |name: String, shape: &[usize], begin| all.push((name, shape.to_vec(), begin));
    if stages.first {
        for i in 0..layers {
            add(format!("llama.layers.{i}.attention.gate"), &[1, heads, 1, 1], Begin::Zeros);
        }
        let rows = sizes.query_layers.min(layers);
        add("prefix_query.weight".into(), &[rows, dim], Begin::Normal(sizes.prefix_deviation));
        add("image_bind_proj.weight".into(), &[dim, width], Begin::Even(width));
        add("image_bind_proj.bias".into(), &[dim], Begin::Even(width));
        for n in 1..=3 {
            add(format!("image_bind_norm_{n}.weight"), &[dim], Begin::Ones);
            add(format!("image_bind_f1_{n}.weight"), &[hidden, dim], Begin::Even(dim));
            add(format!("image_bind_f2_{n}.weight"), &[dim, hidden], Begin::Even(hidden));
            add(format!("image_bind_f3_{n}.weight"), &[hidden, dim], Begin::Even(dim));
        }
    }
    if stages.second {
        let rank = sizes.rank;
        for i in 0..layers {
            let at = |part: String| format!("llama.layers.{i}.{part}");
            for norm in ["attention_norm", "ffn_norm"] {
                add(at(format!("{norm}.weight")), &[dim], Begin::Backbone);
            }
            for (group, name, out, width, biased) in [
                ("attention", "wq", dim, dim, true),
                ("attention", "wk", dim, dim, false),
                ("attention", "wv", dim, dim, false),
                ("attention", "wo", dim, dim, true),
                ("feed_forward", "w1", inner, dim, true),
                ("feed_forward", "w2", dim, inner, true),
                ("feed_forward", "w3", inner, dim, true),
            ] {
                if biased {
                    add(at(format!("{group}.{name}.bias")), &[out], Begin::Zeros);
                }
                let low = |n: usize| at(format!("{group}.lora_{name}_l{n}.weight"));
                add(low(1), &[rank, width], Begin::Even(width));
                add(low(2), &[out, rank], Begin::Zeros);
            }
        }
        add("llama.norm.weight".into(), &[dim], Begin::Backbone);
    }
    all
}

/// Everything that an adapter begins with: what the checkpoint's adapter has, and first values of what it lacks. A seed gives the
/// same ones always.
///
/// * `width`: components of the embeddings that it is given.
///
/// # Errors
/// [`Error::Config`] for sizes of 0, or an adapter of another family; as [`Checkpoint::values`].
pub fn begin(
    checkpoint: &Checkpoint,
    config: &Config,
    sizes: &AdapterSizes,
    width: usize,
    stages: Stages,
    seed: u64,
) -> Result<Values, Error> {
    let fail = |why: &str| Err(Error::Config(why.into()));
    if checkpoint.family() != Family::ImageBindLlm {
        return fail("what it starts from is an adapter of LLaMA-Adapter V2, and ImageBind-LLM's is trained");
    }
    if sizes.rank == 0 || sizes.query_layers == 0 || sizes.hidden == Some(0) || width == 0 {
        return fail("rank, query_layers, hidden and the width of embeddings must be above 0");
    }
    if !(sizes.prefix_deviation.is_finite() && sizes.prefix_deviation >= 0.0) {
        return fail("prefix_deviation must be a finite number, 0 or above");
    }
    let mut random = Pcg64::seed_from_u64(seed);
    let mut values = checkpoint.adapter_values()?;
    for (name, shape, begin) in tensors(config, sizes, width, stages) {
        let count = shape.iter().product();
        let drawn = match begin {
            Begin::Zeros => vec![0.0; count],
            Begin::Ones => vec![1.0; count],
            Begin::Even(inputs) => {
                let bound = 1.0 / (inputs as f64).sqrt();
                (0..count).map(|_| random.random_range(-bound..bound) as f32).collect()
            }
            Begin::Normal(deviation) => {
                (0..count).map(|_| (deviation * normal(&mut random)) as f32).collect()
            }
            Begin::Backbone if values.contains_key(&name) => continue,
            Begin::Backbone => checkpoint.values(&name, &shape)?,
        };
        values.entry(name).or_insert((shape, drawn));
    }
    Ok(values)
}

fn normal(random: &mut Pcg64) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (TAU * random.random::<f64>()).cos()
}
