//! A point cloud file becomes what the point encoder takes, `[N, 3]`.
//!
//! PLY (text or binary; the properties x, y, z of its vertices), XYZ (a point a line, further columns passed over) and
//! `.npy [N, 3]`.
//!
//! The published loader normalises nothing: its clouds are centred, with a largest radius of 1. [`PointOptions::normalize`] does
//! that to others. More points than the encoder was trained with are thinned out by a seeded draw, in the order of the file,
//! since the encoder's own sampling of a larger cloud costs more and gives the same.
//!
//! Source: OpenGVLab/LLaMA-Adapter, `imagebind_LLM/ImageBind/data.py`, `load_and_transform_point_cloud_data`.

use ply_rs_bw::parser::{Parser, Reader};
use ply_rs_bw::ply::{Property, PropertyAccess, PropertyAccessResult};
use rand::SeedableRng;
use rand::seq::index;
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};

use super::{Error, npy};

/// How points become the encoder's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PointOptions {
    /// Whether the cloud is centred on its mean and scaled to a largest radius of 1.
    pub normalize: bool,
    /// Of the draw that thins out, and of the point that grouping begins at; 0 begins at the first.
    pub seed: u64,
}

/// What one cloud may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PointLimits {
    /// Bytes of the file.
    pub max_bytes: usize,
    /// Points in it.
    pub max_points: usize,
}

impl PointLimits {
    /// Default of [`PointLimits::max_bytes`]: 64 MiB.
    pub const DEFAULT_MAX_BYTES: usize = 64 << 20;
    /// Default of [`PointLimits::max_points`].
    pub const DEFAULT_MAX_POINTS: usize = 2_000_000;
}

impl Default for PointLimits {
    fn default() -> Self {
        PointLimits { max_bytes: Self::DEFAULT_MAX_BYTES, max_points: Self::DEFAULT_MAX_POINTS }
    }
}

/// A prepared cloud.
#[derive(Debug, Clone, PartialEq)]
pub struct Cloud {
    /// `[N, 3]`
    pub values: Vec<f32>,
    /// The point that grouping begins at.
    pub start: usize,
}

/// Prepares a cloud.
///
/// * `most`: points that the encoder was trained with; `least`: that it needs.
///
/// # Errors
/// [`Error::Empty`], [`Error::TooManyBytes`], [`Error::NotACloud`].
pub fn prepare(
    bytes: &[u8],
    (least, most): (usize, usize),
    options: PointOptions,
    limits: &PointLimits,
) -> Result<Cloud, Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(Error::TooManyBytes { received: bytes.len(), limit: limits.max_bytes });
    }
    let mut points = match bytes {
        _ if bytes.starts_with(npy::MAGIC) => from_npy(bytes)?,
        [b'p', b'l', b'y', b'\n' | b'\r', ..] => from_ply(bytes, limits.max_points)?,
        _ => from_text(bytes)?,
    };
    if points.len() < least || points.len() > limits.max_points {
        let (count, max) = (points.len(), limits.max_points);
        return Err(Error::NotACloud(format!("it has {count} points; from {least} to {max} are taken")));
    }
    if let Some(at) = points.iter().position(|point| point.iter().any(|v| !v.is_finite())) {
        return Err(Error::NotACloud(format!("point {at} has a coordinate that is not a finite number")));
    }
    let mut draw = Pcg64Mcg::seed_from_u64(options.seed);
    if points.len() > most {
        let mut kept = index::sample(&mut draw, points.len(), most).into_vec();
        kept.sort_unstable();
        points = kept.into_iter().map(|at| points[at]).collect();
    }
    if options.normalize {
        normalize(&mut points)?;
    }
    let start = match options.seed {
        0 => 0,
        _ => index::sample(&mut draw, points.len(), 1).index(0),
    };
    Ok(Cloud { values: points.concat(), start })
}

fn normalize(points: &mut [[f32; 3]]) -> Result<(), Error> {
    let count = points.len() as f64;
    let centre: [f64; 3] =
        std::array::from_fn(|axis| points.iter().map(|point| f64::from(point[axis])).sum::<f64>() / count);
    let away =
        |point: &[f32; 3]| -> [f64; 3] { std::array::from_fn(|axis| f64::from(point[axis]) - centre[axis]) };
    let length = |d: [f64; 3]| d.iter().map(|v| v * v).sum::<f64>().sqrt();
    let radius = points.iter().map(|point| length(away(point))).fold(0.0, f64::max);
    if radius == 0.0 {
        return Err(Error::NotACloud("all its points are one, so it has no size to be scaled by".into()));
    }
    points.iter_mut().for_each(|point| *point = away(point).map(|v| (v / radius) as f32));
    Ok(())
}

fn from_npy(bytes: &[u8]) -> Result<Vec<[f32; 3]>, Error> {
    let array = npy::read_array(bytes).map_err(Error::NotACloud)?;
    match array.shape[..] {
        [_, 3] | [1, _, 3] => Ok(array.values.chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect()),
        _ => Err(Error::NotACloud(format!("its shape {:?} is not [N, 3]", array.shape))),
    }
}

fn from_text(bytes: &[u8]) -> Result<Vec<[f32; 3]>, Error> {
    let refuse = |line: usize, why: &str| Err(Error::NotACloud(format!("line {}: {why}", line + 1)));
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Error::NotACloud("it is none of PLY, .npy [N, 3] and text of a point a line".into()))?;
    let mut points = Vec::new();
    for (line, row) in text.lines().enumerate() {
        let row = row.trim();
        if row.is_empty() || row.starts_with('#') {
            continue;
        }
        let mut numbers =
            row.split(|c: char| c.is_whitespace() || c == ',' || c == ';').filter(|n| !n.is_empty());
        let mut next = || numbers.next().and_then(|number| number.parse::<f32>().ok());
        match (next(), next(), next()) {
            (Some(x), Some(y), Some(z)) => points.push([x, y, z]),
            // XYZ files of chemists and scanners may begin with a count and a remark.
            _ if points.is_empty() && line < 2 => {}
            _ => return refuse(line, "it does not begin with three numbers"),
        }
    }
    Ok(points)
}

/// A vertex of a PLY file, as far as it is read.
#[derive(Debug, Default)]
struct Vertex([Option<f32>; 3]);

impl Vertex {
    fn set(&mut self, name: &str, value: f64) -> PropertyAccessResult {
        match ["x", "y", "z"].iter().position(|axis| *axis == name) {
            Some(axis) => {
                self.0[axis] = Some(value as f32);
                PropertyAccessResult::Set
            }
            None => PropertyAccessResult::Ignored,
        }
    }
}

impl PropertyAccess for Vertex {
    fn new() -> Self {
        Self::default()
    }

    fn set_property(&mut self, name: &str, property: Property) -> PropertyAccessResult {
        match property {
            Property::Char(value) => self.set(name, value.into()),
            Property::UChar(value) => self.set(name, value.into()),
            Property::Short(value) => self.set(name, value.into()),
            Property::UShort(value) => self.set(name, value.into()),
            Property::Int(value) => self.set(name, value.into()),
            Property::UInt(value) => self.set(name, value.into()),
            Property::Float(value) => self.set(name, value.into()),
            Property::Double(value) => self.set(name, value),
            _ => PropertyAccessResult::Ignored,
        }
    }
}

fn from_ply(bytes: &[u8], max_points: usize) -> Result<Vec<[f32; 3]>, Error> {
    let refuse = |why: String| Error::NotACloud(why);
    let parser = Parser::<Vertex>::new();
    let mut reader = Reader::new(bytes);
    let header = parser.read_header(&mut reader).map_err(|e| refuse(e.to_string()))?;
    for (name, element) in &header.elements {
        // An element takes a byte at least, unless it has no property: then it could be counted up for ever.
        let limit = if name == "vertex" { max_points } else { bytes.len() };
        if element.count > limit || element.properties.is_empty() {
            return Err(refuse(format!(
                "its {} elements `{name}` with {} properties are more than {limit}, or nothing",
                element.count,
                element.properties.len()
            )));
        }
        let read = parser.read_payload_for_element(&mut reader, element, &header);
        let elements = read.map_err(|e| refuse(e.to_string()))?;
        if name == "vertex" {
            let points = elements.into_iter().map(|vertex| match vertex.0 {
                [Some(x), Some(y), Some(z)] => Ok([x, y, z]),
                _ => Err(refuse("its vertices lack x, y or z".into())),
            });
            return points.collect();
        }
    }
    Err(refuse("it has no element `vertex`".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POINTS: [[f32; 3]; 4] = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.5, -1.0, 0.25]];

    fn read(bytes: &[u8], options: PointOptions) -> Result<Cloud, Error> {
        prepare(bytes, (2, 1000), options, &PointLimits::default())
    }

    fn ply_header(format: &str) -> String {
        format!(
            "ply\nformat {format} 1.0\ncomment made here\nelement vertex 4\nproperty float x\nproperty uchar red\n\
             property double y\nproperty float z\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
        )
    }

    fn ply(format: &str) -> Vec<u8> {
        let mut bytes = ply_header(format).into_bytes();
        for [x, y, z] in POINTS {
            match format {
                "ascii" => bytes.extend(format!("{x} 7 {y} {z}\n").bytes()),
                _ => {
                    bytes.extend(x.to_le_bytes());
                    bytes.push(7);
                    bytes.extend(f64::from(y).to_le_bytes());
                    bytes.extend(z.to_le_bytes());
                }
            }
        }
        match format {
            "ascii" => bytes.extend(b"3 0 1 2\n"),
            _ => bytes.extend([3, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]),
        }
        bytes
    }

    #[test]
    fn one_cloud_in_four_formats() {
        let lines: String = POINTS.iter().map(|[x, y, z]| format!("{x} {y}, {z} 255\n")).collect();
        let chemist = format!("4\nwater and more\n{lines}");
        let files = [
            ply("ascii"),
            ply("binary_little_endian"),
            npy::write(&POINTS.concat(), 3),
            lines.into_bytes(),
            chemist.into_bytes(),
        ];
        for file in files {
            let cloud = read(&file, PointOptions::default()).unwrap();
            assert_eq!(cloud, Cloud { values: POINTS.concat(), start: 0 });
        }
    }

    #[test]
    fn normalising_centres_and_scales() {
        let options = PointOptions { normalize: true, seed: 0 };
        let cloud = read(&npy::write(&POINTS.concat(), 3), options).unwrap().values;
        let lengths = cloud.chunks_exact(3).map(|p| p.iter().map(|v| v * v).sum::<f32>().sqrt());
        assert!((lengths.fold(0.0, f32::max) - 1.0).abs() < 1e-6);
        for axis in 0..3 {
            assert!(cloud.iter().skip(axis).step_by(3).sum::<f32>().abs() < 1e-6);
        }
        let one = npy::write(&[1.0; 12], 3);
        assert!(read(&one, options).unwrap_err().to_string().contains("no size"));
    }

    #[test]
    fn a_draw_is_repeated_by_its_seed() {
        let many: Vec<f32> = (0..3000).map(|v| v as f32).collect();
        let file = npy::write(&many, 3);
        let draw = |seed| {
            let options = PointOptions { normalize: false, seed };
            prepare(&file, (2, 10), options, &PointLimits::default()).unwrap()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5).values, draw(6).values);
        assert_eq!((draw(5).values.len(), draw(0).start), (30, 0));
        assert!(draw(5).values.is_sorted(), "the order of the file is kept");
    }

    #[test]
    fn what_is_no_cloud_says_why() {
        let refused = |file: &[u8]| read(file, PointOptions::default()).unwrap_err().to_string();
        assert!(refused(b"1 2 3\n").contains("1 points"));
        assert!(refused(b"1 2 3\n4 5 x\n").contains("line 2"));
        assert!(refused(b"\xff\xfe").contains("none of PLY"));
        assert!(refused(&npy::write(&[1.0, 2.0, f32::NAN, 4.0, 5.0, 6.0], 3)).contains("point 0"));
        assert!(refused(&npy::write(&[1.0; 8], 4)).contains("[2, 4]"));
        let endless = b"ply\nformat binary_little_endian 1.0\nelement vertex 4000000000\nproperty float x\nend_header\n";
        assert!(refused(endless).contains("4000000000"));
        let nothing = b"ply\nformat binary_little_endian 1.0\nelement a 100\nelement vertex 1\nproperty float x\nend_header\n";
        assert!(refused(nothing).contains("`a` with 0 properties"));
        let flat = b"ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nend_header\n1 2\n3 4\n";
        assert!(refused(flat).contains("lack x, y or z"));
        assert_eq!(read(b"", PointOptions::default()), Err(Error::Empty));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn damaged_files_are_errors_or_clouds(at in 0usize..400, to in any::<u8>(), cut in 0usize..400, binary in any::<bool>()) {
            let mut file = ply(if binary { "binary_little_endian" } else { "ascii" });
            let length = file.len();
            file[at % length] = to;
            file.truncate(length - cut % length);
            if let Ok(cloud) = read(&file, PointOptions::default()) {
                prop_assert!(cloud.values.len().is_multiple_of(3) && cloud.values.iter().all(|v| v.is_finite()));
            }
        }
    }
}
