//! The service as a client meets it: real gRPC on a loopback port, a real store, and answers known beforehand.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use half::{bf16, f16};
use tempfile::TempDir;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;
use viscache::cache::{NewCache, RowsMode};
use viscache::flow::Limits;
use viscache::serve::proto::{
    self, BlendParams, Dtype, EmbedOutput, EmbedRequest, EnhanceRequest, GetItemsRequest, SearchParams,
    SearchRequest, Tensor, Variant,
};
use viscache::store::{Access, RowType, Store};
use viscache::types::{Modality, Origin};

use crate::server::{
    Server, Told, bad_argument, image, item, media_part, ok, query, refusal, row_part, rows, tensor, text,
    whole,
};
use crate::store::{
    self, Expected, Item, ROWS, ROWS_DIM, SCENE_COUNT, SCENES, encode, enhanced, mixed, norm, scene, unit,
};

/// Most that a component may be off: sums are taken in f64, results are f32.
const LIMIT: f64 = 1e-6;

/// A server over both caches.
struct World {
    server: Server,
    scenes: Vec<Item>,
    rows: Vec<Item>,
    folder: TempDir,
}

impl World {
    async fn new() -> Self {
        World::with(true, RowsMode::Ram, Limits::default(), 300).await
    }

    async fn with(model: bool, mode: RowsMode, limits: Limits, count: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let scenes = store::make_scenes(folder.path());
        let rows = store::make_rows(folder.path(), count);
        let encoder = model.then(store::encoder);
        let server = Server::start(store::app(folder.path(), encoder, mode, limits)).await;
        World { server, scenes, rows, folder }
    }

    async fn enhance(&self, request: EnhanceRequest) -> proto::EnhanceResponse {
        self.server.cache().enhance(request).await.unwrap().into_inner()
    }

    async fn refused(&self, request: EnhanceRequest) -> Told {
        whole(&self.server.cache().enhance(request).await.unwrap_err())
    }
}

fn exact() -> Option<SearchParams> {
    Some(SearchParams { exact: true, ..SearchParams::default() })
}

fn blend(top_k: u32, temperature: f32, weight: f32) -> Option<BlendParams> {
    Some(BlendParams { top_k: Some(top_k), temperature: Some(temperature), weight: Some(weight) })
}

fn to_rows(vectors: &[Vec<f32>]) -> EnhanceRequest {
    EnhanceRequest {
        cache: ROWS.into(),
        vectors: Some(tensor(vectors)),
        search: exact(),
        return_neighbors: true,
        ..EnhanceRequest::default()
    }
}

fn scale(row: &[f32], factor: f32) -> Vec<f32> {
    row.iter().map(|v| v * factor).collect()
}

fn wide(row: &[f32]) -> Vec<f64> {
    row.iter().map(|&v| f64::from(v)).collect()
}

fn near(received: &[f32], expected: &[f64], limit: f64, what: &str) {
    assert_eq!(received.len(), expected.len(), "{what}");
    for (i, (r, e)) in received.iter().zip(expected).enumerate() {
        assert!((f64::from(*r) - e).abs() <= limit, "{what}[{i}]: expected {e}, received {r}");
    }
}

fn same_answer(row: &[f32], result: &proto::EnhanceResult, expected: &Expected, what: &str) {
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

#[tokio::test(flavor = "multi_thread")]
async fn vectors_of_every_type_become_the_blend_of_their_exact_hits() {
    let world = World::new().await;
    let queries = store::random_rows(5, ROWS_DIM, 11);
    let queries: Vec<Vec<f32>> = queries.iter().map(|row| scale(row, 3.0)).collect();
    let flat = queries.concat();
    let halves: Vec<f16> = flat.iter().map(|&v| f16::from_f32(v)).collect();
    let brains: Vec<bf16> = flat.iter().map(|&v| bf16::from_f32(v)).collect();
    let shape = vec![5, ROWS_DIM as i64];
    let of = |dtype: Dtype, data: Vec<u8>| Tensor {
        dtype: dtype.into(),
        shape: shape.clone(),
        data: data.into(),
        values: vec![],
    };
    let sent: [(&str, Tensor, Vec<f32>); 5] = [
        ("f32", of(Dtype::F32, flat.iter().flat_map(|v| v.to_le_bytes()).collect()), flat.clone()),
        (
            "unspecified",
            of(Dtype::Unspecified, flat.iter().flat_map(|v| v.to_le_bytes()).collect()),
            flat.clone(),
        ),
        (
            "f16",
            of(Dtype::F16, halves.iter().flat_map(|v| v.to_le_bytes()).collect()),
            halves.iter().map(|v| v.to_f32()).collect(),
        ),
        (
            "bf16",
            of(Dtype::Bf16, brains.iter().flat_map(|v| v.to_le_bytes()).collect()),
            brains.iter().map(|v| v.to_f32()).collect(),
        ),
        ("typed", Tensor { shape: shape.clone(), values: flat.clone(), ..Tensor::default() }, flat.clone()),
    ];
    for (name, vectors, meant) in sent {
        for (k, t, w) in [(10, 20.0, 0.5), (1, 20.0, 1.0), (7, 0.0, 0.3), (3, 100.0, 0.0)] {
            let request =
                EnhanceRequest { vectors: Some(vectors.clone()), blend: blend(k, t, w), ..to_rows(&queries) };
            let reply = world.enhance(request).await;
            let answers = rows(&reply.vectors);
            assert_eq!((answers.len(), reply.results.len()), (5, 5));
            for (i, query) in meant.chunks_exact(ROWS_DIM).enumerate() {
                let expected = enhanced(&mixed(&[(query, 1.0)]), &world.rows, k as usize, t.into(), w.into());
                same_answer(
                    &answers[i],
                    &reply.results[i],
                    &expected,
                    &format!("{name} k {k} t {t} w {w} row {i}"),
                );
            }
        }
    }
    // An empty shape with `values` is one embedding.
    let one = Tensor { values: queries[2].clone(), ..Tensor::default() };
    let reply = world.enhance(EnhanceRequest { vectors: Some(one), ..to_rows(&queries) }).await;
    let expected = enhanced(&mixed(&[(&queries[2], 1.0)]), &world.rows, 10, 20.0, 0.5);
    same_answer(&rows(&reply.vectors)[0], &reply.results[0], &expected, "typed without a shape");
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mixed_vectors_are_used_as_they_are() {
    let world = World::new().await;
    let queries: Vec<Vec<f32>> =
        store::random_rows(3, ROWS_DIM, 12).iter().map(|row| scale(row, 0.4)).collect();
    let reply = world.enhance(EnhanceRequest { vectors_are_mixed: true, ..to_rows(&queries) }).await;
    for (i, query) in queries.iter().enumerate() {
        let expected = enhanced(&wide(query), &world.rows, 10, 20.0, 0.5);
        same_answer(&rows(&reply.vectors)[i], &reply.results[i], &expected, &format!("row {i}"));
        let normalised = enhanced(&mixed(&[(query, 1.0)]), &world.rows, 10, 20.0, 0.5);
        let difference =
            norm(&normalised.vector.iter().zip(&expected.vector).map(|(a, b)| a - b).collect::<Vec<_>>());
        assert!(difference > 1e-3, "the two ways must be told apart by this test: {difference}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_texts_and_vectors_are_mixed_by_weight() {
    let world = World::new().await;
    let encoder = store::encoder();
    let (picture, words) = (scene(3), "a red circle");
    let picture_row = encode(&encoder, Modality::Image, &picture).embedding;
    let text_row = encode(&encoder, Modality::Text, words.as_bytes()).embedding;
    let free = store::random_rows(1, encoder.dim(), 13).remove(0);
    let (p, t) = (picture_row.as_slice(), text_row.as_slice());
    let request = EnhanceRequest {
        cache: SCENES.into(),
        queries: vec![
            query(vec![media_part(image(&picture), None)]),
            query(vec![
                media_part(image(&picture), Some(2.0)),
                media_part(text(words), Some(0.5)),
                row_part(&free, Some(1.0)),
            ]),
            query(vec![media_part(text(words), Some(7.0))]),
            query(vec![row_part(&scale(&free, 9.0), None), row_part(t, None)]),
        ],
        blend: blend(5, 20.0, 0.5),
        search: exact(),
        return_neighbors: true,
        ..EnhanceRequest::default()
    };
    let expected = [
        mixed(&[(p, 1.0)]),
        mixed(&[(p, 2.0), (t, 0.5), (&free, 1.0)]),
        mixed(&[(t, 7.0)]),
        mixed(&[(&free, 1.0), (t, 1.0)]),
    ];
    let reply = world.enhance(request).await;
    for (i, query) in expected.iter().enumerate() {
        let expected = enhanced(query, &world.scenes, 5, 20.0, 0.5);
        same_answer(&rows(&reply.vectors)[i], &reply.results[i], &expected, &format!("query {i}"));
    }
    assert_eq!(reply.results[0].neighbors[0].uri, "scenes/0003.png", "a stored picture finds itself");
    let source = reply.source.unwrap();
    assert_eq!((source.cache.as_str(), source.generation, source.model.as_str()), (SCENES, 1, "nano"));
    assert_eq!(source.weights_fingerprint, encoder.origin().weights.unwrap().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_generator_variant_keeps_length() {
    let world = World::new().await;
    let encoder = store::encoder();
    let words = "a blue square";
    let text_row = encode(&encoder, Modality::Text, words.as_bytes()).prenorm;
    let free = scale(&store::random_rows(1, encoder.dim(), 14)[0], 4.0);
    let weights = [1.5, 0.5];
    let sum = 2.0 + 1e-6;
    let mix: Vec<f64> = text_row
        .as_slice()
        .iter()
        .zip(&free)
        .map(|(t, f)| f64::from(*t) * weights[0] / sum + f64::from(*f) * weights[1] / sum)
        .collect();
    let length = norm(&mix);
    let expected = enhanced(&unit(&mix), &world.scenes, 10, 20.0, 0.5);
    let reply = world
        .enhance(EnhanceRequest {
            cache: SCENES.into(),
            queries: vec![query(vec![media_part(text(words), Some(1.5)), row_part(&free, Some(0.5))])],
            search: exact(),
            variant: Variant::ImageGeneration.into(),
            return_neighbors: true,
            ..EnhanceRequest::default()
        })
        .await;
    let long: Vec<f64> = expected.vector.iter().map(|v| v * length).collect();
    near(&rows(&reply.vectors)[0], &long, LIMIT * length.max(1.0), "vector");
    let ids: Vec<u64> = reply.results[0].neighbors.iter().map(|n| n.id).collect();
    assert_eq!(ids, expected.neighbors.iter().map(|n| n.0).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_holds_what_was_asked_for() {
    let world = World::new().await;
    let queries = store::random_rows(2, ROWS_DIM, 15);
    let bare = world.enhance(EnhanceRequest { return_neighbors: false, ..to_rows(&queries) }).await;
    assert!(bare.results.iter().all(|r| r.neighbors.is_empty()));

    let plain = world.enhance(to_rows(&queries)).await;
    for neighbor in &plain.results[0].neighbors {
        assert!(neighbor.embedding.is_none());
        assert_eq!(neighbor.uri, format!("rows/{:04}.png", neighbor.id));
        assert_eq!(neighbor.tags["number"], neighbor.id.to_string());
    }
    assert_eq!(plain.results[0].neighbors.len(), 10, "the default of k");
    assert_eq!(plain.vectors, bare.vectors);
    let said = world.enhance(EnhanceRequest { blend: blend(10, 20.0, 0.5), ..to_rows(&queries) }).await;
    assert_eq!(said.vectors, plain.vectors, "defaults are those of Describe");

    let full = world
        .enhance(EnhanceRequest {
            return_vectors: true,
            output_dtype: Dtype::F16.into(),
            ..to_rows(&queries)
        })
        .await;
    let vectors = full.vectors.clone().unwrap();
    assert_eq!((vectors.dtype(), vectors.shape.clone()), (Dtype::F16, vec![2, ROWS_DIM as i64]));
    assert_eq!(vectors.data.len(), 2 * ROWS_DIM * 2);
    for neighbor in &full.results[1].neighbors {
        let embedding = neighbor.embedding.as_ref().unwrap();
        assert_eq!(embedding.shape, [ROWS_DIM as i64]);
        assert_eq!(
            rows(&Some(embedding.clone()))[0],
            world.rows[neighbor.id as usize].row,
            "rows are stored as f16"
        );
    }
    let more = world.enhance(EnhanceRequest { blend: blend(1000, 20.0, 0.5), ..to_rows(&queries) }).await;
    assert_eq!(more.results[0].neighbors.len(), world.rows.len(), "k beyond the cache is all of it");
    let total: f32 = more.results[0].neighbors.iter().map(|n| n.weight).sum();
    assert!((total - 1.0).abs() < 1e-5, "{total}");
    let fast = world.enhance(EnhanceRequest { search: None, ..to_rows(&queries) }).await;
    let scanned = |cost: proto::Cost| cost.plan() == proto::Plan::Scan && cost.scored_vectors == 300;
    assert!(fast.results.iter().all(|r| scanned(r.cost.unwrap())), "a small cache is scanned on its codes");
    let search = Some(SearchParams { ef_search: Some(2), rescore: Some(2), ..SearchParams::default() });
    let narrow = EnhanceRequest { search, blend: blend(2, 20.0, 0.5), ..to_rows(&queries) };
    let narrow = world.enhance(narrow).await;
    assert!(narrow.results.iter().all(|r| r.cost.unwrap().plan() == proto::Plan::Graph));
    assert!(narrow.results.iter().all(|r| r.cost.unwrap().visited_nodes > 0));
    assert!(fast.results.iter().all(|r| r.cost.unwrap().rescored_vectors > 0));
    assert!(plain.results.iter().all(|r| r.cost.unwrap().scored_vectors == 300));
    assert!(plain.results.iter().all(|r| r.cost.unwrap().rescored_vectors == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_item_fails_alone() {
    let world = World::new().await;
    let mut queries = store::random_rows(5, ROWS_DIM, 16);
    queries[1][7] = f32::NAN;
    queries[2] = vec![0.0; ROWS_DIM];
    queries[3][0] = f32::INFINITY;
    let reply = world.enhance(to_rows(&queries)).await;
    let answers = rows(&reply.vectors);
    assert_eq!(item(&reply.results[1].status), bad_argument("vectors[1]"));
    assert_eq!(item(&reply.results[2].status), refusal(Code::InvalidArgument, "DEGENERATE", "vectors[2]"));
    assert_eq!(item(&reply.results[3].status), bad_argument("vectors[3]"));
    for i in [0, 4] {
        let expected = enhanced(&mixed(&[(&queries[i], 1.0)]), &world.rows, 10, 20.0, 0.5);
        same_answer(&answers[i], &reply.results[i], &expected, &format!("row {i}"));
    }
    for (i, (answer, result)) in answers.iter().zip(&reply.results).enumerate().take(4).skip(1) {
        assert!(answer.iter().all(|&v| v == 0.0) && result.neighbors.is_empty(), "row {i}");
    }

    let row = world.scenes[0].row.clone();
    let opposite = scale(&row, -1.0);
    let good = || query(vec![media_part(image(&scene(1)), None)]);
    let weighed = |weight| query(vec![row_part(&row, None), row_part(&row, Some(weight))]);
    let two_rows = proto::Part {
        content: Some(proto::part::Content::Embedding(tensor(&[row.clone(), row.clone()]))),
        weight: None,
    };
    let crooked = Tensor { shape: vec![3], data: vec![0u8; 16].into(), ..Tensor::default() };
    let crooked = proto::Part { content: Some(proto::part::Content::Embedding(crooked)), weight: None };
    let cases: Vec<(proto::Query, Told)> = vec![
        (query(vec![]), bad_argument("queries[0].parts")),
        (
            query(vec![media_part(image(b"this is no picture"), None)]),
            refusal(Code::InvalidArgument, "BAD_MEDIA", "queries[1].parts[0].media"),
        ),
        (
            query(vec![media_part(image(b""), None)]),
            refusal(Code::InvalidArgument, "BAD_MEDIA", "queries[2].parts[0].media"),
        ),
        (query(vec![proto::Part::default()]), bad_argument("queries[3].parts[0]")),
        (
            query(vec![row_part(&row, None), media_part(proto::Media::default(), None)]),
            bad_argument("queries[4].parts[1].media"),
        ),
        (weighed(0.0), bad_argument("queries[5].parts[1].weight")),
        (weighed(-1.0), bad_argument("queries[6].parts[1].weight")),
        (weighed(f64::NAN), bad_argument("queries[7].parts[1].weight")),
        (query(vec![two_rows]), bad_argument("queries[8].parts[0].embedding")),
        (query(vec![crooked]), bad_argument("queries[9].parts[0].embedding")),
        (query(vec![row_part(&[f32::NAN], None)]), bad_argument("queries[10].parts[0].embedding")),
        (
            query(vec![row_part(&vec![0.0; row.len()], None)]),
            refusal(Code::InvalidArgument, "DEGENERATE", "queries[11]"),
        ),
        (
            query(vec![row_part(&row, None), row_part(&opposite, None)]),
            refusal(Code::InvalidArgument, "DEGENERATE", "queries[12]"),
        ),
        (query(vec![row_part(&row[1..], None)]), bad_argument("queries[13]")),
        (query(vec![row_part(&row, None); 17]), bad_argument("queries[14].parts")),
        (
            query(vec![media_part(text(&"x".repeat(70_000)), None)]),
            bad_argument("queries[15].parts[0].media.text"),
        ),
        (good(), ok()),
    ];
    let (queries, told): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    let request =
        EnhanceRequest { cache: SCENES.into(), queries, search: exact(), ..EnhanceRequest::default() };
    let reply = world.enhance(request).await;
    for (i, (result, told)) in reply.results.iter().zip(&told).enumerate() {
        let received = item(&result.status);
        assert_eq!(received, *told, "query {i}: {:?}", result.status);
        let zero = rows(&reply.vectors)[i].iter().all(|&v| v == 0.0);
        assert_eq!(zero, told.code != Code::Ok, "query {i}");
    }
    assert!(
        reply.results.iter().zip(&told).filter(|(_, t)| t.code != Code::Ok).all(|(r, _)| !r
            .status
            .as_ref()
            .unwrap()
            .message
            .is_empty())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_is_refused_as_a_whole() {
    let world = World::new().await;
    let queries = store::random_rows(2, ROWS_DIM, 17);
    let good = || to_rows(&queries);
    let search = |ef, rescore| Some(SearchParams { ef_search: ef, rescore, ..SearchParams::default() });
    let broken =
        |shape: Vec<i64>, bytes| Some(Tensor { shape, data: vec![1u8; bytes].into(), ..Tensor::default() });
    let both = Tensor { values: vec![1.0], ..tensor(&queries) };
    let cases: Vec<(EnhanceRequest, Told)> = vec![
        (
            EnhanceRequest { cache: "nowhere".into(), ..good() },
            refusal(Code::NotFound, "CACHE_NOT_FOUND", ""),
        ),
        (EnhanceRequest { cache: String::new(), ..good() }, refusal(Code::NotFound, "CACHE_NOT_FOUND", "")),
        (
            EnhanceRequest { queries: vec![query(vec![row_part(&queries[0], None)])], ..good() },
            bad_argument("queries"),
        ),
        (EnhanceRequest { vectors: None, ..good() }, bad_argument("vectors")),
        (EnhanceRequest { vectors: Some(Tensor::default()), ..good() }, bad_argument("vectors")),
        (EnhanceRequest { vectors: Some(both), ..good() }, bad_argument("vectors")),
        (EnhanceRequest { vectors: broken(vec![2, 32], 255), ..good() }, bad_argument("vectors")),
        (EnhanceRequest { vectors: broken(vec![3, 32], 256), ..good() }, bad_argument("vectors")),
        (
            EnhanceRequest { vectors: broken(vec![i64::MAX, i64::MAX], 256), ..good() },
            bad_argument("vectors"),
        ),
        (EnhanceRequest { vectors: broken(vec![-2, -32], 256), ..good() }, bad_argument("vectors")),
        (EnhanceRequest { vectors: broken(vec![1, 2, 32], 256), ..good() }, bad_argument("vectors")),
        (
            EnhanceRequest { vectors: Some(Tensor { dtype: 77, ..tensor(&queries) }), ..good() },
            bad_argument("vectors"),
        ),
        (EnhanceRequest { blend: blend(0, 20.0, 0.5), ..good() }, bad_argument("blend.top_k")),
        (EnhanceRequest { blend: blend(1001, 20.0, 0.5), ..good() }, bad_argument("blend.top_k")),
        (EnhanceRequest { blend: blend(10, -1.0, 0.5), ..good() }, bad_argument("blend.temperature")),
        (EnhanceRequest { blend: blend(10, f32::NAN, 0.5), ..good() }, bad_argument("blend.temperature")),
        (EnhanceRequest { blend: blend(10, 20.0, 1.5), ..good() }, bad_argument("blend.weight")),
        (EnhanceRequest { blend: blend(10, 20.0, f32::NAN), ..good() }, bad_argument("blend.weight")),
        (EnhanceRequest { search: search(Some(0), None), ..good() }, bad_argument("search.ef_search")),
        (EnhanceRequest { search: search(Some(16_385), None), ..good() }, bad_argument("search.ef_search")),
        (EnhanceRequest { search: search(None, Some(0)), ..good() }, bad_argument("search.rescore")),
        (EnhanceRequest { variant: 9, ..good() }, bad_argument("variant")),
        (EnhanceRequest { output_dtype: -4, ..good() }, bad_argument("output_dtype")),
        (
            EnhanceRequest { expected_weights_fingerprint: "ab".repeat(32), ..good() },
            refusal(Code::FailedPrecondition, "FINGERPRINT_MISMATCH", ""),
        ),
    ];
    for (i, (request, told)) in cases.into_iter().enumerate() {
        assert_eq!(world.refused(request).await, told, "case {i}");
    }
    let fits = store::encoder().origin().weights.unwrap().to_string();
    let row = world.scenes[0].row.clone();
    world
        .enhance(EnhanceRequest {
            cache: SCENES.into(),
            expected_weights_fingerprint: fits,
            ..to_rows(&[row])
        })
        .await;

    let narrow = world.enhance(to_rows(&[vec![1.0; 5], vec![2.0; 5]])).await;
    for result in narrow.results {
        let told = item(&result.status);
        assert_eq!((told.code, told.reason.as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
        assert!(result.status.unwrap().message.contains("32"), "the length that is needed is named");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn search_returns_the_nearest_items() {
    let world = World::new().await;
    let queries = store::random_rows(3, ROWS_DIM, 18);
    let request = SearchRequest {
        cache: ROWS.into(),
        vectors: Some(tensor(&queries)),
        top_k: Some(7),
        search: exact(),
        return_vectors: true,
        ..SearchRequest::default()
    };
    let reply = world.server.cache().search(request.clone()).await.unwrap().into_inner();
    for (query, result) in queries.iter().zip(&reply.results) {
        let expected = enhanced(&wide(query), &world.rows, 7, 1.0, 0.5);
        assert_eq!(result.neighbors.len(), 7);
        for (neighbor, (id, score, _)) in result.neighbors.iter().zip(&expected.neighbors) {
            assert_eq!((neighbor.id, neighbor.weight), (*id, 0.0));
            near(&[neighbor.score], &[*score], LIMIT, "score");
            assert_eq!(rows(&neighbor.embedding)[0], world.rows[*id as usize].row);
        }
    }
    let parts = SearchRequest {
        vectors: None,
        queries: vec![
            query(vec![row_part(&scale(&queries[0], 5.0), None), row_part(&queries[1], Some(2.0))]),
            query(vec![]),
        ],
        top_k: None,
        ..request.clone()
    };
    let reply = world.server.cache().search(parts).await.unwrap().into_inner();
    let expected = enhanced(&mixed(&[(&queries[0], 1.0), (&queries[1], 2.0)]), &world.rows, 10, 1.0, 0.5);
    let ids: Vec<u64> = reply.results[0].neighbors.iter().map(|n| n.id).collect();
    assert_eq!(ids, expected.neighbors.iter().map(|n| n.0).collect::<Vec<_>>());
    assert_eq!(item(&reply.results[1].status), bad_argument("queries[1].parts"));
    for (top_k, told) in [(0, bad_argument("top_k")), (1001, bad_argument("top_k"))] {
        let refused =
            world.server.cache().search(SearchRequest { top_k: Some(top_k), ..request.clone() }).await;
        assert_eq!(whole(&refused.unwrap_err()), told);
    }
    // As it is: a longer query scores higher.
    let long = SearchRequest { vectors: Some(tensor(&[scale(&queries[0], 2.0)])), ..request };
    let reply = world.server.cache().search(long).await.unwrap().into_inner();
    let expected = enhanced(&wide(&queries[0]), &world.rows, 1, 1.0, 0.5);
    near(&[reply.results[0].neighbors[0].score], &[2.0 * expected.neighbors[0].1], 2.0 * LIMIT, "score");
}

#[tokio::test(flavor = "multi_thread")]
async fn items_are_read_by_id() {
    let world = World::new().await;
    let request = GetItemsRequest { cache: SCENES.into(), ids: vec![3, 9_999, 0, 3], return_vectors: true };
    let reply = world.server.cache().get_items(request.clone()).await.unwrap().into_inner();
    let ids: Vec<u64> = reply.items.iter().map(|i| i.id).collect();
    assert_eq!(ids, [3, 9_999, 0, 3]);
    assert_eq!(item(&reply.items[1].status), refusal(Code::NotFound, "ITEM_NOT_FOUND", ""));
    for (i, id) in [(0, 3usize), (2, 0), (3, 3)] {
        let found = &reply.items[i];
        assert_eq!(item(&found.status), ok());
        assert_eq!((&found.uri, found.modality()), (&world.scenes[id].uri, proto::Modality::Image));
        assert_eq!(found.embedding.as_ref().unwrap().shape, [128]);
        assert_eq!(rows(&found.embedding)[0], world.scenes[id].row);
        assert_eq!((found.digest.len(), found.tags["number"].clone()), (64, id.to_string()));
    }
    let bare = GetItemsRequest { return_vectors: false, ..request };
    let reply = world.server.cache().get_items(bare).await.unwrap().into_inner();
    assert!(reply.items.iter().all(|i| i.embedding.is_none()));
    let none =
        world.server.cache().get_items(GetItemsRequest { cache: ROWS.into(), ..Default::default() }).await;
    assert_eq!(whole(&none.unwrap_err()), bad_argument("ids"));
}

#[tokio::test(flavor = "multi_thread")]
async fn describe_tells_what_there_is_and_every_limit() {
    let limits = Limits {
        max_batch: 123,
        max_parts: 5,
        max_concurrent: 9,
        max_message_bytes: 3 << 20,
        ..Limits::default()
    };
    let world = World::with(true, RowsMode::Disk, limits, 300).await;
    let request = proto::DescribeRequest { cache: SCENES.into() };
    let told = world.server.cache().describe(request).await.unwrap().into_inner();
    let (encoder, source) = (store::encoder(), told.source.unwrap());
    let weights = encoder.origin().weights.unwrap().to_string();
    assert_eq!(
        (source.cache.as_str(), source.generation, &source.weights_fingerprint),
        (SCENES, 1, &weights)
    );
    assert_eq!((told.dim, told.items), (128, SCENE_COUNT as u64));
    assert_eq!((told.row_dtype, told.codes.as_str(), told.rows_in_memory), (Dtype::F32.into(), "u4", false));
    assert!(
        told.memory_bytes > 0 && !told.kernels.is_empty() && told.server_version == env!("CARGO_PKG_VERSION")
    );
    let points = vec![proto::Recall { ef_search: 96, recall_at_10: 1.0 }];
    assert_eq!(told.recall, points);
    assert_eq!(told.recall_curves, [proto::RecallCurve { kind: "image".into(), points, margins: vec![] }]);
    assert_eq!((told.live_recall, told.recall_sampling_rate), (vec![], 0.0));
    assert_eq!(told.default_blend, blend(10, 20.0, 0.5));
    assert_eq!(
        told.default_search,
        Some(SearchParams { ef_search: Some(96), rescore: Some(40), ..SearchParams::default() })
    );
    let configured = proto::Limits {
        max_message_bytes: 3 << 20,
        max_batch: 123,
        max_parts: 5,
        max_top_k: 1000,
        max_ef_search: 16_384,
        max_image_bytes: limits.media.image.max_bytes as u64,
        max_image_side: limits.media.image.max_side,
        max_image_pixels: limits.media.image.max_pixels,
        max_text_bytes: limits.max_text_bytes() as u32,
        max_concurrent_requests: 9,
        max_filter_depth: 16,
        max_filter_conditions: 256,
        max_filter_values: 65_536,
        max_audio_bytes: 64 << 20,
        max_audio_seconds: 600,
        max_video_bytes: 256 << 20,
        max_video_seconds: 3600,
        max_video_pixels: 4096 * 2304,
        max_table_bytes: 64 << 20,
        max_points: 2_000_000,
    };
    assert_eq!(told.limits, Some(configured));
    let model = told.model.unwrap();
    assert_eq!((model.name.as_str(), model.dim, &model.weights_fingerprint), ("nano", 128, &weights));
    let modalities =
        [proto::Modality::Image, proto::Modality::Text, proto::Modality::Video, proto::Modality::Audio];
    assert_eq!(model.modalities, modalities.map(i32::from));
    let stats = world.server.admin().stats(proto::StatsRequest {}).await.unwrap().into_inner();
    assert_eq!(stats.limits, Some(configured));
}

#[tokio::test(flavor = "multi_thread")]
async fn embed_gives_each_of_the_models_vectors() {
    let world = World::new().await;
    let encoder = store::encoder();
    let inputs = vec![
        image(&scene(2)),
        text("a green disc"),
        image(b"GIF89a broken"),
        proto::Media::default(),
        text(""),
    ];
    let known =
        [encode(&encoder, Modality::Image, &scene(2)), encode(&encoder, Modality::Text, b"a green disc")];
    for output in [EmbedOutput::Unspecified, EmbedOutput::Unit, EmbedOutput::Model, EmbedOutput::Prenorm] {
        let request =
            EmbedRequest { inputs: inputs.clone(), output: output.into(), ..EmbedRequest::default() };
        let reply = world.server.embed().embed(request).await.unwrap().into_inner();
        let answers = rows(&reply.vectors);
        assert_eq!((answers.len(), reply.results.len()), (5, 5));
        for (i, encoded) in known.iter().enumerate() {
            let expected = match output {
                EmbedOutput::Model => encoded.embedding.clone(),
                EmbedOutput::Prenorm => encoded.prenorm.clone(),
                _ => encoded.embedding.unit().unwrap(),
            };
            assert_eq!(answers[i], expected.as_slice(), "{output:?} {i}");
            assert_eq!(item(&reply.results[i].status), ok());
        }
        let broken = item(&reply.results[2].status);
        assert_eq!((broken.code, broken.reason.as_str()), (Code::InvalidArgument, "BAD_MEDIA"));
        assert_eq!(item(&reply.results[3].status), bad_argument("inputs[3]"));
        assert!(answers[2].iter().chain(&answers[3]).all(|&v| v == 0.0));
        let model = reply.model.unwrap();
        assert_eq!((model.name.as_str(), model.dim), ("nano", 128));
    }
    for (request, field) in [
        (EmbedRequest::default(), "inputs"),
        (EmbedRequest { inputs: inputs.clone(), output: 8, ..Default::default() }, "output"),
        (EmbedRequest { inputs, output_dtype: 8, ..Default::default() }, "output_dtype"),
    ] {
        assert_eq!(whole(&world.server.embed().embed(request).await.unwrap_err()), bad_argument(field));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_model_vectors_are_answered_and_media_refused() {
    let world = World::with(false, RowsMode::Ram, Limits::default(), 50).await;
    let row = world.scenes[0].row.clone();
    let reply =
        world.enhance(EnhanceRequest { cache: SCENES.into(), ..to_rows(std::slice::from_ref(&row)) }).await;
    same_answer(
        &rows(&reply.vectors)[0],
        &reply.results[0],
        &enhanced(&mixed(&[(&row, 1.0)]), &world.scenes, 10, 20.0, 0.5),
        "vectors",
    );
    let told = refusal(Code::FailedPrecondition, "MODEL_NOT_LOADED", "");
    let queries = vec![query(vec![media_part(text("a red circle"), None)])];
    let request =
        EnhanceRequest { cache: SCENES.into(), queries: queries.clone(), ..EnhanceRequest::default() };
    assert_eq!(world.refused(request).await, told);
    let request = SearchRequest { cache: SCENES.into(), queries, ..SearchRequest::default() };
    assert_eq!(whole(&world.server.cache().search(request).await.unwrap_err()), told);
    let request = EmbedRequest { inputs: vec![image(&scene(0))], ..EmbedRequest::default() };
    assert_eq!(whole(&world.server.embed().embed(request).await.unwrap_err()), told);
    let described =
        world.server.cache().describe(proto::DescribeRequest { cache: SCENES.into() }).await.unwrap();
    assert_eq!(described.into_inner().model, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_keep_order_and_survive_a_bad_request() {
    let world = World::new().await;
    let queries = store::random_rows(6, ROWS_DIM, 19);
    let requests = queries.iter().enumerate().map(|(i, query)| proto::EnhanceStreamRequest {
        tag: 100 - i as u64,
        request: match i {
            2 => Some(EnhanceRequest { cache: "nowhere".into(), ..to_rows(&queries[..1]) }),
            4 => None,
            _ => Some(to_rows(std::slice::from_ref(query))),
        },
    });
    let stream = tokio_stream::iter(requests.collect::<Vec<_>>());
    let replies = world.server.cache().enhance_stream(stream).await.unwrap().into_inner();
    let replies: Vec<_> = replies.map(Result::unwrap).collect().await;
    assert_eq!(replies.iter().map(|r| r.tag).collect::<Vec<_>>(), [100, 99, 98, 97, 96, 95]);
    for (i, reply) in replies.iter().enumerate() {
        match i {
            2 => assert_eq!(item(&reply.status), refusal(Code::NotFound, "CACHE_NOT_FOUND", "")),
            4 => assert_eq!(item(&reply.status), bad_argument("vectors")),
            _ => {
                assert_eq!(item(&reply.status), ok());
                let alone = world.enhance(to_rows(&queries[i..=i])).await;
                assert_eq!(reply.response.as_ref().unwrap().vectors, alone.vectors, "request {i}");
            }
        }
        assert_eq!(reply.response.is_none(), i == 2 || i == 4);
    }

    let requests = (0..5).map(|i| proto::EmbedStreamRequest {
        tag: i,
        request: (i != 3)
            .then(|| EmbedRequest { inputs: vec![image(&scene(i as usize))], ..Default::default() }),
    });
    let stream = tokio_stream::iter(requests.collect::<Vec<_>>());
    let replies = world.server.embed().embed_stream(stream).await.unwrap().into_inner();
    let replies: Vec<_> = replies.map(Result::unwrap).collect().await;
    assert_eq!(replies.iter().map(|r| r.tag).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    for (i, reply) in replies.iter().enumerate() {
        if i == 3 {
            assert_eq!(item(&reply.status), bad_argument("inputs"));
            continue;
        }
        let vectors = &reply.response.as_ref().unwrap().vectors;
        near(&rows(vectors)[0], &wide(&world.scenes[i].row), LIMIT, "the stored row");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_are_listed_and_calls_counted() {
    let world = World::new().await;
    let queries = store::random_rows(3, ROWS_DIM, 20);
    let mut bad = queries.clone();
    bad[1][0] = f32::NAN;
    world.enhance(to_rows(&queries)).await;
    world.enhance(to_rows(&bad)).await;
    world.refused(EnhanceRequest { cache: "nowhere".into(), ..to_rows(&queries) }).await;
    let request = GetItemsRequest { cache: ROWS.into(), ids: vec![1, 999_999], return_vectors: false };
    world.server.cache().get_items(request).await.unwrap();
    let listed =
        world.server.admin().list_caches(proto::ListCachesRequest {}).await.unwrap().into_inner().caches;
    let names: Vec<&str> = listed.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, [ROWS, SCENES], "by name");
    let scenes = proto::CacheSummary {
        name: SCENES.into(),
        dim: 128,
        items: SCENE_COUNT as u64,
        generations: vec![1],
        current_generation: 1,
        served_generation: 1,
        model: "nano".into(),
        problem: String::new(),
    };
    assert_eq!(listed[1], scenes);
    let stats = world.server.admin().stats(proto::StatsRequest {}).await.unwrap().into_inner();
    let count = |name: &str| {
        let m =
            stats.methods.iter().find(|m| m.method == name).unwrap_or_else(|| panic!("{name} is counted"));
        (m.calls, m.errors, m.items, m.item_errors)
    };
    assert_eq!(count("viscache.v1.CacheService/Enhance"), (3, 1, 6, 1));
    assert_eq!(count("viscache.v1.CacheService/GetItems"), (1, 0, 2, 1));
    assert_eq!(count("viscache.v1.AdminService/ListCaches"), (1, 0, 2, 0));
    assert_eq!(stats.in_flight, 0);
    assert!(stats.uptime_seconds > 0.0);
}

fn import() -> NewCache {
    let origin = Origin::of("import");
    NewCache { dim: ROWS_DIM, rows: RowType::F16, origin, model: None }
}

fn grow(folder: &Path, seed: u64) {
    store::add(folder, ROWS, &import(), store::random_rows(100, ROWS_DIM, seed), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_are_switched_under_load_without_a_failure() {
    for mode in [RowsMode::Ram, RowsMode::Disk] {
        let world = World::with(false, mode, Limits::default(), 200).await;
        let mut admin = world.server.admin();
        let again = admin.reload(proto::ReloadRequest { cache: ROWS.into() }).await.unwrap().into_inner();
        assert_eq!((again.generation, again.changed), (1, false));

        let stop = Arc::new(AtomicBool::new(false));
        let load: Vec<_> = (0..3)
            .map(|i| {
                let (mut client, stop) = (world.server.cache(), stop.clone());
                let request = EnhanceRequest {
                    search: if i == 0 { exact() } else { None },
                    ..to_rows(&store::random_rows(4, ROWS_DIM, 21 + i))
                };
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let reply = client.enhance(request.clone()).await.unwrap().into_inner();
                        assert!(reply.results.iter().all(|r| item(&r.status) == ok()), "{reply:?}");
                        seen.push(reply.source.unwrap().generation);
                    }
                    seen
                })
            })
            .collect();
        let folder = world.folder.path().to_owned();
        tokio::task::spawn_blocking(move || grow(&folder, 30)).await.unwrap();
        let switched = admin.reload(proto::ReloadRequest { cache: ROWS.into() }).await.unwrap().into_inner();
        assert_eq!((switched.generation, switched.changed), (2, true));
        let described =
            world.server.cache().describe(proto::DescribeRequest { cache: ROWS.into() }).await.unwrap();
        assert_eq!(described.into_inner().items, 300);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let back = admin.publish(proto::PublishRequest { cache: ROWS.into(), generation: 1 }).await.unwrap();
        assert_eq!(back.into_inner().generation, 1);
        let listed = admin.list_caches(proto::ListCachesRequest {}).await.unwrap().into_inner().caches;
        let rows = listed.iter().find(|c| c.name == ROWS).unwrap();
        assert_eq!(
            (&rows.generations[..], rows.current_generation, rows.served_generation),
            (&[1, 2][..], 1, 1)
        );
        assert_eq!(rows.items, 300, "stored, indexed or not");
        tokio::time::sleep(Duration::from_millis(50)).await;
        stop.store(true, Ordering::Relaxed);
        for task in load {
            let seen = task.await.unwrap();
            assert!(seen.contains(&2) && seen.last() == Some(&1), "both generations answered: {seen:?}");
        }
        let missing =
            admin.publish(proto::PublishRequest { cache: ROWS.into(), generation: 99 }).await.unwrap_err();
        assert_eq!(whole(&missing), refusal(Code::NotFound, "GENERATION_NOT_FOUND", ""));
        let unknown = admin.reload(proto::ReloadRequest { cache: "nowhere".into() }).await.unwrap_err();
        assert_eq!(whole(&unknown), refusal(Code::NotFound, "CACHE_NOT_FOUND", ""));

        let builder = Store::open(world.folder.path(), Access::Write).unwrap();
        let locked =
            admin.publish(proto::PublishRequest { cache: ROWS.into(), generation: 2 }).await.unwrap_err();
        assert_eq!(whole(&locked), refusal(Code::Unavailable, "STORE_LOCKED", ""));
        assert!(locked.get_details_retry_info().unwrap().retry_delay.is_some());
        drop(builder);
        let forth = admin.publish(proto::PublishRequest { cache: ROWS.into(), generation: 2 }).await.unwrap();
        assert_eq!(forth.into_inner().generation, 2);
        world.server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_say_what_is_served() {
    let services = ["viscache.v1.CacheService", "viscache.v1.EmbedService", "viscache.v1.AdminService"];
    for model in [true, false] {
        let mut world = World::with(model, RowsMode::Ram, Limits::default(), 50).await;
        let mut health = HealthClient::new(world.server.channel.clone());
        let of = |service: &str| HealthCheckRequest { service: service.into() };
        for service in [""].into_iter().chain(services) {
            let wanted = match service {
                "viscache.v1.EmbedService" if !model => ServingStatus::NotServing,
                _ => ServingStatus::Serving,
            };
            assert_eq!(health.check(of(service)).await.unwrap().into_inner().status(), wanted, "{service}");
        }
        assert_eq!(health.check(of("other")).await.unwrap_err().code(), Code::NotFound);

        use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
        let ask = tonic_reflection::pb::v1::ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        let mut reflection = ServerReflectionClient::new(world.server.channel.clone());
        let answers = reflection.server_reflection_info(tokio_stream::once(ask)).await.unwrap();
        let answer = answers.into_inner().next().await.unwrap().unwrap();
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("{answer:?}")
        };
        let names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
        assert!(services.iter().all(|s| names.iter().any(|n| n == s)), "{names:?}");

        let mut watch = health.watch(of("viscache.v1.CacheService")).await.unwrap().into_inner();
        assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
        world.server.begin_stop();
        let told =
            tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(told.status(), ServingStatus::NotServing, "a drain is announced");
        drop((watch, health, reflection));
        world.server.ended().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_does_not_depend_on_its_batch() {
    let world = World::new().await;
    let queries = store::random_rows(9, ROWS_DIM, 40);
    for search in [None, exact()] {
        let request = |rows: &[Vec<f32>]| EnhanceRequest { search: search.clone(), ..to_rows(rows) };
        let together = world.enhance(request(&queries)).await;
        let all = rows(&together.vectors);
        for i in 0..queries.len() {
            let alone = world.enhance(request(&queries[i..=i])).await;
            assert_eq!(rows(&alone.vectors)[0], all[i], "row {i}");
            assert_eq!(alone.results[0].neighbors, together.results[i].neighbors, "row {i}");
        }
    }
    let part = |i: usize| {
        query(vec![media_part(image(&scene(i)), None), media_part(text("a red square"), Some(0.5))])
    };
    let request = |queries| EnhanceRequest { cache: SCENES.into(), queries, ..EnhanceRequest::default() };
    let mut queries: Vec<_> = (0..6).map(part).collect();
    queries[3].parts[0] = media_part(image(b"broken"), None);
    let together = rows(&world.enhance(request(queries)).await.vectors);
    for i in [0, 1, 2, 4, 5] {
        assert_eq!(rows(&world.enhance(request(vec![part(i)])).await.vectors)[0], together[i], "query {i}");
    }
}
