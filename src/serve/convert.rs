//! Messages ⇄ domain. Every check of a request is here, and every refusal names the field.

use bytes::Bytes;

use super::proto::{self, Dtype, filter, media, part, upsert_item};
use super::tensor::{decode_array, decode_tensor, encode_tensor};
use crate::blend::BlendParams;
use crate::cache::Snapshot;
use crate::flow::{self, Aim, App, Content, Error, MediaInput, Part, Query, SnapshotRef, Upsert, Variant};
use crate::index::{SearchParams, TargetRecall};
use crate::media::{DepthOptions, ImuOptions, PointOptions, ThermalOptions};
use crate::models::encoder::Encoder;
use crate::store::{GenerationRecord, RecallCurve};
use crate::types::{Agreement, Embedding, Filter, Hit, ItemId, Modality, Origin, QueryKind};

/// Bytes of an item's uri.
const MAX_URI_BYTES: usize = 4096;
/// Bytes of an item's tags, names and values together.
const MAX_TAG_BYTES: usize = 16 << 10;

pub(super) fn argument(field: impl Into<String>, description: impl Into<String>) -> Error {
    Error::Argument { field: field.into(), description: description.into() }
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
    check_bytes(&format!("{field}.uri"), item.uri.len(), MAX_URI_BYTES)?;
    let tags: usize = item.tags.iter().map(|(name, value)| name.len() + value.len()).sum();
    check_bytes(&format!("{field}.tags"), tags, MAX_TAG_BYTES)?;
    let (id, tags) = (item.id.map(ItemId), item.tags.into_iter().collect());
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

/// One thing to embed.
pub(super) fn media(app: &App, media: proto::Media, field: &str) -> Result<MediaInput, Error> {
    let limits = &app.limits;
    let file = |name: &str, bytes: Bytes, limit: usize| {
        let field = format!("{field}.{name}");
        check_bytes(&field, bytes.len(), limit)?;
        match bytes.is_empty() {
            true => Err(argument(field, "is empty; send the bytes of a file")),
            false => Ok(bytes),
        }
    };
    let (image, table) = (limits.media.image.max_bytes, limits.media.point.max_bytes);
    Ok(match media.kind {
        None => {
            let why = "is empty; set one of image, text, audio, video, depth, thermal, imu, point_cloud, model_input";
            return Err(argument(field, why));
        }
        Some(media::Kind::Image(bytes)) => {
            check_bytes(&format!("{field}.image"), bytes.len(), image)?;
            MediaInput::Image(bytes)
        }
        Some(media::Kind::Text(text)) => {
            check_bytes(&format!("{field}.text"), text.len(), limits.max_text_bytes())?;
            MediaInput::Text(text.into_bytes().into())
        }
        Some(media::Kind::Audio(bytes)) => {
            MediaInput::Audio(file("audio", bytes, limits.media.audio.max_bytes)?)
        }
        Some(media::Kind::Video(proto::Video { source })) => match source {
            None => return Err(argument(format!("{field}.video"), "has neither `file` nor `frames`")),
            Some(proto::video::Source::File(bytes)) => {
                MediaInput::Film(file("video.file", bytes, limits.video.max_bytes)?)
            }
            Some(proto::video::Source::Frames(proto::VideoFrames { frames, rate })) => {
                let field = format!("{field}.video.frames");
                if !(rate.is_finite() && rate > 0.0) {
                    return Err(argument(format!("{field}.rate"), format!("{rate} is not a rate above 0")));
                }
                if frames.is_empty() {
                    return Err(argument(format!("{field}.frames"), "is empty; send at least one picture"));
                }
                let total = frames.iter().map(|frame| frame.len()).sum();
                check_bytes(&format!("{field}.frames"), total, limits.video.max_bytes)?;
                MediaInput::Frames(frames, rate)
            }
        },
        Some(media::Kind::Depth(depth)) => {
            let default = DepthOptions::default();
            let options = DepthOptions {
                scale: depth.scale,
                baseline: depth.baseline.unwrap_or(default.baseline),
                focal_length: depth.focal_length.unwrap_or(default.focal_length),
                max_disparity: depth.max_disparity.unwrap_or(default.max_disparity),
                mean: depth.mean.unwrap_or(default.mean),
                std: depth.std.unwrap_or(default.std),
            };
            options.validate().map_err(|e| option(&format!("{field}.depth"), e))?;
            MediaInput::Depth(file("depth.file", depth.file, image)?, options)
        }
        Some(media::Kind::Thermal(thermal)) => {
            let default = ThermalOptions::default();
            let options = ThermalOptions {
                range: match (thermal.low, thermal.high) {
                    (Some(low), Some(high)) => Some([low, high]),
                    (None, None) => None,
                    _ => {
                        let why = "has one of `low` and `high`; send both or neither";
                        return Err(argument(format!("{field}.thermal"), why));
                    }
                },
                mean: thermal.mean.unwrap_or(default.mean),
                std: thermal.std.unwrap_or(default.std),
            };
            options.validate().map_err(|e| option(&format!("{field}.thermal"), e))?;
            MediaInput::Thermal(file("thermal.file", thermal.file, image)?, options)
        }
        Some(media::Kind::Imu(imu)) => {
            let options = ImuOptions { rate: imu.rate, in_g: imu.in_g, in_degrees: imu.in_degrees };
            options.validate().map_err(|e| option(&format!("{field}.imu"), e))?;
            MediaInput::Imu(file("imu.file", imu.file, table)?, options)
        }
        Some(media::Kind::PointCloud(cloud)) => {
            let options = PointOptions { normalize: cloud.normalize, seed: cloud.seed };
            MediaInput::Point(file("point_cloud.file", cloud.file, table)?, options)
        }
        Some(media::Kind::ModelInput(input)) => {
            let field = format!("{field}.model_input");
            let modality = known_modality(input.modality, &format!("{field}.modality"))?
                .ok_or_else(|| argument(format!("{field}.modality"), "is not set"))?;
            let tensor = input.tensor.unwrap_or_default();
            let (shape, values) =
                decode_array(&tensor).map_err(|e| argument(format!("{field}.tensor"), e))?;
            MediaInput::Ready(modality, shape, values)
        }
    })
}

/// A setting of a medium that cannot be used, with the path of its field.
fn option(field: &str, error: crate::media::Error) -> Error {
    match error {
        crate::media::Error::Option { name, why } => argument(format!("{field}.{name}"), why),
        other => argument(field, other.to_string()),
    }
}

fn known_modality(number: i32, field: &str) -> Result<Option<Modality>, Error> {
    let known = proto::Modality::try_from(number)
        .map_err(|_| argument(field, format!("{number} is not a known modality")))?;
    Ok(Modality::ALL.into_iter().find(|m| modality(Some(*m)) == known))
}

fn check_bytes(field: &str, received: usize, limit: usize) -> Result<(), Error> {
    if received <= limit {
        return Ok(());
    }
    Err(argument(field, format!("{received} bytes are more than the limit of {limit}")))
}

/// What the cache does to the queries, with the server's defaults filled in.
pub(super) fn blend_params(app: &App, params: Option<proto::BlendParams>) -> Result<BlendParams, Error> {
    let (params, default) = (params.unwrap_or_default(), app.default_blend);
    let blend = BlendParams {
        top_k: params.top_k.map_or(default.top_k, |k| k as usize),
        temperature: params.temperature.unwrap_or(default.temperature),
        weight: params.weight.unwrap_or(default.weight),
    };
    blend.validate().map_err(|e| match &e {
        crate::blend::Error::Parameter { name, .. } => argument(format!("blend.{name}"), e.to_string()),
        _ => Error::Blend(e),
    })?;
    Ok(blend)
}

/// How the cache is searched, with the server's defaults filled in.
pub(super) fn search_params(app: &App, params: Option<&proto::SearchParams>) -> Result<SearchParams, Error> {
    let (params, default) = (params.cloned().unwrap_or_default(), app.default_search);
    let search = SearchParams {
        ef_search: params.ef_search.map_or(default.ef_search, |ef| ef as usize),
        rescore: params.rescore.map_or(default.rescore, |n| n as usize),
        exact: params.exact,
        ..default
    };
    search.validate().map_err(|e| match &e {
        crate::index::Error::Parameter { name, .. } => argument(format!("search.{name}"), e.to_string()),
        _ => Error::Cache(e.into()),
    })?;
    Ok(search)
}

/// Which items may be found. A condition that names nothing is refused: it is more likely forgotten than meant, and would
/// let through everything or nothing.
pub(super) fn filter(filter: Option<proto::Filter>) -> Result<Option<Filter>, Error> {
    let mut left = FilterRoom { conditions: Filter::MAX_CONDITIONS, values: Filter::MAX_VALUES };
    filter.map(|filter| condition(filter, "filter", Filter::MAX_DEPTH, &mut left)).transpose()
}

/// What a filter may still hold.
struct FilterRoom {
    conditions: usize,
    values: usize,
}

fn condition(
    condition: proto::Filter,
    field: &str,
    depth: usize,
    left: &mut FilterRoom,
) -> Result<Filter, Error> {
    let Some(condition) = condition.condition else {
        return Err(argument(field, "has no condition; set one of its fields"));
    };
    let Some(depth) = depth.checked_sub(1) else {
        let limit = Filter::MAX_DEPTH;
        return Err(argument(
            field,
            format!("lies deeper than the limit of {limit} conditions in each other"),
        ));
    };
    left.conditions = left.conditions.checked_sub(1).ok_or_else(|| {
        argument(field, format!("is beyond the limit of {} conditions in a filter", Filter::MAX_CONDITIONS))
    })?;
    let mut take = |field: String, count: usize| match left.values.checked_sub(count) {
        _ if count == 0 => Err(argument(field, "is empty; name at least one, or leave the condition out")),
        None => {
            let limit = Filter::MAX_VALUES;
            Err(argument(field, format!("is beyond the limit of {limit} values and ids in a filter")))
        }
        Some(rest) => {
            left.values = rest;
            Ok(())
        }
    };
    let named = |field: String, name: String| match name.is_empty() {
        true => Err(argument(field, "is empty; name a tag")),
        false => Ok(name),
    };
    Ok(match condition {
        filter::Condition::Tag(proto::TagCondition { key, values }) => {
            take(format!("{field}.tag.values"), values.len())?;
            let key = named(format!("{field}.tag.key"), key)?;
            Filter::Tag { key, values: values.into_iter().collect() }
        }
        filter::Condition::HasTag(key) => Filter::HasTag(named(format!("{field}.has_tag"), key)?),
        filter::Condition::Ids(proto::ItemIds { ids }) => {
            take(format!("{field}.ids.ids"), ids.len())?;
            Filter::Ids(ids.into_iter().map(ItemId).collect())
        }
        filter::Condition::AllOf(all) => {
            Filter::All(conditions(all, &format!("{field}.all_of"), depth, left)?)
        }
        filter::Condition::AnyOf(any) => {
            Filter::Any(conditions(any, &format!("{field}.any_of"), depth, left)?)
        }
        filter::Condition::NoneOf(none) => {
            let mut none = conditions(none, &format!("{field}.none_of"), depth, left)?;
            let one = if none.len() == 1 { none.pop() } else { None };
            Filter::Not(Box::new(one.unwrap_or(Filter::Any(none))))
        }
    })
}

fn conditions(
    filters: proto::Filters,
    field: &str,
    depth: usize,
    left: &mut FilterRoom,
) -> Result<Vec<Filter>, Error> {
    if filters.filters.is_empty() {
        return Err(argument(format!("{field}.filters"), "is empty; name at least one condition"));
    }
    let each = filters.filters.into_iter().enumerate();
    each.map(|(i, filter)| condition(filter, &format!("{field}.filters[{i}]"), depth, left)).collect()
}

/// What recall is wanted, with the server's default filled in where the request says nothing of a beam either.
pub(super) fn aim(app: &App, params: Option<&proto::SearchParams>) -> Result<Aim, Error> {
    let Some(params) = params else { return Ok(Aim { target: app.default_target, kind: None }) };
    let kind = Some(params.query_kind.as_str()).filter(|word| !word.is_empty()).map(QueryKind::new);
    let kind = kind.transpose().map_err(|e| argument("search.query_kind", e.to_string()))?;
    let target = match (params.target_recall, params.ef_search.is_some() || params.rescore.is_some()) {
        (Some(_), true) => {
            let why = "chooses the beam; send it, or `ef_search` and `rescore`, not both";
            return Err(argument("search.target_recall", why));
        }
        (Some(target), false) => {
            Some(TargetRecall::new(target).map_err(|e| argument("search.target_recall", e.to_string()))?)
        }
        (None, true) => None,
        (None, false) => app.default_target,
    };
    Ok(Aim { target: target.filter(|_| !params.exact), kind })
}

/// Hits wanted by a search.
pub(super) fn top_k(app: &App, top_k: Option<u32>) -> Result<usize, Error> {
    let top_k = top_k.map_or(app.default_blend.top_k, |k| k as usize);
    if top_k == 0 || top_k > BlendParams::MAX_TOP_K {
        return Err(argument("top_k", format!("{top_k} is not from 1 to {}", BlendParams::MAX_TOP_K)));
    }
    Ok(top_k)
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

/// A modality as a message says it.
pub(super) fn modality(modality: Option<Modality>) -> proto::Modality {
    match modality {
        None => proto::Modality::Unspecified,
        Some(Modality::Image) => proto::Modality::Image,
        Some(Modality::Text) => proto::Modality::Text,
        Some(Modality::Video) => proto::Modality::Video,
        Some(Modality::Audio) => proto::Modality::Audio,
        Some(Modality::Depth) => proto::Modality::Depth,
        Some(Modality::Thermal) => proto::Modality::Thermal,
        Some(Modality::Imu) => proto::Modality::Imu,
        Some(Modality::Point) => proto::Modality::Point,
    }
}

/// What answered.
pub(super) fn source(snapshot: &Snapshot) -> proto::Source {
    let Origin { model, weights, preprocessing, encoder_dtype, agreement } = snapshot.record().origin.clone();
    proto::Source {
        cache: snapshot.record().name.to_string(),
        generation: snapshot.generation().0,
        model,
        weights_fingerprint: weights.map(String::from).unwrap_or_default(),
        preprocessing_fingerprint: preprocessing.map(String::from).unwrap_or_default(),
        encoder_dtype: encoder_dtype.map(|dtype| dtype.to_string()).unwrap_or_default(),
        agreement: agreement.map(|Agreement { mean, min, pictures }| proto::Agreement {
            mean,
            min,
            pictures,
        }),
    }
}

/// The loaded model.
pub(super) fn model(encoder: &Encoder) -> proto::Model {
    let Origin { model, weights, preprocessing, encoder_dtype, .. } = encoder.origin().clone();
    proto::Model {
        name: model,
        weights_fingerprint: weights.map(String::from).unwrap_or_default(),
        preprocessing_fingerprint: preprocessing.map(String::from).unwrap_or_default(),
        modalities: encoder.modalities().iter().map(|&m| modality(Some(m)).into()).collect(),
        dim: encoder.dim() as u32,
        encoder_dtype: encoder_dtype.map(|dtype| dtype.to_string()).unwrap_or_default(),
    }
}

/// One measured curve.
pub(super) fn recall(curve: &RecallCurve) -> Vec<proto::Recall> {
    curve.iter().map(|&(ef, r)| proto::Recall { ef_search: ef as u32, recall_at_10: r }).collect()
}

/// All measured curves, each with its kind; a sample of real queries that was named `image` counts for more than moved rows.
pub(super) fn recall_curves(generation: &GenerationRecord) -> Vec<proto::RecallCurve> {
    let rows = (Modality::Image.word(), &generation.recall);
    let rows = Some(rows).filter(|(kind, _)| !generation.recall_by.contains_key(*kind));
    let given = generation.recall_by.iter().map(|(kind, curve)| (kind.as_str(), curve));
    let measured = rows.into_iter().chain(given).filter(|(_, curve)| !curve.is_empty());
    measured.map(|(kind, curve)| proto::RecallCurve { kind: kind.into(), points: recall(curve) }).collect()
}

/// Recall of live searches.
pub(super) fn live_recall(live: flow::LiveRecall) -> proto::LiveRecall {
    let ms = |at: std::time::SystemTime| {
        at.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    };
    proto::LiveRecall {
        kind: live.kind,
        recall_at_10: live.recall,
        samples: live.samples as u64,
        oldest_ms: ms(live.oldest),
        newest_ms: ms(live.newest),
    }
}

/// Every limit.
pub(super) fn limits(limits: &flow::Limits) -> proto::Limits {
    proto::Limits {
        max_message_bytes: limits.max_message_bytes as u64,
        max_batch: limits.max_batch as u32,
        max_parts: limits.max_parts as u32,
        max_top_k: BlendParams::MAX_TOP_K as u32,
        max_ef_search: SearchParams::MAX_EF_SEARCH as u32,
        max_image_bytes: limits.media.image.max_bytes as u64,
        max_image_side: limits.media.image.max_side,
        max_image_pixels: limits.media.image.max_pixels,
        max_text_bytes: limits.max_text_bytes() as u32,
        max_concurrent_requests: limits.max_concurrent as u32,
        max_filter_depth: Filter::MAX_DEPTH as u32,
        max_filter_conditions: Filter::MAX_CONDITIONS as u32,
        max_filter_values: Filter::MAX_VALUES as u32,
        max_audio_bytes: limits.media.audio.max_bytes as u64,
        max_audio_seconds: limits.media.audio.max_seconds,
        max_video_bytes: limits.video.max_bytes as u64,
        max_video_seconds: limits.video.max_seconds,
        max_video_pixels: limits.video.max_pixels,
        max_table_bytes: limits.media.point.max_bytes as u64,
        max_points: limits.media.point.max_points as u64,
    }
}

/// Hits as neighbours, with their records looked up. A hit without a record still counts; its uri is empty.
///
/// * `weights`: their shares, or nothing.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn neighbors(
    snapshot: &SnapshotRef,
    hits: &[Hit],
    weights: &[f32],
    vectors: Option<Dtype>,
) -> Result<Vec<proto::Neighbor>, Error> {
    let SnapshotRef(snapshot) = snapshot;
    let one = |(i, hit): (usize, &Hit)| {
        let record =
            snapshot.store().item(snapshot.record().id, hit.id).map_err(crate::cache::Error::from)?;
        let (uri, tags) = record.map(|r| (r.uri, r.tags)).unwrap_or_default();
        Ok(proto::Neighbor {
            id: hit.id.0,
            uri,
            score: hit.score,
            weight: weights.get(i).copied().unwrap_or(0.0),
            tags: tags.into_iter().collect(),
            embedding: vectors.map(|dtype| row(hit.embedding.as_slice(), dtype)),
        })
    };
    hits.iter().enumerate().map(one).collect()
}

/// One embedding, `[D]`.
pub(super) fn row(values: &[f32], dtype: Dtype) -> proto::Tensor {
    let mut tensor = encode_tensor(values, values.len(), dtype);
    tensor.shape = vec![values.len() as i64];
    tensor
}

/// Rows of successes, zeros for failures, as one tensor `[N, dim]`.
pub(super) fn stack<'a>(
    rows: impl Iterator<Item = Option<&'a [f32]>>,
    dim: usize,
    dtype: Dtype,
) -> proto::Tensor {
    let mut values = Vec::new();
    for row in rows {
        match row {
            Some(row) => values.extend_from_slice(row),
            None => values.resize(values.len() + dim, 0.0),
        }
    }
    encode_tensor(&values, dim, dtype)
}
