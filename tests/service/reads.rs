//! Search, items, embeddings, and what the service says of itself.

use tonic::Code;
use viscache::cache::RowsMode;
use viscache::flow::Limits;
use viscache::serve::proto::{
    self, Dtype, EmbedOutput, EmbedRequest, EnhanceRequest, GetItemsRequest, SearchParams, SearchRequest,
};
use viscache::types::Modality;

use crate::server::{bad_argument, image, item, ok, query, refusal, row_part, rows, tensor, text, whole};
use crate::store::{self, ROWS, ROWS_DIM, SCENE_COUNT, SCENES, encode, enhanced, mixed, scene};
use crate::world::{LIMIT, World, blend, exact, near, scale, to_rows, wide};

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
    let [curve] = &told.recall_curves[..] else { panic!("{:?}", told.recall_curves) };
    assert_eq!((curve.kind.as_str(), &curve.points, curve.ways.len()), ("image", &points, 0));
    assert_eq!((told.live_recall, told.recall_sampling_rate), (vec![], 0.0));
    assert_eq!(told.default_blend, blend(10, 20.0, 0.5));
    // Of queries that nothing is known of.
    assert_eq!(
        told.default_search,
        Some(SearchParams { ef_search: Some(160), rescore: Some(40), ..SearchParams::default() })
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
        max_caches: 4096,
        max_streams: 1024,
        max_connections: 1024,
        max_request_memory_bytes: 2 << 30,
        max_answer_memory_bytes: 0,
        stall_seconds: 30,
        idle_seconds: 3600,
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
        aliases: vec![],
        row_dtype: proto::Dtype::F32.into(),
        served: true,
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
