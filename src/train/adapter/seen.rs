//! Embeddings of pictures, computed once and kept in memory.
//!
//! ```text
//! places ─► each once ─► counted against the memory that is allowed ─► read, prepared, embedded ─► as a request's: unit / (1 + 1e-6)
//! ```
//! The encoder never learns, so a picture's embedding is the same every time. The published program embeds it anew each epoch, after a
//! random crop of 90 to 100 % of its area; here every picture is seen whole.
//!
//! What there is no picture for is shown the embedding of zeros, as the published program does.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::blend;
use crate::media::Limits;
use crate::models::encoder::{Encoder, Media};
use crate::train::data::Place;
use crate::train::stop::told;
use crate::train::{Error, Stop};
use crate::types::{Embedding, Modality};

/// Pictures that are prepared together.
const TOGETHER: usize = 64;

/// Rows of one width.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    width: usize,
    rows: Vec<f32>,
    places: HashMap<Place, Result<usize, String>>,
    nothing: Option<usize>,
}

impl Seen {
    /// Embeds pictures.
    ///
    /// * `places`: where they lie; each is embedded once. `nothing`: whether something is about no picture. `most_mib`: memory that
    ///   the rows may take. `watch`: hears how many pictures are done, and of how many.
    ///
    /// # Errors
    /// [`Error::Parameter`] for more rows than the memory holds, before the first is computed; [`Stop::Model`] where zeros cannot be
    /// embedded. A picture that cannot be is told by [`Seen::of`].
    pub fn embed<'a>(
        encoder: &Encoder,
        places: impl Iterator<Item = &'a Place>,
        nothing: bool,
        most_mib: usize,
        loaders: &rayon::ThreadPool,
        watch: &mut dyn FnMut(usize, usize),
    ) -> Result<Seen, Stop> {
        let mut found = HashMap::new();
        let mut order: Vec<&Place> = Vec::new();
        for place in places {
            if found.insert(place.clone(), Err(String::new())).is_none() {
                order.push(place);
            }
        }
        let width = encoder.dim();
        let need_mib = (order.len() + 1).saturating_mul(width * size_of::<f32>()).div_ceil(1 << 20);
        if need_mib > most_mib {
            return Err(Error::Parameter {
                name: "adapter.memory_mib",
                value: most_mib.to_string(),
                allowed: "enough for an embedding of each picture; take more, or fewer pictures",
            }
            .into());
        }
        let mut seen = Seen { width, rows: Vec::new(), places: found, nothing: None };
        if nothing {
            let side = encoder.images().side;
            let zeros = vec![0.0; 3 * side * side];
            let nothing = Media::Ready(Modality::Image, &[3, side, side], &zeros);
            let prepared = encoder.prepare_media(&nothing).map_err(|e| Stop::Media(e.to_string()))?;
            let embedding = encoder.encode(&[prepared]).remove(0)?.embedding;
            let row = seen.take(&embedding).map_err(Stop::Media)?;
            seen.nothing = Some(row);
        }
        let limits = Limits::default();
        for (done, some) in order.chunks(TOGETHER).enumerate() {
            watch(done * TOGETHER, order.len());
            let prepare = |place: &&Place| {
                let bytes = place.read(limits.max_bytes as u64).map_err(|e| told(&e))?;
                encoder.prepare(Modality::Image, &bytes).map_err(|e| told(&e))
            };
            let ready: Vec<Result<_, String>> = loaders.install(|| some.par_iter().map(prepare).collect());
            let whole: Vec<_> = ready.iter().filter_map(|one| one.as_ref().ok()).cloned().collect();
            let mut embedded = encoder.encode(&whole).into_iter();
            for (place, ready) in some.iter().zip(ready) {
                let row = ready.and_then(|_| match embedded.next() {
                    Some(encoded) => seen.take(&encoded.map_err(|e| told(&e))?.embedding),
                    None => Err("it was not embedded".into()),
                });
                seen.places.insert((*place).clone(), row);
            }
        }
        watch(order.len(), order.len());
        Ok(seen)
    }

    /// Keeps a row, as a request without a cache is given to the decoder.
    fn take(&mut self, embedding: &Embedding) -> Result<usize, String> {
        let mixed = blend::mix(&[(embedding, 1.0)]).map_err(|e| e.to_string())?;
        self.rows.extend_from_slice(mixed.as_slice());
        Ok(self.rows.len() / self.width - 1)
    }

    /// Which row a picture has, or no picture has.
    ///
    /// # Errors
    /// Why it has none.
    pub fn of(&self, picture: Option<&Place>) -> Result<usize, String> {
        match picture {
            None => self.nothing.ok_or_else(|| "nothing is shown here".to_owned()),
            Some(place) => {
                self.places.get(place).cloned().unwrap_or_else(|| Err("it was not embedded".into()))
            }
        }
    }

    /// A row.
    pub fn row(&self, row: usize) -> &[f32] {
        self.rows.get(row * self.width..(row + 1) * self.width).unwrap_or_default()
    }

    /// Components of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len() / self.width.max(1)
    }
}
