//! Inputs become tokens.
//!
//! **Vision.** A patch is 2 frames × kh × kw pixels; a picture is repeated to two frames. Since both are then equal, one
//! frame is multiplied by the kernel summed over time. The convolution has stride = kernel and no padding, so it is
//! a matrix product over unfolded patches; rows and columns left over are dropped.
//!
//! **Positions at other sizes.** If the number of patches is the trained one, the stored embedding is used as it is,
//! whatever the aspect. Otherwise the stored grid s×s is resized to r×r, r = √patches, by bicubic interpolation with
//! A = −0.75, half-pixel centres, edges clamped and no anti-aliasing.
//!
//! **One channel.** Spectrograms, depth and thermal pictures are cut by a convolution, whose patches may overlap, and normed
//! (with another epsilon than everything else). **IMU.** Windows of all axes, axis by axis, through a linear layer, normed
//! likewise. Neither can be interpolated: the reference only runs on the trained number of patches.
//!
//! Source: ImageBind, `imagebind/models/multimodal_preprocessors.py`.

use candle_core::{D, DType, Tensor};

use super::config::{ImuConfig, TextConfig, VisionConfig};
use crate::models::Error;
use crate::models::layers::{LayerNorm, Linear, Scope, Tuning, learns};
use crate::models::positions;

/// Of the norms in here; everywhere else it is 1e-6.
const STEM_NORM_EPS: f32 = 1e-5;

pub(super) struct VisionStem {
    kernel: (usize, usize),
    grid: (usize, usize),
    width: usize,
    projection: Projection,
    /// `[1, 1, width]`
    cls: Tensor,
    /// `[1 + s², width]`, f32 on the CPU, to interpolate from; empty where they are learned.
    positions: Vec<f32>,
    /// The same where the model runs, for the trained size.
    trained: Tensor,
}

/// A kernel of two frames as linear layers of unfolded patches.
enum Projection {
    Read {
        /// `[width, 3·kh·kw]`, summed over time: for equal frames.
        still: Linear,
        /// `[width, 3·2·kh·kw]`: for clips.
        moving: Linear,
    },
    /// `[width, 3, 2, kh, kw]`: a kernel that is learned is summed each time.
    Learned(Tensor),
}

impl Projection {
    fn load(kernel: Tensor, learned: bool) -> Result<Self, Error> {
        if learned {
            return Ok(Projection::Learned(kernel));
        }
        let (width, of_patch) = (kernel.dim(0)?, kernel.elem_count() / kernel.dim(0)?.max(1));
        let still = kernel.to_dtype(DType::F32)?.sum(2)?.to_dtype(kernel.dtype())?; // [width, 3, kh, kw]
        let still = still.reshape((width, still.elem_count() / width.max(1)))?;
        Ok(Projection::Read {
            still: Linear::new(&still, None)?,
            moving: Linear::new(&kernel.reshape((width, of_patch))?, None)?,
        })
    }

    /// Patches `[B, L, 3·T·kh·kw]`, of one frame or of two, → `[B, L, width]`.
    fn forward(&self, patches: &Tensor, frames: usize) -> Result<Tensor, Error> {
        match (self, frames) {
            (Projection::Read { still, .. }, 1) => Ok(still.forward(patches)?),
            (Projection::Read { moving, .. }, _) => Ok(moving.forward(patches)?),
            (Projection::Learned(kernel), frames) => {
                let kernel = if frames == 1 { kernel.sum(2)? } else { kernel.clone() };
                let kernel = kernel.reshape((kernel.dim(0)?, patches.dim(D::Minus1)?))?;
                Ok(Linear::as_given(kernel, None, Tuning::default()).forward(patches)?)
            }
        }
    }
}

impl VisionStem {
    pub(super) fn load(scope: &Scope<'_>, sizes: &VisionConfig) -> Result<Self, Error> {
        let ([t, kh, kw], width, (rows, columns)) = (sizes.kernel, sizes.embed_dim, sizes.grid());
        let kernel = scope.tensor("rgbt_stem.proj.1.weight", &[width, 3, t, kh, kw])?;
        let (name, shape) = ("pos_embedding_helper.pos_embed", [1, 1 + rows * columns, width]);
        let trained = scope.tensor(name, &shape)?;
        let positions = if trained.is_variable() { Vec::new() } else { scope.values(name, &shape)? };
        Ok(VisionStem {
            kernel: (kh, kw),
            grid: (rows, columns),
            width,
            projection: Projection::load(kernel, scope.placement.variables.is_some())?,
            cls: scope.tensor("cls_token", &[1, 1, width])?,
            positions,
            trained,
        })
    }

    /// `[B, 3, T, H, W]` → `[B, 1 + patches, width]`.
    pub(super) fn forward(&self, frames: &Tensor) -> Result<Tensor, Error> {
        let (batch, channels, t, h, w) = frames.dims5()?;
        let (kh, kw) = self.kernel;
        let (rows, columns) = (h / kh, w / kw);
        let refuse = |why: String| Err(Error::Input { received: frames.dims().to_vec(), why });
        if rows == 0 || columns == 0 {
            return refuse(format!("a picture must be at least {kh}×{kw} pixels"));
        }
        let t = match t {
            1 => 1,
            2 | 3 => 2,
            _ => return refuse(format!("clips of {t} frames are not supported; send 1, 2 or 3")),
        };
        let patches = frames
            .narrow(2, 0, t)?
            .narrow(3, 0, rows * kh)?
            .narrow(4, 0, columns * kw)?
            .contiguous()?
            .reshape(&[batch, channels * t, rows, kh, columns, kw][..])? // [B, 3·T, rows, kh, columns, kw]
            .permute((0, 2, 4, 1, 3, 5))? // [B, rows, columns, 3·T, kh, kw]
            .contiguous()?
            .reshape((batch, rows * columns, channels * t * kh * kw))?; // [B, patches, 3·T·kh·kw]
        let tokens = self.projection.forward(&patches, t)?; // [B, patches, width]
        let cls = self.cls.broadcast_as((batch, 1, self.width))?;
        let tokens = Tensor::cat(&[&cls, &tokens], 1)?; // [B, 1 + patches, width]
        Ok(tokens.broadcast_add(&self.positions_for(frames, rows * columns)?)?)
    }

    /// `[1, 1 + patches, width]`
    fn positions_for(&self, frames: &Tensor, patches: usize) -> Result<Tensor, Error> {
        let stored = self.grid.0 * self.grid.1;
        if patches == stored {
            return Ok(self.trained.clone());
        }
        let (from, to) = (stored.isqrt(), patches.isqrt());
        if self.positions.is_empty() {
            let why = format!("positions that are learned are for the trained {stored} patches alone");
            return Err(Error::Input { received: frames.dims().to_vec(), why });
        }
        if from * from != stored || to * to != patches {
            let why = format!(
                "{patches} patches are neither the trained {stored} nor a square number, so positions cannot be interpolated"
            );
            return Err(Error::Input { received: frames.dims().to_vec(), why });
        }
        let (cls, grid) = self.positions.split_at(self.width);
        let resized = [cls, &positions::resized(grid, from, to, self.width)].concat();
        let resized = Tensor::from_vec(resized, (1, 1 + patches, self.width), frames.device())?;
        Ok(resized.to_dtype(frames.dtype())?)
    }
}

/// Pictures of one channel.
pub(super) struct PlaneStem {
    size: [usize; 2],
    stride: usize,
    /// `[width, 1, kernel, kernel]`
    kernel: Tensor,
    tokens: Tokens,
}

/// Patches become tokens: norm, cls token, positions.
struct Tokens {
    norm: LayerNorm,
    /// `[1, 1, width]`
    cls: Tensor,
    /// `[1, 1 + patches, width]`
    positions: Tensor,
}

impl Tokens {
    fn load(
        scope: &Scope<'_>,
        stem: &str,
        positions: &str,
        patches: usize,
        width: usize,
    ) -> Result<Self, Error> {
        Ok(Tokens {
            norm: LayerNorm::load(&scope.at(stem).at("norm_layer"), width, STEM_NORM_EPS)?,
            cls: scope.tensor("cls_token", &[1, 1, width])?,
            positions: scope.tensor(positions, &[1, 1 + patches, width])?,
        })
    }

    /// `[B, patches, width]` → `[B, 1 + patches, width]`.
    fn forward(&self, patches: &Tensor) -> Result<Tensor, Error> {
        let (batch, _, width) = patches.dims3()?;
        let cls = self.cls.broadcast_as((batch, 1, width))?;
        let tokens = Tensor::cat(&[&cls, &self.norm.forward(patches)?], 1)?;
        Ok(tokens.broadcast_add(&self.positions)?)
    }
}

impl PlaneStem {
    /// * `stem`: the checkpoint's name of it. `size`: height and width of the input.
    pub(super) fn load(
        scope: &Scope<'_>,
        stem: &str,
        size: [usize; 2],
        (kernel, stride): (usize, usize),
        width: usize,
    ) -> Result<Self, Error> {
        let [rows, columns] = size.map(|side| (side - kernel) / stride + 1);
        Ok(PlaneStem {
            size,
            stride,
            kernel: scope.tensor(&format!("{stem}.proj.weight"), &[width, 1, kernel, kernel])?,
            tokens: Tokens::load(scope, stem, "pos_embedding_helper.pos_embed", rows * columns, width)?,
        })
    }

    /// `[B, 1, H, W]` → `[B, 1 + patches, width]`.
    pub(super) fn forward(&self, planes: &Tensor) -> Result<Tensor, Error> {
        let [height, width] = self.size;
        if planes.dims()[1..] != [1, height, width] {
            let why = format!("each is one channel of {height}×{width}");
            return Err(Error::Input { received: planes.dims().to_vec(), why });
        }
        self.tokens.forward(&match learns(&[&self.kernel]) {
            true => self.unfolded(planes)?,
            false => {
                let patches = planes.conv2d(&self.kernel, 0, self.stride, 1, 1)?; // [B, width, rows, columns]
                patches.flatten_from(2)?.transpose(1, 2)?.contiguous()?
            }
        })
    }

    /// The convolution as a product, whose derivative is one too: `[B, 1, H, W]` → `[B, patches, width]`.
    fn unfolded(&self, planes: &Tensor) -> Result<Tensor, Error> {
        let (width, _, kernel, _) = self.kernel.dims4()?;
        let (batch, [height, length]) = (planes.dim(0)?, self.size);
        let [rows, columns] = self.size.map(|side| (side - kernel) / self.stride + 1);
        let first = |patch: usize| (patch / columns * self.stride) * length + patch % columns * self.stride;
        let places = (0..rows * columns)
            .flat_map(|patch| (0..kernel * kernel).map(move |i| (patch, i)))
            .map(|(patch, i)| (first(patch) + i / kernel * length + i % kernel) as u32);
        let places = Tensor::from_vec(places.collect(), rows * columns * kernel * kernel, planes.device())?;
        let patches = planes.reshape((batch, height * length))?.index_select(&places, 1)?;
        let patches = patches.reshape((batch, rows * columns, kernel * kernel))?;
        let kernel = self.kernel.reshape((width, kernel * kernel))?;
        Ok(Linear::as_given(kernel, None, Tuning::default()).forward(&patches)?)
    }
}

/// Measurements in time.
pub(super) struct ImuStem {
    channels: usize,
    kernel: usize,
    windows: usize,
    project: Linear,
    tokens: Tokens,
}

impl ImuStem {
    pub(super) fn load(scope: &Scope<'_>, sizes: &ImuConfig) -> Result<Self, Error> {
        let (windows, width) = (sizes.length / sizes.kernel, sizes.embed_dim);
        Ok(ImuStem {
            channels: sizes.channels,
            kernel: sizes.kernel,
            windows,
            project: Linear::load(&scope.at("imu_stem.proj"), width, sizes.channels * sizes.kernel, false)?,
            tokens: Tokens::load(scope, "imu_stem", "pos_embed", windows, width)?,
        })
    }

    /// `[B, channels, T]` → `[B, 1 + windows, width]`; steps behind the last whole window are dropped.
    pub(super) fn forward(&self, signals: &Tensor) -> Result<Tensor, Error> {
        let steps = self.windows * self.kernel;
        let batch = match *signals.dims() {
            [batch, channels, t] if channels == self.channels && t / self.kernel == self.windows => batch,
            _ => {
                let why = format!(
                    "IMU takes [B, {}, {steps}] and up to {} steps more",
                    self.channels,
                    self.kernel - 1
                );
                return Err(Error::Input { received: signals.dims().to_vec(), why });
            }
        };
        let windows = signals
            .narrow(2, 0, steps)?
            .contiguous()?
            .reshape((batch, self.channels, self.windows, self.kernel))?
            .transpose(1, 2)? // [B, windows, channels, kernel]
            .contiguous()?
            .reshape((batch, self.windows, self.channels * self.kernel))?;
        self.tokens.forward(&self.project.forward(&windows)?)
    }
}

pub(super) struct TextStem {
    context: usize,
    /// `[vocabulary, width]`
    tokens: Tensor,
    /// `[context, width]`
    positions: Tensor,
}

impl TextStem {
    pub(super) fn load(scope: &Scope<'_>, sizes: &TextConfig) -> Result<Self, Error> {
        let (context, width) = (sizes.context_length, sizes.embed_dim);
        Ok(TextStem {
            context,
            tokens: scope.tensor("token_embedding.weight", &[sizes.vocab_size, width])?,
            positions: scope.tensor("pos_embed", &[1, context, width])?,
        })
    }

    /// Ids `[B, context]` → B, tokens `[B, context, width]`, and per row the first position of the largest id.
    pub(super) fn forward(&self, ids: &Tensor) -> Result<(usize, Tensor, Vec<u32>), Error> {
        let refuse = |why: String| Error::Input { received: ids.dims().to_vec(), why };
        let (batch, length) = ids.dims2().map_err(|_| refuse("text takes ids [B, context]".into()))?;
        if length != self.context {
            return Err(refuse(format!("a text has exactly {} ids, padding included", self.context)));
        }
        let rows = ids.to_dtype(DType::I64)?.to_device(&candle_core::Device::Cpu)?.to_vec2::<i64>()?;
        let vocabulary = self.tokens.dim(0)? as i64;
        if let Some(id) = rows.iter().flatten().find(|id| !(0..vocabulary).contains(*id)) {
            return Err(refuse(format!("token id {id} is outside the vocabulary of {vocabulary}")));
        }
        let ends = rows.iter().map(|row| first_maximum(row)).collect();
        let flat: Vec<u32> = rows.concat().into_iter().map(|id| id as u32).collect();
        let flat = Tensor::from_vec(flat, batch * length, self.tokens.device())?;
        let tokens =
            self.tokens.index_select(&flat, 0)?.reshape((batch, length, self.tokens.dim(D::Minus1)?))?;
        Ok((batch, tokens.broadcast_add(&self.positions)?, ends)) // [B, context, width]
    }
}

fn first_maximum(ids: &[i64]) -> u32 {
    let best = (0..ids.len()).max_by_key(|&i| (ids[i], std::cmp::Reverse(i)));
    best.unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_ids_counts() {
        assert_eq!(first_maximum(&[1, 9, 3, 9]), 1);
        assert_eq!(first_maximum(&[0, 0]), 0);
    }
}
