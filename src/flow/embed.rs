//! Media in, embeddings out.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use rayon::prelude::*;

use super::input::MediaInput;
use super::room::room;
use super::{App, Call, Error, film};
use crate::batch::{Embedder, Input};
use crate::budget::Lease;
use crate::media::{self, Rgb, video};
use crate::models::encoder::{Encoded, Encoder, Media, PrepareError, Prepared};

/// Inputs taken between two looks at whether the caller still waits.
const CHUNK: usize = 64;

/// Embeds a batch, each input with a result of its own, in order.
///
/// # Errors
/// [`Error::NoModel`], [`Error::Deadline`] and [`Error::Cancelled`] for the batch as a whole.
pub fn embed(app: &App, inputs: &[&MediaInput], call: &Call) -> Result<Vec<Result<Encoded, Error>>, Error> {
    let Some(first) = inputs.first() else { return Ok(Vec::new()) };
    let embedder =
        app.embedder.as_ref().ok_or_else(|| Error::NoModel { what: first.modality().article() })?;
    let wait = call.wait();
    let mut results = Vec::with_capacity(inputs.len());
    for chunk in inputs.chunks(CHUNK) {
        call.check()?;
        let one = |input: &&MediaInput| contained(|| taken(app, embedder, input, call));
        let taken: Vec<Result<Input, Error>> = match chunk {
            // Nobody has to be woken for it.
            [input] => vec![one(input)],
            inputs if inputs.iter().any(|input| waits(embedder, input)) => apart(inputs, one),
            inputs => inputs.par_iter().map(one).collect(),
        };
        call.check()?;
        let (mut good, mut outcomes) = (Vec::new(), Vec::new());
        for result in taken {
            outcomes.push(result.map(|input| good.push(input)));
        }
        // A request that has begun waits for room; a new one is refused where there is none.
        let mut encoded = embedder.encode(good, &wait, !results.is_empty())?.into_iter();
        for outcome in outcomes {
            results.push(outcome.and_then(|()| match encoded.next() {
                Some(result) => Ok(result?),
                None => Err(Error::Cancelled),
            }));
        }
    }
    Ok(results)
}

/// Whether taking an input means waiting: for another program, or for others to have decoded theirs.
fn waits(embedder: &Embedder, input: &MediaInput) -> bool {
    match input {
        MediaInput::Film(_) | MediaInput::Frames(..) => true,
        MediaInput::Ready(..) | MediaInput::Text(_) => false,
        _ => !embedder.prepares(),
    }
}

/// Takes inputs on a few threads of their own: those that all requests share are not for waiting.
fn apart<T: Send>(inputs: &[&MediaInput], one: impl Fn(&&MediaInput) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = inputs.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let one = &one;
        let threads =
            inputs.chunks(share).map(|some| scope.spawn(move || some.iter().map(one).collect::<Vec<T>>()));
        let threads: Vec<_> = threads.collect();
        let done = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        done.collect()
    })
}

/// A decoder that panics on a hostile file costs that file, not the request.
pub(super) fn contained<T>(prepare: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(prepare)).unwrap_or_else(|_| Err(media::Error::Crashed.into()))
}

/// An input as the model's threads take it: raw where they prepare it, but for films, whose decoder is a process to wait for,
/// and for what is ready.
fn taken(app: &App, embedder: &Embedder, input: &MediaInput, call: &Call) -> Result<Input, Error> {
    let encoder = embedder.encoder();
    encoder.expects(input.modality())?;
    let prepared = match input {
        MediaInput::Film(bytes) => {
            let _program = app.programs.take(call)?;
            let film = film::decode(bytes, encoder.images().orientation, &app.limits.video, call)?;
            clips_of(encoder, &film.clips())?
        }
        MediaInput::Frames(frames, rate) => {
            let _decode = app.decodes.take(call)?;
            frames_of(encoder, frames, *rate, |frame| room(call, frame, &app.limits.media))?
        }
        MediaInput::Ready(modality, shape, values) => {
            encoder.prepare_media(&Media::Ready(*modality, shape, values))?
        }
        file if embedder.prepares() => {
            let (file, call, limits) = (file.clone(), call.clone(), app.limits.media);
            let ready = move |encoder: &Encoder| {
                let _room = room(&call, &file, &limits)?;
                prepare(encoder, &file)
            };
            return Ok(Input::Raw(input.modality(), Box::new(ready)));
        }
        file => {
            let _decode = app.decodes.take(call)?;
            let _room = room(call, file, &app.limits.media)?;
            prepare(encoder, file)?
        }
    };
    Ok(Input::Prepared(prepared))
}

/// Brings a file into the model's form.
fn prepare(encoder: &Encoder, file: &MediaInput) -> Result<Prepared, PrepareError> {
    encoder.prepare_media(&match file {
        MediaInput::Image(bytes) => Media::Image(bytes),
        MediaInput::Text(bytes) => Media::Text(bytes),
        MediaInput::Audio(bytes) => Media::Audio(bytes),
        MediaInput::Depth(bytes, options) => Media::Depth(bytes, *options),
        MediaInput::Thermal(bytes, options) => Media::Thermal(bytes, *options),
        MediaInput::Imu(bytes, options) => Media::Imu(bytes, *options),
        MediaInput::Point(bytes, options) => Media::Point(bytes, *options),
        MediaInput::Ready(modality, shape, values) => Media::Ready(*modality, shape, values),
        MediaInput::Film(_) | MediaInput::Frames(..) => {
            return Err(media::Error::Film("its frames are not decoded here".into()).into());
        }
    })
}

/// Frames that a caller decoded: only those that are looked at are read.
///
/// * `room`: takes the memory of a frame, as it says itself.
fn frames_of(
    encoder: &Encoder,
    frames: &[Bytes],
    rate: f64,
    room: impl Fn(&MediaInput) -> Result<Lease, PrepareError>,
) -> Result<Prepared, Error> {
    let picks = video::picks(frames.len(), rate);
    let mut wanted: Vec<usize> = picks.concat();
    wanted.sort_unstable();
    wanted.dedup();
    let decoded = wanted.iter().map(|&n| {
        let bytes = frames.get(n).cloned().unwrap_or_default();
        let film = |e: &dyn std::fmt::Display| Error::from(media::Error::Film(format!("frame {n}: {e}")));
        let room = room(&MediaInput::Image(bytes.clone())).map_err(|error| match error {
            PrepareError::Media(media::Error::NoRoom(_)) => error.into(),
            broken => film(&broken),
        })?;
        Ok((media::image::decode(&bytes, encoder.images()).map_err(|e| film(&e))?, room))
    });
    let decoded: Vec<(Rgb, Lease)> = decoded.collect::<Result<_, Error>>()?;
    let frame = |n: usize| &decoded[wanted.partition_point(|&w| w < n)].0;
    clips_of(encoder, &picks.iter().map(|[a, b]| [frame(*a), frame(*b)]).collect::<Vec<_>>())
}

fn clips_of(encoder: &Encoder, clips: &[[&Rgb; 2]]) -> Result<Prepared, Error> {
    let clips = clips.try_into().map_err(|_| media::Error::Film("it has no clips".into()))?;
    Ok(encoder.prepare_media(&Media::Video(clips))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_that_crashes_costs_its_item() {
        let crashed = contained::<Prepared>(|| panic!("a table of a decoder is too short"));
        assert!(matches!(crashed, Err(Error::Prepare(_))), "{crashed:?}");
    }
}
