//! Items of a cache: stored, changed, deleted, listed and counted. A part of `AdminService`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::Status;
use tonic::metadata::MetadataMap;

use super::cache::item_of;
use super::convert::{self, micros};
use super::door::{Door, Load};
use super::proto::{self, upsert_item};
use super::status::{self, failures};
use crate::flow::{self, Again, App, Refusal, UpsertRequest, Upserted};
use crate::store::RequestResult;
use crate::types::ItemId;

pub(super) async fn upsert(
    app: &Arc<App>,
    door: &Door,
    metadata: &MetadataMap,
    request: proto::UpsertRequest,
) -> Result<proto::UpsertResponse, Status> {
    let mut pass = door.enter("viscache.v1.AdminService/Upsert")?;
    let media = |item: &proto::UpsertItem| matches!(item.content, Some(upsert_item::Content::Media(_)));
    let load = if request.items.iter().any(media) { Load::Model } else { Load::Heavy };
    let work = move |app: &App, call: &flow::Call| stored(app, call, request);
    let (mut reply, waited) = door.work(&mut pass, app, metadata, load, work).await?;
    reply.timings.iter_mut().for_each(|t| t.queue_us = micros(waited));
    pass.count(reply.results.len(), failures(reply.results.iter().map(|r| &r.status)));
    Ok(reply)
}

fn stored(
    app: &App,
    call: &flow::Call,
    request: proto::UpsertRequest,
) -> Result<proto::UpsertResponse, flow::Error> {
    let start = Instant::now();
    let (whole, by_uri) = (request.vectors.is_some(), convert::by_uri(&request)?);
    let field = |i: usize| format!("{}[{i}]", if whole { "vectors" } else { "items" });
    let id = convert::request_id(&request.request_id)?.map(str::to_owned);
    let id = id.map(|id| (id, convert::content(&request)));
    let named: Vec<ItemId> = request.items.iter().filter_map(|item| item.id.map(ItemId)).collect();
    convert::check_rows(call, request.vectors.as_ref())?;
    let items = convert::upserts(app, request.vectors.as_ref(), request.items)?;
    let refused = |_, refusal: Refusal<'_>| status::remembered(&refusal);
    let again = id.as_ref().map(|(id, content)| Again { id, content: *content, refused: &refused });
    let upsert = UpsertRequest { cache: &request.cache, items, named: &named, by_uri, again };
    let (results, snapshot, embed, repeated) = match flow::upsert(app, upsert, call)? {
        Upserted::Now(changed) => {
            let result = |(i, result): (usize, &Result<ItemId, flow::Error>)| proto::UpsertResult {
                status: Some(status::outcome(result, &field(i))),
                id: result.as_ref().map_or(0, |id| id.0),
            };
            let results: Vec<_> = changed.results.iter().enumerate().map(result).collect();
            (results, changed.snapshot, changed.embed, false)
        }
        Upserted::Before(changed) => {
            let result = |(i, result): (usize, &RequestResult)| proto::UpsertResult {
                status: Some(status::again(result, &field(i))),
                id: if let RequestResult::Stored(ItemId(id)) = result { *id } else { 0 },
            };
            let results = changed.results.iter().enumerate().map(result).collect();
            (results, changed.snapshot, Duration::ZERO, true)
        }
    };
    let written = start.elapsed().saturating_sub(embed);
    let timings =
        proto::Timings { embed_us: micros(embed), search_us: micros(written), ..Default::default() };
    let sequence = snapshot.delta().sequence;
    Ok(proto::UpsertResponse { results, sequence, timings: Some(timings), repeated })
}

pub(super) async fn delete(
    app: &Arc<App>,
    door: &Door,
    metadata: &MetadataMap,
    request: proto::DeleteRequest,
) -> Result<proto::DeleteResponse, Status> {
    let mut pass = door.enter("viscache.v1.AdminService/Delete")?;
    let work = move |app: &App, call: &flow::Call| {
        let (results, deleted, snapshot) = match (convert::filter(request.filter)?, request.ids.is_empty()) {
            (Some(_), false) => return Err(convert::argument("filter", "send `ids` or `filter`, not both")),
            (Some(filter), true) => {
                let (deleted, snapshot) = flow::delete_matching(app, &request.cache, &filter, call)?;
                (Vec::new(), deleted, snapshot)
            }
            (None, _) => {
                let ids = convert::item_ids(app, &request.ids)?;
                let changed = flow::delete(app, &request.cache, &ids, call)?;
                let results = ids.iter().zip(changed.results);
                let results: Vec<_> =
                    results.map(|(&ItemId(id), found)| proto::DeleteResult { id, found }).collect();
                let deleted = results.iter().filter(|result| result.found).count() as u64;
                (results, deleted, changed.snapshot)
            }
        };
        Ok(proto::DeleteResponse { results, deleted, sequence: snapshot.delta().sequence })
    };
    let (reply, _) = door.work(&mut pass, app, metadata, Load::Heavy, work).await?;
    pass.count(reply.results.len().max(reply.deleted as usize), 0);
    Ok(reply)
}

pub(super) async fn update(
    app: &Arc<App>,
    door: &Door,
    metadata: &MetadataMap,
    request: proto::UpdateItemsRequest,
) -> Result<proto::UpdateItemsResponse, Status> {
    let mut pass = door.enter("viscache.v1.AdminService/UpdateItems")?;
    let work = move |app: &App, call: &flow::Call| {
        let ids: Vec<u64> = request.updates.iter().map(|update| update.id).collect();
        let changed = flow::update(app, &request.cache, convert::edits(app, request.updates)?, call)?;
        let result = |(i, (result, id)): (usize, (&Result<(), flow::Error>, u64))| proto::UpdateResult {
            status: Some(status::outcome(result, &format!("updates[{i}]"))),
            id,
        };
        let results = changed.results.iter().zip(ids).enumerate().map(result).collect();
        Ok(proto::UpdateItemsResponse { results, sequence: changed.snapshot.delta().sequence })
    };
    let (reply, _) = door.work(&mut pass, app, metadata, Load::Heavy, work).await?;
    pass.count(reply.results.len(), failures(reply.results.iter().map(|r| &r.status)));
    Ok(reply)
}

pub(super) async fn list(
    app: &Arc<App>,
    door: &Door,
    metadata: &MetadataMap,
    request: proto::ListItemsRequest,
) -> Result<proto::ListItemsResponse, Status> {
    let mut pass = door.enter("viscache.v1.AdminService/ListItems")?;
    let work = move |app: &App, call: &flow::Call| {
        let filter = convert::filter(request.filter)?;
        let limit = convert::page_size(app, request.page_size)?;
        let snapshot = app.cache(&request.cache)?.snapshot();
        let after = convert::page_after(&snapshot, filter.as_ref(), &request.page_token)?;
        let page = flow::list(&snapshot, filter.as_ref(), after, limit, request.return_vectors, call)?;
        Ok(proto::ListItemsResponse {
            next_page_token: convert::page_token(&snapshot, filter.as_ref(), page.next),
            items: page
                .items
                .into_iter()
                .map(|flow::Item { id, record, row }| item_of(id, record, row))
                .collect(),
            source: Some(convert::source(&snapshot)),
        })
    };
    let (reply, _) = door.work(&mut pass, app, metadata, Load::Heavy, work).await?;
    pass.count(reply.items.len(), 0);
    Ok(reply)
}

pub(super) async fn count(
    app: &Arc<App>,
    door: &Door,
    metadata: &MetadataMap,
    request: proto::CountItemsRequest,
) -> Result<proto::CountItemsResponse, Status> {
    let mut pass = door.enter("viscache.v1.AdminService/CountItems")?;
    let work = move |app: &App, _: &flow::Call| {
        let filter = convert::filter(request.filter)?;
        let snapshot = app.cache(&request.cache)?.snapshot();
        let count = flow::count(&snapshot, filter.as_ref())?;
        Ok(proto::CountItemsResponse { count, source: Some(convert::source(&snapshot)) })
    };
    let (reply, _) = door.work(&mut pass, app, metadata, Load::Heavy, work).await?;
    pass.count(1, 0);
    Ok(reply)
}
