//! Encoders that learn to agree: two sides of a batch are drawn together where they belong together, and apart elsewhere.
//!
//! ```text
//! each side ─► a part for each lane ─► unit embeddings, [B, D]
//!            both ─► S = scale · A·Bᵀ ─► ½(CE(S) + CE(Sᵀ)), the diagonal is right ─► its gradients at the embeddings
//! these      ─► through the parts, each where it was computed ─► summed in their order
//! ```
//! Everything of a batch is compared with everything, so the loss is computed in one place and only the encoders in parts. The loss
//! has a scale of its own; the encoders give directions.
//!
//! Source: Radford et al., *Learning Transferable Visual Models From Natural Language Supervision* (arXiv 2103.00020), figure 3;
//! ImageBind (arXiv 2305.05665), §3.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, Device, Tensor, Var};

use super::{Config, ImageBind, ignore};
use crate::models::learning::{Gradients, Lanes, Sum, Values, Variables, placed};
use crate::models::weights::Weights;
use crate::models::{DeviceKind, Error, Placement};
use crate::types::Modality;

/// Inputs that go through an encoder together.
const PART: usize = 16;
/// No logit scale is above it.
const MAX_SCALE: f64 = 100.0;

/// One side of a batch.
#[derive(Debug, Clone, Copy)]
pub enum Side<'a> {
    /// `[B, 3, H, W]`, prepared.
    Pictures(&'a [f32]),
    /// Ids, `[B, context]`.
    Texts(&'a [u32]),
    /// Spectrograms, `[B, 1, bands, frames]`, prepared.
    Sounds(&'a [f32]),
    /// Unit embeddings that do not learn, `[B, D]`.
    Embeddings(&'a [f32]),
}

/// The factor of scores in the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LogitScale {
    /// Always this.
    Fixed(f64),
    /// The exponential of a variable of [`SCALE`], at most 100.
    Learned,
}

/// The name of the logarithm of a scale that is learned, `[]`.
pub const SCALE: &str = "log_logit_scale";

/// A part of a side: its embeddings, in the graph, or as they came.
struct Part {
    rows: Range<usize>,
    embeddings: Tensor,
}

/// Encoders whose tensors are variables.
pub struct Learner {
    model: ImageBind,
    variables: Arc<Variables>,
    device: Device,
    lanes: Lanes,
}

impl Learner {
    /// * `values`: of all tensors that learn, and of [`SCALE`] where it does. `rest`: has those of encoders that do not. `threads`: parts
    ///   of a side that are worked on at a time, on the CPU. `device`: where they learn.
    ///
    /// # Errors
    /// As [`ImageBind::load`]; [`Error::Device`] where no thread can be started.
    pub fn new(
        config: &Config,
        modalities: &[Modality],
        values: &Values,
        rest: Option<&Weights>,
        threads: usize,
        device: DeviceKind,
    ) -> Result<Self, Error> {
        let of = |(name, (shape, numbers)): (&String, &(Vec<usize>, Vec<f32>))| {
            Ok((name.clone(), Var::from_slice(numbers, &shape[..], &Device::Cpu)?))
        };
        let variables: Variables = values.iter().map(of).collect::<Result<_, Error>>()?;
        let placement = Placement::learning(placed(variables, device)?);
        let none = Weights::none();
        let model = ImageBind::load(rest.unwrap_or(&none), config, modalities, &placement)?;
        let lanes = Lanes::start(threads, &placement.device)?;
        let (device, variables) = (placement.device, placement.variables.unwrap_or_default());
        Ok(Learner { model, variables, device, lanes })
    }

    /// What learns, by name.
    pub fn variables(&self) -> &Variables {
        &self.variables
    }

    /// The loss of a batch, and the gradient of every variable that had a part in it.
    ///
    /// # Errors
    /// [`Error::Input`] for sides that are not as many, or not of the shapes that the encoders take; [`Error::NotLoaded`] for a side whose
    /// encoder is not here.
    pub fn gradients(&self, sides: [Side<'_>; 2], scale: LogitScale) -> Result<(f32, Gradients), Error> {
        let parts = [self.embed(sides[0], true)?, self.embed(sides[1], true)?];
        let whole = |parts: &[Part]| {
            let rows: Vec<Tensor> = parts.iter().map(|part| part.embeddings.detach()).collect();
            Ok::<_, Error>(Var::from_tensor(&Tensor::cat(&rows, 0)?)?)
        };
        let [first, second] = [whole(&parts[0])?, whole(&parts[1])?];
        if first.dims() != second.dims() {
            let why = format!("the other side is {:?}", second.dims());
            return Err(Error::Input { received: first.dims().to_vec(), why });
        }
        let scores = first.matmul(&second.t()?)?; // [B, B]
        let scores = match scale {
            LogitScale::Fixed(scale) => (scores * scale)?,
            LogitScale::Learned => scores.broadcast_mul(&self.scale()?)?,
        };
        let loss = ((disagreement(&scores)? + disagreement(&scores.t()?)?)? * 0.5)?;
        let found = loss.backward()?;
        let mut sum = Sum::default();
        if let (LogitScale::Learned, Some(variable)) = (scale, self.variables.get(SCALE)) {
            sum.add(
                found
                    .get(variable.as_tensor())
                    .map(|gradient| (SCALE.to_owned(), gradient.clone()))
                    .into_iter()
                    .collect(),
            )?;
        }
        for (parts, whole) in parts.iter().zip([&first, &second]) {
            let Some(gradient) = found.get(whole.as_tensor()) else { continue };
            for part in self.back(parts, gradient)? {
                sum.add(part)?;
            }
        }
        Ok((loss.to_scalar()?, sum.times(1.0)?))
    }

    /// Unit embeddings without a graph, `[B, D]`, row by row.
    ///
    /// # Errors
    /// As [`Learner::gradients`].
    pub fn embeddings(&self, side: Side<'_>) -> Result<Vec<f32>, Error> {
        let parts = self.embed(side, false)?;
        let rows = parts.into_iter().map(|part| Ok(part.embeddings.flatten_all()?.to_vec1::<f32>()?));
        Ok(rows.collect::<Result<Vec<_>, Error>>()?.concat())
    }

    /// The scale that is learned, as it is now.
    fn scale(&self) -> Result<Tensor, Error> {
        let logarithm = self.variables.get(SCALE).ok_or_else(|| {
            Error::Config(format!("a scale that is learned is a variable, and there is no `{SCALE}`"))
        })?;
        Ok(logarithm.as_tensor().exp()?.minimum(MAX_SCALE)?)
    }

    /// * `learn`: whether the way to the embeddings is kept, for [`Learner::back`].
    fn embed(&self, side: Side<'_>, learn: bool) -> Result<Vec<Part>, Error> {
        let config = self.model.config();
        let (modality, shape) = match side {
            Side::Embeddings(rows) => {
                let width = config.out_embed_dim;
                let count = whole_rows(rows.len(), width, "unit embeddings")?;
                let embeddings = Tensor::from_slice(rows, (count, width), &self.device)?;
                return Ok(vec![Part { rows: 0..count, embeddings }]);
            }
            Side::Pictures(_) => {
                let size = config.vision.as_ref().map(|vision| vision.image_size);
                (Modality::Image, size.map(|[height, width]| vec![3, height, width]))
            }
            Side::Texts(_) => (Modality::Text, config.text.as_ref().map(|text| vec![text.context_length])),
            Side::Sounds(_) => {
                let size = config.audio.as_ref().map(|audio| [audio.num_mel_bins, audio.target_len]);
                (Modality::Audio, size.map(|[bands, frames]| vec![1, bands, frames]))
            }
        };
        let shape = shape.ok_or(Error::NotLoaded(modality))?;
        let of_one: usize = shape.iter().product();
        let numbers = match side {
            Side::Pictures(x) | Side::Sounds(x) | Side::Embeddings(x) => x.len(),
            Side::Texts(ids) => ids.len(),
        };
        let count = whole_rows(numbers, of_one, "inputs")?;
        let encode = |rows: Range<usize>| {
            let shape = [&[rows.len()], &shape[..]].concat();
            let numbers = rows.start * of_one..rows.end * of_one;
            let input = match side {
                Side::Pictures(x) | Side::Sounds(x) | Side::Embeddings(x) => {
                    Tensor::from_slice(&x[numbers], shape, &self.device)?
                }
                Side::Texts(ids) => Tensor::from_slice(&ids[numbers], shape, &self.device)?,
            };
            let embeddings = self.model.encode(modality, &input, &mut ignore)?.output;
            Ok(Part { rows, embeddings: if learn { embeddings } else { embeddings.detach() } })
        };
        let of_lane = |share: Range<usize>| -> Result<Vec<Part>, Error> {
            let firsts = share.clone().step_by(PART);
            firsts.map(|first| encode(first..share.end.min(first + PART))).collect()
        };
        Ok(self.lanes.over(count, &of_lane)?.into_iter().flatten().collect())
    }

    /// Gradients of the variables, part by part, from those of the embeddings, `[B, D]`.
    fn back(&self, parts: &[Part], gradient: &Tensor) -> Result<Vec<Gradients>, Error> {
        let of_lane = |share: Range<usize>| {
            let mut sum = Sum::default();
            for Part { rows, embeddings } in &parts[share] {
                if embeddings.track_op() {
                    let along = gradient.narrow(0, rows.start, rows.len())?;
                    let found = (embeddings * along)?.sum_all()?.backward()?;
                    sum.add_found(&self.variables, &found)?;
                }
            }
            sum.times(1.0)
        };
        self.lanes.over(parts.len(), &of_lane)
    }
}

fn whole_rows(numbers: usize, of_one: usize, what: &str) -> Result<usize, Error> {
    if numbers == 0 || of_one == 0 || !numbers.is_multiple_of(of_one) {
        let why = format!("{what} are {of_one} numbers each, and there must be some");
        return Err(Error::Input { received: vec![numbers], why });
    }
    Ok(numbers / of_one)
}

/// `−mean log softmax(S)ᵢᵢ`, of rows.
fn disagreement(scores: &Tensor) -> Result<Tensor, Error> {
    let count = scores.dim(0)?;
    let logs = candle_nn::ops::log_softmax(scores, D::Minus1)?;
    let right = Tensor::eye(count, scores.dtype(), scores.device())?;
    Ok(((logs * right)?.sum_all()? * (-1.0 / count as f64))?)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    use super::super::initial;
    use super::*;
    use crate::models::learning::adamw::{AdamW, Settings};
    use crate::models::learning::write;

    const SENSES: [Modality; 3] = [Modality::Image, Modality::Text, Modality::Audio];
    const BATCH: usize = 21;

    /// All that nano has, less of it.
    const SMALL: &str = r#"{
        "out_embed_dim": 16,
        "vision": {"image_size": [16, 16], "num_frames": 2, "kernel": [2, 4, 4], "embed_dim": 16, "num_blocks": 2, "num_heads": 2},
        "text": {"context_length": 8, "vocab_size": 40, "embed_dim": 8, "num_blocks": 2, "num_heads": 2},
        "audio": {"num_mel_bins": 16, "target_len": 28, "kernel": 8, "stride": 5, "embed_dim": 12, "num_blocks": 2, "num_heads": 2}
    }"#;

    struct Made {
        pictures: Vec<f32>,
        texts: Vec<u32>,
        sounds: Vec<f32>,
    }

    fn made() -> (Config, Made) {
        let mut random = Pcg64::seed_from_u64(4);
        let mut floats = |n: usize| (0..n).map(|_| random.random_range(-1.0f32..1.0)).collect::<Vec<_>>();
        let (pictures, sounds) = (floats(BATCH * 3 * 16 * 16), floats(BATCH * 16 * 28));
        let text = |i: usize| [38, i as u32, 30, 39, 0, 0, 0, 0];
        let config = Config::from_json(SMALL).unwrap();
        (config, Made { pictures, texts: (0..BATCH).flat_map(text).collect(), sounds })
    }

    fn learner(config: &Config, threads: usize) -> Learner {
        let mut values = initial(config, &SENSES, 1).unwrap();
        values.insert(SCALE.into(), (Vec::new(), vec![(1.0f32 / 0.07).ln()]));
        Learner::new(config, &SENSES, &values, None, threads, DeviceKind::Cpu).unwrap()
    }

    /// Along every tensor's gradient the loss falls by as much as the gradient says.
    #[test]
    fn gradients_are_slopes() {
        let (config, made) = made();
        let learner = learner(&config, 2);
        let pairs = [
            [Side::Pictures(&made.pictures), Side::Texts(&made.texts)],
            [Side::Sounds(&made.sounds), Side::Pictures(&made.pictures)],
        ];
        for sides in pairs {
            let (_, gradients) = learner.gradients(sides, LogitScale::Learned).unwrap();
            for (name, gradient) in &gradients {
                let variable = &learner.variables()[name];
                let before = variable.as_tensor().copy().unwrap();
                let length = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
                if length < 1e-3 {
                    // Keys have biases that change nothing: what is there is rounding.
                    continue;
                }
                let step =
                    2e-2 * before.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
                let step = f64::from(step.clamp(2e-3, 2e-2)) / f64::from(length);
                let loss = |along: f64| {
                    let moved = (&before + (gradient * (step * along)).unwrap()).unwrap();
                    variable.set(&moved).unwrap();
                    f64::from(learner.gradients(sides, LogitScale::Learned).unwrap().0)
                };
                let slope = (loss(1.0) - loss(-1.0)) / (2.0 * step);
                variable.set(&before).unwrap();
                let expected = f64::from(length).powi(2);
                assert!((slope / expected - 1.0).abs() < 0.1, "{name}: {slope}, {expected}");
            }
            let learned = |part: &str| gradients.keys().any(|name| name.contains(part));
            assert!(learned(SCALE) && learned("vision"));
        }
    }

    /// Parts and lanes change a sum's order, and nothing else.
    #[test]
    fn parts_make_no_difference() {
        let (config, made) = made();
        let sides = [Side::Pictures(&made.pictures), Side::Texts(&made.texts)];
        let [one, three] = [1, 3].map(|threads| learner(&config, threads));
        let (loss, gradients) = one.gradients(sides, LogitScale::Fixed(20.0)).unwrap();
        let (other, others) = three.gradients(sides, LogitScale::Fixed(20.0)).unwrap();
        assert!((loss - other).abs() < 1e-5, "{loss} {other}");
        assert!(gradients.keys().eq(others.keys()) && !gradients.contains_key(SCALE));
        for (name, gradient) in &gradients {
            let apart = (gradient - &others[name]).unwrap().abs().unwrap().max_all().unwrap();
            assert!(apart.to_scalar::<f32>().unwrap() < 1e-5, "{name}");
        }
        let again = three.gradients(sides, LogitScale::Fixed(20.0)).unwrap();
        let numbers = |gradients: &Gradients| -> Vec<Vec<f32>> {
            gradients.values().map(|g| g.flatten_all().unwrap().to_vec1().unwrap()).collect()
        };
        assert!(
            again.0 == other && numbers(&again.1) == numbers(&others),
            "the same lanes give the same bits"
        );
    }

    #[test]
    fn pairs_are_drawn_together() {
        let (config, made) = made();
        let learner = learner(&config, 2);
        let sides = [Side::Pictures(&made.pictures), Side::Texts(&made.texts)];
        let mut optimiser = AdamW::new(learner.variables(), Settings::default()).unwrap();
        let mut losses = Vec::new();
        for _ in 0..60 {
            let (loss, gradients) = learner.gradients(sides, LogitScale::Learned).unwrap();
            optimiser.apply(&gradients, 3e-3, 0.0).unwrap();
            losses.push(loss);
        }
        assert!(losses[59] < 0.5 * losses[0], "{losses:?}");
        let rows = learner.embeddings(sides[1]).unwrap();
        let length: f32 = rows[..16].iter().map(|v| v * v).sum();
        assert!((length - 1.0).abs() < 1e-4);
    }

    /// An encoder that does not learn gives what it always gives, and gets no gradient.
    #[test]
    fn what_does_not_learn_stays() {
        let (config, made) = made();
        let first = write(&initial(&config, &SENSES, 7).unwrap(), Default::default()).unwrap();
        let rest = Weights::from_memory("rest", first).unwrap();
        let values = initial(&config, &SENSES[1..2], 1).unwrap();
        let learner = Learner::new(&config, &SENSES[..2], &values, Some(&rest), 2, DeviceKind::Cpu).unwrap();
        let whole = ImageBind::load(&rest, &config, &SENSES[..1], &Placement::cpu()).unwrap();
        let pictures = Tensor::from_slice(&made.pictures, (BATCH, 3, 16, 16), &Device::Cpu).unwrap();
        let expected = whole.encode(Modality::Image, &pictures, &mut ignore).unwrap().output;
        let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let rows = learner.embeddings(Side::Pictures(&made.pictures)).unwrap();
        assert!(rows.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
        let sides = [Side::Embeddings(&rows), Side::Texts(&made.texts)];
        let (loss, gradients) = learner.gradients(sides, LogitScale::Fixed(100.0)).unwrap();
        assert!(loss > 0.0 && gradients.keys().eq(values.keys()));
        let sides = [Side::Pictures(&made.pictures), Side::Texts(&made.texts)];
        let (same, others) = learner.gradients(sides, LogitScale::Fixed(100.0)).unwrap();
        assert!((loss - same).abs() < 1e-4 && others.keys().eq(values.keys()));
    }

    #[test]
    fn sides_that_do_not_fit_are_refused() {
        let (config, made) = made();
        let learner = learner(&config, 1);
        let refused = |sides| learner.gradients(sides, LogitScale::Fixed(1.0)).unwrap_err().to_string();
        let pictures = Side::Pictures(&made.pictures);
        assert!(refused([pictures, Side::Texts(&made.texts[..8])]).contains("the other side"));
        assert!(refused([pictures, Side::Texts(&made.texts[..7])]).contains("8 numbers each"));
        assert!(refused([Side::Pictures(&[]), pictures]).contains("must be some"));
    }
}
