//! Sound bytes made unsound, for the runs of the targets among the ordinary tests.

use std::io::Write;

use rand::RngExt;
use rand_pcg::Pcg64;

/// The seed of a run: from the environment, else from the clock. Printed either way, past the test harness.
pub fn seed() -> u64 {
    let given =
        std::env::var("VISCACHE_SEED").ok().map(|seed| seed.parse().expect("VISCACHE_SEED is a number"));
    let clock =
        || std::time::UNIX_EPOCH.elapsed().expect("it is past 1970").as_nanos() as u64 % 1_000_000_007;
    let seed = given.unwrap_or_else(clock);
    let _ = std::io::stderr().write_all(format!("    VISCACHE_SEED={seed}\n").as_bytes());
    seed
}

/// Some bytes after one to four mutations.
pub fn mutated(sound: &[u8], random: &mut Pcg64) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for _ in 0..random.random_range(1..5) {
        mutate(&mut bytes, random);
    }
    bytes
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Pcg64) {
    /// What lengths and counts go wrong with.
    const NUMBERS: [u64; 10] =
        [0, 1, 2, 0x7f, 0xff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, u64::MAX, i64::MAX as u64];
    let at = random.random_range(0..=bytes.len());
    let rest = bytes.len() - at;
    let some = random.random_range(0..=rest.min(16));
    match random.random_range(0..7) {
        0 | 1 if rest > 0 => bytes[at] ^= 1 << random.random_range(0..8),
        2 if rest > 0 => bytes[at] = random.random(),
        3 => {
            let number = NUMBERS[random.random_range(0..NUMBERS.len())].to_le_bytes();
            let width = [1, 4, 8][random.random_range(0..3)].min(rest);
            bytes[at..at + width].copy_from_slice(&number[..width]);
        }
        4 => bytes.truncate(at),
        5 => drop(bytes.drain(at..at + some)),
        _ => {
            let again = bytes[at..at + some].to_vec();
            let to = random.random_range(0..=bytes.len());
            drop(bytes.splice(to..to, again));
        }
    }
}
