//! What is refused, whole or item by item, and how it is said.

use tonic::Code;
use viscache::cache::RowsMode;
use viscache::flow::Limits;
use viscache::serve::proto::{self, EmbedRequest, EnhanceRequest, SearchParams, SearchRequest, Tensor};

use crate::server::{
    Told, bad_argument, image, item, media_part, ok, query, refusal, row_part, rows, tensor, text, whole,
};
use crate::store::{self, ROWS_DIM, SCENES, enhanced, mixed, scene};
use crate::world::{World, blend, exact, same_answer, scale, to_rows};

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
