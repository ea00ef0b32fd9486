//! The softmax over the last axis.

use candle_core::{CpuStorage, CustomOp1, Layout, Result as TensorResult, Shape, Tensor};

use super::rows::{made, numbers, width, with};
use crate::kernels::Kernels;

/// The softmax over the last axis.
pub(in crate::models::layers) fn softmax(x: &Tensor) -> TensorResult<Tensor> {
    let width = width(x)?;
    x.contiguous()?.apply_op1(Softmax { width })
}

struct Softmax {
    width: usize,
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> TensorResult<(CpuStorage, Shape)> {
        let mut y = numbers(x, layout)?.to_vec();
        y.chunks_exact_mut(self.width).for_each(|row| Kernels::get().softmax(row));
        Ok(made(y, layout.shape()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, gradient: &Tensor) -> TensorResult<Option<Tensor>> {
        let mut of_x = Vec::with_capacity(x.elem_count());
        with([y, gradient], |[y, gradient]| {
            for (y, g) in y.chunks_exact(self.width).zip(gradient.chunks_exact(self.width)) {
                let mean = Kernels::get().dot(y, g);
                of_x.extend(y.iter().zip(g).map(|(y, g)| y * (g - mean)));
            }
            Ok(())
        })?;
        Ok(Some(Tensor::from_vec(of_x, x.shape(), x.device())?))
    }
}
