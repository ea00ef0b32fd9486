//! How iLLaMA is tested, against the published loader: pictures after resizing and cropping, and normalised.

use viscache::media::augment::Evaluation;
use viscache::media::image::decode_within;
use viscache::media::{Limits, Orientation};

use crate::common::{Limit, Tally, Tensors, json, parts, read, short};

/// Bytes of a picture that may be one level off: a handful.
const A_HANDFUL: usize = 16;
/// What one level is after normalising, with the smallest of the deviations.
const LEVEL: f64 = 1.0 / 255.0 / 0.224 + 1e-6;

#[test]
fn pictures_are_prepared_as_they_are_for_testing() {
    for root in parts("illama/preprocess.json") {
        let expected = Tensors::open(&root.with_file_name("preprocess.safetensors"));
        let mut tally = Tally::new(short(&root));
        for row in json(&root).as_array().unwrap() {
            let number = |name: &str| row[name].as_u64().unwrap() as usize;
            let (case, side) = (number("case"), number("input_size"));
            let evaluation = Evaluation::new(side);
            let bytes = read(&root.with_file_name(format!("preprocess_{case}.png")));
            let picture = decode_within(&bytes, Orientation::Reference, &Limits::default()).unwrap();
            let size = [picture.width, picture.height];
            tally.equal(&format!("case {case}, size"), &size, &[number("width"), number("height")]);

            let received = evaluation.pixels(&picture);
            let pixels = expected.get(&format!("case{case}.u8_hwc"));
            tally.equal(&format!("case {case}, shape"), &pixels.shape, &[side, side, 3]);
            let off = |r: &u8, e: &i64| i64::from(*r).abs_diff(*e);
            let each = || received.iter().zip(pixels.wholes()).map(|(r, e)| off(r, e));
            let (worst, count) = (each().max().unwrap(), each().filter(|&off| off > 0).count());
            let same_length = received.len() == pixels.wholes().len();
            tally.check(
                &format!("case {case}, bytes"),
                same_length && worst <= 1 && count <= A_HANDFUL,
                || format!("{count} bytes differ, by up to {worst}; {} of them", received.len()),
            );

            let values = evaluation.prepare_bytes(&bytes, &Limits::default()).unwrap();
            tally.equal(&format!("case {case}, values"), &[values.len()], &[3 * side * side]);
            // Of the larger ones only the first rows are stored.
            let stored = expected.find(&format!("case{case}.tensor"));
            let stored = stored.unwrap_or_else(|| expected.get(&format!("case{case}.tensor_rows_0_16")));
            let rows = stored.shape[1] * side;
            let first: Vec<f32> =
                values.chunks_exact(side * side).flat_map(|plane| &plane[..rows]).copied().collect();
            let absolute = if count == 0 { 1e-6 } else { LEVEL };
            let limit = Limit { absolute, turn: 1e-5 };
            tally.floats(&format!("case {case}, normalised"), &first, stored.floats(), side, limit);
        }
        tally.finish();
    }
}
