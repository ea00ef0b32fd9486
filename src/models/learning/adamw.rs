//! AdamW whose moments have names, so that a run can be stopped and goes on bit for bit.
//!
//! ```text
//! gradients by name ─► all finite? ─► their length together ─► clip ─► for each, where its tensor lies:
//!
//!     g ← clip·g      w ← (1 − η·λ)·w      m ← m + (1−β₁)(g − m)      v ← β₂·v + (1−β₂)·g²
//!     w ← w − η/(1−β₁ᵗ) · m / (√v / √(1−β₂ᵗ) + ε)                  η: rate, λ: decay, t: steps of this tensor
//! ```
//!
//! In f32 and in this order, as PyTorch has it: what depends on η, λ and t alone is computed in f64 and rounded once.
//!
//! * **Each tensor counts its own steps.** One without a gradient is left alone: neither moved nor decayed, and not counted. Its
//!   moments begin with its first gradient.
//! * **What decays** is told by names: not a tensor of one axis, not one called a bias, and none that the settings name.
//! * **Nothing is moved by half.** All gradients are looked at before the first tensor is touched.
//! * **Memory**: two moments for each tensor, and a copy of one gradient at a time. Tensors on a card are copied here and back,
//!   because their moments are here.
//!
//! Left out: AMSGrad, and a rate for each layer; no recipe uses them.
//!
//! Source: Loshchilov and Hutter, *Decoupled Weight Decay Regularization* (arXiv 1711.05101); `torch.optim.AdamW` and
//! `torch.nn.utils.clip_grad_norm_`, PyTorch 2.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Tensor, Var, bail};
use serde::{Deserialize, Serialize};

/// Added to the length of all gradients before it divides, as in PyTorch.
const CLIP_EPS: f64 = 1e-6;

/// What stays the same for a whole run, as a recipe says it. `Default` gives PyTorch's values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much of each moment is kept at a step, β₁ and β₂, in `[0, 1)`.
    pub betas: [f64; 2],
    /// Keeps small gradients from being divided by nothing, ε, above 0.
    pub eps: f64,
    /// Length that all gradients together are cut to, above 0; without it, none are cut.
    pub max_norm: Option<f64>,
    /// Tensors that do not decay, though they have more than one axis and are no bias.
    pub undecayed: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { betas: [0.9, 0.999], eps: 1e-8, max_norm: None, undecayed: Vec::new() }
    }
}

impl Settings {
    /// As iLLaMA's program: positions and the class token do not decay.
    pub fn illama() -> Self {
        Settings { undecayed: vec!["pos_embed".into(), "cls_token".into()], ..Settings::default() }
    }

    /// As the programs of ImageBind-LLM and LLaMA-Adapter V2: gates and prompts decay.
    pub fn adapters() -> Self {
        Settings { betas: [0.9, 0.95], ..Settings::default() }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Parameter`] naming the field, its value and what is allowed.
    pub fn check(&self) -> Result<(), Error> {
        let above_zero = |value: f64| value.is_finite() && value > 0.0;
        for (name, beta) in [("betas[0]", self.betas[0]), ("betas[1]", self.betas[1])] {
            within(name, beta, (0.0..1.0).contains(&beta), "a number from 0 to 1, 1 excluded")?;
        }
        within("eps", self.eps, above_zero(self.eps as f32 as f64), "a number above 0 that f32 can hold")?;
        match self.max_norm {
            Some(norm) => within("max_norm", norm, above_zero(norm), "a finite number above 0"),
            None => Ok(()),
        }
    }

    /// Whether a tensor decays.
    ///
    /// * `rank`: how many axes it has.
    pub fn decays(&self, name: &str, rank: usize) -> bool {
        rank != 1 && !name.ends_with(".bias") && !self.undecayed.iter().any(|other| other == name)
    }
}

/// What the optimiser remembers of a tensor: all that a checkpoint must keep of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Steps that it has made, t.
    pub count: u64,
    /// Mean of its gradients, m, in the order of its numbers.
    pub first: Vec<f32>,
    /// Mean of their squares, v.
    pub second: Vec<f32>,
}

/// The optimiser of some tensors.
pub struct AdamW {
    settings: Settings,
    variables: BTreeMap<String, Var>,
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// Before the first step.
    ///
    /// * `variables`: the tensors to be moved, f32. They are shared, not copied.
    ///
    /// # Errors
    /// As [`Settings::check`]; [`Error::Variable`] for a tensor of other numbers than f32.
    pub fn new(variables: &BTreeMap<String, Var>, settings: Settings) -> Result<Self, Error> {
        settings.check()?;
        for (name, variable) in variables {
            if variable.dtype() != DType::F32 || !variable.is_contiguous() {
                return Err(Error::Variable { name: name.clone(), dtype: format!("{:?}", variable.dtype()) });
            }
        }
        Ok(AdamW { settings, variables: variables.clone(), moments: BTreeMap::new() })
    }

    /// Moves every tensor that has a gradient against it. Gives the length of all gradients together, before they are cut.
    ///
    /// * `gradients`: by the names of their tensors and in their shapes; those left out are left alone. `rate`: η. `decay`: λ, of
    ///   the tensors that decay.
    ///
    /// # Errors
    /// [`Error::Parameter`], [`Error::Unknown`], [`Error::Shape`] and [`Error::NotFinite`], of which nothing is moved;
    /// [`Error::Tensor`] where the tensor library fails, which may be in the middle.
    pub fn apply(
        &mut self,
        gradients: &BTreeMap<String, Tensor>,
        rate: f64,
        decay: f64,
    ) -> Result<f64, Error> {
        for (name, value) in [("the learning rate", rate), ("the weight decay", decay)] {
            within(name, value, value.is_finite() && value >= 0.0, "a finite number, 0 or above")?;
        }
        let norm = self.norm(gradients)?;
        let clip = self.settings.max_norm.map_or(1.0, |most| (most / (norm + CLIP_EPS)).min(1.0)) as f32;
        for (name, gradient) in gradients {
            let Some(variable) = self.variables.get(name) else { continue };
            let gradient = floats(gradient)?;
            let moments = self.moments.entry(name.clone()).or_insert_with(|| Moments {
                count: 0,
                first: vec![0.0; gradient.len()],
                second: vec![0.0; gradient.len()],
            });
            moments.count += 1;
            let decay = if self.settings.decays(name, variable.rank()) { decay } else { 0.0 };
            let step = Step::new(&self.settings, rate, decay, clip, moments.count);
            edit(variable, |values| step.take(values, &gradient, moments))?;
        }
        Ok(norm)
    }

    /// What is remembered of every tensor that has been moved, by its name.
    pub fn state(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// Goes on where another optimiser of these tensors stood. The tensors themselves are restored by whoever keeps them.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Shape`] and [`Error::Moments`] for moments that do not belong to these tensors or that no step
    /// leaves; nothing is taken over then.
    pub fn restore(&mut self, state: BTreeMap<String, Moments>) -> Result<(), Error> {
        for (name, moments) in &state {
            let variable = self.variables.get(name).ok_or_else(|| Error::Unknown { name: name.clone() })?;
            for (part, least) in [(&moments.first, f32::MIN), (&moments.second, 0.0)] {
                if part.len() != variable.elem_count() {
                    let (expected, received) = (variable.dims().to_vec(), vec![part.len()]);
                    return Err(Error::Shape { name: name.clone(), expected, received });
                }
                if !part.iter().all(|value| (least..=f32::MAX).contains(value)) {
                    return Err(Error::Moments {
                        name: name.clone(),
                        why: "a value is not finite, or a mean of squares below 0",
                    });
                }
            }
            if moments.count == 0 {
                return Err(Error::Moments { name: name.clone(), why: "they have made no step" });
            }
        }
        self.moments = state;
        Ok(())
    }

    /// The length of all gradients together, when each of them fits its tensor and is finite.
    fn norm(&self, gradients: &BTreeMap<String, Tensor>) -> Result<f64, Error> {
        let mut squares = 0.0;
        for (name, gradient) in gradients {
            let variable = self.variables.get(name).ok_or_else(|| Error::Unknown { name: name.clone() })?;
            if gradient.dims() != variable.dims() {
                let (expected, received) = (variable.dims().to_vec(), gradient.dims().to_vec());
                return Err(Error::Shape { name: name.clone(), expected, received });
            }
            let values = floats(gradient)?;
            // Squares of f32 and their sums are finite in f64, unless a value is not.
            let square = values.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
            if !square.is_finite()
                && let Some(position) = values.iter().position(|g| !g.is_finite())
            {
                return Err(Error::NotFinite { name: name.clone(), position, value: values[position] });
            }
            squares += square;
        }
        Ok(squares.sqrt())
    }
}

/// The numbers of one step of one tensor.
#[derive(Debug, Clone, Copy)]
struct Step {
    clip: f32,
    /// 1 − η·λ.
    kept: f32,
    /// 1 − β₁.
    new_first: f32,
    /// β₂ and 1 − β₂.
    old_second: f32,
    new_second: f32,
    /// −η / (1 − β₁ᵗ).
    along: f32,
    /// √(1 − β₂ᵗ).
    root: f32,
    eps: f32,
}

impl Step {
    fn new(settings: &Settings, rate: f64, decay: f64, clip: f32, count: u64) -> Self {
        let [first, second] = settings.betas;
        let short_of_one = |beta: f64| 1.0 - beta.powf(count as f64);
        Step {
            clip,
            kept: (1.0 - rate * decay) as f32,
            new_first: (1.0 - first) as f32,
            old_second: second as f32,
            new_second: (1.0 - second) as f32,
            along: -(rate / short_of_one(first)) as f32,
            root: short_of_one(second).sqrt() as f32,
            eps: settings.eps as f32,
        }
    }

    fn take(&self, values: &mut [f32], gradient: &[f32], moments: &mut Moments) {
        let moments = moments.first.iter_mut().zip(&mut moments.second);
        for ((w, g), (m, v)) in values.iter_mut().zip(gradient).zip(moments) {
            let g = g * self.clip;
            *m += self.new_first * (g - *m);
            *v = *v * self.old_second + self.new_second * g * g;
            *w = *w * self.kept + self.along * *m / (v.sqrt() / self.root + self.eps);
        }
    }
}

/// A tensor's numbers, row by row.
fn floats(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// Lets a function work on a tensor's numbers: on the CPU where they lie, else on a copy that goes back.
fn edit(variable: &Var, work: impl FnOnce(&mut [f32])) -> Result<(), Error> {
    if variable.device().is_cpu() {
        return Ok(variable.inplace_op1(&Edit(RefCell::new(Some(work))))?);
    }
    let mut values = floats(variable)?;
    work(&mut values);
    Ok(variable.set(&Tensor::from_vec(values, variable.shape(), variable.device())?)?)
}

/// A function, as an operation that the tensor library does in place. It is done once.
struct Edit<F>(RefCell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for Edit<F> {
    fn name(&self) -> &'static str {
        "edit"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("a tensor that is moved in place is f32 and contiguous");
        };
        if let Some(work) = self.0.take() {
            work(&mut values[start..end]);
        }
        Ok(())
    }
}

/// Why a step was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A number outside its range.
    #[error("{name} is {value}; it must be {allowed}")]
    Parameter {
        /// What the recipe calls it.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What would be accepted.
        allowed: &'static str,
    },
    /// A tensor that cannot be moved.
    #[error("`{name}` holds {dtype}; the optimiser moves tensors of f32, row after row")]
    Variable {
        /// Which tensor.
        name: String,
        /// The type of its numbers.
        dtype: String,
    },
    /// A name that none of the optimiser's tensors has.
    #[error("`{name}` is no tensor that this optimiser moves")]
    Unknown {
        /// The name.
        name: String,
    },
    /// A gradient or moments of another shape than their tensor's.
    #[error("what came for `{name}` has shape {received:?}, the tensor has {expected:?}")]
    Shape {
        /// Which tensor.
        name: String,
        /// Its shape.
        expected: Vec<usize>,
        /// The other one.
        received: Vec<usize>,
    },
    /// A gradient that leads nowhere. The run has diverged, or its data are damaged.
    #[error(
        "number {position} of the gradient of `{name}` is {value}; nothing was moved. A lower learning rate may help"
    )]
    NotFinite {
        /// Which tensor.
        name: String,
        /// Which of its numbers, row by row.
        position: usize,
        /// What it is.
        value: f32,
    },
    /// Moments that no step leaves. The checkpoint is damaged.
    #[error("the moments of `{name}` cannot be gone on with: {why}")]
    Moments {
        /// Which tensor.
        name: String,
        /// What is wrong with them.
        why: &'static str,
    },
    /// The tensor library failed.
    #[error("tensor arithmetic failed")]
    Tensor(#[from] candle_core::Error),
}

fn within(name: &'static str, value: f64, holds: bool, allowed: &'static str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Parameter { name, value, allowed }) }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    use super::*;

    /// Sizes with odd ends, so that no lane is left out.
    const SHAPES: [(&str, &[usize]); 5] = [
        ("fc.weight", &[5, 7]),
        ("fc.bias", &[7]),
        ("norm.weight", &[3]),
        ("pos_embed", &[1, 3, 2]),
        ("gate", &[1, 2, 1, 1]),
    ];

    fn noise(random: &mut Pcg64, count: usize) -> Vec<f32> {
        (0..count).map(|_| random.random_range(-1.0f32..1.0)).collect()
    }

    fn tensor(values: Vec<f32>, shape: &[usize]) -> Tensor {
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn variables(seed: u64) -> BTreeMap<String, Var> {
        let mut random = Pcg64::seed_from_u64(seed);
        let one = |(name, shape): (&str, &[usize])| {
            let values = noise(&mut random, shape.iter().product());
            (name.to_owned(), Var::from_tensor(&tensor(values, shape)).unwrap())
        };
        SHAPES.map(one).into()
    }

    /// Gradients of a step; the gate has one only at every third, and the norm begins late.
    fn gradients(step: u64) -> BTreeMap<String, Tensor> {
        let mut random = Pcg64::seed_from_u64(100 + step);
        let one = |(name, shape): (&str, &[usize])| {
            let values = noise(&mut random, shape.iter().product());
            (name.to_owned(), tensor(values, shape))
        };
        let mut all: BTreeMap<_, _> = SHAPES.map(one).into();
        all.retain(|name, _| {
            let absent = (name == "gate" && !step.is_multiple_of(3)) || (name == "norm.weight" && step < 4);
            !absent
        });
        all
    }

    fn bits(variables: &BTreeMap<String, Var>) -> Vec<u32> {
        variables.values().flat_map(|variable| floats(variable).unwrap()).map(f32::to_bits).collect()
    }

    /// The formulas of the paper in f64, number by number.
    #[derive(Default, Clone)]
    struct Twin {
        m: f64,
        v: f64,
        t: i32,
    }

    impl Twin {
        fn step(&mut self, w: f64, g: f64, rate: f64, decay: f64, [b1, b2]: [f64; 2]) -> f64 {
            self.t += 1;
            self.m = b1 * self.m + (1.0 - b1) * g;
            self.v = b2 * self.v + (1.0 - b2) * g * g;
            let (m, v) = (self.m / (1.0 - b1.powi(self.t)), self.v / (1.0 - b2.powi(self.t)));
            w - rate * (m / (v.sqrt() + 1e-8) + decay * w)
        }
    }

    #[test]
    fn steps_are_those_of_a_slow_twin() {
        for settings in [Settings::illama(), Settings { max_norm: Some(0.7), ..Settings::adapters() }] {
            let variables = variables(1);
            let mut optimiser = AdamW::new(&variables, settings.clone()).unwrap();
            let mut expected: BTreeMap<String, Vec<(f64, Twin)>> = variables
                .iter()
                .map(|(name, variable)| {
                    let values = floats(variable).unwrap();
                    (name.clone(), values.iter().map(|&w| (f64::from(w), Twin::default())).collect())
                })
                .collect();
            for step in 0..30 {
                let (gradients, rate, decay) = (gradients(step), 1e-3 * step as f64, 0.05);
                let all = gradients.values().flat_map(|gradient| floats(gradient).unwrap());
                let norm = all.map(|g| f64::from(g).powi(2)).sum::<f64>().sqrt();
                let clip = settings.max_norm.map_or(1.0, |most| (most / (norm + 1e-6)).min(1.0));
                for (name, gradient) in &gradients {
                    // The rule, written out again.
                    let decay = match name.as_str() {
                        "fc.weight" | "gate" => decay,
                        "pos_embed" if settings.undecayed.is_empty() => decay,
                        _ => 0.0,
                    };
                    for ((w, twin), g) in
                        expected.get_mut(name).unwrap().iter_mut().zip(floats(gradient).unwrap())
                    {
                        *w = twin.step(*w, clip * f64::from(g), rate, decay, settings.betas);
                    }
                }
                let received = optimiser.apply(&gradients, rate, decay).unwrap();
                assert!((received - norm).abs() < 1e-9 * norm, "{received}, not {norm}");
            }
            for (name, expected) in &expected {
                for (own, (w, twin)) in floats(&variables[name]).unwrap().iter().zip(expected) {
                    assert!((f64::from(*own) - w).abs() < 2e-6, "{name}: {own}, not {w}");
                    assert_eq!(optimiser.state()[name].count, twin.t as u64, "{name}");
                }
            }
        }
    }

    #[test]
    fn a_run_that_was_stopped_goes_on_bit_for_bit() {
        let go = |optimiser: &mut AdamW, steps: std::ops::Range<u64>| {
            for step in steps {
                optimiser.apply(&gradients(step), 1e-2, 0.1).unwrap();
            }
        };
        let settings = Settings { max_norm: Some(2.0), ..Settings::illama() };
        let (whole, stopped) = (variables(2), variables(2));
        let mut optimiser = AdamW::new(&whole, settings.clone()).unwrap();
        go(&mut optimiser, 0..10);

        let mut before = AdamW::new(&stopped, settings.clone()).unwrap();
        go(&mut before, 0..5);
        let kept = before.state().clone();
        let copies = stopped.iter().map(|(name, variable)| {
            let copy = tensor(floats(variable).unwrap(), variable.dims());
            (name.clone(), Var::from_tensor(&copy).unwrap())
        });
        let copies: BTreeMap<_, _> = copies.collect();
        let mut after = AdamW::new(&copies, settings).unwrap();
        after.restore(kept).unwrap();
        go(&mut after, 5..10);
        assert_eq!(bits(&copies), bits(&whole));
        assert_eq!(after.state(), optimiser.state());
    }

    #[test]
    fn a_tensor_without_a_gradient_is_left_alone() {
        let variables = variables(3);
        let mut optimiser = AdamW::new(&variables, Settings::adapters()).unwrap();
        let before = floats(&variables["gate"]).unwrap();
        for step in [1, 2] {
            optimiser.apply(&gradients(step), 0.1, 0.5).unwrap();
        }
        assert_eq!(floats(&variables["gate"]).unwrap(), before);
        assert!(!optimiser.state().contains_key("gate"));
        assert_eq!(optimiser.apply(&BTreeMap::new(), 0.1, 0.5).unwrap(), 0.0);
        optimiser.apply(&gradients(3), 0.1, 0.5).unwrap();
        assert_ne!(floats(&variables["gate"]).unwrap(), before);
        let counts: Vec<u64> = ["gate", "fc.weight"].map(|name| optimiser.state()[name].count).into();
        assert_eq!(counts, [1, 3]);
    }

    #[test]
    fn gradients_are_cut_together_and_not_one_by_one() {
        let start = BTreeMap::from([("a".to_owned(), 3.0f32), ("b".to_owned(), 4.0)]);
        let variables: BTreeMap<_, _> = start
            .keys()
            .map(|name| (name.clone(), Var::from_vec(vec![0.0f32; 2], 2, &Device::Cpu).unwrap()))
            .collect();
        let gradients: BTreeMap<_, _> =
            start.iter().map(|(name, &g)| (name.clone(), tensor(vec![g, 0.0], &[2]))).collect();
        for (most, share) in [(Some(1.0), 0.2), (Some(50.0), 1.0), (None, 1.0)] {
            let mut optimiser =
                AdamW::new(&variables, Settings { max_norm: most, ..Settings::default() }).unwrap();
            assert_eq!(optimiser.apply(&gradients, 0.0, 0.0).unwrap(), 5.0);
            for (name, g) in &start {
                let first = optimiser.state()[name].first[0];
                assert!((first - 0.1 * share * g).abs() < 1e-6, "{name}, {most:?}: {first}");
            }
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_moves_nothing() {
        let variables = variables(4);
        let mut optimiser = AdamW::new(&variables, Settings::default()).unwrap();
        optimiser.apply(&gradients(0), 0.1, 0.1).unwrap();
        let (before, state) = (bits(&variables), optimiser.state().clone());
        // The last by name, so that all others would have been moved before it.
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut gradients = gradients(6);
            gradients.insert("pos_embed".into(), tensor(vec![0.0, 0.0, 0.0, bad, 0.0, 0.0], &[1, 3, 2]));
            let error = optimiser.apply(&gradients, 0.1, 0.1).unwrap_err().to_string();
            assert!(error.contains("number 3") && error.contains("`pos_embed`"), "{error}");
            assert_eq!(bits(&variables), before);
            assert_eq!(optimiser.state(), &state);
        }
        let mut large = gradients(6);
        large.insert("pos_embed".into(), tensor(vec![f32::MAX; 6], &[1, 3, 2]));
        assert!(optimiser.apply(&large, 0.1, 0.1).is_ok(), "large, but finite");
    }

    #[test]
    fn what_does_not_belong_is_refused() {
        let variables = variables(5);
        let mut optimiser = AdamW::new(&variables, Settings::default()).unwrap();
        let before = bits(&variables);
        let mut refused = |name: &str, shape: &[usize]| {
            let count = shape.iter().product();
            let gradients = BTreeMap::from([(name.to_owned(), tensor(vec![1.0; count], shape))]);
            optimiser.apply(&gradients, 0.1, 0.1).unwrap_err().to_string()
        };
        assert!(refused("fc.wieght", &[5, 7]).contains("`fc.wieght` is no tensor"));
        assert!(refused("fc.weight", &[7, 5]).contains("[5, 7]"));
        for (rate, decay) in [(-0.1, 0.0), (f64::NAN, 0.0), (0.1, -0.1), (0.1, f64::INFINITY)] {
            assert!(optimiser.apply(&gradients(0), rate, decay).is_err(), "{rate} {decay}");
        }
        assert_eq!(bits(&variables), before);
        let moments = |count, first: Vec<f32>, second: Vec<f32>| Moments { count, first, second };
        for (name, moments) in [
            ("other", moments(1, vec![0.0; 7], vec![0.0; 7])),
            ("fc.bias", moments(1, vec![0.0; 6], vec![0.0; 7])),
            ("fc.bias", moments(1, vec![0.0; 7], vec![0.0; 8])),
            ("fc.bias", moments(1, vec![f32::NAN; 7], vec![0.0; 7])),
            ("fc.bias", moments(1, vec![0.0; 7], vec![-1.0; 7])),
            ("fc.bias", moments(0, vec![0.0; 7], vec![0.0; 7])),
        ] {
            assert!(optimiser.restore(BTreeMap::from([(name.to_owned(), moments)])).is_err());
        }
        assert!(optimiser.state().is_empty());
        let halves = Var::zeros(3, DType::F16, &Device::Cpu).unwrap();
        let halves = AdamW::new(&BTreeMap::from([("half".to_owned(), halves)]), Settings::default());
        assert!(halves.is_err_and(|error| error.to_string().contains("`half` holds F16")));
    }

    #[test]
    fn settings_out_of_range_are_refused_by_their_name() {
        let says = |settings: Settings| settings.check().unwrap_err().to_string();
        let plain = Settings::default;
        assert!(says(Settings { betas: [1.0, 0.9], ..plain() }).starts_with("betas[0] is 1"));
        assert!(says(Settings { betas: [0.9, -0.1], ..plain() }).starts_with("betas[1] is -0.1"));
        assert!(says(Settings { eps: 0.0, ..plain() }).starts_with("eps is 0"));
        assert!(says(Settings { eps: 1e-60, ..plain() }).contains("f32"));
        assert!(says(Settings { max_norm: Some(0.0), ..plain() }).starts_with("max_norm is 0"));
        let read = |json: &str| serde_json::from_str::<Settings>(json);
        assert_eq!(read("{}").unwrap(), plain());
        assert_eq!(read(r#"{"betas": [0.9, 0.95]}"#).unwrap(), Settings::adapters());
        assert!(read(r#"{"beta": 0.9}"#).is_err());
    }
}
