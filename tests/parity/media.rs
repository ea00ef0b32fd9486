//! Sounds and films as the published loaders prepare them.

#[path = "../../fuzz/bodies/media.rs"]
mod body;
#[path = "../../fuzz/bodies/mutate.rs"]
mod mutate;

use std::path::{Path, PathBuf};

use rand::SeedableRng;
use viscache::media::audio::{self, AudioFront, clips};
use viscache::media::{AudioLimits, Rgb, video};

use crate::common::{self, Golden, Tally, Tensors, json, parts, read, say, short};

/// The published encoder's spectrogram, for sounds that no golden value belongs to.
const BANDS: usize = 128;
const COLUMNS: usize = 204;
/// The published loader's side of a view; the films' files do not say it.
const SIDE: usize = 224;

/// Every folder of what the published loaders make of the assets.
fn folders(file: &str) -> Vec<PathBuf> {
    let folders = parts("imagebind").into_iter().map(|root| root.join("preprocess"));
    let found: Vec<PathBuf> = folders.filter(|folder| folder.join(file).exists()).collect();
    if found.is_empty() {
        say(&format!("skipped: {file} (not here)"));
    }
    found
}

fn asset(folder: &Path, name: &str) -> Vec<u8> {
    read(&folder.parent().unwrap().join("assets").join(name))
}

/// Mean 1e-4, 99.9 % within 5e-3, none beyond 5e-2: the errors sit near the floor, where the reference's own noise shows.
fn like_mel(tally: &mut Tally, name: &str, received: &[f32], expected: &Golden) {
    let expected = expected.floats();
    tally.equal(&format!("{name}, values"), &[received.len()], &[expected.len()]);
    let mut off: Vec<f64> = received.iter().zip(expected).map(|(a, b)| f64::from(a - b).abs()).collect();
    off.sort_by(f64::total_cmp);
    let (mean, most) = (off.iter().sum::<f64>() / off.len() as f64, off[off.len() - 1]);
    let nearly_all = off[off.len() * 999 / 1000];
    say(&format!("{name}: mean {mean:.1e}, 99.9 % within {nearly_all:.1e}, at most {most:.1e}"));
    let within = mean <= 1e-4 && nearly_all <= 5e-3 && most <= 5e-2;
    tally.check(name, within, || format!("mean {mean:e}, 99.9 % {nearly_all:e}, most {most:e}"));
}

#[test]
fn sounds_become_the_published_spectrograms() {
    for folder in folders("audio.safetensors") {
        let expected = Tensors::open(&folder.join("audio.safetensors"));
        let facts = json(&folder.join("audio.json"));
        let mut tally = Tally::new(short(&folder));
        for (name, fact) in facts.as_object().unwrap() {
            let sound = audio::decode(&asset(&folder, name), &AudioLimits::default()).unwrap();
            let number = |key: &str| fact[key].as_u64().unwrap() as usize;
            tally.equal(&format!("{name}, rate"), &[sound.rate as usize], &[number("sample_rate")]);
            tally.equal(&format!("{name}, samples"), &[sound.left.len()], &[number("samples")]);
            tally.equal(&format!("{name}, stereo"), &[sound.mean.is_some()], &[number("channels") > 1]);
            if let Some(mel) = expected.find(&format!("{name}.mel")) {
                let &[_, _, bands, columns] = &mel.shape[..] else { panic!("{name} has other axes") };
                let front = AudioFront::new(bands, columns, AudioLimits::default());
                like_mel(&mut tally, name, &front.spectrograms(&sound).unwrap(), mel);
            }
        }
        tally.finish();
    }
}

#[test]
fn clips_begin_and_end_where_exact_arithmetic_says() {
    for folder in folders("clip_bounds.json") {
        let bounds = json(&folder.join("clip_bounds.json"));
        let mut tally = Tally::new(format!("{}, clip bounds", short(&folder)));
        let flat = |ranges: Vec<std::ops::Range<usize>>| -> Vec<u64> {
            ranges.iter().flat_map(|range| [range.start as u64, range.end as u64]).collect()
        };
        let wanted = |value: &serde_json::Value| -> Vec<u64> {
            let pairs: Vec<Vec<u64>> = serde_json::from_value(value.clone()).unwrap();
            pairs.concat()
        };
        for sound in bounds["audio"].as_array().unwrap() {
            let samples = sound["samples"].as_u64().unwrap() as usize;
            let received = flat(clips::sample_ranges(samples, 16_000, 3, 2));
            tally.equal(&format!("{samples} samples"), &received, &wanted(&sound["ranges"]));
        }
        for film in bounds["video"].as_array().unwrap() {
            let (frames, rate) = (film["frames"].as_u64().unwrap() as usize, film["fps"].as_f64().unwrap());
            let received = flat(clips::frame_ranges(frames, rate, 5, 2));
            tally.equal(&format!("{frames} frames, {rate}/s"), &received, &wanted(&film["ranges"]));
        }
        tally.finish();
    }
}

#[test]
fn films_become_the_published_views() {
    for folder in folders("video.safetensors") {
        let expected = Tensors::open(&folder.join("video.safetensors"));
        let facts = json(&folder.join("video.json"));
        let mut tally = Tally::new(format!("{}, films", short(&folder)));
        for (name, fact) in facts.as_object().unwrap() {
            let frames = expected.get(&format!("{name}.frames"));
            let [_, height, width, 3] = frames.shape[..] else { panic!("{name} has other axes") };
            let pixels: Vec<u8> = frames.wholes().iter().map(|&v| v as u8).collect();
            let frames: Vec<Rgb> = pixels
                .chunks_exact(height * width * 3)
                .map(|data| Rgb { width, height, data: data.to_vec() })
                .collect();
            let picks = video::picks(frames.len(), fact["fps"].as_f64().unwrap());
            let wanted: Vec<[usize; 2]> = serde_json::from_value(fact["picked_frames"].clone()).unwrap();
            tally.equal(&format!("{name}, frames"), &picks, &wanted);
            let clips = picks.map(|[first, last]| [&frames[first], &frames[last]]);
            let views = video::prepare(&clips, SIDE).unwrap();
            let (index, value) = (format!("{name}.sample_index"), format!("{name}.sample_value"));
            for (at, expected) in expected.get(&index).wholes().iter().zip(expected.get(&value).floats()) {
                let received = views[*at as usize];
                let near = (received - expected).abs() <= 1e-4;
                tally.check(&format!("{name}, value {at}"), near, || format!("{received}, not {expected}"));
            }
            let means = expected.get(&format!("{name}.view_mean"));
            let planes = views.chunks_exact(SIDE * SIDE);
            for (i, (plane, expected)) in planes.zip(means.floats()).enumerate() {
                let mean = plane.iter().map(|&v| f64::from(v)).sum::<f64>() / plane.len() as f64;
                let near = (mean - f64::from(*expected)).abs() <= 1e-4;
                tally.check(&format!("{name}, plane {i}"), near, || format!("mean {mean}, not {expected}"));
            }
        }
        tally.finish();
    }
}

/// The fuzzer's target on seeded edits of sound files: every run of the tests tries some thousand.
#[test]
fn mutated_files_are_refused_or_prepared() {
    let speech = include_bytes!("../../assets/nano/large_orange_cross.wav");
    let sound: [(u8, Vec<u8>); 6] = [
        (0, b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n\
             end_header\n0 0 0\n1 0 0\n0 1 0\n".to_vec()),
        (0, b"0 0 0\n1 2 3\n4 5 6\n".to_vec()),
        (1, "1,2,3,4,5,6\n".repeat(12).into_bytes()),
        (2, viscache::media::npy::write(&[1.0; 12], 4)),
        (3, viscache::media::npy::write(&[0.5; 12], 4)),
        (4, speech[..4000].to_vec()),
    ];
    let mut random = rand_pcg::Pcg64::seed_from_u64(mutate::seed());
    for (which, file) in &sound {
        assert!(body::any(&[&[*which][..], file].concat()), "decoder {which}");
    }
    for case in 0..6000 {
        let (which, file) = &sound[case % sound.len()];
        body::any(&[&[*which][..], &mutate::mutated(file, &mut random)].concat());
    }
}

/// Recordings as they are found: 8 and 16 bits, several rates, and MP3 inside WAV. All are heard.
#[test]
fn recordings_as_they_are_found_are_heard() {
    let Some(tar) = common::data("animal-sounds.tar") else {
        return say("skipped: recordings as they are found (not here)");
    };
    let front = AudioFront::new(BANDS, COLUMNS, AudioLimits::default());
    let (bytes, mut at, mut heard) = (read(&tar), 0, 0);
    while let Some(header) = bytes.get(at..at + 512).filter(|header| header[0] != 0) {
        let name = String::from_utf8_lossy(&header[..100]).trim_end_matches('\0').to_owned();
        let size = String::from_utf8_lossy(&header[124..135]).trim().to_owned();
        let size = usize::from_str_radix(size.trim_end_matches('\0'), 8).unwrap();
        if name.ends_with(".wav") {
            let made = front.prepare(&bytes[at + 512..][..size]);
            assert!(made.as_ref().is_ok_and(|made| made.len() == 3 * BANDS * COLUMNS), "{name}: {made:?}");
            heard += 1;
        }
        at += 512 + size.next_multiple_of(512);
    }
    assert!(heard > 0, "no recording in {}", short(&tar));
    say(&format!("{heard} recordings heard"));
}

/// The awkward files of the collection, each as its manifest says.
#[test]
fn awkward_sounds_are_taken_or_refused_as_their_manifest_says() {
    let Some(folder) = common::data("nasty") else { return say("skipped: awkward sounds (not here)") };
    let manifest = String::from_utf8(read(&folder.join("manifest.tsv"))).unwrap();
    let front = AudioFront::new(BANDS, COLUMNS, AudioLimits::default());
    let reference = front.prepare(&read(&folder.join("audio/reference-16k-s16.wav"))).unwrap();
    let mut tally = Tally::new("awkward sounds");
    for line in manifest.lines().filter(|line| line.starts_with("audio/")) {
        let fields: Vec<&str> = line.split('\t').collect();
        let made = front.prepare(&read(&folder.join(fields[0])));
        tally.check(fields[0], made.is_ok() == (fields[2] == "ok"), || format!("{made:?}"));
        if let (Ok(made), true) = (made, fields[3].starts_with("same sound")) {
            // Another width or rate leaves a little of its own, mostly where nothing is to be heard.
            let off: f32 = made.iter().zip(&reference).map(|(a, b)| (a - b).abs()).sum();
            let mean = off / reference.len() as f32;
            say(&format!("{}: {mean:.4} from the reference on average", fields[0]));
            tally.check(fields[0], mean < 0.15, || format!("{mean} from the reference"));
        }
    }
    tally.finish();
}
