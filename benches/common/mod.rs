//! What the benches share: clocks, medians, seeded data, the line that names the machine.
//!
//! A bench prints ratios measured in one run, A and B in turn, medians over the rounds. One thread's work is timed by
//! the processor time of that thread, which a busy machine disturbs less than the clock on the wall.

#![allow(dead_code, reason = "every bench is a crate of its own and uses a part of this")]

pub mod huge;
pub mod nano;

use std::path::{Path, PathBuf};
use std::time::Instant;

use viscache::kernels::Kernels;

/// What the programs use.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Folder of large inputs: `VISCACHE_BENCH_DATA`.
pub fn data() -> Option<PathBuf> {
    std::env::var_os("VISCACHE_BENCH_DATA").map(PathBuf::from)
}

/// A whole number from the environment.
pub fn setting(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`, not a whole number")),
        Err(_) => default,
    }
}

/// Names the machine: processor, cores, kernels in use.
pub fn machine() {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split(':').nth(1)).map_or("?", str::trim).to_owned()
    };
    let (model, family, number) = (field("model name"), field("cpu family"), field("model\t"));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    println!(
        "machine: {model} (family {family} model {number}), {} cores, kernels {}, load at start {load}",
        cores(),
        Kernels::get().name(),
    );
}

/// Cores of this process.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Wall-clock seconds and this thread's processor seconds of `work`.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Time) {
    let (wall, cpu) = (Instant::now(), thread_cpu());
    let result = work();
    let wall = wall.elapsed().as_secs_f64();
    let cpu = match (cpu, thread_cpu()) {
        (Some(before), Some(after)) => after - before,
        _ => wall,
    };
    (result, Time { wall, cpu })
}

/// What a piece of work took, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    /// By the clock on the wall.
    pub wall: f64,
    /// On a processor.
    pub cpu: f64,
}

/// Processor seconds of this thread so far, where the kernel says. It counts in ticks of a few milliseconds.
pub fn thread_cpu() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split(' ').next()?.parse::<u64>().ok()? as f64 / 1e9)
}

/// User and system seconds of this process and, if asked, of the children it has waited for.
pub fn process_cpu(children: bool) -> Option<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields 14 to 17, counted from 1; the second is a name in brackets that may hold spaces.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let ticks: u64 =
        fields[if children { 13..15 } else { 11..13 }].iter().flat_map(|f| f.parse::<u64>()).sum();
    Some(ticks as f64 / TICKS_PER_SECOND)
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    quantile(&mut values, 0.5)
}

/// The value below which `share` of the values lie.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

/// Reads an `.fbin` file: u32 rows, u32 columns, then f32, all little-endian.
pub fn fbin(path: &Path) -> (Vec<f32>, usize) {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
    let (rows, dim) = (word(0), word(4));
    let values = bytes[8..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let values: Vec<f32> = values.collect();
    assert_eq!(values.len(), rows * dim, "{}: {rows} × {dim} announced", path.display());
    (values, dim)
}

/// Numbers from -1 to 1, the same in every run.
pub struct Noise(pub u64);

impl Noise {
    /// The next one.
    pub fn next(&mut self) -> f32 {
        // xorshift64*: fast, and good enough for data that only has to spread.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
        bits as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Unit rows around a few hundred centres, `[n, dim]`.
pub fn clustered(seed: u64, n: usize, dim: usize) -> Vec<f32> {
    const CENTRES: usize = 256;
    let mut noise = Noise(7);
    let centres: Vec<f32> = (0..CENTRES * dim).map(|_| noise.next()).collect();
    let mut noise = Noise(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut rows = Vec::with_capacity(n * dim);
    for _ in 0..n {
        let at = ((noise.next() + 1.0) * 0.5 * (CENTRES - 1) as f32) as usize * dim;
        let start = rows.len();
        rows.extend(centres[at..at + dim].iter().map(|centre| centre + 0.8 * noise.next()));
        let norm = rows[start..].iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32;
        rows[start..].iter_mut().for_each(|v| *v /= norm);
    }
    rows
}

/// Says how a ratio stands to its goal.
pub fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// The rows of [`make_cache`] and the number of the first, a chunk at a time.
pub fn chunks(items: usize, dim: usize) -> impl Iterator<Item = (usize, Vec<f32>)> {
    const CHUNK: usize = 4096;
    let starts = (0..items).step_by(CHUNK);
    starts.map(move |start| (start, clustered(1000 + start as u64, CHUNK.min(items - start), dim)))
}

/// A store with one cache of [`clustered`] rows, indexed.
pub fn make_cache(
    folder: &Path,
    name: &viscache::types::CacheName,
    items: usize,
    dim: usize,
    params: &viscache::index::BuildParams,
) {
    make_tagged_cache(folder, name, items, dim, params, |_, _| Default::default());
}

/// As [`make_cache`], with tags by an item's number and row.
pub fn make_tagged_cache(
    folder: &Path,
    name: &viscache::types::CacheName,
    items: usize,
    dim: usize,
    params: &viscache::index::BuildParams,
    tags: impl Fn(usize, &[f32]) -> std::collections::BTreeMap<String, String>,
) {
    use viscache::cache::{NewCache, NewItem, Writer};
    use viscache::store::{Access, ItemRecord, RowType, Store};
    use viscache::types::{Embedding, Fingerprint, Origin};

    let store = Store::open(folder, Access::Write).expect("a store can be made");
    let origin = Origin::of("bench");
    let new = NewCache { dim, rows: RowType::F32, origin, model: None };
    let mut writer = Writer::open(&store, name, &new).expect("a cache can be made");
    for (start, rows) in chunks(items, dim) {
        let rows = rows.chunks_exact(dim).enumerate().map(|(i, row)| NewItem {
            id: None,
            embedding: Embedding::new(row.to_vec()).expect("rows are finite"),
            record: ItemRecord {
                uri: format!("bench/{}", start + i),
                modality: None,
                digest: Fingerprint::of(&(start + i).to_le_bytes()),
                tags: tags(start + i, row),
            },
        });
        writer.put(rows.collect(), |_, _, _| ()).expect("rows can be put");
    }
    writer
        .index(params, &Default::default(), |_| (), |_, _, _| Ok(Default::default()))
        .expect("rows can be indexed");
    store.compact().expect("a store can be compacted");
}
