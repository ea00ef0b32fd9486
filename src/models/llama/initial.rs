//! First values of an adapter that has learned nothing: what a bare backbone lacks, and what a pretrained adapter does.
//!
//! ```text
//! ImageBind-LLM and the multimodal V2, first stage
//!   gates                      0: at first nothing is added; new_gate, beside low-rank matrices of V2: 1
//!   prefix_query               normal, as an embedding of PyTorch's; likewise adapter_query, visual_query
//!   linear layers              even in ±1/√in, weight and bias: the bind network; clip_proj, visual_blocks, visual_proj
//!   norms                      1, and 0 for a bias
//! second stage
//!   lora_…_l1                  even in ±1/√in;  lora_…_l2: 0, so that at first they add nothing either
//!   biases                     0
//!   norms of the backbone      as the backbone has them
//! chat
//!   scales, biases, norms      1, 0, as the backbone has them; prompts, where there are any: normal, their gates 0
//! ```
//! What an adapter has already stays in its file, in the floats that it has there. Values are drawn for all tensors, so that one that is
//! there changes no other.
//!
//! Source: the programs published with ImageBind-LLM (arXiv 2309.03905) and LLaMA-Adapter V2 (2304.15010); PyTorch's defaults.

use std::f64::consts::TAU;
use std::ops::Range;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use super::config::{Config, Family};
use crate::models::Error;
use crate::models::learning::Values;

/// Sizes of an adapter, as far as the backbone does not tell them; where nothing is said, the published ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterSizes {
    /// Rank of the low-rank matrices: 16. V2 may have none (0), and the chat program has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Last layers that have the adapter, no more than there are: 32 of ImageBind-LLM, 31 of the multimodal V2, 0 of the chat program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_layers: Option<usize>,
    /// Inner width of the bind network; four times the decoder's where nothing is said.
    pub hidden: Option<usize>,
    /// Standard deviation of the first prefix, or of the first prompts.
    pub prefix_deviation: f64,
    /// Rows of the adapter in each such layer, of V2: prompts, and of the multimodal one visual tokens.
    pub queries: usize,
    /// Width of the multimodal V2's visual blocks.
    pub visual_width: usize,
    /// How many of these blocks there are.
    pub visual_blocks: usize,
}

impl Default for AdapterSizes {
    fn default() -> Self {
        AdapterSizes {
            rank: None,
            query_layers: None,
            hidden: None,
            prefix_deviation: 1.0,
            queries: 10,
            visual_width: 768,
            visual_blocks: 8,
        }
    }
}

impl AdapterSizes {
    /// Rank of a family's low-rank matrices; 0 for none.
    pub fn rank(&self, family: Family) -> usize {
        self.rank.unwrap_or(if family == Family::V2Chat { 0 } else { 16 })
    }

    /// How many of a decoder's layers have the adapter.
    fn query_layers(&self, family: Family, layers: usize) -> usize {
        let published = match family {
            Family::ImageBindLlm => 32.min(layers),
            // All but the first.
            Family::V2Picture => 31.min(layers.saturating_sub(1)),
            Family::V2Chat => 0,
        };
        self.query_layers.map_or(published, |some| some.min(layers))
    }

    /// Refuses sizes that no adapter of the family can have.
    fn check(&self, family: Family, width: usize) -> Result<(), Error> {
        let fail = |why: &str| Err(Error::Config(why.into()));
        let rank = self.rank(family);
        let sizes = match family {
            Family::ImageBindLlm => [Some(rank), self.query_layers, self.hidden, Some(width)],
            Family::V2Picture => {
                [Some(self.queries), self.query_layers, Some(self.visual_width), Some(width)]
            }
            Family::V2Chat if rank > 0 => {
                return fail("the chat program has no low-rank matrices: rank must be 0");
            }
            Family::V2Chat => [Some(self.queries), None, None, None],
        };
        if sizes.contains(&Some(0)) {
            return fail(match family {
                Family::ImageBindLlm => {
                    "rank, query_layers, hidden and the width of embeddings must be above 0"
                }
                _ => "queries, query_layers, visual_width and the width of CLIP's tokens must be above 0",
            });
        }
        if !(self.prefix_deviation.is_finite() && self.prefix_deviation >= 0.0) {
            return fail("prefix_deviation must be a finite number, 0 or above");
        }
        Ok(())
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

/// A tensor of an adapter: its name, its shape, how it begins.
type Tensor = (String, Vec<usize>, Begin);

/// A projection of a layer: group, name, outputs, inputs.
type Projection = (&'static str, &'static str, usize, usize);

fn projections(config: &Config) -> [Projection; 7] {
    let (dim, inner) = (config.dim, config.hidden);
    [
        ("attention", "wq", dim, dim),
        ("attention", "wk", dim, dim),
        ("attention", "wv", dim, dim),
        ("attention", "wo", dim, dim),
        ("feed_forward", "w1", inner, dim),
        ("feed_forward", "w2", dim, inner),
        ("feed_forward", "w3", inner, dim),
    ]
}

/// A linear layer of PyTorch's as it begins.
fn linear(name: &str, out: usize, inputs: usize) -> [Tensor; 2] {
    [
        (format!("{name}.weight"), vec![out, inputs], Begin::Even(inputs)),
        (format!("{name}.bias"), vec![out], Begin::Even(inputs)),
    ]
}

fn layer_norm(name: &str, width: usize) -> [Tensor; 2] {
    [
        (format!("{name}.weight"), vec![width], Begin::Ones),
        (format!("{name}.bias"), vec![width], Begin::Zeros),
    ]
}

fn gates(config: &Config, layers: Range<usize>) -> impl Iterator<Item = Tensor> {
    let heads = config.n_heads;
    layers.map(move |i| (format!("llama.layers.{i}.attention.gate"), vec![1, heads, 1, 1], Begin::Zeros))
}

/// The tensors of an adapter.
fn tensors(
    config: &Config,
    sizes: &AdapterSizes,
    family: Family,
    width: usize,
    stages: Stages,
) -> Vec<Tensor> {
    match family {
        Family::V2Chat => chat(config, sizes),
        Family::ImageBindLlm | Family::V2Picture => {
            let mut all = Vec::new();
            if stages.first && family == Family::ImageBindLlm {
                all.extend(bind(config, sizes, width));
            }
            if stages.first && family == Family::V2Picture {
                all.extend(picture(config, sizes, width));
            }
            let rank = sizes.rank(family);
            if rank > 0 && family == Family::V2Picture {
                let new = |i| (format!("llama.layers.{i}.attention.new_gate"), vec![1; 4], Begin::Ones);
                all.extend((0..config.n_layers).map(new));
            }
            if stages.second {
                all.extend(tuned(config, rank));
            }
            all
        }
    }
}

/// Gates, prefix and bind network.
fn bind(config: &Config, sizes: &AdapterSizes, width: usize) -> Vec<Tensor> {
    let (dim, layers) = (config.dim, config.n_layers);
    let hidden = sizes.hidden.unwrap_or(4 * dim);
    let rows = sizes.query_layers(Family::ImageBindLlm, layers);
    let mut all: Vec<Tensor> = gates(config, 0..layers).collect();
    all.push(("prefix_query.weight".into(), vec![rows, dim], Begin::Normal(sizes.prefix_deviation)));
    all.extend(linear("image_bind_proj", dim, width));
    for n in 1..=3 {
        all.push((format!("image_bind_norm_{n}.weight"), vec![dim], Begin::Ones));
        for (name, out, inputs) in [("f1", hidden, dim), ("f2", dim, hidden), ("f3", hidden, dim)] {
            let name = format!("image_bind_{name}_{n}.weight");
            all.push((name, vec![out, inputs], Begin::Even(inputs)));
        }
    }
    all
}

/// Gates, prompts and the networks behind CLIP.
fn picture(config: &Config, sizes: &AdapterSizes, seen: usize) -> Vec<Tensor> {
    let (dim, layers, width) = (config.dim, config.n_layers, sizes.visual_width);
    let rows = sizes.queries * sizes.query_layers(Family::V2Picture, layers);
    let mut all: Vec<Tensor> = gates(config, 0..layers).collect();
    all.push(("adapter_query.weight".into(), vec![rows, dim], Begin::Normal(sizes.prefix_deviation)));
    all.push(("visual_query.weight".into(), vec![sizes.queries, width], Begin::Normal(1.0)));
    all.extend(linear("clip_proj", width, seen));
    all.extend(layer_norm("clip_proj_norm", width));
    for i in 0..sizes.visual_blocks {
        let at = |part: &str| format!("visual_blocks.{i}.{part}");
        all.extend(layer_norm(&at("norm1"), width));
        all.extend(linear(&at("attn.qkv"), 3 * width, width));
        all.extend(linear(&at("attn.proj"), width, width));
        all.extend(layer_norm(&at("norm2"), width));
        all.extend(linear(&at("mlp.fc1"), 4 * width, width));
        all.extend(linear(&at("mlp.fc2"), width, 4 * width));
    }
    all.extend(linear("visual_proj", dim, width));
    all.extend(layer_norm("visual_proj_norm", dim));
    all
}

/// Norms of the backbone.
fn norms(config: &Config) -> impl Iterator<Item = Tensor> {
    let dim = config.dim;
    let of_layers = (0..config.n_layers)
        .flat_map(|i| ["attention_norm", "ffn_norm"].map(|norm| format!("llama.layers.{i}.{norm}.weight")));
    of_layers.chain(["llama.norm.weight".to_owned()]).map(move |name| (name, vec![dim], Begin::Backbone))
}

/// Norms, biases and low-rank matrices of the backbone.
fn tuned(config: &Config, rank: usize) -> Vec<Tensor> {
    let mut all: Vec<Tensor> = norms(config).collect();
    for i in 0..config.n_layers {
        for (group, name, out, inputs) in projections(config) {
            let at = |part: String| format!("llama.layers.{i}.{group}.{part}");
            if name != "wk" && name != "wv" {
                all.push((at(format!("{name}.bias")), vec![out], Begin::Zeros));
            }
            if rank > 0 {
                let low = |n: usize| at(format!("lora_{name}_l{n}.weight"));
                all.push((low(1), vec![rank, inputs], Begin::Even(inputs)));
                all.push((low(2), vec![out, rank], Begin::Zeros));
            }
        }
    }
    all
}

/// Norms, biases and scales of the backbone; prompts with their gates, if there are to be any.
fn chat(config: &Config, sizes: &AdapterSizes) -> Vec<Tensor> {
    let mut all: Vec<Tensor> = norms(config).collect();
    for i in 0..config.n_layers {
        for (group, name, out, inputs) in projections(config) {
            let at = |part: &str| format!("llama.layers.{i}.{group}.{name}_{part}");
            all.push((at("scale"), vec![inputs], Begin::Ones));
            all.push((at("bias"), vec![out], Begin::Zeros));
        }
    }
    let prompted = sizes.query_layers(Family::V2Chat, config.n_layers);
    if prompted > 0 {
        let shape = vec![prompted * sizes.queries, config.dim];
        all.extend(gates(config, config.n_layers - prompted..config.n_layers));
        all.push(("adapter_query.weight".into(), shape, Begin::Normal(sizes.prefix_deviation)));
    }
    all
}

/// First values of what an adapter lacks, for [`Checkpoint::beginning_with`]. A seed gives the same ones always.
///
/// * `config`: with the family whose adapter it is to be. `width`: components of what it is given: embeddings, or CLIP's tokens.
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
    let family = config.family.unwrap_or(Family::ImageBindLlm);
    let there = checkpoint.adapter().names();
    let own = checkpoint.family();
    // A bare backbone counts as ImageBind-LLM's.
    if own != family && !(own == Family::ImageBindLlm && there.is_empty()) {
        let (own, family) = (own.title(), family.title());
        return Err(Error::Config(format!(
            "what it starts from is an adapter of {own}, and {family}'s is trained"
        )));
    }
    sizes.check(family, width)?;
    let mut random = Pcg64::seed_from_u64(seed);
    let mut values = Values::new();
    for (name, shape, begin) in tensors(config, sizes, family, width, stages) {
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
            Begin::Backbone if there.contains(&name) => continue,
            Begin::Backbone => checkpoint.values(&name, &shape)?,
        };
        if !there.contains(&name) {
            values.insert(name, (shape, drawn));
        }
    }
    Ok(values)
}

fn normal(random: &mut Pcg64) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (TAU * random.random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(tensors: &[Tensor], of: impl Fn(&str) -> bool) -> usize {
        let of = tensors.iter().filter(|(name, ..)| of(name));
        of.map(|(_, shape, _)| shape.iter().product::<usize>()).sum()
    }

    /// At the published sizes, as many numbers learn as the papers and the programs say.
    #[test]
    fn adapters_are_as_large_as_published() {
        let seven = r#"{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32}"#;
        let seven = Config::from_params(seven, Family::V2Picture).unwrap();
        let sizes = AdapterSizes::default();
        let of =
            |family, width, first| tensors(&seven, &sizes, family, width, Stages { first, second: !first });
        let picture = of(Family::V2Picture, 768, true);
        assert_eq!(count(&picture, |name| !name.contains("new_gate")), 61_731_584);
        assert_eq!(count(&picture, |name| name.contains("new_gate")), 32);
        let tuned = of(Family::V2Picture, 768, false);
        assert_eq!(count(&tuned, |name| name.ends_with(".bias")), 1_097_728);
        assert_eq!(count(&tuned, |name| name.contains("lora")), 39_976_960);
        assert_eq!(count(&of(Family::ImageBindLlm, 1024, true), |_| true), 608_322_560);
        assert_eq!(count(&of(Family::ImageBindLlm, 1024, false), |_| true), 41_340_928);
        let large = r#"{"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80}"#;
        let large = Config::from_params(large, Family::V2Chat).unwrap();
        let chat = tensors(&large, &sizes, Family::V2Chat, 0, Stages { first: true, second: true });
        assert_eq!(count(&chat, |name| !name.contains("norm")), 12_492_800);
        assert_eq!(count(&chat, |_| true), 13_811_712);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let refused = |sizes: AdapterSizes, family| sizes.check(family, 768).unwrap_err().to_string();
        let sizes = AdapterSizes::default;
        assert!(
            refused(AdapterSizes { rank: Some(4), ..sizes() }, Family::V2Chat).contains("rank must be 0")
        );
        for family in [Family::V2Picture, Family::V2Chat] {
            assert!(refused(AdapterSizes { queries: 0, ..sizes() }, family).contains("queries"));
        }
        assert!(AdapterSizes { rank: Some(0), ..sizes() }.check(Family::V2Picture, 768).is_ok());
        let most = |query_layers| AdapterSizes { query_layers, ..sizes() }.query_layers(Family::V2Picture, 4);
        assert_eq!((most(None), most(Some(9)), most(Some(1))), (3, 4, 1), "all but the first, or so many");
    }
}
