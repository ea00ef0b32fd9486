//! What stands between the products of a feed-forward layer: `silu(a) ⊙ b`, or the exact GELU.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result as TensorResult, Shape, Tensor, bail};

use super::super::graph::learns;
use super::rows::{made, numbers, with};
use crate::kernels::Kernels;

/// Numbers that are worked on at a time, on the stack.
const CHUNK: usize = 512;

/// `silu(gate) ⊙ raised`, of one shape.
pub(in crate::models::layers) fn swiglu(gate: &Tensor, raised: &Tensor) -> TensorResult<Tensor> {
    gate.contiguous()?.apply_op2(&raised.contiguous()?, Swiglu)
}

/// The exact GELU, `x·½(1 + erf(x/√2))`.
pub(in crate::models::layers) fn gelu(x: &Tensor) -> TensorResult<Tensor> {
    x.contiguous()?.apply_op1(Gelu)
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        layout: &Layout,
        raised: &CpuStorage,
        raised_layout: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        if layout.dims() != raised_layout.dims() {
            bail!("a gate of {:?} does not fit {:?}", layout.dims(), raised_layout.dims());
        }
        let (gate, raised) = (numbers(gate, layout)?, numbers(raised, raised_layout)?);
        let mut y = Vec::with_capacity(gate.len());
        for (gate, raised) in gate.chunks(CHUNK).zip(raised.chunks(CHUNK)) {
            let sigmoids = &mut [0.0; CHUNK][..gate.len()];
            sigmoids.copy_from_slice(gate);
            Kernels::get().sigmoid(sigmoids);
            y.extend(gate.iter().zip(raised).zip(sigmoids).map(|((a, b), s)| a * *s * b));
        }
        Ok(made(y, layout.shape()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        raised: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>)> {
        let count = gate.elem_count();
        let (mut of_gate, mut of_raised) = (Vec::with_capacity(count), Vec::with_capacity(count));
        with([gate, raised, gradient], |[gate, raised, gradient]| {
            let parts = gate.chunks(CHUNK).zip(raised.chunks(CHUNK)).zip(gradient.chunks(CHUNK));
            for ((gate, raised), gradient) in parts {
                let sigmoids = &mut [0.0; CHUNK][..gate.len()];
                sigmoids.copy_from_slice(gate);
                Kernels::get().sigmoid(sigmoids);
                let sigmoids = &*sigmoids;
                of_raised.extend(gate.iter().zip(sigmoids).zip(gradient).map(|((a, s), g)| g * a * s));
                let parts = gate.iter().zip(raised).zip(sigmoids).zip(gradient);
                of_gate.extend(parts.map(|(((a, b), s), g)| g * b * s * (1.0 + a * (1.0 - s))));
            }
            Ok(())
        })?;
        let of = |values, tensor: &Tensor| {
            learns(&[tensor]).then(|| Tensor::from_vec(values, tensor.shape(), tensor.device())).transpose()
        };
        Ok((of(of_gate, gate)?, of(of_raised, raised)?))
    }
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> TensorResult<(CpuStorage, Shape)> {
        let mut y = numbers(x, layout)?.to_vec();
        for chunk in y.chunks_mut(CHUNK) {
            Kernels::get().bias_gelu(chunk, &[0.0; CHUNK][..chunk.len()]);
        }
        Ok(made(y, layout.shape()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> TensorResult<Option<Tensor>> {
        let slopes = with([x, gradient], |[x, gradient]| {
            let mut slopes = x.to_vec();
            Kernels::get().gelu_slope(&mut slopes);
            slopes.iter_mut().zip(gradient).for_each(|(slope, g)| *slope *= g);
            Ok(slopes)
        })?;
        Ok(Some(Tensor::from_vec(slopes, x.shape(), x.device())?))
    }
}
