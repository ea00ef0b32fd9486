//! The settings that are compared.

use anyhow::bail;
use serde::Serialize;
use viscache::blend::BlendParams;

/// Most settings of a grid: each is an answer more to every question.
const MOST: usize = 256;

/// What the cache does to a query, in one place of the grid.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Setting {
    /// Neighbours.
    pub(super) top_k: usize,
    /// Inverse temperature of the softmax over them.
    pub(super) temperature: f32,
    /// Share of the prototype.
    pub(super) weight: f32,
}

impl Setting {
    /// For the blend.
    pub(super) fn params(self) -> BlendParams {
        let Setting { top_k, temperature, weight } = self;
        BlendParams { top_k, temperature, weight }
    }
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "top_k {}, temperature {}, weight {}", self.top_k, self.temperature, self.weight)
    }
}

/// All settings of a grid, in the order given: weights change first, then temperatures. What is given twice counts once.
///
/// * `default`: what is taken where a list is empty.
///
/// # Errors
/// A number that the blend does not take; more than [`MOST`] settings.
pub(super) fn settings(
    top_k: &[usize],
    temperature: &[f32],
    weight: &[f32],
    default: BlendParams,
) -> anyhow::Result<Vec<Setting>> {
    let top_k = once(top_k, default.top_k);
    let temperature = once(temperature, default.temperature);
    let weight = once(weight, default.weight);
    let count = top_k.len() * temperature.len() * weight.len();
    if count > MOST {
        bail!("the grid has {count} settings, the most is {MOST}; give fewer values");
    }
    let mut settings = Vec::with_capacity(count);
    for &top_k in &top_k {
        for &temperature in &temperature {
            for &weight in &weight {
                let setting = Setting { top_k, temperature, weight };
                setting.params().validate()?;
                settings.push(setting);
            }
        }
    }
    Ok(settings)
}

/// The values, each once; the default where there are none.
fn once<T: PartialEq + Copy>(values: &[T], default: T) -> Vec<T> {
    let mut kept: Vec<T> = Vec::new();
    for &value in values {
        if !kept.contains(&value) {
            kept.push(value);
        }
    }
    if kept.is_empty() { vec![default] } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_every_combination_once() {
        let default = BlendParams::default();
        let grid = settings(&[10, 50], &[], &[0.5, 1.0, 0.5], default).unwrap();
        let told: Vec<_> = grid.iter().map(|s| (s.top_k, s.temperature, s.weight)).collect();
        assert_eq!(told, [(10, 20.0, 0.5), (10, 20.0, 1.0), (50, 20.0, 0.5), (50, 20.0, 1.0)]);
        assert_eq!(settings(&[], &[], &[], default).unwrap()[0].params(), default);
        assert_eq!(grid[0].to_string(), "top_k 10, temperature 20, weight 0.5");
    }

    #[test]
    fn a_number_that_makes_no_blend_is_named() {
        let of = |k: &[usize], t: &[f32], w: &[f32]| {
            settings(k, t, w, BlendParams::default()).unwrap_err().to_string()
        };
        assert!(of(&[0], &[], &[]).contains("top_k") && of(&[1001], &[], &[]).contains("1001"));
        assert!(of(&[], &[-1.0], &[]).contains("temperature") && of(&[], &[f32::NAN], &[]).contains("NaN"));
        assert!(of(&[], &[], &[1.5]).contains("1.5"));
        let many: Vec<usize> = (1..=257).collect();
        assert!(of(&many, &[], &[]).contains("257 settings"));
    }
}
