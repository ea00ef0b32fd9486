//! A service that runs on: streams, new generations under load, health.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;
use viscache::cache::{NewCache, RowsMode};
use viscache::flow::Limits;
use viscache::serve::proto::{self, EmbedRequest, EnhanceRequest};
use viscache::store::{Access, RowType, Store};
use viscache::types::Origin;

use crate::server::{bad_argument, image, item, ok, refusal, rows, whole};
use crate::store::{self, ROWS, ROWS_DIM, scene};
use crate::world::{LIMIT, World, exact, near, to_rows, wide};

fn import() -> NewCache {
    let origin = Origin::of("import");
    NewCache { dim: ROWS_DIM, rows: RowType::F16, origin, model: None }
}

fn grow(folder: &Path, seed: u64) {
    store::add(folder, ROWS, &import(), store::random_rows(100, ROWS_DIM, seed), None);
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
async fn generations_are_switched_under_load_without_a_failure() {
    for mode in [RowsMode::Ram, RowsMode::Disk] {
        let world = World::with(false, mode, Limits::default(), 200).await;
        let mut admin = world.server.admin();
        let again = admin
            .reload(proto::ReloadRequest { cache: ROWS.into(), ..Default::default() })
            .await
            .unwrap()
            .into_inner();
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
        let switched = admin
            .reload(proto::ReloadRequest { cache: ROWS.into(), ..Default::default() })
            .await
            .unwrap()
            .into_inner();
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
        let unknown = admin
            .reload(proto::ReloadRequest { cache: "nowhere".into(), ..Default::default() })
            .await
            .unwrap_err();
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
