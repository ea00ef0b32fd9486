//! `scenes`: draws the pictures of the nano world ([`viscache::scenes`]), with captions, so that a cache can be built, and a
//! small model trained, without downloading anything.
//!
//! ```text
//!   DIR/00000000.png    64×64, 8 bits
//!   DIR/00000001.png
//!   DIR/captions.jsonl  one line per picture, in the order of the names; written last
//!     {"file":"00000000.png","caption":"a small red circle at the left on a grey background",
//!      "colour":"red","shape":"circle","size":"small","position":"left","background":"grey"}   (one line)
//! ```
//!
//! A picture is a pure function of (seed, set, index), so ranges may be drawn apart, in any order and in
//! parallel. Every file appears under its name only when complete, and `captions.jsonl` only when every
//! picture is there.
//!
//! Left out:
//! * Adding to a folder: `captions.jsonl` describes one run. Each set and each range wants its own folder.
//! * `fsync`: a killed run leaves no half file, a power cut may. Drawing again is cheap.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use viscache::scenes::{DEFAULT_SEED, Scene, Set, draw, png};

/// Indices end here, so that the eight digits of a file name sort as the numbers do.
pub const MAX_PICTURES: u64 = 100_000_000;

/// The file that lists the pictures of a folder.
pub const CAPTIONS: &str = "captions.jsonl";

/// What to draw, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How many pictures to draw.
    #[arg(long, value_name = "N")]
    pub count: u64,
    /// The folder for the pictures and their captions; made if missing.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Other seeds give other pictures.
    #[arg(long, value_name = "S", default_value_t = DEFAULT_SEED)]
    pub seed: u64,
    /// Which pictures to draw; sets never share a picture.
    #[arg(long, value_enum, default_value_t = Set::Train)]
    pub set: Set,
    /// Index of the first picture.
    #[arg(long, value_name = "I", default_value_t = 0)]
    pub start: u64,
}

/// One line of [`CAPTIONS`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Line {
    /// Name of the picture, in the same folder.
    pub file: String,
    /// [`Scene::caption`].
    pub caption: String,
    /// What the picture shows.
    #[serde(flatten)]
    pub scene: Scene,
}

/// What a run left behind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Summary {
    /// Pictures written.
    pub pictures: u64,
    /// Where their captions are.
    pub captions: PathBuf,
}

/// Draws `args.count` pictures into `args.out`, on all the threads of rayon's pool.
///
/// The same arguments give the same bytes. Files of other names in the folder are left alone.
///
/// # Errors
/// The range is empty or passes [`MAX_PICTURES`] (fix the arguments), or a file cannot be written (the
/// message names it; run again with the same arguments once there is room, or permission).
pub fn run(args: &Args) -> anyhow::Result<Summary> {
    ensure!(args.count > 0, "--count is 0: ask for at least one picture");
    let end = args.start.saturating_add(args.count);
    ensure!(
        end <= MAX_PICTURES,
        "--start {} and --count {} go past index {}, the last: ask for fewer, or for another --seed",
        args.start,
        args.count,
        MAX_PICTURES - 1
    );
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make the folder {}", args.out.display()))?;

    // The old list goes first: while pictures change under it, it would be wrong.
    let captions = args.out.join(CAPTIONS);
    match fs::remove_file(&captions) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", captions.display()));
        }
        _ => {}
    }
    let scenes = (args.start..end)
        .into_par_iter()
        .map(|index| {
            let (scene, style, mut rng) = args.set.scene(args.seed, index);
            let png = png(&draw(&scene, style, &mut rng))?;
            publish(&args.out.join(file_name(index)), &png)?;
            Ok(scene)
        })
        .collect::<anyhow::Result<Vec<Scene>>>()?;

    let mut lines = String::new();
    for (index, scene) in (args.start..end).zip(scenes) {
        let line = Line { file: file_name(index), caption: scene.caption(), scene };
        lines.push_str(&serde_json::to_string(&line)?);
        lines.push('\n');
    }
    publish(&captions, lines.as_bytes())?;
    Ok(Summary { pictures: args.count, captions })
}

fn file_name(index: u64) -> String {
    format!("{index:08}.png")
}

/// Writes beside `path`, then renames: under its name a file is whole or absent.
fn publish(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut half = path.as_os_str().to_owned();
    half.push(".tmp");
    fs::write(&half, bytes)
        .and_then(|()| fs::rename(&half, path))
        .inspect_err(|_| drop(fs::remove_file(&half)))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn args(out: &Path, start: u64, count: u64) -> Args {
        Args { count, out: out.into(), seed: DEFAULT_SEED, set: Set::Train, start }
    }

    /// Every file of a folder, by name.
    fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_str().unwrap().into(), fs::read(path).unwrap()))
            .collect()
    }

    #[test]
    fn a_run_writes_its_pictures_and_their_captions_and_a_second_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let summary = run(&args(folder.path(), 0, 40)).unwrap();
        let written = files(folder.path());
        assert_eq!((summary.pictures, written.len()), (40, 41));

        let lines = String::from_utf8(written[CAPTIONS].clone()).unwrap();
        assert_eq!(lines.lines().count(), 40);
        for (index, line) in (0..).zip(lines.lines()) {
            let line: Line = serde_json::from_str(line).unwrap();
            let (scene, style, mut rng) = Set::Train.scene(DEFAULT_SEED, index);
            assert_eq!(line, Line { file: file_name(index), caption: scene.caption(), scene });
            let read = image::load_from_memory(&written[&line.file]).unwrap().into_rgb8();
            let read: Vec<_> = read.pixels().map(|pixel| pixel.0).collect();
            assert_eq!(read, draw(&scene, style, &mut rng));
        }

        run(&args(folder.path(), 0, 40)).unwrap();
        assert_eq!(files(folder.path()), written);
    }

    #[test]
    fn a_range_drawn_apart_is_the_same_range() {
        let (whole, part) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        run(&args(whole.path(), 0, 12)).unwrap();
        run(&args(part.path(), 7, 3)).unwrap();
        let whole = files(whole.path());
        for (name, bytes) in files(part.path()).into_iter().filter(|(name, _)| name != CAPTIONS) {
            assert!(whole[&name] == bytes, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_done_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let message = |args: &Args| format!("{:#}", run(args).unwrap_err());
        assert!(message(&args(folder.path(), 0, 0)).contains("--count is 0"));
        assert!(message(&args(folder.path(), u64::MAX, 1)).contains("99999999"));
        assert!(message(&args(folder.path(), 0, MAX_PICTURES + 1)).contains("99999999"));

        let file = folder.path().join("a file");
        fs::write(&file, "").unwrap();
        assert!(message(&args(&file.join("below"), 0, 1)).contains("cannot make the folder"));

        fs::create_dir(folder.path().join(file_name(0))).unwrap();
        assert!(message(&args(folder.path(), 0, 1)).contains("00000000.png"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing half done is left behind");
    }
}
