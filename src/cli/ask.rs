//! `enhance`, `search`, `embed`, `describe`: make requests, print replies.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use tonic::transport::Channel;
use viscache::media::npy;
use viscache::serve::proto::cache_service_client::CacheServiceClient;
use viscache::serve::proto::{self, Dtype, EmbedOutput, part};
use viscache::serve::{decode_tensor, encode_tensor};
use viscache::types::Filter;

use super::media::{MediaArgs, read};
use super::show::{self, Shown};
use super::{
    EmbedArgs, EnhanceArgs, Inputs, OutputArg, SearchArgs, SearchOptions, Target, VariantArg, filter, target,
};
use crate::config::Config;

/// Rows of `--vectors` sent in one request.
pub(super) const ROWS_PER_REQUEST: usize = 256;

/// What goes into one request.
enum Batch {
    Vectors(proto::Tensor),
    Queries(Vec<proto::Query>),
}

pub async fn enhance(config: &Config, args: EnhanceArgs) -> anyhow::Result<ExitCode> {
    let batches = batches(&args.inputs)?;
    let mut client = target::cache(
        target::open(config, &args.target, target::wants(args.inputs.vectors.is_none())).await?,
    );
    let (mut shown, mut rows, mut dim) = (shown(args.json, &args.filter), Vec::new(), 0);
    let mut best = Vec::new();
    for batch in batches {
        let (vectors, queries) = batch.split();
        let request = proto::EnhanceRequest {
            cache: args.target.cache.clone().unwrap_or_default(),
            vectors,
            queries,
            blend: Some(proto::BlendParams {
                top_k: args.top_k,
                temperature: args.temperature,
                weight: args.weight,
            }),
            search: Some(search_params(&args.search)),
            return_neighbors: true,
            return_vectors: false,
            variant: match args.variant {
                VariantArg::Condition => proto::Variant::Condition.into(),
                VariantArg::ImageGeneration => proto::Variant::ImageGeneration.into(),
            },
            output_dtype: Dtype::F32.into(),
            expected_weights_fingerprint: String::new(),
            vectors_are_mixed: args.as_is,
            filter: args.filter.as_ref().map(filter::message),
        };
        let reply = client.enhance(request).await.map_err(show::refused)?.into_inner();
        let tensor = reply.vectors.as_ref().context("the reply has no vectors")?;
        let matrix = decode_tensor(tensor).map_err(|e| anyhow::anyhow!("the reply's tensor {e}"))?;
        for (result, row) in reply.results.iter().zip(matrix.iter()) {
            shown.enhanced(result, reply.source.as_ref(), args.out.is_none().then_some(row))?;
            best.extend(result.neighbors.iter().map(|_| result.max_score).next());
        }
        dim = matrix.dim;
        rows.extend(matrix.values);
    }
    if let Some(out) = &args.out {
        write_npy(out, &rows, dim)?;
        shown.written("enhanced queries", out);
    }
    if args.filter.is_none() {
        say_if_strange(&mut client, &shown, &args.target, kind(&args.inputs.media, &args.search), &best)
            .await;
    }
    Ok(shown.exit_code())
}

pub async fn search(config: &Config, args: SearchArgs) -> anyhow::Result<ExitCode> {
    let batches = batches(&args.inputs)?;
    let mut client = target::cache(
        target::open(config, &args.target, target::wants(args.inputs.vectors.is_none())).await?,
    );
    let (mut shown, mut best) = (shown(args.json, &args.filter), Vec::new());
    for batch in batches {
        let (vectors, queries) = batch.split();
        let request = proto::SearchRequest {
            cache: args.target.cache.clone().unwrap_or_default(),
            vectors,
            queries,
            top_k: args.top_k,
            search: Some(search_params(&args.search)),
            return_vectors: false,
            filter: args.filter.as_ref().map(filter::message),
        };
        let reply = client.search(request).await.map_err(show::refused)?.into_inner();
        for result in &reply.results {
            shown.searched(result, reply.source.as_ref())?;
            best.extend(result.neighbors.first().map(|hit| hit.score));
        }
    }
    if args.filter.is_none() {
        say_if_strange(&mut client, &shown, &args.target, kind(&args.inputs.media, &args.search), &best)
            .await;
    }
    Ok(shown.exit_code())
}

pub async fn embed(config: &Config, args: EmbedArgs) -> anyhow::Result<ExitCode> {
    let inputs: Vec<proto::Media> = args.media.read()?.into_iter().map(|(_, media)| media).collect();
    if inputs.is_empty() {
        bail!("there is nothing to embed; give --image, --text, --audio or another input");
    }
    let mut client = target::embed(target::open(config, &args.target, target::EMBEDDINGS).await?);
    let request = proto::EmbedRequest {
        inputs,
        output: match args.output {
            OutputArg::Unit => EmbedOutput::Unit.into(),
            OutputArg::Model => EmbedOutput::Model.into(),
            OutputArg::Prenorm => EmbedOutput::Prenorm.into(),
        },
        output_dtype: Dtype::F32.into(),
    };
    let reply = client.embed(request).await.map_err(show::refused)?.into_inner();
    let tensor = reply.vectors.as_ref().context("the reply has no vectors")?;
    let matrix = decode_tensor(tensor).map_err(|e| anyhow::anyhow!("the reply's tensor {e}"))?;
    let mut shown = Shown::new("input", args.json);
    for (result, row) in reply.results.iter().zip(matrix.iter()) {
        shown.embedded(result, args.out.is_none().then_some(row))?;
    }
    if let Some(out) = &args.out {
        write_npy(out, &matrix.values, matrix.dim)?;
        shown.written("embeddings", out);
    }
    Ok(shown.exit_code())
}

pub async fn describe(config: &Config, target: &Target, json: bool) -> anyhow::Result<ExitCode> {
    let mut client = super::target::cache(super::target::open(config, target, super::target::STORED).await?);
    let request = proto::DescribeRequest { cache: target.cache.clone().unwrap_or_default() };
    let reply = client.describe(request).await.map_err(show::refused)?.into_inner();
    show::described(&reply, json)?;
    Ok(ExitCode::SUCCESS)
}

/// What kind of queries the inputs are, where that is one: of mixtures nothing was measured.
pub(super) fn kind(media: &MediaArgs, search: &SearchOptions) -> Option<String> {
    let named = search.query_kind.as_ref().map(ToString::to_string);
    named.or_else(|| media.kind().map(str::to_owned))
}

/// Says to people, in one line, when all queries of a kind score less than such queries do of things that the cache has.
///
/// * `best`: the best score of each.
async fn say_if_strange(
    client: &mut CacheServiceClient<Channel>,
    shown: &Shown,
    target: &Target,
    kind: Option<String>,
    best: &[f32],
) {
    if let Some(note) = strange(client, target, kind, best).await {
        shown.note(&note);
    }
}

/// What [`say_if_strange`] says, if anything.
pub(super) async fn strange(
    client: &mut CacheServiceClient<Channel>,
    target: &Target,
    kind: Option<String>,
    best: &[f32],
) -> Option<String> {
    let (kind, best) = (kind?, best.iter().copied().reduce(f32::max)?);
    let request = proto::DescribeRequest { cache: target.cache.clone().unwrap_or_default() };
    // A hint is not worth an error.
    let curves = client.describe(request).await.ok()?.into_inner().recall_curves;
    let usual = curves.iter().find(|curve| curve.kind == kind)?.nearest?;
    (best < usual).then(|| {
        format!(
            "the cache may have nothing like this {kind}: its nearest item scores {best:.2}, where 99 of 100 score {usual:.2} or more"
        )
    })
}

fn shown(json: bool, filter: &Option<Filter>) -> Shown {
    let shown = Shown::new("query", json);
    if filter.is_some() { shown.with_plan() } else { shown }
}

impl Batch {
    fn split(self) -> (Option<proto::Tensor>, Vec<proto::Query>) {
        match self {
            Batch::Vectors(tensor) => (Some(tensor), Vec::new()),
            Batch::Queries(queries) => (None, queries),
        }
    }
}

/// The requests that the inputs make.
fn batches(inputs: &Inputs) -> anyhow::Result<Vec<Batch>> {
    if let Some(path) = &inputs.vectors {
        let bytes = read(path)?;
        let matrix = npy::read(&bytes).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
        let chunks = matrix.values.chunks(ROWS_PER_REQUEST * matrix.dim);
        return Ok(chunks.map(|rows| Batch::Vectors(encode_tensor(rows, matrix.dim, Dtype::F32))).collect());
    }
    let media = inputs.media.read()?;
    if media.is_empty() {
        bail!("there is nothing to ask about; give --image, --text, --audio, another input, or --vectors");
    }
    if !inputs.mix.is_empty() && inputs.mix.len() != media.len() {
        bail!("--mix has {} weights for {} inputs", inputs.mix.len(), media.len());
    }
    let parts = media.into_iter().enumerate().map(|(i, (_, media))| proto::Part {
        content: Some(part::Content::Media(media)),
        weight: inputs.mix.get(i).copied(),
    });
    Ok(vec![Batch::Queries(vec![proto::Query {
        parts: parts.collect(),
        allow_negative_weights: inputs.mix.iter().any(|weight| *weight < 0.0),
    }])])
}

pub(super) fn search_params(options: &SearchOptions) -> proto::SearchParams {
    proto::SearchParams {
        ef_search: options.ef_search,
        rescore: options.rescore,
        exact: options.exact,
        target_recall: options.target_recall,
        query_kind: options.query_kind.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn write_npy(path: &Path, values: &[f32], dim: usize) -> anyhow::Result<()> {
    std::fs::write(path, npy::write(values, dim)).with_context(|| format!("cannot write {}", path.display()))
}
