//! Memory that a file becomes while it is decoded: taken by its header before any of it is.
//!
//! Where there is none at the moment, the thread that decodes waits for others to be done with theirs, but not for long: what they hold
//! may not be given back before they are answered themselves.

use std::time::{Duration, Instant};

use super::input::MediaInput;
use super::{Call, Error};
use crate::budget::Lease;
use crate::media::{self, MediaLimits};
use crate::models::encoder::PrepareError;

/// Bytes of a pixel while a picture is decoded: as it was stored, as RGB, and what it is resized through.
const PIXEL: u64 = 8;
/// What the bytes of other files become at most: of a sound its samples, of a table its numbers.
const SOUND: u64 = 24;
const TABLE: u64 = 8;
/// Samples of a sound: two channels of 48 kHz as floats, decoded and resampled.
const SECOND: u64 = 2 * 2 * 4 * 48_000;
/// How long a thread waits for memory, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// Takes what a file becomes while it is decoded.
///
/// # Errors
/// [`media::Error::NoRoom`] when there is none for some seconds; a header that no decoder would read either.
pub(super) fn room(call: &Call, file: &MediaInput, limits: &MediaLimits) -> Result<Lease, PrepareError> {
    let bytes = match file {
        MediaInput::Image(bytes) => picture(bytes, limits)?,
        // Their decoders read other files as well, and check the size by themselves.
        MediaInput::Depth(bytes, _) | MediaInput::Thermal(bytes, _) => {
            picture(bytes, limits).unwrap_or(TABLE * bytes.len() as u64)
        }
        MediaInput::Audio(bytes) => {
            (SOUND * bytes.len() as u64).min(u64::from(limits.audio.max_seconds) * SECOND)
        }
        MediaInput::Imu(bytes, _) | MediaInput::Point(bytes, _) => TABLE * bytes.len() as u64,
        MediaInput::Text(_) | MediaInput::Ready(..) | MediaInput::Film(_) | MediaInput::Frames(..) => 0,
    };
    wait_for(call, bytes).map_err(|full| media::Error::NoRoom(full.to_string()).into())
}

/// As [`room`], of so many bytes.
///
/// # Errors
/// [`Error::Memory`].
pub(super) fn room_of(call: &Call, bytes: u64) -> Result<Lease, Error> {
    Ok(wait_for(call, bytes)?)
}

fn picture(bytes: &[u8], limits: &MediaLimits) -> Result<u64, media::Error> {
    let [width, height] = media::image::dimensions(bytes, &limits.image)?;
    Ok(PIXEL * width as u64 * height as u64)
}

fn wait_for(call: &Call, bytes: u64) -> Result<Lease, crate::budget::Full> {
    let until = Instant::now() + PATIENCE;
    loop {
        match call.tab.meanwhile(bytes) {
            Err(full) if !full.for_good() && Instant::now() < until && call.check().is_ok() => {
                std::thread::sleep(LOOK);
            }
            taken => return taken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Tab};

    #[test]
    fn a_file_takes_what_it_becomes_and_waits_for_it() {
        let budget = Budget::of(10_000);
        let call = Call { tab: Tab::of(&budget), ..Call::default() };
        let mut png = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(30, 20).write_to(&mut png, image::ImageFormat::Png).unwrap();
        let file = MediaInput::Image(png.into_inner().into());
        let held = room(&call, &file, &MediaLimits::default()).unwrap();
        assert_eq!((held.bytes(), budget.held()), (8 * 600, 8 * 600));
        // A second one as soon as the first is decoded.
        let _third = room_of(&call, 3000).unwrap();
        std::thread::scope(|scope| {
            let second =
                scope.spawn(|| room(&call, &file, &MediaLimits::default()).map(|lease| lease.bytes()));
            std::thread::sleep(Duration::from_millis(30));
            assert!(!second.is_finished());
            drop(held);
            assert_eq!(second.join().unwrap().unwrap(), 4800);
        });
        assert!(matches!(room_of(&call, 10_001), Err(Error::Memory(full)) if full.for_good()));
        let broken = MediaInput::Image(b"no picture".as_slice().into());
        assert!(matches!(
            room(&call, &broken, &MediaLimits::default()),
            Err(PrepareError::Media(media::Error::NotAnImage(_)))
        ));
    }
}
