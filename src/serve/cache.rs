//! `CacheService`: convert, call one flow, convert.

use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{self, micros};
use super::door::{Door, Load};
use super::proto::{self, Dtype, cache_service_server::CacheService, part};
use super::status::{self, failures};
use super::stream::{Answers, answer_each};
use crate::cache::{Cache, Snapshot};
use crate::flow::{self, Answer, App, Enhanced};
use crate::index::{Cost, Plan, SearchParams};
use crate::kernels::Kernels;
use crate::store::{ItemRecord, RowType};
use crate::types::ItemId;

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
impl CacheService for Service {
    async fn enhance(
        &self,
        request: Request<proto::EnhanceRequest>,
    ) -> Result<Response<proto::EnhanceResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        Ok(Response::new(enhance(&self.app, &self.door, &metadata, request).await?))
    }

    type EnhanceStreamStream = Answers<proto::EnhanceStreamResponse>;

    async fn enhance_stream(
        &self,
        request: Request<Streaming<proto::EnhanceStreamRequest>>,
    ) -> Result<Response<Self::EnhanceStreamStream>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let (app, door, metadata) = (self.app.clone(), self.door.clone(), Arc::new(metadata));
        Ok(Response::new(answer_each(&self.door, requests, move |message: proto::EnhanceStreamRequest| {
            let (app, door, metadata) = (app.clone(), door.clone(), metadata.clone());
            async move {
                let answer = enhance(&app, &door, &metadata, message.request.unwrap_or_default()).await;
                let status = answer.as_ref().err().map(status::message).unwrap_or_default();
                proto::EnhanceStreamResponse { tag: message.tag, status: Some(status), response: answer.ok() }
            }
        })))
    }

    async fn search(
        &self,
        request: Request<proto::SearchRequest>,
    ) -> Result<Response<proto::SearchResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.CacheService/Search")?;
        let (metadata, _, request) = request.into_parts();
        let load = if any_media(&request.queries) { Load::Model } else { Load::Heavy };
        let work = move |app: &App, call: &flow::Call| {
            let vectors = request.return_vectors.then_some(Dtype::F32);
            let named = if request.vectors.is_some() { "vectors" } else { "queries" };
            convert::check_rows(call, request.vectors.as_ref())?;
            let search = flow::SearchRequest {
                queries: convert::queries(app, request.vectors.as_ref(), request.queries, true)?,
                top_k: convert::top_k(app, request.top_k)?,
                search: convert::search_params(app, request.search.as_ref())?,
                aim: convert::aim(app, request.search.as_ref())?,
                filter: convert::filter(request.filter)?,
                cache: request.cache,
            };
            call.tab.add(convert::neighbors_need(
                app,
                &search.cache,
                search.queries.len(),
                search.top_k,
                vectors,
            ))?;
            let searched = flow::search(app, search, call, |snapshot, Answer { found, params, took }| {
                let cost = cost(found.cost, found.plan, found.matching, &params);
                Ok((convert::neighbors(snapshot, &found.hits, &[], vectors, call)?, cost, took))
            })?;
            let results = searched.results.into_iter().enumerate().map(|(i, found)| {
                let status = Some(status::outcome(&found, &format!("{named}[{i}]")));
                match found {
                    Ok((neighbors, cost, took)) => proto::SearchResult {
                        status,
                        neighbors,
                        timings: Some(timings(Duration::ZERO, searched.embed, took, Duration::ZERO)),
                        cost: Some(cost),
                    },
                    Err(_) => proto::SearchResult { status, ..Default::default() },
                }
            });
            let results = results.collect();
            Ok(proto::SearchResponse { results, source: Some(convert::source(&searched.snapshot.0)) })
        };
        let (mut reply, waited) = self.door.work(&mut pass, &self.app, &metadata, load, work).await?;
        reply.results.iter_mut().filter_map(|r| r.timings.as_mut()).for_each(|t| t.queue_us = micros(waited));
        pass.count(reply.results.len(), failures(reply.results.iter().map(|r| &r.status)));
        Ok(Response::new(reply))
    }

    async fn get_items(
        &self,
        request: Request<proto::GetItemsRequest>,
    ) -> Result<Response<proto::GetItemsResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.CacheService/GetItems")?;
        let (metadata, _, request) = request.into_parts();
        let work = move |app: &App, call: &flow::Call| {
            let limit = app.limits.max_batch;
            if request.ids.is_empty() || request.ids.len() > limit {
                let why = format!("1 to {limit} ids are taken, {} were sent", request.ids.len());
                return Err(convert::argument("ids", why));
            }
            let snapshot = app.cache(&request.cache)?.snapshot();
            let item = |&id: &u64| item(&snapshot, id, request.return_vectors, call);
            let items = request.ids.iter().map(item).collect::<Result<_, _>>()?;
            Ok(proto::GetItemsResponse { items, source: Some(convert::source(&snapshot)) })
        };
        let (reply, _) = self.door.work(&mut pass, &self.app, &metadata, Load::Heavy, work).await?;
        pass.count(reply.items.len(), failures(reply.items.iter().map(|i| &i.status)));
        Ok(Response::new(reply))
    }

    async fn describe(
        &self,
        request: Request<proto::DescribeRequest>,
    ) -> Result<Response<proto::DescribeResponse>, Status> {
        let mut pass = self.door.enter("viscache.v1.CacheService/Describe")?;
        let (metadata, _, request) = request.into_parts();
        let work = move |app: &App, _: &flow::Call| Ok(describe(app, &*app.cache(&request.cache)?));
        let (reply, _) = self.door.work(&mut pass, &self.app, &metadata, Load::Heavy, work).await?;
        pass.count(1, 0);
        Ok(Response::new(reply))
    }
}

async fn enhance(
    app: &Arc<App>,
    door: &Door,
    metadata: &MetadataMap,
    request: proto::EnhanceRequest,
) -> Result<proto::EnhanceResponse, Status> {
    let mut pass = door.enter("viscache.v1.CacheService/Enhance")?;
    let load = self::load(app, &request);
    let work = move |app: &App, call: &flow::Call| {
        let dtype = convert::output_dtype(request.output_dtype)?;
        let ready = request.vectors_are_mixed;
        let named = if request.vectors.is_some() { "vectors" } else { "queries" };
        let (neighbors, vectors) = (request.return_neighbors, request.return_vectors.then_some(dtype));
        convert::check_rows(call, request.vectors.as_ref())?;
        let enhance = flow::EnhanceRequest {
            queries: convert::queries(app, request.vectors.as_ref(), request.queries, ready)?,
            blend: convert::blend_params(app, request.blend)?,
            search: convert::search_params(app, request.search.as_ref())?,
            aim: convert::aim(app, request.search.as_ref())?,
            filter: convert::filter(request.filter)?,
            variant: convert::variant(request.variant)?,
            cache: request.cache,
            expected_weights: request.expected_weights_fingerprint,
        };
        if neighbors {
            let (queries, top_k) = (enhance.queries.len(), enhance.blend.top_k);
            call.tab.add(convert::neighbors_need(app, &enhance.cache, queries, top_k, vectors))?;
        }
        let enhanced = flow::enhance(app, enhance, call, |snapshot, enhanced| {
            let neighbors = match neighbors {
                true => convert::neighbors(snapshot, &enhanced.hits, &enhanced.weights, vectors, call)?,
                false => Vec::new(),
            };
            Ok((neighbors, Enhanced { hits: Vec::new(), weights: Vec::new(), ..enhanced }))
        })?;
        let rows = enhanced.results.iter().map(|r| r.as_ref().ok().map(|(_, e)| e.embedding.as_slice()));
        let tensor = convert::stack(rows, enhanced.snapshot.0.record().dim, dtype);
        let result = |(i, result)| enhance_result(result, &format!("{named}[{i}]"), enhanced.embed);
        Ok(proto::EnhanceResponse {
            vectors: Some(tensor),
            source: Some(convert::source(&enhanced.snapshot.0)),
            results: enhanced.results.into_iter().enumerate().map(result).collect(),
        })
    };
    let (mut reply, waited) = door.work(&mut pass, app, metadata, load, work).await?;
    reply.results.iter_mut().filter_map(|r| r.timings.as_mut()).for_each(|t| t.queue_us = micros(waited));
    pass.count(reply.results.len(), failures(reply.results.iter().map(|r| &r.status)));
    Ok(reply)
}

/// Queries that are light together, and the beam each may have.
const LIGHT_QUERIES: i64 = 4;
const LIGHT_EF: usize = 256;

/// Upserted rows beyond which scanning them is no longer light: so many take some 100 µs.
const LIGHT_DELTA: u64 = 16_384;

/// Whether something is to be embedded.
fn any_media(queries: &[proto::Query]) -> bool {
    let mut parts = queries.iter().flat_map(|query| &query.parts);
    parts.any(|part| matches!(part.content, Some(part::Content::Media(_))))
}

/// What an Enhance asks of its thread. Neighbours in the reply are looked up on the disk; a filter may scan much, and its
/// first use in an old generation reads every item's record.
fn load(app: &App, request: &proto::EnhanceRequest) -> Load {
    if any_media(&request.queries) {
        return Load::Model;
    }
    let few = request.queries.is_empty()
        && request.vectors.as_ref().is_some_and(|tensor| match tensor.shape[..] {
            [rows, _] => rows <= LIGHT_QUERIES,
            _ => true,
        });
    let Ok(snapshot) = app.cache(&request.cache).map(|cache| cache.snapshot()) else { return Load::Heavy };
    let blend = convert::blend_params(app, request.blend);
    let top_k = blend.as_ref().map_or(0, |blend| blend.top_k);
    let params = |aim: flow::Aim| {
        let search = convert::search_params(app, request.search.as_ref())?;
        Ok(aim.params(&snapshot, search, aim.kind.as_ref(), top_k)?)
    };
    let narrow = convert::aim(app, request.search.as_ref())
        .and_then(params)
        .is_ok_and(|search| !search.exact && search.ef_search.max(snapshot.rescore(&search)) <= LIGHT_EF)
        && blend.is_ok_and(|blend| blend.top_k <= LIGHT_EF);
    let in_memory = snapshot.rows_in_memory() && snapshot.delta().rows <= LIGHT_DELTA;
    let all = request.filter.is_none();
    if few && narrow && all && !request.return_neighbors && in_memory { Load::Light } else { Load::Heavy }
}

fn enhance_result(
    result: Result<(Vec<proto::Neighbor>, Enhanced), flow::Error>,
    field: &str,
    embed: Duration,
) -> proto::EnhanceResult {
    let status = Some(status::outcome(&result, field));
    match result {
        Ok((neighbors, enhanced)) => proto::EnhanceResult {
            status,
            neighbors,
            entropy: enhanced.entropy,
            max_score: enhanced.max_score,
            cosine: enhanced.cosine,
            timings: Some(timings(Duration::ZERO, embed, enhanced.search, enhanced.blend)),
            cost: Some(cost(enhanced.cost, enhanced.plan, enhanced.matching, &enhanced.params)),
        },
        Err(_) => proto::EnhanceResult { status, ..Default::default() },
    }
}

fn item(
    snapshot: &Snapshot,
    id: u64,
    vectors: bool,
    call: &flow::Call,
) -> Result<proto::ItemResult, flow::Error> {
    call.check()?;
    let (store, cache) = (snapshot.store(), snapshot.record());
    let fail = |e: crate::store::Error| flow::Error::Cache(e.into());
    let Some(record) = store.item(cache.id, ItemId(id)).map_err(fail)? else {
        let status = Some(status::message(&status::no_item(id)));
        return Ok(proto::ItemResult { status, id, ..Default::default() });
    };
    let row = match vectors {
        true => store.row(cache.id, ItemId(id)).map_err(fail)?,
        false => None,
    };
    let row = row.map(|row| crate::cache::decode_row(&row, cache.rows));
    let values = row.as_ref().map_or(0, |row| 2 * size_of_val(&row[..]) as u64);
    call.tab.add(convert::record_needs(&record) + values)?;
    Ok(item_of(ItemId(id), record, row))
}

/// An item that is there.
pub(super) fn item_of(id: ItemId, record: ItemRecord, row: Option<Vec<f32>>) -> proto::ItemResult {
    proto::ItemResult {
        status: Some(Default::default()),
        id: id.0,
        uri: record.uri,
        modality: convert::modality(record.modality).into(),
        digest: record.digest.to_string(),
        tags: record.tags.into_iter().collect(),
        embedding: row.map(|row| convert::row(&row, Dtype::F32)),
    }
}

/// A type of rows as a message says it.
pub(super) fn row_dtype(rows: RowType) -> Dtype {
    match rows {
        RowType::F32 => Dtype::F32,
        RowType::F16 => Dtype::F16,
    }
}

fn describe(app: &App, cache: &Cache) -> proto::DescribeResponse {
    let snapshot = &*cache.snapshot();
    let delta = snapshot.delta();
    let (record, generation) = (snapshot.record(), snapshot.generation_record());
    let live = app.sampler.live(record.id, generation.generation);
    proto::DescribeResponse {
        source: Some(convert::source(snapshot)),
        dim: record.dim as u32,
        items: generation.items,
        row_dtype: row_dtype(record.rows).into(),
        codes: snapshot.index().codes().word().into(),
        rows_in_memory: snapshot.loaded().plan.rows > 0,
        memory_bytes: snapshot.loaded().plan.total(),
        recall: convert::recall(&generation.recall),
        default_blend: Some(proto::BlendParams {
            top_k: Some(app.default_blend.top_k as u32),
            temperature: Some(app.default_blend.temperature),
            weight: Some(app.default_blend.weight),
        }),
        default_search: Some(proto::SearchParams {
            ef_search: Some(match app.default_width {
                flow::Width::Usual => snapshot.usual(app.default_search, None).ef_search as u32,
                flow::Width::Given | flow::Width::Recall(_) => app.default_search.ef_search as u32,
            }),
            rescore: Some(snapshot.rescore(&app.default_search) as u32),
            exact: app.default_search.exact,
            target_recall: match app.default_width {
                flow::Width::Recall(target) => Some(target.into()),
                flow::Width::Usual | flow::Width::Given => None,
            },
            query_kind: String::new(),
        }),
        limits: Some(convert::limits(app)),
        model: app.encoder().map(convert::model),
        server_version: env!("CARGO_PKG_VERSION").into(),
        kernels: Kernels::get().name().into(),
        live_items: snapshot.live() as u64,
        delta: Some(proto::Delta {
            items: delta.items,
            tombstones: delta.masked,
            memory_bytes: delta.bytes,
            sequence: delta.sequence,
            watermark: generation.sequence,
            compacting: cache.compacting(),
            compaction_problem: cache.compaction_problem().unwrap_or_default(),
        }),
        writable: cache.writable(),
        recall_curves: convert::recall_curves(generation),
        live_recall: live.into_iter().map(convert::live_recall).collect(),
        recall_sampling_rate: app.sampler.rate(),
        recall_samples_dropped: app.sampler.dropped(),
        decoder: app.generator.as_ref().map(|generator| super::generate::decoder(generator.llm())),
        codes_choice: generation.choice.as_ref().map(convert::codes_choice),
        flat_curves: convert::flat_curves(generation),
    }
}

fn cost(cost: Cost, plan: Plan, matching: usize, params: &SearchParams) -> proto::Cost {
    let plan = match plan {
        Plan::Graph => proto::Plan::Graph,
        Plan::GraphWithSkip => proto::Plan::GraphWithSkip,
        Plan::Exact => proto::Plan::Exact,
        Plan::Scan => proto::Plan::Scan,
    };
    let Cost { visited_nodes, scored_vectors, rescored_vectors } = cost;
    let ef_search = if params.exact { 0 } else { params.ef_search as u32 };
    let matching_items = matching as u64;
    let plan = plan.into();
    proto::Cost { visited_nodes, scored_vectors, rescored_vectors, matching_items, plan, ef_search }
}

fn timings(queue: Duration, embed: Duration, search: Duration, blend: Duration) -> proto::Timings {
    let [queue_us, embed_us, search_us, blend_us] = [queue, embed, search, blend].map(micros);
    proto::Timings { queue_us, embed_us, search_us, blend_us }
}
