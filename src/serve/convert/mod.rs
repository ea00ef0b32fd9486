//! Messages ⇄ domain. Every check of a request is here, and every refusal names the field.
//!
//! | file | its one idea |
//! |---|---|
//! | `mod.rs` | queries and items |
//! | `files.rs` | files and ready inputs of every kind |
//! | `search.rs` | how to search, filter and blend |
//! | `manage.rs` | caches to be made and named; items to be changed and listed |
//! | `answer.rs` | what is said of caches, models and hits |

mod answer;
mod files;
mod manage;
mod search;

pub(super) use answer::{
    codes_choice, flat_curves, limits, live_recall, micros, modality, model, neighbors, neighbors_need,
    recall, recall_curves, record_needs, row, source, stack,
};
pub(super) use files::media;
pub use manage::MAX_REQUEST_ID_BYTES;
pub(super) use manage::{
    by_uri, content, create, edits, name, page_after, page_size, page_token, request_id,
};
pub(super) use search::{aim, blend_params, filter, search_params, top_k};

use crate::flow::{App, Call, Content, Error, Part, Query, Upsert, Variant};
use crate::serve::proto::{self, Dtype, part, upsert_item};
use crate::serve::tensor::decode_tensor;
use crate::store::ItemRecord;
use crate::types::{Embedding, ItemId, Modality};

pub(super) fn argument(field: impl Into<String>, description: impl Into<String>) -> Error {
    Error::Argument { field: field.into(), description: description.into() }
}

/// Bytes that rows become for each of theirs, on their way through a request: as sent, as numbers, one by one, in the reply.
const COPIES: u64 = 4;

/// Takes the memory that rows become, before they are read.
///
/// # Errors
/// [`Error::Memory`].
pub(super) fn check_rows(call: &Call, vectors: Option<&proto::Tensor>) -> Result<(), Error> {
    let Some(tensor) = vectors else { return Ok(()) };
    let wide = if tensor.dtype() == Dtype::F32 { 1 } else { 2 };
    let bytes = tensor.data.len() as u64 * wide + size_of_val(&tensor.values[..]) as u64;
    Ok(call.tab.add(COPIES * bytes)?)
}

/// The queries of a request: from `vectors` or from `queries`, each with an error of its own.
///
/// * `ready`: whether vectors are used as they are.
///
/// # Errors
/// For the request as a whole: both or neither, a malformed tensor, too many.
pub(super) fn queries(
    app: &App,
    vectors: Option<&proto::Tensor>,
    queries: Vec<proto::Query>,
    ready: bool,
) -> Result<Vec<Result<Query, Error>>, Error> {
    let limit = app.limits.max_batch;
    match (vectors, queries.is_empty()) {
        (Some(_), false) => Err(argument("queries", "send `vectors` or `queries`, not both")),
        (None, true) => Err(argument("vectors", "the request has no query; send `vectors` or `queries`")),
        (Some(tensor), true) => {
            let rows = decode_tensor(tensor).map_err(|e| argument("vectors", e))?;
            check_batch("vectors", rows.iter().len(), limit)?;
            let one = |(i, row): (usize, &[f32])| {
                let embedding = Embedding::new(row.to_vec())
                    .map_err(|e| argument(format!("vectors[{i}]"), e.to_string()))?;
                Ok(match ready {
                    true => Query::Ready(embedding),
                    false => Query::Parts(vec![Part { content: Content::Embedding(embedding), weight: 1.0 }]),
                })
            };
            Ok(rows.iter().enumerate().map(one).collect())
        }
        (None, false) => {
            check_batch("queries", queries.len(), limit)?;
            Ok(queries
                .into_iter()
                .enumerate()
                .map(|(i, q)| query(app, q, &format!("queries[{i}]")))
                .collect())
        }
    }
}

fn check_batch(field: &str, received: usize, limit: usize) -> Result<(), Error> {
    if received <= limit {
        return Ok(());
    }
    Err(argument(
        field,
        format!("{received} in one request are more than the limit of {limit}; split the batch"),
    ))
}

/// A query of parts.
pub(super) fn query(app: &App, query: proto::Query, field: &str) -> Result<Query, Error> {
    let limit = app.limits.max_parts;
    if query.parts.is_empty() || query.parts.len() > limit {
        let count = query.parts.len();
        return Err(argument(
            format!("{field}.parts"),
            format!("a query has 1 to {limit} parts, this one {count}"),
        ));
    }
    let signed = query.allow_negative_weights;
    let parts = query.parts.into_iter().enumerate();
    let parts = parts.map(|(i, p)| self::part(app, p, signed, &format!("{field}.parts[{i}]")));
    Ok(Query::Parts(parts.collect::<Result<_, _>>()?))
}

/// * `signed`: whether weights below 0 are taken.
fn part(app: &App, part: proto::Part, signed: bool, field: &str) -> Result<Part, Error> {
    let weight = part.weight.unwrap_or(1.0);
    if !weight.is_finite() || weight == 0.0 || (weight < 0.0 && !signed) {
        let why = format!(
            "{weight} is not a weight: it must be above 0, or not 0 with `allow_negative_weights` (leave the part out \
             instead of weighing it 0)"
        );
        return Err(argument(format!("{field}.weight"), why));
    }
    let content = match part.content {
        None => return Err(argument(field, "has neither `media` nor `embedding`")),
        Some(part::Content::Media(media)) => {
            Content::Media(self::media(app, media, &format!("{field}.media"))?)
        }
        Some(part::Content::Embedding(tensor)) => {
            Content::Embedding(embedding(&tensor, format!("{field}.embedding"), "a part")?)
        }
    };
    Ok(Part { content, weight })
}

/// A tensor that holds one embedding.
fn embedding(tensor: &proto::Tensor, field: String, whose: &str) -> Result<Embedding, Error> {
    let rows = decode_tensor(tensor).map_err(|e| argument(&field, e))?;
    if rows.iter().len() != 1 {
        return Err(argument(field, format!("has {} rows; {whose} is one embedding", rows.iter().len())));
    }
    Embedding::new(rows.values).map_err(|e| argument(field, e.to_string()))
}

/// The items of an upsert, each with an error of its own.
///
/// # Errors
/// For the request as a whole: none, too many, a malformed tensor, `vectors` and `items` of different number.
pub(super) fn upserts(
    app: &App,
    vectors: Option<&proto::Tensor>,
    items: Vec<proto::UpsertItem>,
) -> Result<Vec<Result<Upsert, Error>>, Error> {
    let limit = app.limits.max_batch;
    let Some(tensor) = vectors else {
        if items.is_empty() {
            return Err(argument("items", "the request has no item; send `vectors` or `items`"));
        }
        check_batch("items", items.len(), limit)?;
        let one = |(i, item)| upsert(app, item, &format!("items[{i}]"), None);
        return Ok(items.into_iter().enumerate().map(one).collect());
    };
    let rows = decode_tensor(tensor).map_err(|e| argument("vectors", e))?;
    check_batch("vectors", rows.iter().len(), limit)?;
    if !items.is_empty() && items.len() != rows.iter().len() {
        let why =
            format!("{} items for {} rows; send one for each row, or none", items.len(), rows.iter().len());
        return Err(argument("items", why));
    }
    let mut items = items.into_iter();
    let one = |(i, row): (usize, &[f32])| {
        let item = items.next().unwrap_or_default();
        let embedding = Embedding::new(row.to_vec());
        let embedding = embedding.map_err(|e| argument(format!("vectors[{i}]"), e.to_string()))?;
        has_direction(&embedding, &format!("vectors[{i}]"))?;
        upsert(app, item, &format!("items[{i}]"), Some(embedding))
    };
    Ok(rows.iter().enumerate().map(one).collect())
}

/// One item of an upsert.
///
/// * `row`: its row of `vectors`, when the request has them.
fn upsert(app: &App, item: proto::UpsertItem, field: &str, row: Option<Embedding>) -> Result<Upsert, Error> {
    let content = match (item.content, row) {
        (None, Some(row)) => Content::Embedding(row),
        (Some(_), Some(_)) => return Err(argument(field, "has content of its own and a row of `vectors`")),
        (None, None) => return Err(argument(field, "has neither `media` nor `embedding`")),
        (Some(upsert_item::Content::Media(media)), None) => {
            Content::Media(self::media(app, media, &format!("{field}.media"))?)
        }
        (Some(upsert_item::Content::Embedding(tensor)), None) => {
            let field = format!("{field}.embedding");
            let embedding = embedding(&tensor, field.clone(), "an item")?;
            has_direction(&embedding, &field)?;
            Content::Embedding(embedding)
        }
    };
    if item.id == Some(u64::MAX) {
        return Err(argument(format!("{field}.id"), format!("{} is not an id: they end below", u64::MAX)));
    }
    let modality = known_modality(item.modality, &format!("{field}.modality"))?;
    check_bytes(&format!("{field}.uri"), item.uri.len(), ItemRecord::MAX_URI_BYTES)?;
    let (id, tags) = (item.id.map(ItemId), item.tags.into_iter().collect());
    check_bytes(&format!("{field}.tags"), ItemRecord::tag_bytes(&tags), ItemRecord::MAX_TAG_BYTES)?;
    Ok(Upsert { id, content, modality, uri: item.uri, tags })
}

/// Items are stored with unit norm, so they need a direction.
fn has_direction(embedding: &Embedding, field: &str) -> Result<(), Error> {
    embedding.unit().map(drop).map_err(|e| argument(field, e.to_string()))
}

/// The ids of a request.
///
/// # Errors
/// None, or too many.
pub(super) fn item_ids(app: &App, ids: &[u64]) -> Result<Vec<ItemId>, Error> {
    let limit = app.limits.max_batch;
    if ids.is_empty() || ids.len() > limit {
        return Err(argument("ids", format!("1 to {limit} ids are taken, {} were sent", ids.len())));
    }
    Ok(ids.iter().copied().map(ItemId).collect())
}

/// The variant of an enhance request.
pub(super) fn variant(number: i32) -> Result<Variant, Error> {
    match proto::Variant::try_from(number) {
        Ok(proto::Variant::Unspecified | proto::Variant::Condition) => Ok(Variant::Condition),
        Ok(proto::Variant::ImageGeneration) => Ok(Variant::ImageGeneration),
        Err(_) => Err(argument("variant", format!("{number} is not a known variant"))),
    }
}

/// The type asked for in a reply.
pub(super) fn output_dtype(number: i32) -> Result<Dtype, Error> {
    Dtype::try_from(number).map_err(|_| argument("output_dtype", format!("{number} is not a known dtype")))
}

fn check_bytes(field: &str, received: usize, limit: usize) -> Result<(), Error> {
    if received <= limit {
        return Ok(());
    }
    Err(argument(field, format!("{received} bytes are more than the limit of {limit}")))
}

fn known_modality(number: i32, field: &str) -> Result<Option<Modality>, Error> {
    let known = proto::Modality::try_from(number)
        .map_err(|_| argument(field, format!("{number} is not a known modality")))?;
    Ok(Modality::ALL.into_iter().find(|m| modality(Some(*m)) == known))
}
