//! Measurements of acceleration and rotation become what the IMU encoder takes, `[6, T]`.
//!
//! ```text
//! CSV or .npy, [T, 6] or [6, T] ─► units ─► 400 Hz, when the rate is given ─► the middle 5 s
//! ```
//!
//! ImageBind's repository has no loader for these; what is known of the encoder's training is that it saw 2000 steps of
//! 5 s: three axes of the accelerometer, then three of the gyroscope. So the rules are ours:
//!
//! * **Axes** are columns of a table in time, or rows when there are six of them and not six columns. A CSV file may have a
//!   line of names; lines that begin with `#` are passed over.
//! * **Units** are m/s² and rad/s; g and degrees/s are converted on request.
//! * **Rate.** Without one, the file has exactly the steps that the encoder takes. With one, values are interpolated linearly
//!   at 400 Hz and the middle 5 s are taken; a shorter file is refused.
//!
//! Standard gravity is 9.80665 m/s².

use super::{Error, npy};

/// Axes of a sample.
pub const AXES: usize = 6;
/// Seconds that the encoder sees.
const SECONDS: f64 = 5.0;
/// Steps a second that are taken.
const RATES: std::ops::RangeInclusive<f64> = 0.1..=1e6;
const GRAVITY: f32 = 9.80665;

/// How measurements become the encoder's input.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ImuOptions {
    /// Samples a second; `None`: the file is as the encoder takes it.
    pub rate: Option<f64>,
    /// Accelerations are in g.
    pub in_g: bool,
    /// Rotations are in degrees a second.
    pub in_degrees: bool,
}

impl ImuOptions {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn validate(&self) -> Result<(), Error> {
        match self.rate {
            Some(rate) if !RATES.contains(&rate) => {
                let (low, high) = (RATES.start(), RATES.end());
                Err(Error::Option { name: "rate", why: format!("{rate} is not from {low} to {high}") })
            }
            _ => Ok(()),
        }
    }
}

/// Prepares measurements: `[6, steps]`.
///
/// # Errors
/// [`Error::Empty`], [`Error::TooManyBytes`], [`Error::NotMeasurements`], [`Error::Option`].
pub fn prepare(
    bytes: &[u8],
    steps: usize,
    options: &ImuOptions,
    max_bytes: usize,
) -> Result<Vec<f32>, Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    if bytes.len() > max_bytes {
        return Err(Error::TooManyBytes { received: bytes.len(), limit: max_bytes });
    }
    options.validate()?;
    let mut axes = match bytes.starts_with(npy::MAGIC) {
        true => from_npy(bytes)?,
        false => from_csv(bytes)?,
    };
    for (axis, values) in axes.iter_mut().enumerate() {
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::NotMeasurements(format!("step {at} of axis {axis} is not a finite number")));
        }
        let factor = match axis < 3 {
            true if options.in_g => GRAVITY,
            false if options.in_degrees => std::f32::consts::PI / 180.0,
            _ => 1.0,
        };
        values.iter_mut().for_each(|value| *value *= factor);
    }
    let given = axes.first().map_or(0, Vec::len);
    let Some(rate) = options.rate else {
        if given != steps {
            return Err(Error::NotMeasurements(format!(
                "it has {given} steps where the encoder takes {steps}; give its rate and it is resampled"
            )));
        }
        return Ok(axes.concat());
    };
    let wanted = steps as f64 / SECONDS;
    let length = (given.saturating_sub(1)) as f64 / rate;
    // The last of the steps lies one step before the end of the five seconds.
    let needed = (steps - 1) as f64 / wanted;
    if length < needed {
        return Err(Error::NotMeasurements(format!(
            "it lasts {length:.3} s ({given} steps of {rate} Hz), {needed:.4} s are needed"
        )));
    }
    let begin = (length - needed) / 2.0;
    let at = |values: &Vec<f32>, step: usize| {
        let x = (begin + step as f64 / wanted) * rate;
        let low = (x as usize).min(given - 1);
        let (share, high) = ((x - low as f64) as f32, (low + 1).min(given - 1));
        values[low] + (values[high] - values[low]) * share
    };
    Ok(axes.iter().flat_map(|values| (0..steps).map(move |step| at(values, step))).collect())
}

fn from_npy(bytes: &[u8]) -> Result<Vec<Vec<f32>>, Error> {
    let array = npy::read_array(bytes).map_err(Error::NotMeasurements)?;
    let (rows, columns) = match array.shape[..] {
        [rows, columns] | [1, rows, columns] => (rows, columns),
        _ => return Err(Error::NotMeasurements(format!("its shape {:?} is not [6, T]", array.shape))),
    };
    let at = |axis: usize, step: usize| match rows == AXES && columns != AXES {
        true => array.values[axis * columns + step],
        false => array.values[step * columns + axis],
    };
    let steps = match (rows == AXES, columns == AXES) {
        (true, false) => columns,
        (_, true) => rows,
        _ => return Err(Error::NotMeasurements(format!("its shape {:?} is not [6, T]", array.shape))),
    };
    Ok((0..AXES).map(|axis| (0..steps).map(|step| at(axis, step)).collect()).collect())
}

fn from_csv(bytes: &[u8]) -> Result<Vec<Vec<f32>>, Error> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(bytes);
    let mut rows: Vec<Vec<f32>> = Vec::new();
    for (line, record) in reader.records().enumerate() {
        let record = record.map_err(|e| Error::NotMeasurements(e.to_string()))?;
        let numbers: Result<Vec<f32>, _> = record.iter().map(str::parse).collect();
        match numbers {
            Ok(numbers) if rows.first().is_none_or(|first| first.len() == numbers.len()) => {
                rows.push(numbers)
            }
            Ok(numbers) => {
                let expected = rows.first().map_or(0, Vec::len);
                return Err(Error::NotMeasurements(format!(
                    "row {line} has {} values where the rows before have {expected}",
                    numbers.len()
                )));
            }
            // The first line may name the columns.
            Err(_) if line == 0 => {}
            Err(e) => return Err(Error::NotMeasurements(format!("row {line}: {e}"))),
        }
    }
    let columns = rows.first().map_or(0, Vec::len);
    match (rows.len(), columns) {
        (_, AXES) => Ok((0..AXES).map(|axis| rows.iter().map(|row| row[axis]).collect()).collect()),
        (AXES, _) if columns > 0 => Ok(rows),
        (rows, columns) => Err(Error::NotMeasurements(format!(
            "it is a table of {rows} rows and {columns} columns; six columns (or six rows) are taken: three axes of \
             acceleration, then three of rotation"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 1 << 20;

    fn table(steps: usize, value: impl Fn(usize, usize) -> f32) -> String {
        let row = |step| (0..AXES).map(|axis| value(axis, step).to_string()).collect::<Vec<_>>().join(",");
        (0..steps).map(|step| row(step) + "\n").collect()
    }

    #[test]
    fn tables_may_lie_either_way_and_have_names() {
        let value = |axis: usize, step: usize| (10 * axis + step) as f32;
        let upright = table(8, value);
        let named = format!("# a remark\nax,ay,az,gx,gy,gz\n{upright}");
        let lying: Vec<f32> = (0..AXES).flat_map(|axis| (0..8).map(move |step| value(axis, step))).collect();
        let standing: Vec<f32> =
            (0..8).flat_map(|step| (0..AXES).map(move |axis| value(axis, step))).collect();
        let files =
            [upright.into_bytes(), named.into_bytes(), npy::write(&lying, 8), npy::write(&standing, AXES)];
        for file in files {
            assert_eq!(prepare(&file, 8, &ImuOptions::default(), MAX).unwrap(), lying);
        }
    }

    #[test]
    fn units_are_converted() {
        let file = table(8, |_, _| 1.0);
        let options = ImuOptions { rate: None, in_g: true, in_degrees: true };
        let values = prepare(file.as_bytes(), 8, &options, MAX).unwrap();
        assert!((values[0] - 9.80665).abs() < 1e-6 && (values[47] - 0.017_453_292).abs() < 1e-9);
    }

    #[test]
    fn a_ramp_stays_a_ramp_at_another_rate() {
        // 20 steps of 5 s are 4 a second; the file has 10 a second for 6 s, a ramp of 1 a second.
        let file = table(61, |axis, step| axis as f32 + step as f32 / 10.0);
        let options = ImuOptions { rate: Some(10.0), ..ImuOptions::default() };
        let values = prepare(file.as_bytes(), 20, &options, MAX).unwrap();
        let begin = (6.0 - 19.0 / 4.0) / 2.0;
        for (i, value) in values.iter().enumerate() {
            let expected = (i / 20) as f32 + begin + (i % 20) as f32 / 4.0;
            assert!((value - expected).abs() < 1e-4, "{i}: {value}, not {expected}");
        }
    }

    #[test]
    fn what_does_not_fit_says_what_would() {
        let refused = |file: &str, options: &ImuOptions| {
            prepare(file.as_bytes(), 20, options, MAX).unwrap_err().to_string()
        };
        let plain = ImuOptions::default();
        assert!(refused(&table(19, |_, _| 0.0), &plain).contains("19 steps where the encoder takes 20"));
        let slow = ImuOptions { rate: Some(10.0), ..plain };
        assert!(refused(&table(30, |_, _| 0.0), &slow).contains("4.7500 s are needed"));
        assert!(
            refused(&table(20, |axis, _| if axis == 3 { f32::NAN } else { 0.0 }), &plain).contains("axis 3")
        );
        assert!(refused("1,2,3\n4,5\n", &plain).contains("row 1 has 2 values"));
        assert!(refused("1,2,3,4,5,6\nx,2,3,4,5,6\n", &plain).contains("row 1"));
        assert!(refused("1,2\n3,4\n", &plain).contains("2 rows and 2 columns"));
        let rate = ImuOptions { rate: Some(0.0), ..plain };
        assert!(matches!(rate.validate(), Err(Error::Option { name: "rate", .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 1..300), rate in any::<f64>()) {
            let options = ImuOptions { rate: Some(rate), ..ImuOptions::default() };
            if let Ok(values) = prepare(&bytes, 4, &options, MAX) {
                prop_assert_eq!(values.len(), 24);
            }
        }
    }
}
