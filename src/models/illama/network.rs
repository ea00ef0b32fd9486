//! The network: patches, blocks, head.

use candle_core::{D, Tensor};

use super::Config;
use crate::models::layers::fused::{self, Attention};
use crate::models::layers::{Linear, Rotary, Scope, heads_apart, heads_together, rms_norm, softmax, swiglu};
use crate::models::positions;
use crate::models::weights::Weights;
use crate::models::{Error, Placement};

/// θ of the turns.
const THETA: f64 = 10_000.0;
const NAMES: [&str; 2] = ["weight", "bias"];

/// A loaded iLLaMA.
pub struct Illama {
    config: Config,
    /// `[E, 3·p·p]`
    patches: Linear,
    /// `[1, 1, E]`
    class: Tensor,
    /// `[1, P + 1, E]`
    positions: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Linear,
    rotary: Rotary,
    placement: Placement,
}

struct Block {
    norm1: Tensor,
    qkv: Linear,
    proj: Linear,
    norm2: Tensor,
    fc1: Linear,
    fc2: Linear,
    fc3: Linear,
}

/// What a model makes of pictures.
#[derive(Debug, Clone)]
pub struct Looked {
    /// The class token behind the last norm, `[B, E]`.
    pub features: Tensor,
    /// `[B, C]`
    pub logits: Tensor,
}

/// Receives named intermediate tensors; asks for all tokens of the last block, of which else only the class token is made.
type Observe<'a> = Option<&'a mut dyn FnMut(&str, &Tensor)>;
/// What of a branch is added, by its number.
pub(in crate::models) type Keep<'a> = dyn Fn(usize, Tensor) -> Result<Tensor, Error> + 'a;

impl Illama {
    /// Loads it.
    ///
    /// * `config`: with the side of the pictures that it is to look at: positions of another grid are resized.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::SurplusTensor`], [`Error::Config`].
    pub fn load(weights: &Weights, config: &Config, placement: &Placement) -> Result<Self, Error> {
        let model = Self::within(weights, config, placement)?;
        weights.refuse_surplus(|name| known(name, config.depth))?;
        Ok(model)
    }

    /// As [`Illama::load`], of weights that have tensors of other parts too.
    pub(in crate::models) fn within(
        weights: &Weights,
        config: &Config,
        placement: &Placement,
    ) -> Result<Self, Error> {
        let scope = Scope::new(weights, placement);
        let Config { width, depth, patch, classes, .. } = *config;
        let patches = Linear::of_kernel(
            &scope.at("patch_embed.proj"),
            &[width, 3, patch, patch],
            [width, 3 * patch * patch],
        )?;
        let blocks = (0..depth).map(|i| Block::load(&scope.at("blocks").at(i), config));
        Ok(Illama {
            patches,
            class: scope.tensor("cls_token", &[1, 1, width])?,
            positions: Self::placed(&scope, config)?,
            blocks: blocks.collect::<Result<_, Error>>()?,
            norm: scope.tensor("norm.weight", &[width])?,
            head: Linear::load(&scope.at("head"), classes, width, true)?,
            rotary: Rotary::new(width / config.heads, config.patches() + 1, THETA, placement)?,
            config: config.clone(),
            placement: placement.clone(),
        })
    }

    /// Positions for the grid that is asked for. The class token's is the last row, and is not resized.
    fn placed(scope: &Scope<'_>, config: &Config) -> Result<Tensor, Error> {
        let (width, patches) = (config.width, config.patches());
        let stored = scope.weights.shape("pos_embed").and_then(|shape| shape.get(1).copied());
        let (from, to) = (stored.unwrap_or(1).saturating_sub(1).isqrt(), patches.isqrt());
        if from == to || from == 0 || from * from + 1 != stored.unwrap_or(1) {
            return scope.tensor("pos_embed", &[1, patches + 1, width]);
        }
        let values = scope.values("pos_embed", &[1, from * from + 1, width])?;
        let (grid, class) = values.split_at(from * from * width);
        let resized = [&positions::resized(grid, from, to, width), class].concat();
        Ok(scope.placement.tensor(resized, &[1, patches + 1, width])?)
    }

    /// The sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Looks at pictures `[B, 3, S, S]`, normalised.
    ///
    /// * `rate`: of the soft mask, r: 1 lets all tokens see all others, 0 (the published models') only earlier ones.
    ///
    /// # Errors
    /// [`Error::Input`] for another size, or a rate that is not from 0 to 1.
    pub fn forward(&self, pictures: &Tensor, rate: f32) -> Result<Looked, Error> {
        self.run(pictures, rate, None)
    }

    /// The logits of pictures, row by row: `[B, 3, S, S]` → `[B, C]`.
    ///
    /// # Errors
    /// As [`Illama::forward`].
    pub fn logits(&self, pictures: Vec<f32>, rate: f32) -> Result<Vec<Vec<f32>>, Error> {
        Ok(self.forward(&self.shown(pictures)?, rate)?.logits.to_vec2()?)
    }

    /// The class tokens of pictures behind the last norm, row by row: `[B, 3, S, S]` → `[B, E]`.
    ///
    /// # Errors
    /// As [`Illama::forward`].
    pub fn features(&self, pictures: Vec<f32>, rate: f32) -> Result<Vec<f32>, Error> {
        Ok(self.forward(&self.shown(pictures)?, rate)?.features.flatten_all()?.to_vec1()?)
    }

    /// Prepared pictures as a tensor `[B, 3, S, S]`.
    pub(in crate::models) fn shown(&self, pictures: Vec<f32>) -> Result<Tensor, Error> {
        let side = self.config.side;
        let count = pictures.len() / (3 * side * side);
        Ok(self.placement.tensor(pictures, &[count, 3, side, side])?)
    }

    /// As [`Illama::forward`], with the tensors on the way.
    ///
    /// * `observe`: receives `patch_embed`, `tokens_with_pos`, `mask`, `block.N.{q_rope,k_rope,softmax,attn,mlp,out}`, `norm_out`.
    ///
    /// # Errors
    /// As [`Illama::forward`].
    pub fn observed(
        &self,
        pictures: &Tensor,
        rate: f32,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Looked, Error> {
        self.run(pictures, rate, Some(observe))
    }

    fn run(&self, pictures: &Tensor, rate: f32, mut observe: Observe<'_>) -> Result<Looked, Error> {
        let mask = self.mask(rate)?;
        let tokens = self.cut(pictures)?;
        let mut x = self.placed_tokens(&tokens)?;
        if let Some(observe) = &mut observe {
            observe("patch_embed", &tokens);
            observe("tokens_with_pos", &x);
            mask.iter().for_each(|mask| observe("mask", mask));
        }
        let all = observe.is_some();
        for i in 0..self.blocks.len() {
            let last = i + 1 == self.blocks.len() && !all;
            let observe = observe.as_mut().map(|observe| &mut **observe as &mut dyn FnMut(&str, &Tensor));
            x = self.through(i, &x, mask.as_ref(), last, observe, &|_, branch| Ok(branch))?;
        }
        let normed = rms_norm(&x, &self.norm, self.config.norm_eps)?;
        if let Some(observe) = &mut observe {
            observe("norm_out", &normed);
        }
        self.named(&normed)
    }

    /// Tokens of pictures with the class token behind them, and positions: `[B, 3, S, S]` → `[B, P + 1, E]`.
    pub(in crate::models) fn embedded(&self, pictures: &Tensor) -> Result<Tensor, Error> {
        self.placed_tokens(&self.cut(pictures)?)
    }

    fn placed_tokens(&self, tokens: &Tensor) -> Result<Tensor, Error> {
        let (batch, _, width) = tokens.dims3()?;
        let class = self.class.broadcast_as((batch, 1, width))?;
        Ok(Tensor::cat(&[tokens, &class], 1)?.broadcast_add(&self.positions)?) // [B, P + 1, E]
    }

    /// Block i, for learning: the last gives the class token alone.
    ///
    /// * `mask`: as [`Illama::mask`] has it. `keep`: what of a branch `[B, .., E]` is added; branches are counted through all blocks, two
    ///   in each.
    pub(super) fn block(
        &self,
        i: usize,
        x: &Tensor,
        mask: Option<&Tensor>,
        keep: &Keep<'_>,
    ) -> Result<Tensor, Error> {
        self.through(i, x, mask, i + 1 == self.blocks.len(), None, keep)
    }

    /// As [`Illama::block`], of all tokens, whichever block it is.
    pub(in crate::models) fn whole_block(
        &self,
        i: usize,
        x: &Tensor,
        mask: Option<&Tensor>,
        keep: &Keep<'_>,
    ) -> Result<Tensor, Error> {
        self.through(i, x, mask, false, None, keep)
    }

    /// What each token of `[B, .., E]` is named by norm and head: `[B, .., C]`.
    pub(in crate::models) fn names(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(self.head.forward(&rms_norm(x, &self.norm, self.config.norm_eps)?)?)
    }

    /// What the last token of `[B, .., E]` behind the blocks says.
    pub(super) fn spoken(&self, x: &Tensor) -> Result<Looked, Error> {
        self.named(&rms_norm(x, &self.norm, self.config.norm_eps)?)
    }

    fn named(&self, normed: &Tensor) -> Result<Looked, Error> {
        let features = normed.narrow(1, normed.dim(1)? - 1, 1)?.squeeze(1)?.contiguous()?; // [B, E]
        let logits = self.head.forward(&features)?;
        Ok(Looked { features, logits })
    }

    /// Pictures become tokens, row by row of patches: `[B, P, E]`.
    fn cut(&self, pictures: &Tensor) -> Result<Tensor, Error> {
        let Config { side, patch, .. } = self.config;
        let (batch, grid) = (pictures.dim(0)?, side / patch);
        if pictures.dims() != [batch, 3, side, side] {
            let why = format!("pictures are [B, 3, {side}, {side}]");
            return Err(Error::Input { received: pictures.dims().to_vec(), why });
        }
        let patches = self
            .placement
            .place(pictures)?
            .reshape(&[batch, 3, grid, patch, grid, patch][..])?
            .permute((0, 2, 4, 1, 3, 5))? // [B, grid, grid, 3, p, p]
            .contiguous()?
            .reshape((batch, grid * grid, 3 * patch * patch))?;
        Ok(self.patches.forward(&patches)?)
    }

    /// `[1, 1, N, N]`, what attention is multiplied by; nothing where it is left as it is.
    ///
    /// # Errors
    /// [`Error::Input`] for a rate that is not from 0 to 1.
    pub(in crate::models) fn mask(&self, rate: f32) -> Result<Option<Tensor>, Error> {
        if !(0.0..=1.0).contains(&rate) {
            let why = format!("the rate of the soft mask is from 0 to 1, not {rate}");
            return Err(Error::Input { received: vec![], why });
        }
        if rate == 1.0 {
            return Ok(None);
        }
        let n = self.config.patches() + 1;
        let values = (0..n * n).map(|i| if i % n <= i / n { 1.0 } else { rate }).collect();
        Ok(Some(self.placement.tensor(values, &[1, 1, n, n])?))
    }

    /// `[B, N, E]` → the same, or `[B, 1, E]` of the last token alone.
    fn through(
        &self,
        i: usize,
        x: &Tensor,
        mask: Option<&Tensor>,
        last: bool,
        mut observe: Observe<'_>,
        keep: &Keep<'_>,
    ) -> Result<Tensor, Error> {
        let block = &self.blocks[i];
        let seen = observe.is_some();
        let mut see = |name: &str, x: &Tensor| {
            if let Some(observe) = &mut observe {
                observe(&format!("block.{i}.{name}"), x);
            }
        };
        let Config { heads, norm_eps: eps, .. } = self.config;
        let qkv = block.qkv.forward(&rms_norm(x, &block.norm1, eps)?)?; // [B, N, 3·E]
        let mixed = match fused::applies(&[&qkv]) && !seen {
            true => {
                let (cos, sin) = self.rotary.tables();
                let turns = Some([cos, sin]);
                fused::attend(&qkv, &Attention { heads, times: mask, turns, last, ..Attention::default() })?
            }
            false => self.mixed(&qkv, mask, last, &mut see)?,
        };
        let attended = block.proj.forward(&mixed)?;
        see("attn", &attended);
        let x = (looking(x, 1, last)? + keep(2 * i, attended)?)?;
        let normed = rms_norm(&x, &block.norm2, eps)?;
        let [gate, raised] = Linear::forward_all([&block.fc1, &block.fc3], &normed)?;
        let fed = block.fc2.forward(&swiglu(&gate, &raised)?)?;
        see("mlp", &fed);
        let x = (x + keep(2 * i + 1, fed)?)?;
        see("out", &x);
        Ok(x)
    }

    /// Attention step by step: `[B, N, 3·E]` → `[B, N, E]`, or `[B, 1, E]`.
    fn mixed(
        &self,
        qkv: &Tensor,
        mask: Option<&Tensor>,
        last: bool,
        see: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor, Error> {
        let Config { width, heads, .. } = self.config;
        let part = |n: usize| qkv.narrow(D::Minus1, n * width, width);
        let (q, k) = (self.rotary.turn(&part(0)?, 0)?, self.rotary.turn(&part(1)?, 0)?); // [B, H, N, d]
        let v = heads_apart(&part(2)?, heads)?;
        see("q_rope", &q);
        see("k_rope", &k);
        let q = (looking(&q, 2, last)? * ((width / heads) as f64).powf(-0.5))?;
        let weights = softmax(q.matmul(&k.t()?)?)?; // [B, H, N, N], of queries and keys
        see("softmax", &weights);
        let weights = match mask {
            Some(mask) => weights.broadcast_mul(&looking(mask, 2, last)?)?,
            None => weights,
        };
        Ok(heads_together(&weights.matmul(&v)?)?)
    }
}

/// The rows that look at others: all of an axis, or the last.
fn looking(x: &Tensor, axis: usize, last: bool) -> Result<Tensor, Error> {
    match last {
        true => Ok(x.narrow(axis, x.dim(axis)? - 1, 1)?.contiguous()?),
        false => Ok(x.clone()),
    }
}

impl Block {
    fn load(scope: &Scope<'_>, config: &Config) -> Result<Self, Error> {
        let (width, hidden) = (config.width, config.hidden());
        let (attention, mlp) = (scope.at("attn"), scope.at("mlp"));
        let bare =
            |name: &str, out: usize, width: usize| Linear::block(&mlp.at(name), NAMES, out, width, false);
        Ok(Block {
            norm1: scope.tensor("norm1.weight", &[width])?,
            qkv: Linear::block(&attention.at("qkv"), NAMES, 3 * width, width, true)?,
            proj: Linear::block(&attention.at("proj"), NAMES, width, width, true)?,
            norm2: scope.tensor("norm2.weight", &[width])?,
            fc1: bare("fc1", hidden, width)?,
            fc2: bare("fc2", width, hidden)?,
            fc3: bare("fc3", hidden, width)?,
        })
    }
}

/// Whether an iLLaMA of so many blocks has a tensor of this name.
pub(in crate::models) fn known(name: &str, depth: usize) -> bool {
    const OUTSIDE: [&str; 7] = [
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "head.weight",
        "head.bias",
    ];
    const INSIDE: [&str; 9] = [
        "norm1.weight",
        "attn.qkv.weight",
        "attn.qkv.bias",
        "attn.proj.weight",
        "attn.proj.bias",
        "norm2.weight",
        "mlp.fc1.weight",
        "mlp.fc2.weight",
        "mlp.fc3.weight",
    ];
    let inside = |rest: &str| {
        let (i, part) = rest.split_once('.')?;
        Some(i.parse::<usize>().ok()? < depth && INSIDE.contains(&part))
    };
    OUTSIDE.contains(&name) || name.strip_prefix("blocks.").and_then(inside).unwrap_or(false)
}
