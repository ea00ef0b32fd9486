//! A classifier's features over gRPC: pictures embedded and searched in a cache of them, and nothing else taken.

use tempfile::TempDir;
use tonic::Code;
use viscache::cache::{NewCache, RowsMode};
use viscache::flow::Limits;
use viscache::models::encoder::{Encoder, EncoderOptions, Network};
use viscache::serve::proto::{EmbedOutput, EmbedRequest, EnhanceRequest, SearchRequest};
use viscache::store::{ModelSource, RowType};
use viscache::types::Modality;

use crate::classifier;
use crate::server::{Server, image, item, media_part, ok, query, rows, text, whole};
use crate::store::{self, SCENE_COUNT, SCENES, encode, scene};
use crate::world::{LIMIT, near, wide};

const FEATURES: &str = "features";

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_embedded_and_found_and_others_refused() {
    let folder = TempDir::new().unwrap();
    let weights = folder.path().join("small.safetensors");
    classifier::write(&weights, &classifier::small(6));
    let open = || {
        Encoder::open(&EncoderOptions {
            network: Network::Illama(None),
            weights: Some(weights.clone()),
            sizes: None,
            modalities: None,
            device: Default::default(),
            dtype: None,
            threads: 2,
            orientation: Default::default(),
            limits: Limits::default().media,
        })
        .unwrap()
    };
    let encoder = open();
    let path = folder.path().join("store");
    store::make_scenes(&path);
    let new = NewCache {
        dim: encoder.dim(),
        rows: RowType::F32,
        origin: encoder.origin().clone(),
        model: Some(ModelSource {
            network: Some("illama".into()),
            weights: Some(weights.clone()),
            ..Default::default()
        }),
    };
    let embed = |i| encode(&encoder, Modality::Image, &scene(i)).embedding.into_vec();
    let items =
        store::add(&path, FEATURES, &new, (0..SCENE_COUNT).map(embed).collect(), Some(Modality::Image));
    let server = Server::start(store::app(&path, Some(open()), RowsMode::Ram, Limits::default())).await;

    // As the model has it, of any length; or unit.
    for (output, length) in
        [(EmbedOutput::Model, None), (EmbedOutput::Prenorm, None), (EmbedOutput::Unit, Some(1.0))]
    {
        let inputs = vec![image(&scene(3)), text("a cat"), image(b"no picture")];
        let request = EmbedRequest { inputs, output: output.into(), ..EmbedRequest::default() };
        let reply = server.embed().embed(request).await.unwrap().into_inner();
        let told: Vec<_> = reply.results.iter().map(|result| item(&result.status)).collect();
        assert_eq!((&told[0], told[2].reason.as_str()), (&ok(), "BAD_MEDIA"));
        assert_eq!((told[1].code, told[1].reason.as_str()), (Code::InvalidArgument, "BAD_MEDIA"));
        let said = &reply.results[1].status.as_ref().unwrap().message;
        assert!(said.contains("without text"), "{said}");
        let own = embed(3);
        let norm = own.iter().map(|v| v * v).sum::<f32>().sqrt();
        let scaled: Vec<f32> =
            own.iter().map(|v| v * length.map_or(1.0, |length: f32| length / norm)).collect();
        assert!((norm - 1.0).abs() > 0.1, "a feature is not unit, so that the outputs differ: {norm}");
        near(&rows(&reply.vectors)[0], &wide(&scaled), LIMIT * 10.0, "features");
    }
    for i in [0, 5, 17] {
        let queries = vec![query(vec![media_part(image(&scene(i)), None)])];
        let request =
            SearchRequest { cache: FEATURES.into(), queries: queries.clone(), ..SearchRequest::default() };
        let found = server.cache().search(request).await.unwrap().into_inner();
        let best = &found.results[0].neighbors[0];
        assert!((best.score - 1.0).abs() < 1e-4, "{best:?}");
        let own: f32 = items[i].row.iter().zip(&items[best.id as usize].row).map(|(a, b)| a * b).sum();
        assert!(own > 1.0 - 1e-4, "the picture itself, or one that looks the same to it: {best:?}");
        let request = EnhanceRequest { cache: FEATURES.into(), queries, ..EnhanceRequest::default() };
        let enhanced = server.cache().enhance(request).await.unwrap().into_inner();
        assert_eq!(rows(&enhanced.vectors)[0].len(), 64);
    }
    // The cache of another model is not served with it.
    let queries = vec![query(vec![media_part(image(&scene(0)), None)])];
    let request = SearchRequest { cache: SCENES.into(), queries, ..SearchRequest::default() };
    let refused = server.cache().search(request).await.unwrap_err();
    assert!(refused.message().contains("model weights differ"), "{:?} {refused:?}", whole(&refused));
    server.stop().await;
}
