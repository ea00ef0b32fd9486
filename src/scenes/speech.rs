//! Scenes that are spoken of: size, colour and shape, by the program espeak-ng.
//!
//! ```text
//! scene ─► three words ─► espeak-ng, with a voice, a speed and a pitch ─► a WAV file of two seconds at most
//! ```
//! The same numbers give the same file with the same version of the program.

use std::process::{Command, Stdio};

use rand::{Rng, RngExt};

use super::Scene;
use super::scene::{Background, Colour, Position, Shape, Size};

/// Samples of two seconds at espeak-ng's rate, and bytes of its header.
const SPOKEN_BYTES: usize = 2 * 2 * 22_050;
const WAV_HEADER: usize = 44;

/// Accents that are learned with, and how they sound.
const VOICES: [&str; 6] = ["en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan"];
const TIMBRES: [&str; 8] = ["", "+m1", "+m3", "+m7", "+f1", "+f2", "+f3", "+f4"];
/// Those that nothing is learned with.
const OTHER_VOICES: [&str; 1] = ["en-gb-x-gbcwmd"];
const OTHER_TIMBRES: [&str; 2] = ["+f5", "+m4"];

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speakers {
    /// Those that are learned with.
    Known,
    /// Others.
    Unknown,
}

/// How something is spoken.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Voice {
    /// As espeak-ng calls it.
    pub name: String,
    /// Words a minute.
    pub speed: u32,
    /// From 0 to 99.
    pub pitch: u32,
}

impl Voice {
    /// One of these speakers, each as often.
    pub fn any(speakers: Speakers, rng: &mut impl Rng) -> Voice {
        let (voices, timbres): (&[&str], &[&str]) = match speakers {
            Speakers::Known => (&VOICES, &TIMBRES),
            Speakers::Unknown => (&OTHER_VOICES, &OTHER_TIMBRES),
        };
        let name = [voices[rng.random_range(0..voices.len())], timbres[rng.random_range(0..timbres.len())]];
        Voice { name: name.concat(), speed: rng.random_range(130..=190), pitch: rng.random_range(30..=70) }
    }
}

/// Why nothing was spoken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is not there.
    #[error("the program espeak-ng cannot be run; install it (Debian: apt-get install espeak-ng)")]
    Program(#[source] std::io::Error),
    /// It says nothing.
    #[error("espeak-ng has no voice `{0}`, or says nothing")]
    Voice(String),
}

/// Whether espeak-ng is there.
pub fn speaks() -> bool {
    let mut command = Command::new("espeak-ng");
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A scene for each phrase that can be spoken, in the order of colours, shapes and sizes.
///
/// * `held_out`: those of the pairs that nothing is learned with, or all others.
pub fn phrases(held_out: bool) -> Vec<Scene> {
    let (position, background) = (Position::Centre, Background::White);
    let of_shape = |colour, shape| {
        Size::ALL.into_iter().map(move |size| Scene { colour, shape, size, position, background })
    };
    let of_colour = |colour| Shape::ALL.into_iter().flat_map(move |shape| of_shape(colour, shape));
    let all = Colour::ALL.into_iter().flat_map(of_colour);
    all.filter(|scene| scene.is_held_out() == held_out).collect()
}

/// Two seconds at most of a scene, as a WAV file.
///
/// # Errors
/// [`Error`].
pub fn speak(scene: &Scene, voice: &Voice) -> Result<Vec<u8>, Error> {
    let output = Command::new("espeak-ng")
        .args(["-v", &voice.name, "-s", &voice.speed.to_string(), "-p", &voice.pitch.to_string(), "--stdout"])
        .arg(scene.spoken())
        .stderr(Stdio::null())
        .output()
        .map_err(Error::Program)?;
    let mut file = output.stdout;
    if !output.status.success() || file.len() <= WAV_HEADER {
        return Err(Error::Voice(voice.name.clone()));
    }
    file.truncate(WAV_HEADER + SPOKEN_BYTES);
    // It does not know the length when it writes its header.
    let data = (file.len() - WAV_HEADER) as u32;
    file[4..8].copy_from_slice(&(data + WAV_HEADER as u32 - 8).to_le_bytes());
    file[40..44].copy_from_slice(&data.to_le_bytes());
    Ok(file)
}
