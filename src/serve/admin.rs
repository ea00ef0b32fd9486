//! `AdminService`: list, count, switch generations.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tonic::{Request, Response, Status};

use super::convert;
use super::door::{Door, Load};
use super::proto::{self, admin_service_server::AdminService};
use crate::cache;
use crate::flow::{self, App};
use crate::types::Generation;

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
            self.door.work(&self.app, request.metadata(), Load::Heavy, |app, _| list(app)).await?;
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
            cache::publish_existing(app.store.path(), cache.name(), Generation(request.generation))?;
            cache.reload(&app.store)?;
            Ok(cache.snapshot().generation().0)
        };
        let (generation, _) = self.door.work(&self.app, &metadata, Load::Heavy, work).await?;
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
            let changed = cache.reload(&app.store)?;
            Ok((cache.snapshot().generation().0, changed))
        };
        let ((generation, changed), _) = self.door.work(&self.app, &metadata, Load::Heavy, work).await?;
        pass.count(1, 0);
        Ok(Response::new(proto::ReloadResponse { generation, changed }))
    }
}

fn list(app: &App) -> Result<Vec<proto::CacheSummary>, flow::Error> {
    let fail = |e: crate::store::Error| flow::Error::Cache(e.into());
    app.store.refresh().map_err(fail)?;
    let records = app.store.caches().map_err(fail)?;
    let summary = |record: crate::store::CacheRecord| {
        let generations = app.store.generations(record.id).map_err(fail)?;
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
