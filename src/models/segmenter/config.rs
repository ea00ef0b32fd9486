//! Sizes of a segmenter.

use serde::{Deserialize, Serialize};

use crate::models::{Error, illama};

/// Sizes: an iLLaMA's, and which of its blocks the decoder looks at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// The iLLaMA; its classes are those of pixels.
    #[serde(flatten)]
    pub backbone: illama::Config,
    /// What the decoder adds.
    #[serde(flatten)]
    decoder: Decoder,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Decoder {
    /// Numbers of blocks, ascending.
    decoder_blocks: Vec<usize>,
    /// Of the soft mask, r: what it learned with.
    mask_rate: f32,
}

impl Config {
    /// Blocks that are looked at where nothing is said.
    const LEVELS: usize = 4;
    /// Classes, at most: a label is a byte, and 0 is none.
    pub const MOST_CLASSES: usize = 255;

    /// * `blocks`: that the decoder looks at, ascending; empty: four of them (or all), spread evenly, the last among them.
    ///   `mask_rate`: of the soft mask, r.
    ///
    /// # Errors
    /// [`Error::Config`] for blocks that there are not, that come twice or are not ascending; for a rate that is not from 0
    /// to 1; for other than 2 to [`Config::MOST_CLASSES`] classes.
    pub fn new(backbone: illama::Config, blocks: &[usize], mask_rate: f32) -> Result<Self, Error> {
        let (depth, classes, most) = (backbone.depth, backbone.classes, Self::MOST_CLASSES);
        if !(2..=most).contains(&classes) {
            return Err(Error::Config(format!("pixels have from 2 to {most} classes, not {classes}")));
        }
        let levels = Self::LEVELS.min(depth);
        let spread = (1..=levels).map(|level| level * depth / levels - 1).collect();
        let decoder_blocks = if blocks.is_empty() { spread } else { blocks.to_vec() };
        if !decoder_blocks.is_sorted_by(|a, b| a < b) || decoder_blocks.iter().any(|&block| block >= depth) {
            let last = depth.saturating_sub(1);
            let why = format!("the decoder's blocks are ascending numbers from 0 to {last}, not {blocks:?}");
            return Err(Error::Config(why));
        }
        if !(0.0..=1.0).contains(&mask_rate) {
            return Err(Error::Config(format!("the rate of the mask is from 0 to 1, not {mask_rate}")));
        }
        Ok(Config { backbone, decoder: Decoder { decoder_blocks, mask_rate } })
    }

    /// Reads a JSON of sizes. What it says besides is not asked.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn from_json(json: &str) -> Result<Self, Error> {
        let decoder: Decoder = serde_json::from_str(json)
            .map_err(|e| Error::Config(format!("sizes of a segmenter, as training writes them: {e}")))?;
        Config::new(illama::Config::from_json(json)?, &decoder.decoder_blocks, decoder.mask_rate)
    }

    /// Blocks that the decoder looks at, ascending.
    pub fn blocks(&self) -> &[usize] {
        &self.decoder.decoder_blocks
    }

    /// Of the soft mask, r.
    pub fn mask_rate(&self) -> f32 {
        self.decoder.mask_rate
    }

    /// Patches of a side, g.
    pub fn grid(&self) -> usize {
        self.backbone.side / self.backbone.patch
    }

    /// Classes of pixels, C.
    pub fn classes(&self) -> usize {
        self.backbone.classes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::illama::Size;

    #[test]
    fn blocks_are_spread_or_named() {
        let base = Size::Base.config(512, 150);
        let config = Config::new(base.clone(), &[], 0.0).unwrap();
        assert_eq!((config.blocks(), config.grid(), config.classes()), (&[2, 5, 8, 11][..], 32, 150));
        let flat = illama::Config { depth: 2, ..base.clone() };
        assert_eq!(Config::new(flat, &[], 0.0).unwrap().blocks(), [0, 1]);
        let named = Config::new(base.clone(), &[11], 0.5).unwrap();
        assert_eq!(Config::from_json(&serde_json::to_string(&named).unwrap()).unwrap(), named);
        for wrong in [&[12][..], &[3, 3], &[4, 1]] {
            assert!(Config::new(base.clone(), wrong, 0.0).unwrap_err().to_string().contains("0 to 11"));
        }
        assert!(Config::new(base.clone(), &[], 1.5).is_err());
        for classes in [1, 256] {
            assert!(Config::new(illama::Config { classes, ..base.clone() }, &[], 0.0).is_err());
        }
        let of_illama = serde_json::to_string(&base).unwrap();
        assert!(Config::from_json(&of_illama).unwrap_err().to_string().contains("decoder_blocks"));
    }
}
