//! A server over two caches whose answers are known beforehand.

use tempfile::TempDir;
use viscache::cache::RowsMode;
use viscache::flow::Limits;
use viscache::serve::proto::{self, BlendParams, EnhanceRequest, SearchParams};

use crate::server::{Server, Told, item, ok, tensor, whole};
use crate::store::{self, Expected, Item, ROWS};

/// Most that a component may be off: sums are taken in f64, results are f32.
pub(crate) const LIMIT: f64 = 1e-6;

/// A server over both caches.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) scenes: Vec<Item>,
    pub(crate) rows: Vec<Item>,
    pub(crate) folder: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        World::with(true, RowsMode::Ram, Limits::default(), 300).await
    }

    pub(crate) async fn with(model: bool, mode: RowsMode, limits: Limits, count: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let scenes = store::make_scenes(folder.path());
        let rows = store::make_rows(folder.path(), count);
        let encoder = model.then(store::encoder);
        let server = Server::start(store::app(folder.path(), encoder, mode, limits)).await;
        World { server, scenes, rows, folder }
    }

    pub(crate) async fn enhance(&self, request: EnhanceRequest) -> proto::EnhanceResponse {
        self.server.cache().enhance(request).await.unwrap().into_inner()
    }

    pub(crate) async fn refused(&self, request: EnhanceRequest) -> Told {
        whole(&self.server.cache().enhance(request).await.unwrap_err())
    }
}

pub(crate) fn exact() -> Option<SearchParams> {
    Some(SearchParams { exact: true, ..SearchParams::default() })
}

pub(crate) fn blend(top_k: u32, temperature: f32, weight: f32) -> Option<BlendParams> {
    Some(BlendParams { top_k: Some(top_k), temperature: Some(temperature), weight: Some(weight) })
}

pub(crate) fn to_rows(vectors: &[Vec<f32>]) -> EnhanceRequest {
    EnhanceRequest {
        cache: ROWS.into(),
        vectors: Some(tensor(vectors)),
        search: exact(),
        return_neighbors: true,
        ..EnhanceRequest::default()
    }
}

pub(crate) fn scale(row: &[f32], factor: f32) -> Vec<f32> {
    row.iter().map(|v| v * factor).collect()
}

pub(crate) fn wide(row: &[f32]) -> Vec<f64> {
    row.iter().map(|&v| f64::from(v)).collect()
}

pub(crate) fn near(received: &[f32], expected: &[f64], limit: f64, what: &str) {
    assert_eq!(received.len(), expected.len(), "{what}");
    for (i, (r, e)) in received.iter().zip(expected).enumerate() {
        assert!((f64::from(*r) - e).abs() <= limit, "{what}[{i}]: expected {e}, received {r}");
    }
}

pub(crate) fn same_answer(row: &[f32], result: &proto::EnhanceResult, expected: &Expected, what: &str) {
    assert_eq!(item(&result.status), ok(), "{what}");
    near(row, &expected.vector, LIMIT, what);
    let ids: Vec<u64> = result.neighbors.iter().map(|n| n.id).collect();
    let wanted: Vec<u64> = expected.neighbors.iter().map(|n| n.0).collect();
    assert_eq!(ids, wanted, "{what}");
    for (received, (id, score, weight)) in result.neighbors.iter().zip(&expected.neighbors) {
        let what = format!("{what}, neighbour {id}");
        near(&[received.score, received.weight], &[*score, *weight], 2e-6, &what);
    }
    let entropy: f64 =
        expected.neighbors.iter().map(|(_, _, w)| if *w > 0.0 { -w * w.ln() } else { 0.0 }).sum();
    near(&[result.entropy, result.max_score], &[entropy, expected.neighbors[0].1], 1e-5, what);
}
