//! Replies as text for people or JSON for programs.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use tonic::Code;
use tonic_types::{RpcStatusExt, StatusExt, pb};
use viscache::serve::{code_name, proto};

use super::SOME_BAD;

/// Rows that are named one by one in a note.
const NAMED_ROWS: usize = 10;

/// Prints results one by one and remembers whether any was bad.
pub struct Shown {
    /// What is being counted: queries or inputs.
    item: &'static str,
    json: bool,
    /// Whether to say how a search went about it.
    plan: bool,
    count: usize,
    /// The numbers of those that were bad.
    bad: Vec<usize>,
}

/// A text that others wrote, for a terminal: what would move its cursor or change its colours is written out.
pub fn printable(text: &str) -> String {
    let mut printed = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => printed.push(c),
            c if c.is_control() => printed.extend(c.escape_default()),
            c => printed.push(c),
        }
    }
    printed
}

/// A whole request that was refused, as an error to print.
pub fn refused(status: tonic::Status) -> anyhow::Error {
    let reason =
        status.get_details_error_info().map(|info| format!(" [{}]", info.reason)).unwrap_or_default();
    anyhow::anyhow!("{}{reason}: {}", code_name(status.code()), printable(status.message()))
}

impl Shown {
    pub fn new(item: &'static str, json: bool) -> Self {
        Shown { item, json, plan: false, count: 0, bad: Vec::new() }
    }

    /// Says to people, too, how many items matched a filter and how they were searched.
    pub fn with_plan(self) -> Self {
        Shown { plan: true, ..self }
    }

    /// Success, or [`SOME_BAD`].
    pub fn exit_code(&self) -> ExitCode {
        if self.bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(SOME_BAD) }
    }

    /// Says something to people; programs do not hear it.
    pub fn note(&self, text: &str) {
        if !self.json {
            eprintln!("{text}");
        }
    }

    /// Says to people how many results are in a file, and in which of its rows there are only zeros because the result was bad.
    pub fn written(&self, what: &str, out: &Path) {
        let (file, count, bad) = (out.display(), self.count, &self.bad[..]);
        let good = count - bad.len();
        let rows = |rows: &[usize]| rows.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        self.note(&match bad {
            [] => format!("{count} {what} written to {file}"),
            [row] => format!("{good} of {count} {what} written to {file}; row {row} is zeros"),
            bad if bad.len() <= NAMED_ROWS => {
                format!("{good} of {count} {what} written to {file}; rows {} are zeros", rows(bad))
            }
            bad => format!(
                "{good} of {count} {what} written to {file}; rows {} and {} more are zeros",
                rows(&bad[..NAMED_ROWS]),
                bad.len() - NAMED_ROWS
            ),
        });
    }

    pub fn enhanced(
        &mut self,
        result: &proto::EnhanceResult,
        source: Option<&proto::Source>,
        row: Option<&[f32]>,
    ) -> anyhow::Result<()> {
        let Some(query) = self.begin(result.status.as_ref())? else { return Ok(()) };
        if self.json {
            let mut line = json!({
                "query": query,
                "cache": source.map(|s| &s.cache),
                "generation": source.map(|s| s.generation),
                "neighbors": neighbors(&result.neighbors, true),
                "entropy": result.entropy,
                "max_score": result.max_score,
                "cosine": result.cosine,
                "timings_us": timings(result.timings.as_ref()),
                "cost": cost(result.cost.as_ref()),
            });
            if let Some(row) = row {
                line["vector"] = json!(row);
            }
            return print_line(&line);
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "query {query}")?;
        writeln!(out, "  {:>7} {:>8} {:>9}  uri", "weight", "score", "id")?;
        for n in &result.neighbors {
            writeln!(out, "  {:>7.4} {:>8.4} {:>9}  {}", n.weight, n.score, n.id, printable(&n.uri))?;
        }
        let most = (result.neighbors.len() as f32).ln();
        writeln!(
            out,
            "  cosine between before and after {:.4} · best score {:.4} · entropy {:.3} of at most {most:.3}",
            result.cosine, result.max_score, result.entropy
        )?;
        self.planned(&mut out, result.cost.as_ref())
    }

    pub fn searched(
        &mut self,
        result: &proto::SearchResult,
        source: Option<&proto::Source>,
    ) -> anyhow::Result<()> {
        let Some(query) = self.begin(result.status.as_ref())? else { return Ok(()) };
        if self.json {
            return print_line(&json!({
                "query": query,
                "cache": source.map(|s| &s.cache),
                "generation": source.map(|s| s.generation),
                "neighbors": neighbors(&result.neighbors, false),
                "timings_us": timings(result.timings.as_ref()),
                "cost": cost(result.cost.as_ref()),
            }));
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "query {query}")?;
        writeln!(out, "  {:>8} {:>9}  uri", "score", "id")?;
        for n in &result.neighbors {
            writeln!(out, "  {:>8.4} {:>9}  {}", n.score, n.id, printable(&n.uri))?;
        }
        self.planned(&mut out, result.cost.as_ref())
    }

    fn planned(&self, out: &mut impl Write, cost: Option<&proto::Cost>) -> anyhow::Result<()> {
        if self.plan
            && let Some(cost) = cost
        {
            writeln!(out, "  matching items {} · plan {}", cost.matching_items, plan(cost.plan()))?;
        }
        Ok(())
    }

    pub fn embedded(&mut self, result: &proto::ItemStatus, row: Option<&[f32]>) -> anyhow::Result<()> {
        let Some(input) = self.begin(result.status.as_ref())? else { return Ok(()) };
        match (self.json, row) {
            (true, row) => print_line(&json!({ "input": input, "vector": row })),
            (false, Some(row)) => {
                let numbers: Vec<String> = row.iter().map(f32::to_string).collect();
                writeln!(std::io::stdout(), "{}", numbers.join(" "))?;
                Ok(())
            }
            (false, None) => Ok(()),
        }
    }

    pub fn scored(&mut self, answer: &str, score: &proto::Score) -> anyhow::Result<()> {
        let Some(item) = self.begin(score.status.as_ref())? else { return Ok(()) };
        match self.json {
            true => print_line(&json!({
                "answer": item,
                "text": answer,
                "logprob": score.logprob,
                "token_logprobs": score.token_logprobs,
            })),
            false => Ok(writeln!(std::io::stdout(), "{:>10.4}  {answer}", score.logprob)?),
        }
    }

    pub fn upserted(&mut self, result: &proto::UpsertResult) -> anyhow::Result<()> {
        let Some(item) = self.begin(result.status.as_ref())? else { return Ok(()) };
        match self.json {
            true => print_line(&json!({ "item": item, "id": result.id })),
            false => Ok(writeln!(std::io::stdout(), "{}", result.id)?),
        }
    }

    pub fn updated(&mut self, result: &proto::UpdateResult) -> anyhow::Result<()> {
        let Some(_) = self.begin(result.status.as_ref())? else { return Ok(()) };
        if self.json { print_line(&json!({ "id": result.id, "changed": true })) } else { Ok(()) }
    }

    /// Says to people how many items all went well with.
    pub fn summed(&self, what: &str) -> anyhow::Result<()> {
        match self.json {
            true => Ok(()),
            false => Ok(writeln!(std::io::stdout(), "{} {what}", self.count - self.bad.len())?),
        }
    }

    pub fn item(&mut self, item: &proto::ItemResult) -> anyhow::Result<()> {
        let Some(_) = self.begin(item.status.as_ref())? else { return Ok(()) };
        let modality = item.modality().as_str_name().trim_start_matches("MODALITY_").to_lowercase();
        let modality = Some(modality).filter(|word| word != "unspecified");
        if self.json {
            let mut line = json!({
                "id": item.id, "uri": item.uri, "modality": modality, "digest": item.digest, "tags": item.tags,
            });
            if let Some(tensor) = &item.embedding {
                line["vector"] =
                    json!(viscache::serve::decode_tensor(tensor).map_err(anyhow::Error::msg)?.values);
            }
            return print_line(&line);
        }
        let tags: BTreeMap<&String, &String> = item.tags.iter().collect();
        let tags: Vec<String> = tags.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut out = std::io::stdout().lock();
        let [uri, tags] = [printable(&item.uri), printable(&tags.join(" "))];
        writeln!(out, "{:>9}  {uri}  {}  {tags}", item.id, modality.unwrap_or_default())?;
        Ok(())
    }

    /// The number of the next result, or nothing when it is an error that has now been printed.
    fn begin(&mut self, status: Option<&pb::Status>) -> anyhow::Result<Option<usize>> {
        let number = self.count;
        self.count += 1;
        let Some(status) = status.filter(|s| s.code != 0) else { return Ok(Some(number)) };
        self.bad.push(number);
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        let code = code_name(Code::from_i32(status.code));
        if self.json {
            let error = json!({ "code": code, "reason": reason, "message": status.message });
            let mut line = json!({ "error": error });
            line[self.item] = json!(number);
            print_line(&line)?;
        } else {
            eprintln!("{} {number}: {code} [{reason}]: {}", self.item, status.message);
        }
        Ok(None)
    }
}

/// Prints what a cache is.
pub fn described(reply: &proto::DescribeResponse, json: bool) -> anyhow::Result<()> {
    let source = reply.source.clone().unwrap_or_default();
    let limits = reply.limits.unwrap_or_default();
    let points = |points: &[proto::Recall]| -> Vec<Value> {
        let point = |r: &proto::Recall| json!({ "ef_search": r.ef_search, "recall_at_10": r.recall_at_10 });
        points.iter().map(point).collect()
    };
    let way = |w: &proto::RecallWay| json!({ "ef_search": w.ef_search, "rescore": w.rescore, "margin": w.margin, "recall_at_10": w.recall_at_10, "scored_vectors": w.scored_vectors, "scan": w.scan, "recall_at_100": w.recall_at_100 });
    let ways = |c: &proto::RecallCurve| c.ways.iter().map(way).collect::<Vec<_>>();
    let curve = |c: &proto::RecallCurve| json!({ "kind": c.kind, "queries": c.queries, "points": points(&c.points), "ways": ways(c), "nearest": c.nearest });
    let live = |l: &proto::LiveRecall| {
        json!({
            "kind": l.kind,
            "recall_at_10": l.recall_at_10,
            "samples": l.samples,
            "oldest_ms": l.oldest_ms,
            "newest_ms": l.newest_ms,
        })
    };
    if json {
        return print_line(&json!({
            "cache": source.cache,
            "generation": source.generation,
            "items": reply.items,
            "dim": reply.dim,
            "rows": proto::Dtype::try_from(reply.row_dtype).map(|d| d.as_str_name()).unwrap_or_default(),
            "codes": reply.codes,
            "rows_in_memory": reply.rows_in_memory,
            "memory_bytes": reply.memory_bytes,
            "recall": points(&reply.recall),
            "recall_curves": reply.recall_curves.iter().map(curve).collect::<Vec<_>>(),
            "live_recall": reply.live_recall.iter().map(live).collect::<Vec<_>>(),
            "recall_sampling_rate": reply.recall_sampling_rate,
            "recall_samples_dropped": reply.recall_samples_dropped,
            "live_items": reply.live_items,
            "codes_choice": reply.codes_choice.as_ref().map(|c| json!({
                "codes": c.codes, "rescore": c.rescore, "queries": c.queries,
                "tried": c.tried.iter().map(|t| json!({
                    "kind": t.kind, "codes": t.codes, "rescore": t.rescore, "within": t.within,
                })).collect::<Vec<_>>(),
            })),
            "flat_curves": reply.flat_curves.iter().map(|f| json!({
                "kind": f.kind, "recall_at_10": f.recall_at_10,
            })).collect::<Vec<_>>(),
            "writable": reply.writable,
            "delta": reply.delta.as_ref().map(|d| json!({
                "items": d.items,
                "tombstones": d.tombstones,
                "memory_bytes": d.memory_bytes,
                "sequence": d.sequence,
                "watermark": d.watermark,
                "compacting": d.compacting,
                "compaction_problem": d.compaction_problem,
            })),
            "made_by": {
                "model": source.model,
                "weights_fingerprint": source.weights_fingerprint,
                "preprocessing_fingerprint": source.preprocessing_fingerprint,
                "encoder_dtype": source.encoder_dtype,
                "agreement": source.agreement.as_ref().map(|a| json!({
                    "mean": a.mean, "min": a.min, "pictures": a.pictures,
                })),
            },
            "model_loaded": reply.model.as_ref().map(|m| &m.name),
            "model_dtype": reply.model.as_ref().map(|m| &m.encoder_dtype),
            "default_blend": reply.default_blend.map(|b| json!({
                "top_k": b.top_k, "temperature": b.temperature, "weight": b.weight,
            })),
            "default_search": reply.default_search.as_ref().map(|s| json!({
                "ef_search": s.ef_search, "rescore": s.rescore, "exact": s.exact, "target_recall": s.target_recall,
            })),
            "limits": bounds(&limits),
            "server_version": reply.server_version,
            "kernels": reply.kernels,
            "decoder": reply.decoder.as_ref().map(|d| json!({
                "name": d.name, "weights": d.weights_fingerprint, "max_positions": d.max_positions,
                "family": d.family().as_str_name().trim_start_matches("DECODER_FAMILY_").to_lowercase(),
            })),
        }));
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "cache {} generation {}: {} items of {} components",
        source.cache, source.generation, reply.items, reply.dim
    )?;
    let place = if reply.rows_in_memory { "rows in memory" } else { "rows on disk" };
    writeln!(
        out,
        "memory {} MiB, {place}, searched on {} codes with {}",
        reply.memory_bytes >> 20,
        reply.codes,
        reply.kernels
    )?;
    if let Some(choice) = &reply.codes_choice {
        let made =
            if choice.queries == "made" { ", by made queries: a sample of real ones tells more" } else { "" };
        writeln!(
            out,
            "{} codes were chosen by measuring, of which the best {} are scored again{made}",
            choice.codes, choice.rescore
        )?;
    }
    if let Some(delta) = reply.delta.as_ref().filter(|delta| delta.sequence > 0) {
        writeln!(
            out,
            "{} items can be found: {} were upserted and {} replaced or deleted since the generation (change {})",
            reply.live_items, delta.items, delta.tombstones, delta.sequence
        )?;
        if !delta.compaction_problem.is_empty() {
            writeln!(out, "the last compaction failed: {}", delta.compaction_problem)?;
        }
    }
    for proto::RecallCurve { kind, points, .. } in &reply.recall_curves {
        for r in points {
            writeln!(out, "recall@10 {:.4} at ef_search {} for {kind} queries", r.recall_at_10, r.ef_search)?;
        }
    }
    for proto::FlatCurve { kind, recall_at_10 } in &reply.flat_curves {
        writeln!(
            out,
            "recall@10 of {kind} queries ends at {recall_at_10:.4}, however wide the beam; build with wider codes (`--codes f16`)"
        )?;
    }
    for l in &reply.live_recall {
        writeln!(
            out,
            "live recall@10 {:.4} for {} queries: the last {} of those sampled",
            l.recall_at_10, l.kind, l.samples
        )?;
    }
    writeln!(
        out,
        "made by {} (weights {}, preprocessing {})",
        source.model,
        known(&source.weights_fingerprint),
        known(&source.preprocessing_fingerprint)
    )?;
    if let Some(proto::Agreement { mean, min, pictures }) = source.agreement {
        writeln!(
            out,
            "with {} weights: cosine to f32 {mean:.5} in the mean, {min:.5} at least, on {pictures} pictures",
            source.encoder_dtype
        )?;
    }
    match &reply.model {
        Some(model) => writeln!(out, "model loaded: {} ({})", model.name, model.encoder_dtype)?,
        None => writeln!(out, "no model loaded: embeddings only")?,
    }
    writeln!(
        out,
        "limits: {} MiB a message, {} queries a request, top_k {}, ef_search {}, pictures of {} MiB and {} pixels",
        limits.max_message_bytes >> 20,
        limits.max_batch,
        limits.max_top_k,
        limits.max_ef_search,
        limits.max_image_bytes >> 20,
        limits.max_image_pixels
    )?;
    Ok(())
}

/// The limits as JSON.
fn bounds(limits: &proto::Limits) -> Value {
    json!({
        "max_message_bytes": limits.max_message_bytes,
        "max_batch": limits.max_batch,
        "max_parts": limits.max_parts,
        "max_top_k": limits.max_top_k,
        "max_ef_search": limits.max_ef_search,
        "max_image_bytes": limits.max_image_bytes,
        "max_image_side": limits.max_image_side,
        "max_image_pixels": limits.max_image_pixels,
        "max_text_bytes": limits.max_text_bytes,
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_filter_depth": limits.max_filter_depth,
        "max_filter_conditions": limits.max_filter_conditions,
        "max_filter_values": limits.max_filter_values,
        "max_audio_bytes": limits.max_audio_bytes,
        "max_audio_seconds": limits.max_audio_seconds,
        "max_video_bytes": limits.max_video_bytes,
        "max_video_seconds": limits.max_video_seconds,
        "max_video_pixels": limits.max_video_pixels,
        "max_table_bytes": limits.max_table_bytes,
        "max_points": limits.max_points,
        "max_caches": limits.max_caches,
        "max_streams": limits.max_streams,
        "max_connections": limits.max_connections,
        "max_request_memory_bytes": limits.max_request_memory_bytes,
        "max_answer_memory_bytes": limits.max_answer_memory_bytes,
        "stall_seconds": limits.stall_seconds,
        "idle_seconds": limits.idle_seconds,
    })
}

/// One JSON object on a line of standard output.
pub fn print_line(value: &Value) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{value}")?)
}

fn known(fingerprint: &str) -> &str {
    fingerprint.get(..12).unwrap_or("unknown")
}

/// Neighbours as JSON.
pub fn neighbors(neighbors: &[proto::Neighbor], weights: bool) -> Vec<Value> {
    let one = |n: &proto::Neighbor| {
        let mut value = json!({ "id": n.id, "uri": n.uri, "score": n.score });
        if weights {
            value["weight"] = json!(n.weight);
        }
        if !n.tags.is_empty() {
            value["tags"] = json!(n.tags);
        }
        value
    };
    neighbors.iter().map(one).collect()
}

fn timings(timings: Option<&proto::Timings>) -> Value {
    let t = timings.copied().unwrap_or_default();
    json!({ "queue": t.queue_us, "embed": t.embed_us, "search": t.search_us, "blend": t.blend_us })
}

fn cost(cost: Option<&proto::Cost>) -> Value {
    let c = cost.copied().unwrap_or_default();
    json!({
        "visited_nodes": c.visited_nodes,
        "scored_vectors": c.scored_vectors,
        "rescored_vectors": c.rescored_vectors,
        "matching_items": c.matching_items,
        "plan": plan(c.plan()),
        "ef_search": c.ef_search,
    })
}

fn plan(plan: proto::Plan) -> &'static str {
    match plan {
        proto::Plan::Unspecified => "unknown",
        proto::Plan::Graph => "graph",
        proto::Plan::GraphWithSkip => "graph with skip",
        proto::Plan::Exact => "exact",
        proto::Plan::Scan => "scan",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_does_not_move_the_cursor() {
        assert_eq!(printable("a/\u{1b}[2J\u{7}é\r\n\tb\u{9b}1m"), "a/\\u{1b}[2J\\u{7}é\\r\n\tb\\u{9b}1m");
    }
}
