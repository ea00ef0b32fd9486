//! First values of encoders that have learned nothing.
//!
//! ```text
//! matrices, and biases of those of blocks   even in ±1/√in
//! attention: in_proj                        even, Xavier's; its bias and out_proj's 0
//! kernels                                   even in ±1/√fan_in
//! norms                                     1, bias 0
//! cls tokens                                normal, σ = 0.02
//! positions                                 normal, σ = 0.3 of pictures, 0.2 of sounds, 0.01 of texts
//! ids of texts                              normal, σ = 0.05
//! bias_k, bias_v                            normal, Xavier's
//! ```
//! With positions of σ = 0.02, as is usual, a small encoder of pictures does not learn where something is.
//!
//! Source: PyTorch's defaults, but for cls tokens and positions.

use std::f64::consts::TAU;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::config::{Config, Tower};
use super::trunk::MLP_RATIO;
use crate::models::Error;
use crate::models::learning::Values;
use crate::types::Modality;

/// How a tensor begins.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Begin {
    Zeros,
    Ones,
    /// Between this and its negative.
    Even(f64),
    /// Of this standard deviation.
    Normal(f64),
}

/// Tensors with their shapes, as they begin.
struct Tensors(Vec<(String, Vec<usize>, Begin)>);

impl Tensors {
    fn add(&mut self, name: String, shape: &[usize], begin: Begin) {
        self.0.push((name, shape.to_vec(), begin));
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), &[width], Begin::Ones);
        self.add(format!("{name}.bias"), &[width], Begin::Zeros);
    }

    /// `bias`: how it begins.
    fn linear(&mut self, name: &str, [out, width]: [usize; 2], bias: Begin) {
        self.add(format!("{name}.weight"), &[out, width], even(width));
        self.add(format!("{name}.bias"), &[out], bias);
    }
}

/// Even in ±1/√inputs.
fn even(inputs: usize) -> Begin {
    Begin::Even(1.0 / (inputs as f64).sqrt())
}

/// First values of the encoders of some modalities; a seed gives the same ones always. Logit scales are not among them: they belong to
/// the loss.
///
/// # Errors
/// [`Error::Config`] for sizes that are out of range, and for encoders of other modalities than pictures, texts and sounds.
pub fn initial(config: &Config, modalities: &[Modality], seed: u64) -> Result<Values, Error> {
    config.validate(modalities)?;
    let mut values = Values::new();
    for &modality in modalities {
        // Each has a stream of its own, so that one encoder begins alike whichever others there are.
        let mut random = Pcg64::seed_from_u64(seed ^ (Tower::of(modality) as u64) << 32);
        for (name, shape, begin) in tensors(config, Tower::of(modality))? {
            let mut draw = || match begin {
                Begin::Zeros => 0.0,
                Begin::Ones => 1.0,
                Begin::Even(bound) => random.random_range(-bound..bound) as f32,
                Begin::Normal(deviation) => (deviation * normal(&mut random)) as f32,
            };
            let drawn = (0..shape.iter().product::<usize>()).map(|_| draw()).collect();
            values.insert(name, (shape, drawn));
        }
    }
    Ok(values)
}

fn tensors(config: &Config, tower: Tower) -> Result<Vec<(String, Vec<usize>, Begin)>, Error> {
    let word = tower.word();
    let untaught = || Error::Config(format!("no encoder of `{word}` is taught here"));
    let (sizes, stem) = (config.trunk(tower).ok_or_else(untaught)?, format!("modality_preprocessors.{word}"));
    let (width, head) = (sizes.width, format!("modality_heads.{word}"));
    let mut all = Tensors(Vec::new());
    let cls = |all: &mut Tensors| {
        all.add(format!("{stem}.cls_token"), &[1, 1, width], Begin::Normal(0.02));
    };
    match tower {
        Tower::Vision => {
            let vision = config.vision.as_ref().ok_or_else(untaught)?;
            let ([t, kh, kw], (rows, columns)) = (vision.kernel, vision.grid());
            cls(&mut all);
            let kernel = format!("{stem}.rgbt_stem.proj.1.weight");
            all.add(kernel, &[width, 3, t, kh, kw], even(3 * t * kh * kw));
            let positions = format!("{stem}.pos_embedding_helper.pos_embed");
            all.add(positions, &[1, 1 + rows * columns, width], Begin::Normal(0.3));
            all.norm("modality_trunks.vision.pre_transformer_layer.0", width);
        }
        Tower::Text => {
            let text = config.text.as_ref().ok_or_else(untaught)?;
            let ids = format!("{stem}.token_embedding.weight");
            all.add(ids, &[text.vocab_size, width], Begin::Normal(0.05));
            all.add(format!("{stem}.pos_embed"), &[1, text.context_length, width], Begin::Normal(0.01));
        }
        Tower::Audio => {
            let audio = config.audio.as_ref().ok_or_else(untaught)?;
            let (patches, kernel) = (config.size(tower).ok_or_else(untaught)?.0, audio.kernel);
            cls(&mut all);
            all.add(
                format!("{stem}.rgbt_stem.proj.weight"),
                &[width, 1, kernel, kernel],
                even(kernel * kernel),
            );
            all.norm(&format!("{stem}.rgbt_stem.norm_layer"), width);
            let positions = format!("{stem}.pos_embedding_helper.pos_embed");
            all.add(positions, &[1, patches, width], Begin::Normal(0.2));
        }
        Tower::Depth | Tower::Thermal | Tower::Imu | Tower::Point => return Err(untaught()),
    }
    for block in 0..sizes.blocks {
        let at = |part: &str| format!("modality_trunks.{word}.blocks.{block}.{part}");
        let xavier = Begin::Even((6.0 / (4 * width) as f64).sqrt());
        all.add(at("attn.in_proj_weight"), &[3 * width, width], xavier);
        all.add(at("attn.in_proj_bias"), &[3 * width], Begin::Zeros);
        all.linear(&at("attn.out_proj"), [width, width], Begin::Zeros);
        if tower.extra_key() {
            for name in ["attn.bias_k", "attn.bias_v"] {
                all.add(at(name), &[1, 1, width], Begin::Normal(1.0 / (width as f64).sqrt()));
            }
        }
        all.norm(&at("norm_1"), width);
        all.norm(&at("norm_2"), width);
        all.linear(&at("mlp.fc1"), [MLP_RATIO * width, width], even(width));
        all.linear(&at("mlp.fc2"), [width, MLP_RATIO * width], even(MLP_RATIO * width));
    }
    let [norm, project] = if tower == Tower::Text { ["proj.0", "proj.1"] } else { ["0", "2"] };
    all.norm(&format!("{head}.{norm}"), width);
    all.add(format!("{head}.{project}.weight"), &[config.out_embed_dim, width], even(width));
    Ok(all.0)
}

fn normal(random: &mut Pcg64) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (TAU * random.random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use super::super::ImageBind;
    use super::*;
    use crate::models::learning::write;
    use crate::models::weights::Weights;
    use crate::models::{Placement, nano};

    const SENSES: [Modality; 3] = [Modality::Image, Modality::Text, Modality::Audio];

    #[test]
    fn every_tensor_of_a_model_begins() {
        let config = nano::config().unwrap();
        let values = initial(&config, &SENSES, 3).unwrap();
        let there = nano::weights().unwrap();
        for (name, (shape, numbers)) in &values {
            assert_eq!(there.shape(name), Some(&shape[..]), "{name}");
            assert_eq!(numbers.len(), shape.iter().product::<usize>(), "{name}");
        }
        let scale = |name: &str| name.ends_with("log_logit_scale") || name.ends_with("text.mask");
        let left: Vec<&str> =
            there.names().filter(|name| !scale(name) && !values.contains_key(*name)).collect();
        assert!(left.is_empty(), "{left:?}");
        let pictures = initial(&config, &SENSES[..1], 3).unwrap();
        assert!(
            pictures.iter().all(|(name, value)| values.get(name) == Some(value)),
            "each has its own stream"
        );
        assert!(initial(&config, &SENSES[..1], 4).unwrap() != pictures);
        let file = Weights::from_memory("first", write(&pictures, Default::default()).unwrap()).unwrap();
        ImageBind::load(&file, &config, &SENSES[..1], &Placement::cpu()).unwrap();
    }

    #[test]
    fn first_values_are_as_wide_as_they_should_be() {
        let values = initial(&nano::config().unwrap(), &SENSES, 1).unwrap();
        let spread = |name: &str| {
            let (_, numbers) = &values[name];
            (numbers.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / numbers.len() as f64).sqrt()
        };
        let third = 3f64.sqrt();
        for (name, expected) in [
            ("modality_preprocessors.vision.pos_embedding_helper.pos_embed", 0.3),
            ("modality_preprocessors.audio.pos_embedding_helper.pos_embed", 0.2),
            ("modality_preprocessors.text.pos_embed", 0.01),
            ("modality_preprocessors.text.token_embedding.weight", 0.05),
            ("modality_preprocessors.vision.rgbt_stem.proj.1.weight", 1.0 / 384f64.sqrt() / third),
            ("modality_trunks.vision.blocks.2.attn.in_proj_weight", (6.0 / 512f64).sqrt() / third),
            ("modality_trunks.vision.blocks.2.mlp.fc2.weight", 1.0 / 512f64.sqrt() / third),
            ("modality_heads.text.proj.1.weight", 1.0 / 64f64.sqrt() / third),
        ] {
            assert!((spread(name) / expected - 1.0).abs() < 0.05, "{name}: {}", spread(name));
        }
        let constant = |name: &str, value: f32| values[name].1.iter().all(|&v| v == value);
        assert!(constant("modality_trunks.audio.blocks.0.norm_1.weight", 1.0));
        assert!(constant("modality_trunks.audio.blocks.0.attn.out_proj.bias", 0.0));
        assert!(!constant("modality_trunks.audio.blocks.0.mlp.fc1.bias", 0.0));
    }

    #[test]
    fn other_senses_are_refused_by_name() {
        let refused = initial(&Config::huge(), &[Modality::Depth], 0).unwrap_err().to_string();
        assert!(refused.contains("depth"), "{refused}");
    }
}
