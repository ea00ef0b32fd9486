//! What is said of caches, models, hits and the service.

use std::time::Duration;

use crate::blend::BlendParams;
use crate::cache::{self, Snapshot};
use crate::flow::{self, App, Call, Error, SnapshotRef};
use crate::index::SearchParams;
use crate::models::encoder::Encoder;
use crate::serve::proto::{self, Dtype};
use crate::serve::tensor::encode_tensor;
use crate::store::{Choice, GenerationRecord, ItemRecord, QuerySource, RecallCurve};
use crate::types::{Agreement, Filter, Hit, ItemId, Modality, Origin};

/// A modality as a message says it.
pub(in crate::serve) fn modality(modality: Option<Modality>) -> proto::Modality {
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
pub(in crate::serve) fn source(snapshot: &Snapshot) -> proto::Source {
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
pub(in crate::serve) fn model(encoder: &Encoder) -> proto::Model {
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
pub(in crate::serve) fn recall(curve: &RecallCurve) -> Vec<proto::Recall> {
    curve.iter().map(|&(ef, r)| proto::Recall { ef_search: ef as u32, recall_at_10: r }).collect()
}

/// All measured curves, each with its kind; a sample of real queries that was named `image` counts for more than moved rows.
pub(in crate::serve) fn recall_curves(generation: &GenerationRecord) -> Vec<proto::RecallCurve> {
    let rows = (Modality::Image.word(), &generation.recall);
    let rows = Some(rows).filter(|(kind, _)| !generation.recall_by.contains_key(*kind));
    let given = generation.recall_by.iter().map(|(kind, curve)| (kind.as_str(), curve));
    let measured = rows.into_iter().chain(given).filter(|(_, curve)| !curve.is_empty());
    let with_ways = |(kind, curve): (&str, &RecallCurve)| {
        let of_kind = generation.measured.get(kind);
        let ways =
            of_kind.iter().flat_map(|of_kind| of_kind.ways.iter().flatten()).map(|point| proto::RecallWay {
                ef_search: point.ef_search as u32,
                rescore: point.rescore as u32,
                margin: point.margin,
                recall_at_10: point.recall,
                scored_vectors: point.scored,
                scan: point.scan,
                recall_at_100: point.recall_100,
            });
        proto::RecallCurve {
            kind: kind.into(),
            points: recall(curve),
            nearest: generation.nearest.get(kind).copied(),
            queries: of_kind.map_or(0, |of_kind| of_kind.queries as u32),
            ways: ways.collect(),
        }
    };
    measured.map(with_ways).collect()
}

/// Which codes were chosen, and why.
pub(in crate::serve) fn codes_choice(choice: &Choice) -> proto::CodesChoice {
    let tried = choice.tried.iter().map(|tried| proto::CodesTried {
        kind: tried.kind.clone(),
        codes: tried.codes.clone(),
        rescore: tried.rescore as u32,
        within: tried.within,
    });
    let queries = match choice.queries {
        QuerySource::Given => "given",
        QuerySource::Rows => "rows",
        QuerySource::Made => "made",
    };
    proto::CodesChoice {
        codes: choice.codes.clone(),
        rescore: choice.rescore as u32,
        queries: queries.into(),
        tried: tried.collect(),
    }
}

/// Kinds of which a wider beam finds no more.
pub(in crate::serve) fn flat_curves(generation: &GenerationRecord) -> Vec<proto::FlatCurve> {
    let flat = cache::flat(&generation.measured).into_iter();
    flat.map(|(kind, recall_at_10)| proto::FlatCurve { kind, recall_at_10 }).collect()
}

/// Recall of live searches.
pub(in crate::serve) fn live_recall(live: flow::LiveRecall) -> proto::LiveRecall {
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
pub(in crate::serve) fn limits(app: &App) -> proto::Limits {
    let limits = &app.limits;
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
        max_caches: limits.max_caches as u32,
        max_streams: limits.max_streams as u32,
        max_connections: limits.max_connections as u32,
        max_request_memory_bytes: app.budget.total(),
        max_answer_memory_bytes: app.generator.as_ref().map_or(0, |generator| generator.options().memory),
        stall_seconds: limits.stall.as_secs() as u32,
        idle_seconds: limits.idle.as_secs() as u32,
    }
}

/// Bytes of a neighbour in a reply, its texts and embedding aside: a hit, the message, and what is written of it.
const NEIGHBOR: u64 = 384;
/// Bytes of an item's record, its texts aside, and of a tag.
const RECORD: u64 = 256;
const TAG: u64 = 96;
/// What is in a reply is there twice: as a message, and as what is written of it.
const TWICE: u64 = 2;
/// Neighbours whose records are looked up together.
const TOGETHER: usize = 128;

/// Bytes that the neighbours of a batch take, their texts aside; of a cache that is not there, none.
///
/// * `top_k`: neighbours of a query. `vectors`: whether they have their embeddings.
pub(in crate::serve) fn neighbors_need(
    app: &App,
    cache: &str,
    queries: usize,
    top_k: usize,
    vectors: Option<Dtype>,
) -> u64 {
    let Ok(snapshot) = app.cache(cache).map(|cache| cache.snapshot()) else { return 0 };
    let row = vectors.map_or(0, |_| TWICE * (snapshot.record().dim * size_of::<f32>()) as u64);
    (queries * top_k.min(snapshot.live())) as u64 * (NEIGHBOR + row)
}

/// Bytes that an item's record takes in a reply.
pub(in crate::serve) fn record_needs(record: &ItemRecord) -> u64 {
    let tags = record.tags.iter().map(|(key, value)| TAG + TWICE * (key.len() + value.len()) as u64);
    RECORD + TWICE * record.uri.len() as u64 + tags.sum::<u64>()
}

/// Hits as neighbours, with their records looked up. A hit without a record still counts; its uri is empty.
///
/// * `weights`: their shares, or nothing.
///
/// # Errors
/// When the store cannot be read; when there is no memory for the records; deadline and cancellation.
pub(in crate::serve) fn neighbors(
    snapshot: &SnapshotRef,
    hits: &[Hit],
    weights: &[f32],
    vectors: Option<Dtype>,
    call: &Call,
) -> Result<Vec<proto::Neighbor>, Error> {
    let SnapshotRef(snapshot) = snapshot;
    let mut neighbors = Vec::with_capacity(hits.len());
    for hits in hits.chunks(TOGETHER) {
        call.check()?;
        let ids: Vec<ItemId> = hits.iter().map(|hit| hit.id).collect();
        let records = snapshot.store().items(snapshot.record().id, &ids).map_err(cache::Error::from)?;
        call.tab.add(records.iter().flatten().map(record_needs).sum())?;
        for (hit, record) in hits.iter().zip(records) {
            let (uri, tags) = record.map(|r| (r.uri, r.tags)).unwrap_or_default();
            neighbors.push(proto::Neighbor {
                id: hit.id.0,
                uri,
                score: hit.score,
                weight: weights.get(neighbors.len()).copied().unwrap_or(0.0),
                tags: tags.into_iter().collect(),
                embedding: vectors.map(|dtype| row(hit.embedding.as_slice(), dtype)),
            });
        }
    }
    Ok(neighbors)
}

/// One embedding, `[D]`.
pub(in crate::serve) fn row(values: &[f32], dtype: Dtype) -> proto::Tensor {
    let mut tensor = encode_tensor(values, values.len(), dtype);
    tensor.shape = vec![values.len() as i64];
    tensor
}

/// Rows of successes, zeros for failures, as one tensor `[N, dim]`.
pub(in crate::serve) fn stack<'a>(
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

/// A time as replies tell it.
pub(in crate::serve) fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}
