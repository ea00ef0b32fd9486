//! `enhance`, `search`, `embed`, `describe`: make requests, print replies.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use viscache::media::npy;
use viscache::serve::proto::{self, Dtype, EmbedOutput, part};
use viscache::serve::{decode_tensor, encode_tensor};
use viscache::types::Filter;

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
        }
        dim = matrix.dim;
        rows.extend(matrix.values);
    }
    if let Some(out) = &args.out {
        write_npy(out, &rows, dim)?;
        shown.written("enhanced queries", out);
    }
    Ok(shown.exit_code())
}

pub async fn search(config: &Config, args: SearchArgs) -> anyhow::Result<ExitCode> {
    let batches = batches(&args.inputs)?;
    let mut client = target::cache(
        target::open(config, &args.target, target::wants(args.inputs.vectors.is_none())).await?,
    );
    let mut shown = shown(args.json, &args.filter);
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
        }
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

pub(super) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write_npy(path: &Path, values: &[f32], dim: usize) -> anyhow::Result<()> {
    std::fs::write(path, npy::write(values, dim)).with_context(|| format!("cannot write {}", path.display()))
}
