//! First values of a segmenter: those of an iLLaMA, and a decoder that has learned nothing.

use candle_core::{Device, Var};
use rand::SeedableRng;
use rand_pcg::Pcg64;

use super::Config;
use super::network::shapes;
use crate::models::Error;
use crate::models::illama::first_values;
use crate::models::learning::Variables;

/// Variables of a segmenter; a seed gives the same ones always.
///
/// * `backbone`: of [`crate::models::illama::initial`] or [`crate::models::illama::continued`].
///
/// # Errors
/// [`Error::Tensor`].
pub fn initial(config: &Config, backbone: Variables, seed: u64) -> Result<Variables, Error> {
    let mut random = Pcg64::seed_from_u64(seed);
    let mut variables = backbone;
    for (name, shape) in shapes(config) {
        // No tensor of patches is among them, so their inputs are not asked for.
        let values = first_values(&name, 1, shape.iter().product(), &mut random);
        variables.insert(name, Var::from_vec(values, shape, &Device::Cpu)?);
    }
    Ok(variables)
}
