//! `x Wᵀ + b`: the rows of all inputs as one matrix, forward and back, and no matrix laid out anew for a product.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result as TensorResult, Shape, Tensor, bail};

use super::super::graph::learns;
use super::rows::{made, numbers, with};

/// `[.., in]` · `[out, in]`ᵀ + `[out]` → `[.., out]`. The weights may lie in memory in any order.
pub(in crate::models::layers) fn product(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> TensorResult<Tensor> {
    let x = x.contiguous()?;
    match bias {
        Some(bias) => x.apply_op3(weight, &bias.contiguous()?, Product),
        None => x.apply_op2(weight, Product),
    }
}

struct Product;

/// `[rows, in]` · `[out, in]`ᵀ
fn forward(
    x: &CpuStorage,
    layout: &Layout,
    weight: &CpuStorage,
    weight_layout: &Layout,
) -> TensorResult<(CpuStorage, Shape)> {
    let (out, width) = weight_layout.shape().dims2()?;
    let mut shape = layout.dims().to_vec();
    match (shape.last_mut(), layout.is_contiguous()) {
        (Some(last), true) if *last == width && width > 0 => *last = out,
        _ => bail!("rows of {:?} do not fit weights of {:?}", layout.dims(), weight_layout.dims()),
    }
    let rows = layout.shape().elem_count() / width;
    let flat = Layout::contiguous_with_offset((rows, width), layout.start_offset());
    let product = x.matmul(weight, (1, rows, out, width), &flat, &weight_layout.transpose(0, 1)?)?;
    Ok((product, shape.into()))
}

/// Gradients of rows and weights, of which learn.
fn back(x: &Tensor, weight: &Tensor, gradient: &Tensor) -> TensorResult<(Option<Tensor>, Option<Tensor>)> {
    let (out, width) = weight.dims2()?;
    let rows = x.elem_count() / width.max(1);
    let gradient = gradient.contiguous()?.reshape((rows, out))?;
    let of_x = || gradient.matmul(&weight.detach())?.reshape(x.shape());
    let of_weight = || gradient.t()?.matmul(&x.detach().reshape((rows, width))?); // [out, in]
    Ok((learns(&[x]).then(of_x).transpose()?, learns(&[weight]).then(of_weight).transpose()?))
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        forward(x, layout, weight, weight_layout)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>)> {
        back(x, weight, gradient)
    }
}

impl CustomOp3 for Product {
    fn name(&self) -> &'static str {
        "product-and-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        let bias = numbers(bias, bias_layout)?;
        let (CpuStorage::F32(mut product), shape) = forward(x, layout, weight, weight_layout)? else {
            bail!("a fused product is of f32");
        };
        if weight_layout.dims().first() != Some(&bias.len()) {
            bail!("a bias of {} numbers does not fit weights of {:?}", bias.len(), weight_layout.dims());
        }
        for row in product.chunks_exact_mut(bias.len().max(1)) {
            row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
        Ok(made(product, &shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (of_x, of_weight) = back(x, weight, gradient)?;
        let of_bias = || {
            let mut sums = vec![0.0f32; bias.elem_count()];
            with([gradient], |[gradient]| {
                for row in gradient.chunks_exact(sums.len().max(1)) {
                    sums.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
                }
                Ok(())
            })?;
            Tensor::from_vec(sums, bias.shape(), bias.device())
        };
        Ok((of_x, of_weight, learns(&[bias]).then(of_bias).transpose()?))
    }
}
