//! Files and texts in, embeddings out.

use bytes::Bytes;
use rayon::prelude::*;

use super::{App, Call, Error};
use crate::models::encoder::{Encoded, Prepared};
use crate::types::Modality;

/// A file or text to embed.
#[derive(Debug, Clone)]
pub struct MediaInput {
    /// What it is.
    pub modality: Modality,
    /// The file's bytes, or the text's.
    pub bytes: Bytes,
}

/// Inputs prepared and encoded between two looks at whether the caller still waits.
const CHUNK: usize = 64;

/// Embeds a batch, each input with a result of its own, in order.
///
/// # Errors
/// [`Error::NoModel`], [`Error::Deadline`] and [`Error::Cancelled`] for the batch as a whole.
pub fn embed(app: &App, inputs: &[&MediaInput], call: &Call) -> Result<Vec<Result<Encoded, Error>>, Error> {
    let Some(first) = inputs.first() else { return Ok(Vec::new()) };
    let encoder = app.encoder.as_ref().ok_or_else(|| Error::NoModel { what: first.modality.article() })?;
    let mut results = Vec::with_capacity(inputs.len());
    for chunk in inputs.chunks(CHUNK) {
        call.check()?;
        let prepared: Vec<Result<Prepared, Error>> =
            chunk.par_iter().map(|input| Ok(encoder.prepare(input.modality, &input.bytes)?)).collect();
        call.check()?;
        let (good, outcomes): (Vec<Prepared>, Vec<Option<Error>>) =
            prepared.into_iter().fold((Vec::new(), Vec::new()), |(mut good, mut outcomes), result| {
                outcomes.push(match result {
                    Ok(input) => {
                        good.push(input);
                        None
                    }
                    Err(error) => Some(error),
                });
                (good, outcomes)
            });
        let mut encoded = encoder.encode(&good).into_iter();
        for outcome in outcomes {
            results.push(match outcome {
                Some(error) => Err(error),
                None => match encoded.next() {
                    Some(result) => result.map_err(Error::from),
                    None => Err(Error::Cancelled),
                },
            });
        }
    }
    Ok(results)
}
