//! First weights of a small iLLaMA from a large LLaMA: every dimension thinned evenly.
//!
//! Block i takes from layer i: norms, queries, keys and values as one stack, the way out, and the three feed-forward matrices. All else
//! keeps the values that it begins with. Values are not scaled. **The stack is thinned as one dimension**, so that parts and heads
//! do not fall together, as in the published program.
//!
//! Source: weight selection (arXiv 2311.18823), as iLLaMA's program uses it.

use std::collections::BTreeMap;

use super::Config;
use crate::models::Error;
use crate::models::weights::Weights;

/// A thinned tensor: its shape and its values, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Thinned {
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// The values.
    pub values: Vec<f32>,
}

/// The indices that are kept of a dimension: every so many where that comes out even, else spread from the first to the last.
pub fn indices(from: usize, to: usize) -> Vec<usize> {
    if to > 0 && from.is_multiple_of(to) {
        return (0..to).map(|i| i * (from / to)).collect();
    }
    // In f32, as the published program has it: half way between two, the even one is taken.
    let last = from.saturating_sub(1) as f32;
    let step = last / to.saturating_sub(1).max(1) as f32;
    let at = |i: usize| {
        // From both ends, as PyTorch's `linspace`.
        let value = if i < to / 2 { step * i as f32 } else { last - step * (to - 1 - i) as f32 };
        value.round_ties_even() as usize
    };
    (0..to).map(at).collect()
}

/// Thins a tensor to a shape, each axis by itself.
///
/// # Errors
/// [`Error::Input`] for another number of axes, or an axis that would become longer.
pub fn thinned(values: &[f32], shape: &[usize], to: &[usize]) -> Result<Thinned, Error> {
    let longer = shape.iter().zip(to).any(|(from, to)| to > from);
    if shape.len() != to.len() || longer || shape.iter().product::<usize>() != values.len() {
        let why = format!("{} values of {shape:?} cannot be thinned to {to:?}", values.len());
        return Err(Error::Input { received: shape.to_vec(), why });
    }
    let kept: Vec<Vec<usize>> = shape.iter().zip(to).map(|(&from, &to)| indices(from, to)).collect();
    let mut places = vec![0usize];
    for (kept, &length) in kept.iter().zip(shape) {
        places = places.iter().flat_map(|place| kept.iter().map(move |i| place * length + i)).collect();
    }
    Ok(Thinned { shape: to.to_vec(), values: places.into_iter().map(|place| values[place]).collect() })
}

/// Tensors of an iLLaMA by name, from the layers of a LLaMA in Hugging Face's names.
///
/// * `layers`: the files.
///
/// # Errors
/// [`Error::Config`] for a model that is larger than the LLaMA; as [`Weights::values`].
pub fn select(layers: &[Weights], config: &Config) -> Result<BTreeMap<String, Thinned>, Error> {
    let read = |name: &str| -> Result<(Vec<usize>, Vec<f32>), Error> {
        let holder = layers.iter().find_map(|file| Some((file, file.shape(name)?.to_vec())));
        let Some((file, shape)) = holder else {
            return Err(Error::Config(format!("no file of the LLaMA has `{name}`")));
        };
        let values = file.values(name, &shape)?;
        Ok((shape, values))
    };
    let (width, hidden) = (config.width, config.hidden());
    let mut selected = BTreeMap::new();
    for i in 0..config.depth {
        let layer = |part: &str| format!("model.layers.{i}.{part}.weight");
        let mut put = |name: &str, (shape, values): (Vec<usize>, Vec<f32>), to: &[usize]| {
            selected.insert(format!("blocks.{i}.{name}.weight"), thinned(&values, &shape, to)?);
            Ok::<_, Error>(())
        };
        put("norm1", read(&layer("input_layernorm"))?, &[width])?;
        put("norm2", read(&layer("post_attention_layernorm"))?, &[width])?;
        let parts = ["q_proj", "k_proj", "v_proj"].map(|part| read(&layer(&format!("self_attn.{part}"))));
        let (mut rows, mut columns, mut stack) = (0, 0, Vec::new());
        for part in parts {
            let (shape, values) = part?;
            let &[out, inner] = &shape[..] else {
                return Err(Error::Config(format!("a projection of layer {i} has shape {shape:?}")));
            };
            (rows, columns) = (rows + out, inner);
            stack.extend(values);
        }
        put("attn.qkv", (vec![rows, columns], stack), &[3 * width, width])?;
        put("attn.proj", read(&layer("self_attn.o_proj"))?, &[width, width])?;
        put("mlp.fc1", read(&layer("mlp.gate_proj"))?, &[hidden, width])?;
        put("mlp.fc2", read(&layer("mlp.down_proj"))?, &[width, hidden])?;
        put("mlp.fc3", read(&layer("mlp.up_proj"))?, &[hidden, width])?;
    }
    Ok(selected)
}
