//! `scenes`: draws the pictures of the nano world, with captions, so that a cache can be built, and a small
//! model trained, without downloading anything.
//!
//! A scene is one object on a background. 2560 can be told apart by their five attributes, and no two
//! pictures of the same scene are alike: place, rotation, colour, drawing style and noise vary within it.
//!
//! ```text
//!   seed ──► key of the set ── + index ──► generator ──► scene ──► style ──► pixels
//!            (train, test, comb or style)
//!
//!   DIR/00000000.png    64×64, 8 bits, the alpha channel opaque throughout
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
//! * Synonyms and the other caption templates: they belong to training, which draws them afresh each time.
//! * Adding to a folder: `captions.jsonl` describes one run. Each set and each range wants its own folder.
//! * `fsync`: a killed run leaves no half file, a power cut may. Drawing again is cheap.
//!
//! | file | content |
//! |---|---|
//! | `scene.rs` | the five attributes, their words, the pairs held out |
//! | `shape.rs` | what is inside each shape |
//! | `picture.rs` | from a scene to pixels |

pub mod picture;
pub mod scene;
mod shape;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tiny_skia::{ColorU8, Pixmap};

pub use picture::{SIDE, Style, draw};
pub use scene::Scene;

/// The seed of the pictures that everybody gets who does not ask for others.
pub const DEFAULT_SEED: u64 = 1;

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

/// Sets of pictures, each with a random stream of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Set {
    /// Ordinary pictures, to train on and to fill caches with.
    Train,
    /// Ordinary pictures, to measure on.
    Test,
    /// Only pairs of colour and shape that no other set shows.
    Comb,
    /// Only the hatched drawing style, which no other set shows.
    Style,
}

impl Set {
    /// The scene at `index`, the style it is drawn in, and the generator to [`draw`] it with.
    pub fn scene(self, seed: u64, index: u64) -> (Scene, Style, Pcg64) {
        // Keys come first, so that (seed, index + 1) is not (seed + 1, index) under another name.
        let keys: [u64; 4] = Pcg64::seed_from_u64(seed).random();
        let mut rng = Pcg64::seed_from_u64(keys[self as usize].wrapping_add(index));
        let scene = loop {
            let scene = Scene::any(&mut rng);
            if scene.is_held_out() == (self == Set::Comb) {
                break scene;
            }
        };
        let style = match self {
            Set::Style => Style::Hatched,
            _ => Style::ORDINARY[rng.random_range(0..Style::ORDINARY.len())],
        };
        (scene, style, rng)
    }
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
            let png = encode(&draw(&scene, style, &mut rng))?;
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

/// `pixels`: row by row, length SIDE². Returns the bytes of a PNG file.
fn encode(pixels: &[[u8; 3]]) -> anyhow::Result<Vec<u8>> {
    let mut pixmap = Pixmap::new(SIDE, SIDE).expect("a pixmap because SIDE is neither 0 nor huge");
    for (to, [red, green, blue]) in pixmap.pixels_mut().iter_mut().zip(pixels) {
        *to = ColorU8::from_rgba(*red, *green, *blue, u8::MAX).premultiply();
    }
    Ok(pixmap.encode_png()?)
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
    use std::collections::{BTreeMap, HashSet};

    use clap::ValueEnum;
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn a_picture_depends_on_seed_set_and_index_only(seed: u64, index: u64) {
            for set in Set::value_variants() {
                let draw_it = || {
                    let (scene, style, mut rng) = set.scene(seed, index);
                    (scene, style, draw(&scene, style, &mut rng))
                };
                let (scene, style, pixels) = draw_it();
                prop_assert_eq!((scene, style, pixels), draw_it());
                prop_assert_eq!(scene.is_held_out(), *set == Set::Comb);
                prop_assert_eq!(style == Style::Hatched, *set == Set::Style);
            }
        }
    }

    #[test]
    fn every_ordinary_scene_and_style_is_drawn_and_no_other() {
        let drawn: Vec<_> = (0..60_000).map(|index| Set::Train.scene(DEFAULT_SEED, index)).collect();
        let scenes: HashSet<Scene> = drawn.iter().map(|(scene, ..)| *scene).collect();
        assert_eq!(scenes.len(), 2560 * 7 / 8);
        assert!(scenes.iter().all(|scene| !scene.is_held_out()));
        for style in Style::ORDINARY {
            let share = drawn.iter().filter(|(_, its, _)| *its == style).count() as f64 / drawn.len() as f64;
            assert!((share - 1.0 / 3.0).abs() < 0.01, "{style:?}: {share}");
        }
        let comb: HashSet<_> = (0..10_000).map(|index| Set::Comb.scene(DEFAULT_SEED, index).0).collect();
        assert_eq!(comb.len(), 2560 / 8);
    }

    /// Fails when an upgrade changes the generators, and with them every picture.
    #[test]
    fn the_first_scenes_stay_what_they_are() {
        let first = |set: Set| (0..2).map(move |index| set.scene(DEFAULT_SEED, index).0.caption());
        let captions: Vec<_> = Set::value_variants().iter().flat_map(|set| first(*set)).collect();
        let expected = "a large pink ring at the bottom on a grey background
a small yellow ring at the top on a grey background
a small red crescent at the left on a striped background
a large green circle in the centre on a black background
a large red square at the right on a black background
a large pink star at the right on a black background
a large green star at the left on a grey background
a large orange square at the bottom on a striped background";
        assert_eq!(captions.join("\n"), expected);
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
            let pixmap = Pixmap::decode_png(&written[&line.file]).unwrap();
            let read: Vec<_> = pixmap.pixels().iter().map(|p| [p.red(), p.green(), p.blue()]).collect();
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
