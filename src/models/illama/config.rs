//! Sizes of an iLLaMA.

use serde::{Deserialize, Serialize};

use crate::models::Error;
use crate::models::weights::Weights;

/// Hidden widths of the feed-forward layers are rounded up to a multiple of it.
const MULTIPLE: usize = 256;
/// Components of a head in all published sizes.
const HEAD: usize = 64;
/// Largest size that a file may state: far beyond any model, and its products still fit.
const MAX_SIZE: usize = 1 << 16;

/// The published sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// 5.7 M parameters.
    Tiny,
    /// 22 M.
    Small,
    /// 86 M.
    Base,
    /// 310 M.
    Large,
}

impl Size {
    /// All of them.
    pub const ALL: [Size; 4] = [Size::Tiny, Size::Small, Size::Base, Size::Large];

    /// What a model of this size is called.
    pub const fn name(self) -> &'static str {
        match self {
            Size::Tiny => "illama-tiny",
            Size::Small => "illama-small",
            Size::Base => "illama-base",
            Size::Large => "illama-large",
        }
    }

    /// The sizes, for pictures of `side` pixels and so many classes.
    pub fn config(self, side: usize, classes: usize) -> Config {
        let (width, depth) = match self {
            Size::Tiny => (192, 12),
            Size::Small => (384, 12),
            Size::Base => (768, 12),
            Size::Large => (1024, 24),
        };
        Config { side, patch: 16, classes, width, depth, heads: width / HEAD, norm_eps: default_eps() }
    }
}

impl std::str::FromStr for Size {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        Size::ALL.into_iter().find(|size| size.name() == word).ok_or_else(|| {
            let known = Size::ALL.map(Size::name).join(", ");
            Error::Config(format!("there is no iLLaMA `{word}`, only {known}"))
        })
    }
}

/// Sizes. The keys of a `config.json` are the published program's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Pixels of a picture's side, S.
    #[serde(rename = "img_size")]
    pub side: usize,
    /// Pixels of a patch's side, p.
    #[serde(rename = "patch_size")]
    pub patch: usize,
    /// Classes, C.
    #[serde(rename = "num_classes")]
    pub classes: usize,
    /// Components of a token, E.
    #[serde(rename = "embed_dim")]
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of attention.
    #[serde(rename = "num_heads")]
    pub heads: usize,
    /// Epsilon of the norms.
    #[serde(default = "default_eps")]
    pub norm_eps: f32,
}

fn default_eps() -> f32 {
    1e-6
}

impl Config {
    /// Reads a JSON of sizes. What it says besides is not asked.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn from_json(json: &str) -> Result<Self, Error> {
        let config: Config =
            serde_json::from_str(json).map_err(|e| Error::Config(format!("sizes of an iLLaMA: {e}")))?;
        config.checked()
    }

    /// The sizes that weights have, if they are an iLLaMA's of a published width: heads of 64 components each.
    ///
    /// # Errors
    /// [`Error::Config`] naming what does not fit.
    pub fn of(weights: &Weights) -> Result<Self, Error> {
        let shape = |name: &str| {
            weights.shape(name).ok_or_else(|| {
                Error::Config(format!("{} has no tensor `{name}`, so it is no iLLaMA", weights.path()))
            })
        };
        let (patches, positions, head) =
            (shape("patch_embed.proj.weight")?, shape("pos_embed")?, shape("head.weight")?);
        let (&[width, 3, patch, same], &[1, tokens, _], &[classes, _]) = (patches, positions, head) else {
            let why = format!(
                "patches of {patches:?}, positions of {positions:?} and a head of {head:?} are no iLLaMA's"
            );
            return Err(Error::Config(why));
        };
        let grid = tokens.saturating_sub(1).isqrt();
        if patch != same || grid * grid + 1 != tokens {
            let why =
                format!("patches of {patch}×{same} and {tokens} positions are no square and a class token");
            return Err(Error::Config(why));
        }
        if !width.is_multiple_of(HEAD) {
            let why = format!("a width of {width} is not of heads of {HEAD}; give its sizes as JSON");
            return Err(Error::Config(why));
        }
        let depth =
            (0..).take_while(|i| weights.shape(&format!("blocks.{i}.norm1.weight")).is_some()).count();
        let heads = width / HEAD;
        Config { side: grid * patch, patch, classes, width, depth, heads, norm_eps: default_eps() }.checked()
    }

    /// Patches of a picture, P.
    pub fn patches(&self) -> usize {
        (self.side / self.patch).pow(2)
    }

    /// Hidden components of the feed-forward layers: two thirds of four times the width, rounded up.
    pub fn hidden(&self) -> usize {
        (2 * (4 * self.width) / 3).next_multiple_of(MULTIPLE)
    }

    /// Millions of multiplications for one picture, without norms and the softmax.
    pub fn cost(&self) -> u64 {
        let [width, patches, hidden] = [self.width, self.patches(), self.hidden()].map(|size| size as f64);
        let tokens = patches + 1.0;
        // Queries, keys, values and their projection; the three layers of the feed-forward; scores and mixing.
        let token = 4.0 * width * width + 3.0 * width * hidden + 2.0 * tokens * width;
        let patch = 3.0 * (self.patch * self.patch) as f64 * width;
        let all = self.depth as f64 * tokens * token + patches * patch + width * self.classes as f64;
        (all / 1e6).max(1.0) as u64
    }

    /// What tells the published sizes apart, in words.
    pub fn in_words(&self) -> String {
        let Config { patch, width, depth, heads, norm_eps, .. } = self;
        format!(
            "width {width}, {depth} blocks of {heads} heads, patches of {patch}×{patch} and an epsilon of {norm_eps}"
        )
    }

    /// The same model for pictures of another size.
    ///
    /// # Errors
    /// [`Error::Config`] for a side that is no multiple of a patch.
    pub fn with_side(&self, side: usize) -> Result<Self, Error> {
        Config { side, ..self.clone() }.checked()
    }

    fn checked(self) -> Result<Self, Error> {
        let fail = |why: String| Err(Error::Config(why));
        let Config { side, patch, classes, width, depth, heads, norm_eps } = self;
        let sizes = [side, patch, classes, width, depth, heads];
        if sizes.contains(&0) || sizes.into_iter().any(|size| size > MAX_SIZE) {
            return fail(format!("sizes of an iLLaMA are from 1 to {MAX_SIZE}, not {sizes:?}"));
        }
        if !side.is_multiple_of(patch) {
            return fail(format!("pictures of {side} pixels are not of whole patches of {patch}"));
        }
        if !width.is_multiple_of(2 * heads) {
            return fail(format!("a width of {width} is no even number for each of {heads} heads"));
        }
        if !(norm_eps > 0.0 && norm_eps.is_finite()) {
            return fail("the epsilon of norms must be above 0".into());
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_widths_are_the_published_ones() {
        let hidden = Size::ALL.map(|size| size.config(224, 1000).hidden());
        assert_eq!(hidden, [512, 1024, 2048, 2816]);
        assert_eq!(Size::Tiny.config(384, 10).patches(), 576);
        assert_eq!("illama-base".parse::<Size>().unwrap(), Size::Base);
        assert!("illama-huge".parse::<Size>().unwrap_err().to_string().contains("illama-large"));
    }

    #[test]
    fn multiplications_are_the_published_ones() {
        // G, as the paper's table rounds them.
        let published = [(Size::Tiny, 224, 1.3), (Size::Small, 224, 4.6), (Size::Base, 224, 17.6)];
        let more = [(Size::Base, 384, 55.5), (Size::Large, 224, 62.8), (Size::Large, 384, 194.7)];
        for (size, side, expected) in published.into_iter().chain(more) {
            let cost = size.config(side, 1000).cost() as f64 / 1e3;
            assert!((cost - expected).abs() < 0.051, "{size:?} {side}: {cost}");
        }
    }

    #[test]
    fn sizes_that_make_no_network_are_refused() {
        let read = |side, width, heads| {
            let json = format!(
                r#"{{"img_size": {side}, "patch_size": 8, "num_classes": 10, "embed_dim": {width}, "depth": 2, "num_heads": {heads}}}"#
            );
            Config::from_json(&json).map_err(|refused| refused.to_string())
        };
        assert!(read(32, 48, 4).is_ok());
        assert!(read(30, 48, 4).unwrap_err().contains("whole patches"));
        assert!(read(32, 48, 5).unwrap_err().contains("heads"));
        assert!(read(32, 0, 4).is_err() && read(1 << 20, 48, 4).is_err());
    }
}
