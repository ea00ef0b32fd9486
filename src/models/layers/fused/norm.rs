//! Norms over the last axis. What a row was divided by is found anew on the way back: a row is short and its numbers are at hand.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result as TensorResult, Shape, Tensor};

use super::super::graph::learns;
use super::rows::{made, numbers, sum, width, width_of, with};
use crate::kernels::Kernels;

/// `x / √(mean x² + eps) ⊙ weight`, over the last axis.
pub(in crate::models::layers) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> TensorResult<Tensor> {
    x.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { eps })
}

/// `(x − mean x) / √(variance + eps) ⊙ weight + bias`, over the last axis; the variance is the biased one.
pub(in crate::models::layers) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
) -> TensorResult<Tensor> {
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, LayerNorm { eps })
}

struct RmsNorm {
    eps: f32,
}

impl RmsNorm {
    /// What a row is multiplied by.
    fn factor(&self, row: &[f32]) -> f32 {
        1.0 / (Kernels::get().dot(row, row) / row.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        let (x, weight) = (numbers(x, layout)?, numbers(weight, weight_layout)?);
        let mut y = Vec::with_capacity(x.len());
        for x in x.chunks_exact(width_of(layout, weight)?) {
            let factor = self.factor(x);
            y.extend(x.iter().zip(weight).map(|(x, w)| x * factor * w));
        }
        Ok(made(y, layout.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>)> {
        let width = width(x)?;
        let mut of_weight = vec![0.0; width];
        let mut of_x = Vec::with_capacity(x.elem_count());
        let mut through = vec![0.0; width];
        with([x, weight, gradient], |[x, weight, gradient]| {
            for (x, g) in x.chunks_exact(width).zip(gradient.chunks_exact(width)) {
                let factor = self.factor(x);
                for (((t, sum), (x, g)), w) in
                    through.iter_mut().zip(&mut of_weight).zip(x.iter().zip(g)).zip(weight)
                {
                    *t = g * w;
                    *sum += g * x * factor;
                }
                let along = Kernels::get().dot(&through, x) * factor * factor / width as f32;
                of_x.extend(through.iter().zip(x).map(|(t, x)| (t - x * along) * factor));
            }
            Ok(())
        })?;
        let of = |values, tensor: &Tensor| Tensor::from_vec(values, tensor.shape(), x.device());
        let of_weight = learns(&[weight]).then(|| of(of_weight, weight)).transpose()?;
        Ok((learns(&[x]).then(|| of(of_x, x)).transpose()?, of_weight))
    }
}

struct LayerNorm {
    eps: f32,
}

impl LayerNorm {
    /// A row without its mean, and what that is multiplied by.
    fn factor(&self, row: &[f32], centred: &mut [f32]) -> f32 {
        let mean = sum(row) / row.len() as f32;
        centred.iter_mut().zip(row).for_each(|(centred, x)| *centred = x - mean);
        1.0 / (Kernels::get().dot(centred, centred) / row.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
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
        let (x, weight) = (numbers(x, layout)?, numbers(weight, weight_layout)?);
        let bias = numbers(bias, bias_layout)?;
        let width = width_of(layout, weight)?;
        width_of(layout, bias)?;
        let (mut y, mut centred) = (Vec::with_capacity(x.len()), vec![0.0; width]);
        for x in x.chunks_exact(width) {
            let factor = self.factor(x, &mut centred);
            y.extend(centred.iter().zip(weight).zip(bias).map(|((x, w), b)| x * factor * w + b));
        }
        Ok(made(y, layout.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let width = width(x)?;
        let (mut of_weight, mut of_bias) = (vec![0.0; width], vec![0.0; width]);
        let mut of_x = Vec::with_capacity(x.elem_count());
        let (mut centred, mut through) = (vec![0.0; width], vec![0.0; width]);
        with([x, weight, gradient], |[x, weight, gradient]| {
            for (x, g) in x.chunks_exact(width).zip(gradient.chunks_exact(width)) {
                let factor = self.factor(x, &mut centred);
                for (((t, sum), (x, g)), w) in
                    through.iter_mut().zip(&mut of_weight).zip(centred.iter().zip(g)).zip(weight)
                {
                    *t = g * w;
                    *sum += g * x * factor;
                }
                of_bias.iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
                let mean = sum(&through) / width as f32;
                let along = Kernels::get().dot(&through, &centred) * factor * factor / width as f32;
                of_x.extend(through.iter().zip(&centred).map(|(t, x)| (t - mean - x * along) * factor));
            }
            Ok(())
        })?;
        let of = |values, tensor: &Tensor| {
            learns(&[tensor]).then(|| Tensor::from_vec(values, tensor.shape(), x.device())).transpose()
        };
        Ok((of(of_x, x)?, of(of_weight, weight)?, of(of_bias, bias)?))
    }
}
