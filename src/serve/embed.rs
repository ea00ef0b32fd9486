//! `EmbedService`: convert, call one flow, convert.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{self, micros};
use super::door::{Door, Load};
use super::proto::{self, EmbedOutput, embed_service_server::EmbedService};
use super::status::{self, failures};
use super::stream::{Answers, answer_each};
use crate::flow::{self, App, MediaInput};
use crate::models::encoder::Encoded;
use crate::types::Embedding;

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
impl EmbedService for Service {
    async fn embed(
        &self,
        request: Request<proto::EmbedRequest>,
    ) -> Result<Response<proto::EmbedResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        Ok(Response::new(embed(&self.app, &self.door, &metadata, request).await?))
    }

    type EmbedStreamStream = Answers<proto::EmbedStreamResponse>;

    async fn embed_stream(
        &self,
        request: Request<Streaming<proto::EmbedStreamRequest>>,
    ) -> Result<Response<Self::EmbedStreamStream>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let (app, door, metadata) = (self.app.clone(), self.door.clone(), Arc::new(metadata));
        Ok(Response::new(answer_each(&self.door, requests, move |message: proto::EmbedStreamRequest| {
            let (app, door, metadata) = (app.clone(), door.clone(), metadata.clone());
            async move {
                let answer = embed(&app, &door, &metadata, message.request.unwrap_or_default()).await;
                let status = answer.as_ref().err().map(status::message).unwrap_or_default();
                proto::EmbedStreamResponse { tag: message.tag, status: Some(status), response: answer.ok() }
            }
        })))
    }
}

async fn embed(
    app: &Arc<App>,
    door: &Door,
    metadata: &MetadataMap,
    request: proto::EmbedRequest,
) -> Result<proto::EmbedResponse, Status> {
    let mut pass = door.enter("viscache.v1.EmbedService/Embed")?;
    let work = move |app: &App, call: &flow::Call| {
        let start = Instant::now();
        let dtype = convert::output_dtype(request.output_dtype)?;
        let output = EmbedOutput::try_from(request.output)
            .map_err(|_| convert::argument("output", format!("{} is not a known output", request.output)))?;
        let (count, limit) = (request.inputs.len(), app.limits.max_batch);
        if count == 0 || count > limit {
            return Err(convert::argument(
                "inputs",
                format!("1 to {limit} inputs are taken, {count} were sent"),
            ));
        }
        let inputs = request.inputs.into_iter().enumerate();
        let inputs: Vec<Result<MediaInput, flow::Error>> =
            inputs.map(|(i, media)| convert::media(app, media, &format!("inputs[{i}]"))).collect();
        let good: Vec<&MediaInput> = inputs.iter().flatten().collect();
        let encoder = app.encoder().ok_or_else(|| flow::Error::NoModel { what: "Embed".into() })?;
        let mut encoded = flow::embed(app, &good, call)?.into_iter();
        let results: Vec<Result<Embedding, flow::Error>> = inputs
            .into_iter()
            .map(|input| {
                input?;
                choose(encoded.next().unwrap_or(Err(flow::Error::Cancelled))?, output)
            })
            .collect();
        let rows = results.iter().map(|r| r.as_ref().ok().map(Embedding::as_slice));
        Ok(proto::EmbedResponse {
            vectors: Some(convert::stack(rows, encoder.dim(), dtype)),
            results: results.iter().enumerate().map(item_status).collect(),
            model: Some(convert::model(encoder)),
            timings: Some(proto::Timings { embed_us: micros(start.elapsed()), ..Default::default() }),
        })
    };
    let (mut reply, waited): (proto::EmbedResponse, Duration) =
        door.work(&mut pass, app, metadata, Load::Model, work).await?;
    reply.timings.iter_mut().for_each(|t| t.queue_us = micros(waited));
    pass.count(reply.results.len(), failures(reply.results.iter().map(|r| &r.status)));
    Ok(reply)
}

fn item_status<T>((i, result): (usize, &Result<T, flow::Error>)) -> proto::ItemStatus {
    proto::ItemStatus { status: Some(status::outcome(result, &format!("inputs[{i}]"))) }
}

fn choose(encoded: Encoded, output: EmbedOutput) -> Result<Embedding, flow::Error> {
    match output {
        EmbedOutput::Unspecified | EmbedOutput::Unit => {
            encoded.embedding.unit().map_err(|e| flow::Error::Model(e.into()))
        }
        EmbedOutput::Model => Ok(encoded.embedding),
        EmbedOutput::Prenorm => Ok(encoded.prenorm),
    }
}
