//! `AdminService`: make, name and list caches, count requests, switch generations. Items: `items.rs`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use tonic::{Request, Response, Status, Streaming};

use super::cache::row_dtype;
use super::convert;
use super::door::{Door, Load};
use super::items;
use super::proto::{self, admin_service_server::AdminService};
use super::status;
use super::stream::{Answers, answer_each};
use crate::flow::{self, App};
use crate::store::{CacheRecord, Store};
use crate::types::{CacheName, Generation};

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
            limits: Some(convert::limits(&self.app)),
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
            if request.all && !request.cache.is_empty() {
                return Err(convert::argument("cache", "is named, and all are asked for"));
            }
            let done = flow::reload(app, &request.cache, request.all)?;
            let names = |names: Vec<CacheName>| names.into_iter().map(String::from).collect();
            let snapshot = done.cache.map(|cache| cache.snapshot());
            Ok(proto::ReloadResponse {
                generation: snapshot.as_ref().map_or(0, |snapshot| snapshot.generation().0),
                changed: done.changed,
                sequence: snapshot.as_ref().map_or(0, |snapshot| snapshot.delta().sequence),
                opened: names(done.opened),
                closed: names(done.closed),
            })
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
        Ok(Response::new(items::upsert(&self.app, &self.door, &metadata, request).await?))
    }

    type UpsertStreamStream = Answers<proto::UpsertStreamResponse>;

    async fn upsert_stream(
        &self,
        request: Request<Streaming<proto::UpsertStreamRequest>>,
    ) -> Result<Response<Self::UpsertStreamStream>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let (app, door, metadata) = (self.app.clone(), self.door.clone(), Arc::new(metadata));
        Ok(Response::new(answer_each(&self.door, requests, move |message: proto::UpsertStreamRequest| {
            let (app, door, metadata) = (app.clone(), door.clone(), metadata.clone());
            async move {
                let answer = items::upsert(&app, &door, &metadata, message.request.unwrap_or_default()).await;
                let status = answer.as_ref().err().map(status::message).unwrap_or_default();
                proto::UpsertStreamResponse { tag: message.tag, status: Some(status), response: answer.ok() }
            }
        })))
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        Ok(Response::new(items::delete(&self.app, &self.door, &metadata, request).await?))
    }

    async fn update_items(
        &self,
        request: Request<proto::UpdateItemsRequest>,
    ) -> Result<Response<proto::UpdateItemsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        Ok(Response::new(items::update(&self.app, &self.door, &metadata, request).await?))
    }

    async fn list_items(
        &self,
        request: Request<proto::ListItemsRequest>,
    ) -> Result<Response<proto::ListItemsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        Ok(Response::new(items::list(&self.app, &self.door, &metadata, request).await?))
    }

    async fn count_items(
        &self,
        request: Request<proto::CountItemsRequest>,
    ) -> Result<Response<proto::CountItemsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        Ok(Response::new(items::count(&self.app, &self.door, &metadata, request).await?))
    }

    async fn create_cache(
        &self,
        request: Request<proto::CreateCacheRequest>,
    ) -> Result<Response<proto::CreateCacheResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.AdminService/CreateCache")?;
        let (metadata, _, request) = request.into_parts();
        let work = move |app: &App, _: &flow::Call| {
            let record = flow::create(app, &convert::create(request)?)?;
            let store = app.store.as_ref().ok_or(flow::Error::NoStore)?;
            summary(app, store, &[], record)
        };
        let (cache, _) = self.door.work(&mut pass, &self.app, &metadata, Load::Heavy, work).await?;
        pass.count(1, 0);
        Ok(Response::new(proto::CreateCacheResponse { cache: Some(cache) }))
    }

    async fn delete_cache(
        &self,
        request: Request<proto::DeleteCacheRequest>,
    ) -> Result<Response<proto::DeleteCacheResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.AdminService/DeleteCache")?;
        let (metadata, _, request) = request.into_parts();
        let work = move |app: &App, _: &flow::Call| {
            let name = convert::name("name", &request.name)?;
            let (record, aliases) = flow::delete_cache(app, &name, request.force)?;
            let aliases = aliases.into_iter().map(String::from).collect();
            Ok(proto::DeleteCacheResponse { items: record.items, aliases })
        };
        let (reply, _) = self.door.work(&mut pass, &self.app, &metadata, Load::Heavy, work).await?;
        pass.count(1, 0);
        Ok(Response::new(reply))
    }

    async fn rename_cache(
        &self,
        request: Request<proto::RenameCacheRequest>,
    ) -> Result<Response<proto::RenameCacheResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.AdminService/RenameCache")?;
        let (metadata, _, request) = request.into_parts();
        let work = move |app: &App, _: &flow::Call| {
            let from = convert::name("name", &request.name)?;
            flow::rename(app, &from, &convert::name("new_name", &request.new_name)?)
        };
        self.door.work(&mut pass, &self.app, &metadata, Load::Heavy, work).await?;
        pass.count(1, 0);
        Ok(Response::new(proto::RenameCacheResponse {}))
    }

    async fn set_alias(
        &self,
        request: Request<proto::SetAliasRequest>,
    ) -> Result<Response<proto::SetAliasResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.AdminService/SetAlias")?;
        let (metadata, _, request) = request.into_parts();
        let work = move |app: &App, _: &flow::Call| {
            let alias = convert::name("alias", &request.alias)?;
            let (cache, previous) = flow::set_alias(app, &alias, &convert::name("cache", &request.cache)?)?;
            let previous = previous.map(String::from).unwrap_or_default();
            Ok(proto::SetAliasResponse { cache: cache.into(), previous })
        };
        let (reply, _) = self.door.work(&mut pass, &self.app, &metadata, Load::Heavy, work).await?;
        pass.count(1, 0);
        Ok(Response::new(reply))
    }

    async fn delete_alias(
        &self,
        request: Request<proto::DeleteAliasRequest>,
    ) -> Result<Response<proto::DeleteAliasResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.AdminService/DeleteAlias")?;
        let (metadata, _, request) = request.into_parts();
        let work = move |app: &App, _: &flow::Call| {
            let cache = flow::delete_alias(app, &convert::name("alias", &request.alias)?)?;
            Ok(proto::DeleteAliasResponse { cache: cache.into() })
        };
        let (reply, _) = self.door.work(&mut pass, &self.app, &metadata, Load::Heavy, work).await?;
        pass.count(1, 0);
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

fn list(app: &App) -> Result<Vec<proto::CacheSummary>, flow::Error> {
    let Some(store) = &app.store else { return Ok(Vec::new()) };
    store.refresh()?;
    let (records, aliases) = (store.caches()?, store.aliases()?);
    records.into_iter().map(|record| summary(app, store, &aliases, record)).collect()
}

/// * `aliases`: all that there are, each with its cache.
fn summary(
    app: &App,
    store: &Store,
    aliases: &[(CacheName, CacheName)],
    record: CacheRecord,
) -> Result<proto::CacheSummary, flow::Error> {
    // Of a cache that was never indexed there is nothing to look for.
    let generations = if record.current.is_some() { store.generations(record.id) } else { Ok(Vec::new()) };
    let served = app.caches.served(&record.name);
    // One cache that is damaged is no reason to say nothing of the others.
    let damaged = generations.as_ref().err().map(|problem| flow::with_causes(problem));
    let generations = generations.unwrap_or_default();
    let problem = served.as_ref().and_then(|served| served.as_ref().err().cloned()).or(damaged);
    let open = served.as_ref().and_then(|served| served.as_ref().ok());
    let own = aliases.iter().filter(|(_, cache)| *cache == record.name);
    Ok(proto::CacheSummary {
        name: record.name.to_string(),
        dim: record.dim as u32,
        items: record.items,
        generations: generations.iter().map(|g| g.generation.0).collect(),
        current_generation: record.current.map_or(0, |g| g.0),
        served_generation: open.map_or(0, |cache| cache.snapshot().generation().0),
        model: record.origin.model,
        problem: problem.unwrap_or_default(),
        aliases: own.map(|(alias, _)| alias.to_string()).collect(),
        row_dtype: row_dtype(record.rows).into(),
        served: open.is_some(),
    })
}
