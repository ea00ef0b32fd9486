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
    /// The published model, `imagebind_huge`.
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
        for modality in modalities {
            match modality {
                Modality::Image => {
                    let Some(v) = &self.vision else {
                        return refuse("it has no `vision` part, which images need");
                    };
                    check_trunk("vision", v.trunk())?;
                    let ([t, kh, kw], [h, w]) = (v.kernel, v.image_size);
                    if t != 2 || v.num_frames != 2 {
                        return refuse("`vision.kernel` must span 2 frames and `vision.num_frames` be 2");
                    }
                    if kh == 0 || kw == 0 || kh > h || kw > w {
                        return refuse("`vision.kernel` does not fit `vision.image_size`");
                    }
                }
                Modality::Text => {
                    let Some(t) = &self.text else {
                        return refuse("it has no `text` part, which text needs");
                    };
                    check_trunk("text", t.trunk())?;
                    if t.context_length < 3 || t.vocab_size < 3 {
                        return refuse("`text.context_length` and `text.vocab_size` must be at least 3");
                    }
                }
            }
        }
        Ok(())
    }

    /// Names of every tensor that the encoders of `modalities` load or may carry.
    pub(super) fn tensors(&self, modalities: &[Modality]) -> HashSet<String> {
        let mut names = HashSet::new();
        let mut add = |name: String| names.insert(name);
        if let Some(v) = self.vision.as_ref().filter(|_| modalities.contains(&Modality::Image)) {
            add("modality_preprocessors.vision.cls_token".into());
            add("modality_preprocessors.vision.rgbt_stem.proj.1.weight".into());
            add("modality_preprocessors.vision.pos_embedding_helper.pos_embed".into());
            for part in ["weight", "bias"] {
                add(format!("modality_trunks.vision.pre_transformer_layer.0.{part}"));
                add(format!("modality_heads.vision.0.{part}"));
            }
            add("modality_heads.vision.2.weight".into());
            block_tensors("vision", v.num_blocks, &mut add);
        }
        if let Some(t) = self.text.as_ref().filter(|_| modalities.contains(&Modality::Text)) {
            for name in ["token_embedding.weight", "pos_embed", "mask"] {
                add(format!("modality_preprocessors.text.{name}"));
            }
            for name in ["0.weight", "0.bias", "1.weight"] {
                add(format!("modality_heads.text.proj.{name}"));
            }
            add("modality_postprocessors.text.1.log_logit_scale".into());
            block_tensors("text", t.num_blocks, &mut add);
        }
        names
    }
}

impl VisionConfig {
    pub(super) fn trunk(&self) -> TrunkConfig {
        TrunkConfig { width: self.embed_dim, blocks: self.num_blocks, heads: self.num_heads }
    }

    /// Rows and columns of patches of the trained size.
    pub(super) fn grid(&self) -> (usize, usize) {
        (self.image_size[0] / self.kernel[1], self.image_size[1] / self.kernel[2])
    }
}

impl TextConfig {
    pub(super) fn trunk(&self) -> TrunkConfig {
        TrunkConfig { width: self.embed_dim, blocks: self.num_blocks, heads: self.num_heads }
    }
}

/// Whether a tensor is part of an encoder that is not being loaded.
pub(super) fn belongs_to_another(name: &str, modalities: &[Modality]) -> bool {
    const PARTS: [&str; 4] =
        ["modality_preprocessors.", "modality_trunks.", "modality_heads.", "modality_postprocessors."];
    const TOWERS: [&str; 7] = ["vision", "text", "audio", "depth", "thermal", "imu", "point"];
    if name.starts_with("point_trunk.") {
        return true;
    }
    let Some(rest) = PARTS.iter().find_map(|part| name.strip_prefix(part)) else { return false };
    let tower = rest.split('.').next().unwrap_or_default();
    let loaded = modalities.iter().any(|modality| tower == tower_of(*modality));
    TOWERS.contains(&tower) && !loaded
}

/// The checkpoint's word for a modality.
fn tower_of(modality: Modality) -> &'static str {
    match modality {
        Modality::Image => "vision",
        Modality::Text => "text",
    }
}

fn block_tensors(tower: &str, blocks: usize, add: &mut impl FnMut(String) -> bool) {
    const PARTS: [&str; 12] = [
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
    for block in 0..blocks {
        for part in PARTS {
            add(format!("modality_trunks.{tower}.blocks.{block}.{part}"));
        }
    }
}

fn check_trunk(tower: &str, trunk: TrunkConfig) -> Result<(), Error> {
    if trunk.width == 0 || trunk.heads == 0 || !trunk.width.is_multiple_of(trunk.heads) {
        let (width, heads) = (trunk.width, trunk.heads);
        return Err(Error::Config(format!(
            "`{tower}.embed_dim` {width} is not a multiple of `num_heads` {heads}"
        )));
    }
    Ok(())
}
