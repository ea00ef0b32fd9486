//! Passes of our own over a tensor's memory, for what nothing is learned of.

use candle_core::{
    CpuStorage, D, DType, InplaceOp1, InplaceOp2, Layout, Result as TensorResult, Tensor, bail,
};

use super::graph::learns;
use crate::kernels::Kernels;

/// `x + term`, a term of the same shape or of one row; in the memory of `x` where there is a pass for it. Nothing else may
/// hold `x`.
pub(in crate::models) fn add_to(x: Tensor, term: &Tensor) -> TensorResult<Tensor> {
    if applies(&x) && !learns(&[&x, term]) {
        pass(&x, term, &Add)?;
        return Ok(x);
    }
    x.broadcast_add(term)
}

/// `gelu(x + bias)` with the exact GELU, `x·½(1 + erf(x/√2))`; as [`add_to`] in the memory of `x`.
pub(super) fn add_and_gelu(x: Tensor, bias: &Tensor) -> TensorResult<Tensor> {
    if applies(&x) && !learns(&[&x, bias]) {
        pass(&x, bias, &BiasGelu)?;
        return Ok(x);
    }
    x.broadcast_add(bias)?.gelu_erf()
}

/// The softmax over the last axis, in the memory of `x`: f32 on the processor.
pub(super) fn softmax(x: Tensor) -> TensorResult<Tensor> {
    refuse_learning(&[&x], "softmax")?;
    x.inplace_op1(&Softmax { width: x.dim(D::Minus1)? })?;
    Ok(x)
}

fn pass(x: &Tensor, term: &Tensor, op: &impl InplaceOp2) -> TensorResult<()> {
    refuse_learning(&[x, term], op.name())?;
    x.inplace_op2(term, op)
}

/// What is done in a tensor's memory no derivative is taken of.
fn refuse_learning(operands: &[&Tensor], pass: &str) -> TensorResult<()> {
    match learns(operands) {
        true => bail!("the fused pass `{pass}` has no derivative, and an operand of it learns"),
        false => Ok(()),
    }
}

/// Whether our own passes over a tensor's memory apply.
fn applies(x: &Tensor) -> bool {
    if x.device().is_cpu() {
        return x.dtype() == DType::F32;
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        let rows = x.dims().last().is_some_and(|&width| crate::models::cuda::takes(width));
        return rows && matches!(x.dtype(), DType::F32 | DType::BF16);
    }
    false
}

/// The pass of a card with the same result.
#[cfg(feature = "cuda")]
macro_rules! on_a_card {
    ($pass:ident) => {
        fn cuda_fwd(
            &self,
            x: &mut candle_core::CudaStorage,
            layout: &Layout,
            term: &candle_core::CudaStorage,
            term_layout: &Layout,
        ) -> TensorResult<()> {
            crate::models::cuda::run(crate::models::cuda::Pass::$pass, x, layout, term, term_layout)
        }
    };
}

/// `x ← x + term`, row by row.
struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add-in-place"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        layout: &Layout,
        term: &CpuStorage,
        term_layout: &Layout,
    ) -> TensorResult<()> {
        let (x, term) = rows(x, layout, term, term_layout)?;
        for row in x.chunks_exact_mut(term.len()) {
            row.iter_mut().zip(term).for_each(|(x, &term)| *x += term);
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    on_a_card!(Add);
}

/// `x ← softmax(x)`, row by row.
struct Softmax {
    width: usize,
}

impl InplaceOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax-in-place"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> TensorResult<()> {
        let (Some((start, end)), CpuStorage::F32(x)) = (layout.contiguous_offsets(), x) else {
            bail!("work in place needs contiguous f32 tensors");
        };
        let kernels = Kernels::get();
        x[start..end].chunks_exact_mut(self.width.max(1)).for_each(|row| kernels.softmax(row));
        Ok(())
    }
}

/// `x ← gelu(x + bias)`, row by row.
struct BiasGelu;

impl InplaceOp2 for BiasGelu {
    fn name(&self) -> &'static str {
        "bias-gelu"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> TensorResult<()> {
        let (x, bias) = rows(x, layout, bias, bias_layout)?;
        x.chunks_exact_mut(bias.len()).for_each(|row| Kernels::get().bias_gelu(row, bias));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    on_a_card!(BiasGelu);
}

/// The memory of a contiguous f32 tensor and of the row (or tensor) that goes into each of its rows.
fn rows<'a>(
    x: &'a mut CpuStorage,
    layout: &Layout,
    row: &'a CpuStorage,
    row_layout: &Layout,
) -> TensorResult<(&'a mut [f32], &'a [f32])> {
    match (layout.contiguous_offsets(), row_layout.contiguous_offsets(), x, row) {
        (Some((start, end)), Some((from, to)), CpuStorage::F32(x), CpuStorage::F32(row)) if to > from => {
            Ok((&mut x[start..end], &row[from..to]))
        }
        _ => bail!("work in place needs contiguous f32 tensors"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn a_fused_pass_refuses_what_learns() {
        let plain = || Tensor::ones((2, 8), DType::F32, &Device::Cpu).unwrap();
        let row = Tensor::ones(8, DType::F32, &Device::Cpu).unwrap();
        let variable = Var::ones((2, 8), DType::F32, &Device::Cpu).unwrap();
        let made = (variable.as_tensor() * 2.0).unwrap();
        for learning in [variable.as_tensor().clone(), made] {
            let refused = pass(&learning, &row, &Add).unwrap_err().to_string();
            assert!(refused.contains("`add-in-place` has no derivative"), "{refused}");
            assert!(pass(&plain(), &learning, &BiasGelu).is_err());
            assert!(softmax(learning.clone()).is_err());
            // What chooses between the two takes the way that has one.
            let sum = add_to(plain(), &learning).unwrap();
            let gradients = sum.sum_all().unwrap().backward().unwrap();
            assert!(gradients.get(&variable).is_some());
        }
        assert_eq!(variable.as_tensor().to_vec2::<f32>().unwrap(), plain().to_vec2::<f32>().unwrap());
    }
}
