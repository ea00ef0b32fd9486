//! What the parity tests share: where the golden values lie, how they are read, and how a difference is reported.
//!
//! Golden values are what the published programs gave for known inputs. The whole collection is a folder outside this
//! repository (`VISCACHE_GOLDEN`, else `../shared/golden`); a small part of it is in `tests/golden`, so that a clone
//! alone proves something. Tests run on both, and say so when the first is not there. Models of other names and sizes
//! will do as well: whatever folders there are is compared, and what they do not say is not assumed.

#![allow(dead_code, reason = "every test crate uses a part of this")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use half::f16;
use safetensors::{Dtype, SafeTensors};

/// The collection and the copy, as far as they are there.
pub fn roots() -> Vec<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let whole = std::env::var_os("VISCACHE_GOLDEN")
        .map_or_else(|| repository.join("../shared/golden"), PathBuf::from);
    if !whole.is_dir() {
        say("skipped: the whole collection of golden values (set VISCACHE_GOLDEN); tests/golden is compared");
    }
    let roots = [whole, repository.join("tests/golden")];
    roots.into_iter().filter(|root| root.is_dir()).collect()
}

/// The roots that hold `part`, as the paths to it.
pub fn parts(part: &str) -> Vec<PathBuf> {
    let (there, missing): (Vec<_>, Vec<_>) =
        roots().into_iter().map(|root| root.join(part)).partition(|path| path.exists());
    missing.iter().for_each(|path| say(&format!("skipped: {} (not there)", short(path))));
    there
}

/// These files of the first root that has them all: models, tokenizers and texts of two roots need not fit each other.
pub fn of_one_root<const N: usize>(files: [&str; N]) -> Option<[PathBuf; N]> {
    let all = |root: PathBuf| files.map(|file| root.join(file));
    let found = roots().into_iter().map(all).find(|paths| paths.iter().all(|path| path.exists()));
    if found.is_none() {
        say(&format!("skipped: {} (not there together)", files.join(", ")));
    }
    found
}

/// Files that no golden value belongs to, such as pictures with EXIF marks; `None` when they are not there.
pub fn data(part: &str) -> Option<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root =
        std::env::var_os("VISCACHE_DATA").map_or_else(|| repository.join("../shared/data"), PathBuf::from);
    let path = root.join(part);
    if path.exists() {
        return Some(path);
    }
    say(&format!("skipped: data/{part} (not there; set VISCACHE_DATA)"));
    None
}

/// Prints past the test harness, which would keep the words of a passing test to itself. Every line once.
pub fn say(line: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap().insert(line.to_owned()) {
        std::io::stderr().write_all(format!("    {line}\n").as_bytes()).unwrap();
    }
}

/// The seed of a random test: from the environment, else from the clock. Printed either way.
pub fn seed() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(|| {
        let given = std::env::var("VISCACHE_SEED").ok().map(|seed| seed.parse().unwrap());
        given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 % 1_000_000_007)
    });
    say(&format!("VISCACHE_SEED={}", *SEED));
    *SEED
}

/// A path from the folder before `golden` or `nasty` on: which root it is in, and the same on every machine.
pub fn short(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    let root = parts.iter().rposition(|part| part == "golden" || part == "nasty");
    parts[root.unwrap_or(parts.len().saturating_sub(2)).saturating_sub(1)..].join("/")
}

pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&read(path)).unwrap_or_else(|e| panic!("{}: {e}", short(path)))
}

pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", short(path)))
}

/// A tensor of a golden file.
#[derive(Debug, Clone)]
pub struct Golden {
    pub shape: Vec<usize>,
    pub values: Values,
}

/// Floats as f32 (f16 widens exactly), whole numbers as i64.
#[derive(Debug, Clone)]
pub enum Values {
    Float(Vec<f32>),
    Whole(Vec<i64>),
}

impl Golden {
    pub fn floats(&self) -> &[f32] {
        match &self.values {
            Values::Float(values) => values,
            Values::Whole(_) => panic!("a tensor of whole numbers where floats are needed"),
        }
    }

    pub fn wholes(&self) -> &[i64] {
        match &self.values {
            Values::Whole(values) => values,
            Values::Float(_) => panic!("a tensor of floats where whole numbers are needed"),
        }
    }

    /// Row `i` of a matrix.
    pub fn row(&self, i: usize) -> &[f32] {
        let width = self.shape[1];
        &self.floats()[i * width..][..width]
    }

    /// Row `i` of a matrix of whole numbers.
    pub fn whole_row(&self, i: usize) -> &[i64] {
        let width = self.shape[1];
        &self.wholes()[i * width..][..width]
    }
}

/// A safetensors file: every tensor by its name.
pub struct Tensors {
    pub path: PathBuf,
    map: BTreeMap<String, Golden>,
}

impl Tensors {
    pub fn open(path: &Path) -> Self {
        let bytes = read(path);
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", short(path)));
        let map = file.iter().map(|(name, view)| {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F32 => Values::Float(each(data, f32::from_le_bytes)),
                Dtype::F16 => Values::Float(each(data, |bytes| f16::from_le_bytes(bytes).to_f32())),
                Dtype::I64 => Values::Whole(each(data, i64::from_le_bytes)),
                Dtype::I32 => Values::Whole(each(data, |bytes| i32::from_le_bytes(bytes).into())),
                Dtype::U8 => Values::Whole(data.iter().map(|&v| v.into()).collect()),
                other => panic!("{}: `{name}` has type {other:?}", short(path)),
            };
            (name.to_owned(), Golden { shape: view.shape().to_vec(), values })
        });
        Tensors { path: path.to_owned(), map: map.collect() }
    }

    pub fn get(&self, name: &str) -> &Golden {
        self.find(name).unwrap_or_else(|| panic!("{} has no `{name}`", short(&self.path)))
    }

    pub fn find(&self, name: &str) -> Option<&Golden> {
        self.map.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Golden)> {
        self.map.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The tensors whose name begins with `prefix`, without it.
    pub fn under(&self, prefix: &str) -> impl Iterator<Item = (&str, &Golden)> {
        self.iter().filter_map(move |(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
    }
}

fn each<const N: usize, T>(data: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.chunks_exact(N).map(|bytes| read(bytes.try_into().unwrap())).collect()
}

/// How far a tensor may be off: in its worst element, and in the direction of each of its rows.
///
/// Both are needed. An absolute limit forgives a wrong factor on small values; a cosine forgives a wrong epsilon.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Largest absolute difference.
    pub absolute: f64,
    /// Largest 1 − cosine of a row (the last axis).
    pub turn: f64,
}

/// Counts comparisons, keeps the worst, collects what is beyond its limit, and reports all of it at the end.
pub struct Tally {
    what: String,
    compared: usize,
    failures: Vec<String>,
    /// Largest share of its limit, with the difference and its place.
    worst: (f64, f64, String),
    /// Largest 1 − cosine, with its place.
    turn: (f64, String),
}

impl Tally {
    pub fn new(what: impl Into<String>) -> Self {
        let (compared, failures) = (0, Vec::new());
        Tally {
            what: what.into(),
            compared,
            failures,
            worst: (0.0, 0.0, "-".into()),
            turn: (0.0, "-".into()),
        }
    }

    /// Compares a tensor of any number of axes, `width` being the last.
    pub fn floats(&mut self, name: &str, received: &[f32], expected: &[f32], width: usize, limit: Limit) {
        self.compared += 1;
        if received.len() != expected.len() {
            let lengths = format!("{} values expected, {} received", expected.len(), received.len());
            return self.fail(format!("{name}: {lengths}"));
        }
        let worst = received.iter().zip(expected).enumerate().map(|(i, (r, e))| {
            let difference = (f64::from(*r) - f64::from(*e)).abs();
            (i, if difference.is_nan() { f64::INFINITY } else { difference })
        });
        let Some((at, difference)) = worst.max_by(|a, b| a.1.total_cmp(&b.1)) else {
            return self.fail(format!("{name}: an empty tensor"));
        };
        let place = format!("{name}[{at}], expected {:e}, received {:e}", expected[at], received[at]);
        if difference > limit.absolute {
            self.fail(format!("{place}: off by {difference:.2e}, limit {:.2e}", limit.absolute));
        }
        let share = if difference == 0.0 { 0.0 } else { difference / limit.absolute };
        if share > self.worst.0 {
            self.worst = (share, difference, place);
        }
        for (row, (r, e)) in received.chunks_exact(width).zip(expected.chunks_exact(width)).enumerate() {
            let turn = turn(r, e);
            if turn > limit.turn {
                self.fail(format!(
                    "{name} row {row}: cosine {:.9}, limit 1 − {:.0e}",
                    1.0 - turn,
                    limit.turn
                ));
            }
            if turn > self.turn.0 {
                self.turn = (turn, format!("{name} row {row}"));
            }
        }
    }

    /// Compares anything that must be equal.
    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, name: &str, received: &[T], expected: &[T]) {
        self.compared += 1;
        if received.len() != expected.len() {
            let lengths = format!("{} values expected, {} received", expected.len(), received.len());
            return self.fail(format!("{name}: {lengths}"));
        }
        if let Some(at) = (0..expected.len()).find(|&i| received[i] != expected[i]) {
            let differing = (0..expected.len()).filter(|&i| received[i] != expected[i]).count();
            let (e, r) = (&expected[at], &received[at]);
            self.fail(format!("{name}[{at}]: expected {e:?}, received {r:?} ({differing} of these differ)"));
        }
    }

    pub fn check(&mut self, name: &str, holds: bool, otherwise: impl FnOnce() -> String) {
        self.compared += 1;
        if !holds {
            self.fail(format!("{name}: {}", otherwise()));
        }
    }

    /// Compares ids, best first: in the same order, but where the stored scores at both places are within `gap` of each other.
    /// Only the last places may hold an id that is not stored at all: one that scores like the last.
    pub fn same_but_for_ties(&mut self, name: &str, found: &[i64], ids: &[i64], scores: &[f32], gap: f32) {
        let last = scores[scores.len() - 1];
        let fits = |at: usize| match ids.iter().position(|id| *id == found[at]) {
            Some(other) => (scores[other] - scores[at]).abs() <= gap,
            None => scores[at] - last <= gap,
        };
        let holds = found.len() == ids.len() && (0..found.len()).all(fits);
        self.check(name, holds, || format!("expected {ids:?} with {scores:?}, received {found:?}"));
    }

    pub fn is_empty(&self) -> bool {
        self.compared == 0
    }

    fn fail(&mut self, line: String) {
        self.failures.push(line);
    }

    /// Says what was compared, and panics with everything that was wrong, or when nothing was compared.
    pub fn finish(self) {
        let (share, difference, place) = &self.worst;
        let worst = match share {
            0.0 => "no difference".to_owned(),
            _ => format!("worst error {difference:.1e} ({:.0} % of its limit, {place})", share * 100.0),
        };
        let turn = match &self.turn {
            (0.0, _) => String::new(),
            (turn, place) => format!(", smallest cosine 1 − {turn:.0e} ({place})"),
        };
        say(&format!("{}: {} comparisons, {worst}{turn}", self.what, self.compared));
        assert!(self.compared > 0, "{}: nothing was compared", self.what);
        assert!(
            self.failures.is_empty(),
            "{}: {} of {} comparisons failed\n{}",
            self.what,
            self.failures.len(),
            self.compared,
            self.failures.join("\n")
        );
    }
}

/// 1 − cosine; 0 for two zero vectors.
fn turn(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    match (norms == 0.0, a == b) {
        (_, true) => 0.0,
        (true, false) => 2.0,
        (false, false) => 1.0 - dot(a, b) / norms,
    }
}

/// Largest absolute value.
pub fn max_abs(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |max, v| f64::from(v.abs()).max(max))
}
