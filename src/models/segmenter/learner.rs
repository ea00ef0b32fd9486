//! A segmenter as something that learns: the loss of a batch, and a gradient for every tensor that learns.
//!
//! ```text
//! a batch ─► a share for each lane ─► a picture at a time ─► logits of its grid ─► loss and its gradient there (`pixels.rs`)
//!                                                                                └► through decoder and blocks
//! ```

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::Config;
use super::network::Segmenter;
use super::pixels::{Grid, loss};
use crate::models::illama::Keep;
use crate::models::learning::{Gradients, Lanes, Sum, Values, Variables, through_blocks, write};
use crate::models::weights::Weights;
use crate::models::{Error, Placement};

/// What one step looks at.
#[derive(Debug, Clone, Copy)]
pub struct Lesson<'a> {
    /// `[B, 3, S, S]`, prepared.
    pub pictures: &'a [f32],
    /// `[B, S, S]`: classes from 1 on, 0 where nothing is said.
    pub labels: &'a [u8],
    /// What of each branch is added, by branch (two in each block) and picture: `[2·depth, B]`. Empty: all as it is.
    pub kept: &'a [f32],
}

/// A segmenter of whose tensors some or all are variables.
pub struct Learner {
    model: Segmenter,
    variables: Arc<Variables>,
    device: Device,
    lanes: Lanes,
    blockwise: bool,
}

impl Learner {
    /// * `variables`: what learns. `others`: all other tensors, which stay. `threads`: parts of a batch that are worked on at a time.
    ///   `blockwise`: hold the activations of one block at a time; each is computed twice for that.
    ///
    /// # Errors
    /// As [`Segmenter::load`]; [`Error::Device`] where no thread can be started.
    pub fn new(
        config: &Config,
        variables: Variables,
        others: &Values,
        threads: usize,
        blockwise: bool,
    ) -> Result<Self, Error> {
        let placement = Placement::learning(variables);
        let others = match others.is_empty() {
            true => Weights::none(),
            false => Weights::from_memory("what does not learn", write(others, Default::default())?)?,
        };
        let model = Segmenter::load(&others, config, &placement)?;
        let variables = placement.variables.clone().unwrap_or_default();
        // Where no block learns, there is nothing to be saved.
        let blockwise = blockwise && variables.keys().any(|name| name.starts_with("blocks."));
        let (device, lanes) = (placement.device.clone(), Lanes::start(threads, &placement.device)?);
        Ok(Learner { model, variables, device, lanes, blockwise })
    }

    /// What learns, by name.
    pub fn variables(&self) -> &Variables {
        &self.variables
    }

    /// The sizes.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// The loss of a batch, the mean over its labelled pixels, and the gradients of what learns; none where no pixel is labelled.
    ///
    /// # Errors
    /// [`Error::Input`] for a batch whose parts do not fit each other or the model.
    pub fn gradients(&self, lesson: &Lesson<'_>) -> Result<(f32, Gradients), Error> {
        let backbone = &self.config().backbone;
        let (side, depth) = (backbone.side, backbone.depth);
        let count = lesson.labels.len() / (side * side);
        let branches = if lesson.kept.is_empty() { 0 } else { 2 * depth };
        let fits = count > 0
            && lesson.labels.len() == count * side * side
            && lesson.pictures.len() == count * 3 * side * side
            && lesson.kept.len() == count * branches
            && lesson.labels.iter().all(|&label| usize::from(label) <= backbone.classes);
        if !fits {
            let received = vec![lesson.pictures.len(), lesson.labels.len(), lesson.kept.len()];
            let why = format!(
                "pictures [B, 3, {side}, {side}], labels [B, {side}, {side}] up to {}, kept [{branches}, B]",
                backbone.classes
            );
            return Err(Error::Input { received, why });
        }
        let labelled = lesson.labels.iter().filter(|&&label| label > 0).count();
        if labelled == 0 {
            return Ok((0.0, Gradients::new()));
        }
        self.lanes.sum(count, &|pictures: Range<usize>| {
            let (mut sum, mut all) = (0.0, Sum::default());
            for picture in pictures {
                let kept: Vec<f32> = (0..branches).map(|b| lesson.kept[b * count + picture]).collect();
                let labels = &lesson.labels[picture * side * side..][..side * side];
                let values = &lesson.pictures[picture * 3 * side * side..][..3 * side * side];
                sum += self.picture(values, labels, &kept, 1.0 / labelled as f64, &mut all)?;
            }
            Ok((sum as f32, all.times(1.0)?))
        })
    }

    /// One picture; `share`: what a pixel counts.
    fn picture(
        &self,
        values: &[f32],
        labels: &[u8],
        kept: &[f32],
        share: f64,
        sum: &mut Sum,
    ) -> Result<f64, Error> {
        let side = self.config().backbone.side;
        let picture = Tensor::from_slice(values, (1, 3, side, side), &self.device)?;
        let mask = self.model.mask()?;
        let keep = |branch: usize, added: Tensor| match kept.get(branch) {
            None => Ok(added),
            Some(&factor) => Ok((added * f64::from(factor))?),
        };
        let keep: &Keep<'_> = &keep;
        let block = |i: usize, x: &Tensor, _: Option<&Tensor>| self.model.step(i, x, mask.as_ref(), keep);
        let value = std::cell::Cell::new(0.0);
        // A number whose gradient is the loss's; the loss itself stands beside it.
        let end = |x: &Tensor| {
            let logits = self.model.end(x)?;
            let (grid, classes) = (self.config().grid(), self.config().classes());
            let known = Grid { side: grid, classes, logits: logits.flatten_all()?.to_vec1()? };
            let (loss, gradient) = loss(&known, labels, share);
            value.set(loss);
            let gradient = Tensor::from_vec(gradient, logits.shape(), &self.device)?;
            Ok((logits * gradient)?.sum_all()?)
        };
        let x = self.model.begin(&picture)?;
        if self.blockwise {
            let mut collect = |found: &_| sum.add_found(&self.variables, found);
            through_blocks(&x, None, self.model.steps(), &block, &end, &mut collect)?;
        } else {
            let x = (0..self.model.steps()).try_fold(x, |x, i| block(i, &x, None))?;
            sum.add_found(&self.variables, &end(&x)?.backward()?)?;
        }
        Ok(value.get())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{initial, is_decoder};
    use super::*;
    use crate::models::illama::{self, Size};
    use crate::models::learning::state;

    const SIDE: usize = 16;

    fn config() -> Config {
        let tiny = Size::Tiny.config(SIDE, 3);
        let backbone = illama::Config { patch: 4, width: 16, depth: 3, heads: 2, ..tiny };
        Config::new(backbone, &[0, 2], 0.3).unwrap()
    }

    fn variables() -> Variables {
        let backbone = illama::initial(&config().backbone, 4, Default::default()).unwrap();
        initial(&config(), backbone, 4).unwrap()
    }

    fn learner(threads: usize, blockwise: bool) -> Learner {
        Learner::new(&config(), variables(), &Values::new(), threads, blockwise).unwrap()
    }

    /// Three pictures; the last has few labels.
    fn batch() -> (Vec<f32>, Vec<u8>) {
        let number = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 500.0 - 1.0;
        let pixels = SIDE * SIDE;
        let label = |i: usize| if i >= 2 * pixels + 40 { 0 } else { (i * i / 7 % 4) as u8 };
        ((0..3 * 3 * pixels).map(number).collect(), (0..3 * pixels).map(label).collect())
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn gradients_are_the_slopes_of_the_loss() {
        let (pictures, labels) = batch();
        let kept = [1.0, 1.25, 0.0, 1.25, 1.0, 0.0].repeat(3);
        let lesson = Lesson { pictures: &pictures, labels: &labels, kept: &kept };
        let learner = learner(1, false);
        let (_, gradients) = learner.gradients(&lesson).unwrap();
        for name in [
            "decoder.norms.0.weight",
            "decoder.norms.1.weight",
            "decoder.mix.weight",
            "decoder.near.weight",
            "decoder.near.bias",
            "head.weight",
            "norm.weight",
            "blocks.0.attn.qkv.weight",
            "blocks.2.mlp.fc2.weight",
            "pos_embed",
        ] {
            let variable = &learner.variables()[name];
            let (values, gradient) = (floats(variable.as_tensor()), floats(&gradients[name]));
            // Along the gradient itself, where the slope is its length.
            let length = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
            assert!(length > 0.0, "{name}");
            let step = 2e-2 / length;
            let at = |step: f32| {
                let moved: Vec<f32> = values.iter().zip(&gradient).map(|(v, g)| v + step * g).collect();
                variable.set(&Tensor::from_vec(moved, variable.shape(), &Device::Cpu).unwrap()).unwrap();
                f64::from(learner.gradients(&lesson).unwrap().0)
            };
            let slope = (at(step) - at(-step)) / (2.0 * f64::from(step) * f64::from(length));
            at(0.0);
            let off = (slope / f64::from(length) - 1.0).abs();
            assert!(off < 0.02, "{name}: {slope} {length}");
        }
    }

    #[test]
    fn lanes_and_blocks_one_by_one_give_the_same() {
        let (pictures, labels) = batch();
        let lesson = Lesson { pictures: &pictures, labels: &labels, kept: &[] };
        let (loss, gradients) = learner(1, false).gradients(&lesson).unwrap();
        assert_eq!(gradients.len(), variables().len());
        for (threads, blockwise) in [(2, false), (1, true), (3, true)] {
            let (other, others) = learner(threads, blockwise).gradients(&lesson).unwrap();
            assert!((loss - other).abs() < 1e-5, "{loss} {other}");
            for (name, gradient) in &gradients {
                let (a, b) = (floats(gradient), floats(&others[name]));
                let most = a.iter().fold(0f32, |most, g| most.max(g.abs()));
                assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-4 * most + 1e-9), "{name}");
            }
        }
    }

    #[test]
    fn what_does_not_learn_has_no_gradient() {
        let (pictures, labels) = batch();
        let lesson = Lesson { pictures: &pictures, labels: &labels, kept: &[] };
        let (loss, all) = learner(1, false).gradients(&lesson).unwrap();
        let (decoder, others): (Variables, Variables) =
            variables().into_iter().partition(|(name, _)| is_decoder(name));
        let others = state(&others).unwrap();
        let some = Learner::new(&config(), decoder, &others, 2, true).unwrap();
        let (same, gradients) = some.gradients(&lesson).unwrap();
        assert!((loss - same).abs() < 1e-5 && gradients.keys().all(|name| is_decoder(name)));
        assert_eq!(gradients.len(), some.variables().len());
        let (a, b) = (floats(&all["decoder.mix.weight"]), floats(&gradients["decoder.mix.weight"]));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn a_batch_that_does_not_fit_is_refused() {
        let (pictures, mut labels) = batch();
        let learner = learner(1, false);
        let of =
            |labels: &[u8], kept: &[f32]| learner.gradients(&Lesson { pictures: &pictures, labels, kept });
        assert!(of(&labels[1..], &[]).is_err() && of(&labels, &[1.0]).is_err());
        let (loss, none) = of(&vec![0; labels.len()], &[]).unwrap();
        assert!(loss == 0.0 && none.is_empty(), "nothing is said of any pixel");
        labels[5] = 4;
        assert!(matches!(of(&labels, &[]), Err(Error::Input { .. })));
    }
}
