//! Whether an operation belongs to the graph that derivatives are taken from.

use candle_core::Tensor;

/// Whether a derivative may be asked for through one of these.
pub(in crate::models) fn learns(operands: &[&Tensor]) -> bool {
    operands.iter().any(|operand| operand.track_op())
}
