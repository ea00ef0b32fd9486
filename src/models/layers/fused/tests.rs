//! Every operation against the graph of candle's own, forward and back, and against differences.

use candle_core::{D, DType, Device, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::*;
use crate::models::layers::{heads_apart, heads_together};

type Made = candle_core::Result<Tensor>;

/// Numbers that hang on the seed alone.
struct Noise(Pcg64);

impl Noise {
    fn new(seed: u64) -> Self {
        Noise(Pcg64::seed_from_u64(seed))
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.0.random_range(-1.5f32..1.5)).collect()
    }

    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        Tensor::from_vec(self.values(shape.iter().product()), shape, &Device::Cpu).unwrap()
    }

    fn variable(&mut self, shape: &[usize]) -> Var {
        Var::from_tensor(&self.tensor(shape)).unwrap()
    }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn near(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (floats(found), floats(expected));
    let largest = expected.iter().fold(1.0f32, |max, v| max.max(v.abs()));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!((found - expected).abs() <= 1e-5 * largest, "{what}, {i}: {found}, not {expected}");
    }
}

/// The same values and the same gradients of all variables; and where a variable is held fast, of the others.
fn agree(variables: &[Var], fused: &dyn Fn(&[Tensor]) -> Made, steps: &dyn Fn(&[Tensor]) -> Made) {
    for fast in std::iter::once(None).chain((0..variables.len()).map(Some)) {
        let operands: Vec<Tensor> = (0..variables.len())
            .map(|i| {
                let tensor = variables[i].as_tensor();
                if Some(i) == fast { tensor.detach() } else { tensor.clone() }
            })
            .collect();
        if variables.len() == 1 && fast.is_some() {
            continue;
        }
        let (found, expected) = (fused(&operands).unwrap(), steps(&operands).unwrap());
        near(&found, &expected, "forward");
        let along = Noise::new(9).tensor(expected.dims());
        let back = |made: &Tensor| (made * &along).unwrap().sum_all().unwrap().backward().unwrap();
        let (found, expected) = (back(&found), back(&expected));
        for (i, variable) in variables.iter().enumerate() {
            if Some(i) != fast {
                near(found.get(variable).unwrap(), expected.get(variable).unwrap(), &format!("gradient {i}"));
            } else {
                assert!(found.get(variable).is_none(), "{i} does not learn");
            }
        }
    }
}

/// The gradient of each variable against differences, in f64 of f32 results: coarse, but of no other program.
fn differences(variables: &[Var], fused: &dyn Fn(&[Tensor]) -> Made) {
    const STEP: f32 = 2e-2;
    let operands: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let made = fused(&operands).unwrap();
    let along = Noise::new(9).tensor(made.dims());
    let gradients = (made * &along).unwrap().sum_all().unwrap().backward().unwrap();
    let loss = |operands: &[Tensor]| -> f64 {
        let made = floats(&fused(operands).unwrap());
        made.iter().zip(floats(&along)).map(|(y, a)| f64::from(*y) * f64::from(a)).sum()
    };
    for (i, variable) in variables.iter().enumerate() {
        let (values, gradient) = (floats(variable), floats(gradients.get(variable).unwrap()));
        for j in (0..values.len()).step_by(values.len().div_ceil(7)) {
            let at = |shift: f32| {
                let mut values = values.clone();
                values[j] += shift;
                let mut operands = operands.clone();
                operands[i] = Tensor::from_vec(values, variable.shape(), &Device::Cpu).unwrap();
                loss(&operands)
            };
            let slope = (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP);
            let found = f64::from(gradient[j]);
            assert!((found - slope).abs() <= 2e-2 * slope.abs().max(1.0), "{i}[{j}]: {found}, not {slope}");
        }
    }
}

fn check(variables: &[Var], fused: &dyn Fn(&[Tensor]) -> Made, steps: &dyn Fn(&[Tensor]) -> Made) {
    agree(variables, fused, steps);
    differences(variables, fused);
}

fn rms_steps(x: &Tensor, weight: &Tensor) -> Made {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + 1e-6)?.sqrt()?)?.broadcast_mul(weight)
}

fn layer_steps(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Made {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + 1e-6)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)
}

#[test]
fn norms() {
    for shape in [&[2, 3, 37][..], &[5, 1], &[1, 1, 64]] {
        let mut noise = Noise::new(1);
        let width = shape[shape.len() - 1];
        let three = [noise.variable(shape), noise.variable(&[width]), noise.variable(&[width])];
        if width > 1 {
            check(&three[..2], &|v| rms_norm(&v[0], &v[1], 1e-6), &|v| rms_steps(&v[0], &v[1]));
            check(&three, &|v| layer_norm(&v[0], &v[1], &v[2], 1e-6), &|v| layer_steps(&v[0], &v[1], &v[2]));
        }
        agree(&three[..2], &|v| rms_norm(&v[0], &v[1], 1e-6), &|v| rms_steps(&v[0], &v[1]));
    }
    // Of rows that do not lie one behind the other.
    let mut noise = Noise::new(2);
    let variables = [noise.variable(&[7, 2, 5]), noise.variable(&[7]), noise.variable(&[7])];
    check(&variables, &|v| layer_norm(&v[0].permute((1, 2, 0))?, &v[1], &v[2], 1e-6), &|v| {
        layer_steps(&v[0].permute((1, 2, 0))?, &v[1], &v[2])
    });
    check(&variables[..2], &|v| rms_norm(&v[0].t()?.transpose(0, 2)?, &v[1], 1e-6), &|v| {
        rms_steps(&v[0].t()?.transpose(0, 2)?, &v[1])
    });
}

#[test]
fn products() {
    let steps = |x: &Tensor, weight: &Tensor| -> Made {
        let rows = x.reshape((x.elem_count() / x.dim(D::Minus1)?, x.dim(D::Minus1)?))?;
        let mut shape = x.dims().to_vec();
        *shape.last_mut().unwrap() = weight.dim(0)?;
        rows.matmul(&weight.t()?)?.reshape(shape)
    };
    for shape in [&[2, 5, 13][..], &[3, 13], &[1, 1, 13], &[2, 3, 2, 13]] {
        let mut noise = Noise::new(3);
        let three = [noise.variable(shape), noise.variable(&[11, 13]), noise.variable(&[11])];
        check(&three[..2], &|v| product(&v[0], &v[1], None), &|v| steps(&v[0], &v[1]));
        check(&three, &|v| product(&v[0], &v[1], Some(&v[2])), &|v| {
            steps(&v[0], &v[1])?.broadcast_add(&v[2])
        });
    }
    // Weights that lie `[in, out]`, and rows in another order.
    let mut noise = Noise::new(4);
    let two = [noise.variable(&[13, 2, 5]), noise.variable(&[13, 11])];
    let rows = |v: &[Tensor]| v[0].permute((1, 2, 0));
    check(&two, &|v| product(&rows(v)?, &v[1].t()?, None), &|v| steps(&rows(v)?.contiguous()?, &v[1].t()?));
    let [x, weight] = two.each_ref().map(|v| v.as_tensor());
    assert!(product(x, weight, None).is_err(), "of sizes that do not fit");
    let (rows, short) = (x.permute((1, 2, 0)).unwrap(), noise.tensor(&[7]));
    assert!(product(&rows, &weight.t().unwrap(), Some(&short)).is_err());
}

#[test]
fn gates() {
    for shape in [&[2, 3, 5][..], &[1, 1031], &[513]] {
        let mut noise = Noise::new(5);
        let two = [noise.variable(shape), noise.variable(shape)];
        check(&two, &|v| swiglu(&v[0], &v[1]), &|v| v[0].silu()? * &v[1]);
        check(&two[..1], &|v| gelu(&v[0]), &|v| {
            // Written out, because candle's own slope has six digits.
            let erf = (&v[0] / 2f64.sqrt())?.erf()?;
            (&v[0] * 0.5)? * (erf + 1.0)?
        });
    }
    let mut noise = Noise::new(6);
    let two = [noise.variable(&[5, 7]), noise.variable(&[7, 5])];
    check(&two, &|v| swiglu(&v[0].t()?, &v[1]), &|v| v[0].t()?.silu()? * &v[1]);
    check(&two[..1], &|v| softmax(&v[0].t()?), &|v| candle_nn::ops::softmax(&v[0].t()?, D::Minus1));
    assert!(swiglu(two[0].as_tensor(), two[1].as_tensor()).is_err(), "of two shapes");
}

/// Attention of candle's operations.
fn attention_steps(qkv: &Tensor, how: &Attention<'_>) -> Made {
    let (batch, length, wide) = qkv.dims3()?;
    let width = wide / 3;
    let head = width / how.heads;
    let part = |i: usize, extra: Option<&Tensor>| {
        let rows = qkv.narrow(2, i * width, width)?;
        let rows = match extra {
            Some(row) => {
                Tensor::cat(&[&rows, &row.reshape((1, 1, width))?.broadcast_as((batch, 1, width))?], 1)?
            }
            None => rows,
        };
        heads_apart(&rows, how.heads)
    };
    let turned = |x: Tensor| match how.turns {
        Some([cos, sin]) => {
            let pairs = x.reshape((batch, how.heads, length, head / 2, 2))?;
            let (even, odd) = (pairs.narrow(4, 0, 1)?.squeeze(4)?, pairs.narrow(4, 1, 1)?.squeeze(4)?);
            let [cos, sin] = [cos.narrow(0, 0, length)?, sin.narrow(0, 0, length)?];
            let first = (even.broadcast_mul(&cos)? - odd.broadcast_mul(&sin)?)?;
            let second = (even.broadcast_mul(&sin)? + odd.broadcast_mul(&cos)?)?;
            Tensor::stack(&[first, second], 4)?.reshape((batch, how.heads, length, head))
        }
        None => Ok(x),
    };
    let first = if how.last { length - 1 } else { 0 };
    let q = turned(part(0, None)?)?.narrow(2, first, length - first)?.contiguous()?;
    let k = part(1, how.extra.map(|e| e[0]))?;
    let k = if how.turns.is_some() { turned(k)? } else { k };
    let v = part(2, how.extra.map(|e| e[1]))?;
    let rows = |mask: &Tensor| mask.narrow(0, first, length - first);
    let mut scores = (q.matmul(&k.t()?)? * (head as f64).powf(-0.5))?;
    if let Some(added) = how.added {
        scores = scores.broadcast_add(&rows(added)?)?;
    }
    let mut weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
    if let Some(times) = how.times {
        weights = weights.broadcast_mul(&rows(times)?)?;
    }
    heads_together(&weights.matmul(&v)?)
}

#[test]
fn attention() {
    let (batch, length, heads, head) = (2, 5, 3, 6);
    let width = heads * head;
    let mut noise = Noise::new(7);
    let variables = [
        noise.variable(&[batch, length, 3 * width]),
        noise.variable(&[1, 1, width]),
        noise.variable(&[1, 1, width]),
    ];
    let mask = |keys: usize, low: f32| {
        let values: Vec<f32> =
            (0..length * keys).map(|i| if i % keys > i / keys { low } else { 1.0 }).collect();
        Tensor::from_vec(values, (length, keys), &Device::Cpu).unwrap()
    };
    let tables = [noise.tensor(&[length + 2, head / 2]), noise.tensor(&[length + 2, head / 2])];
    let turns = Some([&tables[0], &tables[1]]);
    let (soft, hard) = (mask(length, 0.25), mask(length, 0.0));
    let causal = (mask(length, f32::NEG_INFINITY) - 1.0).unwrap();
    let plain = Attention { heads, ..Attention::default() };
    for how in [
        plain,
        Attention { times: Some(&soft), turns, ..plain },
        Attention { times: Some(&hard), turns, ..plain },
        Attention { times: Some(&soft), turns, last: true, ..plain },
        Attention { added: Some(&causal), ..plain },
        Attention { added: Some(&causal), last: true, ..plain },
        Attention { turns, last: true, ..plain },
    ] {
        check(&variables[..1], &|v| attend(&v[0], &how), &|v| attention_steps(&v[0], &how));
    }
    let wide = (mask(length + 1, -0.5) * 0.7).unwrap();
    for added in [None, Some(&wide)] {
        check(
            &variables,
            &|v| attend(&v[0], &Attention { added, extra: Some([&v[1], &v[2]]), ..plain }),
            &|v| attention_steps(&v[0], &Attention { added, extra: Some([&v[1], &v[2]]), ..plain }),
        );
    }
    // Of rows in another order.
    let turned = [noise.variable(&[length, batch, 3 * width])];
    check(&turned, &|v| attend(&v[0].transpose(0, 1)?, &plain), &|v| {
        attention_steps(&v[0].transpose(0, 1)?, &plain)
    });
}

#[test]
fn what_learns_without_a_derivative_is_refused() {
    let mut noise = Noise::new(8);
    let qkv = noise.variable(&[1, 4, 24]);
    let mask = noise.variable(&[4, 4]);
    let tables = [noise.variable(&[4, 2]), noise.variable(&[4, 2])];
    let plain = Attention { heads: 2, ..Attention::default() };
    for how in [
        Attention { added: Some(&mask), ..plain },
        Attention { times: Some(&mask), ..plain },
        Attention { turns: Some([&tables[0], &tables[1]]), ..plain },
        Attention { heads: 5, ..plain },
        Attention { heads: 0, ..plain },
    ] {
        assert!(attend(&qkv, &how).is_err());
    }
    // Nothing to learn, or other numbers: not for these.
    assert!(!applies(&[&qkv.as_tensor().detach()]));
    assert!(!applies(&[&qkv.as_tensor().to_dtype(DType::F64).unwrap()]));
    assert!(applies(&[&qkv, &noise.tensor(&[1])]));
}
