//! The sizes of an ImageBind, and which tensors they call for.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::models::Error;
use crate::types::Modality;

/// Sizes of a model. Keys of other modalities in the JSON are allowed and not read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Width of the joint space, D.
    pub out_embed_dim: usize,
    /// The vision encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision: Option<VisionConfig>,
    /// The text encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextConfig>,
    /// The audio encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audio: Option<AudioConfig>,
    /// The depth encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<PlaneConfig>,
    /// The thermal encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thermal: Option<PlaneConfig>,
    /// The IMU encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imu: Option<ImuConfig>,
    /// The point-cloud encoder, which ImageBind-LLM's checkpoint has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<PointConfig>,
}

/// Sizes of the vision encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VisionConfig {
    /// Height and width of the pictures it was trained on.
    pub image_size: [usize; 2],
    /// Frames a patch spans.
    #[serde(default = "two")]
    pub num_frames: usize,
    /// Frames, height and width of a patch.
    pub kernel: [usize; 3],
    /// Width of the trunk.
    pub embed_dim: usize,
    /// Blocks of the trunk.
    pub num_blocks: usize,
    /// Heads of its attention.
    pub num_heads: usize,
}

/// Sizes of the text encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextConfig {
    /// Tokens of a text, padding included.
    pub context_length: usize,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the trunk.
    pub embed_dim: usize,
    /// Blocks of the trunk.
    pub num_blocks: usize,
    /// Heads of its attention.
    pub num_heads: usize,
}

/// Sizes of the audio encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AudioConfig {
    /// Mel bands: rows of a spectrogram.
    pub num_mel_bins: usize,
    /// Windows: columns of a spectrogram.
    pub target_len: usize,
    /// Side of a patch.
    pub kernel: usize,
    /// From one patch to the next.
    pub stride: usize,
    /// Width of the trunk.
    pub embed_dim: usize,
    /// Blocks of the trunk.
    pub num_blocks: usize,
    /// Heads of its attention.
    pub num_heads: usize,
}

/// Sizes of an encoder of pictures of one channel: depth or thermal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlaneConfig {
    /// Height and width of the input.
    pub image_size: [usize; 2],
    /// Side of a patch, and from one to the next.
    pub kernel: usize,
    /// Width of the trunk.
    pub embed_dim: usize,
    /// Blocks of the trunk.
    pub num_blocks: usize,
    /// Heads of its attention.
    pub num_heads: usize,
}

/// Sizes of the IMU encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImuConfig {
    /// Axes measured.
    pub channels: usize,
    /// Steps in time.
    pub length: usize,
    /// Steps of a window.
    pub kernel: usize,
    /// Width of the trunk.
    pub embed_dim: usize,
    /// Blocks of the trunk.
    pub num_blocks: usize,
    /// Heads of its attention.
    pub num_heads: usize,
}

/// Sizes of the point-cloud encoder, under the names of its own configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointConfig {
    /// Points of a cloud that was seen in training; any number from `group_size` up works.
    pub npoints: usize,
    /// Groups, G.
    pub num_group: usize,
    /// Points of a group, M.
    pub group_size: usize,
    /// Width that the mini network gives a group.
    pub encoder_dims: usize,
    /// Width of the trunk.
    pub trans_dim: usize,
    /// Blocks of the trunk.
    pub depth: usize,
    /// Heads of its attention.
    pub num_heads: usize,
    /// Width before the head.
    pub proj_dim: usize,
}

/// One of the encoders, each with a trunk of its own. Pictures and videos share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tower {
    Vision,
    Text,
    Audio,
    Depth,
    Thermal,
    Imu,
    Point,
}

impl Tower {
    const ALL: [Tower; 7] =
        [Tower::Vision, Tower::Text, Tower::Audio, Tower::Depth, Tower::Thermal, Tower::Imu, Tower::Point];

    pub(super) fn of(modality: Modality) -> Self {
        match modality {
            Modality::Image | Modality::Video => Tower::Vision,
            Modality::Text => Tower::Text,
            Modality::Audio => Tower::Audio,
            Modality::Depth => Tower::Depth,
            Modality::Thermal => Tower::Thermal,
            Modality::Imu => Tower::Imu,
            Modality::Point => Tower::Point,
        }
    }

    /// The checkpoint's word.
    pub(super) fn word(self) -> &'static str {
        match self {
            Tower::Vision => "vision",
            Tower::Text => "text",
            Tower::Audio => "audio",
            Tower::Depth => "depth",
            Tower::Thermal => "thermal",
            Tower::Imu => "imu",
            Tower::Point => "point",
        }
    }
}

/// Sizes of a trunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrunkConfig {
    pub(super) width: usize,
    pub(super) blocks: usize,
    pub(super) heads: usize,
}

fn two() -> usize {
    2
}

impl Config {
    /// The published models: `imagebind_huge`, and `imagebind_w3D`, which adds the point clouds.
    pub fn huge() -> Self {
        Config {
            out_embed_dim: 1024,
            vision: Some(VisionConfig {
                image_size: [224, 224],
                num_frames: 2,
                kernel: [2, 14, 14],
                embed_dim: 1280,
                num_blocks: 32,
                num_heads: 16,
            }),
            text: Some(TextConfig {
                context_length: 77,
                vocab_size: 49408,
                embed_dim: 1024,
                num_blocks: 24,
                num_heads: 16,
            }),
            audio: Some(AudioConfig {
                num_mel_bins: 128,
                target_len: 204,
                kernel: 16,
                stride: 10,
                embed_dim: 768,
                num_blocks: 12,
                num_heads: 12,
            }),
            depth: Some(PlaneConfig {
                image_size: [224, 224],
                kernel: 16,
                embed_dim: 384,
                num_blocks: 12,
                num_heads: 8,
            }),
            thermal: Some(PlaneConfig {
                image_size: [224, 224],
                kernel: 16,
                embed_dim: 768,
                num_blocks: 12,
                num_heads: 12,
            }),
            imu: Some(ImuConfig {
                channels: 6,
                length: 2000,
                kernel: 8,
                embed_dim: 512,
                num_blocks: 6,
                num_heads: 8,
            }),
            point: Some(PointConfig {
                npoints: 8192,
                num_group: 512,
                group_size: 32,
                encoder_dims: 256,
                trans_dim: 384,
                depth: 12,
                num_heads: 6,
                proj_dim: 512,
            }),
        }
    }

    /// The modalities that these sizes have an encoder for.
    pub fn modalities(&self) -> Vec<Modality> {
        Modality::ALL.into_iter().filter(|modality| self.has(Tower::of(*modality))).collect()
    }

    fn has(&self, tower: Tower) -> bool {
        match tower {
            Tower::Vision => self.vision.is_some(),
            Tower::Text => self.text.is_some(),
            Tower::Audio => self.audio.is_some(),
            Tower::Depth => self.depth.is_some(),
            Tower::Thermal => self.thermal.is_some(),
            Tower::Imu => self.imu.is_some(),
            Tower::Point => self.point.is_some(),
        }
    }

    /// Reads sizes from JSON.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn from_json(json: &str) -> Result<Self, Error> {
        serde_json::from_str(json).map_err(|e| Error::Config(e.to_string()))
    }

    /// Checks the sizes of the modalities that will be loaded.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, modalities: &[Modality]) -> Result<(), Error> {
        let refuse = |what: &str| Err(Error::Config(what.into()));
        if self.out_embed_dim == 0 {
            return refuse("`out_embed_dim` is 0");
        }
        for tower in towers(modalities) {
            let word = tower.word();
            if !self.has(tower) {
                return Err(Error::Config(format!("it has no `{word}` part, which {word} inputs need")));
            }
            if let Some(trunk) = self.trunk(tower) {
                check_trunk(word, trunk)?;
            }
            match tower {
                Tower::Vision => self.vision.iter().try_for_each(VisionConfig::check)?,
                Tower::Text => self.text.iter().try_for_each(TextConfig::check)?,
                Tower::Audio => self.audio.iter().try_for_each(AudioConfig::check)?,
                Tower::Depth => self.depth.iter().try_for_each(|depth| depth.check(word))?,
                Tower::Thermal => self.thermal.iter().try_for_each(|thermal| thermal.check(word))?,
                Tower::Imu => self.imu.iter().try_for_each(ImuConfig::check)?,
                Tower::Point => self.point.iter().try_for_each(PointConfig::check)?,
            }
        }
        Ok(())
    }

    /// Sizes of the trunk that most encoders share the form of; none for the point clouds' own, or where there is no such part.
    pub(super) fn trunk(&self, tower: Tower) -> Option<TrunkConfig> {
        let trunk = |width, blocks, heads| TrunkConfig { width, blocks, heads };
        match tower {
            Tower::Vision => self.vision.as_ref().map(|c| trunk(c.embed_dim, c.num_blocks, c.num_heads)),
            Tower::Text => self.text.as_ref().map(|c| trunk(c.embed_dim, c.num_blocks, c.num_heads)),
            Tower::Audio => self.audio.as_ref().map(|c| trunk(c.embed_dim, c.num_blocks, c.num_heads)),
            Tower::Depth => self.depth.as_ref().map(|c| trunk(c.embed_dim, c.num_blocks, c.num_heads)),
            Tower::Thermal => self.thermal.as_ref().map(|c| trunk(c.embed_dim, c.num_blocks, c.num_heads)),
            Tower::Imu => self.imu.as_ref().map(|c| trunk(c.embed_dim, c.num_blocks, c.num_heads)),
            Tower::Point => None,
        }
    }

    /// Tokens, width and blocks of a tower, if there is such a part.
    pub(super) fn size(&self, tower: Tower) -> Option<(usize, usize, usize)> {
        let cut = |side: usize, kernel: usize, stride: usize| (side - kernel) / stride + 1;
        let plane = |[h, w]: [usize; 2], kernel: usize, stride: usize| {
            1 + cut(h, kernel, stride) * cut(w, kernel, stride)
        };
        if let (Tower::Point, Some(point)) = (tower, &self.point) {
            return Some((1 + point.num_group, point.trans_dim, point.depth));
        }
        let TrunkConfig { width, blocks, .. } = self.trunk(tower)?;
        let tokens = match tower {
            Tower::Vision => self.vision.as_ref().map(|c| 1 + c.grid().0 * c.grid().1),
            Tower::Text => self.text.as_ref().map(|c| c.context_length),
            Tower::Audio => {
                self.audio.as_ref().map(|c| plane([c.num_mel_bins, c.target_len], c.kernel, c.stride))
            }
            Tower::Depth => self.depth.as_ref().map(|c| plane(c.image_size, c.kernel, c.kernel)),
            Tower::Thermal => self.thermal.as_ref().map(|c| plane(c.image_size, c.kernel, c.kernel)),
            Tower::Imu => self.imu.as_ref().map(|c| 1 + c.length / c.kernel),
            Tower::Point => None,
        };
        Some((tokens?, width, blocks))
    }

    /// Names of every tensor that the encoders of `modalities` load or may carry.
    pub(super) fn tensors(&self, modalities: &[Modality]) -> HashSet<String> {
        let mut names = HashSet::new();
        for tower in towers(modalities).filter(|tower| self.has(*tower)) {
            let word = tower.word();
            let mut add = |name: String| _ = names.insert(name);
            let stem: &[&str] = match tower {
                Tower::Vision => &["cls_token", "rgbt_stem.proj.1.weight", "pos_embedding_helper.pos_embed"],
                Tower::Text => &["token_embedding.weight", "pos_embed", "mask"],
                Tower::Audio | Tower::Thermal => &PLANE_STEM,
                Tower::Depth => &DEPTH_STEM,
                Tower::Imu => &[
                    "cls_token",
                    "imu_stem.proj.weight",
                    "imu_stem.norm_layer.weight",
                    "imu_stem.norm_layer.bias",
                    "pos_embed",
                ],
                Tower::Point => &[],
            };
            stem.iter().for_each(|name| add(format!("modality_preprocessors.{word}.{name}")));
            let head: &[&str] = match tower {
                Tower::Text => &["proj.0.weight", "proj.0.bias", "proj.1.weight"],
                Tower::Imu => &["0.weight", "0.bias", "3.weight"],
                _ => &["0.weight", "0.bias", "2.weight"],
            };
            head.iter().for_each(|name| add(format!("modality_heads.{word}.{name}")));
            match tower {
                Tower::Vision => ["weight", "bias"]
                    .iter()
                    .for_each(|part| add(format!("modality_trunks.vision.pre_transformer_layer.0.{part}"))),
                _ => add(format!("modality_postprocessors.{word}.1.log_logit_scale")),
            }
            if let Some(trunk) = self.trunk(tower) {
                let extra: &[&str] = if tower.extra_key() { &["attn.bias_k", "attn.bias_v"] } else { &[] };
                for (block, part) in
                    (0..trunk.blocks).flat_map(|b| BLOCK.iter().chain(extra).map(move |part| (b, part)))
                {
                    add(format!("modality_trunks.{word}.blocks.{block}.{part}"));
                }
            }
            if let Some(point) = self.point.as_ref().filter(|_| tower == Tower::Point) {
                point.tensors(&mut add);
            }
        }
        names
    }
}

/// The towers of some modalities, each once.
pub(super) fn towers(modalities: &[Modality]) -> impl Iterator<Item = Tower> {
    let wanted: Vec<Tower> = modalities.iter().map(|modality| Tower::of(*modality)).collect();
    Tower::ALL.into_iter().filter(move |tower| wanted.contains(tower))
}

/// Tensors of the stem of a picture of one channel.
const PLANE_STEM: [&str; 5] = [
    "cls_token",
    "rgbt_stem.proj.weight",
    "rgbt_stem.norm_layer.weight",
    "rgbt_stem.norm_layer.bias",
    "pos_embedding_helper.pos_embed",
];
/// As the checkpoint names depth's.
const DEPTH_STEM: [&str; 5] = [
    "cls_token",
    "depth_stem.proj.weight",
    "depth_stem.norm_layer.weight",
    "depth_stem.norm_layer.bias",
    "pos_embedding_helper.pos_embed",
];
/// Tensors of a block.
const BLOCK: [&str; 12] = [
    "attn.in_proj_weight",
    "attn.in_proj_bias",
    "attn.out_proj.weight",
    "attn.out_proj.bias",
    "norm_1.weight",
    "norm_1.bias",
    "norm_2.weight",
    "norm_2.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
];

fn refuse<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::Config(what.into()))
}

impl VisionConfig {
    /// Rows and columns of patches of the trained size.
    pub(super) fn grid(&self) -> (usize, usize) {
        (self.image_size[0] / self.kernel[1], self.image_size[1] / self.kernel[2])
    }

    fn check(&self) -> Result<(), Error> {
        let ([t, kh, kw], [h, w]) = (self.kernel, self.image_size);
        if t != 2 || self.num_frames != 2 {
            return refuse("`vision.kernel` must span 2 frames and `vision.num_frames` be 2");
        }
        if kh == 0 || kw == 0 || kh > h || kw > w {
            return refuse("`vision.kernel` does not fit `vision.image_size`");
        }
        Ok(())
    }
}

impl TextConfig {
    fn check(&self) -> Result<(), Error> {
        match self.context_length < 3 || self.vocab_size < 3 {
            true => refuse("`text.context_length` and `text.vocab_size` must be at least 3"),
            false => Ok(()),
        }
    }
}

impl AudioConfig {
    fn check(&self) -> Result<(), Error> {
        let smallest = self.num_mel_bins.min(self.target_len);
        match self.kernel == 0 || self.stride == 0 || self.kernel > smallest {
            true => refuse("`audio.kernel` and `audio.stride` do not fit `num_mel_bins` and `target_len`"),
            false => Ok(()),
        }
    }
}

impl PlaneConfig {
    fn check(&self, word: &str) -> Result<(), Error> {
        match self.kernel == 0 || self.image_size.iter().any(|&side| side < self.kernel) {
            true => refuse(format!("`{word}.kernel` does not fit `{word}.image_size`")),
            false => Ok(()),
        }
    }
}

impl ImuConfig {
    fn check(&self) -> Result<(), Error> {
        match self.channels == 0 || self.kernel == 0 || self.length < self.kernel {
            true => refuse("`imu.kernel` does not fit `imu.length`, or `imu.channels` is 0"),
            false => Ok(()),
        }
    }
}

impl PointConfig {
    fn check(&self) -> Result<(), Error> {
        check_trunk(
            "point",
            TrunkConfig { width: self.trans_dim, blocks: self.depth, heads: self.num_heads },
        )?;
        let sizes = [self.npoints, self.num_group, self.group_size, self.encoder_dims, self.proj_dim];
        if sizes.contains(&0) || self.group_size > self.npoints {
            return refuse("`point` has a size of 0, or a `group_size` above `npoints`");
        }
        Ok(())
    }

    fn tensors(&self, add: &mut impl FnMut(String)) {
        let mut under = |name: &str| add(format!("point_trunk.point_encoder.{name}"));
        for name in
            ["cls_token", "cls_pos", "norm.weight", "norm.bias", "reduce_dim.weight", "reduce_dim.bias"]
        {
            under(name);
        }
        for (layer, part) in
            ["pos_embed.0", "pos_embed.2"].iter().flat_map(|l| ["weight", "bias"].map(|p| (l, p)))
        {
            under(&format!("{layer}.{part}"));
        }
        for network in ["encoder.first_conv", "encoder.second_conv"] {
            for (layer, part) in [0, 1, 3].iter().flat_map(|l| ["weight", "bias"].map(|p| (l, p))) {
                under(&format!("{network}.{layer}.{part}"));
            }
            for part in ["running_mean", "running_var", "num_batches_tracked"] {
                under(&format!("{network}.1.{part}"));
            }
        }
        const BLOCK: [&str; 11] = [
            "norm1.weight",
            "norm1.bias",
            "attn.qkv.weight",
            "attn.proj.weight",
            "attn.proj.bias",
            "norm2.weight",
            "norm2.bias",
            "mlp.fc1.weight",
            "mlp.fc1.bias",
            "mlp.fc2.weight",
            "mlp.fc2.bias",
        ];
        for (block, part) in (0..self.depth).flat_map(|b| BLOCK.map(|part| (b, part))) {
            under(&format!("blocks.blocks.{block}.{part}"));
        }
        add("point_trunk.pc_projection".into());
    }
}

impl Tower {
    /// Whether attention sees one more key and value than there are tokens.
    pub(super) fn extra_key(self) -> bool {
        matches!(self, Tower::Audio | Tower::Depth | Tower::Thermal | Tower::Imu)
    }
}

/// Whether a tensor is part of an encoder that is not being loaded.
pub(super) fn belongs_to_another(name: &str, modalities: &[Modality]) -> bool {
    const PARTS: [&str; 4] =
        ["modality_preprocessors.", "modality_trunks.", "modality_heads.", "modality_postprocessors."];
    let loaded = |word: &str| towers(modalities).any(|tower| tower.word() == word);
    if name.starts_with("point_trunk.") {
        return !loaded(Tower::Point.word());
    }
    let Some(rest) = PARTS.iter().find_map(|part| name.strip_prefix(part)) else { return false };
    let word = rest.split('.').next().unwrap_or_default();
    Tower::ALL.iter().any(|tower| tower.word() == word) && !loaded(word)
}

fn check_trunk(word: &str, trunk: TrunkConfig) -> Result<(), Error> {
    if trunk.width == 0 || trunk.heads == 0 || !trunk.width.is_multiple_of(trunk.heads) {
        let (width, heads) = (trunk.width, trunk.heads);
        return refuse(format!("the width {width} of `{word}` is not a multiple of its {heads} heads"));
    }
    Ok(())
}
