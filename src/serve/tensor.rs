//! Tensors ⇄ rows of f32.

use bytes::Bytes;
use half::{bf16, f16};

use super::proto::{Dtype, Tensor};

/// Rows of equal length, still to be checked for their values.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// Components of a row.
    pub dim: usize,
    /// Row-major.
    pub values: Vec<f32>,
}

impl Rows {
    /// The rows one by one.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.dim)
    }
}

/// Reads a tensor of shape `[N, D]` or `[D]`. Without a shape, `values` are one row.
///
/// # Errors
/// A sentence that says what is wrong with which field of it.
pub fn decode_tensor(tensor: &Tensor) -> Result<Rows, String> {
    let values = components(tensor)?;
    let dim = match tensor.shape[..] {
        [] if !tensor.values.is_empty() => values.len(),
        [_] | [_, _] => shape(tensor, values.len())?.last().copied().unwrap_or(values.len()),
        _ => return Err(format!("`shape` {:?} must be [N, D] or [D]", tensor.shape)),
    };
    Ok(Rows { dim, values })
}

/// Reads a tensor of any shape, of up to 8 axes.
///
/// # Errors
/// As [`decode_tensor`].
pub fn decode_array(tensor: &Tensor) -> Result<(Vec<usize>, Vec<f32>), String> {
    let values = components(tensor)?;
    if tensor.shape.is_empty() || tensor.shape.len() > 8 {
        return Err(format!("`shape` {:?} must have 1 to 8 axes", tensor.shape));
    }
    Ok((shape(tensor, values.len())?, values))
}

/// The components, whatever their shape.
fn components(tensor: &Tensor) -> Result<Vec<f32>, String> {
    let data = &tensor.data;
    if !tensor.values.is_empty() {
        return match data.is_empty() {
            true => Ok(tensor.values.clone()),
            false => Err("has both `data` and `values`; send one of them".into()),
        };
    }
    let dtype =
        Dtype::try_from(tensor.dtype).map_err(|_| format!("`dtype` {} is not known", tensor.dtype))?;
    let size = match dtype {
        Dtype::Unspecified | Dtype::F32 => 4,
        Dtype::F16 | Dtype::Bf16 => 2,
    };
    if data.is_empty() {
        return Err("is empty; send `data` with `shape`, or `values`".into());
    }
    if !data.len().is_multiple_of(size) {
        return Err(format!("`data` has {} bytes, not a multiple of {size} as its dtype has", data.len()));
    }
    Ok(match dtype {
        Dtype::Unspecified | Dtype::F32 => {
            data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Dtype::F16 => data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::Bf16 => data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
    })
}

/// The lengths of the axes, if they fit `count` components.
fn shape(tensor: &Tensor, count: usize) -> Result<Vec<usize>, String> {
    let axes: Option<Vec<usize>> =
        tensor.shape.iter().map(|&axis| usize::try_from(axis).ok().filter(|&axis| axis > 0)).collect();
    let fits = |axes: &Vec<usize>| {
        axes.iter().try_fold(1usize, |product, &axis| product.checked_mul(axis)) == Some(count)
    };
    axes.filter(fits).ok_or_else(|| {
        format!("`shape` {:?} does not fit the {count} components that were sent", tensor.shape)
    })
}

/// Writes rows as a tensor `[N, D]`.
pub fn encode_tensor(values: &[f32], dim: usize, dtype: Dtype) -> Tensor {
    let data: Vec<u8> = match dtype {
        Dtype::Unspecified | Dtype::F32 => bytemuck::cast_slice(values).to_vec(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
    };
    let dtype = if dtype == Dtype::Unspecified { Dtype::F32 } else { dtype };
    let rows = values.len().checked_div(dim).unwrap_or(0);
    Tensor {
        dtype: dtype.into(),
        shape: vec![rows as i64, dim as i64],
        data: Bytes::from(data),
        values: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tensors_survive_within_their_type(values in prop::collection::vec(-1.0f32..1.0, 1..40)) {
            for (dtype, error) in [(Dtype::F32, 0.0), (Dtype::F16, 1e-3), (Dtype::Bf16, 1e-2)] {
                let rows = decode_tensor(&encode_tensor(&values, values.len(), dtype)).unwrap();
                prop_assert_eq!(rows.dim, values.len());
                prop_assert!(rows.values.iter().zip(&values).all(|(a, b)| (a - b).abs() <= error));
            }
        }

        #[test]
        fn arbitrary_tensors_never_panic(
            dtype in -1i32..6, shape in prop::collection::vec(any::<i64>(), 0..4),
            data in prop::collection::vec(any::<u8>(), 0..50), values in prop::collection::vec(any::<f32>(), 0..5)
        ) {
            let tensor = Tensor { dtype, shape, data: data.into(), values };
            if let Ok(rows) = decode_tensor(&tensor) {
                prop_assert!(rows.values.len() % rows.dim == 0 && !rows.values.is_empty());
            }
        }
    }

    #[test]
    fn hand_typed_values_need_no_shape() {
        let tensor = Tensor { values: vec![1.0, 2.0], ..Tensor::default() };
        assert_eq!(decode_tensor(&tensor).unwrap(), Rows { dim: 2, values: vec![1.0, 2.0] });
        let both = Tensor { data: vec![0u8; 4].into(), ..tensor };
        assert!(decode_tensor(&both).unwrap_err().contains("both"));
    }
}
