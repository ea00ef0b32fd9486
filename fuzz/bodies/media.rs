//! Whatever a file holds, what is made of it is refused, or what an encoder takes: no panic, no number that is not finite.

use viscache::media::audio::AudioFront;
use viscache::media::plane::{DepthOptions, ThermalOptions, prepare_depth, prepare_thermal};
use viscache::media::{AudioLimits, ImuOptions, Limits, PointLimits, PointOptions, imu, points};

/// Small, so that a run tries many files and not a few large ones.
const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_side: 512, max_pixels: 1 << 16 };

/// * `data`: which decoder 1 byte, then the file.
/// * Returns whether something was made of it.
pub fn any(data: &[u8]) -> bool {
    let Some((&which, file)) = data.split_first() else { return false };
    let made = match which % 5 {
        0 => points::prepare(
            file,
            (2, 64),
            PointOptions { normalize: which & 0x80 != 0, seed: 3 },
            &PointLimits { max_bytes: 1 << 20, max_points: 10_000 },
        )
        .map(|cloud| cloud.values),
        1 => imu::prepare(file, 8, &ImuOptions { rate: Some(2.0), ..ImuOptions::default() }, 1 << 20),
        2 => prepare_depth(file, [8, 8], &DepthOptions::default(), &LIMITS),
        3 => prepare_thermal(file, [8, 8], &ThermalOptions::default(), &LIMITS),
        _ => AudioFront::new(16, 20, AudioLimits { max_bytes: 1 << 20, max_seconds: 20 }).prepare(file),
    };
    if let Ok(values) = &made {
        assert!(!values.is_empty() && values.iter().all(|value| value.is_finite()));
    }
    made.is_ok()
}
