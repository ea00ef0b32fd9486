//! Units become what the encoder takes: read, digest, decode, resize. One of several threads.

use std::collections::BTreeMap;

use viscache::models::encoder::{Encoder, Prepared};
use viscache::types::{Fingerprint, Modality};

use crate::discover::{self, Place, Refusal, TagRule};

/// A picture ready to be embedded.
pub struct Picture {
    /// Of its bytes.
    pub digest: Fingerprint,
    /// What the encoder takes; nothing when its content is stored already.
    pub prepared: Option<Prepared>,
    /// What the texts beside it say.
    pub tags: BTreeMap<String, String>,
}

/// Reads and prepares one picture.
///
/// * `is_stored`: whether some content need not be embedded.
///
/// # Errors
/// Why it cannot be embedded.
pub fn decode(
    encoder: &Encoder,
    place: &Place,
    is_stored: impl FnOnce(&Fingerprint) -> bool,
) -> Result<Picture, Refusal> {
    let bytes = discover::read(place, encoder.images().limits.max_bytes as u64)?;
    let digest = Fingerprint::of(&bytes);
    let prepared = match is_stored(&digest) {
        true => None,
        false => Some(
            encoder
                .prepare(Modality::Image, &bytes)
                .map_err(|e| Refusal::Bad(discover::explained(&bytes, &e)))?,
        ),
    };
    Ok(Picture { digest, prepared, tags: BTreeMap::new() })
}

/// Adds the tags of a unit; says what is wrong with a text that has none to give.
pub fn tagged(picture: Picture, rules: &[TagRule], texts: &[(usize, Place)]) -> (Picture, Option<String>) {
    let (tags, wrong) = discover::read_tags(rules, texts);
    (Picture { tags, ..picture }, wrong)
}
