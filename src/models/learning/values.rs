//! Tensors as names, shapes and numbers: to a file and back, bit for bit.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor, Var};
use safetensors::tensor::{Dtype, TensorView};

use super::Variables;
use crate::models::weights::Weights;
use crate::models::{DeviceKind, Error};

/// Shape and numbers, row by row, of each tensor by its name.
pub type Values = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The same variables on a device.
///
/// # Errors
/// [`Error::Device`] where there is none.
pub fn placed(variables: Variables, device: DeviceKind) -> Result<Variables, Error> {
    if device == DeviceKind::Cpu {
        return Ok(variables);
    }
    let device = device.device()?;
    let moved = variables
        .into_iter()
        .map(|(name, variable)| Ok((name, Var::from_tensor(&variable.to_device(&device)?)?)));
    moved.collect()
}

/// What variables are now.
///
/// # Errors
/// [`Error::Tensor`].
pub fn state(variables: &Variables) -> Result<Values, Error> {
    let of = |(name, variable): (&String, &candle_core::Var)| {
        Ok((name.clone(), (variable.dims().to_vec(), variable.flatten_all()?.to_vec1()?)))
    };
    variables.iter().map(of).collect()
}

/// Gives variables other numbers.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::TensorShape`] and [`Error::SurplusTensor`] for values of other variables; none is changed then.
pub fn restore(variables: &Variables, values: &Values, path: &str) -> Result<(), Error> {
    for (name, variable) in variables {
        let (path, name, expected) = (path.to_owned(), name.clone(), variable.dims().to_vec());
        match values.get(&name) {
            None => return Err(Error::MissingTensor { path, name, expected }),
            Some((received, _)) if *received != expected => {
                return Err(Error::TensorShape { path, name, expected, received: received.clone() });
            }
            Some(_) => {}
        }
    }
    if let Some((name, (shape, _))) = values.iter().find(|(name, _)| !variables.contains_key(*name)) {
        let (path, name, received) = (path.to_owned(), name.clone(), shape.clone());
        return Err(Error::SurplusTensor { path, name, received });
    }
    for (name, variable) in variables {
        let Some((shape, numbers)) = values.get(name) else { continue };
        let tensor = Tensor::from_slice(numbers, &shape[..], &Device::Cpu)?;
        variable.set(&tensor.to_device(variable.device())?)?;
    }
    Ok(())
}

/// The bytes of a safetensors file of them, f32.
///
/// * `about`: what the file says of itself.
///
/// # Errors
/// [`Error::Config`] where there are too many.
pub fn write(values: &Values, about: HashMap<String, String>) -> Result<Vec<u8>, Error> {
    write_all(&[values], about)
}

/// As [`write()`], of several with names of their own each.
///
/// # Errors
/// As [`write()`].
pub fn write_all(parts: &[&Values], about: HashMap<String, String>) -> Result<Vec<u8>, Error> {
    let fail = |e: safetensors::SafeTensorError| Error::Config(format!("tensors cannot be written: {e}"));
    let values = || parts.iter().flat_map(|part| part.iter());
    let bytes: Vec<Vec<u8>> =
        values().map(|(_, (_, numbers))| numbers.iter().flat_map(|n| n.to_le_bytes()).collect()).collect();
    let views = values().zip(&bytes).map(|((name, (shape, _)), bytes)| {
        Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(fail)?))
    });
    let views = views.collect::<Result<Vec<_>, Error>>()?;
    safetensors::serialize(views, Some(about)).map_err(fail)
}

/// All tensors of a file.
///
/// # Errors
/// As [`Weights::values`].
pub fn read(weights: &Weights) -> Result<Values, Error> {
    let of = |name: &str| {
        let shape = weights.shape(name).unwrap_or_default().to_vec();
        let numbers = weights.values(name, &shape)?;
        Ok((name.to_owned(), (shape, numbers)))
    };
    weights.names().map(of).collect()
}
