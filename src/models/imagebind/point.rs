//! The point-cloud encoder that ImageBind-LLM adds: a Point-BERT transformer.
//!
//! ```text
//! cloud [N,3] ─► G centres, farthest first ─► M nearest of each, less the centre ─► mini network [B,G,E] ─► reduce [B,G,W]
//! centre ─► linear, GELU, linear ─► positions, added before EVERY block
//! [cls, groups] ─► blocks ─► norm ─► (cls, maximum of the others) [B,2W] ─► projection ─► head
//! ```
//!
//! The mini network is two 1×1 convolutions on each point of a group, the maximum over the group, and two more on both joined
//! (the maximum first). Its batch norms use their running statistics and are folded into the convolution before them.
//!
//! The reference draws the first centre at random; here the caller says which point it is.
//!
//! Source: OpenGVLab/LLaMA-Adapter, `imagebind_LLM/ImageBind/models` (Point-BERT, arXiv 2111.14819).

use candle_core::{D, DType, Device, Tensor};

use super::config::PointConfig;
use super::{NAMES, Observe};
use crate::models::layers::{LayerNorm, Linear, Scope, add_to, attend};
use crate::models::{Error, Placement};

/// Of every norm in here.
const EPS: f32 = 1e-5;
const MLP_RATIO: usize = 4;
/// Widths of the mini network and of the position's hidden layer.
const FIRST: [usize; 2] = [128, 256];
const SECOND: usize = 512;
const POSITION: usize = 128;

pub(super) struct PointTrunk {
    groups: usize,
    group_size: usize,
    first: [Linear; 2],
    second: [Linear; 2],
    reduce: Linear,
    position: [Linear; 2],
    /// `[1, 1, W]`
    cls: Tensor,
    cls_position: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    project: Linear,
}

struct Block {
    heads: usize,
    norm_1: LayerNorm,
    qkv: Linear,
    out: Linear,
    norm_2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// Groups of nearby points.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Groups {
    /// The point that each is centred on.
    pub(super) centres: Vec<u32>,
    /// The nearest points of each, itself included: `[G·M]`.
    pub(super) members: Vec<u32>,
}

impl PointTrunk {
    /// * `scope`: at `point_trunk`.
    pub(super) fn load(scope: &Scope<'_>, sizes: &PointConfig) -> Result<Self, Error> {
        let (encoder, width) = (scope.at("point_encoder"), sizes.trans_dim);
        let mini = encoder.at("encoder");
        let (first, second) = (mini.at("first_conv"), mini.at("second_conv"));
        let position = encoder.at("pos_embed");
        let blocks = (0..sizes.depth).map(|i| Block::load(&encoder.at("blocks.blocks").at(i), sizes));
        // Stored as `x · P`, the other way round than linear layers.
        let projection = scope.tensor("pc_projection", &[2 * width, sizes.proj_dim])?;
        Ok(PointTrunk {
            groups: sizes.num_group,
            group_size: sizes.group_size,
            first: [
                convolution_and_norm(&first, FIRST[0], 3)?,
                convolution(&first.at(3), FIRST[1], FIRST[0])?,
            ],
            second: [
                convolution_and_norm(&second, SECOND, 2 * FIRST[1])?,
                convolution(&second.at(3), sizes.encoder_dims, SECOND)?,
            ],
            reduce: Linear::load(&encoder.at("reduce_dim"), width, sizes.encoder_dims, true)?,
            position: [
                Linear::load(&position.at(0), POSITION, 3, true)?,
                Linear::load(&position.at(2), width, POSITION, true)?,
            ],
            cls: encoder.tensor("cls_token", &[1, 1, width])?,
            cls_position: encoder.tensor("cls_pos", &[1, 1, width])?,
            blocks: blocks.collect::<Result<_, Error>>()?,
            norm: LayerNorm::load(&encoder.at("norm"), width, EPS)?,
            project: Linear::new(&projection.t()?, None)?,
        })
    }

    /// Clouds `[B, N, 3]` → `[B, P]`.
    ///
    /// * `starts`: index of the first centre of each cloud.
    pub(super) fn forward(
        &self,
        clouds: &Tensor,
        starts: &[usize],
        placement: &Placement,
        observe: Observe<'_>,
    ) -> Result<Tensor, Error> {
        let refuse = |why: String| Error::Input { received: clouds.dims().to_vec(), why };
        let (batch, points, _) = match *clouds.dims() {
            [b, n, 3] => (b, n, 3),
            _ => return Err(refuse("point clouds are [B, N, 3]".into())),
        };
        if points < self.group_size {
            return Err(refuse(format!("a cloud has at least {} points", self.group_size)));
        }
        if starts.len() != batch || starts.iter().any(|&start| start >= points) {
            return Err(refuse(format!("each of {batch} clouds begins at one of its points")));
        }
        let rows = clouds.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_vec3::<f32>()?;
        let (mut centres, mut grouped) = (Vec::new(), Vec::new());
        let (mut centre_index, mut neighbour_index) = (Vec::new(), Vec::new());
        for (cloud, &start) in rows.iter().zip(starts) {
            let cloud: Vec<[f32; 3]> = cloud.iter().map(|p| [p[0], p[1], p[2]]).collect();
            let groups = group(&cloud, start, self.groups, self.group_size);
            centre_index.extend_from_slice(&groups.centres);
            neighbour_index.extend_from_slice(&groups.members);
            for (centre, members) in groups.centres.iter().zip(groups.members.chunks_exact(self.group_size)) {
                let centre = cloud[*centre as usize];
                centres.extend(centre);
                grouped.extend(members.iter().flat_map(|&at| {
                    let point = cloud[at as usize];
                    [0, 1, 2].map(|axis| point[axis] - centre[axis])
                }));
            }
        }
        let on_device = |values: Vec<f32>, shape: &[usize]| {
            Tensor::from_vec(values, shape, &Device::Cpu)?
                .to_dtype(placement.dtype())?
                .to_device(&placement.device)
        };
        let centres = on_device(centres, &[batch, self.groups, 3])?;
        let grouped = on_device(grouped, &[batch * self.groups, self.group_size, 3])?;
        let (g, m) = (self.groups, self.group_size);
        observe("center_index", &Tensor::from_vec(centre_index, (batch, g), &Device::Cpu)?);
        observe("neighbor_index", &Tensor::from_vec(neighbour_index, (batch, g, m), &Device::Cpu)?);
        observe("centers", &centres);
        let tokens = self.mini_network(&grouped, batch)?; // [B, G, E]
        observe("group_tokens", &tokens);
        let tokens = self.reduce.forward(&tokens)?; // [B, G, W]
        let position = self.position[1].forward(&self.position[0].forward_gelu(&centres)?)?; // [B, G, W]
        observe("pos", &position);
        let width = position.dim(D::Minus1)?;
        let with =
            |first: &Tensor, rest: &Tensor| Tensor::cat(&[&first.broadcast_as((batch, 1, width))?, rest], 1);
        let mut x = with(&self.cls, &tokens)?; // [B, 1+G, W]
        let position = with(&self.cls_position, &position)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&(x + &position)?)?;
            observe(&format!("block.{i}"), &x);
        }
        observe("blocks_out", &x);
        let x = self.norm.forward(&x)?;
        let (cls, others) = (x.narrow(1, 0, 1)?.squeeze(1)?, x.narrow(1, 1, self.groups)?.max(1)?);
        let feature = Tensor::cat(&[&cls, &others], 1)?; // [B, 2W]
        observe("feature", &feature);
        let projected = self.project.forward(&feature)?; // [B, P]
        observe("projected", &projected);
        Ok(projected)
    }

    /// Groups `[B·G, M, 3]` → `[B, G, E]`.
    fn mini_network(&self, groups: &Tensor, batch: usize) -> Result<Tensor, Error> {
        let x = self.first[1].forward(&self.first[0].forward(groups)?.relu()?)?; // [B·G, M, 256]
        let whole = x.max_keepdim(1)?.broadcast_as(x.shape())?;
        let x = Tensor::cat(&[&whole, &x], 2)?; // [B·G, M, 512]
        let x = self.second[1].forward(&self.second[0].forward(&x)?.relu()?)?; // [B·G, M, E]
        let x = x.max(1)?; // [B·G, E]
        let width = x.dim(1)?;
        Ok(x.reshape((batch, self.groups, width))?)
    }
}

impl Block {
    fn load(scope: &Scope<'_>, sizes: &PointConfig) -> Result<Self, Error> {
        let width = sizes.trans_dim;
        let attention = scope.at("attn");
        Ok(Block {
            heads: sizes.num_heads,
            norm_1: LayerNorm::load(&scope.at("norm1"), width, EPS)?,
            qkv: Linear::block(&attention.at("qkv"), NAMES, 3 * width, width, false)?,
            out: Linear::block(&attention.at("proj"), NAMES, width, width, true)?,
            norm_2: LayerNorm::load(&scope.at("norm2"), width, EPS)?,
            fc1: Linear::block(&scope.at("mlp.fc1"), NAMES, MLP_RATIO * width, width, true)?,
            fc2: Linear::block(&scope.at("mlp.fc2"), NAMES, width, MLP_RATIO * width, true)?,
        })
    }

    /// `[B, L, W]` → the same.
    fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        let attended = attend(&self.qkv.forward(&self.norm_1.forward(x)?)?, self.heads, None, None)?;
        let x = (x + self.out.forward(&attended)?)?;
        let hidden = self.fc1.forward_gelu(&self.norm_2.forward(&x)?)?; // [B, L, 4W]
        Ok(add_to(self.fc2.forward(&hidden)?, &x)?)
    }
}

/// A 1×1 convolution, `[out, in, 1]`, as a linear layer.
fn convolution(scope: &Scope<'_>, out: usize, width: usize) -> Result<Linear, Error> {
    let weight = scope.tensor("weight", &[out, width, 1])?.squeeze(2)?;
    Ok(Linear::new(&weight, Some(scope.tensor("bias", &[out])?))?)
}

/// Convolution 0 of a pair and batch norm 1 behind it, folded: `γ(Wx + b − μ)/√(σ² + ε) + β`.
fn convolution_and_norm(scope: &Scope<'_>, out: usize, width: usize) -> Result<Linear, Error> {
    let (convolution, norm) = (scope.at(0), scope.at(1));
    let weight = convolution.values("weight", &[out, width, 1])?;
    let of = |name: &str| norm.values(name, &[out]);
    let (bias, mean, variance) =
        (convolution.values("bias", &[out])?, of("running_mean")?, of("running_var")?);
    let (gamma, beta) = (of("weight")?, of("bias")?);
    let factor = |i: usize| f64::from(gamma[i]) / (f64::from(variance[i]) + f64::from(EPS)).sqrt();
    let folded: Vec<f32> =
        weight.iter().enumerate().map(|(at, &w)| (f64::from(w) * factor(at / width)) as f32).collect();
    let shift =
        |i: usize| ((f64::from(bias[i]) - f64::from(mean[i])) * factor(i) + f64::from(beta[i])) as f32;
    let bias: Vec<f32> = (0..out).map(shift).collect();
    let place = |values: Vec<f32>, shape: &[usize]| {
        Tensor::from_vec(values, shape, &Device::Cpu)?
            .to_dtype(scope.placement.dtype())?
            .to_device(&scope.placement.device)
    };
    Ok(Linear::new(&place(folded, &[out, width])?, Some(place(bias, &[out])?))?)
}

/// Centres by farthest-point sampling from `start`, and the nearest points of each. Of equal distances the first point counts.
pub(super) fn group(cloud: &[[f32; 3]], start: usize, groups: usize, size: usize) -> Groups {
    let squared = |a: [f32; 3], b: [f32; 3]| -> f32 { (0..3).map(|i| (a[i] - b[i]) * (a[i] - b[i])).sum() };
    let mut nearest = vec![1e10f32; cloud.len()];
    let (mut centres, mut members) = (Vec::with_capacity(groups), Vec::with_capacity(groups * size));
    let mut current = start;
    let mut order: Vec<(f32, u32)> = Vec::with_capacity(cloud.len());
    for _ in 0..groups {
        centres.push(current as u32);
        let (mut farthest, mut best) = (0, f32::NEG_INFINITY);
        order.clear();
        for (at, (point, nearest)) in cloud.iter().zip(&mut nearest).enumerate() {
            let distance = squared(*point, cloud[current]);
            order.push((distance, at as u32));
            *nearest = nearest.min(distance);
            if *nearest > best {
                (farthest, best) = (at, *nearest);
            }
        }
        let by_distance = |a: &(f32, u32), b: &(f32, u32)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        order.select_nth_unstable_by(size - 1, by_distance);
        members.extend(order[..size].iter().map(|(_, at)| *at));
        current = farthest;
    }
    Groups { centres, members }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centres_spread_out_and_groups_hold_their_centre() {
        let cloud: Vec<[f32; 3]> = (0..10).map(|i| [i as f32, 0.0, 0.0]).collect();
        let Groups { centres, members } = group(&cloud, 2, 3, 2);
        assert_eq!(centres, [2, 9, 5]);
        for (centre, members) in centres.iter().zip(members.chunks_exact(2)) {
            assert!(members.contains(centre), "{centre} {members:?}");
        }
    }

    #[test]
    fn a_cloud_of_one_repeated_point_is_grouped() {
        let groups = group(&[[1.0; 3]; 4], 0, 6, 4);
        assert_eq!((groups.centres.len(), groups.members.len()), (6, 24));
    }
}
