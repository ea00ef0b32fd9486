//! The gate of a feed-forward layer.

use candle_core::{Result as TensorResult, Tensor};

use super::fused;

/// `silu(gate) ⊙ raised`
pub(in crate::models) fn swiglu(gate: &Tensor, raised: &Tensor) -> TensorResult<Tensor> {
    if fused::applies(&[gate, raised]) {
        return fused::swiglu(gate, raised);
    }
    gate.silu()? * raised
}
