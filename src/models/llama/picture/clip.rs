//! CLIP's vision tower, as far as its patch tokens.
//!
//! ```text
//! [B,3,S,S] ─ conv1, patch × patch ─► g² tokens ─ class token in front, + positions, ln_pre ─► blocks ─ ln_post, · proj ─► [B,1+g²,out]
//! ```
//! All tokens of the last block leave, not the class token alone, and nothing is normalised.
//!
//! Source: CLIP, arXiv 2103.00020, `clip/model.py`.

use candle_core::Tensor;

use super::LAYER_NORM_EPS;
use super::block::{Block, CLIP};
use crate::models::layers::LayerNorm;
use crate::models::llama::Observe;
use crate::models::llama::checkpoint::Checkpoint;
use crate::models::llama::saved::Part;
use crate::models::{Error, Placement};

/// CLIP has a head for every so many components of its width; of what is left over, each has a share.
const HEAD: usize = 64;
const NAME: &str = "clip.visual";

pub(super) struct Tower {
    conv: Tensor,
    class: Tensor,
    positions: Tensor,
    before: LayerNorm,
    blocks: Vec<Block>,
    after: LayerNorm,
    /// `[width, out]`; multiplied as it is.
    project: Tensor,
    patch: usize,
    side: usize,
}

impl Tower {
    pub(super) fn load(checkpoint: &Checkpoint, placement: &Placement) -> Result<Self, Error> {
        let at = |part: &str| format!("{NAME}.{part}");
        let missing = || {
            Error::Config(
                "the adapter looks at pictures through CLIP ViT-L/14 and none of the files has it; name CLIP's file (--clip)"
                    .into(),
            )
        };
        let conv = checkpoint.shape(&at("conv1.weight")).ok_or_else(missing)?;
        let (width, patch) = match conv[..] {
            [width, 3, patch, same] if patch == same && patch > 0 && width >= HEAD => (width, patch),
            _ => {
                return Err(Error::Config(format!(
                    "`{}` of shape {conv:?} is no CLIP's",
                    at("conv1.weight")
                )));
            }
        };
        let heads = width / HEAD;
        if !width.is_multiple_of(heads) {
            return Err(Error::Config(format!("CLIP's width of {width} is not for each of {heads} heads")));
        }
        let tokens =
            checkpoint.shape(&at("positional_embedding")).and_then(|s| s.first().copied()).unwrap_or(0);
        let grid = tokens.saturating_sub(1).isqrt();
        if grid == 0 || grid * grid + 1 != tokens {
            return Err(Error::Config(format!(
                "CLIP has {tokens} positions, which are no square and one more"
            )));
        }
        let out = checkpoint.shape(&at("proj")).and_then(|s| s.get(1).copied()).unwrap_or(0);
        let block = |i: usize| format!("{NAME}.transformer.resblocks.{i}");
        let depth =
            (0..).take_while(|&i| checkpoint.shape(&format!("{}.ln_1.weight", block(i))).is_some()).count();
        let norm = |name: &str| checkpoint.layer_norm(&at(name), width, LAYER_NORM_EPS, placement);
        let tensor = |name: &str, shape: &[usize]| checkpoint.tensor(&at(name), shape, placement);
        Ok(Tower {
            conv: tensor("conv1.weight", &[width, 3, patch, patch])?,
            class: tensor("class_embedding", &[width])?,
            positions: tensor("positional_embedding", &[tokens, width])?,
            before: norm("ln_pre")?,
            blocks: (0..depth)
                .map(|i| Block::load(checkpoint, &CLIP, block(i), width, heads, placement))
                .collect::<Result<_, _>>()?,
            after: norm("ln_post")?,
            project: tensor("proj", &[width, out])?,
            patch,
            side: grid * patch,
        })
    }

    /// Pixels of a picture's side.
    pub(super) fn side(&self) -> usize {
        self.side
    }

    /// Components of a token that leaves.
    pub(super) fn out(&self) -> usize {
        self.project.dims()[1]
    }

    /// `[B, 3, S, S]` → `[B, 1 + g², out]`.
    pub(super) fn forward(&self, pictures: &Tensor, observe: Observe<'_>) -> Result<Tensor, Error> {
        let patches = pictures.conv2d(&self.conv, 0, self.patch, 1, 1)?; // [B, width, g, g]
        observe("clip.conv1", &patches);
        let tokens = patches.flatten_from(2)?.transpose(1, 2)?; // [B, g², width]
        let (batch, _, width) = tokens.dims3()?;
        let class = self.class.reshape((1, 1, width))?.broadcast_as((batch, 1, width))?;
        let x = Tensor::cat(&[&class, &tokens.contiguous()?], 1)?.broadcast_add(&self.positions)?;
        let mut x = self.before.forward(&x)?;
        observe("clip.ln_pre", &x);
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x)?;
            observe(&format!("clip.block.{i}"), &x);
        }
        let x = self.after.forward(&x)?;
        observe("clip.ln_post", &x);
        let x = x.broadcast_matmul(&self.project)?;
        observe("clip.features_projected", &x);
        Ok(x)
    }

    /// Its parts by the names they are read under.
    pub(super) fn parts(&self) -> Vec<(String, Part<'_>)> {
        let at = |part: &str| format!("{NAME}.{part}");
        let tensors = [
            ("conv1.weight", &self.conv),
            ("class_embedding", &self.class),
            ("positional_embedding", &self.positions),
            ("proj", &self.project),
        ];
        let tensors = tensors.into_iter().map(|(name, tensor)| (at(name), Part::Tensor(tensor.clone())));
        let norms = [("ln_pre", &self.before), ("ln_post", &self.after)];
        let norms = norms.into_iter().flat_map(|(name, norm)| Part::layer_norm(&at(name), norm));
        tensors.chain(norms).chain(self.blocks.iter().flat_map(Block::parts)).collect()
    }
}
