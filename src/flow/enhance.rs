//! Queries in, enhanced queries out.

use std::time::{Duration, Instant};

use super::search::{Answer, Asked, SnapshotRef, Way, each, embed_parts, embeddings, with};
use super::{Aim, App, Call, Error, Query, Searched};
use crate::blend::{self, BlendParams};
use crate::cache::Filtered;
use crate::index::{Cost, Plan, SearchParams};
use crate::types::{Embedding, Filter, Hit};

/// How parts are mixed and what comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Variant {
    /// For a decoder: normalised parts, un-normalised mixture, unit result.
    #[default]
    Condition,
    /// For an image generator: parts and result keep their length.
    ImageGeneration,
}

/// What to enhance.
#[derive(Debug)]
pub struct Request {
    /// Name of the cache; empty means the default.
    pub cache: String,
    /// The queries, each possibly already refused.
    pub queries: Vec<Result<Query, Error>>,
    /// What the cache does to them.
    pub blend: BlendParams,
    /// How it is searched, unless `aim` has a target.
    pub search: SearchParams,
    /// Which items may be blended, if not all may.
    pub filter: Option<Filter>,
    /// What recall is wanted.
    pub aim: Aim,
    /// How parts are mixed.
    pub variant: Variant,
    /// The digest of the weights that the caller relies on; empty for any.
    pub expected_weights: String,
}

/// One enhanced query and how it came about.
#[derive(Debug)]
pub struct Enhanced {
    /// The result.
    pub embedding: Embedding,
    /// The neighbours, best first.
    pub hits: Vec<Hit>,
    /// Softmax weight of each.
    pub weights: Vec<f32>,
    /// Entropy of the weights, nats.
    pub entropy: f32,
    /// Score of the best.
    pub max_score: f32,
    /// Cosine between query and result.
    pub cosine: f32,
    /// How it was searched.
    pub params: SearchParams,
    /// The work of the search.
    pub cost: Cost,
    /// How it went about it.
    pub plan: Plan,
    /// Items that could have been found.
    pub matching: usize,
    /// Time of the search.
    pub search: Duration,
    /// Time of the maths.
    pub blend: Duration,
}

/// Enhances a batch of queries.
///
/// * `keep`: what is kept of each, as in [`super::search()`].
///
/// # Errors
/// For the request as a whole: an unknown cache, a bad parameter, a missing model, another digest than expected, tags that
/// cannot be read, deadline and cancellation. For every query: [`Error::NoMatch`].
pub fn enhance<R: Send>(
    app: &App,
    request: Request,
    call: &Call,
    keep: impl Fn(&SnapshotRef, Enhanced) -> Result<R, Error> + Sync,
) -> Result<Searched<R>, Error> {
    let cache = app.cache(&request.cache)?;
    let snapshot = cache.snapshot();
    let actual = snapshot.record().origin.weights.map(String::from).unwrap_or_default();
    if !request.expected_weights.is_empty() && request.expected_weights != actual {
        return Err(Error::Fingerprint { cache: cache.name(), expected: request.expected_weights, actual });
    }
    request.blend.validate()?;
    request.search.validate().map_err(crate::cache::Error::from)?;
    let filtered = request.filter.map(|filter| snapshot.filtered(&filter)).transpose()?;

    let way = Way {
        app,
        snapshot: &snapshot,
        filtered: filtered.as_ref(),
        search: request.search,
        aim: request.aim,
        deadline: call.deadline,
    };
    way.check()?;
    let kinds = way.kinds(&request.queries);
    let variant = request.variant;
    let (queries, embed) = embed_parts(app, request.queries, call, |modality, encoded| match variant {
        Variant::Condition => Ok(encoded.embedding),
        Variant::ImageGeneration => {
            blend::generation_part(modality, encoded.prenorm).map_err(|e| Error::Model(e.into()))
        }
    })?;
    let mixed = each(call, with(queries, kinds), |(query, kind)| {
        let (query, norm) = mix(query, variant)?;
        if filtered.as_ref().is_some_and(Filtered::is_empty) {
            return Err(Error::NoMatch);
        }
        Ok(Asked { query, kind, more: norm })
    })?;
    let by = SnapshotRef(snapshot.clone());
    let results = way.find(call, mixed, request.blend.top_k, |Asked { query, more: norm, .. }, answer| {
        let Answer { found, params, took: search } = answer;
        let start = Instant::now();
        let blended = blend::blend(&query, &found.hits, &request.blend)?;
        let embedding = match norm {
            Some(norm) => blend::restore_norm(&blended.embedding, norm)?,
            None => blended.embedding,
        };
        let enhanced = Enhanced {
            embedding,
            hits: found.hits,
            weights: blended.weights,
            entropy: blended.entropy,
            max_score: blended.max_score,
            cosine: blended.cosine,
            params,
            cost: found.cost,
            plan: found.plan,
            matching: found.matching,
            search,
            blend: start.elapsed(),
        };
        keep(&by, enhanced)
    })?;
    drop(filtered);
    Ok(Searched { snapshot: by, results, embed })
}

/// The query to search with and, for the image-generation variant, the length to give back.
fn mix(query: Query, variant: Variant) -> Result<(Embedding, Option<f64>), Error> {
    let mixed = match (query, variant) {
        (Query::Ready(embedding), _) => embedding,
        (Query::Parts(parts), Variant::Condition) => blend::mix(&embeddings(&parts))?,
        (Query::Parts(parts), Variant::ImageGeneration) => blend::mix_unnormalised(&embeddings(&parts))?,
    };
    Ok(match variant {
        Variant::Condition => (mixed, None),
        Variant::ImageGeneration => {
            let (unit, norm) = blend::split_norm(&mixed)?;
            (unit, Some(norm))
        }
    })
}
