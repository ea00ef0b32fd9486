//! The network: an iLLaMA, and a decoder over the patch tokens behind some of its blocks.

use candle_core::{D, Tensor};

use super::Config;
use super::pixels::{Grid, labels};
use crate::media::{LabelMap, Rgb, augment};
use crate::models::illama::{Illama, Keep, known};
use crate::models::layers::{Linear, Scope, rms_norm};
use crate::models::weights::Weights;
use crate::models::{Error, Placement};

const DECODER: &str = "decoder";
/// Patches around one, and itself.
const NEIGHBOURS: usize = 9;

/// Whether a tensor learns where the backbone stays as it is: the decoder's, and norm and head behind it.
pub fn is_decoder(name: &str) -> bool {
    of_decoder(name) || name == "norm.weight" || name.starts_with("head.")
}

fn of_decoder(name: &str) -> bool {
    name.strip_prefix(DECODER).is_some_and(|rest| rest.starts_with('.'))
}

/// Names and shapes of the decoder's tensors.
pub(super) fn shapes(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (width, levels) = (config.backbone.width, config.blocks().len());
    let norms = (0..levels).map(|level| (format!("norms.{level}.weight"), vec![width]));
    let linear =
        [("mix", levels * width), ("near", NEIGHBOURS * width)].into_iter().flat_map(|(name, inner)| {
            [(format!("{name}.weight"), vec![width, inner]), (format!("{name}.bias"), vec![width])]
        });
    norms.chain(linear).map(|(name, shape)| (format!("{DECODER}.{name}"), shape)).collect()
}

/// A loaded segmenter.
pub struct Segmenter {
    config: Config,
    backbone: Illama,
    /// One for each block that is looked at, `[E]`
    norms: Vec<Tensor>,
    /// `[E, K·E]`
    mix: Linear,
    /// `[E, 9·E]`
    near: Linear,
}

impl Segmenter {
    /// Loads it.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::SurplusTensor`], [`Error::Config`].
    pub fn load(weights: &Weights, config: &Config, placement: &Placement) -> Result<Self, Error> {
        let (width, levels) = (config.backbone.width, config.blocks().len());
        let decoder = Scope::new(weights, placement).at(DECODER);
        let norms = (0..levels).map(|level| decoder.at("norms").at(level).tensor("weight", &[width]));
        let model = Segmenter {
            backbone: Illama::within(weights, &config.backbone, placement)?,
            norms: norms.collect::<Result<_, _>>()?,
            mix: Linear::load(&decoder.at("mix"), width, levels * width, true)?,
            near: Linear::load(&decoder.at("near"), width, NEIGHBOURS * width, true)?,
            config: config.clone(),
        };
        weights.refuse_surplus(|name| known(name, config.backbone.depth) || of_decoder(name))?;
        Ok(model)
    }

    /// The sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The class of every pixel of a picture, from 1 on, as [`augment::windows`] cuts it: where windows overlap, by the mean of their logits.
    ///
    /// * `size`: width and height of the labels; those of the picture most often.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn label(&self, picture: &Rgb, size: [usize; 2]) -> Result<LabelMap, Error> {
        let cut = augment::windows(picture, self.config.backbone.side);
        let mut grids = Vec::new();
        for window in &cut.windows {
            let logits = self.grid(window.values.clone())?;
            grids.push(Grid { side: self.config.grid(), classes: self.config.classes(), logits });
        }
        let corners: Vec<[usize; 2]> = cut.windows.iter().map(|window| window.corner).collect();
        Ok(labels(&grids, &corners, self.config.backbone.patch, cut.size, size))
    }

    /// The logits of a picture's patches, `[g, g, C]`.
    ///
    /// * `picture`: `[3, S, S]`, prepared.
    fn grid(&self, picture: Vec<f32>) -> Result<Vec<f32>, Error> {
        let mask = self.backbone.mask(self.config.mask_rate())?;
        let keep: &Keep<'_> = &|_, added| Ok(added);
        let x = self.begin(&self.backbone.shown(picture)?)?;
        let x = (0..self.steps()).try_fold(x, |x, i| self.step(i, &x, mask.as_ref(), keep))?;
        let logits = self.end(&x)?.to_dtype(candle_core::DType::F32)?;
        Ok(logits.flatten_all()?.to_vec1()?)
    }

    /// Blocks up to the last that is looked at.
    pub(super) fn steps(&self) -> usize {
        self.config.blocks().last().map_or(0, |last| last + 1)
    }

    /// The mask that it looks with.
    pub(super) fn mask(&self) -> Result<Option<Tensor>, Error> {
        self.backbone.mask(self.config.mask_rate())
    }

    /// Tokens before the first block, `[B, N, E]`.
    pub(super) fn begin(&self, pictures: &Tensor) -> Result<Tensor, Error> {
        self.backbone.embedded(pictures)
    }

    /// Block i: `[B, N, (1 + k)·E]`, tokens and beside them those of the k levels so far, → the same, with one level more where the
    /// decoder looks at this block.
    pub(super) fn step(
        &self,
        i: usize,
        x: &Tensor,
        mask: Option<&Tensor>,
        keep: &Keep<'_>,
    ) -> Result<Tensor, Error> {
        let width = self.config.backbone.width;
        let held = x.dim(D::Minus1)? - width;
        let tokens = x.narrow(D::Minus1, 0, width)?.contiguous()?;
        let mut parts = vec![self.backbone.whole_block(i, &tokens, mask, keep)?];
        if held > 0 {
            parts.push(x.narrow(D::Minus1, width, held)?);
        }
        if self.config.blocks().contains(&i) {
            parts.push(parts[0].clone());
        }
        match &parts[..] {
            [alone] => Ok(alone.clone()),
            parts => Ok(Tensor::cat(parts, D::Minus1)?),
        }
    }

    /// What [`Segmenter::step`] gave at last → logits of the patches, `[B, P, C]`.
    pub(super) fn end(&self, x: &Tensor) -> Result<Tensor, Error> {
        let illama = &self.config.backbone;
        let (width, patches, grid) = (illama.width, illama.patches(), self.config.grid());
        let level = |(level, norm): (usize, &Tensor)| {
            // The class token stands last.
            let tokens =
                x.narrow(1, 0, patches)?.narrow(D::Minus1, (1 + level) * width, width)?.contiguous()?;
            Ok::<_, Error>(rms_norm(&tokens, norm, illama.norm_eps)?)
        };
        let levels: Vec<Tensor> = self.norms.iter().enumerate().map(level).collect::<Result<_, _>>()?;
        let mixed = self.mix.forward(&Tensor::cat(&levels, D::Minus1)?)?; // [B, P, E]
        let batch = mixed.dim(0)?;
        let around = mixed.silu()?.reshape((batch, grid, grid, width))?;
        let around = around.pad_with_zeros(1, 1, 1)?.pad_with_zeros(2, 1, 1)?; // [B, g + 2, g + 2, E]
        let moved = (0..NEIGHBOURS).map(|i| around.narrow(1, i / 3, grid)?.narrow(2, i % 3, grid));
        let moved: Vec<Tensor> = moved.collect::<candle_core::Result<_>>()?;
        let around = Tensor::cat(&moved, D::Minus1)?.reshape((batch, patches, NEIGHBOURS * width))?;
        self.backbone.names(&(mixed + self.near.forward(&around)?)?)
    }
}
