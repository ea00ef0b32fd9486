//! Which network an encoder is; and, once it is loaded, what all of them have in common.

use candle_core::Tensor;

use crate::media::augment::Evaluation;
use crate::models::Error;
use crate::models::illama::{Illama, Size};
use crate::models::imagebind::{self, ImageBind, ignore};
use crate::types::Modality;

/// The word of an iLLaMA of any size.
const ILLAMA: &str = "illama";
/// The word of ImageBind.
const IMAGEBIND: &str = "imagebind";
/// Share of later tokens that a token sees: none, as the published models are tested.
const MASK_RATE: f32 = 0.0;

/// Which network an encoder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// ImageBind, of any size; without weights, the built-in nano model.
    #[default]
    ImageBind,
    /// iLLaMA: of a published size, or of whatever size its weights have.
    Illama(Option<Size>),
}

impl Network {
    /// What a user calls it.
    pub fn word(self) -> &'static str {
        match self {
            Network::ImageBind => IMAGEBIND,
            Network::Illama(None) => ILLAMA,
            Network::Illama(Some(size)) => size.name(),
        }
    }

    /// All words, for a message.
    pub fn words() -> String {
        let sizes = Size::ALL.map(Size::name).join(", ");
        format!("{IMAGEBIND}, {sizes}, or {ILLAMA} for any size")
    }
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let sizes = Size::ALL.into_iter().map(|size| Network::Illama(Some(size)));
        let mut all = [Network::ImageBind, Network::Illama(None)].into_iter().chain(sizes);
        let found = all.find(|network| network.word() == word);
        found.ok_or_else(|| format!("`{word}` is no network: there are {}", Network::words()))
    }
}

/// A loaded network.
pub(super) enum Model {
    /// Boxed: an encoder moves into the thread that owns it.
    ImageBind(Box<ImageBind>),
    /// With how its pictures are prepared.
    Illama(Box<Illama>, Evaluation),
}

impl Model {
    /// Whether it takes a modality.
    pub(super) fn has(&self, modality: Modality) -> bool {
        match self {
            Model::ImageBind(model) => model.has(modality),
            Model::Illama(..) => modality == Modality::Image,
        }
    }

    /// Millions of multiplications for one input, or one clip of it.
    pub(super) fn cost(&self, modality: Modality) -> u64 {
        match self {
            Model::ImageBind(model) => model.cost(modality),
            Model::Illama(model, _) => model.config().cost(),
        }
    }

    /// Components of an embedding, D.
    pub(super) fn dim(&self) -> usize {
        match self {
            Model::ImageBind(model) => model.config().out_embed_dim,
            Model::Illama(model, _) => model.config().width,
        }
    }

    /// Classes that it tells apart, C; 0 for a model without a head.
    pub(super) fn classes(&self) -> usize {
        match self {
            Model::ImageBind(_) => 0,
            Model::Illama(model, _) => model.config().classes,
        }
    }

    /// Encodes a batch: `[B, D]` twice.
    ///
    /// * `starts`: the point that grouping begins at, for clouds.
    ///
    /// # Errors
    /// As [`ImageBind::encode_from`] and [`Illama::forward`].
    pub(super) fn encode(
        &self,
        modality: Modality,
        batch: &Tensor,
        starts: &[usize],
    ) -> Result<imagebind::Encoded, Error> {
        match self {
            Model::ImageBind(model) => model.encode_from(modality, batch, starts, &mut ignore),
            // It has no postprocessor: one vector is both.
            Model::Illama(model, _) => {
                let features = model.forward(batch, MASK_RATE)?.features;
                Ok(imagebind::Encoded { output: features.clone(), prenorm: features })
            }
        }
    }

    /// Logits of a batch of pictures, `[B, C]`.
    ///
    /// # Errors
    /// [`Error::Config`] for a model without a head; as [`Illama::forward`].
    pub(super) fn logits(&self, batch: &Tensor) -> Result<Tensor, Error> {
        match self {
            Model::ImageBind(_) => Err(Error::Config("an ImageBind tells no classes apart".into())),
            Model::Illama(model, _) => Ok(model.forward(batch, MASK_RATE)?.logits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_and_others_are_told_what_there_is() {
        let all = [Network::ImageBind, Network::Illama(None), Network::Illama(Some(Size::Large))];
        for network in all {
            assert_eq!(network.word().parse(), Ok(network));
        }
        assert_eq!(Network::default(), Network::ImageBind);
        let refused = "illama-huge".parse::<Network>().unwrap_err();
        assert!(refused.contains("`illama-huge`") && refused.contains("illama-base"), "{refused}");
    }
}
