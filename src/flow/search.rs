//! Queries in, hits out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::embed::embed;
use super::input::MediaInput;
use super::{Aim, App, Call, Content, Error, Part, Query};
use crate::cache::{self, Filtered, Found, Snapshot};
use crate::index::{self, SearchParams};
use crate::models::encoder::Encoded;
use crate::types::{Embedding, Filter, Modality, QueryKind};
use crate::{blend, metrics};

/// Queries of one request that are searched before the work is shared between cores.
const SHARE_ABOVE: usize = 4;
/// Most queries that a thread takes together, and bytes of the rows of their hits, of which there are as many as are asked for; between
/// such shares it is asked whether the caller still waits.
const IN_TURN: usize = 32;
const IN_TURN_BYTES: usize = 8 << 20;

/// What to search.
#[derive(Debug)]
pub struct Request {
    /// Name of the cache; empty means the default.
    pub cache: String,
    /// The queries, each possibly already refused.
    pub queries: Vec<Result<Query, Error>>,
    /// Hits per query.
    pub top_k: usize,
    /// How, unless `aim` has a target.
    pub search: SearchParams,
    /// Which items may be found, if not all may.
    pub filter: Option<Filter>,
    /// What recall is wanted.
    pub aim: Aim,
}

/// What came of one query.
#[derive(Debug)]
pub struct Answer {
    /// The hits and the work.
    pub found: Found,
    /// How it was searched.
    pub params: SearchParams,
    /// Time it took.
    pub took: Duration,
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
/// * `keep`: what is kept of an answer, as soon as it is there: the rows of all hits of a batch would be more than all the rest.
///
/// # Errors
/// For the request as a whole: an unknown cache, a bad parameter, a missing model, tags that cannot be read, deadline and
/// cancellation.
pub fn search<R: Send>(
    app: &App,
    request: Request,
    call: &Call,
    keep: impl Fn(&SnapshotRef, Answer) -> Result<R, Error> + Sync,
) -> Result<Searched<R>, Error> {
    let snapshot = app.cache(&request.cache)?.snapshot();
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
    let (queries, embed) = embed_parts(app, request.queries, call, |_, encoded| Ok(encoded.embedding))?;
    let mixed = each(call, with(queries, kinds), |(query, kind)| {
        let query = match query {
            Query::Ready(embedding) => embedding,
            Query::Parts(parts) => blend::mix(&embeddings(&parts))?,
        };
        Ok(Asked { query, kind, more: () })
    })?;
    let by = SnapshotRef(snapshot.clone());
    let results = way.find(call, mixed, request.top_k, |_, answer| keep(&by, answer))?;
    drop(filtered);
    Ok(Searched { snapshot: by, results, embed })
}

/// A query that is ready to be searched for.
pub(super) struct Asked<T> {
    pub(super) query: Embedding,
    /// What it is.
    pub(super) kind: Option<QueryKind>,
    /// What its caller will want to know again.
    pub(super) more: T,
}

/// How the queries of one request are searched, and where.
pub(super) struct Way<'a> {
    pub(super) app: &'a App,
    pub(super) snapshot: &'a Arc<Snapshot>,
    /// What the request's filter leaves of the snapshot, if it has one.
    pub(super) filtered: Option<&'a Filtered<'a>>,
    pub(super) search: SearchParams,
    pub(super) aim: Aim,
    pub(super) deadline: Option<Instant>,
}

impl Way<'_> {
    /// Whether the target can be aimed at: a matter of the request and not of one query.
    ///
    /// # Errors
    /// [`crate::cache::Error::NotCalibrated`].
    pub(super) fn check(&self) -> Result<(), Error> {
        self.params(self.aim.kind.as_ref(), 1).map(drop)
    }

    /// What each query is: as the request says, else what its media are, when they are all of one modality.
    pub(super) fn kinds(&self, queries: &[Result<Query, Error>]) -> Vec<Option<QueryKind>> {
        let of_parts = |parts: &[Part]| {
            let modality = |part: &Part| match &part.content {
                Content::Media(media) => Some(media.modality()),
                Content::Embedding(_) => None,
            };
            let first = parts.first().and_then(modality)?;
            parts.iter().all(|part| modality(part) == Some(first)).then(|| first.into())
        };
        let kind = |query: &Result<Query, Error>| match (&self.aim.kind, query) {
            (Some(kind), _) => Some(kind.clone()),
            (None, Ok(Query::Parts(parts))) => of_parts(parts),
            (None, _) => None,
        };
        queries.iter().map(kind).collect()
    }

    /// The hits of every query that is still good, on all cores when there are many; of a batch, a thread works on several
    /// queries in turn, and says of each that it took its part of their time.
    ///
    /// * `keep`: what is kept of an answer.
    ///
    /// # Errors
    /// As [`each`].
    pub(super) fn find<T: Send, R: Send>(
        &self,
        call: &Call,
        queries: Vec<Result<Asked<T>, Error>>,
        top_k: usize,
        keep: impl Fn(Asked<T>, Answer) -> Result<R, Error> + Sync,
    ) -> Result<Vec<Result<R, Error>>, Error> {
        let one = |asked: Asked<T>| {
            let answer = self.find_one(&asked, top_k)?;
            keep(asked, answer)
        };
        if queries.len() <= SHARE_ABOVE {
            return each(call, queries, one);
        }
        let hits = top_k.min(self.snapshot.live()).max(1);
        let most = (IN_TURN_BYTES / (hits * self.snapshot.record().dim * size_of::<f32>())).clamp(1, IN_TURN);
        let share = queries.len().div_ceil(rayon::current_num_threads()).clamp(1, most);
        let mut shares = Vec::with_capacity(queries.len().div_ceil(share));
        let mut queries = queries.into_iter().peekable();
        while queries.peek().is_some() {
            shares.push(queries.by_ref().take(share).collect::<Vec<_>>());
        }
        let found = shares.into_par_iter().map(|share| {
            call.check()?;
            Ok(self.find_share(share, top_k, &one, &keep))
        });
        Ok(found.collect::<Result<Vec<_>, Error>>()?.into_iter().flatten().collect())
    }

    /// One thread's share of [`Way::find`].
    ///
    /// * `one`: finds one alone.
    fn find_share<T, R>(
        &self,
        queries: Vec<Result<Asked<T>, Error>>,
        top_k: usize,
        one: &impl Fn(Asked<T>) -> Result<R, Error>,
        keep: &impl Fn(Asked<T>, Answer) -> Result<R, Error>,
    ) -> Vec<Result<R, Error>> {
        let good = || queries.iter().filter_map(|query| query.as_ref().ok());
        let alike = good().map(|asked| &asked.kind).collect::<std::collections::HashSet<_>>().len() == 1;
        let params = good().next().map(|asked| self.params(asked.kind.as_ref(), top_k));
        let Some(Ok(params)) = params.filter(|_| alike && self.filtered.is_none()) else {
            return queries.into_iter().map(|asked| one(asked?)).collect();
        };
        let params = SearchParams { deadline: self.deadline, ..params };
        let embeddings: Vec<&Embedding> = good().map(|asked| &asked.query).collect();
        let start = Instant::now();
        let found = self
            .app
            .with_searcher(|searcher| self.snapshot.search_all(searcher, &embeddings, top_k, &params));
        let took = start.elapsed() / embeddings.len() as u32;
        let mut found = found.into_iter();
        let told = |asked: Result<Asked<T>, Error>| {
            let asked = asked?;
            let found = found.next().expect("a search of many answers each, because it says so");
            let answer = self.answered(&asked, top_k, params, found, took)?;
            keep(asked, answer)
        };
        queries.into_iter().map(told).collect()
    }

    /// The hits of one query.
    fn find_one<T>(&self, asked: &Asked<T>, top_k: usize) -> Result<Answer, Error> {
        let params = SearchParams { deadline: self.deadline, ..self.params(asked.kind.as_ref(), top_k)? };
        let start = Instant::now();
        let found = self.app.with_searcher(|searcher| match self.filtered {
            None => self.snapshot.search(searcher, &asked.query, top_k, &params),
            Some(filtered) => filtered.search(searcher, &asked.query, top_k, &params),
        });
        self.answered(asked, top_k, params, found, start.elapsed())
    }

    fn answered<T>(
        &self,
        Asked { query, kind, .. }: &Asked<T>,
        top_k: usize,
        params: SearchParams,
        found: Result<Found, cache::Error>,
        took: Duration,
    ) -> Result<Answer, Error> {
        let found = found.map_err(|error| match error {
            cache::Error::Index(index::Error::Deadline) => Error::Deadline,
            other => other.into(),
        })?;
        metrics::observe_search(self.snapshot.record().name.as_str(), took);
        // What a filter leaves out is in nobody's truth.
        if !params.exact && self.filtered.is_none() {
            self.app.sampler.offer(self.snapshot, query, kind.as_ref(), top_k, &found.hits);
        }
        Ok(Answer { found, params, took })
    }

    fn params(&self, kind: Option<&QueryKind>, top_k: usize) -> Result<SearchParams, Error> {
        Ok(self.aim.params(self.snapshot, self.search, kind, top_k)?)
    }
}

/// Every good query with its kind.
pub(super) fn with(
    queries: Vec<Result<Query, Error>>,
    kinds: Vec<Option<QueryKind>>,
) -> Vec<Result<(Query, Option<QueryKind>), Error>> {
    queries.into_iter().zip(kinds).map(|(query, kind)| Ok((query?, kind))).collect()
}

/// Replaces every media part by its embedding, all of them in one batch. A part that fails fails its query.
pub(super) fn embed_parts(
    app: &App,
    queries: Vec<Result<Query, Error>>,
    call: &Call,
    choose: impl Fn(Modality, Encoded) -> Result<Embedding, Error>,
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
            Content::Media(media) => {
                let encoded = encoded.next().unwrap_or(Err(Error::Cancelled));
                let chosen = encoded.and_then(|encoded| choose(media.modality(), encoded));
                Content::Embedding(chosen.map_err(|e| Error::Part { part: position, source: Box::new(e) })?)
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
pub(super) fn each<Q: Send, T: Send>(
    call: &Call,
    queries: Vec<Result<Q, Error>>,
    work: impl Fn(Q) -> Result<T, Error> + Sync,
) -> Result<Vec<Result<T, Error>>, Error> {
    let one = |query: Result<Q, Error>| {
        call.check()?;
        Ok(query.and_then(&work))
    };
    if queries.len() > SHARE_ABOVE {
        queries.into_par_iter().map(one).collect()
    } else {
        queries.into_iter().map(one).collect()
    }
}
