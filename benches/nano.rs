//! Does a cache with nothing tuned find what is there, on data that no formula has made?
//!
//! Rows are scenes embedded by the nano model, queries are captions in words that were never seen, voices, and pictures of their
//! own. The cache is built as `index-builder` builds it, its codes chosen by measuring; then searched with the defaults and with
//! targets, one thread, batches of 64.
//!
//! ```text
//! cargo bench --profile dev --bench nano
//! VISCACHE_BENCH_SAMPLE=0            no sample of queries is given to the build
//! VISCACHE_BENCH_CODES=u4            codes that are not chosen
//! VISCACHE_BENCH_ITEMS=60000         rows
//! VISCACHE_BENCH_DATA=DIR            where what was embedded is kept (target/nano)
//! VISCACHE_BENCH_PYTHON=python       also hnswlib and faiss, in turn with ours
//! ```

#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to say")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{machine, median, nano, setting, timed};
use serde_json::Value;
use viscache::cache::{
    Cache, LoadOptions, NewCache, NewItem, QuerySample, RECALL_SAMPLE, RowsMode, Snapshot, Writer, calibrate,
};
use viscache::index::{BuildParams, SearchParams, Searcher, TargetRecall, exact};
use viscache::store::{Access, ItemRecord, RowType, Store};
use viscache::types::{CacheName, Embedding, Fingerprint, ItemId, Origin, QueryKind};

const TOP_K: usize = 10;
const BATCH: usize = 64;
const ROUNDS: usize = 5;
const ROUND_SECONDS: f64 = 0.3;
const QUERIES: usize = 1000;
const SAMPLED: usize = 2000;
const TARGETS: [f64; 3] = [0.9, 0.95, 0.99];

struct Asked {
    kind: &'static str,
    queries: Vec<Embedding>,
    truth: Vec<Vec<ItemId>>,
}

fn main() {
    machine();
    let folder = common::data().unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nano"));
    let items = setting("VISCACHE_BENCH_ITEMS", 60_000);
    let (all, dim) = nano::scenes(&folder, items + QUERIES);
    let (rows, pictures) = all.split_at(items * dim);
    let texts = nano::texts(&folder, QUERIES, true).0;
    let voices = nano::voices(&folder, QUERIES, true).map(|(rows, _)| rows);
    let sets = [("image", Some(pictures.to_vec())), ("text", Some(texts)), ("audio", voices)];
    let asked: Vec<Asked> =
        sets.into_iter().filter_map(|(kind, queries)| Some(asked(kind, &queries?, rows, dim))).collect();

    let mut sample = QuerySample::default();
    if setting("VISCACHE_BENCH_SAMPLE", 1) == 1 {
        let given = [
            ("text", Some(nano::texts(&folder, SAMPLED, false).0)),
            ("audio", nano::voices(&folder, SAMPLED, false).map(|(rows, _)| rows)),
        ];
        for (kind, queries) in given {
            for (i, query) in queries.unwrap_or_default().chunks_exact(dim).enumerate() {
                match i % 10 {
                    0 => sample.held_out.entry(kind.into()).or_default().push(query.to_vec()),
                    _ => sample.repair.extend_from_slice(query),
                }
            }
        }
    }
    let store = tempfile::tempdir_in(&folder).unwrap();
    let (snapshot, took) = timed(|| built(store.path(), rows, dim, &sample));
    let record = snapshot.generation_record();
    println!(
        "{items} rows of {dim}, sample {}: codes {}, rescoring {}, built in {:.1} s",
        if sample.is_empty() { "none" } else { "given" },
        snapshot.index().codes().word(),
        snapshot.rescore(&SearchParams::default()),
        took.wall,
    );
    for tried in record.choice.iter().flat_map(|choice| &choice.tried) {
        println!("  {} of {} within the best {} by {}", tried.within, tried.kind, tried.rescore, tried.codes);
    }
    for asked in &asked {
        println!("\n{}: {} queries, one thread, median of {ROUNDS} rounds", asked.kind, asked.queries.len());
        let (kind, plain) = (QueryKind::new(asked.kind).unwrap(), SearchParams::default());
        ours(&snapshot, asked, "default", &snapshot.usual(plain, Some(&kind)));
        for target in TARGETS {
            let params = snapshot.params_for(TargetRecall::new(target).unwrap(), Some(&kind), TOP_K).unwrap();
            ours(&snapshot, asked, &format!("target {target}"), &params);
        }
        for ef_search in [16, 32, 64, 128, 256] {
            ours(&snapshot, asked, &format!("ef {ef_search}"), &SearchParams { ef_search, ..plain });
        }
        peers(&folder, asked, rows, dim);
    }
}

/// Queries and their true ten.
fn asked(kind: &'static str, queries: &[f32], rows: &[f32], dim: usize) -> Asked {
    let truth = queries.chunks_exact(dim).map(|query| {
        exact::search(rows, query, TOP_K).into_iter().map(|scored| ItemId(u64::from(scored.slot.0))).collect()
    });
    let truth = truth.collect();
    let queries = queries.chunks_exact(dim).map(|query| Embedding::new(query.to_vec()).unwrap()).collect();
    Asked { kind, queries, truth }
}

fn built(path: &Path, rows: &[f32], dim: usize, sample: &QuerySample) -> Arc<Snapshot> {
    let (name, origin) = (CacheName::new("nano").unwrap(), Origin::of("nano"));
    let store = Arc::new(Store::open(path, Access::Write).unwrap());
    let new = NewCache { dim, rows: RowType::F32, origin, model: None };
    let mut writer = Writer::open(&store, &name, &new).unwrap();
    for (start, chunk) in rows.chunks(4096 * dim).enumerate() {
        let item = |(i, row): (usize, &[f32])| NewItem {
            id: None,
            embedding: Embedding::new(row.to_vec()).unwrap(),
            record: ItemRecord {
                uri: format!("scene/{}", start * 4096 + i),
                modality: None,
                digest: Fingerprint::of(&(start * 4096 + i).to_le_bytes()),
                tags: Default::default(),
            },
        };
        writer.put(chunk.chunks_exact(dim).enumerate().map(item).collect(), |_, _, _| ()).unwrap();
    }
    let params = match std::env::var("VISCACHE_BENCH_CODES") {
        Ok(codes) => BuildParams { codes: codes.parse().unwrap(), ..BuildParams::default() },
        Err(_) => BuildParams::choosing(),
    };
    writer
        .index(&params, sample, |_| (), |index, rows, asked| calibrate(index, rows, RECALL_SAMPLE, asked))
        .unwrap();
    drop(writer);
    let options = LoadOptions { rows: RowsMode::Ram, memory_budget: u64::MAX };
    Cache::open(&store, &name, None, options).unwrap().snapshot()
}

fn ours(snapshot: &Snapshot, asked: &Asked, what: &str, params: &SearchParams) {
    let mut searcher = Searcher::default();
    let queries: Vec<&Embedding> = asked.queries.iter().collect();
    let (mut recall, mut scored, mut plan) = (0.0, 0, None);
    let mut rates = Vec::new();
    for round in 0..ROUNDS {
        let (mut count, mut seconds) = (0, 0.0);
        while count == 0 || seconds < ROUND_SECONDS {
            for (at, batch) in queries.chunks(BATCH).enumerate() {
                let (found, took) = timed(|| snapshot.search_all(&mut searcher, batch, TOP_K, params));
                seconds += took.wall;
                count += batch.len();
                for (i, found) in
                    found.into_iter().enumerate().filter(|_| round == 0 && count <= queries.len())
                {
                    let found = found.unwrap();
                    let ids: Vec<ItemId> = found.hits.iter().map(|hit| hit.id).collect();
                    recall += exact::recall(&asked.truth[at * BATCH + i], &ids) / queries.len() as f64;
                    scored += found.cost.scored_vectors;
                    plan = Some(found.plan);
                }
            }
        }
        rates.push(count as f64 / seconds);
    }
    println!(
        "  ours     {what:<12} recall {recall:.4} {:>8.0} q/s  ef {:>4} rescore {:>3} margin {:<8} {:>6} scored  {}",
        median(rates),
        params.ef_search,
        snapshot.rescore(params),
        params.margin.map_or("–".into(), |margin| format!("{margin:.4}")),
        scored / queries.len() as u64,
        plan.map_or(String::new(), |plan| format!("{plan:?}")),
    );
}

/// What `nano_peers.py` says of the same rows and queries.
fn peers(folder: &Path, asked: &Asked, rows: &[f32], dim: usize) {
    let Ok(python) = std::env::var("VISCACHE_BENCH_PYTHON") else { return };
    let raw = |name: &str, values: &[u8]| std::fs::write(folder.join(name), values).unwrap();
    raw("rows.f32", bytemuck::cast_slice(rows));
    let queries: Vec<f32> = asked.queries.iter().flat_map(|query| query.as_slice().to_vec()).collect();
    raw("queries.f32", bytemuck::cast_slice(&queries));
    let truth: Vec<u64> = asked.truth.iter().flatten().map(|id| id.0).collect();
    raw("truth.u64", bytemuck::cast_slice(&truth));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/nano_peers.py");
    let output = Command::new(python).arg(script).arg(folder).arg(dim.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let [peer, ef] = ["peer", "ef"].map(|field| line[field].to_string().replace('"', ""));
        println!(
            "  {peer:<8} ef {ef:<9} recall {:.4} {:>8.0} q/s",
            line["recall"].as_f64().unwrap(),
            line["rate"].as_f64().unwrap()
        );
    }
}
