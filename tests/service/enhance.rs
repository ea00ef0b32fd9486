//! What becomes of vectors, pictures and texts that are enhanced.

use half::{bf16, f16};
use viscache::serve::proto::{self, Dtype, EnhanceRequest, SearchParams, Tensor, Variant};
use viscache::types::Modality;

use crate::server::{image, media_part, query, row_part, rows, text};
use crate::store::{self, ROWS_DIM, SCENES, encode, enhanced, mixed, norm, scene, unit};
use crate::world::{LIMIT, World, blend, exact, near, same_answer, scale, to_rows, wide};

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
