//! Queries in, hits out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::embed::{MediaInput, embed};
use super::{App, Call, Content, Error, Part, Query};
use crate::cache::{Found, Snapshot};
use crate::index::SearchParams;
use crate::models::encoder::Encoded;
use crate::types::Embedding;
use crate::{blend, metrics};

/// Queries of one request that are searched before the work is shared between cores.
const SHARE_ABOVE: usize = 4;

/// What to search.
#[derive(Debug)]
pub struct Request {
    /// Name of the cache; empty means the default.
    pub cache: String,
    /// The queries, each possibly already refused.
    pub queries: Vec<Result<Query, Error>>,
    /// Hits per query.
    pub top_k: usize,
    /// How.
    pub search: SearchParams,
}

/// What came of a search request.
#[derive(Debug)]
pub struct Searched<T> {
    /// The generation that answered.
    pub snapshot: SnapshotRef,
    /// One for each query, in order.
    pub results: Vec<Result<T, Error>>,
    /// Time of embedding, for the whole batch.
    pub embed: Duration,
}

/// The generation that answered a request.
pub struct SnapshotRef(pub Arc<Snapshot>);

impl std::fmt::Debug for SnapshotRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "generation {}", self.0.generation())
    }
}

/// Searches a batch of queries.
///
/// # Errors
/// For the request as a whole: an unknown cache, a bad parameter, a missing model, deadline and cancellation.
pub fn search(app: &App, request: Request, call: &Call) -> Result<Searched<(Found, Duration)>, Error> {
    let snapshot = app.cache(&request.cache)?.snapshot();
    request.search.validate().map_err(crate::cache::Error::from)?;
    let (queries, embed) = embed_parts(app, request.queries, call, |encoded| encoded.embedding)?;
    let results = each(call, queries, |query| {
        let query = match query {
            Query::Ready(embedding) => embedding,
            Query::Parts(parts) => blend::mix(&embeddings(&parts))?,
        };
        let start = Instant::now();
        let found = find(app, &snapshot, &query, request.top_k, &request.search)?;
        Ok((found, start.elapsed()))
    })?;
    Ok(Searched { snapshot: SnapshotRef(snapshot), results, embed })
}

/// The hits of one query.
pub(super) fn find(
    app: &App,
    snapshot: &Snapshot,
    query: &Embedding,
    top_k: usize,
    params: &SearchParams,
) -> Result<Found, Error> {
    let start = Instant::now();
    let found = app.with_searcher(|searcher| snapshot.search(searcher, query, top_k, params))?;
    metrics::observe_search(snapshot.record().name.as_str(), start.elapsed());
    Ok(found)
}

/// Replaces every media part by its embedding, all of them in one batch. A part that fails fails its query.
pub(super) fn embed_parts(
    app: &App,
    queries: Vec<Result<Query, Error>>,
    call: &Call,
    choose: impl Fn(Encoded) -> Embedding,
) -> Result<(Vec<Result<Query, Error>>, Duration), Error> {
    let start = Instant::now();
    let media: Vec<&MediaInput> = queries
        .iter()
        .filter_map(|query| query.as_ref().ok())
        .flat_map(|query| match query {
            Query::Parts(parts) => parts.as_slice(),
            Query::Ready(_) => &[],
        })
        .filter_map(|part| match &part.content {
            Content::Media(media) => Some(media),
            Content::Embedding(_) => None,
        })
        .collect();
    if media.is_empty() {
        return Ok((queries, Duration::ZERO));
    }
    let mut encoded = embed(app, &media, call)?.into_iter();
    let mut resolve = |(position, part): (usize, Part)| {
        let content = match part.content {
            Content::Media(_) => {
                let encoded = encoded.next().unwrap_or(Err(Error::Cancelled));
                let encoded = encoded.map_err(|e| Error::Part { part: position, source: Box::new(e) });
                Content::Embedding(choose(encoded?))
            }
            embedding => embedding,
        };
        Ok(Part { content, ..part })
    };
    let mut resolved = Vec::with_capacity(queries.len());
    for query in queries {
        resolved.push(match query {
            // Every part is resolved, even behind one that failed: the encodings come in the order of the parts.
            Ok(Query::Parts(parts)) => {
                let parts: Vec<Result<Part, Error>> =
                    parts.into_iter().enumerate().map(&mut resolve).collect();
                parts.into_iter().collect::<Result<_, _>>().map(Query::Parts)
            }
            other => other,
        });
    }
    Ok((resolved, start.elapsed()))
}

/// The parts of a query whose media have been embedded.
pub(super) fn embeddings(parts: &[Part]) -> Vec<(&Embedding, f64)> {
    let embedded = parts.iter().filter_map(|part| match &part.content {
        Content::Embedding(embedding) => Some((embedding, part.weight)),
        Content::Media(_) => None,
    });
    embedded.collect()
}

/// Works on every query that is still good, on all cores when there are many.
///
/// # Errors
/// [`Error::Deadline`] and [`Error::Cancelled`]: then nobody waits for any of the results.
pub(super) fn each<T: Send>(
    call: &Call,
    queries: Vec<Result<Query, Error>>,
    work: impl Fn(Query) -> Result<T, Error> + Sync,
) -> Result<Vec<Result<T, Error>>, Error> {
    let one = |query: Result<Query, Error>| {
        call.check()?;
        Ok(query.and_then(&work))
    };
    if queries.len() > SHARE_ABOVE {
        queries.into_par_iter().map(one).collect()
    } else {
        queries.into_iter().map(one).collect()
    }
}
