//! Units become what the encoder takes: read, digest, decode, resize. One of several threads.

use viscache::models::encoder::{Encoder, Prepared};
use viscache::types::{Fingerprint, Modality};

use crate::discover::{self, Unit};

/// A unit ready to be embedded, or the reason why not.
pub struct Decoded {
    /// The unit.
    pub unit: Unit,
    /// Digest of its bytes and what the encoder takes, or the reason.
    pub outcome: Result<(Fingerprint, Prepared), String>,
}

/// Reads and prepares one picture.
pub fn decode(encoder: &Encoder, unit: Unit) -> Decoded {
    let outcome = discover::read(&unit, encoder.images().limits.max_bytes).and_then(|bytes| {
        let prepared = encoder.prepare(Modality::Image, &bytes).map_err(|e| e.to_string())?;
        Ok((Fingerprint::of(&bytes), prepared))
    });
    Decoded { unit, outcome }
}
