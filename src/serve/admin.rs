//! `AdminService`: list, count, switch generations, change items.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::cache::{failures, micros};
use super::convert;
use super::door::{Door, Load};
use super::proto::{self, admin_service_server::AdminService, upsert_item};
use super::status;
use super::stream::{Answers, answer_each};
use crate::flow::{self, App};
use crate::types::{Generation, ItemId};

pub(super) struct Service {
    app: Arc<App>,
    door: Arc<Door>,
}

impl Service {
    pub(super) fn new(app: Arc<App>, door: Arc<Door>) -> Self {
        Service { app, door }
    }
}

#[tonic::async_trait]
impl AdminService for Service {
    async fn list_caches(
        &self,
        request: Request<proto::ListCachesRequest>,
    ) -> Result<Response<proto::ListCachesResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.AdminService/ListCaches")?;
        let (caches, _) =
            self.door.work(&mut pass, &self.app, request.metadata(), Load::Heavy, |app, _| list(app)).await?;
        pass.count(caches.len(), 0);
        Ok(Response::new(proto::ListCachesResponse { caches }))
    }

    async fn stats(&self, _: Request<proto::StatsRequest>) -> Result<Response<proto::StatsResponse>, Status> {
        let methods = self.door.counts().into_iter().map(|(method, counts)| proto::MethodStats {
            method: method.into(),
            calls: counts.calls.load(Ordering::Relaxed),
            errors: counts.errors.load(Ordering::Relaxed),
            items: counts.items.load(Ordering::Relaxed),
            item_errors: counts.item_errors.load(Ordering::Relaxed),
        });
        Ok(Response::new(proto::StatsResponse {
            uptime_seconds: self.door.uptime().as_secs_f64(),
            methods: methods.collect(),
            in_flight: self.door.in_flight() as u32,
            limits: Some(convert::limits(&self.app.limits)),
        }))
    }

    async fn publish(
        &self,
        request: Request<proto::PublishRequest>,
    ) -> Result<Response<proto::PublishResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.AdminService/Publish")?;
        let (metadata, _, request) = request.into_parts();
        let work = move |app: &App, _: &flow::Call| {
            let cache = app.cache(&request.cache)?;
            cache.publish(Generation(request.generation))?;
            cache.reload()?;
            Ok(cache.snapshot().generation().0)
        };
        let (generation, _) = self.door.work(&mut pass, &self.app, &metadata, Load::Heavy, work).await?;
        pass.count(1, 0);
        Ok(Response::new(proto::PublishResponse { generation }))
    }

    async fn reload(
        &self,
        request: Request<proto::ReloadRequest>,
    ) -> Result<Response<proto::ReloadResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.AdminService/Reload")?;
        let (metadata, _, request) = request.into_parts();
        let work = move |app: &App, _: &flow::Call| {
            let cache = app.cache(&request.cache)?;
            let changed = cache.reload()?;
            let snapshot = cache.snapshot();
            let (generation, sequence) = (snapshot.generation().0, snapshot.delta().sequence);
            Ok(proto::ReloadResponse { generation, changed, sequence })
        };
        let (reply, _) = self.door.work(&mut pass, &self.app, &metadata, Load::Heavy, work).await?;
        pass.count(1, 0);
        Ok(Response::new(reply))
    }

    async fn upsert(
        &self,
        request: Request<proto::UpsertRequest>,
    ) -> Result<Response<proto::UpsertResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        Ok(Response::new(upsert(&self.app, &self.door, &metadata, request).await?))
    }

    type UpsertStreamStream = Answers<proto::UpsertStreamResponse>;

    async fn upsert_stream(
        &self,
        request: Request<Streaming<proto::UpsertStreamRequest>>,
    ) -> Result<Response<Self::UpsertStreamStream>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let (app, door, metadata) = (self.app.clone(), self.door.clone(), Arc::new(metadata));
        Ok(Response::new(answer_each(requests, move |message: proto::UpsertStreamRequest| {
            let (app, door, metadata) = (app.clone(), door.clone(), metadata.clone());
            async move {
                let answer = upsert(&app, &door, &metadata, message.request.unwrap_or_default()).await;
                let status = answer.as_ref().err().map(status::message).unwrap_or_default();
                proto::UpsertStreamResponse { tag: message.tag, status: Some(status), response: answer.ok() }
            }
        })))
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.AdminService/Delete")?;
        let (metadata, _, request) = request.into_parts();
        let work = move |app: &App, call: &flow::Call| {
            let ids = convert::item_ids(app, &request.ids)?;
            let changed = flow::delete(app, &request.cache, &ids, call)?;
            let results = ids.iter().zip(changed.results);
            let results: Vec<_> =
                results.map(|(&ItemId(id), found)| proto::DeleteResult { id, found }).collect();
            let deleted = results.iter().filter(|result| result.found).count() as u64;
            Ok(proto::DeleteResponse { results, deleted, sequence: changed.snapshot.delta().sequence })
        };
        let (reply, _) = self.door.work(&mut pass, &self.app, &metadata, Load::Heavy, work).await?;
        pass.count(reply.results.len(), 0);
        Ok(Response::new(reply))
    }

    async fn compact(
        &self,
        request: Request<proto::CompactRequest>,
    ) -> Result<Response<proto::CompactResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.AdminService/Compact")?;
        let (metadata, _, request) = request.into_parts();
        let work = move |app: &App, _: &flow::Call| flow::compact(app, &request.cache);
        let (done, _) = self.door.work(&mut pass, &self.app, &metadata, Load::Heavy, work).await?;
        pass.count(1, 0);
        Ok(Response::new(proto::CompactResponse {
            generation: done.generation.0,
            items: done.items,
            seconds: done.took.as_secs_f64(),
        }))
    }
}

async fn upsert(
    app: &Arc<App>,
    door: &Door,
    metadata: &MetadataMap,
    request: proto::UpsertRequest,
) -> Result<proto::UpsertResponse, Status> {
    let mut pass = door.enter("viscache.v1.AdminService/Upsert")?;
    let media = |item: &proto::UpsertItem| matches!(item.content, Some(upsert_item::Content::Media(_)));
    let load = if request.items.iter().any(media) { Load::Model } else { Load::Heavy };
    let work = move |app: &App, call: &flow::Call| {
        let start = Instant::now();
        let named = if request.vectors.is_some() { "vectors" } else { "items" };
        let ids: Vec<ItemId> = request.items.iter().filter_map(|item| item.id.map(ItemId)).collect();
        let items = convert::upserts(app, request.vectors.as_ref(), request.items)?;
        let changed = flow::upsert(app, &request.cache, items, &ids, call)?;
        let results = changed.results.iter().enumerate().map(|(i, result)| proto::UpsertResult {
            status: Some(status::outcome(result, &format!("{named}[{i}]"))),
            id: result.as_ref().map_or(0, |id| id.0),
        });
        let written = start.elapsed().saturating_sub(changed.embed);
        let timings = proto::Timings {
            embed_us: micros(changed.embed),
            search_us: micros(written),
            ..Default::default()
        };
        let sequence = changed.snapshot.delta().sequence;
        Ok(proto::UpsertResponse { results: results.collect(), sequence, timings: Some(timings) })
    };
    let (mut reply, waited) = door.work(&mut pass, app, metadata, load, work).await?;
    reply.timings.iter_mut().for_each(|t| t.queue_us = micros(waited));
    pass.count(reply.results.len(), failures(reply.results.iter().map(|r| &r.status)));
    Ok(reply)
}

fn list(app: &App) -> Result<Vec<proto::CacheSummary>, flow::Error> {
    let fail = |e: crate::store::Error| flow::Error::Cache(e.into());
    let Some(store) = &app.store else { return Ok(Vec::new()) };
    store.refresh().map_err(fail)?;
    let records = store.caches().map_err(fail)?;
    let summary = |record: crate::store::CacheRecord| {
        let generations = store.generations(record.id).map_err(fail)?;
        let served = app.caches.get(&record.name);
        let open = served.and_then(|served| served.as_ref().ok());
        Ok(proto::CacheSummary {
            name: record.name.to_string(),
            dim: record.dim as u32,
            items: record.items,
            generations: generations.iter().map(|g| g.generation.0).collect(),
            current_generation: record.current.map_or(0, |g| g.0),
            served_generation: open.map_or(0, |cache| cache.snapshot().generation().0),
            model: record.origin.model,
            problem: served.and_then(|served| served.as_ref().err().cloned()).unwrap_or_default(),
        })
    };
    records.into_iter().map(summary).collect()
}
